"""What an operator sees of the engine: readiness, health, metrics."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx2
import pytest

from tests.engine_support import Engine
from tests.support import DEADLINE, HandClock, Running, running, settings_for
from tests.test_behaviour_operations import samples


@asynccontextmanager
async def on(**settings: Any) -> AsyncIterator[Running]:
    async with running(settings_for(**settings), clock=HandClock()) as server:
        yield server


async def said(http: httpx2.AsyncClient) -> tuple[int, str, str]:
    """The status and word of readiness, and how the engine is."""
    answer = await http.get("/health/ready")
    return answer.status_code, answer.json()["status"], (await http.get("/health")).json()["engine"]


@pytest.mark.anyio
async def test_an_engine_that_is_away_makes_a_node_unready(own_valkey: Engine) -> None:
    away = (503, "unavailable", "unavailable")
    async with on(valkey_url=own_valkey.url) as server, server.http(bearer=None) as http:
        await until_said(http, (200, "ready", "ok"))
        async with server.client("alice") as alice:
            for breaks, mends in ((own_valkey.kill, own_valkey.start), (own_valkey.pause, own_valkey.resume)):
                await asyncio.to_thread(breaks)
                try:
                    took = await until_said(http, away)
                    assert (await http.get("/health/ready")).json()["reason"]
                finally:
                    await asyncio.to_thread(mends)
                assert took < 7, "a node knows within five seconds that it is deaf"
                assert (await http.get("/health/live")).status_code == 200
                await until_said(http, (200, "ready", "ok"))
            assert (await alice.ask("ping"))["type"] == "pong", "sessions stay"


@pytest.mark.anyio
async def test_ready_without_the_engine_where_that_is_wanted(own_valkey: Engine) -> None:
    settings = {"valkey_url": own_valkey.url, "ready_without_engine": True}
    async with on(**settings) as server, server.http(bearer=None) as http:
        await until_said(http, (200, "ready", "ok"))
        await asyncio.to_thread(own_valkey.kill)
        await until_said(http, (200, "ready", "unavailable"))
        assert (await samples(server))["hubbub_engine_up"] == 0


async def until_said(http: httpx2.AsyncClient, what: tuple[int, str, str]) -> float:
    """Wait until health says this; returns the seconds that it took."""
    began = time.monotonic()
    while (now := await said(http)) != what:
        assert time.monotonic() < began + 20, f"it says {now}, not {what}"
        await asyncio.sleep(0.01)
    return time.monotonic() - began


@pytest.mark.anyio
async def test_the_metrics_of_an_engine_move(valkey_settings: dict[str, str]) -> None:
    async with on(**valkey_settings) as server, server.client("alice") as alice:
        await alice.ask("subscribe", channel="news")
        for number in range(3):
            assert (await alice.ask("publish", channel="news", data=number))["type"] == "ack"
        await alice.ask("publish", channel="news", data=9, idempotency_key="once")
        await alice.ask("publish", channel="news", data=9, idempotency_key="once")
        async with asyncio.timeout(DEADLINE):
            while not (now := await samples(server))["hubbub_engine_subscriptions"]:
                pass  # it is counted about once a second
        assert now["hubbub_engine_up"] == 1
        assert now["hubbub_nodes"] == 1
        assert now[f'hubbub_node_info{{node="{server.hub.cluster.node}",worker=""}}'] == 1
        assert now['hubbub_engine_connections_total{status="connected"}'] >= 1
        assert now['hubbub_engine_publications_total{what="published"}'] >= 4
        assert now['hubbub_engine_publications_total{what="received"}'] >= 4
        assert now['hubbub_engine_publications_total{what="repeated"}'] == 1
        assert 1 <= now["hubbub_engine_batches_total"] <= now['hubbub_engine_publications_total{what="published"}'] + 1
        assert now["hubbub_engine_publish_seconds_count"] == now["hubbub_engine_batches_total"]
        assert now["hubbub_engine_waiting"] == 0
        assert not [name for name in now if "alice" in name or "news" in name], "labels come from fixed sets"
