"""Channels as code over a real socket: authorizers, initial state, publications looked at, filters, hooks, requests."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any
from uuid import UUID

import msgspec
import pytest
from fastapi import Depends, FastAPI, HTTPException
from pydantic import BaseModel

from hubbub import ClientError, Hubbub, HubRouter, Identity, RequestFailed, Session, SessionClosed, Topic
from tests.lanes import close_code
from tests.support import BOTH_LANES, Client, HandClock, Running, running, settings_for, until

pytestmark = BOTH_LANES


class Price(msgspec.Struct):
    amount: int
    secret: bool = False


@asynccontextmanager
async def app_on(lane: str, declare: Callable[[Hubbub], None], **settings: Any) -> AsyncIterator[Running]:
    app = FastAPI()
    clock = HandClock()
    hub = Hubbub(app, settings=settings_for(**settings), clock=clock)
    declare(hub)
    async with running(app=app, clock=clock, lane=lane) as server:
        yield server


def nothing(**grants: Any) -> dict[str, Any]:
    """A token that opens nothing by itself."""
    return {"grants": {"subscribe": (), "publish": (), **grants}}


# -- who may subscribe ------------------------------------------------------------------------------------------------


async def test_the_authorizer_decides_instead_of_the_token(lane: str) -> None:
    asked: list[tuple[str, int]] = []

    async def owners() -> dict[int, str]:
        return {7: "alice"}

    def declare(hub: Hubbub) -> None:
        @hub.channel("orders:{order_id}")
        async def orders(identity: Identity, order_id: int, owners: dict[int, str] = Depends(owners)) -> bool:
            asked.append((identity.user_id, order_id))
            return owners.get(order_id) == identity.user_id

    async with (
        app_on(lane, declare) as server,
        server.client("alice", **nothing()) as alice,
        server.client("bob", grants={"subscribe": ("*",)}) as bob,
        server.client("root", **nothing(admin=True)) as root,
    ):
        assert (await alice.ask("subscribe", channel="orders:7"))["type"] == "subscribed"
        assert await alice.refused("subscribe", channel="orders:8") == "forbidden"
        assert await bob.refused("subscribe", channel="orders:7") == "forbidden"
        assert await bob.refused("history", channel="orders:7") == "forbidden"
        assert await bob.refused("presence", channel="orders:7") == "forbidden"
        assert await alice.refused("subscribe", channel="orders:seven") == "not_found"
        assert (await root.ask("subscribe", channel="orders:99"))["type"] == "subscribed"
        before = len(asked)
        assert (await alice.ask("history", channel="orders:7"))["messages"] == []
        assert (await alice.ask("presence", channel="orders:7"))["count"] == 1
        assert len(asked) == before  # who is in was asked already


async def test_an_authorizer_may_refuse_with_a_reason(lane: str) -> None:
    def declare(hub: Hubbub) -> None:
        @hub.channel("orders:{order_id}")
        def orders(order_id: UUID) -> bool:
            raise HTTPException(404, "no such order")

    async with app_on(lane, declare) as server, server.client("alice") as alice:
        answer = await alice.ask("subscribe", channel=f"orders:{UUID(int=1)}")
        assert (answer["code"], answer["message"]) == ("not_found", "no such order")


async def test_an_authorizer_that_fails_lets_nobody_in(lane: str) -> None:
    def declare(hub: Hubbub) -> None:
        @hub.channel("orders:{order_id}")
        async def orders(order_id: int) -> bool:
            raise RuntimeError("the database is away")

    async with app_on(lane, declare) as server, server.client("alice") as alice:
        assert await alice.refused("subscribe", channel="orders:1") == "internal"
        await server.hubbub.publish("orders:1", 1)
        await alice.nothing_more()


async def test_a_topic_without_authorizer_goes_by_its_options(lane: str) -> None:
    def declare(hub: Hubbub) -> None:
        hub.channel("ticks:{symbol}", subscribe="anyone", history=0, presence=False)
        hub.channel("closed:{name:path}")

    async with app_on(lane, declare) as server, server.client("alice", **nothing(subscribe=("closed:a:*",))) as alice:
        assert (await alice.ask("subscribe", channel="ticks:X"))["epoch"] == ""
        assert await alice.refused("presence", channel="ticks:X") == "forbidden"
        assert (await alice.ask("subscribe", channel="closed:a:b"))["type"] == "subscribed"
        assert await alice.refused("subscribe", channel="closed:b:b") == "forbidden"


# -- the initial state ------------------------------------------------------------------------------------------------


async def test_nothing_falls_between_the_state_and_the_publications(lane: str) -> None:
    """The state is loaded while others publish: what the state may lack comes in ``messages``."""
    total = 0
    loading, go = asyncio.Event(), asyncio.Event()

    def declare(hub: Hubbub) -> None:
        @hub.channel("counter:{name}", subscribe="anyone", publish="anyone", history=10)
        class Counter:
            async def on_subscribe(self, session: Session, name: str) -> dict[str, Any]:
                seen = total
                loading.set()
                await go.wait()
                return {"name": name, "total": seen}

    async with app_on(lane, declare) as server, server.client("alice") as alice:
        for n in range(3):
            total += 1
            await server.hubbub.publish("counter:a", n)
        await alice.send("subscribe", channel="counter:a", ref="s")
        await loading.wait()
        total += 1
        await server.hubbub.publish("counter:a", 3)
        go.set()
        reply = await alice.receive()
        assert reply["type"] == "subscribed"
        assert reply["state"] == {"name": "a", "total": 3}
        assert [message["data"] for message in reply["messages"]] == [3]
        assert (reply["offset"], reply["recovered"]) == (4, False)
        await server.hubbub.publish("counter:a", 4)
        assert (await alice.receive())["offset"] == 5


async def test_who_recovers_needs_no_state_and_who_cannot_gets_it_again(lane: str) -> None:
    loads = 0

    def declare(hub: Hubbub) -> None:
        topic = hub.channel("counter:{name}", subscribe="anyone", history=2)

        @topic.on_subscribe
        async def state(name: str) -> int:
            nonlocal loads
            loads += 1
            return loads

    async with app_on(lane, declare) as server, server.client("alice") as alice:
        first = await alice.ask("subscribe", channel="counter:a")
        since = {"epoch": first["epoch"], "offset": first["offset"]}
        await alice.ask("unsubscribe", channel="counter:a")
        await server.hubbub.publish("counter:a", 1)
        again = await alice.ask("subscribe", channel="counter:a", since=since)
        assert again["recovered"] is True
        assert "state" not in again
        assert [message["data"] for message in again["messages"]] == [1]
        await alice.ask("unsubscribe", channel="counter:a")
        for n in range(5):
            await server.hubbub.publish("counter:a", n)
        late = await alice.ask("subscribe", channel="counter:a", since=since)
        assert (late["recovered"], late["state"], late["messages"]) == (False, 2, [])
        await alice.nothing_more()  # no gap: the state covers it


async def test_a_channel_that_is_too_busy_for_its_state_says_so(lane: str) -> None:
    def declare(hub: Hubbub) -> None:
        topic = hub.channel("busy", subscribe="anyone", history=1)

        @topic.on_subscribe
        async def state() -> int:
            for n in range(2):
                await hub.publish("busy", n)
            return 1

    async with app_on(lane, declare) as server, server.client("alice") as alice:
        answer = await alice.ask("subscribe", channel="busy")
        assert (answer["code"], answer["retry_after"]) == ("busy", 1.0)
        await server.hubbub.publish("busy", 1)
        await alice.nothing_more()


async def test_the_state_in_messagepack(lane: str) -> None:
    class State(BaseModel):
        id: UUID

    def declare(hub: Hubbub) -> None:
        topic = hub.channel("a", subscribe="anyone")

        @topic.on_subscribe
        def state() -> Any:
            return State(id=UUID(int=5))

    async with app_on(lane, declare) as server, server.client("alice", "/ws?format=msgpack") as alice:
        assert (await alice.ask("subscribe", channel="a"))["state"] == {"id": str(UUID(int=5))}


# -- what clients publish ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/ws", "/ws?format=msgpack"])
async def test_publications_are_checked_rewritten_and_refused(lane: str, path: str) -> None:
    def declare(hub: Hubbub) -> None:
        @hub.channel("prices:{symbol}", subscribe="anyone")
        class Prices:
            async def on_publish(self, session: Session, symbol: str, price: Price) -> Price | None:
                if price.amount < 0:
                    raise ClientError("negative", "prices are not negative")
                return Price(price.amount + 1) if symbol == "UP" else None

    async with app_on(lane, declare) as server, server.client("alice", path, **nothing()) as alice:
        assert await alice.refused("publish", channel="prices:UP", data={"amount": 1}) == "forbidden"  # not subscribed
        for channel in ("prices:UP", "prices:X"):
            await alice.ask("subscribe", channel=channel)
        await alice.send("publish", channel="prices:UP", data={"amount": 1})
        assert (await alice.receive())["data"] == {"amount": 2, "secret": False}
        assert (await alice.receive())["type"] == "ack"
        await alice.send("publish", channel="prices:X", data={"amount": 1, "more": [1]})
        assert (await alice.receive())["data"] == {"amount": 1, "more": [1]}
        assert (await alice.receive())["type"] == "ack"
        assert await alice.refused("publish", channel="prices:X", data={"amount": -1}) == "negative"
        wrong = await alice.ask("publish", channel="prices:X", data={"amount": "x"})
        assert wrong["message"] == "Expected `int`, got `str` - at `$.data.amount`"
        position = await server.hubbub.publish("prices:X", {"from": "the server"})
        assert position.offset == 2


async def test_the_topic_is_a_handle_to_publish_with(lane: str) -> None:
    made: list[Topic] = []

    def declare(hub: Hubbub) -> None:
        @hub.channel("orders:{order_id}:{part}")
        async def orders(order_id: int, part: str) -> bool:
            return True

        made.append(orders)

    async with app_on(lane, declare) as server, server.client("alice") as alice:
        (orders,) = made
        assert orders.name(order_id=7, part="x") == "orders:7:x"
        await alice.ask("subscribe", channel="orders:7:x")
        position = await orders.publish(Price(3), order_id=7, part="x", key="k")
        assert position.offset == 1
        assert await alice.receive() == {
            "type": "publication",
            "channel": "orders:7:x",
            "offset": 1,
            "data": {"amount": 3, "secret": False},
            "key": "k",
        }
        with pytest.raises(TypeError, match="takes order_id, part; given: order_id"):
            orders.name(order_id=7)
        for wrong in ("a:b", "", "a b", "ä"):
            with pytest.raises(ValueError, match="is no channel of"):
                orders.name(order_id=7, part=wrong)


# -- filters ----------------------------------------------------------------------------------------------------------


async def test_a_filter_holds_live_in_recovery_and_in_history(lane: str) -> None:
    def declare(hub: Hubbub) -> None:
        @hub.channel("prices:{symbol}", subscribe="anyone")
        class Prices:
            def visible(self, identity: Identity, symbol: str, price: Price) -> bool:
                assert symbol == "X"
                return not price.secret or identity.user_id == "alice"

    async with app_on(lane, declare) as server, server.client("alice") as alice, server.client("bob") as bob:
        positions = [await client.ask("subscribe", channel="prices:X") for client in (alice, bob)]
        for n in range(6):
            await server.hubbub.publish("prices:X", {"amount": n, "secret": n % 2 == 1})
        assert [(await alice.receive())["offset"] for _ in range(6)] == [1, 2, 3, 4, 5, 6]
        assert [(await bob.receive())["offset"] for _ in range(3)] == [1, 3, 5]
        await bob.nothing_more()
        since = {"epoch": positions[1]["epoch"], "offset": 0}
        for client, offsets in ((alice, [1, 2, 3, 4, 5, 6]), (bob, [1, 3, 5])):
            again = await client.ask("subscribe", channel="prices:X", since=since)
            assert [message["offset"] for message in again["messages"]] == offsets
            assert again["recovered"] is True
            history = await client.ask("history", channel="prices:X")
            assert [message["offset"] for message in history["messages"]] == offsets


async def test_a_filter_that_fails_shows_nothing(lane: str, caplog: pytest.LogCaptureFixture) -> None:
    def declare(hub: Hubbub) -> None:
        topic = hub.channel("a", subscribe="anyone")

        @topic.visible
        def visible(data: Price) -> bool:
            return True

    async with app_on(lane, declare) as server, server.client("alice") as alice:
        await alice.ask("subscribe", channel="a")
        await server.hubbub.publish("a", {"amount": "not a number"})
        await server.hubbub.publish("a", {"amount": 1})
        assert (await alice.receive())["offset"] == 2
        assert "filter failed" in caplog.text
        assert server.hub.metrics.drops["filter_failed"] == 1


# -- hooks ------------------------------------------------------------------------------------------------------------


async def test_occupied_and_vacated_come_in_pairs_and_not_for_a_reload(lane: str) -> None:
    log: list[str] = []
    gate = asyncio.Event()

    def declare(hub: Hubbub) -> None:
        topic = hub.channel("docs:{name}", subscribe="anyone")

        @topic.occupied
        async def occupied(name: str) -> None:
            log.append(f"{name} opens")
            await gate.wait()
            log.append(f"{name} open")

        @topic.vacated
        def vacated(name: str) -> None:
            log.append(f"{name} closed")

    async with app_on(lane, declare, presence_grace=3) as server, server.client("alice") as alice:
        await alice.ask("subscribe", channel="docs:a")
        await until(lambda: log == ["a opens"])
        async with server.client("bob") as bob:
            await bob.ask("subscribe", channel="docs:a")
        await alice.ask("unsubscribe", channel="docs:a")
        server.advance(2.9)
        await alice.ask("subscribe", channel="docs:a")
        server.advance(10)
        await alice.ask("unsubscribe", channel="docs:a")
        await until(lambda: len(server.hub.sessions) == 1)
        server.advance(3.1)
        assert log == ["a opens"]  # what opens is awaited first
        gate.set()
        await until(lambda: log == ["a opens", "a open", "a closed"])
        await alice.ask("subscribe", channel="docs:a")
        await until(lambda: log[3:] == ["a opens", "a open"])


async def test_connected_comes_before_the_first_message_and_disconnected_after_the_last(lane: str) -> None:
    log: list[str] = []

    async def get_db() -> str:
        return "db"

    def declare(hub: Hubbub) -> None:
        @hub.connected
        async def hello(session: Session, db: str = Depends(get_db)) -> None:
            await session.send({"type": "welcome", "from": db})
            await session.subscribe("orders:7")
            log.append(f"{session.user_id} came")

        @hub.disconnected
        def bye(session: Session) -> None:
            assert session.is_closed
            log.append(f"{session.user_id} went {session.state.seen}")

        @hub.on("see")
        async def see(session: Session) -> None:
            log.append("seen")
            session.state.seen = True

    async with app_on(lane, declare) as server:
        async with server.client() as alice:
            await alice.send("auth", token=server.token("alice"))
            await alice.send("see", ref="1")
            kinds = [(await alice.receive())["type"] for _ in range(4)]
            assert kinds == ["auth_success", "welcome", "subscribed", "ack"]
            await server.hubbub.publish("orders:7", 1)
            assert (await alice.receive())["offset"] == 1
        await until(lambda: log == ["alice came", "seen", "alice went True"])
        async with server.client():
            pass
        await until(lambda: not server.hub.sessions)
        assert len(log) == 3  # who never signed in never came


async def test_a_connected_hook_may_refuse(lane: str) -> None:
    def declare(hub: Hubbub) -> None:
        @hub.connected
        async def only_adults(session: Session) -> None:
            raise ClientError("too_young", "come back later", close=4403)

    async with app_on(lane, declare) as server, server.client("alice") as alice:
        assert (await alice.receive())["code"] == "too_young"
        assert await alice.closed() == 4403


# -- from the server's side -------------------------------------------------------------------------------------------


async def test_the_server_subscribes_and_unsubscribes_users(lane: str) -> None:
    async with app_on(lane, lambda hub: None) as server:
        hub = server.hubbub
        async with server.client("alice", **nothing()) as phone, server.client("alice", **nothing()) as laptop:
            assert await hub.subscribe("alice", "team:red") == 2
            for device in (phone, laptop):
                assert (await device.receive())["type"] == "subscribed"
            await hub.publish("team:red", "hi")
            for device in (phone, laptop):
                assert (await device.receive())["data"] == "hi"
            assert await hub.unsubscribe("alice", "team:red", reason="you left the team") == 2
            for device in (phone, laptop):
                assert await device.receive() == {
                    "type": "unsubscribed",
                    "channel": "team:red",
                    "reason": "you left the team",
                }
            await hub.publish("team:red", "not for you")
            await phone.nothing_more()
            assert await hub.unsubscribe("alice", "team:red") == 0
            with pytest.raises(ClientError, match="a channel is named"):
                await hub.subscribe("alice", "not a name")
            with pytest.raises(ClientError, match="join_room"):
                await hub.subscribe("alice", "room:general")


async def answers(client: Client, **fields: Any) -> dict[str, Any]:
    request = await client.expect("request")
    await client.send("response", id=request["id"], **fields)
    return request


@pytest.mark.parametrize("path", ["/ws", "/ws?format=msgpack"])
async def test_a_handler_asks_its_own_client_and_others_wait(lane: str, path: str) -> None:
    def declare(hub: Hubbub) -> None:
        @hub.on("order")
        async def order(session: Session) -> int:
            price = await session.request("confirm", {"text": "Sure?"}, into=Price)
            return price.amount

    async with app_on(lane, declare) as server, server.client("alice", path) as alice:
        await alice.send("order", ref="o")
        await alice.send("ping", ref="p")
        request = await answers(alice, data={"amount": 7})
        assert (request["method"], request["data"]) == ("confirm", {"text": "Sure?"})
        assert await alice.receive() == {"type": "order.reply", "ref": "o", "data": 7}
        assert await alice.receive() == {"type": "pong", "ref": "p"}
        assert await alice.refused("response", id=request["id"], data=1) == "not_found"
        assert not server.hub.calls.waiting


async def test_requests_that_come_to_nothing(lane: str) -> None:
    async with app_on(lane, lambda hub: None, request_timeout=10, max_requests=2) as server:
        async with server.client("alice") as alice:
            (session,) = server.hubbub.sessions("alice")

            async def failed(kind: type[Exception], text: str, **fields: Any) -> None:
                asking = asyncio.ensure_future(session.request("x", into=int))
                await answers(alice, **fields)
                with pytest.raises(kind, match=text):
                    await asking

            await failed(RequestFailed, "no time", error="no time")
            await failed(RequestFailed, "Expected `int`, got `str` - at `.*data`", data="seven")
            asking = [asyncio.ensure_future(session.request("x")) for _ in range(2)]
            await until(lambda: len(server.hub.calls.waiting) == 1)
            with pytest.raises(RequestFailed, match="too many"):
                await session.request("x")
            server.advance(9.9)
            assert not any(each.done() for each in asking)
            server.advance(0.2)
            for each in asking:
                with pytest.raises(TimeoutError):
                    await each
            gone = asyncio.ensure_future(session.request("x"))
            await until(lambda: bool(server.hub.calls.waiting))
        with pytest.raises(SessionClosed):
            await gone
        with pytest.raises(SessionClosed):
            await session.request("x")
        with pytest.raises(SessionClosed):
            await session.subscribe("a")
        await session.send({"type": "x"})


async def test_an_answer_comes_through_a_full_queue(lane: str) -> None:
    def declare(hub: Hubbub) -> None:
        @hub.on("ask")
        async def ask(session: Session) -> Any:
            return await session.request("x")

    async with (
        app_on(lane, declare, request_queue=3, rate_limit=0, user_rate_limit=0) as server,
        server.client("alice") as alice,
    ):
        await alice.send("ask", ref="a")
        request = await alice.expect("request")
        for n in range(10):
            await alice.send("ping", ref=str(n))
        refused = [await alice.receive() for _ in range(7)]
        assert {each["code"] for each in refused} == {"busy"}
        assert [each["ref"] for each in refused] == [str(n) for n in range(3, 10)]
        await alice.send("response", id=request["id"], data="now")
        assert (await alice.receive())["data"] == "now"
        assert [(await alice.receive())["ref"] for _ in range(3)] == ["0", "1", "2"]


# -- from anywhere ----------------------------------------------------------------------------------------------------


async def test_publishing_from_sync_endpoints_threads_and_other_loops(lane: str) -> None:
    app, clock = FastAPI(), HandClock()
    hub = Hubbub(app, settings=settings_for(), clock=clock)

    @app.post("/sync")
    def sync() -> int:
        assert threading.current_thread() is not threading.main_thread()
        return hub.sync.publish("news", "sync").offset

    @app.post("/async")
    async def plain() -> int:
        return (await hub.publish("news", "async")).offset

    with pytest.raises(RuntimeError, match="not running"):
        await asyncio.to_thread(hub.sync.publish, "news", 1)
    with pytest.raises(RuntimeError, match="not running"):
        await hub.publish("news", 1)
    async with running(app=app, clock=clock, lane=lane) as server, server.client("alice") as alice:
        await alice.ask("subscribe", channel="news")
        async with server.http() as http:
            assert (await http.post("/sync")).json() == 1
            assert (await http.post("/async")).json() == 2

        async def elsewhere() -> int:
            await hub.notify("alice", "t", "m")
            return (await hub.publish("news", "another loop")).offset

        assert await asyncio.to_thread(lambda: asyncio.run(elsewhere())) == 3
        got = [await alice.receive() for _ in range(4)]
        assert [message.get("data") for message in got if message["type"] == "publication"] == [
            "sync",
            "async",
            "another loop",
        ]
        assert await asyncio.to_thread(hub.sync.notify, ["alice"], "t", "m") == 1
        assert await asyncio.to_thread(hub.sync.broadcast, "t", "m") == 1
        with pytest.raises(RuntimeError, match="await hub"):
            hub.sync.publish("news", 1)
        with pytest.raises(ClientError, match="a channel is named"):
            await asyncio.to_thread(hub.sync.publish, "not a name", 1)
        assert await asyncio.to_thread(hub.sync.disconnect, "alice") == 1
        assert await alice.closed() == close_code(lane, 1000)


# -- routers, and several hubs ----------------------------------------------------------------------------------------


async def test_routers_bring_handlers_channels_and_hooks(lane: str) -> None:
    log: list[str] = []

    async def note() -> None:
        log.append("checked")

    inner = HubRouter(prefix="line.", channel_prefix="lines:")
    outer = HubRouter(prefix="order.", channel_prefix="orders:", dependencies=[Depends(note)])

    @inner.on("add")
    async def add(n: int) -> int:
        return n

    @inner.channel("{line_id}", subscribe="anyone")
    async def lines(line_id: int) -> bool:
        return line_id > 0

    @outer.connected
    async def hello(session: Session) -> None:
        log.append("hello")

    outer.include_router(inner)

    def declare(hub: Hubbub) -> None:
        hub.include_router(outer, prefix="shop.", channel_prefix="shop:")

    async with app_on(lane, declare) as server, server.client("alice") as alice:
        assert (await alice.ask("shop.order.line.add", n=3))["data"] == 3
        assert log == ["hello", "checked"]
        assert (await alice.ask("subscribe", channel="shop:orders:lines:4"))["type"] == "subscribed"
        assert await alice.refused("subscribe", channel="shop:orders:lines:0") == "forbidden"
        assert lines.name(line_id=4) == "shop:orders:lines:4"
        await lines.publish("x", line_id=4)
        assert (await alice.receive())["data"] == "x"


async def test_two_hubs_in_one_app_know_nothing_of_each_other(lane: str) -> None:
    app, clock = FastAPI(), HandClock()
    one = Hubbub(app, settings=settings_for(max_connections=1), clock=clock, prefix="/one")
    two = Hubbub(app, settings=settings_for(), clock=clock, prefix="/two")

    @one.on("which")
    async def first() -> int:
        return 1

    @two.on("which")
    async def second() -> int:
        return 2

    async with (
        running(app=app, clock=clock, lane=lane) as server,
        server.client("alice", "/one/ws") as alice,
        server.client("bob", "/two/ws") as bob,
    ):
        assert (await alice.ask("which"))["data"] == 1
        assert (await bob.ask("which"))["data"] == 2
        for client in (alice, bob):
            await client.ask("subscribe", channel="news")
        await one.publish("news", "of one")
        assert (await alice.receive())["data"] == "of one"
        await bob.nothing_more()
        async with server.client("carol", "/two/ws") as carol:  # the first is full, not the second
            assert (await carol.ask("which"))["data"] == 2
        async with server.http() as http:
            assert (await http.get("/one/health")).json()["active_connections"] == 1
            assert len((await http.get("/openapi.json")).json()["paths"]) > 10


async def test_who_was_subscribed_by_the_server_recovers(lane: str) -> None:
    def declare(hub: Hubbub) -> None:
        @hub.connected
        async def hello(session: Session) -> None:
            await session.subscribe(f"inbox:{session.user_id}")

    async with app_on(lane, declare) as server:
        async with server.client("alice", **nothing()) as alice:
            first = await alice.expect("subscribed")
        await until(lambda: not server.hub.sessions)
        await server.hubbub.publish("inbox:alice", "missed")
        async with server.client("alice", **nothing()) as alice:
            await alice.expect("subscribed")
            since = {"epoch": first["epoch"], "offset": first["offset"]}
            again = await alice.ask("subscribe", channel="inbox:alice", since=since)
            assert [message["data"] for message in again["messages"]] == ["missed"]
            assert await alice.refused("subscribe", channel="inbox:bob") == "forbidden"
