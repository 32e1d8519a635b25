"""An engine whose memory is full, and that evicts nothing: what needs more of it is refused, whatever its channel is called.
Reading, coming back, messages between nodes, revocations and limits go on."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from hubbub import AsyncPublisher
from hubbub.brokers.valkey.counters import EngineCounters
from hubbub.errors import ClientError
from hubbub.messages import Position
from tests.engine_support import Engine
from tests.support import Running, running, settings_for
from tests.support import until as until_it
from tests.test_behaviour_nodes import refuses, with_token
from tests.test_valkey_broker import KEEPS, had, node, publication, until

pytestmark = pytest.mark.anyio
NAMES = 300
"""More than one batch has room for."""


@pytest.fixture
def lasting_valkey() -> Iterator[Engine]:
    """A Valkey that keeps whatever it has answered, its settings too."""
    with Engine(appendonly="yes", appendfsync="always") as engine:
        yield engine


def fill(engine: Engine) -> None:
    """From here on every byte is one too many."""
    engine.call("CONFIG", "SET", "maxmemory", "1")


def make_room(engine: Engine) -> None:
    engine.call("CONFIG", "SET", "maxmemory", "0")


def channels(engine: Engine) -> set[bytes]:
    """Whatever the engine keeps of channels."""
    return {key for kind in "mho" for key in engine.call("KEYS", f"hubbub:{{*}}:{kind}:*")}


@asynccontextmanager
async def server(engine: Engine, **settings: Any) -> AsyncIterator[Running]:
    async with running(settings_for(valkey_url=engine.unix_url, **settings)) as one:
        await until_it(lambda: one.hub.broker.healthy, "the engine is there")
        yield one


# -- what needs memory


async def test_no_name_gets_around_the_bound(own_valkey: Engine) -> None:
    async with node(own_valkey.unix_url) as (broker, _):
        await broker.publish("old", publication("0"), KEEPS)
        before = channels(own_valkey)
        fill(own_valkey)
        answers = await asyncio.gather(
            *(broker.publish(f"new:{number}", publication("x"), KEEPS) for number in range(NAMES)),
            broker.publish("old", publication("behind new ones"), KEEPS),
            *(broker.publish(f"once:{number}", publication("x"), KEEPS, once="key") for number in range(NAMES)),
            *(broker.publish(f"version:{number}", publication("x"), KEEPS, version=1) for number in range(NAMES)),
            return_exceptions=True,
        )
        assert [str(answer) for answer in answers if not isinstance(answer, ClientError)] == []
        assert channels(own_valkey) == before
        make_room(own_valkey)
        assert (await broker.publish("old", publication("1"), KEEPS)).offset == 2
        assert (await broker.publish("new:1", publication("1"), KEEPS)).offset == 1


async def test_names_that_are_asked_for_take_no_memory(own_valkey: Engine) -> None:
    """Yet they can be: who signs in or subscribes for the first time is let in, and hears what comes when there is room."""
    async with node(own_valkey.unix_url) as (one, _), node(own_valkey.unix_url) as (two, _):
        fill(own_valkey)
        for number in range(50):
            found = await one.recover(f"name:{number}", None, 0, KEEPS)
            assert found.position.offset == 0
            assert await one.history(f"name:{number}", None, None, 10, KEEPS) == (found.position, [], False)
        assert channels(own_valkey) == set()
        here, there = [(await each.recover("name:1", None, 0, KEEPS)).position for each in (one, two)]
        assert here == there, "all who ask are told the same"
        again = await two.recover("name:1", here, 10, KEEPS)
        assert (again.recovered, again.publications) == (True, [])
        make_room(own_valkey)
        await one.publish("name:1", publication("1"), KEEPS)
        later = await two.recover("name:1", here, 10, KEEPS)
        assert (later.recovered, later.fresh) == (False, 0), "it is not known what came since, and so it is said"


async def test_a_position_of_a_name_that_was_not_kept_is_not_good_for_long(own_valkey: Engine) -> None:
    """What comes afterwards is kept for a day at least: within the hour, nothing can have come and gone."""
    async with node(own_valkey.unix_url) as (broker, _):
        fill(own_valkey)
        position = (await broker.recover("name", None, 0, KEEPS)).position
        life, _, generation = position.epoch.partition(".")
        hour = int(own_valkey.call("TIME")[0]) // 3600
        assert hour - int(life.removeprefix("~")) in (0, 1)
        earlier = await broker.recover("name", Position(f"~{hour - 2}.{generation}", 0), 10, KEEPS)
        assert not earlier.recovered


# -- what needs none


async def test_what_is_there_is_read(own_valkey: Engine) -> None:
    async with node(own_valkey.unix_url) as (broker, _):
        for text in "012":
            last = await broker.publish("a", publication(text), KEEPS)
        fill(own_valkey)
        found = await broker.recover("a", Position(last.epoch, 1), 10, KEEPS)
        assert (found.recovered, [each.offset for each in found.publications]) == (True, [2, 3])
        _, page, more = await broker.history("a", None, None, 2, KEEPS)
        assert ([each.offset for each in page], more) == ([2, 3], True)


async def test_a_full_engine_is_come_back_to(lasting_valkey: Engine) -> None:
    """After a restart the fence and each position are of a new generation, and that has to be written."""
    async with node(lasting_valkey.unix_url) as (broker, heard):
        for text in "012":
            positions = [await broker.publish("a", publication(text), KEEPS)]
        fill(lasting_valkey)
        lasting_valkey.call("CONFIG", "REWRITE")
        for restarts in (1, 2):
            await asyncio.to_thread(lasting_valkey.restart)
            await until(lambda restarts=restarts: broker.stats.fences == restarts, "it is noticed")  # type: ignore[misc]
            for position in positions:
                found = await had(lambda since=position: broker.recover("a", Position(since.epoch, 1), 10, KEEPS))  # type: ignore[misc]
                assert (found.recovered, [each.offset for each in found.publications]) == (True, [2, 3])
            positions.append(found.position)
        assert broker.healthy
        assert None in heard.losses
        assert len({position.epoch for position in positions}) == 3
        with pytest.raises(ClientError, match="memory is full"):
            await broker.publish("a", publication("3"), KEEPS)
        make_room(lasting_valkey)
        assert await broker.publish("a", publication("3"), KEEPS) == Position(positions[-1].epoch, 4)
        (kept,) = (await broker.recover("a", positions[0], 10, KEEPS)).publications
        assert kept.offset == 4


async def test_nodes_tell_each_other(own_valkey: Engine) -> None:
    async with server(own_valkey) as one, server(own_valkey) as two:
        await until_it(lambda: len(one.hub.cluster.others) == len(two.hub.cluster.others) == 1, "they know each other")
        async with two.client("bob") as bob, two.client("carol") as carol:
            fill(own_valkey)
            assert await one.hubbub.broadcast("t", "m") == 2
            assert (await carol.expect("broadcast_notification"))["data"]["title"] == "t"
            assert await one.hubbub.subscribe("carol", "news") == 1
            assert await one.hubbub.count_sessions("bob") == 1
            assert await one.hubbub.disconnect("bob") == 1
            assert await bob.closed() == 1000


async def test_messages_between_nodes_take_no_more_than_before(
    own_valkey: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hubbub.brokers.valkey.bus.KEPT", 20)
    async with node(own_valkey.unix_url) as (broker, _):
        fill(own_valkey)
        assert broker.peers is not None
        for _ in range(50):
            await broker.peers.tell(b"x")
        assert own_valkey.call("XLEN", "hubbub:{0}:b:all") == 20
        assert 0 < own_valkey.call("TTL", "hubbub:{0}:b:all") <= 300


async def test_who_is_revoked_is_out_everywhere(own_valkey: Engine) -> None:
    async with server(own_valkey) as one, server(own_valkey) as two:
        await until_it(lambda: len(one.hub.cluster.others) == len(two.hub.cluster.others) == 1, "they know each other")
        first, second, stolen = two.token("mallory"), two.token("eve"), two.token("bob", jti="stolen")
        async with (
            with_token(two, first) as mallory,
            with_token(two, second) as eve,
            with_token(two, stolen) as thief,
            one.http() as http,
            AsyncPublisher(own_valkey.unix_url) as outside,
        ):
            for client in (mallory, eve, thief):
                await client.expect("auth_success")
            fill(own_valkey)
            answer = await http.post("/api/sessions/disconnect", json={"user_id": "mallory", "revoke": True})
            assert answer.json() == {"disconnected": 1, "complete": True}
            answer = await http.post("/api/sessions/disconnect", json={"token_id": "stolen"})
            assert answer.json() == {"disconnected": 1, "complete": True}
            await outside.disconnect("eve", revoke=True)
            assert [await client.closed() for client in (mallory, eve, thief)] == [4401, 4401, 4401]
        async with server(own_valkey) as later:
            for each in (one, two, later):
                for token in (first, second, stolen):
                    assert await refuses(each, token)


async def test_people_sign_in_and_hear_what_comes_when_there_is_room(own_valkey: Engine) -> None:
    async with server(own_valkey) as one, server(own_valkey) as two:
        await until_it(lambda: len(one.hub.cluster.others) == 1, "they know each other")
        fill(own_valkey)
        async with two.client("bob") as bob, one.client("alice") as alice:
            answer = await bob.ask("subscribe", channel="news")
            assert (answer["type"], answer["offset"]) == ("subscribed", 0)
            assert (await alice.ask("publish", channel="news", data=1))["code"] == "unavailable"
            make_room(own_valkey)
            assert (await alice.ask("publish", channel="news", data=2))["offset"] == 1
            assert (await bob.expect("publication"))["data"] == 2
            assert await one.hubbub.notify("bob", "t", "m") == 1
            assert (await bob.expect("notification"))["data"]["title"] == "t"


async def test_limits_hold_over_all_nodes(own_valkey: Engine) -> None:
    counters = EngineCounters(settings_for(valkey_url=own_valkey.unix_url))
    try:
        fill(own_valkey)
        assert (await counters.take("user", "alice", 0.001, 10, 8))[0] == 8
        assert (await counters.take("user", "alice", 0.001, 10, 8))[0] == 2
    finally:
        await counters.close()
