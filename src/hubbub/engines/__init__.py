"""What runs transactions: SQLite in a file or in memory, and PostgreSQL.

Work is a plain function of a SQLAlchemy connection, so that the same code runs on both. On SQLite it runs in a thread: no
statement costs a hop. On PostgreSQL it runs in the loop, over asyncpg.
"""

from __future__ import annotations

from pathlib import Path

import sqlalchemy

from hubbub.engines.port import Engine, Unknown, Work
from hubbub.engines.postgres import PostgresEngine
from hubbub.engines.sqlite import SqliteEngine
from hubbub.errors import ConfigurationError

__all__ = ["Engine", "PostgresEngine", "SqliteEngine", "Unknown", "Work", "engine_for"]


def engine_for(url: str, *, readers: int, full_sync: bool, read_only: bool = False, timeout: float = 10.0) -> Engine:
    """The engine that a URL names: ``sqlite:///path``, ``sqlite://`` (in memory), ``postgresql://…``.

    ``sqlite:///path?shared=1``: processes of one machine share the file, each opening it with this.

    :param readers: connections for reading.
    :param full_sync: SQLite: every commit is on the disk before it is answered.
    :param read_only: SQLite: open it beside the process that writes to it.
    :param timeout: PostgreSQL: seconds after which a transaction that is not done is given up.
    :raises ConfigurationError: no such kind of database.
    """
    try:
        parsed = sqlalchemy.make_url(url)
    except sqlalchemy.exc.ArgumentError:
        raise ConfigurationError("HUBBUB_DATABASE_URL: this is no URL: sqlite:///path or postgresql://…") from None
    kind = parsed.get_backend_name()
    if kind == "sqlite":
        path = Path(parsed.database) if parsed.database and parsed.database != ":memory:" else None
        shared = not read_only and parsed.query.get("shared") == "1"
        return SqliteEngine(path, readers=readers, full_sync=full_sync, read_only=read_only, shared=shared)
    if kind in ("postgresql", "postgres"):
        return PostgresEngine(parsed, readers=readers, timeout=timeout)
    raise ConfigurationError(f"HUBBUB_DATABASE_URL: {kind} is not supported: use sqlite:///path or postgresql://…")
