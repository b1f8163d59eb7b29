"""The doctor looks and changes nothing, whatever lies in the data folder."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from keystile.config import Config, Limits
from keystile.doctor import Finding, examine
from keystile.initialise import initialise
from keystile.node import Folders, is_locked, locked

pytestmark = pytest.mark.anyio


def config(tmp_path: Path) -> Config:
    return Config(data_dir=str(tmp_path / "data"), port=0, limits=Limits(sockets=100))


def held(folders: Folders) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folders.data.rglob("*") if path.is_file()}


def problems(found: list[Finding]) -> dict[str, str]:
    return {finding.what: finding.said for finding in found if finding.remedy is not None}


async def test_a_whole_installation_has_no_problem_and_stays_as_it_is(tmp_path: Path) -> None:
    settings = config(tmp_path)
    await initialise(settings)
    before = held(Folders(settings.data_dir))
    assert problems(await examine(settings)) == {}
    assert held(Folders(settings.data_dir)) == before


async def test_a_database_without_a_canary_gets_none(tmp_path: Path) -> None:
    settings = config(tmp_path)
    folders = Folders(settings.data_dir)
    await initialise(settings)
    with closing(sqlite3.connect(folders.database)) as database, database:
        database.executescript("DELETE FROM meta; DELETE FROM data_keys")
    before = held(folders)
    await examine(settings)
    assert held(folders) == before


def nothing(path: Path) -> None:
    path.touch()


def rubbish(path: Path) -> None:
    path.write_bytes(b"made up " * 1000)


def no_tables(path: Path) -> None:
    with closing(sqlite3.connect(path)) as database, database:
        database.execute("PRAGMA journal_mode=WAL")
        database.execute("CREATE TABLE another (name TEXT)")


@pytest.mark.parametrize(
    ("damage", "what", "said"),
    [
        (nothing, "data folder", "holds no installation"),
        (rubbish, "database", "not a database"),
        (no_tables, "database", "no such table"),
    ],
)
async def test_what_is_no_database_is_said_and_left(
    tmp_path: Path, damage: Callable[[Path], None], what: str, said: str
) -> None:
    settings = config(tmp_path)
    folders = Folders(settings.data_dir)
    await initialise(settings)
    folders.database.unlink()
    damage(folders.database)
    before = held(folders)
    assert said in problems(await examine(settings))[what]
    assert held(folders) == before


async def test_looking_holds_nobody_up_and_sees_who_serves(tmp_path: Path) -> None:
    settings = config(tmp_path)
    folders = Folders(settings.data_dir)
    await initialise(settings)
    lock = locked(folders.lock)
    assert "a gateway runs" in problems(await examine(settings))["port"]
    assert is_locked(folders.lock)
    os.close(lock)
    assert "port" not in problems(await examine(settings))
