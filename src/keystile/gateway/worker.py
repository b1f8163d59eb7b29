"""One worker process: its own entry point (`python -m keystile.gateway.worker <pipe>`), builds the rest, drains.

Guarantees: it imports only the gateway's row of the house, knows no database and no root key, ends when its pipe to
the supervisor closes, and on SIGTERM stops accepting, finishes what runs and loses no event.
"""

from __future__ import annotations

import asyncio
import gc
import resource
import signal
import socket
import sys
from collections.abc import Mapping
from contextlib import suppress
from functools import partial
from ipaddress import ip_network
from typing import Any

import msgspec
import uvloop

from keystile.audit.slots import Slots
from keystile.audit.spool import Spool
from keystile.config import Config, host_name, named
from keystile.core.addresses import reach
from keystile.core.decide import Shape
from keystile.core.registry import Registry
from keystile.feed import FeedReader, Word
from keystile.gateway import notice
from keystile.gateway.gate import Gate
from keystile.gateway.inbound import Inbound
from keystile.gateway.limits import InFlight
from keystile.gateway.pool import Pool
from keystile.gateway.trail import Trail
from keystile.node import Boot, Folders, reachable, receive, sockets

_BACKLOG = 2048
_FEED_POLL_SECONDS = 0.02
_COLLECT_AFTER = 50_000


def shape_of(config: Config) -> Shape:
    """The host names and web origins a node answers to."""
    return Shape(
        frozenset({b"localhost", b"127.0.0.1", b"[::1]", *(host_name(host) for _, host in named(config))}),
        frozenset(origin.rstrip("/").encode("ascii") for origin in config.origins),
    )


def build(boot: Boot) -> Gate:
    """Everything a worker's client connections share."""
    config, limits, folders = boot.config, boot.config.limits, Folders(boot.config.data_dir)
    descriptors, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    limits = msgspec.structs.replace(limits, sockets=sockets(limits.sockets, descriptors))
    word = Word(folders.word)
    control = reachable(folders.control_socket)
    return Gate(
        limits=limits,
        shape=shape_of(config),
        proxies=tuple(ip_network(text) for text in config.trusted_proxies),
        word=word,
        reader=FeedReader(folders, boot.node_key, word),
        registry=partial(Registry, boot.node_key),
        trail=Trail(
            Spool(folders.spool, boot.index, boot.incarnation, limits.spool_segment_bytes, limits.spool_bytes),
            Slots(folders.spool, boot.index, boot.incarnation, limits.sockets),
        ),
        in_flight=InFlight.open(folders.in_flight, boot.index, config.workers),
        pool=Pool(limits, reach(config.upstreams_allow), control),
        control=control,
    )


class Worker:
    """The process: a gate, a listener, a clock."""

    def __init__(self, boot: Boot, pipe: int) -> None:
        self._boot = boot
        self._pipe = pipe
        self._gate = build(boot)
        self._word = Word(Folders(boot.config.data_dir).word)
        self._stop = asyncio.Event()

    def __repr__(self) -> str:
        return f"<Worker {self._boot.index} {self._gate!r}>"

    async def run(self) -> None:
        """Serve until told to stop, then drain."""
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(_unexpected)
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop.set)
        loop.add_reader(self._pipe, self._orphaned)
        while not self._gate.fresh():
            if self._stop.is_set():
                return
            await asyncio.sleep(_FEED_POLL_SECONDS)
        listener = socket.socket(fileno=self._boot.listener)
        server = await loop.create_server(partial(Inbound, self._gate), sock=listener, backlog=_BACKLOG)
        clock = loop.create_task(self._clock())
        gc.collect()
        gc.freeze()
        gc.set_threshold(_COLLECT_AFTER, 50, 100)
        self._serving(1)
        await self._stop.wait()
        self._serving(0)
        server.close()
        await self._drain()
        clock.cancel()
        self._gate.close()

    def _orphaned(self) -> None:
        """The supervisor is gone: nothing is sent through the pipe after the boot message, so readable means closed."""
        asyncio.get_running_loop().remove_reader(self._pipe)
        self._stop.set()

    def _serving(self, state: int) -> None:
        self._word.cells[2 + self._boot.index] = state

    async def _clock(self) -> None:
        while True:
            await asyncio.sleep(self._gate.limits.check_seconds)
            try:
                self._gate.tick()
            except Exception as error:  # noqa: BLE001 — one bug must not stop every time-out of the worker
                notice.bug(error, "tick")

    async def _drain(self) -> None:
        gate = self._gate
        gate.draining = True
        for caller in tuple(gate.callers):
            caller.drain()
        if not gate.callers:
            return
        with suppress(TimeoutError):
            await asyncio.wait_for(gate.empty.wait(), gate.limits.drain_seconds)
        for caller in tuple(gate.callers):
            caller.abort()
        # The losses are told in the loop's next turn, and each writes its event.
        await gate.empty.wait()


def _unexpected(_: asyncio.AbstractEventLoop, context: Mapping[str, Any]) -> None:
    error = context.get("exception")
    if not isinstance(error, ConnectionError):
        notice.bug(error, str(context.get("message", "")).partition("\n")[0])


def main() -> None:
    """The entry point; the argument is the inherited pipe's number."""
    pipe = int(sys.argv[1])
    try:
        boot = receive(pipe)
    except EOFError:
        return  # the supervisor died first
    notice.configure(boot.config.log_format)

    async def _run() -> None:
        await Worker(boot, pipe).run()

    uvloop.run(_run())


if __name__ == "__main__":
    main()
