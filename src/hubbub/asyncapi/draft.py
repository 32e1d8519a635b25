"""A document while it is written: the messages, operations and schemas so far, under keys that are theirs alone."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Final

from hubbub.asyncapi.schemas import Schema, Schemas, free

REF_IN: Final[Schema] = {
    "anyOf": [{"type": "string", "maxLength": 64}, {"type": "null"}],
    "description": "Comes back in the reply, `ack` or `error`.",
}
REF_OUT: Final[Schema] = {"type": "string", "description": "The request's, if it had one."}


class Draft:
    """What the parts of a document are added to.

    :ivar messages: keys begin with ``client.`` or ``server.``: who sends them.
    """

    def __init__(self) -> None:
        self.schemas = Schemas()
        self.messages: dict[str, Schema] = {}
        self.operations: dict[str, Schema] = {}

    def message(
        self, key: str, name: str, payload: Schema, *, text: str, tag: str, title: str = "", example: Any = None
    ) -> str:
        """Add a message; returns its key. One that is there already, the same in all, is not added again.

        :param title: what people call it, where its type does not say enough.
        :param text: what it is for; the docstring of its type, if it has one, is put below that.
        """
        payload.pop("title", None)
        summary, description = split(f"{text}\n\n{payload.pop('description', '')}")
        message: Schema = {"name": name, "title": title or name, "summary": summary, "description": description}
        message = {word: value for word, value in message.items() if value}
        message |= {"tags": [{"name": tag}], "payload": payload}
        if "ref" in payload.get("properties", {}):
            message["correlationId"] = {"$ref": "#/components/correlationIds/ref"}
        if example is not None:
            message["examples"] = [{"payload": example}]
        return next(each for each in _keys(key) if self.messages.setdefault(each, message) == message)

    def operation(
        self,
        key: str,
        action: str,
        messages: Sequence[str],
        replies: Iterable[str] = (),
        *,
        title: str = "",
        text: str = "",
        tag: str = "hubbub",
        channel: str = "session",
        **more: Any,
    ) -> None:
        """Add an operation: ``receive`` for what clients send, ``send`` for what the server does."""
        at = f"#/channels/{channel}"
        summary, description = split(text)
        words = {"title": title, "summary": summary, "description": description, "tags": [{"name": tag}], **more}
        made: Schema = {
            "action": action,
            "channel": {"$ref": at},
            **{name: each for name, each in words.items() if each},
        }
        made["messages"] = [{"$ref": f"{at}/messages/{each}"} for each in messages]
        answers = [{"$ref": f"{at}/messages/{each}"} for each in dict.fromkeys(replies)]
        if answers:
            made["reply"] = {"channel": {"$ref": at}, "messages": answers}
        self.operations[free(next(_keys(key)), self.operations)] = made


def _keys(text: str) -> Iterator[str]:
    """Keys made of a text. AsyncAPI allows letters, digits and ``. - _`` in them."""
    first = re.sub(r"[^A-Za-z0-9._-]+", "_", text).rstrip("_") or "_"
    yield first
    number = 2
    while True:
        yield f"{first}-{number}"
        number += 1


def split(text: str) -> tuple[str, str]:
    """The first paragraph in one line, and the rest."""
    first, _, rest = text.strip().partition("\n\n")
    return " ".join(first.split()), rest.strip()


__all__ = ["REF_IN", "REF_OUT", "Draft", "split"]
