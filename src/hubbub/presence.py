"""Who is here: the users of one channel, each with any number of devices, on this node and on others.

Pure: every update returns what changed, and the caller tells the clients. ``now`` is an argument. A user whose last
device went stays for a grace, so that a reload of the page is not seen as leaving and coming.

Two clocks may be used: :meth:`Roster.join` takes unix seconds, since they are shown; leaving and expiring take seconds
of any one clock, best one that never jumps.
"""

from __future__ import annotations

from collections.abc import Mapping
from heapq import heapify, heappop, heappush
from itertools import islice
from typing import Any, Final, TypedDict

import msgspec

_HEAP_SLACK: Final = 16  # stale entries that are not worth a rebuild


class Present(TypedDict):
    """One user of a snapshot.

    ``info`` is what the token says of them; ``devices`` is 0 during the grace; ``since`` is in unix seconds, when the
    user came (a return within the grace does not count as coming).
    """

    info: dict[str, Any] | None
    devices: int
    since: float


class _User(msgspec.Struct, gc=False):
    since: float
    info: dict[str, Any] | None
    devices: int = 1
    leaves: float = 0.0  # when the grace ends; means something only while there are no devices


class Elsewhere(msgspec.Struct, gc=False):
    """A user as another node has them.

    :ivar since: unix seconds.
    :ivar devices: how many on that node; 0 during the grace, which that node sees to.
    :ivar leaves: when the grace ends if the node is not there any more to say so. Means something only without devices.
    """

    since: float
    info: dict[str, Any] | None
    devices: int
    leaves: float = 0.0


Nodes = Mapping[str, dict[str, Elsewhere]]
"""What other nodes say: node → user → how."""


class Roster:
    """The users of one channel: those of this node, and those that other nodes say they have. A user is listed while any
    node lists them, with the devices of all. Users in their grace are listed and counted like all others, with
    ``devices`` 0: for everybody else they have not left, until :meth:`expire` or :meth:`leave` says so.

    Joining and leaving take O(1), amortised O(log users) where a grace begins. The heap of graces drops stale entries
    lazily and is rebuilt when they outnumber the live ones, so it never holds more than 2 * (users in their grace) + 16
    entries, however often somebody flaps. What a node says takes O(nodes).
    """

    __slots__ = ("_heap", "_leaving", "_nodes", "_only", "_users")

    def __init__(self) -> None:
        self._users: dict[str, _User] = {}
        self._heap: list[tuple[float, str]] = []
        self._leaving = 0  # users in their grace
        self._nodes: dict[str, dict[str, Elsewhere]] | None = None
        self._only = 0  # users that only other nodes list

    def __len__(self) -> int:
        """How many users are listed, those in their grace included."""
        return len(self._users) + self._only

    def __contains__(self, user_id: str) -> bool:
        """Whether a user is listed."""
        return user_id in self._users or self._elsewhere(user_id)

    def devices(self, user_id: str) -> int:
        """How many devices of this user are on this node; 0 also for one in the grace or not listed."""
        user = self._users.get(user_id)
        return 0 if user is None else user.devices

    # -- this node's own users

    @property
    def own(self) -> int:
        """How many users this node has, those in their grace included."""
        return len(self._users)

    def own_ids(self) -> list[str]:
        """The users that this node has."""
        return list(self._users)

    def own_user(self, user_id: str) -> Present | None:
        """A user as this node has them, whatever the others say."""
        user = self._users.get(user_id)
        return None if user is None else {"info": user.info, "devices": user.devices, "since": user.since}

    def join(self, user_id: str, now: float, info: dict[str, Any] | None = None) -> bool:
        """A device of a user comes, at ``now`` in unix seconds. True when the user was not listed: tell of it.

        Ends a grace silently, also one that has run out while nobody called :meth:`expire`: nobody was told.

        :param info: what to show of the user; the newest that is not None counts.
        """
        user = self._users.get(user_id)
        if user is None:
            self._users[user_id] = _User(now, info)
            if self._only and self._elsewhere(user_id):
                self._only -= 1
                return False
            return True
        user.devices += 1
        if user.devices == 1:
            self._leaving -= 1
            self._compact()
        if info is not None:
            user.info = info
        return False

    def leave(self, user_id: str, now: float, grace: float) -> bool:
        """A device of a user goes. True when the user left with it: tell of it.

        With the last device the user stays for ``grace`` seconds, or leaves at once when that is 0. A user who has no
        device here changes nothing.
        """
        user = self._users.get(user_id)
        if user is None or user.devices == 0:
            return False
        if user.devices == 1 and grace <= 0:
            return self._drop(user_id)
        user.devices -= 1
        if user.devices == 0:
            user.leaves = now + grace
            self._leaving += 1
            heappush(self._heap, (user.leaves, user_id))
            self._compact()
        return False

    def expire(self, now: float) -> list[str]:
        """Drop this node's users whose grace has run out, and return them in the order in which it did: tell of those
        that are not listed any more (another node may have them)."""
        gone = []
        while self._drop_stale() and self._heap[0][0] <= now:
            _, user_id = heappop(self._heap)
            self._drop(user_id)
            self._leaving -= 1
            gone.append(user_id)
        self._compact()
        return gone

    def next_expiry(self) -> float | None:
        """When :meth:`expire` has something to do, on the clock of :meth:`leave`; None when nobody is in the grace."""
        return self._heap[0][0] if self._drop_stale() else None

    # -- what other nodes say

    @property
    def whole(self) -> bool:
        """Whether it is known what other nodes say (:meth:`settle`)."""
        return self._nodes is not None

    @property
    def nodes(self) -> Nodes:
        """What other nodes say. Not to be changed."""
        return self._nodes or {}

    def hear(self, node: str, user_id: str, user: Elsewhere | None) -> int:
        """A node says how it has a user (None: not any more). 1: they came with it; -1: they left; 0: neither."""
        nodes = self._nodes
        if nodes is None:
            nodes = self._nodes = {}
        users = nodes.get(node)
        if user is None:
            if users is None or users.pop(user_id, None) is None:
                return 0
            if not users:
                del nodes[node]
            return -self._left_by(user_id)
        listed = user_id in self
        if users is None:
            users = nodes[node] = {}
        users[user_id] = user
        self._only += not listed
        return not listed

    def settle(self, nodes: Nodes) -> tuple[list[str], list[str]]:
        """This is what all other nodes say, and what they said before counts no more. Returns who came, and who left."""
        before, self._nodes = self._nodes or {}, {node: users for node, users in nodes.items() if users}
        own = self._users
        were = {user_id for users in before.values() for user_id in users if user_id not in own}
        are = {user_id for users in self._nodes.values() for user_id in users if user_id not in own}
        self._only = len(are)
        return list(are - were), list(were - are)

    def lose(self, node: str, now: float, *, fading: bool = False) -> list[str]:
        """A node is gone, and with it its users; but those in their grace stay until it is over. Returns who left.

        :param fading: it was gone before: this is only about those (it may have come back since, with others).
        """
        users = self.nodes.get(node, {})
        gone = [user_id for user_id, user in users.items() if (not fading if user.devices else user.leaves <= now)]
        return [user_id for user_id in gone if self.hear(node, user_id, None)]

    def fades(self, node: str) -> bool:
        """Whether a node had users in their grace when it went that are still listed."""
        return any(not user.devices for user in self.nodes.get(node, {}).values())

    # -- all of them

    def user(self, user_id: str) -> Present | None:
        """A user as all nodes together have them; None when nobody lists them."""
        found = self.own_user(user_id)
        for users in self.nodes.values():
            other = users.get(user_id)
            if other is not None:
                found = _together(found, other)
        return found

    def snapshot(self, limit: int | None = None) -> dict[str, Present]:
        """The users by id, at most ``limit`` of them, those who came first before the others."""
        here: dict[str, Present] = {
            user_id: {"info": user.info, "devices": user.devices, "since": user.since}
            for user_id, user in (islice(self._users.items(), limit) if not self._nodes else self._users.items())
        }
        if not self._nodes:
            return here
        for users in self._nodes.values():
            for user_id, user in users.items():
                here[user_id] = _together(here.get(user_id), user)
        return dict(islice(sorted(here.items(), key=lambda one: (one[1]["since"], one[0])), limit))

    # -- within

    def _elsewhere(self, user_id: str) -> bool:
        nodes = self._nodes
        return nodes is not None and any(user_id in users for users in nodes.values())

    def _left_by(self, user_id: str) -> int:
        """A node does not list a user any more: 1 if nobody does."""
        if user_id in self:
            return 0
        self._only -= 1
        return 1

    def _drop(self, user_id: str) -> bool:
        """This node does not list a user any more. True if nobody does."""
        del self._users[user_id]
        if self._nodes and self._elsewhere(user_id):
            self._only += 1
            return False
        return True

    def _is_live(self, entry: tuple[float, str]) -> bool:
        user = self._users.get(entry[1])
        return user is not None and user.devices == 0 and user.leaves == entry[0]

    def _drop_stale(self) -> bool:
        """Bring a live entry to the top of the heap; False when there is none."""
        while self._heap and not self._is_live(self._heap[0]):
            heappop(self._heap)
        return bool(self._heap)

    def _compact(self) -> None:
        if len(self._heap) > 2 * self._leaving + _HEAP_SLACK:
            # a set, since leaving twice for the same moment leaves two equal entries
            self._heap = list({entry for entry in self._heap if self._is_live(entry)})
            heapify(self._heap)


def _together(one: Present | None, other: Elsewhere) -> Present:
    """A user that may be on several nodes: as it was first, with all devices."""
    if one is None:
        return {"info": other.info, "devices": other.devices, "since": other.since}
    info = one["info"] if one["info"] is not None else other.info
    return {"info": info, "devices": one["devices"] + other.devices, "since": min(one["since"], other.since)}
