"""Who listens to a channel on this node, and the fan-out to them: per turn of the loop, and in slices when it is large.

A fan-out to 100,000 sockets takes half a second of kernel time. So one turn writes to at most :data:`SLICE` links,
and the rest follows in the next turns; who else has something to say gets in between.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from typing import Final

from hubbub.batch import Batch
from hubbub.order import NEVER, Order
from hubbub.ports import Lane, Link, Members, Topic
from hubbub.presence import Roster
from hubbub.settings import ChannelOptions
from hubbub.stream import Publication

SLICE: Final = 4096
"""Links written to in one turn: about 20 ms."""


class Channel:
    """One channel's subscribers on this node.

    :ivar lanes: the links, by how they are written to.
    :ivar epoch: of the positions that its subscribers were given last.
    :ivar next: the offset of the publication to deliver next; :data:`~hubbub.order.NEVER` while each is to be looked at.
    :ivar order: what is known while they do not simply come in order, or while somebody is subscribing.
    :ivar subscribed: the broker knows that this node wants it.
    :ivar roster: who is here, where the channel has presence.
    :ivar watchers: links that want ``presence_changed``.
    :ivar topic: what the app declared of it, if it did.
    :ivar waiting: fan-outs of it that are under way in slices.
    """

    __slots__ = (
        "batch",
        "epoch",
        "lanes",
        "left",
        "name",
        "new",
        "next",
        "options",
        "order",
        "roster",
        "size",
        "subscribed",
        "topic",
        "waiting",
        "watchers",
    )

    def __init__(self, name: str, options: ChannelOptions) -> None:
        self.name = name
        self.options = options
        self.lanes: dict[Lane, Members] = {}
        self.size = 0
        self.epoch = ""
        self.next = NEVER
        self.order: Order | None = None
        self.subscribed = False
        self.batch: Batch | None = None
        self.roster: Roster | None = Roster() if options.presence else None
        self.watchers: set[Link] | None = None
        self.topic: Topic | None = None
        self.waiting: list[_Slices] = []
        self.new: set[str] | None = None  # users whose coming is to be told at the end of the turn
        self.left: set[str] | None = None

    def add(self, link: Link) -> None:
        links = self.lanes.get(link.lane)
        if links is None:
            links = self.lanes[link.lane] = Members()
        if link not in links:
            links.add(link)
            self.size += 1

    def discard(self, link: Link) -> None:
        links = self.lanes.get(link.lane)
        if links is not None and link in links:
            links.discard(link)
            self.size -= 1
            for slices in self.waiting:
                slices.gone.add(link)  # for good: if it comes back, its new position covers what still waits here
            if not links:
                del self.lanes[link.lane]
        if self.watchers is not None:
            self.watchers.discard(link)
            if not self.watchers:
                self.watchers = None

    def links(self) -> Iterable[Link]:
        for links in self.lanes.values():
            yield from links

    @property
    def empty(self) -> bool:
        """True when nothing would be lost by forgetting it. Users that only other nodes have are theirs to know."""
        if self.size or self.waiting or self.batch is not None or self.order is not None:
            return False
        return self.roster is None or not self.roster.own


class _Slices:
    """One batch on its way to many links: those that were subscribed when it was sealed, without those gone since."""

    __slots__ = ("batch", "channel", "gone", "lanes")

    def __init__(self, channel: Channel | None, batch: Batch, lanes: Iterable[tuple[Lane, list[Link]]]) -> None:
        self.channel = channel
        self.batch = batch
        self.lanes = deque(lanes)
        self.gone: set[Link] = set()


class Fanout:
    """Collects the turn's batches and writes them.

    :param schedule: asks the loop for one call of :meth:`turn` in its next turn.
    """

    def __init__(self, schedule: Callable[[], None]) -> None:
        self._schedule = schedule
        self._dirty: list[Channel] = []
        self._slices: deque[_Slices] = deque()
        self.deliveries = 0
        self.batches = 0
        self.publications = 0

    def add(self, channel: Channel, publication: Publication, exclude: Link | None) -> None:
        """Put a publication into the channel's batch of this turn."""
        batch = channel.batch
        if batch is None:
            batch = channel.batch = Batch(channel.name, channel.options.slow)
            self._dirty.append(channel)
            self._schedule()
        batch.add(publication, exclude)
        topic = channel.topic
        if topic is not None and topic.filters:
            for link in channel.links():
                session = link.session
                if session is not None and not topic.visible(session, channel.name, publication):
                    batch.hide(link)

    def announce(self, channel: Channel, publication: Publication, exclude: Link | None = None) -> None:
        """Put what every subscriber must get, whatever the app's filter says, in its place among the publications."""
        batch = channel.batch
        if batch is None:
            batch = channel.batch = Batch(channel.name, channel.options.slow)
            self._dirty.append(channel)
            self._schedule()
        batch.add(publication, exclude)

    def seal(self, channel: Channel) -> None:
        """Close the channel's batch before its subscribers change: who comes now gets none of it, who goes all of it."""
        batch = channel.batch
        if batch is None:
            return
        channel.batch = None
        if not channel.waiting and channel.size <= SLICE:
            self._deliver(channel.lanes.items(), batch, merge=False)
        else:
            self._slice(channel, batch)

    def catch_up(self, channel: Channel, link: Link) -> None:
        """Write what is still on its way to one link now, before it is told a later position."""
        for slices in channel.waiting:
            if link not in slices.gone and any(link in links for lane, links in slices.lanes if lane is link.lane):
                link.lane.deliver((link,), slices.batch, False)
                slices.gone.add(link)

    def everyone(self, batch: Batch, lanes: Iterable[tuple[Lane, list[Link]]]) -> None:
        """Write a batch to links that are in no channel together (a broadcast)."""
        self._slices.append(_Slices(None, batch, lanes))
        self._schedule()

    def turn(self) -> None:
        """Write what this turn has, up to a slice; ask for another turn if that was not all."""
        budget = SLICE
        while self._slices and budget > 0:
            budget -= self._next_slice(budget)
        dirty, self._dirty = self._dirty, []
        merge = len(dirty) > 1
        for index, channel in enumerate(dirty):
            if budget <= 0:
                self._dirty = dirty[index:] + self._dirty
                break
            batch = channel.batch
            if batch is None:
                continue  # sealed earlier in this turn
            channel.batch = None
            if channel.waiting or channel.size > budget:
                self._slice(channel, batch)
                budget -= self._next_slice(budget)
            else:
                self._deliver(channel.lanes.items(), batch, merge)
                budget -= channel.size
        if self._slices or self._dirty:
            self._schedule()

    def _deliver(self, lanes: Iterable[tuple[Lane, Iterable[Link]]], batch: Batch, merge: bool) -> None:
        count = len(batch.publications)
        self.batches += 1
        self.publications += count
        for lane, links in lanes:
            lane.deliver(links, batch, merge)
            self.deliveries += count * len(links)  # type: ignore[arg-type]  # always a set or a list

    def _slice(self, channel: Channel, batch: Batch) -> None:
        slices = _Slices(channel, batch, [(lane, list(links)) for lane, links in channel.lanes.items()])
        channel.waiting.append(slices)
        self._slices.append(slices)
        self._schedule()

    def _next_slice(self, budget: int) -> int:
        """Write to at most ``budget`` links of the oldest sliced fan-out. Returns to how many."""
        slices = self._slices[0]
        if not slices.lanes:
            self._slices.popleft()
            if slices.channel is not None:
                slices.channel.waiting.remove(slices)
            self.batches += 1
            self.publications += len(slices.batch.publications)
            return 0
        lane, links = slices.lanes[0]
        part = links[-budget:]
        del links[-budget:]
        if not links:
            slices.lanes.popleft()
        gone = slices.gone
        if gone:
            lane.deliver([link for link in part if link not in gone], slices.batch, False)
        else:
            lane.deliver(part, slices.batch, False)
        self.deliveries += len(slices.batch.publications) * len(part)
        return len(part)
