"""A shop with real-time orders: typed handlers, dependencies, a channel as code, a router, calls from sync code.

Run it:  hubbub serve --app examples.shop:app
Log in:  curl -X POST http://127.0.0.1:8000/login -H 'Content-Type: application/json' -d '{"name": "alice"}'
Connect: ws://127.0.0.1:8000/ws?token=…
Send     {"type": "order.place", "what": "tea", "count": 2}  the server asks  {"type": "request", "id": "1", …}
Send     {"type": "response", "id": "1", "data": true}       and get  {"type": "order.placed", "order_id": 1, "total": 6}
Send     {"type": "subscribe", "channel": "orders:1"}        and get  its state, then every change of it
POST /orders/1/ship                                          and you get the change, and a notification
The same with `--workers 2`: the orders are in a database (.hubbub/shop.db) that all workers share. In a variable, an order
that was placed on one worker could not be watched or shipped on the other, and both would call theirs number 1.
"""

import asyncio
import sqlite3
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from pathlib import Path
from typing import Annotated, Any

import msgspec
from fastapi import Depends, FastAPI, HTTPException
from pydantic import BaseModel, Field

from hubbub import ClientError, Hubbub, HubRouter, Session


class Order(BaseModel):
    order_id: int
    customer: str
    what: str
    total: int
    status: str = "placed"


class Database:
    """A little pool over a SQLite file; your own has sessions of your database. `opened`: how many this worker has out."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path = path
        self.opened = 0

    @asynccontextmanager
    async def session(self) -> AsyncIterator["Database"]:
        self.opened += 1
        try:
            yield self
        finally:
            self.opened -= 1

    def run(self, statement: str, *values: Any) -> list[Order]:
        """For threads: it waits for the disk, and for the other workers."""
        with closing(sqlite3.connect(self.path, timeout=10)) as connection, connection:
            connection.row_factory = sqlite3.Row
            connection.execute(TABLE)
            return [Order(**row) for row in connection.execute(statement, values).fetchall()]

    async def ask(self, statement: str, *values: Any) -> list[Order]:
        return await asyncio.to_thread(self.run, statement, *values)


app = FastAPI(title="A shop with real-time orders")
hub = Hubbub(app, dev=True)
pool = Database(hub.settings.data_dir / "shop.db")
TABLE = "create table if not exists orders (order_id integer primary key, customer, what, total, status)"
PRICES = {"tea": 3, "cake": 5}  # constants: that each worker has them for itself does no harm


async def get_db() -> AsyncIterator[Database]:
    """Opened for one message, and closed before its reply leaves: a socket never keeps a connection of the pool."""
    async with pool.session() as db:
        yield db


Db = Annotated[Database, Depends(get_db)]


async def get_order(order_id: int, db: Db) -> Order:
    """A dependency may take a field of the message, or a part of a channel's name, by its name."""
    found = await db.ask("select * from orders where order_id = ?", order_id)
    if not found:
        raise HTTPException(404, "no such order")
    return found[0]


class Place(BaseModel):
    what: str
    count: Annotated[int, Field(gt=0, le=100)] = 1


class Placed(msgspec.Struct):
    order_id: int
    total: int


router = HubRouter(prefix="order.", channel_prefix="orders:")


@router.on("place", reply="order.placed", timeout=60)
async def place(session: Session, message: Place, db: Db) -> Placed:
    if message.what not in PRICES:
        raise ClientError("sold_out", f"there is no {message.what}")
    total = message.count * PRICES[message.what]
    if not await session.request("confirm", {"text": f"{message.count} {message.what} for {total}?"}, into=bool):
        raise ClientError("cancelled", "as you wish")
    statement = "insert into orders (customer, what, total, status) values (?, ?, ?, 'placed') returning *"
    (order,) = await db.ask(statement, session.user_id, message.what, total)
    return Placed(order.order_id, total)


@router.channel("{order_id}", history=100, publish="server")
class Orders:
    """`orders:7`: only its customer may watch it."""

    async def authorize(self, session: Session, order: Annotated[Order, Depends(get_order)]) -> bool:
        return order.customer == session.user_id

    async def on_subscribe(self, order: Annotated[Order, Depends(get_order)]) -> Order:
        return order


hub.include_router(router)


class Login(BaseModel):
    name: str


@app.post("/login")
async def login(who: Login) -> dict[str, str]:
    """Your own way of knowing people; here: by name."""
    return {"token": hub.token(who.name)}


@app.post("/orders/{order_id}/ship")
def ship(order_id: int) -> dict[str, Any]:
    """A sync endpoint: FastAPI runs it in a thread, so the calls are `hub.sync`'s."""
    shipped = pool.run("update orders set status = 'shipped' where order_id = ? returning *", order_id)
    if not shipped:
        raise HTTPException(404, "no such order")
    order = shipped[0]
    position = hub.sync.publish(f"orders:{order_id}", {"status": order.status})
    reached = hub.sync.notify(order.customer, "Shipped", f"Order {order_id} is on its way", "success")
    return {"offset": position.offset, "devices": reached}
