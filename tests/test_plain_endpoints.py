"""Endpoints of an app that knows nothing of Hubbub: on the fast lane they behave as on uvicorn's own class."""

from __future__ import annotations

import asyncio
import base64
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Annotated, Any

import pytest
import websockets
from fastapi import Depends, FastAPI, Header, HTTPException, WebSocket, WebSocketDisconnect, WebSocketException
from fastapi.responses import PlainTextResponse
from starlette.types import ASGIApp, Receive, Scope, Send
from websockets.asyncio.client import ClientConnection, connect

from hubbub import Hubbub
from tests.lanes import FAST, UVICORN
from tests.support import DEADLINE, Running, running, settings_for, until

pytestmark = [pytest.mark.anyio, pytest.mark.parametrize("lane", ["fast", "mixed", "asgi"])]
UVICORN["mixed"] = {"ws": FAST["ws"], "http": "httptools"}  # our WebSocket class beside uvicorn's own HTTP class

Endpoint = Callable[[WebSocket], Awaitable[None]]


@asynccontextmanager
async def serving(lane: str, endpoint: Endpoint | None = None, **options: Any) -> AsyncIterator[Running]:
    """Serve one endpoint at /ws."""
    app = FastAPI()
    if endpoint is not None:

        @app.websocket("/ws")
        async def run(websocket: WebSocket) -> None:
            await endpoint(websocket)

    async with running(app=options.pop("app", app), lane=lane, options=options) as server:
        yield server


@asynccontextmanager
async def connected(server: Running, path: str = "/ws", **options: Any) -> AsyncIterator[ClientConnection]:
    options.setdefault("max_queue", None)
    async with (
        connect(server.ws + path, proxy=None, ping_interval=None, **options) as client,
        asyncio.timeout(DEADLINE),
    ):
        yield client


async def close_of(client: ClientConnection) -> tuple[int | None, str | None]:
    async with asyncio.timeout(DEADLINE):
        await client.wait_closed()
    return client.close_code, client.close_reason


async def refusal(server: Running, path: str = "/ws", **options: Any) -> websockets.Response:
    with pytest.raises(websockets.InvalidStatus) as refused:
        async with connected(server, path, **options):
            pass
    return refused.value.response


async def test_echo(lane: str) -> None:
    async def echo(websocket: WebSocket) -> None:
        await websocket.accept()
        try:
            while True:
                event = await websocket.receive()
                if event["type"] == "websocket.disconnect":
                    return
                if event.get("text") is not None:
                    await websocket.send_text(event["text"])
                else:
                    await websocket.send_bytes(event["bytes"])
        except WebSocketDisconnect:
            pass

    async with serving(lane, echo) as server, connected(server) as client:
        for message in ("", "ü😀", b"", b"\x00\xff", "x" * 30_000, b"y" * 60_000):
            await client.send(message)
            assert await client.recv() == message
        await client.send(["frag", "mented"])
        assert await client.recv() == "fragmented"
        for number in range(100):
            await client.send(str(number))
        assert [await client.recv() for _ in range(100)] == [str(number) for number in range(100)]
        await (await client.ping(b"x"))


async def test_the_scope(lane: str) -> None:
    seen: list[Any] = []
    app = FastAPI()

    @app.websocket("/items/{name}")
    async def item(websocket: WebSocket, name: str, q: str = "", x_token: Annotated[str, Header()] = "") -> None:
        seen.append({**websocket.scope, "args": (name, q, x_token)})
        await websocket.accept(subprotocol="two", headers=[(b"x-mine", b"1")])
        await websocket.close()

    async with serving(lane, app=app, root_path="/root") as server:
        options: dict[str, Any] = {"subprotocols": ["one", "two"], "additional_headers": {"X-Token": "t"}}
        async with connected(server, "/items/a%20%C3%BC?q=1%202&z", **options) as client:
            assert client.subprotocol == "two"
            assert client.response is not None
            assert client.response.headers["x-mine"] == "1"
            assert (await close_of(client))[0] == 1000
        scope = seen[0]
        assert scope["args"] == ("a ü", "1 2", "t")
        assert (scope["type"], scope["scheme"], scope["http_version"]) == ("websocket", "ws", "1.1")
        assert (scope["path"], scope["root_path"]) == ("/root/items/a ü", "/root")
        assert scope["raw_path"] == b"/root/items/a%20%C3%BC"
        assert scope["query_string"] == b"q=1%202&z"
        assert scope["subprotocols"] == ["one", "two"]
        assert tuple(scope["server"]) == ("127.0.0.1", server.port)
        assert scope["client"][0] == "127.0.0.1"
        assert (b"x-token", b"t") in scope["headers"]
        assert "websocket.http.response" in scope["extensions"]


async def test_lifespan_state_reaches_the_endpoint(lane: str) -> None:
    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[dict[str, Any]]:
        yield {"shared": [1]}

    app = FastAPI(lifespan=lifespan)

    @app.websocket("/ws")
    async def run(websocket: WebSocket) -> None:
        await websocket.accept()
        websocket.state.shared.append(2)
        websocket.state.mine = 1
        await websocket.send_json([websocket.state.shared, "mine" in websocket.scope["state"]])

    async with serving(lane, app=app) as server:
        async with connected(server) as client:
            assert await client.recv() == "[[1,2],true]"
        async with connected(server) as client:
            assert await client.recv() == "[[1,2,2],true]"


@pytest.mark.parametrize("code", [1000, 1001, 1008, 1011, 3000, 4999])
async def test_close_codes(lane: str, code: int) -> None:
    seen: list[tuple[int, str]] = []

    async def run(websocket: WebSocket) -> None:
        await websocket.accept()
        try:
            assert await websocket.receive_text() == "you"
        except WebSocketDisconnect as error:
            seen.append((error.code, error.reason or ""))
            return
        await websocket.close(code, "why")

    async with serving(lane, run) as server:
        async with connected(server) as client:
            await client.send("you")
            assert await close_of(client) == (code, "why")
        async with connected(server) as client:
            await client.close(code, "because")
        await until(lambda: len(seen) == 1)
        assert seen[0][0] == code
        async with connected(server) as client:
            client.transport.abort()
        await until(lambda: len(seen) == 2)
        assert seen[1][0] == (1005 if lane == "asgi" else 1006)  # RFC 6455 section 7.1.5 says 1006


async def test_denials(lane: str) -> None:
    app = FastAPI()

    def guard() -> None:
        raise HTTPException(418, "a teapot")

    @app.websocket("/dependency")
    async def dependency(websocket: WebSocket, guarded: Annotated[None, Depends(guard)]) -> None: ...

    @app.websocket("/closed")
    async def closed(websocket: WebSocket) -> None:
        await websocket.close(1008)

    @app.websocket("/raised")
    async def raised(websocket: WebSocket) -> None:
        raise WebSocketException(1008)

    @app.websocket("/response")
    async def response(websocket: WebSocket) -> None:
        await websocket.send_denial_response(PlainTextResponse("come later", 429, {"retry-after": "7"}))

    @app.websocket("/broken")
    async def broken(websocket: WebSocket) -> None:
        raise RuntimeError("before the accept")

    @app.websocket("/silent")
    async def silent(websocket: WebSocket) -> None: ...

    @app.websocket("/number/{number}")
    async def number(websocket: WebSocket, number: int) -> None: ...

    async with serving(lane, app=app) as server:
        assert (await refusal(server, "/dependency")).status_code == 403  # so FastAPI has it, on every server
        late = await refusal(server, "/response")
        assert (late.status_code, late.headers["retry-after"], late.body) == (429, "7", b"come later")
        for path, status in {"/closed": 403, "/raised": 403, "/missing": 403, "/broken": 500, "/silent": 500}.items():
            assert (await refusal(server, path)).status_code == status, path
        assert (await refusal(server, "/number/x")).status_code == 403
        async with server.http() as http:  # and the server goes on
            assert (await http.get("/openapi.json")).status_code == 200


async def test_failures_after_the_accept(lane: str) -> None:
    async def run(websocket: WebSocket) -> None:
        await websocket.accept()
        what = await websocket.receive_text()
        if what == "exception":
            raise RuntimeError("after the accept")
        if what == "websocket":
            raise WebSocketException(4321, "mine")
        # returning is a goodbye

    async with serving(lane, run) as server:
        broken = 1006 if lane == "asgi" else 1011  # uvicorn's own class just hangs up, here and below
        for what, code in (("exception", broken), ("websocket", 4321), ("return", 1006 if lane == "asgi" else 1000)):
            async with connected(server) as client:
                await client.send(what)
                assert (await close_of(client))[0] == code, what


async def test_middleware(lane: str) -> None:
    def outer(app: ASGIApp) -> ASGIApp:
        async def wrapped(scope: Scope, receive: Receive, send: Send) -> None:
            async def louder(message: Any) -> None:
                if message["type"] == "websocket.send":
                    message = {**message, "text": message["text"].upper()}
                await send(message)

            await app(scope, receive, louder if scope["type"] == "websocket" else send)

        return wrapped

    app = FastAPI()
    app.add_middleware(outer)

    @app.websocket("/ws")
    async def run(websocket: WebSocket) -> None:
        await websocket.accept()
        await websocket.send_text("quiet")

    async with serving(lane, app=app) as server, connected(server) as client:
        assert await client.recv() == "QUIET"


async def test_sending_to_a_peer_that_is_gone(lane: str) -> None:
    ended: list[BaseException] = []
    go = asyncio.Event()

    async def run(websocket: WebSocket) -> None:
        await websocket.accept()
        await go.wait()
        try:
            while True:
                await websocket.send_text("x" * 10_000)
                await asyncio.sleep(0)
        except BaseException as error:
            ended.append(error)

    async with serving(lane, run) as server:
        async with connected(server) as client:
            client.transport.abort()
        await until(lambda: not server.server.server_state.connections)
        go.set()
        await until(lambda: bool(ended))
        assert isinstance(ended[0], WebSocketDisconnect)


async def test_a_client_that_does_not_read(lane: str) -> None:
    """send() waits, so an endpoint cannot fill the memory; and goes on when the client reads again."""
    sent = 0
    total = 400

    async def run(websocket: WebSocket) -> None:
        nonlocal sent
        await websocket.accept()
        for _ in range(total):
            await websocket.send_bytes(bytes(60_000))
            sent += 1

    async with serving(lane, run) as server, connected(server, compression=None) as client:
        client.transport.pause_reading()
        seen = -1
        while seen != sent:  # until it stands still
            seen = sent
            for _ in range(200):
                await asyncio.sleep(0)
        assert sent < total
        client.transport.resume_reading()
        assert sum([len(await client.recv()) for _ in range(total)]) == total * 60_000
        assert sent == total


async def test_an_endpoint_that_does_not_receive(lane: str) -> None:
    """The socket is no longer read, so a client cannot fill the memory; and nothing is lost."""
    go = asyncio.Event()
    got: list[bytes] = []
    total = 400

    async def run(websocket: WebSocket) -> None:
        await websocket.accept()
        await go.wait()
        got.extend([await websocket.receive_bytes() for _ in range(total)])
        await websocket.send_text("all")

    async with serving(lane, run) as server, connected(server, compression=None) as client:
        sent = 0

        async def send() -> None:
            nonlocal sent
            for number in range(total):
                await client.send(number.to_bytes(2, "big") * 30_000)
                sent += 1

        sending = asyncio.create_task(send())
        seen = -1
        while seen != sent:
            seen = sent
            for _ in range(200):
                await asyncio.sleep(0)
        assert sent < total
        go.set()
        assert await client.recv() == "all"
        await sending
        assert [int.from_bytes(message[:2], "big") for message in got] == list(range(total))


def masked(text: bytes) -> bytes:
    return b"\x81" + bytes([0x80 | len(text)]) + b"\0\0\0\0" + text


@pytest.mark.parametrize("pieces", [1, 2, 7])
async def test_bytes_glued_to_the_handshake(lane: str, pieces: int) -> None:
    async def run(websocket: WebSocket) -> None:
        await asyncio.sleep(0)
        await websocket.accept()
        for _ in range(2):
            await websocket.send_text((await websocket.receive_text()).upper())
        await websocket.close(4000)

    async with serving(lane, run) as server:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        head = (
            b"GET /ws HTTP/1.1\r\nHost: 127.0.0.1\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: " + base64.b64encode(bytes(16)) + b"\r\n\r\n"
        )
        raw = head + masked(b"one") + masked(b"two")
        if lane != "fast":  # uvicorn's own HTTP class drops what comes after the request in one piece
            writer.write(head)
            answer = await reader.readuntil(b"\r\n\r\n")
            raw = raw[len(head) :]
        sock: socket.socket = writer.get_extra_info("socket")
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        size = -(-len(raw) // pieces)
        for start in range(0, len(raw), size):
            writer.write(raw[start : start + size])
            for _ in range(20):
                await asyncio.sleep(0)
        async with asyncio.timeout(DEADLINE):
            if lane == "fast":
                answer = await reader.readuntil(b"\r\n\r\n")
            assert answer.startswith(b"HTTP/1.1 101 ")
            assert await reader.readexactly(10) == b"\x81\x03ONE\x81\x03TWO"
        writer.transport.abort()


async def test_shutting_down_ends_plain_endpoints(lane: str) -> None:
    ended: list[int] = []

    async def run(websocket: WebSocket) -> None:
        await websocket.accept()
        await websocket.send_text("here")
        try:
            await websocket.receive_text()
        except WebSocketDisconnect as error:
            ended.append(error.code)

    async with serving(lane, run) as server, connected(server) as client:
        await client.recv()
        server.server.should_exit = True
        assert (await close_of(client))[0] == 1012
        await until(lambda: bool(ended))
        assert ended == [1012]


@pytest.mark.parametrize("how", ["before", "after", "wrapped", "mounted"])
async def test_an_apps_own_ways_hold_for_hubbubs_endpoints_too(lane: str, how: str) -> None:
    """Middleware, a wrapper, a mount: a session may be opened by a short way, but never past these."""
    seen: list[str] = []

    def counting(app: ASGIApp) -> ASGIApp:
        async def wrapped(scope: Scope, receive: Receive, send: Send) -> None:
            if scope["type"] == "websocket":
                seen.append(scope["path"])
            await app(scope, receive, send)

        return wrapped

    app: Any = FastAPI()
    path = "/ws"
    if how == "before":
        app.add_middleware(counting)
    hubbub = Hubbub(app, settings=settings_for())
    if how == "after":
        app.add_middleware(counting)
    if how == "wrapped":
        app = counting(app)
    if how == "mounted":
        outer = FastAPI()
        outer.mount("/sub", app)
        outer.add_middleware(counting)  # type: ignore[arg-type,unused-ignore]  # a function does as well as a class
        app, path = outer, "/sub/ws"
    token = hubbub.token("alice")
    async with serving(lane, app=app) as server, connected(server, f"{path}?token={token}") as client:
        assert "auth_success" in str(await client.recv())
    assert seen == [path]
