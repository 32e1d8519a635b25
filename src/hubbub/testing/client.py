"""A client for tests: of an app in this loop, without a server, or of a real server. Every wait has a deadline."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import asynccontextmanager
from typing import Any, TypeVar, overload

from hubbub.app import Hubbub
from hubbub.testing.lifespan import find_hub, hub_of, shared_state, the_loop
from hubbub.testing.transcript import MISSING, Failed, Refused, Transcript, convert, encode, matches, wanted
from hubbub.testing.wire import AsgiApp, AsgiSocket, Headers, NetSocket, Socket, websocket_url

T = TypeVar("T")

MSGPACK = "hubbub.msgpack"


class HubClient:
    """One client. :func:`hub_client` makes it.

    A wait that does not end as it should raises an ``AssertionError`` with what was expected, what came, and how the
    connection ended.

    :ivar session: its id, from ``auth_success``; "" before that.
    :ivar user_id: who it is signed in as; "" before that.
    :ivar timeout: seconds (of real time) that any wait may take.
    """

    def __init__(self, dial: Callable[[Transcript], Socket], packs: bool, timeout: float, token: str | None) -> None:
        self.session = ""
        self.user_id = ""
        self.timeout = timeout
        self.close_reason = ""
        self._dial = dial
        self._packs = packs
        self._token = token
        self._news = asyncio.Event()
        self._log = Transcript(self._news.set)
        self._socket = dial(self._log)
        self._asked = 0
        self._end_was_seen = False

    @property
    def seen(self) -> list[Any]:
        """All messages that came, oldest first."""
        return self._log.seen

    @property
    def subprotocol(self) -> str | None:
        """What the server chose of the offered subprotocols."""
        return self._socket.subprotocol

    # -- messages out

    async def send(self, message: str | object, /, **fields: Any) -> None:
        """Send a message: its type and fields, or all of it as a mapping, a msgspec struct or a pydantic model."""
        await self._socket.send(encode(message, fields, self._packs))

    async def send_raw(self, data: str | bytes) -> None:
        """Send one WebSocket message as it is: ``str`` in a text frame, ``bytes`` in a binary one."""
        await self._socket.send(data)

    # -- messages in

    async def receive(self) -> dict[str, Any]:
        """The next message, whatever it is."""
        message: dict[str, Any] = await self._wait(self._log.next, "a message")
        self._note(message)
        return message

    async def receive_raw(self) -> str | bytes:
        """The next message as it came: ``str`` from a text frame, ``bytes`` from a binary one."""
        data: str | bytes = await self._wait(self._log.next_raw, "a message")
        return data

    @overload
    async def expect(self, kind: str, /, *, into: None = None, **fields: Any) -> dict[str, Any]: ...
    @overload
    async def expect(self, kind: str, /, *, into: type[T], **fields: Any) -> T: ...
    async def expect(self, kind: str, /, *, into: type[T] | None = None, **fields: Any) -> T | dict[str, Any]:
        """The next message of this type with these fields; others before it are passed over (``seen`` has them).

        :param into: a pydantic model, msgspec struct or dataclass to make of it.
        """
        message: dict[str, Any] = await self._wait(
            lambda: self._log.passing(kind, fields), wanted(kind, fields), lambda seen: matches(seen, kind, fields)
        )
        self._note(message)
        if into is None:
            return message
        try:
            return convert(message, into)
        except ValueError as error:
            raise Failed(f"this is no {into.__name__}: {message}\n{error}") from error

    async def ask(self, message: str | object, /, **fields: Any) -> dict[str, Any]:
        """Send a message with a ``ref`` and return what carries it back. What comes before that stays to be read.

        :raises Refused: the answer is an ``error``.
        """
        self._asked += 1
        ref = f"ask-{self._asked}"
        await self.send(message, **fields, ref=ref)
        name = f"an answer to {message if isinstance(message, str) else type(message).__name__!r}"
        answer: dict[str, Any] = await self._wait(lambda: self._log.answer(ref), name)
        self._note(answer)
        if answer.get("type") == "error":
            raise Refused(answer, str(message))
        return answer

    async def refused(self, message: str | object, /, **fields: Any) -> str:
        """Send a message that must be refused; returns the error's code."""
        try:
            answer = await self.ask(message, **fields)
        except Refused as refusal:
            return refusal.code
        raise Failed(f"{message!r} was not refused, but answered with {answer}")

    async def drained(self) -> list[dict[str, Any]]:
        """Everything that is unread or on its way, up to a ping's answer. Takes no time."""
        if not self.user_id and not any(matches(message, "auth_success", {}) for message in self.seen):
            raise Failed("only a client that is signed in may ping: an anonymous one can expect() or closed()")
        self._asked += 1
        ref = f"drained-{self._asked}"
        await self.send("ping", ref=ref)
        messages: list[dict[str, Any]] = await self._wait(lambda: self._log.up_to(ref), "a ping's answer")
        return messages

    async def nothing(self) -> None:
        """Assert that nothing is unread or on its way: a ping's answer is the next that comes."""
        messages = await self.drained()
        if messages:
            raise Failed(self._log.explain(f"nothing should have come, but {len(messages)} did: {messages}"))

    # -- conveniences

    async def subscribe(self, channel: str, **fields: Any) -> dict[str, Any]:
        """Subscribe to a channel (``since=``, ``presence=``); returns ``subscribed``.

        :raises Refused: the token does not allow it.
        """
        return await self.ask("subscribe", channel=channel, **fields)

    async def join(self, room_id: str, **fields: Any) -> dict[str, Any]:
        """Enter a room (``since=``); returns ``room_joined``.

        :raises Refused: there is no such room, or the token does not allow it.
        """
        return await self.ask("join_room", room_id=room_id, **fields)

    # -- the end, and a new beginning

    async def closed(self) -> int:
        """Wait for the server to end the connection; returns the close code (``close_reason`` has the reason)."""
        self._end_was_seen = True
        code, self.close_reason = await self._wait(lambda: self._log.ended or MISSING, "the end of the connection")
        return int(code)

    async def close(self, code: int = 1000, reason: str = "") -> None:
        """End the connection from this side; 1006: without a close frame, as a lost network does."""
        await self._socket.close(code, reason)

    async def reconnect(self, code: int = 1006) -> None:
        """Lose the connection, and come back as the same session, signed in if it was. Subscriptions are not renewed.

        :param code: what the old connection is closed with from this side; 1006: nothing.
        """
        await self._socket.close(code)
        self._log.reopen()
        self._socket = self._dial(self._log)
        await self._connect(self.session or None)

    async def _connect(self, session: str | None) -> None:
        await self._socket.open(self.timeout)
        self._packs = self._packs or self.subprotocol == MSGPACK
        if self._token is not None:
            await self.ask("auth", token=self._token, session=session)

    async def _leave(self, *, quiet: bool) -> None:
        await self._socket.close(1000)
        failure = self._log.failure
        if failure is not None and not quiet and not self._end_was_seen:
            raise failure

    # -- waiting

    def _note(self, message: object) -> None:
        if isinstance(message, dict) and message.get("type") == "auth_success":
            self.session = str(message.get("session", ""))
            self.user_id = str(message.get("user_id", ""))

    async def _wait(self, look: Callable[[], Any], what: str, like: Callable[[Any], bool] | None = None) -> Any:
        """Until ``look`` finds something.

        :param like: which of the earlier messages would have been right too; for the failure's text.
        """
        log, before = self._log, len(self._log.seen) - len(self._log.unread)
        try:
            async with asyncio.timeout(self.timeout):
                while (found := look()) is MISSING:
                    self._news.clear()
                    if log.ended is not None:
                        raise self._failed(f"{what} can come no more", before, like)
                    await self._news.wait()
                return found
        except TimeoutError:
            raise self._failed(f"{what} did not come within {self.timeout:g} s", before, like) from None

    def _failed(self, what: str, before: int, like: Callable[[Any], bool] | None) -> Failed:
        earlier = [message for message in self._log.seen[:before] if like is not None and like(message)]
        failed = Failed(self._log.explain(what, earlier[-1] if earlier else None))
        failed.__cause__ = self._log.failure
        return failed


@asynccontextmanager
async def hub_client(
    app: AsgiApp | str,
    user: str | None = None,
    *,
    hub: Hubbub | None = None,
    token: str | None = None,
    path: str = "/ws",
    room: str | None = None,
    headers: Headers = (),
    subprotocols: Iterable[str] = (),
    msgpack: bool = False,
    session: str | None = None,
    timeout: float = 5.0,  # the deadline of every later wait, not of this call
    **grants: Any,
) -> AsyncIterator[HubClient]:
    """Connect a client: ``async with hub_client(app, user="alice") as alice: …``.

    The app needs no server: it is called in this loop, and its lifespan runs while it has clients (or longer: see
    :func:`running`).

    :param app: a FastAPI or any other ASGI app, or the address of a running server (``"ws://127.0.0.1:8000"``).
    :param user: sign in as this user, with a token of the hub. Without it the connection is anonymous.
    :param hub: the Hubbub that issues the token, where it is not ``app.state.hubbub``.
    :param token: sign in with this one instead.
    :param path: of the endpoint (and query); the hub's own paths are taken to be below its prefix.
    :param room: use ``/ws/chat/{room}``: the session joins that room.
    :param subprotocols: offered in the opening request; ``msgpack`` adds MessagePack's.
    :param session: continue this session.
    :param timeout: seconds (of real time) that any wait may take.
    :param grants: of the token: ``subscribe=["news"]``, ``publish=``, ``rooms=``, ``admin=``, ``info=``, ``ttl=``.
    :raises Refused: the token is not good.
    :raises Rejected: the connection was not accepted.
    """
    the_loop()
    if token is None and user is not None:
        token = hub_of(app, hub).token(user, **grants)
    elif grants:
        raise TypeError(f"grants are a user's: name a user beside {', '.join(grants)}=")
    found = hub if hub is not None else find_hub(app)
    async with _nothing_to_run() if isinstance(app, str) else shared_state(app, found) as state:
        client = new_client(
            app, state, found.prefix if found is not None else "", token, path, room, headers, subprotocols, msgpack, timeout
        )  # fmt: skip
        async with connected(client, session):
            yield client


@asynccontextmanager
async def _nothing_to_run() -> AsyncIterator[Mapping[str, Any]]:
    yield {}


def new_client(
    app: AsgiApp | str,
    state: Mapping[str, Any],
    prefix: str,
    token: str | None,
    path: str,
    room: str | None,
    headers: Headers,
    subprotocols: Iterable[str],
    msgpack: bool,
    timeout: float,
) -> HubClient:
    """A client that is not connected yet."""
    if room is not None:
        path = f"/ws/chat/{room}"
    offered = [*subprotocols, *((MSGPACK,) if msgpack else ())]
    packs = msgpack or "format=msgpack" in path
    if prefix and path.startswith("/ws") and not path.startswith(prefix + "/"):
        path = prefix + path

    def dial(log: Transcript) -> Socket:
        if isinstance(app, str):
            return NetSocket(websocket_url(app, path), headers, offered, log)
        return AsgiSocket(app, path, headers, offered, state, log)

    return HubClient(dial, packs, timeout, token)


@asynccontextmanager
async def connected(client: HubClient, session: str | None) -> AsyncIterator[None]:
    """Connect a client, sign it in, and let go of everything at the end."""
    quiet = True
    try:
        await client._connect(session)
        yield
        quiet = False
    finally:
        await client._leave(quiet=quiet)
