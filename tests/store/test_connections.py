from __future__ import annotations

import sqlite3
from pathlib import Path

import msgspec
import pytest

from keystile.errors import Conflict, Stale
from keystile.model import AuthType, Connection, CredentialVersion, Organization, Published
from keystile.store import connections, organizations
from keystile.store.database import Database, sqlite

pytestmark = pytest.mark.anyio

FULL = Connection(
    id="con000000001",
    number=1,
    organization="org000000001",
    slug="github-prod",
    name="GitHub Production",
    upstream_url="https://mcp.example.com/mcp?x=1",
    auth_type=AuthType.HEADER,
    auth_header_name="X-Token",
    headers={"x-fixed": "välue"},
    forward_headers=("X-MCP-Toolsets",),
    ca_pem="-----BEGIN CERTIFICATE-----",
    max_in_flight=3,
    enabled=False,
    active_version=0,
    created_by="key000000001",
    created_at=1000,
    updated_at=1001,
    rotated_at=1002,
    revision=5,
)
PLAIN = Connection(
    id="con000000002",
    number=2,
    organization="org000000001",
    slug="plain",
    name="Plain",
    upstream_url="https://mcp.example.com/mcp",
    auth_type=AuthType.NONE,
)


@pytest.fixture
async def database(tmp_path: Path):
    database = Database(sqlite(tmp_path / "keystile.db"))
    await database.migrate()
    async with database.write() as conn:
        for number in (1, 2):
            organization = Organization(id=f"org00000000{number}", slug=f"o{number}", name="O", created_at=number)
            await organizations.insert(conn, organization)
    yield database
    await database.close()


def version(number: int, connection: str = FULL.id, sealed: bytes | None = b"sealed") -> CredentialVersion:
    return CredentialVersion(
        connection=connection,
        version=number,
        term=1,
        auth_type=AuthType.HEADER,
        auth_header_name="X-Token",
        origin="https://mcp.example.com:443",
        sealed=sealed,
        created_at=7,
        created_by="key000000001",
    )


async def test_a_row_comes_back_as_it_went_in(database: Database) -> None:
    async with database.write() as conn:
        for connection in (FULL, PLAIN):
            await connections.insert(conn, connection)
    async with database.read() as conn:
        assert await connections.find(conn, "org000000001", "github-prod") == FULL
        assert await connections.find(conn, PLAIN.organization, PLAIN.slug) == PLAIN


async def test_another_organizations_slug_is_not_found(database: Database) -> None:
    async with database.write() as conn:
        await connections.insert(conn, FULL)
        assert await connections.find(conn, "org000000002", FULL.slug) is None


async def test_a_slug_is_taken_once_in_an_organization(database: Database) -> None:
    async with database.write() as conn:
        await connections.insert(conn, FULL)
        with pytest.raises(Conflict) as caught:
            await connections.insert(conn, msgspec.structs.replace(PLAIN, slug=FULL.slug))
        assert caught.value.code == "slug_taken"
        await connections.insert(conn, msgspec.structs.replace(PLAIN, slug=FULL.slug, organization="org000000002"))


async def test_an_update_takes_the_next_revision_and_refuses_a_stale_one(database: Database) -> None:
    async with database.write() as conn:
        await connections.insert(conn, FULL)
        wanted = msgspec.structs.replace(FULL, name="Renamed", headers={}, enabled=True, updated_at=2000)
        written = await connections.update(conn, wanted)
        assert written == msgspec.structs.replace(wanted, revision=6)
        assert await connections.find(conn, FULL.organization, FULL.slug) == written
        with pytest.raises(Stale):
            await connections.update(conn, wanted)
        with pytest.raises(Stale):
            await connections.update(conn, PLAIN)


async def test_an_update_leaves_what_is_immutable(database: Database) -> None:
    async with database.write() as conn:
        await connections.insert(conn, FULL)
        await connections.update(conn, msgspec.structs.replace(FULL, slug="other", organization="org000000002"))
        found = await connections.find(conn, FULL.organization, FULL.slug)
        assert found is not None
        assert (found.slug, found.organization) == (FULL.slug, FULL.organization)


async def test_numbers_are_never_given_again(database: Database) -> None:
    async with database.write() as conn:
        first = await connections.next_number(conn)
        await connections.insert(conn, msgspec.structs.replace(FULL, number=first))
        await connections.delete(conn, FULL.id)
        assert await connections.next_number(conn) > first


async def test_a_deleted_connections_sealed_bytes_are_gone_from_the_file(database: Database, tmp_path: Path) -> None:
    sealed = b"made-up sealed bytes that are easy to find" * 3
    async with database.write() as conn:
        await connections.insert(conn, FULL)
        await connections.insert_version(conn, FULL.organization, version(1, sealed=sealed))
    async with database.write() as conn:
        await connections.delete(conn, FULL.id)
        assert await connections.find(conn, FULL.organization, FULL.slug) is None
        assert await connections.versions(conn, FULL.id, 9) == []
    await database.close()  # the last connection folds the write-ahead log into the file
    assert not lies_in(tmp_path, sealed)


async def test_a_destroyed_version_keeps_its_number_and_loses_its_bytes(database: Database, tmp_path: Path) -> None:
    sealed = b"made-up sealed bytes that are easy to find" * 3
    async with database.write() as conn:
        await connections.insert(conn, FULL)
        await connections.insert_version(conn, FULL.organization, version(1, sealed=sealed))
        await connections.insert_version(conn, FULL.organization, version(2))
    async with database.write() as conn:
        await connections.destroy_version(conn, FULL.id, 1, 99)
        destroyed = msgspec.structs.replace(version(1), sealed=None, destroyed_at=99)
        assert await connections.versions(conn, FULL.id, 9) == [version(2, sealed=None), destroyed]
        assert await connections.version(conn, FULL.id, 1) == destroyed
        assert await connections.version(conn, FULL.id, 3) is None
        assert await connections.newest_version(conn, FULL.id) == 2
        assert await connections.newest_version(conn, PLAIN.id) == 0
    await database.close()
    with sqlite3.connect(tmp_path / "keystile.db") as file:
        assert file.execute("SELECT count(*) FROM credential_versions").fetchone() == (2,)
    assert not lies_in(tmp_path, sealed)


async def test_versions_page_by_number_and_leave_their_sealed_bytes_behind(database: Database) -> None:
    async with database.write() as conn:
        await connections.insert(conn, FULL)
        for number in range(1, 6):
            await connections.insert_version(conn, FULL.organization, version(number))
        assert [row.version for row in await connections.versions(conn, FULL.id, 3)] == [5, 4, 3]
        rest = await connections.versions(conn, FULL.id, 3, before=3)
        assert rest == [version(2, sealed=None), version(1, sealed=None)]
        assert await connections.version(conn, FULL.id, 2) == version(2)


async def test_slugs_are_looked_up_all_at_once_and_in_one_organization(database: Database) -> None:
    async with database.write() as conn:
        await connections.insert(conn, FULL)
        await connections.insert(conn, PLAIN)
        foreign = msgspec.structs.replace(PLAIN, id="con000000003", number=3, organization="org000000002", slug="far")
        await connections.insert(conn, foreign)
        many = [f"absent-{number}" for number in range(1500)]
        wanted = [*many, FULL.slug, PLAIN.slug, foreign.slug]
        found = await connections.by_slugs(conn, FULL.organization, wanted)
        assert found == {FULL.slug: FULL, PLAIN.slug: PLAIN}
        assert await connections.by_slugs(conn, FULL.organization, ()) == {}


async def test_what_a_key_made_is_found_by_an_index(database: Database) -> None:
    async with database.read() as conn:
        for table in ("connections", "api_keys"):
            made = f"SELECT id FROM {table} WHERE organization = 'o' AND created_by = 'k'"  # noqa: S608 — a constant
            for query in (made, f"{made} ORDER BY created_at DESC, id DESC"):
                (plan,) = (await conn.exec_driver_sql(f"EXPLAIN QUERY PLAN {query}")).all()
                assert f"ix_{table}_organization_created_by_created_at_id" in plan[3]


async def test_the_feed_gets_the_active_version_alone(database: Database) -> None:
    async with database.write() as conn:
        await connections.insert(conn, msgspec.structs.replace(FULL, active_version=2))
        await connections.insert(conn, PLAIN)
        for number in (1, 2, 3):
            await connections.insert_version(conn, FULL.organization, version(number, sealed=b"sealed %d" % number))
    expected = [
        Published(connection=msgspec.structs.replace(FULL, active_version=2), sealed=b"sealed 2"),
        Published(connection=PLAIN, sealed=None),
    ]
    async with database.read() as conn:
        assert [await connections.published(conn, made.id) for made in (FULL, PLAIN)] == expected
        assert await connections.published(conn, "con000000009") is None
        streamed = await conn.run_sync(lambda sync: list(connections.every_published(sync)))
    assert sorted(streamed, key=lambda one: one.connection.id) == expected


async def test_pages_go_newest_first_and_miss_nothing(database: Database) -> None:
    async with database.write() as conn:
        for number in range(10):
            made = msgspec.structs.replace(
                PLAIN,
                id=f"con{number:09}",
                number=number,
                slug=f"slug-{number}",
                created_at=number // 3,  # several in one millisecond
                created_by="key000000001" if number % 2 else None,
            )
            await connections.insert(conn, made)
        await connections.insert(
            conn, msgspec.structs.replace(PLAIN, id="other", number=99, organization="org000000002")
        )
    seen: list[Connection] = []
    async with database.read() as conn:
        after = None
        while rows := await connections.page(conn, "org000000001", 4, after):
            seen += rows
            after = (rows[-1].created_at, rows[-1].id)
        mine = await connections.page(conn, "org000000001", 100, created_by="key000000001")
    assert [made.id for made in seen] == [f"con{number:09}" for number in reversed(range(10))]
    assert [made.id for made in mine] == [f"con{number:09}" for number in (9, 7, 5, 3, 1)]


def lies_in(folder: Path, wanted: bytes) -> bool:
    return any(wanted in path.read_bytes() for path in folder.rglob("*") if path.is_file())
