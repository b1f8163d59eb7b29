"""A configuration change holds from the request that follows it, and ends at once what it withdraws."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import pytest
from msgspec.structs import replace

from keystile.model import Connection, Role
from tests.gateway.stage import CREDENTIAL, RESULT, Asked, Client, Stage, answer_of, replying, staged

pytestmark = pytest.mark.anyio

SSE_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
NEXT = "made-up-second-credential-98765"


def rotate(stage: Stage, connection: Connection) -> Connection:
    rotated = replace(connection, active_version=connection.active_version + 1)
    stage.put(rotated, NEXT)
    return rotated


async def streaming(stage: Stage, target: bytes = b"/v1/mcp/upstream", key: str = "") -> Client:
    stage.upstream.handler = replying(SSE_HEAD)
    client = await stage.client()
    client.send(stage.request(target=target, key=key))
    await client.head()
    return client


async def test_a_call_after_a_rotation_uses_the_new_credential_on_the_same_connections(tmp_path: Path) -> None:
    async with staged(tmp_path, clock=False) as stage:
        connection = stage.connect()
        client = await stage.client()
        for _ in range(2):
            client.send(stage.request())
            assert (await client.answer()).status == 200
            rotate(stage, connection)
        sent = [asked.field(b"authorization") for asked in stage.upstream.asked]
        assert sent == [[b"Bearer " + CREDENTIAL.encode()], [b"Bearer " + NEXT.encode()]]
        assert [event.credential_version for event in stage.events()] == [1, 2]
        assert stage.upstream.connections == 1


async def test_a_rotation_closes_no_stream_and_refuses_no_awaited_answer(tmp_path: Path) -> None:
    answer = asyncio.Event()

    async def later(_: Asked, __: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await answer.wait()
        writer.write(answer_of(RESULT))

    async with staged(tmp_path, clock=False) as stage:
        connection = stage.connect()
        stream = await streaming(stage)
        stage.upstream.handler = later
        waiting = await stage.client()
        waiting.send(stage.request())
        await stage.upstream.until(lambda: len(stage.upstream.asked) == 2)
        rotate(stage, connection)
        stage.gate.tick()
        assert len(stage.gate.live) == 2
        answer.set()
        assert (await waiting.answer()).status == 200
        assert (await stage.event()).credential_version == 1
        await stream.close()


WITHDRAWALS = {
    "revoke": (lambda stage, connection, key: stage.drop("key", key.id), 401, "key_invalid"),
    "expiry": (
        lambda stage, connection, key: stage.publish(replace(key, expires_at=time.time_ns() // 1_000_000 - 1)),
        401,
        "key_expired",
    ),
    "narrowed scope": (
        lambda stage, connection, key: stage.publish(replace(key, connections=("other",))),
        403,
        "out_of_scope",
    ),
    "lesser role": (
        lambda stage, connection, key: stage.publish(replace(key, role=Role.AUDITOR)),
        403,
        "role_cannot_call",
    ),
    "disable": (
        lambda stage, connection, key: stage.put(replace(connection, enabled=False), CREDENTIAL),
        403,
        "connection_disabled",
    ),
    "delete": (lambda stage, connection, key: stage.drop("connection", connection.id), 404, "connection_unknown"),
}


@pytest.mark.parametrize("name", WITHDRAWALS)
async def test_a_withdrawal_closes_the_streams_it_concerns_and_no_other(tmp_path: Path, name: str) -> None:
    act, _, code = WITHDRAWALS[name]
    async with staged(tmp_path, clock=False) as stage:
        connection = stage.connect()
        other = stage.connect("other-one")
        key = stage.make_key()
        concerned = await streaming(stage, key=key)
        unconcerned = await streaming(stage, b"/v1/mcp/other-one")
        act(stage, connection, stage.key_row(key))
        stage.gate.tick()
        assert await concerned.closed()
        event = await stage.event()
        assert (event.outcome, event.refusal, event.status) == ("refused", code, 200)
        await stage.upstream.until(lambda: stage.upstream.closed == 1)
        assert stage.gate.in_flight.count(connection.number) == 0
        assert [live.connection.id for live in stage.gate.live] == [other.id]
        await unconcerned.close()
        await stage.quiet(connection, other)


@pytest.mark.parametrize("name", WITHDRAWALS)
async def test_a_withdrawal_refuses_an_answer_that_is_awaited_and_every_later_call(tmp_path: Path, name: str) -> None:
    act, status, code = WITHDRAWALS[name]
    async with staged(tmp_path, clock=False) as stage:
        connection = stage.connect()
        stage.upstream.handler = replying(b"")
        client = await stage.client()
        client.send(stage.request())
        await stage.upstream.until(lambda: len(stage.upstream.asked) == 1)
        act(stage, connection, stage.key_row(stage.key))
        stage.gate.tick()
        answered = await client.answer()
        assert (answered.status, answered.code, answered.json["id"]) == (status, code, 7)
        assert (await stage.ask(stage.request())).code == code
        assert len(stage.upstream.asked) == 1
        await client.close()
        await stage.quiet(connection)


@pytest.mark.parametrize("name", WITHDRAWALS)
async def test_a_withdrawal_between_head_and_body_is_honoured(tmp_path: Path, name: str) -> None:
    act, status, code = WITHDRAWALS[name]
    async with staged(tmp_path, clock=False) as stage:
        connection = stage.connect()
        client = await stage.client()
        client.send(stage.request()[:-1])
        await stage.until(lambda: stage.gate.bodies.used > 0)
        act(stage, connection, stage.key_row(stage.key))
        client.send(stage.request()[-1:])
        answered = await client.answer()
        assert (answered.status, answered.code) == (status, code)
        assert stage.upstream.connections == 0
        assert (await stage.event()).refusal == code
        await client.close()
        await stage.quiet(connection)


async def test_a_rotation_between_head_and_body_is_honoured(tmp_path: Path) -> None:
    async with staged(tmp_path, clock=False) as stage:
        connection = stage.connect()
        client = await stage.client()
        client.send(stage.request()[:-1])
        await stage.until(lambda: stage.gate.bodies.used > 0)
        rotate(stage, connection)
        client.send(stage.request()[-1:])
        assert (await client.answer()).status == 200
        assert stage.upstream.asked[0].field(b"authorization") == [b"Bearer " + NEXT.encode()]
        assert (await stage.event()).credential_version == 2


async def test_a_key_that_expires_while_its_stream_is_open_ends_it_without_a_change(tmp_path: Path) -> None:
    async with staged(tmp_path) as stage:
        stage.connect()
        key = stage.make_key(expires_at=time.time_ns() // 1_000_000 + 200)
        stream = await streaming(stage, key=key)
        assert await stream.closed()
        assert (await stage.event()).refusal == "key_expired"


async def test_a_withdrawal_while_the_upstream_is_dialled_ends_the_dial(tmp_path: Path) -> None:
    came, gone = asyncio.Event(), asyncio.Event()

    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        came.set()
        while await reader.read(4096):
            pass
        gone.set()
        writer.close()

    async with staged(tmp_path, clock=False) as stage:
        server = await asyncio.start_server(silent, "127.0.0.1", 0)
        connection = stage.connect(upstream_url=f"https://127.0.0.1:{server.sockets[0].getsockname()[1]}/")
        client = await stage.client()
        client.send(stage.request())
        await asyncio.wait_for(came.wait(), 10)
        stage.drop("connection", connection.id)
        stage.gate.tick()
        assert (await client.answer()).code == "connection_unknown"
        await asyncio.wait_for(gone.wait(), 10)
        await client.close()
        await stage.quiet(connection)
        server.close()


async def test_a_new_upstream_url_is_used_by_the_next_call(tmp_path: Path) -> None:
    async with staged(tmp_path, clock=False) as stage:
        connection = stage.connect()
        await stage.ask(stage.request())
        stage.put(replace(connection, upstream_url=f"http://127.0.0.1:{stage.upstream.port}/moved"), CREDENTIAL)
        await stage.ask(stage.request())
        assert [asked.line.split()[1] for asked in stage.upstream.asked] == [b"/mcp", b"/moved"]


async def test_a_credential_sealed_for_another_origin_is_not_opened(tmp_path: Path) -> None:
    async with staged(tmp_path, clock=False) as stage:
        connection = stage.connect()
        sealed = stage.gate.fresh() and stage.gate.registry._rows[connection.id]
        moved = replace(connection, upstream_url=f"http://127.0.0.2:{stage.upstream.port}/mcp")
        stage.publish(replace(sealed, connection=moved))
        answered = await stage.ask(stage.request())
        assert (answered.status, answered.code) == (500, "credential_unreadable")
        assert (await stage.event()).refusal == "credential_unreadable"
        assert stage.upstream.connections == 0
