"""The app's part of the document: its handlers with their replies, and its channels."""

from __future__ import annotations

import functools
import inspect
import re
from collections.abc import Callable
from types import NoneType, UnionType
from typing import Annotated, Any, Union, get_args, get_origin

import msgspec
from msgspec import Struct
from pydantic import BaseModel

from hubbub.asyncapi.draft import REF_IN, REF_OUT, Draft
from hubbub.asyncapi.own import Publication
from hubbub.asyncapi.schemas import Sampler, Schema
from hubbub.messages import Publish
from hubbub.toolkit.handlers import Handler
from hubbub.toolkit.shapes import Shape, is_object, own_type
from hubbub.toolkit.signature import MISSING
from hubbub.toolkit.topics import HOOKS, BoundTopic


def write_handler(draft: Draft, handler: Handler) -> None:
    """Add a handler's message, its replies, and the operation that they make."""
    kind = None if handler.shape is None else handler.shape.kind
    payload = _payload(draft, kind, handler.type, REF_IN, sent=False)
    text = _doc(handler.fn) + ("\n\nIt may come before `auth`." if handler.anonymous else "")
    example = _example(draft, payload, handler.shape)
    key = draft.message(f"client.{handler.type}", handler.type, payload, text=text, tag="app", example=example)
    answers = [*_replies(draft, handler), "server.error"]
    more: dict[str, Any] = {"x-hubbub-anonymous": handler.anonymous}
    draft.operation(
        f"receive.{handler.type}", "receive", [key], answers, title=handler.type, text=text, tag="app", **more
    )


def _replies(draft: Draft, handler: Handler) -> list[str]:
    """The messages that a handler may answer with: one for each object, one for all that is no object."""
    if handler.returns is None:
        return ["server.ack"] if _says_nothing(handler.fn) else ["server.ack", _open_reply(draft, handler)]
    parts = _parts(handler.returns)
    found = ["server.ack"] if NoneType in parts else []
    for part in parts:
        if _is_message(part):
            name = own_type(_bare(part)) or handler.reply
            found.append(_reply(draft, _payload(draft, part, name, REF_OUT, sent=True), name))
    others = tuple(part for part in parts if part is not NoneType and not _is_message(part))
    if others:
        payload = _payload(draft, None, handler.reply, REF_OUT, sent=True)
        payload["properties"]["data"] = draft.schemas.of(Union[others], sent=True)  # noqa: UP007  # of a tuple
        payload["required"].append("data")
        found.append(_reply(draft, payload, handler.reply))
    return found


def _open_reply(draft: Draft, handler: Handler) -> str:
    properties = {"type": {"type": "string"}, "ref": REF_OUT}
    payload: Schema = {"type": "object", "properties": properties, "required": ["type"]}
    text = "What the handler returns is not annotated."
    return draft.message(f"server.{handler.reply}", handler.reply, payload, text=text, tag="app")


def _reply(draft: Draft, payload: Schema, name: str) -> str:
    return draft.message(f"server.{name}", name, payload, text="", tag="app", example=_example(draft, payload))


def _payload(draft: Draft, kind: Any, name: str, ref: Schema, *, sent: bool) -> Schema:
    """A whole message of the app: its own fields beside ``type`` and ``ref``."""
    envelope: Schema = {"type": {"const": name}, "ref": ref}
    outer: Schema = {"type": "object", "properties": envelope, "required": ["type"]}
    if kind is None:
        return outer
    own = draft.schemas.whole(kind, sent=sent)
    if own.get("type") != "object":
        return {**outer, "allOf": [own]}
    fields = own.get("properties", {})
    if sent and "type" in fields and own_type(_bare(kind)) is None:
        envelope["type"] = fields["type"]  # each value says its own
    passed = ("minProperties", "maxProperties", "propertyNames")  # they are about the fields without these two
    made = {word: value for word, value in own.items() if word not in passed}
    made["properties"] = envelope | {field: each for field, each in fields.items() if field != "type"}
    made["required"] = ["type", *(field for field in own.get("required", ()) if field != "type")]
    return made


def _example(draft: Draft, payload: Schema, shape: Shape | None = None) -> Any:
    """A sample; of what comes in, only one that the handler would get."""
    try:
        made = Sampler(draft.schemas.components)(payload)
        if shape is not None:
            shape.decode(msgspec.json.encode(made).decode(), is_json=True)
    except Exception:  # an app's own validators run here, and may want what nobody can guess
        return None
    return made


# -- channels --------------------------------------------------------------------------------------------------------


def describe_topic(draft: Draft, topic: BoundTopic) -> Schema:
    """One pattern of channels: who may do what, and with which types. Messages with the types are added."""
    entry: Schema = {
        "description": _topic_doc(topic),
        "namePattern": _expression(topic),
        "parameters": {
            name: draft.schemas.of(topic.topic.name_types.get(name, str), sent=False)
            for name in topic.name_pattern.names
        },
        "options": topic.options.model_dump(mode="json"),
        "hooks": [name for name in HOOKS if name in topic.topic.hooks],
        "subscribe": _describe_subscribe(draft, topic),
        "publish": _describe_publish(draft, topic),
        "publication": _describe_publication(draft, topic),
    }
    return {word: value for word, value in entry.items() if value not in ("", None)}


def _describe_subscribe(draft: Draft, topic: BoundTopic) -> Schema:
    made: Schema = {"who": "authorizer" if topic.authorizes else topic.options.subscribe}
    if topic.has_state:
        made["state"] = draft.schemas.of(_returned(topic, "on_subscribe"), sent=True)
    return made


def _describe_publish(draft: Draft, topic: BoundTopic) -> Schema:
    made: Schema = {"who": topic.options.publish}
    if not topic.edits or topic.options.publish == "server":
        return made
    shape = topic.topic.data_shape
    data = draft.schemas.of(Any if shape is None else shape.kind, sent=False)
    text = _doc(topic.topic.hooks["on_publish"].fn) or f"Publish on a channel `{topic.name_pattern.text}`."
    key = _typed(draft, topic, "client", "publish", Publish, data, text)
    draft.operation(
        f"receive.publish.{topic.name_pattern.text}",
        "receive",
        [key],
        ["server.ack.publish", "server.error"],
        title=f"publish on {topic.name_pattern.text}",
        text=text,
        tag="app",
    )
    return made | {"data": data, "message": {"$ref": f"#/components/messages/{key}"}}


def _describe_publication(draft: Draft, topic: BoundTopic) -> Schema | None:
    """What is delivered, where that is known: the filter decodes it, or all that clients publish goes through a hook."""
    shape, edited = topic.topic.filter_shape, _returned(topic, "on_publish")
    if shape is None and edited is Any:
        shape = topic.topic.data_shape
    kind = edited if shape is None else shape.kind
    if kind is Any:
        return None
    parts = [part for part in _parts(kind) if part is not NoneType]  # None: as it came
    data = draft.schemas.of(Union[tuple(parts)], sent=True)  # noqa: UP007  # of a list
    text = f"Something was published on a channel `{topic.name_pattern.text}`."
    if not topic.filters:
        text += "\n\nThis is the data of clients; the app's own code may publish other data."
    key = _typed(draft, topic, "server", "publication", Publication, data, text)
    title = f"publication on {topic.name_pattern.text}"
    draft.operation(f"send.publication.{topic.name_pattern.text}", "send", [key], title=title, text=text, tag="app")
    return {"data": data, "message": {"$ref": f"#/components/messages/{key}"}}


def _typed(draft: Draft, topic: BoundTopic, side: str, name: str, struct: type[Struct], data: Schema, text: str) -> str:
    """A message about a channel, with the data that these channels have."""
    payload = draft.schemas.whole(struct, sent=side == "server")
    channel: Schema = {"type": "string", "pattern": _expression(topic)}
    known = _some_name(topic)
    if known is not None:
        channel["examples"] = [known]
    payload["properties"] |= {"channel": channel, "data": data}
    if side == "client":
        payload["properties"]["ref"] = REF_IN
    key = f"{side}.{name}.{topic.name_pattern.text}"
    title, example = f"{name} on {topic.name_pattern.text}", _example(draft, payload)
    return draft.message(key, name, payload, text=text, tag="app", title=title, example=example)


def _returned(topic: BoundTopic, hook: str) -> Any:
    """What a hook is annotated to return; Any where it does not say."""
    kind = topic.topic.returned.get(hook, Any)
    return Any if kind in (MISSING, None, NoneType) else kind


def _topic_doc(topic: BoundTopic) -> str:
    """The docstring of the class of hooks, or of the authorizer."""
    for hook in topic.topic.hooks.values():
        holder = getattr(hook.fn, "__self__", None)
        if holder is not None and type(holder).__doc__:
            return inspect.cleandoc(type(holder).__doc__ or "")
    authorizer = topic.topic.hooks.get("authorize")
    return _doc(authorizer.fn) if authorizer is not None else ""


def _expression(topic: BoundTopic) -> str:
    """The pattern of names as a regular expression that ECMAScript reads the same (with its flag ``u`` too)."""
    text, made, end = topic.name_pattern.text, "", 0
    for part in re.finditer(r"\{\w+(:path)?\}", text):
        made += re.sub(r"[.+]", r"\\\g<0>", text[end : part.start()]) + (".+" if part[1] else "[^:]+")
        end = part.end()
    return "^" + made + re.sub(r"[.+]", r"\\\g<0>", text[end:]) + "$"


def _some_name(topic: BoundTopic) -> str | None:
    """A name that the pattern matches: ``orders:7``."""
    values = {name: 7 if topic.topic.name_types.get(name) is int else name for name in topic.name_pattern.names}
    try:
        return topic.name_pattern.make(values)
    except ValueError:
        return None


# -- functions and types ---------------------------------------------------------------------------------------------


def _whole(fn: Callable[..., Any]) -> Callable[..., Any]:
    while isinstance(fn, functools.partial):
        fn = fn.func
    return fn


def _doc(fn: Callable[..., Any]) -> str:
    return inspect.getdoc(_whole(fn)) or ""


def _says_nothing(fn: Callable[..., Any]) -> bool:
    """Whether a function is annotated to return None: then it answers with an `ack`."""
    return inspect.signature(_whole(fn)).return_annotation in (None, NoneType, "None")


def _parts(kind: Any) -> list[Any]:
    """What a union is of; the type alone where it is none."""
    bare = _bare(kind)
    return [*get_args(bare)] if get_origin(bare) in (Union, UnionType) else [kind]


def _bare(kind: Any) -> Any:
    return get_args(kind)[0] if get_origin(kind) is Annotated else kind


def _is_message(kind: Any) -> bool:
    """Whether its values are objects on the wire, whose fields stand beside ``type``; others are put under ``data``."""
    kind = _bare(kind)
    if isinstance(kind, type) and issubclass(kind, Struct):
        return not kind.__struct_config__.array_like
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        return not kind.__pydantic_root_model__
    return is_object(kind)


__all__ = ["describe_topic", "write_handler"]
