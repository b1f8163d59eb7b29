"""A head that was admitted before is judged by a look-up, and never by an older configuration."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from tests.gateway.stage import CALL, Stage, staged

pytestmark = pytest.mark.anyio


async def twice(stage: Stage, request: bytes) -> None:
    """So that the head is known."""
    for _ in range(2):
        assert (await stage.ask(request)).status == 200
    assert stage.gate.heads._known


async def test_a_known_head_is_served_and_recorded_like_a_new_one(tmp_path: Path) -> None:
    async with staged(tmp_path) as stage:
        stage.connect()
        await twice(stage, stage.request(CALL, b"mcp-method: tools/call", b"x-keystile-user: alice"))
        first, second = stage.upstream.asked
        assert first == second
        known, new = (
            msgspec.structs.replace(event, id="", at=0, trace="", total_ms=0, first_byte_ms=0, gateway_ms=0)
            for event in stage.events()
        )
        assert known == new


async def test_a_known_head_is_refused_once_its_key_is_revoked(tmp_path: Path) -> None:
    async with staged(tmp_path) as stage:
        stage.connect()
        request = stage.request()
        await twice(stage, request)
        stage.drop("key", stage.key_row(stage.key).id)
        assert (await stage.ask(request)).code == "key_invalid"


async def test_a_known_head_is_refused_once_its_key_has_expired(tmp_path: Path) -> None:
    async with staged(tmp_path) as stage:
        stage.connect()
        key = stage.make_key(expires_at=1 << 50)
        request = stage.request(key=key)
        await twice(stage, request)
        for mark, known in stage.gate.heads._known.items():
            expired = msgspec.structs.replace(known.admitted.key, expires_at=1)
            admitted = msgspec.structs.replace(known.admitted, key=expired)
            stage.gate.heads._known[mark] = msgspec.structs.replace(known, admitted=admitted)
        assert stage.gate.known(next(iter(stage.gate.heads._known))) is None


async def test_a_known_head_uses_the_rotated_credential(tmp_path: Path) -> None:
    async with staged(tmp_path) as stage:
        connection = stage.connect()
        request = stage.request()
        await twice(stage, request)
        rotated = msgspec.structs.replace(connection, active_version=2)
        stage.put(rotated, "made-up-credential-rotated")
        assert (await stage.ask(request)).status == 200
        assert stage.upstream.asked[-1].field(b"authorization") == [b"Bearer made-up-credential-rotated"]


async def test_what_is_kept_of_a_head_holds_no_key(tmp_path: Path) -> None:
    async with staged(tmp_path) as stage:
        stage.connect()
        await twice(stage, stage.request())
        for known in stage.gate.heads._known.values():
            assert stage.key.encode() not in msgspec.msgpack.encode(known.head)
            assert stage.key.encode() not in known.admitted.block


async def test_a_head_that_hardly_comes_again_is_not_kept(tmp_path: Path) -> None:
    async with staged(tmp_path) as stage:
        stage.connect()
        assert (await stage.ask(stage.request(CALL, b"x-keystile-trace-id: one"))).status == 200
        assert not stage.gate.heads._known


async def test_a_change_between_a_known_head_and_its_body_is_honoured(tmp_path: Path) -> None:
    async with staged(tmp_path) as stage:
        stage.connect()
        request = stage.request()
        await twice(stage, request)
        client = await stage.client()
        head, _, body = request.partition(b"\r\n\r\n")
        client.send(head + b"\r\n\r\n" + body[:5])
        await client.writer.drain()
        other = await stage.client()  # its answer comes after the head above was taken in
        other.send(stage.request(method=b"PUT"))
        assert (await other.answer()).status == 405
        stage.drop("key", stage.key_row(stage.key).id)
        client.send(body[5:])
        answered = await client.answer()
        assert (answered.status, answered.code) == (401, "key_invalid")


async def test_a_large_head_is_not_kept(tmp_path: Path) -> None:
    async with staged(tmp_path) as stage:
        stage.connect()
        for _ in range(2):
            assert (await stage.ask(stage.request(CALL, b"x-forwarded-for: " + b"1" * 5000))).status == 200
        assert not stage.gate.heads._known
