"""RFC 6455 framing, with the server protocol of `websockets` as the oracle.

Where Hubbub differs from the oracle on purpose, ``same()`` says so, and nowhere else.
"""

from __future__ import annotations

import importlib.util
import random
import sys
import tracemalloc
from codecs import getincrementaldecoder, utf_8_decode
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from websockets.client import ClientProtocol
from websockets.frames import Close as ForeignClose
from websockets.frames import Frame, Opcode
from websockets.protocol import OPEN
from websockets.server import ServerProtocol
from websockets.uri import parse_uri
from websockets.utils import apply_mask

from hubbub import frames
from hubbub.frames import (
    BINARY,
    CLOSE,
    CONTINUATION,
    PING,
    PONG,
    TEXT,
    Close,
    Event,
    Ping,
    Pong,
    Reader,
    Violation,
    close_frame,
    frame,
    header,
)

MAX_SIZE = 1 << 17
MASK = b"\x0f\xa5\x3c\x81"

moderate = settings(deadline=None, max_examples=150)


def masked(opcode: int, payload: bytes = b"", *, fin: bool = True, rsv: int = 0, mask: bytes = MASK) -> bytes:
    """A client's frame. Any first byte can be made, right or wrong; the length is in its shortest form."""
    plain = Frame(Opcode.BINARY, payload).serialize(mask=False)
    first = (0x80 if fin else 0) | rsv << 4 | opcode
    head = plain[: len(plain) - len(payload)]
    return bytes((first, 0x80 | head[1])) + head[2:] + mask + apply_mask(payload, mask)


def read(
    stream: bytes, *, cuts: list[int] | None = None, max_frames: int = 256, reader: Reader | None = None
) -> list[Event]:
    """All events of ``stream``, arriving in pieces that end at ``cuts``."""
    reader = reader or Reader(MAX_SIZE, 0)
    events: list[Event] = []
    begin = 0
    for cut in [*sorted(cuts or []), len(stream)]:
        events += reader.receive(stream[begin:cut], max_frames)
        begin = cut
        while reader.more:
            events += reader.receive(b"", max_frames)
    return events


def violation(stream: bytes, *, max_size: int = MAX_SIZE, max_fragments: int = 0) -> int:
    """The code of the violation that ``stream`` ends in, once it was seen that the reader is dead."""
    reader = Reader(max_size, max_fragments)
    last = read(stream, reader=reader)[-1]
    assert isinstance(last, Violation)
    assert 0 < len(last.reason.encode()) <= 123
    assert reader.receive(masked(TEXT, b"later")) == []
    assert (reader.more, reader.partial, reader.buffered) == (False, False, 0)
    return last.code


# ── Section 5.2: the frame


@pytest.mark.parametrize("size", [0, 1, 2, 3, 125, 126, 127, 1000, 65535, 65536, 100_000])
def test_whole_messages_of_every_length_encoding(size: int) -> None:
    assert read(masked(TEXT, b"x" * size)) == ["x" * size]
    assert read(masked(BINARY, b"\xff" * size)) == [b"\xff" * size]


def test_glued_messages_come_in_order() -> None:
    stream = masked(TEXT, b"a") + masked(BINARY, b"b" * 300) + masked(PING, b"c") + masked(TEXT, "dé".encode())
    assert read(stream) == ["a", b"b" * 300, Ping(b"c"), "dé"]


@pytest.mark.parametrize("opcode", [TEXT, BINARY, CONTINUATION, CLOSE, PING, PONG])
@pytest.mark.parametrize("rsv", [1, 2, 4, 7])
def test_reserved_bits_are_refused(opcode: int, rsv: int) -> None:
    assert violation(masked(opcode, b"", rsv=rsv)) == 1002


@pytest.mark.parametrize("opcode", [3, 4, 5, 6, 7, 11, 12, 13, 14, 15])
@pytest.mark.parametrize("fin", [True, False])
def test_unknown_opcodes_are_refused(opcode: int, fin: bool) -> None:
    assert violation(masked(opcode, b"", fin=fin)) == 1002


@pytest.mark.parametrize("head", ["81fe0000", "81fe007d", "82ff000000000000ffff", "81ff0000000000000001"])
def test_a_length_in_a_longer_form_than_needed_is_refused(head: str) -> None:
    """ "The minimal number of bytes MUST be used to encode the length." Refused before the masking key is there."""
    assert violation(bytes.fromhex(head)) == 1002
    assert [type(event) for event in read(bytes.fromhex(head) + bytes(70_000))] == [Violation]


def test_the_highest_bit_of_a_64_bit_length_must_be_0() -> None:
    assert violation(bytes.fromhex("82ff8000000000000000")) == 1002


# ── Section 5.1 and 5.3: masking


@pytest.mark.parametrize("opcode", [TEXT, BINARY, CONTINUATION, CLOSE, PING, PONG])
def test_an_unmasked_frame_is_refused(opcode: int) -> None:
    assert violation(Frame(Opcode(opcode), b"").serialize(mask=False)) == 1002


def test_an_unmasked_frame_is_refused_between_good_ones() -> None:
    assert read(masked(TEXT, b"a") + b"\x81\x01b" + masked(TEXT, b"c"))[:1] == ["a"]


@pytest.mark.parametrize("cut", range(1, 30))
def test_the_masking_key_is_rotated_where_a_payload_is_cut(cut: int) -> None:
    stream = masked(BINARY, bytes(range(20)), mask=b"\x01\x02\x04\x08")
    for second in range(cut, len(stream)):
        assert read(stream, cuts=[cut, second]) == [bytes(range(20))]


def test_the_python_masking_serves_where_the_extension_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "websockets.speedups", None)  # None forbids the import
    spec = importlib.util.find_spec("hubbub.frames")
    assert spec is not None
    assert spec.loader is not None
    pure = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "hubbub.frames", pure)  # dataclasses look themselves up there
    spec.loader.exec_module(pure)
    assert pure.apply_mask.__module__ == "websockets.utils"
    reader = pure.Reader(MAX_SIZE, 0)
    stream = masked(TEXT, b"whole") + masked(BINARY, b"x" * 40_000)
    assert reader.receive(stream[:20_000]) + reader.receive(stream[20_000:]) == ["whole", b"x" * 40_000]


# ── Section 5.4: fragmentation


def test_fragments_make_one_message_and_control_frames_may_stand_between() -> None:
    stream = (
        masked(TEXT, b"\xc3", fin=False)
        + masked(PING, b"1")
        + masked(CONTINUATION, b"", fin=False)
        + masked(PONG, b"2")
        + masked(CONTINUATION, b"\xa9!")
        + masked(BINARY, b"", fin=False)
        + masked(CONTINUATION, b"")
    )
    assert read(stream) == [Ping(b"1"), Pong(b"2"), "é!", b""]


def test_a_continuation_of_nothing_is_refused() -> None:
    assert violation(masked(CONTINUATION, b"a")) == 1002
    assert violation(masked(TEXT, b"a") + masked(CONTINUATION, b"b")) == 1002


@pytest.mark.parametrize("opcode", [TEXT, BINARY])
@pytest.mark.parametrize("fin", [True, False])
def test_a_message_inside_a_fragmented_one_is_refused(opcode: int, fin: bool) -> None:
    assert violation(masked(TEXT, b"a", fin=False) + masked(opcode, b"b", fin=fin)) == 1002


# ── Section 5.5: control frames


@pytest.mark.parametrize("opcode", [CLOSE, PING, PONG])
def test_fragmented_control_frames_are_refused(opcode: int) -> None:
    assert violation(masked(opcode, b"", fin=False)) == 1002


@pytest.mark.parametrize("opcode", [CLOSE, PING, PONG])
def test_control_frames_over_125_bytes_are_refused_from_their_header(opcode: int) -> None:
    assert violation(masked(opcode, b"x" * 126)[:2]) == 1002


@pytest.mark.parametrize("size", [0, 1, 125])
def test_pings_and_pongs(size: int) -> None:
    stream = masked(PING, b"p" * size) + masked(PONG, b"q" * size)
    for cut in range(len(stream)):
        assert read(stream, cuts=[cut]) == [Ping(b"p" * size), Pong(b"q" * size)]


# ── Sections 5.5.1, 7.1.5 and 7.4: close


def test_a_close_frame_without_a_code_is_1005() -> None:
    assert read(masked(CLOSE)) == [Close(1005, "")]


def test_nothing_is_read_after_a_close_frame() -> None:
    """Section 1.4: "a peer discards any further data received"."""
    reader = Reader(MAX_SIZE, 0)
    assert reader.receive(masked(CLOSE, b"\x03\xe8bye") + masked(TEXT, b"late") + b"\xff") == [Close(1000, "bye")]
    assert reader.receive(masked(TEXT, b"later")) == []
    assert not reader.partial


def test_a_close_frame_inside_a_fragmented_message_is_read() -> None:
    """Section 5.4 allows control frames there; the oracle answers 1002 (Autobahn 7.1.5), which is its choice."""
    assert read(masked(TEXT, b"a", fin=False) + masked(CLOSE, b"\x03\xe8")) == [Close(1000, "")]


@pytest.mark.parametrize("code", [1000, 1001, 1002, 1003, *range(1007, 1015), 3000, 3999, 4000, 4408, 4999])
def test_close_codes_that_may_be_sent(code: int) -> None:
    assert read(masked(CLOSE, code.to_bytes(2) + "é".encode())) == [Close(code, "é")]
    assert read_by_client(close_frame(code, "é")) == ForeignClose(code, "é")


@pytest.mark.parametrize("code", [0, 1, 999, 1004, 1005, 1006, 1015, 1016, 1100, 2000, 2999, 5000, 65535])
def test_close_codes_that_may_not(code: int) -> None:
    assert violation(masked(CLOSE, code.to_bytes(2))) == 1002
    if code != 1005:
        with pytest.raises(ValueError, match="may be sent"):
            close_frame(code)


def test_a_close_payload_of_one_byte_is_refused() -> None:
    assert violation(masked(CLOSE, b"\x03")) == 1002


@pytest.mark.parametrize("reason", [b"\xff", b"\xc3", b"\xed\xa0\x80", b"a" * 122 + b"\xc3"])
def test_a_close_reason_that_is_not_utf_8_is_refused(reason: bytes) -> None:
    assert violation(masked(CLOSE, b"\x03\xe8" + reason)) == 1007


# ── Section 8.1: UTF-8

# The number of bytes after which no further byte can make it UTF-8 (Autobahn 6.4 and 6.6 to 6.21; RFC 3629 section 4).
NOT_UTF_8 = [
    (b"\x80", 1),
    (b"\xbf", 1),
    (b"a\xfe", 2),
    (b"\xff\xff", 1),
    (b"\xc0\xaf", 1),
    (b"\xc1\xbf", 1),
    (b"\xe0\x80\xaf", 2),
    (b"\xe0\x9f\xbf", 2),
    (b"\xf0\x80\x80\xaf", 2),
    (b"\xf0\x8f\xbf\xbf", 2),
    (b"\xed\xa0\x80", 2),
    (b"\xed\xbf\xbf", 2),
    (b"\xf4\x90\x80\x80", 2),
    (b"\xf5\x80\x80\x80", 1),
    (b"\xf8\x88\x80\x80\x80", 1),
    (b"\xc3\x28", 2),
    (b"\xe2\x82\x28", 3),
    (b"\xf0\x9f\x98\x28", 4),
    ("κόσμε".encode() + b"\xf4\x90\x80\x80" + b"edited", 12),
    ("κόσμε".encode() + b"\xed\xa0\x80" + b"edited", 12),
]


@pytest.mark.parametrize(("text", "doomed"), NOT_UTF_8)
def test_text_that_is_not_utf_8_is_refused_at_the_byte_that_dooms_it(text: bytes, doomed: int) -> None:
    payload = text + b"." * 200_000
    for whole in (masked(TEXT, payload), masked(TEXT, text), masked(TEXT, text + b"." * 300)):
        assert violation(whole, max_size=1 << 20) == 1007
    start = len(masked(TEXT, payload)) - len(payload)
    for prefix in (masked(TEXT, payload), masked(TEXT, b"", fin=False) + masked(CONTINUATION, payload)):
        reader = Reader(1 << 20, 0)
        start = len(prefix) - len(payload)
        reader.receive(prefix[:start])
        for at in range(1, doomed):
            assert reader.receive(prefix[start + at - 1 : start + at]) == []
        [event] = reader.receive(prefix[start + doomed - 1 : start + doomed])
        assert isinstance(event, Violation)
        assert event.code == 1007


@pytest.mark.parametrize("text", [b"\xc3", b"\xe2\x82", b"\xf0\x9f\x98", b"a" * 200 + b"\xc3"])
def test_text_that_ends_inside_a_character_is_refused(text: bytes) -> None:
    assert violation(masked(TEXT, text)) == 1007
    assert violation(masked(TEXT, text[:-1], fin=False) + masked(CONTINUATION, text[-1:])) == 1007
    assert violation(masked(TEXT, text, fin=False) + masked(CONTINUATION, b"")) == 1007


def test_every_pair_of_bytes_is_refused_exactly_where_no_character_begins_so() -> None:
    points = [*range(0x800), *range(0x800, 0xD800, 64), *range(0xE000, 0x110000, 64)]
    begins = {chr(point).encode()[:2] for point in points}
    leads = {begin[0] for begin in begins}
    head = masked(TEXT, b"x" * 9, mask=bytes(4))[:6]
    for one in range(256):
        for two in range(256):
            pair = bytes((one, two))
            fine = pair in begins or (one < 128 and two in leads)
            assert bool(Reader(MAX_SIZE, 0).receive(head + pair)) != fine, pair


def test_binary_messages_are_not_checked_for_utf_8() -> None:
    assert read(masked(BINARY, b"\xff", fin=False) + masked(CONTINUATION, b"\xfe")) == [b"\xff\xfe"]


# ── Section 10.4: limits


@pytest.mark.parametrize("limit", [0, 1, 100, 125, 126, 1000, 65535, 65536, 70_000])
def test_a_message_may_have_max_size_bytes_and_no_more(limit: int) -> None:
    whole = Reader(limit, 0)
    assert read(masked(BINARY, b"x" * limit), reader=whole) == [b"x" * limit]
    assert read(masked(TEXT, b"x" * limit), reader=Reader(limit, 0)) == ["x" * limit]
    for opcode in (TEXT, BINARY):
        assert violation(masked(opcode, b"x" * (limit + 1)), max_size=limit) == 1009
        assert violation(masked(opcode, b"x" * (limit + 1)) * 2, max_size=limit) == 1009
    halves = masked(TEXT, b"x" * (limit // 2), fin=False) + masked(CONTINUATION, b"x" * (limit - limit // 2))
    assert read(halves, reader=Reader(limit, 0)) == ["x" * limit]
    one_more = masked(TEXT, b"x" * (limit // 2), fin=False) + masked(CONTINUATION, b"x" * (limit - limit // 2 + 1))
    assert violation(one_more, max_size=limit) == 1009


@pytest.mark.parametrize("size", [126, 65536, 1 << 40, (1 << 63) - 1])
def test_too_big_a_frame_is_refused_from_its_header(size: int) -> None:
    head = bytes((0x82, 0xFE)) + size.to_bytes(2) if size < 65536 else bytes((0x82, 0xFF)) + size.to_bytes(8)
    assert violation(head, max_size=125) == 1009


def test_control_frames_do_not_count_towards_the_message() -> None:
    stream = masked(TEXT, b"x" * 10, fin=False) + masked(PING, b"p" * 125) + masked(CONTINUATION, b"")
    assert read(stream, reader=Reader(10, 2)) == [Ping(b"p" * 125), "x" * 10]


def test_a_message_may_have_max_fragments_frames_and_no_more() -> None:
    begin = masked(TEXT, b"a", fin=False) + masked(CONTINUATION, b"b", fin=False)
    assert read(begin + masked(CONTINUATION, b"c"), reader=Reader(MAX_SIZE, 3)) == ["abc"]
    assert violation(begin + masked(CONTINUATION, b"", fin=False) * 2, max_fragments=3) == 1009
    assert violation(begin + masked(CONTINUATION, b"c", fin=False) + masked(CONTINUATION), max_fragments=3) == 1009
    assert read((begin + masked(CONTINUATION)) * 5, reader=Reader(MAX_SIZE, 3)) == ["ab"] * 5


def test_what_came_before_a_violation_is_delivered() -> None:
    assert [type(event) for event in read(masked(TEXT, b"a") + masked(PING) + masked(3))] == [str, Ping, Violation]
    assert [type(event) for event in read(masked(TEXT, b"a") + masked(TEXT, b"\xff"))] == [str, Violation]


# ── What the caller steers by: more, partial, buffered


def test_max_frames_bounds_one_call() -> None:
    reader = Reader(MAX_SIZE, 0)
    stream = masked(TEXT, b"a") * 5 + masked(TEXT, b"abc")[:-1]
    assert reader.receive(stream, 2) == ["a", "a"]
    assert (reader.more, reader.partial) == (True, False)
    assert reader.buffered == len(stream) - 14
    assert reader.receive(b"", 2) == ["a", "a"]
    assert reader.more
    assert reader.receive(b"", 2) == ["a"]
    assert (reader.more, reader.partial) == (False, True)
    assert reader.receive(masked(TEXT, b"abc")[-1:] + masked(TEXT, b"z")) == ["abc", "z"]
    assert (reader.more, reader.partial, reader.buffered) == (False, False, 0)


def test_bytes_that_arrive_while_frames_wait_come_after_them() -> None:
    reader = Reader(MAX_SIZE, 0)
    assert reader.receive(masked(TEXT, b"a") + masked(TEXT, b"b"), 1) == ["a"]
    assert reader.receive(masked(TEXT, b"c"), 1) == ["b"]
    assert reader.receive(b"", 1) == ["c"]
    assert not reader.more


def test_a_violation_may_be_what_waits() -> None:
    reader = Reader(MAX_SIZE, 0)
    assert reader.receive(masked(TEXT, b"a") + masked(3), 1) == ["a"]
    assert reader.more
    [event] = reader.receive(b"", 1)
    assert isinstance(event, Violation)
    assert not reader.more


def test_partial_holds_for_every_unfinished_frame_or_message() -> None:
    for stream in (masked(TEXT, b"abc"), masked(BINARY, b"x" * 70_000)[:100], masked(PING, b"abc")):
        for cut in range(1, len(stream)):
            reader = Reader(MAX_SIZE, 0)
            assert reader.receive(stream[:cut]) == []
            assert reader.partial
            assert 0 <= reader.buffered <= cut
    reader = Reader(MAX_SIZE, 0)
    assert not reader.partial
    reader.receive(masked(TEXT, b"", fin=False))
    assert reader.partial
    reader.receive(masked(PING, b""))
    assert reader.partial
    assert reader.receive(masked(CONTINUATION, b"")) == [""]
    assert not reader.partial


# ── Cost


def test_an_idle_reader_is_small() -> None:
    reader = Reader(MAX_SIZE, 0)
    reader.receive(masked(TEXT, b"a", fin=False) + masked(CONTINUATION, b"b"))
    collector = 16  # bytes in front of every object that the collector tracks
    referred = [getattr(reader, name) for name in Reader.__slots__]
    assert sys.getsizeof(reader) + collector < 100
    assert referred == [0, MAX_SIZE, None, 253, False]  # the limits are the caller's own objects


@pytest.mark.parametrize("piece", [1, 1000])
@pytest.mark.parametrize("opcode", [TEXT, BINARY])
def test_the_work_for_a_big_frame_is_linear(monkeypatch: pytest.MonkeyPatch, piece: int, opcode: int) -> None:
    """Counts the bytes that are unmasked and decoded, and looks at what is kept to be joined with later bytes."""
    unmasked = decoded = 0

    def counting_mask(data: bytes, key: bytes) -> bytes:
        nonlocal unmasked
        unmasked += len(data)
        return apply_mask(data, key)

    def counting_decode(data: bytes, errors: str, final: bool) -> tuple[str, int]:
        nonlocal decoded
        decoded += len(data)
        return utf_8_decode(data, errors, final)

    payload = ("aé漢😀" * 20_000).encode()[:100_000]
    payload = payload.decode("utf-8", "ignore").encode()
    stream = masked(opcode, payload)
    monkeypatch.setattr(frames, "apply_mask", counting_mask)
    monkeypatch.setattr(frames, "utf_8_decode", counting_decode)
    reader = Reader(MAX_SIZE, 0)
    events: list[Event] = []
    for begin in range(0, len(stream), piece):
        events += reader.receive(stream[begin : begin + piece])
        rest = reader._rest
        assert rest is None or len(rest.tail) < 14  # a header
    assert events == [payload.decode() if opcode == TEXT else payload]
    assert unmasked == len(payload)
    assert decoded <= len(payload) + 3 * (len(payload) // piece + 1)


def test_waiting_frames_are_not_copied_again_and_again() -> None:
    reader = Reader(MAX_SIZE, 0)
    stream = masked(TEXT, b"a") * 1000
    reader.receive(stream, 1)
    for _ in range(999):
        assert reader._rest is not None
        assert reader._rest.tail is stream
        assert reader.receive(b"", 1) == ["a"]
    assert reader._rest is None


@pytest.mark.parametrize("payload", [b"", b"x", b"\xc3\xa9"])
def test_a_flood_of_fragments_that_never_ends_holds_no_more_than_the_message(payload: bytes) -> None:
    limit = 1 << 16
    flood = masked(CONTINUATION, payload, fin=False) * 1000
    reader = Reader(limit, 0)
    reader.receive(masked(TEXT, b"", fin=False))
    tracemalloc.start()
    try:
        for _ in range(40):
            if any(isinstance(event, Violation) for event in reader.receive(flood, 1000)):
                break
            assert reader.buffered <= limit
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 1.25 * limit + 10_000


def test_a_declared_length_reserves_nothing() -> None:
    reader = Reader(1 << 30, 0)
    tracemalloc.start()
    try:
        reader.receive(bytes((0x82, 0xFF)) + (1 << 30).to_bytes(8) + MASK + b"x")
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 10_000


# ── What the server writes


def client_frames(data: bytes) -> list[Frame]:
    client = ClientProtocol(parse_uri("ws://localhost/"), state=OPEN, max_size=None)
    client.receive_data(data)
    events = client.events_received()
    assert client.parser_exc is None
    assert all(isinstance(event, Frame) for event in events)
    return [event for event in events if isinstance(event, Frame)]


def read_by_client(data: bytes) -> ForeignClose:
    [received] = client_frames(data)
    assert received.opcode is Opcode.CLOSE
    return ForeignClose.parse(bytes(received.data))


@pytest.mark.parametrize("size", [0, 1, 125, 126, 65535, 65536])
@pytest.mark.parametrize("opcode", [TEXT, BINARY])
def test_a_client_reads_our_frames(opcode: int, size: int) -> None:
    [received] = client_frames(frame(opcode, b"x" * size))
    assert (received.opcode, bytes(received.data), received.fin) == (opcode, b"x" * size, True)
    assert header(opcode, size) + b"x" * size == Frame(Opcode(opcode), b"x" * size).serialize(mask=False)


def test_a_control_frame_over_125_bytes_is_not_written() -> None:
    """Section 5.5. Ours to avoid, so it raises."""
    with pytest.raises(ValueError, match="ping"):
        frame(PING, b"x" * 126)
    with pytest.raises(ValueError, match="close"):
        header(CLOSE, 126)


def test_a_close_frame_without_a_code_is_empty() -> None:
    assert close_frame(1005, "not sent") == b"\x88\x00"
    assert read_by_client(close_frame(1005)).code == 1005


@moderate
@given(st.text(max_size=200))
def test_a_close_reason_is_cut_at_a_character(reason: str) -> None:
    data = close_frame(1000, reason)
    assert len(data) <= 127
    received = read_by_client(data).reason
    assert reason.startswith(received)
    assert received == reason or len(received.encode()) > 119


def test_a_close_reason_that_no_utf_8_can_carry_is_still_written() -> None:
    assert read_by_client(close_frame(1000, "a\ud800b")).reason == "a?b"


# ── The oracle


def oracle(stream: bytes) -> tuple[list[Event], bool]:
    """What `websockets` reads; and whether a fragmented message was open when it stopped."""
    server = ServerProtocol(state=OPEN, max_size=MAX_SIZE)
    server.receive_data(stream)
    events: list[Event] = []
    opcode: Opcode | None = None
    data = b""
    decoder = getincrementaldecoder("utf-8")()
    for received in server.events_received():
        assert isinstance(received, Frame)
        payload = bytes(received.data)
        if received.opcode is Opcode.PING:
            events.append(Ping(payload))
        elif received.opcode is Opcode.PONG:
            events.append(Pong(payload))
        elif received.opcode is Opcode.CLOSE:
            close = ForeignClose.parse(payload)
            events.append(Close(close.code, close.reason))
        else:
            if received.opcode is not Opcode.CONT:
                opcode, data = received.opcode, b""
                decoder.reset()
            data += payload
            if opcode is Opcode.TEXT:  # the connection above the oracle's protocol does this
                try:
                    decoder.decode(payload, received.fin)
                except UnicodeDecodeError:
                    return [*events, Violation(1007, "")], False
            if received.fin:
                events.append(data.decode() if opcode is Opcode.TEXT else data)
                opcode = None
    if server.parser_exc is not None:
        assert server.close_sent is not None
        events.append(Violation(server.close_sent.code, ""))
    return events, opcode is not None


def code(events: list[Event]) -> int | None:
    return events[-1].code if events and isinstance(events[-1], Violation) else None


def same(ours: list[Event], theirs: list[Event], *, fragmented: bool) -> bool:
    """Whether both read the same, up to what Hubbub does differently on purpose."""
    mine, other = code(ours), code(theirs)
    if mine is None and other is None:
        return ours == theirs
    if (
        ours
        and isinstance(ours[-1], Violation)
        and ("shortest form" in ours[-1].reason or "125 bytes" in ours[-1].reason)
    ):
        return ours[:-1] == theirs[: len(ours) - 1]  # section 5.2; the oracle reads any form of a length, also a ping's
    if fragmented and mine is None and other == 1002 and isinstance(ours[-1], Close):
        return ours[:-1] == theirs[:-1]  # a close frame inside a fragmented message
    if (mine, other) == (1002, 1009):
        return ours[:-1] == theirs[:-1]  # two faults in one header; the oracle looks at the size first
    return mine == other and ours[:-1] == theirs[:-1]


payloads = st.one_of(
    st.text(max_size=40).map(str.encode),
    st.binary(max_size=40),
    st.sampled_from([b"", b"\xff", b"x" * 125, b"x" * 126, "é".encode() * 63, b"x" * 300, b"y" * 65535, b"z" * 65536]),
)
masks = st.binary(min_size=4, max_size=4)


@st.composite
def legal_streams(draw: st.DrawFn) -> list[bytes]:
    """Frames that a good client may send."""
    out: list[bytes] = []
    for payload, text in draw(st.lists(st.tuples(payloads, st.booleans()), max_size=6)):
        payload = payload.decode("utf-8", "replace").encode() if text else payload
        cuts = sorted(draw(st.lists(st.integers(0, len(payload)), max_size=4)))
        edges = [0, *cuts, len(payload)]
        for index in range(len(edges) - 1):
            opcode = CONTINUATION if index else TEXT if text else BINARY
            piece = payload[edges[index] : edges[index + 1]]
            out.append(masked(opcode, piece, fin=index == len(edges) - 2, mask=draw(masks)))
            if draw(st.booleans()):
                out.append(masked(draw(st.sampled_from([PING, PONG])), draw(st.binary(max_size=125)), mask=draw(masks)))
    if draw(st.booleans()):
        out.append(masked(CLOSE, draw(st.sampled_from([b"", b"\x03\xe8", b"\x0f\xa0bye"])), mask=draw(masks)))
    return out


@st.composite
def any_frames(draw: st.DrawFn) -> bytes:
    """A frame of which any part may be wrong."""
    opcode = draw(st.sampled_from([0, 0, 1, 1, 2, 2, 8, 9, 10, 3, 11]))
    rsv = draw(st.sampled_from([0] * 15 + [1, 4]))
    data = masked(opcode, draw(payloads), fin=draw(st.booleans()), rsv=rsv, mask=draw(masks))
    return data if draw(st.integers(0, 20)) else bytes((data[0], data[1] & 0x7F)) + data[2:]


@st.composite
def mutated_streams(draw: st.DrawFn) -> bytes:
    stream = bytearray(b"".join(draw(st.one_of(legal_streams(), st.lists(any_frames(), max_size=6)))))
    for _ in range(draw(st.integers(0, 3))):
        if stream:
            at = draw(st.one_of(st.integers(0, min(20, len(stream) - 1)), st.integers(0, len(stream) - 1)))
            change = draw(st.sampled_from(["set", "insert", "delete"]))
            if change == "delete":
                del stream[at]
            elif change == "insert":
                stream.insert(at, draw(st.integers(0, 255)))
            else:
                stream[at] = draw(st.integers(0, 255))
    # Completes every frame that both would still wait for, so that both have said all they have to say.
    return bytes(stream) + bytes(MAX_SIZE + 14)


@moderate
@given(legal_streams())
def test_good_streams_read_as_the_oracle_reads_them(stream: list[bytes]) -> None:
    theirs, _ = oracle(b"".join(stream))
    assert code(theirs) is None
    assert read(b"".join(stream)) == theirs


@settings(moderate, max_examples=400)
@given(mutated_streams())
def test_bad_streams_fail_as_with_the_oracle(stream: bytes) -> None:
    theirs, fragmented = oracle(stream)
    assert same(read(stream), theirs, fragmented=fragmented)


def test_a_short_control_frame_with_a_long_form_of_its_length_is_refused() -> None:
    """Found by the test above: the oracle reads such a ping."""
    stream = masked(TEXT, b"0000", fin=False, mask=bytes(4)) + b"\x89\xfe\x00\x00" + bytes(4) + bytes(MAX_SIZE + 14)
    (refused,) = read(stream)
    assert isinstance(refused, Violation)
    assert refused.code == 1002
    theirs, fragmented = oracle(stream)
    assert same([refused], theirs, fragmented=fragmented)


@moderate
@given(mutated_streams(), st.data())
def test_any_split_gives_the_same_events(stream: bytes, data: st.DataObject) -> None:
    stream = stream[:-MAX_SIZE]
    whole = read(stream)
    near = st.integers(0, min(len(stream), 60))
    cuts = data.draw(st.lists(st.one_of(near, st.integers(0, len(stream))), max_size=30))
    assert read(stream, cuts=cuts, max_frames=data.draw(st.integers(1, 5))) == whole
    assert read(stream[:500], cuts=list(range(min(len(stream), 500)))) == read(stream[:500])


def noise(seed: int) -> Iterator[bytes]:
    """Chunks of which many begin as frames do."""
    rng = random.Random(seed)
    for _ in range(60):
        kind = rng.random()
        if kind < 0.3:
            yield rng.randbytes(rng.randrange(40))
        elif kind < 0.4:
            yield bytes((rng.choice([0x81, 0x82, 0x01, 0x00, 0x80]), rng.choice([0xFE, 0xFF]))) + rng.randbytes(12)
        else:
            opcode = rng.choice([0, 0, 1, 2, 9, 10])
            yield masked(opcode, rng.choice([b"a", b"", b"\xc3\xa9" * 80, b"x" * 70_000]), fin=rng.random() < 0.7)


def test_no_bytes_make_it_raise() -> None:
    for seed in range(1000):
        reader = Reader(MAX_SIZE, seed % 5)
        dead = False
        for chunk in noise(seed):
            events = reader.receive(chunk, 1 + seed % 7)
            assert not (dead and events)
            assert not any(isinstance(event, Violation | Close) for event in events[:-1])
            dead = dead or bool(events and isinstance(events[-1], Violation | Close))
            assert not (dead and (reader.more or reader.partial or reader.buffered))
