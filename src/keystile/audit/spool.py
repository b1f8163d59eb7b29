"""The spool: preallocated, memory-mapped segment files. A worker appends finished events, the ledger reads them.

Guarantees: what `append` has taken survives `kill -9` of the worker; a reader never takes half a record for a whole
one; disk space is claimed when a segment is made, never by an append; a full disk or a full spool shows as
`ready() == False`, and clears by itself. The last tenth of the bound is kept from those who showed no valid key.

A segment `<worker>-<incarnation>-<n>.seg` is a header (magic, 16 random bytes that name it for good), then records:
length (u32), CRC-32 of length and payload (u32), payload (an encoded event), zeros up to a multiple of eight. The
rest of the file is zeros, so a length of zero means: nothing here yet. An append writes CRC and payload, and then the
length, one aligned 4-byte store, as the commit mark. A killed process loses none of its stores, and x86 shows them to
others in their order; on ARM another process may see the length first, and after a power cut pages may be missing:
then the CRC is wrong, and a reader of a live segment waits while one of a finished segment stops there.

A worker holds a `flock` on each segment it may still write to. The kernel lets go of it with the process: a segment
that can be locked is finished, whoever wrote it. A segment is made under another name, locked, and then renamed, so
that no reader ever meets an unlocked one that will be written to.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import struct
import zlib
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Self

from keystile.audit.event import Event, encode

EVENT_BYTES = 16 * 1024
"""The largest line. The bounds of its parts (metadata 4 KiB, names 256 bytes) leave it far below."""

_HEADER = struct.Struct("<8s16s40x")
_MAGIC = b"ksspool1"
_RECORD = struct.Struct("<II")
_CRC = struct.Struct("<I")
_ROOM = _RECORD.size + EVENT_BYTES
_SUFFIX = ".seg"
_BLOCK = 256 * 1024
_LOOK_SECONDS = 1.0
_STRANGERS = frozenset(("refused", "counted"))


class Spool:
    """The segments one incarnation of a worker writes. `fault` says why there is no next segment, or is None.

    The next segment is made when half of the present one is used. While that fails, `ready` is false and the other
    half belongs to exchanges that are already under way.
    """

    def __init__(self, folder: Path, worker: int, incarnation: int, segment_bytes: int, bound_bytes: int) -> None:
        if segment_bytes < 4 * _ROOM:
            raise ValueError(f"a segment holds at least {4 * _ROOM} bytes")
        self.fault: str | None = None
        self._folder = folder
        self._name = f"{worker}-{incarnation}"
        self._segment_bytes = segment_bytes
        self._bound_bytes = bound_bytes
        self._made = 0
        self._look_at = float("-inf")
        self._crowded = False
        for abandoned in folder.glob(f"{worker}-*.new"):
            abandoned.unlink()
        self._present = self._make()
        self._next: _Segment | None = None

    def ready(self) -> bool:
        """Whether an exchange that begins now can be recorded when it ends. Cheap; asked on every request."""
        present = self._present
        return present is not None and (present.end < present.half or self._next is not None)

    def append(self, event: Event) -> bool:
        """Record it; False when there is no room, which the caller logs.

        While the spool is not ready, a refusal is not taken: it would use up what exchanges under way still need. Nor,
        while only the last tenth of the bound is left, one of a caller that showed no valid key.
        Raises ValueError for a line over `EVENT_BYTES`, which is a bug.
        """
        line = encode(event)
        if len(line) > EVENT_BYTES:
            raise ValueError(f"an event of {len(line)} bytes")
        present = self._present
        if present is None or (event.outcome in _STRANGERS and not self._takes_refusals(event)):
            return False
        if not present.take(line):
            if self._next is None:
                return False
            present.close()
            present, self._present, self._next = self._next, self._next, None
            present.take(line)
        if present.end >= present.half and self._next is None and self.fault is None:
            self._next = self._make()
        return True

    def maintain(self, now: float) -> None:
        """Look, at most once a second, how full the spool is, and try again to make a segment that could not be made.

        `now` is monotonic seconds.
        """
        if now < self._look_at:
            return
        self._look_at = now + _LOOK_SECONDS
        if self.fault is None:
            self._used()
        elif self._present is None:
            self._present = self._make()
        else:
            self._next = self._make()

    def close(self) -> None:
        """Let go of the segments: they are finished now, and the ledger deletes them when it has read them."""
        for segment in (self._present, self._next):
            if segment is not None:
                segment.close()
        self._present = self._next = None

    def _make(self) -> _Segment | None:
        try:
            used = self._used()
            if used + self._segment_bytes > self._bound_bytes:
                self.fault = f"{used} bytes of the spool are not yet in the ledger"
                return None
            path = self._folder / f"{self._name}-{self._made}{_SUFFIX}"
            while path.exists():
                self._made += 1
                path = self._folder / f"{self._name}-{self._made}{_SUFFIX}"
            made = _Segment(path, self._segment_bytes)
        except OSError as error:
            self.fault = f"{self._folder}: {error.strerror}"
            return None
        self._made += 1
        self.fault = None
        self._used()
        return made

    def _takes_refusals(self, event: Event) -> bool:
        return self.ready() and (event.key is not None or not self._crowded)

    def _used(self) -> int:
        """Bytes of all segments, and with it, whether one more would reach into the last tenth."""
        used = 0
        for path in segments(self._folder):
            with suppress(FileNotFoundError):  # the ledger has read it meanwhile
                used += path.stat().st_size
        self._crowded = used + self._segment_bytes > self._bound_bytes * 9 // 10
        return used

    def __repr__(self) -> str:
        end = self._present.end if self._present else None
        return f"<Spool {self._name} segments={self._made} end={end} ready={self.ready()} fault={self.fault}>"


class _Segment:
    """A segment this process writes to. `end` is where the next record goes."""

    def __init__(self, path: Path, size: int) -> None:
        draft = path.with_suffix(".new")
        self._descriptor = os.open(draft, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.posix_fallocate(self._descriptor, 0, size)
            os.pwrite(self._descriptor, _HEADER.pack(_MAGIC, os.urandom(16)), 0)
            self._bytes = mmap.mmap(self._descriptor, size & ~7)
            draft.rename(path)
        except BaseException:
            os.close(self._descriptor)
            draft.unlink(missing_ok=True)
            raise
        self._words: memoryview[int] = memoryview(self._bytes).cast("I")
        self._size = size & ~7
        self.half = size // 2
        self.end = _HEADER.size

    def take(self, line: bytes) -> bool:
        """Append the line, or say that there is no room for it."""
        length, start = len(line), self.end
        end = start + _RECORD.size + length
        if end > self._size:
            return False
        self._bytes[start + 4 : end] = _CRC.pack(zlib.crc32(line, length)) + line
        self._words[start >> 2] = length  # the commit mark: after the rest, and in one piece
        self.end = (end + 7) & ~7
        return True

    def close(self) -> None:
        self._words.release()
        self._bytes.close()
        os.close(self._descriptor)


def segments(folder: Path) -> list[Path]:
    """Every segment in the spool folder, whoever writes it."""
    return sorted(folder.glob("*" + _SUFFIX))


class SegmentReader:
    """A segment as the ledger sees it; a context manager.

    `serial` names the segment for good, though file names may come again in a later run. `finished` was found before
    anything was read: if it is true, nothing is ever added. `damaged` is set when reading met a record that is there
    and is not whole; in a segment that is not finished, that means "not yet".
    """

    def __init__(self, path: Path) -> None:
        self._descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        self.damaged = False
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
            self.finished = True
        except BlockingIOError:
            self.finished = False
        magic, serial = _HEADER.unpack(os.pread(self._descriptor, _HEADER.size, 0).ljust(_HEADER.size, b"\0"))
        self.serial: str = serial.hex()
        self._readable = magic == _MAGIC

    def lines(self, offset: int) -> Iterator[tuple[int, bytes]]:
        """(offset behind it, line) of each whole record from `offset` on; 0 is the beginning."""
        self.damaged = not self._readable
        if self.damaged:
            return
        offset, at = max(offset, _HEADER.size), 0
        block = os.pread(self._descriptor, _BLOCK, offset)
        while True:
            if at + _ROOM > len(block) == _BLOCK:
                offset, at = offset + at, 0
                block = os.pread(self._descriptor, _BLOCK, offset)
            if at + _RECORD.size > len(block):
                return
            length, crc = _RECORD.unpack_from(block, at)
            if length == 0:
                return
            end = at + _RECORD.size + length
            line = block[at + _RECORD.size : end]
            if length > EVENT_BYTES or end > len(block) or zlib.crc32(line, length) != crc:
                self.damaged = True
                return
            at = (end + 7) & ~7
            yield offset + at, line

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._descriptor)
