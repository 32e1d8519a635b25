"""What is not kept for ever: messages and events of rooms with ``retention_days``, the audit log, bans that are over.

A room's past goes from its beginning, in the order of its numbers, so ``rooms.trimmed_seq`` says all: nothing up to
there is left, and who asks for something before it learns that it cannot be had whole.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Final

from msgspec import Struct
from sqlalchemy import Connection, Delete, Select, and_, delete, select, tuple_, update

from hubbub.features.chat import tables
from hubbub.features.chat.search import forget
from hubbub.features.chat.tables import SEQ_MASK, key_of
from hubbub.features.chat.uploads import GONE, drop_files, key_of_file
from hubbub.files import Files
from hubbub.store import Store

CHUNK: Final = 500
"""Rows removed in one transaction."""
DAY: Final = 86_400_000
"""Milliseconds."""


class Swept(Struct):
    """How many of what were removed."""

    messages: int = 0
    events: int = 0
    bans: int = 0
    audit: int = 0


async def sweep(store: Store, *, now: int, audit_days: int) -> Swept:
    """Remove what is too old, in short transactions. Call it now and then: once a minute, say.

    :param now: unix milliseconds.
    :param audit_days: 0: the audit log is kept for ever.
    :raises ClientError: the store does not take it; the next call goes on.
    """
    swept = Swept()
    t = tables.rooms.c
    rooms = await store.read(lambda connection: connection.scalars(select(t.no).where(t.retention_days > 0)).all())
    for room_no in rooms:
        while True:
            messages, events = await store.write(partial(_trim, room_no, now))
            swept.messages += messages
            swept.events += events
            if messages + events < CHUNK:
                break
    swept.bans = await _repeat(store, partial(_forget_bans, now))
    if audit_days:
        swept.audit = await _repeat(store, partial(_forget_audit, now - audit_days * DAY))
    return swept


async def _repeat(store: Store, work: Callable[[Connection], int]) -> int:
    """Remove chunk after chunk, until there is nothing more."""
    total = 0
    while True:
        removed = await store.write(work)
        total += removed
        if removed < CHUNK:
            return total


def _trim(room_no: int, now: int, connection: Connection) -> tuple[int, int]:
    """Remove the oldest messages and events of a room that are too old; returns how many of each."""
    t = tables.rooms.c
    room = connection.execute(select(t.retention_days, t.trimmed_seq).where(t.no == room_no).with_for_update()).one()
    limit = now - room.retention_days * DAY
    if not room.retention_days:
        return 0, 0
    upto = _end_of_old(connection, room_no, limit)
    if upto is None:
        return 0, 0
    m, e, p = tables.messages.c, tables.events.c, tables.pins.c
    low, high = key_of(room_no, 0), key_of(room_no, upto)
    old = m.key.between(low, high)
    forget(connection, old)
    drop_files(connection, tables.attachments.c.message.between(low, high))
    pins = connection.execute(delete(tables.pins).where(p.message.between(low, high))).rowcount
    messages = connection.execute(delete(tables.messages).where(old)).rowcount  # the rest of theirs goes with them
    events = connection.execute(delete(tables.events).where(e.key.between(low, high))).rowcount
    trimmed = max(upto, room.trimmed_seq)  # in an import, nothing up to some number may ever have been whole
    connection.execute(
        update(tables.rooms).where(t.no == room_no).values(trimmed_seq=trimmed, pin_count=t.pin_count - pins)
    )
    return messages, events


def _end_of_old(connection: Connection, room_no: int, limit: int) -> int | None:
    """The number up to which a room is older than a time, at most :data:`CHUNK` messages and events from its beginning;
    None: nothing is. (It ends at the first that is younger: a clock may have been set back.)"""
    first: list[tuple[int, int]] = []
    for t in (tables.messages.c, tables.events.c):
        query = select(t.key, t.at).where(t.key > key_of(room_no, 0), t.key < key_of(room_no + 1, 0))
        first += [(row.key, row.at) for row in connection.execute(query.order_by(t.key).limit(CHUNK))]
    upto = None
    for key, at in sorted(first)[:CHUNK]:
        if at >= limit:
            break
        upto = key & SEQ_MASK
    return upto


def _forget_bans(now: int, connection: Connection) -> int:
    t = tables.bans.c
    over: Select[tuple[int, str]] = select(t.room_no, t.user_id).where(t.until <= now).limit(CHUNK)
    return connection.execute(delete(tables.bans).where(tuple_(t.room_no, t.user_id).in_(over))).rowcount


def _forget_audit(limit: int, connection: Connection) -> int:
    t = tables.audit.c
    return connection.execute(
        delete(tables.audit).where(t.no.in_(select(t.no).where(t.at < limit).limit(CHUNK)))
    ).rowcount


# -- files


async def remove_dropped(store: Store, files: Files) -> int:
    """Remove the bytes of attachments that were taken away, and then their rows. A server does that by itself; this is
    for where none runs. Returns how many.

    :raises ClientError, OSError: a file cannot be removed; the next call goes on.
    """
    t = tables.attachments.c
    gone = and_(t.owner == "", t.message == GONE)
    removed = 0
    while file_ids := await store.read(
        lambda connection: connection.scalars(select(t.id).where(gone).limit(CHUNK)).all()
    ):
        for file_id in file_ids:
            await files.delete(key_of_file(file_id))
        forgotten = delete(tables.attachments).where(t.id.in_(list(file_ids)), gone)
        await store.write(partial(_run, forgotten))
        removed += len(file_ids)
    return removed


def _run(statement: Delete, connection: Connection) -> None:
    connection.execute(statement)


async def sweep_files(store: Store, files: Files, *, now: int) -> int:
    """Remove stored files that no attachment knows of: left over where a backup of the database was restored, say. Only
    what is older than a day: an upload's file may be there before its row is seen. Returns how many.

    :param now: unix milliseconds.
    """
    removed, keys = 0, list[str]()
    async for key, at in files.keys():
        if at * 1000 < now - DAY:
            keys.append(key)
        if len(keys) >= CHUNK:
            removed += await _remove_unknown(store, files, keys)
            keys.clear()
    return removed + await _remove_unknown(store, files, keys)


async def _remove_unknown(store: Store, files: Files, keys: list[str]) -> int:
    t = tables.attachments.c
    wanted = {key.replace("/", ""): key for key in keys}
    known = await store.read(lambda connection: set(connection.scalars(select(t.id).where(t.id.in_(list(wanted))))))
    unknown = [key for file_id, key in wanted.items() if file_id not in known]
    for key in unknown:
        await files.delete(key)
    return len(unknown)
