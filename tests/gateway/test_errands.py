"""Everything that is no endpoint: relayed to the control process, or answered here, and never with a credential."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from tests.gateway.stage import PING, Asked, Stage, Upstream, answer_of, replying, staged

pytestmark = pytest.mark.anyio


@asynccontextmanager
async def with_control(stage: Stage) -> AsyncIterator[Upstream]:
    """A control process of the test's own, on the socket of the real one."""
    control = Upstream()
    server = await asyncio.start_unix_server(control.serve, stage.folders.control_socket, limit=1 << 22)
    try:
        yield control
    finally:
        server.close()


async def test_what_is_said_about_forwarding_is_replaced_by_what_is_known(tmp_path: Path) -> None:
    async with staged(tmp_path) as stage, with_control(stage) as control:
        await stage.ask(
            stage.request(
                PING,
                b"x-forwarded-for: 203.0.113.7",
                b"X-Forwarded-For: 203.0.113.8",
                b"x-forwarded-host: evil.example",
                b"x-forwarded-proto: https",
                b"x-forwarded-prefix: /admin",
                b"forwarded: for=203.0.113.7;host=evil.example",
                b"cookie: session=1",
                b"connection: keep-alive, x-hop",
                b"x-hop: 1",
                b"te: trailers",
                target=b"/api/v1/connections?limit=5",
            )
        )
        (asked,) = control.asked
        assert asked.line == b"POST /api/v1/connections?limit=5 HTTP/1.1"
        assert asked.body == PING
        assert sorted(asked.fields) == sorted(
            [
                (b"host", b"127.0.0.1"),
                (b"authorization", b"Bearer " + stage.key.encode()),
                (b"content-type", b"application/json"),
                (b"content-length", b"%d" % len(PING)),
                (b"cookie", b"session=1"),
                (b"x-forwarded-for", b"127.0.0.1"),
                (b"x-forwarded-host", b"127.0.0.1"),
                (b"x-forwarded-proto", b"http"),
            ]
        )
        assert stage.events() == []


async def test_an_answer_of_the_api_passes_as_it_is(tmp_path: Path) -> None:
    async with staged(tmp_path) as stage, with_control(stage) as control:
        fields = (b"etag: x", b"location: /api/v1/x", b"set-cookie: s=1", b"www-authenticate: Bearer", b"server: ours")
        control.handler = replying(answer_of(b'{"data":1}', *fields, status=b"401 Unauthorized"))
        client = await stage.client()
        for _ in range(3):
            client.send(stage.request(method=b"GET", target=b"/api/v1/x", key=None))
            answered = await client.answer()
            assert (answered.status, answered.body) == (401, b'{"data":1}')
            assert all(field in answered.head for field in fields)
        assert control.connections == 1
        await client.close()


@pytest.mark.parametrize("framing", [b"content-length: 5", b"transfer-encoding: chunked", b"x: y"])
async def test_an_answer_to_head_ends_behind_its_head(tmp_path: Path, framing: bytes) -> None:
    async with staged(tmp_path) as stage, with_control(stage) as control:
        control.handler = replying(b"HTTP/1.1 200 OK\r\n" + framing + b"\r\n\r\n")
        client = await stage.client()
        for _ in range(2):
            client.send(stage.request(method=b"HEAD", target=b"/api/v1/x"))
            assert (await client.head()).status == 200
        assert not client.reader._buffer
        await client.close()


async def test_without_a_control_process_endpoints_go_on_and_the_api_is_away(tmp_path: Path) -> None:
    async with staged(tmp_path) as stage:
        stage.connect()
        client = await stage.client()
        client.send(stage.request(target=b"/api/v1/connections"))
        answered = await client.answer()
        assert (answered.status, answered.json["error"]["code"]) == (503, "control_unavailable")
        client.send(stage.request())
        assert (await client.answer()).status == 200
        await client.close()
        await stage.quiet()


async def test_a_control_process_that_dies_before_answering_is_away_and_after_that_broken(tmp_path: Path) -> None:
    async with staged(tmp_path) as stage, with_control(stage) as control:
        for sent in (b"", b"HTTP/1.1 200 OK\r\n", b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhal"):
            control.handler = replying(sent, close=True)
            answered = await stage.ask(stage.request(method=b"GET", target=b"/api/v1/x"))
            if b"\r\n\r\n" in sent:
                assert not answered.complete
            else:
                assert answered.status == 503
        await stage.quiet()


async def test_a_client_that_leaves_takes_its_errand_along(tmp_path: Path) -> None:
    async with staged(tmp_path) as stage, with_control(stage) as control:
        control.handler = replying(b"")
        client = await stage.client()
        client.send(stage.request(method=b"GET", target=b"/api/v1/x"))
        await control.until(lambda: len(control.asked) == 1)
        client.writer.transport.abort()
        await control.until(lambda: control.closed == 1)
        await stage.quiet()


async def test_a_large_answer_waits_for_a_slow_reader(tmp_path: Path) -> None:
    total = 16 << 20

    async def large(_: Asked, __: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(answer_of(b"x" * total))

    async with staged(tmp_path) as stage, with_control(stage) as control:
        control.handler = large
        client = await stage.client()
        client.send(stage.request(method=b"GET", target=b"/api/v1/x"))
        await client.head()
        client.writer.transport.pause_reading()
        (caller,) = stage.gate.callers
        await stage.until(lambda: caller._choked)
        await stage.turns(200)
        assert caller._transport.get_write_buffer_size() <= stage.gate.limits.buffer_bytes
        client.writer.transport.resume_reading()
        assert len(await client.reader.readexactly(total)) == total


@pytest.mark.parametrize(
    "target",
    [
        b"/.well-known/oauth-protected-resource",
        b"/.well-known/oauth-protected-resource/v1/mcp/upstream",
        b"/.well-known/openid-configuration",
        b"/v1/mcp/upstream/.well-known/oauth-authorization-server",
        b"/v1/mcp/upstream/",
        b"/v1/mcp/upstream/../upstream",
        b"/v1/mcp/%2e%2e/upstream",
        b"/v1/mcp/upstream%2f",
        b"/v1/mcp/upstream;x",
        b"/v1/mcp/UPSTREAM",
        b"/v1/mcp/",
        b"/v1/mcp",
        b"/v1/mcpx",
        b"/s/abcdefghijkl/mcp",
    ],
)
@pytest.mark.parametrize("method", [b"GET", b"POST", b"DELETE", b"PUT"])
async def test_what_is_nowhere_is_a_plain_404_and_is_relayed_to_nobody(
    tmp_path: Path, target: bytes, method: bytes
) -> None:
    async with staged(tmp_path) as stage, with_control(stage) as control:
        stage.connect()
        answered = await stage.ask(stage.request(PING, method=method, target=target))
        assert answered.status == 404
        assert answered.field(b"content-type") == [b"application/json"]
        assert answered.json["error"]
        assert answered.field(b"www-authenticate") == []
        assert (control.asked, stage.upstream.asked) == ([], [])


@pytest.mark.parametrize("method", [b"PUT", b"PATCH", b"OPTIONS", b"HEAD", b"TRACE"])
async def test_other_methods_are_told_the_allowed_ones(tmp_path: Path, method: bytes) -> None:
    async with staged(tmp_path) as stage, with_control(stage) as control:
        stage.connect()
        client = await stage.client()
        client.send(stage.request(method=method))
        head = await client.head()
        assert (head.status, head.field(b"allow")) == (405, [b"POST, GET, DELETE"])
        assert (control.asked, stage.upstream.asked) == ([], [])
        await client.close()


@pytest.mark.parametrize(
    "host", [b"evil.example", b"127.0.0.1.evil.example", b"localhost.", b"", b"[::ffff:127.0.0.1]"]
)
async def test_a_foreign_host_is_misdirected_everywhere_but_at_the_probes(tmp_path: Path, host: bytes) -> None:
    async with staged(tmp_path) as stage, with_control(stage) as control:
        stage.connect()
        ours = b"host: 127.0.0.1"
        for target in (b"/v1/mcp/upstream", b"/api/v1/connections", b"/", b"/.well-known/x"):
            answered = await stage.ask(stage.request(PING, target=target).replace(ours, b"host: " + host))
            assert answered.status == 421
        assert (control.asked, stage.upstream.asked) == ([], [])
        for target, status in ((b"/healthz", 200), (b"/readyz", 503)):
            answered = await stage.ask(stage.request(method=b"GET", target=target).replace(ours, b"host: " + host))
            assert answered.status == status


@pytest.mark.parametrize("host", [b"LOCALHOST", b"localhost:1", b"127.0.0.1:65535", b"[::1]:8080", b"mcp.example.com"])
async def test_an_allowed_host_is_served_whatever_its_port(tmp_path: Path, host: bytes) -> None:
    async with staged(tmp_path, settings={"hosts": ("mcp.example.com",)}) as stage:
        stage.connect()
        request = stage.request().replace(b"host: 127.0.0.1", b"host: " + host)
        assert (await stage.ask(request)).status == 200


@pytest.mark.parametrize(
    "origin", [b"http://evil.example", b"null", b"file://", b"https://localhost.evil.example", b""]
)
async def test_a_foreign_web_origin_is_refused(tmp_path: Path, origin: bytes) -> None:
    async with staged(tmp_path) as stage, with_control(stage) as control:
        stage.connect()
        for target in (b"/v1/mcp/upstream", b"/api/v1/connections"):
            assert (await stage.ask(stage.request(PING, b"origin: " + origin, target=target))).status == 403
        assert (control.asked, stage.upstream.asked) == ([], [])


async def test_an_allowed_web_origin_is_served_and_never_goes_upstream(tmp_path: Path) -> None:
    async with staged(tmp_path, settings={"origins": ("https://ide.example",)}) as stage:
        stage.connect()
        for origin in (b"http://localhost:3000", b"https://ide.example"):
            assert (await stage.ask(stage.request(PING, b"origin: " + origin))).status == 200
        assert all(asked.field(b"origin") == [] for asked in stage.upstream.asked)
