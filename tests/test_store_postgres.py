"""The store on a PostgreSQL that goes away: between statements, during a commit, for longer than anybody waits.

What is counted is ``notes.what``, which may be there twice: a transaction that was repeated though it had been committed
would show, and so would one that was not.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from itertools import count
from typing import Any

import asyncpg
import psutil
import pytest
from sqlalchemy import Connection, event, text

from hubbub.engines import engine_for
from hubbub.errors import ClientError, ConfigurationError, ErrorCode, StoreUnavailable
from tests.databases import WITHIN, Mode, PostgresServer
from tests.store_support import Notes, looked, meanwhile, note, read, running, until

pytestmark = pytest.mark.anyio


class Admin:
    """Looks at a server, and does things to it. What it commits waits for no standby."""

    def __init__(self, connection: asyncpg.Connection[Any]) -> None:
        self.value = connection.fetchval
        self.do = connection.execute

    async def end(self, which: str) -> int:
        """End the store's connections that satisfy a condition; returns how many."""
        ended = f"SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE application_name = 'hubbub' AND {which}"
        found = await self.value(ended)
        assert isinstance(found, int)
        return found

    async def is_gone(self, pid: int) -> bool:
        """Whether a connection has ended."""
        return not await self.value(f"SELECT count(*) FROM pg_stat_activity WHERE pid = {pid}")

    async def commits(self, event: str) -> bool:
        """Whether the store's commit waits for something."""
        query = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'hubbub' AND query LIKE 'COMMIT%'"
        return bool(await self.value(f"{query} AND wait_event = '{event}'"))


@asynccontextmanager
async def admin(url: str) -> AsyncIterator[Admin]:
    settings = {"synchronous_commit": "local"}
    connection = await asyncpg.connect(url, timeout=WITHIN, server_settings=settings)
    try:
        yield Admin(connection)
    finally:
        connection.terminate()


def answers_of(it: Notes) -> list[bool]:
    """What the store is told from here on when it asks what became of a transaction."""
    ask, answers = it.store.engine.was_committed, list[bool]()

    async def asked(token: int) -> bool:
        answers.append(await ask(token))
        return answers[-1]

    it.store.engine.was_committed = asked  # type: ignore[method-assign]  # it still asks the server
    return answers


# -- between statements


async def test_a_connection_that_ends_in_a_transaction_costs_nothing(postgres_url: str) -> None:
    attempts = count(1)

    def work(connection: Connection) -> int:
        note("a")(connection)
        attempt = next(attempts)
        if attempt < 3:
            connection.execute(text("SELECT pg_terminate_backend(pg_backend_pid())"))
        return attempt

    async with running(postgres_url) as it:
        beside = it.write_soon("b")
        assert await it.store.write(work) == 3
        await asyncio.gather(*beside)
        assert sorted(await it.all()) == ["a", "b"]
        assert (it.metrics.retried, it.metrics.failed) == (2, 0)


async def test_connections_that_end_while_nobody_uses_them_cost_nothing(postgres_url: str) -> None:
    async with running(postgres_url) as it, admin(postgres_url) as server:
        for what in "abc":
            await it.write(what)
            for found in await asyncio.gather(it.all(), it.all()):
                assert found == it.told
            assert await server.end("datname = current_database()") >= 2
        assert await asyncio.gather(*(it.all() for _ in range(4))) == [["a", "b", "c"]] * 4
        assert it.store.healthy


async def test_a_lost_race_is_run_again(postgres_url: str) -> None:
    async with running(postgres_url) as it, running(postgres_url) as other:
        await it.store.write(lambda connection: (note("0")(connection), note("0")(connection)))
        loop = asyncio.get_running_loop()
        first, second = asyncio.Event(), asyncio.Event()

        def race(mine: int, done: asyncio.Event, awaited: asyncio.Event) -> Callable[[Connection], None]:
            def work(connection: Connection) -> None:
                for no in (mine, 3 - mine):
                    query = f"UPDATE notes SET what = (what::int + 1)::text WHERE no = {no}"
                    connection.execute(text(query))
                    done.set()
                    meanwhile(connection, loop, awaited.wait())

            return work

        await asyncio.gather(it.store.write(race(1, first, second)), other.store.write(race(2, second, first)))
        assert await it.all() == ["2", "2"]
        assert it.metrics.retried + other.metrics.retried >= 1
        assert it.metrics.failed + other.metrics.failed == 0


async def test_groups_that_say_what_they_lock_do_not_wait_for_each_other(postgres_url: str) -> None:
    """Two nodes, each with units in one order of rows and the other: without :attr:`Store.lock`, a deadlock each time."""

    def lock(connection: Connection, keys: set[str | int]) -> None:
        connection.execute(text("SELECT 1 FROM notes WHERE no = ANY (:keys) ORDER BY no FOR UPDATE"), {"keys": [*keys]})

    def adds(no: int) -> Callable[[Connection], None]:
        def work(connection: Connection) -> None:
            connection.execute(text("UPDATE notes SET what = (what::int + 1)::text WHERE no = :no"), {"no": no})
            connection.execute(text("SELECT pg_sleep(0.005)"))  # so that the other has begun

        return work

    async with running(postgres_url) as it, running(postgres_url) as other:
        await it.store.write(lambda connection: (note("0")(connection), note("0")(connection)))
        it.store.lock = other.store.lock = lock
        for _ in range(10):
            await asyncio.gather(
                *(it.store.write(adds(no), within=(no,)) for no in (1, 2)),
                *(other.store.write(adds(no), within=(no,)) for no in (2, 1)),
            )
        assert await it.all() == ["20", "20"]
        assert it.metrics.retried + other.metrics.retried == 0


# -- during a commit


async def test_a_connection_that_ends_before_the_commit_took_place(postgres_url: str) -> None:
    async with running(postgres_url) as it, admin(postgres_url) as server:
        answers = answers_of(it)
        await server.do(
            "CREATE FUNCTION wait() RETURNS trigger LANGUAGE plpgsql AS"
            " $$ BEGIN PERFORM pg_advisory_xact_lock(7); RETURN NULL; END $$"
        )
        await server.do(
            "CREATE CONSTRAINT TRIGGER waits AFTER INSERT ON notes DEFERRABLE INITIALLY DEFERRED"
            " FOR EACH ROW EXECUTE FUNCTION wait()"
        )
        await server.do("SELECT pg_advisory_lock(7)")
        waiting = it.write_soon("a", "b")
        await until(lambda: server.commits("advisory"), "it commits")
        assert await server.end("state = 'active' AND query LIKE 'COMMIT%' AND datname = current_database()") == 1
        await until(lambda: server.commits("advisory"), "it commits again")
        assert it.told == []
        await server.do("SELECT pg_advisory_unlock(7)")
        await asyncio.gather(*waiting)
        assert answers == [False]
        assert it.told == await it.all() == ["a", "b"]


@pytest.mark.parametrize("how", ["ended", "crashed"])
async def test_a_connection_that_ends_after_the_commit_took_place(own_postgres: PostgresServer, how: str) -> None:
    url = own_postgres.url()
    async with running(url) as it:
        answers = answers_of(it)
        await it.write("before")
        async with admin(url) as server:
            # a commit is on the disk, and then waits for a standby that never comes
            await server.do("ALTER SYSTEM SET synchronous_standby_names = 'nobody'")
            await server.do("SELECT pg_reload_conf()")
            until_waits = until(lambda: server.commits("SyncRep"), "it waits for the standby")
            waiting = it.write_soon("a", "b")
            await until_waits
            await server.do("ALTER SYSTEM RESET synchronous_standby_names")
            if how == "ended":
                pid = await server.value("SELECT pid FROM pg_stat_activity WHERE wait_event = 'SyncRep'")
                assert await server.end(f"pid = {pid}") == 1
                await until(lambda: server.is_gone(pid), "it has ended without an answer")
                await server.do("SELECT pg_reload_conf()")
        if how == "crashed":
            await asyncio.to_thread(own_postgres.restart, "immediate")
        await asyncio.gather(*waiting)
        assert answers == [True]
        assert it.told == await it.all() == ["before", "a", "b"]


async def test_a_commit_that_takes_place_when_nobody_waits_for_it_any_more(own_postgres: PostgresServer) -> None:
    url = own_postgres.url()
    async with running(url, timeout=1.5) as it:
        answers = answers_of(it)
        await it.write("before")
        pause_at_the_next_commit(it, own_postgres)
        waiting = it.write_soon("a")
        with pytest.raises(StoreUnavailable, match="whether this was written is not known yet"):
            await waiting[0]
        assert it.told == ["before"]
        with pytest.raises(StoreUnavailable):
            await it.write("b")
        own_postgres.resume()
        await until(lambda: it.told == ["before", "a"], "those who did not ask hear of it")
        assert answers == [True]
        assert await it.write("c") == "c"
        assert await it.all() == ["before", "a", "c"]
        assert it.store.healthy


async def test_what_was_answered_is_not_written_later(own_postgres: PostgresServer) -> None:
    async with running(own_postgres.url(), timeout=1.5) as it:
        answers = answers_of(it)
        await it.write("before")
        pause_at_the_next_commit(it, own_postgres)
        waiting = it.write_soon("a")
        with pytest.raises(StoreUnavailable, match="whether this was written is not known yet"):
            await waiting[0]
        postmaster = psutil.Process(own_postgres.pid)
        for process in (postmaster, *postmaster.children(recursive=True)):
            process.kill()  # while it is paused: it never saw the COMMIT
        await asyncio.to_thread(own_postgres.restart, "kill")
        await until(lambda: it.store.waiting == 0, "it is known")
        assert answers == [False]
        assert await it.write("c") == "c"
        assert it.told == await it.all() == ["before", "c"]


async def test_an_item_whose_commit_was_not_known_is_told_of_again(own_postgres: PostgresServer) -> None:
    url = own_postgres.url()
    async with running(url, timeout=1.5) as it:
        pause_at_the_next_commit(it, own_postgres)
        it.bulk.add("a")
        await until(lambda: "a" in it.answers, "told that nobody knows")
        own_postgres.resume()
        await until(lambda: len(it.answers["a"]) == 2, "told what it is")
        unsure, sure = it.answers["a"]
        assert (unsure.code, sure) == (ErrorCode.UNAVAILABLE, "A")
        await until(lambda: it.store.waiting == 0, "done")
        assert looked(url, "SELECT what FROM notes") == [("a",)]


async def test_it_stops_though_a_commit_is_not_known(own_postgres: PostgresServer) -> None:
    async with running(own_postgres.url(), timeout=1.5) as it:
        pause_at_the_next_commit(it, own_postgres)
        waiting = it.write_soon("a")
        async with asyncio.timeout(WITHIN):
            await until(lambda: not it.store.healthy, "the commit was given up")
            await it.store.stop()
        with pytest.raises(StoreUnavailable):
            await waiting[0]


def pause_at_the_next_commit(it: Notes, server: PostgresServer) -> None:
    """Just before COMMIT is sent: it reaches a server that does not move."""
    engine: Any = it.store.engine
    event.listen(engine._writer.sync_engine, "commit", lambda connection: server.pause(), once=True)


# -- for longer than anybody waits


async def test_a_server_that_does_not_answer_blocks_nobody(own_postgres: PostgresServer) -> None:
    loop = asyncio.get_running_loop()
    gaps: list[float] = []

    def tick(last: float) -> None:
        gaps.append(loop.time() - last)
        ticking.append(loop.call_later(0.01, tick, loop.time()))

    ticking = [loop.call_later(0.01, tick, loop.time())]
    async with running(own_postgres.url(), timeout=1.5) as it:
        await asyncio.gather(it.write("before"), it.all(), it.all())
        await asyncio.to_thread(own_postgres.pause)
        gaps.clear()
        began = loop.time()
        it.bulk.add("a")
        attempts = [*it.write_soon("b", "c"), asyncio.create_task(it.all())]
        for found in await asyncio.gather(*attempts, return_exceptions=True):
            assert isinstance(found, StoreUnavailable)
        await until(lambda: "a" in it.answers, "told")
        for _ in range(2):
            with pytest.raises(StoreUnavailable):
                await it.write("d")
        assert loop.time() - began < 20
        assert max(gaps) < 0.5
        assert (it.store.healthy, it.store.waiting) == (False, 0)
        await asyncio.to_thread(own_postgres.resume)
        await until(lambda: it.store.healthy, "healthy, though nobody writes")
        assert await it.write("after") == "after"
        assert await it.all() == ["before", "after"]
    for each in ticking:
        each.cancel()


@pytest.mark.parametrize("mode", ["fast", "immediate", "kill"])
async def test_a_restart_under_load_loses_nothing_and_repeats_nothing(own_postgres: PostgresServer, mode: Mode) -> None:
    url = own_postgres.url()
    goes_on = True
    asked: list[str] = []
    acknowledged: list[str] = []

    async def person(name: str) -> None:
        for n in count():
            if not goes_on:
                return
            asked.append(f"{name} {n}")
            acknowledged.append(await it.write(asked[-1]))

    async def acknowledges(more: int) -> None:
        goal = len(acknowledged) + more
        await until(lambda: len(acknowledged) >= goal, "they write, by themselves")

    async def machine() -> None:
        for n in count():
            if not goes_on:
                return
            asked.append(f"machine {n}")
            it.bulk.add(asked[-1])
            await it.all()

    async with running(url) as it:
        people = [asyncio.create_task(person(name)) for name in "abcdefgh"]
        machines = asyncio.create_task(machine())
        for _ in range(2):
            await acknowledges(200)
            await asyncio.to_thread(own_postgres.restart, mode)
            await acknowledges(200)
        goes_on = False
        await asyncio.gather(*people, machines)
        await until(lambda: it.store.waiting == 0, "all is written")
        found = [what for (what,) in looked(url, "SELECT what FROM notes ORDER BY no")]
        assert len(found) == len(set(found))
        assert sorted(found) == sorted(asked)
        assert set(acknowledged) <= set(found)
        assert it.told == found
        assert (it.metrics.failed, it.store.healthy) == (0, True)
        mine = "SELECT count(*) <= 4 FROM pg_stat_activity WHERE application_name = 'hubbub'"
        await until(lambda: looked(url, mine) == [(True,)], "no connection was leaked")


# -- opening


async def test_what_cannot_be_reached_says_so_without_the_password(postgres_url: str) -> None:
    wrong = postgres_url.rsplit("/", 1)[0] + "/nothing_here"
    with pytest.raises(
        ConfigurationError, match=r"cannot use the database postgresql://.*\*\*\*@.*nothing_here.*not exist"
    ):
        await engine_for(wrong, readers=1, full_sync=True).start()


async def test_the_url_may_say_what_libpq_may(postgres_url: str) -> None:
    for url in (postgres_url + "?sslmode=disable", postgres_url.replace("postgresql://", "postgres://")):
        async with running(url) as it:
            await it.write("a")
    assert looked(postgres_url, "SELECT what FROM notes") == [("a",), ("a",)]


async def test_a_database_of_another_encoding_is_refused(postgres_url: str) -> None:
    async with admin(postgres_url) as server:
        await server.do("CREATE DATABASE latin TEMPLATE template0 ENCODING 'LATIN1' LOCALE_PROVIDER libc LOCALE 'C'")
        try:
            latin = postgres_url.rsplit("/", 1)[0] + "/latin"
            with pytest.raises(ConfigurationError, match="encoding LATIN1: Hubbub needs"):
                await engine_for(latin, readers=1, full_sync=True).start()
        finally:
            await server.do("DROP DATABASE latin WITH (FORCE)")


async def test_marks_of_writers_that_are_gone_are_removed(postgres_url: str) -> None:
    for _ in range(2):
        async with running(postgres_url) as it:
            await it.write("a")
            await it.write("b")
    assert looked(postgres_url, "SELECT mark FROM writers") == [(2,), (2,)]
    async with admin(postgres_url) as server:
        await server.do("UPDATE writers SET at = at - 8 * 86400")
    async with running(postgres_url) as it:
        await it.write("a")
        assert looked(postgres_url, "SELECT mark FROM writers") == [(1,)]


async def test_text_that_postgres_cannot_keep_harms_nobody_else(postgres_url: str) -> None:
    async with running(postgres_url) as it:
        bad, good, worse = it.write_soon("\0", "good", "\ud800")
        found = await asyncio.gather(bad, good, worse, return_exceptions=True)
        assert [isinstance(each, Exception) for each in found] == [True, False, True]
        it.bulk.add("\0")
        it.bulk.add("fine")
        await until(lambda: "fine" in it.answers, "told")
        assert isinstance(it.answers["\0"][0], ClientError)
        assert await it.store.read(read) == ["good", "fine"]
        assert it.store.healthy
