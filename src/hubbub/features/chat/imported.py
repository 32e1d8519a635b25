"""Lines of an import as rows of the store: what may stand in them, and what is written of many by a few statements."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Final

import msgspec
from msgspec import UNSET
from sqlalchemy import Connection, Table, insert, select, tuple_
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import IntegrityError

from hubbub.auth import valid_user_id
from hubbub.errors import ClientError, ErrorCode
from hubbub.features.chat import tables
from hubbub.features.chat.lines import (
    END_OF_TIME,
    BanLine,
    FileLine,
    InvitationLine,
    MemberLine,
    MessageLine,
    PinLine,
    RoomLine,
    SaidLine,
    maybe_milliseconds_of,
    milliseconds_of,
    time_of,
)
from hubbub.features.chat.render import SYSTEM, Extra, file_info
from hubbub.features.chat.tables import key_of
from hubbub.messages import JSON

OTHERS: Final = (
    tables.versions, tables.reactions, tables.mentions, tables.threads, tables.followers, tables.attachments,
)  # fmt: skip
"""What belongs to messages, in an order in which it may be inserted after them."""


def wrong(number: int, what: object) -> ClientError:
    """The refusal of a line."""
    return ClientError(ErrorCode.INVALID_MESSAGE, f"line {number}: {what}")


class Checker:
    """What the lines of one room must be to one another.

    :param room: None: there is only what was said, numbered as it comes.
    :ivar seq: the id of the last message.
    :ivar number: its place among the messages.
    :ivar trimmed: the last number before it that no message has.
    """

    def __init__(self, room: RoomLine | None) -> None:
        self.room = room
        self.seq = 0
        self.number = 0
        self.trimmed = 0
        self._known: set[str] = set()

    def message(self, line: MessageLine) -> None:
        """:raises ValueError: it cannot stand here."""
        if line.id <= self.seq:
            raise ValueError(f"message {line.id} comes after {self.seq}: they must ascend - at `$.id`")
        if not self.number <= line.number <= line.id:
            raise ValueError("it is smaller than the one before it, or larger than the `id` - at `$.number`")
        if self.room is not None and (line.id > self.room.event_seq or line.number > self.room.message_count):
            raise ValueError("it is larger than the first line says (event_seq, message_count) - at `$.id`")
        if line.user_id or line.system is UNSET:
            self.user(line.user_id)
        time(milliseconds_of(line.timestamp), "timestamp")
        for name, earlier in (("reply_to", line.reply_to), ("thread", line.thread)):
            if earlier is not None and earlier >= line.id:
                raise ValueError(f"there is no earlier message {earlier} - at `$.{name}`")
        if line.message and line.system is not UNSET:
            raise ValueError("a message of the system has no text - at `$.message`")
        if line.deleted_at is not None and (line.message or line.versions or line.mentions or line.files):
            raise ValueError(
                "nothing is left of a deleted message: no text, versions, mentions, files - at `$.deleted_at`"
            )
        if line.versions or line.reactions or line.replies is not None:
            _once("versions", [each.version for each in line.versions])
            _once("reactions", [(each.emoji, each.user_id) for each in line.reactions])
            _once("followers", [each.user_id for each in line.replies.followers] if line.replies is not None else [])
        if line.id != self.seq + 1:
            self.trimmed = line.id - 1
        self.seq, self.number = line.id, line.number

    def said(self, line: SaidLine) -> MessageLine:
        """The message that somebody said.

        :raises ValueError: it cannot stand here.
        """
        self.user(line.user_id)
        at = line.timestamp
        at = round(at * 1000) if isinstance(at, int | float) else milliseconds_of(at)
        time(at, "timestamp")
        self.seq += 1
        self.number += 1
        return MessageLine(self.seq, self.number, line.user_id, line.message, time_of(at), line.client_id)

    def user(self, user_id: str) -> None:
        """:raises ValueError: nobody can have this id."""
        if user_id not in self._known:
            if not valid_user_id(user_id):
                raise ValueError("a user's id has 1 to 128 characters, and no control characters - at `$.user_id`")
            self._known.add(user_id)


def time(milliseconds: int, name: str) -> None:
    """:raises ValueError: nothing can have happened then."""
    if not 0 <= milliseconds < END_OF_TIME:
        raise ValueError(f"the time is not from 1970 to 9999 (a number is unix seconds) - at `$.{name}`")


def _once(name: str, values: Sequence[Any]) -> None:
    if len(set(values)) < len(values):
        raise ValueError(f"one of them is there twice - at `$.{name}`")


def has_nul(line: Any) -> bool:
    """Whether there is a NUL in a text of a line: no database keeps that."""
    if isinstance(line, str):
        return "\x00" in line
    if isinstance(line, dict):
        return any(has_nul(each) for pair in line.items() for each in pair)
    if isinstance(line, list):
        return any(map(has_nul, line))
    return isinstance(line, msgspec.Struct) and has_nul(msgspec.to_builtins(line))


class Chunk:
    """Messages of a room that are written in one transaction, with what belongs to them.

    :ivar seq: the id of the last one.
    """

    def __init__(self, room_no: int) -> None:
        self.room_no = room_no
        self.messages: list[dict[str, Any]] = []
        self.others: dict[Table, list[dict[str, Any]]] = {table: [] for table in OTHERS}
        self.numbers: list[int] = []

    def __len__(self) -> int:
        return len(self.messages)

    def add(self, number: int, line: MessageLine) -> None:
        """:param number: of the line in the file."""
        system = line.system is not UNSET
        key = key_of(self.room_no, line.id)
        self.numbers.append(number)
        self.messages.append(
            {
                "key": key,
                "room_no": self.room_no,
                "number": line.number,
                "author": line.user_id,
                "client_id": line.client_id,
                "kind": SYSTEM if system else 0,
                "at": milliseconds_of(line.timestamp),
                "body": JSON.encode(line.system).decode() if system and line.system is not None else line.message,
                "version": line.version,
                "edited_at": maybe_milliseconds_of(line.edited_at),
                "deleted_at": maybe_milliseconds_of(line.deleted_at),
                "deleted_by": line.deleted_by,
                "reply_to": line.reply_to,
                "thread": line.thread,
                "extra": None,
            }
        )
        if line.mentions or line.files:
            self._add_extra(key, line)
        if line.versions or line.reactions or line.replies is not None:
            self._add_belongings(key, line)

    def _add_extra(self, key: int, line: MessageLine) -> None:
        extra = Extra(list(dict.fromkeys(line.mentions)), [file_info(each) for each in line.files])
        self.messages[-1]["extra"] = JSON.encode(extra).decode()
        self.others[tables.mentions] += [{"user_id": each, "message": key} for each in extra.mentions]
        self.others[tables.attachments] += [self._file(key, line, each) for each in line.files]

    def _file(self, key: int, line: MessageLine, file: FileLine) -> dict[str, Any]:
        return {
            "id": file.id,
            "room_no": self.room_no,
            "owner": line.user_id,
            "name": file.name,
            "media_type": file.media_type,
            "size": file.size,
            "sha256": file.sha256,
            "at": milliseconds_of(file.at if file.at is not None else line.timestamp),
            "message": key,
        }

    def _add_belongings(self, key: int, line: MessageLine) -> None:
        self.others[tables.versions] += [
            {"message": key, "version": each.version, "body": each.message, "at": milliseconds_of(each.timestamp),
             "by": each.user_id}
            for each in line.versions
        ]  # fmt: skip
        self.others[tables.reactions] += [
            {"message": key, "emoji": each.emoji, "user_id": each.user_id, "at": milliseconds_of(each.at)}
            for each in line.reactions
        ]
        thread = line.replies
        if thread is not None:
            last_at = milliseconds_of(thread.last_at)
            row = {"root": key, "reply_count": thread.replies, "last_seq": thread.last_id, "last_at": last_at}
            self.others[tables.threads].append(row)
            self.others[tables.followers] += [
                {"root": key, "user_id": each.user_id, "read_seq": each.read, "read_count": each.read_count}
                for each in thread.followers
            ]

    def write(self, connection: Connection) -> None:
        """:raises ClientError: ``invalid_message``: an author has used a ``client_id`` twice."""
        try:
            with connection.begin_nested():
                connection.execute(insert(tables.messages), self.messages)
        except IntegrityError:
            raise self._said_twice(connection) from None
        for table, rows in self.others.items():
            if rows:
                # somebody else's attachment may have the same id: this room may be a copy of another one here
                connection.execute(
                    insert_new(connection, table) if table is tables.attachments else insert(table), rows
                )

    def _said_twice(self, connection: Connection) -> ClientError:
        t = tables.messages.c
        pairs = [(row["author"], row["client_id"]) for row in self.messages]
        wanted = [pair for pair in pairs if pair[1] is not None]
        query = select(t.author, t.client_id).where(t.room_no == self.room_no, t.client_id.is_not(None))
        seen = {tuple(row) for row in connection.execute(query.where(tuple_(t.author, t.client_id).in_(wanted)))}
        for number, pair in zip(self.numbers, pairs, strict=True):
            if pair in seen:
                return wrong(number, f"{pair[0]} used this one before - at `$.client_id`")
            if pair[1] is not None:
                seen.add(pair)
        return wrong(self.numbers[0], "some message from here on is in the store already")


def insert_new(connection: Connection, table: Table) -> sqlite.Insert | postgresql.Insert:
    """An insert that does nothing where the row is there already."""
    if connection.dialect.name == "postgresql":
        return postgresql.insert(table).on_conflict_do_nothing()
    return sqlite.insert(table).on_conflict_do_nothing()


def people_rows(room_no: int, lines: Iterable[MemberLine | BanLine | InvitationLine]) -> dict[Table, list[Any]]:
    """Lines about people as rows, by table."""
    found: dict[Table, list[Any]] = {tables.members: [], tables.bans: [], tables.invitations: []}
    for line in lines:
        row = {"room_no": room_no, "user_id": line.user_id}
        if isinstance(line, MemberLine):
            found[tables.members].append(row | _member(line))
        elif isinstance(line, BanLine):
            until = maybe_milliseconds_of(line.until)
            row |= {"until": until, "reason": line.reason, "banned_by": line.banned_by, "at": milliseconds_of(line.at)}
            found[tables.bans].append(row)
        else:
            found[tables.invitations].append(row | {"invited_by": line.invited_by, "at": milliseconds_of(line.at)})
    return found


def _member(line: MemberLine) -> dict[str, Any]:
    return {
        "role": line.role,
        "joined_at": milliseconds_of(line.joined_at),
        "history_from": line.history_from,
        "notify": line.notify,
        "read_seq": line.read,
        "read_count": line.read_count,
        "mention_count": line.mention_count,
        "muted_until": maybe_milliseconds_of(line.muted_until) or 0,
    }


def write_pins(connection: Connection, room_no: int, pins: Sequence[tuple[int, PinLine]]) -> None:
    """:raises ClientError: ``invalid_message``: there is no such message."""
    keys = [key_of(room_no, pin.id) for _, pin in pins]
    there = set(connection.scalars(select(tables.messages.c.key).where(tables.messages.c.key.in_(keys))))
    for (number, pin), key in zip(pins, keys, strict=True):
        if key not in there:
            raise wrong(number, f"there is no message {pin.id} - at `$.id`")
    rows = [
        {"message": key, "pinned_by": pin.pinned_by, "at": milliseconds_of(pin.at)}
        for (_, pin), key in zip(pins, keys, strict=True)
    ]
    connection.execute(insert_new(connection, tables.pins), rows)
