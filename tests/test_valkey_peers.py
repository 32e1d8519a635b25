"""The other nodes over a real Valkey."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any, cast

import pytest

from hubbub.app import SystemClock
from hubbub.auth import issue_token
from hubbub.brokers.valkey import bus
from hubbub.brokers.valkey.broker import ValkeyBroker
from hubbub.hub import Hub
from hubbub.ports import BEAT, LEASE, Here, Request
from hubbub.settings import ChannelOptions
from hubbub.testing.place import Node
from tests.engine_support import Engine
from tests.fault_proxy import FaultProxy, fault_proxy
from tests.support import settings_for
from tests.test_others import Reader
from tests.valkey_place import ValkeyPlace, end_without_a_word

pytestmark = pytest.mark.anyio


# -- whole hubs


CHANNEL = "c"
GRACE = 0.3
PREFIX = "hubbub-test"


async def eventually(condition: Callable[[], bool], what: str, seconds: float = 10.0) -> float:
    """Wait until a condition holds; returns how long that took."""
    began = time.monotonic()
    while not condition():
        assert time.monotonic() - began < seconds, f"{what}: not within {seconds:g} s"
        await asyncio.sleep(0.01)
    return time.monotonic() - began


class OneNode:
    """A hub, and who is on it."""

    def __init__(self, url: str) -> None:
        self.settings = settings_for(
            valkey_url=url,
            valkey_prefix=PREFIX,
            channels={CHANNEL: ChannelOptions(history_size=5)},
            presence_grace=GRACE,
        )
        self.broker = ValkeyBroker(self.settings, SystemClock())
        self.hub = Hub(self.settings, self.broker, SystemClock())
        assert self.broker.peers is not None
        self.peers = self.broker.peers
        self.beats = 0
        self.readers: list[tuple[str, Reader]] = []
        self.declared = 0
        declare = self.hub.cluster.declare

        def counted() -> None:
            self.declared += 1
            declare()

        nodes = self.hub.cluster.nodes

        def beaten(alive: Mapping[str, bytes]) -> None:
            self.beats += 1
            nodes(alive)

        self.hub.cluster.declare = counted  # type: ignore[method-assign]  # counted, and done all the same
        self.hub.cluster.nodes = beaten  # type: ignore[method-assign]

    async def join(self, user: str, channel: str = CHANNEL) -> Reader:
        reader = Reader(self.hub)
        session = self.hub.entrance.open(cast(Any, reader), Request("/ws", b"", [], [], "", "ws"))
        token = issue_token(self.settings, user, now=time.time(), ttl=3600, subscribe=("*",))
        self.hub.entrance.sign_in(session, token, None)
        await self.hub.subscriptions.subscribe(session, channel, None, True, None)
        self.readers.append((user, reader))
        return reader

    def leave(self, reader: Reader) -> None:
        self.readers = [each for each in self.readers if each[1] is not reader]
        self.hub.lost(cast(Any, reader), 1006)

    def found(self) -> dict[str, int]:
        channel = self.hub.channels.get(CHANNEL)
        if channel is None or channel.roster is None:
            return {}
        return {user: here["devices"] for user, here in channel.roster.snapshot().items()}

    @property
    def others(self) -> set[str]:
        return set(self.hub.cluster.others)

    async def beaten(self, count: int) -> None:
        """Wait for so many beats."""
        until = self.beats + count
        await eventually(lambda: self.beats >= until, f"{count} beats", (count + 2) * BEAT + LEASE)


@asynccontextmanager
async def hubs(*urls: str) -> AsyncIterator[list[OneNode]]:
    made = [OneNode(url) for url in urls]
    try:
        for each in made:
            await each.hub.start()
        await eventually(lambda: all(len(each.others) == len(made) - 1 for each in made), "all know each other")
        yield made
    finally:
        for each in made:
            await each.hub.stop()


def agree(*nodes: OneNode) -> bool:
    """Whether all nodes and all their clients see who is there."""
    truth = dict(Counter(user for node in nodes for user, _ in node.readers))
    return all(
        node.found() == truth and all(reader.here == truth.keys() for _, reader in node.readers) for node in nodes
    )


def wrong(*nodes: OneNode) -> list[str]:
    return [each for node in nodes for _, reader in node.readers for each in reader.wrong]


def keys(engine: Engine, *kinds: str) -> list[str]:
    """The keys of some kinds."""
    found = [key.decode() for key in engine.call("KEYS", f"{PREFIX}:*")]
    return sorted(key for key in found if key.split(":")[2] in kinds)


async def test_people_come_and_go_on_two_nodes(own_valkey: Engine) -> None:
    async with hubs(own_valkey.unix_url, own_valkey.unix_url) as (one, two):
        alice = await one.join("alice")
        bob = await two.join("bob")
        await two.join("alice")
        await eventually(lambda: agree(one, two), "both see all")
        assert alice.here == {"alice", "bob"}
        assert one.found() == {"alice": 2, "bob": 1}
        assert await one.hub.comings.others.counts([CHANNEL, "other"]) == {CHANNEL: 2, "other": 0}
        one.leave(alice)
        await eventually(lambda: agree(two) and two.found() == {"alice": 1, "bob": 1}, "a device is gone")
        await two.beaten(2)
        assert bob.here == {"alice", "bob"}
        assert wrong(one, two) == []


async def test_a_node_that_stops_leaves_nothing_and_its_people_have_their_grace(own_valkey: Engine) -> None:
    async with hubs(own_valkey.unix_url, own_valkey.unix_url) as (one, two):
        reader = await one.join("bob")
        gone = await two.join("alice")
        await eventually(lambda: agree(one, two), "both see all")
        two.leave(gone)
        began = time.monotonic()
        await two.hub.stop()
        assert reader.here == {"alice", "bob"}
        await eventually(lambda: reader.here == {"bob"}, "alice has left", LEASE - BEAT)
        assert time.monotonic() - began >= GRACE * 0.9
        assert one.others == set()
        assert [key for key in keys(own_valkey, "p", "pn", "pc", "nx", "b") if two.broker.node in key] == []
        assert keys(own_valkey, "pn") == [f"{PREFIX}:{{0}}:pn:{CHANNEL}"]


async def test_after_a_node_that_is_killed_one_cleans_up(own_valkey: Engine) -> None:
    async with hubs(*[own_valkey.unix_url] * 3) as (one, two, three):
        await one.join("bob")
        await two.join("carol")
        await three.join("alice")
        for number in range(250):  # more than one step has
            three.peers.here(f"more:{number}", "alice", Here(1, 1.0))
        await eventually(lambda: agree(one, two, three), "all see all")
        await eventually(lambda: len(keys(own_valkey, "pn")) == 251, "all is said")
        await end_without_a_word(three.broker)
        alive = [one, two]
        three.readers.clear()
        took = await eventually(lambda: agree(*alive), "alice has left on both", LEASE + 2 * BEAT)
        assert took > LEASE - 2 * BEAT
        await eventually(
            lambda: keys(own_valkey, "pn") == [f"{PREFIX}:{{0}}:pn:{CHANNEL}"] and not keys(own_valkey, "nx"),
            "nothing is left of it",
        )
        assert len(keys(own_valkey, "pc")) == 2
        assert wrong(one, two) == []


async def test_who_cleans_up_may_die_too(own_valkey: Engine) -> None:
    """Another node goes on where it was."""
    own_valkey.call("SADD", f"{PREFIX}:{{0}}:pc:deadnode", "x", "y")
    for channel in "xy":
        own_valkey.call("SADD", f"{PREFIX}:{{0}}:pn:{channel}", "deadnode")
        own_valkey.call("HSET", f"{PREFIX}:{{0}}:p:deadnode:{channel}", "alice", "[1,1.0,null]")
    own_valkey.call(
        "ZADD", f"{PREFIX}:{{0}}:nx", int(time.time() * 1000) + 2000, "deadnode"
    )  # the claim of one that died
    async with hubs(own_valkey.unix_url, own_valkey.unix_url) as (one, _):
        assert await one.peers.who("x") == {}
        assert await one.peers.counts(["x"]) == {"x": 0}
        await eventually(lambda: not keys(own_valkey, "pc", "pn", "p", "nx"), "nothing is left of it", 2 + 2 * BEAT)


async def test_a_node_whose_lease_has_ended_says_everything_again(own_valkey: Engine) -> None:
    """As after a stop of half a minute: the others took its people for gone, and cleaned up."""
    async with hubs(own_valkey.unix_url, own_valkey.unix_url) as (one, two):
        alice = await one.join("alice")
        bob = await two.join("bob")
        await eventually(lambda: agree(one, two), "both see all")
        own_valkey.call("ZADD", f"{PREFIX}:{{0}}:n", 1, one.broker.node)
        await eventually(lambda: one.declared == 1, "it notices", 2 * BEAT)
        await eventually(lambda: agree(one, two), "both see all again")
        assert alice.here == bob.here == {"alice", "bob"}
        assert wrong(one, two) == []
        await eventually(lambda: not keys(own_valkey, "nx"), "nobody is to be cleaned up after")


async def test_an_emptied_engine_has_everything_again_and_nobody_is_told_anything(own_valkey: Engine) -> None:
    async with hubs(*[own_valkey.unix_url] * 3) as nodes:
        for number, node in enumerate(nodes):
            await node.join(f"u{number}")
            await node.join("everywhere")
        await eventually(lambda: agree(*nodes), "all see all")
        told = [len(reader.changes) for node in nodes for _, reader in node.readers]
        before = keys(own_valkey, "p", "pn", "pc", "n", "nd")
        own_valkey.call("FLUSHALL")
        await eventually(lambda: all(node.declared for node in nodes), "all notice", 2 * BEAT + 1)
        await eventually(lambda: keys(own_valkey, "p", "pn", "pc", "n", "nd") == before, "the engine has it again")
        await nodes[0].beaten(2)
        assert agree(*nodes)
        assert [len(reader.changes) for node in nodes for _, reader in node.readers] == told
        await nodes[0].join("late")
        await eventually(lambda: agree(*nodes), "it goes on")


@pytest.mark.slow
async def test_an_engine_that_was_away_for_longer_than_a_lease_takes_nobody_for_gone(own_valkey: Engine) -> None:
    async with hubs(own_valkey.unix_url, own_valkey.unix_url) as nodes:
        for number, node in enumerate(nodes):
            await node.join(f"u{number}")
        await eventually(lambda: agree(*nodes), "all see all")
        told = [len(reader.changes) for node in nodes for _, reader in node.readers]
        await asyncio.to_thread(own_valkey.pause)
        ends = time.monotonic() + LEASE + 2 * BEAT
        await eventually(lambda: time.monotonic() > ends, "all leases end", LEASE + 3 * BEAT)
        own_valkey.resume()
        await eventually(lambda: all(node.broker.healthy and node.declared for node in nodes), "it is back", 15)
        await nodes[0].beaten(6)
        assert agree(*nodes)
        assert [len(reader.changes) for node in nodes for _, reader in node.readers] == told


async def test_what_could_not_be_said_is_said_later(own_valkey: Engine) -> None:
    async with (
        fault_proxy(("127.0.0.1", own_valkey.port)) as way,
        hubs(own_valkey.unix_url, way.url) as (one, two),
    ):
        await one.join("alice")
        bob = await two.join("bob")
        await two.join("carol")
        await eventually(lambda: agree(one, two), "both see all")
        await way.refuse()
        way.reset()
        await eventually(lambda: not two.broker.healthy, "it is cut off")
        two.leave(bob)
        await eventually(lambda: "bob" not in two.found(), "bob has left there")
        await way.accept()
        await eventually(lambda: agree(one, two), "both see who is there", LEASE + 4 * BEAT)
        assert wrong(one, two) == []


# -- messages


def place(engine: Engine) -> ValkeyPlace:
    return ValkeyPlace({"valkey_url": engine.unix_url, "valkey_prefix": PREFIX})


async def test_a_node_that_was_cut_off_for_a_moment_hears_everything_once(own_valkey: Engine) -> None:
    async with place(own_valkey).nodes(2, acquainted=True) as (one, two):
        assert isinstance(two.broker, ValkeyBroker)
        for number in range(600):
            if number % 100 == 50:
                two.broker.shards[0].drop()
            await one.peers.tell(b"%d" % number, node=two.peers.node if number % 2 else None)
        await eventually(lambda: len(two.ear.messages) >= 600, "it hears all of them")
        assert sorted(int(message) for _, message in two.ear.messages) == list(range(600))
        for odd in (0, 1):  # each of the two ways keeps its order
            some = [int(message) for _, message in two.ear.messages if int(message) % 2 == odd]
            assert some == sorted(some)
        assert two.ear.gaps == 0


@asynccontextmanager
async def one_is_cut_off(engine: Engine) -> AsyncIterator[tuple[Node, Node, FaultProxy]]:
    """Two nodes that know each other; the second one has lost its way to the engine, until ``accept``."""
    async with place(engine).nodes(1) as (one,), fault_proxy(("127.0.0.1", engine.port)) as way:
        two = Node(place(engine), ValkeyBroker(settings_for(valkey_url=way.url, valkey_prefix=PREFIX), SystemClock()))
        await two.start()
        await eventually(lambda: len(two.ear.alive) == 1, "they know each other")
        await way.refuse()
        way.reset()
        yield one, two, way
        await two.stop()


async def test_who_was_away_for_too_long_hears_that_it_missed_some(
    own_valkey: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bus, "KEPT", 5)
    async with one_is_cut_off(own_valkey) as (one, two, way):
        for number in range(20):
            await one.peers.tell(b"%d" % number)
        await way.accept()
        await eventually(lambda: len(two.ear.messages) == 5, "it hears the newest")
        assert [int(message) for _, message in two.ear.messages] == list(range(15, 20))
        assert two.ear.gaps == 1
        await one.peers.tell(b"20")
        await eventually(lambda: len(two.ear.messages) == 6, "it goes on")


async def test_what_is_not_kept_pushes_nothing_out_that_is(own_valkey: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """A node that was cut off misses questions, and nothing else, however many were asked."""
    monkeypatch.setattr(bus, "KEPT", 5)
    async with one_is_cut_off(own_valkey) as (one, two, way):
        await one.peers.tell(b"kept")
        for number in range(20):
            await one.peers.tell(b"%d" % number, keep=False)
        await way.accept()
        await eventually(lambda: bool(two.ear.messages), "it hears what is kept")
        await one.peers.tell(b"more")
        await eventually(lambda: len(two.ear.messages) >= 2, "it goes on")
        assert [message for _, message in two.ear.messages] == [b"kept", b"more"]
        assert two.ear.gaps == 0


async def test_an_engine_that_is_another_one_means_that_messages_were_missed(own_valkey: Engine) -> None:
    async with place(own_valkey).nodes(2, acquainted=True) as (one, two):
        for number in range(3):
            await one.peers.tell(b"%d" % number)
        await eventually(lambda: len(two.ear.messages) == 3, "it hears them")
        await asyncio.to_thread(own_valkey.restart)
        await eventually(lambda: bool(one.ear.gaps and two.ear.gaps), "both hear that some may be lost")
        await one.peers.tell(b"3")
        await eventually(lambda: len(two.ear.messages) == 4, "it goes on")


# -- what others send


async def test_nonsense_is_passed_over(own_valkey: Engine, caplog: pytest.LogCaptureFixture) -> None:
    async with hubs(own_valkey.unix_url, own_valkey.unix_url) as (one, two):
        await one.join("alice")
        channel, everybody = f"{PREFIX}:{{0}}:c:{CHANNEL}", f"{PREFIX}:{{0}}:b:all"
        with caplog.at_level(logging.WARNING, "hubbub"):
            for payload in (
                b"\0",
                b"\0{}",
                b'\0["n",1,[["alice",[1]]]]',
                b'\0["n","1",[]]',
                b'\0["n",1,[["alice",[-1.5,1,null]]]]',
                b"\0" + b"[" * 100_000,
                b"\0\xff\xfe",
            ):
                own_valkey.call("PUBLISH", channel, payload)
            for payload in (b"", b"\n", b"x y\nz", b"1e9 a\nb", b"\xff \xff\n", b"-5 a\nb"):
                own_valkey.call("PUBLISH", everybody, payload)
            own_valkey.call("SADD", f"{PREFIX}:{{0}}:pn:{CHANNEL}", two.broker.node)
            own_valkey.call("HSET", f"{PREFIX}:{{0}}:p:{two.broker.node}:{CHANNEL}", "mallory", "nonsense", "", "x")
            found = await one.peers.who(CHANNEL)
            assert found == {two.broker.node: {}}
        assert any("cannot be read" in record.getMessage() for record in caplog.records)
        await two.join("bob")
        await eventually(lambda: one.found() == {"alice": 1, "bob": 1}, "it goes on")
        assert one.others == {two.broker.node}


# -- what it costs


async def test_an_idle_node_costs_the_same_with_many_people(own_valkey: Engine) -> None:
    async def commands() -> int:
        """Commands in two beats."""
        before = int(own_valkey.info("stats")["total_commands_processed"])
        await one.beaten(2)
        return int(own_valkey.info("stats")["total_commands_processed"]) - before

    async with hubs(own_valkey.unix_url, own_valkey.unix_url) as (one, two):
        few = await commands()
        for number in range(400):
            await one.join(f"u{number}", f"channel:{number % 50}")
        await eventually(lambda: len(keys(own_valkey, "pn")) == 50, "all is said")
        many = await commands()
        assert abs(many - few) < 20, f"{few} commands with nobody, {many} with 400"
        assert len(two.found()) == 0
