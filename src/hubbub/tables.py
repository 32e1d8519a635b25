"""Where every table of the store is registered. A feature defines its own, on this metadata."""

from __future__ import annotations

from typing import Final

from sqlalchemy import Column, MetaData, String, Table

metadata: Final = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "pk": "pk_%(table_name)s",
    }
)
"""Names are given by rule, so that a migration can name what it changes on every database."""

identities: Final = Table("identity", metadata, Column("id", String(32), primary_key=True))
"""One row, made with the database: its id."""
