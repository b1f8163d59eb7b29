"""Probe a connection's upstream, with the active credential or a candidate that is not stored.

A probe that fails is a successful check: the answer is 200 with `ok: false`, and a code that says what is wrong.
"""

from __future__ import annotations

from keystile.api import rules
from keystile.api.answers import Answer
from keystile.api.call import Call, refuse
from keystile.api.connections import visible
from keystile.api.probe import Found, Probe
from keystile.api.route import Nothing
from keystile.api.shapes import CheckConnection
from keystile.api.upstreams import parsed
from keystile.api.views import CheckView
from keystile.dial import DialError
from keystile.errors import REFUSALS, Refusal
from keystile.model import AuthType, Connection, Secret

_HEADER_SENT = {AuthType.BEARER: "Authorization", AuthType.NONE: None}


async def check_connection(call: Call[CheckConnection, Nothing]) -> Answer:
    """Probe the upstream.

    It is asked for MCP `server/discover`, else `initialize`; nothing is stored and no redirect is followed.
    """
    house = call.house
    async with house.database.read() as conn:
        connection = await visible(call, conn)
        credential = await house.vault.reveal(conn, connection)
    if call.body.credential is not None:
        if connection.auth_type is AuthType.NONE:
            raise refuse("credential", "is refused with authType none")
        credential = Secret(rules.credential(call.body.credential))
    try:
        found = await Probe(connection, parsed(connection.upstream_url), credential, house.reach).run()
    except DialError as error:
        found = _failed(error.refusal, error.reason or None)
    except TimeoutError:
        found = _failed(REFUSALS["upstream_timeout"])
    return Answer(data=_view(found, connection))


def _failed(refusal: Refusal, reason: str | None = None) -> Found:
    return Found(code=refusal.code, message=refusal.message, reason=reason)


def _view(found: Found, connection: Connection) -> CheckView:
    sent = _HEADER_SENT.get(connection.auth_type, connection.auth_header_name)
    return CheckView(
        ok=found.code is None,
        method=found.method,
        status=found.status,
        protocol_version=found.version,
        server_name=found.server,
        server_version=found.server_version,
        latency_ms=found.latency_ms,
        header_sent=None if found.status is None else sent,
        code=found.code,
        message=found.message,
        reason=found.reason,
    )
