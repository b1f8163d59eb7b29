"""The table of refusals, and the few exceptions.

Three kinds, told apart by who must act. A *Refusal* is expected: a prebuilt row of `REFUSALS`, returned, never
raised, never echoing input. An *Error* is raised in the control plane only and has one table to HTTP. Everything
else is a bug: logged with an id, answered 500 with that id alone.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import msgspec

PARSE_ERROR = -32700
INVALID_REQUEST = -32600
INTERNAL_ERROR = -32603
HEADER_MISMATCH = -32020

Fault = Literal["caller", "upstream", "gateway"]


class Refusal(msgspec.Struct, frozen=True):
    """Why an exchange was not carried out. `rpc` is the JSON-RPC error code; `retry_after` is in seconds."""

    code: str
    status: int
    fault: Fault
    message: str
    rpc: int = INTERNAL_ERROR
    retry_after: int | None = None


# Clients of both eras fall back to an older protocol on 400, 404 and 405, so those mean permanent faults only;
# a passing fault is one of 429, 502, 503, 504 (MCP 2026-07-28, basic/versioning).
_TABLE = (
    # HTTP framing (RFC 9112)
    Refusal("malformed_http", 400, "caller", "The request is not well-formed HTTP/1.1."),
    Refusal("http_version_unsupported", 505, "caller", "Only HTTP/1.1 and HTTP/1.0 are spoken here."),
    Refusal("transfer_coding_unsupported", 501, "caller", "The only transfer coding accepted is chunked."),
    Refusal("head_too_large", 431, "caller", "The request head is larger than this gateway accepts."),
    Refusal("too_many_fields", 431, "caller", "The request has more header fields than this gateway accepts."),
    Refusal("head_timeout", 408, "caller", "The request head did not arrive in time."),
    Refusal("body_timeout", 408, "caller", "The request body stopped arriving."),
    Refusal("body_too_large", 413, "caller", "The request body is larger than this gateway accepts."),
    Refusal("body_unexpected", 400, "caller", "Only a POST carries a body."),
    Refusal("field_doubled", 400, "caller", "A header field that may occur once occurs more than once."),
    # Shape
    Refusal("host_not_allowed", 421, "caller", "This host name is not served here. Add it to KEYSTILE_HOSTS."),
    Refusal("origin_not_allowed", 403, "caller", "Requests from this web origin are not accepted."),
    Refusal("not_found", 404, "caller", "There is nothing at this path."),
    Refusal("method_not_allowed", 405, "caller", "This endpoint answers POST, GET and DELETE."),
    Refusal(
        "media_type_unsupported", 415, "caller", "A POST must be application/json in UTF-8, without Content-Encoding."
    ),
    # Who
    Refusal("key_missing", 401, "caller", "Show a Keystile key: `Authorization: Bearer ks_…` or `x-api-key: ks_…`."),
    Refusal("key_invalid", 401, "caller", "This Keystile key is not valid."),
    Refusal("key_expired", 401, "caller", "This Keystile key has expired."),
    Refusal("key_doubled", 400, "caller", "A key field occurs more than once."),
    Refusal("role_cannot_call", 403, "caller", "A key of this role reads and does not call endpoints."),
    Refusal("out_of_scope", 403, "caller", "This key does not reach this connection."),
    Refusal("user_mismatch", 403, "caller", "This key is pinned to another user."),
    Refusal("connection_unknown", 404, "caller", "Your organization has no connection of this slug."),
    Refusal("connection_disabled", 403, "caller", "This connection is disabled."),
    Refusal("gateway_loop", 403, "caller", "This request was sent by this gateway itself."),
    Refusal("key_repeated", 400, "caller", "A Keystile key stands where it would go upstream."),
    # The caller's context
    Refusal("user_malformed", 400, "caller", "X-Keystile-User must be 1 to 256 visible ASCII characters."),
    Refusal("trace_id_malformed", 400, "caller", "X-Keystile-Trace-Id must be 1 to 128 visible ASCII characters."),
    Refusal("metadata_malformed", 400, "caller", "X-Keystile-Metadata must be a flat JSON object of at most 4 KiB."),
    # The message
    Refusal("parse_error", 400, "caller", "The body is not valid JSON.", PARSE_ERROR),
    Refusal(
        "message_invalid",
        400,
        "caller",
        "The body is not one JSON-RPC request, notification or response.",
        INVALID_REQUEST,
    ),
    Refusal(
        "message_ambiguous",
        400,
        "caller",
        "An envelope member is repeated, escaped or spelt in another case.",
        INVALID_REQUEST,
    ),
    Refusal("request_id_missing", 400, "caller", "This method must be called with an id.", INVALID_REQUEST),
    Refusal("header_mismatch", 400, "caller", "A mirrored header does not agree with the body.", HEADER_MISMATCH),
    Refusal("session_unknown", 404, "caller", "No such session. Initialize again."),
    Refusal("resume_without_session", 403, "caller", "Last-Event-ID needs the session it belongs to."),
    # The gateway's own state
    Refusal("body_budget_spent", 503, "gateway", "Too many request bodies are waiting. Try again.", retry_after=1),
    Refusal("too_many_clients", 503, "gateway", "This worker has as many client connections as it may.", retry_after=1),
    Refusal(
        "connection_busy",
        503,
        "gateway",
        "This connection has as many exchanges in flight as it may. Try again.",
        retry_after=1,
    ),
    Refusal(
        "trail_unavailable",
        503,
        "gateway",
        "The exchange could not be recorded, so it was not forwarded.",
        retry_after=1,
    ),
    Refusal("configuration_stale", 503, "gateway", "The configuration is being read. Try again.", retry_after=1),
    Refusal("control_unavailable", 503, "gateway", "The control process is not answering. Try again.", retry_after=1),
    Refusal("credential_unreadable", 500, "gateway", "The connection's credential cannot be opened. Enter it anew."),
    Refusal("internal_error", 500, "gateway", "An unexpected fault. The gateway's log has it."),
    # The upstream
    Refusal(
        "address_refused",
        502,
        "gateway",
        "The upstream's address is not one this gateway may dial. See KEYSTILE_UPSTREAMS_ALLOW.",
    ),
    Refusal("upstream_unreachable", 502, "upstream", "The upstream could not be reached."),
    Refusal("upstream_untrusted", 502, "upstream", "The upstream's TLS certificate could not be verified."),
    Refusal(
        "upstream_connection_lost", 502, "upstream", "The upstream closed before answering. The call may have run."
    ),
    Refusal("upstream_malformed", 502, "upstream", "The upstream's answer is not well-formed HTTP/1.1."),
    Refusal("upstream_encoding", 502, "upstream", "The upstream encoded its answer although identity was asked for."),
    Refusal("upstream_redirected", 502, "upstream", "The upstream answered with a redirect, which is never followed."),
    Refusal(
        "upstream_auth_failed", 502, "upstream", "The upstream did not accept the connection's credential. Rotate it."
    ),
    Refusal("upstream_dial_timeout", 504, "upstream", "The upstream did not accept a connection in time."),
    Refusal("stream_idle", 504, "upstream", "The stream was silent for too long."),
    Refusal(
        "upstream_timeout", 504, "upstream", "The upstream did not begin its answer in time. The call may have run."
    ),
)

REFUSALS = {row.code: row for row in _TABLE}
"""Every refusal by its code. The table is documented in docs/errors.md, and a test holds the two together."""


class KeystileError(Exception):
    """Base of the control plane's errors. `code` is stable; `details` never holds a secret or raw input."""

    status: ClassVar[int] = 500
    default: ClassVar[str] = "internal_error"

    def __init__(self, message: str, code: str | None = None, **details: object) -> None:
        super().__init__(message)
        self.message = message
        self.code = code or self.default
        self.details = details


class Invalid(KeystileError):
    """The request cannot be carried out as it stands; the caller mends it."""

    status = 400
    default = "invalid"


class Unauthenticated(KeystileError):
    """No valid key was shown."""

    status = 401
    default = "unauthenticated"


class Denied(KeystileError):
    """The key is valid and may not do this."""

    status = 403
    default = "denied"


class Missing(KeystileError):
    """There is no such thing in the caller's organization."""

    status = 404
    default = "missing"


class Conflict(KeystileError):
    """It clashes with what stands."""

    status = 409
    default = "conflict"


class Stale(KeystileError):
    """`If-Match` names a revision that is no longer the current one."""

    status = 412
    default = "stale"


class Unavailable(KeystileError):
    """Something this needs is away for now."""

    status = 503
    default = "unavailable"


class Unreadable(KeystileError):
    """A sealed value does not open: wrong key, moved row, or changed binding. Never retried."""

    status = 500
    default = "credential_unreadable"


class StartRefused(KeystileError):
    """The process must not start, and the message says in one line why and what to do."""

    default = "start_refused"


ERRORS: dict[int, type[KeystileError]] = {
    error.status: error for error in (Invalid, Unauthenticated, Denied, Missing, Conflict, Stale, Unavailable)
}
"""HTTP status to error class, for the SDK: it raises what the server raised."""
