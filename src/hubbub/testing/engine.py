"""An engine in this process that several hubs share: two nodes of a cluster, in one test.

It does what Valkey does for real nodes: it has the history and the offsets, hands publications to the nodes that
subscribed to their channels, knows who lives by leases, and carries what nodes tell each other. And it fails on command.
"""

from __future__ import annotations

import secrets
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from operator import attrgetter
from threading import RLock
from typing import Any, Final, NamedTuple

from hubbub.app import SystemClock
from hubbub.brokers.memory import Once
from hubbub.messages import Position
from hubbub.ports import BEAT, LEASE, Clock, Here
from hubbub.settings import ChannelOptions, Settings, load_settings
from hubbub.stream import History, Publication, Recovery
from hubbub.testing.engine_node import MemoryEngineBroker, MemoryEnginePeers

TOLD_KEPT: Final = 1000
"""Messages between nodes that are kept for one that is away."""
TOLD_SECONDS: Final = 60.0
"""For how long."""


class _Kept:
    """A channel as the engine has it.

    :ivar ends: the offset at which each former generation ended. A position of one of them is good up to there.
    :ivar versions: of the publications that had one: (offset, version), ascending in both.
    """

    __slots__ = ("base", "ends", "generation", "history", "versions")

    def __init__(self, generation: int, options: ChannelOptions, max_bytes: int) -> None:
        self.base = secrets.token_hex(4)
        self.generation = generation
        self.ends: dict[int, int] = {}
        self.versions: list[tuple[int, int]] = []
        self.history = History(self.epoch, options.history_size, options.history_ttl, max_bytes)

    @property
    def epoch(self) -> str:
        return f"{self.base}.{self.generation}"

    @property
    def version(self) -> int:
        return self.versions[-1][1] if self.versions else -1

    def renew(self, generation: int, lose: int) -> None:
        """Go on in a new generation, without the last publications."""
        old = self.history
        end = max(0, old.offset - lose)
        left = [publication for publication in old if publication.offset <= end]
        self.ends[self.generation] = end
        self.generation = generation
        self.versions = [each for each in self.versions if each[0] <= end]
        self.history = History(self.epoch, old.size, old.ttl, old.max_bytes)
        self.history.offset = end - len(left)
        for publication in left:
            self.history.append(publication)

    def current(self, since: Position | None) -> Position | None:
        """The position in today's epoch, where it means the same there."""
        base, _, generation = ("" if since is None else since.epoch).rpartition(".")
        if since is None or base != self.base or not generation.isdecimal():
            return since
        ends = [end for ended, end in self.ends.items() if ended >= int(generation)]
        return Position(self.epoch, since.offset) if since.offset <= min(ends, default=-1) else since


@dataclass(slots=True)
class _Member:
    """A node that lives, as the engine knows it.

    :ivar beaten: monotonic seconds of its last beat.
    :ivar declared: how often it has said all of its presence anew; what is older is forgotten with a beat.
    :ivar here: channel → user → how, and which declaration that belongs to.
    """

    broker: MemoryEngineBroker
    beaten: float
    report: bytes = b""
    leaving: bool = False
    declared: int = 0
    here: dict[str, dict[str, tuple[Here, int]]] = field(default_factory=dict)


@dataclass(slots=True, frozen=True)
class _Told:
    number: int
    at: float
    sender: str
    node: str | None
    message: bytes


class _Fact(NamedTuple):
    value: bytes
    until: float
    rank: float


class MemoryEngine:
    """An engine that hubs of one process share, each over a broker of its own::

        clock = HandClock()
        engine = MemoryEngine(clock)
        one = Hubbub(app1, clock=clock, broker=engine.broker())
        two = Hubbub(app2, clock=clock, broker=engine.broker())

    What an engine has to say to a node arrives in a later turn of the node's loop, in the engine's order. Time is the
    clock's: leases, what is kept, how long a command may wait. Nodes may run in different loops and threads.
    Beside the bounds of each channel's history nothing is bounded here: it is for tests.

    In place of a broker, faults also take a hub (the :class:`Hubbub` that has it).

    :param clock: the clock of all its hubs; by default the machine's.
    """

    def __init__(self, clock: Clock | None = None) -> None:
        self.clock: Clock = clock if clock is not None else SystemClock()
        self.lock = RLock()
        self.stalled = False
        self._generation = 1
        self._unanswered = 0
        self._brokers: list[MemoryEngineBroker] = []
        self._channels: dict[str, _Kept] = {}
        self._once = Once()
        self._members: dict[str, _Member] = {}
        self._told: deque[_Told] = deque()
        self._number = self._said = 0
        self._facts: dict[tuple[str, str], _Fact] = {}
        self._beaten = self.clock.monotonic()
        watch = getattr(self.clock, "watch", None)
        if watch is not None:
            watch(self.turn)

    def broker(self, settings: Settings | None = None) -> MemoryEngineBroker:
        """A new node's way to this engine.

        :param settings: the hub's (``history_bytes`` and ``valkey_timeout`` matter here); by default the environment's.
        """
        broker = MemoryEngineBroker(self, settings if settings is not None else load_settings())
        self._brokers.append(broker)
        return broker

    @property
    def nodes(self) -> set[str]:
        """The ids of the nodes that live, as far as the engine knows."""
        with self.lock:
            return set(self._members)

    # -- faults

    def cut(self, node: Any) -> None:
        """Cut a node off, until :meth:`heal`: its commands raise :class:`BrokerUnavailable`, and it hears nothing.

        What was on its way to it is lost. After :data:`~hubbub.ports.LEASE` seconds without a beat it is gone for others.
        """
        self._broker_of(node).disconnect()

    def heal(self, node: Any) -> None:
        """Let a node that was cut off find its way back: it is told that it may have missed something."""
        broker = self._broker_of(node)
        if not broker.connected and not broker.killed:
            self._reconnect([broker])

    def kill(self, node: Any) -> None:
        """End a node without a word, as ``kill -9`` would. Its hub may be stopped later, or not; it stays dead."""
        broker = self._broker_of(node)
        broker.killed = True
        broker.disconnect()

    def restart(self, *, empty: bool = False, lose: int = 0) -> None:
        """Let the engine end and come back: all nodes lose their connections, and have new ones at once.

        Epochs are new. A position of an old one is still good up to where that ended (as for Valkey with a log of what
        was written); whoever is beyond it, or was in an engine that came back empty, gets a ``gap``.

        :param empty: it has nothing of what it had.
        :param lose: so many of each channel's last publications are lost, as when a replica takes over that was behind.
        """
        with self.lock:
            back = [broker for broker in self._brokers if broker.connected]
            for broker in back:
                broker.disconnect()
            self._generation += 1
            if empty:
                self._channels.clear()
                self._once = Once()
                self._facts.clear()
                self._members.clear()
                self._told.clear()
                self._number += 1  # no node has heard this one: all missed something
            for name, kept in self._channels.items():
                kept.renew(self._generation, lose)
                if lose:
                    self._once.forget(name, kept.history.offset)
            self._reconnect(back)

    def stall(self) -> None:
        """Answer nobody, until :meth:`resume`. A command that waits for longer than ``valkey_timeout`` (by the clock)
        raises :class:`BrokerUnavailable`; it is done all the same, when the engine resumes."""
        self.stalled = True

    def resume(self) -> None:
        """Do what has waited, in its order, and answer again."""
        self.stalled = False
        for broker in self._brokers:
            broker.do_waiting()
        self.turn()

    def leave_unanswered(self, count: int = 1) -> None:
        """Publish the next publications, but let their publishers hear :class:`BrokerUnavailable`: the answer was lost."""
        self._unanswered += count

    def tell(self, message: bytes) -> None:
        """Tell all nodes something, as a publisher without a server does (the sender is "")."""
        self.add_message("", message, None)

    # -- time

    def turn(self) -> None:
        """Do what is due: beats, leases, commands that waited for too long. Called when the clock is turned (if it can be
        turned by hand), and by each hub's sweep."""
        with self.lock:
            now = self.clock.monotonic()
            for broker in self._brokers:
                broker.give_up(now)
            if self.stalled or now - self._beaten < BEAT:
                return
            self._beaten = now
            # however far the clock was turned: who can beat has done so meanwhile
            for member in self._members.values():
                if member.broker.connected:
                    member.beaten = now
                    member.broker.soon(member.broker.report)
            for node, member in list(self._members.items()):
                if now - member.beaten >= LEASE:
                    del self._members[node]
                else:
                    self._forget_older(node, member)
            self._facts = {name: fact for name, fact in self._facts.items() if fact.until > now}
            self._tell_nodes()

    def _forget_older(self, node: str, member: _Member) -> None:
        for channel, users in list(member.here.items()):
            for user_id, (_, declared) in list(users.items()):
                if declared < member.declared:
                    self.say_here(node, channel, user_id, None)

    # -- what nodes come with

    def join(self, broker: MemoryEngineBroker) -> None:
        """A node starts, or is back."""
        with self.lock:
            now = self.clock.monotonic()
            member = self._members.get(broker.node)
            if member is None:
                self._members[broker.node] = _Member(broker, now, broker.said)
            else:
                member.beaten = now

    def started(self, broker: MemoryEngineBroker) -> None:
        """A node that has not been there before."""
        with self.lock:
            broker.heard = self._number
            self.join(broker)
            broker.report()
            self._tell_nodes()

    def part(self, node: str) -> None:
        """A node stops, and says so."""
        with self.lock:
            if self._members.pop(node, None) is not None:
                self._tell_nodes()

    def leave(self, node: str) -> None:
        """A node stops soon."""
        with self.lock:
            member = self._members.get(node)
            if member is not None:
                member.leaving = True
                self._tell_nodes()

    def set_report(self, node: str, report: bytes) -> None:
        """What a node says of itself."""
        with self.lock:
            member = self._members.get(node)
            if member is not None:
                member.report = report

    def alive(self, node: str) -> dict[str, bytes]:
        """The nodes that live, but for one, and what they say of themselves."""
        with self.lock:
            others = [(other, member) for other, member in self._members.items() if other != node]
            return {other: member.report for other, member in others if member.here or not member.leaving}

    def _tell_nodes(self) -> None:
        for broker in self._brokers:
            broker.soon(broker.hear_nodes)

    def _reconnect(self, brokers: list[MemoryEngineBroker]) -> None:
        with self.lock:
            for broker in brokers:
                broker.connect()
                self.join(broker)
                broker.soon(broker.report)
            for broker in brokers:
                broker.catch_up()
            self._tell_nodes()

    def _broker_of(self, node: Any) -> MemoryEngineBroker:
        for owner in (node, getattr(node, "hub", None)):
            broker = getattr(owner, "broker", owner)
            broker = getattr(broker, "_inner", broker)  # within a FaultyBroker
            found = [own for own in self._brokers if id(own) == id(broker)]
            if found:
                return found[0]
        raise TypeError(f"this engine has no node {node!r}: name a broker that it made, or the Hubbub that has it")

    # -- publications

    def publish(
        self,
        broker: MemoryEngineBroker,
        channel: str,
        publication: Publication,
        options: ChannelOptions,
        once: str | None,
        version: int | None,
    ) -> Position | None:
        """As :class:`~hubbub.ports.Broker` has it. None: the answer is lost."""
        with self.lock:
            position = self._append(broker, channel, publication, options, once, version)
            if self._unanswered:
                self._unanswered -= 1
                return None
            return position

    def _append(
        self,
        broker: MemoryEngineBroker,
        channel: str,
        publication: Publication,
        options: ChannelOptions,
        once: str | None,
        version: int | None,
    ) -> Position:
        own = copied(publication)
        if not options.history_size:
            own.offset = 0
            self.hand_out(channel, own)
            return Position("", 0)
        kept = self._kept(broker, channel, options)
        now = self.clock.monotonic()
        if once is not None and (first := self._once.find(channel, once, now)) is not None:
            return first
        if version is not None and version <= kept.version:
            return kept.history.position
        kept.history.size, kept.history.ttl = options.history_size, options.history_ttl
        kept.history.append(own)
        position = kept.history.position
        if version is not None:
            kept.versions.append((position.offset, version))
        if once is not None:
            self._once.note(channel, once, position, now)
        self.hand_out(channel, own)
        return position

    def hand_out(self, channel: str, publication: Publication) -> None:
        """Send a publication to every node that is subscribed to its channel: a copy for each."""
        with self.lock:
            for broker in self._brokers:
                if channel in broker.wanted:
                    broker.soon(partial(broker.hear, channel, copied(publication)))

    def recover(
        self,
        broker: MemoryEngineBroker,
        channel: str,
        since: Position | None,
        limit: int,
        options: ChannelOptions,
    ) -> Recovery:
        """As :class:`~hubbub.ports.Past` has it."""
        with self.lock:
            if not options.history_size:
                return Recovery(Position("", 0), [], False)
            kept = self._kept(broker, channel, options)
            return kept.history.since(kept.current(since), limit, self.clock.time())

    def history(
        self, channel: str, after: int | None, before: int | None, limit: int
    ) -> tuple[Position, Sequence[Publication], bool]:
        """As :class:`~hubbub.ports.Past` has it."""
        with self.lock:
            kept = self._channels.get(channel)
            if kept is None:
                return Position("", 0), [], False
            page, more = kept.history.page(after, before, limit, self.clock.time())
            return kept.history.position, page, more

    def _kept(self, broker: MemoryEngineBroker, channel: str, options: ChannelOptions) -> _Kept:
        kept = self._channels.get(channel)
        if kept is None:
            kept = self._channels[channel] = _Kept(self._generation, options, broker.settings.history_bytes)
        return kept

    # -- what nodes tell each other

    def add_message(self, sender: str, message: bytes, node: str | None, keep: bool = True) -> None:
        """Keep a message for who has not heard it yet, and let those that can hear it now."""
        with self.lock:
            if not keep:
                for broker in self._brokers:
                    if broker.node != sender and node in (None, broker.node):
                        broker.soon(partial(broker.hear_passing, sender, bytes(message)))
                return
            self._number += 1
            self._told.append(_Told(self._number, self.clock.monotonic(), sender, node, bytes(message)))
            for broker in self._brokers:
                broker.soon(broker.listen)

    def unheard(self, broker: MemoryEngineBroker) -> tuple[bool, list[tuple[str, bytes]]]:
        """What a node has not heard yet: whether some of it is gone, and the rest, oldest first."""
        with self.lock:
            oldest = self.clock.monotonic() - TOLD_SECONDS
            while self._told and (len(self._told) > TOLD_KEPT or self._told[0].at < oldest):
                self._told.popleft()
            first = self._told[0].number if self._told else self._number + 1
            missed = broker.heard + 1 < first
            mine = [
                (told.sender, told.message)
                for told in self._told
                if told.number > broker.heard and told.sender != broker.node and told.node in (None, broker.node)
            ]
            broker.heard = self._number
            return missed, mine

    def keep(self, kind: str, key: str, value: bytes, seconds: float, rank: float = 0.0) -> None:
        """As :class:`~hubbub.ports.Peers` has it."""
        with self.lock:
            now = self.clock.monotonic()
            fact = _Fact(bytes(value), now + seconds, rank)
            old = self._facts.get((kind, key))
            if old is not None and old.until > now and old.rank != rank:
                higher = max(fact, old, key=attrgetter("rank"))
                fact = higher._replace(until=max(fact.until, old.until))
            self._facts[kind, key] = fact

    def kept(self, kind: str) -> dict[str, bytes]:
        """As :class:`~hubbub.ports.Peers` has it."""
        with self.lock:
            now = self.clock.monotonic()
            facts = self._facts.items()
            return {key: fact.value for (of, key), fact in facts if of == kind and fact.until > now}

    # -- presence

    def say_here(self, node: str, channel: str, user_id: str, here: Here | None) -> None:
        """A node has a user in a channel like this now."""
        with self.lock:
            member = self._members.get(node)
            if member is None:
                return
            users = member.here.setdefault(channel, {})
            was = users.pop(user_id, None)
            if here is not None:
                users[user_id] = here, member.declared
            if not users:
                del member.here[channel]
            if (None if was is None else was[0]) != here:
                self._said += 1
                for broker in self._brokers:
                    if broker.node != node:
                        broker.soon(partial(broker.hear_present, self._said, channel, node, user_id, here))
            if member.leaving and not member.here:
                self._tell_nodes()

    def declare(self, node: str) -> None:
        """A node is about to say all of its presence: what it does not say is gone with the next beat."""
        with self.lock:
            member = self._members.get(node)
            if member is not None:
                member.declared += 1

    def who(self, node: str, channel: str) -> tuple[int, dict[str, dict[str, Here]]]:
        """Who is in a channel on the other nodes; and the number of what was said of anybody last."""
        with self.lock:
            return self._said, {
                other: {user_id: here for user_id, (here, _) in member.here[channel].items()}
                for other, member in self._members.items()
                if other != node and channel in member.here
            }

    def counts(self, channels: Sequence[str]) -> dict[str, int]:
        """How many users are in each channel."""
        with self.lock:
            members = self._members.values()
            return {
                channel: len({user_id for member in members for user_id in member.here.get(channel, ())})
                for channel in channels
            }


def copied(publication: Publication) -> Publication:
    """The same publication, as another node would have it."""
    p = publication
    return Publication(p.head, p.tail, p.key, p.user, p.origin, p.at, p.offset)


__all__ = ["MemoryEngine", "MemoryEngineBroker", "MemoryEnginePeers"]
