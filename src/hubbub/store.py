"""The durable store: what is written in one turn of the loop is committed together, and nobody hears of it before.

Everything that changes the store goes through one queue, in order of arrival. While one transaction is being committed,
the next one collects. So a message costs a share of a commit, the more messages the smaller a share, and an idle store
commits at once.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from time import perf_counter
from typing import Any, Final, Generic, Protocol, TypeVar

import msgspec
from sqlalchemy import Connection
from sqlalchemy.exc import DBAPIError, InternalError, OperationalError

from hubbub.engines import Engine, Unknown
from hubbub.errors import ClientError, ErrorCode, StoreUnavailable
from hubbub.metrics import Metrics

log = logging.getLogger("hubbub")
T = TypeVar("T")
I = TypeVar("I")  # noqa: E741
R = TypeVar("R")
In = TypeVar("In", contravariant=True)
Out = TypeVar("Out", covariant=True)

GROUP: Final = 512
"""Units in one transaction. More would not make a unit cheaper, and all of them wait for the last."""
FIRST_PAUSE: Final = 0.01
"""Seconds before a transaction is tried again; twice as long after each time, at most :data:`LONGEST_PAUSE`."""
LONGEST_PAUSE: Final = 0.5
UNIT_SIZE: Final = 512
"""Bytes that something queued is taken for beside its text."""


class _Unit:
    """One piece of work, alone in what it does, beside others in one transaction."""

    __slots__ = ("future", "size", "tell", "work")

    def __init__(
        self, work: Callable[[Connection], Any], tell: Callable[[Any], None] | None, future: asyncio.Future[Any]
    ) -> None:
        self.work = work
        self.tell = tell
        self.future = future
        self.size = UNIT_SIZE


class _Item:
    """One of many that are written by the same statements."""

    __slots__ = ("bulk", "item", "size")

    def __init__(self, bulk: Bulk[Any, Any], item: Any, size: int) -> None:
        self.bulk = bulk
        self.item = item
        self.size = size


class Apply(Protocol[In, Out]):
    """Writes many items; returns what came of each, in their order. A :class:`ClientError` in it refuses that one."""

    def __call__(self, connection: Connection, items: Sequence[In], /) -> Sequence[Out | ClientError]: ...


class Bulk(Generic[I, R]):
    """A kind of item that is written many at a time.

    :param apply: runs in the transaction. It must not change the items: it may run again.
    :param tell: called in the loop with (items, results) once they are committed, or were refused.
    """

    def __init__(
        self, store: Store, apply: Apply[I, R], tell: Callable[[Sequence[I], Sequence[R | ClientError]], None]
    ) -> None:
        self._store = store
        self.apply = apply
        self.tell = tell

    def add(self, item: I, size: int = 0) -> None:
        """Queue one; what comes of it is told.

        :param size: bytes that it holds on to.
        :raises ClientError: ``busy``: too much waits already.
        """
        self._store.enqueue(_Item(self, item, UNIT_SIZE + size))


class Store:
    """Transactions on one database.

    :param queue: units that may wait; beyond: ``busy``.
    :param queue_bytes: bytes of them.
    :param timeout: seconds for which a transaction is tried again while the database is locked or away.
    :ivar waiting: units that are queued, or are being committed.
    """

    def __init__(self, engine: Engine, metrics: Metrics, *, queue: int, queue_bytes: int, timeout: float) -> None:
        self.engine = engine
        self._metrics = metrics.store
        self._limit = queue
        self._bytes_limit = queue_bytes
        self._timeout = timeout
        self._queue: deque[_Unit | _Item] = deque()
        self._bytes = 0
        self._committing = 0
        self._task: asyncio.Task[None] | None = None
        self._wake: asyncio.Future[None] | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._reads = 0
        self._failing = False

    @property
    def exclusive(self) -> bool:
        """Whether nobody else writes to the database."""
        return self.engine.exclusive

    @property
    def waiting(self) -> int:
        return len(self._queue) + self._committing

    @property
    def healthy(self) -> bool:
        """False while the last transaction failed for the database's sake."""
        return not self._failing

    async def start(self) -> None:
        """Open the database.

        :raises ConfigurationError: it cannot be used.
        """
        await self.engine.start()
        self._loop = asyncio.get_running_loop()
        self._task = self._loop.create_task(self._write_all())

    async def stop(self) -> None:
        """Commit what is queued, then close the database."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait((self._task,))
            self._task = None
        self._loop = None
        await self.engine.stop()

    # -- writing

    async def write(self, work: Callable[[Connection], T], tell: Callable[[T], None] | None = None) -> T:
        """Run work in the next transaction; returns what it returned, once that is committed.

        :param work: runs where it may block, and may run more than once: it must change nothing but the database. What it
            raises takes back what it did, and nothing else.
        :param tell: called with the result in the loop, in the order of commits, before anything else happens there.
        :raises ClientError: ``busy``; or what the work raised.
        :raises StoreUnavailable: the database does not take it.
        """
        future: asyncio.Future[T] = self._running().create_future()
        self.enqueue(_Unit(work, tell, future))
        return await future

    def bulk(self, apply: Apply[I, R], tell: Callable[[Sequence[I], Sequence[R | ClientError]], None]) -> Bulk[I, R]:
        """Make a kind of item that is written many at a time."""
        return Bulk(self, apply, tell)

    def enqueue(self, unit: _Unit | _Item) -> None:
        """:raises ClientError: ``busy``: too much waits already."""
        if self.waiting >= self._limit or self._bytes + unit.size > self._bytes_limit:
            self._metrics.refused += 1
            raise ClientError(ErrorCode.BUSY, "the store does not keep up: try again", retry_after=1.0)
        self._queue.append(unit)
        self._bytes += unit.size
        if self._wake is not None and not self._wake.done():
            self._wake.set_result(None)

    def _running(self) -> asyncio.AbstractEventLoop:
        if self._loop is None:
            raise StoreUnavailable("the store is not running")
        return self._loop

    async def _write_all(self) -> None:
        """Commit group after group; when cancelled, what is queued is committed first."""
        stopping = False
        while True:
            if not self._queue:
                if stopping:
                    return
                self._wake = self._running().create_future()
                try:
                    await self._wake  # and the rest of the turn joins in
                except asyncio.CancelledError:
                    stopping = True
                    continue
                finally:
                    self._wake = None
            group = [self._queue.popleft() for _ in range(min(GROUP, len(self._queue)))]
            self._committing = len(group)
            work = asyncio.ensure_future(self._commit(group))
            while not work.done():
                try:
                    await asyncio.shield(work)
                except asyncio.CancelledError:
                    stopping = True  # what was begun is finished: somebody waits for it
            self._committing = 0
            self._bytes -= sum(unit.size for unit in group)

    async def _commit(self, group: list[_Unit | _Item]) -> None:
        began = perf_counter()
        try:
            outcomes = await self._transact(group)
        except Exception as error:
            self._failing = True
            self._metrics.failed += 1
            log.error("a transaction failed", exc_info=error, extra={"units": len(group)})
            outcomes = [StoreUnavailable(_reason(error))] * len(group)
        else:
            self._failing = False
            self._metrics.commits += 1
            self._metrics.units += len(group)
            self._metrics.seconds.add(perf_counter() - began)
        self._settle(group, outcomes)

    async def _transact(self, group: list[_Unit | _Item]) -> list[Any]:
        """Run a group in one transaction, again and again while the database is locked or away."""
        loop = self._running()
        deadline = loop.time() + self._timeout
        pause = FIRST_PAUSE
        unknown: Unknown | None = None
        outcomes: list[Any] = []

        def work(connection: Connection) -> None:
            outcomes[:] = _apply(connection, group, self.engine.transient)

        while True:
            try:
                if unknown is not None:
                    if await self.engine.was_committed(unknown.token):
                        return outcomes
                    unknown = None
                await self.engine.write(work)
                return outcomes
            except Unknown as error:
                unknown = error
            except Exception as error:
                if not self.engine.transient(error) or loop.time() >= deadline:
                    raise
                self._metrics.retried += 1
                self._failing = True
            if unknown is not None and loop.time() >= deadline + self._timeout:
                raise unknown
            await asyncio.sleep(pause * random.uniform(0.5, 1.0))  # noqa: S311  # so that nodes do not keep step
            pause = min(2 * pause, LONGEST_PAUSE)

    def _settle(self, group: list[_Unit | _Item], outcomes: list[Any]) -> None:
        """Tell what came of each, in the order of the group."""
        index = 0
        while index < len(group):
            unit = group[index]
            if isinstance(unit, _Item):
                end = _run_of(group, index)
                items = [each.item for each in group[index:end] if isinstance(each, _Item)]
                try:
                    unit.bulk.tell(items, outcomes[index:end])
                except Exception:
                    log.exception("telling of what was committed failed")
                index = end
                continue
            outcome = outcomes[index]
            index += 1
            if not isinstance(outcome, BaseException) and unit.tell is not None:
                try:
                    unit.tell(outcome)
                except Exception:
                    log.exception("telling of what was committed failed")
            if unit.future.done():
                continue  # who asked has gone; it is written all the same
            if isinstance(outcome, BaseException):
                unit.future.set_exception(outcome)
            else:
                unit.future.set_result(outcome)

    # -- reading

    async def read(self, work: Callable[[Connection], T]) -> T:
        """Run work that only reads; it sees one state of the database.

        :raises ClientError: ``busy``: too many reads wait already; or what the work raised.
        :raises StoreUnavailable: the database cannot be read.
        """
        self._running()
        if self._reads >= self._limit:
            self._metrics.refused += 1
            raise ClientError(ErrorCode.BUSY, "too many requests wait for the store", retry_after=1.0)
        self._reads += 1
        self._metrics.reads += 1
        try:
            # in a task of its own: drivers want one, and who asks may have none
            return await asyncio.ensure_future(self.engine.read(work))
        except (DBAPIError, OSError, TimeoutError) as error:
            log.error("the store cannot be read", exc_info=error)
            raise StoreUnavailable(_reason(error)) from None
        finally:
            self._reads -= 1


def _run_of(group: Sequence[_Unit | _Item], start: int) -> int:
    """The end of the run of items of one kind that begins at ``start``."""
    first = group[start]
    end = start + 1
    while end < len(group):
        unit = group[end]
        if not (isinstance(unit, _Item) and isinstance(first, _Item) and unit.bulk is first.bulk):
            break
        end += 1
    return end


def _apply(
    connection: Connection, group: Sequence[_Unit | _Item], transient: Callable[[BaseException], bool]
) -> list[Any]:
    """Do the work of a group; a unit that fails is taken back alone, and its outcome is what it raised."""
    outcomes: list[Any] = []
    while len(outcomes) < len(group):
        start = len(outcomes)
        unit = group[start]
        if isinstance(unit, _Item):
            end = _run_of(group, start)
            items = [each.item for each in group[start:end] if isinstance(each, _Item)]
            outcomes += _apply_items(connection, unit.bulk, items, transient)
        else:
            outcomes.append(_apart(connection, unit.work, transient))
    return outcomes


def _apply_items(
    connection: Connection, bulk: Bulk[Any, Any], items: list[Any], transient: Callable[[BaseException], bool]
) -> list[Any]:
    found = _apart(connection, lambda inner: bulk.apply(inner, items), transient)
    if not isinstance(found, BaseException):
        return list(found)
    if len(items) == 1:
        return [found]
    # one of them cannot be written: find out which, so that the others are
    one_by_one = [_apart(connection, partial(_apply_one, bulk, item), transient) for item in items]
    return [each if isinstance(each, BaseException) else each[0] for each in one_by_one]


def _apply_one(bulk: Bulk[Any, Any], item: Any, connection: Connection) -> Sequence[Any]:
    return bulk.apply(connection, [item])


def _apart(
    connection: Connection, work: Callable[[Connection], Any], transient: Callable[[BaseException], bool]
) -> Any:
    """Run work in a savepoint; returns its result, or what it raised after taking back what it did."""
    savepoint = connection.begin_nested()
    try:
        result = work(connection)
        savepoint.commit()
    except Exception as error:
        if _whole(error, transient):
            raise  # the transaction is lost with it
        savepoint.rollback()
        if not isinstance(error, ClientError):
            log.error("work on the store failed", exc_info=error)
        return error
    return result


def _whole(error: Exception, transient: Callable[[BaseException], bool]) -> bool:
    """Whether an error concerns the database, and so all of the transaction, and not only what was being done."""
    if transient(error):
        return True
    return isinstance(error, OperationalError | InternalError)


def _reason(error: BaseException) -> str:
    said = str(getattr(error, "orig", None) or error).lower()
    if "disk is full" in said or "disk full" in said or "no space" in said:
        return "the store's disk is full: nothing can be written"
    if "locked" in said:
        return "the database is locked by another process"
    if "readonly" in said or "read-only" in said:
        return "the database cannot be written to"
    return "the store does not answer"


def encode(value: Any) -> str:
    """A value as the JSON text that a column keeps."""
    return msgspec.json.encode(value).decode()
