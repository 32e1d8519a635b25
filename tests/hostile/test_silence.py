"""Peers that do too little: half-open, slow, silent, half-closed, gone."""

from __future__ import annotations

import signal
import socket
import time
from collections.abc import Callable

import pytest

from tests.hostile.support import (
    BINARY,
    CLOSE,
    CONT,
    PING,
    PONG,
    TEXT,
    Peer,
    Server,
    eventually,
    frame,
    opened,
    request_head,
    reset,
    said,
    token,
    under_attack,
)


@pytest.fixture
def server(serve: Callable[..., Server]) -> Server:
    return serve(
        HANDSHAKE_TIMEOUT="1",
        AUTH_TIMEOUT="1",
        MESSAGE_TIMEOUT="1",
        CLOSE_TIMEOUT="1",
        HEARTBEAT_INTERVAL="1",
        HEARTBEAT_TIMEOUT="1",
        TCP_USER_TIMEOUT="2",
        MAX_CONNECTIONS_PER_ADDRESS="0",
        RATE_LIMIT="0",
        USER_RATE_LIMIT="0",
    )


def ended(sock: socket.socket, seconds: float) -> float:
    """Wait for the server to end it; returns the seconds that took."""
    began = time.monotonic()
    sock.settimeout(seconds)
    try:
        while sock.recv(65536):
            pass
    except ConnectionResetError:
        pass
    except TimeoutError:
        raise AssertionError(f"not ended within {seconds} s") from None
    return time.monotonic() - began


# -- the handshake


def test_half_open_handshakes(server: Server) -> None:
    """Three hundred that say nothing, or a part: all gone after the handshake timeout, and told by one metric."""
    before = server.event("refused_handshake_timeout")
    beginnings = (b"", b"G", b"GET /ws HTT", request_head()[:-2], b"\r\n\r\n")

    def attack(server: Server, until: float) -> tuple[int, int]:
        socks = [opened(server.port) for _ in range(300)]
        for index, sock in enumerate(socks):
            sock.send(beginnings[index % len(beginnings)])
        for sock in socks:
            ended(sock, 2.5)
            sock.close()
        return 0, 300

    under_attack("300 half-open handshakes", server, attack, seconds=0.8)
    assert server.event("refused_handshake_timeout") >= before + 300


def test_head_byte_by_byte(server: Server) -> None:
    """Each byte is progress, and yet the whole head has one deadline."""

    def attack(server: Server, until: float) -> tuple[int, int]:
        socks = [opened(server.port) for _ in range(50)]
        head = request_head(headers=[("X-Padding", "x" * 500)])
        began = time.monotonic()
        living = list(socks)
        for byte in head:
            for sock in list(living):
                try:
                    sock.send(bytes([byte]))
                except (BrokenPipeError, ConnectionResetError):
                    living.remove(sock)
            if not living:
                break
            time.sleep(0.02)
        assert not living
        assert time.monotonic() - began < 2.0
        return 0, 50

    under_attack("heads byte by byte", server, attack, seconds=0.8)


def test_keep_alive_does_not_reset_the_deadline(server: Server) -> None:
    """After a whole HTTP request the next one has a deadline too, an empty line being no request."""
    socks = []
    for beginning in (
        b"\r\n",
        b"G",
        b"GET / HTTP/1.1\r\nX: ",
        b"POST /api/publish HTTP/1.1\r\nContent-Length: 9\r\n\r\n{",
    ):
        sock = opened(server.port)
        sock.send(b"GET /health/live HTTP/1.1\r\nHost: h\r\n\r\n")
        assert sock.recv(4096).startswith(b"HTTP/1.1 200")
        sock.send(beginning)
        socks.append(sock)
    began = time.monotonic()
    for sock in socks:
        ended(sock, 3.0)
    assert time.monotonic() - began < 2.0


def test_a_head_without_end(server: Server) -> None:
    """As many header bytes as fit into the deadline: refused by size long before."""
    rss = server.rss()

    def attack(server: Server, until: float) -> tuple[int, int]:
        with opened(server.port) as sock:
            sent = 0
            try:
                sock.sendall(b"GET /ws HTTP/1.1\r\nHost: h\r\n")
                while time.monotonic() < until:
                    sock.sendall(b"X-Y: " + b"z" * 65_000 + b"\r\n")
                    sent += 65_000
            except (BrokenPipeError, ConnectionResetError):
                pass
            return 0, sent

    report = under_attack("a head without end", server, attack)
    assert report.peak < rss + 24_000_000
    for block in (b"X: " + b"y" * 1_000_000, b"X: y\r\n" * 100_000, b"/" * 1_000_000):
        with opened(server.port) as sock:
            try:
                sock.sendall((b"GET /" if block[:1] == b"/" else b"GET /ws HTTP/1.1\r\nHost: h\r\n") + block)
                answer = sock.recv(4096)
            except (BrokenPipeError, ConnectionResetError):
                continue  # the answer was lost to the RST that unread bytes cause
            assert answer.split()[1] in (b"400", b"414", b"431"), answer


def test_trailers_without_end(server: Server) -> None:
    rss = server.rss()
    with opened(server.port) as sock:
        try:
            sock.sendall(b"POST /health/live HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n")
            for _ in range(200):
                sock.sendall(b"X-Y: " + b"z" * 100_000 + b"\r\n")
        except (BrokenPipeError, ConnectionResetError):
            pass
    assert server.rss() < rss + 12_000_000


# -- after it


def test_silent_after_the_handshake(server: Server) -> None:
    with server.peer() as peer:
        began = time.monotonic()
        assert peer.message() == {
            "type": "error",
            "code": "authentication_timeout",
            "message": "no token came in time",
        }
        assert peer.close_code() == 4401
        assert 0.9 < time.monotonic() - began < 2.5


def test_pings_do_not_extend_the_time_for_a_token(server: Server) -> None:
    with server.peer() as peer:
        began = time.monotonic()
        peer.socket.settimeout(0.1)
        while time.monotonic() < began + 3:
            try:
                peer.send(frame(PING))
                if (found := peer.receive()) is None or found[0] == CLOSE:
                    break
            except TimeoutError:
                continue
            time.sleep(0.1)
        assert time.monotonic() - began < 2.5


NEVER_FINISHED = {
    "fragments": (frame(TEXT, b"", fin=False), frame(CONT, b"", fin=False)),
    "payload": (frame(TEXT, b"x" * 60_000)[:20], b"x"),
    "pings inside": (frame(TEXT, b"", fin=False), frame(PING, b"")),
    "one byte of a header": (b"\x81", b""),
    "a part of a control frame": (frame(PING, b"x" * 100)[:50], b""),
}


def test_messages_that_are_never_finished(server: Server) -> None:
    began = time.monotonic()
    peers = {}
    for name, (first, _) in NEVER_FINISHED.items():
        for path, user in (("/ws", "slow"), ("/ws/echo", None)):
            peer = peers[name, path] = server.peer(path, user=user)
            peer.send(first)
            peer.socket.settimeout(0.005)
    codes: dict[tuple[str, str], int] = {}
    while len(codes) < len(peers) and time.monotonic() < began + 4:
        time.sleep(0.05)
        for key, peer in peers.items():
            if key in codes:
                continue
            try:
                peer.send(NEVER_FINISHED[key[0]][1])
                found = peer.receive()
                if found is None or found[0] == CLOSE:
                    codes[key] = int.from_bytes(found[1][:2], "big") if found is not None else 0
            except TimeoutError:
                pass
    took = time.monotonic() - began
    assert len(codes) == len(peers), codes
    assert all(code == 1008 for (name, _), code in codes.items() if NEVER_FINISHED[name][1]), codes
    assert set(codes.values()) <= {1008, 4410}
    assert took < 3.5


def test_no_pongs(server: Server) -> None:
    """Two hundred peers that answer no ping are gone within interval + timeout (1 s + 1 s), to the kernel as well."""
    before = server.event("heartbeat_lost")
    peers = [server.peer(user=f"mute-{index}") for index in range(200)]
    began = time.monotonic()
    codes = [peer.close_code(seconds=4) for peer in peers]
    assert time.monotonic() - began < 3.0
    assert set(codes) == {4410}
    assert server.event("heartbeat_lost") == before + 200
    eventually(lambda: server.sockets(peer.port for peer in peers) == [])
    for peer in peers:
        peer.socket.close()


def test_any_byte_is_life(server: Server) -> None:
    lives = [frame(PONG, b""), said("ping"), frame(PING, b"x")]
    peers = [server.peer(user="lively") for _ in lives]
    for _ in range(12):
        time.sleep(0.25)
        for peer, life in zip(peers, lives, strict=True):
            peer.send(life)
    for peer in peers:
        assert peer.ask("ping")["type"] == "pong"


def test_a_stall_of_the_server_is_nobodys_fault(server: Server) -> None:
    """Stopped for longer than interval + timeout, and then nobody is thrown out for a silence that was the server's."""
    before = server.event("heartbeat_lost")
    peers = [server.peer(user=f"stalled-{index}") for index in range(50)]
    half = server.peer("/ws/echo")
    half.send(frame(BINARY, b"ab")[:-1])
    server.process.send_signal(signal.SIGSTOP)
    time.sleep(2.5)
    server.process.send_signal(signal.SIGCONT)
    half.send(b"b")
    assert half.receive() == (BINARY, b"ab")
    for peer in peers:
        peer.say("ping")
    for peer in peers:
        peer.expect("pong")
        peer.socket.close()
    half.socket.close()
    assert server.event("heartbeat_lost") == before


@pytest.mark.parametrize("path", ["/ws", "/ws/echo"])
def test_half_close(server: Server, path: str) -> None:
    """A peer that sends no more is let go, with what it was still owed, and its socket does not stay."""
    peers = []
    for _ in range(50):
        peer = server.peer(path, user=None if path == "/ws/echo" else "half")
        peer.send(said("ping") if path == "/ws" else frame(BINARY, b"last"))
        peer.socket.shutdown(socket.SHUT_WR)
        peers.append(peer)
    for peer in peers:
        assert peer.is_over(3.0)
    eventually(lambda: server.sockets(peer.port for peer in peers) == [])
    for peer in peers:
        peer.socket.close()


def test_half_close_of_one_that_does_not_read(server: Server) -> None:
    peer = server.peer("/ws/echo", lazy=True)
    peer.blast(frame(BINARY, bytes(60_000)) * 4, time.monotonic() + 0.5, read=False)
    peer.socket.shutdown(socket.SHUT_WR)
    eventually(lambda: server.sockets([peer.port]) == [], 4.0, lambda: server.sockets([peer.port]))
    peer.socket.close()


def test_resets_in_the_middle_of_everything(server: Server) -> None:
    """RST before, in and after the handshake, inside frames, under echo and under fan-out."""
    descriptors = server.descriptors()
    signed = said("auth", token=token("reset"))
    joined = signed + said("join_room", room_id="general")

    def attack(server: Server, until: float) -> tuple[int, int]:
        for index in range(400):
            kind = index % 8
            if kind < 3:
                sock = opened(server.port)
                sock.send((b"", b"GET /w", request_head("/ws/echo", ()) + frame(BINARY, bytes(9)))[kind])
                reset(sock)
                continue
            peer = server.peer("/ws/echo" if kind == 3 else "/ws")
            block = {
                3: frame(BINARY, bytes(50_000)) * 4,
                4: joined + said("chat_message", message="hello") * 20,
                5: joined[: len(joined) // 2],
                6: signed + said("subscribe", channel="reset") + said("publish", channel="reset", data=1) * 30,
                7: frame(CLOSE, b"\x03\xe8"),
            }[kind]
            peer.send(block)
            peer.reset()
        return 0, 400

    report = under_attack("resets everywhere", server, attack, seconds=1.0)
    assert report.after < report.before * 1.1 + 12_000_000
    eventually(lambda: server.metric("websocket_active_connections") == 0)
    assert server.descriptors() <= descriptors
    assert server.complaints() == []


# -- too early


def test_bytes_glued_to_the_handshake(server: Server) -> None:
    glued = said("auth", token=token("early")) + said("join_room", room_id="general", ref="j") + said("ping", ref="p")
    with server.peer(glued=glued) as peer:
        got = [peer.message()["type"] for _ in range(4)]
        assert [kind for kind in got if kind != "user_joined"] == ["auth_success", "room_joined", "pong"]


@pytest.mark.parametrize("size", [1_000, 60_000, 300_000, 3_000_000])
@pytest.mark.parametrize("path", ["/ws", "/ws/echo"])
def test_many_bytes_glued_to_the_handshake(server: Server, path: str, size: int) -> None:
    """All are handled in order, or the connection is dropped: nobody may send before the 101, let alone so much."""
    each = 100
    count = size // each
    if path == "/ws":
        first, messages = said("auth", token=token("early")), [said("ping", ref=f"{i:060}") for i in range(count)]
    else:
        first, messages = b"", [frame(BINARY, b"%090d" % index) for index in range(count)]
    peer = server.peer("")
    peer.socket.setblocking(False)
    got = _exchange(peer, request_head(path) + first + b"".join(messages))
    peer.socket.close()
    head, _, rest = got.partition(b"\r\n\r\n")
    if not head.startswith(b"HTTP/1.1 101"):
        assert size > 60_000, head
        return
    peer.data = bytearray(rest)
    index = 0
    while (found := peer.take()) is not None and found[0] != CLOSE:
        if path == "/ws/echo":
            assert found == (BINARY, b"%090d" % index)
            index += 1
        elif b'"pong"' in found[1]:
            assert b"%060d" % index in found[1]
            index += 1
    assert index == count or size > 60_000


def _exchange(peer: Peer, data: bytes) -> bytes:
    """Send all while reading all, until nothing comes for a while."""
    sent, got, quiet = 0, bytearray(), time.monotonic()
    while time.monotonic() < quiet + 0.3:
        try:
            if sent < len(data):
                sent += peer.socket.send(data[sent : sent + 262_144])
                quiet = time.monotonic()
        except BlockingIOError:
            pass
        except (BrokenPipeError, ConnectionResetError):
            sent = len(data)
        try:
            chunk = peer.socket.recv(262_144)
            if not chunk:
                break
            got += chunk
            quiet = time.monotonic()
        except BlockingIOError:
            time.sleep(0.001)
        except ConnectionResetError:
            break
    return bytes(got)


def test_user_timeout_is_set(server: Server) -> None:
    """TCP_USER_TIMEOUT on what was accepted: Linux shows it where data waits for a peer that takes none (ss -o)."""
    with server.peer("/ws/echo", lazy=True) as peer:
        peer.blast(frame(BINARY, bytes(60_000)) * 4, time.monotonic() + 0.3, read=False)
        eventually(lambda: server.sockets([peer.port]) == [], 6.0, lambda: server.sockets([peer.port]))
