"""The wire: every message as a tagged struct, and the two codecs (JSON, MessagePack) that carry them.

The wire protocol, version 1, is described in ``docs/protocol.md``. Structs grow only at the end and with defaults;
unknown fields are ignored; an unknown ``type`` is answered with an ``error`` and changes nothing.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from functools import lru_cache
from typing import Annotated, Any, Final, Literal

import msgspec
from msgspec import UNSET, Meta, Raw, Struct, UnsetType

from hubbub.errors import ClientError, ErrorCode

PROTOCOL_VERSION: Final = 1

MAX_DEPTH: Final = 256
"""Arrays and objects inside one another in `data`: what every codec and client can read."""
TEXT: Final = 1
BINARY: Final = 2
"""The opcodes that carry the codecs (RFC 6455 section 5.2)."""

CHANNEL_NAME: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.:@/+=~-]{0,127}")
"""What a channel may be called: 1 to 128 characters, ASCII, so that it is safe in logs, keys and URLs."""
ROOM_ID: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}")
"""What a room may be called: 1 to 64 characters."""

Ref = Annotated[str, Meta(max_length=64)]
Name = Annotated[str, Meta(max_length=140)]
UserId = Annotated[str, Meta(max_length=128)]
Offset = Annotated[int, Meta(ge=0, le=2**53)]


class Position(Struct, frozen=True):
    """Where a reader is in a channel: ``offset`` counts publications from 1; a new ``epoch`` voids all old offsets."""

    epoch: Annotated[str, Meta(max_length=64)]
    offset: Offset


# -- client → server ---------------------------------------------------------------------------------------------


class ClientMessage(Struct, tag_field="type", kw_only=True):
    """Base of what a client sends. ``ref`` comes back in the ack, reply or error."""

    ref: Ref | None = None


class Auth(ClientMessage, tag="auth"):
    """``session``: the id of the session that this one continues (from its ``auth_success``)."""

    token: str
    session: Annotated[str, Meta(max_length=64)] | None = None


class Ping(ClientMessage, tag="ping"):
    pass


class Heartbeat(ClientMessage, tag="heartbeat"):
    pass


class Subscribe(ClientMessage, tag="subscribe"):
    channel: Name
    since: Position | None = None
    presence: bool = False


class Unsubscribe(ClientMessage, tag="unsubscribe"):
    channel: Name


class Publish(ClientMessage, tag="publish", gc=False):
    """``key``: what `conflate` keeps the newest of. ``exclude_self``: this session does not get it, live or recovered.

    ``idempotency_key``: it is published once with it, however often it is sent. ``version``: it is published only if it
    is a newer one."""

    channel: Name
    data: Raw
    key: Annotated[str, Meta(max_length=128)] | None = None
    exclude_self: bool = False
    idempotency_key: Annotated[str, Meta(min_length=1, max_length=128)] | None = None
    version: Offset | None = None


class GetHistory(ClientMessage, tag="history"):
    channel: Name
    after: Offset | None = None
    before: Offset | None = None
    limit: Annotated[int, Meta(ge=1, le=200)] = 50


class GetPresence(ClientMessage, tag="presence"):
    channel: Name


class Response(ClientMessage, tag="response"):
    """The answer to a `request`: ``data``, or ``error`` where it could not be served."""

    id: Annotated[str, Meta(max_length=64)]
    data: Raw = Raw(b"null")
    error: Annotated[str, Meta(max_length=1000)] | None = None


# -- server → client ---------------------------------------------------------------------------------------------


class ServerMessage(Struct, tag_field="type", omit_defaults=True):
    """Base of what the server sends. Fields at their default are left out; ``ref`` is given by name."""


class Reply(ServerMessage, kw_only=True):
    """What answers a client's message carries its ``ref``."""

    ref: str | None = None


class AuthSuccess(Reply, tag="auth_success"):
    """``heartbeat``: seconds of silence after which the server pings. ``token_expires``: unix seconds."""

    user_id: str
    session: str
    heartbeat: float
    token_expires: float | UnsetType = UNSET


class Pong(Reply, tag="pong"):
    pass


class HeartbeatAck(Reply, tag="heartbeat_ack"):
    pass


class Subscribed(Reply, tag="subscribed"):
    channel: str
    epoch: str
    offset: int
    recovered: bool
    messages: list[Any]
    presence: dict[str, Any] | UnsetType = UNSET
    count: int | UnsetType = UNSET
    state: Any = UNSET


class Unsubscribed(Reply, tag="unsubscribed"):
    channel: str
    reason: str | None = None


class Ack(Reply, tag="ack", gc=False):
    """A handler of the app is done, and has nothing else to say."""


class PublishAck(Reply, tag="ack", gc=False):
    offset: int
    epoch: str


class HistoryReply(Reply, tag="history"):
    channel: str
    epoch: str
    offset: int
    messages: list[Any]
    more: bool


class PresenceReply(Reply, tag="presence"):
    channel: str
    users: dict[str, Any]
    count: int


class PresenceChanged(ServerMessage, tag="presence_changed"):
    channel: str
    joined: dict[str, Any]
    left: list[str]
    count: int | UnsetType = UNSET


class Gap(ServerMessage, tag="gap"):
    """Publications up to ``offset`` that this client has not had are gone for good: reload your state."""

    channel: str
    epoch: str
    offset: int


class PositionChanged(ServerMessage, tag="position"):
    """Positions of a channel are of another epoch from here on, although nothing was missed: note this one."""

    channel: str
    epoch: str
    offset: int


class TokenExpiring(ServerMessage, tag="token_expiring"):
    in_: float = msgspec.field(name="in")


class Reconnect(ServerMessage, tag="reconnect"):
    """The server is about to drain: come back after so many seconds (different for each client)."""

    after: float


class ServerRequest(ServerMessage, tag="request"):
    """The server asks this client for something; it answers with `response` and the same ``id``."""

    id: str
    method: str
    data: Any = None


class Error(Reply, tag="error"):
    code: str
    message: str
    retry_after: float | None = None
    id: str | None = None


NotificationType = Literal["info", "success", "warning", "error"]


class NotificationData(Struct, frozen=True):
    id: str
    title: str
    message: str
    notification_type: NotificationType
    timestamp: str
    metadata: dict[str, Any]


class Notification(ServerMessage, tag="notification"):
    data: NotificationData


class BroadcastData(Struct, frozen=True):
    title: str
    message: str
    notification_type: NotificationType
    timestamp: str


class BroadcastNotification(ServerMessage, tag="broadcast_notification"):
    data: BroadcastData


# -- codecs ------------------------------------------------------------------------------------------------------


class Codec:
    """One encoding of the wire's objects. There are two instances in a process: :data:`JSON` and :data:`MSGPACK`.

    :ivar name: what ``?format=`` calls it.
    :ivar subprotocol: what a client offers to get it, or None for the default.
    :ivar opcode: the WebSocket opcode that carries it.
    """

    __slots__ = ("encode", "is_json", "name", "opcode", "subprotocol")

    def __init__(self, name: str, subprotocol: str | None, opcode: int, encode: Callable[[Any], bytes]) -> None:
        self.name = name
        self.subprotocol = subprotocol
        self.opcode = opcode
        self.encode = encode
        self.is_json = opcode == TEXT

    def embed(self, payload: bytes) -> Any:
        """Make a payload (JSON text) a part of a larger message in this codec."""
        return Raw(payload) if self.is_json else msgspec.json.decode(payload)

    def convert(self, payload: bytes) -> bytes:
        """Turn a payload (JSON text) into this codec's bytes."""
        return payload if self.is_json else self.encode(msgspec.json.decode(payload))

    def __repr__(self) -> str:
        return f"<Codec {self.name}>"


_json_encoder = msgspec.json.Encoder()
_msgpack_encoder = msgspec.msgpack.Encoder()
JSON: Final = Codec("json", None, TEXT, _json_encoder.encode)
MSGPACK: Final = Codec("msgpack", "hubbub.msgpack", BINARY, _msgpack_encoder.encode)
CODECS: Final = {codec.name: codec for codec in (JSON, MSGPACK)}


class _Envelope(Struct):
    """What can still be read of a message that is wrong elsewhere: its type, and the ref that its error must carry."""

    type: Raw = Raw()
    ref: Raw = Raw()


class Inbox:
    """Decodes client messages of a fixed set of types, strictly, from both codecs.

    :param types: the structs, each with its own tag.
    """

    def __init__(self, types: Iterable[type[ClientMessage]]) -> None:
        self.types = {str(t.__struct_config__.tag): t for t in types}
        union: Any = None
        for struct in self.types.values():
            union = struct if union is None else union | struct
        self._json = msgspec.json.Decoder(union)
        self._msgpack = msgspec.msgpack.Decoder(union)
        self._json_envelope = msgspec.json.Decoder(_Envelope)
        self._msgpack_envelope = msgspec.msgpack.Decoder(_Envelope)

    def decode(self, data: str | bytes) -> ClientMessage:
        """Decode one message: ``str`` is JSON, ``bytes`` is MessagePack.

        :raises WrongMessage: says what is wrong and where, and carries the message's ``ref`` if that could be read.
        """
        try:
            message: ClientMessage = self._json.decode(data) if isinstance(data, str) else self._msgpack.decode(data)
            return message
        except (msgspec.DecodeError, RecursionError, ValueError, OverflowError) as error:
            raise self._explain(data, error) from None

    def _explain(self, data: str | bytes, error: Exception) -> WrongMessage:
        if not isinstance(error, msgspec.ValidationError):
            text = "nested too deeply" if isinstance(error, RecursionError) else str(error)
            kind = "JSON" if isinstance(data, str) else "MessagePack"
            return WrongMessage(ErrorCode.INVALID_JSON, f"not valid {kind}: {text[:200]}", None, None)
        kind_of, ref = self._envelope(data)
        if kind_of is not None and kind_of not in self.types:
            return WrongMessage(ErrorCode.UNKNOWN_TYPE, f"no message has the type {kind_of[:64]!r}", ref, None)
        return WrongMessage(ErrorCode.INVALID_MESSAGE, str(error)[:300], ref, kind_of)

    def kind_of(self, data: str | bytes) -> str | None:
        """The ``type`` of a message, without decoding the rest."""
        return self._envelope(data)[0]

    def ref_of(self, data: str | bytes) -> str | None:
        """The ``ref`` of a message that is refused without being decoded."""
        return self._envelope(data)[1]

    def _envelope(self, data: str | bytes) -> tuple[str | None, str | None]:
        is_json = isinstance(data, str)
        try:
            found = self._json_envelope.decode(data) if isinstance(data, str) else self._msgpack_envelope.decode(data)
        except (msgspec.DecodeError, RecursionError, ValueError, OverflowError):
            return None, None
        kind, ref = _text(found.type, is_json), _text(found.ref, is_json)
        return kind, (ref if ref is not None and len(ref) <= 64 else None)


def _text(raw: Raw, is_json: bool) -> str | None:
    """The string in a field, or None. Nothing else is built of it (see :func:`check_msgpack`)."""
    try:
        return msgspec.json.decode(raw, type=str) if is_json else msgspec.msgpack.decode(raw, type=str)
    except (msgspec.DecodeError, ValueError):
        return None


class WrongMessage(ClientError):
    """A message that could not be decoded. ``kind`` is its type when that is known."""

    __slots__ = ("kind", "ref")

    def __init__(self, code: ErrorCode, message: str, ref: str | None, kind: str | None) -> None:
        super().__init__(code, message)
        self.ref = ref
        self.kind = kind


def plain_data(raw: Raw, *, is_json: bool) -> bytes:
    """Check a ``data`` field strictly and return it as compact JSON.

    Only what both codecs can carry passes: null, booleans, 64-bit integers, finite floats, strings without lone
    surrogates, arrays, and maps with string keys.

    :raises ClientError: ``invalid_message``, with the reason.
    """
    try:
        if is_json:
            value = msgspec.json.decode(raw)
            encoded = bytes(raw)
            if encoded.count(b"[") + encoded.count(b"{") > MAX_DEPTH:
                _check_depth(value)
            _msgpack_encoder.encode(value)  # refuses integers that do not fit in 64 bits
        else:
            check_msgpack(bytes(raw))
            value = msgspec.msgpack.decode(raw)
        return _json_encoder.encode(value)
    except (msgspec.DecodeError, RecursionError, ValueError, OverflowError, TypeError) as error:
        text = "nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise ClientError(ErrorCode.INVALID_MESSAGE, f"{text[:200]} - at `$.data`") from None


def _check_depth(value: Any) -> None:
    pending = [(value, 1)]
    while pending:
        inner, depth = pending.pop()
        if isinstance(inner, dict | list):
            if depth > MAX_DEPTH:
                raise ValueError("nested too deeply")
            pending += [(each, depth + 1) for each in (inner.values() if isinstance(inner, dict) else inner)]


def check_msgpack(data: bytes) -> None:
    """Walk one MessagePack value before anything is built from it.

    Building first would let a few thousand chosen integer keys cost a second of hashing, and NaN, binary and extension
    values have no JSON form.

    :raises ValueError: says what is not allowed.
    """
    position, pending, size = 0, [(1, False)], len(data)
    while pending:
        count, keyed = pending.pop()
        if count == 0:
            continue
        if len(pending) > MAX_DEPTH:
            raise ValueError("nested too deeply")
        if position >= size:
            raise ValueError("truncated")
        is_key = keyed and count % 2 == 0
        pending.append((count - 1, keyed))
        tag = data[position]
        if is_key and not (0xA0 <= tag <= 0xBF or 0xD9 <= tag <= 0xDB):
            raise ValueError("map keys must be strings")
        position, children, maps = _step(data, position, tag)
        if children:
            pending.append((children, maps))


_FIXED: Final = {0xC0: 0, 0xC2: 0, 0xC3: 0, 0xCC: 1, 0xCD: 2, 0xCE: 4, 0xCF: 8, 0xD0: 1, 0xD1: 2, 0xD2: 4, 0xD3: 8}
_SIZED: Final = {0xD9: 1, 0xDA: 2, 0xDB: 4, 0xDC: 2, 0xDD: 4, 0xDE: 2, 0xDF: 4}


def _step(data: bytes, position: int, tag: int) -> tuple[int, int, bool]:
    """One header: the position after it (and after a scalar's body), how many values follow, whether they are a map's."""
    position += 1
    if tag <= 0x7F or tag >= 0xE0:
        return position, 0, False
    if tag <= 0x8F:
        return position, 2 * (tag & 0x0F), True
    if tag <= 0x9F:
        return position, tag & 0x0F, False
    if tag <= 0xBF:
        return position + (tag & 0x1F), 0, False
    if tag in _FIXED:
        return position + _FIXED[tag], 0, False
    if tag in (0xCA, 0xCB):
        width = 4 if tag == 0xCA else 8
        body = data[position : position + width]
        exponent = int.from_bytes(body[:2], "big") & (0x7F80 if width == 4 else 0x7FF0)
        if exponent == (0x7F80 if width == 4 else 0x7FF0):
            raise ValueError("numbers must be finite")
        return position + width, 0, False
    if tag not in _SIZED:
        raise ValueError("binary and extension values have no JSON form")
    width = _SIZED[tag]
    count = int.from_bytes(data[position : position + width], "big")
    position += width
    if tag <= 0xDB:
        return position + count, 0, False
    if count > len(data) - position:
        raise ValueError("truncated")
    return (position, 2 * count, True) if tag >= 0xDE else (position, count, False)


@lru_cache(maxsize=16_384)
def rfc3339(now: float) -> str:
    """Unix seconds as RFC 3339 UTC with milliseconds: ``2026-11-22T20:37:03.123Z``."""
    return datetime.fromtimestamp(now, UTC).isoformat(timespec="milliseconds")[:-6] + "Z"


def error_message(error: ClientError, ref: str | None) -> Error:
    """The ``error`` message that tells a client of a refusal."""
    retry = None if error.retry_after is None else round(error.retry_after, 3)
    return Error(code=str(error.code), message=error.message, retry_after=retry, ref=ref)
