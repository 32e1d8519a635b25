"""Fan-out over fake links: batches of a turn, slices of large channels, and who gets what when subscribers change."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hubbub import channel as channel_module
from hubbub.batch import Batch
from hubbub.channel import Channel, Fanout
from hubbub.messages import JSON, MSGPACK, Codec
from hubbub.settings import ChannelOptions
from hubbub.stream import Publication


class FakeLane:
    """Gives every link the publications of a batch."""

    def __init__(self, codec: Codec = JSON) -> None:
        self.codec = codec
        self.calls = 0

    def deliver(self, links: Iterable[Any], batch: Batch, merge: bool) -> None:
        self.calls += 1
        for link in links:
            link.got += [publication.offset for publication, _ in batch.for_link(link, self.codec)]


class FakeLink:
    def __init__(self, lane: FakeLane) -> None:
        self.lane = lane
        self.got: list[int] = []


class Loop:
    """Runs what was scheduled when it is told to."""

    def __init__(self) -> None:
        self.asked = 0
        self.fanout = Fanout(self.schedule)

    def schedule(self) -> None:
        self.asked += 1

    def turn(self) -> None:
        self.asked = 0
        self.fanout.turn()

    def run(self) -> int:
        turns = 0
        while self.asked:
            self.turn()
            turns += 1
            assert turns < 1000
        return turns


@pytest.fixture
def small_slices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(channel_module, "SLICE", 4)


def publication(offset: int) -> Publication:
    return Publication(b'{"n":', b"}", offset=offset)


def channel_of(*links: FakeLink, name: str = "c") -> Channel:
    made = Channel(name, ChannelOptions(presence=False))
    for link in links:
        made.add(link)  # type: ignore[arg-type]  # as much of a link as this takes
    return made


def test_a_turn_makes_one_batch_of_a_channel() -> None:
    lane, loop = FakeLane(), Loop()
    links = [FakeLink(lane) for _ in range(3)]
    channel = channel_of(*links)
    for offset in (1, 2, 3):
        loop.fanout.add(channel, publication(offset), None)
    assert loop.asked == 1
    assert loop.run() == 1
    assert [link.got for link in links] == [[1, 2, 3]] * 3
    assert lane.calls == 1
    assert (loop.fanout.batches, loop.fanout.publications, loop.fanout.deliveries) == (1, 3, 9)
    assert channel.batch is None


def test_excluded_links_get_the_rest() -> None:
    lane, loop = FakeLane(), Loop()
    one, two = FakeLink(lane), FakeLink(lane)
    channel = channel_of(one, two)
    loop.fanout.add(channel, publication(1), one)  # type: ignore[arg-type]
    loop.fanout.add(channel, publication(2), None)
    loop.run()
    assert (one.got, two.got) == ([2], [1, 2])


def test_who_comes_gets_none_of_the_batch_and_who_goes_all_of_it() -> None:
    lane, loop = FakeLane(), Loop()
    old, new = FakeLink(lane), FakeLink(lane)
    channel = channel_of(old)
    loop.fanout.add(channel, publication(1), None)
    loop.fanout.seal(channel)
    channel.add(new)  # type: ignore[arg-type]
    loop.fanout.add(channel, publication(2), None)
    loop.fanout.seal(channel)
    channel.discard(old)  # type: ignore[arg-type]
    loop.fanout.add(channel, publication(3), None)
    loop.run()
    assert (old.got, new.got) == ([1, 2], [2, 3])
    assert not channel.empty
    channel.discard(new)  # type: ignore[arg-type]
    assert channel.empty
    assert channel.lanes == {}


def test_large_channels_go_in_slices_and_others_get_in_between(small_slices: None) -> None:
    lane, loop = FakeLane(), Loop()
    many = [FakeLink(lane) for _ in range(10)]
    few = [FakeLink(lane) for _ in range(2)]
    large, little = channel_of(*many), channel_of(*few, name="d")
    loop.fanout.add(large, publication(1), None)
    loop.turn()
    assert sum(len(link.got) for link in many) == 4
    loop.fanout.add(little, publication(7), None)
    loop.fanout.add(large, publication(2), None)
    assert loop.run() > 1
    assert [link.got for link in many] == [[1, 2]] * 10
    assert [link.got for link in few] == [[7]] * 2
    assert not large.waiting
    assert loop.asked == 0


def test_everyone(small_slices: None) -> None:
    lanes = [FakeLane(JSON), FakeLane(MSGPACK)]
    loop = Loop()
    links = [FakeLink(lanes[number % 2]) for number in range(11)]
    batch = Batch("", "disconnect")
    batch.add(Publication(b"{}"))
    grouped: Any = {lane: [link for link in links if link.lane is lane] for lane in lanes}
    loop.fanout.everyone(batch, grouped.items())
    loop.run()
    assert [link.got for link in links] == [[0]] * 11


def test_going_and_coming_back_between_two_slices_brings_nothing_twice(small_slices: None) -> None:
    """The position that it gets when it comes back already covers what still waits."""
    lane, loop = FakeLane(), Loop()
    links = [FakeLink(lane) for _ in range(10)]
    channel = channel_of(*links)
    loop.fanout.add(channel, publication(1), None)
    loop.turn()
    late = next(link for link in links if not link.got)
    loop.fanout.seal(channel)
    channel.discard(late)  # type: ignore[arg-type]
    loop.fanout.seal(channel)
    channel.add(late)  # type: ignore[arg-type]  # told: you are at offset 1
    loop.fanout.add(channel, publication(2), None)
    loop.run()
    assert late.got == [2]
    assert sum(link.got == [1, 2] for link in links) == 9


steps = st.lists(
    st.one_of(
        st.tuples(st.just("publish"), st.integers(0, 1)),
        st.tuples(st.just("join"), st.integers(0, 11)),
        st.tuples(st.just("leave"), st.integers(0, 11)),
        st.tuples(st.just("turn"), st.just(0)),
    ),
    max_size=60,
)


@given(steps=steps)
def test_nobody_misses_or_repeats_anything(steps: list[tuple[str, int]]) -> None:
    """Whatever the order of publishing, joining and leaving: a stay's publications, in order, without holes."""
    original, channel_module.SLICE = channel_module.SLICE, 3  # type: ignore[misc]
    try:
        lane, loop = FakeLane(), Loop()
        channels = [channel_of(name="a"), channel_of(name="b")]
        links = [FakeLink(lane) for _ in range(12)]
        offset = 0
        # per link: where its last stay in channel 0 began; it leaves for good, as a closed connection does
        began: dict[int, int] = {}
        ended: dict[int, int] = {}
        published: list[int] = []
        for what, number in steps:
            if what == "publish":
                offset += 1
                loop.fanout.add(channels[number], publication(offset), None)
                if number == 0:
                    published.append(offset)
            elif what == "turn":
                loop.turn()
            else:
                loop.fanout.seal(channels[0])
                if what == "join" and number not in began:
                    channels[0].add(links[number])  # type: ignore[arg-type]
                    began[number] = offset
                elif what == "leave" and number in began and number not in ended:
                    channels[0].discard(links[number])  # type: ignore[arg-type]
                    ended[number] = offset
        loop.run()
        for number, link in enumerate(links):
            if number not in began:
                assert link.got == []
                continue
            due = [n for n in published if began[number] < n <= ended.get(number, offset)]
            if number in ended:
                assert link.got == due[: len(link.got)], "what a slice had left when it went may be missing, at the end"
            else:
                assert link.got == due
    finally:
        channel_module.SLICE = original  # type: ignore[misc]


def test_batches_are_made_once_per_codec() -> None:
    batch = Batch("c", "disconnect")
    for offset in (1, 2):
        batch.add(publication(offset))
    assert batch.joined(JSON) == b'\x81\x07{"n":1}\x81\x07{"n":2}'
    assert batch.joined(MSGPACK) == b"\x82\x04\x81\xa1n\x01\x82\x04\x81\xa1n\x02"
    for codec in (JSON, MSGPACK):
        assert batch.joined(codec) is batch.joined(codec)
