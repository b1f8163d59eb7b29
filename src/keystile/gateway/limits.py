"""Counters that the workers of a node share: exchanges in flight per connection.

Guarantees: no lock and no wait; a cell has one writer (its worker), everybody sums. A sum may be stale by what other
workers do in the same moment, so a limit is overshot by at most the number of workers less one.

The file `run/in-flight` is an array of u32: one row per connection number, one column per worker. It is allocated
whole, not sparse (4 MiB for four workers): a store into a hole of a full disk would be a SIGBUS. Numbers beyond the
last row share rows, by remainder. Connection numbers are never reused, so this begins when an installation has made
its 262,144th connection, and the sum of a shared row errs only towards refusing.
"""

from __future__ import annotations

import mmap
import os
from pathlib import Path
from typing import Self

ROWS = 1 << 18
_CELL = 4
_BLOCK = 1 << 16


class InFlight:
    """One worker's view of the counters: it adds to its own column and sums the row."""

    def __init__(self, cells: memoryview[int], worker: int, workers: int) -> None:
        self._cells = cells
        self._worker = worker
        self._workers = workers

    @classmethod
    def open(cls, path: Path, worker: int, workers: int) -> Self:
        """Map the file, make it if it is not there, and clear the column of this worker's dead predecessor."""
        size = ROWS * workers * _CELL
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            os.posix_fallocate(descriptor, 0, size)
            cells: memoryview[int] = memoryview(mmap.mmap(descriptor, size)).cast("I")
            # Read first: only blocks in which somebody counted are touched through the map, and become resident.
            blank = bytes(_BLOCK * workers)
            for start in range(0, size, len(blank)):
                if os.pread(descriptor, len(blank), start) != blank:
                    column = cells[start // _CELL :][worker : len(blank) // _CELL : workers]
                    column[:] = memoryview(bytes(column.nbytes)).cast("I")
        finally:
            os.close(descriptor)
        return cls(cells, worker, workers)

    def enter(self, number: int, limit: int) -> bool:
        """Count one more exchange of this connection, unless `limit` are in flight on the node already."""
        cells, workers = self._cells, self._workers
        row = number % ROWS * workers
        if sum(cells[row : row + workers]) >= limit:
            return False
        cells[row + self._worker] += 1
        return True

    def leave(self, number: int) -> None:
        """One that `enter` counted has ended."""
        self._cells[number % ROWS * self._workers + self._worker] -= 1

    def count(self, number: int) -> int:
        """Exchanges in flight on the node."""
        row = number % ROWS * self._workers
        return sum(self._cells[row : row + self._workers])

    def __repr__(self) -> str:
        return f"<InFlight worker={self._worker} of {self._workers}>"
