"""Coming in: tokens, sessions per user and address, deadlines of a session's life, revocation."""

from __future__ import annotations

import math
import re
import secrets
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Final

from hubbub.admission import check_origins, find_token, origin_allowed
from hubbub.auth import TokenVerifier
from hubbub.errors import AuthenticationFailed, ClientError, CloseCode, ErrorCode
from hubbub.limits import Slots, address_key
from hubbub.messages import Auth, AuthSuccess, Error, TokenExpiring
from hubbub.ports import Link, Request
from hubbub.session import Session, State, User

if TYPE_CHECKING:
    from hubbub.hub import Hub

REMEMBER_REVOCATION: Final = 400 * 86_400.0
"""Seconds for which a revoked `jti` is remembered where no live session says when its token ends."""
SESSION_ID: Final = re.compile(r"[A-Za-z0-9_-]{16,64}")


class Entrance:
    """Lets sessions in, signs them in, and shows them out when their token ends.

    :ivar verifier: checks tokens, and knows which were revoked.
    :ivar people: how many users are signed in on this node.
    :ivar returned: told of a user's device that came back to this node with the id of an earlier session: that may
        hang on another node.
    :ivar entered: told of each session that has signed in.
    """

    def __init__(self, hub: Hub) -> None:
        self._hub = hub
        self._settings = hub.settings
        self._clock = hub.clock
        check_origins(hub.settings.origins)
        self.verifier = TokenVerifier(hub.settings)
        self._addresses: Slots[str] = Slots()
        self._waiting: dict[Session, float] = {}
        self._expiries: dict[int, set[Session]] = {}
        self.people = 0
        self.returned: Callable[[str, str], None] | None = None
        self.entered: Callable[[Session], None] | None = None

    def origin_ok(self, request: Request) -> bool:
        """Whether a page of the request's origin may connect."""
        origin = host = None
        for name, value in request.headers:
            if name == b"origin":
                origin = value
            elif name == b"host":
                host = value
        return origin_allowed(origin, host, request.scheme, self._settings.origins)

    def open(self, link: Link, request: Request, room: str | None = None) -> Session:
        """Start a session on an accepted connection; sign it in if the request carried a token."""
        now = self._clock.monotonic()
        address = address_key(request.address)
        session = Session(link, address, now, room)
        link.session = session
        if self._hub.keep_openings:
            session.opening = request
        self._hub.sessions[session] = None
        self._hub.metrics.opened += 1
        # a Unix socket has no address: all come from the same proxy
        if address and not self._addresses.acquire(address, self._settings.max_connections_per_address):
            session.address = ""  # nothing to give back
            self._hub.metrics.limited("address")
            self._hub.reply(session, _error(ErrorCode.TOO_MANY, "too many connections from this address", 30.0))
            self._hub.close(session, CloseCode.RATE_LIMITED, "too many connections from this address")
            return session
        token = find_token(request.headers, request.query_string, request.subprotocols, self._settings.cookie_name)
        if token is None:
            if self._settings.auth_timeout:
                self._waiting[session] = now + self._settings.auth_timeout
            return session
        try:
            self.sign_in(session, token.value, _query(request.query_string, b"session"))
        except ClientError as error:
            self._hub.refuse_message(session, error, None)
        return session

    def sign_in(self, session: Session, token: str, previous: str | None, message: Auth | None = None) -> None:
        """Check a token, then open the session or, on an open one, take over its fresh token.

        :raises ClientError: the token is not good, is another user's, or the user has too many sessions.
        """
        now = self._clock.time()
        fresh = session.state is not State.OPEN
        try:
            identity = self.verifier.verify(token, now)
        except AuthenticationFailed as error:
            self._hub.metrics.auth_failed(error.reason)
            if session.state is State.OPEN:
                error.close = None  # the token that it has is still good
            raise
        if session.state is State.OPEN:
            if session.user is None or identity.user_id != session.user.id:
                raise ClientError(ErrorCode.FORBIDDEN, "the token is another user's: open another connection")
            self._forget_expiry(session)
        else:
            self._enter(session, identity.user_id, previous)
        session.identity = identity
        session.warned = False
        self._expiries.setdefault(self._minute(identity.expires), set()).add(session)
        reply = AuthSuccess(
            user_id=identity.user_id,
            session=session.id,
            heartbeat=self._settings.heartbeat_interval,
            token_expires=identity.expires,
            ref=message.ref if message is not None else None,
        )
        self._hub.reply(session, reply)
        if fresh:
            hub = self._hub
            if hub.greeters:
                hub.runs.start(session, message, self._open(session), unbounded=True)  # an app's code wants a task
            elif hub.openers:
                hub.runs.step(session, message, self._open(session))

    async def _open(self, session: Session) -> None:
        for opener in (*self._hub.openers, *self._hub.greeters):
            await opener(session)

    def _enter(self, session: Session, user_id: str, previous: str | None) -> None:
        user = self._hub.users.get(user_id) or User(user_id)
        declared = previous is not None and SESSION_ID.fullmatch(previous) is not None
        if declared and previous is not None:
            self.replace(user, previous)
        limit = self._settings.max_connections_per_user
        if limit and len(user.sessions) >= limit:
            self._hub.metrics.limited("user")
            raise too_many(limit)
        if not session.move(State.OPEN):
            raise ClientError(ErrorCode.CONFLICT, "the session is over")
        session.id = previous if declared and previous is not None else secrets.token_urlsafe(16)
        # with other nodes it cannot be told from here whether a publisher lives on: so none is taken for this one come back
        session.declared = declared or bool(self._hub.cluster.others)
        self._hub.users[user_id] = user
        self.people += not user.sessions
        user.add(session)
        session.user = user
        if len(user.sessions) == 1:
            self._hub.inlet.came(user_id)
        self._waiting.pop(session, None)
        if declared and self.returned is not None:
            self.returned(user_id, session.id)
        if self.entered is not None:
            session.entered = self._clock.monotonic()
            self.entered(session)

    def replace(self, user: User, session_id: str, before: float = math.inf) -> None:
        """A device is back before it was noticed that it was gone: end the session that it had.

        :param before: only one that began before then (monotonic seconds), or at that moment.
        """
        for other in user.sessions:
            if other.id == session_id and other.started <= before:
                self._hub.close(other, CloseCode.REPLACED, "replaced by a newer connection")
                self._hub.leave(other)

    def _minute(self, expires: float) -> int:
        return int((expires - self._settings.token_warning) // 60)

    def _forget_expiry(self, session: Session) -> None:
        if session.identity is not None:
            minute = self._minute(session.identity.expires)
            sessions = self._expiries.get(minute)
            if sessions is not None:
                sessions.discard(session)
                if not sessions:
                    del self._expiries[minute]

    def revoke(
        self, *, user_id: str | None = None, token_id: str | None = None, at: float | None = None, until: float = 0.0
    ) -> int:
        """Refuse a user's tokens issued until now, or one token, on this node; close (4401) the sessions that live on
        them. Returns how many. :class:`~hubbub.revocation.Revocations` does so on all nodes.

        :param at: unix seconds; tokens of the user that were issued before then are refused. None: now.
        :param until: unix seconds until when the token is to be refused. 0: :meth:`end_of` it.
        """
        self.note_revoked(user_id=user_id, token_id=token_id, at=at, until=until)
        return self.close_revoked(self._hub.users.get(user_id or "", ()) if token_id is None else self._hub.sessions)

    def note_revoked(self, *, user_id: str | None, token_id: str | None, at: float | None, until: float = 0.0) -> bool:
        """Refuse tokens from now on, as :meth:`revoke` does, without looking who is here. False: they were already."""
        now = self._clock.time()
        if token_id is not None:
            return self.verifier.revoke_token(token_id, now, until or self.end_of(token_id))
        if user_id is not None:
            return self.verifier.revoke_user(user_id, now if at is None else at)
        return False

    def end_of(self, token_id: str) -> float:
        """When a token ends, in unix seconds, as far as is known here: rather too late than too early."""
        ends = [s.identity.expires for s in self._hub.sessions if s.identity and s.identity.token_id == token_id]
        return max([self._clock.time() + REMEMBER_REVOCATION, *ends])

    def close_revoked(self, candidates: Iterable[Session]) -> int:
        """Close those of some sessions whose token was revoked. Returns how many."""
        count = 0
        for session in list(candidates):
            if session.identity is not None and self.verifier.is_revoked(session.identity):
                self._hub.reply(session, _error(ErrorCode.AUTHENTICATION_FAILED, "the token was revoked"))
                self._hub.close(session, CloseCode.UNAUTHORIZED, "revoked")
                count += 1
        return count

    def left(self, session: Session) -> None:
        """A session is over: forget its deadlines, and its user unless the rate limit still has to hold."""
        self._waiting.pop(session, None)
        self._forget_expiry(session)
        user = session.user
        if user is not None:
            user.discard(session)
            self.people -= not user.sessions
            if not user.sessions and user.tat <= self._clock.monotonic():
                self._hub.users.pop(user.id, None)

    def gone(self, session: Session) -> None:
        """Its connection is gone: give its place back."""
        if session.address:
            self._addresses.release(session.address)

    def sweep(self, monotonic: float, now: float) -> None:
        """Close who brought no token in time, warn and close whose token ends."""
        self._sweep_waiting(monotonic)
        self._sweep_expiries(now)

    def forget(self, monotonic: float, now: float) -> None:
        """About once a minute: drop revocations and users that no longer matter."""
        self.verifier.sweep(now)
        users = self._hub.users
        for user in [user for user in users.values() if not user.sessions and user.tat <= monotonic]:
            del users[user.id]

    def _sweep_waiting(self, monotonic: float) -> None:
        for session, deadline in list(self._waiting.items()):
            if deadline > monotonic:
                break  # all wait equally long, so the rest came later
            del self._waiting[session]
            self._hub.metrics.auth_failed("timeout")
            self._hub.reply(session, _error(ErrorCode.AUTHENTICATION_TIMEOUT, "no token came in time"))
            self._hub.close(session, CloseCode.UNAUTHORIZED, "authentication timeout")

    def _sweep_expiries(self, now: float) -> None:
        due = int(now // 60)
        for minute in [minute for minute in self._expiries if minute <= due]:
            for session in list(self._expiries[minute]):
                left = session.expires_in(now)
                if left is None or left > self._settings.token_warning:
                    continue
                if left <= -self._settings.token_leeway:
                    self._forget_expiry(session)
                    self._hub.metrics.auth_failed("expired_live")
                    self._hub.reply(session, _error(ErrorCode.AUTHENTICATION_FAILED, "the token has expired"))
                    self._hub.close(session, CloseCode.UNAUTHORIZED, "token expired")
                elif left > 0 and not session.warned:
                    session.warned = True
                    self._hub.reply(session, TokenExpiring(in_=round(left, 3)))


def too_many(limit: int) -> ClientError:
    """What a user is told who has as many sessions as are allowed; the new one ends with it."""
    return ClientError(
        ErrorCode.TOO_MANY,
        f"a user may have at most {limit} connections",
        close=CloseCode.RATE_LIMITED,
        retry_after=30.0,
    )


def _error(code: ErrorCode, message: str, retry_after: float | None = None) -> Error:
    return Error(code=code, message=message, retry_after=retry_after)


def _query(query_string: bytes, name: bytes) -> str | None:
    for part in query_string.split(b"&"):
        key, _, value = part.partition(b"=")
        if key == name:
            return value.decode("ascii", "replace")
    return None
