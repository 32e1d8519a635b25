"""Rows of the store as the wire shows them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Final

import msgspec
from msgspec import UNSET, UnsetType
from sqlalchemy import case, func, select

from hubbub.features.chat import tables
from hubbub.features.chat.access import MemberRow, RoomRow
from hubbub.features.chat.tables import SEQ_MASK, key_of
from hubbub.features.chat.tells import FileInfo, MessageInfo, MyRoom, ReactionInfo, RoomInfo, ThreadInfo
from hubbub.features.chat.tx import Tx, stamp
from hubbub.messages import JSON

MESSAGE_COLUMNS: Final = tuple(tables.messages.c)
SYSTEM: Final = 1
"""`kind` of a message that nobody said."""


class Extra(msgspec.Struct, omit_defaults=True):
    """What a message has beside its text, where it has any: the JSON in ``messages.extra``."""

    mentions: list[str] = []
    files: list[FileInfo] = []


_extra: Final = msgspec.json.Decoder(Extra)


def extra_of(row: Any) -> Extra:
    """The rest of a message's row."""
    return _extra.decode(row.extra) if row.extra else Extra()


def message_of(
    row: Any,
    *,
    reactions: list[ReactionInfo] | UnsetType = UNSET,
    replies: ThreadInfo | UnsetType = UNSET,
    pinned: bool = False,
) -> MessageInfo:
    """A row of ``messages`` as the wire has it: what the message says now, or that it is deleted."""
    seq = row.key & SEQ_MASK
    deleted = row.deleted_at is not None
    extra = Extra() if deleted else extra_of(row)
    return MessageInfo(
        id=seq,
        user_id=row.author,
        message="" if row.kind == SYSTEM else row.body,
        timestamp=stamp(row.at),
        client_id=row.client_id,
        number=UNSET if row.number == seq else row.number,
        version=row.version,
        edited_at=stamp(row.edited_at) if row.edited_at is not None else None,
        deleted_at=stamp(row.deleted_at) if deleted else None,
        deleted_by=row.deleted_by,
        reply_to=row.reply_to,
        thread=row.thread,
        mentions=extra.mentions or UNSET,
        files=extra.files or UNSET,
        system=msgspec.json.decode(row.body) if row.kind == SYSTEM and row.body else UNSET,
        reactions=reactions,
        replies=replies,
        pinned=pinned,
    )


def message_data(row: Any) -> bytes:
    """The same as JSON text without the ``id``, as a room's channel carries it."""
    encoded = JSON.encode(message_of(row))
    return b"{" + encoded[encoded.index(b",") + 1 :]


def messages_of(tx: Tx, room: RoomRow | None, rows: Sequence[Any]) -> list[MessageInfo]:
    """Rows of one room with all that belongs to them: reactions, threads, pins. Three queries, however many rows.

    :param room: None: the rows are of several.
    """
    keys = [row.key for row in rows]
    reactions = _reactions(tx, keys)
    replies = _replies(tx, keys)
    pinned = _pinned(tx, room, keys)
    return [
        message_of(
            row,
            reactions=reactions.get(row.key, UNSET),
            replies=replies.get(row.key, UNSET),
            pinned=row.key in pinned,
        )
        for row in rows
    ]


def _reactions(tx: Tx, keys: Sequence[int]) -> dict[int, list[ReactionInfo]]:
    if not keys:
        return {}
    t = tables.reactions.c
    query = (
        select(t.message, t.emoji, func.count(), func.min(t.at), func.max(_mine(tx)))
        .where(t.message.in_(keys))
        .group_by(t.message, t.emoji)
        .order_by(func.min(t.at), t.emoji)
    )
    found: dict[int, list[ReactionInfo]] = {}
    for key, emoji, count, _, me in tx.connection.execute(query):
        found.setdefault(key, []).append(ReactionInfo(emoji, count, bool(me)))
    return found


def _mine(tx: Tx) -> Any:
    return case((tables.reactions.c.user_id == tx.caller.user_id, 1), else_=0)


def _replies(tx: Tx, keys: Sequence[int]) -> dict[int, ThreadInfo]:
    if not keys:
        return {}
    t, f = tables.threads.c, tables.followers.c
    joined = tables.threads.outerjoin(tables.followers, (f.root == t.root) & (f.user_id == tx.caller.user_id))
    query = (
        select(t.root, t.reply_count, t.last_seq, t.last_at, f.read_count).select_from(joined).where(t.root.in_(keys))
    )
    return {
        root: ThreadInfo(count, last_seq, stamp(last_at), UNSET if read is None else max(0, count - read))
        for root, count, last_seq, last_at, read in tx.connection.execute(query)
    }


def _pinned(tx: Tx, room: RoomRow | None, keys: Sequence[int]) -> set[int]:
    if not keys or (room is not None and not room.pin_count):
        return set()
    return set(tx.connection.scalars(select(tables.pins.c.message).where(tables.pins.c.message.in_(keys))))


def file_info(file: Any) -> FileInfo:
    """An attachment (a row, or what is known of it) as the wire has it."""
    return FileInfo(file.id, file.name, file.media_type, file.size, f"/api/files/{file.id}")


def room_info(
    room: RoomRow,
    me: MyRoom | UnsetType = UNSET,
    *,
    users: int | UnsetType = UNSET,
    people: list[str] | UnsetType = UNSET,
) -> RoomInfo:
    """A room as the wire has it.

    :param users: how many are here now.
    :param people: of a direct room.
    """
    return RoomInfo(
        room_id=room.id,
        name=room.name,
        created_at=stamp(room.created_at),
        created_by=room.created_by,
        users=users,
        topic=room.topic,
        kind=room.kind,
        visibility=room.visibility,
        history=room.history,
        archived_at=stamp(room.archived_at) if room.archived_at is not None else None,
        slow_mode=room.slow_mode,
        retention_days=room.retention_days,
        member_count=room.member_count,
        message_count=room.message_count,
        last_at=stamp(room.last_at) if room.message_count else None,
        people=people,
        me=me,
    )


def my_room(room: RoomRow, member: MemberRow | None, invited_by: str | None = None) -> MyRoom | UnsetType:
    """A user's own side of a room; UNSET for who has none."""
    if member is None:
        return MyRoom(invited_by=invited_by) if invited_by is not None else UNSET
    return MyRoom(
        role=member.role,
        unread=max(0, room.message_count - member.read_count),
        mentions=member.mention_count,
        read=member.read_seq,
        notify=member.notify,
        joined_at=stamp(member.joined_at),
        muted_until=stamp(member.muted_until) if member.muted_until else None,
    )


def people_of(tx: Tx, rooms: Iterable[RoomRow]) -> dict[int, list[str]]:
    """Who is in the direct ones of these rooms, by the room's number."""
    numbers = [room.no for room in rooms if room.visibility == "direct"]
    if not numbers:
        return {}
    t = tables.members.c
    found: dict[int, list[str]] = {}
    for no, user_id in tx.connection.execute(
        select(t.room_no, t.user_id).where(t.room_no.in_(numbers)).order_by(t.room_no, t.user_id)
    ):
        found.setdefault(no, []).append(user_id)
    return found


def range_of(room: RoomRow, after: int, upto: int) -> Any:
    """Rows of ``messages`` with ``after < seq <= upto``, as a condition."""
    key = tables.messages.c.key
    return (key > key_of(room.no, after)) & (key <= key_of(room.no, upto))
