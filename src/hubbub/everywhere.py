"""What is done to sessions on all nodes at once: this node does its part, and asks the others for theirs."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable
from itertools import islice
from typing import TYPE_CHECKING, Final, NamedTuple, TypeVar

from msgspec import Struct

from hubbub.auth import valid_user_id
from hubbub.control import MAX_USERS, Count, Disconnect, Everyone, Replaced, kind_of
from hubbub.errors import BrokerUnavailable, CloseCode
from hubbub.revocation import Revocations

if TYPE_CHECKING:
    from hubbub.cluster import Answers, Cluster
    from hubbub.hub import Hub

log = logging.getLogger("hubbub")
S = TypeVar("S", bound=Struct)

RETURNED: Final = 1000
"""Devices in one message that they came back."""
MAX_RETURNED: Final = 100_000
"""Devices that came back here, of which the others are still to be told."""


QUESTIONS: Final = 4
"""Questions for counts that are under way at once. What comes meanwhile is asked together."""


class Reached(NamedTuple):
    """What something did on all nodes.

    :ivar sessions: how many sessions it reached.
    :ivar complete: False: not every node has answered, so it may be more; the engine is away, or a node is slow.
    """

    sessions: int
    complete: bool


NOBODY: Final = Reached(0, True)


class _Question:
    """Users of whom somebody wants to know how many sessions they have elsewhere."""

    __slots__ = ("answer", "users")

    def __init__(self, answer: asyncio.Future[tuple[Counter[str], bool]]) -> None:
        self.users: dict[str, None] = {}
        self.answer = answer


class Everywhere:
    """The same act on all nodes of a cluster.

    :ivar revocations: which tokens were taken back.
    """

    def __init__(self, hub: Hub, cluster: Cluster) -> None:
        self._hub = hub
        self._cluster = cluster
        self._returned: dict[tuple[str, str], float] = {}
        self._waiting: _Question | None = None
        self._asking = 0
        self.revocations = Revocations(hub, cluster)
        cluster.on(Disconnect, self._disconnect, outside=True)
        cluster.on(Count, self._count)
        cluster.on(Everyone, self._everyone)
        cluster.on(Replaced, self._replaced)
        hub.starters.insert(0, self.revocations.start)  # before anything that lets somebody in
        hub.stoppers.insert(0, self._stop)
        if cluster.peers is not None:
            hub.entrance.returned = self._came_back
            cluster.resyncers.append(self._tell_returned)

    async def disconnect(self, user_id: str, code: int = CloseCode.NORMAL, reason: str = "") -> Reached:
        """Close all sessions of a user on all nodes."""
        if not valid_user_id(user_id):
            return NOBODY
        message = Disconnect(user_id, code, reason[:100])
        count = self._disconnect(message)
        return self._sum("a disconnect", count, await self._cluster.ask(message))

    async def revoke(self, *, user_id: str | None = None, token_id: str | None = None) -> Reached:
        """Refuse a user's tokens issued until now, or one token, on all nodes; close the sessions that live on them."""
        if token_id is None and not valid_user_id(user_id or ""):
            return NOBODY
        count, answers = await self.revocations.revoke(user_id=user_id, token_id=token_id)
        return self._sum("a revocation", count, answers)

    async def everyone(self, payload: bytes, exclude: frozenset[str] = frozenset()) -> Reached:
        """Send a message (JSON text) to all signed-in sessions on all nodes, but those of some users.

        :raises ValueError: more than 10,000 users are excluded.
        """
        if len(exclude) > MAX_USERS:
            raise ValueError(f"at most {MAX_USERS} users can be excluded")
        message = Everyone(payload, [user for user in exclude if valid_user_id(user)])
        return self._sum("a broadcast", self._everyone(message), await self._cluster.ask(message))

    async def do(self, act: Callable[[S], Awaitable[int]], message: S) -> Reached:
        """Act here, and ask the others to do what they do on such a message."""
        here = await act(message)
        return self._sum(f"{kind_of(type(message))!r}", here, await self._cluster.ask(message))

    async def count(self, user_ids: Iterable[str]) -> tuple[dict[str, int], bool]:
        """The live sessions of some users on all nodes, of those who have any; and whether every node has answered."""
        users = list(dict.fromkeys(filter(valid_user_id, user_ids)))
        found = self._count(Count(users))
        if not users or not self._cluster.others:  # it is only a question: who is not known yet has nobody yet
            return found, True
        elsewhere, complete = await self._ask_later(users)
        if not complete:
            self._warn("a count of sessions")
        for user in users:
            if user in elsewhere:
                found[user] = found.get(user, 0) + elsewhere[user]
        return found, complete

    async def _ask_later(self, users: list[str]) -> tuple[Counter[str], bool]:
        """The sessions of users on other nodes. While some questions are under way, all that come are asked as one."""
        assert self._hub.loop is not None
        waiting = self._waiting
        if waiting is None:
            waiting = self._waiting = _Question(self._hub.loop.create_future())
        waiting.users.update(dict.fromkeys(users))
        if self._asking < QUESTIONS:
            self._asking += 1
            self._hub.background(self._ask_all())
        return await asyncio.shield(waiting.answer)

    async def _ask_all(self) -> None:
        try:
            while self._waiting is not None:
                question, self._waiting = self._waiting, None
                try:
                    question.answer.set_result(await self._ask(question.users))
                except Exception as error:
                    question.answer.set_exception(error)
                    question.answer.exception()  # whoever asked may have gone
                finally:
                    question.answer.cancel()  # nothing, if it was answered; else the hub stops
        finally:
            self._asking -= 1
            if not self._asking and self._waiting is not None:
                self._waiting.answer.cancel()
                self._waiting = None

    async def _ask(self, users: Iterable[str]) -> tuple[Counter[str], bool]:
        found: Counter[str] = Counter()
        complete = True
        rest = iter(users)
        while some := list(islice(rest, MAX_USERS)):
            answers = await self._cluster.ask(Count(some), keep=False)
            complete &= answers.complete
            for answer in answers:
                found.update(answer if isinstance(answer, dict) else {})
        return found, complete

    async def online(self, user_ids: Iterable[str]) -> set[str]:
        """Which of some users have a live session on any node."""
        return set((await self.count(user_ids))[0])

    def _sum(self, what: str, here: int, answers: Answers | None) -> Reached:
        if answers is None or not answers.complete:
            self._warn(what)
        elsewhere = sum(answer for answer in answers or () if isinstance(answer, int))
        return Reached(here + elsewhere, answers is not None and answers.complete)

    async def _stop(self) -> None:
        self.revocations.stop()
        self._returned.clear()

    def _warn(self, what: str) -> None:
        log.warning("%s may not have reached all nodes: the engine is away, or one of them does not answer", what)

    # -- this node's part

    def _disconnect(self, message: Disconnect) -> int:
        sessions = list(self._hub.users.get(message.user_id, ()))
        for session in sessions:
            self._hub.close(session, message.code, message.reason)
        return len(sessions)

    def _everyone(self, message: Everyone) -> int:
        return self._hub.everyone(message.payload, frozenset(message.exclude))

    def _count(self, message: Count) -> dict[str, int]:
        count = self._hub.sessions_of
        return {user: sessions for user in message.user_ids if (sessions := count(user))}

    # -- devices that come back to another node than they were on

    def _came_back(self, user_id: str, session_id: str) -> None:
        """A device came here with the id of an earlier session. The others hear of all of one turn together."""
        if not self._returned:
            assert self._hub.loop is not None
            self._hub.loop.call_soon(self._cluster.resync, self._tell_returned)
        if len(self._returned) < MAX_RETURNED:  # beyond, the old connections end by their heartbeats
            self._returned[user_id, session_id] = self._hub.clock.time()

    async def _tell_returned(self) -> None:
        if not self._cluster.others:
            self._returned.clear()  # it can hang nowhere
        while self._returned:
            some = dict(islice(self._returned.items(), RETURNED))
            if not await self._cluster.tell(Replaced([(*who, at) for who, at in some.items()])):
                raise BrokerUnavailable("the other nodes could not be told who came back here")
            for who, at in some.items():
                if self._returned.get(who) == at:
                    del self._returned[who]

    def _replaced(self, message: Replaced) -> None:
        """Close what hangs here. A session that began later than the one elsewhere is the device come back once more."""
        shift = self._hub.clock.monotonic() - self._hub.clock.time()
        for user_id, session_id, at in message.sessions:
            user = self._hub.users.get(user_id)
            if user is not None:
                self._hub.entrance.replace(user, session_id, before=at + shift)
