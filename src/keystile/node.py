"""One node: its folders, and what the supervisor hands to each child through an inherited pipe.

A child reads one `Boot` message from the pipe and keeps it open: when the pipe closes, the supervisor is gone and
the child ends. Secrets travel here and in no argument list, environment or file. What the kernel allows a process is
raised, or taken away, by the supervisor before it has children.
"""

from __future__ import annotations

import fcntl
import os
import resource
import struct
from contextlib import suppress
from pathlib import Path

import msgspec

from keystile.config import Config
from keystile.errors import StartRefused

REFUSED = 78
"""Exit code of a process that must not start as things are (sysexits' EX_CONFIG): it is not started again."""

RESERVE = 256
"""Descriptors of a worker that are for no client: its files, and warm upstream connections."""

_LENGTH = struct.Struct("<I")
# `struct flock` of fcntl(2). An open file description lock: unlike one of flock(2), it can be looked at untaken.
_LOCK = struct.Struct("@hhqqi0q")
_WHOLE_FILE = _LOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)


def raise_limits() -> None:
    """As many descriptors as may be had, and no core dumps, for this process and its children."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(OSError, ValueError):  # beyond fs.nr_open; workers count with what they have
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    # A dump of a worker holds data keys. Programs that dumps are piped to get them in spite of a limit of 0, but not
    # with one of 1, below which no file is made either (Linux, fs/coredump.c).
    _, largest = resource.getrlimit(resource.RLIMIT_CORE)
    none = 1 if largest else 0
    resource.setrlimit(resource.RLIMIT_CORE, (none, none))


def sockets(wanted: int, descriptors: int) -> int:
    """How many client sockets a process with so many descriptors may have: each may need one to an upstream too."""
    if descriptors == resource.RLIM_INFINITY:
        return wanted
    return max(1, min(wanted, (descriptors - RESERVE) // 2))


class Boot(msgspec.Struct, frozen=True, kw_only=True):
    """What a child needs to start. `index` numbers workers from 0; `incarnation` grows with every start of it."""

    config: Config
    node_key: bytes
    index: int = 0
    incarnation: int = 0
    listener: int = -1

    def __repr__(self) -> str:
        return f"<Boot worker={self.index} incarnation={self.incarnation}>"


class Folders:
    """Where a node keeps things. `run` holds only what one run of the supervisor needs, and is emptied at its start."""

    def __init__(self, data_dir: str) -> None:
        self.data = Path(data_dir).absolute()
        self.lock = self.data / "lock"
        self.database = self.data / "keystile.db"
        self.ledger = self.data / "ledger.db"
        self.root_key = self.data / "root.key"
        self.spool = self.data / "spool"
        self.run = self.data / "run"
        self.feed = self.run / "feed"
        self.word = self.run / "word"
        self.in_flight = self.run / "in-flight"
        self.control_socket = self.run / "control.sock"
        self.host_socket = self.run / "host.sock"

    def make(self) -> None:
        """Create what is missing, readable by this user alone; raises StartRefused when that cannot be done."""
        try:
            for folder in (self.data, self.spool, self.run):
                folder.mkdir(mode=0o700, parents=True, exist_ok=True)
                folder.chmod(0o700)
        except OSError as error:
            raise StartRefused(f"The data folder {self.data} cannot be used: {error.strerror}.") from error


def locked(path: Path) -> int:
    """Take the data folder for this process alone: a descriptor that holds the lock until it closes.

    Raises StartRefused when another process has it.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.fcntl(descriptor, fcntl.F_OFD_SETLK, _WHOLE_FILE)
    except OSError as error:
        os.close(descriptor)
        raise StartRefused(f"another Keystile serves from {path.parent}; stop it, or set KEYSTILE_DATA_DIR") from error
    return descriptor


def is_locked(path: Path) -> bool:
    """Whether another process has the data folder. Looks, and takes nothing."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        (kind, *_) = _LOCK.unpack(fcntl.fcntl(descriptor, fcntl.F_OFD_GETLK, _WHOLE_FILE))
    finally:
        os.close(descriptor)
    return kind != fcntl.F_UNLCK


def send(boot: Boot, pipe: int) -> None:
    """Write the message; the caller keeps `pipe` open for as long as the child shall live.

    A child that died first is no error here: whoever waits for its end learns of it.
    """
    payload = msgspec.msgpack.encode(boot)
    with suppress(BrokenPipeError):
        os.write(pipe, _LENGTH.pack(len(payload)) + payload)


def receive(pipe: int) -> Boot:
    """Read the message a supervisor sent; raises EOFError when it died first."""
    (length,) = _LENGTH.unpack(_exactly(pipe, _LENGTH.size))
    return msgspec.msgpack.decode(_exactly(pipe, length), type=Boot)


def _exactly(pipe: int, count: int) -> bytes:
    found = b""
    while len(found) < count:
        piece = os.read(pipe, count - len(found))
        if not piece:
            raise EOFError("the supervisor closed the pipe")
        found += piece
    return found


def reachable(path: Path) -> str:
    """A spelling of a unix socket's path that fits the 108 bytes of `sun_path`, whatever folder it lies in."""
    if len(os.fsencode(path)) < 100:  # noqa: PLR2004 — sun_path, with room to spare
        return str(path)
    return f"/proc/self/fd/{os.open(path.parent, os.O_PATH | os.O_DIRECTORY)}/{path.name}"
