"""How fast and how many: rates (one float of state each), counted slots, and what counts as one address.

Sans-IO: ``now`` is an argument, in seconds of a clock that never goes back (monotonic), at least 0.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from ipaddress import IPv6Address, ip_address, ip_network
from typing import Final, Generic, TypeVar

_SLACK: Final = 1e-3  # of an interval: covers the rounding of sums of floats, so that a whole burst passes


@dataclass(frozen=True, slots=True)
class Rate:
    """A rate with a burst: the generic cell rate algorithm, in its virtual scheduling form.

    Equivalent to a token bucket that holds ``burst`` tokens and gains one per ``interval``, but its whole state is one
    float, the theoretical arrival time (*tat*): when the next message is due if they came evenly spaced. Start with
    0.0; once ``tat <= now`` it says nothing any more and may be forgotten. Source: ATM Forum, Traffic Management
    Specification 4.0 (af-tm-0056), section 4.4.3; ITU-T I.371 annex A.

    :param interval: seconds per message: 1 / rate.
    :param tolerance: seconds that a message may come before its due time: (burst - 1) * interval, so that exactly
        ``burst`` messages pass at once.
    """

    interval: float
    tolerance: float
    _margin: float = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not (0 < self.interval < math.inf and 0 <= self.tolerance < math.inf):
            raise ValueError("interval must be above 0 and tolerance at least 0, both finite")
        object.__setattr__(self, "_margin", self.tolerance + self.interval * _SLACK)

    @classmethod
    def per_second(cls, rate: float, burst: int) -> Rate | None:
        """``rate`` messages per second, ``burst`` of them at once; None (off) for a rate of 0.

        :raises ValueError: a negative or endless rate, or a burst below 1.
        """
        if rate == 0:
            return None
        if not 0 < rate < math.inf or burst < 1:
            raise ValueError("a rate must be positive and finite, its burst at least 1")
        return cls(1 / rate, (burst - 1) / rate)

    def take(self, tat: float, now: float) -> float:
        """Ask for one message at ``now``.

        :returns: the new tat (above 0, to be kept) when it conforms; else a negative number, and the old tat stays:
            minus the seconds after which it would conform.
        """
        if tat <= now:
            return now + self.interval
        if tat - now <= self._margin:
            return tat + self.interval
        return self.tolerance - (tat - now)


K = TypeVar("K", bound=Hashable)


class KeyedRate(Generic[K]):
    """One rate for each of many keys (users, say), in bounded memory.

    Keys are kept in the order of their last admitted message. Each new key drops up to two idle ones from the old
    end, so memory follows the keys that were active lately even without :meth:`sweep`. When ``capacity`` is reached
    all the same, the key that was admitted longest ago is evicted: at worst it gets a fresh burst early. A key that
    uses up its rate is the last to be evicted.

    :param capacity: keys remembered at most.
    """

    __slots__ = ("_capacity", "_rate", "_tats")

    def __init__(self, rate: Rate, capacity: int = 1 << 18) -> None:
        if capacity < 1:
            raise ValueError("capacity must be at least 1")
        self._rate = rate
        self._capacity = capacity
        self._tats: OrderedDict[K, float] = OrderedDict()

    def __len__(self) -> int:
        return len(self._tats)

    def take(self, key: K, now: float) -> float:
        """Ask for one message of ``key``: 0.0 when it conforms, else the seconds after which it would."""
        old = self._tats.get(key)
        tat = self._rate.take(0.0 if old is None else old, now)
        if tat < 0:
            return -tat
        if old is None:
            self._make_room(now)
        self._tats[key] = tat
        self._tats.move_to_end(key)
        return 0.0

    def sweep(self, now: float) -> int:
        """Forget idle keys and return how many; amortised O(forgotten).

        Stops at the first that is not idle, which is so for ``tolerance + interval`` seconds after its last message at
        most: no key outlives its last message by more than that and the time to the next sweep.
        """
        before = len(self._tats)
        while self._drop_idle(now):
            pass
        return before - len(self._tats)

    def _make_room(self, now: float) -> None:
        if self._drop_idle(now):
            self._drop_idle(now)
        if len(self._tats) >= self._capacity:
            self._tats.popitem(last=False)

    def _drop_idle(self, now: float) -> bool:
        if not self._tats:
            return False
        oldest = next(iter(self._tats))
        if self._tats[oldest] > now:
            return False
        del self._tats[oldest]
        return True


class Lease:
    """What one key may still spend on this node.

    :ivar credit: messages given or bought and not yet spent; below 0: spent, and not yet bought.
    :ivar asked: whether more is being bought now.
    :ivar until: before then no more is to be had (monotonic seconds).
    """

    __slots__ = ("asked", "credit", "since", "until")

    def __init__(self, credit: int, since: float) -> None:
        self.credit = credit
        self.since = since
        self.until = 0.0
        self.asked = False


PATIENCE: Final = 0.1
"""Seconds after which a key may ask again that has spent all it can while an answer is on its way."""


class Share:
    """This node's part in a rate that holds over all nodes together.

    What a key sends is counted elsewhere, for all nodes, in a bucket of the same rate and burst. Each node gives a key a
    little, :attr:`part`, in each :attr:`window` without counting it, and buys the rest from there: :attr:`chunk` at a
    time, and ahead of need. While an answer is on its way a key may go into debt, which is paid first of all. When
    nothing is to be had, it is refused.

    So over N nodes, in any T seconds after a rest, a key can send at most ``burst + rate * T`` messages that were bought,
    ``N * part`` in each window begun, and ``N * debt`` that are yet to be paid. :attr:`part` is a quarter of the burst
    divided by N, at least 1; :attr:`debt` the burst divided by N, at least ``at_once``; a window is as long as the burst
    takes to come back.

    :param rate: messages per second, above 0.
    :param burst: messages at once, at least 1.
    :param at_once: what a well-behaved key may send faster than any answer can come.
    :param want: told of a key for which to buy: once until :meth:`answered` or :meth:`unanswered`.

    :ivar away: nobody answers: everything passes here, and this node's own rate must do.
    :ivar denied: messages refused.
    :ivar alone: messages passed uncounted, because nobody answers.
    """

    def __init__(self, rate: float, burst: int, at_once: int, want: Callable[[str], None]) -> None:
        if not 0 < rate < math.inf or burst < 1:
            raise ValueError("a rate must be positive and finite, its burst at least 1")
        self.rate = rate
        self.burst = burst
        self.window = max(1.0, burst / rate)
        self.away = False
        self.denied = 0
        self.alone = 0
        self._worth = min(burst, max(1, math.ceil(rate * _PAUSE)))
        self._at_once = min(at_once, burst)
        self._want = want
        self._leases: dict[str, Lease] = {}  # the oldest first
        self.spread(1)

    def __len__(self) -> int:
        """How many keys have a lease."""
        return len(self._leases)

    def spread(self, nodes: int) -> None:
        """Say over how many nodes the rate holds, this one included."""
        self.part = max(1, self.burst // (4 * nodes))
        self.chunk = max(self.part, self.burst // 32)
        self.debt = max(self._at_once, self.burst // nodes)
        self._low = self.part // 2

    def take(self, key: str, now: float) -> float:
        """Ask for one message: 0.0 when it may be sent, else the seconds after which it may."""
        lease = self._leases.get(key)
        if lease is not None and lease.credit > self._low:
            lease.credit -= 1
            return 0.0
        return self._look(key, lease, now)

    def _look(self, key: str, lease: Lease | None, now: float) -> float:
        if self.away:
            self.alone += 1
            return 0.0
        if lease is None:
            lease = self._leases[key] = Lease(self.part, now)
        if lease.credit <= self._low and not lease.asked and now >= lease.until:
            lease.asked = True
            self._want(key)
        if lease.credit > 0 or (lease.asked and lease.credit > -self.debt):
            lease.credit -= 1
            return 0.0
        self.denied += 1
        return PATIENCE if lease.asked else lease.until - now

    def wanted(self, key: str) -> int:
        """How many to buy for a key: its debt, and some ahead."""
        return min(self.burst, self.chunk - min(0, self._leases[key].credit))

    def answered(self, key: str, wanted: int, count: int, ahead: float, now: float) -> None:
        """``count`` of those wanted were to be had.

        :param ahead: seconds until the key's bucket is full again.
        """
        lease = self._leases[key]
        lease.asked = False
        lease.credit += count
        if count < wanted:
            need = min(self.burst, self._worth - min(0, lease.credit))
            lease.until = now + max(0.0, ahead - (self.burst - need) / self.rate) + _TICK

    def unanswered(self, key: str) -> None:
        """It cannot be known whether more is to be had, and what was spent meanwhile is forgiven."""
        lease = self._leases[key]
        lease.asked = False
        lease.credit = max(0, lease.credit)

    def sweep(self, now: float) -> None:
        """Forget leases that have lasted for a window: keys that go on get a new one. Debts are kept, and paid."""
        while self._leases:
            key, lease = next(iter(self._leases.items()))
            if lease.since + self.window > now:
                return
            del self._leases[key]
            if lease.asked or (lease.credit < 0 and not self.away):
                lease.since = now
                self._leases[key] = lease
                if not lease.asked and now >= lease.until:
                    lease.asked = True
                    self._want(key)


_PAUSE: Final = 0.25  # seconds' worth that a key waits for that was refused: not to ask for each message
_TICK: Final = 1e-3  # clocks are not the same


class Slots(Generic[K]):
    """How many of something each key has (connections per user or address). Keys with none are forgotten."""

    __slots__ = ("_counts",)

    def __init__(self) -> None:
        self._counts: dict[K, int] = {}

    def __len__(self) -> int:
        """How many keys have at least one."""
        return len(self._counts)

    def count(self, key: K) -> int:
        """How many ``key`` has."""
        return self._counts.get(key, 0)

    def acquire(self, key: K, limit: int) -> bool:
        """Take one for ``key``; False, and nothing changes, when it has ``limit`` already (0 = off, still counted)."""
        count = self._counts.get(key, 0)
        if limit and count >= limit:
            return False
        self._counts[key] = count + 1
        return True

    def release(self, key: K) -> None:
        """Give one back.

        :raises KeyError: ``key`` has none; a fault of the caller, which would otherwise free somebody else's later.
        """
        count = self._counts[key]
        if count > 1:
            self._counts[key] = count - 1
        else:
            del self._counts[key]


MAX_KEY_LENGTH: Final = 64


def address_key(host: str) -> str:
    """What counts as one address: an IPv4 address as it is, also when mapped into IPv6 (RFC 4291 section 2.5.5.2);
    of an IPv6 address its /64, since that is what one customer has at least (RFC 6177).

    Anything else (a Unix socket, ``testclient``) comes back as it is, cut to 64 characters.
    """
    if ":" not in host:
        return host[:MAX_KEY_LENGTH]  # the usual case: parsing it would cost more than all the rest
    try:
        address = ip_address(host[:MAX_KEY_LENGTH])
    except ValueError:
        return host[:MAX_KEY_LENGTH]
    if not isinstance(address, IPv6Address):
        return str(address)
    if address.ipv4_mapped is not None:
        return str(address.ipv4_mapped)
    return str(ip_network((int(address), 64), strict=False))
