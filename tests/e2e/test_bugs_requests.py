"""Bug classes of what a request says: the key where it does not belong, odd keys, odd paths, ambiguous messages."""

from __future__ import annotations

import base64
import json
from urllib.parse import quote

import pytest

from tests.e2e.scene import Scene, scene
from tests.gateway.stage import CALL
from tests.peers.gateway import Gateway

pytestmark = [pytest.mark.anyio, pytest.mark.xdist_group("bugs")]


def everything_sent(at: Scene) -> bytes:
    return b"\n".join(asked.head + asked.body for asked in at.upstream.asked)


def calling(text: str) -> bytes:
    params = {"name": "echo", "arguments": {"text": text}}
    return json.dumps({"jsonrpc": "2.0", "id": 7, "method": "tools/call", "params": params}).encode()


# {key} stands for the caller's key. Fields that do not pass are dropped; where a field would pass, the call is refused.
REPEATED = [
    (b"x-api-key: {key}", 200),
    (b"X-API-KEY: {key}", 200),
    (b"Proxy-Authorization: Bearer {key}", 200),
    (b"Cookie: session={key}", 200),
    (b"User-Agent: agent/{key}", 200),
    (b"Referer: http://127.0.0.1/{key}", 200),
    (b"X-Whatever: {key}", 200),
    (b"{key}: x", 200),
    (b"X-Toolsets: {key}", 400),
    (b"X-TOOLSETS: a,{key},b", 400),
    (b"Mcp-Param-Token: {key}", 400),
    (b"mcp-anything: Bearer {key}", 400),
    (b"mcp-{key}: x", 200),
    (b"mcp-param-{key}: x", 400),
    (b"Accept: application/json;k={key}", 400),
    (b"Mcp-Protocol-Version: {key}", 400),
    (b"traceparent: {key}", 400),
    (b"tracestate: k={key}", 400),
    (b"X-Keystile-User: {key}", 400),
    (b"X-Keystile-Trace-Id: {key}", 400),
    (b'X-Keystile-Metadata: {"k": "{key}"}', 400),
    (b"Connection: {key}", 200),
]


@pytest.mark.parametrize(("field", "status"), REPEATED)
async def test_the_callers_key_reaches_no_upstream_in_another_field(
    running: Gateway, field: bytes, status: int
) -> None:
    async with scene(running, forwardHeaders=["X-Toolsets"]) as at:
        answered = await at.ask(at.request(CALL, field.replace(b"{key}", at.key.encode())))
        assert answered.status == status
        sent = everything_sent(at).lower()
        assert at.key.lower().encode() not in sent and b"ks_" not in sent
        trail = json.dumps(await at.events(1))
        assert at.key not in trail and at.key.lower() not in trail


async def test_the_callers_key_reaches_no_upstream_in_query_or_body(running: Gateway) -> None:
    async with scene(running) as at:
        target = f"/v1/mcp/{at.slug}?key={at.key}&authorization=Bearer%20{at.key}".encode()
        assert (await at.ask(at.request(target=target))).status == 200
        assert at.upstream.asked[0].line == b"POST /mcp HTTP/1.1"
        keys = await at.client_key(), at.key
        for key in keys:  # another key of ours is as bad as the caller's own
            answered = await at.ask(at.request(calling(f"my key is {key}.")))
            assert (answered.status, answered.code) == (400, "key_repeated")
        assert not any(key in everything_sent(at).decode() for key in keys)


async def test_the_key_in_x_api_key_decides_and_the_other_one_does_not_pass(running: Gateway) -> None:
    async with scene(running) as at:
        other = await at.client_key()
        answered = await at.ask(at.request(CALL, b"x-api-key: " + other.encode()))
        assert answered.status == 200 and b"ks_" not in everything_sent(at)
        assert (await at.ask(at.request(CALL, b"x-api-key: ks_nobody"))).status == 401
        assert (await at.ask(at.request(CALL, b"x-api-key: " + other.encode(), key="ks_nobody"))).status == 200
        for again in (b"Authorization: Bearer " + other.encode(), b"X-Api-Key: a\r\nx-api-key: b"):
            doubled = await at.ask(at.request(CALL, again))
            assert (doubled.status, doubled.code) == (400, "key_doubled")


ODD_KEYS = [
    b"'",
    b"' OR '1'='1",
    b"ks_' OR 1=1 --",
    b'ks_"; DROP TABLE api_keys; --',
    b"ks_" + b"A" * 49,
    b"ks_" + b"A" * 10_000,
    b"ks_%s%n%00",
    "ks_ключ✓".encode(),
    b"ks_\xff\xfe\x80",
    b"",
    b" ",
    b"null",
    b"ks_../../etc/passwd",
]


@pytest.mark.parametrize("odd", ODD_KEYS, ids=lambda odd: repr(odd[:20]))
async def test_an_odd_key_is_refused_like_any_wrong_one(running: Gateway, odd: bytes) -> None:
    async with scene(running) as at:
        for field in (b"x-api-key: " + odd, b"authorization: Bearer " + odd):
            answered = await at.ask(at.request(CALL, field, key=None))
            assert (answered.status, answered.code) == (401, "key_invalid")
            rest = await at.ask(at.request(b"", field, method=b"GET", target=b"/api/v1/keys", key=None))
            assert rest.status == 401 and rest.json["error"]["code"] == "unauthenticated"
        for cut in (at.key[:-1], at.key + "x", at.key.swapcase(), at.key.lower()):
            assert (await at.ask(at.request(key=cut))).code == "key_invalid"
        assert at.upstream.connections == 0


@pytest.mark.parametrize("byte", [b"\0", b"\x01", b"\r", b"\n", b"\x7f"])
async def test_a_control_byte_in_the_key_is_malformed_http(running: Gateway, byte: bytes) -> None:
    async with scene(running) as at:
        answered = await at.ask(at.request(CALL, b"x-api-key: " + at.key.encode() + byte + b"x"))
        assert answered.status == 400 and at.upstream.connections == 0


# {slug} is a connection that the key shown may call. Nothing but its plain path calls it.
ODD_TARGETS = [
    b"/v1/mcp/{slug}/",
    b"/v1/mcp/{slug}/x",
    b"/v1/mcp/{slug}//",
    b"/v1/mcp/{slug};x=1",
    b"/v1/mcp/{slug}%00",
    b"/v1/mcp/{slug}%2f",
    b"/v1/mcp/{slug}%2fx",
    b"/v1/mcp/{slug}%0a",
    b"/v1/mcp/{slug}.",
    b"/v1/mcp/{slug}/../{slug}",
    b"/v1/mcp/x/../{slug}",
    b"/v1/mcp/./{slug}",
    b"/v1/mcp/%2e%2e/mcp/{slug}",
    b"/v1/mcp//{slug}",
    b"/v1//mcp/{slug}",
    b"//v1/mcp/{slug}",
    b"/v1%2fmcp%2f{slug}",
    b"/%76%31/mcp/{slug}",
    b"/V1/MCP/{slug}",
    b"/v1/mcp/{SLUG}",
    b"/v1/mcp/%75{slug:1}",
    b"/api/v1/../../v1/mcp/{slug}",
    b"http://127.0.0.1/v1/mcp/{slug}",
    b"/v1/mcp/{slug}#x",
    b"/v1/mcp/{slug}\\",
    b"\\v1\\mcp\\{slug}",
    b"v1/mcp/{slug}",
    b"*",
]


@pytest.mark.parametrize("target", ODD_TARGETS)
async def test_an_odd_path_calls_nothing(running: Gateway, target: bytes) -> None:
    async with scene(running) as at:
        slug = at.slug.encode()
        odd = target.replace(b"{slug}", slug).replace(b"{SLUG}", slug.upper()).replace(b"{slug:1}", slug[1:])
        for method in (b"POST", b"GET", b"DELETE"):
            answered = await at.ask(at.request(method=method, target=odd))
            assert answered.status in {400, 403, 404}
        assert at.upstream.connections == 0


ODD_HOSTS = [b"", b"a/?x", b"x#", b"127.0.0.1/?x", b"127.0.0.1#", b"127.0.0.1@evil.example", b"evil.example"]
ODD_HOSTS += [
    b"127.0.0.1.evil.example",
    b"127.0.0.1, evil.example",
    b"127.0.0.1:80:80",
    b"localhost.",
    b"[::ffff:7f00:1]",
]


@pytest.mark.parametrize("host", ODD_HOSTS)
async def test_an_odd_host_calls_nothing_and_reads_nothing(running: Gateway, host: bytes) -> None:
    async with scene(running) as at:
        assert (await at.ask(at.request(host=host))).status in {400, 421}
        admin = at.running.admin_key
        for path in (b"/api/v1/connections", b"/api/v1/docs", b"/.well-known/x"):
            rest = await at.ask(at.request(method=b"GET", target=path, host=host, key=admin))
            assert rest.status in {400, 421}
        assert at.upstream.connections == 0
        assert (await at.ask(at.request(host=b"LOCALHOST:1"))).status == 200


P = b'"params":{"name":"echo","arguments":{}}'
AMBIGUOUS = [
    b'{"jsonrpc":"2.0","id":7,"Method":"tools/call",' + P + b"}",
    b'{"jsonrpc":"2.0","id":7,"method":"ping","METHOD":"tools/call",' + P + b"}",
    b'{"jsonrpc":"2.0","id":7,"method":"ping","method":"tools/call",' + P + b"}",
    b'{"jsonrpc":"2.0","id":7,"method":"tools/call","method":"ping",' + P + b"}",
    b'{"jsonrpc":"2.0","id":7,"m\\u0065thod":"tools/call",' + P + b"}",
    b'{"jsonrpc":"2.0","id":7,"method":"ping","m\\u0065thod":"tools/call",' + P + b"}",
    b'{"jsonrpc":"2.0","id":7,"id":8,"method":"tools/call",' + P + b"}",
    b'{"jsonrpc":"2.0","id":7,"method":"tools/call","params":{"name":"safe","name":"echo"}}',
    b'{"jsonrpc":"2.0","id":7,"method":"tools/call","params":{"name":"safe","Name":"echo"}}',
    b'{"jsonrpc":"2.0","id":7,"method":"tools/call","params":{"name":"safe","n\\u0061me":"echo"}}',
    '{"jsonrpc":"2.0","id":7,"method":"ping","param\u017f":{},"params":{}}'.encode(),
    b"\xef\xbb\xbf" + CALL,
    CALL.decode().encode("utf-16"),
    CALL + CALL,
    CALL + b"\0",
    b"[" + CALL + b',{"jsonrpc":"2.0","id":8,"method":"tools/call"}]',
    b"[" + CALL + b',{"jsonrpc":"2.0","id":8,"Method":"ping"}]',
    b"[" + CALL + b",[" + CALL + b"]]",
    b"[]",
    b'{"jsonrpc":"2.0","method":"tools/call",' + P + b"}",
    b'{"jsonrpc":"2.0","id":null,"method":"tools/call",' + P + b"}",
    b'{"jsonrpc":"2.0","id":7,"method":"tools/call","result":{},' + P + b"}",
    b'{"id":7,"method":"tools/call",' + P + b"}",
    b"",
    b"null",
]


@pytest.mark.parametrize("body", AMBIGUOUS)
async def test_a_message_that_two_parsers_could_read_differently_is_refused(running: Gateway, body: bytes) -> None:
    async with scene(running) as at:
        answered = await at.ask(at.request(body))
        assert answered.status == 400 and answered.json["error"]["code"] in {-32600, -32700}
        assert at.upstream.connections == 0


def encoded(name: bytes) -> bytes:
    return b"=?base64?" + base64.b64encode(name) + b"?="


MISMATCHED = [
    [b"mcp-name: safe"],
    [b"mcp-name: Echo"],
    [b"mcp-name: " + encoded(b"safe")],
    [b"mcp-name: " + encoded(b"echo\0")],
    [b"mcp-name: =?base64?!!?="],
    [b"mcp-name: " + quote("ECHO").encode()],
    [b"mcp-method: tools/list"],
    [b"mcp-method: Tools/Call", b"mcp-name: echo"],
]


@pytest.mark.parametrize("fields", MISMATCHED)
async def test_a_header_that_names_something_else_than_the_body_is_refused(
    running: Gateway, fields: list[bytes]
) -> None:
    async with scene(running) as at:
        answered = await at.ask(at.request(CALL, *fields))
        assert (answered.status, answered.json["error"]["code"], answered.json["id"]) == (400, -32020, 7)
        assert at.upstream.connections == 0
        agreeing = await at.ask(at.request(CALL, b"mcp-method: tools/call", b"mcp-name: " + encoded(b"echo")))
        assert agreeing.status == 200
        trail = await at.events(2)  # in no certain order: both may be of one millisecond, and of two workers
        assert {(event["outcome"], event["name"]) for event in trail} == {("done", "echo"), ("refused", None)}


async def test_a_head_that_was_admitted_once_vouches_for_no_other_body(running: Gateway) -> None:
    async with scene(running) as at:
        client = await at.client()  # one connection, so one worker, which may know the head by now
        other, fields = CALL.replace(b"echo", b"evil"), (b"mcp-method: tools/call", b"mcp-name: echo")
        for body, status in ((CALL, 200), (CALL, 200), (other, 400), (CALL, 200), (other, 400)):
            client.send(at.request(body, *fields))
            assert (await client.answer()).status == status
        assert [asked.body for asked in at.upstream.asked] == [CALL] * 3
