"""The shortest proof of life, on both transports."""

from __future__ import annotations

import pytest

from tests.support import HandClock, running

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize("lane", ["fast", "asgi"])
async def test_two_people_talk(lane: str) -> None:
    async with running(clock=HandClock(), lane=lane) as server, server.client("alice") as alice:
        await alice.send("join_room", room_id="general")
        await alice.expect("room_joined")
        async with server.client("bob", path="/ws/chat/general") as bob:
            await bob.send("chat_message", message="hello", ref="1")
            assert (await bob.expect("message"))["data"]["message"] == "hello"
            assert (await bob.expect("ack"))["ref"] == "1"
            assert (await alice.expect("message"))["data"]["user_id"] == "bob"
        server.advance(0.1)
        await alice.nothing_more()
        server.advance(4)
        await alice.expect("user_left", user_id="bob")
