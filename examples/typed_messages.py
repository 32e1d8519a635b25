"""Different message types: a function for each, whose signature is the schema. There is no `json.loads`, and no `if`.

Run it:  hubbub serve --app examples.typed_messages:app
Connect: ws://127.0.0.1:8000/ws?token=…  (POST /api/dev/login {"name": "alice"} gives one)
Send     {"type": "ping"}                                          and get  {"type": "pong"} (Hubbub's own)
Send     {"type": "chat", "text": "hi", "ref": "1"}                and get  {"type": "chat.sent", "ref": "1", "length": 2}
Send     {"type": "remind", "title": "Tea", "minutes": 3}          and get  {"type": "remind.reply", "data": "Tea in 3 minutes"}
Send     {"type": "chat", "text": 1}, {"type": "dance"} or {       and get  errors that say what is wrong, and where
"""

from typing import Annotated

import msgspec
from fastapi import FastAPI
from pydantic import Field

from hubbub import ClientError, Hubbub, Session

app = FastAPI(title="Typed messages")
hub = Hubbub(app, dev=True)


class Chat(msgspec.Struct):
    text: Annotated[str, msgspec.Meta(min_length=1, max_length=1000)]


class Sent(msgspec.Struct):
    length: int


@hub.on("chat", reply="chat.sent")
async def chat(session: Session, message: Chat) -> Sent:
    """A message as a msgspec Struct (or a pydantic model, a dataclass, a TypedDict, a dict)."""
    if "spam" in message.text:
        raise ClientError("spam", f"not here, {session.user_id}")  # a code of the app's own
    return Sent(len(message.text))


@hub.on("remind")
async def remind(title: str, minutes: Annotated[int, Field(gt=0, le=60)] = 5) -> str:
    """A message as single fields; pydantic checks them."""
    return f"{title} in {minutes} minutes"
