"""Organizations as rows."""

from __future__ import annotations

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from keystile.errors import Conflict
from keystile.model import Organization
from keystile.store.tables import organizations


async def insert(conn: AsyncConnection, organization: Organization) -> None:
    """Add one; raises Conflict (`slug_taken`) when its slug is another's."""
    if await find_slug(conn, organization.slug) is not None:
        raise Conflict("An organization of this slug exists already.", "slug_taken")
    await conn.execute(
        sa.insert(organizations).values(
            id=organization.id,
            slug=organization.slug,
            name=organization.name,
            created_at=organization.created_at,
        )
    )


async def find(conn: AsyncConnection, organization_id: str) -> Organization | None:
    """The organization of this id."""
    found = await conn.execute(sa.select(organizations).where(organizations.c.id == organization_id))
    row = found.mappings().one_or_none()
    return None if row is None else _organization(row)


async def find_slug(conn: AsyncConnection, slug: str) -> Organization | None:
    """The organization of this slug."""
    found = await conn.execute(sa.select(organizations).where(organizations.c.slug == slug))
    row = found.mappings().one_or_none()
    return None if row is None else _organization(row)


async def every(conn: AsyncConnection) -> list[Organization]:
    """All of them, oldest first."""
    found = await conn.execute(sa.select(organizations).order_by(organizations.c.created_at, organizations.c.id))
    return [_organization(row) for row in found.mappings()]


def _organization(row: sa.RowMapping) -> Organization:
    return Organization(id=row["id"], slug=row["slug"], name=row["name"], created_at=row["created_at"])
