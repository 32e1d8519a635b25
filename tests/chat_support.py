"""The chat's commands on a real database, without a server: what they write, what they reply, what they want told."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from typing import Any, cast

from sqlalchemy import Connection

from hubbub.auth import Grants
from hubbub.engines import engine_for
from hubbub.features.chat.access import Caller
from hubbub.features.chat.tx import COMMANDS, Outcome, Tx
from hubbub.messages import ClientMessage
from hubbub.metrics import Metrics
from hubbub.settings import Settings
from hubbub.store import Store
from hubbub.tables import metadata
from tests.support import HandClock, settings_for


class World:
    """A store, a clock turned by hand, and people who give commands."""

    def __init__(self, store: Store, settings: Settings, clock: HandClock) -> None:
        self.store = store
        self.settings = settings
        self.clock = clock

    @property
    def now(self) -> int:
        """Unix milliseconds."""
        return int(self.clock.time() * 1000)

    async def does(
        self, user_id: str, message: ClientMessage, *, admin: bool = False, rooms: tuple[str, ...] | None = None
    ) -> Outcome[Any]:
        """Carry out a command of somebody; returns all that it leads to.

        :raises ClientError: it is refused.
        """
        command = COMMANDS[type(message)]
        caller = Caller(user_id, Grants(rooms=rooms, admin=admin), admin)

        def work(connection: Connection) -> Outcome[Any]:
            tx = Tx(connection, caller, self.now, self.settings, writes=command.writes)
            tx.outcome.reply = command.work(tx, message)
            return tx.outcome

        return await (self.store.write(work) if command.writes else self.store.read(work))

    async def asks(self, user_id: str, message: ClientMessage, **options: Any) -> Any:
        """The same; returns only the reply."""
        return (await self.does(user_id, message, **options)).reply

    async def sql(self, work: Any) -> Any:
        """Look into the database: ``work`` is a statement; returns its rows."""

        def look(connection: Connection) -> Any:
            return connection.execute(work).all()

        return await self.store.read(look)


def told(outcome: Outcome[Any]) -> list[dict[str, Any]]:
    """What everybody in the rooms hears of it, decoded, in order."""
    return [cast("dict[str, Any]", json.loads(each.publication.payload)) for each in outcome.told]


@asynccontextmanager
async def world(database_url: str, **overrides: Any) -> AsyncIterator[World]:
    """A world on an empty database."""
    settings = settings_for(**overrides)
    engine = engine_for(database_url, readers=2, full_sync=True)
    store = Store(
        engine,
        Metrics(),
        queue=settings.store_queue,
        queue_bytes=settings.store_queue_bytes,
        timeout=settings.store_timeout,
    )
    await store.start()
    try:
        await store.write(partial(metadata.create_all))
        yield World(store, settings, HandClock())
    finally:
        await store.stop()
