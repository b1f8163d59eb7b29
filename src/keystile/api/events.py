"""The trail: one event for every exchange, newest first, visible within a second."""

from __future__ import annotations

import re
from collections.abc import Collection

import msgspec

from keystile.api.answers import Answer
from keystile.api.call import Call
from keystile.api.shapes import EventQuery
from keystile.api.times import milliseconds, moment
from keystile.api.views import EventView
from keystile.audit.event import Event
from keystile.errors import Invalid, Missing
from keystile.model import Metadata
from keystile.store import connections

_CURSOR = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}")
_metadata = msgspec.json.Decoder(Metadata)


async def list_events(call: Call[None, EventQuery]) -> Answer:
    """Read the trail.

    Newest first. A developer reads the events of the connections it made.
    """
    query, caller = call.query, call.caller
    if query.cursor is not None and not _CURSOR.fullmatch(query.cursor):
        raise Invalid("`cursor` is not one that a page of this list gave.", "cursor_invalid", field="cursor")
    rows, cursor = await call.house.ledger.events(
        caller.organization,
        among=await _among(call),
        trace=query.trace_id,
        since=None if query.since is None else max(0, milliseconds(query.since)),
        until=None if query.until is None else max(0, milliseconds(query.until)),
        limit=query.limit,
        cursor=query.cursor,
    )
    return Answer(data=[view(row) for row in rows], paged=True, cursor=cursor)


async def _among(call: Call[None, EventQuery]) -> Collection[str] | None:
    """The ids of the connections whose events are asked for and may be shown; None means all."""
    caller, slug = call.caller, call.query.connection
    async with call.house.database.read() as conn:
        own = await connections.made_by(conn, caller.organization, caller.key.id) if caller.own_only else None
        found = None if slug is None else await connections.find(conn, caller.organization, slug)
    if slug is None:
        return own
    # A connection's events outlive it: what an auditor asks for may be what was deleted a moment ago.
    named = await call.house.ledger.called(caller.organization, slug)
    if found is not None:
        named.add(found.id)
    shown = named if own is None else named.intersection(own)
    if not shown:
        raise Missing("Your organization has no connection of this slug, and no events of one.")
    return shown


def view(row: Event) -> EventView:
    """What the API shows of an event: all of it."""
    return EventView(
        id=row.id,
        time=moment(row.at),
        connection=row.slug,
        connection_id=row.connection,
        key_id=row.key,
        user=row.user,
        trace_id=row.trace,
        metadata=None if row.metadata is None else _metadata.decode(row.metadata),
        address=row.address,
        http_method=row.http_method,
        rpc_method=row.rpc_method,
        name=row.name,
        protocol_version=row.protocol,
        outcome=row.outcome,
        refusal=row.refusal,
        credential_version=row.credential_version,
        status=row.status,
        upstream_status=row.upstream_status,
        bytes_in=row.bytes_in,
        bytes_out=row.bytes_out,
        total_ms=_micro(row.total_ms),
        first_byte_ms=_micro(row.first_byte_ms),
        gateway_ms=_micro(row.gateway_ms),
        redacted=row.redacted,
        count=row.count,
    )


def _micro(ms: float | None) -> float | None:
    """Whole microseconds: what is beyond them is noise of the clock."""
    return None if ms is None else round(ms, 3)
