"""A session of one caller is nobody else's, on no endpoint and by no method; the upstream never sees the attempt."""

from __future__ import annotations

from pathlib import Path

import pytest

from keystile.model import AuthType
from tests.gateway.stage import PING, RESULT, Stage, answer_of, replying, staged

pytestmark = pytest.mark.anyio

THEIRS = b"upstream-session-1"


async def opened(stage: Stage) -> bytes:
    """The id that the stage's own key gets for an upstream session."""
    stage.upstream.handler = replying(answer_of(RESULT, b"Mcp-Session-Id: " + THEIRS))
    answered = await stage.ask(stage.request())
    (wrapped,) = answered.field(b"mcp-session-id")
    stage.upstream.asked.clear()
    return wrapped


@pytest.mark.parametrize("method", [b"POST", b"GET", b"DELETE"])
async def test_its_owner_reaches_the_session_by_every_method(tmp_path: Path, method: bytes) -> None:
    async with staged(tmp_path) as stage:
        stage.connect()
        wrapped = await opened(stage)
        assert wrapped != THEIRS
        answered = await stage.ask(stage.request(PING, b"mcp-session-id: " + wrapped, method=method))
        assert answered.field(b"mcp-session-id") == [wrapped]
        (asked,) = stage.upstream.asked
        assert asked.field(b"mcp-session-id") == [THEIRS]


@pytest.mark.parametrize("method", [b"POST", b"GET", b"DELETE"])
async def test_another_key_another_slug_and_a_forged_id_are_no_such_session(tmp_path: Path, method: bytes) -> None:
    async with staged(tmp_path) as stage:
        stage.connect()
        stage.connect("other")
        wrapped = await opened(stage)
        field = b"mcp-session-id: "
        tried = [
            stage.request(PING, field + wrapped, method=method, key=stage.make_key()),
            stage.request(PING, field + wrapped, method=method, target=b"/v1/mcp/other"),
            stage.request(PING, field + THEIRS, method=method),
            stage.request(PING, field + wrapped[:-1] + b"2", method=method),
            stage.request(PING, field + wrapped.replace(b"1.", b"2.", 1), method=method),
            stage.request(PING, field, method=method),
        ]
        for request in tried:
            answered = await stage.ask(request)
            assert (answered.status, answered.code) == (404, "session_unknown")
        assert stage.upstream.asked == []
        assert [event.refusal for event in stage.events()[1:]] == ["session_unknown"] * len(tried)


async def test_every_altered_byte_of_the_signature_breaks_it(tmp_path: Path) -> None:
    async with staged(tmp_path) as stage:
        stage.connect()
        wrapped = await opened(stage)
        for at in range(len(wrapped)):
            altered = wrapped[:at] + (b"A" if wrapped[at : at + 1] != b"A" else b"B") + wrapped[at + 1 :]
            answered = await stage.ask(stage.request(PING, b"mcp-session-id: " + altered))
            assert answered.status == 404
        assert stage.upstream.asked == []


async def test_a_session_of_another_origin_is_unknown(tmp_path: Path) -> None:
    async with staged(tmp_path) as stage:
        connection = stage.connect(credential=None)
        wrapped = await opened(stage)
        moved = {"upstream_url": f"http://127.0.0.2:{stage.upstream.port}/mcp", "auth_type": AuthType.NONE}
        stage.connect(credential=None, id=connection.id, **moved)
        answered = await stage.ask(stage.request(PING, b"mcp-session-id: " + wrapped))
        assert (answered.status, answered.code) == (404, "session_unknown")


async def test_two_session_ids_in_one_request_are_refused(tmp_path: Path) -> None:
    async with staged(tmp_path) as stage:
        stage.connect()
        wrapped = await opened(stage)
        field = b"mcp-session-id: " + wrapped
        assert (await stage.ask(stage.request(PING, field, field))).code == "field_doubled"
        assert stage.upstream.asked == []


@pytest.mark.parametrize("method", [b"POST", b"GET"])
async def test_a_stream_is_resumed_within_its_session_only(tmp_path: Path, method: bytes) -> None:
    async with staged(tmp_path) as stage:
        stage.connect()
        wrapped = await opened(stage)
        answered = await stage.ask(stage.request(PING, b"last-event-id: 7", method=method))
        assert (answered.status, answered.code) == (403, "resume_without_session")
        assert stage.upstream.asked == []
        session = b"mcp-session-id: " + wrapped
        assert (await stage.ask(stage.request(PING, b"last-event-id: 7", session, method=method))).status == 200
        (asked,) = stage.upstream.asked
        assert (asked.field(b"last-event-id"), asked.field(b"mcp-session-id")) == ([b"7"], [THEIRS])


async def test_the_stateless_protocol_has_neither(tmp_path: Path) -> None:
    async with staged(tmp_path) as stage:
        stage.connect()
        stage.upstream.handler = replying(answer_of(RESULT))
        fields = (b"mcp-protocol-version: 2026-07-28", b"mcp-session-id: anything", b"last-event-id: 7")
        assert (await stage.ask(stage.request(PING, *fields))).status == 200
        (asked,) = stage.upstream.asked
        assert (asked.field(b"last-event-id"), asked.field(b"mcp-session-id")) == ([], [])


async def test_an_upstreams_session_id_that_is_no_session_id_is_malformed(tmp_path: Path) -> None:
    async with staged(tmp_path) as stage:
        stage.connect()
        stage.upstream.handler = replying(answer_of(RESULT, b"mcp-session-id: not one"))
        assert (await stage.ask(stage.request())).code == "upstream_malformed"
