"""Hostile values, and every place of every command of the chat where one can be put: found in the types of its fields."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, Final, NamedTuple
from urllib.parse import quote

from msgspec import inspect as types

import hubbub.features.chat.chat  # noqa: F401  # which declares all commands
from hubbub.features.chat import asks
from hubbub.features.chat.tx import COMMANDS
from hubbub.messages import ClientMessage

ZALGO: Final = "z" + "".join(chr(0x300 + each % 0x70) for each in range(10_000)) + "!"
TEXTS: Final[dict[str, str]] = {
    "nothing": "",
    "space": " ",
    "NUL": "a\x00b",
    "control": "".join(map(chr, (*range(1, 32), *range(0x7F, 0xA0)))),
    "terminal": "\x1b[2J\x1b]0;owned\x07\x9b31m\r\n",
    "lone high surrogate": "a\ud83d",
    "lone low surrogate": "\ude00b",
    "swapped surrogates": "\ude00\ud83d",
    "right to left": "\u202egnp.exe\u202c \u2066x\u2069 \u200f \u061c",
    "zalgo": ZALGO,
    "short zalgo": ZALGO[:40],
    "unseen": "\u200b\u200d\ufeff\u2060\u00ad\ufe0f",
    "no characters": "\ufffe\uffff\U0010ffff\ufdd0",
    "last plane": "\U000e0041\U000e007f\U000f0000",
    "emoji": "👩‍👩‍👧‍👦🏴󠁧󠁢󠁥󠁮󠁧󠁿",
    "long": "x" * 20_000,
    "SQL": "'; DROP TABLE messages; --",
    "SQL 2": '" OR ""="',
    "SQL 3": "1); SELECT pg_sleep(9); --",
    "LIKE": "%_\\%[a-z]*?",
    "parameters": ":wanted %(x)s {0} $1 ?1 @x %s%n",
    "HTML": "<script>alert(1)</script><img src=x onerror=alert(1)>",
    "HTML 2": "&lt;b&gt; &#0; <!-- --> ]]> javascript:alert(1)",
    "template": "{{7*7}} ${7*7} #{7*7} <%= 7*7 %> ${jndi:ldap://127.0.0.1/a}",
    "JSON": '","type":"error","x":"\\u0000\\',
    "path": "../../../../etc/passwd",
    "header": "a\r\nSet-Cookie: x=1\r\n\r\n<p>",
    "FTS": 'a* AND (b OR NEAR("c" d)) NOT e^2 : -f "',
    "tsquery": "a & !b | <-> c:*A \\ '",
    "mention": "@room @[room] @@ @[[ ]] @" + "a" * 200,
    "number": "99999999999999999999.1.1",
    "cursor": "1.-1",
    "separators": "\u2028\u2029\x85\x0b\x0c",
}
"""What people and machines have broken servers with. Each must be refused, or be kept and shown as it is."""
NUMBERS: Final[tuple[Any, ...]] = (
    0, -1, 2**31, 2**36 - 1, 2**36, 2**53, 2**53 + 1, 2**63 - 1, 2**63, 2**64, -(2**63), 10**40, 1.5, 1e308, True, "1", [], {},
)  # fmt: skip
SAY: Final = "POST /api/rooms/{room_id}/messages"
WRONG: Final[tuple[Any, ...]] = (None, 7, -1.5, True, [], ["x", None], {}, {"x": []}, [[[[]]]])
"""What is in no field."""


class Place(NamedTuple):
    """Where in a message of clients a value can be put.

    :ivar path: names of fields, and 0 for an element of a list.
    :ivar holds: "text", "number" or "other".
    """

    message: type[ClientMessage]
    path: tuple[str | int, ...]
    holds: str

    def __str__(self) -> str:
        return f"{tag_of(self.message)}.{'.'.join(map(str, self.path))}"

    def put(self, fields: dict[str, Any], value: Any) -> dict[str, Any]:
        """The fields of a message with the value in this place."""
        *outer, last = self.path
        made: dict[str, Any] = dict(fields)
        if not outer:
            return {**made, str(last): value}
        name = str(outer[0])
        made[name] = [value] if last == 0 else {**made.get(name, {}), str(last): value}
        return made


def tag_of(message: type[ClientMessage]) -> str:
    return str(message.__struct_config__.tag)


def messages() -> list[type[ClientMessage]]:
    """All that clients may ask of the chat."""
    others = (asks.JoinRoom, asks.ChatMessage, asks.Typing)
    return sorted({*COMMANDS, *others}, key=tag_of)


def places(message: type[ClientMessage]) -> Iterator[Place]:
    info = types.type_info(message)
    assert isinstance(info, types.StructType)
    for field in info.fields:
        if field.encode_name != "ref":
            yield from _places(message, (field.encode_name,), field.type)


def _places(message: type[ClientMessage], path: tuple[str | int, ...], kind: types.Type) -> Iterator[Place]:
    if isinstance(kind, types.UnionType):
        for each in kind.types:
            yield from _places(message, path, each)
    elif isinstance(kind, types.StrType):
        yield Place(message, path, "text")
    elif isinstance(kind, types.IntType):
        yield Place(message, path, "number")
    elif isinstance(kind, types.ListType | types.VarTupleType):
        yield Place(message, path, "other")
        yield from _places(message, (*path, 0), kind.item_type)
    elif isinstance(kind, types.StructType):
        yield Place(message, path, "other")
        for field in kind.fields:
            yield from _places(message, (*path, field.encode_name), field.type)
    elif not isinstance(kind, types.NoneType):
        yield Place(message, path, "other")


def values(place: Place) -> dict[str, Any]:
    """What to put into a place, by name."""
    wrong = {f"wrong: {value!r}": value for value in WRONG}
    if place.holds == "text":
        return {**TEXTS, **wrong}
    if place.holds == "number":
        return {repr(value): value for value in NUMBERS}
    return {**wrong, "HTML": TEXTS["HTML"], "surrogate": TEXTS["lone high surrogate"]}


class Request(NamedTuple):
    """The same over HTTP. ``query`` is empty, or begins with its question mark."""

    method: str
    path: str
    query: str
    body: dict[str, Any] | None


def request(message: type[ClientMessage], fields: dict[str, Any]) -> Request | None:
    """A command as a request; None: it cannot be one, with these fields or at all."""
    http = SAY if message is asks.ChatMessage else COMMANDS[message].http if message in COMMANDS else None
    if http is None:
        return None
    method, _, path = http.partition(" ")
    rest = dict(fields)
    for name in re.findall(r"\{(\w+)\}", path):
        value = str(rest.pop(name, ""))
        if value in ("", ".", ".."):
            return None  # another path
        path = path.replace(f"{{{name}}}", quoted(value))
    if method in ("POST", "PUT", "PATCH"):
        return Request(method, path, "", rest)
    query = "&".join(f"{name}={quoted(value)}" for name, value in _pairs(rest))
    return Request(method, path, f"?{query}" if query else "", None)


def _pairs(fields: dict[str, Any]) -> Iterator[tuple[str, str]]:
    for name, value in fields.items():
        if isinstance(value, dict):
            yield from _pairs(value)
        elif isinstance(value, list):
            yield from ((name, str(each)) for each in value)
        elif value is not None:
            yield name, str(value)


def quoted(text: str) -> str:
    return quote(text.encode(errors="surrogatepass"), safe="")
