"""`hubbub serve` in a process of its own, peers made of raw sockets, and a well-behaved client that is timed."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import re
import select
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from hubbub import issue_token
from tests.support import API_KEY, SECRET, settings_for

START = 20.0
"""Seconds that a server may take to start."""
WAIT = 5.0
"""Seconds that any single wait may take."""
SLOWEST = 0.1
"""Seconds within which 99 of 100 echoes of a well-behaved client come back, whatever the others do."""
PAGE = os.sysconf("SC_PAGE_SIZE")
CONT, TEXT, BINARY, CLOSE, PING, PONG = 0, 1, 2, 8, 9, 10
KEY = base64.b64encode(b"0123456789abcdef")


def token(user: str, **grants: Any) -> str:
    """A good token of the servers here."""
    grants.setdefault("subscribe", ("*",))
    grants.setdefault("publish", ("*",))
    return issue_token(settings_for(), user, now=time.time(), ttl=grants.pop("ttl", 3600.0), **grants)


# -- the server


class Server:
    """One `hubbub serve` with settings of its own; its log goes to a file."""

    def __init__(self, directory: Path, settings: dict[str, str]) -> None:
        self.log_path = directory / "log"
        environment = {name: value for name, value in os.environ.items() if not name.startswith("HUBBUB_")}
        environment |= {"HUBBUB_SECRET": SECRET, "HUBBUB_API_KEYS": API_KEY, "HUBBUB_DATA_DIR": str(directory)}
        environment |= {f"HUBBUB_{name}": value for name, value in settings.items()}
        with self.log_path.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "hubbub.cli", "serve", "--port", "0"],
                env=environment,
                stdout=log,
                stderr=log,
            )
        try:
            self.port = self._wait_for_port()
        except BaseException:
            self.process.kill()
            raise

    def _wait_for_port(self) -> int:
        until = time.monotonic() + START
        while time.monotonic() < until and self.process.poll() is None:
            found = re.search(r"listens on http://127\.0\.0\.1:(\d+)", self.log())
            if found and "Application startup complete" in self.log():
                return int(found[1])
            time.sleep(0.02)
        raise AssertionError(f"the server did not start:\n{self.log()}")

    def log(self) -> str:
        return self.log_path.read_text(errors="surrogateescape")

    @property
    def pid(self) -> int:
        return self.process.pid

    def rss(self) -> int:
        """Resident bytes."""
        return int(Path(f"/proc/{self.pid}/statm").read_text().split()[1]) * PAGE

    def descriptors(self) -> int:
        return len(os.listdir(f"/proc/{self.pid}/fd"))

    def cpu(self) -> float:
        """Seconds of CPU used so far."""
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def get(self, path: str, *, bearer: str | None = None) -> tuple[int, bytes]:
        return self.request("GET", path, bearer=bearer)

    def request(
        self, method: str, path: str, body: bytes | None = None, *, bearer: str | None = None
    ) -> tuple[int, bytes]:
        """One HTTP request on a connection of its own. Returns status and body."""
        head = f"{method} {path} HTTP/1.1\r\nHost: h\r\nConnection: close\r\n"
        if bearer is not None:
            head += f"Authorization: Bearer {bearer}\r\n"
        if body is not None:
            head += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n"
        answer = b""
        with opened(self.port) as sock:
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                sock.sendall(head.encode() + b"\r\n" + (body or b""))
            with contextlib.suppress(ConnectionResetError):
                while chunk := sock.recv(65536):
                    answer += chunk
        head_end, _, content = answer.partition(b"\r\n\r\n")
        return int(head_end.split(b" ", 2)[1]), content

    def publish(self, channel: str, data: Any, key: str | None = None) -> None:
        body = json.dumps({"channel": channel, "data": data, "key": key}).encode()
        status, answer = self.request("POST", "/api/publish", body, bearer=API_KEY)
        assert status == 200, answer

    def metrics(self) -> dict[str, float]:
        status, body = self.get("/metrics")
        assert status == 200, body
        lines = [line.rpartition(" ") for line in body.decode().splitlines() if not line.startswith("#")]
        return {name: float(value) for name, _, value in lines}

    def metric(self, name: str) -> float:
        return self.metrics().get(name, 0.0)

    def event(self, name: str) -> float:
        return self.metric(f'hubbub_transport_events_total{{event="{name}"}}')

    def peer(self, path: str = "/ws", *, user: str | None = None, **options: Any) -> Peer:
        """A connected peer; signed in if a user is named."""
        peer = Peer(self.port, path, **options)
        if user is not None:
            peer.sign_in(user)
        return peer

    def sockets(self, peer_ports: Iterable[int]) -> list[str]:
        """The states of the kernel's sockets on the server's side towards some peers' ports: those that hold anything
        (not FIN_WAIT2 and TIME_WAIT, which are what is left of a connection that the server has let go)."""
        wanted = set(peer_ports)
        found = []
        for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
            fields = line.split()
            local, remote = int(fields[1].partition(":")[2], 16), int(fields[2].partition(":")[2], 16)
            if local == self.port and remote in wanted and fields[3] not in ("05", "06"):
                found.append(fields[3])
        return found

    def terminate(self, seconds: float) -> int:
        """SIGTERM; returns the exit code, which must come within so many seconds."""
        self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"the server still runs {seconds} s after SIGTERM:\n{self.log()[-4000:]}") from None

    def stop(self) -> None:
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(20)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()

    def complaints(self) -> list[str]:
        """Log lines that a hostile peer must not be able to cause: above info, and tracebacks."""
        pattern = re.compile(r"\[(warning|error|critical)\s*\]|Traceback|Exception|Error:")
        return [line for line in self.log().splitlines() if pattern.search(line)]


@contextlib.contextmanager
def served(directory: Path, **settings: str) -> Iterator[Server]:
    """A server that must not have complained by the end."""
    server = Server(directory, settings)
    try:
        yield server
        assert server.process.poll() is None, f"the server died:\n{server.log()[-4000:]}"
    finally:
        server.stop()
    assert server.complaints() == []


def eventually(condition: Callable[[], bool], seconds: float = WAIT, what: Callable[[], Any] | None = None) -> None:
    """Wait until a condition holds."""
    until = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > until:
            raise AssertionError(f"not within {seconds} s: {what() if what is not None else condition}")
        time.sleep(0.02)


# -- a peer

OPENED: list[socket.socket] = []
"""What a test opened; closed at its end, whatever it came to."""


def opened(server_port: int, *, lazy: bool = False, source: str = "") -> socket.socket:
    """A plain connection to a server.

    :param lazy: as little as possible fits into the kernel's buffers, so that not reading is felt at once.
    :param source: the address to come from.
    """
    sock = socket.socket()
    OPENED.append(sock)
    sock.settimeout(WAIT)
    if lazy:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, 536)  # the sender's buffer is some segments large
    if source:
        sock.bind((source, 0))
    sock.connect(("127.0.0.1", server_port))
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return sock


def reset(sock: socket.socket) -> None:
    """Drop a connection with a RST."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


def frame(opcode: int, payload: bytes = b"", *, fin: bool = True) -> bytes:
    """A client's frame, with the masking key 0 (so the payload can be read in a dump)."""
    head = bytes([(0x80 if fin else 0) | opcode])
    size = len(payload)
    if size < 126:
        head += bytes([0x80 | size])
    elif size < 65536:
        head += struct.pack("!BH", 0x80 | 126, size)
    else:
        head += struct.pack("!BQ", 0x80 | 127, size)
    return head + bytes(4) + payload


def said(kind: str, /, **fields: Any) -> bytes:
    """A message as a JSON text frame."""
    return frame(TEXT, json.dumps({"type": kind, **fields}).encode())


def request_head(path: str = "/ws", headers: Iterable[tuple[str, str]] = (), host: str = "h") -> bytes:
    lines = [
        f"GET {path} HTTP/1.1",
        f"Host: {host}",
        "Upgrade: websocket",
        "Connection: Upgrade",
        f"Sec-WebSocket-Key: {KEY.decode()}",
        "Sec-WebSocket-Version: 13",
        *(f"{name}: {value}" for name, value in headers),
    ]
    return "\r\n".join(lines).encode("latin-1") + b"\r\n\r\n"


class Peer:
    """A raw socket that has done a WebSocket's opening handshake.

    :param path: an empty one leaves the handshake to the caller.
    :param lazy: see :func:`opened`, as for ``source``.
    :param glued: bytes that leave in the same segment as the request.
    """

    def __init__(
        self,
        port: int,
        path: str = "/ws",
        *,
        headers: Iterable[tuple[str, str]] = (),
        lazy: bool = False,
        source: str = "",
        glued: bytes = b"",
    ) -> None:
        self.socket = opened(port, lazy=lazy, source=source)
        self.port: int = self.socket.getsockname()[1]
        self.data = bytearray()
        self.ended = False
        self.head = b""
        self.status = 0
        if path:
            self._shake_hands(request_head(path, headers) + glued)

    def _shake_hands(self, data: bytes) -> None:
        self.socket.sendall(data)
        while b"\r\n\r\n" not in self.data:
            if not self._more():
                break
        self.head, _, rest = bytes(self.data).partition(b"\r\n\r\n")
        self.data = bytearray(rest)
        self.status = int(self.head.split(b" ", 2)[1]) if self.head else 0

    def __enter__(self) -> Peer:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def sign_in(self, user: str) -> None:
        self.say("auth", token=token(user))
        self.expect("auth_success")

    def _more(self) -> bool:
        try:
            chunk = self.socket.recv(262_144)
        except (ConnectionResetError, BrokenPipeError):
            chunk = b""
        self.ended = not chunk
        self.data += chunk
        return bool(chunk)

    def send(self, data: bytes) -> None:
        self.socket.sendall(data)

    def say(self, kind: str, /, **fields: Any) -> None:
        self.send(said(kind, **fields))

    def take(self) -> tuple[int, bytes] | None:
        """The next whole frame that is here already."""
        data = self.data
        if len(data) < 2:
            return None
        size, start = data[1] & 127, 2
        if size == 126 and len(data) >= 4:
            size, start = struct.unpack_from("!H", data, 2)[0], 4
        elif size == 127 and len(data) >= 10:
            size, start = struct.unpack_from("!Q", data, 2)[0], 10
        elif size > 125:
            return None
        if len(data) < start + size:
            return None
        found = data[0] & 15, bytes(data[start : start + size])
        del data[: start + size]
        return found

    def receive(self) -> tuple[int, bytes] | None:
        """The next frame; None at the end of the connection."""
        while (found := self.take()) is None:
            if not self._more():
                return None
        return found

    def message(self) -> dict[str, Any]:
        """The next JSON message; control frames are passed over."""
        while True:
            found = self.receive()
            assert found is not None, "the connection ended"
            if found[0] == CLOSE:
                raise AssertionError(f"closed: {found[1]!r}")
            if found[0] == TEXT:
                return cast("dict[str, Any]", json.loads(found[1]))

    def expect(self, kind: str, /, **fields: Any) -> dict[str, Any]:
        """The next message of a type (with some fields); others are passed over."""
        passed = []
        while True:
            message = self.message()
            if message["type"] == kind and all(message.get(name) == value for name, value in fields.items()):
                return message
            passed.append(message)
            assert len(passed) < 100_000, f"no {kind!r}, but {passed[:20]}"

    def ask(self, kind: str, /, **fields: Any) -> dict[str, Any]:
        """Send a message and return what carries its ref back."""
        ref = os.urandom(6).hex()
        self.say(kind, ref=ref, **fields)
        while True:
            message = self.message()
            if message.get("ref") == ref:
                return message

    def close_code(self, *, seconds: float = WAIT) -> int:
        """Read to the end; returns the code of the server's close frame, 1005 for one without, 1006 for none."""
        self.socket.settimeout(seconds)
        code = 1006
        try:
            while (found := self.receive()) is not None:
                if found[0] == CLOSE:
                    code = struct.unpack("!H", found[1][:2])[0] if found[1] else 1005
                    break
        except TimeoutError:
            raise AssertionError(f"it was not closed within {seconds} s") from None
        return code

    def is_over(self, seconds: float = WAIT) -> bool:
        """Whether the server ends the connection within some seconds (what comes before that is passed over)."""
        self.socket.settimeout(seconds)
        try:
            while self._more():
                self.data.clear()
        except TimeoutError:
            return False
        return True

    def reset(self) -> None:
        """See :func:`reset`."""
        reset(self.socket)

    def blast(self, block: bytes, until: float, *, read: bool = True, limit: int = 1 << 40) -> int:
        """Send a block over and over, as fast as the server takes it, until a time or until the server ends it.

        :returns: bytes sent.
        """
        sock, view, sent, at = self.socket, memoryview(block), 0, 0
        sock.setblocking(False)
        reads = [sock] if read else []
        try:
            while time.monotonic() < until and sent < limit:
                readable, writable, _ = select.select(reads, [sock], [], 0.05)
                if readable:
                    if not self._more():
                        break
                    if len(self.data) > 1 << 20:
                        del self.data[: -(1 << 16)]
                if writable:
                    taken = sock.send(view[at : at + 262_144])
                    sent += taken
                    at = (at + taken) % len(block)
        except (BlockingIOError, ConnectionResetError, BrokenPipeError):
            pass
        sock.settimeout(WAIT)
        return sent


# -- a well-behaved client


def percentile(values: list[float], share: float) -> float:
    """The value below which a share of the values lies (nearest rank)."""
    if not values:
        return float("inf")
    return sorted(values)[min(len(values) - 1, int(len(values) * share))]


@dataclass
class Felt:
    """What the well-behaved client felt: seconds, by what it did."""

    times: dict[str, list[float]] = field(default_factory=lambda: {"ws": [], "echo": [], "http": [], "new": []})

    def p(self, what: str, share: float) -> float:
        return percentile(self.times[what], share)

    @property
    def echoes(self) -> list[float]:
        return [seconds for what in ("ws", "echo", "http") for seconds in self.times[what]]

    def fine(self) -> bool:
        return all(self.p(what, 0.99) <= SLOWEST for what in ("ws", "echo", "http")) and self.p("new", 1) < 1.0

    def __str__(self) -> str:
        parts = [f"{what} {1000 * self.p(what, 0.5):.1f}/{1000 * self.p(what, 0.99):.1f}" for what in self.times]
        return "  ".join(parts)


class Victim(threading.Thread):
    """Echoes over /ws, /ws/echo and HTTP one after another, with new handshakes in between, and times each."""

    def __init__(self, server: Server, pause: float = 0.005) -> None:
        super().__init__(daemon=True)
        self.server = server
        self.felt = Felt()
        self.failure: BaseException | None = None
        self._pause = pause
        self._ending = threading.Event()

    def run(self) -> None:
        try:
            self._run()
        except BaseException as failure:
            self.failure = failure

    def _run(self) -> None:
        server, times = self.server, self.felt.times
        with server.peer(user="victim") as session, server.peer("/ws/echo") as echo:
            round_ = 0
            while not self._ending.wait(self._pause):
                round_ += 1
                times["ws"].append(_timed(lambda: session.ask("ping")))
                times["echo"].append(_timed(lambda: _echoed(echo)))
                times["http"].append(_timed(lambda: _live(server)))
                if round_ % 5 == 0:
                    times["new"].append(_timed(lambda: _opened(server)))

    def finish(self) -> Felt:
        self._ending.set()
        self.join(4 * WAIT)
        if self.failure is not None:
            raise AssertionError(f"the well-behaved client failed: {self.failure!r}") from self.failure
        assert not self.is_alive(), "the well-behaved client hangs"
        return self.felt


def _timed(do: Callable[[], object]) -> float:
    began = time.perf_counter()
    do()
    return time.perf_counter() - began


def _echoed(peer: Peer) -> None:
    payload = os.urandom(8)
    peer.send(frame(BINARY, payload))
    assert peer.receive() == (BINARY, payload)


def _live(server: Server) -> None:
    assert server.get("/health/live")[0] == 200


def _opened(server: Server) -> None:
    with server.peer() as peer:
        assert peer.status == 101
        peer.sign_in("victim")


@dataclass
class Report:
    """One attack: what the victim felt, the server's memory (bytes), how the attackers' connections ended."""

    name: str
    felt: Felt
    before: int
    peak: int
    after: int
    sent: int
    codes: Counter[int]


REPORTS: list[Report] = []
"""For the table at the end of the run."""

Attack = Callable[[Server, float], tuple[int, int]]
"""Attacks once, until a time (monotonic) or until it is thrown out; returns the close code and the bytes sent."""


def under_attack(
    name: str, server: Server, attack: Attack, *, seconds: float = 1.0, attackers: int = 1, pause: float = 0.005
) -> Report:
    """Attack, coming back whenever thrown out, while a well-behaved client works and the memory is watched.

    Other work on this machine can be felt too: what looks bad is tried again. (Where a server is to be felt,
    it is felt each time, and by seconds.)
    """
    report = _attacked(name, server, attack, seconds, attackers, pause)
    for again in range(2):
        if not report.felt.fine():
            time.sleep(0.5)
            report = _attacked(f"{name} ({again + 2})", server, attack, seconds, attackers, pause)
    REPORTS.append(report)
    assert report.felt.fine(), f"{name}: p50/p99 in ms: {report.felt}"
    return report


def _attacked(name: str, server: Server, attack: Attack, seconds: float, attackers: int, pause: float) -> Report:
    before, descriptors = server.rss(), server.descriptors()
    victim = Victim(server, pause)
    until = time.monotonic() + seconds
    codes: Counter[int] = Counter()
    sent = [0]
    failures: list[BaseException] = []

    def keep_on() -> None:
        try:
            while time.monotonic() < until:
                code, size = attack(server, until)
                codes[code] += 1
                sent[0] += size
        except BaseException as failure:
            failures.append(failure)

    threads = [threading.Thread(target=keep_on, daemon=True) for _ in range(attackers)]
    victim.start()
    for thread in threads:
        thread.start()
    peak = before
    while time.monotonic() < until or any(thread.is_alive() for thread in threads):
        peak = max(peak, server.rss())
        time.sleep(0.02)
        assert time.monotonic() < until + 2 * WAIT, "an attacker hangs"
    felt = victim.finish()
    assert not failures, failures
    eventually(lambda: server.descriptors() <= descriptors, what=lambda: f"{server.descriptors()} > {descriptors}")
    return Report(name, felt, before, peak, server.rss(), sent[0], codes)
