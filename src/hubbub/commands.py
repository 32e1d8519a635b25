"""The messages that every client may send, whatever the features: auth, heartbeats, channels.

A handler is called with the session and the decoded message. It raises :class:`ClientError` to refuse, and returns a
coroutine where it may have to wait (see :meth:`Runs.step`: with the memory broker it never does).
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Sequence
from functools import lru_cache, partial
from hashlib import blake2b
from typing import Any, TypeAlias

import msgspec

from hubbub import messages
from hubbub.comings import present
from hubbub.errors import BrokerUnavailable, ClientError, ErrorCode
from hubbub.hub import PERSONAL, Hub
from hubbub.messages import CHANNEL_NAME
from hubbub.ports import Topic
from hubbub.presence import Roster
from hubbub.session import Session, State
from hubbub.settings import ChannelOptions
from hubbub.stream import Publication


class Commands:
    """Handlers of the hub's own messages."""

    def __init__(self, hub: Hub) -> None:
        self.hub = hub
        self._submit: Callable[..., None] | None = getattr(hub.broker, "submit", None)
        hub.route(messages.Auth, self.auth, anonymous=True)
        hub.route(messages.Ping, self.ping)
        hub.route(messages.Heartbeat, self.heartbeat)
        hub.route(messages.Subscribe, self.subscribe)
        hub.route(messages.Unsubscribe, self.unsubscribe)
        hub.route(messages.Publish, self.publish)
        hub.route(messages.GetHistory, self.history)
        hub.route(messages.GetPresence, self.presence)
        hub.route(messages.Response, hub.calls.answered)

    def auth(self, session: Session, message: messages.Auth) -> None:
        self.hub.entrance.sign_in(session, message.token, message.session, message)

    def ping(self, session: Session, message: messages.Ping) -> None:
        self.hub.reply(session, messages.Pong(ref=message.ref))

    def heartbeat(self, session: Session, message: messages.Heartbeat) -> None:
        self.hub.reply(session, messages.HeartbeatAck(ref=message.ref))

    def subscribe(self, session: Session, message: messages.Subscribe) -> Coroutine[Any, Any, None] | None:
        return self._with_app(session, message, self._subscribe(session, message))

    async def _subscribe(self, session: Session, message: messages.Subscribe) -> None:
        await self._admit(session, message.channel)
        since = message.since
        if since is not None and since.offset < self._floor(session, message.channel):
            since = None  # what was said before is not for this session
        await self.hub.subscriptions.subscribe(session, message.channel, since, message.presence, message.ref)

    def _with_app(
        self,
        session: Session,
        message: messages.Subscribe | messages.Publish | messages.GetHistory | messages.GetPresence,
        work: Coroutine[Any, Any, None],
    ) -> Coroutine[Any, Any, None] | None:
        """What may run code of the app needs a task; the rest goes as far as it can at once."""
        if self.hub.topic_of(message.channel) is None:
            return work
        self.hub.runs.start(session, message, work)
        return None

    async def unsubscribe(self, session: Session, message: messages.Unsubscribe) -> None:
        if message.channel.startswith("room:"):
            raise ClientError(ErrorCode.FORBIDDEN, "leave a room with leave_room")
        if not self.hub.subscriptions.end(session, message.channel, None, message.ref):
            raise ClientError(ErrorCode.NOT_SUBSCRIBED, "there is no such subscription")

    def publish(self, session: Session, message: messages.Publish) -> Coroutine[Any, Any, None] | None:
        topic = self.hub.topic_of(message.channel)
        if topic is None or not topic.edits:
            if self._submit is None:
                return self._publish(session, message)
            self._hand_in(session, message, self._submit)
            return None
        message.data = msgspec.Raw(bytes(message.data))  # a copy: the message's buffer is not kept
        self.hub.runs.start(session, message, self._publish(session, message, topic))
        return None

    def _hand_in(self, session: Session, message: messages.Publish, submit: Callable[..., None]) -> None:
        """Over an engine, the session's next messages do not wait for the answer to this one."""
        hub, name = self.hub, message.channel
        options = hub.options_for(name)
        self._may_publish(session, name, options)
        data = messages.plain_data(message.data, is_json=session.link.lane.codec.is_json)
        publication, once = self._made(session, message, data, options)
        submit(
            name,
            publication,
            options,
            partial(self._handed_in, session, message.ref),
            once=once,
            version=message.version,
        )

    def _made(
        self, session: Session, message: messages.Publish, data: bytes, options: ChannelOptions
    ) -> tuple[Publication, str | None]:
        """What a session publishes, and its idempotency key at the broker."""
        user_id = session.user_id
        publication = publication_of(
            message.channel,
            data,
            options,
            key=message.key,
            user=user_id,
            origin=session.id if message.exclude_self else None,
            at=self.hub.clock.time(),
        )
        return publication, once_key(message.idempotency_key, user_id)

    def _handed_in(
        self, session: Session, ref: str | None, position: messages.Position | None, error: Exception | None
    ) -> None:
        if session.state is not State.OPEN:
            return
        if error is not None or position is None:
            self.hub.failed(session, None, error or BrokerUnavailable("no answer"), ref)
            return
        link = session.link
        link.send(link.lane.codec.encode(messages.PublishAck(position.offset, position.epoch, ref=ref)))

    async def _publish(self, session: Session, message: messages.Publish, topic: Topic | None = None) -> None:
        hub, name = self.hub, message.channel
        options = hub.options_for(name)
        self._may_publish(session, name, options)
        link = session.link
        codec = link.lane.codec
        if topic is None:
            data = messages.plain_data(message.data, is_json=codec.is_json)
        else:
            data = await topic.edit(session, name, message.data)
        publication, once = self._made(session, message, data, options)
        position = await hub.broker.publish(name, publication, options, once=once, version=message.version)
        link.send(codec.encode(messages.PublishAck(position.offset, position.epoch, ref=message.ref)))

    def history(self, session: Session, message: messages.GetHistory) -> Coroutine[Any, Any, None] | None:
        return self._with_app(session, message, self._history(session, message))

    async def _history(self, session: Session, message: messages.GetHistory) -> None:
        hub, name = self.hub, message.channel
        options = await self._admit(session, name)
        past = hub.past_of(name)
        position, page, more = await past.history(name, message.after, message.before, message.limit, options)
        floor = self._floor(session, name)
        if page and page[0].offset <= floor:
            page, more = [publication for publication in page if publication.offset > floor], False
        codec = session.link.lane.codec
        reply = messages.HistoryReply(
            channel=name,
            epoch=position.epoch,
            offset=position.offset,
            messages=[codec.embed(publication.payload) for publication in self._shown(session, name, page)],
            more=more,
            ref=message.ref,
        )
        hub.reply(session, reply)

    def _floor(self, session: Session, name: str) -> int:
        """The offset after which the session may see a channel's past."""
        for prefix, rule in self.hub.channel_rules:
            if rule.floor is not None and name.startswith(prefix):
                return rule.floor(session, name)
        return 0

    def _shown(self, session: Session, name: str, page: Sequence[Publication]) -> Sequence[Publication]:
        topic = self.hub.topic_of(name)
        if topic is None or not topic.filters:
            return page
        return [publication for publication in page if topic.visible(session, name, publication)]

    def presence(self, session: Session, message: messages.GetPresence) -> Coroutine[Any, Any, None] | None:
        return self._with_app(session, message, self._presence(session, message))

    async def _presence(self, session: Session, message: messages.GetPresence) -> None:
        options = await self._admit(session, message.channel)
        if not options.presence:
            raise ClientError(ErrorCode.FORBIDDEN, "this channel does not tell who is here")
        users, count = await who_is_in(self.hub, message.channel)
        self.hub.reply(
            session, messages.PresenceReply(channel=message.channel, users=users, count=count, ref=message.ref)
        )

    # -- permissions

    async def _admit(self, session: Session, name: str) -> ChannelOptions:
        """The same as :meth:`_may_read`, and where the app decides about the channel, it is asked.

        :raises ClientError: ``forbidden``, or what the app says.
        """
        topic = self.hub.topic_of(name)
        if name in session.channels and not name.startswith(self.hub.reserved):
            return self.hub.options_for(name)  # it is in already, perhaps by the app's own doing
        if topic is None or not topic.authorizes:
            return self._may_read(session, name)
        check_name(name, session.user_id)
        assert session.identity is not None
        if not session.identity.grants.admin:
            await topic.admit(session, name)
        return topic.options

    def _may_read(self, session: Session, name: str) -> ChannelOptions:
        """Whether the session may subscribe to a channel, read its history, and see who is there.

        :raises ClientError: the same ``forbidden`` whether the channel exists or not.
        """
        hub = self.hub
        user_id = session.user_id
        check_name(name, user_id)
        options = hub.options_for(name)
        assert session.identity is not None
        if session.identity.grants.admin:
            return options
        for prefix, rule in hub.channel_rules:
            if name.startswith(prefix):
                rule.check(session, name)
                return options
        if options.subscribe != "anyone" and not session.identity.grants.may_subscribe(name):
            raise _forbidden(name)
        return options

    def _may_publish(self, session: Session, name: str, options: ChannelOptions) -> None:
        if name not in self.hub.channels:  # or it was checked when it was subscribed to
            check_name(name, session.user_id)
        assert session.identity is not None
        grants = session.identity.grants
        reserved = name.startswith(self.hub.reserved)
        if reserved or options.publish == "server":
            allowed = grants.admin and not reserved
        elif options.publish == "anyone":
            allowed = True
        elif options.publish == "subscribers":
            allowed = name in session.channels
        else:
            allowed = grants.may_publish(name)
        if not allowed:
            raise _forbidden(name)


def check_name(name: str, user_id: str = "") -> None:
    """Refuse what is no channel's name.

    :raises ClientError: ``invalid_message``.
    """
    if CHANNEL_NAME.fullmatch(name) is None and name != PERSONAL + user_id:
        raise ClientError(
            ErrorCode.INVALID_MESSAGE,
            "a channel is named by 1 to 128 of A-Z a-z 0-9 _ . : @ / + = ~ - - at `$.channel`",
        )


def _forbidden(name: str) -> ClientError:
    return ClientError(ErrorCode.FORBIDDEN, f"the token does not allow this on {name[:128]!r}")


Here: TypeAlias = tuple[dict[str, dict[str, object]], int]
"""Users of a channel as the wire has them (none above HUBBUB_PRESENCE_LIMIT), and how many there are."""


def who_is_here(hub: Hub, name: str) -> Here:
    """Who is in a channel that this node has subscribers of: on all nodes, as far as this one knows."""
    channel = hub.channels.get(name)
    if channel is None or channel.roster is None:
        return {}, 0
    return _listed(hub, channel.roster)


async def who_is_in(hub: Hub, name: str) -> Here:
    """Who is in a channel on all nodes, whether this one has subscribers of it or not. With the engine away: who is on
    this one."""
    roster = await hub.comings.others.roster_of(name)
    return ({}, 0) if roster is None else _listed(hub, roster)


def _listed(hub: Hub, roster: Roster) -> Here:
    count = len(roster)
    if count > hub.settings.presence_limit:
        return {}, count
    return {user: present(dict(here)) for user, here in roster.snapshot().items()}, count


def once_key(key: str | None, user_id: str = "") -> str | None:
    """An idempotency key as the broker gets it: of one length, and nobody's is another's.

    :param user_id: whose it is; "": the server's (no user is called so).
    """
    if key is None:
        return None
    return blake2b(f"{user_id}\0{key}".encode(), digest_size=16).hexdigest()


@lru_cache(maxsize=16_384)
def _head(channel: str) -> bytes:
    return b'{"type":"publication","channel":%b,"offset":' % messages.JSON.encode(channel)


def publication_of(
    channel: str,
    data: bytes,
    options: ChannelOptions,
    *,
    key: str | None = None,
    user: str | None = None,
    origin: str | None = None,
    at: float = 0.0,
) -> Publication:
    """A ``publication`` message of ``data`` (JSON text) for a channel."""
    encode = messages.JSON.encode
    by = b"" if user is None else b',"user_id":%b' % encode(user)
    keyed = b"" if key is None else b',"key":%b' % encode(key)
    tail = b',"data":%b%b%b}' % (data, by, keyed)
    head = _head(channel)
    if not options.history_size:
        return Publication(b"%b0%b" % (head, tail), b"", key, user, origin, at)
    return Publication(head, tail, key, user, origin, at)
