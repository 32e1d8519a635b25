"""What one channel publishes in one turn of the loop: encoded once per codec, framed once, joined once."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from hubbub.frames import frame
from hubbub.messages import Codec
from hubbub.settings import SlowPolicy
from hubbub.stream import Publication

if TYPE_CHECKING:
    from hubbub.ports import Link


class Batch:
    """The publications of one channel in one turn.

    :ivar channel: the channel's name, for gaps told to slow readers.
    :ivar policy: what a reader that does not keep up gets.
    :ivar excluded: link → indexes of the publications that it must not get (``exclude_self``); None for nobody.
    """

    __slots__ = ("_joined", "_payloads", "channel", "excluded", "policy", "publications")

    def __init__(self, channel: str, policy: SlowPolicy) -> None:
        self.channel = channel
        self.policy = policy
        self.publications: list[Publication] = []
        self.excluded: dict[Link, set[int]] | None = None
        self._payloads: dict[Codec, list[bytes]] = {}
        self._joined: dict[Codec, bytes] = {}

    def add(self, publication: Publication, exclude: Link | None = None) -> None:
        if exclude is not None:
            if self.excluded is None:
                self.excluded = {}
            self.excluded.setdefault(exclude, set()).add(len(self.publications))
        self.publications.append(publication)

    def payloads(self, codec: Codec) -> list[bytes]:
        """The wire messages in a codec, converted at most once."""
        made = self._payloads.get(codec)
        if made is None:
            convert: Callable[[bytes], bytes] = codec.convert
            made = self._payloads[codec] = [convert(publication.payload) for publication in self.publications]
        return made

    def joined(self, codec: Codec) -> bytes:
        """All of them as WebSocket frames in one string of bytes: what every fast reader is written."""
        data = self._joined.get(codec)
        if data is None:
            opcode = codec.opcode
            data = self._joined[codec] = b"".join([frame(opcode, payload) for payload in self.payloads(codec)])
        return data

    def for_link(self, link: Link, codec: Codec) -> list[tuple[Publication, bytes]]:
        """The publications that one link gets, each with its payload in the codec."""
        pairs = list(zip(self.publications, self.payloads(codec), strict=True))
        hidden = self.excluded.get(link) if self.excluded is not None else None
        return pairs if hidden is None else [pair for index, pair in enumerate(pairs) if index not in hidden]
