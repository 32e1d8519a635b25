"""How many, how big, how fast: every limit with a clear error, and nobody else notices."""

from __future__ import annotations

import json
from typing import Any

import pytest
import websockets

from hubbub import ChannelOptions
from tests.lanes import close_code, lacks, needs
from tests.support import BOTH_LANES, Client, Running, serve, until

pytestmark = BOTH_LANES


async def test_connections_in_all(lane: str) -> None:
    async with serve(lane, max_connections=2) as server:
        async with server.client("alice"), server.client():
            for path in ("/ws", "/ws/chat/general"):
                with pytest.raises(websockets.InvalidStatus) as refused:
                    async with server.client(path=path):
                        pass
                status = 403 if lacks(lane, "refusals with a status") else 503
                assert refused.value.response.status_code == status
            async with server.http() as http:
                assert (await http.get("/health")).json()["active_connections"] == 2
        await until(lambda: not server.hub.sessions)
        async with server.client("alice"):
            pass


async def test_connections_of_a_user(lane: str) -> None:
    async with (
        serve(lane, max_connections_per_user=2) as server,
        server.client("alice") as first,
        server.client("alice"),
    ):
        async with server.client() as third:
            answer = await third.ask("auth", token=server.token("alice"))
            assert (answer["code"], answer["retry_after"]) == ("too_many", 30)
            assert await third.closed() == 4429
        async with server.client(path=f"/ws?token={server.token('alice')}") as fourth:
            assert (await fourth.receive())["code"] == "too_many"
            assert await fourth.closed() == 4429
        async with server.client("bob"):
            pass
        # a reconnect takes the place of its own ghost
        async with server.client("alice", session=first.session) as again:
            assert await first.closed() == 4409
            async with server.client() as third:
                assert await third.refused("auth", token=server.token("alice")) == "too_many"
            await again.nothing_more()


async def test_connections_of_an_address(lane: str) -> None:
    async with serve(lane, max_connections_per_address=2) as server:
        async with server.client("alice") as alice, server.client("bob"):
            for path in ("/ws", f"/ws?token={server.token('carol')}"):
                async with server.client(path=path) as third:
                    answer = await third.receive()
                    assert (answer["code"], answer["retry_after"]) == ("too_many", 30)
                    assert await third.closed() == 4429
            await alice.nothing_more()
        await until(lambda: not server.hub.sessions)
        async with server.client("alice"), server.client("bob"):
            pass


async def test_message_size(lane: str) -> None:
    async with (
        serve(lane, max_message_size=1000) as server,
        server.client("alice") as alice,
        server.client("n") as other,
    ):
        message = {"type": "ping", "x": ""}
        message["x"] = "x" * (1000 - len(json.dumps(message)))
        await alice.send_raw(json.dumps(message))
        assert (await alice.receive())["type"] == "pong"
        await alice.send_raw(json.dumps(message) + " ")
        assert await alice.closed() == close_code(lane, 1009)
        await other.nothing_more()


async def spend(client: Client, count: int) -> list[str]:
    """Send pings one by one; returns the types of the answers."""
    return [(await client.ask("ping"))["type"] for _ in range(count)]


async def test_rate_of_a_session(lane: str) -> None:
    settings: dict[str, Any] = {"rate_limit": 2, "rate_burst": 4, "user_rate_limit": 0}
    async with serve(lane, **settings) as server, server.client("alice") as alice, server.client("alice") as other:
        assert await spend(alice, 3) == ["pong"] * 3  # the auth message was the first of four
        await alice.send("ping")
        error = await alice.receive()
        assert (error["type"], error["code"], error["retry_after"]) == ("error", "rate_limited", 0.5)
        assert await spend(other, 2) == ["pong"] * 2  # another session has its own
        server.advance(0.5)
        await alice.send("ping")
        assert (await alice.receive())["type"] == "pong"
        await alice.send("ping")
        assert (await alice.receive())["code"] == "rate_limited"
        server.advance(60)
        assert await spend(alice, 4) == ["pong"] * 4  # the burst is back, and no more than that
        await alice.send("ping")
        assert (await alice.receive())["code"] == "rate_limited"


async def test_a_refused_message_has_its_ref_back(lane: str) -> None:
    async with serve(lane, rate_limit=1, rate_burst=2) as server, server.client("alice") as alice:
        assert await spend(alice, 1) == ["pong"]
        await alice.send("chat_message", message="hello", ref="mine")
        error = await alice.receive()
        assert (error["code"], error.get("ref")) == ("rate_limited", "mine")


async def test_rate_of_a_user_over_sessions_and_reconnects(lane: str) -> None:
    settings: dict[str, Any] = {"rate_limit": 0, "user_rate_limit": 1, "user_rate_burst": 6, "abuse_limit": 0}
    async with serve(lane, **settings) as server, server.client("bob") as bob:
        async with server.client("alice") as one, server.client("alice") as two:
            assert await spend(one, 3) == ["pong"] * 3
            assert await spend(two, 3) == ["pong"] * 3
            for client in (one, two):
                await client.send("ping")
                error = await client.receive()
                assert (error["code"], error["retry_after"]) == ("rate_limited", 1)
        await until(lambda: not server.hub.sessions_of("alice"))
        async with server.client("alice") as again:
            await again.send("ping")
            assert (await again.receive())["code"] == "rate_limited"
            server.advance(1)
            await again.send("ping")
            assert (await again.receive())["type"] == "pong"
        assert await spend(bob, 6) == ["pong"] * 6
        server.advance(100)
        for _ in range(120):
            server.hub.sweep()
        assert "alice" not in server.hub.users, "an idle user is forgotten"


async def test_the_rate_survives_taking_over_ones_own_ghost(lane: str) -> None:
    settings: dict[str, Any] = {"rate_limit": 0, "user_rate_limit": 1, "user_rate_burst": 4}
    async with serve(lane, **settings) as server, server.client("alice") as ghost:
        assert await spend(ghost, 4) == ["pong"] * 4
        async with server.client("alice", session=ghost.session) as again:
            await again.send("ping")
            assert (await again.receive())["code"] == "rate_limited"


@pytest.mark.parametrize("raw", ["{", '{"type":"x"}', '{"type":"subscribe"}'])
async def test_repeated_abuse_ends_the_session(lane: str, raw: str) -> None:
    async with serve(lane, abuse_limit=5) as server, server.client("alice") as alice, server.client("bob") as bob:
        for _ in range(7):
            await alice.send_raw(raw)
        assert await alice.closed() == 4429
        codes = [message["code"] for message in alice.seen if message["type"] == "error"]
        assert len(codes) == 6
        await bob.nothing_more()
        async with server.client("carol") as carol:  # spread over time it is no abuse
            for _ in range(8):
                await carol.send_raw(raw)
                assert (await carol.receive())["type"] == "error"
                server.advance(15)
            await carol.nothing_more()


async def test_flooding_ends_the_session(lane: str) -> None:
    settings: dict[str, Any] = {"rate_limit": 1, "rate_burst": 3, "abuse_limit": 10}
    async with serve(lane, **settings) as server, server.client("alice") as alice, server.client("bob") as bob:
        for _ in range(20):
            await alice.send("ping")
        assert await alice.closed() == 4429
        await bob.nothing_more()


SLOW = {
    "cut:*": ChannelOptions(slow="disconnect"),
    "old:*": ChannelOptions(slow="drop_oldest"),
    "new:*": ChannelOptions(slow="conflate"),
}


FILLER = "x" * 60_000


async def flood(server: Running, channel: str, count: int, quick: Client) -> list[int]:
    """More than the sockets' buffers and the outbox hold, one by one as a quick reader gets them. Returns its offsets."""
    offsets = []
    for number in range(1, count + 1):
        await server.hubbub.publish(channel, {"n": number, "filler": FILLER}, key=f"k{number % 3}")
        offsets.append((await quick.expect("publication"))["offset"])
        quick.seen.clear()
    await server.hubbub.publish(channel, {"n": "end"}, key="end")
    return [*offsets, (await quick.expect("publication"))["offset"]]


async def test_slow_readers_by_policy(lane: str) -> None:
    needs(lane, "backpressure")
    settings: dict[str, Any] = {"outbox_bytes": 200_000, "outbox_seconds": 0, "channels": SLOW}
    count = 300
    async with serve(lane, **settings) as server, server.client("quick") as quick:
        for channel in ("cut:1", "old:1", "new:1"):
            async with server.client("slow", compression=None, close_timeout=0.2) as slow:
                await slow.ask("subscribe", channel=channel)
                await quick.ask("subscribe", channel=channel)
                slow.connection.transport.pause_reading()
                got = await flood(server, channel, count, quick)
                assert got == list(range(1, count + 2)), "a slow one slows nobody else"
                slow.connection.transport.resume_reading()
                if channel == "cut:1":
                    assert await slow.closed() == 4408
                    continue
                seen: list[dict[str, Any]] = []
                while not seen or seen[-1].get("data", {}).get("n") != "end":
                    seen.append(await slow.receive())
                offsets = [m["offset"] for m in seen if m["type"] == "publication"]
                assert offsets == sorted(set(offsets)), "in order, and none twice"
                assert len(offsets) < count
                if channel == "old:1":
                    gap = next(m for m in seen if m["type"] == "gap")
                    assert gap["channel"] == channel
                    after = seen[seen.index(gap) + 1]
                    assert after["offset"] == gap["offset"] + 1, "up to the gap all is gone, from there all is there"
                    known = offsets[: offsets.index(after["offset"])]
                    assert known == list(range(1, len(known) + 1))
                    assert gap["epoch"] == (await slow.ask("history", channel=channel))["epoch"]
                else:
                    assert "gap" not in [m["type"] for m in seen]
                    newest = {m["key"]: m["offset"] for m in seen if m["type"] == "publication"}
                    assert newest == {"k0": 300, "k1": 298, "k2": 299, "end": 301}
            await quick.ask("unsubscribe", channel=channel)


async def test_a_reader_that_never_reads_is_let_go(lane: str) -> None:
    """It answers no close frame either; its session ends all the same, within the close timeout."""
    needs(lane, "backpressure")
    settings: dict[str, Any] = {"outbox_bytes": 200_000, "close_timeout": 0.2, "channels": SLOW}
    async with (
        serve(lane, **settings) as server,
        server.client("quick") as quick,
        server.client("slow", compression=None, close_timeout=0.2) as slow,
    ):
        await slow.ask("subscribe", channel="cut:1")
        await quick.ask("subscribe", channel="cut:1")
        slow.connection.transport.pause_reading()
        await flood(server, "cut:1", 200, quick)
        await until(lambda: len(server.hub.sessions) == 1, "the session is gone")
        assert not server.hub.sessions_of("slow")
        slow.connection.transport.abort()


@pytest.mark.parametrize("burst", [False, True])
async def test_a_reader_that_falls_behind_in_time(lane: str, burst: bool) -> None:
    """HUBBUB_OUTBOX_SECONDS, whether its backlog came over time or in a single turn."""
    needs(lane, "backpressure")
    settings: dict[str, Any] = {"outbox_bytes": 1 << 30, "outbox_seconds": 10, "channels": SLOW, "close_timeout": 0.2}
    async with (
        serve(lane, **settings) as server,
        server.client("quick") as quick,
        server.client("slow", compression=None, close_timeout=0.2) as slow,
    ):
        await slow.ask("subscribe", channel="cut:1")
        await quick.ask("subscribe", channel="cut:1")
        slow.connection.transport.pause_reading()
        if burst:
            for _ in range(200):
                await server.hubbub.publish("cut:1", FILLER)
            await until(lambda: bool(server.hub.behind) or lane == "asgi", "it is known to be behind")
            await quick.drained()
        else:
            await flood(server, "cut:1", 200, quick)
        server.advance(5)
        await quick.drained()
        assert len(server.hub.sessions) == 2
        server.advance(6)
        await until(lambda: not server.hub.sessions_of("slow"), "the session is gone")
        assert server.hub.sessions_of("quick") == 1
        slow.connection.transport.abort()
