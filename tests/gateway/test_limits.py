from __future__ import annotations

import multiprocessing
from pathlib import Path

import pytest

from keystile.gateway.limits import ROWS, InFlight


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "in-flight"


def test_the_limit_counts_all_workers_together(path: Path) -> None:
    first, second = (InFlight.open(path, worker, 2) for worker in (0, 1))
    assert first.enter(5, 3)
    assert second.enter(5, 3)
    assert second.enter(5, 3)
    assert not first.enter(5, 3)
    assert not second.enter(5, 3)
    second.leave(5)
    assert first.enter(5, 3)


def test_connections_are_counted_apart(path: Path) -> None:
    counters = InFlight.open(path, 0, 4)
    assert counters.enter(1, 1)
    assert counters.enter(2, 1)
    assert not counters.enter(1, 1)
    assert counters.enter(ROWS - 1, 1)


def test_numbers_beyond_the_table_share_rows(path: Path) -> None:
    counters = InFlight.open(path, 0, 1)
    assert counters.enter(3, 1)
    assert not counters.enter(3 + ROWS, 1)
    counters.leave(3)
    assert counters.enter(3 + ROWS, 1)


@pytest.mark.parametrize("workers", [1, 2, 3, 5])
def test_a_restarted_worker_clears_its_own_column_only(path: Path, workers: int) -> None:
    everyone = [InFlight.open(path, worker, workers) for worker in range(workers)]
    numbers = (0, 1, 16_383, 16_384, ROWS - 1)
    for counters in everyone:
        for number in numbers:
            assert counters.enter(number, 100)
    restarted = InFlight.open(path, workers - 1, workers)
    assert [restarted.count(number) for number in numbers] == [workers - 1] * len(numbers)


def _enter_many(path: Path, worker: int, workers: int, limit: int, results: multiprocessing.Queue[int]) -> None:
    counters = InFlight.open(path, worker, workers)
    results.put(-1)
    results.put(sum(counters.enter(1, limit) for _ in range(3000)))


def test_four_workers_overshoot_by_less_than_their_number(path: Path) -> None:
    workers, limit = 4, 5000
    context = multiprocessing.get_context("spawn")
    results: multiprocessing.Queue[int] = context.Queue()
    running = [
        context.Process(target=_enter_many, args=(path, worker, workers, limit, results)) for worker in range(workers)
    ]
    for process in running:
        process.start()
    entered = sum(count for count in (results.get(timeout=60) for _ in range(2 * workers)) if count >= 0)
    for process in running:
        process.join()
    assert limit <= entered < limit + workers
    assert InFlight(memoryview(path.read_bytes()).cast("I"), 0, workers).count(1) == entered
