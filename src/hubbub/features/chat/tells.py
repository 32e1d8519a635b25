"""What the chat says: its replies, what everybody in a room hears, what one user hears.

Whatever happens in a room takes a number of the room's stream of events: the ``id`` of a message, the ``offset`` of all
else. That is the offset in the channel ``room:<id>`` too. ``docs/protocol.md`` describes them all.
"""

from __future__ import annotations

from typing import Any

from msgspec import UNSET, Struct, UnsetType, field

from hubbub.features.chat.asks import Change, Kind, Notify, Role, Sharing, Visibility
from hubbub.messages import Position, Reply, ServerMessage


def shown(value: str) -> Any:
    """A default that is sent like any other value. (Other fields are left out at their defaults.)"""
    return field(default_factory=lambda: value)


# -- parts of what the server says


class RoomInfo(Struct, frozen=True, omit_defaults=True):
    """A room. ``users``: how many are here now. The rest of the numbers is of its members and messages."""

    room_id: str
    name: str
    created_at: str
    created_by: str | None = None
    users: int | UnsetType = UNSET
    topic: str = ""
    kind: Kind = shown("group")
    visibility: Visibility = shown("public")
    history: Sharing = shown("shared")
    archived_at: str | None = None
    slow_mode: int = 0
    retention_days: int = 0
    member_count: int = 0
    message_count: int = 0
    last_at: str | None = None
    people: list[str] | UnsetType = UNSET  # of a direct room
    me: MyRoom | UnsetType = UNSET


class MyRoom(Struct, frozen=True, omit_defaults=True):
    """A user's own side of a room. ``read``: id of the message read last. ``invited_by``: then the user is no member yet."""

    role: Role | None = None
    unread: int = 0
    mentions: int = 0
    read: int = 0
    notify: Notify = shown("all")
    joined_at: str | None = None
    muted_until: str | None = None
    invited_by: str | None = None


class MemberInfo(Struct, frozen=True, omit_defaults=True):
    user_id: str
    role: Role
    joined_at: str
    muted_until: str | None = None
    last_seen: str | None = None


class BanInfo(Struct, frozen=True, omit_defaults=True):
    user_id: str
    banned_by: str
    at: str
    until: str | None = None
    reason: str = ""


class FileInfo(Struct, frozen=True, omit_defaults=True):
    """``url``: where it is fetched, below the server's address."""

    id: str
    name: str
    media_type: str
    size: int
    url: str


class ReactionInfo(Struct, frozen=True, omit_defaults=True):
    """``me``: the asking user is one of them."""

    emoji: str
    count: int
    me: bool = False


class ThreadInfo(Struct, frozen=True, omit_defaults=True):
    """``unread``: of the asking user, if that follows the thread."""

    replies: int
    last_id: int
    last_at: str
    unread: int | UnsetType = UNSET


class MessageInfo(Struct, frozen=True, omit_defaults=True):
    """A message as it is now. ``number``: its place among the room's messages, where that is not its ``id``.
    ``system``: nobody said it: what happened. ``deleted_at``: there is no text any more."""

    id: int
    user_id: str
    message: str
    timestamp: str
    client_id: str | None = None
    number: int | UnsetType = UNSET
    version: int = 1
    edited_at: str | None = None
    deleted_at: str | None = None
    deleted_by: str | None = None
    reply_to: int | None = None
    thread: int | None = None
    mentions: list[str] | UnsetType = UNSET
    files: list[FileInfo] | UnsetType = UNSET
    system: dict[str, Any] | UnsetType = UNSET
    reactions: list[ReactionInfo] | UnsetType = UNSET
    replies: ThreadInfo | UnsetType = UNSET
    pinned: bool = False


class VersionInfo(Struct, frozen=True):
    version: int
    message: str
    timestamp: str
    user_id: str


class HitInfo(Struct, frozen=True, omit_defaults=True):
    """``marks``: where the words are in the message's text: pairs of the first character and the one after the last."""

    room_id: str
    message: MessageInfo
    marks: list[tuple[int, int]] = []


class ReportInfo(Struct, frozen=True, omit_defaults=True):
    report: int
    room_id: str
    message: MessageInfo | None
    reported_by: str
    reason: str
    at: str
    status: str
    closed_at: str | None = None
    closed_by: str | None = None
    note: str = ""


class AuditInfo(Struct, frozen=True, omit_defaults=True):
    entry: int
    at: str
    user_id: str
    act: str
    room_id: str | None = None
    target_user: str | None = None
    target_message: int | None = None
    data: dict[str, Any] = {}


class ThreadRow(Struct, frozen=True, omit_defaults=True):
    room_id: str
    message: MessageInfo


# -- replies


class RoomCreated(Reply, tag="room_created"):
    """``created`` false: it was there already (`open_direct`)."""

    room: RoomInfo
    created: bool = True


class Rooms(Reply, tag="rooms"):
    """``more``: ask again with the last ``room_id`` as ``after``."""

    rooms: list[RoomInfo]
    more: bool = False


class RoomReply(Reply, tag="room"):
    room: RoomInfo


class RoomJoined(Reply, tag="room_joined"):
    """``users`` is left out, and only ``count`` sent, in rooms above HUBBUB_PRESENCE_LIMIT users."""

    room_id: str
    room: RoomInfo
    position: Position
    recovered: bool
    messages: list[Any]
    users: list[Any] | UnsetType
    count: int


class RoomLeft(Reply, tag="room_left"):
    """``reason``: why, where the user did not ask for it: `kicked`, `banned`, `left` (on another device), …"""

    room_id: str
    reason: str | None = None


class Members(Reply, tag="members"):
    room_id: str
    members: list[MemberInfo]
    more: bool = False


class Bans(Reply, tag="bans"):
    room_id: str
    bans: list[BanInfo]
    more: bool = False


class Done(Reply, tag="ack"):
    """A command was carried out. ``offset``: of the event that tells the room of it, if there is one."""

    room_id: str
    offset: int | UnsetType = UNSET


class ChatAck(Reply, tag="ack", gc=False):
    id: int
    timestamp: str
    room_id: str
    client_id: str | None = None


class EditAck(Reply, tag="ack"):
    """``version``: the message's, now. ``offset``: of the event that tells the room; there is none if the text was the same."""

    room_id: str
    id: int
    version: int
    offset: int | UnsetType = UNSET


class ReadAck(Reply, tag="ack"):
    """``read``: where the mark is now: it never goes back."""

    room_id: str
    read: int
    unread: int
    mentions: int
    thread: int | None = None


class ReportAck(Reply, tag="ack"):
    report: int


class Versions(Reply, tag="versions"):
    """Oldest first; the last one is what the message says now."""

    room_id: str
    id: int
    versions: list[VersionInfo]


class MessagesReply(Reply, tag="messages"):
    """Oldest first. ``before``, ``after``: whether there are earlier and later ones. ``position``: of the room, then."""

    room_id: str
    messages: list[MessageInfo]
    before: bool
    after: bool
    position: Position
    thread: int | None = None


class CaughtUp(Reply, tag="caught_up"):
    """``events``: what clients of the room heard, in order. ``more``: ask again from ``position``."""

    room_id: str
    events: list[Any]
    position: Position
    more: bool


class Receipts(Reply, tag="receipts"):
    """User → id of the message read last."""

    room_id: str
    receipts: dict[str, int]


class Pins(Reply, tag="pins"):
    room_id: str
    messages: list[MessageInfo]


class Threads(Reply, tag="threads"):
    threads: list[ThreadRow]


class Mentions(Reply, tag="mentions"):
    """Newest first. ``next``: the ``before`` of the next page."""

    mentions: list[ThreadRow]
    next: str | None = None


class LastSeen(Reply, tag="last_seen"):
    """User → when one of their devices was last connected; `now` for who is; null for who never was. Who is not to be
    known of is left out."""

    users: dict[str, str | None]


class SearchResults(Reply, tag="search_results"):
    """Newest first. ``next``: the ``before`` of the next page."""

    query: str
    hits: list[HitInfo]
    next: str | None = None


class Reports(Reply, tag="reports"):
    reports: list[ReportInfo]
    more: bool = False


class Audit(Reply, tag="audit"):
    entries: list[AuditInfo]
    more: bool = False


# -- what everybody in a room hears; with an offset: it takes a number of the room's stream


class MessageUpdated(ServerMessage, tag="message_updated"):
    """The message says something else now."""

    room_id: str
    offset: int
    data: MessageInfo


class MessageDeleted(ServerMessage, tag="message_deleted"):
    room_id: str
    offset: int
    data: MessageInfo


class ReactionData(Struct, frozen=True):
    id: int
    emoji: str
    user_id: str
    added: bool
    count: int


class Reaction(ServerMessage, tag="reaction"):
    room_id: str
    offset: int
    data: ReactionData


class PinData(Struct, frozen=True):
    id: int
    pinned: bool
    user_id: str


class Pinned(ServerMessage, tag="pinned"):
    room_id: str
    offset: int
    data: PinData


class MemberData(Struct, frozen=True, omit_defaults=True):
    """``by``: who did it, where it was not the user."""

    user_id: str
    change: Change
    by: str | None = None
    role: Role | None = None
    until: str | None = None
    reason: str = ""


class MemberChanged(ServerMessage, tag="member"):
    room_id: str
    offset: int
    data: MemberData


class RoomUpdated(ServerMessage, tag="room_updated"):
    """The room as it is now."""

    room_id: str
    offset: int
    data: RoomInfo


class ErasedData(Struct, frozen=True):
    user_id: str


class UserErased(ServerMessage, tag="user_erased"):
    """All that this user said is blank now."""

    room_id: str
    offset: int
    data: ErasedData


# -- what passes by, without a number


class UserJoined(ServerMessage, tag="user_joined"):
    room_id: str
    user_id: str


class UserLeft(ServerMessage, tag="user_left"):
    room_id: str
    user_id: str


class RoomCount(ServerMessage, tag="room_count"):
    """In place of `user_joined` and `user_left` in large rooms, at most once a second."""

    room_id: str
    count: int


class TypingMark(ServerMessage, tag="typing"):
    """``active`` false: the mark faded, or the user sent the message or left."""

    room_id: str
    user_id: str
    active: bool


class Receipt(ServerMessage, tag="receipt"):
    """A user has read up to a message."""

    room_id: str
    user_id: str
    id: int


# -- to one user, on all devices


class ReadMark(ServerMessage, tag="read"):
    """The user has read up to a message, on whichever device."""

    room_id: str
    read: int
    unread: int
    mentions: int
    thread: int | None = None


class RoomAdded(ServerMessage, tag="room_added"):
    """The user became a member of a room, or was invited (``room.me.invited_by``)."""

    room: RoomInfo


class RoomRemoved(ServerMessage, tag="room_removed"):
    """The user is no member any more, or the invitation was taken back."""

    room_id: str
    reason: str
