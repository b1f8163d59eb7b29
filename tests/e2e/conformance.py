"""The official conformance suite, run against a URL: every single check and its verdict.

The suite's exit code says too little: it is 0 for a proxy that blocks GET or drops `Mcp-Method`. So this reads every
`checks.json` it writes. `python -m tests.e2e.conformance URL [KEY]` prints what it found.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import urlsplit

import msgspec
import yaml

from tests.peers.processes import MODULES, NODE, ROOT

SUITE = MODULES / "@modelcontextprotocol/conformance"
REVISIONS = ("2025-11-25", "2026-07-28")
TIMEOUT = 240  # seconds for one revision; a run takes about three
_FOLDER = re.compile(r"server-(.+)-\d{4}-\d\d-\d\dT[\d-]+Z")


class Check(msgspec.Struct, frozen=True, order=True):
    """One check of one scenario. `scored` as the revision's frozen list has it."""

    scenario: str
    id: str
    status: str
    scored: bool
    message: str = ""

    @property
    def verdict(self) -> tuple[str, str, str]:
        """What must not change when a gateway stands between."""
        return self.scenario, self.id, self.status


class _Line(msgspec.Struct):
    id: str
    status: str
    error_message: str | None = msgspec.field(name="errorMessage", default=None)


def run(url: str, revision: str, key: str | None = None) -> list[Check]:
    """Every check of the revision's requirements, at that revision's wire, sorted. `key` is sent as a bearer token."""
    environment = dict(os.environ)
    if key is not None:
        parts = urlsplit(url)
        environment |= {
            "NODE_OPTIONS": f"--import {(ROOT / 'tests/peers/node/bearer.mjs').as_uri()}",
            "GATEWAY_ORIGIN": f"{parts.scheme}://{parts.netloc}",
            "GATEWAY_KEY": key,
        }
    with tempfile.TemporaryDirectory() as folder:
        command = [NODE, SUITE / "dist/index.js", "server", "--url", url, "--requirements", revision, "-o", folder]
        subprocess.run(
            command, cwd=ROOT, env=environment, capture_output=True, timeout=TIMEOUT, check=False
        )  # the exit code is 1 when an unscored scenario fails, too
        return sorted(_read(Path(folder), scored_scenarios(revision)))


def scored_scenarios(revision: str) -> frozenset[str]:
    """The server scenarios that count for a revision."""
    requirements = yaml.safe_load((SUITE / f"requirements/{revision}.yaml").read_text())
    return frozenset(requirements["server"])


def _read(folder: Path, scored: frozenset[str]) -> list[Check]:
    checks: list[Check] = []
    ran: set[str] = set()
    for written in folder.glob("*/checks.json"):
        found = _FOLDER.fullmatch(written.parent.name)
        assert found, written
        scenario = found[1]
        ran.add(scenario)
        checks += [
            Check(scenario, line.id, line.status, scenario in scored, line.error_message or "")
            for line in msgspec.json.decode(written.read_bytes(), type=list[_Line])
        ]
    assert scored <= ran, f"scenarios that did not run: {sorted(scored - ran)}"
    return checks


def tally(checks: Sequence[Check], *, scored: bool) -> Counter[str]:
    """How many checks of that kind ended with each status."""
    return Counter(check.status for check in checks if check.scored is scored)


def main() -> None:
    url, *key = sys.argv[1:]
    for revision in REVISIONS:
        checks = run(url, revision, *key)
        sys.stdout.write(f"{revision}: scored {dict(tally(checks, scored=True))}\n")
        sys.stdout.write(f"{revision}: not scored {dict(tally(checks, scored=False))}\n")
        for check in checks:
            if check.status not in {"SUCCESS", "INFO"}:
                sys.stdout.write(f"  {check.status} {check.scenario} {check.id}: {check.message[:160]}\n")


if __name__ == "__main__":
    main()
