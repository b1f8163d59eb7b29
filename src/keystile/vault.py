"""A credential's life: create, rotate, activate, destroy; and the data keys that seal them.

Guarantees: a credential is plain in here only while it is sealed or, for `reveal`, checked against its upstream. A
version is immutable; rotating adds one and moves the pointer, rolling back moves the pointer. Nothing is sealed
under a data key that is not committed with, or before, what it seals.
"""

from __future__ import annotations

from typing import Self

import msgspec
import structlog
from sqlalchemy.ext.asyncio import AsyncConnection

from keystile import mint
from keystile.core.envelope import CANARY, KeyRing, credential_binding, seal_for_node
from keystile.core.target import parse_target
from keystile.errors import Conflict, Invalid, Missing, StartRefused, Unreadable
from keystile.keys import RootKey
from keystile.model import AuthType, Connection, CredentialVersion, DataKey, Published, Secret
from keystile.publish import Transaction
from keystile.store import connections, data_keys
from keystile.store.database import Database

_log = structlog.get_logger(__name__)


class Vault:
    """The key ring of the control process, and all that is done with it."""

    def __init__(self, root_key: RootKey) -> None:
        self._root_key = root_key
        self._ring = KeyRing()
        self._data_keys: dict[tuple[str, int], Secret] = {}

    def __repr__(self) -> str:
        return f"<Vault root={self._root_key.id} {self._ring!r}>"

    @classmethod
    async def open(cls, database: Database, root_key: RootKey) -> Self:
        """The vault over a migrated database; raises StartRefused, with one line, for any but its own root key.

        The canary is written once, into a database where nothing was ever sealed.
        """
        vault = cls(root_key)
        async with database.write() as connection:
            if not await vault._unlock(connection):
                await data_keys.insert_canary(connection, root_key.wrap("", 0, CANARY))
        return vault

    @classmethod
    async def check(cls, database: Database, root_key: RootKey) -> None:
        """See that this root key opens the database, and write nothing; raises StartRefused as `open` does."""
        vault = cls(root_key)
        async with database.read() as connection:
            await vault._unlock(connection)

    async def add_organization(self, tx: Transaction, organization_id: str) -> None:
        """The first data key of an organization that was just inserted."""
        term, data_key = 1, mint.data_key()
        wrapped = self._root_key.wrap(organization_id, term, data_key)
        await data_keys.insert(tx.connection, organization_id, term, wrapped)
        # On the ring before the commit: if that fails the key opens nothing, as no row can name the organization.
        self._add(organization_id, term, data_key)
        tx.put(_for_node(organization_id, term, data_key, tx.node_key))

    async def add_version(
        self, tx: Transaction, connection: Connection, credential: Secret, actor: str | None, now: int
    ) -> Connection:
        """Seal a credential as the next version, make it active, publish; returns the connection as it is now.

        `connection` may carry changes of its own (another origin, auth type or header), which are written in the
        same transaction; its `revision` is that of the stored row. Raises Conflict (`no_credential`) for auth type
        `none`, Stale as `store.connections.update`. `rotated_at` is set from the second version on.
        """
        if connection.auth_type is AuthType.NONE:
            raise Conflict("A connection of auth type none has no credential.", "no_credential")
        number = await connections.newest_version(tx.connection, connection.id) + 1
        term = self._ring.newest(connection.organization)
        origin = _origin(connection)
        binding = credential_binding(connection, number, origin)
        sealed = self._ring.seal(credential.reveal(), binding, term, mint.nonce())
        version = CredentialVersion(
            connection=connection.id,
            version=number,
            term=term,
            auth_type=connection.auth_type,
            auth_header_name=connection.auth_header_name,
            origin=origin,
            sealed=sealed,
            created_at=now,
            created_by=actor,
        )
        await connections.insert_version(tx.connection, connection.organization, version)
        rotated_at = now if number > 1 else None
        changed = msgspec.structs.replace(connection, active_version=number, rotated_at=rotated_at, updated_at=now)
        return await _write(tx, changed, sealed)

    async def activate(
        self, tx: Transaction, connection: Connection, version: int, actor: str | None, now: int
    ) -> Connection:
        """Roll back or forward to a version; returns the connection as it is now.

        Raises Missing for a version that is absent or destroyed, Conflict (`binding_changed`) for one sealed for
        another origin, auth type or header, Unreadable when it does not open, Stale as `store.connections.update`.
        """
        found = await connections.version(tx.connection, connection.id, version)
        if found is None or found.sealed is None:
            raise Missing("This connection has no such version, or it was destroyed.")
        binding = credential_binding(connection, version, _origin(connection))
        if (found.auth_type, (found.auth_header_name or "").lower(), found.origin) != (
            binding.auth_type,
            binding.place,
            binding.origin,
        ):
            raise Conflict(
                "This version was sealed for another origin, auth type or header. Enter the credential anew.",
                "binding_changed",
            )
        if version == connection.active_version:
            return connection
        self._ring.open(found.sealed, binding)
        _log.info("credential version activated", connection=connection.id, version=version, actor=actor)
        changed = msgspec.structs.replace(connection, active_version=version, updated_at=now)
        return await _write(tx, changed, found.sealed)

    async def destroy(self, tx: Transaction, connection: Connection, version: int, now: int) -> None:
        """Overwrite a version's sealed bytes. Raises Missing, or Conflict (`version_active`)."""
        found = await connections.version(tx.connection, connection.id, version)
        if found is None or found.sealed is None:
            raise Missing("This connection has no such version, or it was destroyed.")
        if version == connection.active_version:
            raise Conflict("This version is active. Rotate, or activate another one, first.", "version_active")
        await connections.destroy_version(tx.connection, connection.id, version, now)

    def data_keys(self, node_key: bytes) -> list[DataKey]:
        """Every data key, sealed for the node."""
        return [
            _for_node(organization, term, data_key.reveal(), Secret(node_key))
            for (organization, term), data_key in self._data_keys.items()
        ]

    async def reveal(self, conn: AsyncConnection, connection: Connection) -> Secret | None:
        """The active credential, for a check of the upstream alone; None when there is none. Raises Unreadable."""
        published = await connections.published(conn, connection.id)
        sealed = None if published is None else published.sealed
        if (sealed is None) != (connection.auth_type is AuthType.NONE):
            raise Unreadable("The connection's auth type and its credential do not belong together.")
        if sealed is None:
            return None
        binding = credential_binding(connection, connection.active_version, _origin(connection))
        return Secret(self._ring.open(sealed, binding))

    async def _unlock(self, connection: AsyncConnection) -> bool:
        """Take every data key; False when nothing was ever sealed. Raises StartRefused."""
        canary = await data_keys.canary(connection)
        if canary is not None:
            _check(self._root_key, canary)
        elif await data_keys.anything_sealed(connection):
            raise StartRefused("The database holds sealed rows and no canary: it is damaged. Restore a backup.")
        for organization, term, wrapped in await data_keys.every(connection):
            try:
                self._add(organization, term, self._root_key.unwrap(organization, term, wrapped))
            except Unreadable as error:
                raise StartRefused(
                    f"Data key {term} of organization {organization} does not open ({error}). Restore a backup."
                ) from error
        return canary is not None

    def _add(self, organization: str, term: int, data_key: bytes) -> None:
        self._ring.add(organization, term, data_key)
        self._data_keys[organization, term] = Secret(data_key)


def _check(root_key: RootKey, canary: bytes) -> None:
    try:
        right = root_key.unwrap("", 0, canary) == CANARY
    except Unreadable as error:
        raise StartRefused(f"This is not the root key of this database. {error}") from error
    if not right:
        raise StartRefused("The database's canary is not the constant it should be: it is damaged. Restore a backup.")


def _for_node(organization: str, term: int, data_key: bytes, node_key: Secret) -> DataKey:
    sealed = seal_for_node(node_key.reveal(), organization, term, data_key, mint.nonce())
    return DataKey(organization=organization, term=term, sealed=sealed)


def _origin(connection: Connection) -> str:
    target = parse_target(connection.upstream_url)
    if isinstance(target, str):
        raise Invalid(f"The connection's upstream URL {target}.")
    return target.origin


async def _write(tx: Transaction, connection: Connection, sealed: bytes) -> Connection:
    written = await connections.update(tx.connection, connection)
    tx.put(Published(connection=written, sealed=sealed))
    return written
