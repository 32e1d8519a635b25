"""Reading a channel's history out of the engine: one read per channel and turn, however many ask."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any, Final, NamedTuple

import msgspec

from hubbub.brokers.valkey.keys import Partition
from hubbub.brokers.valkey.outbound import KEEP_META
from hubbub.brokers.valkey.scripts import READ
from hubbub.brokers.valkey.shard import Shard
from hubbub.brokers.valkey.wire import WireError
from hubbub.errors import BrokerUnavailable
from hubbub.messages import Position
from hubbub.settings import ChannelOptions
from hubbub.stream import PAGE_BYTES, Publication, Recovery

DECODE: Final = msgspec.msgpack.Decoder(Publication).decode
TRIES: Final = 5


class Meta(NamedTuple):
    """A channel's meta (meta.lua).

    :ivar ends: of older generations: the offset that was the newest when each was over.
    """

    base: str
    generation: str
    offset: int
    ends: dict[str, int]

    @property
    def epoch(self) -> str:
        return f"{self.base}.{self.generation}"

    def reaches(self, since: Position) -> bool:
        """Whether a position means the same here as where it was told: it is of this life of the channel, and nothing
        up to it was lost when the engine was restarted or a replica took over."""
        base, _, generation = since.epoch.rpartition(".")
        if base != self.base:
            return False
        if generation == self.generation:
            return since.offset <= self.offset
        end = self.ends.get(generation)
        return end is not None and since.offset <= end

    def fresh_after(self, since: Position) -> int | None:
        """After which offset all is new to a reader whose position does not reach; None: that cannot be known."""
        base, _, generation = since.epoch.rpartition(".")
        return 0 if base != self.base else self.ends.get(generation)

    @classmethod
    def parse(cls, text: bytes) -> Meta:
        base, generation, offset, _, _, _, *older = text.decode().split(" ")
        ends = {name: int(end) for name, _, end in (each.rpartition(":") for each in older if each)}
        return cls(base, generation, int(offset), ends)


class Read(NamedTuple):
    """What was read.

    :ivar first: the offset of the first entry.
    :ivar entries: the same objects for all who asked together.
    """

    meta: Meta
    first: int
    entries: list[Publication]


class _Asked(NamedTuple):
    since: int
    limit: int
    future: asyncio.Future[Read]


class Reader:
    """Reads the histories of a partition.

    :param base: makes the base of a new epoch.
    """

    def __init__(self, partition: Partition, shard_of: Callable[[Partition], Shard], base: Callable[[], str]) -> None:
        self._partition = partition
        self._shard_of = shard_of
        self._base = base
        self._asked: dict[tuple[str, ChannelOptions], list[_Asked]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._loop = asyncio.get_running_loop()

    async def recover(
        self, channel: str, since: Position | None, limit: int, options: ChannelOptions, now: float
    ) -> Recovery:
        """What a reader at ``since`` has missed: all of it or nothing."""
        if since is None:
            meta, _, _ = await self._ask(channel, options, -1, 0)
            return Recovery(Position(meta.epoch, meta.offset), [], False)
        meta, first, entries = await self._ask(channel, options, since.offset, limit)
        position = Position(meta.epoch, meta.offset)
        missed = meta.offset - since.offset
        if not meta.reaches(since):
            return Recovery(position, [], False, meta.fresh_after(since))
        if missed > limit or (missed > 0 and first > since.offset + 1):
            return Recovery(position, [], False)
        publications = entries[since.offset + 1 - first :] if missed > 0 else []
        if len(publications) != max(missed, 0) or (publications and publications[0].at <= now - options.history_ttl):
            return Recovery(position, [], False)
        return Recovery(position, publications, True)

    async def page(
        self, channel: str, after: int | None, before: int | None, limit: int, options: ChannelOptions, now: float
    ) -> tuple[Position, Sequence[Publication], bool]:
        """A page of history, oldest first; and whether there is more in its direction."""
        mode = "a" if after is not None else "b"
        meta, _, entries = await self._read(channel, options, after or 0, before or 0, limit + 1, mode)
        publications = [each for each in entries if each.at > now - options.history_ttl]
        more = len(publications) > limit
        if more:
            publications = publications[:limit] if after is not None else publications[-limit:]
        size = sum(publication.size for publication in publications)
        while size > PAGE_BYTES and len(publications) > 1:
            size -= publications.pop(-1 if after is not None else 0).size
            more = True
        return Position(meta.epoch, meta.offset), publications, more

    # -- one read for all that ask in a turn

    def _ask(self, channel: str, options: ChannelOptions, since: int, limit: int) -> asyncio.Future[Read]:
        future: asyncio.Future[Read] = self._loop.create_future()
        key = (channel, options)
        waiting = self._asked.get(key)
        if waiting is None:
            self._asked[key] = [_Asked(since, limit, future)]
            self._loop.call_soon(self._begin, key)
        else:
            waiting.append(_Asked(since, limit, future))
        return future

    def _begin(self, key: tuple[str, ChannelOptions]) -> None:
        asked = self._asked.pop(key)
        task = self._loop.create_task(self._answer(key[0], key[1], asked))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _answer(self, channel: str, options: ChannelOptions, asked: list[_Asked]) -> None:
        wanted = [each for each in asked if each.since >= 0]
        try:
            if wanted:
                low = min(each.since for each in wanted)
                read = await self._read(channel, options, low, 0, max(each.limit for each in wanted), "s")
            else:
                read = await self._read(channel, options, 0, 0, 0, "p")
        except Exception as error:
            for each in asked:
                if not each.future.done():
                    each.future.set_exception(error)
            return
        for each in asked:
            if not each.future.done():
                each.future.set_result(read)

    async def _read(
        self, channel: str, options: ChannelOptions, after: int, before: int, limit: int, mode: str
    ) -> Read:
        key = self._partition.key
        keys = (key("f"), key("m", channel), key("h", channel))
        keep = max(KEEP_META, int(2 * options.history_ttl))
        for _ in range(TRIES):
            shard = self._shard_of(self._partition)
            fence = shard.fences.get(self._partition.tag)
            if fence is None or not shard.up:
                break
            try:
                args = (fence[0], fence[1], self._base(), keep, after, before, limit, mode)
                # a position is of use only if it is known what of the publications up to it was heard
                reply: Any = await shard.run(READ, keys, args, in_order=mode == "p")
            except BrokerUnavailable as error:
                if "FENCED" not in str(error):
                    raise
                try:
                    await shard.fence(self._partition)
                except WireError:
                    break
                continue
            text, _, first, entries = reply
            return Read(Meta.parse(text), int(first), _publications(entries, int(first)))
        raise BrokerUnavailable("the engine is away")


def _publications(entries: Sequence[bytes], first: int) -> list[Publication]:
    publications = []
    for offset, entry in enumerate(entries, first):
        publication = DECODE(entry)
        publication.offset = offset
        publications.append(publication)
    return publications
