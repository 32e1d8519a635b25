"""Which servers are measured: how each is started and stopped, and what a client says to it.

A `Server` is data: a command, an environment, and the words of its protocol, as templates for the load generator
(`$USER`, `$ROOM`, `$TOKEN` and `$TEXT` are put in by it). `prepare` builds or installs what the server needs under
`bench/.cache`, and raises `Missing` with a sentence where that cannot be had.
"""

from __future__ import annotations

import os
import resource
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import jwt

from bench.reading import fill

if TYPE_CHECKING:
    from bench.engine import Engine
    from tests.databases import PostgresServer

HERE = Path(__file__).resolve().parent
CACHE = HERE / ".cache"
PEERS = HERE / "peers"
SECRET = secrets.token_hex(32)


class Missing(Exception):
    """What a server needs is not to be had here; the message says what."""


class Failed(Exception):
    """A server did not start, or ended by itself."""


@dataclass(frozen=True)
class Dialogue:
    """What one client says and hears, from the upgrade to a delivery.

    `script` alternates between ("send", text) and ("expect", a part of what must come before the next); a client
    has joined when the script is through. A delivery is a frame that starts with `deliver`.
    """

    path: str
    publish: str = "$TEXT"
    deliver: str = "~P"
    script: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class Server:
    name: str
    title: str
    command: Callable[[int], list[str]]
    room: Dialogue
    echo: Dialogue | None
    prepare: Callable[[], None] = lambda: None
    env: Callable[[int, Path], dict[str, str]] = lambda rooms, scratch: {}
    token: Callable[[str], str] | None = None
    headers: tuple[str, ...] = ()
    ping: tuple[str, str] | None = None
    text_bytes: int = 50
    descriptors: int = 1
    """File descriptors per connection."""
    stored: Dialogue | None = None
    """Messages that are committed to a database before anybody hears of them, each with an idempotency key."""
    full: bool | None = None
    """It has a database with much in it to read from (bench/reading.py)."""
    typed: Dialogue | None = None
    """A message that is validated as a type of the app's, and answered with another."""
    typed_dep: Dialogue | None = None
    """The same, with something opened for the message and closed after it."""
    typed_await: Dialogue | None = None
    typed_plain_dep: Dialogue | None = None
    typed_model: Dialogue | None = None
    only: frozenset[str] | None = None
    """The columns that it is measured in; None: all that it can do."""


@dataclass
class Running:
    """A started server. `pid` is the process that serves."""

    server: Server
    port: int
    process: subprocess.Popen[bytes]
    log: Path
    pid: int = field(init=False)

    def __post_init__(self) -> None:
        self.pid = self.process.pid

    def tail(self) -> str:
        return self.log.read_text(errors="replace")[-1500:]


# ---- building and installing, all of it under bench/.cache ----


def compile_c(source: str) -> Path:
    """Compiles a C file of this directory with `cc`, or with zig's compiler from PyPI, unless that is done already."""
    origin, binary = HERE / source, CACHE / source.removesuffix(".c")
    newest = max(path.stat().st_mtime for path in (origin, *HERE.glob("*.h")))
    if binary.exists() and binary.stat().st_mtime >= newest:
        return binary
    compiler = ["cc"] if shutil.which("cc") else [sys.executable, "-m", "ziglang", "cc"]
    CACHE.mkdir(exist_ok=True)
    done = subprocess.run([*compiler, "-O2", "-Wall", "-o", str(binary), str(origin)], capture_output=True, text=True)
    if done.returncode != 0:
        raise Missing(f"{source} could not be compiled: {done.stderr.strip()[-300:]}")
    return binary


def _works(python: str) -> bool:
    check = "import sys; sys.exit(sys.version_info < (3, 12))"
    try:
        return subprocess.run([python, "-c", check], capture_output=True, timeout=20).returncode == 0
    except (OSError, subprocess.TimeoutExpired):
        return False


def find_newer_python() -> str:
    """A Python of 3.12 or later: this one, one on PATH, one of pyenv's, or one that `uv` knows."""
    candidates = [sys.executable]
    candidates += [found for minor in range(12, 16) if (found := shutil.which(f"python3.{minor}"))]
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"))
    candidates += sorted(str(path) for path in pyenv.glob("versions/3.1[2-9]*/bin/python"))
    if uv := shutil.which("uv"):
        answer = subprocess.run([uv, "python", "find", ">=3.12"], capture_output=True, text=True)
        candidates += [answer.stdout.strip()] if answer.returncode == 0 else []
    for candidate in candidates:
        if _works(candidate):
            return candidate
    raise Missing("no Python of 3.12 or later was found")


def _install(what: str, command: list[str], cwd: Path | None = None) -> None:
    done = subprocess.run(command, capture_output=True, text=True, cwd=cwd)
    if done.returncode != 0:
        raise Missing(f"{what} could not be installed: {(done.stderr or done.stdout).strip()[-300:]}")


def _wse_python() -> Path:
    return CACHE / "wse" / "bin" / "python"


def prepare_wse() -> None:
    if not _wse_python().exists():
        _install("a virtual environment for wse-server", [find_newer_python(), "-m", "venv", str(CACHE / "wse")])
    if subprocess.run([_wse_python(), "-c", "import wse_server"], capture_output=True).returncode != 0:
        _install("wse-server", [str(_wse_python()), "-m", "pip", "install", "--quiet", "wse-server"])


def _bun() -> Path:
    return CACHE / "bun" / "node_modules" / ".bin" / "bun"


def prepare_bun() -> None:
    if _bun().exists():
        return
    if not (npm := shutil.which("npm")):
        raise Missing("npm was not found, so Bun cannot be installed")
    (CACHE / "bun").mkdir(parents=True, exist_ok=True)
    (CACHE / "bun" / "package.json").write_text('{"private": true}')
    _install("Bun", [npm, "install", "--no-audit", "--no-fund", "bun"], cwd=CACHE / "bun")
    if subprocess.run([_bun(), "--version"], capture_output=True).returncode != 0:
        raise Missing("Bun was installed but does not run here")


def prepare_limit() -> None:
    compile_c("limit.c")


def _hubbub_command() -> str:
    return str(Path(sys.executable).with_name("hubbub"))


def prepare_hubbub() -> None:
    done = subprocess.run([_hubbub_command(), "serve", "--help"], capture_output=True, text=True)
    if done.returncode != 0:
        raise Missing(f"`hubbub serve` does not run: {done.stderr.strip().splitlines()[-1:]}")


# ---- the servers ----


def _uvicorn(application: str) -> Callable[[int], list[str]]:
    def command(port: int) -> list[str]:
        options = ["--host", "127.0.0.1", "--port", str(port), "--loop", "uvloop", "--log-level", "warning"]
        return [sys.executable, "-m", "uvicorn", application, "--app-dir", str(PEERS), *options]

    return command


def _hubbub_env(rooms: int, scratch: Path) -> dict[str, str]:
    unlimited = (
        "RATE_LIMIT USER_RATE_LIMIT ABUSE_LIMIT CONTROL_RATE_LIMIT MAX_CONNECTIONS MAX_CONNECTIONS_PER_ADDRESS "
        "MAX_CONNECTIONS_PER_USER MAX_ROOMS MAX_CHANNELS_PER_SESSION"
    )
    return {f"HUBBUB_{name}": "0" for name in unlimited.split()} | {
        "HUBBUB_SECRET": SECRET,
        "HUBBUB_DATA_DIR": str(scratch),
        "HUBBUB_DEFAULT_ROOMS": ",".join(["general", *(f"r{i}" for i in range(rooms))]),
        "HUBBUB_DEFAULT_KIND": "live",
    }


def _stored_env(rooms: int, scratch: Path) -> dict[str, str]:
    return _hubbub_env(rooms, scratch) | {"HUBBUB_DEFAULT_KIND": "group"}


def _hubbub_token(user: str) -> str:
    grants = {"subscribe": ["*"], "publish": ["*"]}
    return jwt.encode({"sub": user, "exp": int(time.time()) + 86_400, "hubbub": grants}, SECRET, algorithm="HS256")


def _wse_token(user: str) -> str:
    now = int(time.time())
    return jwt.encode({"sub": user, "iat": now, "exp": now + 86_400}, SECRET, algorithm="HS256")


STORED = frozenset({"stored-rooms", "stored-room", "stored-rooms-p99", "stored-room-p99"})
HUBBUB = Server(
    name="hubbub",
    title="**hubbub** (live rooms)",
    command=lambda port: [_hubbub_command(), "serve", "--host", "127.0.0.1", "--port", str(port), "--dev"],
    env=_hubbub_env,
    prepare=prepare_hubbub,
    token=_hubbub_token,
    headers=("Authorization: Bearer $TOKEN",),
    room=Dialogue(
        path="/ws",
        script=(
            ("expect", '"auth_success"'),
            ("send", '{"type":"join_room","room_id":"$ROOM"}'),
            ("expect", '"room_joined"'),
        ),
        publish='{"type":"chat_message","room_id":"$ROOM","message":"$TEXT"}',
        deliver='{"type":"message"',
    ),
    echo=Dialogue(path="/ws/echo"),
)

HUBBUB_CHANNEL = replace(
    HUBBUB,
    name="hubbub-channel",
    title="**hubbub** (channels)",
    room=Dialogue(
        path="/ws",
        script=(
            ("expect", '"auth_success"'),
            ("send", '{"type":"subscribe","channel":"$ROOM"$SINCE}'),
            ("expect", '"subscribed"'),
        ),
        publish='{"type":"publish","channel":"$ROOM","data":"$TEXT"}',
        deliver='{"type":"publication"',
    ),
    echo=None,
)


_STORED = replace(
    HUBBUB.room,
    publish='{"type":"chat_message","room_id":"$ROOM","message":"$TEXT","client_id":"$TEXT"}',
)
HUBBUB_STORED = replace(
    HUBBUB,
    name="hubbub-stored",
    title="**hubbub** (stored rooms, SQLite)",
    env=_stored_env,
    echo=None,
    stored=_STORED,
)


def prepare_postgres() -> None:
    """Starts a PostgreSQL, from the wheel that the tests use, for as long as this process lives."""
    prepare_hubbub()
    if _postgres:
        return
    try:
        from tests.databases import PostgresServer
    except ImportError as error:
        raise Missing(f"PostgreSQL's wheel is not installed: {error}") from None
    server = _kept.enter_context(PostgresServer())
    _postgres.append(server)


def _postgres_env(rooms: int, scratch: Path) -> dict[str, str]:
    """A fresh database for each measurement."""
    from tests.databases import fresh_database

    url = _kept.enter_context(fresh_database(_postgres[0].url()))
    env = _stored_env(rooms, scratch) | {"HUBBUB_DATABASE_URL": url}
    done = subprocess.run([_hubbub_command(), "migrate"], env={**os.environ, **env}, capture_output=True, text=True)
    if done.returncode:
        raise Failed(f"`hubbub migrate`: {done.stderr.strip()[-300:]}")
    return env


_postgres: list[PostgresServer] = []
_kept = ExitStack()
"""What lives until :func:`close_all`."""


def close_all() -> None:
    """Ends what was started for all measurements together."""
    _kept.close()


HUBBUB_POSTGRES = replace(
    HUBBUB_STORED,
    name="hubbub-postgres",
    title="**hubbub** (stored rooms, PostgreSQL)",
    env=_postgres_env,
    prepare=prepare_postgres,
    only=STORED,
)


def prepare_engine() -> None:
    """Starts a Valkey for as long as this process lives, on the load generator's core."""
    from bench.engine import engine

    prepare_hubbub()
    if not _engines:
        _engines.append(_kept.enter_context(engine(min(os.sched_getaffinity(0)))))


_engines: list[Engine] = []


def _engine_env(rooms: int, scratch: Path) -> dict[str, str]:
    """A fresh engine for each measurement: that is, names of its own."""
    url, prefix = _engines[0].url, secrets.token_hex(4)
    return _hubbub_env(rooms, scratch) | {"HUBBUB_VALKEY_URL": url, "HUBBUB_VALKEY_PREFIX": prefix}


HUBBUB_VALKEY = replace(
    HUBBUB,
    name="hubbub-valkey",
    title="**hubbub** (live rooms, Valkey)",
    env=_engine_env,
    prepare=prepare_engine,
)


def prepare_full() -> None:
    prepare_hubbub()
    CACHE.mkdir(exist_ok=True)
    fill(CACHE / "full.db")


def _full_env(rooms: int, scratch: Path) -> dict[str, str]:
    shutil.copyfile(CACHE / "full.db", scratch / "hubbub.db")
    return _stored_env(0, scratch)


HUBBUB_FULL = replace(
    HUBBUB_STORED,
    name="hubbub-full",
    title="**hubbub** (a million messages, a thousand rooms, SQLite)",
    env=_full_env,
    prepare=prepare_full,
    stored=None,
    full=True,
    only=frozenset({"page", "room-list"}),
)


def _handler(kind: str) -> Dialogue:
    return Dialogue(
        path="/ws",
        script=(("expect", '"auth_success"'),),
        publish=f'{{"type":"{kind}","text":"$TEXT"}}',
        deliver='{"type":"said"',
    )


TYPED = frozenset({"echo", "typed", "typed-await", "typed-dep", "typed-plain-dep", "typed-model"})
HUBBUB_APP = replace(
    HUBBUB,
    name="hubbub-app",
    title="**hubbub** (in an app)",
    command=lambda port: [*HUBBUB.command(port), "--app", "hubbub_app:app"],
    env=lambda rooms, scratch: {**_hubbub_env(rooms, scratch), "PYTHONPATH": str(PEERS)},
    typed=_handler("say"),
    typed_dep=_handler("say-dep"),
    typed_plain_dep=_handler("say-plain-dep"),
    typed_await=_handler("say-await"),
    typed_model=_handler("say-model"),
    only=TYPED,
)

LIMIT = Server(
    name="limit",
    title="least possible (C, epoll)",
    command=lambda port: [str(CACHE / "limit"), str(port)],
    prepare=prepare_limit,
    room=Dialogue(path="/room/$ROOM", script=(("expect", "joined"),)),
    echo=Dialogue(path="/echo"),
)

LIMIT_WIDE = replace(LIMIT, name="limit-170", title="least possible, 170-byte texts", text_bytes=170)

BUN = Server(
    name="bun",
    title="Bun `server.publish`",
    command=lambda port: [str(_bun()), "run", str(PEERS / "bun.js"), str(port)],
    prepare=prepare_bun,
    room=Dialogue(path="/room/$ROOM/$USER", script=(("expect", "joined"),)),
    echo=Dialogue(path="/echo"),
)

BUN_JSON = replace(
    BUN,
    name="bun-json",
    title="Bun, JSON chat with ack",
    room=Dialogue(
        path="/json/$ROOM/$USER",
        script=(("expect", "joined"),),
        publish='{"type":"chat_message","room_id":"$ROOM","message":"$TEXT"}',
        deliver='{"type":"message"',
    ),
    echo=None,
)

BUN_SQLITE = replace(
    BUN_JSON,
    name="bun-sqlite",
    title="Bun, JSON chat, a commit per message (SQLite)",
    env=lambda rooms, scratch: {"BENCH_SCRATCH": str(scratch)},
    stored=replace(BUN_JSON.room, path="/stored/$ROOM/$USER", publish=_STORED.publish),
    only=STORED,
)

WSE = Server(
    name="wse",
    descriptors=2,
    title="wse-server (Rust)",
    command=lambda port: [str(_wse_python()), str(PEERS / "wse_app.py"), str(port)],
    env=lambda rooms, scratch: {"WSE_SECRET": SECRET},
    prepare=prepare_wse,
    token=_wse_token,
    headers=("Authorization: Bearer $TOKEN",),
    room=Dialogue(path="/", script=(("send", "J $ROOM"), ("expect", "joined")), publish="$ROOM $TEXT"),
    echo=Dialogue(path="/", publish="E$TEXT", deliver="E~P"),
)

GUIDE = Server(
    name="guide",
    title="the guide's ConnectionManager (uvicorn)",
    command=_uvicorn("guide:app"),
    room=Dialogue(path="/room/$ROOM/$USER", script=(("expect", "joined"),), deliver="User "),
    echo=Dialogue(path="/echo"),
)

_SAID = '{"text":'
FASTAPI = Server(
    name="fastapi",
    title="FastAPI endpoint (uvicorn)",
    command=_uvicorn("fastapi_app:app"),
    room=Dialogue(path="/echo"),
    echo=Dialogue(path="/echo"),
    typed=Dialogue(path="/typed", publish='{"text":"$TEXT"}', deliver=_SAID),
    typed_dep=Dialogue(path="/typed-dep", publish='{"text":"$TEXT"}', deliver=_SAID),
    only=TYPED,
)

_SOCKETIO_OPEN = (("expect", '0{"sid"'), ("send", "40"), ("expect", '40{"sid"'))

SOCKETIO = Server(
    name="socketio",
    title="python-socketio (uvicorn)",
    command=_uvicorn("socketio_app:app"),
    ping=("2", "3"),
    room=Dialogue(
        path="/socket.io/?EIO=4&transport=websocket",
        script=(*_SOCKETIO_OPEN, ("send", '42["join","$ROOM"]'), ("expect", '42["joined"')),
        publish='42["publish","$ROOM","$TEXT"]',
        deliver='42["message"',
    ),
    echo=Dialogue(
        path="/socket.io/?EIO=4&transport=websocket",
        script=_SOCKETIO_OPEN,
        publish='42["echo","$TEXT"]',
        deliver='42["echo"',
    ),
    typed=Dialogue(
        path="/socket.io/?EIO=4&transport=websocket",
        script=_SOCKETIO_OPEN,
        publish='421["say",{"text":"$TEXT"}]',
        deliver='431[{"text"',
    ),
    typed_dep=Dialogue(
        path="/socket.io/?EIO=4&transport=websocket",
        script=_SOCKETIO_OPEN,
        publish='421["say_dep",{"text":"$TEXT"}]',
        deliver='431[{"text"',
    ),
)

SERVERS = {
    server.name: server
    for server in (
        LIMIT,
        BUN,
        HUBBUB,
        HUBBUB_STORED,
        HUBBUB_POSTGRES,
        HUBBUB_VALKEY,
        HUBBUB_FULL,
        HUBBUB_CHANNEL,
        HUBBUB_APP,
        BUN_JSON,
        BUN_SQLITE,
        LIMIT_WIDE,
        WSE,
        GUIDE,
        FASTAPI,
        SOCKETIO,
    )
}


# ---- starting and stopping ----


def raise_file_limit() -> int:
    """As many descriptors as this user may have; children inherit it. Returns the number."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard


def placed(cpu: int | None, nice: int) -> None:
    """Puts this process, and what it starts, on one core (None: on any). Runs in the child before it becomes the server.

    A priority needs a session of its own: where the kernel groups processes by session (sched_autogroup, sched(7)),
    `nice` alone counts only inside the group.
    """
    if cpu is not None:
        os.sched_setaffinity(0, {cpu})
    if nice:
        os.setsid()
        os.nice(nice)
        group = Path("/proc/self/autogroup")
        if group.exists():
            group.write_text(str(nice))


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _await_port(running: Running, seconds: float = 30.0) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if running.process.poll() is not None:
            raise Failed(f"{running.server.name} ended at once: {running.tail()}")
        try:
            socket.create_connection(("127.0.0.1", running.port), timeout=1).close()
        except OSError:
            time.sleep(0.05)
        else:
            time.sleep(0.3)
            return
    raise Failed(f"{running.server.name} did not open its port within {seconds:.0f} s: {running.tail()}")


def _stop(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(timeout=4)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@contextmanager
def running(server: Server, cpu: int | None, rooms: int, nice: int = 0) -> Iterator[Running]:
    """Runs a server, all of its threads on one core (None: on any), until the block is left."""
    port = _free_port()
    log = CACHE / "logs" / f"{server.name}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="bench-") as scratch, log.open("wb") as output:
        process = subprocess.Popen(
            server.command(port),
            env={**os.environ, **server.env(rooms, Path(scratch))},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            preexec_fn=lambda: placed(cpu, nice),
        )
        try:
            started = Running(server, port, process, log)
            _await_port(started)
            yield started
        finally:
            _stop(process)
