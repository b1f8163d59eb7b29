"""Alembic's entry: migrates over the connection, and inside the transaction, that `Database.migrate` hands in."""

from __future__ import annotations

from alembic import context

from keystile.store.tables import metadata

# transactional_ddl: SQLite rolls a schema change back like any other, so an interrupted migration leaves nothing.
context.configure(connection=context.config.attributes["connection"], target_metadata=metadata, transactional_ddl=True)
with context.begin_transaction():
    context.run_migrations()
