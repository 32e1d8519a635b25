"""Files in a bucket."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable
from contextlib import aclosing, suppress
from datetime import timedelta
from typing import TYPE_CHECKING, TypeVar

from hubbub.errors import ClientError, ConfigurationError, ErrorCode
from hubbub.files.port import KEY, FileMissing, StoredFile, Tally, checked, finished, gathered, slices
from hubbub.files.serving import SERVED, UNKNOWN, plain_type

if TYPE_CHECKING:
    from obstore import AsyncWritableFile

log = logging.getLogger("hubbub")
T = TypeVar("T")
PART = 5 * 1024 * 1024
"""Bytes of one part of an upload: the least that S3 takes. A smaller file goes up in one request."""
FETCH = 1024 * 1024
"""Bytes asked for at once, in a request of its own each, so that no slow reader runs into a timeout."""
AWAY_RETRY = 5.0


class ObjectFiles:
    """Files in a bucket, through obstore: ``s3://bucket/prefix`` (and what speaks S3), ``gs://``, ``az://``.

    Credentials, region and endpoint come from the environment, as obstore reads it: ``AWS_ACCESS_KEY_ID``,
    ``AWS_SECRET_ACCESS_KEY``, ``AWS_REGION``, ``AWS_ENDPOINT_URL``, …. A process that is killed in the middle of a large
    upload leaves parts that no listing shows: let the bucket's lifecycle rules remove unfinished uploads.

    :raises ConfigurationError: obstore is not installed, or cannot make anything of the URL and the environment.
    """

    def __init__(self, url: str) -> None:
        try:
            import obstore
            from obstore.store import from_url
        except ImportError as error:
            raise ConfigurationError("files in a bucket need obstore: pip install 'hubbub[s3]'") from error
        self._obstore = obstore
        self._faults = (obstore.exceptions.BaseError, OSError)
        self._describes = not url.startswith("file:")  # a plain directory has no place for a media type
        try:
            if url.startswith(("file:", "memory:")):
                self._store = from_url(url)
            else:
                self._store = from_url(url, retry_config={"max_retries": 3, "retry_timeout": timedelta(seconds=15)})
        except (*self._faults, ValueError) as error:
            raise ConfigurationError(f"files cannot be kept where HUBBUB_FILES says: {_first_line(error)}") from error

    async def start(self) -> None:
        """Nothing to do: a bucket that is away for a moment must not stop a server from starting."""

    async def stop(self) -> None:
        """Nothing to do: no request outlives the call that made it."""

    async def put(self, key: str, chunks: AsyncIterator[bytes], limit: int, media_type: str) -> StoredFile:
        writer = self._writer(checked(key), media_type)
        tally, closing = Tally(), False
        try:
            async with aclosing(gathered(chunks, limit)) as pieces:
                async for piece in pieces:
                    await finished(asyncio.to_thread(tally.take, piece))
                    await finished(self._asked(writer.write(piece)))
            closing = True
            await finished(self._asked(writer.close()))
        except BaseException as error:
            await finished(self._undo(writer, key, error, closing))
            raise
        return tally.result()

    async def open(self, key: str, start: int = 0, end: int | None = None) -> AsyncIterator[bytes]:
        size = await self.size(key)
        return slices(self._read, key, start, size if end is None else min(end, size), FETCH)

    async def size(self, key: str) -> int:
        return (await self._asked(self._obstore.head_async(self._store, checked(key)), key))["size"]

    async def delete(self, key: str) -> None:
        with suppress(FileMissing):
            await self._asked(self._obstore.delete_async(self._store, checked(key)), key)

    async def keys(self) -> AsyncIterator[tuple[str, float]]:
        batches = self._obstore.list(self._store, chunk_size=1000)
        with suppress(StopAsyncIteration):  # a loop of its own, since each batch is a request that may fail
            while True:
                for item in await self._asked(batches.__anext__()):
                    if KEY.fullmatch(item["path"]):
                        yield item["path"], item["last_modified"].timestamp()

    def _writer(self, key: str, media_type: str) -> AsyncWritableFile:
        kind = plain_type(media_type)
        described = {
            "Content-Type": kind if kind in SERVED else UNKNOWN,
            "Content-Disposition": "attachment",  # should the bucket ever be open to browsers
        }
        return self._obstore.open_writer_async(
            self._store, key, attributes=described if self._describes else None, buffer_size=PART, max_concurrency=2
        )

    async def _read(self, key: str, start: int, end: int) -> bytes:
        return bytes(await self._asked(self._obstore.get_range_async(self._store, key, start=start, end=end), key))

    async def _asked(self, answer: Awaitable[T], key: str | None = None) -> T:
        """The store's answer. Its "not found" is about ``key``, if one is named, and about the bucket otherwise."""
        try:
            return await answer
        except self._faults as error:
            if key is not None and isinstance(error, FileNotFoundError):
                raise FileMissing(key) from error
            log.error("the object store of the files does not do its work: %s", _first_line(error))
            message = "files cannot be reached now; try again in a moment"
            raise ClientError(ErrorCode.UNAVAILABLE, message, retry_after=AWAY_RETRY) from error

    async def _undo(self, writer: AsyncWritableFile, key: str, error: BaseException, closing: bool) -> None:
        try:
            if closing:  # the store may have it, whatever it said
                await self._obstore.delete_async(self._store, key)
            else:  # a writer has no abort(): to leave it with an error is that
                await writer.__aexit__(type(error), error, None)
        except FileNotFoundError:
            return
        except self._faults as fault:
            log.warning("what a failed upload left could not be removed: %s", _first_line(fault), extra={"key": key})


def _first_line(error: BaseException) -> str:
    return str(error).split("\n", 1)[0]
