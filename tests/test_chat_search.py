"""Search finds what a message says now, in rooms that one may read, whichever database there is."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine, Sequence
from functools import partial
from typing import Any, cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import Connection, delete, insert, select, text, update

from hubbub.errors import ClientError, ErrorCode
from hubbub.features.chat import search, tables, timeline
from hubbub.features.chat.asks import DeleteMessage, EditMessage, Search
from hubbub.features.chat.tables import SEARCHED, key_of
from hubbub.features.chat.tells import SearchResults
from hubbub.store import Store
from tests.chat_rows import change_member, change_room, happens, make_room, say
from tests.chat_support import World, world
from tests.support import until

pytestmark = pytest.mark.anyio
COMMANDS = (timeline.edit_message, search.search)
"""Importing them declares them."""


@pytest.fixture
async def den(database_url: str) -> AsyncIterator[World]:
    """A world with the private room `den` (number 1): ann owns it, mod is a moderator, bob is a member."""
    async with world(database_url, max_text_length=0) as it:
        assert await make_room(it, people=("ann", "mod:mod", "bob")) == 1
        yield it


@pytest.fixture
async def lair(sqlite_url: str) -> AsyncIterator[World]:
    """The same on SQLite only, to look at its index."""
    async with world(sqlite_url, max_text_length=0) as it:
        assert await make_room(it, people=("ann", "mod:mod", "bob")) == 1
        yield it


def indexer(it: World, store: Store | None = None) -> tuple[search.Indexer, list[asyncio.Task[None]]]:
    """An indexer, and its runs."""
    runs: list[asyncio.Task[None]] = []

    def spawn(work: Coroutine[Any, Any, None]) -> None:
        runs.append(asyncio.get_running_loop().create_task(work))

    return search.Indexer(store or it.store, spawn), runs


async def indexed(it: World) -> None:
    """Everything is searchable."""
    its, _ = indexer(it)
    await its.start()
    await its.catch_up()


async def finds(it: World, query: str, user_id: str = "ann", **options: Any) -> SearchResults:
    outside = {name: options.pop(name) for name in ("admin", "rooms") if name in options}
    if (author := options.pop("by", None)) is not None:
        options["user_id"] = author
    reply = await it.asks(user_id, Search(query=query, **options), **outside)
    assert isinstance(reply, SearchResults)
    assert reply.query == query
    return reply


async def found(it: World, query: str, user_id: str = "ann", **options: Any) -> list[int]:
    """The numbers of what is found, in one room and in all; the newest first."""
    ids = [hit.message.id for hit in (await finds(it, query, user_id, **options)).hits]
    if "room_id" not in options:
        assert ids == await found(it, query, user_id, room_id="den", **options)
    return ids


async def refused(it: World, query: str, user_id: str = "ann", **options: Any) -> ErrorCode | str:
    with pytest.raises(ClientError) as caught:
        await finds(it, query, user_id, **options)
    return caught.value.code


# -- words

SAID = {
    1: "The quick brown fox",
    2: "quick, quicker: QUICKEST",
    3: "brown quick fox",
    4: "a café in Zürich – ÅNGSTRÖM",
    5: "cafe\u0301 noir",
    6: "see https://www.example.com/some/path?q=foo_bar, or mail bob.smith@example.org",
    7: "C++ and don't 3.14 v1.2.3 <b>bold</b> x=-5",
    8: "שלום עולם",
    9: "مرحبا بالعالم",
    10: "日本語です、東京 大阪",
    11: "यह हिन्दी है",
    12: "Привет, Ёлка",
    13: "👍 ok",
}


FOUND = {
    "quick": [3, 2, 1], "QUICK fox": [3, 1], "fox -the": [3], '"quick brown"': [1], '"brown quick"': [3],
    'quick -"brown fox"': [3, 2], "quicke": [2], '"quicke"': [], "uick": [], "q": [6], "quick nothing": [],
    "café": [5, 4], "CAFE": [5, 4], "cafe\u0301": [5, 4], "zurich angstrom": [4], "example": [6], "example.com": [6],
    '"www example"': [6], "some/path": [6], "foo_bar": [6], "bar": [6], "smith": [6], "bob.smith@example.org": [6],
    "bold": [7], "don't": [7], "3.14": [7], '"5"': [7], '"v1.2.3"': [7], "c++": [7], "שלום": [8], "مرحبا": [9],
    "日本": [10], "日": [10], "東京": [10], "大阪": [10], "本語": [], "हिन्दी": [11], '"हनद"': [], "привет ёлка": [12],
    "ok 👍": [13], "NEAR OR": [], "body:quick": [], "quick*": [3, 2, 1],
}  # fmt: skip
"""Query → numbers of what is found. (A run of Japanese without spaces is found from its beginning only.)"""


async def test_words_are_found(den: World) -> None:
    for seq, what in SAID.items():
        assert await say(den, 1, "bob", what) == seq
    await indexed(den)
    assert {query: await found(den, query) for query in FOUND} == FOUND


async def test_the_hit_is_the_message_with_its_marks(den: World) -> None:
    await say(den, 1, "bob", "One fine day, one way", client_id="c1")
    await indexed(den)
    (hit,) = (await finds(den, "one")).hits
    assert (hit.room_id, hit.message.id, hit.message.user_id) == ("den", 1, "bob")
    assert (hit.message.message, hit.message.client_id) == ("One fine day, one way", "c1")
    assert hit.marks == [(0, 3), (14, 17)]


async def test_what_the_system_says_is_not_found(den: World) -> None:
    await happens(den, "den")
    await say(den, 1, "bob", "the room was renamed")
    await indexed(den)
    assert await found(den, "renamed") == [2]
    assert await found(den, "event") == []


async def test_a_long_message_is_found_by_its_beginning(den: World) -> None:
    words = " ".join(f"w{n}ö" for n in range(SEARCHED // 5))
    assert await say(den, 1, "bob", f"first {words} last") == 1
    await indexed(den)
    assert (await found(den, "first"), await found(den, '"w9999o"'), await found(den, "last")) == ([1], [1], [])
    await den.asks("bob", EditMessage(room_id="den", id=1, message=f"other {words} last"))
    assert (await found(den, "first"), await found(den, "other"), await found(den, "w99")) == ([], [1], [1])


async def test_by_one_author(den: World) -> None:
    for author in ("ann", "bob", "ann", "mod"):
        await say(den, 1, author, "word")
    await indexed(den)
    assert await found(den, "word", by="ann") == [3, 1]
    assert await found(den, "word", by="ann' OR 1") == []


# -- rooms


async def rooms(it: World, query: str = "word", user_id: str = "ann", **options: Any) -> list[str]:
    """In which rooms something is found."""
    return sorted(hit.room_id for hit in (await finds(it, query, user_id, **options)).hits)


@pytest.fixture
async def house(den: World) -> World:
    """Besides the den, all of them with one message: `hall` (public; ann is in it), `attic` (private, without her),
    `pair` (direct: ann and bob), `other` (direct: bob and cy), `street` (public, without her)."""
    await make_room(den, "hall", ("bob", "ann"), visibility="public")
    await make_room(den, "attic", ("bob", "cy"))
    await make_room(den, "pair", ("bob", "ann"), visibility="direct")
    await make_room(den, "other", ("bob", "cy"), visibility="direct")
    await make_room(den, "street", ("bob",), visibility="public")
    for no in range(1, 7):
        await say(den, no, "bob", "a word")
    await indexed(den)
    return den


async def test_only_ones_own_rooms_are_searched(house: World) -> None:
    assert await rooms(house) == ["den", "hall", "pair"]
    assert await rooms(house, user_id="cy") == ["attic", "other"]
    assert await rooms(house, user_id="dan") == []


async def test_a_token_for_some_rooms_searches_only_these(house: World) -> None:
    assert await rooms(house, rooms=("h*", "attic")) == ["hall"]
    assert await refused(house, "word", room_id="den", rooms=("h*",)) is ErrorCode.NOT_FOUND


async def test_an_admin_searches_all_but_what_is_between_others(house: World) -> None:
    everything = ["attic", "den", "hall", "street"]
    assert await rooms(house, user_id="root", admin=True) == everything
    assert await rooms(house, user_id="", admin=True) == everything
    assert await rooms(house, user_id="ann", admin=True) == sorted([*everything, "pair"])
    assert await rooms(house, user_id="root", admin=True, room_id="other") == ["other"]


@pytest.mark.parametrize(
    ("room_id", "code"),
    [
        ("attic", ErrorCode.NOT_FOUND),
        ("other", ErrorCode.NOT_FOUND),
        ("nowhere", ErrorCode.NOT_FOUND),
        ("street", ErrorCode.NOT_JOINED),
    ],
)
async def test_a_room_that_one_may_not_read_is_not_searched(house: World, room_id: str, code: ErrorCode) -> None:
    assert await refused(house, "word", room_id=room_id) is code


async def test_an_archived_room_is_searched(house: World) -> None:
    await change_room(house, "den", archived_at=house.now)
    assert "den" in await rooms(house)
    assert await rooms(house, room_id="den") == ["den"]


@pytest.mark.parametrize("admin", [False, True])
async def test_what_was_said_before_ones_time_is_not_found(house: World, admin: bool) -> None:
    await say(house, 1, "bob", "another word")
    await indexed(house)
    await change_member(house, 1, "ann", history_from=1)
    for room_id in ("den", None):
        hits = (await finds(house, "word", room_id=room_id, admin=admin)).hits
        assert [hit.message.id for hit in hits if hit.room_id == "den"] == [2]


# -- order and pages


async def pages(it: World, query: str, limit: int, **options: Any) -> list[tuple[str, int]]:
    """All that is found, page by page."""
    seen, before = [], None
    while True:
        page = await finds(it, query, limit=limit, before=before, **options)
        seen += [(hit.room_id, hit.message.id) for hit in page.hits]
        assert len(page.hits) == limit or page.next is None
        if page.next is None:
            return seen
        before = page.next


@pytest.mark.parametrize("limit", [1, 2, 3, 7, 100])
async def test_page_after_page_everything_is_found_once(house: World, limit: int) -> None:
    names = {1: "den", 2: "hall", 4: "pair"}
    expected = [(house.now, no, 1) for no in names]
    # at three times, the last before the others: a clock was put right
    for seconds, numbers in ((1, (1, 2, 2, 3)), (1, (4, 1, 2, 1)), (-100, (4, 1))):
        house.clock.advance(seconds)
        for no in numbers:
            seq = await say(house, no, "bob", "word after word")
            expected += [(house.now, no, seq)] if no in names else []
    await indexed(house)
    expected.sort(reverse=True)
    assert await pages(house, "word", limit) == [(names[no], seq) for _, no, seq in expected]
    for no, name in names.items():
        in_room = sorted([seq for _, other, seq in expected if other == no], reverse=True)
        assert await pages(house, "word", limit, room_id=name, by="bob") == [(name, seq) for seq in in_room]


async def test_what_comes_meanwhile_does_not_move_the_pages(den: World) -> None:
    for _ in range(4):
        await say(den, 1, "bob", "word")
    await indexed(den)
    first = await finds(den, "word", limit=2)
    den.clock.advance(1)
    await say(den, 1, "bob", "word")
    await indexed(den)
    for room_id in ("den", None):
        second = await finds(den, "word", limit=2, before=first.next, room_id=room_id)
        assert ([hit.message.id for hit in second.hits], second.next) == ([2, 1], None)


@pytest.mark.parametrize("room_id", ["den", None])
@pytest.mark.parametrize(
    "before", ["", "1", "x.y", "1.", ".1", "-1.5", "1.8000000000000000", "1" * 20 + ".1", "1.1\n", "1.1'"]
)
async def test_a_wrong_place_is_refused(den: World, before: str, room_id: str | None) -> None:
    assert await refused(den, "word", before=before, room_id=room_id) is ErrorCode.INVALID_MESSAGE


@pytest.mark.parametrize("query", ["-word", "!?", '""', " ".join("abcdefghijklmnopq")])
async def test_a_query_without_words_is_refused(den: World, query: str) -> None:
    assert await refused(den, query) is ErrorCode.INVALID_MESSAGE


async def test_any_text_is_searched_for(den: World) -> None:
    await say(den, 1, "bob", "a word")
    await indexed(den)
    for query in (
        "a' | 'b",
        'a" OR "b',
        "a\x00b",
        "\\'a",
        "a & !",
        "'; DROP TABLE messages; --",
        "%s %(x)s :x {x}",
        "a:*b",
    ):
        await found(den, query)
    assert await found(den, "word") == [1]


# -- edits and deletions


@pytest.mark.parametrize("before", [True, False], ids=["indexed before", "indexed after"])
async def test_an_edited_message_is_found_by_what_it_says_now(den: World, before: bool) -> None:
    seq = await say(den, 1, "bob", "the old words")
    if before:
        await indexed(den)
    for words in ("the new words", "the newest words"):
        await den.asks("bob", EditMessage(room_id="den", id=seq, message=words))
    await indexed(den)
    assert [await found(den, query) for query in ("old", "new", '"new"', "newest", "the words")] == [
        [],
        [1],
        [],
        [1],
        [1],
    ]


@pytest.mark.parametrize("before", [True, False], ids=["indexed before", "indexed after"])
async def test_a_deleted_message_is_not_found(den: World, before: bool) -> None:
    for _ in range(3):
        await say(den, 1, "bob", "the words")
    if before:
        await indexed(den)
    await den.asks("bob", EditMessage(room_id="den", id=2, message="the other words"))
    await den.asks("bob", DeleteMessage(room_id="den", id=2))
    await indexed(den)
    assert (await found(den, "words"), await found(den, "other")) == ([3, 1], [])


# -- the index of SQLite


async def consistent(it: World, *words: str) -> None:
    """For these words exactly that is found which is to be found; and the index is whole."""
    t = tables.messages.c
    rows = await it.sql(select(t.key, t.body).where(t.kind == 0, t.deleted_at.is_(None)))
    for word in words or ("alpha", "beta", "gamma", "delta"):
        expected = sorted(row.key for row in rows if word in row.body.split())
        query = text("SELECT rowid FROM message_search WHERE message_search MATCH :word ORDER BY rowid")
        assert [row.rowid for row in await it.sql(query.bindparams(word=f'"{word}"'))] == expected, word
    check = text("INSERT INTO message_search (message_search, rank) VALUES ('integrity-check', 0)")
    await it.store.write(lambda connection: connection.execute(check) and None)


ACTS = st.lists(
    st.one_of(
        st.tuples(
            st.just("say"),
            st.integers(1, 2),
            st.lists(st.sampled_from(["alpha", "beta", "gamma"]), min_size=1, max_size=3),
        ),
        st.tuples(st.just("happen"), st.integers(1, 2), st.just([])),
        st.tuples(
            st.just("edit"), st.integers(0, 20), st.lists(st.sampled_from(["alpha", "delta"]), min_size=1, max_size=2)
        ),
        st.tuples(st.just("delete"), st.integers(0, 20), st.just([])),
        st.tuples(st.just("erase"), st.integers(0, 20), st.just([])),
        st.tuples(st.just("index"), st.integers(1, 3), st.just([])),
        st.tuples(st.just("wipe"), st.just(0), st.just([])),
        st.tuples(st.just("fail"), st.integers(0, 20), st.just([])),
    ),
    max_size=25,
)


def test_whatever_happens_in_whatever_order_the_index_follows() -> None:
    with asyncio.Runner() as runner:

        @given(ACTS)
        @settings(max_examples=60, deadline=None)
        def follows(acts: list[tuple[str, int, list[str]]]) -> None:
            runner.run(happen(acts))

        follows()


async def happen(acts: list[tuple[str, int, list[str]]]) -> None:
    async with world("sqlite://") as it:
        names = {await make_room(it, name): name for name in ("den", "hall")}
        said: list[tuple[int, int]] = []
        wiping: int | None = None
        for act, number, words in acts:
            no, seq = said[number % len(said)] if said else (1, 0)
            if act == "say":
                said.append((number, await say(it, number, "ann", " ".join(words))))
            elif act == "happen":
                await happens(it, names[number])
            elif act == "edit" and said:
                await doing(it, no, EditMessage(room_id=names[no], id=seq, message=" ".join(words)))
            elif act == "delete" and said:
                await doing(it, no, DeleteMessage(room_id=names[no], id=seq))
            elif act == "erase" and said:
                await erase(it, tables.messages.c.key == key_of(no, seq))
            elif act == "index":
                await it.store.write(partial(search.index, rooms=[2, 1], limit=number))
            elif act == "fail":
                await fail(it, tables.messages.c.key == key_of(no, seq))
            elif act == "wipe":
                wiping = await it.store.write(partial(search.wipe, begun=wiping))
        await indexed(it)
        await consistent(it)


async def doing(it: World, no: int, message: EditMessage | DeleteMessage) -> None:
    """Carry it out, unless the message is deleted already."""
    t = tables.messages.c
    deleted = await it.sql(select(t.deleted_at).where(t.key == key_of(no, message.id)))
    if deleted[0][0] is None:
        await it.does("ann", message)


async def erase(it: World, which: Any) -> None:
    """Blank messages, as the erasure of a person does."""

    def work(connection: Connection) -> None:
        search.forget(connection, which)
        connection.execute(update(tables.messages).where(which).values(body="", deleted_at=1))

    await it.store.write(work)


async def fail(it: World, which: Any) -> None:
    """Work that is taken back, beside work in the same transaction that is not."""

    def work(connection: Connection) -> None:
        search.forget(connection, which)
        search.index(connection, [1, 2], limit=2)
        raise ClientError(ErrorCode.CONFLICT, "not now")

    results = await asyncio.gather(
        it.store.write(partial(search.index, rooms=[1], limit=1)),
        it.store.write(work),
        it.store.write(partial(search.index, rooms=[2], limit=1)),
        return_exceptions=True,
    )
    assert [type(result) for result in results] == [list, ClientError, list]


async def behind(it: World) -> list[int]:
    """How many numbers of each room are not in the index."""
    r = tables.rooms.c
    return [row[0] for row in await it.sql(select(r.event_seq - r.indexed_seq).order_by(r.no))]


async def test_rooms_take_turns_and_none_is_left_behind(lair: World) -> None:
    for no in (2, 3):
        await make_room(lair, f"room{no}")
    for no, count in ((1, 7), (2, 1), (3, 2)):
        for _ in range(count):
            await say(lair, no, "ann", "word")
    left = [1, 2, 3]
    turns = []
    while left:
        left = await lair.store.write(partial(search.index, rooms=left, limit=3))
        turns.append(await behind(lair))
    assert turns == [[4, 1, 2], [4, 0, 0], [1, 0, 0], [0, 0, 0]]
    await consistent(lair)


async def test_long_messages_are_few_in_a_transaction_but_one_at_least(lair: World) -> None:
    await make_room(lair, "hall")
    for no in (1, 1, 1, 2, 2):
        await say(lair, no, "ann", "x" * 100)
    turns = []
    left = [1, 2]
    while left:
        left = await lair.store.write(partial(search.index, rooms=left, size=150))
        turns.append(await behind(lair))
    assert turns == [[1, 2], [1, 0], [0, 0]]
    await consistent(lair)


async def test_a_sweep_indexes_what_is_marked_and_otherwise_does_nothing(lair: World) -> None:
    its, runs = indexer(lair)
    its.sweep(0.0)  # whether something is to be wiped
    await until(lambda: its.clean)
    await say(lair, 1, "ann", "word")
    its.sweep(1.0)
    assert len(runs) == 1
    its.mark(1)
    its.sweep(1.5)
    its.sweep(2.0)
    assert len(runs) == 2  # one at a time
    await until(lambda: its.clean)
    assert await found(lair, "word") == [1]


async def test_what_is_marked_during_a_run_is_indexed_too(lair: World) -> None:
    its, _ = indexer(lair)

    async def talk(author: str) -> None:
        for n in range(10):
            seq = await say(lair, 1, author, f"alpha {author}")
            its.mark(1)
            its.sweep(n)
            await lair.does(author, EditMessage(room_id="den", id=seq, message=f"beta {author}"))
            if n % 3 == 0:
                await lair.does(author, DeleteMessage(room_id="den", id=seq))

    await asyncio.gather(*(talk(author) for author in ("ann", "bob", "mod")))
    its.mark(1)
    its.sweep(10)
    await until(lambda: its.clean)
    assert await behind(lair) == [0]
    await consistent(lair)


class BusyStore:
    """A store in which others always wait to write."""

    def __init__(self, store: Store) -> None:
        self.engine = store.engine
        self.write = store.write
        self.read = store.read
        self.waiting = search.QUIET + 1


async def fill(it: World, rows: Sequence[tuple[str, str]]) -> None:
    """Many (author, text) in the empty den at once."""
    said = [
        {"key": key_of(1, n), "room_no": 1, "number": n, "author": author, "at": it.now, "body": body}
        for n, (author, body) in enumerate(rows, 1)
    ]

    def work(connection: Connection) -> None:
        connection.execute(insert(tables.messages), said)
        connection.execute(update(tables.rooms).where(tables.rooms.c.no == 1).values(event_seq=len(rows)))

    await it.store.write(work)


async def test_while_others_wait_to_write_a_sweep_does_a_share(lair: World) -> None:
    await fill(lair, [("ann", f"w{n}") for n in range((search.BUSY_CHUNKS + 1) * search.CHUNK)])
    its, runs = indexer(lair, cast("Store", BusyStore(lair.store)))
    await its.start()
    its.sweep(0.0)
    await runs[0]
    assert (await behind(lair), its.clean) == ([search.CHUNK], False)
    its.sweep(0.5)
    await runs[1]
    assert (await behind(lair), its.clean) == ([0], True)
    assert await found(lair, '"w4711"') == [4712]


async def test_while_the_store_is_away_everything_stays_marked(lair: World) -> None:
    await say(lair, 1, "ann", "word")
    its, runs = indexer(lair)
    its.mark(1)
    await lair.store.stop()
    its.sweep(0.0)
    await runs[0]
    assert not its.clean
    await lair.store.start()
    its.sweep(0.5)
    await until(lambda: its.clean)
    assert await found(lair, "word") == [1]


async def test_postgresql_needs_no_indexer(postgres_url: str) -> None:
    async with world(postgres_url) as it:
        await make_room(it)
        await say(it, 1, "ann", "word")
        its, runs = indexer(it)
        await its.start()
        its.mark(1)
        its.sweep(0.0)
        await its.catch_up()
        assert (its.clean, runs) == (True, [])
        assert await found(it, "word") == [1]


# -- erasing


async def test_what_is_erased_is_not_found(den: World) -> None:
    for author in ("ann", "bob", "bob"):
        await say(den, 1, author, "secret")
    await happens(den, "den", "bob")
    await indexed(den)
    await say(den, 1, "bob", "secret")  # not in the index yet
    await erase(den, tables.messages.c.author == "bob")
    await indexed(den)
    assert await found(den, "secret") == [1]


async def test_rows_can_go_too(lair: World) -> None:
    for _ in range(3):
        await say(lair, 1, "ann", "alpha")
    await indexed(lair)
    which = tables.messages.c.key <= key_of(1, 2)

    def work(connection: Connection) -> None:
        search.forget(connection, which)
        connection.execute(delete(tables.messages).where(which))

    await lair.store.write(work)
    await consistent(lair)
    assert await found(lair, "alpha") == [3]


async def in_pages(it: World, word: str) -> bool:
    """Whether a word stands in a page of the index, whether it counts or not."""
    (row,) = await it.sql(
        text("SELECT count(*) FROM message_search_data WHERE instr(block, CAST(:word AS BLOB)) > 0").bindparams(
            word=word
        )
    )
    return bool(row[0])


async def secrets(it: World) -> None:
    """A few words of bob among many of ann, indexed piece by piece."""
    await fill(it, [("bob", f"zsecret{n}") if n % 300 == 0 else ("ann", f"m{n}x{n * n} alpha") for n in range(1500)])
    left = [1]
    while left:
        left = await it.store.write(partial(search.index, rooms=left, limit=250))


async def test_erased_words_are_wiped_from_the_index_even_after_a_restart(lair: World) -> None:
    await secrets(lair)
    await erase(lair, tables.messages.c.author == "bob")
    assert await in_pages(lair, "zsecret")  # or this test would show nothing
    await lair.store.stop()
    await lair.store.start()
    its, _ = indexer(lair)
    its.sweep(0.0)
    await until(lambda: its.clean)
    assert not await in_pages(lair, "zsecret")
    assert len(await pages(lair, "alpha", 100)) == 1495
    await consistent(lair, "alpha", "m7x49")


async def test_the_words_of_a_deleted_message_are_wiped_too(lair: World) -> None:
    for n in range(300):
        await say(lair, 1, "bob", f"zsecret{n}")
        if n % 100 == 0:
            await indexed(lair)
    await indexed(lair)
    assert await in_pages(lair, "zsecret2")
    for n in (2, *range(20, 30), *range(200, 300)):
        await lair.does("bob", DeleteMessage(room_id="den", id=n + 1))
    await indexed(lair)
    assert not await in_pages(lair, "zsecret2")
    assert await found(lair, "zsecret19 ") == [200, 199, 198, 197, 196, 195, 194, 193, 192, 191, 20]


async def test_a_wiping_goes_on_in_steps_and_takes_what_is_erased_meanwhile(
    lair: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(search, "WIPED", 1)
    await secrets(lair)
    await erase(lair, tables.messages.c.body == "zsecret300")
    step = await lair.store.write(partial(search.wipe, begun=None))
    assert step == 1
    await erase(lair, tables.messages.c.author == "bob")
    steps = 1
    while step is not None:
        step = await lair.store.write(partial(search.wipe, begun=step))
        steps += 1
    assert steps > 10
    assert not await in_pages(lair, "zsecret")
    assert await lair.sql(text("SELECT asked, done FROM message_wiping")) == [(2, 2)]
    await consistent(lair, "alpha", "m7x49")
