"""A room's past out of the store, as its channel carries it: for who comes back, and where a node missed something.

What is read is what each message says now. So who catches up gets a message that was edited since as it was edited; the
edit itself follows in its place, and changes nothing more. A message that was erased is blank from the first on.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import msgspec
from msgspec import Struct
from sqlalchemy import Connection, bindparam, select

from hubbub.errors import ClientError, ErrorCode
from hubbub.features.chat import tables
from hubbub.features.chat.access import Act, RoomRow
from hubbub.features.chat.asks import CatchUp
from hubbub.features.chat.render import MESSAGE_COLUMNS, message_data, message_of, room_info
from hubbub.features.chat.tables import SEQ_MASK, key_of
from hubbub.features.chat.tells import CaughtUp
from hubbub.features.chat.tx import (
    ROOM_COLUMNS,
    TEXT_EVENTS,
    Removed,
    Tx,
    message_publication,
    publication_of,
    reads,
    room_of,
)
from hubbub.messages import JSON, Position
from hubbub.stream import PAGE_BYTES, Publication, Recovery

_IDENTIFIED: Final = select(*ROOM_COLUMNS).where(tables.rooms.c.id == bindparam("room_id"))
_MESSAGES: Final = (
    select(*MESSAGE_COLUMNS)
    .where(tables.messages.c.key > bindparam("low"), tables.messages.c.key <= bindparam("high"))
    .order_by(tables.messages.c.key)
)
_EVENTS: Final = select(tables.events).where(
    tables.events.c.key > bindparam("low"), tables.events.c.key <= bindparam("high")
)


def recover(
    connection: Connection, room_id: str, since: Position | None, limit: int, removed: list[Removed] | None = None
) -> Recovery | None:
    """What a reader at ``since`` has missed: all of it, or nothing and ``recovered`` False. None: the room's past is not
    here (it is a `live` one).

    :param since: None: only the position is asked.
    :param removed: takes who had to leave the room meanwhile.
    """
    room = _room(connection, room_id)
    if room is None or not room.stored:
        return None if room is not None else Recovery(Position("", 0), [], False)
    here = Position(room.epoch, room.event_seq)
    if since is None or _lost(room, since, limit) is not None:
        return Recovery(here, [], False)
    if since.offset == room.event_seq:
        return Recovery(here, [], True)
    publications = events_after(connection, room, since.offset, room.event_seq, removed)
    if len(publications) != room.event_seq - since.offset:
        return Recovery(here, [], False)  # some were trimmed away
    return Recovery(here, publications, True)


def page(
    connection: Connection, room_id: str, after: int | None, before: int | None, limit: int
) -> tuple[Position, Sequence[Publication], bool] | None:
    """A page of what happened, oldest first; True when there is more on the way that was asked for. None: it is not here
    (the room is a `live` one)."""
    room = _room(connection, room_id)
    if room is None or not room.stored:
        return None if room is not None else (Position("", 0), [], False)
    low = max(after or 0, room.trimmed_seq)
    high = min(room.event_seq, before - 1) if before is not None else room.event_seq
    wanted = high - low
    if wanted > limit:
        if after is not None:
            high = low + limit
        else:
            low = high - limit
    publications = events_after(connection, room, low, high) if wanted > 0 else []
    whole = len(publications)
    size = sum(each.size for each in publications)
    while size > PAGE_BYTES and len(publications) > 1:
        size -= publications.pop(-1 if after is not None else 0).size
    return Position(room.epoch, room.event_seq), publications, wanted > limit or len(publications) < whole


def _room(connection: Connection, room_id: str) -> RoomRow | None:
    found = connection.execute(_IDENTIFIED, {"room_id": room_id}).first()
    return None if found is None else room_of(found)


def events_after(
    connection: Connection, room: RoomRow, after: int, upto: int, removed: list[Removed] | None = None
) -> list[Publication]:
    """Everything of a room with ``after < offset <= upto`` that is still there, in order.

    :param removed: takes who had to leave the room.
    """
    bounds = {"low": key_of(room.no, after), "high": key_of(room.no, upto)}
    found: dict[int, Publication] = {}
    for row in connection.execute(_MESSAGES, bounds):
        seq = row.key & SEQ_MASK
        found[seq] = message_publication(room.id, message_data(row), seq)
    events = connection.execute(_EVENTS, bounds).all()
    targets = _targets(connection, room, events)
    for row in events:
        seq = row.key & SEQ_MASK
        data = _data(room, row, targets)
        found[seq] = publication_of(room.id, row.type, data, seq)
        if removed is not None and row.type in _REMOVALS:
            removed += _removal(room, row.type, data, seq)
    return [found[seq] for seq in sorted(found)]


class _Left(Struct):
    user_id: str
    change: str = "erased"


def _removal(room: RoomRow, kind: str, data: bytes, seq: int) -> list[Removed]:
    """Who had to leave a room by an event."""
    left = _decode_left(data)
    gone = kind == "user_erased" or left.change in ("kicked", "banned", "left")
    return [Removed(room.id, left.user_id, left.change, seq)] if gone else []


_REMOVALS: Final = frozenset({"member", "user_erased"})
_decode_left: Final = msgspec.json.Decoder(_Left).decode


def _targets(connection: Connection, room: RoomRow, events: Sequence[Any]) -> dict[int, bytes]:
    """The messages that events are about whose text they do not have themselves."""
    keys = {key_of(room.no, row.target) for row in events if row.type in TEXT_EVENTS and row.target is not None}
    if not keys:
        return {}
    query = select(*MESSAGE_COLUMNS).where(tables.messages.c.key.in_(keys))
    return {row.key & SEQ_MASK: JSON.encode(message_of(row)) for row in connection.execute(query)}


def _data(room: RoomRow, row: Any, targets: dict[int, bytes]) -> bytes:
    if row.type == "room_updated":
        return JSON.encode(room_info(room))
    if row.type in TEXT_EVENTS:
        # the message itself may be gone by now, for its age
        return targets.get(row.target) or JSON.encode({"id": row.target, "user_id": "", "message": "", "timestamp": ""})
    data: str = row.data
    return data.encode()


def _lost(room: RoomRow, since: Position, limit: int) -> str | None:
    """Why what came after a position cannot be had."""
    if since.epoch != room.epoch:
        return "the room's history began anew"
    if since.offset > room.event_seq:
        return "the room was not there yet"
    if since.offset < room.trimmed_seq:
        return "what came then is not kept any more"
    if room.event_seq - since.offset > limit:
        return "too much happened since"
    return None


@reads(CatchUp, "GET /api/rooms/{room_id}/events")
def catch_up(tx: Tx, message: CatchUp) -> CaughtUp:
    """Everything that happened in a room since a position, in one call.

    :raises ClientError: ``resync_required``: that cannot be had whole; load the room anew.
    """
    room, member = tx.enter(message.room_id, Act.READ)
    if not room.stored:
        raise ClientError(ErrorCode.FORBIDDEN, "this room keeps no messages: join it with `since`")
    since = message.since
    lost = _lost(room, since, tx.settings.catch_up_limit)
    if lost is None and member is not None and since.offset < member.history_from:
        lost = "you were no member then"
    if lost is not None:
        raise ClientError(ErrorCode.RESYNC_REQUIRED, f"{lost}: load the room anew (get_messages)")
    upto = min(room.event_seq, since.offset + message.limit)
    publications = events_after(tx.connection, room, since.offset, upto)
    if len(publications) != upto - since.offset:
        raise ClientError(ErrorCode.RESYNC_REQUIRED, "some of it is not kept any more: load the room anew")
    return CaughtUp(
        room_id=room.id,
        events=[msgspec.json.decode(each.payload) for each in publications],
        position=Position(room.epoch, upto),
        more=upto < room.event_seq,
    )
