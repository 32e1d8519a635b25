"""The outbox against a naive model: a plain list that is searched anew each time."""

from __future__ import annotations

from dataclasses import dataclass

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from hubbub.outbox import Entry, Outbox
from hubbub.settings import SlowPolicy

MAX_BYTES, MAX_AGE = 100, 10.0
POLICIES: dict[str, SlowPolicy] = {"cut": "disconnect", "old": "drop_oldest", "new": "conflate"}


def gap(channel: str, offset: int) -> bytes:
    return f"<gap {channel} {offset}>".encode()


@dataclass
class Item:
    """What the model keeps of an entry."""

    frame: bytes
    at: float
    channel: str | None
    key: str | None
    offset: int

    @property
    def policy(self) -> SlowPolicy:
        return "disconnect" if self.channel is None else POLICIES[self.channel]


class OutboxMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.outbox = Outbox(MAX_BYTES, MAX_AGE)
        self.items: list[Item] = []
        self.gaps: dict[str, int] = {}
        self.now = 100.0
        self.offset = 0
        self.alive = True
        self.dropped = 0

    @property
    def bytes(self) -> int:
        return sum(len(item.frame) for item in self.items)

    def drop(self, item: Item) -> None:
        assert item.channel is not None
        self.items.remove(item)
        self.gaps[item.channel] = item.offset
        self.dropped += 1

    @rule(
        channel=st.sampled_from([None, "cut", "old", "old", "new", "new"]),
        key=st.sampled_from([None, "a", "b"]),
        size=st.integers(1, 45),
    )
    def add(self, channel: str | None, key: str | None, size: int) -> None:
        if not self.alive:
            return
        self.offset += 1
        frame = (b"%d:" % self.offset).ljust(size + 4, b".")
        item = Item(frame, self.now, channel, key, self.offset)
        alive = self.outbox.add(Entry(frame, self.now, channel, item.policy, key, self.offset))
        if item.policy == "conflate":
            older = [other for other in self.items if (other.channel, other.key) == (channel, key)]
            self.dropped += len(older)
            self.items = [other for other in self.items if other not in older]
        self.items.append(item)
        for other in list(self.items):
            if self.bytes > MAX_BYTES and other.policy == "drop_oldest":
                self.drop(other)
        self.alive = self.bytes <= MAX_BYTES
        assert alive is self.alive

    @rule(seconds=st.sampled_from([0.0, 1.0, 5.0, 11.0]))
    def wait(self, seconds: float) -> None:
        self.now += seconds

    @rule()
    def overdue(self) -> None:
        oldest = self.now - MAX_AGE
        for item in list(self.items):
            if item.at <= oldest and item.policy == "drop_oldest":
                self.drop(item)
        waits = any(item.at <= oldest and item.policy == "disconnect" for item in self.items)
        assert self.outbox.overdue(self.now) is waits

    @rule()
    def pop(self) -> None:
        frames = self.outbox.pop(gap)
        if not self.items:
            assert sorted(frames) == sorted(gap(*told) for told in self.gaps.items())
            self.gaps.clear()
            return
        item = self.items.pop(0)
        told = [gap(item.channel, self.gaps.pop(item.channel))] if item.channel in self.gaps and item.channel else []
        assert frames == [*told, item.frame]

    @rule(size=st.integers(1, 200))
    def take(self, size: int) -> None:
        taken = self.outbox.take(size, gap)
        wanted = b""
        while len(wanted) < size and self.items:
            item = self.items.pop(0)
            if item.channel in self.gaps and item.channel:
                wanted += gap(item.channel, self.gaps.pop(item.channel))
            wanted += item.frame
        if len(wanted) < size and self.gaps:
            for told in self.gaps.items():
                assert gap(*told) in taken
            assert taken.startswith(wanted)
            self.gaps.clear()
        else:
            assert taken == wanted

    @invariant()
    def adds_up(self) -> None:
        assert len(self.outbox) == len(self.items)
        assert self.outbox.bytes == self.bytes
        assert sum(self.outbox.drops.values()) == self.dropped


TestOutbox = OutboxMachine.TestCase
TestOutbox.settings = settings(max_examples=80, stateful_step_count=50, deadline=None)


def test_a_conflating_channel_keeps_little_however_long_it_lasts() -> None:
    outbox = Outbox(1000, 0)
    for number in range(10_000):
        assert outbox.add(Entry(b"%05d" % number, 0.0, "new", "conflate", str(number % 3), number))
        assert len(outbox._entries) < 200
    assert outbox.take(1000, gap) == b"099970999809999"
    assert not outbox.overdue(1e9)


def test_age_off() -> None:
    outbox = Outbox(1000, 0)
    outbox.add(Entry(b"x", 0.0))
    assert not outbox.overdue(1e9)


def test_giving_up_counts_what_is_not_delivered() -> None:
    outbox = Outbox(1000, 0)
    for number in range(3):
        outbox.add(Entry(b"x", 0.0, "cut", "disconnect", None, number))
    outbox.give_up()
    assert (outbox.drops["disconnect"], outbox.bytes, len(outbox), outbox.pop(gap)) == (3, 0, 0, [])
