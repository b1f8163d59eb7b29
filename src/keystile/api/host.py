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

import msgspec
from litestar.types import ASGIApp, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

from keystile import mint
from keystile.api import keys, rules
from keystile.api.answers import Answer
from keystile.api.app import routed
from keystile.api.call import Call, paged
from keystile.api.cursors import after_row, place
from keystile.api.gate import Caller
from keystile.api.house import House
from keystile.api.route import Nothing, Route
from keystile.api.shapes import CreateKey, CreateOrganization, Paging
from keystile.api.times import moment
from keystile.api.views import NewKeyView, NewOrganizationView, OrganizationView
from keystile.errors import Missing
from keystile.model import ApiKey, Organization, Role
from keystile.store import organizations

BASE = "/host/v1"

_UCRED = struct.Struct("3i")  # pid, uid, gid: unix(7)
_OPERATOR = Caller(
    ApiKey(id="host", organization="", name="the host's operator", role=Role.OWNER, digest=b"", created_at=0)
)


async def create_organization(call: Call[CreateOrganization, Nothing]) -> Answer:
    """Create an organization.

    It comes with its first data key and its first admin key, which is shown this once.
    """
    body, house, now = call.body, call.house, call.house.now()
    made = Organization(
        id=mint.new_id(),
        slug=rules.slug(body.slug),
        name=rules.name(body.name) if body.name is not None else body.slug,
        created_at=now,
    )
    async with house.publisher.change() as tx:
        await organizations.insert(tx.connection, made)
        await house.vault.add_organization(tx, made.id)
        admin = CreateKey(name="first admin key", role=Role.ADMIN)
        key = await keys.minted(tx, _within(made), admin, None, now)
    row = msgspec.structs.asdict(_view(made))
    return Answer(data=NewOrganizationView(key=key.data.key, **row))


async def list_organizations(call: Call[None, Paging]) -> Answer:
    """List organizations.

    Oldest first.
    """
    query = call.query
    async with call.house.database.read() as conn:
        rows = await organizations.page(conn, query.limit + 1, place(query.cursor))
    rows, last = paged(rows, query.limit)
    return Answer(data=[_view(row) for row in rows], paged=True, cursor=last and after_row(last))


async def create_organization_key(call: Call[CreateKey, Nothing]) -> Answer:
    """Create a key in an organization.

    This is the way back in when every admin key is lost.
    """
    async with call.house.publisher.change() as tx:
        organization = await organizations.find_slug(tx.connection, call.path["slug"])
        if organization is None:
            raise Missing("There is no organization of this slug.")
        return await keys.minted(tx, _within(organization), call.body, None, call.house.now())


# fmt: off
ROUTES: tuple[Route, ...] = (
    Route("POST", "/organizations", create_organization,
          body=CreateOrganization, answer=NewOrganizationView, status=201, errors=(409,)),
    Route("GET", "/organizations", list_organizations, query=Paging, answer=OrganizationView),
    Route("POST", "/organizations/{slug}/keys", create_organization_key,
          body=CreateKey, answer=NewKeyView, status=201),
)
# fmt: on


def _within(organization: Organization) -> ApiKey:
    """The operator as who gives a key in an organization."""
    return msgspec.structs.replace(_OPERATOR.key, organization=organization.id)


def _view(row: Organization) -> OrganizationView:
    return OrganizationView(id=row.id, slug=row.slug, name=row.name, created_at=moment(row.created_at))


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
