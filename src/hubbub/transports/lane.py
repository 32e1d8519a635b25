"""How a channel's batch is written to connections of the fast lane: one ``write(2)`` each."""

from __future__ import annotations

import os
from array import array
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Final

from hubbub.messages import JSON, MSGPACK, Codec
from hubbub.ports import Link, Members

if TYPE_CHECKING:
    from hubbub.batch import Batch
    from hubbub.transports.uvicorn import WebSocketProtocol

MANY: Final = 512
"""Members from which a room is written to by a list of descriptors."""
changes: Final = [0]
"""How often any connection's descriptor has changed: opened, fallen behind, caught up, closed."""


class FastLane:
    """Writes a channel's batch to connections of this transport, one ``write(2)`` each. See ``docs/performance.md``."""

    __slots__ = ("codec",)

    def __init__(self, codec: Codec) -> None:
        self.codec = codec

    def deliver(self, links: Iterable[Link], batch: Batch, merge: bool) -> None:
        data = batch.joined(self.codec)
        excluded = batch.excluded
        if type(links) is Members and not merge and excluded is None and len(links) >= MANY and _ready(links):
            self._deliver_to_many(links, batch, data)
            return
        size = len(data)
        write = os.write
        link: WebSocketProtocol
        for link in links:  # type: ignore[assignment]  # a lane only ever gets links of its own transport
            fd = link.fd
            if fd < 0 or link.out is not None or excluded is not None or (merge and link.in_many):
                link.deliver_with_care(batch, data, merge)
                continue
            try:
                sent = write(fd, data)
            except BlockingIOError:
                sent = 0
            except OSError:
                link.transport.abort()
                continue
            if sent != size:
                link.fall_behind_in(batch, data[sent:])

    def _deliver_to_many(self, members: Members, batch: Batch, data: bytes) -> None:
        """The same for a large room, without touching a connection that takes all: a thousand of them are more than
        the processor's cache holds, and that costs as much as a fifth of the writes."""
        size = len(data)
        write = os.write
        for index, fd in enumerate(members.descriptors):
            try:
                sent = write(fd, data)
                if sent == size:
                    continue
            except BlockingIOError:
                sent = 0
            except OSError:
                members.plain[index].transport.abort()
                continue
            members.plain[index].fall_behind_in(batch, data[sent:])
        for link in members.special:
            link.deliver_with_care(batch, data, False)


def _ready(members: Members) -> bool:
    """Whether the members' list of descriptors is right; it is made once nothing has changed for two batches."""
    version = changes[0]
    if members.made_at == version:
        return True
    if members.seen_at != version:
        members.seen_at = version
        return False
    links: list[Any] = list(members)  # all of this transport: they are of its lane
    members.plain = [link for link in links if link.fd >= 0 and link.out is None]
    members.special = [link for link in links if link.fd < 0 or link.out is not None]
    members.descriptors = array("i", [link.fd for link in members.plain])
    members.made_at = version if len(members.special) * 16 <= len(members) else -1
    return True


LANES: Final = {codec: FastLane(codec) for codec in (JSON, MSGPACK)}
