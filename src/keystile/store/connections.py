"""Connections and their credential versions as rows.

A deleted connection takes its versions' sealed bytes with it. A destroyed version keeps its number and times.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Any

import msgspec
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from keystile.errors import Conflict, Stale
from keystile.model import Connection, CredentialVersion, Published
from keystile.store import counters
from keystile.store.tables import connections, credential_versions, reader

_IMMUTABLE = ("id", "number", "organization", "slug", "created_by", "created_at")
_BATCH = 1000

_connection = reader(connections, Connection)
_version = reader(credential_versions, CredentialVersion)


async def next_number(conn: AsyncConnection) -> int:
    """A connection number that was never given before."""
    return await counters.advance(conn, counters.CONNECTION_NUMBER)


async def insert(conn: AsyncConnection, connection: Connection) -> None:
    """Add one as it stands; raises Conflict (`slug_taken`) when its organization has one of this slug."""
    if await find(conn, connection.organization, connection.slug) is not None:
        raise Conflict("Your organization has a connection of this slug already.", "slug_taken")
    await conn.execute(sa.insert(connections).values(msgspec.structs.asdict(connection)))


async def update(conn: AsyncConnection, connection: Connection) -> Connection:
    """Write what may change, and return it with the next revision; `connection.revision` is the one it replaces.

    Raises Stale when the row has another revision by now, or is gone.
    """
    here = sa.and_(connections.c.id == connection.id, connections.c.revision == connection.revision)
    changed = msgspec.structs.replace(connection, revision=connection.revision + 1)
    values = {name: value for name, value in msgspec.structs.asdict(changed).items() if name not in _IMMUTABLE}
    if (await conn.execute(sa.update(connections).where(here).values(values))).rowcount != 1:
        raise Stale("The connection was changed by somebody else. Read it again.")
    return changed


async def delete(conn: AsyncConnection, connection_id: str) -> None:
    """Remove it and every version of its credential."""
    await conn.execute(sa.delete(credential_versions).where(credential_versions.c.connection == connection_id))
    await conn.execute(sa.delete(connections).where(connections.c.id == connection_id))


async def find(conn: AsyncConnection, organization: str, slug: str) -> Connection | None:
    """The connection an organization calls by this slug."""
    return (await by_slugs(conn, organization, (slug,))).get(slug)


async def by_slugs(conn: AsyncConnection, organization: str, wanted: Collection[str]) -> dict[str, Connection]:
    """The connections an organization calls by these slugs; a slug that nothing has is not among them."""
    found: dict[str, Connection] = {}
    for batch in _batches(wanted):
        here = (connections.c.organization == organization, connections.c.slug.in_(batch))
        rows = await conn.execute(sa.select(connections).where(*here))
        found |= {row.slug: _connection(row) for row in rows}
    return found


async def page(
    conn: AsyncConnection,
    organization: str,
    limit: int,
    after: tuple[int, str] | None = None,
    created_by: str | None = None,
) -> list[Connection]:
    """Up to `limit` connections, newest first, from after (created_at, id) of the last one seen."""
    query = sa.select(connections).where(connections.c.organization == organization)
    if after is not None:
        query = query.where(sa.tuple_(connections.c.created_at, connections.c.id) < sa.tuple_(*after))
    if created_by is not None:
        query = query.where(connections.c.created_by == created_by)
    query = query.order_by(connections.c.created_at.desc(), connections.c.id.desc()).limit(limit)
    return [_connection(row) for row in (await conn.execute(query))]


async def slugs(conn: AsyncConnection, ids: Collection[str]) -> dict[str, str]:
    """The slugs of these ids; an id that is gone is not among them."""
    found: dict[str, str] = {}
    for batch in _batches(ids):
        rows = await conn.execute(sa.select(connections.c.id, connections.c.slug).where(connections.c.id.in_(batch)))
        found |= {row.id: row.slug for row in rows}
    return found


async def made_by(conn: AsyncConnection, organization: str, key_id: str) -> tuple[str, ...]:
    """The ids of the connections an API key made."""
    here = (connections.c.organization == organization, connections.c.created_by == key_id)
    return tuple((await conn.execute(sa.select(connections.c.id).where(*here))).scalars())


async def published(conn: AsyncConnection, connection_id: str) -> Published | None:
    """What the feed carries of a connection."""
    query = _with_sealed().where(connections.c.id == connection_id)
    row = (await conn.execute(query)).one_or_none()
    return None if row is None else Published(connection=_connection(row), sealed=row.sealed)


def every_published(conn: sa.Connection) -> Iterator[Published]:
    """Every connection of the installation, streamed. Run it inside `AsyncConnection.run_sync`."""
    for row in conn.execute(_with_sealed(), execution_options={"yield_per": _BATCH}):
        yield Published(connection=_connection(row), sealed=row.sealed)


async def versions(
    conn: AsyncConnection, connection_id: str, limit: int, before: int | None = None
) -> list[CredentialVersion]:
    """Up to `limit` versions of its credential below `before`, newest first, destroyed ones too.

    They are for showing: none of them has its sealed bytes.
    """
    shown = [sa.null() if column.name == "sealed" else column for column in credential_versions.c]
    query = sa.select(*shown).where(credential_versions.c.connection == connection_id)
    if before is not None:
        query = query.where(credential_versions.c.version < before)
    found = await conn.execute(query.order_by(credential_versions.c.version.desc()).limit(limit))
    return [_version(row) for row in found]


async def version(conn: AsyncConnection, connection_id: str, number: int) -> CredentialVersion | None:
    """One version, destroyed or not."""
    here = sa.and_(credential_versions.c.connection == connection_id, credential_versions.c.version == number)
    row = (await conn.execute(sa.select(credential_versions).where(here))).one_or_none()
    return None if row is None else _version(row)


async def newest_version(conn: AsyncConnection, connection_id: str) -> int:
    """The highest number its versions have, destroyed ones too; 0 when it never had a credential."""
    query = sa.select(sa.func.max(credential_versions.c.version))
    found = await conn.execute(query.where(credential_versions.c.connection == connection_id))
    return found.scalar_one() or 0


async def insert_version(conn: AsyncConnection, organization: str, version: CredentialVersion) -> None:
    """Add one."""
    values = msgspec.structs.asdict(version) | {"organization": organization}
    await conn.execute(sa.insert(credential_versions).values(values))


async def destroy_version(conn: AsyncConnection, connection_id: str, number: int, now: int) -> None:
    """Overwrite its sealed bytes; the number and the times stay."""
    here = sa.and_(credential_versions.c.connection == connection_id, credential_versions.c.version == number)
    await conn.execute(sa.update(credential_versions).where(here).values(sealed=None, destroyed_at=now))


def _batches(wanted: Collection[str]) -> Iterator[list[str]]:
    listed = list(wanted)
    return (listed[start : start + _BATCH] for start in range(0, len(listed), _BATCH))


def _with_sealed() -> sa.Select[Any]:
    active = sa.and_(
        credential_versions.c.connection == connections.c.id,
        credential_versions.c.version == connections.c.active_version,
    )
    return sa.select(connections, credential_versions.c.sealed).select_from(
        connections.outerjoin(credential_versions, active)
    )
