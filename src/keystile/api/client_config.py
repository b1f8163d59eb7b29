"""What to paste into an MCP client: its own format, this gateway's URL, and a placeholder where a client key goes."""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from keystile.api.answers import Answer
from keystile.api.call import Call
from keystile.api.connections import visible
from keystile.api.shapes import ClientConfigQuery, ClientName
from keystile.api.views import ClientConfigView

PLACEHOLDER = "ks_YOUR_CLIENT_KEY"

_BEARER = f"Bearer {PLACEHOLDER}"
_HEADERS = {"Authorization": _BEARER}

Config = dict[str, object]

FORMATS: dict[ClientName, tuple[str | None, Callable[[str, str], Config]]] = {
    "claude-code": (
        ".mcp.json",
        lambda name, url: {"mcpServers": {name: {"type": "http", "url": url, "headers": _HEADERS}}},
    ),
    "cursor": (
        ".cursor/mcp.json",
        lambda name, url: {"mcpServers": {name: {"url": url, "headers": _HEADERS}}},
    ),
    "vscode": (
        ".vscode/mcp.json",
        lambda name, url: {"servers": {name: {"type": "http", "url": url, "headers": _HEADERS}}},
    ),
    "opencode": (
        "opencode.json",
        lambda name, url: {
            "$schema": "https://opencode.ai/config.json",
            "mcp": {"servers": {name: {"type": "remote", "url": url, "headers": _HEADERS}}},
        },
    ),
    "generic": (None, lambda name, url: {"mcpServers": {name: {"type": "http", "url": url, "headers": _HEADERS}}}),
}
"""Client → the file its configuration lives in, and the configuration for a name and a URL."""


async def show_client_config(call: Call[None, ClientConfigQuery]) -> Answer:
    """Show what to paste into an MCP client.

    Make a key of role `client` and put it where the placeholder stands.
    """
    async with call.house.database.read() as conn:
        found = await visible(call, conn)
    client = call.query.client
    url = f"{call.base_url}/v1/mcp/{found.slug}"
    file, config = FORMATS[client]
    text = msgspec.json.format(msgspec.json.encode(config(found.slug, url)), indent=2).decode()
    command = None
    if client == "claude-code":
        command = f'claude mcp add --transport http {found.slug} {url} --header "Authorization: {_BEARER}"'
    return Answer(
        data=ClientConfigView(client=client, url=url, placeholder=PLACEHOLDER, file=file, snippet=text, command=command)
    )
