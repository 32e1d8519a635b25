"""The commands of ``hubbub`` that work on the store without a server: migrate, export, import, erase.

What takes long shows how far it is, on a terminal, and can be interrupted: run again, it goes on, or begins anew.
"""

from __future__ import annotations

import asyncio
import logging
import os
import sys
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import IO, TYPE_CHECKING, Annotated, Any, Final, TypeVar

import typer

from hubbub.errors import ClientError, ConfigurationError, ErrorCode
from hubbub.progress import Progress

if TYPE_CHECKING:
    from hubbub.engines import Engine
    from hubbub.settings import Settings
    from hubbub.store import Store

T = TypeVar("T")
LONGEST_LINE: Final = 64 << 20
"""Bytes of a line of an import."""
users: Final = typer.Typer(no_args_is_help=True, help="People: erase one.")


# -- the commands


def migrate(
    restored: Annotated[
        bool,
        typer.Option(
            "--restored",
            help="The database comes from a backup, or from a standby that was behind: tell clients that what they have "
            "seen may not be in it. All rooms get a new epoch, and clients load them anew. Files of attachments that the "
            "database does not know, and that are older than a day, are removed.",
        ),
    ] = False,
) -> None:
    """Bring the database to the schema that this version wants. Safe to run again, and from several places at once."""
    from hubbub.schema import HEAD

    settings = _settings()

    async def work() -> None:
        from hubbub.schema import migrate

        async with _engine(settings) as engine:
            done = await migrate(engine)
            went = f"went to revision {', '.join(done)}" if done else f"is at revision {HEAD} already"
            typer.echo(f"the database {engine.where} {went}")
            if restored:
                rooms = await engine.write(_give_new_epochs)
                typer.echo(f"{rooms:,} rooms have a new epoch")
        if restored:
            typer.echo(f"{await _remove_unknown_files(settings):,} files that it does not know were removed")

    _run(work(), "migrate it again")


def export(
    room: Annotated[str | None, typer.Argument(help="The room's id.")] = None,
    user: Annotated[str | None, typer.Option(help="All about this person, in place of a room.")] = None,
    out: Annotated[Path | None, typer.Option(help="The file to write. Default: standard output.")] = None,
) -> None:
    """Write a room as JSON Lines: its people, and all messages with all that belongs to them, but not the bytes of files.

    A server may go on meanwhile. `hubbub import` reads it.
    """
    if (room is None) == (user is None):
        raise ConfigurationError("export takes a room, or --user and a person: hubbub export ROOM")
    settings = _settings()

    async def work() -> None:
        from hubbub.features.chat.exporting import export_room, export_user

        now = int(time.time() * 1000)
        async with _store(settings, read_only=True) as store:
            pages = export_user(store.read, user, now=now) if user else export_room(store.read, room or "", now=now)
            with _output(out) as file, Progress("exporting", hidden=out is None) as progress:
                async for page in pages:
                    file.write(page)
                    progress.advance(len(page))

    _run(work(), "what was written is not whole: run it again")


def import_(
    file: Annotated[Path, typer.Argument(help="JSON Lines: an export, or messages. `-`: standard input.")],
    room: Annotated[
        str | None, typer.Option(help="The room's id, if it is to be another one. Needed if there are only messages.")
    ] = None,
) -> None:
    """Make a room of an export, or of messages: lines with `user_id`, `message`, `timestamp`, and perhaps `client_id`.

    The room must not be there yet. Interrupted, and run again, it goes on where it was.
    """
    settings = _settings()

    async def work() -> None:
        from hubbub.features.chat.importing import import_room

        with _input(file) as lines:
            size = os.fstat(lines.fileno()).st_size if str(file) != "-" else None
            async with _store(settings) as store:
                with Progress("importing", total=size) as progress:
                    done = await import_room(
                        store,
                        _lines(lines, progress.advance),
                        now=int(time.time() * 1000),
                        room_id=room,
                        progress=lambda messages: progress.say(f"{messages:,} messages"),
                    )
                before = f" ({done.before:,} of them before)" if done.before else ""
                typer.echo(f"the room {done.room_id} has {done.messages:,} messages{before}, {done.members:,} members")
                await _index(store)

    _run(work(), "run the same command again: it goes on where it was")


@users.command()
def erase(
    user: Annotated[str, typer.Argument(help="The person's id.")],
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    rewrite: Annotated[
        bool,
        typer.Option(
            "--rewrite/--no-rewrite",
            help="SQLite: write the file anew, so that no byte of it is left in unused parts. It takes as much room on the "
            "disk again, and some seconds per gigabyte.",
        ),
    ] = True,
) -> None:
    """Erase a person: all that they said, uploaded and did is blanked. What others said stays, and so does the order.

    The server has to be stopped where the database is a SQLite file (`DELETE /api/users/…` erases while it runs). Run
    again, it erases what was left.
    """
    from hubbub.auth import valid_user_id

    if not valid_user_id(user):
        raise ConfigurationError("a user's id has 1 to 128 characters, and no control characters")
    settings = _settings()
    if not yes:
        _ask(f"Erase all that {user} said, for good?")

    async def work() -> None:
        from hubbub.features.chat.erasing import erase_user

        async with _store(settings, must_be_there=True) as store:
            with Progress("erasing") as progress:
                done = await erase_user(
                    store, user, now=int(time.time() * 1000), settings=settings, progress=progress.reach
                )
            await _remove_bytes(store, settings, rewrite=rewrite)
            typer.echo(
                f"erased in {done.rooms:,} rooms: {done.messages:,} messages, {done.files:,} files, "
                f"{done.reactions:,} reactions, {done.mentions:,} mentions"
            )

    _run(work(), "run the same command again: it erases what was left")


# -- the store


def _settings() -> Settings:
    """:raises ConfigurationError: they make no sense, or name a database that nothing is kept in."""
    from hubbub.settings import load_settings

    settings = load_settings()
    if settings.database in ("sqlite://", "sqlite:///:memory:"):
        raise ConfigurationError(
            "HUBBUB_DATABASE_URL names a database in memory, which is another one in each process: "
            "this takes sqlite:///path or postgresql://…"
        )
    return settings


@asynccontextmanager
async def _engine(settings: Settings) -> AsyncIterator[Engine]:
    engine = _engine_of(settings, read_only=False)
    await engine.start()
    try:
        yield engine
    finally:
        await engine.stop()


def _engine_of(settings: Settings, *, read_only: bool) -> Engine:
    from hubbub.engines import engine_for

    return engine_for(
        settings.database,
        readers=1,
        full_sync=settings.store_sync == "full",
        read_only=read_only,
        timeout=settings.store_timeout,
    )


async def _remove_unknown_files(settings: Settings) -> int:
    from hubbub.features.chat.retention import sweep_files
    from hubbub.files import files_from

    files = files_from(settings.files, settings.data_dir)
    async with _store(settings) as store:
        await files.start()
        try:
            return await sweep_files(store, files, now=int(time.time() * 1000))
        finally:
            await files.stop()


@asynccontextmanager
async def _store(settings: Settings, *, read_only: bool = False, must_be_there: bool = False) -> AsyncIterator[Store]:
    """The store of the settings, with the schema that it has to have.

    :param must_be_there: a SQLite file is not made.
    """
    import hubbub.features.chat.tables  # noqa: F401  # registers them
    from hubbub.engines import SqliteEngine
    from hubbub.metrics import Metrics
    from hubbub.schema import prepare
    from hubbub.store import Store
    from hubbub.tables import metadata

    engine = _engine_of(settings, read_only=read_only)
    if must_be_there and isinstance(engine, SqliteEngine) and engine.path is not None and not engine.path.exists():
        raise ConfigurationError(f"there is no database {engine.path}: set HUBBUB_DATA_DIR or HUBBUB_DATABASE_URL")
    store = Store(
        engine,
        Metrics(),
        queue=settings.store_queue,
        queue_bytes=settings.store_queue_bytes,
        timeout=settings.store_timeout,
    )
    await store.start(lambda engine: prepare(engine, metadata, migrate=not read_only))
    try:
        yield store
    finally:
        await store.stop()


def _give_new_epochs(connection: Any) -> int:
    import secrets

    from sqlalchemy import update

    from hubbub.features.chat import tables
    from hubbub.features.chat.importing import MARK

    t = tables.rooms.c
    whole = ~t.epoch.startswith(MARK)  # nobody has seen a room whose import is not done
    return connection.execute(update(tables.rooms).where(whole).values(epoch=secrets.token_hex(4))).rowcount or 0


async def _index(store: Store) -> None:
    """Make searchable what is not. A server would do it too, beside its work."""
    from hubbub.features.chat.search import Indexer

    indexer = Indexer(store, lambda _: None)
    with Progress("making it searchable"):
        await indexer.start()
        await indexer.catch_up()


async def _remove_bytes(store: Store, settings: Settings, *, rewrite: bool) -> None:
    """Of what was erased: files, words in the index of search, what is in unused parts of the database."""
    from sqlalchemy.exc import DBAPIError

    from hubbub.features.chat.erasing import rewrite_file
    from hubbub.features.chat.retention import remove_dropped
    from hubbub.features.chat.search import Indexer
    from hubbub.files import files_from

    files = files_from(settings.files, settings.data_dir)
    await files.start()
    try:
        await remove_dropped(store, files)
    finally:
        await files.stop()
    with Progress("wiping the index"):
        await Indexer(store, lambda _: None).catch_up()
    if rewrite:
        try:
            with Progress("writing the file anew"):
                await rewrite_file(store)
        except DBAPIError as error:
            raise ClientError(
                ErrorCode.UNAVAILABLE,
                f"all is erased, but the file could not be written anew ({error.orig}): bytes of it may be left in "
                "unused parts; make room on the disk and run it again",
            ) from None


# -- running


def _run(work: Coroutine[Any, Any, None], advice: str) -> None:
    """Run a command; what stops it is one sentence, and exit code 1."""
    logging.getLogger("hubbub").addHandler(logging.NullHandler())  # what is logged is said in that sentence
    try:
        asyncio.run(work)
    except ClientError as error:
        typer.echo(f"hubbub: {error.message}", err=True)
    except KeyboardInterrupt:
        typer.echo(f"hubbub: interrupted; {advice}", err=True)
    except BrokenPipeError:
        # who read our output has gone; or the interpreter would find out once more, and say so
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except OSError as error:
        typer.echo(f"hubbub: {error.strerror or error}: {error.filename or 'the output'}; {advice}", err=True)
    else:
        return
    raise typer.Exit(1)


def _ask(question: str) -> None:
    if not sys.stdin.isatty():
        raise ConfigurationError("nobody is there to be asked: say --yes")
    typer.confirm(question, abort=True, err=True)


@contextmanager
def _output(out: Path | None) -> Iterator[IO[bytes]]:
    """Where an export goes: a file appears whole, or not at all, and only for its owner."""
    if out is None:
        yield sys.stdout.buffer
        sys.stdout.flush()
        return
    part = out.with_name(f"{out.name}.part")
    try:
        with open(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        part.replace(out)
    except BaseException:
        with suppress(OSError):
            part.unlink()
        raise


@contextmanager
def _input(file: Path) -> Iterator[IO[bytes]]:
    if str(file) == "-":
        yield sys.stdin.buffer
        return
    try:
        opened = file.open("rb")
    except OSError as error:
        raise ConfigurationError(f"cannot read {file}: {error.strerror}") from None
    with opened:
        yield opened


def _lines(file: IO[bytes], read: Callable[[int], None]) -> Iterator[bytes]:
    """The lines of a file.

    :param read: told of the bytes, now and then.
    :raises ClientError: one is too long to be one.
    """
    number = unsaid = 0
    while line := file.readline(LONGEST_LINE):
        number += 1
        if len(line) == LONGEST_LINE:
            raise ClientError(ErrorCode.INVALID_MESSAGE, f"line {number}: it has more than {LONGEST_LINE >> 20} MiB")
        unsaid += len(line)
        if unsaid > 1 << 20:
            read(unsaid)
            unsaid = 0
        yield line
    read(unsaid)
