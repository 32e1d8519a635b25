"""What is written together: units of work, each alone in what it does, and items that are written many at a time.

Here is how a group of them is applied in one transaction, and told of. When that happens is the business of
:mod:`hubbub.store`.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Final, Generic, Protocol, TypeVar

from sqlalchemy import Connection
from sqlalchemy.exc import DBAPIError

from hubbub.errors import ClientError, ErrorCode

log = logging.getLogger("hubbub")
I = TypeVar("I")  # noqa: E741
R = TypeVar("R")
In = TypeVar("In", contravariant=True)
Out = TypeVar("Out", covariant=True)
OfAll = Callable[[BaseException], bool]
Keys = tuple[str | int, ...]
"""Names of what is locked."""

UNIT_SIZE: Final = 512
"""Bytes that something queued is taken for beside its text."""


class Waiting:
    """Something that is to be written.

    :ivar size: bytes that it holds on to.
    :ivar until: when the loop's clock says so, it is answered, one way or the other.
    :ivar answered: who asked was told that nobody knows; what follows is only for the others.
    :ivar within: what it is known to lock (:attr:`hubbub.store.Store.lock`).
    """

    __slots__ = ("answered", "size", "until", "within")

    def __init__(self, size: int, within: Keys = ()) -> None:
        self.size = UNIT_SIZE + size
        self.within = within
        self.until = 0.0
        self.answered = False


class Unit(Waiting):
    """One piece of work, beside others in one transaction."""

    __slots__ = ("future", "tell", "work")

    def __init__(
        self,
        work: Callable[[Connection], Any],
        tell: Callable[[Any], None] | None,
        future: asyncio.Future[Any],
        within: Keys = (),
    ) -> None:
        super().__init__(0, within)
        self.work = work
        self.tell = tell
        self.future = future


class Item(Waiting):
    """One of many that are written by the same statements."""

    __slots__ = ("bulk", "item")

    def __init__(self, bulk: Bulk[Any, Any], item: Any, size: int, within: Keys) -> None:
        super().__init__(size, within)
        self.bulk = bulk
        self.item = item


class Apply(Protocol[In, Out]):
    """Writes many items; returns what came of each, in their order. A :class:`ClientError` in it refuses that one."""

    def __call__(self, connection: Connection, items: Sequence[In], /) -> Sequence[Out | ClientError]: ...


class Bulk(Generic[I, R]):
    """A kind of item that is written many at a time.

    :param apply: runs in the transaction. It must not change the items: it may run again, with other neighbours.
    :param tell: called in the loop with (items, results) once they are committed, or were refused. An item is told of
        twice if the database went away while it was being committed: as unavailable, and later as what it is.
    """

    def __init__(
        self,
        enqueue: Callable[[Item], None],
        apply: Apply[I, R],
        tell: Callable[[Sequence[I], Sequence[R | ClientError]], None],
    ) -> None:
        self._enqueue = enqueue
        self.apply = apply
        self.tell = tell

    def add(self, item: I, size: int = 0, within: Keys = ()) -> None:
        """Queue one; what comes of it is told.

        :param size: bytes that it holds on to.
        :param within: what it locks.
        :raises ClientError: ``busy``: too much waits already.
        :raises StoreUnavailable: the store is not running.
        """
        self._enqueue(Item(self, item, size, within))


class Refused(Exception):
    """Work that has its transaction for itself was refused, for what is the cause."""

    def __init__(self, cause: Exception) -> None:
        super().__init__(str(cause))
        self.cause = cause


# -- in the transaction


def is_uniform(group: Sequence[Unit | Item]) -> bool:
    """Whether a group is one piece of work: it then needs no savepoints to be taken back."""
    return len(group) == 1 or (isinstance(group[0], Item) and _run_of(group, 0) == len(group))


def apply_whole(connection: Connection, group: Sequence[Unit | Item], of_all: OfAll) -> list[Any]:
    """Do the work of a uniform group.

    :raises Refused: it is to be taken back.
    """
    first = group[0]
    try:
        return [first.work(connection)] if isinstance(first, Unit) else _written(connection, first.bulk, group)
    except Exception as error:
        if isinstance(error, DBAPIError) and of_all(error):
            raise
        raise Refused(_kept(error)) from error


def apply_apart(connection: Connection, group: Sequence[Unit | Item], of_all: OfAll) -> list[Any]:
    """Do the work of a group; a unit that fails is taken back alone, and its outcome is what it raised.

    :param of_all: tells an error that is about the database. It is raised: the transaction is lost with it.
    """
    outcomes: list[Any] = []
    while len(outcomes) < len(group):
        start = len(outcomes)
        first = group[start]
        if isinstance(first, Unit):
            outcomes.append(_apart(connection, first.work, of_all))
            continue
        run = group[start : _run_of(group, start)]
        found = _apart(connection, partial(_written, bulk=first.bulk, run=run), of_all)
        if not isinstance(found, Exception):
            outcomes += found
        else:  # one of them cannot be written: find out which, so that the others are
            each = [_apart(connection, partial(_written, bulk=first.bulk, run=[one]), of_all) for one in run]
            outcomes += [one if isinstance(one, Exception) else one[0] for one in each]
    return outcomes


def _run_of(group: Sequence[Unit | Item], start: int) -> int:
    """The end of the run of items of one kind that begins at ``start``."""
    first, end = group[start], start + 1
    assert isinstance(first, Item)
    while end < len(group):
        one = group[end]
        if not isinstance(one, Item) or one.bulk is not first.bulk:
            break
        end += 1
    return end


def _written(connection: Connection, bulk: Bulk[Any, Any], run: Sequence[Unit | Item]) -> list[Any]:
    found = list(bulk.apply(connection, [one.item for one in run if isinstance(one, Item)]))
    if len(found) != len(run):
        raise RuntimeError(f"{bulk.apply} returned {len(found)} results for {len(run)} items")
    return found


def _apart(connection: Connection, work: Callable[[Connection], Any], of_all: OfAll) -> Any:
    """Run work in a savepoint; returns its result, or what it raised after taking back what it did."""
    # not begin_nested(): what SQLAlchemy keeps beside it costs more than what most work does
    connection.exec_driver_sql("SAVEPOINT unit")
    try:
        result = work(connection)
    except Exception as error:
        if isinstance(error, DBAPIError) and of_all(error):
            raise
        connection.exec_driver_sql("ROLLBACK TO SAVEPOINT unit")
        connection.exec_driver_sql("RELEASE SAVEPOINT unit")
        return _kept(error)
    connection.exec_driver_sql("RELEASE SAVEPOINT unit")
    return result


def _kept(error: Exception) -> Exception:
    """An error as an outcome: not every exception can be one of a future's."""
    return RuntimeError("work on the store raised StopIteration") if isinstance(error, StopIteration) else error


# -- in the loop


def settle(group: Sequence[Unit | Item], outcomes: Sequence[Any]) -> None:
    """Tell what came of each, in the order of the group. An exception among the outcomes is what refused one."""
    index = 0
    while index < len(group):
        first = group[index]
        if isinstance(first, Unit):
            _answer(first, outcomes[index])
            index += 1
            continue
        end = _run_of(group, index)
        items = [one.item for one in group[index:end] if isinstance(one, Item)]
        _tell(first.bulk.tell, items, [_told(outcome) for outcome in outcomes[index:end]])
        index = end


def _answer(unit: Unit, outcome: Any) -> None:
    refused = isinstance(outcome, Exception)
    if not refused and unit.tell is not None:
        _tell(unit.tell, outcome)
    elif refused and not isinstance(outcome, ClientError):
        log.error("work on the store failed", exc_info=outcome)
    if unit.future.done():
        return  # who asked has gone; it is written all the same
    if refused:
        unit.future.set_exception(outcome)
    else:
        unit.future.set_result(outcome)


def _told(outcome: Any) -> Any:
    if not isinstance(outcome, Exception) or isinstance(outcome, ClientError):
        return outcome
    log.error("work on the store failed", exc_info=outcome)
    return ClientError(ErrorCode.INTERNAL, "this could not be stored: the server has the reason in its log")


def _tell(tell: Callable[..., None], *what: Any) -> None:
    try:
        tell(*what)
    except Exception:
        log.exception("telling of what was committed failed")
