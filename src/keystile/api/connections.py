"""Connections: create, list, show, patch, delete.

Rules: what is another organization's, or for a developer somebody else's, does not exist. A change of origin, auth type
or header needs the credential anew, and binding and version change in one transaction. A mutation has answered only
after every worker can see it.
"""

from __future__ import annotations

from typing import Any

import msgspec
from msgspec import UNSET
from sqlalchemy.ext.asyncio import AsyncConnection

from keystile import mint
from keystile.api import rules
from keystile.api.answers import Answer
from keystile.api.call import Call, etag, must_match, paged, refuse
from keystile.api.cursors import after_row, place
from keystile.api.route import Nothing
from keystile.api.shapes import CreateConnection, Paging, PatchConnection
from keystile.api.times import moment
from keystile.api.upstreams import looked_at, parsed
from keystile.api.views import ConnectionView
from keystile.core.envelope import credential_binding
from keystile.errors import Invalid, Missing
from keystile.model import AuthType, Connection, Dropped, Published, Secret
from keystile.store import connections


async def create_connection(call: Call[CreateConnection, Nothing]) -> Answer:
    """Create a connection.

    Unless its auth type is `none`, the first version of its credential is made with it.
    """
    body, house, now = call.body, call.house, call.house.now()
    secret = rules.credential(body.credential) if body.credential is not None else None
    header = rules.auth_header_name(body.auth_type, body.auth_header_name)
    _needed(body.auth_type, secret)
    wanted = Connection(
        id=mint.new_id(),
        number=0,
        organization=call.caller.organization,
        slug=rules.slug(body.slug),
        name=rules.name(body.name) if body.name is not None else body.slug,
        upstream_url=body.upstream_url,
        auth_type=body.auth_type,
        auth_header_name=header,
        headers=rules.headers(body.headers, header),
        forward_headers=rules.forward_headers(body.forward_headers, header, body.headers),
        ca_pem=rules.ca_pem(body.ca_pem),
        max_in_flight=body.max_in_flight,
        enabled=body.enabled,
        created_by=call.actor,
        created_at=now,
        updated_at=now,
    )
    upstream = await looked_at(body.upstream_url, house, call.base_url)
    upstream.permitted()
    async with house.publisher.change() as tx:
        number = await connections.next_number(tx.connection)
        made = msgspec.structs.replace(wanted, number=number)
        await connections.insert(tx.connection, made)
        if secret is not None:
            made = await house.vault.add_version(tx, made, Secret(secret), call.actor, now)
        else:
            tx.put(Published(connection=made))
    return answered(made, upstream.warnings)


async def list_connections(call: Call[None, Paging]) -> Answer:
    """List connections.

    Newest first.
    """
    query, caller = call.query, call.caller
    async with call.house.database.read() as conn:
        rows = await connections.page(
            conn,
            caller.organization,
            query.limit + 1,
            place(query.cursor),
            caller.key.id if caller.own_only else None,
        )
    rows, last = paged(rows, query.limit)
    return Answer(data=[view(row) for row in rows], paged=True, cursor=last and after_row(last))


async def show_connection(call: Call[None, Nothing]) -> Answer:
    """Show a connection.

    Its credential is shown to nobody.
    """
    async with call.house.database.read() as conn:
        return answered(await visible(call, conn))


async def patch_connection(call: Call[PatchConnection, Nothing]) -> Answer:
    """Change a connection.

    What is left out stays; `null` takes an optional field off.
    """
    body, house, now = call.body, call.house, call.house.now()
    secret = rules.credential(body.credential) if isinstance(body.credential, str) else None
    upstream = None
    if isinstance(body.upstream_url, str):
        upstream = await looked_at(body.upstream_url, house, call.base_url)
        upstream.permitted()
    async with house.publisher.change() as tx:
        found = await visible(call, tx.connection)
        must_match(call.if_match, etag(found.revision))
        after = _patched(found, body, now)
        if after.auth_type is AuthType.NONE:
            _needed(after.auth_type, secret)
        elif secret is None and _bound(after) != _bound(found):
            raise Invalid(
                "Another origin, auth type or header needs the credential entered anew.",
                "credential_required",
                field="credential",
            )
        if secret is not None:
            after = await house.vault.add_version(tx, after, Secret(secret), call.actor, now)
        else:
            after = await connections.update(tx.connection, after)
            published = await connections.published(tx.connection, after.id)
            tx.put(published or Published(connection=after))
    return answered(after, upstream.warnings if upstream else ())


async def delete_connection(call: Call[None, Nothing]) -> Answer:
    """Delete a connection.

    Every version of its credential goes with it, and its streams end.
    """
    async with call.house.publisher.change() as tx:
        found = await visible(call, tx.connection)
        must_match(call.if_match, etag(found.revision))
        await connections.delete(tx.connection, found.id)
        tx.put(Dropped(kind="connection", id=found.id))
    return Answer()


async def visible(call: Call[Any, Any], conn: AsyncConnection) -> Connection:
    """The connection of the slug in the path, if the caller is to know of it. Raises Missing."""
    found = await connections.find(conn, call.caller.organization, call.slug())
    if found is None or not call.caller.sees(found):
        raise Missing("Your organization has no connection of this slug.")
    return found


def view(row: Connection) -> ConnectionView:
    """What the API shows of a connection."""
    return ConnectionView(
        id=row.id,
        slug=row.slug,
        name=row.name,
        upstream_url=row.upstream_url,
        auth_type=row.auth_type,
        auth_header_name=row.auth_header_name,
        headers=row.headers,
        forward_headers=row.forward_headers,
        ca_pem=row.ca_pem,
        max_in_flight=row.max_in_flight,
        enabled=row.enabled,
        has_credential=row.active_version > 0,
        credential_version=row.active_version or None,
        rotated_at=moment(row.rotated_at),
        created_at=moment(row.created_at),
        created_by=row.created_by,
        updated_at=moment(row.updated_at),
    )


def answered(row: Connection, warnings: tuple[str, ...] = ()) -> Answer:
    """A connection as the answer."""
    return Answer(data=view(row), etag=etag(row.revision), warnings=warnings)


def _patched(found: Connection, body: PatchConnection, now: int) -> Connection:
    auth_type = _or(body.auth_type, found.auth_type)
    kept = found.auth_header_name if auth_type is AuthType.HEADER else None
    header = rules.auth_header_name(auth_type, _or(body.auth_header_name, kept))
    fixed: dict[str, str] = _or(body.headers, found.headers) or {}
    forward: tuple[str, ...] = _or(body.forward_headers, found.forward_headers) or ()
    return msgspec.structs.replace(
        found,
        name=rules.name(_or(body.name, found.name)),
        upstream_url=_or(body.upstream_url, found.upstream_url),
        auth_type=auth_type,
        auth_header_name=header,
        headers=rules.headers(fixed, header),
        forward_headers=rules.forward_headers(forward, header, fixed),
        ca_pem=rules.ca_pem(_or(body.ca_pem, found.ca_pem)),
        max_in_flight=_or(body.max_in_flight, found.max_in_flight),
        enabled=_or(body.enabled, found.enabled),
        active_version=0 if auth_type is AuthType.NONE else found.active_version,
        updated_at=now,
    )


def _needed(auth_type: AuthType, secret: bytes | None) -> None:
    if auth_type is AuthType.NONE and secret is not None:
        raise refuse("credential", "is refused with authType none")
    if auth_type is not AuthType.NONE and secret is None:
        raise refuse("credential", f"is needed with authType {auth_type.value}", "credential_required")


def _bound(connection: Connection) -> object:
    """What its credential is bound to, version apart."""
    return credential_binding(connection, 0, parsed(connection.upstream_url).origin)


def _or(given: Any, kept: Any) -> Any:
    return kept if given is UNSET else given
