"""The hub of one node: sessions, channels, turns of the loop. It alone decides how a publication reaches sockets.

Features decide what is published and who may subscribe; transports own the sockets; the broker owns the past.
"""

from __future__ import annotations

import asyncio
import logging
import re
import secrets
import types
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Generator, Iterable
from functools import lru_cache
from time import perf_counter
from typing import Any, Final, TypeAlias

from hubbub.auth import TokenVerifier, find_token, origin_allowed
from hubbub.batch import Batch
from hubbub.channel import Channel, Fanout
from hubbub.errors import AuthenticationFailed, ClientError, CloseCode, ErrorCode
from hubbub.limits import Rate, Slots, address_key
from hubbub.messages import (
    Auth,
    AuthSuccess,
    ClientMessage,
    Error,
    Gap,
    Inbox,
    Position,
    PresenceChanged,
    ServerMessage,
    TokenExpiring,
    WrongMessage,
    error_message,
    rfc3339,
)
from hubbub.metrics import Metrics
from hubbub.patterns import Patterns
from hubbub.ports import Broker, Clock, Lane, Link, Request
from hubbub.session import Session, State, User
from hubbub.settings import ChannelOptions, Settings
from hubbub.stream import Publication, Recovery

log = logging.getLogger("hubbub")

SWEEP: Final = 0.5
"""Seconds between two sweeps."""
REMEMBER_REVOCATION: Final = 400 * 86_400.0
"""Seconds for which a revoked `jti` is remembered where no live session says when its token ends."""
SESSION_ID: Final = re.compile(r"[A-Za-z0-9_-]{16,64}")
PERSONAL: Final = "user:"
EPHEMERAL: Final = ChannelOptions(history_size=0)

Handler: TypeAlias = Callable[[Session, Any], "Coroutine[Any, Any, None] | None"]
RosterObserver: TypeAlias = Callable[[Channel, list[str], list[str]], None]


class Route:
    """A kind of client message: who handles it, and how often it came.

    :ivar anonymous: whether it may come before ``auth``.
    """

    __slots__ = ("anonymous", "failed", "handle", "name", "received")

    def __init__(self, name: str, handle: Handler, anonymous: bool = False) -> None:
        self.name = name
        self.handle = handle
        self.anonymous = anonymous
        self.received = 0
        self.failed = 0


class Hub:
    """Everything of one node that lives as long as the process.

    :param settings: every limit and timeout.
    :param broker: where publications go, and come from.
    :param clock: the two clocks.
    """

    def __init__(self, settings: Settings, broker: Broker, clock: Clock) -> None:
        self.settings = settings
        self.broker = broker
        self.clock = clock
        self.verifier = TokenVerifier(settings)
        self.metrics = Metrics()
        self.fanout = Fanout(self._schedule)
        self.sessions: dict[Session, None] = {}
        self.users: dict[str, User] = {}
        self.channels: dict[str, Channel] = {}
        self.routes: dict[type[ClientMessage], Route] = {}
        self.draining = False
        self.behind: set[Link] = set()
        self.observers: list[tuple[str, RosterObserver]] = []
        self.leavers: list[Callable[[Session], None]] = []
        self.sweepers: list[Callable[[float], None]] = []
        self.openers: list[Callable[[Session], Coroutine[Any, Any, None]]] = []
        self.channel_rules: list[tuple[str, ChannelRule]] = []
        self._reserved: tuple[str, ...] = ()
        self.options_for = lru_cache(maxsize=65_536)(self._find_options)
        self._patterns = [(Patterns((pattern,)), options) for pattern, options in settings.channels.items()]
        self._inbox = Inbox(())
        self._waiting: dict[Session, float] = {}
        self._expiries: dict[int, set[Session]] = {}
        self._graces: deque[tuple[float, str]] = deque()
        self._told: dict[Channel, None] = {}
        self._touched: list[Link] = []
        self._scheduled = False
        self._addresses: Slots[str] = Slots()
        self._rate = Rate.per_second(settings.rate_limit, settings.rate_burst)
        self._user_rate = Rate.per_second(settings.user_rate_limit, settings.user_rate_burst)
        self._limited = self._rate is not None or self._user_rate is not None
        self._abuse_rate = Rate.per_second(settings.abuse_limit / 60, settings.abuse_limit)
        self._tasks: set[asyncio.Task[None]] = set()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._timer: asyncio.TimerHandle | None = None

    # -- start and stop

    @property
    def reserved(self) -> tuple[str, ...]:
        """Prefixes of channels that belong to features."""
        return self._reserved

    def reserve(self, prefix: str, rule: ChannelRule) -> None:
        """Give the channels with a prefix to a feature. Before :meth:`start`."""
        self.channel_rules.append((prefix, rule))
        self._reserved = (*self._reserved, prefix)

    def route(self, struct: type[ClientMessage], handle: Handler, *, anonymous: bool = False) -> None:
        """Say who handles a kind of message. Before :meth:`start`."""
        name = str(struct.__struct_config__.tag)
        if name in self._inbox.types:
            raise ValueError(f"two handlers for messages of type {name!r}")
        self.routes[struct] = Route(name, handle, anonymous)
        self._inbox = Inbox((*self._inbox.types.values(), struct))

    async def ensure_started(self) -> None:
        """Start if that was not done: mounted apps get no lifespan from Starlette."""
        if self._loop is None:
            await self.start()

    async def start(self) -> None:
        """Connect the broker and begin to sweep."""
        self._loop = asyncio.get_running_loop()
        self.metrics.started = self.clock.monotonic()
        await self.broker.start(self)
        self._timer = self._loop.call_later(SWEEP, self._tick)

    async def stop(self) -> None:
        """Let go of what is left. Sessions were drained before."""
        if self._timer is not None:
            self._timer.cancel()
        for session in list(self.sessions):
            session.link.abort()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self.broker.stop()

    def refuse(self, connections: int) -> str | None:
        """The Gate: why no further connection may come in now, or None."""
        if self.draining:
            return "draining"
        limit = self.settings.max_connections
        return "capacity" if limit and connections >= limit else None

    # -- opening and closing a session

    def origin_ok(self, request: Request) -> bool:
        """Whether a page of the request's origin may connect."""
        origin = host = None
        for name, value in request.headers:
            if name == b"origin":
                origin = value
            elif name == b"host":
                host = value
        return origin_allowed(origin, host, request.scheme, self.settings.origins)

    def open(self, link: Link, request: Request, room: str | None = None) -> Session:
        """Start a session on an accepted connection; sign it in if the request carried a token."""
        now = self.clock.monotonic()
        address = address_key(request.address)
        session = Session(link, address, now, room)
        link.session = session
        self.sessions[session] = None
        self.metrics.opened += 1
        if not self._addresses.acquire(address, self.settings.max_connections_per_address):
            session.address = ""  # nothing to give back
            self.metrics.limited("address")
            self.reply(session, _error(ErrorCode.TOO_MANY, "too many connections from this address", 30.0))
            self.close(session, CloseCode.RATE_LIMITED, "too many connections from this address")
            return session
        token = find_token(request.headers, request.query_string, request.subprotocols, self.settings.cookie_name)
        if token is None:
            if self.settings.auth_timeout:
                self._waiting[session] = now + self.settings.auth_timeout
            return session
        try:
            self.sign_in(session, token.value, _query(request.query_string, b"session"))
        except ClientError as error:
            self.refuse_message(session, error, None)
        return session

    def sign_in(self, session: Session, token: str, previous: str | None, message: Auth | None = None) -> None:
        """Check a token, then open the session or, on an open one, take over its fresh token.

        :raises ClientError: the token is not good, is another user's, or the user has too many sessions.
        """
        now = self.clock.time()
        fresh = session.state is not State.OPEN
        try:
            identity = self.verifier.verify(token, now)
        except AuthenticationFailed as error:
            self.metrics.auth_failed(error.reason)
            if session.state is State.OPEN:
                error.close = None  # the token that it has is still good
            raise
        if session.state is State.OPEN:
            if session.user is None or identity.user_id != session.user.id:
                raise ClientError(ErrorCode.FORBIDDEN, "the token is another user's: open another connection")
            self._forget_expiry(session)
        else:
            self._enter(session, identity.user_id, previous)
        session.identity = identity
        session.warned = False
        self._expiries.setdefault(self._minute(identity.expires), set()).add(session)
        reply = AuthSuccess(
            user_id=identity.user_id,
            session=session.id,
            heartbeat=self.settings.heartbeat_interval,
            token_expires=identity.expires,
            ref=message.ref if message is not None else None,
        )
        self.reply(session, reply)
        if fresh:
            for opener in self.openers:
                self._step(session, message, opener(session))

    def _enter(self, session: Session, user_id: str, previous: str | None) -> None:
        user = self.users.get(user_id) or User(user_id)
        declared = previous is not None and SESSION_ID.fullmatch(previous) is not None
        for other in user.sessions:
            if declared and other.id == previous:  # the same device is back before we noticed that it was gone
                self.close(other, CloseCode.REPLACED, "replaced by a newer connection")
                self._leave(other)
        limit = self.settings.max_connections_per_user
        if limit and len(user.sessions) >= limit:
            self.metrics.limited("user")
            raise ClientError(
                ErrorCode.TOO_MANY,
                f"a user may have at most {limit} connections",
                close=CloseCode.RATE_LIMITED,
                retry_after=30.0,
            )
        if not session.move(State.OPEN):
            raise ClientError(ErrorCode.CONFLICT, "the session is over")
        session.id = previous if declared and previous is not None else secrets.token_urlsafe(16)
        session.declared = declared
        self.users[user_id] = user
        user.add(session)
        session.user = user
        self._waiting.pop(session, None)

    def _minute(self, expires: float) -> int:
        return int((expires - self.settings.token_warning) // 60)

    def _forget_expiry(self, session: Session) -> None:
        if session.identity is not None:
            minute = self._minute(session.identity.expires)
            sessions = self._expiries.get(minute)
            if sessions is not None:
                sessions.discard(session)
                if not sessions:
                    del self._expiries[minute]

    def close(self, session: Session, code: CloseCode, reason: str = "") -> None:
        """Close a session's connection; what belongs to it is freed when the connection is gone."""
        session.link.close(code, reason)

    def lost(self, link: Link, code: int) -> None:
        """A connection is gone: forget everything of its session."""
        session = link.session
        self.behind.discard(link)
        if session is None or session not in self.sessions:
            return
        self._leave(session)
        del self.sessions[session]
        self._addresses.release(session.address) if session.address else None
        session.busy = None
        link.session = None
        self.metrics.closed(code, self.clock.monotonic() - session.started)

    def _leave(self, session: Session) -> None:
        """Take a session out of its channels and its user's sessions; idempotent."""
        if session.state is State.CLOSED:
            return
        session.state = State.CLOSED
        self._waiting.pop(session, None)
        self._forget_expiry(session)
        for leaver in self.leavers:
            leaver(session)
        for name in list(session.channels):
            self.detach(session, name)
        if session.user is not None:
            session.user.discard(session)
            if not session.user.sessions and session.user.tat <= self.clock.monotonic():
                self.users.pop(session.user.id, None)

    # -- messages in

    def received(self, link: Link, message: str | bytes) -> None:
        """A message of a client, from its transport. Never raises."""
        session = link.session
        if session is None or session.state is State.CLOSED:
            return
        if session.busy is not None:
            session.busy.append(message)
            if len(session.busy) >= self.settings.request_queue:
                link.hold()
            return
        self._handle(session, message)

    def _handle(self, session: Session, message: str | bytes) -> None:
        command: ClientMessage | None = None
        try:
            if self._limited:
                session.take(self._rate, self._user_rate, self.clock.monotonic())
            if (type(message) is str) is not session.link.lane.codec.is_json:
                raise _wrong_frame(session)
            command = self._inbox.decode(message)
            route = self.routes[type(command)]
            route.received += 1
            if session.state is not State.OPEN and not route.anonymous:
                raise ClientError(
                    ErrorCode.AUTHENTICATION_REQUIRED, "send an auth message first", close=CloseCode.UNAUTHORIZED
                )
            if not route.received & 63:
                began = perf_counter()
                running = route.handle(session, command)
                if running is not None:
                    self._step(session, command, running)
                self.metrics.handlers.add(perf_counter() - began)
                return
            running = route.handle(session, command)
            if running is not None:
                self._step(session, command, running)
        except Exception as error:
            self._failed(session, command, error)

    def _step(self, session: Session, command: ClientMessage | None, running: Coroutine[Any, Any, None]) -> None:
        """Run a handler as far as it goes without waiting: nearly always to its end, and then no task is made."""
        try:
            waits_for = running.send(None)
        except StopIteration:
            return
        except Exception as error:
            self._failed(session, command, error)
            return
        session.busy = []
        assert self._loop is not None
        task = self._loop.create_task(self._finish(session, command, _resume(running, waits_for)))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _finish(self, session: Session, command: ClientMessage | None, rest: Awaitable[None]) -> None:
        try:
            async with asyncio.timeout(self.settings.handler_timeout or None):
                await rest
        except TimeoutError:
            self._failed(session, command, ClientError(ErrorCode.BUSY, "this took too long", retry_after=1.0))
        except Exception as error:
            self._failed(session, command, error)
        self._next(session)

    def _next(self, session: Session) -> None:
        """The handler is done: take up what came meanwhile, in order."""
        queue = session.busy or []
        session.busy = None
        while queue and session.state is not State.CLOSED:
            self._handle(session, queue.pop(0))
            if session.busy is not None:
                session.busy.extend(queue)
                return
        if session.state is not State.CLOSED:
            session.link.release()

    def _failed(self, session: Session, command: ClientMessage | None, error: Exception) -> None:
        ref = command.ref if command is not None else None
        if isinstance(error, ClientError):
            self.refuse_message(session, error, ref)
            return
        fault = secrets.token_hex(6)
        log.error("a handler failed", exc_info=error, extra={"fault": fault, "type": type(command).__name__})
        self.metrics.refused("internal")
        text = f"something went wrong on our side; the log has it as {fault}"
        self.reply(session, Error(code=ErrorCode.INTERNAL, message=text, id=fault, ref=ref))

    def refuse_message(self, session: Session, error: ClientError, ref: str | None) -> None:
        """Tell a client of a refusal; close the connection where the refusal or repeated abuse asks for it."""
        if isinstance(error, WrongMessage):
            ref = error.ref
        self.metrics.refused(error.code)
        self.reply(session, error_message(error, ref))
        close = error.close
        if close is None and error.code in _ABUSE:
            close = session.misbehaved(self._abuse_rate, self.clock.monotonic())
            if close is not None:
                self.metrics.limited("abuse")
        if close is not None:
            self.close(session, close, str(error.code))

    # -- messages out

    def reply(self, session: Session, message: ServerMessage) -> None:
        """Send one message to one session, at the end of the turn."""
        link = session.link
        link.send(link.lane.codec.encode(message))

    def touched(self, link: Link) -> None:
        self._touched.append(link)
        self._schedule()

    def wrote_behind(self, link: Link) -> None:
        self.behind.add(link)

    def caught_up(self, link: Link) -> None:
        self.behind.discard(link)

    def gap(self, link: Link, channel: str, offset: int) -> bytes:
        self.metrics.dropped("slow", 1)
        local = self.channels.get(channel)
        epoch = local.epoch if local is not None else ""
        return link.lane.codec.encode(Gap(channel=channel, epoch=epoch, offset=offset))

    def _schedule(self) -> None:
        if not self._scheduled:
            self._scheduled = True
            assert self._loop is not None, "the hub was not started"
            self._loop.call_soon(self._turn)

    def _turn(self) -> None:
        """The end of a turn: tell of comings and goings, write the batches, then what is left of the replies."""
        self._scheduled = False
        if self._told:
            self._tell()
        self.fanout.turn()
        touched, self._touched = self._touched, []
        for link in touched:
            link.flush()

    # -- channels

    def _find_options(self, name: str) -> ChannelOptions:
        for pattern, options in self._patterns:
            if pattern(name):
                return options
        for prefix, rule in self.channel_rules:
            if name.startswith(prefix):
                return rule.options
        return _DEFAULT_OPTIONS

    async def attach(
        self, session: Session, name: str, since: Position | None, options: ChannelOptions, *, watch: bool = False
    ) -> Recovery:
        """Subscribe a session and say what it missed. It gets every publication after the returned position.

        :raises ClientError: ``too_many`` subscriptions.
        """
        session.subscribe(name, self.settings.max_channels_per_session)
        channel = self.channels.get(name)
        try:
            if channel is None:
                channel = self.channels[name] = Channel(name, options)
                await self.broker.subscribe(name)
            recovery = await self.broker.recover(name, since, self.settings.recovery_limit, options)
        except BaseException:
            self.detach(session, name)
            raise
        # no await from here: what the broker hands over next is after the position
        self.fanout.seal(channel)
        if session.state is State.CLOSED:
            self._release(channel)
            return recovery
        channel.epoch = recovery.position.epoch
        link = session.link
        was_new = link not in channel.lanes.get(link.lane, ())
        channel.add(link)
        if watch:
            channel.watchers = {*(channel.watchers or ()), link}
        if channel.roster is not None and was_new and session.user is not None:
            info = session.identity.info if session.identity is not None else None
            if channel.roster.join(session.user.id, self.clock.time(), info):
                self._note(channel, session.user.id, came=True)
        return recovery

    def visible(self, session: Session, publications: Iterable[Publication]) -> list[Publication]:
        """Leave out what this session published itself with ``exclude_self``, now or before it reconnected."""
        return [publication for publication in publications if not self._is_own(session, publication)]

    def _is_own(self, session: Session, publication: Publication) -> bool:
        if publication.origin is None or session.user is None or publication.user != session.user.id:
            return False
        if session.declared or publication.origin == session.id:
            return publication.origin == session.id
        # It did not say which session it continues. Then it is taken for the publisher come back, unless that one lives.
        return all(other.id != publication.origin for other in session.user.sessions)

    def detach(self, session: Session, name: str) -> bool:
        """End a subscription; what was published before still reaches the session. False if there was none."""
        if not session.unsubscribe(name):
            return False
        channel = self.channels.get(name)
        if channel is None:
            return True
        self.fanout.seal(channel)
        link = session.link
        was_in = link in channel.lanes.get(link.lane, ())
        channel.discard(link)
        if channel.roster is not None and was_in and session.user is not None:
            user_id, grace = session.user.id, self.settings.presence_grace
            now = self.clock.monotonic()
            if channel.roster.leave(user_id, now, grace):
                self._note(channel, user_id, came=False)
            elif not channel.roster.devices(user_id):
                self._graces.append((now + grace, name))
        self._release(channel)
        return True

    def _release(self, channel: Channel) -> None:
        if channel.empty and channel not in self._told and self.channels.get(channel.name) is channel:
            del self.channels[channel.name]
            self.spawn(self.broker.unsubscribe(channel.name))

    def spawn(self, work: Coroutine[Any, Any, None]) -> None:
        """Run something that nobody waits for: at once as far as it goes, the rest as a task."""
        try:
            waits_for = work.send(None)
        except StopIteration:
            return
        assert self._loop is not None
        task = self._loop.create_task(_await(_resume(work, waits_for)))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def deliver(self, channel: str, publication: Publication) -> None:
        """The Inlet: a publication from the broker, in offset order per channel."""
        if channel.startswith(PERSONAL):
            self._deliver_personal(channel[len(PERSONAL) :], publication)
            return
        local = self.channels.get(channel)
        if local is None or not local.size:
            return
        exclude = None
        if publication.origin is not None and publication.user is not None:
            user = self.users.get(publication.user)
            for session in user or ():
                if session.id == publication.origin:
                    exclude = session.link
        self.fanout.add(local, publication, exclude)

    def _deliver_personal(self, user_id: str, publication: Publication) -> None:
        for session in self.users.get(user_id, ()):
            if session.state is State.OPEN:
                session.link.send(session.link.lane.codec.convert(publication.payload))
                self.fanout.deliveries += 1

    def everyone(self, payload: bytes, exclude: frozenset[str] = frozenset()) -> int:
        """Send a message (JSON text) to all signed-in sessions but those of some users. Returns to how many."""
        lanes: dict[Lane, list[Link]] = {}
        count = 0
        for session in self.sessions:
            if session.state is State.OPEN and session.user is not None and session.user.id not in exclude:
                lanes.setdefault(session.link.lane, []).append(session.link)
                count += 1
        batch = Batch("", "disconnect")
        batch.add(Publication(payload))
        self.fanout.everyone(batch, lanes.items())
        return count

    def sessions_of(self, user_id: str) -> int:
        """Live sessions of a user on this node."""
        user = self.users.get(user_id)
        return 0 if user is None else len(user.sessions)

    def disconnect(self, user_id: str, code: CloseCode = CloseCode.NORMAL, reason: str = "") -> int:
        """Close all sessions of a user. Returns how many."""
        sessions = list(self.users.get(user_id, ()))
        for session in sessions:
            self.close(session, code, reason)
        return len(sessions)

    def revoke(self, *, user_id: str | None = None, token_id: str | None = None) -> int:
        """Refuse a user's tokens issued until now, or one token; close (4401) the sessions that live on them."""
        now = self.clock.time()
        if user_id is not None:
            self.verifier.revoke_user(user_id, now)
        if token_id is not None:
            lives = [s.identity.expires for s in self.sessions if s.identity and s.identity.token_id == token_id]
            self.verifier.revoke_token(token_id, now, max([now + REMEMBER_REVOCATION, *lives]))
        users = [self.users[user_id]] if user_id in self.users else []
        candidates = [s for user in users for s in user] if token_id is None else list(self.sessions)
        count = 0
        for session in candidates:
            if session.identity is not None and self.verifier.is_revoked(session.identity):
                self.reply(session, _error(ErrorCode.AUTHENTICATION_FAILED, "the token was revoked"))
                self.close(session, CloseCode.UNAUTHORIZED, "revoked")
                count += 1
        return count

    # -- presence

    def _note(self, channel: Channel, user_id: str, *, came: bool) -> None:
        """Tell of it at the end of the turn; a user who came and went (or the reverse) in one turn is not told of."""
        new, left = channel.new or set(), channel.left or set()
        if came:
            left.discard(user_id) if user_id in left else new.add(user_id)
        else:
            new.discard(user_id) if user_id in new else left.add(user_id)
        channel.new, channel.left = new, left
        self._told[channel] = None
        self._schedule()

    def _tell(self) -> None:
        told, self._told = self._told, {}
        for channel in told:
            joined, left = sorted(channel.new or ()), sorted(channel.left or ())
            channel.new = channel.left = None
            if joined or left:
                self._observer(channel.name)(channel, joined, left)
            self._release(channel)

    def _observer(self, name: str) -> RosterObserver:
        for prefix, observer in self.observers:
            if name.startswith(prefix):
                return observer
        return self._presence_changed

    def _presence_changed(self, channel: Channel, joined: list[str], left: list[str]) -> None:
        if channel.watchers is None or channel.roster is None:
            return
        count = len(channel.roster)
        if count > self.settings.presence_limit:
            message = PresenceChanged(channel=channel.name, joined={}, left=[], count=count)
        else:
            here = channel.roster.snapshot()
            users = {user: present(dict(here[user])) for user in joined if user in here}
            message = PresenceChanged(channel=channel.name, joined=users, left=left, count=count)
        for link in channel.watchers:
            link.send(link.lane.codec.encode(message))

    # -- time

    def _tick(self) -> None:
        assert self._loop is not None
        now = self._loop.time()
        self._timer = self._loop.call_at(now + SWEEP, self._tick)
        due = self.metrics.sweep_due
        if due:
            self.metrics.lag = max(0.0, now - due)
            self.metrics.lag_histogram.add(self.metrics.lag)
        self.metrics.sweep_due = now + SWEEP
        self.sweep()

    def sweep(self) -> None:
        """Everything that is due: deadlines, expiries, graces, slow readers. About twice a second."""
        monotonic, now = self.clock.monotonic(), self.clock.time()
        self._sweep_waiting(monotonic)
        self._sweep_expiries(now)
        self._sweep_graces(monotonic)
        for link in list(self.behind):
            if not link.behind:
                self.behind.discard(link)
            elif link.overdue(monotonic):
                link.close(CloseCode.SLOW, "slow")
        self.metrics.sweeps += 1
        if self.metrics.sweeps % 2 == 0:
            self.broker.sweep(now)
        if self.metrics.sweeps % 120 == 0:
            self.verifier.sweep(now)
            for user in [user for user in self.users.values() if not user.sessions and user.tat <= monotonic]:
                del self.users[user.id]
        for sweeper in self.sweepers:
            sweeper(monotonic)

    def _sweep_waiting(self, monotonic: float) -> None:
        for session, deadline in list(self._waiting.items()):
            if deadline > monotonic:
                break  # all wait equally long, so the rest came later
            del self._waiting[session]
            self.metrics.auth_failed("timeout")
            self.reply(session, _error(ErrorCode.AUTHENTICATION_TIMEOUT, "no token came in time"))
            self.close(session, CloseCode.UNAUTHORIZED, "authentication timeout")

    def _sweep_expiries(self, now: float) -> None:
        due = int(now // 60)
        for minute in [minute for minute in self._expiries if minute <= due]:
            for session in list(self._expiries[minute]):
                left = session.expires_in(now)
                if left is None or left > self.settings.token_warning:
                    continue
                if left <= -self.settings.token_leeway:
                    self._forget_expiry(session)
                    self.metrics.auth_failed("expired_live")
                    self.reply(session, _error(ErrorCode.AUTHENTICATION_FAILED, "the token has expired"))
                    self.close(session, CloseCode.UNAUTHORIZED, "token expired")
                elif left > 0 and not session.warned:
                    session.warned = True
                    self.reply(session, TokenExpiring(in_=round(left, 3)))

    def _sweep_graces(self, monotonic: float) -> None:
        while self._graces and self._graces[0][0] <= monotonic:
            _, name = self._graces.popleft()
            channel = self.channels.get(name)
            if channel is not None and channel.roster is not None:
                for user_id in channel.roster.expire(monotonic):
                    self._note(channel, user_id, came=False)
                self._release(channel)

    # -- the end

    def drain(self, link: Link) -> None:
        """uvicorn asks each connection to go; the hub makes one paced drain of it."""
        if not self.draining:
            self.draining = True
            assert self._loop is not None
            task = self._loop.create_task(self._drain())
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _drain(self) -> None:
        from hubbub.drain import drain  # only at the end, and it needs the hub's names

        await drain(self)


class ChannelRule:
    """What a feature says of the channels with its prefix: options, and who may read their past and who is there."""

    __slots__ = ("check", "options")

    def __init__(self, options: ChannelOptions, check: Callable[[Session, str], None]) -> None:
        self.options = options
        self.check = check


_DEFAULT_OPTIONS: Final = ChannelOptions()
_ABUSE: Final = frozenset(
    {ErrorCode.RATE_LIMITED, ErrorCode.INVALID_JSON, ErrorCode.INVALID_MESSAGE, ErrorCode.UNKNOWN_TYPE}
)


def present(user: dict[str, Any]) -> dict[str, Any]:
    """One user of a roster as the wire has it."""
    return {"info": user["info"], "devices": user["devices"], "since": rfc3339(user["since"])}


def _error(code: ErrorCode, message: str, retry_after: float | None = None) -> Error:
    return Error(code=code, message=message, retry_after=retry_after)


def _wrong_frame(session: Session) -> ClientError:
    speaks = "JSON in text frames" if session.link.lane.codec.is_json else "MessagePack in binary frames"
    return ClientError(ErrorCode.INVALID_MESSAGE, f"this connection speaks {speaks}")


def _query(query_string: bytes, name: bytes) -> str | None:
    for part in query_string.split(b"&"):
        key, _, value = part.partition(b"=")
        if key == name:
            return value.decode("ascii", "replace")
    return None


@types.coroutine
def _resume(running: Coroutine[Any, Any, None], waits_for: Any) -> Generator[Any, Any, None]:
    """Go on, inside a task, with a coroutine that was begun outside and now waits for ``waits_for``."""
    while True:
        try:
            value = yield waits_for
        except BaseException as error:
            try:
                waits_for = running.throw(error)
            except StopIteration:
                return
        else:
            try:
                waits_for = running.send(value)
            except StopIteration:
                return


async def _await(work: Awaitable[None]) -> None:
    await work
