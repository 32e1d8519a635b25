"""Publishing without a server, over a real Valkey: from plain code, from threads, after a fork, from asyncio, and over an
engine that goes away and comes back."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest

import hubbub
from hubbub import AsyncPublisher, ChannelOptions, ClientError, ConfigurationError, Publisher
from hubbub.errors import BrokerUnavailable, ErrorCode
from hubbub.publisher import _Thread
from tests.engine_support import Engine, Sentinels, Shards, running_nodes
from tests.support import DEADLINE, Running, running, settings_for, until

pytestmark = pytest.mark.anyio


@asynccontextmanager
async def server(settings: dict[str, str], **more: Any) -> AsyncIterator[Running]:
    async with running(settings_for(**settings, **more)) as node:
        await until(lambda: node.hub.broker.healthy, "the engine is there")
        yield node


def publisher_for(settings: dict[str, str], **options: Any) -> Publisher:
    return Publisher(settings["valkey_url"], prefix=settings["valkey_prefix"], **options)


async def blocking(call: Callable[[], Any]) -> Any:
    """What blocks, in a thread: the server of the test runs in this loop."""
    return await asyncio.wait_for(asyncio.to_thread(call), DEADLINE)


async def test_everything_arrives_as_from_a_node(valkey_settings: dict[str, str]) -> None:
    async with server(valkey_settings) as node, node.client("alice") as alice, node.client("bob") as bob:
        await alice.ask("subscribe", channel="news")

        def job() -> list[Any]:
            with publisher_for(valkey_settings) as hub:
                positions = [hub.publish("news", {"n": number}) for number in range(3)]
                sent = hub.notify(["bob", "nobody"], "t", "m", "warning", {"order": 7})
                hub.broadcast("all", "m", exclude_users=["alice"])
                return [positions, sent, hub.online("alice"), hub.online("nobody")]

        positions, sent, *online = await blocking(job)
        assert [position.offset for position in positions] == [1, 2, 3]
        assert online == [True, False]
        got = [await alice.expect("publication") for _ in range(3)]
        assert [(each["offset"], each["data"]) for each in got] == [(1, {"n": 0}), (2, {"n": 1}), (3, {"n": 2})]
        assert "user_id" not in got[0]
        notification = await bob.expect("notification")
        assert notification["data"] | {"timestamp": ""} == {
            "id": sent, "title": "t", "message": "m", "notification_type": "warning", "timestamp": "",
            "metadata": {"order": 7},
        }  # fmt: skip
        assert (await bob.expect("broadcast_notification"))["data"]["title"] == "all"
        await alice.nothing_more()
        position = await node.hubbub.publish("news", "from a node")
        assert (position.epoch, position.offset) == (positions[0].epoch, 4), "the same history"
        page = await alice.ask("history", channel="news")
        assert [each["offset"] for each in page["messages"]] == [1, 2, 3, 4]


async def test_what_structs_and_keys_become(valkey_settings: dict[str, str]) -> None:
    class Price(msgspec.Struct):
        value: float

    async with server(valkey_settings) as node, node.client("alice") as alice:
        await alice.ask("subscribe", channel="ticks")
        with publisher_for(valkey_settings) as hub:
            await blocking(lambda: hub.publish("ticks", Price(1.5), key="DAX", user_id="feed"))
        got = await alice.expect("publication")
        assert (got["data"], got["key"], got["user_id"]) == ({"value": 1.5}, "DAX", "feed")


async def test_an_idempotency_key_and_a_version_hold_across_publishers_and_nodes(
    valkey_settings: dict[str, str],
) -> None:
    async with server(valkey_settings) as node, node.client("bob") as bob:
        with publisher_for(valkey_settings) as one, publisher_for(valkey_settings) as two:

            def job() -> list[int]:
                offsets = [hub.publish("orders", 1, idempotency_key="order-1").offset for hub in (one, two, one)]
                offsets.append(one.publish("orders", 2).offset)
                for hub in (one, two):
                    hub.notify("bob", "once", "m", idempotency_key="mail-1")
                offsets.append(one.publish("state", "new", version=5).offset)
                offsets.append(two.publish("state", "old", version=4).offset)
                return offsets

            assert await blocking(job) == [1, 1, 1, 2, 1, 1]
        assert (await node.hubbub.publish("orders", 1, idempotency_key="order-1")).offset == 1
        await bob.expect("notification")
        await bob.nothing_more()


async def test_history_is_as_long_as_the_settings_say(valkey_settings: dict[str, str]) -> None:
    channels = {"short:*": ChannelOptions(history_size=2), "none": ChannelOptions(history_size=0)}
    async with server(valkey_settings) as node, node.client("alice") as alice:
        for name in ("short:a", "none"):
            await alice.ask("subscribe", channel=name)
        with publisher_for(valkey_settings, channels=channels) as hub:
            for number in range(5):
                await blocking(lambda number=number: hub.publish("short:a", number))  # type: ignore[misc]  # mypy#4226
            assert (await blocking(lambda: hub.publish("none", 1))).offset == 0
            await alice.expect("publication", channel="none")
        page = await alice.ask("history", channel="short:a")
        assert [each["data"] for each in page["messages"]] == [3, 4]


async def test_sessions_end_and_tokens_are_refused_on_all_nodes(valkey_settings: dict[str, str]) -> None:
    async with server(valkey_settings) as one, server(valkey_settings) as two:
        old = one.token("bob")
        async with one.client("bob") as b1, two.client("bob") as b2, two.client("alice") as alice:
            with publisher_for(valkey_settings) as hub:
                await blocking(lambda: hub.disconnect("bob", reason="by a script"))
                assert await b1.closed() == 1000
                assert await b2.closed() == 1000
                assert b1.connection.close_reason == "by a script"
                await blocking(lambda: hub.disconnect("bob", revoke=True))
                await until(lambda: len(list(two.hub.entrance.verifier.revoked(time.time()))) == 1)
            await alice.nothing_more()
        async with server(valkey_settings) as three:
            for node in (one, two, three):
                async with node.client() as client:
                    assert await client.refused("auth", token=old) == "authentication_failed"


async def test_threads_share_one(valkey_settings: dict[str, str]) -> None:
    async with server(valkey_settings) as node, node.client("alice") as alice:
        await alice.ask("subscribe", channel="work")

        def job() -> list[int]:
            with publisher_for(valkey_settings) as hub, ThreadPoolExecutor(16) as pool:
                return [each.offset for each in pool.map(lambda number: hub.publish("work", number), range(400))]

        assert sorted(await blocking(job)) == list(range(1, 401))
        got = [(await alice.expect("publication"))["data"] for _ in range(400)]
        assert sorted(got) == list(range(400))


FORKS = """
import json, multiprocessing, os, warnings
from hubbub import Publisher

def in_child(hub, results):
    results.put(hub.publish("forked", os.getpid()).offset)

with Publisher() as hub:
    before = [hub.publish("forked", "parent").offset]
    context = multiprocessing.get_context("fork")
    results = context.SimpleQueue()
    children = [context.Process(target=in_child, args=(hub, results)) for _ in range(3)]
    warnings.simplefilter("ignore", DeprecationWarning)  # Python warns of forks beside threads: this is one
    for child in children:
        child.start()
    offsets = sorted(results.get() for _ in children)
    for child in children:
        child.join(30)
    codes = [child.exitcode for child in children]
    before.append(hub.publish("forked", "parent again").offset)
    print(json.dumps([before, offsets, codes]))
"""


async def in_a_process(code: str, settings: dict[str, str]) -> Any:
    """What a program prints, as JSON; it may not warn of anything."""
    environment = os.environ | {f"HUBBUB_{name.upper()}": value for name, value in settings.items()}
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-W", "error", "-c", code,
        env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    out, err = await asyncio.wait_for(process.communicate(), 60)
    assert (process.returncode, err) == (0, b"")
    return json.loads(out)


async def test_a_forked_process_has_its_own_connections(valkey_settings: dict[str, str]) -> None:
    """As a Celery worker: the publisher is made, and even used, before the workers are forked."""
    assert await in_a_process(FORKS, valkey_settings) == [[1, 5], [2, 3, 4], [0, 0, 0]]


async def test_it_can_be_closed_and_used_again(valkey_settings: dict[str, str]) -> None:
    def job() -> list[int]:
        hub = publisher_for(valkey_settings)
        hub.close()
        offsets = [hub.publish("again", 1).offset]
        hub.close()
        hub.close()
        offsets.append(hub.publish("again", 2).offset)
        hub.close()
        return offsets

    assert await blocking(job) == [1, 2]
    assert not [each for each in threading.enumerate() if each.name == "hubbub-publisher"]


async def test_one_that_is_forgotten_ends_its_thread(valkey_settings: dict[str, str]) -> None:
    def job() -> None:
        hub = publisher_for(valkey_settings)
        hub.publish("again", 1)
        assert [each for each in threading.enumerate() if each.name == "hubbub-publisher"]

    await blocking(job)
    await until(lambda: not [each for each in threading.enumerate() if each.name == "hubbub-publisher"])


CYCLE = """
import gc
from hubbub import Publisher

class Job:
    def __init__(self):
        self.hub, self.me = Publisher(), self

job = Job()
job.hub.publish("cycles", 1)
del job
gc.collect()
Publisher().publish("cycles", 2)
left = Publisher()  # closed by nobody
print(left.publish("cycles", 3).offset)
"""


async def test_what_nobody_closes_is_closed_at_the_end(valkey_settings: dict[str, str]) -> None:
    assert await in_a_process(CYCLE, valkey_settings) == 3


async def test_closing_meanwhile_hurts_nobody(valkey_settings: dict[str, str]) -> None:
    """Each call that was closed meanwhile says so, and the next one goes on."""
    hub = publisher_for(valkey_settings)
    enough = threading.Event()
    refused = 0

    def close() -> None:
        while not enough.is_set():
            hub.close()

    def publish() -> int:
        nonlocal refused
        done = 0
        while done < 50:
            try:
                assert hub.publish("races", done).offset > 0
            except BrokerUnavailable:
                refused += 1
                if refused == 50:  # closing in a tight loop is faster than connecting: it would go on for ever
                    enough.set()
            else:
                done += 1
        return done

    closing = asyncio.ensure_future(asyncio.to_thread(close))
    try:
        assert await blocking(publish) == 50
    finally:
        enough.set()
        await closing
        hub.close()
    assert refused


async def test_connections_are_let_go_when_it_is_not_used(valkey_settings: dict[str, str]) -> None:
    async with AsyncPublisher(valkey_settings["valkey_url"], prefix=valkey_settings["valkey_prefix"], idle=0.01) as hub:
        assert (await hub.publish("idle", 1)).offset == 1
        await until(lambda: hub._broker is None)
        assert (await hub.publish("idle", 2)).offset == 2


async def test_from_asyncio_many_at_once(valkey_settings: dict[str, str]) -> None:
    async with server(valkey_settings) as node, node.client("alice") as alice:
        await alice.ask("subscribe", channel="many")
        async with AsyncPublisher(valkey_settings["valkey_url"], prefix=valkey_settings["valkey_prefix"]) as hub:
            positions = await asyncio.gather(*(hub.publish("many", number) for number in range(500)))
            assert [position.offset for position in positions] == list(range(1, 501))
            assert await hub.online("alice")
            await hub.notify("alice", "t", "m")
            await hub.broadcast("t", "m")
            await hub.disconnect("alice")
        assert [(await alice.expect("publication"))["data"] for _ in range(500)] == list(range(500))
        assert await alice.closed() == 1000


def test_one_asyncio_program_after_the_other(valkey_settings: dict[str, str]) -> None:
    hub = AsyncPublisher(valkey_settings["valkey_url"], prefix=valkey_settings["valkey_prefix"])

    async def once() -> int:
        try:
            return (await hub.publish("runs", 1)).offset
        finally:
            await hub.close()

    assert [asyncio.run(once()), asyncio.run(once())] == [1, 2]


# -- the engine goes away


async def test_an_engine_that_was_restarted_between_two_calls(own_valkey: Engine) -> None:
    def job() -> list[int]:
        with Publisher(own_valkey.url, prefix="restarts") as hub:
            offsets = [hub.publish("news", 1).offset]
            own_valkey.restart()  # it keeps nothing
            offsets.append(hub.publish("news", 2).offset)
            own_valkey.kill()
            own_valkey.start()
            offsets.append(hub.publish("news", 3).offset)
            return offsets

    assert await blocking(job) == [1, 1, 1]


async def test_what_is_under_way_when_the_engine_is_killed_is_published_once(tmp_path: Path) -> None:
    with Engine(appendonly="yes", appendfsync="always") as engine:

        def job() -> tuple[list[int], int]:
            with Publisher(engine.url, prefix="kills", timeout=20.0) as hub:
                hub.publish("news", "first")
                killer = threading.Timer(0.05, engine.restart)
                killer.start()
                offsets = [hub.publish("news", number).offset for number in range(600)]
                killer.join()
                return offsets, int(engine.call("LLEN", "kills:{0}:h:news"))

        offsets, kept = await asyncio.wait_for(asyncio.to_thread(job), 60)
        assert offsets == list(range(2, 602))
        assert kept == 601, "each once"


async def test_calls_that_are_given_up_leave_nothing_behind(own_valkey: Engine) -> None:
    """A request's own deadline ends while the engine stands still: what the call had begun to connect must go."""

    def connections() -> int:
        return int(own_valkey.call("CLIENT", "LIST").count(b"name=hubbub-"))

    before = asyncio.all_tasks()
    async with AsyncPublisher(own_valkey.url, prefix="given-up") as hub:
        own_valkey.pause()
        try:
            for _ in range(5):
                with pytest.raises(TimeoutError):
                    await asyncio.wait_for(hub.publish("news", 1), 0.05)
            calls = [asyncio.create_task(hub.publish("news", 1)) for _ in range(5)]
            done, _ = await asyncio.wait(calls, timeout=0.05)
            for call in calls:
                call.cancel()
            await asyncio.wait(calls)
            assert not done
        finally:
            own_valkey.resume()
        await until(lambda: asyncio.all_tasks() == before, "all that was begun has ended")
        await until(lambda: connections() == 0, "the engine has seen it")
        assert (await hub.publish("news", 2)).offset == 1
        used = connections()
        assert 0 < used <= 3
    assert asyncio.all_tasks() == before
    await until(lambda: connections() == 0, "it was closed")


async def test_without_an_engine_a_call_says_what_to_do() -> None:
    with Engine() as engine:
        url = engine.url

        def job() -> list[str]:
            errors = []
            locally = {"local:*": ChannelOptions(offline="local")}  # there is nobody here whom it could be told to
            with Publisher(url, prefix="away", timeout=0.5, channels=locally) as hub:
                hub.publish("news", 1)
                engine.stop()
                for call in (
                    lambda: hub.publish("news", 2),
                    lambda: hub.publish("local:a", 2),
                    lambda: hub.notify("bob", "t", "m"),
                    lambda: hub.broadcast("t", "m"),
                    lambda: hub.disconnect("bob", revoke=True),
                    lambda: hub.online("bob"),
                ):
                    with pytest.raises(BrokerUnavailable) as raised:
                        call()
                    errors.append(str(raised.value))
                engine.start()
                hub.publish("news", 3)
            with Publisher(url, prefix="away", timeout=0.5) as other:
                engine.stop()
                with pytest.raises(BrokerUnavailable):
                    other.publish("news", 1)
            return errors

        for error in await asyncio.wait_for(asyncio.to_thread(job), 30):
            assert error.count(f"the engine at 127.0.0.1:{engine.port}") == 1, error
            assert "Connect call failed" in error or "connection" in error, error
            assert "See that it runs" in error


async def test_a_wrong_password_is_said(tmp_path: Path) -> None:
    with Engine(user="hubbub", password="right-password-of-the-test") as engine:
        url = engine.url.replace("right-password", "wrong-password")

        def job() -> None:
            with Publisher(url, timeout=0.5) as hub:
                hub.publish("news", 1)

        with pytest.raises(ConfigurationError, match=f"127.0.0.1:{engine.port}: the user or the password") as raised:
            await blocking(job)
        assert "password-of-the-test" not in str(raised.value)


# -- what is refused


def test_what_makes_no_sense_is_refused_before_anything_is_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HUBBUB_VALKEY_URL", raising=False)
    with pytest.raises(ConfigurationError, match=r"Publisher\('valkey://"):
        Publisher()
    with pytest.raises(ConfigurationError, match="scheme is unknown"):
        Publisher("http://localhost")
    monkeypatch.setenv("HUBBUB_VALKEY_URL", "valkey://127.0.0.1:1/0")
    hub = Publisher()
    for channel in ("", "not a name", "x" * 129):
        with pytest.raises(ClientError) as refused:
            hub.publish(channel, 1)
        assert refused.value.code == ErrorCode.INVALID_MESSAGE
    for channel, instead in (
        ("user:bob", r"notify\(\)"),
        ("room:general", "POST /api/rooms/{room_id}/messages.*API key"),
    ):
        with pytest.raises(ClientError, match=instead) as refused:
            hub.publish(channel, 1)
        assert refused.value.code == ErrorCode.FORBIDDEN
    with pytest.raises(TypeError):
        hub.publish("news", object())
    with pytest.raises(ValueError, match="idempotency key"):
        hub.publish("news", 1, idempotency_key="")
    with pytest.raises(ValueError, match="version"):
        hub.publish("news", 1, version=-1)
    with pytest.raises(ValueError, match="key"):
        hub.publish("news", 1, key="x" * 129)
    for user in ("", "x" * 129, "a\nb"):
        with pytest.raises(ValueError, match="user"):
            hub.notify(user, "t", "m")
        with pytest.raises(ValueError, match="user"):
            hub.disconnect(user)
        assert hub.online(user) is False
    with pytest.raises(ValueError, match="title"):
        hub.notify("bob", "", "m")
    with pytest.raises(ValueError, match="message"):
        hub.broadcast("t", "m" * 10_001)
    with pytest.raises(ValueError, match="at most 10000"):
        hub.broadcast("t", "m", exclude_users=map(str, range(10_001)))
    hub.close()


# -- other processes

SCRIPT = """
import json, sys
from hubbub import Publisher
with Publisher() as hub:
    position = hub.publish("news", {"from": "a script"})
    hub.notify("bob", "t", "m")
    print(json.dumps([position.offset, hub.online("bob"), hub.online("nobody")]))
    hub.disconnect("bob", revoke=True)
"""


@pytest.mark.slow
async def test_a_script_beside_two_nodes(valkey_url: str, valkey_prefix: str, tmp_path: Path) -> None:
    """Two servers and a script, each a process of its own."""
    async with (
        running_nodes(valkey_url, tmp_path, valkey_prefix=valkey_prefix) as (one, two),
        one.client("alice") as alice,
        one.client("bob") as b1,
        two.client("bob") as b2,
    ):
        await alice.ask("subscribe", channel="news")
        settings = {"valkey_url": valkey_url, "valkey_prefix": valkey_prefix}
        assert await in_a_process(SCRIPT, settings) == [1, True, False]
        assert (await alice.expect("publication"))["data"] == {"from": "a script"}
        for client in (b1, b2):
            await client.expect("notification")
            assert await client.closed() == 4401


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["unix", "acl", "sentinel", "cluster"])
async def test_over_all_kinds_of_engines(kind: str) -> None:
    made: dict[str, Callable[[], Any]] = {
        "unix": Engine,
        "acl": lambda: Engine(user="hubbub", password="a-password-of-the-test"),
        "sentinel": Sentinels,
        "cluster": Shards,
    }
    with made[kind]() as engine:
        settings = {"valkey_url": engine.unix_url if kind == "unix" else engine.url, "valkey_prefix": "kinds"}
        async with (
            server(settings) as one,
            server(settings) as two,
            one.client("alice") as alice,
            two.client("bob") as bob,
            one.client("bob") as b2,
        ):
            for number in range(8):
                await alice.ask("subscribe", channel=f"news:{number}")

            def job() -> list[Any]:
                with publisher_for(settings) as hub:
                    offsets = [hub.publish(f"news:{number}", number).offset for number in range(8)]
                    hub.notify("bob", "t", "m")
                    hub.broadcast("all", "m", exclude_users=["bob"])
                    online = [hub.online("bob"), hub.online("nobody")]
                    hub.disconnect("bob", revoke=True)
                    return [offsets, online]

            assert await blocking(job) == [[1] * 8, [True, False]]
            got = {(await alice.expect("publication"))["channel"] for _ in range(8)}
            assert len(got) == 8
            await alice.expect("broadcast_notification")
            for client in (bob, b2):
                await client.expect("notification")
                assert await client.closed() == 4401


def test_its_names_are_in_the_package_and_no_server_is_imported() -> None:
    assert hubbub.Publisher is Publisher
    code = "import sys, hubbub; hubbub.Publisher; print([m for m in ('uvicorn', 'sqlalchemy') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout == b"[]\n"


def test_a_thread_that_has_ended_takes_nothing_more(valkey_settings: dict[str, str]) -> None:
    thread = _Thread(AsyncPublisher(valkey_settings["valkey_url"]))
    thread.end()
    assert thread.submit(lambda hub: hub.publish("news", 1)) is None
    thread.end()
