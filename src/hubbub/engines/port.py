"""What a database promises the store."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, Protocol, TypeVar

from sqlalchemy import Connection

T = TypeVar("T")
Work = Callable[[Connection], T]
WROTE: Final = "work that was to read only has tried to write"


class Unknown(Exception):
    """The connection broke while a transaction was being committed. :attr:`token` finds out whether it was."""

    def __init__(self, token: int) -> None:
        super().__init__(token)
        self.token = token


class Engine(Protocol):
    """One database.

    :ivar name: "sqlite" or "postgresql".
    :ivar exclusive: nobody else writes to it while it is open.
    :ivar where: what a person knows it by; without a password.
    """

    name: str
    exclusive: bool
    where: str

    async def start(self) -> None:
        """Open it.

        :raises ConfigurationError: it cannot be used; says what to do.
        """
        ...

    async def stop(self) -> None:
        """Close it. Nothing may be under way."""
        ...

    async def write(self, work: Work[T]) -> T:
        """Run work in one transaction, and commit it. One at a time. It ends, whatever the database does.

        :raises Unknown: nobody knows whether it was committed; ask :meth:`was_committed`.
        """
        ...

    async def was_committed(self, token: int) -> bool:
        """What became of the last transaction, whose commit was :class:`Unknown`. Whatever it says is so for ever."""
        ...

    async def read(self, work: Work[T]) -> T:
        """Run work that only reads, all of it on one state of the database. It ends, whatever the database does.

        :raises RuntimeError: it tried to write.
        """
        ...

    async def alter(self, work: Work[T]) -> T:
        """Run work that changes the schema in one transaction, for as long as it takes."""
        ...

    def touch(self, connection: Connection) -> None:
        """Work that writes something and changes nothing: it fails where others would."""
        ...

    def transient(self, error: BaseException) -> bool:
        """Whether the same transaction may succeed a little later."""
        ...

    def concerns_all(self, error: BaseException) -> bool:
        """Whether an error is about the database, and so about all of a transaction, and not about one statement."""
        ...
