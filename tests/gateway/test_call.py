"""One call through the gateway, over real sockets."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.gateway.stage import CALL, CREDENTIAL, RESULT, staged

pytestmark = pytest.mark.anyio


async def test_a_call_goes_through_with_the_real_credential_and_leaves_one_event(tmp_path: Path) -> None:
    async with staged(tmp_path) as stage:
        connection = stage.connect()
        answered = await stage.ask(
            stage.request(CALL, b"mcp-method: tools/call", b"x-keystile-user: alice@example.com")
        )
        assert (answered.status, answered.body, answered.complete) == (200, RESULT, True)
        (asked,) = stage.upstream.asked
        assert asked.body == CALL
        assert asked.line == b"POST /mcp HTTP/1.1"
        assert asked.field(b"authorization") == [b"Bearer " + CREDENTIAL.encode()]
        assert stage.key.encode() not in asked.head
        event = await stage.event()
        assert (event.outcome, event.rpc_method, event.name, event.status) == ("done", "tools/call", "echo", 200)
        assert (event.connection, event.credential_version, event.user) == (connection.id, 1, "alice@example.com")
        assert event.key == stage.key_row(stage.key).id


async def test_a_call_without_a_key_is_refused_and_recorded(tmp_path: Path) -> None:
    async with staged(tmp_path) as stage:
        connection = stage.connect()
        answered = await stage.ask(stage.request(key=None))
        assert (answered.status, answered.code) == (401, "key_missing")
        assert answered.field(b"www-authenticate") == [b'Bearer realm="keystile"']
        event = await stage.event()
        assert (event.outcome, event.refusal, event.connection) == ("refused", "key_missing", connection.id)
        assert stage.upstream.asked == []
