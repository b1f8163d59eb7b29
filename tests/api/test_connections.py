"""Connections: create, list, show, patch, delete, as issue 2 says, line by line."""

from __future__ import annotations

import datetime as dt
import re
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

from tests.api.conftest import serving

pytestmark = pytest.mark.anyio

SECRET = "made-up-secret-1"


async def test_the_issues_curl_works_without_a_network(served: Any) -> None:
    made = await served.api.post(
        "/connections",
        json={
            "slug": "github-prod",
            "name": "GitHub Production",
            "upstreamUrl": "https://mcp.github.com",
            "authType": "bearer",
            "credential": "ghp_your_github_token",
        },
    )
    assert made.status_code == 201
    data = made.json()["data"]
    assert data["slug"] == "github-prod"
    assert data["hasCredential"] is True
    assert data["credentialVersion"] == 1
    assert data["rotatedAt"] is None
    assert data["enabled"] is True
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", data["createdAt"])
    assert re.fullmatch(r"[a-z0-9]{12}", data["id"])
    assert made.headers["etag"]
    assert "ghp_your_github_token" not in made.text


async def test_a_name_that_does_not_resolve_is_accepted_with_a_warning(served: Any) -> None:
    made = await served.api.post(
        "/connections", json={"slug": "absent", "upstreamUrl": "https://absent.invalid/mcp", "credential": SECRET}
    )
    assert made.status_code == 201
    assert "absent.invalid" in made.json()["meta"]["warnings"][0]
    assert made.json()["data"]["name"] == "absent"


async def test_a_second_connection_of_a_slug_is_a_conflict(served: Any) -> None:
    await served.connection("twice")
    again = await served.api.post(
        "/connections", json={"slug": "twice", "upstreamUrl": "http://127.0.0.1:9", "credential": SECRET}
    )
    assert again.status_code == 409
    assert again.json()["error"]["code"] == "slug_taken"


@pytest.mark.parametrize(
    ("body", "code", "field"),
    [
        ({}, "credential_required", "credential"),
        ({"authType": "header", "authHeaderName": "X-Key"}, "credential_required", "credential"),
        ({"authType": "none", "credential": SECRET}, "invalid", "credential"),
        ({"credential": ""}, "invalid", "credential"),
        ({"credential": "made-up\r\nX-Evil: 1"}, "invalid", "credential"),
        ({"credential": "made-up\n"}, "invalid", "credential"),
        ({"credential": "made-up\0"}, "invalid", "credential"),
        ({"credential": "made-up-ü"}, "invalid", "credential"),
        ({"credential": "m" * 16385}, "invalid", "credential"),
        ({"authType": "header", "credential": SECRET}, "invalid", "authHeaderName"),
        ({"authHeaderName": "X-Key", "credential": SECRET}, "invalid", "authHeaderName"),
        ({"authType": "made-up-secret-in-the-wrong-place", "credential": SECRET}, "invalid", "authType"),
        ({"upstreamUrl": "ftp://example.com", "credential": SECRET}, "invalid", "upstreamUrl"),
        ({"upstreamUrl": "https://user:made-up@example.com", "credential": SECRET}, "invalid", "upstreamUrl"),
        ({"upstreamUrl": "http://0x7f.1/mcp", "credential": SECRET}, "invalid", "upstreamUrl"),
        ({"upstreamUrl": "http://169.254.169.254/", "credential": SECRET}, "address_refused", "upstreamUrl"),
        ({"upstreamUrl": "http://10.0.0.1/", "credential": SECRET}, "address_refused", "upstreamUrl"),
        ({"upstreamUrl": "https://[::ffff:10.0.0.1]/", "credential": SECRET}, "address_refused", "upstreamUrl"),
        ({"upstreamUrl": "http://93.184.215.14/", "credential": SECRET}, "address_refused", "upstreamUrl"),
        ({"name": "", "credential": SECRET}, "invalid", "name"),
        ({"name": "a\nb", "credential": SECRET}, "invalid", "name"),
        ({"caPem": "not a certificate", "credential": SECRET}, "invalid", "caPem"),
        ({"maxInFlight": 0, "credential": SECRET}, "invalid", "maxInFlight"),
        ({"maxInFlight": "5", "credential": SECRET}, "invalid", "maxInFlight"),
        ({"enabled": "true", "credential": SECRET}, "invalid", "enabled"),
        ({"headers": {"Cookie": "a=b"}, "credential": SECRET}, "invalid", "headers"),
        ({"headers": {"X-A": "b\r\nc: d"}, "credential": SECRET}, "invalid", "headers"),
        ({"headers": {"Authorization": "b"}, "credential": SECRET}, "invalid", "headers"),
        ({"headers": {"X-A": "1", "x-a": "2"}, "credential": SECRET}, "invalid", "headers"),
        ({"forwardHeaders": ["x-api-key"], "credential": SECRET}, "invalid", "forwardHeaders"),
        ({"forwardHeaders": ["X-A"], "headers": {"x-a": "1"}, "credential": SECRET}, "invalid", "forwardHeaders"),
        ({"surprise": 1, "credential": SECRET}, "invalid", "surprise"),
    ],
)
async def test_a_bad_field_is_named_and_its_value_is_not_repeated(
    served: Any, body: dict[str, Any], code: str, field: str
) -> None:
    refused = await served.api.post("/connections", json={"slug": "bad", "upstreamUrl": "http://127.0.0.1:9"} | body)
    assert refused.status_code == 400
    assert refused.json()["error"]["code"] == code
    assert refused.json()["error"]["details"]["field"] == field
    assert "made-up" not in refused.text


BANNED = (
    *("Host", "connection", "Transfer-Encoding", "Content-Type", "accept", "Accept-Encoding", "Cookie", "Mcp-Name"),
    *("X-Keystile-User", "TE", "Upgrade", "bad name", "a:b", "ä", "X-A\r\nB", "X-A\n"),
)


@pytest.mark.parametrize("name", BANNED)
async def test_a_banned_header_name_is_refused(served: Any, name: str) -> None:
    refused = await served.api.post(
        "/connections",
        json={
            "slug": "bad",
            "upstreamUrl": "http://127.0.0.1:9",
            "authType": "header",
            "authHeaderName": name,
            "credential": SECRET,
        },
    )
    assert refused.status_code == 400
    assert refused.json()["error"]["details"]["field"] == "authHeaderName"


@pytest.mark.parametrize("slug", ["ab", "A-slug", "-abc", "a b c", "abc\n", "a" * 65, "späße", "../x", ""])
async def test_a_slug_is_matched_whole(served: Any, slug: str) -> None:
    refused = await served.api.post(
        "/connections", json={"slug": slug, "upstreamUrl": "http://127.0.0.1:9", "credential": SECRET}
    )
    assert refused.status_code == 400
    assert refused.json()["error"]["details"]["field"] == "slug"


async def test_loopback_is_refused_with_a_hint_where_it_is_not_allowed(bare: Any) -> None:
    refused = await bare.api.post(
        "/connections", json={"slug": "local", "upstreamUrl": "http://127.0.0.1:9", "credential": SECRET}
    )
    assert refused.status_code == 400
    assert refused.json()["error"]["code"] == "address_refused"
    assert "KEYSTILE_UPSTREAMS_ALLOW" in refused.json()["error"]["message"]


async def test_a_list_pages_through_everything_once(served: Any) -> None:
    slugs = {f"page-{number}" for number in range(7)}
    for slug in slugs:
        await served.connection(slug)
    seen: list[str] = []
    query: dict[str, Any] = {"limit": 3}
    while True:
        page = (await served.api.get("/connections", params=query)).json()
        seen += [row["slug"] for row in page["data"]]
        query["cursor"] = page["meta"]["nextCursor"]
        if query["cursor"] is None:
            break
    assert sorted(seen) == sorted(slugs)


@pytest.mark.parametrize(
    "query", ["limit=0", "limit=1001", "limit=x", "limit=-1", "limit=1.5", "limt=1", "limit=1&limit=2"]
)
async def test_a_bad_query_is_refused(served: Any, query: str) -> None:
    refused = await served.api.get(f"/connections?{query}")
    assert refused.status_code == 400
    assert refused.json()["error"]["code"] == "invalid"


@pytest.mark.parametrize("cursor", ["x", "%00", "WzEsMl0", "bnVsbA", "WyJhIiwiYiJd", "WzEsICJhIl0=="])
async def test_a_cursor_we_did_not_make_is_refused(served: Any, cursor: str) -> None:
    refused = await served.api.get(f"/connections?cursor={cursor}")
    assert refused.status_code == 400
    assert refused.json()["error"]["code"] == "cursor_invalid"


async def test_a_patch_changes_what_it_names_and_nothing_else(served: Any) -> None:
    before = await served.connection(headers={"X-A": "1"}, forwardHeaders=["X-MCP-Toolsets"], maxInFlight=5)
    after = (await served.api.patch("/connections/example", json={"name": "other", "maxInFlight": None})).json()["data"]
    assert after["name"] == "other"
    assert after["maxInFlight"] is None
    unchanged = set(before) - {"name", "maxInFlight", "updatedAt"}
    assert {name: after[name] for name in unchanged} == {name: before[name] for name in unchanged}


LOOPS = (
    "http://127.0.0.1:8080/v1/mcp/github-prod",
    "http://localhost:8080/api/v1/keys",
    "http://[::1]:8080/v1/mcp/github-prod?x=1",
    "http://inside.example:8080/v1/mcp/github-prod",
    "https://GATEWAY.example/v1/mcp/github-prod",
)


@pytest.mark.parametrize("url", LOOPS)
async def test_a_gateway_is_not_its_own_upstream(tmp_path: Path, url: str) -> None:
    settings = {"upstreams_allow": ("127.0.0.0/8", "::1"), "hosts": ("Inside.example",)}
    async with serving(tmp_path, public_url="https://gateway.example", **settings) as served:
        made = await served.api.post("/connections", json={"slug": "loop", "upstreamUrl": url, "credential": SECRET})
        assert (made.status_code, made.json()["error"]["details"]) == (400, {"field": "upstreamUrl"})
        await served.connection("loop", upstreamUrl="http://127.0.0.1:8080/mcp")
        changed = await served.api.patch("/connections/loop", json={"upstreamUrl": url, "credential": SECRET})
        assert changed.status_code == 400
        assert "leads back" in changed.json()["error"]["message"]


async def test_without_a_public_url_the_name_a_gateway_is_called_by_is_its_own(served: Any) -> None:
    url = "http://gateway.example/v1/mcp/other"
    served.api.headers["x-forwarded-host"] = "gateway.example"
    made = await served.api.post("/connections", json={"slug": "loop", "upstreamUrl": url, "credential": SECRET})
    assert (made.status_code, made.json()["error"]["details"]["field"]) == (400, "upstreamUrl")


async def test_a_keystile_key_is_no_credential(served: Any) -> None:
    key = served.admin
    await served.connection()
    for text in (key, f"Bearer {key}"):
        for method, path, body in [
            ("POST", "/connections", {"slug": "keyed", "upstreamUrl": "http://127.0.0.1:9"}),
            ("PATCH", "/connections/example", {}),
            ("POST", "/connections/example/rotate", {}),
            ("POST", "/connections/example/check", {}),
        ]:
            refused = await served.api.request(method, path, json=body | {"credential": text})
            assert (refused.status_code, refused.json()["error"]["details"]["field"]) == (400, "credential"), path
            assert key not in refused.text
    assert (await served.api.post("/connections/example/rotate", json={"credential": key[:-1]})).status_code == 200


def certificate() -> tuple[str, str]:
    """A throw-away certificate and its private key, as PEM."""
    key, now = ec.generate_private_key(ec.SECP256R1()), dt.datetime.now(dt.UTC)
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "throw-away authority")])
    builder = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
    signed = builder.serial_number(1).not_valid_before(now).not_valid_after(now).sign(key, hashes.SHA256())
    private = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    return signed.public_bytes(Encoding.PEM).decode(), private.decode()


async def test_of_ca_pem_only_certificates_are_kept(served: Any) -> None:
    pem, private = certificate()
    made = await served.connection("trusting", caPem=f"a comment, perhaps a secret\n{pem}\r\nanother\n{pem}end")
    assert made["caPem"] == pem * 2
    again = await served.api.patch("/connections/trusting", json={"name": "same"})
    assert again.json()["data"]["caPem"] == pem * 2
    for text in (pem + private, private + pem, private, pem + private.replace("PRIVATE", "RSA PRIVATE")):
        refused = await served.api.patch("/connections/trusting", json={"caPem": text})
        assert (refused.status_code, refused.json()["error"]["details"]["field"]) == (400, "caPem")
        assert private.splitlines()[1] not in refused.text


async def test_disable_and_enable(served: Any) -> None:
    await served.connection()
    assert (await served.api.patch("/connections/example", json={"enabled": False})).json()["data"]["enabled"] is False
    rotated = await served.api.post("/connections/example/rotate", json={"credential": "made-up-secret-2"})
    assert rotated.status_code == 200
    assert rotated.json()["data"]["enabled"] is False
    assert (await served.api.patch("/connections/example", json={"enabled": True})).json()["data"]["enabled"] is True


@pytest.mark.parametrize(
    "change",
    [
        {"upstreamUrl": "http://127.0.0.2:9/mcp"},
        {"upstreamUrl": "http://127.0.0.1:10/mcp"},
        {"authType": "header", "authHeaderName": "X-Key"},
    ],
)
async def test_another_binding_needs_the_credential_anew(served: Any, change: dict[str, str]) -> None:
    await served.connection()
    refused = await served.api.patch("/connections/example", json=change)
    assert refused.status_code == 400
    assert refused.json()["error"]["code"] == "credential_required"
    assert (await served.api.get("/connections/example")).json()["data"]["credentialVersion"] == 1
    moved = await served.api.patch("/connections/example", json=change | {"credential": "made-up-secret-2"})
    assert moved.status_code == 200
    assert moved.json()["data"]["credentialVersion"] == 2
    assert moved.json()["data"] == moved.json()["data"] | change


async def test_another_path_of_the_same_origin_keeps_the_credential(served: Any) -> None:
    await served.connection()
    moved = await served.api.patch("/connections/example", json={"upstreamUrl": "http://127.0.0.1:9/other?x=1"})
    assert moved.status_code == 200
    assert moved.json()["data"]["credentialVersion"] == 1


async def test_the_header_name_may_change_its_case_without_the_credential(served: Any) -> None:
    await served.connection(authType="header", authHeaderName="X-Key")
    changed = await served.api.patch("/connections/example", json={"authHeaderName": "x-key"})
    assert changed.status_code == 200


async def test_to_none_and_back(served: Any) -> None:
    await served.connection()
    assert (await served.api.patch("/connections/example", json={"authType": "none"})).json()["data"][
        "hasCredential"
    ] is False
    back = await served.api.patch("/connections/example", json={"authType": "bearer"})
    assert back.json()["error"]["code"] == "credential_required"
    back = await served.api.patch("/connections/example", json={"authType": "bearer", "credential": SECRET})
    assert back.json()["data"]["credentialVersion"] == 2


async def test_if_match_protects_against_lost_updates(served: Any) -> None:
    await served.connection()
    tag = (await served.api.get("/connections/example")).headers["etag"]
    first = await served.api.patch("/connections/example", json={"name": "one"}, headers={"if-match": tag})
    assert first.status_code == 200
    assert first.headers["etag"] != tag
    second = await served.api.patch("/connections/example", json={"name": "two"}, headers={"if-match": tag})
    assert second.status_code == 412
    assert second.json()["error"]["code"] == "stale"
    for method, path, body in [
        ("DELETE", "/connections/example", None),
        ("POST", "/connections/example/rotate", {"credential": SECRET}),
        ("POST", "/connections/example/versions/1/activate", None),
    ]:
        refused = await served.api.request(method, path, json=body, headers={"if-match": tag})
        assert refused.status_code == 412, (method, path)
    assert (await served.api.patch("/connections/example", json={}, headers={"if-match": "*"})).status_code == 200
    listed = {"if-match": f'"0", {(await served.api.get("/connections/example")).headers["etag"]}'}
    assert (await served.api.delete("/connections/example", headers=listed)).status_code == 204


async def test_the_slug_never_changes(served: Any) -> None:
    await served.connection()
    refused = await served.api.patch("/connections/example", json={"slug": "other"})
    assert refused.status_code == 400
    assert refused.json()["error"]["details"]["field"] == "slug"


async def test_deleting_answers_204_without_a_body_and_frees_the_slug(served: Any) -> None:
    await served.connection()
    gone = await served.api.delete("/connections/example")
    assert gone.status_code == 204
    assert gone.content == b""
    assert (await served.api.get("/connections/example")).status_code == 404
    await served.connection()


async def test_another_organizations_slug_is_absent(served: Any) -> None:
    made = await served.host.post("/organizations", json={"slug": "other"})
    other = served.client(made.json()["data"]["key"])
    await served.connection()
    absent = await other.get("/connections/absent")
    foreign = await other.get("/connections/example")
    assert (foreign.status_code, foreign.json()) == (absent.status_code, absent.json())
    for method, path, body in [
        ("PATCH", "/connections/example", {}),
        ("DELETE", "/connections/example", None),
        ("POST", "/connections/example/rotate", {"credential": SECRET}),
        ("POST", "/connections/example/check", None),
        ("GET", "/connections/example/versions", None),
        ("GET", "/connections/example/client-config", None),
        ("GET", "/events?connection=example", None),
    ]:
        assert (await other.request(method, path, json=body)).status_code == 404, (method, path)
    await served.connection("example", other)
    assert (await other.get("/connections")).json()["data"][0]["slug"] == "example"


async def test_every_worker_sees_a_change_when_it_is_answered(served: Any) -> None:
    reader = served.reader()
    _, changes = reader.read()
    list(changes)
    await served.connection()
    _, changes = reader.read()
    published = [change for change in changes if hasattr(change, "connection")]
    assert published[-1].connection.slug == "example"
    assert published[-1].sealed
    assert SECRET.encode() not in published[-1].sealed


async def test_if_nothing_is_given_a_patch_says_how_it_stands(served: Any) -> None:
    before = await served.connection()
    after = (await served.api.patch("/connections/example", json={})).json()["data"]
    assert after | {"updatedAt": None} == before | {"updatedAt": None}
