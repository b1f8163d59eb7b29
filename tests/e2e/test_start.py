"""What a node refuses to start with: one clear line, exit code 78, and nothing changed on disk."""

from __future__ import annotations

import base64
import json
import socket
import sqlite3
import subprocess
from contextlib import closing
from pathlib import Path

import msgspec
import pytest

from keystile import mint
from tests.gateway.stage import CALL
from tests.peers.gateway import COMMAND, Gateway, gateway
from tests.peers.processes import ROOT, inherited

pytestmark = pytest.mark.xdist_group("start")

REFUSED = 78  # sysexits' EX_CONFIG


class Refused(msgspec.Struct, frozen=True):
    """How a start ended that was to fail."""

    code: int
    lines: list[str]
    printed: str


def refused(data: Path, **settings: object) -> Refused:
    """`keystile serve` in a folder, to its end."""
    environment = {f"KEYSTILE_{name.upper()}": str(value) for name, value in settings.items()}
    done = subprocess.run(
        COMMAND,
        cwd=ROOT,
        env=inherited() | {"KEYSTILE_PORT": "0", "KEYSTILE_DATA_DIR": str(data)} | environment,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    return Refused(done.returncode, done.stderr.splitlines(), done.stdout)


def held(data: Path) -> dict[str, bytes]:
    """Every file of a data folder but those of a run."""
    return {path.name: path.read_bytes() for path in data.iterdir() if path.is_file() and path.name != "lock"}


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> Gateway:
    """A node that has been stopped, with a sealed credential in its database."""
    with gateway(tmp_path_factory.mktemp("stopped")) as running:
        running.connection("http://127.0.0.1:9", "made-up-credential", slug="sealed", enabled=False)
    return running


def assert_one_clear_line(found: Refused, said: str) -> None:
    assert (found.code, found.printed) == (REFUSED, "")
    errors = [line for line in found.lines if line.startswith("error:")]
    assert len(errors) == 1 and said in errors[0], found.lines
    assert [line for line in found.lines if not line.startswith(("error:", "hint:"))] == []


def test_a_wrong_root_key_is_refused(stopped: Gateway) -> None:
    before = held(stopped.data)
    wrong = base64.b64encode(b"w" * 32).decode()
    found = refused(stopped.data, root_key=wrong)
    assert_one_clear_line(found, "not the root key of this database")
    assert wrong not in "".join(found.lines) and held(stopped.data) == before


@pytest.mark.parametrize("text", ["", "c2hvcnQ=", "not base64 ✗", base64.b64encode(b"x" * 33).decode()])
def test_a_root_key_that_is_none_is_refused(stopped: Gateway, text: str) -> None:
    found = refused(stopped.data, root_key=text)
    assert_one_clear_line(found, "KEYSTILE_ROOT_KEY")
    assert not text or text not in "".join(found.lines)


def test_sealed_rows_never_get_a_new_root_key(stopped: Gateway) -> None:
    path = stopped.data / "root.key"
    aside = path.rename(path.with_name("aside"))
    try:
        assert_one_clear_line(refused(stopped.data), "root key is missing")
        with closing(sqlite3.connect(stopped.data / "keystile.db")) as database, database:
            (canary,) = database.execute("SELECT value FROM meta WHERE name = 'canary'").fetchone()
            database.execute("DELETE FROM meta WHERE name = 'canary'")
        assert_one_clear_line(refused(stopped.data, root_key=base64.b64encode(b"w" * 32).decode()), "no canary")
        assert not path.exists()
        with closing(sqlite3.connect(stopped.data / "keystile.db")) as database, database:
            database.execute("INSERT INTO meta (name, value) VALUES ('canary', ?)", (canary,))
    finally:
        aside.rename(path)


def test_a_root_key_that_others_can_read_is_refused(stopped: Gateway) -> None:
    path = stopped.data / "root.key"
    path.chmod(0o640)
    try:
        assert_one_clear_line(refused(stopped.data), "chmod 600")
    finally:
        path.chmod(0o600)


def test_a_malformed_bootstrap_key_is_refused_and_makes_nothing(tmp_path: Path) -> None:
    typo = mint.new_api_key()[:-1] + "!"
    found = refused(tmp_path / "data", bootstrap_key=typo)
    assert_one_clear_line(found, "KEYSTILE_BOOTSTRAP_KEY")
    assert typo not in "".join(found.lines) and not (tmp_path / "data/root.key").exists()


def test_a_data_folder_that_cannot_be_made_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert_one_clear_line(refused(tmp_path / "file" / "data"), f"{tmp_path}/file/data cannot be used: Not a directory")


def test_every_problem_of_the_settings_is_told_at_once(tmp_path: Path) -> None:
    found = refused(tmp_path, workers="many", prot="80", upstreams_allow="10.0.0.0/99", root_key="a", root_key_file="b")
    assert found.code == REFUSED
    told = "\n".join(found.lines)
    assert "KEYSTILE_WORKERS" in told and "KEYSTILE_PROT" in told and "Traceback" not in told


def test_a_bootstrap_key_means_nothing_once_there_is_data(stopped: Gateway) -> None:
    with gateway(stopped.folder, admin_key=mint.new_api_key()) as again:
        assert again.api("GET", "/connections").status == 401
        listed = again.api("GET", "/connections", key=stopped.admin_key)
        assert [row["slug"] for row in listed.data] == ["sealed"]


def test_a_folder_and_a_port_have_one_supervisor(tmp_path: Path) -> None:
    with gateway(tmp_path / "one") as running:
        assert_one_clear_line(refused(running.data), "another Keystile serves")
        assert_one_clear_line(refused(tmp_path / "two", port=running.port), "cannot listen on")
        assert running.ready()
        status, _, body = running._request("POST", "/v1/mcp/nothing", CALL, {"content-type": "application/json"})
        assert (status, json.loads(body)["error"]["data"]["gateway"]) == (401, "key_missing")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert_one_clear_line(refused(tmp_path / "three", port=port), "cannot listen on")
