"""uvicorn's HTTP class, with bounds in time and bytes for whatever is not a body, and nothing lost at the upgrade."""

from __future__ import annotations

import asyncio
import logging
import re
from typing import TYPE_CHECKING, Any, Final, cast

import httptools
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from hubbub import handshake
from hubbub.transports.shared import shared_of

if TYPE_CHECKING:
    from uvicorn.config import Config
    from uvicorn.server import ServerState

    from hubbub.transports.uvicorn import WebSocketProtocol

log = logging.getLogger("hubbub.transport")

MAX_HEAD: Final = 65_536
"""Bytes that a request's head may have, or whatever else of a request is no body (chunk extensions, trailers)."""


class HttpProtocol(asyncio.Protocol):
    """The front door: looks at a connection's first bytes, and lets in what they ask for.

    A whole WebSocket request in one read (the usual case) becomes a WebSocket at once, without an HTTP parser and the
    state that goes with it: half of the cost of opening. All else becomes an :class:`HttpConnection`, which sees every
    byte from the first.
    """

    __slots__ = ("_app_state", "_config", "_deadline", "_server_state", "_shared", "_transport")

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        self._config = config
        self._server_state = server_state
        self._app_state = app_state
        self._shared = shared_of(config, server_state, app_state)
        self._deadline: asyncio.TimerHandle | None = None
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is none by inheritance
        self._server_state.connections.add(self)  # type: ignore[arg-type]  # uvicorn types its own classes only
        seconds = self._shared.settings.handshake_timeout
        if seconds:
            self._deadline = self._shared.loop.call_later(seconds, self._late)

    def connection_lost(self, exc: Exception | None) -> None:
        self._leave()

    def shutdown(self) -> None:
        """uvicorn is stopping, and this peer has asked for nothing yet."""
        assert self._transport is not None
        self._transport.close()

    def _late(self) -> None:
        assert self._transport is not None
        self._shared.refused("handshake_timeout")
        self._transport.abort()

    def _leave(self) -> None:
        self._server_state.connections.discard(self)
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def data_received(self, data: bytes) -> None:
        transport = self._transport
        assert transport is not None
        self._leave()
        self._transport = None
        end = data.find(b"\r\n\r\n", 0, MAX_HEAD) + 4
        if end > 4 and _OPENING.match(data, 0, end) is not None:
            self._open(transport, data[:end], data[end:])
            return
        http = HttpConnection(self._config, self._server_state, self._app_state, self._shared.loop)
        http.connection_made(transport)
        transport.set_protocol(http)
        http.data_received(data)

    def _open(self, transport: asyncio.Transport, head: bytes, rest: bytes) -> None:
        protocol: WebSocketProtocol = self._config.ws_protocol_class(  # type: ignore[misc,call-arg,assignment]
            config=self._config, server_state=self._server_state, app_state=self._app_state
        )
        protocol.begin(transport)
        try:
            request = handshake.parse(head)
        except handshake.BadRequest as bad:
            protocol.refuse_opening(bad)
        else:
            protocol.upgrade(request, rest)
        transport.set_protocol(protocol)


_OPENING: Final = re.compile(rb"GET /[^\r\n]* HTTP/1\.1\r\n(?:.*\r\n)?upgrade:[ \t]*websocket[ \t]*\r\n", re.I | re.S)


class HttpConnection(HttpToolsProtocol):
    """One HTTP connection, until it becomes a WebSocket.

    A head has one deadline (HUBBUB_HANDSHAKE_TIMEOUT) however it drips in; a body has it from each read to the next.
    """

    _deadline: asyncio.TimerHandle | None = None
    _in_head = True  # between two requests too
    _fruitless = 0  # bytes read since there was a whole head, a piece of a body, or the end of a message

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn's own
        super().connection_made(transport)
        self._shared = shared_of(self.config, self.server_state, self.app_state)
        self._expect_more()

    def connection_lost(self, exc: Exception | None) -> None:
        self._in_time()
        super().connection_lost(exc)

    # -- time

    def _expect_more(self) -> None:
        seconds = self._shared.settings.handshake_timeout
        if self._deadline is None and seconds:
            self._deadline = self.loop.call_later(seconds, self._late)

    def _in_time(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _late(self) -> None:
        self._deadline = None
        answering = self.cycle is not None and not self.cycle.response_complete
        if self.flow.read_paused or (self._in_head and answering):
            self._expect_more()  # it is the app that takes its time
        else:
            self._shared.refused("handshake_timeout")
            self.transport.abort()

    def shutdown(self) -> None:
        """The server stops: a request that is under way may end, unless it is the peer who does not let it."""
        super().shutdown()
        self.loop.call_later(self._shared.settings.close_timeout, self._let_go)

    def _let_go(self) -> None:
        if not self._in_head or self.flow.write_paused or self.transport.is_closing():
            self.transport.abort()

    # -- what the parser calls

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._expect_more()

    def on_headers_complete(self) -> None:
        self._in_time()
        self._in_head = False
        self._fruitless = 0
        super().on_headers_complete()
        if not self.parser.should_upgrade():
            self.headers = []  # for trailers: the app has its headers by now, and they stay as they are

    def on_body(self, body: bytes) -> None:
        self._fruitless = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._in_time()
        self._in_head = True
        self._fruitless = 0
        super().on_message_complete()

    # -- reading

    def data_received(self, data: bytes) -> None:
        self._unset_keepalive_if_required()
        self._fruitless += len(data)
        if not self._in_head:
            self._in_time()
        self._expect_more()
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            self._in_time()
            self._upgrade(data[upgrade.args[0] :])
        except httptools.HttpParserError:
            # one hostile peer must not fill the log: uvicorn's own class warns here
            log.debug("invalid HTTP request")
            self._refuse(400, b"Invalid HTTP request received.")
        else:
            if self._fruitless > MAX_HEAD:
                self._refuse(431, b"the head of a request has at most 65536 bytes")
            elif not self._in_head:
                self._expect_more()

    def _refuse(self, status: int, body: bytes) -> None:
        self._in_time()
        self._shared.refused("bad_request")
        if not self.transport.is_closing():
            headers = self.server_state.default_headers
            self.transport.write(handshake.refuse_response(status, body=body, headers=headers))
            self.transport.close()

    # -- the upgrade

    def _should_upgrade(self) -> bool:
        """For whatever names a WebSocket in any way: :func:`handshake.check` says whether it does so properly."""
        wanted = any(name == b"upgrade" and b"websocket" in value.lower() for name, value in self.headers)
        return wanted and self._should_upgrade_to_ws()

    def _upgrade(self, rest: bytes) -> None:
        if not self._should_upgrade():
            # Another protocol (h2c) is answered as HTTP/1.1. What follows could be either, so nothing more is read.
            if self.cycle is not None:
                self.cycle.keep_alive = False
        elif self.cycle is not None and not self.cycle.response_complete:
            self._refuse(400, b"a WebSocket request waits for the answer to the request before it")
        else:
            self._take_off(rest)

    def _take_off(self, rest: bytes) -> None:
        self.connections.discard(self)
        protocol: WebSocketProtocol = self.ws_protocol_class(  # type: ignore[misc,call-arg,assignment]  # as uvicorn does
            config=self.config, server_state=self.server_state, app_state=self.app_state
        )
        transport = self.transport
        protocol.begin(transport)
        if self.scope["http_version"] != "1.1":
            protocol.refuse(400, b"a WebSocket needs HTTP/1.1")
        else:
            try:
                request = handshake.request(self.scope["method"].encode(), self.url, self.headers)
            except handshake.BadRequest as bad:
                protocol.refuse_opening(bad)
            else:
                protocol.upgrade(request, rest)
        transport.set_protocol(protocol)
        # parser ↔ protocol is a cycle: break it, so that memory comes back without the collector
        self.parser = None  # type: ignore[assignment]
        self.scope = self.headers = self.cycle = None  # type: ignore[assignment]
