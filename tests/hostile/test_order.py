"""What may not overtake what, when everything happens in one turn of the loop."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from hubbub.entrance import Entrance
from hubbub.hub import Hub
from hubbub.ports import Link, Request
from hubbub.session import Session
from hubbub.transports.uvicorn import HttpProtocol
from tests.hostile.support import request_head, said
from tests.support import DEADLINE, Running, running, settings_for, until

pytestmark = pytest.mark.anyio


async def test_nothing_goes_before_the_101(monkeypatch: pytest.MonkeyPatch) -> None:
    """A broadcast, an older batch and an opening with a token, all in one turn: the handshake's answer comes first."""
    opened, refuse = Entrance.open, Hub.refuse

    def open_amid_a_broadcast(self: Entrance, link: Link, request: Request, room: str | None = None) -> Session:
        session = opened(self, link, request, room)
        hub = server.hub
        hub.everyone(b'{"type":"broadcast_notification","data":{}}')
        return session

    def with_work_to_do(self: Hub, connections: int) -> str | None:
        self.schedule()  # as a chat message does that was read before this handshake
        return refuse(self, connections)

    monkeypatch.setattr(Entrance, "open", open_amid_a_broadcast)
    monkeypatch.setattr(Hub, "refuse", with_work_to_do)
    async with running(settings_for()) as server:
        bearer = [("Authorization", f"Bearer {server.token('early')}")]
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.write(request_head("/ws", bearer))
        try:
            async with asyncio.timeout(DEADLINE):
                got = await reader.readuntil(b"broadcast_notification")
        finally:
            writer.transport.abort()
        assert got.startswith(b"HTTP/1.1 101"), got
        assert got.index(b"\r\n\r\n") < got.index(b"auth_success") < got.index(b"broadcast_notification")


async def test_connections_without_an_address_are_given_back(tmp_path: Path) -> None:
    """On a Unix socket nobody has an address: no limit per address can hold there, and none may fill up."""
    async with running(settings_for(max_connections_per_address=3)) as server:
        path = str(tmp_path / "socket")
        config, state = server.server.config, server.server.server_state
        loop = asyncio.get_running_loop()
        listener = await loop.create_unix_server(
            lambda: HttpProtocol(config, state, server.server.lifespan.state), path
        )
        try:
            for _ in range(10):
                assert b"auth_success" in await _first_answers(path, server)
                await until(lambda: not server.hub.sessions)
        finally:
            listener.close()


async def _first_answers(path: str, server: Running) -> bytes:
    reader, writer = await asyncio.open_unix_connection(path)
    try:
        writer.write(request_head("/ws") + said("auth", token=server.token("local")))
        async with asyncio.timeout(DEADLINE):
            got = b""
            while b"auth_success" not in got and b"too_many" not in got:
                got += await reader.read(4096)
            return got
    finally:
        writer.transport.abort()
