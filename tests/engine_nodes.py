"""Real nodes (``hubbub serve``) as processes. See ``engine_support.py``."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

import httpx2
import psutil
from websockets.asyncio.client import connect

from hubbub import issue_token
from tests.engine_process import HOST, WITHIN, free_port
from tests.support import API_KEY, SECRET, TLS, Client, settings_for

LAUNCHER: Final = """
import json, os, signal, sys
import asyncpg, hiredis, redis.asyncio, sqlalchemy.ext.asyncio, uvicorn, uvloop
import alembic.operations, alembic.runtime.migration, alembic.script
import hubbub.app, hubbub.brokers, hubbub.cli, hubbub.logs, hubbub.transports.uvicorn

children = set()
for line in sys.stdin:
    order = json.loads(line)
    if "reap" in order:
        os.waitpid(order["reap"], 0)
        children.discard(order["reap"])
        print(order["reap"], flush=True)
        continue
    child = os.fork()
    if child == 0:
        os.setsid()
        os.dup2(os.open(order["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), 1)
        os.dup2(1, 2)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.environ.clear()
        os.environ.update(order["environment"])
        sys.argv = ["hubbub", *order["words"]]
        try:
            hubbub.cli.main()
        finally:
            os._exit(0)
    children.add(child)
    print(child, flush=True)
for child in children:
    os.kill(child, signal.SIGKILL)
"""
"""Has imported what `hubbub` needs, and forks it when told so: importing takes far longer than all else of a start. It
ends them all at the end of its input, so nothing stays when the tests are killed."""


class Launcher:
    """The one process that nodes are forked from. Its methods block; threads may call them at the same time."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process = subprocess.Popen(
            [sys.executable, "-c", LAUNCHER],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=Path(__file__).parents[1],
        )

    def launch(self, words: list[str], environment: Mapping[str, str], log: Path) -> int:
        """Start ``hubbub`` with these words; returns its process id."""
        return self._tell({"words": words, "environment": dict(environment), "log": str(log)})

    def reap(self, pid: int) -> None:
        """Wait for the end of a process that was launched."""
        self._tell({"reap": pid})

    def close(self) -> None:
        self._process.communicate(b"")

    def _tell(self, order: dict[str, Any]) -> int:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with self._lock:
            self._process.stdin.write(json.dumps(order).encode() + b"\n")
            self._process.stdin.flush()
            return int(self._process.stdout.readline())


_launchers: list[Launcher] = []
_launching = threading.Lock()


def launcher() -> Launcher:
    """Started when first needed; ``conftest.py`` ends it."""
    with _launching:
        if not _launchers:
            _launchers.append(Launcher())
        return _launchers[0]


def close_launcher() -> None:
    while _launchers:
        _launchers.pop().close()


class Node:
    """``hubbub serve`` as a process, on one port over all its lives.

    :param settings: by name, as in ``Settings``; beside the engine's URL, the usual ones of the tests.
    """

    def __init__(self, engine_url: str, directory: Path, name: str = "node", **settings: Any) -> None:
        self.name = name
        self.port = free_port()
        self.home = directory / name
        self.home.mkdir(parents=True, exist_ok=True)
        self.log = self.home / "server.log"
        self.pid = 0
        self.paused = False
        self._resumed = 0.0
        values: dict[str, Any] = {
            "valkey_url": engine_url,
            "secret": SECRET,
            "api_keys": API_KEY,
            "data_dir": self.home,
            "database_url": "sqlite://",
            "rate_limit": 0,
            "user_rate_limit": 0,
            "control_rate_limit": 0,
            "max_connections_per_user": 0,
            "drain_seconds": 0.5,
            "log_level": "info",
            **settings,
        }
        kept = {key: value for key, value in os.environ.items() if not key.startswith("HUBBUB_")}
        self._environment = kept | {f"HUBBUB_{key.upper()}": str(value) for key, value in values.items()}

    @property
    def url(self) -> str:
        return f"http://{HOST}:{self.port}"

    @property
    def ws(self) -> str:
        return f"ws://{HOST}:{self.port}"

    @property
    def rss(self) -> int:
        """Bytes that the process has in memory."""
        return int(psutil.Process(self.pid).memory_info().rss)

    async def start(self, *, wait: bool = True) -> None:
        """Start it and wait until it listens."""
        assert not self.pid, f"{self.name} runs already"
        words = ["serve", "--host", HOST, "--port", str(self.port)]
        self.pid = await asyncio.to_thread(lambda: launcher().launch(words, self._environment, self.log))
        if wait:
            await self.listening()

    async def listening(self) -> None:
        async with asyncio.timeout(WITHIN):
            while not await self._listens():
                if self.has_ended():
                    raise AssertionError(f"{self.name} ended at its start:\n{self.tail()}")
                await asyncio.sleep(0.01)

    async def kill(self, number: signal.Signals = signal.SIGKILL) -> None:
        """End it, paused or not, and wait for its end."""
        os.kill(self.pid, number)
        os.kill(self.pid, signal.SIGCONT)
        pid, deadline = self.pid, time.monotonic() + WITHIN
        while not self.has_ended():
            if time.monotonic() > deadline:
                os.kill(pid, signal.SIGKILL)
                raise AssertionError(f"{self.name} did not end in time:\n{self.tail()}")
            await asyncio.sleep(0.005)
        self.pid = 0
        await asyncio.to_thread(lambda: launcher().reap(pid))

    async def terminate(self) -> None:
        """End it as a service manager does (SIGTERM), and wait for its end."""
        await self.kill(signal.SIGTERM)

    async def close(self) -> None:
        if self.pid:
            await self.kill()

    def pause(self) -> None:
        """Stop it where it is (SIGSTOP)."""
        self.paused = True
        os.kill(self.pid, signal.SIGSTOP)

    def resume(self) -> None:
        os.kill(self.pid, signal.SIGCONT)
        self.paused = False
        self._resumed = time.monotonic()

    def stood_since(self, moment: float) -> bool:
        """Whether it was paused at any time since then (monotonic seconds)."""
        return self.paused or self._resumed > moment

    def has_ended(self) -> bool:
        try:
            return Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()[0] in "ZX"
        except FileNotFoundError:
            return True

    def catches(self, number: signal.Signals) -> bool:
        """Whether the process has a handler of its own for a signal."""
        status = Path(f"/proc/{self.pid}/status").read_text()
        caught = int(next(line for line in status.splitlines() if line.startswith("SigCgt")).split()[1], 16)
        return bool(caught >> (number - 1) & 1)

    def tail(self, size: int = 3000) -> str:
        return self.log.read_text(errors="replace")[-size:] if self.log.exists() else ""

    def token(self, user: str, **grants: Any) -> str:
        grants = {"subscribe": ("*",), "publish": ("*",), **grants}
        return issue_token(settings_for(), user, now=time.time(), ttl=3600.0, **grants)

    def socket_url(self, user: str, **grants: Any) -> str:
        return f"{self.ws}/ws?token={self.token(user, **grants)}"

    @asynccontextmanager
    async def client(self, user: str, *, session: str | None = None, **grants: Any) -> AsyncIterator[Client]:
        """A client that is signed in; ``session`` is one that it continues."""
        options: dict[str, Any] = {"proxy": None, "ping_interval": None, "max_queue": None, "close_timeout": 0.5}
        async with connect(self.ws + "/ws", **options) as connection:
            client = Client(connection)
            await client.send("auth", token=self.token(user, **grants), session=session)
            client.session = (await client.expect("auth_success"))["session"]
            yield client

    @asynccontextmanager
    async def http(self, bearer: str | None = API_KEY, timeout: float = 10.0) -> AsyncIterator[httpx2.AsyncClient]:
        headers = {} if bearer is None else {"authorization": f"Bearer {bearer}"}
        options: dict[str, Any] = {"trust_env": False, "timeout": timeout, "verify": TLS}
        async with httpx2.AsyncClient(base_url=self.url, headers=headers, **options) as client:
            yield client

    async def ready(self) -> tuple[int, dict[str, Any]]:
        """What ``/health/ready`` answers: status and body."""
        async with self.http() as http:
            answer = await http.get("/health/ready")
            return answer.status_code, answer.json()

    async def until_ready(self, ready: bool = True, within: float = WITHIN) -> float:
        """Wait until it is ready (or not); returns the seconds that it took."""
        began = time.monotonic()
        while ((await self.ready())[0] == 200) is not ready:
            if time.monotonic() > began + within:
                raise AssertionError(f"{self.name} is {'not ' * ready}ready after {within} s:\n{self.tail()}")
            await asyncio.sleep(0.05)
        return time.monotonic() - began

    async def metrics(self) -> dict[str, float]:
        """The metrics by name with labels, as ``hubbub_connections`` or ``name{label="x"}``."""
        async with self.http() as http:
            text = (await http.get("/metrics")).text
        return {name: float(value) for name, value in re.findall(r"^([^#\s][^\s]*) (\S+)$", text, re.MULTILINE)}

    async def _listens(self) -> bool:
        try:
            _, writer = await asyncio.open_connection(HOST, self.port)
        except OSError:
            return False
        writer.close()
        return True


@asynccontextmanager
async def running_node(engine_url: str, directory: Path, name: str = "node", **settings: Any) -> AsyncIterator[Node]:
    """A node that listens, with its own data directory below ``directory``. Killed in the end."""
    node = Node(engine_url, directory, name, **settings)
    await node.start()
    try:
        yield node
    finally:
        await node.close()


@asynccontextmanager
async def running_nodes(
    engine_url: str, directory: Path, names: str = "ab", **settings: Any
) -> AsyncIterator[tuple[Node, ...]]:
    """A node for each letter, started side by side; all of them ready."""
    nodes = tuple(Node(engine_url, directory, name, **settings) for name in names)
    try:
        await asyncio.gather(*(node.start() for node in nodes))
        for node in nodes:
            await node.until_ready()
        yield nodes
    finally:
        for node in nodes:
            await node.close()
