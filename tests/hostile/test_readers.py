"""Readers that do not read, under fan-out: each policy, memory, the kernel's sockets, the others, the shutdown."""

from __future__ import annotations

import json
import resource
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.hostile.support import (
    BINARY,
    TEXT,
    WAIT,
    Peer,
    Server,
    eventually,
    frame,
    said,
    token,
    under_attack,
)

OUTBOX = 32_768
CHANNELS = {
    "drop:*": {"slow": "drop_oldest", "presence": False},
    "newest:*": {"slow": "conflate", "presence": False},
    "plain:*": {"presence": False},
}


SETTINGS = {
    "OUTBOX_BYTES": str(OUTBOX),
    "OUTBOX_SECONDS": "0",
    "CLOSE_TIMEOUT": "1",
    "RATE_LIMIT": "0",
    "USER_RATE_LIMIT": "0",
    "MAX_CONNECTIONS_PER_ADDRESS": "0",
    "MAX_CONNECTIONS_PER_USER": "0",
    "HISTORY_BYTES": "65536",
    "CHANNELS": json.dumps(CHANNELS),
    "TCP_USER_TIMEOUT": "30",  # longer than any test here: what is freed is freed by us
}


@pytest.fixture
def server(serve: Callable[..., Server]) -> Server:
    return serve(**SETTINGS)


def reader(server: Server, channel: str, *, lazy: bool) -> Peer:
    """A subscriber; a lazy one does not read any more from here."""
    peer = server.peer(lazy=lazy, glued=said("auth", token=token("reader")) + said("subscribe", channel=channel))
    peer.expect("subscribed")
    return peer


class Follower(threading.Thread):
    """A reader that keeps up; notes the offsets of what it gets."""

    def __init__(self, server: Server, channel: str, last: int) -> None:
        super().__init__(daemon=True)
        self.peer = reader(server, channel, lazy=False)
        self.last = last
        self.offsets: list[int] = []
        self.start()

    def run(self) -> None:
        while not self.offsets or self.offsets[-1] < self.last:
            self.offsets.append(self.peer.expect("publication")["offset"])

    def check(self) -> None:
        self.join(2 * WAIT)
        assert self.offsets == list(range(1, self.last + 1))


def publish(server: Server, channel: str, count: int, size: int, keys: int = 0) -> None:
    """Publish, each message after the one before was acknowledged."""
    with server.peer(user="publisher") as peer:
        for number in range(1, count + 1):
            key = {"key": f"k{number % keys}"} if keys else {}
            assert peer.ask("publish", channel=channel, data=[number, "x" * size], **key)["offset"] == number


def test_disconnect(server: Server) -> None:
    """4408 once the outbox is full; to the peer if it reads in time, and in any case the socket is gone."""
    before, rss = server.metric('hubbub_closes_total{code="4408"}'), server.rss()
    lazy = [reader(server, "plain:1", lazy=True) for _ in range(20)]
    late = reader(server, "plain:1", lazy=True)
    follower = Follower(server, "plain:1", 100)
    publish(server, "plain:1", 100, 8_000)
    assert late.close_code() == 4408
    follower.check()
    eventually(lambda: server.sockets(peer.port for peer in lazy) == [], what=lambda: server.sockets([lazy[0].port]))
    assert server.metric('hubbub_closes_total{code="4408"}') == before + 21
    assert server.metric("hubbub_slow_readers") == 0
    assert server.rss() < rss + 12_000_000


def test_disconnect_by_age(serve: Callable[..., Server]) -> None:
    """Below the outbox's bytes, but what waits is older than it may be."""
    server = serve(**SETTINGS | {"OUTBOX_SECONDS": "1"})
    lazy = reader(server, "plain:2", lazy=True)
    behind = 0
    for _ in range(1000):  # fill the kernel's buffers, which grow for a while, and little more
        server.publish("plain:2", "x" * 2_000)
        behind = behind + 1 if server.metric("hubbub_slow_readers") == 1 else 0
        if behind == 5:
            break
    assert behind == 5
    began = time.monotonic()

    def gone() -> bool:
        nonlocal began
        if server.metric("hubbub_slow_readers") == 0 and server.sockets([lazy.port]):
            server.publish("plain:2", "x" * 2_000)  # the kernel made more room, and took what had waited
            began = time.monotonic()
        return server.sockets([lazy.port]) == []

    eventually(gone, 20.0)
    assert 1.0 < time.monotonic() - began < 4.0


def test_drop_oldest(server: Server) -> None:
    """The connection stays; what it lost is told by a gap before what comes after, and order holds."""
    lazy = reader(server, "drop:1", lazy=True)
    follower = Follower(server, "drop:1", 100)
    publish(server, "drop:1", 100, 8_000)
    follower.check()
    seen, gaps = 0, 0
    while seen < 100:
        message = lazy.message()
        if message["type"] == "gap":
            gaps += 1
            assert message["offset"] >= seen
            seen = message["offset"]
        else:
            assert message["offset"] == seen + 1, "a hole that nobody told of"
            seen += 1
    assert gaps >= 1
    assert lazy.ask("ping")["type"] == "pong"
    assert sum(server.metric(f'hubbub_dropped_total{{reason="{name}"}}') for name in ("drop_oldest", "slow")) >= 1


def test_conflate(server: Server) -> None:
    """Per key the newest arrives, and not everything before it."""
    lazy = reader(server, "newest:1", lazy=True)
    publish(server, "newest:1", 200, 8_000, keys=2)
    newest: dict[int, int] = {}
    count = 0
    while newest.get(0) != 200 or newest.get(1) != 199:
        message = lazy.message()
        if message["type"] == "publication":
            number = message["data"][0]
            assert number > newest.get(number % 2, 0)
            newest[number % 2] = number
            count += 1
    assert count < 200
    assert lazy.ask("ping")["type"] == "pong"


def test_dead_reader_whose_channel_never_disconnects(server: Server) -> None:
    """Where the policy keeps a slow reader, its memory is bounded all the same, and it leaves no trace."""
    before = server.rss()
    lazy = [reader(server, "drop:2", lazy=True) for _ in range(50)]
    publish(server, "drop:2", 200, 8_000)
    assert server.rss() < before + 50 * 3 * OUTBOX + 16_000_000
    for peer in lazy:
        peer.reset()
    eventually(lambda: server.metric("hubbub_slow_readers") == 0)


def test_replies_that_are_not_read(server: Server) -> None:
    """Asks for much and takes nothing: replies wait in the same bound, and are never dropped: 4408."""

    def attack(server: Server, until: float) -> tuple[int, int]:
        with server.peer(user="asker", lazy=True) as peer:
            sent = peer.blast(said("list_rooms") * 100, until, read=False)
            return 0, sent

    report = under_attack("replies unread", server, attack)
    assert report.peak < report.before * 1.1 + 16_000_000
    assert server.metric('hubbub_closes_total{code="4408"}') >= 1


def test_fan_out_to_one_that_does_not_read(server: Server) -> None:
    def attack(server: Server, until: float) -> tuple[int, int]:
        peer = reader(server, "plain:3", lazy=True)
        with server.peer(user="publisher") as publisher:
            block = said("publish", channel="plain:3", data="x" * 2000) * 20
            sent = publisher.blast(block, until, limit=2_000_000)
        peer.socket.close()
        return 0, sent

    report = under_attack("fan-out unread", server, attack)
    assert report.peak < report.before * 1.1 + 24_000_000


@pytest.mark.slow
def test_a_thousand_that_do_not_read(server: Server) -> None:
    """Memory stays within the outboxes' bound, and who reads gets everything in order."""
    _raise_file_limit()
    for policy, size in (("drop", 4_000), ("drop", 60)):
        channel = f"{policy}:crowd-{size}"
        lazy = [reader(server, channel, lazy=True) for _ in range(1000)]
        before = server.rss()
        count = 60 if size > 1000 else 600
        followers = [Follower(server, channel, count) for _ in range(3)]
        publish(server, channel, count, size)
        for follower in followers:
            follower.check()
        grown = server.rss() - before
        print(f"1,000 readers of {size} bytes that do not read: {grown / 1e6:.1f} MB")
        assert grown < 1000 * 2 * OUTBOX + 16_000_000, (size, grown)
        for peer in lazy:
            peer.reset()
        for follower in followers:
            follower.peer.socket.close()
        eventually(lambda: server.metric("websocket_active_connections") == 0)


def _raise_file_limit() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < 4096:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(4096, hard), hard))


def test_terminated_amid_peers_that_do_not_read(tmp_path: Path) -> None:
    """SIGTERM ends the server within drain + close timeout + 3 s, with code 0, whoever hangs on."""
    settings = {"DRAIN_SECONDS": "1", "CLOSE_TIMEOUT": "1", "OUTBOX_SECONDS": "30", "CHANNELS": json.dumps(CHANNELS)}
    settings |= {"RATE_LIMIT": "0", "USER_RATE_LIMIT": "0", "MAX_CONNECTIONS_PER_USER": "0"}
    server = Server(tmp_path, settings)
    try:
        lazy = [reader(server, "drop:1", lazy=True) for _ in range(30)]
        publish(server, "drop:1", 30, 8_000)
        for _ in range(10):
            peer = server.peer("/ws/echo", lazy=True)
            peer.blast(frame(BINARY, bytes(60_000)) * 4, time.monotonic() + 0.1, read=False)
            lazy.append(peer)
        half = [server.peer("") for _ in range(10)]
        for index, peer in enumerate(half):
            peer.send(
                (b"GET /ws HTT", b"POST /api/publish HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\n\r\n1")[index % 2]
            )
        partial = server.peer(user="partial")
        partial.send(frame(TEXT, b"x" * 1000)[:300])
        good = server.peer(user="good")
        began = time.monotonic()
        code = server.terminate(1 + 1 + 3)
        assert code == 0, server.log()
        assert time.monotonic() - began < 5.0
        assert good.expect("reconnect")["after"] > 0
        assert good.close_code() == 1012
        assert server.complaints() == []
    finally:
        server.stop()
