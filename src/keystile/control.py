"""The control process: the only writer of configuration, the keeper of the keys, the reader of the spools.

Started by the supervisor as `python -m keystile.control <fd>`. It publishes what is committed before it serves, serves
the REST API on `run/control.sock` and the host operator's on `run/host.sock`, and says so in the generation word. It
ends on SIGTERM, when the supervisor's pipe closes, and when it could not keep its promises (a change that was committed
and not published, a ledger that stopped): the supervisor starts it again, and workers go on meanwhile.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
from collections.abc import Callable, Generator
from contextlib import AsyncExitStack, contextmanager
from pathlib import Path

import structlog
import uvicorn
from litestar.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol

from keystile import keys, log, node
from keystile.api import app, host
from keystile.api.answers import logged
from keystile.api.house import House
from keystile.audit.ledger import Ledger
from keystile.errors import StartRefused
from keystile.feed import CONTROL_SERVES, FeedWriter, Word
from keystile.node import Boot, Folders
from keystile.publish import Publisher
from keystile.store.database import Database, sqlite
from keystile.vault import Vault

GRACE_SECONDS = 3  # the supervisor's patience is 5
BACKLOG = 1024
_HEAD_ROOM = 4096  # what a worker adds to a head it relays

_log = structlog.get_logger(__name__)


class Served(uvicorn.Server):
    """uvicorn without its own signal handlers, since this process has one way to end. Says when it accepts."""

    def __init__(self, config: uvicorn.Config, accepts: Callable[[], None]) -> None:
        super().__init__(config)
        self._accepts = accepts

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begin to accept."""
        await super().startup(sockets)
        self._accepts()

    @contextmanager
    def capture_signals(self) -> Generator[None]:
        """Nothing is captured."""
        yield


class Control:
    """Everything of the control process, built and taken down in one place."""

    def __init__(self, boot: Boot) -> None:
        self._config = boot.config
        self._node_key = boot.node_key
        self._folders = Folders(boot.config.data_dir)
        self._stop = asyncio.Event()
        self._failed = False

    def __repr__(self) -> str:
        return f"<Control {self._folders.data}>"

    def stop(self) -> None:
        """End soon: what runs is finished first, within `GRACE_SECONDS`."""
        self._stop.set()

    async def run(self) -> int:
        """Serve until told to stop; the exit code. Raises StartRefused."""
        config, folders = self._config, self._folders
        word = Word(folders.word)
        database = Database(sqlite(folders.database))
        ledger = Ledger(folders.ledger, folders.spool)
        async with AsyncExitStack() as built:
            built.push_async_callback(database.close)
            await database.migrate()
            vault = await Vault.open(database, keys.root_key(config, folders))
            publisher = Publisher(database, FeedWriter(folders, self._node_key, word), vault, self._node_key)
            await publisher.start()
            await ledger.open()
            built.push_async_callback(ledger.close)
            house = House(config, database, vault, publisher, ledger)
            listeners: list[tuple[ASGIApp, Path, type[H11Protocol]]] = [
                (app.application(house), folders.control_socket, H11Protocol),
                (host.application(house), folders.host_socket, host.PeerProtocol),
            ]
            await self._serve(house, listeners, word)
            await ledger.ingest()  # what the workers wrote at their end
        return 1 if self._failed else 0

    async def _serve(self, house: House, listeners: list[tuple[ASGIApp, Path, type[H11Protocol]]], word: Word) -> None:
        waiting = len(listeners)

        def accepts() -> None:
            nonlocal waiting
            waiting -= 1
            word.cells[CONTROL_SERVES] = waiting == 0

        servers = [Served(self._uvicorn(application, protocol), accepts) for application, _, protocol in listeners]
        serving: list[asyncio.Task[object]] = [
            asyncio.create_task(server.serve(sockets=[listening(path)]), name=path.name)
            for server, (_, path, _) in zip(servers, listeners, strict=True)
        ]
        watching: list[asyncio.Task[object]] = [
            asyncio.create_task(house.ledger.run(), name="ledger"),
            asyncio.create_task(house.publisher.broken.wait(), name="publisher"),
            asyncio.create_task(house.publisher.run(), name="feed"),
        ]
        for task in (*serving, *watching):
            task.add_done_callback(self._ended)
        await self._stop.wait()
        word.cells[CONTROL_SERVES] = 0
        for server in servers:
            server.should_exit = True
        await asyncio.gather(*serving, return_exceptions=True)
        for task in watching:
            task.cancel()
        await asyncio.gather(*watching, return_exceptions=True)

    def _ended(self, task: asyncio.Task[object]) -> None:
        """None of these ends by itself: if one does, so does the process."""
        if self._stop.is_set():
            return
        error = None if task.cancelled() else task.exception()
        _log.critical("a part of the control process ended", part=task.get_name(), id=error and logged(error))
        self._failed = True
        self._stop.set()

    def _uvicorn(self, application: ASGIApp, protocol: type[H11Protocol]) -> uvicorn.Config:
        return uvicorn.Config(
            application,  # type: ignore[arg-type]
            http=protocol,
            ws="none",
            lifespan="off",
            log_config=None,
            log_level="critical",
            access_log=False,
            server_header=False,
            proxy_headers=False,
            timeout_graceful_shutdown=GRACE_SECONDS,
            timeout_keep_alive=75,
            backlog=BACKLOG,
            h11_max_incomplete_event_size=self._config.limits.head_bytes + _HEAD_ROOM,
        )


def listening(path: Path) -> socket.socket:
    """A unix socket at `path`, for this user alone, in place of what an earlier process left."""
    path.unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind(node.reachable(path))
    path.chmod(0o600)
    listener.listen(BACKLOG)
    listener.setblocking(False)
    return listener


async def serve(boot: Boot, pipe: int) -> int:
    """Run the control process under its supervisor's pipe; the exit code."""
    control = Control(boot)
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, control.stop)

    def closed() -> None:
        # Nothing more is ever sent here, so readable means closed.
        loop.remove_reader(pipe)
        control.stop()

    loop.add_reader(pipe, closed)
    try:
        return await control.run()
    except StartRefused as error:
        _log.critical(error.message)
        return node.REFUSED
    except Exception as error:  # noqa: BLE001 — the border: its message may hold what a row or a request said
        _log.critical("the control process failed", id=logged(error))
        return 1


def main(pipe: int) -> int:
    """The process: read the boot message, serve, end."""
    try:
        boot = node.receive(pipe)
    except EOFError:
        return 0
    os.umask(0o077)
    log.configure(boot.config.log_format, "control")
    return asyncio.run(serve(boot, pipe))


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1])))
