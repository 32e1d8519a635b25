"""What goes on by itself: who was last seen when, and what is removed because it is too old."""

from __future__ import annotations

import logging
from collections.abc import Coroutine
from functools import partial
from typing import Any, Final

from sqlalchemy import Connection

from hubbub.errors import ClientError
from hubbub.features.chat import retention
from hubbub.features.chat.reading import note_last_seen
from hubbub.hub import Hub
from hubbub.session import Session
from hubbub.store import Store

log = logging.getLogger("hubbub")

EVERY: Final = 60.0
"""Seconds between two rounds: who was last seen is written no more often."""
AT_ONCE: Final = 1000
"""Users noted in one transaction."""


class Upkeep:
    """Keeps the store of a hub in order. (Attachments see to themselves: uploads.py.) Where there are several nodes, one
    removes what is too old."""

    def __init__(self, hub: Hub, store: Store) -> None:
        self._hub = hub
        self._store = store
        self._gone: dict[str, int] = {}  # user → unix milliseconds of the end of the last session
        self._due = 0.0
        self._running = False
        hub.stoppers.append(self._stop)
        hub.leavers.append(self._left)
        hub.sweepers.append(self.sweep)

    def sweep(self, monotonic: float) -> None:
        """Begin a round, once a minute, unless one is still at it."""
        if self._running or monotonic < self._due:
            return
        first = not self._due
        self._due = monotonic + EVERY
        if first:
            return  # the server has just started, and others come first
        self._running = True
        self._hub.background(self._round())

    def _now(self) -> int:
        return int(self._hub.clock.time() * 1000)

    def _left(self, session: Session) -> None:
        if session.user is not None:
            self._gone[session.user.id] = self._now()

    async def _round(self) -> None:
        settings = self._hub.settings
        try:
            await self._quietly(self._note_seen())
            if is_first(self._hub):
                await self._quietly(retention.sweep(self._store, now=self._now(), audit_days=settings.audit_days))
        finally:
            self._running = False

    async def _quietly(self, work: Coroutine[Any, Any, object]) -> None:
        """The next round makes up for what fails in this one."""
        try:
            await work
        except ClientError as error:
            log.warning("upkeep of the store has to wait: %s", error.message)
        except Exception:
            log.exception("upkeep of the store failed")

    async def _note_seen(self) -> None:
        """Write who is connected now, and when those went who are not."""
        now = self._now()
        gone, self._gone = self._gone, {}
        here = {user.id: now for user in self._hub.users.values() if user.sessions}
        times = sorted((gone | here).items())
        try:
            for start in range(0, len(times), AT_ONCE):
                await self._store.write(partial(_note, dict(times[start : start + AT_ONCE])))
        except BaseException:
            self._gone = gone | self._gone  # the next round notes them
            raise

    async def _stop(self) -> None:
        await self._quietly(self._note_seen())


def is_first(hub: Hub) -> bool:
    """Whether this node does what one of the nodes is to do now and then. Two that do it do no harm: that happens while
    they do not know of each other."""
    return all(hub.cluster.node < other for other in hub.cluster.others)


def _note(times: dict[str, int], connection: Connection) -> None:
    note_last_seen(connection, times, connection.dialect.name)
