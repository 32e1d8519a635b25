"""Rooms as channels of one's own, and the heartbeat: one timer for all connections, instead of a task for each.

Run it:  hubbub serve --app examples.rooms_heartbeat:app
Connect: ws://127.0.0.1:8000/ws?token=…  (POST /api/dev/login {"name": "alice"})
Send     {"type": "subscribe", "channel": "rooms:red", "presence": true}               and get  who is in the room
Send     {"type": "publish", "channel": "rooms:red", "data": {"text": "hi"}}           and all in the room get it, with "by"
Send     {"type": "unsubscribe", "channel": "rooms:red"}                               to leave; leaving without it works as well
Send     {"type": "heartbeat"}                                                         and get  {"type": "heartbeat_ack"}
Be silent: after 5 s the server pings (a WebSocket ping, which clients answer by themselves); after 2 s more it is over.
"""

from typing import Any

import msgspec
from fastapi import FastAPI

from hubbub import Hubbub, Session

app = FastAPI(title="Rooms and heartbeat")
hub = Hubbub(app, dev=True, heartbeat_interval=5, heartbeat_timeout=2)


class Line(msgspec.Struct):
    text: str


@hub.channel("rooms:{room}", history=100)
class Rooms:
    """What one says of a room: who may enter, and what may be said."""

    async def authorize(self, session: Session, room: str) -> bool:
        return room != "closed"

    async def on_publish(self, session: Session, room: str, line: Line) -> dict[str, Any]:
        return {"text": line.text, "by": session.user_id}
