"""Files in a directory."""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import re
import secrets
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing, suppress
from pathlib import Path
from typing import TypeVar

from hubbub.errors import ClientError, ConfigurationError, ErrorCode
from hubbub.files.port import KEY, PIECE, FileMissing, StoredFile, Tally, checked, finished, gathered, new_key, slices

log = logging.getLogger("hubbub")
T = TypeVar("T")
THREADS = 4
FORGOTTEN = 86_400.0
"""Seconds without a write after which a temporary file belongs to an upload that died."""
FULL_RETRY = 60.0
NO_ROOM = (errno.ENOSPC, errno.EDQUOT)
TEMPORARY = "incoming"
FOLDER = re.compile(r"[a-z0-9]{2}")


def _sync(directory: Path) -> None:
    """Make a directory's entries durable (where directories can be opened: not on Windows)."""
    if os.name == "posix":
        fd = os.open(directory, os.O_RDONLY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)


def _make(directory: Path) -> None:
    """Make a directory for its owner alone, and those above it, durably."""
    if not directory.is_dir():
        _make(directory.parent)
        directory.mkdir(0o700, exist_ok=True)
        _sync(directory.parent)


class _Upload:
    """A file on its way, as steps for a thread: begin, write…, commit; or abandon, after any of them."""

    def __init__(self, root: Path, key: str) -> None:
        self._root = root
        self._temporary = root / TEMPORARY / secrets.token_hex(16)
        self._target = root / key
        self._fd = -1
        self._placed = False
        self._tally = Tally()

    def begin(self) -> None:
        _make(self._temporary.parent)
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)
        self._fd = os.open(self._temporary, flags, 0o600)

    def write(self, piece: bytes) -> None:
        self._tally.take(piece)
        rest = memoryview(piece)
        while rest:
            rest = rest[os.write(self._fd, rest) :]

    def commit(self) -> StoredFile:
        os.fsync(self._fd)
        self._close()
        _make(self._target.parent)
        os.replace(self._temporary, self._target)
        self._placed = True
        _sync(self._target.parent)
        _sync(self._root)  # another upload may have made the folder, and not have come to this yet
        return self._tally.result()

    def abandon(self) -> None:
        self._close()
        self._temporary.unlink(missing_ok=True)
        if self._placed:
            self._target.unlink(missing_ok=True)

    def _close(self) -> None:
        fd, self._fd = self._fd, -1
        if fd != -1:
            os.close(fd)


class DiskFiles:
    """Files in a directory: ``ab/cdef…`` below it, for their owner alone (0700, 0600). Several processes may share it.

    :param directory: made when it is needed.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._pool: ThreadPoolExecutor | None = None

    async def start(self) -> None:
        self._pool = ThreadPoolExecutor(THREADS, "hubbub-files")
        try:
            await self._run(self._try)
        except OSError as error:
            await self.stop()
            raise ConfigurationError(
                f"files cannot be kept in {self.directory} ({error.strerror}): "
                "set HUBBUB_FILES to a directory that the server may write in"
            ) from error

    async def stop(self) -> None:
        pool, self._pool = self._pool, None
        if pool is not None:
            await finished(asyncio.to_thread(pool.shutdown))

    async def put(self, key: str, chunks: AsyncIterator[bytes], limit: int, media_type: str) -> StoredFile:
        upload = _Upload(self.directory, checked(key))
        try:
            await self._run(upload.begin)
            async with aclosing(gathered(chunks, limit)) as pieces:
                async for piece in pieces:
                    await self._run(upload.write, piece)
            return await self._run(upload.commit)
        except BaseException as error:
            await self._run(upload.abandon)
            if isinstance(error, OSError) and error.errno in NO_ROOM:
                log.error("the disk is full: a file could not be stored", extra={"directory": str(self.directory)})
                message = "the server has no room for files now; try again later"
                raise ClientError(ErrorCode.UNAVAILABLE, message, retry_after=FULL_RETRY) from error
            raise

    async def open(self, key: str, start: int = 0, end: int | None = None) -> AsyncIterator[bytes]:
        size = await self.size(key)
        return slices(self._read, key, start, size if end is None else min(end, size), PIECE)

    async def size(self, key: str) -> int:
        path = self.directory / checked(key)
        try:
            return (await self._run(path.stat)).st_size
        except FileNotFoundError as error:
            raise FileMissing(key) from error

    async def delete(self, key: str) -> None:
        path = self.directory / checked(key)
        with suppress(FileNotFoundError):
            await self._run(path.unlink)

    async def keys(self) -> AsyncIterator[tuple[str, float]]:
        for folder in await self._run(self._folders):
            for found in await self._run(self._in_folder, folder):
                yield found

    async def _run(self, work: Callable[..., T], *values: object) -> T:
        return await finished(asyncio.get_running_loop().run_in_executor(self._pool, work, *values))

    async def _read(self, key: str, start: int, end: int) -> bytes:
        def read() -> bytes:
            with (self.directory / key).open("rb", buffering=0) as file:
                file.seek(start)
                return file.read(end - start)

        try:
            return await self._run(read)
        except FileNotFoundError as error:
            raise FileMissing(key) from error

    def _try(self) -> None:
        upload = _Upload(self.directory, new_key())
        try:
            upload.begin()
        except OSError as error:
            if error.errno not in NO_ROOM:  # a full disk is no reason not to start: what is there can be read
                raise
        finally:
            upload.abandon()

    def _folders(self) -> list[str]:
        """The folders of files, after removing what uploads left that were killed."""
        old = time.time() - FORGOTTEN
        for path in (self.directory / TEMPORARY).glob("*"):
            with suppress(FileNotFoundError):
                if path.stat().st_mtime < old:
                    path.unlink()
        return sorted(path.name for path in self.directory.glob("*") if FOLDER.fullmatch(path.name) and path.is_dir())

    def _in_folder(self, folder: str) -> list[tuple[str, float]]:
        found = []
        with os.scandir(self.directory / folder) as entries:
            for entry in entries:
                key = f"{folder}/{entry.name}"
                with suppress(FileNotFoundError):  # deleted meanwhile
                    if KEY.fullmatch(key) and entry.is_file(follow_symlinks=False):
                        found.append((key, entry.stat(follow_symlinks=False).st_mtime))
        return found
