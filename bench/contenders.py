"""Who is measured: one class each, all doing the same work in front of the same upstream.

A contender starts its processes, says where to call it and which of its processes count, and checks after a run that
nothing was skipped. To add one: a class with `name` and `running()`, and its name in `CONTENDERS`.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Protocol

import msgspec

from bench.load import ANSWER
from tests.peers.gateway import gateway
from tests.peers.processes import PATIENCE, children, free_port, listening, process

CREDENTIAL = "made-up-benchmark-credential"


class Running(msgspec.Struct, frozen=True):
    """A contender at work."""

    url: str
    headers: dict[str, str]
    workers: list[int]
    """The processes that hold clients' sockets."""
    processes: list[int]
    """All of its processes."""
    settle: Callable[[int], None]
    """Wait until the work of so many requests, since the start, is really over; RuntimeError if it was not all done."""


class Contender(Protocol):
    """A proxy that adds a credential."""

    name: str

    def running(self, folder: Path, upstream: int) -> Iterator[Running]:
        """Started in front of the upstream at that port; ended afterwards. A generator for `contextmanager`."""
        ...


class Keystile:
    """`keystile serve` with one worker: the key checked, the credential opened and put on, each call an event."""

    name = "keystile"

    def running(self, folder: Path, upstream: int) -> Iterator[Running]:
        with gateway(folder, workers=1) as serving:
            slug = serving.connection(f"http://127.0.0.1:{upstream}/mcp", CREDENTIAL)
            key = serving.client_key()
            processes = serving.processes()
            workers = [pid for pid in processes if b"gateway.worker" in Path(f"/proc/{pid}/cmdline").read_bytes()]
            yield Running(
                url=serving.endpoint(slug),
                headers={"authorization": f"Bearer {key}"},
                workers=workers,
                processes=processes,
                settle=lambda requests: _counted(serving.data / "ledger.db", requests),
            )


def _counted(ledger: Path, requests: int) -> None:
    """Wait until the ledger holds exactly so many events. Read from its file: waiting costs Keystile nothing."""
    deadline = time.monotonic() + PATIENCE
    events = -1
    while events < requests and time.monotonic() < deadline:
        time.sleep(0.05)
        with closing(sqlite3.connect(f"file:{ledger}?mode=ro", uri=True)) as database:
            (events,) = database.execute("SELECT count(*) FROM event").fetchone()
    if events != requests:
        raise RuntimeError(f"{requests} requests gave {events} events")


class Nginx:
    """nginx as a bare reverse proxy: no key checked, a fixed credential put on, nothing written down."""

    name = "nginx"

    def running(self, folder: Path, upstream: int) -> Iterator[Running]:
        port = free_port()
        configuration = f"""
            upstream mcp {{ server 127.0.0.1:{upstream}; keepalive 128; keepalive_requests 1000000000; }}
            server {{
                listen 127.0.0.1:{port};
                location / {{
                    proxy_pass http://mcp/mcp;
                    proxy_http_version 1.1;
                    proxy_set_header Connection "";
                    proxy_set_header Authorization "Bearer {CREDENTIAL}";
                    proxy_buffering off;
                }}
            }}"""
        with nginx(folder, port, configuration) as main:
            workers = children(main)
            yield Running(
                f"http://127.0.0.1:{port}/v1/mcp/bench", {}, workers, [main, *workers], lambda _requests: None
            )


@contextmanager
def upstream_server(folder: Path) -> Iterator[int]:
    """The port of the upstream: nginx, one worker, answering any request with the same JSON."""
    port = free_port()
    location = f"default_type application/json; return 200 '{ANSWER.decode()}';"
    with nginx(folder, port, f"server {{ listen 127.0.0.1:{port}; location / {{ {location} }} }}"):
        yield port


@contextmanager
def nginx(folder: Path, port: int, configuration: str) -> Iterator[int]:
    """One nginx with one worker and everything it writes in that folder; its main process id."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = "".join(
        f"{kind}_temp_path {folder / kind};" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    written = folder / "nginx.conf"
    written.write_text(
        f"daemon off; worker_processes 1; pid {folder / 'pid'}; error_log {folder / 'errors'};"
        f"events {{ worker_connections 4096; }}"
        f"http {{ access_log off; keepalive_requests 1000000000; keepalive_timeout 3600s; {paths} {configuration} }}"
    )
    with process(["nginx", "-p", folder, "-c", written]) as running:
        listening(running, port)
        yield running.pid


CONTENDERS: tuple[type[Contender], ...] = (Keystile, Nginx)
