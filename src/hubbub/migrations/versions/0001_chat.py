"""The chat: rooms, members, messages and what belongs to them."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None

KEY = sa.BigInteger().with_variant(sa.Integer(), "sqlite")

SEARCH = {
    "sqlite": (
        "CREATE VIRTUAL TABLE message_search USING fts5(body, content='', columnsize=0, "
        "tokenize=\"unicode61 remove_diacritics 2 categories 'L* N* Co Mn Mc'\")",
        "CREATE TABLE message_wiping (asked INTEGER NOT NULL, done INTEGER NOT NULL)",
        "INSERT INTO message_wiping VALUES (0, 0)",
    ),
    "postgresql": (
        """ALTER TABLE messages ADD COLUMN tsv tsvector GENERATED ALWAYS AS (
            CASE WHEN kind = 0 AND deleted_at IS NULL THEN to_tsvector('pg_catalog.simple', translate(
                CASE WHEN octet_length(body) = char_length(body) THEN left(body, 100000)
                ELSE normalize(regexp_replace(
                    normalize(left(body, 100000), NFD), U&'([A-Za-z])[\\0300-\\036F]+', '\\1', 'g'), NFC)
                END, '-./@<&+~', '        ')) END) STORED""",
        "CREATE INDEX ix_messages_tsv ON messages USING gin (tsv)",
    ),
}


def upgrade() -> None:
    op.create_table(
        "audit",
        sa.Column("no", KEY, autoincrement=True, nullable=False),
        sa.Column("room_no", sa.BigInteger()),
        sa.Column("at", sa.BigInteger(), nullable=False),
        sa.Column("by", sa.String(128), nullable=False),
        sa.Column("act", sa.String(32), nullable=False),
        sa.Column("target_user", sa.String(128)),
        sa.Column("target_message", sa.BigInteger()),
        sa.Column("data", sa.Text(), server_default="{}", nullable=False),
        sa.PrimaryKeyConstraint("no", name="pk_audit"),
    )
    op.create_index("ix_audit_at", "audit", ["at"])
    op.create_index("ix_audit_room_no_no", "audit", ["room_no", "no"])
    op.create_table(
        "events",
        sa.Column("key", KEY, autoincrement=False, nullable=False),
        sa.Column("type", sa.String(32), nullable=False),
        sa.Column("by", sa.String(128)),
        sa.Column("at", sa.BigInteger(), nullable=False),
        sa.Column("target", sa.BigInteger()),
        sa.Column("data", sa.Text(), server_default="{}", nullable=False),
        sa.PrimaryKeyConstraint("key", name="pk_events"),
    )
    op.create_table(
        "last_seen",
        sa.Column("user_id", sa.String(128), nullable=False),
        sa.Column("at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("user_id", name="pk_last_seen"),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "messages",
        sa.Column("key", KEY, autoincrement=False, nullable=False),
        sa.Column("room_no", sa.BigInteger(), nullable=False),
        sa.Column("number", sa.BigInteger(), nullable=False),
        sa.Column("author", sa.String(128), nullable=False),
        sa.Column("client_id", sa.String(128)),
        sa.Column("kind", sa.SmallInteger(), server_default="0", nullable=False),
        sa.Column("at", sa.BigInteger(), nullable=False),
        sa.Column("body", sa.Text(), nullable=False),
        sa.Column("version", sa.Integer(), server_default="1", nullable=False),
        sa.Column("edited_at", sa.BigInteger()),
        sa.Column("deleted_at", sa.BigInteger()),
        sa.Column("deleted_by", sa.String(128)),
        sa.Column("reply_to", sa.BigInteger()),
        sa.Column("thread", sa.BigInteger()),
        sa.Column("extra", sa.Text()),
        sa.PrimaryKeyConstraint("key", name="pk_messages"),
    )
    op.create_index(
        "ix_messages_thread",
        "messages",
        ["room_no", "thread", "key"],
        sqlite_where=sa.text("thread IS NOT NULL"),
        postgresql_where=sa.text("thread IS NOT NULL"),
    )
    op.create_index(
        "uq_messages_client_id",
        "messages",
        ["room_no", "author", "client_id"],
        unique=True,
        sqlite_where=sa.text("client_id IS NOT NULL"),
        postgresql_where=sa.text("client_id IS NOT NULL"),
    )
    op.create_table(
        "rooms",
        sa.Column("no", KEY, autoincrement=True, nullable=False),
        sa.Column("id", sa.String(64), nullable=False),
        sa.Column("name", sa.String(100), nullable=False),
        sa.Column("topic", sa.String(1000), server_default="", nullable=False),
        sa.Column("kind", sa.String(16), nullable=False),
        sa.Column("visibility", sa.String(16), nullable=False),
        sa.Column("history", sa.String(16), server_default="shared", nullable=False),
        sa.Column("direct_key", sa.String(64)),
        sa.Column("epoch", sa.String(64), nullable=False),
        sa.Column("event_seq", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("message_count", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("member_count", sa.Integer(), server_default="0", nullable=False),
        sa.Column("pin_count", sa.Integer(), server_default="0", nullable=False),
        sa.Column("trimmed_seq", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("indexed_seq", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("slow_mode", sa.Integer(), server_default="0", nullable=False),
        sa.Column("retention_days", sa.Integer(), server_default="0", nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("created_by", sa.String(128)),
        sa.Column("last_at", sa.BigInteger(), nullable=False),
        sa.Column("archived_at", sa.BigInteger()),
        sa.PrimaryKeyConstraint("no", name="pk_rooms"),
        sa.UniqueConstraint("id", name="uq_rooms_id"),
        sa.UniqueConstraint("direct_key", name="uq_rooms_direct_key"),
    )
    op.create_index("ix_rooms_created_by", "rooms", ["created_by"])
    op.create_index("ix_rooms_visibility_id", "rooms", ["visibility", "id"])
    op.create_table(
        "writers",
        sa.Column("id", sa.String(32), nullable=False),
        sa.Column("mark", sa.BigInteger(), nullable=False),
        sa.Column("at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_writers"),
    )
    op.create_table(
        "attachments",
        sa.Column("id", sa.String(32), nullable=False),
        sa.Column("room_no", sa.BigInteger(), nullable=False),
        sa.Column("owner", sa.String(128), nullable=False),
        sa.Column("name", sa.String(200), nullable=False),
        sa.Column("media_type", sa.String(100), nullable=False),
        sa.Column("size", sa.BigInteger(), nullable=False),
        sa.Column("sha256", sa.String(64), nullable=False),
        sa.Column("at", sa.BigInteger(), nullable=False),
        sa.Column("message", sa.BigInteger()),
        sa.ForeignKeyConstraint(["room_no"], ["rooms.no"], ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("id", name="pk_attachments"),
    )
    op.create_index("ix_attachments_message", "attachments", ["message"])
    op.create_index("ix_attachments_owner", "attachments", ["owner"])
    op.create_index("ix_attachments_room_no", "attachments", ["room_no"])
    op.create_table(
        "bans",
        sa.Column("room_no", sa.BigInteger(), nullable=False),
        sa.Column("user_id", sa.String(128), nullable=False),
        sa.Column("until", sa.BigInteger()),
        sa.Column("reason", sa.String(500), server_default="", nullable=False),
        sa.Column("banned_by", sa.String(128), nullable=False),
        sa.Column("at", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(["room_no"], ["rooms.no"], ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("room_no", "user_id", name="pk_bans"),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "invitations",
        sa.Column("room_no", sa.BigInteger(), nullable=False),
        sa.Column("user_id", sa.String(128), nullable=False),
        sa.Column("invited_by", sa.String(128), nullable=False),
        sa.Column("at", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(["room_no"], ["rooms.no"], ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("room_no", "user_id", name="pk_invitations"),
        sqlite_with_rowid=False,
    )
    op.create_index("ix_invitations_user_id", "invitations", ["user_id"])
    op.create_table(
        "members",
        sa.Column("room_no", sa.BigInteger(), nullable=False),
        sa.Column("user_id", sa.String(128), nullable=False),
        sa.Column("role", sa.String(16), nullable=False),
        sa.Column("joined_at", sa.BigInteger(), nullable=False),
        sa.Column("history_from", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("notify", sa.String(16), server_default="all", nullable=False),
        sa.Column("read_seq", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("read_count", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("mention_count", sa.Integer(), server_default="0", nullable=False),
        sa.Column("muted_until", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("sent_at", sa.BigInteger(), server_default="0", nullable=False),
        sa.ForeignKeyConstraint(["room_no"], ["rooms.no"], ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("room_no", "user_id", name="pk_members"),
        sqlite_with_rowid=False,
    )
    op.create_index("ix_members_user_id_room_no", "members", ["user_id", "room_no"])
    op.create_table(
        "mentions",
        sa.Column("user_id", sa.String(128), nullable=False),
        sa.Column("message", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(["message"], ["messages.key"], ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("user_id", "message", name="pk_mentions"),
        sqlite_with_rowid=False,
    )
    op.create_index("ix_mentions_message", "mentions", ["message"])
    op.create_table(
        "pins",
        sa.Column("message", KEY, autoincrement=False, nullable=False),
        sa.Column("pinned_by", sa.String(128), nullable=False),
        sa.Column("at", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(["message"], ["messages.key"], ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("message", name="pk_pins"),
    )
    op.create_table(
        "reactions",
        sa.Column("message", sa.BigInteger(), nullable=False),
        sa.Column("emoji", sa.String(64), nullable=False),
        sa.Column("user_id", sa.String(128), nullable=False),
        sa.Column("at", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(["message"], ["messages.key"], ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("message", "emoji", "user_id", name="pk_reactions"),
        sqlite_with_rowid=False,
    )
    op.create_index("ix_reactions_user_id", "reactions", ["user_id"])
    op.create_table(
        "reports",
        sa.Column("no", KEY, autoincrement=True, nullable=False),
        sa.Column("room_no", sa.BigInteger(), nullable=False),
        sa.Column("message", sa.BigInteger(), nullable=False),
        sa.Column("reported_by", sa.String(128), nullable=False),
        sa.Column("reason", sa.String(1000), nullable=False),
        sa.Column("at", sa.BigInteger(), nullable=False),
        sa.Column("status", sa.String(16), server_default="open", nullable=False),
        sa.Column("closed_at", sa.BigInteger()),
        sa.Column("closed_by", sa.String(128)),
        sa.Column("note", sa.String(1000), server_default="", nullable=False),
        sa.ForeignKeyConstraint(["room_no"], ["rooms.no"], ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("no", name="pk_reports"),
    )
    op.create_index("ix_reports_status_room_no", "reports", ["status", "room_no"])
    op.create_index("uq_reports_one_each", "reports", ["message", "reported_by"], unique=True)
    op.create_table(
        "threads",
        sa.Column("root", KEY, autoincrement=False, nullable=False),
        sa.Column("reply_count", sa.Integer(), server_default="0", nullable=False),
        sa.Column("last_seq", sa.BigInteger(), nullable=False),
        sa.Column("last_at", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(["root"], ["messages.key"], ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("root", name="pk_threads"),
    )
    op.create_table(
        "versions",
        sa.Column("message", sa.BigInteger(), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("body", sa.Text(), nullable=False),
        sa.Column("at", sa.BigInteger(), nullable=False),
        sa.Column("by", sa.String(128), nullable=False),
        sa.ForeignKeyConstraint(["message"], ["messages.key"], ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("message", "version", name="pk_versions"),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "followers",
        sa.Column("root", sa.BigInteger(), nullable=False),
        sa.Column("user_id", sa.String(128), nullable=False),
        sa.Column("read_seq", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("read_count", sa.Integer(), server_default="0", nullable=False),
        sa.ForeignKeyConstraint(["root"], ["threads.root"], ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("root", "user_id", name="pk_followers"),
        sqlite_with_rowid=False,
    )
    op.create_index("ix_followers_user_id_root", "followers", ["user_id", "root"])
    connection = op.get_bind()
    for statement in SEARCH[connection.dialect.name]:
        connection.exec_driver_sql(statement)


def downgrade() -> None:
    raise NotImplementedError("Hubbub does not go back to an older schema: restore a backup")
