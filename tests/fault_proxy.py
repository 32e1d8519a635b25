"""A network that can be made bad while it is used: a proxy on a loopback port, in this loop.

Everything is switched at run time and holds for connections that are open too: ``proxy.delay = 0.3`` (seconds each way),
``.jitter``, ``.slice`` (bytes per write), ``.stall()`` (nothing passes and nothing is closed: a black hole), ``.stall("up")``
(nothing towards the target), ``.hold()`` (what is open now stands still, and new connections work: after ``.let_go()`` its
bytes come late, whoever sent them has gone), ``.heal()``, ``.reset()`` (RST to both ends of all connections), ``.refuse()``
(nobody listens), ``.target`` (where new connections go).
"""

from __future__ import annotations

import asyncio
import random
import socket
import ssl
import struct
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Final, Literal, TypeAlias

from tests.engine_support import HOST, end, free_port

Target: TypeAlias = tuple[str, int] | Path
Way: TypeAlias = Literal["up", "down"]
CHUNKS: Final = 64
"""Pieces of at most 64 KiB that are on their way in one direction of a connection; then the sender has to wait."""


class FaultProxy:
    """See :func:`fault_proxy`.

    :param tls: it takes connections by TLS with this.
    :ivar taken: bytes that have come, by direction; ``passed``: that went on.
    """

    def __init__(self, target: Target, tls: ssl.SSLContext | None = None) -> None:
        self.target = target
        self.port = free_port()
        self.delay = 0.0
        self.jitter = 0.0
        self.slice = 0
        self.taken = {"up": 0, "down": 0}
        self.passed = {"up": 0, "down": 0}
        self._tls = tls
        self._open = {"up": asyncio.Event(), "down": asyncio.Event()}
        self._server: asyncio.Server | None = None
        self._connections: dict[asyncio.Task[None], list[asyncio.StreamWriter]] = {}
        self._moving: dict[asyncio.Task[None], asyncio.Event] = {}
        self.heal()

    @property
    def url(self) -> str:
        """As an engine."""
        return f"valkey{'s' * bool(self._tls)}://{HOST}:{self.port}/0"

    @property
    def connections(self) -> int:
        return len(self._connections)

    def stall(self, *ways: Way) -> None:
        """Let nothing pass any more (or nothing in one direction), also on new connections. Nobody is told."""
        for way in ways or ("up", "down"):
            self._open[way].clear()

    def heal(self) -> None:
        """Let everything pass, at once and whole. What waited goes on, as after a network's outage."""
        self.delay = self.jitter = self.slice = 0
        for way in self._open.values():
            way.set()

    def hold(self, *which: int) -> None:
        """Let nothing pass any more on the connections that are open now, or on those that were the first, second … of them."""
        for index, moving in enumerate(self._moving.values()):
            if not which or index in which:
                moving.clear()

    def let_go(self) -> None:
        """What was held comes, as TCP brings what it repeats: long after another connection was made in its place."""
        for moving in self._moving.values():
            moving.set()

    def reset(self) -> None:
        """End all connections by RST."""
        for task, writers in list(self._connections.items()):
            for writer in writers:
                _reset(writer)
            task.cancel()

    async def accept(self) -> None:
        if self._server is None:
            self._server = await asyncio.start_server(self._connected, HOST, self.port, ssl=self._tls)

    async def refuse(self) -> None:
        """Refuse new connections."""
        if self._server is not None:
            self._server.close()
            self._server = None
            await asyncio.sleep(0)

    async def close(self) -> None:
        await self.refuse()
        tasks = list(self._connections)
        self.reset()
        await end(*tasks)

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._connections[task] = [writer]
        self._moving[task] = moving = asyncio.Event()
        moving.set()
        try:
            if isinstance(self.target, Path):
                onward = await asyncio.open_unix_connection(self.target)
            else:
                onward = await asyncio.open_connection(*self.target)
            self._connections[task].append(onward[1])
            async with asyncio.TaskGroup() as group:
                group.create_task(self._pump(reader, onward[1], "up", moving))
                group.create_task(self._pump(onward[0], writer, "down", moving))
        except* (OSError, ssl.SSLError, asyncio.CancelledError):
            pass  # either end has gone, or the test ends: the other end sees it below
        finally:
            del self._moving[task]
            for each in self._connections.pop(task):
                each.transport.abort()

    async def _pump(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, way: Way, moving: asyncio.Event
    ) -> None:
        queue: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(CHUNKS)
        async with asyncio.TaskGroup() as group:
            group.create_task(self._write(queue, writer, way, moving))
            while data := await _read(reader, moving):
                self.taken[way] += len(data)
                await queue.put((time.monotonic(), data))
            await queue.put((time.monotonic(), b""))

    async def _write(
        self,
        queue: asyncio.Queue[tuple[float, bytes]],
        writer: asyncio.StreamWriter,
        way: Way,
        moving: asyncio.Event,
    ) -> None:
        while True:
            came, data = await queue.get()
            late = came + self.delay + self.jitter * random.random() - time.monotonic()
            if late > 0 and (self.delay or self.jitter):
                await asyncio.sleep(late)
            await self._open[way].wait()
            await moving.wait()
            if not data:
                # the end of one direction ends both, as engines and nodes never use the half
                raise ConnectionResetError("one end closed")
            size = self.slice or len(data)
            for start in range(0, len(data), size):
                if writer.is_closing():
                    raise ConnectionResetError("it was reset")  # uvloop's write() would say it otherwise
                writer.write(data[start : start + size])
                await writer.drain()
                if self.slice:
                    await asyncio.sleep(0)
            self.passed[way] += len(data)


async def _read(reader: asyncio.StreamReader, moving: asyncio.Event) -> bytes:
    try:
        return await reader.read(65_536)
    except OSError:
        if moving.is_set():
            raise
        return b""  # what it sent before is on its way


def _reset(writer: asyncio.StreamWriter) -> None:
    end_of_it = writer.get_extra_info("socket")
    if end_of_it is not None:  # else it is gone already
        with suppress(OSError):
            end_of_it.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


@asynccontextmanager
async def fault_proxy(target: Target, tls: ssl.SSLContext | None = None) -> AsyncIterator[FaultProxy]:
    """A proxy to an address or a Unix socket that listens."""
    proxy = FaultProxy(target, tls)
    await proxy.accept()
    try:
        yield proxy
    finally:
        await proxy.close()
