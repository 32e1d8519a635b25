"""What is said in `live` rooms: it goes through the broker, whose short history is all its past."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from hashlib import blake2b
from typing import Final

from msgspec import Struct

from hubbub.errors import BrokerUnavailable, ClientError, ErrorCode
from hubbub.features.chat import asks, tells
from hubbub.features.chat.access import Act, Caller, check
from hubbub.features.chat.live import Live, Room
from hubbub.features.chat.tx import stamp
from hubbub.hub import Hub
from hubbub.messages import JSON, Position
from hubbub.session import Session, State
from hubbub.settings import ChannelOptions
from hubbub.stream import Publication

REMEMBERED: Final = 4096
"""Client ids that a `live` room remembers for idempotency; the oldest are forgotten first."""


class _Draft(Struct, gc=False):
    """A message on its way to the broker.

    :ivar once: its idempotency key there.
    """

    room: Room
    user_id: str
    client_id: str | None
    timestamp: str
    publication: Publication
    once: str | None


class Fleeting:
    """Says things in the live rooms of a hub.

    :param shared: whether there are other nodes: a retry may come to another one.
    """

    def __init__(self, hub: Hub, live: Live, options: ChannelOptions, shared: bool) -> None:
        self._hub = hub
        self._live = live
        self._options = options
        self._shared = shared
        self._submit: Callable[..., None] | None = getattr(hub.broker, "submit", None)

    @property
    def waits(self) -> bool:
        """Whether one has to wait for the broker: then :meth:`hand_in` is better than :meth:`say`."""
        return self._submit is not None

    async def say(self, room: Room, caller: Caller, message: asks.ChatMessage, ref: str | None) -> tells.ChatAck:
        """Say something; returns once it is in the room's history.

        :raises ClientError: it is refused.
        """
        draft = self._draft(room, caller, message, ref)
        if isinstance(draft, tells.ChatAck):
            return draft
        position = await self._hub.broker.publish(room.channel, draft.publication, self._options, once=draft.once)
        return self._said(draft, position, ref)

    def hand_in(self, session: Session, room: Room, caller: Caller, message: asks.ChatMessage) -> None:
        """Say something for a session, which is answered later: its next messages do not wait for that.

        :raises ClientError: it is refused.
        """
        assert self._submit is not None
        draft = self._draft(room, caller, message, message.ref)
        if isinstance(draft, tells.ChatAck):
            _answer(session, draft)
            return
        done = partial(self._handed_in, session, draft, message.ref)
        self._submit(room.channel, draft.publication, self._options, done, once=draft.once)

    def _handed_in(
        self, session: Session, draft: _Draft, ref: str | None, position: Position | None, error: Exception | None
    ) -> None:
        if position is not None:
            ack = self._said(draft, position, ref)
            if session.state is State.OPEN:
                _answer(session, ack)
        elif session.state is State.OPEN:
            self._hub.failed(session, None, error or BrokerUnavailable("no answer"), ref)

    def _draft(self, room: Room, caller: Caller, message: asks.ChatMessage, ref: str | None) -> _Draft | tells.ChatAck:
        user_id, client_id = caller.user_id, message.client_id
        now = self._hub.clock.time()
        check(room.row, None, caller, Act.WRITE, int(now * 1000))
        if message.reply_to or message.thread or message.files:
            raise ClientError(ErrorCode.FORBIDDEN, "this room keeps no messages: no replies, threads or attachments")
        once = None
        if client_id is not None:
            first = room.answered.get((user_id, client_id))
            if first is not None:
                return tells.ChatAck(first[0], first[1], room.id, client_id, ref=ref)
            if self._shared:
                once = _once(user_id, client_id)
        timestamp = stamp(int(now * 1000))
        data = _Data(user_id, message.message, timestamp, client_id)
        publication = Publication(room.head, b",%b}" % JSON.encode(data)[1:], None, user_id, None, now)
        return _Draft(room, user_id, client_id, timestamp, publication, once)

    def _said(self, draft: _Draft, position: Position, ref: str | None) -> tells.ChatAck:
        room = draft.room
        if draft.client_id is not None:
            room.answered[draft.user_id, draft.client_id] = (position.offset, draft.timestamp)
            if len(room.answered) > REMEMBERED:
                room.answered.popitem(last=False)
        if room.typing:
            self._live.said(room, draft.user_id)
        return tells.ChatAck(position.offset, draft.timestamp, room.id, draft.client_id, ref=ref)


class _Data(Struct, omit_defaults=True, gc=False):
    user_id: str
    message: str
    timestamp: str
    client_id: str | None = None


def _answer(session: Session, ack: tells.ChatAck) -> None:
    link = session.link
    link.send(link.lane.codec.encode(ack))


def _once(user_id: str, client_id: str) -> str:
    """A broker's idempotency key of a message: of bounded length, and nobody's is another's."""
    return blake2b(JSON.encode((user_id, client_id)), digest_size=16).hexdigest()
