"""This node among the others: what nodes tell and ask each other, who of them lives, and what they have together.

Everything here also works where there are no others: then nobody is told, nobody answers, and the totals are this node's.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from inspect import isawaitable
from itertools import count
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeVar

import msgspec
from msgspec import Struct

from hubbub.agreement import Agreement
from hubbub.control import (
    ANSWER,
    NO_ANSWER,
    VERSION,
    Letter,
    Report,
    answer_of,
    kind_of,
    letter_of,
    no_answer_of,
    open_letter,
)
from hubbub.devices import Devices
from hubbub.errors import BrokerUnavailable, ClientError, StoreUnavailable
from hubbub.everywhere import Everywhere
from hubbub.ports import Here, Peers

if TYPE_CHECKING:
    from hubbub.hub import Hub

log = logging.getLogger("hubbub")
S = TypeVar("S", bound=Struct)

ASK_SECONDS: Final = 1.0
"""How long the others have for an answer."""
MAX_ASKS: Final = 10_000
"""Questions that may wait for their answers; beyond, they are told, and nobody waits."""
RESYNC_PAUSE: Final = 0.1
"""Seconds before a resyncer that found the engine away is run again; doubled each time, at most to ten times as long."""


class Answers(list[Any]):
    """The answers to a question.

    :ivar complete: every other node has answered: nobody was cut off, too slow, or of a release that does not know it.
    :ivar told: the question was sent: it reaches all nodes, although some may not have answered in time.
    """

    complete: bool
    told: bool

    def __init__(self, complete: bool = True, told: bool = True) -> None:
        super().__init__()
        self.complete = complete
        self.told = told


class Totals(NamedTuple):
    """What the nodes that live have together.

    :ivar nodes: how many they are, this one included.
    :ivar sessions: open connections.
    :ivar users: users signed in, counted once per node that they are on.
    :ivar draining: nodes that let nobody in any more.
    """

    nodes: int
    sessions: int
    users: int
    draining: int


class Cluster:
    """The Ear of a hub.

    :ivar peers: the way to the others; None where there are none.
    :ivar others: the other nodes that live, and what each last said of itself.
    :ivar resyncers: run after messages of others may have been missed: each reads again what they would have told of.
        One that raises BrokerUnavailable or StoreUnavailable is run again.
    :ivar everywhere: what is done to sessions on all nodes at once.
    :ivar devices: how many a user may have.
    :ivar agreement: whether all have the same database and keys.
    :ivar counts: what happened: ``told``, ``untold`` (the engine was away), ``heard``, ``bad`` (could not be read),
        ``unknown`` (of another release), ``failed`` (a handler raised), ``unanswered`` (asked, and somebody did not say).
    """

    def __init__(self, hub: Hub) -> None:
        self._hub = hub
        self.peers: Peers | None = hub.broker.peers
        self.others: Mapping[str, Report] = {}
        self.resyncers: list[Callable[[], Coroutine[Any, Any, None]]] = []
        self.counts: Counter[str] = Counter()
        self._handlers: dict[str, _Handler] = {}
        self._asks: dict[int, _Question] = {}
        self._numbers = count(1)
        self._passed_over: set[str] = set()
        self._resyncing: dict[Callable[[], Coroutine[Any, Any, None]], bool] = {}
        self.everywhere = Everywhere(hub, self)
        self.devices = Devices(hub, self)
        self.agreement = Agreement(hub.settings)
        if self.peers is not None:
            self.peers.listen(self)

    @property
    def node(self) -> str:
        """This node's id; "" where there are no others."""
        return self.peers.node if self.peers is not None else ""

    def on(self, kind: type[S], handle: Callable[[S], Any], *, outside: bool = False) -> None:
        """Say who acts on a kind of message of other nodes. What it returns answers :meth:`ask` (None: no answer).

        :param kind: a struct with a tag of its own. Its fields are checked when it comes, as those of clients are.
        :param handle: a function or coroutine function. Messages of one sender come in order; a coroutine that waits
            does not keep the next one.
        :param outside: publishers without a server may send it, too.
        :raises ValueError: there is one for this kind.
        """
        name = kind_of(kind)
        if name in self._handlers:
            raise ValueError(f"two handlers for {name!r} of other nodes")
        self._handlers[name] = _Handler(msgspec.msgpack.Decoder(kind).decode, handle, outside)

    # -- to the others

    async def tell(self, message: Struct, *, node: str | None = None) -> bool:
        """Send all other nodes (or one) a message. False: the engine is away, so they may not get it."""
        return await self._send(letter_of(message), node)

    async def ask(self, message: Struct, *, timeout: float | None = None, keep: bool = True) -> Answers:
        """Send all other nodes a message, and return the answers of those that answer in time. It does not wait for nodes
        that are gone.

        :param keep: False: it is only a question. Who cannot hear it now need not hear it later.
        :param timeout: seconds, from when it was sent; by default :data:`ASK_SECONDS`.
        """
        if self.peers is None:
            return Answers()
        assert self._hub.loop is not None, "the hub is not running"
        expected = set(self.others)
        if not expected or len(self._asks) >= MAX_ASKS:
            told = await self.tell(message)
            return Answers(told and not expected, told)
        number = next(self._numbers)
        question = self._asks[number] = _Question(expected, self._hub.loop.create_future())
        try:
            question.answers.told = await self._send(letter_of(message, number), keep=keep)
            if question.answers.told:
                await asyncio.wait((question.done,), timeout=ASK_SECONDS if timeout is None else timeout)
        finally:
            del self._asks[number]
        if not question.settled():
            self.counts["unanswered"] += 1
            question.answers.complete = False
        return question.answers

    async def _send(self, letter: bytes, node: str | None = None, keep: bool = True) -> bool:
        if self.peers is None:
            return True
        try:
            await self.peers.tell(letter, node=node, keep=keep)
        except BrokerUnavailable:
            self.counts["untold"] += 1
            return False
        self.counts["told"] += 1
        return True

    # -- from the others: the Ear

    def heard(self, sender: str, message: bytes) -> None:
        if self._hub.loop is None:
            return  # it has stopped
        self.counts["heard"] += 1
        try:
            letter = open_letter(message)
        except ValueError as error:
            self._bad(sender, "a message", error)
            return
        if letter.version > VERSION:
            self._unknown(sender, letter, f"version {letter.version}")
        elif letter.kind in (ANSWER, NO_ANSWER):
            self._answered(sender, letter)
        elif (handler := self._handlers.get(letter.kind)) is None:
            self._unknown(sender, letter, letter.kind)
        elif not sender and not handler.outside:
            self._bad(sender, letter.kind, PermissionError("only nodes may send it"))
        else:
            self._handle(sender, letter, handler)

    def _handle(self, sender: str, letter: Letter, handler: _Handler) -> None:
        try:
            message = handler.decode(letter.body)
        except (ValueError, RecursionError) as error:
            self._bad(sender, letter.kind, error)
            self._answer(sender, letter, failed=True)
            return
        try:
            result = handler.handle(message)
        except Exception as error:
            self._failed(sender, letter, error)
            return
        if isawaitable(result):
            self._hub.background(self._finish(sender, letter, result))
        else:
            self._answer(sender, letter, result)

    async def _finish(self, sender: str, letter: Letter, result: Awaitable[Any]) -> None:
        try:
            answer = await result
        except Exception as error:
            self._failed(sender, letter, error)
        else:
            self._answer(sender, letter, answer)

    def _answer(self, sender: str, letter: Letter, answer: Any = None, *, failed: bool = False) -> None:
        if letter.ask and sender:
            reply = no_answer_of(letter.ask) if failed else answer_of(letter.ask, answer)
            self._hub.background(self._send(reply, sender, keep=False))

    def _answered(self, sender: str, letter: Letter) -> None:
        question = self._asks.get(letter.ask)
        if question is None or not sender:
            return  # too late: nobody waits any more
        try:
            answer = msgspec.msgpack.decode(letter.body)
        except (ValueError, RecursionError) as error:
            self._bad(sender, "an answer", error)
            question.take(sender, None, False)
        else:
            question.take(sender, answer, letter.kind == ANSWER)

    def _bad(self, sender: str, what: str, error: Exception) -> None:
        self.counts["bad"] += 1
        log.warning("%s of another node cannot be used: %s", what, error, extra={"node": sender or "a publisher"})

    def _failed(self, sender: str, letter: Letter, error: Exception) -> None:
        self.counts["failed"] += 1
        if isinstance(error, ClientError):  # a refusal, and no fault of ours
            log.warning("%r of another node was refused: %s", letter.kind, error, extra={"node": sender})
        else:
            log.error("acting on %r of another node failed", letter.kind, exc_info=error, extra={"node": sender})
        self._answer(sender, letter, failed=True)

    def _unknown(self, sender: str, letter: Letter, what: str) -> None:
        self.counts["unknown"] += 1
        if len(self._passed_over) < 100 and what not in self._passed_over:  # once: there may be many
            self._passed_over.add(what)
            log.warning("messages of a newer node are passed over: %s", what, extra={"node": sender})
        if letter.version <= VERSION:
            self._answer(sender, letter, failed=True)

    def missed(self) -> None:
        if self._hub.loop is None:
            return
        for resync in self.resyncers:
            self.resync(resync)

    def resync(self, resync: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Run a resyncer in the background, until what it reads answers. Never twice at once: if it runs, then once more."""
        running = resync in self._resyncing
        self._resyncing[resync] = True
        if not running:
            self._hub.background(self._resync(resync))

    async def _resync(self, resync: Callable[[], Coroutine[Any, Any, None]]) -> None:
        pause = RESYNC_PAUSE
        try:
            while self._resyncing[resync]:
                self._resyncing[resync] = False
                try:
                    await resync()
                    pause = RESYNC_PAUSE
                except (BrokerUnavailable, StoreUnavailable):
                    self._resyncing[resync] = True
                    await asyncio.sleep(pause)
                    pause = min(pause * 2, RESYNC_PAUSE * 10)
        except Exception:
            self.counts["failed"] += 1
            log.exception("what other nodes told meanwhile could not be read again")
        finally:
            del self._resyncing[resync]

    def present(self, channel: str, node: str, user_id: str, here: Here | None) -> None:
        self._hub.comings.heard(channel, node, user_id, here)

    def nodes(self, alive: Mapping[str, bytes]) -> None:
        self.others = {node: self._read(node, said) for node, said in alive.items() if node != self.node}
        self.agreement.look(self.others)
        for question in list(self._asks.values()):
            question.only(self.others)
        self.everywhere.revocations.joined()
        self._hub.comings.alive(alive.keys())

    def _read(self, node: str, said: bytes) -> Report:
        try:
            return _read_report(said)
        except (ValueError, RecursionError) as error:
            self._bad(node, "what it says of itself", error)
            return Report()

    def report(self) -> bytes:
        return msgspec.msgpack.encode(self.own())

    def own(self) -> Report:
        """What this node says of itself."""
        from hubbub import __version__

        hub = self._hub
        common = self.agreement
        return Report(
            len(hub.sessions),
            hub.entrance.people,
            len(hub.channels),
            __version__,
            hub.draining,
            common.store,
            common.keys,
        )

    def totals(self) -> Totals:
        """What this node has, and what the others last said that they have: at most a few seconds old."""
        reports = [self.own(), *self.others.values()]
        sessions = sum(each.sessions for each in reports)
        users = sum(each.users for each in reports)
        return Totals(len(reports), sessions, users, sum(each.draining for each in reports))

    def declare(self) -> None:
        self._hub.comings.declare()


class _Handler(NamedTuple):
    decode: Callable[[Any], Any]
    handle: Callable[[Any], Any]
    outside: bool


class _Question:
    """A message that waits for its answers."""

    __slots__ = ("_answered", "_expected", "answers", "done")

    def __init__(self, expected: set[str], done: asyncio.Future[None]) -> None:
        self._expected = expected
        self._answered: set[str] = set()
        self.answers = Answers()
        self.done = done

    def take(self, node: str, answer: Any, good: bool) -> None:
        """A node has answered: None is no answer, but an end of waiting."""
        if node in self._answered:
            return
        self._answered.add(node)
        if not good:
            self.answers.complete = False
        elif answer is not None:
            self.answers.append(answer)
        self._look()

    def only(self, alive: Mapping[str, Any]) -> None:
        """Wait for no other node than these. Who is gone has nobody any more."""
        self._expected &= alive.keys()
        self._look()

    def settled(self) -> bool:
        """Whether nobody is waited for."""
        return self._expected <= self._answered

    def _look(self) -> None:
        if self.settled() and not self.done.done():
            self.done.set_result(None)


_read_report = msgspec.msgpack.Decoder(Report).decode
