"""What can go wrong, as data: the error codes of the wire, the close codes, and the exception tree.

Two trees. :class:`ClientError` is the *client's* fault or a refusal it must be told about: it becomes an ``error``
message, and a close frame when it carries a ``close`` code. :class:`HubbubError` is *ours* or the operator's.
"""

from __future__ import annotations

from enum import IntEnum, StrEnum


class ErrorCode(StrEnum):
    """The ``code`` of an ``error`` message."""

    INVALID_JSON = "invalid_json"
    INVALID_MESSAGE = "invalid_message"
    UNKNOWN_TYPE = "unknown_type"
    AUTHENTICATION_REQUIRED = "authentication_required"
    AUTHENTICATION_FAILED = "authentication_failed"
    AUTHENTICATION_TIMEOUT = "authentication_timeout"
    FORBIDDEN = "forbidden"
    NOT_FOUND = "not_found"
    NOT_JOINED = "not_joined"
    NOT_SUBSCRIBED = "not_subscribed"
    RATE_LIMITED = "rate_limited"
    SLOW_MODE = "slow_mode"
    TOO_LARGE = "too_large"
    TOO_MANY = "too_many"
    CONFLICT = "conflict"
    RESYNC_REQUIRED = "resync_required"
    BUSY = "busy"
    UNAVAILABLE = "unavailable"
    INTERNAL = "internal"


class CloseCode(IntEnum):
    """WebSocket close codes: RFC 6455 section 7.4.1, and our own in the 4000 range reserved for applications."""

    NORMAL = 1000
    GOING_AWAY = 1001
    PROTOCOL_ERROR = 1002
    UNSUPPORTED_DATA = 1003
    NO_STATUS = 1005  # never on the wire: the peer's close frame had no code
    ABNORMAL = 1006  # never on the wire: the connection was lost without a close frame
    INVALID_DATA = 1007
    POLICY_VIOLATION = 1008
    TOO_BIG = 1009
    INTERNAL_ERROR = 1011
    SERVICE_RESTART = 1012
    UNAUTHORIZED = 4401
    FORBIDDEN = 4403
    NOT_FOUND = 4404
    SLOW = 4408
    REPLACED = 4409
    HEARTBEAT_LOST = 4410
    RATE_LIMITED = 4429
    OVER_CAPACITY = 4503

    @property
    def comes_back(self) -> bool:
        """True where a client should reconnect by itself (after a delay, or with a new token)."""
        return self in _COMES_BACK


_COMES_BACK = frozenset(
    {
        CloseCode.GOING_AWAY,
        CloseCode.ABNORMAL,
        CloseCode.INTERNAL_ERROR,
        CloseCode.SERVICE_RESTART,
        CloseCode.UNAUTHORIZED,
        CloseCode.SLOW,
        CloseCode.HEARTBEAT_LOST,
        CloseCode.RATE_LIMITED,
        CloseCode.OVER_CAPACITY,
    }
)


class HubbubError(Exception):
    """Root of everything that Hubbub raises on its own account."""


class ConfigurationError(HubbubError):
    """A setting, key or declaration that makes no sense. The message says what to change. Raised at start, never later."""


class SessionClosed(HubbubError):
    """The session is over (or not signed in yet), so nothing can be asked of its client."""


class RequestFailed(HubbubError):
    """A client answered a `request` with an error, or could not be asked."""


class BrokerUnavailable(HubbubError):
    """The engine behind a channel did not answer; nothing is known to have been published."""


class ClientError(HubbubError):
    """A request that is refused. It costs its sender an ``error`` message and disturbs nobody else.

    :param code: what a program reads; an app may have codes of its own beside those of :class:`ErrorCode`.
    :param message: what a person reads; never contains a token, a traceback or another user's data.
    :param close: the close code to end the connection with, or None to keep it.
    :param retry_after: seconds after which the same request may succeed.
    """

    __slots__ = ("close", "code", "message", "retry_after")

    def __init__(
        self,
        code: ErrorCode | str,
        message: str,
        *,
        close: CloseCode | int | None = None,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(code, message)
        self.code = code
        self.message = message
        self.close = close
        self.retry_after = retry_after

    def __str__(self) -> str:
        return f"{self.code}: {self.message}"


class AuthenticationFailed(ClientError):
    """The token is not good. ``reason`` is a short label for the metric (``expired``, ``signature``, …)."""

    __slots__ = ("reason",)

    def __init__(self, message: str, *, reason: str) -> None:
        super().__init__(ErrorCode.AUTHENTICATION_FAILED, message, close=CloseCode.UNAUTHORIZED)
        self.reason = reason


class StoreUnavailable(ClientError):
    """The store cannot write or read now: its disk is full, it is locked, or it does not answer. Nothing was changed,
    unless the message says that this is not known."""

    __slots__ = ()

    def __init__(self, message: str, retry_after: float = 1.0) -> None:
        super().__init__(ErrorCode.UNAVAILABLE, message, retry_after=retry_after)


HTTP_STATUS: dict[str, int] = {
    ErrorCode.INVALID_JSON: 400,
    ErrorCode.INVALID_MESSAGE: 422,
    ErrorCode.UNKNOWN_TYPE: 400,
    ErrorCode.AUTHENTICATION_REQUIRED: 401,
    ErrorCode.AUTHENTICATION_FAILED: 401,
    ErrorCode.AUTHENTICATION_TIMEOUT: 401,
    ErrorCode.FORBIDDEN: 403,
    ErrorCode.NOT_FOUND: 404,
    ErrorCode.NOT_JOINED: 403,
    ErrorCode.NOT_SUBSCRIBED: 403,
    ErrorCode.RATE_LIMITED: 429,
    ErrorCode.SLOW_MODE: 429,
    ErrorCode.TOO_LARGE: 413,
    ErrorCode.TOO_MANY: 429,
    ErrorCode.CONFLICT: 409,
    ErrorCode.RESYNC_REQUIRED: 410,
    ErrorCode.BUSY: 503,
    ErrorCode.UNAVAILABLE: 503,
    ErrorCode.INTERNAL: 500,
}
"""The HTTP status that the REST API answers for each error code."""
