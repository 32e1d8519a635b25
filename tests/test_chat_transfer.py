"""Rooms as JSON Lines: out of one database, into another."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import select

from hubbub.errors import ClientError, ErrorCode
from hubbub.features.chat import importing, tables
from hubbub.features.chat.asks import (
    CatchUp,
    DeleteMessage,
    EditMessage,
    GetMessages,
    GetVersions,
    Join,
    ListPins,
    ListThreads,
    PinMessage,
    React,
    Search,
    UnpinMessage,
    Unreact,
)
from hubbub.features.chat.importing import import_room
from hubbub.features.chat.lines import milliseconds_of, time_of
from hubbub.features.chat.tables import SEQ_MASK
from hubbub.messages import Position
from tests.chat_rows import change_room, everything, happens, make_room, say
from tests.chat_support import World, world
from tests.chat_whole import chunks_of, exported, fill, indexed
from tests.databases import fresh_database

pytestmark = pytest.mark.anyio


@pytest.fixture
def another_url(request: pytest.FixtureRequest, database_url: str, tmp_path: Path) -> Iterator[str]:
    """A second empty database of the same kind."""
    if database_url.startswith("sqlite"):
        yield f"sqlite:///{tmp_path / 'another.db'}"
        return
    with fresh_database(request.getfixturevalue("postgres_server")) as url:
        yield url


@pytest.fixture
async def den(database_url: str) -> AsyncIterator[World]:
    """A world with the private group room `den` (number 1): ann owns it, mod is a moderator, bob and cy are members."""
    async with world(database_url) as it:
        assert await make_room(it, people=("ann", "mod:mod", "bob", "cy")) == 1
        yield it


# -- rooms out and in again


async def test_an_export_says_all(den: World) -> None:
    await fill(den)
    lines = [json.loads(line) for line in await exported(den)]
    kinds = [line["type"] for line in lines]
    assert kinds[0] == "room"
    assert kinds[-1] == "end"
    assert list(dict.fromkeys(kinds)) == ["room", "member", "ban", "invitation", "message", "pin", "end"]
    assert lines[0]["format"] == 1
    assert (lines[0]["topic"], lines[0]["retention_days"], lines[0]["visibility"]) == ("all of it", 30, "private")
    messages = {line["id"]: line for line in lines if line["type"] == "message"}
    assert lines[-1]["messages"] == len(messages)
    assert sorted(messages) == list(messages)
    assert messages[1]["mentions"] == ["bob", "@room"]
    assert messages[1]["replies"]["replies"] == 2
    assert {each["user_id"] for each in messages[1]["replies"]["followers"]} == {"ann", "bob", "cy", "mod"}
    assert (messages[2]["message"], messages[2]["client_id"], messages[2]["reply_to"]) == ("third version", "c-1", 1)
    assert [each["message"][:6] for each in messages[2]["versions"]] == ["what? ", "first ", "second"]
    assert [(each["user_id"], each["emoji"]) for each in messages[2]["reactions"]] == [("ann", "🎉"), ("cy", "🎉")]
    assert messages[3]["system"]["event"] == "renamed"
    assert messages[4]["files"][0]["sha256"] == "ab" * 32
    assert messages[5]["thread"] == 1
    (gone,) = [line for line in messages.values() if line.get("deleted_at")]
    assert (gone["message"], gone["deleted_by"], gone["user_id"]) == ("", "mod", "bob")


async def test_a_room_is_the_same_after_an_import(
    den: World, another_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    await fill(den)
    lines = await exported(den)
    with chunks_of(monkeypatch, 3):
        assert await exported(den) == lines
        async with world(another_url) as other:
            await make_room(other, "another")  # so that the room's number is another one
            done = await import_room(other.store, lines, now=other.now)
            assert (done.room_id, done.before, done.members) == ("den", 0, 4)
            assert done.messages == json.loads(lines[-1])["messages"]
            assert await exported(other) == lines
            rooms_here = {row.id: row for row in await everything(other, tables.rooms)}
            row, was = rooms_here["den"], (await everything(den, tables.rooms))[0]
            assert row.epoch != was.epoch
            assert not row.epoch.startswith(importing.MARK)
            for name in ("event_seq", "message_count", "member_count", "pin_count", "last_at", "archived_at"):
                assert getattr(row, name) == getattr(was, name), name
            events = await everything(den, tables.events)
            assert row.trimmed_seq == events[-1].key & SEQ_MASK, "no events are in it, so nothing before is whole"
            assert len(await everything(other, tables.mentions)) == len(await everything(den, tables.mentions))


async def test_an_imported_room_goes_on(den: World, another_url: str) -> None:
    await fill(den)
    async with world(another_url) as other:
        await import_room(other.store, await exported(den), now=other.now)
        await indexed(other)
        was = (await everything(den, tables.rooms))[0]
        position = Position((await everything(other, tables.rooms))[0].epoch, was.event_seq)
        assert await say(other, 1, "bob", "here we are") == was.event_seq + 1
        (event,) = (await other.asks("ann", CatchUp(room_id="den", since=position))).events
        assert event["data"]["message"] == "here we are"
        with pytest.raises(ClientError, match="not kept"):
            await other.asks("ann", CatchUp(room_id="den", since=Position(position.epoch, 1)))
        page = await other.asks("cy", GetMessages(room_id="den", around=2, limit=1))
        before = await den.asks("cy", GetMessages(room_id="den", around=2, limit=1))
        assert page.messages == before.messages
        assert [each.message.id for each in (await other.asks("bob", ListThreads(room_id="den"))).threads] == [1]
        assert [each.id for each in (await other.asks("bob", ListPins(room_id="den"))).messages] == [2]
        assert [hit.message.id for hit in (await other.asks("cy", Search(query="third version"))).hits] == [2]
        assert (await other.asks("cy", GetVersions(room_id="den", id=2))).versions[0].message.startswith("what?")
        await change_room(other, "den", visibility="public")
        with pytest.raises(ClientError, match="banned"):
            await other.does("max", Join(room_id="den"))


SAYINGS = st.sampled_from(["hello", "hello @bob", "@room look", 'a\u202eb \\ "c" \n', "x" * 300, "🦏 @mod and @bob"])
PEOPLE = st.sampled_from(["ann", "mod", "bob", "cy"])
SOME = st.integers(min_value=0, max_value=100)
ACTS = st.lists(
    st.tuples(st.just("say"), PEOPLE, SAYINGS)
    | st.tuples(st.just("reply"), PEOPLE, SOME)
    | st.tuples(st.sampled_from(["edit", "delete", "pin", "unpin", "happens"]), PEOPLE, SOME)
    | st.tuples(st.sampled_from(["react", "unreact"]), PEOPLE, SOME),
    max_size=40,
)


async def act(it: World, kind: str, user_id: str, value: Any) -> None:
    """Do something to some message, if it may be done."""
    it.clock.advance(0.001)
    if kind == "say":
        await say(it, 1, user_id, value)
        return
    if kind == "happens":
        await happens(it, "den", user_id)
        return
    keys = await it.sql(select(tables.messages.c.key).order_by(tables.messages.c.key))
    if not keys:
        return
    seq = keys[value % len(keys)].key & SEQ_MASK
    commands = {
        "edit": EditMessage(room_id="den", id=seq, message=f"edited {value} @cy"),
        "delete": DeleteMessage(room_id="den", id=seq),
        "pin": PinMessage(room_id="den", id=seq),
        "unpin": UnpinMessage(room_id="den", id=seq),
        "react": React(room_id="den", id=seq, emoji="🎉🔥"[value % 2]),
        "unreact": Unreact(room_id="den", id=seq, emoji="🎉🔥"[value % 2]),
    }
    with suppress(ClientError):  # not all may be done to all
        if kind == "reply":
            await say(it, 1, user_id, f"answer {value} @ann", thread=seq, reply_to=seq)
        else:
            await it.does(user_id, commands[kind])


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(ACTS)
async def test_whatever_happened_in_a_room_is_in_its_export(acts: list[tuple[str, str, Any]]) -> None:
    async with world("sqlite://") as one, world("sqlite://") as other:
        await make_room(one, people=("ann", "mod:mod", "bob", "cy"))
        for kind, user_id, value in acts:
            await act(one, kind, user_id, value)
        lines = await exported(one)
        await import_room(other.store, lines, now=other.now)
        assert await exported(other) == lines
        for table in (
            tables.messages,
            tables.versions,
            tables.reactions,
            tables.mentions,
            tables.pins,
            tables.followers,
        ):
            assert await everything(other, table) == await everything(one, table), table.name
        wanted = GetMessages(room_id="den", limit=200)
        assert (await other.asks("bob", wanted)).messages == (await one.asks("bob", wanted)).messages


@given(st.integers(min_value=0, max_value=253_402_300_799_999))
def test_times_are_kept_to_the_millisecond(milliseconds: int) -> None:
    assert milliseconds_of(time_of(milliseconds)) == milliseconds


# -- interrupted, and gone on with


class Interrupted(Exception):
    """Whatever interrupts."""


async def test_an_import_goes_on_where_it_was(den: World, another_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    await fill(den)
    for number in range(20):
        await say(den, 1, "bob", f"number {number}")
    lines = await exported(den)
    total = json.loads(lines[-1])["messages"]

    def stop(messages: int) -> None:
        seen.append(messages)
        if len(seen) == 3:
            raise Interrupted

    with chunks_of(monkeypatch, 3):
        async with world(another_url) as other:
            before = 0
            for _ in range(3):
                seen: list[int] = []
                with pytest.raises(Interrupted):
                    await import_room(other.store, lines, now=other.now, progress=stop)
                assert seen == [before + 3, before + 6, before + 9]
                before += 9
                (row,) = await everything(other, tables.rooms)
                assert (row.visibility, row.member_count) == ("private", 0), "nobody sees it before it is whole"
                assert row.archived_at is not None
                assert len(await everything(other, tables.messages)) == before
                with pytest.raises(ClientError, match="no room"):
                    await other.asks("ann", GetMessages(room_id="den"))
            done = await import_room(other.store, lines, now=other.now)
            assert (done.before, done.messages) == (before, total)
            assert await exported(other) == lines
            with pytest.raises(ClientError, match="already"):
                await import_room(other.store, lines, now=other.now)
            assert await exported(other) == lines


async def test_an_import_goes_on_among_people_and_pins(
    den: World, another_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    await fill(den)
    lines = await exported(den)

    def stop(*_: object, **__: object) -> None:
        raise Interrupted

    async with world(another_url) as other:
        for step in ("write_pins", "_open"):
            with monkeypatch.context() as patch, chunks_of(patch, 3):
                patch.setattr(importing, step, stop)
                with pytest.raises(Interrupted):
                    await import_room(other.store, lines, now=other.now)
        await import_room(other.store, lines, now=other.now)
        assert await exported(other) == lines


async def test_only_the_same_file_goes_on(den: World, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = [said("ann", f"number {number}") for number in range(9)]

    def stop(_: int) -> None:
        raise Interrupted

    with chunks_of(monkeypatch, 3):
        with pytest.raises(Interrupted):
            await import_room(den.store, lines, now=den.now, room_id="loft", progress=stop)
        with pytest.raises(ClientError, match="half done, from another file") as caught:
            await import_room(den.store, [said("ann", "another")], now=den.now, room_id="loft")
        assert caught.value.code == ErrorCode.CONFLICT
        await import_room(den.store, lines, now=den.now, room_id="loft")
        assert [row.body for row in await messages_of(den, 2)] == [f"number {number}" for number in range(9)]


async def test_two_imports_of_one_file_do_not_mix(den: World, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = [said("ann", f"number {number}") for number in range(30)]

    async def halting() -> AsyncIterator[bytes]:
        for number, line in enumerate(lines):
            if number == 15:
                await import_room(den.store, lines, now=den.now, room_id="loft")
            yield line

    with chunks_of(monkeypatch, 3):
        with pytest.raises(ClientError, match="somebody else") as caught:
            await import_room(den.store, halting(), now=den.now, room_id="loft")
        assert caught.value.code == ErrorCode.CONFLICT
        assert [row.body for row in await messages_of(den, 2)] == [f"number {number}" for number in range(30)]


async def messages_of(it: World, room_no: int) -> list[Any]:
    return [row for row in await everything(it, tables.messages) if row.room_no == room_no]


async def test_a_room_that_is_there_is_left_alone(den: World) -> None:
    await fill(den)
    lines = await exported(den)
    with pytest.raises(ClientError, match="there is a room 'den' already") as caught:
        await import_room(den.store, lines, now=den.now)
    assert caught.value.code == ErrorCode.CONFLICT
    assert await exported(den) == lines


async def test_a_room_can_be_copied_under_another_id(den: World) -> None:
    await fill(den)
    lines = await exported(den)
    await import_room(den.store, lines, now=den.now, room_id="copy")
    copy = await exported(den, "copy")
    assert json.loads(copy[0]) == json.loads(lines[0]) | {"room_id": "copy"}
    assert [without_sums(line) for line in copy[1:]] == [without_sums(line) for line in lines[1:]]
    (file,) = await everything(den, tables.attachments)
    assert file.room_no == 1, "the file itself stays where it was"


def without_sums(line: bytes) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(line)
    for file in found.get("files", []):
        file.pop("sha256", None)
        file.pop("at", None)
    return found


# -- lines that are wrong


ROOM = {
    "type": "room", "format": 1, "room_id": "loft", "name": "Loft", "created_at": "2027-01-01T00:00:00Z",
    "last_at": "2027-01-01T00:00:00Z", "event_seq": 9, "message_count": 9,
}  # fmt: skip
MESSAGE = {
    "type": "message",
    "id": 1,
    "number": 1,
    "user_id": "ann",
    "message": "hi",
    "timestamp": "2027-01-01T00:00:01Z",
}
END = {"type": "end", "messages": 1}
REACTION = {"emoji": "🎉", "user_id": "bob", "at": "2027-01-01T00:00:01Z"}


def said(user_id: str, message: str, **more: Any) -> bytes:
    return json.dumps(
        {"user_id": user_id, "message": message, "timestamp": "2027-01-01T00:00:00+01:00", **more}
    ).encode()


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ("nonsense", "malformed"),
        ("[]", "object"),
        ('{"type":"poll"}', "poll"),
        ({**MESSAGE, "colour": "red"}, "colour"),
        ({**MESSAGE, "id": 0}, "$.id"),
        ({**MESSAGE, "id": 10, "number": 2}, "event_seq"),
        ({**MESSAGE, "id": 1}, "ascend"),
        ({**MESSAGE, "id": 2, "number": 0}, "$.number"),
        ({**MESSAGE, "id": 2, "number": 3}, "$.number"),
        ({**MESSAGE, "id": 2, "user_id": ""}, "$.user_id"),
        ({**MESSAGE, "id": 2, "user_id": "a\nb"}, "$.user_id"),
        ({**MESSAGE, "id": 2, "user_id": "x" * 129}, "$.user_id"),
        ({**MESSAGE, "id": 2, "message": "a\x00b"}, "NUL"),
        ({**MESSAGE, "id": 2, "timestamp": "yesterday"}, "$.timestamp"),
        ({**MESSAGE, "id": 2, "timestamp": "2027-01-01T00:00:00"}, "timezone"),
        ({**MESSAGE, "id": 2, "timestamp": "1969-01-01T00:00:00Z"}, "$.timestamp"),
        ({**MESSAGE, "id": 2, "reply_to": 2}, "$.reply_to"),
        ({**MESSAGE, "id": 2, "thread": 5}, "$.thread"),
        ({**MESSAGE, "id": 2, "deleted_at": "2027-01-01T00:00:02Z"}, "$.deleted_at"),
        ({**MESSAGE, "id": 2, "system": {"event": "x"}}, "system"),
        ({**MESSAGE, "id": 2, "reactions": [REACTION, REACTION]}, "$.reactions"),
        ({**MESSAGE, "id": 2, "files": [{"id": "f"}]}, "$.files"),
        ({**ROOM, "room_id": "other"}, "one at a time"),
        ({"type": "member", "user_id": "ann", "role": "king", "joined_at": "2027-01-01T00:00:01Z"}, "$.role"),
        ({"type": "end", "messages": 7}, "7 messages"),
        (b'{"type":"message","message":"\xff"}', "UTF-8"),
        (b'{"type":"message","message":"a\\ud800b"}', "line 3"),
    ],
)
async def test_a_wrong_line_is_named(sqlite_url: str, wrong: Any, words: str) -> None:
    line = json.dumps(wrong) if isinstance(wrong, dict) else wrong
    lines = [
        json.dumps(ROOM).encode(),
        json.dumps(MESSAGE).encode(),
        line if isinstance(line, bytes) else line.encode(),
    ]
    async with world(sqlite_url) as it:
        with pytest.raises(ClientError) as caught:
            await import_room(it.store, lines, now=it.now)
        assert caught.value.code == ErrorCode.INVALID_MESSAGE
        assert "line 3" in caught.value.message
        assert words in caught.value.message
        assert await everything(it, tables.messages) == [], "nothing of its chunk is written"
        lines[2:] = [json.dumps(END).encode()]
        assert (await import_room(it.store, lines, now=it.now)).messages == 1, "once it is mended, the import goes on"


@pytest.mark.parametrize(
    ("first", "words"),
    [
        ({**ROOM, "format": 2}, "format 1"),
        ({**ROOM, "format": None}, "format 1"),
        ({**ROOM, "room_id": "a room"}, "room's id"),
        ({**ROOM, "room_id": "dm-0123456789abcdef0123"}, "direct"),
        ({**ROOM, "visibility": "direct", "direct_key": "ab" * 32}, "direct"),
        ({**ROOM, "kind": "huge"}, "$.kind"),
        (MESSAGE, "begins with the room"),
        ("7", "object"),
        ("{", "truncated"),
    ],
)
async def test_a_wrong_first_line_makes_no_room(sqlite_url: str, first: Any, words: str) -> None:
    line = json.dumps(first) if isinstance(first, dict) else first
    async with world(sqlite_url) as it:
        with pytest.raises(ClientError, match=None) as caught:
            await import_room(it.store, [line.encode()], now=it.now, room_id=None)
        assert words in caught.value.message
        assert await everything(it, tables.rooms) == []


async def test_a_file_that_was_cut_is_not_taken_for_whole(den: World) -> None:
    await fill(den)
    lines = await exported(den)
    with pytest.raises(ClientError, match="ends in the middle"):
        await import_room(den.store, lines[:-3], now=den.now, room_id="copy")
    rows = {row.id: row for row in await everything(den, tables.rooms)}
    assert rows["copy"].archived_at is not None
    await import_room(den.store, lines, now=den.now, room_id="copy")
    with pytest.raises(ClientError, match="after the end"):
        await import_room(den.store, [*lines, lines[-1]], now=den.now, room_id="copy-2")


async def test_nothing_is_no_room(den: World) -> None:
    for lines in ([], [b"\n", b"  \n"]):
        with pytest.raises(ClientError, match="no line"):
            await import_room(den.store, lines, now=den.now)


async def test_a_client_id_that_is_there_twice_is_named(den: World, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = [said("ann", "one", client_id="c"), said("bob", "two", client_id="c"), said("ann", "three", client_id="c")]
    with pytest.raises(ClientError, match="line 3: ann used this one before"):
        await import_room(den.store, lines, now=den.now, room_id="loft")
    assert await messages_of(den, 2) == []
    lines = [said("ann", f"number {number}", client_id=f"c-{number % 7}") for number in range(9)]
    with chunks_of(monkeypatch, 3), pytest.raises(ClientError, match="line 8: ann used this one before"):
        await import_room(den.store, lines, now=den.now, room_id="attic")
    assert len(await messages_of(den, 3)) == 6


async def test_a_pin_needs_its_message(den: World) -> None:
    pin = {"type": "pin", "id": 2, "pinned_by": "ann", "at": "2027-01-01T00:00:02Z"}
    with pytest.raises(ClientError, match="line 3: there is no message 2"):
        await import_room(den.store, [json.dumps(each).encode() for each in (ROOM, MESSAGE, pin, END)], now=den.now)


# -- messages from elsewhere


async def test_messages_only_are_numbered_as_they_come(den: World) -> None:
    lines = [
        b"\xef\xbb\xbf" + said("ann", "first"),
        b"",
        said("bob", "second @ann", client_id="x"),
        json.dumps({"user_id": "zoe", "message": "", "timestamp": 1_700_000_000}).encode() + b"\r\n",
        json.dumps({"user_id": "ann", "message": "last", "timestamp": 1_700_000_000.123}).encode(),
    ]
    done = await import_room(den.store, lines, now=den.now, room_id="loft")
    assert (done.messages, done.members) == (4, 0)
    rows = await messages_of(den, 2)
    assert [(row.key & SEQ_MASK, row.number, row.author, row.body) for row in rows] == [
        (1, 1, "ann", "first"),
        (2, 2, "bob", "second @ann"),
        (3, 3, "zoe", ""),
        (4, 4, "ann", "last"),
    ]
    assert [row.at for row in rows] == [1_798_758_000_000, 1_798_758_000_000, 1_700_000_000_000, 1_700_000_000_123]
    room = (await everything(den, tables.rooms))[1]
    assert (room.name, room.kind, room.visibility, room.archived_at) == ("loft", "group", "public", None)
    assert (room.event_seq, room.message_count, room.trimmed_seq, room.last_at) == (4, 4, 0, 1_700_000_000_123)
    await den.does("ann", Join(room_id="loft"))
    assert (await den.asks("ann", GetMessages(room_id="loft"))).messages[0].message == "first"
    caught_up = await den.asks("ann", CatchUp(room_id="loft", since=Position(room.epoch, 1)))
    assert len(caught_up.events) == 3, "nothing is missing in it"


async def test_messages_only_need_a_room(den: World) -> None:
    with pytest.raises(ClientError, match="say which room"):
        await import_room(den.store, [said("ann", "first")], now=den.now)
    with pytest.raises(ClientError, match="room's id"):
        await import_room(den.store, [said("ann", "first")], now=den.now, room_id="no such id")
    with pytest.raises(ClientError, match="already"):
        await import_room(den.store, [said("ann", "first")], now=den.now, room_id="den")


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (said("ann", "x", timestamp=1_700_000_000_000), "unix seconds"),
        (said("ann", "x", timestamp=-1), "1970"),
        (said("ann", "x", id=7), "id"),
        (said("", "x"), "$.user_id"),
        (said("ann", "a\x00b"), "NUL"),
        (b'{"user_id":"ann"}', "message"),
    ],
)
async def test_a_wrong_message_is_named(sqlite_url: str, wrong: bytes, words: str) -> None:
    async with world(sqlite_url) as it:
        for lines, number in (([wrong], 1), ([said("ann", "first"), b"\n", wrong], 3)):
            with pytest.raises(ClientError, match=f"line {number}: ") as caught:
                await import_room(it.store, lines, now=it.now, room_id="loft")
            assert words in caught.value.message
        assert await everything(it, tables.messages) == []
