"""The servers that the behaviour suite runs under: each in the test's own loop, so that a test can look into the hub.

The fast lane is Hubbub's own transport under uvicorn. All others are the slower lane, under somebody else's WebSockets.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import warnings
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from typing import Any
from unittest.mock import patch

import pytest
import uvicorn
import uvicorn.server
from fastapi import FastAPI

DEADLINE = 5.0
"""Seconds that any wait in a test may take before it fails."""
GRACE = 0.3
"""Seconds that a server waits for open connections before it cuts them off, where it has such a setting."""

FAST = {"ws": "hubbub.transports.uvicorn:WebSocketProtocol", "http": "hubbub.transports.uvicorn:HttpProtocol"}
UVICORN: dict[str, Mapping[str, Any]] = {
    "fast": FAST,
    "asgi": {"ws": "websockets-sansio", "http": "httptools"},
    "wsproto": {"ws": "wsproto", "http": "h11"},
    "legacy": {"ws": "websockets", "http": "httptools"},
}
"""Lanes under uvicorn, by the classes that it is given."""

LACKS: dict[str, dict[str, str]] = {
    "hypercorn": {
        "the peer's close code": "it tells an app 1006, whatever the client's close frame said",
    },
    "granian": {
        "a turn beside a busy loop": "its threads want the interpreter's lock, and a loop that never idles keeps it",
        "a goodbye": "when it stops, it cuts all connections off before the app hears of it",
    },
    "daphne": {
        "close reasons": "it takes the code of a `websocket.close` and leaves the reason out",
        "close codes below 3000": "autobahn, below it, sends no others but 1000; Hubbub takes 1000 or 4503 instead",
        "refusals with a status": "it has no `websocket.http.response`: who is refused gets 403",
        "backpressure": "its `send` never waits: what a client does not read fills the memory, and nobody can know",
    },
}
"""Lane → what its server cannot do → why. Tests ask for it by name, and check what comes instead where something does."""


def lacks(lane: str, ability: str) -> bool:
    """Whether a lane's server cannot do what every server should."""
    assert any(ability in abilities for abilities in LACKS.values()), f"{ability!r} is not in the table"
    return ability in LACKS.get(lane, {})


def close_code(lane: str, code: int) -> int:
    """What a client sees of a close code of ours."""
    if 1000 < code < 3000 and lacks(lane, "close codes below 3000"):
        return 4503 if code in (1001, 1011, 1012) else 1000
    return code


def needs(lane: str, ability: str) -> None:
    """Skip the rest of a test, where a lane's server cannot do what it is about."""
    if lacks(lane, ability):
        pytest.skip(f"{lane} has no {ability}: {LACKS[lane][ability]}")


class Shell:
    """A server that runs.

    :ivar port: where it listens, on 127.0.0.1.
    :ivar stop: what SIGTERM would do; returns at once.
    :ivar server: the server itself, for tests that know which it is.
    """

    def __init__(self, port: int, stop: Callable[[], None], server: Any) -> None:
        self.port = port
        self.stop = stop
        self.server = server


def shell(lane: str, app: FastAPI, options: Mapping[str, Any]) -> AbstractAsyncContextManager[Shell]:
    """Serve an app on a free loopback port, in this loop.

    :param options: uvicorn's, for its lanes.
    """
    if lane in UVICORN:
        if lane == "legacy":  # it says so at its import, and for each connection
            warnings.filterwarnings("ignore", message=".*deprecated|remove second argument of ws_handler")
        return _uvicorn(app, {**UVICORN[lane], **options})
    assert not options, "only uvicorn takes these"
    return OTHERS[lane](app)


# -- uvicorn


class _Hurried:
    """What ``uvicorn.server`` sees as asyncio: its naps are a twentieth of what it asks for, for there are many tests."""

    def __getattr__(self, name: str) -> Any:
        return getattr(asyncio, name)

    @staticmethod
    async def sleep(seconds: float) -> None:
        await asyncio.sleep(seconds / 20)


vars(uvicorn.server)["asyncio"] = _Hurried()


@asynccontextmanager
async def _uvicorn(app: FastAPI, options: Mapping[str, Any]) -> AsyncIterator[Shell]:
    listener = _listener()
    config = uvicorn.Config(app, lifespan="on", log_config=None, timeout_graceful_shutdown=5, **options)
    server = uvicorn.Server(config)
    server.install_signal_handlers = lambda: None  # type: ignore[attr-defined]

    async def serve() -> None:
        try:
            await server._serve([listener])
        except SystemExit as end:  # which would end the tests as well
            raise RuntimeError("the server did not start") from end
        finally:
            listener.close()

    serving = asyncio.create_task(serve())

    def stop() -> None:
        server.should_exit = True

    try:
        async with asyncio.timeout(DEADLINE):
            while not server.started:
                if serving.done():
                    serving.result()
                await asyncio.sleep(0)
        yield Shell(listener.getsockname()[1], stop, server)
    finally:
        stop()
        async with asyncio.timeout(20):
            await serving


# -- hypercorn


@asynccontextmanager
async def _hypercorn(app: FastAPI) -> AsyncIterator[Shell]:
    from hypercorn.asyncio import serve
    from hypercorn.config import Config

    listener = _listener()
    port = listener.getsockname()[1]
    config = Config()
    config.accesslog = logging.getLogger("hypercorn.access")
    config.errorlog = logging.getLogger("hypercorn.error")
    config.graceful_timeout = GRACE
    config.bind = [f"fd://{listener.detach()}"]
    ending = asyncio.Event()
    serving = asyncio.create_task(serve(app, config, shutdown_trigger=ending.wait))  # type: ignore[arg-type]
    try:
        await _listening(port, serving)
        yield Shell(port, ending.set, config)
    finally:
        ending.set()
        async with asyncio.timeout(20):
            await serving


# -- granian


@asynccontextmanager
async def _granian(app: FastAPI) -> AsyncIterator[Shell]:
    from granian.constants import Interfaces
    from granian.server.embed import Server

    holder = _listener(share=True)  # so that nobody else takes the port; it does not listen
    port = holder.getsockname()[1]
    with patch("granian.server.common.configure_logging"):  # it would close the handlers of all others
        server: Any = Server(app, port=port, interface=Interfaces.ASGI)
    serving = asyncio.create_task(server.serve())
    try:
        await _listening(port, serving)
        yield Shell(port, server.stop, server)
    finally:
        server.stop()
        async with asyncio.timeout(20):
            await serving
        holder.close()


# -- daphne


@asynccontextmanager
async def _daphne(app: FastAPI) -> AsyncIterator[Shell]:
    """Daphne's server over this loop instead of one of its own.

    Twisted has one reactor for a process, and it cannot be started twice. So it is never stopped, but moved to the loop
    of the next test. Daphne knows no lifespan: the hub starts with its first session, and is stopped here.
    """
    from daphne import server as daphne
    from twisted.internet import reactor as installed

    reactor: Any = installed
    loop = asyncio.get_running_loop()
    old, reactor._asyncioEventloop = reactor._asyncioEventloop, loop
    if not reactor.running:
        old.close()  # the one that importing daphne made, and that never ran
        reactor.startRunning(installSignalHandlers=False)
    server = daphne.Server(app, endpoints=["tcp:port=0:interface=127.0.0.1"], signal_handlers=False)
    with patch.multiple(reactor, run=lambda **_: None, addSystemEventTrigger=lambda *_: None):
        server.run()
    ending: list[asyncio.Task[None]] = []

    async def end() -> None:
        """What ``reactor.stop()`` makes of it, but for the end of the loop."""
        running = [details.get("application_instance") for details in server.connections.values()]
        applications = [each for each in running if each is not None and not each.done()]
        for each in applications:
            each.cancel()
        await asyncio.gather(*applications, return_exceptions=True)
        reactor.disconnectAll()

    def stop() -> None:
        if not ending:
            ending.append(loop.create_task(end()))

    try:
        yield Shell(server.listening_addresses[0][1], stop, server)
    finally:
        stop()
        async with asyncio.timeout(20):
            await ending[0]
        for call in reactor.getDelayedCalls():
            call.cancel()
        if reactor._timerHandle is not None:
            reactor._timerHandle.cancel()
        reactor._timerHandle = reactor._scheduledAt = None
        hubbub = getattr(getattr(app, "state", None), "hubbub", None)
        if hubbub is not None:
            await hubbub.hub.stop()


# -- all of them

OTHERS: dict[str, Callable[[FastAPI], AbstractAsyncContextManager[Shell]]] = {
    "hypercorn": _hypercorn,
    "daphne": _daphne,
    "granian": _granian,
}
BOTH_LANES = [pytest.mark.anyio, pytest.mark.parametrize("lane", [*UVICORN, *OTHERS])]
"""``pytestmark`` of the behaviour suite: every test runs on the fast lane, and on the slower one under each server; it
says ``serve(lane)``."""


def _listener(*, share: bool = False) -> socket.socket:
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT if share else socket.SO_REUSEADDR, 1)
    listener.bind(("127.0.0.1", 0))
    return listener


async def _listening(port: int, serving: asyncio.Task[None]) -> None:
    """Wait until the server takes connections."""
    async with asyncio.timeout(DEADLINE):
        while True:
            if serving.done():
                serving.result()
            with suppress(OSError):
                _, writer = await asyncio.open_connection("127.0.0.1", port)
                writer.close()
                return
            await asyncio.sleep(0.001)
