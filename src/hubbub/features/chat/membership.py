"""Becoming a member of a room and being one no longer; and what the commands about rooms and members share."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any, Final

from sqlalchemy import Table, delete, insert, select
from sqlalchemy.dialects import postgresql, sqlite

from hubbub.errors import ClientError, ErrorCode
from hubbub.features.chat import tables
from hubbub.features.chat.access import Act, Caller, MemberRow, RoomRow, check
from hubbub.features.chat.asks import Change, Join, LeaveRoom, Role
from hubbub.features.chat.render import my_room, room_info
from hubbub.features.chat.tells import Done, MemberData, RoomAdded, RoomInfo, RoomLeft, RoomRemoved, RoomReply
from hubbub.features.chat.tx import Tx, writes

API_KEY: Final = "(api key)"
"""Who did it, where nobody signed in did: an API key that speaks for no user."""
_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f]")


# -- what the commands share


def doer(tx: Tx) -> str:
    """Who is asking, as the tables keep it."""
    return tx.caller.user_id or API_KEY


def checked_users(user_ids: Iterable[str]) -> list[str]:
    """User ids as given, each once, in their order.

    :raises ClientError: ``invalid_message``: nobody can have such an id.
    """
    found = list(dict.fromkeys(user_ids))
    if any(not user_id or _CONTROL.search(user_id) for user_id in found):
        raise ClientError(ErrorCode.INVALID_MESSAGE, "a user's id has 1 to 128 characters, none of them control ones")
    return found


def checked_text(text: str, where: str) -> str:
    """Text that may have lines.

    :raises ClientError: ``invalid_message``.
    """
    if "\x00" in text:
        raise ClientError(ErrorCode.INVALID_MESSAGE, f"there may be no NUL in it - at `$.{where}`")
    return text


def checked_line(text: str, where: str) -> str:
    """Text of one line, and not blank.

    :raises ClientError: ``invalid_message``.
    """
    if not text.strip() or _CONTROL.search(text):
        raise ClientError(ErrorCode.INVALID_MESSAGE, f"this takes text, in one line - at `$.{where}`")
    return text


def insert_new(tx: Tx, table: Table) -> sqlite.Insert | postgresql.Insert:
    """An insert that does nothing where the row is there already."""
    if tx.dialect == "postgresql":
        return postgresql.insert(table).on_conflict_do_nothing()
    return sqlite.insert(table).on_conflict_do_nothing()


def done(room: RoomRow, seq: int = 0) -> Done:
    """The answer to a command. ``seq``: number of its event, 0 if there is none."""
    return Done(room_id=room.id, offset=seq) if seq else Done(room_id=room.id)


def seen_by(room: RoomRow, member: MemberRow | None, invited_by: str | None = None) -> RoomInfo:
    """A room with somebody's own side of it."""
    return room_info(room, my_room(room, member, invited_by))


def change_of(
    tx: Tx,
    user_id: str,
    change: Change,
    *,
    role: Role | None = None,
    until: str | None = None,
    reason: str = "",
) -> MemberData:
    """What happened to a member, as the room is told. It has ``by`` where somebody else did it."""
    by = None if user_id == tx.caller.user_id else doer(tx)
    return MemberData(user_id, change, by, role, until, reason)


def say_change(tx: Tx, room: RoomRow, data: MemberData) -> None:
    """Say it among the messages of a private room. Public ones have too many comings and goings."""
    if room.visibility == "private":
        tx.say(room, {"event": data.change, "user_id": data.user_id, **({"by": data.by} if data.by else {})})


# -- rows


def new_member(room: RoomRow, user_id: str, role: Role, now: int) -> MemberRow:
    """A member who has nothing unread, and sees what the room's ``history`` allows."""
    return MemberRow(
        user_id=user_id,
        role=role,
        joined_at=now,
        history_from=room.event_seq if room.history == "joined" else 0,
        notify="all",
        read_seq=room.event_seq,
        read_count=room.message_count,
        mention_count=0,
        muted_until=0,
        sent_at=0,
    )


def add_members(tx: Tx, room: RoomRow, members: list[MemberRow]) -> None:
    """Write members of a room who are not in it yet, and count them."""
    if members:
        tx.connection.execute(insert(tables.members), [{"room_no": room.no, **each._asdict()} for each in members])
        tx.change_room(room, member_count=room.member_count + len(members))


def drop_member(tx: Tx, room: RoomRow, user_id: str) -> bool:
    """Delete a membership, and count it; false if there is none."""
    t = tables.members.c
    gone = tx.connection.execute(delete(tables.members).where(t.room_no == room.no, t.user_id == user_id)).rowcount
    if gone:
        tx.change_room(room, member_count=room.member_count - 1)
    return bool(gone)


def invitation(tx: Tx, room: RoomRow, user_id: str) -> str | None:
    """Who invited somebody to a room; None: nobody did."""
    t = tables.invitations.c
    found: str | None = tx.connection.scalar(select(t.invited_by).where(t.room_no == room.no, t.user_id == user_id))
    return found


def drop_invitation(tx: Tx, room: RoomRow, user_id: str) -> bool:
    """Delete an invitation; false if there is none."""
    t = tables.invitations.c
    query = delete(tables.invitations).where(t.room_no == room.no, t.user_id == user_id)
    return bool(tx.connection.execute(query).rowcount)


def expel(tx: Tx, room: RoomRow, user_id: str, reason: str) -> None:
    """Have all devices of somebody who is no member any more leave the room, and tell them."""
    tx.remove(room, user_id, reason)
    tx.personally(user_id, RoomRemoved(room.id, reason))


def _ban(tx: Tx, room: RoomRow) -> tuple[int | None] | None:
    """Until when the caller is banned, if they are."""
    t = tables.bans.c
    mine = (t.room_no == room.no) & (t.user_id == tx.caller.user_id)
    row: Any = tx.connection.execute(select(t.until).where(mine)).first()
    return None if row is None else (row.until,)


def _refuse_banned(until: int | None, now: int) -> None:
    """:raises ClientError: ``forbidden``, unless the ban is over; with ``retry_after`` if it ends."""
    if until is None:
        raise ClientError(ErrorCode.FORBIDDEN, "you are banned from this room")
    if until > now:
        left = round((until - now) / 1000, 3)
        raise ClientError(ErrorCode.FORBIDDEN, "you are banned from this room for some time", retry_after=left)


def refuse_last_owner(tx: Tx, room: RoomRow, user_id: str) -> None:
    """Refuse that an owner goes, or is one no longer, who leaves none behind.

    :raises ClientError: ``conflict``.
    """
    t = tables.members.c
    another = select(t.user_id).where(t.room_no == room.no, t.role == "owner", t.user_id != user_id).limit(1)
    if tx.connection.scalar(another) is None:
        raise ClientError(ErrorCode.CONFLICT, "the room needs an owner: make another member one first (set_role)")


# -- coming


def approach(tx: Tx, room_id: str, act: Act) -> tuple[RoomRow, MemberRow | None, str | None]:
    """Like :meth:`Tx.enter`, for who may be invited only; the third is who invited the caller.

    :raises ClientError: the act is not allowed.
    """
    room, member = tx.look(room_id)
    invited_by = invitation(tx, room, tx.caller.user_id) if member is None else None
    check(room, member, tx.caller, act, tx.now, invited=invited_by is not None)
    return room, member, invited_by


class Standing:
    """How somebody stands to a room.

    :ivar invited_by: who invited them.
    :ivar ban: (until,) of a ban, unix milliseconds or None for ever; None: there is none.
    """

    __slots__ = ("ban", "invited_by", "member", "room")

    def __init__(
        self,
        room: RoomRow,
        member: MemberRow | None,
        invited_by: str | None = None,
        ban: tuple[int | None] | None = None,
    ) -> None:
        self.room = room
        self.member = member
        self.invited_by = invited_by
        self.ban = ban


def check_join(tx: Tx, room: RoomRow, member: MemberRow | None) -> None:
    """Refuse somebody who may not become a member of a room; or of a `live` one, which has none: may not enter it.

    :raises ClientError: they are banned, the room is full, or it is private and nobody invited them.
    """
    standing = Standing(room, member)
    if member is None:
        standing.invited_by = invitation(tx, room, tx.caller.user_id)
        standing.ban = _ban(tx, room)
    judge_join(standing, tx.caller, tx.now, tx.settings.max_members)


def judge_join(standing: Standing, caller: Caller, now: int, max_members: int) -> None:
    """The same where all is known already.

    :raises ClientError: as :func:`check_join` does.
    """
    room, member = standing.room, standing.member
    check(room, member, caller, Act.JOIN, now, invited=standing.invited_by is not None)
    if member is not None:
        return
    if standing.ban is not None and not caller.admin:
        _refuse_banned(standing.ban[0], now)
    if max_members and room.member_count >= max_members:
        raise ClientError(ErrorCode.TOO_MANY, f"the room is full: it may have {max_members} members")


def become_member(tx: Tx, room: RoomRow, member: MemberRow | None) -> MemberRow:
    """Make the caller a member of a room, unless they are one already.

    :param room: from :meth:`Tx.look`, in a command that writes.
    :raises ClientError: they may not (:func:`check_join`).
    """
    if member is None:
        # it may be old: PostgreSQL read it before it waited for the room's lock, and another node may have been first
        member = tx.member(room, tx.caller.user_id)
    check_join(tx, room, member)
    if member is not None:
        return member
    if not room.stored:
        raise ClientError(ErrorCode.FORBIDDEN, "a live room has no members: enter it (join_room)")
    if not tx.caller.user_id:
        raise ClientError(ErrorCode.FORBIDDEN, "an API key joins no room: say which user does")
    return _join(tx, room)


def _join(tx: Tx, room: RoomRow) -> MemberRow:
    user_id = tx.caller.user_id
    member = new_member(room, user_id, "member", tx.now)
    add_members(tx, room, [member])
    drop_invitation(tx, room, user_id)
    _forget_ban(tx, room, user_id)
    if room.visibility == "private":
        data = change_of(tx, user_id, "joined")
        tx.event(room, "member", data)
        say_change(tx, room, data)
    return member


def _forget_ban(tx: Tx, room: RoomRow, user_id: str) -> None:
    """Delete a ban that is over."""
    t = tables.bans.c
    tx.connection.execute(delete(tables.bans).where(t.room_no == room.no, t.user_id == user_id, t.until <= tx.now))


@writes(Join, "POST /api/rooms/{room_id}/members/me")
def join(tx: Tx, message: Join) -> RoomReply:
    """Become a member without entering the room."""
    room, member = tx.look(message.room_id)
    was = member is not None
    member = become_member(tx, room, member)
    info = seen_by(room, member)
    if not was:
        tx.personally(tx.caller.user_id, RoomAdded(info))
    return RoomReply(room=info)


# -- going


@writes(LeaveRoom, "DELETE /api/rooms/{room_id}/members/me")
def leave_for_good(tx: Tx, message: LeaveRoom) -> RoomLeft:
    """Be a member no longer, or decline an invitation, whatever ``message.membership`` says."""
    room, member, invited_by = approach(tx, message.room_id, Act.SEE)
    user_id = tx.caller.user_id
    if room.visibility == "direct":
        raise ClientError(ErrorCode.FORBIDDEN, "a direct room cannot be left: set its notify to `none` (set_notify)")
    if member is not None and member.muted_until > tx.now:
        left = round((member.muted_until - tx.now) / 1000, 3)
        text = "you are muted in this room: leave it for good once that is over"  # or who comes back could write
        raise ClientError(ErrorCode.FORBIDDEN, text, retry_after=left)
    if member is not None and member.role == "owner" and room.member_count > 1:
        refuse_last_owner(tx, room, user_id)
    change: Change = "declined" if invited_by is not None else "left"
    gone = drop_invitation(tx, room, user_id) if invited_by is not None else drop_member(tx, room, user_id)
    if not gone:
        raise ClientError(ErrorCode.NOT_JOINED, "you are no member of this room")
    if room.visibility == "private":
        data = change_of(tx, user_id, change)
        tx.event(room, "member", data)
        if change == "left":
            say_change(tx, room, data)
    expel(tx, room, user_id, change)
    return RoomLeft(room_id=room.id)
