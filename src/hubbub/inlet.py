"""What comes in from the broker: each channel in the order of its offsets, with what is missing had from history.

A broker may hand publications over twice, late, in another order, or lose some. The hub delivers those that are in turn
itself; all others come here. They are held while history is asked for what is missing. Only if history cannot give that,
the subscribers are told: ``gap``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Protocol

from hubbub.asking import Asking
from hubbub.channel import Channel
from hubbub.errors import BrokerUnavailable
from hubbub.messages import JSON, Position
from hubbub.order import NEVER, Answer, Order
from hubbub.session import Session
from hubbub.settings import ChannelOptions
from hubbub.stream import Publication, Recovery

if TYPE_CHECKING:
    from hubbub.hub import Hub

PERSONAL: Final = "user:"
GAP_KEY: Final = "\x00gap"
"""A slow reader's newest gap replaces older ones, and no publication does: no client's key has a NUL."""


class Line(Protocol):
    """What has publications in an order: a channel with subscribers, or a user's own one."""

    name: str
    epoch: str
    next: int
    order: Order | None


class Personal:
    """A user's own channel, as far as its order goes. It has no subscribers: all sessions of the user get it.

    :ivar next: the offset of the next publication; :data:`NEVER` while every one is to be looked at.
    """

    __slots__ = ("epoch", "name", "next", "order")

    def __init__(self, name: str) -> None:
        self.name = name
        self.epoch = ""
        self.next = NEVER
        self.order: Order | None = None


class OrderedInlet:
    """The Inlet of a hub.

    :ivar hub: whose.
    :ivar asking: asks history for what is missing.
    :ivar shared: whether there are other nodes.
    :ivar lines: the personal channels whose position is known, by user. They go with the user's last session.
    """

    def __init__(self, hub: Hub) -> None:
        self.hub = hub
        self.deliver = hub.deliver  # itself: a method around it would cost as much as its check
        self.lines: dict[str, Personal] = {}
        self._events = hub.metrics.order
        self.shared = False
        self.asking = Asking(self)
        hub.leavers.append(self._left)

    def start(self) -> None:
        """The broker is there."""
        self.shared = self.hub.broker.peers is not None
        self.asking.stopped = False

    def stop(self) -> None:
        """The hub stops."""
        self.asking.stop()

    # -- users' own channels: with other nodes, this one has to ask for them

    def came(self, user_id: str) -> None:
        """A user's first session on this node has opened."""
        if self.shared:
            self.hub.spawn(self._hear(user_id))

    async def _hear(self, user_id: str) -> None:
        name = PERSONAL + user_id
        try:
            await self.hub.broker.subscribe(name)
            options = self.hub.options_for(name)
            if options.history_size and user_id not in self.lines:
                # from here on, what is missed while the engine is away is known to be
                read = await self.hub.broker.recover(name, None, 0, options)
                if user_id not in self.lines and self.hub.sessions_of(user_id):
                    line = self.lines[user_id] = Personal(name)
                    line.epoch, line.next = read.position.epoch, read.position.offset + 1
        except BrokerUnavailable:
            return  # the broker knows that it is wanted
        finally:
            if not self.hub.sessions_of(user_id):  # gone meanwhile
                self.gone(user_id)

    def gone(self, user_id: str) -> None:
        """A user's last session on this node is over."""
        if self.shared and self.hub.loop is not None:
            self.hub.spawn(self.hub.broker.unsubscribe(PERSONAL + user_id))

    # -- what the hub hands over

    def out_of_turn(self, line: Line, publication: Publication) -> None:
        """A publication that is not the next one."""
        order = line.order
        if order is None:
            if line.next == NEVER:
                return  # nobody was told a position: nobody waits for it
            order = self._in_doubt(line)
        deliver = order.take(publication)
        if deliver is None:
            self._events["duplicate"] += 1
        elif deliver:
            self._emit(line, deliver)
        else:
            self._events["early"] += 1
        self.settle(line, order)

    def personal(self, user_id: str, publication: Publication) -> bool:
        """A publication of a user's own channel that is not known to be the next one. True: deliver it."""
        line = self.lines.get(user_id)
        if line is None:
            if user_id not in self.hub.users:
                return False
            line = self.lines[user_id] = Personal(PERSONAL + user_id)
        order = line.order
        if order is None and line.next == NEVER:
            # The first. What was before it nobody was promised: a session that wants that says so (`subscribe`).
            line.next = publication.offset + 1
            return True
        if order is not None and not order.next:
            order.next = publication.offset
        self.out_of_turn(line, publication)
        return False

    def lost(self, channel: str | None) -> None:
        """Publications of a channel (None: of any) may have been missed, or its epoch may be another: ask history."""
        lines: list[Line] = []
        if channel is None:
            lines = [*self.hub.channels.values(), *self.lines.values()]
            if self.shared:
                for user_id in self.hub.users.keys() - self.lines.keys():
                    self.came(user_id)
        elif channel.startswith(PERSONAL):
            personal = self.lines.get(channel[len(PERSONAL) :])
            lines = [personal] if personal is not None else []
        elif channel in self.hub.channels:
            lines = [self.hub.channels[channel]]
        for line in lines:
            if line.order is None and line.next == NEVER:
                continue
            if self._options(line).history_size:
                order = self._in_doubt(line)
                order.doubt()
                self.settle(line, order)
                self.asking.hurry(order)

    def renewed(self, channel: str, position: Position) -> None:
        """The same place under another epoch."""
        line: Line | None = self.hub.channels.get(channel)
        if channel.startswith(PERSONAL):
            line = self.lines.get(channel[len(PERSONAL) :])
        if line is None:
            return
        if line.order is not None or line.next != position.offset + 1:
            self.lost(channel)
            return
        line.epoch = position.epoch
        self._events["renewed"] += 1
        self.hub.tell(channel, position_of(channel, position))

    # -- who subscribes

    def begin(self, line: Line) -> None:
        """Somebody is subscribing: note what is delivered meanwhile, until :meth:`done`."""
        self._in_doubt(line).readers += 1

    async def recover(self, line: Line, since: Position | None) -> Recovery:
        """What a reader at ``since`` has missed, up to where this node is: what is delivered next continues it.

        Between :meth:`begin` and :meth:`done`.

        :raises BrokerUnavailable: history does not answer.
        """
        hub = self.hub
        options = self._options(line)
        while True:
            order = line.order
            assert order is not None
            asked = order.here
            recovery = await hub.past_of(line.name).recover(line.name, since, hub.settings.recovery_limit, options)
            fitted, others = order.join(asked, since, recovery)
            self._apply(line, order, others)
            if fitted is not None:
                return fitted
            if order.wants:
                await self.ask(line, order)

    def done(self, line: Line) -> None:
        """It has subscribed, or it failed to."""
        order = line.order
        assert order is not None
        self._emit(line, order.left())
        self.settle(line, order)

    async def recover_personal(self, user_id: str, since: Position | None) -> Recovery:
        """The same for a user's own channel, which the session has already.

        :raises BrokerUnavailable: history does not answer.
        """
        line = self.lines.get(user_id)
        if line is None:
            line = self.lines[user_id] = Personal(PERSONAL + user_id)
        self.begin(line)
        try:
            if self.shared:
                await self.hub.broker.subscribe(line.name)  # or what comes between would be missed
            return await self.recover(line, since)
        finally:
            self.done(line)

    def _left(self, session: Session) -> None:
        if self.lines and session.user is not None and len(session.user.sessions) <= 1:
            line = self.lines.pop(session.user.id, None)
            if line is not None:
                self.let_go(line)

    def let_go(self, line: Line) -> None:
        """Somebody has left: if nobody waits for its order any more, do not ask for it."""
        order = line.order
        if order is not None and not self.waited_for(line, order):
            self.asking.let_go(order)

    # -- in doubt, and out of it

    def _in_doubt(self, line: Line) -> Order:
        order = line.order
        if order is None:
            order = line.order = Order(line.epoch, line.next)
            line.next = NEVER
        return order

    def settle(self, line: Line, order: Order) -> None:
        """Ask history if that is to be done; go back to the plain way if all is in order."""
        line.epoch = order.epoch
        if order.wants:
            self.asking.start(line, order)
        elif order.settled and not order.filling and line.order is order:
            line.order = None
            line.next = order.next or NEVER
            if isinstance(line, Channel):
                self.hub.release(line)

    def _emit(self, line: Line, publications: list[Publication]) -> None:
        for publication in publications:
            line.next = publication.offset  # so that it is in turn
            self.hub.deliver(line.name, publication)
        line.next = NEVER

    def _apply(self, line: Line, order: Order, answer: Answer) -> None:
        line.epoch = order.epoch
        if answer.gap is not None:
            self._events["gap"] += 1
            self.hub.tell(line.name, gap_of(line.name, answer.gap))
        if answer.renewed is not None:
            self._events["renewed"] += 1
            self.hub.tell(line.name, position_of(line.name, answer.renewed))
        if answer.filled:
            self._events["filled"] += answer.filled
        self._emit(line, answer.publications)

    # -- asking history

    async def ask(self, line: Line, order: Order) -> None:
        """Ask once, and do what follows from the answer."""
        past, options = self.hub.past_of(line.name), self._options(line)
        try:
            if not order.epoch:
                read = await past.recover(line.name, None, 0, options)
                if not order.epoch:
                    self._apply(line, order, order.learn(read.position))
            question = order.ask()
            recovery = await past.recover(line.name, question.since, self.hub.settings.recovery_limit, options)
        except BaseException:
            order.unanswered()
            raise
        self._apply(line, order, order.answer(question, recovery))

    def _options(self, line: Line) -> ChannelOptions:
        return line.options if isinstance(line, Channel) else self.hub.options_for(line.name)

    def waited_for(self, line: Line, order: Order) -> bool:
        """Whether anybody still wants to have it in order."""
        if line.order is not order:
            return False
        if isinstance(line, Channel):
            return bool(line.size or order.readers)
        return bool(order.readers) or self.lines.get(line.name[len(PERSONAL) :]) is line

    def skip(self, line: Line, order: Order) -> None:
        """History will not have what is missing."""
        self._apply(line, order, order.skip())

    def drop(self, line: Line, order: Order) -> None:
        """Nobody waits any more: the next who subscribes says where we are."""
        if line.order is order and not order.readers:
            line.order = None
            line.next = NEVER
            if isinstance(line, Channel):
                self.hub.release(line)


def gap_of(channel: str, position: Position) -> Publication:
    """A ``gap`` that goes the way of the channel's publications, so that it is in order with them."""
    head = b'{"type":"gap","channel":%b,"epoch":%b,"offset":' % (JSON.encode(channel), JSON.encode(position.epoch))
    if not position.offset:
        return Publication(head + b"0}", key=GAP_KEY)
    return Publication(head, b"}", GAP_KEY, offset=position.offset)


def position_of(channel: str, position: Position) -> Publication:
    """A ``position`` message that goes the way of the channel's publications."""
    text = b'{"type":"position","channel":%b,"epoch":%b,"offset":%d}' % (
        JSON.encode(channel),
        JSON.encode(position.epoch),
        position.offset,
    )
    return Publication(text, key=GAP_KEY)
