"""The guide's ConnectionManager, one per room, on stock uvicorn.

Its `broadcast` is the guide's, a `send_text` per connection. Left out, in its favour: the token check, the JSON, and
"left the chat" to everybody whenever somebody goes. Added: the word "joined", by which the load generator knows.
"""

from collections import defaultdict

from fastapi import FastAPI, WebSocket, WebSocketDisconnect


class ConnectionManager:
    def __init__(self) -> None:
        self.active_connections: list[WebSocket] = []

    async def connect(self, websocket: WebSocket) -> None:
        await websocket.accept()
        self.active_connections.append(websocket)

    def disconnect(self, websocket: WebSocket) -> None:
        if websocket in self.active_connections:
            self.active_connections.remove(websocket)

    async def broadcast(self, message: str) -> None:
        disconnected = []
        for connection in self.active_connections:
            try:
                await connection.send_text(message)
            except Exception:
                disconnected.append(connection)
        for connection in disconnected:
            self.active_connections.remove(connection)


app = FastAPI()
managers: defaultdict[str, ConnectionManager] = defaultdict(ConnectionManager)


@app.websocket("/room/{room_id}/{user_id}")
async def room(websocket: WebSocket, room_id: str, user_id: str) -> None:
    manager = managers[room_id]
    await manager.connect(websocket)
    await websocket.send_text("joined")
    try:
        while True:
            data = await websocket.receive_text()
            await manager.broadcast(f"User {user_id}: {data}")
    except WebSocketDisconnect:
        manager.disconnect(websocket)


@app.websocket("/echo")
async def echo(websocket: WebSocket) -> None:
    await websocket.accept()
    try:
        while True:
            await websocket.send_text(await websocket.receive_text())
    except WebSocketDisconnect:
        pass
