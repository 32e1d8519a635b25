"""The broker of a single process: history in memory, fan-out to the one hub there is."""

from __future__ import annotations

import secrets
from collections import OrderedDict
from collections.abc import Sequence
from itertools import islice

from hubbub.errors import ClientError, ErrorCode
from hubbub.messages import Position
from hubbub.ports import Clock, Inlet, Peers
from hubbub.settings import ChannelOptions, Settings
from hubbub.stream import History, Publication, Recovery


class MemoryBroker:
    """Keeps bounded histories; loses them with the process (its epoch is new at every start, so readers are told).

    Bounds: per channel by :class:`ChannelOptions` and ``history_bytes``; over all channels by ``history_total_bytes``
    and ``max_channels``. Beyond those, the channels that were published to longest ago lose their history first; a
    forgotten channel starts a new epoch, so a channel with subscribers is never forgotten.
    """

    def __init__(self, settings: Settings, clock: Clock) -> None:
        self._settings = settings
        self._clock = clock
        self._inlet: Inlet | None = None
        # least recently published first
        self._histories: OrderedDict[str, History] = OrderedDict()
        self._idle: dict[str, float] = {}
        self._wanted: set[str] = set()
        self.bytes = 0

    async def start(self, inlet: Inlet) -> None:
        self._inlet = inlet

    async def stop(self) -> None:
        self._inlet = None
        self._histories.clear()
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
        self._histories.move_to_end(channel)
        if self._idle:
            self._idle.pop(channel, None)
        self.bytes += history.append(publication)
        if self.bytes > self._settings.history_total_bytes:
            self._shed(channel)
        self._inlet.deliver(channel, publication)
        return Position(history.epoch, publication.offset)

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
