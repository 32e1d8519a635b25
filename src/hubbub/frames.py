"""RFC 6455 framing for a server: bytes in, messages and control frames out; unmasked frames to write.

:class:`Reader` turns what a client sent into events. It holds nothing while the connection is idle, never raises on
what a peer sends, and refuses as early as the bytes allow: sizes and reserved bits from the frame's header, UTF-8 as it
arrives. What answers an event (a pong, a close frame, the end of the connection) is the caller's affair.

No extension is negotiated here, so the RSV bits must be 0 (RFC 6455 section 5.2).
"""

from __future__ import annotations

from codecs import utf_8_decode
from dataclasses import dataclass
from itertools import repeat
from struct import Struct
from typing import Final, final

from hubbub.errors import CloseCode

try:
    from websockets.speedups import apply_mask
except ImportError:  # the C extension is not built on every platform
    from websockets.utils import apply_mask

CONTINUATION: Final = 0
TEXT: Final = 1
BINARY: Final = 2
CLOSE: Final = 8
PING: Final = 9
PONG: Final = 10

MAX_CONTROL_PAYLOAD: Final = 125
"""Bytes in the payload of a control frame (RFC 6455 section 5.5)."""


@final
@dataclass(slots=True)
class Ping:
    """A ping: answer it with a pong that carries the same ``data``, at most 125 bytes (RFC 6455 section 5.5.2)."""

    data: bytes


@final
@dataclass(slots=True)
class Pong:
    """A pong, asked for or not (RFC 6455 section 5.5.3); ``data`` is at most 125 bytes."""

    data: bytes


@final
@dataclass(slots=True)
class Close:
    """The peer's close frame (RFC 6455 section 5.5.1).

    ``code`` is 1005 where the frame had none; ``close_frame(code, reason)`` is always a legal answer.
    """

    code: int
    reason: str


@final
@dataclass(slots=True)
class Violation:
    """The peer broke the protocol or a limit: close with ``code`` (1002, 1007 or 1009) and read no further.

    ``reason`` is ours: short, and without a byte of what the peer sent.
    """

    code: int
    reason: str


Event = str | bytes | Ping | Pong | Close | Violation
"""What a peer did. A whole text message is a ``str``, a whole binary message is ``bytes``."""

_HEADER: Final = Struct("!BB4s").unpack_from  # of a masked frame with a length below 126
_HEADER_16: Final = Struct("!H4s").unpack_from  # what follows the first two bytes where the length is 126
_LENGTH_16: Final = Struct("!H").unpack_from
_LENGTH_64: Final = Struct("!Q").unpack_from
_WRITE_7: Final = Struct("!BB").pack
_WRITE_16: Final = Struct("!BBH").pack
_WRITE_64: Final = Struct("!BBQ").pack
_CODE: Final = Struct("!H")

_FINAL_TEXT: Final = 0x80 | TEXT
_FINAL_BINARY: Final = 0x80 | BINARY
_NAMES: Final = {CLOSE: "close", PING: "ping", PONG: "pong"}
# RFC 6455 section 7.4.1 and the IANA registry: 1004, 1005, 1006 and 1015 never stand in a frame.
_REGISTERED: Final = frozenset({1000, 1001, 1002, 1003, 1007, 1008, 1009, 1010, 1011, 1012, 1013, 1014})


class _Rest:
    """What a reader holds between two calls, where it holds anything at all."""

    __slots__ = ("at", "data", "fin", "fragments", "left", "mask", "opcode", "tail", "torn")

    def __init__(self) -> None:
        self.tail = b""  # bytes that wait: an unfinished header or control frame, or whole frames beyond max_frames
        self.at = 0  # where in the tail to go on
        self.opcode = 0  # of the unfinished message: TEXT, BINARY, or 0 for none
        self.data = bytearray()  # its payload, unmasked
        self.torn = b""  # the first bytes of a character that the text is not complete in: at most 3
        self.fragments = 0
        self.left = 0  # payload bytes to come of the frame that is arriving
        self.mask = b""  # its masking key, rotated to the next byte
        self.fin = False


_DEAD: Final = _Rest()  # shared: a reader that holds this reads no more


class Reader:
    """Reads the frames of one client.

    Idle, it is 72 bytes. While a message is unfinished it holds what has arrived of the payload, and nothing per fragment.

    :param max_size: bytes in one message, all its fragments together. More is a violation (1009), before any of the
        payload beyond it is held.
    :param max_fragments: frames in one message, the empty ones too; 0 for no cap. More is a violation (1009).
    """

    __slots__ = ("_max_fragments", "_max_size", "_rest", "_short", "more")

    more: bool
    """True when a whole frame may still wait, because ``max_frames`` was reached: call ``receive(b"")`` again."""

    def __init__(self, max_size: int, max_fragments: int) -> None:
        self._max_size = max_size
        self._max_fragments = max_fragments
        self._short = 128 + min(max_size, 125)  # the highest second byte (mask bit, 7-bit length) of a short frame
        self._rest: _Rest | None = None
        self.more = False

    @property
    def partial(self) -> bool:
        """True while a message or a frame is unfinished: the peer owes the rest of it within some deadline.

        A busy peer may be in the middle of some message at each look, so a deadline starts anew with each ``str`` or
        ``bytes`` event (not with pings, which may stand between fragments). What waits while :attr:`more` does not count.
        """
        rest = self._rest
        return rest is not None and (rest.opcode != 0 or (rest.tail != b"" and not self.more))

    @property
    def buffered(self) -> int:
        """Bytes held: what is not parsed yet, and the payload of the unfinished message."""
        rest = self._rest
        return 0 if rest is None else len(rest.tail) - rest.at + len(rest.data)

    def receive(self, data: bytes, max_frames: int = 256) -> list[Event]:
        """Parse at most ``max_frames`` frames of what was left before and ``data``.

        Never raises, whatever the bytes. A :class:`Close` or :class:`Violation` is the last event there will be:
        later calls return an empty list (RFC 6455 sections 1.4 and 7.1.7: what follows is discarded).
        """
        events: list[Event] = []
        pos = 0
        end = len(data)
        rest = self._rest
        if rest is None:
            # One short text is what most reads hold: without these lines the loop below costs it a third more.
            if end > 5:
                first, second, mask = _HEADER(data)
                if first == _FINAL_TEXT and end == second - 122 and second <= self._short:
                    try:
                        return [apply_mask(data[6:], mask).decode()]
                    except UnicodeDecodeError:
                        self._fail_text(events)
                        return events
        elif rest is _DEAD:
            return events
        elif rest.tail:
            data, pos = self._take_tail(rest, data)
            end = len(data)
            rest = self._rest
        last = end - 8
        short = self._short
        for _ in repeat(None, max_frames):
            # The straight path: a whole message in one whole frame. All else goes through _frame().
            if rest is None and pos <= last:
                first, second, mask = _HEADER(data, pos)
                start = pos + 6
                if 127 < second <= short:
                    stop = start + second - 128
                elif second == 254:
                    length, mask = _HEADER_16(data, pos + 2)
                    start += 2
                    stop = start + length if 126 <= length <= self._max_size else end + 1
                else:
                    stop = end + 1
                if stop <= end:
                    if first == _FINAL_TEXT:
                        try:
                            events.append(apply_mask(data[start:stop], mask).decode())
                        except UnicodeDecodeError:
                            self._fail_text(events)
                            break
                        pos = stop
                        continue
                    if first == _FINAL_BINARY:
                        events.append(apply_mask(data[start:stop], mask))
                        pos = stop
                        continue
            elif pos >= end:
                break
            pos = self._frame(data, pos, end, events)
            rest = self._rest
        else:
            if pos < end:
                self._hold(data, pos)
                self.more = True
        return events

    def _take_tail(self, rest: _Rest, data: bytes) -> tuple[bytes, int]:
        """Give back what waited, with ``data`` behind it, and where in it to go on."""
        self.more = False
        tail, at = rest.tail, rest.at
        rest.tail, rest.at = b"", 0
        if rest.opcode == 0:
            self._rest = None
        return (tail[at:] + data, 0) if data else (tail, at)

    def _hold(self, data: bytes, pos: int) -> None:
        """Keep ``data`` from ``pos`` on. An offset, not a copy: whoever reads one frame a call is not quadratic."""
        rest = self._rest
        if rest is None:
            rest = self._rest = _Rest()
        rest.tail, rest.at = data, pos

    def _frame(self, data: bytes, pos: int, end: int, events: list[Event]) -> int:
        """Parse one frame, or what there is of one, at ``pos``. Returns where the next begins: ``end`` to stop."""
        rest = self._rest
        if rest is not None and rest.left:
            return self._payload(rest, data, pos, end, events)
        there = end - pos
        if there < 2:
            return self._wait(data, pos, end)
        first = data[pos]
        second = data[pos + 1]
        opcode = first & 15
        # RFC 6455 section 5.2: RSV bits and unknown opcodes fail the connection; section 5.1: so does an unmasked frame.
        if first & 0x70:
            return self._fail(events, end, "reserved bits must be 0")
        if second < 128:
            return self._fail(events, end, "a client's frames must be masked")
        length = second & 127
        if opcode >= CLOSE:
            if opcode > PONG:
                return self._fail(events, end, "unknown opcode")
            # RFC 6455 section 5.5: control frames are not fragmented and short.
            if first < 128 or length > MAX_CONTROL_PAYLOAD:
                return self._fail(events, end, "a control frame must be whole and at most 125 bytes")
            stop = pos + 6 + length
            if stop > end:
                return self._wait(data, pos, end)
            payload = apply_mask(data[pos + 6 : stop], data[pos + 2 : pos + 6])
            return stop if self._control(opcode, payload, events) else end
        # RFC 6455 section 5.4: the fragments of two messages are not interleaved.
        if opcode == CONTINUATION:
            if rest is None:
                return self._fail(events, end, "a continuation of no message")
        elif opcode > BINARY:
            return self._fail(events, end, "unknown opcode")
        elif rest is not None:
            return self._fail(events, end, "a new message inside a fragmented one")
        # RFC 6455 section 5.2: the shortest encoding of the length, and 63 bits of it at most.
        start = pos + 6
        if length == 126:
            if there < 4:
                return self._wait(data, pos, end)
            start += 2
            (length,) = _LENGTH_16(data, pos + 2)
            if length < 126:
                return self._fail(events, end, "the length is not in its shortest form")
        elif length == 127:
            if there < 10:
                return self._wait(data, pos, end)
            start += 8
            (length,) = _LENGTH_64(data, pos + 2)
            if length < 65536 or length >> 63:
                return self._fail(events, end, "the length is not in its shortest form")
        # RFC 6455 section 10.4: limits on frames, and on messages put together from fragments.
        if length > self._max_size or (rest is not None and length + len(rest.data) > self._max_size):
            return self._fail(events, end, "the message is too big", CloseCode.TOO_BIG)
        if rest is not None and 0 < self._max_fragments <= rest.fragments:
            return self._fail(events, end, "the message has too many fragments", CloseCode.TOO_BIG)
        if start > end:
            return self._wait(data, pos, end)
        if rest is None:
            rest = self._rest = _Rest()
            rest.opcode = opcode
        rest.fragments += 1
        rest.fin = first >= 128
        rest.left = length
        rest.mask = data[start - 4 : start]
        return self._payload(rest, data, start, end, events)

    def _payload(self, rest: _Rest, data: bytes, pos: int, end: int, events: list[Event]) -> int:
        """Take what there is of a data frame's payload at ``pos``; hand out the message where that completes it."""
        stop = min(end, pos + rest.left)
        taken = stop - pos
        rest.left -= taken
        if rest.left:
            turn = taken & 3
            mask, rest.mask = rest.mask, rest.mask[turn:] + rest.mask[:turn]
        else:
            mask = rest.mask
        # A view of a large piece: its copy would cost more than the two objects.
        chunk = apply_mask(data[pos:stop] if taken < 16384 else memoryview(data)[pos:stop], mask)
        whole = rest.fin and not rest.left
        if whole and not rest.data:  # nothing to join: spare a large message its second copy
            try:
                events.append(chunk if rest.opcode == BINARY else chunk.decode())
            except UnicodeDecodeError:
                return self._fail_text(events, end)
            self._rest = None
            return stop
        if rest.opcode == TEXT and not self._is_text(rest, chunk, whole):
            return self._fail_text(events, end)
        rest.data += chunk
        if whole:
            events.append(bytes(rest.data) if rest.opcode == BINARY else rest.data.decode())
            self._rest = None
        return stop

    @staticmethod
    def _is_text(rest: _Rest, chunk: bytes, last: bool) -> bool:
        """Whether ``chunk`` goes on as UTF-8 (RFC 6455 section 8.1), refusing at the first byte that cannot.

        The characters are thrown away: a list of decoded pieces would hold many times what was sent.
        """
        if rest.torn:
            chunk = rest.torn + chunk
        elif chunk.isascii():
            return True
        try:
            _, used = utf_8_decode(chunk, "strict", last)
        except UnicodeDecodeError:
            return False
        rest.torn = torn = chunk[used:]
        # Python's decoder waits for the third byte of a surrogate, since its "surrogatepass" would need it.
        return not (len(torn) == 2 and torn[0] == 0xED and torn[1] >= 0xA0)

    def _control(self, opcode: int, payload: bytes, events: list[Event]) -> bool:
        """Hand out a control frame; False where it ends the connection."""
        if opcode == PING:
            events.append(Ping(payload))
            return True
        if opcode == PONG:
            events.append(Pong(payload))
            return True
        events.append(_parse_close(payload))
        self._die()
        return False

    def _wait(self, data: bytes, pos: int, end: int) -> int:
        """Keep an unfinished header or control frame: at most 130 bytes, so that what is joined again stays small."""
        self._hold(data[pos:end], 0)
        return end

    def _fail(self, events: list[Event], end: int, reason: str, code: int = CloseCode.PROTOCOL_ERROR) -> int:
        events.append(Violation(code, reason))
        self._die()
        return end

    def _fail_text(self, events: list[Event], end: int = 0) -> int:
        return self._fail(events, end, "the text is not UTF-8", CloseCode.INVALID_DATA)

    def _die(self) -> None:
        self._rest = _DEAD


def _parse_close(payload: bytes) -> Close | Violation:
    """RFC 6455 sections 5.5.1 and 7.4: nothing, or a code of two bytes and a reason in UTF-8."""
    if not payload:
        return Close(CloseCode.NO_STATUS, "")
    if len(payload) == 1:
        return Violation(CloseCode.PROTOCOL_ERROR, "the close code is cut short")
    try:
        reason = payload[2:].decode()
    except UnicodeDecodeError:
        return Violation(CloseCode.INVALID_DATA, "the close reason is not UTF-8")
    (code,) = _CODE.unpack_from(payload)
    if not _may_be_sent(code):
        return Violation(CloseCode.PROTOCOL_ERROR, "the close code is not one that may be sent")
    return Close(code, reason)


def _may_be_sent(code: int) -> bool:
    return 3000 <= code <= 4999 or code in _REGISTERED


def header(opcode: int, length: int) -> bytes:
    """The header of a server's frame: FIN set, not masked (RFC 6455 section 5.2). 2, 4 or 10 bytes.

    :param length: bytes of the payload that the caller will write behind it.
    :raises ValueError: for a control frame of more than 125 bytes (section 5.5).
    """
    if length < 126:
        return _WRITE_7(0x80 | opcode, length)
    if opcode >= CLOSE:
        raise ValueError(f"the payload of a {_NAMES.get(opcode, 'control')} frame is at most 125 bytes, not {length}")
    if length < 65536:
        return _WRITE_16(0x80 | opcode, 126, length)
    return _WRITE_64(0x80 | opcode, 127, length)


def frame(opcode: int, payload: bytes) -> bytes:
    """A whole server's frame: FIN set, not masked. The same bytes serve every receiver of one message.

    :raises ValueError: for a control frame of more than 125 bytes.
    """
    return header(opcode, len(payload)) + payload


def close_frame(code: int, reason: str = "") -> bytes:
    """A close frame (RFC 6455 section 5.5.1).

    :param code: what section 7.4 allows in a frame; 1005 stands for none and leaves the payload empty.
    :param reason: cut to 123 bytes of UTF-8, at a character.
    :raises ValueError: for a code that must not be sent (1004, 1006, 1015, and whatever is not registered).
    """
    if code == CloseCode.NO_STATUS:
        return _WRITE_7(0x80 | CLOSE, 0)
    if not _may_be_sent(code):
        raise ValueError(f"{int(code)} is not a close code that may be sent: use 1000-1014 as registered, or 3000-4999")
    encoded = reason.encode("utf-8", "replace")
    if len(encoded) > MAX_CONTROL_PAYLOAD - 2:
        encoded = encoded[: MAX_CONTROL_PAYLOAD - 2].decode("utf-8", "ignore").encode()
    return frame(CLOSE, _CODE.pack(code) + encoded)
