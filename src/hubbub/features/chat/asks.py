"""What clients ask of the chat: its commands as messages. ``docs/protocol.md`` describes them all.

The ``id`` of a message is its number in its room's stream of events.
"""

from __future__ import annotations

from typing import Annotated, Literal, TypeAlias

from msgspec import Meta

from hubbub.messages import ClientMessage, Offset, Position, UserId

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
    """``kind`` (HUBBUB_DEFAULT_KIND where left out): `group` (receipts, reactions, typing), `large` (counts instead of
    lists, no receipts), `broadcast` (only moderators write), `live` (messages are not stored). ``history``: what later
    members see of what was said before they came: `shared` all of it, `joined` nothing. ``members``: who is in a
    private room from the start."""

    room_id: RoomId | None = None
    name: RoomName | None = None
    topic: Topic = ""
    kind: Kind | None = None
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


class Join(ClientMessage, tag="become_member"):
    """Become a member without entering the room on this connection."""

    room_id: RoomId


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


class Invite(ClientMessage, tag="invite_members"):
    room_id: RoomId
    user_ids: Annotated[list[UserId], Meta(min_length=1, max_length=100)]


class Kick(ClientMessage, tag="kick_member"):
    room_id: RoomId
    user_id: UserId
    reason: Reason = ""


class Ban(ClientMessage, tag="ban_member"):
    """``seconds``: how long; without it for ever."""

    room_id: RoomId
    user_id: UserId
    seconds: Seconds | None = None
    reason: Reason = ""


class Unban(ClientMessage, tag="unban_member"):
    room_id: RoomId
    user_id: UserId


class ListBans(ClientMessage, tag="list_bans"):
    """``after``: the user that the page before ended with."""

    room_id: RoomId
    after: Annotated[str, Meta(max_length=128)] = ""
    limit: Limit = 100


class Mute(ClientMessage, tag="mute_member"):
    """The user may read, and not write, for so many seconds."""

    room_id: RoomId
    user_id: UserId
    seconds: Seconds
    reason: Reason = ""


class Unmute(ClientMessage, tag="unmute_member"):
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


class React(ClientMessage, tag="add_reaction"):
    room_id: RoomId
    id: MessageId
    emoji: Emoji


class Unreact(ClientMessage, tag="remove_reaction"):
    room_id: RoomId
    id: MessageId
    emoji: Emoji


class PinMessage(ClientMessage, tag="pin_message"):
    room_id: RoomId
    id: MessageId


class UnpinMessage(ClientMessage, tag="unpin_message"):
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
    """Messages that mention the user, the newest first. ``before``: the ``next`` of the page before."""

    before: Annotated[str, Meta(max_length=64)] | None = None
    limit: Limit = 50


class GetLastSeen(ClientMessage, tag="get_last_seen"):
    user_ids: Annotated[list[UserId], Meta(min_length=1, max_length=200)]


class Search(ClientMessage, tag="search_messages"):
    """``query``: words, all of which must be there; "several words" next to one another; the last one may be cut short.
    ``before``: the ``next`` of the page before."""

    query: Annotated[str, Meta(min_length=1, max_length=500)]
    room_id: RoomId | None = None
    user_id: Annotated[str, Meta(max_length=128)] | None = None
    before: Annotated[str, Meta(max_length=64)] | None = None
    limit: Annotated[int, Meta(ge=1, le=100)] = 20


# -- moderation: client → server


class ReportMessage(ClientMessage, tag="report_message"):
    room_id: RoomId
    id: MessageId
    reason: Annotated[str, Meta(min_length=1, max_length=1000)]


class ListReports(ClientMessage, tag="list_reports"):
    """Of one room, or (with the admin grant) of all."""

    room_id: RoomId | None = None
    status: Literal["open", "dismissed", "resolved"] = "open"
    after: Offset = 0
    limit: Limit = 50


class CloseReport(ClientMessage, tag="close_report"):
    """``delete``: delete the message too."""

    report: Offset
    status: Literal["dismissed", "resolved"] = "resolved"
    note: Annotated[str, Meta(max_length=1000)] = ""
    delete: bool = False


class GetAudit(ClientMessage, tag="get_audit"):
    """What moderators did, the newest first; of one room, or (with the admin grant) of all."""

    room_id: RoomId | None = None
    before: Offset | None = None
    limit: Limit = 50
