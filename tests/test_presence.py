"""Presence against a naive model, with the clock turned by hand."""

from __future__ import annotations

import tracemalloc
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from hubbub.presence import Elsewhere, Present, Roster

GRACE = 3.0


def test_the_first_device_joins_and_the_second_is_silent() -> None:
    roster = Roster()
    assert roster.join("alice", 10.0)
    assert not roster.join("alice", 11.0)
    assert roster.join("bob", 12.0)
    assert len(roster) == 2
    assert roster.snapshot() == {
        "alice": {"info": None, "devices": 2, "since": 10.0},
        "bob": {"info": None, "devices": 1, "since": 12.0},
    }


def test_a_user_leaves_with_the_last_device_after_the_grace() -> None:
    roster = Roster()
    roster.join("alice", 0.0)
    roster.join("alice", 0.0)
    assert not roster.leave("alice", 1.0, GRACE)
    assert roster.next_expiry() is None
    assert not roster.leave("alice", 2.0, GRACE)
    assert roster.next_expiry() == 5.0
    assert roster.devices("alice") == 0
    assert "alice" in roster  # listed until told otherwise
    assert roster.snapshot()["alice"]["devices"] == 0
    assert roster.expire(4.999) == []
    assert roster.expire(5.0) == ["alice"]
    assert roster.expire(6.0) == []
    assert "alice" not in roster
    assert roster.next_expiry() is None
    assert roster.join("alice", 7.0)


def test_coming_back_within_the_grace_is_silent_and_keeps_since() -> None:
    roster = Roster()
    roster.join("alice", 0.0, {"name": "Alice"})
    roster.leave("alice", 1.0, GRACE)
    assert not roster.join("alice", 3.0)
    assert roster.next_expiry() is None
    assert roster.expire(100.0) == []
    assert roster.snapshot() == {"alice": {"info": {"name": "Alice"}, "devices": 1, "since": 0.0}}


def test_coming_back_before_anybody_was_told_is_silent_too() -> None:
    roster = Roster()
    roster.join("alice", 0.0)
    roster.leave("alice", 0.0, GRACE)
    assert not roster.join("alice", 100.0)
    assert roster.expire(100.0) == []


def test_without_a_grace_the_user_leaves_at_once() -> None:
    roster = Roster()
    roster.join("alice", 0.0)
    roster.join("alice", 0.0)
    assert not roster.leave("alice", 1.0, 0.0)
    assert roster.leave("alice", 1.0, 0.0)
    assert len(roster) == 0


def test_leaving_without_being_here_changes_nothing() -> None:
    roster = Roster()
    assert not roster.leave("alice", 0.0, 0.0)
    roster.join("alice", 0.0)
    roster.leave("alice", 0.0, GRACE)
    assert not roster.leave("alice", 1.0, GRACE)
    assert not roster.leave("alice", 1.0, 0.0)
    assert roster.next_expiry() == GRACE
    assert roster.expire(GRACE) == ["alice"]


def test_the_newest_info_counts() -> None:
    roster = Roster()
    roster.join("alice", 0.0, {"name": "Alice"})
    roster.join("alice", 0.0)
    assert roster.snapshot()["alice"]["info"] == {"name": "Alice"}
    roster.join("alice", 0.0, {"name": "Alicia"})
    assert roster.snapshot()["alice"]["info"] == {"name": "Alicia"}


def test_a_snapshot_is_bounded_and_a_copy() -> None:
    roster = Roster()
    for number in range(10):
        roster.join(f"user{number}", float(number))
    assert list(roster.snapshot(3)) == ["user0", "user1", "user2"]
    assert roster.snapshot(0) == {}
    assert len(roster.snapshot(99)) == 10
    taken = roster.snapshot()
    roster.join("late", 99.0)
    assert "late" not in taken


def test_users_leave_in_the_order_of_their_graces() -> None:
    roster = Roster()
    for user, grace in (("slow", 9.0), ("quick", 1.0), ("middle", 5.0)):
        roster.join(user, 0.0)
        roster.leave(user, 0.0, grace)
    assert roster.next_expiry() == 1.0
    assert roster.expire(5.0) == ["quick", "middle"]
    assert roster.next_expiry() == 9.0


def test_flapping_does_not_grow_the_heap() -> None:
    roster = Roster()
    for number in range(100):
        roster.join(f"user{number}", 0.0)
    roster.leave("user0", 0.0, 1e9)  # a live entry that expires last, and one that blocks the top of the heap
    roster.leave("user1", 0.0, 1.0)
    now = 0.0
    for _ in range(20_000):
        now += 1e-6
        roster.leave("user2", now, GRACE)
        assert len(roster._heap) <= 2 * 3 + 16
        roster.join("user2", now)
        assert len(roster._heap) <= 2 * 2 + 16
    for _ in range(10):
        for number in range(2, 100):
            roster.leave(f"user{number}", now, GRACE)
        for number in range(2, 100):
            roster.join(f"user{number}", now)
    assert len(roster._heap) <= 2 * 2 + 16
    assert roster.expire(1.0) == ["user1"]


def test_churn_leaves_nothing_behind() -> None:
    roster = Roster()
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        for number in range(50_000):
            roster.join(f"user{number}", number)
            roster.leave(f"user{number}", number, 10.0)
            roster.expire(number)
        roster.expire(1e9)
        assert len(roster) == 0
        assert roster._heap == []
        assert tracemalloc.get_traced_memory()[0] - before < 20_000
    finally:
        tracemalloc.stop()


def test_a_user_costs_little() -> None:
    names = [f"user{number}" for number in range(10_000)]
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        roster = Roster()
        for number, name in enumerate(names):
            roster.join(name, float(number))
        assert (tracemalloc.get_traced_memory()[0] - before) / len(names) < 140
    finally:
        tracemalloc.stop()


def test_a_user_of_another_node_costs_little() -> None:
    names = [f"user{number}" for number in range(10_000)]
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        roster = Roster()
        roster.settle({"node": {name: Elsewhere(float(number), None, 1) for number, name in enumerate(names)}})
        assert (tracemalloc.get_traced_memory()[0] - before) / len(names) < 140
    finally:
        tracemalloc.stop()


def test_a_user_is_shown_as_all_nodes_have_them() -> None:
    roster = Roster()
    roster.join("alice", 20.0)
    roster.hear("n1", "alice", Elsewhere(10.0, {"name": "Alice"}, 2))
    roster.hear("n2", "bob", Elsewhere(5.0, None, 0))
    assert roster.snapshot() == {
        "bob": {"info": None, "devices": 0, "since": 5.0},
        "alice": {"info": {"name": "Alice"}, "devices": 3, "since": 10.0},
    }
    assert list(roster.snapshot(1)) == ["bob"]
    assert roster.user("alice") == roster.snapshot()["alice"]
    assert roster.own_user("alice") == {"info": None, "devices": 1, "since": 20.0}
    assert (len(roster), roster.own, roster.devices("alice")) == (2, 1, 1)


class RosterMachine(RuleBasedStateMachine):
    """A roster against two dicts that are searched in full at every step."""

    users = st.sampled_from(["alice", "bob", "carol", "dave"])

    def __init__(self) -> None:
        super().__init__()
        self.roster = Roster()
        self.now = 1000.0
        self.listed: dict[str, Present] = {}
        self.until: dict[str, float] = {}

    @rule(user=users, info=st.none() | st.fixed_dictionaries({"n": st.integers(0, 3)}))
    def join(self, user: str, info: dict[str, Any] | None) -> None:
        new = user not in self.listed
        entry = self.listed.setdefault(user, {"info": None, "devices": 0, "since": self.now})
        entry["devices"] += 1
        entry["info"] = entry["info"] if info is None else info
        self.until.pop(user, None)
        assert self.roster.join(user, self.now, info) is new

    @rule(user=users, grace=st.sampled_from([0.0, 1.0, 3.0, 3.0, 3.0]))
    def leave(self, user: str, grace: float) -> None:
        gone = False
        if user in self.listed and self.listed[user]["devices"]:
            self.listed[user]["devices"] -= 1
            if not self.listed[user]["devices"]:
                gone = grace == 0
                if gone:
                    del self.listed[user]
                else:
                    self.until[user] = self.now + grace
        assert self.roster.leave(user, self.now, grace) is gone

    @rule(passed=st.sampled_from([0.0, 0.5, 1.0, 5.0]))
    def pass_time(self, passed: float) -> None:
        self.now += passed

    @rule()
    def expire(self) -> None:
        gone = sorted((moment, user) for user, moment in self.until.items() if moment <= self.now)
        for _, user in gone:
            del self.listed[user], self.until[user]
        assert self.roster.expire(self.now) == [user for _, user in gone]

    @invariant()
    def same(self) -> None:
        assert self.roster.next_expiry() == min(self.until.values(), default=None)
        self.same_without_looking_at_expiry()

    def same_without_looking_at_expiry(self) -> None:
        assert list(self.roster.snapshot().items()) == list(self.listed.items())
        assert len(self.roster) == len(self.listed)
        assert len(self.roster._heap) <= 2 * len(self.until) + 16
        for user in ("alice", "bob", "carol", "dave"):
            assert (user in self.roster) is (user in self.listed)
            assert self.roster.devices(user) == (self.listed[user]["devices"] if user in self.listed else 0)


class LazyRosterMachine(RosterMachine):
    """The same where nobody asks for ``next_expiry``, so that stale entries stay in the heap as long as they can."""

    @invariant()
    def same(self) -> None:
        self.same_without_looking_at_expiry()


TestRoster = RosterMachine.TestCase
TestLazyRoster = LazyRosterMachine.TestCase
TestRoster.settings = TestLazyRoster.settings = settings(max_examples=150, stateful_step_count=80, deadline=None)
