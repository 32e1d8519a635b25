"""Ways around what a room decides, each tried once: they are closed."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from hubbub.messages import Position
from hubbub.stream import Recovery
from tests.support import HandClock, running, serve, settings_for, until

pytestmark = pytest.mark.anyio
OFF: dict[str, Any] = {"rate_limit": 0, "user_rate_limit": 0}


async def test_who_is_banned_while_joining_is_not_in(monkeypatch: pytest.MonkeyPatch) -> None:
    async with running(settings_for(**OFF)) as server, server.client("own") as owner, server.client("bob") as bob:
        await owner.ask("create_room", room_id="tea")
        await owner.ask("join_room", room_id="tea")
        await bob.ask("join_room", room_id="tea")
        position = (await owner.ask("chat_message", room_id="tea", message="one"))["id"]
        await bob.ask("leave_room", room_id="tea")
        past, goes_on = server.hubbub.chat._past, asyncio.Event()
        read, waiting = past.recover, asyncio.Event()

        async def slowly(*arguments: Any) -> Recovery:
            found = await read(*arguments)
            waiting.set()
            await goes_on.wait()
            return found

        monkeypatch.setattr(past, "recover", slowly)  # the store is slow just now
        epoch = server.hub.channels["room:tea"].epoch
        await bob.send("join_room", room_id="tea", since={"epoch": epoch, "offset": position - 1}, ref="join")
        await until(waiting.is_set)
        monkeypatch.setattr(past, "recover", read)
        assert (await owner.ask("ban_member", room_id="tea", user_id="bob"))["type"] == "ack"
        goes_on.set()
        assert (await bob.expect("error", ref="join"))["code"] == "forbidden"
        await owner.ask("chat_message", room_id="tea", message="not for bob")
        assert [m for m in await bob.drained() if m["type"] == "message"] == []
        assert server.hub.channels["room:tea"].size == 1


async def test_subscribe_shows_no_more_than_joining_does() -> None:
    async with serve("fast", **OFF) as server, server.client("own") as owner, server.client("bob") as bob:
        await owner.ask("create_room", room_id="tea", history="joined")
        await owner.ask("join_room", room_id="tea")
        for text in ("before", "he", "came"):
            await owner.ask("chat_message", room_id="tea", message=text)
        joined = await bob.ask("join_room", room_id="tea")
        since = {**joined["position"], "offset": 0}
        answer = await bob.ask("subscribe", channel="room:tea", since=since)
        assert (answer["recovered"], answer["messages"]) == (False, [])
        assert (await bob.ask("join_room", room_id="tea", since=since))["messages"] == []
        assert (await bob.ask("history", channel="room:tea"))["messages"] == []
        assert await bob.refused("catch_up", room_id="tea", since=since) == "resync_required"
        assert Position(**since).offset == 0


async def test_a_ban_from_a_live_room_holds_over_http() -> None:
    async with running(settings_for(**OFF)) as server, server.client("own") as owner:
        await owner.ask("create_room", room_id="stage", kind="live")
        await owner.ask("join_room", room_id="stage")
        await owner.ask("ban_member", room_id="stage", user_id="bob")
        async with server.http(server.token("bob")) as http:
            said = await http.post("/api/rooms/stage/messages", json={"message": "still here"})
        assert said.status_code == 403
        assert [m for m in await owner.drained() if m["type"] == "message"] == []


async def test_a_mute_outlasts_leaving() -> None:
    clock = HandClock()
    async with serve("fast", clock=clock, **OFF) as server, server.client("own") as owner, server.client("bob") as bob:
        await owner.ask("create_room", room_id="tea")
        await bob.ask("join_room", room_id="tea")
        await owner.ask("mute_member", room_id="tea", user_id="bob", seconds=3600)
        refused = await bob.ask("leave_room", room_id="tea", membership=True)
        assert (refused["code"], refused["retry_after"]) == ("forbidden", 3600)
        assert await bob.refused("chat_message", room_id="tea", message="x") == "forbidden"
        clock.advance(3601)
        assert (await bob.ask("leave_room", room_id="tea", membership=True))["type"] == "room_left"


async def test_slow_mode_holds_in_threads_and_a_refused_message_costs_no_wait() -> None:
    async with serve("fast", **OFF) as server, server.client("own") as owner, server.client("bob") as bob:
        await owner.ask("create_room", room_id="tea")
        await owner.ask("join_room", room_id="tea")
        root = (await owner.ask("chat_message", room_id="tea", message="root"))["id"]
        await owner.ask("update_room", room_id="tea", slow_mode=600)
        await bob.ask("join_room", room_id="tea")
        assert await bob.refused("chat_message", room_id="tea", message="x", thread=999) == "not_found"
        assert (await bob.ask("chat_message", room_id="tea", message="reply", thread=root))["type"] == "ack"
        assert await bob.refused("chat_message", room_id="tea", message="again", thread=root) == "slow_mode"
        assert await bob.refused("chat_message", room_id="tea", message="and in the room") == "slow_mode"
