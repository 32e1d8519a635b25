"""Rooms that have somebody in them on this node: who is here, who types. Nothing of it outlives the process.

Who is here, each node tells its own clients: it knows it of all nodes. Who types is told by the node that the user is on;
the others only see to it that a mark of theirs fades when that node does not say so any more.
"""

from __future__ import annotations

from collections import OrderedDict
from contextlib import suppress
from heapq import heappop, heappush
from typing import Final

import msgspec

from hubbub.channel import Channel
from hubbub.commands import who_is_here
from hubbub.errors import BrokerUnavailable, ClientError
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
MARKED: Final = "\x00+"
"""Keys of typing marks begin with it (no client's key has a NUL), and end with the user: a slow reader gets the newest."""
AGAIN: Final = "\x00~"
"""The same for a mark that its node has told before: for nodes that have not heard of it, or would let it fade."""
ENDED: Final = "\x00-"
"""The same for the end of a mark that clients see by themselves."""


class Room:
    """One room, as this node needs it while somebody is in it.

    :ivar head: the JSON text of its messages up to the number.
    :ivar seq: of its newest event that this node knows of.
    :ivar sure: nothing was committed to it since that this node did not see: its position was read while it was here.
    :ivar answered: of a `live` room: (user, client_id) → the ack's id and timestamp, so that a retry gets the first answer.
    :ivar floors: user → the number after which they may see what happened; only of who may not see all.
    :ivar typing: user → when the mark fades (monotonic seconds), of users who type on this node.
    :ivar typing_elsewhere: the same of users who type on others.
    """

    __slots__ = (
        "answered",
        "channel",
        "counted",
        "floors",
        "head",
        "id",
        "row",
        "seq",
        "sure",
        "typing",
        "typing_elsewhere",
    )

    def __init__(self, row: RoomRow) -> None:
        self.id = row.id
        self.row = row
        self.channel = PREFIX + row.id
        self.head = message_head(row.id)
        self.seq = row.event_seq
        self.sure = False
        self.answered: OrderedDict[tuple[str, str], tuple[int, str]] = OrderedDict()
        self.typing: dict[str, float] = {}
        self.typing_elsewhere: dict[str, float] = {}
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
        self._marks_elsewhere: list[tuple[float, str, str]] = []
        self._spread: dict[tuple[str, str], float] = {}
        self._uncounted: dict[Room, None] = {}
        self.quiet: dict[tuple[str, str], Session] = {}
        hub.comings.observers.append((PREFIX, self._roster_changed))
        hub.leavers.append(self._left)
        if hub.cluster.peers is not None:
            hub.passing.append((PREFIX, self._passes))

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

    def _tell_here(self, room: Room, message: ServerMessage, by: Session | None = None) -> None:
        """Tell everybody in a room on this node, but not the session that it comes from."""
        channel = self._hub.channels.get(room.channel)
        if channel is not None and channel.size:
            publication = Publication(JSON.encode(message))
            self._hub.fanout.announce(channel, publication, by.link if by is not None else None)

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
            self._tell_here(room, tells.UserJoined(room_id=room.id, user_id=user_id), by)
        for user_id in left:
            if room.typing_elsewhere.pop(user_id, None) is not None:
                self._tell_here(room, tells.TypingMark(room_id=room.id, user_id=user_id, active=False))
            self._tell_here(room, tells.UserLeft(room_id=room.id, user_id=user_id))

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
        monotonic, lasts = self._hub.clock.monotonic(), self._hub.settings.typing_timeout
        if user_id not in room.typing:
            self._mark(room, user_id, MARKED, True, session)
            heappush(self._marks, (monotonic + lasts, room.id, user_id))
            self._spread_at(room, user_id, monotonic)
        elif monotonic - self._spread.get((room.id, user_id), monotonic) >= lasts:
            self._mark(room, user_id, AGAIN, True, session)
            self._spread_at(room, user_id, monotonic)
        room.typing[user_id] = monotonic + lasts

    def unmark(self, room: Room, user_id: str) -> None:
        """A user does not type any more."""
        if room.typing.pop(user_id, None) is not None:
            self._spread.pop((room.id, user_id), None)
            self._mark(room, user_id, MARKED, False)

    def said(self, room: Room, user_id: str) -> None:
        """A user said what was being typed: clients take the message itself for the end of it."""
        if room.typing.pop(user_id, None) is not None and self._spread.pop((room.id, user_id), None) is not None:
            self._mark(room, user_id, ENDED, False)

    def _mark(self, room: Room, user_id: str, kind: str, active: bool, by: Session | None = None) -> None:
        mark = tells.TypingMark(room_id=room.id, user_id=user_id, active=active)
        origin = by.id if by is not None else None
        self.publish(room.id, Publication(JSON.encode(mark), b"", kind + user_id, user_id, origin))

    def _spread_at(self, room: Room, user_id: str, monotonic: float) -> None:
        if self._hub.cluster.peers is not None:
            self._spread[room.id, user_id] = monotonic

    def _passes(self, name: str, publication: Publication) -> bool:
        """Something without an offset comes to a room: whether its clients get it. Typing marks are noted."""
        room, key = self.of_channel(name), publication.key
        if room is None or key is None or key[:2] not in (MARKED, AGAIN, ENDED):
            return True
        kind, user_id = key[:2], key[2:]
        known = user_id in room.typing or user_id in room.typing_elsewhere
        if user_id not in room.typing:
            self._note_elsewhere(room, user_id, publication)
        return kind == MARKED or (kind == AGAIN and not known)

    def _note_elsewhere(self, room: Room, user_id: str, publication: Publication) -> None:
        try:
            active = _decode_mark(publication.head).active
        except msgspec.DecodeError:
            return  # of a release that marks otherwise
        if not active:
            room.typing_elsewhere.pop(user_id, None)
            return
        # its node says when it fades, or says it again after one timeout: two without a word, and it is gone
        deadline = self._hub.clock.monotonic() + 2 * self._hub.settings.typing_timeout
        if user_id not in room.typing_elsewhere:
            heappush(self._marks_elsewhere, (deadline, room.id, user_id))
        room.typing_elsewhere[user_id] = deadline

    def _fade_elsewhere(self, monotonic: float) -> None:
        while self._marks_elsewhere and self._marks_elsewhere[0][0] <= monotonic:
            _, room_id, user_id = heappop(self._marks_elsewhere)
            room = self.rooms.get(room_id)
            deadline = room.typing_elsewhere.get(user_id) if room is not None else None
            if room is None or deadline is None:
                continue
            if deadline > monotonic:
                heappush(self._marks_elsewhere, (deadline, room_id, user_id))
            else:
                room.typing_elsewhere.pop(user_id)
                self._tell_here(room, tells.TypingMark(room_id=room_id, user_id=user_id, active=False))

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
        self._fade_elsewhere(monotonic)
        for room in list(self._uncounted):
            if monotonic - room.counted >= COUNT_INTERVAL:
                del self._uncounted[room]
                room.counted = monotonic
                count = who_is_here(self._hub, room.channel)[1]
                self._tell_here(room, tells.RoomCount(room_id=room.id, count=count))
        self.forget_idle()


async def _publish(hub: Hub, channel: str, publication: Publication) -> None:
    with suppress(BrokerUnavailable, ClientError):  # it is fleeting
        await hub.broker.publish(channel, publication, EPHEMERAL)


_decode_mark: Final = msgspec.json.Decoder(tells.TypingMark).decode
