"""The ASGI side of a connection on the fast server: the opening, and plain endpoints for as long as they last.

A connection starts here, whatever it becomes: the app sees an ordinary ASGI websocket, with routing, middleware and
dependencies. Hubbub's own endpoints then take the connection over, and this object goes; any other endpoint keeps it.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from typing import TYPE_CHECKING, Any

from uvicorn.protocols.utils import ClientDisconnected

from hubbub import handshake
from hubbub.errors import CloseCode
from hubbub.frames import BINARY, TEXT, frame
from hubbub.ports import Link, Scope

if TYPE_CHECKING:
    from hubbub.transports.uvicorn import WebSocketProtocol

log = logging.getLogger("hubbub.transport")
RECEIVE_QUEUE = 8
"""Messages that may wait for a plain endpoint before its socket is no longer read."""


class Conversation:
    """One run of the ASGI app for one connection. It is the connection's sink until somebody takes over."""

    __slots__ = (
        "_denial",
        "_events",
        "_held",
        "_key",
        "_protocol",
        "_waiter",
        "_writable",
        "accepted",
        "closed",
        "scope",
    )

    def __init__(self, protocol: WebSocketProtocol, scope: Scope, key: bytes) -> None:
        self._protocol = protocol
        self._key = key
        self.scope = scope
        self.accepted = False
        self.closed = False
        self._denial: tuple[int, list[tuple[bytes, bytes]], bytes] | None = None
        self._events: deque[dict[str, Any]] = deque([{"type": "websocket.connect"}])
        self._waiter: asyncio.Future[None] | None = None
        self._writable: asyncio.Future[None] | None = None
        self._held = False

    async def run(self, app: Any) -> None:
        """Run the app; whatever it does, the connection ends in a defined way."""
        protocol = self._protocol
        try:
            await app(self.scope, self.receive, self.send)
        except ClientDisconnected:
            pass
        except Exception:
            log.exception("the ASGI app failed on a websocket")
            if protocol.sink is self:
                self._end(CloseCode.INTERNAL_ERROR, 500)
        else:
            if protocol.sink is self:
                self._end(CloseCode.NORMAL, 500)

    def _end(self, code: CloseCode, status: int) -> None:
        if self.accepted:
            self._protocol.close(code)
        elif not self.closed:
            self.closed = True
            self._protocol.refuse(status, b"Internal Server Error")

    # -- what the app calls

    async def receive(self) -> dict[str, Any]:
        while not self._events:
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter
        event = self._events.popleft()
        if self._held and not self._events:
            self._held = False
            self._protocol.release()
        return event

    async def send(self, message: dict[str, Any]) -> None:
        kind = message["type"]
        if self._protocol.lost:
            raise ClientDisconnected
        if self._denial is not None and kind == "websocket.http.response.body":
            self._deny(message)
        elif not self.accepted and not self.closed:
            self._open(kind, message)
        elif self.closed:
            raise ClientDisconnected  # ours or the peer's close went before: nothing can follow it
        elif kind == "websocket.send":
            await self._send(message)
        elif kind == "websocket.close":
            self.closed = True
            self._push({"type": "websocket.disconnect", "code": message.get("code", 1000)})
            self._protocol.close(message.get("code", 1000), message.get("reason") or "")
            if self._held:
                self._held = False
                self._protocol.release()
        else:
            raise RuntimeError(f"expected websocket.send or websocket.close, got {kind!r}")

    def _open(self, kind: str, message: dict[str, Any]) -> None:
        if kind == "websocket.accept":
            headers = [*self._protocol.shared.default_headers(), *message.get("headers", ())]
            response = handshake.accept_response(self._key, subprotocol=message.get("subprotocol"), headers=headers)
            self.accepted = True
            self._protocol.accepted(response)
        elif kind == "websocket.close":
            self.closed = True
            self._push({"type": "websocket.disconnect", "code": CloseCode.ABNORMAL})
            self._protocol.refuse(403, b"")
        elif kind == "websocket.http.response.start":
            self._denial = (message["status"], list(message.get("headers", ())), b"")
        else:
            raise RuntimeError(f"expected websocket.accept, websocket.close or a response, got {kind!r}")

    def _deny(self, message: dict[str, Any]) -> None:
        assert self._denial is not None
        status, headers, body = self._denial
        body += message.get("body", b"")
        self._denial = (status, headers, body)
        if not message.get("more_body", False):
            self.closed = True
            self._push({"type": "websocket.disconnect", "code": CloseCode.ABNORMAL})
            self._protocol.refuse(status, body, headers)

    async def _send(self, message: dict[str, Any]) -> None:
        while self._protocol.behind:
            if self._writable is None:
                self._writable = asyncio.get_running_loop().create_future()
            await self._writable
            if self._protocol.lost:
                raise ClientDisconnected
        data = message.get("bytes")
        text = message.get("text")
        if data is not None:
            self._protocol.write(frame(BINARY, data))
        elif text is not None:
            self._protocol.write(frame(TEXT, text.encode()))

    # -- what the connection calls (a Sink)

    def received(self, link: Link, message: str | bytes) -> None:
        if self.closed:
            return
        name = "text" if isinstance(message, str) else "bytes"
        self._push({"type": "websocket.receive", name: message})
        if len(self._events) >= RECEIVE_QUEUE and not self._held:
            self._held = True
            self._protocol.hold()

    def lost(self, link: Link, code: int) -> None:
        if not self.closed:
            self.closed = True
            self._push({"type": "websocket.disconnect", "code": code})
        self._wake()

    def wrote_behind(self, link: Link) -> None:
        pass  # send() looks at the link itself

    def caught_up(self, link: Link) -> None:
        self._wake()

    def touched(self, link: Link) -> None:
        link.flush()

    def gap(self, link: Link, channel: str, offset: int) -> bytes:
        return b""  # a plain endpoint has no channels

    def drain(self, link: Link) -> None:
        if self.accepted:
            self._push({"type": "websocket.disconnect", "code": CloseCode.SERVICE_RESTART})
            self.closed = True
            self._protocol.close(CloseCode.SERVICE_RESTART)
        elif not self.closed:
            self.closed = True
            self._push({"type": "websocket.disconnect", "code": CloseCode.ABNORMAL})
            self._protocol.refuse(503, b"shutting down")

    def _wake(self) -> None:
        """The socket takes bytes again, or never will: wake who waits in send()."""
        waiter, self._writable = self._writable, None
        if waiter is not None and not waiter.done():
            waiter.set_result(None)

    def _push(self, event: dict[str, Any]) -> None:
        self._events.append(event)
        waiter, self._waiter = self._waiter, None
        if waiter is not None and not waiter.done():
            waiter.set_result(None)
