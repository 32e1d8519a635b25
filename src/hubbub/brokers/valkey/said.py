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

HERE: Final = Script("here.lua")
BATCH: Final = 500
"""Users in one call of the script: about two milliseconds of the engine."""
AT_ONCE: Final = 64

Users = dict[str, Here | None]


class Said:
    """What is to be said, by partition and channel: of each user only the newest.

    :param sure: waits until this node's lease holds; raises BrokerUnavailable.
    :param unsaid: called when something could not be said.
    """

    def __init__(
        self, broker: ValkeyBroker, sure: Callable[[], Coroutine[Any, Any, None]], unsaid: Callable[[], None]
    ) -> None:
        self._broker = broker
        self._sure = sure
        self._unsaid = unsaid
        self._waiting: dict[int, dict[str, Users]] = {}
        self._saying: set[int] = set()
        self._suspects: set[tuple[str, str]] = set()
        self._idle = asyncio.Event()
        self._idle.set()
        self._number = 0
        self.all = False
        """Say even what the engine has like this already: others may have forgotten it."""
        self.closed = True

    def here(self, channel: str, user_id: str, here: Here | None) -> None:
        """Say how a user is in a channel (None: not)."""
        if self.closed:
            return
        index = self._broker.keys.partition_of(channel).index
        self._waiting.setdefault(index, {}).setdefault(channel, {})[user_id] = here
        if self._suspects:
            self._suspects.discard((channel, user_id))
        if index not in self._saying:
            self._saying.add(index)
            self._idle.clear()
            self._broker.spawn(self._say(self._broker.keys.partitions[index]))

    async def said(self) -> None:
        """Wait until all is said, or could not be."""
        await self._idle.wait()

    async def _say(self, partition: Partition) -> None:
        try:
            while waiting := self._waiting.get(partition.index):
                await self._sure()
                await self._batch(partition, waiting)
        except BrokerUnavailable:
            self._waiting.pop(partition.index, None)  # all is said again
            self._unsaid()
        finally:
            self._saying.discard(partition.index)
            if not self._saying:
                self._idle.set()

    async def _batch(self, partition: Partition, waiting: dict[str, Users]) -> None:
        node = self._broker.node
        self._number += 1
        shard = self._broker.shard_of(partition)
        keys = [partition.key("pc", node)]
        args: list[Any] = [node, self._number, shard.publish_verb, "1" if self.all else "0"]
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
        await shard.run(HERE, keys, args)

    # -- saying it all again

    async def look(self) -> None:
        """Read what the engine has of this node, before all is said again: what is not said then is not so any more.

        :raises BrokerUnavailable: it cannot be read.
        """
        found: set[tuple[str, str]] = set()
        for partition in self._broker.keys.partitions:
            shard = self._broker.shard_of(partition)
            names = sorted(text(name) for name in await shard.call("SMEMBERS", partition.key("pc", self._broker.node)))
            for some in parts(names, AT_ONCE):
                keys = [partition.key("p", f"{self._broker.node}:{name}") for name in some]
                read = await asyncio.gather(*(shard.call("HKEYS", key) for key in keys))
                found.update(
                    (name, text(user)) for name, users in zip(some, read, strict=True) for user in users if user
                )
        self._suspects = found

    def settle(self) -> None:
        """Everything that is so was said: take back what was not."""
        suspects, self._suspects = self._suspects, set()
        self.all = False
        for channel, user_id in suspects:
            self.here(channel, user_id, None)


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
