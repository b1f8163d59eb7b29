"""The OpenAPI document and its page; schemathesis holds the running gateway to the document."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest

from keystile.api import openapi, page
from keystile.api.app import BASE, ROUTES
from tests.peers.gateway import gateway

DOCUMENT = openapi.document(ROUTES, BASE)

CHECKS = (
    "not_a_server_error,status_code_conformance,content_type_conformance,response_headers_conformance,"
    "response_schema_conformance,negative_data_rejection,missing_required_header,unsupported_method,ignored_auth"
)
# 412: a precondition that fails is told before the body's rules are looked at (RFC 9110, section 13.2.1).
SETTINGS = """
[checks.negative_data_rejection]
expected-statuses = [400, 401, 403, 404, 405, 409, 412, 413, 415]
"""
# Not `positive_data_acceptance`: a URL that may be dialled, a header that is not banned, a credential that the auth
# type asks for are rules no JSON Schema says.


@pytest.mark.timeout(300)
def test_the_running_api_is_what_its_document_says(tmp_path: Path) -> None:
    with gateway(tmp_path) as running:
        running.connection("http://127.0.0.1:9", "made-up-secret", slug="github-prod")
        (tmp_path / "schemathesis.toml").write_text(SETTINGS)
        key = running.api("POST", "/keys", {"name": "schemathesis", "role": "admin"}).data["key"]
        found = subprocess.run(
            [
                *(".venv/bin/schemathesis", "--config-file", tmp_path / "schemathesis.toml", "run"),
                *(f"{running.url}{BASE}/openapi.json", "-H", f"Authorization: Bearer {key}", "--checks", CHECKS),
                *("--phases", "examples,coverage,fuzzing", "--max-examples", "25", "--seed", "2", "--no-color"),
            ],
            cwd=Path(__file__).parents[2],
            env={"PATH": "/usr/bin:/bin", "HOME": str(tmp_path)},
            capture_output=True,
            text=True,
            check=False,
        )
        assert found.returncode == 0, found.stdout[-8000:]
        assert "Tested: 17" in found.stdout
        assert running.ready()
        assert "bug" not in running.log.read_text()


def test_every_operation_says_what_it_does_and_how_it_fails() -> None:
    assert DOCUMENT["openapi"].startswith("3.1")
    operations = [operation for item in DOCUMENT["paths"].values() for operation in item.values()]
    assert len(operations) == len(ROUTES)
    for operation in operations:
        assert operation["summary"]
        assert operation["description"]
        assert {"400", "401", "403", "500", "503"} <= set(operation["responses"])
        for answer in operation["responses"].values():
            assert answer["description"]
    assert len({operation["operationId"] for operation in operations}) == len(operations)


def test_no_view_has_a_place_for_a_credential() -> None:
    schemas = DOCUMENT["components"]["schemas"]
    views = [name for name in schemas if name.endswith("View")]
    assert len(views) == len({route.answer for route in ROUTES if route.answer})
    assert not [name for name in views if "credential" in schemas[name]["properties"]]
    assert [name for name in views if "key" in schemas[name]["properties"]] == ["NewKeyView"]


@pytest.mark.anyio
async def test_document_and_page_are_public_and_complete(served: Any) -> None:
    stranger = served.client(None)
    assert (await stranger.get("/openapi.json")).json() == json.loads(json.dumps(DOCUMENT))
    answer = await stranger.get("/docs")
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    for route in ROUTES:
        assert route.summary in answer.text
        assert f"<code>{BASE}{route.path}</code>" in answer.text


@pytest.mark.anyio
async def test_the_page_loads_nothing_and_runs_nothing(served: Any) -> None:
    answer = await served.client(None).get("/docs")
    policy = answer.headers["content-security-policy"]
    assert policy.startswith("default-src 'none'; ")
    assert "unsafe" not in policy
    (style,) = re.findall(r"<style>(.*?)</style>", answer.text, re.DOTALL)
    assert f"'sha256-{base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()}'" in policy
    assert not re.search(r"<script|<link|<img|<iframe|src=|@import|url\(|\son\w+=|style=", answer.text)
    assert not re.findall(r'href="(?!#|openapi\.json")[^"]*"', answer.text)
    anchors = set(re.findall(r'href="#([^"]*)"', answer.text))
    assert anchors <= set(re.findall(r' id="?([\w-]+)', answer.text))


def test_the_page_marks_code_tells_rules_and_shows_each_call() -> None:
    shown = page.html(DOCUMENT)
    assert not re.search(r"`[\w/.]+`", shown)
    assert "pattern <code>^[a-z0-9][a-z0-9_-]{2,63}$</code>" in shown
    assert shown.count("<pre><code>curl") == len(ROUTES)


def test_text_from_the_document_is_escaped() -> None:
    document = json.loads(json.dumps(DOCUMENT))
    document["info"]["summary"] = "<script>"
    assert "<script>" not in page.html(document)


@pytest.mark.anyio
async def test_options_names_every_method_of_a_path(served: Any) -> None:
    for path in {route.path for route in ROUTES}:
        answer = await served.api.options(path.format(slug="abc", version="1", id="x"))
        assert answer.status_code == 204
        methods = {route.method for route in ROUTES if route.path == path} | {"OPTIONS"}
        assert set(answer.headers["allow"].split(", ")) == methods
