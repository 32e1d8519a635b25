"""A room out of JSON Lines: an export (:mod:`hubbub.features.chat.lines`), or messages that another program wrote.

Numbers, authors and times are kept. An import can be interrupted at any moment and run again: the room remembers what it
is made of (in its ``epoch``) and how far it is (in its counters). Until it is whole it is archived, private and without
members, so that nobody comes between; then it gets an epoch of its own.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterable
from functools import partial
from typing import Any, Final

import msgspec
from msgspec import Struct
from sqlalchemy import Connection, Table, func, select, update

from hubbub.errors import ClientError, ErrorCode
from hubbub.features.chat import tables
from hubbub.features.chat.imported import Checker, Chunk, has_nul, insert_new, people_rows, time, write_pins, wrong
from hubbub.features.chat.lines import (
    FORMAT,
    AnyLine,
    BanLine,
    EndLine,
    InvitationLine,
    MemberLine,
    MessageLine,
    PinLine,
    RoomLine,
    SaidLine,
    maybe_milliseconds_of,
    milliseconds_of,
)
from hubbub.features.chat.rooms import check_id
from hubbub.features.chat.tables import key_of
from hubbub.messages import ROOM_ID
from hubbub.store import Store

CHUNK: Final = 2_000
"""Messages, or rows about people, of one transaction."""
MARK: Final = "import:"
"""How the epoch of a room begins that is not whole yet; a hash of the file's first line follows."""
BYTE_ORDER_MARK: Final = b"\xef\xbb\xbf"

_any: Final = msgspec.json.Decoder(AnyLine)
_said: Final = msgspec.json.Decoder(SaidLine)


class Imported(Struct, frozen=True):
    """What is in the room. ``before``: messages of it that an earlier run had brought."""

    room_id: str
    messages: int
    before: int
    members: int


async def import_room(
    store: Store,
    lines: AsyncIterable[bytes] | Iterable[bytes],
    *,
    now: int,
    room_id: str | None = None,
    progress: Callable[[int], None] | None = None,
) -> Imported:
    """Make a room of lines. Whatever this raises, the next call with the same lines goes on where it was.

    :param now: unix milliseconds.
    :param room_id: another id than the one in the export. Where the lines are only messages, it is needed.
    :param progress: called with the number of messages that are in the room, whenever there are more.
    :raises ClientError: ``invalid_message``: a line is wrong, and which; nothing of its chunk was written. ``conflict``:
        there is such a room already.
    """
    work = _Import(store, now, room_id, progress or _unseen)
    number = 0
    async for line in _each(lines):
        number += 1
        if line.strip():
            await work.take(number, line)
    return await work.finish()


async def _each(lines: AsyncIterable[bytes] | Iterable[bytes]) -> AsyncIterator[bytes]:
    if isinstance(lines, AsyncIterable):
        async for line in lines:
            yield line
    else:
        for line in lines:
            yield line


def _unseen(messages: int) -> None:
    """Progress that nobody looks at."""


def _decoded(number: int, line: bytes, decoder: msgspec.json.Decoder[Any]) -> Any:
    """:raises ClientError: ``invalid_message``."""
    try:
        found = decoder.decode(line)
    except msgspec.MsgspecError as error:
        raise wrong(number, error) from None
    except UnicodeDecodeError:
        raise wrong(number, "this is not UTF-8") from None
    if b"\\u0000" in line and has_nul(found):
        raise wrong(number, "there may be no NUL in a text")
    return found


class _Import:
    """One run."""

    def __init__(self, store: Store, now: int, room_id: str | None, progress: Callable[[int], None]) -> None:
        self._store = store
        self._now = now
        self._room_id = room_id
        self._progress = progress
        self._target: _Target | None = None
        self._people: list[MemberLine | BanLine | InvitationLine] = []
        self._pins: list[tuple[int, PinLine]] = []
        self._ended = False
        self._count = 0
        self._before = 0

    async def take(self, number: int, line: bytes) -> None:
        """Take the next line.

        :raises ClientError: it is wrong; or the room cannot be made.
        """
        target = self._target
        if target is None:
            line = line.removeprefix(BYTE_ORDER_MARK)
            target = self._target = await self._begin(number, line)
            if target.exported:
                return
        if self._ended:
            raise wrong(number, "there is a line after the end")
        found = _decoded(number, line, _any if target.exported else _said)
        try:
            if isinstance(found, SaidLine):
                found = target.checker.said(found)
            elif isinstance(found, MessageLine):
                target.checker.message(found)
        except ValueError as error:
            raise wrong(number, error) from None
        if isinstance(found, MessageLine):
            await self._message(target, number, found)
        else:
            self._other(number, found)

    async def _begin(self, number: int, line: bytes) -> _Target:
        """Make the room, or find it half done."""
        room, exported = _header(number, line, self._room_id)
        mark = MARK + hashlib.sha256(line.strip()).hexdigest()[:40]
        checker = Checker(room if exported else None)
        no, seq = await self._store.write(partial(_make, room, mark, self._now))
        return _Target(room, exported, mark, checker, no, seq, Chunk(no))

    async def _message(self, target: _Target, number: int, message: MessageLine) -> None:
        self._count += 1
        if message.id <= target.seq:
            self._before += 1
            return
        if target.room.kind == "live":
            raise wrong(number, "a live room keeps no messages - at `$.type`")
        target.chunk.add(number, message)
        if len(target.chunk) >= CHUNK:
            await self._flush(target)

    def _other(self, number: int, line: AnyLine) -> None:
        if isinstance(line, MemberLine | BanLine | InvitationLine):
            self._people.append(line)
        elif isinstance(line, PinLine):
            self._pins.append((number, line))
        elif isinstance(line, EndLine):
            if line.messages != self._count:
                raise wrong(number, f"there were {line.messages} messages, and the file has {self._count}")
            self._ended = True
        else:
            raise wrong(number, "there is another room in the file: one at a time")

    async def _flush(self, target: _Target) -> None:
        """Write what was collected."""
        chunk, checker = target.chunk, target.checker
        if chunk:
            reached = _Reached(checker.seq, checker.number, checker.trimmed, chunk.messages[-1]["at"])
            await self._store.write(partial(_write, target, chunk, reached))
            target.seq, target.chunk = reached.seq, Chunk(target.no)
        self._progress(self._count)

    async def finish(self) -> Imported:
        """The lines are at their end: complete the room, and open it."""
        target = self._target
        if target is None:
            raise ClientError(ErrorCode.INVALID_MESSAGE, "there is no line in it")
        await self._flush(target)
        if target.exported and not self._ended:
            raise ClientError(
                ErrorCode.INVALID_MESSAGE,
                f"the file ends in the middle, after {self._count} messages: import the whole one to go on",
            )
        for start in range(0, len(self._people), CHUNK):
            rows = people_rows(target.no, self._people[start : start + CHUNK])
            await self._store.write(partial(_write_people, rows))
        for start in range(0, len(self._pins), CHUNK):
            pins = self._pins[start : start + CHUNK]
            await self._store.write(partial(write_pins, room_no=target.no, pins=pins))
        members = await self._store.write(partial(_open, target))
        return Imported(target.room.room_id, self._count, self._before, members)


class _Target(Struct):
    """The room that is being made.

    :ivar exported: the lines are an export; else each is a message.
    :ivar mark: its epoch until it is whole.
    :ivar seq: the number of the last message that is in it.
    """

    room: RoomLine
    exported: bool
    mark: str
    checker: Checker
    no: int
    seq: int
    chunk: Chunk


class _Reached(Struct, frozen=True):
    """How far a room is with a chunk: see :class:`Checker`. ``at``: when its last message was said."""

    seq: int
    number: int
    trimmed: int
    at: int


def _header(number: int, line: bytes, room_id: str | None) -> tuple[RoomLine, bool]:
    """The room that the first line describes, under the id that is wanted; true: the lines are an export.

    :raises ClientError: ``invalid_message``.
    """
    first = _decoded(number, line, msgspec.json.Decoder())
    if not isinstance(first, dict) or "type" not in first:
        try:
            said = Checker(None).said(_decoded(number, line, _said))
        except ValueError as error:
            raise wrong(number, error) from None
        if room_id is None:
            raise ClientError(
                ErrorCode.INVALID_MESSAGE, "the lines are messages only: say which room they make (--room)"
            )
        check_id(room_id)
        return RoomLine(room_id=room_id, name=room_id, created_at=said.timestamp, last_at=said.timestamp), False
    if first["type"] != "room":
        raise wrong(number, "an export begins with the room - at `$.type`")
    if first.get("format") != FORMAT:
        raise wrong(number, f"this program reads exports of the format {FORMAT} - at `$.format`")
    room: RoomLine = _decoded(number, line, _any)
    for name in ("created_at", "last_at"):
        try:
            time(milliseconds_of(getattr(room, name)), name)
        except ValueError as error:
            raise wrong(number, error) from None
    return _called(number, room, room.room_id if room_id is None else room_id), True


def _called(number: int, room: RoomLine, room_id: str) -> RoomLine:
    """A room under an id that it may have."""
    if room.visibility != "direct":
        check_id(room_id)
    elif room.direct_key is None or room_id != f"dm-{room.direct_key[:20]}" or not ROOM_ID.fullmatch(room_id):
        raise wrong(number, "a direct room keeps its id, which is made of its `direct_key` - at `$.room_id`")
    return msgspec.structs.replace(room, room_id=room_id)


# -- in transactions


def _make(room: RoomLine, mark: str, now: int, connection: Connection) -> tuple[int, int]:
    """The number of a new room, or of one half done, and that of the last message in it.

    :raises ClientError: ``conflict``: it is there already.
    """
    t = tables.rooms.c
    values = {
        "id": room.room_id,
        "name": room.name,
        "topic": room.topic,
        "kind": room.kind,
        "visibility": "private",
        "history": room.history,
        "direct_key": room.direct_key if room.visibility == "direct" else None,
        "epoch": mark,
        "slow_mode": room.slow_mode,
        "created_at": milliseconds_of(room.created_at),
        "created_by": room.created_by,
        "last_at": milliseconds_of(room.created_at),
        "archived_at": now,
    }
    made = connection.execute(insert_new(connection, tables.rooms).values(values).returning(t.no)).scalar()
    if made is not None:
        return made, 0
    there = connection.execute(select(t.no, t.epoch, t.event_seq).where(t.id == room.room_id)).first()
    if there is None:
        raise ClientError(ErrorCode.CONFLICT, "there is a direct room of these people already")
    if there.epoch == mark:
        return there.no, there.event_seq
    if there.epoch.startswith(MARK):
        raise ClientError(
            ErrorCode.CONFLICT,
            f"the room {room.room_id!r} is half done, from another file: import that one, or give another id (--room)",
        )
    raise ClientError(ErrorCode.CONFLICT, f"there is a room {room.room_id!r} already: give another id (--room)")


def _write(target: _Target, chunk: Chunk, reached: _Reached, connection: Connection) -> None:
    _lock(target, connection)
    chunk.write(connection)
    t = tables.rooms.c
    connection.execute(
        update(tables.rooms)
        .where(t.no == target.no)
        .values(event_seq=reached.seq, message_count=reached.number, trimmed_seq=reached.trimmed, last_at=reached.at)
    )


def _lock(target: _Target, connection: Connection) -> None:
    """:raises ClientError: ``conflict``: the room is not as this run left it."""
    t = tables.rooms.c
    query = select(t.epoch, t.event_seq).where(t.no == target.no).with_for_update()
    if tuple(connection.execute(query).one()) != (target.mark, target.seq):
        raise ClientError(ErrorCode.CONFLICT, "somebody else imports the same file: wait for that to end")


def _write_people(rows: dict[Table, list[Any]], connection: Connection) -> None:
    for table, some in rows.items():
        if some:
            connection.execute(insert_new(connection, table), some)


def _open(target: _Target, connection: Connection) -> int:
    """The room is whole: give it the settings that it had, and an epoch of its own. Returns how many members it has."""
    _lock(target, connection)
    room, checker = target.room, target.checker
    t, m, p = tables.rooms.c, tables.members.c, tables.pins.c
    members = connection.scalar(select(func.count()).where(m.room_no == target.no)) or 0
    pins = connection.scalar(
        select(func.count()).where(p.message > key_of(target.no, 0), p.message <= key_of(target.no, checker.seq))
    )
    values: dict[str, Any] = {
        "epoch": secrets.token_hex(4),
        "visibility": room.visibility,
        "archived_at": maybe_milliseconds_of(room.archived_at),
        "retention_days": room.retention_days,
        "member_count": members,
        "pin_count": pins,
    }
    if target.exported:
        # what is no message took numbers too, also after the last message
        trimmed = room.event_seq if room.event_seq > checker.seq else checker.trimmed
        values |= {"event_seq": room.event_seq, "message_count": room.message_count, "trimmed_seq": trimmed}
        values |= {"last_at": milliseconds_of(room.last_at)}
    connection.execute(update(tables.rooms).where(t.no == target.no).values(values))
    return members
