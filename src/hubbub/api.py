"""The REST side: the server API (publish, notify, who is where), health, metrics; the chat's part is in ``rest/``.

Server calls carry ``Authorization: Bearer`` with an API key (HUBBUB_API_KEYS) or a token that has the ``admin`` grant.
"""

import ipaddress
import os
from collections.abc import Callable, Iterator
from typing import Annotated, Any, Literal, Self, TypeAlias

import msgspec
from fastapi import APIRouter, Body, Depends, Header, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.security import HTTPAuthorizationCredentials
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from prometheus_client.core import Metric
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from hubbub.auth import issue_token, valid_user_id
from hubbub.commands import check_name, once_key, publication_of, who_is_in
from hubbub.errors import ClientError, CloseCode, ErrorCode
from hubbub.features.chat.chat import Chat
from hubbub.features.chat.uploads import Uploads
from hubbub.features.notifications import Notifications
from hubbub.hub import Hub
from hubbub.messages import JSON, NotificationType, Position, plain_data
from hubbub.metrics import EngineStats
from hubbub.rest.commands import add_commands
from hubbub.rest.files import add_files
from hubbub.rest.people import add_people
from hubbub.rest.shared import SERVER_ERRORS, BoundedRoute, Callers, Credentials, errors

DEV_TOKEN_TTL = 30 * 86_400.0

UserIds: TypeAlias = Annotated[list[Annotated[str, Field(min_length=1, max_length=128)]], Field(max_length=10_000)]


class Model(BaseModel):
    model_config = ConfigDict(extra="forbid")


class NotificationIn(Model):
    """One of `user_id` and `user_ids` says who gets it."""

    user_id: str | None = Field(default=None, min_length=1, max_length=128)
    user_ids: UserIds | None = None
    title: str = Field(min_length=1, max_length=500)
    message: str = Field(max_length=10_000)
    notification_type: NotificationType = "info"
    metadata: dict[str, Any] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _somebody(self) -> Self:
        if (self.user_id is None) == (self.user_ids is None):
            raise ValueError("give user_id or user_ids, and not both")
        return self


class BroadcastIn(Model):
    title: str = Field(min_length=1, max_length=500)
    message: str = Field(max_length=10_000)
    notification_type: NotificationType = "info"
    exclude_users: UserIds = Field(default_factory=list)


Complete: TypeAlias = Annotated[
    bool,
    Field(
        description="False: not every node has answered (the engine is away, or a node is slow), so there may be more."
    ),
]


class Sent(BaseModel):
    status: Literal["sent"] = "sent"
    id: str = Field(description="The notification's id, the same for every receiver.")
    delivered: int = Field(description="Live sessions that it reached, on all nodes.")
    complete: Complete = True


class Broadcasted(BaseModel):
    status: Literal["broadcasted"] = "broadcasted"
    delivered: int = Field(description="Live sessions that it reached, on all nodes.")
    complete: Complete = True


class PublishIn(Model):
    channel: str = Field(max_length=128, examples=["news:sport"])
    data: Any
    key: str | None = Field(default=None, max_length=128, description="What `conflate` keeps the newest of.")
    idempotency_key: str | None = Field(
        default=None,
        min_length=1,
        max_length=128,
        description="Within 300 s it is published once with it on this channel, however often it is sent.",
    )
    version: int | None = Field(
        default=None, ge=0, le=2**53, description="It is published only if this is higher than the channel's last one."
    )


class Published(BaseModel):
    channel: str
    epoch: str
    offset: int


class PresenceOut(BaseModel):
    channel: str
    count: int
    users: dict[str, Any] = Field(description="Empty above HUBBUB_PRESENCE_LIMIT users.")


class HistoryOut(BaseModel):
    channel: str
    epoch: str
    offset: int
    messages: list[Any]
    more: bool


class DisconnectIn(Model):
    """Who has to go: a user, or the bearer of one token."""

    user_id: str | None = Field(default=None, min_length=1, max_length=128)
    token_id: str | None = Field(default=None, min_length=1, max_length=256, description="`jti`; always revoked.")
    revoke: bool = Field(default=False, description="Also refuse the user's tokens issued until now.")
    reason: str = Field(default="", max_length=100)

    @model_validator(mode="after")
    def _somebody(self) -> Self:
        if (self.user_id is None) == (self.token_id is None):
            raise ValueError("give user_id or token_id, and not both")
        return self


class Disconnected(BaseModel):
    disconnected: int = Field(description="Sessions that were closed, on all nodes.")
    complete: Complete = True


class LoginIn(Model):
    name: str = Field(min_length=1, max_length=64, examples=["alice"])


class LoginOut(BaseModel):
    token: str
    user_id: str
    expires_in: float


class HealthOut(BaseModel):
    status: Literal["healthy", "draining"]
    active_connections: int = Field(description="On this node.")
    uptime: float
    version: str
    store: Literal["ok", "unavailable"] = Field(description="Whether the database takes what is written.")
    engine: Literal["ok", "unavailable"] | None = Field(
        default=None,
        description="Whether the engine answers and this node hears what is published there; absent without an engine.",
    )
    worker: int | None = Field(default=None, description="Which one of `hubbub serve --workers` answers.")
    nodes: int = Field(description="Nodes that live, with this one.")
    total_connections: int = Field(description="On all nodes, as each said within the last seconds.")
    total_users: int = Field(description="Users signed in, counted once per node that they are on.")


class _Collector:
    def __init__(self, families: Callable[[], list[Metric]]) -> None:
        self._families = families

    def collect(self) -> list[Metric]:
        return self._families()


class Api:
    """The routes of one hub."""

    def __init__(
        self,
        hub: Hub,
        chat: Chat,
        uploads: Uploads,
        notifications: Notifications,
        below: Callable[[], dict[str, int]],
    ) -> None:
        self.hub = hub
        self.chat = chat
        self.notifications = notifications
        self.below = below
        self.registry = CollectorRegistry(auto_describe=False)
        self.registry.register(_Collector(self.families))
        self.router = APIRouter(route_class=BoundedRoute)
        self.callers = Callers(hub)
        self._add_server_routes()
        add_commands(self.router, chat, self.callers)
        add_files(self.router, hub, uploads, self.callers)
        add_people(self.router, chat, uploads, self.callers)
        self._add_health_routes()
        if hub.settings.dev:
            self._add_dev_routes()

    # -- the server API

    def _add_server_routes(self) -> None:
        route, hub, server = self.router, self.hub, [Depends(self.callers.server)]

        @route.post("/api/notifications/send", tags=["notifications"], dependencies=server, responses=SERVER_ERRORS)
        async def send_notification(
            body: Annotated[NotificationIn | None, Body()] = None,
            user_id: Annotated[str | None, Query(max_length=128)] = None,
            title: Annotated[str | None, Query(max_length=500)] = None,
            message: Annotated[str | None, Query(max_length=10_000)] = None,
            notification_type: Annotated[NotificationType, Query()] = "info",
        ) -> Sent:
            """Notify one or many users on all their devices. Takes a JSON body, or the same as query parameters."""
            wanted = body or _from_query(
                NotificationIn, user_id=user_id, title=title, message=message, notification_type=notification_type
            )
            users = wanted.user_ids if wanted.user_ids is not None else [wanted.user_id or ""]
            sent = await self.notifications.send(
                users, wanted.title, wanted.message, wanted.notification_type, wanted.metadata
            )
            return Sent(id=sent.id, delivered=sent.sessions, complete=sent.complete)

        @route.post(
            "/api/notifications/broadcast", tags=["notifications"], dependencies=server, responses=SERVER_ERRORS
        )
        async def broadcast_notification(
            body: Annotated[BroadcastIn | None, Body()] = None,
            title: Annotated[str | None, Query(max_length=500)] = None,
            message: Annotated[str | None, Query(max_length=10_000)] = None,
            notification_type: Annotated[NotificationType, Query()] = "info",
        ) -> Broadcasted:
            """Notify everybody who is signed in. Takes a JSON body, or the same as query parameters."""
            wanted = body or _from_query(BroadcastIn, title=title, message=message, notification_type=notification_type)
            reached = await self.notifications.broadcast(
                wanted.title, wanted.message, wanted.notification_type, wanted.exclude_users
            )
            return Broadcasted(delivered=reached.sessions, complete=reached.complete)

        @route.post("/api/publish", tags=["channels"], dependencies=server, responses=SERVER_ERRORS)
        async def publish(
            body: PublishIn,
            idempotency_key: Annotated[
                str | None, Header(min_length=1, max_length=128, description="The same as in the body.")
            ] = None,
        ) -> Published:
            """Publish on a channel. It is answered once the publication is in the channel's history."""
            data = plain_data(msgspec.Raw(JSON.encode(body.data)), is_json=True)
            once = body.idempotency_key or idempotency_key
            position = await publish_data(hub, body.channel, data, body.key, once=once, version=body.version)
            return Published(channel=body.channel, epoch=position.epoch, offset=position.offset)

        @route.get(
            "/api/channels/{channel:path}/presence", tags=["channels"], dependencies=server, responses=SERVER_ERRORS
        )
        async def presence(channel: str) -> PresenceOut:
            """Who is subscribed to a channel."""
            check_name(channel)
            users, count = await who_is_in(hub, channel)
            return PresenceOut(channel=channel, count=count, users=users)

        @route.get(
            "/api/channels/{channel:path}/history", tags=["channels"], dependencies=server, responses=SERVER_ERRORS
        )
        async def history(
            channel: str,
            after: Annotated[int | None, Query(ge=0)] = None,
            before: Annotated[int | None, Query(ge=0)] = None,
            limit: Annotated[int, Query(ge=1, le=200)] = 50,
        ) -> HistoryOut:
            """A page of a channel's history, oldest first."""
            check_name(channel)
            options = hub.options_for(channel)
            position, page, more = await hub.past_of(channel).history(channel, after, before, limit, options)
            shown = [msgspec.json.decode(publication.payload) for publication in page]
            return HistoryOut(channel=channel, epoch=position.epoch, offset=position.offset, messages=shown, more=more)

        @route.post("/api/sessions/disconnect", tags=["sessions"], dependencies=server, responses=SERVER_ERRORS)
        async def disconnect(body: DisconnectIn) -> Disconnected:
            """Close all sessions of a user (and refuse the tokens that they have), or those of one token, on all nodes.

            A revocation holds on every node within two seconds, and on those that start later. Where `complete` is false
            because the engine is away, it holds on this node, and on the others as soon as the engine is back.
            """
            everywhere = hub.cluster.everywhere
            if body.revoke or body.token_id is not None:
                reached = await everywhere.revoke(user_id=body.user_id, token_id=body.token_id)
            else:
                assert body.user_id is not None
                reached = await everywhere.disconnect(body.user_id, CloseCode.NORMAL, body.reason)
            return Disconnected(disconnected=reached.sessions, complete=reached.complete)

    # -- health and metrics

    def _add_health_routes(self) -> None:
        route, hub = self.router, self.hub

        @route.get("/health", tags=["health"], response_model_exclude_none=True)
        async def health() -> HealthOut:
            """The guide's health check."""
            from hubbub import __version__

            totals = hub.cluster.totals()
            return HealthOut(
                status="draining" if hub.draining else "healthy",
                active_connections=len(hub.sessions),
                uptime=round(hub.clock.monotonic() - hub.metrics.started, 3),
                version=__version__,
                store="ok" if self.chat.store.healthy else "unavailable",
                engine=self._engine,
                worker=int(worker) if (worker := os.environ.get("HUBBUB_WORKER", "")).isdigit() else None,
                nodes=totals.nodes,
                total_connections=totals.sessions,
                total_users=totals.users,
            )

        @route.get("/health/live", tags=["health"])
        async def live() -> dict[str, str]:
            """200 while the loop turns."""
            return {"status": "live"}

        @route.get("/health/ready", tags=["health"], responses={503: {"description": "send nobody here"}})
        async def ready(response: Response) -> dict[str, str]:
            """503 with a `reason` once the server drains, and while its engine is away (HUBBUB_READY_WITHOUT_ENGINE)."""
            if hub.draining:
                response.status_code = 503
                return {"status": "draining"}
            if self._engine == "unavailable" and not hub.settings.ready_without_engine:
                response.status_code = 503
                reason = "the engine does not answer, or this node does not hear what is published there"
                return {"status": "unavailable", "reason": reason}
            if (trouble := hub.cluster.agreement.trouble) is not None:
                response.status_code = 503
                return {"status": "unavailable", "reason": trouble}
            return {"status": "ready"}

        if hub.settings.metrics != "off":

            @route.get("/metrics", tags=["health"], response_class=Response, responses=SERVER_ERRORS)
            async def metrics(request: Request, credentials: Credentials) -> Response:
                """Prometheus metrics. Who may read them is HUBBUB_METRICS (default: loopback)."""
                await self._may_measure(request, credentials)
                return Response(generate_latest(self.registry), media_type=CONTENT_TYPE_LATEST)

    @property
    def _engine(self) -> Literal["ok", "unavailable"] | None:
        broker = self.hub.broker
        if broker.peers is None:
            return None
        return "ok" if broker.healthy else "unavailable"

    async def _may_measure(self, request: Request, credentials: HTTPAuthorizationCredentials | None) -> None:
        mode = self.hub.settings.metrics
        if mode == "open" or (mode == "loopback" and _is_loopback(request)):
            return
        await self.callers.server(credentials)

    def families(self) -> list[Metric]:
        hub = self.hub
        return list(
            hub.metrics.families(
                active=len(hub.sessions),
                users=sum(1 for user in hub.users.values() if user.sessions),
                channels=len(hub.channels),
                behind=len(hub.behind),
                running=len(hub.runs),
                received={route.name: route.received for route in hub.routes.values() if route.received},
                deliveries=hub.fanout.deliveries,
                batches=hub.fanout.batches,
                publications=hub.fanout.publications,
                store=hub.metrics.store.families(self.chat.store.waiting, self.chat.store.healthy),
                history_bytes=getattr(hub.broker, "bytes", 0),
                below=self.below(),
                engine=self._engine_families(),
            )
        )

    def _engine_families(self) -> Iterator[Metric]:
        hub = self.hub
        if hub.broker.peers is not None:
            stats = getattr(hub.broker, "stats", None) or EngineStats()  # another broker need not count
            nodes = len(hub.cluster.others) + 1
            worker = os.environ.get("HUBBUB_WORKER", "")
            yield from stats.families(
                hub.broker.healthy, hub.cluster.node, worker, nodes, hub.cluster.counts, hub.quotas.counts
            )

    # -- development

    def _add_dev_routes(self) -> None:
        hub = self.hub

        @self.router.post("/api/dev/login", tags=["development"], responses=errors(_403="from elsewhere"))
        async def dev_login(body: LoginIn, request: Request) -> LoginOut:
            """A token for a name, without a password. Only in development mode, and only from this machine."""
            if not _is_loopback(request):
                raise ClientError(ErrorCode.FORBIDDEN, "development mode serves its own machine only")
            if not valid_user_id(body.name):
                raise ClientError(ErrorCode.INVALID_MESSAGE, "this is no name")
            token = issue_token(
                hub.settings,
                body.name,
                now=hub.clock.time(),
                ttl=DEV_TOKEN_TTL,
                subscribe=("*",),
                publish=("*",),
            )
            return LoginOut(token=token, user_id=body.name, expires_in=DEV_TOKEN_TTL)


async def publish_data(
    hub: Hub,
    channel: str,
    data: bytes,
    key: str | None,
    user: str | None = None,
    *,
    once: str | None = None,
    version: int | None = None,
) -> Position:
    """Publish JSON text on an app's channel; returns the position.

    :param once: the server's idempotency key.
    :raises ClientError: no channel's name, or one that belongs to a feature.
    """
    check_name(channel)
    for prefix in hub.reserved:
        if channel.startswith(prefix):
            raise ClientError(ErrorCode.FORBIDDEN, f"{prefix}… belongs to a feature: use its own calls")
    options = hub.options_for(channel)
    publication = publication_of(channel, data, options, key=key, user=user, at=hub.clock.time())
    return await hub.broker.publish(channel, publication, options, once=once_key(once), version=version)


def _from_query(model: Any, **values: Any) -> Any:
    try:
        return model(**{name: value for name, value in values.items() if value is not None})
    except ValidationError as error:
        faults = [{**fault, "loc": ("query", *fault["loc"])} for fault in error.errors(include_url=False)]
        raise RequestValidationError(faults) from None


def _is_loopback(request: Request) -> bool:
    try:
        return request.client is None or ipaddress.ip_address(request.client.host).is_loopback
    except ValueError:
        return request.client is not None and request.client.host == "testclient"
