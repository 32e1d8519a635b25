"""All that the store has about a person, as JSON Lines: what they are in, said and did; not what others said."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from functools import partial
from typing import Any, Final, NamedTuple

import msgspec
from msgspec import UNSET, Struct, UnsetType
from sqlalchemy import Column, Connection, Select, Table, select

from hubbub.features.chat import tables
from hubbub.features.chat.exported import (
    Read,
    encode_lines,
    file_lines,
    files_of,
    in_keys,
    pages,
    room_of_key,
    scanned,
    versions_of,
)
from hubbub.features.chat.lines import FORMAT, FileLine, Time, VersionLine, maybe_time_of, time_of
from hubbub.features.chat.render import MESSAGE_COLUMNS, SYSTEM, extra_of
from hubbub.features.chat.tables import SEQ_MASK


class UserLine(Struct, tag="user", omit_defaults=True):
    """The first line."""

    format: int
    user_id: str
    exported_at: Time
    last_seen: Time | None = None


class MembershipLine(Struct, tag="membership", omit_defaults=True):
    room_id: str
    room_name: str
    role: str
    joined_at: Time
    notify: str
    read: int
    muted_until: Time | None = None


class InvitedLine(Struct, tag="invitation"):
    room_id: str
    invited_by: str
    at: Time


class BannedLine(Struct, tag="ban", omit_defaults=True):
    room_id: str
    at: Time
    until: Time | None = None
    reason: str = ""


class ReactedLine(Struct, tag="reaction"):
    room_id: str
    id: int
    emoji: str
    at: Time


class MentionedLine(Struct, tag="mention"):
    """A message that mentions the person; what it says is its author's."""

    room_id: str
    id: int


class ReportedLine(Struct, tag="report"):
    report: int
    room_id: str
    id: int
    reason: str
    at: Time
    status: str


class UploadedLine(Struct, tag="file", omit_defaults=True):
    """``message``: the one that it belongs to, if it was sent."""

    room_id: str
    id: str
    name: str
    media_type: str
    size: int
    sha256: str
    at: Time
    message: int | None = None


class ModeratedLine(Struct, tag="audit", omit_defaults=True):
    """What the person did as a moderator."""

    entry: int
    at: Time
    act: str
    room_id: str | None = None
    target_user: str | None = None
    target_message: int | None = None
    data: dict[str, Any] = {}


class SaidLine(Struct, tag="message", omit_defaults=True, kw_only=True):
    """A message of the person, with what it said before it was edited. ``system``: the person did this."""

    room_id: str
    id: int
    message: str
    timestamp: Time
    client_id: str | None = None
    system: dict[str, Any] | UnsetType = UNSET
    version: int = 1
    edited_at: Time | None = None
    deleted_at: Time | None = None
    reply_to: int | None = None
    thread: int | None = None
    mentions: list[str] = []
    files: list[FileLine] = []
    versions: list[VersionLine] = []


async def export_user(read: Read, user_id: str, *, now: int) -> AsyncIterator[bytes]:
    """All about a person, a page of lines at a time. There is no error for whom nobody knows: their export is empty.

    :param now: unix milliseconds.
    """
    seen = tables.last_seen.c
    last = await read(lambda connection: connection.scalar(select(seen.at).where(seen.user_id == user_id)))
    yield encode_lines([UserLine(FORMAT, user_id, time_of(now), maybe_time_of(last))])
    for section in _SECTIONS:
        async for rows in pages(read, section.query(user_id), *section.order):
            yield encode_lines([section.line(row) for row in rows])
    async for keys in scanned(read, tables.messages, tables.messages.c.author == user_id):
        yield encode_lines(await read(partial(_said, keys)))


def _said(keys: Sequence[int], connection: Connection) -> list[SaidLine]:
    key = tables.messages.c.key
    query = select(*MESSAGE_COLUMNS, _room_id).join(_rooms, _rooms.c.no == tables.messages.c.room_no)
    versions = versions_of(connection, in_keys(keys))
    files = files_of(connection, in_keys(keys))
    return [
        SaidLine(
            room_id=row.room_id,
            id=row.key & SEQ_MASK,
            message="" if row.kind == SYSTEM else row.body,
            timestamp=time_of(row.at),
            client_id=row.client_id,
            system=msgspec.json.decode(row.body) if row.kind == SYSTEM and row.body else UNSET,
            version=row.version,
            edited_at=maybe_time_of(row.edited_at),
            deleted_at=maybe_time_of(row.deleted_at),
            reply_to=row.reply_to,
            thread=row.thread,
            mentions=extra_of(row).mentions,
            files=file_lines(row, files),
            versions=versions.get(row.key, []),
        )
        for row in connection.execute(query.where(key.in_(keys)).order_by(key))
    ]


# -- what else there is


class _Section(NamedTuple):
    """Rows about a person, in the order of columns that no two of them have alike."""

    query: Callable[[str], Select[Any]]
    order: tuple[Column[Any], ...]
    line: Callable[[Any], Struct]


_rooms: Final = tables.rooms
_room_id: Final = _rooms.c.id.label("room_id")


def _in_rooms(table: Table, column: str, user_id: str) -> Select[Any]:
    """Rows of a table of what is in rooms."""
    named = select(table, _room_id, _rooms.c.name.label("room_name"))
    return named.outerjoin(_rooms, _rooms.c.no == table.c.room_no).where(table.c[column] == user_id)


def _at_messages(table: Table, user_id: str) -> Select[Any]:
    """Rows of a table of what belongs to messages."""
    of_room = _rooms.c.no == room_of_key(table.c.message)
    return select(table, _room_id).join_from(table, _rooms, of_room).where(table.c.user_id == user_id)


def _membership(row: Any) -> MembershipLine:
    muted = maybe_time_of(row.muted_until or None)
    return MembershipLine(row.room_id, row.room_name, row.role, time_of(row.joined_at), row.notify, row.read_seq, muted)


def _reported(row: Any) -> ReportedLine:
    return ReportedLine(row.no, row.room_id, row.message & SEQ_MASK, row.reason, time_of(row.at), row.status)


def _uploaded(row: Any) -> UploadedLine:
    message = None if row.message is None else row.message & SEQ_MASK
    return UploadedLine(row.room_id, row.id, row.name, row.media_type, row.size, row.sha256, time_of(row.at), message)


def _moderated(row: Any) -> ModeratedLine:
    target = None if row.target_message is None else row.target_message & SEQ_MASK
    data = msgspec.json.decode(row.data)
    return ModeratedLine(row.no, time_of(row.at), row.act, row.room_id, row.target_user, target, data)


_SECTIONS: Final = (
    _Section(partial(_in_rooms, tables.members, "user_id"), (tables.members.c.room_no,), _membership),
    _Section(
        partial(_in_rooms, tables.invitations, "user_id"),
        (tables.invitations.c.room_no,),
        lambda row: InvitedLine(row.room_id, row.invited_by, time_of(row.at)),
    ),
    _Section(
        partial(_in_rooms, tables.bans, "user_id"),
        (tables.bans.c.room_no,),
        lambda row: BannedLine(row.room_id, time_of(row.at), maybe_time_of(row.until), row.reason),
    ),
    _Section(
        partial(_at_messages, tables.reactions),
        (tables.reactions.c.message, tables.reactions.c.emoji),
        lambda row: ReactedLine(row.room_id, row.message & SEQ_MASK, row.emoji, time_of(row.at)),
    ),
    _Section(
        partial(_at_messages, tables.mentions),
        (tables.mentions.c.message,),
        lambda row: MentionedLine(row.room_id, row.message & SEQ_MASK),
    ),
    _Section(partial(_in_rooms, tables.reports, "reported_by"), (tables.reports.c.no,), _reported),
    _Section(partial(_in_rooms, tables.attachments, "owner"), (tables.attachments.c.id,), _uploaded),
    _Section(partial(_in_rooms, tables.audit, "by"), (tables.audit.c.no,), _moderated),
)
