"""The other nodes over Valkey or Redis.

One script call per node and beat keeps all of a node's presence alive (beat.lua), whatever it has: its lease stands for its
people. What changes is said when it does (here.lua), and the nodes that are subscribed to the channel hear it on the
channel itself. A node whose lease ends is taken for gone by whichever node beats next; one survivor cleans up after it, in
small steps, and another goes on with it if that one dies.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import msgspec

from hubbub.brokers.valkey.bus import Bus
from hubbub.brokers.valkey.said import Said, parts, text
from hubbub.brokers.valkey.scripts import Script
from hubbub.errors import BrokerUnavailable
from hubbub.ports import BEAT, LEASE, Ear, Here

if TYPE_CHECKING:
    from hubbub.brokers.valkey.broker import ValkeyBroker
    from hubbub.brokers.valkey.keys import Partition
    from hubbub.brokers.valkey.shard import Shard

log = logging.getLogger("hubbub")

CLAIM: Final = 5.0
"""Seconds for which a node that cleans up after another has that for itself, from each step on."""
STEP: Final = 100
"""Channels in one step of cleaning up."""
SLICE: Final = 4096
"""Users that are decoded in one turn."""
REMEMBERED: Final = 10.0
"""Seconds after which nothing can be under way any more that an answer had in it already."""
EXACT: Final = 256
"""Users up to which those of several nodes are counted once each."""
AT_ONCE: Final = 64
GOODBYE: Final = 2.0
"""Seconds for which a node that stops waits for the engine."""
MARK: Final = b"\0"
"""What a presence message on a channel begins with: no publication does."""

_BEAT: Final = Script("beat.lua", "lease.lua")
_BYE: Final = Script("bye.lua", "lease.lua")
_HOLD: Final = Script("hold.lua", "lease.lua")
_CLEAN: Final = Script("clean.lua", "lease.lua")
_CLOSE: Final = Script("close.lua", "lease.lua")
_CLEANED: Final = Script("cleaned.lua", "lease.lua")
_KEEP: Final = Script("keep.lua")
_KEPT: Final = Script("kept.lua")

Value: TypeAlias = tuple[int, float, dict[str, Any] | None]
_value: Final = msgspec.json.Decoder(Value).decode
_presence: Final = msgspec.json.Decoder(tuple[str, int, list[tuple[str, Value | None]]]).decode


class ValkeyPeers:
    """As :class:`~hubbub.ports.Peers` has it, over the shards of a broker."""

    def __init__(self, broker: ValkeyBroker) -> None:
        self.node = broker.node
        self._broker = broker
        self._home = broker.keys.home
        self._ear: Ear | None = None
        self._bus = Bus(broker.keys, lambda: broker.shard_of(self._home), broker.spawn, self._stir)
        self._said = Said(broker, self._sure, self._could_not)
        self._task: asyncio.Task[None] | None = None
        self._stirred = asyncio.Event()
        self._beating: asyncio.Future[None] | None = None
        self._alive: set[str] = set()
        self._heard: set[str] = set()
        self._asked: dict[str, _Asked] = {}
        self._floors: dict[tuple[str, str], tuple[int, float]] = {}
        self._beaten = self._said_at = 0.0
        self._registered = self._again = self._unsaid = self._refused = self._settling = False
        self._doubtful: set[Partition] = set()
        self._cleaning: set[str] = set()
        broker.on_up.append(self._up)

    def listen(self, ear: Ear) -> None:
        self._ear = self._bus.ear = ear

    # -- life

    async def start(self) -> None:
        """Be there for the others; called by the broker once it is connected, or has waited long enough for it."""
        self._registered = self._again = self._unsaid = self._refused = self._settling = False
        self._doubtful.clear()
        self._alive.clear()
        self._heard.clear()
        self.node = self._broker.node
        self._bus.begin(self.node)
        self._said.begin()
        shard = self._shard()
        for channel, to in self._bus.channels().items():
            listening = shard.listen(channel, _Hearing(self._bus, to))
            if listening is not None:
                await asyncio.wait([listening], timeout=GOODBYE)
        with suppress(BrokerUnavailable):
            await self._beat()
        self._task = asyncio.get_running_loop().create_task(self._live())

    async def stop(self) -> None:
        """Say what is still to be said, and that this node is gone: the others need not wait for its lease to end."""
        if self._task is None:
            return
        self._task.cancel()
        await asyncio.wait([self._task])
        self._task = None
        for _ in range(3):  # connections that were aborted say that they are lost, and the turn ends
            await asyncio.sleep(0)
        try:
            async with asyncio.timeout(GOODBYE):
                await self._said.said()
                await self._goodbye()
        except (BrokerUnavailable, TimeoutError):
            log.warning("the other nodes could not be told that this one stops: they notice within %.0f s", LEASE)
        self._said.closed = True
        for channel in self._bus.channels():
            self._shard().unlisten(channel)

    async def _goodbye(self) -> None:
        home, shard = self._home, self._shard()
        keys = [home.key("n"), home.key("nd"), home.key("nx"), home.key("l", self.node)]
        await shard.run(_BYE, keys, [self.node, _ms(CLAIM), shard.publish_verb, self._bus.channel])
        await self._clean(self.node)

    def leave(self) -> None:
        """Nothing: its last users go with their grace, and then :meth:`stop` says the rest."""

    def _up(self, shard: Shard, changed: bool) -> None:
        """Connected again: presence may have been missed, in both directions."""
        if self._task is None:
            return
        if changed and self._home in shard.partitions:
            self._bus.renew()
        self._again = True
        self._doubtful.update(shard.partitions)
        self._stir()

    def _stir(self) -> None:
        self._stirred.set()

    def _could_not(self, partition: Partition, late: bool) -> None:
        self._refused |= late
        # what could not be said to a shard that is away is said when it is back: _up()
        self._unsaid |= self._broker.shard_of(partition).up

    def _shard(self) -> Shard:
        return self._broker.shard_of(self._home)

    # -- the beat

    async def _live(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            timer = loop.call_later(BEAT, self._stir)
            await self._stirred.wait()
            timer.cancel()
            self._stirred.clear()
            try:
                await self._beat()
            except BrokerUnavailable:
                pass  # the shard says so, and comes back by itself; _up() stirs
            except Exception:
                log.exception("a beat of this node failed")
            self._wake_sayers()

    async def _beat(self) -> None:
        """Live on, and hear who else does."""
        home, shard, loop = self._home, self._shard(), asyncio.get_running_loop()
        report = self._ear.report() if self._ear is not None else b""
        self._heard.clear()
        began, before = loop.time(), self._bus.heard()
        reply = await shard.run(
            _BEAT,
            [*map(home.key, ("n", "nd", "nx", "b")), home.key("l", self.node)],
            [
                self.node,
                report,
                *map(_ms, (LEASE, BEAT, CLAIM)),
                secrets.token_urlsafe(6),
                shard.publish_verb,
                self._bus.channel,
                self._said.life + self._refused,  # a life that is refused somewhere is over, whatever is known here
                shard.connection,
            ],
        )
        life, dirty, epoch, everybody, mine = reply[:5]
        alive = {text(node): bytes(says) for node, says in zip(reply[5::2], reply[6::2], strict=True)}
        self._alive = set(alive)
        late = self._unsaid and began - self._said_at > LEASE / 2  # not with each beat: a slow engine would be slower
        lost, self._said.life, self._refused = life != self._said.life, life, False
        if self._again or late or (lost and self._registered):
            self._declare(lost)
        self._registered = True
        self._beaten = began
        self._bus.beaten(epoch, everybody, mine, before)
        self._forget_floors(began)
        if self._settling and began - self._said_at > LEASE:
            self._settling = not self._said.settle()
        if dirty:
            self._clean_up(text(dirty))
        if self._heard <= self._alive:
            if self._ear is not None:
                self._ear.nodes(alive)
        else:  # somebody came after the engine had answered: it is in the next answer
            self._stir()

    def _declare(self, lost: bool) -> None:
        """The engine may not have all of this node any more, or this node all of the others."""
        self._said.again(self._broker.keys.partitions if lost else self._doubtful, all=lost)
        self._again = self._unsaid = False
        self._doubtful.clear()
        self._said_at, self._settling = asyncio.get_running_loop().time(), True
        if self._ear is not None:
            self._ear.declare()

    async def _sure(self) -> None:
        """Wait until this node lives for sure: what one says that the others took for gone is never cleaned up.

        :raises BrokerUnavailable: it does not.
        """
        loop = asyncio.get_running_loop()
        if self._registered and loop.time() - self._beaten < LEASE - 2 * BEAT:
            return
        if not self._shard().up or self._task is None:
            raise BrokerUnavailable("this node's lease has ended")
        if self._beating is None or self._beating.done():
            self._beating = loop.create_future()
        self._stir()
        await asyncio.wait([self._beating], timeout=LEASE)
        if loop.time() - self._beaten >= LEASE - BEAT:
            raise BrokerUnavailable("this node's lease has ended")

    def _wake_sayers(self) -> None:
        if self._beating is not None and not self._beating.done():
            self._beating.set_result(None)

    # -- who is here

    def here(self, channel: str, user_id: str, here: Here | None) -> None:
        self._broker.stats.present += 1
        self._said.here(channel, user_id, here)

    async def who(self, channel: str) -> dict[str, dict[str, Here]]:
        asked = self._asked.setdefault(channel, _Asked())
        asked.count += 1
        self._broker.follow(channel)
        try:
            found, floors = await self._read(channel)
        except BaseException:
            self._answered(channel, asked)
            raise
        until = asyncio.get_running_loop().time() + REMEMBERED
        for node, number in floors.items():
            self._floors[channel, node] = number, until
        # whoever has asked has the answer by then
        asyncio.get_running_loop().call_soon(self._answered, channel, asked)
        return found

    def _answered(self, channel: str, asked: _Asked) -> None:
        asked.count -= 1
        if asked.count:
            return
        self._asked.pop(channel, None)
        for payload in asked.held:
            self.marked(channel, payload)

    async def _read(self, channel: str) -> tuple[dict[str, dict[str, Here]], dict[str, int]]:
        partition = self._broker.keys.partition_of(channel)
        shard = self._broker.shard_of(partition)
        named = [text(name) for name in await shard.call("SMEMBERS", partition.key("pn", channel))]
        nodes = [node for node in named if node != self.node]
        if not nodes:
            return {}, {}
        keys = [partition.key("p", f"{node}:{channel}") for node in nodes]
        read = await asyncio.gather(*(shard.call("HGETALL", key) for key in keys))
        alive = self._alive | self._heard
        if not alive.issuperset(nodes):
            alive = {text(node) for node in await self._shard().call("ZRANGE", self._home.key("n"), 0, -1)}
        found: dict[str, dict[str, Here]] = {}
        floors: dict[str, int] = {}
        for node, fields in zip(nodes, read, strict=True):
            if node in alive:
                found[node], floors[node] = await _users(fields)
        return found, floors

    def marked(self, channel: str, payload: bytes) -> None:
        """Another node has said something of who is in a channel: it came as a message of that channel."""
        asked = self._asked.get(channel)
        if asked is not None:
            asked.held.append(payload)
            return
        try:
            node, number, users = _presence(payload[len(MARK) :])
        except (msgspec.DecodeError, RecursionError) as error:
            log.warning("what a node says of who is here cannot be read: %s", error, extra={"channel": channel})
            return
        if node == self.node or number <= self._floors.get((channel, node), (0, 0.0))[0]:
            return
        self._heard.add(node)
        self._broker.stats.noticed += len(users)
        if self._ear is not None:
            for user_id, value in users:
                self._ear.present(channel, node, user_id, None if value is None else Here(*value))

    def _forget_floors(self, now: float) -> None:
        while self._floors:
            first = next(iter(self._floors))
            if self._floors[first][1] > now:
                return
            del self._floors[first]

    async def counts(self, channels: Sequence[str]) -> dict[str, int]:
        counts: dict[str, int] = {}
        for some in parts(channels, AT_ONCE):
            found = await asyncio.gather(*(self._count(channel) for channel in some))
            counts.update(zip(some, found, strict=True))
        return counts

    async def _count(self, channel: str) -> int:
        partition = self._broker.keys.partition_of(channel)
        shard = self._broker.shard_of(partition)
        named = [text(name) for name in await shard.call("SMEMBERS", partition.key("pn", channel))]
        nodes = [node for node in named if node == self.node or node in self._alive or node in self._heard]
        keys = [partition.key("p", f"{node}:{channel}") for node in nodes]
        sizes = [max(0, await shard.call("HLEN", key) - 1) for key in keys]
        if len(keys) < 2 or sum(sizes) > EXACT:
            return sum(sizes)
        users: set[bytes] = set()
        for key in keys:
            users.update(await shard.call("HKEYS", key))
        return len(users - {b""})

    # -- messages, facts

    async def tell(self, message: bytes, *, node: str | None = None, keep: bool = True) -> None:
        await self._bus.tell(message, node, keep)

    async def keep(self, kind: str, key: str, value: bytes, seconds: float, *, rank: float = 0.0) -> None:
        keys = [self._home.key("k", kind), self._home.key("kx", kind)]
        await self._shard().run(_KEEP, keys, [key, value, _ms(seconds), repr(float(rank))])

    async def kept(self, kind: str) -> dict[str, bytes]:
        home = self._home
        reply = await self._shard().run(_KEPT, [home.key("k", kind), home.key("kx", kind)], [])
        return {text(key): bytes(value) for key, value in zip(reply[::2], reply[1::2], strict=True)}

    # -- cleaning up after nodes that are gone

    def _clean_up(self, node: str) -> None:
        if node not in self._cleaning:
            self._cleaning.add(node)
            self._broker.spawn(self._clean_after(node))

    async def _clean_after(self, node: str) -> None:
        try:
            await self._clean(node)
        except BrokerUnavailable:
            pass  # another one goes on, or this one again
        finally:
            self._cleaning.discard(node)

    async def _clean(self, node: str) -> None:
        home = self._home
        life = await self._hold(node)
        if life is None:
            return
        for partition in self._broker.keys.partitions:
            shard = self._broker.shard_of(partition)
            # from here on, nothing is added to what follows
            await shard.run(_CLOSE, [partition.key("l", node)], [life])
            names = await shard.call("SMEMBERS", partition.key("pc", node))
            for some in parts(map(text, names), STEP):
                if await self._hold(node) != life:
                    return  # it is back, or was and is gone again: then all is to be done again
                await self._clean_some(partition, node, life, some)
        keys = [home.key("nx"), home.key("l", node), home.key("b", node), home.key("b")]
        if await self._shard().run(_CLEANED, keys, [node, life]) and node != self.node:
            log.info("cleaned up after a node that is gone", extra={"node": node})

    async def _hold(self, node: str) -> str | None:
        """Go on cleaning up after a node: which life of it is over (""; it is not known any more). None: it is back."""
        keys = [self._home.key("nx"), self._home.key("l", node)]
        life = await self._shard().run(_HOLD, keys, [node, _ms(CLAIM)])
        return None if life == 0 else text(life)

    async def _clean_some(self, partition: Partition, node: str, life: str, channels: list[str]) -> None:
        keys = [partition.key("pc", node), partition.key("l", node)]
        for channel in channels:
            keys += [partition.key("p", f"{node}:{channel}"), partition.key("pn", channel)]
        gone = ""
        if partition is self._home:
            gone = self._home.key("nx")
            keys.append(gone)
        await self._broker.shard_of(partition).run(_CLEAN, keys, [node, life, *channels, gone])


class _Hearing:
    """A pub/sub channel of the bus."""

    __slots__ = ("_bus", "_to")

    def __init__(self, bus: Bus, to: str) -> None:
        self._bus = bus
        self._to = to

    def __call__(self, payload: bytes) -> None:
        self._bus.arrived(self._to, payload)


class _Asked:
    """A channel of which is being asked who is there.

    :ivar held: what is heard meanwhile: it follows the answer.
    """

    __slots__ = ("count", "held")

    def __init__(self) -> None:
        self.count = 0
        self.held: list[bytes] = []


async def _users(fields: Any) -> tuple[dict[str, Here], int]:
    """The users of a hash, and the number of what was said last. What cannot be read is left out."""
    pairs = fields.items() if isinstance(fields, dict) else zip(fields[::2], fields[1::2], strict=True)
    users: dict[str, Here] = {}
    number = 0
    for index, (user_id, value) in enumerate(pairs, 1):
        try:
            if user_id:
                users[text(user_id)] = Here(*_value(value))
            else:
                number = int(value)
        except (ValueError, RecursionError) as error:
            log.warning("what the engine has of a user that is here cannot be read: %s", error)
        if index % SLICE == 0:
            await asyncio.sleep(0)
    return users, number


def _ms(seconds: float) -> int:
    return max(1, round(seconds * 1000))
