"""What happens to messages after they were said: edits, deletions, reactions, pins."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest
from msgspec import UNSET
from sqlalchemy import Connection, insert, select

from hubbub.errors import ClientError, ErrorCode
from hubbub.features.chat import search, tables, timeline
from hubbub.features.chat.asks import (
    DeleteMessage,
    EditMessage,
    GetMessages,
    GetVersions,
    ListPins,
    PinMessage,
    React,
    Search,
    UnpinMessage,
    Unreact,
)
from hubbub.features.chat.reading import get_messages
from hubbub.features.chat.tables import key_of
from hubbub.features.chat.tells import FileInfo, ReactionInfo
from hubbub.messages import ClientMessage
from tests.chat_rows import (
    answer,
    change_member,
    change_room,
    everything,
    happens,
    make_room,
    member_row,
    message_row,
    say,
)
from tests.chat_support import World, told, world

pytestmark = pytest.mark.anyio
COMMANDS = (timeline.edit_message, get_messages)
"""Importing them declares them."""


@pytest.fixture
async def den(database_url: str) -> AsyncIterator[World]:
    """A world with the private group room `den` (number 1): ann owns it, mod is a moderator, bob and cy are members."""
    async with world(database_url, max_reactions=3, max_pins=2, max_text_length=100) as it:
        assert await make_room(it, people=("ann", "mod:mod", "bob", "cy")) == 1
        yield it


def edit(seq: int, text: str, room_id: str = "den") -> EditMessage:
    return EditMessage(room_id=room_id, id=seq, message=text)


def remove(seq: int, reason: str = "", room_id: str = "den") -> DeleteMessage:
    return DeleteMessage(room_id=room_id, id=seq, reason=reason)


async def refused(it: World, user_id: str, message: ClientMessage, **options: Any) -> ErrorCode | str:
    with pytest.raises(ClientError) as caught:
        await it.does(user_id, message, **options)
    return caught.value.code


async def shown(it: World, seq: int, user_id: str = "ann") -> Any:
    """A message as somebody sees it."""
    page = await it.asks(user_id, GetMessages(room_id="den", around=seq, limit=1))
    return page.messages[0]


async def mentions(it: World) -> list[tuple[str, int]]:
    rows = await everything(it, tables.mentions)
    return [(row.user_id, row.message & tables.SEQ_MASK) for row in rows]


async def counts(it: World, *user_ids: str) -> list[int]:
    """How many unread mentions they have in the room."""
    return [(await member_row(it, 1, user_id)).mention_count for user_id in user_ids]


# -- editing


async def test_an_edit_is_told_and_keeps_what_was_said(den: World) -> None:
    seq = await say(den, 1, "bob", "helo", client_id="c1")
    den.clock.advance(5)
    outcome = await den.does("bob", edit(seq, "hello"))
    assert (answer(outcome).id, answer(outcome).version, answer(outcome).offset) == (1, 2, 2)
    den.clock.advance(5)
    await den.does("bob", edit(seq, "hello!"))
    (event,) = told(outcome)
    assert event == {
        "type": "message_updated",
        "room_id": "den",
        "offset": 2,
        "data": {
            "id": 1,
            "user_id": "bob",
            "message": "hello",
            "timestamp": "2027-01-15T08:00:00.000Z",
            "client_id": "c1",
            "version": 2,
            "edited_at": "2027-01-15T08:00:05.000Z",
        },
    }
    reply = await den.asks("cy", GetVersions(room_id="den", id=seq))
    assert [(each.version, each.message, each.timestamp[17:19], each.user_id) for each in reply.versions] == [
        (1, "helo", "00", "bob"),
        (2, "hello", "05", "bob"),
        (3, "hello!", "10", "bob"),
    ]
    assert (await shown(den, seq)).message == "hello!"


async def test_the_event_of_an_edit_keeps_no_text(den: World) -> None:
    seq = await say(den, 1, "bob", "secret one")
    await den.does("bob", edit(seq, "secret two"))
    await den.does("bob", remove(seq))
    rows = await everything(den, tables.events)
    assert [(row.type, row.target, row.data) for row in rows] == [
        ("message_updated", 1, "{}"),
        ("message_deleted", 1, "{}"),
    ]


async def test_the_same_text_is_no_edit(den: World) -> None:
    seq = await say(den, 1, "bob", "hello")
    first = await den.does("bob", edit(seq, "hi"))
    again = await den.does("bob", edit(seq, "hi"))
    assert (answer(first).version, answer(again).version, answer(again).offset) == (2, 2, UNSET)
    assert told(again) == []
    assert len(await everything(den, tables.versions)) == 1


@pytest.mark.parametrize("who", ["ann", "mod", "cy"])
async def test_only_the_author_edits(den: World, who: str) -> None:
    seq = await say(den, 1, "bob", "mine")
    assert await refused(den, who, edit(seq, "yours")) == "forbidden"
    assert (await message_row(den, 1, seq)).body == "mine"


async def test_who_may_not_edit(den: World) -> None:
    seq = await say(den, 1, "bob", "mine")
    system = await happens(den, "den", "bob")
    assert await refused(den, "admin", edit(seq, "x"), admin=True) == "forbidden"
    assert await refused(den, "eve", edit(seq, "x")) == "not_found"
    assert await refused(den, "bob", edit(seq, "x"), rooms=("other",)) == "not_found"
    assert await refused(den, "bob", edit(system, "x")) == "forbidden"
    assert await refused(den, "bob", edit(99, "x")) == "not_found"
    await change_member(den, 1, "bob", muted_until=den.now + 1000)
    assert await refused(den, "bob", edit(seq, "x")) == "forbidden"
    await change_member(den, 1, "bob", muted_until=0, history_from=seq)
    assert await refused(den, "bob", edit(seq, "x")) == "not_found"
    await change_member(den, 1, "bob", history_from=0)
    await change_room(den, "den", archived_at=den.now)
    assert await refused(den, "bob", edit(seq, "x")) == "forbidden"
    await change_room(den, "den", archived_at=None)
    await den.does("bob", remove(seq))
    assert await refused(den, "bob", edit(seq, "x")) == "not_found"
    assert await everything(den, tables.versions) == []


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("x" * 101, "too_large"),
        ("", "invalid_message"),
        (" \n\t", "invalid_message"),
        ("a\x00b", "invalid_message"),
        ("a\ud800b", "invalid_message"),
    ],
)
async def test_what_a_message_may_not_say(den: World, text: str, code: str) -> None:
    seq = await say(den, 1, "bob", "hello")
    assert await refused(den, "bob", edit(seq, text)) == code


@pytest.mark.parametrize(
    "text",
    [
        "x" * 100,
        "'; DROP TABLE messages; --",
        "<script>alert(1)</script>",
        "\u202edlrow\u0001\x7f",
        "e" + "\u0301" * 99,
    ],
)
async def test_what_a_message_may_say_stays_as_it_is(den: World, text: str) -> None:
    seq = await say(den, 1, "bob", "hello")
    outcome = await den.does("bob", edit(seq, text))
    assert told(outcome)[0]["data"]["message"] == text
    assert (await shown(den, seq)).message == text


async def upload(it: World, file_id: str = "f1") -> str:
    row = {
        "id": file_id, "room_no": 1, "owner": "bob", "name": "a.txt", "media_type": "text/plain", "size": 1,
        "sha256": "0" * 64, "at": it.now,
    }  # fmt: skip
    await it.store.write(lambda c: c.execute(insert(tables.attachments), row))
    return file_id


async def test_a_message_with_a_file_needs_no_text_and_keeps_the_file(den: World) -> None:
    seq = await say(den, 1, "bob", "look", files=(await upload(den),))
    await den.does("bob", edit(seq, ""))
    message = await shown(den, seq)
    assert message.message == ""
    assert message.files == [FileInfo("f1", "a.txt", "text/plain", 1, "/api/files/f1")]
    assert await refused(den, "bob", edit(seq, "\x00")) == "invalid_message"


def index(connection: Connection) -> None:
    """Make what was said in the den searchable; PostgreSQL does so by itself."""
    if connection.dialect.name == "sqlite":
        search.index(connection, [1])


@pytest.mark.parametrize("indexed", [True, False])
async def test_search_finds_what_a_message_says_now(den: World, indexed: bool) -> None:
    one, two = await say(den, 1, "bob", "apple"), await say(den, 1, "bob", "apple")
    if indexed:
        await den.store.write(index)
    await den.does("bob", edit(one, "banana"))
    await den.does("bob", remove(two))
    await den.store.write(index)
    found = {
        word: [hit.message.id for hit in (await den.asks("cy", Search(query=word))).hits]
        for word in ("apple", "banana")
    }
    assert found == {"apple": [], "banana": [one]}


# -- mentions in edits


async def test_an_edit_that_mentions_somebody_tells_them(den: World) -> None:
    seq = await say(den, 1, "bob", "hello @cy")
    outcome = await den.does("bob", edit(seq, "hello @cy @ann @bob @eve @mod @ann"))
    (mentioned,) = outcome.mentioned
    assert mentioned == ("den", "Den", seq, "bob", "hello @cy @ann @bob @eve @mod @ann", ("ann", "mod"))
    assert await mentions(den) == [("ann", 1), ("cy", 1), ("mod", 1)]
    assert await counts(den, "ann", "bob", "cy", "mod") == [1, 0, 1, 1]
    assert (await shown(den, seq)).mentions == ["cy", "ann", "mod"]
    again = await den.does("bob", edit(seq, "@cy @ann @mod"))
    assert again.mentioned == []
    assert await counts(den, "ann", "bob", "cy", "mod") == [1, 0, 1, 1]


async def test_who_is_not_mentioned_any_more_is_counted_off(den: World) -> None:
    seq = await say(den, 1, "bob", "@ann @cy @mod")
    await say(den, 1, "bob", "@cy again")
    await change_member(den, 1, "ann", read_seq=seq, mention_count=0)
    outcome = await den.does("bob", edit(seq, "nobody"))
    assert outcome.mentioned == []
    assert await mentions(den) == [("cy", 2)]
    assert await counts(den, "ann", "cy", "mod") == [0, 1, 0]
    assert (await shown(den, seq)).mentions is UNSET


async def test_who_has_read_it_is_told_and_not_counted(den: World) -> None:
    seq = await say(den, 1, "bob", "hello")
    await change_member(den, 1, "ann", read_seq=seq)
    await change_member(den, 1, "cy", notify="none")
    await change_member(den, 1, "mod", notify="mentions")
    outcome = await den.does("bob", edit(seq, "@ann @cy @mod"))
    assert outcome.mentioned[0].user_ids == ("ann", "mod")
    assert await counts(den, "ann", "cy", "mod") == [0, 0, 1]


async def test_who_does_not_see_the_message_is_not_mentioned_in_it(den: World) -> None:
    seq = await say(den, 1, "bob", "hello")
    await change_member(den, 1, "cy", history_from=seq)
    outcome = await den.does("bob", edit(seq, "hello @cy"))
    assert outcome.mentioned == []
    assert await mentions(den) == []
    everybody = await den.does("bob", edit(seq, "hello @room"))
    assert everybody.mentioned[0].user_ids == ("ann", "mod")
    assert await counts(den, "ann", "bob", "cy", "mod") == [1, 0, 0, 1]


async def test_an_edit_may_call_all_and_take_it_back(den: World) -> None:
    seq = await say(den, 1, "bob", "hello @cy")
    outcome = await den.does("bob", edit(seq, "hello @cy and @room"))
    assert outcome.mentioned[0].user_ids == ("ann", "mod")  # cy was told before
    assert await mentions(den) == [("@room", 1), ("cy", 1)]
    assert await counts(den, "ann", "bob", "cy", "mod") == [1, 0, 1, 1]
    outcome = await den.does("bob", edit(seq, "hello @room and @ann"))
    assert outcome.mentioned == []
    assert await counts(den, "ann", "bob", "cy", "mod") == [1, 0, 1, 1]
    await den.does("bob", edit(seq, "hello @ann"))
    assert await mentions(den) == [("ann", 1)]
    assert await counts(den, "ann", "bob", "cy", "mod") == [1, 0, 0, 0]


@pytest.mark.parametrize("values", [{"kind": "large"}, {"member_count": 101}, {"kind": "broadcast"}])
async def test_in_a_large_room_only_moderators_call_all(den: World, values: dict[str, Any]) -> None:
    seqs = [await say(den, 1, who, "hello") for who in ("bob", "mod", "ann")]
    await change_room(den, "den", **values)
    outcomes = [await den.does(who, edit(seq, "@room")) for who, seq in zip(("bob", "mod", "ann"), seqs, strict=True)]
    assert [bool(each.mentioned) for each in outcomes] == [False, True, True]
    assert "mentions" not in told(outcomes[0])[0]["data"]
    assert await mentions(den) == [("@room", 2), ("@room", 3)]


async def test_as_many_are_mentioned_as_the_settings_say(database_url: str) -> None:
    async with world(database_url, max_mentions=2) as it:
        await make_room(it, people=("ann", "bob", "cy", "di"))
        seq = await say(it, 1, "ann", "hello")
        outcome = await it.does("ann", edit(seq, "@bob @cy @di"))
        assert outcome.mentioned[0].user_ids == ("bob", "cy")


async def test_who_is_mentioned_in_a_thread_follows_it(den: World) -> None:
    root = await say(den, 1, "ann", "root")
    seq = await say(den, 1, "bob", "reply", thread=root)
    await den.does("bob", edit(seq, "reply @cy @room @ann"))
    rows = await everything(den, tables.followers)
    assert [(row.user_id, row.read_count) for row in rows] == [("ann", 0), ("bob", 1), ("cy", 0)]


# -- versions


async def test_who_reads_versions(den: World) -> None:
    seq = await say(den, 1, "bob", "one")
    await den.does("bob", edit(seq, "two"))
    ask = GetVersions(room_id="den", id=seq)
    assert len((await den.asks("admin", ask, admin=True)).versions) == 2
    assert await refused(den, "eve", ask) == "not_found"
    assert await refused(den, "cy", GetVersions(room_id="den", id=7)) == "not_found"
    await change_member(den, 1, "cy", history_from=seq)
    assert await refused(den, "cy", ask) == "not_found"
    await den.does("bob", remove(seq))
    assert await refused(den, "ann", ask) == "not_found"


async def test_a_system_message_does_not_show_how_it_is_kept(den: World) -> None:
    seq = await happens(den, "den")
    (version,) = (await den.asks("ann", GetVersions(room_id="den", id=seq))).versions
    assert version.message == ""


# -- deleting


async def test_of_a_deleted_message_only_its_place_is_left(den: World) -> None:
    seq = await say(den, 1, "bob", "hello @cy", client_id="c1", files=(await upload(den),))
    await den.does("bob", edit(seq, "hello @cy @ann"))
    await den.does("ann", React(room_id="den", id=seq, emoji="👍"))
    await den.does("ann", PinMessage(room_id="den", id=seq))
    den.clock.advance(1)
    outcome = await den.does("bob", remove(seq))
    assert told(outcome) == [
        {
            "type": "message_deleted",
            "room_id": "den",
            "offset": answer(outcome).offset,
            "data": {
                "id": 1,
                "user_id": "bob",
                "message": "",
                "timestamp": "2027-01-15T08:00:00.000Z",
                "client_id": "c1",
                "version": 2,
                "edited_at": "2027-01-15T08:00:00.000Z",
                "deleted_at": "2027-01-15T08:00:01.000Z",
                "deleted_by": "bob",
            },
        }
    ]
    assert [each.room.pin_count for each in outcome.changed] == [0]
    for table in (tables.versions, tables.reactions, tables.pins, tables.mentions, tables.audit):
        assert await everything(den, table) == []
    (file,) = await everything(den, tables.attachments)
    assert (file.owner, file.message) == ("", 0)  # its bytes are to be removed, and nobody sees it any more
    row = await message_row(den, 1, seq)
    assert (row.body, row.extra, row.number) == ("", None, 1)
    assert await counts(den, "ann", "cy") == [0, 0]
    (room,) = await everything(den, tables.rooms)
    assert (room.pin_count, room.message_count) == (0, 1)


async def test_deleting_twice_is_deleting_once(den: World) -> None:
    seq = await say(den, 1, "bob", "hello @cy")
    await say(den, 1, "bob", "and @cy again")
    await den.does("mod", remove(seq))
    for who in ("mod", "bob"):
        again = await den.does(who, remove(seq))
        assert (answer(again).room_id, answer(again).offset, told(again)) == ("den", UNSET, [])
    assert await counts(den, "cy") == [1]
    assert len(await everything(den, tables.audit)) == 1
    assert (await message_row(den, 1, seq)).deleted_by == "mod"


async def test_only_who_has_not_read_it_is_counted_off(den: World) -> None:
    seq = await say(den, 1, "bob", "hello @room @cy")
    await say(den, 1, "bob", "@ann @cy @mod")
    await change_member(den, 1, "ann", read_seq=seq, mention_count=1)
    await change_member(den, 1, "mod", notify="none", mention_count=0)
    await den.does("bob", remove(seq))
    assert await counts(den, "ann", "bob", "cy", "mod") == [1, 0, 1, 0]


@pytest.mark.parametrize(
    ("who", "options", "code"),
    [
        ("ann", {}, None),
        ("mod", {}, None),
        ("bob", {}, None),
        ("root", {"admin": True}, None),
        ("", {"admin": True}, None),
        ("cy", {}, "forbidden"),
        ("eve", {}, "not_found"),
        ("ann", {"rooms": ("other",)}, "not_found"),
    ],
)
async def test_who_deletes(den: World, who: str, options: dict[str, Any], code: str | None) -> None:
    seq = await say(den, 1, "bob", "hello")
    if code is not None:
        assert await refused(den, who, remove(seq), **options) == code
        assert await refused(den, who, remove(99), **options) == "not_found"
        assert (await message_row(den, 1, seq)).body == "hello"
        return
    await den.does(who, remove(seq, "rude"), **options)
    assert (await message_row(den, 1, seq)).deleted_by == (who or None)
    rows = await everything(den, tables.audit)
    if who == "bob":
        assert rows == []
        return
    (row,) = rows
    assert (row.act, row.room_no, row.target_user, row.data) == ("delete_message", 1, "bob", '{"reason":"rude"}')
    assert (row.by, row.target_message) == (who or "(api key)", key_of(1, seq))


async def test_in_an_archived_room_only_moderators_delete(den: World) -> None:
    theirs, own = await say(den, 1, "bob", "hello"), await say(den, 1, "mod", "hello")
    await change_room(den, "den", archived_at=den.now)
    assert await refused(den, "bob", remove(theirs)) == "forbidden"
    await den.does("mod", remove(theirs))
    await den.does("mod", remove(own))
    rows = await everything(den, tables.audit)
    assert [row.target_user for row in rows] == ["bob", "mod"]


async def test_in_a_direct_room_everybody_deletes_their_own(den: World) -> None:
    no = await make_room(den, "two", ("ann", "bob"), visibility="direct")
    seq = await say(den, no, "bob", "hello")
    assert await refused(den, "ann", remove(seq, room_id="two")) == "forbidden"
    await den.does("bob", remove(seq, room_id="two"))


async def test_system_messages_are_moderated(den: World) -> None:
    seq = await happens(den, "den", "bob")
    assert await refused(den, "bob", remove(seq)) == "forbidden"
    outcome = await den.does("mod", remove(seq))
    assert "system" not in told(outcome)[0]["data"]


async def test_what_came_before_a_member_is_not_there_to_delete(den: World) -> None:
    seq = await say(den, 1, "bob", "hello")
    await change_member(den, 1, "mod", history_from=seq)
    assert await refused(den, "mod", remove(seq)) == "not_found"


async def test_a_deleted_reply_still_counts_and_a_thread_outlives_its_root(den: World) -> None:
    root = await say(den, 1, "ann", "root")
    reply = await say(den, 1, "bob", "reply", thread=root)
    await den.does("bob", remove(reply))
    await den.does("ann", remove(root))
    (thread,) = await everything(den, tables.threads)
    assert thread.reply_count == 1
    page = await den.asks("cy", GetMessages(room_id="den", thread=root))
    assert [(each.id, each.deleted_by) for each in page.messages] == [(reply, "bob")]


async def test_in_a_live_room_there_is_nothing_to_do(den: World) -> None:
    await make_room(den, "now", ("ann",), kind="live", visibility="public")
    for ask in (
        edit(1, "x", "now"), remove(1, "", "now"), React(room_id="now", id=1, emoji="👍"), PinMessage(room_id="now", id=1),
        ListPins(room_id="now"), GetVersions(room_id="now", id=1),
    ):  # fmt: skip
        assert await refused(den, "ann", ask) == "forbidden"


# -- reactions


def reaction(seq: int, emoji: str = "👍") -> React:
    return React(room_id="den", id=seq, emoji=emoji)


def no_reaction(seq: int, emoji: str = "👍") -> Unreact:
    return Unreact(room_id="den", id=seq, emoji=emoji)


async def test_reactions_come_and_go(den: World) -> None:
    seq = await say(den, 1, "bob", "hello")
    first = await den.does("ann", reaction(seq))
    second = await den.does("cy", reaction(seq))
    third = await den.does("ann", no_reaction(seq))
    assert [each["data"] for outcome in (first, second, third) for each in told(outcome)] == [
        {"id": 1, "emoji": "👍", "user_id": "ann", "added": True, "count": 1},
        {"id": 1, "emoji": "👍", "user_id": "cy", "added": True, "count": 2},
        {"id": 1, "emoji": "👍", "user_id": "ann", "added": False, "count": 1},
    ]
    assert [answer(each).offset for each in (first, second, third)] == [2, 3, 4]
    assert (await shown(den, seq, "cy")).reactions == [ReactionInfo("👍", 1, me=True)]
    assert (await shown(den, seq, "ann")).reactions == [ReactionInfo("👍", 1)]
    (row, *_) = await everything(den, tables.events)
    assert (row.type, row.target) == ("reaction", 1)
    assert '"count":1' in row.data
    last = await den.does("cy", no_reaction(seq))
    assert told(last)[0]["data"]["count"] == 0
    assert (await shown(den, seq, "cy")).reactions is UNSET


async def test_the_same_reaction_again_changes_nothing(den: World) -> None:
    seq = await say(den, 1, "bob", "hello")
    await den.does("ann", reaction(seq))
    for ask in (reaction(seq), no_reaction(seq, "🎉")):
        again = await den.does("ann", ask)
        assert (answer(again).offset, told(again)) == (UNSET, [])
    assert len(await everything(den, tables.events)) == 1


async def test_so_many_different_reactions(den: World) -> None:
    seq = await say(den, 1, "bob", "hello")
    for emoji in ("1", "2", "3"):
        await den.does("ann", reaction(seq, emoji))
    assert await refused(den, "ann", reaction(seq, "4")) == "too_many"
    await den.does("cy", reaction(seq, "3"))
    await den.does("ann", reaction(seq, "3"))
    await den.does("ann", no_reaction(seq, "1"))
    await den.does("ann", reaction(seq, "4"))


@pytest.mark.parametrize(
    "emoji",
    [
        "👍",
        "👍🏽",
        "👨‍👩‍👧‍👦",
        "❤️",
        "1️⃣",
        "🏴\U000e0067\U000e0062\U000e0065\U000e006e\U000e0067\U000e007f",
        ":party_parrot:",
        "x" * 64,
    ],
)
async def test_what_is_a_reaction(den: World, emoji: str) -> None:
    seq = await say(den, 1, "bob", "hello")
    await den.does("ann", reaction(seq, emoji))
    assert (await shown(den, seq)).reactions == [ReactionInfo(emoji, 1, me=True)]


@pytest.mark.parametrize(
    "emoji", [" ", "a b", "a\n", "\x00", "\u202ea", "\u00a0", "\u200b", "\u200d", "\ufe0f", "\x7f", "\u2066", "\ud83d"]
)
async def test_what_is_no_reaction(den: World, emoji: str) -> None:
    seq = await say(den, 1, "bob", "hello")
    for ask in (reaction(seq, emoji), no_reaction(seq, emoji)):
        assert await refused(den, "ann", ask) == "invalid_message"


async def test_who_reacts(den: World) -> None:
    seq = await say(den, 1, "bob", "hello")
    await den.does("ann", reaction(seq))
    for ask in (reaction(seq), no_reaction(seq)):
        assert await refused(den, "eve", ask) == "not_found"
        assert await refused(den, "", ask, admin=True) == "invalid_message"
    await change_member(den, 1, "cy", muted_until=den.now + 1)
    assert await refused(den, "cy", reaction(seq)) == "forbidden"
    await change_member(den, 1, "cy", muted_until=0, history_from=seq)
    assert await refused(den, "cy", reaction(seq)) == "not_found"
    await change_room(den, "den", archived_at=den.now)
    assert await refused(den, "ann", no_reaction(seq)) == "forbidden"
    await change_room(den, "den", archived_at=None)
    await den.does("bob", remove(seq))
    assert await refused(den, "ann", reaction(seq)) == "not_found"
    assert await refused(den, "ann", no_reaction(seq)) == "not_found"


# -- pins


def pins(seq: int) -> PinMessage:
    return PinMessage(room_id="den", id=seq)


def unpins(seq: int) -> UnpinMessage:
    return UnpinMessage(room_id="den", id=seq)


async def test_pins_are_told_and_listed(den: World) -> None:
    one, two = await say(den, 1, "bob", "one"), await say(den, 1, "bob", "two")
    outcome = await den.does("cy", pins(two))
    assert told(outcome) == [
        {"type": "pinned", "room_id": "den", "offset": 3, "data": {"id": two, "pinned": True, "user_id": "cy"}},
        {
            "type": "message",
            "room_id": "den",
            "data": {
                "id": 4,
                "user_id": "cy",
                "message": "",
                "timestamp": "2027-01-15T08:00:00.000Z",
                "number": 2,
                "system": {"event": "pinned", "user_id": "cy", "id": two},
            },
        },
    ]
    assert answer(outcome).offset == 3
    assert [each.room.pin_count for each in outcome.changed] == [1]
    den.clock.advance(1)
    await den.does("cy", pins(one))
    listed = await den.asks("ann", ListPins(room_id="den"))
    assert [(each.id, each.message, each.pinned) for each in listed.messages] == [
        (one, "one", True),
        (two, "two", True),
    ]
    await den.does("ann", unpins(one))
    assert [each.id for each in (await den.asks("ann", ListPins(room_id="den"))).messages] == [two]
    assert not (await shown(den, one)).pinned
    assert (await shown(den, two)).pinned


async def test_pinning_twice_is_pinning_once(den: World) -> None:
    seq = await say(den, 1, "bob", "one")
    await den.does("ann", pins(seq))
    again = await den.does("bob", pins(seq))
    assert (answer(again).offset, told(again), again.changed) == (UNSET, [], [])
    await den.does("ann", unpins(seq))
    again = await den.does("bob", unpins(seq))
    assert (answer(again).offset, told(again), again.changed) == (UNSET, [], [])
    (room,) = await everything(den, tables.rooms)
    assert room.pin_count == 0
    said = [row.body for row in await everything(den, tables.messages) if row.kind]
    assert len(said) == 2
    assert '"unpinned"' in said[1]


async def test_so_many_pins(den: World) -> None:
    seqs = [await say(den, 1, "bob", "one") for _ in range(3)]
    for seq in seqs[:2]:
        await den.does("ann", pins(seq))
    assert await refused(den, "ann", pins(seqs[2])) == "too_many"
    await den.does("ann", pins(seqs[1]))
    await den.does("bob", remove(seqs[0]))
    await den.does("ann", pins(seqs[2]))
    assert [each.id for each in (await den.asks("ann", ListPins(room_id="den"))).messages] == [seqs[2], seqs[1]]


async def test_who_pins(den: World) -> None:
    seq, system = await say(den, 1, "bob", "one"), await happens(den, "den")
    for ask in (pins(seq), unpins(seq), ListPins(room_id="den")):
        assert await refused(den, "eve", ask) == "not_found"
    assert await refused(den, "ann", pins(system)) == "forbidden"
    assert await refused(den, "ann", pins(99)) == "not_found"
    for values in ({"visibility": "public"}, {"kind": "large"}, {"kind": "broadcast"}):
        await change_room(den, "den", **{"visibility": "private", "kind": "group", **values})
        assert await refused(den, "cy", pins(seq)) == "forbidden"
        assert await refused(den, "cy", unpins(seq)) == "forbidden"
        await den.does("mod", pins(seq))
        await den.does("mod", unpins(seq))
    await change_member(den, 1, "mod", history_from=seq)
    assert await refused(den, "mod", pins(seq)) == "not_found"
    await den.does("ann", pins(seq))
    assert (await den.asks("mod", ListPins(room_id="den"))).messages == []
    await change_room(den, "den", archived_at=den.now)
    assert await refused(den, "ann", unpins(seq)) == "forbidden"
    await change_room(den, "den", archived_at=None)
    await den.does("bob", remove(seq))
    assert await refused(den, "ann", pins(seq)) == "not_found"


async def test_two_rooms_do_not_meet(den: World) -> None:
    no = await make_room(den, "attic", ("ann", "bob"))
    here, there = await say(den, 1, "bob", "here @ann"), await say(den, no, "bob", "there @ann")
    assert here == there
    await den.does("ann", pins(here))
    await den.does("ann", reaction(here))
    assert (await den.asks("ann", ListPins(room_id="attic"))).messages == []
    await den.does("bob", remove(there, room_id="attic"))
    assert (await shown(den, here)).reactions == [ReactionInfo("👍", 1, me=True)]
    assert [(await member_row(den, each, "ann")).mention_count for each in (1, no)] == [1, 0]
    t = tables.mentions.c
    assert [row.message for row in await den.sql(select(t.message))] == [key_of(1, here)]
