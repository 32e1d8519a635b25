"""Running a coroutine as far as it goes without waiting, and making a task only if it then does wait.

Nearly every handler ends without waiting (the memory broker never waits), so nearly no message costs a task.
"""

from __future__ import annotations

import types
from collections.abc import Awaitable, Coroutine, Generator
from typing import Any


def begin(work: Coroutine[Any, Any, None]) -> Awaitable[None] | None:
    """Run ``work`` to its end (None) or to where it first waits (then the rest, for a task to await)."""
    try:
        waits_for = work.send(None)
    except StopIteration:
        return None
    return _resume(work, waits_for)


async def finish(rest: Awaitable[None]) -> None:
    """The rest of some work, as a coroutine for a task."""
    await rest


@types.coroutine
def _resume(running: Coroutine[Any, Any, None], waits_for: Any) -> Generator[Any, Any, None]:
    """Go on, inside a task, with a coroutine that was begun outside and now waits for ``waits_for``."""
    while True:
        try:
            value = yield waits_for
        except BaseException as error:
            try:
                waits_for = running.throw(error)
            except StopIteration:
                return
        else:
            try:
                waits_for = running.send(value)
            except StopIteration:
                return
