"""Every limit of the gateway that the configuration names, and what happens at it."""

from __future__ import annotations

import asyncio
import shutil
import socket
from pathlib import Path

import pytest

from keystile.config import Limits
from tests.gateway.stage import CALL, PING, RESULT, Asked, Stage, answer_of, replying, staged

pytestmark = pytest.mark.anyio

SSE_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
NEVER = replying(b"")

TRIED = {
    "head_bytes",
    "fields",
    "body_bytes",
    "bodies_bytes",
    "api_body_bytes",
    "api_bodies_bytes",
    "buffer_bytes",
    "head_seconds",
    "body_seconds",
    "dial_seconds",
    "first_byte_seconds",
    "idle_seconds",
    "keepalive_seconds",
    "comment_seconds",
    "check_seconds",
    "pool_idle_seconds",
    "pool_idle",
    "in_flight",
    "sockets",
    "spool_segment_bytes",
    "spool_bytes",
}
ELSEWHERE = {"drain_seconds"}  # the worker process's, in the end-to-end tests


def test_every_limit_is_tried() -> None:
    assert set(Limits.__struct_fields__) == TRIED | ELSEWHERE


def chunked(request: bytes) -> bytes:
    head, _, body = request.partition(b"\r\n\r\n")
    head = head.replace(b"content-length: %d" % len(body), b"transfer-encoding: chunked")
    return b"%b\r\n\r\n%x\r\n%b\r\n0\r\n\r\n" % (head, len(body), body)


async def refused(stage: Stage, request: bytes, status: int, code: str):
    answered = await stage.ask(request)
    found = answered.json["error"]
    assert (answered.status, found.get("data", {}).get("gateway") or found["code"]) == (status, code)
    assert stage.upstream.asked == []
    return answered


async def test_head_bytes(tmp_path: Path) -> None:
    async with staged(tmp_path, head_bytes=1024) as stage:
        stage.connect()
        room = 1024 - len(stage.request(PING, b"x-a: ")) + len(PING)
        await refused(stage, stage.request(PING, b"x-a: " + b"a" * (room + 1)), 431, "head_too_large")
        assert (await stage.ask(stage.request(PING, b"x-a: " + b"a" * room))).status == 200


async def test_fields(tmp_path: Path) -> None:
    async with staged(tmp_path, fields=10) as stage:
        stage.connect()
        await refused(stage, stage.request(PING, *[b"x-a: b"] * 7), 431, "too_many_fields")
        assert (await stage.ask(stage.request(PING, *[b"x-a: b"] * 6))).status == 200
        stage.upstream.handler = replying(answer_of(RESULT, *[b"x-a: b"] * 10))
        assert (await stage.ask(stage.request())).code == "upstream_malformed"


@pytest.mark.parametrize("framed", [bytes, chunked])
async def test_body_bytes(tmp_path: Path, framed) -> None:
    async with staged(tmp_path, body_bytes=len(PING)) as stage:
        stage.connect()
        await refused(stage, framed(stage.request(PING + b" ")), 413, "body_too_large")
        assert (await stage.event()).refusal == "body_too_large"
        assert (await stage.ask(framed(stage.request(PING)))).status == 200


async def test_bodies_bytes(tmp_path: Path) -> None:
    async with staged(tmp_path, bodies_bytes=len(CALL) + 10) as stage:
        connection = stage.connect()
        first = await stage.client()
        first.send(stage.request()[:-1])
        await stage.until(lambda: stage.gate.bodies.used == len(CALL) - 1)
        answered = await refused(stage, stage.request(), 503, "body_budget_spent")
        assert answered.field(b"retry-after") == [b"1"]
        first.send(stage.request()[-1:])
        assert (await first.answer()).status == 200
        await first.close()
        assert (await stage.ask(stage.request())).status == 200
        await stage.quiet(connection)


async def test_api_body_bytes(tmp_path: Path) -> None:
    async with staged(tmp_path, api_body_bytes=10) as stage:
        await refused(stage, stage.request(b"x" * 11, target=b"/api/v1/connections"), 413, "body_too_large")
        await refused(stage, chunked(stage.request(b"x" * 11, target=b"/api/v1/keys")), 413, "body_too_large")


async def test_api_bodies_bytes(tmp_path: Path) -> None:
    async with staged(tmp_path, api_bodies_bytes=10) as stage:
        stage.connect()
        await refused(stage, stage.request(b"x" * 11, target=b"/api/v1/connections"), 503, "body_budget_spent")
        assert (await stage.ask(stage.request())).status == 200
        assert stage.gate.api_bodies.used == 0


async def test_buffer_bytes(tmp_path: Path) -> None:
    async with staged(tmp_path, buffer_bytes=8192) as stage:
        stage.connect()
        stage.upstream.handler = replying(answer_of(b"x" * (16 << 20)))
        client = await stage.client()
        client.send(stage.request())
        await client.head()
        client.writer.transport.pause_reading()
        (caller,) = stage.gate.callers
        await stage.until(lambda: caller._choked)
        await stage.turns(500)
        assert caller._transport.get_write_buffer_size() <= 8192
        client.writer.transport.abort()


async def test_head_seconds(tmp_path: Path) -> None:
    async with staged(tmp_path, head_seconds=0.05) as stage:
        await refused(stage, b"GET / HTTP/1.1\r\n", 408, "head_timeout")
        silent = await stage.client()
        assert await silent.closed()


async def test_head_seconds_are_not_prolonged_by_a_head_that_drips_in(tmp_path: Path) -> None:
    async with staged(tmp_path, head_seconds=0.05) as stage:
        client = await stage.client()
        client.send(b"GET / HTTP/1.1\r\nx: ")
        while not client.reader._buffer:
            client.send(b"a")
            await asyncio.sleep(0)
        assert (await client.answer()).status == 408


async def test_body_seconds(tmp_path: Path) -> None:
    async with staged(tmp_path, body_seconds=0.05) as stage:
        connection = stage.connect()
        await refused(stage, stage.request()[:-1], 408, "body_timeout")
        assert (await stage.event()).refusal == "body_timeout"
        await stage.quiet(connection)


async def test_body_seconds_are_for_progress_not_for_the_whole(tmp_path: Path) -> None:
    async with staged(tmp_path, body_seconds=60, clock=False) as stage:
        stage.connect()
        client = await stage.client()
        client.send(stage.request()[:-50])
        await stage.until(lambda: stage.gate.bodies.used == len(CALL) - 50)
        (caller,) = stage.gate.callers
        before = caller._deadline
        client.send(stage.request()[-50:-10])
        await stage.until(lambda: stage.gate.bodies.used == len(CALL) - 10)
        assert caller._deadline > before
        caller.tick(before + 0.000_001)
        client.send(stage.request()[-10:])
        assert (await client.answer()).status == 200


async def test_dial_seconds(tmp_path: Path) -> None:
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    listener.listen(0)
    queued = [socket.socket() for _ in range(4)]
    for each in queued:
        each.setblocking(False)
        each.connect_ex(listener.getsockname())
    async with staged(tmp_path, dial_seconds=0.05) as stage:
        for scheme in ("http", "https"):
            stage.connect(scheme, upstream_url=f"{scheme}://127.0.0.1:{listener.getsockname()[1]}/")
            await refused(stage, stage.request(target=f"/v1/mcp/{scheme}".encode()), 504, "upstream_dial_timeout")
    for each in (listener, *queued):
        each.close()


async def test_first_byte_seconds(tmp_path: Path) -> None:
    async with staged(tmp_path, first_byte_seconds=0.05) as stage:
        connection = stage.connect()
        stage.upstream.handler = NEVER
        answered = await stage.ask(stage.request())
        assert (answered.status, answered.code, answered.json["id"]) == (504, "upstream_timeout", 7)
        assert (await stage.event()).outcome == "upstream_failed"
        await stage.upstream.until(lambda: stage.upstream.closed == 1)
        await stage.quiet(connection)


async def test_interim_answers_do_not_prolong_the_first_byte(tmp_path: Path) -> None:
    async def interim(_: Asked, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 102 Processing\r\n\r\n" * 8)
        await reader.read()

    async with staged(tmp_path, first_byte_seconds=0.05) as stage:
        stage.connect()
        stage.upstream.handler = interim
        assert (await stage.ask(stage.request())).code == "upstream_timeout"


async def test_idle_seconds(tmp_path: Path) -> None:
    async with staged(tmp_path, idle_seconds=0.05, comment_seconds=0.02) as stage:
        connection = stage.connect()
        stage.upstream.handler = replying(SSE_HEAD + b"9\r\ndata: 1\n\n\r\n")
        answered = await stage.ask(stage.request())
        assert not answered.complete and answered.body.startswith(b"data: 1\n\n")
        event = await stage.event()
        assert (event.outcome, event.refusal, event.status) == ("upstream_failed", "stream_idle", 200)
        await stage.quiet(connection)


async def test_keepalive_seconds(tmp_path: Path) -> None:
    async with staged(tmp_path, keepalive_seconds=0.05) as stage:
        stage.connect()
        client = await stage.client()
        client.send(stage.request())
        assert (await client.answer()).status == 200
        assert await client.closed()


async def test_keepalive_seconds_end_a_client_that_never_reads_its_last_answer(tmp_path: Path) -> None:
    async with staged(tmp_path, keepalive_seconds=0.05) as stage:
        connection = stage.connect()
        stage.upstream.handler = replying(answer_of(b"x" * 60_000))
        narrow = socket.socket()
        narrow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        narrow.connect(("127.0.0.1", stage.port))
        _, writer = await asyncio.open_connection(sock=narrow)
        writer.transport.pause_reading()
        await stage.until(lambda: bool(stage.gate.callers))
        (caller,) = stage.gate.callers
        caller._transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        writer.write(stage.request(PING, b"connection: close"))
        assert (await stage.event()).outcome == "done"
        assert caller._transport.get_write_buffer_size() > 0
        await stage.quiet(connection)
        writer.transport.abort()


async def test_comment_seconds(tmp_path: Path) -> None:
    async with staged(tmp_path, comment_seconds=0.02) as stage:
        stage.connect()
        stage.upstream.handler = replying(SSE_HEAD)
        client = await stage.client()
        client.send(stage.request())
        await client.head()
        assert [await client.chunk() for _ in range(3)] == [b":\n\n"] * 3
        await client.close()


async def test_check_seconds_is_how_long_a_revoked_stream_may_live_on(tmp_path: Path) -> None:
    async with staged(tmp_path, clock=False) as stage:
        stage.connect()
        stage.upstream.handler = replying(SSE_HEAD)
        client = await stage.client()
        client.send(stage.request())
        await client.head()
        stage.drop("key", stage.key_row(stage.key).id)
        assert len(stage.gate.live) == 1, "nothing has looked yet"
        stage.gate.tick()
        assert not stage.gate.live
        assert await client.closed()


async def test_pool_idle_seconds(tmp_path: Path) -> None:
    async with staged(tmp_path, pool_idle_seconds=0.02) as stage:
        stage.connect()
        await stage.ask(stage.request())
        await stage.upstream.until(lambda: stage.upstream.closed == 1)
        assert (await stage.ask(stage.request())).status == 200
        assert stage.upstream.connections == 2


async def test_pool_idle(tmp_path: Path) -> None:
    all_here = asyncio.Barrier(5)

    async def together(asked: Asked, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await all_here.wait()
        writer.write(answer_of(RESULT))

    async with staged(tmp_path, pool_idle=2) as stage:
        stage.connect()
        stage.upstream.handler = together
        await asyncio.gather(*[stage.ask(stage.request()) for _ in range(5)])
        await stage.upstream.until(lambda: stage.upstream.closed == 3)
        assert len(stage.gate.pool._open) == 2


@pytest.mark.parametrize("own", [None, 2])
async def test_in_flight(tmp_path: Path, own: int | None) -> None:
    async with staged(tmp_path, in_flight=2 if own is None else 5) as stage:
        connection = stage.connect(max_in_flight=own)
        other = stage.connect("other")
        stage.upstream.handler = NEVER
        waiting = [await stage.client() for _ in range(2)]
        for client in waiting:
            client.send(stage.request())
        await stage.until(lambda: stage.gate.in_flight.count(connection.number) == 2)
        answered = await stage.ask(stage.request())
        assert (answered.status, answered.code) == (503, "connection_busy")
        assert answered.field(b"retry-after") == [b"1"]
        stage.upstream.handler = replying(answer_of(RESULT))
        assert (await stage.ask(stage.request(target=b"/v1/mcp/other"))).status == 200
        for client in waiting:
            await client.close()
        await stage.quiet(connection, other)
        assert (await stage.ask(stage.request())).status == 200


async def test_sockets(tmp_path: Path) -> None:
    async with staged(tmp_path, sockets=2) as stage:
        stage.connect()
        clients = [await stage.client() for _ in range(2)]
        await stage.until(lambda: len(stage.gate.callers) == 2)
        one_too_many = await stage.client()
        answered = await one_too_many.answer()
        assert (answered.status, answered.json["error"]["code"]) == (503, "too_many_clients")
        assert answered.field(b"retry-after") == [b"1"]
        assert await one_too_many.closed()
        for client in clients:
            client.send(stage.request())
            assert (await client.answer()).status == 200
            await client.close()
        await stage.quiet()
        assert (await stage.ask(stage.request())).status == 200


async def test_a_full_spool_forwards_nothing(tmp_path: Path) -> None:
    segment = 80 * 1024
    async with staged(tmp_path, spool_segment_bytes=segment, spool_bytes=segment) as stage:
        stage.connect()
        client = await stage.client()
        while True:
            client.send(stage.request())
            if (answered := await client.answer()).status != 200:
                break
        assert (answered.status, answered.code) == (503, "trail_unavailable")
        assert answered.field(b"retry-after") == [b"1"]
        asked = len(stage.upstream.asked)
        assert asked == len(stage.events()) > 0
        assert (await stage.ask(stage.request())).code == "trail_unavailable"
        assert len(stage.upstream.asked) == asked
        await client.close()


async def test_a_spool_folder_that_is_gone_forwards_nothing_and_comes_back(tmp_path: Path) -> None:
    segment = 80 * 1024
    async with staged(tmp_path, spool_segment_bytes=segment) as stage:
        stage.connect()
        away = tmp_path / "away"
        shutil.move(stage.folders.spool, away)
        client = await stage.client()
        while True:
            client.send(stage.request())
            if (await client.answer()).status != 200:
                break
        shutil.move(away, stage.folders.spool)
        stage.gate.trail.spool._look_at = 0.0
        stage.gate.tick()
        client.send(stage.request())
        assert (await client.answer()).status == 200
        await client.close()


async def test_a_feed_shorter_than_the_word_is_not_served_from(tmp_path: Path) -> None:
    async with staged(tmp_path, clock=False) as stage:
        stage.connect()
        assert (await stage.ask(stage.request())).status == 200
        stage.word.cells[0] += 1
        answered = await stage.ask(stage.request())
        assert (answered.status, answered.code) == (503, "configuration_stale")
        assert answered.field(b"retry-after") == [b"1"]
        assert len(stage.upstream.asked) == 1
        stage.word.cells[0] -= 1
        assert (await stage.ask(stage.request())).status == 200
