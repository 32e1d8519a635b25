"""One node's way to a :class:`~hubbub.testing.engine.MemoryEngine`: the Broker and the Peers of its hub."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, NamedTuple, TypeAlias, TypeVar

from hubbub.errors import BrokerUnavailable
from hubbub.messages import Position
from hubbub.ports import Ear, Here, Inlet
from hubbub.settings import ChannelOptions, Settings
from hubbub.stream import Publication, Recovery

if TYPE_CHECKING:
    from hubbub.testing.engine import MemoryEngine

T = TypeVar("T")


Answered: TypeAlias = Callable[[Exception | None], None]


class _Waiting(NamedTuple):
    """A command that a stalled engine has not done.

    :ivar answered: called once, in the node's loop: it is done, or why it is not known to be.
    """

    deadline: float
    work: Callable[[], object]
    answered: Answered


class _Asked:
    """A channel for which it was asked who is there.

    :ivar at: what was said until then is in the answer.
    :ivar held: what was said after it, while whoever asked does not know the answer.
    """

    __slots__ = ("at", "held")

    def __init__(self, at: int) -> None:
        self.at = at
        self.held: list[tuple[str, str, Here | None]] | None = []


class MemoryEngineBroker:
    """A node's Broker over a :class:`MemoryEngine`. Made by :meth:`MemoryEngine.broker`, one for each hub.

    :ivar engine: which.
    :ivar peers: the other nodes.
    :ivar connected: False before its start, after its end, and while it is cut off.
    :ivar killed: it has been ended without a word.
    :ivar wanted: the channels that this node is subscribed to.
    :ivar heard: the number of the last message of other nodes that it has heard.
    :ivar said: what this node said of itself last.
    """

    def __init__(self, engine: MemoryEngine, settings: Settings) -> None:
        self.engine = engine
        self.settings = settings
        self.peers = MemoryEnginePeers(self)
        self.connected = self.killed = False
        self.wanted: set[str] = set()
        self.heard = 0
        self.said = b""
        self._inlet: Inlet | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._link = 0
        self._was_started = False
        self._waiting: list[_Waiting] = []

    @property
    def node(self) -> str:
        """This node's id, new at every start."""
        return self.peers.node

    # -- the Broker

    async def start(self, inlet: Inlet) -> None:
        """As :class:`~hubbub.ports.Broker` has it."""
        if self._was_started:
            self.peers.node = _new_id()
        self._inlet, self._loop, self._was_started = inlet, asyncio.get_running_loop(), True
        self.connected, self.killed = True, False
        self.engine.started(self)
        self.hear_nodes()

    async def stop(self) -> None:
        """As :class:`~hubbub.ports.Broker` has it: the others hear of it."""
        if self.connected:
            self.engine.part(self.node)
        self.disconnect()
        self._inlet = self._loop = None
        self.wanted.clear()
        self.peers.asked.clear()

    async def publish(
        self,
        channel: str,
        publication: Publication,
        options: ChannelOptions,
        *,
        once: str | None = None,
        version: int | None = None,
    ) -> Position:
        """As :class:`~hubbub.ports.Broker` has it.

        :raises BrokerUnavailable: it was cut off, or waited for too long, or the answer was lost on command.
        """
        position = await self.do(lambda: self.engine.publish(self, channel, publication, options, once, version))
        if position is None:
            raise _unanswered()
        return position

    def submit(
        self,
        channel: str,
        publication: Publication,
        options: ChannelOptions,
        done: Callable[[Position | None, Exception | None], None],
        *,
        once: str | None = None,
        version: int | None = None,
    ) -> None:
        """The same without waiting: ``done`` is called in a later turn, with the position or what was raised."""
        results: list[Position | None] = []

        def work() -> None:
            results.append(self.engine.publish(self, channel, publication, options, once, version))

        def answered(error: Exception | None) -> None:
            position = results[0] if results and error is None else None
            done(position, error if error is not None or position is not None else _unanswered())

        self._command(work, answered)

    async def relay(self, channel: str, publications: Sequence[Publication]) -> None:
        """As :class:`~hubbub.ports.Broker` has it."""

        def work() -> None:
            for publication in publications:
                self.engine.hand_out(channel, publication)

        await self.do(work)

    async def subscribe(self, channel: str) -> None:
        """As :class:`~hubbub.ports.Broker` has it."""
        await self.do(lambda: self.wanted.add(channel))

    async def unsubscribe(self, channel: str) -> None:
        """As :class:`~hubbub.ports.Broker` has it. While it is cut off, too: then it is not subscribed to again."""
        self.wanted.discard(channel)
        self.peers.asked.pop(channel, None)

    async def recover(self, channel: str, since: Position | None, limit: int, options: ChannelOptions) -> Recovery:
        """As :class:`~hubbub.ports.Past` has it."""
        return await self.do(lambda: self.engine.recover(self, channel, since, limit, options))

    async def history(
        self, channel: str, after: int | None, before: int | None, limit: int, options: ChannelOptions
    ) -> tuple[Position, Sequence[Publication], bool]:
        """As :class:`~hubbub.ports.Past` has it."""
        return await self.do(lambda: self.engine.history(channel, after, before, limit))

    def sweep(self, now: float) -> None:
        """As :class:`~hubbub.ports.Broker` has it: the engine does what is due."""
        self.engine.turn()

    @property
    def healthy(self) -> bool:
        """Whether the engine answers this node."""
        return self.connected and not self.engine.stalled

    # -- commands

    async def do(self, work: Callable[[], T]) -> T:
        """Have the engine do something. It is answered in a later turn of the loop.

        :raises BrokerUnavailable: cut off, or it waited for too long.
        """
        results: list[T] = []
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._command(lambda: results.append(work()), partial(_settle, future))
        await future
        return results[0]

    def push(self, work: Callable[[], object]) -> None:
        """The same, without an answer; nothing comes of it while the engine cannot be reached."""
        self._command(work, _nobody)

    def _command(self, work: Callable[[], object], answered: Answered) -> None:
        error: Exception | None = None
        if not self.connected:
            error = BrokerUnavailable("the engine cannot be reached")
        elif self.engine.stalled:
            deadline = self.engine.clock.monotonic() + self.settings.valkey_timeout
            self._waiting.append(_Waiting(deadline, work, answered))
            return
        else:
            try:
                work()
            except Exception as raised:
                error = raised  # a full memory of idempotency keys, for one
        self._in_loop(partial(answered, error))

    def do_waiting(self) -> None:
        """The engine answers again."""
        waiting, self._waiting = self._waiting, []
        for each in waiting:
            self._command(each.work, each.answered)

    def give_up(self, now: float) -> None:
        """Let what has waited for too long know that (monotonic seconds)."""
        for at, each in enumerate(self._waiting):
            if each.deadline <= now and each.answered is not _nobody:
                error = BrokerUnavailable("the engine does not answer in time")
                self._in_loop(partial(each.answered, error))
                self._waiting[at] = each._replace(answered=_nobody)

    # -- the connection

    def connect(self) -> None:
        """Be there again."""
        self.connected = True

    def disconnect(self) -> None:
        """Be there no more: what is on its way is lost, and what waits is not done."""
        self.connected = False
        self._link += 1
        waiting, self._waiting = self._waiting, []
        for each in waiting:
            self._in_loop(partial(each.answered, BrokerUnavailable("the connection to the engine was lost")))

    def catch_up(self) -> None:
        """Say what follows from having been away."""
        self.soon(self._may_have_missed)
        self.soon(self.listen)
        self.soon(self.peers.declare)

    def soon(self, what: Callable[[], object]) -> None:
        """Do something of the engine's in a later turn of this node's loop, unless the connection is lost by then."""
        if self.connected:
            self._in_loop(partial(self._unless_lost, self._link, what))

    def _unless_lost(self, link: int, what: Callable[[], object]) -> None:
        if self.connected and link == self._link:
            what()

    def _in_loop(self, what: Callable[[], object]) -> None:
        loop = self._loop
        if loop is None or loop.is_closed():
            return  # its hub was never stopped, but nothing of it runs any more
        loop.call_soon_threadsafe(what)

    # -- what the engine says

    def hear(self, channel: str, publication: Publication) -> None:
        """A publication."""
        if self._inlet is not None and channel in self.wanted:
            self._inlet.deliver(channel, publication)

    def _may_have_missed(self) -> None:
        if self._inlet is not None:
            self._inlet.lost(None)

    def listen(self) -> None:
        """Messages of other nodes."""
        ear = self.peers.ear
        missed, messages = self.engine.unheard(self)
        if ear is None:
            return
        if missed:
            ear.missed()
        for sender, message in messages:
            ear.heard(sender, message)

    def hear_passing(self, sender: str, message: bytes) -> None:
        """A message of another node that is not kept."""
        if self.peers.ear is not None:
            self.peers.ear.heard(sender, message)

    def report(self) -> None:
        """This node's beat."""
        if self.peers.ear is not None:
            self.said = self.peers.ear.report()
            self.engine.set_report(self.node, self.said)

    def hear_nodes(self) -> None:
        """Who lives."""
        if self.peers.ear is not None:
            self.peers.ear.nodes(self.engine.alive(self.node))

    def hear_present(self, at: int, channel: str, node: str, user_id: str, here: Here | None) -> None:
        """A user of another node."""
        asked = self.peers.asked.get(channel)
        if channel not in self.wanted or asked is None or at <= asked.at:
            return
        if asked.held is not None:
            asked.held.append((node, user_id, here))
        elif self.peers.ear is not None:
            self.peers.ear.present(channel, node, user_id, here)


class MemoryEnginePeers:
    """The other nodes over a :class:`MemoryEngine`, as :class:`~hubbub.ports.Peers` has it.

    :ivar node: this node's id.
    :ivar ear: who is told.
    :ivar asked: channels for which it was asked who is there.
    """

    def __init__(self, broker: MemoryEngineBroker) -> None:
        self.node = _new_id()
        self.ear: Ear | None = None
        self.asked: dict[str, _Asked] = {}
        self._broker = broker
        self._engine = broker.engine

    def listen(self, ear: Ear) -> None:
        """As :class:`~hubbub.ports.Peers` has it."""
        self.ear = ear

    async def tell(self, message: bytes, *, node: str | None = None, keep: bool = True) -> None:
        """As :class:`~hubbub.ports.Peers` has it.

        :raises BrokerUnavailable: cut off, or it waited for too long.
        """
        await self._broker.do(lambda: self._engine.add_message(self.node, message, node, keep))

    def here(self, channel: str, user_id: str, here: Here | None) -> None:
        """As :class:`~hubbub.ports.Peers` has it."""
        self._broker.push(lambda: self._engine.say_here(self.node, channel, user_id, here))

    async def who(self, channel: str) -> dict[str, dict[str, Here]]:
        """As :class:`~hubbub.ports.Peers` has it.

        :raises BrokerUnavailable: cut off, or it waited for too long.
        """

        def work() -> tuple[_Asked, dict[str, dict[str, Here]]]:
            at, found = self._engine.who(self.node, channel)
            asked = self.asked[channel] = _Asked(at)
            return asked, found

        asked, found = await self._broker.do(work)
        self._broker.soon(partial(self._release, channel, asked))  # whoever has asked knows the answer by then
        return found

    def _release(self, channel: str, asked: _Asked) -> None:
        held, asked.held = asked.held, None
        if self.asked.get(channel) is not asked:
            return  # asked once more, or nobody wants to know it any more
        for present in held or ():
            if self.ear is not None:
                self.ear.present(channel, *present)

    async def counts(self, channels: Sequence[str]) -> dict[str, int]:
        """As :class:`~hubbub.ports.Peers` has it.

        :raises BrokerUnavailable: cut off, or it waited for too long.
        """
        return await self._broker.do(lambda: self._engine.counts(channels))

    async def keep(self, kind: str, key: str, value: bytes, seconds: float, *, rank: float = 0.0) -> None:
        """As :class:`~hubbub.ports.Peers` has it.

        :raises BrokerUnavailable: cut off, or it waited for too long.
        """
        await self._broker.do(lambda: self._engine.keep(kind, key, value, seconds, rank))

    async def kept(self, kind: str) -> dict[str, bytes]:
        """As :class:`~hubbub.ports.Peers` has it.

        :raises BrokerUnavailable: cut off, or it waited for too long.
        """
        return await self._broker.do(lambda: self._engine.kept(kind))

    def leave(self) -> None:
        """As :class:`~hubbub.ports.Peers` has it."""
        self._broker.push(lambda: self._engine.leave(self.node))

    def declare(self) -> None:
        """The engine may have lost this node's presence, or this node that of others: all of it anew."""
        self.asked.clear()
        self._engine.declare(self.node)
        if self.ear is not None:
            self.ear.declare()


def _new_id() -> str:
    return secrets.token_urlsafe(9)


def _unanswered() -> BrokerUnavailable:
    return BrokerUnavailable("the answer of the engine was lost (a test said so)")


def _nobody(error: Exception | None) -> None:
    """Nobody waits for this answer."""


def _settle(future: asyncio.Future[None], error: Exception | None) -> None:
    if future.done():
        return
    if error is None:
        future.set_result(None)
    else:
        future.set_exception(error)
