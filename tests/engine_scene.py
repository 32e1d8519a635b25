"""Several nodes on an engine of their own, each over its own bad network, with people on them: what the fault tests need."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from tests.engine_oracle import Trial
from tests.engine_support import HOST, Engine, Node
from tests.fault_proxy import FaultProxy, fault_proxy

GROWTH: Final = 64 << 20
"""Bytes that a node may have more in memory after a fault than before it."""
PRESENCE: Final = 10.0
"""Seconds after a fault within which presence is true everywhere."""
ROOMY: Final = {
    "channels": json.dumps({"fault:*": {"history_size": 1_000_000, "history_ttl": 3600}}),
    "history_bytes": 256 << 20,
    "recovery_limit": 100_000,
}
"""So much history that a gap can only come from a fault."""


@dataclass
class Scene:
    """:ivar ways: the network between each node and the engine, where there is one."""

    nodes: Sequence[Node]
    ways: Sequence[FaultProxy]
    people: Trial
    memory: dict[str, int]

    async def judge(self, *, kept: bool = True, gaps: bool | None = False, within: float = 20.0) -> float:
        """Wait until all is as before, and assert that all held; returns the seconds until it flowed again.

        :param kept: the engine lost nothing.
        :param gaps: somebody was to be told one; False: nobody; None: it depends on the moment.
        """
        took = await self.people.flows(within)
        presence = await self.people.present(PRESENCE)
        await self.people.settle(within)
        wrong = self.people.verdict(kept=kept)
        assert not wrong, "\n".join([f"{len(wrong)} things are wrong:", *wrong[:6]])
        assert gaps is None or bool(self.people.gaps) is gaps, f"{self.people.gaps} gaps were told"
        for node in self.nodes:
            grown = node.rss - self.memory.get(node.name, node.rss)
            assert grown < GROWTH, f"{node.name} has {grown >> 20} MB more in memory"
        refused = sum(sum(each.refused.values()) for each in self.people.publishers)
        slowest = max(each.slowest for each in self.people.publishers)
        print(
            f"flows after {took:.2f} s, presence after {presence:.2f} s more; {self.people.acked} acknowledged, "
            f"{refused} refused, {self.people.gaps} gaps, slowest answer {slowest:.2f} s"
        )
        return took


@asynccontextmanager
async def scene(
    directory: Path, engine: Engine | str, *, names: str = "ab", settings: dict[str, Any] | None = None, **people: Any
) -> AsyncIterator[Scene]:
    """Nodes, and people who hear one another. Where the engine is one server, each node reaches it by a proxy of its own.

    :param engine: or its URL.
    """
    async with AsyncExitStack() as stack:
        ways: list[FaultProxy] = []
        urls = [engine] * len(names) if isinstance(engine, str) else []
        if isinstance(engine, Engine):
            ways = [await stack.enter_async_context(fault_proxy((HOST, engine.port))) for _ in names]
            urls = [way.url for way in ways]
        nodes = [
            Node(url, directory, name, **{**ROOMY, **(settings or {})}) for name, url in zip(names, urls, strict=True)
        ]
        for node in nodes:
            stack.push_async_callback(node.close)
        await asyncio.gather(*(node.start() for node in nodes))
        for node in nodes:
            await node.until_ready()
        trial = await stack.enter_async_context(Trial(nodes, **people))
        yield Scene(nodes, ways, trial, {node.name: node.rss for node in nodes})


async def elapse(seconds: float, people: Trial) -> None:
    """Let the fault last, and notice meanwhile what goes wrong. (A fault that lasts is what is tested: not a wait.)"""
    end = time.monotonic() + seconds
    await people.until(lambda: time.monotonic() >= end, "", seconds + 1)
