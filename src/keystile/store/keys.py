"""API keys as rows. A revoked key's row is kept, and no function here finds it any more."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from keystile.errors import Stale
from keystile.model import ApiKey
from keystile.store.tables import api_keys, reader

_BATCH = 1000

_key = reader(api_keys, ApiKey)


async def insert(conn: AsyncConnection, key: ApiKey) -> None:
    """Add one."""
    await conn.execute(sa.insert(api_keys).values(msgspec.structs.asdict(key)))


async def update(conn: AsyncConnection, key: ApiKey) -> ApiKey:
    """Write name, scope and expiry, and return it with the next revision; `key.revision` is the one it replaces.

    Raises Stale when the row has another revision by now, or was revoked.
    """
    here = (api_keys.c.id == key.id, api_keys.c.revision == key.revision, api_keys.c.revoked_at.is_(None))
    changed = msgspec.structs.replace(key, revision=key.revision + 1)
    values = {name: getattr(changed, name) for name in ("name", "connections", "expires_at", "revision")}
    if (await conn.execute(sa.update(api_keys).where(*here).values(values))).rowcount != 1:
        raise Stale("The key was changed by somebody else. Read it again.")
    return changed


async def find(conn: AsyncConnection, organization: str, key_id: str) -> ApiKey | None:
    """The live key of this id in this organization, expired or not."""
    query = _live().where(api_keys.c.organization == organization, api_keys.c.id == key_id)
    row = (await conn.execute(query)).one_or_none()
    return None if row is None else _key(row)


async def find_digest(conn: AsyncConnection, digest: bytes) -> ApiKey | None:
    """The live key with this SHA-256, of whatever organization, expired or not."""
    row = (await conn.execute(_live().where(api_keys.c.digest == digest))).one_or_none()
    return None if row is None else _key(row)


async def revoke(conn: AsyncConnection, key_id: str, now: int) -> None:
    """Mark it revoked; the row stays for the trail to point at."""
    mine = (api_keys.c.id == key_id, api_keys.c.revoked_at.is_(None))
    await conn.execute(sa.update(api_keys).where(*mine).values(revoked_at=now))


async def page(
    conn: AsyncConnection,
    organization: str,
    limit: int,
    after: tuple[int, str] | None = None,
    created_by: str | None = None,
) -> list[ApiKey]:
    """Up to `limit` live keys, newest first, from after (created_at, id) of the last one seen."""
    query = _live().where(api_keys.c.organization == organization)
    if after is not None:
        query = query.where(sa.tuple_(api_keys.c.created_at, api_keys.c.id) < sa.tuple_(*after))
    if created_by is not None:
        query = query.where(api_keys.c.created_by == created_by)
    query = query.order_by(api_keys.c.created_at.desc(), api_keys.c.id.desc()).limit(limit)
    return [_key(row) for row in (await conn.execute(query))]


def every(conn: sa.Connection) -> Iterator[ApiKey]:
    """Every live key of the installation, streamed. Run it inside `AsyncConnection.run_sync`."""
    for row in conn.execute(_live(), execution_options={"yield_per": _BATCH}):
        yield _key(row)


def _live() -> sa.Select[Any]:
    return sa.select(api_keys).where(api_keys.c.revoked_at.is_(None))
