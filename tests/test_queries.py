"""What people type is a query, or refused: never syntax to a database, whatever it is."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import asyncpg
import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from hubbub.errors import ClientError, ErrorCode
from hubbub.features.chat.queries import MARKS, WORD_LENGTH, WORDS, Query, parse
from hubbub.features.chat.tables import SEARCH_DDL
from tests.databases import WITHIN

TOKENIZER = SEARCH_DDL["sqlite"][0].partition("tokenize=")[2]
SYNTAX = [
    "AND", "OR", "NOT", "NEAR", "NEAR(a b, 2)", "body:", "message_search:", "rowid:", "^a", "a*", "{a b}:c", "(", ")",
    "'", "''", '"', '""', "\\", "\\'", "&", "|", "!", "<->", "<2>", ":*", ":A", ":*AB", "-", "--", "/*", ";", "%", "\x00",
    "\ud800", "\udfff", "\ufdd0", "\U000e0001", "e\u0301", "\u0301", "\u200d", "日本", "👍", "שלום", "½", "a_b", "ﬁ", "İ",
]  # fmt: skip
TYPED = st.one_of(
    st.text(st.characters(exclude_categories=())),
    st.lists(st.one_of(st.sampled_from(SYNTAX), st.text(max_size=4)), max_size=20).map(" ".join),
)
"""Any text at all, lone surrogates too; and what would be syntax somewhere."""


def terms(typed: str) -> list[tuple[str, bool, bool]]:
    return [(term.text, term.excluded, term.prefix) for term in parse(typed).terms]


# -- the language


@pytest.mark.parametrize(
    ("typed", "expected"),
    [
        ("hello", [("hello", False, True)]),
        ("hello world", [("hello", False, False), ("world", False, True)]),
        ('"hello world"', [("hello world", False, False)]),
        ('"hello', [("hello", False, False)]),
        ('hello "big world" out', [("hello", False, False), ("big world", False, False), ("out", False, True)]),
        ("“hello world”", [("hello world", False, False)]),
        ("hello -world", [("hello", False, False), ("world", True, False)]),
        ('-"big world" hello', [("big world", True, False), ("hello", False, True)]),
        ("hello - world", [("hello", False, False), ("world", False, True)]),
        ("hello !!", [("hello", False, True)]),
        ("foo-bar.baz", [("foo bar baz", False, True)]),
        ("bob@example.com", [("bob example com", False, True)]),
        ("a AND b* OR NOT c", [(word, False, False) for word in ("a", "AND", "b", "OR", "NOT", "c")]),
        ("Crème", [("Creme", False, True)]),
        ("日", [("日", False, True)]),
        ("a", [("a", False, False)]),
    ],
)
def test_what_is_typed_is_words_and_words_next_to_one_another(typed: str, expected: list[Any]) -> None:
    assert terms(typed) == expected


@pytest.mark.parametrize("typed", ["", " ", "!?", '""', "-hello", '-a -"b c"', "👍", "\x00", "\ud800", "\u0301", "- -"])
def test_a_query_has_a_word_to_look_for(typed: str) -> None:
    with pytest.raises(ClientError, match=r"has no word to look for - at `\$\.query`") as caught:
        parse(typed)
    assert caught.value.code is ErrorCode.INVALID_MESSAGE


def test_a_query_is_short() -> None:
    assert len(parse(" ".join(["word"] * WORDS)).terms) == WORDS
    for typed in (" ".join(["word"] * (WORDS + 1)), f'"{"word " * (WORDS + 1)}"', "x" * (WORD_LENGTH + 1)):
        with pytest.raises(ClientError, match="has at most"):
            parse(typed)


# -- nothing is syntax


@pytest.fixture(scope="module")
def fts5() -> Iterator[sqlite3.Connection]:
    with closing(sqlite3.connect(":memory:")) as connection:
        connection.execute(f"CREATE VIRTUAL TABLE found USING fts5(body, tokenize={TOKENIZER}")
        yield connection


def parsed(typed: str) -> Query:
    """Only what is a query."""
    try:
        return parse(typed)
    except ClientError:
        assume(False)
        raise


@given(TYPED)
@example('a" OR "b')
@example("a\x00b")
def test_whatever_is_typed_sqlite_takes_it(fts5: sqlite3.Connection, typed: str) -> None:
    fts5.execute("SELECT rowid FROM found WHERE found MATCH ?", (parsed(typed).fts5(),)).fetchall()


def test_whatever_is_typed_postgresql_takes_it(postgres_server: str) -> None:
    with asyncio.Runner() as runner:
        connection = runner.run(asyncpg.connect(postgres_server, timeout=WITHIN))

        @given(TYPED)
        @example("a' | 'b")
        @example("\\' | b")
        @example("Ⱥ" * WORD_LENGTH)
        @example("\U00010400" * WORD_LENGTH)
        def takes(typed: str) -> None:
            query = parsed(typed).tsquery()
            runner.run(connection.fetch("SELECT 'a'::tsvector @@ to_tsquery('pg_catalog.simple', $1)", query))

        try:
            takes()
        finally:
            runner.run(connection.close())


# -- what is found, and marked

PLAIN = st.text("abcABCéÉçñÅ日本", min_size=1, max_size=4)
SIGNS = st.sampled_from([" ", ", ", "-", "_", "…", "\n", " 👍 ", "/", "."])


@given(st.lists(st.tuples(PLAIN, SIGNS), max_size=12).map(lambda pairs: "".join(map("".join, pairs))), st.data())
def test_marked_is_what_sqlite_finds(fts5: sqlite3.Connection, text: str, data: st.DataObject) -> None:
    """The same places as FTS5's own highlight(), on a table that has the text."""
    words = data.draw(st.lists(PLAIN, min_size=1, max_size=3))
    typed = data.draw(st.sampled_from([" ".join(words), f'"{" ".join(words)}"']))
    query = parse(typed)
    fts5.execute("DELETE FROM found")
    fts5.execute("INSERT INTO found VALUES (?)", (text,))
    shown = "SELECT highlight(found, 0, '\x01', '\x02') FROM found WHERE found MATCH ?"
    for (highlighted,) in fts5.execute(shown, (query.fts5(),)):
        assert query.marks(text) == places(highlighted)


def places(highlighted: str) -> list[tuple[int, int]]:
    found, at, start = [], 0, 0
    for each in highlighted:
        if each == "\x01":
            start = at
        elif each == "\x02":
            found.append((start, at))
        else:
            at += 1
    return found


@pytest.mark.parametrize(
    ("typed", "text", "marked"),
    [
        ("hello", "Say HELLO, hello-world, othello, hell", ["HELLO", "hello"]),
        ("hel", "Say HELLO, hello-world, othello, hell", ["HELLO", "hello", "hell"]),
        ('"big world"', "big, world! a big bad world", ["big, world"]),
        ("foo@bar", "foo.bar foo bar", ["foo.bar", "foo bar"]),
        ("cafe", "Cafe\u0301s or CAFÉ", ["Cafe\u0301s", "CAFÉ"]),
        ("résumé", "resume, re\u0301sume\u0301", ["resume", "re\u0301sume\u0301"]),
        ("good -bad", "good bad", ["good"]),
        ('"a b" "b c"', "a b c", ["a b c"]),
        ("שלום", "אמר שלום לכולם", ["שלום"]),
        ("مرحبا", "قال مرحبا بالعالم", ["مرحبا"]),
        ("日本", "日本語 日 本", ["日本語"]),
        ("हिन्दी", "यह हिन्दी है", ["हिन्दी"]),
        ("straße", "Straße STRASSE", ["Straße"]),
        ("x.", "(x) [x] x* \\x", ["x"] * 4),
    ],
)
def test_the_words_are_marked_where_they_stand(typed: str, text: str, marked: list[str]) -> None:
    assert [text[start:end] for start, end in parse(typed).marks(text)] == marked


@given(TYPED, TYPED)
def test_marks_are_places_in_the_text_in_order(typed: str, text: str) -> None:
    ends = [end for mark in parsed(typed).marks(text) for end in mark]
    assert ends == sorted(ends)
    assert all(0 <= end <= len(text) for end in ends)


def test_marks_are_not_without_end() -> None:
    assert len(parse("a b").marks("a b " * 10_000)) == MARKS
