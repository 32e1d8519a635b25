"""A room in which all happened that can happen, and its exports, for tests of what is done with rooms as a whole."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from sqlalchemy import func, insert, select

from hubbub.features.chat import (
    erasing,
    importing,
    members,
    moderation,
    past,
    retention,
    rooms,
    search,
    tables,
    timeline,
)
from hubbub.features.chat.asks import Ban, DeleteMessage, EditMessage, Invite, PinMessage, React, UpdateRoom
from hubbub.features.chat.exporting import export_room, export_user
from hubbub.features.chat.search import Indexer
from hubbub.features.chat.tables import SEQ_MASK
from tests.chat_rows import happens, say
from tests.chat_support import World

COMMANDS = (timeline.edit_message, moderation.report, rooms.update_room, members.ban, search.search, past.catch_up)
"""Importing them declares them."""
FILE = "0123456789abcdef0123456789abcdef"


@contextmanager
def chunks_of(monkeypatch: pytest.MonkeyPatch, size: int) -> Iterator[None]:
    """Small transactions, so that few rows are many of them."""
    with monkeypatch.context() as patch:
        for module in (importing, retention, erasing):
            patch.setattr(module, "CHUNK", size)
        for name in ("PAGE", "SCANNED"):
            patch.setattr(f"hubbub.features.chat.exported.{name}", size)
        patch.setattr("hubbub.features.chat.exporting.PAGE", size)
        yield


async def attach(it: World, room_no: int, owner: str, file_id: str, name: str, at: int | None = None) -> None:
    """An attachment that waits to be sent."""
    row = {"id": file_id, "room_no": room_no, "owner": owner, "name": name, "media_type": "text/plain", "size": 3}
    row |= {"sha256": "ab" * 32, "at": it.now if at is None else at}
    await it.store.write(lambda c: c.execute(insert(tables.attachments), row))


async def lines_of(lines: AsyncIterator[bytes]) -> list[bytes]:
    return [line async for page in lines for line in page.splitlines(keepends=True)]


async def exported(it: World, room_id: str = "den") -> list[bytes]:
    """The lines of a room, without the time of the export."""
    lines = await lines_of(export_room(it.store.read, room_id, now=it.now))
    first = json.loads(lines[0])
    assert first.pop("exported_at")
    return [json.dumps(first).encode() + b"\n", *lines[1:]]


async def about(it: World, user_id: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in await lines_of(export_user(it.store.read, user_id, now=it.now))]


async def fill(it: World) -> None:
    """All that can happen in a room, with one another."""
    await say(it, 1, "ann", "hello @bob and @room")
    it.clock.advance(1.234)
    await say(it, 1, "bob", 'what? 🦏 \u202e "quoted" \\ \n line', client_id="c-1", reply_to=1)
    await happens(it, "den")
    await attach(it, 1, "cy", FILE, "list.txt")
    await say(it, 1, "cy", "", files=(FILE,))
    await say(it, 1, "bob", "in a thread, @mod", thread=1)
    await say(it, 1, "cy", "so am I", thread=1)
    for text in ("first", "second", "third"):
        await it.does("bob", EditMessage(room_id="den", id=2, message=f"{text} version"))
        it.clock.advance(1)
    await it.does("cy", React(room_id="den", id=2, emoji="🎉"))
    await it.does("ann", React(room_id="den", id=2, emoji="🎉"))
    await it.does("ann", React(room_id="den", id=1, emoji=":ok:"))
    await it.does("mod", PinMessage(room_id="den", id=2))
    await say(it, 1, "bob", "not for long")
    await it.does("mod", DeleteMessage(room_id="den", id=(await newest(it)), reason="rude"))
    await it.does("mod", Ban(room_id="den", user_id="eve", seconds=3600, reason="trouble"))
    await it.does("mod", Ban(room_id="den", user_id="max", reason="more trouble"))
    await it.does("ann", Invite(room_id="den", user_ids=["zoe"]))
    await it.does("ann", UpdateRoom(room_id="den", topic="all of it", slow_mode=0, retention_days=30))


async def newest(it: World) -> int:
    key = await it.sql(select(func.max(tables.messages.c.key)).where(tables.messages.c.kind == 0))
    return int(key[0][0]) & SEQ_MASK


async def indexed(it: World) -> None:
    """Everything is searchable, and what is not to be is in no page of the index."""
    indexer = Indexer(it.store, lambda _: None)
    await indexer.start()
    await indexer.catch_up()
