"""What the gateway itself answers, and the framing of what it passes on: bytes, ready for the wire."""

from __future__ import annotations

from functools import lru_cache
from http import HTTPStatus

import msgspec

from keystile.core.http1 import AnswerHead
from keystile.core.mcp import error_body
from keystile.errors import Refusal

CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
CHUNKED = b"transfer-encoding: chunked"
LAST_CHUNK = b"0\r\n\r\n"

COMMENT = b":\n\n"
"""A comment line, which an SSE reader drops (HTML, section 9.2.6), and the empty line that ends it."""

_LINES = {
    status.value: f"HTTP/1.1 {status.value} {status.phrase}\r\n".encode("ascii")
    for status in HTTPStatus
    if status.value >= HTTPStatus.OK
}
_PROBING = frozenset((b"GET", b"HEAD"))
_NO_BODY = frozenset((204, 304))
_CHALLENGE = b'www-authenticate: Bearer realm="keystile"\r\n'


def status_line(status: int) -> bytes:
    """The status line, CRLF included."""
    return _LINES.get(status) or b"HTTP/1.1 %d\x20\r\n" % status


def chunk(data: bytes) -> bytes:
    """One chunk of a chunked body (RFC 9112, section 7.1). Never empty: that would end the body."""
    return b"%x\r\n%b\r\n" % (len(data), data)


def refused(refusal: Refusal, request_id: bytes | None, trace: str | None, *, rpc: bool, close: bool) -> bytes:
    """A whole answer. An MCP endpoint answers with a JSON-RPC error, other paths in the REST API's form."""
    body = error_body(refusal, request_id) if rpc else _rest_body(refusal)
    traced = f"x-keystile-trace-id: {trace}\r\n".encode("ascii") if trace is not None else b""
    return b"".join((_refusal_head(refusal, close), traced, b"content-length: %d\r\n\r\n" % len(body), body))


def state(method: bytes, *, well: bool, close: bool) -> bytes:
    """The answer to a health or readiness probe."""
    status, body = (200, b'{"status":"ok"}') if well else (503, b'{"status":"starting"}')
    more = b"connection: close\r\n" if close else b""
    if method not in _PROBING:
        status, body = 405, b'{"status":"method not allowed"}'
        more += b"allow: GET, HEAD\r\n"
    head = status_line(status) + b"content-type: application/json\r\ncache-control: no-store\r\n"
    return b"%b%bcontent-length: %d\r\n\r\n%b" % (head, more, len(body), body)


def framing(head: AnswerHead, *, legacy: bool) -> bytes:
    """The field that frames a body we pass on; empty when it has none, or ends by closing (HTTP/1.0)."""
    if head.length is None:
        return b"" if legacy else CHUNKED
    return b"" if head.status in _NO_BODY else b"content-length: %d" % head.length


@lru_cache(maxsize=256)
def _refusal_head(refusal: Refusal, close: bool) -> bytes:  # noqa: FBT001 — a cache key, not an interface
    lines = [status_line(refusal.status), b"content-type: application/json\r\ncache-control: no-store\r\n"]
    if refusal.status == HTTPStatus.UNAUTHORIZED:
        lines.append(_CHALLENGE)
    if refusal.status == HTTPStatus.METHOD_NOT_ALLOWED:
        lines.append(b"allow: POST, GET, DELETE\r\n")
    if refusal.retry_after is not None:
        lines.append(b"retry-after: %d\r\n" % refusal.retry_after)
    if close:
        lines.append(b"connection: close\r\n")
    return b"".join(lines)


@lru_cache(maxsize=256)
def _rest_body(refusal: Refusal) -> bytes:
    return msgspec.json.encode({"error": {"code": refusal.code, "message": refusal.message, "details": {}}})
