"""What users' own tests are given: clients with deadlines, the app's lifespan, a clock turned by hand, a broker that fails."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import anyio
import httpx2
import msgspec
import pydantic
import pytest
from fastapi import FastAPI, WebSocket
from fastapi.testclient import TestClient
from starlette.applications import Starlette
from starlette.routing import Mount

from hubbub import Hubbub, messages
from hubbub.errors import BrokerUnavailable
from hubbub.testing import (
    Failed,
    FaultyBroker,
    HandClock,
    HubClient,
    Refused,
    Rejected,
    SyncClient,
    hand_clock,
    hub_client,
    running,
    sync_client,
)
from hubbub.testing.lifespan import _homes, loop_of
from tests.support import TLS, settings_for
from tests.support import running as served

ALL: Any = {"subscribe": ["*"], "publish": ["*"]}


def made(lifespan: Any = None, **options: Any) -> tuple[FastAPI, Hubbub]:
    app = FastAPI(lifespan=lifespan)
    return app, Hubbub(app, settings=settings_for(), **options)


class News(msgspec.Struct):
    channel: str
    data: int


class NewsModel(pydantic.BaseModel):
    channel: str
    data: int


@dataclass
class NewsData:
    channel: str
    data: int


# -- the verbs -------------------------------------------------------------------------------------------------------


@pytest.mark.anyio
@pytest.mark.parametrize("msgpack", [False, True])
async def test_two_people_talk(msgpack: bool) -> None:
    app, _ = made()
    async with hub_client(app, "alice", room="general", msgpack=msgpack) as alice, hub_client(app, user="bob") as bob:
        assert (alice.user_id, bob.user_id) == ("alice", "bob")
        assert alice.session != bob.session
        assert alice.subprotocol == ("hubbub.msgpack" if msgpack else None)
        assert (await bob.join("general"))["count"] == 2
        await alice.expect("user_joined", user_id="bob")
        await bob.send("chat_message", message="hi")
        assert (await alice.expect("message"))["data"]["message"] == "hi"
        await alice.nothing()
        assert [m["type"] for m in await bob.drained()] == ["user_joined", "message", "ack"]
        await bob.nothing()
        assert [m["type"] for m in alice.seen][:2] == ["auth_success", "room_joined"]


@pytest.mark.anyio
async def test_what_can_be_sent() -> None:
    app, hub = made()
    async with hub_client(app, "alice", **ALL) as alice:
        first = await alice.ask(messages.Subscribe(channel="news"))
        await alice.send({"type": "publish", "channel": "news"}, data=1)
        await alice.send(messages.Publish(channel="news", data=msgspec.Raw(b"2")))
        await alice.send("publish", channel="news", data=NewsData("a", 3))
        await alice.send("publish", channel="news", data=NewsModel(channel="a", data=4))
        await alice.send_raw('{"type":"publish","channel":"news","data":5}')
        plain = [(await alice.expect("publication"))["data"] for _ in range(5)]
        assert plain == [1, 2, {"channel": "a", "data": 3}, {"channel": "a", "data": 4}, 5]
        position = await hub.publish("news", 6)
        assert (await alice.subscribe("news", since=position))["recovered"] is True
        assert first["offset"] == 0
        with pytest.raises(TypeError, match="cannot send a object"):
            await alice.send("publish", channel="news", data=object())


@pytest.mark.anyio
async def test_what_can_be_made_of_a_message() -> None:
    app, hub = made()
    async with hub_client(app, "alice", **ALL) as alice:
        await alice.subscribe("news")
        for number in range(5):
            await hub.publish("news", number)
        struct = await alice.expect("publication", into=News)
        model = await alice.expect("publication", into=NewsModel)
        data = await alice.expect("publication", into=NewsData)
        assert (struct.data, model.data, data.data) == (0, 1, 2)
        with pytest.raises(Failed, match="this is no AuthSuccess"):
            await alice.expect("publication", into=messages.AuthSuccess)
        assert (await alice.receive())["data"] == 4


@pytest.mark.anyio
async def test_an_answer_leaves_what_came_before_it_to_be_read() -> None:
    app, _ = made()
    async with hub_client(app, "alice", **ALL) as alice:
        await alice.subscribe("news")
        assert (await alice.ask("publish", channel="news", data=1))["offset"] == 1
        assert (await alice.receive())["data"] == 1
        await alice.nothing()


@pytest.mark.anyio
async def test_refusals() -> None:
    app, _ = made()
    async with hub_client(app, "alice") as alice:
        with pytest.raises(Refused, match="forbidden") as refused:
            await alice.subscribe("news")
        assert refused.value.code == "forbidden"
        assert refused.value.message.startswith("the token does not allow")
        assert refused.value.retry_after is None
        assert await alice.refused("join_room", room_id="nowhere") == "not_found"
        with pytest.raises(AssertionError, match="'ping' was not refused"):
            await alice.refused("ping")
    with pytest.raises(Refused) as wrong:
        async with hub_client(app, token="nonsense"):
            pass
    assert wrong.value.code == "authentication_failed"
    with pytest.raises(Rejected) as rejected:
        async with hub_client(app, headers={"Origin": "https://elsewhere.example"}):
            pass
    assert (rejected.value.status, "origin" in rejected.value.body) == (403, True)
    with pytest.raises(TypeError, match="name a user beside subscribe="):
        async with hub_client(app, subscribe=["*"]):
            pass


@pytest.mark.anyio
async def test_a_failure_shows_what_was_expected_what_came_and_how_it_ended() -> None:
    app, hub = made()
    async with hub_client(app, "alice", timeout=0.05, **ALL) as alice:
        await alice.subscribe("news")
        for number in range(30):
            await hub.publish("news", number)
        await alice.expect("publication", data=29)
        with pytest.raises(AssertionError) as late:
            await alice.expect("publication", data=3)
        text = str(late.value)
        assert "'publication' with data=3 did not come within 0.05 s" in text
        assert "one came earlier, and was taken or passed over: {'type': 'publication', 'channel': 'news'" in text
        assert "(without the first 12)" in text
        assert "the connection is open" in text
        await hub.publish("news", 30)
        with pytest.raises(AssertionError, match="nothing should have come, but 1 did"):
            await alice.nothing()
    async with hub_client(app) as nobody:
        assert await nobody.refused("ping") == "authentication_required"
        with pytest.raises(
            AssertionError, match=r"'message' can come no more\n(?s:.*)closed with 4401 \(authentication"
        ):
            await nobody.expect("message")
        assert (await nobody.closed(), nobody.close_reason) == (4401, "authentication_required")
        with pytest.raises(AssertionError, match="signed in"):
            await nobody.nothing()
    async with hub_client(app, "alice", timeout=0.05) as alice:
        with pytest.raises(AssertionError, match="the end of the connection did not come within"):
            await alice.closed()


@pytest.mark.anyio
async def test_it_goes_and_comes_back_as_the_same_session() -> None:
    app, hub = made(clock=HandClock())
    async with hub_client(app, "alice", **ALL) as alice:
        old = await alice.subscribe("news")
        session = alice.session
        await alice.close(1006)
        assert await alice.closed() == 1006
        await hub.publish("news", 1)
        await alice.reconnect()
        assert alice.session == session
        back = await alice.subscribe("news", since={"epoch": old["epoch"], "offset": old["offset"]})
        assert [m["data"] for m in back["messages"]] == [1]
        async with hub_client(app, "alice", session=session) as newer:
            assert newer.session == session
            assert await alice.closed() == 4409
        await newer.send("ping")  # after the end nothing happens
    assert not hub.hub.sessions


# -- the app ---------------------------------------------------------------------------------------------------------


@pytest.mark.anyio
async def test_the_lifespan_is_shared_and_its_state_is_there() -> None:
    told: list[str] = []

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[dict[str, str]]:
        told.append("up")
        yield {"mine": "yes"}
        told.append("down")

    app, hub = made(lifespan)

    @app.websocket("/mine")
    async def mine(websocket: WebSocket) -> None:
        await websocket.accept()
        await websocket.send_text(websocket.state.mine)
        await websocket.send_bytes(await websocket.receive_bytes())

    for _ in range(2):
        async with running(app) as same:
            assert same is hub
            first = hub_client(app, "alice")
            alice = await first.__aenter__()
            async with hub_client(app, path="/mine") as own:
                assert await own.receive_raw() == "yes"
                await own.send_raw(b"\xc1")
                assert await own.receive_raw() == b"\xc1"
                assert await own.closed() == 1000
        await alice.nothing()
        assert told == ["up"]
        await first.__aexit__(None, None, None)
        assert told == ["up", "down"]
        told.clear()
    assert not _homes
    assert loop_of(hub) is None


@pytest.mark.anyio
async def test_a_lifespan_that_fails_shows_its_own_exception() -> None:
    @asynccontextmanager
    async def bad_start(app: FastAPI) -> AsyncIterator[None]:
        raise LookupError("no database")
        yield

    @asynccontextmanager
    async def bad_end(app: FastAPI) -> AsyncIterator[None]:
        yield
        raise LookupError("cannot let go")

    with pytest.raises(LookupError, match="no database"):
        async with hub_client(made(bad_start)[0], "alice"):
            pass
    with pytest.raises(LookupError, match="cannot let go"):
        async with hub_client(made(bad_end)[0], "alice"):
            pass
    assert not _homes


@pytest.mark.anyio
async def test_an_app_that_runs_already_is_used_as_it_is() -> None:
    app, hub = made()
    async with app.router.lifespan_context(app):
        async with hub_client(app, "alice") as alice:
            await alice.nothing()
        assert loop_of(hub) is asyncio.get_running_loop()


@pytest.mark.anyio
async def test_apps_in_apps_and_wrappers_and_prefixes() -> None:
    inner, hub = made(prefix="/live")
    async with hub_client(inner, "alice") as alice, hub_client(inner, "bob", room="general") as bob:
        await alice.nothing()
        await bob.expect("room_joined")
    outer = Starlette(routes=[Mount("/rt", inner)])
    with pytest.raises(LookupError, match="hub="):
        async with hub_client(outer, "alice"):
            pass
    async with hub_client(outer, "alice", hub=hub, path="/rt/live/ws") as alice:
        await alice.nothing()
    assert loop_of(hub) is None, "a mounted app has no lifespan: it was stopped all the same"

    class Wrapper:
        def __init__(self, app: Any) -> None:
            self.app = app

        async def __call__(self, *args: Any) -> None:
            await self.app(*args)

    async with hub_client(Wrapper(inner), "alice") as alice:
        await alice.nothing()


async def bare(scope: Any, receive: Callable[[], Any], send: Callable[[Any], Any]) -> None:
    assert scope["type"] == "websocket"
    await receive()
    if scope["path"] == "/nothing":
        return
    if scope["path"] == "/hang":
        await asyncio.get_running_loop().create_future()
    if scope["path"] == "/bad":
        await send({"type": "websocket.send", "text": "too soon"})
    if scope["path"] == "/no":
        await send({"type": "websocket.close", "reason": "go away"})
        return
    await send({"type": "websocket.accept"})
    if scope["path"] == "/fails":
        await send({"type": "websocket.send", "text": "not json"})
        raise KeyError("boo")
    if scope["path"] == "/deaf":
        await asyncio.get_running_loop().create_future()
    event = await receive()
    assert (event["type"], event["code"], event["reason"]) == ("websocket.disconnect", 4000, "bye")
    assert (await receive())["code"] == 4000
    with pytest.raises(OSError, match="gone"):
        await send({"type": "websocket.send", "text": "late"})


@pytest.mark.anyio
async def test_an_app_without_a_lifespan_and_with_faults() -> None:
    for path, error in (("/nothing", Failed), ("/hang", Failed), ("/bad", RuntimeError), ("/no", Rejected)):
        with pytest.raises(error):
            async with hub_client(bare, path=path, timeout=0.05):
                pass
    async with hub_client(bare, path="/fails") as client:
        assert await client.receive_raw() == "not json"
        assert client.seen == ["not json"]
        with pytest.raises(AssertionError, match="the app raised KeyError") as failed:
            await client.receive()
        assert isinstance(failed.value.__cause__, KeyError)
        assert await client.closed() == 1011
    with pytest.raises(KeyError, match="boo"):
        async with hub_client(bare, path="/fails") as client:
            await client.receive_raw()
    async with hub_client(bare, path="/ok") as client:
        await client.close(4000, "bye")
        assert await client.closed() == 4000
    async with hub_client(bare, path="/deaf"):
        pass  # it is cancelled


def test_a_loop_per_test_and_one_app_for_all() -> None:
    app, hub = made()

    async def one() -> None:
        async with hub_client(app, "alice", **ALL) as alice:
            await alice.subscribe("news")
            await hub.publish("news", 1)
            await alice.expect("publication", offset=1)

    for _ in range(2):
        asyncio.run(one())


def test_fixtures_may_begin_and_end_in_different_tasks() -> None:
    """pytest-asyncio and anyio's plugin do so."""
    app, _ = made()
    opened = hub_client(app, "alice")

    async def begin() -> HubClient:
        return await opened.__aenter__()

    async def end() -> None:
        await opened.__aexit__(None, None, None)

    async def use(client: HubClient) -> None:
        await client.nothing()

    with asyncio.Runner() as runner:
        client = runner.run(begin())
        runner.run(use(client))
        runner.run(end())


def test_no_trio() -> None:
    app, _ = made()

    async def use() -> None:
        async with hub_client(app, "alice"):
            pass

    with pytest.raises(RuntimeError, match="does not run on trio"):
        use().send(None)  # as trio does it: no loop of asyncio runs


@pytest.mark.anyio
async def test_a_real_server() -> None:
    async with served(settings_for()) as server:
        for url in (server.ws, server.url, server.ws + "/ws"):
            async with hub_client(url, "alice", hub=server.hubbub, room="general", **ALL) as alice:
                await alice.expect("room_joined")
                await alice.ask("chat_message", message="hi")
                await alice.drained()
                await alice.reconnect()
                await alice.close()
                assert await alice.closed() == 1000
        async with hub_client(server.ws + "/ws?format=json") as nobody:
            await nobody.send("ping")
            assert await nobody.closed() == 4401
            await nobody.send("ping")
        with pytest.raises(Rejected) as rejected:
            async with hub_client(server.ws, path="/ws", headers=[("Origin", "https://elsewhere.example")]):
                pass
        assert rejected.value.status == 403
        with pytest.raises(LookupError, match="hub="):
            async with hub_client(server.ws, "alice"):
                pass


# -- in tests that are no coroutines ---------------------------------------------------------------------------------


def test_the_same_beside_the_test_client() -> None:
    app, hub = made()

    @app.post("/news/{number}")
    async def news(number: int) -> int:
        return (await hub.publish("news", number)).offset

    threads = threading.active_count()
    with TestClient(app) as test_client:
        during = threading.active_count()
        with sync_client(test_client, "alice", room="general", timeout=0.1, **ALL) as alice:
            assert threading.active_count() == during
            alice.expect("room_joined")
            alice.subscribe("news")
            assert test_client.post("/news/7").json() == 1
            assert alice.expect("publication", into=News).data == 7
            assert alice.refused("join_room", room_id="nowhere") == "not_found"
            alice.ask("chat_message", message="hi")
            assert alice.receive_raw()
            assert alice.drained() == []
            alice.nothing()
            with pytest.raises(AssertionError, match="'message' did not come within"):
                alice.expect("message")
            session = alice.session
            alice.reconnect()
            assert (alice.session, alice.user_id, alice.subprotocol) == (session, "alice", None)
            alice.join("general")
            alice.send_raw("{")
            assert alice.expect("error")["code"] == "invalid_json"
            assert alice.seen[-1]["code"] == "invalid_json"
            alice.close(1000, "done")
            assert (alice.closed(), alice.close_reason) == (1000, "done")
        test_client.cookies.set("hubbub_token", hub.token("carol"))
        with sync_client(test_client) as carol:
            assert carol.expect("auth_success")["user_id"] == "carol"
            assert carol.user_id == "carol"
        with pytest.raises(TypeError, match="name a user"), sync_client(test_client, admin=True):
            pass
    assert threads_left() == threads
    with pytest.raises(RuntimeError, match="context manager"), sync_client(TestClient(app), "alice"):
        pass


def threads_left() -> int:
    """How many threads there are once those of the store, which were told to end, have."""
    for thread in threading.enumerate():
        if thread.name.startswith("hubbub-"):
            thread.join(5.0)
    return threading.active_count()


def test_a_failing_test_still_lets_go_of_everything() -> None:
    app, hub = made()
    threads = threading.active_count()
    with pytest.raises(ZeroDivisionError), TestClient(app) as test_client, sync_client(test_client, "alice"):
        raise ZeroDivisionError
    assert threads_left() == threads
    assert not hub.hub.sessions


def test_an_app_of_the_test_client_is_not_for_the_other_client() -> None:
    app, _ = made()
    with TestClient(app):

        async def use() -> None:
            async with hub_client(app, "alice"):
                pass

        with pytest.raises(RuntimeError, match="use sync_client"):
            asyncio.run(use())


def test_a_loop_that_blocks_is_told_of(monkeypatch: pytest.MonkeyPatch) -> None:
    from hubbub.testing import sync

    monkeypatch.setattr(sync, "STALLED", 0.05)
    app, _ = made()
    go = threading.Event()
    with TestClient(app) as test_client, sync_client(test_client, "alice", timeout=0.05) as alice:
        assert test_client.portal is not None
        test_client.portal.start_task_soon(go.wait)
        try:
            with pytest.raises(AssertionError, match="does not turn"):
                alice.receive()
        finally:
            go.set()


# -- the clock -------------------------------------------------------------------------------------------------------


@pytest.mark.anyio
async def test_a_clock_that_is_turned_by_hand() -> None:
    clock = HandClock()
    app, hub = made(clock=clock)
    clock.watch(hub.hub.sweep)
    async with hub_client(app) as nobody:
        clock.advance(9)
        with pytest.raises(ValueError, match="backwards"):
            clock.advance(-1)
        assert len(hub.hub.sessions) == 1
        clock.advance(2)
        assert await nobody.closed() == 4401
    assert (clock.time(), clock.monotonic()) == (1_800_000_011.0, 1011.0)
    called: list[int] = []
    clock.watch(lambda: called.append(1))
    del app, hub
    clock.advance(0)
    assert called == [1]


@pytest.mark.anyio
async def test_a_hub_s_own_clock_is_lent_and_given_back() -> None:
    app, hub = made()
    clock: Any = hub.clock
    time, monotonic = clock.time, clock.monotonic
    with hand_clock(hub) as hand:
        assert abs(hand.time() - time()) < 60
        async with hub_client(app, "alice", ttl=100) as alice:
            hand.advance(75)
            await alice.expect("token_expiring")
            hand.advance(30)
            assert await alice.closed() == 4401
    assert clock.time is time
    assert clock.monotonic() >= monotonic() + 100, "it does not go back: whoever is left would wait for so long"
    with hand_clock(hub) as hand:
        pass
    async with hub_client(app, "alice") as alice:
        for _ in range(30):
            await alice.ask("ping")
    with pytest.raises(TypeError, match="HandClock already"), hand_clock(made(clock=HandClock())[1]):
        pass
    _, fresh = made()
    with hand_clock(fresh):
        pass
    assert fresh.clock.monotonic is monotonic


def test_the_clock_beside_the_test_client() -> None:
    clock = HandClock()
    app, hub = made(clock=clock)
    where: list[int] = []

    class Watcher:
        def sweep(self) -> None:
            where.append(threading.get_ident())
            hub.hub.sweep()

        @property
        def loop(self) -> Any:
            return loop_of(hub)

    watcher = Watcher()
    clock.watch(watcher.sweep)
    with TestClient(app) as test_client, sync_client(test_client) as nobody:
        clock.advance(11)
        assert nobody.closed() == 4401
    assert where
    assert threading.get_ident() not in where
    clock.watch(lambda: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        clock.advance(1)


# -- the broker ------------------------------------------------------------------------------------------------------


class Taker:
    """As much of a hub as an inlet is."""

    def __init__(self) -> None:
        self.got: list[int] = []
        self.told: list[str | None] = []

    def deliver(self, channel: str, publication: Any) -> None:
        self.got.append(publication.offset)

    def lost(self, channel: str | None) -> None:
        self.told.append(channel)

    def renewed(self, channel: str, position: Any) -> None:
        raise AssertionError("it has one epoch")


@pytest.mark.anyio
async def test_faults_one_by_one() -> None:
    from hubbub import ChannelOptions
    from hubbub.brokers.memory import MemoryBroker
    from hubbub.commands import publication_of

    taker, options = Taker(), ChannelOptions()
    broker = FaultyBroker(MemoryBroker(settings_for(), HandClock()))
    await broker.start(taker)

    async def publish(count: int, channel: str = "c") -> list[int]:
        taker.got.clear()
        for _ in range(count):
            await broker.publish(channel, publication_of(channel, b"1", options), options)
        return list(taker.got)

    assert await publish(2) == [1, 2]
    broker.drop(2)
    assert await publish(3) == [5]
    broker.duplicate()
    assert await publish(2) == [6, 6, 7]
    broker.delay(2)
    assert await publish(3) == [10]
    assert broker.release() == 2
    assert taker.got == [10, 8, 9]
    broker.reorder(3)
    assert await publish(2) == []
    assert await publish(2) == [13, 12, 11, 14]
    broker.reorder(3)
    assert await publish(1) == []
    assert broker.release() == 1
    broker.drop(1, channel="other")
    assert await publish(1) == [16]
    assert await publish(2, "other") == [2]
    broker.disconnect()
    assert await publish(2) == []
    broker.lost("c")
    assert taker.told == []
    broker.resubscribe()
    assert taker.told == [None]
    assert await publish(1) == [19]
    broker.lost("c")
    broker.delay(1)
    await publish(1)
    broker.forget("c")
    assert taker.told == [None, "c", "c"]
    assert broker.release() == 0, "what was held was of the old epoch"
    assert await publish(1) == [1]
    broker.unavailable = True
    for call in (publish(1), broker.subscribe("c"), broker.recover("c", None, 1, options)):
        with pytest.raises(BrokerUnavailable):
            await call
    with pytest.raises(BrokerUnavailable):
        await broker.history("c", None, None, 1, options)
    broker.drop(9)
    broker.disconnect()
    broker.heal()
    assert await publish(1) == [2]
    assert (await broker.history("c", None, None, 9, options))[0].offset == 2
    assert broker.bytes > 0
    await broker.unsubscribe("c")
    broker.sweep(0.0)
    with pytest.raises(ValueError, match="at least one"):
        broker.drop(0)
    nested = FaultyBroker(broker)
    await nested.start(taker)
    with pytest.raises(TypeError, match="cannot be made to forget"):
        nested.forget("c")
    await broker.stop()
    with pytest.raises(TypeError, match="inner broker"):
        await FaultyBroker().start(taker)


@pytest.mark.anyio
async def test_the_same_client_in_a_task_group_of_anyio() -> None:
    app, _ = made()
    names = [f"user{number}" for number in range(5)]
    met: list[str] = []

    async def visit(name: str) -> None:
        async with hub_client(app, name, room="general") as client:
            await client.expect("room_joined")
            met.append(client.user_id)

    async with anyio.create_task_group() as group:
        for name in names:
            group.start_soon(visit, name)
    assert sorted(met) == names
    assert not _homes


def test_the_public_names_are_there() -> None:
    import hubbub.testing as kit

    assert kit.__all__ == sorted(kit.__all__)
    assert all(hasattr(kit, name) for name in kit.__all__)
    verbs = {name for name in vars(HubClient) if not name.startswith("_")}
    assert verbs - {"timeout"} <= {name for name in dir(SyncClient) if not name.startswith("_")}


@pytest.mark.anyio
async def test_an_engine_that_is_away_is_unavailable_to_clients_and_callers() -> None:
    broker = FaultyBroker()
    app, hub = made(broker=broker)

    @app.post("/publish")
    async def publish() -> int:
        return (await hub.publish("news", 1)).offset

    async with hub_client(app, user="alice", subscribe=("*",), publish=("*",)) as alice:
        broker.unavailable = True
        with pytest.raises(Refused) as refused:
            await alice.ask("publish", channel="news", data=1)
        assert (refused.value.code, refused.value.retry_after) == ("unavailable", 1.0)
        async with httpx2.AsyncClient(transport=httpx2.ASGITransport(app), base_url="http://test", verify=TLS) as http:
            answer = await http.post("/publish")
            assert (answer.status_code, answer.json()["error"]["code"]) == (503, "unavailable")
            broker.unavailable = False
            assert (await http.post("/publish")).json() == 1


@pytest.mark.anyio
async def test_the_first_notification_that_is_lost_after_a_subscribe_is_had_from_history() -> None:
    broker = FaultyBroker()
    app, hub = made(broker=broker)
    async with hub_client(app, user="alice") as alice:
        await alice.subscribe("user:alice")
        broker.drop(1)
        await hub.notify("alice", "lost", "m")
        await hub.notify("alice", "found", "m")
        titles = [(await alice.expect("notification"))["data"]["title"] for _ in range(2)]
        assert titles == ["lost", "found"]
