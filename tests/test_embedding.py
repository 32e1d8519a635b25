"""Hubbub in an app of one's own: behind a path, under the app's middleware, beside its lifespan, under ``--reload``."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import websockets
from fastapi import APIRouter, FastAPI, Request, WebSocket
from fastapi.middleware.cors import CORSMiddleware
from fastapi.middleware.gzip import GZipMiddleware
from starlette.middleware.base import BaseHTTPMiddleware, RequestResponseEndpoint
from starlette.middleware.sessions import SessionMiddleware
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send
from websockets.asyncio.client import connect as connect_async
from websockets.sync.client import ClientConnection, connect

from hubbub import Hubbub, create_app
from hubbub.brokers.memory import MemoryBroker
from hubbub.ports import Inlet
from tests.lanes import UVICORN
from tests.support import Running, running, settings_for

pytestmark = [pytest.mark.parametrize("lane", ["fast", "asgi"])]


@asynccontextmanager
async def serving(lane: str, app: FastAPI, hubbub: Hubbub, **options: Any) -> AsyncIterator[Running]:
    async with running(app=app, lane=lane, options=options) as server:
        server.hubbub = hubbub
        yield server


async def works(server: Running, below: str = "") -> None:
    """Assert that sessions, rooms and the HTTP API are below a path, and reach one another."""
    async with (
        server.http() as http,
        server.client("alice", path=below + "/ws") as alice,
        server.client("bob", path=below + "/ws/chat/general") as bob,
    ):
        await alice.ask("subscribe", channel="news")
        published = await http.post(below + "/api/publish", json={"channel": "news", "data": 1})
        offset = published.json()["offset"]
        assert (await alice.receive())["data"] == 1
        await server.hubbub.publish("news", 2)
        assert (await alice.receive())["data"] == 2
        assert (await bob.ask("chat_message", message="hello"))["type"] == "ack"
        assert (await http.get(below + "/api/channels/news/history")).json()["offset"] == offset + 1
        assert (await http.get(below + "/health")).json()["active_connections"] == 2
    with pytest.raises(websockets.InvalidStatus) as refused:
        async with connect_async(
            server.ws + below + "/ws", proxy=None, origin=websockets.Origin("https://evil.example")
        ):
            pass
    assert refused.value.response.status_code == 403


# -- behind a path


@pytest.mark.anyio
@pytest.mark.filterwarnings("ignore:The `root_path` parameter:fastapi.exceptions.FastAPIDeprecationWarning")
async def test_root_path_of_the_app(lane: str) -> None:
    """``FastAPI(root_path=…)``, whether the proxy takes the path off or leaves it on."""
    app = FastAPI(root_path="/gateway")
    async with serving(lane, app, Hubbub(app, settings=settings_for())) as server:
        await works(server)
        await works(server, "/gateway")
        async with server.http() as http:
            assert (await http.get("/openapi.json")).json()["servers"] == [{"url": "/gateway"}]


@pytest.mark.anyio
@pytest.mark.parametrize("prefix", ["", "/live"])
async def test_root_path_of_the_server(lane: str, prefix: str) -> None:
    """``uvicorn --root-path``: uvicorn puts it before each path itself."""
    app = FastAPI()
    hubbub = Hubbub(app, settings=settings_for(), prefix=prefix)
    async with serving(lane, app, hubbub, root_path="/gateway") as server:
        await works(server, prefix)


@pytest.mark.anyio
async def test_the_complete_server_behind_a_root_path(lane: str) -> None:
    app = create_app(settings_for())
    async with serving(lane, app, app.state.hubbub, root_path="/gateway") as server:
        await works(server)
        async with server.http() as http:
            assert "text/html" in (await http.get("/")).headers["content-type"]


@pytest.mark.anyio
@pytest.mark.parametrize("first", ["session", "http"])
async def test_below_a_parent_that_mounts_it(lane: str, first: str) -> None:
    """Starlette keeps the lifespan from mounted apps: the hub starts with whatever comes first."""
    parent, app = FastAPI(), FastAPI()
    hubbub = Hubbub(app, settings=settings_for())
    parent.mount("/realtime", app)
    async with serving(lane, parent, hubbub) as server:
        try:
            if first == "http":
                async with server.http() as http:
                    answer = await http.post("/realtime/api/publish", json={"channel": "other", "data": 1})
                    assert answer.json()["offset"] == 1
            await works(server, "/realtime")
        finally:
            await hubbub.hub.stop()


@pytest.mark.anyio
async def test_below_a_parent_that_runs_its_lifespan(lane: str) -> None:
    app = FastAPI()
    hubbub = Hubbub(app, settings=settings_for())

    @asynccontextmanager
    async def lifespan(parent: FastAPI) -> AsyncIterator[None]:
        async with app.router.lifespan_context(app):
            yield

    parent = FastAPI(lifespan=lifespan)
    parent.mount("/realtime", app)
    async with serving(lane, parent, hubbub, root_path="/gateway") as server:
        await works(server, "/realtime")
        assert hubbub.hub.broker is not None
    assert not hubbub.hub.sessions


# -- under middleware


class Stamp(BaseHTTPMiddleware):
    async def dispatch(self, request: Request, call_next: RequestResponseEndpoint) -> Response:
        request.state.stamp = "stamped"
        response = await call_next(request)
        response.headers["x-stamp"] = "1"
        return response


class Note:
    """A middleware as ASGI has them: sees everything, changes nothing."""

    def __init__(self, app: ASGIApp, seen: list[str]) -> None:
        self.app = app
        self.seen = seen

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.seen.append(f"{scope['type']} {scope.get('path', '')}".strip())

        async def noted(message: Any) -> None:
            self.seen.append(message["type"])
            await send(message)

        await self.app(scope, receive, noted)


@pytest.mark.anyio
@pytest.mark.parametrize("when", ["before", "after"])
async def test_under_middleware(lane: str, when: str) -> None:
    app = FastAPI()
    seen: list[str] = []

    def add() -> None:
        app.add_middleware(Stamp)
        app.add_middleware(GZipMiddleware, minimum_size=500)
        app.add_middleware(SessionMiddleware, secret_key="k" * 32)
        app.add_middleware(CORSMiddleware, allow_origins=["https://app.example"], allow_headers=["authorization"])
        app.add_middleware(Note, seen=seen)

    if when == "before":
        add()
    hubbub = Hubbub(app, settings=settings_for())
    if when == "after":
        add()

    @app.get("/count")
    async def count(request: Request) -> list[Any]:
        request.session["count"] = request.session.get("count", 0) + 1
        return [request.session["count"], request.state.stamp]

    @app.websocket("/own")
    async def own(websocket: WebSocket) -> None:
        await websocket.accept()
        await websocket.send_json(websocket.session.get("count"))
        await websocket.close()

    async with serving(lane, app, hubbub) as server:
        await works(server)
        assert "websocket /ws" in seen
        assert "websocket.accept" in seen
        assert "websocket.http.response.start" in seen
        async with server.http() as http:
            assert (await http.get("/count")).json() == [1, "stamped"]
            assert (await http.get("/count")).json() == [2, "stamped"]
            cookie = f"session={http.cookies['session']}"
            async with connect_async(server.ws + "/own", proxy=None, additional_headers={"Cookie": cookie}) as client:
                assert await client.recv() == "2"  # the session's cookie reaches WebSockets too
            await hubbub.publish("long", "x" * 2000)
            answer = await http.get("/api/channels/long/history")
            assert (answer.headers["content-encoding"], answer.headers["x-stamp"]) == ("gzip", "1")
            assert answer.json()["messages"][0]["data"] == "x" * 2000
            asks = {"origin": "https://app.example", "access-control-request-method": "POST"}
            asks["access-control-request-headers"] = "authorization"
            allowed = await http.options("/api/publish", headers=asks)
            assert allowed.headers["access-control-allow-origin"] == "https://app.example"
            refused = await http.options("/api/publish", headers={**asks, "origin": "https://evil.example"})
            assert "access-control-allow-origin" not in refused.headers


@pytest.mark.anyio
async def test_cors_opens_no_websockets(lane: str) -> None:
    """Browsers do not ask CORS about WebSockets: HUBBUB_ORIGINS has the last word, whatever that middleware allows."""
    app = FastAPI()
    app.add_middleware(CORSMiddleware, allow_origins=["*"])
    hubbub = Hubbub(app, settings=settings_for(origins=("https://app.example",)))
    async with serving(lane, app, hubbub) as server:
        async with server.client("alice", origin="https://app.example"):
            pass
        with pytest.raises(websockets.InvalidStatus) as refused:
            async with server.client(origin="https://evil.example"):
                pass
        assert refused.value.response.status_code == 403


# -- beside a lifespan


class Told(MemoryBroker):
    """Tells when the hub starts and stops it."""

    events: list[str]

    async def start(self, inlet: Inlet) -> None:
        self.events.append("hub up")
        await super().start(inlet)

    async def stop(self) -> None:
        self.events.append("hub down")
        await super().stop()


def told(app: FastAPI, events: list[str]) -> Hubbub:
    settings = settings_for()
    hubbub = Hubbub(app, settings=settings)
    broker = Told(settings, hubbub.clock)
    broker.events = events
    hubbub.hub.broker = broker
    return hubbub


@pytest.mark.anyio
async def test_the_apps_own_lifespan(lane: str) -> None:
    events: list[str] = []

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[dict[str, Any]]:
        events.append("app up")
        yield {"database": ["row"]}
        events.append(f"app down, {len(app.state.hubbub.hub.sessions)} sessions")

    app = FastAPI(lifespan=lifespan)
    hubbub = told(app, events)

    @app.get("/rows")
    async def rows(request: Request) -> list[str]:
        return list(request.state.database)

    @app.websocket("/rows")
    async def stream(websocket: WebSocket) -> None:
        await websocket.accept()
        await websocket.send_json(websocket.state.database)
        await websocket.close()

    async with AsyncExitStack() as stack:
        server = await stack.enter_async_context(serving(lane, app, hubbub))
        assert events == ["app up", "hub up"]
        await works(server)
        async with server.http() as http, connect_async(server.ws + "/rows", proxy=None) as client:
            assert (await http.get("/rows")).json() == ["row"]
            assert await client.recv() == '["row"]'
        alice = await stack.enter_async_context(server.client("alice"))
        server.stop()
        assert await alice.closed() == 1012
    assert events == ["app up", "hub up", "hub down", "app down, 0 sessions"]


@pytest.mark.anyio
@pytest.mark.parametrize("when", ["before", "after"])
async def test_an_included_routers_lifespan(lane: str, when: str) -> None:
    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[dict[str, Any]]:
        events.append("router up")
        yield {"cache": "warm"}
        events.append("router down")

    events: list[str] = []
    router = APIRouter(lifespan=lifespan)

    @router.get("/cache")
    async def cache(request: Request) -> str:
        return str(request.state.cache)

    app = FastAPI()
    if when == "before":
        app.include_router(router)
    hubbub = told(app, events)
    if when == "after":
        app.include_router(router)
    async with serving(lane, app, hubbub) as server:
        await works(server)
        async with server.http() as http:
            assert (await http.get("/cache")).json() == "warm"
    assert sorted(events) == ["hub down", "hub up", "router down", "router up"]


@pytest.mark.anyio
async def test_the_hub_lives_inside_the_apps_lifespan(lane: str) -> None:
    """Neither what the app does before its ``yield`` nor what it does after it can publish, and it is told so."""
    refused: list[str] = []

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        for moment in ("before", "after"):
            with pytest.raises(RuntimeError, match="the hub is not running"):
                await hubbub.publish("news", moment)
            refused.append(moment)
            if moment == "before":
                yield

    app = FastAPI(lifespan=lifespan)
    hubbub = Hubbub(app, settings=settings_for())
    async with serving(lane, app, hubbub) as server:
        await works(server)
    assert refused == ["before", "after"]


@pytest.mark.anyio
async def test_an_app_whose_lifespan_fails_does_not_start(lane: str) -> None:
    events: list[str] = []

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        raise RuntimeError("no database")
        yield

    app = FastAPI(lifespan=lifespan)
    hubbub = told(app, events)
    with pytest.raises(RuntimeError, match="did not start"):
        async with serving(lane, app, hubbub):
            pass
    assert events == []


# -- under --reload

MAIN = """
from fastapi import FastAPI
from hubbub import Hubbub

app = FastAPI()
hubbub = Hubbub(app, drain_seconds=0.5, close_timeout=0.5)

@app.get("/version")
async def version() -> int:
    return 1
"""
PATIENCE = 20.0


class Uvicorn:
    """``uvicorn`` in a process group of its own."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        self.lines: list[str] = []
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self.process.stderr is not None
        with self.process.stderr as stderr:
            self.lines.extend(stderr)

    def said(self, pattern: str) -> re.Match[str]:
        """Wait for a line."""
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline:
            for line in list(self.lines):
                if found := re.search(pattern, line):
                    return found
            time.sleep(0.02)
        raise AssertionError(f"it never said {pattern}: {''.join(self.lines)}")


@contextmanager
def uvicorn(lane: str, folder: Path, *how: str, **environment: str) -> Iterator[Uvicorn]:
    classes = [f"--{name}={value}" for name, value in UVICORN[lane].items()]
    options = [*how, "--port", "0", "--timeout-graceful-shutdown", "3"]
    kept = {name: value for name, value in os.environ.items() if not name.startswith("HUBBUB_")}
    settings = {"HUBBUB_DEV": "1", "HUBBUB_DATA_DIR": str(folder / "data"), "PYTHONPATH": kept.get("PYTHONPATH", "")}
    settings |= environment
    process = subprocess.Popen(
        [sys.executable, "-m", "uvicorn", "main:app", *options, *classes], cwd=folder, env={**kept, **settings},
        stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    try:
        yield Uvicorn(process)
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(PATIENCE)
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)  # it and its worker: the group is its own
                process.wait(PATIENCE)


def fetch(url: str, body: bytes | None = None) -> Any:
    request = urllib.request.Request(url, body, {"content-type": "application/json"})
    with urllib.request.urlopen(request, timeout=PATIENCE) as answer:
        return json.load(answer)


def told_to_leave(client: ClientConnection) -> list[str]:
    """What a client gets to the end."""
    seen: list[str] = []
    with suppress(websockets.ConnectionClosed):
        while True:
            seen.append(str(client.recv(timeout=PATIENCE)))
    return seen


def test_reload(lane: str, tmp_path: Path) -> None:
    """A file changes, the server restarts: who was there is told so, and can come back with the same token."""
    main = tmp_path / "main.py"
    main.write_text(MAIN)
    with uvicorn(lane, tmp_path, "--reload", "--reload-dir", str(tmp_path)) as server:
        address = server.said(r"running on http://(\S+:\d+)")[1]
        server.said("startup complete")
        assert fetch(f"http://{address}/version") == 1
        token = fetch(f"http://{address}/api/dev/login", b'{"name": "alice"}')["token"]
        with connect(f"ws://{address}/ws?token={token}", proxy=None) as client:
            assert "auth_success" in str(client.recv(timeout=PATIENCE))
            main.write_text(MAIN.replace("return 1", "return 22"))
            seen = told_to_leave(client)
            assert client.close_code == 1012
            assert ["reconnect" in message for message in seen] == ([True] if lane == "fast" else [])
        # the parent process keeps the listening socket: who comes now waits for the new worker
        with connect(f"ws://{address}/ws?token={token}", proxy=None, open_timeout=PATIENCE) as client:
            assert "auth_success" in str(client.recv(timeout=PATIENCE))
            assert fetch(f"http://{address}/version") == 22


def test_workers_of_another_server_without_an_engine_are_warned_of(lane: str, tmp_path: Path) -> None:
    (tmp_path / "main.py").write_text(MAIN)
    with uvicorn(lane, tmp_path, "--workers", "2", HUBBUB_DATABASE_URL="sqlite://") as server:
        server.said("one of 2 workers, and there is no engine.*hubbub serve --app module:app --workers 2")


def test_workers_of_another_server_do_not_share_a_sqlite_file(lane: str, tmp_path: Path) -> None:
    (tmp_path / "main.py").write_text(MAIN)
    with uvicorn(lane, tmp_path, "--workers", "2") as server:
        server.said("for several workers, use `hubbub serve --app module:app --workers N`")
