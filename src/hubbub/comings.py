"""Comings and goings: what a change of a channel's roster makes others hear, once per turn and after the grace."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeAlias

from hubbub.channel import Channel
from hubbub.messages import PresenceChanged, rfc3339
from hubbub.session import Session

if TYPE_CHECKING:
    from hubbub.hub import Hub

RosterObserver: TypeAlias = Callable[[Channel, list[str], list[str]], None]


class Comings:
    """Keeps the rosters of a hub's channels, and tells of their changes.

    :ivar observers: (prefix, who is told) for channels of features; all others get ``presence_changed``.
    """

    def __init__(self, hub: Hub) -> None:
        self._hub = hub
        self.observers: list[tuple[str, RosterObserver]] = []
        self._graces: deque[tuple[float, str]] = deque()
        self._told: dict[Channel, None] = {}

    def __bool__(self) -> bool:
        """True when somebody is to be told at the end of the turn."""
        return bool(self._told)

    def __contains__(self, channel: Channel) -> bool:
        return channel in self._told

    def join(self, channel: Channel, session: Session) -> None:
        """A session subscribed to a channel."""
        if channel.roster is None or session.user is None:
            return
        info = session.identity.info if session.identity is not None else None
        if channel.roster.join(session.user.id, self._hub.clock.time(), info):
            self._note(channel, session.user.id, came=True)

    def leave(self, channel: Channel, session: Session) -> None:
        """A session's subscription ended; its user stays for a grace."""
        if channel.roster is None or session.user is None:
            return
        user_id, grace = session.user.id, self._hub.settings.presence_grace
        now = self._hub.clock.monotonic()
        if channel.roster.leave(user_id, now, grace):
            self._note(channel, user_id, came=False)
        elif not channel.roster.devices(user_id):
            self._graces.append((now + grace, channel.name))

    def _note(self, channel: Channel, user_id: str, *, came: bool) -> None:
        """Tell of it at the end of the turn; a user who came and went (or the reverse) in one turn is not told of."""
        new, left = channel.new or set(), channel.left or set()
        if came:
            left.discard(user_id) if user_id in left else new.add(user_id)
        else:
            new.discard(user_id) if user_id in new else left.add(user_id)
        channel.new, channel.left = new, left
        self._told[channel] = None
        self._hub.schedule()

    def tell(self) -> None:
        """Tell of what happened in this turn."""
        told, self._told = self._told, {}
        for channel in told:
            joined, left = sorted(channel.new or ()), sorted(channel.left or ())
            channel.new = channel.left = None
            if joined or left:
                self._observer(channel.name)(channel, joined, left)
            self._hub.release(channel)

    def _observer(self, name: str) -> RosterObserver:
        for prefix, observer in self.observers:
            if name.startswith(prefix):
                return observer
        return self._presence_changed

    def _presence_changed(self, channel: Channel, joined: list[str], left: list[str]) -> None:
        if channel.watchers is None or channel.roster is None:
            return
        count = len(channel.roster)
        if count > self._hub.settings.presence_limit:
            message = PresenceChanged(channel=channel.name, joined={}, left=[], count=count)
        else:
            here = channel.roster.snapshot()
            users = {user: present(dict(here[user])) for user in joined if user in here}
            message = PresenceChanged(channel=channel.name, joined=users, left=left, count=count)
        for link in channel.watchers:
            link.send(link.lane.codec.encode(message))

    def sweep(self, monotonic: float) -> None:
        """See whose grace is over."""
        while self._graces and self._graces[0][0] <= monotonic:
            _, name = self._graces.popleft()
            channel = self._hub.channels.get(name)
            if channel is not None and channel.roster is not None:
                for user_id in channel.roster.expire(monotonic):
                    self._note(channel, user_id, came=False)
                self._hub.release(channel)


def present(user: dict[str, Any]) -> dict[str, Any]:
    """One user of a roster as the wire has it."""
    return {"info": user["info"], "devices": user["devices"], "since": rfc3339(user["since"])}
