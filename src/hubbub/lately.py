"""Answers that are good for a moment: many who ask for the same cost as much as one."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Generic, TypeVar

T = TypeVar("T")


class Lately(Generic[T]):
    """Remembers what was asked of names for some seconds, and asks once for all who ask meanwhile.

    :param ask: asks for some names; those that it does not answer are not remembered. What it raises, all get who wait.
    :param seconds: for which an answer is good.
    :param size: answers that are remembered; beyond, all are forgotten.
    """

    def __init__(
        self, ask: Callable[[Sequence[str]], Awaitable[dict[str, T]]], seconds: float, size: int = 10_000
    ) -> None:
        self._ask = ask
        self._seconds = seconds
        self._size = size
        self._known: dict[str, tuple[float, T]] = {}
        self._asked: dict[str, asyncio.Future[dict[str, T]]] = {}

    async def of(self, names: Iterable[str]) -> dict[str, T]:
        """The answers about some names."""
        now = asyncio.get_running_loop().time()
        found: dict[str, T] = {}
        waited: dict[asyncio.Future[dict[str, T]], list[str]] = {}
        new: list[str] = []
        for name in names:
            known = self._known.get(name)
            asked = self._asked.get(name)
            if known is not None and now - known[0] < self._seconds:
                found[name] = known[1]
            elif asked is not None:
                waited.setdefault(asked, []).append(name)
            else:
                new.append(name)
        if new:
            # a task of its own: who asked first may go away, and the others wait all the same
            asking = asyncio.ensure_future(self._ask_for(new))
            self._asked.update(dict.fromkeys(new, asking))
            waited[asking] = new
        for future, theirs in waited.items():
            answers = await asyncio.shield(future)
            found.update({name: answers[name] for name in theirs if name in answers})
        return found

    async def _ask_for(self, names: list[str]) -> dict[str, T]:
        try:
            answers = await self._ask(names)
        finally:
            for name in names:
                self._asked.pop(name, None)
        now = asyncio.get_running_loop().time()
        while self._known and next(iter(self._known.values()))[0] <= now - self._seconds:
            del self._known[next(iter(self._known))]  # the oldest come first
        if len(self._known) + len(answers) > self._size:
            self._known.clear()
        for name, answer in answers.items():
            self._known.pop(name, None)
            self._known[name] = now, answer
        return answers

    def forget(self) -> None:
        """Know nothing any more."""
        self._known.clear()
