"""What the tests share: a real server in the test's own loop, a clock that is turned by hand, a client that waits
with a deadline and shows what did arrive."""

from __future__ import annotations

import asyncio
import json
import os
import ssl
import tempfile
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, cast

import httpx2
import msgspec
import websockets
from fastapi import FastAPI
from websockets.asyncio.client import ClientConnection, connect

from hubbub import Hubbub, Settings, issue_token
from hubbub.app import create_app
from hubbub.hub import Hub
from hubbub.settings import load_settings
from hubbub.transports.shared import Shared
from tests.lanes import BOTH_LANES as BOTH_LANES
from tests.lanes import DEADLINE as DEADLINE
from tests.lanes import Shell, shell

SECRET = "a secret of the tests, forty bytes long .."
API_KEY = "key-of-the-tests-0001"
TLS = ssl.create_default_context()
"""Made once: httpx would make one for each client, which takes longer than most tests."""


class HandClock:
    """Two clocks that move only when a test says so."""

    def __init__(self, unix: float = 1_800_000_000.0, monotonic: float = 1000.0) -> None:
        self._unix = unix
        self._monotonic = monotonic

    def time(self) -> float:
        return self._unix

    def monotonic(self) -> float:
        return self._monotonic

    def advance(self, seconds: float) -> None:
        self._unix += seconds
        self._monotonic += seconds


def settings_for(**overrides: Any) -> Settings:
    """Settings that do not look at the environment of whoever runs the tests."""
    kept = {name: os.environ.pop(name) for name in list(os.environ) if name.startswith("HUBBUB_")}
    try:
        values: dict[str, Any] = {
            "secret": SECRET,
            "api_keys": (API_KEY,),
            "dev": True,
            "data_dir": Path(tempfile.gettempdir()) / "hubbub-tests",
            "database_url": "sqlite://",
            "drain_seconds": 0.5,
            "close_timeout": 1.0,
        }
        return load_settings(**{**values, **overrides})
    finally:
        os.environ.update(kept)


class Running:
    """A server that runs in this loop."""

    def __init__(self, shell: Shell, app: FastAPI, clock: HandClock | None) -> None:
        self.server = shell.server
        self.stop = shell.stop
        self.app = app
        self.port = shell.port
        self.clock = clock
        self.hubbub = cast(Hubbub, getattr(getattr(app, "state", None), "hubbub", None))

    @property
    def hub(self) -> Hub:
        return self.hubbub.hub

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def ws(self) -> str:
        return f"ws://127.0.0.1:{self.port}"

    @property
    def shared(self) -> Shared:
        """The fast lane's shared part (there is one once a connection came)."""
        return cast(Shared, self.server.server_state.hubbub_shared)

    def token(self, user: str, *, ttl: float = 3600.0, **grants: Any) -> str:
        grants.setdefault("subscribe", ("*",))
        grants.setdefault("publish", ("*",))
        return issue_token(self.hubbub.settings, user, now=self.hubbub.clock.time(), ttl=ttl, **grants)

    @asynccontextmanager
    async def client(self, user: str | None = None, path: str = "/ws", **options: Any) -> AsyncIterator[Client]:
        """A client; signed in if a user is named."""
        grants = options.pop("grants", {})
        previous = options.pop("session", None)
        options.setdefault("max_queue", None)  # with a full queue its close() would wait for ten seconds
        async with connect(self.ws + path, proxy=None, ping_interval=None, **options) as connection:
            client = Client(connection)
            if user is not None:
                await client.send("auth", token=self.token(user, **grants), session=previous)
                client.session = (await client.expect("auth_success"))["session"]
            yield client

    @asynccontextmanager
    async def http(self, bearer: str | None = API_KEY) -> AsyncIterator[httpx2.AsyncClient]:
        """An HTTP client of this server, with an API key unless told otherwise."""
        headers = {"content-type": "application/json"} | (
            {} if bearer is None else {"authorization": f"Bearer {bearer}"}
        )
        options: dict[str, Any] = {"trust_env": False, "timeout": DEADLINE, "verify": TLS}
        async with httpx2.AsyncClient(base_url=self.url, headers=headers, **options) as client:
            yield client

    def advance(self, seconds: float) -> None:
        """Turn the clock, and do what is due then."""
        assert self.clock is not None, "this server runs on the real clock"
        self.clock.advance(seconds)
        self.hub.sweep()


class Client:
    """A foreign WebSocket client (`websockets`) with a deadline on every wait."""

    def __init__(self, connection: ClientConnection) -> None:
        self.connection = connection
        self.seen: list[Any] = []
        self.session = ""
        self._asked = 0
        request = connection.request
        asked = request is not None and "format=msgpack" in request.path
        self.packs = asked or connection.subprotocol == "hubbub.msgpack"

    async def send(self, kind: str, /, **fields: Any) -> None:
        message = {"type": kind, **fields}
        await self.connection.send(msgspec.msgpack.encode(message) if self.packs else json.dumps(message))

    async def send_raw(self, data: str | bytes) -> None:
        await self.connection.send(data)

    async def receive(self) -> dict[str, Any]:
        """The next message."""
        try:
            async with asyncio.timeout(DEADLINE):
                data = await self.connection.recv()
        except TimeoutError:
            raise AssertionError(f"nothing came; seen so far: {self.seen}") from None
        message = json.loads(data) if isinstance(data, str) else msgspec.msgpack.decode(data)
        self.seen.append(message)
        return cast("dict[str, Any]", message)

    async def expect(self, kind: str, /, **fields: Any) -> dict[str, Any]:
        """The next message of this type (with these fields); others before it are passed over."""
        passed: list[dict[str, Any]] = []
        while True:
            try:
                message = await self.receive()
            except (AssertionError, websockets.ConnectionClosed) as error:
                raise AssertionError(f"no {kind!r} with {fields} came, but {passed}") from error
            if message["type"] == kind and all(message.get(name) == value for name, value in fields.items()):
                return message
            passed.append(message)

    async def ask(self, kind: str, /, **fields: Any) -> dict[str, Any]:
        """Send a message and wait for what carries its ``ref`` back; others before it are passed over."""
        self._asked += 1
        ref = f"ask-{self._asked}"
        await self.send(kind, ref=ref, **fields)
        while True:
            message = await self.receive()
            if message.get("ref") == ref:
                return message

    async def refused(self, kind: str, /, **fields: Any) -> str:
        """Send a message that is refused; returns the error's code."""
        answer = await self.ask(kind, **fields)
        assert answer["type"] == "error", answer
        return str(answer["code"])

    async def drained(self) -> list[dict[str, Any]]:
        """Everything that was on its way, up to a ping's answer."""
        await self.send("ping", ref="drained")
        messages = []
        while (message := await self.receive()) != {"type": "pong", "ref": "drained"}:
            messages.append(message)
        return messages

    async def nothing_more(self) -> None:
        """Assert that nothing is on its way: a ping's answer is the next message."""
        await self.send("ping", ref="nothing-more")
        message = await self.receive()
        assert message == {"type": "pong", "ref": "nothing-more"}, message

    async def closed(self) -> int:
        """Wait for the end; returns the close code."""
        try:
            async with asyncio.timeout(DEADLINE):
                while True:
                    data = await self.connection.recv()
                    self.seen.append(json.loads(data) if isinstance(data, str) else msgspec.msgpack.decode(data))
        except websockets.ConnectionClosed:
            code = self.connection.close_code
            return code if code is not None else 1006
        except TimeoutError:
            raise AssertionError(f"it was not closed; seen: {self.seen}") from None


@asynccontextmanager
async def running(
    settings: Settings | None = None,
    *,
    app: FastAPI | None = None,
    clock: HandClock | None = None,
    lane: str = "fast",
    make: Callable[[], FastAPI] | None = None,
    options: Mapping[str, Any] | None = None,
) -> AsyncIterator[Running]:
    """Serve an app (by default the complete server) on a free loopback port, in this loop."""
    if app is None:
        chosen = settings or settings_for()
        if make is not None:
            app = make()
        elif clock is not None:
            app = FastAPI()
            Hubbub(app, settings=chosen, clock=clock)
        else:
            app = create_app(chosen)
    async with shell(lane, app, options or {}) as server:
        yield Running(server, app, clock)


@asynccontextmanager
async def serve(lane: str, *, clock: HandClock | None = None, **settings: Any) -> AsyncIterator[Running]:
    """Serve on a lane with a clock that is turned by hand."""
    async with running(settings_for(**settings), clock=clock or HandClock(), lane=lane) as server:
        yield server


async def until(condition: Callable[[], bool], what: str = "") -> None:
    """Let the loop run until a condition holds."""
    try:
        async with asyncio.timeout(DEADLINE):
            while not condition():
                await asyncio.sleep(0)
    except TimeoutError:
        raise AssertionError(f"never came true: {what or condition}") from None
