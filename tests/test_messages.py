"""The codecs: what passes, what does not, and that both agree with msgspec itself."""

from __future__ import annotations

import math
import struct
from contextlib import suppress
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import Raw

from hubbub import messages
from hubbub.errors import ClientError, ErrorCode
from hubbub.messages import (
    CHANNEL_NAME,
    JSON,
    MSGPACK,
    ROOM_ID,
    Inbox,
    WrongMessage,
    check_msgpack,
    plain_data,
    rfc3339,
)

plain = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"])),
    lambda children: st.lists(children, max_size=20) | st.dictionaries(st.text(max_size=5), children, max_size=20),
    max_leaves=50,
)
impure = st.recursive(
    plain
    | st.binary(max_size=5)
    | st.floats()
    | st.builds(msgspec.msgpack.Ext, st.integers(-128, 127), st.binary(max_size=4)),
    lambda children: (
        st.lists(children, max_size=4)
        | st.dictionaries(st.text(max_size=3) | st.integers() | st.none() | st.booleans(), children, max_size=4)
    ),
    max_leaves=10,
)


def is_plain(value: Any) -> bool:
    if isinstance(value, dict):
        return all(isinstance(key, str) and is_plain(item) for key, item in value.items())
    if isinstance(value, list):
        return all(map(is_plain, value))
    if isinstance(value, float):
        return math.isfinite(value)
    return value is None or isinstance(value, bool | int | str)


@given(value=plain)
def test_plain_values_pass_both_codecs_unchanged(value: Any) -> None:
    for codec, is_json in ((JSON, True), (MSGPACK, False)):
        payload = plain_data(Raw(codec.encode(value)), is_json=is_json)
        assert msgspec.json.decode(payload) == value
        assert msgspec.msgpack.decode(MSGPACK.convert(payload)) == value
        assert JSON.convert(payload) == payload


@given(value=impure)
def test_check_msgpack_refuses_exactly_what_json_cannot_say(value: Any) -> None:
    try:
        data = msgspec.msgpack.encode(value)
    except (OverflowError, ValueError):
        return  # an integer that MessagePack cannot say either
    if is_plain(value):
        check_msgpack(data)
    else:
        with pytest.raises(ValueError, match=r"keys|finite|binary"):
            check_msgpack(data)


@given(data=st.binary(max_size=60))
def test_check_msgpack_of_any_bytes(data: bytes) -> None:
    """It raises nothing but ValueError; and what it lets through, msgspec decodes to a plain value or refuses."""
    try:
        check_msgpack(data)
    except ValueError:
        return
    try:
        value = msgspec.msgpack.decode(data)
    except (msgspec.DecodeError, ValueError):
        return  # trailing or missing bytes, text that is not UTF-8
    assert is_plain(value)


@given(value=plain, cut=st.integers(1, 20))
def test_truncated_messages_are_refused(value: Any, cut: int) -> None:
    for codec, is_json in ((JSON, True), (MSGPACK, False)):
        data = codec.encode([value, "end"])
        with pytest.raises(ClientError) as refused:
            plain_data(Raw(data[: max(0, len(data) - cut)]), is_json=is_json)
        assert refused.value.code is ErrorCode.INVALID_MESSAGE
        assert "`$.data`" in refused.value.message


@pytest.mark.parametrize("depth", [1, 100, 200, 250])
def test_some_nesting_is_fine(depth: int) -> None:
    assert plain_data(Raw(b"[" * depth + b"]" * depth), is_json=True) == b"[" * depth + b"]" * depth
    assert plain_data(Raw(b"\x91" * depth + b"\x90"), is_json=False) == b"[" * (depth + 1) + b"]" * (depth + 1)


@pytest.mark.parametrize("depth", [5_000, 100_000])
def test_endless_nesting_is_not(depth: int) -> None:
    for raw, is_json in ((b"[" * depth + b"]" * depth, True), (b"\x91" * depth + b"\x90", False)):
        with pytest.raises(ClientError, match="nested too deeply"):
            plain_data(Raw(raw), is_json=is_json)


@pytest.mark.parametrize(
    "bomb",
    [
        b"\xdd" + struct.pack("!I", 2**32 - 1),
        b"\xdf" + struct.pack("!I", 2**32 - 1) + b"\xa1a",
        b"\xdc\xff\xff" + b"\xdc\xff\xff" * 20,
        b"\xdb" + struct.pack("!I", 2**31),
    ],
)
def test_length_bombs(bomb: bytes) -> None:
    with pytest.raises(ClientError):
        plain_data(Raw(bomb), is_json=False)


def inbox() -> Inbox:
    return Inbox((messages.Auth, messages.Ping, messages.Subscribe, messages.Publish))


def test_decode_says_what_is_wrong() -> None:
    for encode in (lambda value: JSON.encode(value).decode(), MSGPACK.encode):
        box = inbox()
        found = box.decode(encode({"type": "subscribe", "channel": "news", "ref": "r", "new": [1, {"x": 2}]}))
        assert isinstance(found, messages.Subscribe)
        assert (found.channel, found.ref, found.since, found.presence) == ("news", "r", None, False)
        for value, code, kind, ref, words in [
            (
                {"type": "subscribe", "channel": 1, "ref": "r"},
                ErrorCode.INVALID_MESSAGE,
                "subscribe",
                "r",
                "`$.channel`",
            ),
            ({"type": "subscribe", "ref": "r"}, ErrorCode.INVALID_MESSAGE, "subscribe", "r", "`channel`"),
            ({"type": "nope", "ref": "r"}, ErrorCode.UNKNOWN_TYPE, None, "r", "'nope'"),
            ({"type": "ping", "ref": 1}, ErrorCode.INVALID_MESSAGE, "ping", None, "`$.ref`"),
            ({"ref": "r"}, ErrorCode.INVALID_MESSAGE, None, "r", "type"),
            ([], ErrorCode.INVALID_MESSAGE, None, None, "object"),
        ]:
            with pytest.raises(WrongMessage) as refused:
                box.decode(encode(value))
            assert (refused.value.code, refused.value.kind, refused.value.ref) == (code, kind, ref), value
            assert words in refused.value.message


@given(data=st.text(max_size=80) | st.binary(max_size=80))
def test_decode_of_anything_raises_wrong_message_or_nothing(data: str | bytes) -> None:
    with suppress(WrongMessage):
        inbox().decode(data)


def test_names() -> None:
    for good in ("a", "news:sport", "a" * 128, "0", "_x", "user@host/path+q=1~-."):
        assert CHANNEL_NAME.fullmatch(good)
    for bad in ("", "a" * 129, "-a", ":a", "a b", "ä", "a\n", "a\x00", "a,b", "a*"):
        assert not CHANNEL_NAME.fullmatch(bad)
    for good in ("a", "0-_.", "a" * 64):
        assert ROOM_ID.fullmatch(good)
    for bad in ("", "a" * 65, ".a", "-a", "a:b", "a/b", "a\n", "ä"):
        assert not ROOM_ID.fullmatch(bad)


def test_timestamps() -> None:
    assert rfc3339(1_800_000_000.0) == "2027-01-15T08:00:00.000Z"
    assert rfc3339(0.9994) == "1970-01-01T00:00:00.999Z"
    assert rfc3339(1_800_000_000.1239) == "2027-01-15T08:00:00.123Z"


def test_defaults_are_left_out() -> None:
    assert JSON.encode(messages.Pong()) == b'{"type":"pong"}'
    assert JSON.encode(messages.Pong(ref="r")) == b'{"type":"pong","ref":"r"}'
    assert b"retry_after" not in JSON.encode(messages.Error(code="x", message="y"))
    assert JSON.encode(messages.TokenExpiring(in_=1.5)) == b'{"type":"token_expiring","in":1.5}'
