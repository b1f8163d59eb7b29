"""What commands print, and how they read secrets."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    from keystile.client import Answered

Row = Mapping[str, Any]

_PIPE_WIDTH = 10_000


def complain(error: str | None, hint: str | None = None) -> None:
    """An `error:` line and a `hint:` line on standard error."""
    for word, text in (("error", error), ("hint", hint)):
        if text:
            sys.stderr.write(f"{word}: {text}\n")


def remark(text: str) -> None:
    """A line for people, on standard error."""
    sys.stderr.write(f"{text}\n")


def warned(made: Answered) -> Answered:
    """What was made, after saying on standard error what of it may surprise."""
    for warning in made.warnings:
        remark(f"warning: {warning}")
    return made


def as_json(value: object) -> None:
    """A value for scripts. All but ASCII is escaped: it may be shown at a terminal, and holds what others said."""
    sys.stdout.write(json.dumps(value, indent=2) + "\n")


def table(rows: Iterable[Row], columns: Sequence[str], *, scripts: bool) -> None:
    """Rows as a table, or as JSON for scripts. A column is a field of the API."""
    if scripts:
        as_json(list(rows))
        return
    from rich.console import Console  # noqa: PLC0415 — `keystile key generate` does not wait for it
    from rich.table import Table  # noqa: PLC0415 — the same

    drawn = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        drawn.add_column(column, overflow="fold")
    for row in rows:
        drawn.add_row(*(_cell(row[column]) for column in columns))
    # A pipe has no width: rows stay whole for grep and cut.
    width = None if sys.stdout.isatty() else _PIPE_WIDTH
    console = Console(markup=False, highlight=False, emoji=False, width=width)
    console.print(drawn)


def record(row: Row, *, scripts: bool) -> None:
    """One row, a line a field, or as JSON for scripts."""
    if scripts:
        as_json(row)
        return
    width = max(map(len, row), default=0)
    for name, value in row.items():
        sys.stdout.write(f"{name:<{width}}  {_cell(value)}\n")


def secret(name: str, *, from_stdin: bool) -> str:
    """A secret from standard input, or from a prompt that shows nothing."""
    if from_stdin:
        return sys.stdin.read().removesuffix("\n").removesuffix("\r")
    if not sys.stdin.isatty():
        raise typer.BadParameter(f"There is no terminal to ask for the {name} at. Pipe it in with --{name}-stdin.")
    return typer.prompt(name.capitalize(), hide_input=True)


def _cell(value: object) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    text = str(value) if isinstance(value, str | int | float) else json.dumps(value, ensure_ascii=False)
    # An upstream's or a client's words must not move the cursor of whoever reads them.
    return "".join(letter if letter.isprintable() else "?" for letter in text)
