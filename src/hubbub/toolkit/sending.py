"""A message of the app's own to all devices of a user, on whatever nodes they are."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any

from msgspec import Raw

from hubbub.auth import valid_user_id
from hubbub.errors import BrokerUnavailable, ClientError
from hubbub.hub import EPHEMERAL, PERSONAL
from hubbub.messages import JSON, plain_data
from hubbub.stream import Publication
from hubbub.toolkit.session import FLUSH
from hubbub.toolkit.shapes import message_bytes

if TYPE_CHECKING:
    from hubbub.hub import Hub

log = logging.getLogger("hubbub")


def bytes_for_all(message: Any, kind: str | None) -> bytes:
    """A message of the app as JSON text that every device can be given, whatever its codec.

    :raises TypeError: it has no type, no JSON form, or none in MessagePack.
    """
    payload = message_bytes(message, kind, None, JSON)
    try:
        plain_data(Raw(payload), is_json=True)
    except ClientError as error:
        reason = error.message.removesuffix(" - at `$.data`")
        raise TypeError(f"it cannot be sent to every client: {reason}") from None
    return payload


class ToUsers:
    """Sends to users. It is fleeting: not kept, without an offset.

    The devices on this node get it at once, whatever the engine does; those on the others by the user's own channel, as a
    publication without history. Its origin is this node, which so knows it again when it hears it.
    """

    def __init__(self, hub: Hub) -> None:
        self._hub = hub
        self._turn = -1
        self._sent = 0
        self._untold = False

    async def send(self, user_id: str, payload: bytes) -> None:
        """Send JSON text to all live devices of a user. In the hub's loop."""
        if not valid_user_id(user_id):
            return  # nobody is called so
        hub = self._hub
        publication = Publication(payload, origin=hub.cluster.node or None)
        hub.tell(PERSONAL + user_id, publication)
        if hub.broker.peers is not None:
            await self._elsewhere(user_id, publication)
        if self._turn != hub.turns:
            self._turn, self._sent = hub.turns, 0
        self._sent += len(payload) + 128
        if self._sent > FLUSH:
            self._sent = 0
            await asyncio.sleep(0)  # the turn ends, and what was sent is written

    async def _elsewhere(self, user_id: str, publication: Publication) -> None:
        try:
            await self._hub.broker.publish(PERSONAL + user_id, publication, EPHEMERAL)
        except (BrokerUnavailable, ClientError) as error:  # busy: too much waits for the engine
            self._hub.cluster.counts["untold"] += 1
            if not self._untold:  # said once for each time that it is away: there may be thousands
                self._untold = True
                log.warning("messages to users may not have reached other nodes: %s", error)
        else:
            self._untold = False


__all__ = ["ToUsers", "bytes_for_all"]
