"""Calling an app's functions with what their signatures ask for: FastAPI's ``Depends``, per message.

The graph of dependencies is worked out once, when a function is declared; a call then walks a flat list. What a
dependency opened with ``yield`` is closed when the function has returned, *before* its reply is sent: a reply says that
the work is done, and a transaction that is not committed is not. ``dependency_overrides`` hold as in FastAPI.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from types import MappingProxyType
from typing import Any, Final, TypeAlias

import anyio
from fastapi import params
from fastapi.concurrency import contextmanager_in_threadpool, run_in_threadpool
from fastapi.exceptions import WebSocketException
from fastapi.security import SecurityScopes
from pydantic import PydanticUserError, TypeAdapter, ValidationError
from starlette.background import BackgroundTasks
from starlette.exceptions import HTTPException
from starlette.requests import HTTPConnection, Request
from starlette.responses import Response
from starlette.websockets import WebSocket

from hubbub.auth import Identity
from hubbub.errors import ClientError, ConfigurationError, ErrorCode
from hubbub.toolkit.session import Session
from hubbub.toolkit.signature import (
    MISSING,
    Parameter,
    asks_the_opening,
    is_async_generator,
    is_coroutine,
    is_generator,
    parameters_of,
    place_of,
)

Overrides: TypeAlias = Mapping[Callable[..., Any], Callable[..., Any]]
Getter: TypeAlias = Callable[["Call"], Any]


NO_NAMES: Final[Mapping[str, str]] = MappingProxyType({})


class Owner:
    """Base of the class by which functions ask for the hub: ``hub: Hubbub``."""


class Call:
    """One call: what the outermost function and its dependencies may ask for.

    :ivar message: the decoded message of a handler, or the data of a publication.
    :ivar names: the variable parts of a channel's name, as text.
    :ivar values: results of the dependencies so far.
    :ivar background: what is to be done after the reply.
    """

    __slots__ = ("app", "background", "hub", "message", "names", "session", "values")

    def __init__(
        self,
        session: Session | None,
        message: Any = None,
        names: Mapping[str, str] = NO_NAMES,
        hub: Any = None,
        app: Any = None,
    ) -> None:
        self.session = session
        self.message = message
        self.names = names
        self.hub = hub
        self.app = app
        self.values: list[Any] = []
        self.background: BackgroundTasks | None = None


class Context:
    """What functions of one kind (handlers, authorizers, …) may ask for.

    :param what: the kind, for errors: ``a handler``.
    :param names: the variable parts of the channel's name.
    :param fields: the fields of the message that dependencies may take by name; None: there is no message.
    :param session: whether there is one.
    """

    def __init__(
        self,
        what: str,
        *,
        names: Iterable[str] = (),
        fields: Iterable[str] | None = None,
        session: bool = True,
    ) -> None:
        self.what = what
        self.names = frozenset(names)
        self.fields = None if fields is None else frozenset(fields)
        self.session = session
        self.found: dict[str, tuple[Any, Any]] | None = None

    @classmethod
    def collecting(cls, what: str) -> Context:
        """For a handler without a message type: what nothing else gives becomes a field of the message (in ``found``)."""
        context = cls(what)
        context.found = {}
        return context

    def settle(self) -> None:
        """The fields are known: an override may use those, and no others."""
        if self.found is not None and self.fields is None:
            self.fields = frozenset(self.found)

    def field(self, place: str, parameter: Parameter) -> bool:
        """Whether a parameter is a field of the message; where fields are being collected, it becomes one."""
        if self.fields is not None:
            return parameter.name in self.fields
        if self.found is None:
            return False
        if parameter.annotation is MISSING:
            raise ConfigurationError(f"{place}: {parameter.name!r} needs an annotation")
        before = self.found.get(parameter.name)
        if before is not None and before[0] != parameter.full:
            raise ConfigurationError(
                f"{place}: {parameter.name!r} is a {parameter.full} here, and a {before[0]} in another dependency"
            )
        if before is None or before[1] is not MISSING:
            self.found[parameter.name] = (parameter.full, parameter.default)
        return True


class _Step:
    """One dependency: what to call, with which arguments, and what kind of callable it is."""

    __slots__ = ("arguments", "function", "kind", "limit")

    def __init__(
        self, function: Callable[..., Any], arguments: Sequence[tuple[str, Getter]], limit: anyio.Semaphore | None
    ) -> None:
        self.arguments = tuple(arguments)
        self.limit = limit
        self.function: Callable[..., Any] = function
        if is_async_generator(function):
            self.kind = _ASYNC_GENERATOR
            self.function = asynccontextmanager(function)
        elif is_generator(function):
            self.kind = _GENERATOR
            self.function = contextmanager(function)
        else:
            self.kind = _COROUTINE if is_coroutine(function) else _FUNCTION


_COROUTINE, _FUNCTION, _ASYNC_GENERATOR, _GENERATOR = range(4)


class _Plan:
    """The flat list of one function's dependencies, and its own arguments."""

    __slots__ = ("arguments", "asks_opening", "keyword_only", "steps", "with_stack")

    def __init__(self) -> None:
        self.keyword_only = False
        self.steps: list[_Step] = []
        self.arguments: tuple[tuple[str, Getter], ...] = ()
        self.with_stack = False
        self.asks_opening = False


class Callee:
    """A function of the app, ready to be called.

    :param fn: the function; a coroutine function, or a plain one (that runs in a thread, as FastAPI does it).
    :param context: what it may ask for.
    :param taken: parameters that are the message itself (or the publication's data), and not asked for elsewhere.
    :param dependencies: ``Depends`` that run first, for their effects.
    :param around: names that annotations may use.
    :raises ConfigurationError: it asks for something that there is not; says where and what instead.
    """

    def __init__(
        self,
        fn: Callable[..., Any],
        context: Context,
        *,
        taken: Mapping[str, Getter] | None = None,
        dependencies: Sequence[params.Depends] = (),
        around: Mapping[str, Any] | None = None,
    ) -> None:
        self.fn = fn
        self.place = place_of(fn)
        self._context = context
        self._taken = dict(taken or {})
        self._dependencies = tuple(dependencies)
        self._around = around
        self._plan = self._compile({})
        context.settle()
        self._overridden: dict[tuple[tuple[Any, Any], ...], _Plan] = {}
        self._awaits = is_coroutine(fn)
        if is_async_generator(fn) or is_generator(fn):
            raise ConfigurationError(f"{self.place}: {context.what} returns its result, it cannot yield")

    @property
    def asks_opening(self) -> bool:
        """Whether something in it takes the opening request (``HTTPConnection``)."""
        return self._plan.asks_opening

    @property
    def takes(self) -> tuple[Getter, ...] | None:
        """What a coroutine function without dependencies takes, in the order of its parameters; None for any other."""
        if not self._awaits or self._plan.steps or self._plan.keyword_only:
            return None
        return tuple(get for _, get in self._plan.arguments)

    async def __call__(self, call: Call) -> Any:
        """Call it; dependencies that yielded are closed when this returns or raises.

        :raises ClientError: it, or a dependency, refuses; HTTPException and WebSocketException become one.
        """
        overrides = getattr(call.app, "dependency_overrides", None)
        plan = self._plan_with(overrides) if overrides else self._plan
        try:
            if plan.with_stack:
                return await self._call_in_stack(plan, call)
            for step in plan.steps:
                arguments = {name: get(call) for name, get in step.arguments}
                if step.kind == _COROUTINE:
                    call.values.append(await step.function(**arguments))
                else:
                    call.values.append(await _in_thread(step.function, **arguments))
            arguments = {name: get(call) for name, get in plan.arguments}
            return await self.fn(**arguments) if self._awaits else await _in_thread(self.fn, **arguments)
        except (HTTPException, WebSocketException) as error:
            raise refusal(error) from error

    def without_waiting(self, call: Call) -> Any:
        """Call a plain function that has no dependencies, here and now."""
        return self.fn(**{name: get(call) for name, get in self._plan.arguments})

    @property
    def waits(self) -> bool:
        """Whether it is a coroutine function, or has dependencies."""
        return self._awaits or bool(self._plan.steps)

    async def _call_in_stack(self, plan: _Plan, call: Call) -> Any:
        returned = False
        async with AsyncExitStack() as stack:
            for step in plan.steps:
                call.values.append(await _open(step, call, stack))
            arguments = {name: get(call) for name, get in plan.arguments}
            fn = self.fn
            result = await fn(**arguments) if self._awaits else await _in_thread(fn, **arguments)
            returned = True
        if not returned:
            raise RuntimeError(
                f"{self.place}: a dependency with yield kept an exception to itself: it must raise it again"
            )
        return result

    # -- once, when it is declared

    def _plan_with(self, overrides: Overrides) -> _Plan:
        key = tuple(overrides.items())
        plan = self._overridden.get(key)
        if plan is None:
            if len(self._overridden) >= 8:
                self._overridden.clear()
            plan = self._overridden[key] = self._compile(overrides)
        return plan

    def _compile(self, overrides: Overrides) -> _Plan:
        return _Compiler(self._context, self._taken, overrides, self._around).plan(self.fn, self._dependencies)


async def _in_thread(fn: Callable[..., Any], **arguments: Any) -> Any:
    """Run a plain function in a thread, as FastAPI does. A thread cannot be stopped, so whoever is cancelled meanwhile
    waits for its end: what it uses must stay open until then."""
    work = asyncio.ensure_future(run_in_threadpool(fn, **arguments))
    try:
        return await asyncio.shield(work)
    except asyncio.CancelledError:
        await asyncio.wait((work,))
        raise


async def _open(step: _Step, call: Call, stack: AsyncExitStack) -> Any:
    arguments = {name: get(call) for name, get in step.arguments}
    if step.kind == _ASYNC_GENERATOR:
        if step.limit is not None:
            await stack.enter_async_context(step.limit)
        return await stack.enter_async_context(step.function(**arguments))
    if step.kind == _GENERATOR:
        if step.limit is not None:
            await stack.enter_async_context(step.limit)
        return await stack.enter_async_context(contextmanager_in_threadpool(step.function(**arguments)))
    if step.limit is None:
        return await _plain(step, arguments)
    async with step.limit:
        return await _plain(step, arguments)


async def _plain(step: _Step, arguments: dict[str, Any]) -> Any:
    if step.kind == _COROUTINE:
        return await step.function(**arguments)
    return await _in_thread(step.function, **arguments)


class _Compiler:
    """Walks the graph below one function, depth first, and flattens it."""

    def __init__(
        self, context: Context, taken: Mapping[str, Getter], overrides: Overrides, around: Mapping[str, Any] | None
    ) -> None:
        self._context = context
        self._taken = taken
        self._overrides = overrides
        self._around = around
        self._plan = _Plan()
        self._known: dict[tuple[Any, tuple[str, ...]], int] = {}
        self._under: list[Callable[..., Any]] = []

    def plan(self, fn: Callable[..., Any], dependencies: Sequence[params.Depends]) -> _Plan:
        for depends in dependencies:
            if depends.dependency is None:
                raise ConfigurationError(f"{place_of(fn)}: Depends() in dependencies= names nothing to call")
            self._dependency(depends, depends.dependency, ())
        self._plan.arguments = tuple(self._arguments(fn, (), outer=True))
        steps = self._plan.steps
        self._plan.with_stack = any(step.kind >= _ASYNC_GENERATOR or step.limit is not None for step in steps)
        return self._plan

    def _arguments(
        self, fn: Callable[..., Any], scopes: tuple[str, ...], *, outer: bool = False
    ) -> Iterable[tuple[str, Getter]]:
        parameters = parameters_of(fn, self._around)
        if outer:  # or one is left to its default, and those after it must be named
            self._plan.keyword_only = any(parameter.keyword_only for parameter in parameters)
        for parameter in parameters:
            if outer and parameter.name in self._taken:
                yield parameter.name, self._taken[parameter.name]
                continue
            getter = self._getter(fn, parameter, scopes)
            if getter is not None:
                yield parameter.name, getter
            elif outer:
                self._plan.keyword_only = True

    def _getter(self, fn: Callable[..., Any], parameter: Parameter, scopes: tuple[str, ...]) -> Getter | None:
        if parameter.depends is not None:
            return self._from_dependency(fn, parameter, parameter.depends, scopes)
        if asks_the_opening(parameter):
            raise ConfigurationError(
                f"{place_of(fn)}: {parameter.name!r} asks for a part of the opening request, which a message does not "
                "have: take a field of the message by its name, or `connection: HTTPConnection`"
            )
        special = self._special(fn, parameter, scopes)
        if special is not None:
            return special
        if parameter.name in self._context.names:
            return _name_getter(fn, parameter)
        if self._context.field(place_of(fn), parameter):
            return _field_getter(parameter.name)
        if parameter.default is not MISSING:
            return None
        raise ConfigurationError(
            f"{place_of(fn)}: nothing is known to give it as {parameter.name!r}; {self._choices()}"
        )

    def _choices(self) -> str:
        context = self._context
        choices = ["session: Session", "identity: Identity"] if context.session else []
        choices += [f"{name}" for name in sorted(context.names)]
        if context.fields is not None:
            choices += [f"{name} (of the message)" for name in sorted(context.fields)]
        return f"{context.what} may take {', '.join(choices)}, and anything with Depends(…)"

    def _special(self, fn: Callable[..., Any], parameter: Parameter, scopes: tuple[str, ...]) -> Getter | None:
        kind = parameter.annotation
        if not isinstance(kind, type):
            return None
        if kind in (Session, Identity) and not self._context.session:
            raise ConfigurationError(
                f"{place_of(fn)}: {self._context.what} has no session to give as {parameter.name!r}"
            )
        if kind is Session:
            return get_session
        if kind is Identity:
            return _get_identity
        if issubclass(kind, Owner):
            return _get_hub
        if kind is HTTPConnection and self._context.session:
            self._plan.asks_opening = True
            return _get_connection
        if kind is SecurityScopes:
            return lambda call: SecurityScopes(list(scopes))
        if issubclass(kind, BackgroundTasks):
            return _get_background
        if kind in (Request, WebSocket, Response, HTTPConnection):
            raise ConfigurationError(
                f"{place_of(fn)}: there is no {kind.__name__} to give as {parameter.name!r}: "
                "take `session: Session`, or `connection: HTTPConnection` for the opening request"
            )
        return None

    def _from_dependency(
        self, fn: Callable[..., Any], parameter: Parameter, depends: params.Depends, scopes: tuple[str, ...]
    ) -> Getter:
        target = depends.dependency or parameter.annotation
        if target is MISSING or not callable(target):
            raise ConfigurationError(f"{place_of(fn)}: Depends() of {parameter.name!r} names nothing to call")
        index = self._dependency(depends, target, scopes)
        return lambda call: call.values[index]

    def _dependency(self, depends: params.Depends, target: Callable[..., Any], scopes: tuple[str, ...]) -> int:
        if isinstance(depends, params.Security) and depends.scopes:
            scopes = (*scopes, *depends.scopes)
        target = self._overrides.get(target, target)
        key = (target, scopes)
        if depends.use_cache and key in self._known:
            return self._known[key]
        if target in self._under:
            raise ConfigurationError(f"{place_of(target)}: it depends on itself")
        self._under.append(target)
        arguments = list(self._arguments(target, scopes))
        self._under.pop()
        self._plan.steps.append(_Step(target, arguments, _limit_of(depends)))
        index = self._known[key] = len(self._plan.steps) - 1
        return index


def _limit_of(depends: params.Depends) -> anyio.Semaphore | None:
    """``Depends(…, max_concurrency=5)`` (FastAPI has it since 0.160): one limit for all uses of one declaration."""
    limit = getattr(depends, "max_concurrency", None)
    if limit is None:
        return None
    if id(depends) not in _limits:
        _limits[id(depends)] = (depends, anyio.Semaphore(limit))
    return _limits[id(depends)][1]


_limits: Final[dict[int, tuple[params.Depends, anyio.Semaphore]]] = {}


STATUS_CODES: Final = {
    400: ErrorCode.INVALID_MESSAGE,
    401: ErrorCode.AUTHENTICATION_REQUIRED,
    403: ErrorCode.FORBIDDEN,
    404: ErrorCode.NOT_FOUND,
    409: ErrorCode.CONFLICT,
    413: ErrorCode.TOO_LARGE,
    422: ErrorCode.INVALID_MESSAGE,
    429: ErrorCode.RATE_LIMITED,
    503: ErrorCode.UNAVAILABLE,
}


def refusal(error: HTTPException | WebSocketException) -> Exception:
    """What a shared dependency raises for HTTP, as the refusal of a message. A 5xx is a fault of ours, and stays one."""
    if isinstance(error, WebSocketException):
        return ClientError(ErrorCode.FORBIDDEN, error.reason or "refused", close=error.code)
    code = STATUS_CODES.get(error.status_code)
    if code is None and error.status_code >= 500:
        return error
    detail = error.detail if isinstance(error.detail, str) else "refused"
    retry = (error.headers or {}).get("retry-after") or (error.headers or {}).get("Retry-After")
    after = float(retry) if retry is not None and retry.isdigit() else None
    return ClientError(code or ErrorCode.INVALID_MESSAGE, detail, retry_after=after)


def get_message(call: Call) -> Any:
    """The message itself."""
    return call.message


def get_session(call: Call) -> Any:
    return call.session


def _get_identity(call: Call) -> Any:
    return call.session.identity if call.session is not None else None


def _get_hub(call: Call) -> Any:
    return call.hub


def _get_connection(call: Call) -> Any:
    assert call.session is not None
    return call.session._connection(call.app)


def _get_background(call: Call) -> Any:
    if call.background is None:
        call.background = BackgroundTasks()
    return call.background


def _field_getter(name: str) -> Getter:
    def get(call: Call) -> Any:
        message = call.message
        return message[name] if isinstance(message, dict) else getattr(message, name)

    return get


_TEXT: Final = (str, MISSING, Any)


def _name_getter(fn: Callable[..., Any], parameter: Parameter) -> Getter:
    """A variable part of the channel's name, as the type that the function asks for."""
    name = parameter.name
    if parameter.full in _TEXT:
        return lambda call: call.names[name]
    try:
        convert = TypeAdapter(parameter.full).validate_python
    except PydanticUserError as error:
        raise ConfigurationError(f"{place_of(fn)}: {name!r} cannot be read from a channel's name: {error}") from None

    def get(call: Call) -> Any:
        try:
            return convert(call.names[name])
        except ValidationError:
            raise ClientError(ErrorCode.NOT_FOUND, "there is no such channel") from None

    return get


__all__ = ["Call", "Callee", "Context", "Owner"]
