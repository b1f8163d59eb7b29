"""Bodies pass as they come, in both directions, as fast as the slower side reads, and broken if they break."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from tests.gateway.stage import CALL, CREDENTIAL, PING, RESULT, Asked, Stage, answer_of, replying, staged

pytestmark = pytest.mark.anyio

SSE_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
EVENTS = b': hi\r\n\r\nid: 1\ndata: {"a":\ndata: 1}\n\nevent: update\rdata: \xe2\x82\xac\r\rdata: x\n\n'


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


async def test_events_split_at_every_byte_arrive_equal_and_at_the_pace_they_were_sent(tmp_path: Path) -> None:
    arrived = asyncio.Event()

    async def split(_: Asked, __: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        at = len(stage.upstream.asked)
        writer.write(SSE_HEAD + chunk(EVENTS[:at]))
        await arrived.wait()
        arrived.clear()
        writer.write(chunk(EVENTS[at:]) + b"0\r\n\r\n")

    async with staged(tmp_path) as stage:
        stage.connect()
        stage.upstream.handler = split
        client = await stage.client()
        for at in range(1, len(EVENTS)):
            client.send(stage.request())
            await client.head()
            # Only now does the upstream send the rest: had the first piece waited for it, this would hang.
            assert await client.chunk() == EVENTS[:at]
            arrived.set()
            assert await client.chunk() == EVENTS[at:]
            assert await client.chunk() == b""


async def test_an_upstreams_bytes_split_at_every_byte_arrive_equal(tmp_path: Path) -> None:
    async def drip(_: Asked, __: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        answer = (
            SSE_HEAD
            + chunk(EVENTS[:9])
            + b"1f;ext=1\r\n"
            + EVENTS[9:40]
            + b"\r\n"
            + chunk(EVENTS[40:])
            + b"0\r\nx: y\r\n\r\n"
        )
        for byte in answer:
            writer.write(bytes((byte,)))
            await asyncio.sleep(0)

    async with staged(tmp_path) as stage:
        stage.connect()
        stage.upstream.handler = drip
        for _ in range(2):
            answered = await stage.ask(stage.request())
            assert (answered.body, answered.complete) == (EVENTS, True)
        assert stage.upstream.connections == 1


async def test_an_idle_event_stream_gets_comments_at_event_borders_only(tmp_path: Path) -> None:
    go_on = asyncio.Event()

    async def halt(_: Asked, __: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(SSE_HEAD)
        for piece in (b"data: 1\n", b"\n", b"data: 2\r\n\r", b"\n", b"data: 3\r\r"):
            await go_on.wait()
            go_on.clear()
            writer.write(chunk(piece))
        await go_on.wait()
        writer.write(b"0\r\n\r\n")

    async with staged(tmp_path, comment_seconds=0.02, clock=False) as stage:
        stage.connect()
        stage.upstream.handler = halt
        client = await stage.client()
        client.send(stage.request())
        await client.head()
        (relay,) = stage.gate.live
        for piece, border in (
            (b"", True),
            (b"data: 1\n", False),
            (b"\n", True),
            (b"data: 2\r\n\r", False),
            (b"\n", True),
            (b"data: 3\r\r", True),
        ):
            if piece:
                go_on.set()
                assert await client.chunk() == piece
            relay.tick(relay._wrote + 0.01)
            await stage.turns()
            assert not client.reader._buffer
            relay.tick(relay._wrote + 0.03)
            if border:
                assert await client.chunk() == b":\n\n"
            await stage.turns()
            assert not client.reader._buffer
        go_on.set()
        assert await client.chunk() == b""
        event = await stage.event()
        assert event.bytes_out == len(b"data: 1\n\ndata: 2\r\n\r\ndata: 3\r\r")


@pytest.mark.parametrize(
    "head",
    [
        b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ncontent-length: 5\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n",
    ],
)
async def test_no_comment_enters_what_is_not_a_chunked_event_stream(tmp_path: Path, head: bytes) -> None:
    async with staged(tmp_path, clock=False) as stage:
        stage.connect()
        stage.upstream.handler = replying(head)
        client = await stage.client()
        client.send(stage.request())
        await client.head()
        (relay,) = stage.gate.live
        relay.tick(relay._wrote + 100)
        await stage.turns()
        assert not client.reader._buffer
        await client.close()


async def test_no_comment_parts_a_credential_that_is_held_back(tmp_path: Path) -> None:
    async with staged(tmp_path, clock=False) as stage:
        stage.connect()
        stage.upstream.handler = replying(SSE_HEAD + chunk(b"data: x\n\n" + CREDENTIAL[:4].encode()))
        client = await stage.client()
        client.send(stage.request())
        await client.head()
        assert await client.chunk() == b"data: x\n\n"
        (relay,) = stage.gate.live
        relay.tick(relay._wrote + 100)
        await stage.turns()
        assert not client.reader._buffer
        await client.close()


@pytest.mark.parametrize("framing", ["chunked", "length", "until-close"])
async def test_a_slow_reader_slows_the_upstream_and_little_is_held(tmp_path: Path, framing: str) -> None:
    """What the upstream could get rid of is the kernels' buffers and our bound, however much it has."""
    total = 24 << 20
    piece = b"x" * 65536
    heads = {"chunked": b"transfer-encoding: chunked", "length": b"content-length: %d" % total, "until-close": b"x: y"}
    wrote = 0

    async def flood(_: Asked, __: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal wrote
        writer.write(b"HTTP/1.1 200 OK\r\n" + heads[framing] + b"\r\n\r\n")
        while wrote < total:
            writer.write(chunk(piece) if framing == "chunked" else piece)
            await writer.drain()
            wrote += len(piece)
        if framing == "chunked":
            writer.write(b"0\r\n\r\n")
        if framing == "until-close":
            writer.close()

    async with staged(tmp_path) as stage:
        stage.connect()
        stage.upstream.handler = flood
        client = await stage.client()
        client.send(stage.request())
        await client.head()
        client.writer.transport.pause_reading()
        (caller,) = stage.gate.callers
        await stage.until(lambda: caller._choked)
        held = 0
        before = -1
        while before != wrote:
            before = wrote
            await stage.turns(200)
            held = max(held, caller._transport.get_write_buffer_size())
        assert wrote < total
        assert held <= stage.gate.limits.buffer_bytes + 1024
        client.writer.transport.resume_reading()
        received = 0
        while received < total:
            received += len(await client.chunk()) if framing != "length" else len(await client.reader.read(1 << 20))
        if framing != "length":
            assert await client.chunk() == b""
        assert received == total
        assert (await stage.event()).bytes_out == total


@pytest.mark.parametrize(
    ("head", "part"),
    [
        (SSE_HEAD, chunk(b"data: 1\n\n")),
        (SSE_HEAD, chunk(b"data: 1\n\n") + b"5\r\nda"),
        (SSE_HEAD, b"not a chunk\r\n"),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\n", b"short"),
    ],
    ids=["between chunks", "inside a chunk", "malformed chunk", "short of its length"],
)
@pytest.mark.parametrize("minor", [b"1.1", b"1.0"])
async def test_an_upstream_that_dies_leaves_the_clients_answer_broken(
    tmp_path: Path, head: bytes, part: bytes, minor: bytes
) -> None:
    async def die(_: Asked, __: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(head)
        await may_die.wait()
        writer.write(part)
        writer.close()

    may_die = asyncio.Event()
    async with staged(tmp_path) as stage:
        connection = stage.connect()
        stage.upstream.handler = die
        client = await stage.client()
        client.send(stage.request().replace(b"HTTP/1.1", b"HTTP/" + minor))
        answered = asyncio.ensure_future(client.answer())
        await stage.until(lambda: any(live._record.state.value == "answering" for live in stage.gate.live))
        may_die.set()
        assert not (await answered).complete
        event = await stage.event()
        assert (event.outcome, event.status) == ("upstream_failed", 200)
        assert event.refusal in {"upstream_connection_lost", "upstream_malformed"}
        await stage.quiet(connection)


async def test_an_answer_that_ends_by_closing_is_complete(tmp_path: Path) -> None:
    async with staged(tmp_path) as stage:
        stage.connect()
        stage.upstream.handler = replying(b"HTTP/1.1 200 OK\r\n\r\n" + RESULT, close=True)
        client = await stage.client()
        for _ in range(2):
            client.send(stage.request())
            answered = await client.answer()
            assert (answered.body, answered.complete) == (RESULT, True)
            assert answered.field(b"transfer-encoding") == [b"chunked"]
        assert [event.outcome for event in stage.events()] == ["done", "done"]
        assert stage.upstream.connections == 2


@pytest.mark.parametrize(
    "answer",
    [b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n" + chunk(RESULT) + b"0\r\n\r\n", answer_of(RESULT)],
)
async def test_an_http_1_0_client_gets_a_body_it_can_read(tmp_path: Path, answer: bytes) -> None:
    async with staged(tmp_path) as stage:
        stage.connect()
        stage.upstream.handler = replying(answer)
        client = await stage.client()
        client.send(stage.request().replace(b"HTTP/1.1", b"HTTP/1.0"))
        answered = await client.answer()
        assert (answered.body, answered.complete) == (RESULT, True)
        assert answered.field(b"transfer-encoding") == []
        assert await client.closed()


async def test_answers_without_a_body_are_framed_as_such(tmp_path: Path) -> None:
    async with staged(tmp_path) as stage:
        stage.connect()
        client = await stage.client()
        for status, fields in (
            (b"204 No Content", b""),
            (b"304 Not Modified", b"etag: x\r\n"),
            (b"202 Accepted", b"content-length: 0\r\n"),
        ):
            stage.upstream.handler = replying(b"HTTP/1.1 " + status + b"\r\n" + fields + b"\r\n")
            client.send(stage.request())
            head = await client.head()
            assert head.status == int(status[:3])
            assert head.field(b"content-length") == ([b"0"] if head.status == 202 else [])
            assert head.field(b"transfer-encoding") == []
        assert stage.upstream.connections == 1
        await stage.event(3)


async def test_interim_answers_are_skipped(tmp_path: Path) -> None:
    async with staged(tmp_path) as stage:
        stage.connect()
        interim = b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\n"
        stage.upstream.handler = replying(interim + answer_of(RESULT))
        client = await stage.client()
        for _ in range(2):
            client.send(stage.request())
            answered = await client.answer()
            assert (answered.status, answered.body) == (200, RESULT)
        assert stage.upstream.connections == 1


async def test_a_switch_of_protocols_is_refused(tmp_path: Path) -> None:
    async with staged(tmp_path) as stage:
        stage.connect()
        stage.upstream.handler = replying(b"HTTP/1.1 101 Switching Protocols\r\nupgrade: x\r\n\r\n")
        answered = await stage.ask(stage.request(PING, b"connection: upgrade", b"upgrade: x"))
        assert (answered.status, answered.code) == (502, "upstream_malformed")


async def test_four_mebibytes_pass_both_ways(tmp_path: Path) -> None:
    text = b"a" * ((4 << 20) - 100)
    body = b'{"jsonrpc":"2.0","id":7,"method":"tools/call","params":{"name":"echo","text":"' + text + b'"}}'

    async def echo(asked: Asked, _: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(answer_of(asked.body))

    async with staged(tmp_path) as stage:
        connection = stage.connect()
        stage.upstream.handler = echo
        answered = await stage.ask(stage.request(body))
        assert answered.complete and answered.body == body
        event = await stage.event()
        assert event.bytes_out == len(body) and event.bytes_in > len(body)
        await stage.quiet(connection)


async def early(asked: bytes, answer: bytes, stage: Stage, *, close: bool = False):
    """An upstream that answers when it has seen the head, and reads no body."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        stage.upstream.connections += 1
        await reader.readuntil(b"\r\n\r\n")
        writer.transport.pause_reading()
        writer.write(answer)
        if close:
            writer.close()
        await stage.upstream._tell()

    return await asyncio.start_server(serve, "127.0.0.1", 0, limit=4096)


async def test_an_answer_that_comes_before_the_body_was_read_passes_and_ends_the_connection(tmp_path: Path) -> None:
    body = b'{"jsonrpc":"2.0","id":7,"method":"tools/call","params":{"name":"' + b"a" * (4_000_000) + b'"}}'
    async with staged(tmp_path) as stage:
        server = await early(body, answer_of(b"too large", status=b"413 Too Large"), stage)
        connection = stage.connect(upstream_url=f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/")
        answered = await stage.ask(stage.request(body))
        assert (answered.status, answered.body) == (413, b"too large")
        await stage.quiet(connection)
        assert stage.gate.pool._open == set()
        server.close()


async def test_the_body_of_a_long_stream_is_not_held_once_it_is_answered(tmp_path: Path) -> None:
    async with staged(tmp_path) as stage:
        connection = stage.connect()
        stage.upstream.handler = replying(SSE_HEAD)
        client = await stage.client()
        client.send(stage.request(CALL))
        await client.head()
        assert stage.gate.bodies.used == 0
        (relay,) = stage.gate.live
        assert relay._body == b""
        await client.close()
        await stage.quiet(connection)
