"""The way to the engine for who is no node: it publishes and tells, and hears nothing."""

from __future__ import annotations

import time

from hubbub.brokers.valkey.broker import ValkeyBroker
from hubbub.brokers.valkey.keys import Partition
from hubbub.brokers.valkey.peers import ValkeyPeers
from hubbub.messages import Position
from hubbub.settings import Settings
from hubbub.stream import Publication


class OutsideBroker(ValkeyBroker):
    """A broker that has no lease and no subscribers.

    :ivar outside: how the nodes are told and facts are kept.
    """

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings, _MachineClock())
        self._peers = self.outside = _Outside(self)

    async def begin(self) -> None:
        """Connect, for a moment; who publishes waits for the rest."""
        await self.start(_Nobody())

    async def listeners(self, partition: Partition, channel: str) -> int:
        """How many nodes are subscribed to a channel.

        :raises BrokerUnavailable: the engine does not answer.
        """
        verb = "SHARDNUMSUB" if self.keys.cluster else "NUMSUB"
        reply = await self.shard_of(partition).call("PUBSUB", verb, partition.key("c", channel))
        counts = reply.values() if isinstance(reply, dict) else reply[1::2]
        return sum(map(int, counts))


class _Outside(ValkeyPeers):
    """Peers of no node: what was never started has no name, no lease, and no ear."""

    async def start(self) -> None:
        """Nothing: the nodes are not to know of it."""

    async def stop(self) -> None:
        """Nothing: they do not know of it."""


class _MachineClock:
    """The machine's clocks."""

    def time(self) -> float:
        """Unix seconds."""
        return time.time()

    def monotonic(self) -> float:
        """Seconds that never jump."""
        return time.monotonic()


class _Nobody:
    """An Inlet without a hub."""

    def deliver(self, channel: str, publication: Publication) -> None:
        """Nothing is subscribed to."""

    def lost(self, channel: str | None) -> None:
        """Nothing can be lost."""

    def renewed(self, channel: str, position: Position) -> None:
        """Nobody has a position."""
