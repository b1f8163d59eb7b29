from __future__ import annotations

import shutil
import sqlite3
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import pytest

from keystile.audit.event import Event, encode, event_id
from keystile.audit.ledger import Ledger
from keystile.audit.slots import Slots
from keystile.audit.spool import Spool, segments
from keystile.errors import StartRefused

pytestmark = pytest.mark.anyio

SEGMENT = 80_000
START = 1_790_000_000_000
HOME, ABROAD = "home00000000", "abroad000000"

Made = Callable[..., Event]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "ledger.db"


@asynccontextmanager
async def opened(path: Path, folder: Path) -> AsyncIterator[Ledger]:
    ledger = Ledger(path, folder)
    await ledger.open()
    try:
        yield ledger
    finally:
        await ledger.close()


@pytest.fixture
async def ledger(path: Path, folder: Path) -> AsyncIterator[Ledger]:
    async with opened(path, folder) as ledger:
        yield ledger


async def everything(ledger: Ledger, organization: str = HOME) -> list[Event]:
    found, cursor = await ledger.events(organization, limit=1000)
    assert cursor is None
    return found


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


async def test_an_event_is_there_once_however_often_it_is_ingested(
    ledger: Ledger, spool: Spool, path: Path, folder: Path, made: Made
) -> None:
    events = [made(number, organization=HOME) for number in range(10)]
    for event in events[:6]:
        spool.append(event)
    assert await ledger.ingest() == 6
    assert await ledger.ingest() == 0
    for event in events[6:]:
        spool.append(event)
    async with opened(path, folder) as restarted:
        assert await restarted.ingest() == 4
        assert await everything(restarted) == events[::-1]


async def test_an_event_is_visible_within_a_second(ledger: Ledger, spool: Spool, made: Made) -> None:
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(ledger.run)
        await everything(ledger)
        spool.append(made(1, organization=HOME))
        with anyio.fail_after(1):
            while not await everything(ledger):
                pass
        tasks.cancel_scope.cancel()


async def test_finished_segments_are_deleted_and_live_ones_kept(
    ledger: Ledger, spool: Spool, folder: Path, made: Made
) -> None:
    number = 0
    while len(segments(folder)) < 3:
        spool.append(made(number, organization=HOME, metadata="x" * 4000))
        number += 1
    await ledger.ingest()
    assert [path.name for path in segments(folder)] == ["0-0-1.seg", "0-0-2.seg"]
    spool.append(made(number, organization=HOME))
    await ledger.ingest()
    assert len(await everything(ledger)) == number + 1
    spool.close()
    await ledger.ingest()
    assert segments(folder) == []


async def test_a_segment_that_outlived_its_transaction_adds_nothing(
    ledger: Ledger, spool: Spool, folder: Path, tmp_path: Path, made: Made
) -> None:
    for number in range(5):
        spool.append(made(number, organization=HOME))
    spool.close()
    (segment,) = segments(folder)
    shutil.copy(segment, tmp_path / "kept")
    for _ in range(2):  # once with its place remembered, once with the place forgotten
        await ledger.ingest()
        assert segments(folder) == []
        shutil.copy(tmp_path / "kept", segment)
        await ledger.ingest()
        assert len(await everything(ledger)) == 5
    await ledger.ingest()
    assert segments(folder) == []


async def test_a_file_name_that_comes_again_is_another_segment(ledger: Ledger, folder: Path, made: Made) -> None:
    for run in range(3):
        spool = Spool(folder, 0, 0, SEGMENT, 100 * SEGMENT)
        assert segments(folder)[0].name == "0-0-0.seg"
        spool.append(made(run, organization=HOME))
        spool.close()
        await ledger.ingest()
    assert len(await everything(ledger)) == 3


async def test_what_the_database_refused_is_taken_in_later(
    ledger: Ledger, spool: Spool, path: Path, made: Made
) -> None:
    for number in range(5):
        spool.append(made(number, organization=HOME))
    spool.close()
    foreign = sqlite3.connect(path)
    foreign.execute("CREATE TRIGGER full BEFORE INSERT ON segment BEGIN SELECT RAISE(FAIL, 'disk full'); END")
    foreign.commit()
    with pytest.raises(sqlite3.Error, match="disk full"):
        await ledger.ingest()
    assert await everything(ledger) == [], "rows without their place would be half a transaction"
    foreign.execute("DROP TRIGGER full")
    foreign.commit()
    foreign.close()
    assert await ledger.ingest() == 5
    assert len(await everything(ledger)) == 5


async def test_the_loop_goes_on_when_the_database_works_again(
    ledger: Ledger, spool: Spool, path: Path, made: Made
) -> None:
    foreign = sqlite3.connect(path)
    foreign.execute("CREATE TRIGGER full BEFORE INSERT ON event BEGIN SELECT RAISE(FAIL, 'disk full'); END")
    foreign.commit()
    spool.append(made(1, organization=HOME))
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(ledger.run)
        for _ in range(3):
            assert await everything(ledger) == []
        foreign.execute("DROP TRIGGER full")
        foreign.commit()
        foreign.close()
        with anyio.fail_after(10):
            while not await everything(ledger):
                pass
        tasks.cancel_scope.cancel()


async def test_a_damaged_segment_is_kept_aside_and_its_whole_lines_count(
    ledger: Ledger, spool: Spool, folder: Path, made: Made
) -> None:
    for number in range(3):
        spool.append(made(number, organization=HOME, name=f"tool {number}"))
    (segment,) = segments(folder)
    content = segment.read_bytes()
    with segment.open("r+b") as file:
        file.write(content.replace(b"tool 1", b"tool x"))
    await ledger.ingest()
    assert segments(folder) == [segment], "a live one is waited for"
    spool.close()
    await ledger.ingest()
    assert [event.name for event in await everything(ledger)] == ["tool 0"]
    assert names(folder) == ["0-0-0.damaged"]


async def test_what_a_dead_worker_left_open_is_one_event_however_often_it_is_met(
    ledger: Ledger, folder: Path, tmp_path: Path, made: Made
) -> None:
    slots = Slots(folder, 0, 0, 100)
    opened = [made(number, organization=HOME, outcome="interrupted", name=f"tool {number}") for number in range(3)]
    for event in opened:
        slots.fill(event)
    assert await ledger.ingest() == 0
    assert await everything(ledger) == [], "its worker lives"
    slots.close()
    path = folder / "0-0-0.slots"
    shutil.copy(path, tmp_path / "kept")
    for _ in range(2):
        await ledger.ingest()
        assert await everything(ledger) == opened[::-1]
        assert names(folder) == []
        shutil.copy(tmp_path / "kept", path)


@pytest.mark.parametrize("events", [1, 4500])
async def test_an_exchange_whose_finished_line_stands_in_the_spool_keeps_it(
    ledger: Ledger, folder: Path, made: Made, events: int
) -> None:
    spool, slots = Spool(folder, 0, 0, 1_000_000, 100_000_000), Slots(folder, 0, 0, 10_000)
    for number in range(events):
        slots.fill(made(number, organization=HOME, outcome="interrupted"))
        spool.append(made(number, organization=HOME, outcome="done"))
    slots.fill(made(events, organization=HOME, outcome="interrupted"))
    slots.close()  # the locks of a dead process go one after another
    await ledger.ingest()
    spool.close()
    await ledger.ingest()
    found: list[Event] = []
    cursor: str | None = None
    while len(found) <= events:
        page, cursor = await ledger.events(HOME, limit=1000, cursor=cursor)
        found += page
    assert [event.outcome for event in found] == ["interrupted", *["done"] * events]
    assert names(folder) == []


async def test_a_slot_file_outlives_the_transaction_that_failed(
    ledger: Ledger, folder: Path, path: Path, made: Made
) -> None:
    slots = Slots(folder, 0, 0, 100)
    slots.fill(made(1, organization=HOME, outcome="interrupted"))
    slots.close()
    foreign = sqlite3.connect(path)
    foreign.execute("CREATE TRIGGER full BEFORE INSERT ON event BEGIN SELECT RAISE(FAIL, 'disk full'); END")
    foreign.commit()
    with pytest.raises(sqlite3.Error, match="disk full"):
        await ledger.ingest()
    assert len(names(folder)) == 1
    foreign.execute("DROP TRIGGER full")
    foreign.commit()
    foreign.close()
    await ledger.ingest()
    assert (len(await everything(ledger)), names(folder)) == (1, [])


async def test_a_line_that_is_no_event_holds_nothing_up(ledger: Ledger, spool: Spool, folder: Path, made: Made) -> None:
    spool.append(made(1, organization=HOME))
    assert spool._present is not None
    spool._present.take(b"\xc1 not msgpack")
    spool.append(made(2, organization=HOME))
    spool.close()
    await ledger.ingest()
    assert len(await everything(ledger)) == 2
    assert names(folder) == []


async def test_pages_hold_every_event_once_newest_first_under_every_filter(
    ledger: Ledger, spool: Spool, made: Made
) -> None:
    events = [
        made(
            number * 0x9E3779B97F4A7C15 % (1 << 74),  # ids of one millisecond in no order
            at=START + number * 7 % 20,
            organization=(HOME, ABROAD)[number % 3 % 2],
            connection=("con1", "con2", None)[number * 5 % 7 % 3],
            trace=("t1", "t2", "t3")[number * 3 % 11 % 3],
        )
        for number in range(300)
    ]
    for event in events:
        spool.append(event)
    await ledger.ingest()
    newest_first = sorted(events, key=lambda event: event.id, reverse=True)
    for connection in ("con1", "absent", None):
        for trace in ("t1", None):
            for since, until in ((None, None), (START + 5, None), (None, START + 5), (START + 3, START + 11)):
                expected = [
                    event
                    for event in newest_first
                    if event.organization == HOME
                    and connection in {None, event.connection}
                    and trace in {None, event.trace}
                    and (since is None or event.at >= since)
                    and (until is None or event.at < until)
                ]
                found: list[Event] = []
                cursor: str | None = None
                while True:
                    page, cursor = await ledger.events(
                        HOME,
                        among=connection and {connection},
                        trace=trace,
                        since=since,
                        until=until,
                        limit=7,
                        cursor=cursor,
                    )
                    found += page
                    if cursor is None:
                        break
                    assert len(page) == 7
                assert found == expected


async def test_a_page_among_some_connections_holds_theirs_only(ledger: Ledger, spool: Spool, made: Made) -> None:
    events = [
        made(number, organization=HOME, connection=("con1", "con2", "con3", None)[number % 4]) for number in range(40)
    ]
    for event in events:
        spool.append(event)
    await ledger.ingest()
    expected = [event for event in events[::-1] if event.connection in {"con1", "con3"}]
    first, cursor = await ledger.events(HOME, among={"con1", "con3", "absent"}, limit=15)
    rest, none = await ledger.events(HOME, among={"con1", "con3", "absent"}, limit=15, cursor=cursor)
    assert first + rest == expected
    assert none is None
    assert await ledger.events(HOME, among=()) == ([], None)
    assert len((await ledger.events(HOME, among={"con1"}))[0]) == 10


async def test_a_slug_leads_to_every_connection_that_was_called_by_it(ledger: Ledger, spool: Spool, made: Made) -> None:
    for number, connection, slug, organization in (
        (1, "con1", "one", HOME),
        (2, "con2", "one", HOME),  # the first was deleted, and another made under its slug
        (3, "con3", "two", HOME),
        (4, "con4", "one", ABROAD),
        (5, None, "one", HOME),  # refused before anything was known
    ):
        spool.append(made(number, connection=connection, slug=slug, organization=organization))
    await ledger.ingest()
    assert await ledger.called(HOME, "one") == {"con1", "con2"}
    assert await ledger.called(HOME, "three") == set()


async def test_a_cursor_of_any_text_is_harmless(ledger: Ledger, spool: Spool, made: Made) -> None:
    spool.append(made(1, organization=HOME))
    await ledger.ingest()
    for cursor in ("", "'; DROP TABLE event; --", "\x00", "zzzz"):
        found, _ = await ledger.events(HOME, cursor=cursor)
        assert len(found) <= 1


async def test_every_filter_reads_an_index(ledger: Ledger, path: Path) -> None:
    asked: list[str] = []
    await ledger._call(lambda: ledger._book._database.set_trace_callback(asked.append))
    for filters in ({}, {"among": {"c"}}, {"trace": "t"}, {"among": {"c"}, "trace": "t"}):
        await ledger.events("o", **filters, since=5, cursor="x")
    assert len(asked) == 4
    database = sqlite3.connect(path)
    for statement in asked:
        plan = " ".join(row[3] for row in database.execute(f"EXPLAIN QUERY PLAN {statement}"))
        assert "SEARCH event USING INDEX" in plan
        assert "TEMP B-TREE" not in plan
    database.close()


async def test_last_used_is_the_newest_time_of_each_key(ledger: Ledger, spool: Spool, made: Made) -> None:
    for number, key, organization in ((5, "a", HOME), (3, "a", HOME), (9, "a", ABROAD), (4, "b", HOME)):
        spool.append(made(number, key=key, organization=organization))
    await ledger.ingest()
    spool.append(made(2, key="b", organization=HOME))
    spool.append(made(8, key=None, organization=HOME))
    await ledger.ingest()
    assert await ledger.last_used(HOME, ("a", "b", "absent")) == {"a": START + 5, "b": START + 4}
    assert await ledger.last_used(HOME, ("b",)) == {"b": START + 4}
    assert await ledger.last_used(HOME, ()) == {}


async def test_an_event_of_no_organization_is_kept_and_shown_to_none(
    ledger: Ledger, spool: Spool, path: Path, made: Made
) -> None:
    spool.append(made(1, outcome="refused", refusal="key_missing"))
    await ledger.ingest()
    assert await everything(ledger) == []
    database = sqlite3.connect(path)
    assert database.execute("SELECT count(*) FROM event").fetchone() == (1,)
    database.close()


async def test_a_backlog_is_taken_in_by_batches_that_let_queries_through(
    ledger: Ledger, folder: Path, made: Made
) -> None:
    spool = Spool(folder, 0, 0, 1_000_000, 100_000_000)
    count = 12_000
    for number in range(count):
        assert spool.append(made(number, organization=HOME))
    spool.close()
    seen: list[int] = []
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(ledger.ingest)
        while not seen or seen[-1] < count:
            page, _ = await ledger.events(HOME, limit=count)
            seen.append(len(page))
    assert any(0 < found < count for found in seen)
    assert segments(folder) == []


async def test_a_ledger_of_a_newer_program_is_not_opened(path: Path, folder: Path) -> None:
    database = sqlite3.connect(path)
    database.execute("PRAGMA user_version = 99")
    database.close()
    ledger = Ledger(path, folder)
    with pytest.raises(StartRefused, match="newer"):
        await ledger.open()
    await ledger.close()


async def test_the_ledger_holds_the_lines_as_they_were_written(
    ledger: Ledger, spool: Spool, path: Path, made: Made
) -> None:
    event = made(1, organization=HOME, user="alice")
    spool.append(event)
    await ledger.ingest()
    database = sqlite3.connect(path)
    assert database.execute("SELECT id, line FROM event").fetchall() == [(event_id(START + 1, 1), encode(event))]
    database.close()
