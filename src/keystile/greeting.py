"""What `keystile serve` prints on standard output: the admin key when it was made, the rest when everything serves.

Rules: the key is printed once, before anything else can end the start, and never when it was given; every command can
be pasted as it stands.
"""

from __future__ import annotations

import ipaddress
import shlex

from keystile.config import Config
from keystile.initialise import First

DEFAULT_URL = "http://127.0.0.1:8080"
"""Where the command line looks without KEYSTILE_BASE_URL."""
_DEFAULT_DATA = "./data"


def first_key(first: First) -> str:
    """The admin key that was just made, to be printed at once; nothing for one that was given."""
    if first.given:
        return ""
    key = first.key.reveal().decode("ascii")
    said = "The admin key, shown this once. Keep it safe, and put it where the next commands find it:"
    return f"{said}\n\n  export KEYSTILE_API_KEY={key}\n\n"


def text(config: Config, port: int, command: str, *, key_shown: bool) -> str:
    """Where the node serves and what to do first. `command` is how this program was called."""
    url = _url(config, port)
    listens = f", and listens on {_place(config.host, port)}" if config.public_url else ""
    lines = [f"Keystile serves at {url}{listens}", f"API documentation: {url}/api/v1/docs", ""]
    if _wildcard(config.host) and not config.hosts and not config.public_url:
        lines += ["Other machines are answered only by name: set KEYSTILE_HOSTS or KEYSTILE_PUBLIC_URL.", ""]
    if not key_shown:
        lines += ["Put an admin key where the next commands find it:", "", "  export KEYSTILE_API_KEY=ks_...", ""]
    if url != DEFAULT_URL:
        lines += ["Tell the command line where the gateway is:", "", f"  export KEYSTILE_BASE_URL={url}", ""]
    lines += ["Create a first connection:", "", *_curl(url, "connections", _CONNECTION), ""]
    lines += ["Create a key for an MCP client:", "", *_curl(url, "keys", _KEY), ""]
    place = "" if config.data_dir == _DEFAULT_DATA else f" --data-dir {shlex.quote(config.data_dir)}"
    lines += ["Lost the admin key? This makes another:", ""]
    lines += [f"  {shlex.quote(command)} organization key default{place}", "", ""]
    return "\n".join(lines)


_CONNECTION = (
    '{"slug":"github-prod","name":"GitHub Production","upstreamUrl":"https://mcp.github.com",'
    '"authType":"bearer","credential":"ghp_your_github_token"}'
)
_KEY = '{"name":"my laptop"}'


def _url(config: Config, port: int) -> str:
    """A URL that is answered: a wildcard address is no name to call by."""
    if config.public_url:
        return config.public_url.rstrip("/")
    host = config.host
    if _wildcard(host):
        host = "::1" if ":" in host else "127.0.0.1"
    return f"http://{_place(host, port)}"


def _place(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _wildcard(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_unspecified
    except ValueError:
        return False


def _curl(url: str, what: str, body: str) -> list[str]:
    return [
        f"  curl -X POST {url}/api/v1/{what} \\",
        '    -H "Authorization: Bearer $KEYSTILE_API_KEY" -H "Content-Type: application/json" \\',
        f"    -d '{body}'",
    ]
