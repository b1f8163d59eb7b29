"""The SDK against the real control process, over loopback as its users reach it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from keystile import errors
from keystile.client import Host, Keystile
from keystile.node import reachable
from tests.peers.gateway import Gateway, gateway


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    with gateway(tmp_path_factory.mktemp("client")) as started:
        yield started


@pytest.fixture
def keystile(running: Gateway) -> Iterator[Keystile]:
    with Keystile(running.admin_key, running.url) as client:
        yield client
        for row in client.connections.list():
            client.connections.delete(row["slug"])


def test_a_connections_life(keystile: Keystile) -> None:
    made = keystile.connections.create(
        "sdk-one", "http://127.0.0.1:9/mcp", credential="made-up-1", forward_headers=["X-MCP-Toolsets"]
    )
    assert made["forwardHeaders"] == ["X-MCP-Toolsets"]
    assert keystile.connections.get("sdk-one") == made
    assert keystile.connections.rotate("sdk-one", "made-up-2")["credentialVersion"] == 2
    assert keystile.connections.activate("sdk-one", 1)["credentialVersion"] == 1
    assert [row["version"] for row in keystile.connections.versions("sdk-one")] == [2, 1]
    assert keystile.connections.disable("sdk-one")["enabled"] is False
    assert keystile.connections.enable("sdk-one")["enabled"] is True
    assert keystile.connections.patch("sdk-one", auth_type="header", auth_header_name="X-Key", credential="made-up-3")
    assert keystile.connections.check("sdk-one")["code"] == "upstream_unreachable"
    assert keystile.connections.client_config("sdk-one", "cursor")["file"] == ".cursor/mcp.json"
    assert [row["slug"] for row in keystile.connections.list()] == ["sdk-one"]
    keystile.connections.delete("sdk-one")
    assert list(keystile.connections.list()) == []


def test_what_may_surprise_is_kept_with_the_answer(keystile: Keystile) -> None:
    made = keystile.connections.create("sdk-warned", "https://nowhere.invalid", auth_type="none")
    (warning,) = made.warnings
    assert "does not resolve" in warning
    assert keystile.connections.patch("sdk-warned", name="Known").warnings == ()


def test_lists_go_through_every_page(keystile: Keystile, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("keystile.client._PAGE", 2)
    for number in range(5):
        keystile.connections.create(f"page-{number}", "http://127.0.0.1:9", auth_type="none")
    assert len({row["slug"] for row in keystile.connections.list()}) == 5


def test_keys_and_events(running: Gateway, keystile: Keystile) -> None:
    made = keystile.keys.create("sdk", "auditor", pinned_user="ada")
    assert made["id"] in {row["id"] for row in keystile.keys.list()}
    with Keystile(made["key"], running.url) as auditor:
        assert list(auditor.events.list(3, trace_id="never-seen")) == []
        with pytest.raises(errors.Denied):
            auditor.keys.create("more")
    assert keystile.keys.update(made["id"], connections=[], if_match="*")["connections"] == []
    assert keystile.keys.get(made["id"])["connections"] == []
    with pytest.raises(errors.Stale):
        keystile.keys.update(made["id"], name="more", if_match='"1"')
    keystile.keys.revoke(made["id"])
    assert made["id"] not in {row["id"] for row in keystile.keys.list()}


def test_the_servers_errors_are_raised_here(running: Gateway, keystile: Keystile) -> None:
    create, url = keystile.connections.create, "http://127.0.0.1:9"
    create("taken", url, credential="made-up")
    for expected, code, call in [
        (
            errors.Conflict,
            "slug_taken",
            lambda: keystile.connections.create("taken", "http://127.0.0.1:9", credential="x"),
        ),
        (errors.Missing, "missing", lambda: keystile.connections.get("absent")),
        (errors.Missing, "missing", lambda: keystile.connections.get("../keys")),
        (errors.Missing, "missing", lambda: keystile.connections.get("..")),
        (errors.Invalid, "credential_required", lambda: create("more", url)),
        (errors.Invalid, "invalid", lambda: keystile.connections.patch("taken", surprise=1)),
        (errors.Stale, "stale", lambda: keystile.connections.patch("taken", name="x", if_match='"0"')),
        (errors.Unauthenticated, "unauthenticated", lambda: Keystile("ks_wrong", running.url).connections.get("taken")),
        (errors.Unavailable, "unreachable", lambda: Keystile("x", "http://127.0.0.1:1").connections.get("taken")),
    ]:
        with pytest.raises(expected) as raised:
            call()
        assert raised.value.code == code
    with pytest.raises(errors.Invalid) as raised:
        keystile.connections.patch("taken", surprise=1)
    assert raised.value.details["field"] == "surprise"


def test_no_repr_and_no_error_holds_the_key(running: Gateway, keystile: Keystile) -> None:
    assert running.admin_key not in repr(keystile) + repr(vars(keystile)) + repr(keystile.connections._wire)
    unreachable = Keystile(running.admin_key, "http://127.0.0.1:1")
    with pytest.raises(errors.Unavailable) as raised:
        unreachable.connections.get("x")
    assert running.admin_key not in repr(raised.value) + str(raised.value) + repr(raised.value.__cause__)


def test_it_reads_the_environment(running: Gateway, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("KEYSTILE_API_KEY", raising=False)
    with pytest.raises(errors.Unauthenticated):
        Keystile()
    monkeypatch.setenv("KEYSTILE_API_KEY", running.admin_key)
    monkeypatch.setenv("KEYSTILE_BASE_URL", running.url + "/")
    with Keystile() as keystile:
        assert list(keystile.connections.list()) == []


def test_the_host_operator_speaks_over_the_nodes_own_socket(running: Gateway) -> None:
    host = Host(reachable(running.data / "run" / "host.sock"))
    made = host.create_organization("acme", name="Acme")
    assert [row["slug"] for row in host.organizations()] == ["default", "acme"]
    with Keystile(made["key"], running.url) as keystile:
        assert list(keystile.connections.list()) == []
    assert host.create_key("acme", "more", role="owner")["role"] == "owner"
    with pytest.raises(errors.Missing):
        host.create_key("absent", "more")


def test_an_answer_of_something_else_is_no_bug(tmp_path: Path) -> None:
    assert tmp_path
    with pytest.raises(errors.Unavailable):
        Host(str(tmp_path / "absent.sock")).create_organization("acme")
