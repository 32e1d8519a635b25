"""What keeps files promises, and what all that keep them share: keys, pieces, sums."""

from __future__ import annotations

import asyncio
import hashlib
import re
import secrets
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from typing import Protocol, TypeVar

import msgspec

from hubbub.errors import ClientError, ErrorCode, HubbubError

T = TypeVar("T")
HEAD = 512
"""Bytes of a file's beginning that are kept, to see what it is."""
PIECE = 256 * 1024
"""Bytes that a thread reads, hashes or writes at once."""
KEY = re.compile(r"[a-z0-9]{2}/[a-z0-9][a-z0-9_-]{5,99}")


class FileMissing(HubbubError):
    """There is no file with this key (any more)."""


class StoredFile(msgspec.Struct, frozen=True):
    """What was stored: bytes, SHA-256 in hex, and the first 512 bytes."""

    size: int
    sha256: str
    head: bytes


class Files(Protocol):
    """Keeps files by key. All calls may come at once, from one loop.

    :raises ValueError: from all of them: this is not a key.
    """

    async def put(self, key: str, chunks: AsyncIterator[bytes], limit: int, media_type: str) -> StoredFile:
        """Store what ``chunks`` gives, at most ``limit`` bytes. It is durable when this returns, and not there before.

        Whatever is raised, ``chunks``' own errors and a cancellation too: nothing is left behind.

        :raises ClientError: ``too_large``; ``unavailable`` when the disk is full or the object store is away.
        """
        ...

    async def open(self, key: str, start: int = 0, end: int | None = None) -> AsyncIterator[bytes]:
        """The bytes from ``start`` up to, not including, ``end``: ``async for piece in await files.open(key)``.

        Nothing is held between two pieces, so a reader may stop anywhere.

        :raises FileMissing: at the call; or between two pieces, if the file is deleted meanwhile.
        :raises ClientError: ``unavailable``, when the object store is away.
        """
        ...

    async def size(self, key: str) -> int:
        """Bytes of the file. Raises as :meth:`open` does."""
        ...

    async def delete(self, key: str) -> None:
        """Remove the file, if it is there."""
        ...

    def keys(self) -> AsyncIterator[tuple[str, float]]:
        """All keys, each with the Unix time of its last write. What this server did not name is left out.

        A file is here a moment before anybody else knows its key, so a sweep must spare the young ones.
        """
        ...

    async def start(self) -> None:
        """Make ready.

        :raises ConfigurationError: nothing can be kept there.
        """
        ...

    async def stop(self) -> None:
        """Wait for what is under way in threads, and let them go."""
        ...


def new_key() -> str:
    """A key that nobody can guess: 128 random bits."""
    token = secrets.token_hex(16)
    return f"{token[:2]}/{token[2:]}"


def checked(key: str) -> str:
    """The key, if it is one: no path leads out of where the files are."""
    if not KEY.fullmatch(key):
        raise ValueError(f"{key!r} is not the key of a file; new_key() makes one")
    return key


async def finished(work: Awaitable[T]) -> T:
    """Wait for the end of work that cannot be stopped; a cancellation is raised after it, not before."""
    future = asyncio.ensure_future(work)
    cancelled = None
    while not future.done():
        try:
            await asyncio.wait((future,))
        except asyncio.CancelledError as error:
            cancelled = error
    if cancelled is None:
        return future.result()
    if not future.cancelled():
        future.exception()  # looked at, or the loop would complain that nobody did
    raise cancelled


async def gathered(chunks: AsyncIterator[bytes], limit: int) -> AsyncGenerator[bytes, None]:
    """The same bytes in pieces that are worth a thread; refused as soon as they are too many."""
    size, held = 0, bytearray()
    async for chunk in chunks:
        size += len(chunk)
        if size > limit:
            raise ClientError(ErrorCode.TOO_LARGE, f"a file may have at most {limit:,} bytes here")
        held += chunk
        if len(held) >= PIECE:
            yield bytes(held)
            held.clear()
    if held:
        yield bytes(held)


async def slices(
    read: Callable[[str, int, int], Awaitable[bytes]], key: str, start: int, end: int, step: int
) -> AsyncIterator[bytes]:
    """What ``read`` gives from ``start`` to ``end``, ``step`` bytes at once."""
    while start < end:
        piece = await read(key, start, min(start + step, end))
        if not piece:
            raise FileMissing(f"{key} has become shorter")
        yield piece
        start += len(piece)


class Tally:
    """Counts and hashes what goes by."""

    def __init__(self) -> None:
        self._size = 0
        self._head = b""
        self._digest = hashlib.sha256()

    def take(self, piece: bytes) -> None:
        self._head += piece[: HEAD - len(self._head)]
        self._size += len(piece)
        self._digest.update(piece)

    def result(self) -> StoredFile:
        return StoredFile(self._size, self._digest.hexdigest(), self._head)
