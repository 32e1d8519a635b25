"""Patterns of channel names with variable parts: ``orders:{order_id}``. Matching, making, and whether two overlap."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final, TypeAlias

from hubbub.errors import ConfigurationError
from hubbub.messages import CHANNEL_NAME

_PART: Final = re.compile(r"\{([A-Za-z_][A-Za-z0-9_]*)(:path)?\}")
_LITERAL: Final = re.compile(r"[A-Za-z0-9_.:@/+=~-]*")
SEGMENT: Final = "[^:]"
ANYTHING: Final = "."
_Item: TypeAlias = tuple[str, bool]
"""One character, :data:`SEGMENT` or :data:`ANYTHING`; and whether it may be repeated."""


class NamePattern:
    """A pattern: literal text, ``{name}`` for one or more characters other than ``:``, ``{name:path}`` for any.

    :raises ConfigurationError: it is no pattern that a channel's name could match.
    """

    def __init__(self, pattern: str, place: str) -> None:
        self.text = pattern
        self.place = place
        self.names: tuple[str, ...] = tuple(match[1] for match in _PART.finditer(pattern))
        if len(set(self.names)) != len(self.names):
            raise ConfigurationError(f"{place}: {pattern!r} has a name twice")
        literals = _PART.sub("", pattern)
        if not pattern or _LITERAL.fullmatch(literals) is None:
            raise ConfigurationError(
                f"{place}: {pattern!r} is no pattern of channel names: A-Z a-z 0-9 _ . : @ / + = ~ - and {{name}}"
            )
        self._regex = re.compile(self._expression())

    def _expression(self) -> str:
        made, end = "", 0
        for part in _PART.finditer(self.text):
            made += re.escape(self.text[end : part.start()])
            made += f"(?P<{part[1]}>{ANYTHING if part[2] else SEGMENT}+)"
            end = part.end()
        return made + re.escape(self.text[end:])

    def match(self, name: str) -> dict[str, str] | None:
        """The variable parts of a name; None if it does not match."""
        found = self._regex.fullmatch(name)
        return None if found is None else found.groupdict()

    def make(self, values: Mapping[str, Any]) -> str:
        """The name with these values.

        :raises TypeError: a value is missing, or too many are given.
        :raises ValueError: what comes of it is no channel's name, or would be read otherwise.
        """
        if set(values) != set(self.names):
            wanted = ", ".join(self.names) or "no names"
            raise TypeError(f"{self.text!r} takes {wanted}; given: {', '.join(values) or 'none'}")
        texts = {name: str(getattr(value, "value", value)) for name, value in values.items()}
        made = _PART.sub(lambda part: texts[part[1]], self.text)
        if CHANNEL_NAME.fullmatch(made) is None or self.match(made) != texts:
            raise ValueError(f"{made[:200]!r} is no channel of {self.text!r}")
        return made

    def overlaps(self, other: NamePattern) -> bool:
        """Whether some name matches both."""
        return overlap(self._items(), other._items())

    def _items(self) -> list[_Item]:
        items: list[_Item] = []
        end = 0
        for part in _PART.finditer(self.text):
            items += [(character, False) for character in self.text[end : part.start()]]
            kind = ANYTHING if part[2] else SEGMENT
            items += [(kind, False), (kind, True)]  # one, and more
            end = part.end()
        return items + [(character, False) for character in self.text[end:]]

    def __repr__(self) -> str:
        return f"{self.text!r} of {self.place}"


def overlap(one: list[_Item], two: list[_Item]) -> bool:
    """Whether two sequences of characters and repeated classes have a word in common: a walk over pairs of positions."""
    seen: set[tuple[int, int]] = set()
    pending = [(0, 0)]
    while pending:
        pair = pending.pop()
        if pair in seen:
            continue
        seen.add(pair)
        i, j = pair
        if i == len(one) and j == len(two):
            return True
        if i < len(one) and one[i][1]:
            pending.append((i + 1, j))
        if j < len(two) and two[j][1]:
            pending.append((i, j + 1))
        if i < len(one) and j < len(two) and _meet(one[i][0], two[j][0]):
            pending.append((i if one[i][1] else i + 1, j if two[j][1] else j + 1))
    return False


def _meet(one: str, two: str) -> bool:
    classes = {SEGMENT, ANYTHING}
    if one in classes and two in classes:
        return True
    if one in classes:
        one, two = two, one
    if two not in classes:
        return one == two
    return two == ANYTHING or one != ":"
