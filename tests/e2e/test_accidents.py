"""A disk that is full, a ledger that is locked, gone or another: nothing unrecorded, nothing twice, and it recovers."""

from __future__ import annotations

import asyncio
import os
import shutil
import sqlite3
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from tests.e2e.scene import eventually, scene
from tests.e2e.test_node import CONTROL, pids
from tests.e2e.test_survival import Load, judged, under_load
from tests.peers.gateway import gateway

pytestmark = [pytest.mark.anyio, pytest.mark.xdist_group("survival")]

SEGMENT = 1 << 18


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A small disk of its own."""
    path = tmp_path / "disk"
    path.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", path]
    mounted = subprocess.run(command, check=False, capture_output=True)
    if mounted.returncode:
        pytest.skip("mounting a disk is for root; tests/audit has a full disk by RLIMIT_FSIZE")
    yield path
    subprocess.run(["umount", "-l", path], check=True)


def filled(path: Path) -> None:
    """Take what is left of the disk."""
    ballast = os.open(path / "ballast", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    with suppress(OSError):  # no space is left
        while True:
            os.write(ballast, bytes(4096))
    os.close(ballast)


async def answered(load: Load, more: int) -> None:
    """Until so many more calls were answered with a result."""
    enough, reached = len(load.whole) + more, asyncio.Event()
    load.answered = lambda: reached.set() if len(load.whole) >= enough else None
    await asyncio.wait_for(reached.wait(), 30)


async def test_on_a_full_disk_nothing_is_forwarded_and_calls_go_on_when_there_is_room(
    tmp_path: Path, disk: Path
) -> None:
    with gateway(tmp_path, data_dir=disk / "data", limits_spool_segment_bytes=SEGMENT) as running:
        async with scene(running) as at:
            async with under_load(at) as load:
                await answered(load, 200)
                async with asyncio.timeout(60):
                    while load.refused["trail_unavailable"] < 100:
                        await asyncio.to_thread(filled, disk)
                await asyncio.to_thread((disk / "ballast").unlink)
                await answered(load, 200)
            assert set(load.refused) == {"trail_unavailable"}
            await judged(running, load, at.slug)
            assert load.whole == load.forwarded


async def test_a_ledger_that_is_locked_or_gone_holds_no_call_up_and_catches_up(tmp_path: Path) -> None:
    with gateway(tmp_path) as running:
        async with scene(running) as at:
            path = running.data / "ledger.db"
            async with under_load(at) as load:
                await answered(load, 100)
                foreign = sqlite3.connect(path, isolation_level=None)
                foreign.execute("BEGIN IMMEDIATE")
                await answered(load, 300)
                foreign.execute("ROLLBACK")
                foreign.close()
                await answered(load, 100)
                await asyncio.to_thread(shutil.move, path, path.with_suffix(".away"))
                await answered(load, 300)
                await asyncio.to_thread(shutil.move, path.with_suffix(".away"), path)
                await answered(load, 100)
            assert load.refused == {}
            await judged(running, load, at.slug)


async def test_another_ledger_in_its_place_is_taken_up_and_the_spool_loses_nothing(tmp_path: Path) -> None:
    with gateway(tmp_path) as running:
        async with scene(running) as at:
            assert (await at.ask(at.request())).status == 200
            await at.events(1)
            path, control = running.data / "ledger.db", pids(running, CONTROL)
            await asyncio.to_thread(shutil.move, path, path.with_suffix(".away"))
            sqlite3.connect(path).close()
            path.touch()
            assert (await at.ask(at.request())).status == 200
            await eventually(lambda: pids(running, CONTROL) not in ([], control) and running.administered())
            # The live segment is read again from its beginning, for this ledger knows nothing of it.
            assert len(await at.events(2)) == 2
