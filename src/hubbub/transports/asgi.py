"""The same session on any ASGI server, and on Starlette's TestClient: through ``receive`` and ``send``.

Slower than the fast lane (two tasks and a queue per connection), same behaviour, same tests. Heartbeats and frame
limits are the server's own here; everything above the frames is Hubbub's.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Generator, Iterable
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final

from hubbub.errors import CloseCode
from hubbub.messages import JSON, MSGPACK, Codec
from hubbub.outbox import Entry, Outbox
from hubbub.ports import Clock, Link, Sink
from hubbub.settings import Settings

if TYPE_CHECKING:
    from hubbub.batch import Batch
    from hubbub.session import Session

Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]


class AsgiLane:
    """Queues a channel's batch on links of this transport."""

    __slots__ = ("codec",)

    def __init__(self, codec: Codec) -> None:
        self.codec = codec

    def deliver(self, links: Iterable[Link], batch: Batch, merge: bool) -> None:
        link: AsgiLink
        for link in links:  # type: ignore[assignment]  # a lane only ever gets links of its own transport
            link.deliver(batch)


LANES: Final = {codec: AsgiLane(codec) for codec in (JSON, MSGPACK)}


class AsgiLink:
    """One connection of an ASGI server."""

    def __init__(
        self, sink: Sink, codec: Codec, settings: Settings, clock: Clock, max_size: int, send: Send, drops: Counter[str]
    ) -> None:
        self.lane = LANES[codec]
        self.session: Session | None = None
        self._sink = sink
        self._settings = settings
        self._clock = clock
        self._max_size = max_size
        self._send = send
        self._outbox = Outbox(settings.outbox_bytes, settings.outbox_seconds, drops)
        self._replies: list[bytes] | None = None
        self._work = asyncio.Event()
        self._reading = asyncio.Event()
        self._reading.set()
        self._closing: tuple[int, str] | None = None
        self._sending_since: float | None = None
        self._tasks: tuple[asyncio.Task[Any], ...] = ()
        self._deadline: asyncio.TimerHandle | None = None
        self._aborted = False

    # -- what the hub calls

    def deliver(self, batch: Batch) -> None:
        now = self._clock.monotonic()
        for publication, payload in batch.for_link(self, self.lane.codec):
            entry = Entry(payload, now, batch.channel, batch.policy, publication.key, publication.offset)
            if not self._queue(entry):
                return

    def send(self, payload: bytes) -> None:
        if self._closing is not None:
            return
        if self._replies is None:
            self._replies = [payload]
            self._sink.touched(self)
        else:
            self._replies.append(payload)

    def flush(self) -> None:
        replies, self._replies = self._replies, None
        now = self._clock.monotonic()
        for payload in replies or ():
            if not self._queue(Entry(payload, now)):
                return

    def _queue(self, entry: Entry) -> bool:
        if self._closing is not None:
            return False
        if not self._outbox.add(entry):
            self.close(CloseCode.SLOW, "slow")
            return False
        self._work.set()
        if self._sending_since is not None:
            self._sink.wrote_behind(self)
        return True

    @property
    def behind(self) -> bool:
        return self._sending_since is not None and len(self._outbox) > 0

    @property
    def closing(self) -> bool:
        return self._closing is not None

    def overdue(self, now: float) -> bool:
        limit, since = self._settings.outbox_seconds, self._sending_since
        stuck = bool(limit) and since is not None and now - since >= limit
        return self._outbox.overdue(now) or stuck

    def close(self, code: int, reason: str = "") -> None:
        if self._closing is None:
            self.flush()
            self._closing = self._closing or (code, reason)
            self._work.set()
            self._reading.set()
            # the close frame may not get past what is stuck, or may get no answer
            self._deadline = asyncio.get_running_loop().call_later(self._settings.close_timeout, self.abort)

    def abort(self) -> None:
        self._aborted = True
        self._closing = self._closing or (CloseCode.ABNORMAL, "")
        for task in self._tasks:
            task.cancel()

    def hold(self) -> None:
        self._reading.clear()

    def release(self) -> None:
        self._reading.set()

    # -- the life of the connection

    async def run(self, receive: Receive) -> None:
        """Drive the session until the connection ends."""
        reader = asyncio.create_task(self._read(receive))
        writer = asyncio.create_task(self._write())
        self._tasks = (reader, writer)
        code: int = CloseCode.ABNORMAL
        try:
            await asyncio.wait(self._tasks, return_when=asyncio.FIRST_COMPLETED)
            if self._closing is not None:
                code = self._closing[0]
                if _ended_well(writer):
                    # some servers (granian) send no close frame while they are asked for the next message
                    reader.cancel()
                    await asyncio.wait((reader,), timeout=self._settings.close_timeout)
                    if reader.cancelled() and not self._aborted:
                        self._tasks = (asyncio.create_task(self._part(receive)),)
                        await asyncio.wait(self._tasks)
            elif _ended_well(reader):
                code = reader.result()
        except asyncio.CancelledError:
            if self._closing is None:
                self._depart()
            raise
        finally:
            self._closing = self._closing or (code, "")
            # nothing is awaited from here: whoever cancelled us would cancel that too, and the session would stay
            if self._deadline is not None:
                self._deadline.cancel()
            for task in (reader, writer, *self._tasks):
                task.cancel()
                task.add_done_callback(_look_at)
            self._sink.lost(self, code)

    async def _read(self, receive: Receive) -> int:
        while True:
            await self._reading.wait()
            event = await receive()
            if event["type"] == "websocket.disconnect":
                return int(event.get("code") or CloseCode.NO_STATUS)
            if self._closing is not None:
                continue
            message = event.get("text")
            size = len(message.encode()) if message is not None else len(event["bytes"])
            if size > self._max_size:
                self.close(CloseCode.TOO_BIG, f"a message has at most {self._max_size} bytes")
                continue
            self._sink.received(self, message if message is not None else event["bytes"])

    async def _write(self) -> None:
        while True:
            await self._work.wait()
            self._work.clear()
            while True:
                payloads = self._outbox.pop(lambda channel, offset: self._sink.gap(self, channel, offset))
                if not payloads:
                    break
                for payload in payloads:
                    self._sending_since = self._clock.monotonic()
                    if len(self._outbox):
                        self._sink.wrote_behind(self)
                    if self.lane.codec.is_json:
                        await self._send({"type": "websocket.send", "text": payload.decode()})
                    else:
                        await self._send({"type": "websocket.send", "bytes": payload})
                    self._sending_since = None
                if self._closing is not None and self._closing[0] == CloseCode.SLOW:
                    break
            self._sink.caught_up(self)
            if self._closing is not None:
                return

    async def _part(self, receive: Receive) -> None:
        """Send our close frame, and wait until the peer has answered it."""
        assert self._closing is not None
        code, reason = self._closing
        try:
            await self._send(_close(code, reason))
        except Exception:
            # Daphne sends 1000 and 3000 to 4999 only. If it was for another reason, this fails as well.
            await self._send(_close(_substitute(code), reason))
        while (await receive())["type"] != "websocket.disconnect":
            pass

    def _depart(self) -> None:
        """The server ends us without having asked, as most do when they shut down: say what can be said at once."""
        for code in (CloseCode.SERVICE_RESTART, _substitute(CloseCode.SERVICE_RESTART)):
            with suppress(Exception):  # the code is one that it does not send; or the peer is gone
                sending = self._send(_close(code, "restarting")).__await__()
                next(sending, None)
                if isinstance(sending, Generator):
                    sending.close()  # it would wait
                return


def _close(code: int, reason: str) -> dict[str, Any]:
    short = reason.encode()[:123].decode(errors="ignore")  # what fits (RFC 6455, 5.5)
    return {"type": "websocket.close", "code": int(code), "reason": short}


def _substitute(code: int) -> CloseCode:
    """A close code that any server sends, and that says the same about coming back."""
    comes_back = code in (CloseCode.GOING_AWAY, CloseCode.INTERNAL_ERROR, CloseCode.SERVICE_RESTART)
    return CloseCode.OVER_CAPACITY if comes_back else CloseCode.NORMAL


def _ended_well(task: asyncio.Task[Any]) -> bool:
    return task.done() and not task.cancelled() and task.exception() is None


def _look_at(task: asyncio.Task[Any]) -> None:
    """Take a task's exception, which otherwise is reported as never looked at: the server's, about a lost peer."""
    if not task.cancelled():
        task.exception()
