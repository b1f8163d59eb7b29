"""Everything an operator and a caller may do with a node, and much of what they do wrong, for the sweep of its secrets.

`drive(run)` does it all against a scripted upstream that echoes its credential wherever an answer has room; every
answer of the node is collected.
"""

from __future__ import annotations

import asyncio
import gzip
import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from urllib.parse import quote

from tests.e2e.scene import Scene
from tests.e2e.sweep import Sweep
from tests.gateway.stage import CALL, Asked, Handler

CREDENTIALS = {
    what: f"Made-Up-LEAK+{what}/Credential={what[::-1]}"
    for what in ("created", "rotated", "patched", "candidate", "misplaced", "in-header", "refused")
}
MISPLACED = CREDENTIALS["misplaced"]


class Run:
    """One run of a node being driven, everything it answers collected."""

    def __init__(self, sweep: Sweep, at: Scene, name: str) -> None:
        self.sweep = sweep
        self.at = at
        self.name = name

    async def send(
        self, method: str, path: str, body: object = None, key: str | None = None, fields: Mapping[str, str] = {}
    ) -> int:
        """One REST call; `body` as JSON, or as it stands if it is bytes."""
        sent = {"authorization": f"Bearer {key or self.at.running.admin_key}", "content-type": "application/json"}
        raw = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
        status, got, answered = await asyncio.to_thread(
            self.at.running._request, method, f"/api/v1{path}", raw, {**sent, **fields}
        )
        self.sweep.collect(f"{self.name}: {method} {path[:40]} → {status}", json.dumps(got).encode() + b"\n" + answered)
        return status

    async def call(self, what: str, slug: str, *fields: bytes, method: bytes = b"POST") -> int:
        """One call of an endpoint."""
        answered = await self.at.ask(self.at.request(CALL, *fields, method=method, target=f"/v1/mcp/{slug}".encode()))
        self.sweep.collect(f"{self.name}: {what} → {answered.status}", answered.head + answered.body)
        return answered.status


def answering(status: bytes, *fields: bytes, body: bytes = b"{}", framed: bool = True) -> Handler:
    """An upstream's answer; {c} stands for the credential it was shown."""

    async def handle(asked: Asked, _: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        (shown,) = [*asked.field(b"authorization"), *asked.field(b"x-upstream-key")]
        credential = shown.removeprefix(b"Bearer ")
        said = body.replace(b"{c}", credential)
        lines = [b"HTTP/1.1 " + status, *fields, *([b"content-length: %d" % len(said)] if framed else [])]
        writer.write(b"\r\n".join(lines).replace(b"{c}", credential) + b"\r\n\r\n" + said)
        if not framed:
            writer.close()

    return handle


JSON = b"content-type: application/json"
DISCOVERED = (
    b'{"jsonrpc":"2.0","id":1,"result":{"supportedVersions":["2026-07-28{c}"],"serverInfo":{"name":"I know {c}"}}}'
)
UPSTREAMS: dict[str, tuple[Handler, int]] = {
    "good": (answering(b"200 OK", JSON, body=DISCOVERED), 200),
    "echo in head and body": (answering(b"200 {c}", JSON, b"x-echo: a{c}b", b"mcp-note: {c}", body=b'"{c}{c}"'), 200),
    "echo in a stream": (
        answering(b"200 OK", b"content-type: text/event-stream", body=b"data: {c}\n\n", framed=False),
        200,
    ),
    "echo in a session id": (answering(b"200 OK", JSON, b"mcp-session-id: {c}"), 200),
    "error of its own": (answering(b"500 {c}", JSON, body=b'{"error":"bad {c}"}'), 500),
    "refused": (answering(b"401 {c}", b'www-authenticate: Bearer realm="{c}"', body=b"no {c}"), 502),
    "forbidden": (answering(b"403 No", b"x-why: {c}", body=b"no {c}"), 502),
    "redirect": (answering(b"302 Found", b"location: https://evil.example/?{c}", body=b"{c}"), 502),
    "malformed": (answering(b"200 OK", b"bad field {c}", body=b"{c}"), 502),
    "no HTTP at all": (answering(b"{c}", body=b"{c}"), 502),
    "head too large": (answering(b"200 OK", b"x-echo: " + b"{c}" * 2000), 502),
    "encoded": (answering(b"200 OK", JSON, b"content-encoding: gzip", body=gzip.compress(b"{}")), 502),
    "cut off": (answering(b"200 OK", JSON, b"content-length: 500", body=b"{c}", framed=False), 200),
    "not MCP": (answering(b"200 OK", JSON, body=b'{"jsonrpc":"2.0","id":1,"error":{"code":1,"message":"{c}"}}'), 200),
}


def wrong_bodies() -> list[object]:
    """Bodies of POST /connections that are refused, the credential where it does not belong."""
    good = {"slug": "wrong", "upstreamUrl": "http://127.0.0.1:9/", "credential": MISPLACED}
    changed: list[dict[str, object]] = [
        {"slug": MISPLACED},
        {"slug": MISPLACED.lower().replace("+", "-")[:63] + "!"},
        {"upstreamUrl": MISPLACED},
        {"upstreamUrl": f"https://user:{MISPLACED}@example.com/"},
        {"upstreamUrl": f"https://example.com/#{MISPLACED}"},
        {"upstreamUrl": f"https://169.254.169.254/?token={MISPLACED}"},
        {"authType": MISPLACED},
        {"authType": "none"},
        {"authHeaderName": MISPLACED},
        {"authType": "header", "authHeaderName": MISPLACED + " "},
        {"authType": "header"},
        {"credential": [MISPLACED]},
        {"credential": {MISPLACED: MISPLACED}},
        {"credential": MISPLACED + "\n"},
        {"credential": MISPLACED * 1000},
        {"credentials": MISPLACED},
        {MISPLACED: 1},
        {"headers": {MISPLACED + " ": "x"}},
        {"headers": {"X-Fixed": MISPLACED + "\r\n"}},
        {"headers": {MISPLACED: 7}},
        {"headers": {"X-Fixed": [MISPLACED]}},
        {"headers": MISPLACED},
        {"forwardHeaders": [MISPLACED + ":"]},
        {"forwardHeaders": MISPLACED},
        {"caPem": MISPLACED},
        {"maxInFlight": MISPLACED},
        {"enabled": MISPLACED},
        {"name": MISPLACED + "\0"},
    ]
    bodies: list[object] = [good | change for change in changed]
    return [*bodies, MISPLACED, [MISPLACED], f'{{"credential":"{MISPLACED}"'.encode(), b"\xff" + MISPLACED.encode()]


async def drive(run: Run) -> None:
    """Everything an operator and a caller may do, and much of what they do wrong."""
    at, secrets = run.at, CREDENTIALS
    slug, header_slug = f"swept-{run.name}", f"swept-by-header-{run.name}"
    made = {"slug": slug, "upstreamUrl": at.url, "credential": secrets["created"]}
    assert await run.send("POST", "/connections", made) == 201
    made = {"slug": header_slug, "upstreamUrl": at.url, "authType": "header", "authHeaderName": "X-Upstream-Key"}
    assert await run.send("POST", "/connections", made | {"credential": secrets["in-header"]}) == 201
    assert await run.send("POST", "/connections", made | {"credential": secrets["refused"]}) == 409
    for handler, expected in UPSTREAMS.values():
        at.upstream.handler = handler
        for each in (slug, header_slug):
            assert await run.call("call", each) == expected
            assert await run.send("POST", f"/connections/{each}/check") == 200
        assert await run.send("POST", f"/connections/{slug}/check", {"credential": secrets["candidate"]}) == 200
    assert {secrets["created"], secrets["in-header"], secrets["candidate"]} <= credentials_sent(at)
    path = f"/connections/{slug}"
    assert await run.send("POST", f"{path}/rotate", {"credential": secrets["rotated"]}) == 200
    elsewhere = {"upstreamUrl": "https://127.0.0.1:9/", "credential": secrets["patched"]}  # where nobody listens
    assert await run.send("PATCH", path, elsewhere) == 200
    assert await run.call("unreachable", slug) == 502
    assert await run.send("POST", f"{path}/check") == 200
    async with plain_spoken() as port:  # TLS is spoken to it
        elsewhere["upstreamUrl"] = f"https://127.0.0.1:{port}/"
        assert await run.send("PATCH", path, elsewhere) == 200
        assert await run.call("no TLS there", slug) == 502
        assert await run.send("POST", f"{path}/check") == 200
    assert await run.send("POST", f"{path}/versions/1/activate") == 409
    assert await run.send("PATCH", path, {"upstreamUrl": at.url, "credential": secrets["rotated"]}) == 200
    assert await run.send("POST", f"{path}/versions/1/activate") == 200
    assert await run.send("DELETE", f"{path}/versions/2") == 204
    assert await run.send("DELETE", f"{path}/versions/1") == 409
    for shown in (path, "/connections", f"{path}/versions", "/keys", "/events?limit=1000", "/openapi.json", "/docs"):
        assert await run.send("GET", shown) == 200
    for client in ("claude-code", "cursor", "vscode", "opencode", "generic"):
        assert await run.send("GET", f"{path}/client-config?client={client}") == 200
    await mistake(run, path)


@asynccontextmanager
async def plain_spoken() -> AsyncIterator[int]:
    """The port of a server that answers whatever comes in plain HTTP."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    yield server.sockets[0].getsockname()[1]
    server.close()


def credentials_sent(at: Scene) -> set[str]:
    """What upstream got: the sweep would prove nothing if the secrets were not in use."""
    shown = [
        value
        for asked in at.upstream.asked
        for name in (b"authorization", b"x-upstream-key")
        for value in asked.field(name)
    ]
    return {value.decode().removeprefix("Bearer ") for value in shown}


async def mistake(run: Run, path: str) -> None:
    """The credential, or a key, in every wrong place."""
    bad, in_url = MISPLACED, quote(MISPLACED, safe="")
    for body in wrong_bodies():
        assert await run.send("POST", "/connections", body) == 400
        assert await run.send("PATCH", path, body) in {400, 412}
    for where in ("rotate", "check"):
        for body in ({"credential": bad + "\0"}, {"credential": 7, bad: 1}, {"secret": bad}, bad, bad.encode()):
            assert await run.send("POST", f"{path}/{where}", body) == 400
    for body in ({"name": bad + "\n"}, {"name": "x", "role": bad}, {"name": "x", "expiresAt": bad}):
        assert await run.send("POST", "/keys", body) == 400
    assert await run.send("POST", "/keys", {"name": "x", "connections": [bad], "pinnedUser": bad + "\n"}) == 400
    for query in (f"limit={in_url}", f"cursor={in_url}", f"{in_url}=1", f"connection={in_url}", f"since={in_url}"):
        assert await run.send("GET", f"/events?{query}") == 400
    for method, there in (("GET", f"/connections/{in_url}"), ("DELETE", f"/keys/{in_url}"), ("GET", f"/{in_url}")):
        assert await run.send(method, there) == 404
    assert await run.send("POST", f"{path}/versions/{in_url}/activate") == 404
    assert await run.send("GET", path, key=bad) == 401
    for fields in ({"if-match": bad}, {"content-type": bad}, {"content-encoding": bad}):
        assert await run.send("PATCH", path, {"name": "x"}, fields=fields) in {400, 412, 415}
    slug = path.rpartition("/")[2]
    for fields in (b"x-api-key: " + bad.encode(), b"mcp-session-id: " + bad.encode(), b"host: " + bad.encode()):
        assert await run.call("call with it in a field", slug, fields) >= 400
    for key in (run.at.key, run.at.running.admin_key):
        assert await run.call("call with a key in a field", slug, b"mcp-param-a: " + key.encode()) == 400
