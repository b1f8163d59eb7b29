"""The SDK, when a command needs it, and the options that many commands share."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from keystile.client import Keystile

Json = Annotated[bool, typer.Option("--json", help="Print JSON, for scripts.")]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]
Slug = Annotated[str, typer.Argument(help="The connection's slug.", show_default=False)]


def api() -> Keystile:
    """A client of the gateway that KEYSTILE_BASE_URL names."""
    from keystile.client import Keystile  # noqa: PLC0415 — commands that stay on this machine do not wait for it

    return Keystile()


def sure(question: str, *, yes: bool) -> None:
    """Go on only when the operator says so."""
    if yes:
        return
    if not sys.stdin.isatty():
        raise typer.BadParameter("There is no terminal to ask at. Say --yes to go on without being asked.")
    typer.confirm(question, abort=True)
