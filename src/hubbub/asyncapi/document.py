"""The AsyncAPI 3.0.0 document of a hub: its own messages, the app's handlers and channels.

The specification: https://www.asyncapi.com/docs/reference/specification/v3.0.0
"""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any, Final

from hubbub.asyncapi.declared import describe_topic, write_handler
from hubbub.asyncapi.draft import REF_IN, REF_OUT, Draft
from hubbub.asyncapi.own import CLIENT, HINTS, KEYS, SERVER, SPECIAL_HINTS, client_structs, server_structs
from hubbub.asyncapi.schemas import NoSample, Sampler, Schema
from hubbub.toolkit.shapes import own_type

if TYPE_CHECKING:
    from hubbub.app import Hubbub

VERSION: Final = "3.0.0"
CONNECTION: Final = """One connection for everything. Every message is one object with a `type`, in one WebSocket message: JSON in
text frames, or MessagePack in binary ones (subprotocol `hubbub.msgpack`, or `?format=msgpack`).

The first message is `auth` with a token, unless the handshake brought one."""
SECURITY: Final[dict[str, Schema]] = {
    "bearer": {"type": "http", "scheme": "bearer", "bearerFormat": "JWT", "description": "Where headers can be set."},
    "subprotocol": {
        "type": "httpApiKey",
        "name": "Sec-WebSocket-Protocol",
        "in": "header",
        "description": "`bearer.<token>`, beside `hubbub.json` or `hubbub.msgpack`.",
    },
    "query": {"type": "httpApiKey", "name": "token", "in": "query", "description": "Where nothing else works."},
}


def describe(hubbub: Hubbub, host: str | None = None, *, secure: bool = False, root_path: str = "") -> dict[str, Any]:
    """The document, as plain data for JSON.

    :param host: where the hub is served (``example.com:8000``); None: the document names no server.
    :param secure: whether that is with TLS.
    :param root_path: what a proxy in front puts before all paths.
    """
    draft = Draft()
    _write_own_server_messages(draft)
    for handler in [*hubbub.handlers.values()]:  # others may be added meanwhile
        write_handler(draft, handler)
    channels = {topic.name_pattern.text: describe_topic(draft, topic) for topic in hubbub.topics}
    _write_own_client_messages(draft)
    _write_room_operations(draft)
    cookie = {"type": "httpApiKey", "name": hubbub.settings.cookie_name, "in": "cookie"}
    document = {
        "asyncapi": VERSION,
        "info": _info(hubbub),
        "defaultContentType": "application/json",
        "channels": _sockets(hubbub.prefix + "/ws", draft),
        "operations": draft.operations,
        "components": {
            "messages": draft.messages,
            "schemas": draft.schemas.components,
            "correlationIds": {
                "ref": {"location": "$message.payload#/ref", "description": "A request's `ref`, in what answers it."}
            },
            "securitySchemes": {**SECURITY, "cookie": {**cookie, "description": "A page of the same site."}},
        },
        "x-hubbub-channels": channels,
    }
    return document if host is None else located(document, host, secure=secure, root_path=root_path)


def located(document: dict[str, Any], host: str, *, secure: bool = False, root_path: str = "") -> dict[str, Any]:
    """A document with the server that it is about."""
    server: Schema = {"host": host, "protocol": "wss" if secure else "ws"}
    if root_path.strip("/"):
        server["pathname"] = "/" + root_path.strip("/")
    schemes = document["components"]["securitySchemes"]
    server["security"] = [{"$ref": f"#/components/securitySchemes/{name}"} for name in schemes]
    head = {name: document[name] for name in ("asyncapi", "info")}
    return {**head, "servers": {"this": server}, **{name: each for name, each in document.items() if name not in head}}


def _info(hubbub: Hubbub) -> Schema:
    from hubbub import __version__

    app = hubbub.app
    if app is None:
        return {"title": "Hubbub", "version": __version__}
    info: Schema = {"title": app.title, "version": app.version}
    text = "\n\n".join(part for part in (app.summary, inspect.cleandoc(app.description or "")) if part)
    more = {"description": text, "termsOfService": app.terms_of_service, "contact": app.contact}
    info |= {name: value for name, value in more.items() if value}
    if app.license_info:
        info["license"] = {name: app.license_info[name] for name in ("name", "url") if name in app.license_info}
    return info


def _sockets(address: str, draft: Draft) -> dict[str, Schema]:
    """What AsyncAPI calls channels: the addresses of the WebSockets."""
    messages = {key: {"$ref": f"#/components/messages/{key}"} for key in draft.messages}
    query = {
        "token": {"type": "string", "description": "A token, where nothing else works."},
        "session": {"type": "string", "description": "The session that this one continues."},
        "format": {"enum": ["json", "msgpack"]},
    }
    binding = {"method": "GET", "query": {"type": "object", "properties": query}, "bindingVersion": "0.1.0"}
    common = {"messages": messages, "bindings": {"ws": binding}}
    return {
        "session": {"address": address, "title": "Session", "description": CONNECTION, **common},
        "room": {
            "address": address + "/chat/{room_id}",
            "title": "Session in a room",
            "description": "The same session, and it joins that room as soon as the user is known.",
            "parameters": {"room_id": {"description": "1 to 64 of `A-Z a-z 0-9 _ . -`.", "examples": ["general"]}},
            **common,
        },
    }


def _write_own_server_messages(draft: Draft) -> None:
    for struct in server_structs():
        summary, unasked = SERVER.get(struct, ("", True))
        name = str(own_type(struct))
        payload = draft.schemas.whole(struct, sent=True)
        if "ref" in payload["properties"]:
            payload["properties"]["ref"] = REF_OUT
        example = _sample(draft, struct, payload)
        tail = KEYS.get(struct, name)
        title = name if tail == name else f"{name}: {tail.removeprefix(name + '.')}"
        key = draft.message(f"server.{tail}", name, payload, text=summary, tag="hubbub", title=title, example=example)
        if unasked:
            draft.operation(f"send.{name}", "send", [key], title=name, text=summary)


def _write_own_client_messages(draft: Draft) -> None:
    for struct in client_structs():
        summary, replies = CLIENT.get(struct, ("", ()))
        name, payload = str(own_type(struct)), draft.schemas.whole(struct, sent=False)
        payload["properties"]["ref"] = REF_IN
        example = _sample(draft, struct, payload)
        key = draft.message(f"client.{name}", name, payload, text=summary, tag="hubbub", example=example)
        answers = [f"server.{each}" for each in (*replies, "error")]
        draft.operation(f"receive.{name}", "receive", [key], answers, title=name, text=summary)


def _sample(draft: Draft, struct: Any, payload: Schema) -> Any:
    try:
        return Sampler(draft.schemas.components, {**HINTS, **SPECIAL_HINTS.get(struct, {})})(payload)
    except NoSample:
        return None


def _write_room_operations(draft: Draft) -> None:
    for action, side, text in (("receive", "client", "clients send"), ("send", "server", "the server sends")):
        keys = [key for key in draft.messages if key.startswith(side + ".")]
        draft.operation(f"{action}.in_room", action, keys, channel="room", text=f"All that {text}, as in a session.")


__all__ = ["VERSION", "describe", "located"]
