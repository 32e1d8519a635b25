"""Who publishes while others are away: one client that sends as the load generator does, and waits for the answers."""

from __future__ import annotations

import os
import socket
import time
from base64 import b64encode
from types import TracebackType
from typing import Self

from bench.servers import Failed, Running

FILLER = " the quick brown fox jumps over the lazy dog"


def frame(text: str) -> bytes:
    """A client's frame with the mask 0."""
    data = text.encode()
    if len(data) < 126:
        return bytes((0x81, 0x80 | len(data))) + bytes(4) + data
    return bytes((0x81, 0xFE)) + len(data).to_bytes(2, "big") + bytes(4) + data


class Publisher:
    """A client of a node that may publish on r0, r1, …"""

    def __init__(self, target: Running) -> None:
        token = target.server.token
        assert token is not None
        self.socket = socket.create_connection(("127.0.0.1", target.port), timeout=20)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        head = (
            f"GET /ws HTTP/1.1\r\nHost: 127.0.0.1\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            f"Sec-WebSocket-Key: {b64encode(os.urandom(16)).decode()}\r\nSec-WebSocket-Version: 13\r\n"
            f"Authorization: Bearer {token('publisher')}\r\n\r\n"
        )
        self.socket.sendall(head.encode())
        self._read(b'"auth_success"', 1)
        self.said = 0

    def publish(self, channels: int, count: int) -> None:
        """Publish so many messages on each channel, and wait for the answers."""
        for _ in range(count):
            self._round(channels)

    def publish_slowly(self, channels: int, count: int, seconds: float = 1.0) -> int:
        """The same, spread over so many seconds. Returns the count."""
        for _ in range(count):
            self._round(channels)
            time.sleep(seconds / count)
        return count

    def _round(self, channels: int) -> None:
        stamp, sent = time.monotonic_ns(), self.said
        texts = (f"~P{channel:05}S{sent:09}T{stamp:016x}{FILLER}"[:50] for channel in range(channels))
        messages = (f'{{"type":"publish","channel":"r{index}","data":"{text}"}}' for index, text in enumerate(texts))
        self.socket.sendall(b"".join(frame(message) for message in messages))
        self._read(b'"ack"', channels)
        self.said += 1

    def _read(self, marker: bytes, times: int) -> None:
        data, found = b"", 0
        while found < times:
            more = self.socket.recv(1 << 20)
            if not more:
                raise Failed("the server closed the publisher's connection")
            data += more
            if b'{"type":"error"' in data:
                raise Failed(f"the server refused to publish: {data[-300:]!r}")
            found += data.count(marker)
            cut = data.rfind(marker)
            data = data[cut + len(marker) :] if cut >= 0 else data[-64:]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.socket.close()
