"""Upstream connections are kept warm where that is safe, and no request is ever sent twice."""

from __future__ import annotations

import asyncio
import socket
import struct
import threading
from pathlib import Path

import pytest

from tests.gateway.stage import RESULT, Asked, answer_of, answer_result, replying, staged

pytestmark = pytest.mark.anyio


async def test_a_warm_connection_is_used_again_by_other_clients_and_keys(tmp_path: Path) -> None:
    async with staged(tmp_path) as stage:
        stage.connect()
        for key in ("", stage.make_key(), ""):
            assert (await stage.ask(stage.request(key=key))).status == 200
        assert stage.upstream.connections == 1


async def test_two_connections_to_one_origin_share_nothing(tmp_path: Path) -> None:
    async with staged(tmp_path) as stage:
        for slug in ("one", "two"):
            stage.connect(slug)
            assert (await stage.ask(stage.request(target=b"/v1/mcp/" + slug.encode()))).status == 200
        assert stage.upstream.connections == 2


async def test_an_idle_connection_that_the_upstream_closed_is_not_used(tmp_path: Path) -> None:
    async def answer_and_close(asked: Asked, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await answer_result(asked, reader, writer)
        writer.close()

    async with staged(tmp_path) as stage:
        stage.connect()
        stage.upstream.handler = answer_and_close
        for _ in range(20):
            assert (await stage.ask(stage.request())).status == 200
            await stage.until(lambda: not stage.gate.pool._open)
        assert stage.upstream.connections == 20


async def test_a_request_that_may_have_been_read_is_never_sent_twice(tmp_path: Path) -> None:
    async def die_at_the_second(asked: Asked, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if len(stage.upstream.asked) == 1:
            await answer_result(asked, reader, writer)
        else:
            writer.transport.abort()

    async with staged(tmp_path) as stage:
        stage.connect()
        stage.upstream.handler = die_at_the_second
        client = await stage.client()
        client.send(stage.request())
        assert (await client.answer()).status == 200
        client.send(stage.request())
        answered = await client.answer()
        assert (answered.status, answered.code) == (502, "upstream_connection_lost")
        assert "may have run" in answered.json["error"]["message"]
        await stage.turns()
        assert (len(stage.upstream.asked), stage.upstream.connections) == (2, 1)
        client.send(stage.request())
        stage.upstream.handler = answer_result
        assert (await client.answer()).status == 200
        await client.close()


UNFIT = {
    "connection: close": answer_of(RESULT, b"connection: close"),
    "connection: close in a list": answer_of(RESULT, b"connection: x, Close"),
    "HTTP/1.0": answer_of(RESULT).replace(b"HTTP/1.1", b"HTTP/1.0"),
    "bytes behind the answer": answer_of(RESULT) + b"H",
    "a second answer behind the first": answer_of(RESULT) * 2,
    "a body where there is none": answer_of(b"body", status=b"204 No Content"),
}


@pytest.mark.parametrize("name", UNFIT)
async def test_a_connection_whose_ends_may_disagree_is_not_used_again(tmp_path: Path, name: str) -> None:
    async with staged(tmp_path) as stage:
        stage.connect()
        stage.upstream.handler = replying(UNFIT[name])
        for _ in range(2):
            assert (await stage.ask(stage.request())).status in {200, 204}
        assert stage.upstream.connections == 2
        await stage.upstream.until(lambda: stage.upstream.closed == 2)


async def test_unsolicited_bytes_poison_an_idle_connection(tmp_path: Path) -> None:
    poison = asyncio.Event()

    async def answer_then_speak(asked: Asked, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await answer_result(asked, reader, writer)
        await poison.wait()
        writer.write(answer_of(b"for somebody else"))

    async with staged(tmp_path) as stage:
        stage.connect()
        stage.upstream.handler = answer_then_speak
        await stage.ask(stage.request())
        assert len(stage.gate.pool._open) == 1
        poison.set()
        await stage.until(lambda: not stage.gate.pool._open)
        stage.upstream.handler = answer_result
        assert (await stage.ask(stage.request())).body == RESULT
        assert stage.upstream.connections == 2


async def test_an_upstream_that_accepts_and_resets_at_once_is_an_answer_not_a_wait(tmp_path: Path) -> None:
    """The loss may be known before the dial's own task runs again: nothing may then wait for it a second time."""
    listener = socket.create_server(("127.0.0.1", 0))

    def reset() -> None:
        while True:
            try:
                accepted, _ = listener.accept()
            except OSError:
                return
            accepted.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            accepted.close()

    thread = threading.Thread(target=reset)
    thread.start()
    async with staged(tmp_path) as stage:
        connection = stage.connect(upstream_url=f"http://127.0.0.1:{listener.getsockname()[1]}/")
        for _ in range(50):
            answered = await stage.ask(stage.request())
            assert answered.status == 502
            assert answered.code in {"upstream_unreachable", "upstream_connection_lost"}
        await stage.quiet(connection)
        assert stage.gate.pool._open == set()
    listener.shutdown(socket.SHUT_RDWR)
    listener.close()
    thread.join()


async def test_an_upstream_nobody_serves_is_unreachable(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    async with staged(tmp_path) as stage:
        connection = stage.connect(upstream_url=f"http://127.0.0.1:{port}/")
        answered = await stage.ask(stage.request())
        assert (answered.status, answered.code, answered.json["id"]) == (502, "upstream_unreachable", 7)
        assert (await stage.event()).outcome == "upstream_failed"
        await stage.quiet(connection)
