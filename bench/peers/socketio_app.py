"""python-socketio on stock uvicorn: rooms by its own `enter_room`, publishing by `emit(room=…)`, no token check."""

import socketio

server = socketio.AsyncServer(async_mode="asgi", transports=["websocket"])
app = socketio.ASGIApp(server)


async def join(sid: str, room: str) -> None:
    await server.enter_room(sid, room)
    await server.emit("joined", to=sid)


async def say(sid: str, room: str, text: str) -> None:
    await server.emit("message", text, room=room)


async def echo(sid: str, text: str) -> None:
    await server.emit("echo", text, to=sid)


for handler in (join, say, echo):
    server.on(handler.__name__, handler)
