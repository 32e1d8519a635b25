"""What each fault of a node does to the others, and to its people: the table in docs/reliability.md."""

from __future__ import annotations

import asyncio
import signal
from pathlib import Path

import pytest

from tests.engine_oracle import Subscriber, Trial
from tests.engine_scene import PRESENCE, ROOMY, Scene, elapse, scene
from tests.engine_support import WITHIN, Engine, Node, end, running_node

pytestmark = [pytest.mark.anyio, pytest.mark.slow]

STOPPED: float = 30.0
"""Seconds for which a node stands still."""
SHORTER: float = 12.0
"""The same; twice a lease."""


def told(there: Scene, watcher: Subscriber, user: str) -> list[str]:
    """What a subscriber was told of a user's coming and going."""
    return [what for _, what, who in watcher.flaps if who == user]


async def test_killed_while_people_publish(tmp_path: Path, own_valkey: Engine) -> None:
    async with scene(tmp_path, own_valkey, names="abc") as there:
        for round_ in range(4):
            await there.people.more(100 + 37 * round_)
            victim = there.nodes[round_ % 2]
            await victim.kill()
            await there.people.flows()
            await victim.start()
        await there.judge()


async def test_repeated_with_its_key_it_is_there_once(tmp_path: Path, own_valkey: Engine) -> None:
    async with scene(tmp_path, own_valkey, names="abc", again=True) as there:
        for round_ in range(4):
            await there.people.more(100 + 37 * round_)
            victim = there.nodes[round_ % 2]
            await victim.kill()
            await there.people.flows()
            await victim.start()
        await there.judge()
        assert all(sent.position is not None for each in there.people.publishers for sent in each.sent)


async def test_who_was_on_a_killed_node_leaves_once(tmp_path: Path, own_valkey: Engine) -> None:
    async with scene(tmp_path, own_valkey, names="abc") as there:
        victim, *survivors = there.nodes
        ghost = Subscriber("ghost", [victim], 0, there.people.channels[:1], stays=True)
        life = asyncio.create_task(ghost.live())
        watchers = [each for each in there.people.subscribers if each.here is not victim]
        try:
            await there.people.until(lambda: all("ghost" in each.view for each in watchers), "the ghost did not come")
            for watcher in watchers:
                watcher.flaps.clear()
            await victim.kill()
            gone = await there.people.until(
                lambda: not any("ghost" in each.view for each in watchers), "the ghost stays", PRESENCE
            )
            print(f"gone after {gone:.2f} s")
            await there.people.present(PRESENCE)
            for watcher in watchers:
                assert told(there, watcher, "ghost") == ["left"]
                # whoever came back to another node in time has neither left nor joined
                assert [flap for flap in watcher.flaps if flap[2] != "ghost"] == []
            there.people.nodes = survivors
            await there.people.settle()
            assert there.people.verdict() == []
        finally:
            await end(life)


async def test_a_node_that_stops_hands_over_at_once(tmp_path: Path, own_valkey: Engine) -> None:
    async with scene(tmp_path, own_valkey, names="ab") as there:
        victim, survivor = there.nodes
        ghost = Subscriber("ghost", [victim], 0, there.people.channels[:1], stays=True)
        life = asyncio.create_task(ghost.live())
        watchers = [each for each in there.people.subscribers if each.here is survivor]
        try:
            await there.people.until(lambda: all("ghost" in each.view for each in watchers), "the ghost did not come")
            for watcher in watchers:
                watcher.flaps.clear()
            await victim.terminate()
            gone = await there.people.until(
                lambda: not any("ghost" in each.view for each in watchers), "the ghost stays", PRESENCE
            )
            print(f"gone {gone:.2f} s after it had stopped")
            assert gone < 5  # the grace of 3 s, and not a lease
            await there.people.present(PRESENCE)
            for watcher in watchers:
                assert told(there, watcher, "ghost") == ["left"]
                assert [flap for flap in watcher.flaps if flap[2] != "ghost"] == []
            there.people.nodes = [survivor]
            await there.people.settle()
            assert there.people.verdict() == []
        finally:
            await end(life)


async def test_stopped_and_resumed(tmp_path: Path, own_valkey: Engine) -> None:
    async with scene(tmp_path, own_valkey) as there:
        await there.people.more(200)
        there.nodes[0].pause()
        await elapse(STOPPED, there.people)
        await there.people.present(PRESENCE)
        there.nodes[0].resume()
        await there.nodes[0].until_ready()
        await there.judge()


async def test_stopped_and_resumed_with_those_who_wait_for_it(tmp_path: Path, own_valkey: Engine) -> None:
    async with scene(tmp_path, own_valkey, stays=True) as there:
        await there.people.more(200)
        there.nodes[0].pause()
        await elapse(SHORTER, there.people)
        there.nodes[0].resume()
        await there.nodes[0].until_ready()
        await there.judge()


async def test_cut_off_from_the_engine_but_not_from_its_people(tmp_path: Path, own_valkey: Engine) -> None:
    async with scene(tmp_path, own_valkey, stays=True) as there:
        cut, other = there.nodes
        await there.people.more(200)
        theirs = {each.name for each in there.people.subscribers if each.here is cut}
        watchers = [each for each in there.people.subscribers if each.here is other]
        returns = [person.returns for person in there.people.people]
        there.ways[0].stall()
        gone = await there.people.until(
            lambda: not any(theirs & each.view for each in watchers), "those who are cut off stay", PRESENCE
        )
        print(f"its people are gone for the others after {gone:.2f} s")
        await elapse(5.0, there.people)
        publishers = [each for each in there.people.publishers if each.here is cut]
        assert all(each.refused for each in publishers)
        there.ways[0].heal()
        await there.judge()
        assert [person.returns for person in there.people.people] == returns  # nobody lost the connection


@pytest.mark.parametrize("attempt", range(3))
async def test_several_start_at_once_on_an_empty_engine(tmp_path: Path, own_valkey: Engine, attempt: int) -> None:
    nodes = [Node(own_valkey.url, tmp_path, name, **ROOMY) for name in "abc"]
    try:
        await asyncio.gather(*(node.start(wait=False) for node in nodes))
        await asyncio.gather(*(node.listening() for node in nodes))
        async with Trial(nodes) as people:
            await people.more(100)
            there = Scene(nodes, [], people, {node.name: node.rss for node in nodes})
            await there.judge()
            epochs = {sent.position.epoch for each in people.publishers for sent in each.sent if sent.position}
            assert len(epochs) == len(people.channels)
    finally:
        for node in nodes:
            await node.close()


async def test_started_before_the_engine(tmp_path: Path, own_valkey: Engine) -> None:
    own_valkey.stop()
    nodes = [Node(own_valkey.url, tmp_path, name, **ROOMY) for name in "ab"]
    try:
        await asyncio.gather(*(node.start() for node in nodes))
        for node in nodes:
            await node.until_ready(False)
        await asyncio.to_thread(own_valkey.start)
        for node in nodes:
            await node.until_ready()
        async with Trial(nodes) as people:
            await Scene(nodes, [], people, {}).judge()
    finally:
        for node in nodes:
            await node.close()


async def test_a_node_without_subscribers_knows_who_is_there(tmp_path: Path, own_valkey: Engine) -> None:
    async with scene(tmp_path, own_valkey) as there, running_node(own_valkey.url, tmp_path, "idle") as idle:
        await there.people.present(PRESENCE, [idle])


async def test_asked_to_end_while_it_starts(tmp_path: Path) -> None:
    node = Node("", tmp_path)
    try:
        for _ in range(3):
            await node.start(wait=False)
            # as soon as it does something of its own about SIGTERM, before it serves
            async with asyncio.timeout(WITHIN):
                while not node.catches(signal.SIGTERM):
                    await asyncio.sleep(0)
            await node.terminate()
    finally:
        await node.close()
