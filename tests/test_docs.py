"""Each setting, refusal code, control-plane code, route and command is documented, and nothing else is."""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import Any

import pytest
import typer

from keystile.api import host
from keystile.api.answers import ROUTER
from keystile.api.app import ROUTES
from keystile.cli import app
from keystile.config import settings, variable
from keystile.errors import REFUSALS, KeystileError

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
SOURCE = ROOT / "src" / "keystile"
PLACES = (ROOT, SOURCE, DOCS)
MADE = {
    *("server/discover", "tools/call", "prompts/get", "resources/read"),
    *("application/json", "requests/s", "run/feed"),
}
"""What looks like a path and is none."""

RAISED = ("Invalid", "Unauthenticated", "Denied", "Missing", "Conflict", "Stale", "Unavailable", "KeystileError")
"""Called with a message, then perhaps a code."""


def rows(page: str, heading: str | None = None) -> list[list[str]]:
    """The cells of every table row of a page, or of one section."""
    text = (DOCS / page).read_text()
    if heading is not None:
        text = re.split(rf"^## {heading}$", text, flags=re.MULTILINE)[1].split("\n## ")[0]
    found = [line.strip("|").split(" | ") for line in text.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in cells] for cells in found]


def first_cells(page: str, heading: str | None = None) -> set[str]:
    return {match[1] for cells in rows(page, heading) if (match := re.fullmatch(r"`([^`]+)`", cells[0]))}


def test_every_setting_is_documented_with_its_variable_and_default() -> None:
    documented = {cells[0].strip("`"): cells for cells in rows("config.md") if cells[0].startswith("`")}
    assert set(documented) == set(settings())
    for name, (_, info) in settings().items():
        _, environment, default, meaning = documented[name]
        assert environment == f"`{variable(name)}`"
        assert len(meaning) > 10
        if name != "workers":
            assert default.strip("`") == said(info.default), name


def said(default: Any) -> str:
    if default is None or default == ():
        return "none"
    return f"{default:g}" if isinstance(default, float) else str(default)


def test_every_refusal_is_documented_as_the_table_has_it() -> None:
    table = rows("errors.md", "Calls to endpoints")
    documented = {cells[0].strip("`"): cells for cells in table if cells[0].startswith("`")}
    assert set(documented) == set(REFUSALS)
    for code, refusal in REFUSALS.items():
        _, status, whose, meaning, remedy = documented[code]
        assert (int(status), whose, meaning) == (refusal.status, refusal.fault, refusal.message), code
        assert remedy


def codes() -> set[str]:
    """Every code that the control plane, the SDK or a check may answer with, read from the source."""
    found = {code for code, _ in ROUTER.values()} | {error.default for error in errors()}
    for path in SOURCE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.Call):
                continue
            name = node.func.id if isinstance(node.func, ast.Name) else ""
            place = {"refuse": 2, "refused": 1}.get(name, 1 if name in RAISED else None)
            code = node.args[place] if place is not None and len(node.args) > place else None
            if isinstance(code, ast.Constant):
                found.add(str(code.value))
    return found


def errors() -> list[type[KeystileError]]:
    return [KeystileError, *KeystileError.__subclasses__()]


def test_every_control_plane_code_is_documented() -> None:
    documented = first_cells("errors.md", "The REST API") | {"start_refused"}
    assert "`start_refused`" in (DOCS / "errors.md").read_text()
    assert codes() <= documented
    assert documented <= codes() | {"unexpected_answer"}


def test_every_code_of_a_check_is_documented() -> None:
    probe = (SOURCE / "api" / "probe.py").read_text()
    own = set(re.findall(r'^_\w+ = \("(\w+)", ', probe, re.MULTILINE))
    assert own == first_cells("errors.md", "A check of an upstream")
    assert set(re.findall(r'REFUSALS\["(\w+)"\]', probe)) <= set(REFUSALS)


def test_every_route_is_documented() -> None:
    documented = first_cells("api.md", "Routes")
    assert documented == {f"{route.method} {route.path}" for route in (*ROUTES, *host.ROUTES)}


def commands(group: Any, prefix: str) -> set[str]:
    if not hasattr(group, "commands"):
        return {prefix}
    return {name for word, command in group.commands.items() for name in commands(command, f"{prefix} {word}")}


def test_every_command_is_documented_and_helps() -> None:
    everything = commands(typer.main.get_command(app), "keystile")
    assert first_cells("api.md", "The command line") == everything
    assert len(everything) == 20


@pytest.mark.parametrize("page", ["README.md", *sorted(f"docs/{path.name}" for path in DOCS.glob("*.md"))])
def test_every_path_that_a_page_names_is_there(page: str) -> None:
    """From the root, from the package, or from its own folder; `core/decide.py: admit` and `core/target` count."""
    named = re.findall(r"`((?:[a-z0-9_]+/)*[a-z0-9_]+(?:/|\.(?:py|md|css)|(?<=/)[a-z0-9_]+)*)(?:: \w+)?`", text(page))
    paths = {path for path in named if "/" in path or path.endswith((".py", ".md"))} - MADE
    gone = {path for path in paths if not any((at / path).exists() or (at / f"{path}.py").exists() for at in PLACES)}
    assert not gone, f"{page}: {sorted(gone)}"


def text(page: str) -> str:
    return (ROOT / page).read_text()


@pytest.mark.parametrize("page", sorted(path.name for path in DOCS.glob("*.md")))
def test_links_between_pages_lead_somewhere(page: str) -> None:
    for target in re.findall(r"\]\(([^)#]+?)(?:#[^)]*)?\)", (DOCS / page).read_text()):
        if "://" not in target:
            assert (DOCS / target).exists(), f"{page} → {target}"
