"""What passes and what does not, in both directions, over real sockets."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from keystile.model import AuthType
from tests.gateway.stage import CREDENTIAL, PING, RESULT, Asked, Stage, answer_of, replying, staged

pytestmark = pytest.mark.anyio

SECRET = CREDENTIAL.encode()
MASKED = b"*" * len(SECRET)


async def answered_with(stage: Stage, answer: bytes, *fields: bytes):
    stage.upstream.handler = replying(answer)
    return await stage.ask(stage.request(PING, *fields))


async def test_a_cookie_of_one_caller_reaches_neither_the_client_nor_another_request(tmp_path: Path) -> None:
    async with staged(tmp_path) as stage:
        stage.connect()
        answered = await answered_with(stage, answer_of(RESULT, b"set-cookie: sid=of-a; path=/", b"Set-Cookie2: x=y"))
        assert b"cookie" not in answered.head.lower()
        other = stage.make_key()
        await stage.ask(stage.request(key=other) + b"")
        await stage.ask(stage.request(stage_body := b'{"jsonrpc":"2.0","id":1,"method":"ping"}', b"cookie: a=b"))
        assert stage_body and stage.upstream.connections == 1
        assert all(b"cookie" not in asked.head.lower() for asked in stage.upstream.asked)


async def test_the_upstream_head_holds_what_is_allowed_and_nothing_else(tmp_path: Path) -> None:
    async with staged(tmp_path) as stage:
        stage.connect(headers={"X-Fixed": "operator"}, forward_headers=("X-Toolsets",))
        answered = await stage.ask(
            stage.request(
                PING,
                b"accept: text/event-stream",
                b"accept-encoding: gzip",
                b"cookie: a=b",
                b"user-agent: client/1",
                b"x-forwarded-for: 1.2.3.4",
                b"forwarded: for=1.2.3.4",
                b"via: 1.1 x",
                b"x-keystile-user: alice",
                b"x-keystile-metadata: {}",
                b"x-igris-trace-id: t-1",
                b"x-fixed: client",
                b"x-toolsets: repos",
                b"x-other: no",
                b"mcp-protocol-version: 2025-11-25",
                b"mcp-param-region: eu",
                b"traceparent: 00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
                b"te: trailers",
                b"connection: close, x-toolsets-not",
                b"upgrade: h2c",
            )
        )
        assert answered.status == 200
        (asked,) = stage.upstream.asked
        assert sorted(asked.fields) == sorted(
            [
                (b"host", b"127.0.0.1:%d" % stage.upstream.port),
                (b"user-agent", stage.gate.registry.mark),
                (b"accept-encoding", b"identity"),
                (b"x-fixed", b"operator"),
                (b"content-type", b"application/json"),
                (b"content-length", b"40"),
                (b"accept", b"text/event-stream"),
                (b"x-toolsets", b"repos"),
                (b"mcp-protocol-version", b"2025-11-25"),
                (b"mcp-param-region", b"eu"),
                (b"traceparent", b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"),
                (b"authorization", b"Bearer " + SECRET),
            ]
        )
        assert answered.field(b"x-keystile-trace-id") == [b"t-1"]
        assert (await stage.event()).trace == "t-1"


@pytest.mark.parametrize("spelling", [b"X-Upstream-Key", b"x-upstream-key", b"X-UPSTREAM-KEY"])
async def test_a_clients_field_of_the_injected_name_is_replaced(tmp_path: Path, spelling: bytes) -> None:
    async with staged(tmp_path) as stage:
        stage.connect(auth_type=AuthType.HEADER, auth_header_name="X-Upstream-Key", forward_headers=("X-Upstream-Key",))
        await stage.ask(stage.request(PING, spelling + b": mine"))
        (asked,) = stage.upstream.asked
        assert asked.field(b"x-upstream-key") == [SECRET]
        assert asked.field(b"authorization") == []


async def test_the_clients_query_does_not_pass_and_the_configured_one_stands(tmp_path: Path) -> None:
    async with staged(tmp_path) as stage:
        stage.connect(upstream_url=f"http://127.0.0.1:{stage.upstream.port}/a/b?tenant=7")
        await stage.ask(stage.request(target=b"/v1/mcp/upstream?key=1"))
        assert stage.upstream.asked[0].line == b"POST /a/b?tenant=7 HTTP/1.1"


async def test_the_keystile_key_never_goes_upstream_wherever_the_client_repeats_it(tmp_path: Path) -> None:
    async with staged(tmp_path) as stage:
        stage.connect(forward_headers=("X-Toolsets",))
        key = stage.key.encode()
        for field in (
            b"x-toolsets: ",
            b"mcp-param-a: ",
            b"traceparent: ",
            b"accept: ",
            b"mcp-name: ",
            b"last-event-id: ",
        ):
            answered = await stage.ask(stage.request(PING, field + key))
            assert answered.status in {400, 403}
        for field in (b"x-api-key: ", b"X-API-KEY: ", b"x-other: ", b"cookie: k=", b"user-agent: "):
            assert (await stage.ask(stage.request(PING, field + key))).status == 200
        assert all(key not in asked.head + asked.body for asked in stage.upstream.asked)


async def test_an_answer_loses_what_belongs_to_one_hop_or_to_the_upstreams_own_site(tmp_path: Path) -> None:
    stripped = [
        b"server: nginx",
        b"x-powered-by: php",
        b"alt-svc: h3",
        b"strict-transport-security: max-age=1",
        b"location: http://elsewhere/",
        b"www-authenticate: Bearer resource_metadata=x",
        b"access-control-allow-origin: *",
        b"connection: keep-alive, x-private",
        b"keep-alive: timeout=5",
        b"x-private: y",
        b"x-accel-redirect: /secret",
        b"x-keystile-trace-id: theirs",
        b"proxy-authenticate: Basic",
        b"trailer: x",
    ]
    async with staged(tmp_path) as stage:
        stage.connect()
        kept = [b"content-type: application/json", b"retry-after: 3", b"mcp-anything: 1", b"etag: x"]
        answered = await answered_with(stage, answer_of(RESULT, *stripped, *kept), b"x-keystile-trace-id: mine")
        lines = answered.head.rstrip(b"\r\n").split(b"\r\n")[1:]
        added = [b"content-length: %d" % len(RESULT), b"cache-control: no-store", b"x-keystile-trace-id: mine"]
        assert sorted(lines) == sorted(kept + added)
        assert answered.body == RESULT


async def test_the_head_of_a_silent_stream_leaves_before_any_body_byte(tmp_path: Path) -> None:
    async with staged(tmp_path) as stage:
        stage.connect()
        stage.upstream.handler = replying(
            b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
        )
        client = await stage.client()
        client.send(stage.request(b"", b"accept: text/event-stream", method=b"GET"))
        head = await client.head()
        assert head.status == 200
        assert head.field(b"x-accel-buffering") == [b"no"]
        assert head.field(b"transfer-encoding") == [b"chunked"]
        assert stage.events() == []
        await client.close()
        assert (await stage.event()).outcome == "client_left"


@pytest.mark.parametrize("status", [b"301", b"302", b"303", b"307", b"308", b"300", b"305"])
async def test_a_redirect_is_refused_and_never_followed(tmp_path: Path, status: bytes) -> None:
    async with staged(tmp_path) as stage:
        stage.connect()
        seen: list[bytes] = []

        async def second(reader: asyncio.StreamReader, _: asyncio.StreamWriter) -> None:
            seen.append(await reader.read(1))

        elsewhere = await asyncio.start_server(second, "127.0.0.1", 0)
        location = b"location: http://127.0.0.1:%d/" % elsewhere.sockets[0].getsockname()[1]
        answered = await answered_with(stage, answer_of(b"", location, status=status + b" Moved"))
        assert (answered.status, answered.code) == (502, "upstream_redirected")
        assert answered.field(b"location") == []
        event = await stage.event()
        assert (event.outcome, event.refusal) == ("upstream_failed", "upstream_redirected")
        assert (event.status, event.upstream_status) == (502, int(status))
        await stage.turns()
        assert seen == []
        elsewhere.close()


@pytest.mark.parametrize("status", [b"401 Unauthorized", b"403 Forbidden"])
async def test_an_upstream_that_does_not_accept_our_credential_is_our_fault(tmp_path: Path, status: bytes) -> None:
    async with staged(tmp_path) as stage:
        stage.connect()
        answered = await answered_with(stage, answer_of(b"who are you", b"www-authenticate: Bearer", status=status))
        assert (answered.status, answered.code) == (502, "upstream_auth_failed")
        assert answered.field(b"www-authenticate") == []
        assert answered.json["id"] == 7


@pytest.mark.parametrize("status", [b"401 Unauthorized", b"403 Forbidden"])
async def test_without_a_credential_an_upstreams_401_passes_but_not_its_challenge(
    tmp_path: Path, status: bytes
) -> None:
    async with staged(tmp_path) as stage:
        stage.connect(credential=None)
        answered = await answered_with(stage, answer_of(b"who are you", b"www-authenticate: Bearer", status=status))
        assert (answered.status, answered.body) == (int(status[:3]), b"who are you")
        assert answered.field(b"www-authenticate") == []
        assert stage.upstream.asked[0].field(b"authorization") == []


@pytest.mark.parametrize("coding", [b"gzip", b"GZIP", b"br", b"identity, gzip", b"x-unknown"])
async def test_an_encoded_answer_is_refused(tmp_path: Path, coding: bytes) -> None:
    async with staged(tmp_path) as stage:
        stage.connect()
        answered = await answered_with(stage, answer_of(b"\x1f\x8b", b"content-encoding: " + coding))
        assert (answered.status, answered.code) == (502, "upstream_encoding")


@pytest.mark.parametrize(
    "status", [b"400 Bad", b"404 Not Found", b"405 No", b"429 Slow", b"500 Oh", b"503 No", b"299 Odd"]
)
async def test_any_other_status_passes_with_its_body(tmp_path: Path, status: bytes) -> None:
    async with staged(tmp_path) as stage:
        stage.connect()
        answered = await answered_with(stage, answer_of(b'{"error":1}', status=status))
        assert (answered.status, answered.body) == (int(status[:3]), b'{"error":1}')
        event = await stage.event()
        assert (event.outcome, event.status, event.upstream_status) == ("done", int(status[:3]), int(status[:3]))


async def test_a_credential_that_comes_back_is_asterisks_across_every_chunk_border(tmp_path: Path) -> None:
    body = b'{"you":"' + SECRET + b'","again":"' + SECRET + SECRET[:7] + b'"}'
    expected = body.replace(SECRET, MASKED)

    async def split(asked: Asked, _: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        at = len(stage.upstream.asked)
        writer.write(
            b"HTTP/1.1 200 OK\r\nx-echo: %b\r\ntransfer-encoding: chunked\r\n\r\n" % asked.field(b"authorization")[0]
        )
        writer.write(b"%x\r\n%b\r\n" % (at, body[:at]))
        await stage.turns(4)
        writer.write(b"%x\r\n%b\r\n0\r\n\r\n" % (len(body) - at, body[at:]))

    async with staged(tmp_path) as stage:
        stage.connect()
        stage.upstream.handler = split
        client = await stage.client()
        for _ in range(len(body) - 1):
            client.send(stage.request())
            answered = await client.answer()
            assert answered.body == expected
            assert answered.field(b"x-echo") == [b"Bearer " + MASKED]
        events = stage.events()
        assert len(events) == len(body) - 1
        assert all(event.redacted and event.bytes_out == len(body) for event in events)


async def test_what_only_begins_like_the_credential_is_held_no_longer_than_it_must(tmp_path: Path) -> None:
    go_on = asyncio.Event()

    async def begin(_: Asked, __: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 20\r\n\r\nsafe " + SECRET[:5])
        await go_on.wait()
        writer.write(b"0123456789")

    async with staged(tmp_path) as stage:
        stage.connect()
        stage.upstream.handler = begin
        client = await stage.client()
        client.send(stage.request())
        await client.head()
        assert await client.reader.readexactly(5) == b"safe "
        go_on.set()
        assert await client.reader.readexactly(15) == SECRET[:5] + b"0123456789"
        assert not (await stage.event()).redacted


async def test_a_trace_id_is_made_when_the_caller_sends_none(tmp_path: Path) -> None:
    async with staged(tmp_path) as stage:
        stage.connect()
        answered = await stage.ask(stage.request())
        event = await stage.event()
        assert answered.field(b"x-keystile-trace-id") == [event.trace.encode()]
        assert event.trace
