"""Questions to the store that are asked many at a time: what is asked in one turn of the loop is one read."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Final, Generic, TypeVar

from sqlalchemy import Connection

from hubbub.errors import ClientError, ErrorCode
from hubbub.store import Store

I = TypeVar("I")  # noqa: E741
R = TypeVar("R")

AT_ONCE: Final = 512
"""Questions of one read."""


class Gather(Generic[I, R]):
    """A kind of question. While one read is under way, the next questions collect.

    :param look: answers many of them, in their order; an exception among the answers is raised for its one.
    :param limit: questions that may wait; beyond: ``busy``.
    """

    def __init__(
        self, store: Store, look: Callable[[Sequence[I], Connection], Sequence[R | Exception]], limit: int
    ) -> None:
        self._store = store
        self._look = look
        self._limit = limit
        self._waiting: deque[tuple[I, asyncio.Future[R]]] = deque()
        self._task: asyncio.Task[None] | None = None

    async def ask(self, item: I) -> R:
        """
        :raises ClientError: ``busy``: too many questions wait; or what the answer is.
        :raises StoreUnavailable: the database cannot be read.
        """
        if len(self._waiting) >= self._limit:
            raise ClientError(ErrorCode.BUSY, "too many requests wait for the store", retry_after=1.0)
        loop = asyncio.get_running_loop()
        future: asyncio.Future[R] = loop.create_future()
        self._waiting.append((item, future))
        if self._task is None or self._task.done():
            self._task = loop.create_task(self._run())
        return await future

    async def _run(self) -> None:
        while self._waiting:
            asked = [self._waiting.popleft() for _ in range(min(AT_ONCE, len(self._waiting)))]
            answers: Sequence[Any]
            try:
                answers = await self._store.read(partial(self._look, [item for item, _ in asked]))
            except asyncio.CancelledError:
                for _, future in asked:
                    future.cancel()
                raise
            except Exception as error:
                answers = [error] * len(asked)
            for (_, future), answer in zip(asked, answers, strict=True):
                if future.done():
                    continue  # who asked has gone
                if isinstance(answer, Exception):
                    future.set_exception(answer)
                else:
                    future.set_result(answer)
