"""The broker over a real Valkey, where it is more than the contract: generations, broken connections, a dead engine."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI

from hubbub.app import Hubbub, SystemClock
from hubbub.brokers.valkey.address import Address
from hubbub.brokers.valkey.broker import PATIENCE, ValkeyBroker
from hubbub.brokers.valkey.keys import PARTITIONS, SLOTS, Keys, cluster_tags, slot_of
from hubbub.brokers.valkey.scripts import PUBLISH
from hubbub.brokers.valkey.wire import Wire, WireError
from hubbub.errors import BrokerUnavailable, ClientError, ConfigurationError
from hubbub.messages import Position
from hubbub.settings import ChannelOptions
from hubbub.stream import Publication, Recovery
from hubbub.testing import hub_client, running
from tests.engine_support import WITHIN, Engine
from tests.fault_proxy import fault_proxy
from tests.support import settings_for

pytestmark = pytest.mark.anyio
KEEPS = ChannelOptions(history_size=100)
PASSES = ChannelOptions(history_size=0)
LOCAL = ChannelOptions(history_size=100, offline="local")


class Heard:
    """An inlet that notes what it is handed."""

    def __init__(self) -> None:
        self.payloads: list[tuple[str, bytes]] = []
        self.losses: list[str | None] = []
        self.renewals: list[tuple[str, Position]] = []

    def deliver(self, channel: str, publication: Publication) -> None:
        self.payloads.append((channel, publication.payload))

    def lost(self, channel: str | None) -> None:
        self.losses.append(channel)

    def renewed(self, channel: str, position: Position) -> None:
        self.renewals.append((channel, position))


@asynccontextmanager
async def node(url: str, **settings: Any) -> AsyncIterator[tuple[ValkeyBroker, Heard]]:
    broker = ValkeyBroker(settings_for(valkey_url=url, **settings), SystemClock())
    heard = Heard()
    await broker.start(heard)
    try:
        yield broker, heard
    finally:
        await broker.stop()


def publication(text: str) -> Publication:
    return Publication(b'{"offset":', b',"text":"%b"}' % text.encode(), at=time.time())


async def until(condition: Callable[[], bool], what: str) -> None:
    end = time.monotonic() + WITHIN
    while not condition():
        assert time.monotonic() < end, f"in vain: {what}"
        await asyncio.sleep(0.01)


async def had(work: Callable[[], Awaitable[Any]]) -> Any:
    """What comes of it, once the engine is there."""
    end = time.monotonic() + WITHIN
    while True:
        try:
            return await work()
        except BrokerUnavailable:
            assert time.monotonic() < end
            await asyncio.sleep(0.05)


def texts(recovery: Recovery) -> list[bytes]:
    return [each.payload for each in recovery.publications]


# -- generations


async def test_positions_are_good_after_a_restart_that_lost_nothing() -> None:
    with Engine(appendonly="yes", appendfsync="always") as engine:
        async with node(engine.unix_url) as (broker, heard):
            await broker.subscribe("a")
            for number in range(3):
                before = await broker.publish("a", publication(str(number)), KEEPS)
            await asyncio.to_thread(engine.kill)
            await asyncio.to_thread(engine.start)
            recovery = await had(lambda: broker.recover("a", Position(before.epoch, 1), 10, KEEPS))
            assert recovery.recovered
            assert [each.offset for each in recovery.publications] == [2, 3]
            assert recovery.position.offset == 3
            assert recovery.position.epoch != before.epoch, "the engine was restarted, and nobody can tell"
            await until(lambda: None in heard.losses, "the hub is told to look at history")
            after = await broker.publish("a", publication("3"), KEEPS)
            assert after == Position(recovery.position.epoch, 4)
            again = await broker.recover("a", before, 10, KEEPS)
            assert again.recovered
            assert [each.offset for each in again.publications] == [4]


async def test_positions_beyond_what_was_lost_are_not_good() -> None:
    """The engine comes back as it was two publications ago: their offsets are given again."""
    with Engine() as engine:
        async with node(engine.unix_url) as (broker, _):
            for number in range(3):
                kept = await broker.publish("a", publication(str(number)), KEEPS)
            engine.call("SAVE")
            for number in range(3, 5):
                lost = await broker.publish("a", publication(str(number)), KEEPS)
            assert (kept.offset, lost.offset) == (3, 5)
            await asyncio.to_thread(engine.kill)
            await asyncio.to_thread(engine.start)
            assert not (await had(lambda: broker.recover("a", lost, 10, KEEPS))).recovered
            for number in range(10, 14):
                new = await broker.publish("a", publication(str(number)), KEEPS)
            assert new.offset == 7, "offsets go on from what the engine still has"
            answer = await broker.recover("a", lost, 10, KEEPS)
            assert not answer.recovered, "a silent hole: 4 and 5 are others now"
            assert answer.fresh == 3, "what came after 3 is new to everybody"
            recovery = await broker.recover("a", kept, 10, KEEPS)
            assert recovery.recovered
            assert [each.offset for each in recovery.publications] == [4, 5, 6, 7]
            assert b'"10"' in recovery.publications[0].payload


async def test_an_empty_engine_begins_a_new_life() -> None:
    with Engine() as engine:
        async with node(engine.unix_url) as (broker, _):
            before = await broker.publish("a", publication("0"), KEEPS)
            await asyncio.to_thread(engine.kill)
            await asyncio.to_thread(engine.start)
            after = await had(lambda: broker.publish("a", publication("1"), KEEPS))
            assert after.offset == 1
            assert after.epoch.split(".")[0] != before.epoch.split(".")[0]
            assert not (await broker.recover("a", before, 10, KEEPS)).recovered


async def test_flushed_while_it_runs(own_valkey: Engine) -> None:
    async with node(own_valkey.unix_url) as (broker, heard):
        await broker.subscribe("a")
        before = await broker.publish("a", publication("0"), KEEPS)
        await until(lambda: len(heard.payloads) == 1, "the first")
        own_valkey.call("FLUSHALL")
        after = await broker.publish("a", publication("1"), KEEPS)
        assert after.offset == 1
        assert after.epoch != before.epoch
        await until(lambda: len(heard.payloads) == 2, "the second")
        assert heard.losses == ["a"], "the hub must be told that the epoch is another, before it gets anything of it"


async def test_two_nodes_that_start_at_once_have_one_fence(own_valkey: Engine) -> None:
    brokers = [ValkeyBroker(settings_for(valkey_url=own_valkey.unix_url), SystemClock()) for _ in range(4)]
    await asyncio.gather(*(broker.start(Heard()) for broker in brokers))
    try:
        positions = await asyncio.gather(*(broker.publish("a", publication("x"), KEEPS) for broker in brokers))
        assert sorted(position.offset for position in positions) == [1, 2, 3, 4]
        assert len({position.epoch for position in positions}) == 1
    finally:
        for broker in brokers:
            await broker.stop()


# -- broken connections


async def test_a_publication_whose_answer_was_lost_is_there_once(own_valkey: Engine) -> None:
    """The engine carries it out, and the connection breaks before that is known here."""
    async with fault_proxy(("127.0.0.1", own_valkey.port)) as proxy, node(proxy.url) as (broker, _):
        await broker.publish("a", publication("first"), KEEPS)
        proxy.stall("down")
        sent = [asyncio.ensure_future(broker.publish("a", publication(f"lost{number}"), KEEPS)) for number in range(5)]
        engine = await Wire.connect(Address(path=str(own_valkey.socket)), name="test", timeout=5)
        key = broker.keys.partition_of("a").key("h", "a")
        while await engine.call("LLEN", key) < 6:
            await asyncio.sleep(0.01)
        engine.abort()
        proxy.heal()
        proxy.reset()
        positions = await asyncio.wait_for(asyncio.gather(*sent), WITHIN)
        assert [position.offset for position in positions] == [2, 3, 4, 5, 6]
        _, page, _ = await broker.history("a", None, None, 50, KEEPS)
        assert len(page) == 6


async def test_a_black_hole_is_noticed(own_valkey: Engine) -> None:
    async with fault_proxy(("127.0.0.1", own_valkey.port)) as proxy, node(proxy.url) as (broker, heard):
        await broker.subscribe("a")
        await until(lambda: broker.healthy, "healthy at first")
        proxy.stall()
        began = time.monotonic()
        await until(lambda: not broker.healthy, "it knows that it hears nothing")
        assert time.monotonic() - began < 6
        proxy.heal()
        proxy.reset()
        await until(lambda: broker.healthy, "healthy again")
        assert None in heard.losses
        await broker.publish("a", publication("x"), KEEPS)
        await until(lambda: bool(heard.payloads), "subscribed again")


async def test_scripts_that_the_engine_forgot_are_loaded_again(own_valkey: Engine) -> None:
    async with node(own_valkey.unix_url) as (broker, _):
        await broker.publish("a", publication("0"), KEEPS)
        own_valkey.call("SCRIPT", "FLUSH", "SYNC")
        positions = await asyncio.gather(*(broker.publish("a", publication(str(n)), KEEPS) for n in range(600)))
        assert [position.offset for position in positions] == list(range(2, 602))
        own_valkey.call("SCRIPT", "FLUSH", "SYNC")
        assert (await broker.recover("a", None, 0, KEEPS)).position.offset == 601


async def test_a_refused_subscription_does_not_shift_the_replies(own_valkey: Engine) -> None:
    own_valkey.call("ACL", "SETUSER", "narrow", "on", ">pw", "~*", "+@all", "resetchannels", "&mine:*")
    wire = await Wire.connect(
        Address(path=str(own_valkey.socket), username="narrow", password="pw"), name="t", timeout=5
    )
    outcomes: list[str] = []

    def noted(what: str) -> Callable[[Any, WireError | None], None]:
        return lambda reply, error: outcomes.append(f"{what} {error.code if error else reply}")

    wire.send(("ECHO", "1"), noted("echo"))
    wire.subscribe("SUBSCRIBE", ["yours:1", "yours:2"], noted("yours"))
    wire.send(("ECHO", "2"), noted("echo"))
    wire.subscribe("SUBSCRIBE", ["mine:1", "mine:2"], noted("mine"))
    wire.send(("NOSUCH",), noted("wrong"))
    assert await wire.call("ECHO", "3") == b"3"
    assert outcomes == ["echo b'1'", "yours NOPERM", "echo b'2'", "mine None", "wrong ERR"]
    wire.abort()


# -- without an engine


async def test_without_an_engine_it_is_refused_at_once_and_goes_on_by_itself(own_valkey: Engine) -> None:
    async with node(own_valkey.unix_url) as (broker, heard):
        await broker.subscribe("a")
        own_valkey.kill()
        with pytest.raises(BrokerUnavailable):
            await broker.publish("a", publication("x"), KEEPS)
        broker.shards[0].down_since -= PATIENCE  # the breaker is open
        began = time.monotonic()
        for _ in range(1000):
            with pytest.raises(BrokerUnavailable):
                await broker.publish("a", publication("x"), KEEPS)
        assert time.monotonic() - began < 1, "they pile up"
        assert await broker.publish("a", publication("here"), LOCAL) == Position("", 0)
        assert heard.payloads == [("a", b'{"offset":0,"text":"here"}')]
        await asyncio.to_thread(own_valkey.start)
        position = await had(lambda: broker.publish("a", publication("back"), KEEPS))
        assert position.offset == 1
        await until(lambda: len(heard.payloads) == 2, "it is heard again")


async def test_a_short_absence_is_waited_for() -> None:
    with Engine(appendonly="yes") as engine:
        async with node(engine.unix_url) as (broker, _):
            await broker.publish("a", publication("0"), KEEPS)
            await asyncio.to_thread(engine.kill)
            sent = asyncio.ensure_future(broker.publish("a", publication("1"), KEEPS))
            await asyncio.to_thread(engine.start)
            assert (await asyncio.wait_for(sent, WITHIN)).offset == 2


async def test_what_waits_has_a_bound(own_valkey: Engine) -> None:
    async with node(own_valkey.unix_url, valkey_queue=64) as (broker, _):
        own_valkey.pause()
        try:
            sent = [asyncio.ensure_future(broker.publish("a", publication("x"), KEEPS)) for _ in range(2000)]
            done, _ = await asyncio.wait(sent, timeout=1.0)
            errors = [each.exception() for each in done]
            assert errors
            assert all(isinstance(error, ClientError) and error.code == "busy" for error in errors)
        finally:
            own_valkey.resume()
        outcomes = await asyncio.gather(*sent, return_exceptions=True)
        placed = [each.offset for each in outcomes if isinstance(each, Position)]
        assert placed == list(range(1, len(placed) + 1))


async def test_a_node_starts_without_its_engine(own_valkey: Engine) -> None:
    own_valkey.kill()
    broker = ValkeyBroker(settings_for(valkey_url=own_valkey.unix_url, valkey_timeout=0.3), SystemClock())
    await broker.start(Heard())
    assert not broker.healthy
    await asyncio.to_thread(own_valkey.start)
    await until(lambda: broker.healthy, "it connects by itself")
    await broker.stop()


@pytest.mark.parametrize(
    ("where", "what"),
    [
        ("hub:wrong@127.0.0.1:{port}/0", "the user or the password is wrong"),
        ("127.0.0.1:{port}/0", "it wants a password"),
        ("hub:right@127.0.0.1:{port}/99", "it has no such database"),
    ],
)
async def test_what_is_set_up_wrongly_stops_the_start_at_once(where: str, what: str) -> None:
    with Engine(user="hub", password="right") as engine:
        url = f"valkey://{where.format(port=engine.port)}"
        broker = ValkeyBroker(settings_for(valkey_url=url, valkey_timeout=60.0), SystemClock())
        async with asyncio.timeout(WITHIN):
            with pytest.raises(ConfigurationError, match=what) as raised:
                await broker.start(Heard())
        assert f"the engine at 127.0.0.1:{engine.port}" in str(raised.value)


async def test_what_keeps_it_from_the_engine_is_said(own_valkey: Engine, caplog: pytest.LogCaptureFixture) -> None:
    port = own_valkey.port
    for url, what in (
        (f"valkeys://127.0.0.1:{port}/0", "valkeys:// is with TLS"),
        ("valkey://127.0.0.1:9/0", "the engine at 127.0.0.1:9: "),
        ("unix:///nowhere/valkey.sock", "the engine at /nowhere/valkey.sock: "),
    ):
        caplog.clear()
        broker = ValkeyBroker(settings_for(valkey_url=url, valkey_timeout=0.3), SystemClock())
        await broker.start(Heard())
        await until(lambda: bool(caplog.records), "it is said")
        assert what in caplog.records[0].getMessage()
        await broker.stop()


async def test_a_full_engine_refuses_and_goes_on(own_valkey: Engine) -> None:
    async with node(own_valkey.unix_url) as (broker, _):
        await broker.publish("a", publication("0"), KEEPS)
        own_valkey.call("CONFIG", "SET", "maxmemory", "1")
        with pytest.raises(ClientError, match="memory is full"):
            await broker.publish("a", publication("1"), KEEPS)
        own_valkey.call("CONFIG", "SET", "maxmemory", "0")
        assert (await broker.publish("a", publication("2"), KEEPS)).offset == 2


# -- names


def test_partitions_of_a_cluster_are_spread() -> None:
    assert slot_of("foo") == 12182  # the specification's own example would have it so: CRC16 of "foo" modulo 16384
    slots = [slot_of(tag) for tag in cluster_tags()]
    assert len(set(slots)) == PARTITIONS
    for shards in (2, 3, 5, 8, 16):
        counts = [0] * shards
        for slot in slots:
            counts[slot * shards // SLOTS] += 1
        assert max(counts) - min(counts) <= 1, f"{counts} partitions on {shards} shards"
    keys = Keys("p", cluster=True)
    assert len({keys.partition_of(f"room:{number}").index for number in range(2000)}) == PARTITIONS
    assert keys.partition_of("room:1").key("h", "room:1").startswith("p:{")


# -- users' own channels


async def test_a_notification_while_the_engine_is_away_for_one_node_reaches_a_session_that_never_had_one(
    own_valkey: Engine, tmp_path: Path
) -> None:
    """The node cannot know from the offsets that it missed it: nothing came on that channel before."""
    async with fault_proxy(("127.0.0.1", own_valkey.port)) as proxy:
        here = Hubbub(settings=settings_for(valkey_url=proxy.url, database_url="sqlite://"))
        there = Hubbub(settings=settings_for(valkey_url=own_valkey.unix_url, database_url="sqlite://"))
        app, other = FastAPI(), FastAPI()
        here.install(app)
        there.install(other)
        async with running(other), hub_client(app, "alice") as alice:
            await until(lambda: "alice" in here.hub.inlet.lines, "the node knows where alice's channel is")
            await proxy.refuse()
            proxy.reset()
            await until(lambda: not here.hub.broker.healthy, "the node is cut off")
            await there.notify("alice", "missed?", "no")
            await proxy.accept()
            told = await alice.expect("notification")
            assert told["data"]["title"] == "missed?"
            await there.notify("alice", "next", "")
            assert (await alice.expect("notification"))["data"]["title"] == "next"


# -- what a reviewer found


async def test_the_bytes_of_a_history_are_those_that_it_has(own_valkey: Engine) -> None:
    """Counted wrongly, by a byte a call, a busy channel would in the end be trimmed to one entry."""
    async with node(own_valkey.unix_url, history_bytes=4096) as (broker, _):
        options = ChannelOptions(history_size=20)
        for number in range(5000):
            await broker.publish("a", publication(str(number % 10)), options)
        partition = broker.keys.partition_of("a")
        assert own_valkey.call("LLEN", partition.key("h", "a")) == 20
        entries = own_valkey.call("LRANGE", partition.key("h", "a"), 0, -1)
        counted = int(own_valkey.call("GET", partition.key("m", "a")).split()[3])
        assert counted == sum(map(len, entries))


async def test_databases_of_one_server_do_not_hear_each_other(own_valkey: Engine) -> None:
    url = own_valkey.unix_url
    async with node(f"{url}?db=1") as (one, heard_one), node(f"{url}?db=2") as (two, heard_two):
        for broker in (one, two):
            await broker.subscribe("a")
        await one.publish("a", publication("1"), KEEPS)
        await two.publish("a", publication("2"), KEEPS)
        await until(lambda: bool(heard_one.payloads and heard_two.payloads), "each hears its own")
        assert [payload for _, payload in heard_one.payloads] == [b'{"offset":1,"text":"1"}']
        assert [payload for _, payload in heard_two.payloads] == [b'{"offset":1,"text":"2"}']


async def test_what_was_sent_is_not_delivered_locally_too(own_valkey: Engine) -> None:
    async with (
        fault_proxy(("127.0.0.1", own_valkey.port)) as proxy,
        node(proxy.url, valkey_timeout=1.0) as (broker, heard),
    ):
        await broker.subscribe("a")
        proxy.stall("down")
        with pytest.raises(BrokerUnavailable):  # it is carried out, and nobody here knows
            await broker.publish("a", publication("sent"), LOCAL)
        assert heard.payloads == []
        proxy.reset()
        proxy.heal()
        assert (await had(lambda: broker.recover("a", None, 0, LOCAL))).position.offset == 1


async def test_what_a_given_up_connection_still_brings_is_refused(own_valkey: Engine) -> None:
    """TCP goes on repeating what it was given: it may come when its answer, had over another connection, is forgotten."""
    async with (
        fault_proxy(("127.0.0.1", own_valkey.port)) as proxy,
        node(proxy.url) as (broker, _),
        node(own_valkey.unix_url) as (other, heard),
    ):
        await other.subscribe("a")
        await broker.publish("a", publication("first"), KEEPS)
        proxy.hold()
        before = proxy.taken["up"]
        late = asyncio.ensure_future(broker.publish("a", publication("pay"), KEEPS))
        passing = asyncio.ensure_future(broker.publish("b", publication("passes"), PASSES))
        await until(lambda: proxy.taken["up"] > before, "it is on its way")
        broker.shards[0].drop()
        assert (await late).offset == 2
        await passing
        for number in range(40):
            await broker.publish("a", publication(str(number)), KEEPS)
            await broker.publish("b", publication(str(number)), PASSES)
        refused = partial(own_valkey.info, "errorstats")
        assert "errorstat_LATE" not in refused()
        proxy.let_go()
        await until(lambda: refused().get("errorstat_LATE") == "count=2", "both have come")
        told = [payload for _, payload in heard.payloads]
        assert sum(b"pay" in payload for payload in told) == 1
        assert (await other.recover("a", None, 0, KEEPS)).position.offset == 42


async def test_refusing_costs_nothing_however_much_waits(own_valkey: Engine) -> None:
    async with fault_proxy(("127.0.0.1", own_valkey.port)) as proxy, node(proxy.url) as (broker, _):
        await proxy.refuse()
        proxy.reset()
        await until(lambda: not broker.shards[0].up, "the engine is away")
        waiting = [asyncio.ensure_future(broker.publish("a", publication("waits"), KEEPS)) for _ in range(15_000)]
        await until(
            lambda: asyncio.get_running_loop().time() - broker.shards[0].down_since > PATIENCE, "it is given up"
        )
        assert not any(each.done() for each in waiting)
        began = time.process_time()
        for _ in range(1000):
            with pytest.raises(BrokerUnavailable):
                await broker.publish("a", publication("refused"), KEEPS)
        assert time.process_time() - began < 0.5  # over a second if each went over what waits
        for each in waiting:
            each.cancel()


async def test_a_history_in_use_stays_whatever_clock_a_node_has(own_valkey: Engine) -> None:
    """A node that is ahead says when the history's end was put off; the others must not take that for their own time."""
    short = ChannelOptions(history_size=100, history_ttl=1.0)
    async with node(own_valkey.unix_url) as (broker, _), node(own_valkey.unix_url) as (ahead, _):
        ahead._keeping[0]._time = lambda: time.time() + 60
        await ahead.publish("a", publication("1"), short)
        end = time.monotonic() + 1.6  # its end, 2.25 s from then, is put off with each second
        while time.monotonic() < end:
            await broker.publish("a", publication("more"), short)
            await asyncio.sleep(0.02)
        assert own_valkey.call("PTTL", "hubbub:{0}:h:a") > 900


async def test_here_alone_what_is_said_is_heard_in_its_order(own_valkey: Engine) -> None:
    """``local``: what waited for the engine comes before what did not wait any more."""
    async with fault_proxy(("127.0.0.1", own_valkey.port)) as proxy, node(proxy.url) as (broker, heard):
        await broker.subscribe("a")
        await proxy.refuse()
        proxy.reset()
        await until(lambda: not broker.shards[0].up, "the engine is away")
        said: list[asyncio.Future[Position]] = []
        end = time.monotonic() + PATIENCE + 1.0
        while time.monotonic() < end:  # over the moment from which on nothing waits any more
            said.append(asyncio.ensure_future(broker.publish("a", publication(str(len(said))), LOCAL)))
            await asyncio.sleep(0.02)
        positions = await asyncio.gather(*said)
        assert all(not position.offset for position in positions)
        assert [int(payload.split(b'"')[5]) for _, payload in heard.payloads] == list(range(len(said)))


async def test_what_is_only_handed_on_needs_no_room_in_the_engine(own_valkey: Engine) -> None:
    """In the same turn as what does, and is refused: each has its own answer, and what is refused nobody has heard."""
    async with node(own_valkey.unix_url) as (broker, _), node(own_valkey.unix_url) as (other, heard):
        for channel in ("a", "b", "c"):
            await other.subscribe(channel)
        await broker.publish("a", publication("1"), KEEPS)
        own_valkey.call("CONFIG", "SET", "maxmemory", "1mb")
        relayed = publication("relayed")
        relayed.offset = 7
        refused, passed, again, told = await asyncio.gather(
            broker.publish("a", publication("refused"), KEEPS),
            broker.publish("b", publication("passes"), PASSES),
            broker.publish("a", publication("refused too"), KEEPS),
            broker.relay("c", [relayed]),
            return_exceptions=True,
        )
        assert isinstance(refused, ClientError)
        assert isinstance(again, ClientError)
        assert isinstance(passed, Position)
        assert told is None
        await until(lambda: len(heard.payloads) == 3, "what is handed on is heard")
        assert not [payload for _, payload in heard.payloads if b"refused" in payload]


async def test_a_channel_that_is_taken_away_is_not_taken_for_a_confirmation() -> None:
    """A Cluster's slot moves while a subscription is on its way: the engine's SUNSUBSCRIBE must be heard."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1000)
        writer.write(b"%1\r\n+server\r\n+x\r\n")
        await reader.read(1000)
        writer.write(b">3\r\n$12\r\nsunsubscribe\r\n$3\r\nold\r\n:0\r\n")
        writer.write(b">3\r\n$10\r\nssubscribe\r\n$3\r\nnew\r\n:1\r\n")
        await reader.read(1000)
        writer.close()

    pushes: list[list[Any]] = []
    confirmed = asyncio.Event()
    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        address = Address("127.0.0.1", server.sockets[0].getsockname()[1])
        wire = await Wire.connect(address, name="x", timeout=5, pushed=lambda push: pushes.append(list(push)))
        wire.subscribe("SSUBSCRIBE", ["new"], lambda reply, error: confirmed.set())
        await asyncio.wait_for(confirmed.wait(), WITHIN)
        assert pushes == [[b"sunsubscribe", b"old", 0]]
        wire.abort()


async def test_batches_are_carried_out_in_their_order_whatever_fails(own_valkey: Engine) -> None:
    """The first meets an engine without the script, the second one that has it again."""
    async with fault_proxy(("127.0.0.1", own_valkey.port)) as proxy, node(proxy.url) as (broker, _):
        await broker.publish("a", publication("0"), KEEPS)
        own_valkey.call("SCRIPT", "FLUSH", "SYNC")
        proxy.stall("down")
        first = asyncio.ensure_future(broker.publish("a", publication("first"), KEEPS))
        calls = "cmdstat_evalsha"
        tried = own_valkey.info("commandstats").get(calls, "")
        await until(lambda: own_valkey.info("commandstats").get(calls, "") != tried, "the first has failed")
        own_valkey.call("SCRIPT", "LOAD", PUBLISH.text)
        second = asyncio.ensure_future(broker.publish("a", publication("second"), KEEPS))
        tried = own_valkey.info("commandstats").get(calls, "")
        await until(
            lambda: own_valkey.info("commandstats").get(calls, "") != tried, "the second was carried out or not"
        )
        proxy.heal()
        positions = await asyncio.wait_for(asyncio.gather(first, second), WITHIN)
        assert [position.offset for position in positions] == [2, 3]


async def test_who_fails_when_told_does_not_keep_the_others_waiting(own_valkey: Engine) -> None:
    async with node(own_valkey.unix_url) as (broker, heard):
        await broker.subscribe("a")

        def fails(position: Position | None, error: Exception | None) -> None:
            raise ValueError("a fault of whoever asked")

        broker.submit("a", publication("0"), KEEPS, fails)
        positions = await asyncio.wait_for(
            asyncio.gather(*(broker.publish("a", publication(str(n)), KEEPS) for n in range(3))), WITHIN
        )
        assert [position.offset for position in positions] == [2, 3, 4]
        assert broker.stats.breaks == 0
        partition = broker.keys.partition_of("a")
        own_valkey.call("PUBLISH", partition.key("c", "a"), "of somebody else")
        own_valkey.call("PUBLISH", partition.key("c", "a"), "life.gen x\n\x91")
        await broker.publish("a", publication("after"), KEEPS)
        await until(lambda: len(heard.payloads) == 5, "it goes on")
        assert broker.stats.breaks == 0, "a foreign message cut the connection"


async def test_names_that_are_only_asked_for_do_not_stay(own_valkey: Engine) -> None:
    async with node(own_valkey.unix_url) as (broker, heard):
        for name in ("asked", "told"):
            await broker.subscribe(name)
            assert (await broker.recover(name, None, 0, KEEPS)).position.offset == 0
        await broker.publish("told", publication("1"), KEEPS)
        key = broker.keys.partition_of("asked").key
        assert 0 < own_valkey.call("TTL", key("m", "asked")) <= 3600
        assert own_valkey.call("TTL", key("m", "told")) > 80_000
        # once it is forgotten, the first publication tells nobody of a gap: this node would have heard another one
        own_valkey.call("DEL", key("m", "asked"))
        position = await broker.publish("asked", publication("first"), KEEPS)
        await until(lambda: len(heard.payloads) == 2, "both are heard")
        assert heard.renewals == [("asked", Position(position.epoch, 0))]
        assert heard.losses == []


async def test_a_connection_for_reading_that_is_dead_alone_is_noticed(own_valkey: Engine) -> None:
    async with fault_proxy(("127.0.0.1", own_valkey.port)) as proxy, node(own_valkey.unix_url) as (broker, _):
        shard = broker.shards[0]
        assert shard.reads is not None
        shard.reads.abort = lambda: None  # type: ignore[method-assign]
        silent = await Wire.connect(Address("127.0.0.1", proxy.port), name="silent", timeout=5)
        shard.reads, other = silent, shard.reads
        proxy.stall()
        await until(lambda: broker.stats.breaks == 1, "it is given up")
        await until(lambda: broker.healthy, "and made again")
        silent.abort()
        Wire.abort(other)


async def test_what_is_only_handed_on_needs_no_memory_of_the_engine(own_valkey: Engine) -> None:
    async with node(own_valkey.unix_url) as (one, _), node(own_valkey.unix_url) as (two, heard):
        await two.subscribe("room:a")
        own_valkey.call("CONFIG", "SET", "maxmemory", "1")
        await one.relay("room:a", [Publication(b"{}", b"", offset=7)])
        await until(lambda: len(heard.payloads) == 1, "it is handed on")
        own_valkey.call("CONFIG", "SET", "maxmemory", "0")


async def test_a_subscription_that_the_engine_refuses_is_told_and_made_with_the_next_connection(
    own_valkey: Engine,
) -> None:
    own_valkey.call("ACL", "SETUSER", "hub", "on", ">pw", "~*", "+@all", "resetchannels", "&hubbub:*")
    async with node(f"unix://hub:pw@{own_valkey.socket}") as (broker, heard):
        await broker.subscribe("before")
        own_valkey.call("ACL", "SETUSER", "hub", "+@all", "-subscribe")
        with pytest.raises(BrokerUnavailable, match="refuses a subscription"):
            await broker.subscribe("a")
        assert not broker.healthy, "a node that cannot hear must say so"
        own_valkey.call("ACL", "SETUSER", "hub", "+subscribe")
        await until(lambda: broker.healthy, "it connects again by itself")
        await broker.publish("a", publication("1"), KEEPS)
        await until(lambda: bool(heard.payloads), "and has what was wanted")


async def test_what_waits_has_one_bound_in_a_cluster() -> None:
    broker = ValkeyBroker(settings_for(valkey_url="valkey+cluster://127.0.0.1:1", valkey_queue=64), SystemClock())
    await broker.start(Heard())
    broker._topology.shards[0].down_since = float("inf")  # type: ignore[union-attr]  # not away for long yet
    try:
        refused: list[Exception | None] = []
        for number in range(1000):
            broker.submit(f"c{number}", publication("x"), KEEPS, lambda position, error: refused.append(error))
        assert len(refused) == 1000 - 64
        assert all(isinstance(error, ClientError) and error.code == "busy" for error in refused)
    finally:
        await broker.stop()


async def test_a_node_comes_up_while_people_come_and_go(own_valkey: Engine) -> None:
    """What is wanted changes all the time, and each answer of the engine takes a while."""
    async with fault_proxy(("127.0.0.1", own_valkey.port)) as proxy, node(proxy.url) as (broker, heard):
        for number in range(50):
            await broker.subscribe(f"c{number}")
        proxy.delay = 0.05
        proxy.reset()
        await until(lambda: not broker.healthy, "it is away")
        turning = True

        async def turn() -> None:
            number = 0
            while turning:
                number += 1
                with suppress(BrokerUnavailable, TimeoutError):
                    await asyncio.wait_for(asyncio.shield(broker.subscribe(f"new{number}")), 0.01)
                await broker.unsubscribe(f"new{number - 5}")
                await asyncio.sleep(0.005)

        work = asyncio.ensure_future(turn())
        try:
            began = time.monotonic()
            await until(lambda: broker.healthy, "it comes up")
            assert time.monotonic() - began < 5
        finally:
            turning = False
            await asyncio.wait([work])
        proxy.delay = 0
        await broker.subscribe("last")
        await broker.publish("last", publication("x"), KEEPS)
        await until(lambda: bool(heard.payloads), "and hears")
