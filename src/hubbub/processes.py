"""Whether this process is one of several that serve the same app, which a server started that knows nothing of Hubbub."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Mapping, Sequence
from typing import Final

ALONE: Final = (
    "this process is one of {count} workers, and there is no engine: each of them tells only its own clients. Use "
    "`hubbub serve --app module:app --workers {count}`, which brings an engine, or set HUBBUB_VALKEY_URL"
)


def workers(arguments: Sequence[str] | None = None, environment: Mapping[str, str] | None = None) -> int:
    """How many worker processes uvicorn, gunicorn, Hypercorn or Granian was asked for; 1 where nothing says so.

    Their workers have the command line of whoever started them, also where they are spawned.
    """
    given = list(sys.argv if arguments is None else arguments)
    environment = os.environ if environment is None else environment
    found = environment.get("WEB_CONCURRENCY", "")
    for index, argument in enumerate(given):
        name, _, value = argument.partition("=")
        if name in ("--workers", "-w"):
            found = value or "".join(given[index + 1 : index + 2])
        elif short := re.fullmatch(r"-w(\d+)", argument):
            found = short[1]
    return int(found) if found.isascii() and found.isdigit() and int(found) > 1 else 1
