"""What an app writes, and which types it sees. Lines with an ignore must be errors: an unused one is an error itself."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Annotated, Any, assert_type

import msgspec
from fastapi import Depends, FastAPI
from pydantic import BaseModel

from hubbub import (
    ChannelOptions,
    ClientError,
    CloseCode,
    ErrorCode,
    Hubbub,
    HubRouter,
    Identity,
    Position,
    Session,
    Settings,
    Topic,
    create_app,
    issue_token,
)
from hubbub.testing import HandClock, hub_client, sync_client

app = FastAPI()
hub = Hubbub(app, secret="x" * 32, channels={"ticks:*": ChannelOptions(slow="conflate")}, clock=HandClock())
assert_type(create_app(Settings()), FastAPI)
assert_type(issue_token(Settings(), "alice", now=0.0, ttl=60.0), str)


class Cancel(msgspec.Struct):
    order_id: int


class Cancelled(BaseModel):
    order_id: int


async def get_db() -> AsyncIterator[str]:
    yield "db"


Db = Annotated[str, Depends(get_db)]


@hub.on("order.cancel", timeout=5, anonymous=False)
async def cancel(session: Session, message: Cancel, db: Db) -> Cancelled:
    assert_type(session.user_id, str)
    assert_type(session.identity, Identity)
    assert_type(session.channels, frozenset[str])
    assert_type(await session.request("confirm", {"a": 1}, into=Cancelled), Cancelled)
    assert_type(await session.request("confirm"), Any)
    assert_type(await session.subscribe("orders:7"), Position)
    assert_type(await session.unsubscribe("orders:7"), bool)
    session.close(CloseCode.NORMAL)
    await session.request(1)  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType]
    if not db:
        raise ClientError("sold_out", "none left", retry_after=1.0)
    if db == "x":
        raise ClientError(ErrorCode.CONFLICT, "gone")
    return Cancelled(order_id=message.order_id)


@hub.on
def bare(a: int) -> int:
    return a


# a decorated function keeps its own type
assert_type(bare(1), int)


async def still_callable(session: Session) -> None:
    assert_type(await cancel(session, Cancel(1), "db"), Cancelled)
    await cancel(session, 1, "db")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


@hub.channel("orders:{order_id}", history=100, presence=True, slow="conflate")
async def orders(identity: Identity, order_id: int) -> bool:
    return True


assert_type(orders, Topic)
hub.channel("x", slow="maybe")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
hub.on("x", timeuot=1)  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue]


@orders.on_publish
async def on_publish(session: Session, data: Cancel) -> Cancel | None:
    return None


@orders.visible
def visible(identity: Identity, data: Cancel) -> bool:
    return True


@hub.connected
async def connected(session: Session) -> None: ...


async def from_anywhere() -> None:
    assert_type(await hub.publish("news", {"a": 1}, key="k"), Position)
    assert_type(await orders.publish(Cancel(1), order_id=1), Position)
    assert_type(orders.name(order_id=1), str)
    assert_type(await hub.notify(["alice", "bob"], "t", "m", "error"), int)
    assert_type(await hub.broadcast("t", "m"), int)
    await hub.send("alice", Cancel(1), type="cancel")
    await hub.send(Cancel(1), "alice")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    assert_type(await hub.disconnect("alice", revoke=True), int)
    assert_type(hub.sessions("alice"), list[Session])
    await hub.notify("alice", "t", "m", "loud")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


def from_a_thread() -> None:
    assert_type(hub.sync.publish("news", 1), Position)
    assert_type(hub.sync.notify("alice", "t", "m"), int)
    hub.sync.send("alice", {"type": "hello"})
    assert_type(hub.sync.run(orders.publish(1, order_id=1)), Position)


router = HubRouter(prefix="order.", channel_prefix="orders:")


@router.on("add")
async def add(n: int) -> int:
    return n


hub.include_router(router)


async def test_the_app() -> None:
    async with hub_client(app, user="alice") as alice:
        await alice.send("order.cancel", order_id=7)
        assert_type(await alice.expect("order.cancel.reply", into=Cancelled), Cancelled)
        assert_type(await alice.expect("order.cancel.reply"), dict[str, Any])
        assert_type(await alice.closed(), int)


def test_with_the_test_client() -> None:
    from fastapi.testclient import TestClient

    with TestClient(app) as client, sync_client(client, user="alice") as alice:
        alice.send("order.cancel", order_id=7)
        assert_type(alice.expect("order.cancel.reply", into=Cancelled), Cancelled)
