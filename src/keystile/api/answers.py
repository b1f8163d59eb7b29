"""What every answer of the REST API looks like, and the one table from exceptions to failures.

Success is `{"data": …, "meta": …}`, failure `{"error": {"code", "message", "details"}}`, whoever found the fault:
the router, a rule, or a bug. A bug is answered with an id alone and logged under it as exception types and code
lines; never a message or a local variable, which may hold what a request said.
"""

from __future__ import annotations

import secrets
import traceback
from typing import Any

import msgspec
import structlog
from litestar.exceptions import HTTPException

from keystile.errors import KeystileError, Unauthenticated, Unreadable

_log = structlog.get_logger()
_json = msgspec.json.Encoder()

ALWAYS = {"cache-control": "no-store", "x-content-type-options": "nosniff"}

ROUTER: dict[int, tuple[str, str]] = {
    400: ("invalid", "The request cannot be carried out as it stands."),
    404: ("missing", "There is nothing at this path."),
    405: ("method_not_allowed", "This path does not answer that method; see the Allow header."),
    413: ("body_too_large", "The request body is larger than this gateway accepts."),
    415: ("media_type_unsupported", "The request body must be application/json without Content-Encoding."),
}
"""What the router finds: status → code and message."""


class Reply(msgspec.Struct, frozen=True):
    """Status, header fields and body bytes, ready for the wire."""

    status: int
    headers: dict[str, str]
    body: bytes


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """What a route returns on success. `data` is a view, a list of views (then `cursor` counts), or None for 204."""

    data: Any = None
    paged: bool = False
    cursor: str | None = None
    etag: str | None = None
    warnings: tuple[str, ...] = ()


def success(answer: Answer, status: int) -> Reply:
    """The reply of an answer."""
    headers = ALWAYS | ({"etag": answer.etag} if answer.etag else {})
    if answer.data is None:
        return Reply(status, headers, b"")
    meta: dict[str, object] = {"nextCursor": answer.cursor} if answer.paged else {}
    if answer.warnings:
        meta["warnings"] = answer.warnings
    return Reply(
        status,
        headers | {"content-type": "application/json"},
        _json.encode({"data": answer.data, "meta": meta}),
    )


def failure(error: BaseException) -> Reply:
    """The reply of whatever was raised."""
    match error:
        case Unreadable():
            identity = logged(error)
            message = "The connection's credential cannot be opened. Enter it anew."
            return refused(error.status, error.code, message, {"id": identity})
        case Unauthenticated():
            return refused(error.status, error.code, error.message, error.details, {"www-authenticate": "Bearer"})
        case KeystileError():
            return refused(error.status, error.code, error.message, error.details)
        case HTTPException(status_code=status) if status in ROUTER:
            code, message = ROUTER[status]
            allow = (error.headers or {}).get("allow")
            return refused(status, code, message, {}, {"allow": allow} if allow else {})
        case _:
            identity = logged(error)
            message = "An unexpected fault. The gateway's log has it under this id."
            return refused(500, "internal_error", message, {"id": identity})


def refused(
    status: int, code: str, message: str, details: dict[str, object], headers: dict[str, str] | None = None
) -> Reply:
    """A failure's reply."""
    body = _json.encode({"error": {"code": code, "message": message, "details": details}})
    return Reply(status, ALWAYS | {"content-type": "application/json"} | (headers or {}), body)


def logged(error: BaseException) -> str:
    """Log a bug; returns the id it is logged under."""
    identity = secrets.token_hex(8)
    chain: list[str] = []
    seen: BaseException | None = error
    while seen is not None and len(chain) < 8:  # noqa: PLR2004 — a chain of causes is short, or a loop
        chain.append(f"{type(seen).__module__}.{type(seen).__qualname__}")
        seen = seen.__cause__ or seen.__context__
    frames = traceback.extract_tb(error.__traceback__)
    where = [f"{frame.filename}:{frame.lineno} {frame.name}" for frame in frames]
    _log.error("bug", id=identity, types=chain, where=where)
    return identity
