"""Chat rooms: the built-in ones, made from code, and who is in them.

Run it:  hubbub serve --app examples.chat:app
Connect: ws://127.0.0.1:8000/ws/chat/lobby?token=…   (POST /api/dev/login {"name": "alice"})
         and get  auth_success, room_joined (with who is there, and what you missed), user_joined
Send     {"type": "chat_message", "message": "hi"}          and everybody in the room gets  {"type": "message", …}
Send     {"type": "join_room", "room_id": "kitchen"}, and then the same with typing, and with leave_room
POST /rooms/lobby/announce?text=… and everybody in it hears that, as from the house. All of it is there after a restart.
"""

from fastapi import FastAPI

from hubbub import Hubbub

app = FastAPI(title="Chat rooms")
hub = Hubbub(app, dev=True)
hub.declare_room("lobby", "The lobby", topic="Come in")
hub.declare_room("kitchen", "The kitchen")


@app.get("/rooms")
async def rooms() -> list[str]:
    return [room.room_id for room in await hub.rooms()]


@app.post("/rooms/{room_id}/announce")
async def announce(room_id: str, text: str) -> int:
    """Says something in a room, as from the house; returns the message's number in it."""
    return await hub.say(room_id, text, user_id="house")
