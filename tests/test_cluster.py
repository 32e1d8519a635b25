"""What nodes tell and ask each other: every message once to who it is for, answers while they are waited for, and
nothing that one node sends hurts another."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import Any, cast

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import Struct

from hubbub import cluster as clusters
from hubbub.app import SystemClock
from hubbub.brokers.memory import MemoryBroker
from hubbub.cluster import Answers, Cluster
from hubbub.control import Letter, Report, kind_of, letter_of, open_letter
from hubbub.errors import BrokerUnavailable
from hubbub.hub import Hub
from hubbub.ports import Ear, Here, Peers
from tests.support import DEADLINE, settings_for, until

pytestmark = pytest.mark.anyio


class Ping(Struct, tag="ping"):
    text: str
    number: int = 0


class Newer(Struct, tag="newer"):
    text: str = ""


def name_of(cluster: Cluster, message: Ping) -> str:
    return cluster.node


class Post:
    """Carries what nodes tell each other, within this process; one node can be cut off, or be slow."""

    def __init__(self) -> None:
        self.nodes: dict[str, Mailbox] = {}
        self.away: set[str] = set()
        self.deaf: set[str] = set()
        self.sent: list[tuple[str, str | None, bytes]] = []

    def beat(self) -> None:
        """Everybody hears who lives."""
        alive = {name: box.ear.report() for name, box in self.nodes.items()}
        for name, box in self.nodes.items():
            box.ear.nodes({other: said for other, said in alive.items() if other != name})


class Mailbox:
    """The Peers of one node."""

    ear: Ear

    def __init__(self, post: Post, node: str) -> None:
        self.node = node
        self._post = post

    def listen(self, ear: Ear) -> None:
        self.ear = ear
        self._post.nodes[self.node] = self

    async def tell(self, message: bytes, *, node: str | None = None, keep: bool = True) -> None:
        if self.node in self._post.away:
            raise BrokerUnavailable("cut off")
        self._post.sent.append((self.node, node, message))
        for name, box in self._post.nodes.items():
            if name != self.node and node in (None, name) and name not in self._post.deaf:
                asyncio.get_running_loop().call_soon(box.ear.heard, self.node, message)

    def here(self, channel: str, user_id: str, here: Here | None) -> None: ...

    async def who(self, channel: str) -> dict[str, dict[str, Here]]:
        return {}

    async def counts(self, channels: Sequence[str]) -> dict[str, int]:
        return {}

    async def keep(self, kind: str, key: str, value: bytes, seconds: float, *, rank: float = 0.0) -> None: ...

    async def kept(self, kind: str) -> dict[str, bytes]:
        return {}

    def leave(self) -> None: ...


class PostedBroker(MemoryBroker):
    """A memory broker that has peers."""

    def __init__(self, settings: Any, clock: Any, peers: Peers) -> None:
        super().__init__(settings, clock)
        self._peers = peers

    @property
    def peers(self) -> Peers:
        return self._peers


@asynccontextmanager
async def nodes(*names: str) -> AsyncIterator[tuple[Post, list[Cluster]]]:
    """Hubs without sockets that know of each other."""
    post, settings, clock = Post(), settings_for(), SystemClock()
    hubs = [Hub(settings, PostedBroker(settings, clock, Mailbox(post, name)), clock) for name in names]
    for hub in hubs:
        await hub.start()
    post.beat()
    try:
        yield post, [hub.cluster for hub in hubs]
    finally:
        for hub in hubs:
            await hub.stop()


async def test_all_others_are_told_in_order_and_not_oneself() -> None:
    async with nodes("a", "b", "c") as (_, clusters):
        seen: dict[str, list[int]] = {each.node: [] for each in clusters}

        def note(node: str, message: Ping) -> None:
            seen[node].append(message.number)

        for each in clusters:
            each.on(Ping, partial(note, each.node))
        for number in range(20):
            assert await clusters[0].tell(Ping("hello", number))
        await until(lambda: len(seen["c"]) == 20)
        assert seen == {"a": [], "b": list(range(20)), "c": list(range(20))}


async def test_one_node_is_told_alone() -> None:
    async with nodes("a", "b", "c") as (_, clusters):
        seen: list[str] = []

        def note(node: str, message: Ping) -> None:
            seen.append(node)

        for each in clusters:
            each.on(Ping, partial(note, each.node))
        await clusters[0].tell(Ping("hello"), node="c")
        await clusters[0].tell(Ping("hello"), node="c")
        await until(lambda: len(seen) == 2)
        assert seen == ["c", "c"]


async def test_answers_of_all_are_collected_at_once() -> None:
    async with nodes("a", "b", "c") as (_, clusters):
        clusters[1].on(Ping, lambda message: [message.text, message.number])

        async def later(message: Ping) -> str:
            await asyncio.sleep(0)
            return message.text.upper()

        clusters[2].on(Ping, later)
        began = asyncio.get_running_loop().time()
        answers = await clusters[0].ask(Ping("hello", 7), timeout=DEADLINE)
        assert asyncio.get_running_loop().time() - began < DEADLINE / 2, "it waited on, although all had answered"
        assert answers.complete
        assert sorted(answers, key=str) == ["HELLO", ["hello", 7]]


async def test_who_has_nothing_to_say_is_not_waited_for() -> None:
    async with nodes("a", "b", "c") as (_, clusters):
        clusters[1].on(Ping, lambda message: None)
        clusters[2].on(Ping, lambda message: 0)
        answers = await asyncio.wait_for(clusters[0].ask(Ping("hello"), timeout=60), DEADLINE)
        assert (list(answers), answers.complete) == ([0], True)


async def test_a_handler_that_fails_is_logged_answered_and_hurts_nothing_else(caplog: pytest.LogCaptureFixture) -> None:
    async with nodes("a", "b") as (_, clusters):
        heard: list[int] = []

        def handle(message: Ping) -> int:
            if message.number == 1:
                raise ZeroDivisionError("of the test")
            heard.append(message.number)
            return message.number

        async def failing(message: Newer) -> None:
            raise ZeroDivisionError("of the other one")

        clusters[1].on(Ping, handle)
        clusters[1].on(Newer, failing)
        with caplog.at_level(logging.ERROR, "hubbub"):
            answers = await asyncio.wait_for(clusters[0].ask(Ping("x", 1), timeout=60), DEADLINE)
            assert (list(answers), answers.complete) == ([], False)
            answers = await asyncio.wait_for(clusters[0].ask(Newer(), timeout=60), DEADLINE)
            assert (list(answers), answers.complete) == ([], False)
        assert await clusters[0].ask(Ping("x", 2)) == [2]
        assert heard == [2]
        assert clusters[1].counts["failed"] == 2
        assert [record.message for record in caplog.records] == [
            "acting on 'ping' of another node failed", "acting on 'newer' of another node failed",
        ]  # fmt: skip


async def test_a_kind_of_a_newer_node_is_passed_over_and_said_once(caplog: pytest.LogCaptureFixture) -> None:
    async with nodes("a", "b") as (_, clusters):
        clusters[0].on(Newer, lambda message: None)
        with caplog.at_level(logging.WARNING, "hubbub"):
            for _ in range(3):
                answers = await asyncio.wait_for(clusters[0].ask(Newer(), timeout=60), DEADLINE)
                assert (list(answers), answers.complete) == ([], False)
        assert clusters[1].counts["unknown"] == 3
        assert len(caplog.records) == 1


async def test_a_newer_envelope_and_newer_fields_are_understood_as_far_as_they_can_be() -> None:
    async with nodes("a", "b") as (_, clusters):
        heard: list[Ping] = []
        clusters[1].on(Ping, heard.append)
        body = msgspec.msgpack.encode({"type": "ping", "text": "hello", "of a newer release": [1]})
        pack = msgspec.msgpack.encode
        clusters[1].heard("a", pack([1, "ping", 0, msgspec.Raw(body), "more"]))
        clusters[1].heard("a", pack([2, "ping", 0, msgspec.Raw(body)]))
        assert heard == [Ping("hello")]
        assert clusters[1].counts["unknown"] == 1


BAD = [
    b"",
    b"\xc1",
    b"{}",
    b"\x94\x01",
    msgspec.msgpack.encode([1]),
    msgspec.msgpack.encode(["1", "ping", 0, None]),
    msgspec.msgpack.encode([1, "ping", 5, {"type": "ping"}]),
    msgspec.msgpack.encode([1, "ping", 5, {"type": "pong", "text": "x"}]),
    msgspec.msgpack.encode([1, "ping", 5, {"type": "ping", "text": 1}]),
    b"\x91" * 100_000,
    msgspec.msgpack.encode([1, "ping", 0, msgspec.Raw(b"\x91" * 100_000 + b"\xc0")]),
]


@pytest.mark.parametrize("message", BAD, ids=range(len(BAD)))
async def test_what_cannot_be_read_is_counted_and_never_raised(message: bytes) -> None:
    async with nodes("a", "b") as (_, clusters):
        heard: list[Ping] = []
        clusters[1].on(Ping, heard.append)
        clusters[1].heard("a", message)
        assert (heard, clusters[1].counts["bad"]) == ([], 1)
        await clusters[0].tell(Ping("still there"))
        await until(lambda: heard == [Ping("still there")])


@given(st.binary(max_size=200), st.sampled_from(["a", "stranger", ""]))
def test_no_bytes_whatsoever_raise(message: bytes, sender: str) -> None:
    hub = Hub(settings_for(), MemoryBroker(settings_for(), SystemClock()), SystemClock())
    hub.loop = cast(asyncio.AbstractEventLoop, object())  # as if it ran: nothing here may need more of it
    hub.cluster.on(Ping, lambda message: None)
    hub.cluster.heard(sender, message)
    assert hub.cluster.counts["heard"] == 1


@given(st.text(max_size=50), st.integers(-(2**63), 2**64 - 1), st.integers(0, 2**63))
def test_a_letter_is_read_as_it_was_written(text: str, number: int, ask: int) -> None:
    letter = open_letter(letter_of(Ping(text, number), ask))
    assert (letter.version, letter.kind, letter.ask) == (1, kind_of(Ping), ask)
    assert msgspec.msgpack.decode(letter.body, type=Ping) == Ping(text, number)


async def test_only_what_is_meant_for_them_is_heard_of_publishers_without_a_server() -> None:
    async with nodes("a") as (_, (one,)):
        heard: list[Struct] = []
        one.on(Ping, heard.append)
        one.on(Newer, heard.append, outside=True)
        one.heard("", letter_of(Ping("let me in"), 3))
        one.heard("", letter_of(Newer("hello"), 3))
        assert heard == [Newer("hello")]
        assert one.counts["bad"] == 1


async def test_a_silent_node_is_waited_for_until_the_time_is_over_and_no_longer() -> None:
    async with nodes("a", "b", "c") as (post, clusters):
        for each in clusters:
            each.on(Ping, partial(name_of, each))
        post.deaf.add("c")
        answers = await clusters[0].ask(Ping("x"), timeout=0.05)
        assert (list(answers), answers.complete) == (["b"], False)
        assert clusters[0].counts["unanswered"] == 1


async def test_a_node_that_goes_is_no_longer_waited_for() -> None:
    async with nodes("a", "b", "c") as (post, clusters):
        for each in clusters:
            each.on(Ping, partial(name_of, each))
        post.deaf.add("c")
        asked = asyncio.ensure_future(clusters[0].ask(Ping("x"), timeout=60))
        await until(lambda: clusters[1].counts["told"] == 1, "b answered")
        assert not asked.done()
        del post.nodes["c"]
        post.beat()
        answers = await asyncio.wait_for(asked, DEADLINE)
        assert (list(answers), answers.complete) == (["b"], True)


async def test_without_others_nobody_is_waited_for() -> None:
    async with nodes("a") as (post, (alone,)):
        assert (await alone.ask(Ping("x"), timeout=60)).complete
        assert len(post.sent) == 1, "somebody may have come whom it does not know yet"
    settings, clock = settings_for(), SystemClock()
    hub = Hub(settings, MemoryBroker(settings, clock), clock)
    assert (hub.cluster.node, hub.cluster.others) == ("", {})
    assert await hub.cluster.tell(Ping("x"))
    assert await hub.cluster.ask(Ping("x")) == Answers()


async def test_without_the_engine_nobody_is_told_and_that_is_said() -> None:
    async with nodes("a", "b") as (post, clusters):
        post.away.add("a")
        assert not await clusters[0].tell(Ping("x"))
        answers = await asyncio.wait_for(clusters[0].ask(Ping("x"), timeout=60), DEADLINE)
        assert (list(answers), answers.complete) == ([], False)
        assert clusters[0].counts["untold"] == 2


async def test_an_answer_that_comes_twice_late_or_unasked_is_dropped() -> None:
    async with nodes("a", "b", "c") as (post, (one, *_)):
        asked = asyncio.ensure_future(one.ask(Ping("x"), timeout=60))
        await until(lambda: bool(post.sent))
        number = open_letter(post.sent[0][2]).ask
        answer = msgspec.msgpack.encode([1, "=", number, 5])
        one.heard("b", answer)
        one.heard("b", answer)
        one.heard("", answer)
        one.heard("c", msgspec.msgpack.encode([1, "=", number + 1, 6]))
        one.heard("c", msgspec.msgpack.encode([1, "=", number, 7]))
        assert await asyncio.wait_for(asked, DEADLINE) == [5, 7]
        one.heard("c", answer)


async def test_questions_that_wait_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clusters, "MAX_ASKS", 2)
    async with nodes("a", "b") as (post, (one, _)):
        post.deaf.add("b")
        waiting = [asyncio.ensure_future(one.ask(Ping("x"), timeout=60)) for _ in range(2)]
        await until(lambda: len(post.sent) == 2)
        answers = await asyncio.wait_for(one.ask(Ping("x"), timeout=60), DEADLINE)
        assert (list(answers), answers.complete) == ([], False)
        assert len(post.sent) == 3, "it was told nevertheless"
        for each in waiting:
            each.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)
        assert not one._asks


async def test_what_others_say_of_themselves_is_added_up() -> None:
    async with nodes("a", "b") as (_, (one, _)):
        said = msgspec.msgpack.encode(Report(sessions=5, users=3, channels=2, version="9.9", draining=True))
        one.nodes({"b": said, "c": msgspec.msgpack.encode({"sessions": 2, "colour": "blue"}), "a": said})
        assert one.others["b"] == Report(5, 3, 2, "9.9", True)
        assert one.totals() == (3, 7, 3, 1)
        one.nodes({"b": b"\xc1 nonsense"})
        assert one.totals() == (2, 0, 0, 0)
        assert one.counts["bad"] == 1
        one.nodes({})
        assert one.totals().nodes == 1
        assert msgspec.msgpack.decode(one.report(), type=Report).version


async def test_what_was_missed_is_read_again_until_the_engine_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clusters, "RESYNC_PAUSE", 0.001)
    async with nodes("a") as (_, (one,)):
        runs: list[str] = []
        hold = asyncio.Event()

        async def one_that_waits() -> None:
            runs.append("waits")
            await hold.wait()
            if runs.count("waits") < 4:
                raise BrokerUnavailable("away again")

        async def broken() -> None:
            runs.append("broken")
            raise ZeroDivisionError("of the test")

        one.resyncers += [one_that_waits, broken]
        one.missed()
        await until(lambda: runs == ["waits", "broken"])
        one.missed()
        one.missed()
        await until(lambda: runs.count("broken") >= 2)
        assert runs.count("waits") == 1, "never twice at once"
        hold.set()
        await until(lambda: runs.count("waits") == 4)
        await until(lambda: not one._resyncing)
        assert runs.count("waits") == 4
        one.missed()
        await until(lambda: runs.count("waits") == 5)


async def test_two_handlers_of_a_kind_and_structs_without_a_tag_are_refused() -> None:
    class Untagged(Struct):
        text: str = ""

    async with nodes("a") as (_, (one,)):
        one.on(Ping, lambda message: None)
        with pytest.raises(ValueError, match="two handlers for 'ping'"):
            one.on(Ping, lambda message: None)
        with pytest.raises(TypeError, match="Untagged needs a tag"):
            one.on(Untagged, lambda message: None)


async def test_after_the_stop_nothing_is_heard() -> None:
    async with nodes("a") as (_, (one,)):
        heard: list[Ping] = []
        one.on(Ping, heard.append)
    one.heard("b", letter_of(Ping("late")))
    one.missed()
    assert heard == []


def test_a_letter_is_small() -> None:
    assert len(letter_of(Ping("x", 1))) < 40
    assert Letter(1, "x").ask == 0
