"""Where a contract suite runs: how it comes by brokers, how time passes for them, and what it records of them."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Mapping
from contextlib import asynccontextmanager
from math import inf
from time import monotonic
from typing import Any, ClassVar

from hubbub.messages import Position
from hubbub.ports import BEAT, Broker, Clock, Here, Inlet, Peers
from hubbub.settings import ChannelOptions
from hubbub.stream import Publication


class Place(ABC):
    """One engine, fresh and empty, and a way to make brokers for nodes on it. Whoever tests a broker says how.

    :ivar clock: the brokers' clock.
    :cvar hears_all: it also hands over publications of channels that nobody on the node subscribed to. A broker of a
        single node may do that, since it costs nothing there.
    :cvar longest: seconds for which a test may let time pass: endless for a clock that is turned by hand.
    :cvar patience: seconds of real time that a test waits for what is to come.
    """

    clock: Clock
    hears_all: ClassVar[bool] = False
    longest: ClassVar[float] = inf
    patience: ClassVar[float] = 10.0

    @abstractmethod
    def broker(self, **settings: Any) -> Broker:
        """A new node's broker on the engine, not started; with these settings beside those that it needs."""

    @abstractmethod
    async def pass_time(self, seconds: float) -> None:
        """Let so much time pass for all brokers and for the engine: turn the clock, or wait."""

    async def kill(self, broker: Broker) -> None:
        """End a started node without a word, as ``kill -9`` or a lost network would. Only for :class:`PeersContract`."""
        raise NotImplementedError

    async def until(self, condition: Callable[[], bool], what: str, patience: float | None = None) -> None:
        """Let the loop run until a condition holds.

        :param patience: seconds of real time; by default the place's.
        :raises AssertionError: it did not come true, and ``what`` says what was waited for.
        """
        patience = self.patience if patience is None else patience
        deadline = monotonic() + patience
        while not condition():
            if monotonic() >= deadline:
                raise AssertionError(f"{what}: not within {patience:g} s")
            await asyncio.sleep(0.0005)

    async def until_it(self, ask: Callable[[], Coroutine[Any, Any, bool]], what: str) -> None:
        """The same for what has to be asked for."""
        deadline = monotonic() + self.patience
        while not await ask():
            if monotonic() >= deadline:
                raise AssertionError(f"{what}: not within {self.patience:g} s")
            await asyncio.sleep(0.0005)

    async def until_beaten(self, condition: Callable[[], bool], what: str, seconds: float) -> None:
        """Let at most so much of the clock's time pass, beat by beat, until a condition holds."""
        passed = 0.0
        while True:
            try:
                return await self.until(condition, what, 0.05)
            except AssertionError:
                if passed >= seconds:
                    raise AssertionError(f"{what}: not within {seconds:g} s") from None
            await self.pass_time(BEAT / 2)
            passed += BEAT / 2

    @asynccontextmanager
    async def node(self, **settings: Any) -> AsyncIterator[Node]:
        """A started node, stopped at the end unless the test did that."""
        node = Node(self, self.broker(**settings))
        await node.start()
        try:
            yield node
        finally:
            if node.runs:
                await node.stop()

    @asynccontextmanager
    async def nodes(self, count: int, *, acquainted: bool = False, **settings: Any) -> AsyncIterator[list[Node]]:
        """So many of them.

        :param acquainted: not before each has heard of all others, which takes a beat or two.
        """
        nodes = [Node(self, self.broker(**settings)) for _ in range(count)]
        try:
            for node in nodes:
                await node.start()
            if acquainted:
                await self.until_beaten(
                    lambda: all(len(node.ear.alive) == count - 1 for node in nodes), "all know each other", 2 * BEAT
                )
            yield nodes
        finally:
            for node in nodes:
                if node.runs:
                    await node.stop()


class Node:
    """A broker, and what it handed over.

    :ivar runs: it was started, and not stopped or killed.
    :ivar got: the publications of each channel as they came, whatever was told of losses between them.
    """

    def __init__(self, place: Place, broker: Broker) -> None:
        self.place = place
        self.broker = broker
        self.ear = Heard()
        self.got: dict[str, list[Publication]] = {}
        self.runs = False
        if broker.peers is not None:
            broker.peers.listen(self.ear)

    async def start(self) -> None:
        inlet: Inlet = self
        await self.broker.start(inlet)
        self.runs = True

    async def stop(self) -> None:
        self.runs = False
        await self.broker.stop()

    @property
    def peers(self) -> Peers:
        peers = self.broker.peers
        assert peers is not None, "this broker has no peers: it is for one node"
        return peers

    # -- the Inlet

    def deliver(self, channel: str, publication: Publication) -> None:
        self.got.setdefault(channel, []).append(copied(publication))

    def lost(self, channel: str | None) -> None:
        """Nothing: a broker may say so at any time, and the suite looks into history itself."""

    def renewed(self, channel: str, position: Position) -> None:
        """Nothing, as above."""

    # -- what a test wants to know

    async def publish(self, channel: str, text: str, options: ChannelOptions, **how: Any) -> Position:
        """Publish a text."""
        return await self.broker.publish(channel, self.publication(text), options, **how)

    async def fill(self, channel: str, texts: Iterable[str], options: ChannelOptions) -> Position:
        """Publish texts, one after the other. Returns the position of the last one."""
        positions = [await self.publish(channel, text, options) for text in texts]
        return positions[-1]

    def publication(self, text: str, **fields: Any) -> Publication:
        """A publication of a text, as of now."""
        return Publication(b"", text.encode(), at=self.place.clock.time(), **fields)

    def texts(self, channel: str) -> dict[int, str]:
        """Offset → text of what came on a channel. What came twice is there once, and has to be the same."""
        found: dict[int, str] = {}
        for publication in self.got.get(channel, ()):
            text = publication.tail.decode()
            assert found.setdefault(publication.offset, text) == text, (
                f"two publications with offset {publication.offset}"
            )
        return found

    async def has(self, channel: str, *offsets: int) -> None:
        """Wait until publications have come."""
        await self.place.until(
            lambda: set(offsets) <= self.texts(channel).keys(), f"publications {offsets} of {channel!r} arrive"
        )

    async def kept(self, channel: str, options: ChannelOptions) -> list[str]:
        """The texts in a channel's history."""
        _, page, _ = await self.broker.history(channel, None, None, 10_000, options)
        return [publication.tail.decode() for publication in page]


class Heard:
    """An Ear that writes down what it hears.

    :ivar messages: (sender, message), as they came.
    :ivar here: channel → node → user → how, from what was said; a test may put an answer of ``who`` below it.
    :ivar alive: the other nodes, as of the last beat.
    :ivar own: what it says of itself.
    """

    def __init__(self) -> None:
        self.messages: list[tuple[str, bytes]] = []
        self.gaps = self.declared = 0
        self.here: dict[str, dict[str, dict[str, Here]]] = {}
        self.said: list[tuple[str, str, str, Here | None]] = []
        self.alive: dict[str, bytes] = {}
        self.own = b"hello"

    def heard(self, sender: str, message: bytes) -> None:
        self.messages.append((sender, bytes(message)))

    def missed(self) -> None:
        self.gaps += 1

    def present(self, channel: str, node: str, user_id: str, here: Here | None) -> None:
        self.said.append((channel, node, user_id, here))
        users = self.here.setdefault(channel, {}).setdefault(node, {})
        if here is None:
            users.pop(user_id, None)
        else:
            users[user_id] = Here(*here)
        if not users:
            del self.here[channel][node]

    def nodes(self, alive: Mapping[str, bytes]) -> None:
        self.alive = {node: bytes(report) for node, report in alive.items()}
        for users in self.here.values():
            for gone in users.keys() - self.alive.keys():
                del users[gone]

    def report(self) -> bytes:
        return self.own

    def declare(self) -> None:
        self.declared += 1

    def said_by(self, sender: str) -> list[bytes]:
        """What one node said."""
        return [message for by, message in self.messages if by == sender]


def copied(publication: Publication) -> Publication:
    """The same publication in another object."""
    p = publication
    return Publication(bytes(p.head), bytes(p.tail), p.key, p.user, p.origin, p.at, p.offset)
