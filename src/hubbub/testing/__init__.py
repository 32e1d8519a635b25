"""What the tests of an app with Hubbub need: clients with deadlines, a clock turned by hand, a broker that
fails on command, an engine that several nodes share.

>>> from hubbub.testing import hub_client
>>> async def test_chat() -> None:
...     async with hub_client(app, user="alice", room="general") as alice:
...         await alice.send("chat_message", message="hi")
...         await alice.expect("message")
"""

from __future__ import annotations

from hubbub.testing.client import HubClient, hub_client
from hubbub.testing.clock import HandClock, hand_clock
from hubbub.testing.engine import MemoryEngine
from hubbub.testing.faults import FaultyBroker
from hubbub.testing.lifespan import running
from hubbub.testing.sync import SyncClient, sync_client
from hubbub.testing.transcript import Failed, Refused, Rejected

__all__ = [
    "Failed",
    "FaultyBroker",
    "HandClock",
    "HubClient",
    "MemoryEngine",
    "Refused",
    "Rejected",
    "SyncClient",
    "hand_clock",
    "hub_client",
    "running",
    "sync_client",
]
