"""Reads a message of the socket out of a request, as strictly as the socket does; fields that it does not have are refused."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final

import msgspec
from fastapi import Request
from msgspec import inspect as types

from hubbub.errors import ClientError, ErrorCode
from hubbub.features.chat import asks
from hubbub.messages import ClientMessage
from hubbub.rest import schemas

FIXED: Final[Mapping[type[ClientMessage], dict[str, Any]]] = {asks.LeaveRoom: {"membership": True}}
"""Fields that the path says already."""
ALWAYS: Final = frozenset({"as_user"})
"""Query parameters of every command."""
_IN_PATH: Final = re.compile(r"\{(\w+)\}")
_WITH_SLASHES: Final = ("user_id", "emoji")
"""What may have any character in it, so also the one that parts a path."""


class Reader:
    """Reads messages of one kind: from the path, and from the body or (GET, DELETE) the query.

    :param http: method and path, like ``POST /api/rooms``.
    :ivar route: the path as the router wants it.
    """

    def __init__(self, struct: type[ClientMessage], http: str) -> None:
        self.struct = struct
        self.method, _, path = http.partition(" ")
        self.route = _IN_PATH.sub(_converting, path)
        self._in_path = tuple(_IN_PATH.findall(path))
        self._fixed = FIXED.get(struct, {})
        self._fields = schemas.own_fields(struct)
        self._rest = tuple(name for name in self._fields if name not in self._in_path and name not in self._fixed)
        self.has_body = self.method not in ("GET", "DELETE") and bool(self._rest)
        info = types.type_info(struct)
        assert isinstance(info, types.StructType)
        kinds = {each.encode_name: each.type for each in info.fields}
        self._lists = {name for name in self._rest if isinstance(kinds[name], types.ListType | types.VarTupleType)}
        self._objects = {name: dict.fromkeys(_parts(kinds[name])) for name in self._rest if _parts(kinds[name])}

    def describe(self) -> schemas.Schema:
        """What OpenAPI says of the request."""
        parameters = list(schemas.path_parameters(self.struct, self._in_path))
        made: schemas.Schema = {}
        if self.has_body:
            body = schemas.body_schema(self.struct, self._rest)
            made["requestBody"] = {"required": "required" in body, "content": {"application/json": {"schema": body}}}
        else:
            parameters += schemas.query_parameters(self.struct, self._rest)
        return made | ({"parameters": parameters} if parameters else {})

    async def read(self, request: Request) -> Any:
        """:raises ClientError: ``invalid_message``: says what is wrong, and where."""
        query = [pair for pair in request.query_params.multi_items() if pair[0] not in ALWAYS]
        body = await request.body()
        if self.has_body:
            _refuse_unknown((name for name, _ in query), (), "query parameter")
            found = self._from_body(body)
        else:
            if body.strip() not in (b"", b"{}"):
                raise _wrong("this takes no body" + ("; its fields are query parameters" if self._rest else ""))
            found = self._from_query(query)
        found |= self._from_path(request) | self._fixed
        for name, value in found.items():
            _refuse_nul(name, value)
        try:
            return msgspec.convert(found, self.struct, strict=self.has_body)
        except msgspec.ValidationError as error:
            raise _wrong(str(error)) from None

    def _from_path(self, request: Request) -> dict[str, Any]:
        return {name: self._of_text(name, request.path_params[name]) for name in self._in_path}

    def _of_text(self, name: str, text: str) -> Any:
        try:
            return msgspec.convert(text, self._fields[name].type, strict=False)
        except msgspec.ValidationError as error:
            raise _wrong(f"{error} - at `$.{name}`") from None

    def _from_body(self, body: bytes) -> dict[str, Any]:
        found = msgspec.json.decode(body) if body else {}
        if not isinstance(found, dict):
            raise _wrong("the body is one JSON object")
        _refuse_unknown(found, self._rest, "field")
        return found

    def _from_query(self, query: list[tuple[str, str]]) -> dict[str, Any]:
        plain = [name for name in self._rest if name not in self._objects]
        inner = {part: name for name, parts in self._objects.items() for part in parts}
        _refuse_unknown((name for name, _ in query), (*plain, *inner), "query parameter")
        given: dict[str, list[str]] = {}
        for name, value in query:
            given.setdefault(name, []).append(value)
        found: dict[str, Any] = {name: {} for name in self._objects if self._fields[name].required}
        for name, values in given.items():
            if name in self._lists:
                found[name] = values if len(values) > 1 else values[0].split(",")
            elif len(values) > 1:
                raise _wrong(f"this is there {len(values)} times, and may be there once - at `$.{name}`")
            elif name in inner:
                found.setdefault(inner[name], {})[name] = values[0]
            else:
                found[name] = values[0]
        return found


def _converting(match: re.Match[str]) -> str:
    return f"{{{match[1]}:path}}" if match[1] in _WITH_SLASHES else match[0]


def _parts(kind: types.Type) -> list[str]:
    """The fields of an object, which a query has side by side with the others."""
    choices = kind.types if isinstance(kind, types.UnionType) else (kind,)
    return [field.encode_name for each in choices if isinstance(each, types.StructType) for field in each.fields]


def _refuse_unknown(given: Iterable[str], known: Iterable[str], what: str) -> None:
    names = [*known]
    for name in given:
        if name not in names:
            there = f"there are {', '.join(names)}" if names else "there are none here"
            raise _wrong(f"there is no {what} {name[:64]!r}: {there}")


def _refuse_nul(name: str, value: Any) -> None:
    """No database keeps it, and not every one says so in words for people."""
    if any("\x00" in text for text in _texts(value)):
        raise _wrong(f"there may be no NUL in it - at `$.{name}`")


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, list | tuple):
        for each in value:
            yield from _texts(each)
    elif isinstance(value, dict):
        for each in value.values():
            yield from _texts(each)


def _wrong(text: str) -> ClientError:
    return ClientError(ErrorCode.INVALID_MESSAGE, text[:300])


__all__ = ["Reader"]
