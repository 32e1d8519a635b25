"""What exports are made of: pages of rows, and messages as lines with all that belongs to them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from functools import partial
from typing import Any, Final, Protocol, TypeAlias, TypeVar

import msgspec
from msgspec import UNSET
from sqlalchemy import Column, ColumnElement, Connection, Select, Table, literal, literal_column, select, tuple_

from hubbub.features.chat import tables
from hubbub.features.chat.lines import (
    FileLine,
    FollowerLine,
    MessageLine,
    ReactionLine,
    ThreadLine,
    VersionLine,
    maybe_time_of,
    time_of,
)
from hubbub.features.chat.render import SYSTEM, extra_of
from hubbub.features.chat.tables import SEQ_BITS, SEQ_MASK
from hubbub.features.chat.tells import FileInfo

T = TypeVar("T")
Some: TypeAlias = Callable[[ColumnElement[int]], ColumnElement[bool]]
"""Which messages, as a condition on a column of keys."""
PAGE: Final = 500
"""Rows of one read."""
SCANNED: Final = 20_000
"""Messages that one read looks through."""
encode_lines: Final = msgspec.json.Encoder().encode_lines


class Read(Protocol):
    """:meth:`hubbub.store.Store.read`."""

    def __call__(self, work: Callable[[Connection], T], /) -> Awaitable[T]: ...


async def pages(read: Read, query: Select[Any], *columns: Column[Any]) -> AsyncIterator[Sequence[Any]]:
    """The rows of a query in the order of columns that no two rows have alike, :data:`PAGE` at a time."""
    query = query.order_by(*columns).limit(PAGE)
    page = query
    while True:
        rows = await read(partial(_all, page))
        if rows:
            yield rows
        if len(rows) < PAGE:
            return
        last = [literal(getattr(rows[-1], column.name), column.type) for column in columns]
        page = query.where(tuple_(*columns) > tuple_(*last) if len(last) > 1 else columns[0] > last[0])


def _all(query: Select[Any], connection: Connection) -> Sequence[Any]:
    return connection.execute(query).all()


def room_of_key(column: ColumnElement[int]) -> ColumnElement[int]:
    """The number of the room that a key belongs to."""
    return column.op(">>")(
        literal_column(str(SEQ_BITS))
    )  # as a parameter it would be a bigint, which PostgreSQL refuses


async def scanned(read: Read, table: Table, which: ColumnElement[bool]) -> AsyncIterator[Sequence[int]]:
    """The keys of all messages, or events, of which something is true, in order, at most :data:`PAGE` at a time. There
    is no index of it: all of them are looked at, a stretch in each read."""
    after: int | None = 0
    while after is not None:
        after, found = await read(partial(_scan, table, which, after))
        for start in range(0, len(found), PAGE):
            yield found[start : start + PAGE]


def _scan(
    table: Table, which: ColumnElement[bool], after: int, connection: Connection
) -> tuple[int | None, Sequence[int]]:
    """The end of a stretch of rows, and the wanted ones in it; no end: it is the last stretch."""
    key = table.c.key
    stretch = key > after
    upto = connection.scalar(select(key).where(stretch).order_by(key).offset(SCANNED - 1).limit(1))
    if upto is not None:
        stretch &= key <= upto
    return upto, connection.scalars(select(key).where(stretch, which).order_by(key)).all()


# -- messages with all that belongs to them


def message_lines(connection: Connection, rows: Sequence[Any]) -> list[MessageLine]:
    """Rows of ``messages`` of one room, in order of their keys and without one missing between them."""
    if not rows:
        return []
    keys = (rows[0].key, rows[-1].key)
    versions = versions_of(connection, lambda key: key.between(*keys))
    reactions = _reactions_of(connection, keys)
    threads = _threads_of(connection, keys)
    files = files_of(connection, lambda key: key.between(*keys))
    return [
        _message_line(
            row,
            versions=versions.get(row.key, []),
            reactions=reactions.get(row.key, []),
            replies=threads.get(row.key),
            files=file_lines(row, files),
        )
        for row in rows
    ]


def _message_line(row: Any, **belongings: Any) -> MessageLine:
    system = row.kind == SYSTEM
    return MessageLine(
        id=row.key & SEQ_MASK,
        number=row.number,
        user_id=row.author,
        message="" if system else row.body,
        timestamp=time_of(row.at),
        client_id=row.client_id,
        system=UNSET if not system else msgspec.json.decode(row.body) if row.body else None,
        version=row.version,
        edited_at=maybe_time_of(row.edited_at),
        deleted_at=maybe_time_of(row.deleted_at),
        deleted_by=row.deleted_by,
        reply_to=row.reply_to,
        thread=row.thread,
        mentions=extra_of(row).mentions,
        **belongings,
    )


def versions_of(connection: Connection, some: Some) -> dict[int, list[VersionLine]]:
    """What messages said before they were edited, by their keys."""
    t = tables.versions.c
    found: dict[int, list[VersionLine]] = defaultdict(list)
    for row in connection.execute(select(tables.versions).where(some(t.message)).order_by(t.message, t.version)):
        found[row.message].append(VersionLine(row.version, row.body, time_of(row.at), row.by))
    return found


def _reactions_of(connection: Connection, keys: tuple[int, int]) -> dict[int, list[ReactionLine]]:
    t = tables.reactions.c
    query = select(tables.reactions).where(t.message.between(*keys)).order_by(t.message, t.at, t.emoji, t.user_id)
    found: dict[int, list[ReactionLine]] = defaultdict(list)
    for row in connection.execute(query):
        found[row.message].append(ReactionLine(row.emoji, row.user_id, time_of(row.at)))
    return found


def _threads_of(connection: Connection, keys: tuple[int, int]) -> dict[int, ThreadLine]:
    t, f = tables.threads.c, tables.followers.c
    found = {
        row.root: ThreadLine(row.reply_count, row.last_seq, time_of(row.last_at), [])
        for row in connection.execute(select(tables.threads).where(t.root.between(*keys)))
    }
    if found:
        query = select(tables.followers).where(f.root.between(*keys)).order_by(f.root, f.user_id)
        for row in connection.execute(query):
            found[row.root].followers.append(FollowerLine(row.user_id, row.read_seq, row.read_count))
    return found


def files_of(connection: Connection, some: Some) -> dict[str, FileLine]:
    """Attachments of messages, by their ids."""
    query = select(tables.attachments).where(some(tables.attachments.c.message))
    return {row.id: _file_line(row, row.sha256, row.at) for row in connection.execute(query)}


def file_lines(row: Any, files: dict[str, FileLine]) -> list[FileLine]:
    """The attachments of a message, in the order in which it has them."""
    return [files.get(each.id) or _file_line(each) for each in extra_of(row).files]


def _file_line(row: FileInfo | Any, sha256: str = "", at: int | None = None) -> FileLine:
    return FileLine(row.id, row.name, row.media_type, row.size, sha256, maybe_time_of(at))


def in_keys(keys: Iterable[int]) -> Some:
    """A condition: a column has one of these keys."""
    wanted = list(keys)
    return lambda column: column.in_(wanted)
