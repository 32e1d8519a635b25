"""Order under a broker that loses, repeats, delays and reorders: each client sees offsets rise, each once, and all or a gap."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Iterable
from typing import Any, cast

import msgspec
import pytest
from fastapi import FastAPI
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from hubbub import ChannelOptions, Hubbub
from hubbub import asking as asking_module
from hubbub import order as order_module
from hubbub.batch import Batch
from hubbub.errors import BrokerUnavailable
from hubbub.hub import Hub
from hubbub.making import SubscriptionEnded
from hubbub.messages import JSON, Position
from hubbub.order import NEVER, Order, Question
from hubbub.ports import Request
from hubbub.session import Session
from hubbub.stream import Publication, Recovery
from hubbub.testing import FaultyBroker, HandClock, hub_client
from tests.support import settings_for, until

A, B = "aaaa", "bbbb"


def publication(offset: int, size: int = 0) -> Publication:
    return Publication(b'{"type":"publication","offset":', b"," + b"x" * size + b"}", offset=offset)


def offsets(publications: Iterable[Publication] | None) -> list[int] | None:
    return None if publications is None else [each.offset for each in publications]


def recovery(epoch: str, offset: int, missed: Iterable[int] = (), *, recovered: bool = True) -> Recovery:
    return Recovery(Position(epoch, offset), [publication(each) for each in missed], recovered)


# -- the pure part ---------------------------------------------------------------------------------------------------


def test_early_ones_are_held_until_the_missing_one_comes() -> None:
    order = Order(A, 3)
    assert offsets(order.take(publication(5))) == []
    assert offsets(order.take(publication(4))) == []
    assert order.behind
    assert offsets(order.take(publication(3))) == [3, 4, 5]
    assert order.settled
    assert order.next == 6


def test_what_comes_twice_is_dropped_and_looked_into() -> None:
    order = Order(A, 3)
    assert order.take(publication(2)) is None
    assert order.wants, "it may be the second of a new epoch"
    answer = order.answer(order.ask(), recovery(A, 2))
    assert (answer.publications, answer.gap) == ([], None)
    assert order.settled
    order.take(publication(7))
    assert order.take(publication(7)) is None


def test_history_fills_the_hole() -> None:
    order = Order(A, 3)
    order.take(publication(6))
    since = order.ask()
    assert since.since == Position(A, 2)
    answer = order.answer(since, recovery(A, 6, (3, 4, 5, 6)))
    assert (offsets(answer.publications), answer.gap, answer.filled) == ([3, 4, 5, 6], None, 4)
    assert order.settled


def test_what_came_while_history_was_asked_is_not_delivered_again() -> None:
    order = Order(A, 3)
    order.take(publication(5))
    since = order.ask()
    assert offsets(order.take(publication(3))) == [3]
    answer = order.answer(since, recovery(A, 5, (3, 4, 5)))
    assert offsets(answer.publications) == [4, 5]
    late = order.answer(since, recovery(A, 5, (3, 4, 5)))
    assert late.publications == []


def test_what_history_cannot_give_is_a_gap_and_the_rest_goes_on() -> None:
    order = Order(A, 3)
    for offset in (5, 8, 9, 11):
        order.take(publication(offset))
    answer = order.answer(order.ask(), recovery(A, 8, recovered=False))
    assert (offsets(answer.publications), answer.gap) == ([9], Position(A, 8))
    assert order.wants
    assert order.next == 10


def test_history_that_says_no_although_it_came_meanwhile() -> None:
    order = Order(A, 3)
    order.take(publication(5))
    since = order.ask()
    order.take(publication(3))
    assert order.answer(since, recovery(A, 5, recovered=False)).gap is None, "4 may still be had"
    since = order.ask()
    order.take(publication(4))
    assert order.answer(since, recovery(A, 5, recovered=False)).gap is None
    assert order.settled
    assert order.next == 6


def test_a_new_epoch_is_a_gap() -> None:
    order = Order(A, 3)
    order.take(publication(9))
    answer = order.answer(order.ask(), recovery(B, 4, recovered=False))
    assert (answer.publications, answer.gap) == ([], Position(B, 4))
    assert order.wants, "9 may have been of either epoch"
    assert order.answer(order.ask(), recovery(B, 4)).gap is None
    assert order.settled
    stale = order.answer(Question(Position(A, 2), 0), recovery(A, 9, range(3, 10)))
    assert stale.publications == []
    assert order.wants


def test_a_history_that_went_back_has_begun_anew() -> None:
    order = Order(A, 8)
    order.take(publication(5))
    answer = order.answer(order.ask(), recovery(A, 5, recovered=False))
    assert answer.gap == Position(A, 5)
    assert order.next == 6
    unknown = Order("", 8)
    unknown.take(publication(12))
    assert unknown.learn(Position(A, 12)).gap is None
    assert unknown.epoch == A
    assert Order("", 8).learn(Position(A, 3)).gap == Position(A, 3)


def test_a_history_that_lacks_what_it_should_have() -> None:
    order = Order(A, 3)
    order.take(publication(7))
    assert order.answer(order.ask(), recovery(A, 4, (3, 4))).gap is None
    assert order.behind
    answer = order.skip()
    assert (offsets(answer.publications), answer.gap) == ([7], Position(A, 6))
    assert order.settled


def test_what_is_held_is_bounded_and_nothing_is_lost_by_that(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(order_module, "EARLY", 3)
    monkeypatch.setattr(order_module, "EARLY_BYTES", 2000)
    order = Order(A, 1)
    for offset in range(2, 9):
        order.take(publication(offset))
    assert len(order._early) == 3
    assert offsets(order.take(publication(1))) == [1, 2, 3, 4]
    assert order.wants
    answer = order.answer(order.ask(), recovery(A, 8, (5, 6, 7, 8)))
    assert offsets(answer.publications) == [5, 6, 7, 8]
    assert order.settled
    order.take(publication(11, 1500))
    order.take(publication(10, 1500))
    assert len(order._early) == 1
    order.take(publication(9))
    assert order.wants
    assert order._bytes == order._early[11].size
    answer = order.answer(order.ask(), recovery(A, 11, (10, 11)))
    assert order.settled
    assert order._bytes == 0


def join(order: Order, since: Position | None, found: Recovery, asked: Position | None = None) -> tuple[Any, Any]:
    told, others = order.join(asked or order.here, since, found)
    assert not others.publications
    return told and (told.position.offset, offsets(told.publications), told.recovered), others.gap


def test_the_first_reader_says_where_the_node_is() -> None:
    order = Order("", NEVER)
    order.readers = 1
    for offset in (4, 6, 7, 9):
        assert order.take(publication(offset)) == []
    assert not order.wants
    assert join(order, None, recovery(A, 5, recovered=False)) == ((5, [], False), None)
    assert offsets(order.left()) == [6, 7]
    assert order.wants
    gone = Order("", NEVER)
    gone.readers = 1
    gone.take(publication(4))
    assert gone.left() == []
    assert gone.settled


def test_a_reader_whose_history_is_older_than_what_was_delivered() -> None:
    order = Order(A, 5)
    order.readers = 1
    asked = order.here
    order.take(publication(5))
    order.take(publication(6))
    assert join(order, None, recovery(A, 4, recovered=False), asked) == ((6, [], False), None)
    assert join(order, Position(A, 2), recovery(A, 4, (3, 4)), asked) == ((6, [3, 4, 5, 6], True), None)
    assert join(order, Position(A, 2), recovery(A, 6, (3, 4, 5, 6))) == ((6, [3, 4, 5, 6], True), None)
    early = Order(A, 5)
    early.readers = 1
    asked = early.here
    early.take(publication(5))
    early._recent.clear()
    assert early.join(asked, Position(A, 2), recovery(A, 4, (3, 4)))[0] is None, "not all of it is known: ask again"


def test_a_reader_whose_history_is_ahead_of_what_was_delivered() -> None:
    order = Order(A, 5)
    order.readers = 1
    assert join(order, None, recovery(A, 7, recovered=False)) == ((4, [], False), None)
    assert join(order, Position(A, 3), recovery(A, 7, (4, 5, 6, 7))) == ((4, [4], True), None)
    assert join(order, Position(A, 6), recovery(A, 7, (7,))) == (None, None)
    assert order.wants


def test_a_reader_brings_word_of_a_new_epoch() -> None:
    order = Order(A, 5)
    order.readers = 1
    asked = order.here
    assert join(order, None, recovery(B, 2, recovered=False)) == ((2, [], False), Position(B, 2))
    assert order.join(asked, None, recovery(A, 4, recovered=False))[0] is None, "this one is of before"
    assert join(order, Position(A, 1), recovery(B, 1, recovered=False))[1] == Position(B, 1)


# -- the hub, over a broker that fails -------------------------------------------------------------------------------


class Lane:
    """Gives every link the publications of a batch."""

    codec = JSON

    def deliver(self, links: Iterable[Any], batch: Batch, merge: bool) -> None:
        for link in links:
            for _, payload in batch.for_link(link, JSON):
                link.took(payload)


LANE = Lane()


class Reader:
    """A link, and what a client makes of what it gets: where it is, and what it had."""

    def __init__(self) -> None:
        self.lane = LANE
        self.session: Session | None = None
        self.epoch = ""
        self.offset = 0
        self.had: list[tuple[str, int, int]] = []
        self.gaps = 0
        self.wrong: list[str] = []
        self.position: Position | None = None
        self._replies: list[bytes] = []

    def send(self, payload: bytes) -> None:
        self._replies.append(payload)
        hub = cast(Any, self).hub
        hub.touched(self)

    def flush(self) -> None:
        replies, self._replies = self._replies, []
        for payload in replies:
            self.took(payload)

    def took(self, payload: bytes) -> None:
        try:
            self.take(msgspec.json.decode(payload))
        except AssertionError as error:  # here it would only reach the loop
            self.wrong.append(str(error))

    def take(self, message: dict[str, Any]) -> None:
        if message["type"] == "gap":
            self.gaps += 1
            assert message["epoch"] != self.epoch or message["offset"] != self.offset, "a gap over nothing"
            self.epoch, self.offset = message["epoch"], message["offset"]
        elif message["type"] == "publication":
            assert message["offset"] == self.offset + 1, "offsets rise by one, or there was a gap"
            self.offset += 1
            self.had.append((self.epoch, self.offset, message["data"]))

    def subscribed(self, found: Recovery, since: Position | None) -> None:
        if since is None or not found.recovered:
            self.epoch, self.offset = found.position.epoch, found.position.offset
        else:
            assert since == Position(self.epoch, self.offset)
            for each in found.publications:
                self.took(each.payload)
            assert self.offset == found.position.offset
            assert self.epoch == found.position.epoch

    def close(self, code: int, reason: str = "") -> None: ...
    def abort(self) -> None: ...
    def hold(self) -> None: ...
    def release(self) -> None: ...


class Slow(FaultyBroker):
    """A faulty broker whose history answers when it is told to: until then others come and go."""

    def __init__(self) -> None:
        super().__init__()
        self.slow = False
        self.pending: list[asyncio.Future[None]] = []

    async def recover(self, channel: str, since: Position | None, limit: int, options: ChannelOptions) -> Recovery:
        before = self.slow and len(self.pending) % 2
        if before:
            await self._turn()
        found = await super().recover(channel, since, limit, options)
        if self.slow and not before:
            await self._turn()  # what was read is old when it arrives
        return found

    async def _turn(self) -> None:
        waits = asyncio.get_running_loop().create_future()
        self.pending.append(waits)
        await waits

    def answer(self) -> None:
        pending, self.pending = self.pending, []
        for waits in pending:
            if not waits.done():
                waits.set_result(None)


CHANNEL = "c"
OPTIONS = ChannelOptions(history_size=6, history_ttl=1000, presence=False)


class World:
    """A hub over a slow and faulty broker, its readers, and what was really published."""

    def __init__(self, broker: Slow | None = None) -> None:
        self.broker = broker or Slow()
        self.hubbub = Hubbub(
            None,
            settings=settings_for(channels={CHANNEL: OPTIONS}),
            broker=self.broker,
            clock=HandClock(),
        )
        self.hub: Hub = self.hubbub.hub
        self.readers: list[Reader] = []
        self.published: list[tuple[str, int, int]] = []
        self.tasks: set[asyncio.Task[None]] = set()
        self.count = 0

    async def publish(self) -> None:
        self.count += 1
        try:
            position = await self.hubbub.publish(CHANNEL, self.count)
        except BrokerUnavailable:
            return
        self.published.append((position.epoch, position.offset, self.count))

    def arrive(self) -> None:
        reader = Reader()
        cast(Any, reader).hub = self.hub
        session = self.hub.entrance.open(cast(Any, reader), Request("/ws", b"", [], [], "", "ws"))
        self.hub.entrance.sign_in(session, self.hubbub.token(f"u{len(self.readers)}", subscribe=["*"]), None)
        self.readers.append(reader)

    def start(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)

    async def subscribe(self, reader: Reader, *, since: bool) -> None:
        session = reader.session
        assert session is not None
        if CHANNEL in session.channels:
            return
        at = Position(reader.epoch, reader.offset) if since and reader.epoch else None
        try:
            found = await self.hub.attach(session, CHANNEL, at, OPTIONS)
        except BrokerUnavailable:
            return
        reader.subscribed(found, at)

    async def turns(self, count: int = 3) -> None:
        for _ in range(count):
            await asyncio.sleep(0)

    async def calm(self) -> None:
        """Heal everything, and let all come to its end."""
        self.broker.slow = False
        self.broker.heal()
        self.broker.release()
        for _ in range(50):
            self.broker.answer()
            await self.turns()
            if not self.tasks and not self.broker.pending:
                break
        self.broker.heal()
        await self.turns()


STEPS = st.lists(
    st.one_of(
        st.just(("publish", 0)),
        st.just(("publish", 0)),
        st.just(("publish", 0)),
        st.tuples(st.just("drop"), st.integers(1, 4)),
        st.tuples(st.just("drop"), st.integers(8, 9)),
        st.tuples(st.just("duplicate"), st.integers(1, 3)),
        st.tuples(st.just("delay"), st.integers(1, 3)),
        st.tuples(st.just("reorder"), st.integers(2, 4)),
        st.just(("release", 0)),
        st.just(("forget", 0)),
        st.just(("disconnect", 0)),
        st.just(("resubscribe", 0)),
        st.just(("unavailable", 0)),
        st.just(("available", 0)),
        st.just(("slow", 0)),
        st.just(("fast", 0)),
        st.just(("answer", 0)),
        st.just(("turn", 0)),
        st.tuples(st.just("subscribe"), st.integers(0, 3)),
        st.tuples(st.just("recover"), st.integers(0, 3)),
        st.tuples(st.just("unsubscribe"), st.integers(0, 3)),
    ),
    max_size=40,
)


async def play(steps: list[tuple[str, int]]) -> World:
    world = World()
    hub, broker = world.hub, world.broker
    await hub.start()
    try:
        for _ in range(4):
            world.arrive()
        for what, number in steps:
            if what == "publish":
                await world.publish()
            elif what in ("drop", "duplicate", "delay", "reorder"):
                getattr(broker, what)(number)
            elif what == "forget":
                broker.forget(CHANNEL)
            elif what in ("slow", "fast"):
                broker.slow = what == "slow"
            elif what in ("unavailable", "available"):
                broker.unavailable = what == "unavailable"
            elif what == "turn":
                await world.turns()
            elif what in ("subscribe", "recover"):
                world.start(world.subscribe(world.readers[number], since=what == "recover"))
                await world.turns(1)
            elif what == "unsubscribe":
                session = world.readers[number].session
                assert session is not None
                channel = hub.channels.get(CHANNEL)
                if channel is not None and cast(Any, world.readers[number]) in channel.links():
                    await world.turns()  # what was published before is written first
                    hub.detach(session, CHANNEL)
            else:
                getattr(broker, what)()
        await world.calm()
        # whoever lost the last ones learns it by the next
        await world.publish()
        await world.calm()
        check(world)
    finally:
        await hub.stop()
    return world


def check(world: World) -> None:
    hub = world.hub
    channel = hub.channels.get(CHANNEL)
    epoch, last, _ = world.published[-1]
    if channel is not None:
        assert channel.order is None, "all is in order again"
        assert channel.epoch == epoch
    for reader in world.readers:
        assert not reader.wrong
        assert set(reader.had) <= set(world.published), "each has its own offset, in its own epoch"
        assert len(set(reader.had)) == len(reader.had), "each once"
        if reader.session is not None and CHANNEL in reader.session.channels:
            assert channel is not None
            assert cast(Any, reader) in channel.links()
            assert reader.epoch == epoch
            assert reader.offset == last
            assert reader.had[-1] == world.published[-1]
    assert not len(hub.inlet.asking)
    assert not hub.inlet.asking.running


def steps(text: str) -> list[tuple[str, int]]:
    """``subscribe 0, publish`` as steps."""
    words = [step.split() for step in text.split(", ")]
    return [(word[0], int(word[1]) if len(word) > 1 else 0) for word in words]


@given(STEPS)
@example(steps("delay 1, publish, forget, subscribe"))
@example(steps("subscribe, slow, forget, publish"))
@example(steps("reorder 2, subscribe, publish, slow, publish"))
@example(steps("subscribe, slow, resubscribe, forget, publish, answer, turn"))
@example(steps("slow, subscribe, fast, subscribe 1, unsubscribe 1, answer, turn"))
@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_every_client_has_all_in_order_once_or_a_gap(
    monkeypatch: pytest.MonkeyPatch, taken: list[tuple[str, int]]
) -> None:
    """The reader looks at each step of its own: offsets rise by one, or a gap said where they go on."""
    monkeypatch.setattr(asking_module, "FIRST_PAUSE", 0.0)
    asyncio.run(play(taken))


# -- several who make the same subscription of a session -----------------------------------------------------------------


class Told(Slow):
    """A broker whose history answers about each question what it is told to."""

    def __init__(self) -> None:
        super().__init__()
        self.questions: list[asyncio.Future[None]] = []

    async def recover(self, channel: str, since: Position | None, limit: int, options: ChannelOptions) -> Recovery:
        self.questions.append(asyncio.get_running_loop().create_future())
        await self.questions[-1]
        return await FaultyBroker.recover(self, channel, since, limit, options)


class Attempt:
    """One attempt to subscribe, what became of it, and what should have."""

    def __init__(self) -> None:
        self.question: asyncio.Future[None] | None = None
        self.task: asyncio.Task[Recovery] | None = None
        self.ended = False


async def attempt(steps: list[tuple[str, int]]) -> None:
    world = World(Told())
    hub, broker = world.hub, cast(Told, world.broker)
    await hub.start()
    try:
        world.arrive()
        reader = world.readers[0]
        session = reader.session
        assert session is not None
        there = False
        under_way: list[Attempt] = []
        for what, number in steps:
            if what == "begin":
                each = Attempt()
                each.task = asyncio.ensure_future(hub.attach(session, CHANNEL, None, OPTIONS))
                await world.turns()
                each.question = broker.questions[-1]
                under_way.append(each)
            elif what == "end":
                assert hub.detach(session, CHANNEL) == (there or any(not each.ended for each in under_way))
                there = False
                for each in under_way:
                    each.ended = True
            elif under_way:
                each = under_way.pop(number % len(under_way))
                assert each.task is not None
                assert each.question is not None
                if what == "cancel":
                    each.task.cancel()
                elif what == "fail":
                    each.question.set_exception(BrokerUnavailable("no answer"))
                else:
                    each.question.set_result(None)
                    there = there or not each.ended
                known = len(broker.questions)
                async with asyncio.timeout(5):
                    while not each.task.done():
                        await world.turns(1)
                        for question in broker.questions[known:]:  # another one had its answer first: it asks again
                            if not question.done():
                                question.set_result(None)
                result = (await asyncio.gather(each.task, return_exceptions=True))[0]
                assert isinstance(result, Recovery) == (what == "answer" and not each.ended)
                if what == "answer" and each.ended:
                    assert isinstance(result, SubscriptionEnded)
            channel = hub.channels.get(CHANNEL)
            assert (channel is not None and cast(Any, reader) in channel.links()) == there
            assert (CHANNEL in session.channels) == (there or any(not each.ended for each in under_way))
            if not under_way:
                assert not hub.attempts
                assert (channel is not None) == there
                assert channel is None or channel.order is None
        for each in under_way:
            assert each.task is not None
            each.task.cancel()
            await asyncio.wait([each.task])
    finally:
        await hub.stop()


ATTEMPTS = st.lists(
    st.one_of(
        st.just(("begin", 0)),
        st.just(("begin", 0)),
        st.just(("end", 0)),
        st.tuples(st.sampled_from(["answer", "fail", "cancel"]), st.integers(0, 3)),
    ),
    max_size=20,
)


@given(ATTEMPTS)
@example(steps("begin, answer, begin, fail"))
@example(steps("begin, begin, fail, answer"))
@example(steps("begin, begin, answer 1, fail"))
@example(steps("begin, end, begin, fail, answer"))
@settings(max_examples=200, deadline=None)
def test_an_attempt_that_fails_changes_nothing(taken: list[tuple[str, int]]) -> None:
    asyncio.run(attempt(taken))


# -- the same, as clients see it -------------------------------------------------------------------------------------


def made(**options: Any) -> tuple[FastAPI, Hubbub, FaultyBroker]:
    app, broker = FastAPI(), FaultyBroker()
    hub = Hubbub(app, settings=settings_for(**options), broker=broker, clock=HandClock())
    return app, hub, broker


async def publish(hub: Hubbub, *numbers: int, channel: str = "news") -> None:
    for number in numbers:
        await hub.publish(channel, number)


@pytest.mark.anyio
async def test_what_is_lost_comes_with_the_next_one() -> None:
    app, hub, broker = made()
    async with hub_client(app, "alice", subscribe=["*"]) as alice, hub_client(app, "bob", subscribe=["*"]) as bob:
        for client in (alice, bob):
            await client.subscribe("news")
        broker.drop(2)
        await publish(hub, 1, 2)
        await alice.nothing()
        await publish(hub, 3)
        broker.duplicate(2)
        broker.reorder(3)
        await publish(hub, 4, 5, 6, 7, 8)
        for client in (alice, bob):
            assert [(m["offset"], m["data"]) for m in await client.drained()] == [(n, n) for n in range(1, 9)]
        assert hub.hub.metrics.order == {"duplicate": 2 + 2, "early": 1 + 1, "filled": 3 + 3}


@pytest.mark.anyio
async def test_a_lost_connection_is_made_good_at_once() -> None:
    app, hub, broker = made()
    async with hub_client(app, "alice", subscribe=["*"]) as alice:
        await alice.subscribe("news")
        await alice.subscribe("other")
        await publish(hub, 1)
        broker.disconnect()
        await publish(hub, 2, 3)
        await publish(hub, 1, channel="other")
        await alice.expect("publication", offset=1)
        await alice.nothing()
        broker.resubscribe()
        assert {(m["channel"], m["offset"]) for m in await alice.drained()} == {("news", 2), ("news", 3), ("other", 1)}
        await publish(hub, 4)
        await alice.expect("publication", offset=4)


@pytest.mark.anyio
@pytest.mark.parametrize("room", [False, True])
async def test_what_history_does_not_have_any_more_is_a_gap(room: bool) -> None:
    short = ChannelOptions(history_size=2)
    app, hub, broker = made(channels={"*": short, "room:*": short}, default_kind="live")
    name = "room:general" if room else "news"
    async with hub_client(app, "alice", subscribe=["*"], room="general") as alice:
        if not room:
            await alice.subscribe("news")
        await alice.drained()
        broker.drop(3, channel=name)

        async def say(count: int) -> None:
            for number in range(count):
                if room:
                    await alice.ask("chat_message", message=str(number))
                else:
                    await publish(hub, number)

        await say(3)
        await alice.nothing()
        await say(1)
        gap = await alice.receive()
        assert (gap["type"], gap["channel"], gap["offset"]) == ("gap", name, 4)
        await say(1)
        after = await alice.receive()
        assert (after["data"]["id"] if room else after["offset"]) == 5
        assert hub.hub.metrics.order["gap"] == 1


@pytest.mark.anyio
async def test_a_new_epoch_is_a_gap_and_goes_on_from_there() -> None:
    app, hub, broker = made()
    async with hub_client(app, "alice", subscribe=["*"]) as alice:
        old = await alice.subscribe("news")
        await publish(hub, 1, 2)
        broker.forget("news")
        await publish(hub, 3)
        assert [m["data"] for m in (await alice.receive(), await alice.receive())] == [1, 2]
        gap = await alice.receive()
        assert (gap["type"], gap["offset"]) == ("gap", 0)
        assert gap["epoch"] != old["epoch"]
        assert (await alice.receive())["offset"] == 1
        broker.forget("news", tell=False)
        await publish(hub, 4, 5)
        told = [(m["type"], m.get("data", m["offset"])) for m in await alice.drained()]
        assert told == [("gap", 0), ("publication", 4), ("publication", 5)], (
            "seen by its low offset; nothing of it is lost"
        )


@pytest.mark.anyio
async def test_while_the_broker_does_not_answer_history_is_asked_again() -> None:
    app, hub, broker = made()
    async with hub_client(app, "alice", subscribe=["*"], publish=["*"]) as alice:
        await alice.subscribe("news")
        broker.drop(1)
        await publish(hub, 1)
        broker.delay(1)
        await publish(hub, 2)
        broker.unavailable = True
        with pytest.raises(BrokerUnavailable):
            await hub.publish("news", 9)
        broker.release()
        await alice.nothing()
        broker.unavailable = False
        assert [(await alice.expect("publication"))["offset"] for _ in range(2)] == [1, 2]
        await alice.nothing()


@pytest.mark.anyio
async def test_a_hub_stops_while_it_waits_for_history_and_starts_again() -> None:
    app, hub, broker = made()
    for _ in range(2):
        async with hub_client(app, "alice", subscribe=["*"]) as alice:
            await alice.subscribe("news")
            broker.drop(1)
            broker.delay(1)
            await publish(hub, 1, 2)
            broker.unavailable = True
            broker.release()
            await alice.nothing()
            assert len(hub.hub.inlet.asking) == 1
        assert not len(hub.hub.inlet.asking)
        assert all(channel.order is None for channel in hub.hub.channels.values())
        broker.unavailable = False


@pytest.mark.anyio
async def test_many_channels_are_looked_into_a_few_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(asking_module, "AT_ONCE", 3)
    broker = Slow()
    app = FastAPI()
    hub = Hubbub(app, settings=settings_for(rate_limit=0, user_rate_limit=0), broker=broker)
    names = [f"c{number}" for number in range(50)]
    async with hub_client(app, "alice", subscribe=["*"]) as alice:
        for name in names:
            await alice.subscribe(name)
        broker.disconnect()
        for name in names:
            await publish(hub, 1, channel=name)
        broker.slow = True
        broker.resubscribe()
        most = 0
        async with asyncio.timeout(5):
            while len(hub.hub.inlet.asking):
                most = max(most, len(broker.pending))
                broker.answer()
                await asyncio.sleep(0)
        assert most == 3
        broker.slow = False
        assert sorted(m["channel"] for m in await alice.drained()) == sorted(names)
        broker.disconnect()
        for name in names:
            await publish(hub, 2, channel=name)
        broker.resubscribe()  # now each ends at once
        assert len(await alice.drained()) == len(names)


@pytest.mark.anyio
async def test_notifications_come_in_order_too() -> None:
    app, hub, broker = made()
    async with hub_client(app, "alice") as alice, hub_client(app, "alice") as tablet:

        async def notify(*titles: str) -> None:
            for title in titles:
                await hub.notify("alice", title, "")

        async def titles() -> list[str]:
            first, second = await alice.drained(), await tablet.drained()
            assert first == second
            return [m["data"]["title"] for m in first]

        await notify("one")
        broker.drop(1)
        await notify("two", "three")
        broker.duplicate(1)
        await notify("four")
        broker.reorder(2)
        await notify("five", "six")
        assert await titles() == ["one", "two", "three", "four", "five", "six"]
        broker.disconnect()
        await notify("seven")
        broker.resubscribe()
        assert await titles() == ["seven"]
        broker.forget("user:alice")
        assert [m["type"] for m in await alice.drained()] == ["gap"]
        await notify("eight")
        assert [m["type"] for m in await tablet.drained()] == ["gap", "notification"]
    assert hub.hub.inlet.lines == {}


@pytest.mark.anyio
async def test_who_asks_for_the_position_of_its_notifications_misses_none() -> None:
    app, hub, broker = made()
    async with hub_client(app, "alice") as alice:
        position = (await hub.hub.inlet.recover_personal("alice", None)).position
        assert position.offset == 0
        broker.drop(1)
        await hub.notify("alice", "one", "")
        await hub.notify("alice", "two", "")
        assert [m["data"]["title"] for m in await alice.drained()] == ["one", "two"]
        found = await hub.hub.inlet.recover_personal("alice", position)
        assert [each.offset for each in found.publications] == [1, 2]
        assert hub.hub.inlet.lines["alice"].order is None


class Reluctant(FaultyBroker):
    """A faulty broker that takes its time to subscribe."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[str] = []
        self.waiting: list[asyncio.Future[None]] = []

    async def subscribe(self, channel: str) -> None:
        self.calls.append("subscribe")
        self.waiting.append(asyncio.get_running_loop().create_future())
        await self.waiting[-1]
        await super().subscribe(channel)

    async def recover(self, channel: str, since: Position | None, limit: int, options: ChannelOptions) -> Recovery:
        self.calls.append("recover")
        return await super().recover(channel, since, limit, options)


@pytest.mark.anyio
async def test_history_is_read_once_the_broker_has_the_subscription_whoever_asked_for_it() -> None:
    app, broker = FastAPI(), Reluctant()
    Hubbub(app, settings=settings_for(), broker=broker)
    async with hub_client(app, "alice", subscribe=["*"]) as alice, hub_client(app, "bob", subscribe=["*"]) as bob:
        for number, client in enumerate((alice, bob)):
            await client.send("subscribe", channel="news")
            await until(lambda count=number: len(broker.waiting) > count)  # type: ignore[misc]  # a lambda's default
        assert broker.calls == ["subscribe", "subscribe"]
        for waiting in broker.waiting:
            waiting.set_result(None)
        for client in (alice, bob):
            await client.expect("subscribed")


@pytest.mark.anyio
async def test_a_channel_without_history_is_passed_through() -> None:
    app, hub, broker = made(channels={"*": ChannelOptions(history_size=0)})
    async with hub_client(app, "alice", subscribe=["*"]) as alice:
        await alice.subscribe("news")
        broker.duplicate(1)
        broker.drop(1)
        await publish(hub, 1, 2, 3)
        broker.disconnect()
        broker.resubscribe()
        assert [m["data"] for m in await alice.drained()] == [1, 1, 3]


@pytest.mark.anyio
async def test_a_failed_subscription_leaves_nothing_behind() -> None:
    app, hub, broker = made()
    async with hub_client(app, "alice", subscribe=["*"]) as alice:
        broker.unavailable = True
        await alice.refused("subscribe", channel="news")
        assert not hub.hub.channels
        broker.unavailable = False
        await alice.subscribe("news")
        await publish(hub, 1)
        await alice.expect("publication", data=1)
