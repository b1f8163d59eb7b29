"""What an attacker tried on the running gateway, each held by one claim (docs/threats.md)."""

from __future__ import annotations

import asyncio
import json
import socket
from pathlib import Path

import msgspec
import pytest

from keystile.core.apikey import contains_key
from tests.gateway.stage import CALL, RESULT, Asked, staged

pytestmark = pytest.mark.anyio

HEALTH = b"GET /healthz HTTP/1.1\r\nhost: a\r\n\r\n"
STREAM = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"


async def stream(_: Asked, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """A stream that begins and does not go on."""
    writer.write(STREAM)
    await reader.read()


async def test_one_client_that_pipelines_leaves_the_others_their_turn(tmp_path: Path) -> None:
    async with staged(tmp_path) as stage:
        stage.connect()
        greedy = await stage.client()
        greedy.send(HEALTH * 20_000)
        drained = asyncio.ensure_future(greedy.reader.read(-1))
        other = await stage.client()
        other.send(HEALTH)
        assert (await other.answer()).status == 200
        (first, *_) = [caller for caller in stage.gate.callers if caller._intake.buffer]
        assert first._intake.buffer, "the other was answered while the greedy one's requests still waited"
        drained.cancel()
        greedy.writer.transport.abort()


async def test_a_body_of_single_byte_chunks_leaves_the_others_their_turn(tmp_path: Path) -> None:
    async with staged(tmp_path) as stage:
        stage.connect()
        head = stage.request(b"").replace(b"content-length: 0", b"transfer-encoding: chunked")
        greedy = await stage.client()
        greedy.send(head + b"1\r\nx\r\n" * 400_000)
        other = await stage.client()
        other.send(HEALTH)
        assert (await other.answer()).status == 200
        assert any(caller._intake.reading for caller in stage.gate.callers)
        greedy.writer.transport.abort()


async def test_a_long_id_is_refused_and_a_long_name_is_not_kept(tmp_path: Path) -> None:
    async with staged(tmp_path) as stage:
        stage.connect()
        stage.upstream.handler = stream
        long = b"x" * 100_000
        answered = await stage.ask(stage.request(CALL.replace(b"7", b'"%b"' % long, 1)))
        assert (answered.status, answered.code) == (400, "message_invalid")
        client = await stage.client()
        client.send(stage.request(CALL.replace(b"echo", long)))
        assert (await client.head()).status == 200
        (live,) = stage.gate.live
        assert max(len(text or "") for text in live._record.asked) <= 256
        assert not hasattr(live, "_forward")
        await client.close()


async def test_a_body_counts_until_it_is_out_even_if_the_answer_comes_first(tmp_path: Path) -> None:
    body = json.dumps({"jsonrpc": "2.0", "id": 1, "method": "x", "params": {"pad": "y" * 3_900_000}}).encode()
    listener = socket.create_server(("127.0.0.1", 0))
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    listener.setblocking(False)
    loop = asyncio.get_running_loop()
    async with staged(tmp_path) as stage:
        stage.connect(upstream_url=f"http://127.0.0.1:{listener.getsockname()[1]}/")
        client = await stage.client()
        client.send(stage.request(body))
        upstream, _ = await loop.sock_accept(listener)
        await loop.sock_recv(upstream, 4096)
        await loop.sock_sendall(upstream, STREAM)
        assert (await client.head()).status == 200
        assert stage.gate.bodies.used == len(body)
        while stage.gate.bodies.used:
            await loop.sock_recv(upstream, 1 << 20)
        upstream.close()
        await client.close()
    listener.close()


async def test_a_flood_of_interim_answers_ends_the_exchange(tmp_path: Path) -> None:
    async def flood(_: Asked, __: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 103 Early Hints\r\n\r\n" * 9)

    async with staged(tmp_path) as stage:
        stage.connect()
        stage.upstream.handler = flood
        assert (await stage.ask(stage.request())).code == "upstream_malformed"


async def test_one_key_cannot_hold_every_body(tmp_path: Path) -> None:
    async with staged(tmp_path, bodies_bytes=400_000, body_bytes=100_000) as stage:
        stage.connect()
        head = stage.request(b"x" * 90_000)
        greedy = [await stage.client() for _ in range(4)]
        for client in greedy:
            client.send(head[:-1])
        refused = [await client.answer() for client in greedy[1:]]
        assert {answered.code for answered in refused} == {"body_budget_spent"}
        assert (await stage.ask(stage.request(key=stage.make_key()))).status == 200
        for client in greedy:
            client.writer.transport.abort()


async def test_strangers_bodies_make_no_key_wait(tmp_path: Path) -> None:
    async with staged(tmp_path, api_bodies_bytes=40_000, api_body_bytes=9_000) as stage:
        lines = b"POST /api/v1/x HTTP/1.1\r\nhost: localhost\r\ncontent-length: 8000\r\n"
        strangers = [await stage.client() for _ in range(4)]
        for client in strangers:
            client.send(lines + b"\r\n" + b"x" * 7_999)
        await stage.until(lambda: stage.gate.strange_bodies.used > 0)
        own = await stage.ask(lines + b"authorization: Bearer " + stage.key.encode() + b"\r\n\r\n" + b"x" * 8_000)
        assert own.json["error"]["code"] == "control_unavailable", "it was held whole and sent on"
        for client in strangers:
            client.writer.transport.abort()


def test_a_decoy_hides_no_key() -> None:
    from keystile import mint

    key = mint.new_api_key().encode()
    for decoy in (b"ks_", b"ks_" + b"a" * 47, b"ks_" + b"a" * 48, b"ks_ks_", b"kks_" * 20):
        assert contains_key(decoy + key)
        assert contains_key(b"x" + decoy + key + b"y")


async def test_a_key_that_expires_while_its_body_arrives_runs_nothing(tmp_path: Path) -> None:
    async with staged(tmp_path, clock=False) as stage:
        stage.connect()
        key = stage.make_key(expires_at=1 << 50)
        request = stage.request(key=key)
        client = await stage.client()
        client.send(request[:-1])
        await stage.until(lambda: any(caller._intake.reading for caller in stage.gate.callers))
        (caller,) = stage.gate.callers
        admitted = caller._request._admitted
        expired = msgspec.structs.replace(admitted.key, expires_at=1)
        caller._request._admitted = msgspec.structs.replace(admitted, key=expired)
        client.send(request[-1:])
        assert (await client.answer()).code == "key_expired"
        assert stage.upstream.asked == []


async def test_a_request_of_ours_that_comes_back_is_refused(tmp_path: Path) -> None:
    async with staged(tmp_path) as stage:
        stage.connect(upstream_url=f"http://127.0.0.1:{stage.port}/v1/mcp/upstream", credential=stage.key)
        answered = await stage.ask(stage.request())
        assert answered.code == "upstream_auth_failed"  # the inner answer is 403 gateway_loop
        assert {event.refusal for event in stage.events()} == {"gateway_loop", "upstream_auth_failed"}


@pytest.mark.parametrize("line", [b"X-%b: 1", b"%b: 1", b"X-Echo: a%bz"])
async def test_a_credential_in_a_field_name_does_not_come_back(tmp_path: Path, line: bytes) -> None:
    secret = b"Made-Up_Credential-ABC0123"

    async def echo(_: Asked, __: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\n%b\r\ncontent-length: %d\r\n\r\n%b" % (line % secret, len(RESULT), RESULT))

    async with staged(tmp_path) as stage:
        stage.connect(credential=secret.decode())
        stage.upstream.handler = echo
        answered = await stage.ask(stage.request())
        assert answered.status == 200
        assert secret.lower() not in answered.head.lower()
        assert (await stage.event()).redacted


async def test_a_credential_split_between_name_and_value_does_not_come_back(tmp_path: Path) -> None:
    async def echo(_: Asked, __: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nclient-id:Made-up-0123456789\r\ncontent-length: 2\r\n\r\n{}")

    async with staged(tmp_path) as stage:
        stage.connect(credential="client-id:Made-up-0123456789")
        stage.upstream.handler = echo
        answered = await stage.ask(stage.request())
        assert b"Made-up-0123456789" not in answered.head


async def test_large_heads_and_old_generations_are_not_remembered(tmp_path: Path) -> None:
    async with staged(tmp_path) as stage:
        stage.connect()
        assert (await stage.ask(stage.request(CALL, b"accept: " + b"a/b," * 700))).status == 200
        assert not stage.gate.heads._known
        assert (await stage.ask(stage.request())).status == 200
        stage.make_key()
        assert (await stage.ask(stage.request(CALL, b"accept: a/b"))).status == 200
        assert len(stage.gate.heads._known) == 1
