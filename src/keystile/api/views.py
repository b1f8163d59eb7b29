"""What an answer of the REST API holds, in camelCase.

Rules: no view has a field for a credential, so that none can be shown. The OpenAPI document is made from these
structs, so their descriptions are its prose.
"""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

from keystile.api.shapes import ClientName, Slug
from keystile.model import AuthType, Metadata, Role

Moment = Annotated[str, Meta(description="RFC 3339, UTC, milliseconds.", examples=["2026-11-22T09:30:00.000Z"])]


class View(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """What an answer holds."""


class ConnectionView(View, frozen=True):
    """A connection."""

    id: str
    slug: Slug
    name: str
    upstream_url: str
    auth_type: AuthType
    auth_header_name: str | None
    headers: dict[str, str]
    forward_headers: tuple[str, ...]
    ca_pem: str | None
    max_in_flight: int | None
    enabled: bool
    has_credential: bool
    credential_version: Annotated[int, Meta(description="Number of the active version.")] | None
    rotated_at: Moment | None
    created_at: Moment
    created_by: Annotated[str, Meta(description="Id of the API key that made it.")] | None
    updated_at: Moment


class VersionView(View, frozen=True):
    """One version of a connection's credential."""

    version: int
    active: bool
    auth_type: AuthType
    auth_header_name: str | None
    origin: Annotated[str, Meta(description="Where it may be sent; bound into its seal.")]
    created_at: Moment
    created_by: str | None
    destroyed_at: Moment | None


class CheckView(View, frozen=True):
    """What a probe of the upstream found."""

    ok: bool
    method: Annotated[str, Meta(description="`server/discover` or `initialize`.")] | None
    status: Annotated[int, Meta(description="HTTP status of the upstream.")] | None
    protocol_version: str | None
    server_name: str | None
    server_version: str | None
    latency_ms: float | None
    header_sent: Annotated[str, Meta(description="Name of the header the credential went in.")] | None
    code: Annotated[str, Meta(description="Why it failed: see docs/errors.md.")] | None
    message: str | None
    reason: Annotated[str, Meta(description="Why it was not reached: the kind of address, or what failed.")] | None


class ClientConfigView(View, frozen=True):
    """What to paste into an MCP client; put a client key where the placeholder stands."""

    client: ClientName
    url: str
    placeholder: str
    file: Annotated[str, Meta(description="Where the configuration belongs.")] | None
    snippet: Annotated[str, Meta(description="The configuration, as JSON text.")]
    command: Annotated[str, Meta(description="A command that does the same.")] | None


class KeyView(View, frozen=True):
    """An API key, without the key."""

    id: str
    name: str
    role: Role
    connections: Annotated[tuple[str, ...], Meta(description="Slugs it may call; null: its role's reach.")] | None
    pinned_user: str | None
    created_at: Moment
    created_by: str | None
    expires_at: Moment | None
    last_used_at: Annotated[Moment, Meta(description="When it last called an endpoint.")] | None


class NewKeyView(KeyView, frozen=True):
    """An API key that was just made, with the key. It is shown this once."""

    key: Annotated[str, Meta(description="The key itself.", examples=["ks_…"])]


class OrganizationView(View, frozen=True):
    """An organization."""

    id: str
    slug: str
    name: str
    created_at: Moment


class NewOrganizationView(OrganizationView, frozen=True):
    """An organization that was just made, with its first admin key. It is shown this once."""

    key: str


class EventView(View, frozen=True):
    """One exchange and what became of it."""

    id: str
    time: Moment
    connection: Annotated[str, Meta(description="The slug that was called.")] | None
    connection_id: str | None
    key_id: str | None
    user: Annotated[str, Meta(description="As asserted by the caller, or pinned to the key.")] | None
    trace_id: str | None
    metadata: Annotated[Metadata, Meta(description="As asserted.")] | None
    address: Annotated[str, Meta(description="The client's.")] | None
    http_method: str
    rpc_method: str | None
    name: Annotated[str, Meta(description="Of the tool or prompt, or the resource's URI.")] | None
    protocol_version: str | None
    outcome: str
    refusal: Annotated[str, Meta(description="A code of docs/errors.md.")] | None
    credential_version: int | None
    status: Annotated[int, Meta(description="Sent to the client.")] | None
    upstream_status: int | None
    bytes_in: int
    bytes_out: int
    total_ms: float | None
    first_byte_ms: float | None
    gateway_ms: float | None
    redacted: Annotated[bool, Meta(description="Whether an echoed credential was replaced by asterisks.")]
    count: Annotated[int, Meta(description="How many refusals a `counted` event stands for; otherwise 1.")]


class Problem(View, frozen=True):
    """What went wrong."""

    code: Annotated[str, Meta(description="Stable; see docs/errors.md.")]
    message: str
    details: Annotated[dict[str, msgspec.Raw], Meta(description="What it concerns. Never a secret.")]


class Failure(View, frozen=True):
    """The body of every answer that is not a success."""

    error: Problem
