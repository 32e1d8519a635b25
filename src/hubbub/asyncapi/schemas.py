"""JSON Schemas of types (msgspec's and pydantic's) as the components of one document, and samples of them.

AsyncAPI's own schemas are those of JSON Schema draft 07 (AsyncAPI 3.0.0, "Schema Object"); both libraries write
draft 2020-12, so the few words that differ are put into the older form.
"""

from __future__ import annotations

import inspect
import json
import logging
import re
from collections.abc import Callable, Mapping
from typing import Any, Final, TypeAlias, get_args

import msgspec
from msgspec import Raw, Struct, UnsetType
from pydantic import TypeAdapter
from pydantic.json_schema import GenerateJsonSchema

from hubbub.toolkit.shapes import uses_pydantic

log = logging.getLogger("hubbub")
Schema: TypeAlias = dict[str, Any]
REF: Final = "#/components/schemas/"
_MAPS: Final = ("properties", "patternProperties")
_LISTS: Final = ("anyOf", "oneOf", "allOf")
_SINGLE: Final = (
    "items",
    "additionalProperties",
    "additionalItems",
    "not",
    "contains",
    "propertyNames",
    "if",
    "then",
    "else",
)


class _Quiet(GenerateJsonSchema):
    """Pydantic's generator; a default without a JSON form is left out without a warning."""

    ignored_warning_kinds = {"skipped-choice", "non-serializable-default"}  # noqa: RUF012  # as pydantic declares it


class Schemas:
    """The schemas of one document.

    :ivar components: those that have a name, as they are referred to: ``#/components/schemas/<name>``.
    """

    def __init__(self) -> None:
        self.components: dict[str, Schema] = {}
        self._places: dict[str, str] = {}

    def of(self, kind: Any, *, sent: bool) -> Schema:
        """The schema of a type; what it refers to is among the components afterwards.

        :param sent: as the server sends it, else as a client does (pydantic may tell the two apart).
        """
        schema, named = _read(kind, sent)
        title = schema.get("title")
        if "properties" in schema and title and title not in named:  # pydantic gives no name to the outermost one
            schema, named = {"$ref": REF + title}, {**named, title: schema}
        return self._placed(schema, named, sent)

    def whole(self, kind: Any, *, sent: bool) -> Schema:
        """The same, but never a reference: the type's own fields stand in it."""
        schema, named = _read(kind, sent)
        while "$ref" in schema and schema["$ref"].removeprefix(REF) in named:
            schema = {**named[schema["$ref"].removeprefix(REF)], **{k: v for k, v in schema.items() if k != "$ref"}}
        placed = self._placed(schema, named, sent)
        if sent and _is_struct(kind):
            _leave_out(placed, kind)
        return placed

    def _placed(self, schema: Schema, named: Mapping[str, Schema], sent: bool) -> Schema:
        """The schema with the names that its parts have in this document: two types of one name get two."""
        names: dict[str, str] = {}
        new = []
        for name in _reachable(schema, named):
            closure = {each: named[each] for each in sorted({name, *_reachable(named[name], named)})}
            key = json.dumps([name, closure], sort_keys=True, default=str)
            if key not in self._places:
                self._places[key] = self._free(name, sent)
                self.components[self._places[key]] = {}
                new.append(name)
            names[name] = self._places[key]
        for name in new:
            self.components[names[name]] = _older(named[name], lambda old: names.get(old, old))
        made: Schema = _older(schema, lambda old: names.get(old, old))
        return made

    def _free(self, name: str, sent: bool) -> str:
        wanted = re.sub(r"[^\w.-]", "_", name, flags=re.ASCII)
        return free(wanted, self.components, f"{wanted}-Output" if sent else None)


def free(name: str, taken: Mapping[str, Any], other: str | None = None) -> str:
    """The name, or the first of those made of it that is not taken yet."""
    if name not in taken:
        return name
    if other is not None and other not in taken:
        return other
    number = 2
    while f"{name}-{number}" in taken:
        number += 1
    return f"{name}-{number}"


def _read(kind: Any, sent: bool) -> tuple[Schema, dict[str, Schema]]:
    """The schema of a type as its library writes it, and the named ones that it refers to."""
    try:
        if not _is_struct(kind) and uses_pydantic(kind):
            mode: Any = "serialization" if sent else "validation"
            made: Schema = TypeAdapter(kind).json_schema(
                ref_template=REF + "{model}", schema_generator=_Quiet, mode=mode
            )
            named = made.pop("$defs", {})
            return made, named
        (made,), named = msgspec.json.schema_components([_without_raw(kind)], ref_template=REF + "{name}")
    except Exception as error:  # an app's own schema hooks run here; one type must not cost the whole document
        log.warning("no JSON schema of %r: %s", kind, error)
        return {"description": "What it may be is not described."}, {}
    return made, named


def _is_struct(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, Struct)


def _without_raw(kind: Any) -> Any:
    """A Struct whose defaults are not ``Raw``: msgspec cannot write those into a schema."""
    if not _is_struct(kind):
        return kind
    fields = msgspec.structs.fields(kind)
    if not any(isinstance(field.default, Raw) for field in fields):
        return kind
    config = kind.__struct_config__
    replaced: list[Any] = [(field.name, field.type, _default_of(field)) for field in fields]
    made = msgspec.defstruct(
        kind.__name__,
        replaced,
        module=kind.__module__,
        tag_field=config.tag_field,
        tag=config.tag,
        forbid_unknown_fields=config.forbid_unknown_fields,
        kw_only=True,
    )
    made.__doc__ = kind.__dict__.get("__doc__")
    return made


def _default_of(field: msgspec.structs.FieldInfo) -> Any:
    default = msgspec.json.decode(field.default) if isinstance(field.default, Raw) else field.default
    if field.default_factory is not msgspec.NODEFAULT:
        return msgspec.field(default_factory=field.default_factory, name=field.encode_name)
    return msgspec.field(default=default, name=field.encode_name)


def _leave_out(schema: Schema, kind: type[Struct]) -> None:
    """What a Struct does not send: fields that are unset, and defaults of None where it omits those."""
    for field in msgspec.structs.fields(kind):
        name, known = field.encode_name, schema.get("properties", {})
        if UnsetType in get_args(field.type) and name in schema.get("required", ()):
            schema["required"].remove(name)
        choices = known.get(name, {}).get("anyOf", ())
        rest = [choice for choice in choices if choice != {"type": "null"}]
        if kind.__struct_config__.omit_defaults and field.default is None and len(rest) == 1:
            known[name] = rest[0]


def _reachable(schema: Schema, named: Mapping[str, Schema]) -> list[str]:
    """The names that a schema refers to, and those that these refer to."""
    found: dict[str, None] = {}
    pending = [schema]
    while pending:
        direct: list[str] = []
        _older(pending.pop(), lambda name, direct=direct: direct.append(name) or name)  # type: ignore[misc]  # None is false
        for name in direct:
            if name in named and name not in found:
                found[name] = None
                pending.append(named[name])
    return list(found)


def _older(schema: Any, rename: Callable[[str], str]) -> Any:
    """A copy in the form of draft 07, with other names for what it refers to."""
    if not isinstance(schema, dict):
        return schema  # true and false are schemas too
    made: Schema = {}
    for word, value in schema.items():
        if word == "$ref" and isinstance(value, str) and value.startswith(REF):
            made[word] = REF + rename(value.removeprefix(REF))
        elif word in _MAPS and isinstance(value, dict):
            made[word] = {name: _older(each, rename) for name, each in value.items()}
        elif word in _LISTS and isinstance(value, list):
            made[word] = [_older(each, rename) for each in value]
        elif word == "prefixItems":
            made["items"] = [_older(each, rename) for each in value]
            if "items" in schema:
                made["additionalItems"] = _older(schema["items"], rename)
        elif word == "items" and "prefixItems" in schema:
            continue
        elif word in _SINGLE:
            made[word] = [_older(each, rename) for each in value] if isinstance(value, list) else _older(value, rename)
        elif word == "description" and isinstance(value, str):
            made[word] = inspect.cleandoc(value)
        elif word == "discriminator" and isinstance(value, dict):
            continue  # OpenAPI's; the constants in the parts say the same
        elif word == "enum" and len(value) == 1:
            made["const"] = _plain(value[0])
        else:
            made[word] = _plain(value)
    return made


def _plain(value: Any) -> Any:
    return msgspec.to_builtins(value, str_keys=True, enc_hook=str)


# -- samples ---------------------------------------------------------------------------------------------------------


class NoSample(Exception):
    """Nothing can be made up that is sure to fit."""


_FORMATS: Final = {
    "date-time": "2026-11-22T20:37:03.123Z",
    "date": "2026-11-22",
    "time": "20:37:03Z",
    "duration": "PT30S",
    "uuid": "3f2b8c1e-5d0a-4c6e-9b7a-1f2e3d4c5b6a",
    "email": "alice@example.com",
    "uri": "https://example.com/",
    "ipv4": "192.0.2.1",
    "ipv6": "2001:db8::1",
    "decimal": "9.50",
}


class Sampler:
    """Makes up values that fit schemas: required fields, and those that have examples.

    :param components: what references lead to.
    :param hints: values for fields of some names, where nothing better is known.
    """

    def __init__(self, components: Mapping[str, Schema], hints: Mapping[str, Any] | None = None) -> None:
        self._components = components
        self._hints = hints or {}

    def __call__(self, schema: Any, depth: int = 0) -> Any:
        """:raises NoSample: for instance, a pattern without an example."""
        if depth > 12 or schema is False:
            raise NoSample
        if not isinstance(schema, dict):
            return {}
        if schema.get("examples"):
            return schema["examples"][0]
        for word in ("const", "default"):
            if word in schema and schema[word] is not None:
                return schema[word]
        if "enum" in schema:
            return schema["enum"][0]
        if "$ref" in schema:
            return self(self._components.get(schema["$ref"].removeprefix(REF), False), depth + 1)
        for word in ("anyOf", "oneOf"):
            if word in schema:
                return self._first(schema[word], depth)
        if "allOf" in schema:
            return self._all(schema["allOf"], depth)
        kind = schema.get("type", "object")
        return self._of_type(kind[0] if isinstance(kind, list) else kind, schema, depth)

    def _first(self, choices: list[Any], depth: int) -> Any:
        for choice in choices:
            try:
                return self(choice, depth + 1)
            except NoSample:
                continue
        raise NoSample

    def _all(self, parts: list[Any], depth: int) -> Any:
        made = [self(part, depth + 1) for part in parts]
        if len(made) > 1 and not all(isinstance(each, dict) for each in made):
            raise NoSample
        return made[0] if len(made) == 1 else {name: value for each in made for name, value in each.items()}

    def _of_type(self, kind: Any, schema: Schema, depth: int) -> Any:
        if kind == "object":
            return self._object(schema, depth)
        if kind == "array":
            return self._array(schema, depth)
        if kind == "string":
            return _string(schema)
        if kind in ("integer", "number"):
            return _number(schema)
        return None if kind == "null" else True

    def _object(self, schema: Schema, depth: int) -> Schema:
        properties, required = schema.get("properties", {}), schema.get("required", [])
        made = {}
        for name, each in properties.items():
            if name in required or (isinstance(each, dict) and each.get("examples")):
                known = isinstance(each, dict) and ({"const", "examples", "$ref"} & set(each))
                made[name] = self._hints[name] if name in self._hints and not known else self(each, depth + 1)
        if len(made) < schema.get("minProperties", 0) or not set(required) <= set(properties):
            raise NoSample
        return made

    def _array(self, schema: Schema, depth: int) -> list[Any]:
        items, least = schema.get("items", {}), schema.get("minItems", 0)
        if isinstance(items, list):
            return [self(each, depth + 1) for each in items]
        if least > 1 and schema.get("uniqueItems"):
            raise NoSample
        if items == {} and not least:
            return []
        try:
            return [self(items, depth + 1)] * max(1, least)
        except NoSample:
            if least:
                raise
            return []


def _string(schema: Schema) -> str:
    if "pattern" in schema or "contentEncoding" in schema:
        raise NoSample
    if "format" in schema:
        if schema["format"] not in _FORMATS:
            raise NoSample
        return str(_FORMATS[schema["format"]])
    text: str = "text"[: schema.get("maxLength", 4)]
    return text.ljust(schema.get("minLength", 0), "x")


def _number(schema: Schema) -> Any:
    step = schema.get("multipleOf", 1)
    low, high = schema.get("minimum"), schema.get("maximum")
    if "exclusiveMinimum" in schema:
        low = schema["exclusiveMinimum"] + step
    if "exclusiveMaximum" in schema:
        high = schema["exclusiveMaximum"] - step
    value = step if low is None or low <= step else -(-low // step) * step
    if high is not None and value > high:
        value = high // step * step
    if low is not None and value < low:
        raise NoSample
    return int(value) if schema["type"] == "integer" else value


__all__ = ["REF", "NoSample", "Sampler", "Schema", "Schemas", "free"]
