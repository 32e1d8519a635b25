"""How far something is, shown on a terminal."""

from __future__ import annotations

import sys
from typing import Any


class Progress:
    """Shows how far something is, on a terminal; else nothing.

    :param total: bytes, if they are known.
    :param hidden: show nothing: the terminal has other things to show.
    """

    def __init__(self, what: str, *, total: int | None = None, hidden: bool = False) -> None:
        self._what = what
        self._total = total
        self._shown = sys.stderr.isatty() and not hidden
        self._bar: Any = None
        self._task: Any = None

    def __enter__(self) -> Progress:
        if self._shown:
            from rich import progress as parts
            from rich.console import Console

            self._bar = parts.Progress(
                parts.SpinnerColumn(),
                parts.TextColumn("{task.description}"),
                parts.BarColumn(),
                parts.TextColumn("{task.fields[said]}"),
                parts.TimeElapsedColumn(),
                parts.TimeRemainingColumn(),
                console=Console(stderr=True),
            )
            self._bar.start()
            self._task = self._bar.add_task(self._what, total=self._total, said="")
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def advance(self, size: int) -> None:
        """So much more is done."""
        if self._bar is not None:
            self._bar.advance(self._task, size)

    def reach(self, done: int, total: int) -> None:
        """So much of all is done."""
        if self._bar is not None:
            self._bar.update(self._task, completed=done, total=total, said=f"{done:,} of {total:,}")

    def say(self, text: str) -> None:
        """In words."""
        if self._bar is not None:
            self._bar.update(self._task, said=text)
