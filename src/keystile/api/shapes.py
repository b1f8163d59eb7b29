"""What a request to the REST API may say, in camelCase.

Rules: unknown members are refused and types are strict. The OpenAPI document is made from these structs, so their
descriptions are its prose. Lengths count characters.
"""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Literal

import msgspec
from msgspec import UNSET, Meta, UnsetType

from keystile.model import SLUG, USER, AuthType, Role

CONTROL = r"\x00-\x1f\x7f-\x9f\u2028\u2029"
"""Control characters and what ends a line, for a character class."""

_SAID = f"[^{CONTROL}]"
VISIBLE = r"^[\x21-\x7e]([\x20-\x7e]*[\x21-\x7e])?$"
"""Visible ASCII, with spaces inside. In the document; `rules.py` checks it and says more than a pattern would."""

ClientName = Literal["claude-code", "cursor", "vscode", "opencode", "generic"]

Name = Annotated[
    str,
    Meta(
        min_length=1,
        max_length=200,
        description="For people. No control characters.",
        extra_json_schema={"pattern": f"^{_SAID}*[^{CONTROL}\\s]{_SAID}*$"},
    ),
]
Slug = Annotated[
    str,
    Meta(
        pattern=f"^{SLUG}$",
        description="The name in the URL. Unique in the organization, and never changed.",
        examples=["github-prod"],
    ),
]
UpstreamUrl = Annotated[
    str,
    Meta(
        min_length=1,
        max_length=8192,
        description="The upstream's MCP URL, used as it stands, path and query included.",
        examples=["https://mcp.github.com"],
    ),
]
HeaderName = Annotated[
    str,
    Meta(
        min_length=1,
        max_length=128,
        description="A header field name (RFC 9110, section 5.6.2) that the gateway does not write itself.",
        examples=["X-MCP-Toolsets"],
        extra_json_schema={"pattern": "^[!#$%&'*+.^_`|~0-9A-Za-z-]+$"},
    ),
]
HeaderValue = Annotated[
    str,
    Meta(
        max_length=4096,
        description="Visible ASCII, spaces and tabs inside.",
        extra_json_schema={"pattern": r"^([\x21-\x7e]([\x20-\x7e\t]*[\x21-\x7e])?)?$"},
    ),
]
Credential = Annotated[
    str,
    Meta(
        min_length=1,
        max_length=16384,
        description="The secret put on upstream requests. Visible ASCII and spaces. No answer ever shows it.",
        examples=["made-up-credential"],
        extra_json_schema={"pattern": VISIBLE},
    ),
]
Headers = Annotated[
    dict[HeaderName, HeaderValue],
    Meta(max_length=32, description="Fixed fields sent upstream. Public: not a place for secrets."),
]
ForwardHeaders = Annotated[
    tuple[HeaderName, ...],
    Meta(max_length=32, description="Names of client header fields that pass to the upstream."),
]
CaPem = Annotated[
    str, Meta(max_length=262144, description="Certificates, as PEM, that the upstream's TLS is verified against.")
]
MaxInFlight = Annotated[int, Meta(ge=1, le=1_000_000, description="Most exchanges at once, all workers together.")]
Time = Annotated[datetime, Meta(tz=True, description="RFC 3339, with an offset.", examples=["2030-01-01T00:00:00Z"])]
Limit = Annotated[int, Meta(ge=1, le=1000, description="Most rows in this page.")]
Cursor = Annotated[str, Meta(max_length=512, description="`meta.nextCursor` of the page before.")]
User = Annotated[
    str,
    Meta(
        min_length=1,
        max_length=256,
        description="Visible ASCII, spaces inside.",
        extra_json_schema={"pattern": f"^{USER}$"},
    ),
]


class Body(msgspec.Struct, frozen=True, kw_only=True, rename="camel", forbid_unknown_fields=True):
    """What a request says."""


class CreateConnection(Body, frozen=True):
    """A new connection. `credential` is needed with `bearer` and `header`, and refused with `none`."""

    slug: Slug
    upstream_url: UpstreamUrl
    name: Annotated[Name | None, Meta(description="For people; the slug, when left out.")] = None
    auth_type: Annotated[AuthType, Meta(description="How the credential is put on.")] = AuthType.BEARER
    auth_header_name: Annotated[HeaderName | None, Meta(description="Needed with `header`, refused otherwise.")] = None
    credential: Credential | None = None
    headers: Headers = {}
    forward_headers: ForwardHeaders = ()
    ca_pem: CaPem | None = None
    max_in_flight: MaxInFlight | None = None
    enabled: Annotated[bool, Meta(description="A disabled connection refuses every call.")] = True


class PatchConnection(Body, frozen=True):
    """Changes; what is left out stays. Another origin, auth type or header needs the credential anew."""

    name: Name | UnsetType = UNSET
    upstream_url: UpstreamUrl | UnsetType = UNSET
    auth_type: AuthType | UnsetType = UNSET
    auth_header_name: HeaderName | UnsetType | None = UNSET
    credential: Credential | UnsetType = UNSET
    headers: Headers | UnsetType | None = UNSET
    forward_headers: ForwardHeaders | UnsetType | None = UNSET
    ca_pem: CaPem | UnsetType | None = UNSET
    max_in_flight: MaxInFlight | UnsetType | None = UNSET
    enabled: bool | UnsetType = UNSET


class RotateCredential(Body, frozen=True):
    """The new credential, active when the answer is there."""

    credential: Credential


class CheckConnection(Body, frozen=True):
    """A candidate credential to probe with; it is not stored. Without one, the active credential is used."""

    credential: Credential | None = None


Scope = Annotated[tuple[Slug, ...], Meta(max_length=1000, description="Slugs it may call.")]


class CreateKey(Body, frozen=True):
    """A new API key."""

    name: Name
    role: Annotated[Role, Meta(description="`client` calls endpoints and has no REST route.")] = Role.CLIENT
    expires_at: Time | None = None
    connections: Annotated[Scope | None, Meta(description="Slugs it may call; left out: its role's reach.")] = None
    pinned_user: User | None = None


class PatchKey(Body, frozen=True):
    """Changes; what is left out stays. Null takes scope or expiry off."""

    name: Name | UnsetType = UNSET
    connections: Scope | UnsetType | None = UNSET
    expires_at: Time | UnsetType | None = UNSET


class CreateOrganization(Body, frozen=True):
    """A new organization."""

    slug: Slug
    name: Annotated[Name | None, Meta(description="For people; the slug, when left out.")] = None


class Paging(Body, frozen=True):
    """Which rows of a list."""

    limit: Limit = 50
    cursor: Cursor | None = None


class EventQuery(Paging, frozen=True):
    """Which events; newest first."""

    connection: Annotated[Slug, Meta(description="Events of this connection alone.")] | None = None
    trace_id: Annotated[str, Meta(min_length=1, max_length=128, description="Of this trace alone.")] | None = None
    since: Annotated[Time, Meta(description="At this time or later.")] | None = None
    until: Annotated[Time, Meta(description="Before this time.")] | None = None


class ClientConfigQuery(Body, frozen=True):
    """Which client."""

    client: Annotated[ClientName, Meta(description="Whose format the snippet has.")] = "generic"
