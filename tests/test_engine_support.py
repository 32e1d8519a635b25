"""The engines and nodes of the tests: that they are what they say."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.engine_support import Engine, EngineError, Sentinels, Shards, running_node, until

pytestmark = pytest.mark.anyio


def test_it_is_empty_after_a_restart(own_valkey: Engine) -> None:
    own_valkey.call("SET", "key", "value")
    own_valkey.restart()
    assert own_valkey.call("GET", "key") is None


def test_with_an_aof_it_keeps_what_it_answered_when_killed() -> None:
    with Engine(appendonly="yes") as engine:
        engine.call("SET", "key", "value")
        engine.kill()
        engine.start()
        assert engine.call("GET", "key") == b"value"
        engine.stop()
        engine.wipe()
        engine.start()
        assert engine.call("GET", "key") is None


def test_a_paused_one_does_not_answer(own_valkey: Engine) -> None:
    own_valkey.pause()
    with pytest.raises(OSError, match="timed out"):
        own_valkey.call("PING", timeout=0.1)
    own_valkey.resume()
    assert own_valkey.call("PING") == b"PONG"


def test_only_its_user_may_use_it() -> None:
    with Engine(user="hub", password="secret") as engine:
        assert engine.call("ACL", "WHOAMI") == b"hub"
        engine.user = ""
        with pytest.raises(EngineError, match="NOAUTH"):
            engine.call("GET", "key")


def test_nothing_stays_of_it() -> None:
    with Engine() as engine:
        pid, home = engine.pid, engine.home
    assert not home.exists()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


@pytest.mark.slow
def test_sentinels_fail_over() -> None:
    with Sentinels() as group:
        group.first.call("SET", "key", "value")
        until(lambda: bool(group.second.call("GET", "key") == b"value"), "it did not come to the replica")
        group.first.kill()
        until(lambda: group.primary() is group.second, "nobody took over")
        until(lambda: group.second.role == "master", "it is no primary")
        assert group.second.call("GET", "key") == b"value"


@pytest.mark.slow
def test_a_replica_of_a_cluster_takes_over_and_slots_move() -> None:
    with Shards(replicas=1) as shards:
        first, second, _ = shards.primaries
        slot = int(first.call("CLUSTER", "KEYSLOT", "{}a"))
        owner = next(
            each for each in shards.primaries if any(low <= slot <= high for low, high in shards.slots_of(each))
        )
        owner.call("SET", "{}a", "value")
        target = second if owner is first else first
        shards.move(slot, owner, target)
        assert target.call("GET", "{}a") == b"value"
        index = shards.primaries.index(target)
        target.kill()
        replica = shards.replicas[index]
        until(lambda: replica.role == "master", "nobody took over")


async def test_a_node_is_a_process(tmp_path: Path) -> None:
    async with running_node("", tmp_path) as node:
        await node.until_ready()
        assert node.rss > 1 << 20
        async with node.client("alice") as client:
            await client.send("subscribe", channel="orders:7")
            await client.expect("subscribed")
        assert any(name.startswith("hubbub_") for name in await node.metrics())
        await node.terminate()
        await node.start()
        await node.until_ready()
