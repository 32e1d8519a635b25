"""What an app holds of one client: who it is, and ways to talk to it."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Final, TypeVar, overload
from urllib.parse import unquote

from starlette.requests import HTTPConnection

from hubbub.commands import check_name
from hubbub.errors import ClientError, CloseCode, ErrorCode, RequestFailed, SessionClosed
from hubbub.making import SubscriptionEnded
from hubbub.messages import Position, check_msgpack
from hubbub.session import Session as CoreSession
from hubbub.session import State
from hubbub.toolkit.shapes import CannotServe, Shape, message_bytes

if TYPE_CHECKING:
    from hubbub.auth import Identity
    from hubbub.hub import Hub

T = TypeVar("T")
FLUSH: Final = 65_536
"""Bytes that a handler may send to one session before they are written and others get their turn."""


class Session:
    """One client's connection, as handlers see it. The same object for as long as the connection lives.

    Not made by apps: handlers and hooks get it by annotation (``session: Session``).

    :ivar state: whatever the app wants to keep for as long as the connection lives: ``session.state.cart = …``.
    """

    __slots__ = ("__weakref__", "_core", "_hub", "_sent", "_turn", "state")

    def __init__(self, core: CoreSession, hub: Hub) -> None:
        self._core = core
        self._hub = hub
        self._sent = 0
        self._turn = -1
        self.state = SimpleNamespace()

    # -- who it is

    @property
    def id(self) -> str:
        """The session's unguessable id (the ``session`` of its ``auth_success``); empty before that."""
        return self._core.id

    @property
    def user_id(self) -> str:
        """The signed-in user's id.

        :raises ClientError: ``authentication_required``: an ``anonymous`` handler was called before ``auth``.
        """
        return self._core.user_id

    @property
    def identity(self) -> Identity:
        """What the token says: user_id, grants, info, expires (unix seconds).

        :raises ClientError: ``authentication_required`` before ``auth``.
        """
        if self._core.identity is None:
            raise ClientError(ErrorCode.AUTHENTICATION_REQUIRED, "send an auth message first")
        return self._core.identity

    @property
    def is_authenticated(self) -> bool:
        """Whether a user is signed in, and the connection open."""
        return self._core.state is State.OPEN

    @property
    def is_closed(self) -> bool:
        """Whether the connection is over, or being closed."""
        return self._core.state is State.CLOSED or self._core.link.closing

    @property
    def address(self) -> str:
        """The client's address, as limits count it (an IPv6 address: its /64 network); empty where it is not known."""
        return self._core.address

    @property
    def channels(self) -> frozenset[str]:
        """Names of the channels that it is subscribed to; rooms are ``room:<id>``."""
        return frozenset(self._core.channels)

    # -- talking to it

    async def send(self, message: Any, *, type: str | None = None) -> None:
        """Send one message to this client only. It leaves with what else the turn has; nothing waits for the client.

        A client that does not read is closed once HUBBUB_OUTBOX_BYTES wait for it. On a closed session it does nothing.

        :param message: a msgspec Struct, pydantic model, dataclass or mapping, or with ``type`` any JSON-able value.
        :param type: the message's ``type``, where the value does not say it itself (a Struct's tag, a ``type`` field).
        :raises TypeError: it has no type, or no JSON form.
        """
        core = self._core
        payload = message_bytes(message, type, None, core.link.lane.codec)
        core.link.send(payload)
        turn = self._hub.turns
        if self._turn != turn:
            self._turn, self._sent = turn, 0
        self._sent += len(payload) + 128
        if self._sent > FLUSH:
            self._sent = 0
            await asyncio.sleep(0)  # the turn ends: what was sent is written, or waits in the bounded outbox

    @overload
    async def request(self, method: str, data: Any = None, *, timeout: float | None = None) -> Any: ...
    @overload
    async def request(self, method: str, data: Any = None, *, into: type[T], timeout: float | None = None) -> T: ...
    async def request(self, method: str, data: Any = None, *, into: Any = Any, timeout: float | None = None) -> Any:
        """Ask this client for something, and wait for its answer. The session's other messages wait meanwhile where a
        handler of the same session asks.

        :param method: what is asked for; the client decides by it.
        :param data: the question: anything that JSON can carry.
        :param into: the type of the answer (Struct, model, dataclass, …); by default plain data.
        :param timeout: seconds (looked at twice a second); by default HUBBUB_REQUEST_TIMEOUT.
        :raises TimeoutError: no answer came in time.
        :raises RequestFailed: the client answered with an error, or with something that is not of the type.
        :raises SessionClosed: it is gone, or went meanwhile.
        """
        try:
            shape = Shape(into, whole=False)
        except CannotServe as error:
            raise TypeError(f"into={into!r}: {error}") from None
        wait = self._hub.settings.request_timeout if timeout is None else timeout
        answer = await self._hub.calls.ask(self._core, method, data, wait)
        is_json = self._core.link.lane.codec.is_json
        if not is_json:
            try:
                check_msgpack(bytes(answer))
            except ValueError as error:
                raise RequestFailed(f"the client's answer is wrong: {error}") from None
        try:
            return shape.decode(answer, is_json=is_json, at="$.data")
        except ClientError as error:
            raise RequestFailed(f"the client's answer is wrong: {error.message}") from None

    def close(self, code: int = CloseCode.NORMAL, reason: str = "") -> None:
        """End the connection; what was sent before still arrives.

        :param code: a close code: 1000, or one of 3000 to 4999.
        :param reason: at most 123 bytes of it are sent.
        """
        self._hub.close(self._core, code, reason)

    # -- its subscriptions

    async def subscribe(self, channel: str, *, since: Position | None = None, presence: bool = False) -> Position:
        """Subscribe this session to a channel from the server's side; the client gets a ``subscribed``.

        No authorizer is asked: the app has decided. Returns the position from which it listens.

        :raises ClientError: no channel's name, too many subscriptions, or it was ended meanwhile.
        :raises BrokerUnavailable: the engine does not answer. All is then as it was before.
        :raises SessionClosed: it is gone, or went meanwhile.
        """
        core = self._core
        if core.state is not State.OPEN:
            raise SessionClosed("the session is over, or not signed in yet")
        check_name(channel, core.user_id)
        if channel.startswith("room:"):
            raise ClientError(ErrorCode.FORBIDDEN, "a room is joined by the client, with join_room")
        try:
            return await self._hub.subscriptions.subscribe(core, channel, since, presence, None)
        except SubscriptionEnded:
            if core.state is State.OPEN:
                raise
            raise SessionClosed("the session went meanwhile") from None

    async def unsubscribe(self, channel: str, *, reason: str | None = None) -> bool:
        """End a subscription; the client gets an ``unsubscribed`` with the reason. False if there was none."""
        return self._hub.subscriptions.end(self._core, channel, reason)

    # -- for dependencies

    def _connection(self, app: Any) -> HTTPConnection:
        """The opening request, as Starlette has it."""
        request = self._core.opening
        assert request is not None, "kept where a dependency wants it"
        return HTTPConnection(
            {
                "type": "websocket",
                "app": app,
                "scheme": request.scheme,
                "path": request.path,
                "raw_path": request.path.encode(),
                "root_path": "",
                "query_string": request.query_string,
                "headers": request.headers,
                "subprotocols": request.subprotocols,
                "client": (request.address, 0) if request.address else None,
                "path_params": {"room_id": unquote(self._core.room)} if self._core.room is not None else {},
                "state": {},
            }
        )

    def __repr__(self) -> str:
        user = self._core.user.id if self._core.user is not None else "nobody yet"
        return f"<Session of {user}>"


def session_of(core: CoreSession, hub: Hub) -> Session:
    """The handle of a session; made when it is first asked for."""
    handle = core.handle
    if handle is None:
        handle = core.handle = Session(core, hub)
    assert isinstance(handle, Session)
    return handle


__all__ = ["Session", "session_of"]
