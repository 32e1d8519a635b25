"""The hub of one node: sessions, channels, turns of the loop. It alone decides how a publication reaches sockets.

Features decide what is published and who may subscribe; transports own the sockets; the broker owns the past.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Callable, Coroutine, Iterable
from functools import lru_cache
from time import perf_counter
from typing import Any, Final, TypeAlias

from hubbub.batch import Batch
from hubbub.calls import Calls
from hubbub.channel import Channel, Fanout
from hubbub.cluster import Cluster
from hubbub.comings import Comings
from hubbub.drain import drain
from hubbub.eager import begin, finish
from hubbub.entrance import Entrance
from hubbub.errors import BrokerUnavailable, ClientError, CloseCode, ErrorCode
from hubbub.inlet import OrderedInlet
from hubbub.limits import Rate
from hubbub.making import Attempts, Making
from hubbub.messages import (
    ClientMessage,
    Error,
    Gap,
    Inbox,
    Position,
    ServerMessage,
    WrongMessage,
    error_message,
)
from hubbub.metrics import Metrics
from hubbub.patterns import Patterns
from hubbub.ports import Broker, Clock, Lane, Link, Past, Topic
from hubbub.quotas import Quotas
from hubbub.runs import Runs
from hubbub.session import Session, State, User
from hubbub.settings import ChannelOptions, Settings
from hubbub.stream import Publication, Recovery
from hubbub.subscriptions import Subscriptions

log = logging.getLogger("hubbub")

ABUSE_PAUSE: Final = 10.0
"""Seconds for which a client that was closed with 4429 is asked to stay away."""
STALLED: Final = 1.0
"""Seconds of lag after which a sweep is left out."""
SWEEP: Final = 0.5
"""Seconds between two sweeps."""
PERSONAL: Final = "user:"
EPHEMERAL: Final = ChannelOptions(history_size=0)

Handler: TypeAlias = Callable[..., "Coroutine[Any, Any, None] | None"]


class Route:
    """A kind of client message: who handles it, and how often it came.

    :ivar anonymous: whether it may come before ``auth``.
    :ivar whole: whether the handler also wants the message as it came (an app's handlers: they decode the rest of it).
    """

    __slots__ = ("anonymous", "handle", "name", "received", "whole")

    def __init__(self, name: str, handle: Handler, anonymous: bool = False, whole: bool = False) -> None:
        self.name = name
        self.handle = handle
        self.anonymous = anonymous
        self.whole = whole
        self.received = 0


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
        self.metrics = Metrics()
        self.fanout = Fanout(self.schedule)
        self.sessions: dict[Session, None] = {}
        self.runs = Runs(self)
        self.calls = Calls(self)
        self.subscriptions = Subscriptions(self)
        self.turns = 0
        self.users: dict[str, User] = {}
        self.channels: dict[str, Channel] = {}
        self.attempts: dict[tuple[Session, str], Attempts] = {}
        self.routes: dict[type[ClientMessage], Route] = {}
        self.draining = False
        self.behind: set[Link] = set()
        self.leavers: list[Callable[[Session], None]] = []
        self.sweepers: list[Callable[[float], None]] = []
        self.openers: list[Callable[[Session], Coroutine[Any, Any, None]]] = []
        self.greeters: list[Callable[[Session], Coroutine[Any, Any, None]]] = []
        self.starters: list[Callable[[], Coroutine[Any, Any, None]]] = []
        self.stoppers: list[Callable[[], Coroutine[Any, Any, None]]] = []
        self.keep_openings = False
        self.channel_rules: list[tuple[str, ChannelRule]] = []
        self.passing: list[tuple[str, Callable[[str, Publication], bool]]] = []
        self._reserved: tuple[str, ...] = ()
        self.topics: list[Topic] = []
        self.topic_of = lru_cache(maxsize=65_536)(self._find_topic)
        self.options_for = lru_cache(maxsize=65_536)(self._find_options)
        self._patterns = [(Patterns((pattern,)), options) for pattern, options in settings.channels.items()]
        self._inbox = Inbox(())
        self._touched: list[Link] = []
        self._scheduled = False
        self._rate = Rate.per_second(settings.rate_limit, settings.rate_burst)
        self._user_rate = Rate.per_second(settings.user_rate_limit, settings.user_rate_burst)
        self._limited = self._rate is not None or self._user_rate is not None
        self._abuse_rate = Rate.per_second(settings.abuse_limit / 60, settings.abuse_limit)
        self.entrance = Entrance(self)
        self.comings = Comings(self)
        self.cluster = Cluster(self)
        self.quotas = Quotas(self)
        self.inlet = OrderedInlet(self)
        self._tasks: set[asyncio.Task[None]] = set()
        self.loop: asyncio.AbstractEventLoop | None = None
        self._starting: asyncio.Future[None] | None = None
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

    def route(
        self, struct: type[ClientMessage], handle: Handler, *, anonymous: bool = False, whole: bool = False
    ) -> None:
        """Say who handles a kind of message."""
        name = str(struct.__struct_config__.tag)
        if name in self._inbox.types:
            raise ValueError(f"two handlers for messages of type {name!r}")
        self.routes[struct] = Route(name, handle, anonymous, whole)
        self._inbox = Inbox((*self._inbox.types.values(), struct))

    async def ensure_started(self) -> None:
        """Start if that was not done: mounted apps get no lifespan from Starlette."""
        if self._timer is not None:
            return
        if self._starting is None or self._starting.done():
            self._starting = asyncio.ensure_future(self.start())
        await asyncio.shield(self._starting)  # whoever comes meanwhile waits for the same start

    async def start(self) -> None:
        """Connect the broker and begin to sweep."""
        self.loop = asyncio.get_running_loop()
        self.metrics.started = self.clock.monotonic()
        await self.broker.start(self.inlet)
        self.inlet.start()
        for index, starter in enumerate(self.starters):
            try:
                await starter()
            except BaseException:
                await self._stop_all(self.stoppers[:index])
                await self.broker.stop()
                raise
        self._timer = self.loop.call_later(SWEEP, self._tick)

    async def stop(self) -> None:
        """Let go of what is left. Sessions were drained before."""
        if self._timer is not None:
            self._timer.cancel()
        for session in list(self.sessions):
            session.link.abort()
        await self.runs.stop()
        self.inlet.stop()
        for task in self._tasks:
            task.cancel()
        if self._tasks:  # not for ever: one may keep its cancellation to itself
            await asyncio.wait(self._tasks, timeout=self.settings.close_timeout)
        await self._stop_all(self.stoppers)
        await self.broker.stop()
        self.channels.clear()  # those that were kept for a grace
        self.comings.clear()
        for topic in self.topics:
            topic.stopped()
        # an app may be started again, in another loop: tests do
        self.loop = self._timer = self._starting = None
        self._scheduled = self.draining = False

    @staticmethod
    async def _stop_all(stoppers: Iterable[Callable[[], Coroutine[Any, Any, None]]]) -> None:
        for stopper in reversed(list(stoppers)):
            await stopper()

    def refuse(self, connections: int) -> str | None:
        """The Gate: why no further connection may come in now, or None."""
        if self.draining:
            return "draining"
        limit = self.settings.max_connections
        return "capacity" if limit and connections >= limit else None

    # -- opening and closing a session

    def close(self, session: Session, code: int, reason: str = "") -> None:
        """Close a session's connection; what belongs to it is freed when the connection is gone."""
        session.link.close(code, reason)

    def lost(self, link: Link, code: int) -> None:
        """A connection is gone: forget everything of its session."""
        session = link.session
        self.behind.discard(link)
        if session is None or session not in self.sessions:
            return
        self.leave(session)
        del self.sessions[session]
        self.entrance.gone(session)
        session.busy = None
        session.handle = None  # it refers back
        link.session = None
        self.metrics.closed(code, self.clock.monotonic() - session.started)

    def leave(self, session: Session) -> None:
        """Take a session out of its channels and its user's sessions; idempotent."""
        if session.state is State.CLOSED:
            return
        session.state = State.CLOSED
        for leaver in self.leavers:
            leaver(session)
        if session in self.calls.waiting:
            self.calls.left(session)
        for name in list(session.channels):
            self.detach(session, name)
        self.entrance.left(session)

    # -- messages in

    def received(self, link: Link, message: str | bytes) -> None:
        """A message of a client, from its transport. Never raises."""
        session = link.session
        if session is None or session.state is State.CLOSED:
            return
        if session.busy is not None:
            if self.calls.waiting and self.calls.takes(session, message):
                return  # what the running handler waits for cannot wait for the handler
            full = len(session.busy) >= self.settings.request_queue
            if full and session in self.calls.waiting:  # not held: the answer must be able to come in
                error = ClientError(ErrorCode.BUSY, "too many messages wait for a handler", retry_after=1.0)
                self.refuse_message(session, error, self._inbox.ref_of(message))
                return
            session.busy.append(message)
            if len(session.busy) >= self.settings.request_queue and session not in self.calls.waiting:
                link.hold()
            return
        self.handle(session, message)

    def kind_of(self, message: str | bytes) -> str | None:
        """The type of a message, if that can be read."""
        return self._inbox.kind_of(message)

    def handle(self, session: Session, message: str | bytes) -> None:
        """Decode a message, check that it may come now, and run its handler. Never raises."""
        command: ClientMessage | None = None
        try:
            if self._limited:
                session.take(self._rate, self._user_rate, self.clock.monotonic(), self.quotas.messages)
            if (type(message) is str) is not session.link.lane.codec.is_json:
                raise _wrong_frame(session)
            command = self._inbox.decode(message)
            route = self.routes[type(command)]
            route.received += 1
            if session.state is not State.OPEN and not route.anonymous:
                raise ClientError(
                    ErrorCode.AUTHENTICATION_REQUIRED, "send an auth message first", close=CloseCode.UNAUTHORIZED
                )
            began = 0.0 if route.received & 63 else perf_counter()
            running = route.handle(session, command, message) if route.whole else route.handle(session, command)
            if running is not None:
                self.runs.step(session, command, running)
            if began:
                self.metrics.handlers.add(perf_counter() - began)
        except Exception as error:
            ref = self._inbox.ref_of(message) if command is None and isinstance(error, ClientError) else None
            self.failed(session, command, error, ref)

    def failed(self, session: Session, command: ClientMessage | None, error: Exception, ref: str | None = None) -> None:
        ref = command.ref if command is not None else ref
        if isinstance(error, BrokerUnavailable):
            error = ClientError(ErrorCode.UNAVAILABLE, "the engine behind this does not answer", retry_after=1.0)
        if isinstance(error, ClientError):
            if session.state is not State.CLOSED:  # else nobody is refused anything
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
            ref = error.ref or ref
        self.metrics.refused(error.code)
        close = error.close
        if close is None and error.code in _ABUSE:
            close = session.misbehaved(self._abuse_rate, self.clock.monotonic())
            if close is not None:
                self.metrics.limited("abuse")
                error.retry_after = max(error.retry_after or 0.0, ABUSE_PAUSE)
        self.reply(session, error_message(error, ref))
        if close is not None:
            self.close(session, close, str(error.code))

    # -- messages out

    def reply(self, session: Session, message: ServerMessage) -> None:
        """Send one message to one session, at the end of the turn."""
        link = session.link
        link.send(link.lane.codec.encode(message))

    def touched(self, link: Link) -> None:
        self._touched.append(link)
        self.schedule()

    def wrote_behind(self, link: Link) -> None:
        self.behind.add(link)

    def caught_up(self, link: Link) -> None:
        self.behind.discard(link)

    def gap(self, link: Link, channel: str, offset: int) -> bytes:
        local = self.channels.get(channel)
        epoch = local.epoch if local is not None else ""
        return link.lane.codec.encode(Gap(channel=channel, epoch=epoch, offset=offset))

    def schedule(self) -> None:
        if not self._scheduled and self.loop is not None:  # after stop() nobody is left to write to
            self._scheduled = True
            self.loop.call_soon(self._turn)

    def _turn(self) -> None:
        """The end of a turn: tell of comings and goings, write the batches, then what is left of the replies."""
        self._scheduled = False
        self.turns += 1
        if self.comings:
            self.comings.tell()
        self.fanout.turn()
        touched, self._touched = self._touched, []
        for link in touched:
            link.flush()

    # -- channels

    def _find_options(self, name: str) -> ChannelOptions:
        for prefix, rule in self.channel_rules:
            if name.startswith(prefix):
                return rule.options  # a feature takes what the settings say of exactly its channels
        topic = self.topic_of(name)
        if topic is not None:
            return topic.options
        for pattern, options in self._patterns:
            if pattern(name):
                return options
        return _DEFAULT_OPTIONS

    def _find_topic(self, name: str) -> Topic | None:
        return next((topic for topic in self.topics if topic.match(name) is not None), None)

    def past_of(self, name: str) -> Past:
        """Where a channel's past is read: at the broker, unless a feature keeps it elsewhere."""
        for prefix, rule in self.channel_rules:
            if rule.past is not None and name.startswith(prefix):
                return rule.past(name) or self.broker
        return self.broker

    def declare(self, topic: Topic) -> None:
        """Add what the app says of the channels of a pattern."""
        self.topics.append(topic)
        self.topic_of.cache_clear()
        self.options_for.cache_clear()

    async def attach(self, session: Session, name: str, since: Position | None, options: ChannelOptions) -> Recovery:
        """Subscribe a session and say what it missed. It gets every publication after the returned position.

        :raises ClientError: ``too_many`` subscriptions, or it was ended meanwhile. All is then as it was before.
        """
        with Making(self, session, name) as making:
            return await making.attach(since, options)

    def channel_of(self, name: str, options: ChannelOptions) -> Channel:
        """The channel of a name; made, where this node has not had it."""
        channel = self.channels.get(name)
        if channel is None:
            channel = self.channels[name] = Channel(name, options)
            channel.topic = self.topic_of(name)
        return channel

    async def hear(self, channel: Channel) -> None:
        """Hear what is published in a channel, and know who is there.

        :raises BrokerUnavailable: the broker does not answer.
        """
        if not channel.subscribed:  # who comes while another's request is under way must not read history before it
            await self._subscribe(channel.name)
            channel.subscribed = True
        if self.cluster.peers is not None:
            await self.comings.others.whole(channel)

    def put_in(self, channel: Channel, session: Session) -> None:
        """Have a session in a channel from here on; it may be in already."""
        self.fanout.seal(channel)
        link = session.link
        if channel.waiting:
            self.fanout.catch_up(channel, link)
        if link in channel.lanes.get(link.lane, ()):
            return
        channel.add(link)
        self.comings.join(channel, session)
        if channel.topic is not None and channel.size == 1:
            channel.topic.occupancy(channel.name, True)

    def take_out(self, channel: Channel, session: Session) -> None:
        """Have it in no more; what was published before still reaches it. It need not be in."""
        self.fanout.seal(channel)
        link = session.link
        was_in = link in channel.lanes.get(link.lane, ())
        channel.discard(link)
        if was_in:
            self.comings.leave(channel, session)
            if channel.topic is not None and not channel.size:
                channel.topic.occupancy(channel.name, False)

    async def _subscribe(self, name: str) -> None:
        try:
            await self.broker.subscribe(name)
        except BrokerUnavailable:
            # the broker knows that it is wanted, and says so once it is; a past that is elsewhere can be had meanwhile
            if self.past_of(name) is self.broker:
                raise

    def visible(self, session: Session, publications: Iterable[Publication], name: str) -> list[Publication]:
        """Leave out what this session published itself with ``exclude_self``, now or before it reconnected, and what
        the channel's filter keeps from it."""
        shown = [publication for publication in publications if not self._is_own(session, publication)]
        topic = self.topic_of(name)
        if topic is None or not topic.filters:
            return shown
        return [publication for publication in shown if topic.visible(session, name, publication)]

    def _is_own(self, session: Session, publication: Publication) -> bool:
        if publication.origin is None or session.user is None or publication.user != session.user.id:
            return False
        if session.declared or publication.origin == session.id:
            return publication.origin == session.id
        # It did not say which session it continues. Then it is taken for the publisher come back, unless that one lives.
        return all(other.id != publication.origin for other in session.user.sessions)

    def detach(self, session: Session, name: str) -> bool:
        """End a subscription, also one that is being made; what was published before still reaches the session. False if
        there was none."""
        if not session.unsubscribe(name):
            return False
        if self.attempts:
            attempts = self.attempts.pop((session, name), None)
            if attempts is not None:
                attempts.ended = True
        channel = self.channels.get(name)
        if channel is not None:
            self.take_out(channel, session)
            self.release(channel)
        return True

    def release(self, channel: Channel) -> None:
        """Forget a channel that nothing would be lost of."""
        if channel.order is not None and not channel.size:
            self.inlet.let_go(channel)
        if channel.empty and channel not in self.comings and self.channels.get(channel.name) is channel:
            del self.channels[channel.name]
            self.spawn(self.broker.unsubscribe(channel.name))

    def spawn(self, work: Coroutine[Any, Any, None]) -> None:
        """Run something that nobody waits for: at once as far as it goes, the rest as a task."""
        rest = begin(work)
        if rest is None:
            return
        assert self.loop is not None
        task = self.loop.create_task(finish(rest))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def background(self, work: Coroutine[Any, Any, Any]) -> None:
        """Run something of the app that nobody waits for, in a task of its own. It sees to its own exceptions."""
        assert self.loop is not None
        task = self.loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def deliver(self, channel: str, publication: Publication) -> None:
        """The Inlet: a publication from the broker. What is not the next one of its channel goes to :attr:`inlet`."""
        if channel.startswith(PERSONAL):
            self._deliver_personal(channel[len(PERSONAL) :], publication)
            return
        local = self.channels.get(channel)
        if local is None:
            return
        if publication.offset == local.next:
            local.next += 1
        elif publication.offset:
            self.inlet.out_of_turn(local, publication)
            return
        elif self.passing and publication.key is not None and not self._passes(channel, publication):
            return
        if not local.size:
            return
        exclude = None
        if publication.origin is not None and publication.user is not None:
            user = self.users.get(publication.user)
            for session in user or ():
                if session.id == publication.origin:
                    exclude = session.link
        self.fanout.add(local, publication, exclude)

    def _passes(self, channel: str, publication: Publication) -> bool:
        return all(passes(channel, publication) for prefix, passes in self.passing if channel.startswith(prefix))

    def _deliver_personal(self, user_id: str, publication: Publication) -> None:
        if publication.origin is not None and publication.origin == self.cluster.node:
            return  # this node sent it, and its own devices have it (toolkit/sending.py)
        line = self.inlet.lines.get(user_id)
        if line is not None and publication.offset == line.next:
            line.next += 1
        elif publication.offset and not self.inlet.personal(user_id, publication):
            return
        self._send_personal(user_id, publication)

    def tell(self, channel: str, publication: Publication) -> None:
        """Send something that is no publication to all subscribers, in its place among those."""
        if channel.startswith(PERSONAL):
            self._send_personal(channel[len(PERSONAL) :], publication)
            return
        local = self.channels.get(channel)
        if local is not None and local.size:
            self.fanout.announce(local, publication)

    def _send_personal(self, user_id: str, publication: Publication) -> None:
        for session in self.users.get(user_id, ()):
            if session.state is State.OPEN and session.id != publication.origin:
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

    # -- time

    def _tick(self) -> None:
        assert self.loop is not None
        now = self.loop.time()
        self._timer = self.loop.call_at(now + SWEEP, self._tick)
        due = self.metrics.sweep_due
        if due:
            self.metrics.lag = max(0.0, now - due)
            self.metrics.lag_histogram.add(self.metrics.lag)
        self.metrics.sweep_due = now + SWEEP
        if self.metrics.lag < STALLED:
            self.sweep()
        # else what came meanwhile is read first: nobody is late because we were

    def sweep(self) -> None:
        """Everything that is due: deadlines, expiries, graces, slow readers. About twice a second."""
        monotonic, now = self.clock.monotonic(), self.clock.time()
        self.entrance.sweep(monotonic, now)
        if self.runs:
            self.runs.sweep(monotonic)
        if self.calls.waiting:
            self.calls.sweep(monotonic)
        self.comings.sweep(monotonic)
        for link in list(self.behind):
            if not link.behind:
                self.behind.discard(link)
            elif link.overdue(monotonic):
                link.close(CloseCode.SLOW, "slow")
        self.metrics.sweeps += 1
        if self.metrics.sweeps % 2 == 0:
            self.broker.sweep(now)
        if self.metrics.sweeps % 120 == 0:
            self.entrance.forget(monotonic, now)
        if self.loop is None:
            return  # a test's clock was turned while nothing runs
        for sweeper in self.sweepers:
            sweeper(monotonic)

    # -- the end

    def drain(self, link: Link) -> None:
        """uvicorn asks each connection to go; the hub makes one paced drain of it."""
        if not self.draining:
            self.draining = True
            self.spawn(drain(self))


class ChannelRule:
    """What a feature says of the channels with its prefix.

    :param options: how they behave.
    :param check: raises unless a session may read a channel's past and see who is there.
    :param past: where a channel's past is; None, or a None from it: at the broker.
    :param floor: the offset after which a session may see a channel's past.
    """

    __slots__ = ("check", "floor", "options", "past")

    def __init__(
        self,
        options: ChannelOptions,
        check: Callable[[Session, str], None],
        past: Callable[[str], Past | None] | None = None,
        floor: Callable[[Session, str], int] | None = None,
    ) -> None:
        self.options = options
        self.check = check
        self.past = past
        self.floor = floor


_DEFAULT_OPTIONS: Final = ChannelOptions()
_ABUSE: Final = frozenset(
    {ErrorCode.RATE_LIMITED, ErrorCode.INVALID_JSON, ErrorCode.INVALID_MESSAGE, ErrorCode.UNKNOWN_TYPE}
)


def _wrong_frame(session: Session) -> ClientError:
    speaks = "JSON in text frames" if session.link.lane.codec.is_json else "MessagePack in binary frames"
    return ClientError(ErrorCode.INVALID_MESSAGE, f"this connection speaks {speaks}")
