from __future__ import annotations

import asyncio
import sqlite3
from pathlib import Path

import pytest
import sqlalchemy as sa
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from sqlalchemy.exc import IntegrityError

from keystile.errors import StartRefused
from keystile.model import Organization
from keystile.store import counters, data_keys, keys, organizations
from keystile.store.database import _MIGRATIONS, Database, sqlite
from keystile.store.tables import metadata

pytestmark = pytest.mark.anyio


@pytest.fixture
async def database(tmp_path: Path):
    database = Database(sqlite(tmp_path / "keystile.db"))
    await database.migrate()
    yield database
    await database.close()


async def test_the_migrated_schema_is_that_of_the_tables(database: Database) -> None:
    def differences(connection: sa.Connection) -> list[object]:
        return compare_metadata(MigrationContext.configure(connection, opts={"compare_type": True}), metadata)

    async with database.read() as connection:
        assert await connection.run_sync(differences) == []


async def test_migrating_again_changes_nothing(database: Database) -> None:
    async with database.write() as connection:
        await counters.advance(connection, counters.GENERATION)
    await database.migrate()
    async with database.read() as connection:
        assert await counters.current(connection, counters.GENERATION) == 2


async def test_a_newer_programs_schema_refuses_the_start(database: Database) -> None:
    async with database.write() as connection:
        await connection.execute(sa.text("UPDATE alembic_version SET version_num = '9999'"))
    with pytest.raises(StartRefused, match="Start a newer one"):
        await database.migrate()


async def test_an_interrupted_migration_leaves_nothing(tmp_path: Path) -> None:
    database = Database(sqlite(tmp_path / "keystile.db"))
    with sqlite3.connect(tmp_path / "keystile.db") as file:
        file.execute("CREATE TABLE meta (name TEXT)")  # the last table of the first migration is in the way
    with pytest.raises(StartRefused, match="meta already exists"):
        await database.migrate()
    await database.close()
    with sqlite3.connect(tmp_path / "keystile.db") as file:
        assert file.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall() == [("meta",)]


async def test_a_key_of_an_older_schema_has_revision_1(tmp_path: Path) -> None:
    database = Database(sqlite(tmp_path / "keystile.db"))

    def begin(connection: sa.Connection) -> None:
        config = Config()
        config.set_main_option("script_location", str(_MIGRATIONS))
        config.attributes["connection"] = connection
        command.upgrade(config, "0001")

    async with database.write() as connection:
        await connection.run_sync(begin)
        await connection.execute(sa.text("INSERT INTO organizations VALUES ('o', 'one', 'One', 1)"))
        older = "INSERT INTO api_keys (id, organization, name, role, digest, created_at)"
        await connection.execute(sa.text(f"{older} VALUES ('k', 'o', 'K', 'client', x'00', 1)"))
    await database.migrate()
    async with database.read() as connection:
        found = await keys.find(connection, "o", "k")
    assert found is not None and found.revision == 1
    await database.close()


async def test_a_file_that_is_no_database_refuses_the_start(tmp_path: Path) -> None:
    (tmp_path / "keystile.db").write_bytes(b"anything but a database" * 100)
    database = Database(sqlite(tmp_path / "keystile.db"))
    with pytest.raises(StartRefused, match="cannot be used: file is not a database"):
        await database.migrate()
    await database.close()


@pytest.mark.parametrize("folder", ["plain", "per%cent", "what?", "a#b", "dé jà"])
async def test_a_database_may_lie_in_any_folder(tmp_path: Path, folder: str) -> None:
    path = tmp_path / folder / "keystile.db"
    path.parent.mkdir()
    database = Database(sqlite(path))
    await database.migrate()
    await database.close()
    assert path.exists()


async def test_every_connection_is_safe_and_durable(database: Database) -> None:
    async with database.read() as one, database.read() as other, database.write() as writing:
        for connection in (one, other, writing):
            asked = [
                (await connection.execute(sa.text(f"PRAGMA {name}"))).scalar_one()
                for name in ("journal_mode", "synchronous", "foreign_keys", "secure_delete", "busy_timeout")
            ]
            assert asked == ["wal", 2, 1, 1, 5000]


async def test_a_write_that_raises_leaves_nothing(database: Database) -> None:
    async def write() -> None:
        async with database.write() as connection:
            await organizations.insert(connection, Organization(id="o1", slug="one", name="One", created_at=1))
            raise RuntimeError

    with pytest.raises(RuntimeError):
        await write()
    async with database.read() as connection:
        assert await organizations.every(connection) == []


async def test_a_reader_sees_one_state_while_a_writer_commits(database: Database) -> None:
    async with database.read() as reading:
        before = await counters.current(reading, counters.GENERATION)
        async with database.write() as writing:
            await counters.advance(writing, counters.GENERATION)
        assert await counters.current(reading, counters.GENERATION) == before
    async with database.read() as reading:
        assert await counters.current(reading, counters.GENERATION) == before + 1


async def test_writers_take_turns(database: Database) -> None:
    async def write() -> int:
        async with database.write() as connection:
            seen = await counters.current(connection, counters.GENERATION)
            await asyncio.sleep(0)
            taken = await counters.advance(connection, counters.GENERATION)
            assert taken == seen + 1
            return taken

    assert sorted(await asyncio.gather(*(write() for _ in range(20)))) == list(range(2, 22))


async def test_what_follows_a_commit_runs_before_the_next_writer(database: Database) -> None:
    told: list[str] = []

    async def write(name: str) -> None:
        async with database.write(lambda: told.append(f"{name} committed")) as connection:
            told.append(f"{name} begins")
            await counters.advance(connection, counters.GENERATION)

    await asyncio.gather(write("a"), write("b"))
    assert told == ["a begins", "a committed", "b begins", "b committed"]


async def test_nothing_follows_a_write_that_raises(database: Database) -> None:
    told: list[str] = []
    with pytest.raises(RuntimeError):
        async with database.write(lambda: told.append("committed")):
            raise RuntimeError
    assert told == []


async def test_a_cancelled_writer_has_done_all_of_it_or_nothing(database: Database) -> None:
    """Cancelled at every step of the loop: what was committed was also followed up, and nothing else was."""
    followed = 0

    def follow() -> None:
        nonlocal followed
        followed += 1

    async def write() -> None:
        async with database.write(follow) as connection:
            await counters.advance(connection, counters.GENERATION)

    steps, through = 0, False
    while not through:  # later and later, until the write was through before it was cancelled
        task = asyncio.create_task(write())
        for _ in range(steps):
            await asyncio.sleep(0)
        through = task.done()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        async with database.read() as connection:
            assert await counters.current(connection, counters.GENERATION) == 1 + followed
        steps += 1 + steps // 4
    assert followed > 0


async def test_an_error_shows_no_parameter(database: Database) -> None:
    async with database.write() as connection:
        with pytest.raises(IntegrityError) as caught:
            await data_keys.insert(connection, "nobody", 1, b"made-up-wrapped-bytes")
    assert "made-up" not in str(caught.value)
    assert "made-up" not in repr(caught.value)
