from __future__ import annotations

import base64
import os
import sys
import traceback
from pathlib import Path

import pytest

from keystile import keys
from keystile.config import Config
from keystile.core import envelope
from keystile.errors import StartRefused, Unreadable
from keystile.node import Folders

ROOT = bytes(range(0xE0, 0x100))  # base64 of it has both `+` or `/` and their URL-safe forms
TEXT = base64.b64encode(ROOT).decode()


def opened(config: Config) -> keys.RootKey:
    return keys.root_key(config, Folders(config.data_dir))


def refused(config: Config) -> str:
    """The one line of the refusal; nothing in it, nor in the traceback, shows what the source held."""
    with pytest.raises(StartRefused) as caught:
        opened(config)
    assert caught.value.__cause__ is None or isinstance(caught.value.__cause__, OSError)
    message = str(caught.value)
    assert "\n" not in message
    told = "".join(traceback.format_exception(caught.value))
    assert "made-up-output" not in told and TEXT not in told
    return message


def is_the_root(key: keys.RootKey) -> bool:
    return envelope.unwrap(ROOT, "org000000001", 1, key.wrap("org000000001", 1, b"k" * 32)) == b"k" * 32


@pytest.mark.parametrize(
    "text",
    [TEXT, TEXT + "\n", TEXT.rstrip("="), base64.urlsafe_b64encode(ROOT).decode(), f"  {TEXT}\r\n"],
    ids=["standard", "newline", "unpadded", "url-safe", "spaces"],
)
def test_a_root_key_is_taken_in_every_usual_spelling(text: str, tmp_path: Path) -> None:
    assert is_the_root(opened(Config(data_dir=str(tmp_path), root_key=text)))


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "is 0 bytes, not 32"),
        (base64.b64encode(ROOT[:16]).decode(), "is 16 bytes, not 32"),
        (base64.b64encode(ROOT * 2).decode(), "is 64 bytes, not 32"),
        (ROOT.hex(), "is 48 bytes, not 32"),
        ("not base64 at all!", "is not base64"),
        (TEXT[:-3], "is not base64"),
        ("schlüssel", "is not base64"),
    ],
)
def test_a_root_key_that_is_none_refuses_the_start(text: str, told: str, tmp_path: Path) -> None:
    message = refused(Config(data_dir=str(tmp_path), root_key=text))
    assert told in message
    assert "KEYSTILE_ROOT_KEY" in message


def test_a_missing_file_refuses_the_start(tmp_path: Path) -> None:
    assert "does not exist" in refused(Config(data_dir=str(tmp_path)))
    assert "elsewhere" in refused(Config(data_dir=str(tmp_path), root_key_file=str(tmp_path / "elsewhere")))


def test_a_made_file_is_private_and_opens(tmp_path: Path) -> None:
    path = Folders(str(tmp_path)).root_key
    keys.make_root_key_file(path)
    assert path.stat().st_mode & 0o777 == 0o600
    key = opened(Config(data_dir=str(tmp_path)))
    assert key.unwrap("org000000001", 1, key.wrap("org000000001", 1, b"k" * 32)) == b"k" * 32
    assert sorted(tmp_path.iterdir()) == [path]


def test_a_root_key_file_is_never_replaced(tmp_path: Path) -> None:
    path = tmp_path / "root.key"
    path.write_text("anything")
    with pytest.raises(FileExistsError):
        keys.make_root_key_file(path)
    assert path.read_text() == "anything"
    assert list(tmp_path.iterdir()) == [path]


def test_a_draft_left_by_a_crash_is_no_obstacle(tmp_path: Path) -> None:
    (tmp_path / "root.key.new").write_text("half of a k")
    keys.make_root_key_file(tmp_path / "root.key")
    opened(Config(data_dir=str(tmp_path)))
    assert not (tmp_path / "root.key.new").exists()


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o604, 0o660, 0o620, 0o601])
def test_a_file_that_others_reach_refuses_the_start(mode: int, tmp_path: Path) -> None:
    path = tmp_path / "root.key"
    path.write_text(TEXT)
    path.chmod(mode)
    assert f"chmod 600 {path}" in refused(Config(data_dir=str(tmp_path)))


def test_a_link_is_judged_by_the_file_it_leads_to(tmp_path: Path) -> None:
    target, link = tmp_path / "mounted", tmp_path / "root.key"
    target.write_text(TEXT)
    link.symlink_to(target)
    target.chmod(0o644)
    assert "chmod 600" in refused(Config(data_dir=str(tmp_path)))
    target.chmod(0o400)
    assert is_the_root(opened(Config(data_dir=str(tmp_path))))


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
def test_a_file_of_another_user_refuses_the_start(tmp_path: Path) -> None:
    path = tmp_path / "root.key"
    path.write_text(TEXT)
    path.chmod(0o600)
    os.chown(path, 12345, 12345)
    assert "belongs to another user" in refused(Config(data_dir=str(tmp_path)))


def test_what_is_no_file_refuses_the_start(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir(mode=0o700)
    os.mkfifo(tmp_path / "pipe", 0o600)
    for name in ("folder", "pipe"):
        message = refused(Config(data_dir=str(tmp_path), root_key_file=str(tmp_path / name)))
        assert "is not a regular file" in message


def command(program: str) -> str:
    return f"{sys.executable} -c '{program}'"


def test_a_command_prints_the_root_key(tmp_path: Path) -> None:
    program = f'import sys; print("{TEXT}"); print("made-up-output", file=sys.stderr)'
    assert is_the_root(opened(Config(data_dir=str(tmp_path), root_key_command=command(program))))


def test_a_command_runs_without_a_shell(tmp_path: Path) -> None:
    config = Config(data_dir=str(tmp_path), root_key_command=f"echo {TEXT} ; touch {tmp_path}/made")
    refused(config)
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize(
    ("line", "told"),
    [
        (command('print("made-up-output"); exit(7)'), "failed with exit code 7"),
        (command('print("made-up-output.")'), "is not base64"),
        (command("pass"), "is 0 bytes"),
        ("no-such-program-anywhere", "cannot be run: No such file or directory"),
        ("unbalanced 'quote", "cannot be split into words"),
        ("  ", "is empty"),
    ],
)
def test_a_command_that_fails_refuses_the_start_without_its_output(line: str, told: str, tmp_path: Path) -> None:
    message = refused(Config(data_dir=str(tmp_path), root_key_command=line))
    assert told in message
    assert "KEYSTILE_ROOT_KEY_COMMAND" in message


def test_a_command_that_hangs_is_ended_with_its_children(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keys, "_COMMAND_SECONDS", 0.2)
    # The child inherits standard output: if it lived on, reading to the end would wait for it.
    line = command('import subprocess; print("made-up-output", flush=True); subprocess.run(["sleep", "60"])')
    assert "did not end within" in refused(Config(data_dir=str(tmp_path), root_key_command=line))


def test_a_root_key_shows_its_id_and_nothing_else() -> None:
    key = keys.LocalRootKey(ROOT)
    assert repr(key) == f"<LocalRootKey {key.id}>"
    assert key.id == keys.LocalRootKey(ROOT).id != keys.LocalRootKey(bytes(32)).id
    assert key.id not in (ROOT.hex(), ROOT.hex()[:16])


def test_another_root_key_does_not_unwrap() -> None:
    wrapped = keys.LocalRootKey(ROOT).wrap("org000000001", 1, b"k" * 32)
    with pytest.raises(Unreadable):
        keys.LocalRootKey(bytes(32)).unwrap("org000000001", 1, wrapped)
