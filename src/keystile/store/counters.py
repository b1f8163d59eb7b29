"""Numbers that only grow, each taken inside the transaction that uses it."""

from __future__ import annotations

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from keystile.store.tables import counters

GENERATION = "generation"
"""Of the configuration: one for each published change, from 1, the empty database."""

CONNECTION_NUMBER = "connection_number"
"""The last number given to a connection. A deleted connection's is never given again."""


async def advance(conn: AsyncConnection, name: str) -> int:
    """Take the next value."""
    row = sa.update(counters).where(counters.c.name == name).values(value=counters.c.value + 1)
    return (await conn.execute(row.returning(counters.c.value))).scalar_one()


async def current(conn: AsyncConnection, name: str) -> int:
    """The value last taken."""
    return (await conn.execute(sa.select(counters.c.value).where(counters.c.name == name))).scalar_one()
