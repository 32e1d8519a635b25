"""People on channels of several nodes, whatever happens to the engine and the nodes, and the oracle that says in the end
whether all held.

Publishers log what they sent, when, and what it was answered; subscribers what they had, at which position, and each gap
that they were told. What must hold (docs/reliability.md): what was acknowledged is in the history, or whoever did not get
it was told a gap; at each subscriber offsets rise by one, but over a gap; nothing comes twice, but what was told to be lost;
a position is the same publication for all; what one publisher waited for keeps its order; what was not answered is there
once or not at all; who is present is who is there; whoever asks is answered in time.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import random
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

import msgspec
import websockets
from websockets.asyncio.client import ClientConnection, connect

from tests.engine_support import Node, end

PAUSE: Final = 0.05
"""Seconds before a client tries again what failed."""
ANSWER: Final = 8.0
"""Seconds within which any question to a node that runs is answered (``valkey_timeout`` is 5)."""
SILENCE: Final = 2.0
"""Seconds without a word after which a client asks its node whether it is there, and after as many more leaves it."""
MAY_FAIL: Final = frozenset({"unavailable", "busy"})
decode = msgspec.json.decode


class At(NamedTuple):
    """A position."""

    epoch: str
    offset: int


@dataclass(slots=True)
class Sent:
    """What its publisher knows of a publication.

    :ivar at: unix seconds; the last time when it was sent.
    :ivar position: where it is, once that is acknowledged.
    :ivar refused: the code of the error; "" while there was none.
    """

    nonce: str
    channel: str
    at: float
    position: At | None = None
    refused: str = ""


@dataclass
class Heard:
    """What a subscriber had of a channel.

    :ivar began: unix seconds, when it was first subscribed.
    :ivar at: where it is; None before.
    :ivar got: nonce → its position.
    :ivar then: nonce → how many gaps had been told when it came.
    :ivar gaps: from where to where.
    """

    began: float = 0.0
    first: At | None = None
    at: At | None = None
    got: dict[str, At] = field(default_factory=dict)
    then: dict[str, int] = field(default_factory=dict)
    gaps: list[tuple[At, At]] = field(default_factory=list)

    def covers(self, position: At) -> bool:
        """Whether a gap that was told stands for this position."""
        for since, to in self.gaps:
            after = position.epoch == since.epoch and position.offset > since.offset
            before = position.epoch == to.epoch and position.offset <= to.offset
            same = since.epoch == to.epoch
            if (after and before) if same else (after or before):
                return True
        seen = {at.epoch for gap in self.gaps for at in gap} | ({self.at.epoch} if self.at else set())
        # of an epoch that came and went while this one was away: whatever it then was told stands for it too
        return position.epoch not in seen and any(since.epoch != to.epoch for since, to in self.gaps)

    def taken_back(self, position: At) -> bool:
        """Whether a gap has told that the engine had lost what was at this position: it may come again."""
        return any(since.epoch == position.epoch != to.epoch and to.offset < position.offset for since, to in self.gaps)


class Person:
    """A client that comes back, to the next node, when its connection is lost or its node is silent.

    :ivar here: the node that it is connected to; None while it is not.
    :ivar wrong: what must not have happened.
    """

    def __init__(self, name: str, nodes: Sequence[Node], first: int, stays: bool = False) -> None:
        self.name = name
        self.here: Node | None = None
        self.wrong: list[str] = []
        self.returns = 0
        self.session: str | None = None
        self._nodes = nodes
        self._next = first
        self._stays = stays
        self._refs = itertools.count(1)

    async def live(self) -> None:
        while True:
            node = self._nodes[self._next % len(self._nodes)]
            try:
                async with asyncio.timeout(None) as patience, connection(node) as client:
                    await self._sign_in(node, client, patience)
                    self.here = node
                    self.returns += 1
                    await self.talk(node, client)
            except (OSError, websockets.WebSocketException, TimeoutError, EOFError):
                pass  # lost, refused or silent: go to the next one
            finally:
                self.here = None
            self._next += not self._stays
            await asyncio.sleep(PAUSE)

    async def talk(self, node: Node, client: ClientConnection) -> None:
        raise NotImplementedError

    async def _sign_in(self, node: Node, client: ClientConnection, patience: asyncio.Timeout) -> None:
        patience.reschedule(asyncio.get_running_loop().time() + 2 * SILENCE)
        await client.send(json.dumps({"type": "auth", "token": node.token(self.name), "session": self.session}))
        answer = decode(await client.recv())
        assert answer["type"] == "auth_success", answer
        self.session = answer["session"]
        patience.reschedule(None)

    async def _hear(self, client: ClientConnection) -> Any:
        """The next message.

        :raises TimeoutError: the node does not even answer a ping.
        """
        try:
            async with asyncio.timeout(SILENCE):
                return decode(await client.recv())
        except TimeoutError:
            await client.send('{"type": "ping"}')
            async with asyncio.timeout(SILENCE):
                return decode(await client.recv())


class Publisher(Person):
    """Publishes on a channel, one after the other, each when the one before is answered.

    :param again: what was not acknowledged is sent again under the same key, until it is.
    :ivar hung: how often nothing came within :data:`ANSWER`, although the node ran all the time.
    """

    def __init__(
        self, name: str, nodes: Sequence[Node], first: int, channel: str, *, again: bool = False, stays: bool = False
    ) -> None:
        super().__init__(name, nodes, first, stays)
        self.channel = channel
        self.sent: list[Sent] = []
        self.quiet = False
        self.asking = False
        self.pause = 0.004
        self.filler = ""
        self.slowest = 0.0
        self.refused: Counter[str] = Counter()
        self._again = again

    @property
    def acked(self) -> int:
        return sum(sent.position is not None for sent in self.sent)

    @property
    def settled(self) -> bool:
        return (
            self.quiet and not self.asking and (not self._again or not self.sent or self.sent[-1].position is not None)
        )

    async def talk(self, node: Node, client: ClientConnection) -> None:
        while not self.settled:
            await self._publish(node, client, self._what())
            await asyncio.sleep(self.pause)
        while True:
            await self._hear(client)

    def _what(self) -> Sent:
        if self._again and self.sent and self.sent[-1].position is None:
            self.sent[-1].at = time.time()
            return self.sent[-1]
        self.sent.append(Sent(f"{self.name}-{len(self.sent)}", self.channel, time.time()))
        return self.sent[-1]

    async def _publish(self, node: Node, client: ClientConnection, sent: Sent) -> None:
        ref, began = str(next(self._refs)), time.monotonic()
        message: dict[str, Any] = {
            "type": "publish",
            "channel": self.channel,
            "ref": ref,
            "data": {"nonce": sent.nonce},
        }
        if self.filler:
            message["data"]["filler"] = self.filler
        if self._again:
            message["idempotency_key"] = sent.nonce
        await client.send(json.dumps(message))
        self.asking = True
        try:
            async with asyncio.timeout(ANSWER):
                while (answer := decode(await client.recv())).get("ref") != ref:
                    pass
        except TimeoutError:
            if not node.stood_since(began):
                self.wrong.append(f"{self.name}: {sent.nonce} was not answered by {node.name} within {ANSWER} s")
            raise
        finally:
            self.asking = False
        if not node.stood_since(began):
            self.slowest = max(self.slowest, time.monotonic() - began)
        self._note(sent, answer)

    def _note(self, sent: Sent, answer: dict[str, Any]) -> None:
        if answer["type"] == "ack":
            sent.position = At(answer["epoch"], answer["offset"])
            return
        sent.refused = answer["code"]
        self.refused[answer["code"]] += 1
        if answer["code"] not in MAY_FAIL:
            self.wrong.append(f"{self.name} was told {answer}")


class Subscriber(Person):
    """Hears some channels, and who else is in the first of them.

    :ivar heard: by channel.
    :ivar view: who is in its first channel, as it was told.
    :ivar doubled: who was told to come or go without a change.
    """

    def __init__(
        self, name: str, nodes: Sequence[Node], first: int, channels: Sequence[str], *, stays: bool = False
    ) -> None:
        super().__init__(name, nodes, first, stays)
        self.heard = {channel: Heard() for channel in channels}
        self.view: set[str] = set()
        self.flaps: list[tuple[float, str, str]] = []
        self.watched = channels[0]

    async def talk(self, node: Node, client: ClientConnection) -> None:
        for channel in self.heard:
            await self._subscribe(client, channel)
        while True:
            await self._take(client, await self._hear(client))

    async def _subscribe(self, client: ClientConnection, channel: str) -> None:
        at = self.heard[channel].at
        since = {"epoch": at.epoch, "offset": at.offset} if at else None
        message = {"type": "subscribe", "channel": channel, "since": since, "presence": True, "ref": channel}
        await client.send(json.dumps(message))

    async def _take(self, client: ClientConnection, message: dict[str, Any]) -> None:
        kind = message["type"]
        if kind == "publication":
            self._publication(message["channel"], message)
        elif kind == "subscribed":
            self._subscribed(message)
        elif kind in ("gap", "position") and message["channel"] not in self.heard:
            pass  # of this user's own channel, which nothing was published on
        elif kind == "gap":
            self._gap(message)
        elif kind == "position":
            self._renewed(message)
        elif kind == "presence_changed" and message["channel"] == self.watched:
            self._changed(message)
        elif kind == "error":
            if message["code"] not in MAY_FAIL or message.get("ref") not in self.heard:
                self.wrong.append(f"{self.name} was told {message}")
            await asyncio.sleep(PAUSE)
            await self._subscribe(client, message["ref"])

    def _subscribed(self, message: dict[str, Any]) -> None:
        heard = self.heard[message["channel"]]
        if message["channel"] == self.watched and "presence" in message:
            self.view = set(message["presence"])
        position = At(message["epoch"], message["offset"])
        if heard.at is None:
            heard.began, heard.first, heard.at = time.time(), position, position
        elif message["recovered"]:
            heard.at = At(position.epoch, heard.at.offset)
            for missed in message["messages"]:
                self._publication(message["channel"], missed)
            if heard.at != position:
                self.wrong.append(f"{self.name}: recovered up to {heard.at}, and was told {position}")
        # else: the gap comes next, and stands for what was missed

    def _publication(self, channel: str, message: dict[str, Any]) -> None:
        heard, offset, nonce = self.heard[channel], message["offset"], message["data"]["nonce"]
        if heard.at is None:
            self.wrong.append(f"{self.name}: {nonce} came on {channel} before the subscription was answered")
            return
        if offset != heard.at.offset + 1:
            self.wrong.append(f"{self.name}: {channel}: {nonce} came as {offset} after {heard.at}, and no gap was told")
        if nonce in heard.got and not heard.taken_back(heard.got[nonce]):
            self.wrong.append(f"{self.name}: {channel}: {nonce} came as {heard.got[nonce]} and again as {offset}")
        heard.at = At(heard.at.epoch, offset)
        heard.got[nonce] = heard.at
        heard.then[nonce] = len(heard.gaps)

    def _gap(self, message: dict[str, Any]) -> None:
        heard, to = self.heard[message["channel"]], At(message["epoch"], message["offset"])
        assert heard.at is not None, message
        if to.epoch == heard.at.epoch and to.offset < heard.at.offset:
            self.wrong.append(f"{self.name}: a gap leads back from {heard.at} to {to}")
        heard.gaps.append((heard.at, to))
        heard.at = to

    def _renewed(self, message: dict[str, Any]) -> None:
        heard, to = self.heard[message["channel"]], At(message["epoch"], message["offset"])
        assert heard.at is not None, message
        if to.offset != heard.at.offset:
            self.wrong.append(f"{self.name}: {message['channel']}: the position was renewed from {heard.at} to {to}")
        heard.at = to

    def _changed(self, message: dict[str, Any]) -> None:
        now = time.time()
        for user in message["joined"]:
            self.flaps.append((now, "joined", user))
        for user in message["left"]:
            self.flaps.append((now, "left", user))
        self.view |= set(message["joined"])
        self.view -= set(message["left"])


def connection(node: Node) -> connect:
    return connect(
        node.ws + "/ws",
        proxy=None,
        ping_interval=None,
        max_queue=None,
        max_size=None,
        close_timeout=0.1,
        open_timeout=2,
    )


class Past(NamedTuple):
    """A channel as a node has it in the end: where it is, and offset → nonce."""

    at: At
    kept: dict[int, str]


async def past(node: Node, channel: str) -> Past:
    """The whole history of a channel, as a node gives it."""
    kept: dict[int, str] = {}
    after, more, at = 0, True, At("", 0)
    async with node.client("reader") as client:
        while more:
            page = await client.ask("history", channel=channel, after=after, limit=200)
            assert page["type"] == "history", page
            at, more = At(page["epoch"], page["offset"]), page["more"]
            for message in page["messages"]:
                kept[message["offset"]] = message["data"]["nonce"]
                after = message["offset"]
    return Past(at, kept)


class Trial:
    """People on some nodes, and the judgement of what they went through.

    :param spread: subscribers per node, each in two of the channels.
    :param again: publishers repeat what was not acknowledged, with the same key.
    :param stays: everybody comes back to the same node.
    """

    def __init__(
        self,
        nodes: Sequence[Node],
        *,
        channels: int = 3,
        publishers: int = 2,
        spread: int = 3,
        again: bool = False,
        stays: bool = False,
        prefix: str = "fault",
    ) -> None:
        self.nodes = nodes
        self.channels = [f"{prefix}:{index}" for index in range(channels)]
        self.publishers = [
            Publisher(f"p{index}", nodes, index, self.channels[index % channels], again=again, stays=stays)
            for index in range(publishers * len(nodes))
        ]
        self.subscribers = [
            Subscriber(
                f"s{index}",
                nodes,
                index,
                [self.channels[0], self.channels[1 + index % (channels - 1)]] if channels > 1 else self.channels,
                stays=stays,
            )
            for index in range(spread * len(nodes))
        ]
        self.pasts: dict[str, Past] = {}
        self._tasks: list[asyncio.Task[None]] = []

    @property
    def people(self) -> list[Person]:
        return [*self.publishers, *self.subscribers]

    @property
    def gaps(self) -> int:
        """How many gaps were told."""
        return sum(len(heard.gaps) for each in self.subscribers for heard in each.heard.values())

    @property
    def acked(self) -> int:
        return sum(publisher.acked for publisher in self.publishers)

    async def __aenter__(self) -> Trial:
        self._tasks = [asyncio.create_task(person.live()) for person in self.people]
        await self.until(lambda: all(person.here for person in self.people), "not all came in")
        await self.flows()
        return self

    async def __aexit__(self, *_: object) -> None:
        await end(*self._tasks)

    async def until(self, condition: Callable[[], bool], otherwise: str, within: float = 20.0) -> float:
        """Wait until a condition holds; returns the seconds that it took.

        :raises AssertionError: it did not in time, or something wrong was noticed meanwhile.
        """
        began = time.monotonic()
        while not condition():
            for task in self._tasks:
                if task.done():
                    task.result()
            assert time.monotonic() < began + within, f"{otherwise} after {within} s; {self.state()}"
            await asyncio.sleep(0.01)
        return time.monotonic() - began

    async def more(self, count: int, within: float = 20.0) -> None:
        """Let so many more publications be acknowledged."""
        goal = self.acked + count
        await self.until(lambda: self.acked >= goal, f"there were not {count} more acknowledged", within)

    async def flows(self, within: float = 20.0) -> float:
        """Wait until each publisher's next is acknowledged, and each subscriber has had something published from now on in
        each of its channels; returns the seconds that it took."""
        asked = time.time()

        def flowing() -> bool:
            fresh: dict[str, set[str]] = {channel: set() for channel in self.channels}
            for publisher in self.publishers:
                news = {sent.nonce for sent in _newest(publisher.sent, asked) if sent.position is not None}
                if not news:
                    return False
                fresh[publisher.channel] |= news
            return all(
                not fresh[channel] or not fresh[channel].isdisjoint(heard.got)
                for each in self.subscribers
                for channel, heard in each.heard.items()
            )

        return await self.until(flowing, "it does not flow", within)

    async def settle(self, within: float = 20.0) -> None:
        """Let the publishers end, and all hear the rest; then read what is kept."""
        for publisher in self.publishers:
            publisher.quiet = True
        await self.until(
            lambda: all(each.settled and each.here for each in self.publishers), "not all was answered", within
        )
        await self.until(lambda: all(each.here for each in self.subscribers), "not all came back", within)
        end = time.monotonic() + within
        while True:
            # again while somebody is not there: what was not answered may come late
            for channel in self.channels:
                self.pasts[channel] = await past(self.nodes[0], channel)
            again = time.monotonic() + 1.0
            while self._behind() and time.monotonic() < again:
                await asyncio.sleep(0.01)
            if not self._behind():
                return
            assert time.monotonic() < end, f"not all is heard after {within} s; {self.state()}"

    async def present(self, within: float = 10.0, asked: Sequence[Node] | None = None) -> float:
        """Wait until who is present is who is there, as all subscribers and their nodes have it; seconds that it took.

        :param asked: these nodes have it too.
        """
        channel = self.channels[0]
        began, said = time.monotonic(), "nothing yet"
        while True:
            truth = {each.name for each in self.subscribers if each.here and channel in each.heard}
            views = {each.name: each.view for each in self.subscribers if each.here and each.watched == channel}
            if all(view == truth for view in views.values()):
                nodes = asked or {each.here for each in self.subscribers if each.here}
                views = {node.name: await _users(node, channel) for node in nodes}
            wrong = {name: sorted(view ^ truth) for name, view in views.items() if view != truth}
            if not wrong:
                return time.monotonic() - began
            said = f"{wrong} is wrong of {sorted(truth)}"
            assert time.monotonic() < began + within, f"presence is not true after {within} s: {said}"
            await asyncio.sleep(0.05)

    def state(self) -> str:
        return json.dumps(
            {
                "away": [person.name for person in self.people if not person.here],
                "acked": self.acked,
                "refused": sum((each.refused for each in self.publishers), Counter()),
                "behind": self._behind(),
                "wrong": [fault for person in self.people for fault in person.wrong][:5],
            }
        )

    def _behind(self) -> list[str]:
        return [
            f"{each.name} in {channel}: {heard.at} of {self.pasts[channel].at}"
            for each in self.subscribers
            for channel, heard in each.heard.items()
            if channel in self.pasts and (heard.at is None or heard.at.offset != self.pasts[channel].at.offset)
        ]

    # -- the judgement

    def verdict(self, *, kept: bool = True) -> list[str]:
        """What is wrong, after :meth:`settle`.

        :param kept: the engine never lost anything: all that was acknowledged is in the history.
        """
        wrong = [fault for person in self.people for fault in person.wrong]
        for channel in self.channels:
            wrong += self._one_message_each(channel)
            wrong += self._history(channel, kept)
            wrong += self._all_heard(channel)
        for publisher in self.publishers:
            wrong += self._order(publisher)
        return wrong

    def _sent(self, channel: str) -> Iterable[Sent]:
        return (sent for publisher in self.publishers for sent in publisher.sent if sent.channel == channel)

    def _one_message_each(self, channel: str) -> list[str]:
        """A position is the same publication for all."""
        wrong: list[str] = []
        there: dict[At, str] = {}
        for sent in self._sent(channel):
            if sent.position is not None:
                there.setdefault(sent.position, sent.nonce)
                if there[sent.position] != sent.nonce:
                    wrong.append(
                        f"{channel}: {sent.position} was acknowledged to {sent.nonce} and {there[sent.position]}"
                    )
        for each in self.subscribers:
            for nonce, at in each.heard[channel].got.items() if channel in each.heard else ():
                if there.setdefault(at, nonce) != nonce:
                    wrong.append(f"{channel}: {at} is {there[at]}, and {nonce} for {each.name}")
        return wrong

    def _history(self, channel: str, kept: bool) -> list[str]:
        at, there = self.pasts[channel]
        wrong = []
        if list(there) != list(range(min(there, default=1), at.offset + 1)):
            wrong.append(f"{channel}: the history has holes below {at}: {_holes(there)}")
        times = Counter(there.values())
        wrong += [f"{channel}: {nonce} is in the history {count} times" for nonce, count in times.items() if count > 1]
        known = {sent.nonce: sent for sent in self._sent(channel)}
        wrong += [f"{channel}: nobody sent {nonce}" for nonce in times if nonce not in known]
        for sent in known.values():
            if sent.position is None:
                if sent.refused == "busy" and sent.nonce in times:
                    wrong.append(f"{channel}: {sent.nonce} was refused as busy, and is there")
            elif kept and there.get(sent.position.offset) != sent.nonce:
                wrong.append(f"{channel}: {sent.nonce} was acknowledged at {sent.position}, where there is "
                             f"{there.get(sent.position.offset)}")  # fmt: skip
        return wrong

    def _all_heard(self, channel: str) -> list[str]:
        """Who was there has what is kept, or was told a gap over it; and who has what the engine lost was told a gap."""
        wrong: list[str] = []
        at, there = self.pasts[channel]
        kept, begin = set(there.values()), min(there, default=at.offset + 1)
        acked = [sent for sent in self._sent(channel) if sent.position is not None]
        # in one life of a channel, two that have one offset: the engine lost the first and gave its offset again
        there_was: dict[tuple[str, int], set[str]] = {}
        places = [(sent.nonce, sent.position) for sent in acked]
        for other in self.subscribers:
            if (theirs := other.heard.get(channel)) is not None:
                places += theirs.got.items()
        for nonce, place in places:
            assert place is not None
            there_was.setdefault((life_of(place.epoch), place.offset), set()).add(nonce)
        for each in self.subscribers:
            heard = each.heard.get(channel)
            if heard is None or heard.first is None:
                continue
            for sent in acked:
                assert sent.position is not None
                got = heard.got.get(sent.nonce)
                if sent.nonce in kept:
                    if got is None and sent.at >= heard.began and not heard.covers(sent.position):
                        wrong.append(f"{each.name}: {sent.nonce}, acknowledged at {sent.position}, neither came nor a gap over "
                                     f"it ({heard.first} to {heard.at}, {heard.gaps})")  # fmt: skip
                    continue
                trimmed = (
                    got is not None
                    and life_of(got.epoch) == life_of(at.epoch)
                    and got.offset < begin
                    and len(there_was[life_of(got.epoch), got.offset]) == 1
                )
                if got is not None and not trimmed and heard.then.get(sent.nonce, 0) == len(heard.gaps):
                    wrong.append(f"{each.name}: {sent.nonce} came as {got}, and is lost; no gap was told since")
            wrong += self._same(each, heard, channel)
        return wrong

    def _same(self, each: Subscriber, heard: Heard, channel: str) -> list[str]:
        """What came in the last epoch is what is kept there. (Of what was trimmed or evicted nothing can be said.)"""
        at, there = self.pasts[channel]
        begin = min(there, default=at.offset + 1) - 1
        return [
            f"{each.name}: {channel}: {got.offset} is {there.get(got.offset)}, and was {nonce} for it"
            for nonce, got in heard.got.items()
            if got.epoch == at.epoch and got.offset > begin and there.get(got.offset) != nonce
        ]

    def _order(self, publisher: Publisher) -> list[str]:
        """What it waited for is before what it sent then."""
        index = {nonce: offset for offset, nonce in self.pasts[publisher.channel].kept.items()}
        wrong, top = [], (0, "")
        for sent in publisher.sent:
            offset = index.get(sent.nonce)
            if offset is None:
                continue
            if offset < top[0]:
                wrong.append(
                    f"{sent.nonce} is at {offset}, before {top[1]} at {top[0]}, which was acknowledged earlier"
                )
            if sent.position is not None:
                top = max(top, (offset, sent.nonce))
        return wrong


def _newest(sent: Sequence[Sent], since: float) -> Iterable[Sent]:
    return itertools.takewhile(lambda each: each.at >= since, reversed(sent))


def _holes(there: dict[int, str]) -> list[int]:
    return sorted(set(range(min(there), max(there) + 1)) - there.keys())[:10] if there else []


async def _users(node: Node, channel: str) -> set[str]:
    async with node.http() as http:
        answer = await http.get(f"/api/channels/{channel}/presence")
        return set(answer.json()["users"]) if answer.status_code == 200 else {f"status {answer.status_code}"}


@asynccontextmanager
async def trial(nodes: Sequence[Node], **options: Any) -> AsyncIterator[Trial]:
    """A :class:`Trial` whose people are all there and hear one another."""
    tried = Trial(nodes, **options)
    async with tried:
        yield tried


def dice(seed: int | None = None) -> random.Random:
    """Dice whose seed is printed."""
    chosen = random.randrange(1 << 32) if seed is None else seed
    print(f"seed {chosen}")
    return random.Random(chosen)


def life_of(epoch: str) -> str:
    """What epochs have in common that differ in their generation only."""
    return epoch.rpartition(".")[0] or epoch
