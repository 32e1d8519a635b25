"""The bad network of the tests."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import pytest

from tests.engine_support import HOST
from tests.fault_proxy import FaultProxy, fault_proxy

pytestmark = pytest.mark.anyio


@asynccontextmanager
async def echoing() -> AsyncIterator[FaultProxy]:
    """A proxy to who says everything again."""

    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionResetError):
            while data := await reader.read(65_536):
                writer.write(data)
        writer.close()

    server = await asyncio.start_server(echo, HOST, 0)
    async with server, fault_proxy(server.sockets[0].getsockname()) as proxy:
        yield proxy


async def said(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, data: bytes, timeout: float = 5.0) -> float:
    began = time.monotonic()
    writer.write(data)
    async with asyncio.timeout(timeout):
        assert await reader.readexactly(len(data)) == data
    return time.monotonic() - began


async def test_it_delays_and_slices_and_keeps_the_order() -> None:
    async with echoing() as proxy:
        reader, writer = await asyncio.open_connection(HOST, proxy.port)
        assert await said(reader, writer, b"x") < 0.1
        proxy.delay, proxy.jitter, proxy.slice = 0.1, 0.02, 1000
        assert 0.2 <= await said(reader, writer, bytes(range(256)) * 256) < 2
        writer.close()


async def test_a_black_hole_says_nothing_and_gives_back_what_it_held() -> None:
    async with echoing() as proxy:
        reader, writer = await asyncio.open_connection(HOST, proxy.port)
        proxy.stall("down")
        with pytest.raises(TimeoutError):
            await said(reader, writer, b"first", timeout=0.1)
        assert proxy.passed["up"] == 5
        proxy.stall()
        writer.write(b"second")
        late, other = await asyncio.open_connection(HOST, proxy.port)
        with pytest.raises(TimeoutError):
            await said(late, other, b"third", timeout=0.1)
        proxy.heal()
        async with asyncio.timeout(5):
            assert await reader.readexactly(11) == b"firstsecond"
            assert await late.readexactly(5) == b"third"
        for each in (writer, other):
            each.close()


async def test_it_resets_and_refuses() -> None:
    async with echoing() as proxy:
        reader, writer = await asyncio.open_connection(HOST, proxy.port)
        await said(reader, writer, b"x")
        proxy.reset()
        async with asyncio.timeout(5):
            with pytest.raises(ConnectionResetError):
                await reader.readexactly(1)
        await proxy.refuse()
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection(HOST, proxy.port)
        await proxy.accept()
        reader, again = await asyncio.open_connection(HOST, proxy.port)
        await said(reader, again, b"x")
        for each in (writer, again):
            each.close()
