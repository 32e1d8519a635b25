"""Rooms on several nodes: who has to leave them, and what others changed of them.

Whoever is removed from a room must hear nothing that was said afterwards, on whichever node. So the removal goes the way
of what is said: in the room's channel, just before the event that it is (its number says when). A node that hears of that
event has heard of the removal; one that reads it in the store finds it there. Only what has no number (somebody leaves a
public room) is looked up in the store when it is told.

All else (a room's settings) is told to the other nodes, and read again from the store. And now and then each node looks
whether the store has more of its rooms than it has heard of: what a node committed that died before it could tell, or
everything, while the engine is away.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Annotated, Any, Final

from msgspec import Meta, Struct
from sqlalchemy import Connection, bindparam, select

from hubbub.channel import Channel
from hubbub.errors import ClientError, ErrorCode
from hubbub.features.chat import tables, tells
from hubbub.features.chat.access import Caller, RoomRow
from hubbub.features.chat.entering import Coming, standings
from hubbub.features.chat.live import PREFIX, Live, Room
from hubbub.features.chat.membership import Standing
from hubbub.features.chat.tx import ROOM_COLUMNS, Outcome, Removed, room_of
from hubbub.hub import Hub
from hubbub.making import Making, SubscriptionEnded
from hubbub.messages import Position
from hubbub.session import Session
from hubbub.settings import ChannelOptions
from hubbub.store import Store
from hubbub.stream import Publication, Recovery

log = logging.getLogger("hubbub")

OUT: Final = "\x00out"
"""Keys of removals begin with it: no client's key has a NUL."""
ALWAYS: Final = 1 << 62
"""In place of a removal's number: whoever is there has to go."""
LOOK: Final = 3.0
"""Seconds between two looks at the rooms that somebody is in."""
LOOK_AWAY: Final = 1.0
"""The same while the engine is away: what others say is heard only so."""
ON_ITS_WAY: Final = 0.5
"""Seconds after which what is committed should have been heard, while the engine is there."""
AT_ONCE: Final = 500
"""Rooms looked at in one query."""
CHECKED: Final = 300
"""Sessions whose membership is looked up in one query."""
ROOMS: Final = 1000
"""Rooms that one message names."""


class RoomsChanged(Struct, tag="rooms_changed", frozen=True):
    """Rooms have other settings now: read them again."""

    room_ids: Annotated[list[str], Meta(max_length=ROOMS)]


class Doubted(Struct, tag="room_doubted", frozen=True):
    """A user may not be in a room any more: look it up."""

    room_id: str
    user_id: str


class OnTheWay:
    """Somebody who is about to be in a room, and may be removed meanwhile.

    :ivar removed: (number, reason) of each removal.
    :ivar channel: the room's, if this node heard all that happened there since.
    """

    __slots__ = ("channel", "removed")

    def __init__(self, channel: Channel | None) -> None:
        self.removed: list[tuple[int, str]] = []
        self.channel = channel

    def check(self, seen: int) -> None:
        """Whether they may come in, whose membership was read at a room's number.

        :raises ClientError: they were removed since.
        """
        for number, reason in self.removed:
            if number > seen:
                raise ClientError(ErrorCode.FORBIDDEN, f"you were {reason} just now")


class Nodes:
    """The rooms of a hub among those of other nodes.

    :ivar shared: whether there are other nodes, or may be.
    """

    def __init__(self, hub: Hub, store: Store, live: Live, caller_of: Callable[[Session], Caller]) -> None:
        self._hub = hub
        self._store = store
        self._live = live
        self._caller_of = caller_of
        self._entering: dict[tuple[str, str], list[OnTheWay]] = {}
        self._ahead: dict[tuple[str, Session], int] = {}
        self._stale: dict[str, None] = {}
        self._doubted: dict[tuple[str, str | None], None] = {}
        self._reading = self._checking = self._looking = False
        self._looked = float("-inf")
        self.shared = hub.cluster.peers is not None
        if self.shared:
            hub.passing.append((PREFIX, self._passes))
            hub.cluster.on(RoomsChanged, self._changed)
            hub.cluster.on(Doubted, lambda message: self.doubt(message.room_id, message.user_id))
            hub.cluster.resyncers.append(self.resync)

    # -- coming in

    @contextmanager
    def coming(self, room_id: str, user_id: str) -> Iterator[OnTheWay]:
        """Somebody is about to be in a room: from before it is read whether they may, until they are there."""
        channel = self._hub.channels.get(PREFIX + room_id)
        on_the_way = OnTheWay(channel if channel is not None and channel.subscribed else None)
        key = (room_id, user_id)
        self._entering.setdefault(key, []).append(on_the_way)
        try:
            yield on_the_way
        finally:
            self._entering[key].remove(on_the_way)
            if not self._entering[key]:
                del self._entering[key]

    async def enter(
        self,
        session: Session,
        room: Room,
        since: Position | None,
        options: ChannelOptions,
        on_the_way: OnTheWay,
        seen: int,
    ) -> Recovery:
        """Put somebody into a room's channel, and say what they missed.

        :param seen: the room's number when it was read that they may come in.
        :raises ClientError: they were removed meanwhile.
        """
        # who is the first here: this node has not heard what happened since then, so that has to be read
        heard = on_the_way.channel is not None and on_the_way.channel is self._hub.channels.get(room.channel)
        unheard = self.shared and not heard
        try:
            with Making(self._hub, session, room.channel) as making:
                if unheard and room.stored:
                    recovery = await self._attach(making, room, since, options, seen)
                else:
                    recovery = await making.attach(since, options)
                on_the_way.check(seen)
        except SubscriptionEnded:
            on_the_way.check(seen)
            raise
        if self.shared and seen > recovery.position.offset:
            self._ahead[room.id, session] = seen
        if unheard and not room.stored:
            self.doubt(room.id, session.user_id)  # a ban is nowhere else
        return recovery

    async def _attach(
        self, making: Making, room: Room, since: Position | None, options: ChannelOptions, seen: int
    ) -> Recovery:
        then = Position(room.row.epoch, seen)
        recovery = await making.attach(since or then, options)
        if not recovery.recovered and recovery.position != then:  # they missed too much; but not since then
            making.withdraw()
            recovery = await making.attach(then, options)
            since = None
            if not recovery.recovered:
                raise ClientError(ErrorCode.BUSY, "too much happens in this room: try again", retry_after=0.1)
        return recovery if since is not None else Recovery(recovery.position, [], False)

    # -- being removed

    def marks_of(self, outcome: Outcome[Any]) -> list[tuple[str, Publication]]:
        """What tells all nodes, in rooms' channels, who has to leave them."""
        if not self.shared:
            return []
        keys = [
            (each.room_id, f"{OUT}:{outcome.number_of(each)}:{each.reason}:{each.user_id}") for each in outcome.removed
        ]
        return [(room_id, Publication(b"{}", key=key)) for room_id, key in keys]

    def _passes(self, channel: str, publication: Publication) -> bool:
        key = publication.key
        if key is None or not key.startswith(OUT):
            return True
        _, number, reason, user_id = key.split(":", 3)
        room_id = channel[len(PREFIX) :]
        room = self._live.rooms.get(room_id)
        if number != "0":
            self.remove(room_id, user_id, reason, int(number))
        elif room is not None and not room.stored:
            self.remove(room_id, user_id, reason, ALWAYS)
        else:
            self.doubt(room_id, user_id)
        return False

    def read(self, removed: Iterable[Removed]) -> None:
        """Removals were read in a room's past."""
        for each in removed:
            self.remove(each.room_id, each.user_id, each.reason, each.seq)

    def remove(self, room_id: str, user_id: str, reason: str, number: int, *, heard: bool = True) -> None:
        """Take a user's sessions out of a room, and those that are just entering; but not those that came (again) after
        it.

        :param heard: nothing is done if this node has heard of that event already.
        """
        for on_the_way in self._entering.get((room_id, user_id), ()):
            on_the_way.removed.append((number, reason))
        channel = self._hub.channels.get(PREFIX + room_id)
        if channel is None or (heard and number <= here(channel)):
            return
        stay = False
        for session in self._within(channel, user_id):
            if self._ahead.get((room_id, session), 0) >= number:
                stay = True
            else:
                self._out(room_id, session, reason)
        room = self._live.rooms.get(room_id)
        if room is not None and not stay and (room_id, user_id) not in self._entering:
            self._live.unmark(room, user_id)
            room.floors.pop(user_id, None)

    def _within(self, channel: Channel, user_id: str) -> list[Session]:
        """The sessions of a user that are in a channel; who is just coming in is judged by :meth:`OnTheWay.check`."""
        sessions = self._hub.users.get(user_id, ())
        return [each for each in sessions if each.link in channel.lanes.get(each.link.lane, ())]

    def _out(self, room_id: str, session: Session, reason: str) -> None:
        self._ahead.pop((room_id, session), None)
        if self._hub.detach(session, PREFIX + room_id):
            self._hub.reply(session, tells.RoomLeft(room_id=room_id, reason=reason))

    # -- who may be here

    def doubt(self, room_id: str, user_id: str | None = None) -> None:
        """Look up whether a user (None: everybody) who is in a room on this node may still be there."""
        if not self.shared or PREFIX + room_id not in self._hub.channels:
            return
        self._doubted[room_id, user_id] = None
        if not self._checking:
            self._checking = True
            self._hub.background(self._check())

    async def _check(self) -> None:
        try:
            while self._doubted:
                doubted, self._doubted = self._doubted, {}
                await self._check_all([pair for each in doubted for pair in self._pairs(*each)])
        except ClientError as error:
            self._doubted = doubted | self._doubted  # with the next look
            log.warning("who may be in which room has to be looked up later: %s", error.message)
        finally:
            self._checking = False

    def _pairs(self, room_id: str, user_id: str | None) -> list[tuple[Session, str]]:
        name = PREFIX + room_id
        channel = self._hub.channels.get(name)
        if channel is None:
            return []
        if user_id is not None:
            return [(session, room_id) for session in self._within(channel, user_id)]
        return [(link.session, room_id) for link in channel.links() if link.session is not None]

    async def _check_all(self, pairs: Sequence[tuple[Session, str]]) -> None:
        for start in range(0, len(pairs), CHECKED):
            some = [pair for pair in pairs[start : start + CHECKED] if pair[0].identity is not None]
            found = await self._standings(some)
            for (session, room_id), standing in zip(some, found, strict=True):
                reason = self._why_not(session, standing)
                if reason is not None:
                    self._out(room_id, session, reason)
                elif standing is not None and standing.room.stored:
                    self._ahead[room_id, session] = standing.room.event_seq

    async def _standings(self, pairs: Sequence[tuple[Session, str]]) -> list[Standing | None]:
        comings = [Coming(self._caller_of(session), room_id) for session, room_id in pairs]
        if not comings:
            return []
        return await self._store.read(lambda connection: standings(connection, comings))

    def _why_not(self, session: Session, standing: Standing | None) -> str | None:
        """Why somebody may not be in a room; None: they may."""
        caller = self._caller_of(session)
        if standing is None:
            return "removed"
        if caller.admin or (standing.room.stored and standing.member is not None):
            return None
        until = standing.ban[0] if standing.ban is not None else 0
        if until is None or until > self._hub.clock.time() * 1000:
            return "banned"
        return "removed" if standing.room.stored else None

    # -- rooms that others changed

    async def tell(self, outcome: Outcome[Any]) -> None:
        """Tell the other nodes what changed of rooms that matters to them. Who does not get it looks by itself, later."""
        room_ids = list(dict.fromkeys(each.room.id for each in outcome.changed if each.everywhere))
        for start in range(0, len(room_ids), ROOMS):
            await self._hub.cluster.tell(RoomsChanged(room_ids[start : start + ROOMS]))
        for removed in outcome.removed:
            if not outcome.number_of(removed):  # else the room's past says it
                await self._hub.cluster.tell(Doubted(removed.room_id, removed.user_id))

    def _changed(self, message: RoomsChanged) -> None:
        self._stale.update(dict.fromkeys(each for each in message.room_ids if each in self._live.rooms))
        if self._stale and not self._reading:
            self._reading = True
            self._hub.background(self._reread())

    async def _reread(self) -> None:
        try:
            while self._stale:
                stale, self._stale = self._stale, {}
                await self._look_at([room for each in stale if (room := self._live.rooms.get(each)) is not None])
        except ClientError as error:
            log.warning("rooms that others changed have to be read later: %s", error.message)
        finally:
            self._reading = False

    async def _look_at(self, rooms: Sequence[Room]) -> list[tuple[Room, RoomRow]]:
        """Read rooms again; returns those of which the store has more than this node has heard of, and their rows."""
        ahead = []
        for start in range(0, len(rooms), AT_ONCE):
            numbers = [room.row.no for room in rooms[start : start + AT_ONCE]]
            rows = await self._store.read(partial(_rows, numbers))
            for room in rooms[start : start + AT_ONCE]:
                row = rows.get(room.row.no)
                if row is not None and self._live.rooms.get(room.id) is room and self._is_ahead(room, row):
                    ahead.append((room, row))
        return ahead

    def _is_ahead(self, room: Room, row: RoomRow) -> bool:
        anew = row.epoch != room.row.epoch
        self._live.know(row)
        channel = self._hub.channels.get(room.channel)
        if channel is None or not row.stored:
            return False
        if anew:  # a backup was restored
            self._hub.inlet.lost(room.channel)
            return False
        return row.event_seq > here(channel)

    # -- now and then

    def sweep(self, monotonic: float) -> None:
        """Look at the rooms that somebody is in."""
        if not self.shared or self._looking:
            return
        away = not self._hub.broker.healthy
        if monotonic - self._looked >= (LOOK_AWAY if away else LOOK):
            self._looked = monotonic
            self._looking = True
            self._hub.background(self._look(away))

    async def _look(self, away: bool) -> None:
        try:
            if self._doubted and not self._checking:
                self._checking = True
                await self._check()
            channels = self._hub.channels
            self._forget_passed()
            rooms = [room for room in self._live.rooms.values() if room.stored and room.channel in channels]
            ahead = await self._look_at(rooms)
            if ahead and not away:
                await asyncio.sleep(ON_ITS_WAY)
            for room, row in ahead:
                channel = channels.get(room.channel)
                if channel is not None and row.event_seq > here(channel):
                    self._hub.inlet.lost(room.channel)
        except ClientError as error:
            log.warning("what happened in rooms has to be looked up later: %s", error.message)
        finally:
            self._looking = False

    def _forget_passed(self) -> None:
        """What a node has heard of takes nobody out any more."""
        for (room_id, session), seen in list(self._ahead.items()):
            channel = self._hub.channels.get(PREFIX + room_id)
            if channel is None or PREFIX + room_id not in session.channels or seen <= here(channel):
                del self._ahead[room_id, session]

    async def resync(self) -> None:
        """Messages of other nodes may have been missed: read all rooms here again, and who may be in them."""
        channels = self._hub.channels
        for room in list(self._live.rooms.values()):
            if room.channel in channels:
                self._stale[room.id] = None
                self.doubt(room.id)
        self._changed(RoomsChanged([]))


def here(channel: Channel) -> int:
    """The number up to which a room's channel has been heard on this node; below 0: none of it was asked for."""
    order = channel.order
    return order.here.offset if order is not None else channel.next - 1


def _rows(numbers: list[int], connection: Connection) -> dict[int, RoomRow]:
    return {row.no: room_of(row) for row in connection.execute(_BY_NUMBER, {"numbers": numbers})}


_BY_NUMBER: Final = select(*ROOM_COLUMNS).where(tables.rooms.c.no.in_(bindparam("numbers", expanding=True)))
