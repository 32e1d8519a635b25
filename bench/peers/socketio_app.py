"""python-socketio on stock uvicorn: rooms by its own `enter_room`, publishing by `emit(room=…)`, no token check.

It has no types and no dependencies: `say` validates by hand, and answers with an ack, as its users do.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import socketio
from pydantic import BaseModel


class Say(BaseModel):
    text: str


class Said(BaseModel):
    text: str
    by: str


@asynccontextmanager
async def get_db() -> AsyncIterator[object]:
    yield object()


server = socketio.AsyncServer(async_mode="asgi", transports=["websocket"])
app = socketio.ASGIApp(server)


async def join(sid: str, room: str) -> None:
    await server.enter_room(sid, room)
    await server.emit("joined", to=sid)


async def say(sid: str, room: str, text: str) -> None:
    await server.emit("message", text, room=room)


async def echo(sid: str, text: str) -> None:
    await server.emit("echo", text, to=sid)


async def typed(sid: str, data: Any) -> dict[str, Any]:
    return Said(text=Say.model_validate(data).text, by=sid).model_dump()


async def typed_with_dependency(sid: str, data: Any) -> dict[str, Any]:
    message = Say.model_validate(data)
    async with get_db():
        return Said(text=message.text, by=sid).model_dump()


for event, handler in {
    "join": join,
    "publish": say,
    "echo": echo,
    "say": typed,
    "say_dep": typed_with_dependency,
}.items():
    server.on(event, handler)
