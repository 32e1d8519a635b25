"""Shutting down without a storm: every client is told when to come back, and connections close in paced batches."""

from __future__ import annotations

import asyncio
import logging
import random
from typing import TYPE_CHECKING, Final

from hubbub.errors import CloseCode
from hubbub.messages import Reconnect

if TYPE_CHECKING:
    from hubbub.hub import Hub

log = logging.getLogger("hubbub")

STEP: Final = 0.05
"""Seconds between two batches."""
CALM: Final = 1000.0
"""Closes per second that need no more pacing: fewer clients than that times the bound are closed sooner."""
TELL: Final = 2000
"""Clients told in one turn of the loop."""


async def drain(hub: Hub) -> None:
    """Tell every session ``reconnect`` with its own delay, then close all (1012) within HUBBUB_DRAIN_SECONDS.

    Delays spread over the same time as the closes, so that the clients' return is as even as their leaving.
    """
    sessions = list(hub.sessions)
    bound = hub.settings.drain_seconds
    spread = min(bound, len(sessions) / CALM)
    log.info("draining", extra={"sessions": len(sessions), "seconds": round(spread, 2)})
    jitter = random.SystemRandom()
    for start in range(0, len(sessions), TELL):
        for session in sessions[start : start + TELL]:
            hub.reply(session, Reconnect(after=round(jitter.uniform(0.1, max(1.0, spread)), 3)))
        await asyncio.sleep(0)
    steps = max(1, round(spread / STEP))
    for step in range(steps):
        for session in sessions[len(sessions) * step // steps : len(sessions) * (step + 1) // steps]:
            hub.close(session, CloseCode.SERVICE_RESTART, "restarting")
        if step < steps - 1:
            await asyncio.sleep(STEP)
    for session in list(hub.sessions):  # who came in while the others were told
        hub.close(session, CloseCode.SERVICE_RESTART, "restarting")
