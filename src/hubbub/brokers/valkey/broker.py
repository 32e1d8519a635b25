"""The broker over Valkey or Redis: many nodes, one history.

Publish: the publications of a turn go to the engine as one call of a script that numbers them, keeps them and hands them to
all subscribed nodes: one act (:mod:`hubbub.brokers.valkey.outbound`). A node is subscribed to a channel only while somebody
on it is. What it hears comes in the engine's order; whatever is missed while a connection is away is had from history.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable, Coroutine, Sequence
from functools import partial
from typing import Any, Final

import msgspec

from hubbub.brokers.valkey.address import target_of
from hubbub.brokers.valkey.keys import Keys, Partition
from hubbub.brokers.valkey.outbound import RELAYED, Done, Entry, NotKnown, Outbound, Room, stored
from hubbub.brokers.valkey.past import Reader
from hubbub.brokers.valkey.peers import ValkeyPeers
from hubbub.brokers.valkey.shard import Shard, check_hopeless
from hubbub.brokers.valkey.topology import Topology
from hubbub.errors import BrokerUnavailable, ClientError
from hubbub.messages import Position
from hubbub.metrics import EngineStats
from hubbub.ports import Clock, Inlet, Peers
from hubbub.settings import ChannelOptions, Settings
from hubbub.stream import Publication, Recovery

NOWHERE: Final = Position("", 0)
PATIENCE: Final = 1.5
"""Seconds for which a publication waits for an engine that went away; after them, it is refused at once."""
_decode: Final = msgspec.msgpack.Decoder(list[Publication]).decode


class _Line:
    """A channel that this node is subscribed to.

    :ivar epoch: of the positions that were told or heard last; b"" for none.
    :ivar empty: nothing was ever published there, up to now: since its position was told, this node would have heard it.
    :ivar followed: it was asked who is there: from then on, what changes is wanted.
    """

    __slots__ = ("broker", "empty", "epoch", "followed", "name")

    def __init__(self, broker: ValkeyBroker, name: str) -> None:
        self.broker = broker
        self.name = name
        self.epoch = b""
        self.empty = False
        self.followed = False

    def __call__(self, payload: bytes) -> None:
        self.broker.arrived(self, payload)


class ValkeyBroker:
    """Histories, fan-out between nodes, and the other nodes (:attr:`peers`), over a shared engine.

    :param settings: ``valkey_…``.
    :param clock: the clocks.

    :ivar node: this node's id: new at every start, unguessable.
    :ivar keys: what things are called in the engine.
    :ivar stats: what it did.
    :ivar on_up: called after each connection of a shard with whether the engine there is another one than before.
    """

    def __init__(self, settings: Settings, clock: Clock) -> None:
        self._settings = settings
        self.clock = clock
        self.node = _new_id()
        self._own = self.node.encode()
        self.target = target_of(settings.valkey_url)
        # pub/sub knows no databases: what is in another one must have other names
        db = self.target.server.db
        prefix = f"{settings.valkey_prefix}:{db}" if db else settings.valkey_prefix
        self.keys = Keys(prefix, cluster=self.target.kind == "cluster")
        self.stats = EngineStats()
        self.on_up: list[Callable[[Shard, bool], None]] = []
        self._inlet: Inlet | None = None
        self._topology: Topology | None = None
        self._loop: asyncio.AbstractEventLoop | None = None  # asking which one runs costs a system call
        self._lines: dict[str, _Line] = {}
        self._keeping: list[Outbound] = []
        self._passing: list[Outbound] = []
        self._readers: list[Reader] = []
        self._tasks: set[asyncio.Task[Any]] = set()
        self._bases = 0
        self._room = Room(settings.valkey_queue, settings.valkey_queue_bytes)
        self._started = False
        self._peers = ValkeyPeers(self)

    @property
    def peers(self) -> Peers | None:
        return self._peers

    @property
    def healthy(self) -> bool:
        return self._topology is not None and self._topology.healthy

    @property
    def shards(self) -> list[Shard]:
        """The primaries that this node is connected to, or tries to be."""
        return self._topology.shards if self._topology is not None else []

    def shard_of(self, partition: Partition) -> Shard:
        """Where a partition is now."""
        assert self._topology is not None, "the broker was not started"
        return self._topology.shard_of(partition)

    def spawn(self, work: Coroutine[Any, Any, Any]) -> None:
        """Run something that nobody waits for."""
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    # -- life

    async def start(self, inlet: Inlet) -> None:
        """Connect. An engine that cannot be reached yet is waited for a moment; then the node starts without it, and is
        not ready until it is there.

        :raises ConfigurationError: the engine is there and does not let us in.
        """
        self._inlet = inlet
        self._loop = asyncio.get_running_loop()
        settings = self._settings
        topology = self._topology = Topology(
            self.target,
            self.keys,
            self.node,
            timeout=settings.valkey_timeout,
            stats=self.stats,
            replicas=settings.valkey_replicas,
        )
        topology.on_up.append(self._up)
        topology.on_sweep.append(self._sweep)
        await topology.start()
        self._room = Room(settings.valkey_queue, settings.valkey_queue_bytes)
        for partition in self.keys.partitions:
            for ways, keeps in ((self._keeping, True), (self._passing, False)):
                ways.append(
                    Outbound(
                        topology.shard_of,
                        partition,
                        self.node,
                        self.clock.time,
                        self._room,
                        keeps=keeps,
                        history_bytes=settings.history_bytes,
                    )
                )
            self._readers.append(Reader(partition, topology.shard_of, self._base))
        await topology.came_up(settings.valkey_timeout)
        for shard in topology.shards:
            if shard.hopeless:
                await self.stop()
                check_hopeless(shard)
        self._started = True
        await self._peers.start()

    async def stop(self) -> None:
        if self._topology is None:
            return
        await self._peers.stop()
        for outbound in self._ways:
            outbound.fail()
        await self._topology.stop()
        for task in list(self._tasks):
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=1.0)
        self._topology = self._loop = None
        self._inlet = None
        self._started = False
        self._keeping.clear()
        self._passing.clear()
        self._readers.clear()
        self._lines.clear()
        self.node = _new_id()
        self._own = self.node.encode()  # it may be started again: as another node

    @property
    def _ways(self) -> list[Outbound]:
        return self._keeping + self._passing

    @staticmethod
    def _is_away(shard: Shard, now: float) -> bool:
        return not shard.up and now - shard.down_since > PATIENCE

    def _base(self) -> str:
        self._bases += 1
        return f"{self.node[:8]}r{self._bases:x}"

    def _up(self, shard: Shard, changed: bool) -> None:
        """Connected, and subscribed again to all that is wanted."""
        for partition in shard.partitions:
            for ways in (self._keeping, self._passing):
                if partition.index < len(ways):
                    ways[partition.index].again()
        if self._inlet is not None and self._started:
            lines = list(self._lines.values())
            if len(self.shards) > 1:  # the channels of the others are as they were
                lines = [line for line in lines if self.keys.partition_of(line.name) in shard.partitions]
            for line in lines:
                line.empty = False
            self.stats.checked += len(lines)
            if len(self.shards) == 1:
                self._inlet.lost(None)
            for line in lines if len(self.shards) > 1 else ():
                self._inlet.lost(line.name)
        for tell in self.on_up:
            tell(shard, changed)

    def _sweep(self, now: float) -> None:
        for outbound in self._ways:
            if self._is_away(outbound.shard, now):
                outbound.give_up_local()
            outbound.sweep(now)
        self.stats.waiting = sum(map(len, self._ways))
        self.stats.waiting_bytes = self._room.bytes
        self.stats.subscriptions = len(self._lines)

    def sweep(self, now: float) -> None:
        """Nothing: the engine forgets by itself."""

    # -- publishing

    async def publish(
        self,
        channel: str,
        publication: Publication,
        options: ChannelOptions,
        *,
        once: str | None = None,
        version: int | None = None,
    ) -> Position:
        future: asyncio.Future[Position] = asyncio.get_running_loop().create_future()
        self.submit(channel, publication, options, partial(_settle, future), once=once, version=version)
        return await future

    def submit(
        self,
        channel: str,
        publication: Publication,
        options: ChannelOptions,
        done: Done,
        *,
        once: str | None = None,
        version: int | None = None,
    ) -> None:
        if self._topology is None or self._loop is None:
            done(None, BrokerUnavailable("the broker does not run"))
            return
        partition = self.keys.partition_of(channel)
        shard = self._topology.shard_of(partition)
        now = self._loop.time()
        outbound = (self._keeping if options.history_size else self._passing)[partition.index]
        if self._is_away(shard, now):
            if options.offline == "local":
                outbound.give_up_local()  # what came before it
            self._without(channel, publication, options, done)
            return
        if type(publication.at) is not float:
            publication.at = float(publication.at)  # the scripts look for it at its place
        if options.offline == "local":
            done = partial(self._locally_else, channel, publication, options, done)
        if not options.history_size:
            once = version = None
        entry = Entry(channel, stored(publication), options, done, now + self._settings.valkey_timeout, once, version)
        try:
            outbound.add(entry)
        except ClientError as error:
            done(None, error)

    def _without(self, channel: str, publication: Publication, options: ChannelOptions, done: Done) -> None:
        """The engine is away."""
        if options.offline != "local":
            self.stats.away += 1
            done(None, BrokerUnavailable("the engine is away"))
            return
        assert self._inlet is not None
        self.stats.local += 1
        head = publication.payload if publication.offset else b"%b0%b" % (publication.head, publication.tail)
        if not options.history_size:
            head = publication.head
        local = Publication(head, b"", publication.key, publication.user, publication.origin, publication.at)
        self._inlet.deliver(channel, local)
        done(NOWHERE, None)

    def _locally_else(
        self,
        channel: str,
        publication: Publication,
        options: ChannelOptions,
        done: Done,
        position: Position | None,
        error: Exception | None,
    ) -> None:
        # what was sent may be published, and would be there twice
        if isinstance(error, BrokerUnavailable) and not isinstance(error, NotKnown) and self._inlet is not None:
            self._without(channel, publication, options, done)
        else:
            done(position, error)

    async def relay(self, channel: str, publications: Sequence[Publication]) -> None:
        """This node's own subscribers get them at once, the others over the engine."""
        assert self._inlet is not None, "the broker was not started"
        bodies = [stored(publication) for publication in publications]
        for publication in publications:
            self._inlet.deliver(channel, publication)
        partition = self.keys.partition_of(channel)
        shard = self.shard_of(partition)
        loop = asyncio.get_running_loop()
        now = loop.time()
        if self._is_away(shard, now):
            raise BrokerUnavailable("the engine is away")
        future: asyncio.Future[Position] = loop.create_future()
        self.stats.relayed += len(bodies)
        deadline = now + self._settings.valkey_timeout
        outbound = self._passing[partition.index]
        try:
            for body in bodies[:-1]:
                outbound.add(Entry(channel, body, RELAYED, _nobody, deadline))
            outbound.add(Entry(channel, bodies[-1], RELAYED, partial(_settle, future), deadline))
            await future
        except ClientError as error:
            raise BrokerUnavailable(f"other nodes are not told: {error.message}") from None

    # -- subscribing

    async def subscribe(self, channel: str) -> None:
        line = self._lines.get(channel)
        partition = self.keys.partition_of(channel)
        shard = self.shard_of(partition)
        if line is None:
            line = self._lines[channel] = _Line(self, channel)
        subscribed = shard.listen(partition.key("c", channel), line)
        if subscribed is None:
            raise BrokerUnavailable("the engine is away")
        await subscribed

    async def unsubscribe(self, channel: str) -> None:
        if self._lines.pop(channel, None) is not None and self._topology is not None:
            partition = self.keys.partition_of(channel)
            self.shard_of(partition).unlisten(partition.key("c", channel))

    def follow(self, channel: str) -> None:
        """It is being asked who is in a channel: what changes from here on is wanted, if this node is subscribed to it."""
        line = self._lines.get(channel)
        if line is not None:
            line.followed = True

    def arrived(self, line: _Line, payload: bytes) -> None:
        """Publications from the engine."""
        inlet = self._inlet
        if inlet is None:
            return
        if payload[:1] == b"\0":
            if line.followed:
                self._peers.marked(line.name, payload)
            return
        head, _, body = payload.partition(b"\n")
        epoch, _, number = head.partition(b" ")
        publications = _decode(body)
        name = line.name
        self.stats.received += len(publications)
        if epoch == b"-":
            if number == self._own:
                return  # what this node relayed, it has delivered
            for publication in publications:
                inlet.deliver(name, publication)
            return
        if epoch != line.epoch:
            known, line.epoch = line.epoch, epoch
            if known and line.empty and number == b"1":
                # nothing was ever published there, so the engine had forgotten it; this is the first
                inlet.renewed(name, Position(epoch.decode(), 0))
            elif known:
                inlet.lost(name)
        line.empty = False
        offset = int(number)
        for publication in publications:
            publication.offset = offset
            offset += 1
            inlet.deliver(name, publication)

    # -- the past

    def part_of(self, channel: str) -> int | None:
        """Which part of a Cluster has a channel's past: it may be away while others answer. None: there are no parts."""
        return self.keys.partition_of(channel).index if self.keys.cluster else None

    async def recover(self, channel: str, since: Position | None, limit: int, options: ChannelOptions) -> Recovery:
        if not options.history_size:
            return Recovery(NOWHERE, [], False)
        reader = self._readers[self.keys.partition_of(channel).index]
        recovery = await reader.recover(channel, since, limit, options, self.clock.time())
        line = self._lines.get(channel)
        if line is not None:
            line.empty = not recovery.position.offset
            if not line.epoch:
                line.epoch = recovery.position.epoch.encode()
        return recovery

    async def history(
        self, channel: str, after: int | None, before: int | None, limit: int, options: ChannelOptions
    ) -> tuple[Position, Sequence[Publication], bool]:
        if not options.history_size:
            return NOWHERE, [], False
        reader = self._readers[self.keys.partition_of(channel).index]
        return await reader.page(channel, after, before, limit, options, self.clock.time())


def _new_id() -> str:
    return secrets.token_urlsafe(9)


def _settle(future: asyncio.Future[Position], position: Position | None, error: Exception | None) -> None:
    if future.done():
        return
    if error is not None:
        future.set_exception(error)
    else:
        future.set_result(position if position is not None else NOWHERE)


def _nobody(position: Position | None, error: Exception | None) -> None:
    """Nobody waits for it: the last of them speaks for all."""
