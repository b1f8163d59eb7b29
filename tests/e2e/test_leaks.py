"""Promise 1, swept: no secret in an answer, log, event, file or process of a node, whatever happens to it."""

from __future__ import annotations

import asyncio
import base64
import gzip
import json
import os
import signal
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from urllib.parse import quote

import pytest

from tests.e2e.scene import Scene, eventually, scene
from tests.e2e.sweep import Sweep, forms
from tests.gateway.stage import CALL, Asked, Handler
from tests.peers.gateway import COMMAND, Gateway, gateway
from tests.peers.processes import ROOT, inherited, process

pytestmark = [pytest.mark.anyio, pytest.mark.xdist_group("leaks")]

ROOT_KEY = b"Made-Up-Root-Key-Of-32-Bytes-#01"
CREDENTIALS = {
    what: f"Made-Up-LEAK+{what}/Credential={what[::-1]}"
    for what in ("created", "rotated", "patched", "candidate", "misplaced", "in-header", "refused")
}
MISPLACED = CREDENTIALS["misplaced"]


def test_the_sweep_finds_every_form_wherever_it_stands() -> None:
    secret = b"Made-Up~Secret?>1"
    for shift in range(3):
        for text in (base64.b64encode, base64.urlsafe_b64encode):
            sweep = Sweep()
            sweep.hide("it", secret)
            sweep.collect("there", b"x" + text(b"#" * shift + secret + b"..."))
            assert sweep.leaks()
    for written in (secret.hex().encode(), quote(secret, safe="").encode(), secret.swapcase(), b"..." + secret):
        assert any(form in written for form in forms(secret).values())


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


async def crash(run: Run) -> None:
    """`kill -9` of worker and control process while a call is under way."""
    at, reached = run.at, asyncio.Event()

    async def hang(_: Asked, reader: asyncio.StreamReader, __: asyncio.StreamWriter) -> None:
        reached.set()
        await reader.read()

    at.upstream.handler = hang
    client = await at.client()
    client.send(at.request(target=f"/v1/mcp/swept-{run.name}".encode()))
    await asyncio.wait_for(reached.wait(), 10)
    before = at.running.processes()
    for pid in before[1:]:
        os.kill(pid, signal.SIGKILL)
    assert await client.closed()
    await eventually(lambda: not set(before[1:]) & set(at.running.processes()) and at.running.ready())


async def collect_node(run: Run) -> None:
    """Files and processes, as they are while the node runs."""
    running = run.at.running
    run.sweep.collect_files(run.name, running.data)
    run.sweep.collect_processes(run.name, running)
    run.sweep.collect(f"{run.name}: log", running.log.read_bytes())


async def command(sweep: Sweep, running: Gateway, root_key: str, typed: str, *arguments: str) -> int:
    """A `keystile` command with its secrets in the environment and on standard input; the exit code."""
    own = {"KEYSTILE_ROOT_KEY": root_key, "KEYSTILE_API_KEY": running.admin_key, "KEYSTILE_BASE_URL": running.url}
    done = await asyncio.create_subprocess_exec(
        COMMAND[0],
        *arguments,
        cwd=ROOT,
        env=inherited() | own | {"KEYSTILE_DATA_DIR": str(running.data), "KEYSTILE_PORT": str(running.port)},
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    said, _ = await done.communicate(typed.encode())
    sweep.collect(f"keystile {' '.join(arguments)[:30]} → {done.returncode}: {said[:50]!r}", said)
    assert done.returncode is not None
    return done.returncode


async def command_all(sweep: Sweep, running: Gateway, root_key: str) -> None:
    """Commands used rightly and wrongly."""
    bad, slug = MISPLACED, "swept-text"
    refused_upstream = "http://127.0.0.1:9/"
    wanted: list[tuple[int, str, tuple[str, ...]]] = [
        (0, bad + "\n", ("connection", "rotate", slug, "--credential-stdin", "--json")),
        (0, "", ("connection", "list", "--json")),
        (0, "", ("connection", "delete", "swept-by-header-text", "--yes")),
        (1, bad + "\0", ("connection", "rotate", slug, "--credential-stdin")),
        (1, bad + "\n", ("connection", "check", slug, "--credential-stdin")),
        (2, "", ("connection", "create", "from-arguments", refused_upstream, bad)),
        (2, "", ("connection", "create", "from-arguments", refused_upstream, "--credential", bad)),
        (2, "", ("connection", "create", "from-arguments", refused_upstream, f"--credential={bad}")),
        (2, "", ("connection", "create", "from-arguments", refused_upstream, "--auth-type", bad)),
        (2, "", ("connection", bad)),
        (2, "", (bad,)),
        (1, "", ("doctor",)),  # it has not been told that loopback is allowed
    ]
    codes = await asyncio.gather(*(command(sweep, running, root_key, typed, *words) for _, typed, words in wanted))
    assert [(code, words) for code, (_, _, words) in zip(codes, wanted, strict=True)] == [
        (code, words) for code, _, words in wanted
    ]


async def test_no_secret_is_anywhere_after_everything(tmp_path: Path) -> None:
    sweep, root_key = Sweep(), base64.b64encode(ROOT_KEY).decode()
    sweep.hide("root key", ROOT_KEY)
    sweep.hide("root key as it is given", root_key)
    for what, secret in CREDENTIALS.items():
        sweep.hide(f"credential {what}", secret)
    admin_key: str | None = None
    for log_format in ("text", "json"):
        settings = {"log_format": log_format, "root_key": root_key, "limits_spool_segment_bytes": 1 << 18}
        with gateway(tmp_path, admin_key=admin_key, **settings) as running:
            admin_key = sweep.hide("admin key", running.admin_key)
            async with scene(running) as at:
                sweep.hide(f"client key {log_format}", at.key)
                run = Run(sweep, at, log_format)
                await drive(run)
                await collect_node(run)
                await crash(run)
                await run.send("GET", "/events?limit=1000")
                if log_format == "text":
                    await command_all(sweep, running, root_key)
                await collect_node(run)
                for asked in at.upstream.asked:
                    assert b"ks_" not in asked.head + asked.body
        wrong = base64.b64encode(ROOT_KEY[::-1]).decode()
        with pytest.raises(AssertionError, match="not the root key"), gateway(tmp_path, root_key=wrong):
            pytest.fail("a wrong root key was accepted")
        sweep.collect_files(f"{log_format}, stopped", tmp_path)
    for part in (
        "keystile.db",
        "keystile.db-wal",
        "ledger.db",
        "run/feed",
        "run/word",
        ".seg",
        "gateway.log",
        "environ",
    ):
        assert any(part in place for place in sweep.places()), f"nothing was collected of {part}"
    assert not sweep.leaks(), "\n".join(sweep.leaks())


async def test_the_first_admin_key_is_greeted_once_and_kept_nowhere(tmp_path: Path) -> None:
    environment = {"KEYSTILE_PORT": "0", "KEYSTILE_DATA_DIR": str(tmp_path / "data"), "KEYSTILE_WORKERS": "1"}
    with process(COMMAND, environment, tmp_path / "log") as running:
        await eventually(lambda: "-d '" in (tmp_path / "log").read_text())
        running.send_signal(signal.SIGTERM)
        assert await asyncio.to_thread(running.wait, 20) == 0
    greeting = (tmp_path / "log").read_text()
    (key,) = [word.partition("KEYSTILE_API_KEY=")[2] for word in greeting.split() if "KEYSTILE_API_KEY=ks_" in word]
    sweep = Sweep()
    sweep.hide("admin key", key)
    assert greeting.count(key) == 1
    sweep.collect("greeting, the key apart", greeting.replace(key, ""))
    sweep.collect_files("data", tmp_path / "data")
    assert sweep.leaks() == []
