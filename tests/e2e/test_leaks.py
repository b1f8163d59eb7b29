"""Promise 1, swept: no secret in an answer, log, event, file or process of a node, whatever happens to it."""

from __future__ import annotations

import asyncio
import base64
import os
import signal
import sys
from pathlib import Path
from urllib.parse import quote

import pytest

from keystile import cli
from tests.e2e.drive import CREDENTIALS, MISPLACED, Run, drive
from tests.e2e.scene import eventually, scene
from tests.e2e.sweep import Sweep, forms
from tests.gateway.stage import Asked
from tests.peers.gateway import COMMAND, Gateway, gateway
from tests.peers.processes import ROOT, inherited, process

pytestmark = [pytest.mark.anyio, pytest.mark.xdist_group("leaks")]

ROOT_KEY = b"Made-Up-Root-Key-Of-32-Bytes-#01"


def test_the_sweep_finds_every_form_wherever_it_stands() -> None:
    secret = b"Made-Up~Secret?>1"
    for shift in range(3):
        for text in (base64.b64encode, base64.urlsafe_b64encode):
            sweep = Sweep()
            sweep.hide("it", secret)
            sweep.collect("there", b"x" + text(b"#" * shift + secret + b"..."))
            assert sweep.leaks()
    for written in (secret.hex().encode(), quote(secret, safe="").encode(), secret.swapcase(), b"..." + secret):
        assert any(form in written for form in forms(secret).values())


async def crash(run: Run) -> None:
    """`kill -9` of worker and control process while a call is under way."""
    at, reached = run.at, asyncio.Event()

    async def hang(_: Asked, reader: asyncio.StreamReader, __: asyncio.StreamWriter) -> None:
        reached.set()
        await reader.read()

    at.upstream.handler = hang
    client = await at.client()
    client.send(at.request(target=f"/v1/mcp/swept-{run.name}".encode()))
    await asyncio.wait_for(reached.wait(), 10)
    before = at.running.processes()
    for pid in before[1:]:
        os.kill(pid, signal.SIGKILL)
    assert await client.closed()
    await eventually(lambda: not set(before[1:]) & set(at.running.processes()) and at.running.ready())


async def collect_node(run: Run) -> None:
    """Files and processes, as they are while the node runs."""
    running = run.at.running
    run.sweep.collect_files(run.name, running.data)
    run.sweep.collect_processes(run.name, running)
    run.sweep.collect(f"{run.name}: log", running.log.read_bytes())


async def command(sweep: Sweep, running: Gateway, root_key: str, typed: str, *arguments: str) -> int:
    """A `keystile` command with its secrets in the environment and on standard input; the exit code."""
    own = {"KEYSTILE_ROOT_KEY": root_key, "KEYSTILE_API_KEY": running.admin_key, "KEYSTILE_BASE_URL": running.url}
    done = await asyncio.create_subprocess_exec(
        COMMAND[0],
        *arguments,
        cwd=ROOT,
        env=inherited() | own | {"KEYSTILE_DATA_DIR": str(running.data), "KEYSTILE_PORT": str(running.port)},
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    said, _ = await done.communicate(typed.encode())
    sweep.collect(f"keystile {' '.join(arguments)[:30]} → {done.returncode}: {said[:50]!r}", said)
    assert done.returncode is not None
    return done.returncode


async def command_all(sweep: Sweep, running: Gateway, root_key: str) -> None:
    """Commands that are given secrets, rightly and wrongly."""
    slug, typed = "swept-text", "--credential-stdin"
    wanted: list[tuple[int, str, tuple[str, ...]]] = [
        (0, MISPLACED + "\n", ("connection", "rotate", slug, typed, "--json")),
        (1, MISPLACED + "\0", ("connection", "rotate", slug, typed)),
        (1, MISPLACED + "\n", ("connection", "check", slug, typed)),
        (1, "", ("doctor",)),  # it has not been told that loopback is allowed
    ]
    codes = await asyncio.gather(*(command(sweep, running, root_key, stdin, *words) for _, stdin, words in wanted))
    assert codes == [code for code, _, _ in wanted]


BAD_USES = [
    ("connection", "create", "a-slug", "http://127.0.0.1:9/", MISPLACED),
    ("connection", "create", "a-slug", "http://127.0.0.1:9/", "--credential", MISPLACED),
    ("connection", "create", "a-slug", "http://127.0.0.1:9/", f"--credential={MISPLACED}"),
    ("connection", "create", "a-slug", "http://127.0.0.1:9/", "--auth-type", MISPLACED),
    ("connection", "create", "a-slug", "http://127.0.0.1:9/", f"--auth-type={MISPLACED}"),
    ("connection", "rotate", "a-slug", MISPLACED),
    ("key", "create", "a-name", "--role", MISPLACED),
    ("serve", "--port", MISPLACED),
    ("connection", MISPLACED),
    (MISPLACED,),
]


@pytest.mark.parametrize("words", BAD_USES)
def test_a_wrong_command_is_told_so_without_its_words(
    words: tuple[str, ...], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["keystile", *words])
    assert cli.run() == 2
    sweep = Sweep()
    sweep.hide("credential", MISPLACED)
    said = capfd.readouterr()
    sweep.collect("what was said", said.out + said.err)
    assert said.err.startswith("error:") and not sweep.leaks()


async def test_no_secret_is_anywhere_after_everything(tmp_path: Path) -> None:
    sweep, root_key = Sweep(), base64.b64encode(ROOT_KEY).decode()
    sweep.hide("root key", ROOT_KEY)
    sweep.hide("root key as it is given", root_key)
    for what, secret in CREDENTIALS.items():
        sweep.hide(f"credential {what}", secret)
    admin_key: str | None = None
    for log_format in ("text", "json"):
        settings = {"log_format": log_format, "root_key": root_key, "limits_spool_segment_bytes": 1 << 18}
        with gateway(tmp_path, admin_key=admin_key, **settings) as running:
            admin_key = sweep.hide("admin key", running.admin_key)
            async with scene(running) as at:
                sweep.hide(f"client key {log_format}", at.key)
                run = Run(sweep, at, log_format)
                await drive(run)
                await collect_node(run)
                if log_format == "text":
                    await command_all(sweep, running, root_key)
                else:
                    await crash(run)
                await run.send("GET", "/events?limit=1000")
                await collect_node(run)
                for asked in at.upstream.asked:
                    assert b"ks_" not in asked.head + asked.body
        sweep.collect_files(f"{log_format}, stopped", tmp_path)
    wrong = base64.b64encode(ROOT_KEY[::-1]).decode()
    with pytest.raises(AssertionError, match="not the root key"), gateway(tmp_path, root_key=wrong):
        pytest.fail("a wrong root key was accepted")
    sweep.collect_files("refused", tmp_path)
    for part in (
        "keystile.db",
        "keystile.db-wal",
        "ledger.db",
        "run/feed",
        "run/word",
        ".seg",
        "gateway.log",
        "environ",
    ):
        assert any(part in place for place in sweep.places()), f"nothing was collected of {part}"
    assert not sweep.leaks(), "\n".join(sweep.leaks())


async def test_the_first_admin_key_is_greeted_once_and_kept_nowhere(tmp_path: Path) -> None:
    environment = {"KEYSTILE_PORT": "0", "KEYSTILE_DATA_DIR": str(tmp_path / "data"), "KEYSTILE_WORKERS": "1"}
    with process(COMMAND, environment, tmp_path / "log") as running:
        await eventually(lambda: "-d '" in (tmp_path / "log").read_text())
        running.send_signal(signal.SIGTERM)
        assert await asyncio.to_thread(running.wait, 20) == 0
    greeting = (tmp_path / "log").read_text()
    (key,) = [word.partition("KEYSTILE_API_KEY=")[2] for word in greeting.split() if "KEYSTILE_API_KEY=ks_" in word]
    sweep = Sweep()
    sweep.hide("admin key", key)
    assert greeting.count(key) == 1
    sweep.collect("greeting, the key apart", greeting.replace(key, ""))
    sweep.collect_files("data", tmp_path / "data")
    assert sweep.leaks() == []
