"""A server process that is killed again and again while people talk, and the oracle that says whether all held.

What must hold (docs/reliability.md): what was acknowledged is there; a room's numbers have no holes; nothing is there
twice; who comes back gets exactly what they missed.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import websockets
from websockets.asyncio.client import ClientConnection, connect

from hubbub import issue_token
from hubbub.settings import Settings
from tests.support import SECRET, settings_for

PATIENCE = 30.0
"""Seconds that anything may take, in all, before the test fails."""
ROOMS = ("crash-0", "crash-1", "crash-2")


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


class ServerProcess:
    """``hubbub serve`` as a process of its own, on one port over all its lives."""

    def __init__(self, directory: Path, database_url: str) -> None:
        self.port = free_port()
        self.log = directory / "server.log"
        self.settings: Settings = settings_for()
        self._process: asyncio.subprocess.Process | None = None
        self._environment = {name: value for name, value in os.environ.items() if not name.startswith("HUBBUB_")} | {
            "HUBBUB_SECRET": SECRET,
            "HUBBUB_DATA_DIR": str(directory),
            "HUBBUB_DATABASE_URL": database_url,
            "HUBBUB_DEFAULT_ROOMS": ",".join(ROOMS),
            "HUBBUB_RATE_LIMIT": "0",
            "HUBBUB_USER_RATE_LIMIT": "0",
        }

    async def start(self) -> None:
        """Start it, and wait until it listens."""
        with self.log.open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "hubbub.cli", "serve", "--port", str(self.port),
                env=self._environment, stdout=log, stderr=log,
            )  # fmt: skip
        async with asyncio.timeout(PATIENCE):
            while True:
                if self._process.returncode is not None:
                    raise AssertionError(f"the server ended at its start: {self.tail()}")
                try:
                    _, writer = await asyncio.open_connection("127.0.0.1", self.port)
                except OSError:
                    await asyncio.sleep(0.01)
                    continue
                writer.close()
                return

    async def kill(self) -> None:
        """End it as a power cut of the process would: SIGKILL."""
        assert self._process is not None
        self._process.kill()
        await self._process.wait()

    async def stop(self) -> None:
        if self._process is not None and self._process.returncode is None:
            self._process.kill()
            await self._process.wait()

    def tail(self) -> str:
        return self.log.read_text(errors="replace")[-2000:]

    def token(self, user: str) -> str:
        import time

        return issue_token(self.settings, user, now=time.time(), ttl=3600.0)

    @asynccontextmanager
    async def connection(self, user: str) -> AsyncIterator[ClientConnection]:
        url = f"ws://127.0.0.1:{self.port}/ws?token={self.token(user)}"
        async with connect(url, proxy=None, ping_interval=None, max_queue=None, close_timeout=0.2) as client:
            yield client


@dataclass
class Seen:
    """What one person has seen of one room: number → (author, client id, text)."""

    epoch: str = ""
    offset: int = 0
    messages: dict[int, tuple[str, str, str]] = field(default_factory=dict)


class Person:
    """Talks in one room, one message after the other, and listens to all rooms; comes back after every crash.

    :ivar acked: client id → number of the message.
    :ivar wrong: what must not have happened.
    """

    def __init__(self, server: ServerProcess, name: str, room: str) -> None:
        self.server = server
        self.name = name
        self.room = room
        self.acked: dict[str, int] = {}
        self.seen = {each: Seen() for each in ROOMS}
        self.wrong: list[str] = []
        self.quiet = False
        self.returns = 0
        self._count = 0
        self._unanswered: str | None = None

    async def live(self) -> None:
        """Connect, join, talk; again whenever the connection is lost."""
        while True:
            try:
                async with self.server.connection(self.name) as connection:
                    await self._join_all(connection)
                    self.returns += 1
                    await self._talk(connection)
            except (OSError, websockets.WebSocketException, EOFError):
                await asyncio.sleep(0.01)

    async def _join_all(self, connection: ClientConnection) -> None:
        for room, seen in self.seen.items():
            since = {"epoch": seen.epoch, "offset": seen.offset} if seen.epoch else None
            await connection.send(json.dumps({"type": "join_room", "room_id": room, "since": since, "ref": room}))
        left = set(ROOMS)
        while left:
            message = json.loads(await connection.recv())
            if message["type"] == "room_joined":
                left.discard(message["room_id"])
            self._take(message)

    async def _talk(self, connection: ClientConnection) -> None:
        await self._say(connection)
        while True:
            message = json.loads(await connection.recv())
            self._take(message)
            if self._unanswered is None and not self.quiet:
                await self._say(connection)

    async def _say(self, connection: ClientConnection) -> None:
        """Say the next thing, or once more what was not acknowledged."""
        if self._unanswered is None:
            if self.quiet:
                return
            self._count += 1
            self._unanswered = f"{self.name}-{self._count}"
        said = {"type": "chat_message", "room_id": self.room, "message": f"text of {self._unanswered}"}
        await connection.send(json.dumps({**said, "client_id": self._unanswered}))

    def _take(self, message: dict[str, Any]) -> None:
        kind = message["type"]
        if kind == "ack" and "client_id" in message:
            number = self.acked.setdefault(message["client_id"], message["id"])
            if number != message["id"]:
                self.wrong.append(f"{message['client_id']} was acknowledged as {number} and {message['id']}")
            if message["client_id"] == self._unanswered:
                self._unanswered = None
        elif kind == "message":
            self._hear(message)
        elif kind == "room_joined":
            self._joined(message)
        elif kind in ("gap", "error"):
            self.wrong.append(f"{self.name} was told {message}")

    def _joined(self, message: dict[str, Any]) -> None:
        seen = self.seen[message["room_id"]]
        position = message["position"]
        if seen.epoch:
            if not message["recovered"] or position["epoch"] != seen.epoch:
                self.wrong.append(f"{self.name} could not recover {message['room_id']} from {seen.offset}: {position}")
            for missed in message["messages"]:
                self._hear(missed)
            if seen.offset != position["offset"]:
                self.wrong.append(f"{self.name} recovered up to {seen.offset}, and was told {position['offset']}")
        else:
            seen.epoch, seen.offset = position["epoch"], position["offset"]

    def _hear(self, message: dict[str, Any]) -> None:
        seen, data = self.seen[message["room_id"]], message["data"]
        if data["id"] != seen.offset + 1:
            self.wrong.append(f"{self.name} heard {data['id']} after {seen.offset} in {message['room_id']}")
        seen.offset = data["id"]
        seen.messages[data["id"]] = (data["user_id"], data.get("client_id", ""), data["message"])


async def kept(server: ServerProcess, room: str) -> dict[int, tuple[str, str, str]]:
    """All messages that the server has of a room, page by page."""
    found: dict[int, tuple[str, str, str]] = {}
    async with server.connection("reader") as connection:
        await connection.send(json.dumps({"type": "join_room", "room_id": room}))
        after = 0
        while True:
            await connection.send(
                json.dumps({"type": "get_messages", "room_id": room, "after": after, "limit": 200, "ref": "page"})
            )
            while (answer := json.loads(await connection.recv())).get("ref") != "page":
                pass
            assert answer["type"] == "messages", answer
            for data in answer["messages"]:
                found[data["id"]] = (data["user_id"], data.get("client_id", ""), data["message"])
                after = data["id"]
            if not answer["after"]:
                return found


async def survive(server: ServerProcess, people: list[Person], kills: int, seed: int) -> dict[str, dict[int, Any]]:
    """Let people talk, and kill the server again and again. Returns what it has in the end."""
    dice = random.Random(seed)
    await server.start()
    lives = [asyncio.create_task(person.live()) for person in people]
    try:
        for _ in range(kills):
            goal = sum(len(person.acked) for person in people) + dice.randint(1, 400)
            await _until(lambda goal=goal: sum(len(person.acked) for person in people) >= goal, server, lives)
            await server.kill()
            await server.start()
        for person in people:
            person.quiet = True
        await _until(lambda: all(person._unanswered is None for person in people), server, lives)
        rooms = {room: await kept(server, room) for room in ROOMS}
        await _until(
            lambda: all(person.seen[room].offset == max(rooms[room], default=0) for person in people for room in ROOMS),
            server,
            lives,
        )
        return rooms
    finally:
        for life in lives:
            life.cancel()
        await asyncio.gather(*lives, return_exceptions=True)
        await server.stop()


async def _until(condition: Any, server: ServerProcess, lives: list[asyncio.Task[None]]) -> None:
    try:
        async with asyncio.timeout(PATIENCE):
            while not condition():
                for life in lives:
                    if life.done():
                        life.result()
                await asyncio.sleep(0.002)
    except TimeoutError:
        raise AssertionError(f"nobody got any further; the server says: {server.tail()}") from None


def verdict(people: list[Person], rooms: dict[str, dict[int, Any]]) -> list[str]:
    """What did not hold."""
    wrong = [each for person in people for each in person.wrong]
    for room, messages in rooms.items():
        if sorted(messages) != list(range(1, len(messages) + 1)):
            wrong.append(f"{room} has holes: {len(messages)} messages up to {max(messages, default=0)}")
        said = [(author, client_id) for author, client_id, _ in messages.values()]
        if len(said) != len(set(said)):
            wrong.append(f"{room} has something twice")
    for person in people:
        for client_id, number in person.acked.items():
            if rooms[person.room].get(number) != (person.name, client_id, f"text of {client_id}"):
                wrong.append(f"{client_id} was acknowledged as {number}, and is not there")
        for room, seen in person.seen.items():
            for number, message in seen.messages.items():
                if rooms[room].get(number) != message:
                    wrong.append(f"{person.name} saw {message} as {number} in {room}, where there is something else")
    return wrong
