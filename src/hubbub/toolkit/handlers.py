"""Typed handlers: an app's function for one type of message, whose signature is the message's schema."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
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
from hubbub.toolkit.dependencies import NO_NAMES, Call, Callee, Context, Owner, refusal
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
from hubbub.toolkit.signature import MISSING, Parameter, parameters_of, place_of, returns

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
        self.shape, self._callee = self._read(declared)
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
            message = self.shape.decode(raw, is_json=isinstance(raw, str), ref=command.ref)
        self._hub.runs.start(core, command, self._run(core, message, command.ref), self._timeout)

    async def _run(self, core: CoreSession, message: Any, ref: str | None) -> None:
        owner = self._owner
        session: Any = core.handle or session_of(core, self._hub)
        call = Call(session, message, NO_NAMES, owner, owner.app)
        try:
            result = await self._callee.call(call)
        except (HTTPException, WebSocketException) as error:
            raise refusal(error) from error
        link = core.link
        if result is not None:
            if self._result is not None and not isinstance(result, self._result):
                raise TypeError(
                    f"{self.place}: returned a {type(result).__qualname__}, not {self._result.__qualname__}"
                )
            self._hub.answer(link, message_bytes(result, self.reply, ref, link.lane.codec))
        elif ref is not None:
            self._hub.answer(link, link.lane.codec.encode(Ack(ref=ref)))
        if call.background is not None:
            link.flush()  # they run after the reply
            await call.background()

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
            return shape, Callee(fn, context, taken={own[0].name: _message}, **more)
        context = Context.collecting("a handler")
        callee = Callee(fn, context, **more)
        if not context.found:
            return None, callee
        try:
            model = from_parameters(f"{fn.__name__}_message", context.found)
        except CannotServe as error:
            raise ConfigurationError(f"{self.place}: its parameters cannot be fields of a message: {error}") from None
        return self._shape(model, "its parameters"), callee

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


def _message(call: Call) -> Any:
    return call.message


def is_special(parameter: Parameter) -> bool:
    """Whether a parameter is asked for by its type, and so is nothing of the message."""
    kind = parameter.annotation
    if not isinstance(kind, type):
        return False
    return issubclass(kind, (Session, Identity, Owner, HTTPConnection, Response, BackgroundTasks, SecurityScopes))


__all__ = ["Declaration", "Handler"]
