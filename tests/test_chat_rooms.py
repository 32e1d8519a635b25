"""Rooms: made, found, changed; on both databases."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import Iterable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import Connection, insert, select, update

from hubbub.auth import Grants
from hubbub.errors import ClientError
from hubbub.features.chat import rooms, tables
from hubbub.features.chat.access import Caller
from hubbub.features.chat.asks import (
    Ban,
    CreateRoom,
    GetRoom,
    Invite,
    Join,
    ListRooms,
    OpenDirect,
    UpdateRoom,
)
from hubbub.features.chat.tx import Tx
from hubbub.messages import ROOM_ID
from hubbub.patterns import Patterns
from tests.chat_rooms import answer, count, personal, refused, roomful, said
from tests.chat_support import World, told, world

pytestmark = pytest.mark.anyio


# -- making


async def test_who_makes_a_room_owns_it(database_url: str) -> None:
    async with world(database_url) as here:
        outcome = await here.does("ann", CreateRoom(room_id="tea", name="Tea & ☕", topic="<b>", kind="large"))
        made = answer(outcome).room
        assert (made.room_id, made.name, made.topic, made.kind, made.visibility) == (
            "tea",
            "Tea & ☕",
            "<b>",
            "large",
            "public",
        )
        assert (made.created_by, made.member_count, made.me.role, made.me.unread) == ("ann", 1, "owner", 0)
        assert [(user, added.room) for user, added in personal(outcome)] == [("ann", made)]  # on her other devices
        assert (await here.asks("ann", GetRoom(room_id="tea"))).room == made
        seen = (await here.asks("bob", GetRoom(room_id="tea"))).room
        assert seen.name == "Tea & ☕"
        assert not seen.me


async def test_an_id_is_given_where_none_is(database_url: str) -> None:
    async with world(database_url) as here:
        made = [(await here.asks("ann", CreateRoom())).room for _ in range(20)]
        ids = {room.room_id for room in made}
        assert len(ids) == 20
        assert all(ROOM_ID.fullmatch(each) and len(each) <= 16 for each in ids)
        assert made[0].name == made[0].room_id


@pytest.mark.parametrize(
    "room_id", ["", "a b", "-x", "ä", "x/y", "a\x00", "tea\n", "dm-0123456789abcdef0123", "'; DROP TABLE rooms; --"]
)
async def test_a_wrong_id_is_refused(database_url: str, room_id: str) -> None:
    async with world(database_url) as here:
        assert await refused(here, "ann", CreateRoom(room_id=room_id)) == "invalid_message"
        assert await count(here, tables.rooms) == 0


@pytest.mark.parametrize(
    "message",
    [
        CreateRoom(name=" "),
        CreateRoom(name="a\x00b"),
        CreateRoom(name="two\nlines"),
        CreateRoom(topic="a\x00b"),
        CreateRoom(members=("",)),
        CreateRoom(members=("bob\x00",)),
        CreateRoom(kind="live", visibility="private"),
        CreateRoom(kind="live", members=("bob",)),
    ],
)
async def test_a_room_that_makes_no_sense_is_refused(database_url: str, message: CreateRoom) -> None:
    async with world(database_url) as here:
        assert await refused(here, "ann", message) == "invalid_message"
        assert await count(here, tables.rooms) == 0


async def test_an_id_is_taken_once(database_url: str) -> None:
    async with world(database_url) as here:
        await here.does("ann", CreateRoom(room_id="tea"))
        assert await refused(here, "ann", CreateRoom(room_id="tea")) == "conflict"
        assert await refused(here, "bob", CreateRoom(room_id="tea", visibility="private")) == "conflict"
        assert (await here.asks("bob", GetRoom(room_id="tea"))).room.member_count == 1


async def test_a_token_says_which_rooms_it_may_make(database_url: str) -> None:
    async with world(database_url) as here:
        assert await refused(here, "ann", CreateRoom(room_id="tea"), rooms=("shop-*",)) == "forbidden"
        assert await refused(here, "ann", CreateRoom(), rooms=("shop-*",)) == "forbidden"
        await here.does("ann", CreateRoom(room_id="shop-1"), rooms=("shop-*",))


async def test_there_are_only_so_many_rooms(database_url: str) -> None:
    async with world(database_url, max_rooms=4, max_rooms_per_user=2) as here:
        for direct in ("bob", "cat", "dan"):
            await here.does("ann", OpenDirect(user_ids=[direct]))
        for room_id in ("a", "b"):
            await here.does("ann", CreateRoom(room_id=room_id))
        assert await refused(here, "ann", CreateRoom(room_id="a")) == "conflict"
        assert await refused(here, "ann", CreateRoom(room_id="c")) == "too_many"
        await here.does("bob", CreateRoom(room_id="c"))
        await here.does("", CreateRoom(room_id="d"), admin=True)
        assert await refused(here, "bob", CreateRoom(room_id="e")) == "too_many"
        assert await refused(here, "", CreateRoom(room_id="e"), admin=True) == "too_many"
        await here.does("bob", OpenDirect(user_ids=["cat"]))


async def test_an_api_key_makes_rooms_without_an_owner(database_url: str) -> None:
    async with world(database_url, max_rooms_per_user=1) as here:
        for room_id in ("a", "b"):
            outcome = await here.does("", CreateRoom(room_id=room_id, members=("bob",)), admin=True)
            assert (answer(outcome).room.created_by, answer(outcome).room.member_count) == (None, 1)
            assert not answer(outcome).room.me
            assert [(user, added.room.me.role) for user, added in personal(outcome)] == [("bob", "member")]


@pytest.mark.parametrize("visibility", ["private", "public"])
async def test_first_members_are_in_at_once(database_url: str, visibility: Any) -> None:
    async with world(database_url) as here:
        message = CreateRoom(room_id="tea", visibility=visibility, members=("bob", "cat", "ann", "bob"))
        outcome = await here.does("ann", message)
        assert answer(outcome).room.member_count == 3
        assert [(user, added.room.room_id, added.room.me.role) for user, added in personal(outcome)] == [
            ("ann", "tea", "owner"),
            ("bob", "tea", "member"),
            ("cat", "tea", "member"),
        ]
        assert (await here.asks("bob", GetRoom(room_id="tea"))).room.me.role == "member"
        rows = await here.sql(select(tables.members.c.user_id, tables.members.c.role).order_by("user_id"))
        assert [tuple(row) for row in rows] == [("ann", "owner"), ("bob", "member"), ("cat", "member")]


async def test_a_private_room_without_a_name_has_those_of_its_people(database_url: str) -> None:
    async with world(database_url) as here:
        made = (await here.asks("ann", CreateRoom(visibility="private", members=("bob", "cat")))).room
        assert made.name == "ann, bob, cat"
        many = tuple(f"somebody-{number}" for number in range(40))
        assert len((await here.asks("ann", CreateRoom(visibility="private", members=many))).room.name) == 100
        named = (await here.asks("ann", CreateRoom(room_id="x", visibility="private", members=("bob",)))).room
        assert named.name == "x"


async def test_a_room_has_only_so_many_first_members(database_url: str) -> None:
    async with world(database_url, max_members=2) as here:
        assert await refused(here, "ann", CreateRoom(members=("bob", "cat"))) == "too_many"
        await here.does("ann", CreateRoom(members=("bob",)))


async def test_a_private_room_is_not_to_be_known_of(database_url: str) -> None:
    async with world(database_url) as here:
        await here.does("ann", CreateRoom(room_id="secret", visibility="private"))
        assert await refused(here, "bob", GetRoom(room_id="secret")) == "not_found"
        assert await refused(here, "bob", GetRoom(room_id="nowhere")) == "not_found"
        assert await refused(here, "bob", UpdateRoom(room_id="secret", name="x")) == "not_found"
        assert await refused(here, "ann", GetRoom(room_id="secret"), rooms=("other",)) == "not_found"
        assert (await here.asks("bob", GetRoom(room_id="secret"), rooms=("secret",))).room.room_id == "secret"
        assert (await here.asks("", GetRoom(room_id="secret"), admin=True)).room.room_id == "secret"
        await here.does("ann", Invite(room_id="secret", user_ids=["bob"]))
        assert (await here.asks("bob", GetRoom(room_id="secret"))).room.me.invited_by == "ann"


async def test_the_server_makes_its_rooms_once(database_url: str) -> None:
    async with world(database_url, max_rooms=1) as here:

        def ensure(connection: Connection, wanted: CreateRoom) -> tuple[int, str, str]:
            caller = Caller("", Grants(admin=True), True)
            tx = Tx(connection, caller, here.now, here.settings, writes=True)
            assert wanted.room_id is not None
            room = rooms.ensure_room(tx, wanted.room_id, wanted)
            return room.no, room.name, room.kind

        async def made(wanted: CreateRoom) -> tuple[int, str, str]:
            return await here.store.write(lambda connection: ensure(connection, wanted))

        first = await made(CreateRoom(room_id="general"))
        assert first[1:] == ("general", "group")
        assert await made(CreateRoom(room_id="general", name="Another", kind="large")) == first
        await made(CreateRoom(room_id="more", name="More", kind="live"))
        assert await count(here, tables.rooms) == 2
        with pytest.raises(ClientError, match="a room's id is"):
            await made(CreateRoom(room_id="not so"))


# -- direct rooms


async def test_people_have_one_direct_room(database_url: str) -> None:
    async with world(database_url) as here:
        outcome = await here.does("ann", OpenDirect(user_ids=["cat", "bob", "ann", "bob"]))
        room = answer(outcome).room
        key = hashlib.sha256(b'["ann","bob","cat"]').hexdigest()
        assert (answer(outcome).created, room.room_id, room.visibility) == (True, f"dm-{key[:20]}", "direct")
        assert (room.people, room.member_count, room.me.role) == (["ann", "bob", "cat"], 3, "member")
        assert [(user, added.room.room_id, added.room.people) for user, added in personal(outcome)] == [
            (user, room.room_id, ["ann", "bob", "cat"]) for user in ("ann", "bob", "cat")
        ]
        again = await here.does("bob", OpenDirect(user_ids=["ann", "cat"]))
        assert (answer(again).created, answer(again).room.room_id, again.personal) == (False, room.room_id, [])
        assert answer(again).room.people == ["ann", "bob", "cat"]
        assert answer(again).room.me.role == "member"
        other = await here.does("ann", OpenDirect(user_ids=["bob"]))
        assert answer(other).created
        assert answer(other).room.room_id != room.room_id


@pytest.mark.parametrize("others", [["ann"], ["ann", "ann"], [""], ["bob\x00"]])
async def test_a_direct_room_takes_two(database_url: str, others: list[str]) -> None:
    async with world(database_url) as here:
        assert await refused(here, "ann", OpenDirect(user_ids=others)) == "invalid_message"


async def test_a_direct_room_is_its_peoples_alone(database_url: str) -> None:
    async with world(database_url) as here:
        room_id = (await here.asks("ann", OpenDirect(user_ids=["bob"]))).room.room_id
        assert (await here.asks("bob", GetRoom(room_id=room_id))).room.people == ["ann", "bob"]
        for message in (GetRoom(room_id=room_id), Join(room_id=room_id), UpdateRoom(room_id=room_id, name="x")):
            assert await refused(here, "cat", message) == "not_found"
            assert await refused(here, "cat", message, rooms=(room_id,)) == "not_found"
        assert await refused(here, "ann", UpdateRoom(room_id=room_id, name="x")) == "forbidden"
        assert await refused(here, "ann", Invite(room_id=room_id, user_ids=["cat"])) == "forbidden"
        assert await refused(here, "root", Join(room_id=room_id), admin=True) == "forbidden"
        assert await refused(here, "ann", OpenDirect(user_ids=["bob"]), rooms=("tea",)) == "forbidden"
        assert (await here.asks("ann", OpenDirect(user_ids=["bob"]), rooms=("dm-*",))).room.room_id == room_id


async def test_an_api_key_opens_direct_rooms_of_others(database_url: str) -> None:
    async with world(database_url) as here:
        outcome = await here.does("", OpenDirect(user_ids=["ann", "bob"]), admin=True)
        assert [user for user, _ in personal(outcome)] == ["ann", "bob"]
        assert not answer(outcome).room.me
        assert await refused(here, "", OpenDirect(user_ids=["ann"]), admin=True) == "invalid_message"


async def test_a_direct_room_opened_by_many_at_once_is_one(database_url: str) -> None:
    async with world(database_url) as here:
        opened = await asyncio.gather(
            *(here.asks(user, OpenDirect(user_ids=["ann", "bob"])) for user in ("ann", "bob") * 5)
        )
        assert sorted(each.created for each in opened) == [False] * 9 + [True]
        assert len({each.room.room_id for each in opened}) == 1
        assert (await count(here, tables.rooms), await count(here, tables.members)) == (1, 2)


async def test_a_direct_room_opened_on_two_nodes_at_once_is_one(postgres_url: str) -> None:
    async with world(postgres_url) as one, world(postgres_url) as other:
        for number in range(10):
            user = f"bob-{number}"
            opened = await asyncio.gather(
                one.asks("ann", OpenDirect(user_ids=[user])), other.asks(user, OpenDirect(user_ids=["ann"]))
            )
            assert sorted(each.created for each in opened) == [False, True]
            assert {each.room.member_count for each in opened} == {2}
        assert await count(one, tables.rooms) == 10


async def test_a_room_made_on_two_nodes_at_once_is_one(postgres_url: str) -> None:
    async with world(postgres_url) as one, world(postgres_url) as other:
        for number in range(10):
            made = await asyncio.gather(
                *(here.asks("ann", CreateRoom(room_id=f"r{number}")) for here in (one, other)), return_exceptions=True
            )
            failed = [each for each in made if isinstance(each, ClientError)]
            assert [each.code for each in failed] == ["conflict"]


# -- listing


async def ids(here: World, user_id: str, message: ListRooms, **options: Any) -> list[str]:
    return [room.room_id for room in (await here.asks(user_id, message, **options)).rooms]


async def test_a_list_has_ones_own_rooms_and_the_public_ones(database_url: str) -> None:
    async with world(database_url) as here:
        await here.does("ann", CreateRoom(room_id="a-public"))
        await here.does("ann", CreateRoom(room_id="b-private", visibility="private"))
        await here.does("bob", CreateRoom(room_id="c-public"))
        await here.does("bob", CreateRoom(room_id="d-private", visibility="private"))
        await here.does("bob", CreateRoom(room_id="e-private", visibility="private"))
        await here.does("bob", Invite(room_id="e-private", user_ids=["ann"]))
        direct = (await here.asks("bob", OpenDirect(user_ids=["ann"]))).room.room_id
        hers = (await here.asks("ann", ListRooms(mine=True))).rooms
        assert [room.room_id for room in hers] == sorted(["a-public", "b-private", direct, "e-private"])
        shown = {room.room_id: room for room in hers}
        assert shown["a-public"].me.role == "owner"
        assert (shown["e-private"].me.role, shown["e-private"].me.invited_by) == (None, "bob")
        assert shown[direct].people == ["ann", "bob"]
        assert not shown["b-private"].people
        every = (await here.asks("ann", ListRooms())).rooms
        assert [room.room_id for room in every] == sorted([*shown, "c-public"])
        assert not {room.room_id: room for room in every}["c-public"].me
        assert await ids(here, "cat", ListRooms()) == ["a-public", "c-public"]
        assert await ids(here, "cat", ListRooms(mine=True)) == []


async def test_a_list_shows_rooms_as_they_are(database_url: str) -> None:
    """What is put together by position is what is put together by name."""
    async with world(database_url) as here:
        await here.does("ann", CreateRoom(room_id="tea", name="Tea", topic="green", visibility="private"))
        await here.does("ann", CreateRoom(room_id="old", kind="broadcast", history="joined"))
        await here.does("ann", UpdateRoom(room_id="old", slow_mode=5, retention_days=7, archived=True))
        values = {"message_count": 9, "last_at": here.now + 5000}
        muted = {"read_count": 4, "read_seq": 17, "mention_count": 2, "notify": "mentions", "muted_until": here.now + 1}

        def set_up(connection: Connection) -> None:
            connection.execute(update(tables.rooms).values(values))
            connection.execute(update(tables.members).values(muted))

        await here.store.write(set_up)
        listed = (await here.asks("ann", ListRooms())).rooms
        assert listed == [(await here.asks("ann", GetRoom(room_id=each))).room for each in ("old", "tea")]
        assert (listed[0].me.unread, listed[0].me.mentions, listed[0].me.read) == (5, 2, 17)
        assert listed[0].archived_at


async def test_an_admin_sees_all_rooms_but_those_of_others_alone(database_url: str) -> None:
    async with world(database_url) as here:
        await here.does("ann", CreateRoom(room_id="private", visibility="private"))
        await here.does("ann", CreateRoom(room_id="public"))
        await here.does("ann", OpenDirect(user_ids=["bob"]))
        own = (await here.asks("root", OpenDirect(user_ids=["bob"]))).room.room_id
        assert await ids(here, "", ListRooms(), admin=True) == ["private", "public"]
        assert await ids(here, "root", ListRooms(), admin=True) == [own, "private", "public"]
        assert await ids(here, "", ListRooms(mine=True), admin=True) == []


async def test_a_token_says_which_rooms_it_lists(database_url: str) -> None:
    async with world(database_url) as here:
        for room_id in ("shop-1", "shop-2", "SHOP-3", "shopx", "kitchen", "shop_4"):
            await here.does("ann", CreateRoom(room_id=room_id))
        assert await ids(here, "bob", ListRooms(), rooms=()) == []
        assert await ids(here, "bob", ListRooms(), rooms=("shop-*",)) == ["shop-1", "shop-2"]
        assert await ids(here, "bob", ListRooms(), rooms=("shop_*", "kitchen")) == ["kitchen", "shop_4"]
        assert await ids(here, "ann", ListRooms(mine=True), rooms=("*-2",)) == ["shop-2"]
        patterns = (*(f"none-{number}" for number in range(rooms.PREFILTERED)), "shopx")
        assert await ids(here, "bob", ListRooms(limit=1), rooms=patterns) == ["shopx"]


async def paged(here: World, user_id: str, limit: int, **options: Any) -> list[str]:
    found: list[str] = []
    after = None
    while True:
        page = await here.asks(user_id, ListRooms(limit=limit, after=after), **options)
        found += [room.room_id for room in page.rooms]
        assert len(page.rooms) == limit or not page.more
        if not page.more:
            return found
        after = found[-1]


@pytest.mark.parametrize("limit", [1, 2, 3, 7, 10, 1000])
async def test_pages_have_every_room_once(database_url: str, limit: int) -> None:
    async with world(database_url) as here:
        for number in range(10):
            visibility: Any = "private" if number % 3 == 1 else "public"
            members = ("bob",) if number % 2 else ()
            await here.does("ann", CreateRoom(room_id=f"r{number}", visibility=visibility, members=members))
        expected = [f"r{number}" for number in range(10) if number % 3 != 1 or number % 2]
        assert await paged(here, "bob", limit) == expected
        assert await paged(here, "bob", limit, rooms=("r*3", "r7", "r9")) == ["r3", "r7", "r9"]
        many = (*(f"no-{number}" for number in range(60)), "r5", "r8")
        assert await paged(here, "bob", limit, rooms=many) == ["r5", "r8"]


@pytest.mark.parametrize(
    ("query", "found"),
    [
        ("tea", ["tea-room", "x1"]),
        ("TEA", ["tea-room", "x1"]),
        ("äpfel", ["x2"]),
        ("ÄPFEL", ["x2"]),
        ("100%", ["x3"]),
        ("0%d", []),
        ("_", ["x4"]),
        ("\\", ["x5"]),
        ("'; --", []),
    ],
)
async def test_rooms_are_found_by_a_part_of_their_name_or_id(database_url: str, query: str, found: list[str]) -> None:
    names = {"tea-room": "One", "x1": "Green Tea", "x2": "Äpfel", "x3": "100% done", "x4": "snake_case", "x5": "a\\b"}
    async with world(database_url) as here:
        for room_id, name in names.items():
            await here.does("ann", CreateRoom(room_id=room_id, name=name))
        assert await ids(here, "bob", ListRooms(query=query)) == found
        assert await ids(here, "ann", ListRooms(query=query, mine=True)) == found


async def test_no_nul_gets_as_far_as_the_database(database_url: str) -> None:
    async with world(database_url) as here:
        assert await refused(here, "ann", ListRooms(query="a\x00")) == "invalid_message"
        assert await refused(here, "ann", ListRooms(after="a\x00")) == "invalid_message"


@given(st.lists(st.text("aB-_%*\\", max_size=6), max_size=4), st.text("aB-_%\\", min_size=1, max_size=6))
def test_the_database_keeps_every_room_that_a_token_allows(patterns: list[str], room_id: str) -> None:
    """The first sieve may let more through, never less (here as PostgreSQL has it: exact in case)."""
    wanted = rooms.like_of(patterns)
    allowed = any(_like(each, room_id) for each in wanted)
    assert allowed == Patterns(patterns)(room_id)


def _like(pattern: str, text: str) -> bool:
    """SQL's LIKE with a backslash as escape, by the book."""
    if not pattern:
        return not text
    head, rest = pattern[0], pattern[1:]
    if head == "%":
        return _like(rest, text) or (bool(text) and _like(pattern, text[1:]))
    if head == "\\":
        head, rest = rest[0], rest[1:]
        return text[:1] == head and _like(rest, text[1:])
    return bool(text) and (head in ("_", text[0])) and _like(rest, text[1:])


async def test_a_thousand_rooms_are_one_query(database_url: str) -> None:
    """And one more for the people of the direct ones, however many rooms there are."""
    async with world(database_url) as here:

        def fill(connection: Connection) -> None:
            connection.execute(insert(tables.rooms), list(_many(here.now)))
            values = {"role": "member", "joined_at": here.now, "read_count": 3}
            rows = [{"room_no": no, "user_id": user, **values} for no in range(1, 1001) for user in ("ann", "bob")]
            connection.execute(insert(tables.members), rows)

        await here.store.write(fill)
        asked: list[str] = []

        def look(connection: Connection) -> Any:
            caller = Caller("ann", Grants())
            counted = _Counted(connection, asked)
            tx = Tx(counted, caller, here.now, here.settings, writes=False)  # type: ignore[arg-type]  # only executes
            return rooms.list_rooms(tx, ListRooms())

        reply = await here.store.read(look)
        assert [room.me.unread for room in reply.rooms] == [max(0, number - 3) for number in range(1000)]
        assert [room.people for room in reply.rooms[:10:5]] == [["ann", "bob"]] * 2
        assert not reply.more
        assert len(asked) == 2


def _many(now: int) -> Iterable[dict[str, Any]]:
    for number in range(1000):
        yield {
            "no": number + 1,
            "id": f"room-{number:04}",
            "name": f"Room {number}",
            "kind": "group",
            "visibility": "direct" if number % 5 == 0 else "private",
            "epoch": "e",
            "event_seq": number,
            "message_count": number,
            "member_count": 2,
            "created_at": now,
            "last_at": now + number,
        }


class _Counted:
    """A connection that notes what is executed on it."""

    def __init__(self, connection: Connection, asked: list[str]) -> None:
        self._connection = connection
        self._asked = asked
        self.dialect = connection.dialect

    def execute(self, statement: Any, *parameters: Any) -> Any:
        self._asked.append(str(statement))
        return self._connection.execute(statement, *parameters)


# -- changing


async def seq_of(here: World) -> int:
    return int((await here.sql(select(tables.rooms.c.event_seq)))[0][0])


@pytest.mark.parametrize(
    ("change", "least"),
    [
        ({"name": "Coffee"}, "mod"),
        ({"topic": "black"}, "mod"),
        ({"slow_mode": 10}, "mod"),
        ({"history": "joined"}, "mod"),
        ({"kind": "large"}, "own"),
        ({"visibility": "private"}, "own"),
        ({"retention_days": 3}, "own"),
        ({"archived": True}, "own"),
        ({"name": "Coffee", "retention_days": 3}, "own"),
        ({"name": "Coffee", "archived": True}, "own"),
        ({}, "mod"),
    ],
)
async def test_who_may_change_what(database_url: str, change: dict[str, Any], least: str) -> None:
    order = ["out", "mem", "mod", "own", "root"]
    async with world(database_url) as here:
        await roomful(here)
        before = await seq_of(here)
        for user in order[: order.index(least)]:
            code = await refused(here, user, UpdateRoom(room_id="tea", **change))
            assert code == ("not_joined" if user == "out" else "forbidden")
        assert await seq_of(here) == before
        changed = (await here.asks(least, UpdateRoom(room_id="tea", **change))).room
        for name, value in change.items():
            assert (bool(changed.archived_at) if name == "archived" else getattr(changed, name)) == value
        await here.does("root", UpdateRoom(room_id="tea", **change), admin=True)


async def test_a_change_is_told_once(database_url: str) -> None:
    async with world(database_url) as here:
        await roomful(here)
        start = await seq_of(here)
        message = UpdateRoom(room_id="tea", name="Coffee", topic="black", slow_mode=9, archived=True)
        outcome = await here.does("own", message)
        heard = told(outcome)
        assert [each["type"] for each in heard] == ["room_updated", "message", "message", "message"]
        assert heard[0]["offset"] == start + 1
        assert (heard[0]["data"]["name"], heard[0]["data"]["topic"], heard[0]["data"]["slow_mode"]) == (
            "Coffee",
            "black",
            9,
        )
        assert "me" not in heard[0]["data"]
        assert said(outcome) == [
            {"event": "renamed", "user_id": "own", "name": "Coffee"},
            {"event": "topic", "user_id": "own", "topic": "black"},
            {"event": "archived", "user_id": "own"},
        ]
        assert [each["data"]["id"] for each in heard[1:]] == [start + 2, start + 3, start + 4]
        assert outcome.changed[-1].room.name == "Coffee"
        kept = await here.sql(select(tables.events.c.data).where(tables.events.c.type == "room_updated"))
        assert [row[0] for row in kept] == ["{}"]
        acts = await here.sql(select(tables.audit.c.by, tables.audit.c.data).where(tables.audit.c.act == "update_room"))
        assert [(by, json.loads(data)) for by, data in acts] == [
            ("own", {"name": "Coffee", "topic": "black", "slow_mode": 9, "archived_at": here.now})
        ]
        again = await here.does("own", message)
        assert (again.told, again.changed) == ([], [])
        assert answer(again).room == answer(outcome).room
        back = await here.does("own", UpdateRoom(room_id="tea", archived=False))
        assert said(back) == [{"event": "unarchived", "user_id": "own"}]
        assert answer(back).room.archived_at is None


async def test_settings_are_no_news_among_the_messages(database_url: str) -> None:
    async with world(database_url) as here:
        await roomful(here)
        outcome = await here.does("own", UpdateRoom(room_id="tea", slow_mode=5, history="joined", retention_days=1))
        assert [each["type"] for each in told(outcome)] == ["room_updated"]


async def test_live_rooms_stay_live_and_no_other_becomes_one(database_url: str) -> None:
    async with world(database_url) as here:
        await here.does("ann", CreateRoom(room_id="show", kind="live"))
        await here.does("ann", CreateRoom(room_id="tea"))
        assert await refused(here, "ann", UpdateRoom(room_id="show", kind="group")) == "invalid_message"
        assert await refused(here, "ann", UpdateRoom(room_id="show", visibility="private")) == "invalid_message"
        assert await refused(here, "ann", UpdateRoom(room_id="tea", kind="live")) == "invalid_message"
        outcome = await here.does("ann", UpdateRoom(room_id="show", name="The show", kind="live"))
        assert [(each["type"], each["offset"]) for each in told(outcome)] == [("room_updated", 0)]
        assert (await here.asks("bob", GetRoom(room_id="show"))).room.name == "The show"


@pytest.mark.parametrize("change", [{"name": " "}, {"name": "a\nb"}, {"topic": "a\x00"}])
async def test_a_change_that_makes_no_sense_is_refused(database_url: str, change: dict[str, Any]) -> None:
    async with world(database_url) as here:
        await roomful(here)
        assert await refused(here, "own", UpdateRoom(room_id="tea", **change)) == "invalid_message"


async def test_an_archived_room_is_still_read_and_opened_again(database_url: str) -> None:
    async with world(database_url) as here:
        await roomful(here)
        await here.does("own", UpdateRoom(room_id="tea", archived=True))
        assert await refused(here, "own", Ban(room_id="tea", user_id="mem")) == "forbidden"
        assert await refused(here, "own", UpdateRoom(room_id="tea", kind="large")) == "forbidden"
        assert (await here.asks("new", Join(room_id="tea"))).room.me.role == "member"
        await here.does("own", UpdateRoom(room_id="tea", archived=False))
        await here.does("own", Ban(room_id="tea", user_id="mem"))
