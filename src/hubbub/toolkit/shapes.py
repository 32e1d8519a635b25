"""The shapes of an app's messages: what comes in by annotation (msgspec or pydantic), what goes out by value.

A message is one object with a ``type``. Coming in, an app's type sees the other fields; ``ref`` is the wire's. Going
out, an object's fields stand beside ``type`` and ``ref``; anything else is put under ``data``.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from functools import lru_cache
from typing import Any, Final, TypeAlias, get_origin, is_typeddict

import msgspec
from msgspec import Raw, Struct
from msgspec.inspect import CustomType, Type, multi_type_info
from pydantic import BaseModel, PydanticUserError, TypeAdapter, ValidationError, create_model
from pydantic.errors import PydanticSchemaGenerationError

from hubbub.errors import ErrorCode
from hubbub.messages import JSON, Codec, WrongMessage, check_msgpack
from hubbub.toolkit.signature import MISSING

Decode: TypeAlias = Callable[["str | bytes"], Any]
ENVELOPE: Final = ("type", "ref")
"""Fields that belong to the wire, and not to an app's message."""


class CannotServe(Exception):
    """A type that neither msgspec nor pydantic can make of JSON. The message says which and why."""


class Shape:
    """A type of the app, as messages carry it.

    :param kind: a msgspec Struct, a pydantic model, a dataclass, a TypedDict, ``dict``, or (for data) anything that
        msgspec or pydantic can decode.
    :param whole: it is a whole message, so ``type`` and ``ref`` are not its own (unless it declares them).
    :raises CannotServe: it cannot be decoded.
    """

    def __init__(self, kind: Any, *, whole: bool) -> None:
        self.kind = kind
        self.whole = whole
        self.adapter: TypeAdapter[Any] | None = None
        own = fields_of(kind) or {}
        if whole and "ref" in own:
            raise CannotServe(
                "`ref` belongs to the wire, and comes back in the reply by itself: call the field otherwise"
            )
        if uses_pydantic(kind):
            self.adapter = _adapter(kind)
            strips = whole and _pydantic_extra(kind) in ("forbid", "allow")
        else:
            strips = whole and (kind in (dict, Any) or get_origin(kind) is dict or _forbids(kind))
        self._strip = tuple(name for name in ENVELOPE if name not in own) if strips else ()
        self._json = self._json_decoder()
        self._msgpack = self._msgpack_decoder()

    @property
    def fields(self) -> tuple[str, ...]:
        """The names of an object's fields, as Python has them; empty where they are not known."""
        return tuple(fields_of(self.kind) or ())

    def decode(self, data: str | bytes | Raw, *, is_json: bool, at: str = "$", ref: str | None = None) -> Any:
        """Decode JSON text or MessagePack, and check it.

        :raises WrongMessage: says what is wrong, and where, from ``at`` on.
        """
        try:
            if is_json:
                return self._json(data)
            packed = data if isinstance(data, bytes) else bytes(data if isinstance(data, Raw) else data.encode())
            check_msgpack(packed)
            return self._msgpack(packed)
        except ValidationError as error:
            text = _pydantic_text(error, at)
        except msgspec.ValidationError as error:
            text = str(error)[:300]
            if at != "$":
                text = text.replace("`$", f"`{at}", 1) if "`$" in text else f"{text} - at `{at}`"
        except RecursionError:
            text = f"nested too deeply - at `{at}`"
        except (msgspec.DecodeError, ValueError, OverflowError, TypeError) as error:
            text = f"{str(error)[:200]} - at `{at}`"
        raise WrongMessage(ErrorCode.INVALID_MESSAGE, text, ref, None)

    def _json_decoder(self) -> Callable[[Any], Any]:
        strip, adapter = self._strip, self.adapter
        if not strip:
            return adapter.validate_json if adapter is not None else msgspec.json.Decoder(self.kind).decode
        decode = msgspec.json.Decoder(dict[str, Any]).decode
        return self._stripped(decode, strip)

    def _msgpack_decoder(self) -> Callable[[Any], Any]:
        strip, adapter = self._strip, self.adapter
        if strip:
            return self._stripped(msgspec.msgpack.Decoder(dict[str, Any]).decode, strip)
        if adapter is None:
            return msgspec.msgpack.Decoder(self.kind).decode
        validate, decode = adapter.validate_json, msgspec.msgpack.decode
        # by way of JSON, so that strict types mean the same in both codecs
        return lambda data: validate(msgspec.json.encode(decode(data)))

    def _stripped(self, decode: Callable[[Any], dict[str, Any]], strip: tuple[str, ...]) -> Callable[[Any], Any]:
        if self.adapter is not None:
            validate = self.adapter.validate_json
            finish: Callable[[Any], Any] = lambda fields: validate(msgspec.json.encode(fields))  # noqa: E731
        elif self.kind in (dict, Any):
            finish = _same
        else:
            kind = self.kind
            finish = lambda fields: msgspec.convert(fields, kind)  # noqa: E731

        def run(data: Any) -> Any:
            fields = decode(data)
            for name in strip:
                fields.pop(name, None)
            return finish(fields)

        return run


def _same(fields: Any) -> Any:
    return fields


def from_parameters(name: str, fields: Mapping[str, tuple[Any, Any]]) -> type[Any]:
    """A pydantic model of single parameters: name → (annotation, default or :data:`MISSING`); a Struct, where one of
    them is a type of msgspec's.

    :raises CannotServe: neither can be made of them all.
    """
    definitions: dict[str, Any] = {
        field: (Any if annotation is MISSING else annotation, ... if default is MISSING else default)
        for field, (annotation, default) in fields.items()
    }
    try:
        model: type[Any] = create_model(name, **definitions)
        return model
    except (PydanticUserError, PydanticSchemaGenerationError, TypeError, NameError) as error:
        try:
            struct = msgspec.defstruct(
                name,
                [
                    (field, annotation) if default is ... else (field, annotation, default)
                    for field, (annotation, default) in definitions.items()
                ],
                kw_only=True,
            )
            _check_msgspec(struct)
        except (CannotServe, TypeError, ValueError):
            raise CannotServe(str(error).split("\n")[0]) from None
        return struct


def is_object(kind: Any) -> bool:
    """Whether a type is one that a whole message can be: an object with fields."""
    if kind in (dict, Any) or get_origin(kind) is dict or is_typeddict(kind):
        return kind is not Any
    return isinstance(kind, type) and (issubclass(kind, Struct | BaseModel) or dataclasses.is_dataclass(kind))


def fields_of(kind: Any) -> dict[str, Any] | None:
    """The fields of an object type by the name that Python has for them; None for other types."""
    if isinstance(kind, type) and issubclass(kind, Struct):
        return dict.fromkeys(kind.__struct_fields__)
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        return dict.fromkeys(kind.model_fields)
    if isinstance(kind, type) and dataclasses.is_dataclass(kind):
        return {field.name: None for field in dataclasses.fields(kind)}
    if is_typeddict(kind):
        return dict.fromkeys(kind.__annotations__)
    return None


def uses_pydantic(kind: Any) -> bool:
    """Whether pydantic decodes it: its own models, and what msgspec knows nothing of."""
    if isinstance(kind, type) and issubclass(kind, Struct):
        _check_msgspec(kind)
        return False
    if isinstance(kind, type) and (issubclass(kind, BaseModel) or dataclasses.is_dataclass(kind)):
        return (
            True  # what msgspec makes of a dataclass lacks the fields that were left to their defaults, when it is sent
        )
    try:
        _check_msgspec(kind)
    except CannotServe:
        return True
    return False


def _check_msgspec(kind: Any) -> None:
    try:
        (info,) = multi_type_info([kind])
    except (TypeError, NameError) as error:
        raise CannotServe(str(error)) from None
    strange = _custom(info, set())
    if strange is not None:
        name = getattr(strange, "__qualname__", repr(strange))
        raise CannotServe(f"msgspec cannot make a {name} of JSON (a pydantic model may hold one)")


def _custom(info: Any, seen: set[int]) -> Any:
    """The first type in a tree of types that msgspec would need a hook for."""
    if id(info) in seen:
        return None
    seen.add(id(info))
    if isinstance(info, CustomType):
        return info.cls
    children: list[Any] = []
    if isinstance(info, Type) or hasattr(info, "__struct_fields__"):
        for name in info.__struct_fields__:
            value = getattr(info, name)
            children += value if isinstance(value, list | tuple) else [value]
    for child in children:
        if isinstance(child, Type | msgspec.inspect.Field):
            found = _custom(child, seen)
            if found is not None:
                return found
    return None


def _adapter(kind: Any) -> TypeAdapter[Any]:
    try:
        return TypeAdapter(kind)
    except (PydanticUserError, PydanticSchemaGenerationError, TypeError, NameError) as error:
        raise CannotServe(str(error).split("\n")[0]) from None


def _pydantic_extra(kind: Any) -> str | None:
    config = getattr(kind, "model_config", None) or getattr(kind, "__pydantic_config__", None) or {}
    extra: str | None = config.get("extra")
    return extra


def _forbids(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, Struct) and kind.__struct_config__.forbid_unknown_fields


def _pydantic_text(error: ValidationError, at: str) -> str:
    faults = error.errors(include_url=False, include_context=False, include_input=False)
    path = at + "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in faults[0]["loc"])
    more = f" (and {len(faults) - 1} more)" if len(faults) > 1 else ""
    return f"{faults[0]['msg'][:200]} - at `{path[:100]}`{more}"


# -- going out -------------------------------------------------------------------------------------------------------


def _hook(value: Any) -> Any:
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json", by_alias=True)
    raise TypeError(f"a {type(value).__qualname__} cannot be sent: give a Struct, a model, a dataclass, or plain data")


_encoder: Final = msgspec.json.Encoder(enc_hook=_hook)


def data_bytes(value: Any) -> bytes:
    """Any value of the app as JSON text.

    :raises TypeError: it has no JSON form.
    """
    if isinstance(value, BaseModel):
        return value.__pydantic_serializer__.to_json(value, by_alias=True)
    return _encoder.encode(value)


Encode: TypeAlias = Callable[[Any], bytes]


@lru_cache(maxsize=1024)
def _carries(kind: Any) -> tuple[bool, bool, Encode | None]:
    """Of a class: whether its values are objects on the wire, whether they bring their own ``type``, and what encodes
    them (None: a mapping, whose keys are its own)."""
    if issubclass(kind, Struct):
        config = kind.__struct_config__
        _no_ref(kind, kind.__struct_encode_fields__)
        typed = config.tag_field == "type" or "type" in kind.__struct_encode_fields__
        return not config.array_like, typed and not config.array_like, _encoder.encode
    if issubclass(kind, BaseModel):
        names = [field.serialization_alias or field.alias or name for name, field in kind.model_fields.items()]
        _no_ref(kind, names)
        return not kind.__pydantic_root_model__, "type" in names, data_bytes
    if dataclasses.is_dataclass(kind):
        names = [field.name for field in dataclasses.fields(kind)]
        _no_ref(kind, names)
        return True, "type" in names, _encoder.encode
    if issubclass(kind, Mapping):
        return True, False, None
    return False, False, _encoder.encode


def _no_ref(kind: Any, names: Iterable[str]) -> None:
    if "ref" in names:
        raise TypeError(f"{kind.__qualname__}: `ref` belongs to the wire: call the field otherwise")


def own_type(kind: Any) -> str | None:
    """The ``type`` that an object type brings along, if it says one: its tag, or a literal default of a ``type`` field."""
    if not isinstance(kind, type):
        return None
    if issubclass(kind, Struct):
        config = kind.__struct_config__
        if config.tag_field == "type":
            return str(config.tag)
        default = next((f.default for f in msgspec.structs.fields(kind) if f.encode_name == "type"), None)
        return default if isinstance(default, str) else None
    if issubclass(kind, BaseModel) and "type" in kind.model_fields:
        default = kind.model_fields["type"].default
        return default if isinstance(default, str) else None
    return None


def message_bytes(value: Any, kind: str | None, ref: str | None, codec: Codec) -> bytes:
    """A message of the app in a codec.

    :param kind: its type, unless the value brings its own.
    :raises TypeError: it has no JSON form, or no type.
    """
    is_object, typed, encode = _carries(type(value))  # type: ignore[arg-type]  # mypy finds a class not hashable
    if encode is None:  # a mapping: each has its own keys
        typed, encode = "type" in value, _encoder.encode
        if ref is not None and "ref" in value:
            value = {name: each for name, each in value.items() if name != "ref"}
    if typed:
        head = b"{"
    elif kind is None:
        raise TypeError("a message needs a type: give type=, or a Struct with a tag, or a dict with one")
    else:
        head = _type_part(kind)
    if ref is not None:
        head = b'%b"ref":%b,' % (head, JSON.encode(ref))
    body = encode(value)
    if not is_object:
        payload = b'%b"data":%b}' % (head, body)
    elif len(body) > 2:
        payload = head + body[1:]
    else:  # an object without fields
        payload = head[:-1] + b"}" if len(head) > 1 else b"{}"
    return payload if codec.is_json else codec.convert(payload)


@lru_cache(maxsize=1024)
def _type_part(kind: str) -> bytes:
    return b'{"type":%b,' % JSON.encode(kind)


def reply_name_is_free(kind: type[Any]) -> None:
    """:raises TypeError: a reply of this class has a field that belongs to the wire."""
    _carries(kind)  # type: ignore[arg-type]  # as above
