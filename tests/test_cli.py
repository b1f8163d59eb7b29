"""The command line as its users run it: a process, its output, its exit code."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from keystile import __version__
from keystile.core import apikey
from tests.peers.gateway import Gateway, gateway
from tests.peers.processes import ROOT

KEYSTILE = str(ROOT / ".venv/bin/keystile")


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    with gateway(tmp_path_factory.mktemp("cli")) as started:
        yield started


def run(*words: str, given: str | None = None, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [KEYSTILE, *words],
        input=given,
        stdin=subprocess.DEVNULL if given is None else None,
        env={"PATH": os.environ["PATH"], "HOME": "/nonexistent"} | environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


@pytest.fixture
def remote(running: Gateway) -> dict[str, str]:
    return {"KEYSTILE_API_KEY": running.admin_key, "KEYSTILE_BASE_URL": running.url}


def test_help_shows_every_command() -> None:
    for words in ([], ["key"], ["connection"], ["organization"]):
        shown = run(*words, "--help")
        assert shown.returncode == 0
        assert "Usage:" in shown.stdout


def test_a_generated_key_is_well_formed_and_new() -> None:
    keys = {run("key", "generate").stdout.strip() for _ in range(2)}
    assert len(keys) == 2
    assert all(apikey.well_formed(key.encode()) for key in keys)


def test_a_connections_life(remote: dict[str, str]) -> None:
    words = ("connection", "create", "cli-one", "http://127.0.0.1:9/mcp", "--credential-stdin", "--json")
    made = run(*words, given="made-up-1\n", **remote)
    assert made.returncode == 0, made.stderr
    assert json.loads(made.stdout)["hasCredential"] is True
    rotated = run("connection", "rotate", "cli-one", "--credential-stdin", given="made-up-2", **remote)
    assert "credentialVersion  2" in rotated.stdout
    assert "made-up" not in made.stdout + made.stderr + rotated.stdout + rotated.stderr
    listed = run("connection", "list", **remote)
    assert "cli-one" in listed.stdout
    assert "http://127.0.0.1:9/mcp" in listed.stdout
    assert run("connection", "disable", "cli-one", **remote).returncode == 0
    assert "enabled            no" in run("connection", "show", "cli-one", **remote).stdout
    assert run("connection", "enable", "cli-one", **remote).returncode == 0
    checked = run("connection", "check", "cli-one", **remote)
    assert checked.returncode == 1
    assert checked.stderr.startswith("error: The upstream could not be reached.\nhint: ")
    unasked = run("connection", "delete", "cli-one", given="y\n", **remote)
    assert unasked.returncode == 2 and "--yes" in unasked.stderr
    assert run("connection", "delete", "cli-one", "--yes", **remote).returncode == 0
    assert run("connection", "show", "cli-one", **remote).returncode == 1


def test_other_auth_types(remote: dict[str, str]) -> None:
    url = "http://127.0.0.1:9"
    none = run("connection", "create", "cli-none", url, "--auth-type", "none", "--json", **remote)
    assert json.loads(none.stdout)["hasCredential"] is False
    words = ("connection", "create", "cli-header", url, "--auth-type", "header", "--header", "X-Key")
    header = run(*words, "--forward-header", "X-A", "--credential-stdin", "--json", given="made-up", **remote)
    assert json.loads(header.stdout)["authHeaderName"] == "X-Key"
    assert json.loads(header.stdout)["forwardHeaders"] == ["X-A"]
    for slug in ("cli-none", "cli-header"):
        run("connection", "delete", slug, "--yes", **remote)


def test_keys(remote: dict[str, str]) -> None:
    made = run("key", "create", "laptop", "--role", "auditor", **remote)
    key = made.stdout.strip()
    assert apikey.well_formed(key.encode())
    assert key not in made.stderr
    listed = json.loads(run("key", "list", "--json", **remote).stdout)
    (row,) = [row for row in listed if row["name"] == "laptop"]
    assert run("events", "--json", **remote | {"KEYSTILE_API_KEY": key}).returncode == 0
    assert run("key", "revoke", row["id"], "--yes", **remote).returncode == 0
    refused = run("events", **remote | {"KEYSTILE_API_KEY": key})
    assert refused.returncode == 1
    assert refused.stderr == (
        "error: Show a valid Keystile key: Authorization: Bearer ks_…\n"
        "hint: Set KEYSTILE_API_KEY to a key that is not a client's.\n"
    )


def test_a_secret_is_never_an_argument(remote: dict[str, str]) -> None:
    refused = run("connection", "create", "cli-two", "http://127.0.0.1:9", "--credential", "made-up", **remote)
    assert refused.returncode == 2
    refused = run("connection", "create", "cli-two", "http://127.0.0.1:9", **remote)
    assert refused.returncode == 2
    assert "--credential-stdin" in refused.stderr


def test_at_a_terminal_a_credential_is_asked_for_and_not_echoed(remote: dict[str, str]) -> None:
    words = [KEYSTILE, "connection", "create", "cli-tty", "http://127.0.0.1:9"]
    child, terminal = pty.fork()
    if child == 0:
        os.execve(KEYSTILE, words, {"PATH": os.environ["PATH"], "TERM": "dumb"} | remote)  # noqa: S606 — our own command
    seen = b""
    while b"Credential: " not in seen:  # the space comes when the echo is off
        seen += os.read(terminal, 1024)
    os.write(terminal, b"made-up-typed\n")
    try:
        while data := os.read(terminal, 1024):
            seen += data
    except OSError:
        pass  # Linux says EIO when the other side of a terminal is gone
    _, status = os.waitpid(child, 0)
    os.close(terminal)
    assert os.waitstatus_to_exitcode(status) == 0, seen
    assert b"cli-tty" in seen
    assert b"made-up-typed" not in seen
    run("connection", "delete", "cli-tty", "--yes", **remote)


def test_organizations_on_the_host(running: Gateway) -> None:
    place = ("--data-dir", str(running.data))
    made = run("organization", "create", "cli-org", *place)
    assert made.returncode == 0, made.stderr
    remote = {"KEYSTILE_API_KEY": made.stdout.strip(), "KEYSTILE_BASE_URL": running.url}
    assert json.loads(run("connection", "list", "--json", **remote).stdout) == []
    assert "cli-org" in run("organization", "list", *place).stdout
    assert apikey.well_formed(run("organization", "key", "cli-org", *place).stdout.strip().encode())


def test_an_installation_is_made_once(tmp_path: Path) -> None:
    place = ("--data-dir", str(tmp_path / "data"))
    first = run("init", *place)
    assert first.returncode == 0
    assert apikey.well_formed(first.stdout.strip().encode())
    assert (tmp_path / "data" / "root.key").stat().st_mode & 0o777 == 0o600
    second = run("init", *place)
    assert (second.returncode, second.stdout) == (0, "")


def test_a_bootstrap_key_is_never_printed(tmp_path: Path) -> None:
    key = run("key", "generate").stdout.strip()
    made = run("init", "--data-dir", str(tmp_path / "data"), KEYSTILE_BOOTSTRAP_KEY=key)
    assert made.returncode == 0
    assert key not in made.stdout + made.stderr


def test_wrong_configuration_is_told_at_once_and_ends_with_78(tmp_path: Path) -> None:
    refused = run("serve", "--data-dir", str(tmp_path), KEYSTILE_PORT="many", KEYSTILE_COLOUR="blue")
    assert refused.returncode == 78
    assert refused.stderr.count("error: ") == 2
    assert refused.stderr.count("hint: ") == 1
    refused = run("init", "--data-dir", str(tmp_path / "data"), KEYSTILE_ROOT_KEY="c2hvcnQ=")
    assert refused.returncode == 78
    assert refused.stderr.startswith("error: The root key from KEYSTILE_ROOT_KEY is 5 bytes")


def test_the_doctor_finds_nothing_wrong_with_a_gateway_that_serves(running: Gateway) -> None:
    seen = run(
        *("doctor", "--data-dir", str(running.data)),
        KEYSTILE_PORT=str(running.port),
        KEYSTILE_UPSTREAMS_ALLOW="127.0.0.0/8",
        KEYSTILE_LIMITS_SOCKETS="100",
    )
    assert seen.returncode == 0, seen.stdout
    assert {line.split()[1].rstrip(":") for line in seen.stdout.splitlines()} >= {"port", "root", "database", "spool"}
    assert "problem" not in seen.stdout


def test_the_doctor_says_that_there_are_too_few_descriptors(tmp_path: Path) -> None:
    wanted = str(1 << 38)
    seen = run("doctor", "--data-dir", str(tmp_path / "data"), KEYSTILE_PORT="0", KEYSTILE_LIMITS_SOCKETS=wanted)
    assert seen.returncode == 1
    assert f"clients and not {wanted}" in seen.stdout
    assert "LimitNOFILE" in seen.stdout


def test_the_doctor_says_what_to_do(tmp_path: Path) -> None:
    data = tmp_path / "data"
    seen = run("doctor", "--data-dir", str(data), KEYSTILE_HOST="::", KEYSTILE_PORT="0")
    assert seen.returncode == 1
    assert "KEYSTILE_PUBLIC_URL" in seen.stdout
    assert "keystile init" in seen.stdout
    assert not data.exists()
    run("init", "--data-dir", str(data))
    data.chmod(0o755)
    (data / "root.key").write_text("bWFkZSB1cCBtYWRlIHVwIG1hZGUgdXAgbWFkZSB1cDE=\n")
    seen = run("doctor", "--data-dir", str(data), KEYSTILE_PORT="0")
    assert seen.returncode == 1
    assert f"chmod 700 {data}" in seen.stdout
    assert "problem  root key" in seen.stdout
    (data / "root.key").chmod(0o644)
    seen = run("doctor", "--data-dir", str(data), KEYSTILE_PORT="0")
    assert f"do: chmod 600 {data / 'root.key'}\n" in seen.stdout


def test_what_to_paste_into_a_client_is_printed_as_it_is_pasted(remote: dict[str, str]) -> None:
    run("connection", "create", "cli-paste", "http://127.0.0.1:9", "--auth-type", "none", **remote)
    shown = run("connection", "config", "cli-paste", "--client", "claude-code", **remote)
    server = json.loads(shown.stdout)["mcpServers"]["cli-paste"]
    assert server["url"] == f"{remote['KEYSTILE_BASE_URL']}/v1/mcp/cli-paste"
    assert "Into .mcp.json, with a client key in place of ks_YOUR_CLIENT_KEY:" in shown.stderr
    assert "\nclaude mcp add --transport http cli-paste " in shown.stderr
    assert json.loads(run("connection", "config", "cli-paste", "--json", **remote).stdout)["client"] == "generic"
    refused = run("connection", "config", "cli-paste", "--client", "emacs", **remote)
    assert refused.returncode == 1
    run("connection", "delete", "cli-paste", "--yes", **remote)


def test_what_may_surprise_is_said_beside_what_was_made(remote: dict[str, str]) -> None:
    made = run("connection", "create", "cli-warned", "https://nowhere.invalid", "--auth-type", "none", **remote)
    assert made.returncode == 0
    assert made.stderr.startswith("warning: The upstream's name does not resolve")
    assert "warning" not in made.stdout
    run("connection", "delete", "cli-warned", "--yes", **remote)


def test_an_exchange_without_a_message_shows_its_http_method(running: Gateway, remote: dict[str, str]) -> None:
    slug = running.connection("http://127.0.0.1:9", enabled=False)
    request = urllib.request.Request(  # noqa: S310 — loopback
        running.endpoint(slug),
        method="DELETE",
        headers={"Authorization": f"Bearer {running.client_key()}"},
    )
    with pytest.raises(urllib.error.HTTPError):
        urllib.request.urlopen(request)  # noqa: S310 — loopback
    running.events(1, connection=slug)
    assert " DELETE " in run("events", "--connection", slug, **remote).stdout


def test_the_version_is_told() -> None:
    assert run("--version").stdout == f"keystile {__version__}\n"


def test_an_argument_too_many_is_not_repeated() -> None:
    refused = run("key", "revoke", "some-id", "short")
    assert refused.returncode == 2
    assert "short" not in refused.stdout + refused.stderr


def test_the_host_is_asked_only_where_a_gateway_serves(tmp_path: Path) -> None:
    refused = run("organization", "key", "default", "--data-dir", str(tmp_path))
    assert refused.returncode == 1
    assert refused.stderr.startswith(f"error: No gateway of this machine serves the data folder {tmp_path}.\nhint: ")
    assert "--data-dir" in refused.stderr and "KEYSTILE_DATA_DIR" in refused.stderr


def test_wrong_usage_is_told_where_its_help_is() -> None:
    assert "hint: keystile key create --help" in run("key", "create").stderr
    assert "hint: keystile events --help" in run("events", "--limit", "x").stderr


def test_unknown_words_are_wrong_usage() -> None:
    for words in (("bogus",), ("key", "bogus"), ("key", "create"), ("events", "--limit", "x")):
        refused = run(*words)
        assert refused.returncode == 2, words
        assert refused.stderr.startswith("error: ")


def test_without_a_gateway_it_says_so() -> None:
    refused = run("events", KEYSTILE_API_KEY="ks_x", KEYSTILE_BASE_URL="http://127.0.0.1:1")
    assert refused.returncode == 1
    assert "hint: Is the gateway running?" in refused.stderr
    assert run("events").stderr.startswith("error: No API key is given.")
