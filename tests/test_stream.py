"""History against a naive model: a list of everything, filtered anew for each question."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from hubbub.messages import Position
from hubbub.stream import OVERHEAD, History, Publication

SIZE, TTL, MAX_BYTES = 6, 10.0, 4 * (OVERHEAD + 50)


class HistoryMachine(RuleBasedStateMachine):
    """Time only goes forward; the model keeps (offset, at, tail) of all publications, and forgets by the same words."""

    def __init__(self) -> None:
        super().__init__()
        self.history = History("e", SIZE, TTL, MAX_BYTES)
        self.now = 1000.0
        self.kept: list[tuple[int, float, int]] = []
        self.offset = 0
        self.reported = 0

    def forget(self) -> None:
        self.kept = [entry for entry in self.kept if entry[1] > self.now - TTL][-SIZE:]

    @rule(size=st.integers(0, 300))
    def append(self, size: int) -> None:
        self.offset += 1
        publication = Publication(b"head", b"t" * size, at=self.now)
        self.reported += self.history.append(publication)
        assert publication.offset == self.offset
        assert publication.payload == b"head%d" % self.offset + b"t" * size
        self.kept.append((self.offset, self.now, size + OVERHEAD))
        self.forget()
        while sum(entry[2] for entry in self.kept) > MAX_BYTES and len(self.kept) > 1:
            del self.kept[0]

    @rule(seconds=st.sampled_from([0.0, 0.5, 3.0, TTL - 0.5, TTL, 30.0]))
    def wait(self, seconds: float) -> None:
        self.now += seconds

    @rule()
    def expire(self) -> None:
        change = self.history.expire(self.now)
        assert change <= 0
        self.reported += change
        self.forget()

    @rule()
    def clear(self) -> None:
        self.reported += self.history.clear()
        self.kept = []

    @rule(back=st.integers(-2, 10), limit=st.integers(1, 8), epoch=st.sampled_from(["e", "e", "e", "other"]))
    def since(self, back: int, limit: int, epoch: str) -> None:
        offset = max(0, self.offset - back)
        before = self.history.bytes
        recovery = self.history.since(Position(epoch, offset), limit, self.now)
        self.reported += self.history.bytes - before
        self.forget()
        assert recovery.position == Position("e", self.offset)
        missed = list(range(offset + 1, self.offset + 1))
        there = [entry[0] for entry in self.kept]
        possible = epoch == "e" and offset <= self.offset and set(missed) <= set(there) and len(missed) <= limit
        assert recovery.recovered is possible
        assert [publication.offset for publication in recovery.publications] == (missed if possible else [])

    @rule()
    def since_nothing(self) -> None:
        before = self.history.bytes
        recovery = self.history.since(None, 100, self.now)
        self.reported += self.history.bytes - before
        self.forget()
        assert (recovery.recovered, recovery.publications) == (False, [])

    @precondition(lambda self: self.offset)
    @rule(
        after=st.none() | st.integers(0, 40),
        before=st.none() | st.integers(0, 40),
        limit=st.integers(1, 8),
    )
    def page(self, after: int | None, before: int | None, limit: int) -> None:
        held = self.history.bytes
        page, more = self.history.page(after, before, limit, self.now)
        self.reported += self.history.bytes - held
        self.forget()
        low = -1 if after is None else after
        high = self.offset + 1 if before is None else before
        matching = [entry[0] for entry in self.kept if low < entry[0] < high]
        wanted = matching[:limit] if after is not None else matching[-limit:]
        assert [publication.offset for publication in page] == wanted
        assert more is (len(matching) > limit)

    @invariant()
    def adds_up(self) -> None:
        assert self.history.bytes == sum(publication.size for publication in self.history)
        assert self.history.bytes == self.reported
        assert [p.offset for p in self.history] == [entry[0] for entry in self.kept] or len(self.history) >= len(
            self.kept
        )
        assert self.history.position == Position("e", self.offset)
        assert len(self.history) <= SIZE


TestHistory = HistoryMachine.TestCase
TestHistory.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)


def test_a_publication_without_history_has_no_hole() -> None:
    publication = Publication(b'{"offset":0}')
    assert publication.payload == b'{"offset":0}'
    assert publication.size == OVERHEAD


def test_one_publication_larger_than_the_bound_is_kept() -> None:
    history = History("e", 10, 10.0, 100)
    history.append(Publication(b"", b"x" * 1000, at=1.0))
    assert len(history) == 1
    history.append(Publication(b"", b"y", at=2.0))
    assert [publication.offset for publication in history] == [2]
