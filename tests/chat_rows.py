"""Rooms, members and messages for tests of what happens to them: rooms as rows, messages as they are really sent."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Connection, Row, insert, select, update

from hubbub.auth import Grants
from hubbub.errors import ClientError
from hubbub.features.chat import tables
from hubbub.features.chat.access import Caller
from hubbub.features.chat.mentioning import mentions_of
from hubbub.features.chat.sending import Send, Sending
from hubbub.features.chat.tables import key_of
from hubbub.features.chat.tx import Outcome, Tx
from tests.chat_support import World


async def make_room(world: World, room_id: str = "den", people: tuple[str, ...] = ("ann",), **values: Any) -> int:
    """A private group room, unless told otherwise; the first of the people owns it. Returns its number.

    :param people: user ids; ``mod:cy`` is a moderator.
    """
    row = {
        "id": room_id,
        "name": room_id.title(),
        "kind": "group",
        "visibility": "private",
        "epoch": f"epoch-{room_id}",
        "created_at": world.now,
        "last_at": world.now,
        "member_count": len(people),
        **values,
    }

    def work(connection: Connection) -> int:
        no: int = connection.execute(insert(tables.rooms).returning(tables.rooms.c.no), row).scalar_one()
        members = [
            {
                "room_no": no,
                "user_id": each.removeprefix("mod:"),
                "role": "owner" if at == 0 else "moderator" if each.startswith("mod:") else "member",
                "joined_at": world.now,
            }
            for at, each in enumerate(people)
        ]
        if members:
            connection.execute(insert(tables.members), members)
        return no

    return await world.store.write(work)


async def change_room(world: World, room_id: str, **values: Any) -> None:
    await world.store.write(
        lambda c: c.execute(update(tables.rooms).where(tables.rooms.c.id == room_id).values(values))
    )


async def change_member(world: World, room_no: int, user_id: str, **values: Any) -> None:
    t = tables.members.c
    await world.store.write(
        lambda c: c.execute(update(tables.members).where(t.room_no == room_no, t.user_id == user_id).values(values))
    )


async def member_row(world: World, room_no: int, user_id: str) -> Row[Any]:
    t = tables.members.c
    rows = await world.sql(select(tables.members).where(t.room_no == room_no, t.user_id == user_id))
    row: Row[Any] = rows[0]
    return row


async def message_row(world: World, room_no: int, seq: int) -> Row[Any]:
    rows = await world.sql(select(tables.messages).where(tables.messages.c.key == key_of(room_no, seq)))
    row: Row[Any] = rows[0]
    return row


async def say(world: World, room_no: int, user_id: str, text: str, **options: Any) -> int:
    """Say something in a room, as it is really written. Returns the message's number."""
    names = mentions_of(text, world.settings.max_mentions)
    send = Send(room_no, "", Caller(user_id, Grants()), text, names=names, **options)
    sending = Sending(world.settings, world.clock.time)
    (result,) = await world.store.write(lambda connection: sending(connection, [send]))
    if isinstance(result, ClientError):
        raise result
    return result.seq


async def happens(world: World, room_id: str, user_id: str = "ann") -> int:
    """A system message. Returns its number."""

    def work(connection: Connection) -> int:
        tx = Tx(connection, Caller(user_id, Grants()), world.now, world.settings, writes=True)
        room, _ = tx.look(room_id)
        return tx.say(room, {"event": "renamed", "user_id": user_id})

    return await world.store.write(work)


def answer(outcome: Outcome[Any]) -> Any:
    """What a command replied."""
    assert outcome.reply is not None
    return outcome.reply


async def everything(world: World, table: Any) -> list[Any]:
    """All rows of a table, by their key."""
    rows: list[Any] = await world.sql(select(table).order_by(*table.primary_key.columns))
    return rows
