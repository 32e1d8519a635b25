"""Messages between nodes over the engine: numbered, and kept for some minutes.

A node hears them as they are published; a hole in the numbers, or a number with its beat that it has not reached, makes it
read what it has not heard. So it hears each once and in order, also after having been cut off; where some are not kept any
more, or the engine is another one, it hears that it missed some.
"""

from __future__ import annotations

import logging
import secrets
from collections.abc import Callable, Coroutine
from typing import Any, Final, Protocol

from hubbub.brokers.valkey.keys import Keys
from hubbub.brokers.valkey.scripts import Script
from hubbub.errors import BrokerUnavailable
from hubbub.ports import Ear

log = logging.getLogger("hubbub")

TELL: Final = Script("tell.lua")
ALL: Final = "all"
PASSING: Final = b"-"
"""In place of the number of a message that is not kept."""
KEPT: Final = 1024
"""Messages that are kept, of those to all and of those to each node."""
KEPT_SECONDS: Final = 300
PAGE: Final = 256
"""Messages that are read at once."""


class Shard(Protocol):
    """What the bus needs of a shard."""

    publish_verb: str

    async def call(self, *args: Any) -> Any: ...

    async def run(self, script: Script, keys: list[str], args: list[Any]) -> Any: ...


def telling(keys: Keys, sender: str, message: bytes, node: str | None, verb: str) -> tuple[list[str], list[Any]]:
    """Keys and arguments of :data:`TELL`, to be run where ``keys.home`` is.

    :param sender: the node that sends it; "": none.
    :param node: who gets it; None: all nodes.
    :param verb: PUBLISH, or SPUBLISH in a Cluster.
    """
    to = node or ALL
    stream = keys.home.key("b", to)
    args = [to, sender, message, verb, stream, KEPT, KEPT_SECONDS, secrets.token_urlsafe(6)]
    return [keys.home.key("b"), stream], args


class Bus:
    """What this node hears of the others.

    :param shard: where the bus is now.
    :param spawn: runs something that nobody waits for.
    :param stirred: called when another node came, or is gone.

    :ivar node: this node; :meth:`begin` sets it.
    """

    def __init__(
        self,
        keys: Keys,
        shard: Callable[[], Shard],
        spawn: Callable[[Coroutine[Any, Any, None]], None],
        stirred: Callable[[], None],
    ) -> None:
        self._keys = keys
        self._shard = shard
        self._spawn = spawn
        self._stirred = stirred
        self.ear: Ear | None = None
        self.node = ""
        self._epoch = b""
        self._dropped = False
        self._heard: dict[str, int] = {}
        self._newest: dict[str, int] = {}
        self._reading: set[str] = set()

    def begin(self, node: str) -> None:
        """A node starts: what was said before is not for it."""
        self.node = node
        self.renew()
        self._epoch, self._dropped = b"", False

    def renew(self) -> None:
        """The engine is another one: its numbers may be, too."""
        self._heard.clear()
        self._newest.clear()

    @property
    def channel(self) -> str:
        """The pub/sub channel of what is for all."""
        return self._keys.home.key("b", ALL)

    def channels(self) -> dict[str, str]:
        """Pub/sub channels to listen to, and whose messages come there."""
        return {self._keys.home.key("b", to): to for to in (ALL, self.node)}

    async def tell(self, message: bytes, node: str | None, keep: bool = True) -> None:
        """Send a message to all other nodes, or to one.

        :param keep: as :meth:`hubbub.ports.Peers.tell` has it.
        :raises BrokerUnavailable: it may not have been sent.
        """
        shard = self._shard()
        if not keep:
            channel = self._keys.home.key("b", node or ALL)
            await shard.call(shard.publish_verb, channel, b"%b %b\n%b" % (PASSING, self.node.encode(), message))
            return
        keys, args = telling(self._keys, self.node, message, node, shard.publish_verb)
        await shard.run(TELL, keys, args)

    # -- hearing

    def arrived(self, to: str, payload: bytes) -> None:
        """Something was published on one of the bus's channels: "number sender", and on the next line the message."""
        head, _, message = payload.partition(b"\n")
        number, _, sender = head.partition(b" ")
        try:
            name = sender.decode()
            if number == PASSING:
                self._hand(name, message)
                return
            count = int(number)
        except ValueError:
            log.warning("a message on the bus of the nodes cannot be read, it is passed over")
            return
        if not count:
            if name != self.node:
                self._stirred()
            return
        heard = self._heard.get(to)
        if heard is None:
            self._dropped = True
            return  # the next beat says where the bus is
        if count == heard + 1 and to not in self._reading:
            self._heard[to] = count
            self._hand(name, message)
        elif count > heard:
            self._read(to, count)

    def heard(self) -> dict[str, int]:
        """How far this node has heard: what a beat is to be compared with when it is answered (:meth:`beaten`)."""
        return dict(self._heard)

    def beaten(self, epoch: bytes, everybody: int, mine: int, before: dict[str, int]) -> None:
        """Where the bus is, as the engine says with a beat of this node.

        :param before: what had been :meth:`heard` when the beat was sent. More may have come since, and the answer does
            not know of it: only what is behind that is an engine that lost some.
        """
        # a first beat that failed may come after what was read of the others at the start
        begins, another = not self._epoch and not self._dropped, epoch != self._epoch
        self._epoch, self._dropped = epoch, False
        missed = False
        for to, newest in ((ALL, everybody), (self.node, mine)):
            heard = self._heard.get(to)
            if heard is None or another or newest < before.get(to, 0):
                self._heard[to] = newest
                missed |= not begins
            elif newest > heard:
                self._read(to, newest)
        if missed and self.ear is not None:
            self.ear.missed()

    def _hand(self, sender: str, message: bytes) -> None:
        if sender != self.node and self.ear is not None:
            self.ear.heard(sender, message)

    # -- reading what was not heard

    def _read(self, to: str, newest: int) -> None:
        self._newest[to] = max(newest, self._newest.get(to, 0))
        if to not in self._reading:
            self._reading.add(to)
            self._spawn(self._read_all(to))

    async def _read_all(self, to: str) -> None:
        try:
            while self._newest.get(to, 0) > self._heard.get(to, 0):
                await self._read_page(to)
        except BrokerUnavailable:
            pass  # the next beat that succeeds says that there is more
        finally:
            self._reading.discard(to)

    async def _read_page(self, to: str) -> None:
        after, newest = self._heard.get(to, 0), self._newest[to]
        stream = self._keys.home.key("b", to)
        page = await self._shard().call("XRANGE", stream, f"{after + 1}-0", "+", "COUNT", PAGE)
        if self._heard.get(to) != after:
            return  # the engine has become another one meanwhile
        entries = [_entry(entry) for entry in page]
        if not entries or entries[0][0] != after + 1:
            log.warning("messages of other nodes are not kept any more: what they told of is read again")
            self._heard[to] = newest if not entries else entries[0][0] - 1
            if self.ear is not None:
                self.ear.missed()
        for number, sender, message in entries:
            self._heard[to] = number
            self._hand(sender, message)


def _entry(entry: Any) -> tuple[int, str, bytes]:
    """Number, sender and message of an entry of the stream."""
    key, fields = entry
    pairs = dict(fields.items() if isinstance(fields, dict) else zip(fields[::2], fields[1::2], strict=True))
    return int(key.partition(b"-")[0]), pairs[b"s"].decode(), pairs[b"m"]
