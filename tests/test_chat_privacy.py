"""What is known of a person, how it is erased, and what is not kept for ever."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Connection, String, Text, cast, insert, select, text, update

from hubbub.auth import Grants
from hubbub.errors import ClientError
from hubbub.features.chat import tables
from hubbub.features.chat.access import Caller
from hubbub.features.chat.asks import (
    Ban,
    CatchUp,
    CloseReport,
    DeleteMessage,
    EditMessage,
    GetAudit,
    GetMessages,
    GetVersions,
    Invite,
    Kick,
    ListReports,
    MarkRead,
    PinMessage,
    React,
    ReportMessage,
    Search,
)
from hubbub.features.chat.erasing import Erased, erase_user, rewrite_file
from hubbub.features.chat.reading import note_last_seen
from hubbub.features.chat.retention import DAY, sweep, sweep_files
from hubbub.features.chat.tables import SEQ_MASK, key_of
from hubbub.features.chat.tells import RoomRemoved
from hubbub.features.chat.tx import Outcome
from hubbub.files import DiskFiles, new_key
from hubbub.messages import Position
from hubbub.tables import metadata
from tests.chat_rows import change_room, everything, happens, make_room, member_row, message_row, say
from tests.chat_support import World, told, world
from tests.chat_whole import FILE, about, attach, chunks_of, exported, fill, indexed

pytestmark = pytest.mark.anyio
OURS = [table for table in metadata.sorted_tables if getattr(tables, table.name, None) is table]
SECRET = "rhinoceros"
"""A word that nobody else says."""


@pytest.fixture
async def den(database_url: str) -> AsyncIterator[World]:
    """A world with the private group room `den` (number 1): ann owns it, mod is a moderator, bob and cy are members."""
    async with world(database_url) as it:
        assert await make_room(it, people=("ann", "mod:mod", "bob", "cy")) == 1
        yield it


async def live(it: World, user_id: str = "bob") -> None:
    """Somebody leaves traces of all kinds, with the secret in each that has words."""
    await make_room(it, "loft", people=("mod", "bob", "cy"))
    await say(it, 1, user_id, f"{SECRET} one @cy @room", client_id=f"{SECRET}-1")
    await say(it, 1, "ann", f"do you like @{user_id}?")
    await say(it, 1, user_id, f"{SECRET} two", thread=2, reply_to=2)
    for number in range(3):
        await it.does(user_id, EditMessage(room_id="den", id=1, message=f"{SECRET} version {number} @cy @ann"))
    await attach(it, 1, user_id, FILE, f"{SECRET}.txt")
    await say(it, 1, user_id, "", files=(FILE,))
    await attach(it, 1, user_id, FILE[::-1], f"unsent {SECRET}.txt")
    await it.does(user_id, React(room_id="den", id=2, emoji=f":{SECRET}:"))
    await it.does("cy", React(room_id="den", id=1, emoji="🎉"))
    await it.does("cy", React(room_id="den", id=2, emoji="🎉"))
    await it.does("mod", PinMessage(room_id="den", id=1))
    await it.does("mod", PinMessage(room_id="den", id=2))
    await say(it, 2, user_id, f"{SECRET} in the loft", client_id=f"{SECRET}-2")
    await say(it, 2, "cy", "they said so themselves", thread=1)
    await it.does(user_id, ReportMessage(room_id="den", id=2, reason=f"{SECRET} reported"))
    await it.does("mod", Kick(room_id="loft", user_id=user_id, reason=f"says {SECRET}"))
    await it.does("mod", Ban(room_id="loft", user_id=user_id, reason=f"still says {SECRET}"))
    await make_room(it, "attic", people=("cy",))
    await it.does("cy", Invite(room_id="attic", user_ids=[user_id]))
    await it.store.write(lambda c: note_last_seen(c, {user_id: it.now}, c.dialect.name))


async def erase(it: World, user_id: str = "bob", **options: Any) -> Erased:
    return await erase_user(it.store, user_id, now=it.now, settings=it.settings, **options)


def words(connection: Connection, word: str) -> list[str]:
    """Where there is a word in the database."""
    found = []
    for table in metadata.sorted_tables:
        for column in table.columns:
            if isinstance(column.type, String | Text):
                query = select(column).where(cast(column, Text).like(f"%{word}%"))
                found += [f"{table.name}.{column.name}: {value}" for value in connection.scalars(query)]
    if connection.dialect.name == "postgresql":
        indexed_words = text("SELECT tsv::text FROM messages WHERE tsv::text LIKE :word")
        found += [f"tsv: {value}" for value in connection.scalars(indexed_words, {"word": f"%{word}%"})]
    return found


async def found(it: World, word: str = SECRET) -> list[str]:
    return await it.store.read(lambda connection: words(connection, word))


# -- what is known of a person


async def test_all_about_a_person(den: World) -> None:
    await live(den)
    lines = await about(den, "bob")
    assert lines[0]["type"] == "user"
    assert (lines[0]["user_id"], lines[0]["format"]) == ("bob", 1)
    assert lines[0]["last_seen"].startswith("2027-01-15T08:00:00")
    by_kind: dict[str, list[dict[str, Any]]] = {}
    for line in lines[1:]:
        by_kind.setdefault(line["type"], []).append(line)
    assert [(each["room_id"], each["room_name"], each["role"]) for each in by_kind["membership"]] == [
        ("den", "Den", "member")
    ]
    assert [(each["room_id"], each["invited_by"]) for each in by_kind["invitation"]] == [("attic", "cy")]
    assert [(each["room_id"], each["reason"]) for each in by_kind["ban"]] == [("loft", f"still says {SECRET}")]
    assert [(each["room_id"], each["id"], each["emoji"]) for each in by_kind["reaction"]] == [("den", 2, f":{SECRET}:")]
    assert [(each["room_id"], each["id"]) for each in by_kind["mention"]] == [("den", 2)]
    assert [(each["id"], each["reason"], each["status"]) for each in by_kind["report"]] == [
        (2, f"{SECRET} reported", "open")
    ]
    assert {(each["name"], each.get("message")) for each in by_kind["file"]} == {
        (f"{SECRET}.txt", 7),
        (f"unsent {SECRET}.txt", None),
    }
    messages = by_kind["message"]
    assert [(each["room_id"], each["id"]) for each in messages] == [("den", 1), ("den", 3), ("den", 7), ("loft", 1)]
    assert messages[0]["message"] == f"{SECRET} version 2 @cy @ann"
    assert [each["message"] for each in messages[0]["versions"]] == [
        f"{SECRET} one @cy @room",
        f"{SECRET} version 0 @cy @ann",
        f"{SECRET} version 1 @cy @ann",
    ]
    assert messages[2]["files"][0]["name"] == f"{SECRET}.txt"
    assert "audit" not in by_kind
    assert {each["act"] for each in await about(den, "mod") if each["type"] == "audit"} == {"kick", "ban"}
    texts = [each["message"] for each in lines if each["type"] == "message"]
    assert "do you like" not in str(texts), "what others said is theirs"


async def test_much_about_a_person_has_pages(den: World, monkeypatch: pytest.MonkeyPatch) -> None:
    await live(den)
    for number in range(4):
        await den.does("bob", React(room_id="den", id=2, emoji=f":{number}:"))
        await make_room(den, f"room-{number}", people=("ann", "bob"))
    whole = await about(den, "bob")
    for size in (1, 2, 3):
        with chunks_of(monkeypatch, size):
            assert await about(den, "bob") == whole


async def test_about_whom_nothing_is_known(den: World) -> None:
    (line,) = await about(den, "nobody")
    assert (line["type"], line["user_id"]) == ("user", "nobody")
    assert "last_seen" not in line


# -- erasing


async def test_nothing_is_left_of_what_a_person_said(den: World, monkeypatch: pytest.MonkeyPatch) -> None:
    await live(den)
    await indexed(den)
    assert [hit.message.id for hit in (await den.asks("cy", Search(query=SECRET))).hits] == [1, 3, 1]
    assert len({place.split(":")[0] for place in await found(den)}) >= 9
    with chunks_of(monkeypatch, 2):
        erased = await erase(den)
    assert await found(den) == []
    assert (erased.rooms, erased.messages, erased.reactions, erased.mentions, erased.files) == (3, 4, 1, 1, 2)
    await indexed(den)
    assert (await den.asks("cy", Search(query=SECRET))).hits == []
    page = (await den.asks("cy", GetMessages(room_id="den"))).messages
    gone = [(each.id, each.user_id, each.message, each.deleted_by) for each in page if each.deleted_at]
    assert gone == [(1, "bob", "", ""), (7, "bob", "", "")]
    lines = b"".join(await exported(den)) + b"".join(await exported(den, "loft"))
    assert SECRET.encode() not in lines
    assert b"do you like @bob?" in lines, "what others said stays"
    kept = await about(den, "bob")
    assert {line["type"] for line in kept} == {"user", "ban", "report", "message"}
    assert not any(
        line.get("message") or line.get("reason") for line in kept if line["type"] in ("message", "report", "ban")
    )
    with pytest.raises(ClientError, match="deleted"):
        await den.asks("cy", GetVersions(room_id="den", id=1))


def has_secret(file: Path) -> bool:
    """Whether the words are in a database's file, or in the write-ahead log beside it."""
    return any(SECRET.encode() in each.read_bytes() for each in file.parent.glob(f"{file.name}*"))


async def test_the_words_are_in_no_byte_of_the_file(sqlite_url: str) -> None:
    file, chance = Path(sqlite_url.removeprefix("sqlite:///")), random.Random(1)
    all_said: list[tuple[int, str, str]] = []
    async with world(sqlite_url) as it:
        assert await make_room(it, people=("ann", "mod:mod", "bob", "cy")) == 1
        await live(it)
        for number in range(300):  # so many, and so often edited that pages of the file are split and balanced
            user_id, word = chance.choice([("ann", "innocent"), ("bob", SECRET), ("cy", "innocent")])
            text_of_it = " ".join(f"{word}{number}" for _ in range(chance.choice([1, 3, 30, 300])))
            client_id = f"{word}-{number}" if chance.random() < 0.5 else None
            all_said.append((await say(it, 1, user_id, text_of_it, client_id=client_id), user_id, word))
            if chance.random() < 0.4:
                seq, user_id, word = chance.choice(all_said)
                await it.does(
                    user_id, EditMessage(room_id="den", id=seq, message=f"{word} " * chance.choice([1, 9, 900]))
                )
            if number % 20 == 0:
                await indexed(it)
        assert has_secret(file)
        await erase(it)
        await indexed(it)
        await rewrite_file(it.store)
        assert await say(it, 1, "cy", "and it goes on") > 200
        await indexed(it)
        assert len((await it.asks("cy", Search(query="goes on"))).hits) == 1
    assert not has_secret(file)


async def test_only_a_file_is_rewritten(den: World) -> None:
    await say(den, 1, "bob", "something")
    before = [await everything(den, table) for table in OURS]
    await rewrite_file(den.store)
    assert [await everything(den, table) for table in OURS] == before


async def test_rooms_hear_of_it_once_each(den: World, monkeypatch: pytest.MonkeyPatch) -> None:
    await live(den)
    outcomes: list[Outcome[Any]] = []
    with chunks_of(monkeypatch, 1):
        await erase(den, tell=outcomes.append)
    events = [event for outcome in outcomes for event in told(outcome)]
    assert [(event["type"], event["room_id"], event["data"]) for event in events] == [
        ("user_erased", room_id, {"user_id": "bob"}) for room_id in ("den", "loft", "attic")
    ]
    (row, *_) = await everything(den, tables.rooms)
    assert events[0]["offset"] == row.event_seq
    removed = [each for outcome in outcomes for each in outcome.removed]
    assert [(each.room_id, each.user_id, each.reason) for each in removed] == [("den", "bob", "erased")]
    personal = [each for outcome in outcomes for each in outcome.personal]
    assert personal == [("bob", RoomRemoved("den", "erased"))]
    caught_up = await den.asks("cy", CatchUp(room_id="den", since=Position(row.epoch, row.event_seq - 1)))
    assert [event["type"] for event in caught_up.events] == ["user_erased"]


async def test_everything_else_stays(den: World) -> None:
    await live(den)
    await den.does("cy", MarkRead(room_id="den", id=2))
    before = {row.key: row for row in await everything(den, tables.messages)}
    (room, *_) = await everything(den, tables.rooms)
    await erase(den)
    after = {row.key: row for row in await everything(den, tables.messages)}
    assert list(after) == list(before)
    for key, row in after.items():
        kept = ("number", "author", "kind", "at", "reply_to", "thread")
        assert [getattr(row, name) for name in kept] == [getattr(before[key], name) for name in kept]
        if row.author != "bob":
            assert row == before[key]
    (now, *_) = await everything(den, tables.rooms)
    assert (now.member_count, now.message_count, now.pin_count) == (3, room.message_count, 1)
    assert now.event_seq == room.event_seq + 1
    assert [(row.user_id, row.emoji) for row in await everything(den, tables.reactions)] == [("cy", "🎉")]
    assert [row.message & SEQ_MASK for row in await everything(den, tables.pins)] == [2]
    assert [(row.root & SEQ_MASK, row.reply_count) for row in await everything(den, tables.threads)] == [(2, 1), (1, 1)]
    assert {row.user_id for row in await everything(den, tables.followers)} == {"ann", "cy"}
    assert {row.user_id for row in await everything(den, tables.members)} == {"ann", "mod", "cy"}
    assert [(row.user_id, row.reason) for row in await everything(den, tables.bans)] == [("bob", "")]
    (entry, *_) = (await den.asks("", GetAudit(), admin=True)).entries
    assert (entry.act, entry.user_id, entry.target_user, entry.data) == ("erase_user", "(api key)", "bob", {})


async def test_mentions_that_nobody_read_are_not_counted_any_more(den: World) -> None:
    await say(den, 1, "bob", "one @cy @mod")
    await say(den, 1, "bob", "two @cy @room")
    await say(den, 1, "ann", "three @cy")
    await den.does("mod", MarkRead(room_id="den", id=1))
    assert [(await member_row(den, 1, each)).mention_count for each in ("cy", "mod", "ann")] == [3, 1, 0]
    await erase(den)
    assert [(await member_row(den, 1, each)).mention_count for each in ("cy", "mod", "ann")] == [1, 0, 0]
    assert [(row.user_id, row.message & SEQ_MASK) for row in await everything(den, tables.mentions)] == [("cy", 3)]


async def test_events_say_nothing_of_it(den: World) -> None:
    await live(den)
    (row, *_) = await everything(den, tables.rooms)
    since = Position(row.epoch, 0)
    before = (await den.asks("cy", CatchUp(room_id="den", since=since))).events
    await erase(den)
    after = (await den.asks("cy", CatchUp(room_id="den", since=since))).events
    assert [event.get("offset") for event in after[:-1]] == [event.get("offset") for event in before]
    assert SECRET not in str(after)
    reactions = [event["data"] for event in after if event["type"] == "reaction"]
    assert {"id": 2, "emoji": "", "user_id": "bob", "added": False, "count": 0} in reactions
    assert {"id": 2, "emoji": "🎉", "user_id": "cy", "added": True, "count": 1} in reactions
    (row,) = [row for row in await everything(den, tables.events) if row.type == "member" and "banned" in row.data]
    assert "bob" in row.data
    assert "reason" not in row.data


async def test_erasing_again_does_nothing(den: World) -> None:
    await live(den)
    await erase(den)
    before = [await everything(den, table) for table in OURS]
    outcomes: list[Outcome[Any]] = []
    assert await erase(den, tell=outcomes.append) == Erased()
    assert outcomes == []
    assert [await everything(den, table) for table in OURS] == before
    assert await erase(den, "nobody") == Erased()


async def test_it_goes_on_after_any_interruption(den: World, monkeypatch: pytest.MonkeyPatch) -> None:
    await live(den)
    outcomes: list[Outcome[Any]] = []
    write, stops, left = den.store.write, 0, 0

    async def halting(*arguments: Any) -> Any:
        nonlocal left
        left -= 1
        if left < 0:
            raise Interrupted
        return await write(*arguments)

    with chunks_of(monkeypatch, 1), monkeypatch.context() as patch:
        patch.setattr(den.store, "write", halting)
        while True:
            left = 2 + stops // 4  # the audit log's entry, and one more
            try:
                await erase(den, tell=outcomes.append)
                break
            except Interrupted:
                stops += 1
    assert stops > 5
    assert await found(den) == []
    events = [event["room_id"] for outcome in outcomes for event in told(outcome)]
    assert events == ["den", "loft", "attic"], "each room is told once, whatever happened"


class Interrupted(Exception):
    """Whatever interrupts."""


@pytest.mark.parametrize("user_id", ['b%"o\\b', "Bob", "bob_", "ボブ"])
async def test_only_the_one_of_this_name(den: World, user_id: str) -> None:
    await den.store.write(
        lambda c: c.execute(
            insert(tables.members), {"room_no": 1, "user_id": user_id, "role": "member", "joined_at": 1}
        )
    )
    for each in ("bob", user_id, "b%", "BOB"):
        if each in ("bob", user_id):
            await say(den, 1, each, f"{each} says something")
            await den.does(each, React(room_id="den", id=1, emoji=f":{len(each)}:"))
    await den.does("mod", Kick(room_id="den", user_id="bob", reason="for bob"))
    await den.does("mod", Kick(room_id="den", user_id=user_id, reason="for the other"))
    erased = await erase(den, user_id)
    assert (erased.messages, erased.reactions) == (1, 1)
    assert (await message_row(den, 1, 1)).body == "bob says something"
    assert (await everything(den, tables.reactions))[0].user_id == "bob"
    reasons = [row.data for row in await everything(den, tables.events) if "reason" in row.data]
    assert len(reasons) == 1
    assert "for bob" in reasons[0]
    assert [row.data for row in await everything(den, tables.audit)].count("{}") == 2


async def test_what_a_moderator_wrote_is_erased_with_the_moderator(den: World) -> None:
    await say(den, 1, "bob", "something bad")
    await den.does("cy", ReportMessage(room_id="den", id=1, reason="it hurts"))
    await den.does("mod", CloseReport(report=1, note=f"{SECRET} note"))
    await den.does("mod", DeleteMessage(room_id="den", id=1, reason=f"{SECRET} reason"))
    await den.does("mod", Ban(room_id="den", user_id="bob", reason=f"{SECRET} ban"))
    await happens(den, "den", "mod")
    assert len(await found(den)) >= 4
    outcomes: list[Outcome[Any]] = []
    await erase(den, "mod", caller=Caller("root", Grants(admin=True), True), tell=outcomes.append)
    assert await found(den) == []
    assert [event["type"] for outcome in outcomes for event in told(outcome)] == ["user_erased"]
    (report,) = (await den.asks("ann", ListReports(room_id="den", status="resolved"))).reports
    assert (report.reason, report.note, report.closed_by) == ("it hurts", "", "mod")
    assert (await den.asks("", GetAudit(), admin=True)).entries[0].user_id == "root"
    assert (await den.asks("ann", GetMessages(room_id="den"))).messages[-1].deleted_at is not None


async def test_progress_is_told(den: World, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(5):
        await say(den, 1, "bob", f"number {number}")
    seen: list[tuple[int, int]] = []
    with chunks_of(monkeypatch, 2):
        await erase(den, progress=lambda *counts: seen.append(counts))
    assert seen == [(2, 5), (4, 5), (5, 5)]


# -- what is not kept for ever


async def sweeps(it: World, audit_days: int = 0) -> dict[str, int]:
    swept = await sweep(it.store, now=it.now, audit_days=audit_days)
    return {name: getattr(swept, name) for name in swept.__struct_fields__ if getattr(swept, name)}


async def test_a_room_keeps_its_past_as_long_as_it_wants(den: World, monkeypatch: pytest.MonkeyPatch) -> None:
    await fill(den)
    await indexed(den)
    (was,) = await everything(den, tables.rooms)
    assert was.retention_days == 30
    assert await sweeps(den) == {}
    den.clock.advance(29 * 86_400)
    assert await say(den, 1, "cy", "young") == was.event_seq + 1
    assert await sweeps(den) == {"bans": 1}
    den.clock.advance(86_400 + 3600)
    old = [row for row in await everything(den, tables.messages) if row.at < den.now - 30 * DAY]
    events = await everything(den, tables.events)
    with chunks_of(monkeypatch, 4):
        assert await sweeps(den) == {"messages": len(old), "events": len(events)}
    (room,) = await everything(den, tables.rooms)
    assert (room.trimmed_seq, room.pin_count) == (was.event_seq, 0)
    assert (room.event_seq, room.message_count) == (was.event_seq + 1, was.message_count + 1)
    for table in (tables.events, tables.versions, tables.reactions, tables.mentions, tables.pins, tables.threads):
        assert await everything(den, table) == [], table.name
    assert await everything(den, tables.followers) == []
    assert [row.message for row in await everything(den, tables.attachments)] == [0], "its bytes go next"
    page = await den.asks("cy", GetMessages(room_id="den"))
    assert ([each.message for each in page.messages], page.before) == (["young"], False)
    await indexed(den)
    assert (await den.asks("cy", Search(query="version"))).hits == []
    assert await sweeps(den) == {}


async def test_who_comes_back_from_before_learns_that_there_is_a_gap(den: World) -> None:
    await change_room(den, "den", retention_days=1)
    await say(den, 1, "ann", "old")
    await den.does("bob", React(room_id="den", id=1, emoji="🎉"))
    den.clock.advance(2 * 86_400)
    await say(den, 1, "ann", "new")
    assert await sweeps(den) == {"messages": 1, "events": 1}
    epoch = (await everything(den, tables.rooms))[0].epoch
    for offset in (0, 1):
        with pytest.raises(ClientError, match="not kept") as caught:
            await den.asks("bob", CatchUp(room_id="den", since=Position(epoch, offset)))
        assert caught.value.code == "resync_required"
    caught_up = await den.asks("bob", CatchUp(room_id="den", since=Position(epoch, 2)))
    assert [event["data"]["message"] for event in caught_up.events] == ["new"]


async def test_a_room_is_trimmed_in_the_order_of_its_numbers(den: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock that was set back makes a young message before an old one: nothing behind it goes before it."""
    await change_room(den, "den", retention_days=1)
    now = den.now
    for age in (5, 4, 0, 3, 2):
        await say(den, 1, "ann", f"{age} days old")
        seq = (await everything(den, tables.rooms))[0].event_seq
        older = update(tables.messages).where(tables.messages.c.key == key_of(1, seq)).values(at=now - age * DAY)
        await den.store.write(lambda c, older=older: c.execute(older))  # type: ignore[misc]  # a default's type
    with chunks_of(monkeypatch, 1):
        assert await sweeps(den) == {"messages": 2}
    assert (await everything(den, tables.rooms))[0].trimmed_seq == 2
    den.clock.advance(2 * 86_400)
    assert await sweeps(den) == {"messages": 3}
    assert (await everything(den, tables.rooms))[0].trimmed_seq == 5


async def test_other_rooms_are_kept(den: World) -> None:
    assert await make_room(den, "attic", people=("cy",)) == 2
    assert await make_room(den, "loft", people=("cy",), retention_days=1) == 3
    assert await make_room(den, "roof", people=("cy",)) == 4
    for no in (1, 2, 3, 4):
        await say(den, no, "ann" if no == 1 else "cy", f"in {no}")
    den.clock.advance(1000 * 86_400)
    assert await sweeps(den) == {"messages": 1}
    assert [row.room_no for row in await everything(den, tables.messages)] == [1, 2, 4]


async def test_answers_outlive_what_they_answer(den: World) -> None:
    await change_room(den, "den", retention_days=1)
    await say(den, 1, "ann", "root")
    den.clock.advance(2 * 86_400)
    await say(den, 1, "bob", "reply", thread=1, reply_to=1)
    assert await sweeps(den) == {"messages": 1}
    epoch = (await everything(den, tables.rooms))[0].epoch
    (event,) = (await den.asks("cy", CatchUp(room_id="den", since=Position(epoch, 1)))).events
    assert (event["data"]["message"], event["data"]["thread"], event["data"]["reply_to"]) == ("reply", 1, 1)
    assert await sweeps(den) == {}


async def test_bans_and_the_audit_log_end(den: World, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(5):
        await den.does("mod", Ban(room_id="den", user_id=f"user-{number}", seconds=60))
    await den.does("mod", Ban(room_id="den", user_id="max"))
    with chunks_of(monkeypatch, 2):
        den.clock.advance(59)
        assert await sweeps(den, audit_days=365) == {}
        den.clock.advance(1)
        assert await sweeps(den, audit_days=365) == {"bans": 5}
        assert [row.user_id for row in await everything(den, tables.bans)] == ["max"]
        den.clock.advance(365 * 86_400)
        assert await sweeps(den, audit_days=0) == {}
        assert await sweeps(den, audit_days=365) == {"audit": 6}
    assert await everything(den, tables.audit) == []


# -- files that nobody knows of


async def stored(files: DiskFiles) -> list[tuple[str, float]]:
    found = files.keys()
    return [each async for each in found]


async def test_files_without_a_row_are_removed(den: World, tmp_path: Path) -> None:
    files = DiskFiles(tmp_path / "files")
    await files.start()
    try:
        keys = [new_key() for _ in range(5)]

        async def bytes_of() -> AsyncIterator[bytes]:
            yield b"abc"

        for key in keys:
            await files.put(key, bytes_of(), 10, "text/plain")
        await attach(den, 1, "bob", keys[0].replace("/", ""), "known.txt")
        written = [at for _, at in await stored(files)]
        assert await sweep_files(den.store, files, now=int(min(written) * 1000) + DAY - 1000) == 0, "they are too young"
        assert await sweep_files(den.store, files, now=int(max(written) * 1000) + DAY + 1000) == 4
        assert [key for key, _ in await stored(files)] == keys[:1]
    finally:
        await files.stop()
