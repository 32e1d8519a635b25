"""The app's lifespan for tests: begun by the first who needs it in a loop, ended by the last."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any, Final

from hubbub.app import Hubbub
from hubbub.testing.transcript import Failed
from hubbub.testing.wire import AsgiApp

PATIENCE: Final = 30.0
"""Seconds that an app may take to end."""

_homes: dict[tuple[asyncio.AbstractEventLoop, int], _Home] = {}


class _Home:
    """One app that runs in one loop, for as long as somebody is in it.

    The lifespan has a task of its own, so that who began it may end in another task (pytest's fixtures do).
    """

    def __init__(self, app: AsgiApp, hub: Hubbub | None) -> None:
        self.state: dict[str, Any] = {}
        self.guests = 0
        self._app = app
        self._hub = hub
        self._events: asyncio.Queue[str] = asyncio.Queue()
        self._asked = False
        self._started: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._failed = ""
        self._task = asyncio.get_running_loop().create_task(self._run())

    async def _run(self) -> None:
        self._events.put_nowait("lifespan.startup")
        scope = {"type": "lifespan", "asgi": {"version": "3.0", "spec_version": "2.0"}, "state": self.state}
        await self._app(scope, self._receive, self._send)

    async def _receive(self) -> dict[str, Any]:
        self._asked = True
        return {"type": await self._events.get()}

    async def _send(self, event: dict[str, Any]) -> None:
        if event["type"] == "lifespan.startup.complete":
            if not self._started.done():
                self._started.set_result(None)
        elif event["type"].endswith(".failed"):
            self._failed = event.get("message") or "the app's lifespan failed"

    async def wait_until_started(self) -> None:
        await asyncio.wait((self._started, self._task), return_when=asyncio.FIRST_COMPLETED)
        if self._started.done():
            return
        if not self._asked:
            return  # it raised or returned without a look at what it is asked: an app without a lifespan
        self._task.result()
        raise Failed(self._failed or "the app's lifespan ended before it had begun")

    async def end(self) -> None:
        self._events.put_nowait("lifespan.shutdown")
        _, late = await asyncio.wait((self._task,), timeout=PATIENCE)
        if late:
            self._task.cancel()
            raise Failed(f"the app's lifespan did not end within {PATIENCE:g} s")
        if self._hub is not None and loop_of(self._hub) is asyncio.get_running_loop():
            await self._hub.hub.stop()  # it was started by a connection: mounted apps get no lifespan from Starlette
        if self._asked and self._started.done():
            self._task.result()
            if self._failed:
                raise Failed(self._failed)
        elif not self._task.cancelled():
            self._task.exception()


@asynccontextmanager
async def running(app: AsgiApp, *, hub: Hubbub | None = None) -> AsyncIterator[Hubbub]:
    """Run an app's lifespan in this loop, and its hub with it; clients within share it.

    ``async with running(app) as hub: await hub.publish("news", 1)``. If it runs already, it goes on running afterwards.

    :param hub: which of the app's hubs; by default ``app.state.hubbub``.
    :raises Exception: what the lifespan raised.
    """
    chosen = hub_of(app, hub)
    async with shared_state(app, chosen):
        yield chosen


@asynccontextmanager
async def shared_state(app: AsgiApp, hub: Hubbub | None) -> AsyncIterator[Mapping[str, Any]]:
    """Have the app's lifespan run; yields its state for the scopes of connections."""
    loop = the_loop()
    key = (loop, id(app))
    home = _homes.get(key)
    if home is None:
        runs_in = loop_of(hub) if hub is not None else None
        if runs_in is loop and hub is not None:
            yield hub.state()  # somebody else runs it
            return
        if runs_in is not None:
            raise RuntimeError(
                "this hub runs in another event loop: with Starlette's TestClient use sync_client(test_client); "
                "or it was never stopped there (a loop that is closed cannot be gone on with: make a new app)"
            )
        home = _homes[key] = _Home(app, hub)
    home.guests += 1
    try:
        await home.wait_until_started()
        yield home.state
    finally:
        home.guests -= 1
        if not home.guests:
            _homes.pop(key, None)
            await home.end()


def hub_of(app: object, hub: Hubbub | None = None) -> Hubbub:
    """The Hubbub of an app: the given one, or what the app (or the app inside its middleware) has in its state.

    :raises LookupError: there is none.
    """
    found = hub if hub is not None else find_hub(app)
    if found is None:
        raise LookupError("this app has no Hubbub in app.state.hubbub: say which with hub=, or give a token=")
    return found


def find_hub(app: object) -> Hubbub | None:
    """The Hubbub in ``app.state.hubbub``, also below wrappers that keep what they wrap in ``app``; or None."""
    seen: set[int] = set()
    while app is not None and id(app) not in seen:
        seen.add(id(app))
        found = getattr(getattr(app, "state", None), "hubbub", None)
        if isinstance(found, Hubbub):
            return found
        app = getattr(app, "app", None)
    return None


def loop_of(hub: Hubbub) -> asyncio.AbstractEventLoop | None:
    """The loop that a hub runs in, or None while it does not run."""
    return hub.hub.loop


def the_loop() -> asyncio.AbstractEventLoop:
    """The running asyncio loop.

    :raises RuntimeError: there is none: this is trio, or no coroutine.
    """
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        raise RuntimeError(
            "hubbub.testing needs a running asyncio loop (uvloop is one). With anyio's pytest plugin let the fixture "
            "anyio_backend return 'asyncio': Hubbub does not run on trio"
        ) from None
