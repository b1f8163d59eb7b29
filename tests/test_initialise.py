from __future__ import annotations

import base64
import os
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from sqlalchemy.exc import DBAPIError

from keystile import keys, mint
from keystile.config import Config
from keystile.core import apikey
from keystile.errors import StartRefused
from keystile.initialise import initialise
from keystile.model import ApiKey, Role
from keystile.node import Folders
from keystile.store import data_keys, organizations
from keystile.store import keys as stored_keys
from keystile.store.database import Database, sqlite
from keystile.vault import Vault

pytestmark = pytest.mark.anyio


async def stored(data: Path, digest: bytes) -> ApiKey | None:
    database = Database(sqlite(Folders(str(data)).database))
    try:
        async with database.read() as conn:
            return await stored_keys.find_digest(conn, digest)
    finally:
        await database.close()


async def test_an_empty_folder_becomes_an_installation(tmp_path: Path) -> None:
    data = tmp_path / "not" / "there" / "yet"
    first = await initialise(Config(data_dir=str(data)))
    assert first is not None
    assert (first.organization.slug, first.given) == ("default", False)
    assert apikey.well_formed(first.key.reveal())
    key = await stored(data, apikey.digest(first.key.reveal()))
    assert key is not None
    assert (key.organization, key.role, key.expires_at, key.connections) == (
        first.organization.id,
        Role.ADMIN,
        None,
        None,
    )
    assert first.key.reveal().decode() not in repr(first)
    assert data.stat().st_mode & 0o777 == 0o700
    assert (data / "root.key").stat().st_mode & 0o777 == 0o600


async def test_every_file_is_this_users_alone_whatever_the_shell_would_allow(tmp_path: Path) -> None:
    before = os.umask(0o022)
    try:
        await initialise(Config(data_dir=str(tmp_path / "data")))
        made = [path for path in (tmp_path / "data").rglob("*") if path.is_file()]
        assert "keystile.db" in {path.name for path in made}
        assert {path.stat().st_mode & 0o077 for path in made} == {0}
        assert os.umask(0o022) == 0o022
    finally:
        os.umask(before)


async def test_the_key_itself_is_in_no_file(tmp_path: Path) -> None:
    first = await initialise(Config(data_dir=str(tmp_path)))
    assert first is not None
    assert lies_in(tmp_path, apikey.digest(first.key.reveal()))
    assert not lies_in(tmp_path, first.key.reveal())


async def test_what_holds_data_is_left_as_it_is(tmp_path: Path) -> None:
    first = await initialise(Config(data_dir=str(tmp_path)))
    root = (tmp_path / "root.key").read_bytes()
    assert await initialise(Config(data_dir=str(tmp_path))) is None
    assert (tmp_path / "root.key").read_bytes() == root
    assert first is not None
    assert await stored(tmp_path, apikey.digest(first.key.reveal())) is not None


async def test_a_bootstrap_key_becomes_the_first_admin_key(tmp_path: Path) -> None:
    given = mint.new_api_key()
    first = await initialise(Config(data_dir=str(tmp_path), bootstrap_key=given))
    assert first is not None
    assert first.given
    key = await stored(tmp_path, apikey.digest(given.encode()))
    assert key is not None
    assert key.role is Role.ADMIN


async def test_a_malformed_bootstrap_key_refuses_the_start_and_leaves_no_data(tmp_path: Path) -> None:
    with pytest.raises(StartRefused, match="keystile key generate") as caught:
        await initialise(Config(data_dir=str(tmp_path), bootstrap_key="ks_made-up-and-malformed"))
    assert "made-up" not in str(caught.value)
    assert await initialise(Config(data_dir=str(tmp_path))) is not None


async def test_a_bootstrap_key_is_ignored_once_data_exists(tmp_path: Path) -> None:
    await initialise(Config(data_dir=str(tmp_path)))
    later = mint.new_api_key()
    assert await initialise(Config(data_dir=str(tmp_path), bootstrap_key=later)) is None
    assert await initialise(Config(data_dir=str(tmp_path), bootstrap_key="ks_made-up-and-malformed")) is None
    assert await stored(tmp_path, apikey.digest(later.encode())) is None


async def test_data_without_its_root_key_refuses_the_start_and_gets_no_new_one(tmp_path: Path) -> None:
    await initialise(Config(data_dir=str(tmp_path)))
    root = tmp_path / "root.key"
    right = root.read_bytes()
    root.write_bytes(base64.b64encode(os.urandom(32)))
    with pytest.raises(StartRefused, match="This is not the root key of this database"):
        await initialise(Config(data_dir=str(tmp_path)))
    root.write_bytes(right[:20])
    with pytest.raises(StartRefused, match="not 32"):
        await initialise(Config(data_dir=str(tmp_path)))
    root.unlink()
    with pytest.raises(StartRefused, match="The root key is missing"):
        await initialise(Config(data_dir=str(tmp_path)))
    assert not root.exists()


async def test_a_data_folder_that_is_a_file_refuses_the_start(tmp_path: Path) -> None:
    (tmp_path / "data").write_text("a file")
    with pytest.raises(StartRefused, match="cannot be used"):
        await initialise(Config(data_dir=str(tmp_path / "data")))


async def test_no_root_key_file_is_made_beside_a_configured_source(tmp_path: Path) -> None:
    root = base64.b64encode(os.urandom(32)).decode()
    assert await initialise(Config(data_dir=str(tmp_path), root_key=root)) is not None
    assert not (tmp_path / "root.key").exists()


async def test_a_configured_file_that_is_missing_refuses_the_start(tmp_path: Path) -> None:
    with pytest.raises(StartRefused, match="does not exist"):
        await initialise(Config(data_dir=str(tmp_path), root_key_file=str(tmp_path / "elsewhere")))
    assert not (tmp_path / "root.key").exists()


async def test_a_run_interrupted_after_the_root_key_goes_on_with_it(tmp_path: Path) -> None:
    keys.make_root_key_file(tmp_path / "root.key")
    root = (tmp_path / "root.key").read_bytes()
    assert await initialise(Config(data_dir=str(tmp_path))) is not None
    assert (tmp_path / "root.key").read_bytes() == root


async def test_a_run_interrupted_after_the_canary_goes_on_with_its_root_key(tmp_path: Path) -> None:
    config = Config(data_dir=str(tmp_path))
    keys.make_root_key_file(tmp_path / "root.key")
    await with_canary(config)
    assert await initialise(config) is not None


async def test_a_database_with_a_canary_never_gets_a_new_root_key(tmp_path: Path) -> None:
    config = Config(data_dir=str(tmp_path))
    keys.make_root_key_file(tmp_path / "root.key")
    await with_canary(config)
    (tmp_path / "root.key").unlink()
    with pytest.raises(StartRefused, match="The root key is missing"):
        await initialise(config)
    assert not (tmp_path / "root.key").exists()


async def test_an_interrupted_founding_leaves_no_half_of_it(tmp_path: Path) -> None:
    config = Config(data_dir=str(tmp_path))
    keys.make_root_key_file(tmp_path / "root.key")
    await with_canary(config)
    # The last step of the transaction fails, as on a full disk.
    execute(tmp_path, "CREATE TRIGGER full BEFORE INSERT ON api_keys BEGIN SELECT RAISE(ABORT, 'made-up'); END")
    with pytest.raises(DBAPIError, match="made-up"):
        await initialise(config)
    database = Database(sqlite(tmp_path / "keystile.db"))
    async with database.read() as conn:
        assert await organizations.every(conn) == []
        assert await data_keys.every(conn) == []
    await database.close()
    execute(tmp_path, "DROP TRIGGER full")
    assert await initialise(config) is not None


def execute(data: Path, statement: str) -> None:
    with closing(sqlite3.connect(data / "keystile.db")) as file:
        file.execute(statement)


async def with_canary(config: Config) -> None:
    folders = Folders(config.data_dir)
    database = Database(sqlite(folders.database))
    await database.migrate()
    await Vault.open(database, keys.root_key(config, folders))
    await database.close()


def lies_in(folder: Path, wanted: bytes) -> bool:
    return any(wanted in path.read_bytes() for path in folder.rglob("*") if path.is_file())
