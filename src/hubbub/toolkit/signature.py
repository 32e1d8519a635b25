"""Reading the signature of an app's function: its parameters with their types, and where it stands, for errors."""

from __future__ import annotations

import asyncio
import dis
import functools
import inspect
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Final, get_args, get_origin, get_type_hints

from fastapi import params

from hubbub.errors import ConfigurationError

MISSING: Final = inspect.Parameter.empty
"""No default, or no annotation."""


@dataclass(frozen=True, slots=True)
class Parameter:
    """One parameter.

    :ivar annotation: its type, without ``Annotated``; :data:`MISSING` where there is none.
    :ivar full: the same with it.
    :ivar depends: its ``Depends(…)``, as a default or in ``Annotated``.
    """

    name: str
    annotation: Any
    full: Any
    default: Any
    depends: params.Depends | None
    keyword_only: bool


def place_of(fn: Callable[..., Any]) -> str:
    """Where a function stands, as a person looks for it: ``shop.cancel (shop.py:12)``."""
    inner = inspect.unwrap(_whole(fn))
    module, name = getattr(inner, "__module__", "?"), getattr(inner, "__qualname__", repr(inner))
    code = getattr(inner, "__code__", None)
    if code is None:
        return f"{module}.{name}"
    return f"{module}.{name} ({code.co_filename.rpartition('/')[2]}:{code.co_firstlineno})"


def names_around(depth: int = 2) -> dict[str, Any]:
    """The names that the code which called our caller sees: types may be declared inside a function (tests do)."""
    frame = sys._getframe(depth)
    found: dict[str, Any] = {}
    levels = []
    while frame is not None and frame.f_code.co_name != "<module>":
        levels.append(frame.f_locals)
        frame = frame.f_back  # type: ignore[assignment]  # None at the end
        if len(levels) == 2:
            break
    for level in reversed(levels):
        found.update({name: value for name, value in level.items() if callable(value) or get_origin(value)})
    return found


def _whole(fn: Callable[..., Any]) -> Callable[..., Any]:
    while isinstance(fn, functools.partial):
        fn = fn.func
    return fn


def _function(fn: Callable[..., Any]) -> Any:
    """What carries the annotations of a callable: itself, the ``__init__`` of a class, the ``__call__`` of an object."""
    fn = inspect.unwrap(_whole(fn))
    if inspect.isclass(fn):
        return fn.__init__
    if inspect.isfunction(fn) or inspect.ismethod(fn) or inspect.isbuiltin(fn):
        return fn
    return getattr(type(fn), "__call__", fn)  # noqa: B004  # its annotations are wanted


def parameters_of(fn: Callable[..., Any], around: Mapping[str, Any] | None = None) -> list[Parameter]:
    """A callable's parameters.

    :param around: names that annotations may use beside those of the function's module.
    :raises ConfigurationError: an annotation cannot be read, or it takes ``*args`` or ``**kwargs``.
    """
    try:
        signature = inspect.signature(fn)
    except (ValueError, TypeError):
        raise ConfigurationError(f"{place_of(fn)}: its signature cannot be read") from None
    hints = _hints(fn, around)
    found = []
    for name, parameter in signature.parameters.items():
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD, parameter.POSITIONAL_ONLY):
            if inspect.isclass(fn) and parameter.kind is not parameter.POSITIONAL_ONLY:
                continue  # of a base class that takes anything
            raise ConfigurationError(f"{place_of(fn)}: {name!r} must be a parameter that can be given by name")
        full = hints.get(name, MISSING)
        depends = _depends(full, parameter.default)
        only = parameter.kind is parameter.KEYWORD_ONLY
        found.append(Parameter(name, _bare(full), full, parameter.default, depends, only))
    return found


def returns(fn: Callable[..., Any], around: Mapping[str, Any] | None = None) -> Any:
    """The annotated return type, or :data:`MISSING`."""
    return _hints(fn, around).get("return", MISSING)


def _hints(fn: Callable[..., Any], around: Mapping[str, Any] | None) -> dict[str, Any]:
    try:
        return get_type_hints(_function(fn), localns=dict(around or {}), include_extras=True)
    except NameError as error:
        raise ConfigurationError(
            f"{place_of(fn)}: the annotation {error.name!r} is not known where the function stands"
        ) from None
    except TypeError as error:
        raise ConfigurationError(f"{place_of(fn)}: its annotations cannot be read: {error}") from None


def _bare(annotation: Any) -> Any:
    return get_args(annotation)[0] if get_origin(annotation) is Annotated else annotation


def _depends(annotation: Any, default: Any) -> params.Depends | None:
    if isinstance(default, params.Depends):
        return default
    if get_origin(annotation) is Annotated:
        for extra in reversed(get_args(annotation)[1:]):
            if isinstance(extra, params.Depends):
                return extra
    return None


def asks_the_opening(parameter: Parameter) -> bool:
    """Whether it is a ``Query()``, ``Header()``, ``Body()`` or the like."""
    extras = get_args(parameter.full)[1:] if get_origin(parameter.full) is Annotated else ()
    return any(isinstance(each, params.Param | params.Body) for each in (parameter.default, *extras))


def is_coroutine(fn: Callable[..., Any]) -> bool:
    """Whether calling it gives something to await. Else it is run in a thread, as FastAPI does."""
    return _is(fn, asyncio.iscoroutinefunction)


_WAITING: Final = frozenset({"GET_AWAITABLE", "GET_AITER", "GET_ANEXT", "BEFORE_ASYNC_WITH", "SEND", "YIELD_VALUE"})
"""Instructions without which no coroutine can wait."""


def never_waits(fn: Callable[..., Any]) -> bool:
    """Whether a coroutine function has no ``await``, ``async for`` or ``async with`` in it: it ends in its first step."""
    code = getattr(fn, "__code__", None)
    if code is None or not inspect.iscoroutinefunction(fn):
        return False
    return not any(instruction.opname in _WAITING for instruction in dis.get_instructions(code))


def is_async_generator(fn: Callable[..., Any]) -> bool:
    return _is(fn, inspect.isasyncgenfunction)


def is_generator(fn: Callable[..., Any]) -> bool:
    return _is(fn, inspect.isgeneratorfunction)


def _is(fn: Callable[..., Any], test: Callable[[Any], bool]) -> bool:
    fn = _whole(fn)
    if inspect.isclass(fn):
        return False
    return test(fn) or test(inspect.unwrap(fn)) or (not inspect.isroutine(fn) and test(getattr(fn, "__call__", None)))  # noqa: B004
