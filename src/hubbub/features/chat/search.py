"""Finding messages, and on SQLite the index behind it.

PostgreSQL keeps its index itself, in the transaction that writes. SQLite's (FTS5) would make every message wait for it,
so messages are indexed after their commit, some hundreds in one statement: ``rooms.indexed_seq`` says how far. Up to
there, exactly those are in the index that somebody said, that are not deleted and have a text. What changes one of them
changes the index in the same transaction (:func:`reindex`, :func:`forget`): FTS5 has to be told the very words that it
is to take out.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Coroutine, Iterable, Sequence
from typing import Any, Final, NamedTuple

import msgspec
from sqlalchemy import (
    ARRAY,
    BigInteger,
    ColumnElement,
    Connection,
    and_,
    bindparam,
    column,
    func,
    literal_column,
    select,
    table,
    text,
)

from hubbub.errors import ClientError, ErrorCode, StoreUnavailable
from hubbub.features.chat import tables
from hubbub.features.chat.access import Act, RoomRow, may_search
from hubbub.features.chat.asks import Search
from hubbub.features.chat.membership import checked_text
from hubbub.features.chat.queries import Query, parse
from hubbub.features.chat.render import MESSAGE_COLUMNS, SYSTEM, message_of
from hubbub.features.chat.tables import SEARCHED, SEQ_BITS, SEQ_MASK, key_of
from hubbub.features.chat.tells import HitInfo, SearchResults
from hubbub.features.chat.tx import Tx, reads
from hubbub.store import Store

CHUNK: Final = 1000
"""Messages that are indexed in one transaction: 4 ms, or 20 where FTS5 merges."""
CHUNK_SIZE: Final = 200_000
"""Characters of them, if there is more than one."""
ROOMS: Final = 500
"""Rooms that are looked at in one transaction."""
BUSY_CHUNKS: Final = 5
"""Transactions of one sweep while others wait to write: 10,000 messages a second, for a twentieth of the writer's time."""
QUIET: Final = 32
"""Units waiting in the store up to which it is not busy."""
WIPED: Final = 64
"""Pages of the index that are rewritten in one transaction: 10 ms."""
LOOKS: Final = 3600.0
"""Seconds between two looks at whether words are to be wiped from the index, since that rewrites all of it."""


# -- the index of SQLite


class Indexer:
    """Makes messages searchable, soon after they were said. On PostgreSQL it does nothing.

    :param spawn: runs something that nobody waits for.
    """

    def __init__(self, store: Store, spawn: Callable[[Coroutine[Any, Any, None]], None]) -> None:
        self._store = store
        self._spawn = spawn
        self._needed = store.engine.name == "sqlite"
        self._behind: dict[int, None] = {}
        self._running = False
        self._unclean = False
        self._wiping: int | None = None
        self._looked = float("-inf")

    @property
    def clean(self) -> bool:
        """Whether it does nothing, and knows of nothing to do."""
        return not self._running and self._is_done()

    def _is_done(self) -> bool:
        return not self._behind and not self._unclean

    async def start(self) -> None:
        """Find the rooms that are behind.

        :raises StoreUnavailable: the database cannot be read.
        """
        if self._needed:
            rooms = await self._store.read(lambda connection: connection.scalars(_BEHIND).all())
            self._behind.update(dict.fromkeys(rooms))

    def mark(self, room_no: int) -> None:
        """Something was said in a room, and is committed."""
        if self._needed:
            self._behind[room_no] = None

    def sweep(self, monotonic: float) -> None:
        """Begin to index what is new: all of it, or a bounded share while others wait to write. Twice a second."""
        if self._needed and monotonic - self._looked >= LOOKS:
            self._looked = monotonic
            self._unclean = True
        if not self._running and not self._is_done():
            self._running = True
            self._spawn(self._run())

    async def catch_up(self) -> None:
        """Index all there is, and wipe what has to be.

        :raises ClientError, StoreUnavailable: as :meth:`Store.write` does.
        """
        self._unclean = self._needed
        while not self._is_done():
            await self._step()

    async def _run(self) -> None:
        chunks = 0
        try:
            while not self._is_done() and (chunks < BUSY_CHUNKS or self._store.waiting <= QUIET):
                await self._step()
                chunks += 1
        except (ClientError, StoreUnavailable):
            pass  # counted and logged by the store; what is left is left for the next sweep
        finally:
            self._running = False

    async def _step(self) -> None:
        if not self._behind:
            return await self._wipe()
        rooms = list(self._behind)[:ROOMS]
        for no in rooms:
            del self._behind[no]  # what is marked meanwhile is marked again
        left = rooms
        try:
            left = await self._store.write(lambda connection: index(connection, rooms))
        finally:
            self._behind = dict.fromkeys([*left, *self._behind])
        return None

    async def _wipe(self) -> None:
        begun = self._wiping
        self._wiping = await self._store.write(lambda connection: wipe(connection, begun))
        self._unclean = self._wiping is not None


def index(connection: Connection, rooms: Sequence[int], limit: int = CHUNK, size: int = CHUNK_SIZE) -> list[int]:
    """Make searchable what was said in rooms, from the first one on; returns those in which more was said.

    :param rooms: their numbers.
    :param limit: messages (and other events) that are looked at.
    :param size: characters of them; one message is always taken.
    """
    found = {row.no: row for row in connection.execute(_SPANS, {"rooms": _json(rooms)})}
    left, spans = limit, []
    for no in rooms:
        if left > 0 and no in found:
            low, high = found[no].indexed_seq, found[no].event_seq
            spans.append((key_of(no, low), key_of(no, min(high, low + left))))
            left -= high - low
    cut = connection.scalar(_CUT, {"spans": _json(spans), "size": size})
    if cut is not None:
        end = next(place for place, (low, high) in enumerate(spans) if low < cut <= high)
        spans = [*spans[:end], (spans[end][0], cut - 1)]
    connection.execute(_INDEX, {"spans": _json(spans)})
    connection.execute(_INDEXED, {"spans": _json(spans)})
    reached = {high >> SEQ_BITS: high & SEQ_MASK for _, high in spans}
    behind = [no for no in rooms if no in found and reached.get(no, -1) < found[no].event_seq]
    return sorted(behind, key=lambda no: no in reached)  # whose turn it was not comes first


def reindex(tx: Tx, room: RoomRow, row: Any, body: str) -> None:
    """A message gets another text, or none (""); call it in that transaction.

    :param row: the message as it was.
    """
    if tx.dialect != "sqlite" or row.kind == SYSTEM or (row.key & SEQ_MASK) > room.indexed_seq:
        return
    if row.body and row.deleted_at is None:
        tx.connection.execute(_TAKE_OUT, {"key": row.key, "body": row.body[:SEARCHED]})
    if body:
        tx.connection.execute(_PUT_IN, {"key": row.key, "body": body[:SEARCHED]})
    else:
        tx.connection.execute(_ASK_FOR_WIPING)


def forget(connection: Connection, which: ColumnElement[bool]) -> None:
    """Messages are about to be erased; call it in that transaction, before. Nobody finds them any more; within an hour,
    or at once by :meth:`Indexer.catch_up`, their words are in no page of the index.

    :param which: a condition on ``tables.messages``.
    """
    if connection.dialect.name != "sqlite":
        return
    t, r = tables.messages.c, tables.rooms.c
    indexed = (
        (t.kind != SYSTEM) & t.deleted_at.is_(None) & (t.body != "") & ((t.key.op("&")(SEQ_MASK)) <= r.indexed_seq)
    )
    rows = (
        select(literal_column("'delete'"), t.key, func.substr(t.body, 1, SEARCHED))
        .join_from(tables.messages, tables.rooms, r.no == t.room_no)
        .where(indexed, which)
    )
    removed = connection.execute(_search.insert().from_select(["message_search", "rowid", "body"], rows))
    if removed.rowcount:
        connection.execute(_ASK_FOR_WIPING)


def wipe(connection: Connection, begun: int | None) -> int | None:
    """Rewrite some of the index, so that words of what is gone are gone: FTS5 only notes that they do not count any
    more, until it happens to merge their pages. (Its option `secure-delete` would do it at once, but makes an index that
    SQLite before 3.42 cannot read.) The pages that become free are zeroed, by PRAGMA secure_delete.

    :param begun: what it returned the time before; None: it begins.
    :returns: to be called again, with this; None: there is nothing (more) to wipe.
    """
    asked, done = connection.execute(_WIPING).one()
    if asked == done:
        return None
    before = connection.scalar(_CHANGES)
    # sqlite.org/fts5.html section 6.8: a negative number to begin a merge of everything; it ends with no change
    connection.execute(_MERGE, {"pages": -WIPED if begun is None else WIPED})
    begun = asked if begun is None else begun
    if connection.scalar(_CHANGES) - before >= 2:
        return begun
    connection.execute(_WIPING_DONE, {"done": begun})
    return None if begun == asked else wipe(connection, None)


def _json(value: Any) -> str:
    return msgspec.json.encode(value).decode()


_search: Final = table("message_search", column("message_search"), column("rowid"), column("body"))
_r = tables.rooms.c
_BEHIND: Final = select(_r.no).where(_r.indexed_seq < _r.event_seq).order_by(_r.no)
_SPANS: Final = text(
    "SELECT no, indexed_seq, event_seq FROM rooms"
    " WHERE no IN (SELECT value FROM json_each(:rooms)) AND indexed_seq < event_seq"
)
_GIVEN: Final = """WITH span(place, low, high) AS MATERIALIZED (
    SELECT key, json_extract(value, '$[0]'), json_extract(value, '$[1]') FROM json_each(:spans))"""
_SAID: Final = """FROM span CROSS JOIN messages
    WHERE messages.key > low AND messages.key <= high AND kind = 0 AND deleted_at IS NULL AND body <> ''"""
_CUT: Final = text(
    f"""{_GIVEN} SELECT key FROM (
        SELECT messages.key, place, sum(length(body)) OVER
            (ORDER BY place, messages.key ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING) AS before {_SAID})
    WHERE before >= :size ORDER BY place, key LIMIT 1"""  # noqa: S608  # of constants
)
"""The first message that is too much; the one before it may be too much already."""
_INDEX: Final = text(
    f"""{_GIVEN} INSERT INTO message_search (rowid, body)
    SELECT messages.key, substr(body, 1, {SEARCHED}) {_SAID}"""  # of constants
)
_INDEXED: Final = text(
    f"""{_GIVEN} UPDATE rooms SET indexed_seq = high & {SEQ_MASK} FROM span WHERE no = low >> {SEQ_BITS}"""  # noqa: S608
)
_TAKE_OUT: Final = text("INSERT INTO message_search (message_search, rowid, body) VALUES ('delete', :key, :body)")
_PUT_IN: Final = text("INSERT INTO message_search (rowid, body) VALUES (:key, :body)")
_WIPING: Final = text("SELECT asked, done FROM message_wiping")
_ASK_FOR_WIPING: Final = text("UPDATE message_wiping SET asked = asked + 1")
_WIPING_DONE: Final = text("UPDATE message_wiping SET done = :done")
_CHANGES: Final = text("SELECT total_changes()")
_MERGE: Final = text("INSERT INTO message_search (message_search, rank) VALUES ('merge', :pages)")


# -- searching


class _Asked(NamedTuple):
    """What is searched for, and where.

    :ivar rooms: number → id.
    :ivar lows: number → key after which the caller may read.
    :ivar before: (at, key) of the last hit of the page before.
    """

    query: Query
    author: str | None
    rooms: dict[int, str]
    lows: dict[int, int]
    before: tuple[int, int]
    limit: int


@reads(Search, "GET /api/search")
def search(tx: Tx, message: Search) -> SearchResults:
    """Find messages in rooms that the caller may read, the newest first.

    :raises ClientError: ``invalid_message``: there is nothing to look for in the query; ``not_found``, ``not_joined``.
    """
    query = parse(message.query)
    before = _place(message.before)
    rooms, lows = _one_room(tx, message.room_id) if message.room_id is not None else _all_rooms(tx)
    author = None if message.user_id is None else checked_text(message.user_id, "user_id")
    asked = _Asked(query, author, rooms, lows, before, message.limit + 1)
    if tx.dialect == "postgresql":
        tx.connection.execute(_PLAN_ANEW)
    rows = list(_within(tx, asked) if message.room_id is not None else _across(tx, asked))
    more = len(rows) > message.limit
    del rows[message.limit :]
    hits = [HitInfo(rooms[row.room_no], message_of(row), query.marks(row.body[:SEARCHED])) for row in rows]
    return SearchResults(message.query, hits, f"{rows[-1].at:x}.{rows[-1].key:x}" if more else None)


_PLACE: Final = re.compile(r"([0-9a-f]{1,15})\.([0-7]?[0-9a-f]{1,15})", re.ASCII)
_NEWEST: Final = (2**62, 2**63 - 1)


def _place(before: str | None) -> tuple[int, int]:
    """Where a page begins.

    :raises ClientError: ``invalid_message``.
    """
    if before is None:
        return _NEWEST
    place = _PLACE.fullmatch(before)
    if place is None:
        raise ClientError(ErrorCode.INVALID_MESSAGE, "give the `next` of the page before - at `$.before`")
    return int(place[1], 16), int(place[2], 16)


def _one_room(tx: Tx, room_id: str) -> tuple[dict[int, str], dict[int, int]]:
    room, member = tx.enter(room_id, Act.BROWSE)
    return {room.no: room.id}, {room.no: key_of(room.no, member.history_from if member is not None else 0)}


def _all_rooms(tx: Tx) -> tuple[dict[int, str], dict[int, int]]:
    r, m = tables.rooms.c, tables.members.c
    mine = and_(m.room_no == r.no, m.user_id == tx.caller.user_id)
    query = select(r.no, r.id, r.visibility, m.history_from).select_from(
        tables.rooms.join(tables.members, mine, isouter=tx.caller.admin)
    )
    rooms, lows = {}, {}
    for no, room_id, visibility, history_from in tx.connection.execute(query):
        if may_search(tx.caller, room_id, visibility, member=history_from is not None):
            rooms[no], lows[no] = room_id, key_of(no, history_from or 0)
    return rooms, lows


def _within(tx: Tx, asked: _Asked) -> Iterable[Any]:
    """Hits in one room. There, the newest one has the largest number, which is the order of both indexes."""
    t = tables.messages.c
    ((no, low),) = asked.lows.items()
    key: ColumnElement[int]
    if tx.dialect == "sqlite":
        key = _search.c.rowid
        matches = _search.c.message_search.op("MATCH")(asked.query.fts5())
        query = select(*MESSAGE_COLUMNS).join_from(_search, tables.messages, t.key == key).where(matches)
    else:
        key = t.key
        matches = column("tsv").op("@@")(func.to_tsquery(text("'pg_catalog.simple'"), asked.query.tsquery()))
        query = select(*MESSAGE_COLUMNS).where(matches)
    query = query.where(key > low, key < key_of(no + 1, 0))
    if asked.before != _NEWEST:
        query = query.where(key < asked.before[1])
    if asked.author is not None:
        query = query.where(t.author == asked.author)
    return tx.connection.execute(query.order_by(key.desc()).limit(asked.limit))


def _across(tx: Tx, asked: _Asked) -> Iterable[Any]:
    """Hits in several rooms, in order of time."""
    if not asked.rooms:
        return []
    at, key = asked.before
    values = {"author": asked.author, "at": at, "key": key, "limit": asked.limit}
    if tx.dialect == "sqlite":
        rooms = _json(list(asked.lows.items()))
        return tx.connection.execute(_ACROSS_SQLITE, {"query": asked.query.fts5(), "rooms": rooms, **values})
    lows = {"rooms": list(asked.lows), "lows": list(asked.lows.values())}
    return tx.connection.execute(_ACROSS_POSTGRES, {"query": asked.query.tsquery(), **lows, **values})


_PLAN_ANEW: Final = text("SET LOCAL plan_cache_mode = force_custom_plan")
"""How to find a word depends on how common it is: a plan that was made for any word would be a thousand times too slow."""
_COLUMNS: Final = ", ".join(f"messages.{each.name}" for each in MESSAGE_COLUMNS)
_NEXT: Final = """(CAST(:author AS TEXT) IS NULL OR messages.author = :author)
    AND (messages.at, messages.key) < (:at, :key) ORDER BY messages.at DESC, messages.key DESC LIMIT :limit"""
_ACROSS_SQLITE: Final = text(
    f"""WITH allowed(no, low) AS MATERIALIZED (
        SELECT json_extract(value, '$[0]'), json_extract(value, '$[1]') FROM json_each(:rooms))
    SELECT {_COLUMNS} FROM message_search
    CROSS JOIN allowed ON allowed.no = message_search.rowid >> {SEQ_BITS} AND message_search.rowid > allowed.low
    CROSS JOIN messages ON messages.key = message_search.rowid
    WHERE message_search MATCH :query AND {_NEXT}"""  # noqa: S608  # of constants
).columns(*MESSAGE_COLUMNS)
"""The rooms are asked before the message is read: most matches may be in rooms of others."""
_ACROSS_POSTGRES: Final = (
    text(
        f"""SELECT {_COLUMNS} FROM messages
        JOIN unnest(:rooms, :lows) AS allowed(no, low) ON allowed.no = messages.room_no AND messages.key > allowed.low
        WHERE messages.tsv @@ to_tsquery('pg_catalog.simple', :query) AND {_NEXT}"""  # noqa: S608  # of constants
    )
    .bindparams(
        bindparam("rooms", type_=ARRAY(BigInteger)),
        bindparam("lows", type_=ARRAY(BigInteger)),
        bindparam("at", type_=BigInteger),
        bindparam("key", type_=BigInteger),
    )
    .columns(*MESSAGE_COLUMNS)
)
