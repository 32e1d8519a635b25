"""Publications that are acknowledged once replicas have them (HUBBUB_VALKEY_REPLICAS), over real replication."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from hubbub.errors import BrokerUnavailable
from hubbub.messages import Position
from tests.engine_scene import elapse, scene
from tests.engine_support import HOST, Engine, until
from tests.fault_proxy import FaultProxy, fault_proxy
from tests.test_valkey_broker import KEEPS, PASSES, had, node, publication
from tests.test_valkey_broker import until as eventually

pytestmark = pytest.mark.anyio


@asynccontextmanager
async def a_replica(primary: Engine) -> AsyncIterator[tuple[Engine, FaultProxy]]:
    """A replica that is in step, and the way from it to its primary."""
    async with fault_proxy((HOST, primary.port)) as way:
        with Engine(replica_of=(HOST, way.port)) as replica:
            await asyncio.to_thread(
                until, lambda: replica.info("replication").get("master_link_status") == "up", "the replica did not sync"
            )
            yield replica, way


def kept_by(engine: Engine, channel: str) -> int:
    """How many publications of a channel an engine has."""
    return sum(int(engine.call("LLEN", key)) for key in engine.call("KEYS", f"*h:{channel}"))


async def test_what_is_acknowledged_is_with_the_replica(own_valkey: Engine) -> None:
    async with a_replica(own_valkey) as (replica, _), node(own_valkey.unix_url, valkey_replicas=1) as (broker, _):
        for number in range(1, 101):
            assert (await broker.publish("a", publication(str(number)), KEEPS)).offset == number
            assert kept_by(replica, "a") == number


async def test_many_at_once_share_their_waiting(own_valkey: Engine) -> None:
    async with a_replica(own_valkey), node(own_valkey.unix_url, valkey_replicas=1) as (broker, _):
        positions = await asyncio.gather(
            *(broker.publish("a", publication(str(number)), KEEPS) for number in range(3000))
        )
        assert [position.offset for position in positions] == list(range(1, 3001))
        waits = own_valkey.info("commandstats")["cmdstat_wait"]
        assert int(waits.removeprefix("calls=").partition(",")[0]) <= 3000 / 256 + 1


async def test_without_replicas_publishers_are_told_and_everything_else_goes_on(own_valkey: Engine) -> None:
    async with (
        a_replica(own_valkey) as (replica, way),
        node(own_valkey.unix_url, valkey_replicas=1, valkey_timeout=1.5) as (broker, heard),
    ):
        await broker.subscribe("a")
        await broker.publish("a", publication("1"), KEEPS)
        way.stall()
        with pytest.raises(BrokerUnavailable, match="too few replicas"):
            await broker.publish("a", publication("2"), KEEPS)
        assert [payload for _, payload in heard.payloads][-1] == b'{"offset":2,"text":"2"}', "it was published"
        assert broker.healthy
        assert broker.stats.connects == 1, "the connection is not to blame"
        assert (await broker.recover("a", Position("", 0), 10, KEEPS)).position.offset == 2
        waiting = asyncio.ensure_future(broker.publish("a", publication("3"), KEEPS))
        way.heal()
        assert (await waiting).offset == 3
        assert kept_by(replica, "a") == 3


async def test_what_no_replica_keeps_does_not_wait_for_any(own_valkey: Engine) -> None:
    """Typing, say, and what the store has numbered: it is handed on at once, while publications wait in vain."""
    async with (
        a_replica(own_valkey) as (_, way),
        node(own_valkey.unix_url, valkey_replicas=1, valkey_timeout=3.0) as (broker, _),
        node(own_valkey.unix_url) as (other, heard),
    ):
        for channel in ("a", "b"):
            await other.subscribe(channel)
        await broker.publish("a", publication("1"), KEEPS)
        way.stall()
        waiting = []
        for number in range(2, 12):  # in more batches than may be under way without an answer
            waiting.append(asyncio.ensure_future(broker.publish("a", publication(str(number)), KEEPS)))
            assert (await broker.publish("b", publication(str(number)), PASSES)).offset == 0
        relayed = publication("r")
        relayed.offset = 7
        await broker.relay("b", [relayed])
        assert not any(each.done() for each in waiting)
        await eventually(lambda: len(heard.payloads) == 22, "all is heard, whether it counts or not")
        way.heal()
        assert [position.offset for position in await asyncio.gather(*waiting)] == list(range(2, 12))


async def test_a_network_that_forgot_the_connection_that_waits(own_valkey: Engine) -> None:
    """It is idle whenever nobody publishes, unlike the others, and a router may forget it."""
    async with (
        a_replica(own_valkey),
        fault_proxy((HOST, own_valkey.port)) as proxy,
        node(proxy.url, valkey_replicas=1, valkey_timeout=30.0) as (broker, _),
    ):
        assert (await broker.publish("a", publication("1"), KEEPS)).offset == 1
        proxy.hold(2)
        assert (await broker.publish("a", publication("2"), KEEPS)).offset == 2, "over a new connection"
        assert broker.stats.breaks == 1


async def test_the_memory_being_full_does_not_make_it_say_more_than_there_is(own_valkey: Engine) -> None:
    async with (
        a_replica(own_valkey) as (_, way),
        node(own_valkey.unix_url, valkey_replicas=1, valkey_timeout=1.5) as (broker, _),
    ):
        await broker.publish("a", publication("1"), KEEPS)
        way.stall()
        waiting = asyncio.ensure_future(broker.publish("a", publication("2"), KEEPS))
        await asyncio.to_thread(until, lambda: kept_by(own_valkey, "a") == 2, "it is not there yet")
        own_valkey.call("CONFIG", "SET", "maxmemory", "1mb")
        with pytest.raises(BrokerUnavailable, match="too few replicas"):
            await waiting


async def test_what_a_dead_primary_had_not_passed_on_is_published_again(own_valkey: Engine) -> None:
    """It was not acknowledged, so the node still has it: the new primary gets it, once."""
    async with (
        a_replica(own_valkey) as (replica, way),
        fault_proxy((HOST, own_valkey.port)) as proxy,
        node(proxy.url, valkey_replicas=1, valkey_timeout=10.0) as (broker, _),
        # the new primary must have a replica, too
        fault_proxy((HOST, replica.port)) as onward,
    ):
        with Engine(replica_of=(HOST, onward.port)):
            first = await broker.publish("a", publication("1"), KEEPS)
            way.stall()
            waiting = [asyncio.ensure_future(broker.publish("a", publication(str(n)), KEEPS)) for n in range(2, 50)]
            await asyncio.to_thread(until, lambda: kept_by(own_valkey, "a") == 49, "they are not there yet")
            replica.call("REPLICAOF", "NO", "ONE")
            assert kept_by(replica, "a") == 1
            proxy.target = (HOST, replica.port)
            await asyncio.to_thread(own_valkey.kill)
            positions = await asyncio.gather(*waiting)
            assert [position.offset for position in positions] == list(range(2, 50))
            assert len({position.epoch for position in positions}) == 1
            assert positions[0].epoch != first.epoch
            again = await had(lambda: broker.recover("a", first, 100, KEEPS))
            assert [each.payload for each in again.publications] == [
                b'{"offset":%d,"text":"%d"}' % (n, n) for n in range(2, 50)
            ]


@pytest.mark.slow
async def test_a_failover_loses_nothing_that_was_acknowledged(tmp_path: Path, own_valkey: Engine) -> None:
    """As test_engine_faults.py::test_a_replica_promoted_without_the_last_second, and then nothing is lost."""
    async with a_replica(own_valkey) as (replica, way), fault_proxy((HOST, replica.port)) as onward:
        with Engine(replica_of=(HOST, onward.port)):
            async with scene(tmp_path, own_valkey, settings={"valkey_replicas": 1}) as there:
                await there.people.more(200)
                way.stall()
                acked = there.people.acked
                await elapse(1.0, there.people)
                assert there.people.acked - acked <= len(there.people.publishers), "it was acknowledged too early"
                replica.call("REPLICAOF", "NO", "ONE")
                for each in there.ways:
                    each.target = (HOST, replica.port)
                await asyncio.to_thread(own_valkey.kill)
                await there.judge(gaps=None)
