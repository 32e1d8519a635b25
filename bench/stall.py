"""The longest stall of the loop while a large room is written to: what a stranger's echo waits, at the worst.

    python -m bench.stall [--members 15000] [--seconds 10]

Fills one room (signed in, joined), lets one member talk ten times a second, and measures the echo of a connection that
has nothing to do with the room. Loopback only; ends only what it started. Needs as many descriptors as members, twice.
"""

from __future__ import annotations

import argparse
import os
import resource
import selectors
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from base64 import b64encode
from pathlib import Path

from hubbub.auth import issue_token
from hubbub.settings import Settings

SECRET = "a secret of the benchmark, long enough for anybody"
LIFTED = ("RATE_LIMIT", "USER_RATE_LIMIT", "ABUSE_LIMIT", "CONTROL_RATE_LIMIT", "MAX_CONNECTIONS_PER_ADDRESS")


def frame(text: str) -> bytes:
    data = text.encode()
    head = bytes((0x81, 0x80 | len(data))) if len(data) < 126 else bytes((0x81, 0xFE)) + len(data).to_bytes(2, "big")
    return head + bytes(4) + data


def connect(port: int, path: str, token: str = "") -> socket.socket:
    sock = socket.create_connection(("127.0.0.1", port))
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    lines = [
        f"GET {path} HTTP/1.1",
        "Host: 127.0.0.1",
        "Upgrade: websocket",
        "Connection: Upgrade",
        f"Sec-WebSocket-Key: {b64encode(os.urandom(16)).decode()}",
        "Sec-WebSocket-Version: 13",
    ]
    if token:
        lines.append(f"Authorization: Bearer {token}")
    sock.sendall("\r\n".join([*lines, "", ""]).encode())
    return sock


def read_until(sock: socket.socket, marker: bytes) -> None:
    data = b""
    while marker not in data:
        data = data[-64:] + sock.recv(65536)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--members", type=int, default=15_000)
    parser.add_argument("--seconds", type=float, default=10.0)
    options = parser.parse_args()
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    members = min(options.members, hard - 200)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with tempfile.TemporaryDirectory() as data:
        environment = {**os.environ, "HUBBUB_SECRET": SECRET, "HUBBUB_DATA_DIR": data}
        environment.update({f"HUBBUB_{name}": "0" for name in LIFTED})
        server = subprocess.Popen(
            [Path(sys.executable).parent / "hubbub", "serve", "--port", str(port)],
            env=environment,
            stderr=subprocess.PIPE,
        )
        try:
            assert server.stderr is not None
            while b"listens" not in server.stderr.readline():
                pass
            os.sched_setaffinity(server.pid, {0})
            os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
            measure(port, members, options.seconds)
        finally:
            server.terminate()
            server.wait(30)


def measure(port: int, members: int, seconds: float) -> None:
    settings = Settings(secret=SECRET)
    room = []
    for number in range(members):
        token = issue_token(settings, f"u{number}", now=time.time(), ttl=3600)
        sock = connect(port, "/ws/chat/general", token)
        read_until(sock, b"room_joined")
        sock.setblocking(False)
        room.append(sock)
    stranger = connect(port, "/ws/echo")
    read_until(stranger, b"\r\n\r\n")
    selector = selectors.DefaultSelector()
    for sock in room:
        selector.register(sock, selectors.EVENT_READ)
    waits: list[float] = []
    said, until, next_said = 0, time.monotonic() + seconds, 0.0
    stranger.settimeout(30)
    while (now := time.monotonic()) < until:
        if now >= next_said:
            room[0].send(frame('{"type":"chat_message","message":"%s"}' % ("x" * 50)))
            said, next_said = said + 1, now + 0.1
        began = time.perf_counter()
        stranger.send(frame("echo"))
        stranger.recv(64)
        waits.append(time.perf_counter() - began)
        for key, _ in selector.select(0)[:2000]:
            key.fileobj.recv(65536)  # type: ignore[union-attr]  # all are sockets
    waits.sort()
    print(
        f"{members:,} members, {said} messages in {seconds:g} s ({said * members / seconds:,.0f} deliveries/s): "
        f"a stranger's echo p50 {statistics.median(waits) * 1000:.2f} ms, "
        f"p99 {waits[int(len(waits) * 0.99)] * 1000:.1f} ms, longest {waits[-1] * 1000:.1f} ms"
    )


if __name__ == "__main__":
    main()
