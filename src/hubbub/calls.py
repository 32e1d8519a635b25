"""Requests of the server to a client, and their answers: `request` out, `response` in, matched by ``id``."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from msgspec import Raw

from hubbub.errors import ClientError, ErrorCode, RequestFailed, SessionClosed
from hubbub.messages import Response, ServerRequest
from hubbub.session import Session, State

if TYPE_CHECKING:
    from hubbub.hub import Hub


class _Call:
    __slots__ = ("deadline", "future")

    def __init__(self, deadline: float) -> None:
        self.deadline = deadline
        self.future: asyncio.Future[Raw] = asyncio.get_running_loop().create_future()


class Calls:
    """The requests of a hub that wait for an answer.

    :ivar waiting: by session and id. Bounded: HUBBUB_MAX_REQUESTS of a session.
    """

    def __init__(self, hub: Hub) -> None:
        self._hub = hub
        self._count = 0
        self.waiting: dict[Session, dict[str, _Call]] = {}

    async def ask(self, session: Session, method: str, data: Any, timeout: float) -> Raw:
        """Ask a session's client for something; returns the answer's ``data`` in the session's codec.

        :param timeout: seconds, looked at twice a second.
        :raises TimeoutError: no answer came in time.
        :raises RequestFailed: the client said that it cannot, or too many requests wait for it already.
        :raises SessionClosed: it is gone, or went meanwhile.
        """
        hub = self._hub
        if session.state is not State.OPEN:
            raise SessionClosed("the session is over, or not signed in yet")
        calls = self.waiting.setdefault(session, {})
        if len(calls) >= hub.settings.max_requests:
            raise RequestFailed("too many requests wait for this client (HUBBUB_MAX_REQUESTS)")
        self._count += 1
        key = str(self._count)
        call = calls[key] = _Call(hub.clock.monotonic() + timeout)
        hub.reply(session, ServerRequest(id=key, method=method, data=data))
        if session.busy is not None:
            session.link.release()  # a full queue must not keep the answer out
        try:
            return await call.future
        finally:
            calls.pop(key, None)
            if not calls:
                self.waiting.pop(session, None)

    def takes(self, session: Session, message: str | bytes) -> bool:
        """Handle a message at once, ahead of those that wait for a running handler, if it is an answer."""
        if session not in self.waiting or self._hub.kind_of(message) != "response":
            return False
        self._hub.handle(session, message)
        return True

    def answered(self, session: Session, message: Response) -> None:
        """Handles `response`. An answer that comes too late, or to nothing, is refused."""
        call = self.waiting.get(session, {}).get(message.id)
        if call is None or call.future.done():
            raise ClientError(ErrorCode.NOT_FOUND, "no request with this id waits for an answer - at `$.id`")
        if message.error is not None:
            call.future.set_exception(RequestFailed(message.error))
        else:
            call.future.set_result(Raw(bytes(message.data)))  # a copy: the message's buffer is not kept

    def left(self, session: Session) -> None:
        """A session is over: whoever waits for it is told."""
        for call in list(self.waiting.pop(session, {}).values()):
            if not call.future.done():
                call.future.set_exception(SessionClosed("the session ended before it answered"))

    def sweep(self, monotonic: float) -> None:
        """End the waits whose time is up."""
        for calls in list(self.waiting.values()):
            for call in list(calls.values()):
                if call.deadline <= monotonic and not call.future.done():
                    call.future.set_exception(TimeoutError("the client did not answer in time"))
