"""Erasing a person: nothing of what they said, uploaded or did is left but that something was there.

Their messages become tombstones, so numbers and threads of others stay. What others said stays too, also where it
mentions them. It goes room by room, in short transactions; whatever interrupts it, the next call finds what is left.
The last transaction in a room tells it (`user_erased`).
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Sequence
from functools import partial
from itertools import groupby
from typing import Any, Final

import msgspec
from msgspec import Struct
from sqlalchemy import ColumnElement, Connection, Table, and_, case, delete, func, or_, select, true, union, update

from hubbub.auth import Grants
from hubbub.features.chat import tables
from hubbub.features.chat.access import Caller, RoomRow
from hubbub.features.chat.exported import room_of_key, scanned
from hubbub.features.chat.membership import drop_invitation, drop_member, expel
from hubbub.features.chat.mentioning import EVERYONE
from hubbub.features.chat.render import extra_of
from hubbub.features.chat.search import forget
from hubbub.features.chat.tables import SEQ_BITS, SEQ_MASK, key_of
from hubbub.features.chat.tells import ErasedData, ReactionData
from hubbub.features.chat.tx import Outcome, Tx
from hubbub.features.chat.uploads import drop_files
from hubbub.messages import JSON
from hubbub.settings import Settings
from hubbub.store import Store

CHUNK: Final = 500
"""Rows of a kind in one transaction."""
OPERATOR: Final = Caller("", Grants(admin=True), True)
"""Who erases, where nobody else is named."""


class Erased(Struct):
    """How many of what were erased."""

    rooms: int = 0
    messages: int = 0
    reactions: int = 0
    mentions: int = 0
    files: int = 0


class _Left(Struct):
    """What there is to erase in a room: keys of messages and of events."""

    messages: array[int]
    events: array[int]


class _Step(Outcome[Any]):
    """What one transaction leads to, and what it erased in a room. ``whole``: there is nothing left."""

    __slots__ = ("erased", "whole")

    def __init__(self, outcome: Outcome[Any], erased: Erased, *, whole: bool) -> None:
        super().__init__()
        for name in Outcome.__slots__:
            setattr(self, name, getattr(outcome, name))
        self.erased = erased
        self.whole = whole


async def erase_user(
    store: Store,
    user_id: str,
    *,
    now: int,
    settings: Settings,
    caller: Caller = OPERATOR,
    tell: Callable[[Outcome[Any]], None] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Erased:
    """Erase a person. Called again, it erases what was left or came since. Who can still sign in goes on writing: revoke
    their tokens first.

    :param now: unix milliseconds.
    :param caller: whom the audit log names.
    :param tell: called after each commit with what it leads to.
    :param progress: called with how many messages are erased, and of how many.
    :raises ClientError: the store does not take it.
    """
    make = partial(Tx, caller=caller, now=now, settings=settings, writes=True)
    found = await _find(store, user_id)
    total = sum(len(left.messages) for left in found.values())
    erased = Erased()
    if found:
        await store.write(lambda connection: make(connection).audit("erase_user", None, user_id=user_id))
    for room_no, left in sorted(found.items()):
        start, whole = 0, False
        while not whole:
            some = _Left(left.messages[start : start + CHUNK], left.events[start : start + CHUNK])
            start += CHUNK
            last = start >= max(len(left.messages), len(left.events))
            step = await store.write(partial(_erase_some, make, room_no, user_id, some, last), tell)
            whole = step.whole
            _add(erased, step.erased)
            if progress is not None:
                progress(erased.messages, total)
        erased.rooms += 1
    await _erase_beside(store, user_id)
    return erased


def _add(total: Erased, step: Erased) -> None:
    for name in Erased.__struct_fields__:
        setattr(total, name, getattr(total, name) + getattr(step, name))


# -- finding what there is


async def _find(store: Store, user_id: str) -> dict[int, _Left]:
    """What there is to erase, by the numbers of rooms."""
    found = {no: _Left(array("q"), array("q")) for no in await store.read(partial(_rooms_of, user_id))}
    wanted = ((tables.messages, _not_blank(user_id), "messages"), (tables.events, _telling(user_id), "events"))
    for table, which, name in wanted:
        async for keys in scanned(store.read, table, which):
            for no, some in groupby(keys, lambda key: key >> SEQ_BITS):
                left = found.setdefault(no, _Left(array("q"), array("q")))
                getattr(left, name).extend(some)
    return found


def _rooms_of(user_id: str, connection: Connection) -> Sequence[int]:
    """Rooms in which there is something of a person beside messages."""
    t = tables
    in_rooms = [
        select(table.c.room_no).where(table.c[column] == user_id)
        for table, column in ((t.members, "user_id"), (t.invitations, "user_id"), (t.attachments, "owner"))
    ]
    at_messages = [
        select(room_of_key(column)).where(column.table.c.user_id == user_id)
        for column in (t.reactions.c.message, t.mentions.c.message, t.followers.c.root)
    ]
    bans = select(t.bans.c.room_no).where(_reasoned(user_id))
    return connection.scalars(union(*in_rooms, *at_messages, bans)).all()


def _not_blank(user_id: str) -> ColumnElement[bool]:
    t = tables.messages.c
    something = or_(t.deleted_at.is_(None), t.body != "", t.extra.is_not(None), t.client_id.is_not(None))
    return and_(t.author == user_id, something)


def _telling(user_id: str) -> ColumnElement[bool]:
    """Events with words: why somebody did something to the person, or the person to somebody; the person's reactions."""
    t = tables.events.c
    about = or_(t.by == user_id, _has(f'"user_id":{JSON.encode(user_id).decode()}'))
    reacted = and_(t.type == "reaction", t.by == user_id, ~_has('"emoji":""'))
    return or_(and_(t.type == "member", about, _has('"reason":"')), reacted)


def _has(part: str) -> ColumnElement[bool]:
    """An event's data has this in it. (LIKE would not tell Ann from ann on SQLite.)"""
    data = tables.events.c.data
    return func.replace(data, part, "") != data


def _reasoned(user_id: str) -> ColumnElement[bool]:
    """Bans of a person, or by the person, that say why."""
    t = tables.bans.c
    return and_(or_(t.user_id == user_id, t.banned_by == user_id), t.reason != "")


# -- erasing in a room


def _erase_some(
    make: Callable[[Connection], Tx], room_no: int, user_id: str, some: _Left, last: bool, connection: Connection
) -> _Step:
    """Erase some of what there is in a room; with the last of it, tell the room."""
    tx = make(connection)
    room, _ = tx.look_by_number(room_no)
    _leave(tx, room, user_id)
    connection.execute(
        update(tables.bans).where(tables.bans.c.room_no == room_no, _reasoned(user_id)).values(reason="")
    )
    messages, of_messages = _blank_messages(tx, room, list(some.messages))
    _blank_events(connection, user_id, list(some.events))
    in_room = _between(room_no)
    r, m, f, a = tables.reactions.c, tables.mentions.c, tables.followers.c, tables.attachments.c
    reactions, more_reactions = _delete_some(connection, tables.reactions, r.message, r.user_id == user_id, in_room)
    mentions, more_mentions = _delete_some(connection, tables.mentions, m.message, m.user_id == user_id, in_room)
    _, more_followed = _delete_some(connection, tables.followers, f.root, f.user_id == user_id, in_room)
    files, more_files = _take(connection, a.id, and_(a.room_no == room_no, a.owner == user_id))
    drop_files(connection, a.id.in_(files))
    whole = last and not (more_reactions or more_mentions or more_followed or more_files)
    if whole:
        tx.event(room, "user_erased", ErasedData(user_id))
    return _Step(tx.outcome, Erased(0, messages, reactions, mentions, of_messages + len(files)), whole=whole)


def _leave(tx: Tx, room: RoomRow, user_id: str) -> None:
    if drop_member(tx, room, user_id):
        expel(tx, room, user_id, "erased")
    drop_invitation(tx, room, user_id)


def _between(room_no: int) -> Callable[[ColumnElement[int]], ColumnElement[bool]]:
    return lambda key: key.between(key_of(room_no, 0), key_of(room_no, SEQ_MASK))


def _take(connection: Connection, column: ColumnElement[Any], which: ColumnElement[bool]) -> tuple[list[Any], bool]:
    """Some values of a column; true: there are more."""
    found = list(connection.scalars(select(column).where(which).distinct().order_by(column).limit(CHUNK + 1)))
    return found[:CHUNK], len(found) > CHUNK


def _delete_some(
    connection: Connection,
    table: Table,
    key: ColumnElement[int],
    which: ColumnElement[bool],
    in_room: Callable[[ColumnElement[int]], ColumnElement[bool]],
) -> tuple[int, bool]:
    """Delete some of somebody's rows at messages of a room; returns how many, and whether there are more."""
    keys, more = _take(connection, key, and_(which, in_room(key)))
    if not keys:
        return 0, False
    removed = connection.execute(delete(table).where(which, key.between(keys[0], keys[-1]))).rowcount
    return removed, more


def _blank_messages(tx: Tx, room: RoomRow, keys: list[int]) -> tuple[int, int]:
    """Make tombstones of messages, as if they were deleted; nobody in the room hears of each. Returns how many, and how
    many files they had."""
    if not keys:
        return 0, 0
    t, execute = tables.messages.c, tx.connection.execute
    mentioning = select(t.key, t.author, t.extra).where(t.key.in_(keys), t.deleted_at.is_(None), t.extra.is_not(None))
    for row in execute(mentioning).all():
        if names := extra_of(row).mentions:
            _uncount(tx, room, row, names)
    forget(tx.connection, t.key.in_(keys))
    for table in (tables.versions, tables.reactions, tables.mentions):
        execute(delete(table).where(table.c.message.in_(keys)))
    files = drop_files(tx.connection, tables.attachments.c.message.in_(keys))
    pins = execute(delete(tables.pins).where(tables.pins.c.message.in_(keys))).rowcount
    if pins:
        tx.change_room(room, pin_count=room.pin_count - pins)
    new = t.deleted_at.is_(None)
    blank = update(tables.messages).values(
        body="",
        extra=None,
        client_id=None,
        deleted_at=func.coalesce(t.deleted_at, tx.now),
        deleted_by=case((new, ""), else_=t.deleted_by),
    )
    return execute(blank.where(t.key.in_(keys))).rowcount, files


def _uncount(tx: Tx, room: RoomRow, row: Any, names: Sequence[str]) -> None:
    """A message mentions nobody any more. Who had read it had counted it off already."""
    m, seq = tables.members.c, row.key & SEQ_MASK
    called = true() if EVERYONE in names else m.user_id.in_(names)
    readers = and_(m.room_no == room.no, m.user_id != row.author, m.history_from < seq, m.read_seq < seq)
    tx.connection.execute(
        update(tables.members).where(readers, called, m.mention_count > 0).values(mention_count=m.mention_count - 1)
    )


def _blank_events(connection: Connection, user_id: str, keys: list[int]) -> None:
    """Take the words out of events. A reaction that is erased is one that was taken back."""
    t = tables.events.c
    for row in connection.execute(select(t.key, t.type, t.target, t.data).where(t.key.in_(keys))).all():
        if row.type == "reaction":
            data = JSON.encode(ReactionData(row.target or 0, "", user_id, False, 0))
        else:
            data = JSON.encode({k: v for k, v in msgspec.json.decode(row.data).items() if k != "reason"})
        connection.execute(update(tables.events).where(t.key == row.key).values(data=data.decode()))


# -- beside rooms


async def _erase_beside(store: Store, user_id: str) -> None:
    """What moderators wrote with the person or of the person, and when the person was last seen."""
    r, a, seen = tables.reports.c, tables.audit.c, tables.last_seen.c
    blanks = (
        (tables.reports, and_(r.reported_by == user_id, r.reason != ""), {"reason": ""}),
        (tables.reports, and_(r.closed_by == user_id, r.note != ""), {"note": ""}),
        (tables.audit, and_(or_(a.by == user_id, a.target_user == user_id), a.data != "{}"), {"data": "{}"}),
    )
    for table, which, values in blanks:
        while await store.write(partial(_blank, table, which, values)):
            pass
    await store.write(lambda connection: connection.execute(delete(tables.last_seen).where(seen.user_id == user_id)))


def _blank(table: Table, which: ColumnElement[bool], values: dict[str, str], connection: Connection) -> bool:
    """Blank some rows; true: there may be more."""
    numbers, more = _take(connection, table.c.no, which)
    connection.execute(update(table).where(table.c.no.in_(numbers)).values(values))
    return more


# -- in the file


async def rewrite_file(store: Store) -> None:
    """Write a SQLite file anew, so that nothing of what was erased is in its bytes. Nobody can write meanwhile, and it
    takes as much room on the disk again, and some seconds per gigabyte. Other databases have ways of their own.

    ``PRAGMA secure_delete`` zeroes what is deleted, but where a page of the file was split or balanced before, it may
    have an old copy of a row in its unused part, and there it stays.

    :raises DBAPIError: there is no room for it; then the file is as it was.
    """
    if store.engine.name == "sqlite":
        await store.engine.write(_vacuum)


def _vacuum(connection: Connection) -> None:
    connection.exec_driver_sql("COMMIT")  # the engine began a transaction, and VACUUM is refused in one
    try:
        connection.exec_driver_sql("VACUUM")
    finally:
        connection.exec_driver_sql("BEGIN")
