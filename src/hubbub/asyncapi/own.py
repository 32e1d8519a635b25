"""Hubbub's own messages as the AsyncAPI document tells of them: what their structs do not say."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

from msgspec import Struct

from hubbub import messages
from hubbub.errors import ErrorCode
from hubbub.features.chat import asks, tells
from hubbub.features.chat.tx import COMMANDS
from hubbub.messages import ClientMessage, ServerMessage
from hubbub.rest.commands import reply_of, summary_of
from hubbub.toolkit.shapes import own_type

# -- written by hand for speed, so the server has no structs of them


class Publication(Struct, tag_field="type", tag="publication", omit_defaults=True):
    """``offset``: 1, 2, 3, …; 0 where the channel keeps no history. Without ``user_id`` the server published it."""

    channel: str
    offset: int
    data: Any
    user_id: str | None = None
    key: str | None = None


class Message(Struct, tag_field="type", tag="message"):
    room_id: str
    data: tells.MessageInfo


class Notification(Struct, tag_field="type", tag="notification"):
    """``offset``: in the channel ``user:<id>``; 0 where it keeps no history."""

    offset: int
    data: messages.NotificationData


# -- what each is for

KEYS: Final[Mapping[type[Struct], str]] = {
    messages.PublishAck: "ack.publish",
    tells.ChatAck: "ack.chat_message",
    tells.EditAck: "ack.edit_message",
    tells.ReadAck: "ack.mark_read",
    tells.ReportAck: "ack.report",
    tells.Done: "ack.done",
}
"""Many messages are called `ack`."""


def _commands() -> Iterator[tuple[type[Struct], tuple[str, tuple[str, ...]]]]:
    """The chat's commands, by what they say of themselves."""
    for message, command in COMMANDS.items():
        reply = reply_of(command)
        yield message, (summary_of(command), (KEYS.get(reply, str(own_type(reply))),))


CLIENT: Final[Mapping[type[Struct], tuple[str, tuple[str, ...]]]] = dict(_commands()) | {
    messages.Auth: ("Sign in, or bring a fresh token.", ("auth_success",)),
    messages.Ping: ("See whether the server is there.", ("pong",)),
    messages.Heartbeat: ("The same as `ping`, under the other name in use.", ("heartbeat_ack",)),
    messages.Subscribe: ("Get a channel's publications from now on.", ("subscribed",)),
    messages.Unsubscribe: ("Get no more of a channel.", ("unsubscribed",)),
    messages.Publish: ("Publish on a channel.", ("ack.publish",)),
    messages.GetHistory: ("A page of what a channel keeps.", ("history",)),
    messages.GetPresence: ("Who is subscribed to a channel.", ("presence",)),
    messages.Response: ("Answer a `request` of the server.", ()),
    asks.JoinRoom: ("Enter a room.", ("room_joined",)),
    asks.LeaveRoom: ("Leave a room, on this connection or for good.", ("room_left",)),
    asks.ChatMessage: ("Say something in a room.", ("ack.chat_message",)),
    asks.Typing: ("The user is typing.", ()),
}
"""What a client's message is for, and what answers it (beside `error`)."""

SERVER: Final[Mapping[type[Struct], tuple[str, bool]]] = {
    Publication: ("Something was published on a subscribed channel.", True),
    Message: ("Somebody said something in a room.", True),
    Notification: ("A notification, to every session of one user.", True),
    messages.BroadcastNotification: ("A notification to everybody who is signed in.", True),
    messages.AuthSuccess: ("The session is signed in.", True),
    messages.Pong: ("Answers `ping`.", False),
    messages.HeartbeatAck: ("Answers `heartbeat`.", False),
    messages.Subscribed: ("The channel's publications will come from now on.", True),
    messages.Unsubscribed: ("Nothing more of the channel will come.", True),
    messages.Ack: ("A message of the app is done, and its handler has nothing else to say.", False),
    messages.PublishAck: ("The publication is in the channel's history.", False),
    tells.ChatAck: ("The chat message is in the room's history.", False),
    tells.EditAck: ("The message says something else now.", False),
    tells.ReadAck: ("Where the user's read mark is now.", False),
    tells.ReportAck: ("The report is in the review queue, or was decided on.", False),
    tells.Done: ("The command was carried out.", False),
    messages.HistoryReply: ("A page of what a channel keeps, oldest first.", False),
    messages.PresenceReply: ("Who is subscribed to a channel.", False),
    messages.PresenceChanged: ("Who came to a channel, and who went.", True),
    tells.RoomCreated: ("The room is made.", False),
    tells.Rooms: ("The user's rooms, and those that are open to all.", False),
    tells.RoomReply: ("A room, as this user sees it.", False),
    tells.RoomJoined: ("The session is in the room.", True),
    tells.RoomLeft: ("The session is not in the room any more.", True),
    tells.Members: ("A page of a room's members.", False),
    tells.Bans: ("A page of who is kept out of a room.", False),
    tells.MessagesReply: ("A page of a room's messages.", False),
    tells.CaughtUp: ("What happened in a room, in order.", False),
    tells.Versions: ("What a message said, and says.", False),
    tells.Pins: ("The pinned messages of a room.", False),
    tells.Receipts: ("How far everybody in a room has read.", False),
    tells.Threads: ("The threads that the user follows.", False),
    tells.Mentions: ("Messages that mention the user.", False),
    tells.LastSeen: ("When people were last connected.", False),
    tells.SearchResults: ("Messages in which the words are.", False),
    tells.Reports: ("Reported messages.", False),
    tells.Audit: ("What moderators did.", False),
    tells.MessageUpdated: ("A message was edited.", True),
    tells.MessageDeleted: ("A message was deleted.", True),
    tells.Reaction: ("Somebody reacted to a message, or took it back.", True),
    tells.Pinned: ("A message was pinned, or taken down.", True),
    tells.MemberChanged: ("Who belongs to a room, or what they may do there, has changed.", True),
    tells.RoomUpdated: ("A room was renamed, archived, or set up in another way.", True),
    tells.UserErased: ("A user was erased.", True),
    tells.UserJoined: ("Somebody came into a room; once per user, not per device.", True),
    tells.UserLeft: ("Somebody left a room.", True),
    tells.RoomCount: ("How many users are in a large room.", True),
    tells.TypingMark: ("Somebody is typing, or has stopped.", True),
    tells.Receipt: ("Somebody in a small room has read on.", True),
    tells.ReadMark: ("The user's read mark has moved, to every session of the user.", True),
    tells.RoomAdded: ("The user has a room more, to every session of the user.", True),
    tells.RoomRemoved: ("The user has a room less, to every session of the user.", True),
    messages.Gap: ("Publications are gone for good: load the state again.", True),
    messages.PositionChanged: ("A channel has a new epoch, and nothing was missed: note the position.", True),
    messages.TokenExpiring: ("The token ends in so many seconds: send a fresh `auth` before.", True),
    messages.Reconnect: ("The server is about to restart.", True),
    messages.ServerRequest: ("The app asks this client for something; it answers with `response`.", True),
    messages.Error: ("A message was refused, or could not be served.", True),
}
"""What a server's message is for, and whether it also comes without being asked for."""

HINTS: Final[Mapping[str, Any]] = {
    "after": 3.2,
    "at": "2026-11-22T21:46:14.605Z",
    "banned_by": "bob",
    "channel": "orders:7",
    "count": 3,
    "created_at": "2026-11-22T21:44:55.698Z",
    "data": {"status": "shipped"},
    "emoji": "👍",
    "epoch": "3038c3ac",
    "heartbeat": 30.0,
    "id": 42,
    "in": 29.8,
    "joined_at": "2026-11-22T21:44:55.698Z",
    "left": ["bob"],
    "message": "hello",
    "messages": [],
    "more": False,
    "name": "General",
    "notification_type": "success",
    "offset": 41,
    "query": "hello",
    "room_id": "general",
    "seconds": 3600,
    "session": "o4brt0ZaXmHxS65FZhWnhw",
    "timestamp": "2026-11-22T21:46:14.605Z",
    "title": "Shipped",
    "token": "eyJhbGciOi…",
    "user_id": "alice",
    "user_ids": ["bob"],
    "users": {"alice": "now"},
}
"""What stands in samples."""

SPECIAL_HINTS: Final[Mapping[type[Struct], Mapping[str, Any]]] = {
    asks.ReportMessage: {"reason": "spam"},
    messages.BroadcastNotification: {"message": "At 22:00", "title": "Maintenance"},
    messages.Error: {"code": str(ErrorCode.FORBIDDEN), "message": "the token does not allow this room"},
    messages.Response: {"id": "12"},
    messages.PresenceReply: {"users": {}},
    messages.ServerRequest: {"id": "12", "method": "confirm"},
    tells.Audit: {"act": "kick"},
    tells.MessagesReply: {"after": False},
    tells.Receipts: {"receipts": {"alice": 42}},
    tells.Reports: {"message": None, "reason": "spam", "reported_by": "bob", "status": "open"},
    tells.RoomRemoved: {"reason": "kicked"},
    Notification: {"id": "OfBQPTaPY5Je", "message": "On its way"},
}


OWN: Final = frozenset({messages.__name__, asks.__name__, tells.__name__})
"""Where Hubbub's own messages are declared."""


def client_structs() -> Iterator[type[Struct]]:
    return _structs(ClientMessage)


def server_structs() -> Iterator[type[Struct]]:
    """In the order of :data:`SERVER`, then what is not in it."""
    by_hand = {"publication", "message", "notification"}
    rest = [each for each in _structs(ServerMessage) if each not in SERVER and own_type(each) not in by_hand]
    yield from (*SERVER, *rest)


def _structs(base: type[Struct]) -> Iterator[type[Struct]]:
    """The messages below a base, but for those that are made for the apps' handlers."""
    for struct in base.__subclasses__():
        if struct.__module__ in OWN and own_type(struct) != struct.__name__:
            yield struct
        yield from _structs(struct)
