"""What `serve` says once it serves."""

from __future__ import annotations

import json
import re
import shlex

from keystile import mint
from keystile.greeting import text
from keystile.initialise import First
from keystile.model import Organization, Secret

URL = "http://127.0.0.1:8080"


def first(key: str, *, given: bool) -> First:
    organization = Organization(id="o" * 12, slug="default", name="Default", created_at=0)
    return First(organization=organization, key=Secret(key.encode()), given=given)


def test_a_key_that_was_just_made_is_shown_once() -> None:
    key = mint.new_api_key()
    assert text(URL, first(key, given=False)).count(key) == 1


def test_a_key_that_was_given_is_never_shown() -> None:
    key = mint.new_api_key()
    assert key not in text(URL, first(key, given=True))
    assert text(URL, first(key, given=True)) == text(URL, None)


def test_its_commands_can_be_pasted() -> None:
    commands = re.findall(r"^  (curl .*?[^\\])$", text(URL, None), re.MULTILINE | re.DOTALL)
    assert len(commands) == 2
    bodies = [json.loads(shlex.split(command.replace("\\\n", " "))[-1]) for command in commands]
    assert bodies[0]["slug"] == "github-prod"
    assert set(bodies[1]) == {"name"}
    assert all(f"{URL}/api/v1/" in command for command in commands)
