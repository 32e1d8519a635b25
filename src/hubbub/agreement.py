"""What nodes that share an engine must have in common: the database with the rooms, and the key of the tokens.

Two databases under one engine number the same rooms each for itself: what one node's people say, the others take for
repeats. Nobody would be told. So each database has an id, each node says it with its beats, and who comes with another one
does not start.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from hashlib import blake2b
from typing import Final

from hubbub.control import Report
from hubbub.errors import ConfigurationError
from hubbub.settings import Settings

log = logging.getLogger("hubbub")

OTHER_DATABASE: Final = (
    "{who} on this engine keep the rooms in another database: give all nodes the same HUBBUB_DATABASE_URL (a PostgreSQL; "
    "sqlite:// where there are no rooms), or this one a HUBBUB_VALKEY_PREFIX of its own"
)
OTHER_KEY: Final = (
    "another node checks tokens by another key: give all nodes the same HUBBUB_SECRET or HUBBUB_PUBLIC_KEY, or people who "
    "come from one to the other have to sign in anew"
)


class Agreement:
    """Whether this node and the others agree.

    :ivar store: the id of this node's database; "" until :meth:`settle`, and for one in memory.
    :ivar keys: stands for the keys that tokens are checked by; tells nothing of them.
    :ivar trouble: why this node had better get no clients, or None.
    """

    def __init__(self, settings: Settings) -> None:
        self.store = ""
        self.keys = _digest(settings)
        self.trouble: str | None = None
        self._warned: set[str] = set()

    def settle(self, store: str, others: Mapping[str, Report]) -> None:
        """The database is open: say which one it is, if it is that of the others.

        :raises ConfigurationError: it is not.
        """
        if trouble := _trouble(store, others):
            raise ConfigurationError(trouble)
        self.store = store

    def look(self, others: Mapping[str, Report]) -> None:
        """The others have said what they have."""
        trouble = _trouble(self.store, others)
        if trouble is not None and self.trouble is None:
            log.error("%s", trouble)  # they came up at the same time
        self.trouble = trouble
        self._warned.intersection_update(others)
        for node, report in others.items():
            if report.keys and report.keys != self.keys and node not in self._warned:
                self._warned.add(node)
                log.warning("%s", OTHER_KEY, extra={"node": node})


def _trouble(store: str, others: Mapping[str, Report]) -> str | None:
    """Of two databases, the one of fewer nodes is the wrong one; of as many, both."""
    if not store:
        return None
    same = 1 + sum(report.store == store for report in others.values())
    different = [node for node, report in others.items() if report.store not in ("", store)]
    if len(different) < same:
        return None
    return OTHER_DATABASE.format(who=f"the nodes {', '.join(sorted(different))}" if different[1:] else "other nodes")


def _digest(settings: Settings) -> str:
    secret = settings.secret.get_secret_value() if settings.secret is not None else ""
    both = f"{secret}\0{settings.public_key or ''}"
    return blake2b(both.encode(), digest_size=8, person=b"hubbub nodes").hexdigest()
