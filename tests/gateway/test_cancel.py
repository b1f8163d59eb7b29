"""The client leaves, or either side breaks off, at every point: the other side closes at once, one event, no leak."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.gateway.stage import PING, RESULT, Asked, Client, Stage, answer_of, replying, staged

pytestmark = pytest.mark.anyio

SSE_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"


def sockets_open() -> int:
    found = 0
    for descriptor in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):
            found += str(descriptor.readlink()).startswith("socket:")
    return found


async def hang(_: Asked, reader: asyncio.StreamReader, __: asyncio.StreamWriter) -> None:
    """An upstream that has read the request and never answers."""
    await reader.read(1)


def in_state(stage: Stage, state: str) -> Callable[[], bool]:
    return lambda: [live._record.state.value for live in stage.gate.live] == [state]


async def leaves(stage: Stage, client: Client) -> None:
    """The client's process dies; then one event says so and nothing is left."""
    client.writer.transport.abort()
    event = await stage.event()
    assert (event.outcome, event.refusal) == ("client_left", None)


async def test_a_client_that_leaves_while_its_body_arrives(tmp_path: Path) -> None:
    async with staged(tmp_path) as stage:
        connection = stage.connect()
        client = await stage.client()
        client.send(stage.request(PING)[:-5])
        await stage.until(lambda: stage.gate.bodies.used == len(PING) - 5)
        await leaves(stage, client)
        await stage.quiet(connection)
        assert stage.upstream.connections == 0


async def test_a_client_that_leaves_while_the_upstream_is_dialled(tmp_path: Path) -> None:
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    listener.listen(0)
    queued = [socket.socket() for _ in range(4)]
    for each in queued:
        each.setblocking(False)
        each.connect_ex(listener.getsockname())
    async with staged(tmp_path) as stage:
        connection = stage.connect(upstream_url=f"http://127.0.0.1:{listener.getsockname()[1]}/")
        before = sockets_open()
        client = await stage.client()
        client.send(stage.request())
        await stage.until(in_state(stage, "dialling"))
        await stage.turns()
        await leaves(stage, client)
        await stage.quiet(connection)
        await stage.until(lambda: sockets_open() == before)
    for each in (listener, *queued):
        each.close()


async def test_a_client_that_leaves_while_tls_is_being_agreed(tmp_path: Path) -> None:
    came, gone = asyncio.Event(), asyncio.Event()

    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        came.set()
        with contextlib.suppress(ConnectionError):
            while await reader.read(4096):
                pass
        gone.set()
        writer.close()

    async with staged(tmp_path) as stage:
        server = await asyncio.start_server(silent, "127.0.0.1", 0)
        connection = stage.connect(upstream_url=f"https://127.0.0.1:{server.sockets[0].getsockname()[1]}/")
        before = sockets_open()
        client = await stage.client()
        client.send(stage.request())
        await asyncio.wait_for(came.wait(), 10)
        await leaves(stage, client)
        await asyncio.wait_for(gone.wait(), 10)
        await stage.quiet(connection)
        await stage.until(lambda: sockets_open() == before)
        server.close()


async def test_a_client_that_leaves_while_the_answer_is_awaited(tmp_path: Path) -> None:
    async with staged(tmp_path) as stage:
        connection = stage.connect()
        stage.upstream.handler = hang
        client = await stage.client()
        client.send(stage.request())
        await stage.upstream.until(lambda: len(stage.upstream.asked) == 1)
        await leaves(stage, client)
        await stage.upstream.until(lambda: stage.upstream.closed == 1)
        await stage.quiet(connection)
        assert stage.gate.pool._open == set()


async def test_a_client_that_closes_politely_has_left_too(tmp_path: Path) -> None:
    async with staged(tmp_path) as stage:
        connection = stage.connect()
        stage.upstream.handler = hang
        client = await stage.client()
        client.send(stage.request())
        await stage.upstream.until(lambda: len(stage.upstream.asked) == 1)
        await client.close()
        await stage.upstream.until(lambda: stage.upstream.closed == 1)
        assert (await stage.event()).outcome == "client_left"
        await stage.quiet(connection)


async def test_a_client_that_leaves_in_the_middle_of_a_stream(tmp_path: Path) -> None:
    async with staged(tmp_path) as stage:
        connection = stage.connect()
        stage.upstream.handler = replying(SSE_HEAD + b"9\r\ndata: 1\n\n\r\n")
        client = await stage.client()
        client.send(stage.request())
        await client.head()
        await client.chunk()
        await leaves(stage, client)
        await stage.upstream.until(lambda: stage.upstream.closed == 1)
        await stage.quiet(connection)
        assert stage.events()[0].bytes_out == 9


@pytest.mark.parametrize("politely", [False, True])
async def test_a_client_that_leaves_while_it_held_the_upstream_up(tmp_path: Path, politely: bool) -> None:  # noqa: FBT001 — a parameter of the table
    async def flood(_: Asked, __: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n")
        while True:
            writer.write(b"10000\r\n" + b"x" * 65536 + b"\r\n")
            await writer.drain()

    async with staged(tmp_path) as stage:
        connection = stage.connect()
        stage.upstream.handler = flood
        client = await stage.client()
        client.send(stage.request())
        await client.head()
        client.writer.transport.pause_reading()
        (caller,) = stage.gate.callers
        await stage.until(lambda: caller._choked)
        if politely:
            client.writer.transport.close()
        else:
            client.writer.transport.abort()
        await stage.upstream.until(lambda: stage.upstream.closed == 1)
        assert (await stage.event()).outcome == "client_left"
        await stage.quiet(connection)


async def test_a_client_that_shuts_its_side_down_while_it_reads_nothing_has_left(tmp_path: Path) -> None:
    async def flood(_: Asked, __: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n")
        while True:
            writer.write(b"10000\r\n" + b"x" * 65536 + b"\r\n")
            await writer.drain()

    async with staged(tmp_path) as stage:
        connection = stage.connect()
        stage.upstream.handler = flood
        client = await stage.client()
        client.send(stage.request())
        await client.head()
        client.writer.transport.pause_reading()
        (caller,) = stage.gate.callers
        await stage.until(lambda: caller._choked)
        client.writer.write_eof()
        await stage.upstream.until(lambda: stage.upstream.closed == 1)
        assert (await stage.event()).outcome == "client_left"
        await stage.quiet(connection)
        client.writer.transport.abort()


async def test_a_request_cut_at_any_byte_leaves_nothing_behind(tmp_path: Path) -> None:
    async with staged(tmp_path) as stage:
        connection = stage.connect()
        request = stage.request(PING)
        head = request.index(b"\r\n\r\n") + 4
        for at in range(1, len(request)):
            client = await stage.client()
            client.send(request[:at])
            await stage.until(
                lambda at=at: (
                    [len(each._intake.buffer) or head + stage.gate.bodies.used for each in stage.gate.callers] == [at]
                )
            )
            client.writer.transport.abort()
            await stage.quiet(connection)
        events = stage.events()
        assert {event.outcome for event in events} == {"client_left"}
        assert len(events) == len(request) - head
        assert stage.upstream.connections == 0


ANSWERS = {
    "length": answer_of(RESULT),
    "chunked": b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n6\r\n world\r\n0\r\n\r\n",
    "interim": b"HTTP/1.1 100 Continue\r\n\r\n" + answer_of(b"ok"),
}


@pytest.mark.parametrize("name", ANSWERS)
@pytest.mark.parametrize("abruptly", [False, True])
async def test_an_answer_cut_at_any_byte_is_never_taken_for_a_whole_one(
    tmp_path: Path,
    name: str,
    abruptly: bool,  # noqa: FBT001 — a parameter of the table
) -> None:
    answer = ANSWERS[name]
    cut = 0

    async def part(_: Asked, __: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(answer[:cut])
        await writer.drain()
        if abruptly:
            writer.transport.abort()
        else:
            writer.close()

    async with staged(tmp_path) as stage:
        connection = stage.connect()
        stage.upstream.handler = part
        for cut in range(len(answer) + 1):
            answered = None
            with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
                answered = await stage.ask(stage.request())
            whole = cut == len(answer)
            (event,) = stage.events()[cut:]
            if answered is not None and answered.status == 502:
                assert answered.code == "upstream_connection_lost"
            else:
                assert (answered is not None and answered.complete) == whole
            assert event.outcome == ("done" if whole else "upstream_failed")
            await stage.quiet(connection)
        assert stage.gate.pool._open == set()


@pytest.mark.parametrize("name", ANSWERS)
async def test_a_client_that_leaves_at_any_byte_of_the_answer_takes_the_upstream_along(
    tmp_path: Path, name: str
) -> None:
    answer = ANSWERS[name]
    cut = 0

    async def part(_: Asked, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(answer[:cut])
        sent.set()
        await reader.read(1)

    async with staged(tmp_path) as stage:
        connection = stage.connect()
        stage.upstream.handler = part
        sent = asyncio.Event()
        for cut in range(len(answer)):
            client = await stage.client()
            client.send(stage.request())
            await sent.wait()
            sent.clear()
            client.writer.transport.abort()
            await stage.upstream.until(lambda cut=cut: stage.upstream.closed == cut + 1)
            await stage.quiet(connection)
        assert [event.outcome for event in stage.events()] == ["client_left"] * len(answer)


async def test_a_thousand_clients_that_come_and_go_leave_nothing(tmp_path: Path) -> None:
    async with staged(tmp_path) as stage:
        connection = stage.connect()
        before = sockets_open()

        async def come_and_go(number: int) -> None:
            client = await stage.client()
            client.send(stage.request())
            await stage.turns(number % 41)
            client.writer.transport.abort()

        for start in range(0, 1000, 20):
            await asyncio.gather(*map(come_and_go, range(start, start + 20)))
        await stage.quiet(connection)
        stage.gate.pool.close()
        await stage.until(lambda: sockets_open() == before)
        assert len({event.id for event in stage.events()}) == len(stage.events()) <= 1000
        assert {event.outcome for event in stage.events()} == {"client_left", "done"}
