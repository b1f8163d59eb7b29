from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from keystile.audit.event import Event, decode
from keystile.audit.spool import EVENT_BYTES, SegmentReader, Spool, segments

SEGMENT = 80_000
BIG = "x" * 4000

Made = Callable[..., Event]


def lines(path: Path, offset: int = 0) -> list[bytes]:
    with SegmentReader(path) as segment:
        return [line for _, line in segment.lines(offset)]


def finished(path: Path) -> bool:
    with SegmentReader(path) as segment:
        return segment.finished


def spooled(folder: Path) -> list[Event]:
    return [decode(line) for path in segments(folder) for line in lines(path)]


def until_not_ready(spool: Spool, made: Made) -> int:
    count = 0
    while spool.ready():
        assert spool.append(made(count, metadata=BIG))
        count += 1
    return count


def test_what_was_appended_is_read_in_order(spool: Spool, folder: Path, made: Made) -> None:
    events = [made(number, name="n" * (number % 9)) for number in range(100)]
    assert all(spool.append(event) for event in events)
    assert spooled(folder) == events


def test_reading_goes_on_where_it_stopped(spool: Spool, folder: Path, made: Made) -> None:
    for number in range(10):
        spool.append(made(number))
    (path,) = segments(folder)
    with SegmentReader(path) as segment:
        places = [place for place, _ in segment.lines(0)]
    for count, place in enumerate(places, 1):
        assert [decode(line) for line in lines(path, place)] == [made(number) for number in range(count, 10)]


def test_segments_follow_each_other_without_a_gap(spool: Spool, folder: Path, made: Made) -> None:
    events = [made(number, metadata=BIG) for number in range(60)]
    for event in events:
        assert spool.ready()
        assert spool.append(event)
    assert len(segments(folder)) > 3
    assert spooled(folder) == events


def test_a_segment_is_finished_when_its_writer_moved_on_or_closed(spool: Spool, folder: Path, made: Made) -> None:
    while len(segments(folder)) < 3:
        spool.append(made(1, metadata=BIG))
    states = [finished(path) for path in segments(folder)]
    assert states == [True, False, False]
    spool.close()
    assert all(finished(path) for path in segments(folder))


def test_space_is_claimed_when_a_segment_is_made(spool: Spool, folder: Path) -> None:
    (path,) = segments(folder)
    assert path.stat().st_blocks * 512 >= SEGMENT


@pytest.mark.usefixtures("spool")
def test_a_name_left_by_an_earlier_run_is_not_reused(folder: Path) -> None:
    second = Spool(folder, 0, 0, SEGMENT, 100 * SEGMENT)
    assert [path.name for path in segments(folder)] == ["0-0-0.seg", "0-0-1.seg"]
    second.close()


def test_a_draft_left_by_a_dead_worker_is_removed_by_its_successor(folder: Path) -> None:
    left, foreign = folder / "1-0-4.new", folder / "11-0-4.new"
    left.touch()
    foreign.touch()
    Spool(folder, 1, 1, SEGMENT, 100 * SEGMENT).close()
    assert (left.exists(), foreign.exists()) == (False, True)


def test_a_line_over_the_bound_is_a_bug(spool: Spool, made: Made) -> None:
    with pytest.raises(ValueError, match="bytes"):
        spool.append(made(1, metadata="x" * EVENT_BYTES))


def test_a_full_spool_is_not_ready_until_the_ledger_made_room(folder: Path, made: Made) -> None:
    spool = Spool(folder, 0, 0, SEGMENT, 2 * SEGMENT)
    until_not_ready(spool, made)
    assert "not yet in the ledger" in (spool.fault or "")
    spool.maintain(10.0)
    assert not spool.ready()
    segments(folder)[0].unlink()
    spool.maintain(10.5)
    assert not spool.ready(), "tried again within a second"
    spool.maintain(11.0)
    assert spool.ready()
    assert spool.fault is None
    spool.close()


def test_other_workers_segments_count_towards_the_bound(folder: Path) -> None:
    first = Spool(folder, 0, 0, SEGMENT, 2 * SEGMENT)
    second = Spool(folder, 1, 0, SEGMENT, 2 * SEGMENT)
    third = Spool(folder, 2, 0, SEGMENT, 2 * SEGMENT)
    assert [spool.ready() for spool in (first, second, third)] == [True, True, False]
    first.close()
    segments(folder)[0].unlink()
    third.maintain(0.0)
    assert third.ready()
    second.close()
    third.close()


def test_a_full_disk_is_not_ready_and_clears_by_itself(
    folder: Path, made: Made, files_no_larger_than: Callable[[int], AbstractContextManager[None]]
) -> None:
    with files_no_larger_than(SEGMENT // 2):
        spool = Spool(folder, 0, 0, SEGMENT, 100 * SEGMENT)
        assert not spool.ready()
        assert not spool.append(made(1))
        assert list(folder.iterdir()) == []
    spool.maintain(0.0)
    assert spool.ready()
    with files_no_larger_than(SEGMENT // 2):
        until_not_ready(spool, made)
        spool.maintain(5.0)
        assert not spool.ready()
    spool.maintain(6.0)
    assert spool.ready()
    spool.close()


def test_the_other_half_is_kept_for_exchanges_under_way(folder: Path, made: Made) -> None:
    spool = Spool(folder, 0, 0, SEGMENT, SEGMENT)
    admitted = until_not_ready(spool, made)
    assert not spool.append(made(1000, outcome="refused"))
    more = 0
    while spool.append(made(2000 + more, outcome="client_left", metadata=BIG)):
        more += 1
    assert more >= admitted - 1
    assert len(spooled(folder)) == admitted + more
    spool.close()


def test_a_segment_torn_at_any_byte_gives_what_stood_before(spool: Spool, folder: Path, made: Made) -> None:
    for number in range(3):
        spool.append(made(number, name="x" * 50))
    spool.close()
    (path,) = segments(folder)
    content = path.read_bytes()
    with SegmentReader(path) as segment:
        places = [place for place, _ in segment.lines(0)]
    for torn in range(places[-1]):
        path.write_bytes(content[:torn].ljust(len(content), b"\0"))  # as after a power cut
        whole = sum(place <= torn for place in places)
        assert len(lines(path)) in {whole, whole + 1}  # the padding of a record may be what is missing
        path.write_bytes(content[:torn])
        assert len(lines(path)) in {whole, whole + 1}


def test_a_flipped_bit_ends_the_reading_and_says_so(spool: Spool, folder: Path, made: Made) -> None:
    for number in range(3):
        spool.append(made(number))
    spool.close()
    (path,) = segments(folder)
    content = bytearray(path.read_bytes())
    with SegmentReader(path) as segment:
        first, second, _ = [place for place, _ in segment.lines(0)]
    for at in range(first + 4, second - 8):
        content[at] ^= 1
        path.write_bytes(content)
        with SegmentReader(path) as segment:
            assert len(list(segment.lines(0))) == 1
            assert segment.damaged
        content[at] ^= 1


_WORKER = """
import os, signal, sys
from pathlib import Path
from keystile.audit.event import Event, event_id
from keystile.audit.spool import Spool
spool = Spool(Path(sys.argv[1]), 0, 0, 80_000, 8_000_000)
number = 0
while True:
    assert spool.append(Event(id=event_id(number, number), at=number, outcome="done"))
    number += 1
    os.write(1, b"%d\\n" % number)
"""


def test_every_event_acknowledged_before_kill_9_is_there_once(folder: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", _WORKER, str(folder)], stdout=subprocess.PIPE) as worker:
        assert worker.stdout
        for _ in range(2000):
            worker.stdout.readline()
        assert not finished(segments(folder)[-1])
        os.kill(worker.pid, signal.SIGKILL)
        told = 2000 + len(worker.stdout.read().splitlines())
    found = [event.at for event in spooled(folder)]
    assert found == list(range(len(found)))
    assert len(found) in {told, told + 1}
    assert all(finished(path) for path in segments(folder))


def test_a_reader_beside_a_writer_misses_nothing_and_sees_nothing_twice(folder: Path) -> None:
    places: dict[str, int] = {}
    found: list[int] = []

    def look() -> None:
        for path in segments(folder):
            with SegmentReader(path) as segment:
                for place, line in segment.lines(places.get(segment.serial, 0)):
                    places[segment.serial] = place
                    found.append(decode(line).at)

    with subprocess.Popen([sys.executable, "-c", _WORKER, str(folder)], stdout=subprocess.DEVNULL) as worker:
        while len(found) < 20_000:
            look()
        os.kill(worker.pid, signal.SIGKILL)
    look()  # a segment may have grown after a look at it, while the look at its successor came later
    assert sorted(found) == list(range(len(found)))
