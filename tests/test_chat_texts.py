"""Texts that people should not send: each is refused with a clear error, or stored and shown as what it is."""

from __future__ import annotations

import json
import time
from typing import Any

import msgspec
import pytest

from tests.support import Client, running, settings_for

pytestmark = pytest.mark.anyio
OFF = {"rate_limit": 0, "user_rate_limit": 0, "abuse_limit": 0}

STRANGE = [
    "<script>alert(1)</script><img src=x onerror=alert(1)>",
    "'; DROP TABLE messages; -- \" OR 1=1",
    "%_\\ \x1b[31mred\x07\x08 \x7f",
    "\u202eevil\u202c \u2066isolated\u2069 \u200f\u200e\u061c",
    "Z" + "\u0300\u0301\u0302\u0303\u0336" * 1500,
    "\ufeff\u00ad\u200b\u2028\u2029\u0085",
    "\ufffe\uffff\U0010ffff",
    "👩‍👩‍👧‍👦🏳️‍🌈 e\u0301 é ﷽",
    "{{7*7}} ${7*7} ../../etc/passwd %s %n\r\nSet-Cookie: a=b",
    "=cmd|' /C calc'!A0 @SUM(1)",
]


@pytest.fixture(params=["json", "msgpack"])
def path(request: pytest.FixtureRequest) -> str:
    return "/ws" if request.param == "json" else "/ws?format=msgpack"


async def enter(client: Client) -> None:
    await client.ask("join_room", room_id="general")


async def test_strange_texts_are_text(database_url: str, path: str) -> None:
    from hubbub import schema
    from hubbub.engines import engine_for

    engine = engine_for(database_url, readers=1, full_sync=True)
    await engine.start()
    await schema.migrate(engine)
    await engine.stop()
    async with (
        running(settings_for(database_url=database_url, **OFF)) as server,
        server.client("ann", path) as ann,
        server.client("bob") as bob,
    ):
        await enter(ann)
        await enter(bob)
        for text in STRANGE:
            answer = await ann.ask("chat_message", room_id="general", message=text)
            assert answer["type"] == "ack", (text, answer)
            assert (await bob.expect("message"))["data"]["message"] == text
        read = await bob.ask("get_messages", room_id="general")
        assert [message["message"] for message in read["messages"]] == STRANGE
        for text in STRANGE:
            edited = await ann.ask("edit_message", room_id="general", id=1, message=f"{text} edited")
            assert edited["type"] == "ack", (text, edited)
            assert (await bob.expect("message_updated"))["data"]["message"] == f"{text} edited"
            found = await bob.ask("search_messages", query=text[:200])
            assert found["type"] in ("search_results", "error"), found
            assert found.get("code", "invalid_message") == "invalid_message", found
        for name in STRANGE[:2]:
            assert (await ann.ask("create_room", name=name[:100]))["room"]["name"] == name[:100]


async def test_what_is_refused(path: str) -> None:
    async with running(settings_for(**OFF)) as server, server.client("ann", path) as ann, server.client("bob") as bob:
        await enter(ann)
        await enter(bob)
        for text in ("", " \n\t", "a\x00b", "\x00"):
            assert await ann.refused("chat_message", message=text) == "invalid_message"
        assert await ann.refused("chat_message", message="x" * 10_001) == "too_large"
        lone: Any = b"\x81\xa4type\xa1\xed\xa0\x80" if ann.packs else '{"type":"chat_message","message":"\\ud800"}'
        if ann.packs:
            lone = msgspec.msgpack.encode({"type": "chat_message", "message": "?"}).replace(
                b"\xa1?", b"\xa3\xed\xa0\x80"
            )
        await ann.send_raw(lone)
        assert (await ann.expect("error"))["code"] in ("invalid_json", "invalid_message")
        assert [m["type"] for m in await bob.drained() if m["type"] == "message"] == []
        assert (await ann.ask("chat_message", message="and still here"))["type"] == "ack"


async def test_a_million_characters() -> None:
    text = "long " * 200_000
    async with running(settings_for(**OFF)) as server, server.client("ann") as ann:
        await enter(ann)
        await ann.send("chat_message", message=text)
        assert await ann.closed() == 1009
    wide = settings_for(max_message_size=1 << 22, max_text_length=0, **OFF)
    async with running(wide) as server, server.client("ann", max_size=None) as ann:
        await enter(ann)
        assert (await ann.ask("chat_message", message=text))["type"] == "ack"
        read = await ann.ask("get_messages", room_id="general")
        assert read["messages"][0]["message"] == text


async def test_ten_thousand_mentions() -> None:
    wide = settings_for(max_message_size=1 << 20, max_text_length=0, **OFF)
    async with running(wide) as server, server.client("ann") as ann, server.client("u7") as seven:
        await enter(ann)
        await enter(seven)
        text = " ".join(f"@u{index}" for index in range(10_000))
        began = time.perf_counter()
        assert (await ann.ask("chat_message", message=text))["type"] == "ack"
        assert time.perf_counter() - began < 2.0
        heard = await seven.expect("message")
        assert heard["data"]["mentions"] == ["u7"]  # of the members; the first fifty names count
        assert (await seven.expect("notification"))["data"]["metadata"]["room_id"] == "general"


async def test_a_deep_chain_of_answers() -> None:
    async with running(settings_for(**OFF)) as server, server.client("ann") as ann:
        await enter(ann)
        number = (await ann.ask("chat_message", message="root"))["id"]
        root = number
        for index in range(300):
            way = {"reply_to": number} if index % 2 else {"thread": number}
            number = (await ann.ask("chat_message", message=str(index), **way))["id"]
        thread = await ann.ask("get_messages", room_id="general", thread=root, limit=200)
        assert all(message["thread"] == root for message in thread["messages"])
        assert json.dumps(await ann.ask("get_messages", room_id="general", around=root))
