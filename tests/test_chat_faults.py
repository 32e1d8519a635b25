"""The chat under faults of its database, while people talk: they are delayed or told, nobody is thrown out, nothing that was
acknowledged is lost, and all goes on by itself when the fault ends."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any, Final

import asyncpg
import pytest

from tests.crash import ServerProcess, crowd, survive
from tests.databases import PostgresServer
from tests.rest_support import migrated
from tests.support import Client, Running, running, settings_for
from tests.talkers import Person, behind, kept, verdict

pytestmark = pytest.mark.anyio
PATIENCE: Final = 60.0
"""Seconds that anything may take before a test fails."""
TOLD: Final = ("unavailable", "busy")
ROOMS: Final = ("one", "two")
CALM: Final[dict[str, Any]] = {"rate_limit": 0, "user_rate_limit": 0, "abuse_limit": 0, "default_rooms": ROOMS}


class Crowd:
    """People who talk in two rooms, and one who does what needs no database that can be written to."""

    def __init__(self, server: Running, people: list[Person], bystander: Client) -> None:
        self.server = server
        self.people = people
        self.bystander = bystander
        self.lives: list[asyncio.Task[None]] = []

    @property
    def acked(self) -> int:
        return sum(person.acked for person in self.people)

    async def until(self, condition: Callable[[], bool], what: str) -> None:
        try:
            async with asyncio.timeout(PATIENCE):
                while not condition():
                    for life in self.lives:
                        if life.done():
                            life.result()
                    await asyncio.sleep(0.005)
        except TimeoutError:
            raise AssertionError(f"never came true: {what}") from None

    async def progress(self) -> None:
        """Wait until each has been acknowledged twice more."""
        goals = [(person, person.acked + 2) for person in self.people]
        await self.until(lambda: all(person.acked >= goal for person, goal in goals), "they talk")

    async def all_told(self, code: str, times: int = 1) -> None:
        goals = [(person, person.refused[code] + times) for person in self.people]
        await self.until(lambda: all(person.refused[code] >= goal for person, goal in goals), f"all are told {code}")

    async def whole(self) -> None:
        """Let all settle, and see that everything holds."""
        for person in self.people:
            person.quiet = True
        await self.until(lambda: all(person.settled for person in self.people), "all is acknowledged")
        rooms = {room: await kept(url_of(self.server)("admin", admin=True), room) for room in ROOMS}
        await self.until(lambda: not behind(self.people, rooms), "all have heard all")
        assert verdict(self.people, rooms) == []
        assert [person.returns for person in self.people] == [1] * len(self.people)  # nobody was thrown out

    async def others_go_on(self) -> None:
        """What needs no write: reading, live rooms, channels, pings."""
        client = self.bystander
        assert (await client.ask("get_messages", room_id="one"))["messages"]
        assert (await client.ask("list_rooms"))["rooms"]
        await self.elsewhere()

    async def elsewhere(self) -> None:
        """What needs no database."""
        client = self.bystander
        assert (await client.ask("chat_message", room_id="stage", message="live"))["type"] == "ack"
        await client.expect("message", room_id="stage") if client.seen[-2]["type"] != "message" else None
        assert (await client.ask("publish", channel="news", data=1))["type"] == "ack"
        assert (await client.ask("ping"))["type"] == "pong"


def url_of(server: Running) -> Callable[..., str]:
    return lambda user, **grants: f"{server.ws}/ws?token={server.token(user, **grants)}"


@asynccontextmanager
async def talking(database_url: str, *, people: int = 20, **settings: Any) -> AsyncIterator[Crowd]:
    await migrated(database_url)
    chosen = settings_for(database_url=database_url, **CALM | settings)
    async with running(chosen) as server, server.client("bystander") as bystander:
        assert (await bystander.ask("create_room", room_id="stage", kind="live"))["type"] == "room_created"
        for room in ("stage", "one"):
            assert (await bystander.ask("join_room", room_id=room))["type"] == "room_joined"
        crowd = [
            Person(url_of(server), f"p{each}", ROOMS[each % 2], ROOMS if each < 4 else (), may_fail=TOLD)
            for each in range(people)
        ]
        here = Crowd(server, crowd, bystander)
        here.lives = [asyncio.create_task(person.live()) for person in crowd]
        try:
            await here.progress()
            yield here
            await here.whole()
        finally:
            for life in here.lives:
                life.cancel()
            await asyncio.gather(*here.lives, return_exceptions=True)


# -- SQLite


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of four megabytes."""
    place = tmp_path / "disk"
    place.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(place)], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip(f"only root may mount a small disk: {mounted.stderr.decode().strip()}")
    try:
        yield place
    finally:
        subprocess.run(["umount", str(place)], check=True)


def fill(disk: Path) -> Path:
    """Take all the space that is left."""
    ballast = disk / "ballast"
    with ballast.open("wb", buffering=0) as file:
        for size in (1 << 16, 1 << 12, 1):
            try:
                while True:
                    file.write(b"x" * size)
            except OSError:
                continue
    return ballast


async def test_a_full_disk(small_disk: Path) -> None:
    async with talking(f"sqlite:///{small_disk / 'hubbub.db'}") as here:
        for _ in range(2):
            ballast = fill(small_disk)
            await here.all_told("unavailable", 2)
            await here.others_go_on()
            async with here.server.http() as http:
                assert (await http.get("/health")).json()["store"] == "unavailable"
                refused = await http.post("/api/rooms/one/messages?as_user=p1", json={"message": "x"})
                assert (refused.status_code, refused.json()["error"]["code"]) == (503, "unavailable")
                assert int(refused.headers["retry-after"]) >= 1
            ballast.unlink()
            await here.progress()


LOCKER: Final = """
import sqlite3, sys
file = sqlite3.connect(sys.argv[1], isolation_level=None, timeout=60)
file.execute("BEGIN IMMEDIATE")
print("locked", flush=True)
sys.stdin.readline()
file.execute("ROLLBACK")
file.close()
print("open", flush=True)
"""


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Have another process hold the database's lock."""
    process = subprocess.Popen(
        [sys.executable, "-c", LOCKER, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        assert process.stdout.readline() == "locked\n"
        yield
        process.stdin.write("\n")
        process.stdin.flush()
        assert process.stdout.readline() == "open\n"
    finally:
        process.kill()
        process.communicate()


async def test_another_process_locks_the_file_for_a_while(tmp_path: Path) -> None:
    path = tmp_path / "hubbub.db"
    async with talking(f"sqlite:///{path}") as here:
        retried = here.server.hub.metrics.store.retried
        with locked(path):
            await here.until(lambda: here.server.hub.metrics.store.retried >= retried + 5, "it was tried again")
            await here.others_go_on()
        await here.progress()
        assert [dict(person.refused) for person in here.people] == [{}] * len(here.people)  # a delay, and no more


async def test_another_process_locks_the_file_for_too_long(tmp_path: Path) -> None:
    path = tmp_path / "hubbub.db"
    async with talking(f"sqlite:///{path}", store_timeout=1.0) as here:
        with locked(path):
            await here.all_told("unavailable", 2)
            await here.others_go_on()
            joined = await here.bystander.ask("join_room", room_id="two")  # to become a member is a write
            assert (joined["code"], joined["retry_after"]) == ("unavailable", 1.0)
        await here.progress()
        assert (await here.bystander.ask("join_room", room_id="two"))["type"] == "room_joined"


async def test_more_comes_than_is_stored(tmp_path: Path) -> None:
    path = tmp_path / "hubbub.db"
    async with talking(f"sqlite:///{path}", people=48, store_queue=16) as here:
        with locked(path):
            busy = [person.refused["busy"] for person in here.people]
            await here.until(
                lambda: sum(a.refused["busy"] > b + 5 for a, b in zip(here.people, busy, strict=True)) >= 32,
                "who does not fit in is told again and again",
            )
            assert here.server.hubbub.store.waiting <= 16
            await here.others_go_on()
        await here.progress()


@pytest.mark.slow
async def test_sigterm_under_load(tmp_path: Path, sqlite_url: str) -> None:
    server = ServerProcess(tmp_path, sqlite_url, drain_seconds="0.3", close_timeout="0.5")
    people = crowd(server, may_fail=("unavailable",))
    rooms = await survive(server, people, 8, 42, signal.SIGTERM)
    assert verdict(people, rooms) == []
    assert sum(person.acked for person in people) > 100
    assert "cannot" not in server.log.read_text()


# -- PostgreSQL


@pytest.mark.slow
async def test_postgres_is_restarted(own_postgres: PostgresServer) -> None:
    async with talking(own_postgres.url()) as here:
        for mode in ("fast", "immediate", "kill", "kill"):
            await asyncio.to_thread(own_postgres.restart, mode)
            await here.progress()


NAPS: Final = """
CREATE UNLOGGED TABLE naps AS SELECT 1;
CREATE FUNCTION nap() RETURNS trigger LANGUAGE plpgsql AS
    'BEGIN IF EXISTS (SELECT FROM naps) THEN PERFORM pg_sleep(60); END IF; RETURN NULL; END';
CREATE CONSTRAINT TRIGGER nap AFTER INSERT ON messages DEFERRABLE INITIALLY DEFERRED
    FOR EACH ROW EXECUTE FUNCTION nap();
"""
"""Has each commit take long before it takes place. After a crash, an unlogged table is empty."""
STANDBY: Final = "ALTER SYSTEM SET synchronous_standby_names = 'nobody'"
"""Has each commit take long after it took place: it waits for a standby, which there is not."""


@pytest.mark.parametrize("took_place", [True, False])
async def test_postgres_dies_in_the_middle_of_a_commit(own_postgres: PostgresServer, took_place: bool) -> None:
    async with talking(own_postgres.url()) as here:
        outside = await asyncpg.connect(own_postgres.url())
        await outside.execute(STANDBY if took_place else NAPS)
        await outside.execute("SELECT pg_reload_conf()")
        waits = "SELECT wait_event FROM pg_stat_activity WHERE application_name = 'hubbub' AND query ~* 'commit'"
        async with asyncio.timeout(PATIENCE):
            while await outside.fetchval(f"{waits} AND wait_event IN ('SyncRep', 'PgSleep')") is None:
                await asyncio.sleep(0.005)
        await asyncio.to_thread(own_postgres.restart, "kill")
        outside.terminate()
        outside = await asyncpg.connect(own_postgres.url())
        await outside.execute("ALTER SYSTEM RESET synchronous_standby_names")
        await outside.execute("SELECT pg_reload_conf()")
        await outside.close()
        await here.progress()
        assert [dict(person.refused) for person in here.people] == [{}] * len(here.people)


@pytest.mark.slow
async def test_postgres_is_away_for_long(own_postgres: PostgresServer) -> None:
    async with talking(own_postgres.url(), store_timeout=2.0) as here:
        await asyncio.to_thread(own_postgres.stop, "kill")
        await here.all_told("unavailable", 2)
        await here.elsewhere()
        read = await here.bystander.ask("get_messages", room_id="one")
        assert read["code"] == "unavailable", read
        await asyncio.to_thread(own_postgres.start)
        await here.progress()
        await here.others_go_on()


@pytest.mark.slow
async def test_postgres_stands_still(own_postgres: PostgresServer) -> None:
    """Nothing says that it does: no connection is lost, no error comes."""
    async with talking(own_postgres.url(), store_timeout=3.0) as here:
        await asyncio.to_thread(own_postgres.pause)
        times: list[float] = []
        watching = asyncio.create_task(pinged(here.bystander, times))
        try:
            began = time.monotonic()
            await here.all_told("unavailable", 3)
            assert time.monotonic() - began > 3.0
        finally:
            await asyncio.to_thread(own_postgres.resume)
            watching.cancel()
            await asyncio.gather(watching, return_exceptions=True)
        assert len(times) > 50
        assert sorted(times)[len(times) * 9 // 10] < 0.1  # other work on this machine may be felt too
        assert max(times) < 1.0
        await here.progress()
        await here.others_go_on()


async def pinged(client: Client, times: list[float]) -> None:
    """Ping again and again, and note how long each took."""
    while True:
        began = time.monotonic()
        assert (await client.ask("ping"))["type"] == "pong"
        times.append(time.monotonic() - began)
        await asyncio.sleep(0.02)
