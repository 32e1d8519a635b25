"""The document as a page: HTML without a script, made on the server. All that it shows is escaped."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from html import escape
from typing import Any, Final
from urllib.parse import quote

import msgspec

from hubbub.asyncapi.schemas import REF, Schema

BOUNDS: Final = (
    ("minLength", "maxLength", " characters"),
    ("minimum", "maximum", ""),
    ("minItems", "maxItems", " items"),
    ("minProperties", "maxProperties", " keys"),
)
SIDES: Final = (("client", "From clients"), ("server", "From the server"))


def page(document: Mapping[str, Any], style: str, source: str) -> str:
    """The page of a document.

    :param style: the style sheet's address.
    :param source: the document's address, for who wants it as JSON.
    """
    info, messages = document["info"], document["components"]["messages"]
    answers = _answers(document["operations"].values())
    sections = [_intro(document, source), _channels(document["x-hubbub-channels"])]
    for side, heading in SIDES:
        of_side = {key: each for key, each in messages.items() if key.startswith(side + ".")}
        sections.append(_side(side, heading, of_side, answers))
    sections.append(_types(document["components"]["schemas"]))
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        f"<title>{escape(info['title'])}: messages</title>\n"
        f'<link rel="icon" href="data:,">\n<link rel="stylesheet" href="{escape(style)}">\n</head>\n<body>\n'
        f"{_contents(document)}\n<main>\n{''.join(sections)}</main>\n</body>\n</html>\n"
    )


def _contents(document: Mapping[str, Any]) -> str:
    """The links at the side."""
    made = ""
    if document["x-hubbub-channels"]:
        names = document["x-hubbub-channels"]
        made += _links("Channels", [(f"channel-{name}", name) for name in names])
    for side, heading in SIDES:
        messages = [
            (key, each) for key, each in document["components"]["messages"].items() if key.startswith(side + ".")
        ]
        made += _links(heading, [(key, each["title"]) for key, each in _apps_first(messages)])
    return f'<nav aria-label="Contents">\n{made}</nav>'


def _links(heading: str, links: Iterable[tuple[str, str]]) -> str:
    items = "".join(f'<li><a href="#{_anchor(anchor)}">{escape(text)}</a></li>\n' for anchor, text in links)
    return f"<h2>{escape(heading)}</h2>\n<ul>\n{items}</ul>\n"


def _intro(document: Mapping[str, Any], source: str) -> str:
    info, sockets = document["info"], document["channels"].values()
    made = f"<header>\n<h1>{escape(info['title'])} <small>{escape(info['version'])}</small></h1>\n"
    made += _text(info.get("description", ""))
    base = ""
    for server in document.get("servers", {}).values():
        base = f"{server['protocol']}://{server['host']}{server.get('pathname', '')}"
    rows = [
        f"<tr><td><code>{escape(base + each['address'])}</code></td><td>{_text(each['description'])}</td></tr>\n"
        for each in sockets
    ]
    made += f"<table>\n{''.join(rows)}</table>\n"
    link = f'<a href="{escape(source)}">AsyncAPI {escape(document["asyncapi"])}</a>'
    return made + f"<p>{link}. Any message may carry a <code>ref</code>: what answers it has the same.</p>\n</header>\n"


def _answers(operations: Iterable[Schema]) -> dict[str, list[str]]:
    """The key of a client's message → the keys of what answers it; and of a server's → of what it answers."""
    found: dict[str, list[str]] = {}
    for operation in operations:
        for reference in operation["messages"]:
            for answer in operation.get("reply", {}).get("messages", ()):
                one, two = _last(reference), _last(answer)
                found.setdefault(one, []).append(two)
                found.setdefault(two, []).append(one)
    return found


# -- messages and types ----------------------------------------------------------------------------------------------


def _side(side: str, heading: str, messages: Mapping[str, Schema], answers: Mapping[str, list[str]]) -> str:
    shown = [_message(key, each, answers.get(key, [])) for key, each in _apps_first(messages.items())]
    return f'<section id="{_anchor(side)}">\n<h2>{escape(heading)}</h2>\n{"".join(shown)}</section>\n'


def _message(key: str, message: Schema, answers: list[str]) -> str:
    anchor, mark = _anchor(key), ' <span class="own">Hubbub</span>' if _is_own(message) else ""
    name = f'<a href="#{anchor}"><code>{escape(message["title"])}</code></a>'
    made = f'<article id="{anchor}">\n<h3>{name}{mark}</h3>\n'
    made += _text(message.get("summary", "")) + _text(message.get("description", ""))
    made += _fields(message["payload"], but=("type", "ref"))
    if answers and len(answers) <= 12:  # `error` answers everything
        links = ", ".join(_link(each) for each in answers)
        made += f"<p>{'Answered by' if key.startswith('client.') else 'Answers'} {links}</p>\n"
    for example in message.get("examples", ()):
        made += f"<pre><code>{_json(example['payload'])}</code></pre>\n"
    return made + "</article>\n"


def _link(key: str) -> str:
    return f'<a href="#{_anchor(key)}"><code>{escape(key.partition(".")[2])}</code></a>'


def _fields(schema: Schema, but: tuple[str, ...] = ()) -> str:
    """The table of an object's fields."""
    required, rows = schema.get("required", ()), ""
    for part in schema.get("allOf", ()):
        rows += f'<tr><td colspan="4">and all of {_type(part)}</td></tr>\n'
    for name, each in schema.get("properties", {}).items():
        if name not in but:
            rows += _field(name, each if isinstance(each, dict) else {}, name in required)
    more = schema.get("additionalProperties")
    if isinstance(more, dict):
        rows += f'<tr><td>any other</td><td colspan="3">{_type(more)}</td></tr>\n'
    if not rows:
        return ""
    head = "<thead><tr><th>field</th><th>type</th><th>default</th><th></th></tr></thead>"
    table = f"<table>\n{head}\n<tbody>\n{rows}</tbody>\n</table>\n"
    return table + ("<p>No other fields.</p>\n" if more is False else "")


def _field(name: str, schema: Schema, required: bool) -> str:
    default = "required" if required else "none"
    if not required and schema.get("default") is not None:
        default = f"<code>{_json(schema['default'])}</code>"
    about = _text(schema.get("description", ""))
    if schema.get("examples"):
        about += f"<p>For example {', '.join(f'<code>{_json(each)}</code>' for each in schema['examples'])}</p>"
    return f"<tr><td><code>{escape(name)}</code></td><td>{_type(schema)}</td><td>{default}</td><td>{about}</td></tr>\n"


def _types(schemas: Mapping[str, Schema]) -> str:
    if not schemas:
        return ""
    made = '<section id="types">\n<h2>Types</h2>\n'
    for name, schema in schemas.items():
        made += f'<article id="{_anchor("type." + name)}">\n<h3><code>{escape(name)}</code></h3>\n'
        made += _text(schema.get("description", ""))
        made += _fields(schema) if "properties" in schema else f"<p>{_type(schema)}</p>\n"
        made += "</article>\n"
    return made + "</section>\n"


def _type(schema: Any) -> str:
    """A type in words, with its bounds: ``string, 1 to 64 characters, or null``."""
    if not isinstance(schema, dict) or not schema:
        return "anything" if schema is not False else "nothing"
    if "$ref" in schema:
        name = str(schema["$ref"]).removeprefix(REF)
        return f'<a href="#{_anchor("type." + name)}">{escape(name)}</a>'
    if "const" in schema:
        return f"<code>{_json(schema['const'])}</code>"
    if "enum" in schema:
        return " or ".join(f"<code>{_json(each)}</code>" for each in schema["enum"])
    for word, between in (("anyOf", ", or "), ("oneOf", ", or "), ("allOf", ", and ")):
        if word in schema:
            return between.join(_type(each) for each in schema[word])
    kind = schema.get("type", "anything")
    if isinstance(kind, list):
        return " or ".join(escape(str(each)) for each in kind) + _bounds(schema)
    return _inside(str(kind), schema) + _bounds(schema)


def _inside(kind: str, schema: Schema) -> str:
    if kind == "array" and isinstance(schema.get("items"), list):
        return f"array: {'; '.join(_type(each) for each in schema['items'])}"
    if kind == "array" and schema.get("items"):
        return f"array of {_type(schema['items'])}"
    if kind == "object" and isinstance(schema.get("additionalProperties"), dict):
        return f"object of {_type(schema['additionalProperties'])}"
    if kind == "object" and schema.get("properties"):
        return "object: " + "; ".join(
            f"<code>{escape(name)}</code> {_type(each)}" for name, each in schema["properties"].items()
        )
    return escape(kind)


def _bounds(schema: Schema) -> str:
    found = []
    for low, high, unit in BOUNDS:
        least, most = schema.get(low), schema.get(high)
        if least is not None and most is not None:
            found.append(f"{least} to {most}{unit}" if least != most else f"{least}{unit}")
        elif least is not None:
            found.append(f"at least {least}{unit}")
        elif most is not None:
            found.append(f"at most {most}{unit}")
    words = {"exclusiveMinimum": "above", "exclusiveMaximum": "below", "multipleOf": "a multiple of", "format": ""}
    found += [f"{text} {schema[word]}".strip() for word, text in words.items() if word in schema]
    if schema.get("uniqueItems"):
        found.append("each once")
    made = "".join(f", {escape(each)}" for each in found)
    return made + (f", like <code>{escape(str(schema['pattern']))}</code>" if "pattern" in schema else "")


# -- channels --------------------------------------------------------------------------------------------------------


def _channels(channels: Mapping[str, Schema]) -> str:
    if not channels:
        return ""
    shown = "".join(_channel(pattern, each) for pattern, each in channels.items())
    return f'<section id="channels">\n<h2>Channels</h2>\n{shown}</section>\n'


WHO: Final = {
    "authorizer": "whom the app allows",
    "grant": "whose token allows it",
    "subscribers": "subscribers",
    "anyone": "anyone signed in",
    "server": "the server only",
}


def _channel(pattern: str, channel: Schema) -> str:
    anchor, options = _anchor(f"channel-{pattern}"), channel["options"]
    made = f'<article id="{anchor}">\n<h3><a href="#{anchor}"><code>{escape(pattern)}</code></a></h3>\n'
    made += _text(channel.get("description", ""))
    rows = [(f"<code>{escape(name)}</code>", _type(each)) for name, each in channel["parameters"].items()]
    rows.append(("subscribe", escape(WHO.get(channel["subscribe"]["who"], channel["subscribe"]["who"]))))
    if "state" in channel["subscribe"]:
        rows.append(("state", _type(channel["subscribe"]["state"])))
    rows.append(
        ("publish", escape(WHO.get(channel["publish"]["who"], channel["publish"]["who"])) + _data(channel["publish"]))
    )
    if "publication" in channel:
        rows.append(("publications", _type(channel["publication"]["data"]) + _see(channel["publication"])))
    size = options["history_size"]
    rows.append(("history", f"{size} publications, for {options['history_ttl']:g} s" if size else "none"))
    rows.append(("presence", "yes" if options["presence"] else "no"))
    rows.append(("slow readers", f"<code>{escape(options['slow'])}</code>"))
    table = "".join(f"<tr><td>{name}</td><td>{text}</td></tr>\n" for name, text in rows)
    return made + f"<table>\n{table}</table>\n</article>\n"


def _data(publish: Schema) -> str:
    return f": {_type(publish['data'])}{_see(publish)}" if "data" in publish else ""


def _see(entry: Schema) -> str:
    return f' (<a href="#{_anchor(_last(entry["message"]))}">message</a>)'


# -- texts -----------------------------------------------------------------------------------------------------------


def _text(text: str) -> str:
    """Paragraphs; what stands between backticks is code."""
    found = []
    for paragraph in re.split(r"\n\s*\n", text.strip()):
        if paragraph:
            marked = re.sub(r"(`+)([^`]+)\1", r"<code>\2</code>", escape(paragraph))
            found.append(f"<p>{marked}</p>\n")
    return "".join(found)


def _json(value: Any) -> str:
    return escape(msgspec.json.encode(value).decode(), quote=False)


def _anchor(text: str) -> str:
    return escape(quote(text, safe="-._~:"))


def _last(reference: Schema) -> str:
    return str(reference["$ref"]).rpartition("/")[2]


def _is_own(message: Schema) -> bool:
    return bool(message["tags"] == [{"name": "hubbub"}])


def _apps_first(messages: Iterable[tuple[str, Schema]]) -> list[tuple[str, Schema]]:
    return sorted(messages, key=lambda item: _is_own(item[1]))


__all__ = ["page"]
