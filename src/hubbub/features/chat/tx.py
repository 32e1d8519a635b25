"""A command of the chat: decide and write in one transaction; tell after its commit.

A command is a plain function ``(tx, message) -> reply``. It runs where the store runs it (a thread, for SQLite), sees
the database through the :class:`Tx`, and only notes what is to be told. It may run again, should its transaction have to
be repeated, so it changes nothing else. Once all is committed, the chat tells of it in the order of the commits
(:class:`Outcome`). Socket and REST call the same functions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final, Generic, NamedTuple, TypeVar

import msgspec
from msgspec import Struct
from sqlalchemy import Connection, Select, and_, bindparam, insert, select, update

from hubbub.errors import ClientError, ErrorCode
from hubbub.features.chat import tables
from hubbub.features.chat.access import Act, Caller, MemberRow, RoomRow, check, no_such_room
from hubbub.messages import JSON, ClientMessage, Reply, ServerMessage, rfc3339
from hubbub.settings import Settings
from hubbub.stream import Publication

M = TypeVar("M", bound=ClientMessage)
R = TypeVar("R", bound=Reply)

MEMBER_COLUMNS: Final = tuple(tables.members.c[name] for name in MemberRow._fields)
ROOM_COLUMNS: Final = tuple(tables.rooms.c)
_ROOM_NAMES: Final = tuple(column.name for column in ROOM_COLUMNS)


class Told(NamedTuple):
    """Something that everybody in a room hears. Its offset is in the publication."""

    room_id: str
    publication: Publication
    room_no: int


class Removed(NamedTuple):
    """A user has to leave a room's channel, on all devices, now.

    :ivar seq: the room's number then: of the event, if there is one (:meth:`Outcome.number_of`).
    """

    room_id: str
    user_id: str
    reason: str
    seq: int


class Changed(NamedTuple):
    """A room's row is another one now: what nodes keep of it has to follow.

    :ivar everywhere: on other nodes, too; False: it is only how many are in it.
    """

    room: RoomRow
    everywhere: bool = True


class Mentioned(NamedTuple):
    """People are to be notified of a message."""

    room_id: str
    room_name: str
    seq: int
    author: str
    text: str
    user_ids: tuple[str, ...]


class Outcome(Generic[R]):
    """What a command leads to: its reply, and what is told once it is committed.

    :ivar told: in the order of their offsets, room by room.
    :ivar personal: (user, message) to all devices of a user.
    :ivar passing: (room, message) to everybody in a room, without an offset.
    """

    __slots__ = ("changed", "mentioned", "passing", "personal", "removed", "reply", "told")

    def __init__(self) -> None:
        self.reply: R | None = None
        self.told: list[Told] = []
        self.personal: list[tuple[str, ServerMessage]] = []
        self.passing: list[tuple[str, ServerMessage]] = []
        self.removed: list[Removed] = []
        self.changed: list[Changed] = []
        self.mentioned: list[Mentioned] = []

    def number_of(self, removed: Removed) -> int:
        """The number of the event by which somebody had to leave; 0: there is none."""
        numbers = (told.publication.offset for told in self.told if told.room_id == removed.room_id)
        return max(numbers, default=0)


class Tx:
    """The database as one command sees it, and what it wants told.

    :ivar now: unix milliseconds, the same for all of the command.
    :ivar caller: who asks.
    :ivar dialect: "sqlite" or "postgresql".
    """

    def __init__(self, connection: Connection, caller: Caller, now: int, settings: Settings, *, writes: bool) -> None:
        self.connection = connection
        self.caller = caller
        self.now = now
        self.settings = settings
        self.dialect = connection.dialect.name
        self.outcome: Outcome[Any] = Outcome()
        self._writes = writes

    # -- rooms and members

    def enter(self, room_id: str, act: Act) -> tuple[RoomRow, MemberRow | None]:
        """The room (its row locked, if the command writes) and the caller's membership, if the act is allowed.

        :raises ClientError: it is not.
        """
        room, member = self.look(room_id)
        check(room, member, self.caller, act, self.now)
        return room, member

    def look(self, room_id: str) -> tuple[RoomRow, MemberRow | None]:
        """The same without asking whether the caller may.

        :raises ClientError: ``not_found``.
        """
        if "\x00" in room_id:
            raise no_such_room(room_id)
        return self._found(_WITH_MEMBER.where(tables.rooms.c.id == room_id), room_id)

    def look_by_number(self, room_no: int) -> tuple[RoomRow, MemberRow | None]:
        """The same by the room's number.

        :raises ClientError: ``not_found``.
        """
        return self._found(_WITH_MEMBER.where(tables.rooms.c.no == room_no), str(room_no))

    def _found(self, query: Select[Any], name: str) -> tuple[RoomRow, MemberRow | None]:
        if self._writes:
            query = query.with_for_update(of=tables.rooms)
        row = self.connection.execute(query, {"member": self.caller.user_id}).first()
        if row is None:
            raise no_such_room(name)
        room = room_of(row)
        if self._writes and self.dialect == "postgresql":
            # what was joined is older than the lock that we may have waited for
            return room, self.member(room, self.caller.user_id)
        return room, member_of(row[len(ROOM_COLUMNS) :])

    def member(self, room: RoomRow, user_id: str) -> MemberRow | None:
        """Somebody's membership."""
        query = select(*MEMBER_COLUMNS).where(tables.members.c.room_no == room.no, tables.members.c.user_id == user_id)
        row = self.connection.execute(query).first()
        return None if row is None else MemberRow(*row)

    def the_member(self, room: RoomRow, user_id: str) -> MemberRow:
        """:raises ClientError: ``not_found``: there is no such member."""
        member = self.member(room, user_id)
        if member is None:
            raise ClientError(ErrorCode.NOT_FOUND, f"{user_id[:64]!r} is no member of this room")
        return member

    def message(self, room: RoomRow, seq: int, member: MemberRow | None = None) -> Any:
        """A message's row, unless it lies before what the member may see.

        :raises ClientError: ``not_found``.
        """
        query = select(tables.messages).where(tables.messages.c.key == tables.key_of(room.no, seq))
        row = self.connection.execute(query).first()
        if row is None or (member is not None and seq <= member.history_from):
            raise ClientError(ErrorCode.NOT_FOUND, f"there is no message {seq} in this room")
        return row

    def change_room(self, room: RoomRow, **values: Any) -> None:
        """Change a room's row; nodes learn of it."""
        self.connection.execute(update(tables.rooms).where(tables.rooms.c.no == room.no).values(**values))
        for name, value in values.items():
            setattr(room, name, value)
        self.outcome.changed.append(Changed(room, not values.keys() <= COUNTS))

    # -- what happens in a room

    def take(self, room: RoomRow) -> int:
        """Take the room's next number. Its row is locked, so numbers are in the order of commits, without gaps."""
        room.event_seq += 1
        self.connection.execute(
            update(tables.rooms).where(tables.rooms.c.no == room.no).values(event_seq=room.event_seq)
        )
        return room.event_seq

    def event(
        self, room: RoomRow, kind: str, data: Struct, *, target: int | None = None, kept: Struct | None = None
    ) -> int:
        """Something happened in a room that is no message: number it, keep it, tell everybody there. Returns its number.

        :param kind: the type on the wire.
        :param data: what is told as `data`.
        :param target: number of the message that it is about.
        :param kept: what is kept in place of ``data``: no message's text may be kept here, since it can be erased.
        """
        if not room.stored:
            self.passing(room, kind, data)
            return 0
        seq = self.take(room)
        self.connection.execute(
            insert(tables.events),
            {
                "key": tables.key_of(room.no, seq),
                "type": kind,
                "by": self.caller.user_id,
                "at": self.now,
                "target": target,
                "data": "{}" if target is not None and kept is None and kind in TEXT_EVENTS else _json(kept or data),
            },
        )
        self.outcome.told.append(Told(room.id, publication_of(room.id, kind, JSON.encode(data), seq), room.no))
        return seq

    def say(self, room: RoomRow, what: Mapping[str, Any]) -> int:
        """A system message: what happened, in its place among the messages. Not counted as unread. Returns its number.

        :param what: {"event": …} and what belongs to it; shown as `system`.
        """
        if not room.stored:
            return 0
        seq = self.take(room)
        body = JSON.encode(what).decode()
        row = {
            "key": tables.key_of(room.no, seq),
            "room_no": room.no,
            "number": room.message_count,
            "author": self.caller.user_id,
            "kind": 1,
            "at": self.now,
            "body": body,
        }
        self.connection.execute(insert(tables.messages), row)
        data = JSON.encode(
            {
                "user_id": self.caller.user_id,
                "message": "",
                "timestamp": stamp(self.now),
                **({} if room.message_count == seq else {"number": room.message_count}),
                "system": what,
            }
        )
        self.outcome.told.append(Told(room.id, message_publication(room.id, data, seq), room.no))
        return seq

    def passing(self, room: RoomRow, kind: str, data: Struct) -> None:
        """Tell everybody in a room of something that is not kept."""
        text = b'{"type":%b,"room_id":%b,"offset":0,"data":%b}' % (
            JSON.encode(kind),
            JSON.encode(room.id),
            JSON.encode(data),
        )
        self.outcome.told.append(Told(room.id, Publication(text), room.no))

    def pass_by(self, room_id: str, message: ServerMessage) -> None:
        """Send everybody in a room a message without an offset."""
        self.outcome.passing.append((room_id, message))

    def personally(self, user_id: str, message: ServerMessage) -> None:
        """Send something to all devices of a user."""
        self.outcome.personal.append((user_id, message))

    def remove(self, room: RoomRow, user_id: str, reason: str) -> None:
        """Take a user's devices out of a room's channel."""
        self.outcome.removed.append(Removed(room.id, user_id, reason, room.event_seq))

    def audit(
        self,
        act: str,
        room: RoomRow | None,
        *,
        user_id: str | None = None,
        message: int | None = None,
        data: Mapping[str, Any] | None = None,
    ) -> None:
        """Note what a moderator did.

        :param message: number of the message in the room.
        """
        self.connection.execute(
            insert(tables.audit),
            {
                "room_no": room.no if room is not None else None,
                "at": self.now,
                "by": self.caller.user_id or "(api key)",
                "act": act,
                "target_user": user_id,
                "target_message": tables.key_of(room.no, message) if room is not None and message else None,
                "data": JSON.encode(data or {}).decode(),
            },
        )


COUNTS: Final = frozenset({"member_count", "pin_count"})
"""Columns of ``rooms`` that nodes read when they tell of them."""
TEXT_EVENTS: Final = frozenset({"message_updated", "message_deleted", "room_updated"})
"""Events whose `data` is read where it stands (the message, the room), not kept beside them."""

_WITH_MEMBER: Final = select(*ROOM_COLUMNS, *MEMBER_COLUMNS).select_from(
    tables.rooms.outerjoin(
        tables.members,
        and_(
            tables.members.c.room_no == tables.rooms.c.no,
            tables.members.c.user_id == bindparam("member"),
        ),
    )
)


def room_of(row: Iterable[Any]) -> RoomRow:
    """A row that begins with the columns of ``rooms``."""
    room = RoomRow()
    for name, value in zip(_ROOM_NAMES, row, strict=False):
        setattr(room, name, value)
    return room


def member_of(row: Any) -> MemberRow | None:
    """The columns of ``members``, from an outer join."""
    return None if row[0] is None else MemberRow(*row)


def stamp(milliseconds: int) -> str:
    """Unix milliseconds as the wire has them: RFC 3339, UTC."""
    return rfc3339(milliseconds / 1000)


def publication_of(room_id: str, kind: str, data: bytes, seq: int) -> Publication:
    """An event of a room, as its channel carries it."""
    head = b'{"type":"%b","room_id":%b,"offset":' % (kind.encode(), JSON.encode(room_id))
    return Publication(head, b',"data":%b}' % data, offset=seq)


def message_publication(room_id: str, data: bytes, seq: int) -> Publication:
    """A message of a room, as its channel carries it.

    :param data: the message as a JSON object, without its ``id``.
    """
    return Publication(message_head(room_id), b",%b}" % data[1:], offset=seq)


def message_head(room_id: str) -> bytes:
    """The text of a room's messages up to the number."""
    return b'{"type":"message","room_id":%b,"data":{"id":' % JSON.encode(room_id)


def _json(value: Struct) -> str:
    return msgspec.json.encode(value).decode()


# -- the commands


class Command(Generic[M, R]):
    """A message of clients that is a command: how it is carried out, and where it is found over HTTP.

    :ivar http: method and path, like ``POST /api/rooms``; None: over the socket only.
    """

    __slots__ = ("http", "message", "work", "writes")

    def __init__(self, message: type[M], work: Callable[[Tx, M], R], writes: bool, http: str | None) -> None:
        self.message = message
        self.work = work
        self.writes = writes
        self.http = http


COMMANDS: Final[dict[type[ClientMessage], Command[Any, Any]]] = {}
"""All commands, by message."""

Work = TypeVar("Work", bound=Callable[..., Any])


def writes(message: type[ClientMessage], http: str | None = None) -> Callable[[Work], Work]:
    """Declare a command that changes something."""
    return _declare(message, True, http)


def reads(message: type[ClientMessage], http: str | None = None) -> Callable[[Work], Work]:
    """Declare a command that only reads: it runs beside what is being written."""
    return _declare(message, False, http)


def _declare(message: type[ClientMessage], writing: bool, http: str | None) -> Callable[[Work], Work]:
    def declare(work: Work) -> Work:
        COMMANDS[message] = Command(message, work, writing, http)
        return work

    return declare
