"""Tokens that were taken back: on this node at once, on the others within a moment, and on those that come later.

There is no hole between a revocation and a token that connects elsewhere at that moment. The fact is kept in the engine
*before* the others are told. A node checks a token and enters its session without waiting in between, so when it is told,
each session is there to be closed, or comes later and is refused. A node that starts hears the others first, and reads
what is kept before it lets anybody in; one that was cut off reads it once it hears the others again. And what an engine
that came back empty, or with an older copy, does not know any more, every node tells it.

Facts come late, and from clocks that differ: of two about the same the one that refuses more is kept, not the last one.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Iterable, Mapping
from itertools import islice
from typing import TYPE_CHECKING, Final

import msgspec

from hubbub.auth import REVOCATION_MEMORY
from hubbub.control import Revoke
from hubbub.errors import BrokerUnavailable

if TYPE_CHECKING:
    from hubbub.cluster import Answers, Cluster
    from hubbub.hub import Hub
    from hubbub.ports import Peers

log = logging.getLogger("hubbub")

KEPT: Final = "revoked"
"""The kind of fact that the engine keeps."""
AT_ONCE: Final = 200
"""Facts that are told to the engine side by side."""
AHEAD: Final = 60.0
"""Seconds that another machine's clock may be ahead: no revocation refuses tokens issued later than that."""


class Revocations:
    """The revocations of a hub and its cluster."""

    def __init__(self, hub: Hub, cluster: Cluster) -> None:
        self._hub = hub
        self._cluster = cluster
        self._unsaid: dict[str, Revoke] = {}
        self._unsure = False
        cluster.on(Revoke, self.apply, outside=True)
        cluster.resyncers.append(self.sync)

    async def revoke(self, *, user_id: str | None = None, token_id: str | None = None) -> tuple[int, Answers | None]:
        """Refuse a user's tokens issued until now, or one token, on all nodes, also on those to come; close the sessions
        that live on them.

        Returns how many were closed here, and what the others answer. None: the engine is away. It is in force here; the
        others hear of it as soon as the engine is back.
        """
        now = self._hub.clock.time()
        until = now + REVOCATION_MEMORY if token_id is None else self._hub.entrance.end_of(token_id)
        fact = Revoke(now, until, user_id if token_id is None else None, token_id)
        count = self.apply(fact)
        try:
            await self._keep(fact)
        except BrokerUnavailable:
            self._later(fact)
            return count, None
        answers = await self._cluster.ask(fact)
        if not answers.told:
            self._later(fact)
        return count, answers

    def apply(self, fact: Revoke) -> int:
        """Put a revocation in force on this node. Returns how many sessions were closed."""
        at = min(fact.at, self._hub.clock.time() + AHEAD)
        return self._hub.entrance.revoke(user_id=fact.user_id, token_id=fact.token_id, at=at, until=fact.until)

    async def sync(self) -> None:
        """Say what could not be said, then learn what is kept.

        :raises BrokerUnavailable: the engine is (still) away.
        """
        peers = self._cluster.peers
        if peers is None:
            return
        while self._unsaid:
            key, fact = next(iter(self._unsaid.items()))
            await self._keep(fact)
            if not await self._cluster.tell(fact):
                raise BrokerUnavailable("the other nodes could not be told of a revocation")
            if self._unsaid.get(key) is fact:
                del self._unsaid[key]
        await self._teach(self._learn((await peers.kept(KEPT)).values()))

    async def _teach(self, kept: Mapping[str, float]) -> None:
        """Keep in the engine what it does not have (any more): it may have come back empty, or with an older copy.

        :param kept: the ranks of what it has, by key.
        """
        now = self._hub.clock.time()
        known = (Revoke(at, until, user, token) for user, token, at, until in self._hub.entrance.verifier.revoked(now))
        missing = iter([fact for fact in known if rank_of(fact) > kept.get(fact.key, -math.inf)])
        while some := list(islice(missing, AT_ONCE)):
            results = await asyncio.gather(*map(self._keep, some), return_exceptions=True)
            for result in results:
                if result is not None:
                    raise result

    def _learn(self, kept: Iterable[bytes]) -> dict[str, float]:
        """Put in force what is kept. Returns the ranks, by key."""
        entrance, now = self._hub.entrance, self._hub.clock.time()
        tokens_too = False
        users: list[str] = []
        ranks: dict[str, float] = {}
        for value in kept:
            try:
                fact = _decode(value)
            except (ValueError, RecursionError) as error:
                self._cluster.counts["bad"] += 1
                log.warning("a revocation in the engine cannot be read: %s", error)
                continue
            ranks[fact.key] = rank_of(fact)
            at = min(fact.at, now + AHEAD)
            new = entrance.note_revoked(user_id=fact.user_id, token_id=fact.token_id, at=at, until=fact.until)
            if new and fact.token_id is not None:
                tokens_too = True
            elif new and fact.user_id is not None:
                users.append(fact.user_id)
        if tokens_too:
            entrance.close_revoked(self._hub.sessions)
        else:
            entrance.close_revoked([session for user in users for session in self._hub.users.get(user, ())])
        return ranks

    async def start(self) -> None:
        """Learn what was revoked before this node was there."""
        try:
            await self.sync()
        except BrokerUnavailable:
            log.warning("the engine does not answer: tokens that were revoked elsewhere are not known here yet")
            self._unsure = True
            self._cluster.resync(self.sync)

    def joined(self) -> None:
        """This node hears the others from here on. If it could not read what is kept before, it reads it (again) now: what
        was said in between it has not heard."""
        if self._unsure:
            self._unsure = False
            self._cluster.resync(self.sync)

    def stop(self) -> None:
        """Forget what could not be said."""
        if self._unsaid:
            log.warning("%d revocations could not be told to other nodes: repeat them there", len(self._unsaid))
            self._unsaid.clear()

    async def _keep(self, fact: Revoke) -> None:
        if self._cluster.peers is not None:
            seconds = max(1.0, fact.until - self._hub.clock.time())
            await keep_fact(self._cluster.peers, fact, seconds)

    def _later(self, fact: Revoke) -> None:
        self._unsaid[fact.key] = fact
        self._cluster.resync(self.sync)


async def keep_fact(peers: Peers, fact: Revoke, seconds: float) -> None:
    """Keep a revocation for all nodes, unless one that refuses more is kept.

    :raises BrokerUnavailable: it may not be kept.
    """
    await peers.keep(KEPT, fact.key, msgspec.msgpack.encode(fact), seconds, rank=rank_of(fact))


def rank_of(fact: Revoke) -> float:
    """Of two revocations of the same user or token, the higher one refuses all that the other does: of a user's tokens
    those issued up to later, the one token for longer."""
    return fact.at if fact.token_id is None else fact.until


_decode = msgspec.msgpack.Decoder(Revoke).decode
