"""One client: who it is, what it is subscribed to, and whether it may say what it says now.

Sans-IO: messages and ``now`` go in, decisions come out. The hub acts on them.
"""

from __future__ import annotations

from collections.abc import Iterator
from enum import IntEnum
from typing import TYPE_CHECKING, Final

from hubbub.errors import ClientError, CloseCode, ErrorCode
from hubbub.limits import Rate, Share

if TYPE_CHECKING:
    from hubbub.auth import Identity
    from hubbub.ports import Link, Request


class State(IntEnum):
    """Where a session is in its life."""

    WAITING = 0  # connected, no token yet
    OPEN = 1  # authenticated
    CLOSED = 2


MOVES: Final = frozenset(
    {(State.WAITING, State.OPEN), (State.WAITING, State.CLOSED), (State.OPEN, State.OPEN), (State.OPEN, State.CLOSED)}
)
"""Every legal move; ``OPEN → OPEN`` is a fresh token. Any other is refused and changes nothing."""

NO_CHANNELS: Final[frozenset[str]] = frozenset()


class User:
    """What all sessions of one user share. It outlives them while its rate limit still has to hold."""

    __slots__ = ("id", "sessions", "tat")

    def __init__(self, user_id: str) -> None:
        self.id = user_id
        self.tat = 0.0
        self.sessions: tuple[Session, ...] = ()  # nearly always one: a tuple is the smallest container there is

    def add(self, session: Session) -> None:
        self.sessions = (*self.sessions, session)

    def discard(self, session: Session) -> None:
        self.sessions = tuple(other for other in self.sessions if other is not session)

    def __iter__(self) -> Iterator[Session]:
        return iter(self.sessions)


class Session:
    """One connection's session.

    :ivar id: unguessable; the client may give it back when it reconnects, to be recognised as the same device.
    :ivar channels: names of the channels that it is subscribed to (rooms are ``room:<id>``).
    :ivar watching: those of them whose presence it is told of; None for none.
    :ivar room: the room of the endpoint (``/ws/chat/{room_id}``), or None.
    :ivar declared: it said which session it continues, so it is known which publications were its own.
    :ivar handle: what the app holds of it (:class:`hubbub.toolkit.session.Session`), once it has asked.
    :ivar opening: its opening request, where the app has a dependency that wants it.
    :ivar started: monotonic seconds of its start.
    :ivar entered: monotonic seconds of its signing in, where there are other nodes.
    """

    __slots__ = (
        "_abuse",
        "_tat",
        "address",
        "busy",
        "channels",
        "declared",
        "entered",
        "handle",
        "id",
        "identity",
        "link",
        "opening",
        "room",
        "started",
        "state",
        "user",
        "warned",
        "watching",
    )

    def __init__(self, link: Link, address: str, started: float, room: str | None = None) -> None:
        self.link = link
        self.address = address
        self.started = started
        self.room = room
        self.id = ""
        self.identity: Identity | None = None
        self.user: User | None = None
        self.state = State.WAITING
        self.channels: set[str] | frozenset[str] | tuple[str, ...] = ()
        self.watching: set[str] | None = None
        self.busy: list[str | bytes] | None = None
        self.warned = False
        self.declared = False
        self.entered = 0.0
        self.handle: object | None = None
        self.opening: Request | None = None
        self._tat = 0.0
        self._abuse = 0.0

    def move(self, state: State) -> bool:
        """Change the state if that is a legal move; say whether it was."""
        if (self.state, state) not in MOVES:
            return False
        self.state = state
        return True

    @property
    def user_id(self) -> str:
        """The id of the signed-in user.

        :raises ClientError: ``authentication_required`` before that.
        """
        if self.user is None:
            raise ClientError(ErrorCode.AUTHENTICATION_REQUIRED, "send an auth message first")
        return self.user.id

    # -- subscriptions: a tuple while they are few, since most sessions have one or two

    def subscribe(self, channel: str, limit: int) -> None:
        """Note a subscription.

        :raises ClientError: ``too_many`` above ``limit`` (0 = off).
        """
        channels = self.channels
        if channel in channels:
            return
        if limit and len(channels) >= limit:
            raise ClientError(ErrorCode.TOO_MANY, f"a session may have at most {limit} subscriptions")
        if isinstance(channels, set):
            channels.add(channel)
        elif len(channels) < 4:
            self.channels = (*channels, channel)
        else:
            self.channels = {*channels, channel}

    def unsubscribe(self, channel: str) -> bool:
        """Forget a subscription; say whether there was one."""
        channels = self.channels
        if channel not in channels:
            return False
        if isinstance(channels, set):
            channels.discard(channel)
        else:
            self.channels = tuple(name for name in channels if name != channel)
        if self.watching is not None:
            self.watching.discard(channel)
        return True

    # -- limits

    def take(self, session_rate: Rate | None, user_rate: Rate | None, now: float, share: Share | None = None) -> None:
        """Pay for one message.

        :param share: this node's part in the user's rate, where it holds over many nodes.

        :raises ClientError: ``rate_limited`` with ``retry_after``.
        """
        if session_rate is not None:
            tat = session_rate.take(self._tat, now)
            if tat < 0:
                raise ClientError(ErrorCode.RATE_LIMITED, "too many messages in this session", retry_after=-tat)
            self._tat = tat
        if user_rate is not None and self.user is not None:
            tat = user_rate.take(self.user.tat, now)
            wait = -tat if tat < 0 else 0.0 if share is None else share.take(self.user.id, now)
            if wait > 0:
                raise ClientError(ErrorCode.RATE_LIMITED, "too many messages of this user", retry_after=wait)
            self.user.tat = tat

    def misbehaved(self, abuse_rate: Rate | None, now: float) -> CloseCode | None:
        """Count a refusal for rate or shape; returns the code to close with once there were too many."""
        if abuse_rate is None:
            return None
        tat = abuse_rate.take(self._abuse, now)
        if tat < 0:
            return CloseCode.RATE_LIMITED
        self._abuse = tat
        return None

    # -- time

    def expires_in(self, now: float) -> float | None:
        """Seconds until the token expires (``now`` in unix seconds), or None before there is one."""
        return None if self.identity is None else self.identity.expires - now
