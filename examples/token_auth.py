"""Token in the query, and a login of one's own that issues it.

Run it:  hubbub serve --app examples.token_auth:app
Log in:  curl -X POST 'http://127.0.0.1:8000/login?name=alice&password=correct+horse'    gives  {"token": "…"}
Connect: ws://127.0.0.1:8000/ws?token=…             and get  {"type": "auth_success", "user_id": "alice", …}
With a wrong token you get an error, then close code 4401; the token is never written to a log.
Send     {"type": "whoami"}                         and get  {"type": "whoami.reply", "user_id": "alice", "admin": false}
"""

import secrets

import msgspec
from fastapi import FastAPI, HTTPException

from hubbub import Hubbub, Identity

app = FastAPI(title="Token in the query")
# The guide's secret stands in the source. This one is HUBBUB_SECRET, or (in development) made once and kept in .hubbub/secret:
# all workers have the same, so the tokens of one are good on the others.
hub = Hubbub(app, dev=True)


class Me(msgspec.Struct):
    user_id: str
    admin: bool


@app.post("/login")
async def login(name: str, password: str) -> dict[str, str]:
    if not secrets.compare_digest(password, "correct horse"):  # your own way of knowing people
        raise HTTPException(401, "wrong name or password")
    return {"token": hub.token(name, ttl=900)}


@hub.on("whoami")
async def whoami(identity: Identity) -> Me:
    return Me(identity.user_id, identity.grants.admin)
