"""Rows → the indexed picture that requests are judged against; a change costs in proportion to the change.

A registry is the fold of the feed's records. Rows are kept as they came; an `Endpoint` is compiled from its row at
the first look-up and thrown away when the row changes, so that 100,000 idle connections cost only their rows.
"""

from __future__ import annotations

import hashlib

from keystile.core.envelope import KeyRing, credential_binding, open_for_node
from keystile.core.headers import opening
from keystile.core.target import Target, parse_target
from keystile.errors import Unreadable
from keystile.model import ApiKey, AuthType, Change, Connection, DataKey, Dropped, Published, Role
from keystile.schemes import Scheme, scheme_of


class Endpoint:
    """A connection, compiled: everything a request needs that does not depend on the request."""

    __slots__ = ("associated", "connection", "forward", "opening", "pool_key", "replaced", "scheme", "sealed", "target")

    def __init__(self, published: Published, mark: bytes) -> None:
        connection = published.connection
        target = parse_target(connection.upstream_url)
        if isinstance(target, str):
            raise ValueError(target)  # noqa: TRY004 — the URL is wrong, not its type
        self.connection: Connection = connection
        self.target: Target = target
        self.scheme: Scheme = scheme_of(connection)
        self.sealed: bytes | None = published.sealed
        self.associated = _associated(published, target)
        self.pool_key = (connection.id, target.origin, connection.ca_pem)
        self.opening = opening(target, connection.headers, mark)
        self.forward = frozenset(name.lower().encode("ascii") for name in connection.forward_headers)
        fixed_names = {name.lower().encode("ascii") for name in connection.headers}
        self.replaced = frozenset({self.scheme.replaces, b"mcp-session-id"} | fixed_names)

    def __repr__(self) -> str:
        return f"<Endpoint {self.connection.slug} → {self.target.origin} v{self.connection.active_version}>"


def mark_of(node_key: bytes) -> bytes:
    """The User-Agent of a node: what it sends and, if that comes back, knows again. Says nothing of the key."""
    return b"keystile (node %b)" % hashlib.sha256(b"mark" + node_key).hexdigest()[:12].encode("ascii")


def _associated(published: Published, target: Target) -> bytes | None:
    """The associated data of the active credential; None when there is none, or none that could be opened."""
    if published.sealed is None:
        return None
    connection = published.connection
    binding = credential_binding(connection, connection.active_version, target.origin)
    try:
        return KeyRing.associated(binding, published.sealed)
    except Unreadable:
        return None


def reaches(key: ApiKey, connection: Connection) -> bool:
    """Whether a key of the same organization may call a connection (its role, what it made, its scope)."""
    if key.organization != connection.organization or key.role is Role.AUDITOR:
        return False
    if key.connections is not None and connection.id in key.connections:
        return True
    if key.role is Role.DEVELOPER:
        return connection.created_by == key.id
    return key.connections is None


class Registry:
    """The configuration as one worker sees it. Not shared, not locked: one owner, the worker's event loop."""

    def __init__(self, node_key: bytes) -> None:
        self.ring = KeyRing()
        self.mark = mark_of(node_key)
        self._node_key = node_key
        self._rows: dict[str, Published] = {}
        self._endpoints: dict[str, Endpoint] = {}
        self._ids: dict[tuple[str, str], str] = {}
        self._named: dict[str, str | set[str]] = {}
        self._keys: dict[bytes, ApiKey] = {}
        self._digests: dict[str, bytes] = {}

    def __repr__(self) -> str:
        return f"<Registry connections={len(self._rows)} keys={len(self._keys)}>"

    def apply(self, change: Change) -> str:
        """Fold one record in; returns the id of the row it concerns (an organization's for a data key)."""
        match change:
            case Published():
                self._put(change)
                return change.connection.id
            case ApiKey():
                self._drop_key(change.id)
                self._keys[change.digest] = change
                self._digests[change.id] = change.digest
                return change.id
            case DataKey():
                opened = open_for_node(self._node_key, change.organization, change.term, change.sealed)
                self.ring.add(change.organization, change.term, opened)
                return change.organization
            case Dropped(kind="key"):
                self._drop_key(change.id)
                return change.id
            case Dropped():
                self._drop_connection(change.id)
                return change.id

    def key(self, digest: bytes) -> ApiKey | None:
        """The live key with this SHA-256, expired or not."""
        return self._keys.get(digest)

    def endpoint(self, organization: str, slug: str) -> Endpoint | None:
        """The endpoint an organization calls by this slug. Raises Unreadable for a row that is not as we wrote it."""
        found = self._ids.get((organization, slug))
        return None if found is None else self._compiled(found)

    def connection_named(self, slug: str) -> Connection | None:
        """The one connection of this slug, when it is unique in the installation: for the trail, not for calling."""
        found = self._named.get(slug)
        return self._rows[found].connection if isinstance(found, str) else None

    def connection(self, connection_id: str) -> Connection | None:
        """The row of this id as it stands now."""
        row = self._rows.get(connection_id)
        return None if row is None else row.connection

    def _compiled(self, connection_id: str) -> Endpoint:
        endpoint = self._endpoints.get(connection_id)
        if endpoint is None:
            try:
                endpoint = self._endpoints[connection_id] = Endpoint(self._rows[connection_id], self.mark)
            except ValueError as error:
                raise Unreadable("The connection's row is not one that Keystile has written.") from error
        return endpoint

    def _put(self, published: Published) -> None:
        connection = published.connection
        if connection.id not in self._rows:
            self._ids[connection.organization, connection.slug] = connection.id
            self._name(connection.slug, connection.id)
        self._rows[connection.id] = published
        self._endpoints.pop(connection.id, None)

    def _drop_connection(self, connection_id: str) -> None:
        row = self._rows.pop(connection_id, None)
        self._endpoints.pop(connection_id, None)
        if row is None:
            return
        slug = row.connection.slug
        del self._ids[row.connection.organization, slug]
        self._unname(slug, connection_id)

    def _name(self, slug: str, connection_id: str) -> None:
        """One id where the slug is unique in the installation, a set of them where organizations share it."""
        held = self._named.setdefault(slug, connection_id)
        if isinstance(held, set):
            held.add(connection_id)
        elif held != connection_id:
            self._named[slug] = {held, connection_id}

    def _unname(self, slug: str, connection_id: str) -> None:
        held = self._named.pop(slug)
        if isinstance(held, set):
            held.discard(connection_id)
            self._named[slug] = held.pop() if len(held) == 1 else held

    def _drop_key(self, key_id: str) -> None:
        digest = self._digests.pop(key_id, None)
        if digest is not None:
            self._keys.pop(digest, None)


def opened(endpoint: Endpoint, ring: KeyRing) -> bytes | None:
    """The endpoint's credential, opened now: None for auth type `none`. Raises Unreadable; never cached."""
    if endpoint.connection.auth_type is AuthType.NONE:
        if endpoint.sealed is not None:
            # The auth type was changed behind our back: nothing of ours would leave, but the call would be another.
            raise Unreadable("the connection has a credential and no place for it")
        return None
    if endpoint.sealed is None or endpoint.associated is None:
        raise Unreadable("the connection has no credential")
    return ring.open_associated(endpoint.connection.organization, endpoint.sealed, endpoint.associated)
