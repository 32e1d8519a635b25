"""The schema of the store: which revision a database has, and how it gets to the one that this program wants.

An embedded database (a SQLite file) is brought up to date when it is opened. A PostgreSQL belongs to its operator, and
several nodes may use it: only ``hubbub migrate`` changes it. A database in memory is a copy of one made before.
"""

from __future__ import annotations

import atexit
import logging
import sqlite3
from pathlib import Path
from threading import Lock
from typing import Final
from weakref import WeakKeyDictionary

import sqlalchemy
from sqlalchemy import Connection, MetaData, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.pool import StaticPool

from hubbub.engines import Engine, SqliteEngine
from hubbub.errors import ConfigurationError
from hubbub.tables import identities

log = logging.getLogger("hubbub")

REVISIONS: Final[tuple[str, ...]] = ("0001", "0002")
"""All revisions, in order. Each is a file in ``migrations/versions``."""
HEAD: Final = REVISIONS[-1]
"""The one that this program wants."""
OURS: Final = frozenset({"rooms", "members", "messages"})
"""Tables by which a database of Hubbub is known."""
MIGRATIONS: Final = Path(__file__).parent / "migrations"
MIGRATING: Final = 0x6875_6262_7562
"""The advisory lock of whoever migrates a PostgreSQL."""
_STAMP: Final = "CREATE TABLE alembic_version (version_num VARCHAR(32) NOT NULL PRIMARY KEY)"


def current(connection: Connection) -> str | None:
    """The revision of a database; None: it has none."""
    if not sqlalchemy.inspect(connection).has_table("alembic_version"):
        return None
    revision: str | None = connection.execute(text("SELECT version_num FROM alembic_version")).scalar()
    return revision


def identity(connection: Connection) -> str:
    """The id that a database was given when it was made; "": it is in memory."""
    return connection.execute(sqlalchemy.select(identities.c.id)).scalar() or ""


async def prepare(engine: Engine, metadata: MetaData, *, migrate: bool) -> None:
    """See to it that a database has the schema that this program wants, before anything else uses it.

    :param metadata: what a database in memory is made of.
    :param migrate: bring a SQLite file up to date. A PostgreSQL is never changed here.
    :raises ConfigurationError: it has another schema, or is not ours; says what to do.
    """
    if isinstance(engine, SqliteEngine) and engine.path is None:
        await engine.load(_template(metadata))
        return
    revision = await _ask(engine)
    if revision == HEAD:
        return
    if engine.name != "sqlite" or not migrate:
        has = f"it is at {revision}" if revision is not None else "it is empty"
        raise ConfigurationError(
            f"the database {engine.where} needs `hubbub migrate` ({has}, this program wants {HEAD})"
        )
    await _step_up(engine)


async def migrate(engine: Engine) -> list[str]:
    """Bring a database to :data:`HEAD`, each revision in a transaction of its own. Several may do so at the same time.

    :returns: the revisions that this call went to.
    :raises ConfigurationError: it is not ours, or newer than this program; or a revision failed, and changed nothing.
    """
    await _ask(engine)
    return await _step_up(engine)


async def _ask(engine: Engine) -> str | None:
    try:
        return await engine.read(lambda connection: _checked(connection, engine.where))
    except (DBAPIError, OSError) as error:
        reason = getattr(error, "orig", None) or error
        raise ConfigurationError(f"cannot read the database {engine.where}: {reason}; restore a backup") from None


def _checked(connection: Connection, where: str) -> str | None:
    """The revision of a database that this program can use, or bring up to date; None: it is empty.

    :raises ConfigurationError: it is none of these.
    """
    revision = current(connection)
    if revision in REVISIONS:
        return revision
    ours = OURS & set(sqlalchemy.inspect(connection).get_table_names())
    if revision is not None and not ours:
        raise ConfigurationError(
            f"the database {where} belongs to another program (its alembic_version is {revision}): "
            "give Hubbub one of its own"
        )
    if revision is not None:
        raise ConfigurationError(
            f"the database {where} was made by a newer Hubbub (revision {revision}, this one knows up to {HEAD}): "
            "install that one, or restore a backup"
        )
    if ours:
        raise ConfigurationError(
            f"the database {where} has tables ({', '.join(sorted(ours))}) but does not say of which revision "
            "(no alembic_version): restore a backup, or give Hubbub a database of its own"
        )
    return None


async def _step_up(engine: Engine) -> list[str]:
    done: list[str] = []
    while True:
        try:
            revision = await engine.alter(lambda connection: _step(connection, engine.where))
        except (DBAPIError, OSError) as error:
            reason = getattr(error, "orig", None) or error
            raise ConfigurationError(
                f"the database {engine.where} could not be migrated: {reason}; it is as it was after "
                f"{done[-1] if done else 'its last revision'}"
            ) from error
        if revision is None:
            return done
        log.info("the database went to revision %s", revision, extra={"database": engine.where})
        done.append(revision)


def _step(connection: Connection, where: str) -> str | None:
    """Go to the next revision; None: there is none. Only one process at a time gets past the first line."""
    if connection.dialect.name == "postgresql":
        connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": MIGRATING})
    revision = _checked(connection, where)
    if revision == HEAD:
        return None
    following = REVISIONS[0] if revision is None else REVISIONS[REVISIONS.index(revision) + 1]
    upgrade(connection, following)
    return following


def upgrade(connection: Connection, revision: str) -> None:
    """Run the migrations up to a revision in the transaction of the connection."""
    # a quarter of a second to import, and most starts have nothing to migrate
    from alembic.operations import Operations
    from alembic.runtime.migration import MigrationContext
    from alembic.script import ScriptDirectory

    scripts = ScriptDirectory(MIGRATIONS)
    steps = {"fn": lambda now, _: scripts._upgrade_revs(revision, now), "transactional_ddl": False}
    context = MigrationContext.configure(connection, opts=steps)
    with Operations.context(context):
        context.run_migrations()


# -- in memory

_templates: Final[WeakKeyDictionary[MetaData, tuple[int, sqlite3.Connection]]] = WeakKeyDictionary()
_making: Final = Lock()


def _template(metadata: MetaData) -> sqlite3.Connection:
    """A database in memory with all tables, made once: copying it takes a thirtieth of the time of making one."""
    with _making:
        size, template = _templates.get(metadata, (0, None))
        if template is None or size != len(metadata.tables):
            template = _made(metadata)
            _templates[metadata] = len(metadata.tables), template
        return template


def _made(metadata: MetaData) -> sqlite3.Connection:
    connection = sqlite3.connect(":memory:", isolation_level=None, check_same_thread=False)
    atexit.register(connection.close)
    engine = sqlalchemy.create_engine("sqlite://", creator=lambda: connection, poolclass=StaticPool)
    with engine.begin() as within:
        metadata.create_all(within)
        within.exec_driver_sql(_STAMP)
        within.execute(text("INSERT INTO alembic_version VALUES (:head)"), {"head": HEAD})
    return connection
