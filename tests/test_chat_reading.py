"""Reading: pages of messages, read marks and receipts, threads, mentions, who was last seen when."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import pytest
from msgspec import UNSET
from sqlalchemy import Connection, event, insert

from hubbub.auth import Grants
from hubbub.errors import ClientError, ErrorCode
from hubbub.features.chat import reading, tables, timeline
from hubbub.features.chat.access import Caller
from hubbub.features.chat.asks import (
    DeleteMessage,
    EditMessage,
    GetLastSeen,
    GetMessages,
    ListMentions,
    ListReceipts,
    ListThreads,
    MarkRead,
    PinMessage,
    React,
)
from hubbub.features.chat.reading import note_last_seen
from hubbub.features.chat.tells import ReactionInfo, ReadMark, Receipt, ThreadInfo
from hubbub.features.chat.tx import Tx
from hubbub.messages import ClientMessage, Position
from tests.chat_rows import answer, change_member, change_room, everything, happens, make_room, member_row, say
from tests.chat_support import World, told, world

pytestmark = pytest.mark.anyio
COMMANDS = (timeline.edit_message, reading.get_messages)
"""Importing them declares them."""


@pytest.fixture
async def den(database_url: str) -> AsyncIterator[World]:
    """A world with the private group room `den` (number 1): ann owns it, mod is a moderator, bob and cy are members."""
    async with world(database_url, group_limit=4) as it:
        assert await make_room(it, people=("ann", "mod:mod", "bob", "cy")) == 1
        yield it


def tx_of(it: World, connection: Connection, user_id: str = "ann") -> Tx:
    return Tx(connection, Caller(user_id, Grants()), it.now, it.settings, writes=False)


@contextmanager
def heard(connection: Connection) -> Iterator[list[tuple[str, Any]]]:
    """The statements that are executed meanwhile, with their values."""
    found: list[tuple[str, Any]] = []

    def listen(_connection: Any, _cursor: Any, statement: str, values: Any, _context: Any, _many: bool) -> None:
        found.append((statement, values))

    event.listen(connection.engine, "before_cursor_execute", listen)
    try:
        yield found
    finally:
        event.remove(connection.engine, "before_cursor_execute", listen)


async def refused(it: World, user_id: str, message: ClientMessage, **options: Any) -> ErrorCode | str:
    with pytest.raises(ClientError) as caught:
        await it.does(user_id, message, **options)
    return caught.value.code


def get(asked: dict[str, Any], room_id: str = "den") -> GetMessages:
    return GetMessages(room_id=room_id, **asked)


async def page(it: World, user_id: str = "ann", **asked: Any) -> tuple[list[int], bool, bool]:
    reply = await it.asks(user_id, get(asked))
    return [each.id for each in reply.messages], reply.before, reply.after


async def react(it: World, seq: int, emoji: str = "👍", user_id: str = "ann") -> None:
    await it.does(user_id, React(room_id="den", id=seq, emoji=emoji))


# -- pages of messages


async def test_an_empty_room(den: World) -> None:
    wanted: tuple[dict[str, Any], ...] = ({}, {"before": 1}, {"before": 99}, {"after": 0}, {"after": 99})
    for asked in wanted:
        assert await page(den, **asked) == ([], False, False)
    assert await refused(den, "ann", GetMessages(room_id="den", around=1)) == "not_found"


async def test_pages_of_a_room(den: World) -> None:
    for number in range(5):  # 1 3 5 7 9 are messages, the others reactions
        seq = await say(den, 1, "bob", f"m{number}")
        await react(den, seq)
    assert await page(den) == ([1, 3, 5, 7, 9], False, False)
    assert await page(den, limit=5) == ([1, 3, 5, 7, 9], False, False)
    assert await page(den, limit=2) == ([7, 9], True, False)
    assert await page(den, before=7, limit=2) == ([3, 5], True, True)
    assert await page(den, before=6, limit=2) == ([3, 5], True, True)
    assert await page(den, before=5, limit=2) == ([1, 3], False, True)
    assert await page(den, before=1) == ([], False, True)
    assert await page(den, before=10) == ([1, 3, 5, 7, 9], False, False)
    assert await page(den, before=2**36 - 1, limit=1) == ([9], True, False)
    assert await page(den, after=0, limit=2) == ([1, 3], False, True)
    assert await page(den, after=3, limit=2) == ([5, 7], True, True)
    assert await page(den, after=4, limit=3) == ([5, 7, 9], True, False)
    assert await page(den, after=9) == ([], True, False)
    assert await page(den, after=2**53) == ([], True, False)
    assert await page(den, around=5, limit=1) == ([5], True, True)
    assert await page(den, around=5, limit=2) == ([3, 5], True, True)
    assert await page(den, around=5, limit=3) == ([3, 5, 7], True, True)
    assert await page(den, around=1, limit=3) == ([1, 3], False, True)
    assert await page(den, around=9, limit=3) == ([7, 9], True, False)
    assert await page(den, around=5) == ([1, 3, 5, 7, 9], False, False)


async def test_all_that_belongs_to_a_message_comes_with_it(den: World) -> None:
    first = await say(den, 1, "bob", "one")
    await say(den, 1, "cy", "answer", thread=first)
    second = await say(den, 1, "bob", "two", reply_to=first)
    await react(den, first, "👍", "ann")
    await react(den, first, "👍", "cy")
    den.clock.advance(1)
    await react(den, first, "🎉", "cy")
    await den.does("ann", PinMessage(room_id="den", id=second))
    reply = await den.asks("ann", GetMessages(room_id="den"))
    one, two, pinned = reply.messages
    assert one.reactions == [ReactionInfo("👍", 2, me=True), ReactionInfo("🎉", 1)]
    assert (one.replies.replies, one.replies.last_id, one.replies.unread) == (1, 2, UNSET)
    assert (two.reply_to, two.number, two.pinned, two.reactions) == (first, 2, True, UNSET)
    assert pinned.system == {"event": "pinned", "user_id": "ann", "id": second}
    assert reply.position == Position("epoch-den", 8)
    assert reply.thread is None


async def test_a_room_s_pages_leave_its_threads_out(den: World) -> None:
    first, second = await say(den, 1, "ann", "one"), await say(den, 1, "ann", "two")
    replies = [await say(den, 1, "bob", "reply", thread=first) for _ in range(3)]
    other = await say(den, 1, "bob", "reply", thread=second)
    last = await say(den, 1, "ann", "three")
    assert await page(den) == ([first, second, last], False, False)
    assert await page(den, before=last, limit=1) == ([second], True, True)
    assert await page(den, after=second, limit=1) == ([last], True, False)
    assert await page(den, around=second, limit=2) == ([first, second], False, True)
    assert await page(den, thread=first) == (replies, False, False)
    assert await page(den, thread=first, limit=2) == (replies[1:], True, False)
    assert await page(den, thread=first, before=replies[1], limit=2) == (replies[:1], False, True)
    assert await page(den, thread=first, after=replies[0], limit=1) == (replies[1:2], True, True)
    assert await page(den, thread=first, around=replies[1], limit=3) == (replies, False, False)
    assert await page(den, thread=second) == ([other], False, False)
    assert await page(den, thread=last) == ([], False, False)
    reply = await den.asks("ann", GetMessages(room_id="den", thread=replies[1]))
    assert (reply.thread, len(reply.messages)) == (first, 3)
    assert await refused(den, "ann", GetMessages(room_id="den", around=other)) == "not_found"
    assert await refused(den, "ann", GetMessages(room_id="den", around=other, thread=first)) == "not_found"
    assert await refused(den, "ann", GetMessages(room_id="den", thread=99)) == "not_found"


async def test_who_came_later_sees_what_came_later(den: World) -> None:
    seqs = [await say(den, 1, "ann", f"m{number}") for number in range(4)]
    reply = await say(den, 1, "ann", "reply", thread=seqs[0])
    await change_member(den, 1, "cy", history_from=2)
    for asked in ({}, {"after": 0}, {"after": 1}, {"after": 2}, {"before": 9}, {"around": 3}, {"around": 4}):
        assert await page(den, "cy", **asked) == ([3, 4], False, False)
    assert await page(den, "cy", limit=1) == ([4], True, False)
    assert await page(den, "cy", before=3) == ([], False, True)
    assert await page(den, "cy", before=2) == ([], False, True)
    assert await page(den, "cy", before=1) == ([], False, True)
    for ask in ({"around": 2}, {"thread": seqs[0]}, {"thread": reply, "around": seqs[0]}):
        assert await refused(den, "cy", get(ask)) == "not_found"


async def test_who_reads_pages(den: World) -> None:
    await say(den, 1, "ann", "hello")
    ask = GetMessages(room_id="den")
    assert len((await den.asks("root", ask, admin=True)).messages) == 1
    assert len((await den.asks("", ask, admin=True)).messages) == 1
    assert await refused(den, "eve", ask) == "not_found"
    assert await refused(den, "ann", ask, rooms=("attic",)) == "not_found"
    assert await refused(den, "ann", GetMessages(room_id="none")) == "not_found"
    await change_room(den, "den", visibility="public")
    assert await refused(den, "eve", ask) == "not_joined"
    await change_room(den, "den", archived_at=1)
    assert await page(den) == ([1], False, False)
    await make_room(den, "now", (), kind="live", visibility="public")
    assert await refused(den, "ann", GetMessages(room_id="now")) == "forbidden"
    for two in ({"before": 1, "after": 1}, {"around": 1, "after": 1}, {"before": 1, "around": 1}):
        assert await refused(den, "ann", get(two)) == "invalid_message"


async def test_rooms_beside_one_another_do_not_mix(den: World) -> None:
    no = await make_room(den, "attic", ("ann",))
    for number in range(3):
        await say(den, 1, "ann", f"den {number}")
        await say(den, no, "ann", f"attic {number}")
    for room_id in ("den", "attic"):
        for asked in ({}, {"after": 0}, {"before": 99}, {"around": 2}):
            reply = await den.asks("ann", get(asked, room_id))
            assert [each.message for each in reply.messages] == [f"{room_id} {number}" for number in range(3)]
            assert (reply.before, reply.after) == (False, False)


async def test_paging_either_way_meets_every_message_once(den: World) -> None:
    luck = random.Random(4)
    seqs: list[int] = []
    for _ in range(40):
        seq = await say(den, 1, "ann", "m", thread=luck.choice(seqs) if seqs and luck.random() < 0.3 else None)
        seqs.append(seq)
        if luck.random() < 0.3:
            await react(den, seq)
    whole, *_ = await page(den, limit=200)
    assert 10 < len(whole) < 40
    for limit in (1, 3, 7, len(whole)):
        found: list[int] = []
        more, at = True, 0
        while more:
            some, before, more = await page(den, after=at, limit=limit)
            assert before == bool(found)
            found += some
            at = found[-1]
        assert found == whole
        found, more, at = [], True, 2**36 - 1
        while more:
            some, more, after = await page(den, before=at, limit=limit)
            assert after == bool(found)
            found = some + found
            at = found[0]
        assert found == whole
        for seq in whole:
            some, before, after = await page(den, around=seq, limit=limit)
            at = whole.index(seq)
            low, high = max(0, at - limit // 2), at + limit - limit // 2
            assert (some, before, after) == (whole[low:high], low > 0, high < len(whole))


async def test_a_page_is_found_by_key_alone(den: World) -> None:
    """The plans of SQLite: the rows of a page are never sorted, and never all looked at."""
    if den.store.engine.name != "sqlite":
        pytest.skip("the plans are SQLite's")
    root = await say(den, 1, "ann", "root")
    await say(den, 1, "ann", "reply", thread=root)
    plans: list[str] = []

    def ask(message: GetMessages, connection: Connection) -> None:
        with heard(connection) as statements:
            reading.get_messages(tx_of(den, connection), message)
        for statement, values in statements:
            if "FROM messages" in statement:
                rows = connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {statement}", values).all()
                plans.append(" / ".join(row[3] for row in rows))

    for asked in ({}, {"before": 2}, {"after": 1}, {"around": 1}):
        await den.store.read(partial(ask, get(asked)))
    assert set(plans) == {"SEARCH messages USING INTEGER PRIMARY KEY (rowid>? AND rowid<?)"}
    plans.clear()
    await den.store.read(partial(ask, GetMessages(room_id="den", thread=root, before=2)))
    assert (
        plans[1:] == ["SEARCH messages USING INDEX ix_messages_thread (room_no=? AND thread=? AND key>? AND key<?)"] * 2
    )


# -- read marks


def read(seq: int, thread: int | None = None, room_id: str = "den") -> MarkRead:
    return MarkRead(room_id=room_id, id=seq, thread=thread)


async def test_a_mark_moves_and_is_told(den: World) -> None:
    for number in range(4):
        await say(den, 1, "bob", f"m{number} @ann" if number else "m0")
    outcome = await den.does("ann", read(2))
    ack = answer(outcome)
    assert (ack.room_id, ack.read, ack.unread, ack.mentions, ack.thread) == ("den", 2, 2, 2, None)
    assert outcome.personal == [("ann", ReadMark("den", 2, 2, 2))]
    assert outcome.passing == [("den", Receipt("den", "ann", 2))]
    assert told(outcome) == []
    assert outcome.changed == []
    row = await member_row(den, 1, "ann")
    assert (row.read_seq, row.read_count, row.mention_count) == (2, 2, 2)


async def test_a_mark_never_goes_back(den: World) -> None:
    for _ in range(3):
        await say(den, 1, "bob", "@ann")
    await den.does("ann", read(2))
    for seq in (1, 2):
        outcome = await den.does("ann", read(seq))
        ack = answer(outcome)
        assert (ack.read, ack.unread, ack.mentions) == (2, 1, 1)
        assert (outcome.personal, outcome.passing) == ([], [])
    assert (await member_row(den, 1, "ann")).read_seq == 2


async def test_reading_what_is_no_message_is_reading_the_one_before(den: World) -> None:
    seq = await say(den, 1, "bob", "one")
    await react(den, seq)
    await react(den, seq, "🎉")
    reply = await say(den, 1, "bob", "reply @ann", thread=seq)
    await say(den, 1, "bob", "two")
    for at, (mark, unread, mentioned) in {2: (1, 1, 1), 3: (1, 1, 1), 4: (reply, 1, 0), 5: (5, 0, 0)}.items():
        ack = answer(await den.does("ann", read(at)))
        assert (ack.read, ack.unread, ack.mentions) == (mark, unread, mentioned)
    system = await happens(den, "den")
    ack = answer(await den.does("ann", read(system)))
    assert (ack.read, ack.unread) == (system, 0)
    assert await refused(den, "ann", read(system + 1)) == "not_found"


async def test_before_the_first_message_there_is_nothing_to_read(den: World) -> None:
    await change_room(den, "den", event_seq=3)
    outcome = await den.does("ann", read(3))
    assert (answer(outcome).read, outcome.personal) == (0, [])


async def test_reading_what_is_gone_for_its_age(den: World) -> None:
    for _ in range(4):
        await say(den, 1, "bob", "old")
    t = tables.messages.c
    await den.store.write(lambda c: c.execute(tables.messages.delete().where(t.key <= tables.key_of(1, 3))))
    await change_room(den, "den", trimmed_seq=3)
    ack = answer(await den.does("ann", read(2)))
    assert (ack.read, ack.unread) == (2, 1)  # one too few is better than one that can never be read
    ack = answer(await den.does("ann", read(3)))
    assert (ack.read, ack.unread) == (3, 1)
    await den.store.write(lambda c: c.execute(tables.messages.delete()))
    ack = answer(await den.does("ann", read(4)))
    assert (ack.read, ack.unread) == (4, 0)


async def test_what_counts_as_an_unread_mention(den: World) -> None:
    await change_member(den, 1, "cy", history_from=1)
    await say(den, 1, "bob", "@ann @room")  # 1
    await say(den, 1, "bob", "@ann @cy @room")  # 2: once, though by name and by @room
    await say(den, 1, "ann", "@room")  # 3: one's own is none
    await say(den, 1, "bob", "@mod @room")  # 4
    no = await make_room(den, "attic", ("ann", "bob"))
    await say(den, no, "bob", "@ann @room")
    await change_member(den, 1, "ann", read_seq=0, read_count=0)
    assert answer(await den.does("ann", read(1))).mentions == 2
    assert answer(await den.does("cy", read(2))).mentions == 2
    await change_member(den, 1, "mod", notify="none", mention_count=3)
    assert answer(await den.does("mod", read(1))).mentions == 0
    assert answer(await den.does("ann", read(4))).mentions == 0
    assert (await member_row(den, no, "ann")).mention_count == 1


async def test_the_count_of_mentions_is_the_same_however_it_came_about(den: World) -> None:
    """What sending, editing and deleting count one by one is what reading counts at once."""
    luck = random.Random(11)
    people = ("ann", "mod", "bob", "cy")
    seqs: list[tuple[str, int]] = []
    words = ("@ann", "@mod", "@bob", "@cy", "@room", "so")
    for _ in range(60):
        who, text = luck.choice(people), " ".join(luck.sample(words, 2))
        what = luck.random()
        if what < 0.4 or not seqs:
            thread = luck.choice(seqs)[1] if seqs and luck.random() < 0.3 else None
            seqs.append((who, await say(den, 1, who, text, thread=thread)))
        elif what < 0.6:
            author, seq = luck.choice(seqs)
            await den.does(author, EditMessage(room_id="den", id=seq, message=text))
        elif what < 0.75:
            author, seq = seqs.pop(luck.randrange(len(seqs)))
            await den.does(author, DeleteMessage(room_id="den", id=seq))
        else:
            await den.does(who, read(luck.choice(seqs)[1]))

    def counted(connection: Connection) -> list[tuple[str, int, int]]:
        found = []
        for who in people:
            tx = tx_of(den, connection, who)
            room, member = tx.look("den")
            assert member is not None
            found.append((who, member.mention_count, reading.unread_mentions(tx, room, member, member.read_seq)))
        return found

    rows = await den.store.read(counted)
    assert [(who, kept) for who, kept, _ in rows] == [(who, right) for who, _, right in rows]
    assert any(kept for _, kept, _ in rows)


async def test_only_small_groups_hear_of_receipts(den: World) -> None:
    await say(den, 1, "bob", "one")
    for values in ({"member_count": 5}, {"kind": "large"}, {"kind": "broadcast"}):
        await change_room(den, "den", **{"member_count": 4, "kind": "group", **values})
        await change_member(den, 1, "ann", read_seq=0)
        outcome = await den.does("ann", read(1))
        assert outcome.passing == []
        assert len(outcome.personal) == 1
        assert await refused(den, "ann", ListReceipts(room_id="den")) == "forbidden"


async def test_who_marks(den: World) -> None:
    await say(den, 1, "bob", "one")
    assert await refused(den, "eve", read(1)) == "not_found"
    assert await refused(den, "root", read(1), admin=True) == "not_joined"
    assert await refused(den, "", read(1), admin=True) == "not_joined"
    await change_room(den, "den", archived_at=1)
    assert answer(await den.does("ann", read(1))).unread == 0
    await make_room(den, "now", ("ann",), kind="live")
    assert await refused(den, "ann", read(1, room_id="now")) == "forbidden"


async def test_receipts(den: World) -> None:
    for _ in range(2):
        await say(den, 1, "bob", "one")
    await den.does("ann", read(1))
    reply = await den.asks("cy", ListReceipts(room_id="den"))
    assert reply.receipts == {"ann": 1, "bob": 2, "cy": 0, "mod": 0}
    assert await refused(den, "eve", ListReceipts(room_id="den")) == "not_found"


# -- threads


async def test_a_thread_has_marks_of_its_own(den: World) -> None:
    root = await say(den, 1, "ann", "root")
    replies = [await say(den, 1, "bob", text, thread=root) for text in ("one", "two @ann", "three")]
    await react(den, replies[2])
    outcome = await den.does("ann", read(replies[0], root))
    ack = answer(outcome)
    assert (ack.read, ack.unread, ack.mentions, ack.thread) == (replies[0], 2, 1, root)
    assert outcome.personal == [("ann", ReadMark("den", replies[0], 2, 1, root))]
    assert outcome.passing == []
    assert (await member_row(den, 1, "ann")).read_seq == root  # her own message; the room's mark is another one
    again = await den.does("ann", read(replies[0], root))
    assert (answer(again).unread, again.personal) == (2, [])
    ack = answer(await den.does("ann", read(replies[2] + 1, root)))
    assert (ack.read, ack.unread, ack.mentions) == (replies[2], 0, 0)
    back = await den.does("ann", read(replies[1], root))
    assert (answer(back).read, answer(back).unread, back.personal) == (replies[2], 0, [])
    await say(den, 1, "cy", "four", thread=root)
    assert answer(await den.does("ann", read(1, root))).unread == 1
    (message,) = (await den.asks("ann", GetMessages(room_id="den"))).messages
    assert message.replies == ThreadInfo(4, 6, "2027-01-15T08:00:00.000Z", 1)


async def test_who_does_not_follow_a_thread_has_no_mark_in_it(den: World) -> None:
    root = await say(den, 1, "ann", "root")
    reply = await say(den, 1, "bob", "reply", thread=root)
    assert await refused(den, "cy", read(reply, root)) == "not_found"
    assert await refused(den, "ann", read(reply, reply)) == "not_found"
    assert await refused(den, "ann", read(reply + 1, root)) == "not_found"


async def test_threads_that_one_follows(den: World) -> None:
    no = await make_room(den, "attic", ("ann", "bob"))
    first = await say(den, 1, "ann", "first")
    second = await say(den, 1, "bob", "second")
    other = await say(den, no, "bob", "other")
    for room, root in ((1, first), (no, other), (1, second), (1, first)):
        den.clock.advance(1)
        await say(den, room, "bob", "reply @ann", thread=root)
    threads = (await den.asks("ann", ListThreads())).threads
    assert [(each.room_id, each.message.message) for each in threads] == [
        ("den", "first"),
        ("den", "second"),
        ("attic", "other"),
    ]
    assert threads[0].message.replies == ThreadInfo(2, 5, "2027-01-15T08:00:04.000Z", 2)
    assert [each.message.id for each in (await den.asks("ann", ListThreads(limit=1))).threads] == [first]
    assert [each.room_id for each in (await den.asks("ann", ListThreads(room_id="attic"))).threads] == ["attic"]
    assert [each.room_id for each in (await den.asks("ann", ListThreads(), rooms=("at*",))).threads] == ["attic"]
    assert (await den.asks("ann", ListThreads(), rooms=())).threads == []
    assert (await den.asks("cy", ListThreads())).threads == []
    assert await refused(den, "cy", ListThreads(room_id="attic")) == "not_found"
    await change_member(den, 1, "ann", history_from=first)
    assert [each.message.id for each in (await den.asks("ann", ListThreads(room_id="den"))).threads] == [second]
    await den.store.write(lambda c: c.execute(tables.members.delete().where(tables.members.c.room_no == 1)))
    assert [each.room_id for each in (await den.asks("ann", ListThreads())).threads] == ["attic"]


# -- mentions


async def test_mentions_over_all_rooms(den: World) -> None:
    no = await make_room(den, "attic", ("ann", "bob"))
    said = [
        (1, "bob", "@ann one"),
        (no, "bob", "@ann two"),
        (1, "bob", "@room three"),
        (1, "bob", "@cy not me"),
        (1, "ann", "@room my own"),
        (no, "bob", "@ann @room four"),
        (1, "bob", "@ann five"),
    ]
    for room, who, text in said:
        den.clock.advance(1)
        await say(den, room, who, text)
    reply = await den.asks("ann", ListMentions())
    assert [(each.room_id, each.message.message.split()[-1]) for each in reply.mentions] == [
        ("den", "five"),
        ("attic", "four"),
        ("den", "three"),
        ("attic", "two"),
        ("den", "one"),
    ]
    assert reply.next is None
    assert [each.message.message for each in (await den.asks("cy", ListMentions())).mentions] == [
        "@room my own",
        "@cy not me",
        "@room three",
    ]
    assert (await den.asks("eve", ListMentions())).mentions == []
    assert (await den.asks("", ListMentions(), admin=True)).mentions == []
    assert {each.room_id for each in (await den.asks("ann", ListMentions(), rooms=("den",))).mentions} == {"den"}
    await den.does("bob", DeleteMessage(room_id="attic", id=2))
    await change_member(den, 1, "ann", history_from=1)
    assert [each.message.message for each in (await den.asks("ann", ListMentions())).mentions] == [
        "@ann five",
        "@room three",
        "@ann two",
    ]
    await den.store.write(lambda c: c.execute(tables.members.delete().where(tables.members.c.room_no == 1)))
    assert {each.room_id for each in (await den.asks("ann", ListMentions())).mentions} == {"attic"}


async def test_pages_of_mentions_meet_each_once(den: World) -> None:
    no = await make_room(den, "attic", ("ann", "bob"))
    for number in range(12):  # some of them in the same millisecond, in both rooms
        await say(den, (1, no)[number % 2], "bob", f"@ann {number}")
        if number % 4 == 3:
            den.clock.advance(1)
    whole = [(each.room_id, each.message.id) for each in (await den.asks("ann", ListMentions())).mentions]
    assert len(set(whole)) == 12
    for limit in (1, 3, 4, 12):
        found: list[tuple[str, int]] = []
        cursor: str | None = None
        while True:
            reply = await den.asks("ann", ListMentions(before=cursor, limit=limit))
            assert len(reply.mentions) == limit
            found += [(each.room_id, each.message.id) for each in reply.mentions]
            if (cursor := reply.next) is None:
                break
        assert found == whole


@pytest.mark.parametrize("cursor", ["", "1", "1.", "a.b", "1.2.3", "-1.2", f"{2**63}.1", f"1.{2**63}", "٣.٤", "9" * 64])
async def test_a_wrong_cursor(den: World, cursor: str) -> None:
    assert await refused(den, "ann", ListMentions(before=cursor)) == "invalid_message"


# -- last seen


async def test_last_seen(den: World) -> None:
    await make_room(den, "attic", ("ann", "di"))
    await make_room(den, "cellar", ("fay", "eve"))
    noted = {who: den.now + at for at, who in enumerate(("ann", "bob", "di", "eve"))}
    await den.store.write(lambda c: note_last_seen(c, noted, c.dialect.name))
    wanted = GetLastSeen(user_ids=["ann", "bob", "cy", "di", "eve", "nobody", "bob"])
    assert (await den.asks("ann", wanted)).users == {
        "ann": "2027-01-15T08:00:00.000Z",
        "bob": "2027-01-15T08:00:00.001Z",
        "cy": None,
        "di": "2027-01-15T08:00:00.002Z",
    }
    assert set((await den.asks("bob", wanted)).users) == {"ann", "bob", "cy"}
    assert set((await den.asks("ann", wanted, rooms=("attic",))).users) == {"ann", "di"}
    assert (await den.asks("eve", wanted)).users == {"eve": "2027-01-15T08:00:00.003Z"}
    everybody = (await den.asks("root", wanted, admin=True)).users
    assert everybody["eve"] == "2027-01-15T08:00:00.003Z"
    assert everybody["nobody"] is None


async def test_the_latest_time_stays(den: World) -> None:
    def note(**times: int) -> Any:
        return den.store.write(lambda c: note_last_seen(c, times, c.dialect.name))

    await note()
    await note(ann=5, bob=5)
    await note(ann=3, bob=7, cy=1)
    assert [tuple(row) for row in await everything(den, tables.last_seen)] == [("ann", 5), ("bob", 7), ("cy", 1)]


async def test_a_thousand_are_noted_at_once(den: World) -> None:
    times = {f"user{number}": number for number in range(1000)}
    for _ in range(2):
        await den.store.write(lambda c: note_last_seen(c, times, c.dialect.name))
    assert len(await everything(den, tables.last_seen)) == 1000


async def test_a_page_is_few_queries(den: World) -> None:
    """However many messages it has."""
    rows = [
        {"key": tables.key_of(1, seq), "room_no": 1, "number": seq, "author": "bob", "at": den.now, "body": "m"}
        for seq in range(1, 201)
    ]
    marks = [
        {"message": tables.key_of(1, seq), "emoji": "👍", "user_id": who, "at": den.now}
        for seq in range(1, 201)
        for who in ("ann", "bob")
    ]
    await den.store.write(lambda c: c.execute(insert(tables.messages), rows))
    await den.store.write(lambda c: c.execute(insert(tables.reactions), marks))
    await change_room(den, "den", event_seq=200, message_count=200, pin_count=1)

    def work(connection: Connection) -> tuple[int, int]:
        with heard(connection) as statements:
            reply = reading.get_messages(tx_of(den, connection), GetMessages(room_id="den", before=300, limit=200))
        return len(reply.messages), len(statements)

    assert await den.store.read(work) == (200, 6)
