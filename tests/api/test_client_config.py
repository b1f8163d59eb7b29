"""What to paste into a client."""

from __future__ import annotations

import json
import shlex
from typing import Any

import pytest

from keystile.api.client_config import FORMATS, PLACEHOLDER
from tests.api.conftest import serving

pytestmark = pytest.mark.anyio

URL = "https://gateway.example/v1/mcp/example"


@pytest.mark.parametrize("client", FORMATS)
async def test_the_snippet_has_the_url_and_a_placeholder(served: Any, client: str) -> None:
    await served.connection()
    headers = {"x-forwarded-host": "gateway.example", "x-forwarded-proto": "https"}
    answer = await served.api.get(f"/connections/example/client-config?client={client}", headers=headers)
    data = answer.json()["data"]
    assert (data["client"], data["url"], data["placeholder"]) == (client, URL, PLACEHOLDER)
    snippet = json.loads(data["snippet"])
    assert URL in json.dumps(snippet)
    assert f"Bearer {PLACEHOLDER}" in json.dumps(snippet)
    assert "made-up" not in answer.text


async def test_claude_code_has_a_command_too(served: Any) -> None:
    await served.connection()
    data = (await served.api.get("/connections/example/client-config?client=claude-code")).json()["data"]
    words = shlex.split(data["command"])
    assert words[:5] == ["claude", "mcp", "add", "--transport", "http"]
    assert words[5:] == ["example", data["url"], "--header", f"Authorization: Bearer {PLACEHOLDER}"]


async def test_the_public_url_wins(tmp_path: Any) -> None:
    async with serving(tmp_path, public_url="https://mcp.example.org/") as served:
        await served.connection()
        data = (await served.api.get("/connections/example/client-config")).json()["data"]
        assert data["url"] == "https://mcp.example.org/v1/mcp/example"


async def test_an_unknown_client_is_refused(served: Any) -> None:
    await served.connection()
    refused = await served.api.get("/connections/example/client-config?client=made-up")
    assert refused.status_code == 400
    assert "made-up" not in refused.text
