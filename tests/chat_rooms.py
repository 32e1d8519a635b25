"""What the tests of rooms and members share."""

from __future__ import annotations

from typing import Any, Literal

import pytest
from sqlalchemy import func, select

from hubbub.errors import ClientError
from hubbub.features.chat import tables
from hubbub.features.chat.asks import CreateRoom, SetRole
from hubbub.features.chat.tx import Outcome
from hubbub.messages import ClientMessage
from tests.chat_support import World, told


async def refused(here: World, user_id: str, message: ClientMessage, **options: Any) -> str:
    """The code that a command is refused with."""
    return (await refusal(here, user_id, message, **options)).code


async def refusal(here: World, user_id: str, message: ClientMessage, **options: Any) -> ClientError:
    """The error that a command is refused with."""
    with pytest.raises(ClientError) as caught:
        await here.does(user_id, message, **options)
    assert caught.value.message
    return caught.value


def answer(outcome: Outcome[Any]) -> Any:
    """The reply to a command."""
    return outcome.reply


def personal(outcome: Outcome[Any]) -> list[tuple[str, Any]]:
    """(user, message) that only one user hears, by user."""
    return sorted(outcome.personal, key=lambda each: each[0])


def changes(outcome: Outcome[Any]) -> list[dict[str, Any]]:
    """The `data` of what a room hears of its members."""
    return [each["data"] for each in told(outcome) if each["type"] == "member"]


def said(outcome: Outcome[Any]) -> list[dict[str, Any]]:
    """What the system says in a room."""
    return [each["data"]["system"] for each in told(outcome) if each["type"] == "message"]


def removed(outcome: Outcome[Any]) -> list[tuple[str, str]]:
    """(user, reason) of who has to leave a room's channel, and is told so."""
    gone = [(each.user_id, each.reason) for each in outcome.removed]
    assert gone == [(user, message.reason) for user, message in outcome.personal if hasattr(message, "reason")]
    return gone


async def count(here: World, table: Any) -> int:
    """Rows of a table."""
    return int((await here.sql(select(func.count()).select_from(table)))[0][0])


async def people(here: World, room_id: str = "tea") -> dict[str, str]:
    """User → role; as the room counts them."""
    m, r = tables.members.c, tables.rooms.c
    joined = tables.rooms.outerjoin(tables.members, m.room_no == r.no)
    rows = await here.sql(select(r.member_count, m.user_id, m.role).select_from(joined).where(r.id == room_id))
    found = {user: role for _, user, role in rows if user is not None}
    assert rows[0][0] == len(found)
    return found


async def acts(here: World) -> list[tuple[str, str, str | None]]:
    """(act, by, to whom) of the audit log."""
    t = tables.audit.c
    return [tuple(row) for row in await here.sql(select(t.act, t.by, t.target_user).order_by(t.no))]


async def roomful(here: World, visibility: Literal["public", "private"] = "public", **options: Any) -> None:
    """A room `tea` with an owner, two moderators and two members."""
    everybody = ("mod", "mod2", "mem", "mem2")
    await here.does("own", CreateRoom(room_id="tea", visibility=visibility, members=everybody, **options))
    for user in ("mod", "mod2"):
        await here.does("own", SetRole(room_id="tea", user_id=user, role="moderator"))
    await here.store.write(lambda connection: connection.execute(tables.audit.delete()))
