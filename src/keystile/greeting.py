"""What `keystile serve` says once it serves: where, with which key, and what to do first."""

from __future__ import annotations

from keystile.initialise import First


def text(url: str, first: First | None) -> str:
    """The greeting for standard output. It holds the admin key only where it was just made, and then just once."""
    lines = [f"Keystile serves at {url}", f"API documentation: {url}/api/v1/docs", ""]
    if first is not None and not first.given:
        key = first.key.reveal().decode("ascii")
        lines += ["The admin key, shown this once. Keep it safe, and put it where the next commands find it:", ""]
        lines += [f"  export KEYSTILE_API_KEY={key}", ""]
    else:
        lines += ["Put an admin key where the next commands find it:", "", "  export KEYSTILE_API_KEY=ks_...", ""]
    lines += ["Create a first connection:", "", *_curl(url, "connections", _CONNECTION), ""]
    lines += ["Create a key for an MCP client:", "", *_curl(url, "keys", _KEY), ""]
    return "\n".join(lines)


_CONNECTION = (
    '{"slug":"github-prod","name":"GitHub Production","upstreamUrl":"https://mcp.github.com",'
    '"authType":"bearer","credential":"ghp_your_github_token"}'
)
_KEY = '{"name":"my laptop"}'


def _curl(url: str, what: str, body: str) -> list[str]:
    return [
        f"  curl -X POST {url}/api/v1/{what} \\",
        '    -H "Authorization: Bearer $KEYSTILE_API_KEY" -H "Content-Type: application/json" \\',
        f"    -d '{body}'",
    ]
