"""``hubbub serve`` as a process that is killed again and again while people talk."""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import socket
import sys
import time
from collections.abc import Callable, Collection
from functools import partial
from pathlib import Path
from typing import Any, Final

from hubbub import issue_token
from hubbub.settings import Settings
from tests.databases import PORTS
from tests.support import SECRET, settings_for
from tests.talkers import Kept, Person, behind, connection, kept

PATIENCE: Final = 60.0
"""Seconds that anything may take, in all, before the test fails."""
ROOMS: Final = ("crash-0", "crash-1", "crash-2")
PRIVATE: Final = "crash-3"
LIVES: Final = """
import os, sys
import alembic.operations, alembic.runtime.migration, alembic.script, asyncpg, sqlalchemy.ext.asyncio
import uvicorn, uvloop
import hubbub.app, hubbub.cli, hubbub.logs, hubbub.transports.uvicorn

child = 0
for line in sys.stdin:
    if words := line.split():
        child = os.fork()
        if child == 0:
            os.dup2(2, 1)
            sys.argv = ["hubbub", *words]
            hubbub.cli.main()
            os._exit(0)
    else:
        os.waitpid(child, 0)
        child = 0
    print(child, flush=True)
if child:
    os.kill(child, 9)
"""
"""Has imported what `hubbub` needs, and forks it at each command. An empty line waits for its end. (Importing takes much
longer than all else that a start does, and is always the same.)"""


class ServerProcess:
    """``hubbub serve`` on one port over all its lives.

    :param settings: beside the usual ones.
    :param fresh: each life is a new process, as of a shell; else a fork of one that has imported all.
    """

    def __init__(self, directory: Path, database_url: str, *, fresh: bool = False, **settings: str) -> None:
        self.port = _free_port()
        self.log = directory / "server.log"
        self.settings: Settings = settings_for()
        self.pid = 0
        self._fresh = fresh
        self._process: asyncio.subprocess.Process | None = None
        self._environment = {name: value for name, value in os.environ.items() if not name.startswith("HUBBUB_")} | {
            "HUBBUB_SECRET": SECRET,
            "HUBBUB_DATA_DIR": str(directory),
            "HUBBUB_DATABASE_URL": database_url,
            "HUBBUB_DEFAULT_ROOMS": ",".join(ROOMS),
            "HUBBUB_RATE_LIMIT": "0",
            "HUBBUB_USER_RATE_LIMIT": "0",
            **{f"HUBBUB_{name.upper()}": value for name, value in settings.items()},
        }

    def url(self, user: str, **grants: Any) -> str:
        token = issue_token(self.settings, user, now=time.time(), ttl=3600.0, **grants)
        return f"ws://127.0.0.1:{self.port}/ws?token={token}"

    async def start(self) -> None:
        """Start it, and wait until it listens. (It answers a little later, once its store is open.)"""
        command = ("serve", "--port", str(self.port))
        if self._fresh or self._process is None:
            program = ("-m", "hubbub.cli", *command) if self._fresh else ("-c", LIVES)
            with self.log.open("ab") as log:
                self._process = await asyncio.create_subprocess_exec(
                    sys.executable, *program, env=self._environment, stderr=log,
                    stdin=asyncio.subprocess.PIPE, stdout=log if self._fresh else asyncio.subprocess.PIPE,
                )  # fmt: skip
        self.pid = self._process.pid if self._fresh else await self._tell(" ".join(command))
        async with asyncio.timeout(PATIENCE):
            while not await self._listens():
                if self._has_ended():
                    raise AssertionError(f"the server ended at its start: {self.tail()}")
                await asyncio.sleep(0.005)

    async def kill(self, number: signal.Signals = signal.SIGKILL) -> None:
        """End it, and wait for its end."""
        assert self._process is not None
        os.kill(self.pid, number)
        async with asyncio.timeout(PATIENCE):
            await (self._process.wait() if self._fresh else self._tell(""))
        self.pid = 0

    async def stop(self) -> None:
        if self.pid and not self._has_ended():
            await self.kill()
        if self._process is not None and not self._fresh:
            await self._process.communicate(b"")  # the end of its input

    async def _tell(self, line: str) -> int:
        assert self._process is not None
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f"{line}\n".encode())
        async with asyncio.timeout(PATIENCE):
            return int(await self._process.stdout.readline())

    async def _listens(self) -> bool:
        try:
            _, writer = await asyncio.open_connection("127.0.0.1", self.port)
        except OSError:
            return False
        writer.close()
        return True

    def _has_ended(self) -> bool:
        if self._fresh:
            return self._process is None or self._process.returncode is not None
        try:
            return Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
        except FileNotFoundError:
            return True

    def tail(self) -> str:
        return self.log.read_text(errors="replace")[-2000:]


def _free_port() -> int:
    """See :data:`tests.databases.PORTS`: nobody else may take it while the server is down."""
    while True:
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port := random.choice(PORTS)))
            except OSError:
                continue
            return port


def crowd(server: ServerProcess, *, may_fail: Collection[str] = ()) -> list[Person]:
    """24 people, six in each room; some listen to all of them."""
    rooms = (*ROOMS, PRIVATE)
    return [
        Person(server.url, f"p{index}", rooms[index % 4], rooms if index < 4 else (), may_fail=may_fail)
        for index in range(24)
    ]


async def survive(
    server: ServerProcess, people: list[Person], kills: int, seed: int, number: signal.Signals = signal.SIGKILL
) -> dict[str, Kept]:
    """Let people talk, and end the server again and again. Returns what it has in the end."""
    dice = random.Random(seed)
    await server.start()
    await _make_private(server, [person.name for person in people])
    lives = [asyncio.create_task(person.live()) for person in people]
    try:
        for _ in range(kills):
            # some lives end before anybody has said anything
            goal = sum(person.acked for person in people) + (0 if dice.random() < 0.1 else dice.randint(1, 400))
            await _until(partial(_have_said, people, goal), server, people, lives)
            await asyncio.sleep(dice.uniform(0.0, 0.01))  # not always at the moment of an ack
            await server.kill(number)
            await server.start()
        for person in people:
            person.quiet = True
        await _until(lambda: all(person.here and person.settled for person in people), server, people, lives)
        rooms = {room: await kept(server.url("reader", admin=True), room) for room in (*ROOMS, PRIVATE)}
        await _until(lambda: not behind(people, rooms), server, people, lives)
        return rooms
    finally:
        for life in lives:
            life.cancel()
        await asyncio.gather(*lives, return_exceptions=True)
        await server.stop()


def _have_said(people: list[Person], goal: int) -> bool:
    return sum(person.acked for person in people) >= goal


async def _make_private(server: ServerProcess, names: list[str]) -> None:
    room = {"type": "create_room", "room_id": PRIVATE, "visibility": "private", "members": names}
    async with asyncio.timeout(PATIENCE), connection(server.url("maker")) as client:
        await client.send(json.dumps(room))
        while (answer := json.loads(await client.recv()))["type"] != "room_created":
            assert answer["type"] != "error", answer


async def _until(
    condition: Callable[[], bool], server: ServerProcess, people: list[Person], lives: list[asyncio.Task[None]]
) -> None:
    try:
        async with asyncio.timeout(PATIENCE):
            while not condition():
                for life in lives:
                    if life.done():
                        life.result()
                for person in people:
                    assert not person.wrong, person.wrong[:3]
                await asyncio.sleep(0.002)
    except TimeoutError:
        raise AssertionError(f"nobody got any further; the server says: {server.tail()}") from None
