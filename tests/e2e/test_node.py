"""A node's processes: what dies is replaced, what runs is finished, nothing answered goes unrecorded."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from tests.gateway.stage import CALL, Asked, Client, Upstream
from tests.peers.gateway import Gateway, gateway

pytestmark = pytest.mark.anyio

EVENT = b'data: {"jsonrpc":"2.0","method":"notifications/message"}\n\n'


@asynccontextmanager
async def upstream() -> AsyncIterator[tuple[Upstream, str]]:
    started = Upstream()
    server = await asyncio.start_server(started.serve, "127.0.0.1", 0)
    yield started, f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/mcp"
    server.close()


def request(slug: str, key: str, method: bytes = b"POST") -> bytes:
    head = b"%b /v1/mcp/%b HTTP/1.1\r\nhost: 127.0.0.1\r\nx-api-key: %b\r\n" % (method, slug.encode(), key.encode())
    if method == b"GET":
        return head + b"\r\n"
    return head + b"content-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(CALL) + CALL


async def prepared(running: Gateway, url: str) -> tuple[str, str]:
    slug = await asyncio.to_thread(running.connection, url, "made-up-credential")
    return slug, await asyncio.to_thread(running.client_key)


async def connect(running: Gateway) -> Client:
    return Client(*await asyncio.open_connection("127.0.0.1", running.port))


async def eventually(claim: object, *, seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not await asyncio.to_thread(claim):  # type: ignore[arg-type]
        assert time.monotonic() < deadline
        await asyncio.sleep(0.02)


async def test_a_killed_worker_is_replaced_and_the_other_goes_on(tmp_path: Path) -> None:
    async with upstream() as (_, url):
        with gateway(tmp_path, workers=2) as running:
            slug, key = await prepared(running, url)
            clients = [await connect(running) for _ in range(16)]
            for client in clients:
                client.send(request(slug, key))
                assert (await client.answer()).status == 200
            before = running.processes()
            os.kill(before[-1], signal.SIGKILL)
            survivors = 0
            for client in clients:
                client.send(request(slug, key))
                try:
                    survivors += (await client.answer()).status == 200
                except (asyncio.IncompleteReadError, ConnectionError):
                    pass
            assert survivors > 0
            await eventually(lambda: len(running.processes()) == len(before) and running.ready())
            assert running.processes() != before
            client = await connect(running)
            client.send(request(slug, key))
            assert (await client.answer()).status == 200
            trail = await asyncio.to_thread(running.events, 16 + survivors + 1, connection=slug)
            assert sum(event["outcome"] == "done" for event in trail) == 16 + survivors + 1


async def test_calls_go_on_while_the_control_process_is_away_and_their_events_arrive_later(tmp_path: Path) -> None:
    async with upstream() as (_, url):
        with gateway(tmp_path) as running:
            slug, key = await prepared(running, url)
            control = next(pid for pid in running.processes() if "keystile.control" in _command(pid))
            os.kill(control, signal.SIGKILL)
            client = await connect(running)
            for _ in range(5):
                client.send(request(slug, key))
                assert (await client.answer()).status == 200
            await eventually(running.ready)
            assert len(await asyncio.to_thread(running.events, 5, connection=slug)) == 5


def _command(pid: int) -> str:
    return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()


async def test_sigterm_finishes_what_runs_and_loses_no_event(tmp_path: Path) -> None:
    released = asyncio.Event()

    async def slow(_: Asked, __: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await released.wait()
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 2\r\n\r\n{}")

    async with upstream() as (behind, url):
        behind.handler = slow
        with gateway(tmp_path) as running:
            slug, key = await prepared(running, url)
            client, idle = await connect(running), await connect(running)
            client.send(request(slug, key))
            await behind.until(lambda: len(behind.asked) == 1)
            running.running.send_signal(signal.SIGTERM)
            assert await idle.closed()
            released.set()
            answered = await client.answer()
            assert (answered.status, answered.body) == (200, b"{}")
            assert answered.field(b"connection") == [b"close"]
            assert await asyncio.to_thread(running.running.wait, 20) == 0
        with gateway(tmp_path, admin_key=running.admin_key) as again:
            (event,) = await asyncio.to_thread(again.events, 1, connection=slug)
            assert event["outcome"] == "done"


async def test_a_stream_that_outlasts_the_drain_is_broken_off_and_recorded(tmp_path: Path) -> None:
    async def stream(_: Asked, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n")
        writer.write(b"%x\r\n%b\r\n" % (len(EVENT), EVENT))
        await reader.read()

    async with upstream() as (behind, url):
        behind.handler = stream
        with gateway(tmp_path, limits_drain_seconds=0.2) as running:
            slug, key = await prepared(running, url)
            client = await connect(running)
            client.send(request(slug, key, b"GET"))
            assert (await client.head()).status == 200
            assert await client.chunk() == EVENT
            running.running.send_signal(signal.SIGTERM)
            assert await client.closed()
            assert await asyncio.to_thread(running.running.wait, 20) == 0
        with gateway(tmp_path, admin_key=running.admin_key) as again:
            (event,) = await asyncio.to_thread(again.events, 1, connection=slug)
            assert event["outcome"] == "client_left"


async def test_a_second_supervisor_refuses_the_same_folder_and_the_same_port(tmp_path: Path) -> None:
    with gateway(tmp_path) as running, pytest.raises(AssertionError, match="another Keystile serves"), gateway(tmp_path):
        pytest.fail("two supervisors shared a folder")
    with gateway(tmp_path / "one") as running:
        other = tmp_path / "two"
        other.mkdir()
        environment = {"KEYSTILE_PORT": str(running.port), "KEYSTILE_DATA_DIR": str(other)}
        done = await asyncio.create_subprocess_exec(
            ".venv/bin/keystile", "serve", env={**os.environ, **environment}, stderr=asyncio.subprocess.PIPE
        )
        _, said = await done.communicate()
        assert done.returncode not in {0, None}
        assert b"cannot listen on" in said
