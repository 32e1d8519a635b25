"""Which servers the engine consists of, and which of them has what."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, Final

from hubbub.brokers.valkey.address import Address, Target
from hubbub.brokers.valkey.keys import SLOTS, Keys, Partition
from hubbub.brokers.valkey.shard import CONNECT, Shard
from hubbub.brokers.valkey.wire import Wire, WireError
from hubbub.metrics import EngineStats

log = logging.getLogger("hubbub")
REFRESH: Final = 0.5
"""Seconds, at least, between two looks at the Cluster's map."""


class Topology:
    """The shards of an engine: one, or those of a Cluster.

    :ivar shards: one for each primary; in a Cluster one for each run of partitions that were together at the start: when
        slots move, a shard's partitions may be looked for at another server, and the run is split if they part.
    :ivar on_up: handed on to each shard.
    :ivar on_sweep: called about twice a second.
    """

    def __init__(self, target: Target, keys: Keys, node: str, *, timeout: float, stats: EngineStats) -> None:
        self._target = target
        self._keys = keys
        self._node = node
        self._timeout = timeout
        self._stats = stats
        self.shards: list[Shard] = []
        self.on_up: list[Callable[[Shard, bool], None]] = []
        self.on_sweep: list[Callable[[float], None]] = []
        self._of: list[Shard] = []
        self._map: list[tuple[int, int, Address]] = []
        self._looked = 0.0
        self._looking: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Begin to connect."""
        partitions = self._keys.partitions
        if self._target.kind == "cluster":
            # One connection for each partition's place would be many; so partitions that are together share one. Until
            # the map is known, all are looked for together.
            groups = await self._groups()
        else:
            groups = [list(partitions)]
        for group in groups:
            self._add(group)

    def _add(self, group: list[Partition]) -> None:
        places: dict[str, Callable[[], Awaitable[Address]]] = {
            "standalone": self._standalone,
            "sentinel": self._sentinel,
            "cluster": partial(self._cluster, group[0]),
        }
        locate = places[self._target.kind]
        shard = Shard(
            self._node,
            locate,
            group,
            timeout=self._timeout,
            stats=self._stats,
            sharded=self._target.kind == "cluster",
        )
        shard.on_up.append(self._up)
        if not self.shards:
            shard.on_sweep.append(self._swept)
        self.shards.append(shard)
        for partition in group:
            while len(self._of) <= partition.index:
                self._of.append(shard)
            self._of[partition.index] = shard
        shard.start()

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

    async def _standalone(self) -> Address:
        return self._target.seeds[0]

    async def _sentinel(self) -> Address:
        """What the first sentinel that answers says. (It may be wrong for a moment: whoever connects looks at the role.)"""
        faults = []
        for seed in self._target.seeds:
            try:
                wire = await Wire.connect(seed, name=f"hubbub-{self._node}-sentinel", timeout=CONNECT)
                try:
                    async with asyncio.timeout(CONNECT):
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

    async def _cluster(self, partition: Partition) -> Address:
        await self._look()
        for low, high, address in self._map:
            if low <= partition.slot <= high:
                return address
        raise WireError(f"no server of the Cluster has slot {partition.slot}", "CLUSTERDOWN")

    async def _groups(self) -> list[list[Partition]]:
        """The partitions, those of one server together."""
        await self._look()
        by_address: dict[Address | None, list[Partition]] = {}
        for partition in self._keys.partitions:
            place = next((address for low, high, address in self._map if low <= partition.slot <= high), None)
            by_address.setdefault(place, []).append(partition)
        return list(by_address.values())

    async def _look(self) -> None:
        """Read the Cluster's map, unless that was done just now; several that want it read it once."""
        loop = asyncio.get_running_loop()
        if self._looking is None and (not self._map or loop.time() - self._looked >= REFRESH):
            self._looking = loop.create_task(self._read_map())
        if self._looking is not None:
            await asyncio.wait([self._looking])
            self._looking = None
        if not self._map:
            raise WireError("no server of the Cluster says who has what", "CLUSTERDOWN")

    async def _read_map(self) -> None:
        known = [address for _, _, address in self._map]
        for seed in dict.fromkeys([*known, *self._target.seeds]):
            try:
                wire = await Wire.connect(seed, name=f"hubbub-{self._node}-map", timeout=CONNECT)
                try:
                    async with asyncio.timeout(CONNECT):
                        slots: Any = await wire.call("CLUSTER", "SLOTS")
                finally:
                    wire.abort()
            except (WireError, OSError, TimeoutError) as error:
                log.warning("a server of the Cluster does not say who has what: %s: %s", seed, error or "no answer")
                continue
            read = [
                (int(low), int(high), seed.at(primary[0].decode() or seed.host, int(primary[1])))
                for low, high, primary, *_ in slots
            ]
            if sum(high - low + 1 for low, high, _ in read) == SLOTS:
                self._map = read
                self._looked = asyncio.get_running_loop().time()
                return
