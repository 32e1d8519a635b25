"""The recent past of one channel: positions, bounded history, and what a reader that comes back has missed.

Sans-IO: time is an argument, nothing here blocks.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from itertools import islice

from msgspec import Struct

from hubbub.messages import Position

OVERHEAD = 160
"""Bytes that a kept publication costs beside its payload (the object, its deque slot, its strings); an estimate."""

PAGE_BYTES = 1 << 19
"""Bytes of one page of history; at least one publication is in it, however large."""


class Publication(Struct, gc=False, array_like=True):
    """One published thing, as brokers store it and hubs deliver it.

    The payload is the JSON text of the wire message with a hole where the engine writes the offset:
    ``head + offset + tail``. A publication without history (``offset`` 0) has no hole: ``head`` is the whole text.

    :ivar key: what ``conflate`` keeps the newest of.
    :ivar user: who published it, or None for the server.
    :ivar origin: the session that must not get it (``exclude_self``), or None.
    :ivar at: unix seconds of its publication.
    :ivar offset: 1, 2, 3, … in its channel; 0 for what is not kept.
    """

    head: bytes
    tail: bytes = b""
    key: str | None = None
    user: str | None = None
    origin: str | None = None
    # the last two, in this order: the engine's scripts find them from the end
    at: float = 0.0
    offset: int = 0

    @property
    def payload(self) -> bytes:
        """The wire message as JSON text."""
        return b"%b%d%b" % (self.head, self.offset, self.tail) if self.offset else self.head

    @property
    def size(self) -> int:
        """Bytes that keeping it costs. Heads are shared between the publications of a channel."""
        return len(self.tail) + OVERHEAD


class Recovery:
    """The answer to "what have I missed since …".

    :ivar position: where the reader is once it has taken ``publications``.
    :ivar recovered: True when they are exactly what was missed; False when that cannot be had (or nothing was asked).
    :ivar fresh: where it did not recover since the epoch is another one: after this offset, all of the new epoch is new to
        the reader too, so it can be had after the gap. None: nothing is known.
    """

    __slots__ = ("fresh", "position", "publications", "recovered")

    def __init__(
        self, position: Position, publications: list[Publication], recovered: bool, fresh: int | None = None
    ) -> None:
        self.position = position
        self.publications = publications
        self.recovered = recovered
        self.fresh = fresh


def related(one: str, other: str) -> bool:
    """Whether two epochs are of the same life of a channel, ``<life>.<generation>``: then positions of one may mean
    something in the other."""
    life, dot, _ = one.rpartition(".")
    return bool(dot) and other.startswith(life + ".")


class History:
    """A channel's last publications: at most ``size`` of them, ``ttl`` seconds old, ``max_bytes`` in all.

    The offset goes on counting when the kept ones age away, so a reader that was there can tell that it missed some.
    """

    __slots__ = ("_kept", "bytes", "epoch", "max_bytes", "offset", "size", "ttl")

    def __init__(self, epoch: str, size: int, ttl: float, max_bytes: int) -> None:
        self.epoch = epoch
        self.size = size
        self.ttl = ttl
        self.max_bytes = max_bytes
        self.offset = 0
        self.bytes = 0
        self._kept: deque[Publication] = deque()

    def __len__(self) -> int:
        return len(self._kept)

    @property
    def position(self) -> Position:
        return Position(self.epoch, self.offset)

    def append(self, publication: Publication) -> int:
        """Give the publication the next offset and keep it. Returns the change of :attr:`bytes`."""
        publication.offset = self.offset = self.offset + 1
        kept = self._kept
        kept.append(publication)
        change = len(publication.tail) + OVERHEAD
        oldest = publication.at - self.ttl
        while len(kept) > self.size or kept[0].at <= oldest or (self.bytes + change > self.max_bytes and len(kept) > 1):
            change -= len(kept.popleft().tail) + OVERHEAD
        self.bytes += change
        return change

    def expire(self, now: float) -> int:
        """Forget what is older than the ttl. Returns the change of :attr:`bytes` (never above 0)."""
        before = self.bytes
        kept, oldest = self._kept, now - self.ttl
        while kept and kept[0].at <= oldest:
            self.bytes -= kept.popleft().size
        return self.bytes - before

    def clear(self) -> int:
        """Forget all kept publications, but not the offset. Returns the change of :attr:`bytes`."""
        before, self.bytes = self.bytes, 0
        self._kept.clear()
        return -before

    def since(self, since: Position | None, limit: int, now: float) -> Recovery:
        """What came after ``since``: all of it, or nothing and ``recovered`` False. Never a part."""
        self.expire(now)
        top = self.position
        if since is not None and since.epoch != self.epoch:
            return Recovery(top, [], False, None if related(since.epoch, self.epoch) else 0)
        if since is None or since.offset > self.offset:
            return Recovery(top, [], False)
        missed = self.offset - since.offset
        if missed > len(self._kept) or missed > limit:
            return Recovery(top, [], False)
        return Recovery(top, list(islice(self._kept, len(self._kept) - missed, None)), True)

    def page(self, after: int | None, before: int | None, limit: int, now: float) -> tuple[list[Publication], bool]:
        """At most ``limit`` publications with ``after < offset < before``, oldest first, and whether more match.

        With ``after`` the page starts there; without it the page ends at ``before`` (or at the newest).
        """
        self.expire(now)
        kept = self._kept
        if not kept:
            return [], False
        first = kept[0].offset
        low = max(first, (after if after is not None else 0) + 1)
        high = min(self.offset, (before if before is not None else self.offset + 1) - 1)
        if low > high:
            return [], False
        total = high - low + 1
        if total > limit:
            if after is not None:
                high = low + limit - 1
            else:
                low = high - limit + 1
        page = list(islice(kept, low - first, high - first + 1))
        whole = len(page)
        size = sum(publication.size for publication in page)
        while size > PAGE_BYTES and len(page) > 1:
            size -= page.pop(-1 if after is not None else 0).size
        return page, total > limit or len(page) < whole

    def __iter__(self) -> Iterator[Publication]:
        return iter(self._kept)
