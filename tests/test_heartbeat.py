"""The wheel: every peer is visited once a period, and the dead are found in time."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hubbub.heartbeat import BUCKETS, Verdict, Wheel


class Peer:
    bucket = 0

    def __init__(self) -> None:
        self.seen = 0.0
        self.died = 0.0


def test_every_peer_is_visited_once_a_period_and_evenly() -> None:
    wheel: Wheel[Peer] = Wheel(25.0, 10.0)
    peers = [Peer() for _ in range(160)]
    for peer in peers:
        wheel.add(peer)
    assert len(wheel) == len(wheel.peers()) == 160
    visits = [wheel.turn() for _ in range(BUCKETS)]
    assert {len(visit) for visit in visits} == {10}
    assert Counter(peer for visit in visits for peer in visit) == Counter(peers)
    for peer in peers:
        wheel.discard(peer)
        wheel.discard(peer)
    assert len(wheel) == 0
    assert wheel.turn() == []


def test_a_visit_may_end_connections() -> None:
    wheel: Wheel[Peer] = Wheel(25.0, 10.0)
    for _ in range(BUCKETS * 2):
        wheel.add(Peer())
    for peer in wheel.turn():
        wheel.discard(peer)
    assert len(wheel) == BUCKETS * 2 - 2


@given(
    interval=st.floats(0.5, 100), timeout=st.floats(0.5, 100), silent_at=st.floats(0, 20), start=st.integers(0, BUCKETS)
)
def test_a_dead_peer_is_found_within_interval_and_timeout(
    interval: float, timeout: float, silent_at: float, start: int
) -> None:
    wheel: Wheel[Peer] = Wheel(interval, timeout)
    for _ in range(start):
        wheel.turn()
    peer = Peer()
    wheel.add(peer)
    now, pinged = 0.0, None
    peer.seen = silent_at
    while True:
        now += wheel.step
        if now < silent_at or peer not in wheel.turn():
            continue
        silence = now - silent_at
        verdict = wheel.judge(silence)
        if verdict is Verdict.PING and pinged is None:
            pinged = silence
        if verdict is Verdict.DEAD:
            break
        assert silence < interval + timeout + wheel.step
    slack = wheel.step + 1e-6
    assert interval + timeout - wheel.period - slack <= silence <= interval + timeout + slack
    assert pinged is not None, "it had its chance to answer"
    assert pinged <= interval + slack
    assert silence - pinged > 0


def test_silence_that_is_fine() -> None:
    wheel: Wheel[Peer] = Wheel(25.0, 10.0)
    assert wheel.judge(0) is Verdict.ALIVE
    assert wheel.judge(20) is Verdict.ALIVE
    assert wheel.judge(25) is Verdict.PING
    assert wheel.judge(35) is Verdict.DEAD


@pytest.mark.parametrize("timeout", [0.0, 10.0])
def test_off(timeout: float) -> None:
    wheel: Wheel[Peer] = Wheel(0.0, timeout)
    assert wheel.judge(1e9) is Verdict.ALIVE
    assert wheel.step > 0
