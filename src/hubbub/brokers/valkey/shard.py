"""One primary of the engine, as this node is connected to it: for as long as the process lives, over all its failures.

Two connections (and a third one that waits for replicas, where that is wanted): what is published goes out and comes in
over one, so that the order of both is the engine's; history is
read over the other, so that a flood of readers cannot fill the buffer after which the engine ends a subscription.

The connection is made again by itself, with growing pauses. Each time the engine is asked who it is: its run and its
replication history. Another one than before was restarted, or is a replica that took over: then it gets a new fence
(fence.lua), before anything is published to it, and what is published under an old one is refused.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import random
import secrets
from collections.abc import Awaitable, Callable, Iterable, Sequence
from functools import partial
from typing import Any, Final

from hubbub.brokers.valkey.address import Address
from hubbub.brokers.valkey.keys import Partition
from hubbub.brokers.valkey.reasons import HOPELESS, why
from hubbub.brokers.valkey.replicas import Replicas
from hubbub.brokers.valkey.scripts import FENCE, PUBLISH, READ, Script
from hubbub.brokers.valkey.wire import Wire, WireError, settle
from hubbub.errors import BrokerUnavailable, ConfigurationError
from hubbub.metrics import EngineStats

log = logging.getLogger("hubbub")

PROBE: Final = 1.0
"""Seconds between two probes: messages of this node to itself."""
DEAF: Final = 4.0
"""Seconds without hearing one after which the connection is taken for dead."""
CONNECT: Final = 3.0
"""Seconds for connecting."""
FIRST_PAUSE: Final = 0.05
LONGEST_PAUSE: Final = 2.0
AT_ONCE: Final = 512
"""Channels in one SUBSCRIBE."""
GONE: Final = frozenset({"LOADING", "READONLY", "MASTERDOWN", "MOVED", "CLUSTERDOWN", "UNBLOCKED"})
"""Errors that say that this is not (or not yet) where to write."""
MOVING: Final = frozenset({"ASK", "TRYAGAIN"})
"""Errors that say that a Cluster's slot is just moving: its partition waits, all others go on."""
LASTING: Final = 5.0
"""Seconds after which a connection is taken for a good one: after a shorter one, the pauses go on growing."""

_CONNECTIONS: Final = itertools.count(1)

Listener = Callable[[bytes], None]


class Shard:
    """A primary, and the partitions that are on it.

    :param name: of this node, for the engine's list of clients.
    :param locate: where the primary is now.
    :param timeout: seconds for one command.
    :param replicas: how many must have a publication before it is answered.

    :ivar partitions: those that are there; set by who made it.
    :ivar up: connected, and subscribed to all that is wanted.
    :ivar connection: the number of the connection, higher with each of this process. What is sent with it can be told from
        what an older connection's bytes, late, still ask for.
    :ivar trouble: why it could not be connected to last; None while all is well.
    :ivar hopeless: the same, where trying again does not help.
    :ivar fences: by tag of a partition: the fence, and its token.
    :ivar on_up: called after each connection with whether the engine is another one than the last time (or was restarted).
    :ivar on_sweep: called about twice a second.
    """

    def __init__(
        self,
        name: str,
        locate: Callable[[Shard], Awaitable[Address]],
        partitions: Iterable[Partition],
        *,
        timeout: float,
        stats: EngineStats,
        sharded: bool = False,
        replicas: int = 0,
    ) -> None:
        self._name = name
        self._locate = locate
        self.partitions = list(partitions)
        self._timeout = timeout
        self.stats = stats
        self._sharded = sharded
        self._subscribe = "SSUBSCRIBE" if sharded else "SUBSCRIBE"
        self._unsubscribe = "SUNSUBSCRIBE" if sharded else "UNSUBSCRIBE"
        self.publish_verb = "SPUBLISH" if sharded else "PUBLISH"
        self.up = False
        self.connection = 0
        self.stopped = False
        self.main: Wire | None = None
        self.reads: Wire | None = None
        self.replicas = Replicas(replicas) if replicas else None
        self._waits: Wire | None = None
        self.fences: dict[str, tuple[str, str]] = {}
        self.on_up: list[Callable[[Shard, bool], None]] = []
        self.on_sweep: list[Callable[[float], None]] = []
        self.trouble: str | None = None
        self.hopeless: str | None = None
        self._address: Address | None = None
        self._listeners: dict[bytes, Listener] = {}
        self._news: dict[str, list[asyncio.Future[None]]] = {}
        self._farewells: set[str] = set()
        self._scheduled = False
        self._loop = asyncio.get_running_loop()
        self.down_since = self._loop.time()
        self._heard = 0.0
        self._open = False
        self._probed = 0.0
        self._identity = ""
        self._ended: asyncio.Event = asyncio.Event()
        self._came: asyncio.Event = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._timer: asyncio.TimerHandle | None = None

    # -- life

    def start(self) -> None:
        """Connect, and stay connected."""
        self._task = self._loop.create_task(self._stay())
        self._timer = self._loop.call_later(PROBE / 2, self._tick)

    async def stop(self) -> None:
        """Let go."""
        self.stopped = True
        if self._timer is not None:
            self._timer.cancel()
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
        self.drop()
        for futures in self._news.values():
            for future in futures:
                future.cancel()

    async def came_up(self, timeout: float) -> bool:
        """Wait until it is connected, for some seconds at most; whether it is. Not for what is hopeless."""
        try:
            async with asyncio.timeout(timeout):
                await self._came.wait()
        except TimeoutError:
            pass
        return self.up

    @property
    def healthy(self) -> bool:
        """Whether it answers, and this node hears what is published there."""
        return self.up and self._loop.time() - self._silent_since < DEAF + PROBE

    @property
    def _silent_since(self) -> float:
        """When a probe was heard, and anything came over the other connections."""
        others = (self.reads, self._waits) if self.replicas is not None else (self.reads,)
        return min(self._heard, *(wire.heard if wire is not None else 0.0 for wire in others))

    def drop(self) -> None:
        """End the connections; they are made again."""
        for wire in (self.main, self.reads, self._waits):
            if wire is not None:
                wire.abort()

    async def _stay(self) -> None:
        pause, told = FIRST_PAUSE, ""
        while True:
            self._ended.clear()
            try:
                await self._connect()
            except (WireError, OSError, TimeoutError) as error:
                self.drop()
                text = self.trouble = why(error, self._address)
                self.hopeless = text if isinstance(error, WireError) and error.code in HOPELESS else None
                if self.hopeless is not None:
                    self._came.set()  # nobody need wait for it
                if text != told:
                    log.error("%s; it is tried again", text)
                    told = text
            except Exception:
                self.drop()
                log.exception("connecting to the engine failed, it is tried again")
            else:
                if told:
                    log.warning("the engine is back")
                told, self.trouble, self.hopeless, began = "", None, None, self._loop.time()
                await self._ended.wait()
                if self._loop.time() - began > LASTING:
                    pause = FIRST_PAUSE
                self.stats.breaks += 1
                log.warning("the connection to the engine is lost")
            self._lost()
            # the whole pause is random: nodes that lost it together do not come back together
            await asyncio.sleep(pause * random.uniform(0.5, 1.0))  # noqa: S311
            pause = min(2 * pause, LONGEST_PAUSE)

    def _lost(self) -> None:
        if self.up:
            self.up = False
            self.down_since = self._loop.time()
        if self.hopeless is None:
            self._came.clear()

    def _wire_lost(self, wire: Wire) -> None:
        if wire is self.main or wire is self.reads or wire is self._waits:
            self.drop()
            self._ended.set()

    async def _connect(self) -> None:
        self._open = False
        self.connection = next(_CONNECTIONS)
        self._address = None
        self._address = address = await self._locate(self)
        self.main = main = await Wire.connect(
            address, name=f"hubbub-{self._name}", timeout=CONNECT, pushed=self._pushed, lost=self._wire_lost
        )
        self.reads = await Wire.connect(
            address, name=f"hubbub-{self._name}-reads", timeout=CONNECT, lost=self._wire_lost
        )
        if self.replicas is not None:
            self._waits = await Wire.connect(
                address, name=f"hubbub-{self._name}-waits", timeout=CONNECT, lost=self._wire_lost
            )
            self.replicas.connected(self._waits, self.partitions[0].key("y", self._name))
        async with asyncio.timeout(max(self._timeout, CONNECT)):
            identity = await self._identify(main)
            for script in (PUBLISH, READ, FENCE):
                await main.call("SCRIPT", "LOAD", script.text)
            changed = False
            for partition in self.partitions:
                try:
                    changed |= await self.fence(partition, main, identity)
                except WireError as error:
                    if error.code not in MOVING:
                        raise
                    self.fences.pop(partition.tag, None)  # what waits for it asks again
        await self._resubscribe(main)
        changed = (changed or identity != self._identity) and bool(self._identity)
        self._identity = identity
        if changed:
            self.stats.fences += 1
            log.warning("the engine is another one than before, or was restarted")
        self.stats.connects += 1
        self._heard = self.reads.heard = self._loop.time()
        if self._waits is not None:
            self._waits.heard = self._heard
        self.up = True
        self._came.set()
        for tell in list(self.on_up):
            tell(self, changed)

    async def _identify(self, wire: Wire) -> str:
        """Who the engine is.

        :raises WireError: it is no primary (``READONLY``), or too old (``UNSUPPORTED``).
        """
        info = _fields(await wire.call("INFO", "server", "replication"))
        if info.get("role") != "master":
            raise WireError("the server is a replica", "READONLY")
        if int(info.get("redis_version", "0").partition(".")[0] or 0) < 7:
            raise WireError(f"version {info.get('redis_version')} is too old: Redis >= 7 or Valkey", "UNSUPPORTED")
        return f"{info.get('run_id')}:{info.get('master_replid')}"

    async def fence(self, partition: Partition, wire: Wire | None = None, identity: str | None = None) -> bool:
        """Learn a partition's fence, or set a new one where the engine is another. True: it is another than known here."""
        wire = wire or self.main
        if wire is None:
            raise WireError("not connected")
        key, token = partition.key("f"), secrets.token_urlsafe(6)
        identity = identity or await self._identify(wire)
        reply: bytes = await wire.call("EVALSHA", FENCE.sha, 1, key, identity, token)
        fence = reply.decode()
        known = self.fences.get(partition.tag)
        self.fences[partition.tag] = (fence, fence.partition(" ")[0])
        return known is not None and known[0] != fence

    # -- a Cluster's slots move

    def give(self, partitions: list[Partition]) -> dict[bytes, Listener]:
        """Partitions that are elsewhere now. Returns what was wanted of them."""
        self.partitions = [partition for partition in self.partitions if partition not in partitions]
        starts = tuple(partition.key("").encode() for partition in partitions)
        given = {name: listener for name, listener in self._listeners.items() if name.startswith(starts)}
        for name in given:
            del self._listeners[name]
        return {name: listener for name, listener in given.items() if listener != self._probe_heard}

    def take(self, partitions: list[Partition], listeners: dict[bytes, Listener]) -> None:
        """Partitions that are here now, and what is wanted of them: with a new connection."""
        self.partitions += partitions
        self._listeners.update(listeners)
        self.drop()

    # -- pub/sub

    def listen(self, channel: str, listener: Listener) -> asyncio.Future[None] | None:
        """Hand what is published on a pub/sub channel to a listener from now on, over all reconnects.

        :returns: done once it is subscribed; None: the connection is away, it will be.
        """
        self._listeners[channel.encode()] = listener
        if not self._open:
            return None
        future: asyncio.Future[None] = self._loop.create_future()
        self._farewells.discard(channel)
        self._news.setdefault(channel, []).append(future)
        self._schedule()
        return future

    def unlisten(self, channel: str) -> None:
        """Do not want it any more."""
        if self._listeners.pop(channel.encode(), None) is None:
            return
        for future in self._news.pop(channel, ()):
            if not future.done():
                future.set_result(None)
        if self._open:
            self._farewells.add(channel)
            self._schedule()

    def _schedule(self) -> None:
        if not self._scheduled:
            self._scheduled = True
            self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        """Subscribe to what this turn wants, and unsubscribe from what it does not."""
        self._scheduled = False
        news, self._news = self._news, {}
        farewells, self._farewells = self._farewells, set()
        wire = self.main
        if wire is None or not self._open:
            _release(news)
            return
        for part in self._parts(farewells):
            wire.subscribe(self._unsubscribe, part, lambda reply, error: None)
        for part in self._parts(news):
            waiting = [future for channel in part for future in news[channel]]

            def answered(reply: Any, error: WireError | None, waiting: list[asyncio.Future[None]] = waiting) -> None:
                refused = error is not None and error.code
                if refused:
                    self._refused(error)
                for future in waiting:
                    if future.done():
                        continue
                    if refused:
                        future.set_exception(BrokerUnavailable(f"the engine refuses a subscription: {error}"))
                    else:
                        future.set_result(None)  # or the connection is lost: it is subscribed with the next one

            wire.subscribe(self._subscribe, part, answered)

    def _parts(self, channels: Iterable[str]) -> Iterable[list[str]]:
        """As many as one command may name: of a Cluster, those of one slot."""
        by_slot: dict[str, list[str]] = {}
        for channel in channels:
            by_slot.setdefault(channel.partition("}")[0] if self._sharded else "", []).append(channel)
        for together in by_slot.values():
            for start in range(0, len(together), AT_ONCE):
                yield together[start : start + AT_ONCE]

    def _refused(self, error: WireError | None) -> None:
        """All that is wanted is subscribed to with the next connection, or this node would be deaf for some of it."""
        log.error("the engine refuses a subscription, connecting again: %s", error)
        self.drop()

    async def _resubscribe(self, wire: Wire) -> None:
        probe = self._probe_channel()
        self._listeners[probe.encode()] = self._probe_heard
        self._open = True  # what is newly wanted from here on is subscribed to at once, behind these
        confirmed: list[asyncio.Future[None]] = []
        for part in self._parts([channel.decode() for channel in self._listeners]):
            done: asyncio.Future[None] = self._loop.create_future()
            confirmed.append(done)
            wire.subscribe(self._subscribe, part, partial(settle, done))
        async with asyncio.timeout(max(self._timeout, CONNECT) + len(self._listeners) / 20_000):
            await asyncio.gather(*confirmed)

    def _pushed(self, push: list[Any]) -> None:
        if len(push) == 3 and push[0] in (b"message", b"smessage"):
            listener = self._listeners.get(push[1])
            if listener is not None:
                try:
                    listener(push[2])
                except Exception:  # of another release, say, or of somebody else
                    log.exception("what came on %r cannot be taken", push[1])
        elif push[0] == b"sunsubscribe":
            self.drop()  # its slot moves to another shard

    # -- commands

    async def call(self, *args: Any, in_order: bool = False) -> Any:
        """One command, over the connection for reading.

        :param in_order: over the one on which publications are heard: what was published before the engine carried it out
            was handed over before it is answered. For small answers only.
        :raises BrokerUnavailable: there is no answer in time, or the engine refuses.
        """
        wire = self.main if in_order else self.reads
        if not self.up or wire is None:
            raise BrokerUnavailable("the engine is away")
        # no asyncio.timeout: a handler's first steps are taken outside of any task
        future: asyncio.Future[Any] = self._loop.create_future()
        timer = self._loop.call_later(self._timeout, _settle_late, future)
        wire.send(args, partial(settle, future))
        try:
            return await future
        except WireError as error:
            if error.code in GONE:
                self.drop()
            if error.code == "NOSCRIPT":
                raise
            raise BrokerUnavailable(f"the engine refuses: {error}") from None
        finally:
            timer.cancel()

    async def run(self, script: Script, keys: Sequence[str], args: Sequence[Any], *, in_order: bool = False) -> Any:
        """Run a script, as :meth:`call` does a command.

        :raises BrokerUnavailable: as :meth:`call`.
        """
        for _ in range(3):
            try:
                return await self.call("EVALSHA", script.sha, len(keys), *keys, *args, in_order=in_order)
            except WireError:
                await self.call("SCRIPT", "LOAD", script.text)
        raise BrokerUnavailable("the engine forgets scripts as soon as they are loaded")

    # -- is anybody there?

    def _probe_channel(self) -> str:
        return self.partitions[0].key("x", self._name)

    def _probe_heard(self, payload: bytes) -> None:
        self._heard = now = self._loop.time()
        self.stats.probe = max(0.0, now - self._probed)
        self.stats.probes.add(self.stats.probe)

    def _tick(self) -> None:
        """Twice a second."""
        now = self._loop.time()
        self._timer = self._loop.call_at(now + PROBE / 2, self._tick)
        if self.up and self.main is not None and self.reads is not None:
            if now - self._silent_since > DEAF:
                log.error("the engine is not heard any more: connecting again")
                self.drop()
            elif now - self._probed >= PROBE and self._probed <= self._heard:
                self._probed = now
                self.main.send((self.publish_verb, self._probe_channel(), b"?"), self._probe_answered)
                self.reads.send(("PING",), lambda reply, error: None)
                if self._waits is not None:  # it answers after a WAIT at the latest: that takes a second
                    self._waits.send(("PING",), lambda reply, error: None)
        for sweep in self.on_sweep:
            sweep(now)

    def _probe_answered(self, reply: Any, error: WireError | None) -> None:
        if error is not None and error.code:
            self._probed = 0.0  # it was refused: the next one follows with the next tick
            if error.code in GONE:
                self.drop()


def check_hopeless(shard: Shard) -> None:
    """:raises ConfigurationError: the engine is there, and what is set does not let us in."""
    if shard.hopeless is not None:
        raise ConfigurationError(f"HUBBUB_VALKEY_URL: {shard.hopeless}")


def _settle_late(future: asyncio.Future[Any]) -> None:
    if not future.done():
        future.set_exception(BrokerUnavailable("the engine does not answer in time"))


def _release(news: dict[str, list[asyncio.Future[None]]]) -> None:
    for futures in news.values():
        for future in futures:
            if not future.done():
                future.set_result(None)


def _fields(info: Any) -> dict[str, str]:
    text = info.decode() if isinstance(info, bytes) else str(info)
    return {name: value for name, _, value in (line.partition(":") for line in text.splitlines()) if value}
