"""Whatever people do, in whatever order: the server answers, tells and counts as a simple model of it does."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import AsyncExitStack, asynccontextmanager
from random import Random
from typing import Any, Final, TypeAlias

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import Connection, text

from hubbub.features.chat.mentioning import EVERYONE
from tests.chat_model import Message, Model, Refused, Room
from tests.support import Client, HandClock, Running, running, settings_for
from tests.talkers import happened

pytestmark = pytest.mark.anyio
PEOPLE: Final = ("ann", "bob", "cyd")
PAIR: Final = PEOPLE[:2]
DIRECT: Final = "dm-" + hashlib.sha256(msgspec.json.encode(PAIR)).hexdigest()[:20]
ROOMS: Final = ("hall", "den", "loft", DIRECT)
TEXTS: Final = ("hello", "so it is", "@bob look", "@ann @cyd both", "@room all", "mail me: x@ann, @[cyd]!")
AUTHOR: Final = "the author"
OWNER: Final = "an owner"
MEMBERS: Final = ("a member", "the next member", "the last member")
"""Who these are is found out when it comes to it: most of what others try is refused."""
GONE: Final = 99
"""Picks a message that is not there."""
Step: TypeAlias = tuple[str, str, str, dict[str, Any]]
"""Who does what in which room, with which fields. A message is named by a number that picks one of those that are there."""
Chosen: TypeAlias = Callable[[Random], Any]


def one_of(*values: Any) -> Chosen:
    return lambda dice: dice.choice(values)


def some(dice: Random) -> list[str]:
    return dice.sample(PEOPLE, dice.randint(1, 3))


def picked(dice: Random) -> int:
    return GONE if dice.random() < 0.05 else -1 - min(int(dice.expovariate(0.25)), 90)  # mostly late ones


def maybe(dice: Random) -> int | None:
    return picked(dice) if dice.random() < 0.4 else None


def change(dice: Random) -> dict[str, Any]:
    return dict(dice.choice(CHANGES))


CHANGES: Final[tuple[dict[str, Any], ...]] = (
    {"name": "another"},
    {"topic": "tea"},
    {"archived": True},
    {"archived": False},
    {"archived": False},
    {"visibility": "public"},
    {"visibility": "private"},
    {"kind": "broadcast"},
    {"kind": "group"},
    {"history": "joined"},
    {"history": "shared", "topic": "past", "name": "both"},
)
texts = one_of(*TEXTS * 3, " ")
anybody = one_of(*PEOPLE)
members = one_of(*PEOPLE, *MEMBERS, *MEMBERS[:2] * 3, *MEMBERS[:1] * 3)
author = one_of(*PEOPLE, *(AUTHOR,) * 9)
owner = one_of(*PEOPLE, *(OWNER,) * 9)
KINDS: Final[dict[str, tuple[int, Chosen, dict[str, Chosen]]]] = {
    "chat_message": (
        20,
        members,
        {"message": texts, "client_id": one_of(None, None, "c1", "c2"), "thread": maybe, "reply_to": maybe},
    ),
    "edit_message": (9, author, {"id": picked, "message": texts}),
    "delete_message": (3, author, {"id": picked}),
    "add_reaction": (3, members, {"id": picked, "emoji": one_of("👍", "🎉")}),
    "remove_reaction": (2, members, {"id": picked, "emoji": one_of("👍", "🎉")}),
    "pin_message": (4, owner, {"id": picked}),
    "unpin_message": (1, owner, {"id": picked}),
    "mark_read": (10, members, {"id": one_of(*range(-12, 0)), "thread": one_of(None, -1, -1, -3)}),
    "set_notify": (4, members, {"notify": one_of("all", "mentions", "none")}),
    "join_room": (9, anybody, {"since": one_of(None, 0, 1, 5, 90, 90)}),
    "become_member": (3, anybody, {}),
    "leave_room": (3, members, {"membership": one_of(True, True, False)}),
    "invite_members": (4, members, {"user_ids": some}),
    "create_room": (1, anybody, {
        "visibility": one_of("private", "public"),
        "kind": one_of("group", "broadcast", "large"),
        "history": one_of("shared", "joined"),
        "members": some,
    }),
    "set_role": (3, owner, {"user_id": anybody, "role": one_of("owner", "moderator", "member")}),
    "kick_member": (2, owner, {"user_id": anybody}),
    "ban_member": (1, owner, {"user_id": anybody, "seconds": one_of(None, 60)}),
    "unban_member": (2, owner, {"user_id": anybody}),
    "mute_member": (1, owner, {"user_id": anybody, "seconds": one_of(60)}),
    "unmute_member": (1, owner, {"user_id": anybody}),
    "update_room": (4, owner, {}),
    "at once": (5, members, {}),
    "later": (1, anybody, {}),
}  # fmt: skip
"""What is done → how often, by whom, with which fields."""


def step_of(seed: int) -> Any:
    """A step; a list of them that are done in the same moment; or seconds that go by."""
    dice = Random(seed)
    kind = dice.choices(list(KINDS), [weight for weight, *_ in KINDS.values()])[0]
    if kind == "later":
        return 61.0
    _, who, fields = KINDS[kind]
    where = dice.choices((*ROOMS, "nowhere"), (4, 14, 4, 4, 1))[0]
    if kind == "at once":
        said = [
            (
                who(dice),
                "chat_message",
                where,
                {"message": texts(dice), "client_id": dice.choice((None, "c1", f"{seed}"))},
            )
            for _ in range(dice.randint(2, 5))
        ]
        return said + said[: dice.randint(0, 2)]
    chosen = change(dice) if kind == "update_room" else {name: choose(dice) for name, choose in fields.items()}
    return who(dice), kind, where, chosen


steps = st.integers(0, 2**64 - 1).map(step_of)
"""Each from a number, so that all are as likely as they should be."""


class Game:
    """A server and the model, and people who do the same in both."""

    def __init__(self, server: Running, clients: dict[str, Client]) -> None:
        self.server = server
        self.clients = clients
        self.model = Model(server.hubbub.clock.time(), "hall")
        self.done: Counter[str] = Counter()
        self._positions: dict[tuple[str, str], tuple[str, int]] = {}
        self._looked = dict.fromkeys(PEOPLE, 0)

    async def play(self, step: Any) -> None:
        if isinstance(step, float):
            self.server.advance(step)
            self.model.now += step
        elif isinstance(step, list):
            await self._at_once(step)
        else:
            user, kind, room_id, fields = step
            if kind == "unban_member" and self.model.is_over(room_id, fields["user_id"]):
                return  # it may be swept away already, or not
            fields = self._with_ids(kind, room_id, fields)
            user = self._who(user, room_id, fields)
            answer = await self.clients[user].ask(kind, **self._asked(user, kind, room_id, fields))
            self._same((user, kind, room_id, fields), answer)

    def _with_ids(self, kind: str, room_id: str, fields: dict[str, Any]) -> dict[str, Any]:
        """The messages that the numbers pick."""
        room = self.model.rooms.get(room_id) or Room(room_id)

        def chosen(pick: int | None, *better: list[int]) -> int | None:
            """Of the first of the better ones that there are, as a rule."""
            there = next((each for each in better if each and pick and pick % 4), sorted(room.messages))
            return pick and (there[pick % len(there)] if there and pick != GONE else room.seq + 3)

        found = dict(fields)
        pinned = [seq for seq, each in room.messages.items() if each.pinned]
        if fields.get("thread"):
            threads = sorted({each.thread for each in room.messages.values() if each.thread is not None})
            found["thread"] = chosen(fields["thread"], threads)
        if "id" in fields:
            better = room.replies(found["thread"]) if found.get("thread") else pinned if "delete" in kind else []
            found["id"] = chosen(fields["id"], better)
        if fields.get("reply_to"):
            found["reply_to"] = chosen(fields["reply_to"])
        return found

    def _who(self, user: str, room_id: str, fields: dict[str, Any]) -> str:
        room = self.model.rooms.get(room_id) or Room("")
        if user == AUTHOR:
            message = room.messages.get(fields["id"])
            return message.author if message is not None else "ann"
        if user == OWNER:
            return next((each for each, member in room.members.items() if member.role == "owner"), "ann")
        if user in MEMBERS:  # who is there comes first: they may say something
            order = sorted(room.members, key=lambda each: ((each, room_id) not in self.model.here, each))
            return order[MEMBERS.index(user) % len(order)] if order else "ann"
        return user

    def _asked(self, user: str, kind: str, room_id: str, fields: dict[str, Any]) -> dict[str, Any]:
        """The fields on the wire."""
        if kind == "open_direct":
            return {"user_ids": list(PAIR)}
        if kind == "join_room" and fields["since"] is not None:
            # a position that it was really at
            epoch, seq = self._positions.get((user, room_id), ("", 0))
            fields["since"] = min(fields["since"], seq) if epoch else None
            return {"room_id": room_id, "since": {"epoch": epoch, "offset": fields["since"]} if epoch else None}
        return {"room_id": room_id, **fields}

    def _same(self, step: Step, answer: dict[str, Any]) -> None:
        """Do it in the model too, and compare the answers."""
        user, kind, room_id, fields = step
        expected = self.model.does(user, kind, room_id, **fields)
        if isinstance(expected, Refused):
            assert answer["type"] == "error", (step, expected.codes, answer)
            assert answer["code"] in expected.codes, (step, expected.codes, answer)
            self.done[f"{kind}: {answer['code']}"] += 1
            return
        assert answer["type"] != "error", (step, answer)
        if kind == "join_room":
            position = answer["position"]
            self._positions[user, room_id] = (position["epoch"], position["offset"])
            answer = {**answer, "position": position["offset"]}
        assert {name: answer.get(name) for name in expected} == expected, (step, answer)
        self.done[kind] += 1

    async def _at_once(self, group: list[Step]) -> None:
        group = [(self._who(who, room_id, fields), kind, room_id, fields) for who, kind, room_id, fields in group]
        for number, (user, kind, room_id, fields) in enumerate(group):
            await self.clients[user].send(kind, ref=f"at-once-{number}", room_id=room_id, **fields)
        answers = []
        for number, (user, *_) in enumerate(group):
            # they are answered in their order, but for refusals
            seen = self.clients[user].seen
            while not any(each.get("ref") == f"at-once-{number}" for each in seen[self._looked[user] :]):
                await self.clients[user].receive()
            answers.append(next(each for each in reversed(seen) if each.get("ref") == f"at-once-{number}"))
        self._listen()
        for number in sorted(range(len(group)), key=lambda each: answers[each].get("id", 0)):
            self._same(group[number], answers[number])

    # -- what everybody heard

    def _listen(self) -> None:
        for user, client in self.clients.items():
            self._looked[user] = len(client.seen)

    def heard(self) -> None:
        """All heard in order and whole what the model says that happened, while they were in the rooms."""
        notified: Counter[tuple[str, str, int]] = Counter()
        for user, client in self.clients.items():
            at: dict[str, int] = {}
            for message in client.seen:
                if message["type"] == "room_joined":
                    for missed in message["messages"]:
                        number, event = happened(missed)
                        assert self.model.rooms[message["room_id"]].events[number - 1] == event, (user, missed)
                    at[message["room_id"]] = message["position"]["offset"]
                elif message["type"] == "room_left":
                    at.pop(message["room_id"], None)  # who leaves for good is told twice
                elif message["type"] == "notification":
                    about = message["data"]["metadata"]
                    notified[user, about["room_id"], about["id"]] += 1
                elif "room_id" in message and "data" in message:
                    number, event = happened(message)
                    room_id = message["room_id"]
                    at[room_id] += 1
                    assert (number, self.model.rooms[room_id].events[number - 1]) == (at[room_id], event), user
            assert at == {each: self.model.rooms[each].seq for who, each in self.model.here if who == user}, user
        assert notified == self.model.notified

    # -- what there is in the end

    async def compare(self) -> None:
        for user, client in self.clients.items():
            for room in self.model.rooms.values():
                await self._see(user, client, room)
            await self._lists(user, client)
        for room in self.model.rooms.values():
            await self._stream(room)
        assert await self.server.hubbub.store.read(recount) == []

    async def _see(self, user: str, client: Client, room: Room) -> None:
        if not self.model.knows(user, room.id):
            assert await client.refused("get_room", room_id=room.id) == "not_found"
            assert await client.refused("get_messages", room_id=room.id) == "not_found"
            return
        shown = (await client.ask("get_room", room_id=room.id))["room"]
        numbers = (shown.get("member_count", 0), shown.get("message_count", 0), "archived_at" in shown)
        assert numbers == (len(room.members), len(room.spoken), room.archived), (user, shown)
        assert [shown[name] for name in ("name", "kind", "visibility", "history")] == [
            room.name, room.kind, room.visibility, room.history,
        ]  # fmt: skip
        if user not in room.members:
            assert shown.get("me", {}).get("invited_by") == room.invited.get(user)
            assert await client.refused("get_messages", room_id=room.id) in ("not_joined", "not_found")
            return
        await self._read(user, client, room, shown["me"])

    async def _read(self, user: str, client: Client, room: Room, me: dict[str, Any]) -> None:
        member = room.members[user]
        mine = (me["role"], me.get("unread", 0), me.get("mentions", 0), me.get("read", 0), me["notify"])
        assert mine == (member.role, room.unread(user), room.mentions(user), member.read, member.notify), (
            user,
            room.id,
        )
        members = (await client.ask("list_members", room_id=room.id))["members"]
        assert {each["user_id"]: each["role"] for each in members} == {k: v.role for k, v in room.members.items()}
        for root in (None, *(seq for seq in room.messages if room.replies(seq))):
            if root is not None and room.visible(user, root) is None:
                assert await client.refused("get_messages", room_id=room.id, thread=root) == "not_found"
                continue
            page = await client.ask("get_messages", room_id=room.id, after=0, limit=200, thread=root)
            assert page["position"]["offset"] == room.seq
            there = [(s, m) for s, m in sorted(room.messages.items()) if m.thread == root and room.visible(user, s)]
            assert [_shown(each) for each in page["messages"]] == [_as_shown(user, room, s, m) for s, m in there], user
        for seq, message in room.messages.items():
            if message.version > 1 and not message.deleted and room.visible(user, seq):
                versions = (await client.ask("get_versions", room_id=room.id, id=seq))["versions"]
                assert [each["message"] for each in versions] == message.texts
        pins = (await client.ask("list_pins", room_id=room.id))["messages"]
        assert {each["id"] for each in pins} == {
            s for s, m in room.messages.items() if m.pinned and room.visible(user, s)
        }
        if room.kind == "group":
            receipts = (await client.ask("list_receipts", room_id=room.id))["receipts"]
            assert receipts == {each: other.read for each, other in room.members.items()}

    async def _lists(self, user: str, client: Client) -> None:
        mine = [room for room in self.model.rooms.values() if user in room.members]
        listed = (await client.ask("list_rooms", mine=True))["rooms"]
        invited = {room.id for room in self.model.rooms.values() if user in room.invited}
        assert {each["room_id"] for each in listed} == {room.id for room in mine} | invited
        unread = {each["room_id"]: each["me"].get("unread", 0) for each in listed if "role" in each["me"]}
        assert unread == {room.id: room.unread(user) for room in mine}
        threads = (await client.ask("list_threads", limit=200))["threads"]
        assert {(each["room_id"], each["message"]["id"]) for each in threads} == {
            (room.id, seq)
            for room in mine
            for seq, message in room.messages.items()
            if user in message.followers and room.visible(user, seq)
        }
        mentions = (await client.ask("list_mentions", limit=200))["mentions"]
        assert sorted((each["room_id"], each["message"]["id"]) for each in mentions) == sorted(
            (room.id, seq) for room in mine for seq in room.mentioning(user, 0)
        )

    async def _stream(self, room: Room) -> None:
        async with self.server.client("admin", grants={"admin": True, "ttl": 1e6}) as admin:
            events: list[Any] = []
            more = bool(room.events)
            while more:
                page = await admin.ask("history", channel=f"room:{room.id}", after=len(events), limit=200)
                events += map(happened, page["messages"])
                more = page["more"]
        assert events == list(enumerate(room.events, 1))


def _shown(data: dict[str, Any]) -> dict[str, Any]:
    """What a client sees of a message, but for its times."""
    reactions = {each["emoji"]: (each["count"], each.get("me", False)) for each in data.get("reactions", ())}
    replies = data.get("replies")
    return {
        "id": data["id"],
        "user_id": data["user_id"],
        "message": data["message"],
        "version": data.get("version", 1),
        "system": "system" in data,
        "deleted": "deleted_at" in data,
        "thread": data.get("thread"),
        "reply_to": data.get("reply_to"),
        "mentions": data.get("mentions", []),
        "pinned": data.get("pinned", False),
        "reactions": reactions,
        "replies": replies and (replies["replies"], replies["last_id"], replies.get("unread")),
    }


def _as_shown(user: str, room: Room, seq: int, message: Message) -> dict[str, Any]:
    replies = room.replies(seq)
    read = message.followers.get(user)
    unread = None if read is None else sum(each > read for each in replies)
    return {
        "id": seq,
        "user_id": message.author,
        "message": message.texts[-1],
        "version": message.version,
        "system": message.system and not message.deleted,
        "deleted": message.deleted,
        "thread": message.thread,
        "reply_to": message.reply_to,
        "mentions": list(message.mentions),
        "pinned": message.pinned,
        "reactions": {emoji: (len(by), user in by) for emoji, by in message.reactions.items() if by},
        "replies": (len(replies), replies[-1], unread) if replies else None,
    }


COUNTS: Final = {
    "member_count": "SELECT r.id, r.member_count, (SELECT count(*) FROM members m WHERE m.room_no = r.no) FROM rooms r",
    "message_count": "SELECT r.id, r.message_count, (SELECT count(*) FROM messages g WHERE g.room_no = r.no"
    " AND g.kind = 0 AND g.thread IS NULL) FROM rooms r",
    "event_seq": "SELECT r.id, r.event_seq, (SELECT count(*) FROM messages g WHERE g.room_no = r.no)"
    " + (SELECT count(*) FROM events e WHERE e.key >> 36 = r.no) FROM rooms r",
    "pin_count": "SELECT r.id, r.pin_count, (SELECT count(*) FROM pins p WHERE p.message >> 36 = r.no) FROM rooms r",
    "reply_count": "SELECT t.root, t.reply_count, (SELECT count(*) FROM messages g WHERE g.room_no = t.root >> 36"
    " AND g.thread = t.root & 68719476735) FROM threads t",
    "number": "SELECT g.key, g.number, (SELECT count(*) FROM messages o WHERE o.room_no = g.room_no AND o.key <= g.key"
    " AND o.kind = 0 AND o.thread IS NULL) FROM messages g",
    "unread": "SELECT m.user_id, r.message_count - m.read_count, (SELECT count(*) FROM messages g WHERE"
    " g.room_no = r.no AND g.kind = 0 AND g.thread IS NULL AND g.key & 68719476735 > m.read_seq)"
    " FROM members m JOIN rooms r ON r.no = m.room_no",
    "mention_count": "SELECT m.user_id, m.mention_count, CASE m.notify WHEN 'none' THEN 0 ELSE ("
    "SELECT count(DISTINCT n.message) FROM mentions n JOIN messages g ON g.key = n.message WHERE g.room_no = m.room_no"
    " AND n.user_id IN (m.user_id, :everyone) AND g.author <> m.user_id"
    " AND g.key & 68719476735 > max(m.read_seq, m.history_from)) END FROM members m",
    "thread's unread": "SELECT f.user_id, t.reply_count - f.read_count, (SELECT count(*) FROM messages g WHERE"
    " g.room_no = t.root >> 36 AND g.thread = t.root & 68719476735 AND g.key & 68719476735 > f.read_seq)"
    " FROM followers f JOIN threads t ON t.root = f.root",
}
"""What is counted as it goes → rows of (what, as it was counted, as it is counted now)."""


def recount(connection: Connection) -> list[Any]:
    """What is counted wrong."""
    return [
        (name, *row)
        for name, query in COUNTS.items()
        for row in connection.execute(text(query), {"everyone": EVERYONE} if ":everyone" in query else {})
        if row[1] != row[2]
    ]


@asynccontextmanager
async def game() -> AsyncIterator[Game]:
    limits = {"rate_limit": 0, "user_rate_limit": 0, "abuse_limit": 0, "heartbeat_interval": 0}
    chosen = settings_for(default_rooms=("hall",), **limits)
    async with running(chosen, clock=HandClock()) as server, AsyncExitStack() as stack:
        clients = {each: await stack.enter_async_context(server.client(each, grants={"ttl": 1e6})) for each in PEOPLE}
        yield Game(server, clients)


async def played(played: Iterable[Any]) -> Counter[str]:
    async with game() as here:
        for each in played:
            await here.play(each)
        for client in here.clients.values():
            await client.drained()
        here.heard()
        await here.compare()
        return here.done


OPENING: Final[tuple[Any, ...]] = (
    ("bob", "open_direct", DIRECT, {"people": PAIR}),
    ("cyd", "create_room", "loft", {"visibility": "public", "kind": "group", "history": "shared", "members": []}),
    *(("ann", "join_room", each, {"since": None}) for each in ("hall", "den", DIRECT)),
    *(("bob", "join_room", each, {"since": None}) for each in ("hall", "den", "loft")),
    *(("cyd", "join_room", each, {"since": None}) for each in ("hall", "loft")),
    ("ann", "chat_message", "den", {"message": "@bob look"}),
    ("bob", "chat_message", "den", {"message": "@room all", "thread": -1}),
    ("ann", "invite_members", "den", {"user_ids": ["cyd"]}),
    ("cyd", "join_room", "den", {"since": None}),
)
"""So that there is something from the start."""
den = st.builds(
    lambda visibility, kind, history: (
        "ann",
        "create_room",
        "den",
        {"visibility": visibility, "kind": kind, "history": history, "members": ["bob"]},
    ),
    st.sampled_from(("private", "private", "public")),
    st.sampled_from(("group", "group", "large", "broadcast")),
    st.sampled_from(("shared", "joined")),
)


@pytest.mark.slow
@given(den, st.lists(steps, min_size=30, max_size=120))
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
async def test_whatever_people_do(den: Step, script: list[Any]) -> None:
    await played([den, *OPENING, *script])
