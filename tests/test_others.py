"""What nodes know of each other's people, against the truth: through comings, goings, cuts, kills and an empty engine."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any, cast

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hubbub.auth import issue_token
from hubbub.errors import BrokerUnavailable
from hubbub.hub import Hub
from hubbub.messages import JSON
from hubbub.ports import BEAT, LEASE, Here, Request
from hubbub.presence import Elsewhere, Roster
from hubbub.session import Session
from hubbub.settings import ChannelOptions
from hubbub.testing import HandClock, MemoryEngine
from tests.support import settings_for

pytestmark = pytest.mark.anyio

CHANNEL = "c"
GRACE = 3.0
OPTIONS = ChannelOptions(history_size=5)
SETTINGS = settings_for(channels={CHANNEL: OPTIONS}, presence_grace=GRACE)


class Lane:
    codec = JSON

    def deliver(self, links: Any, batch: Any, merge: bool) -> None: ...


LANE = Lane()


class Reader:
    """A link, and whom its client believes to be here, by what it was told."""

    def __init__(self, hub: Hub) -> None:
        self.lane = LANE
        self.hub = hub
        self.session: Session | None = None
        self.here: set[str] | None = None
        self.changes: list[dict[str, Any]] = []
        self.wrong: list[str] = []
        self._fresh = False
        self._replies: list[bytes] = []

    def send(self, payload: bytes) -> None:
        self._replies.append(payload)
        self.hub.touched(cast(Any, self))

    def flush(self) -> None:
        replies, self._replies = self._replies, []
        for payload in replies:
            message = msgspec.json.decode(payload)
            if message["type"] == "subscribed":
                self.here, self._fresh = set(message["presence"]), True
            elif message["type"] == "presence_changed":
                self._changed(message)

    def _changed(self, message: dict[str, Any]) -> None:
        assert self.here is not None
        self.changes.append(message)
        joined, left = set(message["joined"]), set(message["left"])
        # what changed in the turn in which it subscribed, it was told already
        if joined & self.here and not self._fresh:
            self.wrong.append(f"told to come again: {joined & self.here}")
        if left - self.here:
            self.wrong.append(f"told to leave, but were not here: {left - self.here}")
        self._fresh = False
        self.here = (self.here | joined) - left
        if message["count"] != len(self.here):
            self.wrong.append(f"{message['count']} told, but {sorted(self.here)} are here")

    def close(self, code: int, reason: str = "") -> None: ...
    def abort(self) -> None: ...
    def hold(self) -> None: ...
    def release(self) -> None: ...


class Node:
    def __init__(self, world: World) -> None:
        self.world = world
        self.broker = world.engine.broker(SETTINGS)
        self.hub = Hub(SETTINGS, self.broker, world.clock)
        self.readers: list[tuple[str, Reader]] = []
        self.dead = False
        world.clock.watch(self.hub.sweep)

    async def join(self, user: str) -> None:
        reader = Reader(self.hub)
        session = self.hub.entrance.open(cast(Any, reader), Request("/ws", b"", [], [], "", "ws"))
        token = issue_token(SETTINGS, user, now=self.world.clock.time(), ttl=1e6, subscribe=("*",))
        self.hub.entrance.sign_in(session, token, None)
        try:
            await self.hub.subscriptions.subscribe(session, CHANNEL, None, True, None)
        except BrokerUnavailable:
            self.hub.lost(cast(Any, reader), 1006)
        else:
            self.readers.append((user, reader))

    def leave(self, which: int) -> None:
        if self.readers:
            _, reader = self.readers.pop(which % len(self.readers))
            self.hub.lost(cast(Any, reader), 1006)


class World:
    """Three nodes, and who is really there."""

    def __init__(self) -> None:
        self.clock = HandClock()
        self.engine = MemoryEngine(self.clock)
        self.nodes = [Node(self) for _ in range(3)]

    async def step(self, kind: str, which: int, user: int) -> None:
        node = self.nodes[which]
        if kind == "pass":
            await self.pass_time(user + 0.5)
        elif kind == "restart":
            self.engine.restart(empty=bool(user % 2))
        elif kind == "turns":
            await self.turns(user)
        elif node.dead:
            return
        elif kind == "join":
            await node.join(f"u{user}")
        elif kind == "leave":
            node.leave(user)
        elif kind == "move" and node.readers:  # a reload that lands elsewhere
            moved = node.readers[user % len(node.readers)][0]
            node.leave(user % len(node.readers))
            other = self.nodes[(which + 1) % 3]
            if not other.dead:
                await other.join(moved)
        elif kind == "cut":
            self.engine.cut(node.broker)
        elif kind == "heal":
            self.engine.heal(node.broker)
        elif kind == "kill":
            self.engine.kill(node.broker)
            node.dead = True
        elif kind == "stop":
            node.dead = True
            while node.readers:
                node.leave(0)
            await self.turns(3)
            await node.hub.stop()

    async def pass_time(self, seconds: float) -> None:
        while seconds > 0:
            self.clock.advance(min(seconds, 0.5))
            seconds -= 0.5
            await self.turns(8)

    async def turns(self, count: int) -> None:
        for _ in range(count):
            await asyncio.sleep(0)

    @property
    def truth(self) -> dict[str, int]:
        return dict(Counter(user for node in self.nodes if not node.dead for user, _ in node.readers))

    async def judge(self) -> None:
        for node in self.nodes:
            if not node.dead:
                self.engine.heal(node.broker)
        await self.pass_time(3 * LEASE + GRACE + 2 * BEAT)
        truth = self.truth
        for node in self.nodes:
            channel = node.hub.channels.get(CHANNEL)
            if node.dead or channel is None:
                assert node.dead or not node.readers
                continue
            assert channel.roster is not None
            found = {user: here["devices"] for user, here in channel.roster.snapshot().items()}
            assert found == truth
            assert len(channel.roster) == len(truth)
            for _, reader in node.readers:
                assert reader.wrong == []
                assert reader.here == truth.keys()

    async def end(self) -> None:
        for node in self.nodes:
            await node.hub.stop()


STEP = st.tuples(
    st.sampled_from(
        ["join"] * 5 + ["leave"] * 3 + ["move"] * 2 + ["pass"] * 3 + ["turns", "turns", "cut", "cut", "heal", "heal"]
        + ["restart", "kill", "stop"]
    ),
    st.integers(0, 2),
    st.integers(0, 3),
)  # fmt: skip


@given(steps=st.lists(STEP, max_size=40))
@settings(max_examples=120, deadline=None)
def test_all_agree_with_the_truth_once_all_is_well_again(steps: list[tuple[str, int, int]]) -> None:
    async def run() -> None:
        world = World()
        for node in world.nodes:
            await node.hub.start()
        for step in steps:
            await world.step(*step)
        await world.judge()
        await world.end()

    asyncio.run(run())


# -- the roster alone


USERS = st.sampled_from(["alice", "bob", "carol"])
OTHERS = st.sampled_from(["n1", "n2"])


@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("join"), USERS, st.just(""), st.just(0)),
            st.tuples(st.just("leave"), USERS, st.just(""), st.sampled_from([0, 3])),
            st.tuples(st.just("hear"), USERS, OTHERS, st.integers(0, 2)),
            st.tuples(st.just("unhear"), USERS, OTHERS, st.just(0)),
            st.tuples(st.just("lose"), USERS, OTHERS, st.just(0)),
            st.tuples(st.just("expire"), USERS, st.just(""), st.integers(0, 4)),
            st.tuples(st.just("settle"), st.lists(USERS, unique=True), OTHERS, st.integers(0, 2)),
        ),
        max_size=40,
    )
)
@settings(max_examples=300, deadline=None)
def test_the_roster_lists_whom_any_node_lists(steps: list[tuple[str, Any, str, int]]) -> None:
    roster, now = Roster(), 100.0
    own: dict[str, int] = {}
    until: dict[str, float] = {}
    others: dict[str, dict[str, int]] = {}
    for kind, user, node, number in steps:
        before = set(own) | {each for users in others.values() for each in users}
        came: set[str] = set()
        left: set[str] = set()
        if kind == "join":
            own[user] = own.get(user, 0) + 1
            until.pop(user, None)
            came = {user} if roster.join(user, now) else came
        elif kind == "leave":
            if own.get(user):
                own[user] -= 1
                if not own[user]:
                    if number:
                        until[user] = now + number
                    else:
                        del own[user]
            left = {user} if roster.leave(user, now, number) else left
        elif kind == "expire":
            now += number
            gone = [each for each, moment in until.items() if moment <= now]
            for each in gone:
                del own[each], until[each]
            assert sorted(roster.expire(now)) == sorted(gone)
            left = {each for each in gone if each not in roster}
        elif kind == "hear":
            others.setdefault(node, {})[user] = number
            came = {user} if roster.hear(node, user, elsewhere(number)) == 1 else came
        elif kind == "unhear":
            others.get(node, {}).pop(user, None)
            left = {user} if roster.hear(node, user, None) == -1 else left
        elif kind == "lose":
            others.pop(node, None)
            left = set(roster.lose(node, now))
        else:
            others = {node: dict.fromkeys(user, number)}
            new, old = roster.settle({node: {each: elsewhere(number) for each in user}})
            came, left = set(new), set(old)
        after = set(own) | {each for users in others.values() for each in users}
        assert (came, left) == (after - before, before - after)
        assert len(roster) == len(after)
        assert roster.own == len(own)
        devices = {
            each: own.get(each, 0) + sum(users.get(each, 0) for users in others.values()) for each in sorted(after)
        }
        assert {each: here["devices"] for each, here in sorted(roster.snapshot().items())} == devices
        for each in ("alice", "bob", "carol"):
            found = roster.user(each)
            assert (each in roster) is (each in after) is (found is not None)
            assert found is None or found["devices"] == devices[each]


def elsewhere(devices: int) -> Elsewhere:
    return Elsewhere(1.0, None, devices)


async def test_those_in_their_grace_outlive_their_node() -> None:
    roster = Roster()
    roster.hear("n1", "alice", Elsewhere(1.0, None, 0, leaves=10.0))
    roster.hear("n1", "bob", Elsewhere(1.0, None, 1))
    assert roster.lose("n1", 9.0) == ["bob"]
    assert roster.fades("n1")
    roster.hear("n1", "carol", Elsewhere(1.0, None, 1))  # it came back
    assert roster.lose("n1", 9.9, fading=True) == []
    assert roster.lose("n1", 10.0, fading=True) == ["alice"]
    assert not roster.fades("n1")
    assert list(roster.snapshot()) == ["carol"]


async def test_an_engine_that_may_not_know_everybody_yet_takes_nobody_away() -> None:
    """It came back empty, and this node is the first to speak: the others live, and have not said so."""
    world = World()
    for node in world.nodes:
        await node.hub.start()
    one, two, _ = world.nodes
    await one.join("alice")
    await two.join("bob")
    await world.turns(5)
    others, peers = two.hub.comings.others, two.broker.peers
    roster = two.hub.channels[CHANNEL].roster
    assert roster is not None
    peers.who = nobody  # type: ignore[method-assign]  # what such an engine says
    two.hub.cluster.declare()
    two.hub.cluster.nodes({})
    await world.turns(10)
    assert sorted(roster.snapshot()) == ["alice", "bob"]
    others.sweep(world.clock.monotonic() + LEASE - 0.1)
    await world.turns(10)
    assert sorted(roster.snapshot()) == ["alice", "bob"]
    others.sweep(world.clock.monotonic() + LEASE)
    await world.turns(10)
    assert sorted(roster.snapshot()) == ["bob"], "now it would"
    assert two.readers[0][1].here == {"bob"}
    await world.end()


async def nobody(channel: str) -> dict[str, dict[str, Here]]:
    return {}


async def test_nodes_that_are_gone_are_noticed_once_the_engine_knows_everybody() -> None:
    world = World()
    for node in world.nodes:
        await node.hub.start()
    one, two, _ = world.nodes
    await one.join("alice")
    await two.join("bob")
    await world.turns(5)
    two.hub.cluster.declare()
    await world.turns(10)
    two.hub.cluster.nodes({})
    await world.turns(3)
    assert two.readers[0][1].here == {"alice", "bob"}
    two.hub.comings.others.sweep(world.clock.monotonic() + LEASE)
    two.hub.cluster.nodes({})
    await world.turns(3)
    assert two.readers[0][1].here == {"bob"}
    await world.end()


async def test_what_is_heard_while_asking_follows_the_answer() -> None:
    world = World()
    for node in world.nodes:
        await node.hub.start()
    one, two, _ = world.nodes
    await one.join("alice")
    await world.turns(5)
    asking = asyncio.ensure_future(two.join("bob"))
    while CHANNEL not in two.hub.channels or not two.hub.comings.others._asking:
        await asyncio.sleep(0)
    two.hub.cluster.present(CHANNEL, one.broker.node, "late", Here(1, 1.0))
    two.hub.cluster.present(CHANNEL, one.broker.node, "alice", None)
    await asking
    reader = two.readers[0][1]
    await world.turns(5)
    assert reader.here == {"bob", "late"}
    assert reader.wrong == []
    await world.end()
