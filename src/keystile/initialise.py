"""An empty data folder becomes an installation: root key, schema, organization `default`, first admin key.

Guarantees: what holds data is left as it is, but for its schema, and its root key is seen to be the right one before
anything starts; an interrupted run can be run again; a root key is made only where nothing is sealed yet.
"""

from __future__ import annotations

import os
import time

import msgspec

from keystile import keys, mint
from keystile.config import Config
from keystile.core import apikey
from keystile.errors import StartRefused
from keystile.model import ApiKey, Organization, Role, Secret
from keystile.node import Folders
from keystile.publish import Transaction
from keystile.store import data_keys, organizations
from keystile.store import keys as stored_keys
from keystile.store.database import Database, sqlite
from keystile.vault import Vault


class First(msgspec.Struct, frozen=True, kw_only=True):
    """What was just made. `given` says that the key came from the configuration, and is not to be printed."""

    organization: Organization
    key: Secret
    given: bool


async def initialise(config: Config) -> First | None:
    """Make what is missing; None when there is data already. Raises StartRefused with one clear line."""
    before = os.umask(0o077)  # what is made here is for this user alone, whoever calls
    try:
        return await _made(config)
    finally:
        os.umask(before)


async def _made(config: Config) -> First | None:
    folders = Folders(config.data_dir)
    folders.make()
    database = Database(sqlite(folders.database))
    try:
        await database.migrate()
        async with database.read() as connection:
            founded = bool(await organizations.every(connection))
            sealed = await data_keys.anything_sealed(connection)
        if founded:
            await Vault.open(database, keys.root_key(config, folders))
            return None
        key = _first_key(config)
        # A root key file that is there already is used: a run was interrupted, and at most the canary is under it.
        if not (sealed or keys.configured(config) or folders.root_key.exists()):
            keys.make_root_key_file(folders.root_key)
        vault = await Vault.open(database, keys.root_key(config, folders))
        organization = await _found(database, vault, key)
    finally:
        await database.close()
    return First(organization=organization, key=key, given=config.bootstrap_key is not None)


def _first_key(config: Config) -> Secret:
    if config.bootstrap_key is None:
        return Secret(mint.new_api_key().encode())
    given = config.bootstrap_key.encode()
    if not apikey.well_formed(given):
        raise StartRefused("KEYSTILE_BOOTSTRAP_KEY is not a well-formed key. Make one with: keystile key generate")
    return Secret(given)


async def _found(database: Database, vault: Vault, key: Secret) -> Organization:
    """Organization, data key and admin key in one transaction: all of them are there, or none."""
    now = time.time_ns() // 1_000_000
    organization = Organization(id=mint.new_id(), slug="default", name="Default", created_at=now)
    admin = ApiKey(
        id=mint.new_id(),
        organization=organization.id,
        name="first admin key",
        role=Role.ADMIN,
        digest=apikey.digest(key.reveal()),
        created_at=now,
    )
    async with database.write() as connection:
        # No node runs yet, so nothing is published: the control process begins with a snapshot of it all.
        transaction = Transaction(connection, Secret(mint.data_key()))
        await organizations.insert(connection, organization)
        await vault.add_organization(transaction, organization.id)
        await stored_keys.insert(connection, admin)
    return organization
