"""Limits that hold over all nodes together: what each may let pass is bought from counters in the engine, in the background.

No message ever waits for the engine. While it does not answer, each node's own limits are all there is.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Final, Protocol

from hubbub.errors import BrokerUnavailable
from hubbub.limits import Share

if TYPE_CHECKING:
    from hubbub.hub import Hub

log = logging.getLogger("hubbub")

DEADLINE: Final = 1.0
"""Seconds that the engine has for an answer."""
RETRY: Final = 2.0
"""Seconds between two questions while it does not answer."""
SILENCE: Final = 60.0
"""Seconds in which the log has this once."""
BUYERS: Final = 8
"""Purchases that may be under way at once. Each has a connection of its own, and of a Cluster's servers each gives eight."""


class Counters(Protocol):
    """Token buckets that all nodes share."""

    async def take(self, kind: str, key: str, rate: float, burst: int, count: int) -> tuple[int, float]:
        """Take up to ``count`` from the bucket of a key, which holds ``burst`` and gains ``rate`` per second.

        :returns: how many there were, and the seconds until the bucket is full again.
        :raises BrokerUnavailable: it does not answer.
        """
        ...

    async def close(self) -> None:
        """Let go of the connections."""
        ...


class Quotas:
    """The limits of a hub that are shared.

    :ivar messages: per user, what comes over sockets; None where there is no such limit, or it is not shared.
    :ivar requests: per user, over HTTP.
    :ivar keys: per API key.
    :ivar bought: purchases that the engine gave in full; ``denied`` in part or not at all; ``failed`` without an answer.
    """

    def __init__(self, hub: Hub) -> None:
        self._hub = hub
        self.messages: Share | None = None
        self.requests: Share | None = None
        self.keys: Share | None = None
        self.bought = self.denied = self.failed = 0
        self._counters: Counters | None = None
        self._shares: dict[str, Share] = {}
        self._queue: deque[tuple[str, str, float]] = deque()
        self._buyers = 0
        self._nodes = 1
        self._retry_at = self._silent_until = 0.0

    def share(self, counters: Counters) -> None:
        """Share the limits. Once, before the hub starts."""
        settings = self._hub.settings
        self._counters = counters
        at_once = settings.rate_burst if settings.rate_limit else settings.user_rate_burst
        self.messages = self._add("user", settings.user_rate_limit, settings.user_rate_burst, at_once)
        self.requests = self._add("http", settings.user_rate_limit, settings.user_rate_burst, at_once)
        self.keys = self._add("key", settings.api_rate_limit, settings.api_rate_burst, settings.api_rate_burst // 4)
        self._hub.sweepers.append(self.sweep)
        self._hub.stoppers.append(self._stop)

    def _add(self, kind: str, rate: float, burst: int, at_once: int) -> Share | None:
        if not rate:
            return None
        share = self._shares[kind] = Share(rate, burst, max(1, at_once), self._wants(kind))
        return share

    def _wants(self, kind: str) -> Callable[[str], None]:
        def want(key: str) -> None:
            self._queue.append((kind, key, self._hub.clock.monotonic()))
            if self._buyers < BUYERS:
                self._buyers += 1
                self._hub.background(self._work())

        return want

    @property
    def counts(self) -> dict[str, int]:
        """What happened, by name, as the metric has it."""
        shares = self._shares.values()
        return {
            "bought": self.bought,
            "denied": self.denied,
            "failed": self.failed,
            "refused": sum(share.denied for share in shares),
            "alone": sum(share.alone for share in shares),
        }

    @property
    def asking(self) -> bool:
        """Whether a purchase is under way."""
        return self._buyers > 0

    def sweep(self, now: float) -> None:
        """Forget what is over; try the engine again; share among the nodes that there are."""
        nodes = len(self._hub.cluster.others) + 1
        for share in self._shares.values():
            if nodes != self._nodes:
                share.spread(nodes)
            if share.away and now >= self._retry_at:
                share.away = False
            share.sweep(now)
        self._nodes = nodes

    async def _work(self) -> None:
        try:
            while self._queue:
                kind, key, since = self._queue.popleft()
                share = self._shares[kind]
                if self._hub.clock.monotonic() - since > DEADLINE:
                    share.unanswered(key)  # the engine is slow: that is no fault of the user's
                else:
                    await self._buy(kind, key, share)
        finally:
            self._buyers -= 1

    async def _buy(self, kind: str, key: str, share: Share) -> None:
        if share.away:  # it was found out while this waited
            share.unanswered(key)
            return
        try:
            async with asyncio.timeout(DEADLINE):
                await self._ask(kind, key, share)
        except (BrokerUnavailable, TimeoutError) as error:
            share.unanswered(key)
            self._away(error)
        except asyncio.CancelledError:
            share.unanswered(key)
            raise
        except Exception as error:
            share.unanswered(key)  # or it would be asked for no more
            log.exception("a limit could not be shared")
            self._away(error)
        else:
            self._answered()

    async def _ask(self, kind: str, key: str, share: Share) -> None:
        assert self._counters is not None
        wanted = share.wanted(key)
        count, ahead = await self._counters.take(kind, key, share.rate, share.burst, wanted)
        if count == wanted:
            self.bought += 1
        else:
            self.denied += 1
        share.answered(key, wanted, count, ahead, self._hub.clock.monotonic())

    def _away(self, error: Exception) -> None:
        self.failed += 1
        now = self._hub.clock.monotonic()
        if now >= self._silent_until:
            self._silent_until = now + SILENCE
            why = str(error) or f"no answer within {DEADLINE:g} s"  # a timeout's text is empty
            log.warning("limits are not shared now: the engine does not answer", extra={"error": why})
        self._retry_at = now + RETRY
        for share in self._shares.values():
            share.away = True

    def _answered(self) -> None:
        if self._retry_at:
            self._retry_at = 0.0
            log.info("limits are shared again")
            for share in self._shares.values():
                share.away = False

    async def _stop(self) -> None:
        self._queue.clear()
        assert self._counters is not None
        await self._counters.close()
