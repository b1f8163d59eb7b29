"""What passes between the supervisor and a child."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from keystile.config import Config
from keystile.errors import StartRefused
from keystile.node import Boot, is_locked, locked, receive, send, sockets

BOOT = Boot(config=Config(root_key="made-up-root-key"), node_key=b"made-up-node-key", index=3, incarnation=7)


def test_a_child_receives_what_was_sent() -> None:
    reading, writing = os.pipe()
    send(BOOT, writing)
    assert receive(reading) == BOOT
    os.close(writing)
    with pytest.raises(EOFError):
        receive(reading)
    os.close(reading)


def test_a_child_that_died_before_it_was_told_anything_is_no_fault_of_the_supervisor() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    send(BOOT, writing)
    os.close(writing)


def test_a_boot_message_shows_no_secret() -> None:
    assert "made-up" not in repr(BOOT) + str(BOOT)


def test_a_folder_has_one_holder_and_looking_takes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    assert not is_locked(path)
    held = locked(path)
    assert is_locked(path) and is_locked(path)
    with pytest.raises(StartRefused, match="another Keystile"):
        locked(path)
    os.close(held)
    assert not is_locked(path)
    os.close(locked(path))


def test_a_node_takes_the_descriptors_it_may_have_and_dumps_no_core() -> None:
    script = """
import resource
from keystile.node import raise_limits
_, most = resource.getrlimit(resource.RLIMIT_NOFILE)
resource.setrlimit(resource.RLIMIT_NOFILE, (64, most))
raise_limits()
assert resource.getrlimit(resource.RLIMIT_NOFILE) == (most, most)
assert max(resource.getrlimit(resource.RLIMIT_CORE)) in {0, 1}
raise_limits()
"""
    subprocess.run([sys.executable, "-c", script], check=True)


@pytest.mark.parametrize(
    ("descriptors", "found"),
    [(1024, 384), (40_256, 20_000), (40_255, 19_999), (1 << 30, 20_000), (10, 1), (resource.RLIM_INFINITY, 20_000)],
)
def test_no_more_clients_are_taken_than_there_are_descriptors_for_both_sides(descriptors: int, found: int) -> None:
    assert sockets(20_000, descriptors) == found
