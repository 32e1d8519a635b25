"""What happens to a message after it was said: it is edited, deleted, reacted to, pinned."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any, Final

from sqlalchemy import ColumnElement, Row, Table, and_, delete, func, insert, select, true, update
from sqlalchemy.dialects import postgresql, sqlite

from hubbub.errors import ClientError, ErrorCode
from hubbub.features.chat import tables
from hubbub.features.chat.access import Act, MemberRow, RoomRow, allows, check
from hubbub.features.chat.asks import (
    DeleteMessage,
    EditMessage,
    GetVersions,
    ListPins,
    PinMessage,
    React,
    UnpinMessage,
    Unreact,
)
from hubbub.features.chat.mentioning import EVERYONE, mentions_of
from hubbub.features.chat.render import SYSTEM, Extra, extra_of, message_of, messages_of
from hubbub.features.chat.search import reindex
from hubbub.features.chat.tables import SEQ_MASK, key_of
from hubbub.features.chat.tells import Done, EditAck, PinData, Pins, ReactionData, VersionInfo, Versions
from hubbub.features.chat.texts import check_text
from hubbub.features.chat.tx import Mentioned, Tx, reads, stamp, writes
from hubbub.features.chat.uploads import drop_files
from hubbub.messages import JSON

NOTIFIED: Final = 1000
"""Members who are notified of one `@room`; in a larger room the others see it counted."""

_m = tables.members.c


# -- mentions


def mentioned_members(
    tx: Tx, room: RoomRow, member: MemberRow | None, names: Sequence[str], *, seq: int | None = None
) -> list[str]:
    """Which of the names that the caller uses in a message are members of the room, or :data:`EVERYONE`.

    The caller is not among them, and `@room` only of who may call all: else a name is no mention, but text like any other.

    :param seq: of the message, if it is there already: who came later and does not see it is not mentioned in it.
    """
    wanted = [name for name in names if name not in (EVERYONE, tx.caller.user_id)]
    found: set[str] = set()
    if wanted:
        query = select(_m.user_id).where(_m.room_no == room.no, _m.user_id.in_(wanted))
        if seq is not None:
            query = query.where(_m.history_from < seq)
        found.update(tx.connection.scalars(query))
    limit = tx.settings.group_limit
    if EVERYONE in names and allows(room, member, tx.caller, Act.CALL_ALL, tx.now, group_limit=limit):
        found.add(EVERYONE)
    return [name for name in names if name in found]


def _called(names: Iterable[str]) -> ColumnElement[bool]:
    """Members who are mentioned by these names, as a condition."""
    return true() if EVERYONE in names else _m.user_id.in_(names)


def _readers(room: RoomRow, row: Row[Any]) -> ColumnElement[bool]:
    """Members who see a message and did not write it."""
    return and_(_m.room_no == room.no, _m.user_id != row.author, _m.history_from < row.key & SEQ_MASK)


def _uncount(tx: Tx, room: RoomRow, row: Row[Any], who: ColumnElement[bool]) -> None:
    """A message does not mention these members any more. Who had read it had counted it off already."""
    unread = who & (_m.read_seq < row.key & SEQ_MASK) & (_m.mention_count > 0)
    tx.connection.execute(
        update(tables.members).where(_readers(room, row), unread).values(mention_count=_m.mention_count - 1)
    )


def _mention_anew(tx: Tx, room: RoomRow, row: Row[Any], before: Sequence[str], after: Sequence[str], text: str) -> None:
    """A message mentions others than before: count and notify who is new, count off who is not in it any more."""
    gone, new = sorted({*before} - {*after}), [name for name in after if name not in before]
    if gone:
        t = tables.mentions.c
        tx.connection.execute(delete(tables.mentions).where(t.message == row.key, t.user_id.in_(gone)))
        _uncount(tx, room, row, _called(before) & ~_called(after))
    if not new:
        return
    _add(tx, tables.mentions, [{"user_id": name, "message": row.key} for name in new])
    seq = row.key & SEQ_MASK
    called = _readers(room, row) & _called(after) & ~_called(before) & (_m.notify != "none")
    tx.connection.execute(
        update(tables.members).where(called, _m.read_seq < seq).values(mention_count=_m.mention_count + 1)
    )
    notified = tx.connection.scalars(select(_m.user_id).where(called).order_by(_m.user_id).limit(NOTIFIED)).all()
    if notified:
        tx.outcome.mentioned.append(Mentioned(room.id, room.name, seq, row.author, text, tuple(notified)))
    if row.thread is not None:
        _follow(tx, key_of(room.no, row.thread), [name for name in new if name != EVERYONE])


def _follow(tx: Tx, root: int, user_ids: Sequence[str]) -> None:
    """Who is mentioned in a thread follows it."""
    _add(tx, tables.followers, [{"root": root, "user_id": user} for user in sorted(user_ids)])


def _add(tx: Tx, table: Table, rows: Sequence[dict[str, Any]]) -> None:
    """Insert rows, but for those that are there."""
    if rows:
        add = postgresql.insert if tx.dialect == "postgresql" else sqlite.insert
        tx.connection.execute(add(table).on_conflict_do_nothing(), rows)


# -- editing


@writes(EditMessage, "PATCH /api/rooms/{room_id}/messages/{id}")
def edit_message(tx: Tx, message: EditMessage) -> EditAck:
    """The author says something else; what was said before is kept as a version."""
    room, member = tx.enter(message.room_id, Act.EDIT)
    row = _standing(tx.message(room, message.id, member))
    if row.kind == SYSTEM or row.author != tx.caller.user_id:
        raise ClientError(ErrorCode.FORBIDDEN, "only its author may edit a message")
    extra = extra_of(row)
    check_text(message.message, tx.settings, may_be_empty=bool(extra.files))
    if message.message == row.body:
        return EditAck(room_id=room.id, id=message.id, version=row.version)
    names = mentions_of(message.message, tx.settings.max_mentions)
    mentioned = mentioned_members(tx, room, member, names, seq=message.id) if names else []
    _keep_version(tx, row)
    reindex(tx, room, row, message.message)
    _rewrite(tx, row, message.message, Extra(mentioned, extra.files))
    _mention_anew(tx, room, row, extra.mentions, mentioned, message.message)
    edited = message_of(tx.message(room, message.id))
    offset = tx.event(room, "message_updated", edited, target=message.id)
    return EditAck(room_id=room.id, id=message.id, version=edited.version, offset=offset)


def _standing(row: Row[Any]) -> Row[Any]:
    """:raises ClientError: ``not_found``: the message is deleted."""
    if row.deleted_at is not None:
        raise ClientError(ErrorCode.NOT_FOUND, f"message {row.key & SEQ_MASK} was deleted")
    return row


def _keep_version(tx: Tx, row: Row[Any]) -> None:
    at = row.edited_at if row.edited_at is not None else row.at
    old = {"message": row.key, "version": row.version, "body": row.body, "at": at, "by": row.author}
    tx.connection.execute(insert(tables.versions), old)


def _rewrite(tx: Tx, row: Row[Any], text: str, extra: Extra) -> None:
    kept = JSON.encode(extra).decode() if extra.mentions or extra.files else None
    tx.connection.execute(
        update(tables.messages)
        .where(tables.messages.c.key == row.key)
        .values(body=text, version=row.version + 1, edited_at=tx.now, extra=kept)
    )


@reads(GetVersions, "GET /api/rooms/{room_id}/messages/{id}/versions")
def get_versions(tx: Tx, message: GetVersions) -> Versions:
    """What a message said, from the first version to what it says now."""
    room, member = tx.enter(message.room_id, Act.BROWSE)
    row = _standing(tx.message(room, message.id, member))
    t = tables.versions.c
    query = select(t.version, t.body, t.at, t.by).where(t.message == row.key).order_by(t.version)
    versions = [VersionInfo(version, body, stamp(at), by) for version, body, at, by in tx.connection.execute(query)]
    now = message_of(row)
    versions.append(VersionInfo(now.version, now.message, now.edited_at or now.timestamp, now.user_id))
    return Versions(room_id=room.id, id=message.id, versions=versions)


# -- deleting


@writes(DeleteMessage, "DELETE /api/rooms/{room_id}/messages/{id}")
def delete_message(tx: Tx, message: DeleteMessage) -> Done:
    """Take a message's text away, for good: its author does it, or a moderator. Its place and number stay."""
    room, member = tx.enter(message.room_id, Act.BROWSE)
    row = tx.message(room, message.id, member)
    moderates = _moderates(tx, room, member, row)
    if row.deleted_at is not None:
        return Done(room_id=room.id)
    if moderates:
        tx.audit("delete_message", room, user_id=row.author, message=message.id, data={"reason": message.reason})
    return Done(room_id=room.id, offset=blank(tx, room, row))


def _moderates(tx: Tx, room: RoomRow, member: MemberRow | None, row: Row[Any]) -> bool:
    """Whether it is as a moderator that the caller deletes a message.

    :raises ClientError: the caller may not delete it at all.
    """
    own = row.author == tx.caller.user_id and row.kind != SYSTEM
    if own and room.archived_at is not None and allows(room, member, tx.caller, Act.MODERATE, tx.now):
        return True
    act = Act.DELETE if own else Act.MODERATE
    check(room, member, tx.caller, act, tx.now)
    return act is Act.MODERATE


def blank(tx: Tx, room: RoomRow, row: Row[Any]) -> int:
    """Leave nothing of a message but that it was there, and tell the room. Returns the event's number.

    :param row: of ``messages``; not deleted yet.
    """
    seq = row.key & SEQ_MASK
    if mentioned := extra_of(row).mentions:
        _uncount(tx, room, row, _called(mentioned))
    for table in (tables.versions, tables.reactions, tables.mentions):
        tx.connection.execute(delete(table).where(table.c.message == row.key))
    drop_files(tx.connection, tables.attachments.c.message == row.key)
    _take_down(tx, room, row.key)
    reindex(tx, room, row, "")
    tx.connection.execute(
        update(tables.messages)
        .where(tables.messages.c.key == row.key)
        .values(body="", extra=None, deleted_at=tx.now, deleted_by=tx.caller.user_id or None)
    )
    return tx.event(room, "message_deleted", message_of(tx.message(room, seq)), target=seq)


# -- reactions


@writes(React, "PUT /api/rooms/{room_id}/messages/{id}/reactions/{emoji}")
def react(tx: Tx, message: React) -> Done:
    """Add the caller's reaction to a message."""
    room, row = _to_react(tx, message)
    if tx.connection.execute(_mine(tx, row, message.emoji)).first() is not None:
        return Done(room_id=room.id)
    there = _counts(tx, row)
    if message.emoji not in there and len(there) >= tx.settings.max_reactions:
        limit = tx.settings.max_reactions
        raise ClientError(ErrorCode.TOO_MANY, f"a message has at most {limit} different reactions: add to one of them")
    tx.connection.execute(
        insert(tables.reactions),
        {"message": row.key, "emoji": message.emoji, "user_id": tx.caller.user_id, "at": tx.now},
    )
    return _tell_reaction(tx, room, message, added=True, count=there.get(message.emoji, 0) + 1)


@writes(Unreact, "DELETE /api/rooms/{room_id}/messages/{id}/reactions/{emoji}")
def unreact(tx: Tx, message: Unreact) -> Done:
    """Take the caller's reaction back."""
    room, row = _to_react(tx, message)
    t = tables.reactions.c
    gone = tx.connection.execute(
        delete(tables.reactions).where(t.message == row.key, t.emoji == message.emoji, t.user_id == tx.caller.user_id)
    )
    if not gone.rowcount:
        return Done(room_id=room.id)
    return _tell_reaction(tx, room, message, added=False, count=_counts(tx, row).get(message.emoji, 0))


_NO_EMOJI: Final = re.compile(
    r"[\s\x00-\x1f\x7f-\xa0\u061c\u200b\u200e\u200f\u2028-\u202f\u2060-\u206f\ufeff\ud800-\udfff]"
)
"""Space, control characters, and what turns the direction of writing. A joiner (U+200D) is part of many emoji."""

_UNSEEN: Final = "\u200d\ufe0e\ufe0f"
"""What shows nothing by itself."""


def _to_react(tx: Tx, message: React | Unreact) -> tuple[RoomRow, Row[Any]]:
    room, member = tx.enter(message.room_id, Act.REACT)
    if not tx.caller.user_id:
        raise ClientError(ErrorCode.INVALID_MESSAGE, "say who reacts: `user_id`")
    if _NO_EMOJI.search(message.emoji) or not message.emoji.strip(_UNSEEN):
        raise ClientError(
            ErrorCode.INVALID_MESSAGE,
            "a reaction is an emoji or a :shortcode:, without spaces and control characters - at `$.emoji`",
        )
    return room, _standing(tx.message(room, message.id, member))


def _counts(tx: Tx, row: Row[Any]) -> dict[str, int]:
    t = tables.reactions.c
    query = select(t.emoji, func.count()).where(t.message == row.key).group_by(t.emoji)
    return dict(tx.connection.execute(query).all())


def _mine(tx: Tx, row: Row[Any], emoji: str) -> Any:
    t = tables.reactions.c
    return select(t.at).where(t.message == row.key, t.emoji == emoji, t.user_id == tx.caller.user_id)


def _tell_reaction(tx: Tx, room: RoomRow, message: React | Unreact, *, added: bool, count: int) -> Done:
    data = ReactionData(message.id, message.emoji, tx.caller.user_id, added, count)
    return Done(room_id=room.id, offset=tx.event(room, "reaction", data, target=message.id))


# -- pins


@writes(PinMessage, "PUT /api/rooms/{room_id}/pins/{id}")
def pin(tx: Tx, message: PinMessage) -> Done:
    """Pin a message in its room."""
    room, member = tx.enter(message.room_id, Act.PIN)
    row = _standing(tx.message(room, message.id, member))
    if row.kind == SYSTEM:
        raise ClientError(ErrorCode.FORBIDDEN, "a system message is not pinned")
    t = tables.pins.c
    if tx.connection.execute(select(t.at).where(t.message == row.key)).first() is not None:
        return Done(room_id=room.id)
    if room.pin_count >= tx.settings.max_pins:
        limit = tx.settings.max_pins
        raise ClientError(ErrorCode.TOO_MANY, f"a room has at most {limit} pinned messages: unpin one first")
    tx.connection.execute(insert(tables.pins), {"message": row.key, "pinned_by": tx.caller.user_id, "at": tx.now})
    tx.change_room(room, pin_count=room.pin_count + 1)
    return _tell_pin(tx, room, message.id, pinned=True)


@writes(UnpinMessage, "DELETE /api/rooms/{room_id}/pins/{id}")
def unpin(tx: Tx, message: UnpinMessage) -> Done:
    """Take a pin down."""
    room, member = tx.enter(message.room_id, Act.PIN)
    row = tx.message(room, message.id, member)
    if not _take_down(tx, room, row.key):
        return Done(room_id=room.id)
    return _tell_pin(tx, room, message.id, pinned=False)


def _take_down(tx: Tx, room: RoomRow, key: int) -> bool:
    if (
        not room.pin_count
        or not tx.connection.execute(delete(tables.pins).where(tables.pins.c.message == key)).rowcount
    ):
        return False
    tx.change_room(room, pin_count=room.pin_count - 1)
    return True


def _tell_pin(tx: Tx, room: RoomRow, seq: int, *, pinned: bool) -> Done:
    offset = tx.event(room, "pinned", PinData(seq, pinned, tx.caller.user_id), target=seq)
    tx.say(room, {"event": "pinned" if pinned else "unpinned", "user_id": tx.caller.user_id, "id": seq})
    return Done(room_id=room.id, offset=offset)


@reads(ListPins, "GET /api/rooms/{room_id}/pins")
def list_pins(tx: Tx, message: ListPins) -> Pins:
    """The pinned messages of a room that the caller may see, the pin set last first."""
    room, member = tx.enter(message.room_id, Act.BROWSE)
    t = tables.pins.c
    after = member.history_from if member is not None else 0
    query = (
        select(tables.messages)
        .join(tables.pins, t.message == tables.messages.c.key)
        .where(t.message > key_of(room.no, after), t.message <= key_of(room.no, room.event_seq))
        .order_by(t.at.desc(), t.message.desc())
    )
    return Pins(room_id=room.id, messages=messages_of(tx, room, tx.connection.execute(query).all()))
