"""Who may do what in a room. The only place that decides it, for socket and REST alike."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import Final, NamedTuple

from hubbub.auth import Grants
from hubbub.errors import ClientError, ErrorCode
from hubbub.features.chat.asks import Kind, Notify, Role, Sharing, Visibility


class Act(StrEnum):
    """What somebody wants to do in a room."""

    SEE = "see"  # that it is there, its name and numbers
    JOIN = "join"  # become a member; of a live room: enter it
    READ = "read"
    BROWSE = "browse"  # what is kept of it
    WRITE = "write"
    REACT = "react"
    EDIT = "edit"  # one's own message
    DELETE = "delete"  # one's own message
    MODERATE = "moderate"  # somebody's message
    PIN = "pin"
    CALL_ALL = "call_all"  # @room
    INVITE = "invite"
    REMOVE = "remove"  # kick, ban, mute
    CONFIGURE = "configure"
    ROLES = "roles"
    ARCHIVE = "archive"
    REVIEW = "review"  # reports, audit log
    EXPORT = "export"


RANKS: Final[Mapping[Role | None, int]] = {None: 0, "member": 1, "moderator": 2, "owner": 3}
ADMIN: Final = 4
"""The rank of a token with the admin grant, and of an API key: above every owner."""

NEEDS: Final[Mapping[Act, int]] = {
    Act.SEE: 0,
    Act.JOIN: 0,
    Act.READ: 1,
    Act.BROWSE: 1,
    Act.WRITE: 1,
    Act.REACT: 1,
    Act.EDIT: 1,
    Act.DELETE: 1,
    Act.MODERATE: 2,
    Act.PIN: 1,
    Act.CALL_ALL: 1,
    Act.INVITE: 1,
    Act.REMOVE: 2,
    Act.CONFIGURE: 2,
    Act.ROLES: 3,
    Act.ARCHIVE: 3,
    Act.REVIEW: 2,
    Act.EXPORT: 3,
}
"""The least rank for each act."""
FROM_OUTSIDE: Final = frozenset({Act.SEE, Act.JOIN})
"""What who is no member may do, in a room that it may know of (:func:`may_know`)."""
STAFF_IN_PUBLIC: Final = frozenset({Act.PIN})
"""Acts that take a moderator in public, large and broadcast rooms: there, members do not know each other."""
WRITES: Final = frozenset(
    {Act.WRITE, Act.REACT, Act.EDIT, Act.DELETE, Act.PIN, Act.CALL_ALL, Act.INVITE, Act.REMOVE, Act.ROLES}
)
"""What an archived room refuses. (A moderator may still delete there, and an owner open it again.)"""
STORED_ONLY: Final = frozenset({Act.BROWSE, Act.REACT, Act.EDIT, Act.DELETE, Act.MODERATE, Act.PIN, Act.EXPORT})
"""What needs messages that are kept."""
NOT_IN_DIRECT: Final = frozenset({Act.INVITE, Act.REMOVE, Act.CONFIGURE, Act.ROLES, Act.ARCHIVE})
"""A direct room belongs to its people alike."""


class Caller(NamedTuple):
    """Who asks. ``user_id`` is "" for an API key that speaks for nobody."""

    user_id: str
    grants: Grants
    admin: bool = False


class RoomRow:
    """A row of ``rooms``, in a transaction."""

    __slots__ = (
        "archived_at", "created_at", "created_by", "direct_key", "epoch", "event_seq", "history", "id", "indexed_seq", "kind",
        "last_at", "member_count", "message_count", "name", "no", "pin_count", "retention_days", "slow_mode", "topic",
        "trimmed_seq", "visibility",
    )  # fmt: skip
    no: int
    id: str
    name: str
    topic: str
    kind: Kind
    visibility: Visibility
    history: Sharing
    direct_key: str | None
    epoch: str
    event_seq: int
    message_count: int
    member_count: int
    pin_count: int
    trimmed_seq: int
    indexed_seq: int
    slow_mode: int
    retention_days: int
    created_at: int
    created_by: str | None
    last_at: int
    archived_at: int | None

    @property
    def stored(self) -> bool:
        """Whether its messages are in the store."""
        return self.kind != "live"

    def is_group(self, limit: int) -> bool:
        """Whether it is small and of the kind that has receipts."""
        return self.kind == "group" and self.member_count <= limit


class MemberRow(NamedTuple):
    """A row of ``members``."""

    user_id: str
    role: Role
    joined_at: int
    history_from: int
    notify: Notify
    read_seq: int
    read_count: int
    mention_count: int
    muted_until: int
    sent_at: int


def rank_of(caller: Caller, member: MemberRow | None) -> int:
    """How much somebody has to say in a room: 0 (nobody) to 4 (an admin)."""
    if caller.admin:
        return ADMIN
    return RANKS[member.role if member is not None else None]


def may_know(room: RoomRow, member: MemberRow | None, caller: Caller, invited: bool) -> bool:
    """Whether somebody may know that a room is there. A token that names a private room (by its id, not by a pattern) is
    an invitation to it."""
    if not caller.grants.may_join(room.id):
        return False
    if rank_of(caller, member) or room.visibility == "public":
        return True
    return room.visibility == "private" and (invited or room.id in (caller.grants.rooms or ()))


def check(
    room: RoomRow,
    member: MemberRow | None,
    caller: Caller,
    act: Act,
    now: int,
    *,
    invited: bool = False,
    group_limit: int = 0,
) -> None:
    """Refuse an act that is not allowed.

    :param now: unix milliseconds.
    :param invited: there is an invitation for the caller.
    :param group_limit: members of a room in which each may call all; it matters to :attr:`Act.CALL_ALL` only.
    :raises ClientError: ``not_found`` where the caller may not even know of the room, else what stands in the way.
    """
    rank = rank_of(caller, member)
    if not may_know(room, member, caller, invited):
        raise no_such_room(room.id)
    if rank == 0 and act not in FROM_OUTSIDE and room.stored:
        raise ClientError(ErrorCode.NOT_JOINED, "join the room first (join_room)")
    if act in STORED_ONLY and not room.stored:
        raise ClientError(ErrorCode.FORBIDDEN, "this room keeps no messages (it is of the kind `live`)")
    if room.visibility == "direct" and (act in NOT_IN_DIRECT or (act is Act.JOIN and member is None)):
        raise ClientError(ErrorCode.FORBIDDEN, "a direct room has only its people: make a private room for more")
    if room.archived_at is not None and act in WRITES:
        raise ClientError(ErrorCode.FORBIDDEN, "the room is archived: nothing is added to it")
    needed = NEEDS[act]
    if not room.stored and needed == 1:
        needed = 0  # who is in a live room is no member
    if act in STAFF_IN_PUBLIC and (room.visibility == "public" or room.kind != "group"):
        needed = 2
    if room.visibility == "direct" and act is Act.MODERATE:
        needed = ADMIN
    if act is Act.WRITE and room.kind == "broadcast":
        needed = 2
    if act is Act.CALL_ALL and not room.is_group(group_limit):
        needed = 2
    if rank < needed:
        raise ClientError(ErrorCode.FORBIDDEN, _who(needed))
    if act in (Act.WRITE, Act.REACT, Act.EDIT) and member is not None and member.muted_until > now and rank < ADMIN:
        left = (member.muted_until - now) / 1000
        raise ClientError(ErrorCode.FORBIDDEN, "you are muted in this room", retry_after=round(left, 3))


def allows(
    room: RoomRow, member: MemberRow | None, caller: Caller, act: Act, now: int, *, group_limit: int = 0
) -> bool:
    """The same as :func:`check`, as an answer."""
    try:
        check(room, member, caller, act, now, group_limit=group_limit)
    except ClientError:
        return False
    return True


def may_search(caller: Caller, room_id: str, visibility: Visibility, *, member: bool) -> bool:
    """Whether a search of everything looks into a room: into one's own, an admin's not into direct ones of others."""
    return caller.grants.may_join(room_id) and (member or (caller.admin and visibility != "direct"))


def check_over(caller: Caller, member: MemberRow | None, target: MemberRow | None) -> None:
    """Refuse what is done to somebody who has as much to say.

    :raises ClientError: ``forbidden``.
    """
    if rank_of(caller, member) <= RANKS[target.role if target is not None else None]:
        raise ClientError(ErrorCode.FORBIDDEN, "this takes a higher role than the other one's")


def check_admin(caller: Caller) -> None:
    """Refuse what concerns all rooms to who is no admin.

    :raises ClientError: ``forbidden``.
    """
    if not caller.admin:
        raise ClientError(ErrorCode.FORBIDDEN, "of all rooms this takes the admin grant: name one (room_id)")


def no_such_room(room_id: str) -> ClientError:
    """The same whether it is not there or not to be known of."""
    return ClientError(ErrorCode.NOT_FOUND, f"there is no room {room_id[:64]!r}")


def _who(rank: int) -> str:
    return {
        2: "this takes a moderator of the room",
        3: "this takes an owner of the room",
        4: "this takes the admin grant",
    }.get(rank, "join the room first (join_room)")
