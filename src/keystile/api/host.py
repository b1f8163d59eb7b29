"""What only the host's operator may do: organizations, and keys in them. Served on a socket of its own.

Rules: `run/host.sock` is never relayed by a worker; a peer is asked of the kernel for its user (SO_PEERCRED), and is
cut off unless it is root or the user Keystile runs as. Whoever holds that user holds the data folder anyway.
"""

from __future__ import annotations

import asyncio
import os
import socket
import struct
from typing import Any, cast

from litestar.types import ASGIApp, Receive, Scope, Send
from sqlalchemy.ext.asyncio import AsyncConnection
from uvicorn.protocols.http.h11_impl import H11Protocol

from keystile import mint
from keystile.api import keys, rules
from keystile.api.answers import Answer
from keystile.api.app import routed
from keystile.api.call import Call, refuse
from keystile.api.gate import Caller
from keystile.api.house import House
from keystile.api.route import Nothing, Route
from keystile.api.shapes import CreateKey, CreateOrganization
from keystile.api.times import milliseconds, moment
from keystile.api.views import NewKeyView, NewOrganizationView, OrganizationView
from keystile.core import apikey
from keystile.errors import Missing
from keystile.model import ApiKey, Organization, Role
from keystile.store import connections, organizations
from keystile.store import keys as stored_keys

BASE = "/host/v1"

_UCRED = struct.Struct("3i")  # pid, uid, gid: unix(7)
_OPERATOR = Caller(
    ApiKey(id="host", organization="", name="the host's operator", role=Role.OWNER, digest=b"", created_at=0)
)


async def create_organization(call: Call[CreateOrganization, Nothing]) -> Answer:
    """Create an organization with its first data key and its first admin key, which is shown this once."""
    body, house, now, shown = call.body, call.house, call.house.now(), mint.new_api_key()
    made = Organization(
        id=mint.new_id(),
        slug=rules.slug(body.slug),
        name=rules.name(body.name) if body.name is not None else body.slug,
        created_at=now,
    )
    admin = ApiKey(
        id=mint.new_id(),
        organization=made.id,
        name="first admin key",
        role=Role.ADMIN,
        digest=apikey.digest(shown.encode("ascii")),
        created_at=now,
    )
    async with house.publisher.change() as tx:
        await organizations.insert(tx.connection, made)
        await house.vault.add_organization(tx, made.id)
        await stored_keys.insert(tx.connection, admin)
        tx.put(admin)
    return Answer(
        data=NewOrganizationView(
            id=made.id, slug=made.slug, name=made.name, created_at=moment(made.created_at), key=shown
        )
    )


async def list_organizations(call: Call[None, Nothing]) -> Answer:
    """List the organizations, oldest first."""
    async with call.house.database.read() as conn:
        rows = await organizations.every(conn)
    views = [
        OrganizationView(id=row.id, slug=row.slug, name=row.name, created_at=moment(row.created_at)) for row in rows
    ]
    return Answer(data=views, paged=True)


async def create_organization_key(call: Call[CreateKey, Nothing]) -> Answer:
    """Create a key in an organization: the way back in when every admin key is lost."""
    body, now, shown = call.body, call.house.now(), mint.new_api_key()
    expires_at = milliseconds(body.expires_at) if body.expires_at is not None else None
    if expires_at is not None and expires_at <= now:
        raise refuse("expiresAt", "must lie ahead")
    async with call.house.publisher.change() as tx:
        organization = await organizations.find_slug(tx.connection, call.path["slug"])
        if organization is None:
            raise Missing("There is no organization of this slug.")
        key = ApiKey(
            id=mint.new_id(),
            organization=organization.id,
            name=rules.name(body.name),
            role=body.role,
            digest=apikey.digest(shown.encode("ascii")),
            created_at=now,
            expires_at=expires_at,
            connections=await _scope(tx.connection, organization.id, body.connections),
            pinned_user=rules.pinned_user(body.pinned_user),
        )
        await stored_keys.insert(tx.connection, key)
        slugs = await connections.slugs(tx.connection, key.connections or ())
        tx.put(key)
    return Answer(data=keys.made(key, slugs, shown))


ROUTES: tuple[Route, ...] = (
    Route(
        method="POST",
        path="/organizations",
        handler=create_organization,
        tag="organizations",
        summary="Create an organization",
        body=CreateOrganization,
        answer=NewOrganizationView,
        status=201,
        errors=(409,),
    ),
    Route(
        method="GET",
        path="/organizations",
        handler=list_organizations,
        tag="organizations",
        summary="List organizations",
        answer=OrganizationView,
        paged=True,
    ),
    Route(
        method="POST",
        path="/organizations/{slug}/keys",
        handler=create_organization_key,
        tag="organizations",
        summary="Create a key in an organization",
        body=CreateKey,
        answer=NewKeyView,
        status=201,
    ),
)


def application(house: House) -> ASGIApp:
    """The host operator's ASGI application."""
    router = routed(house, ROUTES, BASE)

    async def serve(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            scope["state"]["caller"] = _OPERATOR
        await router(scope, receive, send)

    return serve


class PeerProtocol(H11Protocol):
    """uvicorn's HTTP protocol for peers that the kernel says are root or ourselves; others are cut off unheard."""

    _let_in = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Ask the kernel who connected."""
        self._let_in = trusted(cast("socket.socket", transport.get_extra_info("socket")))
        if self._let_in:
            super().connection_made(transport)
        else:
            transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget who was let in; of others nothing is known."""
        if self._let_in:
            super().connection_lost(exc)


def trusted(peer: Any) -> bool:
    """Whether the process at the other end of a unix socket runs as root or as our own user."""
    credentials = peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size)
    _, user, _ = _UCRED.unpack(credentials)
    return user in {0, os.geteuid()}


async def _scope(conn: AsyncConnection, organization: str, slugs: tuple[str, ...] | None) -> tuple[str, ...] | None:
    if slugs is None:
        return None
    ids: dict[str, None] = {}
    for slug in slugs:
        found = await connections.find(conn, organization, slug)
        if found is None:
            raise refuse("connections", "names a connection that this organization does not have")
        ids[found.id] = None
    return tuple(ids)
