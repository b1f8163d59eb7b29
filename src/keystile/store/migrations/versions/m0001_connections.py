"""The first tables: organizations, keys, connections, credential versions, data keys."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    """Create them. Generation 1 is the empty database, so that 0 means nothing was published yet."""
    op.create_table(
        "organizations",
        sa.Column("id", sa.Text, nullable=False),
        sa.Column("slug", sa.Text, nullable=False),
        sa.Column("name", sa.Text, nullable=False),
        sa.Column("created_at", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_organizations"),
        sa.UniqueConstraint("slug", name="uq_organizations_slug"),
    )
    op.create_table(
        "api_keys",
        sa.Column("id", sa.Text, nullable=False),
        sa.Column("organization", sa.Text, nullable=False),
        sa.Column("name", sa.Text, nullable=False),
        sa.Column("role", sa.Text, nullable=False),
        sa.Column("digest", sa.LargeBinary, nullable=False),
        sa.Column("created_at", sa.BigInteger, nullable=False),
        sa.Column("created_by", sa.Text),
        sa.Column("expires_at", sa.BigInteger),
        sa.Column("connections", sa.Text),
        sa.Column("pinned_user", sa.Text),
        sa.Column("revoked_at", sa.BigInteger),
        sa.PrimaryKeyConstraint("id", name="pk_api_keys"),
        sa.ForeignKeyConstraint(["organization"], ["organizations.id"], name="fk_api_keys_organization"),
        sa.UniqueConstraint("digest", name="uq_api_keys_digest"),
    )
    op.create_index("ix_api_keys_organization_created_at_id", "api_keys", ["organization", "created_at", "id"])
    op.create_table(
        "connections",
        sa.Column("id", sa.Text, nullable=False),
        sa.Column("number", sa.BigInteger, nullable=False),
        sa.Column("organization", sa.Text, nullable=False),
        sa.Column("slug", sa.Text, nullable=False),
        sa.Column("name", sa.Text, nullable=False),
        sa.Column("upstream_url", sa.Text, nullable=False),
        sa.Column("auth_type", sa.Text, nullable=False),
        sa.Column("auth_header_name", sa.Text),
        sa.Column("headers", sa.Text, nullable=False),
        sa.Column("forward_headers", sa.Text, nullable=False),
        sa.Column("ca_pem", sa.Text),
        sa.Column("max_in_flight", sa.BigInteger),
        sa.Column("enabled", sa.Boolean, nullable=False),
        sa.Column("active_version", sa.BigInteger, nullable=False),
        sa.Column("created_by", sa.Text),
        sa.Column("created_at", sa.BigInteger, nullable=False),
        sa.Column("updated_at", sa.BigInteger, nullable=False),
        sa.Column("rotated_at", sa.BigInteger),
        sa.Column("revision", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_connections"),
        sa.ForeignKeyConstraint(["organization"], ["organizations.id"], name="fk_connections_organization"),
        sa.UniqueConstraint("number", name="uq_connections_number"),
        sa.UniqueConstraint("organization", "slug", name="uq_connections_organization_slug"),
    )
    op.create_index("ix_connections_organization_created_at_id", "connections", ["organization", "created_at", "id"])
    op.create_table(
        "credential_versions",
        sa.Column("connection", sa.Text, nullable=False),
        sa.Column("version", sa.BigInteger, nullable=False),
        sa.Column("organization", sa.Text, nullable=False),
        sa.Column("term", sa.BigInteger, nullable=False),
        sa.Column("auth_type", sa.Text, nullable=False),
        sa.Column("auth_header_name", sa.Text),
        sa.Column("origin", sa.Text, nullable=False),
        sa.Column("sealed", sa.LargeBinary),
        sa.Column("created_at", sa.BigInteger, nullable=False),
        sa.Column("created_by", sa.Text),
        sa.Column("destroyed_at", sa.BigInteger),
        sa.PrimaryKeyConstraint("connection", "version", name="pk_credential_versions"),
        sa.ForeignKeyConstraint(["connection"], ["connections.id"], name="fk_credential_versions_connection"),
        sa.ForeignKeyConstraint(["organization"], ["organizations.id"], name="fk_credential_versions_organization"),
    )
    op.create_index("ix_credential_versions_organization_term", "credential_versions", ["organization", "term"])
    op.create_table(
        "data_keys",
        sa.Column("organization", sa.Text, nullable=False),
        sa.Column("term", sa.BigInteger, nullable=False),
        sa.Column("wrapped", sa.LargeBinary, nullable=False),
        sa.PrimaryKeyConstraint("organization", "term", name="pk_data_keys"),
        sa.ForeignKeyConstraint(["organization"], ["organizations.id"], name="fk_data_keys_organization"),
    )
    counters = op.create_table(
        "counters",
        sa.Column("name", sa.Text, nullable=False),
        sa.Column("value", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("name", name="pk_counters"),
    )
    op.bulk_insert(counters, [{"name": "generation", "value": 1}, {"name": "connection_number", "value": 0}])
    op.create_table(
        "meta",
        sa.Column("name", sa.Text, nullable=False),
        sa.Column("value", sa.LargeBinary, nullable=False),
        sa.PrimaryKeyConstraint("name", name="pk_meta"),
    )
