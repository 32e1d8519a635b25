"""Publications that count only once replicas have them, too.

An engine that fails over loses what its replica had not got yet, although it was acknowledged. Where that is too much, a
batch is answered only after WAIT says that so many replicas have it. WAIT stops its whole connection, and speaks of what
the same connection wrote; so it has one of its own, which writes a little after each batch, and then waits: what came
before that is with the replicas, too. One WAIT speaks for all batches that were carried out before it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from hubbub.brokers.valkey.wire import Wire, WireError

PATIENCE: Final = 1000
"""Milliseconds of one WAIT. It is said again until the publications' own time is up."""
_WRITE: Final = "#!lua flags=allow-oom\nreturn redis.call('SET', KEYS[1], '', 'EX', 60)"
"""A write that is carried out, and so goes to the replicas, even where the memory is full."""


class Replicas:
    """Tells when so many replicas of a primary have what it has carried out.

    :param count: how many.
    """

    def __init__(self, count: int) -> None:
        self.count = count
        self._wire: Wire | None = None
        self._key = ""
        self._asking = False
        self._next: list[Callable[[], None]] = []

    def connected(self, wire: Wire, key: str) -> None:
        """There is a connection (again). Of what was carried out over an earlier one, nothing is told.

        :param key: what to write.
        """
        self._wire, self._key = wire, key
        self._asking = False
        self._next = []

    def confirm(self, done: Callable[[], None]) -> None:
        """Call ``done`` when they have all that was carried out until now. If the connection breaks before: never."""
        self._next.append(done)
        if not self._asking:
            self._ask()

    def _ask(self) -> None:
        wire = self._wire
        if wire is None or not self._next:
            return
        covered, self._next = self._next, []
        self._asking = True
        wire.send(("EVAL", _WRITE, 1, self._key), lambda reply, error: self._wrote(wire, error))
        wire.send(("WAIT", self.count, PATIENCE), lambda reply, error: self._waited(wire, covered, reply, error))

    @staticmethod
    def _wrote(wire: Wire, error: WireError | None) -> None:
        if error is not None:
            wire.abort()  # so its WAIT says nothing

    def _waited(self, wire: Wire, covered: list[Callable[[], None]], reply: Any, error: WireError | None) -> None:
        if wire is not self._wire:
            return
        if error is not None:
            wire.abort()
            return
        self._asking = False
        if reply >= self.count:
            for done in covered:
                done()
        else:
            self._next = covered + self._next
        if not self._asking:
            self._ask()
