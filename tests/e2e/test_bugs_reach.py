"""Bug classes of reach: which route answers whom, and that another organization does not exist."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest

from tests.e2e.scene import Scene, scene
from tests.peers.gateway import Gateway
from tests.peers.processes import ROOT, inherited

pytestmark = [pytest.mark.anyio, pytest.mark.xdist_group("bugs")]

METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "PROPFIND")
PUBLIC = {("GET", "/api/v1/openapi.json"), ("GET", "/api/v1/docs")}
PUBLIC |= {(method, path) for method in ("GET", "HEAD") for path in ("/healthz", "/readyz")}
OURS = ["/", "/healthz", "/readyz", "/api/v1", "/api/v1/", "/api/v1/docs", "/api/v1/openapi.json", "/host/v1/keys"]
OURS += [
    "/host/v1/organizations",
    "/v1/mcp",
    "/v1/mcp/",
    "/v1/mcp/{slug}",
    "/s/{id}/mcp",
    "/metrics",
    "/docs",
    "/schema",
]


class Tenant(msgspec.Struct, frozen=True):
    """An organization that the host's operator made."""

    slug: str
    key: str


def host(running: Gateway, *command: str) -> dict[str, Any]:
    """`keystile organization …`, which speaks to the socket of the host's operator."""
    arguments = [ROOT / ".venv/bin/keystile", "organization", *command, "--data-dir", running.data, "--json"]
    done = subprocess.run(arguments, env=inherited(), capture_output=True, text=True, check=False, timeout=30)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def other(running: Gateway) -> Tenant:
    return Tenant("other", host(running, "create", "other")["key"])


@pytest.fixture(scope="module")
def owner_key(running: Gateway) -> Iterator[str]:
    return host(running, "key", "default", "--role", "owner")["key"]


def routes(running: Gateway) -> set[tuple[str, str]]:
    """(method, path) of every route in the OpenAPI document."""
    document = running.api("GET", "/openapi.json").body
    found = {(method.upper(), path) for path, item in document["paths"].items() for method in item}
    return {(method, path) for method, path in found if method in METHODS}


def filled(path: str, slug: str, key_id: str = "none") -> str:
    return path.replace("{slug}", slug).replace("{version}", "1").replace("{id}", key_id)


async def test_without_a_key_only_the_public_list_answers(running: Gateway) -> None:
    async with scene(running) as at:
        paths = {path for _, path in routes(running)} | set(OURS)
        for path in sorted(paths):
            for method in METHODS:
                answers = []
                for fields in ({}, {"Authorization": "Bearer"}, {"Authorization": "Basic eDp5"}, {"x-api-key": "null"}):
                    sent = {"Content-Type": "application/json", **fields}
                    status, got, body = running._request(method, filled(path, at.slug), b"{}", sent)
                    answers.append((status, body))
                    assert "location" not in got and "access-control-allow-origin" not in got
                expected = {200} if (method, path) in PUBLIC else {400, 401, 404, 405}
                assert {status for status, _ in answers} <= expected, (method, path)
                assert at.slug.encode() not in b"".join(body for _, body in answers)
        assert at.upstream.connections == 0


async def test_every_route_of_the_api_asks_for_a_key_before_it_says_anything(running: Gateway) -> None:
    for method, path in routes(running) - PUBLIC:
        status, fields, _ = running._request(method, filled(path, "no-such-slug"), b"{", {})
        assert (status, fields["www-authenticate"]) == (401, "Bearer"), (method, path)


# What each role gets at a connection, a version and a key that an admin made. A developer sees only its own.
BODIES: dict[tuple[str, str], dict[str, Any]] = {
    ("POST", "/connections"): {"slug": "made-by-{role}", "upstreamUrl": "{url}", "authType": "none"},
    ("PATCH", "/connections/{slug}"): {"name": "Another name"},
    ("POST", "/connections/{slug}/rotate"): {"credential": "made-up-credential-rotated"},
    ("POST", "/keys"): {"name": "minted"},
    ("PATCH", "/keys/{id}"): {"name": "Another name"},
}
ROLES = ("client", "auditor", "developer", "admin", "owner")
TABLE: dict[tuple[str, str], tuple[int, int, int, int, int]] = {
    ("POST", "/connections"): (403, 403, 201, 201, 201),
    ("GET", "/connections"): (403, 200, 200, 200, 200),
    ("GET", "/connections/{slug}"): (403, 200, 404, 200, 200),
    ("PATCH", "/connections/{slug}"): (403, 403, 404, 200, 200),
    ("DELETE", "/connections/{slug}"): (403, 403, 404, 204, 204),
    ("POST", "/connections/{slug}/rotate"): (403, 403, 404, 200, 200),
    ("GET", "/connections/{slug}/versions"): (403, 200, 404, 200, 200),
    ("POST", "/connections/{slug}/versions/{version}/activate"): (403, 403, 404, 200, 200),
    ("DELETE", "/connections/{slug}/versions/{version}"): (403, 403, 404, 409, 409),  # it is the active one
    ("POST", "/connections/{slug}/check"): (403, 403, 404, 200, 200),
    ("GET", "/connections/{slug}/client-config"): (403, 200, 404, 200, 200),
    ("POST", "/keys"): (403, 403, 201, 201, 201),
    ("GET", "/keys"): (403, 200, 200, 200, 200),
    ("GET", "/keys/{id}"): (403, 200, 404, 200, 200),
    ("PATCH", "/keys/{id}"): (403, 403, 404, 200, 200),
    ("DELETE", "/keys/{id}"): (403, 403, 404, 204, 204),
    ("GET", "/events"): (403, 200, 200, 200, 200),
}


async def keys_of_every_role(at: Scene, owner_key: str) -> dict[str, str]:
    minted = {role: await at.client_key(role=role) for role in ROLES if role != "owner"}
    return minted | {"owner": owner_key}


async def test_each_role_gets_what_the_table_says_at_every_route(running: Gateway, owner_key: str) -> None:
    public = {("GET", "/api/v1/openapi.json"), ("GET", "/api/v1/docs")}
    assert {(method, f"/api/v1{path}") for method, path in TABLE} == routes(running) - public
    async with scene(running) as at:
        keys = await keys_of_every_role(at, owner_key)
        for (method, path), statuses in TABLE.items():
            for role, expected in zip(ROLES, statuses, strict=True):
                slug = await at.connect()
                key_id = (await at.api("POST", "/keys", {"name": "to be revoked"})).data["id"]
                body = json.loads(
                    json.dumps(BODIES.get((method, path))).replace("{role}", role).replace("{url}", at.url)
                )
                got = await at.api(method, filled(path, slug, key_id), body, key=keys[role])
                assert got.status == expected, (method, path, role, got.body)
                if role == "developer" and expected == 200:
                    assert slug not in json.dumps(got.body) and key_id not in json.dumps(got.body)


MINTS = {"client": "", "auditor": "", "developer": "client developer", "admin": "client auditor developer admin"}


async def test_nobody_mints_above_their_own_role(running: Gateway, owner_key: str) -> None:
    async with scene(running) as at:
        keys = await keys_of_every_role(at, owner_key)
        for role, mintable in (MINTS | {"owner": " ".join(ROLES)}).items():
            for wanted in ROLES:
                got = await at.api("POST", "/keys", {"name": "minted", "role": wanted}, key=keys[role])
                assert got.status == (201 if wanted in mintable.split() else 403), (role, wanted)


async def test_each_role_calls_what_it_may_call(running: Gateway, owner_key: str) -> None:
    async with scene(running) as at:
        keys = await keys_of_every_role(at, owner_key)
        expected = {"client": None, "auditor": "role_cannot_call", "developer": "out_of_scope", "admin": None}
        for role, refusal in expected.items():
            answered = await at.ask(at.request(key=keys[role]))
            assert answered.status == (403 if refusal else 200), role
            assert refusal is None or answered.code == refusal
        body = {"slug": f"own-{at.slug}", "upstreamUrl": at.url, "authType": "none"}
        assert (await at.api("POST", "/connections", body, key=keys["developer"])).status == 201
        own = f"/v1/mcp/own-{at.slug}".encode()
        assert (await at.ask(at.request(key=keys["developer"], target=own))).status == 200
        narrowed = await at.client_key(connections=[f"own-{at.slug}"])
        assert (await at.ask(at.request(key=narrowed))).code == "out_of_scope"
        nothing = await at.client_key(connections=[])
        assert (await at.ask(at.request(key=nothing))).code == "out_of_scope"
        assert (await at.ask(at.request(key=narrowed, target=own))).status == 200


async def test_another_organization_does_not_exist(running: Gateway, other: Tenant) -> None:
    async with scene(running) as at:
        key_id = (await at.api("POST", "/keys", {"name": "ours"})).data["id"]
        await at.ask(at.request())
        await at.ask(at.request(key=None))
        assert len(await at.events(2)) == 2
        for method, path in TABLE:
            if "{" in path:
                got = await at.api(method, filled(path, at.slug, key_id), BODIES.get((method, path)), key=other.key)
                absent = await at.api(method, filled(path, "absent", "absent"), BODIES.get((method, path)))
                assert (got.status, got.body) == (404, absent.body), (method, path)
        assert (await at.api("GET", f"/events?connection={at.slug}", key=other.key)).status == 404
        scoped = await at.api("POST", "/keys", {"name": "scoped", "connections": [at.slug]}, key=other.key)
        assert scoped.status == 400
        cursor = (await at.api("GET", "/connections?limit=1")).body["meta"]["nextCursor"]
        for path in (
            "/connections",
            "/keys",
            "/events?limit=1000",
            *([f"/connections?cursor={cursor}"] if cursor else []),
        ):
            seen = json.dumps((await at.api("GET", path, key=other.key)).data)
            assert at.slug not in seen and key_id not in seen, path
        answered = await at.ask(at.request(key=other.key))
        assert (answered.status, answered.code) == (404, "connection_unknown")
        assert len(at.upstream.asked) == 1


async def test_one_slug_in_two_organizations_is_two_connections(running: Gateway, other: Tenant) -> None:
    async with scene(running) as at, scene(running) as beside:
        body = {"slug": at.slug, "upstreamUrl": beside.url, "credential": "made-up-credential-of-the-other"}
        assert (await at.api("POST", "/connections", body, key=other.key)).status == 201
        theirs = (await at.api("POST", "/keys", {"name": "theirs"}, key=other.key)).data["key"]
        assert (await at.ask(at.request(key=theirs))).status == 200
        assert (len(at.upstream.asked), len(beside.upstream.asked)) == (0, 1)
        assert beside.upstream.asked[0].field(b"authorization") == [b"Bearer made-up-credential-of-the-other"]
        # Without a key it is of neither, for the slug does not say whose it is. On one connection, so in one worker.
        client = await at.client()
        for key, method, status in ((None, b"GET", 401), (at.key, b"POST", 200)):
            client.send(at.request(method=method, key=key))
            assert (await client.answer()).status == status
        assert (len(at.upstream.asked), len(beside.upstream.asked)) == (1, 1)
        (ours,) = await at.events(1)
        (beyond,) = (await at.api("GET", f"/events?connection={at.slug}", key=other.key)).data
        assert (ours["outcome"], beyond["outcome"]) == ("done", "done")
        assert ours["connectionId"] != beyond["connectionId"]
