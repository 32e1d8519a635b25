"""Rooms and chat: made, listed, joined and left; messages once; who is here and who types, per user and not per device."""

from __future__ import annotations

from typing import Any

import pytest

from tests.support import BOTH_LANES, Client, Running, serve, until

pytestmark = BOTH_LANES


def of(messages: list[dict[str, Any]], *kinds: str) -> list[tuple[str, str]]:
    """The messages of these types as (type, user)."""
    return [(m["type"], m["user_id"]) for m in messages if m["type"] in kinds]


async def gone(server: Running, user: str) -> None:
    """Wait until the server knows that a user's last connection is gone: its clock may be turned then."""
    await until(lambda: not server.hub.sessions_of(user), f"{user} is gone")


async def joined(client: Client, room: str = "general", **fields: Any) -> dict[str, Any]:
    answer = await client.ask("join_room", room_id=room, **fields)
    assert answer["type"] == "room_joined", answer
    await client.drained()
    return answer


async def test_rooms_are_made_listed_joined_and_left(lane: str) -> None:
    async with serve(lane, default_rooms=("general", "random")) as server, server.client("alice") as alice:
        rooms = (await alice.ask("list_rooms"))["rooms"]
        assert [room["room_id"] for room in rooms] == ["general", "random"]
        made = await alice.ask("create_room", room_id="tea", name="Tea & ☕")
        assert made["room"] == {
            "room_id": "tea",
            "name": "Tea & ☕",
            "created_at": "2027-01-15T08:00:00.000Z",
            "created_by": "alice",
            "kind": "group",
            "visibility": "public",
            "history": "shared",
            "member_count": 1,
            "me": {"role": "owner", "notify": "all", "joined_at": "2027-01-15T08:00:00.000Z"},
        }
        assert await alice.refused("create_room", room_id="tea") == "conflict"
        assert await alice.refused("join_room", room_id="coffee") == "not_found"
        assert await alice.refused("chat_message", room_id="coffee", message="x") == "not_joined"
        assert await alice.refused("chat_message", room_id="tea", message="x") == "not_joined"
        assert await alice.refused("typing", room_id="tea") == "not_joined"
        assert await alice.refused("leave_room", room_id="tea") == "not_joined"
        answer = await joined(alice, "tea")
        assert answer["room"] == made["room"]
        assert answer["position"]["offset"] == 0
        assert (answer["recovered"], answer["messages"], answer["count"]) == (False, [], 1)
        assert [(user["user_id"], user["devices"]) for user in answer["users"]] == [("alice", 1)]
        assert {room["room_id"]: room["users"] for room in (await alice.ask("list_rooms"))["rooms"]}["tea"] == 1
        assert (await alice.ask("leave_room", room_id="tea")) == {
            "type": "room_left",
            "ref": f"ask-{alice._asked}",
            "room_id": "tea",
        }
        assert await alice.refused("chat_message", room_id="tea", message="x") == "not_joined"
        async with server.http(bearer=server.token("bob")) as http:
            assert [room["room_id"] for room in (await http.get("/api/rooms")).json()] == ["general", "random", "tea"]
            made = (await http.post("/api/rooms", json={"room_id": "cake"})).json()
            assert (made["name"], made["created_by"]) == ("cake", "bob")
            assert (await http.post("/api/rooms", json={"room_id": "cake"})).status_code == 409
        async with server.http(bearer=None) as http:
            assert (await http.get("/api/rooms")).status_code == 401
            assert (await http.post("/api/rooms", json={"room_id": "x"})).status_code == 401


@pytest.mark.parametrize("name", ["", " ", "a b", "ä", "-a", ".a", "a" * 65, "a/b", "a:b", "a\n", "a\x00"])
async def test_names_that_are_none(lane: str, name: str) -> None:
    async with serve(lane) as server, server.client("alice") as alice, server.http() as http:
        assert await alice.refused("create_room", room_id=name) == "invalid_message"
        assert await alice.refused("join_room", room_id=name) in ("not_found", "invalid_message")
        assert (await http.post("/api/rooms", json={"room_id": name})).status_code == 422


async def test_who_becomes_a_member_hears_it_on_the_other_devices(lane: str) -> None:
    async with serve(lane) as server, server.client("alice") as phone, server.client("alice") as laptop:
        assert [m["type"] for m in (await joined(phone), *phone.seen)].count("room_added") == 0
        added = await laptop.expect("room_added")
        assert (added["room"]["room_id"], added["room"]["me"]["role"]) == ("general", "member")
        await laptop.nothing_more()
        await joined(laptop)  # a member already
        assert "room_added" not in [m["type"] for m in await phone.drained()]


async def test_how_many_rooms(lane: str) -> None:
    limits: dict[str, Any] = {"max_rooms": 5, "max_rooms_per_user": 2}
    async with serve(lane, **limits) as server, server.client("alice") as alice, server.client("bob") as bob:
        for name in ("a", "b"):
            await alice.ask("create_room", room_id=name)
        assert await alice.refused("create_room", room_id="a") == "conflict"
        assert await alice.refused("create_room", room_id="c") == "too_many"
        await bob.ask("create_room", room_id="c")
        await server.hubbub.create_room("d")  # the server itself has no such limit, but for the one of all
        assert await bob.refused("create_room", room_id="e") == "too_many"


async def test_the_room_endpoint(lane: str) -> None:
    async with serve(lane) as server, server.client("bob", path="/ws/chat/general") as bob:
        assert (await bob.receive())["type"] == "room_joined"
        path = f"/ws/chat/general?token={server.token('alice')}"
        async with server.client(path=path) as alice:
            kinds = [(await alice.receive())["type"] for _ in range(2)]
            assert kinds == ["auth_success", "room_joined"]
            await alice.send("chat_message", message="hello")
            message = await bob.expect("message")
            assert message == {
                "type": "message",
                "room_id": "general",
                "data": {
                    "id": 1,
                    "user_id": "alice",
                    "message": "hello",
                    "timestamp": "2027-01-15T08:00:00.000Z",
                },
            }
            assert await alice.expect("message") == message  # the sender too
            assert (await alice.expect("ack"))["id"] == 1
        for path in ("/ws/chat/nowhere", "/ws/chat/a%20b", "/ws/chat/" + "x" * 200):
            async with server.client("alice", path=path) as lost:
                assert (await lost.receive())["code"] == "not_found"
                assert await lost.closed() == 4404
        await gone(server, "alice")


async def test_the_guides_own_client(lane: str) -> None:
    """Its integration test knows no rooms: it signs in, talks, and takes the next frame for the message."""
    async with serve(lane) as server, server.client() as client:
        await client.send("auth", token=server.token("alice"))
        assert (await client.receive())["type"] == "auth_success"
        await client.send("chat_message", message="Hello World")
        message = await client.receive()
        assert (message["type"], message["room_id"]) == ("message", "general")
        assert message["data"]["message"] == "Hello World"


async def test_where_a_message_without_a_room_goes(lane: str) -> None:
    async with serve(lane, default_rooms=("general", "tea", "private")) as server:
        async with server.client("alice") as alice:
            await joined(alice, "tea")
            assert (await alice.ask("chat_message", message="to the only one"))["room_id"] == "tea"
            await joined(alice, "general")
            assert await alice.refused("chat_message", message="to which?") == "invalid_message"
        async with server.client("bob", path="/ws/chat/tea") as bob:
            await joined(bob, "general")
            assert (await bob.ask("chat_message", message="the endpoint's"))["room_id"] == "tea"
            assert (await bob.ask("chat_message", message="named", room_id="general"))["room_id"] == "general"
        async with server.client("carol", grants={"rooms": ["private"]}) as carol:
            assert await carol.refused("chat_message", message="not let in") == "not_found"
    async with serve(lane, default_rooms=()) as server, server.client("alice") as alice:
        assert await alice.refused("chat_message", message="nowhere") == "not_joined"


async def test_a_retry_gets_the_first_answer(lane: str) -> None:
    async with serve(lane) as server, server.client("bob", path="/ws/chat/general") as bob:
        async with server.client("alice", path="/ws/chat/general") as alice:
            first = await alice.ask("chat_message", message="once", client_id="c1")
            server.advance(1)
            again = await alice.ask("chat_message", message="once", client_id="c1")
            assert {**again, "ref": ""} == {**first, "ref": ""}
            other = await alice.ask("chat_message", message="twice", client_id="c2")
            assert other["id"] == first["id"] + 1
            position = {"epoch": server.hub.channels["room:general"].epoch, "offset": 0}
        async with server.client("alice") as alice:  # after a reconnect
            back = await joined(alice, since=position)
            assert [m["data"]["client_id"] for m in back["messages"]] == ["c1", "c2"]
            again = await alice.ask("chat_message", message="once", client_id="c1", room_id="general")
            assert (again["id"], again["timestamp"]) == (first["id"], first["timestamp"])
        # a client id is the user's own, and the room's own
        assert (await bob.ask("chat_message", message="mine", client_id="c1"))["id"] == 3
        await bob.ask("create_room", room_id="tea")
        await joined(bob, "tea")
        assert (await bob.ask("chat_message", message="mine", client_id="c1", room_id="tea"))["id"] == 1
        talk = [m["data"] for m in bob.seen if m["type"] == "message" and m["room_id"] == "general"]
        assert [(data["id"], data["user_id"], data["client_id"]) for data in talk] == [
            (1, "alice", "c1"),
            (2, "alice", "c2"),
            (3, "bob", "c1"),
        ]


async def test_texts(lane: str) -> None:
    async with serve(lane, max_text_length=5) as server, server.client("alice", path="/ws/chat/general") as alice:
        for text in ("12345", "ü" * 5, "😀" * 5, " a ", "<b>", "\n."):
            await alice.ask("chat_message", message=text)
            assert alice.seen[-2]["data"]["message"] == text
        assert await alice.refused("chat_message", message="123456") == "too_large"
        for text in (" ", "\n\t", "a\x00"):
            assert await alice.refused("chat_message", message=text) == "invalid_message"


async def test_comings_and_goings_are_told_once_per_user(lane: str) -> None:
    async with serve(lane) as server, server.client("bob") as bob:
        await joined(bob)
        async with server.client("alice") as phone, server.client("alice") as laptop:
            await joined(phone)
            await joined(laptop)
            assert of(await bob.drained(), "user_joined", "user_left") == [("user_joined", "alice")]
            await phone.ask("leave_room", room_id="general")
            server.advance(10)
            assert of(await bob.drained(), "user_joined", "user_left") == []
            answer = await joined(phone)
            assert [(u["user_id"], u["devices"]) for u in answer["users"]] == [("bob", 1), ("alice", 2)]
        await gone(server, "alice")
        server.advance(2)
        async with server.client("alice") as reloaded:  # within the grace: nobody is told
            await joined(reloaded)
            server.advance(2)
            assert of(await bob.drained(), "user_joined", "user_left") == []
        await gone(server, "alice")
        server.advance(2.9)
        assert of(await bob.drained(), "user_joined", "user_left") == []
        server.advance(0.2)
        assert of(await bob.drained(), "user_joined", "user_left") == [("user_left", "alice")]
        async with server.client("alice") as late:
            await joined(late)
            assert of(await bob.drained(), "user_joined", "user_left") == [("user_joined", "alice")]
            # an abrupt end is a going as well
            late.connection.transport.abort()
        await gone(server, "alice")
        server.advance(3.1)
        await bob.expect("user_left", user_id="alice")


async def test_typing(lane: str) -> None:
    async with (
        serve(lane) as server,
        server.client("bob") as bob,
        server.client("alice") as alice,
        server.client("alice") as tablet,
    ):
        for client in (bob, alice, tablet):
            await joined(client)
        for client in (bob, alice, tablet):
            await client.drained()
        mark = {"type": "typing", "room_id": "general", "user_id": "alice", "active": True}
        await alice.send("typing")
        await alice.nothing_more()  # not echoed to where it comes from
        assert await bob.receive() == mark
        assert await tablet.receive() == mark
        server.advance(4)
        await alice.send("typing", room_id="general")
        await alice.nothing_more()
        await bob.nothing_more()  # known already
        server.advance(4)
        await bob.nothing_more()
        server.advance(1.1)
        assert await bob.receive() == {**mark, "active": False}
        for client in (alice, tablet):
            await client.drained()
        # the message itself ends it
        await alice.send("typing")
        assert await bob.receive() == mark
        await alice.ask("chat_message", message="done")
        assert (await bob.receive())["type"] == "message"
        server.advance(6)
        await bob.nothing_more()
        # so does leaving
        await alice.send("typing")
        assert await bob.receive() == mark
        await alice.ask("leave_room", room_id="general")
        assert await bob.receive() == {**mark, "active": False}


async def test_each_mark_fades_in_its_own_time(lane: str) -> None:
    async with (
        serve(lane) as server,
        server.client("bob") as bob,
        server.client("alice") as alice,
        server.client("carol") as carol,
    ):
        for client in (bob, alice, carol):
            await joined(client)
        await carol.drained()
        await alice.send("typing")
        await carol.expect("typing", user_id="alice", active=True)
        server.advance(0.5)
        await alice.send("typing")  # until 5.5
        await alice.drained()
        server.advance(4)
        await bob.send("typing")  # until 9.5
        await carol.expect("typing", user_id="bob", active=True)
        server.advance(0.6)  # 5.1: alice's first mark is due, but there is a newer one
        await carol.nothing_more()
        server.advance(0.6)  # 5.7
        faded = {"type": "typing", "room_id": "general", "user_id": "alice", "active": False}
        assert await carol.receive() == faded
        await carol.nothing_more()
        server.advance(4)
        assert (await carol.receive())["user_id"] == "bob"


async def test_a_large_room_is_told_counts(lane: str) -> None:
    async with serve(lane, presence_limit=2) as server, server.client("a") as first, server.client("b") as second:
        await joined(first)
        await joined(second)
        assert of(first.seen, "user_joined") == [("user_joined", "a")]
        assert of(await first.drained(), "user_joined") == [("user_joined", "b")]
        async with server.client("c") as third, server.client("d") as fourth:
            answer = await joined(third)
            assert "users" not in answer
            assert answer["count"] == 3
            await joined(fourth)
            server.advance(1)
            assert [m for m in await first.drained() if m["type"] != "room_count"] == []
            counts = [m["count"] for m in first.seen if m["type"] == "room_count"]
            assert counts[-1] == 4
            assert len(counts) <= 2
            await third.ask("chat_message", message="hello")
            assert (await first.receive())["data"]["message"] == "hello"
        await gone(server, "c")
        await gone(server, "d")
        server.advance(3.1)
        assert sorted(of(await first.drained(), "user_left")) == [("user_left", "c"), ("user_left", "d")]
