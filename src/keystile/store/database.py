"""The configuration database: connections to it, transactions on it, its schema.

Guarantees: one writer at a time; a write is committed whole or not at all, and once its commit has begun, it and
what must follow it run to their end even if the caller is cancelled. This is the only file that knows SQLite.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from alembic import command
from alembic.config import Config as AlembicConfig
from alembic.util.exc import CommandError
from sqlalchemy import URL, Connection, event, make_url
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncTransaction, create_async_engine

from keystile.errors import StartRefused

_MIGRATIONS = Path(__file__).parent / "migrations"
_WRITES = "keystile_writes"
# synchronous=FULL: a committed change survives power loss. secure_delete: a destroyed version's bytes are overwritten.
_PRAGMAS = ("busy_timeout=5000", "journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON", "secure_delete=ON")


def sqlite(path: Path) -> URL:
    """The URL of a SQLite file, whatever characters its path has."""
    return URL.create("sqlite+aiosqlite", database=str(path))


def _nothing() -> None:
    """What follows most commits."""


class Database:
    """One database by its URL. Reading is many, writing is one at a time."""

    def __init__(self, url: URL | str) -> None:
        self._url = make_url(url)
        self._writer = asyncio.Lock()
        # hide_parameters: an exception's text is logged, and parameters hold digests and sealed bytes.
        self._engine = create_async_engine(self._url, hide_parameters=True)
        if self._url.get_backend_name() == "sqlite":
            event.listen(self._engine.sync_engine, "connect", _prepare_sqlite)
            event.listen(self._engine.sync_engine, "begin", _begin_sqlite)

    def __repr__(self) -> str:
        return f"<Database {self._url.render_as_string(hide_password=True)}>"

    async def migrate(self) -> None:
        """Bring the schema to this program's; raises StartRefused when a newer one wrote it, or it cannot be used."""
        try:
            async with self.write() as connection:
                await connection.run_sync(_upgrade)
        except CommandError as error:
            raise StartRefused(
                f"The database's schema is not one this version of Keystile knows ({error}). Start a newer one."
            ) from error
        except DBAPIError as error:
            raise StartRefused(f"{self!r} cannot be used: {error.orig}.") from error

    async def close(self) -> None:
        """Close every connection."""
        await self._engine.dispose()

    @asynccontextmanager
    async def read(self) -> AsyncGenerator[AsyncConnection]:
        """A connection that sees one committed state from its first statement on."""
        async with self._engine.connect() as connection:
            yield connection

    @asynccontextmanager
    async def write(self, after_commit: Callable[[], None] = _nothing) -> AsyncGenerator[AsyncConnection]:
        """A transaction: committed when the block ends, rolled back when it raises.

        `after_commit` runs right after the commit, before the next writer begins and before this returns.
        """
        async with self._writer, self._engine.connect() as connection:
            await connection.execution_options(**{_WRITES: True})
            transaction = await connection.begin()
            yield connection
            await _to_the_end(transaction, after_commit)


async def _to_the_end(transaction: AsyncTransaction, after_commit: Callable[[], None]) -> None:
    """Commit and follow, in a task of their own: a cancelled caller hears of it only when both are done."""

    async def finish() -> None:
        await transaction.commit()
        after_commit()

    finishing = asyncio.ensure_future(finish())
    cancelled: asyncio.CancelledError | None = None
    while not finishing.done():
        try:
            await asyncio.wait({finishing})
        except asyncio.CancelledError as error:
            cancelled = error
    finishing.result()
    if cancelled is not None:
        raise cancelled


def _prepare_sqlite(connection: Any, _record: object) -> None:
    connection.isolation_level = None  # the driver begins nothing by itself; _begin_sqlite does
    cursor = connection.cursor()
    try:
        for pragma in _PRAGMAS:
            cursor.execute(f"PRAGMA {pragma}")
        cursor.close()
    except BaseException:
        connection.close()  # the pool does not know of it yet, and its thread would outlive the loop
        raise


def _begin_sqlite(connection: Connection) -> None:
    # IMMEDIATE takes the write lock at once: a transaction that read first cannot fail half-way for want of it.
    writes = connection.get_execution_options().get(_WRITES)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")


def _upgrade(connection: Connection) -> None:
    config = AlembicConfig()
    config.set_main_option("script_location", str(_MIGRATIONS).replace("%", "%%"))
    config.attributes["connection"] = connection
    command.upgrade(config, "head")
