"""The commands about rooms: make them, find them, change them."""

from __future__ import annotations

import hashlib
import re
import secrets
import string
from collections.abc import Iterable
from typing import Any, Final

import msgspec
from msgspec import UNSET, Struct, UnsetType
from sqlalchemy import ColumnElement, Select, and_, bindparam, false, func, or_, select, union, union_all

from hubbub.auth import Grants
from hubbub.errors import ClientError, ErrorCode
from hubbub.features.chat import tables
from hubbub.features.chat.access import Act, RoomRow, check
from hubbub.features.chat.asks import CreateRoom, GetRoom, Kind, ListRooms, OpenDirect, UpdateRoom
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


def ensure_room(tx: Tx, room_id: str, wanted: CreateRoom) -> RoomRow:
    """The room of an id, made as wanted if it is not there. For the server itself: no limit counts.

    :raises ClientError: ``invalid_message``: it cannot be made so.
    """
    wanted = msgspec.structs.replace(wanted, room_id=room_id)
    people = _first_members(tx, wanted)
    room = _make(tx, wanted, room_id, people)
    if room is None:
        return tx.look(room_id)[0]
    _fill(tx, room, people)
    return room


@writes(CreateRoom, "POST /api/rooms")
def create_room(tx: Tx, message: CreateRoom) -> RoomCreated:
    """Make a room; who makes it owns it."""
    people = _first_members(tx, message)
    room_id = _new_id() if message.room_id is None else message.room_id
    if not tx.caller.grants.may_join(room_id):
        raise ClientError(ErrorCode.FORBIDDEN, "the token does not allow this room")
    room = _make(tx, message, room_id, people)
    if room is None:
        raise ClientError(ErrorCode.CONFLICT, f"there is a room {room_id!r} already")
    _check_quotas(tx, room)
    return RoomCreated(room=_fill(tx, room, people))


def _make(tx: Tx, wanted: CreateRoom, room_id: str, people: list[str]) -> RoomRow | None:
    """:raises ClientError: ``invalid_message``."""
    check_id(room_id)
    kind = _kind(tx, wanted)
    if kind == "live" and (wanted.visibility != "public" or wanted.members):
        text = "a live room is public and has no members: who may enter it is said in tokens - at `$.kind`"
        raise ClientError(ErrorCode.INVALID_MESSAGE, text)
    return _insert(
        tx,
        id=room_id,
        name=checked_line(_name_for(wanted, room_id, people), "name"),
        topic=checked_text(wanted.topic, "topic"),
        kind=kind,
        visibility=wanted.visibility,
        history=wanted.history,
    )


def _kind(tx: Tx, wanted: CreateRoom) -> Kind:
    """The kind that is wanted, or else the usual one, where that can be."""
    if wanted.kind is not None:
        return wanted.kind
    usual = tx.settings.default_kind
    return "group" if usual == "live" and (wanted.visibility != "public" or wanted.members) else usual


def _insert(tx: Tx, **values: Any) -> RoomRow | None:
    """A new row of ``rooms``; None: its id or direct key is taken, on whatever node."""
    values |= {"epoch": secrets.token_hex(4), "created_by": tx.caller.user_id or None}
    values |= {"created_at": tx.now, "last_at": tx.now}
    row = tx.connection.execute(insert_new(tx, tables.rooms).values(values).returning(*ROOM_COLUMNS)).first()
    return None if row is None else room_of(row)


def check_id(room_id: str) -> None:
    """:raises ClientError: ``invalid_message``: no room that somebody makes may be called so."""
    if ROOM_ID.fullmatch(room_id) is None:
        raise ClientError(ErrorCode.INVALID_MESSAGE, "a room's id is 1 to 64 of A-Z a-z 0-9 _ . - - at `$.room_id`")
    if _OF_DIRECT.fullmatch(room_id):
        raise ClientError(ErrorCode.INVALID_MESSAGE, "such ids are those of direct rooms - at `$.room_id`")


def _first_members(tx: Tx, message: CreateRoom) -> list[str]:
    """Who is in a room from the start; its maker first."""
    people = checked_users(message.members)
    if tx.caller.user_id:
        people = [tx.caller.user_id, *(each for each in people if each != tx.caller.user_id)]
    limit = tx.settings.max_members
    if limit and len(people) > limit:
        raise ClientError(ErrorCode.TOO_MANY, f"a room may have {limit} members")
    return people


def _name_for(message: CreateRoom, room_id: str, people: list[str]) -> str:
    if message.name is not None:
        return message.name
    if message.room_id is None and message.visibility == "private" and people:
        return ", ".join(people)[:NAME_LENGTH]
    return room_id


def _new_id() -> str:
    """62 bits, in a room's alphabet."""
    return "".join(secrets.choice(_LETTERS) for _ in range(12))


def _check_quotas(tx: Tx, room: RoomRow) -> None:
    """Refuse a room just made that is one too many. Nodes that make one at the same moment may go over it by one each.

    :raises ClientError: ``too_many``.
    """
    t, settings = tables.rooms.c, tx.settings
    count = select(func.count()).where(t.visibility != "direct")
    limit = settings.max_rooms
    # there are hardly more rooms than its number says: as a rule nothing has to be counted
    if limit and room.no > limit and tx.connection.execute(count).scalar_one() > limit:
        raise ClientError(ErrorCode.TOO_MANY, "there are too many rooms")
    limit = settings.max_rooms_per_user
    own = count.where(t.created_by == room.created_by)
    if limit and room.created_by and tx.connection.execute(own).scalar_one() > limit:
        raise ClientError(ErrorCode.TOO_MANY, f"a user may make at most {limit} rooms")


def _fill(tx: Tx, room: RoomRow, people: list[str]) -> RoomInfo:
    """Put people into a new room and tell them, on all devices; returns the room as the caller sees it."""
    owner = None if room.visibility == "direct" else room.created_by
    members = [new_member(room, each, "owner" if each == owner else "member", tx.now) for each in people]
    add_members(tx, room, members)
    together = people if room.visibility == "direct" else UNSET
    shown = {each.user_id: room_info(room, my_room(room, each), people=together) for each in members}
    mine = shown.get(tx.caller.user_id)
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
    name = ", ".join(people)[:NAME_LENGTH]
    made = _insert(tx, id=room_id, name=name, kind="group", visibility="direct", direct_key=key)
    if made is not None:
        return RoomCreated(room=_fill(tx, made, people))
    room, member = tx.look(room_id)
    return RoomCreated(room=room_info(room, my_room(room, member), people=people), created=False)


# -- finding


@reads(GetRoom, "GET /api/rooms/{room_id}")
def get_room(tx: Tx, message: GetRoom) -> RoomReply:
    """A room, with the caller's own side of it."""
    room, member, invited_by = approach(tx, message.room_id, Act.SEE)
    people = people_of(tx, [room]).get(room.no, UNSET)
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
    after, restricted = checked_text(message.after or "", "after"), tx.caller.grants.rooms is not None
    query, count, rows = _list_query(tx, message), message.limit + 1, list[Any]()
    while len(rows) < count:
        page = tx.connection.execute(query, {"me": tx.caller.user_id, "after": after, "count": count}).all()
        rows += [row for row in page if tx.caller.grants.may_join(row.id)] if restricted else page
        if len(page) < count:
            break
        after = page[-1].id
    people = people_of(tx, rows[: message.limit])
    listed = [_listed(row, people.get(row[0], UNSET)) for row in rows[: message.limit]]
    return Rooms(rooms=listed, more=len(rows) > message.limit)


def _list_query(tx: Tx, message: ListRooms) -> Select[Any]:
    """First the numbers of the rooms, from two indexes; then their rows. Takes ``me``, ``after`` and ``count``."""
    mine = union(
        select(_M.room_no).where(_M.user_id == bindparam("me")),
        select(_I.room_no).where(_I.user_id == bindparam("me")),
    )
    wanted = and_(_R.id > bindparam("after"), *_like(message.query), *_allowed(tx.caller.grants))
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


def _like(text: str) -> list[ColumnElement[bool]]:
    """Rooms whose name or id has the text in it, in whatever case."""
    if not checked_text(text, "query"):
        return []
    # SQLite knows the case of ASCII letters only
    shapes = sorted({text} if text.isascii() else {text, text.lower(), text.upper(), text.capitalize()})
    return [or_(*(each.ilike(f"%{_escaped(shape)}%", escape="\\") for shape in shapes for each in (_R.name, _R.id)))]


def _allowed(grants: Grants) -> list[ColumnElement[bool]]:
    """At least the rooms that a token allows. On SQLite a few more, since ``LIKE`` does not mind the case there."""
    if grants.admin or grants.rooms is None or len(grants.rooms) > PREFILTERED:
        return []
    return [or_(false(), *(_R.id.like(each, escape="\\") for each in like_of(grants.rooms)))]


def like_of(patterns: Iterable[str]) -> list[str]:
    """A token's patterns as those of ``LIKE``."""
    return [_escaped(each).replace("*", "%") for each in patterns]


def _escaped(text: str) -> str:
    return re.sub(r"([\\%_])", r"\\\1", text)


def _listed(row: Any, people: list[str] | UnsetType) -> RoomInfo:
    """A row of the list as the wire has it; by position, since there are a thousand."""
    (
        _, room_id, name, created_at, created_by, topic, kind, visibility, history, archived_at, slow_mode, retention_days,
        member_count, message_count, last_at, role, read_count, mentions, read, notify, joined_at, muted_until, invited_by,
    ) = row  # fmt: skip
    me: MyRoom | UnsetType = UNSET
    if role is not None:
        muted = stamp(muted_until) if muted_until else None
        me = MyRoom(role, max(0, message_count - read_count), mentions, read, notify, stamp(joined_at), muted)
    elif invited_by is not None:
        me = MyRoom(invited_by=invited_by)
    archived = None if archived_at is None else stamp(archived_at)
    last = stamp(last_at) if message_count else None
    return RoomInfo(
        room_id, name, stamp(created_at), created_by, UNSET, topic, kind, visibility, history, archived, slow_mode,
        retention_days, member_count, message_count, last, people, me,
    )  # fmt: skip


# -- changing


class _Nothing(Struct):
    """What is kept of a `room_updated`: it is read again from the room."""


_CONFIGURED: Final = ("name", "topic", "history", "slow_mode")
_OWNED: Final = ("kind", "visibility", "retention_days")
"""What only an owner changes."""


@writes(UpdateRoom, "PATCH /api/rooms/{room_id}")
def update_room(tx: Tx, message: UpdateRoom) -> RoomReply:
    """Change what is given of a room; told once, and not at all if nothing is another one."""
    room, member = tx.enter(message.room_id, Act.SEE)
    asked = {name: value for name in (*_CONFIGURED, *_OWNED) if (value := getattr(message, name)) is not None}
    for act in _acts(message, asked):
        check(room, member, tx.caller, act, tx.now)
    changed = {name: value for name, value in asked.items() if getattr(room, name) != value}
    _check_change(room, changed)
    if message.archived is not None and message.archived != (room.archived_at is not None):
        changed["archived_at"] = tx.now if message.archived else None
    if changed:
        tx.change_room(room, **changed)
        tx.event(room, "room_updated", room_info(room), kept=_Nothing())
        _say_changes(tx, room, changed)
        tx.audit("update_room", room, data=changed)
    return RoomReply(room=seen_by(room, member))


def _acts(message: UpdateRoom, asked: dict[str, Any]) -> list[Act]:
    acts = [Act.ROLES] if asked.keys() & set(_OWNED) else []
    if message.archived is not None:
        acts.append(Act.ARCHIVE)
    if asked.keys() & set(_CONFIGURED) or not acts:
        acts.append(Act.CONFIGURE)
    return acts


def _check_change(room: RoomRow, changed: dict[str, Any]) -> None:
    """:raises ClientError: ``invalid_message``."""
    if "kind" in changed and "live" in (room.kind, changed["kind"]):
        text = "a live room stays live, and no other becomes one: make a new room - at `$.kind`"
        raise ClientError(ErrorCode.INVALID_MESSAGE, text)
    if not room.stored and "visibility" in changed:
        text = "a live room has no members, so it stays public - at `$.visibility`"
        raise ClientError(ErrorCode.INVALID_MESSAGE, text)
    if "name" in changed:
        checked_line(changed["name"], "name")
    checked_text(changed.get("topic", ""), "topic")


def _say_changes(tx: Tx, room: RoomRow, changed: dict[str, Any]) -> None:
    """Say what people in the room see of it, among the messages."""
    who = tx.caller.user_id
    if "name" in changed:
        tx.say(room, {"event": "renamed", "user_id": who, "name": room.name})
    if "topic" in changed:
        tx.say(room, {"event": "topic", "user_id": who, "topic": room.topic})
    if "archived_at" in changed:
        tx.say(room, {"event": "unarchived" if room.archived_at is None else "archived", "user_id": who})
