"""The chat's tables, and how a message is found.

A room has a counter, ``event_seq``, taken under the row's lock in the transaction that writes: whatever happens in the
room takes the next number. So numbers are 1, 2, 3, … without gaps, in the order of commits, on however many nodes, and
the room's channel has them as offsets. A second counter, ``message_count``, counts what people said: unread is the
difference of two of its values.

A message or event of room ``no`` with number ``seq`` has the key ``no << 36 | seq``: one integer, in one tree, with a
room's messages side by side and in order.

Times are unix milliseconds.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from sqlalchemy import (
    BigInteger,
    Column,
    Connection,
    ForeignKey,
    Index,
    Integer,
    SmallInteger,
    String,
    Table,
    Text,
    event,
    text,
)

from hubbub.tables import metadata

SEQ_BITS: Final = 36
"""68 billion events of one room; 134 million rooms."""
SEQ_MASK: Final = (1 << SEQ_BITS) - 1

Key = BigInteger().with_variant(Integer, "sqlite")
"""On SQLite an INTEGER PRIMARY KEY is the row's own place in the tree."""


def key_of(room_no: int, seq: int) -> int:
    """The key of what has the number ``seq`` in a room."""
    return room_no << SEQ_BITS | seq


rooms: Final = Table(
    "rooms",
    metadata,
    Column("no", Key, primary_key=True, autoincrement=True),
    Column("id", String(64), nullable=False, unique=True),
    Column("name", String(100), nullable=False),
    Column("topic", String(1000), nullable=False, server_default=""),
    Column("kind", String(16), nullable=False),  # group, large, broadcast, live
    Column("visibility", String(16), nullable=False),  # public, private, direct
    Column("history", String(16), nullable=False, server_default="shared"),  # shared; joined: from one's joining on
    Column("direct_key", String(64), unique=True),  # hash of the sorted ids of a direct room's people
    Column("epoch", String(64), nullable=False),
    Column("event_seq", BigInteger, nullable=False, server_default="0"),
    Column("message_count", BigInteger, nullable=False, server_default="0"),
    Column("member_count", Integer, nullable=False, server_default="0"),
    Column("pin_count", Integer, nullable=False, server_default="0"),
    Column("trimmed_seq", BigInteger, nullable=False, server_default="0"),  # nothing up to here is kept whole
    Column("indexed_seq", BigInteger, nullable=False, server_default="0"),  # SQLite: searchable up to here
    Column("slow_mode", Integer, nullable=False, server_default="0"),  # seconds between two messages of one member
    Column("retention_days", Integer, nullable=False, server_default="0"),  # 0: for ever
    Column("created_at", BigInteger, nullable=False),
    Column("created_by", String(128)),
    Column("last_at", BigInteger, nullable=False),  # of the newest message, or of the room's making
    Column("archived_at", BigInteger),
    Index(None, "created_by"),
    Index(None, "visibility", "id"),
)

members: Final = Table(
    "members",
    metadata,
    Column("room_no", BigInteger, ForeignKey("rooms.no", ondelete="CASCADE"), primary_key=True),
    Column("user_id", String(128), primary_key=True),
    Column("role", String(16), nullable=False),  # owner, moderator, member
    Column("joined_at", BigInteger, nullable=False),
    Column("history_from", BigInteger, nullable=False, server_default="0"),  # sees what has a larger seq
    Column("notify", String(16), nullable=False, server_default="all"),  # all, mentions, none
    Column("read_seq", BigInteger, nullable=False, server_default="0"),  # the message read last
    Column("read_count", BigInteger, nullable=False, server_default="0"),  # its number among the room's messages
    Column("mention_count", Integer, nullable=False, server_default="0"),  # unread messages that mention the member
    Column("muted_until", BigInteger, nullable=False, server_default="0"),
    Column("sent_at", BigInteger, nullable=False, server_default="0"),  # in slow mode: of the member's last message
    Index(None, "user_id", "room_no"),
    sqlite_with_rowid=False,
)

invitations: Final = Table(
    "invitations",
    metadata,
    Column("room_no", BigInteger, ForeignKey("rooms.no", ondelete="CASCADE"), primary_key=True),
    Column("user_id", String(128), primary_key=True),
    Column("invited_by", String(128), nullable=False),
    Column("at", BigInteger, nullable=False),
    Index(None, "user_id"),
    sqlite_with_rowid=False,
)

bans: Final = Table(
    "bans",
    metadata,
    Column("room_no", BigInteger, ForeignKey("rooms.no", ondelete="CASCADE"), primary_key=True),
    Column("user_id", String(128), primary_key=True),
    Column("until", BigInteger),  # None: for ever
    Column("reason", String(500), nullable=False, server_default=""),
    Column("banned_by", String(128), nullable=False),
    Column("at", BigInteger, nullable=False),
    sqlite_with_rowid=False,
)

messages: Final = Table(
    "messages",
    metadata,
    Column("key", Key, primary_key=True, autoincrement=False),
    Column("room_no", BigInteger, nullable=False),
    Column("number", BigInteger, nullable=False),  # among the room's messages; a system message has the one before it
    Column("author", String(128), nullable=False),
    Column("client_id", String(128)),
    Column("kind", SmallInteger, nullable=False, server_default="0"),  # 0: said by the author, 1: of the system
    Column("at", BigInteger, nullable=False),
    Column("body", Text, nullable=False),  # of a system message: what happened, as JSON
    Column("version", Integer, nullable=False, server_default="1"),
    Column("edited_at", BigInteger),
    Column("deleted_at", BigInteger),
    Column("deleted_by", String(128)),
    Column("reply_to", BigInteger),  # seq of the message that it answers
    Column("thread", BigInteger),  # seq of the message whose thread it is in
    Column("extra", Text),  # JSON: {"mentions": [...], "files": [...]}
    Index(
        "uq_messages_client_id",
        "room_no",
        "author",
        "client_id",
        unique=True,
        sqlite_where=text("client_id IS NOT NULL"),
        postgresql_where=text("client_id IS NOT NULL"),
    ),
    Index(
        "ix_messages_thread",
        "room_no",
        "thread",
        "key",
        sqlite_where=text("thread IS NOT NULL"),
        postgresql_where=text("thread IS NOT NULL"),
    ),
)

SEARCHED: Final = 100_000
"""Characters of a message that are searchable; PostgreSQL's index takes less than a megabyte of one row."""
SEARCH_DDL: Final[Mapping[str, tuple[str, ...]]] = {
    # No text is kept in the index (content=''): it stands in messages. Marks of vowels and tones are part of a word.
    # `asked` and `done`: how often words had to be wiped from the index, and up to which time it was done.
    "sqlite": (
        "CREATE VIRTUAL TABLE message_search USING fts5(body, content='', columnsize=0, "
        "tokenize=\"unicode61 remove_diacritics 2 categories 'L* N* Co Mn Mc'\")",
        "CREATE TABLE message_wiping (asked INTEGER NOT NULL, done INTEGER NOT NULL)",
        "INSERT INTO message_wiping VALUES (0, 0)",
    ),
    # Of its own, PostgreSQL would find hosts, files, addresses and tags where FTS5 finds words: so without those signs.
    # Accents on Latin letters go, as with FTS5; what has ASCII letters only, which is quickly seen, is spared that.
    "postgresql": (
        f"""ALTER TABLE messages ADD COLUMN tsv tsvector GENERATED ALWAYS AS (
            CASE WHEN kind = 0 AND deleted_at IS NULL THEN to_tsvector('pg_catalog.simple', translate(
                CASE WHEN octet_length(body) = char_length(body) THEN left(body, {SEARCHED})
                ELSE normalize(regexp_replace(
                    normalize(left(body, {SEARCHED}), NFD), U&'([A-Za-z])[\\0300-\\036F]+', '\\1', 'g'), NFC)
                END, '-./@<&+~', '        ')) END) STORED""",
        "CREATE INDEX ix_messages_tsv ON messages USING gin (tsv)",
    ),
}
"""What makes messages searchable, by dialect: beside the tables here, of which none knows it."""


@event.listens_for(messages, "after_create")
def _make_searchable(_: Table, connection: Connection, **options: Any) -> None:
    for statement in SEARCH_DDL.get(connection.dialect.name, ()):
        connection.exec_driver_sql(statement)


events: Final = Table(
    "events",
    metadata,
    Column("key", Key, primary_key=True, autoincrement=False),
    Column("type", String(32), nullable=False),
    Column("by", String(128)),
    Column("at", BigInteger, nullable=False),
    Column("target", BigInteger),  # seq of the message that it is about
    Column(
        "data", Text, nullable=False, server_default="{}"
    ),  # JSON; never a message's text: that is read where it stands
)
"""What takes a number in a room and is no message: edits, deletions, reactions, pins, members, the room itself."""

versions: Final = Table(
    "versions",
    metadata,
    Column("message", BigInteger, ForeignKey("messages.key", ondelete="CASCADE"), primary_key=True),
    Column("version", Integer, primary_key=True),
    Column("body", Text, nullable=False),
    Column("at", BigInteger, nullable=False),  # when it was said
    Column("by", String(128), nullable=False),
    sqlite_with_rowid=False,
)

reactions: Final = Table(
    "reactions",
    metadata,
    Column("message", BigInteger, ForeignKey("messages.key", ondelete="CASCADE"), primary_key=True),
    Column("emoji", String(64), primary_key=True),
    Column("user_id", String(128), primary_key=True),
    Column("at", BigInteger, nullable=False),
    Index(None, "user_id"),
    sqlite_with_rowid=False,
)

mentions: Final = Table(
    "mentions",
    metadata,
    Column("user_id", String(128), primary_key=True),
    Column("message", BigInteger, ForeignKey("messages.key", ondelete="CASCADE"), primary_key=True),
    Index(None, "message"),
    sqlite_with_rowid=False,
)

pins: Final = Table(
    "pins",
    metadata,
    Column("message", Key, ForeignKey("messages.key", ondelete="CASCADE"), primary_key=True, autoincrement=False),
    Column("pinned_by", String(128), nullable=False),
    Column("at", BigInteger, nullable=False),
)

threads: Final = Table(
    "threads",
    metadata,
    Column("root", Key, ForeignKey("messages.key", ondelete="CASCADE"), primary_key=True, autoincrement=False),
    Column("reply_count", Integer, nullable=False, server_default="0"),
    Column("last_seq", BigInteger, nullable=False),
    Column("last_at", BigInteger, nullable=False),
)

followers: Final = Table(
    "followers",
    metadata,
    Column("root", BigInteger, ForeignKey("threads.root", ondelete="CASCADE"), primary_key=True),
    Column("user_id", String(128), primary_key=True),
    Column("read_seq", BigInteger, nullable=False, server_default="0"),
    Column("read_count", Integer, nullable=False, server_default="0"),  # replies read
    Index(None, "user_id", "root"),
    sqlite_with_rowid=False,
)
"""Who started a thread, replied in it or was mentioned in it; with their read marks in it."""

attachments: Final = Table(
    "attachments",
    metadata,
    Column("id", String(32), primary_key=True),
    Column("room_no", BigInteger, ForeignKey("rooms.no", ondelete="CASCADE"), nullable=False),
    Column("owner", String(128), nullable=False),
    Column("name", String(200), nullable=False),
    Column("media_type", String(100), nullable=False),
    Column("size", BigInteger, nullable=False),
    Column("sha256", String(64), nullable=False),
    Column("at", BigInteger, nullable=False),
    Column("message", BigInteger),  # key of the message that it belongs to; None: uploaded, and not sent yet
    Index(None, "owner"),
    Index(None, "message"),
    Index(None, "room_no"),
)

reports: Final = Table(
    "reports",
    metadata,
    Column("no", Key, primary_key=True, autoincrement=True),
    Column("room_no", BigInteger, ForeignKey("rooms.no", ondelete="CASCADE"), nullable=False),
    Column("message", BigInteger, nullable=False),
    Column("reported_by", String(128), nullable=False),
    Column("reason", String(1000), nullable=False),
    Column("at", BigInteger, nullable=False),
    Column("status", String(16), nullable=False, server_default="open"),  # open, dismissed, resolved
    Column("closed_at", BigInteger),
    Column("closed_by", String(128)),
    Column("note", String(1000), nullable=False, server_default=""),
    Index(None, "status", "room_no"),
    Index("uq_reports_one_each", "message", "reported_by", unique=True),
)

audit: Final = Table(
    "audit",
    metadata,
    Column("no", Key, primary_key=True, autoincrement=True),
    Column("room_no", BigInteger),
    Column("at", BigInteger, nullable=False),
    Column("by", String(128), nullable=False),
    Column("act", String(32), nullable=False),
    Column("target_user", String(128)),
    Column("target_message", BigInteger),  # its key
    Column("data", Text, nullable=False, server_default="{}"),
    Index(None, "room_no", "no"),
    Index(None, "at"),
)

last_seen: Final = Table(
    "last_seen",
    metadata,
    Column("user_id", String(128), primary_key=True),
    Column("at", BigInteger, nullable=False),
    sqlite_with_rowid=False,
)

__all__ = [
    "SEARCHED",
    "SEARCH_DDL",
    "SEQ_BITS",
    "SEQ_MASK",
    "attachments",
    "audit",
    "bans",
    "events",
    "followers",
    "invitations",
    "key_of",
    "last_seen",
    "members",
    "mentions",
    "messages",
    "pins",
    "reactions",
    "reports",
    "rooms",
    "threads",
    "versions",
]
