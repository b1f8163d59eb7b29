"""Bytes on a real socket become requests by one grammar, one at a time, in order; or they are refused and it closes."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from keystile.errors import REFUSALS
from tests.gateway.stage import PING, Answered, Asked, Client, answer_result, staged
from tests.vectors.smuggling import Case, cases

pytestmark = pytest.mark.anyio

HEALTH = b"GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n"
FRAMING = {"malformed_http", "http_version_unsupported", "transfer_coding_unsupported", "head_too_large"}


def code_of(answered: Answered) -> str | None:
    error = answered.json.get("error", {})
    return error.get("data", {}).get("gateway") or error.get("code")


def with_key(sent: bytes, key: str) -> bytes:
    """The case with a valid key on its first request: nothing but its framing stands in its way."""
    line = b"Host: localhost\r\n"
    return sent.replace(
        line, line + b"Authorization: Bearer " + key.encode() + b"\r\nContent-Type: application/json\r\n", 1
    )


@pytest.mark.parametrize("case", cases(), ids=lambda case: case.name)
async def test_smuggling_is_refused_on_a_real_socket(tmp_path: Path, case: Case) -> None:
    async with staged(tmp_path) as stage:
        stage.connect("vectors")
        client = await stage.client()
        sent = with_key(case.sent, stage.key)
        client.send(sent)
        for outcome in case.outcomes:
            if outcome == "waits":
                await stage.until(
                    lambda: any(caller._intake.buffer or caller._intake.reading for caller in stage.gate.callers)
                )
                assert not client.reader._buffer
            elif outcome == "accepted":
                assert code_of(await client.answer()) not in FRAMING
            else:
                answered = await client.answer()
                assert (code_of(answered), answered.status) == (outcome, REFUSALS[outcome].status)
                assert answered.field(b"connection") == [b"close"]
                assert await client.closed()
        assert stage.upstream.asked == []
        await client.close()


async def test_pipelined_requests_are_answered_in_order_and_one_at_a_time(tmp_path: Path) -> None:
    under_way: list[int] = []

    async def answer(asked: Asked, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        under_way.append(len(stage.gate.live))
        await asyncio.sleep(0)
        body = asked.body
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body))

    async with staged(tmp_path) as stage:
        stage.connect()
        stage.upstream.handler = answer
        client = await stage.client()
        bodies = [b'{"jsonrpc":"2.0","id":%d,"method":"tools/list"}' % number for number in range(50)]
        client.send(b"".join(map(stage.request, bodies)))
        assert [(await client.answer()).body for _ in bodies] == bodies
        assert [asked.body for asked in stage.upstream.asked] == bodies
        assert under_way == [1] * len(bodies)
        assert stage.upstream.connections == 1
        await stage.event(len(bodies))


async def test_a_thousand_pipelined_refusals_neither_recurse_nor_close(tmp_path: Path) -> None:
    async with staged(tmp_path) as stage:
        client = await stage.client()
        client.send(stage.request(target=b"/v1/mcp/nobody", method=b"GET") * 1000)
        statuses = {(await client.answer()).status for _ in range(1000)}
        assert statuses == {404}
        await stage.event(1000)


async def test_nothing_behind_a_malformed_request_is_read(tmp_path: Path) -> None:
    async with staged(tmp_path) as stage:
        stage.connect()
        client = await stage.client()
        client.send(b"GET / HTTP/1.1\nhost: x\n\n" * 1000 + stage.request())
        assert (await client.answer()).status == 400
        assert await client.closed()
        assert stage.upstream.asked == []


async def test_a_client_that_pipelines_and_never_reads_is_bounded(tmp_path: Path) -> None:
    async with staged(tmp_path, buffer_bytes=16 * 1024, head_bytes=8 * 1024) as stage:
        client = await stage.client()
        client.writer.transport.pause_reading()
        client.writer.transport.set_write_buffer_limits(0)
        while True:
            client.send(HEALTH * 1000)
            (caller,) = stage.gate.callers
            written = asyncio.ensure_future(client.writer.drain())
            await stage.turns(100)
            if not written.done():
                break
        held = caller._transport.get_write_buffer_size() + len(caller._intake.buffer)
        assert held < 16 * 1024 + 4 * 64 * 1024
        client.writer.transport.resume_reading()
        assert (await client.answer()).status == 200
        written.cancel()
        client.writer.transport.abort()


async def test_a_head_split_at_every_byte_is_read(tmp_path: Path) -> None:
    async with staged(tmp_path) as stage:
        stage.connect()
        client = await stage.client()
        for byte in stage.request():
            client.send(bytes((byte,)))
            await asyncio.sleep(0)
        assert (await client.answer()).status == 200
        client.send(stage.request())
        assert (await client.answer()).status == 200
        assert len(stage.upstream.asked) == 2


async def test_a_chunked_body_goes_upstream_whole_with_its_length(tmp_path: Path) -> None:
    async with staged(tmp_path) as stage:
        stage.connect()
        client = await stage.client()
        head, _, body = stage.request().partition(b"\r\n\r\n")
        head = head.replace(b"content-length: %d" % len(body), b"transfer-encoding: chunked")
        client.send(head + b"\r\n\r\n")
        for byte in body:
            client.send(b"1\r\n%c\r\n" % byte)
            await asyncio.sleep(0)
        client.send(b"0\r\n\r\n")
        assert (await client.answer()).status == 200
        (asked,) = stage.upstream.asked
        assert asked.body == body
        assert asked.field(b"content-length") == [b"%d" % len(body)]
        assert asked.field(b"transfer-encoding") == []


async def test_a_client_that_expects_100_continue_gets_it_before_its_body_is_sent(tmp_path: Path) -> None:
    async with staged(tmp_path) as stage:
        stage.connect()
        client = await stage.client()
        head, _, body = stage.request(PING, b"expect: 100-continue").partition(b"\r\n\r\n")
        client.send(head + b"\r\n\r\n")
        assert (await client.head()).status == 100
        client.send(body)
        assert (await client.answer()).status == 200


async def test_a_refusal_comes_instead_of_100_continue(tmp_path: Path) -> None:
    async with staged(tmp_path) as stage:
        stage.connect()
        client = await stage.client()
        head, _, _ = stage.request(b"x" * 100, b"expect: 100-continue", key=None).partition(b"\r\n\r\n")
        client.send(head + b"\r\n\r\n")
        assert (await client.answer()).status == 401
        assert await client.closed()


@pytest.mark.parametrize("target", [b"/healthz", b"/v1/mcp/upstream", b"/v1/mcp/upstream/x", b"/.well-known/x"])
async def test_an_answer_to_head_has_no_body(tmp_path: Path, target: bytes) -> None:
    async with staged(tmp_path) as stage:
        stage.connect()
        client = await stage.client()
        client.send(stage.request(method=b"HEAD", target=target) + HEALTH)
        assert (await client.head()).status in {200, 404, 405}
        assert (await client.answer()).body == b'{"status":"ok"}'


@pytest.mark.parametrize("target", [b"/healthz", b"/v1/mcp/upstream", b"/.well-known/x"])
async def test_a_refused_client_that_still_sends_can_read_the_refusal(tmp_path: Path, target: bytes) -> None:
    async with staged(tmp_path) as stage:
        stage.connect()
        client = await stage.client()
        client.send(b"POST " + target + b" HTTP/1.1\r\nhost: localhost\r\ncontent-length: 800000\r\n\r\n")
        answered = await client.answer()
        assert answered.complete and answered.field(b"connection") == [b"close"]
        client.send(b"x" * 800_000)
        await client.writer.drain()
        assert await client.closed()
        await client.close()


async def test_a_client_that_wants_to_close_gets_its_answer_first(tmp_path: Path) -> None:
    async with staged(tmp_path) as stage:
        stage.connect()
        client = await stage.client()
        client.send(stage.request(PING, b"connection: close"))
        answered = await client.answer()
        assert answered.complete and answered.field(b"connection") == [b"close"]
        assert await client.closed()


async def test_two_clients_do_not_wait_for_each_other(tmp_path: Path) -> None:
    first_may_go = asyncio.Event()

    async def answer(asked: Asked, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if b"first" in asked.body:
            await first_may_go.wait()
        await answer_result(asked, reader, writer)

    async with staged(tmp_path) as stage:
        stage.connect()
        stage.upstream.handler = answer
        slow: Client = await stage.client()
        slow.send(stage.request(b'{"jsonrpc":"2.0","id":1,"method":"first"}'))
        assert (await stage.ask(stage.request())).status == 200
        first_may_go.set()
        assert (await slow.answer()).status == 200
