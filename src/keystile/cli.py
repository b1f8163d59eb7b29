"""The command line. `keystile --help` shows every command.

Rules: secrets come from a prompt or standard input, never from the arguments, where every process of the machine reads
them. What was asked for goes to standard output, everything else to standard error. Failures are an `error:` line and a
`hint:` line. Exit codes: 0 done, 1 refused or failed, 2 wrong usage, 78 wrong configuration (sysexits' EX_CONFIG),
130 interrupted.
"""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from keystile import __version__
from keystile.commands import connection, events, key, node, organization
from keystile.commands.output import complain, remark
from keystile.config import ConfigError
from keystile.errors import KeystileError, StartRefused
from keystile.node import REFUSED

FAILED, INTERRUPTED = 1, 130
_LONG = 12  # characters; commands and most slips in them are shorter

HINTS = {
    "unauthenticated": "Set KEYSTILE_API_KEY to a key that is not a client's.",
    "denied": "Use a key of a higher role: keystile key create --role admin",
    "host_unreachable": "Start it, or name its data folder: --data-dir, or KEYSTILE_DATA_DIR.",
    "unreachable": "Is the gateway running? Set KEYSTILE_BASE_URL if it is not at http://127.0.0.1:8080.",
    "credential_required": "Give the credential at the prompt, or with --credential-stdin.",
    "address_refused": "Set KEYSTILE_UPSTREAMS_ALLOW for the gateway, as docs/config.md shows.",
    "slug_taken": "Choose another slug, or change the one that is there.",
    "missing": "See what there is with the list command.",
}
"""What to do about an error, by its code."""

app = typer.Typer(
    help="Keystile: a gateway that keeps real credentials out of MCP clients.",
    epilog="Remote commands read KEYSTILE_API_KEY and KEYSTILE_BASE_URL. Exit codes: 0 done, 1 refused or failed, "
    "2 wrong usage, 78 wrong configuration.",
    no_args_is_help=True,
    invoke_without_command=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)


@app.callback()
def _entered(
    *,
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    if version:
        sys.stdout.write(f"keystile {__version__}\n")
        raise typer.Exit


app.command("init")(node.init)
app.command("serve")(node.serve)
app.command("doctor")(node.doctor)
app.add_typer(key.app, name="key")
app.add_typer(connection.app, name="connection")
app.add_typer(organization.app, name="organization")
app.command("events")(events.events)


def main() -> None:
    """Run the command line and exit."""
    sys.exit(run())


def run() -> int:
    """Run the command line; the exit code."""
    try:
        return app(standalone_mode=False) or 0
    except typer.TyperException as error:
        context = getattr(error, "ctx", None)
        command = context.command_path if context else "keystile"
        said = _said(error)
        if said.startswith("Usage:"):  # a group without a command is asked what there is
            remark(said)
        else:
            complain(said, f"{command} --help says what it takes.")
        return error.exit_code
    except typer.Exit as error:
        return error.exit_code
    except typer.Abort:
        complain("interrupted")
        return INTERRUPTED
    except ConfigError as error:
        for problem in error.problems:
            complain(problem)
        complain(None, "docs/config.md has every setting.")
        return REFUSED
    except StartRefused as error:
        complain(error.message, "keystile doctor says more.")
        return REFUSED
    except KeystileError as error:
        complain(error.message, HINTS.get(error.code))
        return FAILED


def _said(error: typer.TyperException) -> str:
    """What is wrong with the usage. No long word that was typed is repeated: it may be a secret out of place."""
    message = error.format_message()
    if message.startswith("Got unexpected extra argument"):
        return "There are more arguments than this command takes."
    for word in sys.argv[1:]:
        for typed in (word, word.partition("=")[2]):
            if len(typed) >= _LONG and not typed.startswith("--"):
                message = message.replace(typed, "…")
    return message
