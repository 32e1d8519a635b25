"""Name patterns: exact, or with ``*`` for any characters."""

from __future__ import annotations

from collections.abc import Iterable


class Patterns:
    """Matches names against patterns in which only ``*`` is special (any characters, also none).

    Linear time, no regular expressions: a pattern may come from a token.
    """

    __slots__ = ("_exact", "_globs", "_prefixes")

    def __init__(self, patterns: Iterable[str]) -> None:
        exact: set[str] = set()
        prefixes: list[str] = []
        self._globs: list[tuple[str, list[str], str]] = []
        for pattern in patterns:
            head, *rest = pattern.split("*")
            if not rest:
                exact.add(pattern)
            elif not any(rest):
                prefixes.append(head)
            else:
                self._globs.append((head, rest[:-1], rest[-1]))
        self._exact = frozenset(exact)
        self._prefixes = tuple(prefixes)

    def __call__(self, name: str) -> bool:
        if name in self._exact or name.startswith(self._prefixes):
            return True
        return any(_glob(name, *parts) for parts in self._globs)


def _glob(name: str, head: str, middle: list[str], tail: str) -> bool:
    end = len(name) - len(tail)
    if end < len(head) or not name.startswith(head) or not name.endswith(tail):
        return False
    position = len(head)
    for part in middle:  # the leftmost fit leaves the most for the rest, so there is nothing to backtrack to
        position = name.find(part, position, end)
        if position < 0:
            return False
        position += len(part)
    return True
