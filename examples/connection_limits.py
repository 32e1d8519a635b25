"""Connection limits: in all, per user, per address. Nothing is built for a connection that is one too many.

Run it:  hubbub serve --app examples.connection_limits:app
Connect: three times as alice to ws://127.0.0.1:8000/ws?token=…: the third gets  {"type": "error", "code": "too_many", …}
         and close code 4429. The fifth connection of all gets HTTP 503 before it is one.
GET /limits tells how full it is.
With `--workers 2` a user still has two sessions, on all workers together: a third that comes to another worker is let in, and
closed within 0.1 s, as above. `max_connections` is what one process can hold, so each worker has four: its fifth gets the 503.
GET /limits tells of the worker that answers; what all have together is in GET /health.
"""

from fastapi import FastAPI

from hubbub import Hubbub

app = FastAPI(title="Connection limits")
hub = Hubbub(app, dev=True, max_connections=4, max_connections_per_user=2, max_message_size=1024)


@app.get("/limits")
async def limits() -> dict[str, int]:
    return {"connections": len(hub.hub.sessions), "of": hub.settings.max_connections}
