"""A node's processes: what dies is replaced, what runs is finished, nothing answered goes unrecorded."""

from __future__ import annotations

import asyncio
import os
import resource
import signal
import time
from pathlib import Path

import pytest

from tests.e2e.scene import eventually, scene
from tests.gateway.stage import Asked, Client
from tests.peers.gateway import COMMAND, Gateway, gateway
from tests.peers.processes import process, said

pytestmark = [pytest.mark.anyio, pytest.mark.xdist_group("node")]

EVENT = b'data: {"jsonrpc":"2.0","method":"notifications/message"}\n\n'
WORKER, CONTROL = "keystile.gateway.worker", "keystile.control"
READY = b"GET /readyz HTTP/1.1\r\nhost: x\r\n\r\n"


def pids(running: Gateway, module: str) -> list[int]:
    """The live children that run this module."""
    return [pid for pid in running.processes()[1:] if module in command(pid)]


def command(pid: int) -> str:
    """What a process runs; nothing for one that has ended."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
    except OSError:
        return ""


def descriptors(pid: int) -> int:
    """How many descriptors a process has open."""
    return len(list(Path(f"/proc/{pid}/fd").iterdir()))


async def streaming(_: Asked, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """One event, and then silence until the gateway goes."""
    writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n")
    writer.write(b"%x\r\n%b\r\n" % (len(EVENT), EVENT))
    await reader.read()


async def test_connections_that_wait_for_a_worker_outlive_it_and_the_other_goes_on(tmp_path: Path) -> None:
    with gateway(tmp_path, workers=2) as running:
        async with scene(running) as at:
            first, second = pids(running, WORKER)
            os.kill(first, signal.SIGSTOP)
            clients = [await at.client() for _ in range(32)]
            for client in clients:
                client.send(at.request())
            answers = [asyncio.create_task(client.answer()) for client in clients]
            await asyncio.wait(answers, return_when=asyncio.FIRST_COMPLETED)
            assert not all(answer.done() for answer in answers)
            os.kill(first, signal.SIGKILL)
            assert {(await answer).status for answer in answers} == {200}
            await eventually(running.ready)
            assert second in pids(running, WORKER) and first not in pids(running, WORKER)
            assert [event["outcome"] for event in await at.events(32)] == ["done"] * 32


async def test_a_node_is_ready_only_while_every_worker_serves(tmp_path: Path) -> None:
    async def readiness(client: Client) -> int | None:
        try:
            client.send(READY)
            return (await client.answer()).status
        except (asyncio.IncompleteReadError, ConnectionError):
            return None

    with gateway(tmp_path, workers=2) as running:
        async with scene(running) as at:
            clients = [await at.client() for _ in range(16)]
            assert [await readiness(client) for client in clients] == [200] * 16
            os.kill(pids(running, WORKER)[0], signal.SIGKILL)
            survivors = [client for client in clients if await readiness(client) is not None]
            for status in (503, 200):
                deadline = time.monotonic() + 20
                while await readiness(survivors[0]) != status:
                    assert time.monotonic() < deadline
                    await asyncio.sleep(0.002)
            assert {(await at.ask(at.request())).status for _ in range(8)} == {200}


async def test_calls_go_on_and_workers_start_while_the_control_process_is_away(tmp_path: Path) -> None:
    with gateway(tmp_path) as running:
        async with scene(running) as at:
            (control,), (worker,) = pids(running, CONTROL), pids(running, WORKER)
            os.kill(control, signal.SIGSTOP)
            assert (await at.ask(at.request())).status == 200
            os.kill(worker, signal.SIGKILL)
            for _ in range(4):  # the first waits in the socket for the new worker, which has but the feed to read
                assert (await at.ask(at.request())).status == 200
            os.kill(control, signal.SIGKILL)
            assert (await at.ask(at.request())).status == 200
            await eventually(lambda: pids(running, CONTROL) not in ([], [control]) and running.administered())
            assert len(await at.events(6)) == 6
            rotated = await at.api("POST", f"/connections/{at.slug}/rotate", {"credential": "made-up-and-rotated"})
            assert rotated.data["credentialVersion"] == 2
            at.forget()
            assert (await at.ask(at.request())).status == 200
            assert at.upstream.asked[0].field(b"authorization") == [b"Bearer made-up-and-rotated"]


async def test_sigterm_finishes_what_runs_streams_too_and_loses_no_event(tmp_path: Path) -> None:
    released = asyncio.Event()

    async def slow(asked: Asked, _: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        kind = b"text/event-stream" if asked.line.startswith(b"GET") else b"application/json"
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: %b\r\ntransfer-encoding: chunked\r\n\r\n" % kind)
        await released.wait()
        writer.write(b"%x\r\n%b\r\n0\r\n\r\n" % (len(EVENT), EVENT))

    with gateway(tmp_path) as running:
        async with scene(running) as at:
            at.upstream.handler = slow
            callers = [await at.client() for _ in range(4)]
            for caller, method in zip(callers, (b"POST", b"GET", b"POST", b"GET"), strict=True):
                caller.send(at.request(method=method))
            for caller in callers:
                assert (await caller.head()).status == 200
            idle = await at.client()
            idle.send(READY)
            await idle.answer()
            running.running.send_signal(signal.SIGTERM)
            assert await idle.closed()
            with pytest.raises(OSError, match=r"onnect"):
                await at.client()
            released.set()
            for caller in callers:
                assert (await caller.chunk(), await caller.chunk()) == (EVENT, b"")
                assert await caller.closed()
            assert await asyncio.to_thread(running.running.wait, 20) == 0
            slug = at.slug
    with gateway(tmp_path, admin_key=running.admin_key) as again:
        trail = await asyncio.to_thread(again.events, 4, connection=slug)
        assert [event["outcome"] for event in trail] == ["done"] * 4


async def test_an_interrupt_at_the_terminal_loses_no_event(tmp_path: Path) -> None:
    """Ctrl-C goes to the whole process group at once, and the control process must still be the last to end."""
    released = asyncio.Event()

    async def slow(_: Asked, __: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n")
        await released.wait()
        writer.write(b"2\r\n{}\r\n0\r\n\r\n")

    with gateway(tmp_path) as running:
        async with scene(running) as at:
            at.upstream.handler = slow
            client, idle = await at.client(), await at.client()
            idle.send(READY)
            await idle.answer()
            client.send(at.request())
            assert (await client.head()).status == 200
            assert {os.getpgid(pid) for pid in running.processes()[1:]} == set(running.processes()[1:])
            os.killpg(running.running.pid, signal.SIGINT)
            assert await idle.closed()  # the workers drain
            released.set()
            assert (await client.chunk(), await client.chunk()) == (b"{}", b"")
            assert await client.closed()
            assert await asyncio.to_thread(running.running.wait, 20) == 0
            assert list((running.data / "spool").glob("*.seg")) == []


async def test_a_child_that_could_not_be_started_is_started_when_it_can(tmp_path: Path) -> None:
    with gateway(tmp_path) as running:
        async with scene(running) as at:
            supervisor = running.running.pid
            usual = resource.prlimit(supervisor, resource.RLIMIT_NOFILE)
            opened = descriptors(supervisor)
            for module in (WORKER, CONTROL):
                resource.prlimit(supervisor, resource.RLIMIT_NOFILE, (4, usual[1]))
                os.kill(pids(running, module)[0], signal.SIGKILL)
                await eventually(lambda: running.log.read_text().count("could not be started") > 1)
                resource.prlimit(supervisor, resource.RLIMIT_NOFILE, usual)
                await eventually(lambda: running.ready() and running.administered())
                assert len(pids(running, module)) == 1
                running.log.write_text("")
            assert (await at.ask(at.request())).status == 200
            assert descriptors(supervisor) == opened


async def test_a_stream_that_outlasts_the_drain_is_broken_off_and_recorded(tmp_path: Path) -> None:
    with gateway(tmp_path, limits_drain_seconds=0.2) as running:
        async with scene(running) as at:
            at.upstream.handler = streaming
            client = await at.client()
            client.send(at.request(method=b"GET"))
            assert (await client.head()).status == 200 and await client.chunk() == EVENT
            running.running.send_signal(signal.SIGTERM)
            assert await client.closed()  # without the last chunk: visibly incomplete
            assert await asyncio.to_thread(running.running.wait, 20) == 0
            slug = at.slug
    with gateway(tmp_path, admin_key=running.admin_key) as again:
        (event,) = await asyncio.to_thread(again.events, 1, connection=slug)
        assert event["outcome"] == "client_left"


async def test_nothing_outlives_a_killed_supervisor(tmp_path: Path) -> None:
    with gateway(tmp_path, workers=2, limits_drain_seconds=0.2) as running:
        async with scene(running) as at:
            at.upstream.handler = streaming
            client = await at.client()
            client.send(at.request(method=b"GET"))
            assert (await client.head()).status == 200
            children = {pid: command(pid) for pid in running.processes()[1:]}
            assert len(children) == 3
            running.running.kill()
            assert await client.chunk() == EVENT and await client.closed()
            await eventually(lambda: not any(command(pid) == what for pid, what in children.items()))
            slug = at.slug
    with gateway(tmp_path, admin_key=running.admin_key) as again:  # its lock is gone with it
        (event,) = await asyncio.to_thread(again.events, 1, connection=slug)
        assert event["outcome"] == "client_left"


async def test_a_second_signal_ends_at_once_what_the_first_lets_finish(tmp_path: Path) -> None:
    with gateway(tmp_path, limits_drain_seconds=600) as running:
        async with scene(running) as at:
            at.upstream.handler = streaming
            client = await at.client()
            client.send(at.request(method=b"GET"))
            assert (await client.head()).status == 200 and await client.chunk() == EVENT
            for _ in range(3):  # as `timeout` does: the process, then its group
                running.running.send_signal(signal.SIGTERM)
            await eventually(lambda: running.log.read_text().count("finishing what runs, at most 600 s") == 1)
            running.running.send_signal(signal.SIGINT)
            assert await client.closed()
            assert await asyncio.to_thread(running.running.wait, 20) == 0
            slug = at.slug
    with gateway(tmp_path, admin_key=running.admin_key) as again:
        (event,) = await asyncio.to_thread(again.events, 1, connection=slug)
        assert event["outcome"] == "interrupted"


async def test_a_first_start_that_is_interrupted_has_said_its_key(tmp_path: Path) -> None:
    """And an interrupt as early as that is no traceback."""
    first = ["--port", "0", "--data-dir", str(tmp_path / "data")]
    with process([*COMMAND, *first]) as running:
        key = await asyncio.to_thread(said, running, "  export KEYSTILE_API_KEY=")
        running.send_signal(signal.SIGINT)
        assert await asyncio.to_thread(running.wait, 20) == 0
    with gateway(tmp_path, admin_key=key) as again:
        assert again.api("GET", "/keys").status == 200
