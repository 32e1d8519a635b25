"""Handlers at work: one at a time for each session, in order; many sessions' beside one another; each within its time."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Coroutine
from math import inf
from time import perf_counter
from typing import TYPE_CHECKING, Any

from hubbub.eager import begin
from hubbub.errors import ClientError, CloseCode, ErrorCode
from hubbub.messages import ClientMessage
from hubbub.session import Session, State

if TYPE_CHECKING:
    from hubbub.hub import Hub

log = logging.getLogger("hubbub")
GIVE_UP = 5.0
"""Seconds, at least, that a handler may take to end after it was cancelled, before its session is closed."""


class Run:
    """A handler that waits for something.

    :ivar deadline: monotonic seconds; infinite for none.
    :ivar begun: its task has had its first turn; one that had not must not be cancelled, since nothing would be called.
    :ivar late: it was told to stop, because the deadline went by.
    """

    __slots__ = ("began", "begun", "deadline", "late", "ref", "task")

    def __init__(self, deadline: float, ref: str | None) -> None:
        self.began = 0.0
        self.begun = False
        self.deadline = deadline
        self.late = False
        self.ref = ref
        self.task: asyncio.Task[None] | None = None


class Runs:
    """The handlers of a hub that wait. While one does, its session's further messages queue in ``session.busy``."""

    def __init__(self, hub: Hub) -> None:
        self._hub = hub
        self._limit = hub.settings.max_handlers
        self._timeout = hub.settings.handler_timeout
        self._running: dict[Session, Run] = {}
        self._stopping = False
        self._count = 0

    def __len__(self) -> int:
        return len(self._running)

    def step(self, session: Session, command: ClientMessage | None, running: Coroutine[Any, Any, None]) -> None:
        """Run a handler as far as it goes without waiting: nearly always to its end, and then no task is made."""
        try:
            rest = begin(running)
        except Exception as error:
            self._hub.failed(session, command, error)
            return
        if rest is not None:
            self._start(session, command, rest)

    def start(
        self,
        session: Session,
        command: ClientMessage | None,
        work: Coroutine[Any, Any, None],
        timeout: float | None = None,
        *,
        unbounded: bool = False,
    ) -> None:
        """Run a handler in a task of its own: an app's code needs one, whether it waits or not.

        The session's next message waits for its end; a handler past its timeout (seconds; None: HUBBUB_HANDLER_TIMEOUT,
        0: none) is cancelled at the next sweep. ``unbounded``: however many run already.

        :raises ClientError: ``busy``: HUBBUB_MAX_HANDLERS run already.
        """
        limit = self._limit
        if limit and len(self._running) >= limit and not unbounded:
            work.close()
            self._hub.metrics.limited("handlers")
            raise ClientError(ErrorCode.BUSY, "the server is busy", retry_after=1.0)
        self._start(session, command, work, timeout)

    def _start(
        self, session: Session, command: ClientMessage | None, work: Awaitable[None], timeout: float | None = None
    ) -> None:
        hub = self._hub
        if timeout is None:
            timeout = self._timeout
        loop = hub.loop
        assert loop is not None
        session.busy = []
        run = Run(hub.clock.monotonic() + timeout if timeout else inf, command.ref if command is not None else None)
        self._running[session] = run
        self._count += 1
        if not self._count & 63:
            run.began = perf_counter()
        run.task = loop.create_task(self._finish(session, command, work, run))

    async def _finish(self, session: Session, command: ClientMessage | None, work: Awaitable[None], run: Run) -> None:
        run.begun = True
        try:
            await work
        except Exception as error:
            if not run.late:  # else it was told when the deadline went by
                self._hub.failed(session, command, error)
        except asyncio.CancelledError:
            if self._stopping:
                raise
            if not run.late:  # something that it waited for was cancelled
                self._hub.failed(session, command, RuntimeError("a handler was cancelled"))
        finally:
            if self._running.get(session) is run:
                del self._running[session]
            if run.began:
                self._hub.metrics.runs.add(perf_counter() - run.began)
        self._next(session)

    def _next(self, session: Session) -> None:
        """The handler is done: take up what came meanwhile, in order."""
        queue = session.busy
        session.busy = None
        while queue and session.state is not State.CLOSED and not session.link.closing:
            self._hub.handle(session, queue.pop(0))
            if session.busy is not None:
                session.busy.extend(queue)
                return
        if session.state is not State.CLOSED:
            session.link.release()

    def sweep(self, monotonic: float) -> None:
        """Stop the handlers whose time is up; give up on a session whose handler does not stop then."""
        hub = self._hub
        for session, run in list(self._running.items()):
            if run.deadline > monotonic or run.task is None or not run.begun:
                continue
            if run.late:
                user = session.user.id if session.user is not None else ""
                log.error("a handler did not end when it was cancelled", extra={"user": user})
                hub.close(session, CloseCode.INTERNAL_ERROR, "a handler hangs")
                run.deadline = inf
                continue
            run.late = True
            run.deadline = monotonic + max(GIVE_UP, self._timeout)
            hub.metrics.limited("handler_time")
            hub.failed(session, None, ClientError(ErrorCode.BUSY, "this took too long", retry_after=1.0), run.ref)
            run.task.cancel()

    async def stop(self) -> None:
        """Cancel them all, and wait for their end; not for ever: one may keep its cancellation to itself."""
        tasks = [run.task for run in self._running.values() if run.task is not None]
        if not tasks:
            return
        self._stopping = True
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks, timeout=self._hub.settings.close_timeout)
        self._running.clear()
        self._stopping = False
