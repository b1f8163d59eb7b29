"""The probe: both eras of MCP, each way to fail, and nothing stored."""

from __future__ import annotations

import json
import sqlite3
from typing import Any

import pytest

from tests.api.upstream import Asked, answer, result, upstream

pytestmark = pytest.mark.anyio

SECRET = "made-up-secret-1"
INFO = {"name": "everything", "version": "1.2"}


def modern(_: Asked) -> bytes:
    return result({"supportedVersions": ["2025-11-25", "2026-07-28"], "capabilities": {}, "serverInfo": INFO})


def handshake(asked: Asked) -> bytes:
    if asked.method == "DELETE":
        return answer("405 Method Not Allowed")
    if asked.rpc == "initialize":
        return result({"protocolVersion": "2025-11-25", "serverInfo": INFO, "capabilities": {}}, mcp_session_id="s1")
    return answer("400 Bad Request", b"no session")


async def check(served: Any, url: str, body: Any = None, **fields: Any) -> Any:
    await served.connection("probed", upstreamUrl=url, **fields)
    answer = await served.api.post("/connections/probed/check", json=body)
    assert answer.status_code == 200, answer.text
    assert "made-up" not in answer.text
    return answer.json()["data"]


async def test_a_modern_server_is_discovered_in_one_request(served: Any) -> None:
    async with upstream(modern) as peer:
        found = await check(served, peer.url)
    assert found["ok"] is True
    assert (found["method"], found["status"]) == ("server/discover", 200)
    assert (found["protocolVersion"], found["serverName"], found["serverVersion"]) == (
        "2026-07-28",
        "everything",
        "1.2",
    )
    assert found["headerSent"] == "Authorization"
    assert found["latencyMs"] >= 0
    assert (found["code"], found["message"], found["reason"]) == (None, None, None)
    (asked,) = peer.asked
    assert (asked.method, asked.target) == ("POST", "/mcp?x=1")
    assert asked.fields["authorization"] == f"Bearer {SECRET}"
    assert asked.fields["mcp-method"] == "server/discover"
    assert asked.fields["mcp-protocol-version"] == "2026-07-28"
    meta = json.loads(asked.body)["params"]["_meta"]
    assert meta["io.modelcontextprotocol/protocolVersion"] == "2026-07-28"
    assert "io.modelcontextprotocol/clientCapabilities" in meta


async def test_the_identity_stamped_on_a_modern_result_counts(served: Any) -> None:
    stamped = {"supportedVersions": ["2026-07-28"], "_meta": {"io.modelcontextprotocol/serverInfo": INFO}}
    async with upstream(lambda _: result(stamped)) as peer:
        assert (await check(served, peer.url))["serverName"] == "everything"


async def test_a_handshake_server_is_initialized_and_its_session_ended(served: Any) -> None:
    async with upstream(handshake) as peer:
        found = await check(served, peer.url)
    assert (found["ok"], found["method"], found["protocolVersion"]) == (True, "initialize", "2025-11-25")
    assert [asked.method for asked in peer.asked] == ["POST", "POST", "DELETE"]
    assert peer.asked[2].fields["mcp-session-id"] == "s1"
    assert peer.asked[2].fields["mcp-protocol-version"] == "2025-11-25"


@pytest.mark.parametrize(("number", "code"), [(8, None), (9, "upstream_malformed")])
async def test_a_flood_of_interim_heads_is_no_answer(served: Any, number: int, code: str | None) -> None:
    async with upstream(lambda asked: b"HTTP/1.1 103 Early Hints\r\n\r\n" * number + modern(asked)) as peer:
        assert (await check(served, peer.url))["code"] == code


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
async def test_a_result_in_a_stream_that_stays_open_is_found(served: Any, end: str) -> None:
    event = json.dumps({"jsonrpc": "2.0", "id": 1, "result": {"supportedVersions": ["2026-07-28"]}})
    head = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
    lines = (": hello", "", 'data: {"jsonrpc":"2.0","method":"x"}', "", "event: message", f"data: {event}", "", "")
    chunks = b"".join(b"1\r\n%c\r\n" % byte for byte in end.join(lines).encode())
    async with upstream(lambda _: head + chunks, hang=True) as peer:
        assert (await check(served, peer.url))["ok"] is True


async def test_a_candidate_is_probed_with_and_not_stored(served: Any) -> None:
    async with upstream(modern) as peer:
        await check(served, peer.url, {"credential": "made-up-candidate"}, authType="header", authHeaderName="X-Key")
    assert peer.asked[0].fields["x-key"] == "made-up-candidate"
    assert "authorization" not in peer.asked[0].fields
    assert (await served.api.get("/connections/probed")).json()["data"]["credentialVersion"] == 1
    assert len((await served.api.get("/connections/probed/versions")).json()["data"]) == 1


async def test_nothing_is_sent_for_auth_type_none(served: Any) -> None:
    async with upstream(modern) as peer:
        found = await check(served, peer.url, authType="none", credential=None)
    assert found["headerSent"] is None
    assert "authorization" not in peer.asked[0].fields
    refused = await served.api.post("/connections/probed/check", json={"credential": "made-up"})
    assert refused.status_code == 400


@pytest.mark.parametrize(
    ("said", "code", "requests"),
    [
        (answer("401 Unauthorized", www_authenticate="Bearer"), "upstream_auth_failed", 1),
        (answer("403 Forbidden"), "upstream_auth_failed", 1),
        (answer("302 Found", location="http://127.0.0.1:1/"), "upstream_redirected", 1),
        (answer("307 Temporary Redirect", location="http://127.0.0.1:1/"), "upstream_redirected", 1),
        (answer("200 OK", b"<html>", content_type="text/html"), "upstream_not_mcp", 2),
        (answer("404 Not Found"), "upstream_not_mcp", 2),
        (answer("500 Oops"), "upstream_failed", 2),
        (result({"protocolVersion": 7}), "upstream_not_mcp", 2),
        (b"HTTP/2.0 200 OK\r\n\r\n", "upstream_malformed", 1),
        (b"", "upstream_connection_lost", 1),
        (b"HTTP/1.1 101 Switching Protocols\r\nupgrade: x\r\n\r\n", "upstream_malformed", 1),
        (answer("200 OK", b"[" * 300_000, content_type="application/json"), "upstream_not_mcp", 2),
    ],
)
async def test_each_way_to_fail_has_its_code(served: Any, said: bytes, code: str, requests: int) -> None:
    async with upstream(lambda _: said) as peer:
        found = await check(served, peer.url)
    assert (found["ok"], found["code"]) == (False, code)
    assert found["message"]
    assert len(peer.asked) == requests


async def test_an_upstream_that_echoes_the_credential_is_not_repeated(served: Any) -> None:
    echo = {"supportedVersions": ["2026-07-28"], "serverInfo": {"name": f"you sent {SECRET}\x1b[2J", "version": 1}}
    async with upstream(lambda _: result(echo)) as peer:
        found = await check(served, peer.url)
    assert found["serverName"] == "you sent **************** [2J"
    assert found["serverVersion"] is None


async def test_nobody_listening_is_said(served: Any) -> None:
    async with upstream(modern) as peer:
        pass
    found = await check(served, peer.url)
    assert (found["ok"], found["code"], found["status"]) == (False, "upstream_unreachable", None)
    assert found["headerSent"] is None


async def test_why_nothing_was_dialled_is_said(bare: Any) -> None:
    await bare.connection("named", upstreamUrl="https://absent.invalid/mcp", authType="none", credential=None)
    found = (await bare.api.post("/connections/named/check")).json()["data"]
    assert (found["code"], found["reason"]) == ("upstream_unreachable", "the name does not resolve")
    with sqlite3.connect(bare.folders.database) as file:  # as if its range had been allowed when it was made
        file.execute("UPDATE connections SET upstream_url = 'https://127.0.0.1:9/mcp'")
    found = (await bare.api.post("/connections/named/check")).json()["data"]
    assert (found["code"], found["reason"]) == ("address_refused", "loopback")
