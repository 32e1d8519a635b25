"""The same client for tests that are no coroutines, beside Starlette's ``TestClient``."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterable, Iterator
from concurrent.futures import TimeoutError as FutureTimeout
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final, TypeVar, overload

from hubbub.app import Hubbub
from hubbub.testing.client import HubClient, connected, new_client
from hubbub.testing.lifespan import find_hub, hub_of, the_loop
from hubbub.testing.transcript import Failed
from hubbub.testing.wire import Headers, pairs_of

if TYPE_CHECKING:
    from starlette.testclient import TestClient

T = TypeVar("T")

STALLED: Final = 5.0
"""Seconds beyond a wait's own deadline after which the app's loop is taken to be blocked."""


class SyncClient:
    """A :class:`HubClient` whose verbs block. It lives in the TestClient's loop: no thread of its own, no queue."""

    def __init__(self, client: HubClient, loop: asyncio.AbstractEventLoop) -> None:
        self._client = client
        self._loop = loop

    @property
    def session(self) -> str:
        """The session's id, from ``auth_success``; "" before that."""
        return self._client.session

    @property
    def user_id(self) -> str:
        """Who it is signed in as; "" before that."""
        return self._client.user_id

    @property
    def seen(self) -> list[Any]:
        """All messages that came, oldest first."""
        return list(self._client.seen)

    @property
    def close_reason(self) -> str:
        """The reason that :meth:`closed` found."""
        return self._client.close_reason

    @property
    def subprotocol(self) -> str | None:
        """What the server chose of the offered subprotocols."""
        return self._client.subprotocol

    def _run(self, verb: Callable[..., Coroutine[Any, Any, T]], *args: Any, **fields: Any) -> T:
        # not by the TestClient's portal, which would itself wait for a loop that does not turn
        future = asyncio.run_coroutine_threadsafe(verb(*args, **fields), self._loop)
        try:
            return future.result(self._client.timeout + STALLED)
        except FutureTimeout:
            future.cancel()
            raise Failed("the app's event loop does not turn: something in it blocks") from None

    def send(self, message: str | object, /, **fields: Any) -> None:
        """As :meth:`HubClient.send`."""
        self._run(self._client.send, message, **fields)

    def send_raw(self, data: str | bytes) -> None:
        """As :meth:`HubClient.send_raw`."""
        self._run(self._client.send_raw, data)

    def receive(self) -> dict[str, Any]:
        """As :meth:`HubClient.receive`."""
        return self._run(self._client.receive)

    def receive_raw(self) -> str | bytes:
        """As :meth:`HubClient.receive_raw`."""
        return self._run(self._client.receive_raw)

    @overload
    def expect(self, kind: str, /, *, into: None = None, **fields: Any) -> dict[str, Any]: ...
    @overload
    def expect(self, kind: str, /, *, into: type[T], **fields: Any) -> T: ...
    def expect(self, kind: str, /, *, into: type[T] | None = None, **fields: Any) -> T | dict[str, Any]:
        """As :meth:`HubClient.expect`."""
        found: T | dict[str, Any] = self._run(self._client.expect, kind, into=into, **fields)
        return found

    def ask(self, message: str | object, /, **fields: Any) -> dict[str, Any]:
        """As :meth:`HubClient.ask`."""
        return self._run(self._client.ask, message, **fields)

    def refused(self, message: str | object, /, **fields: Any) -> str:
        """As :meth:`HubClient.refused`."""
        return self._run(self._client.refused, message, **fields)

    def drained(self) -> list[dict[str, Any]]:
        """As :meth:`HubClient.drained`."""
        return self._run(self._client.drained)

    def nothing(self) -> None:
        """As :meth:`HubClient.nothing`."""
        self._run(self._client.nothing)

    def subscribe(self, channel: str, **fields: Any) -> dict[str, Any]:
        """As :meth:`HubClient.subscribe`."""
        return self._run(self._client.subscribe, channel, **fields)

    def join(self, room_id: str, **fields: Any) -> dict[str, Any]:
        """As :meth:`HubClient.join`."""
        return self._run(self._client.join, room_id, **fields)

    def closed(self) -> int:
        """As :meth:`HubClient.closed`."""
        return self._run(self._client.closed)

    def close(self, code: int = 1000, reason: str = "") -> None:
        """As :meth:`HubClient.close`."""
        self._run(self._client.close, code, reason)

    def reconnect(self, code: int = 1006) -> None:
        """As :meth:`HubClient.reconnect`."""
        self._run(self._client.reconnect, code)


@contextmanager
def sync_client(
    test_client: TestClient,
    user: str | None = None,
    *,
    hub: Hubbub | None = None,
    token: str | None = None,
    path: str = "/ws",
    room: str | None = None,
    headers: Headers = (),
    subprotocols: Iterable[str] = (),
    msgpack: bool = False,
    session: str | None = None,
    timeout: float = 5.0,
    **grants: Any,
) -> Iterator[SyncClient]:
    """Connect a client to a TestClient's app: ``with sync_client(test_client, user="alice") as alice: …``.

    The parameters are those of :func:`hub_client`. The TestClient's cookies are sent.

    :param test_client: within its ``with``: that is what runs the app.
    :raises RuntimeError: it is not, or it runs on trio.
    """
    portal = test_client.portal
    if portal is None:
        raise RuntimeError(
            "use the TestClient as a context manager: `with TestClient(app) as test_client:` runs the app"
        )
    app = test_client.app
    if token is None and user is not None:
        token = hub_of(app, hub).token(user, **grants)
    elif grants:
        raise TypeError(f"grants are a user's: name a user beside {', '.join(grants)}=")
    found = hub if hub is not None else find_hub(app)
    prefix = found.prefix if found is not None else ""
    sent = pairs_of(headers)
    cookies = "; ".join(f"{cookie.name}={cookie.value}" for cookie in test_client.cookies.jar)
    if cookies and not any(name.lower() == "cookie" for name, _ in sent):
        sent.append(("cookie", cookies))

    async def make() -> tuple[HubClient, asyncio.AbstractEventLoop]:
        return new_client(
            app, test_client.app_state, prefix, token, path, room, sent, subprotocols, msgpack, timeout
        ), the_loop()  # fmt: skip

    client, loop = portal.call(make)
    with portal.wrap_async_context_manager(connected(client, session)):
        yield SyncClient(client, loop)
