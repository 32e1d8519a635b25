"""What keys and pub/sub channels of the engine are called."""

from __future__ import annotations

from functools import lru_cache
from typing import Final

SLOTS: Final = 16_384
"""Hash slots of a Cluster."""
PARTITIONS: Final = 64
"""Partitions of a Cluster. Every channel is in one; everything of a partition is on one shard, so one script reaches it."""


class Partition:
    """What is in one hash slot.

    :ivar tag: the part of the names that decides about the slot.
    """

    __slots__ = ("_start", "index", "slot", "tag")

    def __init__(self, prefix: str, index: int, tag: str) -> None:
        self.index = index
        self.tag = tag
        self.slot = slot_of(tag)
        self._start = f"{prefix}:{{{tag}}}:"

    def key(self, kind: str, name: str = "") -> str:
        """A key, or a pub/sub channel, of some kind."""
        return f"{self._start}{kind}:{name}" if name else f"{self._start}{kind}"


class Keys:
    """The names of a hub's things in the engine.

    :param prefix: what all begin with.
    :param cluster: whether it is a Cluster: then there are many partitions, else one.
    """

    def __init__(self, prefix: str, *, cluster: bool) -> None:
        tags = cluster_tags() if cluster else ("0",)
        self.partitions = [Partition(prefix, index, tag) for index, tag in enumerate(tags)]
        self.cluster = cluster
        self.home = self.partitions[0]
        """Where what belongs to no channel is."""

    def partition_of(self, channel: str) -> Partition:
        """Where a channel is."""
        if len(self.partitions) == 1:
            return self.home
        return self.partitions[_crc16(channel.encode()) % len(self.partitions)]


@lru_cache(maxsize=1)
def cluster_tags() -> tuple[str, ...]:
    """A tag for each partition, so that their slots lie evenly among all: then they do over any number of shards."""
    tags: dict[int, str] = {}
    number = 0
    width = SLOTS // PARTITIONS
    while len(tags) < PARTITIONS:
        tag = f"{number:x}"
        place = slot_of(tag)
        # the middle half of its share, so that no shard's border falls badly
        if width // 4 <= place % width < 3 * width // 4:
            tags.setdefault(place // width, tag)
        number += 1
    return tuple(tags[index] for index in range(PARTITIONS))


def slot_of(tag: str) -> int:
    """The hash slot of the keys with a tag (Redis Cluster specification, "Hash tags")."""
    return _crc16(tag.encode()) % SLOTS


def _crc16(data: bytes) -> int:
    """CRC-16/XMODEM, as the Cluster specification has it."""
    crc = 0
    for byte in data:
        crc = ((crc << 8) & 0xFFFF) ^ _TABLE[(crc >> 8) ^ byte]
    return crc


def _entry(byte: int) -> int:
    crc = byte << 8
    for _ in range(8):
        crc = ((crc << 1) ^ 0x1021 if crc & 0x8000 else crc << 1) & 0xFFFF
    return crc


_TABLE: Final = tuple(_entry(byte) for byte in range(256))
