"""A SQLite file that the workers of a machine share: in turns, whatever happens to one of them."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import random
import signal
import sqlite3
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from multiprocessing.context import ForkServerProcess
from pathlib import Path

import pytest

from hubbub.engines import SqliteEngine, engine_for
from hubbub.engines.turns import NotOurTurn, Turns
from hubbub.errors import ConfigurationError
from hubbub.features.chat.tables import SEQ_MASK
from hubbub.settings import Settings
from tests import sharing
from tests.databases import WITHIN
from tests.sharing import kept
from tests.store_support import note, read, running, until

pytestmark = pytest.mark.anyio


@pytest.fixture
def shared_url(sqlite_url: str) -> str:
    return f"{sqlite_url}?shared=1"


# -- who may have it open


@pytest.mark.parametrize("first", ["", "?shared=1"])
async def test_who_shares_and_who_does_not_keep_each_other_out(sqlite_url: str, first: str) -> None:
    second = "" if first else "?shared=1"
    async with running(sqlite_url + first) as it:
        assert it.store.exclusive is not bool(first)
        with pytest.raises(ConfigurationError, match="another hub of this process writes to"):
            await engine_for(sqlite_url + second, readers=1, full_sync=True).start()
        assert await it.write("a") == "a"
    async with running(sqlite_url + second) as it:
        assert await it.all() == ["a"]


async def test_memory_cannot_be_shared() -> None:
    with pytest.raises(ConfigurationError, match="cannot share a database in memory"):
        await SqliteEngine(None, readers=1, full_sync=True, shared=True).start()


def test_the_setting_says_it_in_the_url(tmp_path: Path) -> None:
    settings = Settings(data_dir=tmp_path, store_shared=True)
    assert settings.database == f"sqlite:///{tmp_path}/hubbub.db?shared=1"
    postgres = Settings(database_url="postgresql://u@h/d", store_shared=True)
    assert postgres.database == "postgresql://u@h/d"


# -- turns


async def test_several_write_and_each_sees_what_the_others_wrote(shared_url: str) -> None:
    async with running(shared_url) as one, running(shared_url) as two, running(shared_url) as three:
        for each, what in ((one, "a"), (two, "b"), (three, "c"), (one, "d")):
            await each.write(what)
            assert await three.all() == [*"abcd"][: len(await one.all())]
        wanted = [f"{name}{number}" for name in "xyz" for number in range(50)]
        await asyncio.gather(
            *(
                each.write(what)
                for each, name in ((one, "x"), (two, "y"), (three, "z"))
                for what in wanted
                if what[0] == name
            )
        )
        assert sorted((await two.all())[4:]) == sorted(wanted)
        assert one.metrics.failed + two.metrics.failed + three.metrics.failed == 0


async def test_who_has_written_does_not_come_before_who_is_next(tmp_path: Path) -> None:
    """However much one writes: two that want to write take turns."""
    path = tmp_path / "hubbub.db"
    order: list[str] = []
    turns = {name: Turns(path) for name in "ab"}
    going = [True]

    def writes(name: str) -> None:
        while going[0]:
            with turns[name].taken(WITHIN):
                order.append(name)
                time.sleep(0.002)  # a transaction

    tasks = [asyncio.create_task(asyncio.to_thread(writes, name)) for name in "ab"]
    await until(lambda: len(order) > 100, "they write")
    going[0] = False
    await asyncio.gather(*tasks)
    for each in turns.values():
        each.close()
    count = Counter(order)
    assert min(count.values()) > 0.3 * len(order), count


async def test_one_that_stands_still_with_its_turn_delays_and_blocks_nothing(shared_url: str) -> None:
    path = Path(shared_url.removeprefix("sqlite:///").removesuffix("?shared=1"))
    async with running(shared_url) as it:
        await it.write("a")
        other = Turns(path)
        with other.taken(1.0):
            waiting = it.write_soon("b")
            await until(lambda: it.metrics.retried >= 1, "tried again")
            assert not it.store.healthy
            assert await it.all() == ["a"]  # reading goes on
        await asyncio.gather(*waiting)
        assert await it.all() == ["a", "b"]
        assert it.store.healthy
        with other.taken(1.0), pytest.raises(NotOurTurn):
            await it.store.engine.write(note("c"))
        other.close()


async def test_the_turn_of_a_process_that_is_killed_is_free(shared_url: str) -> None:
    path = shared_url.removeprefix("sqlite:///").removesuffix("?shared=1")
    async with running(shared_url) as it:
        await it.write("a")
        half = await asyncio.create_subprocess_exec(
            sys.executable, "-c", HALF_WRITTEN, path, stdout=asyncio.subprocess.PIPE
        )
        assert half.stdout is not None
        assert await half.stdout.readline() == b"half\n"
        waiting = it.write_soon("b")
        half.kill()
        await half.wait()
        await asyncio.gather(*waiting)
        assert await it.all() == ["a", "b"]


HALF_WRITTEN = """
import sqlite3, sys, time
from pathlib import Path
from hubbub.engines.turns import Turns

with Turns(Path(sys.argv[1])).taken(10.0):
    connection = sqlite3.connect(sys.argv[1], isolation_level=None)
    connection.execute("PRAGMA cache_spill = 1")
    connection.execute("PRAGMA cache_size = 10")
    connection.execute("BEGIN IMMEDIATE")
    for number in range(2000):
        connection.execute("INSERT INTO notes (what) VALUES (?)", (f"never {number}" + 100 * "x",))
    print("half", flush=True)
    time.sleep(600)
"""


async def test_the_last_one_to_close_leaves_no_log(shared_url: str) -> None:
    path = Path(shared_url.removeprefix("sqlite:///").removesuffix("?shared=1"))
    async with running(shared_url) as one:
        async with running(shared_url) as two:
            await two.write("a")
        assert path.with_name("hubbub.db-wal").exists()
        assert await one.write("b") == "b"
    assert not path.with_name("hubbub.db-wal").exists()
    async with running(f"sqlite:///{path}") as it:
        assert await it.store.read(read) == ["a", "b"]


# -- real processes

ROOMS = 7
PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(["tests.sharing"])  # importing takes longer than all else that a start does


class Worker:
    """A process of :mod:`tests.sharing` over all its lives."""

    def __init__(self, url: str, name: str, place: Path) -> None:
        self.url = url
        self.name = name
        self.output = place / f"{name}.out"
        self.lives = 0
        self.process: ForkServerProcess | None = None

    def start(self) -> None:
        """From where it surely was: some of it is asked for again, as clients do."""
        start = max((int(client_id.rpartition("-")[2]) for client_id, _ in self.acks()), default=0)
        arguments = (str(self.output), self.url, self.name, max(0, start - 100), 0.0, ROOMS, 50)
        self.process = PROCESSES.Process(target=sharing.run, args=arguments)
        self.process.start()
        self.lives += 1

    def lines(self) -> list[str]:
        return self.output.read_text().splitlines()

    def acks(self) -> list[tuple[str, int]]:
        """What it was told, each time."""
        if not self.output.exists():
            return []
        words = [line.split() for line in self.lines()]
        return [(each[1], int(each[2])) for each in words if each[0] == "ack" and len(each) == 3]

    def written(self) -> int:
        """Bytes that it has said: about twenty for each message."""
        return self.output.stat().st_size if self.output.exists() else 0

    def end(self, number: signal.Signals) -> int | None:
        assert self.process is not None
        assert self.process.pid is not None
        os.kill(self.process.pid, number)
        self.process.join(WITHIN)
        return self.process.exitcode


@pytest.fixture
def workers(shared_url: str, tmp_path: Path) -> Iterator[list[Worker]]:
    found = [Worker(shared_url, f"w{number}", tmp_path) for number in range(3)]
    yield found
    for each in found:
        if each.process is not None and each.process.is_alive():
            each.end(signal.SIGKILL)


def further(workers: list[Worker], size: int) -> None:
    """Wait until each has said so many bytes more."""
    goals = {each: each.written() + size for each in workers}
    patience = time.monotonic() + WITHIN
    while any(each.written() < goal for each, goal in goals.items()):
        for each in workers:
            assert each.process is not None
            assert each.process.is_alive(), each.lines()[-5:]
        assert time.monotonic() < patience, {each.name: each.written() for each in workers}
        time.sleep(0.005)


def check(url: str, workers: list[Worker]) -> int:
    """Hold what the file has against what was acknowledged. Returns how many messages there are."""
    rooms = kept(url)
    ids: dict[str, int] = {}
    for numbers, client_ids in rooms.values():
        assert numbers == list(range(1, len(numbers) + 1))
        assert len(client_ids) == len(numbers)
        assert not ids.keys() & client_ids.keys()
        ids |= client_ids
    for worker in workers:
        for client_id, number in worker.acks():
            assert ids.get(client_id) == number, (client_id, number, ids.get(client_id))
    path = url.removeprefix("sqlite:///").removesuffix("?shared=1")
    with closing(sqlite3.connect(path)) as file:
        assert file.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        assert file.execute("PRAGMA foreign_key_check").fetchall() == []
        file.execute("INSERT INTO message_search (message_search, rank) VALUES ('integrity-check', 0)")
    return len(ids)


def searchable(url: str) -> tuple[int, int]:
    """How many messages the index has, and how many it should have."""
    with closing(sqlite3.connect(url.removeprefix("sqlite:///").removesuffix("?shared=1"))) as file:
        query = "SELECT count(*) FROM messages JOIN rooms ON no = room_no WHERE (key & ?) <= indexed_seq"
        (wanted,) = file.execute(query, (SEQ_MASK,)).fetchone()
        (found,) = file.execute("SELECT count(*) FROM message_search WHERE message_search MATCH 'of'").fetchone()
        return found, wanted


@pytest.mark.slow
def test_three_processes_that_are_killed_lose_nothing(shared_url: str, workers: list[Worker]) -> None:
    dice = random.Random(20_261_124)
    for each in workers:
        each.start()  # all migrate the new file at the same time
    further(workers, 4000)
    for _ in range(12):
        victim = dice.choice(workers)
        time.sleep(dice.uniform(0.0, 0.02))  # at any moment of a transaction
        victim.end(signal.SIGKILL)
        further([each for each in workers if each is not victim], 1)
        victim.start()
        further(workers, dice.randint(200, 10_000))
    for each in workers:
        assert each.end(signal.SIGTERM) == 0, each.lines()[-5:]
        assert each.lines()[-1].startswith("done ")
    assert not [line for each in workers for line in each.lines() if line.startswith("refused")]
    assert check(shared_url, workers) > 2000
    found, wanted = searchable(shared_url)
    assert found == wanted > 0
