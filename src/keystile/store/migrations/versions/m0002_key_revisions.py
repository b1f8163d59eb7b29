"""Keys get a revision, since they can be changed; what a key made gets an index."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    """Every key that is there has revision 1, as one that was just made."""
    op.add_column("api_keys", sa.Column("revision", sa.BigInteger, nullable=False, server_default="1"))
    for table in ("api_keys", "connections"):
        columns = ["organization", "created_by", "created_at", "id"]
        op.create_index(f"ix_{table}_{'_'.join(columns)}", table, columns)
