"""Wrapped data keys, and the canary that tells a right root key from a wrong one."""

from __future__ import annotations

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from keystile.store.tables import credential_versions, data_keys, meta

_CANARY = "canary"


async def insert(conn: AsyncConnection, organization: str, term: int, wrapped: bytes) -> None:
    """Add a term."""
    await conn.execute(sa.insert(data_keys).values(organization=organization, term=term, wrapped=wrapped))


async def every(conn: AsyncConnection) -> list[tuple[str, int, bytes]]:
    """Every (organization, term, wrapped data key)."""
    query = sa.select(data_keys.c.organization, data_keys.c.term, data_keys.c.wrapped)
    return [(row[0], row[1], row[2]) for row in await conn.execute(query)]


async def canary(conn: AsyncConnection) -> bytes | None:
    """The wrapped canary; None in a database where nothing was ever sealed."""
    return (await conn.execute(sa.select(meta.c.value).where(meta.c.name == _CANARY))).scalar_one_or_none()


async def insert_canary(conn: AsyncConnection, wrapped: bytes) -> None:
    """Keep it. There is one for good: a second insert fails on its primary key."""
    await conn.execute(sa.insert(meta).values(name=_CANARY, value=wrapped))


async def anything_sealed(conn: AsyncConnection) -> bool:
    """Whether any row depends on the root key: such a database never gets another one."""
    sealed = sa.union_all(
        sa.select(sa.literal(1)).select_from(meta).where(meta.c.name == _CANARY),
        sa.select(sa.literal(1)).select_from(data_keys),
        sa.select(sa.literal(1)).select_from(credential_versions).where(credential_versions.c.sealed.is_not(None)),
    )
    return (await conn.execute(sealed.limit(1))).first() is not None
