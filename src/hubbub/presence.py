"""Who is here: the users of one channel, each with any number of devices.

Pure: every update returns what changed, and the caller tells the others. ``now`` is an argument. A user whose last
device went stays for a grace, so that a reload of the page is not seen as leaving and coming.

Two clocks may be used: :meth:`Roster.join` takes unix seconds, since they are shown; leaving and expiring take seconds
of any one clock, best one that never jumps.
"""

from __future__ import annotations

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


class Roster:
    """The users of one channel. Users in their grace are listed and counted like all others, with ``devices`` 0: for
    everybody else they have not left, until :meth:`expire` or :meth:`leave` says so.

    Joining and leaving take O(1), amortised O(log users) where a grace begins. The heap of graces drops stale entries
    lazily and is rebuilt when they outnumber the live ones, so it never holds more than 2 * (users in their grace) + 16
    entries, however often somebody flaps.
    """

    __slots__ = ("_heap", "_leaving", "_users")

    def __init__(self) -> None:
        self._users: dict[str, _User] = {}
        self._heap: list[tuple[float, str]] = []
        self._leaving = 0  # users in their grace

    def __len__(self) -> int:
        """How many users are listed, those in their grace included."""
        return len(self._users)

    def __contains__(self, user_id: str) -> bool:
        """Whether a user is listed."""
        return user_id in self._users

    def devices(self, user_id: str) -> int:
        """How many devices of this user are here; 0 also for one in the grace or not listed."""
        user = self._users.get(user_id)
        return 0 if user is None else user.devices

    def join(self, user_id: str, now: float, info: dict[str, Any] | None = None) -> bool:
        """A device of a user comes, at ``now`` in unix seconds. True when the user was not listed: tell the others.

        Ends a grace silently, also one that has run out while nobody called :meth:`expire`: nobody was told.

        :param info: what to show of the user; the newest that is not None counts.
        """
        user = self._users.get(user_id)
        if user is None:
            self._users[user_id] = _User(now, info)
            return True
        user.devices += 1
        if user.devices == 1:
            self._leaving -= 1
            self._compact()
        if info is not None:
            user.info = info
        return False

    def leave(self, user_id: str, now: float, grace: float) -> bool:
        """A device of a user goes. True when the user left with it: tell the others.

        With the last device the user stays for ``grace`` seconds, or leaves at once when that is 0. A user who has no
        device here changes nothing.
        """
        user = self._users.get(user_id)
        if user is None or user.devices == 0:
            return False
        if user.devices == 1 and grace <= 0:
            del self._users[user_id]
            return True
        user.devices -= 1
        if user.devices == 0:
            user.leaves = now + grace
            self._leaving += 1
            heappush(self._heap, (user.leaves, user_id))
            self._compact()
        return False

    def expire(self, now: float) -> list[str]:
        """Drop the users whose grace has run out, and return them in the order in which it did: tell the others."""
        gone = []
        while self._drop_stale() and self._heap[0][0] <= now:
            _, user_id = heappop(self._heap)
            del self._users[user_id]
            self._leaving -= 1
            gone.append(user_id)
        self._compact()
        return gone

    def next_expiry(self) -> float | None:
        """When :meth:`expire` has something to do, on the clock of :meth:`leave`; None when nobody is in the grace."""
        return self._heap[0][0] if self._drop_stale() else None

    def snapshot(self, limit: int | None = None) -> dict[str, Present]:
        """The users by id, at most ``limit`` of them, those who came first before the others."""
        return {
            user_id: {"info": user.info, "devices": user.devices, "since": user.since}
            for user_id, user in islice(self._users.items(), limit)
        }

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
