"""Chat: rooms, their messages, who is in them, who types. Kept in memory: rooms and messages end with the process.

A room is the channel ``room:<id>``; a message's ``id`` is its offset there, so a client that has message 41 and gets
43 knows what it lacks, and recovery is the channel's.
"""

from __future__ import annotations

from collections import OrderedDict
from heapq import heappop, heappush
from typing import Any

from msgspec import UNSET, Struct

from hubbub import messages
from hubbub.channel import Channel
from hubbub.commands import who_is_here
from hubbub.errors import ClientError, CloseCode, ErrorCode
from hubbub.hub import EPHEMERAL, ChannelRule, Hub
from hubbub.messages import JSON, ROOM_ID, RoomInfo, rfc3339
from hubbub.session import Session
from hubbub.settings import ChannelOptions
from hubbub.stream import Publication

PREFIX = "room:"
REMEMBERED = 4096
"""Client ids that a room remembers for idempotency; the oldest are forgotten first."""
COUNT_INTERVAL = 1.0
"""Seconds between two `room_count` of a large room."""


class MessageData(Struct, omit_defaults=True, gc=False):
    """``data`` of a `message`. ``id`` comes first: it is where the engine writes the offset."""

    user_id: str
    message: str
    timestamp: str
    client_id: str | None = None


class Room:
    """One room.

    :ivar head: the JSON text of its messages up to the offset.
    :ivar answered: (user, client_id) → the ack's id and timestamp, so that a retry gets the first answer.
    """

    __slots__ = ("answered", "channel", "counted", "created_at", "created_by", "head", "id", "name", "typing")

    def __init__(self, room_id: str, name: str, created_at: str, created_by: str | None) -> None:
        self.id = room_id
        self.channel = PREFIX + room_id
        self.name = name
        self.created_at = created_at
        self.created_by = created_by
        self.head = b'{"type":"message","room_id":%b,"data":{"id":' % JSON.encode(room_id)
        self.answered: OrderedDict[tuple[str, str], tuple[int, str]] = OrderedDict()
        self.typing: dict[str, float] = {}
        self.counted = 0.0


class Chat:
    """The chat feature of a hub."""

    def __init__(self, hub: Hub) -> None:
        self.hub = hub
        self.rooms: dict[str, Room] = {}
        self._made_by: dict[str, int] = {}
        self._marks: list[tuple[float, str, str]] = []  # a heap of (deadline, room, user)
        self._uncounted: dict[Room, None] = {}
        self.options = self._options()
        hub.reserve(PREFIX, ChannelRule(self.options, self._may_read))
        hub.comings.observers.append((PREFIX, self._roster_changed))
        hub.openers.append(self._join_endpoint_room)
        hub.leavers.append(self._left)
        hub.sweepers.append(self.sweep)
        hub.route(messages.CreateRoom, self.on_create)
        hub.route(messages.ListRooms, self.on_list)
        hub.route(messages.JoinRoom, self.on_join)
        hub.route(messages.LeaveRoom, self.on_leave)
        hub.route(messages.ChatMessage, self.on_message)
        hub.route(messages.Typing, self.on_typing)
        for room_id in hub.settings.default_rooms:
            self._make(room_id, room_id, None)

    def _options(self) -> ChannelOptions:
        """Rooms have presence and history whatever the settings say of channels; sizes and policy are configurable."""
        wanted = self.hub.settings.channels.get("room:*", ChannelOptions())
        return wanted.model_copy(update={"presence": True, "history_size": max(1, wanted.history_size)})

    # -- rooms

    def create(self, room_id: str, name: str | None, user_id: str | None) -> Room:
        """Make a room.

        :param user_id: who makes it; None for the server itself.
        :raises ClientError: a wrong id, one that is taken, or too many rooms.
        """
        if ROOM_ID.fullmatch(room_id) is None:
            raise ClientError(ErrorCode.INVALID_MESSAGE, "a room's id is 1 to 64 of A-Z a-z 0-9 _ . - - at `$.room_id`")
        if room_id in self.rooms:
            raise ClientError(ErrorCode.CONFLICT, f"there is a room {room_id!r} already")
        settings = self.hub.settings
        if settings.max_rooms and len(self.rooms) >= settings.max_rooms:
            raise ClientError(ErrorCode.TOO_MANY, "there are too many rooms")
        if user_id is not None:
            made = self._made_by.get(user_id, 0)
            if settings.max_rooms_per_user and made >= settings.max_rooms_per_user:
                raise ClientError(ErrorCode.TOO_MANY, f"a user may make at most {settings.max_rooms_per_user} rooms")
            self._made_by[user_id] = made + 1
        return self._make(room_id, name or room_id, user_id)

    def _make(self, room_id: str, name: str, user_id: str | None) -> Room:
        room = self.rooms[room_id] = Room(room_id, name, rfc3339(self.hub.clock.time()), user_id)
        return room

    def room(self, room_id: str) -> Room:
        """:raises ClientError: ``not_found``."""
        room = self.rooms.get(room_id)
        if room is None:
            raise ClientError(ErrorCode.NOT_FOUND, f"there is no room {room_id[:64]!r}")
        return room

    def info(self, room: Room, *, count: bool = False) -> RoomInfo:
        users = who_is_here(self.hub, room.channel)[1] if count else UNSET
        return RoomInfo(room.id, room.name, room.created_at, room.created_by, users)

    def visible_to(self, session: Session | None) -> list[RoomInfo]:
        """The rooms that a session may join, or all."""
        grants = session.identity.grants if session is not None and session.identity is not None else None
        return [
            self.info(room, count=True) for room in self.rooms.values() if grants is None or grants.may_join(room.id)
        ]

    def _enterable(self, session: Session, room_id: str) -> Room:
        """The room, if the session may join it. A room that the token does not allow looks like one that is not there."""
        assert session.identity is not None
        if not session.identity.grants.may_join(room_id):
            raise ClientError(ErrorCode.NOT_FOUND, f"there is no room {room_id[:64]!r}")
        return self.room(room_id)

    def _may_read(self, session: Session, name: str) -> None:
        self._enterable(session, name[len(PREFIX) :])
        if name not in session.channels:
            raise ClientError(ErrorCode.NOT_JOINED, "join the room first (join_room)")

    # -- messages of clients

    def on_create(self, session: Session, message: messages.CreateRoom) -> None:
        assert session.identity is not None
        if not session.identity.grants.may_join(message.room_id):
            raise ClientError(ErrorCode.FORBIDDEN, "the token does not allow this room")
        room = self.create(message.room_id, message.name, session.user_id)
        self.hub.reply(session, messages.RoomCreated(room=self.info(room), ref=message.ref))

    def on_list(self, session: Session, message: messages.ListRooms) -> None:
        self.hub.reply(session, messages.Rooms(rooms=self.visible_to(session), ref=message.ref))

    async def on_join(self, session: Session, message: messages.JoinRoom) -> None:
        await self.join(session, self._enterable(session, message.room_id), message)

    async def join(
        self, session: Session, room: Room, message: messages.JoinRoom | None, *, quiet: bool = False
    ) -> None:
        """Put a session into a room and tell it what it missed. ``quiet``: without telling it anything."""
        hub = self.hub
        since = message.since if message is not None else None
        recovery = await hub.attach(session, room.channel, since, self.options)
        if quiet:
            return
        codec = session.link.lane.codec
        users, count = who_is_here(hub, room.channel)
        listed: Any = UNSET
        if count <= hub.settings.presence_limit:
            listed = [{"user_id": user, **here} for user, here in users.items()]
        reply = messages.RoomJoined(
            room_id=room.id,
            room=self.info(room),
            position=recovery.position,
            recovered=recovery.recovered,
            messages=[codec.embed(publication.payload) for publication in recovery.publications],
            users=listed,
            count=count,
            ref=message.ref if message is not None else None,
        )
        hub.reply(session, reply)
        if since is not None and not recovery.recovered:
            position = recovery.position
            hub.reply(session, messages.Gap(channel=room.channel, epoch=position.epoch, offset=position.offset))
        session.link.flush()  # before any message of the room

    async def _join_endpoint_room(self, session: Session) -> None:
        """``/ws/chat/{room_id}``: in the room as soon as the user is known."""
        if session.room is None:
            return
        try:
            room = self._enterable(session, session.room)
        except ClientError as error:
            error.close = CloseCode.NOT_FOUND
            raise
        await self.join(session, room, None)

    async def on_leave(self, session: Session, message: messages.LeaveRoom) -> None:
        room_id = message.room_id
        if not self.hub.detach(session, PREFIX + room_id):
            raise ClientError(ErrorCode.NOT_JOINED, "you are not in this room")
        room = self.rooms.get(room_id)
        if room is not None:
            self._unmark(room, session.user_id)
        self.hub.reply(session, messages.RoomLeft(room_id=room_id, ref=message.ref))

    async def on_message(self, session: Session, message: messages.ChatMessage) -> None:
        hub = self.hub
        text, client_id, ref = message.message, message.client_id, message.ref
        self._check_text(text)
        room = self._joined(session, message.room_id) or await self._default_room(session)
        user_id = session.user_id
        link = session.link
        encode = link.lane.codec.encode
        if client_id is not None:
            first = room.answered.get((user_id, client_id))
            if first is not None:
                offset, timestamp = first
                link.send(encode(messages.ChatAck(offset, timestamp, room.id, client_id, ref=ref)))
                return
        now = hub.clock.time()
        timestamp = _stamp(now)
        tail = b",%b}" % JSON.encode(MessageData(user_id, text, timestamp, client_id))[1:]
        publication = Publication(room.head, tail, None, user_id, None, now)
        position = await hub.broker.publish(room.channel, publication, self.options)
        offset = position.offset
        if client_id is not None:
            room.answered[user_id, client_id] = (offset, timestamp)
            if len(room.answered) > REMEMBERED:
                room.answered.popitem(last=False)
        if room.typing:
            room.typing.pop(user_id, None)  # clients take the message itself for the end of the typing
        link.send(encode(messages.ChatAck(offset, timestamp, room.id, client_id, ref=ref)))

    async def on_typing(self, session: Session, message: messages.Typing) -> None:
        room = self._joined(session, message.room_id) or await self._default_room(session)
        user_id = session.user_id
        deadline = self.hub.clock.monotonic() + self.hub.settings.typing_timeout
        if user_id not in room.typing:
            self._announce(room, messages.TypingMark(room_id=room.id, user_id=user_id, active=True), session)
            heappush(self._marks, (deadline, room.id, user_id))
        room.typing[user_id] = deadline

    def _joined(self, session: Session, room_id: str | None) -> Room | None:
        """The room that a message is for: the named one, the endpoint's, or the only one joined; None: none is joined.

        :raises ClientError: ``not_joined``, ``not_found``, or that it is not clear which.
        """
        if room_id is None:
            room_id = session.room
        if room_id is None:
            joined = [name[len(PREFIX) :] for name in session.channels if name.startswith(PREFIX)]
            if len(joined) > 1:
                raise ClientError(ErrorCode.INVALID_MESSAGE, "you are in several rooms: say which - at `$.room_id`")
            if not joined:
                return None
            room_id = joined[0]
        room = self._enterable(session, room_id)
        if room.channel not in session.channels:
            raise ClientError(ErrorCode.NOT_JOINED, "join the room first (join_room)")
        return room

    async def _default_room(self, session: Session) -> Room:
        """A client that never heard of rooms (the guide's) talks in the first default room."""
        rooms = self.hub.settings.default_rooms
        if not rooms:
            raise ClientError(ErrorCode.NOT_JOINED, "join a room first (join_room)")
        room = self._enterable(session, rooms[0])
        await self.join(session, room, None, quiet=True)
        return room

    def _check_text(self, text: str) -> None:
        limit = self.hub.settings.max_text_length
        if limit and len(text) > limit:
            raise ClientError(ErrorCode.TOO_LARGE, f"a message has at most {limit} characters - at `$.message`")
        if "\x00" in text or not text.strip():
            raise ClientError(ErrorCode.INVALID_MESSAGE, "a message has text, and no NUL in it - at `$.message`")

    # -- comings, goings, typing

    def _announce(self, room: Room, message: messages.ServerMessage, by: Session | None = None) -> None:
        origin, user = (by.id, by.user_id) if by is not None else (None, None)
        publication = Publication(JSON.encode(message), user=user, origin=origin)
        self.hub.spawn(_publish(self.hub, room.channel, publication))

    def _roster_changed(self, channel: Channel, joined: list[str], left: list[str]) -> None:
        room = self.rooms.get(channel.name[len(PREFIX) :])
        if room is None or channel.roster is None:
            return
        if len(channel.roster) > self.hub.settings.presence_limit:
            self._uncounted[room] = None
            return
        for user_id in joined:
            self._announce(room, messages.UserJoined(room_id=room.id, user_id=user_id))
        for user_id in left:
            self._announce(room, messages.UserLeft(room_id=room.id, user_id=user_id))

    def _left(self, session: Session) -> None:
        for name in session.channels:
            if name.startswith(PREFIX) and session.user is not None and len(session.user.sessions) == 1:
                room = self.rooms.get(name[len(PREFIX) :])
                if room is not None:
                    self._unmark(room, session.user.id)

    def _unmark(self, room: Room, user_id: str) -> None:
        if room.typing.pop(user_id, None) is not None:
            self._announce(room, messages.TypingMark(room_id=room.id, user_id=user_id, active=False))

    def sweep(self, monotonic: float) -> None:
        """Fade typing marks; tell large rooms their count."""
        while self._marks and self._marks[0][0] <= monotonic:
            _, room_id, user_id = heappop(self._marks)
            room = self.rooms[room_id]
            deadline = room.typing.get(user_id)
            if deadline is None:
                continue
            if deadline > monotonic:
                heappush(self._marks, (deadline, room_id, user_id))
            else:
                self._unmark(room, user_id)
        for room in list(self._uncounted):
            if monotonic - room.counted >= COUNT_INTERVAL:
                del self._uncounted[room]
                room.counted = monotonic
                count = who_is_here(self.hub, room.channel)[1]
                self._announce(room, messages.RoomCount(room_id=room.id, count=count))


async def _publish(hub: Hub, channel: str, publication: Publication) -> None:
    await hub.broker.publish(channel, publication, EPHEMERAL)


_stamped: tuple[int, str] = (0, "")


def _stamp(now: float) -> str:
    """RFC 3339 of ``now``; formatted once a millisecond, since many messages share one."""
    global _stamped
    millisecond = int(now * 1000)
    if _stamped[0] != millisecond:
        _stamped = (millisecond, rfc3339(now))
    return _stamped[1]
