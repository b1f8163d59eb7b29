"""The gate: nothing under /api/v1 answers without a key, and a wrong key learns nothing."""

from __future__ import annotations

import sqlite3
from typing import Any

import pytest

from keystile import mint
from keystile.api.app import ROUTES

pytestmark = pytest.mark.anyio

METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE")
PATHS = sorted({route.path.format(slug="example", version="1", id="x") for route in ROUTES})
STRANGE = [
    "/",
    "/nothing",
    "/connections/",
    "//connections",
    "/.%2e/keys/x",
    "/docs/x",
    "/openapi.json/",
    "/Docs",
    "/%64ocs",
]


async def test_every_route_and_method_wants_a_key(served: Any) -> None:
    stranger = served.client(None)
    wrong = served.client(mint.new_api_key())
    for path in [*PATHS, *STRANGE]:
        for method in METHODS:
            for client in (stranger, wrong):
                refused = await client.request(method, path)
                if path == "/%64ocs" and method == "GET":
                    continue  # the same path as /docs, which is public
                assert refused.status_code == 401, (method, path)
                assert refused.headers["www-authenticate"] == "Bearer"


async def test_all_wrong_keys_get_the_same_answer(served: Any) -> None:
    bodies: set[str] = set()
    for shown in [
        *(None, "", "Bearer", "Bearer x", "Basic eDp5", "Bearer ks_", f"Bearer {mint.new_api_key()}"),
        *(f"Bearer {served.admin}x", f"bearer {served.admin[:-1]}", f"Token {served.admin}", served.admin),
        *("Bearer '\"; DROP TABLE api_keys; --", "Bearer " + "k" * 10_000, "Bearer ks_" + "ü" * 49),
    ]:
        headers = {} if shown is None else {"authorization": shown.encode()}
        answer = await served.client(None).get("/connections", headers=headers)
        assert answer.status_code == 401, shown
        bodies.add(answer.text)
    assert len(bodies) == 1


async def test_other_places_for_a_key_do_not_count(served: Any) -> None:
    stranger = served.client(None)
    for request in [
        {"headers": {"x-api-key": served.admin}},
        {"params": {"api_key": served.admin, "access_token": served.admin}},
        {"headers": {"cookie": f"authorization=Bearer {served.admin}"}},
        {"headers": [("authorization", f"Bearer {served.admin}"), ("authorization", f"Bearer {served.admin}")]},
    ]:
        assert (await stranger.get("/connections", **request)).status_code == 401


async def test_failures_look_alike_whoever_finds_them(served: Any) -> None:
    cases = [
        (await served.api.get("/nothing"), 404, "missing"),
        (await served.api.put("/connections"), 405, "method_not_allowed"),
        (
            await served.api.post("/connections", content=b"{", headers={"content-type": "application/json"}),
            400,
            "invalid_json",
        ),
        (await served.api.post("/connections", content=b"slug=x"), 415, "media_type_unsupported"),
        (await served.api.post("/connections", content=b"x" * (1 << 20) + b"x"), 413, "body_too_large"),
        (await served.api.post("/connections", json=[]), 400, "invalid"),
        (await served.api.get("/connections", headers={"host": "bad host"}), 400, "invalid"),
    ]
    for answer, status, code in cases:
        assert answer.status_code == status, answer.text
        assert answer.json()["error"]["code"] == code
        assert set(answer.json()) == {"error"}
        assert set(answer.json()["error"]) == {"code", "message", "details"}
        assert answer.headers["cache-control"] == "no-store"
        assert answer.headers["content-type"] == "application/json"
    assert set(cases[1][0].headers["allow"].split(", ")) >= {"GET", "POST"}


async def test_a_body_in_another_encoding_is_refused(served: Any) -> None:
    headers = {"content-type": "application/json", "content-encoding": "gzip"}
    assert (await served.api.post("/keys", content=b"{}", headers=headers)).status_code == 415
    for body in (b"\xff", b'{"name":"\xff"}', b"[" * 100_000, b'{"name":"\\ud800"}', b"\xef\xbb\xbf{}", b""):
        answer = await served.api.post("/keys", content=body, headers={"content-type": "application/json"})
        assert answer.status_code == 400, body[:10]


async def test_a_bug_is_answered_with_an_id_alone_and_logged_without_a_message(
    served: Any, capfd: pytest.CaptureFixture[str]
) -> None:
    with sqlite3.connect(served.folders.database) as database:
        database.execute("DROP TABLE connections")
    database.close()
    answer = await served.api.get("/connections")
    assert answer.status_code == 500
    error = answer.json()["error"]
    assert error["code"] == "internal_error"
    assert set(error["details"]) == {"id"}
    logged = "".join(capfd.readouterr())
    assert error["details"]["id"] in logged
    assert "OperationalError" in logged
    assert "no such table" not in logged + answer.text


async def test_a_sealed_row_that_was_moved_is_500_with_a_code_of_its_own(served: Any) -> None:
    await served.connection()
    with sqlite3.connect(served.folders.database) as database:
        database.execute("UPDATE credential_versions SET sealed = zeroblob(80)")
    database.close()
    answer = await served.api.post("/connections/example/check")
    assert answer.status_code == 500
    assert answer.json()["error"]["code"] == "credential_unreadable"
    assert set(answer.json()["error"]["details"]) == {"id"}
