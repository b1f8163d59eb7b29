"""`keystile events`: the trail."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated

import typer

from keystile.commands.output import Row, table
from keystile.commands.session import Json, api

_COLUMNS = ("time", "connection", "keyId", "user", "method", "name", "outcome", "refusal", "status", "totalMs")


def events(  # noqa: PLR0913 — one parameter an option
    *,
    connection: Annotated[str | None, typer.Option(help="Of this connection alone.")] = None,
    trace_id: Annotated[str | None, typer.Option(help="Of this trace alone.")] = None,
    since: Annotated[str | None, typer.Option(help="RFC 3339: at this time or later.")] = None,
    until: Annotated[str | None, typer.Option(help="RFC 3339: before this time.")] = None,
    limit: Annotated[int, typer.Option(min=1, help="How many.")] = 50,
    scripts: Json = False,
) -> None:
    """Show what was called, newest first."""
    found: Iterable[Row] = api().events.list(limit, connection=connection, trace_id=trace_id, since=since, until=until)
    # A GET or DELETE has no message, and so no method of MCP's.
    shown = found if scripts else ({**row, "method": row["rpcMethod"] or row["httpMethod"]} for row in found)
    table(shown, _COLUMNS, scripts=scripts)
