"""The ledger: the trail in a database of its own. It reads the spools, and answers what the API asks of the trail.

Guarantees: each event of a spool is in the ledger exactly once, whenever this process or the machine died: rows and
the place in the segment are one transaction, and a row's id decides. What a dead worker left open in its slots is
taken in behind all that stands in its segments, so that an exchange whose finished line is there keeps that line.
A file is deleted only after the transaction that holds its last event is on disk (synchronous=FULL), and only when
nobody can write to it any more (a lock that died with its worker says so; see `spool`). An event is visible within a
second of being appended.

Rules: a row keeps the spool's line as it was written, and beside it only what is asked for by index. The order is
that of the ids (UUIDv7: by time; events of one millisecond in an order that is arbitrary and fixed), which is also
how `since` and `until` are bounded and how pages continue. The driver is used directly, in a thread of its own:
SQLAlchemy's parameter handling costs more per row than the whole budget of an event. All SQL stands in `_Book`, in
forms that PostgreSQL shares, pragmas apart. The schema is three tables and a place: a version number, no migrations.
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable, Collection, Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from heapq import nlargest
from itertools import chain
from pathlib import Path
from typing import TypeVar

import msgspec
import structlog

from keystile.audit.event import Event, decode, first_id
from keystile.audit.slots import abandoned, left_open
from keystile.audit.spool import SegmentReader, segments
from keystile.errors import StartRefused

_log = structlog.get_logger(__name__)

T = TypeVar("T")

_BATCH = 2000  # events in one transaction; a query waits for one batch at most
_PAUSE_SECONDS = 0.2
_RETRY_SECONDS = 1.0
_VERSION = 1
_PRAGMAS = ("busy_timeout=5000", "journal_mode=WAL", "synchronous=FULL", "cache_size=-16000")
_SCHEMA = (
    """CREATE TABLE IF NOT EXISTS event (
        organization TEXT NOT NULL, id TEXT NOT NULL, connection TEXT, trace TEXT, line BLOB NOT NULL,
        PRIMARY KEY (organization, id))""",
    "CREATE INDEX IF NOT EXISTS event_by_connection ON event (organization, connection, id)",
    "CREATE INDEX IF NOT EXISTS event_by_trace ON event (organization, trace, id)",
    """CREATE TABLE IF NOT EXISTS last_used (
        organization TEXT NOT NULL, api_key TEXT NOT NULL, at BIGINT NOT NULL, PRIMARY KEY (organization, api_key))""",
    "CREATE TABLE IF NOT EXISTS called (organization TEXT, slug TEXT, id TEXT, PRIMARY KEY (organization, slug, id))",
    "CREATE TABLE IF NOT EXISTS segment (serial TEXT PRIMARY KEY, place BIGINT NOT NULL)",
)
_INSERT_EVENT = "INSERT INTO event VALUES (?, ?, ?, ?, ?) ON CONFLICT DO NOTHING"
_USE_KEY = """INSERT INTO last_used VALUES (?, ?, ?)
    ON CONFLICT (organization, api_key) DO UPDATE SET at = excluded.at WHERE excluded.at > last_used.at"""
_CALL = "INSERT INTO called VALUES (?, ?, ?) ON CONFLICT DO NOTHING"
_REACH = "INSERT INTO segment VALUES (?, ?) ON CONFLICT (serial) DO UPDATE SET place = excluded.place"


class _Indexed(msgspec.Struct, frozen=True, kw_only=True, array_like=True, gc=False):
    """The head of an event's line: what the ledger indexes. Decoding stops there."""

    id: str
    at: int
    outcome: str
    organization: str | None = None
    connection: str | None = None
    key: str | None = None
    trace: str | None = None
    slug: str | None = None


_decode_indexed = msgspec.msgpack.Decoder(_Indexed).decode


class Ledger:
    """The trail, for asyncio. Everything happens in one thread, one thing at a time."""

    def __init__(self, path: Path, spool: Path) -> None:
        self._book = _Book(path, spool)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="ledger")

    async def open(self) -> None:
        """Open or make the database. Raises StartRefused when a newer program made it."""
        await self._call(self._book.open)

    async def close(self) -> None:
        """Close it. Stop `run` first."""
        await self._call(self._book.close)
        self._thread.shutdown(wait=False)

    async def ingest(self) -> int:
        """Take in everything that stands in the spools now, and say how many lines that was.

        Raises sqlite3.Error or OSError when the database or the spool folder fails; what was taken in stays so. Raises
        RuntimeError when another file has taken the database's place.
        """
        taken = 0
        while (batch := await self._call(self._book.ingest)) == _BATCH:
            taken += batch
        return taken + batch

    async def run(self) -> None:
        """Ingest for ever, until cancelled. A database that fails or is away is tried again; the spool waits.

        Raises RuntimeError as `ingest` does.
        """
        failing = False
        while True:
            try:
                await self.ingest()
            except (sqlite3.Error, OSError) as error:
                if not failing:
                    _log.error("the ledger cannot be written; events wait in the spool", reason=str(error))
                failing = True
                await asyncio.sleep(_RETRY_SECONDS)
            else:
                if failing:
                    _log.warning("the ledger is written again")
                failing = False
                await asyncio.sleep(_PAUSE_SECONDS)

    async def events(  # noqa: PLR0913 — the filters of one query, by name
        self,
        organization: str,
        *,
        among: Collection[str] | None = None,
        trace: str | None = None,
        since: int | None = None,
        until: int | None = None,
        limit: int = 50,
        cursor: str | None = None,
    ) -> tuple[list[Event], str | None]:
        """One page, newest first, and the cursor of the next one, if there is more: an event's id; any text is safe.

        `among` are ids of connections, `None` means all. Times are milliseconds; `since` is included, `until` is not.
        """
        bounds = [("id < ?", cursor), ("trace = ?", trace)]
        bounds.append(("id >= ?", None if since is None else first_id(since)))
        bounds.append(("id < ?", None if until is None else first_id(until)))
        asked = [("organization = ?", organization), *((sql, value) for sql, value in bounds if value is not None)]
        lines = await self._call(lambda: self._book.lines(asked, among, limit + 1))
        found = [decode(line) for line in lines[:limit]]
        return found, found[-1].id if len(lines) > limit else None

    async def called(self, organization: str, slug: str) -> set[str]:
        """The ids of the connections that were called by this slug, deleted ones too."""
        return await self._call(lambda: self._book.called(organization, slug))

    async def last_used(self, organization: str, keys: Collection[str]) -> dict[str, int]:
        """When each of these API keys of the organization was last shown: key id → milliseconds."""
        return await self._call(lambda: self._book.last_used(organization, keys))

    async def _call(self, step: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, step)

    def __repr__(self) -> str:
        return f"<Ledger {self._book!r}>"


class _Book:
    """The same, for the thread."""

    def __init__(self, path: Path, spool: Path) -> None:
        self._path = path
        self._spool = spool
        self._places: dict[str, int] = {}  # segment serial → where reading goes on; as committed
        self._taken = 0

    def open(self) -> None:
        self._database = sqlite3.connect(self._path, isolation_level=None)
        for pragma in _PRAGMAS:
            self._database.execute(f"PRAGMA {pragma}")
        (version,) = self._database.execute("PRAGMA user_version").fetchone()
        if version > _VERSION:
            raise StartRefused(f"{self._path} was written by a newer version of Keystile. Start that one.")
        with self._transaction():
            for statement in _SCHEMA:
                self._database.execute(statement)
            self._database.execute(f"PRAGMA user_version={_VERSION}")
        self._file = _identity(self._path)
        self._places = dict(self._database.execute("SELECT serial, place FROM segment"))

    def close(self) -> None:
        self._database.close()

    def ingest(self) -> int:
        """One batch: lines from the spools, oldest segments first. Fewer than `_BATCH`: there is no more now."""
        lines: list[bytes] = []
        places: dict[str, int] = {}
        spent: list[tuple[Path, bool]] = []
        present: set[str] = set()
        left = abandoned(self._spool)  # asked before the segments are read: the dead add nothing to them
        for path in segments(self._spool):
            with SegmentReader(path) as segment:
                present.add(segment.serial)
                place = self._places.get(segment.serial, 0)
                if len(lines) == _BATCH:
                    continue
                for reached, line in segment.lines(place):
                    lines.append(line)
                    places[segment.serial] = reached
                    if len(lines) == _BATCH:
                        break
                else:
                    if segment.finished:
                        spent.append((path, segment.damaged))
        taken = len(lines)
        if taken < _BATCH:
            interrupted = [line for path in left for line in left_open(path)]
            if interrupted:
                _log.warning("workers died with exchanges under way", exchanges=len(interrupted))
            lines += interrupted
            spent += [(path, False) for path in left]
        gone = self._places.keys() - present
        if lines or gone:
            self._write(lines, places, gone)
        for path, damaged in spent:
            _discard(path, damaged=damaged)
        return taken

    def _write(self, lines: list[bytes], places: dict[str, int], gone: set[str]) -> None:
        if _identity(self._path) != self._file:
            # SQLite would go on writing to a file that has no name any more. A restart opens the one that is there.
            raise RuntimeError(f"{self._path} is another file than the one that was opened")
        rows: list[tuple[str, str, str | None, str | None, bytes]] = []
        used: dict[tuple[str, str], int] = {}
        called: set[tuple[str, str, str]] = set()
        for line in lines:
            try:
                event = _decode_indexed(line)
            except msgspec.MsgspecError:
                _log.error("a line of the spool is whole and not an event; skipped", bytes=len(line))
                continue
            organization = event.organization or ""
            rows.append((organization, event.id, event.connection, event.trace, line))
            if event.slug and event.connection:
                called.add((organization, event.slug, event.connection))
            if event.key is not None:
                used[organization, event.key] = max(event.at, used.get((organization, event.key), 0))
        with self._transaction():
            self._database.executemany(_INSERT_EVENT, rows)
            self._database.executemany(_USE_KEY, [(*who, at) for who, at in used.items()])
            self._database.executemany(_CALL, called)
            self._database.executemany(_REACH, list(places.items()))
            self._database.executemany("DELETE FROM segment WHERE serial = ?", [(serial,) for serial in gone])
        self._places = {serial: at for serial, at in (self._places | places).items() if serial not in gone}
        self._taken += len(rows)

    def lines(self, asked: Sequence[tuple[str, str]], among: Collection[str] | None, limit: int) -> list[bytes]:
        if among is None:
            return [line for _, line in self._newest(asked, limit)]
        # One walk of the index for each connection: it never reads more than a page, whatever else is in the trail.
        each = (self._newest([*asked, ("connection = ?", connection)], limit) for connection in among)
        return [line for _, line in nlargest(limit, chain.from_iterable(each))]

    def _newest(self, asked: Sequence[tuple[str, str]], limit: int) -> Iterator[tuple[str, bytes]]:
        where = " AND ".join(sql for sql, _ in asked)
        query = f"SELECT id, line FROM event WHERE {where} ORDER BY id DESC LIMIT ?"  # noqa: S608 — constants only
        return self._database.execute(query, [*(value for _, value in asked), limit])

    def called(self, organization: str, slug: str) -> set[str]:
        query = "SELECT id FROM called WHERE organization = ? AND slug = ?"
        return {row[0] for row in self._database.execute(query, (organization, slug))}

    def last_used(self, organization: str, keys: Collection[str]) -> dict[str, int]:
        query = "SELECT at FROM last_used WHERE organization = ? AND api_key = ?"
        return {key: at for key in keys for (at,) in self._database.execute(query, (organization, key))}

    @contextmanager
    def _transaction(self) -> Generator[None]:
        self._database.execute("BEGIN IMMEDIATE")
        try:
            yield
            self._database.execute("COMMIT")
        except BaseException:
            if self._database.in_transaction:  # a full disk makes SQLite roll back by itself
                self._database.execute("ROLLBACK")
            raise

    def __repr__(self) -> str:
        return f"{self._path} taken={self._taken} segments={len(self._places)}"


def _identity(path: Path) -> tuple[int, int]:
    found = path.stat()  # FileNotFoundError is an OSError: gone, and waited for
    return found.st_dev, found.st_ino


def _discard(path: Path, *, damaged: bool) -> None:
    """A finished segment is in the ledger. One that ends in a broken record is kept aside for the operator."""
    if damaged:
        path.rename(path.with_suffix(".damaged"))
        _log.error("a spool segment ends in a broken record; what stood before it is in the ledger", segment=path.name)
    else:
        path.unlink()
