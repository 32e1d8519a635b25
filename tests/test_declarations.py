"""What is declared wrongly is refused at start, with both places; patterns of channel names and when they overlap."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from itertools import product
from typing import Annotated, Any

import msgspec
import pytest
from fastapi import Depends, FastAPI, Header, Query, Request, Response, WebSocket
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel

from hubbub import ConfigurationError, Hubbub, HubRouter, Session
from hubbub.toolkit.names import NamePattern
from tests.support import settings_for


class Thing:
    """Nothing that JSON could become."""


class Good(msgspec.Struct):
    a: int


class HoldsThing(msgspec.Struct):
    thing: list[Thing]


class HasRef(BaseModel):
    ref: str


class Tagged(msgspec.Struct, tag_field="type", tag="its.own"):
    a: int


def make_hub() -> Hubbub:
    return Hubbub(FastAPI(), settings=settings_for())


# -- handlers ---------------------------------------------------------------------------------------------------------


async def takes_a_thing(message: HoldsThing) -> None: ...
async def returns_a_thing(message: Good) -> HoldsThing: ...  # type: ignore[empty-body]  # only its signature counts
async def returns_a_response() -> Response: ...  # type: ignore[empty-body]  # as above
async def has_ref(message: HasRef) -> None: ...
async def replies_with_ref(message: Good) -> HasRef: ...  # type: ignore[empty-body]  # as above
async def a_field_that_is_a_thing(thing: Thing) -> None: ...
async def without_annotation(a) -> None: ...  # type: ignore[no-untyped-def]  # the point
async def takes_anything(*args: int, **more: int) -> None: ...
async def takes_a_request(request: Request) -> None: ...
async def takes_a_websocket(websocket: WebSocket) -> None: ...
async def takes_a_query(a: Annotated[int, Query()]) -> None: ...
async def takes_a_header(a: str = Header()) -> None: ...
async def says_otherwise(message: Tagged) -> None: ...
async def unknown_name(message: NotThere) -> None: ...  # type: ignore[name-defined]  # noqa: F821  # the point
async def yields() -> Any:
    yield 1


async def needs_more(other: int) -> int:
    return other


async def dependency_needs_more(message: Good, x: int = Depends(needs_more)) -> None: ...


async def round_and_round(x: int) -> int:
    return x


async def circle(message: Good, x: int = Depends(round_and_round)) -> None: ...


async def as_str(a: str) -> str:
    return a


async def two_types_of_one_field(a: int, b: str = Depends(as_str)) -> None: ...


@pytest.mark.parametrize(
    ("fn", "text"),
    [
        (takes_a_thing, "'message' cannot be a message: msgspec cannot make a Thing of JSON"),
        (returns_a_thing, "what it returns cannot be sent: msgspec cannot make a Thing of JSON"),
        (returns_a_response, "what it returns cannot be sent"),
        (has_ref, "`ref` belongs to the wire"),
        (replies_with_ref, "`ref` belongs to the wire"),
        (a_field_that_is_a_thing, "its parameters cannot be fields of a message"),
        (without_annotation, "'a' needs an annotation"),
        (takes_anything, "'args' must be a parameter that can be given by name"),
        (takes_a_request, "there is no Request to give as 'request': take `session: Session`"),
        (takes_a_websocket, "there is no WebSocket to give as 'websocket'"),
        (takes_a_query, "'a' asks for a part of the opening request"),
        (takes_a_header, "'a' asks for a part of the opening request"),
        (says_otherwise, "its message says of itself that its type is 'its.own', not 'x'"),
        (unknown_name, "the annotation 'NotThere' is not known where the function stands"),
        (yields, "a handler returns its result, it cannot yield"),
        (dependency_needs_more, "nothing is known to give it as 'other'"),
        (two_types_of_one_field, "'a' is a"),
    ],
    ids=lambda value: value.__name__ if callable(value) else "",
)
def test_what_cannot_be_served_is_refused_at_start(fn: Callable[..., Any], text: str) -> None:
    hub = make_hub()
    with pytest.raises(ConfigurationError) as error:
        hub.on("x")(fn)
    assert text in str(error.value)
    assert re.search(r"test_declarations\.\w+ \(test_declarations\.py:\d+\)", str(error.value))
    assert not hub.handlers


def test_a_prefix_does_not_fit_a_message_that_says_its_type() -> None:
    router = HubRouter(prefix="orders.")
    router.on(says_otherwise)
    with pytest.raises(ConfigurationError, match=r"its type is 'its.own', not 'orders.its.own'"):
        make_hub().include_router(router)


def test_two_handlers_of_one_type_are_both_named() -> None:
    hub = make_hub()

    @hub.on("order.cancel")
    async def first() -> None: ...

    with pytest.raises(
        ConfigurationError, match=r"two handlers for 'order.cancel': .*first .*:\d+\), and .*second .*:\d+"
    ):

        @hub.on("order.cancel")
        async def second() -> None: ...

    with pytest.raises(ConfigurationError, match=r"third .*'publish' is a message of Hubbub's own"):

        @hub.on("publish")
        async def third() -> None: ...

    for wrong in ("", " ", "ä", "x" * 65, "1x"):
        with pytest.raises(ConfigurationError, match="is no type of a message"):
            hub.on(wrong)(first)
    with pytest.raises(ConfigurationError, match="reply="):
        hub.on("y", reply="x" * 65)(first)


def test_a_dependency_that_depends_on_itself_is_refused() -> None:
    hub = make_hub()

    async def one(x: Any = None) -> None: ...

    async def two(x: None = Depends(one)) -> None: ...

    one.__defaults__ = (Depends(two),)

    with pytest.raises(ConfigurationError, match="it depends on itself"):

        @hub.on("x")
        async def x(y: None = Depends(one)) -> None: ...

    with pytest.raises(ConfigurationError, match="names nothing to call"):

        @hub.on("z")
        async def z(y=Depends()) -> None: ...  # type: ignore[no-untyped-def]  # the point


def test_a_hub_goes_into_one_app_and_a_router_not_into_itself() -> None:
    hub = make_hub()
    with pytest.raises(ConfigurationError, match="in an app already"):
        hub.install(FastAPI())
    router = HubRouter()
    with pytest.raises(ConfigurationError, match="cannot include itself"):
        router.include_router(router)
    assert hub.app is not None
    with pytest.raises(ConfigurationError, match="prefix="):
        Hubbub(hub.app, settings=settings_for())


# -- channels ---------------------------------------------------------------------------------------------------------


def test_patterns_that_overlap_are_both_named() -> None:
    hub = make_hub()
    hub.channel("orders:{order_id}")
    hub.channel("orders:{order_id}:lines")
    for pattern in ("orders:{other}", "orders:7", "{a}:{b}", "{anything:path}", "orders:{x:path}:lines"):
        with pytest.raises(ConfigurationError) as error:
            hub.channel(pattern)
        assert len(re.findall(r"test_declarations\.py:\d+", str(error.value))) == 2
    for pattern in ("room:{x}", "user:{x}", "{x}:x", "r{x:path}"):
        with pytest.raises(ConfigurationError, match="overlaps"):
            hub.channel(pattern)
    router = HubRouter(channel_prefix="orders:")
    router.channel("7")
    with pytest.raises(ConfigurationError, match=r"'orders:7' .* overlaps with 'orders:\{order_id\}'"):
        hub.include_router(router)


@pytest.mark.parametrize("pattern", ["", "a b", "ä", "{a}{a}", "{}", "{1}", "{a:int}", "a{", "a}", "{a"])
def test_what_is_no_pattern_is_refused(pattern: str) -> None:
    with pytest.raises(ConfigurationError, match=r"test_declarations\.py:\d+"):
        make_hub().channel(pattern)


def test_wrong_options_and_wrong_hooks_are_refused() -> None:
    hub = make_hub()
    with pytest.raises(ConfigurationError, match="history_size"):
        hub.channel("a", history=-1)
    topic = hub.channel("orders:{order_id}", history=0)

    with pytest.raises(ConfigurationError, match="needs a history for its on_subscribe"):

        @topic.on_subscribe
        async def state() -> None: ...

    with pytest.raises(ConfigurationError, match=r"nothing is known to give it as 'order'; authorize .* order_id"):

        @topic
        async def wrong_name(order: int) -> bool:
            return True

    with pytest.raises(ConfigurationError, match="must be a plain function"):

        @topic.visible
        async def visible(data: Good) -> bool:
            return True

    with pytest.raises(ConfigurationError, match="has no session to give as 'session'"):

        @topic.occupied
        async def occupied(session: Session) -> None: ...

    with pytest.raises(ConfigurationError, match="cannot be read from a channel's name"):

        @topic.vacated
        async def vacated(order_id: Thing) -> None: ...

    with pytest.raises(ConfigurationError, match="the data cannot be decoded"):

        @topic.on_publish
        async def on_publish(data: HoldsThing) -> None: ...

    @topic.authorize
    async def one(order_id: int) -> bool:
        return True

    with pytest.raises(ConfigurationError, match=r"has two authorize: .*one .*, and .*two"):

        @topic.authorize
        async def two(order_id: int) -> bool:
            return True

    with pytest.raises(ConfigurationError, match="'on_publsh' is no hook: they are authorize, on_subscribe"):

        @hub.channel("b")
        class Misspelt:
            async def on_publsh(self) -> None: ...

    with pytest.raises(ConfigurationError, match="there is no hook in it"):

        @hub.channel("c")
        class Empty: ...


def test_hooks_are_checked_at_start_too() -> None:
    hub = make_hub()
    with pytest.raises(ConfigurationError, match="nothing is known to give it as 'other'; a connected hook may take"):
        hub.connected(needs_more)


LETTERS = "ab:"


def names(length: int) -> Iterator[str]:
    for size in range(1, length + 1):
        for letters in product(LETTERS, repeat=size):
            yield "".join(letters)


NAMES = list(names(6))
parts = st.lists(st.sampled_from(["a", "b", ":", "{x}", "{x:path}"]), min_size=1, max_size=4)


def pattern_of(pieces: list[str]) -> NamePattern:
    return NamePattern("".join(piece.replace("x", f"x{i}") for i, piece in enumerate(pieces)), "here")


@given(parts, parts)
def test_overlap_is_what_trying_all_short_names_says(one: list[str], two: list[str]) -> None:
    """Four pieces of each need no longer a common name than six letters: each variable part can be one or two."""
    first, second = pattern_of(one), pattern_of(two)
    common = next((name for name in NAMES if first.match(name) is not None and second.match(name) is not None), None)
    assert first.overlaps(second) is (common is not None), common
    assert second.overlaps(first) is first.overlaps(second)


@given(parts, st.lists(st.text("abc:", min_size=1, max_size=4), min_size=4, max_size=4))
def test_a_made_name_is_read_as_it_was_made(pieces: list[str], texts: list[str]) -> None:
    pattern = pattern_of(pieces)
    values = dict(zip(pattern.names, texts, strict=False))
    try:
        name = pattern.make(values)
    except ValueError:
        return
    assert pattern.match(name) == values
