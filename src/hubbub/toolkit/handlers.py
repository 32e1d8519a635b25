"""Typed handlers: an app's function for one type of message, whose signature is the message's schema."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from contextvars import copy_context
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import msgspec
from fastapi import params
from fastapi.exceptions import WebSocketException
from fastapi.security import SecurityScopes
from starlette.background import BackgroundTasks
from starlette.exceptions import HTTPException
from starlette.requests import HTTPConnection
from starlette.responses import Response

from hubbub.auth import Identity
from hubbub.errors import ConfigurationError
from hubbub.messages import Ack, ClientMessage
from hubbub.session import Session as CoreSession
from hubbub.toolkit.dependencies import NO_NAMES, Call, Callee, Context, Owner, get_message, get_session, refusal
from hubbub.toolkit.session import Session, session_of
from hubbub.toolkit.shapes import (
    CannotServe,
    Shape,
    fields_of,
    from_parameters,
    is_object,
    message_bytes,
    own_type,
    reply_name_is_free,
)
from hubbub.toolkit.signature import MISSING, Parameter, never_waits, parameters_of, place_of, returns

if TYPE_CHECKING:
    from hubbub.hub import Hub

TYPE_NAME: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_.:/-]{0,63}")
"""What a message's type may be called."""


@dataclass(frozen=True, slots=True)
class Declaration:
    """What ``@hub.on(…)`` was told; made into a :class:`Handler` by the hub that gets it.

    :ivar type: the messages' type; None: the message's own tag, or the function's name.
    :ivar prefix: what routers put before it.
    :ivar around: names that the function's annotations may use.
    """

    fn: Callable[..., Any]
    type: str | None
    reply: str | None = None
    timeout: float | None = None
    anonymous: bool = False
    dependencies: tuple[params.Depends, ...] = ()
    prefix: str = ""
    around: Mapping[str, Any] = field(default_factory=dict)


class Handler:
    """One handler of one hub.

    :ivar type: of the messages that it handles.
    :ivar shape: what they are decoded as; None: they have no fields.
    :ivar returns: the annotated reply; None where it has none.
    :ivar reply: the reply's ``type``.
    :raises ConfigurationError: the function's signature cannot be served; says why, and where it stands.
    """

    def __init__(self, declared: Declaration, hub: Hub, owner: Any) -> None:
        self.fn = declared.fn
        self.place = place_of(declared.fn)
        self.anonymous = declared.anonymous
        self._hub = hub
        self._owner = owner
        self._timeout = declared.timeout
        self._start = hub.runs.start
        self.shape, self._callee = self._read(declared)
        self._takes = self._taken()
        self._immediate = self._takes is not None and never_waits(declared.fn) and owner.app is not None
        self.type = declared.prefix + self._type_of(declared)
        if TYPE_NAME.fullmatch(self.type) is None:
            raise ConfigurationError(
                f"{self.place}: {self.type!r} is no type of a message: 1 to 64 of A-Z a-z 0-9 _ . : / -"
            )
        self.returns, self._result = self._reply_of(declared)
        self.reply = declared.reply or own_type(self.returns) or f"{self.type}.reply"
        if not 1 <= len(self.reply) <= 64:
            raise ConfigurationError(f"{self.place}: reply={self.reply!r} is no type of a message")

    @property
    def asks_opening(self) -> bool:
        return self._callee.asks_opening

    def struct(self) -> type[ClientMessage]:
        """What the hub's decoder knows the message by: only its type and ``ref``; the rest is decoded here."""
        made: Any = msgspec.defstruct(
            "AppMessage", [], bases=(ClientMessage,), tag_field="type", tag=self.type, module=__name__
        )
        struct: type[ClientMessage] = made
        return struct

    def handle(self, core: CoreSession, command: ClientMessage, raw: str | bytes) -> None:
        """Decode a message and start the function on it (a hub's route).

        :raises WrongMessage: it does not fit the signature.
        """
        message = None
        if self.shape is not None:
            message = self.shape.decode(raw, is_json=type(raw) is str, ref=command.ref)
        if self._immediate and not self._owner.app.dependency_overrides:
            self._run_now(core, message, command.ref)
            return
        self._start(core, command, self._run(core, message, command.ref), self._timeout)

    def _run_now(self, core: CoreSession, message: Any, ref: str | None) -> None:
        """A function that never waits needs no task, which would be half of the cost. It gets a context of its own."""
        session: Any = core.handle or session_of(core, self._hub)
        assert self._takes is not None
        work = self.fn(*[message if it else session for it in self._takes])
        try:
            copy_context().run(work.send, None)
        except StopIteration as end:
            payload = self._payload(core, end.value, ref)
        except (HTTPException, WebSocketException) as error:
            raise refusal(error) from error
        else:
            raise RuntimeError(f"{self.place}: it waited, though there is no await in it")
        if payload is not None:
            core.link.send(payload)

    def _payload(self, core: CoreSession, result: Any, ref: str | None) -> bytes | None:
        """What answers a message, in the session's codec; None for nothing.

        :raises TypeError: the function returned something else than it says, or what has no JSON form.
        """
        codec = core.link.lane.codec
        if result is None:
            return None if ref is None else codec.encode(Ack(ref=ref))
        if self._result is not None and not isinstance(result, self._result):
            raise TypeError(f"{self.place}: returned a {type(result).__qualname__}, not {self._result.__qualname__}")
        return message_bytes(result, self.reply, ref, codec)

    async def _run(self, core: CoreSession, message: Any, ref: str | None) -> None:
        session: Any = core.handle or session_of(core, self._hub)
        takes = self._takes
        background = None
        app = self._owner.app
        if takes is None or (app is not None and app.dependency_overrides):
            call = Call(session, message, NO_NAMES, self._owner, app)
            result = await self._callee(call)
            background = call.background
        else:  # most handlers: no dependencies, and only these two to give
            try:
                result = await self.fn(*[message if it else session for it in takes])
            except (HTTPException, WebSocketException) as error:
                raise refusal(error) from error
        payload = self._payload(core, result, ref)
        if payload is not None:
            core.link.send(payload)
        if background is not None:
            core.link.flush()  # they run after the reply
            await background()

    # -- once, when it is declared

    def _read(self, declared: Declaration) -> tuple[Shape | None, Callee]:
        """The message's shape, and the function ready to be called. One object is the whole message; anything else is
        a field of it (as FastAPI reads a body)."""
        fn, around = declared.fn, declared.around
        own = [p for p in parameters_of(fn, around) if p.depends is None and not is_special(p)]
        more: dict[str, Any] = {"dependencies": declared.dependencies, "around": around}
        if len(own) == 1 and is_object(own[0].annotation):
            shape = self._shape(own[0].full, f"{own[0].name!r}")
            context = Context("a handler", fields=shape.fields)
            return shape, Callee(fn, context, taken={own[0].name: get_message}, **more)
        context = Context.collecting("a handler")
        callee = Callee(fn, context, **more)
        if not context.found:
            return None, callee
        try:
            model = from_parameters(f"{fn.__name__}_message", context.found)
        except CannotServe as error:
            raise ConfigurationError(f"{self.place}: its parameters cannot be fields of a message: {error}") from None
        return self._shape(model, "its parameters"), callee

    def _taken(self) -> tuple[bool, ...] | None:
        """Where the function takes nothing but the message (True) and the session (False): which, in their order."""
        takes = self._callee.takes
        if takes is None or not set(takes) <= {get_message, get_session}:
            return None
        return tuple(get is get_message for get in takes)

    def _shape(self, kind: Any, what: str) -> Shape:
        try:
            return Shape(kind, whole=True)
        except CannotServe as error:
            raise ConfigurationError(f"{self.place}: {what} cannot be a message: {error}") from None

    def _type_of(self, declared: Declaration) -> str:
        own = own_type(self.shape.kind) if self.shape is not None else None
        name = declared.type if declared.type is not None else own or declared.fn.__name__
        if own is not None and own != declared.prefix + name:
            raise ConfigurationError(
                f"{self.place}: its message says of itself that its type is {own!r}, not {declared.prefix + name!r}"
            )
        return name

    def _reply_of(self, declared: Declaration) -> tuple[Any, type[Any] | None]:
        annotation = returns(declared.fn, declared.around)
        if annotation in (MISSING, None, type(None), Any):
            return None, None
        try:
            Shape(annotation, whole=False)
            if isinstance(annotation, type):
                reply_name_is_free(annotation)
        except (CannotServe, TypeError) as error:
            raise ConfigurationError(f"{self.place}: what it returns cannot be sent: {error}") from None
        checked = isinstance(annotation, type) and fields_of(annotation) is not None and is_class(annotation)
        return annotation, annotation if checked else None


def is_class(annotation: Any) -> bool:
    """Whether ``isinstance`` can be asked of it (not of a TypedDict)."""
    try:
        isinstance(None, annotation)
    except TypeError:
        return False
    return True


def is_special(parameter: Parameter) -> bool:
    """Whether a parameter is asked for by its type, and so is nothing of the message."""
    kind = parameter.annotation
    if not isinstance(kind, type):
        return False
    return issubclass(kind, (Session, Identity, Owner, HTTPConnection, Response, BackgroundTasks, SecurityScopes))


__all__ = ["Declaration", "Handler"]
