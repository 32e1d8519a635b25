"""What one channel publishes in one turn of the loop: encoded once per codec, framed once, joined once."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hubbub.frames import frame
from hubbub.messages import JSON, Codec
from hubbub.settings import SlowPolicy
from hubbub.stream import Publication

if TYPE_CHECKING:
    from hubbub.ports import Link


class Batch:
    """The publications of one channel in one turn.

    :ivar channel: the channel's name, for gaps told to slow readers.
    :ivar policy: what a reader that does not keep up gets.
    :ivar excluded: link → indexes of the publications that it must not get (``exclude_self``, a filter); None: nobody.
    """

    __slots__ = ("_json", "_msgpack", "_payloads", "channel", "excluded", "policy", "publications")

    def __init__(self, channel: str, policy: SlowPolicy) -> None:
        self.channel = channel
        self.policy = policy
        self.publications: list[Publication] = []
        self.excluded: dict[Link, set[int]] | None = None
        self._json: bytes | None = None
        self._msgpack: bytes | None = None
        self._payloads: dict[Codec, list[bytes]] | None = None

    def add(self, publication: Publication, exclude: Link | None = None) -> None:
        if exclude is not None:
            if self.excluded is None:
                self.excluded = {}
            self.excluded.setdefault(exclude, set()).add(len(self.publications))
        self.publications.append(publication)

    def hide(self, link: Link) -> None:
        """Keep the last publication from a link."""
        if self.excluded is None:
            self.excluded = {}
        self.excluded.setdefault(link, set()).add(len(self.publications) - 1)

    def joined(self, codec: Codec) -> bytes:
        """All of them as WebSocket frames in one string of bytes: what every fast reader is written. Made once."""
        if codec is JSON:
            if self._json is None:
                self._json = self._join(codec)
            return self._json
        if self._msgpack is None:
            self._msgpack = self._join(codec)
        return self._msgpack

    def _join(self, codec: Codec) -> bytes:
        publications, convert, opcode = self.publications, codec.convert, codec.opcode
        if len(publications) == 1:
            return frame(opcode, convert(publications[0].payload))
        return b"".join([frame(opcode, convert(publication.payload)) for publication in publications])

    def for_link(self, link: Link, codec: Codec) -> list[tuple[Publication, bytes]]:
        """The publications that one link gets, each with its payload in the codec. For links that need care only."""
        if self._payloads is None:
            self._payloads = {}
        made = self._payloads.get(codec)
        if made is None:
            made = self._payloads[codec] = [codec.convert(publication.payload) for publication in self.publications]
        pairs = list(zip(self.publications, made, strict=True))
        hidden = self.excluded.get(link) if self.excluded is not None else None
        return pairs if hidden is None else [pair for index, pair in enumerate(pairs) if index not in hidden]
