"""Limits over all nodes: the law of what a key can get at most, the counters in each kind of engine, and whole nodes."""

from __future__ import annotations

import asyncio
import logging
import math
import ssl
import time
from collections.abc import Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hubbub.brokers.valkey.counters import EngineCounters
from hubbub.errors import BrokerUnavailable
from hubbub.limits import PATIENCE, Rate, Share
from hubbub.quotas import RETRY
from tests.engine_support import HOST, Engine, Sentinels, Shards, redis_program, valkey_program
from tests.fault_proxy import fault_proxy
from tests.support import API_KEY, DEADLINE, Client, HandClock, Running, running, settings_for, until
from tests.test_valkey_topologies import certificate

unhurried = settings(deadline=None)  # other work on the machine is no failure


# -- the law, with a simulated counter and simulated ways to it ----------------------------------------------------


class Bucket:
    """What the engine's script does, in exact time."""

    def __init__(self, rate: float, burst: int) -> None:
        self.rate, self.burst, self.full = rate, burst, 0.0

    def take(self, now: float, count: int) -> tuple[int, float]:
        full = max(now, self.full)
        taken = max(0, min(count, math.floor(self.burst - (full - now) * self.rate + 1e-3)))
        if taken:
            self.full = full = full + taken / self.rate
        return taken, full - now


class Nodes:
    """Nodes with a share each, and a counter whose answers take their time."""

    def __init__(self, count: int, rate: float, burst: int, at_once: int, delays: Iterator[float]) -> None:
        self.now = 0.0
        self.shares = [Share(rate, burst, at_once, self._wants(index)) for index in range(count)]
        for share in self.shares:
            share.spread(count)
        self.bucket = Bucket(rate, burst)
        self._delays = delays
        self._answers: list[tuple[float, int]] = []
        self._sweep = 0.5

    def _wants(self, index: int) -> Callable[[str], None]:
        return lambda key: self._answers.append((self.now + next(self._delays), index))

    def go_on(self, until: float) -> None:
        """Let time pass, and what is due happen."""
        while True:
            at, index = min([*self._answers, (self._sweep, -1)])
            if at > until:
                break
            self.now = at
            if index < 0:
                self._sweep += 0.5
                for share in self.shares:
                    share.sweep(at)
            else:
                self._answers.remove((at, index))
                self._answer(self.shares[index])
        self.now = until

    def _answer(self, share: Share) -> None:
        wanted = share.wanted("alice")
        share.answered("alice", wanted, *self.bucket.take(self.now, wanted), self.now)

    def take(self, index: int) -> float:
        return self.shares[index].take("alice", self.now)


PACES = st.sampled_from([(60.0, 180, 60), (20.0, 60, 60), (5.0, 5, 1), (0.5, 10, 3), (100.0, 30, 10), (3.0, 1, 1)])
GAPS = st.lists(st.tuples(st.integers(0, 5), st.sampled_from([0.0, 0.0, 0.001, 0.02, 0.3, 2.0])), max_size=400)


@unhurried
@given(PACES, st.integers(1, 6), GAPS, st.lists(st.sampled_from([0.001, 0.05, 0.9]), min_size=1, max_size=5))
def test_no_key_gets_more_than_the_law_says(
    pace: tuple[float, int, int], count: int, moves: list[tuple[int, float]], delays: list[float]
) -> None:
    rate, burst, at_once = pace
    turns = iter(range(1 << 30))
    nodes = Nodes(count, rate, burst, at_once, (delays[turn % len(delays)] for turn in turns))
    share, passed = nodes.shares[0], 0
    for index, gap in moves:
        nodes.go_on(nodes.now + gap)
        for _ in range(burst // 2 + 1):  # as much as it can
            passed += not nodes.take(index % count)
        uncounted = share.part * (math.floor(nodes.now / share.window) + 1)
        assert passed <= burst + rate * nodes.now + 1 + count * (uncounted + share.debt)


@pytest.mark.parametrize("count", [1, 2, 3, 5, 10])
def test_a_flood_over_all_nodes_gets_little_more_than_one_node_would_give(count: int) -> None:
    rate, burst, seconds = 60.0, 180, 60
    nodes = Nodes(count, rate, burst, 60, iter(lambda: 0.002, None))
    local = [Rate.per_second(rate, burst) for _ in range(count)]
    tats = [0.0] * count
    passed = 0
    for tick in range(seconds * 1000):
        nodes.go_on(tick / 1000)
        for index in range(count):
            limit = local[index]
            assert limit is not None
            tat = limit.take(tats[index], nodes.now)
            if tat > 0 and not nodes.take(index):
                tats[index] = tat
                passed += 1
    alone = burst + rate * seconds
    assert 0.99 * alone <= passed <= (1.3 if count > 1 else 1.01) * alone
    assert count == 1 or sum(share.denied for share in nodes.shares) > 0


@pytest.mark.parametrize("pace", [1.0, 10.0, 50.0])
def test_who_stays_below_the_rate_is_never_refused_and_asks_for_little(pace: float) -> None:
    asked = 0

    def delay() -> Iterator[float]:
        nonlocal asked
        while True:
            asked += 1
            yield 0.3

    nodes = Nodes(2, 60.0, 180, 60, delay())
    for number in range(int(60 * pace)):
        nodes.go_on(number / pace)
        assert nodes.take(0) == 0.0
    assert asked <= 60 * pace / 22 + 20
    if pace <= 3:
        assert not asked, "well below the rate, the engine has no work with it"


def test_nothing_is_refused_while_the_first_answer_is_on_its_way() -> None:
    nodes = Nodes(2, 60.0, 180, 60, iter(lambda: 0.5, None))
    assert [nodes.take(0) for _ in range(60)] == [0.0] * 60, "a session's burst"


def test_a_refusal_says_when_there_will_be_more() -> None:
    nodes = Nodes(2, 60.0, 180, 60, iter(lambda: 0.001, None))
    refusals = 0
    for _ in range(20_000):
        nodes.go_on(nodes.now + 0.0005)
        wait = nodes.take(0)
        if wait > PATIENCE:
            refusals += 1
            nodes.go_on(nodes.now + wait)
            assert nodes.take(0) == 0.0
    assert refusals > 3


def test_while_nobody_answers_everything_passes_and_nothing_stays_owed() -> None:
    asked: list[str] = []
    share = Share(10.0, 20, 5, asked.append)
    while not share.take("alice", 0.0):
        pass
    assert share.denied == 1
    share.unanswered("alice")
    assert share.wanted("alice") == share.chunk, "what was spent meanwhile is forgiven"
    share.away = True
    assert [share.take("alice", 0.1) for _ in range(100)] == [0.0] * 100
    assert share.alone == 100
    assert asked == ["alice"]
    share.sweep(10.0)
    assert not len(share)


def test_leases_end_with_their_window_and_debts_are_paid() -> None:
    asked: list[str] = []
    share = Share(10.0, 20, 20, asked.append)
    share.take("bob", 0.0)
    for _ in range(15):
        share.take("alice", 0.0)
    assert share.wanted("alice") == 15, "it had 5 to begin with, and owes 10"
    share.answered("alice", 15, 15, 1.5, 0.0)
    share.take("carol", 1.0)
    share.sweep(2.0)
    assert len(share) == 1, "only carol's has not ended"
    for _ in range(15):
        share.take("dora", 2.0)
    share.answered("dora", 15, 0, 2.0, 2.0)
    assert share.take("dora", 2.0) == pytest.approx(1.3, abs=0.01), "13: what it owes, and a quarter of a second's"
    share.sweep(5.0)
    assert asked == ["alice", "dora", "dora"], "a debt is paid although nobody comes any more"
    share.answered("dora", 15, 15, 1.5, 5.0)
    share.sweep(8.0)
    assert not len(share)


def test_after_a_burst_it_goes_on_at_the_rate() -> None:
    """As on one node: nobody who sends no more than that is refused for having sent much before."""
    nodes = Nodes(2, 60.0, 180, 60, iter(lambda: 0.002, None))
    for _ in range(3):  # three sessions, each with its burst
        assert not any(nodes.take(0) for _ in range(60))
        nodes.go_on(nodes.now + 0.1)
    for _ in range(600):
        nodes.go_on(nodes.now + 1 / 60)
        assert nodes.take(0) == 0.0


def test_what_cannot_be_a_rate() -> None:
    for rate, burst in ((0.0, 1), (-1.0, 1), (math.inf, 1), (1.0, 0)):
        with pytest.raises(ValueError, match="positive"):
            Share(rate, burst, 1, lambda key: None)


# -- the counters, in each kind of engine --------------------------------------------------------------------------


async def took(counters: EngineCounters, kind: str, key: str, count: int) -> tuple[int, int]:
    """From a bucket of ten that gains one in ten seconds: how many, and the seconds until it is full, in tens."""
    taken, full = await counters.take(kind, key, 0.1, 10, count)
    return taken, math.ceil(full / 10) * 10


async def counts(url: str, prefix: str = "hubbub") -> None:
    """A bucket of ten is one of ten, whoever asks, and under odd names."""
    counters = EngineCounters(settings_for(valkey_url=url, valkey_prefix=prefix))
    others = EngineCounters(settings_for(valkey_url=url, valkey_prefix=prefix))
    try:
        for key in ("alice", "a{b}c:/ é", "}"):
            assert await took(counters, "user", key, 6) == (6, 60)
            assert await took(others, "user", key, 6) == (4, 100)
            assert await took(counters, "user", key, 6) == (0, 100)
            assert await took(counters, "http", key, 10) == (10, 100), "another kind is counted apart"
        for _ in range(3):  # it fills again
            async with asyncio.timeout(DEADLINE):
                while (await counters.take("user", "bob", 1000.0, 1, 1))[0] == 0:
                    pass
    finally:
        await counters.close()
        await others.close()


@pytest.mark.anyio
async def test_counters_over_tcp_and_over_a_socket() -> None:
    with Engine() as engine:
        await counts(engine.url)
        await counts(engine.unix_url, "other")
        await counts(f"unix://{engine.socket}?db=3")
        assert (
            sorted(bytes(key).split(b":")[0] for key in engine.call("KEYS", "*alice*"))
            == [b"hubbub"] * 2 + [b"other"] * 2
        )


@pytest.mark.anyio
async def test_counters_of_a_user_with_a_password() -> None:
    with Engine(user="hub", password="p@ss/w:rd") as engine:
        await counts(f"valkey://hub:{quote('p@ss/w:rd', safe='')}@127.0.0.1:{engine.port}/2")
        wrong = EngineCounters(settings_for(valkey_url=f"valkey://hub:no@127.0.0.1:{engine.port}"))
        with pytest.raises(BrokerUnavailable):
            await wrong.take("user", "alice", 0.1, 10, 1)
        await wrong.close()


@pytest.mark.anyio
async def test_counters_over_tls(tmp_path: Path, own_valkey: Engine) -> None:
    trusted = certificate(tmp_path)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(trusted, trusted.with_name("key.pem"))
    async with fault_proxy((HOST, own_valkey.port), tls=context) as front:
        await counts(f"{front.url}?ssl_ca_certs={trusted}")
        stranger = EngineCounters(settings_for(valkey_url=front.url))
        with pytest.raises(BrokerUnavailable, match=r"(?i)certificate"):
            await stranger.take("user", "alice", 0.1, 10, 1)
        await stranger.close()


@pytest.mark.anyio
async def test_counters_follow_a_failover() -> None:
    with Sentinels() as sentinels:
        counters = EngineCounters(settings_for(valkey_url=sentinels.url))
        assert (await counters.take("user", "alice", 0.1, 10, 1))[0] == 1
        sentinels.first.kill()
        async with asyncio.timeout(30):
            while True:
                try:
                    taken, _ = await counters.take("user", "alice", 0.1, 10, 1)
                    break
                except BrokerUnavailable:
                    await asyncio.sleep(0.05)
        assert taken == 1
        await counters.close()


@pytest.mark.anyio
async def test_counters_behind_sentinels_and_in_a_cluster() -> None:
    with Sentinels() as sentinels:
        await counts(sentinels.url)
    with Shards() as shards:
        await counts(shards.url)


@pytest.mark.anyio
async def test_counters_of_redis() -> None:
    program = redis_program()
    if program is None:
        pytest.skip("there is no redis-server here")
    with Engine(program=program) as engine:
        await counts(engine.url)


@pytest.mark.anyio
async def test_counters_that_are_not_there() -> None:
    with Engine() as engine:
        counters = EngineCounters(settings_for(valkey_url=engine.url))
        assert (await counters.take("user", "alice", 0.1, 10, 1))[0] == 1
        engine.kill()
        with pytest.raises(BrokerUnavailable):
            await counters.take("user", "alice", 0.1, 10, 1)
        engine.start()
        assert (await counters.take("user", "alice", 0.1, 10, 1))[0] == 1
        await counters.close()


def test_the_program_is_there() -> None:
    assert valkey_program().exists()


# -- whole nodes ---------------------------------------------------------------------------------------------------

pace: dict[str, Any] = {
    "user_rate_limit": 1, "user_rate_burst": 40, "rate_limit": 0, "abuse_limit": 0, "heartbeat_interval": 0,
}  # fmt: skip
"""So slow that what comes back while a test runs is nothing."""


@asynccontextmanager
async def two(**options: Any) -> Any:
    """Two nodes that know each other. Their clocks stand still."""
    async with AsyncExitStack() as stack:
        nodes = [await stack.enter_async_context(running(settings_for(**options), clock=HandClock())) for _ in range(2)]
        async with asyncio.timeout(20):
            while not all(node.hub.cluster.others for node in nodes):
                await asyncio.sleep(0.01)
        for node in nodes:
            node.advance(0.5)  # a sweep: now they share among two
            if node.hub.quotas.messages is not None:
                async with node.client("somebody") as client:
                    await spent(node, client)  # the first question takes longer: it connects
        yield nodes


async def settled(*servers: Running) -> None:
    """Until the engine has said what it was asked: here, messages come faster than any answer."""
    await until(lambda: not any(server.hub.quotas.asking for server in servers))


async def until_refused(server: Running, client: Client, most: int = 200) -> tuple[int, float]:
    """How many messages are answered, one after the other, and what the refusal says."""
    for count in range(most):
        answer = await client.ask("ping")
        await settled(server)
        if answer["type"] == "error":
            assert answer["code"] == "rate_limited", answer
            return count, answer["retry_after"]
    raise AssertionError(f"none of {most} was refused")


@pytest.mark.anyio
async def test_what_was_sent_to_one_node_is_gone_on_the_other(valkey_settings: dict[str, str]) -> None:
    async with two(**valkey_settings, **pace) as (one, other):
        async with one.client("alice") as alice, one.client("alice") as again:
            count, _ = await until_refused(one, alice)
            assert 38 <= count <= 40
            assert (await until_refused(one, again))[0] == 0, "all sessions share one rate"
        async with other.client("alice") as alice:
            count, wait = await until_refused(other, alice)
            assert count <= 12, "5 are not counted, 5 may be left, and some pass while it is asked"
            assert 0 < wait <= 80
        async with other.client("alice") as alice:
            assert (await until_refused(other, alice))[0] == 0, "reconnecting does not refill it"
        async with other.client("bob") as bob:
            assert (await until_refused(other, bob))[0] >= 38, "bob has his own"
        assert other.hub.quotas.counts["refused"] >= 2
        assert other.hub.quotas.counts["denied"] >= 1


@pytest.mark.anyio
async def test_fifty_sockets_on_two_nodes_share_one_budget(valkey_settings: dict[str, str]) -> None:
    options = {"user_rate_limit": 1, "user_rate_burst": 200, "rate_limit": 1000, "rate_burst": 100, "abuse_limit": 0}
    async with two(**valkey_settings, **options) as nodes, AsyncExitStack() as stack:
        clients = [await stack.enter_async_context(nodes[index % 2].client("alice")) for index in range(50)]
        passed, began = 0, time.monotonic()
        for _ in range(12):
            answers = await asyncio.gather(*(client.ask("ping") for client in clients))
            passed += sum(answer["type"] == "pong" for answer in answers)
            await settled(*nodes)
        assert 190 <= passed <= 320 + (time.monotonic() - began), "two that do not share would give 400"


@pytest.mark.anyio
async def test_little_talk_costs_the_engine_nothing(valkey_settings: dict[str, str]) -> None:
    async with two(**valkey_settings) as (one, _), one.client("alice") as alice:
        before = one.hub.quotas.counts
        for _ in range(10):
            for _ in range(5):
                assert (await alice.ask("ping"))["type"] == "pong"
            one.advance(4.0)
        assert one.hub.quotas.counts == before


@pytest.mark.anyio
async def test_nodes_that_do_not_share(valkey_settings: dict[str, str]) -> None:
    async with two(**valkey_settings, **pace, shared_limits=False) as nodes:
        for node in nodes:
            assert node.hub.quotas.messages is None
            async with node.client("alice") as alice:
                assert (await until_refused(node, alice))[0] == 40


@pytest.mark.anyio
async def test_without_an_engine_nothing_is_shared() -> None:
    async with running(settings_for(**pace), clock=HandClock()) as server, server.client("alice") as alice:
        assert server.hub.quotas.messages is None
        assert (await until_refused(server, alice))[0] == 40


async def spent(server: Running, client: Client) -> None:
    """Ask until the engine was asked, and has answered or not."""
    quotas = server.hub.quotas

    def asked() -> int:
        return quotas.bought + quotas.denied + quotas.failed

    before = asked()
    async with asyncio.timeout(DEADLINE):
        while asked() == before:
            await client.ask("ping")
            await settled(server)


@pytest.mark.anyio
async def test_without_its_engine_a_node_limits_alone_and_comes_back(
    own_valkey: Engine, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "hubbub")

    def said(text: str) -> int:
        return sum(text in record.message for record in caplog.records)

    options = {**pace, "user_rate_burst": 400}
    async with running(settings_for(valkey_url=own_valkey.url, **options), clock=HandClock()) as server:
        quotas = server.hub.quotas
        async with server.client("alice") as alice, server.client("bob") as bob:
            await spent(server, alice)
            assert quotas.bought
            own_valkey.kill()
            while not quotas.failed:
                assert (await alice.ask("ping"))["type"] == "pong"
            count, _ = await until_refused(server, alice, 500)
            assert 200 < count < 400, "its own limit holds"
            assert quotas.counts["alone"] > 100
            server.advance(RETRY)
            assert (await until_refused(server, bob, 500))[0] == 400
            assert quotas.failed == 2, "it is asked once in a while"
            assert said("limits are not shared now") == 1
            own_valkey.start()
            bought = quotas.bought
            server.advance(60.0)
            await spent(server, alice)
            await until(lambda: quotas.bought > bought and not quotas.messages.away)  # type: ignore[union-attr]  # shared
            assert said("limits are shared again") == 1


@pytest.mark.anyio
async def test_many_who_come_near_their_rate_at_once_share_a_few_connections() -> None:
    """A Cluster's servers give eight each, and whoever asked for one more would be told that there is no engine."""
    with Shards() as shards:
        async with running(settings_for(valkey_url=shards.url, **pace), clock=HandClock()) as server:
            quotas = server.hub.quotas
            assert quotas.messages is not None
            want, asked = quotas.messages._want, set[str]()

            def wants(key: str) -> None:
                asked.add(key)
                want(key)

            quotas.messages._want = wants
            for number in range(200):
                while f"user-{number}" not in asked:
                    assert quotas.messages.take(f"user-{number}", 0.0) == 0.0
            await settled(server)
            assert (quotas.bought, quotas.failed) == (200, 0)
            made = [
                engine.call("CLIENT", "LIST", "TYPE", "normal").count(b"lib-name=redis-py") for engine in shards.engines
            ]
            assert max(made) <= 8


@pytest.mark.anyio
async def test_an_engine_that_does_not_answer_keeps_nobody_waiting(
    own_valkey: Engine, caplog: pytest.LogCaptureFixture
) -> None:
    settings = settings_for(valkey_url=own_valkey.url, **{**pace, "user_rate_burst": 1000})
    async with running(settings, clock=HandClock()) as server, server.client("alice") as alice:
        await spent(server, alice)
        own_valkey.pause()
        try:
            slowest, failed = 0.0, server.hub.quotas.failed
            for _ in range(500):
                began = time.monotonic()
                answer = await alice.ask("ping")
                slowest = max(slowest, time.monotonic() - began)
                assert answer["type"] == "pong", answer
            await until(lambda: server.hub.quotas.failed > failed)
            assert slowest < 0.7, "the deadline is one second"
            said = next(record for record in caplog.records if "limits are not shared now" in record.message)
            assert said.__dict__["error"] == "no answer within 1 s"
        finally:
            own_valkey.resume()


# -- over HTTP -----------------------------------------------------------------------------------------------------


@pytest.mark.anyio
async def test_requests_of_an_api_key_have_a_rate() -> None:
    settings = settings_for(api_rate_limit=0.5, api_rate_burst=3, api_keys=(API_KEY, "another-key-of-the-tests"))
    async with running(settings, clock=HandClock()) as server, server.http() as http:
        for _ in range(3):
            assert (await http.post("/api/publish", json={"channel": "news", "data": 1})).status_code == 200
        answer = await http.post("/api/publish", json={"channel": "news", "data": 1})
        assert answer.status_code == 429
        assert answer.headers["retry-after"] == "2"
        assert answer.json()["error"] == {"code": "rate_limited", "message": "too many requests of this API key"}
        assert (await http.get("/api/rooms")).status_code == 429, "whatever it asks for"
        async with server.http("another-key-of-the-tests") as another:
            assert (await another.get("/api/rooms")).status_code == 200
        server.advance(2.0)
        assert (await http.get("/api/rooms")).status_code == 200


async def requests_until_refused(server: Running, bearer: str, most: int = 200) -> int:
    async with server.http(bearer) as http:
        for count in range(most):
            answer = await http.get("/api/rooms")
            await settled(server)
            if answer.status_code == 429:
                assert int(answer.headers["retry-after"]) >= 1
                return count
            assert answer.status_code == 200
    raise AssertionError(f"none of {most} was refused")


@pytest.mark.anyio
async def test_requests_are_counted_over_all_nodes(valkey_settings: dict[str, str], own_valkey: Engine) -> None:
    async with two(**valkey_settings, **pace, api_rate_limit=1, api_rate_burst=40) as (one, other):
        for bearer in (API_KEY, one.token("alice")):
            assert 38 <= await requests_until_refused(one, bearer) <= 40
            assert await requests_until_refused(other, bearer) <= 12


@pytest.mark.anyio
async def test_the_engine_does_not_learn_api_keys(own_valkey: Engine) -> None:
    settings = settings_for(valkey_url=own_valkey.url, api_rate_limit=1, api_rate_burst=40)
    async with running(settings, clock=HandClock()) as server:
        await requests_until_refused(server, API_KEY)
        keys = [bytes(key).decode() for key in own_valkey.call("KEYS", "hubbub:limits:*")]
        assert any("key/" in key for key in keys)
        assert not any(API_KEY in key for key in keys)
