"""A room as JSON Lines: read page by page, so that it takes little memory, and holds up nobody.

A page is one read of the store. What happens to a message while its room is exported may be in the export or not;
messages that come later are not.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from functools import partial
from typing import Any

from sqlalchemy import Connection, Select, select

from hubbub.features.chat import tables
from hubbub.features.chat.access import RoomRow, no_such_room
from hubbub.features.chat.exported import PAGE, Read, encode_lines, message_lines, pages
from hubbub.features.chat.lines import (
    FORMAT,
    BanLine,
    EndLine,
    InvitationLine,
    MemberLine,
    MessageLine,
    PinLine,
    RoomLine,
    maybe_time_of,
    time_of,
)
from hubbub.features.chat.personal import export_user
from hubbub.features.chat.render import MESSAGE_COLUMNS
from hubbub.features.chat.tables import SEQ_MASK, key_of
from hubbub.features.chat.tx import ROOM_COLUMNS, room_of

__all__ = ["Read", "export_room", "export_user"]


async def export_room(read: Read, room_id: str, *, now: int) -> AsyncIterator[bytes]:
    """A room with its people and messages, a page of lines at a time; see :mod:`hubbub.features.chat.lines`.

    :param now: unix milliseconds.
    :raises ClientError: ``not_found``.
    """
    room = await read(partial(_room, room_id))
    yield encode_lines([_room_line(room, now)])
    for table, line in ((tables.members, _member), (tables.bans, _ban), (tables.invitations, _invitation)):
        async for rows in pages(read, select(table).where(table.c.room_no == room.no), table.c.user_id):
            yield encode_lines([line(room, row) for row in rows])
    written = 0
    async for lines in _message_pages(read, room):
        written += len(lines)
        yield encode_lines(lines)
    yield encode_lines([*await read(partial(_pins, room)), EndLine(written)])


def _room(room_id: str, connection: Connection) -> RoomRow:
    found = connection.execute(select(*ROOM_COLUMNS).where(tables.rooms.c.id == room_id)).first()
    if found is None:
        raise no_such_room(room_id)
    return room_of(found)


def _room_line(room: RoomRow, now: int) -> RoomLine:
    return RoomLine(
        format=FORMAT,
        exported_at=time_of(now),
        room_id=room.id,
        name=room.name,
        topic=room.topic,
        kind=room.kind,
        visibility=room.visibility,
        history=room.history,
        direct_key=room.direct_key,
        slow_mode=room.slow_mode,
        retention_days=room.retention_days,
        created_at=time_of(room.created_at),
        created_by=room.created_by,
        last_at=time_of(room.last_at),
        archived_at=maybe_time_of(room.archived_at),
        event_seq=room.event_seq,
        message_count=room.message_count,
    )


def _member(room: RoomRow, row: Any) -> MemberLine:
    return MemberLine(
        user_id=row.user_id,
        role=row.role,
        joined_at=time_of(row.joined_at),
        history_from=row.history_from,
        notify=row.notify,
        # who reads on while the room is exported has not read more than there is in the export
        read=min(row.read_seq, room.event_seq),
        read_count=min(row.read_count, room.message_count),
        mention_count=row.mention_count,
        muted_until=maybe_time_of(row.muted_until or None),
    )


def _ban(room: RoomRow, row: Any) -> BanLine:
    return BanLine(row.user_id, row.banned_by, time_of(row.at), maybe_time_of(row.until), row.reason)


def _invitation(room: RoomRow, row: Any) -> InvitationLine:
    return InvitationLine(row.user_id, row.invited_by, time_of(row.at))


async def _message_pages(read: Read, room: RoomRow) -> AsyncIterator[list[MessageLine]]:
    low, high, key = key_of(room.no, 0), key_of(room.no, room.event_seq), tables.messages.c.key
    while True:
        query = select(*MESSAGE_COLUMNS).where(key > low, key <= high).order_by(key).limit(PAGE)
        rows, lines = await read(partial(_with_belongings, query))
        if lines:
            yield lines
        if len(rows) < PAGE:
            return
        low = rows[-1].key


def _with_belongings(query: Select[Any], connection: Connection) -> tuple[Sequence[Any], list[MessageLine]]:
    rows = connection.execute(query).all()
    return rows, message_lines(connection, rows)


def _pins(room: RoomRow, connection: Connection) -> list[PinLine]:
    t = tables.pins.c
    query = select(tables.pins).where(t.message > key_of(room.no, 0), t.message <= key_of(room.no, room.event_seq))
    rows = connection.execute(query.order_by(t.message))
    return [PinLine(row.message & SEQ_MASK, row.pinned_by, time_of(row.at)) for row in rows]
