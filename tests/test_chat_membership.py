"""Becoming a member of a room, and being one no longer; on both databases, and from several nodes at once."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from sqlalchemy import Connection, select, update

from hubbub.errors import ClientError
from hubbub.features.chat import tables
from hubbub.features.chat.asks import (
    Ban,
    CreateRoom,
    GetRoom,
    Invite,
    Join,
    Kick,
    LeaveRoom,
    ListRooms,
    OpenDirect,
    SetRole,
    UpdateRoom,
)
from tests.chat_rooms import (
    acts,
    answer,
    changes,
    count,
    people,
    personal,
    refusal,
    refused,
    removed,
    roomful,
    said,
)
from tests.chat_support import World, world

pytestmark = pytest.mark.anyio


async def membership(here: World, user_id: str) -> Any:
    t = tables.members.c
    (row,) = await here.sql(select(tables.members).where(t.user_id == user_id))
    return row


async def past(here: World, events: int, messages: int) -> None:
    """A room that already has a past."""

    def work(connection: Connection) -> None:
        connection.execute(update(tables.rooms).values(event_seq=events, message_count=messages))

    await here.store.write(work)


# -- coming


async def test_anybody_joins_a_public_room(database_url: str) -> None:
    async with world(database_url) as here:
        await roomful(here)
        await past(here, 50, 30)
        outcome = await here.does("new", Join(room_id="tea"))
        room = answer(outcome).room
        assert (room.me.role, room.me.unread, room.member_count) == ("member", 0, 6)
        assert outcome.told == []  # thousands come and go there
        assert [(user, added.room) for user, added in personal(outcome)] == [("new", room)]
        assert outcome.changed[-1].room.member_count == 6
        row = await membership(here, "new")
        assert (row.history_from, row.read_seq, row.read_count, row.joined_at) == (0, 50, 30, here.now)
        again = await here.does("new", Join(room_id="tea"))
        assert (again.told, again.personal, again.changed) == ([], [], [])
        assert answer(again).room == room
        assert len(await people(here)) == 6


async def test_later_members_see_the_past_or_not(database_url: str) -> None:
    async with world(database_url) as here:
        await roomful(here, history="joined")
        await past(here, 50, 30)
        await here.does("new", Join(room_id="tea"))
        assert (await membership(here, "new")).history_from == 50
        assert (await membership(here, "mem")).history_from == 0


async def test_a_private_room_takes_an_invitation(database_url: str) -> None:
    async with world(database_url) as here:
        await roomful(here, "private")
        assert await refused(here, "new", Join(room_id="tea")) == "not_found"
        assert await refused(here, "new", Join(room_id="nowhere")) == "not_found"
        await here.does("mem", Invite(room_id="tea", user_ids=["new"]))
        outcome = await here.does("new", Join(room_id="tea"))
        assert changes(outcome) == [{"user_id": "new", "change": "joined"}]
        assert said(outcome) == [{"event": "joined", "user_id": "new"}]
        assert (await people(here))["new"] == "member"
        assert await count(here, tables.invitations) == 0
        await here.does("new", LeaveRoom(room_id="tea"))
        assert await refused(here, "new", Join(room_id="tea")) == "not_found"  # it was good for once


async def test_a_token_that_names_a_private_room_is_an_invitation(database_url: str) -> None:
    async with world(database_url) as here:
        await roomful(here, "private")
        assert await refused(here, "new", Join(room_id="tea"), rooms=("coffee",)) == "not_found"
        assert await refused(here, "new", Join(room_id="tea"), rooms=("te*", "*")) == "not_found"  # it has to say it
        await here.does("new", Join(room_id="tea"), rooms=("coffee", "tea"))
        await here.does("root", Join(room_id="tea"), admin=True)
        assert {"new", "root"} < (await people(here)).keys()
        assert await refused(here, "mem", Join(room_id="tea"), rooms=("coffee",)) == "not_found"


async def test_an_api_key_is_no_member(database_url: str) -> None:
    async with world(database_url) as here:
        await roomful(here)
        assert await refused(here, "", Join(room_id="tea"), admin=True) == "forbidden"
        assert await refused(here, "", LeaveRoom(room_id="tea"), admin=True) == "not_joined"


async def test_a_live_room_has_no_members(database_url: str) -> None:
    async with world(database_url) as here:
        await here.does("ann", CreateRoom(room_id="show", kind="live"))
        assert await refused(here, "bob", Join(room_id="show")) == "forbidden"
        assert answer(await here.does("ann", Join(room_id="show"))).room.me.role == "owner"


async def test_a_full_room_takes_nobody(database_url: str) -> None:
    async with world(database_url, max_members=3) as here:
        await here.does("ann", CreateRoom(room_id="tea", members=("bob",)))
        came = await asyncio.gather(
            *(here.does(f"u{n}", Join(room_id="tea")) for n in range(8)), return_exceptions=True
        )
        assert [each.code for each in came if isinstance(each, ClientError)] == ["too_many"] * 7
        assert len(await people(here)) == 3
        await here.does("bob", Join(room_id="tea"))


async def test_who_is_banned_stays_out_as_long(database_url: str) -> None:
    async with world(database_url) as here:
        await roomful(here)
        await here.does("own", Ban(room_id="tea", user_id="mem", seconds=60))
        await here.does("own", Ban(room_id="tea", user_id="mem2"))
        error = await refusal(here, "mem", Join(room_id="tea"))
        assert (error.code, error.retry_after) == ("forbidden", 60.0)
        here.clock.advance(59.5)
        error = await refusal(here, "mem", Join(room_id="tea"))
        assert (error.code, error.retry_after) == ("forbidden", 0.5)
        assert (await refusal(here, "mem2", Join(room_id="tea"))).retry_after is None
        here.clock.advance(0.5)
        await here.does("mem", Join(room_id="tea"))
        assert await count(here, tables.bans) == 1
        assert await refused(here, "mem2", Join(room_id="tea")) == "forbidden"


async def test_many_come_at_once(database_url: str) -> None:
    async with world(database_url) as here:
        await roomful(here)
        await asyncio.gather(*(here.does(f"user-{n}", Join(room_id="tea")) for n in range(20)))
        assert len(await people(here)) == 25


async def test_one_who_comes_many_times_at_once_is_one(database_url: str) -> None:
    async with world(database_url) as here:
        await roomful(here, "private")
        await here.does("own", Invite(room_id="tea", user_ids=["new"]))
        came = await asyncio.gather(*(here.does("new", Join(room_id="tea")) for _ in range(20)))
        assert sum(len(changes(each)) for each in came) == 1
        assert len(await people(here)) == 6


async def test_many_come_and_go_on_two_nodes_at_once(postgres_url: str) -> None:
    async with world(postgres_url) as one, world(postgres_url) as other:
        await roomful(one)
        users = [f"user-{n}" for n in range(20)]
        come = [here.does(user, Join(room_id="tea")) for user in users for here in (one, other)]
        await asyncio.gather(*come)
        assert len(await people(one)) == 25
        go = [here.does(user, LeaveRoom(room_id="tea")) for user in users for here in (one, other)]
        went = await asyncio.gather(*go, return_exceptions=True)
        failed = [each for each in went if isinstance(each, BaseException)]
        assert [str(each).split(":")[0] for each in failed] == ["not_joined"] * 20
        assert len(await people(one)) == 5


async def test_what_was_read_of_a_member_may_be_old_when_its_turn_comes(postgres_url: str) -> None:
    """PostgreSQL reads the membership before it has waited for the room's lock, and does not read it again."""
    async with world(postgres_url) as one, world(postgres_url) as other:
        await roomful(one, "private")
        await one.does("own", Invite(room_id="tea", user_ids=["new"]))
        for _ in range(5):
            both = await asyncio.gather(*(here.does("new", Join(room_id="tea")) for here in (one, other)))
            assert sum(len(changes(each)) for each in both) == 1
            assert (await people(one))["new"] == "member"
            await one.does("new", LeaveRoom(room_id="tea"))
            await one.does("own", Invite(room_id="tea", user_ids=["new"]))


# -- going


@pytest.mark.parametrize("visibility", ["public", "private"])
async def test_who_leaves_is_gone_on_all_devices(database_url: str, visibility: Any) -> None:
    async with world(database_url) as here:
        await roomful(here, visibility)
        outcome = await here.does("mem", LeaveRoom(room_id="tea"))
        assert (answer(outcome).room_id, answer(outcome).reason) == ("tea", None)
        assert removed(outcome) == [("mem", "left")]
        private = visibility == "private"
        assert changes(outcome) == ([{"user_id": "mem", "change": "left"}] if private else [])
        assert said(outcome) == ([{"event": "left", "user_id": "mem"}] if private else [])
        assert "mem" not in await people(here)
        assert await acts(here) == []
        code = await refused(here, "mem", LeaveRoom(room_id="tea"))
        assert code == ("not_found" if private else "not_joined")


async def test_an_invitation_is_declined(database_url: str) -> None:
    async with world(database_url) as here:
        await roomful(here, "private")
        await here.does("own", Invite(room_id="tea", user_ids=["new"]))
        outcome = await here.does("new", LeaveRoom(room_id="tea"))
        assert changes(outcome) == [{"user_id": "new", "change": "declined"}]
        assert said(outcome) == []
        assert removed(outcome) == [("new", "declined")]
        assert await count(here, tables.invitations) == 0
        assert len(await people(here)) == 5
        assert (await here.asks("new", ListRooms())).rooms == []


async def test_a_direct_room_cannot_be_left(database_url: str) -> None:
    async with world(database_url) as here:
        room_id = answer(await here.does("ann", OpenDirect(user_ids=["bob"]))).room.room_id
        error = await refusal(here, "ann", LeaveRoom(room_id=room_id))
        assert error.code == "forbidden"
        assert "notify" in error.message
        assert await refused(here, "cat", LeaveRoom(room_id=room_id)) == "not_found"


async def test_the_last_owner_makes_another_first(database_url: str) -> None:
    async with world(database_url) as here:
        await roomful(here)
        assert await refused(here, "own", LeaveRoom(room_id="tea")) == "conflict"
        await here.does("own", SetRole(room_id="tea", user_id="mem", role="owner"))
        await here.does("own", LeaveRoom(room_id="tea"))
        for user in ("mod", "mod2", "mem2"):
            assert await refused(here, "mem", LeaveRoom(room_id="tea")) == "conflict"
            await here.does(user, LeaveRoom(room_id="tea"))
        await here.does("mem", LeaveRoom(room_id="tea"))
        assert await people(here) == {}


async def test_two_owners_who_leave_at_once_leave_one(postgres_url: str) -> None:
    async with world(postgres_url) as one, world(postgres_url) as other:
        await one.does("own", CreateRoom(room_id="tea", members=("own2", "mem")))
        await one.does("own", SetRole(room_id="tea", user_id="own2", role="owner"))
        went = await asyncio.gather(
            one.does("own", LeaveRoom(room_id="tea")),
            other.does("own2", LeaveRoom(room_id="tea")),
            return_exceptions=True,
        )
        assert [each.code for each in went if isinstance(each, ClientError)] == ["conflict"]
        assert sorted((await people(one)).values()) == ["member", "owner"]


async def test_an_archived_room_is_left_too(database_url: str) -> None:
    async with world(database_url) as here:
        await roomful(here)
        await here.does("own", UpdateRoom(room_id="tea", archived=True))
        await here.does("mem", LeaveRoom(room_id="tea"))


async def test_who_comes_back_begins_anew(database_url: str) -> None:
    async with world(database_url) as here:
        await roomful(here, history="joined")
        await here.does("mem", LeaveRoom(room_id="tea"))
        await past(here, 80, 40)
        room = answer(await here.does("mem", Join(room_id="tea"))).room
        assert room.me.unread == 0
        row = await membership(here, "mem")
        assert (row.history_from, row.read_count, row.role) == (80, 40, "member")
        await here.does("own", SetRole(room_id="tea", user_id="mem", role="moderator"))
        await here.does("own", Kick(room_id="tea", user_id="mem"))
        assert answer(await here.does("mem", Join(room_id="tea"))).room.me.role == "member"


async def test_a_membership_is_not_seen_from_outside(database_url: str) -> None:
    async with world(database_url) as here:
        await roomful(here)
        assert not answer(await here.does("new", GetRoom(room_id="tea"))).room.me
