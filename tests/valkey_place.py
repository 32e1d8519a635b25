"""Where the contracts run over a real Valkey, and how a node of it ends without a word."""

from __future__ import annotations

import asyncio
from typing import Any

from hubbub.app import SystemClock
from hubbub.brokers.valkey.broker import ValkeyBroker
from hubbub.ports import Broker
from hubbub.testing.contracts import Place
from tests.support import settings_for


class ValkeyPlace(Place):
    """A server that all tests share; each has a prefix of its own."""

    longest = 15.0

    def __init__(self, settings: dict[str, str]) -> None:
        self.clock = SystemClock()
        self._settings = settings

    def broker(self, **settings: Any) -> Broker:
        return ValkeyBroker(settings_for(**self._settings, **settings), self.clock)

    async def pass_time(self, seconds: float) -> None:
        await asyncio.sleep(seconds)  # what is turned nowhere has to be waited for

    async def kill(self, broker: Broker) -> None:
        assert isinstance(broker, ValkeyBroker)
        await end_without_a_word(broker)


async def end_without_a_word(broker: ValkeyBroker) -> None:
    """As kill -9 would: nothing is sent any more, and the connections are gone."""
    for shard in broker.shards:
        await shard.stop()
