"""Which servers the engine consists of, and which of them has what."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Final

from hubbub.brokers.valkey.address import Address, Target
from hubbub.brokers.valkey.keys import SLOTS, Keys, Partition
from hubbub.brokers.valkey.shard import Shard
from hubbub.brokers.valkey.wire import Wire, WireError
from hubbub.metrics import EngineStats

log = logging.getLogger("hubbub")
ASK: Final = 1.0
"""Seconds that one server has to say where the primary is, before the next one is asked."""
REFRESH: Final = 0.5
"""Seconds, at least, between two looks at the Cluster's map."""


class Topology:
    """The shards of an engine: one, or those of a Cluster.

    :ivar shards: one for each primary; in a Cluster, when slots move, partitions that part get a shard each, and those that
        come together may stay with two.
    :ivar on_up: handed on to each shard.
    :ivar on_sweep: called about twice a second.
    """

    def __init__(
        self, target: Target, keys: Keys, node: str, *, timeout: float, stats: EngineStats, replicas: int = 0
    ) -> None:
        self._target = target
        self._keys = keys
        self._node = node
        self._timeout = timeout
        self._stats = stats
        self._replicas = replicas
        self.shards: list[Shard] = []
        self.on_up: list[Callable[[Shard, bool], None]] = []
        self.on_sweep: list[Callable[[float], None]] = []
        self._of: dict[int, Shard] = {}
        self._map: list[tuple[int, int, Address]] = []
        self._looked = 0.0
        self._looking: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Begin to connect."""
        partitions = self._keys.partitions
        if self._target.kind == "cluster":
            groups = await self._groups()
        else:
            groups = [list(partitions)]
        for group in groups:
            self._add(group)

    def _add(self, group: list[Partition]) -> Shard:
        shard = Shard(
            self._node,
            self._locate,
            group,
            timeout=self._timeout,
            stats=self._stats,
            sharded=self._target.kind == "cluster",
            replicas=self._replicas,
        )
        shard.on_up.append(self._up)
        if not self.shards:
            shard.on_sweep.append(self._swept)
        self.shards.append(shard)
        for partition in group:
            self._of[partition.index] = shard
        shard.start()
        return shard

    async def stop(self) -> None:
        """Let go of all."""
        for shard in self.shards:
            await shard.stop()

    async def came_up(self, timeout: float) -> bool:
        """Wait until all are connected, for some seconds at most."""
        came = await asyncio.gather(*(shard.came_up(timeout) for shard in self.shards))
        return all(came)

    @property
    def healthy(self) -> bool:
        return all(shard.healthy for shard in self.shards)

    def shard_of(self, partition: Partition) -> Shard:
        """Where a partition is."""
        return self._of[partition.index]

    def _up(self, shard: Shard, changed: bool) -> None:
        for tell in self.on_up:
            tell(shard, changed)

    def _swept(self, now: float) -> None:
        for sweep in self.on_sweep:
            sweep(now)

    # -- where is the primary?

    async def _locate(self, shard: Shard) -> Address:
        if self._target.kind == "standalone":
            return self._target.seeds[0]
        return await (self._sentinel() if self._target.kind == "sentinel" else self._cluster(shard))

    async def _sentinel(self) -> Address:
        """What the first sentinel that answers says. (It may be wrong for a moment: whoever connects looks at the role.)"""
        faults = []
        for seed in self._target.seeds:
            try:
                wire = await Wire.connect(seed, name=f"hubbub-{self._node}-sentinel", timeout=ASK)
                try:
                    async with asyncio.timeout(ASK):
                        reply: Any = await wire.call("SENTINEL", "GET-MASTER-ADDR-BY-NAME", self._target.service)
                finally:
                    wire.abort()
            except (WireError, OSError, TimeoutError) as error:
                faults.append(f"{seed}: {error or 'no answer'}")
                continue
            if reply:
                return self._target.server.at(reply[0].decode(), int(reply[1]))
            faults.append(f"{seed} knows of no service {self._target.service!r}")
        raise WireError("no sentinel says where the primary is: " + "; ".join(faults))

    # -- Cluster

    async def _cluster(self, shard: Shard) -> Address:
        await self._look()
        self._part(shard)
        address = self._place(shard.partitions[0])
        if address is None:
            raise WireError(f"no server of the Cluster has slot {shard.partitions[0].slot}", "CLUSTERDOWN")
        return address

    def _place(self, partition: Partition) -> Address | None:
        return next((address for low, high, address in self._map if low <= partition.slot <= high), None)

    def _part(self, shard: Shard) -> None:
        """Move the partitions of a shard that are not where its first one is to another shard."""
        here = self._place(shard.partitions[0])
        away: dict[Address | None, list[Partition]] = {}
        for partition in shard.partitions:
            place = self._place(partition)
            if place != here:
                away.setdefault(place, []).append(partition)
        for place, partitions in away.items():
            listeners = shard.give(partitions)
            other = next(
                (each for each in self.shards if each is not shard and self._place(each.partitions[0]) == place), None
            )
            if other is None:
                self._add(partitions).take([], listeners)
            else:
                for partition in partitions:
                    self._of[partition.index] = other
                other.take(partitions, listeners)

    async def _groups(self) -> list[list[Partition]]:
        """The partitions, those of one server together; all, while the map cannot be had."""
        with suppress(WireError):
            await self._look()
        by_address: dict[Address | None, list[Partition]] = {}
        for partition in self._keys.partitions:
            by_address.setdefault(self._place(partition), []).append(partition)
        return list(by_address.values())

    async def _look(self) -> None:
        """Read the Cluster's map, unless that was done just now; several that want it read it once."""
        loop = asyncio.get_running_loop()
        if self._looking is None and (not self._map or loop.time() - self._looked >= REFRESH):
            self._looking = loop.create_task(self._read_map())
        if self._looking is not None:
            looking = self._looking
            await asyncio.wait([looking])
            self._looking = None
            if not looking.cancelled() and (error := looking.exception()) is not None:
                log.error("the Cluster's map cannot be read", exc_info=error)
        if not self._map:
            raise WireError("no server of the Cluster says who has what", "CLUSTERDOWN")

    async def _read_map(self) -> None:
        known = [address for _, _, address in self._map]
        for seed in dict.fromkeys([*known, *self._target.seeds]):
            try:
                wire = await Wire.connect(seed, name=f"hubbub-{self._node}-map", timeout=ASK)
                try:
                    async with asyncio.timeout(ASK):
                        slots: Any = await wire.call("CLUSTER", "SLOTS")
                finally:
                    wire.abort()
            except (WireError, OSError, TimeoutError) as error:
                log.warning("a server of the Cluster does not say who has what: %s: %s", seed, error or "no answer")
                continue
            read = [
                (int(low), int(high), seed.at((primary[0] or b"").decode() or seed.host, int(primary[1])))
                for low, high, primary, *_ in slots
            ]
            if sum(high - low + 1 for low, high, _ in read) == SLOTS:
                self._map = read
                self._looked = asyncio.get_running_loop().time()
                return
