"""What goes to one partition of the engine: publications of a turn travel together, each exactly once.

A batch has a number, and the engine keeps the answers to a node's last batches. So a batch whose answer was lost with the
connection is sent again over the next one, and is carried out only if it was not.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any, Final, TypeAlias

import msgspec

from hubbub.brokers.valkey.keys import Partition
from hubbub.brokers.valkey.scripts import FENCE, PUBLISH, READ
from hubbub.brokers.valkey.shard import GONE, MOVING, Shard
from hubbub.brokers.valkey.wire import WireError
from hubbub.errors import BrokerUnavailable, ClientError, ErrorCode
from hubbub.messages import Position
from hubbub.ports import ONCE_SECONDS
from hubbub.settings import ChannelOptions

log = logging.getLogger("hubbub")

Done: TypeAlias = Callable[[Position | None, Exception | None], None]
"""Told the position, or why there is none."""

AT_ONCE: Final = 4
"""Batches that the engine has not answered. More would only make them smaller: what waits joins the next one."""
UNCONFIRMED: Final = 24
"""Batches under way, with those that wait for replicas: fewer than the engine remembers the answers of (32)."""
BATCH: Final = 256
"""Publications in one batch."""
BATCH_BYTES: Final = 1 << 20
KEEP_META: Final = 86_400
"""Seconds, at least, for which a channel's position is remembered after its last publication."""
MOVE_PAUSE: Final = 0.1
"""Seconds after which a partition whose slot is moving is tried again."""


RELAYED: Final = ChannelOptions(history_size=0)
"""Of publications that have their offsets from the store: the engine only hands them on."""


class NotKnown(BrokerUnavailable):
    """It was sent, and the engine has not said what became of it: it may be published."""


class Entry:
    """A publication on its way.

    :ivar body: as it is stored.
    :ivar done: told what became of it.
    :ivar deadline: the loop's seconds.
    """

    __slots__ = ("body", "channel", "deadline", "done", "once", "options", "version")

    def __init__(
        self,
        channel: str,
        body: bytes,
        options: ChannelOptions,
        done: Done,
        deadline: float,
        once: str | None = None,
        version: int | None = None,
    ) -> None:
        self.channel = channel
        self.body = body
        self.options = options
        self.done = done
        self.deadline = deadline
        self.once = once
        self.version = version


class Room:
    """How much may wait for the engine, over all partitions.

    :ivar count, bytes: what waits now.
    """

    __slots__ = ("bytes", "count", "limit", "limit_bytes")

    def __init__(self, limit: int, limit_bytes: int) -> None:
        self.limit = limit
        self.limit_bytes = limit_bytes
        self.count = self.bytes = 0

    def take(self, size: int) -> bool:
        """Make one wait, if there is room for it."""
        if self.count >= self.limit or self.bytes + size > self.limit_bytes:
            return False
        self.count += 1
        self.bytes += size
        return True

    def give(self, count: int, size: int) -> None:
        """Some do not wait any more."""
        self.count -= count
        self.bytes -= size


class _Batch:
    """:ivar reply: the engine has carried it out, and its replicas are waited for."""

    __slots__ = ("args", "deadline", "error", "groups", "keys", "number", "reply", "sent")

    def __init__(self, number: int, deadline: float, groups: list[list[Entry]]) -> None:
        self.number = number
        self.deadline = deadline
        self.groups = groups
        self.keys: list[str | bytes] = []
        self.args: list[Any] = []
        self.error: WireError | None = None
        self.reply: bytes | None = None
        self.sent = 0.0


class Outbound:
    """The way to one partition.

    :param shard_of: where it is now.
    :param node: this node's id.
    :param keeps: the way is for what has history. What has none goes another way, so that it waits neither for replicas
        nor for room in the engine's memory.
    :param time: unix seconds.
    """

    def __init__(
        self,
        shard_of: Callable[[Partition], Shard],
        partition: Partition,
        node: str,
        time: Callable[[], float],
        room: Room,
        *,
        keeps: bool,
        history_bytes: int,
    ) -> None:
        self._shard_of = shard_of
        self._partition = partition
        self._node = node
        self._keeps = keeps
        self._writer = partition.key("w", node if keeps else f"{node}-")
        self._time = time
        self._room = room
        self._history_bytes = history_bytes
        self._names = lru_cache(maxsize=16_384)(self._names_of)
        self._loop = asyncio.get_running_loop()
        self._queue: deque[Entry] = deque()
        self._local = 0
        self._under_way: deque[_Batch] = deque()
        self._repairs = 0
        self._repairing = False
        self._mending: asyncio.Task[None] | None = None
        self._number = 0
        self._scheduled = False
        self.stats = self.shard.stats

    @property
    def shard(self) -> Shard:
        return self._shard_of(self._partition)

    def add(self, entry: Entry) -> None:
        """Send a publication with the others of this turn.

        :raises ClientError: ``busy``: too many wait.
        """
        if not self._room.take(len(entry.body)):
            self.stats.full += 1
            raise ClientError(ErrorCode.BUSY, "too much waits for the engine", retry_after=1.0)
        self._queue.append(entry)
        self._local += entry.options.offline == "local"
        if not self._scheduled:
            self._scheduled = True
            self._loop.call_soon(self._flush)

    def __len__(self) -> int:
        return len(self._queue) + sum(len(group) for batch in self._under_way for group in batch.groups)

    def _flush(self) -> None:
        self._scheduled = False
        if self._repairing:
            return
        while self._queue and self._may_send():
            batch = self._next()
            self._under_way.append(batch)
            self._send(batch)

    def _may_send(self) -> bool:
        shard = self.shard
        if not shard.up or shard.main is None or not shard.main.open or len(self._under_way) >= UNCONFIRMED:
            return False
        return sum(batch.reply is None for batch in self._under_way) < AT_ONCE

    def _next(self) -> _Batch:
        """Take the next batch from the queue: groups of publications of one channel, each in its order."""
        self._number += 1
        groups: list[list[Entry]] = []
        last: dict[str, list[Entry]] = {}
        count = size = 0
        deadline = self._queue[0].deadline
        while self._queue and count < BATCH and size < BATCH_BYTES:
            entry = self._queue.popleft()
            if self._local:
                self._local -= entry.options.offline == "local"
            count += 1
            size += len(entry.body)
            single = entry.once is not None or entry.version is not None
            group = last.get(entry.channel)
            if group is None or single or group[0].options is not entry.options:
                group = []
                groups.append(group)
                if single:
                    last.pop(entry.channel, None)
                else:
                    last[entry.channel] = group
            group.append(entry)
        self._room.give(count, size)
        batch = _Batch(self._number, deadline, groups)
        self._describe(batch)
        return batch

    def _describe(self, batch: _Batch) -> None:
        """The keys and arguments of publish.lua, but for the first seven."""
        keys, args = batch.keys, batch.args
        base = f"{self._node[:8]}{batch.number:x}"  # a node's id is new at every start, so no epoch comes twice
        for group in batch.groups:
            first = group[0]
            options = first.options
            meta, history, fanout = self._names(first.channel)
            flags = ""
            more: list[Any] = []
            if options.history_size:
                flags = "h"
                keys += (meta, history)
                ttl = int(options.history_ttl * 1000)
                keep = max(KEEP_META, int(2 * options.history_ttl))
                more += (base, options.history_size, ttl, self._history_bytes, keep)
                if first.once is not None:
                    flags += "o"
                    keys.append(self._partition.key("o", f"{first.channel}\x00{first.once}"))
                    more.append(ONCE_SECONDS)
                if first.version is not None:
                    flags += "v"
                    more.append(first.version)
            elif options is RELAYED:
                flags = "r"
                more.append(self._node)
            args += (fanout, flags or "-", len(group), *more)
            args += [entry.body for entry in group]

    def _names_of(self, channel: str) -> tuple[bytes, bytes, bytes]:
        """A channel's meta, history, and pub/sub channel."""
        key = self._partition.key
        return key("m", channel).encode(), key("h", channel).encode(), key("c", channel).encode()

    def _send(self, batch: _Batch) -> None:
        wire = self.shard.main
        fence = self.shard.fences.get(self._partition.tag)
        if wire is None:
            return  # it is sent with the next connection
        if fence is None:
            self._went_wrong(batch, WireError("the partition is moving", "TRYAGAIN"))
            return
        batch.error = batch.reply = None
        batch.sent = self._loop.time()
        shard = self.shard
        keys = (self._partition.key("f"), self._writer, *batch.keys)
        # what is under way before it must be carried out before it; else it is refused (EARLY)
        oldest = self._under_way[0].number
        head = (*fence, batch.number, int(self._time()), shard.publish_verb, oldest, shard.connection)
        command = ("EVALSHA", PUBLISH.sha, len(keys), *keys, *head, *batch.args)
        wire.send(command, lambda reply, error: self._answered(batch, reply, error))

    def _answered(self, batch: _Batch, reply: Any, error: WireError | None) -> None:
        if error is not None:
            self._went_wrong(batch, error)
            return
        replicas = self.shard.replicas
        if replicas is None or not self._keeps:
            self._settle(batch, reply)
            return
        batch.reply = reply
        replicas.confirm(partial(self._confirmed, batch))
        if self._queue:
            self._flush()
        self._repair()

    def _confirmed(self, batch: _Batch) -> None:
        if batch.reply is not None:  # or it is sent again meanwhile
            self._settle(batch, batch.reply)

    def _settle(self, batch: _Batch, reply: bytes) -> None:
        try:
            self._under_way.remove(batch)
        except ValueError:
            return  # given up
        self._repairs = 0
        self.stats.batches += 1
        self.stats.seconds.add(self._loop.time() - batch.sent)
        for group, text in zip(batch.groups, reply.decode().split(";"), strict=True):
            if text[0] == ".":
                self.stats.repeated += 1
                text = text[3:]
            epoch, _, number = text.rpartition(" ")
            offset = int(number)
            if not offset:
                epoch = ""
            self.stats.published += len(group)
            for index, entry in enumerate(group):
                _tell(entry, Position(epoch, offset + index if offset else 0), None)
        if self._queue:
            self._flush()
        self._repair()

    def _went_wrong(self, batch: _Batch, error: WireError) -> None:
        if not error.code:
            return  # the connection is lost: it is sent again with the next one
        if error.code in GONE:
            self.shard.drop()
            return
        if error.code in ("FENCED", "NOSCRIPT", "EARLY") or error.code in MOVING:
            # those behind it fail too, or are carried out: all are in before any is sent again, in their order
            batch.error = error
            self._repairing = True
            self._repair()
            return
        try:
            self._under_way.remove(batch)
        except ValueError:
            return
        if error.code == "OOM":
            refusal: Exception = ClientError(
                ErrorCode.UNAVAILABLE, "the engine's memory is full: nothing can be published", retry_after=5.0
            )
        else:
            log.error("the engine refuses a batch: %s", error)
            refusal = NotKnown(f"the engine refuses: {error}")  # at whatever point of the script
        self._refuse(batch, refusal)
        self._flush()

    def _repair(self) -> None:
        """Once all that is under way has failed, or is answered: set things right, and send it again."""
        out = any(batch.error is None and batch.reply is None for batch in self._under_way)
        if self._repairing and self._mending is None and not out:
            moving = any(batch.error is not None and batch.error.code in MOVING for batch in self._under_way)
            # the first time at once; what does not help at once may help in a moment
            pause = MOVE_PAUSE if moving or self._repairs else 0.0
            self._repairs += 1
            self._mending = self._loop.create_task(self._repaired(pause))

    async def _repaired(self, pause: float) -> None:
        """Load the scripts and learn the fence again, then send what failed again."""
        try:
            if pause:
                await asyncio.sleep(pause)
            wire = self.shard.main
            if wire is not None:
                for script in (PUBLISH, READ, FENCE):
                    await wire.call("SCRIPT", "LOAD", script.text)
                await self.shard.fence(self._partition)
        except WireError as error:
            if error.code not in MOVING:
                log.warning("the engine cannot be set up: %s", error)
                self.shard.drop()
        finally:
            self._mending = None
            self._repairing = False
        if self.shard.up:
            self.again()

    def again(self) -> None:
        """The connection is there (again): send what has no answer, then go on."""
        self._repairing = False
        for batch in list(self._under_way):
            self._send(batch)
        self._flush()

    def give_up_local(self) -> None:
        """The engine is away: what was never sent, and has the option ``local``, is refused, in its order."""
        if not self._local:
            return
        kept: deque[Entry] = deque()
        local: list[Entry] = []
        for entry in self._queue:
            (local if entry.options.offline == "local" else kept).append(entry)
        self._queue, self._local = kept, 0
        for entry in local:
            self._room.give(1, len(entry.body))
            _tell(entry, None, BrokerUnavailable("the engine is away"))

    def sweep(self, now: float) -> None:
        """Give up what waited too long."""
        while self._queue and self._queue[0].deadline <= now:
            entry = self._queue.popleft()
            self._local -= entry.options.offline == "local"
            self._room.give(1, len(entry.body))
            self.stats.away += 1
            _tell(entry, None, BrokerUnavailable("the engine does not answer in time"))
        late = [batch for batch in self._under_way if batch.deadline <= now]
        for batch in late:
            self._under_way.remove(batch)
            self.stats.away += sum(map(len, batch.groups))
            lacking = batch.reply is not None
            what = "too few replicas of the engine have it" if lacking else "the engine does not answer in time"
            self._refuse(batch, NotKnown(what))
        self._repair()
        if late and self.shard.up and late[0].reply is None and now - late[0].sent > 1.0:
            self.shard.drop()  # it is connected, and does not answer

    def fail(self) -> None:
        """Nothing is sent any more."""
        refusal = BrokerUnavailable("the server stops")
        for batch in self._under_way:
            self._refuse(batch, NotKnown("the server stops"))
        self._under_way.clear()
        for entry in self._queue:
            self._room.give(1, len(entry.body))
            _tell(entry, None, refusal)
        self._queue.clear()
        self._local = 0

    @staticmethod
    def _refuse(batch: _Batch, error: Exception) -> None:
        for group in batch.groups:
            for entry in group:
                _tell(entry, None, error)


def _tell(entry: Entry, position: Position | None, error: Exception | None) -> None:
    try:
        entry.done(position, error)
    except Exception:  # the others of its batch wait, too
        log.exception("telling what became of a publication failed", extra={"channel": entry.channel})


def stored(publication: Any) -> bytes:
    """A publication as it is kept and sent: MessagePack, ending in its time (float64) and offset, which the scripts read."""
    return ENCODE(publication)


ENCODE: Final = msgspec.msgpack.Encoder().encode
