"""Files are kept whole or not at all, wherever they are; and whatever a browser is sent of them does no harm.

Object stores are shown with obstore's own stores in memory and in a directory: the same calls that go to S3.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator
from contextlib import aclosing
from pathlib import Path
from typing import cast
from urllib.parse import unquote_to_bytes

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from hubbub.errors import ClientError, ConfigurationError, ErrorCode
from hubbub.files import (
    DiskFiles,
    FileMissing,
    Files,
    ObjectFiles,
    RangeNotSatisfiable,
    clean_name,
    files_from,
    media_type_of,
    new_key,
    parse_range,
    serving_headers,
)
from hubbub.files.disk import FORGOTTEN
from hubbub.files.objects import PART
from hubbub.files.port import HEAD, PIECE
from hubbub.files.serving import INLINE, SERVED
from tests.support import DEADLINE, until

OCTETS = "application/octet-stream"
LARGE = 64 * 1024 * 1024
SOME_SHA256 = hashlib.sha256(b"").hexdigest()


async def chunks_of(data: bytes, size: int = 64 * 1024) -> AsyncIterator[bytes]:
    for start in range(0, len(data), size):
        yield data[start : start + size]
    yield b""  # as Starlette's Request.stream() ends


def noise(size: int) -> bytes:
    return (hashlib.sha256(str(size).encode()).digest() * (size // 32 + 1))[:size]


async def put(files: Files, data: bytes, key: str | None = None, limit: int = LARGE) -> str:
    key = key or new_key()
    await files.put(key, chunks_of(data), limit, "image/png")
    return key


async def read(files: Files, key: str, start: int = 0, end: int | None = None) -> bytes:
    return b"".join([piece async for piece in await files.open(key, start, end)])


async def times(files: Files) -> dict[str, float]:
    listing = files.keys()
    return {key: at async for key, at in listing}


async def names(files: Files) -> list[str]:
    return sorted(await times(files))


def below(directory: Path) -> list[Path]:
    return sorted(path for path in directory.rglob("*") if not path.is_dir())


class Place:
    """A backend, and what it holds altogether: whole files, and halves that no listing shows."""

    def __init__(self, files: Files, directory: Path | None) -> None:
        self.files = files
        self._directory = directory

    async def count(self) -> int:
        return len(await names(self.files) if self._directory is None else below(self._directory))


@pytest.fixture(params=["disk", "memory", "local"])
async def place(request: pytest.FixtureRequest, tmp_path: Path, anyio_backend: object) -> AsyncIterator[Place]:
    files: dict[str, Callable[[], Files]] = {
        "disk": lambda: DiskFiles(tmp_path),
        "memory": lambda: ObjectFiles("memory:///"),
        "local": lambda: ObjectFiles(tmp_path.as_uri()),
    }
    here = Place(files[request.param](), None if request.param == "memory" else tmp_path)
    await here.files.start()
    yield here
    await here.files.stop()


@pytest.fixture
async def disk(tmp_path: Path, anyio_backend: object) -> AsyncIterator[DiskFiles]:
    files = DiskFiles(tmp_path / "files")
    await files.start()
    yield files
    await files.stop()


class Stuck:
    """Chunks that stop coming after some."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self.reached = asyncio.Event()

    async def __aiter__(self) -> AsyncIterator[bytes]:
        async for chunk in chunks_of(self._data):
            yield chunk
        self.reached.set()
        await asyncio.Event().wait()


@pytest.mark.anyio
class TestEveryPlace:
    @pytest.mark.parametrize("size", [0, 1, HEAD, PIECE, PIECE + 1, 3 * PIECE + 7, PART, 2 * PART + 12_345])
    async def test_what_goes_in_comes_out(self, place: Place, size: int) -> None:
        data = noise(size)
        key = new_key()
        stored = await place.files.put(key, chunks_of(data), size, "image/png")
        assert (stored.size, stored.sha256) == (size, hashlib.sha256(data).hexdigest())
        assert stored.head == data[:HEAD]
        assert await place.files.size(key) == size
        assert await read(place.files, key) == data
        assert await place.count() == 1

    async def test_the_head_is_right_however_the_bytes_are_cut(self, place: Place) -> None:
        data = noise(1000)
        stored = await place.files.put(new_key(), chunks_of(data, 7), LARGE, "")
        assert stored.head == data[:HEAD]

    @pytest.mark.parametrize("size", [10, PIECE, PART + 1])
    async def test_the_limit_is_exact(self, place: Place, size: int) -> None:
        with pytest.raises(ClientError) as refused:
            await put(place.files, noise(size + 1), limit=size)
        assert refused.value.code == ErrorCode.TOO_LARGE
        assert await place.count() == 0
        await put(place.files, noise(size), limit=size)
        assert await place.count() == 1

    async def test_what_is_too_large_is_not_read_to_its_end(self, place: Place) -> None:
        async def endless() -> AsyncGenerator[bytes, None]:
            while True:
                yield bytes(PIECE)

        async with aclosing(endless()) as chunks:
            with pytest.raises(ClientError, match="at most 1,000,000 bytes"):
                await place.files.put(new_key(), chunks, 1_000_000, "")
        assert await place.count() == 0

    @pytest.mark.parametrize("sent", [0, 100, 2 * PIECE, 2 * PART])
    async def test_a_sender_that_fails_leaves_nothing(self, place: Place, sent: int) -> None:
        async def broken() -> AsyncIterator[bytes]:
            async for chunk in chunks_of(noise(sent)):
                yield chunk
            raise ConnectionResetError("the client is gone")

        with pytest.raises(ConnectionResetError, match="the client is gone"):
            await place.files.put(new_key(), broken(), LARGE, "")
        assert await place.count() == 0

    @pytest.mark.parametrize("sent", [0, 100, 2 * PIECE, 2 * PART])
    async def test_a_cancelled_upload_leaves_nothing(self, place: Place, sent: int) -> None:
        stuck = Stuck(noise(sent))
        upload = asyncio.create_task(place.files.put(new_key(), aiter(stuck), LARGE, ""))
        async with asyncio.timeout(DEADLINE):
            await stuck.reached.wait()
        upload.cancel()
        with pytest.raises(asyncio.CancelledError):
            await upload
        assert await place.count() == 0

    @pytest.mark.parametrize("size", [100, 3 * PIECE])
    async def test_cancelled_at_any_turn_it_is_there_whole_or_not_at_all(self, place: Place, size: int) -> None:
        done = 0
        for turns in (int(1.2**n) for n in range(80)):
            key = new_key()
            upload = asyncio.create_task(place.files.put(key, chunks_of(noise(size)), LARGE, ""))
            for _ in range(turns):
                await asyncio.sleep(0)
            upload.cancel()
            upload.cancel()
            try:
                await upload
            except asyncio.CancelledError:
                assert await place.count() == 0, f"after {turns} turns"
            else:
                assert await read(place.files, key) == noise(size)
                await place.files.delete(key)
                done += 1
                if done == 3:
                    break
        assert done == 3, "some must have come to their end"

    async def test_a_deadline_stops_an_upload(self, place: Place) -> None:
        stuck = Stuck(noise(PIECE))

        async def within_a_deadline() -> None:
            async with asyncio.timeout(None) as deadline:
                reached = asyncio.create_task(stuck.reached.wait())
                reached.add_done_callback(lambda _: deadline.reschedule(0))
                await place.files.put(new_key(), aiter(stuck), LARGE, "")

        with pytest.raises(TimeoutError):
            await within_a_deadline()
        assert await place.count() == 0

    async def test_ranges(self, place: Place) -> None:
        data = noise(3 * PIECE + 100)
        key = await put(place.files, data)
        for start, end in [
            (0, 0), (0, 1), (5, 5), (PIECE - 1, PIECE + 1), (7, None), (len(data) - 1, None), (len(data), None),
            (len(data) + 5, None), (0, len(data)), (1, len(data) + 100), (PIECE, 3 * PIECE), (9, 3),
        ]:  # fmt: skip
            assert await read(place.files, key, start, end) == data[start:end], (start, end)

    async def test_a_reader_may_stop_anywhere(self, place: Place) -> None:
        key = await put(place.files, noise(5 * PIECE))
        async for _ in await place.files.open(key):
            break
        await place.files.open(key)  # and never look at it

    async def test_what_is_not_there(self, place: Place) -> None:
        key = await put(place.files, noise(10))
        missing = new_key()
        with pytest.raises(FileMissing):
            await place.files.open(missing)
        with pytest.raises(FileMissing):
            await place.files.size(missing)
        await place.files.delete(missing)
        await place.files.delete(key)
        await place.files.delete(key)
        with pytest.raises(FileMissing):
            await place.files.open(key)
        assert await names(place.files) == []

    async def test_what_is_deleted_while_it_is_read_ends_there(self, place: Place) -> None:
        key = await put(place.files, noise(5 * PART))
        pieces = await place.files.open(key)
        await anext(pieces)
        await place.files.delete(key)
        with pytest.raises(FileMissing):
            await anext(pieces)

    async def test_keys_are_listed_with_their_times(self, place: Place) -> None:
        before = time.time()
        keys = [await put(place.files, b"x") for _ in range(30)]
        found = await times(place.files)
        assert sorted(found) == sorted(keys)
        # the clock of a file system is some milliseconds behind
        assert all(before - 1 <= at <= time.time() + 1 for at in found.values())

    @pytest.mark.parametrize(
        "key",
        [
            "", "x", "ab", "ab/", "/ab/cdefgh", "ab/cdefgh/", "../ab/cdefgh", "ab/../../etc", "../../etc/passwd", "ab//cdefgh",
            "ab/cdef.gh", "ab/cdefgh.png", "ab/.cdefgh", "ab/cdefgh\n", "ab/cdefgh\0", "AB/cdefgh", "ab/CDEFGH", "ab\\cdefgh",
            "ab/cdef gh", "ab/cdefgh/ijklmn", "abc/defghi", "ab/" + "x" * 101, "ab/ｃｄｅｆｇｈ", "ab/%2e%2e", "incoming/abcdef",
            "ab/-cdefgh", "~/abcdefgh", "ab/cdef:gh",
        ],
    )  # fmt: skip
    async def test_only_keys_are_keys(self, place: Place, key: str) -> None:
        async def unread() -> AsyncIterator[bytes]:
            raise AssertionError("nothing may be read for it")
            yield b""

        for call in (
            lambda: place.files.put(key, unread(), LARGE, ""),
            lambda: place.files.open(key),
            lambda: place.files.size(key),
            lambda: place.files.delete(key),
        ):
            with pytest.raises(ValueError, match="not the key of a file"):
                await call()
        assert await place.count() == 0

    async def test_many_at_once(self, place: Place) -> None:
        sizes = [0, 1, PIECE, PIECE * 2 + 1] * 10
        keys = await asyncio.gather(*(put(place.files, noise(size)) for size in sizes))
        found = await asyncio.gather(*(read(place.files, key) for key in keys))
        assert found == [noise(size) for size in sizes]

    async def test_it_starts_again_after_a_stop(self, place: Place) -> None:
        key = await put(place.files, b"kept")
        await place.files.stop()
        await place.files.start()
        assert await read(place.files, key) == b"kept"


def test_new_keys_differ_and_spread() -> None:
    keys = {new_key() for _ in range(5000)}
    assert len(keys) == 5000
    assert len({key[:2] for key in keys}) == 256


# -- on disk ---------------------------------------------------------------------------------------------------------


@pytest.mark.anyio
async def test_files_are_their_owners_alone(disk: DiskFiles) -> None:
    before = os.umask(0)  # the mildest: what is missing below was refused, not masked
    try:
        key = await put(disk, b"x")
        stuck = Stuck(b"y")
        upload = asyncio.create_task(disk.put(new_key(), aiter(stuck), LARGE, ""))
        async with asyncio.timeout(DEADLINE):
            await stuck.reached.wait()
        assert len(below(disk.directory)) == 2, "the second is on its way"
        for path in [disk.directory, *disk.directory.rglob("*")]:
            assert path.stat().st_mode & 0o777 == (0o700 if path.is_dir() else 0o600), path
        assert await names(disk) == [key], "what is on its way is not listed"
        upload.cancel()
        with pytest.raises(asyncio.CancelledError):
            await upload
    finally:
        os.umask(before)


@pytest.mark.skipif(sys.platform != "linux", reason="/proc says which file is meant")
@pytest.mark.anyio
async def test_it_is_durable_before_it_is_there(disk: DiskFiles, monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[tuple[str, str]] = []
    fsync, replace = os.fsync, os.replace

    def seen_fsync(fd: int) -> None:
        path = Path(os.readlink(f"/proc/self/fd/{fd}"))
        done.append(("sync", str(path.relative_to(disk.directory.resolve().parent))))
        fsync(fd)

    def seen_replace(old: Path, new: Path) -> None:
        done.append(("place", str(new.relative_to(disk.directory))))
        replace(old, new)

    monkeypatch.setattr(os, "fsync", seen_fsync)
    monkeypatch.setattr(os, "replace", seen_replace)
    await put(disk, b"x", "ab/cdefgh")
    assert re.fullmatch(r"files/incoming/[0-9a-f]{32}", done[0][1])
    assert done[1:] == [
        ("sync", "files"),  # the new folder's own entry
        ("place", "ab/cdefgh"),
        ("sync", "files/ab"),
        ("sync", "files"),
    ]


@pytest.mark.anyio
async def test_cancelled_in_its_last_step_it_is_not_there(disk: DiskFiles, monkeypatch: pytest.MonkeyPatch) -> None:
    """A thread cannot be stopped: the last step ends, and then is taken back."""
    replace, entered, go_on = os.replace, threading.Event(), threading.Event()

    def slow(old: Path, new: Path) -> None:
        entered.set()
        assert go_on.wait(DEADLINE)
        replace(old, new)

    monkeypatch.setattr(os, "replace", slow)
    upload = asyncio.create_task(put(disk, b"x"))
    await until(entered.is_set)
    upload.cancel()
    for _ in range(20):
        await asyncio.sleep(0)
    assert not upload.done()
    upload.cancel()
    go_on.set()
    with pytest.raises(asyncio.CancelledError):
        await upload
    assert below(disk.directory) == []


@pytest.mark.anyio
async def test_the_loop_goes_on_while_the_disk_is_slow(disk: DiskFiles, monkeypatch: pytest.MonkeyPatch) -> None:
    fsync, entered, go_on = os.fsync, threading.Event(), threading.Event()

    def slow(fd: int) -> None:
        entered.set()
        assert go_on.wait(DEADLINE)
        fsync(fd)

    key = await put(disk, b"there")
    monkeypatch.setattr(os, "fsync", slow)
    upload = asyncio.create_task(put(disk, b"x"))
    await until(entered.is_set)
    assert await read(disk, key) == b"there"
    go_on.set()
    await upload


@pytest.mark.anyio
async def test_what_a_killed_upload_left_is_removed_a_day_later(disk: DiskFiles) -> None:
    code = """
import asyncio, os, sys
from pathlib import Path
from hubbub.files import DiskFiles
async def main():
    files = DiskFiles(Path(sys.argv[1]))
    async def chunks():
        yield bytes(1_000_000)
        yield b"x"
        os.kill(os.getpid(), 9)
    await files.put("ab/cdefgh", chunks(), 10_000_000, "")
asyncio.run(main())
"""
    async with asyncio.timeout(60):
        killed = await asyncio.create_subprocess_exec(sys.executable, "-c", code, str(disk.directory))
        assert await killed.wait() == -9
    (left,) = below(disk.directory)
    assert await names(disk) == []
    assert below(disk.directory) == [left], "it could be on its way"
    old = time.time() - FORGOTTEN - 1
    os.utime(left, (old, old))
    assert await names(disk) == []
    assert below(disk.directory) == []


@pytest.mark.anyio
async def test_a_file_that_becomes_shorter_ends_its_readers(disk: DiskFiles) -> None:
    key = await put(disk, noise(3 * PIECE))
    pieces = await disk.open(key)
    await anext(pieces)
    os.truncate(disk.directory / key, PIECE)
    with pytest.raises(FileMissing, match="shorter"):
        async with asyncio.timeout(DEADLINE):
            await anext(pieces)


@pytest.mark.anyio
async def test_strange_things_in_the_directory_are_left_alone(disk: DiskFiles, tmp_path: Path) -> None:
    key = await put(disk, b"x")
    folder = disk.directory / key[:2]
    (folder / "README.txt").write_text("no key")
    (folder / "abcdefgh").mkdir()
    (folder / "abcdefghi").symlink_to(tmp_path)
    (disk.directory / "lost+found").mkdir()
    (disk.directory / "zz").write_text("no folder")
    assert await names(disk) == [key]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 1 MiB, and 60 files and directories."""
    directory = tmp_path / "small"
    directory.mkdir()
    try:
        mounted = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=1m,nr_inodes=60", "tmpfs", str(directory)],
            capture_output=True,
            text=True,
            check=False,
        )
    except FileNotFoundError:
        pytest.skip("there is no mount here")
    if mounted.returncode:
        pytest.skip(f"no file system can be mounted here (it takes root): {mounted.stderr.strip()}")
    yield directory
    subprocess.run(["umount", str(directory)], check=True)


@pytest.mark.anyio
async def test_a_full_disk_refuses_and_goes_on_when_there_is_room(small_disk: Path) -> None:
    files = DiskFiles(small_disk)
    await files.start()
    key = await put(files, noise(600_000))
    for size in (700_000, 3_000_000):
        with pytest.raises(ClientError) as refused:
            await put(files, noise(size))
        assert refused.value.code == ErrorCode.UNAVAILABLE
        assert refused.value.retry_after
        assert refused.value.retry_after > 0
        assert below(small_disk) == [small_disk / key]
    assert await read(files, key) == noise(600_000)
    await files.delete(key)
    again = await put(files, noise(700_000))
    assert await read(files, again) == noise(700_000)
    await files.stop()


@pytest.mark.anyio
async def test_a_full_disk_does_not_keep_a_server_from_starting(small_disk: Path) -> None:
    files = DiskFiles(small_disk)
    key = await put(files, b"readable")

    def fill() -> None:
        for number in range(61):
            (small_disk / f"filler-{number}").touch()

    with pytest.raises(OSError, match="No space"):
        fill()
    await files.start()
    assert await read(files, key) == b"readable"
    with pytest.raises(ClientError, match="no room"):
        await put(files, noise(8192))
    await files.stop()


@pytest.mark.anyio
async def test_a_directory_that_cannot_be_is_said_at_the_start(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    for directory in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(ConfigurationError, match="set HUBBUB_FILES to a directory"):
            await DiskFiles(directory).start()


# -- in an object store ----------------------------------------------------------------------------------------------


@pytest.fixture
def dead_s3(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A bucket at a port of this machine where nobody answers."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound, and not listening: refused
        for name in [name for name in os.environ if name.startswith("AWS_")]:
            monkeypatch.delenv(name)
        for name, value in {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{taken.getsockname()[1]}", "AWS_ALLOW_HTTP": "true",
            "AWS_ACCESS_KEY_ID": "id", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_REGION": "nowhere",
        }.items():  # fmt: skip
            monkeypatch.setenv(name, value)
        yield "s3://bucket/prefix"


@pytest.mark.anyio
@pytest.mark.parametrize("size", [10, 2 * PART])
async def test_a_store_that_is_away_is_unavailable(
    dead_s3: str, tmp_path: Path, size: int, caplog: pytest.LogCaptureFixture
) -> None:
    files = files_from(dead_s3, tmp_path)
    await files.start()
    key = new_key()
    for call in (
        lambda: files.put(key, chunks_of(noise(size)), LARGE, ""),
        lambda: files.open(key),
        lambda: files.size(key),
        lambda: files.delete(key),
        lambda: names(files),
    ):
        with pytest.raises(ClientError) as refused:
            await call()
        assert refused.value.code == ErrorCode.UNAVAILABLE
        assert refused.value.retry_after
    assert "object store" in caplog.text
    assert "secret" not in caplog.text
    await files.stop()


def test_a_bucket_needs_obstore(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.split(".")[0] == "obstore"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "obstore", None)  # as if it were not installed
    with pytest.raises(ConfigurationError, match=r"pip install 'hubbub\[s3\]'"):
        ObjectFiles("s3://bucket")


@pytest.mark.anyio
async def test_what_a_bucket_keeps_is_described_harmlessly() -> None:
    files = ObjectFiles("memory:///")
    for claimed, described in [
        ("image/PNG; x=1", "image/png"), ("text/html", OCTETS), ("image/svg+xml", OCTETS), ("", OCTETS), ("a\r\nb: c", OCTETS),
    ]:  # fmt: skip
        key = new_key()
        await files.put(key, chunks_of(b"x"), LARGE, claimed)
        attributes = (await files._obstore.get_async(files._store, key)).attributes
        assert attributes == {"Content-Type": described, "Content-Disposition": "attachment"}


def test_a_place_for_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    for place, directory in [
        ("", tmp_path / "files"),
        ("attachments", Path("attachments")),
        (str(tmp_path / "a b"), tmp_path / "a b"),
        ("~/kept", tmp_path / "kept"),
        ((tmp_path / "a b").as_uri(), tmp_path / "a b"),
    ]:
        files = files_from(place, tmp_path)
        assert isinstance(files, DiskFiles)
        assert files.directory == directory
    for place in ("memory:///", "s3://bucket/some/prefix", "gs://bucket"):
        assert isinstance(files_from(place, tmp_path), ObjectFiles)
    for place in ("http://host/x", "file://data/x", "file:///", "ftp://x", "s3://", "nonsense://"):
        with pytest.raises(ConfigurationError, match="HUBBUB_FILES"):
            files_from(place, tmp_path)


# -- what a file is served as ----------------------------------------------------------------------------------------

PNG = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR\0\0\0\x01\0\0\0\x01\x08\6\0\0\0"
JPEG = b"\xff\xd8\xff\xe0\0\x10JFIF\0\1\1"
WEBP = b"RIFF\x24\0\0\0WEBPVP8 \x18\0\0\0"
WAV = b"RIFF\x24\0\0\0WAVEfmt \x10\0\0\0"
AVIF = b"\0\0\0\x20ftypavif\0\0\0\0avifmif1"
MP4 = b"\0\0\0\x20ftypisom\0\0\2\0isomiso2avc1mp41"
M4A = b"\0\0\0\x20ftypM4A \0\0\2\0M4A mp42isom"
QUICKTIME = b"\0\0\0\x14ftypqt  \0\0\2\0qt  "
HEIC = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic"
WEBM = b"\x1aE\xdf\xa3\x9fB\x86\x81\1B\xf7\x81\1B\xf2\x81\4B\xf3\x81\x08B\x82\x84webmB\x87\x81\4"
MATROSKA = b"\x1aE\xdf\xa3\xa3B\x86\x81\1B\xf7\x81\1B\xf2\x81\4B\xf3\x81\x08B\x82\x88matroskaB\x87\x81\4"
OGG = b"OggS\0\2" + bytes(20) + b"\1\x13OpusHead"
MP3 = b"ID3\4\0\0\0\0\1\7TSSE"
MP3_BARE = b"\xff\xfb\x90\x64" + bytes(100)
PDF = b"%PDF-1.7\n%\xe2\xe3\xcf\xd3\n"
TEXT = "Grüße, 世界\n\tand more\r\n".encode()
HTML = b"<!DOCTYPE html><script>alert(1)</script>"
SVG = b"<svg xmlns='http://www.w3.org/2000/svg' onload='alert(1)'/>"
XML = b"<?xml version='1.0'?><a/>"


@pytest.mark.parametrize(
    ("head", "claimed", "served"),
    [
        (PNG, "image/png", "image/png"), (PNG, "", "image/png"), (PNG, OCTETS, "image/png"), (PNG, "IMAGE/PNG; q=1", "image/png"),
        (JPEG, "image/jpeg", "image/jpeg"), (JPEG, "image/jpg", "image/jpeg"), (b"GIF89a\1\0", "image/gif", "image/gif"),
        (WEBP, "image/webp", "image/webp"), (AVIF, "image/avif", "image/avif"),
        (WAV, "audio/x-wav", "audio/wav"), (OGG, "audio/ogg", "audio/ogg"), (OGG, "video/ogg", "video/ogg"),
        (OGG, "", "audio/ogg"),
        (MP3, "audio/mpeg", "audio/mpeg"), (MP3_BARE, "audio/mp3", "audio/mpeg"), (MP4, "video/mp4", "video/mp4"),
        (MP4, "audio/mp4", "audio/mp4"), (MP4, "", "video/mp4"), (M4A, "audio/x-m4a", "audio/mp4"),
        (WEBM, "video/webm", "video/webm"), (WEBM, "audio/webm;codecs=opus", "audio/webm"),
        (PDF, "application/pdf", "application/pdf"),
        (TEXT, "text/plain", "text/plain"), (TEXT, "", "text/plain"), (TEXT, "text/markdown", "text/plain"),
        (b"", "", "text/plain"),
        # not what it is said to be
        (PNG, "image/jpeg", OCTETS), (JPEG, "image/png", OCTETS), (PNG, "text/html", OCTETS), (PNG, "image/svg+xml", OCTETS),
        (TEXT, "image/png", OCTETS), (b"", "image/png", OCTETS), (PNG[:7], "image/png", OCTETS),
        (b"\x89PNG" + HTML, "image/png", OCTETS),
        (QUICKTIME, "video/mp4", OCTETS), (HEIC, "image/avif", OCTETS), (MATROSKA, "video/webm", OCTETS),
        (WAV, "image/webp", OCTETS),
        (TEXT, "application/pdf", OCTETS), (HTML, "application/pdf", OCTETS), (b"\xff\xfe<\0h\0t\0m\0l\0", "audio/mpeg", OCTETS),
        (b"ID3 is a format", "audio/mpeg", OCTETS), (HTML + PNG, "image/png", OCTETS),
        # not text
        (b"\xff\xfeh\0i\0", "text/plain", OCTETS), (b"a\0b", "text/plain", OCTETS), (b"caf\xe9", "text/plain", OCTETS),
        (b"\x1b[31m", "text/plain", OCTETS), (b"\xc3", "text/plain", OCTETS), (b"a" * 511 + b"\xc3", "text/plain", "text/plain"),
        (b"MZ\x90\0", "", OCTETS), (b"\x7fELF\2\1\1\0", "application/x-executable", OCTETS),
        (b"PK\3\4", "application/zip", OCTETS),
        # markup and programs, never
        *((head, claimed, OCTETS) for head in (HTML, SVG, XML, b"\xef\xbb\xbf \n" + HTML, b"</p>", b"<!-- -->")
          for claimed in ("", "text/plain", "text/html", "image/svg+xml", "text/xml", "image/png")),
        (TEXT, "text/html", OCTETS), (TEXT, "application/xhtml+xml", OCTETS), (TEXT, "text/javascript", OCTETS),
        (TEXT, "application/javascript", OCTETS), (TEXT, "text/css", OCTETS), (b"I <3 you, 1 < 2", "text/plain", "text/plain"),
        (b"<3", "", "text/plain"),
    ],
)  # fmt: skip
def test_a_file_is_served_as_what_it_is(head: bytes, claimed: str, served: str) -> None:
    assert media_type_of(head, claimed, "name") == served


@pytest.mark.parametrize(
    "end", ["html", "HTM", "svg", "svgz", "xml", "xhtml", "shtml", "xsl", "js", "mjs", "jsx", "mhtml", "swf"]
)
@pytest.mark.parametrize("name", ["a.{}", "a.png.{}", "a.{} ", "a.{}.", "..\\a.{}", "a.\u202e{}", "a.{}\0"])
def test_a_name_of_markup_is_markup(name: str, end: str) -> None:
    for head, claimed in [(TEXT, "text/plain"), (PNG, "image/png"), (b"", ""), (PDF, "application/pdf")]:
        assert media_type_of(head, claimed, name.format(end)) == OCTETS


@given(st.binary(max_size=600), st.text(max_size=40) | st.sampled_from(sorted(SERVED)), st.text(max_size=30))
def test_no_other_type_is_ever_served(head: bytes, claimed: str, name: str) -> None:
    assert media_type_of(head, claimed, name) in SERVED | {OCTETS}


@given(
    st.sampled_from([b"", b" ", b"\n\t", b"\xef\xbb\xbf", b"\xef\xbb\xbf\r\n"]),
    st.sampled_from(
        [b"<html", b"<SVG ", b"<?xml ", b"<!DOCTYPE html", b"<script>", b"<!--", b"<body onload=", b"</x>"]
    ),
    st.binary(max_size=200),
    st.sampled_from(["", OCTETS, *sorted(SERVED)]),
)
def test_no_markup_is_ever_text_or_picture(before: bytes, tag: bytes, rest: bytes, claimed: str) -> None:
    assert media_type_of(before + tag + rest, claimed, "notes.txt") == OCTETS


# -- names and headers -----------------------------------------------------------------------------------------------

HOSTILE = st.text(max_size=40) | st.text(
    st.sampled_from("ab.é世 /\\\"'\r\n\0\t\x7f\u202e\u2066\u2028\u200f\ud800😀%;=:*?<>|`~#&+"), max_size=300
)


@given(HOSTILE)
@example("../../etc/passwd")
@example("..")
@example("C:\\Users\\me\\photo.png")
@example("\u202egnp.exe")
@example("a" * 500 + ".png")
@example("." * 300)
@example("x." + "y" * 300)
def test_a_clean_name_is_only_a_name(name: str) -> None:
    clean = clean_name(name)
    assert 1 <= len(clean) <= 200
    assert not clean.startswith(".")
    assert clean == clean.strip()
    assert not set(clean) & set("/\\\"'`\0\r\n\t\x7f:*?<>|\u061c\u200e\u200f\u2028\u2029\ufeff")
    assert not any(0x202A <= ord(c) <= 0x202E or 0x2066 <= ord(c) <= 0x2069 or ord(c) < 32 for c in clean)
    assert clean.encode()  # no half of a character
    assert Path(clean).name == clean
    assert clean_name(clean) == clean


@pytest.mark.parametrize(
    ("name", "clean"),
    [
        ("photo.png", "photo.png"), ("/etc/passwd", "passwd"), ("C:\\Users\\me\\photo.png", "photo.png"), ("a/b/", "b"),
        ("..", "file"), ("", "file"), ("/", "file"), (".htaccess", "htaccess"), (" . .x", "x"),
        ("Größe 世界.txt", "Größe 世界.txt"),
        ("a\r\nSet-Cookie: x.png", "aSet-Cookie x.png"), ("photo\u202egnp.exe", "photognp.exe"), ('a"b\'c.txt', "abc.txt"),
        ("👩‍👩‍👧.png", "👩‍👩‍👧.png"), ("a" * 300 + ".jpeg", "a" * 195 + ".jpeg"), ("\ud83d", "file"), ("name.txt...", "name.txt"),
    ],
)  # fmt: skip
def test_clean_names(name: str, clean: str) -> None:
    assert clean_name(name) == clean


DISPOSITION = re.compile(r"(inline|attachment); filename=\"([ -~]+)\"; filename\*=UTF-8''([A-Za-z0-9!#$&+.^_`|~%-]+)")


@given(HOSTILE | st.sampled_from([*sorted(SERVED), "text/html", "image/svg+xml", "image/png\r\nX: y"]), HOSTILE)
def test_no_name_or_type_breaks_a_header(media_type: str, name: str) -> None:
    headers = serving_headers(media_type, name, 12, SOME_SHA256)
    for key, value in headers.items():
        assert re.fullmatch(r"[A-Za-z-]+", key)
        assert re.fullmatch(r"[\x20-\x7e]+", value), (key, value)
        value.encode("latin-1")
    found = DISPOSITION.fullmatch(headers["Content-Disposition"])
    assert found
    shown, plain, extended = found.groups()
    assert not set(plain) & set('"\\%/')
    assert not re.search("%(?![0-9A-F]{2})", extended)
    assert unquote_to_bytes(extended).decode() == clean_name(name)
    kind = headers["Content-Type"].removesuffix("; charset=utf-8")
    assert kind in SERVED | {OCTETS}
    assert shown == ("inline" if kind.startswith(("image/", "audio/", "video/")) else "attachment")
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert headers["Content-Security-Policy"] == "default-src 'none'; sandbox"


def test_the_headers_of_a_picture() -> None:
    assert serving_headers("image/png", "Grüße 100%.png", 5, SOME_SHA256) == {
        "Content-Type": "image/png",
        "Content-Length": "5",
        "Content-Disposition": "inline; filename=\"Gr__e 100_.png\"; filename*=UTF-8''Gr%C3%BC%C3%9Fe%20100%25.png",
        "X-Content-Type-Options": "nosniff",
        "Content-Security-Policy": "default-src 'none'; sandbox",
        "Cross-Origin-Resource-Policy": "same-origin",
        "Referrer-Policy": "no-referrer",
        "Cache-Control": "private, max-age=31536000, immutable",
        "ETag": f'"{SOME_SHA256}"',
        "Accept-Ranges": "bytes",
    }


def test_text_has_its_encoding_and_is_saved() -> None:
    headers = serving_headers("text/plain", "a.txt", 5, SOME_SHA256)
    assert headers["Content-Type"] == "text/plain; charset=utf-8"
    assert headers["Content-Disposition"].startswith("attachment;")
    assert "image/svg+xml" not in INLINE


@pytest.mark.parametrize("sha256", ["", "x" * 64, SOME_SHA256 + "\n", SOME_SHA256.upper(), '"\r\nX: y'])
def test_an_etag_is_a_sum(sha256: str) -> None:
    with pytest.raises(ValueError, match="64 hex digits"):
        serving_headers("image/png", "a.png", 5, sha256)


# -- ranges ----------------------------------------------------------------------------------------------------------


def asked_for(data: bytes, first: str, last: str) -> bytes | None:
    """RFC 9110, 14.1.2, by looking at each byte. None: none of them can be had."""
    if first:
        found = bytes(byte for at, byte in enumerate(data) if at >= int(first) and (not last or at <= int(last)))
    else:
        found = bytes(byte for at, byte in enumerate(data) if at >= len(data) - int(last))
    return found or None


NUMBERS = st.just("") | st.integers(0, 30).map(str) | st.sampled_from(["007", "9" * 30])


@given(st.binary(max_size=20), NUMBERS, NUMBERS, st.sampled_from(["bytes=", "Bytes=", "BYTES= ", "\tbytes="]))
def test_a_range_is_the_bytes_that_it_says(data: bytes, first: str, last: str, unit: str) -> None:
    header = f"{unit}{first}-{last}"
    malformed = int(last) < int(first) if first and last else not first and not last
    whole = malformed or (not data and not first and int(last) > 0)
    if whole:
        assert parse_range(header, len(data)) is None
        return
    expected = asked_for(data, first, last)
    if expected is None:
        with pytest.raises(RangeNotSatisfiable):
            parse_range(header, len(data))
    else:
        start, end = cast(tuple[int, int], parse_range(header, len(data)))
        assert 0 <= start < end <= len(data)
        assert data[start:end] == expected


@pytest.mark.parametrize(
    "header",
    [
        None, "", "bytes", "bytes=", "bytes=-", "bytes= - ", "bytes=a-b", "bytes=1", "bytes=1-2,4-5",
        "bytes=1-2, 4-5", "bytes=--1",
        "bytes=1--2", "bytes=-1-2", "items=0-4", "bytes 0-4", "bytes:0-4", "bytes=0x1-2", "bytes=+1-2",
        "bytes=1.0-2", "bytes=١-٢",
        "bytes=5-4", "bytes=0-4\n", "bytes=0 - 4", "bytes=" + "1" * 5000 + "-", "bytes=0-" + "1" * 5000,
    ],
)  # fmt: skip
def test_what_is_no_single_range_is_ignored(header: str | None) -> None:
    assert parse_range(header, 10) is None


@given(st.text(max_size=30) | st.text("bytes=0123456789-, \t", max_size=30), st.integers(0, 100))
def test_no_header_breaks_it(header: str, size: int) -> None:
    try:
        found = parse_range(header, size)
    except RangeNotSatisfiable:
        return
    assert found is None or 0 <= found[0] < found[1] <= size
