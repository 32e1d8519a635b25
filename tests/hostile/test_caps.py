"""Connections, subscriptions and names without end: capped, given back, and not in the log."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest

from tests.hostile.support import Felt, Server, Victim, eventually, opened, request_head, said, token

PLENTY = {
    "RATE_LIMIT": "0",
    "USER_RATE_LIMIT": "0",
    "ABUSE_LIMIT": "0",
    "MAX_CONNECTIONS_PER_ADDRESS": "0",
    "MAX_CHANNELS_PER_SESSION": "128",
    "MAX_ROOMS_PER_USER": "10",
    "PRESENCE_GRACE": "0.2",
    "LOG_LEVEL": "debug",
}
CAPPED = {"MAX_CONNECTIONS_PER_ADDRESS": "20", "MAX_CONNECTIONS": "60", "CLOSE_TIMEOUT": "1", "AUTH_TIMEOUT": "0"}


def test_connections_of_one_address(serve: Callable[..., Server]) -> None:
    """Accepted, told, closed with 4429: the address's limit holds and touches nobody else's."""
    server = serve(**CAPPED)
    held = [server.peer(source="127.0.0.2") for _ in range(20)]
    for _ in range(30):
        with server.peer(source="127.0.0.2") as peer:
            assert peer.status == 101
            refused = peer.message()
            assert (refused["type"], refused["code"]) == ("error", "too_many")
            assert refused["retry_after"] > 0
            assert peer.close_code() == 4429
    with server.peer(user="other") as other:
        assert other.ask("ping")["type"] == "pong"
    assert server.metric('hubbub_limited_total{limit="address"}') == 30
    held[0].reset()
    eventually(lambda: server.metric("websocket_active_connections") == 19)
    assert server.peer(source="127.0.0.2").ask("ping")["code"] == "authentication_required"


def test_connections_in_all(serve: Callable[..., Server]) -> None:
    """Beyond the cap the answer is HTTP 503 with Retry-After, and what is freed is there again."""
    server = serve(**CAPPED)
    eventually(lambda: server.metric("websocket_active_connections") == 0)
    with server.peer(user="inside") as inside:
        held = [server.peer(source=f"127.0.0.{4 + index % 8}") for index in range(59)]
        for path in ("/ws", "/ws/echo", "/ws/chat/general", "/nowhere"):
            peer = server.peer(path)
            assert peer.status == 503
            assert b"retry-after" in peer.head.lower()
            assert peer.is_over(1.0)
        assert server.event("refused_capacity") == 4
        assert inside.ask("ping")["type"] == "pong"
        assert server.get("/health/live")[0] == 200
        for peer in held:
            peer.socket.close()
        eventually(lambda: server.metric("websocket_active_connections") == 1)
        assert server.peer().status == 101


def test_handshake_flood(serve: Callable[..., Server]) -> None:
    """New connections as fast as they can be made, most beyond the address's limit; the others go on."""
    server = serve(MAX_CONNECTIONS_PER_ADDRESS="20", MAX_CONNECTIONS="0", CLOSE_TIMEOUT="1", RATE_LIMIT="0")
    victim = Victim(server)
    victim.start()
    until = time.monotonic() + 1.5
    count = 0
    while time.monotonic() < until:
        sock = opened(server.port, source="127.0.0.3")
        sock.send(request_head(headers=[("Authorization", f"Bearer {token('flood')}")]))
        count += 1
        if count % 2:
            sock.close()
    felt: Felt = victim.finish()
    print(f"{count} handshakes: {felt}")
    assert felt.p("ws", 0.9) < 0.1
    assert felt.p("new", 1) < 1.0


def churn(server: Server, count: int) -> None:
    glued = said("auth", token=token("churn")) + said("join_room", room_id="general")
    glued += said("subscribe", channel="churn", presence=True)
    for index in range(count):
        peer = server.peer("", source=f"127.0.0.{4 + index % 16}")
        peer.send(request_head() + glued)
        if index % 4 == 0:
            peer.socket.recv(4096)
        peer.reset()


@pytest.mark.slow
def test_reconnect_churn(serve: Callable[..., Server]) -> None:
    """Connect, join, RST, three thousand times: sessions, users, channels, descriptors and memory come back."""
    server = serve(**PLENTY)
    churn(server, 1000)
    eventually(lambda: server.metric("websocket_active_connections") == 0)
    descriptors, warm = server.descriptors(), server.rss()
    churn(server, 2000)
    eventually(lambda: server.metric("websocket_active_connections") == 0)
    eventually(lambda: server.metric("hubbub_channels") == 0)
    numbers = server.metrics()
    assert numbers["hubbub_users"] == 0
    assert numbers["hubbub_slow_readers"] == 0
    assert numbers['websocket_connections_total{status="connected"}'] >= 2000
    assert (
        numbers['websocket_connections_total{status="connected"}']
        == numbers['websocket_connections_total{status="disconnected"}']
    )
    assert server.descriptors() <= descriptors
    assert server.rss() < warm + 4_000_000, (warm, server.rss())
    assert server.complaints() == []


def test_subscriptions_of_one_client(serve: Callable[..., Server]) -> None:
    server = serve(**PLENTY)
    rss = server.rss()
    with server.peer(user="greedy") as peer:
        peer.send(b"".join(said("subscribe", channel=f"c{index}", ref=str(index)) for index in range(1500)))
        kinds = {"subscribed": 0, "too_many": 0}
        for _ in range(1500):
            message = peer.message()
            kinds[message.get("code") or message["type"]] += 1
        assert kinds == {"subscribed": 128, "too_many": 1372}
        assert server.metric("hubbub_channels") == 128
        peer.reset()
    eventually(lambda: server.metric("hubbub_channels") == 0)
    for turn in range(5):  # coming back does not help either
        with server.peer(user="greedy") as peer:
            peer.send(b"".join(said("subscribe", channel=f"t{turn}-{index}") for index in range(128)))
            for _ in range(128):
                peer.expect("subscribed")
            peer.reset()
    eventually(lambda: server.metric("hubbub_channels") == 0)
    assert server.rss() < rss + 12_000_000


def test_rooms_of_one_user(serve: Callable[..., Server]) -> None:
    server = serve(**PLENTY)
    with server.peer(user="founder") as peer:
        answers = [peer.ask("create_room", room_id=f"r{index}") for index in range(50)]
        assert [a["type"] for a in answers[:10]] == ["room_created"] * 10
        assert {a.get("code") for a in answers[10:]} == {"too_many"}


NAMES = [
    "a\r\nSet-Cookie: x=y",
    "a\nINFO forged log line",
    "\x1b[31mred\x1b[0m",
    "nul\x00byte",
    "\u202eright-to-left",
    "x" * 10_000,
    "*",
    "a*",
    "{}",
    "{0.__class__}",
    "%s%n",
    "${jndi:ldap://x}",
    "../../etc/passwd",
    "..",
    ".",
    "-rf",
    "a b",
    "a\tb",
    "",
    "caf\u00e9",
    "cafe\u0301",
    "\uff41\uff42\uff43",
    "\u200b",
    "a|b",
    "a;b",
    "(a+)+$",
    "[a-z]",
    "a\\b",
    "<script>alert(1)</script>",
    "'; DROP TABLE rooms; --",
]
REQUESTS: list[tuple[str, str, dict[str, Any]]] = [
    ("subscribe", "channel", {}),
    ("unsubscribe", "channel", {}),
    ("publish", "channel", {"data": 1}),
    ("history", "channel", {}),
    ("presence", "channel", {}),
    ("create_room", "room_id", {}),
    ("join_room", "room_id", {}),
    ("leave_room", "room_id", {}),
    ("typing", "room_id", {}),
    ("chat_message", "room_id", {"message": "x"}),
]


def test_names(serve: Callable[..., Server]) -> None:
    """Nothing but plain names makes a channel or a room, and none gets into the log."""
    server = serve(**PLENTY)
    before = len(server.log())
    with server.peer(user="namer") as peer:
        rooms = peer.ask("list_rooms")["rooms"]
        for kind, field, others in REQUESTS:
            for name in NAMES:
                answer = peer.ask(kind, **{field: name}, **others)
                assert answer["type"] == "error", (kind, name, answer)
                wanted = {"invalid_message", "not_found", "not_subscribed", "not_joined", "forbidden"}
                assert answer["code"] in wanted, (kind, name, answer)
                assert len(answer["message"]) < 400
        assert peer.ask("list_rooms")["rooms"] == rooms
        assert server.metric("hubbub_channels") == 0
    log = server.log()[before:]
    for name in NAMES:
        if len(name) > 4:
            assert name not in log
    assert "\x1b" not in log
    assert "forged" not in log
    assert server.complaints() == []


def test_room_names_in_the_path(serve: Callable[..., Server]) -> None:
    server = serve(**PLENTY)
    for path in ("%0d%0aforged", "%00", "%1b[31m", "..%2f..%2fetc", "caf%c3%a9", "*", "%ff%fe", "x" * 5000):
        peer = server.peer(f"/ws/chat/{path}", glued=said("auth", token=token("pathfinder")))
        if peer.status == 101:
            assert peer.close_code() == 4404
        else:
            assert 400 <= peer.status < 500
    assert "forged" not in server.log()
    assert "\x1b" not in server.log()
    assert server.complaints() == []
