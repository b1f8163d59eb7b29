"""Every noun of Keystile, as frozen values.

Rules: nothing here does I/O, reads a clock or imports another room. Times are whole milliseconds since the Unix
epoch, UTC. Identifiers are 12 lower-case letters and digits. A value that holds a secret prints nothing of it.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Literal

import msgspec

SLUG = "[a-z0-9][a-z0-9_-]{2,63}"
"""What a slug is, as a regular expression for `fullmatch`."""

USER = r"[\x21-\x7e](?:[\x20-\x7e]{0,254}[\x21-\x7e])?"
"""What names a user: 1 to 256 visible ASCII characters, spaces inside."""

Metadata = dict[str, str | int | float | bool | None]
"""What a caller asserts beside user and trace: a flat JSON object."""


class Secret:
    """Bytes that no `repr`, `str`, format or pickle shows. `reveal()` is the only way to them, and easy to grep."""

    __slots__ = ("_value",)

    def __init__(self, value: bytes) -> None:
        self._value = value

    def reveal(self) -> bytes:
        """The bytes themselves."""
        return self._value

    def __repr__(self) -> str:
        return "Secret(…)"

    def __reduce__(self) -> str:
        raise TypeError("a Secret is not serialised")


class Role(StrEnum):
    """What an API key may do. `client` calls endpoints and has no REST route; who mints what: `api/keys.MINTS`."""

    CLIENT = "client"
    AUDITOR = "auditor"
    DEVELOPER = "developer"
    ADMIN = "admin"
    OWNER = "owner"

    @property
    def calls(self) -> bool:
        """Whether a key of this role may call endpoints at all. An auditor reads and does not call."""
        return self is not Role.AUDITOR


class AuthType(StrEnum):
    """How a connection's credential is put on an upstream request."""

    BEARER = "bearer"
    HEADER = "header"
    NONE = "none"


class Organization(msgspec.Struct, frozen=True, kw_only=True):
    """The tenant. Every row, sealed secret and look-up carries its id."""

    id: str
    slug: str
    name: str
    created_at: int


class ApiKey(msgspec.Struct, frozen=True, kw_only=True, tag="key"):
    """A Keystile key as it is kept: its digest, never the key. Workers get the same value through the feed.

    `connections` is a scope of connection *ids*; `None` means the role's own reach. An empty scope reaches nothing.
    Only `name`, `connections` and `expires_at` are ever changed. `revision` is its `ETag`.
    """

    id: str
    organization: str
    name: str
    role: Role
    digest: bytes
    created_at: int
    created_by: str | None = None
    expires_at: int | None = None
    connections: tuple[str, ...] | None = None
    pinned_user: str | None = None
    revision: int = 1


class Connection(msgspec.Struct, frozen=True, kw_only=True):
    """A slug, an upstream MCP URL, and how a credential is put on its requests. Immutable: id, organization, slug.

    `number` is small, unique in the installation and never reused: the row of the connection's shared counters.
    `active_version` is 0 while there is no credential (auth type `none`). `revision` is its `ETag`.
    """

    id: str
    number: int
    organization: str
    slug: str
    name: str
    upstream_url: str
    auth_type: AuthType
    auth_header_name: str | None = None
    headers: dict[str, str] = {}
    forward_headers: tuple[str, ...] = ()
    ca_pem: str | None = None
    max_in_flight: int | None = None
    enabled: bool = True
    active_version: int = 0
    created_by: str | None = None
    created_at: int = 0
    updated_at: int = 0
    rotated_at: int | None = None
    revision: int = 1


class CredentialVersion(msgspec.Struct, frozen=True, kw_only=True):
    """One immutable numbered version of a connection's credential, sealed. Destroyed ones keep number and times."""

    connection: str
    version: int
    term: int
    auth_type: AuthType
    auth_header_name: str | None
    origin: str
    sealed: bytes | None
    created_at: int
    created_by: str | None
    destroyed_at: int | None = None


class Published(msgspec.Struct, frozen=True, kw_only=True, tag="connection"):
    """What the feed carries of a connection: the row, and the sealed bytes of its active credential version."""

    connection: Connection
    sealed: bytes | None = None


class DataKey(msgspec.Struct, frozen=True, kw_only=True, tag="data_key"):
    """A data-key term of an organization, `sealed` under the node key while it travels inside one node."""

    organization: str
    term: int
    sealed: bytes


class Dropped(msgspec.Struct, frozen=True, kw_only=True, tag="dropped"):
    """A row that is gone: a deleted connection, a revoked key."""

    kind: Literal["connection", "key"]
    id: str


Change = Published | ApiKey | DataKey | Dropped
"""One record of the feed. The registry is the fold of all of them."""


class Binding(msgspec.Struct, frozen=True, kw_only=True):
    """What a sealed secret is bound to (promise 6): it opens with exactly these values, or not at all.

    `place` is the lower-case header name for auth type `header`, else empty. `owner` is empty for a connection's
    default credential. `origin` is as `core.target.Target.origin` writes it.
    """

    kind: str
    organization: str
    record: str
    owner: str
    version: int
    auth_type: AuthType
    place: str
    origin: str
