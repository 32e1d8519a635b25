"""The way to the engine for who is no node: it publishes and tells, and hears nothing."""

from __future__ import annotations

import time
from typing import Any

from hubbub.brokers.valkey.broker import ValkeyBroker
from hubbub.brokers.valkey.keys import Partition
from hubbub.brokers.valkey.peers import ValkeyPeers
from hubbub.settings import Settings
from hubbub.stream import Publication


class OutsideBroker(ValkeyBroker):
    """A broker that has no lease and no subscribers.

    :ivar outside: how the nodes are told and facts are kept. It was never started, so it speaks for no node.
    """

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings, _MachineClock())
        self.outside = ValkeyPeers(self)
        self._peers: Any = None

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
