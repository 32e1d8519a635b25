"""What a slow reader gets: a bounded queue per connection, and a named policy for when it is full.

Sans-IO. The transport fills it while its socket does not take bytes, and empties it when it does again.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable
from typing import Final

from hubbub.settings import SlowPolicy


class Entry:
    """One whole frame that waits. ``channel`` is None for replies, which are never dropped."""

    __slots__ = ("at", "channel", "frame", "key", "offset", "policy")

    def __init__(
        self,
        frame: bytes,
        at: float,
        channel: str | None = None,
        policy: SlowPolicy = "disconnect",
        key: str | None = None,
        offset: int = 0,
    ) -> None:
        self.frame = frame
        self.at = at
        self.channel = channel
        self.policy = policy
        self.key = key
        self.offset = offset


DROPPED: Final = b""
"""The frame of an entry that was conflated or dropped; skipped when the outbox is emptied."""


class Outbox:
    """Frames for a reader that does not keep up.

    :param max_bytes: frames beyond this are handled by the policy of their channel.
    :param max_age: seconds after which a waiting frame means that the reader is too slow; 0 = off.
    :param drops: counts what is not delivered, by reason.
    """

    __slots__ = ("_blanks", "_entries", "_gaps", "_newest", "bytes", "drops", "max_age", "max_bytes")

    def __init__(self, max_bytes: int, max_age: float, drops: Counter[str] | None = None) -> None:
        self.max_bytes = max_bytes
        self.max_age = max_age
        self.bytes = 0
        self.drops: Counter[str] = Counter() if drops is None else drops
        self._blanks = 0
        self._entries: deque[Entry] = deque()
        self._newest: dict[tuple[str, str], Entry] = {}
        self._gaps: dict[str, int] = {}

    def __len__(self) -> int:
        return len(self._entries) - self._blanks

    def add(self, entry: Entry) -> bool:
        """Queue a frame. False: the reader is too slow for its channel's policy and must be disconnected."""
        if entry.policy == "conflate" and entry.channel is not None:
            self._conflate(entry, entry.channel)
        self._entries.append(entry)
        self.bytes += len(entry.frame)
        if self.bytes > self.max_bytes:
            self._drop_oldest()
        return self.bytes <= self.max_bytes

    def _conflate(self, entry: Entry, channel: str) -> None:
        name = (channel, entry.key or "")
        older = self._newest.get(name)
        if older is not None:
            self._blank(older, "conflated")
            self._trim()
        self._newest[name] = entry

    def _drop_oldest(self) -> None:
        for entry in self._entries:
            if self.bytes <= self.max_bytes:
                break
            self._drop(entry)
        self._trim()

    def _drop(self, entry: Entry) -> None:
        if entry.policy == "drop_oldest" and entry.channel is not None and entry.frame:
            self._gaps[entry.channel] = max(entry.offset, self._gaps.get(entry.channel, 0))
            self._blank(entry, "drop_oldest")

    def _blank(self, entry: Entry, reason: str) -> None:
        if entry.frame:
            self.drops[reason] += 1
            self._blanks += 1
            self.bytes -= len(entry.frame)
            entry.frame = DROPPED

    def _trim(self) -> None:
        entries = self._entries
        while entries and not entries[0].frame:
            entries.popleft()
            self._blanks -= 1
        if self._blanks > 64 and self._blanks > len(entries) // 2:
            self._entries = deque(entry for entry in entries if entry.frame)
            self._blanks = 0

    def give_up(self) -> None:
        """The reader is disconnected: count what it will not get."""
        self.drops["disconnect"] += len(self)
        self._entries.clear()
        self._blanks = self.bytes = 0

    def overdue(self, now: float) -> bool:
        """True when the oldest frame waits for longer than ``max_age``; droppable frames are dropped first."""
        if not self.max_age:
            return False
        oldest = now - self.max_age
        for entry in self._entries:
            if entry.at > oldest:
                break
            self._drop(entry)
        self._trim()
        waiting = next((entry for entry in self._entries if entry.frame and entry.policy != "conflate"), None)
        return waiting is not None and waiting.at <= oldest

    def take(self, max_bytes: int, gap: Callable[[str, int], bytes]) -> bytes:
        """Remove and return whole frames, about ``max_bytes`` of them (at least one frame); empty when there are none.

        :param gap: builds the frame that tells of dropped publications of a channel, up to an offset; it is put
            before the next frame of that channel.
        """
        chunks: list[bytes] = []
        size = 0
        while size < max_bytes:
            frames = self.pop(gap)
            if not frames:
                break
            chunks += frames
            size += sum(map(len, frames))
        return b"".join(chunks)

    def pop(self, gap: Callable[[str, int], bytes]) -> list[bytes]:
        """Remove and return the next frame, with the gap that belongs before it; empty when there is none."""
        entries = self._entries
        while entries:
            entry = entries.popleft()
            if not entry.frame:
                self._blanks -= 1
                continue
            self.bytes -= len(entry.frame)
            if entry.channel is None:
                return [entry.frame]
            if entry.policy == "conflate":
                self._newest.pop((entry.channel, entry.key or ""), None)
            if entry.channel in self._gaps:
                return [gap(entry.channel, self._gaps.pop(entry.channel)), entry.frame]
            return [entry.frame]
        gaps = [gap(channel, offset) for channel, offset in self._gaps.items()]
        self._gaps.clear()
        return gaps
