"""The two databases behind the store, each with one way to write and one to read.

Work is a plain function over a SQLAlchemy connection, so that the same code runs on both. On SQLite it runs in a
thread: no statement costs a hop. On PostgreSQL it runs in the loop, over asyncpg.
"""

from __future__ import annotations

import asyncio
import os
import sqlite3
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import IO, Any, Final, Protocol, TypeVar

import sqlalchemy
from sqlalchemy import Connection, event, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.pool import QueuePool, StaticPool

from hubbub.errors import ConfigurationError

T = TypeVar("T")
Work = Callable[[Connection], T]

BUSY_MILLISECONDS: Final = 200
"""How long one attempt waits for another process's lock; the store tries again until its own time is up."""
CACHE_KIB: Final = 16_384
"""Pages that a connection to SQLite keeps."""
TRANSIENT_STATES: Final = frozenset(
    {
        "40001",
        "40P01",
        "53300",
        "55P03",
        "57P01",
        "57P02",
        "57P03",
        "08000",
        "08001",
        "08003",
        "08004",
        "08006",
        "25006",
    }
)
"""SQLSTATEs after which the same transaction may succeed: lost races, a server that goes or comes, a standby."""


class Unknown(Exception):
    """The connection broke while a transaction was being committed. :attr:`token` finds out whether it was."""

    def __init__(self, token: str) -> None:
        super().__init__(token)
        self.token = token


class Engine(Protocol):
    """One database.

    :ivar exclusive: nobody else writes to it while it is open.
    """

    name: str
    exclusive: bool

    async def start(self) -> None:
        """Open it.

        :raises ConfigurationError: it cannot be used; says what to do.
        """
        ...

    async def stop(self) -> None:
        """Close it. Nothing may be under way."""
        ...

    async def write(self, work: Work[T]) -> T:
        """Run work in one transaction, and commit it. One at a time.

        :raises Unknown: nobody knows whether it was committed; ask :meth:`was_committed`.
        """
        ...

    async def was_committed(self, token: str) -> bool:
        """What became of a transaction whose commit was :class:`Unknown`."""
        ...

    async def read(self, work: Work[T]) -> T:
        """Run work that only reads, all of it on one state of the database."""
        ...

    def transient(self, error: BaseException) -> bool:
        """Whether the same transaction may succeed a little later."""
        ...


def engine_for(url: str, *, readers: int, full_sync: bool, read_only: bool = False) -> Engine:
    """The engine that a URL names: ``sqlite:///path``, ``sqlite://`` (in memory), ``postgresql://…``.

    :raises ConfigurationError: no such kind of database, or what it needs is not installed.
    """
    try:
        parsed = sqlalchemy.make_url(url)
    except sqlalchemy.exc.ArgumentError:
        raise ConfigurationError("HUBBUB_DATABASE_URL: this is no URL: sqlite:///path or postgresql://…") from None
    kind = parsed.get_backend_name()
    if kind == "sqlite":
        path = Path(parsed.database) if parsed.database and parsed.database != ":memory:" else None
        return SqliteEngine(path, readers=readers, full_sync=full_sync, read_only=read_only)
    if kind in ("postgresql", "postgres"):
        return PostgresEngine(parsed, readers=readers)
    raise ConfigurationError(f"HUBBUB_DATABASE_URL: {kind} is not supported: use sqlite:///path or postgresql://…")


class SqliteEngine:
    """SQLite in WAL mode: one writing connection, some reading ones, each in a thread of its own.

    SQLite 3.7.0 to 3.51.2 may corrupt a database when two connections write or checkpoint at the same time ("WAL-reset
    bug", sqlite.org/wal.html). So there is one writer: within the process one connection, and over all processes whoever
    holds the lock on ``<database>.lock``. Reading connections never checkpoint.

    :param path: None: in memory, for tests and for trying out.
    :param full_sync: every commit is on the disk before it is answered; else a power cut may take the last ones back
        (a crash of the process may not, either way).
    """

    name = "sqlite"
    exclusive = True

    def __init__(self, path: Path | None, *, readers: int, full_sync: bool, read_only: bool = False) -> None:
        self.path = path
        self._full_sync = full_sync
        self._read_only = read_only
        self._lock: IO[str] | None = None
        self._writing = ThreadPoolExecutor(1, "hubbub-write")
        self._reading = ThreadPoolExecutor(readers, "hubbub-read") if path is not None else self._writing
        self._writer: sqlalchemy.Engine | None = None
        self._reader: sqlalchemy.Engine | None = None

    async def start(self) -> None:
        loop = asyncio.get_running_loop()
        await loop.run_in_executor(self._writing, self._open)

    def _open(self) -> None:
        if self.path is None:
            self._writer = self._reader = self._make(":memory:", "BEGIN", StaticPool)
            return
        try:
            if not self._read_only:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                self._lock = _locked(self.path)
                self._writer = self._make(str(self.path), "BEGIN IMMEDIATE", QueuePool, pool_size=1, max_overflow=0)
                with self._writer.connect() as connection:
                    connection.exec_driver_sql("SELECT 1 FROM sqlite_master").all()
            elif not self.path.exists():
                raise ConfigurationError(f"there is no database {self.path}")
        except (OSError, DBAPIError) as error:
            self._close()
            reason = error.orig if isinstance(error, DBAPIError) else error
            raise ConfigurationError(
                f"cannot use the database {self.path}: {reason}; set HUBBUB_DATA_DIR or HUBBUB_DATABASE_URL"
            ) from None
        except ConfigurationError:
            self._close()
            raise
        self._reader = self._make(
            str(self.path), "BEGIN", QueuePool, query_only=True, pool_size=self._reading._max_workers, max_overflow=0
        )

    def _make(
        self, database: str, begin: str, pool: type[sqlalchemy.Pool], *, query_only: bool = False, **options: Any
    ) -> sqlalchemy.Engine:
        def connect() -> sqlite3.Connection:
            uri = f"file:{_quoted(database)}?mode=ro" if query_only and self._read_only else database
            connection = sqlite3.connect(
                uri,
                uri=uri != database,
                timeout=BUSY_MILLISECONDS / 1000,
                isolation_level=None,
                check_same_thread=False,
                cached_statements=256,
            )
            connection.execute(f"PRAGMA cache_size = -{CACHE_KIB}")
            if query_only:
                connection.execute("PRAGMA query_only = 1")
            elif database != ":memory:":
                connection.execute("PRAGMA journal_mode = WAL")
                connection.execute(f"PRAGMA synchronous = {'FULL' if self._full_sync else 'NORMAL'}")
                connection.execute("PRAGMA journal_size_limit = 67108864")
            connection.execute("PRAGMA secure_delete = 1")  # what is erased is not left in free pages
            return connection

        engine = sqlalchemy.create_engine("sqlite://", creator=connect, poolclass=pool, **options)
        # sqlite3's own idea of when a transaction begins is not ours (isolation_level=None)
        event.listen(engine, "begin", lambda connection: connection.exec_driver_sql(begin))
        return engine

    async def stop(self) -> None:
        loop = asyncio.get_running_loop()
        await loop.run_in_executor(self._writing, self._close)
        for executor in {self._writing, self._reading}:
            executor.shutdown(wait=False)

    def _close(self) -> None:
        # the writer last: who closes last checkpoints
        for engine in (self._reader, self._writer):
            if engine is not None:
                engine.dispose()
        self._reader = self._writer = None
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    async def write(self, work: Work[T]) -> T:
        return await self._run(self._writing, self._writer, work)

    async def was_committed(self, token: str) -> bool:
        raise AssertionError("SQLite always knows")

    async def read(self, work: Work[T]) -> T:
        return await self._run(self._reading, self._reader, work)

    async def _run(self, executor: ThreadPoolExecutor, engine: sqlalchemy.Engine | None, work: Work[T]) -> T:
        if engine is None:
            raise RuntimeError("the store is not running, or was opened for reading only")
        return await asyncio.get_running_loop().run_in_executor(executor, partial(_transact, engine, work))

    def transient(self, error: BaseException) -> bool:
        return isinstance(error, DBAPIError) and any(
            said in str(error.orig) for said in ("database is locked", "database table is locked", "database is busy")
        )


def _transact(engine: sqlalchemy.Engine, work: Work[T]) -> T:
    with engine.begin() as connection:
        return work(connection)


def _quoted(path: str) -> str:
    from urllib.parse import quote

    return quote(os.path.abspath(path))


def _locked(path: Path) -> IO[str]:
    """Hold the lock that only one process has.

    :raises ConfigurationError: another has it.
    """
    lock = open(f"{path}.lock", "a+")  # noqa: SIM115  # held as long as the store is open
    try:
        import fcntl
    except ImportError:  # Windows: opening the database by two processes is then the operator's own affair
        return lock
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        lock.seek(0)
        holder = lock.read().strip()
        lock.close()
        raise ConfigurationError(
            f"another process{f' ({holder})' if holder else ''} writes to {path}: SQLite takes one at a time; "
            "stop it, or use PostgreSQL (HUBBUB_DATABASE_URL)"
        ) from None
    lock.truncate(0)
    lock.write(f"pid {os.getpid()}")
    lock.flush()
    return lock


class PostgresEngine:
    """PostgreSQL through asyncpg: one writing connection, a pool of reading ones."""

    name = "postgresql"
    exclusive = False

    def __init__(self, url: sqlalchemy.URL, *, readers: int) -> None:
        self._url = url.set(drivername="postgresql+asyncpg")
        self._readers = readers
        self._writer: Any = None
        self._reader: Any = None

    async def start(self) -> None:
        try:
            import asyncpg  # noqa: F401
        except ImportError:
            raise ConfigurationError(
                "PostgreSQL needs asyncpg: pip install 'hubbub[postgres]' (or unset HUBBUB_DATABASE_URL)"
            ) from None
        from sqlalchemy.ext.asyncio import create_async_engine

        common: dict[str, Any] = {"pool_pre_ping": False, "pool_timeout": 5.0}
        arguments = {"timeout": 5.0, "server_settings": {"application_name": "hubbub", "jit": "off"}}
        self._writer = create_async_engine(
            self._url, pool_size=1, max_overflow=1, connect_args=arguments, isolation_level="READ COMMITTED", **common
        )
        self._reader = create_async_engine(
            self._url,
            pool_size=self._readers,
            max_overflow=0,
            connect_args=arguments,
            isolation_level="REPEATABLE READ",
            **common,
        )
        try:
            await self.read(lambda connection: connection.execute(text("SELECT 1")).all())
        except Exception as error:
            await self.stop()
            said = str(getattr(error, "orig", None) or error).splitlines()[0][:200]
            where = self._url.render_as_string(hide_password=True).replace("+asyncpg", "")
            raise ConfigurationError(f"cannot use the database {where}: {said}") from None

    async def stop(self) -> None:
        for engine in (self._reader, self._writer):
            if engine is not None:
                await engine.dispose()
        self._reader = self._writer = None

    async def write(self, work: Work[T]) -> T:
        async with self._writer.connect() as connection:
            transaction = await connection.begin()
            try:
                result: T = await connection.run_sync(work)
                token = str((await connection.execute(_XID)).scalar_one())
            except BaseException:
                await _quietly(transaction.rollback())
                raise
            try:
                await transaction.commit()
            except BaseException as error:
                if isinstance(error, asyncio.CancelledError) or _disconnected(error):
                    await _quietly(connection.invalidate())
                    raise Unknown(token) from error
                raise
            return result

    async def was_committed(self, token: str) -> bool:
        async with self._writer.connect() as connection:
            status = (await connection.execute(_STATUS, {"xid": token})).scalar_one_or_none()
            if status == "in progress":
                raise _StillRunning
            return bool(status == "committed")

    async def read(self, work: Work[T]) -> T:
        for attempt in (1, 2):
            try:
                async with self._reader.begin() as connection:
                    result: T = await connection.run_sync(work)
                    return result
            except Exception as error:
                if attempt == 2 or not _disconnected(error):
                    raise
        raise AssertionError

    def transient(self, error: BaseException) -> bool:
        state = getattr(getattr(error, "orig", None), "sqlstate", None) or getattr(error, "sqlstate", None)
        return isinstance(error, _StillRunning) or state in TRANSIENT_STATES or _disconnected(error)


_XID: Final = text("SELECT pg_current_xact_id()::text")
_STATUS: Final = text("SELECT pg_xact_status(CAST(:xid AS text)::xid8)")


class _StillRunning(Exception):
    """The server has not noticed yet that the client of a transaction is gone."""


def _disconnected(error: BaseException) -> bool:
    if isinstance(error, DBAPIError):
        inner = error.orig.__cause__ if error.orig is not None else None
        return error.connection_invalidated or isinstance(inner, OSError) or _disconnected_state(error.orig)
    return isinstance(error, OSError | TimeoutError) or _disconnected_state(error)


def _disconnected_state(error: BaseException | None) -> bool:
    state = getattr(error, "sqlstate", None)
    return isinstance(state, str) and (state.startswith("08") or state in ("57P01", "57P02", "57P03"))


async def _quietly(work: Any) -> None:
    """Undo something on a connection that may be gone already; then there is nothing to undo."""
    try:
        await work
    except (DBAPIError, OSError, sqlalchemy.exc.InvalidRequestError):
        return
