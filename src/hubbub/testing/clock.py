"""A clock that is turned by hand: deadlines, expiries and graces without waiting for them."""

from __future__ import annotations

import asyncio
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from typing import Any, Final

from hubbub.app import Hubbub, SystemClock

PATIENCE: Final = 5.0
"""Seconds for which a sweep in another thread's loop is waited for."""


class HandClock:
    """Two clocks that move only when a test says so: ``Hubbub(app, clock=HandClock())``.

    :param unix: where :meth:`time` begins, in unix seconds.
    :param monotonic: where :meth:`monotonic` begins, in seconds.
    """

    def __init__(self, unix: float = 1_800_000_000.0, monotonic: float = 1000.0) -> None:
        self._unix = unix
        self._monotonic = monotonic
        self._watchers: list[Callable[[], Callable[[], object] | None]] = []

    def time(self) -> float:
        """Unix seconds."""
        return self._unix

    def monotonic(self) -> float:
        """Seconds that never jump, but for :meth:`advance`."""
        return self._monotonic

    def advance(self, seconds: float) -> None:
        """Turn both clocks on, and do what is then due on the hubs that go by them.

        :raises ValueError: ``seconds`` is below 0.
        """
        if not seconds >= 0:
            raise ValueError("a clock does not go backwards")
        self._unix += seconds
        self._monotonic += seconds
        for watcher in list(self._watchers):
            due = watcher()
            if due is None:
                self._watchers.remove(watcher)  # its hub is gone
            else:
                _at_home(due)

    def watch(self, callback: Callable[[], object]) -> None:
        """Call this after each :meth:`advance`. A bound method does not keep its object alive."""
        if hasattr(callback, "__self__"):
            self._watchers.append(weakref.WeakMethod(callback))
        else:
            self._watchers.append(lambda: callback)


def _at_home(callback: Callable[[], object]) -> None:
    """Call what belongs to a hub in the hub's own loop: under the TestClient that is another thread's."""
    loop = getattr(getattr(callback, "__self__", None), "loop", None)
    try:
        here: asyncio.AbstractEventLoop | None = asyncio.get_running_loop()
    except RuntimeError:
        here = None
    if loop is None or loop is here or not loop.is_running():
        callback()
        return
    done: Future[None] = Future()

    def call() -> None:
        try:
            callback()
        except BaseException as error:
            done.set_exception(error)
        else:
            done.set_result(None)

    loop.call_soon_threadsafe(call)
    done.result(PATIENCE)


@contextmanager
def hand_clock(hub: Hubbub) -> Iterator[HandClock]:
    """Give a hub that was made with the machine's clocks one that is turned by hand, for the length of a block.

    It begins at the machine's time. Afterwards :meth:`time` is the machine's again. So is ``monotonic``, but for what
    it was turned on: it never goes backwards, or whoever is left would wait for that long.

    :raises TypeError: the hub has a clock of another kind: turn that one.
    """
    clock: Any = hub.clock
    if not isinstance(clock, SystemClock):
        raise TypeError(f"this hub goes by a {type(clock).__name__} already")
    time, monotonic = clock.time, clock.monotonic
    began = monotonic()
    hand = HandClock(time(), began)
    hand.watch(hub.hub.sweep)
    clock.time, clock.monotonic = hand.time, hand.monotonic
    try:
        yield hand
    finally:
        ahead = hand.monotonic() - monotonic()
        clock.time = time
        clock.monotonic = monotonic if ahead <= 0 else lambda: monotonic() + ahead
