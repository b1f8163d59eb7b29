"""What passes between the supervisor and a child."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from keystile.config import Config
from keystile.errors import StartRefused
from keystile.node import Boot, is_locked, locked, receive, send

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
