"""Rooms on several nodes over one database: what is done on one holds on all, and everybody hears the same in one order."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import pytest
from fastapi import FastAPI

from hubbub import Hubbub
from hubbub.features.chat import nodes as chat_nodes
from hubbub.testing import FaultyBroker, HandClock, MemoryEngine
from tests.rest_support import migrated
from tests.support import Client, Running, running, settings_for, until

pytestmark = pytest.mark.anyio
ROOM = "team"
CHANNEL = f"room:{ROOM}"


class Node:
    """A server, and the way from the engine to it, which fails on command."""

    def __init__(self, server: Running, way: FaultyBroker, hubbub: Hubbub) -> None:
        self.server = server
        self.way = way
        self.hubbub = hubbub

    def client(self, user: str, **options: Any) -> Any:
        return self.server.client(user, **options)


class Nodes:
    """Servers in this process over one database and one engine."""

    def __init__(self, stack: AsyncExitStack, url: str, settings: dict[str, Any]) -> None:
        self.stack = stack
        self.url = url if url.startswith("postgres") else f"{url}?shared=1"
        self.settings = settings
        self.clock = HandClock()
        self.engine = MemoryEngine(self.clock)

    async def add(self) -> Node:
        settings = settings_for(database_url=self.url, default_rooms=["general"], **self.settings)
        way = FaultyBroker(self.engine.broker(settings))
        app = FastAPI()
        hubbub = Hubbub(app, settings=settings, clock=self.clock, broker=way)
        return Node(await self.stack.enter_async_context(running(settings, app=app)), way, hubbub)

    async def wait(self, seconds: float) -> None:
        """Turn the clock, and let everybody do what is due."""
        while seconds > 0:
            self.clock.advance(min(seconds, 0.5))
            seconds -= 0.5
            for _ in range(20):
                await asyncio.sleep(0)


@asynccontextmanager
async def two_nodes(url: str, **settings: Any) -> AsyncIterator[tuple[Nodes, Node, Node]]:
    await migrated(url)
    async with AsyncExitStack() as stack:
        made = Nodes(stack, url, settings)
        one, two = await asyncio.gather(made.add(), made.add())  # both make the default rooms
        yield made, one, two


async def make_room(
    client: Client, *, visibility: str = "private", members: tuple[str, ...] = ("bob",), **more: Any
) -> None:
    made = await client.ask("create_room", room_id=ROOM, visibility=visibility, members=list(members), **more)
    assert made["type"] == "room_created", made


async def join(client: Client) -> dict[str, Any]:
    answer = await client.ask("join_room", room_id=ROOM)
    assert answer["type"] == "room_joined", answer
    return answer


async def say(client: Client, text: str, **more: Any) -> int:
    answer = await client.ask("chat_message", room_id=ROOM, message=text, **more)
    assert answer["type"] == "ack", answer
    return int(answer["id"])


def numbers(client: Client) -> list[int]:
    """The numbers of everything that a client heard of the room."""
    found = []
    for message in client.seen:
        if message.get("room_id") == ROOM and message["type"] not in ("ack", "done"):
            number = message["data"].get("id") if message["type"] == "message" else message.get("offset")
            if number:
                found.append(number)
    return found


def kinds(messages: list[dict[str, Any]]) -> list[str]:
    return [message["type"] for message in messages]


async def hears(client: Client, number: int) -> None:
    """Wait until a client has heard so much of the room, all of it in order."""
    while not (heard := numbers(client)) or heard[-1] < number:
        await client.receive()
    assert heard == list(range(heard[0], heard[-1] + 1))


# -- hearing


async def test_all_hear_the_same_in_one_order_however_it_comes(database_url: str) -> None:
    dice = random.Random(7)
    async with two_nodes(database_url) as (_, one, two), AsyncExitStack() as stack:
        people = [
            await stack.enter_async_context(node.client(name)) for node in (one, two) for name in ("alice", "bob")
        ]
        await make_room(people[0])
        for each in people:
            await join(each)
        nodes = (one, two)

        async def talk(client: Client, name: str) -> None:
            for number in range(25):
                fault = dice.choice(["delay", "reorder", "duplicate", "drop", "", ""])
                if fault:
                    getattr(dice.choice(nodes).way, fault)(dice.randint(1, 4), channel=CHANNEL)
                await say(client, f"{name} says {number}", client_id=f"{name}-{number}")
                dice.choice(nodes).way.release()

        await asyncio.gather(*(talk(each, f"p{index}") for index, each in enumerate(people)))
        for node in nodes:
            node.way.heal()
            node.way.release()
        last = await say(people[0], "the last")
        for each in people:
            await hears(each, last)
        assert not [message for each in people for message in each.seen if message["type"] in ("gap", "error")]


async def test_while_the_engine_is_away_rooms_go_on_a_little_later(database_url: str) -> None:
    async with two_nodes(database_url) as (them, one, two), one.client("alice") as alice, two.client("bob") as bob:
        await make_room(alice)
        first = (await join(alice))["position"]["offset"]
        await join(bob)
        for node in (one, two):
            them.engine.cut(node.way)
            node.way.unavailable = True
        number = await say(alice, "does anybody hear me?")
        await alice.expect("message")  # where it was said, it is heard at once
        assert "message" not in kinds(await bob.drained())
        await them.wait(chat_nodes.LOOK_AWAY)
        heard = await bob.expect("message")
        assert heard["data"]["id"] == number == first + 1
        await say(bob, "I do")
        await them.wait(chat_nodes.LOOK_AWAY)
        await hears(alice, number + 1)


async def test_what_a_node_could_not_tell_any_more_is_found(database_url: str) -> None:
    """It was killed between its commit and its telling: here, it is cut off from the engine, and the others are not."""
    async with two_nodes(database_url) as (them, one, two), one.client("alice") as alice, two.client("bob") as bob:
        await make_room(alice)
        await join(alice)
        await join(bob)
        them.engine.cut(one.way)
        number = await say(alice, "my last words")
        assert "message" not in kinds(await bob.drained())
        await them.wait(chat_nodes.LOOK)
        assert (await bob.expect("message"))["data"]["id"] == number


# -- leaving


@pytest.mark.parametrize("act", ["kick_member", "ban_member"])
@pytest.mark.parametrize("fault", ["", "delay", "drop"])
async def test_who_is_removed_hears_nothing_that_is_said_after(database_url: str, act: str, fault: str) -> None:
    async with two_nodes(database_url) as (_, one, two), one.client("alice") as alice, two.client("bob") as bob:
        await make_room(alice)
        await join(alice)
        await join(bob)
        before = await say(alice, "before")
        await bob.expect("message")
        if fault:  # the removal, its event, and what the room says of it
            getattr(two.way, fault)(3, channel=CHANNEL)
        done = await alice.ask(act, room_id=ROOM, user_id="bob")
        assert done["type"] == "ack", done
        await say(alice, "he is gone")
        assert (await bob.expect("room_left"))["reason"] == {"kick_member": "kicked", "ban_member": "banned"}[act]
        await say(alice, "really")
        two.way.release()
        await bob.drained()
        assert max(numbers(bob)) <= before
        assert await bob.refused("chat_message", room_id=ROOM, message="?") == "not_joined"
        assert CHANNEL not in channels_of(two, "bob")


def channels_of(node: Node, user: str) -> set[str]:
    return {name for session in node.server.hub.users[user].sessions for name in session.channels}


async def test_who_came_back_is_not_removed_by_what_was_before(database_url: str) -> None:
    async with two_nodes(database_url) as (_, one, two), one.client("alice") as alice, two.client("bob") as bob:
        await make_room(alice, visibility="public")
        await join(alice)
        await join(bob)
        two.way.delay(2, channel=CHANNEL)  # the removal and its event
        await alice.ask("kick_member", room_id=ROOM, user_id="bob")
        async with two.client("bob") as other:
            joined = await join(other)  # public: he may come again
            two.way.release()
            number = await say(alice, "welcome back")
            await hears(other, number)
            assert "room_left" not in kinds(other.seen)
            assert joined["position"]["offset"] <= number
        await bob.expect("room_left", reason="kicked")


async def test_leaving_for_good_takes_the_other_devices_out(database_url: str) -> None:
    """In a public room that is no event, so it has no number."""
    async with (
        two_nodes(database_url) as (_, one, two),
        one.client("alice") as alice,
        one.client("bob") as here,
        two.client("bob") as there,
    ):
        await make_room(alice, visibility="public")
        await join(here)
        await join(there)
        await here.ask("leave_room", room_id=ROOM, membership=True)
        assert (await there.expect("room_left"))["reason"] in ("left", "removed")
        assert CHANNEL not in channels_of(two, "bob")
        await join(alice)
        await say(alice, "he left")
        await there.drained()
        assert not numbers(there)


async def test_who_was_removed_while_a_node_was_cut_off_is_removed_when_it_is_back(database_url: str) -> None:
    async with (
        two_nodes(database_url) as (them, one, two),
        one.client("alice") as alice,
        one.client("bob") as here,
        two.client("bob") as there,
    ):
        await make_room(alice, visibility="public")
        await join(here)
        await join(there)
        them.engine.cut(two.way)
        await here.ask("leave_room", room_id=ROOM, membership=True)
        assert "room_left" not in kinds(await there.drained())
        them.engine.heal(two.way)
        await there.expect("room_left", reason="removed")


async def test_a_live_room_lets_go_on_all_nodes(database_url: str) -> None:
    async with two_nodes(database_url) as (_, one, two), one.client("alice") as alice, two.client("bob") as bob:
        await make_room(alice, visibility="public", members=(), kind="live")
        await join(alice)
        await join(bob)
        assert (await alice.ask("ban_member", room_id=ROOM, user_id="bob"))["type"] == "ack"
        await bob.expect("room_left", reason="banned")
        assert await bob.refused("join_room", room_id=ROOM) == "forbidden"


async def test_erasing_somebody_takes_them_out_everywhere(database_url: str) -> None:
    async with two_nodes(database_url) as (_, one, two), one.client("alice") as alice, two.client("bob") as bob:
        await make_room(alice)
        await join(alice)
        await join(bob)
        await say(bob, "remember me")
        async with one.server.http() as http:
            answer = await http.delete("/api/users/bob")
            assert answer.status_code == 200, answer.text
        assert (await bob.expect("room_left"))["reason"] in ("erased", "removed")
        assert CHANNEL not in channels_of(two, "bob")


# -- what rooms are


async def test_what_a_room_is_changes_on_all_nodes(database_url: str) -> None:
    async with two_nodes(database_url) as (_, one, two), one.client("alice") as alice, two.client("bob") as bob:
        await make_room(alice, visibility="public", members=(), kind="live")
        await join(bob)
        await say(bob, "a word")
        answer = await alice.ask("update_room", room_id=ROOM, archived=True)
        assert answer["type"] == "room", answer
        row = two.hubbub.chat.live.rooms[ROOM]
        await until(lambda: row.row.archived_at is not None, "the other node reads it again")
        assert await bob.refused("chat_message", room_id=ROOM, message="another") == "forbidden"


async def test_what_a_node_was_not_told_of_a_room_it_finds(database_url: str) -> None:
    async with two_nodes(database_url) as (them, one, two), one.client("alice") as alice, two.client("bob") as bob:
        await make_room(alice)
        await join(bob)
        them.engine.cut(two.way)
        two.way.unavailable = True
        await alice.ask("update_room", room_id=ROOM, name="Another name")
        room = two.hubbub.chat.live.rooms[ROOM]
        await them.wait(chat_nodes.LOOK_AWAY)
        await until(lambda: room.row.name == "Another name", "the other node reads it again")


# -- people


async def test_invitations_and_read_marks_reach_the_devices_on_other_nodes(database_url: str) -> None:
    async with two_nodes(database_url) as (_, one, two), one.client("alice") as alice, two.client("bob") as bob:
        await make_room(alice, members=())
        await alice.ask("invite_members", room_id=ROOM, user_ids=["bob"])
        assert (await bob.expect("room_added"))["room"]["room_id"] == ROOM
        await join(bob)
        await join(alice)
        number = await say(alice, "hello")
        await hears(bob, number)
        async with one.client("bob") as other:
            await join(other)
            answer = await bob.ask("mark_read", room_id=ROOM, id=number)
            assert answer["type"] != "error", answer
            mark = await other.expect("read", room_id=ROOM)
            assert mark["read"] == number


@pytest.mark.parametrize("kind", ["group", "live"])
async def test_a_retry_on_another_node_is_answered_with_the_first(database_url: str, kind: str) -> None:
    async with two_nodes(database_url) as (_, one, two), one.client("alice") as alice, two.client("alice") as again:
        await make_room(alice, visibility="public", members=(), kind=kind)
        await join(alice)
        await join(again)
        first = await say(alice, "once", client_id="only-once")
        assert await say(again, "once", client_id="only-once") == first
        await say(alice, "another", client_id="another")
        await again.drained()
        heard = [each["data"]["client_id"] for each in again.seen if each["type"] == "message"]
        assert heard == ["only-once", "another"]
