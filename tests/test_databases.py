"""The databases that the other tests stand on: real, fresh, one's own where it is to break."""

from __future__ import annotations

import asyncio
import sqlite3
from contextlib import closing
from typing import Any

import asyncpg
import psutil
import pytest

from tests.databases import WITHIN, Mode, PostgresServer, fresh_database

pytestmark = pytest.mark.anyio


async def sql(url: str, *statements: str) -> list[tuple[Any, ...]]:
    """Run each and commit it; the rows of the last."""
    if url.startswith("sqlite:///"):
        with closing(sqlite3.connect(url.removeprefix("sqlite:///"), isolation_level=None)) as file:
            return [file.execute(statement).fetchall() for statement in statements][-1]
    connection = await asyncpg.connect(url, timeout=WITHIN)
    try:
        return [[tuple(row) for row in await connection.fetch(statement)] for statement in statements][-1]
    finally:
        await connection.close()


@pytest.mark.parametrize("turn", [1, 2])
async def test_each_test_has_an_empty_database(database_url: str, turn: int) -> None:
    rows = await sql(
        database_url, "CREATE TABLE room (n int)", f"INSERT INTO room VALUES ({turn})", "SELECT n FROM room"
    )
    assert rows == [(turn,)]


async def test_two_databases_do_not_see_each_other(postgres_server: str) -> None:
    with fresh_database(postgres_server) as one, fresh_database(postgres_server) as other:
        await sql(one, "CREATE TABLE room (n int)")
        with pytest.raises(asyncpg.UndefinedTableError):
            await sql(other, "TABLE room")


async def test_a_database_goes_though_somebody_uses_it(postgres_server: str) -> None:
    with fresh_database(postgres_server) as url:
        connection = await asyncpg.connect(url, timeout=WITHIN)
    with pytest.raises((asyncpg.PostgresConnectionError, asyncpg.AdminShutdownError, asyncpg.InterfaceError)):
        await connection.fetch("SELECT 1")
    with pytest.raises(asyncpg.InvalidCatalogNameError):
        await asyncpg.connect(url, timeout=WITHIN)


@pytest.mark.parametrize("setting", ["fsync", "synchronous_commit", "full_page_writes"])
async def test_a_commit_is_on_the_disk(postgres_url: str, setting: str) -> None:
    assert await sql(postgres_url, f"SHOW {setting}") == [("on",)]


async def test_text_is_text_of_any_language(postgres_url: str) -> None:
    assert await sql(postgres_url, "SELECT lower('ÄΩ'), length('日本🎉')") == [("äω", 3)]


@pytest.mark.parametrize("mode", ["fast", "immediate", "kill"])
async def test_what_was_committed_survives_a_restart(own_postgres: PostgresServer, mode: Mode) -> None:
    url, pid = own_postgres.url(), own_postgres.pid
    await sql(url, "CREATE TABLE room (n int)", "INSERT INTO room VALUES (1)")
    await asyncio.to_thread(own_postgres.restart, mode)
    assert (own_postgres.url(), psutil.pid_exists(pid)) == (url, False)
    assert await sql(url, "TABLE room") == [(1,)]


async def test_a_paused_server_stands_still_until_it_is_resumed(own_postgres: PostgresServer) -> None:
    connection = await asyncpg.connect(own_postgres.url(), timeout=WITHIN)
    own_postgres.pause()
    answer = asyncio.create_task(connection.fetchval("SELECT 1"))
    backend = psutil.Process(connection.get_server_pid())
    assert {backend.status(), psutil.Process(own_postgres.pid).status()} == {psutil.STATUS_STOPPED}
    own_postgres.resume()
    assert await asyncio.wait_for(answer, WITHIN) == 1
    await connection.close()


def test_nothing_is_left_even_of_a_paused_server() -> None:
    with PostgresServer() as server:
        family = [psutil.Process(server.pid), *psutil.Process(server.pid).children(recursive=True)]
        server.pause()
    assert not [process for process in family if process.is_running()]
    assert not server.home.exists()
