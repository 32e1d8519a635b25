"""Whatever is put into whatever field: it is refused with a clear error, or kept and shown exactly as it is."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any, Final

import httpx2
import msgspec
import pytest
from sqlalchemy import Connection, insert

from hubbub.features.chat import asks, tables
from hubbub.messages import ClientMessage
from tests import torture
from tests.rest_support import served
from tests.support import API_KEY, Client, Running
from tests.torture import TEXTS, ZALGO, Place, places, tag_of, values

pytestmark = pytest.mark.anyio
OFF: Final[dict[str, Any]] = {"rate_limit": 0, "user_rate_limit": 0, "abuse_limit": 0, "max_rooms_per_user": 0}
OURS: Final = frozenset({"internal", "unavailable", "busy", "rate_limited"})
"""Errors that would say that the server is at fault."""


@pytest.fixture(autouse=True)
def quiet(caplog: pytest.LogCaptureFixture) -> Any:
    """Nothing of all this is worth a line in the log of whoever runs the server."""
    caplog.set_level(logging.WARNING)
    yield
    said = [record.getMessage()[:500] for record in caplog.get_records("call")]
    assert said == []


@asynccontextmanager
async def scene(database_url: str, **settings: Any) -> AsyncIterator[tuple[Running, Client, Client]]:
    """A server, an owner, and a member: their rooms are private."""
    async with served(database_url, **OFF | settings) as server, AsyncExitStack() as stack:
        own, bob = [
            await stack.enter_async_context(server.client(each, grants={"ttl": 1e6}, max_size=None))
            for each in ("own", "bob")
        ]
        yield server, own, bob


async def good(client: Client, kind: str, /, **fields: Any) -> dict[str, Any]:
    answer = await client.ask(kind, **fields)
    assert answer["type"] != "error", (kind, fields, answer)
    return answer


async def make(own: Client, bob: Client, room: str) -> None:
    await good(own, "create_room", room_id=room, visibility="private", members=["bob", "cyd"])
    await good(own, "join_room", room_id=room)
    await good(bob, "join_room", room_id=room)


async def fields_for(own: Client, bob: Client, message: type[ClientMessage], room: str) -> dict[str, Any]:
    """Fields with which a command would be carried out. Each time there is something new to do it to."""
    wanted = set(message.__struct_fields__)
    tag = tag_of(message)
    found: dict[str, Any] = {"room_id": room, "emoji": "👍", "role": "moderator", "notify": "all", "seconds": 60}
    found |= {"reason": "x", "message": "text", "query": "text", "user_id": "cyd", "user_ids": ["cyd"], "report": 1}
    if "id" in wanted or tag == "close_report":
        by = bob if tag in ("report_message", "close_report") else own
        found["id"] = (await good(by, "chat_message", room_id=room, message="text"))["id"]
    if tag == "close_report":
        found["report"] = (await good(own, "report_message", room_id=room, id=found["id"], reason="x"))["report"]
    if tag == "create_room":
        del found["room_id"]
    if "since" in wanted:
        found["since"] = (await good(own, "get_messages", room_id=room))["position"] | {"offset": 0}
    if tag == "leave_room":
        await good(own, "join_room", room_id=room)
    if tag == "unban_member":
        await good(own, "ban_member", room_id=room, user_id="cyd")
    if tag == "kick_member":
        await own.ask("invite_members", room_id=room, user_ids=["cyd"])  # who was kicked before
    if tag in ("search_messages", "get_audit", "list_reports", "list_threads"):
        del found["user_id"]
    return {name: value for name, value in found.items() if name in wanted}


def is_ours(answer: dict[str, Any]) -> bool:
    return answer["type"] == "error" and (answer["code"] in OURS or not answer["message"])


@pytest.mark.slow
async def test_every_value_in_every_field_over_the_socket(database_url: str) -> None:
    async with scene(database_url) as (_, own, bob):
        for number, message in enumerate(torture.messages()):
            room = f"room-{number}"
            await make(own, bob, room)
            if message is not asks.Typing:  # which is not answered
                await good(own, tag_of(message), **await fields_for(own, bob, message, room))
            for place in places(message):
                for name, value in values(place).items():
                    fields = await fields_for(own, bob, message, room)
                    answer = await tried(own, place, fields, value)
                    assert not is_ours(answer), (str(place), name, answer)
            await good(own, "get_messages", room_id=room)
        await bob.drained()


async def tried(own: Client, place: Place, fields: dict[str, Any], value: Any) -> dict[str, Any]:
    """Ask for something that may be answered with a reply, an error, or (typing) nothing."""
    await own.send(tag_of(place.message), ref="tried", **place.put(fields, value))
    await own.send("ping", ref="next")
    answers = {}
    while "next" not in answers or (place.message is not asks.Typing and "tried" not in answers):
        message = await own.receive()
        # what cannot be decoded has no ref
        answers["tried" if message["type"] == "error" and "ref" not in message else message.get("ref")] = message
    return answers.get("tried", answers["next"])


@pytest.mark.slow
async def test_every_value_in_every_field_over_http(database_url: str) -> None:
    async with scene(database_url) as (server, own, bob), server.http(server.token("own", ttl=1e6)) as http:
        for number, message in enumerate(torture.messages()):
            room = f"room-{number}"
            await make(own, bob, room)
            for place in places(message):
                for name, value in values(place).items():
                    fields = place.put(await fields_for(own, bob, message, room), value)
                    request = torture.request(message, fields)
                    if request is not None:
                        answer = await requested(http, request)
                        assert answer.status_code < 500, (str(place), name, answer.text)
                        assert answer.is_success or refusal(answer), (str(place), name, answer.status_code, answer.text)
            await good(own, "get_messages", room_id=room)


async def requested(http: httpx2.AsyncClient, request: torture.Request) -> httpx2.Response:
    body = None if request.body is None else json.dumps(request.body)
    return await http.request(request.method, request.path + request.query, content=body)


def refusal(answer: httpx2.Response) -> str:
    """The sentence that says why something was refused."""
    said = answer.json()
    if answer.status_code == 404 and "detail" in said:
        return str(said["detail"])  # with a slash in a room's id it is another path
    return str(said["error"]["code"] and said["error"]["message"])


REFUSED: Final = {
    **dict.fromkeys(("nothing", "space", "separators", "NUL"), "invalid_message"),
    **dict.fromkeys(("lone high surrogate", "lone low surrogate", "swapped surrogates"), "invalid_json"),
}
"""Texts that are no messages. All others are."""
SAID: Final = Place(asks.ChatMessage, ("message",), "text")


@pytest.mark.parametrize("wire", ["json", "msgpack"])
async def test_texts_are_shown_as_they_are(database_url: str, wire: str) -> None:
    big: dict[str, Any] = {"max_message_size": 1 << 20, "max_text_length": 100_000}
    async with scene(database_url, **big) as (server, own, bob):
        await make(own, bob, "den")
        position = (await good(bob, "get_messages", room_id="den"))["position"]
        said: dict[int, str] = {}
        path = "/ws?format=msgpack" if wire == "msgpack" else "/ws"
        async with server.client("own", path=path) as client:
            await good(client, "join_room", room_id="den")
            for name, text in TEXTS.items():
                if wire == "msgpack" and "surrogate" in name:
                    continue  # it cannot be encoded: see below
                answer = await tried(client, SAID, {"room_id": "den"}, text)
                assert answer.get("code") == REFUSED.get(name), (name, answer)
                if answer["type"] != "error":
                    said[answer["id"]] = text
                    assert (await bob.expect("message"))["data"]["message"] == text
            await shown(client, said)
        await shown(bob, said)
        again = await good(bob, "join_room", room_id="den", since=position)
        assert {each["data"]["id"]: each["data"]["message"] for each in again["messages"]} == said
        async with server.http(server.token("bob")) as http:
            page = (await http.get("/api/rooms/den/messages?limit=200")).json()
            assert {each["id"]: each["message"] for each in page["messages"]} == said


async def shown(client: Client, said: dict[int, str]) -> None:
    page = await good(client, "get_messages", room_id="den", limit=200)
    assert {each["id"]: each["message"] for each in page["messages"]} == said


async def test_edits_are_shown_as_they_are(database_url: str) -> None:
    async with scene(database_url, max_message_size=1 << 20, max_text_length=100_000) as (_, own, bob):
        await make(own, bob, "den")
        seq = (await good(own, "chat_message", room_id="den", message="first"))["id"]
        texts = ["first"]
        for name, text in TEXTS.items():
            answer = await tried(
                own, Place(asks.EditMessage, ("message",), "text"), {"room_id": "den", "id": seq}, text
            )
            assert answer.get("code") == REFUSED.get(name), (name, answer)
            if answer["type"] != "error":
                texts.append(text)
                assert (await bob.expect("message_updated"))["data"]["message"] == text
        versions = (await good(bob, "get_versions", room_id="den", id=seq))["versions"]
        assert [each["message"] for each in versions] == texts


async def test_names_and_reasons_are_shown_as_they_are(database_url: str) -> None:
    """Where a text is taken, it is what others read."""
    taken: dict[str, set[str]] = {}
    async with scene(database_url) as (_, own, bob):
        await make(own, bob, "den")
        for name, text in TEXTS.items():
            seq = (await good(bob, "chat_message", room_id="den", message="text"))["id"]
            wanted: dict[str, dict[str, Any]] = {
                "update_room name": {"name": text},
                "update_room topic": {"topic": text},
                "ban_member": {"user_id": "cyd", "reason": text},
                "report_message": {"id": seq, "reason": text},
                "add_reaction": {"id": seq, "emoji": text},
            }
            for kind, fields in wanted.items():
                answer = await answered(own, kind.split()[0], room_id="den", **fields)
                if answer["type"] == "error":
                    continue
                taken.setdefault(kind, set()).add(name)
                assert await as_read(bob if kind != "ban_member" else own, own, kind, seq) == text, (kind, name)
    assert taken["update_room name"] == taken["update_room topic"] & taken["update_room name"]
    assert {"HTML", "SQL", "short zalgo", "right to left", "template", "emoji"} <= taken["update_room name"]
    assert {"control", "terminal", "separators", "path"} <= taken["ban_member"] & taken["report_message"]
    assert {"emoji", "path"} <= taken["add_reaction"]
    assert not {"right to left", "unseen", "control", "NUL", "header"} & taken["add_reaction"]


async def answered(client: Client, kind: str, **fields: Any) -> dict[str, Any]:
    message = next(each for each in torture.messages() if tag_of(each) == kind)
    return await tried(client, Place(message, ("room_id",), "text"), fields, fields["room_id"])


async def as_read(client: Client, own: Client, kind: str, seq: int) -> Any:
    """What was just put into the store, as somebody reads it."""
    if kind.startswith("update_room"):
        room = (await good(client, "get_room", room_id="den"))["room"]
        return room["name"] if kind.endswith("name") else room.get("topic", "")
    if kind == "ban_member":
        return (await good(client, "list_bans", room_id="den"))["bans"][0].get("reason", "")
    if kind == "report_message":
        return (await good(own, "list_reports", room_id="den", limit=200))["reports"][-1]["reason"]
    return (await good(client, "get_messages", room_id="den", around=seq, limit=1))["messages"][0]["reactions"][-1][
        "emoji"
    ]


@pytest.mark.parametrize("text", [b"\xed\xa0\x80", b"\xc0\x80x", b"\xff\xfe\xfd", b"ab\xe2", b"\xf5\x80\x80"])
async def test_text_that_is_no_text_in_messagepack(database_url: str, text: bytes) -> None:
    assert len(text) == 3
    async with scene(database_url) as (server, own, bob):
        await make(own, bob, "den")
        async with server.client("own", path="/ws?format=msgpack") as client:
            await good(client, "join_room", room_id="den")
            wanted: list[dict[str, Any]] = [
                {"type": "chat_message", "room_id": "den", "message": "?!?"},
                {"type": "chat_message", "room_id": "den", "message": "x", "client_id": "?!?"},
                {"type": "create_room", "name": "?!?"},
                {"type": "update_room", "room_id": "den", "topic": "?!?"},
                {"type": "invite_members", "room_id": "den", "user_ids": ["?!?"]},
                {"type": "search_messages", "query": "?!?"},
            ]
            for each in wanted:
                encoded = msgspec.msgpack.encode(each)
                await client.send_raw(encoded.replace(b"?!?", text))
                assert (await client.expect("error"))["code"] in ("invalid_message", "invalid_json")
            await good(client, "chat_message", room_id="den", message="and on it goes")
        assert (await bob.expect("message"))["data"]["message"] == "and on it goes"


# -- large, many, deep

MILLION: Final = "x" * 999_992 + "é\U0001f600\u202e<b>'\""


async def test_a_million_characters_are_too_many(database_url: str) -> None:
    async with scene(database_url) as (server, own, bob), server.http(server.token("own")) as http:
        await make(own, bob, "den")
        async with server.client("own") as client:
            await good(client, "join_room", room_id="den")
            await client.send("chat_message", room_id="den", message=MILLION)
            assert await client.closed() == 1009
        answer = await http.post("/api/rooms/den/messages", json={"message": MILLION})
        assert answer.status_code == 413, answer.text
        assert refusal(answer)
        for text in ("x" * 10_001, "é" * 10_001, ZALGO):
            assert await own.refused("chat_message", room_id="den", message=text) == "too_large"
            assert (await http.post("/api/rooms/den/messages", json={"message": text})).status_code == 413
        await good(own, "chat_message", room_id="den", message="é" * 10_000)
        heard = (await bob.expect("message"))["data"]
        assert (heard["id"], heard["message"]) == (1, "é" * 10_000)


async def test_a_million_characters_where_they_are_allowed(database_url: str) -> None:
    big: dict[str, Any] = {"max_message_size": 8 << 20, "max_text_length": 0, "outbox_bytes": 64 << 20}
    async with scene(database_url, **big) as (server, own, bob), server.http(server.token("own")) as http:
        await make(own, bob, "den")
        seq = (await good(own, "chat_message", room_id="den", message=MILLION, client_id="m"))["id"]
        heard = await bob.expect("message")
        assert heard["data"]["message"] == MILLION
        assert (await good(own, "chat_message", room_id="den", message=MILLION, client_id="m"))["id"] == seq
        page = await good(bob, "get_messages", room_id="den")
        assert [each["message"] for each in page["messages"]] == [MILLION]
        position = {**page["position"], "offset": 0}
        back = await good(bob, "join_room", room_id="den", since=position)
        assert back["messages"] == [heard]
        assert (await good(bob, "catch_up", room_id="den", since=position))["events"] == [heard]
        await good(own, "edit_message", room_id="den", id=seq, message=MILLION[::-1])
        assert (await bob.expect("message_updated"))["data"]["message"] == MILLION[::-1]
        answer = await http.post("/api/rooms/den/messages", content=json.dumps({"message": MILLION}))
        assert answer.status_code == 201, answer.text
        assert (await bob.expect("message"))["data"]["message"] == MILLION
        await good(own, "chat_message", room_id="den", message="a needle")
        server.hub.sweep()
        await good(bob, "search_messages", query="needle", room_id="den")


async def test_ten_thousand_mentions(database_url: str) -> None:
    """They cost no more than a moment, and reach as many as the settings say."""
    text = " ".join(f"@u{number}" for number in range(10_000))
    async with scene(database_url, max_message_size=1 << 20, max_text_length=0) as (server, own, bob):
        await make(own, bob, "den")
        await server.hubbub.store.write(fill_with_members)
        began = time.perf_counter()
        await good(own, "chat_message", room_id="den", message=text)
        took = time.perf_counter() - began
        heard = await bob.expect("message")
        assert (heard["data"]["message"], heard["data"]["mentions"]) == (text, [f"u{each}" for each in range(50)])
        assert took < 1.0
        for hard in (
            "@" * 50_000,
            "@[" * 50_000,
            "@." * 50_000,
            "x@" * 50_000,
            "@" + "a" * 90_000,
            "@[" + "]@[" * 30_000,
        ):
            began = time.perf_counter()
            await good(own, "chat_message", room_id="den", message=hard)
            assert time.perf_counter() - began < 1.0, hard[:10]


async def test_as_many_mentions_as_somebody_may_allow(database_url: str) -> None:
    text = " ".join(f"@u{number}" for number in range(10_000))
    async with scene(database_url, max_message_size=1 << 20, max_text_length=0, max_mentions=10_000) as (
        server,
        own,
        bob,
    ):
        await make(own, bob, "den")
        await server.hubbub.store.write(fill_with_members)
        await good(own, "chat_message", room_id="den", message=text)
        assert len((await bob.expect("message"))["data"]["mentions"]) == 10_000
        async with server.client("u9999") as last:
            assert (await good(last, "get_room", room_id="den"))["room"]["me"]["mentions"] == 1
            assert (await good(last, "list_mentions"))["mentions"][0]["message"]["message"] == text


def fill_with_members(connection: Connection) -> None:
    no = connection.execute(tables.rooms.select().where(tables.rooms.c.id == "den")).one().no
    rows = [{"room_no": no, "user_id": f"u{each}", "role": "member", "joined_at": 0} for each in range(10_000)]
    connection.execute(insert(tables.members), rows)


@pytest.mark.slow
async def test_deep_chains_of_replies(database_url: str) -> None:
    """A thousand replies, each to the one before; a thousand in threads of one another: which all are the first one's."""
    async with scene(database_url) as (_, own, bob):
        await make(own, bob, "den")
        first = last = (await good(own, "chat_message", room_id="den", message="0"))["id"]
        for number in range(1, 1001):
            last = (await good(own, "chat_message", room_id="den", message=str(number), reply_to=last))["id"]
        root = reply = (await good(bob, "chat_message", room_id="den", message="root"))["id"]
        for number in range(1, 1001):
            who = (own, bob)[number % 2]
            reply = (await good(who, "chat_message", room_id="den", message=str(number), thread=reply))["id"]
        page = (await good(bob, "get_messages", room_id="den", before=root, limit=200))["messages"]
        assert [each["reply_to"] for each in page] == [each["id"] - 1 for each in page]
        assert (page[-1]["id"], first) == (1001, 1)
        thread = await good(bob, "get_messages", room_id="den", thread=reply, limit=200)
        assert thread["thread"] == root
        assert {each["thread"] for each in thread["messages"]} == {root}
        (shown_root,) = (await good(own, "get_messages", room_id="den", around=root, limit=1))["messages"]
        assert (shown_root["replies"]["replies"], shown_root["replies"]["last_id"]) == (1000, reply)
        room = (await good(own, "get_room", room_id="den"))["room"]
        assert (room["message_count"], room["me"]["unread"]) == (1002, 1)
        for each in (root, reply, first):
            await good(own, "delete_message", room_id="den", id=each)
        assert (await good(own, "get_messages", room_id="den", thread=root, limit=1))["messages"][0]["thread"] == root


# -- people who are called so

NAMES: Final = (
    "'; DROP TABLE rooms; --",
    "<script>alert(1)</script>",
    "\u202eadmin",
    ZALGO[:128],
    "a,b",
    "me",
    "../../x",
    "@room",
    "%",
    "👩‍👩‍👧‍👦",
    "(api key)",
)


@pytest.mark.parametrize("name", NAMES)
async def test_users_who_are_called_so(database_url: str, name: str) -> None:
    async with scene(database_url) as (server, own, bob), server.client(name) as odd:
        await make(own, bob, "den")
        await good(own, "invite_members", room_id="den", user_ids=[name])
        await good(odd, "join_room", room_id="den")
        assert (await good(own, "chat_message", room_id="den", message=f"@[{name}] look", client_id=name))[
            "client_id"
        ] == name
        heard = await odd.expect("message", room_id="den")
        while "system" in heard["data"]:
            heard = await odd.expect("message", room_id="den")
        assert heard["data"]["mentions"] == [name]
        assert (await good(odd, "list_mentions"))["mentions"][0]["message"]["id"] == heard["data"]["id"]
        seq = (await good(odd, "chat_message", room_id="den", message="it is me"))["id"]
        assert (await good(bob, "get_messages", room_id="den", around=seq, limit=1))["messages"][0]["user_id"] == name
        people = (await good(bob, "list_members", room_id="den"))["members"]
        assert name in [each["user_id"] for each in people]
        async with server.http(server.token("own")) as http:
            path = f"/api/rooms/den/members/{torture.quoted(name)}/role"
            assert (await http.put(path, json={"role": "moderator"})).status_code == 200
        async with server.http(API_KEY) as http:
            said = await http.post(
                f"/api/rooms/den/messages?as_user={torture.quoted(name)}", json={"message": "over HTTP"}
            )
            assert said.status_code == 201, said.text
        assert (await bob.expect("message", room_id="den"))["type"] == "message"
        direct = await good(odd, "open_direct", user_ids=["own"])
        assert direct["room"]["people"] == sorted(["own", name])
        await good(own, "kick_member", room_id="den", user_id=name)
        await odd.expect("room_left", room_id="den", reason="kicked")
