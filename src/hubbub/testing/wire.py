"""The two ways from a test to an app: its ASGI callable in this loop, without a server; or a server's socket."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Mapping
from itertools import count
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeAlias
from urllib.parse import unquote, urlsplit

from hubbub.testing.transcript import Failed, Rejected, Transcript

if TYPE_CHECKING:
    from websockets.asyncio.client import ClientConnection

AsgiApp: TypeAlias = Callable[[Any, Any, Any], Awaitable[Any]]
Headers: TypeAlias = Mapping[str, str] | Iterable[tuple[str, str]]

LAST_WORDS: Final = 1.0
"""Seconds that an app may take to end once its client is gone; then it is cancelled, as a server would at its end."""

_ports = count(49_152)


class Socket(Protocol):
    """One connection, as a client of a test sees it. What comes goes into its :class:`Transcript`."""

    @property
    def subprotocol(self) -> str | None:
        """What the server chose."""
        ...

    async def open(self, seconds: float) -> None:
        """Connect, within so many seconds.

        :raises Rejected: the server did not accept it.
        :raises Failed: it did not answer in time.
        """
        ...

    async def send(self, data: str | bytes) -> None:
        """Send one message; after the end nothing happens."""
        ...

    async def close(self, code: int, reason: str = "") -> None:
        """End the connection (1006: without a close frame) and let go of everything; idempotent."""
        ...


class AsgiSocket:
    """A WebSocket of an ASGI app in this very loop: two queues, no server, no port.

    :param target: path and query.
    :param state: what the lifespan left for the connections.
    """

    def __init__(
        self,
        app: AsgiApp,
        target: str,
        headers: Headers,
        subprotocols: Iterable[str],
        state: Mapping[str, Any],
        log: Transcript,
    ) -> None:
        self.subprotocol: str | None = None
        self._app = app
        self._log = log
        self._to_app: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self._gone: dict[str, Any] | None = None
        self._task: asyncio.Task[Any] | None = None
        self._accepted: asyncio.Future[None] | None = None
        self._refusal: tuple[int, bytes] | None = None
        self._scope = _scope(target, headers, list(subprotocols), state)

    async def open(self, seconds: float) -> None:
        loop = asyncio.get_running_loop()
        self._accepted = loop.create_future()
        self._to_app.put_nowait({"type": "websocket.connect"})
        self._task = loop.create_task(self._run())
        await asyncio.wait((self._accepted, self._task), timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        if self._accepted.done():
            self._accepted.result()
            return
        if not self._task.done():
            await self._end()
            raise Failed(f"the app did not answer the opening request of {self._scope['path']} within {seconds:g} s")
        self._task.result()  # the app's own exception is the best thing to show
        raise Failed("the app returned without having accepted or refused the connection")

    async def send(self, data: str | bytes) -> None:
        if self._gone is None:
            self._to_app.put_nowait({"type": "websocket.receive", "text" if isinstance(data, str) else "bytes": data})
        await asyncio.sleep(0)  # as a real socket would, let the app have it

    async def close(self, code: int, reason: str = "") -> None:
        self._disconnect(code, reason)
        self._log.end(code, reason)
        await self._end(LAST_WORDS)

    # -- the app's side

    async def _run(self) -> None:
        failure: BaseException | None = None
        try:
            await self._app(self._scope, self._receive, self._send)
        except Exception as error:
            failure = error
            if self._accepted is not None and not self._accepted.done():
                raise
        finally:
            if self._accepted is not None and self._accepted.done() and self._refusal is None:
                self._log.end(1000 if failure is None else 1011, "", failure)

    async def _receive(self) -> dict[str, Any]:
        if self._gone is not None and self._to_app.empty():
            return self._gone
        return await self._to_app.get()

    async def _send(self, event: dict[str, Any]) -> None:
        kind = event["type"]
        assert self._accepted is not None
        if not self._accepted.done():
            self._answer(kind, event)
        elif self._gone is not None:
            raise OSError("the client is gone")  # what servers do since version 2.4 of the specification
        elif kind == "websocket.send":
            text = event.get("text")
            self._log.arrived(text if text is not None else bytes(event["bytes"]))
        elif kind == "websocket.close":
            code, reason = event.get("code") or 1000, event.get("reason") or ""
            self._disconnect(code, reason)
            self._log.end(code, reason)
        else:
            raise RuntimeError(f"an app must not send {kind!r} now")

    def _answer(self, kind: str, event: dict[str, Any]) -> None:
        assert self._accepted is not None
        if kind == "websocket.accept":
            self.subprotocol = event.get("subprotocol")
            self._accepted.set_result(None)
        elif kind == "websocket.close":
            self._accepted.set_exception(Rejected(403, event.get("reason") or ""))
            self._disconnect(1006, "")
        elif kind == "websocket.http.response.start":
            self._refusal = (event["status"], b"")
        elif kind == "websocket.http.response.body" and self._refusal is not None:
            status, body = self._refusal
            self._refusal = status, body + event.get("body", b"")
            if not event.get("more_body"):
                self._accepted.set_exception(Rejected(status, self._refusal[1].decode(errors="replace")))
                self._disconnect(1006, "")
        else:
            raise RuntimeError(f"an app must not send {kind!r} before it accepted the connection")

    def _disconnect(self, code: int, reason: str) -> None:
        if self._gone is None:
            self._gone = {"type": "websocket.disconnect", "code": code, "reason": reason}
            self._to_app.put_nowait(self._gone)

    async def _end(self, patience: float = 0.0) -> None:
        task = self._task
        if task is None:
            return
        if patience and not task.done():
            await asyncio.wait((task,), timeout=patience)
        if not task.done():
            task.cancel()
            await asyncio.wait((task,), timeout=LAST_WORDS)
        if task.done() and not task.cancelled():
            task.exception()  # looked at: it is in the transcript, or was raised by open()


class NetSocket:
    """A WebSocket over a real connection, through the ``websockets`` library."""

    def __init__(self, url: str, headers: Headers, subprotocols: Iterable[str], log: Transcript) -> None:
        self._url = url
        self._headers = pairs_of(headers)
        self._subprotocols = list(subprotocols)
        self._log = log
        self._connection: ClientConnection | None = None
        self._pump: asyncio.Task[None] | None = None

    @property
    def subprotocol(self) -> str | None:
        return self._connection.subprotocol if self._connection is not None else None

    async def open(self, seconds: float) -> None:
        # imported late: only tests of a running server need it
        from websockets.asyncio.client import connect
        from websockets.exceptions import InvalidStatus
        from websockets.typing import Subprotocol

        try:
            self._connection = await connect(
                self._url,
                additional_headers=self._headers,
                subprotocols=[Subprotocol(name) for name in self._subprotocols] or None,
                proxy=None,
                ping_interval=None,
                max_queue=None,  # with a full queue its close() would wait for ten seconds
                max_size=None,
                open_timeout=seconds,
            )
        except InvalidStatus as error:
            body = error.response.body or b""
            raise Rejected(error.response.status_code, bytes(body).decode(errors="replace")) from None
        except TimeoutError:
            raise Failed(f"{self._url} did not answer within {seconds:g} s") from None
        self._pump = asyncio.get_running_loop().create_task(self._read(self._connection))

    async def _read(self, connection: ClientConnection) -> None:
        from websockets.exceptions import ConnectionClosed

        try:
            while True:
                self._log.arrived(await connection.recv())
        except ConnectionClosed:
            code = connection.close_code
            self._log.end(code if code is not None else 1006, connection.close_reason or "")

    async def send(self, data: str | bytes) -> None:
        from websockets.exceptions import ConnectionClosed

        assert self._connection is not None
        try:
            await self._connection.send(data)
        except ConnectionClosed:
            pass  # the transcript has how it ended, and the next wait shows it

    async def close(self, code: int, reason: str = "") -> None:
        connection, pump = self._connection, self._pump
        if connection is None or pump is None:
            return
        if code == 1006:
            self._log.end(code, reason)
            connection.transport.abort()
        else:
            await connection.close(code, reason)
        await asyncio.wait((pump,), timeout=LAST_WORDS)
        pump.cancel()
        self._log.end(code, reason)


def pairs_of(headers: Headers) -> list[tuple[str, str]]:
    """Headers as a list of names and values."""
    items: Any = headers.items() if isinstance(headers, Mapping) else headers
    return [(str(name), str(value)) for name, value in items]


def _scope(target: str, headers: Headers, subprotocols: list[str], state: Mapping[str, Any]) -> dict[str, Any]:
    """The ASGI scope of an opening request as a browser or a library on this machine would send it."""
    path, _, query = target.partition("?")
    sent = [(name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in pairs_of(headers)]
    have = {name for name, _ in sent}
    usual = [
        (b"host", b"testserver"),
        (b"upgrade", b"websocket"),
        (b"connection", b"upgrade"),
        (b"sec-websocket-version", b"13"),
        (b"sec-websocket-key", b"dGhlIHNhbXBsZSBub25jZQ=="),
    ]
    if subprotocols:
        usual.append((b"sec-websocket-protocol", ", ".join(subprotocols).encode()))
    return {
        "type": "websocket",
        "asgi": {"version": "3.0", "spec_version": "2.4"},
        "http_version": "1.1",
        "scheme": "ws",
        "path": unquote(path),
        "raw_path": path.encode(),
        "query_string": query.encode(),
        "root_path": "",
        "headers": [pair for pair in usual if pair[0] not in have] + sent,
        "client": ("127.0.0.1", 1024 + next(_ports) % 64_000),
        "server": ("testserver", 80),
        "subprotocols": subprotocols,
        "state": dict(state),
        "extensions": {"websocket.http.response": {}},
    }


def websocket_url(base: str, path: str) -> str:
    """The address of a server with a path: a base that has one of its own (``…/ws``) keeps it, but for rooms below it."""
    parts = urlsplit(base)
    scheme = {"http": "ws", "https": "wss"}.get(parts.scheme, parts.scheme)
    if parts.path.strip("/"):
        room = path[len("/ws") :] if path.startswith("/ws/chat/") else ""
        path = parts.path.rstrip("/") + room + (f"?{parts.query}" if parts.query else "")
    return f"{scheme}://{parts.netloc}{path}"
