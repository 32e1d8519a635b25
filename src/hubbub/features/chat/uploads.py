"""Attachments: what the database knows of them, and how their bytes come and go.

A row is there before the bytes are, and until they are gone, so no crash leaves bytes that nobody knows of. Three kinds
of rows have no owner, and nobody sees them: of what is on its way (``message`` is null), and of what is to be removed
(``message`` is 0).
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from functools import partial
from typing import Any, Final, TypeVar

from msgspec import Struct
from sqlalchemy import ColumnElement, Connection, and_, delete, func, insert, or_, select, update

from hubbub.errors import ClientError, ErrorCode, StoreUnavailable
from hubbub.features.chat import tables
from hubbub.features.chat.access import Act, Caller, check
from hubbub.features.chat.render import file_info
from hubbub.features.chat.tables import SEQ_MASK
from hubbub.features.chat.tells import FileInfo
from hubbub.features.chat.tx import Tx
from hubbub.files import Files, StoredFile, clean_name, media_type_of, new_key
from hubbub.hub import Hub
from hubbub.store import Store

log = logging.getLogger("hubbub")
T = TypeVar("T")
UNSENT: Final = 86_400_000
"""Milliseconds after which what was uploaded and never sent is removed, and an upload that has not ended is dead."""
SWEEP: Final = 60.0
"""Seconds between two looks at what is to be removed."""
AT_ONCE: Final = 100
"""Files removed in one transaction."""
GONE: Final = 0
"""``message`` of a row whose bytes are to be removed: no message has this key."""

_a: Final = tables.attachments.c


class Attachment(Struct, frozen=True):
    """What is kept of a file beside its bytes."""

    id: str
    name: str
    media_type: str
    size: int
    sha256: str

    @property
    def key(self) -> str:
        """Where its bytes are."""
        return key_of_file(self.id)


def key_of_file(file_id: str) -> str:
    """The key in :class:`~hubbub.files.Files` of an attachment's id."""
    return f"{file_id[:2]}/{file_id[2:]}"


def no_such_file() -> ClientError:
    """The same whether it is not there or not to be known of."""
    return ClientError(ErrorCode.NOT_FOUND, "there is no such file")


# -- in a transaction


def begin(tx: Tx, room_id: str, file_id: str, size: int) -> None:
    """Note that a file is on its way.

    :param size: bytes that are announced; 0: that is not known.
    :raises ClientError: the caller may not say anything in the room, or has too many bytes already.
    """
    room, _ = tx.enter(room_id, Act.WRITE)
    if not room.stored:
        raise ClientError(ErrorCode.FORBIDDEN, "this room keeps no messages: no attachments either")
    _check_quota(tx, size)
    unknown = {"owner": "", "name": "", "media_type": "", "size": 0, "sha256": ""}
    tx.connection.execute(insert(tables.attachments), {"id": file_id, "room_no": room.no, "at": tx.now, **unknown})


def complete(tx: Tx, room_id: str, file: Attachment) -> FileInfo:
    """The bytes are there: from here on it may be sent.

    :raises ClientError: as :func:`begin`; the caller may have lost the right to it meanwhile.
    """
    room, _ = tx.enter(room_id, Act.WRITE)
    _check_quota(tx, file.size)
    values = {"name": file.name, "media_type": file.media_type, "size": file.size, "sha256": file.sha256, "at": tx.now}
    waits = and_(_a.id == file.id, _a.room_no == room.no, _a.owner == "", _a.message.is_(None))
    query = update(tables.attachments).where(waits).values(owner=tx.caller.user_id, **values)
    if not tx.connection.execute(query).rowcount:
        raise ClientError(ErrorCode.CONFLICT, "the upload took too long: upload it again")
    return file_info(file)


def _check_quota(tx: Tx, size: int) -> None:
    """:raises ClientError: ``too_many``. Uploads of one user into several rooms at once may go over it by one each."""
    limit = tx.settings.user_file_bytes
    if not limit:
        return
    used = tx.connection.scalar(select(func.coalesce(func.sum(_a.size), 0)).where(_a.owner == tx.caller.user_id))
    if int(used or 0) + size > limit:
        text = f"all files of a user may have {limit:,} bytes together: delete messages with files that nobody needs"
        raise ClientError(ErrorCode.TOO_MANY, text)


def find(tx: Tx, file_id: str) -> Attachment:
    """A file, for who may read the message that it is in; before that is sent, for its owner.

    :raises ClientError: ``not_found``.
    """
    row = _row(tx, file_id)
    try:
        room, member = tx.look_by_number(row.room_no)
        check(room, member, tx.caller, Act.BROWSE, tx.now)
    except ClientError as error:
        raise no_such_file() from error
    if row.message is None:
        if tx.caller.user_id != row.owner and not tx.caller.admin:
            raise no_such_file()
    elif member is not None and row.message & SEQ_MASK <= member.history_from:
        raise no_such_file()
    return _attachment(row)


def find_for_all(tx: Tx, file_id: str) -> Attachment:
    """A file, for who has a link to it that is signed.

    :raises ClientError: ``not_found``.
    """
    return _attachment(_row(tx, file_id))


def take_back(tx: Tx, file_id: str) -> None:
    """Remove a file that was not sent.

    :raises ClientError: there is none of the caller's, or it belongs to a message.
    """
    row = _row(tx, file_id)
    if tx.caller.user_id != row.owner and not tx.caller.admin:
        raise no_such_file()
    if not drop_files(tx.connection, and_(_a.id == file_id, _a.message.is_(None))):
        raise ClientError(ErrorCode.CONFLICT, "this file belongs to a message: delete the message")


def _row(tx: Tx, file_id: str) -> Any:
    row = tx.connection.execute(select(tables.attachments).where(_a.id == file_id, _a.owner != "")).first()
    if row is None:
        raise no_such_file()
    return row


def _attachment(row: Any) -> Attachment:
    return Attachment(row.id, row.name, row.media_type, row.size, row.sha256)


def drop_files(connection: Connection, which: ColumnElement[bool]) -> int:
    """Take attachments away: nobody sees them from the commit on, and their bytes go soon after. Returns how many.

    :param which: a condition on ``attachments``; rows that are gone already do not matter.
    """
    blank = {"owner": "", "name": "", "media_type": "", "size": 0, "sha256": "", "message": GONE}
    gone = or_(_a.message.is_(None), _a.message != GONE)
    return connection.execute(update(tables.attachments).where(which, gone).values(blank)).rowcount


def _to_remove(now: int, connection: Connection) -> list[str]:
    """Files whose bytes have to go; what was never sent is among them once it is a day old."""
    drop_files(connection, and_(_a.message.is_(None), _a.at < now - UNSENT))
    query = select(_a.id).where(_a.owner == "", _a.message == GONE).limit(AT_ONCE)
    return list(connection.scalars(query))


def _forget(file_ids: list[str], connection: Connection) -> None:
    connection.execute(delete(tables.attachments).where(_a.id.in_(file_ids), _a.owner == "", _a.message == GONE))


# -- with the bytes


class Uploads:
    """Takes attachments in, and removes those that nobody can see any more.

    :ivar files: where the bytes are.
    """

    def __init__(self, hub: Hub, store: Store, files: Files) -> None:
        self.files = files
        self._hub = hub
        self._store = store
        self._due = 0.0
        self._removing = False
        hub.starters.append(files.start)
        hub.stoppers.append(files.stop)
        hub.sweepers.append(self.sweep)

    async def write(self, caller: Caller, work: Callable[[Tx], T]) -> T:
        """Run work in a transaction.

        :raises ClientError: what it raised, or that the store cannot be written to.
        """
        return await self._store.write(partial(self._run, caller, work, True))

    async def read(self, caller: Caller, work: Callable[[Tx], T]) -> T:
        """The same for what only reads."""
        return await self._store.read(partial(self._run, caller, work, False))

    def _run(self, caller: Caller, work: Callable[[Tx], T], writes: bool, connection: Connection) -> T:
        return work(Tx(connection, caller, self._now(), self._hub.settings, writes=writes))

    def _now(self) -> int:
        return int(self._hub.clock.time() * 1000)

    async def take(
        self, caller: Caller, room_id: str, name: str, claimed: str, chunks: AsyncIterator[bytes], size: int
    ) -> FileInfo:
        """Take in a file that is to be sent in a room. It is durable when this returns.

        :param claimed: its media type, as its sender says.
        :param size: bytes that its sender announces; 0: not known.
        :raises ClientError: it is refused: nothing is kept of it.
        """
        limit = self._hub.settings.max_file_size
        if not limit:
            raise ClientError(ErrorCode.FORBIDDEN, "this server takes no attachments (HUBBUB_MAX_FILE_SIZE is 0)")
        if size > limit:
            raise ClientError(ErrorCode.TOO_LARGE, f"a file may have at most {limit:,} bytes here")
        key = new_key()
        file_id = key.replace("/", "")
        await self.write(caller, lambda tx: begin(tx, room_id, file_id, size))
        try:
            stored = await self.files.put(key, chunks, limit, claimed)
            file = _described(file_id, clean_name(name), claimed, stored)
            return await self.write(caller, lambda tx: complete(tx, room_id, file))
        except StoreUnavailable:
            raise  # it may have been committed all the same: the row tells
        except Exception:
            with suppress(ClientError):  # the row is found in a day, then
                await self.write(caller, lambda tx: drop_files(tx.connection, _a.id == file_id))
            raise

    def sweep(self, monotonic: float) -> None:
        """Now and then, remove bytes that nobody needs; one node does it for all."""
        if monotonic >= self._due and not self._removing:
            self._due = monotonic + SWEEP
            if all(self._hub.cluster.node < other for other in self._hub.cluster.others):
                self._hub.background(self.remove())

    async def remove(self) -> None:
        """Remove the bytes of what was taken away, and then its rows."""
        self._removing = True
        try:
            while file_ids := await self._store.write(partial(_to_remove, self._now())):
                removed = [file_id for file_id in file_ids if await self._is_removed(file_id)]
                await self._store.write(partial(_forget, removed))
                if len(removed) < len(file_ids):
                    return  # the others are tried again later
        except ClientError as error:
            log.warning("could not look for attachments to remove: %s", error.message)
        finally:
            self._removing = False

    async def _is_removed(self, file_id: str) -> bool:
        try:
            await self.files.delete(key_of_file(file_id))
        except (ClientError, OSError) as error:
            log.warning("could not remove an attachment: %s", error, extra={"file": file_id})
            return False
        return True


def _described(file_id: str, name: str, claimed: str, stored: StoredFile) -> Attachment:
    """:raises ClientError: there is nothing in it."""
    if not stored.size:
        raise ClientError(ErrorCode.INVALID_MESSAGE, "the file is empty: send its bytes as the body")
    return Attachment(file_id, name, media_type_of(stored.head, claimed, name), stored.size, stored.sha256)


__all__ = ["Attachment", "Uploads", "drop_files", "find", "find_for_all", "take_back"]
