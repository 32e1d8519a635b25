"""Members: who is in a room, invitations, kicks, bans, mutes, roles; on both databases."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from msgspec import structs
from sqlalchemy import insert, select

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
    ListBans,
    ListMembers,
    ListRooms,
    Mute,
    OpenDirect,
    Role,
    SetNotify,
    SetRole,
    Unban,
    Unmute,
    UpdateRoom,
)
from hubbub.features.chat.membership import API_KEY
from hubbub.features.chat.tx import stamp
from hubbub.messages import ClientMessage
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
from tests.chat_support import World, told, world

pytestmark = pytest.mark.anyio

MODERATION: list[ClientMessage] = [
    Kick(room_id="tea", user_id="mem"),
    Ban(room_id="tea", user_id="mem"),
    Unban(room_id="tea", user_id="out"),
    Mute(room_id="tea", user_id="mem", seconds=60),
    Unmute(room_id="tea", user_id="mem"),
    ListBans(room_id="tea"),
]


def of(message: ClientMessage) -> str:
    return type(message).__name__


# -- who may what


@pytest.mark.parametrize("message", MODERATION, ids=of)
async def test_it_takes_a_moderator(database_url: str, message: ClientMessage) -> None:
    async with world(database_url) as here:
        await roomful(here)
        await here.does("own", Ban(room_id="tea", user_id="out"))
        assert await refused(here, "mem2", message) == "forbidden"
        assert await refused(here, "new", message) == "not_joined"
        assert await refused(here, "mod", message, rooms=("coffee",)) == "not_found"
        await here.does("mod", message)
        assert all(by == "mod" for _, by, _ in (await acts(here))[1:])
        assert {"own", "mod", "mod2", "mem2"} <= (await people(here)).keys()


@pytest.mark.parametrize("message", MODERATION, ids=of)
async def test_from_outside_a_private_room_is_not_there(database_url: str, message: ClientMessage) -> None:
    async with world(database_url) as here:
        await roomful(here, "private")
        for command in (
            message,
            Invite(room_id="tea", user_ids=["new"]),
            ListMembers(room_id="tea"),
            SetRole(room_id="tea", user_id="new", role="owner"),
            SetNotify(room_id="tea", notify="none"),
        ):
            assert await refused(here, "new", command) == "not_found"


@pytest.mark.parametrize("message", MODERATION[:-1], ids=of)
async def test_an_archived_room_stays_as_it_is(database_url: str, message: ClientMessage) -> None:
    async with world(database_url) as here:
        await roomful(here)
        await here.does("own", UpdateRoom(room_id="tea", archived=True))
        assert await refused(here, "own", message) == "forbidden"
        assert answer(await here.does("own", ListBans(room_id="tea"))).bans == []


RANKS = ["mem", "mod", "own"]


@pytest.mark.parametrize("message", [Kick, Ban, Mute, Unmute])
async def test_nothing_is_done_to_who_has_as_much_to_say(database_url: str, message: Any) -> None:
    more = {"seconds": 60} if message is Mute else {}
    async with world(database_url) as here:
        await roomful(here)
        await here.does("own", SetRole(room_id="tea", user_id="mem2", role="owner"))
        for user, target in (("mod", "mod2"), ("mod", "own"), ("own", "mem2"), ("mod", "mod"), ("own", "own")):
            assert await refused(here, user, message(room_id="tea", user_id=target, **more)) == "forbidden"
        assert await count(here, tables.bans) == 0
        for user, target in (("mod", "mem"), ("own", "mod")):
            await here.does(user, message(room_id="tea", user_id=target, **more))
        await here.does("root", message(room_id="tea", user_id="own", **more), admin=True)
        await here.does("", message(room_id="tea", user_id="mem2", **more), admin=True)


@pytest.mark.parametrize(
    "message",
    [
        Kick(room_id="tea", user_id="a\x00"),
        Ban(room_id="tea", user_id=""),
        Ban(room_id="tea", user_id="new", reason="\x00"),
        Unban(room_id="tea", user_id="a\x00"),
        Mute(room_id="tea", user_id="a\x00", seconds=1),
        Unmute(room_id="tea", user_id="a\x00"),
        Invite(room_id="tea", user_ids=["new", "a\nb"]),
        SetRole(room_id="tea", user_id="a\x00", role="member"),
        ListMembers(room_id="tea", after="\x00"),
        ListBans(room_id="tea", after="\x00"),
    ],
    ids=of,
)
async def test_what_nobody_can_be_called_is_refused(database_url: str, message: ClientMessage) -> None:
    async with world(database_url) as here:
        await roomful(here)
        assert await refused(here, "own", message) == "invalid_message"


# -- who is in a room


async def test_members_are_listed_in_pages(database_url: str) -> None:
    async with world(database_url) as here:
        await roomful(here)
        await here.does("own", Mute(room_id="tea", user_id="mem", seconds=60))
        seen = {"user_id": "mem2", "at": here.now - 5000}
        await here.store.write(lambda connection: connection.execute(insert(tables.last_seen), seen))
        reply = answer(await here.does("mem", ListMembers(room_id="tea")))
        assert not reply.more
        assert [(each.user_id, each.role) for each in reply.members] == [
            ("mem", "member"),
            ("mem2", "member"),
            ("mod", "moderator"),
            ("mod2", "moderator"),
            ("own", "owner"),
        ]
        assert reply.members[0].muted_until == stamp(here.now + 60_000)
        assert [each.last_seen for each in reply.members[:2]] == [None, stamp(here.now - 5000)]
        here.clock.advance(60)
        found: list[str] = []
        while True:
            page = answer(await here.does("mem", ListMembers(room_id="tea", after=found[-1] if found else "", limit=2)))
            found += [each.user_id for each in page.members]
            assert all(each.muted_until is None for each in page.members)
            if not page.more:
                break
        assert found == ["mem", "mem2", "mod", "mod2", "own"]
        assert await refused(here, "new", ListMembers(room_id="tea")) == "not_joined"


async def test_a_member_says_what_notifies_them(database_url: str) -> None:
    async with world(database_url) as here:
        await roomful(here)
        outcome = await here.does("mem", SetNotify(room_id="tea", notify="none"))
        assert outcome.told == []
        assert answer(await here.does("mem", GetRoom(room_id="tea"))).room.me.notify == "none"
        assert answer(await here.does("mem2", GetRoom(room_id="tea"))).room.me.notify == "all"
        assert await refused(here, "new", SetNotify(room_id="tea", notify="none")) == "not_joined"
        assert await refused(here, "", SetNotify(room_id="tea", notify="none"), admin=True) == "not_joined"
        direct = answer(await here.does("ann", OpenDirect(user_ids=["bob"]))).room.room_id
        await here.does("ann", SetNotify(room_id=direct, notify="mentions"))


# -- inviting


async def test_members_of_a_private_room_invite(database_url: str) -> None:
    async with world(database_url) as here:
        await roomful(here, "private")
        outcome = await here.does("mem", Invite(room_id="tea", user_ids=["new", "mod", "newer", "new"]))
        assert changes(outcome) == [
            {"user_id": "new", "change": "invited", "by": "mem"},
            {"user_id": "newer", "change": "invited", "by": "mem"},
        ]
        assert said(outcome) == []
        assert answer(outcome).offset == told(outcome)[-1]["offset"]
        assert [(user, added.room.room_id, added.room.me.invited_by) for user, added in personal(outcome)] == [
            ("new", "tea", "mem"),
            ("newer", "tea", "mem"),
        ]
        again = await here.does("own", Invite(room_id="tea", user_ids=["newer", "mem"]))
        assert (again.told, again.personal, answer(again).offset or None) == ([], [], None)
        (room,) = answer(await here.does("newer", ListRooms(mine=True))).rooms
        assert (room.room_id, room.me.invited_by, room.me.role) == ("tea", "mem", None)


async def test_an_invitation_to_a_public_room_is_between_two(database_url: str) -> None:
    async with world(database_url) as here:
        await roomful(here)
        outcome = await here.does("mem", Invite(room_id="tea", user_ids=["new"]))
        assert outcome.told == []
        assert [user for user, _ in personal(outcome)] == ["new"]
        assert await refused(here, "newer", Invite(room_id="tea", user_ids=["new"])) == "not_joined"
        await here.does("new", Join(room_id="tea"))
        assert await count(here, tables.invitations) == 0


async def test_who_is_banned_is_not_invited_nor_anybody_with_them(database_url: str) -> None:
    async with world(database_url) as here:
        await roomful(here, "private")
        await here.does("own", Ban(room_id="tea", user_id="bad", seconds=60))
        error = await refusal(here, "mem", Invite(room_id="tea", user_ids=["new", "bad"]))
        assert error.code == "forbidden"
        assert "'bad'" in error.message
        assert await count(here, tables.invitations) == 0
        here.clock.advance(60)
        await here.does("mem", Invite(room_id="tea", user_ids=["new", "bad"]))
        await here.does("bad", Join(room_id="tea"))
        assert await count(here, tables.bans) == 0


async def test_an_invitation_is_taken_back(database_url: str) -> None:
    async with world(database_url) as here:
        await roomful(here, "private")
        await here.does("mem", Invite(room_id="tea", user_ids=["new", "newer"]))
        outcome = await here.does("mod", Kick(room_id="tea", user_id="new"))
        assert removed(outcome) == [("new", "kicked")]
        assert said(outcome) == []
        assert await refused(here, "new", Join(room_id="tea")) == "not_found"
        assert removed(await here.does("mod", Ban(room_id="tea", user_id="newer"))) == [("newer", "banned")]
        assert await count(here, tables.invitations) == 0


async def test_an_api_key_invites(database_url: str) -> None:
    async with world(database_url) as here:
        await roomful(here, "private")
        outcome = await here.does("", Invite(room_id="tea", user_ids=["new"]), admin=True)
        assert personal(outcome)[0][1].room.me.invited_by == API_KEY
        assert changes(outcome)[0]["by"] == API_KEY


# -- removing


@pytest.mark.parametrize("visibility", ["public", "private"])
async def test_who_is_kicked_is_out(database_url: str, visibility: Any) -> None:
    async with world(database_url) as here:
        await roomful(here, visibility)
        outcome = await here.does("mod", Kick(room_id="tea", user_id="mem", reason="<spam>"))
        assert changes(outcome) == [{"user_id": "mem", "change": "kicked", "by": "mod", "reason": "<spam>"}]
        assert answer(outcome).offset == told(outcome)[0]["offset"]
        assert said(outcome) == (
            [{"event": "kicked", "user_id": "mem", "by": "mod"}] if visibility == "private" else []
        )
        assert removed(outcome) == [("mem", "kicked")]
        assert "mem" not in await people(here)
        assert await acts(here) == [("kick", "mod", "mem")]
        for user in ("mem", "nobody"):
            assert await refused(here, "mod", Kick(room_id="tea", user_id=user)) == "not_found"
        if visibility == "public":
            await here.does("mem", Join(room_id="tea"))
        else:
            assert await refused(here, "mem", Join(room_id="tea")) == "not_found"


async def test_who_is_banned_is_out_and_stays_out(database_url: str) -> None:
    async with world(database_url) as here:
        await roomful(here)
        outcome = await here.does("mod", Ban(room_id="tea", user_id="mem", seconds=3600, reason="spam"))
        until = stamp(here.now + 3_600_000)
        assert changes(outcome) == [
            {"user_id": "mem", "change": "banned", "by": "mod", "until": until, "reason": "spam"}
        ]
        assert removed(outcome) == [("mem", "banned")]
        assert "mem" not in await people(here)
        (ban,) = answer(await here.does("mod", ListBans(room_id="tea"))).bans
        assert (ban.user_id, ban.banned_by, ban.at, ban.until, ban.reason) == (
            "mem",
            "mod",
            stamp(here.now),
            until,
            "spam",
        )
        assert await refused(here, "mem", Join(room_id="tea")) == "forbidden"
        again = await here.does("own", Ban(room_id="tea", user_id="mem"))
        assert changes(again) == [{"user_id": "mem", "change": "banned", "by": "own"}]
        assert removed(again) == []
        (ban,) = answer(await here.does("mod", ListBans(room_id="tea"))).bans
        assert (ban.banned_by, ban.until, ban.reason) == ("own", None, "")
        assert await acts(here) == [("ban", "mod", "mem"), ("ban", "own", "mem")]
        data = await here.sql(select(tables.audit.c.data).order_by(tables.audit.c.no))
        assert [json.loads(row[0]) for row in data] == [{"seconds": 3600, "reason": "spam"}, {"seconds": None}]


async def test_who_was_never_there_can_be_banned(database_url: str) -> None:
    async with world(database_url) as here:
        await roomful(here, "private")
        outcome = await here.does("mod", Ban(room_id="tea", user_id="bad"))
        assert [each["change"] for each in changes(outcome)] == ["banned"]
        assert (outcome.personal, outcome.removed, said(outcome)) == ([], [], [])


async def test_a_ban_is_lifted(database_url: str) -> None:
    async with world(database_url) as here:
        await roomful(here)
        await here.does("mod", Ban(room_id="tea", user_id="mem"))
        outcome = await here.does("mod2", Unban(room_id="tea", user_id="mem"))
        assert changes(outcome) == [{"user_id": "mem", "change": "unbanned", "by": "mod2"}]
        assert "mem" not in await people(here)
        await here.does("mem", Join(room_id="tea"))
        assert await refused(here, "mod", Unban(room_id="tea", user_id="mem")) == "not_found"
        assert await acts(here) == [("ban", "mod", "mem"), ("unban", "mod2", "mem")]


async def test_bans_in_force_are_listed_in_pages(database_url: str) -> None:
    async with world(database_url) as here:
        await roomful(here)
        for number in range(5):
            await here.does("mod", Ban(room_id="tea", user_id=f"bad-{number}", seconds=60 if number == 2 else None))
        first = answer(await here.does("mod", ListBans(room_id="tea", limit=3)))
        assert ([each.user_id for each in first.bans], first.more) == (["bad-0", "bad-1", "bad-2"], True)
        here.clock.advance(60)
        first = answer(await here.does("mod", ListBans(room_id="tea", limit=3)))
        assert ([each.user_id for each in first.bans], first.more) == (["bad-0", "bad-1", "bad-3"], True)
        rest = answer(await here.does("mod", ListBans(room_id="tea", limit=3, after="bad-3")))
        assert ([each.user_id for each in rest.bans], rest.more) == (["bad-4"], False)


# -- muting


async def test_who_is_muted_reads_on(database_url: str) -> None:
    async with world(database_url) as here:
        await roomful(here, "private")
        outcome = await here.does("mod", Mute(room_id="tea", user_id="mem", seconds=60, reason="calm down"))
        until = stamp(here.now + 60_000)
        assert changes(outcome) == [
            {"user_id": "mem", "change": "muted", "by": "mod", "until": until, "reason": "calm down"}
        ]
        assert (said(outcome), outcome.removed, outcome.personal) == ([], [], [])
        assert answer(await here.does("mem", GetRoom(room_id="tea"))).room.me.muted_until == until
        outcome = await here.does("mod2", Unmute(room_id="tea", user_id="mem"))
        assert changes(outcome) == [{"user_id": "mem", "change": "unmuted", "by": "mod2"}]
        again = await here.does("mod2", Unmute(room_id="tea", user_id="mem"))
        assert (again.told, answer(again).offset or None) == ([], None)
        assert answer(await here.does("mem", GetRoom(room_id="tea"))).room.me.muted_until is None
        assert await acts(here) == [("mute", "mod", "mem"), ("unmute", "mod2", "mem")]
        for message in (Mute(room_id="tea", user_id="nobody", seconds=1), Unmute(room_id="tea", user_id="nobody")):
            assert await refused(here, "mod", message) == "not_found"


# -- roles


@pytest.mark.parametrize("role", ["owner", "moderator"])
async def test_an_owner_gives_roles(database_url: str, role: Role) -> None:
    async with world(database_url) as here:
        await roomful(here)
        message = SetRole(room_id="tea", user_id="mem", role=role)
        for user in ("mem", "mod"):
            assert await refused(here, user, message) == "forbidden"
        assert await refused(here, "new", message) == "not_joined"
        outcome = await here.does("own", message)
        assert changes(outcome) == [{"user_id": "mem", "change": "role", "by": "own", "role": role}]
        assert (await people(here))["mem"] == role
        again = await here.does("own", message)
        assert (again.told, answer(again).offset or None) == ([], None)
        assert await acts(here) == [("set_role", "own", "mem")]
        assert await refused(here, "own", SetRole(room_id="tea", user_id="new", role=role)) == "not_found"


async def test_an_owner_stays_one_but_for_their_own_will(database_url: str) -> None:
    async with world(database_url) as here:
        await roomful(here)
        assert await refused(here, "own", SetRole(room_id="tea", user_id="own", role="member")) == "conflict"
        assert (
            await refused(here, "root", SetRole(room_id="tea", user_id="own", role="member"), admin=True) == "conflict"
        )
        await here.does("own", SetRole(room_id="tea", user_id="mem", role="owner"))
        assert await refused(here, "mem", SetRole(room_id="tea", user_id="own", role="member")) == "forbidden"
        outcome = await here.does("own", SetRole(room_id="tea", user_id="own", role="moderator"))
        assert changes(outcome) == [{"user_id": "own", "change": "role", "role": "moderator"}]
        assert await refused(here, "own", SetRole(room_id="tea", user_id="mod", role="owner")) == "forbidden"
        await here.does("root", SetRole(room_id="tea", user_id="own", role="owner"), admin=True)
        await here.does("root", SetRole(room_id="tea", user_id="mem", role="member"), admin=True)
        assert await people(here) == {
            "own": "owner",
            "mod": "moderator",
            "mod2": "moderator",
            "mem": "member",
            "mem2": "member",
        }


async def test_two_owners_who_step_back_at_once_leave_one(postgres_url: str) -> None:
    async with world(postgres_url) as one, world(postgres_url) as other:
        await roomful(one)
        for _ in range(5):
            await one.does("root", SetRole(room_id="tea", user_id="own", role="owner"), admin=True)
            await one.does("root", SetRole(room_id="tea", user_id="mem", role="owner"), admin=True)
            stepped = await asyncio.gather(
                one.does("own", SetRole(room_id="tea", user_id="own", role="member")),
                other.does("mem", SetRole(room_id="tea", user_id="mem", role="member")),
                return_exceptions=True,
            )
            assert [each.code for each in stepped if isinstance(each, ClientError)] == ["conflict"]
            assert list((await people(one)).values()).count("owner") == 1


async def test_the_same_member_is_kicked_once_on_two_nodes(postgres_url: str) -> None:
    async with world(postgres_url) as one, world(postgres_url) as other:
        await roomful(one)
        for _ in range(5):
            kicked = await asyncio.gather(
                one.does("mod", Kick(room_id="tea", user_id="mem")),
                other.does("mod2", Kick(room_id="tea", user_id="mem")),
                return_exceptions=True,
            )
            assert [each.code for each in kicked if isinstance(each, ClientError)] == ["not_found"]
            assert len(await people(one)) == 4
            await one.does("mem", Join(room_id="tea"))


# -- rooms of other kinds


async def show(here: World) -> None:
    await here.does("own", CreateRoom(room_id="tea", kind="live"))
    await here.does("own", SetRole(room_id="tea", user_id="mod", role="moderator"))


async def test_a_live_room_has_staff_alone(database_url: str) -> None:
    async with world(database_url) as here:
        await show(here)
        assert await people(here) == {"own": "owner", "mod": "moderator"}
        assert await refused(here, "mod", SetRole(room_id="tea", user_id="x", role="moderator")) == "forbidden"
        outcome = await here.does("own", SetRole(room_id="tea", user_id="mod", role="member"))
        assert [(each["type"], each["offset"]) for each in told(outcome)] == [("member", 0)]
        assert await people(here) == {"own": "owner"}
        assert (await here.does("own", SetRole(room_id="tea", user_id="mod", role="member"))).told == []
        assert await refused(here, "own", SetRole(room_id="tea", user_id="own", role="member")) == "conflict"
        await here.does("own", SetRole(room_id="tea", user_id="new", role="owner"))
        await here.does("own", LeaveRoom(room_id="tea"))
        assert await people(here) == {"new": "owner"}


async def test_who_is_in_a_live_room_is_kicked_and_banned(database_url: str) -> None:
    async with world(database_url) as here:
        await show(here)
        outcome = await here.does("mod", Kick(room_id="tea", user_id="fan"))
        assert removed(outcome) == [("fan", "kicked")]
        assert answer(outcome).offset is not None
        assert [(each["type"], each["offset"]) for each in told(outcome)] == [("member", 0)]
        assert removed(await here.does("mod", Ban(room_id="tea", user_id="fan"))) == [("fan", "banned")]
        assert await count(here, tables.bans) == 1
        error = await refusal(here, "mod", Mute(room_id="tea", user_id="fan", seconds=5))
        assert (error.code, "ban" in error.message) == ("forbidden", True)
        await here.does("own", Mute(room_id="tea", user_id="mod", seconds=5))
        assert await refused(here, "fan", Kick(room_id="tea", user_id="other")) == "forbidden"
        assert await refused(here, "own", Invite(room_id="tea", user_ids=["fan"])) == "forbidden"
        assert removed(await here.does("own", Kick(room_id="tea", user_id="mod"))) == [("mod", "kicked")]
        assert await people(here) == {"own": "owner"}


@pytest.mark.parametrize("message", [*MODERATION[:-1], SetRole(room_id="", user_id="bob", role="owner")], ids=of)
async def test_in_a_direct_room_all_are_alike(database_url: str, message: Any) -> None:
    async with world(database_url) as here:
        room_id = answer(await here.does("ann", OpenDirect(user_ids=["bob"]))).room.room_id
        there = structs.replace(message, room_id=room_id, user_id="bob")
        assert await refused(here, "ann", there) == "forbidden"
