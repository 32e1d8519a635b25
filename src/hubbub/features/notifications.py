"""Live notifications: to one user, to many, to everybody; on all devices, with the guide's message shapes."""

from __future__ import annotations

import secrets
from collections.abc import Iterable
from typing import Any

import msgspec

from hubbub.errors import ClientError, ErrorCode
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
from hubbub.settings import ChannelOptions
from hubbub.stream import Publication

HEAD = b'{"type":"notification","offset":'


class Notifications:
    """The notifications feature of a hub.

    A user's notifications go over the channel ``user:<id>``, which every session of the user has. It keeps a short
    history, so a client that was away asks for what it missed with ``subscribe`` and ``since``.
    """

    def __init__(self, hub: Hub) -> None:
        self.hub = hub
        wanted = hub.settings.channels.get("user:*", ChannelOptions(history_size=100, history_ttl=86_400.0))
        self.options = wanted.model_copy(update={"presence": False})
        hub.reserve(PERSONAL, ChannelRule(self.options, self._may_read))

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
    ) -> tuple[str, int]:
        """Notify users on all their devices. Returns the notification's id, and how many live sessions it reached."""
        hub = self.hub
        now = hub.clock.time()
        plain = msgspec.json.decode(plain_data(msgspec.Raw(JSON.encode(metadata or {})), is_json=True))
        data = NotificationData(secrets.token_urlsafe(9), title, message, notification_type, rfc3339(now), plain)
        tail = b',"data":%b}' % JSON.encode(data)
        reached = 0
        for user_id in dict.fromkeys(user_ids):
            if self.options.history_size:
                publication = Publication(HEAD, tail, at=now)
            else:
                publication = Publication(b"%b0%b" % (HEAD, tail), at=now)
            reached += hub.sessions_of(user_id)
            await hub.broker.publish(PERSONAL + user_id, publication, self.options)
        hub.metrics.notifications[notification_type] += 1
        return data.id, reached

    async def broadcast(
        self,
        title: str,
        message: str,
        notification_type: NotificationType = "info",
        exclude_users: Iterable[str] = (),
    ) -> int:
        """Notify everybody who is signed in now, but for some users. Returns how many sessions it reached."""
        data = BroadcastData(title, message, notification_type, rfc3339(self.hub.clock.time()))
        self.hub.metrics.notifications["broadcast"] += 1
        return self.hub.everyone(JSON.encode(BroadcastNotification(data=data)), frozenset(exclude_users))
