"""This node among the others: what nodes tell and ask each other, who of them lives, and what they have together.

Everything here also works where there are no others: then nobody is told, nobody answers, and the totals are this node's.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

from msgspec import Struct

from hubbub.ports import Here, Peers

if TYPE_CHECKING:
    from hubbub.hub import Hub

S = TypeVar("S", bound=Struct)


class Cluster:
    """The Ear of a hub.

    :ivar peers: the way to the others; None where there are none.
    :ivar resyncers: run after messages of others may have been missed: each reads again what they would have told of.
    """

    def __init__(self, hub: Hub) -> None:
        self._hub = hub
        self.peers: Peers | None = hub.broker.peers
        self.resyncers: list[Callable[[], Coroutine[Any, Any, None]]] = []
        if self.peers is not None:
            self.peers.listen(self)

    @property
    def node(self) -> str:
        """This node's id; "" where there are no others."""
        return self.peers.node if self.peers is not None else ""

    def on(self, kind: type[S], handle: Callable[[S], Any]) -> None:
        """Say who acts on a kind of message of other nodes. What it returns answers :meth:`ask` (None: no answer)."""
        raise NotImplementedError

    async def tell(self, message: Struct, *, node: str | None = None) -> bool:
        """Send all other nodes (or one) a message. False: the engine is away, so they may not get it."""
        raise NotImplementedError

    async def ask(self, message: Struct, *, timeout: float = 1.0) -> list[Any]:
        """Send all other nodes a message, and return the answers of those that answer in time (seconds)."""
        raise NotImplementedError

    # -- the Ear

    def heard(self, sender: str, message: bytes) -> None:
        raise NotImplementedError

    def missed(self) -> None:
        for resync in self.resyncers:
            self._hub.background(resync())

    def present(self, channel: str, node: str, user_id: str, here: Here | None) -> None:
        self._hub.comings.heard(channel, node, user_id, here)

    def nodes(self, alive: Mapping[str, bytes]) -> None:
        self._hub.comings.alive(alive.keys())

    def report(self) -> bytes:
        raise NotImplementedError

    def declare(self) -> None:
        self._hub.comings.declare()
