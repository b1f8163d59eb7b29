from __future__ import annotations

import traceback
from pathlib import Path

import msgspec
import pytest
import sqlalchemy as sa

from keystile import mint
from keystile.core.envelope import KeyRing, credential_binding, open_for_node
from keystile.errors import Conflict, Missing, Stale, StartRefused, Unreadable
from keystile.keys import LocalRootKey
from keystile.model import AuthType, Connection, DataKey, Organization, Published, Secret
from keystile.publish import Transaction
from keystile.store import connections, organizations
from keystile.store.database import Database, sqlite
from keystile.store.tables import credential_versions, data_keys, meta
from keystile.vault import Vault

pytestmark = pytest.mark.anyio

ROOT = LocalRootKey(b"r" * 32)
NODE = b"n" * 32
ORIGIN = "https://mcp.example.com:443"
CONNECTION = Connection(
    id="con000000001",
    number=1,
    organization="org000000001",
    slug="any-slug",
    name="Any",
    upstream_url="https://mcp.example.com/mcp",
    auth_type=AuthType.BEARER,
)


class Shelf:
    """A database, its vault, and transactions whose changes are kept instead of published."""

    def __init__(self, database: Database, vault: Vault) -> None:
        self.database = database
        self.vault = vault

    async def rotate(self, connection: Connection, credential: bytes, now: int = 1) -> Connection:
        async with self.database.write() as conn:
            tx = Transaction(conn, Secret(NODE))
            return await self.vault.add_version(tx, connection, Secret(credential), "key000000001", now)

    async def activate(self, connection: Connection, version: int) -> Connection:
        async with self.database.write() as conn:
            return await self.vault.activate(Transaction(conn, Secret(NODE)), connection, version, None, 9)

    async def destroy(self, connection: Connection, version: int) -> None:
        async with self.database.write() as conn:
            await self.vault.destroy(Transaction(conn, Secret(NODE)), connection, version, 9)

    async def reveal(self, connection: Connection) -> bytes | None:
        async with self.database.read() as conn:
            secret = await self.vault.reveal(conn, connection)
            return None if secret is None else secret.reveal()

    async def execute(self, statement: sa.Executable) -> None:
        async with self.database.write() as conn:
            await conn.execute(statement)


@pytest.fixture
async def shelf(tmp_path: Path):
    database = Database(sqlite(tmp_path / "keystile.db"))
    await database.migrate()
    vault = await Vault.open(database, ROOT)
    async with database.write() as conn:
        for number in (1, 2):
            organization = Organization(id=f"org00000000{number}", slug=f"o{number}", name="O", created_at=number)
            await organizations.insert(conn, organization)
            await vault.add_organization(Transaction(conn, Secret(NODE)), organization.id)
        await connections.insert(conn, CONNECTION)
    yield Shelf(database, vault)
    await database.close()


async def test_a_rotation_adds_a_version_and_moves_the_pointer(shelf: Shelf) -> None:
    first = await shelf.rotate(CONNECTION, b"made-up-one", now=5)
    assert (first.active_version, first.rotated_at, first.updated_at) == (1, None, 5)
    second = await shelf.rotate(first, b"made-up-two", now=6)
    assert (second.active_version, second.rotated_at, second.updated_at) == (2, 6, 6)
    assert await shelf.reveal(second) == b"made-up-two"
    async with shelf.database.read() as conn:
        assert await connections.find(conn, CONNECTION.organization, CONNECTION.slug) == second
        rows = await connections.versions(conn, CONNECTION.id, 9)
    assert [(row.version, row.created_at, row.created_by, row.origin) for row in rows] == [
        (2, 6, "key000000001", ORIGIN),
        (1, 5, "key000000001", ORIGIN),
    ]


async def test_a_rotation_publishes_what_a_worker_opens_with_the_data_key_it_got(shelf: Shelf) -> None:
    async with shelf.database.write() as conn:
        tx = Transaction(conn, Secret(NODE))
        changed = await shelf.vault.add_version(tx, CONNECTION, Secret(b"made-up-one"), None, 5)
    (change,) = tx.changes
    assert isinstance(change, Published)
    assert change.connection == changed
    assert change.sealed is not None
    ring = KeyRing()
    for key in shelf.vault.data_keys(NODE):
        ring.add(key.organization, key.term, open_for_node(NODE, key.organization, key.term, key.sealed))
    assert ring.open(change.sealed, credential_binding(changed, 1, ORIGIN)) == b"made-up-one"


async def test_a_new_organizations_data_key_is_published(shelf: Shelf) -> None:
    async with shelf.database.write() as conn:
        tx = Transaction(conn, Secret(NODE))
        await organizations.insert(conn, Organization(id="org000000003", slug="o3", name="O", created_at=3))
        await shelf.vault.add_organization(tx, "org000000003")
    (change,) = tx.changes
    assert isinstance(change, DataKey)
    travelled = open_for_node(NODE, "org000000003", 1, change.sealed)
    assert {
        open_for_node(NODE, key.organization, key.term, key.sealed)
        for key in shelf.vault.data_keys(NODE)
        if key.organization == "org000000003"
    } == {travelled}


async def test_a_restarted_vault_opens_what_was_sealed(shelf: Shelf) -> None:
    changed = await shelf.rotate(CONNECTION, b"made-up-one")
    again = Shelf(shelf.database, await Vault.open(shelf.database, ROOT))
    assert await again.reveal(changed) == b"made-up-one"


async def test_an_earlier_version_is_activated_and_the_later_one_again(shelf: Shelf) -> None:
    changed = await shelf.rotate(await shelf.rotate(CONNECTION, b"made-up-one"), b"made-up-two", now=6)
    back = await shelf.activate(changed, 1)
    assert (back.active_version, back.updated_at, back.rotated_at) == (1, 9, 6)
    assert await shelf.reveal(back) == b"made-up-one"
    forth = await shelf.activate(back, 2)
    assert await shelf.reveal(forth) == b"made-up-two"
    assert await shelf.activate(forth, 2) == forth


async def test_a_new_number_is_never_that_of_a_rolled_back_version(shelf: Shelf) -> None:
    changed = await shelf.rotate(await shelf.rotate(CONNECTION, b"made-up-one"), b"made-up-two")
    await shelf.destroy(await shelf.activate(changed, 1), 2)
    async with shelf.database.read() as conn:
        found = await connections.find(conn, CONNECTION.organization, CONNECTION.slug)
    assert found is not None
    assert (await shelf.rotate(found, b"made-up-three")).active_version == 3


@pytest.mark.parametrize(
    "change",
    [
        {"upstream_url": "https://mcp.example.com:8443/mcp"},
        {"upstream_url": "http://mcp.example.com/mcp"},
        {"upstream_url": "https://other.example.com/mcp"},
        {"auth_type": AuthType.HEADER, "auth_header_name": "X-Token"},
    ],
)
async def test_a_version_of_another_binding_is_not_activated(shelf: Shelf, change: dict[str, object]) -> None:
    first = await shelf.rotate(CONNECTION, b"made-up-one")
    moved = await shelf.rotate(msgspec.structs.replace(first, **change), b"made-up-two")
    assert await shelf.reveal(moved) == b"made-up-two"
    with pytest.raises(Conflict) as caught:
        await shelf.activate(moved, 1)
    assert caught.value.code == "binding_changed"


async def test_another_header_is_another_binding_but_its_case_is_not(shelf: Shelf) -> None:
    with_header = msgspec.structs.replace(CONNECTION, auth_type=AuthType.HEADER, auth_header_name="X-Token")
    first = await shelf.rotate(with_header, b"made-up-one")
    recased = await shelf.rotate(msgspec.structs.replace(first, auth_header_name="x-token"), b"made-up-two")
    assert await shelf.reveal(await shelf.activate(recased, 1)) == b"made-up-one"
    async with shelf.database.read() as conn:
        present = await connections.find(conn, CONNECTION.organization, CONNECTION.slug)
    assert present is not None
    renamed = await shelf.rotate(msgspec.structs.replace(present, auth_header_name="X-Other"), b"made-up-three")
    with pytest.raises(Conflict):
        await shelf.activate(renamed, 1)


async def test_a_path_or_query_may_change_without_the_credential(shelf: Shelf) -> None:
    first = await shelf.rotate(CONNECTION, b"made-up-one")
    moved = msgspec.structs.replace(first, upstream_url="https://MCP.example.com:443/other?x=1")
    assert await shelf.reveal(moved) == b"made-up-one"


async def test_absent_and_destroyed_versions_are_missing(shelf: Shelf) -> None:
    changed = await shelf.rotate(await shelf.rotate(CONNECTION, b"made-up-one"), b"made-up-two")
    await shelf.destroy(changed, 1)
    for version in (0, 1, 3):
        with pytest.raises(Missing):
            await shelf.activate(changed, version)
        with pytest.raises(Missing):
            await shelf.destroy(changed, version)


async def test_the_active_version_is_not_destroyed(shelf: Shelf) -> None:
    changed = await shelf.rotate(CONNECTION, b"made-up-one")
    with pytest.raises(Conflict) as caught:
        await shelf.destroy(changed, 1)
    assert caught.value.code == "version_active"
    assert await shelf.reveal(changed) == b"made-up-one"


async def test_auth_type_none_has_no_credential(shelf: Shelf) -> None:
    bare = msgspec.structs.replace(CONNECTION, auth_type=AuthType.NONE)
    with pytest.raises(Conflict) as caught:
        await shelf.rotate(bare, b"made-up-one")
    assert caught.value.code == "no_credential"
    assert await shelf.reveal(bare) is None
    with pytest.raises(Unreadable):
        await shelf.reveal(CONNECTION)  # of auth type bearer, and its credential is gone


async def test_two_rotations_from_one_revision_do_not_both_stand(shelf: Shelf) -> None:
    await shelf.rotate(CONNECTION, b"made-up-one")
    with pytest.raises(Stale):
        await shelf.rotate(CONNECTION, b"made-up-two")
    async with shelf.database.read() as conn:
        assert [row.version for row in await connections.versions(conn, CONNECTION.id, 9)] == [1]


@pytest.mark.parametrize(
    "moved",
    [
        {"upstream_url": "https://attacker.example.com/mcp"},
        {"auth_type": AuthType.HEADER, "auth_header_name": "X-Echoed"},
        {"organization": "org000000002"},
        {"id": "con000000002"},
    ],
)
async def test_a_row_moved_behind_our_back_is_unreadable(shelf: Shelf, moved: dict[str, object]) -> None:
    changed = await shelf.rotate(CONNECTION, b"made-up-one")
    victim = msgspec.structs.replace(changed, **moved)
    if "id" in moved:
        async with shelf.database.write() as conn:
            await connections.insert(conn, msgspec.structs.replace(victim, slug="thief", number=2))
            await conn.execute(sa.update(credential_versions).values(connection=victim.id))
    with pytest.raises(Unreadable) as caught:
        await shelf.reveal(victim)
    assert "made-up" not in "".join(traceback.format_exception(caught.value))


async def test_a_row_moved_to_another_version_is_neither_opened_nor_activated(shelf: Shelf) -> None:
    changed = await shelf.rotate(await shelf.rotate(CONNECTION, b"made-up-one"), b"made-up-two")
    stolen = sa.select(credential_versions.c.sealed).where(credential_versions.c.version == 1).scalar_subquery()
    await shelf.execute(sa.update(credential_versions).values(sealed=stolen))
    with pytest.raises(Unreadable):
        await shelf.reveal(changed)
    swapped = sa.update(credential_versions).values(version=credential_versions.c.version + 10)
    await shelf.execute(swapped)
    with pytest.raises(Unreadable):
        await shelf.activate(changed, 11)


async def test_another_root_key_refuses_the_start(shelf: Shelf) -> None:
    with pytest.raises(StartRefused, match="This is not the root key of this database") as caught:
        await Vault.open(shelf.database, LocalRootKey(b"s" * 32))
    assert "\n" not in str(caught.value)
    assert ROOT.id in str(caught.value)


async def test_a_database_with_sealed_rows_gets_no_new_canary(shelf: Shelf) -> None:
    await shelf.execute(sa.delete(meta))
    with pytest.raises(StartRefused, match="holds sealed rows and no canary"):
        await Vault.open(shelf.database, ROOT)


async def test_a_swapped_data_key_refuses_the_start(shelf: Shelf) -> None:
    wrapped = sa.select(data_keys.c.wrapped).where(data_keys.c.organization == "org000000001").scalar_subquery()
    await shelf.execute(sa.update(data_keys).values(wrapped=wrapped))
    with pytest.raises(StartRefused, match="Data key 1 of organization org000000002 does not open"):
        await Vault.open(shelf.database, ROOT)


async def test_another_canary_of_the_same_root_key_refuses_the_start(shelf: Shelf) -> None:
    await shelf.execute(sa.update(meta).values(value=ROOT.wrap("", 0, mint.data_key())))
    with pytest.raises(StartRefused, match="canary is not the constant"):
        await Vault.open(shelf.database, ROOT)


async def test_no_credential_is_plain_in_the_database_or_in_a_repr(shelf: Shelf, tmp_path: Path) -> None:
    changed = await shelf.rotate(CONNECTION, b"made-up-credential-to-look-for")
    assert repr(shelf.vault) == f"<Vault root={ROOT.id} <KeyRing organizations=2 keys=2>>"
    await shelf.database.close()
    assert not lies_in(tmp_path, b"made-up-credential")
    assert "made-up" not in repr(changed)


def lies_in(folder: Path, wanted: bytes) -> bool:
    return any(wanted in path.read_bytes() for path in folder.rglob("*") if path.is_file())
