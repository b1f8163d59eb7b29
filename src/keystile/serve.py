"""The supervisor: locks the data folder, opens the sockets, makes the node key, starts and restarts the rest.

Guarantees: two supervisors never share a folder or a port; a listening socket outlives the worker that accepts from
it, so a worker's death loses no queued connection; every child gets its secrets through a pipe and ends when that
closes; a child that dies, or could not be started, is started again, but a control process that refuses to start ends
the node.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path

import msgspec
import structlog

from keystile import greeting
from keystile.config import Config
from keystile.errors import StartRefused
from keystile.feed import Word
from keystile.initialise import initialise
from keystile.log import configure
from keystile.node import REFUSED, Boot, Folders, locked, raise_limits, send

_BACKLOG = 2048
# Names are resolved on libuv's threads: with its default of four, four dead names would hold up every other dial.
_ENVIRONMENT = {"UV_THREADPOOL_SIZE": "32"}
_STEADY_SECONDS = 5.0
_PATIENCE_SECONDS = 5.0
_SOON_SECONDS = 0.5  # an end that takes longer is explained


class Child:
    """One process that is kept running. `boot` makes its message anew for each incarnation."""

    def __init__(self, module: str, boot: Callable[[int], Boot], sockets: tuple[int, ...] = ()) -> None:
        self.module = module
        self.process: asyncio.subprocess.Process | None = None
        self._boot = boot
        self._sockets = sockets
        self._pipe = -1
        self._incarnation = 0

    def __repr__(self) -> str:
        return f"<Child {self.module} incarnation={self._incarnation}>"

    async def start(self) -> None:
        """Start the next incarnation. Raises OSError when there is no process, pipe or memory for it."""
        self._incarnation += 1
        reading, writing = os.pipe()
        try:
            self.process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                self.module,
                str(reading),
                pass_fds=(reading, *self._sockets),
                env=_ENVIRONMENT | {key: value for key, value in os.environ.items() if not key.startswith("KEYSTILE_")},
                stdin=asyncio.subprocess.DEVNULL,
                # Ctrl-C at the terminal is for the supervisor alone, which ends its children in their order.
                start_new_session=True,
            )
        except BaseException:
            os.close(writing)
            raise
        finally:
            os.close(reading)
        self._pipe = writing
        send(self._boot(self._incarnation), writing)

    async def ended(self) -> int:
        """Wait for its end; the exit code."""
        if self.process is None:
            return 0
        code = await self.process.wait()
        os.close(self._pipe)
        return code

    def tell(self, number: signal.Signals) -> None:
        """Send it a signal, if it lives."""
        if self.process is not None and self.process.returncode is None:
            self.process.send_signal(number)


class Supervisor:
    """One node."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self._folders = Folders(config.data_dir)
        self._log = structlog.get_logger(__name__)
        self._stop = asyncio.Event()
        self._at_once = asyncio.Event()
        self._explained = False
        self._code = 0
        self._started = time.time_ns()

    def __repr__(self) -> str:
        return f"<Supervisor {self._config!r}>"

    async def run(self) -> int:
        """Serve until SIGTERM or SIGINT; the exit code."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._told)
        folders = self._folders
        folders.make()
        lock = locked(folders.lock)
        listeners = _listeners(self._config)
        port = listeners[0].getsockname()[1]
        shown = await self._found()
        # Nobody needs it any more.
        self._config = msgspec.structs.replace(self._config, bootstrap_key=None)
        _emptied(folders.run)
        word = Word.create(folders.word, self._config.workers)
        node_key = os.urandom(32)
        control = Child("keystile.control", lambda _: Boot(config=self._config, node_key=node_key))
        workers = [self._worker(index, listener, node_key) for index, listener in enumerate(listeners)]
        keeping = [loop.create_task(self._keep(control, word, 1))]
        keeping += [loop.create_task(self._keep(worker, word, 2 + index)) for index, worker in enumerate(workers)]
        for task in keeping:
            task.add_done_callback(self._kept)
        greeted = loop.create_task(self._greet(word, port, key_shown=shown))
        await self._stop.wait()
        greeted.cancel()
        explaining = loop.call_later(_SOON_SECONDS, self._explain)
        for listener in listeners:
            listener.close()
        await self._end(workers, keeping[1:], self._config.limits.drain_seconds + _PATIENCE_SECONDS)
        # Last, so that it takes in what the workers wrote at their end.
        await self._end([control], keeping[:1], _PATIENCE_SECONDS)
        explaining.cancel()
        os.close(lock)
        return self._code

    async def _found(self) -> bool:
        """Initialise an empty folder, and show a key that was made; whether there was one. It stays in no frame."""
        first = await initialise(self._config)
        if first is None:
            return False
        # At once: nothing that ends the start may take the only copy along.
        sys.stdout.write(greeting.first_key(first))
        sys.stdout.flush()
        return not first.given

    def _worker(self, index: int, listener: socket.socket, node_key: bytes) -> Child:
        config = msgspec.structs.replace(self._config, root_key=None, root_key_file=None, root_key_command=None)
        return Child(
            "keystile.gateway.worker",
            lambda incarnation: Boot(
                config=config,
                node_key=node_key,
                index=index,
                incarnation=self._started + incarnation,
                listener=listener.fileno(),
            ),
            (listener.fileno(),),
        )

    async def _keep(self, child: Child, word: Word, cell: int) -> None:
        """Start it, and start it again, a little later each time it does not last."""
        delay = 0.0
        while not self._stop.is_set():
            began = time.monotonic()
            try:
                await child.start()
            except (OSError, RuntimeError) as error:  # RuntimeError: no thread to wait for it (threading)
                delay = _later(delay)
                self._log.warning("child could not be started", child=child.module, reason=type(error).__name__)
                await asyncio.sleep(delay)
                continue
            if self._stop.is_set():  # too late to be told with the others
                child.tell(signal.SIGTERM)
            code = await child.ended()
            served = bool(word.cells[cell])
            word.cells[cell] = 0
            if self._stop.is_set():
                return
            if code == REFUSED and not served:
                self._code = REFUSED
                self._stop.set()
                return
            delay = 0.0 if time.monotonic() - began > _STEADY_SECONDS else _later(delay)
            self._log.warning("child ended and is started again", child=child.module, code=code)
            await asyncio.sleep(delay)

    def _kept(self, task: asyncio.Task[None]) -> None:
        """A keeper that ends by an exception would leave its process unkept: the node ends instead."""
        error = None if task.cancelled() else task.exception()
        if error is not None:
            self._log.critical("the supervisor failed", reason=type(error).__name__)
            self._code = 1
            self._stop.set()

    async def _greet(self, word: Word, port: int, *, key_shown: bool) -> None:
        """Say where it is, once every process serves."""
        while not all(word.cells[1:]):  # noqa: ASYNC110 — other processes store these words, and no event tells
            await asyncio.sleep(0.02)
        sys.stdout.write(greeting.text(self._config, port, sys.argv[0], key_shown=key_shown))
        sys.stdout.flush()

    def _told(self) -> None:
        """A signal: end in order; at once when it comes again after that was explained.

        Not before: `timeout` and `make` signal a process twice in one moment, itself and with its group.
        """
        if self._explained:
            self._at_once.set()
        self._stop.set()

    def _explain(self) -> None:
        self._explained = True
        self._log.info(f"finishing what runs, at most {self._config.limits.drain_seconds:g} s; once more ends at once")

    async def _end(self, children: list[Child], keeping: list[asyncio.Task[None]], seconds: float) -> None:
        for child in children:
            child.tell(signal.SIGTERM)
        ended = asyncio.gather(*keeping, return_exceptions=True)
        hurried = asyncio.create_task(self._at_once.wait())
        await asyncio.wait((ended, hurried), timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        hurried.cancel()
        for child in () if ended.done() else children:
            child.tell(signal.SIGKILL)
        await ended


def run(config: Config) -> int:
    """Serve; returns the exit code. Raises StartRefused, whose message says what to do."""
    configure(config.log_format, "supervisor")
    os.umask(0o077)
    raise_limits()

    async def _run() -> int:
        return await Supervisor(config).run()

    return asyncio.run(_run())


def _later(delay: float) -> float:
    return min(delay * 2 + 0.05, 2.0)


def _listeners(config: Config) -> list[socket.socket]:
    """One listening socket a worker, on one port: the kernel spreads the connections."""
    family = socket.AF_INET6 if ":" in config.host else socket.AF_INET
    try:
        with socket.socket(family) as probe:
            # Without SO_REUSEPORT, so that a port somebody else listens on shows.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((config.host, config.port))
            port = probe.getsockname()[1]
        return [_listener(family, config.host, port) for _ in range(config.workers)]
    except OSError as error:
        raise StartRefused(
            f"cannot listen on {config.host}:{config.port}: {error.strerror}; set KEYSTILE_PORT or KEYSTILE_HOST"
        ) from error


def _listener(family: socket.AddressFamily, host: str, port: int) -> socket.socket:
    listener = socket.socket(family)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    listener.bind((host, port))
    listener.listen(_BACKLOG)
    return listener


def _emptied(folder: Path) -> None:
    for left in folder.iterdir():
        left.unlink()
