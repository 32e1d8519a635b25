"""The commands about members: who is in a room, who may come, who has to go, who may do what."""

from __future__ import annotations

from sqlalchemy import ColumnElement, and_, delete, insert, or_, select, update

from hubbub.errors import ClientError, ErrorCode
from hubbub.features.chat import tables
from hubbub.features.chat.access import Act, MemberRow, RoomRow, check_over
from hubbub.features.chat.asks import (
    Ban,
    Invite,
    Kick,
    ListBans,
    ListMembers,
    Mute,
    Role,
    SetNotify,
    SetRole,
    Unban,
    Unmute,
)
from hubbub.features.chat.membership import (
    add_members,
    change_of,
    checked_text,
    checked_users,
    doer,
    done,
    drop_invitation,
    drop_member,
    expel,
    new_member,
    refuse_last_owner,
    say_change,
    seen_by,
)
from hubbub.features.chat.reading import unread_mentions
from hubbub.features.chat.tells import BanInfo, Bans, Done, MemberInfo, Members, RoomAdded
from hubbub.features.chat.tx import Tx, reads, stamp, writes

# -- who is in a room


@reads(ListMembers, "GET /api/rooms/{room_id}/members")
def list_members(tx: Tx, message: ListMembers) -> Members:
    """A room's members by id, a page at a time."""
    room, _ = tx.enter(message.room_id, Act.READ)
    m, seen = tables.members.c, tables.last_seen.c
    query = (
        select(m.user_id, m.role, m.joined_at, m.muted_until, seen.at)
        .select_from(tables.members.outerjoin(tables.last_seen, seen.user_id == m.user_id))
        .where(m.room_no == room.no, m.user_id > checked_text(message.after, "after"))
        .order_by(m.user_id)
        .limit(message.limit + 1)
    )
    rows = tx.connection.execute(query).all()
    listed = [
        MemberInfo(
            user_id,
            role,
            stamp(joined_at),
            stamp(muted_until) if muted_until > tx.now else None,
            None if at is None else stamp(at),
        )
        for user_id, role, joined_at, muted_until, at in rows[: message.limit]
    ]
    return Members(room_id=room.id, members=listed, more=len(rows) > message.limit)


@writes(SetNotify, "PUT /api/rooms/{room_id}/notify")
def set_notify(tx: Tx, message: SetNotify) -> Done:
    """What of a room notifies the caller."""
    room, member = tx.enter(message.room_id, Act.READ)
    if member is None:
        raise ClientError(ErrorCode.NOT_JOINED, "only a member of the room has a choice of what notifies")
    after = member._replace(notify=message.notify)
    mentions = unread_mentions(tx, room, after, member.read_seq)  # none are counted while nothing notifies
    _change_member(tx, room, member, notify=message.notify, mention_count=mentions)
    return done(room)


def _change_member(tx: Tx, room: RoomRow, member: MemberRow, **values: str | int) -> None:
    t = tables.members.c
    tx.connection.execute(
        update(tables.members).where(t.room_no == room.no, t.user_id == member.user_id).values(**values)
    )


# -- inviting


@writes(Invite, "POST /api/rooms/{room_id}/invitations")
def invite(tx: Tx, message: Invite) -> Done:
    """Invite people; who is in the room or invited already stays so. None is invited if one may not be."""
    room, _ = tx.enter(message.room_id, Act.INVITE)
    if not room.stored:
        raise ClientError(ErrorCode.FORBIDDEN, "a live room has no members: tell people its id")
    new = _not_there_yet(tx, room, checked_users(message.user_ids))
    _refuse_banned(tx, room, new)
    if not new:
        return done(room)
    rows = [{"room_no": room.no, "user_id": each, "invited_by": doer(tx), "at": tx.now} for each in new]
    tx.connection.execute(insert(tables.invitations), rows)
    seq = 0
    for user_id in new:
        if room.visibility == "private":
            seq = tx.event(room, "member", change_of(tx, user_id, "invited"))
        tx.personally(user_id, RoomAdded(seen_by(room, None, doer(tx))))
    return done(room, seq)


def _not_there_yet(tx: Tx, room: RoomRow, user_ids: list[str]) -> list[str]:
    there: set[str] = set()
    for table in (tables.members, tables.invitations):
        query = select(table.c.user_id).where(table.c.room_no == room.no, table.c.user_id.in_(user_ids))
        there.update(tx.connection.scalars(query))
    return [each for each in user_ids if each not in there]


def _refuse_banned(tx: Tx, room: RoomRow, user_ids: list[str]) -> None:
    t = tables.bans.c
    mine = and_(t.room_no == room.no, t.user_id.in_(user_ids), _in_force(tx))
    banned = tx.connection.scalar(select(t.user_id).where(mine).order_by(t.user_id).limit(1))
    if banned is not None:
        raise ClientError(ErrorCode.FORBIDDEN, f"{banned[:64]!r} is banned from this room: unban them first")


# -- removing


@writes(Kick, "POST /api/rooms/{room_id}/kick")
def kick(tx: Tx, message: Kick) -> Done:
    """Take somebody out of a room; or their invitation back. They may come again, if they otherwise might."""
    room, target = _over(tx, message.room_id, message.user_id)
    invited = target is None and drop_invitation(tx, room, message.user_id)
    if target is not None:
        drop_member(tx, room, message.user_id)
    elif room.stored and not invited:
        raise _no_member(message.user_id)
    data = change_of(tx, message.user_id, "kicked", reason=checked_text(message.reason, "reason"))
    seq = tx.event(room, "member", data)
    if target is not None:
        say_change(tx, room, data)
    tx.audit("kick", room, user_id=message.user_id, data=_because(message.reason))
    expel(tx, room, message.user_id, "kicked")
    return done(room, seq)


@writes(Ban, "POST /api/rooms/{room_id}/bans")
def ban(tx: Tx, message: Ban) -> Done:
    """Keep somebody out of a room, whether they are in it or not; a ban that is there is replaced."""
    room, target = _over(tx, message.room_id, message.user_id)
    user_id, reason = message.user_id, checked_text(message.reason, "reason")
    until = None if message.seconds is None else tx.now + message.seconds * 1000
    _drop_ban(tx, room, user_id)
    row = {
        "room_no": room.no,
        "user_id": user_id,
        "until": until,
        "reason": reason,
        "banned_by": doer(tx),
        "at": tx.now,
    }
    tx.connection.execute(insert(tables.bans), row)
    invited = drop_invitation(tx, room, user_id)
    was_in = target is not None and drop_member(tx, room, user_id)
    data = change_of(tx, user_id, "banned", until=None if until is None else stamp(until), reason=reason)
    seq = tx.event(room, "member", data)
    if was_in:
        say_change(tx, room, data)
    tx.audit("ban", room, user_id=user_id, data={"seconds": message.seconds, **_because(reason)})
    if was_in or invited or not room.stored:
        expel(tx, room, user_id, "banned")
    return done(room, seq)


@writes(Unban, "DELETE /api/rooms/{room_id}/bans/{user_id}")
def unban(tx: Tx, message: Unban) -> Done:
    """Let somebody come again."""
    room, _ = tx.enter(message.room_id, Act.REMOVE)
    checked_users([message.user_id])
    if not _drop_ban(tx, room, message.user_id):
        raise ClientError(ErrorCode.NOT_FOUND, f"{message.user_id[:64]!r} is not banned from this room")
    seq = tx.event(room, "member", change_of(tx, message.user_id, "unbanned"))
    tx.audit("unban", room, user_id=message.user_id)
    return done(room, seq)


@reads(ListBans, "GET /api/rooms/{room_id}/bans")
def list_bans(tx: Tx, message: ListBans) -> Bans:
    """The bans in force, by user, a page at a time."""
    room, _ = tx.enter(message.room_id, Act.REVIEW)  # not REMOVE: an archived room can be looked at too
    t = tables.bans.c
    query = (
        select(t.user_id, t.banned_by, t.at, t.until, t.reason)
        .where(t.room_no == room.no, t.user_id > checked_text(message.after, "after"), _in_force(tx))
        .order_by(t.user_id)
        .limit(message.limit + 1)
    )
    rows = tx.connection.execute(query).all()
    bans = [
        BanInfo(user_id, by, stamp(at), None if until is None else stamp(until), reason)
        for user_id, by, at, until, reason in rows[: message.limit]
    ]
    return Bans(room_id=room.id, bans=bans, more=len(rows) > message.limit)


def _in_force(tx: Tx) -> ColumnElement[bool]:
    return or_(tables.bans.c.until.is_(None), tables.bans.c.until > tx.now)


def _drop_ban(tx: Tx, room: RoomRow, user_id: str) -> bool:
    t = tables.bans.c
    return bool(tx.connection.execute(delete(tables.bans).where(t.room_no == room.no, t.user_id == user_id)).rowcount)


def _over(tx: Tx, room_id: str, user_id: str, act: Act = Act.REMOVE) -> tuple[RoomRow, MemberRow | None]:
    """A room, and the membership of whom something is done to.

    :raises ClientError: the caller has not more to say than they.
    """
    room, member = tx.enter(room_id, act)
    checked_users([user_id])
    target = tx.member(room, user_id)
    check_over(tx.caller, member, target)
    return room, target


def _no_member(user_id: str) -> ClientError:
    return ClientError(ErrorCode.NOT_FOUND, f"{user_id[:64]!r} is no member of this room")


def _because(reason: str) -> dict[str, str]:
    return {"reason": reason} if reason else {}


# -- muting


@writes(Mute, "POST /api/rooms/{room_id}/mutes")
def mute(tx: Tx, message: Mute) -> Done:
    """Let a member read, and not write, for some time from now."""
    room, target = _over(tx, message.room_id, message.user_id)
    if target is None and not room.stored:
        raise ClientError(ErrorCode.FORBIDDEN, "a live room has no members to mute: ban them for a time instead")
    if target is None:
        raise _no_member(message.user_id)
    until, reason = tx.now + message.seconds * 1000, checked_text(message.reason, "reason")
    _change_member(tx, room, target, muted_until=until)
    seq = tx.event(room, "member", change_of(tx, message.user_id, "muted", until=stamp(until), reason=reason))
    tx.audit("mute", room, user_id=message.user_id, data={"seconds": message.seconds, **_because(reason)})
    return done(room, seq)


@writes(Unmute, "DELETE /api/rooms/{room_id}/mutes/{user_id}")
def unmute(tx: Tx, message: Unmute) -> Done:
    """Let a member write again; nothing happens to one who may."""
    room, target = _over(tx, message.room_id, message.user_id)
    if target is None:
        raise _no_member(message.user_id)
    if target.muted_until <= tx.now:
        return done(room)
    _change_member(tx, room, target, muted_until=0)
    seq = tx.event(room, "member", change_of(tx, message.user_id, "unmuted"))
    tx.audit("unmute", room, user_id=message.user_id)
    return done(room, seq)


# -- roles


@writes(SetRole, "PUT /api/rooms/{room_id}/members/{user_id}/role")
def set_role(tx: Tx, message: SetRole) -> Done:
    """Give a member another role. An owner may give up being one. In a live room it makes staff of anybody."""
    room, member = tx.enter(message.room_id, Act.ROLES)
    checked_users([message.user_id])
    target = tx.member(room, message.user_id)
    if target is None and room.stored:
        raise _no_member(message.user_id)
    if (target.role if target is not None else "member") == message.role:
        return done(room)
    if message.user_id != tx.caller.user_id:
        check_over(tx.caller, member, target)
    if target is not None and target.role == "owner":
        refuse_last_owner(tx, room, message.user_id)
    _give(tx, room, target, message.user_id, message.role)
    seq = tx.event(room, "member", change_of(tx, message.user_id, "role", role=message.role))
    tx.audit("set_role", room, user_id=message.user_id, data={"role": message.role})
    return done(room, seq)


def _give(tx: Tx, room: RoomRow, target: MemberRow | None, user_id: str, role: Role) -> None:
    """In a live room only staff have rows."""
    if target is None:
        add_members(tx, room, [new_member(room, user_id, role, tx.now)])
    elif room.stored or role != "member":
        _change_member(tx, room, target, role=role)
    else:
        drop_member(tx, room, user_id)
