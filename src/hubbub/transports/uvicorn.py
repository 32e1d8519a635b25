"""The fast lane: a uvicorn WebSocket protocol class that Hubbub's sessions live in without a task or a queue each.

Use it with ``hubbub serve``, or with ``uvicorn --ws hubbub.transports.uvicorn:WebSocketProtocol
--http hubbub.transports.uvicorn:HttpProtocol`` (the second keeps bytes that arrive glued to the handshake, and gives
half-open handshakes a deadline). Any ASGI app works on it unchanged.

It follows uvicorn's contract for such classes: membership in ``server_state.connections`` earns a ``shutdown()`` call
and makes the server wait.
"""

from __future__ import annotations

import asyncio
import os
import socket
from struct import pack
from typing import TYPE_CHECKING, Any, Final, cast

from uvicorn.protocols.utils import get_local_addr, get_remote_addr, is_ssl

from hubbub import handshake
from hubbub.errors import CloseCode
from hubbub.frames import PONG, Close, Event, Ping, Pong, Reader, Violation, close_frame, frame
from hubbub.heartbeat import Verdict
from hubbub.messages import JSON, Codec
from hubbub.outbox import Entry, Outbox
from hubbub.ports import Request, Sink
from hubbub.transports.conversation import Conversation
from hubbub.transports.http import HttpProtocol
from hubbub.transports.lane import LANES, FastLane, changes
from hubbub.transports.shared import shared_of

if TYPE_CHECKING:
    from uvicorn.config import Config
    from uvicorn.server import ServerState

    from hubbub.batch import Batch
    from hubbub.session import Session
    from hubbub.stream import Publication

__all__ = ["HttpProtocol", "WebSocketProtocol"]
PING_FRAME: Final = b"\x89\x00"
DROP: Final = pack("ii", 1, 0)
"""SO_LINGER of 0 seconds: close with a RST, and forget what was not sent."""
CHUNK: Final = 65_536
PLAIN_BUFFER: Final = 65_536


_FORWARDED: Final = frozenset((b"x-forwarded-for", b"x-forwarded-proto"))
"""Headers that uvicorn's proxy middleware reads: a request with them takes the whole way through ASGI."""


class WebSocketProtocol(asyncio.Protocol):
    """One WebSocket connection: frames in, frames out, limits, closing. It is also the session's link.

    :ivar fd: the socket's descriptor while it may be written to directly; negative while it may not (the transport
        holds unsent bytes, TLS, closing). ``~fd`` is the descriptor of a connection that fell behind.
    :ivar out: frames to write at the end of this turn, or None.
    :ivar sink: who gets what arrives.
    """

    __slots__ = (
        "_abort_timer",
        "_closing",
        "_control",
        "_early",
        "_held",
        "_outbox",
        "_paused",
        "_paused_at",
        "_pong",
        "_reader",
        "_stash",
        "_yielding",
        "bucket",
        "code",
        "fd",
        "lane",
        "lost",
        "out",
        "partial_since",
        "seen",
        "session",
        "shared",
        "sink",
        "transport",
    )

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        self.shared = shared_of(config, server_state, app_state)
        self.transport: asyncio.Transport = None  # type: ignore[assignment]  # set before anything can use it
        self.sink: Sink | None = None
        self.session: Session | None = None
        self.lane: FastLane = LANES[JSON]
        self.fd = -1
        self.out: list[bytes] | None = None
        self.code = 0
        self.lost = False
        self.bucket = 0
        self._reader: Reader | None = None
        self._early: Any = None  # before the handshake: (client, server, tls); then bytes glued to it
        self._outbox: Outbox | None = None
        self._pong: bytes | None = None
        self.seen = 0.0
        self.partial_since = 0.0
        self._control = 0.0
        self._stash: list[Event] | None = None  # parsed, but nobody may have it before release()
        self._paused = False
        self._paused_at = 0.0
        self._closing = False
        self._held = False
        self._yielding = False
        self._abort_timer: asyncio.TimerHandle | None = None

    # -- the opening

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.begin(cast(asyncio.Transport, transport))  # uvloop's is none by inheritance

    def begin(self, transport: asyncio.Transport) -> None:
        """Start from a transport that has read the request's head."""
        self.transport = transport
        self.shared.server_state.connections.add(self)  # type: ignore[arg-type]  # uvicorn types its own classes only

    def refuse_opening(self, bad: handshake.BadRequest) -> None:
        """Answer an opening request that is not a proper one."""
        self.shared.refused("bad_request")
        self.refuse(bad.status, bad.reason.encode(), list(bad.headers))

    def upgrade(self, request: handshake.Request, rest: bytes) -> None:
        """Answer the opening request: refuse it, or run the app for it. ``rest`` is what came glued to it."""
        shared = self.shared
        reason = shared.gate.refuse(shared.open) if shared.gate is not None else None
        if reason is not None:
            shared.refused(reason)
            return self.refuse(503, b"over capacity, come back later", [(b"retry-after", b"5")])
        self._early = rest
        transport, headers = self.transport, request.headers
        client, tls = get_remote_addr(transport), is_ssl(transport)
        scheme = "wss" if tls else "ws"
        if shared.direct is not None and not _FORWARDED.intersection([name for name, _ in headers]):
            address = client[0] if client else ""
            opening = Request(request.path, request.query_string, headers, request.subprotocols, address, scheme)
            if shared.direct(self, opening, request.key):
                return None
        config = shared.config
        shared.open += 1
        scope = {
            "type": "websocket",
            "asgi": {"version": config.asgi_version, "spec_version": "2.4"},
            "http_version": "1.1",
            "scheme": scheme,
            "server": get_local_addr(transport),
            "client": client,
            "root_path": config.root_path,
            "path": config.root_path + request.path,
            "raw_path": config.root_path.encode() + request.raw_path,
            "query_string": request.query_string,
            "headers": headers,
            "subprotocols": request.subprotocols,
            "state": shared.app_state.copy(),
            "extensions": {"websocket.http.response": {}, "hubbub.link": self},
        }
        conversation = Conversation(self, scope, request.key)
        self.sink = conversation
        task = shared.loop.create_task(conversation.run(config.loaded_app))
        shared.server_state.tasks.add(task)
        task.add_done_callback(shared.server_state.tasks.discard)
        return None

    def refuse(self, status: int, body: bytes, headers: list[tuple[bytes, bytes]] | None = None) -> None:
        """Answer the opening request with an HTTP response and hang up."""
        self._closing = True
        self.code = CloseCode.ABNORMAL
        wanted = [*self.shared.default_headers(), *(headers or ())]
        self.transport.write(handshake.refuse_response(status, body=body, headers=wanted))
        self._hang_up()

    def accepted(self, response: bytes) -> None:
        """The app accepted: the connection is a WebSocket from here."""
        settings = self.shared.settings
        self._reader = Reader(settings.message_limit, settings.max_fragments)
        self.seen = self.shared.time()
        self.shared.set_user_timeout(self.transport.get_extra_info("socket"))
        self.transport.set_write_buffer_limits(high=PLAIN_BUFFER)
        # what the app says in this turn (the first replies of a session) leaves in the same write
        self.out = [response]
        self.shared.loop.call_soon(self.flush)
        self.shared.watch(self)
        if self._early:
            # a loop may read on before it calls: what came first must be parsed first
            self._take_turns(True)
            self.transport.pause_reading()
            self.shared.loop.call_soon(self._read_early)

    def take_over(self, sink: Sink, codec: Codec, max_size: int | None = None) -> None:
        """Leave ASGI: from here ``sink`` gets every message, and nothing of the conversation stays."""
        if self.sink is None:
            self.shared.open += 1
        self.sink = sink
        self.lane = LANES[codec]
        if max_size is not None:
            self._reader = Reader(max_size, self.shared.settings.max_fragments)
        transport = self.transport
        # with a limit of 0 the transport says pause_writing() exactly while it holds bytes that the kernel did not take
        transport.set_write_buffer_limits(high=0)
        sock: socket.socket = transport.get_extra_info("socket")
        if is_ssl(transport):
            return  # bytes must go through the TLS layer
        self._set_fd(~sock.fileno())
        self._try_direct()

    def _set_fd(self, fd: int) -> None:
        """The only place that changes it: from here no list of descriptors made before is used any more."""
        self.fd = fd
        changes[0] += 1

    def _try_direct(self) -> None:
        """Write to the descriptor from here on, once nothing written through the transport is unsent."""
        if self.fd >= 0 or self.fd == -1 or self._closing or self._paused:
            return
        if self.transport.get_write_buffer_size():
            self.shared.loop.call_soon(self._try_direct)
        else:
            self._set_fd(~self.fd)
            if self._outbox is not None:
                self.resume_writing()

    def _read_early(self) -> None:
        early, self._early = self._early, None
        self._take_turns(False)
        if not self.lost:
            self.data_received(early)
            self._read_on()

    # -- reading

    def data_received(self, data: bytes) -> None:
        reader = self._reader
        if reader is None:
            return self._before_accept(data)
        shared = self.shared
        self.seen = shared.now
        self._dispatch(reader.receive(data, shared.turn_frames))
        if reader.partial:
            if not self.partial_since:
                self.partial_since = shared.now
        else:
            self.partial_since = 0.0
        if reader.more or len(data) > shared.turn_bytes:
            self._yield_turn()
        return None

    def _dispatch(self, events: list[Event]) -> None:
        if self._held:
            self._stash = (self._stash or []) + events
            return
        for index, event in enumerate(events):
            if type(event) is str or type(event) is bytes:
                self.partial_since = 0.0
                if not self._closing:
                    self.sink.received(self, event)  # type: ignore[union-attr]  # set since upgrade()
            else:
                self._control_frame(event)  # type: ignore[arg-type]  # messages are the other branch
            if self._held:
                self._stash = events[index + 1 :]
                return

    def _before_accept(self, data: bytes) -> None:
        if self.sink is None and not self._closing:
            # uvicorn's own HTTP class hands us the request's head once more as text
            head, end, rest = data.partition(b"\r\n\r\n")
            try:
                request = handshake.parse(head + end)
            except handshake.BadRequest as bad:
                self.refuse_opening(bad)
            else:
                self.upgrade(request, rest)
        elif isinstance(self._early, bytes) and not self._closing:
            self._early += data
            if len(self._early) > self.shared.settings.message_limit:
                self.abort()  # nobody may send before the 101, and so much least of all

    def _yield_turn(self) -> None:
        """This connection has had its share of this turn: the others first, then the rest."""
        if not self._yielding and not self.lost:
            self._take_turns(True)
            self.transport.pause_reading()
            self.shared.loop.call_soon(self._next_turn)

    def _take_turns(self, yielding: bool) -> None:
        if yielding != self._yielding:
            self._yielding = yielding
            self.shared.share(1 if yielding else -1)

    def _next_turn(self) -> None:
        self._take_turns(False)
        if self.lost or self._held:
            return
        stash, self._stash = self._stash, None
        if stash:
            self._dispatch(stash)
        if not self._held:
            self.data_received(b"")
        self._read_on()

    def _read_on(self) -> None:
        if not self._yielding and not self._held and not self.lost and not self.transport.is_closing():
            self.transport.resume_reading()

    def hold(self) -> None:
        """Read no further until :meth:`release`: somebody has enough to do. Silence is not held against the peer."""
        if not self._held and not self.lost:
            self._held = True
            self.transport.pause_reading()

    def release(self) -> None:
        if self._held:
            self._held = False
            if not self._yielding and not self.lost:
                self._take_turns(True)
                self.shared.loop.call_soon(self._next_turn)

    def eof_received(self) -> bool:
        if self._paused:
            self.abort()  # close() would wait for a flush that may never come
        else:
            self._abort_later()
        return False

    def _control_frame(self, event: Ping | Pong | Close | Violation) -> None:
        if type(event) is Violation:
            self.shared.counters.violations[event.code] = self.shared.counters.violations.get(event.code, 0) + 1
            self.close(event.code, event.reason)
            self._send_eof()
            return
        if type(event) is Close:
            self._peer_closes(event)
            return
        rate = self.shared.control_rate
        if rate is not None:
            tat = rate.take(self._control, self.shared.time())
            if tat < 0:
                if not self._closing:
                    self.shared.counters.control_floods += 1
                    self.close(CloseCode.POLICY_VIOLATION, "too many control frames")
                return
            self._control = tat
        if type(event) is Ping and not self._closing:
            if self.behind:
                self._pong = event.data  # only the newest ping must be answered (RFC 6455, 5.5.3)
            else:
                self.write(frame(PONG, event.data))

    def _peer_closes(self, event: Close) -> None:
        if not self._closing:
            self._closing = True
            self.code = event.code
            self._write_last(close_frame(event.code))
        self._hang_up()

    # -- writing

    @property
    def closing(self) -> bool:
        return self._closing or self.lost

    @property
    def behind(self) -> bool:
        return self._paused

    @property
    def in_many(self) -> bool:
        """True when more than one channel may write to this connection in one turn."""
        return self.session is not None and len(self.session.channels) > 1

    def send(self, payload: bytes) -> None:
        if self._closing:
            return
        data = frame(self.lane.codec.opcode, payload)
        if self.out is None:
            self.out = [data]
            self.sink.touched(self)  # type: ignore[union-attr]  # only a sink's session sends
        else:
            self.out.append(data)

    def flush(self) -> None:
        out = self.out
        if out is not None:
            self.out = None
            self.write(out[0] if len(out) == 1 else b"".join(out))

    def write(self, data: bytes) -> None:
        """Write whole frames that are no channel's: now if the socket takes them, else as a slow reader's."""
        if self.out is not None:
            out, self.out = self.out, None
            data = b"".join((*out, data))
        fd = self.fd
        if fd >= 0:
            try:
                sent = os.write(fd, data)
            except BlockingIOError:
                sent = 0
            except OSError:
                self.transport.abort()
                return
            if sent != len(data):
                self.fall_behind(data[sent:])
        elif self._closing or self.lost:
            return
        elif self._paused or self._outbox is not None:
            self._queue(Entry(data, self.shared.now))
        else:
            self.transport.write(data)

    def fall_behind(self, rest: bytes) -> None:
        """The kernel did not take all: give the rest to the transport, and queue what follows until it is gone."""
        self._set_fd(~self.fd)
        self.transport.write(rest)  # calls pause_writing() unless it could write after all
        if not self._paused:
            self._try_direct()

    def fall_behind_in(self, batch: Batch, rest: bytes) -> None:
        """The same in a channel's batch. What is more than the outbox may hold is for the channel's policy."""
        if len(rest) <= self.shared.settings.outbox_bytes:
            self.fall_behind(rest)
            return
        opcode, unsent = self.lane.codec.opcode, len(rest)
        whole: list[tuple[Publication, bytes]] = []
        for publication, payload in reversed(batch.for_link(self, self.lane.codec)):
            data = frame(opcode, payload)
            if len(data) > unsent:
                break
            whole.append((publication, data))
            unsent -= len(data)
        self._set_fd(~self.fd)
        self.transport.write(rest[:unsent])  # the end of the frame that is half sent
        for publication, data in reversed(whole):
            if not self._queue_publication(batch, publication, data):
                return
        if not self._paused:
            self.resume_writing()

    def deliver_with_care(self, batch: Batch, data: bytes, merge: bool) -> None:
        """A channel's batch for a connection that is not in the plain case."""
        if self._closing or self.lost:
            return
        if self.out is not None and self.out[0].startswith(b"HTTP/"):
            self.flush()  # opened in this very turn: nothing goes before the 101
        if batch.excluded is not None and self in batch.excluded:
            opcode = self.lane.codec.opcode
            data = b"".join([frame(opcode, payload) for _, payload in batch.for_link(self, self.lane.codec)])
            if not data:
                return
        if self._paused or self._outbox is not None:
            self._queue_batch(batch)
        elif merge and self.in_many:
            if self.out is None:
                self.out = [data]
                self.sink.touched(self)  # type: ignore[union-attr]  # in a channel, so it has a sink
            else:
                self.out.insert(0, data)  # acks go after what they acknowledge
        elif self.out is not None:
            out, self.out = self.out, None
            self.write(b"".join((data, *out)))
        else:
            self.write(data)

    def _queue_batch(self, batch: Batch) -> None:
        codec = self.lane.codec
        for publication, payload in batch.for_link(self, codec):
            if not self._queue_publication(batch, publication, frame(codec.opcode, payload)):
                return

    def _queue_publication(self, batch: Batch, publication: Publication, data: bytes) -> bool:
        now = self.shared.now
        return self._queue(Entry(data, now, batch.channel, batch.policy, publication.key, publication.offset))

    def _queue(self, entry: Entry) -> bool:
        outbox = self._outbox
        if outbox is None:
            settings = self.shared.settings
            outbox = self._outbox = Outbox(settings.outbox_bytes, settings.outbox_seconds, self.shared.counters.drops)
        if outbox.add(entry):
            return True
        self.close(CloseCode.SLOW, "slow")
        return False

    def overdue(self, now: float) -> bool:
        limit = self.shared.settings.outbox_seconds
        # the transport holds older bytes than the outbox: as old as the pause
        stuck = self._paused and bool(limit) and now - self._paused_at >= limit
        return stuck or (self._outbox is not None and self._outbox.overdue(now))

    def pause_writing(self) -> None:
        if not self._paused:
            self._paused = True
            self._paused_at = self.shared.time()
            if self.fd >= 0:
                self._set_fd(~self.fd)
            self.shared.counters.stalled += 1
            if self.sink is not None:
                self.sink.wrote_behind(self)

    def resume_writing(self) -> None:
        self._paused = False
        if self.lost:
            return
        pong, self._pong = self._pong, None
        if pong is not None and not self._closing:
            self.transport.write(frame(PONG, pong))
        outbox = self._outbox
        while outbox is not None and not self._paused and not self._closing:
            chunk = outbox.take(CHUNK, self._gap)
            if not chunk:
                outbox = self._outbox = None
            else:
                self.transport.write(chunk)
        if not self._paused:
            self._try_direct()
            if self.sink is not None:
                self.sink.caught_up(self)

    def _gap(self, channel: str, offset: int) -> bytes:
        assert self.sink is not None  # only a channel's frames are dropped, and only a sink has channels
        return frame(self.lane.codec.opcode, self.sink.gap(self, channel, offset))

    # -- time

    def excuse(self, seconds: float) -> None:
        """So much of the time that has passed does not count."""
        self.seen += seconds
        if self.partial_since:
            self.partial_since += seconds

    def visit(self, now: float) -> None:
        """The heartbeat wheel's turn: is the peer alive, and is its message finished?"""
        if self._closing or self._reader is None:
            return
        if self._held or self._yielding:
            self.seen = now  # we do not listen, so silence is ours
            return
        limit = self.shared.settings.message_timeout
        if limit and self.partial_since and now - self.partial_since >= limit:
            self.close(CloseCode.POLICY_VIOLATION, "message not finished in time")
            return
        verdict = self.shared.wheel.judge(now - self.seen)
        if verdict is Verdict.DEAD:
            self.shared.counters.heartbeats_lost += 1
            self.code = CloseCode.HEARTBEAT_LOST
            self._write_last(close_frame(CloseCode.HEARTBEAT_LOST, "heartbeat lost"))
            self.abort()
        elif verdict is Verdict.PING and not self._paused:
            self.write(PING_FRAME)

    # -- closing

    def close(self, code: int, reason: str = "") -> None:
        """Send what is queued and a close frame; abort when the peer does not answer within the close timeout."""
        if self._closing or self.lost:
            return
        out, self.out = self.out, None
        self._closing = True
        self.code = code
        if self._outbox is not None:
            self._outbox.give_up()
            self._outbox = None
        self._write_last(b"".join((*(out or ()), close_frame(code, reason))))
        self._abort_later()
        if self._held:
            self.release()  # the peer's answer must be read

    def _write_last(self, data: bytes) -> None:
        fd = self.fd
        self._set_fd(-1)
        if fd >= 0:
            try:
                sent = os.write(fd, data)
            except BlockingIOError:
                sent = 0
            except OSError:
                self.transport.abort()
                return
            data = data[sent:]
        if data:
            self.transport.write(data)

    def _send_eof(self) -> None:
        """RFC 6455, 7.1.7: what failed is closed without waiting. Closing with bytes unread would reset the connection
        and could take our close frame with it; so only our half is closed, and the rest is read and thrown away."""
        if self.transport.is_closing():
            return
        if self.transport.can_write_eof():
            self.transport.write_eof()
        else:
            self._hang_up()

    def _hang_up(self) -> None:
        self.transport.close()
        self._abort_later()

    def _abort_later(self) -> None:
        if self._abort_timer is None and not self.lost:
            self._abort_timer = self.shared.loop.call_later(self.shared.settings.close_timeout, self.abort)

    def abort(self) -> None:
        if self.lost:
            return
        self._set_fd(-1)
        self._closing = True
        if self._paused or self._abort_timer is not None:
            # what waits in the kernel for a peer that does not read would stay there until TCP gives up: drop it
            sock: socket.socket = self.transport.get_extra_info("socket")
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, DROP)
        self.transport.abort()

    def shutdown(self) -> None:
        """uvicorn is stopping: it waits while this connection stays in its set."""
        if self.sink is not None:
            self.sink.drain(self)
        else:
            self.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost = self._closing = True
        self._take_turns(False)
        self._set_fd(-1)  # the number may belong to another connection from here on
        self.out = self._outbox = self._reader = None
        if self._abort_timer is not None:
            self._abort_timer.cancel()
            self._abort_timer = None
        self.shared.server_state.connections.discard(self)
        self.shared.wheel.discard(self)
        sink, self.sink = self.sink, None
        if sink is not None:
            self.shared.open -= 1
            sink.lost(self, self.code or CloseCode.ABNORMAL)
        self.session = None
