"""THE pipeline: `place(head)`, `admit(head) → Admitted | Turned`, `decide(body) → Forward | Turned`. Read this first.

Everything an exchange is judged by stands here in its order, synchronous and pure. Each step returns the typed
evidence that the next one demands: nothing is forwarded without a `Forward`, which needs an `Admitted`, which needs
a live key. `Turned` carries the refusal with whatever was known by then, for the trail.
"""

from __future__ import annotations

import re
from enum import Enum
from functools import lru_cache

import msgspec

from keystile.core.apikey import contains_key
from keystile.core.authorize import Context, authorize, context_of, key_doubled
from keystile.core.headers import doubled, named_by_connection, passing
from keystile.core.http1 import RequestHead
from keystile.core.mcp import Operation, Refused, asked
from keystile.core.registry import Endpoint, Registry, opened, reaches
from keystile.core.session import Holder
from keystile.errors import REFUSALS, Refusal, Unreadable
from keystile.model import SLUG, ApiKey, Connection

STATELESS_SINCE = b"2026-07-28"
"""The first protocol version without sessions. Versions are dates and order as text; what is no date is none."""

METHODS = (b"POST", b"GET", b"DELETE")

_PLAIN_CONNECTION = frozenset((b"keep-alive", b"close"))

_ENDPOINT = re.compile(rb"/v1/mcp/(%b)((?:/.*)?)" % SLUG.encode("ascii"), re.DOTALL)
_HOST = re.compile(rb"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+)(?::\d{1,5})?")
_ORIGIN = re.compile(rb"https?://(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+)(?::\d{1,5})?")
# Other charsets are refused: servers obey them (UTF-7 too), and would read another message than the one judged here.
_JSON = re.compile(
    rb"application/json(?:[ \t]*+;[ \t]*+(?:charset=(?:utf-8|\"utf-8\")|(?!charset)[\w.+-]++=[\w.+-]++)?+)*+[ \t]*+",
    re.IGNORECASE,
)
_DATE = re.compile(rb"\d{4}-\d{2}-\d{2}")
_KEY_IN_NAME = re.compile(rb"ks_[0-9a-z]{49}[^:\r]*+: ")  # header names have lost their case by now


class Shape(msgspec.Struct, frozen=True):
    """Which names this node answers to (lower case, no port), and which other web origins may call it."""

    hosts: frozenset[bytes]
    origins: frozenset[bytes]


class Place(Enum):
    """Where a request goes."""

    ENDPOINT = "endpoint"
    NOWHERE = "nowhere"
    HEALTH = "health"
    READY = "ready"
    CONTROL = "control"


class Turned(msgspec.Struct, frozen=True, gc=False):
    """A refusal, and what was known when it fell. `id` is the JSON-RPC request's, as raw text."""

    refusal: Refusal
    connection: Connection | None = None
    key: ApiKey | None = None
    context: Context | None = None
    operations: tuple[Operation, ...] = ()
    id: bytes | None = None


class Admitted(msgspec.Struct, frozen=True, gc=False):
    """Evidence that a head may call this endpoint, and all that a message needs of that head.

    `block` are the field lines that go upstream, each with its CRLF, the verified session id among them; `named` the
    mirrored method and name; `protocol` the version the head states. `stateless` is that of MCP 2026-07-28. A head is
    not kept: the caller's key is in it.
    """

    method: bytes
    endpoint: Endpoint
    key: ApiKey
    context: Context
    holder: Holder
    block: bytes
    named: tuple[bytes | None, bytes | None]
    protocol: bytes | None
    stateless: bool

    def __repr__(self) -> str:
        return f"<Admitted key={self.key.id} {self.endpoint!r}>"


class Forward(msgspec.Struct, frozen=True, gc=False):
    """Evidence that this exchange goes upstream: the head, ready for the wire.

    `credential` stays as long as the exchange, to be looked for in the answer; no `repr` shows it or the head.
    """

    admitted: Admitted
    operations: tuple[Operation, ...]
    head: bytes
    credential: bytes | None

    def __repr__(self) -> str:
        return f"<Forward {self.admitted.endpoint!r}>"


def place(target: bytes) -> tuple[Place, bytes | None]:
    """Where a request target leads, and the slug for the trail if it lies under an endpoint. No path is decoded."""
    path = target.partition(b"?")[0]
    found = _ENDPOINT.fullmatch(path)
    if found is not None:
        # No sub-path is an endpoint: clients probe /v1/mcp/{slug}/.well-known/…, which must carry no credential.
        return (Place.NOWHERE if found[2] else Place.ENDPOINT), found[1]
    if path == b"/healthz":
        return Place.HEALTH, None
    if path == b"/readyz":
        return Place.READY, None
    if path.startswith((b"/v1/mcp", b"/s/", b"/.well-known/")):
        return Place.NOWHERE, None
    return Place.CONTROL, None


def admissible(fields: dict[bytes, bytes], shape: Shape) -> Refusal | None:
    """Whether the Host is ours and the web origin, if any, may call (DNS rebinding, CSRF)."""
    if not _host_allowed(fields.get(b"host", b""), shape):
        return REFUSALS["host_not_allowed"]
    origin = fields.get(b"origin")
    if origin is not None and not _origin_allowed(origin, shape):
        return REFUSALS["origin_not_allowed"]
    return None


def admit(head: RequestHead, slug: bytes, registry: Registry, shape: Shape, now: int) -> Admitted | Turned:
    """Judge the head, before a body byte is kept."""
    fields = head.named
    name = slug.decode("ascii")
    refused = _judge_shape(head, fields, shape, registry.mark)
    if refused is not None:
        return Turned(refused, registry.connection_named(name))
    key = authorize(fields, registry, now)
    if isinstance(key, Refusal):
        return Turned(key, registry.connection_named(name))
    try:
        endpoint = registry.endpoint(key.organization, name)
    except Unreadable:
        return Turned(REFUSALS["credential_unreadable"], registry.connection_named(name), key)
    if endpoint is None:
        return Turned(REFUSALS["connection_unknown"], key=key)
    connection = endpoint.connection
    withdrawn = standing(key, connection)
    if withdrawn is not None:
        return Turned(withdrawn, connection, key)
    context = context_of(fields, key)
    if isinstance(context, Refusal):
        return Turned(context, connection, key)
    holder = Holder(registry.ring, key.organization, connection.id, key.id, endpoint.target.origin)
    version = fields.get(b"mcp-protocol-version", b"")
    stateless = version >= STATELESS_SINCE and _DATE.fullmatch(version) is not None
    session = None if stateless else _session_of(fields, holder)
    if isinstance(session, Refusal):
        return Turned(session, connection, key, context)
    return Admitted(
        head.method,
        endpoint,
        key,
        context,
        holder,
        _block(head, endpoint, session, stateless=stateless),
        (fields.get(b"mcp-method"), fields.get(b"mcp-name")),
        version or None,
        stateless,
    )


def standing(key: ApiKey, connection: Connection | None) -> Refusal | None:
    """Whether this key may call this connection as both stand now. Asked at admission, and again of open streams."""
    if connection is None:
        return REFUSALS["connection_unknown"]
    if not key.role.calls:
        return REFUSALS["role_cannot_call"]
    if not reaches(key, connection):
        return REFUSALS["out_of_scope"]
    return None if connection.enabled else REFUSALS["connection_disabled"]


def decide(admitted: Admitted, body: bytes, registry: Registry) -> Forward | Turned:
    """Judge the whole message and build the upstream head, the credential opened and placed inside this call."""
    operations: tuple[Operation, ...] = ()
    length = b""
    if admitted.method == b"POST":
        found = asked(body, *admitted.named)
        if isinstance(found, Refused):
            return _turned(admitted, found.refusal, (), found.id)
        operations = found
        length = b"content-length: %d\r\n" % len(body)
    request_id = request_id_of(operations)
    if _repeats_key(admitted.block, body, operations):
        # Nothing of the message is recorded here: a name that holds a key would put it into the trail.
        return _turned(admitted, REFUSALS["key_repeated"], (), request_id)
    endpoint = admitted.endpoint
    try:
        credential = opened(endpoint, registry.ring)
    except Unreadable:
        return _turned(admitted, REFUSALS["credential_unreadable"], operations, request_id)
    placed = endpoint.scheme.field(credential or b"")
    head = b"".join((admitted.method, endpoint.opening, admitted.block, length, placed, b"\r\n"))
    return Forward(admitted, operations, head, credential)


def request_id_of(operations: tuple[Operation, ...]) -> bytes | None:
    """The id an error is answered under: the one request's, and never one of a batch."""
    return operations[0].id if len(operations) == 1 and operations[0].kind == "request" else None


def _block(head: RequestHead, endpoint: Endpoint, session: bytes | None, *, stateless: bool) -> bytes:
    replaced = endpoint.replaced
    said = head.named.get(b"connection")
    if said is not None and said.lower() not in _PLAIN_CONNECTION:
        replaced = replaced | named_by_connection(head.fields)
    lines = passing(head.fields, endpoint.forward, replaced, stateless=stateless)
    if session is not None:
        lines.append(b"mcp-session-id: " + session)
    lines.append(b"")
    return b"\r\n".join(lines)


def _repeats_key(block: bytes, body: bytes, operations: tuple[Operation, ...]) -> bool:
    """Whether a key stands in what would go upstream, or, spelt with JSON escapes, in what would be recorded."""
    if contains_key(body) or (b"ks_" in block and (contains_key(block) or _KEY_IN_NAME.search(block))):
        return True
    return b"\\u" in body and any(
        contains_key(text.encode())
        for operation in operations
        for text in (operation.method, operation.name, operation.version)
        if text is not None
    )


def _turned(
    admitted: Admitted, refusal: Refusal, operations: tuple[Operation, ...], request_id: bytes | None
) -> Turned:
    return Turned(refusal, admitted.endpoint.connection, admitted.key, admitted.context, operations, request_id)


def _judge_shape(head: RequestHead, fields: dict[bytes, bytes], shape: Shape, mark: bytes) -> Refusal | None:
    refused = admissible(fields, shape)
    if refused is not None:
        return refused
    if head.method not in METHODS:
        return REFUSALS["method_not_allowed"]
    if len(fields) != len(head.fields):
        if key_doubled(head.fields):
            return REFUSALS["key_doubled"]
        if doubled(head.fields):
            return REFUSALS["field_doubled"]
    if head.method == b"POST" and (
        not _JSON.fullmatch(fields.get(b"content-type", b"")) or b"content-encoding" in fields
    ):
        return REFUSALS["media_type_unsupported"]
    if fields.get(b"user-agent") == mark:
        return REFUSALS["gateway_loop"]  # what this node sent has come back to it
    if contains_key(fields.get(b"mcp-protocol-version", b"")):
        return REFUSALS["key_repeated"]  # the trail holds what an admitted caller says there
    return None


def _session_of(fields: dict[bytes, bytes], holder: Holder) -> bytes | Refusal | None:
    """The upstream's session id, verified; None when the caller shows none and asks for nothing of one."""
    wrapped = fields.get(b"mcp-session-id")
    if wrapped is not None:
        return holder.verify(wrapped) or REFUSALS["session_unknown"]
    return REFUSALS["resume_without_session"] if b"last-event-id" in fields else None


@lru_cache(maxsize=1024)
def _host_allowed(host: bytes, shape: Shape) -> bool:
    found = _HOST.fullmatch(host)
    return found is not None and found[1].lower() in shape.hosts


@lru_cache(maxsize=1024)
def _origin_allowed(origin: bytes, shape: Shape) -> bool:
    found = _ORIGIN.fullmatch(origin)
    return origin in shape.origins or (found is not None and found[1].lower() in shape.hosts)
