"""The complete server under Starlette's TestClient: how users test their own apps."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterator
from typing import Any

import anyio
import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from starlette.websockets import WebSocketDisconnect

from hubbub import Hubbub, create_app
from hubbub.messages import JSON
from hubbub.transports.asgi import AsgiLink
from tests.support import API_KEY, HandClock, settings_for


@pytest.fixture
def app() -> FastAPI:
    return create_app(settings_for())


@pytest.fixture
def client(app: FastAPI) -> Iterator[TestClient]:
    with TestClient(app) as client:
        yield client


def token(client: TestClient, user: str) -> str:
    answer = client.post("/api/dev/login", json={"name": user})
    assert answer.status_code == 200
    made: str = answer.json()["token"]
    return made


def test_two_people_talk(client: TestClient) -> None:
    with client.websocket_connect(f"/ws/chat/general?token={token(client, 'alice')}") as alice:
        assert alice.receive_json()["type"] == "auth_success"
        assert alice.receive_json()["type"] == "room_joined"
        assert alice.receive_json() == {"type": "user_joined", "room_id": "general", "user_id": "alice"}
        with client.websocket_connect("/ws/chat/general") as bob:
            bob.send_json({"type": "auth", "token": token(client, "bob")})
            assert bob.receive_json()["user_id"] == "bob"
            assert bob.receive_json()["count"] == 2
            assert alice.receive_json()["user_id"] == "bob"
            bob.send_json({"type": "chat_message", "message": "hello", "ref": "1"})
            assert alice.receive_json()["data"]["message"] == "hello"
            assert [bob.receive_json()["type"] for _ in range(3)] == ["user_joined", "message", "ack"]
            headers = {"authorization": f"Bearer {API_KEY}"}
            body = {"user_id": "alice", "title": "t", "message": "m"}
            assert client.post("/api/notifications/send", json=body, headers=headers).json()["delivered"] == 1
            assert alice.receive_json()["data"]["title"] == "t"


def test_the_guides_echo_and_its_refusal(client: TestClient) -> None:
    with client.websocket_connect("/ws/echo") as echo:
        echo.send_text("Hello")
        assert echo.receive_text() == "Hello"
        echo.send_bytes(b"\x00")
        assert echo.receive_bytes() == b"\x00"
    with client.websocket_connect("/ws") as stranger:
        stranger.send_json({"type": "ping"})
        assert stranger.receive_json()["code"] == "authentication_required"
        with pytest.raises(WebSocketDisconnect) as closed:
            stranger.receive_json()
        assert closed.value.code == 4401


def test_msgpack(client: TestClient) -> None:
    import msgspec

    with client.websocket_connect(f"/ws?token={token(client, 'alice')}", subprotocols=["hubbub.msgpack"]) as alice:
        assert alice.accepted_subprotocol == "hubbub.msgpack"
        assert msgspec.msgpack.decode(alice.receive_bytes())["type"] == "auth_success"
        alice.send_bytes(msgspec.msgpack.encode({"type": "ping"}))
        assert msgspec.msgpack.decode(alice.receive_bytes()) == {"type": "pong"}


def test_an_unclean_end_leaves_nothing_behind(app: FastAPI, client: TestClient) -> None:
    for _ in range(3):
        with client.websocket_connect(f"/ws/chat/general?token={token(client, 'alice')}") as alice:
            alice.receive_json()
    hub: Hubbub = app.state.hubbub
    assert client.get("/health").json()["active_connections"] == 0
    assert not hub.hub.sessions


def test_pages_and_docs(client: TestClient) -> None:
    page = client.get("/")
    assert page.status_code == 200
    assert "text/html" in page.headers["content-type"]
    assert "default-src 'none'" in page.headers["content-security-policy"]
    paths = client.get("/openapi.json").json()["paths"]
    for path in ("/api/notifications/send", "/api/notifications/broadcast", "/api/publish", "/health", "/metrics"):
        assert path in paths
    assert client.get("/metrics").status_code == 200
    assert client.get("/static/nothing.js").status_code == 404


def test_in_an_app_of_ones_own_with_a_prefix() -> None:
    app = FastAPI()
    hub = Hubbub(app, settings=settings_for(), prefix="/live")

    @app.post("/order/{user}")
    async def order(user: str) -> int:
        return await hub.notify(user, "Order", "received")

    with TestClient(app) as client:
        with client.websocket_connect(f"/live/ws?token={hub.token('alice')}") as alice:
            assert alice.receive_json()["type"] == "auth_success"
            assert client.post("/order/alice").json() == 1
            assert alice.receive_json()["data"]["title"] == "Order"
        assert client.get("/live/health").status_code == 200
        assert client.get("/health").status_code == 404


class Sink:
    """As much of a sink as a connection that only ends takes."""

    def __init__(self) -> None:
        self.gone: list[int] = []

    def lost(self, link: Any, code: int) -> None:
        self.gone.append(code)


@pytest.mark.anyio
async def test_a_connection_that_is_cancelled_is_lost_all_the_same() -> None:
    """The TestClient ends an endpoint so, and so does uvicorn when its shutdown takes too long."""

    async def receive() -> dict[str, Any]:
        await asyncio.get_running_loop().create_future()
        raise AssertionError

    async def send(message: dict[str, Any]) -> None: ...

    sink: Any = Sink()
    settings = settings_for()
    link = AsgiLink(sink, JSON, settings, HandClock(), settings.message_limit, send, Counter())
    async with anyio.create_task_group() as group:
        group.start_soon(link.run, receive)
        for _ in range(5):
            await asyncio.sleep(0)
        group.cancel_scope.cancel()
    assert len(sink.gone) == 1
