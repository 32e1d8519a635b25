"""Typed handlers over a real socket: what comes in by annotation, what goes out, dependencies, order, faults."""

from __future__ import annotations

import asyncio
import logging
import secrets
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Annotated, Any, TypedDict
from uuid import UUID

import msgspec
import pytest
from fastapi import Depends, FastAPI, HTTPException, Security, WebSocketException
from fastapi.security import OAuth2PasswordBearer, SecurityScopes
from pydantic import BaseModel, ConfigDict, Field
from starlette.background import BackgroundTasks
from starlette.requests import HTTPConnection

from hubbub import ClientError, Hubbub, Identity, Session
from tests.lanes import close_code, lacks, needs
from tests.support import BOTH_LANES, HandClock, Running, running, settings_for, until

pytestmark = BOTH_LANES


class Cancel(msgspec.Struct):
    order_id: int
    reason: str = ""


class Cancelled(msgspec.Struct):
    order_id: int
    by: str


class Bid(BaseModel):
    amount: Annotated[int, Field(gt=0)]
    note: str = ""


@asynccontextmanager
async def app_on(lane: str, declare: Callable[[Hubbub], None], **settings: Any) -> AsyncIterator[Running]:
    app = FastAPI()
    clock = HandClock()
    hub = Hubbub(app, settings=settings_for(**settings), clock=clock)
    declare(hub)
    async with running(app=app, clock=clock, lane=lane) as server:
        yield server


# -- what comes in, and what goes out ---------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/ws", "/ws?format=msgpack"])
async def test_a_struct_comes_in_and_another_goes_out(lane: str, path: str) -> None:
    def declare(hub: Hubbub) -> None:
        @hub.on("order.cancel")
        async def cancel(session: Session, message: Cancel) -> Cancelled:
            assert message == Cancel(7, "late")
            return Cancelled(message.order_id, session.user_id)

    async with app_on(lane, declare) as server, server.client("alice", path) as alice:
        answer = await alice.ask("order.cancel", order_id=7, reason="late", unknown=[1])
        assert answer == {"type": "order.cancel.reply", "ref": "ask-1", "order_id": 7, "by": "alice"}
        await alice.send("order.cancel", order_id=7, reason="late")
        assert await alice.receive() == {"type": "order.cancel.reply", "order_id": 7, "by": "alice"}


@pytest.mark.parametrize("path", ["/ws", "/ws?format=msgpack"])
async def test_a_pydantic_model_comes_in_and_another_goes_out(lane: str, path: str) -> None:
    def declare(hub: Hubbub) -> None:
        class Placed(BaseModel):
            type: str = "bid.placed"
            amount: int
            ids: list[UUID]

        @hub.on("bid")
        async def bid(message: Bid) -> Placed:
            return Placed(amount=message.amount, ids=[UUID(int=message.amount)])

    async with app_on(lane, declare) as server, server.client("alice", path) as alice:
        answer = await alice.ask("bid", amount=7)
        assert answer["type"] == "bid.placed"
        assert answer["ids"] == ["00000000-0000-0000-0000-000000000007"]
        wrong = await alice.ask("bid", amount=0)
        assert wrong["code"] == "invalid_message"
        assert wrong["message"] == "Input should be greater than 0 - at `$.amount`"
        assert (await alice.ask("bid"))["message"] == "Field required - at `$.amount`"


async def test_every_kind_of_object_can_be_a_message(lane: str) -> None:
    def declare(hub: Hubbub) -> None:
        @dataclass
        class Point:
            x: int
            y: int = 0

        class Where(TypedDict):
            place: str

        class Strict(msgspec.Struct, forbid_unknown_fields=True):
            a: int

        class Forbids(BaseModel):
            model_config = ConfigDict(extra="forbid")
            a: int

        class Tagged(msgspec.Struct, tag_field="type", tag="tagged"):
            a: int

        @hub.on("point")
        async def point(point: Point) -> Point:
            return point

        @hub.on("where")
        async def where(where: Where) -> Where:
            return where

        @hub.on("any")
        async def anything(message: dict[str, Any]) -> dict[str, Any]:
            assert "type" not in message
            return message

        @hub.on("strict")
        async def strict(message: Strict) -> int:
            return message.a

        @hub.on("forbids")
        async def forbids(message: Forbids) -> int:
            return message.a

        @hub.on
        async def named_by_its_tag(message: Tagged) -> Tagged:
            return message

        @hub.on
        async def fields(a: int, b: list[str] | None = None, c: Annotated[str, Field(max_length=3)] = "x") -> list[Any]:
            return [a, b, c]

        @hub.on("structs")
        async def structs(orders: list[Tagged], n: int = 1) -> int:
            return orders[0].a + n

        @hub.on("bare")
        async def bare() -> None: ...

    for path in ("/ws", "/ws?format=msgpack"):
        async with app_on(lane, declare) as server, server.client("alice", path) as alice:
            assert (await alice.ask("point", x=1))["y"] == 0
            assert (await alice.ask("where", place="here"))["place"] == "here"
            assert (await alice.ask("any", deep={"er": [1, None]}))["deep"] == {"er": [1, None]}
            assert (await alice.ask("strict", a=1))["data"] == 1
            assert (await alice.ask("strict", a=1, b=2))["message"] == "Object contains unknown field `b`"
            assert (await alice.ask("forbids", a=1))["data"] == 1
            assert (await alice.ask("forbids", a=1, b=2))["message"] == "Extra inputs are not permitted - at `$.b`"
            assert await alice.ask("tagged", a=3) == {"type": "tagged", "ref": "ask-8", "a": 3}
            assert (await alice.ask("fields", a=1, c="abc"))["data"] == [1, None, "abc"]
            assert (await alice.ask("fields", a=1, c="abcd"))["code"] == "invalid_message"
            assert await alice.ask("bare") == {"type": "ack", "ref": "ask-11"}
            assert (await alice.ask("structs", orders=[{"type": "tagged", "a": 1}]))["data"] == 2
            assert (await alice.ask("structs", orders=[{"a": "x"}]))["code"] == "invalid_message"
            await alice.send("bare")
            await alice.nothing_more()


async def test_wrong_messages_say_where(lane: str) -> None:
    def declare(hub: Hubbub) -> None:
        @hub.on("order.cancel")
        async def cancel(message: Cancel) -> None: ...

    async with app_on(lane, declare) as server, server.client("alice") as alice:
        wrong = await alice.ask("order.cancel", order_id="seven")
        assert wrong["message"] == "Expected `int`, got `str` - at `$.order_id`"
        assert (await alice.ask("order.cancel"))["message"] == "Object missing required field `order_id`"
        await alice.send_raw('{"type":"order.cancel","order_id":NaN,"ref":"n"}')
        assert (await alice.receive())["code"] == "invalid_json"
        assert (await alice.ask("order.cancle"))["code"] == "unknown_type"


async def test_replies_have_names(lane: str) -> None:
    def declare(hub: Hubbub) -> None:
        @hub.on("a", reply="a.done")
        async def a() -> int:
            return 1

        @hub.on("b")
        async def b() -> dict[str, Any]:
            return {"type": "its.own", "ref": "not this", "n": 1}

        @hub.on("c")
        async def c() -> Cancel | None:
            return None

        @hub.on("d")
        async def d() -> dict[str, Any]:
            return {}

    async with app_on(lane, declare) as server, server.client("alice") as alice:
        assert await alice.ask("a") == {"type": "a.done", "ref": "ask-1", "data": 1}
        assert await alice.ask("b") == {"type": "its.own", "ref": "ask-2", "n": 1}
        assert await alice.ask("c") == {"type": "ack", "ref": "ask-3"}
        assert await alice.ask("d") == {"type": "d.reply", "ref": "ask-4"}


async def test_an_anonymous_handler_comes_before_auth(lane: str) -> None:
    def declare(hub: Hubbub) -> None:
        @hub.on("hello", anonymous=True)
        async def hello(session: Session) -> bool:
            return session.is_authenticated

        @hub.on("who", anonymous=True)
        async def who(session: Session) -> str:
            return session.user_id

        @hub.on("whoami", anonymous=True)
        async def whoami(identity: Identity) -> str:
            return identity.user_id

    async with app_on(lane, declare) as server, server.client() as nobody:
        assert (await nobody.ask("hello"))["data"] is False
        assert (await nobody.ask("who"))["code"] == "authentication_required"
        assert (await nobody.ask("whoami"))["code"] == "authentication_required"
        await nobody.send("auth", token=server.token("bob"))
        assert (await nobody.expect("auth_success"))["user_id"] == "bob"
        assert (await nobody.ask("whoami"))["data"] == "bob"


# -- dependencies -----------------------------------------------------------------------------------------------------


async def test_a_dependency_lives_for_one_message_and_ends_before_the_reply(lane: str) -> None:
    log: list[Any] = []

    async def get_db() -> AsyncIterator[str]:
        log.append("open")
        try:
            yield "db"
        except ClientError:
            log.append("rolled back")
            raise
        else:
            log.append("committed")
        finally:
            log.append("closed")

    def get_settings() -> dict[str, int]:
        log.append(threading.current_thread() is threading.main_thread())
        return {"limit": 5}

    def declare(hub: Hubbub) -> None:
        async def get_order(order_id: int, db: str = Depends(get_db), extra: str = "none") -> str:
            return f"{db}:{order_id}:{extra}"

        class Page:
            def __init__(self, settings: dict[str, int] = Depends(get_settings)) -> None:
                self.size = settings["limit"]

        @hub.on("get")
        async def get(
            message: Cancel,
            order: Annotated[str, Depends(get_order)],
            page: Annotated[Page, Depends()],
            db: str = Depends(get_db),
        ) -> list[Any]:
            log.append("handled")
            if message.order_id == 13:
                raise ClientError("unlucky", "no")
            return [order, page.size, db]

    async with app_on(lane, declare) as server, server.client("alice") as alice:
        assert (await alice.ask("get", order_id=7))["data"] == ["db:7:none", 5, "db"]
        assert log == ["open", False, "handled", "committed", "closed"]
        log.clear()
        assert (await alice.ask("get", order_id=13))["code"] == "unlucky"
        assert log == ["open", False, "handled", "rolled back", "closed"]


async def test_a_commit_that_fails_is_no_reply(lane: str) -> None:
    async def get_db() -> AsyncIterator[str]:
        yield "db"
        raise HTTPException(409, "somebody was faster")

    def declare(hub: Hubbub) -> None:
        @hub.on("save")
        async def save(db: str = Depends(get_db)) -> str:
            return "saved"

    async with app_on(lane, declare) as server, server.client("alice") as alice:
        answer = await alice.ask("save")
        assert (answer["code"], answer["message"]) == ("conflict", "somebody was faster")


async def test_a_dependency_that_swallows_the_fault_is_a_fault(lane: str, caplog: pytest.LogCaptureFixture) -> None:
    async def swallows() -> AsyncIterator[None]:
        try:
            yield None
        except ValueError:
            pass

    def declare(hub: Hubbub) -> None:
        @hub.on("x")
        async def x(it: None = Depends(swallows)) -> str:
            raise ValueError

    async with app_on(lane, declare) as server, server.client("alice") as alice:
        assert (await alice.ask("x"))["code"] == "internal"
        assert "kept an exception to itself" in caplog.text


async def test_sync_functions_and_generators_run_in_threads(lane: str) -> None:
    seen: list[threading.Thread] = []

    def get_db() -> Iterator[str]:
        seen.append(threading.current_thread())
        yield "db"
        seen.append(threading.current_thread())

    def declare(hub: Hubbub) -> None:
        @hub.on("sync")
        def handler(session: Session, db: str = Depends(get_db)) -> str:
            seen.append(threading.current_thread())
            return f"{db} of {session.user_id}"

    async with app_on(lane, declare) as server, server.client("alice") as alice:
        assert (await alice.ask("sync"))["data"] == "db of alice"
    assert len(seen) == 3
    assert threading.main_thread() not in seen


async def test_overrides_hold_as_in_fastapi(lane: str) -> None:
    async def get_user() -> str:
        return "real"

    async def get_more(user: str = Depends(get_user)) -> str:
        return f"more {user}"

    async def fake_user(order_id: int) -> str:
        return f"fake {order_id}"

    def declare(hub: Hubbub) -> None:
        @hub.on("who")
        async def who(message: Cancel, user: str = Depends(get_user), more: str = Depends(get_more)) -> list[str]:
            return [user, more]

    async with app_on(lane, declare) as server, server.client("alice") as alice:
        assert (await alice.ask("who", order_id=1))["data"] == ["real", "more real"]
        server.app.dependency_overrides[get_user] = fake_user
        assert (await alice.ask("who", order_id=1))["data"] == ["fake 1", "more fake 1"]
        server.app.dependency_overrides[get_more] = lambda: "nothing"
        assert (await alice.ask("who", order_id=1))["data"] == ["fake 1", "nothing"]
        server.app.dependency_overrides.clear()
        assert (await alice.ask("who", order_id=1))["data"] == ["real", "more real"]


async def test_use_cache_false_is_called_again_and_scopes_are_told(lane: str) -> None:
    calls: list[int] = []

    async def count() -> int:
        calls.append(1)
        return len(calls)

    async def allowed(scopes: SecurityScopes) -> list[str]:
        return scopes.scopes

    def declare(hub: Hubbub) -> None:
        @hub.on("n")
        async def n(
            a: int = Depends(count),
            b: int = Depends(count),
            c: int = Depends(count, use_cache=False),
            scopes: list[str] = Security(allowed, scopes=["orders"]),
        ) -> list[Any]:
            return [a, b, c, scopes]

    async with app_on(lane, declare) as server, server.client("alice") as alice:
        assert (await alice.ask("n"))["data"] == [1, 1, 2, ["orders"]]


async def test_the_opening_request_is_there_for_who_asks(lane: str) -> None:
    oauth = OAuth2PasswordBearer(tokenUrl="login")

    async def pool(connection: HTTPConnection) -> Any:
        return connection.app.state.pool

    def declare(hub: Hubbub) -> None:
        assert hub.app is not None
        hub.app.state.pool = "pool"

        @hub.on("opening")
        async def opening(
            connection: HTTPConnection, token: str = Depends(oauth), it: str = Depends(pool)
        ) -> list[Any]:
            return [connection.query_params["q"], connection.headers["x-device"], token[:3], it]

    async with app_on(lane, declare) as server:
        headers = {"x-device": "phone", "authorization": f"Bearer {server.token('alice')}"}
        async with server.client(path="/ws?q=1", additional_headers=headers) as alice:
            await alice.expect("auth_success")
            assert (await alice.ask("opening"))["data"] == ["1", "phone", "eyJ", "pool"]


async def test_it_is_not_kept_where_nobody_asks(lane: str) -> None:
    async with app_on(lane, lambda hub: None) as server, server.client("alice"):
        (session,) = server.hub.sessions
        assert session.opening is None


async def test_http_exceptions_become_refusals(lane: str) -> None:
    def declare(hub: Hubbub) -> None:
        @hub.on("http")
        async def http(status: int) -> None:
            raise HTTPException(status, "said so", headers={"Retry-After": "7"} if status == 429 else None)

        @hub.on("websocket")
        async def websocket() -> None:
            raise WebSocketException(4403, "go away")

    async with app_on(lane, declare) as server, server.client("alice") as alice:
        codes = {status: (await alice.ask("http", status=status))["code"] for status in (400, 403, 404, 409, 418, 500)}
        assert codes == {
            400: "invalid_message",
            403: "forbidden",
            404: "not_found",
            409: "conflict",
            418: "invalid_message",
            500: "internal",
        }
        assert (await alice.ask("http", status=429))["retry_after"] == 7.0
        assert (await alice.ask("websocket"))["message"] == "go away"
        assert await alice.closed() == 4403


async def test_background_tasks_run_after_the_reply(lane: str) -> None:
    gate = asyncio.Event()
    done: list[str] = []

    async def later(what: str) -> None:
        await gate.wait()
        done.append(what)

    def declare(hub: Hubbub) -> None:
        @hub.on("order")
        async def order(tasks: BackgroundTasks) -> str:
            tasks.add_task(later, "mail")
            return "ordered"

    async with app_on(lane, declare) as server, server.client("alice") as alice:
        assert (await alice.ask("order"))["data"] == "ordered"
        assert not done
        gate.set()
        await until(lambda: done == ["mail"])


async def test_dependencies_of_the_hub_run_first(lane: str) -> None:
    async def only_bob(session: Session) -> None:
        if session.user_id != "bob":
            raise HTTPException(403, "not you")

    app, clock = FastAPI(), HandClock()
    hub = Hubbub(app, settings=settings_for(), clock=clock, dependencies=[Depends(only_bob)])

    @hub.on("x")
    async def x() -> int:
        return 1

    async with (
        running(app=app, clock=clock, lane=lane) as server,
        server.client("alice") as alice,
        server.client("bob") as bob,
    ):
        assert await alice.refused("x") == "forbidden"
        assert (await bob.ask("x"))["data"] == 1


# -- order, time, bounds ----------------------------------------------------------------------------------------------


async def test_one_sessions_handlers_run_in_order_and_others_beside(lane: str) -> None:
    gates = {"alice": asyncio.Event(), "bob": asyncio.Event()}
    log: list[str] = []

    def declare(hub: Hubbub) -> None:
        @hub.on("slow")
        async def slow(session: Session, n: int) -> int:
            log.append(f"{session.user_id} {n} begins")
            await gates[session.user_id].wait()
            log.append(f"{session.user_id} {n} ends")
            return n

    async with app_on(lane, declare) as server, server.client("alice") as alice, server.client("bob") as bob:
        for n in range(3):
            await alice.send("slow", n=n)
        await alice.send("ping", ref="last")
        await until(lambda: log == ["alice 0 begins"])
        gates["bob"].set()
        assert (await bob.ask("slow", n=9))["data"] == 9
        assert log == ["alice 0 begins", "bob 9 begins", "bob 9 ends"]
        gates["alice"].set()
        assert [(await alice.receive())["data"] for _ in range(3)] == [0, 1, 2]
        assert (await alice.receive())["ref"] == "last"


async def test_more_than_the_queue_is_not_read_but_not_lost(lane: str) -> None:
    gate = asyncio.Event()

    def declare(hub: Hubbub) -> None:
        @hub.on("n")
        async def n(n: int) -> int:
            await gate.wait()
            return n

    async with (
        app_on(lane, declare, request_queue=4, rate_limit=0, user_rate_limit=0) as server,
        server.client("alice") as alice,
    ):
        for number in range(100):
            await alice.send("n", n=number)
        (session,) = server.hub.sessions
        await until(lambda: session.busy is not None and len(session.busy) >= 4)
        gate.set()
        assert [(await alice.receive())["data"] for _ in range(100)] == list(range(100))


async def test_a_handler_that_hangs_is_stopped(lane: str) -> None:
    log: list[str] = []

    async def get_db() -> AsyncIterator[None]:
        yield
        log.append("never")

    def declare(hub: Hubbub) -> None:
        @hub.on("hang", timeout=5)
        async def hang(db: None = Depends(get_db)) -> None:
            log.append("begins")
            try:
                await asyncio.get_running_loop().create_future()
            finally:
                log.append("stopped")

    async with app_on(lane, declare) as server, server.client("alice") as alice:
        await alice.send("hang", ref="1")
        await alice.send("ping", ref="2")
        await until(lambda: log == ["begins"])
        server.advance(4.9)
        assert log == ["begins"]
        server.advance(0.2)
        answer = await alice.receive()
        assert (answer["code"], answer["ref"], answer["retry_after"]) == ("busy", "1", 1.0)
        assert await alice.receive() == {"type": "pong", "ref": "2"}
        assert log == ["begins", "stopped"]


async def test_a_thread_that_hangs_keeps_what_it_uses_open(lane: str) -> None:
    gate = threading.Event()
    log: list[str] = []

    async def get_db() -> AsyncIterator[None]:
        yield
        log.append("committed")

    async def get_file() -> AsyncIterator[None]:
        try:
            yield
        finally:
            log.append("closed")

    def declare(hub: Hubbub) -> None:
        @hub.on("slow", timeout=5)
        def slow(db: None = Depends(get_db), file: None = Depends(get_file)) -> str:
            log.append("begins")
            gate.wait(10)
            log.append("ends")
            return "nobody waits for it"

    try:
        async with app_on(lane, declare) as server, server.client("alice") as alice:
            await alice.send("slow", ref="1")
            await alice.send("ping", ref="2")
            await until(lambda: log == ["begins"])
            server.advance(6)
            assert (await alice.receive())["code"] == "busy"
            assert log == ["begins"]
            gate.set()
            assert await alice.receive() == {"type": "pong", "ref": "2"}
            assert log == ["begins", "ends", "closed"]
    finally:
        gate.set()


async def test_a_handler_that_does_not_even_stop_loses_its_session(lane: str, caplog: pytest.LogCaptureFixture) -> None:
    gate = asyncio.Event()
    begun = False

    def declare(hub: Hubbub) -> None:
        @hub.on("stubborn")
        async def stubborn() -> None:
            nonlocal begun
            begun = True
            while not gate.is_set():
                try:
                    await gate.wait()
                except asyncio.CancelledError:
                    pass

    try:
        async with app_on(lane, declare, handler_timeout=10) as server, server.client("alice") as alice:
            await alice.send("stubborn", ref="1")
            await until(lambda: begun)
            server.advance(11)
            assert (await alice.receive())["code"] == "busy"
            server.advance(11)
            assert await alice.closed() == close_code(lane, 1011)
            assert "did not end when it was cancelled" in caplog.text
            async with server.client("alice") as again:
                assert (await again.ask("ping"))["type"] == "pong"
            gate.set()
            await until(lambda: not server.hub.runs)
    finally:
        gate.set()


async def test_no_more_handlers_than_the_limit_run(lane: str) -> None:
    gate = asyncio.Event()

    def declare(hub: Hubbub) -> None:
        @hub.on("wait")
        async def wait() -> str:
            await gate.wait()
            return "done"

    async with (
        app_on(lane, declare, max_handlers=2) as server,
        server.client("a") as a,
        server.client("b") as b,
        server.client("c") as c,
    ):
        await a.send("wait")
        await b.send("wait")
        await until(lambda: len(server.hub.runs) == 2)
        refused = await c.ask("wait")
        assert (refused["code"], refused["retry_after"]) == ("busy", 1.0)
        gate.set()
        assert (await a.receive())["data"] == (await b.receive())["data"] == "done"
        assert (await c.ask("wait"))["data"] == "done"


# -- faults -----------------------------------------------------------------------------------------------------------


async def test_a_handler_that_raises_costs_its_sender_an_error_and_nobody_else(
    lane: str, caplog: pytest.LogCaptureFixture
) -> None:
    def declare(hub: Hubbub) -> None:
        @hub.on("boom")
        async def boom() -> None:
            raise RuntimeError("a secret of the house")

        @hub.on("liar")
        async def liar() -> Cancelled:
            return {"not": "that"}  # type: ignore[return-value]  # the point

        @hub.on("strange")
        async def strange() -> Any:
            return object()

    async with app_on(lane, declare) as server, server.client("alice") as alice, server.client("bob") as bob:
        with caplog.at_level(logging.ERROR):
            for kind in ("boom", "liar", "strange"):
                answer = await alice.ask(kind)
                assert answer["code"] == "internal"
                assert "secret" not in answer["message"]
                assert any(getattr(record, "fault", None) == answer["id"] for record in caplog.records)
        assert (await alice.ask("ping"))["type"] == "pong"
        assert (await bob.ask("ping"))["type"] == "pong"


async def test_a_handler_may_close_its_own_session(lane: str) -> None:
    log: list[int] = []

    def declare(hub: Hubbub) -> None:
        @hub.on("bye")
        async def bye(session: Session, n: int) -> str:
            log.append(n)
            await session.send({"type": "last words"})
            session.close(4000, "as you wish")
            await session.send({"type": "too late"})
            return "not sent"

    async with app_on(lane, declare) as server, server.client("alice") as alice:
        for n in range(3):
            await alice.send("bye", n=n)
        assert await alice.closed() == 4000
        assert [message["type"] for message in alice.seen][-1] == "last words"
        if not lacks(lane, "close reasons"):
            assert alice.connection.close_reason == "as you wish"
        await until(lambda: not server.hub.sessions)
        assert log == [0]


async def test_a_handler_that_floods_its_client_is_bounded(lane: str) -> None:
    needs(lane, "backpressure")
    sent = 0

    def declare(hub: Hubbub) -> None:
        @hub.on("flood")
        async def flood(session: Session) -> None:
            nonlocal sent
            while not session.is_closed:
                await session.send({"type": "x", "data": secrets.token_hex(500)})  # some servers compress
                sent += 1

    async with app_on(lane, declare, outbox_bytes=200_000) as server, server.client("bob") as bob:
        options: dict[str, Any] = {"max_queue": 1, "max_size": None, "close_timeout": 0.1}
        async with server.client("alice", **options) as alice:
            await alice.send("flood")
            await until(lambda: sent > 100)
            assert (await bob.ask("ping"))["type"] == "pong"
            await until(lambda: len(server.hub.sessions) == 1)
        assert sent < 50_000
        assert (await bob.ask("ping"))["type"] == "pong"


async def test_a_handler_that_publishes_without_end_lets_others_in(lane: str) -> None:
    needs(lane, "a turn beside a busy loop")
    stop = False

    def declare(hub: Hubbub) -> None:
        @hub.on("flood")
        async def flood() -> int:
            count = 0
            while not stop:
                await hub.publish("news", count)
                count += 1
            return count

    async with app_on(lane, declare) as server, server.client("alice") as alice, server.client("bob") as bob:
        await alice.send("flood")
        for _ in range(3):
            assert (await bob.ask("ping"))["type"] == "pong"
        stop = True
        assert (await alice.receive())["data"] > 0


async def test_a_session_that_ends_leaves_its_handler_to_finish(lane: str) -> None:
    gate = asyncio.Event()
    log: list[Any] = []

    def declare(hub: Hubbub) -> None:
        @hub.on("save")
        async def save(session: Session) -> str:
            log.append("begins")
            await gate.wait()
            log.append(session.is_closed)
            return "nobody hears it"

    async with app_on(lane, declare) as server:
        async with server.client("alice") as alice:
            await alice.send("save")
            await until(lambda: log == ["begins"])
        await until(lambda: not server.hub.sessions)
        gate.set()
        await until(lambda: log == ["begins", True])
        await until(lambda: not server.hub.runs)


async def test_the_session_object_is_one_and_keeps_state(lane: str) -> None:
    def declare(hub: Hubbub) -> None:
        @hub.on("count")
        async def count(session: Session) -> int:
            session.state.count = getattr(session.state, "count", 0) + 1
            assert hub.sessions("alice") == [session]
            return int(session.state.count)

    async with app_on(lane, declare) as server, server.client("alice") as alice:
        assert [(await alice.ask("count"))["data"] for _ in range(3)] == [1, 2, 3]


async def test_handlers_see_no_other_message_s_context(lane: str) -> None:
    seen: ContextVar[str] = ContextVar("seen", default="nothing")
    tasks: list[Any] = []

    def declare(hub: Hubbub) -> None:
        @hub.on("at_once")
        async def at_once(n: int) -> str:
            before = seen.get()
            seen.set(f"at once {n}")
            return before

        @hub.on("waiting")
        async def waiting(n: int) -> str:
            before = seen.get()
            seen.set(f"waiting {n}")
            async with asyncio.timeout(5):
                await asyncio.sleep(0)
            tasks.append(asyncio.current_task())
            return before

    async with app_on(lane, declare) as server, server.client("alice") as alice:
        for kind in ("at_once", "waiting", "at_once", "waiting"):
            assert (await alice.ask(kind, n=1))["data"] == "nothing"
    assert len(set(tasks)) == 2
