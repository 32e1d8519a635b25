"""The engine that hubs of one process share: its faults, on bare brokers and under whole apps."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from hubbub import Hubbub
from hubbub.errors import BrokerUnavailable
from hubbub.messages import Position
from hubbub.ports import BEAT, LEASE, Here
from hubbub.settings import ChannelOptions
from hubbub.testing import FaultyBroker, HandClock, HubClient, MemoryEngine, hub_client, running, sync_client
from hubbub.testing.contracts import Node
from hubbub.testing.engine import TOLD_KEPT, TOLD_SECONDS
from tests.support import settings_for, until
from tests.test_contracts import EnginePlace

pytestmark = pytest.mark.anyio
KEEPS = ChannelOptions(history_size=100)
ONE = Here(1, 1.0, None)


async def turns(count: int = 5) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


async def recovered(node: Node, since: Position) -> list[str] | None:
    recovery = await node.broker.recover("a", since, 100, KEEPS)
    return [one.tail.decode() for one in recovery.publications] if recovery.recovered else None


# -- the connection of one node


async def test_who_is_cut_off_hears_and_reaches_nothing() -> None:
    place = EnginePlace()
    async with place.nodes(2) as (here, away):
        await away.broker.subscribe("a")
        first = await here.publish("a", "1", KEEPS)
        await away.has("a", 1)
        place.engine.cut(away.broker)
        assert not away.broker.healthy
        await here.publish("a", "2", KEEPS)
        for asked in (
            away.publish("a", "x", KEEPS),
            away.broker.recover("a", None, 1, KEEPS),
            away.broker.history("a", None, None, 1, KEEPS),
            away.broker.subscribe("b"),
            away.broker.relay("a", []),
            away.peers.tell(b"x"),
            away.peers.who("a"),
            away.peers.counts(["a"]),
            away.peers.keep("k", "k", b"", 1),
            away.peers.kept("k"),
        ):
            with pytest.raises(BrokerUnavailable):
                await asked
        away.peers.here("a", "alice", ONE)
        away.peers.leave()
        await turns()
        assert away.texts("a") == {1: "1"}
        place.engine.heal(away.broker)
        assert away.broker.healthy
        assert await recovered(away, first) == ["2"]
        await here.publish("a", "3", KEEPS)
        await away.has("a", 3)
        assert away.texts("a") == {1: "1", 3: "3"}, "what was published meanwhile is in history alone"
        assert away.ear.declared == 1


async def test_what_is_on_its_way_is_lost_with_the_connection() -> None:
    place = EnginePlace()
    async with place.nodes(2) as (here, away):
        await away.broker.subscribe("a")
        publishing = asyncio.ensure_future(here.publish("a", "1", KEEPS))
        await asyncio.sleep(0)  # the engine has it, and nobody else
        place.engine.cut(away.broker)
        place.engine.heal(away.broker)
        await publishing
        await turns()
        assert away.texts("a") == {}


async def test_messages_wait_for_who_is_away_for_a_moment() -> None:
    place = EnginePlace()
    async with place.nodes(2) as (here, away):
        place.engine.cut(away.broker)
        wanted = [b"%d" % number for number in range(TOLD_KEPT)]
        for message in wanted:
            await here.peers.tell(message)
        place.engine.heal(away.broker)
        await until(lambda: len(away.ear.messages) == TOLD_KEPT)
        assert away.ear.said_by(here.peers.node) == wanted
        assert away.ear.gaps == 0


async def test_who_was_away_for_too_much_or_too_long_is_told() -> None:
    place = EnginePlace()
    async with place.nodes(2) as (here, away):
        place.engine.cut(away.broker)
        for number in range(TOLD_KEPT + 1):
            await here.peers.tell(b"%d" % number)
        place.engine.heal(away.broker)
        await until(lambda: away.ear.gaps == 1)
        place.engine.cut(away.broker)
        await here.peers.tell(b"old")
        await place.pass_time(TOLD_SECONDS + 1)
        await here.peers.tell(b"new")
        place.engine.heal(away.broker)
        await until(lambda: away.ear.gaps == 2)
        await until(lambda: away.ear.messages[-1] == (here.peers.node, b"new"))
        assert (here.peers.node, b"old") not in away.ear.messages


async def test_who_is_cut_off_is_gone_with_its_lease_and_comes_back() -> None:
    place = EnginePlace()
    async with place.nodes(2) as (here, away):
        node = away.peers.node
        away.peers.here("a", "alice", ONE)
        await here.broker.subscribe("a")
        assert await here.peers.who("a") == {node: {"alice": ONE}}
        place.engine.cut(away.broker)
        await place.pass_time(LEASE - BEAT)
        assert node in place.engine.nodes
        await place.pass_time(2 * BEAT)
        await until(lambda: not here.ear.alive)
        assert place.engine.nodes == {here.peers.node}
        assert await here.peers.who("a") == {}
        place.engine.heal(away.broker)
        await until(lambda: here.ear.alive.keys() == {node})
        away.peers.here("a", "alice", ONE)
        await until(lambda: here.ear.said[-1:] == [("a", node, "alice", ONE)])


async def test_what_is_not_declared_again_is_gone() -> None:
    place = EnginePlace()
    async with place.nodes(2) as (here, away):
        node = away.peers.node
        away.peers.here("a", "stays", ONE)
        away.peers.here("a", "goes", ONE)
        place.engine.cut(away.broker)
        place.engine.heal(away.broker)
        await until(lambda: away.ear.declared == 1)
        away.peers.here("a", "stays", ONE)
        await place.pass_time(BEAT)
        assert await here.peers.who("a") == {node: {"stays": ONE}}


async def test_who_is_killed_stays_dead() -> None:
    place = EnginePlace()
    async with place.nodes(2) as (here, dead):
        place.engine.kill(dead.broker)
        place.engine.heal(dead.broker)
        assert not dead.broker.healthy
        await place.pass_time(LEASE + BEAT)
        await until(lambda: not here.ear.alive)


async def test_a_node_is_named_by_its_broker_or_its_hub() -> None:
    engine = MemoryEngine(HandClock())
    with pytest.raises(TypeError, match="this engine has no node"):
        engine.cut(MemoryEngine().broker(settings_for()))
    broker = engine.broker(settings_for())
    for node in (broker, FaultyBroker(broker), Hubbub(settings=settings_for(), broker=broker)):
        engine.cut(node)


# -- the engine


async def test_after_a_restart_positions_are_good() -> None:
    place = EnginePlace()
    async with place.nodes(2) as (one, two):
        await two.broker.subscribe("a")
        positions = [await one.publish("a", str(number), KEEPS) for number in range(1, 4)]
        place.engine.restart()
        assert await recovered(one, positions[0]) == ["2", "3"]
        after = await two.publish("a", "4", KEEPS)
        assert after.offset == 4
        assert after.epoch != positions[0].epoch
        assert await recovered(one, positions[0]) == ["2", "3", "4"]
        assert await recovered(one, Position(positions[0].epoch, 4)) is None, "that was no position of then"
        await two.has("a", 4)


async def test_after_a_rewind_only_what_was_lost_is_a_gap() -> None:
    place = EnginePlace()
    async with place.nodes(2) as (one, _):
        old = [await one.publish("a", str(number), KEEPS, once=f"k{number}", version=number) for number in range(1, 6)]
        place.engine.restart(lose=2)
        new = await one.publish("a", "other", KEEPS)
        assert new.offset == 4
        assert await one.kept("a", KEEPS) == ["1", "2", "3", "other"]
        assert [await recovered(one, position) for position in old] == [
            ["2", "3", "other"], ["3", "other"], ["other"], None, None,
        ]  # fmt: skip
        assert await one.publish("a", "x", KEEPS, once="k3") == old[2], "its key was not lost"
        assert (await one.publish("a", "5", KEEPS, once="k5", version=5)).offset == 5, "what was lost may come again"
        place.engine.restart(lose=1)
        assert await recovered(one, Position(new.epoch, 4)) == []
        assert await recovered(one, Position(new.epoch, 5)) is None
        assert await recovered(one, old[2]) == ["other"]
        place.engine.restart(lose=100)
        assert (await one.broker.recover("a", None, 0, KEEPS)).position.offset == 0


async def test_an_empty_engine_begins_anew() -> None:
    place = EnginePlace()
    async with place.nodes(2) as (one, two):
        await two.broker.subscribe("a")
        old = await one.publish("a", "1", KEEPS, once="k", version=7)
        await one.peers.keep("kind", "key", b"value", 1000)
        one.peers.here("a", "alice", ONE)
        place.engine.restart(empty=True)
        assert await recovered(one, old) is None
        assert await one.peers.kept("kind") == {}
        assert await two.peers.who("a") == {}
        await until(lambda: all(node.ear.gaps == node.ear.declared == 1 for node in (one, two)))
        assert {node.peers.node for node in (one, two)} == place.engine.nodes, "they live, and say so"
        position = await one.publish("a", "anew", KEEPS, once="k", version=1)
        assert position.offset == 1
        assert position.epoch.partition(".")[0] != old.epoch.partition(".")[0]


async def test_a_stalled_engine_answers_later_or_too_late() -> None:
    place = EnginePlace()
    async with place.nodes(2, valkey_timeout=5) as (one, two):
        await two.broker.subscribe("a")
        place.engine.stall()
        assert not one.broker.healthy
        early = asyncio.ensure_future(one.publish("a", "too late", KEEPS))
        await turns()
        one.peers.here("a", "alice", ONE)
        await place.pass_time(3)
        late = asyncio.ensure_future(one.publish("a", "in time", KEEPS))
        await turns()
        await place.pass_time(3)
        with pytest.raises(BrokerUnavailable, match="in time"):
            await early
        assert not late.done()
        assert two.texts("a") == {}
        place.engine.resume()
        assert (await late).offset == 2
        await two.has("a", 1, 2)
        assert two.texts("a") == {1: "too late", 2: "in time"}, "nobody knows, but it was done"
        assert await two.peers.who("a") == {one.peers.node: {"alice": ONE}}
        await place.pass_time(LEASE - BEAT)
        await until(lambda: len(one.ear.alive) == 1)


async def test_an_answer_that_is_lost_and_the_key_that_helps() -> None:
    place = EnginePlace()
    async with place.nodes(2) as (one, two):
        place.engine.leave_unanswered()
        with pytest.raises(BrokerUnavailable, match="answer"):
            await one.publish("a", "1", KEEPS, once="k")
        assert (await two.publish("a", "1", KEEPS, once="k")).offset == 1
        assert await one.kept("a", KEEPS) == ["1"]


async def test_publishers_without_a_server() -> None:
    place = EnginePlace()
    async with place.nodes(2) as nodes:
        place.engine.tell(b"from a worker")
        for node in nodes:
            await until(lambda node=node: node.ear.messages == [("", b"from a worker")])  # type: ignore[misc]  # a default binds it


# -- under whole apps


class Pair:
    """Two nodes with an app each, and who is on them."""

    def __init__(self) -> None:
        self.clock = HandClock()
        self.engine = MemoryEngine(self.clock)
        self.apps = [FastAPI(), FastAPI()]
        self.hubs = [self._hub(app) for app in self.apps]

    def _hub(self, app: FastAPI) -> Hubbub:
        settings = settings_for()
        return Hubbub(app, settings=settings, clock=self.clock, broker=self.engine.broker(settings))

    @asynccontextmanager
    async def client(self, node: int, user: str) -> AsyncIterator[HubClient]:
        async with hub_client(self.apps[node], user=user, subscribe=["*"], publish=["*"], ttl=86_400) as client:
            await client.subscribe("news")
            yield client


def data(messages: list[dict[str, Any]]) -> list[Any]:
    return [message.get("data", message["type"]) for message in messages]


@pytest.fixture
async def pair() -> AsyncIterator[Pair]:
    pair = Pair()
    async with running(pair.apps[0]), running(pair.apps[1]):
        yield pair


async def test_two_nodes(pair: Pair) -> None:
    async with pair.client(0, "alice") as alice, pair.client(1, "bob") as bob:
        ack = await alice.ask("publish", channel="news", data=1)
        assert ack["offset"] == 1
        await pair.hubs[1].publish("news", 2)
        for client in (alice, bob):
            assert [(await client.expect("publication"))["data"] for _ in range(2)] == [1, 2]


async def test_a_node_that_was_cut_off_gives_its_clients_what_they_missed(pair: Pair) -> None:
    async with pair.client(0, "alice") as alice, pair.client(1, "bob") as bob:
        pair.engine.cut(pair.hubs[1])
        for number in (1, 2, 3):
            await pair.hubs[0].publish("news", number)
        assert await bob.drained() == []
        assert await bob.refused("publish", channel="news", data="x") == "unavailable"
        pair.engine.heal(pair.hubs[1])
        assert [(await bob.expect("publication"))["data"] for _ in range(3)] == [1, 2, 3]
        await alice.ask("publish", channel="news", data=4)
        assert (await bob.expect("publication"))["data"] == 4
        await bob.nothing()


async def test_a_restart_that_lost_nothing_is_no_gap(pair: Pair) -> None:
    async with pair.client(0, "alice") as alice, pair.client(1, "bob") as bob:
        await pair.hubs[0].publish("news", 1)
        await bob.expect("publication")
        pair.engine.restart()
        await bob.expect("position", offset=1)
        await alice.ask("publish", channel="news", data=2)
        assert (await bob.expect("publication"))["offset"] == 2
        assert "gap" not in {message["type"] for message in (*alice.seen, *bob.seen)}


@pytest.mark.parametrize("how", [{"lose": 1}, {"empty": True}])
async def test_what_an_engine_lost_is_a_gap(pair: Pair, how: dict[str, Any]) -> None:
    async with pair.client(0, "alice") as alice, pair.client(1, "bob") as bob:
        await pair.hubs[0].publish("news", 1)
        await alice.expect("publication")
        await bob.expect("publication")
        pair.engine.restart(**how)
        for client in (alice, bob):
            await client.expect("gap")
        await pair.hubs[0].publish("news", 2)
        for client in (alice, bob):
            assert (await client.expect("publication"))["data"] == 2


async def test_a_client_comes_back_to_another_node(pair: Pair) -> None:
    async with pair.client(1, "bob") as bob:
        await pair.hubs[0].publish("news", 1)
        seen = await bob.expect("publication")
    epoch = (await pair.hubs[0].publish("news", 2)).epoch
    await pair.hubs[1].publish("news", 3)
    pair.engine.kill(pair.hubs[1])
    async with hub_client(pair.apps[0], user="bob", subscribe=["*"]) as bob:
        answer = await bob.ask("subscribe", channel="news", since={"epoch": epoch, "offset": seen["offset"]})
        assert answer["recovered"] is True
        assert [message["data"] for message in answer["messages"]] == [2, 3]


def test_nodes_in_different_loops() -> None:
    """As the TestClient runs them: each app in a thread of its own."""
    pair = Pair()
    with (
        TestClient(pair.apps[0]) as one,
        TestClient(pair.apps[1]) as two,
        sync_client(one, user="alice", subscribe=["*"], publish=["*"]) as alice,
        sync_client(two, user="bob", subscribe=["*"]) as bob,
    ):
        bob.subscribe("news")
        for number in range(20):
            alice.ask("publish", channel="news", data=number)
            assert bob.expect("publication")["data"] == number
        pair.clock.advance(LEASE + 2 * BEAT)
        assert len(pair.engine.nodes) == 2
