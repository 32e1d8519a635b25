"""Coming into rooms: who may, and who becomes a member by it. Many come at once, so it is done many at a time."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final

from msgspec import UNSET, Struct
from sqlalchemy import BigInteger, Connection, String, any_, bindparam, insert, or_, select, text, update
from sqlalchemy.dialects import postgresql

from hubbub.errors import ClientError
from hubbub.features.chat import tables
from hubbub.features.chat.access import Caller, MemberRow, RoomRow, no_such_room
from hubbub.features.chat.membership import Standing, become_member, judge_join, new_member
from hubbub.features.chat.render import my_room, people_of, room_info
from hubbub.features.chat.tells import RoomInfo
from hubbub.features.chat.tx import MEMBER_COLUMNS, ROOM_COLUMNS, Changed, Outcome, Tx, member_of, room_of
from hubbub.gather import Gather
from hubbub.messages import JSON
from hubbub.settings import Settings
from hubbub.store import Store


class Entry(Struct):
    """A room as somebody enters it.

    :ivar floor: the number after which they may see what happened.
    :ivar new: they became a member just now.
    """

    row: RoomRow
    info: RoomInfo
    floor: int
    new: bool = False


class Coming(Struct):
    """Somebody who comes into a room."""

    caller: Caller
    room_id: str


class _Joining(Coming):
    answer: asyncio.Future[Entry]


class _Joined(Struct):
    entry: Entry
    outcome: Outcome[Any] | None = None


class Entering:
    """Lets people into the rooms of a hub.

    :param time: unix seconds.
    :param tell: tells of what was committed.
    """

    def __init__(
        self, store: Store, settings: Settings, time: Callable[[], float], tell: Callable[[Outcome[Any]], None]
    ) -> None:
        self._settings = settings
        self._time = time
        self._tell = tell
        self._looks: Gather[Coming, Entry | None] = Gather(store, self._look, settings.store_queue)
        self._joins = store.bulk(self._join, self._joined)

    async def enter(self, caller: Caller, room_id: str) -> Entry:
        """The room, for somebody who may enter it; in a public one they become a member.

        :raises ClientError: they may not.
        """
        entry = await self._looks.ask(Coming(caller, room_id))
        if entry is not None:
            return entry
        answer: asyncio.Future[Entry] = asyncio.get_running_loop().create_future()
        self._joins.add(_Joining(caller, room_id, answer), within=(room_id,))
        return await answer

    # -- who may enter as they are

    def _look(self, comings: Sequence[Coming], connection: Connection) -> list[Entry | Exception | None]:
        """The room for each; None: they have to become a member first."""
        now = self._now()
        found = standings(connection, comings)
        answers: list[Entry | Exception | None] = []
        for coming, standing in zip(comings, found, strict=True):
            try:
                answers.append(self._one(connection, coming, standing, now))
            except ClientError as error:
                answers.append(error)
        return answers

    def _one(self, connection: Connection, coming: Coming, standing: Standing | None, now: int) -> Entry | None:
        if standing is None:
            raise no_such_room(coming.room_id)
        if standing.member is None:
            judge_join(standing, coming.caller, now, self._settings.max_members)
            if standing.room.stored and not coming.caller.admin:
                return None
        elif not coming.caller.grants.may_join(coming.room_id):
            raise no_such_room(coming.room_id)
        return self._entry(self._tx(connection, coming.caller, now, writes=False), standing.room, standing.member)

    # -- who becomes a member

    def _join(self, connection: Connection, comings: Sequence[Coming]) -> list[_Joined | ClientError]:
        now = self._now()
        rooms = _locked(connection, {coming.room_id for coming in comings})
        found = standings(connection, comings)
        new: dict[tuple[int, str], MemberRow] = {}
        results: list[_Joined | ClientError] = []
        for coming, standing in zip(comings, found, strict=True):
            try:
                if standing is None or coming.room_id not in rooms:
                    raise no_such_room(coming.room_id)
                standing.room = rooms[coming.room_id]  # one for all who come into it
                results.append(self._become(connection, coming, standing, new, now))
            except ClientError as error:
                results.append(error)
        if new:
            connection.execute(
                insert(tables.members), [{"room_no": no, **member._asdict()} for (no, _), member in new.items()]
            )
            touched = {no for no, _ in new}
            connection.execute(
                _COUNT,
                [{"b_no": room.no, "b_count": room.member_count} for room in rooms.values() if room.no in touched],
            )
        return results

    def _become(
        self,
        connection: Connection,
        coming: Coming,
        standing: Standing,
        new: dict[tuple[int, str], MemberRow],
        now: int,
    ) -> _Joined:
        caller, room = coming.caller, standing.room
        tx = self._tx(connection, caller, now, writes=True)
        key = (room.no, caller.user_id)
        member = standing.member or new.get(key)
        if member is not None:
            return _Joined(self._entry(tx, room, member))
        if room.visibility != "public" or standing.invited_by is not None or standing.ban is not None:
            member = become_member(tx, room, None)  # there is more to do than to write a row
            return _Joined(self._entry(tx, room, member, new=True), tx.outcome)
        judge_join(standing, caller, now, self._settings.max_members)
        member = new[key] = new_member(room, caller.user_id, "member", now)
        room.member_count += 1
        tx.outcome.changed.append(Changed(room, everywhere=False))
        return _Joined(self._entry(tx, room, member, new=True), tx.outcome)

    def _joined(self, comings: Sequence[Coming], results: Sequence[_Joined | ClientError]) -> None:
        for coming, joined in zip(comings, results, strict=True):
            assert isinstance(coming, _Joining)
            if isinstance(joined, _Joined) and joined.outcome is not None:
                self._tell(joined.outcome)
            if coming.answer.done():
                continue
            if isinstance(joined, _Joined):
                coming.answer.set_result(joined.entry)
            else:
                coming.answer.set_exception(joined)

    # -- both

    def _now(self) -> int:
        return int(self._time() * 1000)

    def _tx(self, connection: Connection, caller: Caller, now: int, *, writes: bool) -> Tx:
        return Tx(connection, caller, now, self._settings, writes=writes)

    def _entry(self, tx: Tx, row: RoomRow, member: MemberRow | None, *, new: bool = False) -> Entry:
        people = people_of(tx, [row]).get(row.no, UNSET)
        info = room_info(row, my_room(row, member), people=people)
        return Entry(row, info, member.history_from if member is not None else 0, new)


def lock_rooms(connection: Connection, rooms: Iterable[str | int]) -> None:
    """Lock rooms, by ids or numbers, in one order on all nodes: what else a transaction does with them waits for nobody."""
    ids = [room for room in rooms if isinstance(room, str) and "\x00" not in room]
    numbers = [room for room in rooms if isinstance(room, int)]
    connection.execute(_LOCKED, {"ids": ids or [""], "numbers": numbers or [0]})


def _locked(connection: Connection, room_ids: Iterable[str]) -> dict[str, RoomRow]:
    """The rooms, their rows locked, in one order on all nodes."""
    rows = connection.execute(_ROOMS, {"ids": sorted(room_ids)})
    return {room.id: room for room in map(room_of, rows)}


def standings(connection: Connection, comings: Sequence[Coming]) -> list[Standing | None]:
    """How each who comes stands to the room: one query for all."""
    wanted = [(coming.room_id, coming.caller.user_id) for coming in comings if "\x00" not in coming.room_id]
    rows = connection.execute(_STANDINGS[connection.dialect.name], {"wanted": JSON.encode(wanted).decode()})
    found: dict[tuple[str, str], Standing] = {}
    width = len(ROOM_COLUMNS)
    for row in rows:
        member = member_of(row[width : width + len(MEMBER_COLUMNS)])
        user_id, ban, until, invited_by = row[width + len(MEMBER_COLUMNS) :]
        room = room_of(row)
        found[room.id, user_id] = Standing(room, member, invited_by, (until,) if ban is not None else None)
    return [found.get((coming.room_id, coming.caller.user_id)) for coming in comings]


_LIST: Final = ", ".join(
    [
        *(f"r.{column.name}" for column in ROOM_COLUMNS),
        *(f"m.{column.name} AS m_{column.name}" for column in MEMBER_COLUMNS),
    ]
)
_JOINED: Final = (
    " LEFT JOIN members m ON m.room_no = r.no AND m.user_id = {user}"
    " LEFT JOIN bans b ON b.room_no = r.no AND b.user_id = {user}"
    " LEFT JOIN invitations i ON i.room_no = r.no AND i.user_id = {user}"
)
_SQLITE_USER: Final = "json_extract(w.value, '$[1]')"
# pairs as one parameter, a JSON text: see sending.py
_STANDINGS: Final = {
    "sqlite": text(
        f"SELECT {_LIST}, {_SQLITE_USER}, b.banned_by, b.until, i.invited_by FROM json_each(:wanted) w"  # noqa: S608
        " CROSS JOIN rooms r ON r.id = json_extract(w.value, '$[0]')" + _JOINED.format(user=_SQLITE_USER)
    ),
    "postgresql": text(
        f"SELECT {_LIST}, w->>1, b.banned_by, b.until, i.invited_by"  # noqa: S608
        " FROM jsonb_array_elements(CAST(:wanted AS jsonb)) w JOIN rooms r ON r.id = w->>0"
        + _JOINED.format(user="w->>1")
    ),
}
_ROOMS: Final = (
    select(*ROOM_COLUMNS)
    .where(tables.rooms.c.id.in_(bindparam("ids", expanding=True)))
    .order_by(tables.rooms.c.no)
    .with_for_update()
)
_LOCKED: Final = (
    select(tables.rooms.c.no)
    .where(
        or_(
            tables.rooms.c.id == any_(bindparam("ids", type_=postgresql.ARRAY(String))),
            tables.rooms.c.no == any_(bindparam("numbers", type_=postgresql.ARRAY(BigInteger))),
        )
    )
    .order_by(tables.rooms.c.no)
    .with_for_update()
)
_COUNT: Final = (
    update(tables.rooms).where(tables.rooms.c.no == bindparam("b_no")).values(member_count=bindparam("b_count"))
)
