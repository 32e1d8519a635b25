"""What an operator sees: health, metrics, the drain; and heartbeats, as clients see them."""

from __future__ import annotations

import asyncio
import re

import httpx2
import pytest
import websockets

from hubbub import __version__
from tests.lanes import close_code, lacks
from tests.support import BOTH_LANES, DEADLINE, Running, serve, until

pytestmark = BOTH_LANES


async def test_health_has_the_guides_fields(lane: str) -> None:
    async with serve(lane) as server, server.client("alice"), server.client(), server.http(bearer=None) as http:
        await until(lambda: len(server.hub.sessions) == 2)
        server.advance(12.5)
        await until(lambda: len(server.hub.sessions) == 1, "the silent one waited for too long")
        assert (await http.get("/health")).json() == {
            "status": "healthy",
            "active_connections": 1,
            "uptime": 12.5,
            "store": "ok",
            "version": __version__,
            "nodes": 1,
            "total_connections": 1,
            "total_users": 1,
        }
        answer = await http.get("/health/live")
        assert (answer.status_code, answer.json()) == (200, {"status": "live"})
        answer = await http.get("/health/ready")
        assert (answer.status_code, answer.json()) == (200, {"status": "ready"})


async def samples(server: Running) -> dict[str, float]:
    async with server.http(bearer=None) as http:
        text = (await http.get("/metrics")).text
    return {
        match[1]: float(match[2]) for line in text.splitlines() if (match := re.fullmatch(r"([^# ].*) (\S+)", line))
    }


async def test_metrics_have_the_guides_names_and_move(lane: str) -> None:
    async with serve(lane) as server:
        before = await samples(server)
        assert before["websocket_active_connections"] == 0
        async with server.client("alice", path="/ws/chat/general") as alice:
            await alice.ask("chat_message", message="hello")
            await alice.send_raw("{")
            await alice.expect("error")
            await server.hubbub.notify("alice", "t", "m", "warning")
            async with server.client() as stranger:
                await stranger.send("auth", token="nonsense")
                await stranger.closed()
            await until(lambda: len(server.hub.sessions) == 1)
            during = await samples(server)
            assert during["websocket_active_connections"] == 1
            assert during['websocket_connections_total{status="connected"}'] == 2
            assert during['websocket_connections_total{status="disconnected"}'] == 1
            assert during['websocket_messages_total{status="received",type="chat_message"}'] == 1
            assert during['websocket_messages_total{status="received",type="auth"}'] == 2
            assert during['websocket_messages_total{status="refused",type="invalid_json"}'] == 1
            assert during['websocket_messages_total{status="sent",type="delivery"}'] >= 2
            assert during['hubbub_auth_failures_total{reason="malformed"}'] == 1
            assert during['hubbub_closes_total{code="4401"}'] == 1
            assert during['hubbub_notifications_total{type="warning"}'] == 1
            assert during["hubbub_users"] == 1
            assert during["hubbub_channels"] == 1
            assert during["hubbub_history_bytes"] > 0
            assert during["hubbub_handshake_seconds_count"] == 2
            assert during["hubbub_slow_readers"] == 0
            assert during["hubbub_batches_total"] > 0
            server.advance(7)
        await until(lambda: not server.hub.sessions)
        after = await samples(server)
        assert after["websocket_connection_duration_seconds_count"] == 2
        assert after["websocket_connection_duration_seconds_sum"] == 7
        assert after['websocket_connection_duration_seconds_bucket{le="15.0"}'] == 2
        code = 1006 if lacks(lane, "the peer's close code") else 1000
        assert after[f'hubbub_closes_total{{code="{code}"}}'] == 1
        assert not [name for name in after if "alice" in name or "general" in name], "labels come from fixed sets"
        for name in ("hubbub_loop_lag_seconds", "hubbub_handler_seconds_count", "hubbub_deliveries_total"):
            assert name in after


@pytest.mark.parametrize(
    ("mode", "nobody", "user", "admin"),
    [("loopback", 200, 200, 200), ("open", 200, 200, 200), ("key", 401, 403, 200), ("off", 404, 404, 404)],
)
async def test_who_may_read_the_metrics(lane: str, mode: str, nobody: int, user: int, admin: int) -> None:
    async with serve(lane, metrics=mode) as server:
        for bearer, status in ((None, nobody), (server.token("alice"), user), (server.token("r", admin=True), admin)):
            async with server.http(bearer=bearer) as http:
                assert (await http.get("/metrics")).status_code == status


async def test_drain(lane: str) -> None:
    async with serve(lane, drain_seconds=0.5) as server, httpx2.AsyncClient(base_url=server.url) as kept:
        await kept.get("/health/ready")
        async with server.client("alice") as alice, server.client("bob") as bob, server.client() as waiting:
            await bob.ask("join_room", room_id="general")
            server.stop()
            clients = (alice, bob, waiting)
            if lane == "fast":
                delays = [(await client.expect("reconnect"))["after"] for client in clients]
                assert all(0 < delay <= 5 for delay in delays)
                assert len(set(delays)) == 3, "they do not all come back at once"
                assert server.hub.draining
                inside = httpx2.AsyncClient(transport=httpx2.ASGITransport(server.app), base_url=server.url)
                async with inside as http:
                    answer = await http.get("/health/ready")
                    assert (answer.status_code, answer.json()) == (503, {"status": "draining"})
                    assert (await http.get("/health")).json()["status"] == "draining"
                    assert (await http.get("/health/live")).status_code == 200
            for client in clients:
                assert await client.closed() == (1006 if lacks(lane, "a goodbye") else close_code(lane, 1012))
            with pytest.raises((OSError, websockets.InvalidHandshake)):
                async with server.client():
                    pass
        async with asyncio.timeout(DEADLINE):
            await until(lambda: not server.hub.sessions)


async def test_without_an_engine_nothing_is_said_of_one(lane: str) -> None:
    async with serve(lane) as server, server.http(bearer=None) as http:
        assert "engine" not in (await http.get("/health")).json()
        named = [name for name in await samples(server) if re.match("hubbub_(engine|node|presence|shared)", name)]
        assert not named


async def test_json_heartbeats(lane: str) -> None:
    async with serve(lane) as server, server.client("alice") as alice:
        assert await alice.ask("ping") == {"type": "pong", "ref": "ask-1"}
        assert await alice.ask("heartbeat") == {"type": "heartbeat_ack", "ref": "ask-2"}
        async with asyncio.timeout(DEADLINE):
            await (await alice.connection.ping(b"ping"))
        await alice.nothing_more()
        assert len(server.hub.sessions) == 1
