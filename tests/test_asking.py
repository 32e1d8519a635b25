"""Who asks history, and when: a few at a time, each in its turn, whatever does not answer. In time that is turned by hand."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Coroutine
from heapq import heappop, heappush
from typing import Any, cast

from hypothesis import given, settings
from hypothesis import strategies as st

from hubbub import asking
from hubbub.asking import AT_ONCE, AT_ONCE_PART, LONGEST_PAUSE, LONGEST_SILENCE, Asking
from hubbub.brokers.valkey.broker import ValkeyBroker
from hubbub.brokers.valkey.keys import PARTITIONS
from hubbub.eager import begin
from hubbub.errors import BrokerUnavailable
from hubbub.order import Order
from tests.support import HandClock, settings_for


class Timer:
    def __init__(self, at: float, call: Callable[[], None]) -> None:
        self.at = at
        self.call: Callable[[], None] | None = call

    def cancel(self) -> None:
        self.call = None


class Past:
    """A history of channels that are called ``<part>:<number>``."""

    def part_of(self, name: str) -> int | None:
        return int(name.partition(":")[0])


class Line:
    def __init__(self, name: str) -> None:
        self.name = name
        self.order = Order("e", 3)
        self.order.doubt()


class World:
    """An inlet, its hub and its loop, as far as they matter here.

    :ivar fails: whether history answers about a channel. ``hangs``: it says nothing at all.
    """

    def __init__(self, past: object) -> None:
        self.hub = self.loop = self
        self.shared = True
        self.past = past
        self.now = 0.0
        self.timers: list[tuple[float, int, Timer]] = []
        self.fails: Callable[[str], bool] = lambda name: False
        self.hangs: Callable[[str], bool] = lambda name: False
        self.hanging: list[Any] = []
        self.asked: Counter[str] = Counter()
        self.settled: list[str] = []
        self.dropped: list[str] = []
        self.gone: set[str] = set()
        self.asking = Asking(cast(Any, self))

    def call_later(self, seconds: float, call: Callable[..., None], *arguments: object) -> Timer:
        timer = Timer(self.now + seconds, lambda: call(*arguments))
        heappush(self.timers, (timer.at, id(timer), timer))
        return timer

    def advance(self, seconds: float) -> None:
        until = self.now + seconds
        while self.timers and self.timers[0][0] <= until:
            self.now, _, timer = heappop(self.timers)
            if timer.call is not None:
                timer.call()
        self.now = until

    def spawn(self, work: Coroutine[Any, Any, None]) -> None:
        rest = begin(work)
        if rest is not None:
            self.hanging.append(rest)

    def past_of(self, name: str) -> object:
        return self.past

    async def ask(self, line: Line, order: Order) -> None:
        self.asked[line.name] += 1
        if self.hangs(line.name):
            await _never()
        if self.fails(line.name):
            raise BrokerUnavailable("no answer")
        order.ask()

    def waited_for(self, line: Line, order: Order) -> bool:
        return line.name not in self.gone

    def settle(self, line: Line, order: Order) -> None:
        assert not order.wants
        self.settled.append(line.name)

    def drop(self, line: Line, order: Order) -> None:
        self.dropped.append(line.name)

    def start(self, *names: str) -> list[Line]:
        lines = [Line(name) for name in names]
        for line in lines:
            self.asking.start(cast(Any, line), line.order)
        return lines


class _Never:
    def __await__(self) -> Any:
        yield self


async def _never() -> None:
    await _Never()


def named(part: int, count: int) -> list[str]:
    return [f"{part}:{number}" for number in range(count)]


def test_what_answers_nobody_is_asked_seldom_however_many_wait_for_it() -> None:
    world = World(object())
    names = named(0, 5000)
    world.fails = lambda name: True
    world.start(*names)
    assert sum(world.asked.values()) == AT_ONCE
    world.advance(60)
    assert sum(world.asked.values()) <= AT_ONCE + (60 / LONGEST_SILENCE + 6) * AT_ONCE / 4
    assert len(world.asked) > 500, "each has its turn, not always the same"
    world.fails = lambda name: False
    world.advance(LONGEST_PAUSE)
    assert sorted(world.settled) == sorted(names)
    assert not len(world.asking)
    assert not [timer for _, _, timer in world.timers if timer.call is not None]


def test_one_part_that_is_away_keeps_no_other_from_being_asked() -> None:
    for way in ("fails", "hangs"):
        world = World(Past())
        setattr(world, way, lambda name: name.startswith("1:"))
        world.start(*named(1, 3000))
        assert sum(world.asked.values()) == AT_ONCE_PART
        healthy = named(2, 3000)
        world.start(*healthy)
        assert sorted(world.settled) == sorted(healthy), "at once"


def test_the_parts_of_a_cluster_are_its_partitions() -> None:
    alone = ValkeyBroker(settings_for(valkey_url="valkey://here:6379/0"), HandClock())
    assert alone.part_of("news") is None
    cluster = ValkeyBroker(settings_for(valkey_url="valkey+cluster://here:6379,there:6379"), HandClock())
    assert len({cluster.part_of(f"c{number}") for number in range(1000)}) == PARTITIONS


def test_a_channel_without_an_answer_keeps_no_place_while_it_waits() -> None:
    world = World(object())
    bad = named(1, AT_ONCE - 1)
    world.fails = lambda name: name in bad
    world.start(*bad)
    world.start("2:0")
    assert world.settled == ["2:0"]


def test_when_the_engine_is_back_all_are_asked_at_once() -> None:
    world = World(object())
    world.fails = lambda name: True
    lines = world.start(*named(0, 500))
    world.advance(100)
    world.fails = lambda name: False
    for line in lines:
        line.order.doubt()
        world.asking.hurry(line.order)
    assert len(world.settled) == 500


def test_who_is_let_go_is_not_asked_about_and_leaves_nothing() -> None:
    world = World(object())
    world.fails = lambda name: True
    lines = world.start(*named(0, 500))
    world.gone = {line.name for line in lines}
    for line in lines:
        world.asking.let_go(line.order)
    assert not len(world.asking)
    assert len(world.dropped) == 500
    asked = sum(world.asked.values())
    world.advance(60)
    assert sum(world.asked.values()) == asked
    assert not any(line.order.filling for line in lines)


def test_when_it_stops_nothing_is_left_to_come() -> None:
    world = World(object())
    world.fails = lambda name: True
    world.start(*named(0, 500))
    world.asking.stop()
    assert len(world.dropped) == 500
    assert not [timer for _, _, timer in world.timers if timer.call is not None]
    world.start("0:0")
    assert (len(world.asking), world.asking.running, len(world.dropped)) == (0, 0, 501)


@given(
    bad=st.sets(st.integers(0, 299), max_size=250),
    steps=st.lists(st.sampled_from(["start", "later", "flip", "leave"]), max_size=12),
)
@settings(max_examples=60, deadline=None)
def test_nobody_is_starved_by_those_that_have_no_answer(bad: set[int], steps: list[str]) -> None:
    world = World(object())
    away = False
    world.fails = lambda name: away or int(name.partition(":")[2]) % 300 in bad
    started = 0
    for step in steps:
        if step == "start":
            world.start(*(f"0:{started + number}" for number in range(100)))
            started += 100
        elif step == "later":
            world.advance(0.7)
        elif step == "flip":
            away = not away
        else:
            world.gone = {f"0:{number}" for number in range(0, started, 7)}
        assert world.asking.running <= asking.AT_ONCE
    away = False
    # each of those without an answer has its turn once more, at worst, before the last that has one
    world.advance(2 * LONGEST_PAUSE + started / (AT_ONCE / 4) * LONGEST_SILENCE)
    well = {f"0:{number}" for number in range(started) if number % 300 not in bad}
    assert well <= set(world.settled) | set(world.dropped)
    assert len(world.asking) == len(
        {f"0:{number}" for number in range(started)} - set(world.settled) - set(world.dropped)
    )
