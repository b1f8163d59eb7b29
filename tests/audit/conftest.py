"""Events and spools for the tests of the trail."""

from __future__ import annotations

import resource
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import pytest

from keystile.audit.event import Event, event_id
from keystile.audit.spool import Spool

SEGMENT = 80_000
START = 1_790_000_000_000


@pytest.fixture
def made() -> Callable[..., Event]:
    """The event of a number: a millisecond apart unless `at` says otherwise."""

    def make(number: int, **fields: Any) -> Event:
        at = fields.pop("at", START + number)
        fields.setdefault("outcome", "done")
        return Event(id=event_id(at, number), at=at, **fields)

    return make


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A spool folder."""
    path = tmp_path / "spool"
    path.mkdir()
    return path


@pytest.fixture
def spool(folder: Path) -> Iterator[Spool]:
    """Worker 0's spool, of small segments."""
    made = Spool(folder, 0, 0, SEGMENT, 100 * SEGMENT)
    yield made
    made.close()


@pytest.fixture
def files_no_larger_than() -> Callable[[int], AbstractContextManager[None]]:
    """The kernel then refuses to write further: as a full disk does, and without being one."""

    @contextmanager
    def bounded(size: int) -> Iterator[None]:
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    return bounded
