"""PostgreSQL, through asyncpg."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from typing import Any, Final, TypeVar

import sqlalchemy
from sqlalchemy import BigInteger, Column, Connection, String, Table, text
from sqlalchemy.exc import DBAPIError

from hubbub.engines.port import WROTE, Unknown, Work
from hubbub.errors import ConfigurationError
from hubbub.tables import metadata

T = TypeVar("T")

CONNECTING: Final = 5.0
"""Seconds for which a connection may be coming."""
ABANDONED: Final = 5.0
"""Seconds after its time when the server ends what nobody waits for any more."""
CLOSING: Final = 1.0
"""Seconds in which the server may say goodbye."""
OLDEST: Final = 14
"""The oldest PostgreSQL that is tested for."""
KEPT_MARKS: Final = 7 * 86_400
"""Seconds after which the mark of a writer that is gone is removed."""

# https://www.postgresql.org/docs/current/errcodes-appendix.html
READ_ONLY: Final = "25006"
TRANSIENT: Final = frozenset(
    {
        READ_ONLY,  # a standby: what was the primary is one now
        "25P03",  # it took us for dead
        "40001",
        "40P01",
        "53300",
        "55P03",
        "57014",  # it took too long
        "57P01",
        "57P02",
        "57P03",
        "57P05",
    }
)
"""SQLSTATEs after which the same transaction may succeed: lost races, a server that goes or comes, a standby."""
LOST_RACES: Final = frozenset({"40001", "40P01", "55P03"})
"""The connection is as good as before."""
OF_ALL: Final = ("08", "25", "40", "53", "55", "57", "58", "F0", "XX")
"""Classes of SQLSTATEs that are about the database, not about one statement."""
DECIDED: Final = ("23", "40")
"""Classes that refuse a commit. After all other errors it may have taken place."""

writers: Final = Table(
    "writers",
    metadata,
    Column("id", String(32), primary_key=True),
    Column("mark", BigInteger, nullable=False),
    Column("at", BigInteger, nullable=False),
)
"""The last transaction of each writer, noted in that transaction; PostgreSQL only.

It is what proves that a transaction was committed, should the connection break meanwhile. (The server's own
``pg_xact_status`` does not: after a crash, the id of a transaction that was lost is given to another one.)
"""

_MARK: Final = text(
    "INSERT INTO writers (id, mark, at) VALUES (:id, :mark, CAST(extract(epoch FROM now()) AS bigint))"
    " ON CONFLICT (id) DO UPDATE SET mark = excluded.mark, at = excluded.at"
)
_ASK: Final = text(
    "INSERT INTO writers (id, mark, at) VALUES (:id, 0, CAST(extract(epoch FROM now()) AS bigint))"
    " ON CONFLICT (id) DO UPDATE SET at = excluded.at RETURNING mark"
)
"""Waits for a transaction of the same writer that is still under way, be its client gone or not."""
_FORGET: Final = text("DELETE FROM writers WHERE at < CAST(extract(epoch FROM now()) AS bigint) - :seconds")
_PATIENCE: Final = text("SELECT set_config('lock_timeout', '0', true), set_config('statement_timeout', '0', true)")


class PostgresEngine:
    """PostgreSQL: one writing connection, a pool of reading ones.

    :param timeout: seconds after which a transaction that is not done is given up, and its connection with it: a server
        that is paused, or cut off, never says so.
    """

    name = "postgresql"
    exclusive = False

    def __init__(self, url: sqlalchemy.URL, *, readers: int, timeout: float) -> None:
        self._url = url.set(drivername="postgresql")
        self.where = self._url.render_as_string(hide_password=True)
        self._readers = readers
        self._timeout = timeout
        self._writer: Any = None
        self._reader: Any = None
        self._open: set[Any] = set()
        self._id = secrets.token_hex(16)
        self._mark = 0

    # -- opening and closing

    async def start(self) -> None:
        try:
            import asyncpg  # noqa: F401
        except ImportError:
            raise ConfigurationError(
                "PostgreSQL needs asyncpg: pip install 'hubbub[postgres]' (or unset HUBBUB_DATABASE_URL)"
            ) from None
        self._writer = self._make(2, "READ COMMITTED", read_only=False)
        self._reader = self._make(self._readers, "REPEATABLE READ", read_only=True)
        try:
            version, encoding = await self.read(_introduce)
        except Exception as error:
            await self.stop()
            said = str(getattr(error, "orig", None) or error).splitlines() or [type(error).__name__]
            raise ConfigurationError(f"cannot use the database {self.where}: {said[0][:200]}") from None
        if version < OLDEST or encoding != "UTF8":
            await self.stop()
            has = f"PostgreSQL {version} with encoding {encoding}"
            raise ConfigurationError(f"the database {self.where} is {has}: Hubbub needs {OLDEST} or later, and UTF8")

    def _make(self, size: int, isolation: str, *, read_only: bool) -> Any:
        from sqlalchemy.ext.asyncio import create_async_engine

        return create_async_engine(
            "postgresql+asyncpg://",
            async_creator=partial(self._connect, read_only),
            pool_size=size,
            max_overflow=0,
            pool_timeout=self._timeout,
            hide_parameters=True,  # what people say is not for logs
            isolation_level=isolation,
        )

    async def _connect(self, read_only: bool, *_: Any, **__: Any) -> Any:
        import asyncpg

        # later than we give up ourselves: it frees what somebody holds who is gone. (It also ends a commit's wait for a
        # standby, and that commit then counts as done.)
        abandoned = str(int((self._timeout + ABANDONED) * 1000))
        settings = {
            "application_name": "hubbub",
            "jit": "off",
            "default_transaction_read_only": "on" if read_only else "off",
            "lock_timeout": str(int(self._timeout * 500)),
            "statement_timeout": abandoned,
            "idle_in_transaction_session_timeout": abandoned,
        }
        # asyncpg reads the URL, so that it may say all that libpq's may: sslmode, several hosts, a socket
        url = self._url.render_as_string(hide_password=False)
        connection = await asyncpg.connect(url, timeout=min(CONNECTING, self._timeout), server_settings=settings)
        self._open.add(connection)
        connection.add_termination_listener(self._open.discard)
        return connection

    async def stop(self) -> None:
        alarm = asyncio.get_running_loop().call_later(CLOSING, self._break_off)
        try:
            for engine in (self._reader, self._writer):
                if engine is not None:
                    await engine.dispose()
        finally:
            alarm.cancel()
            self._break_off()
            self._reader = self._writer = None

    def _break_off(self) -> None:
        for connection in tuple(self._open):
            connection.terminate()

    @asynccontextmanager
    async def _lent(self, engine: Any, timeout: float) -> AsyncIterator[Any]:
        """A connection that is broken off if it is not given back in time: then whatever is waited for on it fails."""
        if engine is None:
            raise RuntimeError("the database is not open")
        alarm: asyncio.TimerHandle | None = None
        try:
            async with engine.connect() as connection:
                driver = (await connection.get_raw_connection()).driver_connection
                alarm = asyncio.get_running_loop().call_later(timeout, driver.terminate)
                try:
                    yield connection
                except BaseException as error:
                    if self._spoilt(error):
                        driver.terminate()
                        await connection.invalidate()
                    raise
        finally:
            if alarm is not None:
                alarm.cancel()  # not before the connection was given back: even that may take for ever

    # -- transactions

    async def write(self, work: Work[T]) -> T:
        self._mark += 1
        mark = self._mark
        async with self._lent(self._writer, self._timeout) as connection:
            transaction = await connection.begin()
            result: T = await connection.run_sync(self._marked, work, mark)
            try:
                await transaction.commit()
            except Exception as error:
                if (_state(error) or "?").startswith(DECIDED):
                    raise
                raise Unknown(mark) from error
            return result

    def _marked(self, connection: Connection, work: Work[T], mark: int) -> T:
        result = work(connection)
        connection.execute(_MARK, {"id": self._id, "mark": mark})
        if mark == 1:
            connection.execute(_FORGET, {"seconds": KEPT_MARKS})
        return result

    async def was_committed(self, token: int) -> bool:
        async with self._lent(self._writer, self._timeout) as connection, connection.begin():
            mark: int = (await connection.execute(_ASK, {"id": self._id})).scalar_one()
            return mark == token

    async def read(self, work: Work[T]) -> T:
        try:
            async with self._lent(self._reader, self._timeout) as connection, connection.begin():
                result: T = await connection.run_sync(work)
                return result
        except DBAPIError as error:
            if _state(error) == READ_ONLY:
                raise RuntimeError(WROTE) from error
            raise

    async def alter(self, work: Work[T]) -> T:
        async with self._writer.begin() as connection:
            await connection.execute(_PATIENCE)
            result: T = await connection.run_sync(work)
            return result

    def touch(self, connection: Connection) -> None:
        """The mark that each transaction leaves is enough."""

    # -- errors

    def transient(self, error: BaseException) -> bool:
        return _disconnected(error) or _state(error) in TRANSIENT or _outdated(error)

    def concerns_all(self, error: BaseException) -> bool:
        state = _state(error)
        return self.transient(error) or (state is not None and state.startswith(OF_ALL))

    def _spoilt(self, error: BaseException) -> bool:
        """Whether a connection is better not used again."""
        if isinstance(error, Unknown) or not isinstance(error, Exception):
            return True
        return self.concerns_all(error) and _state(error) not in LOST_RACES


def _introduce(connection: Connection) -> tuple[int, str]:
    row = connection.execute(
        text("SELECT CAST(current_setting('server_version_num') AS int) / 10000, current_setting('server_encoding')")
    ).one()
    return row[0], row[1]


def _state(error: BaseException) -> str | None:
    """The SQLSTATE of an error of SQLAlchemy's or of asyncpg's."""
    state = getattr(getattr(error, "orig", None) or error, "sqlstate", None)
    return state if isinstance(state, str) else None


def _disconnected(error: BaseException) -> bool:
    if isinstance(error, OSError | TimeoutError):
        return True
    if isinstance(error, DBAPIError):
        cause = error.orig.__cause__ if error.orig is not None else None
        if error.connection_invalidated or isinstance(cause, OSError | TimeoutError):
            return True
    state = _state(error)
    return state is not None and state.startswith("08")


def _outdated(error: BaseException) -> bool:
    """A statement was prepared before the schema changed; SQLAlchemy has dropped it by now."""
    return isinstance(error, DBAPIError) and "cached statement plan is invalid" in str(error.orig)
