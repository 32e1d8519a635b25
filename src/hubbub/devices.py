"""How many sessions a user may have, over all nodes together.

A node lets in whom it may by itself, and then asks the others, for all who came within a moment together: nobody's sign-in
waits for the engine. Who turns out to be too many is closed again. Of two that sign in on two nodes, the later one.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from itertools import islice
from typing import TYPE_CHECKING, Final

from hubbub.control import MAX_USERS, Newcomers
from hubbub.entrance import too_many
from hubbub.session import Session, State

if TYPE_CHECKING:
    from hubbub.cluster import Cluster
    from hubbub.hub import Hub

MOMENT: Final = 0.1
"""Seconds between two questions: a node's share of the cluster's messages does not depend on how many sign in."""
AT_ONCE: Final = 0.5
"""Seconds within which two sign in at the same time: then their ids decide, on all nodes alike. A question is on its way for
a while, so ages that are nearly the same cannot be told apart."""
MAX_NEW: Final = 100_000
"""Sessions of which the others are still to be asked. Beyond, this node's own limit is all there is."""


class Devices:
    """The limit of a hub's users over all nodes. While the engine is away, each node has its own.

    :ivar asking: the others are being asked, or will be in a moment.
    """

    def __init__(self, hub: Hub, cluster: Cluster) -> None:
        self._hub = hub
        self._cluster = cluster
        self._limit = hub.settings.max_connections_per_user
        self._new: dict[Session, None] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._questions = 0
        cluster.on(Newcomers, self._count)
        if cluster.peers is not None and self._limit:
            hub.entrance.entered = self._entered
            hub.leavers.append(self._left)
            hub.stoppers.append(self._stop)

    def _entered(self, session: Session) -> None:
        for other in session.user or ():
            self._look_at(other, session.entered)

    def _look_at(self, session: Session, now: float) -> None:
        """Ask the others of a session that came just now."""
        young = now - session.entered <= 2 * AT_ONCE
        if not young or not self._cluster.others or len(self._new) >= MAX_NEW:
            return
        self._new[session] = None
        if self._timer is None:
            assert self._hub.loop is not None
            self._timer = self._hub.loop.call_later(MOMENT, self._ask_soon)

    def _left(self, session: Session) -> None:
        self._new.pop(session, None)

    @property
    def asking(self) -> bool:
        return self._timer is not None or self._questions > 0

    async def _stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._new.clear()

    def _ask_soon(self) -> None:
        self._timer = None
        if self._new:
            self._questions += 1
            self._hub.background(self._ask())

    async def _ask(self) -> None:
        asked, self._new = iter(list(self._new)), {}
        try:
            while some := list(islice(asked, MAX_USERS)):
                now = self._hub.clock.monotonic()
                sessions = [(each.user_id, each.id, now - each.entered) for each in some]
                answers = await self._cluster.ask(Newcomers(sessions), keep=False)
                for index, session in enumerate(some):
                    self._judge(session, sum(_number(answer, index) for answer in answers))
        finally:
            self._questions -= 1

    def _judge(self, session: Session, elsewhere: int) -> None:
        user = session.user
        if not elsewhere or user is None or session.state is not State.OPEN:
            return
        now = self._hub.clock.monotonic()
        own = now - session.entered, session.id
        here = sum(_before((now - other.entered, other.id), own) for other in user.sessions)
        if here + elsewhere < self._limit:
            return
        self._hub.metrics.limited("user")
        self._hub.refuse_message(session, too_many(self._limit), None)

    def _count(self, message: Newcomers) -> list[int]:
        """For each newcomer elsewhere, how many of its user were here before it. The device itself does not count: it
        has left here, and this node does not know it yet."""
        now, users = self._hub.clock.monotonic(), self._hub.users
        counts = []
        for user_id, session_id, age in message.sessions:
            count = 0
            for each in users.get(user_id, ()):
                if _before((now - each.entered, each.id), (age, session_id)):
                    count += 1
                else:  # it may have been counted as the earlier one before that came
                    self._look_at(each, now)
            counts.append(count)
        return counts


def _before(one: tuple[float, str], other: tuple[float, str]) -> bool:
    """Whether a session signed in before another one; of each, how long ago, and its id."""
    earlier = one[0] - other[0]
    if one[1] == other[1]:
        return False  # the same device
    return earlier > 0 if abs(earlier) > AT_ONCE else one[1] < other[1]


def _number(answer: object, index: int) -> int:
    """What a node of whatever release says of one."""
    if not isinstance(answer, Sequence) or index >= len(answer):
        return 0
    return answer[index] if isinstance(answer[index], int) else 0
