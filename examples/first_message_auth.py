"""The token as the first message: it stands in no URL, and works from every browser.

Run it:  hubbub serve --app examples.first_message_auth:app
Connect: ws://127.0.0.1:8000/ws
Send     {"type": "auth", "token": "…"}   (POST /api/dev/login {"name": "alice"})   and get  {"type": "auth_success", …}
Anything else first gets  {"type": "error", "code": "authentication_required", …}  and close code 4401; so does silence for 5 s.
Then send {"type": "secret"}              and get  {"type": "secret.reply", "data": "the answer is 42, alice"}
Send     {"type": "time"} at any moment, also before auth.
"""

from datetime import UTC, datetime

from fastapi import FastAPI

from hubbub import Hubbub, Session

app = FastAPI(title="First message")
hub = Hubbub(app, dev=True, auth_timeout=5)


@hub.connected
async def welcome(session: Session) -> None:
    """Called once a session is signed in, before its first message is handled."""
    await session.send({"type": "welcome", "user_id": session.user_id})


@hub.on("secret")
async def secret(session: Session) -> str:
    return f"the answer is 42, {session.user_id}"


@hub.on("time", anonymous=True)
async def time() -> datetime:
    return datetime.now(UTC)
