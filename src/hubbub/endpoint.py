"""The ASGI endpoints behind ``/ws``, ``/ws/chat/{room_id}`` and ``/ws/echo``: accept, then hand over to a session."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from typing import Any, Final

from hubbub import handshake
from hubbub.errors import CloseCode
from hubbub.frames import BINARY, TEXT, frame
from hubbub.hub import Hub
from hubbub.messages import CODECS, JSON, Codec
from hubbub.ports import Link, Request, Scope
from hubbub.transports.asgi import AsgiLink

Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]

JSON_SUBPROTOCOL: Final = "hubbub.json"
"""May be offered beside ``bearer.<token>``: browsers want one of what they offered back, and a token is not sent back."""
CHAT_PATH: Final = "/ws/chat/"
ECHO_SIZE: Final = 16 << 20
"""Bytes of an echoed message where HUBBUB_MAX_MESSAGE_SIZE is not set: what conformance suites send."""


class SessionEndpoint:
    """``/ws`` and ``/ws/chat/{room_id}``, as a raw ASGI app."""

    def __init__(self, hub: Hub) -> None:
        self.hub = hub

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        began = time.perf_counter()
        hub = self.hub
        await hub.ensure_started()
        await receive()  # websocket.connect
        request = request_of(scope)
        refusal = self._refusal(request)
        if refusal is not None:
            return await _deny(scope, send, *refusal)
        codec, subprotocol = _codec(request)
        room = scope.get("path_params", {}).get("room_id")
        await send({"type": "websocket.accept", "subprotocol": subprotocol})
        taken = scope.get("extensions", {}).get("hubbub.link")
        if taken is not None:
            taken.take_over(hub, codec)
            hub.entrance.open(taken, request, room)
            hub.metrics.handshakes.add(time.perf_counter() - began)
            return None
        link = AsgiLink(hub, codec, hub.settings, hub.clock, hub.settings.message_limit, send, hub.metrics.drops)
        hub.entrance.open(link, request, room)
        hub.metrics.handshakes.add(time.perf_counter() - began)
        await link.run(receive)
        return None

    def direct(self, connection: Any, request: Request, key: bytes) -> bool:
        """The same without ASGI around it (a :class:`Direct`): saves a task and a dozen calls per connection."""
        began = time.perf_counter()
        if request.path == "/ws":
            room = None
        elif request.path.startswith(CHAT_PATH) and "/" not in request.path[len(CHAT_PATH) :]:
            room = request.path[len(CHAT_PATH) :]
        else:
            return False
        refusal = self._refusal(request)
        if refusal is not None:
            connection.refuse(*refusal)
            return True
        codec, subprotocol = _codec(request)
        connection.accepted(handshake.accept_response(key, subprotocol=subprotocol, headers=()))
        connection.take_over(self.hub, codec)
        self.hub.entrance.open(connection, request, room)
        self.hub.metrics.handshakes.add(time.perf_counter() - began)
        return True

    def _refusal(self, request: Request) -> tuple[int, bytes] | None:
        hub = self.hub
        if not hub.entrance.origin_ok(request):
            hub.metrics.limited("origin")
            return 403, b"this page's origin is not allowed here (HUBBUB_ORIGINS)"
        reason = hub.refuse(len(hub.sessions))
        if reason is not None:
            hub.metrics.limited(reason)
            return 503, b"over capacity, come back later"
        return None


class EchoEndpoint:
    """``/ws/echo``: text in, text out; binary in, binary out. For trying out and for conformance suites."""

    def __init__(self, hub: Hub) -> None:
        self.hub = hub
        set_here = "max_message_size" in hub.settings.model_fields_set
        self.max_size = hub.settings.message_limit if set_here else ECHO_SIZE
        self.sink = EchoSink()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        if not self.hub.entrance.origin_ok(request_of(scope)):
            return await _deny(scope, send, 403, b"this page's origin is not allowed here (HUBBUB_ORIGINS)")
        await send({"type": "websocket.accept"})
        taken = scope.get("extensions", {}).get("hubbub.link")
        if taken is not None:
            taken.take_over(self.sink, JSON, self.max_size)
            return None
        while (event := await receive())["type"] == "websocket.receive":
            if event.get("text") is not None:
                await send({"type": "websocket.send", "text": event["text"]})
            else:
                await send({"type": "websocket.send", "bytes": event["bytes"]})
        return None


class EchoSink:
    """Sends back what comes, no faster than the peer reads it."""

    def received(self, link: Any, message: str | bytes) -> None:
        if isinstance(message, str):
            link.write(frame(TEXT, message.encode()))
        else:
            link.write(frame(BINARY, message))

    def lost(self, link: Link, code: int) -> None:
        pass

    def wrote_behind(self, link: Link) -> None:
        link.hold()

    def caught_up(self, link: Link) -> None:
        link.release()

    def touched(self, link: Link) -> None:
        link.flush()

    def gap(self, link: Link, channel: str, offset: int) -> bytes:
        return b""  # an echo has no channels

    def drain(self, link: Link) -> None:
        link.close(CloseCode.SERVICE_RESTART)


def request_of(scope: Scope) -> Request:
    """What a session needs of the ASGI scope."""
    client = scope.get("client")
    return Request(
        scope["path"],
        scope.get("query_string", b""),
        scope["headers"],
        scope.get("subprotocols", []),
        str(client[0]) if client else "",
        scope.get("scheme", "ws"),
    )


def _codec(request: Request) -> tuple[Codec, str | None]:
    for codec in CODECS.values():
        if codec.subprotocol is not None and codec.subprotocol in request.subprotocols:
            return codec, codec.subprotocol
    chosen = JSON_SUBPROTOCOL if JSON_SUBPROTOCOL in request.subprotocols else None
    for part in request.query_string.split(b"&"):
        if part.startswith(b"format="):
            return CODECS.get(part[7:].decode("ascii", "replace"), JSON), chosen
    return JSON, chosen


async def _deny(scope: Scope, send: Send, status: int, body: bytes) -> None:
    if "websocket.http.response" not in scope.get("extensions", {}):
        return await send({"type": "websocket.close"})  # which is a 403
    await send(
        {
            "type": "websocket.http.response.start",
            "status": status,
            "headers": [(b"content-type", b"text/plain; charset=utf-8")],
        }
    )
    return await send({"type": "websocket.http.response.body", "body": body})
