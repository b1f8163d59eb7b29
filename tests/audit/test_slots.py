from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from itertools import pairwise
from pathlib import Path

import pytest

from keystile.audit.event import Event, decode
from keystile.audit.slots import BLOCK, LARGE, SMALL, Slots, abandoned, left_open
from keystile.audit.spool import Spool

Made = Callable[..., Event]


@pytest.fixture
def slots(folder: Path) -> Iterator[Slots]:
    made = Slots(folder, 0, 0, 1000)
    yield made
    made.close()


def left(folder: Path) -> list[Event]:
    """What is open in every slot file, whoever writes it."""
    return [decode(line) for path in folder.glob("*.slots") for line in left_open(path)]


def filled(slots: Slots, event: Event) -> int:
    slot = slots.fill(event)
    assert slot is not None
    return slot


def test_what_is_filled_and_not_freed_is_left_open(slots: Slots, folder: Path, made: Made) -> None:
    events = [made(number, outcome="interrupted", user="alice") for number in range(10)]
    taken = [filled(slots, event) for event in events]
    assert left(folder) == events
    for slot in taken[::2]:
        slots.free(slot)
    assert left(folder) == events[1::2]
    assert filled(slots, events[0]) == taken[8], "used again last in, first out"
    assert {event.id for event in left(folder)} == {event.id for event in (events[0], *events[1::2])}


def test_nothing_is_made_before_it_is_needed(slots: Slots, folder: Path, made: Made) -> None:
    assert list(folder.iterdir()) == []
    filled(slots, made(1))
    (path,) = folder.iterdir()
    assert (path.name, path.stat().st_size) == ("0-0-0.slots", BLOCK)


def test_disk_space_is_claimed_for_as_many_as_are_under_way_at_once(slots: Slots, folder: Path, made: Made) -> None:
    a_block = BLOCK // SMALL - 1
    events = [made(number) for number in range(a_block + 1)]
    taken = [filled(slots, event) for event in events]
    (path,) = folder.iterdir()
    assert path.stat().st_size == 2 * BLOCK <= path.stat().st_blocks * 512
    for slot in taken:
        slots.free(slot)
    for event in events * 3:
        slots.free(filled(slots, event))
    assert path.stat().st_size == 2 * BLOCK
    assert left(folder) == []


def test_large_events_have_slots_of_their_own(slots: Slots, folder: Path, made: Made) -> None:
    sizes = [*range(0, 600, 50), 4000, 7900]
    events = [made(number, metadata="x" * size) for number, size in enumerate(sizes)]
    taken = [filled(slots, event) for event in events]
    assert sorted(left(folder), key=lambda event: event.id) == events
    for slot in taken:
        slots.free(slot)
    assert left(folder) == []


def test_slots_overlap_in_no_byte(folder: Path, made: Made) -> None:
    slots = Slots(folder, 0, 0, 10_000)
    taken = [filled(slots, made(number, metadata="x" * (number % 2 * 1000))) for number in range(600)]
    sizes = [LARGE if number % 2 else SMALL for number in range(600)]
    spans = sorted((slot, slot + size) for slot, size in zip(taken, sizes, strict=True))
    assert all(before[1] <= after[0] for before, after in pairwise(spans))
    assert all(start // BLOCK == (end - 1) // BLOCK and start % BLOCK for start, end in spans)
    slots.close()


def test_an_event_over_the_bound_is_a_bug(slots: Slots, made: Made) -> None:
    with pytest.raises(ValueError, match="bytes"):
        slots.fill(made(1, metadata="x" * LARGE))


def test_the_number_of_slots_is_bounded_and_a_freed_one_is_taken_again(slots: Slots, made: Made) -> None:
    taken: list[int] = []
    while (slot := slots.fill(made(len(taken)))) is not None:
        taken.append(slot)
    assert 1000 <= len(taken) < 1000 + BLOCK // SMALL
    assert slots.fault == "1000 exchanges are under way"
    slots.free(taken[5])
    assert slots.fill(made(1)) == taken[5]


def test_on_a_full_disk_there_is_no_slot_and_that_clears_by_itself(
    slots: Slots, folder: Path, made: Made, files_no_larger_than: Callable[[int], AbstractContextManager[None]]
) -> None:
    with files_no_larger_than(BLOCK // 2):
        assert slots.fill(made(0)) is None
        assert "File too large" in (slots.fault or "")
        assert list(folder.iterdir()) == []
    first = [filled(slots, made(number)) for number in range(BLOCK // SMALL - 1)]
    with files_no_larger_than(BLOCK + BLOCK // 2):
        assert slots.fill(made(999)) is None
        slots.free(first[0])
        assert slots.fill(made(0)) == first[0], "those that are there go on"
    filled(slots, made(1000))
    assert slots.fault is None
    assert len(left(folder)) == len(first) + 1


def test_a_file_is_abandoned_when_its_worker_is_gone(slots: Slots, folder: Path, made: Made) -> None:
    filled(slots, made(1))
    assert abandoned(folder) == []
    slots.close()
    (path,) = abandoned(folder)
    successor = Slots(folder, 0, 0, 1000)  # a clock set back may give a name again
    filled(successor, made(2))
    assert abandoned(folder) == [path]
    assert {event.at for event in left(folder)} == {made(1).at, made(2).at}
    successor.close()


def test_a_draft_of_a_dead_worker_is_removed_by_its_successor(folder: Path) -> None:
    (folder / "0-7-0.new").touch()
    Spool(folder, 0, 8, 80_000, 8_000_000).close()
    assert not list(folder.glob("*.new"))


def test_a_file_torn_at_any_byte_gives_whole_events_only(slots: Slots, folder: Path, made: Made) -> None:
    events = [made(number, metadata="x" * (number * 200)) for number in range(5)]
    for event in events:
        filled(slots, event)
    slots.close()
    (path,) = abandoned(folder)
    content = path.read_bytes()
    used = content.rstrip(b"\0")
    for torn in [*range(0, 3000, 7), *range(len(used) - 1200, len(used), 5)]:
        for left_over in (content[:torn], content[:torn].ljust(len(content), b"\0")):
            path.write_bytes(left_over)
            assert all(decode(line) in events for line in left_open(path))
    flipped = bytearray(content)
    for at in range(SMALL, SMALL + 200):
        flipped[at] ^= 1
        path.write_bytes(flipped)
        assert all(decode(line) in events for line in left_open(path))
        flipped[at] ^= 1


_WORKER = """
import os, sys
from pathlib import Path
from keystile.audit.event import Event, event_id
from keystile.audit.slots import Slots
slots = Slots(Path(sys.argv[1]), 0, 0, 10_000)
number, taken = 0, []
while True:
    taken.append(slots.fill(Event(id=event_id(number, number), at=number, outcome="interrupted")))
    os.write(1, b"+%d\\n" % number)
    if number % 3 == 0:
        slots.free(taken.pop(0))
        os.write(1, b"-\\n")
    number += 1
"""


def test_what_was_open_at_kill_9_is_left_open(folder: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", _WORKER, str(folder)], stdout=subprocess.PIPE) as worker:
        assert worker.stdout
        told = [worker.stdout.readline() for _ in range(3000)]
        assert abandoned(folder) == []
        os.kill(worker.pid, signal.SIGKILL)
        told += worker.stdout.read().splitlines(keepends=True)
    filled_last = int([line for line in told if line.startswith(b"+")][-1][1:])
    freed = told.count(b"-\n")
    assert len(abandoned(folder)) == 1
    found = sorted(event.at for event in left(folder))
    # What came after the last word is not known: one more may be filled, or one more freed.
    ends = (filled_last + 1, filled_last + 2)
    assert found in [list(range(start, end)) for start in (freed, freed + 1) for end in ends]
