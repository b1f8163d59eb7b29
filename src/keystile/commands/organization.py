"""`keystile organization`: on the host alone, over the node's own socket."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from keystile import config
from keystile.commands.output import as_json, remark, table
from keystile.commands.session import Json
from keystile.errors import Unavailable
from keystile.model import Role
from keystile.node import Folders, is_locked, reachable

if TYPE_CHECKING:
    from keystile.client import Host

app = typer.Typer(help="Organizations, on the machine the gateway runs on.", no_args_is_help=True)

DataDir = Annotated[str | None, typer.Option(help="The gateway's data folder.")]
ConfigFile = Annotated[Path | None, typer.Option("--config", help="The gateway's configuration file (TOML).")]
OrganizationSlug = Annotated[str, typer.Argument(help="The organization's slug.", show_default=False)]


@app.command()
def create(
    slug: OrganizationSlug,
    *,
    name: Annotated[str | None, typer.Option(help="For people; the slug, when left out.")] = None,
    data_dir: DataDir = None,
    file: ConfigFile = None,
    scripts: Json = False,
) -> None:
    """Create an organization and print its first admin key, this once."""
    made = _host(data_dir, file).create_organization(slug, **({"name": name} if name else {}))
    _print_key(made, f"Organization {made['slug']} ({made['id']}). Its admin key, shown this once:", scripts=scripts)


@app.command("list")
def list_(*, data_dir: DataDir = None, file: ConfigFile = None, scripts: Json = False) -> None:
    """List the organizations."""
    table(_host(data_dir, file).organizations(), ("id", "slug", "name", "createdAt"), scripts=scripts)


@app.command()
def key(  # noqa: PLR0913 — one parameter an option
    slug: OrganizationSlug,
    *,
    name: Annotated[str, typer.Option(help="What the key is for.")] = "made on the host",
    role: Annotated[Role, typer.Option(help="What it may do.")] = Role.ADMIN,
    data_dir: DataDir = None,
    file: ConfigFile = None,
    scripts: Json = False,
) -> None:
    """Create a key in an organization: the way back in when every admin key is lost."""
    made = _host(data_dir, file).create_key(slug, name, role=role)
    _print_key(made, f"{made['role']} key {made['id']}, shown this once:", scripts=scripts)


def _print_key(made: dict[str, object], said: str, *, scripts: bool) -> None:
    if scripts:
        as_json(made)
        return
    remark(said)
    sys.stdout.write(f"{made['key']}\n")


def _host(data_dir: str | None, file: Path | None) -> Host:
    from keystile.client import Host  # noqa: PLC0415 — `keystile key generate` does not wait for it

    folders = Folders(config.load(os.environ, file, {"data_dir": data_dir}).data_dir)
    if not is_locked(folders.lock):
        raise Unavailable(f"No gateway of this machine serves the data folder {folders.data}.", "host_unreachable")
    return Host(reachable(folders.host_socket))
