"""Messages of the largest size and beyond it; lengths that are declared and never sent."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest

from tests.hostile.support import BINARY, CONT, TEXT, Server, frame

MAX = 10_000


@pytest.fixture
def server(serve: Callable[..., Server]) -> Server:
    return serve(MAX_MESSAGE_SIZE=str(MAX))


def padded(size: int) -> bytes:
    short = json.dumps({"type": "ping", "pad": ""}).encode()
    return short[:-2] + b"x" * (size - len(short)) + short[-2:]


@pytest.mark.parametrize("parts", [1, 2, 7])
def test_the_largest(server: Server, parts: int) -> None:
    whole = padded(MAX)
    step = -(-MAX // parts)
    frames = [frame(CONT if at else TEXT, whole[at : at + step], fin=at + step >= MAX) for at in range(0, MAX, step)]
    with server.peer(user="large") as peer:
        peer.send(b"".join(frames))
        assert peer.message() == {"type": "pong"}
    with server.peer("/ws/echo") as peer:
        peer.send(b"".join(frames))
        assert peer.receive() == (TEXT, whole)


@pytest.mark.parametrize("over", [1, 2, 1 << 20, (1 << 32) - MAX, (1 << 62)])
@pytest.mark.parametrize("path", ["/ws", "/ws/echo"])
def test_too_large_by_its_header(server: Server, path: str, over: int) -> None:
    """1009 as soon as the header says so: nothing of the payload has come."""
    size = MAX + over
    declared = bytes([0xFE]) + size.to_bytes(2, "big") if size < 65536 else bytes([0xFF]) + size.to_bytes(8, "big")
    before = server.rss()
    with server.peer(path) as peer:
        peer.send(bytes([0x80 | BINARY]) + declared)
        assert peer.close_code() == 1009
    assert server.rss() < before + 8_000_000


@pytest.mark.parametrize("over", [1, 2])
def test_too_large_in_fragments(server: Server, over: int) -> None:
    with server.peer(user="large") as peer:
        peer.send(frame(TEXT, b"x" * (MAX - 10), fin=False))
        peer.send(frame(CONT, b"x" * (10 + over), fin=False)[:6])  # its header and masking key
        assert peer.close_code() == 1009


def test_length_of_64_bits_with_the_top_bit(server: Server) -> None:
    with server.peer() as peer:
        peer.send(bytes([0x82, 0xFF]) + (1 << 63).to_bytes(8, "big"))
        assert peer.close_code() == 1002


def test_lengths_not_in_their_shortest_form(server: Server) -> None:
    for declared in (bytes([0xFE]) + (125).to_bytes(2, "big"), bytes([0xFF]) + (65535).to_bytes(8, "big")):
        with server.peer() as peer:
            peer.send(bytes([0x82]) + declared)
            assert peer.close_code() == 1002


def test_others_are_not_touched(server: Server) -> None:
    with server.peer(user="small") as small:
        for _ in range(20):
            with server.peer() as peer:
                peer.send(bytes([0x82, 0xFF]) + (1 << 40).to_bytes(8, "big") + bytes(1000))
                assert peer.close_code() == 1009
        assert small.ask("ping")["type"] == "pong"
    assert server.event("violation_1009") >= 20
    assert server.complaints() == []
