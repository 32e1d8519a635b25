"""The chat over HTTP: the same commands with the same answers as on the socket, told to who is in the room; strict about
what it is asked; and described in OpenAPI as it is."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import msgspec
import pytest
from fastapi import FastAPI
from pydantic import BaseModel
from sqlalchemy import func, select

from hubbub import Hubbub
from hubbub.features.chat import tables
from hubbub.features.chat.tx import COMMANDS
from tests.rest_support import good, people, refused, served
from tests.support import HandClock, Running, running, settings_for

pytestmark = pytest.mark.anyio
ROOM = "/api/rooms/tea"


async def say(http: Any, text: str, room: str = ROOM, **fields: Any) -> int:
    """Say something; returns its number."""
    number: int = good(await http.post(f"{room}/messages", json={"message": text, **fields}), 201)["id"]
    return number


# -- a room's life, on both databases ----------------------------------------------------------------------------------


async def test_rooms_are_made_found_and_changed(database_url: str) -> None:
    async with served(database_url) as server, people(server, "alice", "bob") as (alice, bob):
        made = await alice.post("/api/rooms", json={"room_id": "tea", "name": "Tea", "visibility": "private"})
        room = good(made, 201)
        assert (room["room_id"], room["created_by"], room["me"]["role"]) == ("tea", "alice", "owner")
        assert "type" not in room
        assert refused(await alice.post("/api/rooms", json={"room_id": "tea"})) == (409, "conflict")
        assert refused(await bob.get(ROOM)) == (404, "not_found")
        assert [each["room_id"] for each in good(await bob.get("/api/rooms"))] == ["general"]
        assert [each["room_id"] for each in good(await alice.get("/api/rooms", params={"mine": "true"}))] == ["tea"]
        good(await alice.post(f"{ROOM}/invitations", json={"user_ids": ["bob"]}))
        assert good(await bob.get(ROOM))["me"]["invited_by"] == "alice"
        assert good(await bob.post(f"{ROOM}/members/me"))["me"]["role"] == "member"
        members = good(await alice.get(f"{ROOM}/members"))["members"]
        assert [(each["user_id"], each["role"]) for each in members] == [("alice", "owner"), ("bob", "member")]
        assert refused(await bob.patch(ROOM, json={"topic": "Coffee"})) == (403, "forbidden")
        assert good(await alice.patch(ROOM, json={"topic": "Green or black"}))["topic"] == "Green or black"
        good(await alice.put(f"{ROOM}/members/bob/role", json={"role": "moderator"}))
        assert good(await bob.patch(ROOM, json={"topic": "Coffee"}))["topic"] == "Coffee"
        assert good(await bob.delete(f"{ROOM}/members/me")) == {"room_id": "tea"}
        assert refused(await bob.get(f"{ROOM}/messages")) == (404, "not_found")


async def test_messages_are_said_read_changed_and_found(database_url: str) -> None:
    async with served(database_url) as server, people(server, "alice", "bob") as (alice, bob):
        good(await alice.post("/api/rooms", json={"room_id": "tea", "members": ["bob"]}), 201)
        first = await say(alice, "Good morning, @bob")
        second = await say(bob, "Morning!", reply_to=first)
        reply = await say(alice, "With milk?", thread=second)
        page = good(await bob.get(f"{ROOM}/messages"))
        assert [each["id"] for each in page["messages"]] == [first, second]
        assert page["messages"][0]["mentions"] == ["bob"]
        assert page["messages"][1]["replies"]["replies"] == 1
        thread = good(await bob.get(f"{ROOM}/messages", params={"thread": second}))
        assert [each["id"] for each in thread["messages"]] == [reply]
        assert good(await bob.get("/api/threads"))["threads"][0]["message"]["id"] == second
        assert [each["message"]["id"] for each in good(await bob.get("/api/mentions"))["mentions"]] == [first]
        assert good(await bob.post(f"{ROOM}/read", json={"id": second}))["unread"] == 0
        assert good(await alice.get(f"{ROOM}/receipts"))["receipts"]["bob"] == second
        edited = good(await alice.patch(f"{ROOM}/messages/{first}", json={"message": "Good evening, @bob"}))
        assert (edited["id"], edited["version"]) == (first, 2)
        versions = good(await bob.get(f"{ROOM}/messages/{first}/versions"))["versions"]
        assert [each["message"] for each in versions] == ["Good morning, @bob", "Good evening, @bob"]
        good(await bob.put(f"{ROOM}/messages/{first}/reactions/👍"))
        good(await bob.put(f"{ROOM}/messages/{first}/reactions/%F0%9F%91%8D"))  # the same, as clients send it
        good(await alice.put(f"{ROOM}/pins/{second}"))
        page = good(await alice.get(f"{ROOM}/messages", params={"around": first, "limit": 5}))
        assert page["messages"][0]["reactions"] == [{"emoji": "👍", "count": 1}]
        assert page["messages"][1]["pinned"] is True
        good(await bob.delete(f"{ROOM}/messages/{first}/reactions/👍"))
        good(await alice.delete(f"{ROOM}/pins/{second}"))
        good(await alice.delete(f"{ROOM}/messages/{first}", params={"reason": "typo"}))
        page = good(await alice.get(f"{ROOM}/messages", params={"before": second}))
        assert page["messages"][0]["message"] == ""
        assert "reactions" not in page["messages"][0]


async def test_moderators_do_their_work(database_url: str) -> None:
    async with served(database_url) as server, people(server, "alice", "bob") as (alice, bob), server.http() as key:
        good(await alice.post("/api/rooms", json={"room_id": "tea", "members": ["bob"]}), 201)
        rude = await say(bob, "Buy now!")
        report = good(await alice.post(f"{ROOM}/messages/{rude}/reports", json={"reason": "spam"}))["report"]
        queue = good(await key.get("/api/reports"))["reports"]
        assert [(each["report"], each["room_id"], each["reason"]) for each in queue] == [(report, "tea", "spam")]
        assert refused(await bob.get("/api/reports")) == (403, "forbidden")
        good(await alice.post(f"/api/reports/{report}/close", json={"status": "resolved", "delete": True}))
        good(await alice.post(f"{ROOM}/mutes", json={"user_id": "bob", "seconds": 60}))
        answer = await bob.post(f"{ROOM}/messages", json={"message": "why?"})
        assert refused(answer) == (403, "forbidden")
        assert 0 < int(answer.headers["retry-after"]) <= 60
        good(await alice.delete(f"{ROOM}/mutes/bob"))
        await say(bob, "thanks")
        good(await alice.post(f"{ROOM}/kick", json={"user_id": "bob"}))
        good(await alice.post(f"{ROOM}/bans", json={"user_id": "bob", "reason": "enough"}))
        assert [each["reason"] for each in good(await alice.get(f"{ROOM}/bans"))["bans"]] == ["enough"]
        assert refused(await bob.post(f"{ROOM}/members/me"))[0] in (403, 404)
        good(await alice.delete(f"{ROOM}/bans/bob"))
        good(await bob.post(f"{ROOM}/members/me"))
        acts = {each["act"] for each in good(await alice.get("/api/audit", params={"room_id": "tea"}))["entries"]}
        assert {"kick", "ban", "mute"} <= acts


async def test_direct_rooms_there_is_one_of_them() -> None:
    async with served() as server, people(server, "alice", "bob") as (alice, bob):
        first = await alice.post("/api/direct", json={"user_ids": ["bob"]})
        again = await bob.post("/api/direct", json={"user_ids": ["alice"]})
        assert good(first, 201)["room_id"] == good(again, 200)["room_id"]
        assert good(first, 201)["people"] == ["alice", "bob"]


async def test_catching_up_takes_a_position() -> None:
    async with served() as server, people(server, "alice") as (alice,):
        good(await alice.post("/api/rooms", json={"room_id": "tea"}), 201)
        numbers = [await say(alice, f"message {number}") for number in range(5)]
        epoch = good(await alice.get(f"{ROOM}/messages"))["position"]["epoch"]
        caught = good(await alice.get(f"{ROOM}/events", params={"epoch": epoch, "offset": numbers[1], "limit": 2}))
        assert [event["data"]["id"] for event in caught["events"]] == numbers[2:4]
        assert caught["more"] is True
        rest = good(await alice.get(f"{ROOM}/events", params=caught["position"]))
        assert ([event["data"]["id"] for event in rest["events"]], rest["more"]) == (numbers[4:], False)
        assert refused(await alice.get(f"{ROOM}/events", params={"epoch": "other", "offset": 0})) == (
            410,
            "resync_required",
        )
        answer = await alice.get(f"{ROOM}/events", params={"epoch": epoch})
        assert refused(answer) == (422, "invalid_message")
        assert "`offset`" in answer.text
        assert "`epoch`" in (await alice.get(f"{ROOM}/events")).text


async def test_a_page_of_rooms_links_to_the_next() -> None:
    async with served(default_rooms=()) as server, server.http() as key, people(server, "alice") as (alice,):
        names = sorted(f"room-{number}" for number in range(8))
        for name in names:
            good(await key.post("/api/rooms", json={"room_id": name, "name": f"& {name}?"}), 201)
        found, address = [], "/api/rooms?limit=3&query=%26+room"
        while address:
            answer = await alice.get(address)
            found += [room["room_id"] for room in good(answer)]
            link = re.fullmatch(r'<(\?[^>]+)>; rel="next"', answer.headers.get("link", "<?>"))
            address = f"/api/rooms{link[1]}" if link is not None else ""
            assert len(found) <= 8
        assert found == names


# -- the same as on the socket -----------------------------------------------------------------------------------------

ASKED: list[tuple[str, dict[str, Any], str, str]] = [
    ("get_room", {"room_id": "tea"}, "GET", ROOM),
    ("list_rooms", {}, "GET", "/api/rooms"),
    ("list_members", {"room_id": "tea", "limit": 1}, "GET", f"{ROOM}/members?limit=1"),
    ("get_messages", {"room_id": "tea", "limit": 2}, "GET", f"{ROOM}/messages?limit=2"),
    ("get_versions", {"room_id": "tea", "id": 1}, "GET", f"{ROOM}/messages/1/versions"),
    ("list_pins", {"room_id": "tea"}, "GET", f"{ROOM}/pins"),
    ("list_receipts", {"room_id": "tea"}, "GET", f"{ROOM}/receipts"),
    ("list_threads", {}, "GET", "/api/threads"),
    ("list_mentions", {"limit": 3}, "GET", "/api/mentions?limit=3"),
    ("get_last_seen", {"user_ids": ["bob", "carol"]}, "GET", "/api/last-seen?user_ids=bob,carol"),
    ("list_reports", {"room_id": "tea"}, "GET", "/api/reports?room_id=tea"),
    ("get_audit", {"room_id": "tea"}, "GET", "/api/audit?room_id=tea"),
    ("list_bans", {"room_id": "tea"}, "GET", f"{ROOM}/bans"),
    ("mark_read", {"room_id": "tea", "id": 1}, "POST", f"{ROOM}/read"),
    ("get_room", {"room_id": "nowhere"}, "GET", "/api/rooms/nowhere"),
    ("get_messages", {"room_id": "tea", "limit": 201}, "GET", f"{ROOM}/messages?limit=201"),
    ("mark_read", {"room_id": "tea", "id": 99}, "POST", f"{ROOM}/read"),
    ("edit_message", {"room_id": "tea", "id": 2, "message": "x"}, "PATCH", f"{ROOM}/messages/2"),
]


async def test_answers_are_those_of_the_socket() -> None:
    async with served() as server, server.client("alice") as socket, people(server, "alice", "bob") as (alice, bob):
        good(await alice.post("/api/rooms", json={"room_id": "tea", "members": ["bob"]}), 201)
        await say(alice, "one")
        await say(bob, "two @alice")
        for kind, fields, method, path in ASKED:
            in_path = {"room_id", "id"} if method == "PATCH" else {"room_id"}
            body = None if method == "GET" else {name: each for name, each in fields.items() if name not in in_path}
            on_socket = await socket.ask(kind, **fields)
            over_http = await alice.request(method, path, json=body)
            expected = {name: each for name, each in on_socket.items() if name not in ("type", "ref")}
            if on_socket["type"] == "error":
                assert over_http.json()["error"] == {name: expected[name] for name in ("code", "message")}, kind
                continue
            if kind == "get_room":
                expected = expected["room"]
            elif kind == "list_rooms":
                expected = expected["rooms"]
            assert good(over_http) == expected, kind


async def test_who_is_in_the_room_hears_of_it() -> None:
    async with served() as server, server.client("bob") as bob, people(server, "alice") as (alice,):
        good(await alice.post("/api/rooms", json={"room_id": "tea", "members": ["bob"]}), 201)
        added = await bob.expect("room_added")
        assert added["room"]["room_id"] == "tea"
        await bob.ask("join_room", room_id="tea")
        number = await say(alice, "hello", client_id="1")
        heard = await bob.expect("message")
        assert (heard["data"]["id"], heard["data"]["user_id"], heard["data"]["message"]) == (number, "alice", "hello")
        good(await alice.patch(f"{ROOM}/messages/{number}", json={"message": "hello all"}))
        assert (await bob.expect("message_updated"))["data"]["message"] == "hello all"
        good(await alice.put(f"{ROOM}/messages/{number}/reactions/🎉"))
        assert (await bob.expect("reaction"))["data"]["emoji"] == "🎉"
        assert await say(alice, "hello", client_id="1") == number  # a retry is answered, and not said again
        await bob.drained()
        good(await alice.post(f"{ROOM}/kick", json={"user_id": "bob", "reason": "late"}))
        assert (await bob.expect("room_left"))["reason"] == "kicked"


async def test_a_retry_gets_the_first_answer(database_url: str) -> None:
    async with served(database_url) as server, people(server, "alice", "bob") as (alice, bob):
        good(await alice.post("/api/rooms", json={"room_id": "tea", "members": ["bob"]}), 201)
        body = {"message": "once", "client_id": "c-1"}
        answers = await asyncio.gather(*(alice.post(f"{ROOM}/messages", json=body) for _ in range(10)))
        assert {answer.text for answer in answers} == {answers[0].text}
        assert good(answers[0], 201)["client_id"] == "c-1"
        assert good(await bob.post(f"{ROOM}/messages", json=body), 201)["id"] != good(answers[0], 201)["id"]
        messages = good(await alice.get(f"{ROOM}/messages"))["messages"]
        assert [each["user_id"] for each in messages] == ["alice", "bob"]


# -- who calls ---------------------------------------------------------------------------------------------------------


async def test_an_api_key_speaks_for_itself_or_for_a_user() -> None:
    async with served() as server, server.http() as key, people(server, "alice") as (alice,):
        room = good(await key.post("/api/rooms", json={"room_id": "tea"}), 201)
        assert "created_by" not in room
        assert good(await key.post("/api/rooms?as_user=bob", json={"room_id": "cake"}), 201)["created_by"] == "bob"
        answer = await key.post(f"{ROOM}/messages", json={"message": "hello"})
        assert refused(answer) == (422, "invalid_message")
        assert "as_user" in answer.text
        number = good(await key.post(f"{ROOM}/messages?as_user=bob%2Fwork", json={"message": "hello"}), 201)["id"]
        (message,) = good(await key.get(f"{ROOM}/messages"))["messages"]
        assert (message["id"], message["user_id"]) == (number, "bob/work")
        assert refused(await alice.get("/api/rooms?as_user=bob")) == (403, "forbidden")
        for wrong in ("", "a\nb", "x" * 129):
            assert refused(await key.get("/api/rooms", params={"as_user": wrong})) == (422, "invalid_message")
    async with served() as server, server.http(None) as nobody, server.http("not-a-key-of-this-server") as stranger:
        for http in (nobody, stranger):
            for method, path in (("GET", "/api/rooms"), ("POST", "/api/rooms"), ("DELETE", f"{ROOM}/messages/1")):
                assert refused(await http.request(method, path))[0] == 401


async def test_an_api_key_for_nobody_leaves_nothing_of_nobody() -> None:
    """Commands that are about the caller do not make a member, or a reader, of an empty name."""
    async with served() as server, server.http() as key, people(server, "alice") as (alice,):
        good(await alice.post("/api/rooms", json={"room_id": "tea"}), 201)
        number = await say(alice, "hello")
        for method, path, body in (
            ("POST", f"{ROOM}/members/me", None),
            ("DELETE", f"{ROOM}/members/me", None),
            ("PUT", f"{ROOM}/notify", {"notify": "none"}),
            ("POST", f"{ROOM}/read", {"id": number}),
            ("PUT", f"{ROOM}/messages/{number}/reactions/👍", None),
            ("POST", f"{ROOM}/messages/{number}/reports", {"reason": "spam"}),
            ("PATCH", f"{ROOM}/messages/{number}", {"message": "not mine"}),
        ):
            answer = await key.request(method, path, json=body)
            assert answer.status_code < 500, (method, path, answer.text)
        mine = good(await alice.get(f"{ROOM}/messages"))["messages"][0]
        assert mine["message"] == "hello"
        for table in (tables.members, tables.followers):
            assert await rows(server, select(func.count()).where(table.c.user_id == "")) == [(0,)]


async def rows(server: Running, query: Any) -> list[Any]:
    found = await server.hubbub.store.read(lambda connection: connection.execute(query).all())
    return [tuple(row) for row in found]


async def test_users_have_a_rate_over_http_too() -> None:
    clock = HandClock()
    async with (
        served(clock=clock, user_rate_limit=2.0, user_rate_burst=3) as server,
        server.http() as key,
        people(server, "alice", "bob") as (alice, bob),
    ):
        statuses = [(await alice.get("/api/rooms")).status_code for _ in range(5)]
        assert statuses == [200, 200, 200, 429, 429]
        answer = await alice.get("/api/rooms")
        assert refused(answer) == (429, "rate_limited")
        assert answer.headers["retry-after"] == "1"
        assert (await bob.get("/api/rooms")).status_code == 200
        assert {(await key.get("/api/rooms?as_user=alice")).status_code for _ in range(5)} == {200}
        clock.advance(0.5)
        assert [(await alice.get("/api/rooms")).status_code for _ in range(2)] == [200, 429]


# -- strict about what it is asked --------------------------------------------------------------------------------------

WRONG: list[tuple[str, str, Any, str]] = [
    ("POST", "/api/rooms", {"room": "tea"}, "there is no field 'room': there are room_id, name"),
    ("POST", "/api/rooms", {"type": "create_room"}, "there is no field 'type'"),
    ("POST", "/api/rooms", {"ref": "1"}, "there is no field 'ref'"),
    ("PATCH", ROOM, {"room_id": "other"}, "there is no field 'room_id'"),
    ("POST", "/api/rooms", {"name": 5}, "Expected `str | null`, got `int` - at `$.name`"),
    ("POST", "/api/rooms", {"kind": "small"}, "at `$.kind`"),
    ("POST", "/api/rooms", {"members": "bob"}, "Expected `array`, got `str` - at `$.members`"),
    ("POST", "/api/rooms", {"members": [1]}, "at `$.members[0]`"),
    ("POST", "/api/rooms", [], "one JSON object"),
    ("POST", "/api/rooms", "tea", "one JSON object"),
    ("POST", "/api/rooms", {"name": "a\x00b"}, "no NUL in it - at `$.name`"),
    ("POST", "/api/rooms", {"members": ["a\x00b"]}, "no NUL in it - at `$.members`"),
    ("POST", f"{ROOM}/mutes", {"user_id": "bob"}, "missing required field `seconds`"),
    ("POST", f"{ROOM}/mutes", {"user_id": "bob", "seconds": "60"}, "Expected `int`, got `str` - at `$.seconds`"),
    ("POST", f"{ROOM}/mutes", None, "missing required field"),
    ("PUT", f"{ROOM}/pins/1", {"id": 1}, "this takes no body"),
    ("PUT", f"{ROOM}/pins/one", None, "Expected `int`, got `str` - at `$.id`"),
    ("PUT", f"{ROOM}/pins/0", None, "at `$.id`"),
    ("PUT", f"{ROOM}/pins/{2**36}", None, "at `$.id`"),
    ("POST", f"{ROOM}/members/me?limit=1", None, "there is no query parameter 'limit': there are none here"),
    ("POST", "/api/rooms?name=x", {}, "there is no query parameter 'name'"),
    ("GET", "/api/rooms?lmit=1", None, "there is no query parameter 'lmit': there are mine, query, after, limit"),
    ("GET", "/api/rooms?limit=0", None, "at `$.limit`"),
    ("GET", "/api/rooms?limit=many", None, "Expected `int`, got `str` - at `$.limit`"),
    ("GET", "/api/rooms?limit=1&limit=2", None, "2 times, and may be there once - at `$.limit`"),
    ("GET", "/api/rooms?mine=perhaps", None, "at `$.mine`"),
    ("GET", "/api/rooms?query=%00", None, "no NUL in it - at `$.query`"),
    ("GET", "/api/rooms/a%00b", None, "no NUL in it - at `$.room_id`"),
    ("GET", "/api/rooms/" + "x" * 65, None, "at `$.room_id`"),
    ("GET", "/api/last-seen", None, "missing required field `user_ids`"),
    ("GET", "/api/rooms?limit=1", {"limit": 2}, "this takes no body; its fields are query parameters"),
    ("DELETE", f"{ROOM}/messages/1", {"reason": "x"}, "this takes no body"),
    ("DELETE", f"{ROOM}/members/me?membership=false", None, "there is no query parameter 'membership'"),
]


async def test_wrong_requests_are_told_what_is_wrong(database_url: str) -> None:
    async with served(database_url) as server, people(server, "alice") as (alice,):
        good(await alice.post("/api/rooms", json={"room_id": "tea"}), 201)
        for method, path, body, text in WRONG:
            content = None if body is None else json.dumps(body).encode()
            answer = await alice.request(method, path, content=content)
            assert refused(answer) == (422, "invalid_message"), (method, path, body, answer.text)
            assert text in answer.json()["error"]["message"], (method, path, body, answer.text)
        for content in (b"{", b'{"name":NaN}', b'{"name":"\\ud800"}', b"\xff", b"[" * 5000):
            assert refused(await alice.post("/api/rooms", content=content)) == (400, "invalid_json")
        large = await alice.post("/api/rooms", content=b'{"name":"' + b"x" * (1 << 20) + b'"}')
        assert refused(large) == (413, "too_large")
        assert [room["room_id"] for room in good(await alice.get("/api/rooms?mine=1"))] == ["tea"]


async def test_queries_are_read_as_they_are_meant() -> None:
    async with served() as server, people(server, "alice") as (alice,), server.http() as key:
        good(await alice.post("/api/rooms", json={"room_id": "null", "name": "123"}), 201)
        for mine in ("true", "True", "1"):
            assert [room["room_id"] for room in good(await alice.get(f"/api/rooms?mine={mine}"))] == ["null"]
        for mine in ("false", "0"):
            assert len(good(await alice.get(f"/api/rooms?mine={mine}"))) == 2
        assert good(await alice.get("/api/rooms?after=null")) == []
        assert [room["name"] for room in good(await alice.get("/api/rooms?query=123"))] == ["123"]
        assert good(await alice.get("/api/rooms/null"))["name"] == "123"
        for query in ("user_ids=a,b", "user_ids=a&user_ids=b"):
            assert "users" in good(await key.get(f"/api/last-seen?{query}"))
        assert good(await alice.post("/api/rooms/null/members/me", content=b" {} "))["room_id"] == "null"


async def test_any_user_can_be_named_in_a_path() -> None:
    names = ("bob/work", "a b", "ümläut", "100%", "a?b#c", "role", "x/role", "..")
    async with served() as server, people(server, "alice") as (alice,):
        good(await alice.post("/api/rooms", json={"room_id": "tea", "members": list(names)}), 201)
        for name in names:
            quoted = "".join(f"%{byte:02X}" for byte in name.encode())
            good(await alice.put(f"{ROOM}/members/{quoted}/role", json={"role": "moderator"}))
        roles = {each["user_id"]: each["role"] for each in good(await alice.get(f"{ROOM}/members"))["members"]}
        assert roles == {"alice": "owner"} | dict.fromkeys(names, "moderator")


# -- OpenAPI -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def document() -> dict[str, Any]:
    app = FastAPI()
    Hubbub(app, settings=settings_for())
    made: dict[str, Any] = json.loads(json.dumps(app.openapi()))
    return made


def operations(document: Any) -> Iterator[tuple[str, str, Any]]:
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            yield method.upper(), path, operation


def references(part: Any) -> Iterator[str]:
    if isinstance(part, dict):
        if isinstance(part.get("$ref"), str):
            yield part["$ref"]
        for each in part.values():
            yield from references(each)
    elif isinstance(part, list):
        for each in part:
            yield from references(each)


def test_every_command_is_in_it(document: dict[str, Any]) -> None:
    there = {f"{method} {path}" for method, path, _ in operations(document)}
    wanted = {command.http for command in COMMANDS.values() if command.http is not None}
    assert len(wanted) > 30
    assert wanted <= there
    assert {
        "POST /api/rooms/{room_id}/messages",
        "POST /api/rooms/{room_id}/files",
        "GET /api/files/{file_id}",
        "DELETE /api/files/{file_id}",
        "POST /api/files/{file_id}/link",
        "GET /api/rooms/{room_id}/export",
        "GET /api/users/{user_id}/export",
        "DELETE /api/users/{user_id}",
    } <= there
    assert not any(method == "HEAD" for method, _, _ in operations(document))


def test_every_operation_is_described_whole(document: dict[str, Any]) -> None:
    ids = [operation["operationId"] for _, _, operation in operations(document)]
    assert len(set(ids)) == len(ids)
    for method, path, operation in operations(document):
        place = f"{method} {path}"
        assert operation["tags"], place
        assert operation["summary"], place
        assert "``" not in operation["summary"], place
        parameters = operation.get("parameters", [])
        assert {each["name"] for each in parameters if each["in"] == "path"} == set(re.findall(r"\{(\w+)\}", path)), (
            place
        )
        assert len({(each["in"], each["name"]) for each in parameters}) == len(parameters), place
        assert all(each["schema"] for each in parameters), place
        done = [status for status in operation["responses"] if status.startswith("2")]
        assert done, place
        for status in done:
            if status != "204" and path.startswith("/api"):
                (media,) = operation["responses"][status]["content"].values()
                assert media["schema"], place
        if path.startswith("/api") and "dev" not in path:
            assert "401" in operation["responses"], place
            assert operation["security"], place
        if "requestBody" in operation:
            assert all(media["schema"] for media in operation["requestBody"]["content"].values()), place


def test_every_reference_leads_somewhere(document: dict[str, Any]) -> None:
    found = set(references(document))
    assert len(found) > 30
    for reference in found:
        part: Any = document
        for name in reference.removeprefix("#/").split("/"):
            part = part[name]
    used = {reference.rpartition("/")[2] for reference in found}
    assert set(document["components"]["schemas"]) == used


def test_bodies_and_answers_are_described_as_they_are(document: dict[str, Any]) -> None:
    create = document["paths"]["/api/rooms"]["post"]
    body = create["requestBody"]["content"]["application/json"]["schema"]
    assert {"room_id", "name", "kind", "members"} <= set(body["properties"])
    assert body["additionalProperties"] is False
    assert not {"type", "ref"} & set(body["properties"])
    assert create["responses"]["201"]["content"]["application/json"]["schema"]["$ref"].endswith("/RoomInfo")
    listed = document["paths"]["/api/rooms"]["get"]["responses"]["200"]["content"]["application/json"]["schema"]
    assert listed["items"]["$ref"].endswith("/RoomInfo")
    schemas = document["components"]["schemas"]
    assert set(schemas["Members"]["properties"]) == {"room_id", "members", "more"}
    assert schemas["Members"]["required"] == ["room_id", "members"]
    message = schemas["MessageInfo"]
    assert message["properties"]["files"]["items"]["$ref"].endswith("/FileInfo")
    assert message["properties"]["deleted_at"] == {"type": "string", "title": "Deleted At"}  # left out, never null
    events = document["paths"]["/api/rooms/{room_id}/events"]["get"]["parameters"]
    required = {each["name"] for each in events if each["required"]}
    assert required == {"room_id", "epoch", "offset"}
    limits = {each["name"]: each["schema"] for each in document["paths"]["/api/rooms"]["get"]["parameters"]}
    assert (limits["limit"]["minimum"], limits["limit"]["maximum"], limits["limit"]["default"]) == (1, 1000, 1000)


async def test_answers_fit_what_is_said_of_them(document: dict[str, Any]) -> None:
    """Every field of an answer is one that the document knows, and what it requires is there."""
    async with served() as server, people(server, "alice", "bob") as (alice, bob):
        good(await alice.post("/api/rooms", json={"room_id": "tea", "members": ["bob"]}), 201)
        await say(bob, "hello @alice")
        await say(alice, "thread", thread=1)
        good(await alice.put(f"{ROOM}/messages/1/reactions/👍"))
        for method, path in (
            ("GET", "/api/rooms"),
            ("GET", "/api/rooms/{room_id}"),
            ("GET", "/api/rooms/{room_id}/messages"),
            ("GET", "/api/rooms/{room_id}/members"),
            ("GET", "/api/threads"),
            ("GET", "/api/mentions"),
            ("GET", "/api/audit"),
            ("POST", "/api/rooms/{room_id}/members/me"),
        ):
            query = {"room_id": "tea"} if path == "/api/audit" else {}
            answer = good(await alice.request(method, path.format(room_id="tea"), params=query))
            media = document["paths"][path][method.lower()]["responses"]["200"]["content"]["application/json"]
            assert_fits(answer, media["schema"], document)


def assert_fits(value: Any, schema: Any, document: Any) -> None:
    if "$ref" in schema:
        schema = document["components"]["schemas"][schema["$ref"].rpartition("/")[2]]
    if "items" in schema:
        for each in value:
            assert_fits(each, schema["items"], document)
    if "properties" in schema:
        assert set(schema.get("required", ())) <= set(value) <= set(schema["properties"]), (value, schema)
        for name, each in value.items():
            assert_fits(each, schema["properties"][name], document)
    kinds = {"string": str, "integer": int, "boolean": bool, "array": list, "object": dict}
    if "type" in schema:
        assert isinstance(value, kinds[schema["type"]]), (value, schema)
    if "enum" in schema:
        assert value in schema["enum"]


async def test_it_shows_two_hubs_and_an_app_s_own_types() -> None:
    """Nothing has two names or one name twice (FastAPI would warn, and a warning is an error here)."""

    class RoomInfo(BaseModel):
        seats: int

    app = FastAPI()
    Hubbub(app, settings=settings_for())
    Hubbub(app, settings=settings_for(), prefix="/other")

    @app.get("/booking", response_model=RoomInfo)
    async def booking() -> Any:
        return RoomInfo(seats=4)

    async with running(app=app) as server, server.http(None) as http:
        made = good(await http.get("/openapi.json"))
        assert good(await http.get("/booking")) == {"seats": 4}
        assert "swagger" in (await http.get("/docs")).text
    own = made["paths"]["/booking"]["get"]["responses"]["200"]["content"]["application/json"]["schema"]["$ref"]
    for path in ("/api/rooms", "/other/api/rooms"):
        items = made["paths"][path]["get"]["responses"]["200"]["content"]["application/json"]["schema"]["items"]
        schema = made["components"]["schemas"][items["$ref"].rpartition("/")[2]]
        assert "visibility" in schema["properties"]
        assert items["$ref"] != own
    assert set(made["components"]["schemas"][own.rpartition("/")[2]]["properties"]) == {"seats"}


# -- as a whole --------------------------------------------------------------------------------------------------------


async def test_exports_are_json_lines(database_url: str) -> None:
    async with (
        served(database_url) as server,
        server.http() as key,
        people(server, "alice", "bob", "carol") as (alice, bob, carol),
    ):
        good(await alice.post("/api/rooms", json={"room_id": "tea", "members": ["bob"]}), 201)
        await say(bob, "two lines\nof text")
        await say(alice, "an answer")
        assert refused(await bob.get(f"{ROOM}/export")) == (403, "forbidden")
        assert refused(await alice.get("/api/rooms/nowhere/export")) == (404, "not_found")
        answer = await alice.get(f"{ROOM}/export")
        assert answer.headers["content-type"] == "application/jsonl"
        assert answer.headers["cache-control"] == "no-store"
        lines = [json.loads(line) for line in answer.text.splitlines()]
        assert [line["type"] for line in lines if line["type"] != "member"] == ["room", "message", "message", "end"]
        assert [line["message"] for line in lines if line["type"] == "message"] == ["two lines\nof text", "an answer"]
        acts = [each["act"] for each in good(await key.get("/api/audit"))["entries"]]
        assert acts[0] == "export_room"
        for http in (bob, key):
            told = (await http.get("/api/users/bob/export")).text.splitlines()
            said = [json.loads(line) for line in told]
            assert [line["message"] for line in said if line["type"] == "message"] == ["two lines\nof text"]
        assert refused(await carol.get("/api/users/bob/export")) == (403, "forbidden")


async def test_a_user_is_erased(database_url: str, tmp_path: Path) -> None:
    async with (
        served(database_url, files=str(tmp_path / "files")) as server,
        server.http() as key,
        server.client("bob/work") as socket,
        people(server, "alice", "bob/work") as (alice, bob),
    ):
        good(await alice.post("/api/rooms", json={"room_id": "tea", "members": ["bob/work"]}), 201)
        info = good(await bob.post(f"{ROOM}/files", content=b"a secret"), 201)
        first = await say(bob, "my secret", files=[info["id"]])
        second = await say(alice, "an answer", reply_to=first)
        async with server.client("alice") as ears:
            await ears.ask("join_room", room_id="tea")
            for http in (alice, bob):
                assert refused(await http.delete("/api/users/bob%2Fwork")) == (403, "forbidden")
            erased = good(await key.delete("/api/users/bob%2Fwork"))
            assert (erased["messages"], erased["files"], erased["rooms"]) == (1, 1, 1)
            assert (await ears.expect("user_erased"))["data"] == {"user_id": "bob/work"}
        assert await socket.closed() == 4401
        assert refused(await bob.get("/api/rooms")) == (401, "authentication_failed")
        messages = good(await alice.get(f"{ROOM}/messages"))["messages"]
        assert [(each["id"], each["message"]) for each in messages] == [(first, ""), (second, "an answer")]
        assert refused(await alice.get(info["url"])) == (404, "not_found")
        assert "secret" not in (await key.get(f"{ROOM}/export")).text
        assert good(await key.delete("/api/users/bob%2Fwork"))["messages"] == 0
        assert good(await key.delete("/api/users/nobody-knows-them"))["rooms"] == 0


def test_answers_are_annotated() -> None:
    """The table of commands is all that routes and documents are made from."""
    for message, command in COMMANDS.items():
        assert command.work.__doc__, message
        assert msgspec.structs.fields(message), message
        assert not get_args(command.work.__annotations__["return"])
