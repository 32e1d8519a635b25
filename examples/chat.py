"""Hubbub in one's own FastAPI app: rooms, presence, notifications and history beside one's own routes.

Run it:  hubbub serve --app examples.chat:app      then open http://127.0.0.1:8000/docs
Get a token (POST /login), connect to ws://127.0.0.1:8000/ws?token=… and send
{"type": "join_room", "room_id": "general"}.
"""

from fastapi import FastAPI
from pydantic import BaseModel

from hubbub import ChannelOptions, Hubbub

app = FastAPI(title="A shop with real-time orders")
hub = Hubbub(
    app,
    dev=True,  # a random secret, kept in .hubbub/; in production leave this out and set HUBBUB_SECRET
    channels={"orders:*": ChannelOptions(history_size=100, publish="server", subscribe="anyone")},
)


class Login(BaseModel):
    name: str


@app.post("/login")
async def login(who: Login) -> dict[str, str]:
    """Your own way of knowing people; here: by name."""
    return {"token": hub.token(who.name)}


@app.post("/orders/{order_id}/ship")
async def ship(order_id: int, customer: str) -> dict[str, int]:
    """Everybody who watches the order sees it, and the customer gets a notification on all devices."""
    position = await hub.publish(f"orders:{order_id}", {"status": "shipped"})
    reached = await hub.notify(customer, "Shipped", f"Order {order_id} is on its way", "success")
    return {"offset": position.offset, "devices": reached}
