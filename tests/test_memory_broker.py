"""The broker of a single process: what the port promises, and that it keeps within its bounds."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from hubbub.brokers.memory import MemoryBroker, Once
from hubbub.errors import ClientError, ErrorCode
from hubbub.messages import Position
from hubbub.settings import ChannelOptions
from hubbub.stream import OVERHEAD, Publication
from tests.support import HandClock, settings_for

pytestmark = pytest.mark.anyio
OPTIONS = ChannelOptions(history_size=5, history_ttl=100)
BARE = ChannelOptions(history_size=0)


class Inlet:
    def __init__(self) -> None:
        self.got: list[tuple[str, int]] = []

    def deliver(self, channel: str, publication: Publication) -> None:
        self.got.append((channel, publication.offset))

    def lost(self, channel: str | None) -> None:
        raise AssertionError("this broker loses nothing")

    def renewed(self, channel: str, position: Position) -> None:
        raise AssertionError("this broker has one epoch")


async def started(**settings: Any) -> tuple[MemoryBroker, Inlet, HandClock]:
    clock, inlet = HandClock(), Inlet()
    broker = MemoryBroker(settings_for(**settings), clock)
    await broker.start(inlet)
    return broker, inlet, clock


def publication(clock: HandClock, size: int = 10) -> Publication:
    return Publication(b"", b"x" * size, at=clock.time())


async def test_append_and_fan_out_are_one_act() -> None:
    broker, inlet, clock = await started()
    first = await broker.publish("a", publication(clock), OPTIONS)
    second = await broker.publish("a", publication(clock), OPTIONS)
    other = await broker.publish("b", publication(clock), OPTIONS)
    assert (first.offset, second.offset, other.offset) == (1, 2, 1)
    assert first.epoch == second.epoch != other.epoch
    assert inlet.got == [("a", 1), ("a", 2), ("b", 1)]
    assert await broker.publish("bare", publication(clock), BARE) == Position("", 0)
    assert inlet.got[-1] == ("bare", 0)
    recovery = await broker.recover("a", Position(first.epoch, 1), 10, OPTIONS)
    assert (recovery.recovered, [p.offset for p in recovery.publications]) == (True, [2])


async def test_a_new_broker_is_a_new_epoch() -> None:
    broker, _, clock = await started()
    old = await broker.publish("a", publication(clock), OPTIONS)
    again, _, clock = await started()
    await again.publish("a", publication(clock), OPTIONS)
    recovery = await again.recover("a", old, 10, OPTIONS)
    assert not recovery.recovered
    assert recovery.position.epoch != old.epoch


async def test_a_position_given_to_a_reader_means_something_later() -> None:
    broker, _, clock = await started()
    empty = (await broker.recover("a", None, 10, OPTIONS)).position
    assert empty.offset == 0
    await broker.publish("a", publication(clock), OPTIONS)
    recovery = await broker.recover("a", empty, 10, OPTIONS)
    assert (recovery.recovered, len(recovery.publications)) == (True, 1)


async def test_idle_channels_are_forgotten_but_not_those_with_subscribers() -> None:
    broker, _, clock = await started()
    await broker.subscribe("kept")
    positions = {name: await broker.publish(name, publication(clock), OPTIONS) for name in ("kept", "left")}
    for _ in range(5):
        clock.advance(101)
        broker.sweep(clock.time())
    assert len(broker) == 1
    assert broker.bytes == 0
    assert (await broker.recover("kept", positions["kept"], 10, OPTIONS)).recovered
    assert not (await broker.recover("left", positions["left"], 10, OPTIONS)).recovered
    await broker.unsubscribe("kept")
    for _ in range(5):
        clock.advance(101)
        broker.sweep(clock.time())
    assert len(broker) == 0


async def test_a_channel_that_is_used_again_is_not_forgotten_too_soon() -> None:
    """Its readers hold positions for as long as its history lasts, from its last publication on."""
    broker, _, clock = await started()
    await broker.publish("a", publication(clock), OPTIONS)
    clock.advance(150)
    broker.sweep(clock.time())  # empty since now
    clock.advance(60)
    await broker.publish("a", publication(clock), OPTIONS)
    position = await broker.publish("a", publication(clock), OPTIONS)
    clock.advance(101)  # empty again, but only just
    broker.sweep(clock.time())
    assert (await broker.recover("a", position, 10, OPTIONS)).recovered


async def test_at_most_so_many_channels() -> None:
    broker, _, clock = await started(max_channels=3)
    for name in ("a", "b", "c"):
        await broker.publish(name, publication(clock), OPTIONS)
    await broker.publish("d", publication(clock), OPTIONS)  # the one published to longest ago goes
    assert len(broker) == 3
    assert (await broker.history("a", None, None, 10, OPTIONS))[1] == []
    for name in ("b", "c", "d"):
        await broker.subscribe(name)
    with pytest.raises(ClientError) as refused:
        await broker.publish("e", publication(clock), OPTIONS)
    assert refused.value.code is ErrorCode.TOO_MANY
    await broker.unsubscribe("c")
    await broker.publish("e", publication(clock), OPTIONS)
    assert len(broker) == 3


async def test_bytes_over_all_channels() -> None:
    broker, _, clock = await started(history_total_bytes=4096)
    for number in range(100):
        await broker.publish(f"c{number}", publication(clock, 1000), OPTIONS)
        assert broker.bytes <= 4096 + OVERHEAD + 1000
    assert len((await broker.history("c99", None, None, 10, OPTIONS))[1]) == 1
    position = (await broker.history("c0", None, None, 10, OPTIONS))[0]
    assert position.offset == 1, "a channel that lost its history goes on counting"
    assert not (await broker.recover("c0", Position(position.epoch, 0), 10, OPTIONS)).recovered


async def test_as_many_keys_as_there_is_room_for() -> None:
    """A key that were forgotten too soon would let something be published twice: further ones are refused instead."""
    once = Once(limit=3)
    for number in range(3):
        assert once.find("a", str(number), 1000.0 + number) is None
        once.note("a", str(number), Position("e", number), 1000.0 + number)
    with pytest.raises(ClientError) as refused:
        once.find("a", "3", 1010.0)
    assert refused.value.code is ErrorCode.BUSY
    assert refused.value.retry_after == 290.0, "then the oldest is due"
    assert once.find("a", "0", 1010.0) == Position("e", 0), "who tries again is answered all the same"
    assert once.find("a", "3", 1300.0) is None
    assert len(once) == 2
    once.note("b", "3", Position("e", 9), 1300.0)
    once.forget("a", after=1)
    assert [once.find("a", "1", 1300.0), once.find("b", "3", 1300.0)] == [Position("e", 1), Position("e", 9)]
    assert len(once) == 2


async def test_what_is_not_published_is_not_kept_nor_told() -> None:
    broker, inlet, clock = await started()
    first = await broker.publish("a", publication(clock), OPTIONS, once="k", version=3)
    assert await broker.publish("a", publication(clock), OPTIONS, once="k", version=4) == first
    assert await broker.publish("a", publication(clock), OPTIONS, once="l", version=3) == first
    assert inlet.got == [("a", 1)]
    assert broker.bytes == OVERHEAD + 10
    # "l" was not used, since its version was too old: with a newer one it is published
    assert (await broker.publish("a", publication(clock), OPTIONS, once="l", version=4)).offset == 2
    clock.advance(301)
    broker.sweep(clock.time())
    assert len(broker._once) == 0


async def test_a_version_goes_with_its_channel() -> None:
    broker, _, clock = await started()
    await broker.publish("a", publication(clock), OPTIONS, version=9)
    for _ in range(3):
        clock.advance(101)
        broker.sweep(clock.time())
    assert len(broker) == 0
    assert broker._versions == {}
    assert (await broker.publish("a", publication(clock), OPTIONS, version=1)).offset == 1


async def test_the_end_forgets_all_of_it() -> None:
    broker, inlet, clock = await started()
    old = await broker.publish("a", publication(clock), OPTIONS, once="k", version=9)
    await broker.stop()
    assert broker.bytes == len(broker) == 0
    await broker.start(inlet)
    new = await broker.publish("a", publication(clock), OPTIONS, once="k", version=9)
    assert new.offset == 1
    assert new.epoch != old.epoch


class BrokerMachine(RuleBasedStateMachine):
    """Whatever happens: the bytes add up, and the bounds hold."""

    def __init__(self) -> None:
        super().__init__()
        self.clock = HandClock()
        self.settings = settings_for(max_channels=4, history_total_bytes=2000, history_bytes=1024)
        self.broker = MemoryBroker(self.settings, self.clock)
        self.inlet = Inlet()
        self.run(self.broker.start(self.inlet))
        self.last: dict[tuple[str, str], int] = {}

    def run(self, coroutine: Any) -> Any:
        """The memory broker never waits."""
        try:
            coroutine.send(None)
        except StopIteration as stop:
            return stop.value
        raise AssertionError("it waited")

    names = st.sampled_from("abcdef")

    @rule(name=names, size=st.integers(0, 900))
    def publish(self, name: str, size: int) -> None:
        try:
            position = self.run(self.broker.publish(name, publication(self.clock, size), OPTIONS))
        except ClientError:
            assert len(self.broker) == 4
            return
        key = (name, position.epoch)
        assert position.offset == self.last.get(key, 0) + 1
        self.last[key] = position.offset
        assert self.inlet.got[-1] == (name, position.offset)

    @rule(name=names, version=st.integers(0, 4), key=st.sampled_from("xyz"))
    def publish_newer(self, name: str, version: int, key: str) -> None:
        told = len(self.inlet.got)
        try:
            position = self.run(
                self.broker.publish(name, publication(self.clock), OPTIONS, once=f"{key}{version}", version=version)
            )
        except ClientError:
            return
        if len(self.inlet.got) > told:
            assert position.offset == self.last.get((name, position.epoch), 0) + 1
            self.last[name, position.epoch] = position.offset

    @rule(name=names)
    def subscribe(self, name: str) -> None:
        self.run(self.broker.subscribe(name))

    @rule(name=names)
    def unsubscribe(self, name: str) -> None:
        self.run(self.broker.unsubscribe(name))

    @rule(name=names, back=st.integers(0, 6))
    def recover(self, name: str, back: int) -> None:
        for (channel, epoch), offset in list(self.last.items()):
            if channel != name:
                continue
            try:
                recovery = self.run(self.broker.recover(name, Position(epoch, max(0, offset - back)), 100, OPTIONS))
            except ClientError:
                return
            if recovery.recovered:
                offsets = [publication.offset for publication in recovery.publications]
                assert offsets == list(range(max(0, offset - back) + 1, offset + 1))

    @rule(seconds=st.sampled_from([1.0, 60.0, 101.0]))
    def wait(self, seconds: float) -> None:
        self.clock.advance(seconds)
        self.broker.sweep(self.clock.time())

    @invariant()
    def adds_up(self) -> None:
        assert self.broker.bytes == sum(history.bytes for history in self.broker._histories.values())
        assert self.broker.bytes <= 2000 + 1024
        assert len(self.broker) <= 4
        assert set(self.broker._idle) <= set(self.broker._histories)
        assert set(self.broker._versions) <= set(self.broker._histories)


TestBroker = BrokerMachine.TestCase
TestBroker.settings = hypothesis_settings(max_examples=50, stateful_step_count=40, deadline=None)
