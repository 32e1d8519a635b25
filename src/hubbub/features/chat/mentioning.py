"""Who is mentioned in a text. Pure: names in, nothing looked up."""

from __future__ import annotations

import re
from typing import Final

EVERYONE: Final = "@room"
"""What `@room` stands for: everybody in the room."""

_MENTION: Final = re.compile(
    r"(?<![\w@])@"  # what stands before it would make it part of a mail address
    r"(?:\[([^\[\]\r\n\u2028\u2029]{1,128})\]"
    r"|([\w.-]*\w))"  # no run of these has an @ in it, so each is looked at once, however many there are
)
_LONGEST: Final = 128
"""Characters of a user's id."""


def mentions_of(text: str, limit: int) -> tuple[str, ...]:
    """The names that a text mentions, each once, in order; the first ``limit`` of them.

    ``@name`` is letters, digits, ``_``, ``.`` and ``-``, and does not end in one of the last two. ``@[a name]`` is any
    user's id that has no brackets in it. ``@room`` is :data:`EVERYONE` (and ``@[room]`` the user of that name).
    """
    found: dict[str, None] = {}
    if limit <= 0 or "@" not in text:
        return ()
    for match in _MENTION.finditer(text):
        quoted, plain = match.groups()
        name = quoted or (EVERYONE if plain == "room" else plain)
        if len(name) <= _LONGEST:
            found[name] = None
            if len(found) == limit:
                break
    return tuple(found)
