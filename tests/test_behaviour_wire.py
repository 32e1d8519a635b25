"""The wire: two codecs with one meaning, and strict decoding that costs its sender an error and nobody else anything."""

from __future__ import annotations

import json
import struct
import time
from typing import Any

import msgspec
import pytest

from hubbub.features.chat.tx import COMMANDS
from tests.support import BOTH_LANES, Client, serve

pytestmark = BOTH_LANES
pack = msgspec.msgpack.encode
OFF: dict[str, Any] = {"rate_limit": 0, "user_rate_limit": 0, "abuse_limit": 0}


async def test_json_and_msgpack_clients_see_the_same(lane: str) -> None:
    objects: list[Any] = [
        {"text": "ü \u0000 \U0001f600", "n": [0, -1, 2**63 - 1, -(2**63), 2**64 - 1, 1.5, -0.25, 1e300]},
        None,
        True,
        "",
        [],
        {"nested": {"deep": [[[{"a": None}]]]}},
    ]
    async with (
        serve(lane) as server,
        server.client("j") as plain,
        server.client("m", subprotocols=["hubbub.msgpack"]) as packed,
        server.client("q", path="/ws?format=msgpack") as queried,
    ):
        clients = [plain, packed, queried]
        assert [client.packs for client in clients] == [False, True, True]
        replies = [await client.ask("subscribe", channel="news") for client in clients]
        assert replies[0] == replies[1] == replies[2]
        for sender in clients:
            for data in objects:
                await sender.ask("publish", channel="news", data=data, key="k")
        got = [[m for m in await client.drained() if m["type"] == "publication"] for client in clients]
        seen = [[m for m in client.seen if m["type"] == "publication"] for client in clients]
        assert seen[0] == seen[1] == seen[2]
        assert [m["data"] for m in seen[0]] == objects * 3
        assert got
        history = [await client.ask("history", channel="news") for client in clients]
        for answer in history:
            del answer["ref"]
        assert history[0] == history[1] == history[2]
        for client in clients:
            await client.ask("join_room", room_id="general")
            await client.drained()
        for client in clients:
            await client.ask("chat_message", message="hällo", client_id="1")
        await server.hubbub.notify(["j", "m", "q"], "t", "m", "success", {"a": [1, None]})
        await server.hubbub.broadcast("t", "m", "error")
        rest = [[m for m in await client.drained() if m["type"] != "ack"] for client in clients]
        talk = [[m for m in client.seen if m["type"] == "message" and m["data"]["id"] == 3] for client in clients]
        assert talk[0] == talk[1] == talk[2]
        assert talk[0][0]["data"]["message"] == "hällo"
        kinds = [[m for m in more if "notification" in m["type"]] for more in rest]
        assert sorted(m["type"] for m in kinds[0]) == ["broadcast_notification", "notification"]
        assert kinds[0] == kinds[1] == kinds[2]


async def test_the_wrong_kind_of_frame(lane: str) -> None:
    async with (
        serve(lane) as server,
        server.client("a") as plain,
        server.client("b", subprotocols=["hubbub.msgpack"]) as packed,
    ):
        await plain.send_raw(pack({"type": "ping"}))
        await packed.send_raw('{"type":"ping"}')
        for client in (plain, packed):
            answer = await client.receive()
            assert (answer["type"], answer["code"]) == ("error", "invalid_message")
            await client.nothing_more()


DEEP = 100_000
LONE = r'"\ud800"'
NOT_JSON = [
    "", " ", "{", "nonsense", "NaN", '{"type":"ping"}}', "[" * DEEP, '{"a":' * DEEP, "{'type':'ping'}",
    '{"type":"ping",}', '{"type":"publish","channel":"news","data":' + "[" * DEEP + "]" * DEEP + "}",
    '{"type":"publish","channel":"news","data":[1,}',
]  # fmt: skip
WRONG_JSON = [
    "null",
    "1",
    '"ping"',
    "[]",
    '[{"type":"ping"}]',
    "{}",
    '{"type":1}',
    '{"type":null}',
    '{"type":["ping"]}',
]
BAD_DATA = [
    "NaN", "Infinity", "-Infinity", "1e999", "-1e999", LONE, f"[{LONE}]", f"{{{LONE}:1}}", "1" * 30, "1" * 5000,
    "-" + "9" * 20, str(2**64), "01", "+1", ".5", "tru", "'a'", '"\n"', '"\\x41"', '{"a":1,}', "[" * 20_000 + "]" * 20_000,
    "[[" * 600 + "]]" * 600,
]  # fmt: skip


async def undisturbed(client: Client, neighbour: Client, channel: str = "news") -> None:
    """Assert that a client's last message brought an error to it alone, and that all goes on."""
    answer = await client.receive()
    assert answer["type"] == "error", answer
    assert answer["code"] in ("invalid_json", "invalid_message", "unknown_type"), answer
    assert len(answer["message"]) < 400
    await client.nothing_more()
    await neighbour.nothing_more()


async def test_bad_json(lane: str) -> None:
    async with serve(lane, **OFF, max_message_size=1 << 20) as server, server.client("n") as neighbour:
        await neighbour.ask("subscribe", channel="news")
        async with server.client("a") as client:
            await client.ask("subscribe", channel="news")
            for text in NOT_JSON + WRONG_JSON:
                await client.send_raw(text)
                await undisturbed(client, neighbour)
            for data in BAD_DATA:
                await client.send_raw(f'{{"type":"publish","channel":"news","ref":"r","data":{data}}}')
                await undisturbed(client, neighbour)
            await client.send_raw('{"type":"chat_message","message":' + LONE + "}")
            await undisturbed(client, neighbour)
            await client.send_raw('{"type":"ping","ref":"r","extra":[{"a":1}],"data":1e5}')
            assert await client.receive() == {"type": "pong", "ref": "r"}  # what it does not know, it passes over
        history = await neighbour.ask("history", channel="news")
        assert history["messages"] == []


def int_map(keys: list[int]) -> bytes:
    body = b"".join(b"\xcf" + struct.pack("!Q", key % 2**64) + b"\x00" for key in keys)
    return b"\xdf" + struct.pack("!I", len(keys)) + body


def message_with(data: bytes) -> bytes:
    head = b"\x83" + pack("type") + pack("publish") + pack("channel") + pack("news") + pack("data")
    return head + data


BAD_VALUES = {
    "nan": b"\xcb\x7f\xf8" + bytes(6),
    "inf": b"\xcb\x7f\xf0" + bytes(6),
    "float32 nan": b"\xca\x7f\xc0\x00\x00",
    "float32 -inf": b"\xca\xff\x80\x00\x00",
    "bin": b"\xc4\x01a",
    "empty bin": b"\xc4\x00",
    "ext": b"\xd4\x05a",
    "timestamp": b"\xd6\xff\x00\x00\x00\x01",
    "reserved": b"\xc1",
    "int key": b"\x81\x01\x01",
    "nil key": b"\x81\xc0\x01",
    "array key": b"\x81\x90\x01",
    "bin key": b"\x81\xc4\x01a\x01",
    "not utf-8": b"\xa1\xff",
    "surrogate": b"\xa3\xed\xa0\x80",
    "array bomb": b"\xdd\xff\xff\xff\xff",
    "map bomb": b"\xdf\xff\xff\xff\xff",
    "string bomb": b"\xdb\xff\xff\xff\xff",
    "bin bomb": b"\xc6\xff\xff\xff\xff",
    "nested bombs": b"\xdd\x00\x00\xff\xff" * 100,
    "deep": b"\x91" * DEEP + b"\x01",
    "deep maps": b"\x81\xa1a" * 30_000 + b"\x01",
    "truncated": b"\xcb\x00",
    "nothing": b"",
}


async def test_bad_msgpack(lane: str) -> None:
    options: dict[str, Any] = {"subprotocols": ["hubbub.msgpack"]}
    async with serve(lane, **OFF, max_message_size=1 << 20) as server, server.client("n") as neighbour:
        await neighbour.ask("subscribe", channel="news")
        async with server.client("a", **options) as client:
            for why, value in BAD_VALUES.items():
                for raw in (value, message_with(value), message_with(b"\x91" + value), b"\x81\xa4type" + value):
                    began = time.perf_counter()
                    await client.send_raw(raw)
                    await undisturbed(client, neighbour)
                    assert time.perf_counter() - began < 1, why
        assert (await neighbour.ask("history", channel="news"))["messages"] == []


@pytest.mark.parametrize("field", ["data", "type", "ref", "unknown", "message", "since", "bare"])
async def test_colliding_integer_keys_cost_nothing(lane: str, field: str) -> None:
    """8000 chosen keys could cost a second of hashing if a dict were made of them."""
    keys = [number << 48 for number in range(8000)]
    bomb = int_map(keys)
    messages = {
        "data": message_with(bomb),
        "type": b"\x81\xa4type" + bomb,
        "ref": b"\x82\xa4type\xa4ping\xa3ref" + bomb,
        "unknown": b"\x82\xa4type\xa4ping\xa4what" + bomb,
        "message": b"\x82\xa4type\xacchat_message\xa7message" + bomb,
        "since": b"\x83\xa4type\xa9subscribe\xa7channel\xa4news\xa5since" + bomb,
        "bare": bomb,
    }
    options: dict[str, Any] = {"subprotocols": ["hubbub.msgpack"]}
    async with serve(lane, **OFF, max_message_size=1 << 20) as server, server.client("a", **options) as client:
        await client.nothing_more()
        began = time.perf_counter()
        await client.send_raw(messages[field])
        assert (await client.receive())["type"] == ("pong" if field == "unknown" else "error")
        assert time.perf_counter() - began < 0.5


FIELDS: dict[str, dict[str, tuple[bool, Any, list[Any]]]] = {
    # type: field: (required, a good value, wrong values)
    "auth": {"token": (True, "t", [1, None, []]), "session": (False, None, [1, "x" * 65])},
    "subscribe": {
        "channel": (True, "news", [1, None, "x" * 129]),
        "since": (
            False,
            None,
            [1, "x", [], {}, {"epoch": "e"}, {"epoch": 1, "offset": 1}, {"epoch": "e", "offset": -1}],
        ),
        "presence": (False, False, [1, None, "true"]),
    },
    "unsubscribe": {"channel": (True, "news", [1, None])},
    "publish": {
        "channel": (True, "news", [1, None]),
        "data": (True, 1, []),
        "key": (False, None, [1, "x" * 129]),
        "exclude_self": (False, False, [1, None]),
    },
    "history": {
        "channel": (True, "news", [1, None]),
        "after": (False, None, [-1, 1.5, "1", 2**60]),
        "before": (False, None, [-1, 1.5, "1"]),
        "limit": (False, 50, [0, 201, None, "1"]),
    },
    "presence": {"channel": (True, "news", [1, None])},
    "join_room": {"room_id": (True, "r", [1, None]), "since": (False, None, [1, {"offset": 1}])},
    "chat_message": {
        "message": (True, "m", [1, None, []]),
        "room_id": (False, None, [1, "x" * 65]),
        "client_id": (False, None, [1, "", "x" * 129]),
    },
    "typing": {"room_id": (False, None, [1, "x" * 65])},
    "response": {
        "id": (True, "1", [1, None, "x" * 65]),
        "data": (False, 1, []),
        "error": (False, None, [1, "x" * 1001]),
    },
    "ping": {},
    "heartbeat": {},
}


def good_and_wrong(kind: msgspec.inspect.Type) -> tuple[Any, list[Any]]:
    """A good value of a field's type, and some that are not."""
    match kind:
        case msgspec.inspect.UnionType(types):
            return good_and_wrong(next(each for each in types if not isinstance(each, msgspec.inspect.NoneType)))
        case msgspec.inspect.StrType(max_length=longest, min_length=shortest):
            wrong: list[Any] = [1, [], *(["x" * (longest + 1)] if longest else []), *([""] if shortest else [])]
            return "x", wrong
        case msgspec.inspect.IntType(ge=least, le=most):
            return least or 1, [
                "1",
                1.5,
                [],
                *([least - 1] if least is not None else []),
                *([most + 1] if most else []),
            ]
        case msgspec.inspect.BoolType():
            return False, [1, "true"]
        case msgspec.inspect.LiteralType(values):
            return values[0], ["no such", 1]
        case msgspec.inspect.ListType() | msgspec.inspect.VarTupleType():
            return ["x"], ["x", 1, [1]]
        case msgspec.inspect.StructType():
            return {"epoch": "e", "offset": 1}, [1, [], {}, {"epoch": "e", "offset": -1}]
    raise AssertionError(f"no values for {kind}")


def fields_of(message: type[msgspec.Struct]) -> dict[str, tuple[bool, Any, list[Any]]]:
    described = msgspec.inspect.type_info(message)
    assert isinstance(described, msgspec.inspect.StructType)
    return {
        field.encode_name: (field.required, *good_and_wrong(field.type))
        for field in described.fields
        if field.name != "ref"
    }


FIELDS |= {str(each.__struct_config__.tag): fields_of(each) for each in COMMANDS}


@pytest.mark.parametrize("packed", [False, True])
async def test_each_field_missing_or_wrong(lane: str, packed: bool) -> None:
    options: dict[str, Any] = {"subprotocols": ["hubbub.msgpack"]} if packed else {}
    async with serve(lane, **OFF) as server, server.client("a", **options) as client:
        assert set(FIELDS) == set(server.hub._inbox.types), "a new message type needs a line here"
        for kind, fields in FIELDS.items():
            good = {name: value for name, (_, value, _) in fields.items()}
            for name, (required, _, wrongs) in fields.items():
                cases = [{**good, name: wrong} for wrong in wrongs]
                if required:
                    missing = dict(good)
                    del missing[name]
                    cases.append(missing)
                for case in cases:
                    answer = await client.ask(kind, **case)
                    assert (answer["type"], answer["code"]) == ("error", "invalid_message"), (kind, case, answer)
                    wanted = f"missing required field `{name}`" if name not in case else f"`$.{name}"
                    assert wanted in answer["message"], (kind, case, answer)
            refs: list[Any] = [1, [], "x" * 65]
            for ref in refs:
                await client.send(kind, **{**good, "ref": ref})
                answer = await client.receive()
                assert (answer["code"], "`$.ref`" in answer["message"]) == ("invalid_message", True)
                assert "ref" not in answer
        assert await client.refused("nonsense", a=1) == "unknown_type"
        assert await client.refused("x" * 1000) == "unknown_type"
        await client.send("auth_success")
        assert (await client.receive())["code"] == "unknown_type"


async def test_ref_comes_back_and_unknown_fields_are_ignored(lane: str) -> None:
    async with serve(lane) as server, server.client("a") as client:
        answers = {
            "ping": await client.ask("ping", extra=1),
            "heartbeat": await client.ask("heartbeat", extra={"deep": [1]}),
            "subscribe": await client.ask("subscribe", channel="news", later="?"),
            "publish": await client.ask("publish", channel="news", data=1, later="?"),
            "history": await client.ask("history", channel="news", later="?"),
            "presence": await client.ask("presence", channel="news", later="?"),
            "unsubscribe": await client.ask("unsubscribe", channel="news"),
            "create_room": await client.ask("create_room", room_id="r"),
            "list_rooms": await client.ask("list_rooms"),
            "join_room": await client.ask("join_room", room_id="r"),
            "chat_message": await client.ask("chat_message", message="m"),
            "leave_room": await client.ask("leave_room", room_id="r"),
            "auth": await client.ask("auth", token=server.token("a")),
        }
        assert {kind: answer["type"] for kind, answer in answers.items()} == {
            "ping": "pong",
            "heartbeat": "heartbeat_ack",
            "subscribe": "subscribed",
            "publish": "ack",
            "history": "history",
            "presence": "presence",
            "unsubscribe": "unsubscribed",
            "create_room": "room_created",
            "list_rooms": "rooms",
            "join_room": "room_joined",
            "chat_message": "ack",
            "leave_room": "room_left",
            "auth": "auth_success",
        }
        await client.send_raw(json.dumps({"type": "ping"}))
        assert (await client.receive()) == {"type": "pong"}, "no ref, none back"


async def test_bad_bodies_over_http(lane: str) -> None:
    """Strict there as well: an error with a code, never a 500, never something else than was sent."""
    bodies = [
        '{"channel":"news","data":%s}',
        '{"channel":"news","data":[%s]}',
    ]
    async with serve(lane) as server, server.http() as http:
        for form in bodies:
            for data in BAD_DATA:
                answer = await http.post("/api/publish", content=form % data)
                assert answer.status_code in (400, 422), (data[:40], answer.text[:200])
        for data in ("NaN", LONE, "1" * 30, "[" * DEEP, "{" * 5):
            for path, form in (
                ("/api/notifications/send", '{"user_id":"a","title":"t","message":"m","metadata":{"a":%s}}'),
                ("/api/notifications/send", '{"user_id":"a","title":%s,"message":"m"}'),
                ("/api/notifications/broadcast", '{"title":"t","message":%s}'),
                ("/api/sessions/disconnect", '{"user_id":%s}'),
                ("/api/rooms", '{"room_id":%s}'),
                ("/api/dev/login", '{"name":%s}'),
            ):
                answer = await http.post(path, content=form % data)
                assert answer.status_code in (400, 422), (path, data[:40], answer.text[:200])
        assert (await http.get("/api/channels/news/history")).json()["messages"] == []
        assert (
            await http.post("/api/publish", content=b'{"channel":"news","data":"' + b"x" * (1 << 20))
        ).status_code == 413
