"""Reading: pages of messages, read marks and receipts, threads, mentions, who was last seen when."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from sqlalchemy import (
    ColumnElement,
    Connection,
    Integer,
    Row,
    Select,
    and_,
    bindparam,
    func,
    literal,
    or_,
    select,
    true,
    union,
    update,
)
from sqlalchemy.dialects import postgresql, sqlite

from hubbub.errors import ClientError, ErrorCode
from hubbub.features.chat import tables
from hubbub.features.chat.access import Act, MemberRow, RoomRow
from hubbub.features.chat.asks import GetLastSeen, GetMessages, ListMentions, ListReceipts, ListThreads, MarkRead
from hubbub.features.chat.membership import checked_users
from hubbub.features.chat.mentioning import EVERYONE
from hubbub.features.chat.render import MESSAGE_COLUMNS, messages_of
from hubbub.features.chat.tables import SEQ_BITS, SEQ_MASK, key_of
from hubbub.features.chat.tells import (
    LastSeen,
    Mentions,
    MessagesReply,
    ReadAck,
    ReadMark,
    Receipt,
    Receipts,
    ThreadRow,
    Threads,
)
from hubbub.features.chat.tx import Tx, reads, stamp, writes
from hubbub.messages import Position

_g = tables.messages.c
_m = tables.members.c


# -- pages of messages


@reads(GetMessages, "GET /api/rooms/{room_id}/messages")
def get_messages(tx: Tx, message: GetMessages) -> MessagesReply:
    """A page of a room's messages without the replies in threads, or of one thread's replies."""
    room, member = tx.enter(message.room_id, Act.BROWSE)
    if sum(each is not None for each in (message.before, message.after, message.around)) > 1:
        raise ClientError(ErrorCode.INVALID_MESSAGE, "give one of `before`, `after` and `around`")
    root = None
    if message.thread is not None:
        row = tx.message(room, message.thread, member)
        root = row.thread or message.thread  # a reply's thread is the one that it is in
    rows, before, after = _Shelf(tx, room, member, root).page(message)
    return MessagesReply(
        room_id=room.id,
        messages=messages_of(tx, room, rows),
        before=before,
        after=after,
        position=Position(room.epoch, room.event_seq),
        thread=root,
    )


class _Shelf:
    """The messages of a room, or of a thread in it, that a member may see. All is found by ranges of the key.

    :param root: number of the message whose thread it is; None: the room without its threads.
    """

    def __init__(self, tx: Tx, room: RoomRow, member: MemberRow | None, root: int | None) -> None:
        self._connection = tx.connection
        self._room = room
        self._root = root
        self._low = key_of(room.no, member.history_from if member is not None else 0)
        self._high = key_of(room.no, room.event_seq) + 1

    def page(self, message: GetMessages) -> tuple[list[Row[Any]], bool, bool]:
        """The rows, oldest first; whether there are earlier ones; whether there are later ones."""
        limit = message.limit
        if message.around is not None:
            return self._around(message.around, limit)
        if message.after is not None:
            key = self._key(message.after)
            rows = self._later(key, limit + 1)
            return rows[:limit], bool(self._earlier(key + 1, 1)), len(rows) > limit
        key = self._key(message.before) if message.before is not None else self._high
        rows = self._earlier(key, limit + 1)
        later = message.before is not None and bool(self._later(max(key - 1, self._low), 1))
        return rows[:limit][::-1], len(rows) > limit, later

    def _around(self, seq: int, limit: int) -> tuple[list[Row[Any]], bool, bool]:
        before = limit // 2
        after = limit - 1 - before
        key = self._key(seq)
        earlier = self._earlier(key + 1, before + 2)
        if not earlier or earlier[0].key != key:
            where = "this room, outside of its threads" if self._root is None else "this thread"
            raise ClientError(ErrorCode.NOT_FOUND, f"there is no message {seq} in {where} - at `$.around`")
        later = self._later(key, after + 1)
        return earlier[: before + 1][::-1] + later[:after], len(earlier) > before + 1, len(later) > after

    def _key(self, seq: int) -> int:
        """The key of a number; of one that is out of reach, a key as far out."""
        return min(max(key_of(self._room.no, min(seq, SEQ_MASK)), self._low), self._high)

    def _earlier(self, key: int, limit: int) -> list[Row[Any]]:
        """Those before a key, the newest first."""
        return self._scan(_EARLIER, self._low, key, limit)

    def _later(self, key: int, limit: int) -> list[Row[Any]]:
        """Those after a key, the oldest first."""
        return self._scan(_LATER, key, self._high, limit)

    def _scan(self, queries: tuple[Select[Any], Select[Any]], low: int, high: int, limit: int) -> list[Row[Any]]:
        bounds: dict[str, Any] = {"low": low, "high": high, "wanted": limit}
        if self._root is None:
            return list(self._connection.execute(queries[0], bounds))
        return list(self._connection.execute(queries[1], {**bounds, "no": self._room.no, "root": self._root}))


_RANGE: Final = (
    select(*MESSAGE_COLUMNS).where(_g.key > bindparam("low"), _g.key < bindparam("high")).limit(bindparam("wanted"))
)
_IN_ROOM: Final = _RANGE.where(_g.thread.is_(None))
_IN_THREAD: Final = _RANGE.where(_g.room_no == bindparam("no"), _g.thread == bindparam("root"))
_EARLIER: Final = (_IN_ROOM.order_by(_g.key.desc()), _IN_THREAD.order_by(_g.key.desc()))
_LATER: Final = (_IN_ROOM.order_by(_g.key), _IN_THREAD.order_by(_g.key))


# -- read marks


@writes(MarkRead, "POST /api/rooms/{room_id}/read")
def mark_read(tx: Tx, message: MarkRead) -> ReadAck:
    """The caller has read up to a message. A mark never goes back; all devices of the caller hear when it moves."""
    room, member = tx.enter(message.room_id, Act.BROWSE)
    if member is None:
        raise ClientError(ErrorCode.NOT_JOINED, "join the room first (join_room)")
    if message.id > room.event_seq:
        raise ClientError(ErrorCode.NOT_FOUND, f"there is no message {message.id} in this room yet - at `$.id`")
    if message.thread is not None:
        return _mark_thread(tx, room, member, message.thread, message.id)
    seq, count = _last_before(tx, room, message.id)
    if seq <= member.read_seq:
        return _mark_of(room, member)
    count = max(count, member.read_count)
    mentions = unread_mentions(tx, room, member, seq)
    here = (_m.room_no == room.no) & (_m.user_id == member.user_id)
    tx.connection.execute(
        update(tables.members).where(here).values(read_seq=seq, read_count=count, mention_count=mentions)
    )
    mark = _mark_of(room, member._replace(read_seq=seq, read_count=count, mention_count=mentions))
    tx.personally(member.user_id, ReadMark(room.id, mark.read, mark.unread, mark.mentions))
    if room.is_group(tx.settings.group_limit):
        tx.pass_by(room.id, Receipt(room.id, member.user_id, seq))
    return mark


def _mark_of(room: RoomRow, member: MemberRow) -> ReadAck:
    unread = max(0, room.message_count - member.read_count)
    return ReadAck(room_id=room.id, read=member.read_seq, unread=unread, mentions=member.mention_count)


def _last_before(tx: Tx, room: RoomRow, seq: int) -> tuple[int, int]:
    """The last message up to a number, and how many the room had then."""
    inside = (_g.key > key_of(room.no, 0)) & (_g.key <= key_of(room.no, seq))
    row = tx.connection.execute(select(_g.key, _g.number).where(inside).order_by(_g.key.desc()).limit(1)).first()
    if row is not None:
        return row.key & SEQ_MASK, row.number
    if not room.trimmed_seq:
        return 0, 0
    # those before are gone, for their age: the number of the first one that is left tells how many they were
    rest = (_g.key > key_of(room.no, seq)) & (_g.key <= key_of(room.no, room.event_seq)) & _g.thread.is_(None)
    first = select(_g.number, _g.kind).where(rest).order_by(_g.key).limit(1)
    left = tx.connection.execute(first).first()
    return seq, room.message_count if left is None else left.number - (left.kind == 0)


def unread_mentions(tx: Tx, room: RoomRow, member: MemberRow, read_seq: int) -> int:
    """How many messages after a number mention a member, by name or with `@room`; 0 for who wants to hear of none.

    It is what ``members.mention_count`` counts.
    """
    if member.notify == "none":
        return 0
    return _count_mentions(tx, room, member, read_seq, true())


def _count_mentions(tx: Tx, room: RoomRow, member: MemberRow, seq: int, which: ColumnElement[bool]) -> int:
    t = tables.mentions.c
    query = (
        select(func.count(t.message.distinct()))
        .join(tables.messages, _g.key == t.message)
        .where(
            t.user_id.in_((member.user_id, EVERYONE)),
            t.message > key_of(room.no, max(seq, member.history_from)),
            t.message <= key_of(room.no, room.event_seq),
            _g.author != member.user_id,
            which,
        )
    )
    return tx.connection.scalars(query).one()


def _mark_thread(tx: Tx, room: RoomRow, member: MemberRow, root: int, seq: int) -> ReadAck:
    """The same in a thread that the member follows."""
    t, f = tables.threads.c, tables.followers.c
    mine = (f.root == key_of(room.no, root)) & (f.user_id == member.user_id)
    query = select(f.read_seq, f.read_count, t.reply_count).join(tables.threads, t.root == f.root).where(mine)
    row = tx.connection.execute(query).first()
    if row is None:
        raise ClientError(ErrorCode.NOT_FOUND, f"you do not follow the thread of message {root} - at `$.thread`")
    read, count, replies = row
    inside = (_g.room_no == room.no) & (_g.thread == root)
    more = (_g.key > key_of(room.no, read)) & (_g.key <= key_of(room.no, seq))
    new, last = tx.connection.execute(select(func.count(), func.max(_g.key)).where(inside, more)).one()
    if new:
        read, count = last & SEQ_MASK, count + new
        tx.connection.execute(update(tables.followers).where(mine).values(read_seq=read, read_count=count))
    unread = max(0, replies - count)
    mentions = 0 if member.notify == "none" else _count_mentions(tx, room, member, read, _g.thread == root)
    if new:
        tx.personally(member.user_id, ReadMark(room.id, read, unread, mentions, root))
    return ReadAck(room_id=room.id, read=read, unread=unread, mentions=mentions, thread=root)


@reads(ListReceipts, "GET /api/rooms/{room_id}/receipts")
def list_receipts(tx: Tx, message: ListReceipts) -> Receipts:
    """How far each member of a small room has read."""
    room, _ = tx.enter(message.room_id, Act.BROWSE)
    limit = tx.settings.group_limit
    if not room.is_group(limit):
        raise ClientError(
            ErrorCode.FORBIDDEN, f"only rooms of the kind `group` with up to {limit} members have receipts"
        )
    query = select(_m.user_id, _m.read_seq).where(_m.room_no == room.no).order_by(_m.user_id)
    return Receipts(room_id=room.id, receipts=dict(tx.connection.execute(query).all()))


# -- over all rooms of a user


@reads(ListThreads, "GET /api/threads")
def list_threads(tx: Tx, message: ListThreads) -> Threads:
    """The threads that the caller follows, where the caller is a member still; the liveliest first."""
    t, f = tables.threads.c, tables.followers.c
    found = (
        select(t.root, t.last_at)
        .join(tables.followers, f.root == t.root)
        .join(tables.members, (_m.room_no == t.root.bitwise_rshift(_BITS)) & (_m.user_id == f.user_id))
        .where(f.user_id == tx.caller.user_id, t.root > _BASE + _m.history_from, _open(tx))
        .order_by(t.last_at.desc(), t.root.desc())
        .limit(message.limit)
    )
    if message.room_id is not None:
        room, _ = tx.enter(message.room_id, Act.BROWSE)
        found = found.where(t.root > key_of(room.no, 0), t.root <= key_of(room.no, room.event_seq))
    first = found.subquery().c
    query = _WITH_ROOM.join(first.root.table, first.root == _g.key).order_by(first.last_at.desc(), first.root.desc())
    return Threads(threads=_with_rooms(tx, tx.connection.execute(query).all()))


@reads(ListMentions, "GET /api/mentions")
def list_mentions(tx: Tx, message: ListMentions) -> Mentions:
    """Messages that mention the caller, or all of a room that the caller is a member of; the newest first."""
    wanted = and_(_g.author != tx.caller.user_id, _before(message.before))
    mine = union(*(_mentioning(tx, name, wanted, message.limit + 1) for name in (tx.caller.user_id, EVERYONE)))
    query = _WITH_ROOM.where(_g.key.in_(mine), wanted).order_by(_g.at.desc(), _g.key.desc()).limit(message.limit + 1)
    rows = tx.connection.execute(query).all()
    page = rows[: message.limit]
    following = f"{page[-1].at}.{page[-1].key}" if len(rows) > len(page) else None
    return Mentions(mentions=_with_rooms(tx, page), next=following)


def _mentioning(tx: Tx, name: str, wanted: ColumnElement[bool], limit: int) -> Select[tuple[int]]:
    """Keys of messages that have a name among their mentions, in rooms of the caller."""
    t = tables.mentions.c
    there = and_(t.user_id == name, t.message > _BASE + _m.history_from, t.message <= _BASE + SEQ_MASK)
    mine = and_(_m.user_id == tx.caller.user_id, _open(tx))
    if tx.dialect == "sqlite":
        return select(t.message).select_from(tables.members).join(tables.mentions, there).where(mine)
    # PostgreSQL takes a range for a large part of a table, and would look at all messages. It needs to be told that
    # it is a few per room: in a room, what has the larger key came later, so a page needs no more
    few = (
        select(t.message)
        .join(tables.messages, _g.key == t.message)
        .where(there, wanted)
        .order_by(t.message.desc())
        .limit(limit)
        .correlate(tables.members)
        .lateral()
    )
    return select(few.c.message).select_from(tables.members).join(few, true()).where(mine)


_BASE: Final = _m.room_no * (1 << SEQ_BITS)
"""Where the keys of a member's room begin."""
_BITS: Final = literal(SEQ_BITS, Integer)
_WITH_ROOM: Final = select(*MESSAGE_COLUMNS, tables.rooms.c.id.label("room_id")).join(
    tables.rooms, tables.rooms.c.no == _g.room_no
)


def _before(cursor: str | None) -> ColumnElement[bool]:
    """What comes after a page that ended at this time and key."""
    if cursor is None:
        return true()
    parts = cursor.split(".")
    if len(parts) != 2 or not all(part.isascii() and part.isdigit() and int(part) < 1 << 63 for part in parts):
        raise ClientError(ErrorCode.INVALID_MESSAGE, "give the `next` of the page before - at `$.before`")
    at, key = map(int, parts)
    return or_(_g.at < at, and_(_g.at == at, _g.key < key))


def _with_rooms(tx: Tx, rows: Sequence[Any]) -> list[ThreadRow]:
    shown = messages_of(tx, None, rows)
    return [ThreadRow(row.room_id, each) for row, each in zip(rows, shown, strict=True)]


def _open(tx: Tx) -> ColumnElement[bool]:
    """Memberships in rooms that the caller's token lets in, as a condition."""
    grants = tx.caller.grants
    if tx.caller.admin or grants.rooms is None:
        return true()
    r = tables.rooms.c
    query = select(r.no, r.id).join(tables.members, _m.room_no == r.no).where(_m.user_id == tx.caller.user_id)
    return _m.room_no.in_([no for no, room_id in tx.connection.execute(query) if grants.may_join(room_id)])


# -- last seen


@reads(GetLastSeen, "GET /api/last-seen")
def last_seen(tx: Tx, message: GetLastSeen) -> LastSeen:
    """When people were last connected: those who share a room with the caller; anybody, for an admin."""
    wanted = set(checked_users(message.user_ids))
    if not tx.caller.admin:
        others = tables.members.alias().c
        mine = select(_m.room_no).where(_m.user_id == tx.caller.user_id, _open(tx))
        shared = select(others.user_id).where(others.user_id.in_(wanted), others.room_no.in_(mine)).distinct()
        wanted &= {tx.caller.user_id, *tx.connection.scalars(shared)}
    t = tables.last_seen.c
    query = select(t.user_id, t.at).where(t.user_id.in_(wanted))
    times = {user_id: stamp(at) for user_id, at in tx.connection.execute(query)}
    return LastSeen(users={user_id: times.get(user_id) for user_id in sorted(wanted)})


def note_last_seen(connection: Connection, times: Mapping[str, int], dialect: str) -> None:
    """Note when users were last connected. An older time than the one that is there changes nothing.

    :param times: user → unix milliseconds.
    :param dialect: "sqlite" or "postgresql".
    """
    if not times:
        return
    insert = (postgresql.insert if dialect == "postgresql" else sqlite.insert)(tables.last_seen)
    at = tables.last_seen.c.at
    upsert = insert.on_conflict_do_update(
        index_elements=[tables.last_seen.c.user_id], set_={"at": insert.excluded.at}, where=insert.excluded.at > at
    )
    # in one order on all nodes, so that none waits for another that waits for it
    connection.execute(upsert, [{"user_id": user_id, "at": times[user_id]} for user_id in sorted(times)])
