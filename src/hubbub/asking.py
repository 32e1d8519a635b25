"""Asking history for what channels miss: a few at a time, each in its turn, and none is in the way of others.

A place is held only while history is being asked. Whoever has to wait, because history did not answer or lacks what it
should have, does so outside of the places, and then goes to the back. What does not answer is asked about less and less
often, whatever number of channels it has. Each past has places of its own (the engine, each partition of a Cluster, the
store): one that is away keeps no others from being asked.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from hubbub.errors import BrokerUnavailable
from hubbub.order import Order

if TYPE_CHECKING:
    from hubbub.inlet import Line, OrderedInlet

log = logging.getLogger("hubbub")

AT_ONCE: Final = 64
"""Channels for which a past is asked at the same time: after a lost connection all of them are due."""
AT_ONCE_PART: Final = 8
"""The same for each part of a broker that has parts."""
LANES: Final = 256
"""Pasts that are remembered while nobody waits for them."""
FIRST_PAUSE: Final = 0.05
"""Seconds before history is asked again when it did not answer; twice as long after each time."""
LONGEST_PAUSE: Final = 5.0
LONGEST_SILENCE: Final = 1.0
"""The longest of the pauses in which a past that answers nobody is not asked at all."""
EARLY_PAUSE: Final = 0.03
"""Seconds for which what is missing before an early publication may still come, where several nodes tell of theirs."""
PATIENCE: Final = 5
"""How often a history that lacks what it should have is asked before its readers are told of a gap."""


class Doubt:
    """A channel about which history is to be asked.

    :ivar failed: when it was asked last, there was no answer.
    :ivar lacking: how often what should have been there was not.
    :ivar pause: seconds, of the next pause.
    :ivar queue: that it waits in for a place.
    :ivar timer: at the end of its pause.
    """

    __slots__ = ("failed", "lacking", "lane", "line", "order", "pause", "queue", "timer")

    def __init__(self, line: Line, order: Order, lane: Lane) -> None:
        self.line = line
        self.order = order
        self.lane = lane
        self.failed = False
        self.lacking = 0
        self.pause = FIRST_PAUSE
        self.queue: dict[Doubt, None] | None = None
        self.timer: asyncio.TimerHandle | None = None

    def lengthen(self) -> float:
        """The pause that is due; the next one is longer."""
        pause, self.pause = self.pause, min(2 * self.pause, LONGEST_PAUSE)
        return pause


class Lane:
    """Those that wait for one past.

    :ivar places: how many may be asked about at the same time.
    :ivar doubts: how many it has in all.
    :ivar fresh: those that are due, in order; ``again`` are due once more after they had no answer.
    :ivar silent: those that had no answer since anybody had one. With each there is one place less.
    :ivar timer: at the end of the pause in which nobody is asked about.
    """

    __slots__ = ("_turn", "again", "doubts", "fresh", "going", "pause", "places", "running", "silent", "timer")

    def __init__(self, places: int) -> None:
        self.places = places
        self.doubts = 0
        self.running = 0
        self.going = False
        self.pause = FIRST_PAUSE
        self.fresh: dict[Doubt, None] = {}
        self.again: dict[Doubt, None] = {}
        self.silent: dict[Doubt, None] = {}
        self.timer: asyncio.TimerHandle | None = None
        self._turn = False

    def next(self) -> Doubt | None:
        """Whose turn it is, if there is a place: the fresh and the others alternate, so neither starves."""
        if self.running >= self.places - len(self.silent) or not (self.fresh or self.again):
            return None
        self._turn = not self._turn
        queue = self.fresh if self.fresh and (self._turn or not self.again) else self.again
        doubt = next(iter(queue))
        del queue[doubt]
        doubt.queue = None
        return doubt

    def answered(self) -> None:
        """It is there."""
        self.silent.clear()
        self.pause = FIRST_PAUSE
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None


class Asking:
    """Asks history for an inlet's channels until all is in order.

    :ivar stopped: nothing is asked any more.
    """

    def __init__(self, inlet: OrderedInlet) -> None:
        self._inlet = inlet
        self._lanes: dict[object, Lane] = {}
        self._doubts: dict[Order, Doubt] = {}
        self.stopped = False

    def __len__(self) -> int:
        """How many channels are in doubt."""
        return len(self._doubts)

    @property
    def running(self) -> int:
        """For how many of them history is being asked right now."""
        return sum(lane.running for lane in self._lanes.values())

    def start(self, line: Line, order: Order) -> None:
        """Ask about a channel, unless that is under way."""
        if order.filling:
            return
        if self.stopped:
            self._inlet.drop(line, order)
            return
        order.filling = True
        doubt = self._doubts[order] = Doubt(line, order, self._lane_of(line.name))
        doubt.lane.doubts += 1
        self._go_on(doubt)

    def hurry(self, order: Order) -> None:
        """It may be answered now, and is to be: end the pauses."""
        doubt = self._doubts.get(order)
        if doubt is None:
            return
        doubt.lane.answered()
        if doubt.timer is not None:
            doubt.timer.cancel()
            doubt.pause, doubt.failed = FIRST_PAUSE, False
            self._rested(doubt)
        self._go(doubt.lane)

    def let_go(self, order: Order) -> None:
        """Nobody waits for it any more."""
        doubt = self._doubts.get(order)
        if doubt is not None and (doubt.queue is not None or doubt.timer is not None):
            self._end(doubt)  # else it is being asked, and that ends

    def stop(self) -> None:
        """The hub stops: nobody is left to tell."""
        self.stopped = True
        for lane in self._lanes.values():
            lane.answered()
        for doubt in list(self._doubts.values()):
            self._forget(doubt)
            self._inlet.drop(doubt.line, doubt.order)
        self._lanes.clear()

    # -- one channel

    def _go_on(self, doubt: Doubt) -> None:
        """What a channel needs next: nothing, some time, or a place."""
        line, order = doubt.line, doubt.order
        if not order.wants or not self._inlet.waited_for(line, order):
            self._end(doubt)
        elif self._inlet.shared and not order.doubtful:
            # it comes by itself, as it nearly always does
            self._pause(doubt, EARLY_PAUSE, self._not_come, order.here)
        else:
            self._queue(doubt)

    def _not_come(self, doubt: Doubt, was: object) -> None:
        order = doubt.order
        if order.here == was and order.wants and not order.doubtful:
            self._queue(doubt)
        else:
            self._rested(doubt)

    def _rested(self, doubt: Doubt) -> None:
        doubt.timer = None
        self._go_on(doubt)

    def _queue(self, doubt: Doubt) -> None:
        doubt.timer = None
        lane = doubt.lane
        doubt.queue = lane.again if doubt.failed else lane.fresh
        doubt.queue[doubt] = None
        self._go(lane)

    def _pause(self, doubt: Doubt, seconds: float, then: Callable[..., None], *arguments: object) -> None:
        loop = self._inlet.hub.loop
        assert loop is not None
        doubt.timer = loop.call_later(seconds, then, doubt, *arguments)

    def _end(self, doubt: Doubt) -> None:
        self._forget(doubt)
        if self._inlet.waited_for(doubt.line, doubt.order):
            self._inlet.settle(doubt.line, doubt.order)
        else:
            self._inlet.drop(doubt.line, doubt.order)

    def _forget(self, doubt: Doubt) -> None:
        del self._doubts[doubt.order]
        doubt.order.filling = False
        if doubt.queue is not None:
            doubt.queue.pop(doubt, None)
            doubt.queue = None
        if doubt.timer is not None:
            doubt.timer.cancel()
            doubt.timer = None
        lane = doubt.lane
        lane.silent.pop(doubt, None)
        lane.doubts -= 1
        if not lane.doubts and lane.timer is not None:
            lane.answered()  # there is nobody to be spared

    # -- places

    def _lane_of(self, name: str) -> Lane:
        hub = self._inlet.hub
        past = hub.past_of(name)
        key: object = past
        places = AT_ONCE
        part_of: Callable[[str], int | None] | None = getattr(past, "part_of", None)
        if part_of is not None and (part := part_of(name)) is not None:
            key, places = (past, part), AT_ONCE_PART
        lane = self._lanes.get(key)
        if lane is None:
            if len(self._lanes) >= LANES:  # a feature may make a past for each channel
                self._lanes = {key: lane for key, lane in self._lanes.items() if lane.doubts or lane.running}
            lane = self._lanes[key] = Lane(places)
        return lane

    def _go(self, lane: Lane) -> None:
        if lane.going:  # or one that ends at once would start the next within itself, and that one the next
            return
        lane.going = True
        try:
            while (doubt := lane.next()) is not None:
                if doubt.order.wants and self._inlet.waited_for(doubt.line, doubt.order):
                    lane.running += 1
                    self._inlet.hub.spawn(self._ask(doubt))
                else:
                    self._end(doubt)
        finally:
            lane.going = False

    async def _ask(self, doubt: Doubt) -> None:
        order, lane = doubt.order, doubt.lane
        was = order.here
        answered = False
        try:
            await self._inlet.ask(doubt.line, order)
            answered = True
        except Exception as error:
            if not isinstance(error, BrokerUnavailable):
                log.error("history cannot be read", exc_info=error, extra={"channel": doubt.line.name})
        finally:  # also where what it waited for was cancelled
            lane.running -= 1
            if self._doubts.get(order) is doubt:  # else the hub has stopped meanwhile
                if answered:
                    self._answered(doubt, was)
                else:
                    self._unanswered(doubt)
                self._go(lane)

    def _answered(self, doubt: Doubt, was: object) -> None:
        order = doubt.order
        doubt.lane.answered()
        doubt.failed = False
        if order.here != was or not order.behind:
            doubt.pause, doubt.lacking = FIRST_PAUSE, 0
            self._go_on(doubt)
        elif doubt.lacking < PATIENCE:
            doubt.lacking += 1
            self._pause(doubt, doubt.lengthen(), self._rested)
        else:
            self._inlet.skip(doubt.line, order)
            self._go_on(doubt)

    def _unanswered(self, doubt: Doubt) -> None:
        lane = doubt.lane
        doubt.failed = True
        lane.silent[doubt] = None
        self._pause(doubt, doubt.lengthen(), self._rested)
        if len(lane.silent) >= lane.places and lane.timer is None:
            loop = self._inlet.hub.loop
            assert loop is not None
            lane.timer = loop.call_later(lane.pause, self._try, lane)
            lane.pause = min(2 * lane.pause, LONGEST_SILENCE)

    def _try(self, lane: Lane) -> None:
        """A past that answered nobody may answer some now."""
        lane.timer = None
        while len(lane.silent) > lane.places - max(1, lane.places // 4):
            del lane.silent[next(iter(lane.silent))]
        self._go(lane)
