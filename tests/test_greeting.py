"""What `serve` says once it serves, and the key it says before that."""

from __future__ import annotations

import json
import re
import shlex

import pytest

from keystile import client, greeting, mint
from keystile.config import Config
from keystile.initialise import First
from keystile.model import Organization, Secret


def first(key: str, *, given: bool) -> First:
    organization = Organization(id="o" * 12, slug="default", name="Default", created_at=0)
    return First(organization=organization, key=Secret(key.encode()), given=given)


def text(port: int = 8080, *, key_shown: bool = False, **settings: object) -> str:
    return greeting.text(Config(**settings), port, ".venv/bin/keystile", key_shown=key_shown)  # type: ignore[arg-type]


def test_a_key_that_was_just_made_is_shown_once() -> None:
    key = mint.new_api_key()
    assert greeting.first_key(first(key, given=False)).count(f"  export KEYSTILE_API_KEY={key}\n") == 1
    assert "KEYSTILE_API_KEY=" not in text(key_shown=True)
    assert "KEYSTILE_API_KEY=ks_...\n" in text(key_shown=False)


def test_a_key_that_was_given_is_never_shown() -> None:
    assert greeting.first_key(first(mint.new_api_key(), given=True)) == ""


def test_its_commands_can_be_pasted() -> None:
    commands = re.findall(r"^  (curl .*?[^\\])$", text(), re.MULTILINE | re.DOTALL)
    assert len(commands) == 2
    bodies = [json.loads(shlex.split(command.replace("\\\n", " "))[-1]) for command in commands]
    assert bodies[0]["slug"] == "github-prod"
    assert set(bodies[1]) == {"name"}
    assert all(f"{client.BASE_URL}/api/v1/" in command for command in commands)


def test_it_says_how_to_get_another_admin_key() -> None:
    assert "  .venv/bin/keystile organization key default\n" in text()
    assert "  .venv/bin/keystile organization key default --data-dir '/srv/my data'\n" in text(data_dir="/srv/my data")


def test_the_command_line_is_told_where_only_if_it_would_look_elsewhere() -> None:
    assert greeting.DEFAULT_URL == client.BASE_URL
    assert "KEYSTILE_BASE_URL" not in text()
    assert "  export KEYSTILE_BASE_URL=http://127.0.0.1:9000\n" in text(9000)
    assert "  export KEYSTILE_BASE_URL=http://[::1]:9000\n" in text(9000, host="::1")


@pytest.mark.parametrize(("host", "called"), [("0.0.0.0", "127.0.0.1"), ("::", "[::1]")])  # noqa: S104 — the setting
def test_a_gateway_for_others_says_that_it_needs_a_name(host: str, called: str) -> None:
    assert f"Keystile serves at http://{called}:8080\n" in text(host=host)
    assert "KEYSTILE_HOSTS" in text(host=host)
    assert "KEYSTILE_HOSTS" not in text(host=host, hosts=("mcp.example.com",))
    assert "KEYSTILE_HOSTS" not in text()


def test_a_public_url_is_shown_with_the_address_behind_it() -> None:
    shown = text(host="0.0.0.0", public_url="https://mcp.example.com/")  # noqa: S104 — the setting
    assert "Keystile serves at https://mcp.example.com, and listens on 0.0.0.0:8080\n" in shown
    assert "  curl -X POST https://mcp.example.com/api/v1/keys" in shown
