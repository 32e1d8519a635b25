"""Rate limiting: the guide's "10 messages in 60 seconds" for each user, and a stricter one for a dear message.

Run it:  hubbub serve --app examples.rate_limiting:app
Connect: ws://127.0.0.1:8000/ws?token=…  (POST /api/dev/login {"name": "alice"})
Send     {"type": "ping"} eleven times: the eleventh gets  {"type": "error", "code": "rate_limited", "retry_after": …}
Send     {"type": "report"} twice:      the second gets the same, from a dependency of the app's own.
With `--workers 2` the ten messages are of the user on all workers together. Of many that come at once more may pass, before the
workers know of each other; they are paid for afterwards. The report is of one connection, whichever worker has it: one per user
and minute would have to be kept in a database.
"""

from time import monotonic

from fastapi import Depends, FastAPI

from hubbub import ClientError, ErrorCode, Hubbub, Session

app = FastAPI(title="Rate limiting")
hub = Hubbub(app, dev=True, user_rate_limit=10 / 60, user_rate_burst=10)


async def once_a_minute(session: Session) -> None:
    """A dependency: it runs before the handler, and may refuse. `session.state` lives as long as the connection."""
    last = getattr(session.state, "last_report", -60.0)
    wait = last + 60 - monotonic()
    if wait > 0:
        raise ClientError(ErrorCode.RATE_LIMITED, "one report a minute", retry_after=wait)
    session.state.last_report = monotonic()


@hub.on("report", dependencies=[Depends(once_a_minute)])
async def report() -> str:
    return "all is well"
