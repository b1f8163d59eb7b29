"""One configuration change: its transaction, its generation, its record on the feed, the word. Then the answer.

Guarantees: when `Publisher.change()` has returned, every request that starts afterwards is judged by that change, in
every worker (promise 2). What was not committed is never published. Changes reach the feed in the order of their
generations, since the writer's turn spans commit and append.

Rule: a change that was committed and could not be appended leaves the node older than its database. The caller gets
the error, `broken` is set, no further change is taken, and the control process ends; started again, it publishes a
snapshot of what was committed before it serves.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Iterator
from contextlib import asynccontextmanager
from typing import Protocol

import sqlalchemy as sa
import structlog
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncConnection

from keystile.errors import Unavailable
from keystile.feed import FeedWriter
from keystile.model import Change, DataKey, Secret
from keystile.store import connections, counters, keys
from keystile.store.database import Database

_log = structlog.get_logger(__name__)


class Transaction:
    """One change being made: a connection to read and write by, and the feed records that its commit publishes."""

    def __init__(self, connection: AsyncConnection, node_key: Secret) -> None:
        self.connection = connection
        self.node_key = node_key
        self._changes: list[Change] = []

    def __repr__(self) -> str:
        return f"<Transaction changes={len(self._changes)}>"

    def put(self, change: Change) -> None:
        """Publish this when the transaction commits."""
        self._changes.append(change)

    @property
    def changes(self) -> tuple[Change, ...]:
        """What was put, in order."""
        return tuple(self._changes)


class DataKeys(Protocol):
    """What the publisher asks of the vault."""

    def data_keys(self, node_key: bytes) -> list[DataKey]:
        """Every data key, sealed for the node."""
        ...


class Publisher:
    """The one way to change configuration while a node runs. `broken` is set when the control process must end."""

    def __init__(self, database: Database, feed: FeedWriter, vault: DataKeys, node_key: bytes) -> None:
        self.broken = asyncio.Event()
        self._database = database
        self._feed = feed
        self._vault = vault
        self._node_key = Secret(node_key)
        self._swollen = asyncio.Event()

    def __repr__(self) -> str:
        return f"<Publisher {'broken' if self.broken.is_set() else 'ready'} {self._feed!r}>"

    async def start(self) -> None:
        """Publish everything that is committed, before serving: nothing is left to do where the last process did.

        Raises OSError when the feed cannot be written.
        """
        await self._snapshot(resume=True)

    async def run(self) -> None:
        """Put a fresh snapshot in place of the feed whenever it has grown. Runs until it is cancelled.

        Failing harms nothing: the old feed is whole, and the next change asks again.
        """
        while True:
            await self._swollen.wait()
            self._swollen.clear()
            try:
                await self._snapshot(resume=False)
            except (OSError, SQLAlchemyError) as error:
                _log.warning("the feed could not be rewritten", reason=type(error).__name__)

    @asynccontextmanager
    async def change(self) -> AsyncGenerator[Transaction]:
        """A transaction; when the block ends it is committed and published, when it raises it never was.

        Raises Unavailable when an earlier change could not be published.
        """
        due: list[tuple[int, tuple[Change, ...]]] = []
        async with self._database.write(lambda: self._append(due)) as connection:
            if self.broken.is_set():
                raise Unavailable("The configuration cannot be published; the control process is restarting.")
            transaction = Transaction(connection, self._node_key)
            yield transaction
            if transaction.changes:
                due.append((await counters.advance(connection, counters.GENERATION), transaction.changes))
        if self._feed.swollen:
            self._swollen.set()

    def _append(self, due: list[tuple[int, tuple[Change, ...]]]) -> None:
        for generation, changes in due:
            try:
                self._feed.append(generation, changes)
            except Exception:
                self.broken.set()
                _log.critical("a committed change could not be published; ending", generation=generation)
                raise

    async def _snapshot(self, *, resume: bool) -> None:
        # The writer's turn: nothing may be committed between the generation read here and the feed put in place.
        async with self._database.write() as connection:
            generation = await counters.current(connection, counters.GENERATION)
            if not (resume and self._feed.resumed(generation)):
                await connection.run_sync(lambda sync: self._feed.snapshot(generation, self._everything(sync)))

    def _everything(self, connection: sa.Connection) -> Iterator[Change]:
        yield from self._vault.data_keys(self._node_key.reveal())
        yield from keys.every(connection)
        for published in connections.every_published(connection):
            if published.sealed == b"":
                _log.error("a credential is not one that Keystile has sealed", connection=published.connection.id)
            yield published
