"""The store: groups of work in one transaction, in order, told once they are committed. On both databases."""

from __future__ import annotations

import asyncio
import gc
import logging
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import Connection, insert, text
from sqlalchemy.exc import IntegrityError

from hubbub.engines import Engine, engine_for
from hubbub.errors import ClientError, ConfigurationError, ErrorCode, StoreUnavailable
from hubbub.metrics import Metrics
from hubbub.store import Store
from tests.databases import WITHIN
from tests.store_support import looked, meanwhile, note, notes, read, running, until

pytestmark = pytest.mark.anyio


# -- together


async def test_what_is_written_in_one_turn_is_committed_together(database_url: str) -> None:
    async with running(database_url) as it:
        written = await asyncio.gather(*it.write_soon(*(str(n) for n in range(50))))
        assert written == it.told == await it.all() == [str(n) for n in range(50)]
        assert (it.metrics.commits, it.metrics.units) == (1, 50)


async def test_what_comes_while_one_group_is_committed_is_the_next(database_url: str) -> None:
    async with running(database_url) as it:
        loop = asyncio.get_running_loop()
        later: list[asyncio.Task[str]] = []

        async def more() -> None:
            later.extend(it.write_soon(*"abcde"))

        def work(connection: Connection) -> str:
            meanwhile(connection, loop, more())
            return note("first")(connection)

        await it.store.write(work, it.told.append)
        await asyncio.gather(*later)
        assert (it.metrics.commits, it.metrics.units) == (2, 6)
        assert it.told == await it.all() == ["first", *"abcde"]


async def test_nobody_hears_of_it_before_it_is_committed(database_url: str) -> None:
    async with running(database_url) as it:
        seen: list[list[tuple[Any, ...]]] = []

        def tell(what: str) -> None:
            seen.append(looked(database_url, "SELECT what FROM notes ORDER BY no"))

        await asyncio.gather(it.store.write(note("a"), tell), it.store.write(note("b"), tell))
        assert seen == [[("a",), ("b",)]] * 2


async def test_it_is_told_in_order_and_before_who_asked_goes_on(database_url: str) -> None:
    async with running(database_url) as it:
        heard = it.told

        async def ask(what: str) -> None:
            await it.write(what)
            heard.append(f"{what} answered")

        async def add() -> None:
            for item in ("x", "no: y", "z"):
                it.bulk.add(item)

        await asyncio.gather(ask("a"), ask("b"), add(), ask("c"))
        assert heard == ["a", "b", "x", "no: y", "z", "c", "a answered", "b answered", "c answered"]
        assert await it.all() == ["a", "b", "x", "z", "c"]


# -- what fails, fails alone


@pytest.mark.parametrize("beside", [0, 2])
async def test_a_refusal_takes_back_what_it_did_and_nothing_else(database_url: str, beside: int) -> None:
    def refuse(connection: Connection) -> None:
        note("half")(connection)
        raise ClientError(ErrorCode.FORBIDDEN, "no")

    async with running(database_url) as it:
        others = it.write_soon(*"ab"[:beside])
        with pytest.raises(ClientError, match="forbidden: no"):
            await it.store.write(refuse)
        await asyncio.gather(*others)
        assert it.told == await it.all()
        assert it.told == list("ab"[:beside])
        assert await it.write("after") == "after"


@pytest.mark.parametrize("beside", [0, 2])
async def test_a_statement_that_fails_takes_back_its_unit_alone(database_url: str, beside: int) -> None:
    def fail(connection: Connection) -> None:
        note("half")(connection)
        connection.execute(insert(notes), [{"what": "x", "only": "x"}, {"what": "y", "only": "x"}])

    async with running(database_url) as it:
        others = it.write_soon(*"ab"[:beside])
        with pytest.raises(IntegrityError):
            await it.store.write(fail)
        with pytest.raises(TypeError):
            await it.store.write(lambda connection: len(None))  # type: ignore[arg-type]  # it is wrong on purpose
        await asyncio.gather(*others)
        assert it.told == await it.all()
        assert it.told == list("ab"[:beside])
        assert it.store.healthy


async def test_any_exception_can_be_an_answer(database_url: str) -> None:
    async with running(database_url) as it:
        with pytest.raises(RuntimeError, match="StopIteration"):
            await it.store.write(lambda connection: next(iter(())))
        assert await it.write("after") == "after"


async def test_what_people_say_is_not_in_the_log(database_url: str, caplog: pytest.LogCaptureFixture) -> None:
    async with running(database_url) as it:
        await it.store.write(note("a", only="1"))
        with pytest.raises(IntegrityError):
            await it.store.write(note("a secret", only="1"))
    assert "work on the store failed" in caplog.text
    assert "a secret" not in caplog.text


async def test_telling_that_fails_harms_nobody(database_url: str, caplog: pytest.LogCaptureFixture) -> None:
    def tell(what: str) -> None:
        raise KeyError(what)

    async with running(database_url) as it:
        first, second = await asyncio.gather(it.store.write(note("a"), tell), it.write("b"))
        assert (first, second) == ("a", "b")
        assert it.told == ["b"]
    assert "telling of what was committed failed" in caplog.text


async def test_it_is_written_though_who_asked_has_gone(database_url: str) -> None:
    async with running(database_url) as it:
        gone, stays = it.write_soon("a", "b")
        await asyncio.sleep(0)  # both are queued
        gone.cancel()
        await stays
        assert gone.cancelled()
        assert it.told == await it.all() == ["a", "b"]


# -- many at a time


async def test_items_of_a_turn_are_written_by_one_call(database_url: str) -> None:
    async with running(database_url) as it:
        for n in range(100):
            it.bulk.add(f"item {n}")
        await until(lambda: len(it.told) == 100, "told")
        assert it.runs == [100]
        assert (it.metrics.commits, it.metrics.units) == (1, 100)
        assert it.told == await it.all() == [f"item {n}" for n in range(100)]
        assert it.answers["item 7"] == ["ITEM 7"]


@pytest.mark.parametrize("beside", [False, True])
async def test_one_poisoned_item_is_refused_alone(database_url: str, beside: bool) -> None:
    async with running(database_url) as it:
        await it.store.write(note("there", only="only: poison"))
        others = it.write_soon("unit") if beside else []
        await asyncio.sleep(0)
        for item in ("a", "only: poison", "no: b", "c"):
            it.bulk.add(item)
        await until(lambda: len(it.told) == 4 + beside, "told")
        await asyncio.gather(*others)
        refused = it.answers["only: poison"]
        assert [(type(each), each.code) for each in refused] == [(ClientError, ErrorCode.INTERNAL)]
        assert [each.code for each in it.answers["no: b"]] == ["no"]
        assert await it.all() == ["there", *(["unit"] if beside else []), "a", "c"]


async def test_a_wrong_number_of_results_is_written_for_nobody(database_url: str) -> None:
    async with running(database_url) as it:
        results: list[Any] = []

        def apply(connection: Connection, items: Any) -> list[str]:
            note("half")(connection)
            return ["one", "too", "many"]

        bulk = it.store.bulk(apply, lambda items, found: results.extend(found))
        bulk.add("a")
        bulk.add("b")
        await until(lambda: len(results) == 2, "told")
        assert {each.code for each in results} == {ErrorCode.INTERNAL}
        assert await it.all() == []


@given(st.lists(st.sampled_from(["unit", "bad unit", "item", "no: item", "only: item"]), max_size=20))
async def test_of_any_group_what_is_good_is_written_in_order(kinds: list[str]) -> None:
    def bad(connection: Connection) -> str:
        note("half")(connection)
        raise ClientError("bad", "unit")

    async with running("sqlite://") as it:
        expected: list[str] = []
        units: list[asyncio.Task[str]] = []

        async def add(item: str) -> str:
            it.bulk.add(item)
            return item

        for n, kind in enumerate(kinds):
            what = kind if kind == "only: item" else f"{kind} {n}"
            if kind == "bad unit":
                units.append(asyncio.create_task(it.store.write(bad)))
            else:
                units.append(asyncio.create_task(it.write(what) if kind == "unit" else add(what)))
            if kind in ("unit", "item") or (kind == "only: item" and what not in expected):
                expected.append(what)
        found = await asyncio.gather(*units, return_exceptions=True)
        await until(lambda: it.store.waiting == 0, "all is told")
        assert await it.all() == expected
        assert [isinstance(each, ClientError) for each in found] == [kind == "bad unit" for kind in kinds]
        told = [what for what, kind in zip(found, kinds, strict=True) if kind != "bad unit"]
        assert it.told == told
        assert it.metrics.commits <= 1


# -- too much


async def test_beyond_so_many_it_is_busy(database_url: str) -> None:
    async with running(database_url, queue=16) as it:
        for n in range(16):
            it.bulk.add(str(n))
        for attempt in (lambda: it.bulk.add("one more"), lambda: it.write("one more")):
            with pytest.raises(ClientError) as busy:
                await (attempt() or asyncio.sleep(0))
            assert (busy.value.code, busy.value.retry_after) == (ErrorCode.BUSY, 1.0)
        assert it.metrics.refused == 2
        await until(lambda: len(it.told) == 16, "told")
        assert it.store.waiting == 0
        assert await it.write("one more") == "one more"


async def test_beyond_so_many_bytes_it_is_busy(database_url: str) -> None:
    async with running(database_url, queue_bytes=1 << 20) as it:
        for _ in range(3):
            it.bulk.add("a", 300_000)
        with pytest.raises(ClientError, match="busy"):
            it.bulk.add("b", 300_000)
        it.bulk.add("c", 10_000)
        await until(lambda: len(it.told) == 4, "told")
        it.bulk.add("d", 1_000_000)
        await until(lambda: len(it.told) == 5, "told")


async def test_what_waits_too_long_behind_one_that_is_stuck_is_answered(sqlite_url: str) -> None:
    async with running(sqlite_url, timeout=0.2) as it:
        loop = asyncio.get_running_loop()

        async def others() -> None:
            for waiting in it.write_soon("a", "b"):
                with pytest.raises(StoreUnavailable, match="does not answer"):
                    await waiting

        def slow(connection: Connection) -> str:
            meanwhile(connection, loop, others())
            return note("slow")(connection)

        assert await it.store.write(slow) == "slow"
        assert await it.all() == ["slow"]


# -- reading


async def test_a_read_sees_one_state(database_url: str) -> None:
    async with running(database_url) as it:
        await it.write("before")
        loop = asyncio.get_running_loop()

        def twice(connection: Connection) -> list[list[str]]:
            first = read(connection)
            meanwhile(connection, loop, it.write("meanwhile"))
            return [first, read(connection)]

        assert await it.store.read(twice) == [["before"], ["before"]]
        assert await it.all() == ["before", "meanwhile"]


async def test_a_read_cannot_write(database_url: str) -> None:
    for url in (database_url, "sqlite://"):
        async with running(url) as it:
            with pytest.raises(RuntimeError, match="to read only has tried to write"):
                await it.store.read(note("a"))
            await it.write("b")
            assert await it.all() == ["b"]


async def test_what_a_read_raises_is_raised(database_url: str) -> None:
    def refuse(connection: Connection) -> None:
        raise ClientError(ErrorCode.NOT_FOUND, "no")

    async with running(database_url) as it:
        with pytest.raises(ClientError, match="not_found"):
            await it.store.read(refuse)
        with pytest.raises(Exception, match="nothing"):
            await it.store.read(lambda connection: connection.execute(text("SELECT nothing FROM notes")).all())
        assert it.store.healthy


async def test_too_many_reads_are_refused(database_url: str) -> None:
    async with running(database_url, queue=16) as it:
        reads = [asyncio.create_task(it.all()) for _ in range(17)]
        found = await asyncio.gather(*reads, return_exceptions=True)
        assert [each for each in found if isinstance(each, list)] == [[]] * 16
        (refused,) = (each for each in found if not isinstance(each, list))
        assert isinstance(refused, ClientError)
        assert refused.code == ErrorCode.BUSY


async def test_reads_that_nobody_waits_for_any_more_leave_nothing_behind(database_url: str) -> None:
    async with running(database_url) as it:
        for _ in range(20):
            reads = [asyncio.create_task(it.all()) for _ in range(5)]
            await asyncio.sleep(0)
            for each in reads:
                each.cancel()
            await asyncio.wait(reads)
        assert await asyncio.gather(*(it.all() for _ in range(5))) == [[]] * 5


# -- beginning and end


async def test_what_is_queued_is_committed_before_it_stops(database_url: str) -> None:
    async with running(database_url) as it:
        for n in range(2000):
            it.bulk.add(str(n))
        await it.store.stop()
        assert len(it.told) == 2000
        assert looked(database_url, "SELECT count(*) FROM notes") == [(2000,)]


async def test_it_may_stop_in_the_turn_in_which_it_started(sqlite_url: str) -> None:
    async with running(sqlite_url) as it:
        it.bulk.add("a")
        await it.store.stop()
        assert it.told == ["a"]


async def test_once_stopped_it_takes_nothing(database_url: str) -> None:
    async with running(database_url) as it:
        await it.store.stop()
        for attempt in (lambda: it.bulk.add("a"), lambda: it.write("a"), it.all):
            with pytest.raises(StoreUnavailable, match="not running"):
                await (attempt() or asyncio.sleep(0))
        await it.store.stop()
        await it.store.start()
        assert await it.write("b") == "b"
        assert await it.all() == ["b"]


ENDLESS = {
    "sqlite": "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT count(*) FROM n",
    "postgresql": "SELECT pg_sleep(3600)",
}


async def test_a_read_without_end_does_not_keep_it_from_stopping(database_url: str) -> None:
    def endless(connection: Connection) -> None:
        connection.execute(text(ENDLESS[connection.dialect.name])).all()

    async with running(database_url, timeout=0.5) as it:
        reading = asyncio.create_task(it.store.read(endless))
        assert await it.all() == []  # so the first one is under way
        async with asyncio.timeout(WITHIN):
            await it.store.stop()
        with pytest.raises(StoreUnavailable):
            await reading


async def test_what_cannot_be_prepared_is_closed_again(database_url: str) -> None:
    async def refuse(engine: Engine) -> None:
        raise ConfigurationError("no")

    engine = engine_for(database_url, readers=2, full_sync=True)
    store = Store(engine, Metrics(), queue=16, queue_bytes=1 << 20, timeout=WITHIN)
    with pytest.raises(ConfigurationError, match="no"):
        await store.start(refuse)
    with pytest.raises(StoreUnavailable):
        await store.write(note("a"))
    async with running(database_url) as it:
        assert await it.write("a") == "a"


async def test_nothing_is_left_of_stores_that_were(database_url: str) -> None:
    """Warnings are errors here: a connection that was not closed would be one."""
    for _ in range(3):
        async with running(database_url) as it:
            await it.write("a")
            await it.all()
    gc.collect()
    if database_url.startswith("postgresql"):
        mine = "FROM pg_stat_activity WHERE application_name = 'hubbub' AND datname = current_database()"
        await until(lambda: looked(database_url, f"SELECT 1 {mine}") == [], "all connections are gone")


LEFT_RUNNING = """
import asyncio, sys
from hubbub.engines import engine_for
from hubbub.metrics import Metrics
from hubbub.store import Store
from sqlalchemy import text

async def main(url):
    store = Store(engine_for(url, readers=2, full_sync=True), Metrics(), queue=10_000, queue_bytes=1 << 20, timeout=60)
    await store.start()
    await store.write(lambda c: c.execute(text("CREATE TABLE notes (what text)")) and None)
    await store.write(lambda c: c.execute(text("INSERT INTO notes VALUES ('acknowledged')")) and None)
    waiting = [asyncio.create_task(store.write(lambda c: c.execute(text("INSERT INTO notes VALUES ('x')")) and None))]
    await asyncio.sleep(0)
    print("leaves", flush=True)

asyncio.run(main(sys.argv[1]))
print("left")
"""


def test_a_program_that_just_ends_ends(sqlite_url: str, tmp_path: Path) -> None:
    ended = subprocess.run(
        [sys.executable, "-c", LEFT_RUNNING, sqlite_url], capture_output=True, text=True, timeout=WITHIN, check=True
    )
    assert ended.stdout.split() == ["leaves", "left"]
    assert ended.stderr == ""
    assert looked(sqlite_url, "SELECT count(*) FROM notes WHERE what = 'acknowledged'") == [(1,)]


async def test_a_writer_that_is_torn_down_leaves_nobody_waiting(
    database_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.CRITICAL)
    async with running(database_url) as it:
        waiting = it.write_soon("a", "b")
        it.bulk.add("c")
        await asyncio.sleep(0)
        for task in asyncio.all_tasks():
            if "_write_all" in repr(task):
                task.cancel()
        found = await asyncio.gather(*waiting, return_exceptions=True)
        assert [type(each) for each in found] == [StoreUnavailable] * 2
        await until(lambda: "c" in it.answers, "told")
        with pytest.raises(StoreUnavailable):
            await it.write("d")
