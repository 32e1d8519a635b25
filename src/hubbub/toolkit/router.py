"""The decorators that an app declares its real-time side with: on a hub, or on a router that a hub includes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, TypeVar, overload

from fastapi import params

from hubbub.errors import ConfigurationError
from hubbub.settings import SlowPolicy
from hubbub.toolkit.handlers import Declaration
from hubbub.toolkit.signature import names_around, place_of
from hubbub.toolkit.topics import PublishPolicy, Topic

F = TypeVar("F", bound=Callable[..., Any])


@dataclass(frozen=True, slots=True)
class Hook:
    """What ``@hub.connected`` or ``@hub.disconnected`` was given."""

    kind: Literal["connected", "disconnected"]
    fn: Callable[..., Any]
    around: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Declared:
    """One declaration on its way into a hub: a handler, a topic (with what stands before its pattern), or a hook."""

    what: Declaration | Topic | Hook
    channel_prefix: str = ""


class Declares:
    """The decorators, for whoever takes declarations."""

    def _declare(self, declared: Declared) -> None:
        raise NotImplementedError

    @overload
    def on(self, type: F, /) -> F: ...
    @overload
    def on(
        self,
        type: str | None = None,
        /,
        *,
        reply: str | None = None,
        timeout: float | None = None,
        anonymous: bool = False,
        dependencies: Sequence[params.Depends] = (),
    ) -> Callable[[F], F]: ...
    def on(
        self,
        type: Any = None,
        /,
        *,
        reply: str | None = None,
        timeout: float | None = None,
        anonymous: bool = False,
        dependencies: Sequence[params.Depends] = (),
    ) -> Any:
        """Handle the messages of one type. The function's signature is their schema, as in FastAPI.

        - ``session: Session``: the client that sent it; ``identity: Identity``: who that is.
        - One parameter that is a msgspec Struct, a pydantic model, a dataclass, a TypedDict or a ``dict`` is the whole
          message. Otherwise each plain parameter is a field of it.
        - ``Depends(…)`` as in FastAPI; dependencies live for this message, and may take its fields by name.
        - What it returns is the reply, with the message's ``ref``; None sends an ``ack`` if there is a ``ref``.
        - Raise :class:`~hubbub.ClientError` (or HTTPException) to refuse. Anything else costs the sender an ``internal``
          error, with an id that the log has.

        A coroutine function runs in a task of its own (at once, if there is no ``await`` in it), a plain one in a thread.
        Handlers of one session run in order.

        :param type: the messages' ``type``; by default the Struct's own tag, or the function's name.
        :param reply: the reply's ``type``; by default its own tag or ``type`` field, or ``<type>.reply``.
        :param timeout: seconds (looked at twice a second); by default HUBBUB_HANDLER_TIMEOUT; 0: none.
        :param anonymous: it may come before ``auth``.
        :param dependencies: run first, for their effects.
        :raises ConfigurationError: the signature cannot be served, or the type has a handler; says where.
        """
        around = names_around()
        if callable(type):
            self._declare(Declared(Declaration(type, None, around=around)))
            return type

        def decorate(fn: F) -> F:
            self._declare(
                Declared(Declaration(fn, type, reply, timeout, anonymous, tuple(dependencies), around=around))
            )
            return fn

        return decorate

    def channel(
        self,
        pattern: str,
        *,
        history: int = 1000,
        ttl: float = 3600.0,
        presence: bool = True,
        slow: SlowPolicy = "disconnect",
        subscribe: Literal["grant", "anyone"] = "grant",
        publish: PublishPolicy | None = None,
    ) -> Topic:
        """Declare the channels of a pattern: ``@hub.channel("orders:{order_id}", history=100)`` on the authorizer, or on a
        class with hooks. Returns the :class:`~hubbub.Topic`, which has ``publish``.

        :param history: how many publications are kept (0: none, no offsets, no recovery).
        :param ttl: for how long, in seconds.
        :param presence: whether subscribers are listed, and joins and leaves told.
        :param slow: what a reader that does not keep up gets: ``disconnect``, ``drop_oldest`` or ``conflate``.
        :param subscribe: who may, where there is no authorizer: ``grant`` (the token says) or ``anyone`` signed in.
        :param publish: which clients may: ``grant``, ``subscribers``, ``anyone`` or ``server`` (none); by default
            ``subscribers`` where ``on_publish`` looks at it, else ``grant``.
        :raises ConfigurationError: it overlaps with another pattern; says where both stand.
        """
        frame_place = _caller()
        topic = Topic(
            pattern,
            history=history,
            ttl=ttl,
            presence=presence,
            slow=slow,
            subscribe=subscribe,
            publish=publish,
            place=frame_place,
        )
        self._declare(Declared(topic))
        return topic

    def connected(self, fn: F) -> F:
        """Called when a session is signed in, before its first message is handled: ``async def f(session: Session)``."""
        self._declare(Declared(Hook("connected", fn, names_around())))
        return fn

    def disconnected(self, fn: F) -> F:
        """Called when a session that was signed in is over."""
        self._declare(Declared(Hook("disconnected", fn, names_around())))
        return fn

    def include_router(
        self,
        router: HubRouter,
        *,
        prefix: str = "",
        channel_prefix: str = "",
        dependencies: Sequence[params.Depends] = (),
    ) -> None:
        """Take over what a router declares. What is added to the router later is not seen.

        :param prefix: put before the types of its messages: ``"orders."``.
        :param channel_prefix: put before its channel patterns: ``"orders:"``.
        :param dependencies: run before each of its handlers.
        """
        if router is self:
            raise ConfigurationError("a router cannot include itself")
        for declared in router.declared:
            what = declared.what
            if isinstance(what, Declaration):
                what = replace(what, prefix=prefix + what.prefix, dependencies=(*dependencies, *what.dependencies))
            self._declare(Declared(what, channel_prefix + declared.channel_prefix))


class HubRouter(Declares):
    """Handlers, channels and hooks of one part of a large app; a hub takes them with ``hub.include_router(router)``.

    :param prefix: put before the types of its messages: ``"orders."``.
    :param channel_prefix: put before its channel patterns: ``"orders:"``.
    :param dependencies: run before each of its handlers.
    """

    def __init__(
        self, *, prefix: str = "", channel_prefix: str = "", dependencies: Sequence[params.Depends] = ()
    ) -> None:
        self.prefix = prefix
        self.channel_prefix = channel_prefix
        self.dependencies = tuple(dependencies)
        self.declared: list[Declared] = []

    def _declare(self, declared: Declared) -> None:
        what = declared.what
        if isinstance(what, Declaration):
            what = replace(
                what, prefix=self.prefix + what.prefix, dependencies=(*self.dependencies, *what.dependencies)
            )
        self.declared.append(Declared(what, self.channel_prefix + declared.channel_prefix))


def _caller() -> str:
    import sys

    frame = sys._getframe(2)
    return f"{frame.f_globals.get('__name__', '?')} ({frame.f_code.co_filename.rpartition('/')[2]}:{frame.f_lineno})"


__all__ = ["Declared", "Declares", "Hook", "HubRouter", "place_of"]
