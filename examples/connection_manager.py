"""The connection manager: a message to everybody, one to a person (on all devices), and who left.

Run it:  hubbub serve --app examples.connection_manager:app
Connect: two clients, as alice and bob, to ws://127.0.0.1:8000/ws?token=…  (POST /api/dev/login {"name": "alice"})
Send     {"type": "say", "text": "hi"}                       and both get  {"type": "publication", "data": "User alice: hi", …}
Send     {"type": "whisper", "to": "bob", "text": "psst"}    and bob gets  {"type": "whisper", "from": "alice", "text": "psst"}
Close one, and the other gets  … "data": "User bob left the chat"
The same with `--workers 2`: on whichever workers bob's devices are, all get the whisper, and he leaves with the last of them.
"""

from fastapi import FastAPI

from hubbub import ClientError, Hubbub, Session

app = FastAPI(title="Connection manager")
hub = Hubbub(app, dev=True)
lobby = hub.channel("lobby", subscribe="anyone", publish="server")


@hub.connected
async def connected(session: Session) -> None:
    await session.subscribe("lobby")  # was: manager.active_connections.append(websocket)


@hub.disconnected
async def disconnected(session: Session) -> None:
    # The last of their devices, on any worker. Two that go in the same moment may both be the last, and a worker that is
    # killed says nothing: where that matters, subscribe with presence, which is told once (rooms_heartbeat.py).
    if not await hub.online([session.user_id]):
        await lobby.publish(f"User {session.user_id} left the chat")


@hub.on("say")
async def say(session: Session, text: str) -> None:
    """Everybody gets it, and nobody waits for a slow one."""
    await lobby.publish(f"User {session.user_id}: {text}")


@hub.on("whisper")
async def whisper(session: Session, to: str, text: str) -> None:
    if not await hub.online([to]):
        raise ClientError("not_here", f"{to} is not here")
    # was: await manager.send_personal_message(text, websocket)
    await hub.send(to, {"type": "whisper", "from": session.user_id, "text": text})
