"""Publishing without a server: from Celery workers, cron jobs, scripts, other services.

>>> from hubbub import Publisher
>>> with Publisher("valkey://localhost:6379/0") as hub:
...     hub.publish("news:sport", {"title": "1 : 0"})
...     hub.notify("alice", "Report", "It is ready.")

A publisher goes the same way to the engine as a node does (:mod:`hubbub.brokers.valkey`), but is none: it has no lease,
hears nothing, and is connected only while it is used.
"""

from __future__ import annotations

import asyncio
import logging
import math
import os
import threading
import time
import weakref
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Mapping
from concurrent.futures import CancelledError, Future
from typing import TYPE_CHECKING, Any, Final, Self, TypeVar

import msgspec

from hubbub.auth import REVOCATION_MEMORY, valid_user_id
from hubbub.commands import check_name, once_key, publication_of
from hubbub.control import MAX_USERS, Announce, Disconnect, Revoke, letter_of
from hubbub.errors import BrokerUnavailable, ClientError, ConfigurationError, ErrorCode
from hubbub.features.notifications import notification_of, options_of, publication_for
from hubbub.hub import PERSONAL
from hubbub.messages import NotificationType, Position, plain_data
from hubbub.patterns import Patterns
from hubbub.revocation import keep_fact
from hubbub.settings import ChannelOptions, Settings, load_settings
from hubbub.toolkit.shapes import data_bytes

if TYPE_CHECKING:
    from hubbub.brokers.valkey.keys import Partition
    from hubbub.brokers.valkey.outside import OutsideBroker

log = logging.getLogger("hubbub")
T = TypeVar("T")

IDLE: Final = 30.0
"""Seconds without a call after which a publisher lets go of its connections. The next call makes them again."""
PATIENCE: Final = 5.0
"""Seconds for letting go of the connections."""
AT_ONCE: Final = 500
"""Notifications of one call that wait for the engine side by side."""
FEATURES: Final = {
    PERSONAL: "user:… belongs to the notifications: use notify()",
    "room:": (
        "room:… belongs to the rooms: say it over HTTP, POST /api/rooms/{room_id}/messages?as_user=… with an API key"
    ),
}
"""Channels that belong to features, and how to reach who is there."""


class AsyncPublisher:
    """Publishes, notifies and disconnects without a server, from asyncio code. One object for as long as the program runs:
    it connects by itself, again when that broke, and lets go when it is not used. In one loop only.

    :param url: as HUBBUB_VALKEY_URL, which it is by default.
    :param prefix: as HUBBUB_VALKEY_PREFIX, which it is by default.
    :param channels: options per channel pattern, as the nodes have them: how much history is kept is said with each
        publication. They come before those of HUBBUB_CHANNELS.
    :param timeout: seconds for which a call waits for the engine (HUBBUB_VALKEY_TIMEOUT).
    :param idle: seconds without a call after which it lets go of its connections.
    :raises ConfigurationError: the URL is missing or makes no sense, or ``redis`` is not installed.
    """

    def __init__(
        self,
        url: str | None = None,
        *,
        prefix: str | None = None,
        channels: Mapping[str, ChannelOptions] | None = None,
        timeout: float | None = None,
        idle: float = IDLE,
    ) -> None:
        self._settings = _settings(url, prefix, timeout)
        options = {**(channels or {}), **self._settings.channels}
        self._patterns = [(Patterns((pattern,)), _refusing(each)) for pattern, each in options.items()]
        self._personal = _refusing(options_of(self._settings.model_copy(update={"channels": options})))
        self._default = _refusing(ChannelOptions())
        self._idle = idle
        self._broker: OutsideBroker | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._lock = asyncio.Lock()
        self._calls = 0
        self._timer: asyncio.TimerHandle | None = None
        self._closing: asyncio.Task[None] | None = None
        self._ending: set[asyncio.Task[None]] = set()
        self._make = _maker(self._settings)

    async def publish(
        self,
        channel: str,
        data: Any,
        *,
        key: str | None = None,
        user_id: str | None = None,
        idempotency_key: str | None = None,
        version: int | None = None,
    ) -> Position:
        """Publish ``data`` on a channel of the app; returns its position once it is in the channel's history.

        A connection that breaks meanwhile is made again, and what was sent is published once. For the same over a crash
        of this program, give an idempotency key.

        :param data: anything that JSON can carry; Structs, models and dataclasses too.
        :param key: what ``conflate`` keeps the newest of.
        :param user_id: who is shown as the publisher; None: the server.
        :param idempotency_key: within 300 s it is published once with it on this channel, however often it is called.
        :param version: it is published only if this is higher than the channel's last one.
        :raises ClientError: the name or the data cannot be published.
        :raises TypeError: the data has no JSON form.
        :raises BrokerUnavailable: the engine is away; it is not known to have been published.
        """
        check_name(channel)
        for prefix, advice in FEATURES.items():
            if channel.startswith(prefix):
                raise ClientError(ErrorCode.FORBIDDEN, advice)
        _check(key is None or len(key) <= 128, "a key has at most 128 characters")
        _check_once(idempotency_key)
        _check(version is None or 0 <= version <= 2**53, "a version is 0 to 2**53")
        _check(user_id is None or valid_user_id(user_id), "no user can have such an id")
        payload = plain_data(msgspec.Raw(data_bytes(data)), is_json=True)
        options = self._options(channel)
        publication = publication_of(channel, payload, options, key=key, user=user_id, at=time.time())
        once = once_key(idempotency_key)

        async def work(way: _Way) -> Position:
            await way.up(channel)
            return await way.broker.publish(channel, publication, options, once=once, version=version)

        return await self._with(work)

    async def notify(
        self,
        user_id: str | Iterable[str],
        title: str,
        message: str,
        notification_type: NotificationType = "info",
        metadata: dict[str, Any] | None = None,
        *,
        idempotency_key: str | None = None,
    ) -> str:
        """Notify one or many users on all their devices. Returns the notification's id.

        :param idempotency_key: within 300 s each of the users is notified once with it, however often it is called.
        :raises ValueError: a user, or the text, cannot be.
        :raises BrokerUnavailable: the engine is away: some users may not be notified.
        """
        users = list(dict.fromkeys([user_id] if isinstance(user_id, str) else user_id))
        _check(all(map(valid_user_id, users)), "a user id has 1 to 128 characters, none of them control characters")
        _check_once(idempotency_key)
        _check_text(title, message)
        now = time.time()
        notification, tail = notification_of(title, message, notification_type, metadata, now)
        options, once = self._personal, once_key(idempotency_key)

        async def one(way: _Way, user: str) -> None:
            name = PERSONAL + user
            await way.up(name)
            await way.broker.publish(name, publication_for(tail, now, options), options, once=once)

        async def work(way: _Way) -> None:
            for first in range(0, len(users), AT_ONCE):
                some = [one(way, user) for user in users[first : first + AT_ONCE]]
                for result in await asyncio.gather(*some, return_exceptions=True):
                    if isinstance(result, BaseException):
                        raise result

        await self._with(work)
        return notification

    async def broadcast(
        self,
        title: str,
        message: str,
        notification_type: NotificationType = "info",
        exclude_users: Iterable[str] = (),
    ) -> None:
        """Notify everybody who is signed in now on any node, but for some users.

        :raises ValueError: the text cannot be, or more than 10,000 users are excluded.
        :raises BrokerUnavailable: the engine is away; the nodes may have heard of it, or not.
        """
        exclude = [user for user in dict.fromkeys(exclude_users) if valid_user_id(user)]
        _check(len(exclude) <= MAX_USERS, f"at most {MAX_USERS} users can be excluded")
        _check_text(title, message)
        letter = letter_of(Announce(title, message, notification_type, time.time(), exclude))
        await self._with(lambda way: way.tell(letter))

    async def disconnect(self, user_id: str, *, revoke: bool = False, reason: str = "") -> None:
        """Have all nodes close the sessions of a user; ``revoke``: and refuse the tokens issued until now.

        They do so within a moment; nodes that are cut off, or start later, refuse the tokens as soon as they are there.

        :raises ValueError: no user can have this id.
        :raises BrokerUnavailable: the engine is away: the nodes may not know of it. Do it again.
        """
        _check(valid_user_id(user_id), "no user can have such an id")
        now = time.time()
        fact = Revoke(now, now + REVOCATION_MEMORY, user_id)
        letter = letter_of(fact if revoke else Disconnect(user_id, reason=reason[:100]))

        async def work(way: _Way) -> None:
            if revoke:  # kept before it is told: see hubbub.revocation
                await way.up()
                await keep_fact(way.broker.outside, fact, REVOCATION_MEMORY)
            await way.tell(letter)

        async def twice(way: _Way) -> None:
            try:
                await work(way)
            except BrokerUnavailable:
                await work(way)  # done again it does no harm

        await self._with(twice)

    async def online(self, user_id: str) -> bool:
        """Whether a user has a live session on any node.

        :raises BrokerUnavailable: the engine is away.
        """
        if not valid_user_id(user_id):
            return False
        name = PERSONAL + user_id

        async def work(way: _Way) -> bool:
            return await way.broker.listeners(await way.up(name), name) > 0

        return await self._with(work)

    async def close(self) -> None:
        """Let go of the connections. A later call makes them again."""
        self._settle_in(asyncio.get_running_loop())
        async with self._lock:
            await self._stop()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    # -- connecting

    def _options(self, channel: str) -> ChannelOptions:
        return next((options for pattern, options in self._patterns if pattern(channel)), self._default)

    async def _with(self, work: Callable[[_Way], Awaitable[T]]) -> T:
        """Do something over a connection.

        :raises BrokerUnavailable: says where the engine was looked for, and what came of it.
        """
        self._settle_in(loop := asyncio.get_running_loop())
        deadline = loop.time() + self._settings.valkey_timeout
        async with self._lock:
            self._calls += 1
            try:
                way = _Way(await self._started(), deadline)
            except BaseException:
                self._calls -= 1
                raise
        try:
            return await work(way)
        except BrokerUnavailable as error:
            said = str(error) if way.where in str(error) else f"{error}: {way.where}"
            raise BrokerUnavailable(f"{said}. {_ADVICE}") from None
        finally:
            self._calls -= 1
            self._let_go_later(loop)

    def _settle_in(self, loop: asyncio.AbstractEventLoop) -> None:
        if self._loop is loop:
            return
        if self._loop is not None and not self._loop.is_closed():
            raise RuntimeError("an AsyncPublisher belongs to the loop that it was used in first: make another one")
        # the loop that it was used in has ended, and its connections with it
        self._loop, self._lock, self._broker, self._timer, self._calls = loop, asyncio.Lock(), None, None, 0
        self._ending = set()

    async def _started(self) -> OutsideBroker:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._broker is not None and self._calls == 1 and not all(shard.up for shard in self._broker.shards):
            await self._stop()  # it pauses between its attempts to connect: a new one tries at once
        if self._broker is None:
            broker = self._make()
            try:
                await broker.begin()
            except BaseException:  # who called has a deadline of its own, or the engine does not let us in
                self._end(broker)
                raise
            self._broker = broker
        return self._broker

    async def _stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        broker, self._broker = self._broker, None
        if broker is not None:
            self._end(broker)
        if self._ending:
            await asyncio.wait(self._ending)

    def _end(self, broker: OutsideBroker) -> None:
        """Let go of its connections, whatever becomes of who wants that."""
        task = asyncio.get_running_loop().create_task(broker.stop())
        self._ending.add(task)
        task.add_done_callback(self._ending.discard)

    def _let_go_later(self, loop: asyncio.AbstractEventLoop) -> None:
        if not self._calls and self._broker is not None and math.isfinite(self._idle):
            if self._timer is not None:
                self._timer.cancel()
            self._timer = loop.call_later(self._idle, self._let_go, loop)

    def _let_go(self, loop: asyncio.AbstractEventLoop) -> None:
        self._timer = None
        self._closing = loop.create_task(self._unless_used())

    async def _unless_used(self) -> None:
        async with self._lock:
            if not self._calls and self._timer is None:
                await self._stop()


class _Way:
    """The connections, for one call.

    :param deadline: until when it waits for the engine (the loop's seconds).
    """

    def __init__(self, broker: OutsideBroker, deadline: float) -> None:
        self.broker = broker
        self._deadline = deadline

    @property
    def where(self) -> str:
        """Whom it talks to."""
        return f"the engine at {', '.join(map(str, self.broker.target.seeds))}"

    async def up(self, channel: str | None = None) -> Partition:
        """Wait until the engine is there; where a channel (None: what belongs to none) is.

        :raises BrokerUnavailable: it is not, in time.
        :raises ConfigurationError: it does not let us in.
        """
        keys = self.broker.keys
        partition = keys.home if channel is None else keys.partition_of(channel)
        shard = self.broker.shard_of(partition)
        left = max(0.0, self._deadline - asyncio.get_running_loop().time())
        if not shard.up and not await shard.came_up(left):
            if shard.hopeless is not None:
                raise ConfigurationError(shard.hopeless)
            raise BrokerUnavailable(shard.trouble or "the engine does not answer")
        return partition

    async def tell(self, letter: bytes) -> None:
        """Tell all nodes something."""
        await self.up()
        await self.broker.outside.tell(letter)


_ADVICE: Final = (
    "See that it runs and can be reached from here; then do it again (with an idempotency key, it happens once)"
)


class Publisher:
    """Publishes, notifies and disconnects without a server, from plain code: Celery tasks, cron jobs, threads. One object
    for as long as the program runs, for all its threads; a process that is forked from it makes its own connections.

    The parameters and calls are those of :class:`AsyncPublisher`; each call blocks until it is done. What it sends goes
    through a thread of its own, so it does not fit programs that replace threads (gevent, eventlet).
    """

    def __init__(
        self,
        url: str | None = None,
        *,
        prefix: str | None = None,
        channels: Mapping[str, ChannelOptions] | None = None,
        timeout: float | None = None,
        idle: float = IDLE,
    ) -> None:
        def make() -> AsyncPublisher:
            return AsyncPublisher(url, prefix=prefix, channels=channels, timeout=timeout, idle=idle)

        make()  # what makes no sense is said at once
        self._make = make
        self._lock = threading.Lock()
        self._thread: _Thread | None = None
        self._end: Callable[[], object] | None = None
        _PUBLISHERS.add(self)

    def publish(
        self,
        channel: str,
        data: Any,
        *,
        key: str | None = None,
        user_id: str | None = None,
        idempotency_key: str | None = None,
        version: int | None = None,
    ) -> Position:
        """As :meth:`AsyncPublisher.publish`."""
        options: dict[str, Any] = {"key": key, "user_id": user_id, "version": version}
        return self._run(lambda hub: hub.publish(channel, data, idempotency_key=idempotency_key, **options))

    def notify(
        self,
        user_id: str | Iterable[str],
        title: str,
        message: str,
        notification_type: NotificationType = "info",
        metadata: dict[str, Any] | None = None,
        *,
        idempotency_key: str | None = None,
    ) -> str:
        """As :meth:`AsyncPublisher.notify`."""
        users = user_id if isinstance(user_id, str) else list(user_id)
        once = idempotency_key
        return self._run(
            lambda hub: hub.notify(users, title, message, notification_type, metadata, idempotency_key=once)
        )

    def broadcast(
        self,
        title: str,
        message: str,
        notification_type: NotificationType = "info",
        exclude_users: Iterable[str] = (),
    ) -> None:
        """As :meth:`AsyncPublisher.broadcast`."""
        exclude = list(exclude_users)
        self._run(lambda hub: hub.broadcast(title, message, notification_type, exclude))

    def disconnect(self, user_id: str, *, revoke: bool = False, reason: str = "") -> None:
        """As :meth:`AsyncPublisher.disconnect`."""
        self._run(lambda hub: hub.disconnect(user_id, revoke=revoke, reason=reason))

    def online(self, user_id: str) -> bool:
        """As :meth:`AsyncPublisher.online`."""
        return self._run(lambda hub: hub.online(user_id))

    def close(self) -> None:
        """Let go of the connections and the thread. A later call makes them again."""
        with self._lock:
            end, self._end, self._thread = self._end, None, None
        if end is not None:
            end()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _run(self, call: Callable[[AsyncPublisher], Coroutine[Any, Any, T]]) -> T:
        while True:
            with self._lock:
                thread = self._thread
                if thread is None:
                    thread = self._thread = _Thread(self._make())
                    # also when this object is forgotten, and at the end of the program
                    self._end = weakref.finalize(self, thread.end)
            future = thread.submit(call)
            if future is not None:
                return _result(future)

    def forked(self) -> None:
        """This process has none of its parent's threads, and must not touch its connections."""
        if self._thread is not None:
            # never collected: what its collection did would reach into the parent's connections
            _INHERITED.append((self._thread, self._end))
        self._lock, self._thread, self._end = threading.Lock(), None, None


class _Thread:
    """A loop in a thread, and the publisher that lives in it."""

    def __init__(self, publisher: AsyncPublisher) -> None:
        self._publisher = publisher
        self._process = os.getpid()
        self._lock = threading.Lock()
        self._ended = False
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._live, name="hubbub-publisher", daemon=True)
        self._thread.start()

    def _live(self) -> None:
        asyncio.set_event_loop(self._loop)
        try:
            self._loop.run_forever()
        finally:
            self._loop.close()

    def submit(self, call: Callable[[AsyncPublisher], Coroutine[Any, Any, T]]) -> Future[T] | None:
        """Begin a call. None: the thread has ended."""
        with self._lock:
            if self._ended:
                return None
            return asyncio.run_coroutine_threadsafe(call(self._publisher), self._loop)

    def end(self) -> None:
        """Let go of everything; what is under way is given up."""
        if os.getpid() != self._process:
            return
        with self._lock:
            if self._ended:
                return
            self._ended = True
            asyncio.run_coroutine_threadsafe(self._close(), self._loop)
        if threading.current_thread() is self._thread:
            return  # the collector of garbage ran here, of all threads: nobody can wait for it
        self._thread.join(PATIENCE)
        if self._thread.is_alive():
            log.warning("a publisher's connections were not closed in time")

    async def _close(self) -> None:
        try:
            await self._publisher.close()
            others = asyncio.all_tasks() - {asyncio.current_task()}
            for task in others:
                task.cancel()
            await asyncio.gather(*others, return_exceptions=True)
            await asyncio.sleep(0)  # connections that were aborted are closed in the next turn
        finally:
            self._loop.stop()


def _result(future: Future[T]) -> T:
    try:
        return future.result()
    except CancelledError:
        raise BrokerUnavailable("the publisher was closed meanwhile. " + _ADVICE) from None
    except BaseException:
        future.cancel()  # Ctrl-C: nobody waits any more
        raise


_PUBLISHERS: Final[weakref.WeakSet[Publisher]] = weakref.WeakSet()
_INHERITED: Final[list[Any]] = []
"""What a fork left here."""


def _forked() -> None:
    for publisher in list(_PUBLISHERS):
        publisher.forked()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forked)


def _settings(url: str | None, prefix: str | None, timeout: float | None) -> Settings:
    given = {"valkey_url": url, "valkey_prefix": prefix, "valkey_timeout": timeout}
    settings = load_settings(**{name: value for name, value in given.items() if value is not None})
    if not settings.valkey_url:
        raise ConfigurationError(
            "a publisher needs the engine that the nodes share: Publisher('valkey://host:6379/0'), or HUBBUB_VALKEY_URL"
        )
    return settings


def _maker(settings: Settings) -> Callable[[], OutsideBroker]:
    try:
        from hubbub.brokers.valkey.address import target_of
        from hubbub.brokers.valkey.outside import OutsideBroker
    except ImportError as error:
        name = error.name or "a package"
        raise ConfigurationError(f"a publisher needs {name}: pip install 'hubbub[valkey]'") from None
    target_of(settings.valkey_url)  # what makes no sense is said now
    return lambda: OutsideBroker(settings)


def _refusing(options: ChannelOptions) -> ChannelOptions:
    """There are no subscribers here whom it could be handed to while the engine is away."""
    return options.model_copy(update={"offline": "refuse"})


def _check(good: bool, otherwise: str) -> None:
    if not good:
        raise ValueError(otherwise)


def _check_once(key: str | None) -> None:
    _check(key is None or 1 <= len(key) <= 128, "an idempotency key has 1 to 128 characters")


def _check_text(title: str, message: str) -> None:
    _check(1 <= len(title) <= 500, "a title has 1 to 500 characters")
    _check(len(message) <= 10_000, "a message has at most 10,000 characters")


__all__ = ["AsyncPublisher", "Publisher"]
