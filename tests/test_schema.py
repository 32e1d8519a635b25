"""The schema of the store: migrated it is what the code declares, and a database that does not fit is refused."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Column, Connection, Integer, MetaData, Table, inspect, text

import hubbub.features.chat.tables  # noqa: F401  # they are what is compared
from hubbub import schema
from hubbub.engines import Engine, engine_for
from hubbub.errors import ConfigurationError
from hubbub.tables import metadata
from tests.databases import WITHIN, fresh_database

pytestmark = pytest.mark.anyio


@asynccontextmanager
async def opened(url: str) -> AsyncIterator[Engine]:
    engine = engine_for(url, readers=2, full_sync=True, timeout=WITHIN)
    await engine.start()
    try:
        yield engine
    finally:
        await engine.stop()


async def ready(engine: Engine) -> None:
    """As `hubbub migrate` and then `hubbub serve` do."""
    await schema.migrate(engine)
    await schema.prepare(engine, metadata, migrate=False)


def run(*statements: str) -> Any:
    """Work that runs statements."""

    def work(connection: Connection) -> None:
        for statement in statements:
            connection.execute(text(statement))

    return work


def table_names(connection: Connection) -> set[str]:
    return set(inspect(connection).get_table_names())


# -- migrated is as declared


def differences(connection: Connection) -> list[Any]:
    """What Alembic would have to add or change; of what is only in the database it knows nothing."""
    options = {
        "compare_type": True,
        "compare_server_default": connection.dialect.name != "sqlite",  # it takes '' for another than ''
        "include_object": lambda thing, name, kind, reflected, other: not (reflected and not other),
    }
    found: list[Any] = compare_metadata(MigrationContext.configure(connection, opts=options), metadata)
    return found


POSTGRES = {
    "columns": "SELECT table_name, column_name, data_type, character_maximum_length, is_nullable, column_default,"
    " is_identity, is_generated, generation_expression, collation_name FROM information_schema.columns"
    " WHERE table_schema = 'public'",
    "indexes": "SELECT tablename, indexname, indexdef FROM pg_indexes WHERE schemaname = 'public'",
    "constraints": "SELECT conrelid::regclass::text, conname, pg_get_constraintdef(oid) FROM pg_constraint"
    " WHERE connamespace = 'public'::regnamespace",
    "triggers": "SELECT tgrelid::regclass::text, tgname, pg_get_triggerdef(oid) FROM pg_trigger WHERE NOT tgisinternal",
    "functions": "SELECT proname, pg_get_functiondef(oid) FROM pg_proc WHERE pronamespace = 'public'::regnamespace",
    "sequences": "SELECT sequencename, data_type, start_value FROM pg_sequences WHERE schemaname = 'public'",
    "extensions": "SELECT extname FROM pg_extension",
    "views": "SELECT viewname, definition FROM pg_views WHERE schemaname = 'public'",
}
SQLITE = {"everything": "SELECT type, tbl_name, name, sql FROM sqlite_master"}


def described(connection: Connection) -> set[str]:
    """Everything that a database says of its own schema, but for Alembic's table; and what is in its tables, but for its id."""
    queries = dict(SQLITE if connection.dialect.name == "sqlite" else POSTGRES)
    readable = {
        name for name in table_names(connection) if not name.startswith(("alembic", "message_search", "identity"))
    }
    queries |= {f"rows of {name}": f"SELECT * FROM {name}" for name in readable}
    rows = [(what, *row) for what, query in queries.items() for row in connection.execute(text(query))]
    return {repr(row) for row in rows if "alembic_version" not in row}


def assert_same(migrated: set[str], declared: set[str]) -> None:
    extra, missing = sorted(migrated - declared), sorted(declared - migrated)
    assert migrated == declared, "\n".join(["only migrated:", *extra, "only declared:", *missing])


async def test_a_migrated_database_is_what_the_code_declares(database_url: str) -> None:
    async with opened(database_url) as engine:
        await ready(engine)
        found = await engine.read(differences)
    assert found == [], f"the last migration lacks this:\n{chr(10).join(map(str, found))}"


async def test_a_migrated_sqlite_is_the_very_one_that_is_made_in_memory(sqlite_url: str) -> None:
    async with opened(sqlite_url) as file, opened("sqlite://") as memory:
        await ready(file)
        await schema.prepare(memory, metadata, migrate=True)
        migrated, made = await file.read(described), await memory.read(described)
    assert len(made) > 30
    assert_same(migrated, made)


async def test_a_migrated_postgres_is_the_very_one_that_is_declared(postgres_server: str) -> None:
    with fresh_database(postgres_server) as one, fresh_database(postgres_server) as other:
        async with opened(one) as migrated, opened(other) as made:
            await ready(migrated)
            await made.alter(metadata.create_all)
            found, expected = await migrated.read(described), await made.read(described)
    assert len(expected) > 150
    assert_same(found, expected)


def test_the_known_revisions_are_the_files_one_after_the_other() -> None:
    files = list(ScriptDirectory(schema.MIGRATIONS).walk_revisions())[::-1]
    assert tuple(file.revision for file in files) == schema.REVISIONS
    assert [file.down_revision for file in files] == [None, *schema.REVISIONS[:-1]]


def test_there_is_no_way_back_and_it_says_so() -> None:
    for file in ScriptDirectory(schema.MIGRATIONS).walk_revisions():
        with pytest.raises(NotImplementedError, match="restore a backup"):
            file.module.downgrade()


# -- coming up to date


async def test_an_empty_file_is_brought_up_to_date_when_it_is_opened(sqlite_url: str) -> None:
    async with opened(sqlite_url) as engine:
        await schema.prepare(engine, metadata, migrate=True)
        assert await engine.read(schema.current) == schema.HEAD
        await engine.write(run("INSERT INTO last_seen VALUES ('ada', 1)"))
    async with opened(sqlite_url) as engine:
        await schema.prepare(engine, metadata, migrate=True)
        assert await schema.migrate(engine) == []
        assert await engine.read(lambda c: c.execute(text("SELECT user_id FROM last_seen")).scalars().all()) == ["ada"]


async def test_migrating_says_what_it_did(database_url: str) -> None:
    async with opened(database_url) as engine:
        assert await engine.read(schema.current) is None
        assert await schema.migrate(engine) == list(schema.REVISIONS)
        assert await engine.read(schema.current) == schema.HEAD
        assert await schema.migrate(engine) == []
        await schema.prepare(engine, metadata, migrate=False)


async def test_an_empty_database_of_others_is_left_alone(database_url: str) -> None:
    async with opened(database_url) as engine:
        with pytest.raises(
            ConfigurationError, match=rf"needs `hubbub migrate` \(it is empty, this program wants {schema.HEAD}\)"
        ):
            await schema.prepare(engine, metadata, migrate=engine.name == "postgresql")
        assert await engine.read(table_names) == set()


async def test_an_older_database_of_others_is_left_alone(database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    async with opened(database_url) as engine:
        await ready(engine)
        monkeypatch.setattr(schema, "REVISIONS", (*schema.REVISIONS, "9999"))
        monkeypatch.setattr(schema, "HEAD", "9999")
        with pytest.raises(
            ConfigurationError, match=r"needs `hubbub migrate` \(it is at \d+, this program wants 9999\)"
        ):
            await schema.prepare(engine, metadata, migrate=engine.name == "postgresql")


async def test_two_who_migrate_at_once_do_it_once(postgres_url: str) -> None:
    waiting = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"
    other = await asyncpg.connect(postgres_url, timeout=WITHIN)
    await other.execute("SELECT pg_advisory_lock($1)", schema.MIGRATING)
    async with asyncio.timeout(WITHIN), opened(postgres_url) as first, opened(postgres_url) as second:
        begun = [asyncio.create_task(schema.migrate(engine)) for engine in (first, second)]
        while await other.fetchval(waiting) < 2:
            assert not any(task.done() for task in begun)
        await other.close()
        assert sorted(await begun[0] + await begun[1]) == list(schema.REVISIONS)


async def test_a_migration_that_fails_changes_nothing(database_url: str) -> None:
    async with opened(database_url) as engine:
        await engine.alter(run("CREATE TABLE threads (other int)"))
        with pytest.raises(ConfigurationError, match=r"could not be migrated.*threads.*already exists"):
            await schema.migrate(engine)
        assert await engine.read(table_names) == {"threads"}
        await engine.alter(run("DROP TABLE threads"))
        assert await schema.migrate(engine) == list(schema.REVISIONS)


# -- databases that do not fit


async def test_a_newer_database_is_refused(database_url: str) -> None:
    async with opened(database_url) as engine:
        await ready(engine)
        await engine.write(run("UPDATE alembic_version SET version_num = '9999'"))
        expected = rf"made by a newer Hubbub \(revision 9999, this one knows up to {schema.HEAD}\): install that one, or restore"
        with pytest.raises(ConfigurationError, match=expected):
            await schema.prepare(engine, metadata, migrate=True)
        with pytest.raises(ConfigurationError, match=expected):
            await schema.migrate(engine)


async def test_the_database_of_another_program_is_refused(database_url: str) -> None:
    async with opened(database_url) as engine:
        await engine.alter(
            run("CREATE TABLE alembic_version (version_num varchar(32))", "INSERT INTO alembic_version VALUES ('f00d')")
        )
        with pytest.raises(ConfigurationError, match=r"belongs to another program \(its alembic_version is f00d\)"):
            await schema.prepare(engine, metadata, migrate=True)


async def test_tables_of_nobody_knows_which_revision_are_refused(database_url: str) -> None:
    async with opened(database_url) as engine:
        await engine.alter(run("CREATE TABLE rooms (other int)"))
        with pytest.raises(ConfigurationError, match=r"has tables \(rooms\) but does not say of which revision"):
            await schema.prepare(engine, metadata, migrate=True)
        with pytest.raises(ConfigurationError, match="restore a backup"):
            await schema.migrate(engine)


async def test_the_password_is_in_no_sentence(postgres_url: str) -> None:
    async with opened(postgres_url) as engine:
        with pytest.raises(ConfigurationError) as refused:
            await schema.prepare(engine, metadata, migrate=False)
        assert "postgres:***@" in str(refused.value)


async def test_a_file_that_is_no_database_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "hubbub.db"
    path.write_bytes(b"not a database, " * 1000)
    with pytest.raises(ConfigurationError, match=r"cannot use the database .*hubbub\.db: file is not a database"):
        await engine_for(f"sqlite:///{path}", readers=2, full_sync=True).start()
    assert path.read_bytes().startswith(b"not a database")


async def test_a_broken_database_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "hubbub.db"
    async with opened(f"sqlite:///{path}") as engine:
        await ready(engine)
    whole = path.read_bytes()
    path.write_bytes(whole[:100] + b"\xff" * (len(whole) - 100))
    with pytest.raises(ConfigurationError, match="malformed"):
        async with opened(f"sqlite:///{path}") as engine:
            await schema.prepare(engine, metadata, migrate=True)


# -- in memory


async def test_what_is_in_memory_is_whole_and_ones_own() -> None:
    async with opened("sqlite://") as one, opened("sqlite://") as other:
        for engine in (one, other):
            await schema.prepare(engine, metadata, migrate=False)
            assert await engine.read(schema.current) == schema.HEAD
        await one.write(run("INSERT INTO last_seen VALUES ('ada', 1)"))
        assert await one.read(lambda c: c.execute(text("SELECT count(*) FROM last_seen")).scalar()) == 1
        assert await other.read(lambda c: c.execute(text("SELECT count(*) FROM last_seen")).scalar()) == 0


async def test_a_table_that_is_declared_later_is_there_too() -> None:
    declared = MetaData()
    for count in (1, 2):
        Table(f"t{count}", declared, Column("n", Integer))
        async with opened("sqlite://") as engine:
            await schema.prepare(engine, declared, migrate=False)
            assert await engine.read(table_names) == {"alembic_version", *(f"t{n + 1}" for n in range(count))}


def test_starting_does_not_pay_for_alembic(tmp_path: Path) -> None:
    script = f"""
import asyncio, sys
from hubbub import schema
from hubbub.engines import engine_for
from hubbub.tables import metadata

async def start(url):
    engine = engine_for(url, readers=1, full_sync=True)
    await engine.start()
    await schema.prepare(engine, metadata, migrate=True)
    await engine.stop()
    return "alembic" in sys.modules

print(*[asyncio.run(start(url)) for url in ("sqlite://", *["sqlite:///{tmp_path}/hubbub.db"] * int(sys.argv[1]))])
"""
    found = [
        subprocess.run([sys.executable, "-c", script, times], check=True, capture_output=True, text=True).stdout.split()
        for times in ("1", "1")
    ]
    assert found == [["False", "True"], ["False", "False"]]
