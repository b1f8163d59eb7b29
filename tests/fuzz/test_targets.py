"""The fuzz targets themselves: they hold on their seeds and a moment's mutations, and they see a broken promise."""

import pytest

from tests.fuzz.__main__ import fuzz
from tests.fuzz.targets import TARGETS, Target


@pytest.mark.parametrize("name", TARGETS)
def test_target_holds_for_a_moment(name: str) -> None:
    assert fuzz(name, TARGETS[name], seconds=0.5, seed=1)


def test_broken_promise_is_seen() -> None:
    def check(data: bytes) -> None:
        assert b"\0" not in data

    assert not fuzz("broken", Target([b"seed"], check), seconds=60, seed=1)
