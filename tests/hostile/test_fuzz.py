"""Whatever bytes come in whatever order, on any number of connections: no traceback, nothing left, the server lives."""

from __future__ import annotations

import json
import random
import select
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
    Felt,
    Peer,
    Server,
    Victim,
    eventually,
    frame,
    request_head,
    said,
    token,
)

CONNECTIONS = 400
KINDS = [
    "auth",
    "ping",
    "heartbeat",
    "subscribe",
    "unsubscribe",
    "publish",
    "history",
    "presence",
    "create_room",
    "list_rooms",
    "join_room",
    "leave_room",
    "chat_message",
    "typing",
    "nope",
]


def scrap(dice: random.Random) -> bytes:
    """Something that a hostile peer may send: sane, nearly sane, or noise."""
    match dice.randrange(10):
        case 0:
            return dice.randbytes(dice.randint(1, 200))
        case 1:
            return frame(dice.choice((CONT, TEXT, BINARY)), dice.randbytes(dice.randrange(50)), fin=dice.random() < 0.5)
        case 2:
            return frame(dice.choice((PING, PONG)), dice.randbytes(dice.randrange(126)))
        case 3:
            return frame(CLOSE, dice.choice((b"", b"\x03", b"\x03\xe8", b"\x03\xe8bye", b"\xff\xff", b"\x03\xe8\xff")))
        case 4:
            return bytes([dice.randrange(256), dice.randrange(256)])
        case 5:
            whole = said("ping")
            return whole[: dice.randrange(len(whole))]
        case 6:
            return bytes([0x81, 0xFF]) + dice.randbytes(8)
        case _:
            return frame(TEXT, json.dumps(message(dice)).encode())


def message(dice: random.Random) -> dict[str, object]:
    def value() -> object:
        return dice.choice(
            (None, True, 0, -1, 2**53, 1e300, "", "x", "general", "c", "fuzz", "\x00", "é" * 50, [], {}, [[]], {"a": 1})
        )

    made: dict[str, object] = {"type": dice.choice(KINDS)}
    for field in ("channel", "room_id"):
        if dice.random() < 0.7:
            made[field] = dice.choice(("fuzz", "general", "room:general", "user:fuzz", f"r{dice.randrange(5)}"))
    for field in (
        "data",
        "message",
        "since",
        "presence",
        "limit",
        "ref",
        "key",
        "client_id",
        "session",
        "exclude_self",
    ):
        if dice.random() < 0.3:
            made[field] = value()
    if dice.random() < 0.2:
        made["since"] = {"epoch": "x", "offset": dice.randrange(9)}
    if made["type"] == "auth":
        made["token"] = token("fuzz") if dice.random() < 0.5 else value()
    return made


def misbehave(peer: Peer, dice: random.Random, data: bytes) -> None:
    """Send in pieces, read or do not, and leave in some way."""
    sock = peer.socket
    sock.settimeout(0.2)
    at = 0
    try:
        while at < len(data):
            step = dice.choice((1, 7, 100, 5000))
            at += sock.send(data[at : at + step])
            if dice.random() < 0.1 and select.select([sock], [], [], 0)[0]:
                sock.recv(65536)
        if dice.random() < 0.3:
            sock.shutdown(socket.SHUT_WR)
    except OSError:  # it takes nothing more, or has closed
        pass
    if dice.random() < 0.5:
        peer.reset()
    elif dice.random() < 0.8:
        sock.close()


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, None])
def test_random_bytes(serve: Callable[..., Server], seed: int | None) -> None:
    server = serve(
        RATE_LIMIT="0",
        USER_RATE_LIMIT="0",
        ABUSE_LIMIT="0",
        MAX_CONNECTIONS_PER_ADDRESS="0",
        MAX_CONNECTIONS_PER_USER="0",
        AUTH_TIMEOUT="1",
        HANDSHAKE_TIMEOUT="1",
        MESSAGE_TIMEOUT="1",
        CLOSE_TIMEOUT="1",
        HEARTBEAT_INTERVAL="1",
        HEARTBEAT_TIMEOUT="1",
        PRESENCE_GRACE="0.2",
    )
    chosen = seed if seed is not None else random.randrange(1 << 32)
    print("seed", chosen)
    dice = random.Random(chosen)
    descriptors = server.descriptors()
    victim = Victim(server)
    victim.start()
    signed = said("auth", token=token("fuzz"))
    for _ in range(CONNECTIONS):
        path = dice.choice(("/ws", "/ws", "/ws?format=msgpack", "/ws/echo", "/ws/chat/general", "/ws/chat/none"))
        peer = server.peer("")
        data = request_head(path) + (signed if dice.random() < 0.6 else b"")
        misbehave(peer, dice, data + b"".join(scrap(dice) for _ in range(dice.randint(1, 40))))
    felt: Felt = victim.finish()
    print(felt)
    began = time.monotonic()
    eventually(lambda: server.metric("websocket_active_connections") == 0, 5.0)
    eventually(lambda: server.metric("hubbub_channels") == 0, 5.0)
    eventually(lambda: server.descriptors() <= descriptors, 5.0)
    assert time.monotonic() - began < 6.0
    assert server.metric("hubbub_users") == 0
    assert server.complaints() == [], f"seed {chosen}"
    assert felt.p("ws", 0.95) < 0.1, felt
