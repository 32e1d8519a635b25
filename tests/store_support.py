"""A store with one small table of its own, on a real database; and ways to look at that from outside."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, closing
from typing import Any, Final

import asyncpg
from sqlalchemy import Column, Connection, Integer, MetaData, String, Table, insert, select
from sqlalchemy.util import await_only

from hubbub.engines import Engine, engine_for
from hubbub.engines.postgres import writers
from hubbub.errors import ClientError
from hubbub.metrics import Metrics, StoreMetrics
from hubbub.store import Bulk, Store
from tests.databases import WITHIN

declared: Final = MetaData()
notes: Final = Table(
    "notes",
    declared,
    Column("no", Integer, primary_key=True),
    Column("what", String, nullable=False),
    Column("only", String, unique=True),
)
"""``what`` may be there twice, so that a repeated transaction shows; ``only`` may not."""


class Notes:
    """A running store with notes in it.

    :ivar told: what was told of, in order.
    """

    def __init__(self, store: Store, metrics: StoreMetrics, url: str) -> None:
        self.store = store
        self.metrics = metrics
        self.url = url
        self.told: list[str] = []
        self.runs: list[int] = []
        self.answers: dict[str, list[Any]] = {}
        self.bulk: Bulk[str, str] = store.bulk(self._apply, self._tell)

    async def write(self, what: str) -> str:
        """Note something; it is told of as such, and returned once that is committed."""
        return await self.store.write(note(what), self.told.append)

    def write_soon(self, *what: str) -> list[asyncio.Task[str]]:
        """Note each in its own unit of work, all in one turn."""
        return [asyncio.create_task(self.write(each)) for each in what]

    async def all(self) -> list[str]:
        """What is noted, in order."""
        return await self.store.read(read)

    def _apply(self, connection: Connection, items: Sequence[str]) -> list[str | ClientError]:
        """An item may be ``no: …`` (it is refused) or ``only: …`` (it must not be there yet)."""
        self.runs.append(len(items))
        good = [item for item in items if not item.startswith("no:")]
        rows = [{"what": item, "only": item if item.startswith("only:") else None} for item in good]
        if rows:
            connection.execute(insert(notes), rows)
        return [item.upper() if item in good else ClientError("no", item) for item in items]

    def _tell(self, items: Sequence[str], results: Sequence[str | ClientError]) -> None:
        for item, result in zip(items, results, strict=True):
            self.told.append(item)
            self.answers.setdefault(item, []).append(result)


def note(what: str, only: str | None = None) -> Callable[[Connection], str]:
    """Work that notes something."""

    def work(connection: Connection) -> str:
        connection.execute(insert(notes), {"what": what, "only": only})
        return what

    return work


def read(connection: Connection) -> list[str]:
    """Work that reads what is noted."""
    return list(connection.scalars(select(notes.c.what).order_by(notes.c.no)))


async def create(engine: Engine) -> None:
    """Make the tables, where they are not."""

    def work(connection: Connection) -> None:
        declared.create_all(connection)
        writers.create(connection, checkfirst=True)

    await engine.alter(work)


@asynccontextmanager
async def running(url: str, *, timeout: float = WITHIN, queue: int = 10_000, **options: Any) -> AsyncIterator[Notes]:
    """A store that runs, with nothing noted if its database was empty."""
    metrics = Metrics()
    engine = engine_for(url, readers=2, full_sync=True, timeout=timeout)
    options.setdefault("queue_bytes", 64 << 20)
    store = Store(engine, metrics, queue=queue, timeout=timeout, **options)
    await store.start(create)
    try:
        yield Notes(store, metrics.store, url)
    finally:
        await store.stop()


def looked(url: str, query: str) -> list[tuple[Any, ...]]:
    """The rows of a query, from outside of the store; blocks meanwhile."""
    if url.startswith("sqlite:///"):
        with closing(sqlite3.connect(url.removeprefix("sqlite:///"))) as file:
            return file.execute(query).fetchall()

    async def look() -> list[tuple[Any, ...]]:
        connection = await asyncpg.connect(url, timeout=WITHIN)
        try:
            return [tuple(row) for row in await connection.fetch(query)]
        finally:
            await connection.close()

    with ThreadPoolExecutor(1) as thread:
        return thread.submit(lambda: asyncio.run(look())).result()


def meanwhile(connection: Connection, loop: asyncio.AbstractEventLoop, what: Coroutine[Any, Any, Any]) -> Any:
    """In work: have something done by the loop before it goes on."""
    if connection.dialect.name == "postgresql":
        return await_only(what)
    return asyncio.run_coroutine_threadsafe(what, loop).result(WITHIN)


async def until(condition: Callable[[], bool] | Callable[[], Awaitable[bool]], what: str) -> None:
    """Let the loop run until a condition holds."""
    try:
        async with asyncio.timeout(WITHIN):
            while True:
                found = condition()
                if found if isinstance(found, bool) else await found:
                    return
                await asyncio.sleep(0)
    except TimeoutError:
        raise AssertionError(f"never came true: {what}") from None
