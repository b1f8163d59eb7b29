"""The README's walk-through, run as it is written: its fenced commands, in order, in one shell each.

Replaced in them: the ports, the admin key, and the client key, once the walk-through has made one.
"""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from keystile.api.client_config import PLACEHOLDER
from tests.peers.gateway import Gateway, gateway
from tests.peers.processes import PATIENCE, ROOT, inherited, process, said

TEXT = (ROOT / "README.md").read_text()
FIXTURE = ".venv/bin/python -m tests.peers.fixture --port 9000"
GITHUB = "https://mcp.github.com"


def commands(heading: str) -> list[str]:
    """The commands of the section's fenced blocks."""
    section = re.split(rf"^## {re.escape(heading)}$", TEXT, flags=re.MULTILINE)[1].split("\n## ")[0]
    blocks = re.findall(r"^```sh\n(.*?)^```$", section, re.MULTILINE | re.DOTALL)
    return [
        command
        for block in blocks
        for command in ([block] if "curl" in block else block.splitlines())
        if command.strip()
    ]


class Reader:
    """Somebody who follows the README, with the keys that it gave so far."""

    def __init__(self, running: Gateway, fixture_port: str) -> None:
        self.client_key = PLACEHOLDER
        self.running = running
        self._fixture_port = fixture_port

    def __repr__(self) -> str:
        return f"<Reader at {self.running.url}>"

    def types(self, command: str, given: str | None = None) -> str:
        """Run it in a shell; what it prints. An error if it fails, or if the gateway refuses."""
        typed = command.replace("127.0.0.1:8080", f"127.0.0.1:{self.running.port}")
        typed = typed.replace("127.0.0.1:9000", f"127.0.0.1:{self._fixture_port}").replace(PLACEHOLDER, self.client_key)
        done = subprocess.run(
            ["/bin/sh", "-c", typed],
            cwd=ROOT,
            env=inherited()
            | {
                "KEYSTILE_API_KEY": self.running.admin_key,
                "KEYSTILE_BASE_URL": self.running.url,
                # What its own terminal and `make run` take from their defaults
                "KEYSTILE_DATA_DIR": str(self.running.data),
                "KEYSTILE_PORT": str(self.running.port),
                # How many descriptors this machine has is no matter of the README's
                "KEYSTILE_LIMITS_SOCKETS": "100",
            },
            input=given,
            stdin=subprocess.DEVNULL if given is None else None,
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=False,
        )
        assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
        assert '"error"' not in done.stdout, f"{command}\n{done.stdout}"
        return done.stdout


@pytest.fixture
def reader(tmp_path: Path) -> Iterator[Reader]:
    assert commands("No MCP server at hand?") == ["make peers", FIXTURE]
    words = FIXTURE.replace("9000", "0").split()
    with process([ROOT / words[0], *words[1:]]) as fixture, gateway(tmp_path) as running:
        yield Reader(running, said(fixture, "ready "))


def test_a_newcomer_gets_through_the_walk_through(reader: Reader) -> None:
    first, *steps = commands("A first connection")
    assert first == "export KEYSTILE_API_KEY=ks_YOUR_ADMIN_KEY"
    shown: list[str] = []
    for command in steps:
        if "/api/v1/events" in command:  # somebody who types is slower than the trail
            reader.running.events(1, connection="first")
        shown.append(reader.types(command))
        if "/api/v1/keys" in command:
            reader.client_key = json.loads(shown[-1])["data"]["key"]
    created, _, config, same_config, called, rotated, events, listed, trail, doctor = shown
    assert json.loads(created)["data"]["slug"] == "first"
    assert json.loads(config) == json.loads(same_config)
    assert reader.client_key not in config and PLACEHOLDER in config
    assert "This is a simple text response" in called
    assert json.loads(rotated)["data"]["credentialVersion"] == 2
    assert [row["name"] for row in json.loads(events)["data"]] == ["test_simple_text"]
    assert "first" in listed and "test_simple_text" in trail
    assert "problem" not in doctor


def test_a_real_server_is_connected_as_the_example_says(reader: Reader) -> None:
    example, create, check, rotate = commands("A real server")
    # The example has no network here, and needs none: a name that does not resolve is accepted.
    assert GITHUB in example
    assert json.loads(reader.types(example))["data"]["hasCredential"] is True
    here = create.replace("https://mcp.example.com/mcp", "http://127.0.0.1:9000/mcp")
    assert "my-server" in reader.types(f"{here} --credential-stdin", "made-up\n")
    assert re.search(r"^ok +yes$", reader.types(check), re.MULTILINE)
    assert "credentialVersion  2" in reader.types(f"{rotate} --credential-stdin", "made-up-too\n")
