"""The store on a SQLite file while something is wrong: another process, a lock, a full disk."""

from __future__ import annotations

import asyncio
import fcntl
import os
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from sqlalchemy import Connection

from hubbub.engines import engine_for
from hubbub.errors import ClientError, ConfigurationError, ErrorCode, StoreUnavailable
from tests.databases import WITHIN
from tests.store_support import looked, note, read, running, until

pytestmark = pytest.mark.anyio


def other(url: str) -> sqlite3.Connection:
    """Somebody else's connection to the same file."""
    return sqlite3.connect(url.removeprefix("sqlite:///"), isolation_level=None)


def is_free(path: Path) -> bool:
    with path.open() as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return False
        return True


# -- another process has the lock


async def test_writers_wait_while_another_process_has_the_lock(sqlite_url: str) -> None:
    async with running(sqlite_url) as it:
        with closing(other(sqlite_url)) as holder:
            holder.execute("BEGIN IMMEDIATE")
            waiting = it.write_soon(*"abc")
            it.bulk.add("d")
            await until(lambda: it.metrics.retried >= 2, "tried again")
            assert not it.store.healthy
            assert await it.all() == it.told == []
            holder.execute("COMMIT")
            await asyncio.gather(*waiting)
        await until(lambda: len(it.told) == 4, "told")
        assert it.told == await it.all() == [*"dabc"]
        assert it.store.healthy
        assert it.metrics.failed == 0


async def test_after_its_time_a_writer_is_told_and_later_ones_succeed(sqlite_url: str) -> None:
    async with running(sqlite_url, timeout=0.5) as it:
        with closing(other(sqlite_url)) as holder:
            holder.execute("BEGIN IMMEDIATE")
            waiting = it.write_soon("a", "b")
            it.bulk.add("c")
            for found in await asyncio.gather(*waiting, return_exceptions=True):
                assert isinstance(found, StoreUnavailable)
                assert "locked by another process" in found.message
            await until(lambda: "c" in it.answers, "told")
            assert [each.code for each in it.answers["c"]] == [ErrorCode.UNAVAILABLE]
            assert it.store.waiting == 0
            holder.execute("COMMIT")
        assert await it.write("d") == "d"
        assert await it.all() == ["d"]


async def test_it_is_well_again_by_itself_once_the_lock_is_gone(sqlite_url: str) -> None:
    async with running(sqlite_url, timeout=0.3) as it:
        with closing(other(sqlite_url)) as holder:
            holder.execute("BEGIN IMMEDIATE")
            with pytest.raises(StoreUnavailable):
                await it.write("a")
            assert not it.store.healthy
        await until(lambda: it.store.healthy, "healthy, though nobody writes")


async def test_stopping_ends_though_the_lock_is_not_released(sqlite_url: str) -> None:
    async with running(sqlite_url, timeout=0.5) as it:
        with closing(other(sqlite_url)) as holder:
            holder.execute("BEGIN IMMEDIATE")
            waiting = it.write_soon("a")
            await until(lambda: it.metrics.retried >= 1, "tried again")
            async with asyncio.timeout(WITHIN):
                await it.store.stop()
            with pytest.raises(StoreUnavailable):
                await waiting[0]


async def test_a_lock_for_a_moment_is_waited_for_when_it_is_opened(sqlite_url: str) -> None:
    with closing(other(sqlite_url)) as holder:
        holder.execute("BEGIN EXCLUSIVE")
        holder.execute("CREATE TABLE somebody_elses (n int)")
        engine = engine_for(sqlite_url, readers=1, full_sync=True)
        opening = asyncio.create_task(engine.start())
        lock = Path(sqlite_url.removeprefix("sqlite:///") + ".lock")
        await until(lambda: lock.exists() and not is_free(lock), "it opens the database")
        assert not opening.done()
        holder.execute("COMMIT")
    await opening
    await engine.stop()


# -- two at once

HOLDS = """
import asyncio, sys
from hubbub.engines import engine_for

async def main():
    engine = engine_for(sys.argv[1], readers=1, full_sync=True)
    await engine.start()
    print("open", flush=True)
    await asyncio.to_thread(sys.stdin.read)
    await engine.stop()

asyncio.run(main())
"""


def test_two_processes_cannot_write(sqlite_url: str) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", HOLDS, sqlite_url], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"open\n"

        async def second() -> None:
            with pytest.raises(ConfigurationError) as refused:
                await engine_for(sqlite_url, readers=1, full_sync=True).start()
            assert f"another process (pid {holder.pid}) writes to" in str(refused.value)
            assert "or PostgreSQL (HUBBUB_DATABASE_URL)" in str(refused.value)

        asyncio.run(second())
        holder.kill()
        holder.wait(WITHIN)

    async def third() -> None:
        engine = engine_for(sqlite_url, readers=1, full_sync=True)
        await engine.start()
        await engine.stop()

    asyncio.run(third())


async def test_others_may_read_beside_the_writer(sqlite_url: str) -> None:
    async with running(sqlite_url) as it:
        await it.write("a")
        with pytest.raises(ConfigurationError, match="another hub of this process"):
            await engine_for(sqlite_url, readers=1, full_sync=True).start()
        beside = engine_for(sqlite_url, readers=1, full_sync=True, read_only=True)
        await beside.start()
        try:
            assert await beside.read(read) == ["a"]
            await it.write("b")
            assert await beside.read(read) == ["a", "b"]
            with pytest.raises(RuntimeError, match="only for reading"):
                await beside.write(note("c"))
            with pytest.raises(RuntimeError, match="to read only"):
                await beside.read(note("c"))
        finally:
            await beside.stop()
        assert await it.write("c") == "c"


async def test_what_nobody_has_open_can_be_read_and_is_not_made(sqlite_url: str) -> None:
    beside = engine_for(sqlite_url, readers=1, full_sync=True, read_only=True)
    with pytest.raises(ConfigurationError, match="there is no database"):
        await beside.start()
    async with running(sqlite_url) as it:
        await it.write("a")
    await beside.start()
    assert await beside.read(read) == ["a"]
    await beside.stop()


async def test_any_name_of_a_file_will_do(tmp_path: Path) -> None:
    path = tmp_path / "what? a 100% #odd näme" / "hubbub.db"
    async with running(f"sqlite:///{path}".replace("?", "%3F")) as it:
        await it.write("a")
        beside = engine_for(f"sqlite:///{path}".replace("?", "%3F"), readers=1, full_sync=True, read_only=True)
        await beside.start()
        assert await beside.read(read) == ["a"]
        await beside.stop()


@pytest.mark.parametrize("place", ["file", "folder", "nowhere"])
async def test_what_cannot_be_opened_says_what_to_set(tmp_path: Path, place: str) -> None:
    (tmp_path / "file").write_bytes(b"")
    (tmp_path / "folder").mkdir()
    path = {"file": tmp_path / "file" / "hubbub.db", "folder": tmp_path / "folder", "nowhere": "/proc/no/hubbub.db"}
    with pytest.raises(ConfigurationError, match="set HUBBUB_DATA_DIR or HUBBUB_DATABASE_URL"):
        await engine_for(f"sqlite:///{path[place]}", readers=1, full_sync=True).start()


async def test_foreign_keys_are_kept(sqlite_url: str) -> None:
    async with running(sqlite_url) as it:
        for work in (it.store.read, it.store.engine.write):
            assert await work(lambda connection: connection.exec_driver_sql("PRAGMA foreign_keys").scalar()) == 1


# -- a full disk


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 2 MiB."""
    place = tmp_path / "small"
    place.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", place], capture_output=True)
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


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root can mount a small disk")
async def test_a_full_disk_refuses_what_is_written_and_nothing_else(small_disk: Path) -> None:
    url = f"sqlite:///{small_disk / 'hubbub.db'}"
    big = "x" * 200_000

    def two(connection: Connection) -> None:
        note("half")(connection)
        note(big)(connection)

    async with running(url) as it:
        await it.write("a")
        junk = fill(small_disk)
        waiting = [asyncio.create_task(it.store.write(two)), *it.write_soon("beside")]
        it.bulk.add(big)
        for found in await asyncio.gather(*waiting, return_exceptions=True):
            assert isinstance(found, StoreUnavailable)
            assert (found.code, found.message) == (
                ErrorCode.UNAVAILABLE,
                "the store's disk is full: nothing can be written",
            )
        await until(lambda: big in it.answers, "told")
        assert isinstance(it.answers[big][0], ClientError)
        assert await it.all() == ["a"]
        assert not it.store.healthy
        junk.unlink()
        await until(lambda: it.store.healthy, "healthy, though nobody writes")
        await it.store.write(two)
        assert await it.all() == ["a", "half", big]
        assert looked(url, "PRAGMA integrity_check") == [("ok",)]
