"""Floods: one hostile socket, and nobody else feels it (reliability.md 2.1 has what stock servers do)."""

from __future__ import annotations

import contextlib
import os
import selectors
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
    Report,
    Server,
    frame,
    under_attack,
)

MB = 1 << 20


@pytest.fixture
def server(serve: Callable[..., Server]) -> Server:
    # one address makes and drops thousands of connections here
    return serve(
        CLOSE_TIMEOUT="1",
        MAX_CONNECTIONS_PER_ADDRESS="0",
        RATE_LIMIT="300",
        RATE_BURST="300",
        USER_RATE_LIMIT="0",
    )


def flood(
    path: str,
    first: bytes,
    block: bytes,
    *,
    read: bool = True,
    user: str | None = None,
    limit: int = 256 * MB,
    thrown_out: bool = True,
) -> Callable[[Server, float], tuple[int, int]]:
    def attack(server: Server, until: float) -> tuple[int, int]:
        with server.peer(path, user=user) as peer:
            peer.send(first)
            sent = peer.blast(block, until, read=read, limit=limit)
            return ending(peer) if thrown_out else 0, sent

    return attack


def ending(peer: Peer) -> int:
    """The close code that came, or 1006; without waiting for one that does not."""
    peer.socket.settimeout(0.05)
    try:
        return peer.close_code(seconds=0.05)
    except AssertionError:
        return 0


def check(report: Report, server: Server) -> None:
    """Memory comes back, nothing leaks, and the log has nothing to say."""
    slack = 12 * MB  # of the allocator, and of what the first attack imports and caches
    assert report.after <= report.before * 1.1 + slack, (report.before, report.after)
    assert report.peak <= report.before * 1.1 + 2 * slack, (report.before, report.peak)
    assert server.complaints() == []


@pytest.mark.parametrize(("path", "size"), [("/ws", 0), ("/ws", 2), ("/ws/echo", 1)])
def test_never_ending_message(server: Server, path: str, size: int) -> None:
    """Fragments without an end, of no or one or two bytes: 1009 at the cap of fragments."""
    before = server.event("violation_1009")
    attack = flood(path, frame(TEXT, b"x" * size, fin=False), frame(CONT, b"x" * size, fin=False) * 8192)
    report = under_attack(f"fragments of {size}, {path}", server, attack)
    assert report.codes[1009] >= 1, report.codes
    assert server.event("violation_1009") > before
    check(report, server)


def test_fragments_in_time_with_a_slow_sender(server: Server) -> None:
    """The same in one segment per frame: 1009 after exactly so many."""
    with server.peer("/ws/echo") as peer:
        peer.send(frame(TEXT, b"x", fin=False) + frame(CONT, b"", fin=False) * 2047)
        peer.send(frame(PING, b"still here"))
        assert peer.receive() == (PONG, b"still here")
        peer.send(frame(CONT, b"", fin=False))
        assert peer.close_code() == 1009


def test_ping_flood(server: Server) -> None:
    before = server.event("control_flood")
    report = under_attack("ping flood", server, flood("/ws", b"", frame(PING, b"p" * 20) * 4096))
    assert report.codes[1008] >= 1, report.codes
    assert server.event("control_flood") > before
    check(report, server)


def test_pings_whose_pongs_are_never_read(server: Server) -> None:
    attack = flood("/ws/echo", b"", frame(PING, os.urandom(125)) * 4096, read=False, limit=200 * MB)
    report = under_attack("pings, pongs unread", server, attack)
    assert set(report.codes) <= {1008, 1006, 0}, report.codes
    assert report.codes[1008] >= 1, report.codes
    check(report, server)


def test_pong_flood(server: Server) -> None:
    report = under_attack("pong flood", server, flood("/ws", b"", frame(PONG, b"") * 8192))
    assert report.codes[1008] >= 1, report.codes
    check(report, server)


def test_close_flood(server: Server) -> None:
    report = under_attack("close flood", server, flood("/ws", b"", frame(CLOSE, b"\x03\xe8") * 4096))
    assert report.codes[1000] >= 1, report.codes
    check(report, server)


def test_controls_inside_a_message(server: Server) -> None:
    """Pings between fragments, which is allowed, count as much as others."""
    block = (frame(PING) + frame(CONT, b"x", fin=False)) * 4096
    report = under_attack("pings between fragments", server, flood("/ws", frame(TEXT, b"x", fin=False), block))
    assert set(report.codes) <= {1008, 1009, 1006, 0}, report.codes
    assert report.codes[1008] >= 1, report.codes
    check(report, server)


def test_oversized_control_frames(server: Server) -> None:
    for opcode in (PING, PONG, CLOSE):
        with server.peer() as peer:
            peer.send(frame(opcode, b"x" * 126))
            assert peer.close_code() == 1002
        with server.peer() as peer:
            peer.send(bytes([0x80 | opcode, 0xFF]) + (1 << 40).to_bytes(8, "big"))  # not even the masking key has come
            assert peer.close_code() == 1002
    attack = flood("/ws", b"", frame(PING, os.urandom(60_000)) * 16)
    report = under_attack("oversized control frames", server, attack)
    assert report.codes[1002] >= 1, report.codes
    check(report, server)


def test_unmasked_two_byte_frames(server: Server) -> None:
    report = under_attack("unmasked 2-byte frames", server, flood("/ws", b"", b"\x00\x00" * 65536))
    assert report.codes[1002] >= 1, report.codes
    check(report, server)


def test_message_flood_without_a_token(server: Server) -> None:
    report = under_attack("1-byte messages, no token", server, flood("/ws", b"", frame(TEXT, b"x") * 8192))
    assert report.codes[4429] >= 1, report.codes
    check(report, server)


def test_message_flood_of_a_user(server: Server) -> None:
    """First every message over the rate is refused by an error, then the session ends with 4429."""
    with server.peer(user="flooder") as peer:
        peer.send(frame(TEXT, b'{"type":"ping"}') * 2000)
        refused = peer.expect("error", code="rate_limited")
        assert refused["retry_after"] > 0
        assert peer.close_code() == 4429
    before = server.metric('hubbub_limited_total{limit="abuse"}')
    attack = flood("/ws", b"", frame(TEXT, b'{"type":"ping"}') * 4096, user="flooder")
    report = under_attack("message flood of a user", server, attack)
    assert report.codes[4429] >= 1, report.codes
    assert server.metric('hubbub_limited_total{limit="abuse"}') > before
    check(report, server)


@pytest.mark.parametrize("read", [True, False])
def test_message_flood_into_the_echo(server: Server, read: bool) -> None:
    """Where no rate holds, the turns are shared fairly all the same; and who does not read is not read from."""
    attack = flood("/ws/echo", b"", frame(BINARY, b"x") * 8192, read=read, thrown_out=False)
    report = under_attack(f"1-byte echoes, {'read' if read else 'unread'}", server, attack)
    check(report, server)


def test_tiny_frames_in_one_segment(server: Server) -> None:
    """Glued: ten thousand messages arrive at once. Each is answered, in order, and others get in between."""
    many = 10_000
    with server.peer("/ws/echo") as peer:
        peer.send(b"".join(frame(BINARY, index.to_bytes(4, "big")) for index in range(many)))
        for index in range(many):
            assert peer.receive() == (BINARY, index.to_bytes(4, "big"))
    block = frame(BINARY, b"x") * 30_000
    report = under_attack("glued tiny frames", server, flood("/ws/echo", b"", block, thrown_out=False))
    check(report, server)


def test_large_messages(server: Server) -> None:
    """Megabytes a message: copying and checking them takes time too."""
    block = frame(TEXT, "ä".encode() * (2 * MB))
    report = under_attack(
        "4 MB texts into the echo", server, flood("/ws/echo", b"", block, limit=64 * MB, thrown_out=False)
    )
    assert report.peak - report.before < 80 * MB
    assert server.complaints() == []


def test_many_attackers_at_once(server: Server) -> None:
    """A hundred connections that always have more to say: they share a turn, and it stays short."""

    def attack(server: Server, until: float) -> tuple[int, int]:
        block, sent = frame(BINARY, b"x") * 8192, 0
        with selectors.DefaultSelector() as selector:
            for _ in range(100):
                peer = server.peer("/ws/echo")
                peer.socket.setblocking(False)
                selector.register(peer.socket, selectors.EVENT_READ | selectors.EVENT_WRITE, [peer, 0])
            while time.monotonic() < until:
                for key, ready in selector.select(0.1):
                    peer, at = key.data
                    with contextlib.suppress(BlockingIOError):
                        if ready & selectors.EVENT_READ:
                            peer.socket.recv(262_144)
                        if ready & selectors.EVENT_WRITE:
                            taken = peer.socket.send(block[at : at + 32_768])
                            sent += taken
                            key.data[1] = (at + taken) % len(block)
            for key in list(selector.get_map().values()):
                key.data[0].socket.close()
        return 0, sent

    report = under_attack("a hundred at once: echoes", server, attack, seconds=1.5)
    check(report, server)
