"""The chat as a few dictionaries: what its commands should answer, what rooms should hear, and what should be counted.

Nothing is counted as it goes here: unread messages, mentions and replies are found by looking at all messages, so that
a server that counts them one by one can be compared with it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Final, TypeAlias

from hubbub.features.chat.mentioning import EVERYONE, mentions_of
from tests.talkers import Event

RANKS: Final = {None: 0, "member": 1, "moderator": 2, "owner": 3}
STAFF, OWNER = 2, 3
Answer: TypeAlias = dict[str, Any]
"""Fields of a reply; None: it has no such field."""


class Refused(Exception):
    """What a command may be refused with: any of these codes."""

    def __init__(self, *codes: str) -> None:
        super().__init__(*codes)
        self.codes = frozenset(codes)


@dataclass
class Member:
    role: str
    history_from: int
    read: int
    notify: str = "all"
    muted_until: float = 0.0


@dataclass
class Message:
    """:ivar followers: of its thread: user → the reply read last."""

    author: str
    texts: list[str]
    version: int = 1
    system: bool = False
    deleted: bool = False
    thread: int | None = None
    reply_to: int | None = None
    mentions: tuple[str, ...] = ()
    reactions: dict[str, list[str]] = field(default_factory=dict)
    pinned: bool = False
    followers: dict[str, int] = field(default_factory=dict)


@dataclass
class Room:
    """:ivar events: all that happened, from the number 1 on."""

    id: str
    visibility: str = "public"
    kind: str = "group"
    history: str = "shared"
    name: str = ""
    topic: str = ""
    archived: bool = False
    members: dict[str, Member] = field(default_factory=dict)
    invited: dict[str, str] = field(default_factory=dict)
    banned: dict[str, float] = field(default_factory=dict)
    events: list[Event] = field(default_factory=list)
    messages: dict[int, Message] = field(default_factory=dict)
    said: dict[tuple[str, str], int] = field(default_factory=dict)

    @property
    def seq(self) -> int:
        return len(self.events)

    @property
    def spoken(self) -> list[int]:
        """Messages that are counted: said by somebody, and in no thread."""
        return [seq for seq, each in self.messages.items() if not each.system and each.thread is None]

    def replies(self, root: int) -> list[int]:
        return [seq for seq, each in self.messages.items() if each.thread == root]

    def unread(self, user: str) -> int:
        return sum(seq > self.members[user].read for seq in self.spoken)

    def mentioning(self, user: str, after: int) -> Iterator[int]:
        """What mentions a member."""
        low = max(after, self.members[user].history_from)
        for seq, each in self.messages.items():
            if seq > low and each.author != user and {user, EVERYONE} & {*each.mentions}:
                yield seq

    def mentions(self, user: str) -> int:
        member = self.members[user]
        return 0 if member.notify == "none" else sum(1 for _ in self.mentioning(user, member.read))

    def visible(self, user: str, seq: int) -> Message | None:
        message = self.messages.get(seq)
        return message if message is not None and seq > self.members[user].history_from else None


class Model:
    """Rooms, and who is in them on a connection (``here``).

    :ivar notified: (user, room, message) of who was told that they are mentioned.
    :ivar now: unix seconds.
    """

    def __init__(self, now: float, *public: str) -> None:
        self.now = now
        self.rooms = {room_id: Room(room_id, name=room_id) for room_id in public}
        self.here: set[tuple[str, str]] = set()
        self.notified: Counter[tuple[str, str, int]] = Counter()

    def does(self, user: str, kind: str, room_id: str, /, **fields: Any) -> Answer | Refused:
        """What a command of somebody is answered with."""
        try:
            answer: Answer = getattr(self, kind)(user, room_id, **fields)
        except Refused as refused:
            return refused
        return answer

    def knows(self, user: str, room_id: str) -> bool:
        """Whether somebody may know of a room."""
        try:
            self._know(user, room_id)
        except Refused:
            return False
        return True

    def is_over(self, room_id: str, user: str) -> bool:
        """Whether somebody was banned from a room, and is not any more."""
        room = self.rooms.get(room_id)
        return room is not None and room.banned.get(user, self.now + 1) <= self.now

    # -- what all have in common

    def _enter(
        self,
        user: str,
        room_id: str,
        rank: int = 1,
        *,
        freezes: bool = False,
        speaks: bool = False,
        direct: bool = True,
    ) -> tuple[Room, Member, set[str]]:
        """A room that somebody is in, and what else would stand in the way.

        :param freezes: not in an archived room.
        :param speaks: not by who is muted.
        :param direct: whether it can be done in a direct room.
        """
        room = self._know(user, room_id)
        if user not in room.members:
            # who is invited may hear either
            raise Refused("not_joined", *(("not_found",) if room.visibility == "private" else ()))
        member, wrong = room.members[user], set()
        if (
            RANKS[member.role] < rank
            or (freezes and room.archived)
            or (speaks and member.muted_until > self.now)
            or (not direct and room.visibility == "direct")
        ):
            wrong.add("forbidden")
        return room, member, wrong

    def _know(self, user: str, room_id: str) -> Room:
        room = self.rooms.get(room_id)
        if room is None or not (
            user in room.members
            or room.visibility == "public"
            or (room.visibility == "private" and user in room.invited)
        ):
            raise Refused("not_found")
        return room

    def _event(self, room: Room, *event: Any) -> int:
        room.events.append(event)
        return room.seq

    def _say(self, room: Room, user: str) -> None:
        room.messages[self._event(room, "message", user, None)] = Message(user, [""], system=True)

    def _changed(self, room: Room, user: str, target: str, *, says: bool) -> int:
        """A membership changed: everybody hears it; in a private room it is said too."""
        seq = self._event(room, "member", None, target)
        if says and room.visibility == "private":
            self._say(room, user)
        return seq

    def _come(self, room: Room, user: str, role: str = "member") -> None:
        room.members[user] = Member(role, room.seq if room.history == "joined" else 0, room.seq)

    def _go(self, room: Room, user: str) -> None:
        room.members.pop(user, None)
        self.here.discard((user, room.id))

    # -- rooms

    def create_room(
        self, user: str, room_id: str, visibility: str, kind: str, history: str, members: list[str]
    ) -> Answer:
        if room_id.startswith("dm-"):
            raise Refused("invalid_message")
        if room_id in self.rooms:
            raise Refused("conflict")
        room = self.rooms[room_id] = Room(room_id, visibility, kind, history, room_id)
        for each in {user, *members}:
            self._come(room, each, "owner" if each == user else "member")
        return {}

    def open_direct(self, user: str, room_id: str, people: tuple[str, ...]) -> Answer:
        created = room_id not in self.rooms
        if created:
            room = self.rooms[room_id] = Room(room_id, "direct", name=", ".join(sorted(people)))
            for each in people:
                self._come(room, each)
        return {"created": None if created else False}  # true is left out

    def update_room(self, user: str, room_id: str, **changes: Any) -> Answer:
        self._know(user, room_id)
        owned = changes.keys() & {"kind", "visibility", "archived"}
        room, _, wrong = self._enter(user, room_id, OWNER if owned else STAFF, direct=False)
        if room.archived and changes.keys() & {"kind", "visibility"}:
            wrong.add("forbidden")
        if wrong:
            raise Refused(*wrong)
        changed = {name for name, value in changes.items() if getattr(room, name) != value}
        vars(room).update(changes)
        if changed:
            self._event(room, "room_updated", None, None)
        for _ in changed & {"name", "topic", "archived"}:
            self._say(room, user)
        return {}

    # -- coming and going

    def become_member(self, user: str, room_id: str) -> Answer:
        room = self._know(user, room_id)
        if user in room.members:
            return {}
        if room.banned.get(user, 0.0) > self.now:
            raise Refused("forbidden")
        self._come(room, user)
        room.invited.pop(user, None)
        room.banned.pop(user, None)
        if room.visibility == "private":
            self._changed(room, user, user, says=True)
        return {}

    def join_room(self, user: str, room_id: str, since: int | None) -> Answer:
        self.become_member(user, room_id)
        room = self.rooms[room_id]
        self.here.add((user, room_id))
        recovered = since is not None and since >= room.members[user].history_from
        return {"position": room.seq, "recovered": recovered}

    def leave_room(self, user: str, room_id: str, membership: bool) -> Answer:
        if not membership:
            if (user, room_id) not in self.here:
                raise Refused("not_joined")
            self.here.remove((user, room_id))
            return {"reason": None}
        room = self._know(user, room_id)
        if room.visibility == "direct":
            raise Refused("forbidden")
        member = room.members.get(user)
        if member is None and user not in room.invited:
            raise Refused("not_joined")
        if member is not None and member.muted_until > self.now:
            raise Refused("forbidden")
        owners = [each for each, other in room.members.items() if other.role == "owner"]
        if owners == [user] and len(room.members) > 1:
            raise Refused("conflict")
        self._go(room, user)
        if member is None:
            del room.invited[user]
        if room.visibility == "private":
            self._changed(room, user, user, says=member is not None)
        return {}

    def invite_members(self, user: str, room_id: str, user_ids: list[str]) -> Answer:
        room, _, wrong = self._enter(user, room_id, freezes=True, direct=False)
        new = [each for each in user_ids if each not in room.members and each not in room.invited]
        if any(room.banned.get(each, 0.0) > self.now for each in new):
            wrong.add("forbidden")
        if wrong:
            raise Refused(*wrong)
        seq = None
        for each in new:
            room.invited[each] = user
            if room.visibility == "private":
                seq = self._event(room, "member", None, each)
        return {"offset": seq}

    def _over(self, user: str, room_id: str, target: str) -> tuple[Room, Member | None, set[str]]:
        room, member, wrong = self._enter(user, room_id, STAFF, freezes=True, direct=False)
        other = room.members.get(target)
        if RANKS[member.role] <= RANKS[other.role if other is not None else None]:
            wrong.add("forbidden")
        return room, other, wrong

    def kick_member(self, user: str, room_id: str, user_id: str) -> Answer:
        room, target, wrong = self._over(user, room_id, user_id)
        if target is None and user_id not in room.invited:
            wrong.add("not_found")
        if wrong:
            raise Refused(*wrong)
        self._go(room, user_id)
        if target is None:
            del room.invited[user_id]
        return {"offset": self._changed(room, user, user_id, says=target is not None)}

    def ban_member(self, user: str, room_id: str, user_id: str, seconds: int | None) -> Answer:
        room, target, wrong = self._over(user, room_id, user_id)
        if wrong:
            raise Refused(*wrong)
        room.banned[user_id] = float("inf") if seconds is None else self.now + seconds
        room.invited.pop(user_id, None)
        self._go(room, user_id)
        return {"offset": self._changed(room, user, user_id, says=target is not None)}

    def unban_member(self, user: str, room_id: str, user_id: str) -> Answer:
        room, _, wrong = self._enter(user, room_id, STAFF, freezes=True, direct=False)
        if user_id not in room.banned:
            wrong.add("not_found")
        if wrong:
            raise Refused(*wrong)
        del room.banned[user_id]
        return {"offset": self._event(room, "member", None, user_id)}

    def mute_member(self, user: str, room_id: str, user_id: str, seconds: int) -> Answer:
        room, target, wrong = self._over(user, room_id, user_id)
        if target is None:
            raise Refused("not_found", *wrong)
        if wrong:
            raise Refused(*wrong)
        target.muted_until = self.now + seconds
        return {"offset": self._event(room, "member", None, user_id)}

    def unmute_member(self, user: str, room_id: str, user_id: str) -> Answer:
        room, target, wrong = self._over(user, room_id, user_id)
        if target is None:
            raise Refused("not_found", *wrong)
        if wrong:
            raise Refused(*wrong)
        if target.muted_until <= self.now:
            return {"offset": None}
        target.muted_until = 0.0
        return {"offset": self._event(room, "member", None, user_id)}

    def set_role(self, user: str, room_id: str, user_id: str, role: str) -> Answer:
        room, _, wrong = self._enter(user, room_id, OWNER, freezes=True, direct=False)
        target = room.members.get(user_id)
        if target is None:
            raise Refused("not_found", *wrong)
        if target.role != role and target.role == "owner":
            if user_id != user:
                wrong.add("forbidden")
            if sum(each.role == "owner" for each in room.members.values()) == 1:
                wrong.add("conflict")
        if wrong:
            raise Refused(*wrong)
        if target.role == role:
            return {"offset": None}
        target.role = role
        return {"offset": self._event(room, "member", None, user_id)}

    def set_notify(self, user: str, room_id: str, notify: str) -> Answer:
        _, member, _ = self._enter(user, room_id)
        member.notify = notify
        return {"offset": None}

    # -- messages

    def _mentioned(self, room: Room, user: str, text: str, seq: int) -> tuple[str, ...]:
        """The names in a text that are mentions: of members who see the message; all of them, by who may call all."""
        rank = RANKS[room.members[user].role]

        def counts(name: str) -> bool:
            if name == EVERYONE:
                return rank >= (1 if room.kind == "group" else STAFF)
            return name != user and name in room.members and room.members[name].history_from < seq

        return tuple(name for name in mentions_of(text, 50) if counts(name))

    def _notify(self, room: Room, seq: int, before: tuple[str, ...] = ()) -> None:
        """Tell who is mentioned now, and was not before."""
        message = room.messages[seq]
        for user, member in room.members.items():
            new = {user, EVERYONE} & {*message.mentions} and not {user, EVERYONE} & {*before}
            if new and user != message.author and member.notify != "none" and member.history_from < seq:
                self.notified[user, room.id, seq] += 1

    def chat_message(
        self,
        user: str,
        room_id: str,
        message: str,
        client_id: str | None = None,
        thread: int | None = None,
        reply_to: int | None = None,
    ) -> Answer:
        if not message.strip():
            raise Refused("invalid_message", *(() if (user, room_id) in self.here else ("not_joined",)))
        if (user, room_id) not in self.here:
            raise Refused("not_joined")
        room = self.rooms[room_id]
        if client_id is not None and (user, client_id) in room.said:
            return {"id": room.said[user, client_id], "client_id": client_id}
        rank = STAFF if room.kind == "broadcast" else 1
        _, member, wrong = self._enter(user, room_id, rank, freezes=True, speaks=True)
        root = room.visible(user, thread) if thread is not None else None
        if (thread is not None and root is None) or (reply_to is not None and room.visible(user, reply_to) is None):
            wrong.add("not_found")
        if root is not None and root.system:
            wrong.add("invalid_message")
        if wrong:
            raise Refused(*wrong)
        if root is not None and root.thread is not None:
            thread = root.thread
        seq = self._event(room, "message", user, client_id)
        said = Message(user, [message], thread=thread, reply_to=reply_to)
        said.mentions = self._mentioned(room, user, message, seq)
        room.messages[seq] = said
        self._notify(room, seq)
        if client_id is not None:
            room.said[user, client_id] = seq
        if thread is None:
            member.read = seq
        else:
            self._replied(room, thread, user, seq, said.mentions)
        return {"id": seq, "client_id": client_id}

    def _replied(self, room: Room, thread: int, user: str, seq: int, mentions: tuple[str, ...]) -> None:
        root = room.messages[thread]
        for each in {root.author, *mentions} - {EVERYONE, user}:
            root.followers.setdefault(each, 0)
        root.followers[user] = seq

    def _standing(self, room: Room, user: str, seq: int, wrong: set[str]) -> Message:
        """A message that is there.

        :raises Refused: it is not.
        """
        message = room.visible(user, seq)
        if message is None or message.deleted:
            raise Refused("not_found", *wrong)
        return message

    def edit_message(self, user: str, room_id: str, id: int, message: str) -> Answer:
        room, _, wrong = self._enter(user, room_id, freezes=True, speaks=True)
        there = self._standing(room, user, id, wrong)
        if there.system or there.author != user:
            wrong.add("forbidden")
        if not message.strip():
            wrong.add("invalid_message")
        if wrong:
            raise Refused(*wrong)
        if message == there.texts[-1]:
            return {"version": there.version, "offset": None}
        there.texts.append(message)
        there.version += 1
        before, there.mentions = there.mentions, self._mentioned(room, user, message, id)
        self._notify(room, id, before)
        if there.thread is not None:
            root = room.messages[there.thread]
            for each in {*there.mentions} - {EVERYONE}:
                root.followers.setdefault(each, 0)
        return {"version": there.version, "offset": self._event(room, "message_updated", id, there.author)}

    def delete_message(self, user: str, room_id: str, id: int) -> Answer:
        room, member, _ = self._enter(user, room_id)
        there = room.visible(user, id)
        if there is None:
            raise Refused("not_found")
        moderates = RANKS[member.role] >= STAFF and room.visibility != "direct"
        own = there.author == user and not there.system
        if not moderates and (not own or room.archived):
            raise Refused("forbidden")
        if there.deleted:
            return {"offset": None}
        there.deleted, there.pinned = True, False
        there.texts, there.mentions, there.reactions = [""], (), {}
        return {"offset": self._event(room, "message_deleted", id, there.author)}

    def add_reaction(self, user: str, room_id: str, id: int, emoji: str) -> Answer:
        return self._react(user, room_id, id, emoji, added=True)

    def remove_reaction(self, user: str, room_id: str, id: int, emoji: str) -> Answer:
        return self._react(user, room_id, id, emoji, added=False)

    def _react(self, user: str, room_id: str, id: int, emoji: str, *, added: bool) -> Answer:
        room, _, wrong = self._enter(user, room_id, freezes=True, speaks=True)
        there = self._standing(room, user, id, wrong)
        if wrong:
            raise Refused(*wrong)
        by = there.reactions.setdefault(emoji, [])
        if (user in by) == added:
            return {"offset": None}
        by.append(user) if added else by.remove(user)
        return {"offset": self._event(room, "reaction", id, emoji, user, added, len(by))}

    def pin_message(self, user: str, room_id: str, id: int) -> Answer:
        return self._pin(user, room_id, id, pinned=True)

    def unpin_message(self, user: str, room_id: str, id: int) -> Answer:
        return self._pin(user, room_id, id, pinned=False)

    def _pin(self, user: str, room_id: str, id: int, *, pinned: bool) -> Answer:
        room = self._know(user, room_id)
        few = room.visibility != "public" and room.kind == "group"
        room, _, wrong = self._enter(user, room_id, 1 if few else STAFF, freezes=True)
        there = room.visible(user, id)
        if there is None or (pinned and there.deleted):
            raise Refused("not_found", *wrong)
        if pinned and there.system:
            wrong.add("forbidden")
        if wrong:
            raise Refused(*wrong)
        if there.pinned == pinned:
            return {"offset": None}
        there.pinned = pinned
        seq = self._event(room, "pinned", id, user)
        self._say(room, user)
        return {"offset": seq}

    # -- reading

    def mark_read(self, user: str, room_id: str, id: int, thread: int | None) -> Answer:
        room, member, _ = self._enter(user, room_id)
        if id > room.seq:
            raise Refused("not_found")
        if thread is None:
            member.read = max([member.read, *(seq for seq in room.messages if seq <= id)])
            return {"read": member.read, "unread": room.unread(user), "mentions": room.mentions(user)}
        root = room.messages.get(thread)
        if root is None or user not in root.followers:
            raise Refused("not_found")
        read = root.followers[user]
        replies = room.replies(thread)
        root.followers[user] = read = max([read, *(seq for seq in replies if seq <= id)])
        mentions = sum(seq in replies for seq in room.mentioning(user, read)) if member.notify != "none" else 0
        return {"read": read, "unread": sum(seq > read for seq in replies), "mentions": mentions}
