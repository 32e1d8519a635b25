"""A broker that fails on command: what a network, a restart or an overload does to publications, one fault at a time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, TypeAlias

from hubbub.brokers.memory import MemoryBroker
from hubbub.errors import BrokerUnavailable
from hubbub.inlet import OrderedInlet
from hubbub.messages import Position
from hubbub.ports import Broker, Inlet, Peers
from hubbub.settings import ChannelOptions
from hubbub.stream import Publication, Recovery

Delivery: TypeAlias = tuple[str, Publication]
Kind: TypeAlias = Literal["drop", "duplicate", "delay", "reorder"]


class _Fault:
    """A fault that the next deliveries will have.

    :ivar left: how many of them.
    :ivar channel: only of this one; None: of any.
    """

    __slots__ = ("channel", "held", "kind", "left")

    def __init__(self, kind: Kind, left: int, channel: str | None) -> None:
        if left < 1:
            raise ValueError("a fault is of at least one delivery")
        self.kind = kind
        self.left = left
        self.channel = channel
        self.held: list[Delivery] = []

    def takes(self, channel: str) -> bool:
        return self.left > 0 and (self.channel is None or self.channel == channel)


class FaultyBroker:
    """A broker around another one: ``Hubbub(app, broker=FaultyBroker())``. It is faultless until told otherwise.

    History is the inner broker's and has no faults but those of :attr:`unavailable` and :meth:`forget`. Faults are of
    *deliveries*, the way from the broker to this node. Each is for the next ``count`` deliveries (of ``channel``, or of
    any); of several faults the oldest comes first.

    :param inner: by default a :class:`MemoryBroker`, made when the hub starts.
    :ivar unavailable: while it is True, ``publish``, ``relay``, ``recover``, ``history`` and ``subscribe`` raise
        :class:`BrokerUnavailable`, and nothing is published.
    :ivar connected: False after :meth:`disconnect`.
    """

    def __init__(self, inner: Broker | None = None) -> None:
        self.unavailable = False
        self.connected = True
        self._inner = inner
        self._inlet: Inlet | None = None
        self._faults: list[_Fault] = []
        self._held: list[Delivery] = []

    # -- faults

    def drop(self, count: int = 1, *, channel: str | None = None) -> None:
        """Lose the next deliveries. Nobody is told: that is what the next offset is for."""
        self._faults.append(_Fault("drop", count, channel))

    def duplicate(self, count: int = 1, *, channel: str | None = None) -> None:
        """Make each of the next deliveries twice."""
        self._faults.append(_Fault("duplicate", count, channel))

    def delay(self, count: int = 1, *, channel: str | None = None) -> None:
        """Hold the next deliveries until :meth:`release`; those after them overtake."""
        self._faults.append(_Fault("delay", count, channel))

    def reorder(self, count: int = 2, *, channel: str | None = None) -> None:
        """Make the next ``count`` deliveries in the reverse order, once all of them are there."""
        self._faults.append(_Fault("reorder", count, channel))

    def release(self) -> int:
        """Make the deliveries that are held, in the order of their publication. Returns how many."""
        for fault in self._faults:
            self._held += fault.held
        self._faults = [fault for fault in self._faults if not fault.held]
        held, self._held = self._held, []
        for channel, publication in held:
            self._hand_over(channel, publication)
        return len(held)

    def disconnect(self) -> None:
        """Lose the connection to what is delivered: nothing is, until :meth:`resubscribe`."""
        self.connected = False

    def resubscribe(self) -> None:
        """Have it back. What was published meanwhile was not delivered; the hub is told that something may be missing."""
        self.connected = True
        if self._inlet is not None:
            self._inlet.lost(None)

    def forget(self, channel: str, *, tell: bool = True) -> None:
        """Lose a channel's history, and what of it is held: it begins anew, in a new epoch.

        :param tell: the hub is told, as a broker must that notices it.
        :raises TypeError: the inner broker is no MemoryBroker.
        """
        inner = self._started()
        if not isinstance(inner, MemoryBroker):
            raise TypeError(f"a {type(inner).__name__} cannot be made to forget")
        inner.forget(channel)
        for held in (self._held, *(fault.held for fault in self._faults)):
            held[:] = [delivery for delivery in held if delivery[0] != channel]
        if tell and self.connected and self._inlet is not None:
            self._inlet.lost(channel)

    def heal(self) -> None:
        """Be faultless from here. What is held stays so until :meth:`release`; a lost connection is taken up again."""
        for fault in self._faults:
            self._held += fault.held
        self._faults.clear()
        self.unavailable = False
        if not self.connected:
            self.resubscribe()

    # -- the Inlet, as the inner broker sees it

    def deliver(self, channel: str, publication: Publication) -> None:
        """What the inner broker hands over."""
        if not self.connected:
            return
        fault = next((fault for fault in self._faults if fault.takes(channel)), None)
        if fault is None:
            self._hand_over(channel, publication)
            return
        fault.left -= 1
        if fault.kind == "duplicate":
            self._hand_over(channel, publication)
            self._hand_over(channel, publication)
        elif fault.kind == "delay":
            self._held.append((channel, publication))
        elif fault.kind == "reorder":
            fault.held.append((channel, publication))
        if fault.left:
            return
        self._faults.remove(fault)
        for held in reversed(fault.held):
            self._hand_over(*held)

    def lost(self, channel: str | None) -> None:
        """What the inner broker says of itself."""
        if self.connected and self._inlet is not None:
            self._inlet.lost(channel)

    def renewed(self, channel: str, position: Position) -> None:
        """What the inner broker says of itself."""
        if self.connected and self._inlet is not None:
            self._inlet.renewed(channel, position)

    def _hand_over(self, channel: str, publication: Publication) -> None:
        if self._inlet is not None and self.connected:
            self._inlet.deliver(channel, publication)

    # -- the Broker, as the hub sees it

    async def start(self, inlet: Inlet) -> None:
        """As :class:`~hubbub.ports.Broker` has it: starts the inner broker."""
        if self._inner is None:
            if not isinstance(inlet, OrderedInlet):
                raise TypeError("without a hub there must be an inner broker: FaultyBroker(MemoryBroker(…))")
            self._inner = MemoryBroker(inlet.hub.settings, inlet.hub.clock)
        self._inlet = inlet
        await self._inner.start(self)

    async def stop(self) -> None:
        """Stops the inner broker; what is held is gone."""
        await self._started().stop()
        self._inlet = None
        self._faults.clear()
        self._held.clear()

    async def publish(
        self,
        channel: str,
        publication: Publication,
        options: ChannelOptions,
        *,
        once: str | None = None,
        version: int | None = None,
    ) -> Position:
        """As :class:`~hubbub.ports.Broker` has it.

        :raises BrokerUnavailable: while :attr:`unavailable` is set.
        """
        self._check()
        return await self._started().publish(channel, publication, options, once=once, version=version)

    async def relay(self, channel: str, publications: Sequence[Publication]) -> None:
        """As :class:`~hubbub.ports.Broker` has it.

        :raises BrokerUnavailable: while :attr:`unavailable` is set.
        """
        self._check()
        await self._started().relay(channel, publications)

    async def subscribe(self, channel: str) -> None:
        """As :class:`~hubbub.ports.Broker` has it."""
        self._check()
        await self._started().subscribe(channel)

    async def unsubscribe(self, channel: str) -> None:
        """As :class:`~hubbub.ports.Broker` has it."""
        await self._started().unsubscribe(channel)

    async def recover(self, channel: str, since: Position | None, limit: int, options: ChannelOptions) -> Recovery:
        """As :class:`~hubbub.ports.Broker` has it.

        :raises BrokerUnavailable: while :attr:`unavailable` is set.
        """
        self._check()
        return await self._started().recover(channel, since, limit, options)

    async def history(
        self, channel: str, after: int | None, before: int | None, limit: int, options: ChannelOptions
    ) -> tuple[Position, Sequence[Publication], bool]:
        """As :class:`~hubbub.ports.Broker` has it.

        :raises BrokerUnavailable: while :attr:`unavailable` is set.
        """
        self._check()
        return await self._started().history(channel, after, before, limit, options)

    def sweep(self, now: float) -> None:
        """As :class:`~hubbub.ports.Broker` has it."""
        self._started().sweep(now)

    @property
    def healthy(self) -> bool:
        """Whether it answers."""
        return not self.unavailable and self.connected

    @property
    def peers(self) -> Peers | None:
        """As :class:`~hubbub.ports.Broker` has it."""
        return self._inner.peers if self._inner is not None else None

    @property
    def bytes(self) -> int:
        """Of history, in this process's memory."""
        return int(getattr(self._inner, "bytes", 0))

    def _started(self) -> Broker:
        assert self._inner is not None, "the broker was not started"
        return self._inner

    def _check(self) -> None:
        if self.unavailable:
            raise BrokerUnavailable("the broker does not answer (a test said so)")
