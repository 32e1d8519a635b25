"""Messages on their way into the store: all of a turn, by a handful of statements.

A message takes its number while its room's row is locked, in the transaction that inserts it. What is not simply a text
(threads, mentions, attachments) costs statements of its own; a plain message costs a share of those of its turn.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final

from msgspec import Struct
from sqlalchemy import Connection, bindparam, insert, select, text, update
from sqlalchemy.dialects import postgresql, sqlite

from hubbub.errors import ClientError, ErrorCode
from hubbub.features.chat import tables
from hubbub.features.chat.access import Act, Caller, MemberRow, RoomRow, check, rank_of
from hubbub.features.chat.mentioning import EVERYONE
from hubbub.features.chat.render import SYSTEM, Extra, file_info
from hubbub.features.chat.tables import SEQ_MASK, key_of
from hubbub.features.chat.tells import FileInfo
from hubbub.features.chat.timeline import NOTIFIED, mentioned_members
from hubbub.features.chat.tx import MEMBER_COLUMNS, ROOM_COLUMNS, Mentioned, Tx, room_of
from hubbub.messages import JSON
from hubbub.settings import Settings


class Send(Struct, gc=False):
    """A message that somebody wants to say.

    :ivar names: the names that it mentions.
    """

    room_no: int
    room_id: str
    caller: Caller
    text: str
    client_id: str | None = None
    reply_to: int | None = None
    thread: int | None = None
    files: tuple[str, ...] = ()
    names: tuple[str, ...] = ()


class Sent(Struct, gc=False):
    """What came of it.

    :ivar number: its place among the room's messages.
    :ivar at: unix milliseconds.
    :ivar again: it was said before (the same ``client_id``): nothing was written.
    :ivar event_seq: the room's, now.
    """

    seq: int
    number: int
    at: int
    again: bool = False
    thread: int | None = None
    extra: Extra | None = None
    mentioned: Mentioned | None = None


class Sending:
    """Writes messages.

    :param time: unix seconds.
    """

    def __init__(self, settings: Settings, time: Callable[[], float]) -> None:
        self._settings = settings
        self._time = time

    def __call__(self, connection: Connection, items: Sequence[Send]) -> Sequence[Sent | ClientError]:
        """Number and write them, in their order; see :class:`hubbub.store.Apply`."""
        return _Writing(connection, int(self._time() * 1000), self._settings).write(items)


class _Writing:
    """One turn's messages in one transaction."""

    def __init__(self, connection: Connection, now: int, settings: Settings) -> None:
        self.connection = connection
        self.dialect = connection.dialect.name
        self.now = now
        self.settings = settings
        self.rooms: dict[int, RoomRow] = {}
        self.members: dict[tuple[int, str], MemberRow] = {}
        self.said: dict[tuple[int, str, str], Sent] = {}
        self.last: dict[tuple[int, str], Sent] = {}
        self.rows: list[dict[str, Any]] = []
        self.attached: set[str] = set()
        self.paced: set[tuple[int, str]] = set()

    def write(self, items: Sequence[Send]) -> list[Sent | ClientError]:
        self._read(items)
        results: list[Sent | ClientError] = []
        for item in items:
            try:
                results.append(self._one(item))
            except ClientError as error:
                results.append(error)
        if self.rows:
            self.connection.execute(_INSERT, self.rows)
            self._update()
            self._follow_up(items, results)
        return results

    def _read(self, items: Sequence[Send]) -> None:
        """What the decisions rest on: the rooms (locked, in one order on all nodes), the authors, what was said before."""
        execute = self.connection.execute
        numbers = _padded(sorted({item.room_no for item in items}))
        for row in execute(_ROOMS, {"numbers": numbers}):
            room = room_of(row)
            self.rooms[room.no] = room
        authors = {(item.room_no, item.caller.user_id) for item in items}
        for row in execute(_MEMBERS[self.dialect], {"wanted": _json(authors)}):
            self.members[row[0], row[1]] = MemberRow(*row[1:])
        retries = {(item.room_no, item.caller.user_id, item.client_id) for item in items if item.client_id is not None}
        if retries:
            for row in execute(_SAID[self.dialect], {"wanted": _json(retries)}):
                self.said[row.room_no, row.author, row.client_id] = Sent(
                    row.key & SEQ_MASK, row.number, row.at, again=True, thread=row.thread
                )

    def _one(self, item: Send) -> Sent:
        user_id = item.caller.user_id
        if item.client_id is not None:
            before = self.said.get((item.room_no, user_id, item.client_id))
            if before is not None:
                return Sent(before.seq, before.number, before.at, again=True, thread=before.thread)
        room = self.rooms.get(item.room_no)
        if room is None:
            raise ClientError(ErrorCode.NOT_FOUND, f"there is no room {item.room_id[:64]!r}")
        member = self.members.get((item.room_no, user_id))
        check(room, member, item.caller, Act.WRITE, self.now)
        self._keep_pace(room, member, item.caller)
        plain = item.thread is None and item.reply_to is None and not item.files and not item.names
        thread, extra = (None, None) if plain else self._special(room, member, item)
        room.event_seq += 1
        if thread is None:
            room.message_count += 1
        room.last_at = self.now
        sent = Sent(room.event_seq, room.message_count, self.now, thread=thread, extra=extra)
        self._add(item, sent)
        return sent

    def _keep_pace(self, room: RoomRow, member: MemberRow | None, caller: Caller) -> None:
        """Slow mode: so many seconds between two messages of a member."""
        if not room.slow_mode or member is None or rank_of(caller, member) > 1:
            return
        due = member.sent_at + room.slow_mode * 1000
        if due > self.now:
            raise ClientError(
                ErrorCode.SLOW_MODE,
                f"in this room, wait {room.slow_mode} s between two messages",
                retry_after=round((due - self.now) / 1000, 3),
            )

    def _add(self, item: Send, sent: Sent) -> None:
        user_id = item.caller.user_id
        if item.client_id is not None:
            self.said[item.room_no, user_id, item.client_id] = sent
        place = item.room_no, user_id
        if sent.thread is None:
            self.last[place] = sent
        if self.rooms[item.room_no].slow_mode and place in self.members:
            self.members[place] = self.members[place]._replace(sent_at=self.now)
            self.paced.add(place)
        self.rows.append(
            {
                "key": key_of(item.room_no, sent.seq),
                "room_no": item.room_no,
                "number": sent.number,
                "author": user_id,
                "client_id": item.client_id,
                "at": sent.at,
                "body": item.text,
                "reply_to": item.reply_to,
                "thread": sent.thread,
                "extra": JSON.encode(sent.extra).decode() if sent.extra is not None else None,
            }
        )

    def _update(self) -> None:
        """Rooms move on; who says something has read what was there. (Slow mode's time goes with the same row.)"""
        touched = {row["room_no"] for row in self.rows}
        self.connection.execute(
            _MOVE,
            [
                {"b_no": no, "b_seq": room.event_seq, "b_count": room.message_count, "b_at": room.last_at}
                for no, room in self.rooms.items()
                if no in touched
            ],
        )
        marks = [
            {"b_no": no, "b_user": user, "b_seq": sent.seq, "b_count": sent.number, "b_at": self.now}
            for (no, user), sent in self.last.items()
            if (no, user) in self.members
        ]
        if marks:
            self.connection.execute(_MARK, marks)
        paced = [{"b_no": no, "b_user": user, "b_at": self.now} for no, user in sorted(self.paced - self.last.keys())]
        if paced:  # a reply in a thread reads nothing of the room, but counts in slow mode
            self.connection.execute(_PACE, paced)

    # -- threads, mentions, attachments

    def _special(self, room: RoomRow, member: MemberRow | None, item: Send) -> tuple[int | None, Extra | None]:
        """Check what a message refers to. Returns the thread that it goes into, and what it has beside its text."""
        tx = self._tx(item.caller)
        thread = None
        if item.thread is not None:
            root = tx.message(room, item.thread, member)
            if root.kind == SYSTEM:
                raise ClientError(ErrorCode.INVALID_MESSAGE, "a system message has no thread - at `$.thread`")
            thread = root.thread or item.thread  # a reply's thread is the one that it is in
            if root.thread is not None:
                tx.message(room, root.thread)  # it may be gone, for its age
        if item.reply_to is not None:
            tx.message(room, item.reply_to, member)
        files = self._files(room, item) if item.files else []
        mentioned = mentioned_members(tx, room, member, item.names) if item.names else []
        extra = Extra(mentioned, files) if mentioned or files else None
        return thread, extra

    def _files(self, room: RoomRow, item: Send) -> list[FileInfo]:
        t = tables.attachments.c
        wanted = list(dict.fromkeys(item.files))
        if len(wanted) > self.settings.max_files_per_message:
            limit = self.settings.max_files_per_message
            raise ClientError(ErrorCode.TOO_MANY, f"a message has at most {limit} attachments - at `$.files`")
        query = select(t.id, t.name, t.media_type, t.size).where(
            t.id.in_(wanted), t.room_no == room.no, t.owner == item.caller.user_id, t.message.is_(None)
        )
        found = {row.id: row for row in self.connection.execute(query)}
        missing = [each for each in wanted if each not in found or each in self.attached]
        if missing:
            raise ClientError(
                ErrorCode.NOT_FOUND, f"no attachment {missing[0]!r} of yours waits in this room - at `$.files`"
            )
        self.attached.update(wanted)
        return [file_info(found[each]) for each in wanted]

    def _follow_up(self, items: Sequence[Send], results: Sequence[Sent | ClientError]) -> None:
        """What refers to messages that are there now."""
        for item, sent in zip(items, results, strict=True):
            if isinstance(sent, ClientError) or sent.again or (sent.thread is None and sent.extra is None):
                continue
            room = self.rooms[item.room_no]
            if sent.extra is not None and sent.extra.files:
                self.connection.execute(
                    update(tables.attachments)
                    .where(tables.attachments.c.id.in_([each.id for each in sent.extra.files]))
                    .values(message=key_of(room.no, sent.seq))
                )
            mentioned = sent.extra.mentions if sent.extra is not None else []
            if sent.thread is not None:
                self._reply(room, item, sent, mentioned)
            if mentioned:
                sent.mentioned = self._mention(room, item, sent, mentioned)

    def _mention(self, room: RoomRow, item: Send, sent: Sent, mentioned: Sequence[str]) -> Mentioned:
        author, key = item.caller.user_id, key_of(room.no, sent.seq)
        self.connection.execute(insert(tables.mentions), [{"user_id": name, "message": key} for name in mentioned])
        m = tables.members.c
        some = (m.room_no == room.no) & (m.user_id != author) & (m.notify != "none")
        if EVERYONE not in mentioned:
            some &= m.user_id.in_(mentioned)
        unread = some & (m.read_seq < sent.seq)  # who says something later in the same turn has read it
        self.connection.execute(update(tables.members).where(unread).values(mention_count=m.mention_count + 1))
        notified = self.connection.scalars(select(m.user_id).where(some).order_by(m.user_id).limit(NOTIFIED))
        return Mentioned(room.id, room.name, sent.seq, author, item.text, tuple(notified))

    def _reply(self, room: RoomRow, item: Send, sent: Sent, mentioned: Sequence[str]) -> None:
        """A thread goes on: count it; who takes part follows it, and its author has read it."""
        assert sent.thread is not None
        root = key_of(room.no, sent.thread)
        upsert = postgresql.insert if self.dialect == "postgresql" else sqlite.insert
        t, f = tables.threads.c, tables.followers.c
        first = upsert(tables.threads).values(root=root, reply_count=1, last_seq=sent.seq, last_at=sent.at)
        self.connection.execute(
            first.on_conflict_do_update(
                index_elements=[t.root],
                set_={"reply_count": t.reply_count + 1, "last_seq": sent.seq, "last_at": sent.at},
            )
        )
        count = self.connection.scalars(select(t.reply_count).where(t.root == root)).one()
        begun = self.connection.scalars(select(tables.messages.c.author).where(tables.messages.c.key == root)).one()
        others = {begun, *(name for name in mentioned if name != EVERYONE)} - {item.caller.user_id}
        if others:
            rows = [{"root": root, "user_id": user, "read_seq": 0, "read_count": 0} for user in sorted(others)]
            self.connection.execute(upsert(tables.followers).on_conflict_do_nothing(), rows)
        mine = {"read_seq": sent.seq, "read_count": count}
        self.connection.execute(
            upsert(tables.followers)
            .values(root=root, user_id=item.caller.user_id, **mine)
            .on_conflict_do_update(index_elements=[f.root, f.user_id], set_=mine)
        )

    def _tx(self, caller: Caller) -> Tx:
        return Tx(self.connection, caller, self.now, self.settings, writes=True)


def said_data(item: Send, sent: Sent, timestamp: str) -> dict[str, Any]:
    """A message that was just said, as its room hears it, without the ``id``; fields at their default are left out."""
    data: dict[str, Any] = {"user_id": item.caller.user_id, "message": item.text, "timestamp": timestamp}
    if item.client_id is not None:
        data["client_id"] = item.client_id
    if sent.number != sent.seq:
        data["number"] = sent.number
    if item.reply_to is not None:
        data["reply_to"] = item.reply_to
    if sent.thread is not None:
        data["thread"] = sent.thread
    if sent.extra is not None:
        if sent.extra.mentions:
            data["mentions"] = sent.extra.mentions
        if sent.extra.files:
            data["files"] = sent.extra.files
    return data


def _padded(values: list[Any]) -> list[Any]:
    """Repeat the last one up to a power of two: few lengths, so few different statements to prepare."""
    wanted = 1 << (len(values) - 1).bit_length()
    return values + values[-1:] * (wanted - len(values))


def _json(wanted: Iterable[tuple[int | str, ...]]) -> str:
    return JSON.encode(sorted(wanted)).decode()


_ROOMS: Final = (
    select(*ROOM_COLUMNS)
    .where(tables.rooms.c.no.in_(bindparam("numbers", expanding=True)))
    .order_by(tables.rooms.c.no)
    .with_for_update()
)
_MEMBER_LIST: Final = ", ".join(f"m.{column.name}" for column in (tables.members.c.room_no, *MEMBER_COLUMNS))
_SAID_LIST: Final = "m.key, m.room_no, m.author, m.client_id, m.number, m.at, m.thread"
# Pairs and triples as one parameter, a JSON text. `IN` over tuples makes SQLite scan the table.
_MEMBERS: Final = {
    "sqlite": text(
        f"SELECT {_MEMBER_LIST} FROM json_each(:wanted) w CROSS JOIN members m"  # noqa: S608  # of names in this file
        " ON m.room_no = json_extract(w.value, '$[0]') AND m.user_id = json_extract(w.value, '$[1]')"
    ),
    "postgresql": text(
        f"SELECT {_MEMBER_LIST} FROM jsonb_array_elements(CAST(:wanted AS jsonb)) w JOIN members m"  # noqa: S608
        " ON m.room_no = CAST(w->>0 AS bigint) AND m.user_id = w->>1"
    ),
}
_SAID: Final = {
    "sqlite": text(
        f"SELECT {_SAID_LIST} FROM json_each(:wanted) w CROSS JOIN messages m"  # noqa: S608
        " ON m.room_no = json_extract(w.value, '$[0]') AND m.author = json_extract(w.value, '$[1]')"
        " AND m.client_id = json_extract(w.value, '$[2]')"
    ),
    "postgresql": text(
        f"SELECT {_SAID_LIST} FROM jsonb_array_elements(CAST(:wanted AS jsonb)) w JOIN messages m"  # noqa: S608
        " ON m.room_no = CAST(w->>0 AS bigint) AND m.author = w->>1 AND m.client_id = w->>2"
    ),
}
_INSERT: Final = insert(tables.messages)
_MOVE: Final = (
    update(tables.rooms)
    .where(tables.rooms.c.no == bindparam("b_no"))
    .values(event_seq=bindparam("b_seq"), message_count=bindparam("b_count"), last_at=bindparam("b_at"))
)
_MARK: Final = (
    update(tables.members)
    .where(tables.members.c.room_no == bindparam("b_no"), tables.members.c.user_id == bindparam("b_user"))
    .values(read_seq=bindparam("b_seq"), read_count=bindparam("b_count"), sent_at=bindparam("b_at"), mention_count=0)
)
_PACE: Final = (
    update(tables.members)
    .where(tables.members.c.room_no == bindparam("b_no"), tables.members.c.user_id == bindparam("b_user"))
    .values(sent_at=bindparam("b_at"))
)
