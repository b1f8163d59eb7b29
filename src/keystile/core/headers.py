"""What passes, what is stripped, what is scrubbed: the only place that builds heads.

Upstream heads are built from an allow-list, for every method and path; what is not named here does not pass.
Answer heads lose what belongs to one hop, to the upstream's own site, or to a cookie jar. The control process
(ours) is spoken to through `control_head`, which alone passes Authorization and Cookie.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from keystile.core.http1 import RequestHead
from keystile.core.target import Target

TOKEN = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
"""RFC 9110, section 5.6.2. Use `fullmatch`."""

Fields = Sequence[tuple[bytes, bytes]]

HOP_BY_HOP = frozenset(
    (
        b"connection",
        b"keep-alive",
        b"proxy-authenticate",
        b"proxy-authorization",
        b"proxy-connection",
        b"te",
        b"trailer",
        b"transfer-encoding",
        b"upgrade",
    )
)

_PASSED = frozenset(
    (
        b"accept",
        b"content-type",
        b"last-event-id",
        b"mcp-method",
        b"mcp-name",
        b"mcp-protocol-version",
        b"traceparent",
        b"tracestate",
    )
)

# The rest of the Mcp-* family. Outside Mcp-Param-*, whose end a tool's schema chooses, it has letters, digits and
# hyphens only: a server behind CGI or WSGI reads `Mcp-Session_Id` as the session id, which nobody has verified.
_FAMILY = re.compile(rb"mcp-(?!session-id\Z)(?:param-.+|[a-z0-9-]+)")

# A client field under one of these names would carry a caller's secret, or our own words, to somebody else's host.
_NEVER_FORWARDED = frozenset(("authorization", "x-api-key"))

_SINGULAR = frozenset(
    (
        b"origin",
        b"content-type",
        b"content-encoding",
        b"last-event-id",
        b"mcp-method",
        b"mcp-name",
        b"mcp-protocol-version",
        b"mcp-session-id",
        b"x-keystile-user",
        b"x-keystile-trace-id",
        b"x-keystile-metadata",
        b"x-igris-user",
        b"x-igris-trace-id",
        b"x-igris-metadata",
    )
)

_STRIPPED = HOP_BY_HOP | frozenset(
    (
        b"content-length",
        b"set-cookie",
        b"set-cookie2",
        b"www-authenticate",
        b"authentication-info",
        b"proxy-authentication-info",
        b"location",
        b"content-location",
        b"refresh",
        b"alt-svc",
        b"server",
        b"via",
        b"x-powered-by",
        b"strict-transport-security",
        b"clear-site-data",
        b"expect-ct",
        b"nel",
        b"public-key-pins",
        b"report-to",
        b"reporting-endpoints",
        b"service-worker-allowed",
        b"sourcemap",
        b"timing-allow-origin",
        b"content-encoding",
        b"x-accel-buffering",
        b"mcp-session-id",
        b"x-keystile-trace-id",
    )
)
_STRIPPED_FAMILIES = (b"access-control-", b"x-accel-", b"x-keystile-", b"x-igris-")

_BANNED = frozenset(
    (
        "cookie",
        "cookie2",
        "expect",
        "forwarded",
        "host",
        "http2-settings",
        "last-event-id",
        "origin",
        "referer",
        "set-cookie",
        "set-cookie2",
        "traceparent",
        "tracestate",
        "user-agent",
        "via",
        # They make a server see another request, or another peer, than the one that was judged.
        "x-http-method",
        "x-http-method-override",
        "x-method-override",
        "x-real-ip",
        "x-rewrite-url",
    )
) | {name.decode() for name in HOP_BY_HOP}
_BANNED_FAMILIES = (
    "accept",
    "content-",
    "mcp-",
    "proxy-",
    "sec-",
    "x-forwarded",
    "x-igris-",
    "x-keystile-",
    "x-original-",
)

_NONE: frozenset[bytes] = frozenset()


def banned(name: str) -> str | None:
    """Why a field of this name is not the operator's to set, or None. For `authHeaderName` as it stands."""
    lower = _plain(name)
    if not TOKEN.fullmatch(name):
        return "is not a header field name (RFC 9110, section 5.6.2)"
    if lower in _BANNED or lower.startswith(_BANNED_FAMILIES):
        return "is written by the gateway itself or belongs to one hop"
    return None


def banned_from_client(name: str) -> str | None:
    """Like `banned`, and also refuses the names callers show Keystile keys under. For `headers`, `forwardHeaders`."""
    if _plain(name) in _NEVER_FORWARDED:
        return "may carry a caller's own secret and never passes"
    return banned(name)


def _plain(name: str) -> str:
    """A name as servers behind CGI or WSGI compare it, to which `X_Api_Key` is `X-Api-Key`."""
    return name.lower().replace("_", "-")


def doubled(fields: Fields) -> bool:
    """Whether a field that may occur once occurs more than once."""
    seen: set[bytes] = set()
    for name, _ in fields:
        if name in _SINGULAR:
            if name in seen:
                return True
            seen.add(name)
    return False


def opening(target: Target, headers: dict[str, str], mark: bytes) -> bytes:
    """What follows the method in every upstream head of a connection: compiled when configured, not when serving.

    `mark` is the User-Agent by which a node knows a request of its own again.
    """
    lines = [f" {target.path} HTTP/1.1", f"host: {target.authority}"]
    lines += [f"user-agent: {mark.decode()}", "accept-encoding: identity"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    return "".join(line + "\r\n" for line in lines).encode("ascii")


def passing(fields: Fields, forward: frozenset[bytes], replaced: frozenset[bytes], *, stateless: bool) -> list[bytes]:
    """The client's fields that go upstream, as lines without CRLF.

    `forward` names further fields the operator lets pass; `replaced` are names the gateway writes itself, by the
    connection's scheme or fixed headers. `stateless` drops Last-Event-ID (MCP 2026-07-28). The session id is not
    among them: the caller of this function adds the verified one.
    """
    return [
        name + b": " + value
        for name, value in fields
        if (name in _PASSED or name in forward or _FAMILY.fullmatch(name))
        and name not in replaced
        and not (stateless and name == b"last-event-id")
    ]


def scrubbed(fields: Fields) -> list[bytes]:
    """The upstream's answer fields that reach the client, as lines without CRLF.

    Framing, session id, trace id and `X-Accel-Buffering` are for the caller of this function to add.
    """
    named = named_by_connection(fields)
    return [
        name + b": " + value
        for name, value in fields
        if name not in _STRIPPED and not name.startswith(_STRIPPED_FAMILIES) and name not in named
    ]


def control_head(head: RequestHead, body_length: int, address: str) -> bytes:
    """A head for the control process: everything end-to-end, with what proxies say replaced by what we know."""
    drop = HOP_BY_HOP | named_by_connection(head.fields) | {b"content-length", b"expect", b"forwarded"}
    lines = [
        name + b": " + value for name, value in head.fields if name not in drop and not name.startswith(b"x-forwarded-")
    ]
    lines += [
        b"x-forwarded-for: " + address.encode("ascii"),
        b"x-forwarded-host: " + head.named.get(b"host", b""),
        b"x-forwarded-proto: http",
    ]
    if body_length or head.method in {b"POST", b"PUT", b"PATCH"}:
        lines.append(b"content-length: %d" % body_length)
    return b"%b %b HTTP/1.1\r\n%b\r\n\r\n" % (head.method, head.target, b"\r\n".join(lines))


def from_control(fields: Fields) -> list[bytes]:
    """The control process's answer fields, as lines: all but what belongs to one hop."""
    return [name + b": " + value for name, value in fields if name not in HOP_BY_HOP and name != b"content-length"]


def named_by_connection(fields: Fields) -> frozenset[bytes]:
    """The names a Connection field declares to be of one hop (RFC 9110, section 7.6.1)."""
    said = [value for name, value in fields if name == b"connection"]
    if not said:
        return _NONE
    return frozenset([option.strip().lower() for value in said for option in value.split(b",")])
