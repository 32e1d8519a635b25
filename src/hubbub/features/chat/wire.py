"""The chat's messages on the wire: what clients send, what answers it, what everybody in a room hears.

``docs/protocol.md`` describes them all. ``id`` of a message is its number in its room's stream of events, so it is the
offset in the channel ``room:<id>`` too. Whatever else happens in the room takes a number of that stream, its ``offset``.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeAlias

from msgspec import UNSET, Meta, Struct, UnsetType

from hubbub.messages import ClientMessage, Offset, Position, Reply, ServerMessage, UserId

RoomId = Annotated[str, Meta(max_length=64)]
MessageId = Annotated[int, Meta(ge=1, le=2**36 - 1)]
Limit = Annotated[int, Meta(ge=1, le=200)]
ClientId = Annotated[str, Meta(min_length=1, max_length=128)]
FileId = Annotated[str, Meta(max_length=32)]
Emoji = Annotated[str, Meta(min_length=1, max_length=64)]
RoomName = Annotated[str, Meta(min_length=1, max_length=100)]
Topic = Annotated[str, Meta(max_length=1000)]
Reason = Annotated[str, Meta(max_length=500)]
Seconds = Annotated[int, Meta(ge=1, le=366 * 86_400)]
SlowMode = Annotated[int, Meta(ge=0, le=21_600)]
Days = Annotated[int, Meta(ge=0, le=36_500)]

Kind: TypeAlias = Literal["group", "large", "broadcast", "live"]
Visibility: TypeAlias = Literal["public", "private", "direct"]
Sharing: TypeAlias = Literal["shared", "joined"]
Role: TypeAlias = Literal["owner", "moderator", "member"]
Notify: TypeAlias = Literal["all", "mentions", "none"]
Change: TypeAlias = Literal[
    "joined", "left", "invited", "declined", "kicked", "banned", "unbanned", "muted", "unmuted", "role"
]


# -- rooms: client → server


class CreateRoom(ClientMessage, tag="create_room"):
    """``kind``: `group` (receipts, reactions, typing), `large` (counts instead of lists, no receipts), `broadcast` (only
    moderators write), `live` (messages are not stored). ``history``: what later members see of what was said before
    they came: `shared` all of it, `joined` nothing. ``members``: who is in a private room from the start."""

    room_id: RoomId | None = None
    name: RoomName | None = None
    topic: Topic = ""
    kind: Kind = "group"
    visibility: Literal["public", "private"] = "public"
    history: Sharing = "shared"
    members: Annotated[tuple[UserId, ...], Meta(max_length=500)] = ()


class OpenDirect(ClientMessage, tag="open_direct"):
    """The direct room of this user and others: there is one per set of people."""

    user_ids: Annotated[list[UserId], Meta(min_length=1, max_length=50)]


class ListRooms(ClientMessage, tag="list_rooms"):
    """``mine``: only rooms that the user is a member of, or invited to. ``after``: the ``room_id`` that the page before
    ended with."""

    mine: bool = False
    query: Annotated[str, Meta(max_length=100)] = ""
    after: RoomId | None = None
    limit: Annotated[int, Meta(ge=1, le=1000)] = 1000


class GetRoom(ClientMessage, tag="get_room"):
    room_id: RoomId


class UpdateRoom(ClientMessage, tag="update_room"):
    """What is left out stays. ``slow_mode``: seconds between two messages of a member. ``retention_days``: 0 keeps all."""

    room_id: RoomId
    name: RoomName | None = None
    topic: Topic | None = None
    kind: Kind | None = None
    visibility: Literal["public", "private"] | None = None
    history: Sharing | None = None
    slow_mode: SlowMode | None = None
    retention_days: Days | None = None
    archived: bool | None = None


class JoinRoom(ClientMessage, tag="join_room"):
    """Enter a room on this connection; in a public room it makes the user a member."""

    room_id: RoomId
    since: Position | None = None


class LeaveRoom(ClientMessage, tag="leave_room"):
    """``membership``: for good, on all devices; declines an invitation too. Without it: only this connection goes."""

    room_id: RoomId
    membership: bool = False


# -- members: client → server


class ListMembers(ClientMessage, tag="list_members"):
    """``after``: the user that the page before ended with."""

    room_id: RoomId
    after: Annotated[str, Meta(max_length=128)] = ""
    limit: Limit = 100


class Invite(ClientMessage, tag="invite"):
    room_id: RoomId
    user_ids: Annotated[list[UserId], Meta(min_length=1, max_length=100)]


class Kick(ClientMessage, tag="kick"):
    room_id: RoomId
    user_id: UserId
    reason: Reason = ""


class Ban(ClientMessage, tag="ban"):
    """``seconds``: how long; without it for ever."""

    room_id: RoomId
    user_id: UserId
    seconds: Seconds | None = None
    reason: Reason = ""


class Unban(ClientMessage, tag="unban"):
    room_id: RoomId
    user_id: UserId


class ListBans(ClientMessage, tag="list_bans"):
    room_id: RoomId


class Mute(ClientMessage, tag="mute"):
    """The user may read, and not write, for so many seconds."""

    room_id: RoomId
    user_id: UserId
    seconds: Seconds
    reason: Reason = ""


class Unmute(ClientMessage, tag="unmute"):
    room_id: RoomId
    user_id: UserId


class SetRole(ClientMessage, tag="set_role"):
    room_id: RoomId
    user_id: UserId
    role: Role


class SetNotify(ClientMessage, tag="set_notify"):
    """What of this room notifies the user: `all`, `mentions` or `none`."""

    room_id: RoomId
    notify: Notify


# -- messages: client → server


class ChatMessage(ClientMessage, tag="chat_message", gc=False):
    """``client_id``: idempotency key; a retry with the same one gets the first answer and is not sent again.
    ``reply_to``: the message that this one answers. ``thread``: the message whose thread it belongs to.
    ``files``: attachments uploaded before."""

    message: str
    room_id: RoomId | None = None
    client_id: ClientId | None = None
    reply_to: MessageId | None = None
    thread: MessageId | None = None
    files: tuple[FileId, ...] = ()


class EditMessage(ClientMessage, tag="edit_message"):
    room_id: RoomId
    id: MessageId
    message: str


class DeleteMessage(ClientMessage, tag="delete_message"):
    room_id: RoomId
    id: MessageId
    reason: Reason = ""


class GetVersions(ClientMessage, tag="get_versions"):
    room_id: RoomId
    id: MessageId


class React(ClientMessage, tag="react"):
    room_id: RoomId
    id: MessageId
    emoji: Emoji


class Unreact(ClientMessage, tag="unreact"):
    room_id: RoomId
    id: MessageId
    emoji: Emoji


class PinMessage(ClientMessage, tag="pin"):
    room_id: RoomId
    id: MessageId


class UnpinMessage(ClientMessage, tag="unpin"):
    room_id: RoomId
    id: MessageId


class ListPins(ClientMessage, tag="list_pins"):
    room_id: RoomId


class Typing(ClientMessage, tag="typing"):
    room_id: RoomId | None = None


# -- reading: client → server


class GetMessages(ClientMessage, tag="get_messages"):
    """One of ``before``, ``after`` and ``around`` (a message's id), or none: the newest. ``thread``: of this thread only."""

    room_id: RoomId
    before: MessageId | None = None
    after: Offset | None = None
    around: MessageId | None = None
    thread: MessageId | None = None
    limit: Limit = 50


class CatchUp(ClientMessage, tag="catch_up"):
    """Everything that happened in a room since a position: messages, edits, reactions, …"""

    room_id: RoomId
    since: Position
    limit: Annotated[int, Meta(ge=1, le=1000)] = 1000


class MarkRead(ClientMessage, tag="mark_read"):
    """``thread``: the mark is the one in this thread."""

    room_id: RoomId
    id: MessageId
    thread: MessageId | None = None


class ListReceipts(ClientMessage, tag="list_receipts"):
    room_id: RoomId


class ListThreads(ClientMessage, tag="list_threads"):
    """The threads that the user follows, the liveliest first; ``room_id``: of one room."""

    room_id: RoomId | None = None
    limit: Limit = 50


class ListMentions(ClientMessage, tag="list_mentions"):
    """Messages that mention the user, the newest first."""

    before: Annotated[int, Meta(ge=0)] | None = None
    limit: Limit = 50


class GetLastSeen(ClientMessage, tag="last_seen"):
    user_ids: Annotated[list[UserId], Meta(min_length=1, max_length=200)]


class Search(ClientMessage, tag="search"):
    """``query``: words, all of which must be there; "several words" next to one another; the last one may be cut short.
    ``before``: the ``next`` of the page before."""

    query: Annotated[str, Meta(min_length=1, max_length=500)]
    room_id: RoomId | None = None
    user_id: Annotated[str, Meta(max_length=128)] | None = None
    before: Annotated[str, Meta(max_length=64)] | None = None
    limit: Annotated[int, Meta(ge=1, le=100)] = 20


# -- moderation: client → server


class ReportMessage(ClientMessage, tag="report"):
    room_id: RoomId
    id: MessageId
    reason: Annotated[str, Meta(min_length=1, max_length=1000)]


class ListReports(ClientMessage, tag="list_reports"):
    """Of one room, or (with the admin grant) of all."""

    room_id: RoomId | None = None
    status: Literal["open", "dismissed", "resolved"] = "open"
    after: Annotated[int, Meta(ge=0)] = 0
    limit: Limit = 50


class CloseReport(ClientMessage, tag="close_report"):
    """``delete``: delete the message too."""

    report: Annotated[int, Meta(ge=1)]
    status: Literal["dismissed", "resolved"] = "resolved"
    note: Annotated[str, Meta(max_length=1000)] = ""
    delete: bool = False


class GetAudit(ClientMessage, tag="get_audit"):
    """What moderators did, the newest first; of one room, or (with the admin grant) of all."""

    room_id: RoomId | None = None
    before: Annotated[int, Meta(ge=1)] | None = None
    limit: Limit = 50


# -- parts of what the server says


class RoomInfo(Struct, frozen=True, omit_defaults=True):
    """A room. ``users``: how many are here now. The rest of the numbers is of its members and messages."""

    room_id: str
    name: str
    created_at: str
    created_by: str | None = None
    users: int | UnsetType = UNSET
    topic: str = ""
    kind: Kind = "group"
    visibility: Visibility = "public"
    history: Sharing = "shared"
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
    notify: Notify = "all"
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
    room_id: str
    id: int
    offset: int
    version: int


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
    mentions: list[ThreadRow]
    next: int | None = None


class LastSeen(Reply, tag="last_seen"):
    """User → when one of their devices was last connected; `now` for who is."""

    users: dict[str, str]


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
