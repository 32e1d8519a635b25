"""Comings and goings: what a change of a channel's roster makes this node's clients hear, once per turn and after the
grace; and what the other nodes are told of it."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection
from typing import TYPE_CHECKING, Any, TypeAlias

from hubbub.channel import Channel
from hubbub.messages import PresenceChanged, rfc3339
from hubbub.others import Others, here_of
from hubbub.ports import Here
from hubbub.session import Session

if TYPE_CHECKING:
    from hubbub.hub import Hub

RosterObserver: TypeAlias = Callable[[Channel, list[str], list[str]], None]


class Comings:
    """Keeps the rosters of a hub's channels, and tells of their changes.

    :ivar observers: (prefix, who is told) for channels of features; all others get ``presence_changed``.
    :ivar others: what other nodes say.
    """

    def __init__(self, hub: Hub) -> None:
        self._hub = hub
        self.observers: list[tuple[str, RosterObserver]] = []
        self._graces: deque[tuple[float, str]] = deque()
        self._told: dict[Channel, None] = {}
        self._said: dict[Channel, dict[str, None]] = {}
        self.others = Others(hub, self._note)

    def __bool__(self) -> bool:
        """True when somebody is to be told at the end of the turn."""
        return bool(self._told or self._said)

    def __contains__(self, channel: Channel) -> bool:
        return channel in self._told

    def join(self, channel: Channel, session: Session) -> None:
        """A session subscribed to a channel."""
        if channel.roster is None or session.user is None:
            return
        info = session.identity.info if session.identity is not None else None
        if channel.roster.join(session.user.id, self._hub.clock.time(), info):
            self._note(channel, session.user.id, came=True)
        if self._hub.cluster.peers is not None:
            self._say(channel, session.user.id)

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
        if self._hub.cluster.peers is not None:
            self._say(channel, user_id)

    def _say(self, channel: Channel, user_id: str) -> None:
        """Say at the end of the turn how this node has a user now."""
        self._said.setdefault(channel, {})[user_id] = None
        self._hub.schedule()

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
        if self._said:
            self._tell_others()
        told, self._told = self._told, {}
        for channel in told:
            joined, left = sorted(channel.new or ()), sorted(channel.left or ())
            channel.new = channel.left = None
            if joined or left:
                self._observer(channel.name)(channel, joined, left)
            self._hub.release(channel)

    def _tell_others(self) -> None:
        said, self._said = self._said, {}
        peers = self._hub.cluster.peers
        assert peers is not None
        for channel, users in said.items():
            assert channel.roster is not None
            for user_id in users:
                peers.here(channel.name, user_id, here_of(channel.roster, user_id))

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
            here = {user_id: channel.roster.user(user_id) for user_id in joined}
            users = {user_id: present(dict(user)) for user_id, user in here.items() if user is not None}
            message = PresenceChanged(channel=channel.name, joined=users, left=left, count=count)
        for link in channel.watchers:
            link.send(link.lane.codec.encode(message))

    def sweep(self, monotonic: float) -> None:
        """See whose grace is over."""
        while self._graces and self._graces[0][0] <= monotonic:
            _, name = self._graces.popleft()
            channel = self._hub.channels.get(name)
            if channel is not None and channel.roster is not None:
                self._expire(channel, channel.roster.expire(monotonic))
                self._hub.release(channel)
        if self._hub.cluster.peers is not None:
            self.others.sweep(monotonic)

    def _expire(self, channel: Channel, gone: list[str]) -> None:
        assert channel.roster is not None
        for user_id in gone:
            if user_id not in channel.roster:
                self._note(channel, user_id, came=False)
            if self._hub.cluster.peers is not None:
                self._say(channel, user_id)

    def clear(self) -> None:
        """The hub has stopped: nobody is told anything any more."""
        self._graces.clear()
        self._told.clear()
        self._said.clear()
        self.others.clear()

    # -- the other nodes

    def heard(self, channel: str, node: str, user_id: str, here: Here | None) -> None:
        """Another node says how it has a user in a channel (None: not any more)."""
        self.others.heard(channel, node, user_id, here)

    def alive(self, nodes: Collection[str]) -> None:
        """These are the other nodes that live."""
        self.others.alive(nodes)

    def declare(self) -> None:
        """The engine may have nothing of this node: say everything again, and ask for what the others have."""
        self.others.declare()


def present(user: dict[str, Any]) -> dict[str, Any]:
    """One user of a roster as the wire has it."""
    return {"info": user["info"], "devices": user["devices"], "since": rfc3339(user["since"])}
