"""The durable store: what is written in one turn of the loop is committed together, and nobody hears of it before.

Everything that changes the store goes through one queue, in order of arrival. While one transaction is being committed,
the next one collects. So a message costs a share of a commit, the more messages the smaller a share, and an idle store
commits at once.

While the database is locked or away, a transaction is tried again, with whatever has come meanwhile. What has waited too
long is answered; the rest goes on by itself when the fault ends.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from time import perf_counter
from typing import Any, Final, TypeVar

import msgspec
import sqlalchemy
from sqlalchemy import Connection

from hubbub.engines import Engine, Unknown
from hubbub.errors import ClientError, ErrorCode, StoreUnavailable
from hubbub.group import Apply, Bulk, Item, Keys, Refused, Unit, apply_apart, apply_whole, is_uniform, settle
from hubbub.metrics import Metrics

__all__ = ["Apply", "Bulk", "Store", "encode"]

log = logging.getLogger("hubbub")
T = TypeVar("T")
I = TypeVar("I")  # noqa: E741
R = TypeVar("R")
Group = list[Unit | Item]

GROUP: Final = 512
"""Units in one transaction. More would not make a unit cheaper, and all of them wait for the last."""
FIRST_PAUSE: Final = 0.01
"""Seconds before a transaction is tried again; twice as long after each time, at most :data:`LONGEST_PAUSE`."""
LONGEST_PAUSE: Final = 0.5
NOT_WORTH_A_WORD: Final = 1.0
"""Seconds of trouble that are not logged: a lock that another process holds for a moment, a lost race."""
PROBED: Final = 1.0
"""Seconds between two looks at whether a fault has ended, while nothing is to be written."""


class Store:
    """Transactions on one database.

    :param queue: units that may wait; beyond: ``busy``.
    :param queue_bytes: bytes of them.
    :param timeout: seconds after which what is to be written or read is answered, one way or the other.
    :ivar lock: locks what a transaction is known to lock (``within``) before all else, in an order that is the same on all
        nodes: two transactions of many units would otherwise wait for each other. None: nobody else writes meanwhile.
    """

    def __init__(self, engine: Engine, metrics: Metrics, *, queue: int, queue_bytes: int, timeout: float) -> None:
        self.engine = engine
        self._metrics = metrics.store
        self._limit = queue
        self._bytes_limit = queue_bytes
        self._timeout = timeout
        self._queue: deque[Unit | Item] = deque()
        self._taken: Group = []
        self._began = 0.0
        self._bytes = 0
        self._loop: asyncio.AbstractEventLoop | None = None
        self._task: asyncio.Task[None] | None = None
        self._stop_by: float | None = None
        self._wake: asyncio.Future[None] | None = None
        self._alarm: asyncio.TimerHandle | None = None
        self._reads: set[asyncio.Task[Any]] = set()
        self._readers = 0
        self._size = GROUP
        self._pause = FIRST_PAUSE
        self._trouble: str | None = None
        self._troubled_at = 0.0
        self._complained = False
        self.lock: Callable[[Connection, set[str | int]], object] | None = None

    @property
    def exclusive(self) -> bool:
        """Whether nobody else writes to the database."""
        return self.engine.exclusive

    @property
    def waiting(self) -> int:
        """Units that are queued, or are being committed."""
        return len(self._queue) + len(self._taken)

    @property
    def healthy(self) -> bool:
        """False while the database does not take what is written."""
        return self._trouble is None

    # -- beginning and end

    async def start(self, prepare: Callable[[Engine], Awaitable[None]] | None = None) -> None:
        """Open the database.

        :param prepare: called with it before anything else is done with it; if it raises, the database is closed again.
        :raises ConfigurationError: it cannot be used.
        """
        await self.engine.start()
        try:
            if prepare is not None:
                await prepare(self.engine)
        except BaseException:
            await self.engine.stop()
            raise
        self._loop = asyncio.get_running_loop()
        self._stop_by = self._trouble = None
        self._task = self._loop.create_task(self._write_all())

    async def stop(self) -> None:
        """Commit what is queued, let reads end, close the database. Takes little more than ``timeout``."""
        loop, task, self._task = self._loop, self._task, None
        if loop is None or task is None:
            return
        self._stop_by = loop.time() + self._timeout
        self._rouse()
        try:
            await asyncio.wait((task,))
            if self._reads:
                await asyncio.wait(self._reads, timeout=max(0.0, self._stop_by - loop.time()))
        finally:
            self._loop = None
            left = (task, *self._reads)
            for each in left:
                each.cancel()
            await asyncio.wait(left)
            await self.engine.stop()

    def _running(self) -> asyncio.AbstractEventLoop:
        if self._loop is None or self._stop_by is not None:
            raise StoreUnavailable("the store is not running")
        return self._loop

    # -- writing

    async def write(
        self, work: Callable[[Connection], T], tell: Callable[[T], None] | None = None, *, within: Keys = ()
    ) -> T:
        """Run work in the next transaction; returns what it returned, once that is committed.

        :param work: runs where it may block, and may run more than once: it must change nothing but the database. What it
            raises takes back what it did, and nothing else.
        :param tell: called with the result in the loop, in the order of commits, before anything else happens there; also
            if who asked has gone.
        :param within: what it locks, as far as that is known.
        :raises ClientError: ``busy``; or what the work raised.
        :raises StoreUnavailable: the database does not take it; or went away during the commit, so that nobody knows.
        """
        future: asyncio.Future[T] = self._running().create_future()
        self.enqueue(Unit(work, tell, future, within))
        return await future

    def bulk(self, apply: Apply[I, R], tell: Callable[[Sequence[I], Sequence[R | ClientError]], None]) -> Bulk[I, R]:
        """Make a kind of item that is written many at a time."""
        return Bulk(self.enqueue, apply, tell)

    def enqueue(self, unit: Unit | Item) -> None:
        """
        :raises ClientError: ``busy``: too much waits already.
        :raises StoreUnavailable: the store is not running.
        """
        loop = self._running()
        if self.waiting >= self._limit or self._bytes + unit.size > self._bytes_limit:
            self._metrics.refused += 1
            raise _busy()
        unit.until = loop.time() + self._timeout
        self._queue.append(unit)
        self._bytes += unit.size
        self._rouse()
        if self._alarm is None:
            self._alarm = loop.call_at(unit.until, self._expire, loop)

    def _rouse(self) -> None:
        if self._wake is not None and not self._wake.done():
            self._wake.set_result(None)

    def _expire(self, loop: asyncio.AbstractEventLoop) -> None:
        """Answer what has been queued for too long, whatever the writer waits for."""
        late: Group = []
        while self._queue and self._queue[0].until <= loop.time():
            late.append(self._queue.popleft())
        self._alarm = loop.call_at(self._queue[0].until, self._expire, loop) if self._queue else None
        stuck = bool(self._taken) and loop.time() - self._began > self._timeout / 2
        reason = self._trouble or (_SILENT if stuck else None)
        if reason is None:
            self._metrics.refused += len(late)
        self._done(late, [_busy() if reason is None else StoreUnavailable(reason) for _ in late])

    def _done(self, group: Group, outcomes: Sequence[Any]) -> None:
        self._bytes -= sum(unit.size for unit in group)
        settle(group, outcomes)

    # -- the writer

    async def _write_all(self) -> None:
        """Commit group after group, until the store stops and nothing is queued."""
        loop = asyncio.get_running_loop()
        try:
            while await self._queued(loop):
                await self._commit(loop)
        except Exception as error:
            self._trouble = "the store has stopped"
            log.critical("the store cannot write any more", exc_info=error)
        finally:
            self._stop_by = self._stop_by or loop.time()  # for whatever reason it ends: nobody waits for it
            if self._alarm is not None:
                self._alarm.cancel()
                self._alarm = None
            left = [*self._taken, *self._queue]
            self._taken = []
            self._queue.clear()
            self._done(left, [StoreUnavailable("the store has stopped") for _ in left])

    async def _queued(self, loop: asyncio.AbstractEventLoop) -> bool:
        """Wait until something is queued, and the rest of the turn with it. False: the store stops."""
        while not self._queue:
            if self._stop_by is not None:
                return False
            self._wake = loop.create_future()
            timer = None if self.healthy else loop.call_later(PROBED, self._rouse)
            try:
                await self._wake
            finally:
                self._wake = None
                if timer is not None:
                    timer.cancel()
            if not self.healthy and not self._queue and self._stop_by is None:
                await self._probe()
        return True

    async def _probe(self) -> None:
        """See whether a fault has ended: nobody may be sending just because it has not."""
        try:
            await self.engine.write(self.engine.touch)
        except Exception as error:
            self._failed(error)
        else:
            self._worked()

    async def _commit(self, loop: asyncio.AbstractEventLoop) -> None:
        """Try to commit the next group. What may be tried again is put back to where it was."""
        group = self._taken = [self._queue.popleft() for _ in range(min(self._size, len(self._queue)))]
        self._began = loop.time()
        began = perf_counter()
        try:
            outcomes = await self._transact(group, loop)
        except Exception as error:
            self._failed(error)
            if self.engine.transient(error):
                self._again(group)
                await asyncio.sleep(self._pause * random.uniform(0.5, 1.0))  # noqa: S311  # nodes do not keep step
                self._pause = min(2 * self._pause, LONGEST_PAUSE)
                return
            self._metrics.failed += 1
            outcomes = [StoreUnavailable(self._trouble or "") for _ in group]
        else:
            if outcomes is None:
                self._again(group)
                return
            self._worked()
            self._metrics.commits += any(not isinstance(outcome, Exception) for outcome in outcomes)
            self._metrics.units += len(group)
            self._metrics.seconds.add(perf_counter() - began)
        self._taken = []
        self._done(group, outcomes)

    async def _transact(self, group: Group, loop: asyncio.AbstractEventLoop) -> list[Any] | None:
        """Run a group in one transaction. None: it was not committed, and nothing speaks against trying again."""
        of_all = self.engine.concerns_all
        uniform = is_uniform(group)
        apply = apply_whole if uniform else apply_apart
        # one piece of work sees to its order itself
        locked = set() if self.lock is None or uniform else {key for unit in group for key in unit.within}
        outcomes: list[Any] = []

        def work(connection: Connection) -> None:
            if self.lock is not None and len(locked) > 1:
                self.lock(connection, locked)
            outcomes[:] = apply(connection, group, of_all)

        while True:
            try:
                await self.engine.write(work)
                return outcomes
            except Refused as refused:
                if len(group) == 1:
                    return [refused.cause]
                apply = apply_apart
            except Unknown as unknown:
                self._failed(unknown)
                return outcomes if await self._was_committed(unknown, group, loop) else None

    async def _was_committed(self, unknown: Unknown, group: Group, loop: asyncio.AbstractEventLoop) -> bool:
        """Ask until it is known. Those who have waited long enough meanwhile are told that it is not.

        :raises Unknown: the store stops before it is known.
        """
        while True:
            try:
                return await self.engine.was_committed(unknown.token)
            except Exception as error:
                self._failed(error)
            now = loop.time()
            late = [unit for unit in group if unit.until <= now and not unit.answered]
            for unit in late:
                unit.answered = True
            settle(late, [StoreUnavailable(_UNSURE) for _ in late])
            if self._stop_by is not None and now >= self._stop_by:
                raise unknown
            await asyncio.sleep(LONGEST_PAUSE * random.uniform(0.1, 1.0))  # noqa: S311

    def _again(self, group: Group) -> None:
        """Put a group back to the front of the queue, but for what was answered."""
        self._taken = []
        again = [unit for unit in group if not unit.answered]
        self._bytes -= sum(unit.size for unit in group) - sum(unit.size for unit in again)
        self._queue.extendleft(reversed(again))
        if self._alarm is not None:
            self._alarm.cancel()
        loop = asyncio.get_running_loop()
        self._alarm = loop.call_at(self._queue[0].until, self._expire, loop) if self._queue else None

    def _failed(self, error: Exception) -> None:
        transient = self.engine.transient(error)
        now = asyncio.get_running_loop().time()
        if transient:
            self._metrics.retried += 1
            self._size = max(1, self._size // 2)  # so much may be what it cannot do in its time
        if self._trouble is None:
            self._troubled_at = now
        self._trouble = _reason(error)
        if not self._complained and (not transient or now - self._troubled_at > NOT_WORTH_A_WORD):
            self._complained = True
            # a fault that is waited for needs no traceback
            log.error("the store cannot write: %s", self._trouble, exc_info=None if transient else error)

    def _worked(self) -> None:
        self._size = min(2 * self._size, GROUP)
        self._pause = FIRST_PAUSE
        self._trouble = None
        if self._complained:
            self._complained = False
            log.warning("the store writes again")

    # -- reading

    async def read(self, work: Callable[[Connection], T]) -> T:
        """Run work that only reads; it sees one state of the database. It may run more than once.

        :raises ClientError: ``busy``: too many reads wait already; or what the work raised.
        :raises StoreUnavailable: the database cannot be read.
        """
        loop = self._running()
        if self._readers >= self._limit:
            self._metrics.refused += 1
            raise _busy()
        self._readers += 1
        self._metrics.reads += 1
        until, pause = loop.time() + self._timeout, FIRST_PAUSE
        try:
            while True:
                try:
                    return await self._read(loop, work)
                except sqlalchemy.exc.TimeoutError:  # no connection became free
                    self._metrics.refused += 1
                    raise _busy() from None
                except Exception as error:
                    if not self.engine.concerns_all(error):
                        raise
                    if not self.engine.transient(error) or loop.time() >= until or self._stop_by is not None:
                        log.error("the store cannot be read", exc_info=error)
                        raise StoreUnavailable(_reason(error)) from None
                await asyncio.sleep(pause)
                pause = min(2 * pause, LONGEST_PAUSE)
        finally:
            self._readers -= 1

    async def _read(self, loop: asyncio.AbstractEventLoop, work: Callable[[Connection], T]) -> T:
        # in a task of its own: drivers want one, and who asks may have none
        task = loop.create_task(self.engine.read(work))
        self._reads.add(task)
        task.add_done_callback(self._reads.discard)
        try:
            return await task
        except asyncio.CancelledError:
            if self._loop is not None:
                raise  # who asked has gone
            raise StoreUnavailable("the store has stopped") from None


_SILENT: Final = "the store does not answer"
_UNSURE: Final = f"{_SILENT}: whether this was written is not known yet"


def _busy() -> ClientError:
    return ClientError(ErrorCode.BUSY, "the store does not keep up: try again", retry_after=1.0)


def _reason(error: BaseException) -> str:
    if isinstance(error, Unknown):
        return _UNSURE
    said = str(getattr(error, "orig", None) or error).lower()
    if "disk is full" in said or "disk full" in said or "no space" in said:
        return "the store's disk is full: nothing can be written"
    if "locked" in said or "lock timeout" in said:
        return "the database is locked by another process"
    if "readonly" in said or "read-only" in said:
        return "the database cannot be written to"
    return _SILENT


def encode(value: Any) -> str:
    """A value as the JSON text that a column keeps."""
    return msgspec.json.encode(value).decode()
