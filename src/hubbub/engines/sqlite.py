"""SQLite: in a file, or in memory."""

from __future__ import annotations

import asyncio
import os
import sqlite3
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext, suppress
from functools import partial
from pathlib import Path
from typing import IO, Any, Final, TypeVar
from urllib.parse import quote

import sqlalchemy
from sqlalchemy import Connection, event
from sqlalchemy.exc import DBAPIError, InternalError, OperationalError
from sqlalchemy.pool import QueuePool, StaticPool

from hubbub.engines.port import WROTE, Work
from hubbub.engines.turns import NotOurTurn, Turns, hold
from hubbub.errors import ConfigurationError

T = TypeVar("T")

OLDEST: Final = (3, 35, 0)
"""The first with RETURNING."""
OPENING: Final = 5.0
"""Seconds for which opening waits for another process's lock."""
TURN: Final = 2.0
"""How long one attempt waits for its turn, where processes share the database."""
LONG_TURN: Final = 600.0
"""The same for what takes as long as it takes, here or where it is waited for: opening, migrating."""
BUSY_MILLISECONDS: Final = 200
"""How long one attempt waits for another process's lock; the store tries again until its own time is up."""
CACHE_KIB: Final = 16_384
"""Pages that a connection keeps."""
# https://www.sqlite.org/rescode.html
OF_A_STATEMENT: Final = frozenset({1, 18, 19, 20, 25})
"""ERROR, TOOBIG, CONSTRAINT, MISMATCH, RANGE. All others are about the database."""
LOCKS: Final = frozenset({5, 6, 15})
"""BUSY, LOCKED, PROTOCOL."""
READONLY: Final = 8


class SqliteEngine:
    """SQLite in WAL mode: one writing connection, some reading ones, each in a thread of its own.

    SQLite 3.7.0 to 3.51.2 may corrupt a database when two connections write or checkpoint at the same time ("WAL-reset
    bug", sqlite.org/wal.html). So there is one writer: within the process one connection, and over all processes whoever
    holds the lock on ``<database>.lock``. Reading connections never checkpoint.

    Processes of one machine may share a database. Each has a writing connection then, and a transaction, the checkpoint
    that may follow it, and opening and closing the database happen in turns (:class:`Turns`), so that still no two of them
    write or checkpoint at the same time. (A reading connection may have to rebuild the index of the log, after a process
    was killed while it wrote. It does that under SQLite's own locks of the writer and of the checkpointer.)

    :param path: None: in memory, for tests and for trying out.
    :param full_sync: every commit is on the disk before it is answered; else a power cut may take the last ones back
        (a crash of the process may not, either way).
    :param shared: other processes of this machine write to it too, each with this set.
    """

    name = "sqlite"

    def __init__(
        self, path: Path | None, *, readers: int, full_sync: bool, read_only: bool = False, shared: bool = False
    ) -> None:
        self.path = path
        self.exclusive = not shared
        self.where = str(path) if path is not None else "in memory"
        self._readers = readers
        self._full_sync = full_sync
        self._read_only = read_only
        self._lock: IO[str] | None = None
        self._turns: Turns | None = None
        self._writing: ThreadPoolExecutor | None = None
        self._reading: ThreadPoolExecutor | None = None
        self._writer: sqlalchemy.Engine | None = None
        self._reader: sqlalchemy.Engine | None = None
        self._open_readers: set[sqlite3.Connection] = set()

    # -- opening and closing

    async def start(self) -> None:
        if sqlite3.sqlite_version_info < OLDEST:
            raise ConfigurationError(
                f"this Python has SQLite {sqlite3.sqlite_version}, Hubbub needs {'.'.join(map(str, OLDEST))}: use a "
                "newer Python, or PostgreSQL (HUBBUB_DATABASE_URL)"
            )
        self._writing = ThreadPoolExecutor(1, "hubbub-write")
        self._reading = self._writing if self.path is None else ThreadPoolExecutor(self._readers, "hubbub-read")
        try:
            await asyncio.get_running_loop().run_in_executor(self._writing, self._open)
        except BaseException:
            await self.stop()
            raise

    def _open(self) -> None:
        if self.path is None:
            if not self.exclusive:
                raise ConfigurationError("processes cannot share a database in memory: set HUBBUB_DATA_DIR")
            self._writer = self._reader = self._make(":memory:", "BEGIN", StaticPool)
            return
        try:
            self._open_file(self.path)
        except (OSError, DBAPIError) as error:
            reason = error.orig if isinstance(error, DBAPIError) else error
            raise ConfigurationError(
                f"cannot use the database {self.path}: {reason}; set HUBBUB_DATA_DIR or HUBBUB_DATABASE_URL"
            ) from None
        except NotOurTurn:
            raise ConfigurationError(
                f"other processes write to the database {self.path}, and one does not end: stop it"
            ) from None

    def _open_file(self, path: Path) -> None:
        if not self._read_only:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._lock = hold(path, shared=not self.exclusive)
            if not self.exclusive:
                self._turns = Turns(path)
        elif not path.exists():
            raise ConfigurationError(f"there is no database {path}: set HUBBUB_DATA_DIR or HUBBUB_DATABASE_URL")
        with self._turn(LONG_TURN):  # who opens it first may have to recover what a killed process left
            self._connect(path)

    def _connect(self, path: Path) -> None:
        if not self._read_only:
            # people's messages are nobody else's on this machine; SQLite's other files take the mode of this one
            os.close(os.open(path, os.O_CREAT | os.O_RDWR, 0o600))
            self._writer = self._make(str(path), "BEGIN IMMEDIATE", QueuePool, pool_size=1, max_overflow=0)
            self._writer.connect().close()
        self._reader = self._make(
            str(path), "BEGIN", QueuePool, query_only=True, pool_size=self._readers, max_overflow=0
        )
        with self._reader.begin() as connection:
            connection.exec_driver_sql("SELECT 1 FROM sqlite_master").all()
        # all of them now: the first who reads does not wait, and a server's descriptors are what they will be
        opened = [self._reader.connect() for _ in range(self._readers)]
        for connection in opened:
            connection.close()

    def _make(
        self, database: str, begin: str, pool: type[sqlalchemy.Pool], *, query_only: bool = False, **options: Any
    ) -> sqlalchemy.Engine:
        def connect() -> sqlite3.Connection:
            uri = f"file:{quote(os.path.abspath(database))}?mode=ro" if self._read_only else database
            connection = sqlite3.connect(
                uri,
                uri=self._read_only,
                timeout=OPENING,
                isolation_level=None,
                check_same_thread=False,
                cached_statements=256,
            )
            try:
                self._configure(connection, in_file=database != ":memory:", query_only=query_only)
            except BaseException:
                connection.close()
                raise
            if query_only:
                self._open_readers.add(connection)
            return connection

        engine = sqlalchemy.create_engine(
            "sqlite://",
            creator=connect,
            poolclass=pool,
            hide_parameters=True,  # what people say is not for logs
            **options,
        )
        # sqlite3's own idea of when a transaction begins is not ours (isolation_level=None)
        event.listen(engine, "begin", lambda connection: connection.exec_driver_sql(begin))
        return engine

    def _configure(self, connection: sqlite3.Connection, *, in_file: bool, query_only: bool) -> None:
        connection.execute(f"PRAGMA cache_size = -{CACHE_KIB}")
        if query_only:
            connection.execute("PRAGMA query_only = 1")
        elif in_file:
            mode = connection.execute("PRAGMA journal_mode = WAL").fetchone()[0]
            if mode != "wal":
                raise OSError(f"its file system cannot have SQLite's write-ahead log (journal_mode is {mode})")
            connection.execute(f"PRAGMA synchronous = {'FULL' if self._full_sync else 'NORMAL'}")
            connection.execute("PRAGMA journal_size_limit = 67108864")
        connection.execute("PRAGMA foreign_keys = 1")  # off, unless one asks; PostgreSQL always has them
        connection.execute("PRAGMA secure_delete = 1")  # what is erased is not left in free pages
        connection.execute(f"PRAGMA busy_timeout = {BUSY_MILLISECONDS}")

    async def stop(self) -> None:
        writing, reading = self._writing, self._reading
        if writing is None or reading is None:
            return
        for connection in tuple(self._open_readers):
            with suppress(sqlite3.ProgrammingError):  # it is closed
                connection.interrupt()  # nobody waits for what it reads any more
        await asyncio.get_running_loop().run_in_executor(
            writing, self._close, reading if reading is not writing else None
        )
        writing.shutdown(wait=False)

    def _close(self, reading: ThreadPoolExecutor | None) -> None:
        if reading is not None:
            reading.shutdown(wait=True, cancel_futures=True)
        try:
            with self._turn(TURN):  # who closes it last checkpoints
                self._disconnect()
        except NotOurTurn:  # another process writes: it will be the last
            self._disconnect()
        if self._turns is not None:
            self._turns.close()
            self._turns = None
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def _disconnect(self) -> None:
        # the writer last: who closes last checkpoints
        for engine in (self._reader, self._writer):
            if engine is not None:
                engine.dispose()
        self._reader = self._writer = self._writing = self._reading = None
        self._open_readers.clear()

    def _turn(self, seconds: float) -> AbstractContextManager[None]:
        return nullcontext() if self._turns is None else self._turns.taken(seconds)

    # -- transactions

    async def write(self, work: Work[T]) -> T:
        return await self._run(self._writing, self._writer, work, TURN)

    async def was_committed(self, token: int) -> bool:
        raise AssertionError("SQLite always knows")

    async def read(self, work: Work[T]) -> T:
        if self.path is None:  # the same connection writes
            work = partial(_only_read, work)
        try:
            return await self._run(self._reading, self._reader, work)
        except DBAPIError as error:
            if _code(error) == READONLY:
                raise RuntimeError(WROTE) from error
            raise

    async def alter(self, work: Work[T]) -> T:
        return await self._run(self._writing, self._writer, work, LONG_TURN)

    async def load(self, template: sqlite3.Connection) -> None:
        """Become a copy of another database."""
        writing, writer = self._writing, self._writer
        if writing is None or writer is None:
            raise RuntimeError("the database is not open for writing")
        await asyncio.get_running_loop().run_in_executor(writing, _copy, template, writer)

    async def _run(
        self,
        executor: ThreadPoolExecutor | None,
        engine: sqlalchemy.Engine | None,
        work: Work[T],
        turn: float | None = None,
    ) -> T:
        if engine is None or executor is None:
            raise RuntimeError("the database is not open, or only for reading")
        transact = partial(_transact, engine, work)
        if turn is not None and self._turns is not None:
            transact = partial(_in_turn, self._turns, turn, transact)
        return await asyncio.get_running_loop().run_in_executor(executor, transact)

    def touch(self, connection: Connection) -> None:
        version = connection.exec_driver_sql("PRAGMA user_version").scalar_one()
        connection.exec_driver_sql(f"PRAGMA user_version = {version}")

    # -- errors

    def transient(self, error: BaseException) -> bool:
        return _code(error) in LOCKS or isinstance(error, NotOurTurn)

    def concerns_all(self, error: BaseException) -> bool:
        if isinstance(error, NotOurTurn):
            return True
        code = _code(error)
        if code is None:  # sqlite3's own, not SQLite's
            return isinstance(error, OperationalError | InternalError)
        return code not in OF_A_STATEMENT


def _transact(engine: sqlalchemy.Engine, work: Work[T]) -> T:
    with engine.begin() as connection:
        return work(connection)


def _in_turn(turns: Turns, seconds: float, transact: Callable[[], T]) -> T:
    with turns.taken(seconds):
        return transact()


def _only_read(work: Work[T], connection: Connection) -> T:
    connection.exec_driver_sql("PRAGMA query_only = 1")
    try:
        return work(connection)
    finally:
        connection.exec_driver_sql("PRAGMA query_only = 0")


def _copy(template: sqlite3.Connection, engine: sqlalchemy.Engine) -> None:
    pooled = engine.raw_connection()
    try:
        inner = pooled.driver_connection
        assert isinstance(inner, sqlite3.Connection)
        template.backup(inner)
    finally:
        pooled.close()


def _code(error: BaseException) -> int | None:
    """SQLite's primary result code."""
    code = getattr(error.orig, "sqlite_errorcode", None) if isinstance(error, DBAPIError) else None
    return None if code is None else code & 0xFF
