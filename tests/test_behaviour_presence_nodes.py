"""Who is here, on several nodes: everybody is listed by all, told of once, and let go with the node that had them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import pytest
from fastapi import FastAPI

from hubbub import Hubbub
from hubbub.errors import BrokerUnavailable
from hubbub.ports import BEAT, LEASE
from hubbub.testing import HandClock, MemoryEngine
from tests.support import Client, Running, running, settings_for, until

pytestmark = pytest.mark.anyio

GRACE = 3.0


class Nodes:
    """Servers in this process that share an engine, and a clock that is turned by hand."""

    def __init__(self, stack: AsyncExitStack) -> None:
        self.stack = stack
        self.clock = HandClock()
        self.engine = MemoryEngine(self.clock)

    async def add(self, **settings: Any) -> Running:
        chosen = settings_for(presence_grace=GRACE, **settings)
        app = FastAPI()
        Hubbub(app, settings=chosen, clock=self.clock, broker=self.engine.broker(chosen))
        return await self.stack.enter_async_context(running(chosen, app=app))

    async def pass_time(self, seconds: float) -> None:
        """In steps, as it really does; what is said meanwhile is heard."""
        while seconds > 0:
            self.clock.advance(min(seconds, 0.5))
            seconds -= 0.5
            await self.turns()

    async def turns(self) -> None:
        for _ in range(30):
            await asyncio.sleep(0)


@asynccontextmanager
async def nodes(**settings: Any) -> AsyncIterator[tuple[Nodes, Running, Running]]:
    async with AsyncExitStack() as stack:
        made = Nodes(stack)
        yield made, await made.add(**settings), await made.add(**settings)


def of(messages: list[dict[str, Any]], *kinds: str) -> list[tuple[str, Any]]:
    return [(each["type"], each.get("user_id")) for each in messages if each["type"] in kinds]


def told(messages: list[dict[str, Any]]) -> list[tuple[list[str], list[str], int]]:
    """What ``presence_changed`` said: who joined, who left, how many."""
    return [(sorted(m["joined"]), m["left"], m["count"]) for m in messages if m["type"] == "presence_changed"]


async def watching(client: Client, channel: str = "news") -> dict[str, Any]:
    answer = await client.ask("subscribe", channel=channel, presence=True)
    assert answer["type"] == "subscribed", answer
    return answer


# -- channels


async def test_who_subscribes_sees_who_is_on_other_nodes_and_hears_who_comes_and_goes() -> None:
    async with nodes() as (them, one, two), one.client("alice") as alice:
        assert (await watching(alice))["count"] == 1
        async with two.client("bob", grants={"info": {"name": "Bob"}}) as bob:
            seen = await watching(bob)
            assert seen["count"] == 2
            assert {user: here["devices"] for user, here in seen["presence"].items()} == {"alice": 1, "bob": 1}
            assert told(await bob.drained()) == [(["bob"], [], 2)]
            changed = await alice.expect("presence_changed", count=2)
            assert changed["joined"]["bob"]["info"] == {"name": "Bob"}
            answer = await alice.ask("presence", channel="news")
            assert answer["users"] == seen["presence"]
            await alice.drained()
        await them.turns()
        assert told(await alice.drained()) == []
        assert (await alice.ask("presence", channel="news"))["users"]["bob"]["devices"] == 0
        await them.pass_time(GRACE + 0.5)
        assert told(await alice.drained()) == [([], ["bob"], 1)]


async def test_a_user_with_devices_on_two_nodes_is_one() -> None:
    async with nodes() as (them, one, two), one.client("bob") as bob, one.client("alice") as phone:
        await watching(bob)
        await watching(phone)
        await bob.expect("presence_changed", count=2)
        async with two.client("alice") as tablet:
            seen = await watching(tablet)
            assert seen["count"] == 2
            assert seen["presence"]["alice"]["devices"] == 2
            await them.turns()
            assert told(await bob.drained()) == []
            assert told(await tablet.drained()) == [], "alice was here already"
            assert (await bob.ask("presence", channel="news"))["users"]["alice"]["devices"] == 2
        await them.pass_time(GRACE + 1)
        assert told(await bob.drained()) == []
        assert (await bob.ask("presence", channel="news"))["users"]["alice"]["devices"] == 1
        await phone.ask("unsubscribe", channel="news")
        await them.pass_time(GRACE + 1)
        assert told(await bob.drained()) == [([], ["alice"], 1)]


async def test_a_reload_that_lands_on_another_node_is_no_leaving_and_coming() -> None:
    async with nodes() as (them, one, two), one.client("bob") as bob, two.client("carol") as carol:
        await watching(bob)
        await watching(carol)
        async with one.client("alice") as before:
            await watching(before)
            await them.turns()
        await bob.drained()
        await carol.drained()
        await them.pass_time(GRACE / 2)
        async with two.client("alice") as after:
            assert (await watching(after))["count"] == 3
            await them.pass_time(3 * GRACE)
            for client in (bob, carol, after):
                assert told(await client.drained()) == []
            assert (await bob.ask("presence", channel="news"))["users"]["alice"]["devices"] == 1


async def test_a_question_about_a_channel_that_this_node_does_not_hear() -> None:
    async with nodes() as (them, one, two), one.client("alice") as alice, two.client("bob") as bob:
        await watching(alice)
        await them.turns()
        answer = await bob.ask("presence", channel="news")
        assert (answer["count"], list(answer["users"])) == (1, ["alice"])
        async with two.http() as http:
            told_too = (await http.get("/api/channels/news/presence")).json()
        assert (told_too["count"], told_too["users"]) == (1, answer["users"])
        assert "news" not in two.hub.channels
        them.engine.cut(two.hubbub)
        assert (await bob.ask("presence", channel="news"))["count"] == 1, "an answer is good for a moment"
        two.hub.comings.others._rosters.forget()  # the moment is over
        assert (await bob.ask("presence", channel="news"))["count"] == 0, "as far as is known here"


async def test_a_channel_with_nobody_but_users_of_other_nodes_is_let_go() -> None:
    async with nodes() as (them, one, two), one.client("alice") as alice, two.client("bob") as bob:
        await watching(alice)
        await watching(bob)
        await bob.ask("unsubscribe", channel="news")
        await them.pass_time(GRACE + 1)
        assert "news" in one.hub.channels
        assert "news" not in two.hub.channels
        assert (await watching(bob))["count"] == 2


async def test_above_the_limit_only_the_number_is_told() -> None:
    async with nodes(presence_limit=2) as (them, one, two), one.client("alice") as alice, two.client("bob") as bob:
        await watching(alice)
        await watching(bob)
        async with two.client("carol") as carol:
            seen = await watching(carol)
            assert (seen["count"], seen.get("presence")) == (3, None)
            changed = await alice.expect("presence_changed", count=3)
            assert (changed["joined"], changed["left"]) == ({}, [])
        await them.pass_time(GRACE + 1)
        assert (await alice.expect("presence_changed", count=2))["left"] == ["carol"]


# -- rooms


async def test_rooms_tell_of_users_of_other_nodes_and_count_them() -> None:
    async with nodes() as (them, one, two), one.client("alice") as alice, two.client("dave") as dave:
        await alice.ask("join_room", room_id="general")
        async with two.client("bob") as bob:
            entered = await bob.ask("join_room", room_id="general")
            assert sorted(user["user_id"] for user in entered["users"]) == ["alice", "bob"]
            assert entered["count"] == 2
            await alice.expect("user_joined", user_id="bob")
            assert of(await bob.drained(), "user_joined") == [("user_joined", "bob")]
            assert of(await alice.drained(), "user_joined") == [], "once"
        await them.pass_time(GRACE + 0.5)
        assert of(await alice.drained(), "user_left") == [("user_left", "bob")]
        assert "room:general" not in two.hub.channels
        rooms = (await dave.ask("list_rooms"))["rooms"]
        assert {room["room_id"]: room["users"] for room in rooms}["general"] == 1


async def test_large_rooms_tell_the_number_of_all_nodes() -> None:
    async with nodes(presence_limit=1) as (them, one, two), one.client("alice") as alice, two.client("bob") as bob:
        await alice.ask("join_room", room_id="general")
        await bob.ask("join_room", room_id="general")
        await them.pass_time(2)
        for client in (alice, bob):
            assert [m["count"] for m in await client.drained() if m["type"] == "room_count"][-1] == 2


async def test_typing_is_seen_on_other_nodes_and_fades_with_the_node_that_it_is_on() -> None:
    async with nodes(typing_timeout=5) as (them, one, two), one.client("bob") as bob, two.client("alice") as alice:
        for client in (bob, alice):
            await client.ask("join_room", room_id="general")
        await bob.expect("user_joined", user_id="alice")
        mark = {"type": "typing", "room_id": "general", "user_id": "alice", "active": True}

        async def marks() -> list[dict[str, Any]]:
            await them.turns()
            return [message for message in await bob.drained() if message["type"] == "typing"]

        await alice.send("typing", room_id="general")
        await alice.drained()
        assert await marks() == [mark]
        for _ in range(6):  # for longer than any node would wait for a word
            await them.pass_time(3)
            await alice.send("typing", room_id="general")
            await alice.drained()
        assert await marks() == [], "it is known already"
        await them.pass_time(6)
        assert await marks() == [{**mark, "active": False}]
        # the message is the end of it, also elsewhere
        await alice.send("typing", room_id="general")
        await alice.ask("chat_message", room_id="general", message="hi")
        assert await marks() == [mark]
        await them.pass_time(15)
        assert await marks() == []
        await alice.send("typing", room_id="general")
        await alice.drained()
        assert await marks() == [mark]
        them.engine.cut(two.hubbub)
        await them.pass_time(LEASE + 2 * BEAT)
        passed = await bob.drained()
        assert [m["type"] for m in passed if m["type"] in ("typing", "user_left")] == ["typing", "user_left"]


async def test_a_mark_fades_although_its_node_cannot_say_so() -> None:
    async with nodes(typing_timeout=1) as (them, one, two), one.client("bob") as bob, two.client("alice") as alice:
        for client in (bob, alice):
            await client.ask("join_room", room_id="general")
        await bob.expect("user_joined", user_id="alice")
        await alice.send("typing", room_id="general")
        await alice.drained()
        await bob.expect("typing", active=True)
        them.engine.cut(two.hubbub)
        await them.pass_time(1.5)
        assert [m["type"] for m in await bob.drained()] == []
        await them.pass_time(1)
        assert [(m["type"], m.get("active")) for m in await bob.drained()] == [("typing", False)]


# -- faults


async def test_the_people_of_a_killed_node_leave_once_on_all_others() -> None:
    async with nodes() as (them, one, two), one.client("bob") as bob, two.client("carol") as carol:
        three = await them.add()
        await watching(bob)
        await watching(carol)
        async with three.client("alice") as alice, three.client("bob") as second:
            await watching(alice)
            await watching(second)
            await bob.expect("presence_changed", count=3)
            await carol.expect("presence_changed", count=3)
            them.engine.kill(three.hubbub)
            await them.pass_time(LEASE - BEAT)
            assert told(await bob.drained()) == told(await carol.drained()) == []
            await them.pass_time(3 * BEAT)
            assert told(await bob.drained()) == told(await carol.drained()) == [([], ["alice"], 2)]
            await them.pass_time(LEASE)
            assert told(await bob.drained()) == told(await carol.drained()) == []
            assert (await carol.ask("presence", channel="news"))["users"]["bob"]["devices"] == 1


async def test_who_comes_back_after_a_node_stopped_never_left() -> None:
    async with nodes() as (them, one, two), one.client("bob") as bob:
        await watching(bob)
        async with AsyncExitStack() as third:
            own = Nodes(third)
            own.clock, own.engine = them.clock, them.engine
            three = await own.add()
            alice = await third.enter_async_context(three.client("alice"))
            erin = await third.enter_async_context(three.client("erin"))
            await watching(alice)
            await watching(erin)
            await bob.expect("presence_changed", count=3)
            await bob.drained()
        await until(lambda: three.hub.broker.peers is not None and len(one.hub.cluster.others) == 1)
        await them.turns()
        assert told(await bob.drained()) == []
        await them.pass_time(GRACE / 2)
        async with two.client("alice") as back:
            await watching(back)
            await them.pass_time(GRACE + BEAT)
            assert told(await bob.drained()) == [([], ["erin"], 2)], "who did not come back leaves"


async def test_a_node_that_was_away_for_long_leaves_and_comes_back() -> None:
    """Stopped for half a minute, or cut off from the engine: its own clients stay, and see what is true."""
    async with nodes() as (them, one, two), one.client("alice") as alice, two.client("bob") as bob:
        await watching(alice)
        await watching(bob)
        async with two.client("carol") as carol, two.client("dave") as dave:
            await watching(carol)
            await watching(dave)
            await alice.expect("presence_changed", count=4)
            await bob.expect("presence_changed", count=4)
            them.engine.cut(one.hubbub)
            await them.pass_time(30)
            assert told(await bob.drained())[-1] == ([], ["alice"], 3)
            assert told(await alice.drained()) == []
            await carol.ask("unsubscribe", channel="news")
            await them.pass_time(GRACE + 1)
            async with two.client("erin") as erin:
                await watching(erin)
                await bob.drained()
                them.engine.heal(one.hubbub)
                await them.pass_time(1)
                assert told(await bob.drained()) == [(["alice"], [], 4)]
                assert told(await alice.drained()) == [(["erin"], [], 5)]
                await them.pass_time(LEASE + BEAT)
                assert told(await alice.drained()) == [([], ["carol"], 4)]
                assert told(await bob.drained()) == []
                mine = (await alice.ask("presence", channel="news"))["users"]
                assert mine == (await bob.ask("presence", channel="news"))["users"]


async def test_an_emptied_engine_is_told_everything_and_nobody_else_anything() -> None:
    async with nodes() as (them, one, two), one.client("alice") as alice, two.client("bob") as bob:
        await watching(alice)
        await watching(bob)
        await alice.ask("join_room", room_id="general")
        await bob.ask("join_room", room_id="general")
        await alice.expect("user_joined", user_id="bob")
        await alice.drained()
        await bob.drained()
        them.engine.restart(empty=True)
        await them.pass_time(3 * LEASE)
        for client in (alice, bob):
            kinds = {message["type"] for message in await client.drained()}
            assert not kinds & {"presence_changed", "user_joined", "user_left"}, kinds
        three = await them.add()
        async with three.client("carol") as carol:
            assert (await watching(carol))["count"] == 3


async def test_who_comes_while_the_engine_is_away_is_told_of_later() -> None:
    async with nodes() as (them, one, two), one.client("alice") as alice, two.client("bob") as bob:
        await watching(alice)
        await watching(bob)
        await alice.expect("presence_changed", count=2)
        await bob.drained()
        them.engine.cut(two.hubbub)
        await bob.ask("unsubscribe", channel="news")
        async with two.client("carol") as carol:
            assert await carol.refused("subscribe", channel="news", presence=True) == "unavailable"
            await them.pass_time(GRACE + 0.5)  # bob has left, and nobody could be told
            them.engine.heal(two.hubbub)
            await them.pass_time(LEASE + BEAT)
            assert told(await alice.drained()) == [([], ["bob"], 1)]
            assert (await watching(carol))["count"] == 2
            await alice.expect("presence_changed", count=2)
            assert sorted((await carol.ask("presence", channel="news"))["users"]) == ["alice", "carol"]


async def test_a_node_that_cannot_ask_asks_later() -> None:
    async with nodes() as (them, one, two), one.client("alice") as alice, two.client("bob") as bob:
        await watching(alice)
        await bob.ask("subscribe", channel="other")
        who, two.hub.cluster.peers.who = two.hub.cluster.peers.who, away  # type: ignore[union-attr, method-assign]  # one fault
        assert (await watching(bob))["count"] == 1, "as far as is known"
        two.hub.cluster.peers.who = who  # type: ignore[union-attr, method-assign]
        await them.pass_time(2 * BEAT)
        assert (await bob.expect("presence_changed", count=2))["joined"].keys() == {"alice"}


async def away(channel: str) -> Any:
    raise BrokerUnavailable("no answer in time")
