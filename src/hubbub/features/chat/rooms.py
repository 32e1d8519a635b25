"""The commands about rooms: make them, find them, change them."""

from __future__ import annotations

import hashlib
import re
import secrets
import string
from typing import Any, Final

import msgspec
from msgspec import Struct
from sqlalchemy import Select, and_, bindparam, func, or_, select, union, union_all

from hubbub.errors import ClientError, ErrorCode
from hubbub.features.chat import tables
from hubbub.features.chat.access import Act, MemberRow, RoomRow, check
from hubbub.features.chat.asks import CreateRoom, GetRoom, Kind, ListRooms, OpenDirect, Sharing, UpdateRoom, Visibility
from hubbub.features.chat.membership import (
    add_members,
    approach,
    checked_line,
    checked_text,
    checked_users,
    insert_new,
    new_member,
    seen_by,
)
from hubbub.features.chat.render import my_room, people_of, room_info
from hubbub.features.chat.tells import MyRoom, RoomAdded, RoomCreated, RoomInfo, RoomReply, Rooms
from hubbub.features.chat.tx import ROOM_COLUMNS, Tx, reads, room_of, stamp, writes
from hubbub.messages import ROOM_ID

NAME_LENGTH: Final = 100
_OF_DIRECT: Final = re.compile(r"dm-[0-9a-f]{20}")
_LETTERS: Final = string.ascii_lowercase + string.digits


# -- making


def make_room(
    tx: Tx,
    room_id: str,
    *,
    name: str,
    topic: str = "",
    kind: Kind = "group",
    visibility: Visibility = "public",
    history: Sharing = "shared",
    created_by: str | None = None,
    direct_key: str | None = None,
) -> RoomRow | None:
    """Make a room without members; None: its id is taken (or its direct key), on whatever node."""
    values = {
        "id": room_id,
        "name": name,
        "topic": topic,
        "kind": kind,
        "visibility": visibility,
        "history": history,
        "direct_key": direct_key,
        "epoch": secrets.token_hex(4),
        "created_at": tx.now,
        "created_by": created_by,
        "last_at": tx.now,
    }
    row = tx.connection.execute(insert_new(tx, tables.rooms).values(values).returning(*ROOM_COLUMNS)).first()
    return None if row is None else room_of(row)


def ensure_room(tx: Tx, room_id: str, name: str | None = None) -> RoomRow:
    """A public room, made if it is not there. For the server itself: nobody is asked for permission.

    :raises ClientError: ``invalid_message``: a wrong id or name.
    """
    check_id(room_id)
    made = make_room(tx, room_id, name=room_id if name is None else checked_line(name, "name")[:NAME_LENGTH])
    return tx.look(room_id)[0] if made is None else made


def check_id(room_id: str) -> None:
    """:raises ClientError: ``invalid_message``: no room that somebody makes may be called so."""
    if ROOM_ID.fullmatch(room_id) is None:
        raise ClientError(ErrorCode.INVALID_MESSAGE, "a room's id is 1 to 64 of A-Z a-z 0-9 _ . - - at `$.room_id`")
    if _OF_DIRECT.fullmatch(room_id):
        raise ClientError(ErrorCode.INVALID_MESSAGE, "such ids are those of direct rooms - at `$.room_id`")


@writes(CreateRoom, "POST /api/rooms")
def create_room(tx: Tx, message: CreateRoom) -> RoomCreated:
    """Make a room; who makes it owns it."""
    people = _first_members(tx, message)
    room_id = _new_id() if message.room_id is None else message.room_id
    check_id(room_id)
    if not tx.caller.grants.may_join(room_id):
        raise ClientError(ErrorCode.FORBIDDEN, "the token does not allow this room")
    _check_quotas(tx)
    made = make_room(
        tx,
        room_id,
        name=_name_for(message, room_id, people),
        topic=checked_text(message.topic, "topic"),
        kind=message.kind,
        visibility=message.visibility,
        history=message.history,
        created_by=tx.caller.user_id or None,
    )
    if made is None:
        raise ClientError(ErrorCode.CONFLICT, f"there is a room {room_id!r} already")
    return RoomCreated(room=_fill(tx, made, people, owner=tx.caller.user_id))


def _first_members(tx: Tx, message: CreateRoom) -> list[str]:
    """Who is in a room from the start; its maker first."""
    people = checked_users(message.members)
    if people and message.kind == "live" and message.visibility == "public":
        text = "a public live room has no members: leave them out, or make it private - at `$.members`"
        raise ClientError(ErrorCode.INVALID_MESSAGE, text)
    if tx.caller.user_id:
        people = [tx.caller.user_id, *(each for each in people if each != tx.caller.user_id)]
    limit = tx.settings.max_members
    if limit and len(people) > limit:
        raise ClientError(ErrorCode.TOO_MANY, f"a room may have {limit} members")
    return people


def _name_for(message: CreateRoom, room_id: str, people: list[str]) -> str:
    if message.name is not None:
        return checked_line(message.name, "name")
    if message.room_id is None and message.visibility == "private" and people:
        return ", ".join(people)[:NAME_LENGTH]
    return room_id


def _new_id() -> str:
    """62 bits, in a room's alphabet."""
    return "".join(secrets.choice(_LETTERS) for _ in range(12))


def _check_quotas(tx: Tx) -> None:
    """:raises ClientError: ``too_many``. Nodes that make rooms at the same moment may go over it by one each."""
    t, settings = tables.rooms.c, tx.settings
    count = select(func.count()).where(t.visibility != "direct")
    # there are no more rooms than numbers: most of the time nothing has to be counted
    if settings.max_rooms and (tx.connection.scalar(select(func.max(t.no))) or 0) >= settings.max_rooms:
        if (tx.connection.scalar(count) or 0) >= settings.max_rooms:
            raise ClientError(ErrorCode.TOO_MANY, "there are too many rooms")
    limit, user_id = settings.max_rooms_per_user, tx.caller.user_id
    if limit and user_id and (tx.connection.scalar(count.where(t.created_by == user_id)) or 0) >= limit:
        raise ClientError(ErrorCode.TOO_MANY, f"a user may make at most {limit} rooms")


def _fill(tx: Tx, room: RoomRow, people: list[str], *, owner: str = "") -> RoomInfo:
    """Put people into a new room and tell them, but for the caller; returns the room as that one sees it."""
    members = [new_member(room, each, "owner" if each == owner else "member", tx.now) for each in people]
    add_members(tx, room, members)
    together = people if room.visibility == "direct" else msgspec.UNSET
    shown = {each.user_id: room_info(room, my_room(room, each), people=together) for each in members}
    mine = shown.pop(tx.caller.user_id, None)
    for user_id, info in shown.items():
        tx.personally(user_id, RoomAdded(info))
    return room_info(room, people=together) if mine is None else mine


@writes(OpenDirect, "POST /api/direct")
def open_direct(tx: Tx, message: OpenDirect) -> RoomCreated:
    """The one direct room of a set of people, made if it is not there."""
    people = sorted(checked_users([*message.user_ids, *filter(None, [tx.caller.user_id])]))
    if len(people) < 2:
        raise ClientError(ErrorCode.INVALID_MESSAGE, "a direct room takes somebody else - at `$.user_ids`")
    key = hashlib.sha256(msgspec.json.encode(people)).hexdigest()
    room_id = f"dm-{key[:20]}"
    if not tx.caller.grants.may_join(room_id):
        raise ClientError(ErrorCode.FORBIDDEN, "the token does not allow direct rooms with them")
    name, maker = ", ".join(people)[:NAME_LENGTH], tx.caller.user_id or None
    made = make_room(tx, room_id, name=name, visibility="direct", created_by=maker, direct_key=key)
    if made is not None:
        return RoomCreated(room=_fill(tx, made, people))
    room, member = tx.look(room_id)
    return RoomCreated(room=room_info(room, my_room(room, member), people=people), created=False)


# -- finding


@reads(GetRoom, "GET /api/rooms/{room_id}")
def get_room(tx: Tx, message: GetRoom) -> RoomReply:
    """A room, with the caller's own side of it."""
    room, member, invited_by = approach(tx, message.room_id, Act.SEE)
    people = people_of(tx, [room]).get(room.no, msgspec.UNSET)
    return RoomReply(room=room_info(room, my_room(room, member, invited_by), people=people))


_R: Final = tables.rooms.c
_M: Final = tables.members.c
_I: Final = tables.invitations.c
_LISTED: Final = (
    _R.no, _R.id, _R.name, _R.created_at, _R.created_by, _R.topic, _R.kind, _R.visibility, _R.history, _R.archived_at,
    _R.slow_mode, _R.retention_days, _R.member_count, _R.message_count, _R.last_at,
    _M.role, _M.read_count, _M.mention_count, _M.read_seq, _M.notify, _M.joined_at, _M.muted_until, _I.invited_by,
)  # fmt: skip
PREFILTERED: Final = 50
"""A token with more patterns of rooms than this is applied to all rooms, not in the database."""


@reads(ListRooms, "GET /api/rooms")
def list_rooms(tx: Tx, message: ListRooms) -> Rooms:
    """The caller's rooms, and (without ``mine``) all public ones; by id. One query, and one more for direct rooms."""
    query = _list_query(tx, message)
    values: dict[str, Any] = {"me": tx.caller.user_id, "after": message.after or "", "count": message.limit + 1}
    rows: list[Any] = []
    while True:
        page = tx.connection.execute(query, values).all()
        rows += [row for row in page if tx.caller.grants.may_join(row.id)] if tx.caller.grants.rooms else page
        if len(page) <= message.limit or len(rows) > message.limit:
            break
        values["after"] = page[-1].id
    more, rows = len(rows) > message.limit, rows[: message.limit]
    people = people_of(tx, rows)
    return Rooms(rooms=[_listed(row, people.get(row[0], msgspec.UNSET)) for row in rows], more=more)


def _list_query(tx: Tx, message: ListRooms) -> Select[Any]:
    """First the numbers of the rooms, from two indexes; then their rows. Takes ``me``, ``after`` and ``count``."""
    mine = union(
        select(_M.room_no).where(_M.user_id == bindparam("me")),
        select(_I.room_no).where(_I.user_id == bindparam("me")),
    )
    wanted = and_(_R.id > bindparam("after"), *_like(message.query), *_allowed(tx))
    open_to_all = ("public", "private") if tx.caller.admin else ("public",)
    parts = [select(_R.no).where(_R.no.in_(mine), wanted)]
    if not message.mine:
        parts[0] = parts[0].where(_R.visibility.not_in(open_to_all))
        parts.append(select(_R.no).where(_R.visibility.in_(open_to_all), wanted))
    pages = [part.order_by(_R.id).limit(bindparam("count")).subquery() for part in parts]
    picked = union_all(*(select(page.c.no) for page in pages)).subquery()
    return (
        select(*_LISTED)
        .select_from(picked)
        .join(tables.rooms, _R.no == picked.c.no)
        .outerjoin(tables.members, and_(_M.room_no == _R.no, _M.user_id == bindparam("me")))
        .outerjoin(tables.invitations, and_(_I.room_no == _R.no, _I.user_id == bindparam("me")))
        .order_by(_R.id)
        .limit(bindparam("count"))
    )
