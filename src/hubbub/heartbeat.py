"""Who is still there: one wheel for all connections instead of a timer for each.

Sans-IO: :meth:`Wheel.turn` is called with ``now`` and returns the peers whose turn it is.
"""

from __future__ import annotations

from enum import Enum
from math import inf
from typing import Final, Generic, Protocol, TypeVar

BUCKETS: Final = 16


class Peer(Protocol):
    """What the wheel keeps of a connection: which bucket it is in."""

    bucket: int


P = TypeVar("P", bound=Peer)


class Verdict(Enum):
    """What silence means."""

    ALIVE = 0
    PING = 1
    DEAD = 2


class Wheel(Generic[P]):
    """Connections in buckets; each turn visits one bucket, so the work is spread evenly.

    :param interval: seconds of silence after which a peer is pinged; 0 = never.
    :ivar quiet: seconds of silence that mean nothing: only a longer one must be judged.
    :param timeout: further seconds of silence after which it is dead. A dead peer is found between
        ``interval + timeout - period`` and ``interval + timeout``.
    """

    __slots__ = ("_buckets", "_hand", "_next", "interval", "period", "quiet", "timeout")

    def __init__(self, interval: float, timeout: float) -> None:
        self.interval = interval
        self.timeout = timeout
        shortest = min(interval, timeout) if interval else 8.0
        self.period = min(4.0, shortest / 2)
        self.quiet = interval - self.period if interval else inf
        self._buckets: list[dict[P, None]] = [{} for _ in range(BUCKETS)]
        self._hand = 0
        self._next = 0

    @property
    def step(self) -> float:
        """Seconds between two turns."""
        return self.period / BUCKETS

    def __len__(self) -> int:
        return sum(map(len, self._buckets))

    def add(self, peer: P) -> None:
        """Put the peer into the next bucket, round robin."""
        self._next = (self._next + 1) % BUCKETS
        peer.bucket = self._next
        self._buckets[self._next][peer] = None

    def discard(self, peer: P) -> None:
        self._buckets[peer.bucket].pop(peer, None)

    def turn(self) -> list[P]:
        """The peers to look at now. Call it every :attr:`step` seconds."""
        self._hand = (self._hand + 1) % BUCKETS
        return list(self._buckets[self._hand])

    def judge(self, silence: float) -> Verdict:
        """What ``silence`` seconds without a byte mean for a peer that is visited every :attr:`period`."""
        if silence < self.quiet:
            return Verdict.ALIVE
        return Verdict.DEAD if silence >= self.interval + self.timeout - self.period else Verdict.PING

    def peers(self) -> list[P]:
        return [peer for bucket in self._buckets for peer in bucket]
