"""Locks between processes on files beside a SQLite database: who may have it open, and whose turn it is to write.

The kernel takes them back from a process that ends, however it ends (flock(2)).
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, Final

from hubbub.errors import ConfigurationError

try:
    import fcntl as _fcntl
except ImportError:  # Windows
    _fcntl = None  # type: ignore[assignment]  # not there
flock: Final[Any] = _fcntl

QUEUED: Final = 0.0005
"""Seconds between two looks of who waits behind others."""
NEXT: Final = 0.0001
"""The same for the one whose turn is next: only one process looks that often."""
LONG: Final = 0.02
"""Seconds after which it looks no more often than the others: what takes so long is no usual transaction."""


class NotOurTurn(Exception):
    """Other processes write to the database, one for too long."""

    def __init__(self) -> None:
        super().__init__("the database is locked by another process")


class Turns:
    """The turns in which processes write to one database: never two at the same time.

    There are two locks. Who wants a turn takes the first (it is next), waits with it for the second (it writes), and lets
    go of the first. So who has just written cannot write again before the one that is next: nobody starves.

    :param path: the database.
    :raises ConfigurationError: this system has no such locks.
    """

    def __init__(self, path: Path) -> None:
        if flock is None:
            raise ConfigurationError("here, processes cannot share a SQLite database: use PostgreSQL, or one process")
        self._next = _opened(f"{path}.next")
        self._turn = _opened(f"{path}.turn")

    @contextmanager
    def taken(self, seconds: float) -> Iterator[None]:
        """Have the turn. It blocks until then.

        :param seconds: for how long to wait for it.
        :raises NotOurTurn: it did not come.
        """
        until = time.monotonic() + seconds
        _wait(self._next, until, QUEUED)
        try:
            _wait(self._turn, until, NEXT)
        finally:
            flock.flock(self._next, flock.LOCK_UN)
        try:
            yield
        finally:
            flock.flock(self._turn, flock.LOCK_UN)

    def close(self) -> None:
        self._next.close()
        self._turn.close()


def _wait(lock: IO[str], until: float, pause: float) -> None:
    # not flock() itself: nothing ends that, should another process stand still with the lock
    began = 0.0
    while not _took(lock, flock.LOCK_EX):
        now = time.monotonic()
        began = began or now
        if now >= until:
            raise NotOurTurn
        time.sleep(pause if now - began < LONG else 2 * QUEUED)


def _took(lock: IO[str], kind: int) -> bool:
    try:
        flock.flock(lock, kind | flock.LOCK_NB)
    except OSError:
        return False
    return True


def _opened(path: str) -> IO[str]:
    descriptor = os.open(path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
    return os.fdopen(descriptor, "r+")


def hold(path: Path, *, shared: bool) -> IO[str]:
    """Hold the lock on ``<path>.lock`` that one process has, or several that share the database.

    :returns: it is held until this is closed.
    :raises ConfigurationError: another process has it.
    """
    lock = open(f"{path}.lock", "a+")  # noqa: SIM115  # held as long as the store is open
    if flock is None:  # opening the database by two processes is then the operator's own affair
        return lock
    if not _took(lock, flock.LOCK_SH if shared else flock.LOCK_EX):
        lock.seek(0)
        holder = lock.read().strip()
        lock.close()
        raise _taken(path, holder, shared)
    lock.truncate(0)
    # whoever ends a worker has it replaced: who is to be stopped is its supervisor
    lock.write(f"pid {os.getppid() if shared and 'HUBBUB_WORKER' in os.environ else os.getpid()}")
    lock.flush()
    return lock


def _taken(path: Path, holder: str, shared: bool) -> ConfigurationError:
    if holder == f"pid {os.getpid()}":
        return ConfigurationError(
            f"another hub of this process writes to {path}: give each its own (database_url= or data_dir=)"
        )
    who = f"another process{f' ({holder})' if holder else ''} writes to {path}"
    if shared:
        return ConfigurationError(f"{who} and shares it with nobody: stop it first")
    return ConfigurationError(
        f"{who}: SQLite takes one at a time. Stop it; or, for several workers, use `hubbub serve "
        "--app module:app --workers N` (they take turns), or PostgreSQL (HUBBUB_DATABASE_URL)"
    )
