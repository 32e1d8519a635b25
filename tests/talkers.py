"""People who talk whatever happens to their server, and the oracle that says whether all held in the end.

What must hold (docs/reliability.md): what was acknowledged is there, once; a room's numbers have no holes; everybody hears
all of it in order, and who comes back gets exactly what they missed; no message is counted twice or not at all.
"""

from __future__ import annotations

import asyncio
import json
import random
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import websockets
from websockets.asyncio.client import ClientConnection, connect

Url: TypeAlias = Callable[[str], str]
"""A user's address of the server, with a token in it."""
Event: TypeAlias = tuple[Any, ...]
"""What happened in a room, without what it says now."""

PAUSE = 0.02
"""Seconds after which a client tries again what failed."""
LIKE = "👍"


def connection(url: str) -> connect:
    return connect(url, proxy=None, ping_interval=None, max_queue=None, max_size=None, close_timeout=0.2)


@dataclass
class Said:
    """What its author knows of a message.

    :ivar number: 0 as long as it is not acknowledged.
    :ivar texts: what it was to say, from the first text on.
    """

    number: int
    texts: list[str]
    liked: bool = False


@dataclass
class Heard:
    """What somebody heard of a room, from when they first joined it: number → what happened; number → text."""

    epoch: str = ""
    offset: int = 0
    events: dict[int, Event] = field(default_factory=dict)
    texts: dict[int, str] = field(default_factory=dict)


class Person:
    """Talks in one room, one thing after the other, and listens to some. Comes back when the connection is lost, and
    asks again what was refused or not answered.

    :param may_fail: codes of errors after which to ask again; all others are wrong.
    :ivar said: client id → message.
    :ivar acked: how much was acknowledged.
    :ivar refused: how often what was refused.
    :ivar returns: how often it was in its rooms.
    :ivar wrong: what must not have happened.
    """

    def __init__(
        self, url: Url, name: str, room: str, rooms: Sequence[str], *, may_fail: Collection[str] = (), seed: int = 0
    ) -> None:
        self.name = name
        self.room = room
        self.heard = {each: Heard() for each in {room: None, **dict.fromkeys(rooms)}}
        self.said: dict[str, Said] = {}
        self.acked = 0
        self.refused: Counter[str] = Counter()
        self.returns = 0
        self.wrong: list[str] = []
        self.quiet = False
        self.here = False
        self._url = url
        self._may_fail = may_fail
        self._dice = random.Random(f"{seed} {name}")
        self._count = 0
        self._asked: dict[str, Any] | None = None

    @property
    def settled(self) -> bool:
        """Whether all that was asked is acknowledged."""
        return self._asked is None

    async def live(self) -> None:
        """Connect, join, talk; again whenever the connection is lost."""
        while True:
            try:
                async with connection(self._url(self.name)) as client:
                    await self._enter(client)
                    self.here = True
                    self.returns += 1
                    await self._talk(client)
            except (OSError, websockets.WebSocketException, EOFError):
                self.here = False
                await asyncio.sleep(PAUSE)

    async def _enter(self, client: ClientConnection) -> None:
        left = dict.fromkeys(self.heard)
        for room in left:
            await self._join(client, room)
        while left:
            message = json.loads(await client.recv())
            if message["type"] == "error" and message.get("ref") in left and message["code"] in self._may_fail:
                await asyncio.sleep(PAUSE)
                await self._join(client, message["ref"])
                continue
            if message["type"] == "room_joined":
                del left[message["room_id"]]
            self._take(message)

    async def _join(self, client: ClientConnection, room: str) -> None:
        heard = self.heard[room]
        since = {"epoch": heard.epoch, "offset": heard.offset} if heard.epoch else None
        await client.send(json.dumps({"type": "join_room", "room_id": room, "since": since, "ref": room}))

    async def _talk(self, client: ClientConnection) -> None:
        await self._say(client)
        while True:
            message = json.loads(await client.recv())
            again = self._take(message)
            if again:
                await asyncio.sleep(PAUSE)
            if again or (self._asked is None and not self.quiet):
                await self._say(client)

    async def _say(self, client: ClientConnection) -> None:
        """Ask for the next thing, or once more for what was not acknowledged."""
        if self._asked is None:
            if self.quiet:
                return
            self._asked = self._next()
        await client.send(json.dumps(self._asked))

    def _next(self) -> dict[str, Any]:
        self._count += 1
        asked: dict[str, Any] = {"room_id": self.room, "ref": f"{self.name}-{self._count}"}
        if self._dice.random() < 0.85 or not self.said:
            self.said[asked["ref"]] = Said(0, [f"text of {asked['ref']}"])
            return {**asked, "type": "chat_message", "message": f"text of {asked['ref']}", "client_id": asked["ref"]}
        message = self._dice.choice(list(self.said.values())[-5:])
        asked["id"] = message.number
        if self._dice.random() < 0.6:
            message.texts.append(f"{message.texts[0]}, changed by {asked['ref']}")
            return {**asked, "type": "edit_message", "message": message.texts[-1]}
        message.liked = not message.liked
        return {**asked, "type": "add_reaction" if message.liked else "remove_reaction", "emoji": LIKE}

    def _take(self, message: dict[str, Any]) -> bool:
        """Note what came; True: what was asked has to be asked again."""
        kind = message["type"]
        if kind == "ack":
            self._done(message)
        elif kind == "room_joined":
            self._joined(message)
        elif kind == "error" and self._is_asked(message):
            assert message["code"] in self._may_fail, f"{self.name} was told {message}"
            assert message["retry_after"] > 0, message
            self.refused[message["code"]] += 1
            return True
        elif kind in ("error", "gap", "room_left"):
            self.wrong.append(f"{self.name} was told {message}")
        elif kind == "message" or "offset" in message:
            self._hear(message)
        return False

    def _is_asked(self, message: dict[str, Any]) -> bool:
        return self._asked is not None and message.get("ref") == self._asked["ref"]

    def _done(self, ack: dict[str, Any]) -> None:
        if "client_id" in ack:
            said = self.said[ack["client_id"]]
            if said.number not in (0, ack["id"]):
                self.wrong.append(f"{ack['client_id']} was acknowledged as {said.number} and {ack['id']}")
            said.number = ack["id"]
        if self._is_asked(ack):
            self._asked = None
            self.acked += 1

    def _joined(self, message: dict[str, Any]) -> None:
        heard, position = self.heard[message["room_id"]], message["position"]
        if not heard.epoch:
            heard.epoch, heard.offset = position["epoch"], position["offset"]
            return
        if not message["recovered"] or position["epoch"] != heard.epoch:
            self.wrong.append(f"{self.name} could not recover {message['room_id']} from {heard.offset}: {position}")
        for missed in message["messages"]:
            self._hear(missed)
        if heard.offset != position["offset"]:
            self.wrong.append(f"{self.name} recovered up to {heard.offset}, and was told {position['offset']}")

    def _hear(self, message: dict[str, Any]) -> None:
        heard = self.heard[message["room_id"]]
        number, event = happened(message)
        if number != heard.offset + 1:
            self.wrong.append(f"{self.name} heard {number} after {heard.offset} in {message['room_id']}")
        heard.offset = number
        heard.events[number] = event
        if message["type"] == "message":
            heard.texts[number] = message["data"]["message"]


def happened(message: dict[str, Any]) -> tuple[int, Event]:
    """An event of a room as its number, and what cannot change of it."""
    kind, data = message["type"], message["data"]
    if kind == "message":
        return data["id"], (kind, data["user_id"], data.get("client_id"))
    if kind == "reaction":
        return message["offset"], (kind, *data.values())
    return message["offset"], (kind, data.get("id"), data.get("user_id"))


# -- the oracle


@dataclass
class Kept:
    """What a server has of a room in the end.

    :ivar count: how many messages it says that there are.
    :ivar events: number → what happened.
    :ivar messages: number → the message as it is now.
    """

    count: int
    events: dict[int, Event]
    messages: dict[int, dict[str, Any]]


async def kept(url: str, room: str) -> Kept:
    """All that a server has of a room, page by page; as an admin sees it."""
    async with connection(url) as client:

        async def ask(kind: str, **fields: Any) -> dict[str, Any]:
            await client.send(json.dumps({"type": kind, "ref": kind, **fields}))
            while (answer := json.loads(await client.recv())).get("ref") != kind:
                pass
            assert answer["type"] != "error", answer
            return dict(answer)

        events: dict[int, Event] = {}
        more = True
        while more:
            page = await ask("history", channel=f"room:{room}", after=max(events, default=0), limit=200)
            for message in page["messages"]:
                number, event = happened(message)
                assert number not in events, f"{number} came twice"
                events[number] = event
            more = page["more"]
        messages: dict[int, dict[str, Any]] = {}
        after, more = 0, True
        while more:
            page = await ask("get_messages", room_id=room, after=after, limit=200)
            messages |= {data["id"]: data for data in page["messages"]}
            after, more = max(messages, default=0), page["after"]
        count = (await ask("get_room", room_id=room))["room"].get("message_count", 0)
        return Kept(count, events, messages)


def verdict(people: Sequence[Person], rooms: dict[str, Kept]) -> list[str]:
    """What did not hold."""
    wrong = [each for person in people for each in person.wrong]
    said = {client_id: message for person in people for client_id, message in person.said.items()}
    for room, there in rooms.items():
        wrong += [f"{room}: {each}" for each in _whole(there, said)]
    for person in people:
        there = rooms[person.room]
        wrong += [each for client_id, message in person.said.items() for each in _same(there, client_id, message)]
        for room, heard in person.heard.items():
            wrong += [f"{person.name} in {room}: {each}" for each in _heard(rooms[room], heard, said)]
    return wrong


def _whole(there: Kept, said: dict[str, Said]) -> list[str]:
    """What is wrong with a room in itself."""
    wrong = []
    if sorted(there.events) != list(range(1, len(there.events) + 1)):
        wrong.append(f"holes: {len(there.events)} events up to {max(there.events, default=0)}")
    numbered = {number for number, event in there.events.items() if event[0] == "message"}
    if numbered != there.messages.keys():
        wrong.append(f"the messages {numbered ^ there.messages.keys()} are in one view of it only")
    spoken = [data["client_id"] for data in there.messages.values() if "system" not in data]
    if len(spoken) != len(set(spoken)):
        wrong.append("something is there twice")
    if len(spoken) != there.count:
        wrong.append(f"{len(spoken)} messages, and it counts {there.count}")
    if not said.keys() >= set(spoken):
        wrong.append(f"nobody said {set(spoken) - said.keys()}")
    return wrong


def _same(there: Kept, client_id: str, said: Said) -> list[str]:
    """What is wrong with an acknowledged message."""
    if not said.number:
        return []
    data = there.messages.get(said.number)
    if data is None or data.get("client_id") != client_id:
        return [f"{client_id} was acknowledged as {said.number}, where there is {data}"]
    wrong = []
    if (data["message"], data.get("version", 1)) != (said.texts[-1], len(said.texts)):
        wrong.append(f"{client_id} should be version {len(said.texts)}, {said.texts[-1]!r}, and is {data}")
    if any(each["emoji"] == LIKE and each["count"] == 1 for each in data.get("reactions", ())) != said.liked:
        wrong.append(f"{client_id} should be liked: {said.liked}, and is {data}")
    return wrong


def _heard(there: Kept, heard: Heard, said: dict[str, Said]) -> list[str]:
    """What somebody heard that is not so."""
    wrong = [
        f"heard {event} as {number}, where there is {there.events.get(number)}"
        for number, event in heard.events.items()
        if there.events.get(number) != event
    ]
    for number, text in heard.texts.items():
        client_id = heard.events[number][2]
        if client_id is not None and text not in said[client_id].texts:
            wrong.append(f"heard {text!r} as {number}, which {client_id} never was")
    return wrong


def behind(people: Sequence[Person], rooms: dict[str, Kept]) -> list[str]:
    """Who has not heard yet what the rooms have."""
    return [
        f"{person.name} in {room}: {heard.offset} of {max(rooms[room].events, default=0)}"
        for person in people
        for room, heard in person.heard.items()
        if heard.offset != max(rooms[room].events, default=0)
    ]
