"""What of a node holds, and for how long: its lives, its connections, and what comes late of either. Over a real Valkey."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any, cast

import pytest

from hubbub.app import SystemClock
from hubbub.brokers.valkey.broker import ValkeyBroker
from hubbub.brokers.valkey.keys import Keys
from hubbub.brokers.valkey.scripts import Script
from hubbub.brokers.valkey.shard import Shard
from hubbub.errors import BrokerUnavailable
from hubbub.ports import BEAT, LEASE, Here, Peers
from hubbub.testing.place import Heard, Node
from tests.engine_support import Engine, Shards
from tests.fault_proxy import FaultProxy, fault_proxy
from tests.support import settings_for
from tests.test_valkey_peers import PREFIX, agree, eventually, hubs, keys, wrong
from tests.valkey_place import ValkeyPlace, end_without_a_word

pytestmark = [pytest.mark.anyio, pytest.mark.alone]

ONE = Here(1, 1.0, None)
LIVING = f"{PREFIX}:{{0}}:n"
A_CALL = 250
"""Bytes: a call of one of the longer scripts has more, and all that a connection says of itself in a second has fewer."""


class Speaking(Heard):
    """An ear that says all it has when it is to.

    :ivar has: the users of this node, by channel.
    :ivar beats: how often it said something of itself.
    :ivar gone: nodes that were taken for gone at some time.
    """

    def __init__(self) -> None:
        super().__init__()
        self.has: dict[str, set[str]] = {}
        self.beats = 0
        self.gone: set[str] = set()
        self.on_declare: Callable[[], None] = lambda: None

    def nodes(self, alive: Mapping[str, bytes]) -> None:
        self.gone |= self.alive.keys() - alive.keys()
        super().nodes(alive)

    def report(self) -> bytes:
        self.beats += 1
        return super().report()

    def declare(self) -> None:
        super().declare()
        self.on_declare()
        for channel, users in self.has.items():
            for user in users:
                self.peers.here(channel, user, ONE)

    def come(self, channel: str, user: str) -> None:
        self.has.setdefault(channel, set()).add(user)
        self.peers.here(channel, user, ONE)

    def go(self, channel: str, user: str) -> None:
        self.has[channel].discard(user)
        self.peers.here(channel, user, None)

    def of(self, peers: Peers) -> Speaking:
        self.peers = peers
        peers.listen(self)
        return self


class Talking(Node):
    """A node with such an ear."""

    def __init__(self, url: str) -> None:
        self.engine = ValkeyBroker(settings_for(valkey_url=url, valkey_prefix=PREFIX), SystemClock())
        super().__init__(ValkeyPlace({"valkey_url": url, "valkey_prefix": PREFIX}), self.engine)
        self.ear: Speaking = Speaking().of(self.peers)

    def sees(self, channel: str) -> set[str]:
        """Who is there on other nodes, as this one was told."""
        return {user for users in self.ear.here.get(channel, {}).values() for user in users}

    async def asks(self, channel: str) -> set[str]:
        """Who is there on other nodes, as the engine says."""
        return {user for users in (await self.peers.who(channel)).values() for user in users}

    def beat(self) -> None:
        cast(Any, self.peers)._stir()

    def drop(self) -> None:
        for shard in self.engine.shards:
            shard.drop()


@asynccontextmanager
async def talking(*urls: str, hears: str = "cd") -> AsyncIterator[list[Talking]]:
    """Nodes that know each other; all are subscribed to the channels."""
    made = [Talking(url) for url in urls]
    try:
        for each in made:
            await each.start()
        await eventually(lambda: all(len(each.ear.alive) == len(made) - 1 for each in made), "all know each other")
        for each in made:
            for channel in hears:
                await each.broker.subscribe(channel)
                await each.peers.who(channel)
        yield made
    finally:
        for each in made:
            if each.runs:
                await each.stop()


async def taken(way: FaultProxy, say: Callable[[], None]) -> None:
    """Say something that the network takes and keeps."""
    before = way.taken["up"]
    say()
    await eventually(lambda: way.taken["up"] > before + A_CALL, "it is on its way")


async def beaten(node: Talking, way: FaultProxy) -> None:
    """Wait until the network keeps a beat, too."""
    before, beats = way.taken["up"], node.ear.beats
    await eventually(lambda: node.ear.beats > beats and way.taken["up"] > before + A_CALL, "a beat is on its way")


def refused(engine: Engine) -> bool:
    """Whether the engine has refused what came late."""
    return "errorstat_LATE" in engine.info("errorstats")


async def test_what_a_given_up_connection_still_brings_brings_nobody_back(own_valkey: Engine) -> None:
    """TCP goes on repeating what it was given: here until those of whom it tells have left again."""
    async with (
        fault_proxy(("127.0.0.1", own_valkey.port)) as way,
        talking(own_valkey.unix_url, way.url) as (one, two),
    ):
        two.ear.come("c", "ann")
        await eventually(lambda: one.sees("c") == {"ann"}, "ann is seen")
        way.hold()

        def two_come() -> None:
            two.ear.come("c", "passed")
            two.ear.come("d", "gone")

        await taken(way, two_come)
        two.ear.has["d"].clear()  # meanwhile: nothing is said any more of that channel
        await beaten(two, way)
        two.drop()
        await eventually(lambda: one.sees("c") == {"ann", "passed"}, "it is said over another connection")
        two.ear.go("c", "passed")
        await eventually(lambda: one.sees("c") == {"ann"}, "he has left")
        assert not refused(own_valkey)
        way.let_go()
        await eventually(lambda: refused(own_valkey), "it comes, and is refused")
        for node in (one, two):
            await node.peers.tell(b"last")  # what was published before is heard before
        await eventually(lambda: bool(one.ear.messages and two.ear.messages), "all is heard")
        assert (one.sees("c"), one.sees("d")) == ({"ann"}, set())
        assert (await one.asks("c"), await one.asks("d")) == ({"ann"}, set())


async def test_what_comes_after_a_goodbye_leaves_nothing(own_valkey: Engine) -> None:
    async with (
        fault_proxy(("127.0.0.1", own_valkey.port)) as way,
        talking(own_valkey.unix_url, way.url) as (one, two),
    ):
        way.hold()
        await taken(way, lambda: two.ear.come("c", "ann"))
        await beaten(two, way)
        two.drop()
        await eventually(lambda: one.sees("c") == {"ann"}, "it is said over another connection")
        await two.stop()
        await eventually(lambda: not one.ear.alive, "it is gone")
        assert keys(own_valkey, "p", "pn", "pc", "nx") == []
        way.let_go()
        await eventually(lambda: refused(own_valkey), "it comes, and is refused")
        assert keys(own_valkey, "p", "pn", "pc", "nx") == []
        assert own_valkey.call("ZCARD", LIVING) == 1
        assert one.ear.alive == {}
        left = [key for key in own_valkey.call("KEYS", f"{PREFIX}:*") if two.engine.node.encode() in key]
        assert all(0 < own_valkey.call("TTL", key) <= 3600 for key in left), "what is left ends by itself"


async def test_what_comes_after_a_death_leaves_nothing(own_valkey: Engine) -> None:
    async with (
        fault_proxy(("127.0.0.1", own_valkey.port)) as way,
        talking(own_valkey.unix_url, way.url) as (one, two),
    ):
        two.ear.come("c", "ann")
        await eventually(lambda: one.sees("c") == {"ann"}, "ann is seen")
        node = two.engine.node
        way.hold()
        await taken(way, lambda: two.ear.come("c", "late"))
        await end_without_a_word(two.engine)
        two.runs = False
        await eventually(lambda: not one.ear.alive, "it is gone", LEASE + 2 * BEAT)
        await eventually(lambda: keys(own_valkey, "p", "pn", "pc", "nx") == [], "nothing is left of it")
        way.let_go()
        await eventually(
            lambda: node.encode() not in own_valkey.call("CLIENT", "LIST"), "the engine has had what it sent, too"
        )
        assert keys(own_valkey, "p", "pn", "pc") == []
        assert one.sees("c") == await one.asks("c") == set()


async def test_a_life_that_begins_with_a_beat_whose_answer_is_lost(own_valkey: Engine) -> None:
    """The others have taken its people for gone; the engine still has them, so nothing of them is new to it."""
    async with (
        fault_proxy(("127.0.0.1", own_valkey.port)) as way,
        hubs(own_valkey.unix_url, way.url) as (one, two),
    ):
        await one.join("alice")
        await two.join("bob")
        await eventually(lambda: agree(one, two), "both see all")
        way.stall()
        own_valkey.call("ZREM", LIVING, two.broker.node)
        await eventually(lambda: not one.others, "it is taken for gone", 2 * BEAT)
        assert one.found() == {"alice": 1}
        way.heal()
        way.stall("down")
        await eventually(lambda: own_valkey.call("ZCARD", LIVING) == 2, "its beat comes", 2 * BEAT)
        two.broker.shards[0].drop()
        way.heal()
        await eventually(lambda: agree(one, two), "both see all again")
        assert wrong(one, two) == []


@pytest.mark.slow
async def test_a_network_that_is_whole_in_the_moment_in_which_a_node_is_taken_for_gone(own_valkey: Engine) -> None:
    async with (
        fault_proxy(("127.0.0.1", own_valkey.port)) as way,
        hubs(own_valkey.unix_url, way.url, way.url) as (one, two, three),
    ):
        for number, node in enumerate((one, two, three)):
            await node.join(f"u{number}")
        await eventually(lambda: agree(one, two, three), "all see all")
        way.stall()
        await eventually(lambda: own_valkey.call("ZCARD", LIVING) == 1, "they are taken for gone", LEASE + 2 * BEAT)
        way.heal()
        await eventually(lambda: len(one.others) == 2, "they are back")
        await eventually(lambda: agree(one, two, three), "all see all again")
        assert wrong(one, two, three) == []


async def test_a_new_life_is_said_whole_though_the_connection_breaks_meanwhile(own_valkey: Engine) -> None:
    async with (
        fault_proxy(("127.0.0.1", own_valkey.port)) as way,
        talking(own_valkey.unix_url, way.url) as (one, two),
    ):
        for number in range(20):
            two.ear.come("c", f"u{number}")
        everybody = two.ear.has["c"]
        await eventually(lambda: one.sees("c") == everybody, "all are seen")
        breaks = iter((two.drop, two.drop, way.reset))

        def broken() -> None:
            next(breaks, lambda: None)()

        two.ear.on_declare = broken
        way.stall()
        own_valkey.call("ZREM", LIVING, two.engine.node)
        await eventually(lambda: not one.ear.alive, "it is taken for gone", 2 * BEAT)
        assert one.sees("c") == set()
        way.heal()
        await eventually(lambda: one.sees("c") == everybody, "all are seen again")
        assert two.ear.declared >= 4


async def test_who_left_while_its_node_was_cut_off_is_taken_back(own_valkey: Engine) -> None:
    """Only what was not said again, and only once all could be."""
    async with (
        fault_proxy(("127.0.0.1", own_valkey.port)) as way,
        talking(own_valkey.unix_url, way.url) as (one, two),
    ):
        for user in ("stays", "leaves", "returns"):
            two.ear.come("c", user)
        await eventually(lambda: len(one.sees("c")) == 3, "all are seen")
        await way.refuse()
        way.reset()
        await eventually(lambda: not two.broker.healthy, "it is cut off")
        two.ear.has["c"] -= {"leaves", "returns"}
        await way.accept()
        await eventually(lambda: two.ear.declared > 0, "it is back")
        two.ear.come("c", "returns")
        await eventually(lambda: one.sees("c") == {"stays", "returns"}, "one has left", LEASE + 3 * BEAT)
        assert await one.asks("c") == {"stays", "returns"}
        assert not any(said[2] in ("stays", "returns") and said[3] is None for said in one.ear.said)


async def test_people_are_told_of_while_the_engine_has_no_room(own_valkey: Engine) -> None:
    async with hubs(own_valkey.unix_url, own_valkey.unix_url) as (one, two):
        await one.join("alice")
        bob = await two.join("bob")
        await eventually(lambda: agree(one, two), "both see all")
        own_valkey.call("CONFIG", "SET", "maxmemory", "1")
        two.leave(bob)
        carol = await two.join("carol")
        await eventually(lambda: agree(one, two), "both see who is there")
        two.leave(carol)
        await eventually(lambda: agree(one), "and who is not")
        await one.beaten(2)
        assert one.declared == two.declared == 0
        assert one.others == {two.broker.node}
        assert wrong(one, two) == []


# -- a partition that is not where the leases are


@asynccontextmanager
async def partition(engine: Engine) -> AsyncIterator[tuple[Callable[..., Any], Callable[..., str]]]:
    """A way to run a script there, and to name a key."""
    stats = ValkeyBroker(settings_for(valkey_url=engine.unix_url), SystemClock()).stats
    target = ValkeyBroker(settings_for(valkey_url=engine.unix_url), SystemClock()).target
    there = Keys(PREFIX, cluster=True).partitions[7]

    async def locate(shard: Shard) -> Any:
        return target.seeds[0]

    shard = Shard("test", locate, [there], timeout=5.0, stats=stats)
    shard.start()
    assert await shard.came_up(5.0)

    async def run(name: str, kinds: list[str], *args: Any) -> Any:
        return await shard.run(
            Script(f"{name}.lua", "lease.lua"), [there.key(*kind.split(" ")) for kind in kinds], args
        )

    try:
        yield run, there.key
    finally:
        await shard.stop()


async def test_lives_and_connections_of_a_partition(own_valkey: Engine) -> None:
    async with partition(own_valkey) as (run, key):
        pairs = ["p n:c", "pn c"]

        async def here(life: int, connection: int, user: str, known: str = "0") -> int:
            lease, said = ["n", life, connection, known], [1, "PUBLISH", "0", key("c", "c"), "c", 1, user, "[1,1,null]"]
            return int(await run("here", ["l n", "pc n", *pairs], *lease, *said))

        def users() -> set[bytes]:
            return set(own_valkey.call("HKEYS", key("p", "n:c"))) - {b""}

        async def clean(life: str) -> int:
            return int(await run("clean", ["pc n", "l n", *pairs], "n", life, "c", ""))

        assert await here(2, 5, "ann") == 0, "nothing is known of it: it has to be sure"
        assert users() == set()
        assert await here(2, 5, "ann", "1") == 1
        assert await here(1, 6, "x") == -1, "of an earlier life"
        assert await here(2, 4, "x", "1") == -1, "of an earlier connection"
        assert await here(2, 6, "bob") == 1
        assert await run("take", ["l n"], 2, 5) == 0
        assert await run("take", ["l n"], 1, 7) == 0
        assert await run("take", ["l n"], 2, 8) == 1
        assert await here(2, 7, "x") == -1, "another connection is about to say everything"
        await run("close", ["l n"], "1")
        assert await clean("1") == 0, "it has come back since"
        assert await here(2, 8, "carol") == 1
        assert users() == {b"ann", b"bob", b"carol"}
        await run("close", ["l n"], "2")
        await run("close", ["l n"], "1")
        assert await here(2, 8, "x") == await here(2, 9, "x", "1") == -1, "that life is over"
        assert await run("take", ["l n"], 2, 9) == 0
        assert await clean("2") == 1
        assert own_valkey.call("EXISTS", key("p", "n:c"), key("pn", "c"), key("pc", "n")) == 0
        assert await run("take", ["l n"], 3, 9) == 1
        assert await here(3, 9, "ann") == 1
        await run("close", ["l n"], "")
        assert await here(3, 9, "x") == -1, "the newest life, where it is not known which is over"
        assert await clean("") == 1
        assert 3500 < own_valkey.call("TTL", key("l", "n")) <= 3600


async def test_what_is_left_of_cleaning_up_comes_late(own_valkey: Engine) -> None:
    """The node was back, and is gone again: that is to be cleaned up, too."""
    async with partition(own_valkey) as (run, key):
        names = ["nx", "l n", "b n", "b"]
        own_valkey.call("ZADD", key("nx"), 1, "n")
        assert await run("hold", names[:2], "n", 1000) == b""
        own_valkey.call("SET", key("l", "n"), "2 1 0")
        assert await run("hold", names[:2], "n", 1000) == b"2"
        assert await run("cleaned", names, "n", "1") == 0
        assert own_valkey.call("ZCARD", key("nx")) == 1
        assert await run("cleaned", names, "n", "2") == 1
        assert own_valkey.call("ZCARD", key("nx")) == 0
        assert await run("hold", names[:2], "n", 1000) == await run("cleaned", names, "n", "2") == 0


async def test_after_a_goodbye_no_beat_counts(own_valkey: Engine) -> None:
    """Of whatever connection; and one of an older connection never does."""
    async with partition(own_valkey) as (run, key):
        kinds = ["n", "nd", "nx", "b", "l n"]

        async def beat(connection: int) -> int:
            life, *_ = await run("beat", kinds, "n", "", 6000, 1500, 5000, "e", "PUBLISH", "all", 0, connection)
            return int(life)

        assert [await beat(connection) for connection in (2, 3, 3)] == [1, 1, 1]
        with pytest.raises(BrokerUnavailable, match="LATE"):
            await beat(2)
        own_valkey.call("ZREM", key("n"), "n")
        assert [await beat(connection) for connection in (3, 4)] == [2, 2]
        await run("bye", ["n", "nd", "nx", "l n"], "n", 1000, "PUBLISH", "all")
        for connection in (4, 5):
            with pytest.raises(BrokerUnavailable, match="LATE"):
                await beat(connection)
        assert own_valkey.call("ZCARD", key("n")) == 0


# -- a Cluster


@pytest.mark.slow
async def test_one_shard_that_is_away_stops_no_beats() -> None:
    """Nor what is said of who is on the others, nor messages between nodes, also when the connection to them is a new one.
    That a lease had ended meanwhile is not forgotten."""
    with Shards(cluster_require_full_coverage="no") as cluster:
        async with talking(*[cluster.url] * 3, hears="") as (one, two, three):
            shard, home = two.engine.shard_of, two.engine.keys.home
            names = {shard(two.engine.keys.partition_of(f"c{number}")): f"c{number}" for number in range(100)}
            victim = next(engine for engine in cluster.primaries if not holds(cluster, engine, home.slot))
            away = [each for each in names if holds(cluster, victim, each.partitions[0].slot)]
            assert len(away) == 1
            healthy, hurt = names[shard(home)], names[away[0]]
            for name in (healthy, hurt):
                await one.broker.subscribe(name)
                await one.peers.who(name)
                two.ear.come(name, "stays")
                two.ear.come(name, "leaves")
                await eventually(lambda name=name: one.sees(name) == {"stays", "leaves"}, "both are seen")  # type: ignore[misc]
            await asyncio.to_thread(victim.pause)
            await eventually(lambda: not away[0].up, "one shard is away")
            leader = next(engine for engine in cluster.primaries if holds(cluster, engine, home.slot))

            def gone() -> bool:
                leader.call("ZADD", home.key("n"), 1, two.engine.node)  # its lease has ended
                one.beat()  # before that node does, which may be the first each time
                return two.engine.node in one.ear.gone

            await eventually(gone, "it is taken for gone")
            await eventually(lambda: one.sees(healthy) == {"stays", "leaves"}, "it says all again")
            shard(home).drop()
            before = two.ear.declared
            await eventually(lambda: two.ear.declared > before, "the connection to the healthy one is made again")
            two.ear.go(healthy, "leaves")
            two.ear.go(hurt, "leaves")
            await end_without_a_word(three.engine)
            three.runs = False
            await eventually(lambda: one.sees(healthy) == {"stays"}, "what is said there is heard", LEASE + 3 * BEAT)
            await eventually(lambda: len(two.ear.alive) == 1, "it notices who dies", LEASE + 3 * BEAT)
            await one.peers.tell(b"message")
            await eventually(lambda: bool(two.ear.messages), "it hears")
            beats = two.ear.beats
            await eventually(lambda: two.ear.beats > beats + LEASE / BEAT, "a lease passes", LEASE + 2 * BEAT)
            assert one.sees(hurt) == set()
            await asyncio.to_thread(victim.resume)
            await eventually(lambda: one.sees(hurt) == {"stays"}, "all is said there, too", 2 * LEASE)
            left = hurt, two.engine.node, "leaves", None
            await eventually(lambda: left in one.ear.said, "and who left", LEASE + 3 * BEAT)
            assert await one.asks(hurt) == {"stays"}


def holds(cluster: Shards, engine: Engine, slot: int) -> bool:
    return any(low <= slot <= high for low, high in cluster.slots_of(engine))
