"""`keystile key`: API keys."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from keystile import mint
from keystile.commands.output import as_json, remark, table, warned
from keystile.commands.session import Json, Yes, api, sure
from keystile.model import Role

app = typer.Typer(help="API keys: generate, create, list, revoke.", no_args_is_help=True)


@app.command()
def generate() -> None:
    """Print a well-formed key without storing it, for KEYSTILE_BOOTSTRAP_KEY."""
    sys.stdout.write(mint.new_api_key() + "\n")


@app.command()
def create(  # noqa: PLR0913 — one parameter an option
    name: Annotated[str, typer.Argument(help="What the key is for.", show_default=False)],
    *,
    role: Annotated[Role, typer.Option(help="What it may do.")] = Role.CLIENT,
    connection: Annotated[list[str] | None, typer.Option(help="A slug it may call; repeat for more.")] = None,
    expires_at: Annotated[str | None, typer.Option(help="RFC 3339: 2030-01-01T00:00:00Z.")] = None,
    pinned_user: Annotated[str | None, typer.Option(help="The user every call of it counts as.")] = None,
    scripts: Json = False,
) -> None:
    """Create a key and print it, this once."""
    given: dict[str, object] = {"expires_at": expires_at, "pinned_user": pinned_user}
    if connection:
        given["connections"] = connection
    given = {field: value for field, value in given.items() if value is not None}
    made = warned(api().keys.create(name, role, **given))
    if scripts:
        as_json(made)
        return
    remark(f"{made['role']} key {made['id']}, shown this once:")
    sys.stdout.write(made["key"] + "\n")


@app.command("list")
def list_(*, scripts: Json = False) -> None:
    """List the live keys."""
    columns = ("id", "name", "role", "connections", "pinnedUser", "expiresAt", "lastUsedAt")
    table(api().keys.list(), columns, scripts=scripts)


@app.command()
def revoke(
    key_id: Annotated[str, typer.Argument(help="The key's id.", show_default=False)], *, yes: Yes = False
) -> None:
    """Revoke a key: it is refused from the next request on."""
    sure(f"Revoke key {key_id}?", yes=yes)
    api().keys.revoke(key_id)
    remark(f"Revoked {key_id}.")
