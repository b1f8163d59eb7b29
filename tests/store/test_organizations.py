from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from keystile.errors import Conflict
from keystile.model import Organization
from keystile.store import organizations
from keystile.store.database import Database, sqlite

pytestmark = pytest.mark.anyio

ONE = Organization(id="org000000001", slug="one", name="One", created_at=1)
TWO = Organization(id="org000000002", slug="two", name="Two", created_at=2)


@pytest.fixture
async def database(tmp_path: Path):
    database = Database(sqlite(tmp_path / "keystile.db"))
    await database.migrate()
    yield database
    await database.close()


async def test_rows_come_back_as_they_went_in(database: Database) -> None:
    async with database.write() as conn:
        await organizations.insert(conn, TWO)
        await organizations.insert(conn, ONE)
    async with database.read() as conn:
        assert await organizations.every(conn) == [ONE, TWO]
        assert await organizations.find_slug(conn, "two") == TWO
        assert await organizations.page(conn, 1) == [ONE]
        assert await organizations.page(conn, 2, (ONE.created_at, ONE.id)) == [TWO]
        assert await organizations.page(conn, 1, (TWO.created_at, TWO.id)) == []
        assert await organizations.find_slug(conn, "nobody") is None


async def test_a_slug_is_taken_once(database: Database) -> None:
    async with database.write() as conn:
        await organizations.insert(conn, ONE)
        with pytest.raises(Conflict) as caught:
            await organizations.insert(conn, msgspec.structs.replace(TWO, slug="one"))
    assert caught.value.code == "slug_taken"
