"""Where the root key comes from: the environment, a file, a command; more to come behind the same two methods.

Guarantees: a root key that is missing, short or readable by others ends the start with one line that says what to
do and shows nothing of the key, nor of what a command printed.
"""

from __future__ import annotations

import base64
import binascii
import os
import shlex
import signal
import stat
import subprocess
from pathlib import Path
from typing import Protocol

from keystile import mint
from keystile.config import Config
from keystile.core import envelope
from keystile.errors import StartRefused
from keystile.node import Folders

_BYTES = 32
_LARGEST = 4096  # bytes of text: no encoding of a key is longer
_COMMAND_SECONDS = 10
_OTHERS = stat.S_IRWXG | stat.S_IRWXO


class RootKey(Protocol):
    """Wraps data keys and unwraps them; a key service is one more class with these two methods."""

    @property
    def id(self) -> str:
        """Names the key and says nothing about it."""
        ...

    def wrap(self, organization: str, term: int, data_key: bytes) -> bytes:
        """The data key, wrapped."""
        ...

    def unwrap(self, organization: str, term: int, wrapped: bytes) -> bytes:
        """The data key; raises Unreadable."""
        ...


class LocalRootKey:
    """A root key whose 32 bytes are in this process."""

    def __init__(self, root: bytes) -> None:
        self._root = root
        self.id = envelope.root_id(root).hex()

    def __repr__(self) -> str:
        return f"<LocalRootKey {self.id}>"

    def wrap(self, organization: str, term: int, data_key: bytes) -> bytes:
        """The data key in format 2 of docs/envelope.md."""
        return envelope.wrap(self._root, organization, term, data_key, mint.nonce())

    def unwrap(self, organization: str, term: int, wrapped: bytes) -> bytes:
        """The data key; raises Unreadable, whose message tells another root key from a changed row."""
        return envelope.unwrap(self._root, organization, term, wrapped)


def root_key(config: Config, folders: Folders) -> RootKey:
    """The root key from the one configured source, or from the data folder; raises StartRefused."""
    if config.root_key is not None:
        return LocalRootKey(_decoded(config.root_key.encode(), "KEYSTILE_ROOT_KEY"))
    if config.root_key_command is not None:
        return LocalRootKey(_decoded(_printed(config.root_key_command), "KEYSTILE_ROOT_KEY_COMMAND"))
    path = Path(config.root_key_file) if config.root_key_file is not None else folders.root_key
    return LocalRootKey(_decoded(_read(path), str(path)))


def configured(config: Config) -> bool:
    """Whether a source of the root key was named, so that none is to be made in the data folder."""
    return any(source is not None for source in (config.root_key, config.root_key_file, config.root_key_command))


def make_root_key_file(path: Path) -> None:
    """Write a new root key, readable by this user alone. Raises FileExistsError: a root key is never replaced.

    The file appears whole or not at all: nothing is sealed under a key that a crash cut short.
    """
    draft = path.with_name(path.name + ".new")
    draft.unlink(missing_ok=True)  # left by a crash; nothing was sealed under it, since `path` was not there
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(base64.b64encode(mint.data_key()) + b"\n")
        file.flush()
        os.fsync(descriptor)
    try:
        os.link(draft, path)  # unlike a rename, it fails when the name is taken
    finally:
        draft.unlink()
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _decoded(text: bytes, source: str) -> bytes:
    stripped = text.strip().rstrip(b"=").translate(bytes.maketrans(b"-_", b"+/"))
    try:
        key = base64.b64decode(stripped + b"=" * (-len(stripped) % 4), validate=True)
    except binascii.Error:
        raise StartRefused(
            f"The root key from {source} is not base64. Give 32 bytes: openssl rand -base64 32"
        ) from None
    if len(key) != _BYTES:
        raise StartRefused(
            f"The root key from {source} is {len(key)} bytes, not {_BYTES}. Give 32 bytes: openssl rand -base64 32"
        )
    return key


def _read(path: Path) -> bytes:
    """The file's content, judged by what was opened.

    Symbolic links are followed, since mounted secrets are links; mode and owner are those of the open file, so that
    nothing can be exchanged between look and read. O_NONBLOCK: a FIFO is refused, not waited for.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    except FileNotFoundError:
        raise StartRefused(
            f"The root key is missing: {path} does not exist. Restore it, or name its place (KEYSTILE_ROOT_KEY_FILE); "
            "without it nothing in this database can be opened."
        ) from None
    except OSError as error:
        raise StartRefused(f"The root key {path} cannot be read: {error.strerror}.") from error
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise StartRefused(f"The root key {path} is not a regular file.")
        if status.st_uid not in {0, os.geteuid()}:
            raise StartRefused(f"The root key {path} belongs to another user. Run: chown {os.geteuid()} {path}")
        if status.st_mode & _OTHERS:
            raise StartRefused(f"The root key {path} can be read by others. Run: chmod 600 {path}")
        return os.read(descriptor, _LARGEST)
    finally:
        os.close(descriptor)


def _printed(command: str) -> bytes:
    """What the command prints. It runs without a shell, in a session of its own so that all of it can be ended."""
    name = "KEYSTILE_ROOT_KEY_COMMAND"
    try:
        words = shlex.split(command)
    except ValueError as error:
        raise StartRefused(f"{name} cannot be split into words: {error}.") from None
    if not words:
        raise StartRefused(f"{name} is empty.")
    try:
        process = subprocess.Popen(  # noqa: S603 — the operator's own command, split without a shell
            words,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
    except OSError as error:
        raise StartRefused(f"{name} cannot be run: {error.strerror}.") from None
    with process:
        try:
            printed, _ = process.communicate(timeout=_COMMAND_SECONDS)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            raise StartRefused(f"{name} did not end within {_COMMAND_SECONDS} seconds.") from None
    if process.returncode != 0:
        raise StartRefused(f"{name} failed with exit code {process.returncode}.")
    return printed
