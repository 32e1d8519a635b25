"""``hub.send``: a message of the app's own to all devices of a user, wherever they are; and what keeps it from them."""

from __future__ import annotations

import asyncio
import logging
from contextlib import AsyncExitStack
from typing import Any

import msgspec
import pytest
from fastapi import FastAPI
from pydantic import BaseModel

from hubbub import Hubbub, Session
from hubbub.testing import hub_client
from tests.support import Running, running, settings_for, until
from tests.test_behaviour_nodes import cluster

pytestmark = pytest.mark.anyio

WHISPER = {"type": "whisper", "from": "alice", "text": "psst"}


class Tagged(msgspec.Struct, tag="tagged"):
    n: int


class Model(BaseModel):
    n: int


async def test_all_devices_on_all_nodes_get_it_once_and_nobody_else() -> None:
    async with cluster(3) as nodes:
        one, two, three = nodes.nodes
        async with (
            one.client("bob") as b1,
            one.client("bob", path="/ws?format=msgpack") as packed,
            two.client("bob") as b2,
            two.client("carol") as carol,
        ):
            for node in (one, three):  # where he is, and where he is not
                await node.hubbub.send("bob", WHISPER)
                for client in (b1, packed, b2):
                    assert await client.receive() == WHISPER
                    await client.nothing_more()
            await one.hubbub.send("nobody", WHISPER)
            await one.hubbub.send("no user's id\n", WHISPER)
            await carol.nothing_more()


async def test_it_takes_what_a_session_takes() -> None:
    async with cluster() as nodes:
        one, two = nodes.nodes
        async with two.client("bob") as bob:
            for message, kind, expected in (
                (Tagged(1), None, {"type": "tagged", "n": 1}),
                (Model(n=2), "model", {"type": "model", "n": 2}),
                ({"n": 3}, "three", {"type": "three", "n": 3}),
                ([4], "list", {"type": "list", "data": [4]}),
                ({}, "empty", {"type": "empty"}),
            ):
                await one.hubbub.send("bob", message, type=kind)
                assert await bob.receive() == expected


async def test_what_some_device_could_not_be_given_is_given_to_none() -> None:
    deep: Any = 1
    for _ in range(300):
        deep = [deep]
    async with cluster() as nodes:
        one, two = nodes.nodes
        async with one.client("bob") as b1, two.client("bob", path="/ws?format=msgpack") as b2:
            for message, kind, reason in (
                ({"n": 1}, None, "needs a type"),
                ({"type": "x", "n": object()}, None, "cannot be sent"),
                ({"type": "x", "n": 2**70}, None, "every client"),
                (deep, "x", "nested too deeply"),
            ):
                with pytest.raises(TypeError, match=reason):
                    await one.hubbub.send("bob", message, type=kind)
            await b1.nothing_more()
            await b2.nothing_more()


async def test_it_is_not_kept_and_has_no_offset() -> None:
    async with cluster() as nodes:
        one, two = nodes.nodes
        async with two.client("bob") as bob:
            before = await bob.ask("subscribe", channel="user:bob")
        await until(lambda: not two.hub.sessions_of("bob"))
        await one.hubbub.send("bob", WHISPER)
        async with two.client("bob") as bob:
            since = {"epoch": before["epoch"], "offset": before["offset"]}
            after = await bob.ask("subscribe", channel="user:bob", since=since)
            assert (after["offset"], after["messages"], after["recovered"]) == (before["offset"], [], True)
            await one.hubbub.notify("bob", "t", "m")
            await one.hubbub.send("bob", WHISPER)
            assert (await bob.receive())["offset"] == before["offset"] + 1
            assert await bob.receive() == WHISPER


async def test_while_the_engine_is_away_this_nodes_devices_get_it(caplog: pytest.LogCaptureFixture) -> None:
    def warnings() -> int:
        return sum("may not have reached other nodes" in record.getMessage() for record in caplog.records)

    async with cluster() as nodes:
        one, two = nodes.nodes
        async with one.client("bob") as here, two.client("bob") as there:
            with caplog.at_level(logging.WARNING, "hubbub"):
                for outage in (1, 2):
                    nodes.engine.cut(one.hubbub)
                    for number in range(3):
                        await one.hubbub.send("bob", {"n": number}, type="n")
                        assert (await here.receive())["n"] == number
                    await here.nothing_more()
                    await there.nothing_more()
                    assert warnings() == outage, "said once, and not for each"
                    nodes.engine.heal(one.hubbub)
                    await until(lambda: one.hub.broker.healthy)
                    await one.hubbub.send("bob", WHISPER)
                    assert await here.receive() == WHISPER
                    assert await there.receive() == WHISPER
            assert one.hub.cluster.counts["untold"] >= 6


async def test_what_the_engine_did_and_did_not_answer_comes_once() -> None:
    async with cluster() as nodes:
        one, two = nodes.nodes
        async with one.client("bob") as here, two.client("bob") as there:
            nodes.engine.leave_unanswered()
            await one.hubbub.send("bob", WHISPER)
            for client in (here, there):
                assert await client.receive() == WHISPER
                await client.nothing_more()


async def test_it_comes_in_order_with_what_is_sent_to_the_session() -> None:
    app = FastAPI()
    hub = Hubbub(app, settings=settings_for())

    @hub.on("count")
    async def count(session: Session) -> None:
        for number in range(0, 10, 2):
            await session.send({"n": number}, type="n")
            await hub.send(session.user_id, {"n": number + 1}, type="n")

    async with running(app=app) as server, server.client("bob") as bob:
        await bob.send("count", ref="1")
        assert [(await bob.receive())["n"] for _ in range(10)] == list(range(10))


async def test_a_loop_that_sends_lets_others_in() -> None:
    async with running(settings_for()) as server, server.client("bob") as bob:
        turns = server.hub.turns
        text = "x" * 10_000
        for _ in range(1000):  # 10 MB: more than may wait for one client
            await server.hubbub.send("bob", {"text": text}, type="x")
        assert server.hub.turns - turns > 50
        for _ in range(1000):
            assert len((await bob.receive())["text"]) == 10_000


async def test_from_threads_and_other_loops() -> None:
    async with running(settings_for()) as server, server.client("bob") as bob:
        hub = server.hubbub
        await asyncio.to_thread(hub.sync.send, "bob", {"n": 1}, type="n")
        assert await bob.receive() == {"type": "n", "n": 1}
        await asyncio.to_thread(lambda: asyncio.run(hub.send("bob", Tagged(2))))
        assert await bob.receive() == {"type": "tagged", "n": 2}
        with pytest.raises(TypeError, match="needs a type"):
            await asyncio.to_thread(hub.sync.send, "bob", {})


async def test_the_testing_kits_clients_get_it() -> None:
    app = FastAPI()
    hub = Hubbub(app, settings=settings_for())
    async with hub_client(app, user="bob") as bob, hub_client(app, user="bob") as tablet:
        await hub.send("bob", WHISPER)
        assert await bob.expect("whisper") == await tablet.expect("whisper") == WHISPER


async def test_over_valkey_in_a_connected_hook_too(valkey_settings: dict[str, str]) -> None:
    """A device hears what is sent in the moment in which it signs in: it needs not wait for the engine."""

    def app() -> FastAPI:
        made = FastAPI()
        hub = Hubbub(made, settings=settings_for(**valkey_settings))

        @hub.connected
        async def connected(session: Session) -> None:
            await hub.send(session.user_id, {"device": session.id}, type="welcome")

        return made

    async with AsyncExitStack() as stack:
        nodes: list[Running] = [await stack.enter_async_context(running(app=app())) for _ in range(2)]
        await until(lambda: all(len(node.hub.cluster.others) == 1 for node in nodes))
        first = await stack.enter_async_context(nodes[0].client("bob"))
        assert (await first.receive())["device"] == first.session
        await first.ask("subscribe", channel="user:bob")  # that waits until the node hears the others
        await first.nothing_more()
        second = await stack.enter_async_context(nodes[1].client("bob"))
        for client in (first, second):
            assert (await client.receive())["device"] == second.session
            await client.nothing_more()
