"""``Hubbub(app)`` and ``create_app()``: the only place that names concrete classes."""

from __future__ import annotations

import logging
import os
import secrets
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from time import monotonic
from time import time as unix_time
from typing import Any

import msgspec
from fastapi import FastAPI, Request, Response
from fastapi.responses import FileResponse, JSONResponse
from fastapi.staticfiles import StaticFiles
from pydantic import SecretStr
from starlette.routing import WebSocketRoute

from hubbub.api import Api, publish_data
from hubbub.auth import issue_token
from hubbub.brokers.memory import MemoryBroker
from hubbub.commands import Commands
from hubbub.endpoint import EchoEndpoint, SessionEndpoint
from hubbub.errors import HTTP_STATUS, ClientError, CloseCode, ConfigurationError
from hubbub.features.chat import Chat
from hubbub.features.notifications import Notifications
from hubbub.hub import Hub
from hubbub.messages import JSON, NotificationType, Position, plain_data
from hubbub.ports import Broker, Clock
from hubbub.redaction import RedactTokens
from hubbub.settings import ChannelOptions, Settings, load_settings

STATIC = Path(__file__).parent / "static"
CONTENT_SECURITY_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self' ws: wss:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


class SystemClock:
    """The machine's clocks."""

    def __init__(self) -> None:
        # the functions themselves: a method around each would cost more than the clock
        self.time: Callable[[], float] = unix_time
        self.monotonic: Callable[[], float] = monotonic


class Hubbub:
    """Real-time features for a FastAPI app: sessions on ``/ws``, rooms, notifications, presence, history, the server API.

    :param app: the app that gets the routes; its lifespan starts and stops the hub.
    :param settings: all settings; by default they are read from ``HUBBUB_…`` and from ``overrides``.
    :param channels: options per channel pattern, in code: ``{"ticks:*": ChannelOptions(slow="conflate")}``. They come
        before those of the settings.
    :param prefix: put before the paths of all routes.
    :param broker: where publications go; by default this process's memory.
    :param clock: the clocks; tests bring their own.
    :raises ConfigurationError: a setting makes no sense, or there is no key to check tokens with.
    """

    def __init__(
        self,
        app: FastAPI | None = None,
        *,
        settings: Settings | None = None,
        channels: Mapping[str, ChannelOptions] | None = None,
        prefix: str = "",
        broker: Broker | None = None,
        clock: Clock | None = None,
        **overrides: Any,
    ) -> None:
        chosen = settings if settings is not None else load_settings(**overrides)
        if channels:
            chosen = chosen.model_copy(update={"channels": {**channels, **chosen.channels}})
        self.settings = ensure_secret(chosen)
        self.clock = clock or SystemClock()
        self.hub = Hub(self.settings, broker or MemoryBroker(self.settings, self.clock), self.clock)
        Commands(self.hub)
        self.chat = Chat(self.hub)
        self.notifications = Notifications(self.hub)
        self._counters = _transport_counters()
        self._counters.drops = self.hub.metrics.drops
        self._endpoint = SessionEndpoint(self.hub)
        self._direct = False
        self.prefix = prefix
        if app is not None:
            self.install(app)

    def install(self, app: FastAPI) -> None:
        """Add the routes to an app, and start and stop with it.

        :raises ConfigurationError: the app has a route of its own where one of these would be.
        """
        taken = {getattr(route, "path", None) for route in app.router.routes}
        for path in ("/ws", "/ws/chat/{room_id}", "/health", "/metrics"):
            if self.prefix + path in taken:
                raise ConfigurationError(f"the app has a route {self.prefix + path} already: give Hubbub a prefix=")
        api = Api(self.hub, self.chat, self.notifications, self._below)
        app.include_router(api.router, prefix=self.prefix)
        app.add_exception_handler(ClientError, _client_error)
        session: Any = self._endpoint  # Starlette runs what is no function as a raw ASGI app
        routes = [
            WebSocketRoute(self.prefix + "/ws", session, name="hubbub"),
            WebSocketRoute(self.prefix + "/ws/chat/{room_id}", session, name="hubbub-chat"),
        ]
        if self.settings.dev:
            echo: Any = EchoEndpoint(self.hub)
            routes.append(WebSocketRoute(self.prefix + "/ws/echo", echo, name="hubbub-echo"))
        app.router.routes[:0] = routes  # first: they are asked for most, and matching goes in order
        original = app.router.lifespan_context

        @asynccontextmanager
        async def lifespan(inner: Any) -> AsyncIterator[Mapping[str, Any]]:
            _redact_server_logs()
            async with original(inner) as state:
                await self.hub.ensure_started()
                try:
                    yield {**(state or {}), **self.state()}
                finally:
                    await self.hub.stop()

        app.router.lifespan_context = lifespan
        app.state.hubbub = self

    def state(self) -> dict[str, Any]:
        """What the transports look for in the ASGI state."""
        return {
            "hubbub_gate": self.hub,
            "hubbub_settings": self.settings,
            "hubbub_counters": self._counters,
            "hubbub_clock": self.clock,
            "hubbub_direct": self._endpoint.direct if self._direct else None,
        }

    def open_directly(self) -> None:
        """On the fast lane, open sessions without running the ASGI app: twice as many handshakes per second.

        Only for an app without middleware or dependencies of its own for these routes, served at the root. The server
        must be started after this.
        """
        self._direct = not self.prefix

    def _below(self) -> dict[str, int]:
        counters = self._counters
        return {
            "control_flood": counters.control_floods,
            "heartbeat_lost": counters.heartbeats_lost,
            "stalled": counters.stalled,
            **{f"refused_{reason}": count for reason, count in counters.refused.items()},
            **{f"violation_{code}": count for code, count in counters.violations.items()},
        }

    # -- what an app calls

    async def publish(self, channel: str, data: Any, *, key: str | None = None, user_id: str | None = None) -> Position:
        """Publish ``data`` (anything that JSON can carry) on a channel; returns once it is in the channel's history.

        :raises ClientError: the name or the data cannot be published.
        """
        payload = plain_data(msgspec.Raw(JSON.encode(data)), is_json=True)
        position: Position = await publish_data(self.hub, channel, payload, key, user_id)
        return position

    async def notify(
        self,
        user_id: str | Iterable[str],
        title: str,
        message: str,
        notification_type: NotificationType = "info",
        metadata: dict[str, Any] | None = None,
    ) -> int:
        """Notify one or many users on all their devices. Returns how many live sessions it reached."""
        users = [user_id] if isinstance(user_id, str) else user_id
        _, reached = await self.notifications.send(users, title, message, notification_type, metadata)
        return reached

    async def broadcast(
        self,
        title: str,
        message: str,
        notification_type: NotificationType = "info",
        exclude_users: Iterable[str] = (),
    ) -> int:
        """Notify everybody who is signed in. Returns how many live sessions it reached."""
        return await self.notifications.broadcast(title, message, notification_type, exclude_users)

    async def disconnect(self, user_id: str, *, revoke: bool = False, reason: str = "") -> int:
        """Close all sessions of a user; ``revoke``: and refuse the tokens issued until now. Returns how many."""
        if revoke:
            return self.hub.entrance.revoke(user_id=user_id)
        return self.hub.disconnect(user_id, CloseCode.NORMAL, reason)

    def create_room(self, room_id: str, name: str | None = None) -> None:
        """Make a chat room.

        :raises ClientError: a wrong id, or one that is taken.
        """
        self.chat.create(room_id, name, None)

    def token(self, user_id: str, *, ttl: float = 3600.0, **grants: Any) -> str:
        """Issue a token for a user (HS256 with the secret); grants as in :func:`hubbub.issue_token`."""
        return issue_token(self.settings, user_id, now=self.clock.time(), ttl=ttl, **grants)


def create_app(settings: Settings | None = None) -> FastAPI:
    """The complete server: everything that ``Hubbub`` adds, and the web page."""
    from hubbub import __version__

    app = FastAPI(
        title="Hubbub",
        version=__version__,
        summary="Rooms, live notifications, presence and history over WebSockets.",
    )
    hubbub = Hubbub(app, settings=settings)
    hubbub.open_directly()

    @app.get("/", include_in_schema=False)
    async def page() -> Response:
        return FileResponse(STATIC / "index.html", headers=_PAGE_HEADERS)

    app.mount("/static", _Static(directory=STATIC), name="static")
    return app


class _Static(StaticFiles):
    def file_response(self, *args: Any, **kwargs: Any) -> Response:
        response = super().file_response(*args, **kwargs)
        response.headers.update(_PAGE_HEADERS)
        return response


_PAGE_HEADERS = {
    "content-security-policy": CONTENT_SECURITY_POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cache-control": "no-cache",
}


async def _client_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, ClientError)
    status = HTTP_STATUS[error.code]
    headers = {"retry-after": str(max(1, round(error.retry_after)))} if error.retry_after else {}
    if status == 401:
        headers["www-authenticate"] = "Bearer"
    return JSONResponse({"error": {"code": str(error.code), "message": error.message}}, status, headers)


def _redact_server_logs() -> None:
    """Servers log the paths of WebSockets, and ?token= is in them."""
    for name in ("uvicorn.error", "uvicorn.access", "hypercorn.access", "hypercorn.error"):
        logger = logging.getLogger(name)
        if not any(isinstance(each, RedactTokens) for each in logger.filters):
            logger.addFilter(RedactTokens())


def _transport_counters() -> Any:
    from hubbub.transports.shared import Counters

    return Counters()


def ensure_secret(settings: Settings) -> Settings:
    """In development, give settings without a key a random secret that is kept in the data directory.

    :raises ConfigurationError: not in development: says what to do. Or the data directory cannot be used.
    """
    if settings.secret is not None or settings.public_key is not None:
        return settings
    if not settings.dev:
        raise ConfigurationError(
            "HUBBUB_SECRET is not set (at least 32 bytes), nor HUBBUB_PUBLIC_KEY; make a secret with: "
            "python3 -c 'import secrets; print(secrets.token_urlsafe(48))'"
        )
    path = settings.data_dir / "secret"
    try:
        settings.data_dir.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(descriptor, "w") as file:
                file.write(secrets.token_urlsafe(48))
        secret = path.read_text().strip()
    except FileExistsError:
        secret = path.read_text().strip()  # another process was faster
    except OSError as error:
        raise ConfigurationError(f"HUBBUB_DATA_DIR: cannot keep a secret in {settings.data_dir}: {error}") from None
    if len(secret) < 32:
        raise ConfigurationError(f"{path} is damaged: delete it, and a new secret is made (old tokens end)")
    return settings.model_copy(update={"secret": SecretStr(secret)})


__all__ = ["Hubbub", "create_app", "ensure_secret"]
