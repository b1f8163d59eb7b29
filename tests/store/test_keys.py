from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from keystile.errors import Stale
from keystile.model import ApiKey, Organization, Role
from keystile.store import keys, organizations
from keystile.store.database import Database, sqlite

pytestmark = pytest.mark.anyio

FULL = ApiKey(
    id="key000000001",
    organization="org000000001",
    name="Full",
    role=Role.DEVELOPER,
    digest=b"1" * 32,
    created_at=5,
    created_by="key000000000",
    expires_at=6,
    connections=("con000000001",),
    pinned_user="zoë",
    revision=3,
)
PLAIN = ApiKey(
    id="key000000002", organization="org000000001", name="Plain", role=Role.CLIENT, digest=b"2" * 32, created_at=5
)


@pytest.fixture
async def database(tmp_path: Path):
    database = Database(sqlite(tmp_path / "keystile.db"))
    await database.migrate()
    async with database.write() as conn:
        for number in (1, 2):
            organization = Organization(id=f"org00000000{number}", slug=f"o{number}", name="O", created_at=number)
            await organizations.insert(conn, organization)
        await keys.insert(conn, FULL)
        await keys.insert(conn, PLAIN)
    yield database
    await database.close()


async def test_a_row_comes_back_as_it_went_in(database: Database) -> None:
    async with database.read() as conn:
        assert await keys.find(conn, "org000000001", FULL.id) == FULL
        assert await keys.find_digest(conn, PLAIN.digest) == PLAIN


async def test_an_empty_scope_is_not_the_absence_of_one(database: Database) -> None:
    scoped = msgspec.structs.replace(PLAIN, id="key000000003", digest=b"3" * 32, connections=())
    async with database.write() as conn:
        await keys.insert(conn, scoped)
        assert await keys.find(conn, "org000000001", scoped.id) == scoped


async def test_an_update_writes_name_scope_and_expiry_and_refuses_a_stale_one(database: Database) -> None:
    wanted = msgspec.structs.replace(FULL, name="Narrow", connections=(), expires_at=None, role=Role.OWNER)
    async with database.write() as conn:
        written = await keys.update(conn, wanted)
        assert written == msgspec.structs.replace(wanted, revision=4)
        kept = msgspec.structs.replace(written, role=FULL.role)
        assert await keys.find(conn, FULL.organization, FULL.id) == kept
        with pytest.raises(Stale):
            await keys.update(conn, wanted)
        await keys.revoke(conn, FULL.id, 9)
        with pytest.raises(Stale):
            await keys.update(conn, kept)


async def test_another_organizations_key_is_not_found(database: Database) -> None:
    async with database.read() as conn:
        assert await keys.find(conn, "org000000002", FULL.id) is None
        assert await keys.page(conn, "org000000002", 10) == []


async def test_a_revoked_key_is_found_and_listed_nowhere(database: Database) -> None:
    async with database.write() as conn:
        await keys.revoke(conn, FULL.id, 9)
    async with database.read() as conn:
        assert await keys.find(conn, "org000000001", FULL.id) is None
        assert await keys.find_digest(conn, FULL.digest) is None
        assert await keys.page(conn, "org000000001", 10) == [PLAIN]
        assert await conn.run_sync(lambda sync: list(keys.every(sync))) == [PLAIN]


async def test_pages_go_newest_first_and_miss_nothing(database: Database) -> None:
    async with database.read() as conn:
        first = await keys.page(conn, "org000000001", 1)
        second = await keys.page(conn, "org000000001", 1, (first[0].created_at, first[0].id))
        assert [*first, *second] == [PLAIN, FULL]
        assert await keys.page(conn, "org000000001", 1, (FULL.created_at, FULL.id)) == []
        assert await keys.page(conn, "org000000001", 10, created_by="key000000000") == [FULL]
