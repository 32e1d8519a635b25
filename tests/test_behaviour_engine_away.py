"""While the engine is away: what one has stays, what could not be had leaves nothing, and what needs no engine goes on."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from fastapi import FastAPI

from hubbub import Hubbub, SessionClosed
from hubbub.errors import BrokerUnavailable, ClientError, ErrorCode
from hubbub.testing import HandClock, MemoryEngine
from tests.engine_support import Engine
from tests.fault_proxy import fault_proxy
from tests.support import Client, Running, running, settings_for, until

pytestmark = pytest.mark.anyio

LIVE = {"room_id": "stage", "kind": "live", "visibility": "public"}


class There:
    """A server on an engine that is in this process, and its people."""

    def __init__(self, server: Running, engine: MemoryEngine, clock: HandClock, alice: Client, bob: Client) -> None:
        self.server = server
        self.engine = engine
        self.clock = clock
        self.alice = alice
        self.bob = bob

    def channels_of(self, user_id: str) -> list[str]:
        """What a user is subscribed to, as the hub has it; it must be so with its channels too."""
        hub = self.server.hub
        names = [name for session in hub.users[user_id] for name in session.channels]
        for channel in hub.channels.values():
            within = [link.session.user_id for link in channel.links() if link.session is not None]
            assert (user_id in within) == (channel.name in names)
            assert channel.order is None
        assert not hub.attempts
        return sorted(names)

    async def turns(self) -> None:
        for _ in range(30):
            await asyncio.sleep(0)

    def late(self) -> None:
        """More time goes by than a handler may take."""
        self.clock.advance(self.server.hubbub.settings.handler_timeout + 1)
        self.server.hub.sweep()


@asynccontextmanager
async def there(declare: Callable[[Hubbub], None] | None = None, **settings: Any) -> AsyncIterator[There]:
    clock = HandClock()
    engine = MemoryEngine(clock)
    chosen = settings_for(**settings)
    app = FastAPI()
    hub = Hubbub(app, settings=chosen, clock=clock, broker=engine.broker(chosen))
    if declare is not None:
        declare(hub)
    async with (
        running(chosen, app=app) as server,
        server.client("alice") as alice,
        server.client("bob") as bob,
    ):
        yield There(server, engine, clock, alice, bob)


async def hears(server: Running, client: Client, channel: str = "news") -> None:
    """A publication reaches it, and nothing is before it."""
    await server.hubbub.publish(channel, "is it there?")
    assert (await client.receive())["data"] == "is it there?"


async def watches(client: Client, channel: str) -> None:
    await client.ask("subscribe", channel=channel, presence=True)
    await client.expect("presence_changed")  # of its own coming


# -- subscribing again -----------------------------------------------------------------------------------------------


async def test_who_subscribes_again_while_the_engine_is_away_stays_subscribed(own_valkey: Engine) -> None:
    async with (
        fault_proxy(("127.0.0.1", own_valkey.port)) as way,
        running(settings_for(valkey_url=way.url)) as server,
        server.client("alice") as alice,
        server.client("bob") as bob,
    ):
        broker = server.hub.broker
        await until(lambda: broker.healthy)
        assert (await alice.ask("subscribe", channel="news"))["type"] == "subscribed"
        assert (await bob.ask("subscribe", channel="news", presence=True))["count"] == 2
        await way.refuse()
        way.reset()
        await until(lambda: not broker.healthy)
        assert await alice.refused("subscribe", channel="news", presence=True) == "unavailable"
        assert await alice.refused("subscribe", channel="other") == "unavailable"
        await way.accept()
        await until(lambda: broker.healthy)
        assert (await bob.ask("publish", channel="news", data=1))["type"] == "ack"
        await alice.expect("publication", data=1)
        assert [m["type"] for m in await bob.drained()] == ["publication"], "nobody was said to have left"
        assert (await alice.ask("unsubscribe", channel="news"))["type"] == "unsubscribed"
        assert await alice.refused("unsubscribe", channel="other") == "not_subscribed"


@pytest.mark.parametrize("fields", [{}, {"presence": True}, {"since": {"epoch": "e", "offset": 1}}])
async def test_whatever_it_was_for(fields: dict[str, Any]) -> None:
    async with there(presence_grace=0.0) as at:
        await at.alice.ask("subscribe", channel="news")
        await watches(at.bob, "news")
        at.engine.cut(at.server)
        assert await at.alice.refused("subscribe", channel="news", **fields) == "unavailable"
        at.engine.heal(at.server)
        await at.turns()
        assert at.channels_of("alice") == ["news"]
        await hears(at.server, at.alice)
        assert [m["type"] for m in await at.bob.drained()] == ["publication"], "nobody was said to have left"


async def test_the_app_subscribes_somebody_who_is_subscribed() -> None:
    async with there() as at:
        await at.alice.ask("subscribe", channel="news")
        at.engine.cut(at.server)
        with pytest.raises(BrokerUnavailable):
            await at.server.hubbub.subscribe("alice", "news")
        with pytest.raises(BrokerUnavailable):
            await at.server.hubbub.subscribe("alice", "other")
        at.engine.heal(at.server)
        await at.turns()
        assert at.channels_of("alice") == ["news"]
        await hears(at.server, at.alice)


async def test_a_live_room_is_joined_again() -> None:
    async with there() as at:
        assert (await at.alice.ask("create_room", **LIVE))["type"] == "room_created"
        for client in (at.alice, at.bob):
            assert (await client.ask("join_room", room_id="stage"))["type"] == "room_joined"
        await at.alice.drained()
        at.engine.cut(at.server)
        assert await at.alice.refused("join_room", room_id="stage") == "unavailable"
        at.engine.heal(at.server)
        await at.turns()
        assert at.channels_of("alice") == ["room:stage"]
        assert (await at.bob.ask("chat_message", room_id="stage", message="hello"))["type"] == "ack"
        assert [m["type"] for m in await at.alice.drained()] == ["message"]
        assert [m["type"] for m in await at.bob.drained()] == []


async def test_a_room_that_cannot_be_joined_is_not() -> None:
    async with there() as at:
        await at.alice.ask("create_room", **LIVE)
        at.engine.cut(at.server)
        assert await at.alice.refused("join_room", room_id="stage") == "unavailable"
        assert at.channels_of("alice") == []
        assert not at.server.hub.channels
        assert await at.alice.refused("leave_room", room_id="stage") == "not_joined"


async def test_of_ones_own_channel_all_goes_on_coming() -> None:
    async with there() as at:
        await at.alice.ask("subscribe", channel="user:alice")
        at.engine.cut(at.server)
        assert await at.alice.refused("subscribe", channel="user:alice") == "unavailable"
        at.engine.heal(at.server)
        await at.turns()
        await at.server.hubbub.notify("alice", "still there", "")
        assert (await at.alice.expect("notification"))["data"]["title"] == "still there"


async def test_a_handler_that_took_too_long_ends_nothing_and_leaves_nothing() -> None:
    async with there() as at:
        await at.alice.ask("subscribe", channel="news")
        for channel in ("news", "other"):
            at.engine.stall()
            await at.alice.send("subscribe", channel=channel, presence=True, ref="late")
            await until(lambda: bool(at.server.hub.attempts))
            await at.turns()
            at.late()
            assert (await at.alice.expect("error", ref="late"))["code"] == "busy"
            at.engine.resume()
            await until(lambda: not at.server.hub.attempts)
            assert at.channels_of("alice") == ["news"]
            await hears(at.server, at.alice)
        assert list(at.server.hub.channels) == ["news"]


async def test_a_limit_counts_no_subscription_that_failed() -> None:
    async with there(max_channels_per_session=1) as at:
        at.engine.cut(at.server)
        assert await at.alice.refused("subscribe", channel="one") == "unavailable"
        at.engine.heal(at.server)
        assert (await at.alice.ask("subscribe", channel="two"))["type"] == "subscribed"
        assert await at.alice.refused("subscribe", channel="three") == "too_many"
        assert at.channels_of("alice") == ["two"]


@pytest.mark.parametrize("fails", ["at its state", "at its second reading", "at its history, each time"])
async def test_a_state_that_cannot_be_had(fails: str) -> None:
    broken = False
    loaded: list[str] = []

    def declare(hub: Hubbub) -> None:
        topic = hub.channel("board:{name}", history=1)

        @topic.on_subscribe
        async def state(name: str) -> dict[str, str]:
            if broken:
                loaded.append(name)
                if fails == "at its state":
                    raise ClientError(ErrorCode.NOT_FOUND, "it is gone")
                if fails == "at its second reading":
                    at.engine.cut(at.server)
                else:
                    for number in range(3):
                        await hub.publish(f"board:{name}", number)
            return {"name": name}

    async with there(declare) as at:
        position = {"epoch": "another", "offset": 7}
        assert (await at.alice.ask("subscribe", channel="board:a"))["state"] == {"name": "a"}
        await watches(at.bob, "board:a")
        broken = True
        for channel in ("board:a", "board:b"):
            answer = await at.alice.ask("subscribe", channel=channel, presence=True, since=position)
            assert answer["type"] == "error"
            at.engine.heal(at.server)
            await at.turns()
            assert at.channels_of("alice") == ["board:a"]
        assert loaded
        await at.alice.drained()
        assert {m["type"] for m in await at.bob.drained()} <= {"publication"}
        await hears(at.server, at.alice, "board:a")
        watchers = at.server.hub.channels["board:a"].watchers or set()
        assert [link.session.user_id for link in watchers if link.session is not None] == ["bob"]


# -- ended, or made twice, meanwhile -----------------------------------------------------------------------------------


async def test_what_the_app_ends_while_it_is_made_is_not_said_to_be_there() -> None:
    async with there() as at:
        at.engine.stall()
        await at.alice.send("subscribe", channel="news", ref="s")
        await until(lambda: bool(at.server.hub.attempts))
        (session,) = at.server.hubbub.sessions("alice")
        assert await session.unsubscribe("news", reason="not paid")
        at.engine.resume()
        assert (await at.alice.receive())["reason"] == "not paid"
        answer = await at.alice.receive()
        assert (answer["type"], answer["code"], answer["ref"]) == ("error", "conflict", "s")
        await at.turns()
        assert at.channels_of("alice") == []
        assert not at.server.hub.channels
        assert (await at.alice.ask("subscribe", channel="news"))["type"] == "subscribed"
        await hears(at.server, at.alice)


async def test_what_is_made_anew_after_it_was_ended_is_there() -> None:
    async with there() as at:
        (session,) = at.server.hubbub.sessions("alice")
        await at.alice.ask("subscribe", channel="news")
        at.engine.stall()
        await at.alice.send("subscribe", channel="news", ref="s")
        await until(lambda: bool(at.server.hub.attempts))
        await session.unsubscribe("news")
        anew = asyncio.create_task(session.subscribe("news"))
        await at.turns()
        at.engine.resume()
        await anew
        kinds = [(await at.alice.receive())["type"] for _ in range(3)]
        assert kinds[0] == "unsubscribed"
        assert sorted(kinds[1:]) == ["error", "subscribed"]
        assert at.channels_of("alice") == ["news"]
        await hears(at.server, at.alice)


async def test_who_has_gone_while_it_subscribes_leaves_nothing() -> None:
    async with there() as at, at.server.client("carol") as carol:
        refused = dict(at.server.hub.metrics.errors)
        at.engine.stall()
        await carol.send("subscribe", channel="news")
        await until(lambda: bool(at.server.hub.attempts))
        (session,) = at.server.hubbub.sessions("carol")
        by_the_app = asyncio.create_task(session.subscribe("news"))
        await at.turns()
        carol.connection.transport.abort()
        await until(lambda: not at.server.hub.sessions_of("carol"))
        at.engine.resume()
        await until(lambda: not at.server.hub.channels)
        assert not at.server.hub.attempts
        with pytest.raises(SessionClosed):
            await by_the_app
        assert dict(at.server.hub.metrics.errors) == refused, "nobody was there to be refused anything"


# -- what needs no engine ----------------------------------------------------------------------------------------------


async def test_stored_rooms_go_on_however_many_channels_wait_for_the_engine() -> None:
    async with there(max_channels_per_session=0, rate_limit=0, user_rate_limit=0) as at:
        hub = at.server.hub
        names = [f"c:{number}" for number in range(1000)]
        for name in names:
            await at.alice.send("subscribe", channel=name)
        for name in names:
            await at.alice.expect("subscribed", channel=name)
        await at.alice.ask("create_room", room_id="team", visibility="public")
        for client in (at.alice, at.bob):
            assert (await client.ask("join_room", room_id="team"))["type"] == "room_joined"
        for name in names[::10]:
            await at.server.hubbub.publish(name, "before")
        await at.alice.drained()
        at.engine.cut(at.server)
        hub.inlet.lost(None)  # it was back for a moment
        assert (await at.alice.ask("chat_message", room_id="team", message="hello"))["type"] == "ack"
        await at.bob.expect("message")
        assert len(hub.inlet.asking) >= len(names)
        await at.alice.ask("unsubscribe", channel=names[-1])
        assert hub.channels[names[-1]].order is None, "nobody waits for it"
        at.engine.heal(at.server)
        await until(lambda: not len(hub.inlet.asking))
        await at.server.hubbub.publish(names[0], "after")
        assert (await at.alice.expect("publication"))["data"] == "after"


async def test_a_server_stops_while_many_channels_wait_for_the_engine() -> None:
    async with there(max_channels_per_session=0, rate_limit=0, user_rate_limit=0) as at:
        hub = at.server.hub
        for number in range(200):
            await at.alice.ask("subscribe", channel=f"c:{number}")
        at.engine.cut(at.server)
        hub.inlet.lost(None)
        await at.turns()
        assert len(hub.inlet.asking) >= 200
    assert not len(hub.inlet.asking)
    assert not hub.inlet.asking.running
