"""What each fault of the engine does to people on two nodes: the table in docs/reliability.md."""

from __future__ import annotations

import asyncio
import shutil
import signal
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.engine_scene import Scene, elapse, scene
from tests.engine_support import HOST, WITHIN, Engine, until
from tests.fault_proxy import fault_proxy

pytestmark = [pytest.mark.anyio, pytest.mark.slow]

DEAF: float = 5.0
"""Seconds within which a node knows that it hears nothing."""


@pytest.fixture
def lasting_valkey() -> Iterator[Engine]:
    """A Valkey that keeps whatever it has answered."""
    with Engine(appendonly="yes") as engine:
        yield engine


async def refused(there: Scene) -> None:
    """Wait until every publisher was refused: all have noticed the fault."""
    await there.people.until(lambda: all(each.refused for each in there.people.publishers), "not all were refused")


async def test_restarted_empty(tmp_path: Path, own_valkey: Engine) -> None:
    async with scene(tmp_path, own_valkey) as there:
        await there.people.more(200)
        await asyncio.to_thread(own_valkey.restart)
        await there.judge(kept=False, gaps=True)
        assert all(heard.gaps for each in there.people.subscribers for heard in each.heard.values())


async def test_emptied(tmp_path: Path, own_valkey: Engine) -> None:
    async with scene(tmp_path, own_valkey) as there:
        await there.people.more(200)
        await asyncio.to_thread(own_valkey.call, "FLUSHALL")
        await there.judge(kept=False, gaps=True)
        assert all(heard.gaps for each in there.people.subscribers for heard in each.heard.values())


async def test_killed_and_back_with_its_file(tmp_path: Path, lasting_valkey: Engine) -> None:
    async with scene(tmp_path, lasting_valkey) as there:
        await there.people.more(200)
        for _ in range(3):
            await asyncio.to_thread(lasting_valkey.restart, signal.SIGKILL)
            await there.people.flows()
        await there.judge()


async def test_away_for_longer_than_a_publication_may_wait(tmp_path: Path, lasting_valkey: Engine) -> None:
    async with scene(tmp_path, lasting_valkey) as there:
        await there.people.more(200)
        await asyncio.to_thread(lasting_valkey.kill)
        await refused(there)
        for node in there.nodes:
            await node.until_ready(False, DEAF)
        returns = [person.returns for person in there.people.people]
        await asyncio.to_thread(lasting_valkey.start)
        await there.judge()
        assert [person.returns for person in there.people.people] == returns  # sessions stay


async def test_paused(tmp_path: Path, lasting_valkey: Engine) -> None:
    async with scene(tmp_path, lasting_valkey) as there:
        await there.people.more(200)
        await asyncio.to_thread(lasting_valkey.pause)
        for node in there.nodes:
            await node.until_ready(False, DEAF)
        await refused(there)
        lasting_valkey.resume()
        await there.judge()


async def test_a_replica_promoted_without_the_last_second(tmp_path: Path, own_valkey: Engine) -> None:
    async with fault_proxy((HOST, own_valkey.port)) as lagging:
        with Engine(replica_of=(HOST, lagging.port)) as second:
            await asyncio.to_thread(
                until, lambda: second.info("replication").get("master_link_status") == "up", "the replica did not sync"
            )
            async with scene(tmp_path, own_valkey) as there:
                await there.people.more(200)
                lagging.stall()
                await elapse(1.0, there.people)
                await there.people.more(200)
                second.call("REPLICAOF", "NO", "ONE")
                for way in there.ways:
                    way.target = (HOST, second.port)
                await asyncio.to_thread(own_valkey.kill)
                await there.judge(kept=False, gaps=True)


async def test_a_replica_promoted_that_had_everything(tmp_path: Path, own_valkey: Engine) -> None:
    with Engine(replica_of=own_valkey) as second:
        async with scene(tmp_path, own_valkey) as there:
            await there.people.more(200)
            # no write may be lost on the way: as a planned failover does it
            own_valkey.call("CLIENT", "PAUSE", 2000, "WRITE")
            await asyncio.to_thread(
                until,
                lambda: (
                    own_valkey.info("replication")["master_repl_offset"]
                    == second.info("replication")["slave_repl_offset"]
                ),
                "the replica did not catch up",
            )
            second.call("REPLICAOF", "NO", "ONE")
            for way in there.ways:
                way.target = (HOST, second.port)
            await asyncio.to_thread(own_valkey.kill)
            await there.judge()


async def test_two_primaries_for_two_seconds(tmp_path: Path, own_valkey: Engine) -> None:
    """One node goes on with the old primary while the other is with the new one, as when a network parts."""
    with Engine(replica_of=own_valkey) as second:
        async with scene(tmp_path, own_valkey, stays=True) as there:
            await there.people.more(200)
            await asyncio.to_thread(
                until, lambda: second.info("replication")["master_link_status"] == "up", "it is no replica yet"
            )
            second.call("REPLICAOF", "NO", "ONE")
            there.ways[1].target = (HOST, second.port)
            there.ways[1].reset()
            await elapse(2.0, there.people)
            for each in (own_valkey, second):
                await _is_written(each, there)
            there.ways[0].target = (HOST, second.port)
            own_valkey.call("REPLICAOF", HOST, second.port)  # what is demoted refuses, and loses what only it had
            await there.judge(kept=False, gaps=True)


async def _is_written(engine: Engine, there: Scene) -> None:
    """Twenty publications may all be of the other node."""
    before = int(engine.info("replication")["master_repl_offset"])
    async with asyncio.timeout(WITHIN):
        while int(engine.info("replication")["master_repl_offset"]) <= before:
            await there.people.more(20)


async def test_restored_from_an_older_copy(tmp_path: Path, lasting_valkey: Engine) -> None:
    async with scene(tmp_path, lasting_valkey) as there:
        await there.people.more(200)
        await asyncio.to_thread(lasting_valkey.kill)
        kept, copy = lasting_valkey.home / "appendonlydir", tmp_path / "copy"
        shutil.copytree(kept, copy)
        await asyncio.to_thread(lasting_valkey.start)
        await there.people.flows()
        await there.people.more(100)
        await asyncio.to_thread(lasting_valkey.kill)
        lasting_valkey.wipe()
        shutil.copytree(copy, kept)
        await asyncio.to_thread(lasting_valkey.start)
        await there.judge(kept=False, gaps=True)


async def test_a_node_knows_that_it_is_deaf(tmp_path: Path, own_valkey: Engine) -> None:
    async with scene(tmp_path, own_valkey, stays=True) as there:
        there.ways[0].stall()
        noticed = await there.nodes[0].until_ready(False, DEAF)
        assert (await there.nodes[1].ready())[0] == 200
        print(f"known after {noticed:.2f} s")
        there.ways[0].heal()
        await there.nodes[0].until_ready()
        await there.judge()


@pytest.mark.parametrize("way", ["up", "down"])
async def test_a_node_knows_that_one_way_is_cut(tmp_path: Path, own_valkey: Engine, way: str) -> None:
    async with scene(tmp_path, own_valkey, stays=True) as there:
        there.ways[0].stall(way)  # type: ignore[arg-type]  # pytest has no literals
        await there.nodes[0].until_ready(False, DEAF)
        there.ways[0].heal()
        await there.nodes[0].until_ready()
        await there.judge()


async def test_connections_are_reset(tmp_path: Path, own_valkey: Engine) -> None:
    async with scene(tmp_path, own_valkey, stays=True) as there:
        for _ in range(5):
            for way in there.ways:
                way.reset()
            await there.people.flows()
        await there.judge()


async def test_subscriptions_are_cut(tmp_path: Path, own_valkey: Engine) -> None:
    async with scene(tmp_path, own_valkey, stays=True) as there:
        for _ in range(5):
            own_valkey.call("CLIENT", "KILL", "TYPE", "pubsub")
            await there.people.more(50)
        await there.judge()


async def test_the_last_word_comes_though_nothing_follows_it(tmp_path: Path, own_valkey: Engine) -> None:
    """What was missed is had when the node hears again, and not only when the next publication shows the hole."""
    async with scene(tmp_path, own_valkey, stays=True) as there:
        deaf, other = there.nodes
        async with deaf.client("alice") as alice, other.client("bob") as bob:
            await alice.ask("subscribe", channel="fault:quiet")
            await bob.ask("publish", channel="fault:quiet", data="first")
            await alice.expect("publication", data="first")
            for cut in (there.ways[0].reset, lambda: own_valkey.call("CLIENT", "KILL", "TYPE", "pubsub")):
                there.ways[0].stall()
                await bob.ask("publish", channel="fault:quiet", data="last word")
                cut()
                there.ways[0].heal()
                await alice.expect("publication", data="last word")
        await there.judge()


async def test_slow(tmp_path: Path, own_valkey: Engine) -> None:
    async with scene(tmp_path, own_valkey, stays=True) as there:
        for way in there.ways:
            way.delay, way.jitter = 0.3, 0.05
        returns = [person.returns for person in there.people.people]
        await there.people.flows()
        await elapse(5.0, there.people)
        assert [(await node.ready())[0] for node in there.nodes] == [200, 200]  # slow is not away
        await there.people.flows()
        for way in there.ways:
            way.heal()
        await there.judge()
        assert [person.returns for person in there.people.people] == returns
        assert not any(each.refused for each in there.people.publishers)


async def test_in_small_pieces(tmp_path: Path, own_valkey: Engine) -> None:
    async with scene(tmp_path, own_valkey, stays=True) as there:
        for way in there.ways:
            way.slice = 7
        await there.people.more(300)
        await there.judge()


async def test_more_comes_than_it_takes(tmp_path: Path, own_valkey: Engine) -> None:
    """While it stands still, so much waits for it as is allowed, and the rest is refused at once."""
    settings = {"valkey_queue": 100, "valkey_timeout": 2.0}
    async with scene(tmp_path, own_valkey, settings=settings, stays=True) as there:
        node = there.nodes[0]
        async with node.client("flood") as flood:
            own_valkey.pause()
            for number in range(3000):
                await flood.send("publish", channel="other", data="x" * 1000, ref=str(number))
            answers = [await flood.receive() for _ in range(3000)]
            own_valkey.resume()
        codes = Counter(answer.get("code", answer["type"]) for answer in answers)
        assert codes["busy"] > 2000
        assert codes["ack"] + codes["unavailable"] + codes["busy"] == 3000
        await there.judge()


@pytest.mark.parametrize("long", [False, True], ids=["soon", "when it was taken for gone"])
async def test_a_notification_meanwhile_is_had_afterwards(tmp_path: Path, own_valkey: Engine, long: bool) -> None:
    async with scene(tmp_path, own_valkey, stays=True) as there:
        deaf, other = there.nodes
        async with deaf.client("alice") as alice, other.http() as http:
            body = {"user_id": "alice", "title": "one", "message": "first"}
            assert (await http.post("/api/notifications/send", json=body)).status_code == 200
            await alice.expect("notification")
            there.ways[0].stall()
            await deaf.until_ready(False, DEAF)
            assert (await http.post("/api/notifications/send", json={**body, "title": "two"})).status_code == 200
            if long:  # the other node has just let its people leave, and nobody has cleaned up after it yet
                async with asyncio.timeout(WITHIN):
                    while own_valkey.call("ZCARD", "hubbub:{0}:n") == 2:
                        await asyncio.sleep(0)
            there.ways[0].heal()
            await deaf.until_ready()
            titles = [(await alice.expect("notification"))["data"]["title"]]
            titles += [each["data"]["title"] for each in await alice.drained() if each["type"] == "notification"]
            assert titles == ["two"]
        await there.judge()


@pytest.mark.parametrize("words", [("CLIENT", "PAUSE", 2000, "ALL"), ("DEBUG", "SLEEP", 2)], ids=lambda words: words[0])
async def test_it_stands_for_two_seconds(tmp_path: Path, own_valkey: Engine, words: tuple[str | int, ...]) -> None:
    async with scene(tmp_path, own_valkey) as there:
        await there.people.more(200)
        await asyncio.to_thread(own_valkey.call, *words)
        await there.judge()
        assert not any(each.refused for each in there.people.publishers)


async def test_scripts_are_forgotten(tmp_path: Path, own_valkey: Engine) -> None:
    async with scene(tmp_path, own_valkey) as there:
        for _ in range(10):
            own_valkey.call("SCRIPT", "FLUSH")
            await there.people.more(30)
        await there.judge()
        assert not any(each.refused for each in there.people.publishers)


async def test_its_memory_is_full(tmp_path: Path, own_valkey: Engine) -> None:
    async with scene(tmp_path, own_valkey) as there:
        used = int(own_valkey.info("memory")["used_memory"])
        own_valkey.call("CONFIG", "SET", "maxmemory", used + (1 << 20))
        for publisher in there.people.publishers:
            publisher.filler = "x" * 8_000
        await refused(there)
        await elapse(2.0, there.people)
        own_valkey.call("CONFIG", "SET", "maxmemory", 0)
        await there.judge()
        codes = {code for each in there.people.publishers for code in each.refused}
        assert codes == {"unavailable"}


@pytest.mark.parametrize("policy", ["allkeys-lru", "allkeys-random"])
async def test_it_evicts(tmp_path: Path, own_valkey: Engine, policy: str) -> None:
    async with scene(tmp_path, own_valkey) as there:
        used = int(own_valkey.info("memory")["used_memory"])
        own_valkey.call("CONFIG", "SET", "maxmemory-policy", policy)
        own_valkey.call("CONFIG", "SET", "maxmemory", used + (1 << 20))
        for publisher in there.people.publishers:
            publisher.filler = "x" * 8_000
        await there.people.until(
            lambda: int(own_valkey.info("stats")["evicted_keys"]) > 20 or there.people.acked > 3000,
            "nothing was evicted",
        )
        for publisher in there.people.publishers:
            publisher.filler = ""
        own_valkey.call("CONFIG", "SET", "maxmemory", 0)
        await there.people.flows()
        await there.people.present()
        await there.people.settle()
        assert there.people.verdict(kept=False) == []


async def test_its_buffer_for_a_slow_node_is_full(tmp_path: Path, own_valkey: Engine) -> None:
    own_valkey.call("CONFIG", "SET", "client-output-buffer-limit", "pubsub 128kb 0 0")
    async with scene(tmp_path, own_valkey, stays=True) as there:
        for publisher in there.people.publishers:
            publisher.filler = "x" * 20_000
        before = int(own_valkey.info("stats").get("client_output_buffer_limit_disconnections", 0))
        there.nodes[0].pause()
        await there.people.until(
            lambda: int(own_valkey.info("stats")["client_output_buffer_limit_disconnections"]) > before,
            "the engine cut nobody off",
        )
        there.nodes[0].resume()
        for publisher in there.people.publishers:
            publisher.filler = ""
        await there.judge()
