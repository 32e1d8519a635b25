"""The chat's messages as OpenAPI shows them: parameters, bodies, answers.

OpenAPI 3.1 takes the JSON Schemas that msgspec writes for what comes in. What goes out gets twins that pydantic knows,
since only those find their way into the components of an app's document without a clash of names.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator
from functools import cache, reduce
from operator import or_
from typing import Annotated, Any, Final, Literal, TypeAlias

import msgspec
from msgspec import NODEFAULT, Struct
from msgspec import inspect as types
from msgspec.structs import FieldInfo, fields
from pydantic import BaseModel, Field, create_model

Schema: TypeAlias = dict[str, Any]
ENVELOPE: Final = frozenset({"type", "ref"})
"""What a message of the socket has beside its own fields."""


# -- what goes out


@cache
def twin(struct: type[Struct]) -> type[BaseModel]:
    """A pydantic model that describes what is sent of a message or a part of one: without ``type`` and ``ref``."""
    info = types.type_info(struct)
    assert isinstance(info, types.StructType)
    shown: Any = {each.encode_name: _field(each) for each in info.fields if each.encode_name not in ENVELOPE}
    made: type[BaseModel] = create_model(
        struct.__name__, __module__=struct.__module__, __doc__=docstring(struct), **shown
    )
    return made


def _field(field: types.Field) -> tuple[Any, Any]:
    """A field's type and default. One that is left out at its default is never null."""
    kind = field.type
    if field.default is None and isinstance(kind, types.UnionType):
        rest = tuple(each for each in kind.types if not isinstance(each, types.NoneType))
        return _type(types.UnionType(rest)), Field(default_factory=_nothing)
    if field.required:
        return _type(kind), ...
    if field.default is NODEFAULT:
        factory = None if field.default_factory is NODEFAULT else field.default_factory
        return _type(kind), Field(default_factory=factory or _nothing)
    return _type(kind), Field(default=field.default)


def _nothing() -> None:
    """The default of a field that is not there: so it is not shown as one."""


def _type(kind: types.Type) -> Any:
    """A type as pydantic reads it."""
    match kind:
        case types.StructType(cls=struct):
            return twin(struct)
        case types.UnionType(types=parts):
            return reduce(or_, [_type(part) for part in parts])
        case types.LiteralType(values=values):
            return Literal[values]
        case types.ListType(item_type=item) | types.VarTupleType(item_type=item):
            return list[_type(item)]  # type: ignore[misc]  # mypy takes the call for a type
        case types.TupleType(item_types=items):
            return tuple[tuple(_type(item) for item in items)]  # type: ignore[misc]  # the same
        case types.DictType(value_type=value):
            return dict[str, _type(value)]  # type: ignore[misc]  # the same
        case types.StrType(min_length=least, max_length=most):
            return Annotated[str, Field(min_length=least, max_length=most)] if least or most else str
        case types.IntType(ge=low, le=high):
            return int if low is None and high is None else Annotated[int, Field(ge=low, le=high)]
        case types.BoolType():
            return bool
        case types.FloatType():
            return float
        case types.NoneType():
            return None
    return Any


# -- what comes in


def query_parameters(struct: type[Struct], names: Iterable[str]) -> Iterator[Schema]:
    """Fields of a message as query parameters; an object among them as one parameter for each of its fields."""
    whole, parts = _read(struct)
    for name in names:
        schema = whole["properties"][name]
        inner = parts.get(schema.get("$ref", "").rpartition("/")[2])
        if inner is not None:
            yield from (
                _parameter("query", each, part, required=name in whole["required"])
                for each, part in inner["properties"].items()
            )
        else:
            yield _parameter("query", name, schema, required=name in whole["required"])


def path_parameters(struct: type[Struct], names: Iterable[str]) -> Iterator[Schema]:
    """Fields of a message as parts of the path."""
    properties = _read(struct)[0]["properties"]
    return (_parameter("path", name, properties[name], required=True) for name in names)


def body_schema(struct: type[Struct], names: Iterable[str]) -> Schema:
    """Fields of a message as the body of a request, which has no others."""
    whole = _read(struct)[0]
    properties = {name: whole["properties"][name] for name in names}
    made: Schema = {"type": "object", "title": struct.__name__, "properties": properties}
    required = [name for name in whole["required"] if name in properties]
    return made | ({"required": required} if required else {}) | {"additionalProperties": False}


def _parameter(place: str, name: str, schema: Schema, *, required: bool) -> Schema:
    choices = [each for each in schema.get("anyOf", ()) if each != {"type": "null"}]
    if len(choices) == 1:  # what is left out has no value; there is no null in a query
        schema = choices[0]
    made: Schema = {"name": name, "in": place, "required": required, "schema": schema}
    if schema.get("type") == "array":
        made["description"] = "Repeated; or one value with commas."
    return made


@cache
def _read(struct: type[Struct]) -> tuple[Schema, dict[str, Schema]]:
    """A message's schema, and those of its parts by their names."""
    _, found = msgspec.json.schema_components([struct], ref_template="#/{name}")
    return found.pop(struct.__name__), found


def own_fields(struct: type[Struct]) -> dict[str, FieldInfo]:
    """A message's fields without those of the envelope."""
    return {each.encode_name: each for each in fields(struct) if each.encode_name not in ENVELOPE}


def docstring(kind: Any) -> str:
    """A type's or a function's own docstring."""
    return inspect.cleandoc((kind.__dict__.get("__doc__") if isinstance(kind, type) else kind.__doc__) or "")


__all__ = ["Schema", "body_schema", "docstring", "own_fields", "path_parameters", "query_parameters", "twin"]
