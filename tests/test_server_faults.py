"""A whole server whose database does not take what is written: senders are told, readers stay, and it goes on by itself."""

from __future__ import annotations

import asyncio
import os
import sqlite3
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from hubbub import schema
from hubbub.engines import engine_for
from tests.databases import Mode, PostgresServer
from tests.support import Client, Running, running, settings_for

pytestmark = pytest.mark.anyio
OFF = {"rate_limit": 0, "user_rate_limit": 0, "abuse_limit": 0}


async def says(client: Client, text: str) -> str:
    """What a message is answered: `ack`, or the code of the error."""
    answer = await client.ask("chat_message", room_id="general", message=text, client_id=text[:20])
    assert answer["type"] == "ack" or answer["retry_after"] > 0, answer
    return "ack" if answer["type"] == "ack" else str(answer["code"])


async def texts(client: Client) -> list[str]:
    answer = await client.ask("get_messages", room_id="general", limit=200)
    numbers = [message["id"] for message in answer["messages"]]
    assert numbers == list(range(1, len(numbers) + 1))
    return [message["message"] for message in answer["messages"]]


async def everything_else_goes_on(server: Running, writer: Client, reader: Client) -> None:
    """While nothing can be written: the connections, channels, live rooms and reading."""
    await reader.ask("subscribe", channel="news")
    await writer.ask("publish", channel="news", data="still here")
    assert (await reader.expect("publication"))["data"] == "still here"
    assert "before" in await texts(reader)
    async with server.http() as http:
        health = (await http.get("/health")).json()
        assert (health["status"], health["store"]) == ("healthy", "unavailable")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 3 MiB."""
    place = tmp_path / "small"
    place.mkdir()
    if os.geteuid() != 0:
        pytest.skip("only root can mount a small disk")
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", place], capture_output=True)
    if mounted.returncode:
        pytest.skip(f"cannot mount a small disk: {mounted.stderr.decode().strip()}")
    try:
        yield place
    finally:
        subprocess.run(["umount", place], check=True)


def fill(place: Path) -> Path:
    """Leave nothing of a disk."""
    junk = place / "junk"
    with junk.open("wb", buffering=0) as file:
        for size in (65_536, 4096, 1):
            try:
                while file.write(b"x" * size) == size:
                    pass
            except OSError:
                continue
    return junk


async def test_a_full_disk(small_disk: Path) -> None:
    settings = settings_for(database_url=f"sqlite:///{small_disk / 'hubbub.db'}", **OFF)
    async with running(settings) as server, server.client("ann") as ann, server.client("bob") as bob:
        for client in (ann, bob):
            await client.ask("join_room", room_id="general")
        assert await says(ann, "before") == "ack"
        junk = fill(small_disk)
        refused = 0
        for number in range(100):  # there may be room in the log yet
            if await says(ann, f"{number} " + "x" * 5000) == "unavailable":
                refused += 1
            if refused == 3:
                break
        assert refused == 3
        await everything_else_goes_on(server, ann, bob)
        acked = await texts(bob)
        junk.unlink()
        assert await says(ann, "after") == "ack"
        assert await texts(bob) == [*acked, "after"]
        heard = [m["data"]["message"] for m in [*bob.seen, *await bob.drained()] if m["type"] == "message"]
        assert list(dict.fromkeys(heard)) == [*acked, "after"]


async def test_a_database_that_another_process_has_locked(tmp_path: Path) -> None:
    path = tmp_path / "hubbub.db"
    settings = settings_for(database_url=f"sqlite:///{path}", store_timeout=0.6, **OFF)
    async with running(settings) as server, server.client("ann") as ann, server.client("bob") as bob:
        for client in (ann, bob):
            await client.ask("join_room", room_id="general")
        assert await says(ann, "before") == "ack"
        other = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        other.execute("BEGIN IMMEDIATE")
        assert await says(ann, "refused") == "unavailable"
        await everything_else_goes_on(server, ann, bob)
        waits = asyncio.create_task(says(ann, "delayed"))
        await asyncio.to_thread(other.rollback)
        assert await waits == "ack"
        assert await says(ann, "refused") == "ack"  # the same, once more
        assert await texts(bob) == ["before", "delayed", "refused"]
        other.close()


@pytest.mark.parametrize("mode", ["fast", "kill"])
async def test_postgres_restarted_under_load(own_postgres: PostgresServer, mode: Mode) -> None:
    url = own_postgres.url()
    engine = engine_for(url, readers=1, full_sync=True)
    await engine.start()
    await schema.migrate(engine)
    await engine.stop()
    acked: list[str] = []

    async def talk(server: Running, name: str) -> None:
        async with server.client(name) as client:
            await client.ask("join_room", room_id="general")
            for number in range(30):
                text = f"{name}-{number}"
                while await says(client, text) != "ack":
                    pass
                acked.append(text)

    async with running(settings_for(database_url=url, store_timeout=5.0, **OFF)) as server, server.client("bob") as bob:
        await bob.ask("join_room", room_id="general")
        talking = [asyncio.create_task(talk(server, f"p{index}")) for index in range(8)]
        while len(acked) < 40:
            await asyncio.sleep(0)
        await asyncio.to_thread(own_postgres.restart, mode)
        await asyncio.gather(*talking)
        assert len(acked) == 240
        heard: list[str] = []
        while len(heard) < 240:
            message = await bob.receive()
            if message["type"] == "message":
                heard.append(message["data"]["message"])
                assert message["data"]["id"] == len(heard)
        assert sorted(heard) == sorted(acked)
        await bob.nothing_more()
