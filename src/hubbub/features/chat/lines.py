"""The lines of an exported room: one JSON object each. ``exporting.py`` writes them, ``importing.py`` reads them.

First the room, then its members, bans and invitations, its messages in their order, its pins, and an end by which a
reader knows that nothing is missing. Times are RFC 3339. The number of a message, ``id``, is kept over an import, and
so is everything that refers to it.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, Final, TypeAlias

from msgspec import UNSET, Meta, Struct, UnsetType

from hubbub.features.chat.asks import (
    ClientId,
    Emoji,
    FileId,
    Kind,
    MessageId,
    Notify,
    Reason,
    Role,
    RoomId,
    RoomName,
    Sharing,
    SlowMode,
    Topic,
    Visibility,
)
from hubbub.messages import Offset, UserId

FORMAT: Final = 1
"""Of what is written here. A reader refuses what it does not know."""
EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
MILLISECOND: Final = timedelta(milliseconds=1)
END_OF_TIME: Final = 253_402_300_800_000
"""Unix milliseconds of the year 10000, which RFC 3339 cannot say."""

Time: TypeAlias = Annotated[datetime, Meta(tz=True)]
Author: TypeAlias = Annotated[str, Meta(max_length=128)]
"""A user's id; "" where nobody was signed in."""
Count: TypeAlias = Annotated[int, Meta(ge=0, le=2**31 - 1)]


def time_of(milliseconds: int) -> datetime:
    """Unix milliseconds as a time."""
    return EPOCH + timedelta(milliseconds=milliseconds)


def maybe_time_of(milliseconds: int | None) -> datetime | None:
    """The same for what may not have happened."""
    return None if milliseconds is None else time_of(milliseconds)


def milliseconds_of(time: datetime) -> int:
    """A time as unix milliseconds."""
    return (time - EPOCH) // MILLISECOND


def maybe_milliseconds_of(time: datetime | None) -> int | None:
    """The same for what may not have happened."""
    return None if time is None else milliseconds_of(time)


class Line(Struct, tag_field="type", omit_defaults=True, forbid_unknown_fields=True, gc=False):
    """A line of an export: what a newer program may have added is not silently left out."""


class RoomLine(Line, tag="room", kw_only=True):
    """The room and its settings. ``event_seq``: the number that was taken last; ``message_count``: what people said."""

    format: int = 0
    exported_at: Time | None = None
    room_id: RoomId
    name: RoomName
    topic: Topic = ""
    kind: Kind = "group"
    visibility: Visibility = "public"
    history: Sharing = "shared"
    direct_key: Annotated[str, Meta(max_length=64)] | None = None
    slow_mode: SlowMode = 0
    retention_days: Annotated[int, Meta(ge=0, le=36_500)] = 0
    created_at: Time
    created_by: Author | None = None
    last_at: Time
    archived_at: Time | None = None
    event_seq: Annotated[int, Meta(ge=0, le=2**36 - 1)] = 0
    message_count: Offset = 0


class MemberLine(Line, tag="member"):
    """``history_from``: the member sees what has a larger number. ``read``, ``read_count``: the message read last, and
    its number among the room's messages."""

    user_id: UserId
    role: Role
    joined_at: Time
    history_from: Offset = 0
    notify: Notify = "all"
    read: Offset = 0
    read_count: Offset = 0
    mention_count: Count = 0
    muted_until: Time | None = None


class BanLine(Line, tag="ban"):
    user_id: UserId
    banned_by: Author
    at: Time
    until: Time | None = None
    reason: Reason = ""


class InvitationLine(Line, tag="invitation"):
    user_id: UserId
    invited_by: Author
    at: Time


class FileLine(Struct, omit_defaults=True, forbid_unknown_fields=True, gc=False):
    """What an attachment is; its bytes are not exported. ``sha256``: of them, in hex."""

    id: FileId
    name: Annotated[str, Meta(max_length=200)]
    media_type: Annotated[str, Meta(max_length=100)]
    size: Offset
    sha256: Annotated[str, Meta(max_length=64)] = ""
    at: Time | None = None


class VersionLine(Struct, forbid_unknown_fields=True, gc=False):
    """What a message said before it was edited; the ``timestamp`` is when it said so."""

    version: Count
    message: str
    timestamp: Time
    user_id: Author


class ReactionLine(Struct, forbid_unknown_fields=True, gc=False):
    emoji: Emoji
    user_id: UserId
    at: Time


class FollowerLine(Struct, omit_defaults=True, forbid_unknown_fields=True, gc=False):
    """Somebody who follows a thread. ``read``: the reply read last; ``read_count``: how many were read."""

    user_id: UserId
    read: Offset = 0
    read_count: Count = 0


class ThreadLine(Struct, forbid_unknown_fields=True, gc=False):
    """The thread that a message began."""

    replies: Count
    last_id: MessageId
    last_at: Time
    followers: list[FollowerLine]


class MessageLine(Line, tag="message"):
    """A message as it is now, with all that belongs to it. ``number``: its place among the room's messages.

    ``system``: nobody said it: what happened; null if that was erased. ``deleted_at``: there is no text any more.
    """

    id: MessageId
    number: Offset
    user_id: Author
    message: str
    timestamp: Time
    client_id: ClientId | None = None
    system: dict[str, Any] | UnsetType | None = UNSET
    version: Annotated[int, Meta(ge=1, le=2**31 - 1)] = 1
    edited_at: Time | None = None
    deleted_at: Time | None = None
    deleted_by: Author | None = None
    reply_to: MessageId | None = None
    thread: MessageId | None = None
    mentions: list[UserId] = []
    files: list[FileLine] = []
    versions: list[VersionLine] = []
    reactions: list[ReactionLine] = []
    replies: ThreadLine | None = None


class PinLine(Line, tag="pin"):
    id: MessageId
    pinned_by: Author
    at: Time


class EndLine(Line, tag="end"):
    """The last one. ``messages``: how many were written."""

    messages: Offset


AnyLine: TypeAlias = RoomLine | MemberLine | BanLine | InvitationLine | MessageLine | PinLine | EndLine


class SaidLine(Struct, forbid_unknown_fields=True, gc=False):
    """A line written by hand, or by another program: a message is its author, its text and its time (RFC 3339, or unix
    seconds). They are numbered in the order of the lines."""

    user_id: Annotated[str, Meta(min_length=1, max_length=128)]
    message: str
    timestamp: Time | int | float
    client_id: ClientId | None = None
