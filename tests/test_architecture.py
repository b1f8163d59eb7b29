"""The house rules, as tables: who may import whom, what the pure rooms may use, what a worker loads, names and sizes.

A row that is broken prints itself, and which import broke it. A change to a row is a change of the design
(docs/decisions.md).
"""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parent.parent
SOURCE = ROOT / "src" / "keystile"

EVERYTHING = ("",)
ROOMS: dict[str, tuple[str, ...]] = {
    # composition roots: of the node, of the control process, of a data folder
    "serve": EVERYTHING,
    "control": EVERYTHING,
    "initialise": EVERYTHING,
    # what they print
    "greeting": ("config", "initialise", "node", "model", "errors"),
    "log": ("config",),
    # people and programs outside
    "cli": ("commands", "config", "errors", "node"),
    "commands": ("client", "config", "model", "errors", "node", "mint", "serve", "initialise", "doctor"),
    "doctor": ("keys", "vault", "store", "feed", "dial", "core", "config", "model", "errors", "node"),
    "client": ("model", "errors"),
    # control plane. `schemes`: a probe puts a credential on as the gateway does
    "api": (
        *("vault", "publish", "store", "audit", "feed", "servers", "dial"),
        *("core", "schemes", "mint", "model", "errors", "config", "node"),
    ),
    "vault": ("publish", "store", "feed", "keys", "core", "mint", "model", "errors", "node"),
    "publish": ("store", "feed", "core", "model", "errors"),
    "keys": ("config", "errors", "model", "node", "core.envelope", "mint"),
    "audit.ledger": ("store", "audit.event", "audit.slots", "audit.spool", "core.envelope", "model", "errors"),
    # data plane: it cannot query a database
    "gateway": (
        *("core", "schemes", "servers", "dial", "feed", "audit.event", "audit.slots", "audit.spool"),
        *("model", "errors", "config", "node"),
    ),
    "servers": ("core", "schemes", "model", "errors"),
    "dial": ("core", "errors"),
    # shared by both
    "store": ("model", "errors"),
    "feed": ("model", "errors", "node"),
    "audit.slots": ("audit.event",),
    "audit.spool": ("audit.event", "model", "errors"),
    "audit.event": ("model", "errors"),
    "mint": ("core.apikey", "model"),
    "node": ("config", "errors"),
    # pure
    "core": ("schemes", "model", "errors"),
    "schemes": ("model", "errors"),
    "model": (),
    "errors": (),
    "config": (),
}
"""Room (a module, or a package with all in it) → rooms it may import, besides itself. Section 4 of the design."""

PURE = ("core", "schemes")
PURE_MAY_USE = {
    *("msgspec", "cryptography", "httptools"),
    *("__future__", "base64", "binascii", "collections", "enum", "functools", "hashlib", "hmac", "ipaddress"),
    *("itertools", "json", "re", "struct", "typing", "urllib.parse", "zlib"),
}

WORKER = "gateway.worker"
WORKER_NEVER_LOADS = {
    "litestar",
    "uvicorn",
    "sqlalchemy",
    "aiosqlite",
    "alembic",
    "typer",
    "rich",
    "httpx2",
    "structlog",
}
WORKER_NEVER_REACHES = ("store", "vault", "keys", "api", "publish", "mint", "audit.ledger", "control", "serve")

LINES = 300
NO_NAME = {"util", "utils", "helper", "helpers", "common", "base", "manager", "managers", "service", "services"}


class Import(NamedTuple):
    """One module names another: ours by its path below `keystile`, a foreign one by its whole name."""

    name: str
    ours: bool
    for_types_only: bool


@cache
def modules() -> dict[str, Path]:
    found: dict[str, Path] = {}
    for path in sorted(SOURCE.rglob("*.py")):
        parts = path.relative_to(SOURCE).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


@cache
def imports(module: str) -> frozenset[Import]:
    tree = ast.parse(modules()[module].read_text())
    types_only = {
        inner
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        for statement in node.body
        for inner in ast.walk(statement)
    }
    found: set[Import] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}: a relative import"
            # `from package import name`: of ours, the name may be a module.
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            package, _, rest = name.partition(".")
            if package == "keystile":
                ours = rest if rest in modules() else rest.rpartition(".")[0]
                found.add(Import(ours, ours=True, for_types_only=node in types_only))
            else:
                foreign = name.rpartition(".")[0] if isinstance(node, ast.ImportFrom) else name
                found.add(Import(foreign, ours=False, for_types_only=node in types_only))
    return frozenset(found)


def within(module: str, room: str) -> bool:
    return room in {"", module} or module.startswith(room + ".")


def room_of(module: str) -> str | None:
    return max((room for room in ROOMS if within(module, room)), key=len, default=None)


def is_package(module: str) -> bool:
    return modules()[module].name == "__init__.py"


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_imports_what_its_row_allows(room: str) -> None:
    may = (room, *ROOMS[room])
    broken = [
        f"{module} imports {other.name}"
        for module in modules()
        if room_of(module) == room
        for other in imports(module)
        if other.ours and other.name and not any(within(other.name, allowed) for allowed in may)
    ]
    assert not broken, f"{room} may import {', '.join(ROOMS[room]) or 'nothing of ours'}; but {'; '.join(broken)}"


def test_every_module_has_a_row() -> None:
    without = [module for module in modules() if room_of(module) is None and not is_package(module)]
    assert not without, f"no row says what these may import: {', '.join(without)}"


def test_packages_import_nothing_when_they_are_opened() -> None:
    broken = [module for module in modules() if is_package(module) and any(other.ours for other in imports(module))]
    assert not broken, f"importing any module of these loads more than it asks for: {', '.join(broken)}"


def test_there_is_no_import_cycle() -> None:
    graph = {
        module: {other.name for other in imports(module) if other.ours and not other.for_types_only}
        for module in modules()
    }
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(f"a cycle: {' → '.join(reversed(error.args[1]))}")


@pytest.mark.parametrize("room", PURE)
def test_a_pure_room_uses_pure_modules_only(room: str) -> None:
    broken = [
        f"{module} imports {other.name}"
        for module in modules()
        if within(module, room)
        for other in imports(module)
        if not other.ours and not any(within(other.name, allowed) for allowed in PURE_MAY_USE)
    ]
    assert not broken, f"{room} may use {', '.join(sorted(PURE_MAY_USE))}; but {'; '.join(broken)}"


def test_a_worker_reaches_no_room_of_the_control_process() -> None:
    reached, waiting = set[str](), [WORKER]
    while waiting:
        module = waiting.pop()
        if module not in reached:
            reached.add(module)
            waiting += [other.name for other in imports(module) if other.ours]
    broken = [module for module in sorted(reached) if any(within(module, room) for room in WORKER_NEVER_REACHES)]
    assert not broken, f"{WORKER} reaches {', '.join(broken)}"


def test_a_worker_loads_none_of_the_control_processs_libraries() -> None:
    script = f"import sys, keystile.{WORKER}; print(*{{name.partition('.')[0] for name in sys.modules}})"
    loaded = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True).stdout.split()
    assert "msgspec" in loaded
    broken = WORKER_NEVER_LOADS.intersection(loaded)
    assert not broken, f"importing {WORKER} loads {', '.join(sorted(broken))}"


@pytest.mark.parametrize("module", modules())
def test_a_module_is_short(module: str) -> None:
    count = len(modules()[module].read_text().splitlines())
    assert count <= LINES, f"{module} has {count} lines of {LINES}"


def test_nothing_is_named_after_no_thing() -> None:
    broken: list[str] = []
    for folder in ("src", "tests", "bench"):
        for path in (ROOT / folder).rglob("*.py"):
            names = [path.stem, *(node.name for node in ast.walk(ast.parse(path.read_text())) if is_class(node))]
            broken += [f"{path.relative_to(ROOT)}: {name}" for name in names if NO_NAME.intersection(words(name))]
    assert not broken, "; ".join(broken)


def is_class(node: ast.AST) -> bool:
    return isinstance(node, ast.ClassDef)


def words(name: str) -> list[str]:
    return [word.lower() for word in re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+", name)]


@pytest.mark.parametrize(
    ("name", "refused"),
    [("key_utils", True), ("VaultManager", True), ("HTTPService", True), ("Database", False), ("basement", False)],
)
def test_the_check_of_names_knows_words(name: str, *, refused: bool) -> None:
    assert bool(NO_NAME.intersection(words(name))) is refused
