"""Bug classes that gateways of this kind have had, one test each: whose session, answer, cookie, stream it is."""

from __future__ import annotations

import asyncio
import hashlib
import json

import pytest

from tests.e2e.scene import CREDENTIAL, Scene, listening, scene
from tests.gateway.stage import CALL, RESULT, Answered, Asked, Handler, Upstream
from tests.peers.gateway import Gateway

pytestmark = [pytest.mark.anyio, pytest.mark.xdist_group("bugs")]

CLIENTS = 50


def answering(status: int, *fields: bytes, body: bytes = RESULT) -> Handler:
    """An upstream that always says the same."""
    lines = [b"HTTP/1.1 %d Made-Up" % status, b"content-type: application/json", b"content-length: %d" % len(body)]
    answer = b"\r\n".join([*lines, *fields]) + b"\r\n\r\n" + body

    async def handle(_: Asked, __: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(answer)

    return handle


async def opened_session(at: Scene) -> bytes:
    """The session id that the client got for the upstream's `their-session`."""
    at.upstream.handler = answering(200, b"mcp-session-id: their-session")
    answered = await at.ask(at.request())
    (wrapped,) = answered.field(b"mcp-session-id")
    assert wrapped != b"their-session"
    at.forget()
    return wrapped


@pytest.mark.parametrize("method", [b"POST", b"GET", b"DELETE"])
async def test_a_session_opens_to_nobody_but_the_key_that_opened_it(running: Gateway, method: bytes) -> None:
    async with scene(running) as at:
        session = await opened_session(at)
        flipped = session[:-1] + (b"N" if session[-1:] != b"N" else b"n")
        other_key = await at.client_key()
        for key, shown in [(other_key, session), (at.key, flipped), (at.key, b"their-session"), (at.key, b"")]:
            answered = await at.ask(at.request(CALL, b"mcp-session-id: " + shown, method=method, key=key))
            assert (answered.status, answered.code) == (404, "session_unknown")
        assert at.upstream.asked == []
        await at.ask(at.request(CALL, b"mcp-session-id: " + session, method=method))
        assert at.upstream.asked[0].field(b"mcp-session-id") == [b"their-session"]


async def test_a_session_is_of_one_connection_and_of_one_origin(running: Gateway) -> None:
    async with scene(running) as at, listening(Upstream()) as moved:
        session = b"mcp-session-id: " + await opened_session(at)
        other_slug = await at.connect()
        elsewhere = await at.ask(at.request(CALL, session, target=f"/v1/mcp/{other_slug}".encode()))
        change = {"upstreamUrl": f"http://127.0.0.1:{moved.port}/mcp", "credential": CREDENTIAL}
        assert (await at.api("PATCH", f"/connections/{at.slug}", change)).status == 200
        afterwards = await at.ask(at.request(CALL, session))
        assert (elsewhere.code, afterwards.code) == ("session_unknown", "session_unknown")
        assert at.upstream.asked == moved.asked == []


async def test_a_resumption_without_its_session_is_refused(running: Gateway) -> None:
    async with scene(running) as at:
        session = await opened_session(at)
        refused = await at.ask(at.request(b"", b"last-event-id: 7", method=b"GET"))
        assert (refused.status, refused.code) == (403, "resume_without_session")
        assert at.upstream.asked == []
        await at.ask(at.request(b"", b"last-event-id: 7", b"mcp-session-id: " + session, method=b"GET"))
        assert at.upstream.asked[0].field(b"last-event-id") == [b"7"]


async def test_callers_with_equal_request_ids_get_their_own_answers_in_whatever_order(running: Gateway) -> None:
    everybody, turns = asyncio.Event(), {number: asyncio.Event() for number in range(CLIENTS)}

    async def in_turn(asked: Asked, _: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        number = json.loads(asked.body)["params"]["arguments"]["nonce"]
        if len(at.upstream.asked) == CLIENTS:
            everybody.set()
        await turns[number].wait()
        body = b'{"jsonrpc":"2.0","id":1,"result":{"nonce":%d}}' % number
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(body))
        writer.write(body)

    async def call(number: int) -> int:
        params = {"name": "echo", "arguments": {"nonce": number}}
        body = {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": params}
        answered = await at.ask(at.request(json.dumps(body).encode()))
        return answered.json["result"]["nonce"]

    async with scene(running) as at:
        at.upstream.handler = in_turn
        calls = [asyncio.create_task(call(number)) for number in range(CLIENTS)]
        await asyncio.wait_for(everybody.wait(), 10)
        for number in sorted(turns, key=lambda each: hashlib.sha256(b"%d" % each).digest()):
            turns[number].set()
        assert await asyncio.gather(*calls) == list(range(CLIENTS))


async def test_no_cookie_comes_down_and_none_goes_up(running: Gateway) -> None:
    async with scene(running) as at:
        at.upstream.handler = answering(200, b"set-cookie: who=alice; Path=/", b"set-cookie2: who=alice")
        other_key = await at.client_key()
        for key in (at.key, other_key, at.key):
            answered = await at.ask(at.request(CALL, b"cookie: mine=yes", key=key))
            assert b"cookie" not in answered.head.lower()
        assert len(at.upstream.asked) == 3
        assert not any(b"cookie" in asked.head.lower() for asked in at.upstream.asked)


@pytest.mark.parametrize("status", [300, 301, 302, 303, 305, 307, 308])
async def test_a_redirect_is_neither_followed_nor_passed_on(running: Gateway, status: int) -> None:
    async with scene(running) as at, listening(Upstream()) as second:
        there = b"http://127.0.0.1:%d/mcp" % second.port
        at.upstream.handler = answering(status, b"location: " + there, b"refresh: 0;url=" + there, body=there)
        for method in (b"POST", b"GET", b"DELETE"):
            answered = await at.ask(at.request(method=method))
            assert (answered.status, answered.code) == (502, "upstream_redirected")
            assert b"%d" % second.port not in answered.head + answered.body
        checked = await at.api("POST", f"/connections/{at.slug}/check")
        assert checked.data["code"] == "upstream_redirected"
        assert second.connections == 0


@pytest.mark.parametrize("status", [401, 403])
async def test_a_refused_credential_starts_no_login_at_the_client(running: Gateway, status: int) -> None:
    challenge = b'www-authenticate: Bearer resource_metadata="https://login.example/.well-known"'
    async with scene(running) as at:
        at.upstream.handler = answering(status, challenge, b"location: https://login.example", body=b"login.example")
        answered = await at.ask(at.request())
        assert (answered.status, answered.code) == (502, "upstream_auth_failed")
        assert answered.json["id"] == 7
        assert not answered.field(b"www-authenticate") and b"login.example" not in answered.head + answered.body
        (event,) = await at.events(1)
        assert (event["outcome"], event["status"], event["upstreamStatus"]) == ("upstream_failed", 502, status)
        open_slug = await at.connect(None)
        passed = await at.ask(at.request(target=f"/v1/mcp/{open_slug}".encode()))
        assert passed.status == status and b"login.example" not in passed.head


PROBED = [
    b"/.well-known/oauth-protected-resource",
    b"/.well-known/oauth-protected-resource/v1/mcp/%b",
    b"/.well-known/oauth-authorization-server/v1/mcp/%b",
    b"/.well-known/openid-configuration",
    b"/.well-known/",
    b"/.well-known",
    b"/v1/mcp/%b/.well-known/openid-configuration",
    b"/register",
    b"/authorize",
    b"/token",
]


@pytest.mark.parametrize("path", PROBED)
async def test_what_clients_probe_for_a_login_is_a_plain_404(running: Gateway, path: bytes) -> None:
    async with scene(running) as at:
        target = path.replace(b"%b", at.slug.encode())
        for method, key in [(b"GET", None), (b"GET", at.key), (b"POST", None), (b"POST", at.key)]:
            answered = await at.ask(at.request(b"{}", method=method, target=target, key=key))
            assert answered.status == 404 and answered.json["error"]["message"]
            assert answered.field(b"content-type") == [b"application/json"]
            assert not answered.field(b"www-authenticate") and not answered.field(b"location")
        assert at.upstream.connections == 0


EVENTS = 'id: 1\r\nevent: message\r\ndata: {"x": "grüße ✓"}\r\n\r\n: ping\n\ndata: a\ndata: b\n\n'.encode()
STREAM = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"


async def test_events_cut_at_every_byte_arrive_equal_and_before_the_upstream_goes_on(running: Gateway) -> None:
    pieces: asyncio.Queue[bytes] = asyncio.Queue()

    async def stream(_: Asked, __: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(STREAM)
        while piece := await pieces.get():
            writer.write(b"%x\r\n%b\r\n" % (len(piece), piece))
        writer.write(b"0\r\n\r\n")

    # A credential that begins with what no event holds: nothing of them is held back as its possible beginning.
    async with scene(running, "~made-up-credential~") as at:
        at.upstream.handler = stream
        client = await at.client()
        client.send(at.request(method=b"GET"))
        assert (await client.head()).field(b"x-accel-buffering") == [b"no"]
        for cut in range(1, len(EVENTS)):
            for piece in (EVENTS[:cut], EVENTS[cut:]):
                pieces.put_nowait(piece)
                arrived = b""
                while len(arrived) < len(piece):
                    arrived += await client.chunk()
                assert arrived == piece
        pieces.put_nowait(b"")
        assert await client.chunk() == b""


async def test_a_stream_whose_framing_trickles_byte_by_byte_arrives_equal(running: Gateway) -> None:
    async def trickle(_: Asked, __: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        wire = STREAM + b"".join(b"%x\r\n%b\r\n" % (size, EVENTS[:size]) for size in (1, 7, len(EVENTS))) + b"0\r\n\r\n"
        for at_byte in range(len(wire)):
            writer.write(wire[at_byte : at_byte + 1])
            await writer.drain()
            await asyncio.sleep(0)

    async with scene(running) as at:
        at.upstream.handler = trickle
        answered: Answered = await at.ask(at.request(method=b"GET"))
        assert answered.complete and answered.body == EVENTS[:1] + EVENTS[:7] + EVENTS


INTERNAL = [
    b"x-keystile-organization: other",
    b"x-keystile-key: other",
    b"x-keystile-role: owner",
    b"x-keystile-connection: other",
    b"x-forwarded-for: 203.0.113.9",
    b"x-forwarded-host: evil.example",
    b"x-forwarded-proto: https",
    b"forwarded: for=203.0.113.9;host=evil.example",
    b"x-real-ip: 203.0.113.9",
    b"x-original-url: /v1/mcp/other",
    b"x-rewrite-url: /v1/mcp/other",
    b"x-http-method-override: DELETE",
]


async def test_internal_headers_from_clients_change_nothing(running: Gateway) -> None:
    async with scene(running) as at:
        assert (await at.ask(at.request(CALL, *INTERNAL, key=None))).status == 401
        asserted = [b"x-keystile-user: alice", b"x-igris-trace-id: trace-7", b'x-keystile-metadata: {"a": 1}']
        answered = await at.ask(at.request(CALL, *INTERNAL, *asserted))
        assert (answered.status, answered.field(b"x-keystile-trace-id")) == (200, [b"trace-7"])
        (asked,) = at.upstream.asked
        sent = {name for name, _ in asked.fields}
        assert sent == {
            b"host",
            b"user-agent",
            b"accept-encoding",
            b"content-type",
            b"content-length",
            b"authorization",
        }
        (event,) = await at.events(1, traceId="trace-7")
        assert (event["address"], event["user"], event["metadata"]) == ("127.0.0.1", "alice", {"a": 1})
        for name in ("x-forwarded-host", "forwarded", "x-keystile-organization", "x-original-url"):
            config = await at.api("GET", f"/connections/{at.slug}/client-config", headers={name: "evil.example"})
            assert config.data["url"] == at.running.endpoint(at.slug)
            unproven = await at.api("GET", "/connections", key="ks_no", headers={name: "owner"})
            assert unproven.status == 401
