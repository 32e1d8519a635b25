"""Durable rooms as clients see them: over restarts, in order, on all devices, and unseen by whom they do not concern."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any, Final

import pytest

from hubbub.features.chat import asks
from hubbub.messages import ClientMessage
from tests.support import BOTH_LANES, Client, Running, serve
from tests.talkers import happened
from tests.torture import messages, request, tag_of

pytestmark = BOTH_LANES
CALM: Final[dict[str, Any]] = {"rate_limit": 0, "user_rate_limit": 0, "abuse_limit": 0}


async def good(client: Client, kind: str, /, **fields: Any) -> dict[str, Any]:
    answer = await client.ask(kind, **fields)
    assert answer["type"] != "error", (kind, fields, answer)
    return answer


async def den(own: Client, *members: str, **options: Any) -> None:
    """A private room that its owner is in."""
    await good(own, "create_room", room_id="den", visibility="private", members=list(members), **options)
    await good(own, "join_room", room_id="den")


def events(client: Client, room_id: str = "den") -> list[dict[str, Any]]:
    """All with an offset that a client heard of a room."""
    return [each for each in client.seen if each.get("room_id") == room_id and "data" in each]


async def me(client: Client, room_id: str = "den") -> dict[str, Any]:
    return dict((await good(client, "get_room", room_id=room_id))["room"]["me"])


# -- restarts


async def test_all_is_there_after_a_restart(lane: str, tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'hubbub.db'}"
    async with serve(lane, database_url=url) as server, server.client("own") as own, server.client("bob") as bob:
        await den(own, "bob", topic="tea")
        joined = await good(bob, "join_room", room_id="den")
        first = await good(own, "chat_message", room_id="den", message="@bob first", client_id="c1")
        await good(own, "add_reaction", room_id="den", id=first["id"], emoji="🎉")
        there = await bob.expect("reaction")
        await good(own, "chat_message", room_id="den", message="second", client_id="c2")
        await good(own, "edit_message", room_id="den", id=first["id"], message="@bob changed")
        await good(own, "set_role", room_id="den", user_id="bob", role="moderator")
        page = (await good(own, "get_messages", room_id="den"))["messages"]
        room = (await good(bob, "get_room", room_id="den"))["room"]
    async with (
        serve(lane, database_url=url) as server,
        server.client("own") as own,
        server.client("bob", path="/ws?format=msgpack") as bob,
    ):
        position = {"epoch": joined["position"]["epoch"], "offset": there["offset"]}
        back = await good(bob, "join_room", room_id="den", since=position)
        assert back["recovered"]
        kinds = [(each["type"], happened(each)[0]) for each in back["messages"]]
        assert kinds == [("message", 3), ("message_updated", 4), ("member", 5)]
        assert back["position"] == {"epoch": position["epoch"], "offset": 5}
        assert {**back["room"], "users": 0} == {**room, "users": 0}
        assert (room["topic"], room["me"]["role"], room["me"]["unread"], room["me"]["mentions"]) == (
            "tea",
            "moderator",
            2,
            1,
        )
        assert (await good(own, "get_messages", room_id="den"))["messages"] == page
        await good(own, "join_room", room_id="den")
        again = await good(own, "chat_message", room_id="den", message="@bob first", client_id="c1")
        assert {**again, "ref": ""} == {**first, "ref": ""}
        assert (await good(own, "chat_message", room_id="den", message="third"))["id"] == 6
        assert (await bob.expect("message"))["data"]["id"] == 6
        versions = (await good(bob, "get_versions", room_id="den", id=1))["versions"]
        assert [each["message"] for each in versions] == ["@bob first", "@bob changed"]


# -- what happens is told, in order


async def test_everything_is_told_in_order_and_again_to_who_comes_back(lane: str) -> None:
    async with serve(lane) as server, server.client("own") as own, server.client("bob") as bob:
        async with server.client("bob", path="/ws?format=msgpack") as tablet:
            await den(own, "bob", "cyd")
            for client in (bob, tablet):
                start = (await good(client, "join_room", room_id="den"))["position"]
            first = (await good(own, "chat_message", room_id="den", message="first"))["id"]
            reply = (await good(bob, "chat_message", room_id="den", message="@own in a thread", thread=first))["id"]
            await good(own, "edit_message", room_id="den", id=first, message="@bob look")
            await good(bob, "add_reaction", room_id="den", id=first, emoji="👍")
            await good(bob, "remove_reaction", room_id="den", id=first, emoji="👍")
            await good(own, "pin_message", room_id="den", id=first)
            await good(own, "mute_member", room_id="den", user_id="cyd", seconds=60)
            await good(own, "update_room", room_id="den", name="The den")
            await good(own, "delete_message", room_id="den", id=reply)
            for client in (own, bob, tablet):
                await client.drained()
        (mention,) = (each["data"]["metadata"] for each in own.seen if each["type"] == "notification")
        assert mention == {"kind": "mention", "room_id": "den", "id": reply, "user_id": "bob"}
        heard = events(bob)
        assert [each["type"] for each in heard] == [
            "message", "message", "message_updated", "reaction", "reaction", "pinned", "message", "member",
            "room_updated", "message", "message_deleted",
        ]  # fmt: skip
        assert [happened(each)[0] for each in heard] == list(range(1, 12))
        assert heard == events(own) == events(tablet)
        assert (heard[2]["data"]["mentions"], heard[2]["data"]["version"]) == (["bob"], 2)
        assert heard[1]["data"]["thread"] == first
        async with server.client("cyd", path="/ws?format=msgpack") as cyd:
            back = await good(cyd, "join_room", room_id="den", since=start)
            # the same, as it is now: the thread's reply is blank from the first on
            texts = [each["data"].get("message") for each in back["messages"] if each["type"] == "message"]
            assert texts == ["@bob look", "", "", ""]
            assert [happened(each) for each in back["messages"]] == [happened(each) for each in heard]
            caught = await good(cyd, "catch_up", room_id="den", since=start, limit=4)
            assert (caught["events"], caught["more"]) == (back["messages"][:4], True)
            rest = await good(cyd, "catch_up", room_id="den", since=caught["position"])
            assert (rest["events"], rest["more"]) == (back["messages"][4:], False)
            assert (await good(cyd, "history", channel="room:den", limit=200))["messages"] == back["messages"]


async def test_many_who_talk_at_once_are_heard_in_one_order(lane: str) -> None:
    async with (
        serve(lane, **CALM) as server,
        server.client("own") as own,
        server.client("bob") as bob,
        server.client("cyd", path="/ws?format=msgpack") as cyd,
    ):
        people = (own, bob, cyd)
        await den(own, "bob", "cyd")
        for client in (bob, cyd):
            await good(client, "join_room", room_id="den")
        for number in range(30):
            for client in people:
                await client.send("chat_message", room_id="den", message=str(number), client_id=str(number))
        await asyncio.gather(*(heard_all(client, 90) for client in people))
        assert [happened(each)[0] for each in events(own)] == list(range(1, 91))
        assert events(own) == events(bob) == events(cyd)
        for client in people:
            said = [each["data"] for each in events(own) if each["data"]["user_id"] == name_of(client)]
            assert [each["message"] for each in said] == [str(number) for number in range(30)]


async def heard_all(client: Client, count: int) -> None:
    while len(events(client)) < count:
        await client.receive()


def name_of(client: Client) -> str:
    return str(client.seen[0]["user_id"])


# -- one's own devices


async def test_read_marks_are_the_same_on_all_devices(lane: str) -> None:
    async with (
        serve(lane) as server,
        server.client("own") as own,
        server.client("bob") as phone,
        server.client("bob", path="/ws?format=msgpack") as laptop,
    ):
        await den(own, "bob")
        for client in (phone, laptop):
            await good(client, "join_room", room_id="den")
        for text in ("one", "@bob two", "three"):
            await good(own, "chat_message", room_id="den", message=text)
        assert ((await me(phone))["unread"], (await me(laptop))["mentions"]) == (3, 1)
        mark = {"room_id": "den", "read": 2, "unread": 1, "mentions": 0}
        answer = await good(phone, "mark_read", room_id="den", id=2)
        assert {**answer, "ref": ""} == {"type": "ack", "ref": "", **mark}
        for client in (phone, laptop):
            await client.drained()
            assert [each for each in client.seen if each["type"] == "read"] == [{"type": "read", **mark}]
        assert (await own.expect("receipt")) == {"type": "receipt", "room_id": "den", "user_id": "bob", "id": 2}
        assert (await good(laptop, "mark_read", room_id="den", id=1))["read"] == 2  # it never goes back
        await good(laptop, "chat_message", room_id="den", message="who says something has read all")
        assert "unread" not in await me(phone)
        assert (await good(own, "list_receipts", room_id="den"))["receipts"] == {"own": 3, "bob": 4}


# -- who has to go


async def test_who_is_kicked_banned_or_muted_feels_it_at_once(lane: str) -> None:
    async with (
        serve(lane, heartbeat_interval=0) as server,
        server.client("own") as own,
        server.client("bob") as phone,
        server.client("bob", path="/ws?format=msgpack") as laptop,
        server.client("cyd") as cyd,
    ):
        await den(own, "bob", "cyd")
        for client in (phone, laptop, cyd):
            await good(client, "join_room", room_id="den")
        await good(own, "mute_member", room_id="den", user_id="bob", seconds=60)
        refused = await phone.ask("chat_message", room_id="den", message="may I?")
        assert (refused["code"], refused["retry_after"]) == ("forbidden", 60)
        await good(own, "chat_message", room_id="den", message="a muted one hears")
        await laptop.expect("message")
        server.advance(61)
        await good(phone, "chat_message", room_id="den", message="now I may")

        await good(own, "kick_member", room_id="den", user_id="bob")
        for client in (phone, laptop):
            await client.expect("room_left", room_id="den", reason="kicked")
        await good(own, "chat_message", room_id="den", message="without bob")
        for client in (phone, laptop):
            assert [each for each in await client.drained() if each.get("room_id") == "den" and "data" in each] == []
            assert await client.refused("chat_message", room_id="den", message="x") == "not_joined"
            for kind in ("join_room", "get_messages", "get_room"):
                assert await client.refused(kind, room_id="den") == "not_found"
            assert await client.refused("history", channel="room:den") == "not_joined"

        await good(own, "invite_members", room_id="den", user_ids=["bob"])
        await good(phone, "join_room", room_id="den")
        await good(own, "ban_member", room_id="den", user_id="bob", seconds=60, reason="enough")
        await phone.expect("room_left", room_id="den", reason="banned")
        assert await own.refused("invite_members", room_id="den", user_ids=["bob"]) == "forbidden"
        assert await phone.refused("join_room", room_id="den") == "not_found"
        server.advance(61)
        await good(own, "invite_members", room_id="den", user_ids=["bob"])
        await good(phone, "join_room", room_id="den")
        await cyd.drained()
        numbers = [happened(each)[0] for each in events(cyd)]
        assert numbers == list(range(1, len(numbers) + 1))  # who stays hears all of it


async def test_who_is_kicked_while_coming_in_is_not_in(lane: str) -> None:
    async with serve(lane, **CALM) as server, server.client("own") as own, server.client("bob") as bob:
        await den(own)
        for number in range(12):
            await good(own, "invite_members", room_id="den", user_ids=["bob"])
            await good(bob, "become_member", room_id="den")
            join, kick = bob.ask("join_room", room_id="den"), own.ask("kick_member", room_id="den", user_id="bob")
            answers = await asyncio.gather(*((join, kick) if number % 2 else (kick, join)))
            joined, kicked = answers if number % 2 else answers[::-1]
            assert kicked["type"] == "ack", kicked
            assert joined["type"] == "room_joined" or joined["code"] in ("not_found", "forbidden"), joined
            await bob.drained()
            await good(own, "chat_message", room_id="den", message="without bob")
            assert [each for each in await bob.drained() if each["type"] == "message"] == []
            assert not server.hubbub.presence("room:den").get("bob")


# -- what is nobody's business

ROOM_FIELDS: Final[dict[str, Any]] = {
    "id": 1, "message": "x", "user_id": "own", "user_ids": ["bob"], "seconds": 60, "role": "member", "notify": "all",
    "emoji": "👍", "reason": "x", "query": "secret", "since": {"epoch": "e", "offset": 0}, "name": "mine", "thread": 1,
}  # fmt: skip


def about_rooms() -> list[type[ClientMessage]]:
    """All messages that name a room. (Whether an id is free is told to who wants to have it.)"""
    return [each for each in messages() if "room_id" in each.__struct_fields__ and each is not asks.CreateRoom]


async def test_a_private_room_is_not_there_for_others(lane: str) -> None:
    """Whatever a stranger asks: the answer is the same as for a room that is not there."""
    assert len(about_rooms()) > 25
    async with serve(lane, **CALM) as server, server.client("own") as own, server.client("eve") as eve:
        await den(own, "bob")
        await good(own, "chat_message", room_id="den", message="secret")
        await good(own, "pin_message", room_id="den", id=1)
        async with server.client("bob") as bob:
            await good(bob, "report_message", room_id="den", id=1, reason="x")
        for message in about_rooms():
            for extra in ({}, {"membership": True}):
                names = {*message.__struct_fields__}
                fields = {name: value for name, value in (ROOM_FIELDS | extra).items() if name in names}
                assert await about(eve, tag_of(message), "den", fields) == await about(
                    eve, tag_of(message), "nix", fields
                )
                await over_http(server, message, fields)
        for kind in ("history", "presence", "subscribe"):
            answers = [await eve.ask(kind, channel=f"room:{room}") for room in ("den", "nix")]
            assert [each["type"] for each in answers] == ["error", "error"]
            assert told(answers[0], "den") == told(answers[1], "nix")
        assert await eve.refused("close_report", report=1) == await eve.refused("close_report", report=2) == "not_found"
        assert (await good(eve, "search_messages", query="secret"))["hits"] == []
        assert "den" not in [each["room_id"] for each in (await good(eve, "list_rooms"))["rooms"]]
        assert (await good(eve, "get_last_seen", user_ids=["own", "nobody"]))["users"] == {}
        for room in ("den", "nix"):
            async with server.client("eve", path=f"/ws/chat/{room}") as lost:
                assert (await lost.receive())["code"] == "not_found"
                assert await lost.closed() == 4404


async def about(client: Client, kind: str, room: str, fields: dict[str, Any]) -> dict[str, Any]:
    """The error that a message about a room is answered with, without the room's name."""
    answer = await client.ask(kind, room_id=room, **fields)
    assert answer["type"] == "error", (kind, room, answer)
    assert answer["code"] in ("not_found", "not_joined"), (kind, answer)
    return told(answer, room)


def told(answer: dict[str, Any], room: str) -> dict[str, Any]:
    return {**answer, "ref": "", "message": answer["message"].replace(room, "…")}


async def over_http(server: Running, message: type[ClientMessage], fields: dict[str, Any]) -> None:
    answers = []
    async with server.http(server.token("eve")) as http:
        for room in ("den", "nix"):
            asked = request(message, {**fields, "room_id": room})
            if asked is not None:
                answer = await http.request(asked.method, asked.path + asked.query, json=asked.body)
                answers.append((answer.status_code, answer.text.replace(room, "…")))
    assert answers in ([], answers[:1] * 2)
    assert all(status in (404, 422) for status, _ in answers), answers


# -- rooms of other kinds


async def test_a_live_room_keeps_nothing(lane: str, tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'hubbub.db'}"
    async with serve(lane, database_url=url) as server, server.client("own") as own, server.client("bob") as bob:
        await good(own, "create_room", room_id="stage", kind="live")
        for client in (own, bob):
            position = (await good(client, "join_room", room_id="stage"))["position"]
        said = await good(own, "chat_message", room_id="stage", message="hello", client_id="c")
        assert (await bob.expect("message"))["data"]["message"] == "hello"
        again = await good(own, "chat_message", room_id="stage", message="hello", client_id="c")
        assert {**again, "ref": ""} == {**said, "ref": ""}
        stored: dict[str, dict[str, Any]] = {
            "get_messages": {},
            "add_reaction": {"id": 1, "emoji": "👍"},
            "list_pins": {},
        }
        for kind, fields in stored.items():
            assert await bob.refused(kind, room_id="stage", **fields) == "forbidden"
        assert await bob.refused("chat_message", room_id="stage", message="x", reply_to=1) == "forbidden"
        back = await good(bob, "join_room", room_id="stage", since=position)
        assert [each["data"]["message"] for each in back["messages"]] == ["hello"]
    async with serve(lane, database_url=url) as server, server.client("bob") as bob:
        back = await good(bob, "join_room", room_id="stage", since=position)
        assert (back["recovered"], back["messages"]) == (False, [])
        await bob.expect("gap", channel="room:stage")


async def test_slow_mode_archives_and_broadcasts(lane: str) -> None:
    async with serve(lane) as server, server.client("own") as own, server.client("bob") as bob:
        await den(own, "bob")
        await good(bob, "join_room", room_id="den")
        await good(own, "update_room", room_id="den", slow_mode=10)
        await good(bob, "chat_message", room_id="den", message="one")
        server.advance(4)
        refused = await bob.ask("chat_message", room_id="den", message="two")
        assert (refused["code"], refused["retry_after"]) == ("slow_mode", 6)
        await good(own, "chat_message", room_id="den", message="a moderator need not wait")
        await good(own, "chat_message", room_id="den", message="at all")
        server.advance(6)
        await good(bob, "chat_message", room_id="den", message="two")

        await good(own, "update_room", room_id="den", slow_mode=0, archived=True)
        assert (await bob.expect("room_updated", room_id="den"))["data"]["archived_at"]
        frozen: dict[str, dict[str, Any]] = {
            "chat_message": {"message": "x"},
            "edit_message": {"id": 2, "message": "x"},
            "add_reaction": {"id": 2, "emoji": "👍"},
            "pin_message": {"id": 2},
        }
        for kind, fields in frozen.items():
            for client in (own, bob):
                assert await client.refused(kind, room_id="den", **fields) == "forbidden", kind
        assert len((await good(bob, "get_messages", room_id="den"))["messages"]) == 5
        assert (await good(bob, "mark_read", room_id="den", id=2))["read"] >= 2
        assert await bob.refused("update_room", room_id="den", archived=False) == "forbidden"
        await good(own, "update_room", room_id="den", archived=False)
        await good(own, "update_room", room_id="den", kind="broadcast")
        assert await bob.refused("chat_message", room_id="den", message="x") == "forbidden"
        await good(own, "chat_message", room_id="den", message="only staff speaks")
        await good(own, "set_role", room_id="den", user_id="bob", role="moderator")
        await good(bob, "chat_message", room_id="den", message="and now I am one")


@pytest.mark.parametrize("wire", ["/ws", "/ws?format=msgpack"])
async def test_later_members_see_what_the_room_lets_them(lane: str, wire: str) -> None:
    async with serve(lane) as server, server.client("own") as own, server.client("bob", path=wire) as bob:
        await den(own, history="joined")
        position = (await good(own, "get_messages", room_id="den"))["position"]
        before = (await good(own, "chat_message", room_id="den", message="before @bob"))["id"]
        await good(own, "invite_members", room_id="den", user_ids=["bob"])
        joined = await good(bob, "join_room", room_id="den", since={**position, "offset": 0})
        assert (joined["recovered"], joined["messages"]) == (False, [])
        after = (await good(own, "chat_message", room_id="den", message="after", reply_to=before))["id"]
        shown = (await good(bob, "get_messages", room_id="den"))["messages"]
        assert [each["id"] for each in shown if "system" not in each] == [after]
        page = (await good(bob, "history", channel="room:den", limit=200))["messages"]
        assert min(happened(each)[0] for each in page) > before
        hidden: dict[str, dict[str, Any]] = {
            "get_versions": {},
            "add_reaction": {"emoji": "👍"},
            "report_message": {"reason": "x"},
            "pin_message": {},
        }
        for kind, fields in hidden.items():
            assert await bob.refused(kind, room_id="den", id=before, **fields) == "not_found", kind
        for to in ("thread", "reply_to"):
            assert await bob.refused("chat_message", room_id="den", message="x", **{to: before}) == "not_found"
        assert await bob.refused("catch_up", room_id="den", since={**position, "offset": 0}) == "resync_required"
        assert (await good(bob, "search_messages", query="before"))["hits"] == []
        assert "mentions" not in await me(bob)
