"""Organizations as rows."""

from __future__ import annotations

import msgspec
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from keystile.errors import Conflict
from keystile.model import Organization
from keystile.store.tables import organizations, reader

_organization = reader(organizations, Organization)


async def insert(conn: AsyncConnection, organization: Organization) -> None:
    """Add one; raises Conflict (`slug_taken`) when its slug is another's."""
    if await find_slug(conn, organization.slug) is not None:
        raise Conflict("An organization of this slug exists already.", "slug_taken")
    await conn.execute(sa.insert(organizations).values(msgspec.structs.asdict(organization)))


async def find_slug(conn: AsyncConnection, slug: str) -> Organization | None:
    """The organization of this slug."""
    found = await conn.execute(sa.select(organizations).where(organizations.c.slug == slug))
    row = found.one_or_none()
    return None if row is None else _organization(row)


async def page(conn: AsyncConnection, limit: int, after: tuple[int, str] | None = None) -> list[Organization]:
    """Up to `limit` of them, oldest first, from after (created_at, id) of the last one seen."""
    query = sa.select(organizations)
    if after is not None:
        query = query.where(sa.tuple_(organizations.c.created_at, organizations.c.id) > sa.tuple_(*after))
    query = query.order_by(organizations.c.created_at, organizations.c.id).limit(limit)
    return [_organization(row) for row in (await conn.execute(query))]


async def every(conn: AsyncConnection) -> list[Organization]:
    """All of them, oldest first."""
    found = await conn.execute(sa.select(organizations).order_by(organizations.c.created_at, organizations.c.id))
    return [_organization(row) for row in found]
