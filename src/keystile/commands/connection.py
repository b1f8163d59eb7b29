"""`keystile connection`: connections and their credentials."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from keystile.commands.output import as_json, complain, record, remark, secret, table, warned
from keystile.commands.session import Json, Slug, Yes, api, sure
from keystile.model import AuthType

app = typer.Typer(
    help="Connections: create, list, show, rotate, enable, disable, check, config, delete.", no_args_is_help=True
)

CredentialStdin = Annotated[
    bool, typer.Option("--credential-stdin", help="Read the credential from standard input, not from a prompt.")
]


@app.command()
def create(  # noqa: PLR0913 — one parameter an option
    slug: Slug,
    upstream_url: Annotated[str, typer.Argument(help="The upstream's MCP URL.", show_default=False)],
    *,
    name: Annotated[str | None, typer.Option(help="For people; the slug, when left out.")] = None,
    auth_type: Annotated[AuthType, typer.Option(help="How the credential is put on.")] = AuthType.BEARER,
    header: Annotated[str | None, typer.Option(help="The header's name, with --auth-type header.")] = None,
    forward_header: Annotated[list[str] | None, typer.Option(help="A client header that passes; repeat.")] = None,
    ca_pem: Annotated[Path | None, typer.Option(help="File with certificates to trust for this upstream.")] = None,
    credential_stdin: CredentialStdin = False,
    scripts: Json = False,
) -> None:
    """Create a connection. The credential is asked for, or read from standard input; it is never shown again."""
    fields: dict[str, object] = {
        "name": name,
        "auth_type": auth_type,
        "auth_header_name": header,
        "forward_headers": forward_header or None,
        "ca_pem": ca_pem.read_text() if ca_pem else None,
    }
    credential = None if auth_type is AuthType.NONE else secret("credential", from_stdin=credential_stdin)
    given = {field: value for field, value in fields.items() if value is not None}
    made = warned(api().connections.create(slug, upstream_url, credential=credential, **given))
    record(made, scripts=scripts)


@app.command("list")
def list_(*, scripts: Json = False) -> None:
    """List the connections."""
    columns = ("slug", "name", "upstreamUrl", "authType", "enabled", "credentialVersion", "rotatedAt")
    table(api().connections.list(), columns, scripts=scripts)


@app.command()
def show(slug: Slug, *, scripts: Json = False) -> None:
    """Show a connection. Its credential is shown to nobody."""
    record(api().connections.get(slug), scripts=scripts)


@app.command()
def rotate(slug: Slug, *, credential_stdin: CredentialStdin = False, scripts: Json = False) -> None:
    """Give a connection a new credential, active in every worker when this returns."""
    made = api().connections.rotate(slug, secret("credential", from_stdin=credential_stdin))
    record(made, scripts=scripts)


@app.command()
def disable(slug: Slug) -> None:
    """Refuse every call, and end open streams."""
    api().connections.disable(slug)
    remark(f"Disabled {slug}.")


@app.command()
def enable(slug: Slug) -> None:
    """Answer calls again."""
    api().connections.enable(slug)
    remark(f"Enabled {slug}.")


@app.command()
def delete(slug: Slug, *, yes: Yes = False) -> None:
    """Delete a connection with every version of its credential."""
    sure(f"Delete {slug} and its credential for good?", yes=yes)
    api().connections.delete(slug)
    remark(f"Deleted {slug}.")


@app.command()
def check(slug: Slug, *, credential_stdin: CredentialStdin = False, scripts: Json = False) -> None:
    """Probe the upstream, with a candidate credential from standard input if asked. Exit code 1 if it fails."""
    candidate = secret("credential", from_stdin=True) if credential_stdin else None
    found = api().connections.check(slug, candidate)
    record(found, scripts=scripts)
    if not found["ok"]:
        complain(str(found["message"]), f"docs/errors.md says more about {found['code']}.")
        raise typer.Exit(1)


@app.command()
def config(
    slug: Slug,
    *,
    client: Annotated[str, typer.Option(help="claude-code, cursor, vscode, opencode or generic.")] = "generic",
    scripts: Json = False,
) -> None:
    """Print what to paste into an MCP client."""
    found = api().connections.client_config(slug, client)
    if scripts:
        as_json(found)
        return
    place = f"Into {found['file']}" if found["file"] else "Into the client's configuration"
    remark(f"{place}, with a client key in place of {found['placeholder']}:")
    sys.stdout.write(f"{found['snippet']}\n")
    if found["command"]:
        remark(f"Or run:\n{found['command']}")
