"""Whom a text mentions."""

from __future__ import annotations

from time import process_time

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from hubbub.features.chat.mentioning import EVERYONE, mentions_of


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("", ()),
        ("nobody", ()),
        ("@ann", ("ann",)),
        ("hello @ann, and @bob!", ("ann", "bob")),
        ("@bob @ann @bob", ("bob", "ann")),
        ("(@ann) ,@bob\n@cy", ("ann", "bob", "cy")),
        ("@ann.lee-2_x.", ("ann.lee-2_x",)),
        ("@ann... @bob--- @cy.-.", ("ann", "bob", "cy")),
        ("mail ann@example.org or @@bob", ()),
        ("_@ann é@bob 1@cy", ()),
        ("@ann@bob", ("ann",)),
        ("@... @- @ @", ()),
        ("@Zoë @李雷 @ΑΒΓ", ("Zoë", "李雷", "ΑΒΓ")),
        ("@[Ann Lee] and @[bob@example.org]", ("Ann Lee", "bob@example.org")),
        ("@[ann]@[bob]", ("ann", "bob")),
        ("x@[ann]", ()),
        ("@[] @[a\nb] @[a[b]] @[unfinished", ()),
        ("@[" + "x" * 128 + "] @[" + "y" * 129 + "]", ("x" * 128,)),
        ("@" + "x" * 128 + " @" + "y" * 129, ("x" * 128,)),
        ("@room!", (EVERYONE,)),
        ("@room @[room] @rooms @Room", (EVERYONE, "room", "rooms", "Room")),
    ],
)
def test_names(text: str, names: tuple[str, ...]) -> None:
    assert mentions_of(text, 10) == names


def test_only_so_many() -> None:
    assert mentions_of("@a @b @a @c @d", 3) == ("a", "b", "c")
    assert mentions_of("@a @b", 0) == ()


@given(st.text(), st.integers(-1, 5))
@example("@[\ud800]", 1)
@example("@\udfff @\U0010ffff @\u202eann", 5)
def test_any_text_has_a_few_names_that_are_in_it(text: str, limit: int) -> None:
    names = mentions_of(text, limit)
    assert len(names) <= max(0, limit)
    assert len(set(names)) == len(names)
    assert all(1 <= len(name) <= 128 and name in text for name in names)


bracketed = st.text(st.characters(exclude_characters="[]\r\n\u2028\u2029"), min_size=1, max_size=128)


@given(st.lists(bracketed, unique=True, max_size=8), bracketed)
def test_every_name_in_brackets_comes_back(names: list[str], between: str) -> None:
    between = " " + between.replace("@", "") + " "
    text = between.join(f"@[{name}]" for name in names)
    assert mentions_of(text, 8) == tuple(names)


@given(st.text("@[].-a é\n"), st.integers(0, 9))
def test_who_is_found_is_found_again(text: str, limit: int) -> None:
    names = mentions_of(text, limit)
    again = " ".join("@room" if name == EVERYONE else f"@[{name}]" for name in names)
    assert mentions_of(again, limit) == names


@given(st.text("@[].-a é\n"), st.integers(0, 9))
def test_a_smaller_limit_takes_the_first_ones(text: str, limit: int) -> None:
    assert mentions_of(text, limit) == mentions_of(text, 100)[:limit]


@pytest.mark.parametrize(
    "piece",
    ["@", "@.", "@-a", "@[", "@[a", "@a ", "@[a] ", "[@", "a@", "@" + "." * 50, "@[" + "a" * 128, "@" + "a" * 200],
)
def test_the_longest_text_costs_next_to_nothing(piece: str) -> None:
    """A text of a million characters; what took quadratic time would take hours."""
    text = piece * (1_000_000 // len(piece))
    began = process_time()
    mentions_of(text, 50)
    assert process_time() - began < 2.0


@pytest.mark.parametrize("piece", [".", "-", "a", "[", "a.", "\u0301"])
def test_a_long_run_after_one_sign_costs_no_more(piece: str) -> None:
    began = process_time()
    mentions_of("@" + piece * 1_000_000 + "@[" + piece * 1_000_000, 50)
    assert process_time() - began < 2.0


def test_ten_thousand_mentions() -> None:
    text = " ".join(f"@user{number}" for number in range(10_000))
    began = process_time()
    assert len(mentions_of(text, 50)) == 50
    assert process_time() - began < 0.05
