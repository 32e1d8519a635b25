"""Where the bytes of attachments are kept, and how they are served so that they do no harm.

A key names one file and is used once; :func:`new_key` makes one. This module knows keys and bytes only. Whose file it is,
and who may read it, is the business of who keeps the key.
"""

from __future__ import annotations

import asyncio
import codecs
import errno
import hashlib
import logging
import os
import re
import secrets
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing, suppress
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, TypeVar
from urllib.parse import quote, urlsplit
from urllib.request import url2pathname

import msgspec

from hubbub.errors import ClientError, ConfigurationError, ErrorCode, HubbubError

if TYPE_CHECKING:
    from obstore import AsyncWritableFile

log = logging.getLogger("hubbub")
T = TypeVar("T")

HEAD = 512
"""Bytes of a file's beginning that are kept for :func:`media_type_of`."""
PIECE = 256 * 1024
"""Bytes that a thread reads, hashes or writes at once."""
PART = 5 * 1024 * 1024
"""Bytes of one part of an upload to an object store: the least that S3 takes. A smaller file goes up in one request."""
FETCH = 1024 * 1024
"""Bytes asked of an object store at once. A request of its own for each, so that no slow reader runs into a timeout."""
THREADS = 4
FORGOTTEN = 86_400.0
"""Seconds without a write after which a temporary file belongs to an upload that died."""
FULL_RETRY, AWAY_RETRY = 60.0, 5.0
NO_ROOM = (errno.ENOSPC, errno.EDQUOT)
NAME_LENGTH = 200

_TEMPORARY = "incoming"
_FOLDER = re.compile(r"[a-z0-9]{2}")
_KEY = re.compile(r"[a-z0-9]{2}/[a-z0-9][a-z0-9_-]{5,99}")


class FileMissing(HubbubError):
    """There is no file with this key (any more)."""


class RangeNotSatisfiable(HubbubError):
    """The range begins behind the file's end: answer 416 with ``Content-Range: bytes */size``."""


class StoredFile(msgspec.Struct, frozen=True):
    """What was stored: bytes, SHA-256 in hex, and the first 512 bytes."""

    size: int
    sha256: str
    head: bytes


class Files(Protocol):
    """Keeps files by key. All calls may come at once, from one loop. A key that no server made is a ``ValueError``."""

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


def files_from(place: str, data_dir: Path) -> Files:
    """The files at ``place``: a directory, ``file://…``, or a bucket (``s3://bucket/prefix``, ``gs://``, ``az://``).

    Nothing means ``files`` below the data directory; ``memory://`` is for tests.

    :raises ConfigurationError: the place is none of these, or obstore is not installed.
    """
    if not place:
        return DiskFiles(data_dir / "files")
    if "://" not in place:
        return DiskFiles(Path(place).expanduser())
    url = urlsplit(place)
    if url.scheme in ("s3", "gs", "az", "memory"):
        return ObjectFiles(place)
    if url.scheme != "file" or url.netloc not in ("", "localhost") or url.path in ("", "/"):
        raise ConfigurationError(
            f"files cannot be kept in {url.scheme}://…: name a directory, file:///with/three/slashes, "
            "or a bucket as s3://bucket/prefix, gs://bucket/prefix or az://container/prefix"
        )
    return DiskFiles(Path(url2pathname(url.path)))


def _checked(key: str) -> str:
    if not _KEY.fullmatch(key):
        raise ValueError(f"{key!r} is not the key of a file; new_key() makes one")
    return key


async def _finished(work: Awaitable[T]) -> T:
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


async def _pieces(chunks: AsyncIterator[bytes], limit: int) -> AsyncGenerator[bytes, None]:
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


async def _slices(
    read: Callable[[str, int, int], Awaitable[bytes]], key: str, start: int, end: int, step: int
) -> AsyncIterator[bytes]:
    while start < end:
        piece = await read(key, start, min(start + step, end))
        if not piece:
            raise FileMissing(f"{key} has become shorter")
        yield piece
        start += len(piece)


class _Tally:
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


# -- on disk ---------------------------------------------------------------------------------------------------------


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
        self._temporary = root / _TEMPORARY / secrets.token_hex(16)
        self._target = root / key
        self._fd = -1
        self._placed = False
        self._tally = _Tally()

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
                f"files cannot be kept in {self.directory} ({error.strerror}): name a directory that the server may write"
            ) from error

    async def stop(self) -> None:
        pool, self._pool = self._pool, None
        if pool is not None:
            await _finished(asyncio.to_thread(pool.shutdown))

    async def put(self, key: str, chunks: AsyncIterator[bytes], limit: int, media_type: str) -> StoredFile:
        upload = _Upload(self.directory, _checked(key))
        try:
            await self._run(upload.begin)
            async with aclosing(_pieces(chunks, limit)) as pieces:
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
        return _slices(self._read, key, start, size if end is None else min(end, size), PIECE)

    async def size(self, key: str) -> int:
        path = self.directory / _checked(key)
        try:
            return (await self._run(path.stat)).st_size
        except FileNotFoundError as error:
            raise FileMissing(key) from error

    async def delete(self, key: str) -> None:
        path = self.directory / _checked(key)
        with suppress(FileNotFoundError):
            await self._run(path.unlink)

    async def keys(self) -> AsyncIterator[tuple[str, float]]:
        for folder in await self._run(self._folders):
            for found in await self._run(self._in_folder, folder):
                yield found

    async def _run(self, work: Callable[..., T], *values: object) -> T:
        return await _finished(asyncio.get_running_loop().run_in_executor(self._pool, work, *values))

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
        for path in (self.directory / _TEMPORARY).glob("*"):
            with suppress(FileNotFoundError):
                if path.stat().st_mtime < old:
                    path.unlink()
        return sorted(path.name for path in self.directory.glob("*") if _FOLDER.fullmatch(path.name) and path.is_dir())

    def _in_folder(self, folder: str) -> list[tuple[str, float]]:
        found = []
        with os.scandir(self.directory / folder) as entries:
            for entry in entries:
                key = f"{folder}/{entry.name}"
                with suppress(FileNotFoundError):  # deleted meanwhile
                    if _KEY.fullmatch(key) and entry.is_file(follow_symlinks=False):
                        found.append((key, entry.stat(follow_symlinks=False).st_mtime))
        return found


# -- in an object store ----------------------------------------------------------------------------------------------


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
        self._local = url.startswith(("file:", "memory:"))
        try:
            if self._local:
                self._store = from_url(url)
            else:
                self._store = from_url(url, retry_config={"max_retries": 3, "retry_timeout": timedelta(seconds=15)})
        except (*self._faults, ValueError) as error:
            raise ConfigurationError(f"files cannot be kept there: {_first_line(error)}") from error

    async def start(self) -> None:
        """Nothing to do: a bucket that is away for a moment must not stop a server from starting."""

    async def stop(self) -> None:
        """Nothing to do: no request outlives the call that made it."""

    async def put(self, key: str, chunks: AsyncIterator[bytes], limit: int, media_type: str) -> StoredFile:
        writer = self._writer(_checked(key), media_type)
        tally, closing = _Tally(), False
        try:
            async with aclosing(_pieces(chunks, limit)) as pieces:
                async for piece in pieces:
                    await _finished(asyncio.to_thread(tally.take, piece))
                    await _finished(self._asked(writer.write(piece)))
            closing = True
            await _finished(self._asked(writer.close()))
        except BaseException as error:
            await _finished(self._undo(writer, key, error, closing))
            raise
        return tally.result()

    async def open(self, key: str, start: int = 0, end: int | None = None) -> AsyncIterator[bytes]:
        size = await self.size(key)
        return _slices(self._read, key, start, size if end is None else min(end, size), FETCH)

    async def size(self, key: str) -> int:
        return (await self._asked(self._obstore.head_async(self._store, _checked(key)), key))["size"]

    async def delete(self, key: str) -> None:
        with suppress(FileMissing):
            await self._asked(self._obstore.delete_async(self._store, _checked(key)), key)

    async def keys(self) -> AsyncIterator[tuple[str, float]]:
        batches = self._obstore.list(self._store, chunk_size=1000)
        while batch := await self._asked(anext(batches, ())):
            for item in batch:
                if _KEY.fullmatch(item["path"]):
                    yield item["path"], item["last_modified"].timestamp()

    def _writer(self, key: str, media_type: str) -> AsyncWritableFile:
        kind = _plain_type(media_type)
        described = {
            "Content-Type": kind if kind in SERVED else UNKNOWN,
            "Content-Disposition": "attachment",  # should the bucket ever be open to browsers
        }
        return self._obstore.open_writer_async(
            self._store, key, attributes=None if self._local else described, buffer_size=PART, max_concurrency=2
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


# -- what a file is served as ----------------------------------------------------------------------------------------

UNKNOWN = "application/octet-stream"
_MAGIC = tuple(
    (re.compile(pattern, re.DOTALL), types)
    for pattern, *types in (
        (rb"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", "image/png"),
        (rb"\xff\xd8\xff[\xc0-\xfe]", "image/jpeg"),
        (rb"GIF8[79]a", "image/gif"),
        (rb"RIFF....WEBPVP8[ LX]", "image/webp"),
        (rb"....ftypavi[fs]", "image/avif"),
        (rb"ID3[\x02-\x04][\0-\xfe].[\0-\x7f]{4}", "audio/mpeg"),
        (rb"\xff[\xe2\xe3\xf2\xf3\xfa\xfb][\x10-\xef]", "audio/mpeg"),
        (rb"OggS\0[\0-\x07].{20}", "audio/ogg", "video/ogg"),
        (rb"RIFF....WAVE", "audio/wav"),
        (rb"....ftypM4[AB] ", "audio/mp4"),
        (rb"....ftyp(?:iso[m2-9]|mp4[12]|avc1|M4V |dash|MSNV)", "video/mp4", "audio/mp4"),
        (rb"\x1aE\xdf\xa3.{1,60}?B\x82\x84webm", "video/webm", "audio/webm"),
        (rb"%PDF-[12]\.[0-9]", "application/pdf"),
    )
)
"""How a file of each type begins. Of several types, the one that is claimed, or the first."""
SERVED = frozenset(kind for _, types in _MAGIC for kind in types) | {"text/plain"}
INLINE = frozenset(kind for kind in SERVED if kind.startswith(("image/", "audio/", "video/")))
_SAME = {
    "image/jpg": "image/jpeg", "image/pjpeg": "image/jpeg", "audio/mp3": "audio/mpeg", "audio/x-wav": "audio/wav",
    "audio/wave": "audio/wav", "audio/vnd.wave": "audio/wav", "audio/m4a": "audio/mp4", "audio/x-m4a": "audio/mp4",
    "application/ogg": "audio/ogg", "audio/opus": "audio/ogg", "video/x-m4v": "video/mp4",
    "text/markdown": "text/plain", "text/csv": "text/plain", "application/json": "text/plain",
}  # fmt: skip
_ACTIVE = re.compile(r"(?:[sx]?html?|xht|mht(?:ml)?|hta|svgz?|xml|xslt?|rdf|rss|atom|[cm]?jsx?|swf)", re.IGNORECASE)
"""Ends of names that a browser or a desktop takes for markup or programs."""
_MARKUP = re.compile(r"\ufeff?\s*<[a-z!?/]", re.IGNORECASE)
_NOT_TEXT = re.compile(r"[\0-\x08\x0b\x0e-\x1f\x7f-\x84\x86-\x9f]")


def media_type_of(head: bytes, claimed: str, name: str) -> str:
    """What a file is served as: one of :data:`SERVED`, if its bytes are that and its sender does not say otherwise.

    Everything else is ``application/octet-stream``; so is what a browser could run: HTML, SVG, XML, JavaScript.

    :param head: its first 512 bytes, or all of it.
    :param claimed: what its sender says: a media type, perhaps with parameters, or nothing.
    :param name: what its sender calls it.
    """
    if _ACTIVE.fullmatch(clean_name(name).rpartition(".")[2]):
        return UNKNOWN
    types = next((types for pattern, types in _MAGIC if pattern.match(head)), None)
    if types is None:
        types = ["text/plain"] if _is_text(head) else [UNKNOWN]
    kind = _plain_type(claimed)
    if kind in ("", UNKNOWN):
        return types[0]
    return kind if kind in types else UNKNOWN


def _plain_type(media_type: str) -> str:
    kind = media_type.partition(";")[0].strip().lower()
    return _SAME.get(kind, kind)


def _is_text(head: bytes) -> bool:
    try:  # a character may be cut in two where the head ends
        text = codecs.getincrementaldecoder("utf-8")().decode(head[:HEAD], final=len(head) < HEAD)
    except UnicodeDecodeError:
        return False
    return not _NOT_TEXT.search(text) and not _MARKUP.match(text)


_UNWANTED = re.compile(
    r"[/\\\"'`:*?<>|\0-\x1f\x7f-\x9f\u061c\u200b\u200e\u200f\u2028-\u202e\u2060\u2066-\u2069\ufeff\ud800-\udfff]"
)
"""Not in names: what paths, quotes and Windows use, controls, what turns the direction of writing, half characters."""
_ENDS = re.compile(r"\A[\s.]+|[\s.]+\Z")
_SHA256 = re.compile(r"[0-9a-f]{64}")


def clean_name(name: str) -> str:
    """A name that is only a name: no path, 1 to 200 characters, no dot first, nothing that hides or turns what is shown."""
    base = name.replace("\\", "/").rstrip("/").rpartition("/")[2]
    clean = _ENDS.sub("", _UNWANTED.sub("", base))
    if len(clean) > NAME_LENGTH:
        dot, kind = clean.rpartition(".")[1:]
        tail = dot + kind if len(kind) <= 16 else ""
        clean = _ENDS.sub("", clean[: NAME_LENGTH - len(tail)]) + tail
    return clean or "file"


def serving_headers(media_type: str, name: str, size: int, sha256: str) -> dict[str, str]:
    """The headers of a whole file: shown in place if it is an image, sound or film, saved otherwise, run never.

    :param media_type: from :func:`media_type_of`; one that is not in :data:`SERVED` becomes ``application/octet-stream``.
    :raises ValueError: ``sha256`` is not 64 hex digits.
    """
    if not _SHA256.fullmatch(sha256):
        raise ValueError("the SHA-256 of a file is 64 hex digits")
    kind = media_type if media_type in SERVED else UNKNOWN
    clean = clean_name(name)
    # RFC 6266 appendix D: no "%" in the plain form, which some read as an escape
    plain = "".join(c if " " <= c <= "~" and c != "%" else "_" for c in clean)
    shown = "inline" if kind in INLINE else "attachment"
    return {
        "Content-Type": "text/plain; charset=utf-8" if kind == "text/plain" else kind,
        "Content-Length": str(size),
        "Content-Disposition": f"{shown}; filename=\"{plain}\"; filename*=UTF-8''{quote(clean, safe='')}",
        "X-Content-Type-Options": "nosniff",
        "Content-Security-Policy": "default-src 'none'; sandbox",
        "Cross-Origin-Resource-Policy": "same-origin",
        "Referrer-Policy": "no-referrer",
        "Cache-Control": "private, max-age=31536000, immutable",
        "ETag": f'"{sha256}"',
        "Accept-Ranges": "bytes",
    }


_RANGE = re.compile(r"[ \t]*bytes=[ \t]*([0-9]{0,30})-([0-9]{0,30})[ \t]*", re.IGNORECASE)


def parse_range(header: str | None, size: int) -> tuple[int, int] | None:
    """The one range that a ``Range`` header asks for, as ``(start, end)`` without ``end`` (RFC 9110, 14.1.2 and 14.2).

    None means to send it all: no header, a malformed one, several ranges, or the last bytes of an empty file.

    :raises RangeNotSatisfiable: there is no such byte.
    """
    found = _RANGE.fullmatch(header or "")
    first, last = found.groups() if found else ("", "")
    if not first and not last:
        return None
    if not first:
        length = min(int(last), size)
        if int(last) == 0:
            raise RangeNotSatisfiable("the last 0 bytes are nothing")
        return (size - length, size) if size else None
    if last and int(last) < int(first):
        return None
    if int(first) >= size:
        raise RangeNotSatisfiable(f"there are only {size} bytes")
    return int(first), min(int(last) + 1, size) if last else size
