"""What other nodes say of who is here: asked for with a channel's first subscriber, heard from then on, and gone with them.

Every node keeps the union of what all say, and tells its own clients what changes in it; nobody tells for another. So
nothing is told twice, and nothing that a lost message would have had to tell is lost: the next answer has it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Final, Protocol

from hubbub.channel import Channel
from hubbub.errors import BrokerUnavailable
from hubbub.lately import Lately
from hubbub.ports import LEASE, Here, Peers
from hubbub.presence import Elsewhere, Roster

if TYPE_CHECKING:
    from hubbub.hub import Hub

SLICE: Final = 4096
"""Users that are looked at in one turn where a whole channel, or everything, is."""
AT_ONCE: Final = 32
"""Channels that are asked about at the same time: after the engine was away, all of them are."""


MOMENT: Final = 1.0
"""Seconds for which an answer about a channel that this node does not hear of is good."""


class Note(Protocol):
    """Told of a user that came into a channel's roster, or left it."""

    def __call__(self, channel: Channel, user_id: str, /, *, came: bool) -> None: ...


class Others:
    """The part of a hub's rosters that other nodes have.

    After :meth:`declare` the engine may have nothing yet of nodes that live: for :data:`~hubbub.ports.LEASE` seconds it
    is believed what it says, but not what it does not say; then it is asked again.

    :param note: told of who came and who left.
    """

    def __init__(self, hub: Hub, note: Note) -> None:
        self._hub = hub
        self._note = note
        self._asking: dict[Channel, _Asking] = {}
        self._unsure: dict[Channel, None] = {}
        self._doubtful: dict[Channel, None] = {}
        self._known: set[str] = set()
        self._fading: set[tuple[Channel, str]] = set()
        self._believe = 0.0  # monotonic: until then, who is not said to be there may be
        self._askers = 0
        # one client may ask for a thousand rooms, twenty times a second
        self._counts = Lately(self._count, MOMENT)
        self._rosters = Lately(self._ask_rosters, MOMENT, 100)

    @property
    def peers(self) -> Peers | None:
        """The way to the others; None where there are none."""
        return self._hub.cluster.peers

    def clear(self) -> None:
        """The hub has stopped."""
        self._unsure.clear()
        self._doubtful.clear()
        self._fading.clear()
        self._known.clear()
        self._counts.forget()
        self._rosters.forget()
        self._believe = 0.0

    # -- asking

    async def whole(self, channel: Channel) -> None:
        """Know what the others say of a channel that this node has subscribed to, before anybody is told who is there.

        With the engine away it is not known: it is asked for once the engine is back.
        """
        if channel.roster is None or channel.roster.whole:
            return
        asking = self._asking.get(channel)
        if asking is None:
            self._hub.background(self._ask(channel))
            await asyncio.sleep(0)
            asking = self._asking.get(channel)
        if asking is not None:
            await asyncio.shield(asking.answered)

    async def roster_of(self, name: str) -> Roster | None:
        """Who is in a channel on all nodes, also in one that this node does not hear of. None: it has no presence."""
        channel = self._hub.channels.get(name)
        if channel is not None and (self.peers is None or channel.roster is None or channel.roster.whole):
            return channel.roster
        if self.peers is None or not self._hub.options_for(name).presence:
            return None
        try:
            roster = (await self._rosters.of([name])).get(name)
        except BrokerUnavailable:
            roster = None
        channel = self._hub.channels.get(name)
        if channel is not None and channel.roster is not None and channel.roster.whole:
            return channel.roster
        return roster if roster is not None else Roster()

    async def _ask_rosters(self, names: Sequence[str]) -> dict[str, Roster]:
        assert self.peers is not None
        rosters: dict[str, Roster] = {}
        for name in names:
            rosters[name] = Roster()
            rosters[name].settle(await self._read(self.peers, name))
        return rosters

    async def _count(self, names: Sequence[str]) -> dict[str, int]:
        assert self.peers is not None
        return await self.peers.counts(names)

    async def counts(self, names: Sequence[str]) -> dict[str, int]:
        """How many users are in each channel on all nodes. With the engine away: as far as this node knows."""
        channels = self._hub.channels
        counts: dict[str, int] = {}
        unknown = []
        for name in names:
            channel = channels.get(name)
            if channel is not None and channel.roster is not None:
                counts[name] = len(channel.roster)
            elif self.peers is not None:
                unknown.append(name)
        if self.peers is not None and unknown:
            with suppress(BrokerUnavailable):
                counts.update(await self._counts.of(unknown))
        return counts

    async def _ask(self, channel: Channel) -> None:
        roster, peers = channel.roster, self.peers
        if roster is None or peers is None or channel in self._asking:
            return
        asking = self._asking[channel] = _Asking()
        try:
            nodes = await self._read(peers, channel.name)
        except BrokerUnavailable:
            self._unsure[channel] = None
            if not roster.whole:
                roster.settle({})  # as far as is known
        else:
            if self._hub.channels.get(channel.name) is channel:
                self._settle(channel, roster, nodes)
        finally:
            del self._asking[channel]
            for (node, user_id), here in asking.held.items():
                self._hear(channel, roster, node, user_id, here)
            asking.answered.set_result(None)

    async def _read(self, peers: Peers, name: str) -> dict[str, dict[str, Elsewhere]]:
        read: dict[str, dict[str, Elsewhere]] = {}
        looked_at = 0
        for node, users in (await peers.who(name)).items():
            here: dict[str, Elsewhere] = {}
            for user_id, user in users.items():
                here[user_id] = self._elsewhere(user)
                looked_at += 1
                if looked_at % SLICE == 0:
                    await asyncio.sleep(0)
            read[node] = here
        return read

    def _settle(self, channel: Channel, roster: Roster, nodes: dict[str, dict[str, Elsewhere]]) -> None:
        """What the others say of a channel has come."""
        if not roster.whole:
            roster.settle(nodes)
            self._known.update(nodes)
            if self._believe:
                self._doubtful[channel] = None
            return  # nobody here was told of anybody yet
        monotonic = self._hub.clock.monotonic()
        for node, before in roster.nodes.items():
            now = nodes.get(node)
            if now is not None:
                for user_id, user in now.items():
                    was = before.get(user_id)
                    if not user.devices and was is not None and not was.devices:
                        user.leaves = was.leaves  # it is the same grace
            if self._believe and (now is None or not before.keys() <= now.keys()):
                nodes[node] = {**before, **(now or {})}
                self._doubtful[channel] = None
            elif now is None:
                stay = {
                    user_id: user for user_id, user in before.items() if not user.devices and user.leaves > monotonic
                }
                if stay:
                    nodes[node] = stay
                    self._fading.add((channel, node))
        came, left = roster.settle(nodes)
        self._known.update(nodes)
        for user_id in came:
            self._note(channel, user_id, came=True)
        for user_id in left:
            self._note(channel, user_id, came=False)

    def _ask_unsure(self) -> None:
        while self._unsure and self._askers < AT_ONCE:
            self._askers += 1
            self._hub.background(self._asker())

    async def _asker(self) -> None:
        try:
            for _ in range(len(self._unsure)):  # those that are unsure again wait for the next beat
                if not self._unsure:
                    return
                channel = next(iter(self._unsure))
                del self._unsure[channel]
                if self._hub.channels.get(channel.name) is channel:
                    await self._ask(channel)
        finally:
            self._askers -= 1

    # -- hearing

    def heard(self, name: str, node: str, user_id: str, here: Here | None) -> None:
        """A node says how it has a user in a channel (None: not any more)."""
        channel = self._hub.channels.get(name)
        if channel is None or channel.roster is None:
            return
        asking = self._asking.get(channel)
        if asking is not None:
            asking.held[node, user_id] = here
        elif channel.roster.whole:
            self._hear(channel, channel.roster, node, user_id, here)

    def _hear(self, channel: Channel, roster: Roster, node: str, user_id: str, here: Here | None) -> None:
        self._known.add(node)
        change = roster.hear(node, user_id, None if here is None else self._elsewhere(here))
        if change:
            self._note(channel, user_id, came=change > 0)

    def _elsewhere(self, here: Here) -> Elsewhere:
        leaves = 0.0
        if not here.devices:
            leaves = self._hub.clock.monotonic() + self._hub.settings.presence_grace
        return Elsewhere(here.since, here.info, here.devices, leaves)

    # -- nodes that go

    def alive(self, nodes: Collection[str]) -> None:
        """These are the other nodes that live: who was on any other is not there any more."""
        monotonic = self._hub.clock.monotonic()
        if monotonic >= self._believe:
            gone = self._known.difference(nodes)
            if gone:
                self._known -= gone
                self._lose(gone, monotonic)
        self._ask_unsure()

    def _lose(self, gone: set[str], monotonic: float) -> None:
        for channel in list(self._hub.channels.values()):
            if channel.roster is not None and channel.roster.nodes:
                for node in gone.intersection(channel.roster.nodes):
                    self._tell_left(channel, channel.roster.lose(node, monotonic))
                    if node in channel.roster.nodes:
                        self._fading.add((channel, node))

    def sweep(self, monotonic: float) -> None:
        """See whose grace is over, and whether the engine knows everything again."""
        if self._fading:
            for channel, node in list(self._fading):
                assert channel.roster is not None
                self._tell_left(channel, channel.roster.lose(node, monotonic, fading=True))
                if not channel.roster.fades(node):
                    self._fading.discard((channel, node))
        if self._believe and monotonic >= self._believe:
            self._believe = 0.0
            self._unsure.update(self._doubtful)
            self._doubtful.clear()
            self._ask_unsure()

    def _tell_left(self, channel: Channel, left: list[str]) -> None:
        if self._hub.channels.get(channel.name) is channel:
            for user_id in left:
                self._note(channel, user_id, came=False)

    # -- saying everything again

    def declare(self) -> None:
        """Say everything that this node has, and ask for everything that the others have."""
        if self.peers is not None and self._hub.loop is not None:
            self._believe = self._hub.clock.monotonic() + LEASE
            self._hub.background(self._declare(self.peers))

    async def _declare(self, peers: Peers) -> None:
        said = 0
        for channel in list(self._hub.channels.values()):
            roster = channel.roster
            if roster is None:
                continue
            for user_id in roster.own_ids():
                here = here_of(roster, user_id)
                if here is not None:
                    peers.here(channel.name, user_id, here)
                said += 1
                if said % SLICE == 0:
                    await asyncio.sleep(0)
            if roster.whole:
                self._unsure[channel] = None
        self._ask_unsure()


class _Asking:
    """A channel that is being asked about.

    :ivar held: what is heard meanwhile: it follows the answer.
    """

    __slots__ = ("answered", "held")

    def __init__(self) -> None:
        self.answered: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.held: dict[tuple[str, str], Here | None] = {}


def here_of(roster: Roster, user_id: str) -> Here | None:
    """A user of this node, as it tells the others of them."""
    own = roster.own_user(user_id)
    return None if own is None else Here(own["devices"], own["since"], own["info"])
