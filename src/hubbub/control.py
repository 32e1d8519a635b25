"""What nodes tell and ask each other: the envelope, and the messages about sessions and users.

Each message is a letter: a MessagePack array ``[version, kind, ask, body]``. The body is a tagged struct. A node passes
over a kind that it does not know, and ignores fields that it does not know: nodes of two releases may run side by side.
So fields are only ever added, at the end and with defaults.
"""

from __future__ import annotations

from typing import Annotated, Any, Final

import msgspec
from msgspec import Meta, Raw, Struct

from hubbub.messages import NotificationType

VERSION: Final = 1
"""Of the envelope. A letter with a higher one is passed over."""
ANSWER: Final = "="
"""The kind of a letter that answers one: its ``ask`` is that one's, its body whatever the handler returned."""
NO_ANSWER: Final = "!"
"""The kind of a letter that says: nobody here could do that."""
MAX_USERS: Final = 10_000
"""Users that one letter may name."""

UserId = Annotated[str, Meta(min_length=1, max_length=128)]
Users = Annotated[list[UserId], Meta(max_length=MAX_USERS)]
Reason = Annotated[str, Meta(max_length=100)]
Seconds = Annotated[float, Meta(ge=0, le=1e12)]


class Letter(Struct, array_like=True, frozen=True):
    """One message between nodes.

    :ivar ask: above 0: the sender waits for an answer with this number.
    :ivar body: MessagePack.
    """

    version: int
    kind: str
    ask: int = 0
    body: Raw = Raw(b"\xc0")


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Letter).decode


def kind_of(struct: type[Struct]) -> str:
    """The name of a kind of message on the way between nodes: the struct's tag.

    :raises TypeError: it has none.
    """
    tag = struct.__struct_config__.tag
    if not isinstance(tag, str):
        raise TypeError(f"{struct.__name__} needs a tag: class {struct.__name__}(Struct, tag='…')")
    return tag


def letter_of(message: Struct, ask: int = 0) -> bytes:
    """A message, ready to be sent."""
    return _encode(Letter(VERSION, kind_of(type(message)), ask, Raw(_encode(message))))


def answer_of(ask: int, answer: Any) -> bytes:
    """The answer to a letter, ready to be sent."""
    return _encode(Letter(VERSION, ANSWER, ask, Raw(_encode(answer))))


def no_answer_of(ask: int) -> bytes:
    """What is sent instead of an answer, so that nobody waits for one."""
    return _encode(Letter(VERSION, NO_ANSWER, ask))


def open_letter(message: bytes) -> Letter:
    """:raises ValueError: this is no letter."""
    try:
        return _decode(message)
    except RecursionError as error:
        raise ValueError("nested too deep") from error


class Report(Struct, frozen=True):
    """What a node says of itself with each beat.

    :ivar sessions: its open connections, also those that have not signed in.
    :ivar users: how many different users are signed in there.
    :ivar channels: channels that it has somebody in.
    :ivar version: its release.
    :ivar draining: it stops, and lets nobody in.
    :ivar store: the id of its database; "": it does not say.
    :ivar keys: stands for the keys that it checks tokens by.
    """

    sessions: int = 0
    users: int = 0
    channels: int = 0
    version: str = ""
    draining: bool = False
    store: str = ""
    keys: str = ""


class Disconnect(Struct, tag="disconnect", frozen=True):
    """Close all sessions of a user. Answered with how many."""

    user_id: UserId
    code: Annotated[int, Meta(ge=1000, le=4999)] = 1000
    reason: Reason = ""


class Revoke(Struct, tag="revoke", frozen=True):
    """Refuse the tokens of a user that were issued before ``at``, or one token; close who lives on them. Answered with
    how many were closed.

    :ivar at: unix seconds, on the clock of who said it first.
    :ivar until: when it may be forgotten, in unix seconds.
    """

    at: Seconds
    until: Seconds
    user_id: UserId | None = None
    token_id: Annotated[str, Meta(min_length=1, max_length=256)] | None = None

    @property
    def key(self) -> str:
        """What it is about: a later one with this key takes its place."""
        return f"t:{self.token_id}" if self.token_id is not None else f"u:{self.user_id}"


class Replaced(Struct, tag="replaced", frozen=True):
    """Devices came back to this node: close the connections that they had elsewhere.

    :ivar sessions: (user, session, unix seconds) of each.
    """

    sessions: list[tuple[str, str, float]]


class Newcomers(Struct, tag="newcomers", frozen=True):
    """Devices signed in on this node: how many of their users' sessions did so before? Answered with a number for each.

    :ivar sessions: (user, session, seconds since it signed in) of each.
    """

    sessions: Annotated[list[tuple[UserId, str, float]], Meta(max_length=MAX_USERS)]


class Count(Struct, tag="count", frozen=True):
    """How many live sessions do these users have? Answered with a map of those that have any."""

    user_ids: Users


class Everyone(Struct, tag="everyone", frozen=True):
    """Send a message to all signed-in sessions, but those of some users. Answered with to how many.

    :ivar payload: the message as JSON text.
    """

    payload: bytes
    exclude: Users = []


class Announce(Struct, tag="announce", frozen=True):
    """Broadcast to everybody who is signed in. From publishers without a server: nodes send each other the message.

    :ivar at: unix seconds.
    """

    title: Annotated[str, Meta(min_length=1, max_length=500)]
    message: Annotated[str, Meta(max_length=10_000)]
    notification_type: NotificationType = "info"
    at: Seconds = 0.0
    exclude: Users = []


class Subscribe(Struct, tag="subscribe", frozen=True):
    """Subscribe the live sessions of a user to a channel. Answered with how many."""

    user_id: UserId
    channel: Annotated[str, Meta(min_length=1, max_length=128)]


class Unsubscribe(Struct, tag="unsubscribe", frozen=True):
    """End the subscriptions that a user's sessions have to a channel. Answered with how many."""

    user_id: UserId
    channel: Annotated[str, Meta(min_length=1, max_length=128)]
    reason: str | None = None
