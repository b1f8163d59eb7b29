"""One gateway for all tests that only call it: two workers, everything at its defaults."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.peers.gateway import Gateway, gateway


@pytest.fixture(scope="session")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    with gateway(tmp_path_factory.mktemp("shared"), workers=2) as started:
        yield started
