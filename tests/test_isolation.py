"""Descriptors are written to directly, and the kernel gives the number of a closed one to the next connection. What was
meant for one connection must never reach another."""

from __future__ import annotations

import asyncio
import json
import socket
import struct
from contextlib import AsyncExitStack

import pytest
from websockets.asyncio.client import connect

from hubbub.transports import lane
from tests.support import running, settings_for

pytestmark = pytest.mark.anyio

ROUNDS = 30
MEMBERS = 20


@pytest.mark.parametrize("many", [lane.MANY, 2])
async def test_a_reused_descriptor_gets_nothing_that_was_for_another(
    many: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """``many``: members from which a room is written to by a list of descriptors."""
    monkeypatch.setattr(lane, "MANY", many)
    settings = settings_for(rate_limit=0, user_rate_limit=0, max_connections_per_address=0)
    async with running(settings) as server, server.client("publisher") as publisher:
        await publisher.send("join_room", room_id="general")
        await publisher.expect("room_joined")
        strangers: list[list[str]] = []
        async with AsyncExitStack() as stack:
            for round_ in range(ROUNDS):
                members = [
                    await connect(f"{server.ws}/ws?token={server.token('m')}", proxy=None) for _ in range(MEMBERS)
                ]
                for member in members:
                    await member.send('{"type":"join_room","room_id":"general"}')
                for _ in range(5):
                    await publisher.send("chat_message", message="x" * 500)
                # half of the members are reset while the room is written to, and strangers take their numbers
                for member in members:
                    sock = member.transport.get_extra_info("socket")
                    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                    member.transport.abort()
                    await publisher.send("chat_message", message="y" * 500)
                newcomers = await asyncio.gather(*(connect(f"{server.ws}/ws/echo", proxy=None) for _ in range(MEMBERS)))
                for number, newcomer in enumerate(newcomers):
                    stack.push_async_callback(newcomer.close)
                    await newcomer.send(f"{round_}:{number}")
                    await publisher.send("chat_message", message="z" * 500)
                    heard = await newcomer.recv()
                    strangers.append([str(heard)])
                    assert heard == f"{round_}:{number}"
        assert len(strangers) == ROUNDS * MEMBERS
        seen = [m for m in publisher.seen if m["type"] == "message"]
        assert [m["data"]["id"] for m in seen] == sorted(m["data"]["id"] for m in seen)
        assert json.dumps(strangers).count("general") == 0
