"""The credential's life over the API: rotate, versions, roll back, destroy."""

from __future__ import annotations

from typing import Any

import pytest

pytestmark = pytest.mark.anyio


async def rotate(served: Any, secret: str) -> Any:
    return await served.api.post("/connections/example/rotate", json={"credential": secret})


async def versions(served: Any) -> list[tuple[int, bool, bool]]:
    rows = (await served.api.get("/connections/example/versions")).json()["data"]
    return [(row["version"], row["active"], row["destroyedAt"] is not None) for row in rows]


async def test_rotating_makes_a_new_version_active_at_once(served: Any) -> None:
    await served.connection()
    answer = await rotate(served, "made-up-secret-2")
    assert answer.status_code == 200
    assert answer.json()["data"]["credentialVersion"] == 2
    assert answer.json()["data"]["rotatedAt"]
    assert "made-up" not in answer.text
    assert await versions(served) == [(2, True, False), (1, False, False)]


async def test_rolling_back_and_forward(served: Any) -> None:
    await served.connection()
    await rotate(served, "made-up-secret-2")
    back = await served.api.post("/connections/example/versions/1/activate")
    assert back.status_code == 200
    assert back.json()["data"]["credentialVersion"] == 1
    forward = await served.api.post("/connections/example/versions/2/activate")
    assert forward.json()["data"]["credentialVersion"] == 2


async def test_a_version_sealed_for_another_binding_is_a_conflict(served: Any) -> None:
    await served.connection()
    moved = {"upstreamUrl": "http://127.0.0.2:9/mcp", "credential": "made-up-secret-2"}
    await served.api.patch("/connections/example", json=moved)
    refused = await served.api.post("/connections/example/versions/1/activate")
    assert refused.status_code == 409
    assert refused.json()["error"]["code"] == "binding_changed"


async def test_a_version_that_is_not_active_can_be_destroyed_and_never_comes_back(served: Any) -> None:
    await served.connection()
    await rotate(served, "made-up-secret-2")
    refused = await served.api.delete("/connections/example/versions/2")
    assert (refused.status_code, refused.json()["error"]["code"]) == (409, "version_active")
    assert (await served.api.delete("/connections/example/versions/1")).status_code == 204
    assert await versions(served) == [(2, True, False), (1, False, True)]
    assert (await served.api.post("/connections/example/versions/1/activate")).status_code == 404
    assert (await served.api.delete("/connections/example/versions/1")).status_code == 404


async def test_a_connection_without_a_credential_has_nothing_to_rotate(served: Any) -> None:
    await served.connection(authType="none", credential=None)
    refused = await rotate(served, "made-up-secret-2")
    assert (refused.status_code, refused.json()["error"]["code"]) == (409, "no_credential")


@pytest.mark.parametrize("body", [{}, {"credential": ""}, {"credential": "made-up\r\n"}, {"credential": None}, []])
async def test_a_bad_credential_is_refused_and_not_repeated(served: Any, body: Any) -> None:
    await served.connection()
    refused = await served.api.post("/connections/example/rotate", json=body)
    assert refused.status_code == 400
    assert "made-up" not in refused.text


@pytest.mark.parametrize("version", ["0", "3", "x", "-1", "1.0", "99999999999999999999", "%31%00"])
async def test_a_version_that_is_not_there_is_missing(served: Any, version: str) -> None:
    await served.connection()
    refused = await served.api.post(f"/connections/example/versions/{version}/activate")
    assert refused.status_code == 404


async def test_versions_page(served: Any) -> None:
    await served.connection()
    for number in range(2, 6):
        await rotate(served, f"made-up-secret-{number}")
    first = (await served.api.get("/connections/example/versions?limit=3")).json()
    rest = (await served.api.get(f"/connections/example/versions?limit=3&cursor={first['meta']['nextCursor']}")).json()
    assert [row["version"] for row in first["data"] + rest["data"]] == [5, 4, 3, 2, 1]
    assert rest["meta"]["nextCursor"] is None


async def test_no_answer_file_or_feed_holds_a_credential(served: Any) -> None:
    secret = "made-up-secret-that-must-not-show"
    bodies = [await served.api.post("/connections", json={"slug": "sweep", "upstreamUrl": "http://127.0.0.1:9"})]
    await served.connection("sweep", credential=secret)
    bodies.append(await served.api.post("/connections/sweep/rotate", json={"credential": secret + "2"}))
    bodies.append(await served.api.post("/connections/sweep/check", json={"credential": secret + "3"}))
    bodies.append(await served.api.patch("/connections/sweep", json={"credential": secret + "\n"}))
    bodies.append(await served.api.patch("/connections/sweep", json={"enabled": secret}))
    bodies.append(await served.api.post("/connections/sweep/rotate", content=b'{"credential": "' + secret.encode()))
    bodies += [await served.api.get(path) for path in ("/connections", "/connections/sweep/versions", "/events")]
    assert not [body.text for body in bodies if secret in body.text]
    files = [path for path in served.folders.data.rglob("*") if path.is_file()]
    assert len(files) > 4
    assert not [path for path in files if secret.encode() in path.read_bytes()]
