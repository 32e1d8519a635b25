"""Real nodes over one database and a real engine, while people talk, are removed and come back, and things break.

Every client hears exactly the room's numbers, in order, each once, without a gap told; who is removed hears nothing that
was said after, until they are back. (docs/reliability.md)
"""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import pytest
from websockets.asyncio.client import ClientConnection

from tests.engine_support import Engine, Node, end, running_node
from tests.rest_support import migrated
from tests.talkers import PAUSE, Person, behind, connection, kept, verdict

pytestmark = [pytest.mark.anyio, pytest.mark.slow]

ROOMS: Final = ("nodes-0", "nodes-1")
PATIENCE: Final = 60.0
"""Seconds that anything may take before the test fails: far more than it does."""
MAY_FAIL: Final = ("unavailable", "busy")
OUTSIDE: Final = frozenset({"not_joined", "forbidden", "not_found"})
"""What somebody is told who is not in the room just now."""


@dataclass
class Out:
    """A removal.

    :ivar number: of its event; 0 until the moderator knows it.
    :ivar heard: what the removed had heard of the room last.
    """

    number: int = 0
    heard: int = -1


class Roomer(Person):
    """A person who comes back at once when they were removed; another node is asked when theirs is gone.

    :ivar outs: how often they were removed.
    """

    def __init__(self, nodes: Sequence[Node], first: int, room: str) -> None:
        self.outs: list[Out] = []
        self.inside = False
        self._turn = first

        def url(user: str) -> str:
            self._turn += 1
            return nodes[(self._turn - 1) % len(nodes)].socket_url(user)

        super().__init__(url, f"p{first}", room, ROOMS, may_fail=MAY_FAIL, seed=first)

    async def _enter(self, client: ClientConnection) -> None:
        self.inside = False
        await super()._enter(client)
        self.inside = True

    async def _talk(self, client: ClientConnection) -> None:
        await self._say(client)
        while True:
            message = json.loads(await client.recv())
            if message["type"] == "room_left":
                self._left(message)
                await self._join(client, self.room)
            elif message["type"] == "error" and message.get("ref") == self.room:
                await asyncio.sleep(PAUSE)
                await self._join(client, self.room)
            elif message["type"] == "error" and self._is_asked(message) and message["code"] in OUTSIDE:
                await asyncio.sleep(PAUSE)
                await self._say(client)
            elif message["type"] == "gap" and message["channel"] == f"user:{self.name}":
                continue  # what is for one user only is in the engine only
            else:
                again = self._take(message)
                if message["type"] == "room_joined":
                    self.inside = True
                if again:
                    await asyncio.sleep(PAUSE)
                if again or (self._asked is None and not self.quiet):
                    await self._say(client)

    def _left(self, message: dict[str, Any]) -> None:
        if message["reason"] != "kicked" or not self.outs or self.outs[-1].heard >= 0:
            self.wrong.append(f"{self.name} was told {message}")
            return
        self.outs[-1].heard = self.heard[self.room].offset


@dataclass
class Trial:
    """People and a moderator on some nodes."""

    nodes: list[Node]
    people: list[Roomer]
    dice: random.Random
    lives: list[asyncio.Task[None]] = field(default_factory=list)

    async def until(self, condition: Callable[[], bool], otherwise: str) -> None:
        deadline = time.monotonic() + PATIENCE
        while not condition():
            for life in self.lives:
                if life.done():
                    life.result()
            for person in self.people:
                assert not person.wrong, person.wrong[:3]
            state = [(p.name, p.here, p.inside, p.acked, p._asked) for p in self.people]
            assert time.monotonic() < deadline, f"{otherwise}: {state}; {[node.tail(600) for node in self.nodes]}"
            await asyncio.sleep(0.005)

    async def more(self, count: int) -> None:
        """Let them say so much more."""
        goal = sum(person.acked for person in self.people) + count
        await self.until(lambda: sum(person.acked for person in self.people) >= goal, "nobody gets any further")

    async def remove(self) -> None:
        """Remove somebody who is there, by way of any node; and wait until they are back."""
        there = [each for each in self.people if each.here and each.inside]
        victim = self.dice.choice(there)
        node = self.dice.choice([each for each in self.nodes if each.pid])
        out = Out()
        victim.outs.append(out)
        victim.inside = False
        async with connection(node.socket_url("moderator", admin=True)) as client:
            asked = {"type": "kick_member", "room_id": victim.room, "user_id": victim.name, "ref": "kick"}
            await client.send(json.dumps(asked))
            while (answer := json.loads(await client.recv())).get("ref") != "kick":
                pass
        assert answer["type"] == "ack", answer
        out.number = answer["offset"]
        began = time.monotonic()
        await self.until(lambda: out.heard >= 0, f"{victim.name} was not removed")
        assert time.monotonic() - began < 2.0, "a removal takes too long"
        assert out.heard <= out.number, f"{victim.name} heard {out.heard}, and was removed by {out.number}"
        await self.until(lambda: victim.inside, f"{victim.name} did not come back")


async def hold(url: str, engine: Engine, place: Path, count: int, fault: str) -> None:
    """Let people talk on nodes, let something happen, and see that all held."""
    await migrated(url)
    shared = {} if url.startswith("postgres") else {"store_shared": 1}
    options = {"database_url": url, "default_rooms": ",".join(ROOMS), **shared}
    async with AsyncExitStack() as stack:
        starts = [running_node(engine.url, place, name, **options) for name in "abc"[:count]]
        nodes = list(await asyncio.gather(*map(stack.enter_async_context, starts)))
        people = [Roomer(nodes, index, ROOMS[index // count % 2]) for index in range(4 * count)]
        trial = Trial(nodes, people, random.Random(f"{url[:4]} {fault}"))
        trial.lives = [asyncio.create_task(person.live()) for person in people]
        try:
            await trial.until(lambda: all(person.here for person in people), "not all came")
            for _ in range(4):
                await trial.more(50)
                await trial.remove()
            await FAULTS[fault](trial, engine)
            await trial.more(200)
            await trial.remove()
            await settle(trial)
        finally:
            await end(*trial.lives)


async def settle(trial: Trial) -> None:
    people = trial.people
    for person in people:
        person.quiet = True
    await trial.until(lambda: all(person.here and person.settled and person.inside for person in people), "not settled")
    rooms = {room: await kept(trial.nodes[0].socket_url("reader", admin=True), room) for room in ROOMS}
    await trial.until(lambda: not behind(people, rooms), "somebody did not hear all")
    assert verdict(people, rooms) == []
    assert sum(person.acked for person in people) >= 400
    assert any("version" in message for there in rooms.values() for message in there.messages.values())
    assert any("reactions" in message for there in rooms.values() for message in there.messages.values())


async def nothing(trial: Trial, engine: Engine) -> None:
    await trial.more(200)


async def engine_killed(trial: Trial, engine: Engine) -> None:
    """It comes back, empty. Meanwhile all go on talking, and hear each other by way of the database."""
    for _ in range(2):
        await asyncio.to_thread(engine.kill)
        first = {person: person.heard[person.room].offset for person in trial.people}
        await trial.more(150)
        await trial.until(
            lambda: all(person.heard[person.room].offset > first[person] for person in trial.people),  # noqa: B023
            "somebody hears nothing while the engine is away",
        )
        await asyncio.to_thread(engine.start)
        await trial.more(100)


async def node_killed(trial: Trial, engine: Engine) -> None:
    """Its people go to the others."""
    for victim in (trial.nodes[-1], trial.nodes[0]):
        await victim.kill()
        await trial.more(150)
        await victim.start()
        await trial.more(50)


async def engine_paused(trial: Trial, engine: Engine) -> None:
    """It stands still, for longer than a command waits."""
    await asyncio.to_thread(engine.pause)
    await trial.more(150)
    engine.resume()


FAULTS: Final = {
    "nothing": nothing,
    "engine killed": engine_killed,
    "engine paused": engine_paused,
    "node killed": node_killed,
}


@pytest.mark.parametrize("fault", FAULTS)
async def test_three_nodes(database_url: str, own_valkey: Engine, tmp_path: Path, fault: str) -> None:
    await hold(database_url, own_valkey, tmp_path, 3, fault)


async def test_two_nodes(database_url: str, own_valkey: Engine, tmp_path: Path) -> None:
    await hold(database_url, own_valkey, tmp_path, 2, "node killed")
