"""``hubbub serve --workers`` as a process, as a user runs it."""

from __future__ import annotations

import json
import os
import signal
import socket
import struct
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final

import psutil

from hubbub import issue_token
from tests.engine_support import free_port, until
from tests.support import API_KEY, SECRET, settings_for

WITHIN: Final = 90.0
"""Seconds for whatever is waited for here: starting takes long where many do it at once."""


class Workers:
    """A supervisor with its workers.

    :ivar port: the one that all workers share; ``ports``: of each one alone.
    """

    def __init__(self, directory: Path, count: int = 2, *arguments: str, **settings: str) -> None:
        self.count = count
        self.data = directory / "data"
        self.log = directory / "log"
        self.port = free_port()
        self.base = next(base for base in iter(free_port, None) if base % 10 == 0 and base != self.port // 10 * 10)
        self._arguments = arguments
        self._environment = {name: value for name, value in os.environ.items() if not name.startswith("HUBBUB_")} | {
            "HUBBUB_DATA_DIR": str(self.data),
            "HUBBUB_SECRET": SECRET,
            "HUBBUB_API_KEYS": API_KEY,
            "HUBBUB_DRAIN_SECONDS": "0.5",
            "HUBBUB_CLOSE_TIMEOUT": "0.5",
            "HUBBUB_PRESENCE_GRACE": "0.2",
            "HUBBUB_RATE_LIMIT": "0",
            "HUBBUB_USER_RATE_LIMIT": "0",
            **{f"HUBBUB_{name.upper()}": value for name, value in settings.items()},
        }
        self._directory = directory
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def process(self) -> subprocess.Popen[bytes]:
        assert self._process is not None, "it was not started"
        return self._process

    def launch(self) -> None:
        """Start it, and wait for nothing."""
        arguments = ["--no-dev", "--port", str(self.port), "--worker-ports", str(self.base), *self._arguments]
        with self.log.open("wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "hubbub.cli", "serve", "--workers", str(self.count), *arguments],
                env=self._environment, cwd=self._directory, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            )  # fmt: skip

    def start(self) -> None:
        """Start it, and wait until all workers serve."""
        self.launch()
        self.until_said("Hubbub listens on")

    def said(self, what: str) -> int:
        """How many lines of its log have this in them."""
        return sum(what in line for line in self.text.splitlines())

    @property
    def text(self) -> str:
        return self.log.read_text(errors="replace")

    def records(self, event: str) -> list[dict[str, Any]]:
        """The log's records of an event."""
        found = []
        for line in self.text.splitlines():
            with suppress(ValueError):
                record = json.loads(line)
                if record["event"] == event:
                    found.append(record)
        return found

    def until_said(self, what: str, times: int = 1) -> None:
        def has() -> bool:
            assert self.process.poll() is None or self.said(what) >= times, self.text[-4000:]
            return self.said(what) >= times

        until(has, f"{what!r} was not said in time", WITHIN)

    def family(self) -> list[psutil.Process]:
        """All processes below it."""
        try:
            return list(psutil.Process(self.process.pid).children(recursive=True))
        except psutil.NoSuchProcess:
            return []

    def worker(self, index: int) -> psutil.Process:
        """The process of a worker (the newest, while an old one ends)."""
        found = [each for each in self.family() if _words(each)[-2:] == ["hubbub.worker", str(index)]]
        return max(found, key=lambda each: each.create_time())

    def engine(self) -> psutil.Process:
        """The embedded Valkey."""
        return next(each for each in self.family() if each.name() == "valkey-server")

    def url(self, worker: int | None = None) -> str:
        """Where a worker is reached; None: any."""
        return f"http://127.0.0.1:{self.port if worker is None else self.base + worker}"

    def get(self, path: str, worker: int | None = None) -> Any:
        request = urllib.request.Request(
            self.url(worker) + path, headers={"authorization": f"Bearer {API_KEY}", "connection": "close"}
        )
        with urllib.request.urlopen(request, timeout=WITHIN) as answer:
            return json.load(answer)

    def ws(self, user: str, worker: int | None = None) -> str:
        """The address of a session of a user."""
        everything = ("*",)
        token = issue_token(
            settings_for(), user, now=time.time(), ttl=3600, subscribe=everything, publish=everything
        )  # fmt: skip
        return f"{self.url(worker).replace('http', 'ws', 1)}/ws?token={token}"

    def signal(self, number: signal.Signals = signal.SIGTERM) -> None:
        self.process.send_signal(number)

    def ends(self) -> int:
        """Wait for its end; returns its exit code."""
        try:
            return self.process.wait(WITHIN)
        except subprocess.TimeoutExpired:
            raise AssertionError(self.text[-4000:]) from None

    def close(self) -> None:
        """Whatever still runs is killed."""
        if self._process is None:
            return
        left = self.family()
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()
        for process in left:
            with suppress(psutil.NoSuchProcess):
                process.kill()


@contextmanager
def workers(directory: Path, count: int = 2, *arguments: str, **settings: str) -> Iterator[Workers]:
    """Workers that serve; they are ended in the end."""
    made = Workers(directory, count, *arguments, **settings)
    try:
        made.start()
        yield made
    finally:
        made.close()


def backlogs(port: int) -> list[int]:
    """How many connections may wait at each IPv4 socket that listens on a port, as Linux says (sock_diag(7))."""
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 4) as kernel:  # NETLINK_SOCK_DIAG
        # SOCK_DIAG_BY_FAMILY, REQUEST | DUMP: all of IPv4 and TCP that listen (TCP_LISTEN is 10)
        kernel.send(struct.pack("=IHHIIBBBxI48x", 72, 20, 0x301, 1, 0, socket.AF_INET, socket.IPPROTO_TCP, 0, 1 << 10))
        found: list[int] = []
        while True:
            answer = kernel.recv(1 << 16)
            while answer:
                length, kind = struct.unpack_from("=IH", answer)
                if kind != 20:  # NLMSG_DONE
                    return found
                # behind the header (16): family, state, timer, retrans, source port; with wqueue 60 further on
                if struct.unpack_from("!H", answer, 20)[0] == port:
                    found.append(struct.unpack_from("=I", answer, 76)[0])
                answer = answer[length + 3 & ~3 :]


def gone(processes: list[psutil.Process], within: float = WITHIN) -> None:
    """Wait until all of these processes are gone.

    :raises TimeoutError: one is not.
    """
    until(lambda: not any(map(_runs, processes)), f"still there: {[p for p in processes if _runs(p)]}", within)


def _words(process: psutil.Process) -> list[str]:
    try:
        return list(process.cmdline())
    except psutil.Error:  # it has just ended
        return []


def _runs(process: psutil.Process) -> bool:
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False
