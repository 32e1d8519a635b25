"""A process that writes messages into a database that others write to as well: ``python -m tests.sharing URL NAME …``.

It says what is acknowledged on its standard output, a line at a time, as soon as it is: ``ack <client_id> <number>``.
Started again with the same name, it asks again for what it may have been told before, and goes on. It ends after so many
seconds (0: not by itself) or at SIGTERM, and says ``done`` last.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from typing import Any

import uvloop
from sqlalchemy import Connection, insert, select

from hubbub import schema
from hubbub.auth import Grants
from hubbub.engines import engine_for
from hubbub.errors import ClientError
from hubbub.features.chat import asks, rooms, tables
from hubbub.features.chat.access import Caller
from hubbub.features.chat.membership import new_member
from hubbub.features.chat.search import Indexer
from hubbub.features.chat.sending import Send, Sending, Sent
from hubbub.features.chat.tx import Tx
from hubbub.metrics import Metrics
from hubbub.settings import Settings
from hubbub.store import Store
from hubbub.tables import metadata
from tests.support import settings_for

SERVER = Caller("", Grants(admin=True), True)


class Writer:
    """Keeps so many messages of a user on their way into rooms.

    :param name: the user, and the beginning of the client ids.
    :param start: number of the first message.
    """

    def __init__(self, store: Store, settings: Settings, name: str, start: int) -> None:
        self.store = store
        self.settings = settings
        self.name = name
        self.count = start
        self.acked = 0
        self.indexer = Indexer(store, lambda work: self.tasks.append(asyncio.create_task(work)))
        self.tasks: list[asyncio.Task[None]] = []
        self.rooms: dict[str, int] = {}
        self.going = True
        self._lines: list[bytes] = []
        self._bulk = store.bulk(Sending(settings, time.time), self._sent)

    async def enter(self, room_ids: Sequence[str]) -> None:
        """Make the rooms, where they are not, and be a member of them."""
        self.rooms = await self.store.write(partial(self._enter, room_ids))

    def _enter(self, room_ids: Sequence[str], connection: Connection) -> dict[str, int]:
        found = {}
        for room_id in room_ids:
            tx = Tx(connection, SERVER, int(time.time() * 1000), self.settings, writes=True)
            room = rooms.ensure_room(tx, room_id, asks.CreateRoom(room_id=room_id))
            if tx.member(room, self.name) is None:
                row = {"room_no": room.no, **new_member(room, self.name, "member", tx.now)._asdict()}
                connection.execute(insert(tables.members), row)
            found[room_id] = room.no
        return found

    def say(self, index: int) -> None:
        room_id = f"shared-{index % len(self.rooms)}"
        caller = Caller(self.name, Grants(), False)
        text = f"word{index} of {self.name}"
        self._bulk.add(Send(self.rooms[room_id], room_id, caller, text, f"{self.name}-{index}"), len(text))

    def _sent(self, items: Sequence[Send], results: Sequence[Sent | ClientError]) -> None:
        for item, sent in zip(items, results, strict=True):
            if isinstance(sent, Sent):
                self.acked += 1
                self._lines.append(f"ack {item.client_id} {sent.seq}\n".encode())
                self.indexer.mark(item.room_no)
                index = self.count
                self.count += 1
            else:  # busy, unavailable: the same again
                self._lines.append(f"refused {item.client_id} {sent.code}\n".encode())
                assert item.client_id is not None
                index = int(item.client_id.rpartition("-")[2])
            if self.going:
                self.say(index)
        os.write(1, b"".join(self._lines))
        self._lines.clear()


async def main(url: str, name: str, start: int, seconds: float, room_count: int, flight: int) -> None:
    settings, ended = settings_for(), asyncio.Event()
    engine = engine_for(url, readers=2, full_sync=True)
    store = Store(engine, Metrics(), queue=10_000, queue_bytes=64 << 20, timeout=30.0)
    await store.start(lambda opened: schema.prepare(opened, metadata, migrate=True))
    writer = Writer(store, settings, name, start)
    await writer.enter([f"shared-{number}" for number in range(room_count)])
    os.write(1, b"ready\n")
    if not sys.stdin.closed:
        sys.stdin.readline()
    began = time.monotonic()
    for _ in range(flight):
        writer.say(writer.count)
        writer.count += 1
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, ended.set)
    while not ended.is_set() and not (seconds and time.monotonic() - began >= seconds):
        writer.indexer.sweep(time.monotonic())
        with suppress(TimeoutError):
            await asyncio.wait_for(ended.wait(), 0.1)
    writer.going = False
    while store.waiting:
        await asyncio.sleep(0.01)
    took = time.monotonic() - began
    await asyncio.gather(*writer.tasks)
    os.write(1, f"done {writer.acked} {took:.3f} {store._metrics.commits} {store._metrics.retried}\n".encode())
    await store.stop()


def kept(url: str) -> dict[str, tuple[list[int], dict[str, int]]]:
    """What is in a SQLite database: room → (numbers in order, client id → number)."""

    def read(connection: Connection) -> dict[str, tuple[list[int], dict[str, int]]]:
        found: dict[str, tuple[list[int], dict[str, int]]] = {}
        for no, room_id, event_seq in connection.execute(
            select(tables.rooms.c.no, tables.rooms.c.id, tables.rooms.c.event_seq)
        ).all():
            query = select(tables.messages.c.key, tables.messages.c.client_id).where(tables.messages.c.room_no == no)
            rows = connection.execute(query.order_by(tables.messages.c.key)).all()
            numbers = [row.key & tables.SEQ_MASK for row in rows]
            assert event_seq == len(numbers), (room_id, event_seq, len(numbers))
            found[room_id] = numbers, {row.client_id: row.key & tables.SEQ_MASK for row in rows}
        return found

    async def look() -> dict[str, tuple[list[int], dict[str, int]]]:
        engine = engine_for(url, readers=1, full_sync=True)
        await engine.start()
        try:
            return await engine.read(read)
        finally:
            await engine.stop()

    return asyncio.run(look())


def run(output: str, *arguments: Any) -> None:
    """:func:`main` in a process of its own, what it says into a file."""
    descriptor = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    uvloop.install()
    asyncio.run(main(*arguments))


if __name__ == "__main__":
    uvloop.install()
    asyncio.run(
        main(sys.argv[1], sys.argv[2], int(sys.argv[3]), float(sys.argv[4]), int(sys.argv[5]), int(sys.argv[6]))
    )
