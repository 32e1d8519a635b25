"""What one connection of a test was sent: all of it, what of it was not read yet, and how it ended. Sans-IO.

Nothing here waits: who waits (a task, a thread) is woken by the :class:`Transcript` and looks again.
"""

from __future__ import annotations

import dataclasses
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any, Final, NamedTuple, TypeVar

import msgspec

T = TypeVar("T")

SHOWN: Final = 20
"""Messages that a failure shows; the newest."""
WIDTH: Final = 300
"""Characters of each of them."""
MISSING: Final[Any] = object()


class Failed(AssertionError):
    """A wait of a test client that did not end as it should: says what was expected, what came, and how it ended."""


class Refused(Failed):
    """The server answered with an ``error``.

    :ivar code: as in :class:`hubbub.ErrorCode`.
    :ivar message: what a person reads.
    :ivar retry_after: seconds, or None.
    :ivar reply: the whole message.
    """

    def __init__(self, reply: Mapping[str, Any], what: str = "the message") -> None:
        self.reply = dict(reply)
        self.code = str(reply.get("code", ""))
        self.message = str(reply.get("message", ""))
        self.retry_after: float | None = reply.get("retry_after")
        super().__init__(f"{what} was refused with {self.code}: {self.message}")


class Rejected(Failed):
    """The connection was refused before it was accepted.

    :ivar status: the HTTP status.
    :ivar body: of the answer, as text.
    """

    def __init__(self, status: int, body: str = "") -> None:
        self.status = status
        self.body = body
        super().__init__(f"the connection was refused with HTTP {status}: {body}")


class Ended(NamedTuple):
    """How a connection ended: the close code (1006: without a close frame) and its reason."""

    code: int
    reason: str


class Transcript:
    """One connection's messages, oldest first.

    :ivar seen: all that came, decoded; what is neither JSON nor MessagePack is here as it came.
    :ivar unread: what no verb has taken or passed over yet.
    :ivar raw: the same as they came on the wire, one for each of ``unread``.
    :ivar ended: how the connection ended, or None while it is open.
    :ivar failure: what the app raised, where it runs in this process.
    """

    def __init__(self, wake: Callable[[], None]) -> None:
        self.seen: list[Any] = []
        self.unread: deque[Any] = deque()
        self.raw: deque[str | bytes] = deque()
        self.ended: Ended | None = None
        self.failure: BaseException | None = None
        self._wake = wake

    # -- from the wire

    def arrived(self, data: str | bytes) -> None:
        message = decode(data)
        self.seen.append(message)
        self.unread.append(message)
        self.raw.append(data)
        self._wake()

    def end(self, code: int, reason: str = "", failure: BaseException | None = None) -> None:
        """The connection is over; only the first call counts."""
        if self.ended is None:
            self.ended = Ended(code, reason)
            self.failure = failure
            self._wake()

    def reopen(self) -> None:
        self.ended = self.failure = None

    # -- to the test

    def next(self) -> Any:
        """Take the oldest unread message, or :data:`MISSING`."""
        if not self.unread:
            return MISSING
        self.raw.popleft()
        return self.unread.popleft()

    def next_raw(self) -> Any:
        """The same, as it came."""
        if not self.unread:
            return MISSING
        self.unread.popleft()
        return self.raw.popleft()

    def passing(self, kind: str, fields: Mapping[str, Any]) -> Any:
        """Take messages up to the first of this kind with these fields and return that one, or :data:`MISSING`."""
        while self.unread:
            message = self.next()
            if matches(message, kind, fields):
                return message
        return MISSING

    def answer(self, ref: str) -> Any:
        """Take the message with this ``ref`` from among the unread ones, and leave those; or :data:`MISSING`."""
        for index, message in enumerate(self.unread):
            if isinstance(message, dict) and message.get("ref") == ref:
                del self.unread[index], self.raw[index]
                return message
        return MISSING

    def up_to(self, ref: str) -> Any:
        """All unread messages before the one with this ``ref``, taken with it; or :data:`MISSING` if it is not there."""
        if not any(isinstance(message, dict) and message.get("ref") == ref for message in self.unread):
            return MISSING
        before = []
        while not (isinstance(message := self.next(), dict) and message.get("ref") == ref):
            before.append(message)
        return before

    def explain(self, what: str, earlier: Any = None) -> str:
        """The text of a failure.

        :param what: what was expected, as a sentence's beginning.
        :param earlier: a message that would have been right, but was passed over or taken before.
        """
        lines = [what]
        if earlier is not None:
            lines.append(f"one came earlier, and was taken or passed over: {_short(earlier)}")
        hidden = len(self.seen) - SHOWN
        lines.append(f"what came, oldest first{f' (without the first {hidden})' if hidden > 0 else ''}:")
        lines += [f"  {_short(message)}" for message in self.seen[-SHOWN:]] or ["  nothing"]
        if self.ended is None:
            lines.append("the connection is open")
        else:
            code, reason = self.ended
            lines.append(f"the connection was closed with {code}{f' ({reason})' if reason else ''}")
        if self.failure is not None:
            lines.append(f"the app raised {self.failure!r}")
        return "\n".join(lines)


def matches(message: Any, kind: str, fields: Mapping[str, Any]) -> bool:
    """Whether a message is of a kind and has these fields with these values (others may be there too)."""
    return (
        isinstance(message, dict)
        and message.get("type") == kind
        and all(message.get(name, MISSING) == value for name, value in fields.items())
    )


def wanted(kind: str, fields: Mapping[str, Any]) -> str:
    listed = ", ".join(f"{name}={value!r}" for name, value in fields.items())
    return f"{kind!r} with {listed}" if listed else repr(kind)


def decode(data: str | bytes) -> Any:
    """JSON text or MessagePack as an object; anything else as it is."""
    try:
        return msgspec.json.decode(data) if isinstance(data, str) else msgspec.msgpack.decode(data)
    except (msgspec.DecodeError, RecursionError, ValueError):
        return data


def encode(message: object, fields: Mapping[str, Any], packs: bool) -> str | bytes:
    """A message for the wire.

    :param message: its type, or all of it: a mapping, a msgspec struct, a dataclass, a pydantic model.
    :param fields: more of its fields; values may be such objects too.
    :param packs: MessagePack instead of JSON.
    """
    whole = {"type": message} if isinstance(message, str) else message
    if fields:
        whole = {**msgspec.to_builtins(whole, enc_hook=_plain), **fields}
    text = msgspec.json.encode(whole, enc_hook=_plain)
    # by way of JSON, so that both encodings carry the same
    return msgspec.msgpack.encode(msgspec.json.decode(text)) if packs else text.decode()


def convert(message: Any, into: type[T]) -> T:
    """A received message as a pydantic model, a msgspec struct, a dataclass, or whatever else msgspec can make.

    :raises ValueError: it does not fit.
    """
    validate = getattr(into, "model_validate", None)
    made: T = validate(message) if validate is not None else msgspec.convert(message, into)
    return made


def _plain(value: Any) -> Any:
    dump = getattr(value, "model_dump", None)
    if dump is not None:
        return dump(mode="json", by_alias=True)
    if isinstance(value, Mapping):
        return dict(value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.asdict(value)
    raise TypeError(f"cannot send a {type(value).__name__}")


def _short(message: Any) -> str:
    text = repr(message)
    return text if len(text) <= WIDTH else f"{text[:WIDTH]}…"
