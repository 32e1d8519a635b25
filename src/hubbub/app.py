"""``Hubbub(app)`` and ``create_app()``: the only place that names concrete classes."""

from __future__ import annotations

import asyncio
import logging
import math
import os
import secrets
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from pathlib import Path
from time import monotonic
from time import time as unix_time
from typing import Any, TypeVar

import msgspec
from fastapi import FastAPI, Request, Response, params
from fastapi.responses import FileResponse, JSONResponse
from fastapi.staticfiles import StaticFiles
from pydantic import SecretStr
from starlette.routing import WebSocketRoute

from hubbub import control, processes, schema
from hubbub.api import Api, publish_data
from hubbub.asyncapi.routes import add_routes
from hubbub.auth import Grants, issue_token
from hubbub.brokers import broker_for, counters_for
from hubbub.commands import Commands, check_name
from hubbub.endpoint import EchoEndpoint, SessionEndpoint
from hubbub.engines import Engine, engine_for
from hubbub.errors import (
    HTTP_STATUS,
    BrokerUnavailable,
    ClientError,
    CloseCode,
    ConfigurationError,
    ErrorCode,
    SessionClosed,
)
from hubbub.features.chat import asks
from hubbub.features.chat.access import Caller
from hubbub.features.chat.chat import SERVER, Chat
from hubbub.features.chat.tells import RoomInfo
from hubbub.features.chat.upkeep import Upkeep
from hubbub.features.chat.uploads import Uploads
from hubbub.features.notifications import Notifications
from hubbub.files import files_from
from hubbub.hub import Hub
from hubbub.making import SubscriptionEnded
from hubbub.messages import NotificationType, Position, plain_data
from hubbub.ports import Broker, Clock
from hubbub.presence import Roster
from hubbub.redaction import RedactTokens
from hubbub.session import Session, State
from hubbub.settings import ChannelOptions, Settings, load_settings
from hubbub.store import Store
from hubbub.tables import metadata
from hubbub.toolkit.blocking import Blocking
from hubbub.toolkit.dependencies import Call, Callee, Context, Owner
from hubbub.toolkit.handlers import Declaration, Handler
from hubbub.toolkit.names import NamePattern
from hubbub.toolkit.router import Declared, Declares, Hook
from hubbub.toolkit.sending import ToUsers, bytes_for_all
from hubbub.toolkit.session import Session as UserSession
from hubbub.toolkit.session import session_of
from hubbub.toolkit.shapes import data_bytes
from hubbub.toolkit.topics import BoundTopic, Topic

log = logging.getLogger("hubbub")
T = TypeVar("T")
S = TypeVar("S", bound=msgspec.Struct)
PUBLISHED_PER_TURN = 64
"""Publications of an app's code in one turn of the loop, before it lets others in."""
STATIC = Path(__file__).parent / "static"
CONTENT_SECURITY_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; connect-src 'self' ws: wss:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


class SystemClock:
    """The machine's clocks."""

    def __init__(self) -> None:
        # the functions themselves: a method around each would cost more than the clock
        self.time: Callable[[], float] = unix_time
        self.monotonic: Callable[[], float] = monotonic


class Hubbub(Declares, Owner):
    """Real-time features for a FastAPI app: sessions on ``/ws``, rooms, notifications, presence, history, the server API,
    and the app's own typed handlers and channels (:meth:`on`, :meth:`channel`).

    :param app: the app that gets the routes; its lifespan starts and stops the hub.
    :param settings: all settings; by default they are read from ``HUBBUB_…`` and from ``overrides``.
    :param channels: options per channel pattern, in code: ``{"ticks:*": ChannelOptions(slow="conflate")}``. They come
        before those of the settings.
    :param prefix: put before the paths of all routes.
    :param broker: where publications go; by default the engine of HUBBUB_VALKEY_URL, or this process's memory.
    :param clock: the clocks; tests bring their own.
    :param dependencies: ``Depends(…)`` that run before each of the app's handlers, for their effects.
    :raises ConfigurationError: a setting makes no sense, or there is no key to check tokens with.

    :ivar app: the app, once it has one; its ``dependency_overrides`` hold for handlers.
    :ivar sync: the same calls for threads: ``hub.sync.publish(…)`` in a plain ``def`` endpoint.
    :ivar handlers: the app's handlers, by message type.
    :ivar topics: the app's channels, as they were declared.
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
        dependencies: Sequence[params.Depends] = (),
        **overrides: Any,
    ) -> None:
        chosen = settings if settings is not None else load_settings(**overrides)
        if channels:
            chosen = chosen.model_copy(update={"channels": {**channels, **chosen.channels}})
        self.settings = ensure_secret(chosen)
        self.clock = clock or SystemClock()
        self.app: FastAPI | None = None
        self.sync = Blocking(self)
        self.handlers: dict[str, Handler] = {}
        self.topics: list[BoundTopic] = []
        self._dependencies = tuple(dependencies)
        self.hub = Hub(self.settings, broker or broker_for(self.settings, self.clock), self.clock)
        counters = counters_for(self.settings)
        if counters is not None:
            self.hub.quotas.share(counters)
        Commands(self.hub)
        self.notifications = Notifications(self.hub)
        self.hub.cluster.on(control.Subscribe, self._subscribe)
        self.hub.cluster.on(control.Unsubscribe, self._unsubscribe)
        self.store = _store(self.settings, self.hub)
        self.chat = Chat(self.hub, self.store, self._prepare_store, self._notify)
        files = files_from(self.settings.files, self.settings.data_dir)
        self.uploads = Uploads(self.hub, self.store, files)
        Upkeep(self.hub, self.store)
        self._counters = _transport_counters()
        self._counters.drops = self.hub.metrics.drops
        self._endpoint = SessionEndpoint(self.hub)
        self._to_users = ToUsers(self.hub)
        self._direct = False
        self._turn = -1
        self._published = 0
        self.prefix = prefix
        watch = getattr(self.clock, "watch", None)
        if watch is not None:  # a clock that is turned by hand does what is due then
            watch(self.hub.sweep)
        if app is not None:
            self.install(app)

    def install(self, app: FastAPI) -> None:
        """Add the routes to an app, and start and stop with it.

        :raises ConfigurationError: the app has a route of its own where one of these would be.
        """
        if self.app is not None:
            raise ConfigurationError("this hub is in an app already: make another one")
        taken = {getattr(route, "path", None) for route in app.router.routes}
        for path in ("/ws", "/ws/chat/{room_id}", "/health", "/metrics"):
            if self.prefix + path in taken:
                raise ConfigurationError(f"the app has a route {self.prefix + path} already: give Hubbub a prefix=")
        self.app = app
        _redact_server_logs()  # here too: not every server sends lifespan events
        api = Api(self.hub, self.chat, self.uploads, self.notifications, self._below)
        app.include_router(api.router, prefix=self.prefix)
        add_routes(self, app, _PAGE_HEADERS)
        app.add_exception_handler(ClientError, _client_error)
        app.add_exception_handler(BrokerUnavailable, _unavailable)
        session: Any = self._endpoint  # Starlette runs what is no function as a raw ASGI app
        routes = [
            WebSocketRoute(self.prefix + "/ws", session, name="hubbub"),
            WebSocketRoute(self.prefix + "/ws/chat/{room_id}", session, name="hubbub-chat"),
        ]
        others: list[Hubbub] = getattr(app.state, "hubbubs", [])
        if self.settings.dev:
            echo: Any = EchoEndpoint(self.hub)
            routes.append(WebSocketRoute(self.prefix + "/ws/echo", echo, name="hubbub-echo"))
        app.router.routes[:0] = routes  # first: they are asked for most, and matching goes in order
        original = app.router.lifespan_context

        @asynccontextmanager
        async def lifespan(inner: Any) -> AsyncIterator[Mapping[str, Any]]:
            _redact_server_logs()
            self._warn_of_workers()
            async with original(inner) as state:
                await self.hub.ensure_started()
                try:
                    yield {**self.state(), **(state or {})}
                finally:
                    await self.hub.stop()

        app.router.lifespan_context = lifespan
        app.add_middleware(_Starts, hub=self.hub)
        app.state.hubbubs = [*others, self]
        if not others:
            app.state.hubbub = self

    def _warn_of_workers(self) -> None:
        if self.hub.broker.peers is None and (count := processes.workers()) > 1:
            log.warning(processes.ALONE.format(count=count))

    def state(self) -> dict[str, Any]:
        """What the transports look for in the ASGI state. Of several hubs in an app, the first sets the limits of the
        transport (frames, sizes, heartbeats); each has its own limits of sessions."""
        hubs = self.app.state.hubbubs if self.app is not None else [self]
        if hubs[0] is not self:
            return {}
        return {
            "hubbub_gate": self.hub if len(hubs) == 1 else _Gates([each.hub for each in hubs]),
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

    async def _prepare_store(self, engine: Engine) -> None:
        await schema.prepare(engine, metadata, migrate=True)
        cluster = self.hub.cluster
        cluster.agreement.settle(await engine.read(schema.identity), cluster.others)

    async def _notify(self, user_ids: Iterable[str], title: str, message: str, *, metadata: dict[str, Any]) -> None:
        await self.notifications.send(user_ids, title, message, "info", metadata, count=False)

    # -- what an app declares

    def _declare(self, declared: Declared) -> None:
        what = declared.what
        if isinstance(what, Declaration):
            self._add_handler(replace(what, dependencies=(*self._dependencies, *what.dependencies)))
        elif isinstance(what, Topic):
            self._add_topic(BoundTopic(what, declared.channel_prefix, self.hub, self))
        else:
            self._add_hook(what)

    def _add_handler(self, declared: Declaration) -> None:
        handler = Handler(declared, self.hub, self)
        other = self.handlers.get(handler.type)
        if other is not None:
            raise ConfigurationError(f"two handlers for {handler.type!r}: {other.place}, and {handler.place}")
        try:
            self.hub.route(handler.struct(), handler.handle, anonymous=handler.anonymous, whole=True)
        except ValueError:
            raise ConfigurationError(
                f"{handler.place}: {handler.type!r} is a message of Hubbub's own: call it otherwise"
            ) from None
        self.handlers[handler.type] = handler
        self.hub.keep_openings |= handler.asks_opening

    def _add_topic(self, topic: BoundTopic) -> None:
        own = [NamePattern(prefix + "{name:path}", "Hubbub's own") for prefix in self.hub.reserved]
        for other in (*(each.name_pattern for each in self.topics), *own):
            if topic.name_pattern.overlaps(other):
                raise ConfigurationError(f"{topic.name_pattern} overlaps with {other}")
        self.topics.append(topic)
        self.hub.declare(topic)

    def _add_hook(self, hook: Hook) -> None:
        callee = Callee(hook.fn, Context(f"a {hook.kind} hook"), around=hook.around)
        self.hub.keep_openings |= callee.asks_opening
        if hook.kind == "connected":

            async def greet(core: Session) -> None:
                await callee(Call(session_of(core, self.hub), hub=self, app=self.app))

            self.hub.greeters.append(greet)
            return

        async def part(call: Call) -> None:
            try:
                async with asyncio.timeout(self.settings.handler_timeout or None):
                    await callee(call)
            except Exception:
                log.exception("a disconnected hook failed")

        def left(core: Session) -> None:
            if core.user is not None and self.hub.loop is not None:
                self.hub.background(part(Call(session_of(core, self.hub), hub=self, app=self.app)))

        self.hub.leavers.append(left)

    # -- what an app calls

    async def _here(self, work: Coroutine[Any, Any, T]) -> T:
        """Run it in the hub's loop, whichever loop this is."""
        loop = self.hub.loop
        if loop is None:
            work.close()
            raise RuntimeError("the hub is not running: it starts and stops with the app")
        if loop is asyncio.get_running_loop():
            return await work
        return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(work, loop))

    async def publish(
        self,
        channel: str,
        data: Any,
        *,
        key: str | None = None,
        user_id: str | None = None,
        idempotency_key: str | None = None,
        version: int | None = None,
    ) -> Position:
        """Publish ``data`` on a channel; returns once it is in the channel's history.

        :param data: anything that JSON can carry; Structs, models and dataclasses too.
        :param key: what ``conflate`` keeps the newest of.
        :param user_id: who is shown as the publisher; None: the server.
        :param idempotency_key: 1 to 128 characters. Within 300 seconds it is published once with it on this channel,
            whichever node is asked, and however often: the position is that of the first time.
        :param version: of what ``data`` shows, 0 or more. It is not published unless this is higher than the version
            published last on the channel; the position is the channel's then.
        :raises ClientError: the name or the data cannot be published.
        :raises BrokerUnavailable: it is not known to have been published: try again, with the same idempotency key.
        :raises TypeError: the data has no JSON form.
        :raises ValueError: no such key or version can be.
        """
        if idempotency_key is not None and not 1 <= len(idempotency_key) <= 128:
            raise ValueError("an idempotency key has 1 to 128 characters")
        if version is not None and not 0 <= version <= 2**53:
            raise ValueError("a version is a number from 0 to 2**53")
        payload = plain_data(msgspec.Raw(data_bytes(data)), is_json=True)
        return await self._here(self._publish(channel, payload, key, user_id, idempotency_key, version))

    async def _publish(
        self, channel: str, payload: bytes, key: str | None, user_id: str | None, once: str | None, version: int | None
    ) -> Position:
        hub = self.hub
        position = await publish_data(hub, channel, payload, key, user_id, once=once, version=version)
        if self._turn != hub.turns:
            self._turn, self._published = hub.turns, 0
        self._published += 1
        if self._published > PUBLISHED_PER_TURN:
            self._published = 0
            await asyncio.sleep(0)  # the turn ends, and what was published is written: a loop may not starve the rest
        return position

    async def send(self, user_id: str, message: Any, *, type: str | None = None) -> None:
        """Send one message to all live devices of a user, on all nodes. It is not kept: who is away does not get it later.

        While the engine is away, the devices on this node get it, and a warning is logged.

        :param message: as for :meth:`Session.send`; ``type`` too.
        :raises TypeError: it has no type, or no form in JSON and MessagePack.
        """
        await self._here(self._to_users.send(user_id, bytes_for_all(message, type)))

    async def notify(
        self,
        user_id: str | Iterable[str],
        title: str,
        message: str,
        notification_type: NotificationType = "info",
        metadata: dict[str, Any] | None = None,
    ) -> int:
        """Notify one or many users on all their devices. Returns how many live sessions it reached, on all nodes.

        What was not sent to a device that is away is in the user's history, should it come back soon.

        :raises BrokerUnavailable: the engine is away: some users may not be notified.
        """
        users = [user_id] if isinstance(user_id, str) else user_id
        sent = await self._here(self.notifications.send(users, title, message, notification_type, metadata))
        return sent.sessions

    async def broadcast(
        self,
        title: str,
        message: str,
        notification_type: NotificationType = "info",
        exclude_users: Iterable[str] = (),
    ) -> int:
        """Notify everybody who is signed in, on all nodes. Returns how many live sessions it reached.

        :raises ValueError: more than 10,000 users are excluded.
        """
        reached = await self._here(self.notifications.broadcast(title, message, notification_type, exclude_users))
        return reached.sessions

    async def disconnect(self, user_id: str, *, revoke: bool = False, reason: str = "") -> int:
        """Close all sessions of a user, on all nodes; ``revoke``: and refuse the tokens issued until now, also on nodes
        to come. Returns how many sessions were closed.

        While the engine is away, it is done on this node, and a warning is logged; a revocation follows on the others
        once the engine is back.
        """
        everywhere = self.hub.cluster.everywhere
        if revoke:
            return (await self._here(everywhere.revoke(user_id=user_id))).sessions
        return (await self._here(everywhere.disconnect(user_id, CloseCode.NORMAL, reason))).sessions

    async def count_sessions(self, user_id: str) -> int:
        """How many live sessions a user has, on all nodes: one per device or tab."""
        found, _ = await self._here(self.hub.cluster.everywhere.count([user_id]))
        return found.get(user_id, 0)

    async def online(self, user_ids: Iterable[str]) -> set[str]:
        """Which of some users have a live session, on any node."""
        return await self._here(self.hub.cluster.everywhere.online(user_ids))

    def sessions(self, user_id: str) -> list[UserSession]:
        """The live sessions of a user on this node only: one per device or tab (all: :meth:`send`). In the hub's loop only."""
        user = self.hub.users.get(user_id)
        return [session_of(core, self.hub) for core in user or () if core.state is State.OPEN]

    def presence(self, channel: str) -> dict[str, int]:
        """Who is in a channel (a room is ``room:<id>``): user ids, each with how many devices on all nodes, if this node has
        subscribers of the channel; else nobody: ask :meth:`who_is_in`. In the hub's loop only."""
        local = self.hub.channels.get(channel)
        return _devices(None if local is None else local.roster)

    async def who_is_in(self, channel: str) -> dict[str, int]:
        """Who is in a channel (a room is ``room:<id>``) on all nodes: user ids, each with how many devices. With the engine
        away: who is in it on this one."""
        return _devices(await self._here(self.hub.comings.others.roster_of(channel)))

    async def subscribe(self, user_id: str, channel: str) -> int:
        """Subscribe all live sessions of a user to a channel, on all nodes; no authorizer is asked. Returns how many.

        :raises ClientError: no channel's name, or one session (of this node) has too many subscriptions.
        """
        check_name(channel, user_id)
        wanted = control.Subscribe(user_id, channel)
        return (await self._here(self.hub.cluster.everywhere.do(self._subscribe, wanted))).sessions

    async def _subscribe(self, wanted: control.Subscribe) -> int:
        count = 0
        for session in self.sessions(wanted.user_id):
            with suppress(SessionClosed, SubscriptionEnded):  # it went meanwhile, or was taken out
                await session.subscribe(wanted.channel)
                count += 1
        return count

    async def unsubscribe(self, user_id: str, channel: str, *, reason: str | None = None) -> int:
        """End the subscriptions that a user's sessions have to a channel, on all nodes; each client is told. Returns how
        many."""
        wanted = control.Unsubscribe(user_id, channel, reason)
        return (await self._here(self.hub.cluster.everywhere.do(self._unsubscribe, wanted))).sessions

    async def _unsubscribe(self, wanted: control.Unsubscribe) -> int:
        sessions = self.sessions(wanted.user_id)
        return sum([await session.unsubscribe(wanted.channel, reason=wanted.reason) for session in sessions])

    def declare_room(self, room_id: str, name: str | None = None, **options: Any) -> None:
        """Have a chat room from the start: it is made when the hub starts, unless it is there.

        :param options: ``topic``, ``kind``, ``visibility``, ``history``, as in `create_room` on the wire.
        :raises ValueError: they make no sense, or the hub is running: use :meth:`create_room`.
        """
        if self.hub.loop is not None:
            raise ValueError("the hub is running: await hub.create_room(…)")
        self.chat.declared[room_id] = _converted(asks.CreateRoom, room_id=room_id, name=name, **options)

    async def create_room(
        self, room_id: str | None = None, name: str | None = None, *, owner: str | None = None, **options: Any
    ) -> RoomInfo:
        """Make a chat room.

        :param room_id: None: one is made up.
        :param owner: the user that it belongs to; None: nobody, only the server configures it.
        :param options: ``topic``, ``kind``, ``visibility``, ``history``, ``members``, as in `create_room` on the wire.
        :raises ClientError: a wrong id, or one that is taken.
        :raises ValueError: the options make no sense.
        """
        wanted = _converted(asks.CreateRoom, room_id=room_id, name=name, **options)
        caller = SERVER if owner is None else Caller(owner, SERVER.grants, True)
        room: RoomInfo = (await self._here(self.chat.run(caller, wanted))).room
        return room

    async def say(self, room_id: str, message: str, *, user_id: str, **options: Any) -> int:
        """Say something in a room in somebody's name; returns the message's id, once it is stored.

        :param options: ``client_id``, ``reply_to``, ``thread``, ``files``, as in `chat_message` on the wire.
        :raises ClientError: there is no such room, or the text cannot be said.
        :raises ValueError: the options make no sense.
        """
        wanted = _converted(asks.ChatMessage, message=message, **options)
        ack = await self._here(self.chat.say(Caller(user_id, SERVER.grants, True), room_id, wanted))
        return ack.id

    async def rooms(self, user_id: str | None = None) -> list[RoomInfo]:
        """The rooms of a user with unread counts, or (None) all but the direct ones; at most 1,000."""
        caller = SERVER if user_id is None else Caller(user_id, Grants())
        rooms: list[RoomInfo] = (
            await self._here(self.chat.run(caller, asks.ListRooms(mine=user_id is not None)))
        ).rooms
        return rooms

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


def _devices(roster: Roster | None) -> dict[str, int]:
    return {} if roster is None else {user: int(here["devices"]) for user, here in roster.snapshot().items()}


def _store(settings: Settings, hub: Hub) -> Store:
    engine = engine_for(
        settings.database,
        readers=settings.store_readers,
        full_sync=settings.store_sync == "full",
        timeout=settings.store_timeout,
    )
    return Store(
        engine,
        hub.metrics,
        queue=settings.store_queue,
        queue_bytes=settings.store_queue_bytes,
        timeout=settings.store_timeout,
    )


def _converted(struct: type[S], **values: Any) -> S:
    """A message of the wire from keyword arguments, checked as if it had come from a client.

    :raises ValueError: says which makes no sense.
    """
    given = {name: value for name, value in values.items() if value is not None}
    unknown = given.keys() - set(struct.__struct_fields__)
    if unknown:
        raise ValueError(f"there is no option {sorted(unknown)[0]!r}")
    try:
        return msgspec.convert(given, struct)
    except msgspec.ValidationError as error:
        raise ValueError(str(error)) from None


class _Starts:
    """Starts a hub with the first connection where the server sends no lifespan events (Daphne), or a parent app
    keeps them to itself."""

    def __init__(self, app: Any, hub: Hub) -> None:
        self._app = app
        self._hub = hub

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            await self._live(scope, receive, send)
            return
        await self._hub.ensure_started()
        await self._app(scope, receive, send)

    async def _live(self, scope: Any, receive: Any, send: Any) -> None:
        """The app's lifespan. What keeps it from starting and can be said in a sentence is said so, and not as a traceback."""
        failed: Any = None

        async def sent(message: Any) -> None:
            nonlocal failed
            if message["type"] == "lifespan.startup.failed":
                failed = message  # why comes as an exception, in a moment
            else:
                await send(message)

        try:
            await self._app(scope, receive, sent)
        except ConfigurationError as error:
            await send({"type": "lifespan.startup.failed", "message": f"hubbub: {error}"})
        except BaseException:
            if failed is not None:
                await send(failed)
            raise


class _Gates:
    """The gate of several hubs in one app: closed when all of theirs are; each looks at its own again later."""

    def __init__(self, hubs: Sequence[Hub]) -> None:
        self._hubs = hubs

    def refuse(self, connections: int) -> str | None:
        reasons = [hub.refuse(len(hub.sessions)) for hub in self._hubs]
        return None if None in reasons else reasons[0]


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
    status = HTTP_STATUS.get(error.code, 400)  # an app has codes of its own
    headers = {"retry-after": str(math.ceil(error.retry_after))} if error.retry_after else {}
    if status == 401:
        headers["www-authenticate"] = "Bearer"
    return JSONResponse({"error": {"code": str(error.code), "message": error.message}}, status, headers)


async def _unavailable(request: Request, error: Exception) -> Response:
    refusal = ClientError(ErrorCode.UNAVAILABLE, "the engine behind this does not answer", retry_after=1.0)
    return await _client_error(request, refusal)


def _redact_server_logs() -> None:
    """Servers log the paths of WebSockets, and ?token= is in them."""
    for name in ("uvicorn.error", "uvicorn.access", "hypercorn.access", "hypercorn.error", "granian.access"):
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
        settings.data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
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
