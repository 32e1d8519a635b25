"""What all routes share: bounded bodies, errors as they are documented, who is calling."""

import hashlib
from collections.abc import Callable, Coroutine
from typing import Annotated, Any, TypeAlias

import msgspec
from fastapi import Depends, Query, Request, Response
from fastapi.routing import APIRoute
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from pydantic import BaseModel, Field
from starlette.requests import ClientDisconnect

from hubbub.admission import api_key_matches
from hubbub.auth import Grants, Identity, valid_user_id
from hubbub.errors import ClientError, ErrorCode
from hubbub.features.chat.access import Caller
from hubbub.features.chat.chat import SERVER
from hubbub.hub import Hub
from hubbub.limits import KeyedRate, Rate, Share

MAX_BODY = 1 << 20
"""Bytes of a request's body."""

bearer = HTTPBearer(auto_error=False, description="An API key, or a token (JWT).")
Credentials: TypeAlias = Annotated[HTTPAuthorizationCredentials | None, Depends(bearer)]
AsUser: TypeAlias = Annotated[
    str | None,
    Query(description="With an API key: the user for whom it speaks.", examples=["alice"]),
]


# -- errors


class ErrorDetail(BaseModel):
    code: str = Field(examples=["forbidden"])
    message: str


class ErrorOut(BaseModel):
    """What every refusal looks like, but for a wrong shape of the request where FastAPI reads it (422)."""

    error: ErrorDetail


def errors(**reasons: str) -> dict[int | str, dict[str, Any]]:
    """What a route may answer beside what it is for: ``errors(_403="why")``."""
    return {int(status[1:]): {"model": ErrorOut, "description": reason} for status, reason in reasons.items()}


CALLER_ERRORS = errors(_401="no key or token, or not a good one")
SERVER_ERRORS = CALLER_ERRORS | errors(_403="a token without the admin grant", _413="the request is too large")


# -- bodies


class BoundedRoute(APIRoute):
    """A route that reads no more than :data:`MAX_BODY`, and answers wrong JSON of any kind with an error."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()

        async def bounded(request: Request) -> Response:
            try:
                body = await _read(request)
            except ClientDisconnect:
                return Response(status_code=400)  # nobody is there to read it
            _check_json(body)
            return await handle(request)

        return bounded


async def _read(request: Request) -> bytes:
    """The whole body. The request keeps it for whoever asks next.

    :raises ClientError: it is too large.
    """
    chunks, size = [], 0
    async for chunk in request.stream():
        size += len(chunk)
        if size > MAX_BODY:
            raise ClientError(ErrorCode.TOO_LARGE, f"a request has at most {MAX_BODY} bytes")
        chunks.append(chunk)
    request._body = b"".join(chunks)
    return request._body


def _check_json(body: bytes) -> None:
    """Refuse what Python's own decoder lets through and no answer could show: NaN, lone surrogates, endless nesting.

    :raises ClientError: ``invalid_json``.
    """
    try:
        if body:
            msgspec.msgpack.encode(msgspec.json.decode(body))  # refuses integers that do not fit in 64 bits
    except (msgspec.DecodeError, RecursionError, ValueError, OverflowError) as error:
        text = "nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise ClientError(ErrorCode.INVALID_JSON, f"not valid JSON: {text[:200]}") from None


# -- who calls


class Callers:
    """Knows who is behind a request, and lets nobody ask too often: users by their rate, API keys by theirs."""

    def __init__(self, hub: Hub) -> None:
        self._hub = hub
        settings = hub.settings
        self._rate = _keyed(settings.user_rate_limit, settings.user_rate_burst)
        self._key_rate = _keyed(settings.api_rate_limit, settings.api_rate_burst)

    def identity(self, credentials: HTTPAuthorizationCredentials | None) -> Identity | None:
        """The user behind a token; None for an API key.

        :raises ClientError: neither.
        """
        if credentials is None:
            raise ClientError(
                ErrorCode.AUTHENTICATION_REQUIRED, "send Authorization: Bearer with an API key or a token"
            )
        return self.identity_of(credentials.credentials)

    def identity_of(self, secret: str) -> Identity | None:
        """The same of the token or key itself."""
        if api_key_matches(secret, self._hub.settings.api_keys):
            if self._key_rate is not None:
                name = _digest(secret)  # the engine must not know the key
                self._pay(self._key_rate, self._hub.quotas.keys, name, "of this API key")
            return None
        return self._hub.entrance.verifier.verify(secret, self._hub.clock.time())

    async def server(self, credentials: Credentials) -> None:
        """A dependency that lets in only who may use the server API.

        :raises ClientError: who may not.
        """
        identity = self.identity(credentials)
        if identity is not None and not identity.grants.admin:
            raise ClientError(ErrorCode.FORBIDDEN, "this takes an API key, or a token with the admin grant")

    async def caller(self, credentials: Credentials, as_user: AsUser = None) -> Caller:
        """A dependency: who gives a command to the chat. Users pay for it with their rate.

        :raises ClientError: nobody who may, or too often.
        """
        identity = self.identity(credentials)
        if identity is None:
            return speaking_for(as_user)
        if as_user is not None:
            raise ClientError(ErrorCode.FORBIDDEN, "only an API key speaks for others: leave `as_user` out")
        if self._rate is not None:
            self._pay(self._rate, self._hub.quotas.requests, identity.user_id, "of this user")
        return caller_of(identity)

    def _pay(self, rate: KeyedRate[str], share: Share | None, key: str, whose: str) -> None:
        now = self._hub.clock.monotonic()
        wait = rate.take(key, now)
        if not wait and share is not None:
            wait = share.take(key, now)
        if wait:
            self._hub.metrics.refused(ErrorCode.RATE_LIMITED)
            raise ClientError(ErrorCode.RATE_LIMITED, f"too many requests {whose}", retry_after=wait)


def _keyed(rate: float, burst: int) -> KeyedRate[str] | None:
    limit = Rate.per_second(rate, burst)
    return None if limit is None else KeyedRate(limit)


def _digest(secret: str) -> str:
    return hashlib.blake2b(
        secret.encode("utf-8", "surrogatepass"), digest_size=12, person=b"hubbub-api-key"
    ).hexdigest()


def caller_of(identity: Identity | None) -> Caller:
    """Who a token speaks for; None: an API key, and it speaks for nobody."""
    return SERVER if identity is None else Caller(identity.user_id, identity.grants, identity.grants.admin)


def speaking_for(user_id: str | None) -> Caller:
    """The server in the name of a user, or (None) in its own."""
    if user_id is None:
        return SERVER
    if not valid_user_id(user_id):
        text = "a user's id has 1 to 128 characters, none of them control ones - at `$.as_user`"
        raise ClientError(ErrorCode.INVALID_MESSAGE, text)
    return Caller(user_id, Grants(admin=True), True)


__all__ = [
    "CALLER_ERRORS",
    "MAX_BODY",
    "SERVER_ERRORS",
    "BoundedRoute",
    "Callers",
    "Credentials",
    "ErrorOut",
    "caller_of",
    "errors",
    "speaking_for",
]
