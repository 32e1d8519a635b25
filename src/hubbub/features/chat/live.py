"""Rooms that have somebody in them on this node: who is here, who types. Nothing of it outlives the process."""

from __future__ import annotations

from collections import OrderedDict
from contextlib import suppress
from heapq import heappop, heappush
from typing import Final

from hubbub.channel import Channel
from hubbub.commands import who_is_here
from hubbub.errors import BrokerUnavailable
from hubbub.features.chat import tells
from hubbub.features.chat.access import RoomRow
from hubbub.features.chat.tx import message_head
from hubbub.hub import EPHEMERAL, Hub
from hubbub.messages import JSON, ServerMessage
from hubbub.session import Session
from hubbub.stream import Publication

PREFIX: Final = "room:"
COUNT_INTERVAL: Final = 1.0
"""Seconds between two `room_count` of a large room."""
IDLE: Final = 256
"""Rooms without anybody in them that are remembered all the same: who comes back is let in without asking the store."""


class Room:
    """One room, as this node needs it while somebody is in it.

    :ivar head: the JSON text of its messages up to the number.
    :ivar seq: of its newest event that this node knows of.
    :ivar sure: nothing was committed to it since that this node did not see: its position was read while it was here.
    :ivar answered: of a `live` room: (user, client_id) → the ack's id and timestamp, so that a retry gets the first answer.
    :ivar floors: user → the number after which they may see what happened; only of who may not see all.
    """

    __slots__ = ("answered", "channel", "counted", "floors", "head", "id", "row", "seq", "sure", "typing")

    def __init__(self, row: RoomRow) -> None:
        self.id = row.id
        self.row = row
        self.channel = PREFIX + row.id
        self.head = message_head(row.id)
        self.seq = row.event_seq
        self.sure = False
        self.answered: OrderedDict[tuple[str, str], tuple[int, str]] = OrderedDict()
        self.typing: dict[str, float] = {}
        self.floors: dict[str, int] = {}
        self.counted = 0.0

    @property
    def stored(self) -> bool:
        return self.row.stored

    @property
    def lists(self) -> bool:
        """Whether its users are told by name, however few they are."""
        return self.row.kind in ("group", "live")


class Live:
    """The rooms of a hub that somebody is in.

    :ivar rooms: by id.
    :ivar quiet: (room, user) → the session that is not to hear of its own coming: it never asked to enter.
    """

    def __init__(self, hub: Hub) -> None:
        self._hub = hub
        self.rooms: dict[str, Room] = {}
        self._marks: list[tuple[float, str, str]] = []  # a heap of (deadline, room, user)
        self._uncounted: dict[Room, None] = {}
        self.quiet: dict[tuple[str, str], Session] = {}
        hub.comings.observers.append((PREFIX, self._roster_changed))
        hub.leavers.append(self._left)

    def know(self, row: RoomRow) -> Room:
        """The room of a row just read."""
        room = self.rooms.get(row.id)
        if room is None:
            room = self.rooms[row.id] = Room(row)
        elif room.row.epoch != row.epoch:
            room.row, room.seq = row, row.event_seq
        else:
            room.row = row
            room.seq = max(room.seq, row.event_seq)
        return room

    def of_channel(self, name: str) -> Room | None:
        return self.rooms.get(name[len(PREFIX) :])

    def forget_idle(self) -> None:
        """Let go of rooms that nobody is in."""
        if len(self.rooms) <= IDLE:
            return
        channels = self._hub.channels
        for room_id in [room.id for room in self.rooms.values() if room.channel not in channels and not room.typing]:
            if not self.rooms[room_id].answered:  # a live room's retries are answered for as long as its history lasts
                del self.rooms[room_id]

    # -- telling

    def announce(self, room_id: str, message: ServerMessage, by: Session | None = None) -> None:
        """Tell everybody in a room, but not the session that it comes from."""
        origin, user = (by.id, by.user_id) if by is not None else (None, None)
        self.publish(room_id, Publication(JSON.encode(message), user=user, origin=origin))

    def publish(self, room_id: str, publication: Publication) -> None:
        """Hand something without an offset to everybody in a room."""
        self._hub.spawn(_publish(self._hub, PREFIX + room_id, publication))

    # -- who is here

    def listed(self, room: Room) -> tuple[list[dict[str, object]] | None, int]:
        """Who is in a room (None where only the number is told), and how many."""
        users, count = who_is_here(self._hub, room.channel)
        if count > self._hub.settings.presence_limit or not room.lists:
            return None, count
        return [{"user_id": user, **here} for user, here in users.items()], count

    def _roster_changed(self, channel: Channel, joined: list[str], left: list[str]) -> None:
        room = self.of_channel(channel.name)
        if room is None or channel.roster is None:
            return
        if len(channel.roster) > self._hub.settings.presence_limit or not room.lists:
            self._uncounted[room] = None
            return
        for user_id in joined:
            by = self.quiet.pop((room.id, user_id), None)
            self.announce(room.id, tells.UserJoined(room_id=room.id, user_id=user_id), by)
        for user_id in left:
            self.announce(room.id, tells.UserLeft(room_id=room.id, user_id=user_id))

    def _left(self, session: Session) -> None:
        for name in session.channels:
            if name.startswith(PREFIX) and session.user is not None and len(session.user.sessions) == 1:
                room = self.of_channel(name)
                if room is not None:
                    self.unmark(room, session.user.id)

    # -- who types

    def types(self, room: Room, session: Session) -> None:
        """A user types: everybody else is told, once, until it fades."""
        if room.row.kind in ("large", "broadcast"):
            return  # there, hundreds would type at any time
        user_id = session.user_id
        deadline = self._hub.clock.monotonic() + self._hub.settings.typing_timeout
        if user_id not in room.typing:
            self.announce(room.id, tells.TypingMark(room_id=room.id, user_id=user_id, active=True), session)
            heappush(self._marks, (deadline, room.id, user_id))
        room.typing[user_id] = deadline

    def unmark(self, room: Room, user_id: str) -> None:
        """A user does not type any more."""
        if room.typing.pop(user_id, None) is not None:
            self.announce(room.id, tells.TypingMark(room_id=room.id, user_id=user_id, active=False))

    def sweep(self, monotonic: float) -> None:
        """Fade typing marks; tell large rooms their count; forget rooms that nobody is in."""
        while self._marks and self._marks[0][0] <= monotonic:
            _, room_id, user_id = heappop(self._marks)
            room = self.rooms.get(room_id)
            deadline = room.typing.get(user_id) if room is not None else None
            if room is None or deadline is None:
                continue
            if deadline > monotonic:
                heappush(self._marks, (deadline, room_id, user_id))
            else:
                self.unmark(room, user_id)
        for room in list(self._uncounted):
            if monotonic - room.counted >= COUNT_INTERVAL:
                del self._uncounted[room]
                room.counted = monotonic
                count = who_is_here(self._hub, room.channel)[1]
                self.announce(room.id, tells.RoomCount(room_id=room.id, count=count))
        self.forget_idle()


async def _publish(hub: Hub, channel: str, publication: Publication) -> None:
    with suppress(BrokerUnavailable):  # it is fleeting
        await hub.broker.publish(channel, publication, EPHEMERAL)
