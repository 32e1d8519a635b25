"""Nodes that share an engine share the database and the keys, or say that they do not."""

from __future__ import annotations

import asyncio
import logging
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from fastapi import FastAPI

from hubbub import Hubbub
from hubbub.errors import ConfigurationError
from hubbub.testing import HandClock, MemoryEngine
from tests.support import SECRET, Running, running, settings_for, until

pytestmark = pytest.mark.anyio


def app_of(engine: MemoryEngine, database: str, **settings: str) -> FastAPI:
    chosen = settings_for(database_url=database, **settings)
    app = FastAPI()
    Hubbub(app, settings=chosen, clock=engine.clock, broker=engine.broker(chosen))
    return app


async def reason(node: Running) -> str | None:
    """Why no client is to be sent to it."""
    async with node.http() as http:
        answer = await http.get("/health/ready")
    assert (answer.status_code == 503) is ("reason" in answer.json())
    said: str | None = answer.json().get("reason")
    return said


async def test_a_node_with_another_database_does_not_start(tmp_path: Path) -> None:
    clock = HandClock()
    engine = MemoryEngine(clock)
    first, second = (f"sqlite:///{tmp_path / name}.db" for name in "ab")
    async with running(app=app_of(engine, first)) as node:
        clock.advance(2)  # a beat
        for _ in range(2):  # it is found out each time
            app = app_of(engine, second)
            with pytest.raises(
                ConfigurationError, match="other nodes on this engine keep the rooms in another database"
            ):
                async with app.router.lifespan_context(app):
                    pass
        assert await reason(node) is None, "the others are not to blame"
        async with running(app=app_of(engine, "sqlite://")) as roomless:
            assert await reason(roomless) is None
    async with running(app=app_of(engine, second)) as node:  # alone it may
        assert await reason(node) is None


async def test_nodes_that_come_up_together_with_two_databases_say_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    clock = HandClock()
    engine = MemoryEngine(clock)
    urls = [f"sqlite:///{tmp_path / name}.db" for name in "ab"]
    for url in urls:  # alembic migrates one at a time in a process
        async with running(settings_for(database_url=url)):
            pass
    first, second = (app_of(engine, url) for url in urls)
    with caplog.at_level(logging.ERROR, "hubbub"):
        async with asyncio.TaskGroup() as starting:
            ways = [running(app=app) for app in (first, second)]
            begun = [starting.create_task(way.__aenter__()) for way in ways]
        one, two = (task.result() for task in begun)
        try:
            clock.advance(2)
            await until(lambda: all(node.hub.cluster.agreement.trouble is not None for node in (one, two)))
            for node in (one, two):
                assert "another database" in (await reason(node) or "")
            assert sum("another database" in record.getMessage() for record in caplog.records) == 2
        finally:
            await ways[1].__aexit__(None, None, None)
        clock.advance(2)
        await until(lambda: one.hub.cluster.agreement.trouble is None)
        assert await reason(one) is None
        await ways[0].__aexit__(None, None, None)


async def test_other_keys_are_warned_of_once(caplog: pytest.LogCaptureFixture) -> None:
    clock = HandClock()
    engine = MemoryEngine(clock)
    with caplog.at_level(logging.WARNING, "hubbub"):
        async with (
            running(app=app_of(engine, "sqlite://")) as one,
            running(app=app_of(engine, "sqlite://")) as two,
            running(app=app_of(engine, "sqlite://", secret="another secret of at least 32 bytes")),
        ):
            for _ in range(3):
                clock.advance(2)
                await until(lambda: len(one.hub.cluster.others) == len(two.hub.cluster.others) == 2)
    warned = [record for record in caplog.records if "by another key" in record.getMessage()]
    assert len(warned) == 4, "each of both sides, once"
    assert SECRET not in caplog.text


def test_the_id_of_a_database_goes_with_its_copies(tmp_path: Path) -> None:
    async def opened(path: Path) -> None:
        async with running(settings_for(database_url=f"sqlite:///{path}")):
            pass

    for name in "ab":
        asyncio.run(opened(tmp_path / f"{name}.db"))
    found = []
    for name in "ab":
        with closing(sqlite3.connect(tmp_path / f"{name}.db")) as connection:
            found += connection.execute("SELECT id FROM identity").fetchall()
    assert len(found) == len(set(found)) == 2
