"""The brokers that come with Hubbub keep what the ports promise: one suite for all of them."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from hubbub.brokers.memory import MemoryBroker
from hubbub.ports import Broker
from hubbub.testing import FaultyBroker, HandClock, MemoryEngine
from hubbub.testing.contracts import BrokerContract, PeersContract, Place
from tests.engine_support import Shards
from tests.support import settings_for
from tests.valkey_place import ValkeyPlace

pytestmark = pytest.mark.anyio


class MemoryPlace(Place):
    hears_all = True

    def __init__(self) -> None:
        self.clock: HandClock = HandClock()

    def broker(self, **settings: Any) -> Broker:
        return MemoryBroker(settings_for(**settings), self.clock)

    async def pass_time(self, seconds: float) -> None:
        self.clock.advance(seconds)


class TestMemoryBroker(BrokerContract):
    nodes = 1

    @pytest.fixture
    def place(self) -> Place:
        return MemoryPlace()


class EnginePlace(Place):
    def __init__(self) -> None:
        self.clock: HandClock = HandClock()
        self.engine = MemoryEngine(self.clock)

    def broker(self, **settings: Any) -> Broker:
        return self.engine.broker(settings_for(**settings))

    async def pass_time(self, seconds: float) -> None:
        self.clock.advance(seconds)

    async def kill(self, broker: Broker) -> None:
        self.engine.kill(broker)


class TestMemoryEngine(BrokerContract):
    @pytest.fixture
    def place(self) -> Place:
        return EnginePlace()


class FaultlessPlace(EnginePlace):
    """A broker that fails on command does what the one within does, until it is told to fail."""

    def broker(self, **settings: Any) -> Broker:
        return FaultyBroker(super().broker(**settings))


class TestFaultyBroker(BrokerContract):
    @pytest.fixture
    def place(self) -> Place:
        return FaultlessPlace()


class TestMemoryEnginePeers(PeersContract):
    @pytest.fixture
    def place(self) -> Place:
        return EnginePlace()


async def test_the_example_in_the_docs(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("HUBBUB_")]:
        monkeypatch.delenv(name)
    text = (Path(__file__).parent.parent / "docs" / "testing.md").read_text()
    (code,) = re.findall(r"^```py\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    names: dict[str, Any] = {"__name__": "example"}
    exec(code, names)
    example = names["TestMyBroker"]()
    assert isinstance(example, BrokerContract)
    for test in (example.test_keys_are_forgotten, example.test_the_bound_in_bytes_holds):
        await test(names["MyPlace"]())


class TestValkeyBroker(BrokerContract):
    @pytest.fixture
    def place(self, valkey_settings: dict[str, str]) -> Place:
        return ValkeyPlace(valkey_settings)


@pytest.fixture(scope="module")
def cluster() -> Iterator[Shards]:
    with Shards() as shards:
        yield shards


class TestValkeyCluster(BrokerContract):
    """Channels on three primaries."""

    @pytest.fixture
    def place(self, cluster: Shards, valkey_prefix: str) -> Place:
        return ValkeyPlace({"valkey_url": cluster.url, "valkey_prefix": valkey_prefix})


class TestValkeyPeers(PeersContract):
    @pytest.fixture
    def place(self, valkey_settings: dict[str, str]) -> Place:
        return ValkeyPlace(valkey_settings)

    @pytest.mark.slow
    async def test_who_ends_without_a_word_is_gone_with_its_lease(self, place: Place) -> None:
        await super().test_who_ends_without_a_word_is_gone_with_its_lease(place)

    @pytest.mark.slow
    async def test_who_lives_stays(self, place: Place) -> None:
        await super().test_who_lives_stays(place)


class TestValkeyClusterPeers(TestValkeyPeers):
    """Their presence is on three primaries, their messages on one."""

    @pytest.fixture
    def place(self, cluster: Shards, valkey_prefix: str) -> Place:
        return ValkeyPlace({"valkey_url": cluster.url, "valkey_prefix": valkey_prefix})
