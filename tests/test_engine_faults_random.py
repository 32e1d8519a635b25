"""Everything that can fail fails, one after another and together, by dice whose seed is printed."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Final

import pytest

from tests.engine_oracle import dice
from tests.engine_scene import Scene, elapse, scene
from tests.engine_support import Engine
from tests.fault_proxy import Way

pytestmark = [pytest.mark.anyio, pytest.mark.slow]

SECONDS: Final = float(os.environ.get("HUBBUB_FAULT_SECONDS", "25"))
"""For how long things fail."""
SEED: Final = os.environ.get("HUBBUB_FAULT_SEED")
"""The seed of a run that is to be repeated (as far as machines repeat themselves)."""


CUTS: Final[list[tuple[Way, ...]]] = [("up",), ("down",), ("up", "down")]


class Chaos:
    """Faults, each of which is over when it returns."""

    def __init__(self, there: Scene, engine: Engine, lots: random.Random) -> None:
        self.there = there
        self.engine = engine
        self.lots = lots
        self.log: list[str] = []
        self._began = time.monotonic()
        self._engine_free = asyncio.Lock()
        self._node_free = asyncio.Lock()

    @property
    def faults(self) -> list[Callable[[], Awaitable[None]]]:
        return [
            self.engine_dies, self.engine_stands, self.engine_forgets, self.engine_cuts, self.engine_pauses, self.node_dies,
            self.node_stops, self.node_stands, self.way_is_cut, self.way_is_cut, self.ways_reset, self.way_is_slow,
        ]  # fmt: skip

    def note(self, what: str) -> None:
        self.log.append(f"{time.monotonic() - self._began:6.2f} {what}")

    async def last(self, longest: float) -> None:
        await elapse(self.lots.uniform(0, longest), self.there.people)

    async def engine_dies(self) -> None:
        async with self._engine_free:
            self.note("the engine is killed")
            await asyncio.to_thread(self.engine.restart, signal.SIGKILL)

    async def engine_stands(self) -> None:
        async with self._engine_free:
            self.note("the engine stands still")
            await asyncio.to_thread(self.engine.pause)
            await self.last(3)
            self.engine.resume()

    async def engine_pauses(self) -> None:
        async with self._engine_free:
            self.note("CLIENT PAUSE")
            await asyncio.to_thread(self.engine.call, "CLIENT", "PAUSE", self.lots.randint(10, 1500), "WRITE")

    async def engine_forgets(self) -> None:
        async with self._engine_free:
            self.note("SCRIPT FLUSH")
            await asyncio.to_thread(self.engine.call, "SCRIPT", "FLUSH")

    async def engine_cuts(self) -> None:
        async with self._engine_free:
            kind = self.lots.choice(["pubsub", "normal"])
            self.note(f"CLIENT KILL TYPE {kind}")
            await asyncio.to_thread(self.engine.call, "CLIENT", "KILL", "TYPE", kind, "SKIPME", "yes")

    async def node_dies(self) -> None:
        async with self._node_free:
            node = self.lots.choice(self.there.nodes)
            self.note(f"node {node.name} is killed")
            await node.kill()
            await node.start()

    async def node_stops(self) -> None:
        async with self._node_free:
            node = self.lots.choice(self.there.nodes)
            self.note(f"node {node.name} is stopped")
            await node.terminate()
            await node.start()

    async def node_stands(self) -> None:
        async with self._node_free:
            node = self.lots.choice(self.there.nodes)
            self.note(f"node {node.name} stands still")
            node.pause()
            await self.last(4)
            node.resume()

    async def way_is_cut(self) -> None:
        way = self.lots.choice(self.there.ways)
        self.note("a way is cut")
        way.stall(*self.lots.choice(CUTS))
        await self.last(6)
        way.heal()

    async def ways_reset(self) -> None:
        self.note("ways are reset")
        for way in self.lots.sample(list(self.there.ways), self.lots.randint(1, len(self.there.ways))):
            way.reset()

    async def way_is_slow(self) -> None:
        way = self.lots.choice(self.there.ways)
        self.note("a way is slow")
        way.delay, way.jitter, way.slice = (
            self.lots.uniform(0, 0.4),
            self.lots.uniform(0, 0.1),
            self.lots.choice([0, 11]),
        )
        await self.last(3)
        way.heal()

    async def go_on(self) -> None:
        while time.monotonic() < self._began + SECONDS:
            await self.lots.choice(self.faults)()
            await self.last(1)


@pytest.mark.parametrize("again", [False, True], ids=["asked once", "asked again"])
async def test_all_that_can_fail(tmp_path: Path, again: bool) -> None:
    lots = dice(int(SEED) if SEED else None)
    with Engine(appendonly="yes") as engine:
        async with scene(tmp_path, engine, names="abc", again=again) as there:
            chaos = Chaos(there, engine, lots)
            try:
                async with asyncio.TaskGroup() as group:
                    group.create_task(chaos.go_on())
                    group.create_task(chaos.go_on())
                for node in there.nodes:
                    await node.until_ready()
                await there.judge()
            finally:
                print(*chaos.log, sep="\n")
