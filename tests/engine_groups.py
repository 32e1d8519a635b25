"""Several engines together: Sentinel, Cluster. See ``engine_support.py``."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Self

from tests.engine_process import HOST, Engine, EngineError, free_port, until


class Group:
    """Engines that are started and ended together."""

    def __init__(self) -> None:
        self.engines: list[Engine] = []

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def start(self) -> None:
        raise NotImplementedError

    def close(self) -> None:
        for engine in self.engines:
            engine.close()

    def add(self, engine: Engine) -> Engine:
        self.engines.append(engine)
        engine.start()
        return engine


class Sentinels(Group):
    """A primary, a replica and sentinels that fail over when the primary was away for ``down_after`` seconds."""

    def __init__(
        self, *, down_after: float = 1.0, count: int = 3, service: str = "hubbub", program: Path | None = None,
        **options: Any,
    ) -> None:  # fmt: skip
        super().__init__()
        self.service = service
        self.down_after = down_after
        self._count = count
        self._program = program
        self._options = options

    @property
    def url(self) -> str:
        return f"valkey+sentinel://{','.join(f'{HOST}:{each.port}' for each in self.sentinels)}/{self.service}"

    def start(self) -> None:
        self.first = self.add(Engine(program=self._program, **self._options))
        self.second = self.add(Engine(program=self._program, replica_of=self.first, **self._options))
        until(lambda: self.second.info("replication").get("master_link_status") == "up", "the replica did not sync")
        text = "\n".join(
            (
                f"sentinel monitor {self.service} {HOST} {self.first.port} {self._count // 2 + 1}",
                f"sentinel down-after-milliseconds {self.service} {int(self.down_after * 1000)}",
                f"sentinel failover-timeout {self.service} 3000",
            )
        )
        self.sentinels = [self.add(Engine(program=self._program, sentinel=text)) for _ in range(self._count)]
        until(lambda: all(map(self._knows_all, self.sentinels)), "the sentinels did not find one another")

    def primary(self) -> Engine:
        """The engine that the first sentinel says is the primary."""
        _, port = self.sentinels[0].call("SENTINEL", "get-master-addr-by-name", self.service)
        return self.first if int(port) == self.first.port else self.second

    def _knows_all(self, sentinel: Engine) -> bool:
        flat = sentinel.call("SENTINEL", "master", self.service)
        known = dict(zip(flat[::2], flat[1::2], strict=True))
        return int(known[b"num-other-sentinels"]) == self._count - 1 and int(known[b"num-slaves"]) == 1


class Shards(Group):
    """A Cluster of primaries, the slots spread evenly.

    :param replicas: 1: each primary has one. They take over after about ``node_timeout`` seconds.
    """

    def __init__(
        self, *, count: int = 3, replicas: int = 0, node_timeout: float = 1.0, program: Path | None = None,
        **options: Any,
    ) -> None:  # fmt: skip
        super().__init__()
        self._count = count
        self._replicas = replicas
        self._program = program
        self._options = {"cluster_node_timeout": str(int(node_timeout * 1000)), **options}
        self.buses: dict[Engine, int] = {}

    @property
    def url(self) -> str:
        return f"valkey+cluster://{','.join(f'{HOST}:{each.port}' for each in self.primaries)}"

    def start(self) -> None:
        self.primaries = [self._member() for _ in range(self._count)]
        self.replicas = [self._member() for _ in range(self._count * self._replicas)]
        first, *others = self.engines
        share = 16_384 / self._count
        for index, primary in enumerate(self.primaries):
            primary.call("CLUSTER", "ADDSLOTSRANGE", round(index * share), round((index + 1) * share) - 1)
            primary.call("CLUSTER", "SET-CONFIG-EPOCH", index + 1)
        for other in others:
            first.call("CLUSTER", "MEET", HOST, other.port, self.buses[other])
        for primary, replica in zip(self.primaries * self._replicas, self.replicas, strict=True):
            node = bytes(primary.call("CLUSTER", "MYID")).decode()
            until(lambda: self._took(replica, "REPLICATE", node), "the replica did not find its primary")  # noqa: B023
        until(self._is_whole, "the cluster did not come together")

    def slots_of(self, engine: Engine) -> list[tuple[int, int]]:
        """The ranges of slots that a member has, as it says itself."""
        line = next(line for line in self._nodes(engine) if "myself" in line[2])
        ranges = [part.split("-") for part in line[8:] if not part.startswith("[")]
        return [(int(each[0]), int(each[-1])) for each in ranges]

    def move(self, slot: int, source: Engine, target: Engine) -> None:
        """Move a slot with its keys, as `valkey-cli --cluster reshard` does."""
        source_id, target_id = (bytes(each.call("CLUSTER", "MYID")).decode() for each in (source, target))
        target.call("CLUSTER", "SETSLOT", slot, "IMPORTING", source_id)
        source.call("CLUSTER", "SETSLOT", slot, "MIGRATING", target_id)
        while keys := source.call("CLUSTER", "GETKEYSINSLOT", slot, 100):
            source.call("MIGRATE", HOST, target.port, "", 0, 5000, "KEYS", *keys)
        for member in (target, source, *self.primaries):
            member.call("CLUSTER", "SETSLOT", slot, "NODE", target_id)

    def _member(self) -> Engine:
        bus = free_port()
        engine = self.add(
            Engine(
                program=self._program, cluster_enabled="yes", cluster_port=str(bus), cluster_config_file="nodes.conf",
                cluster_announce_ip=HOST, **self._options,
            )
        )  # fmt: skip
        self.buses[engine] = bus
        return engine

    def _took(self, engine: Engine, *words: str) -> bool:
        try:
            return bool(engine.call("CLUSTER", *words) == b"OK")
        except EngineError:
            return False

    def _nodes(self, engine: Engine) -> list[list[str]]:
        return [line.split() for line in bytes(engine.call("CLUSTER", "NODES")).decode().splitlines()]

    def _is_whole(self) -> bool:
        for engine in self.engines:
            lines = self._nodes(engine)
            if len(lines) != len(self.engines) or sum("slave" in line[2] for line in lines) != len(self.replicas):
                return False
            if b"cluster_state:ok" not in engine.call("CLUSTER", "INFO"):
                return False
        return all(each.info("replication")["master_link_status"] == "up" for each in self.replicas)
