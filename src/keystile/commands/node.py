"""`keystile init`, `serve` and `doctor`: the gateway on this machine."""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from keystile import config
from keystile.commands.output import remark
from keystile.config import Config

DataDir = Annotated[str | None, typer.Option(help="Folder of database, ledger, spool and root key file.")]
ConfigFile = Annotated[Path | None, typer.Option("--config", help="Configuration file (TOML): see docs/config.md.")]


def init(data_dir: DataDir = None, file: ConfigFile = None) -> None:
    """Make an installation in an empty data folder: root key, database, first admin key. `serve` does it too."""
    from keystile.initialise import initialise  # noqa: PLC0415 — other commands do not wait for the database

    settings = config.load(os.environ, file, {"data_dir": data_dir})
    first = asyncio.run(initialise(settings))
    where = Path(settings.data_dir).absolute()
    if first is None:
        remark(f"{where} holds data already, and is left as it is.")
    elif first.given:
        remark(f"Made an installation in {where}. Its admin key is KEYSTILE_BOOTSTRAP_KEY.")
    else:
        remark(f"Made an installation in {where}. Keep root.key safe: without it no credential opens.")
        remark("The admin key, shown this once:")
        sys.stdout.write(first.key.reveal().decode("ascii") + "\n")


def serve(
    host: Annotated[str | None, typer.Option(help="Address to listen on.")] = None,
    port: Annotated[int | None, typer.Option(help="Port to listen on.")] = None,
    workers: Annotated[int | None, typer.Option(help="Gateway workers.")] = None,
    data_dir: DataDir = None,
    file: ConfigFile = None,
) -> None:
    """Serve until SIGTERM. An empty data folder is initialised first.

    Settings: defaults, then the file, then KEYSTILE_ variables, then these flags. docs/config.md has them all.
    """
    from keystile import serve as supervisor  # noqa: PLC0415 — other commands do not wait for it

    flags = {"host": host, "port": port, "workers": workers, "data_dir": data_dir}
    raise typer.Exit(supervisor.run(config.load(os.environ, file, flags)))


def doctor(data_dir: DataDir = None, file: ConfigFile = None) -> None:
    """Check root key, database, spool, port and upstream addresses, and say what to do. Exit code 1 on problems."""
    from keystile.doctor import Finding, examine  # noqa: PLC0415 — other commands do not wait for the database

    settings: Config = config.load(os.environ, file, {"data_dir": data_dir})
    findings: list[Finding] = asyncio.run(examine(settings))
    for finding in findings:
        sys.stdout.write(f"{'ok' if finding.remedy is None else 'problem':<8} {finding.what}: {finding.said}\n")
        if finding.remedy is not None:
            sys.stdout.write(f"{'':<8} do: {finding.remedy}\n")
    if any(finding.remedy is not None for finding in findings):
        raise typer.Exit(1)
