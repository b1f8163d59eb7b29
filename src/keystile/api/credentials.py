"""A connection's credential: rotate, list versions, activate one, destroy one.

Rules: a version is immutable and numbered; rotating makes a new one active before the answer leaves. A version that was
sealed for another origin, auth type or header does not become active again. A disabled connection may be rotated.
"""

from __future__ import annotations

import re
from typing import Any

from keystile.api import rules
from keystile.api.answers import Answer
from keystile.api.call import Call, etag, must_match, paged
from keystile.api.connections import answered, visible
from keystile.api.cursors import after_version, before_version
from keystile.api.route import Nothing
from keystile.api.shapes import Paging, RotateCredential
from keystile.api.times import moment
from keystile.api.views import VersionView
from keystile.errors import Missing
from keystile.model import CredentialVersion, Secret
from keystile.store import connections

_NUMBER = re.compile(r"[1-9][0-9]{0,8}")


async def rotate_credential(call: Call[RotateCredential, Nothing]) -> Answer:
    """Rotate the credential.

    The connection gets a new version of it, active at once in every worker.
    """
    house, secret = call.house, Secret(rules.credential(call.body.credential))
    async with house.publisher.change() as tx:
        found = await visible(call, tx.connection)
        must_match(call.if_match, etag(found.revision))
        after = await house.vault.add_version(tx, found, secret, call.actor, house.now())
    return answered(after)


async def list_versions(call: Call[None, Paging]) -> Answer:
    """List the versions of the credential.

    Newest first, destroyed ones too.
    """
    before = before_version(call.query.cursor)
    async with call.house.database.read() as conn:
        found = await visible(call, conn)
        rows = await connections.versions(conn, found.id, call.query.limit + 1, before)
    rows, last = paged(rows, call.query.limit)
    cursor = last and after_version(last.version)
    return Answer(data=[_view(row, found.active_version) for row in rows], paged=True, cursor=cursor)


async def activate_version(call: Call[None, Nothing]) -> Answer:
    """Roll back or forward to a version.

    It becomes the active one, at once in every worker.
    """
    house, version = call.house, _version(call)
    async with house.publisher.change() as tx:
        found = await visible(call, tx.connection)
        must_match(call.if_match, etag(found.revision))
        after = await house.vault.activate(tx, found, version, call.actor, house.now())
    return answered(after)


async def destroy_version(call: Call[None, Nothing]) -> Answer:
    """Destroy a version that is not active.

    Its sealed bytes are overwritten; its number and times stay.
    """
    house, version = call.house, _version(call)
    async with house.publisher.change() as tx:
        found = await visible(call, tx.connection)
        must_match(call.if_match, etag(found.revision))
        await house.vault.destroy(tx, found, version, house.now())
    return Answer()


def _version(call: Call[Any, Any]) -> int:
    text = call.path["version"]
    if not _NUMBER.fullmatch(text):
        raise Missing("This connection has no such version.")
    return int(text)


def _view(row: CredentialVersion, active: int) -> VersionView:
    return VersionView(
        version=row.version,
        active=row.version == active,
        auth_type=row.auth_type,
        auth_header_name=row.auth_header_name,
        origin=row.origin,
        created_at=moment(row.created_at),
        created_by=row.created_by,
        destroyed_at=moment(row.destroyed_at),
    )
