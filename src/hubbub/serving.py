"""One process that serves: what `hubbub serve` is, and each of its workers."""

from __future__ import annotations

import gc
import json
import math
import os
import signal
import socket
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import msgspec

from hubbub.errors import ConfigurationError
from hubbub.listening import BACKLOG

if TYPE_CHECKING:
    from uvicorn import Config, Server

    from hubbub.settings import Settings


class Serving(msgspec.Struct, frozen=True, kw_only=True):
    """The options of `hubbub serve`, checked.

    :ivar app: an app of one's own, as `module:attribute`; None: the complete server.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    dev: bool = False
    app: str | None = None
    ssl_certfile: str | None = None
    ssl_keyfile: str | None = None
    forwarded_allow_ips: str = "127.0.0.1"

    def name(self, port: int) -> str:
        """The URL that it is reached under."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{'https' if self.ssl_certfile else 'http'}://{host}:{port}"

    def announce(self, port: int, *, workers: int = 1, alone: int | None = None) -> None:
        """Tell whoever started it where it listens, at any log level.

        :param alone: worker n listens on this port plus n, too.
        """
        text = f"Hubbub listens on {self.name(port)}"
        if workers > 1:
            text += f" with {workers} workers"
        if alone is not None:
            text += f" (each alone on {alone} to {alone + workers - 1})"
        if self.dev:
            text += "  (development mode: anybody may log in by name)"
        sys.stderr.write((text if self.pretty else _record(text, workers)) + "\n")
        sys.stderr.flush()

    @property
    def pretty(self) -> bool:
        """Whether what it says is for a person, and not a JSON object a line."""
        return self.dev or sys.stderr.isatty()


def _record(text: str, workers: int) -> str:
    """A line as those that :mod:`hubbub.logs` writes."""
    at = datetime.now(UTC).isoformat().replace("+00:00", "Z")
    return json.dumps({"event": text, "workers": workers, "level": "info", "logger": "hubbub", "timestamp": at})


def settings_of(serving: Serving) -> Settings:
    """The settings, with a secret.

    :raises ConfigurationError: one makes no sense, or there is no secret.
    """
    from hubbub.app import ensure_secret
    from hubbub.settings import load_settings

    return ensure_secret(load_settings(dev=serving.dev))


def config_of(serving: Serving, settings: Settings) -> Config:
    """What uvicorn is to run. Imports an app of one's own only when it is loaded."""
    from uvicorn import Config

    from hubbub.app import create_app

    if serving.app is None:
        target: Any = create_app(settings)
    else:
        os.environ["HUBBUB_DEV"] = "1" if serving.dev else "0"
        sys.path.insert(0, "")
        target = serving.app
    return Config(
        target,
        host=serving.host,
        port=serving.port,
        backlog=BACKLOG,
        loop="uvloop" if sys.platform != "win32" else "asyncio",
        http="hubbub.transports.uvicorn:HttpProtocol",
        ws="hubbub.transports.uvicorn:WebSocketProtocol",
        lifespan="on",
        log_config=None,
        access_log=settings.log_level == "debug",
        server_header=False,
        forwarded_allow_ips=serving.forwarded_allow_ips,
        ssl_certfile=serving.ssl_certfile,
        ssl_keyfile=serving.ssl_keyfile,
        timeout_graceful_shutdown=drain_bound(settings),
    )


def drain_bound(settings: Settings) -> int:
    """Seconds after which a process that was asked to end has closed its connections."""
    return math.ceil(settings.drain_seconds + settings.close_timeout) + 2


def server_of(config: Config, settings: Settings, started: Callable[[], None]) -> Server:
    """The server; ``started`` is called in its loop, once it accepts connections."""
    from uvicorn import Server

    class HubbubServer(Server):
        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets)
            if settings.gc_freeze:
                # what lives as long as the process need not be looked at again; a full collection over 100,000
                # sessions would stop the loop for hundreds of milliseconds
                gc.collect()
                gc.freeze()
                gc.set_threshold(50_000, 50, 1000)
            started()

    return HubbubServer(config)


def serve_alone(serving: Serving) -> int:
    """Serve in this process until a signal; returns the exit code.

    :raises ConfigurationError: a setting makes no sense, or the port cannot be had.
    """
    from hubbub import logs

    settings = settings_of(serving)
    logs.configure(settings.log_level, pretty=serving.pretty)
    config = config_of(serving, settings)
    raise_file_limit()
    server = server_of(config, settings, lambda: None)

    def leave(*_: object) -> None:
        # uvicorn raises the signal again once it has shut down; then there is nothing left to end
        if not server.started:
            raise SystemExit(0)

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, leave)
    try:
        listener = config.bind_socket()
    except SystemExit:
        raise ConfigurationError(
            f"cannot listen on {config.host}:{config.port}: taken, or not allowed; use another --port"
        ) from None
    limit_silence(listener, settings)
    listener.listen(BACKLOG)  # whoever reads the next line may connect
    serving.announce(listener.getsockname()[1])
    server.run(sockets=[listener])
    return 0 if server.started else 3


def limit_silence(listener: socket.socket, settings: Settings) -> None:
    """Connections that it accepts are given up when what is sent is not acknowledged for too long."""
    if settings.tcp_user_timeout and hasattr(socket, "TCP_USER_TIMEOUT"):
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(settings.tcp_user_timeout * 1000))


def raise_file_limit() -> None:
    """A connection is a descriptor, and the usual soft limit is 1024."""
    try:
        import resource
    except ImportError:
        return
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    except (ValueError, OSError):
        sys.stderr.write("could not raise the limit of open files; many connections may not fit\n")
