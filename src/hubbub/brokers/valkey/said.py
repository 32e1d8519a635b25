"""What this node says of who is here: collected while the last batch is on its way, and said again after a fault."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine, Iterable
from itertools import islice
from typing import TYPE_CHECKING, Any, Final

import msgspec

from hubbub.brokers.valkey.scripts import Script
from hubbub.errors import BrokerUnavailable
from hubbub.ports import Here

if TYPE_CHECKING:
    from hubbub.brokers.valkey.broker import ValkeyBroker
    from hubbub.brokers.valkey.keys import Partition

log = logging.getLogger("hubbub")

HERE: Final = Script("here.lua", "lease.lua")
TAKE: Final = Script("take.lua", "lease.lua")
BATCH: Final = 500
"""Users in one call of the script: about two milliseconds of the engine."""
AT_ONCE: Final = 512
"""Channels of which it is read at once whom the engine has there."""

Users = dict[str, Here | None]


class Said:
    """What is to be said, by partition and channel: of each user only the newest.

    :param sure: waits until this node's lease holds; raises BrokerUnavailable.
    :param unsaid: called when something could not be said, with its partition, and whether the engine has another life or
        connection of this node than it says.

    :ivar life: of this node's lease, as its last beat was answered.
    """

    def __init__(
        self,
        broker: ValkeyBroker,
        sure: Callable[[], Coroutine[Any, Any, None]],
        unsaid: Callable[[Partition, bool], None],
    ) -> None:
        self._broker = broker
        self._sure = sure
        self._unsaid = unsaid
        self._waiting: dict[int, dict[str, Users]] = {}
        self._saying: set[int] = set()
        self._idle = asyncio.Event()
        self._idle.set()
        self._number = 0
        self.begin()
        self.closed = True

    def begin(self) -> None:
        """A node starts: it has said nothing."""
        self._suspects: dict[int, set[tuple[str, str]]] = {}
        self._unread: dict[int, object] = {}  # it is to be read what the engine has there, before more is said
        self._failed: set[int] = set()  # something could not be said there
        self._all: set[int] = set()  # even what the engine has like this already is told: others may have forgotten it
        self.life = 0
        self.closed = False

    def here(self, channel: str, user_id: str, here: Here | None) -> None:
        """Say how a user is in a channel (None: not)."""
        if self.closed:
            return
        index = self._broker.keys.partition_of(channel).index
        self._waiting.setdefault(index, {}).setdefault(channel, {})[user_id] = here
        if index in self._suspects:
            self._suspects[index].discard((channel, user_id))
        self._go_on(index)

    def _go_on(self, index: int) -> None:
        if index not in self._saying:
            self._saying.add(index)
            self._idle.clear()
            self._broker.spawn(self._say(self._broker.keys.partitions[index]))

    async def said(self) -> None:
        """Wait until all is said, or could not be."""
        await self._idle.wait()

    async def _say(self, partition: Partition) -> None:
        index = partition.index
        try:
            while index in self._unread or self._waiting.get(index):
                await self._sure()
                if index in self._unread:
                    await self._look(partition)
                else:
                    await self._batch(partition, self._waiting[index])
        except BrokerUnavailable as error:
            self._waiting.pop(index, None)  # all is said again
            self._unread.pop(index, None)
            self._failed.add(index)
            self._unsaid(partition, isinstance(error, _Late) and error.life == self.life)
        finally:
            self._saying.discard(index)
            if not self._saying:
                self._idle.set()

    async def _batch(self, partition: Partition, waiting: dict[str, Users]) -> None:
        node = self._broker.node
        self._number += 1
        shard = self._broker.shard_of(partition)
        keys = [partition.key("l", node), partition.key("pc", node)]
        args: list[Any] = [self._number, shard.publish_verb, "1" if partition.index in self._all else "0"]
        room = BATCH
        while waiting and room > 0:
            channel, users = next(iter(waiting.items()))
            some = list(islice(users.items(), room))
            room -= len(some)
            if len(some) == len(users):
                del waiting[channel]
            else:
                for user_id, _ in some:
                    del users[user_id]
            keys += [partition.key("p", f"{node}:{channel}"), partition.key("pn", channel)]
            args += [partition.key("c", channel), channel, len(some)]
            for user_id, here in some:
                args += [user_id, b"" if here is None else encode(here)]
        if not waiting:
            self._waiting.pop(partition.index, None)
        life = self.life
        lease = [node, life, shard.connection]
        reply = await shard.run(HERE, keys, [*lease, "0", *args])
        if not reply:  # the first word there, or the first one for long, of a node that lives: not what is late
            await self._sure()
            reply = await shard.run(HERE, keys, [*lease, "1", *args])
        if reply < 0:
            raise _Late(life)

    # -- saying it all again

    def again(self, partitions: Iterable[Partition], *, all: bool) -> None:
        """Everything is going to be said again. Before it is, read what the engine has of this node in these partitions,
        and where something could not be said: what is not said now is not so any more.

        :param all: tell it even where the engine has it like this already.
        """
        indexes = {partition.index for partition in partitions}
        if all:
            self._all |= indexes
        indexes |= self._failed
        self._failed.clear()
        for index in indexes:
            self._suspects.pop(index, None)
            self._unread[index] = object()
            self._go_on(index)

    async def _look(self, partition: Partition) -> None:
        index, node = partition.index, self._broker.node
        wanted = self._unread[index]
        shard = self._broker.shard_of(partition)
        life = self.life
        if not await shard.run(TAKE, [partition.key("l", node)], [life, shard.connection]):
            raise _Late(life)
        names = sorted(text(name) for name in await shard.call("SMEMBERS", partition.key("pc", node)))
        found: set[tuple[str, str]] = set()
        for some in parts(names, AT_ONCE):
            keys = [partition.key("p", f"{node}:{name}") for name in some]
            read = await asyncio.gather(*(shard.call("HKEYS", key) for key in keys))
            found.update((name, text(user)) for name, users in zip(some, read, strict=True) for user in users if user)
        waiting = self._waiting.get(index, {})
        self._suspects[index] = {(name, user) for name, user in found if user not in waiting.get(name, ())}
        if self._unread.get(index) is wanted:  # else once more
            del self._unread[index]

    def settle(self) -> bool:
        """Everything that is so was said: take back what was not. False: there is something that waits to be said."""
        self._all &= self._unread.keys() | self._failed | self._waiting.keys()
        suspects, self._suspects = self._suspects, {}
        for some in suspects.values():
            for channel, user_id in some:
                self.here(channel, user_id, None)
        return not (self._unread or self._all)


class _Late(BrokerUnavailable):
    """What was said is of a life or a connection that is over."""

    def __init__(self, life: int) -> None:
        super().__init__("the engine has another life or connection of this node than it says")
        self.life = life


def encode(here: Here) -> bytes:
    """A user as the engine keeps them: ``[devices, since, info]``, as JSON."""
    return msgspec.json.encode((here.devices, here.since, here.info))


def text(name: bytes | str) -> str:
    """A name that the engine gave."""
    return name.decode() if isinstance(name, bytes) else name


def parts(names: Iterable[str], size: int) -> Iterable[list[str]]:
    """The names, so many at a time."""
    rest = iter(names)
    while some := list(islice(rest, size)):
        yield some
