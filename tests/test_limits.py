"""Rates against a naive token bucket in exact arithmetic; bounded memory; slots; addresses."""

from __future__ import annotations

import time
from collections import OrderedDict
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from hubbub.limits import KeyedRate, Rate, Slots, address_key

unhurried = settings(deadline=None)  # other work on the machine is no failure


def rate(per_second: float, burst: int) -> Rate:
    made = Rate.per_second(per_second, burst)
    assert made is not None
    return made


class Bucket:
    """The oracle: a token bucket in fractions."""

    def __init__(self, per_second: int, burst: int) -> None:
        self.rate, self.burst = Fraction(per_second), Fraction(burst)
        self.tokens, self.at = Fraction(burst), Fraction(0)

    def take(self, now: Fraction) -> Fraction:
        """0 when there was a token, else the seconds until there is one."""
        self.tokens = min(self.burst, self.tokens + (now - self.at) * self.rate)
        self.at = now
        if self.tokens >= 1:
            self.tokens -= 1
            return Fraction(0)
        return (1 - self.tokens) / self.rate


# -- one rate ------------------------------------------------------------------------------------------------------

TICK = 1024  # powers of two, so that floats are exact and the oracle must agree to the last bit


@unhurried
@given(
    st.sampled_from([1, 2, 4, 8, 16, 32, 64]),
    st.integers(1, 50),
    st.lists(st.integers(0, 2 * TICK) | st.just(0), max_size=200),
)
def test_a_rate_is_a_token_bucket(per_second: int, burst: int, gaps: list[int]) -> None:
    bucket, limit, tat, ticks = Bucket(per_second, burst), rate(per_second, burst), 0.0, 0
    for gap in gaps:
        ticks += gap
        wait = bucket.take(Fraction(ticks, TICK))
        verdict = limit.take(tat, ticks / TICK)
        if wait:
            assert -verdict == wait
        else:
            assert verdict > 0
            tat = verdict


@unhurried
@given(
    st.floats(0.01, 10_000),
    st.integers(1, 1000),
    st.floats(0, 1e7),
    st.lists(st.floats(0, 10), max_size=50),
)
def test_no_window_admits_more_than_the_burst_and_the_rate(
    per_second: float, burst: int, start: float, gaps: list[float]
) -> None:
    limit, tat, now, admitted = rate(per_second, burst), 0.0, start, 0
    for gap in gaps:
        now += gap / per_second
        verdict = limit.take(tat, now)
        if verdict > 0:
            tat, admitted = verdict, admitted + 1
    assert admitted <= burst + (now - start) * per_second + 0.01


@unhurried
@given(st.floats(0.01, 1000), st.integers(1, 500), st.floats(0, 1e7))
def test_exactly_the_burst_passes_at_once_and_the_rest_is_told_when(per_second: float, burst: int, now: float) -> None:
    limit, tat = rate(per_second, burst), 0.0
    for _ in range(burst):
        tat = limit.take(tat, now)
        assert tat > 0
    refused = limit.take(tat, now)
    assert refused < 0
    assert -refused == pytest.approx(1 / per_second, rel=1e-3, abs=1e-6)
    assert limit.take(tat, now - refused) > 0  # coming back when told to works
    assert limit.take(tat, now + 0.5 / per_second) < 0
    assert limit.take(tat, tat) > 0


def test_long_silence_gives_one_burst_not_more() -> None:
    limit, tat, passed = rate(10, 5), 0.0, 0
    for now in (0.0, 1_000_000.0):
        for _ in range(20):
            verdict = limit.take(tat, now)
            if verdict > 0:
                tat, passed = verdict, passed + 1
    assert passed == 10


def test_steady_traffic_at_the_rate_always_passes() -> None:
    limit, tat = rate(3, 1), 0.0
    for count in range(10_000):
        tat = limit.take(tat, 1e6 + count / 3)
        assert tat > 0


def test_the_parts_of_a_rate() -> None:
    assert rate(4, 3) == Rate(interval=0.25, tolerance=0.5)
    assert Rate.per_second(0, 0) is None
    with pytest.raises(AttributeError):
        rate(4, 3).interval = 1  # type: ignore[misc]


@pytest.mark.parametrize(("per_second", "burst"), [(-1, 1), (1, 0), (float("inf"), 1), (float("nan"), 1)])
def test_rates_that_make_no_sense(per_second: float, burst: int) -> None:
    with pytest.raises(ValueError, match="rate"):
        Rate.per_second(per_second, burst)


@pytest.mark.parametrize(("interval", "tolerance"), [(0, 0), (-1, 0), (float("inf"), 0), (1, -1), (1, float("nan"))])
def test_intervals_that_make_no_sense(interval: float, tolerance: float) -> None:
    with pytest.raises(ValueError, match="interval"):
        Rate(interval, tolerance)


# -- a rate per key ------------------------------------------------------------------------------------------------


@unhurried
@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, TICK)), max_size=100))
def test_every_key_has_its_own_bucket(takes: list[tuple[str, int]]) -> None:
    rates: KeyedRate[str] = KeyedRate(rate(4, 3))
    buckets = {key: Bucket(4, 3) for key in "abc"}
    ticks = 0
    for key, gap in takes:
        ticks += gap
        assert rates.take(key, ticks / TICK) == buckets[key].take(Fraction(ticks, TICK))
        if gap % 3 == 0:
            rates.sweep(ticks / TICK)  # forgetting what is idle changes no verdict
    rates.sweep(ticks / TICK + 1.0)
    assert len(rates) == 0


def test_a_refusal_does_not_cost_and_reconnecting_does_not_refill() -> None:
    rates: KeyedRate[str] = KeyedRate(rate(1, 2))
    assert [rates.take("alice", 10.0) for _ in range(4)] == [0.0, 0.0, 1.0, 1.0]
    assert rates.take("alice", 11.0) == 0.0
    assert rates.take("alice", 11.0) == 1.0


def test_idle_keys_are_forgotten_even_without_a_sweep() -> None:
    rates: KeyedRate[int] = KeyedRate(rate(10, 5))
    for count in range(100_000):
        rates.take(count, count / 1000)
    assert len(rates) <= 500  # those of the last tolerance + interval = 0.5 s


def test_no_key_outlives_its_last_message_by_more_than_a_burst() -> None:
    rates: KeyedRate[str] = KeyedRate(rate(1, 10))
    for _ in range(10):
        rates.take("busy", 0.0)
    for count in range(50):
        rates.take(f"idle{count}", 1.0)
    assert rates.sweep(5.0) == 0  # "busy" is oldest, and still counts
    assert len(rates) == 51
    assert rates.sweep(10.0) == 51
    assert rates.sweep(10.0) == 0


def test_at_capacity_the_key_admitted_longest_ago_goes() -> None:
    rates: KeyedRate[str] = KeyedRate(rate(1, 2), capacity=3)
    for key in ("a", "b", "c", "a"):
        rates.take(key, 0.0)
    assert rates.take("a", 0.0) == 1.0
    assert rates.take("d", 0.0) == 0.0  # "b" is evicted
    assert len(rates) == 3
    assert rates.take("a", 0.0) == 1.0  # who uses up the rate stays
    assert [rates.take("b", 0.0) for _ in range(3)] == [0.0, 0.0, 1.0]
    with pytest.raises(ValueError, match="capacity"):
        KeyedRate(rate(1, 2), capacity=0)


def test_memory_is_bounded_under_a_flood_of_keys() -> None:
    rates: KeyedRate[int] = KeyedRate(rate(0.001, 2), capacity=100)
    for key in range(10_000):
        rates.take(key, 0.0)
        assert len(rates) <= 100


# -- slots ---------------------------------------------------------------------------------------------------------


class SlotsMachine(RuleBasedStateMachine):
    """Slots against a list of who holds one."""

    def __init__(self) -> None:
        super().__init__()
        self.slots: Slots[str] = Slots()
        self.held: list[str] = []

    @rule(key=st.sampled_from("abc"), limit=st.integers(0, 3))
    def acquire(self, key: str, limit: int) -> None:
        free = limit == 0 or self.held.count(key) < limit
        assert self.slots.acquire(key, limit) is free
        if free:
            self.held.append(key)

    @rule(key=st.sampled_from("abc"))
    def release(self, key: str) -> None:
        if key in self.held:
            self.slots.release(key)
            self.held.remove(key)
        else:
            with pytest.raises(KeyError):
                self.slots.release(key)

    @invariant()
    def counts(self) -> None:
        assert len(self.slots) == len(set(self.held))
        assert all(self.slots.count(key) == self.held.count(key) for key in "abc")


TestSlots = SlotsMachine.TestCase
TestSlots.settings = unhurried


# -- addresses -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("host", "key"),
    [
        ("192.0.2.7", "192.0.2.7"),
        ("::ffff:192.0.2.7", "192.0.2.7"),
        ("::FFFF:c000:207", "192.0.2.7"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("2001:0DB8:0001:0002::1", "2001:db8:1:2::/64"),
        ("2001:db8:1:3::1", "2001:db8:1:3::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("::1", "::/64"),
        ("", ""),
        ("testclient", "testclient"),
        ("192.0.2.7:80", "192.0.2.7:80"),
        ("192.0.2.07", "192.0.2.07"),
        ("[::1]", "[::1]"),
        ("1.2.3.4, 5.6.7.8", "1.2.3.4, 5.6.7.8"),
        ("x" * 10_000, "x" * 64),
        (":" * 10_000, ":" * 64),
    ],
)
def test_address_key(host: str, key: str) -> None:
    assert address_key(host) == key


@unhurried
@given(st.text())
def test_any_text_has_a_short_key(host: str) -> None:
    assert len(address_key(host)) <= 64


# -- speed ---------------------------------------------------------------------------------------------------------


def test_taking_is_cheap() -> None:
    """The target is 150 ns; the bound here only catches another order of magnitude."""
    limit, rounds = rate(1000, 100), []
    take = limit.take
    for _ in range(5):
        started = time.perf_counter()
        tat = 0.0
        for now in range(10_000):
            tat = take(tat, now)
        rounds.append((time.perf_counter() - started) / 10_000)
    assert min(rounds) < 1.5e-6


def test_eviction_does_not_slow_down_with_age() -> None:
    rates: KeyedRate[int] = KeyedRate(rate(0.001, 2), capacity=20_000)
    assert isinstance(rates._tats, OrderedDict)  # a dict would walk over its deleted front at every eviction
    started = time.perf_counter()
    for key in range(60_000):
        rates.take(key, 0.0)
    assert time.perf_counter() - started < 3.0
