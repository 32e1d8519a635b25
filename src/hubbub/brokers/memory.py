"""The broker of a single process: history in memory, fan-out to the one hub there is."""

from __future__ import annotations

import secrets
from collections import OrderedDict
from collections.abc import Sequence
from itertools import islice
from typing import Final

from hubbub.errors import ClientError, ErrorCode
from hubbub.messages import Position
from hubbub.ports import ONCE_SECONDS, Clock, Inlet, Peers
from hubbub.settings import ChannelOptions, Settings
from hubbub.stream import History, Publication, Recovery

ONCE_KEYS: Final = 100_000
"""Idempotency keys that are remembered at the same time: at most 60 MB of them. Beyond: ``busy``."""


class Once:
    """What was published with an idempotency key, for :data:`~hubbub.ports.ONCE_SECONDS`.

    A key that were forgotten sooner would let something be published twice. So beyond ``limit`` keys, further ones are
    refused until the oldest is due.

    :param limit: how many keys.
    """

    __slots__ = ("_limit", "_noted")

    def __init__(self, limit: int = ONCE_KEYS) -> None:
        self._limit = limit
        # in the order of their expiry
        self._noted: OrderedDict[tuple[str, str], tuple[Position, float]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._noted)

    def find(self, channel: str, key: str, now: float) -> Position | None:
        """Where it was published, or None: it may be now, and then is to be noted.

        :param now: monotonic seconds.
        :raises ClientError: ``busy``: no further key can be remembered.
        """
        self.expire(now)
        found = self._noted.get((channel, key))
        if found is not None:
            return found[0]
        if len(self._noted) >= self._limit:
            wait = next(iter(self._noted.values()))[1] - now
            raise ClientError(ErrorCode.BUSY, "too many idempotency keys are in use", retry_after=max(1.0, wait))
        return None

    def note(self, channel: str, key: str, position: Position, now: float) -> None:
        """It was published there, at ``now`` in monotonic seconds."""
        self._noted[channel, key] = position, now + ONCE_SECONDS

    def expire(self, now: float) -> None:
        """Forget what is due."""
        while self._noted:
            name, (_, until) = next(iter(self._noted.items()))
            if until > now:
                break
            del self._noted[name]

    def forget(self, channel: str, after: int = -1) -> None:
        """Forget what was published on a channel after an offset (by default: all of it): it was lost."""
        for name in [name for name, (at, _) in self._noted.items() if name[0] == channel and at.offset > after]:
            del self._noted[name]


class MemoryBroker:
    """Keeps bounded histories; loses them with the process (its epoch is new at every start, so readers are told).

    Bounds: per channel by :class:`ChannelOptions` and ``history_bytes``; over all channels by ``history_total_bytes``
    and ``max_channels``. Beyond those, the channels that were published to longest ago lose their history first; a
    forgotten channel starts a new epoch, so a channel with subscribers is never forgotten. Idempotency keys have a bound
    of their own (:class:`Once`); of versions there is at most one number per channel, which goes with its history.
    """

    def __init__(self, settings: Settings, clock: Clock) -> None:
        self._settings = settings
        self._clock = clock
        self._inlet: Inlet | None = None
        # least recently published first
        self._histories: OrderedDict[str, History] = OrderedDict()
        self._idle: dict[str, float] = {}
        self._wanted: set[str] = set()
        self._once = Once()
        self._versions: dict[str, int] = {}
        self.bytes = 0

    async def start(self, inlet: Inlet) -> None:
        self._inlet = inlet

    async def stop(self) -> None:
        self._inlet = None
        self._histories.clear()
        self._idle.clear()
        self._wanted.clear()
        self._once = Once()
        self._versions.clear()
        self.bytes = 0

    async def publish(
        self,
        channel: str,
        publication: Publication,
        options: ChannelOptions,
        *,
        once: str | None = None,
        version: int | None = None,
    ) -> Position:
        assert self._inlet is not None, "the broker was not started"
        if not options.history_size:
            self._inlet.deliver(channel, publication)
            return Position("", 0)
        history = self._history(channel, options)
        if once is not None or version is not None:
            there = self._there(channel, history, once, version)
            if there is not None:
                return there
        self._histories.move_to_end(channel)
        if self._idle:
            self._idle.pop(channel, None)
        self.bytes += history.append(publication)
        if self.bytes > self._settings.history_total_bytes:
            self._shed(channel)
        position = Position(history.epoch, publication.offset)
        if once is not None:
            self._once.note(channel, once, position, self._clock.monotonic())
        self._inlet.deliver(channel, publication)
        return position

    def _there(self, channel: str, history: History, once: str | None, version: int | None) -> Position | None:
        """The position to answer where it is not to be published; else its version is taken.

        :raises ClientError: ``busy``.
        """
        if once is not None and (first := self._once.find(channel, once, self._clock.monotonic())) is not None:
            return first
        if version is not None:
            if version <= self._versions.get(channel, -1):
                return history.position
            self._versions[channel] = version
        return None

    async def relay(self, channel: str, publications: Sequence[Publication]) -> None:
        assert self._inlet is not None, "the broker was not started"
        deliver = self._inlet.deliver
        for publication in publications:
            deliver(channel, publication)

    async def subscribe(self, channel: str) -> None:
        self._wanted.add(channel)  # there is one node, and it gets everything; but these must keep their epoch

    async def unsubscribe(self, channel: str) -> None:
        self._wanted.discard(channel)

    async def recover(self, channel: str, since: Position | None, limit: int, options: ChannelOptions) -> Recovery:
        if not options.history_size:
            return Recovery(Position("", 0), [], False)
        history = self._histories.get(channel)
        if history is None:
            # a position must mean something later, so from here the channel has an epoch; max_channels bounds how many
            history = self._history(channel, options)
        now = self._clock.time()
        before = history.bytes
        recovery = history.since(since, limit, now)
        self.bytes += history.bytes - before
        return recovery

    async def history(
        self, channel: str, after: int | None, before: int | None, limit: int, options: ChannelOptions
    ) -> tuple[Position, Sequence[Publication], bool]:
        history = self._histories.get(channel)
        if history is None:
            return Position("", 0), [], False
        held = history.bytes
        page, more = history.page(after, before, limit, self._clock.time())
        self.bytes += history.bytes - held
        return history.position, page, more

    def sweep(self, now: float) -> None:
        """Expire a share of the channels; forget those that were empty for as long as their ttl."""
        self._once.expire(self._clock.monotonic())
        share = max(64, len(self._histories) // 16)
        for channel in [name for name, _ in zip(self._histories, range(share), strict=False)]:
            history = self._histories[channel]
            self.bytes += history.expire(now)
            if len(history):
                self._histories.move_to_end(channel)
                self._idle.pop(channel, None)
            elif channel not in self._wanted and now - self._idle.setdefault(channel, now) >= max(history.ttl, 60.0):
                self.forget(channel)
            else:
                self._histories.move_to_end(channel)

    def __len__(self) -> int:
        return len(self._histories)

    def _history(self, channel: str, options: ChannelOptions) -> History:
        history = self._histories.get(channel)
        if history is None:
            limit = self._settings.max_channels
            if limit and len(self._histories) >= limit:
                self._make_room()
            history = History(
                secrets.token_hex(4), options.history_size, options.history_ttl, self._settings.history_bytes
            )
            self._histories[channel] = history
        return history

    def _make_room(self) -> None:
        for channel in islice(self._histories, 256):
            if channel not in self._wanted:
                self.forget(channel)
                return
        raise ClientError(ErrorCode.TOO_MANY, "too many channels are in use", retry_after=10.0)

    def forget(self, channel: str) -> None:
        """Lose a channel's history: who asks next finds a new epoch."""
        history = self._histories.pop(channel, None)
        if history is not None:
            self.bytes += history.clear()
        self._idle.pop(channel, None)
        self._versions.pop(channel, None)

    def _shed(self, keep: str) -> None:
        for channel in list(self._histories):
            if self.bytes <= self._settings.history_total_bytes:
                break
            if channel != keep:
                self.bytes += self._histories[channel].clear()

    @property
    def healthy(self) -> bool:
        return self._inlet is not None

    @property
    def peers(self) -> Peers | None:
        return None
