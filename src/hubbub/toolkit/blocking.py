"""The hub's calls for code that is not in its loop: sync endpoints, background tasks, threads."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Iterable
from typing import TYPE_CHECKING, Any, TypeVar

from hubbub.messages import NotificationType, Position

if TYPE_CHECKING:
    from hubbub.app import Hubbub

T = TypeVar("T")


class Blocking:
    """``hub.sync``: the same calls, for threads. Each blocks until it is done, and returns or raises what that does.

    FastAPI runs endpoints and background tasks that are plain functions in threads, so there these are the calls to use.

    :raises RuntimeError: the hub is not running, or the call comes from its own loop (``await`` the call there).
    :raises TimeoutError: it was not done within :attr:`timeout`.

    :ivar timeout: seconds.
    """

    def __init__(self, hub: Hubbub, timeout: float = 30.0) -> None:
        self._hub = hub
        self.timeout = timeout

    def publish(
        self,
        channel: str,
        data: Any,
        *,
        key: str | None = None,
        user_id: str | None = None,
        idempotency_key: str | None = None,
        version: int | None = None,
    ) -> Position:
        """As :meth:`Hubbub.publish`."""
        publishing = self._hub.publish(
            channel, data, key=key, user_id=user_id, idempotency_key=idempotency_key, version=version
        )
        return self._run(publishing)

    def send(self, user_id: str, message: Any, *, type: str | None = None) -> None:
        """As :meth:`Hubbub.send`."""
        self._run(self._hub.send(user_id, message, type=type))

    def notify(
        self,
        user_id: str | Iterable[str],
        title: str,
        message: str,
        notification_type: NotificationType = "info",
        metadata: dict[str, Any] | None = None,
    ) -> int:
        """As :meth:`Hubbub.notify`."""
        return self._run(self._hub.notify(user_id, title, message, notification_type, metadata))

    def broadcast(
        self,
        title: str,
        message: str,
        notification_type: NotificationType = "info",
        exclude_users: Iterable[str] = (),
    ) -> int:
        """As :meth:`Hubbub.broadcast`."""
        return self._run(self._hub.broadcast(title, message, notification_type, exclude_users))

    def disconnect(self, user_id: str, *, revoke: bool = False, reason: str = "") -> int:
        """As :meth:`Hubbub.disconnect`."""
        return self._run(self._hub.disconnect(user_id, revoke=revoke, reason=reason))

    def count_sessions(self, user_id: str) -> int:
        """As :meth:`Hubbub.count_sessions`."""
        return self._run(self._hub.count_sessions(user_id))

    def online(self, user_ids: Iterable[str]) -> set[str]:
        """As :meth:`Hubbub.online`."""
        return self._run(self._hub.online(user_ids))

    def who_is_in(self, channel: str) -> dict[str, int]:
        """As :meth:`Hubbub.who_is_in`."""
        return self._run(self._hub.who_is_in(channel))

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Run any coroutine in the hub's loop: ``hub.sync.run(orders.publish({"n": 1}, order_id=7))``."""
        return self._run(work)

    def _run(self, work: Coroutine[Any, Any, T]) -> T:
        loop = self._hub.hub.loop
        if loop is None or not loop.is_running():
            work.close()
            raise RuntimeError("the hub is not running: it starts and stops with the app")
        try:
            here = asyncio.get_running_loop()
        except RuntimeError:
            here = None
        if here is loop:
            work.close()
            raise RuntimeError(
                "hub.sync would wait for itself here: this is the hub's own loop, so await hub.… instead"
            )
        future = asyncio.run_coroutine_threadsafe(work, loop)
        try:
            return future.result(self.timeout)
        except TimeoutError:
            future.cancel()
            raise


__all__ = ["Blocking"]
