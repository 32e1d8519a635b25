"""Live notifications: to one user, to many, to everybody; on all devices, with the guide's message shapes."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Iterable
from typing import Any, Final, NamedTuple, get_args

import msgspec

from hubbub.control import Announce
from hubbub.errors import ClientError, ErrorCode
from hubbub.everywhere import Reached
from hubbub.hub import PERSONAL, ChannelRule, Hub
from hubbub.messages import (
    JSON,
    BroadcastData,
    BroadcastNotification,
    NotificationData,
    NotificationType,
    plain_data,
    rfc3339,
)
from hubbub.session import Session
from hubbub.settings import ChannelOptions, Settings
from hubbub.stream import Publication

HEAD = b'{"type":"notification","offset":'
AT_ONCE: Final = 500
"""Notifications of one call that wait for the engine side by side."""


class Notified(NamedTuple):
    """What became of a notification.

    :ivar id: the notification's, the same for every receiver.
    :ivar sessions: live sessions that it reached.
    :ivar complete: False: not every node has said how many it reached, so it may be more.
    """

    id: str
    sessions: int
    complete: bool


class Notifications:
    """The notifications feature of a hub.

    A user's notifications go over the channel ``user:<id>``, which every session of the user has. It keeps a short
    history, so a client that was away asks for what it missed with ``subscribe`` and ``since``.
    """

    def __init__(self, hub: Hub) -> None:
        self.hub = hub
        self.options = options_of(hub.settings)
        hub.reserve(PERSONAL, ChannelRule(self.options, self._may_read))
        hub.cluster.on(Announce, self._announced, outside=True)

    def _may_read(self, session: Session, name: str) -> None:
        if name != PERSONAL + session.user_id:
            raise ClientError(ErrorCode.FORBIDDEN, "this channel is another user's")

    async def send(
        self,
        user_ids: Iterable[str],
        title: str,
        message: str,
        notification_type: NotificationType = "info",
        metadata: dict[str, Any] | None = None,
        *,
        count: bool = True,
    ) -> Notified:
        """Notify users on all their devices, on all nodes.

        :param count: False: nobody wants to know how many live sessions it reached, so no other node is asked.
        :raises BrokerUnavailable: the engine is away: some users may not be notified.
        """
        now = self.hub.clock.time()
        users = list(dict.fromkeys(user_ids))
        notification, tail = notification_of(title, message, notification_type, metadata, now)
        reached: dict[str, int] = {}
        complete = True
        if count:
            reached, complete = await self._publish_and_count(users, tail, now)
        else:
            await self._publish(users, tail, now)
        self.hub.metrics.notifications[notification_type] += 1
        return Notified(notification, sum(reached.values()), complete)

    async def _publish_and_count(self, users: list[str], tail: bytes, now: float) -> tuple[dict[str, int], bool]:
        cluster = self.hub.cluster
        if not cluster.others:
            await self._publish(users, tail, now)
            return await cluster.everywhere.count(users)
        counting = asyncio.ensure_future(cluster.everywhere.count(users))  # the others answer meanwhile
        try:
            await self._publish(users, tail, now)
            return await counting
        finally:
            counting.cancel()

    async def _publish(self, users: list[str], tail: bytes, now: float) -> None:
        if self.hub.broker.peers is None or len(users) == 1:  # then it does not wait, or for one only
            for user_id in users:
                await self._publish_one(user_id, tail, now)
            return
        for first in range(0, len(users), AT_ONCE):
            some = users[first : first + AT_ONCE]
            results = await asyncio.gather(
                *(self._publish_one(user_id, tail, now) for user_id in some), return_exceptions=True
            )
            for result in results:
                if isinstance(result, BaseException):
                    raise result

    async def _publish_one(self, user_id: str, tail: bytes, now: float) -> None:
        await self.hub.broker.publish(PERSONAL + user_id, publication_for(tail, now, self.options), self.options)

    async def broadcast(
        self,
        title: str,
        message: str,
        notification_type: NotificationType = "info",
        exclude_users: Iterable[str] = (),
    ) -> Reached:
        """Notify everybody who is signed in now on any node, but for some users.

        :raises ValueError: more than 10,000 users are excluded.
        """
        self.hub.metrics.notifications["broadcast"] += 1
        payload = broadcast_of(title, message, notification_type, self.hub.clock.time())
        return await self.hub.cluster.everywhere.everyone(payload, frozenset(exclude_users))

    def _announced(self, message: Announce) -> int:
        """A publisher without a server broadcasts: each node tells those who are here."""
        self.hub.metrics.notifications["broadcast"] += 1
        payload = broadcast_of(message.title, message.message, message.notification_type, message.at)
        return self.hub.everyone(payload, frozenset(message.exclude))


TYPES: Final[tuple[str, ...]] = get_args(NotificationType)


def options_of(settings: Settings) -> ChannelOptions:
    """How the channels of users behave."""
    wanted = settings.channels.get("user:*", ChannelOptions(history_size=100, history_ttl=86_400.0))
    return wanted.model_copy(update={"presence": False})


def notification_of(
    title: str, message: str, notification_type: NotificationType, metadata: dict[str, Any] | None, now: float
) -> tuple[str, bytes]:
    """A notification: its id, and what follows the offset in its message.

    :raises ClientError: the metadata has something that JSON and MessagePack cannot both carry.
    :raises ValueError: there is no such type.
    """
    _check_type(notification_type)
    plain = msgspec.json.decode(plain_data(msgspec.Raw(JSON.encode(metadata or {})), is_json=True))
    data = NotificationData(secrets.token_urlsafe(9), title, message, notification_type, rfc3339(now), plain)
    return data.id, b',"data":%b}' % JSON.encode(data)


def _check_type(notification_type: str) -> None:
    if notification_type not in TYPES:
        raise ValueError(f"a notification's type is one of {', '.join(TYPES)}, and not {notification_type!r}")


def publication_for(tail: bytes, now: float, options: ChannelOptions) -> Publication:
    """A notification for one user."""
    if options.history_size:
        return Publication(HEAD, tail, at=now)
    return Publication(b"%b0%b" % (HEAD, tail), at=now)


def broadcast_of(title: str, message: str, notification_type: NotificationType, now: float) -> bytes:
    """A broadcast as JSON text.

    :raises ValueError: there is no such type.
    """
    _check_type(notification_type)
    return JSON.encode(BroadcastNotification(data=BroadcastData(title, message, notification_type, rfc3339(now))))
