"""The slots: what a worker knows of each exchange under way, where its death cannot take it.

Guarantees: what `fill` has taken survives `kill -9`, until `free`; disk space is claimed before a slot is handed out,
so that no fill meets a full disk; what a dead worker left open is told by `left_open`, never half of it.

A file `<worker>-<incarnation>-<n>.slots` is a sequence of blocks of 128 KiB. A block holds slots of one size and
begins with magic (u32) and that size (u32), which take the first slot's place. A slot is length (u32), CRC-32 of
length and payload (u32), payload (an encoded event, outcome `interrupted`). A length of zero means: free. As in the
segments of `spool`, the length is written last and in one piece, and the file is locked for as long as its worker
lives. Blocks are added as exchanges come to be under way at once, and slots are used again last in, first out, so
that memory and disk follow the load.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import struct
import zlib
from pathlib import Path

from keystile.audit.event import Event, encode

BLOCK = 128 * 1024
SMALL, LARGE = 512, 8 * 1024
"""Sizes of slots. A usual line is half of the small one; metadata at its bound of 4 KiB fits the large one."""

_MAGIC = 0x746F6C73
_PAIR = struct.Struct("<II")
_CRC = struct.Struct("<I")
_SUFFIX = ".slots"


class Slots:
    """One incarnation of a worker's slots; at most about `limit` of each size. The file is made when first needed."""

    def __init__(self, folder: Path, worker: int, incarnation: int, limit: int) -> None:
        self.fault: str | None = None
        self._folder = folder
        self._name = f"{worker}-{incarnation}"
        self._limit = limit
        self._small: list[int] = []
        self._large: list[int] = []
        self._blocks: list[list[int]] = []  # of each block, where its free slots are kept
        self._descriptor = -1
        self._bytes: mmap.mmap | None = None
        self._words: memoryview[int] = memoryview(bytearray()).cast("I")

    def fill(self, event: Event) -> int | None:
        """Keep it until `free`; the slot, or None when there is none and none can be made.

        Raises ValueError for an event that fits no slot, which is a bug: the bounds of its parts leave it below.
        """
        line = encode(event)
        length = len(line)
        free = self._small
        if length > SMALL - _PAIR.size:
            free = self._large
            if length > LARGE - _PAIR.size:
                raise ValueError(f"an event of {length} bytes")
        if not free and not self._grow(free):
            return None
        at = free.pop()
        self._bytes[at + 4 : at + 8 + length] = _CRC.pack(zlib.crc32(line, length)) + line  # type: ignore[index]
        self._words[at >> 2] = length  # the commit mark
        return at

    def free(self, slot: int) -> None:
        """The exchange has its event in the spool."""
        self._words[slot >> 2] = 0
        self._blocks[slot // BLOCK].append(slot)

    def close(self) -> None:
        """Let go of the file: what is still open in it now becomes an event, and the ledger deletes it."""
        if self._bytes is not None:
            self._words.release()
            self._bytes.close()
            os.close(self._descriptor)
            self._bytes = None

    def _grow(self, free: list[int]) -> bool:
        """One more block. A failure is tried again by whoever needs a slot next."""
        size = SMALL if free is self._small else LARGE
        if sum(each is free for each in self._blocks) * (BLOCK // size - 1) >= self._limit:
            self.fault = f"{self._limit} exchanges are under way"
            return False
        start = len(self._blocks) * BLOCK
        try:
            if self._bytes is None:
                self._make(size)
            else:
                os.posix_fallocate(self._descriptor, start, BLOCK)
                os.pwrite(self._descriptor, _PAIR.pack(_MAGIC, size), start)
                self._words.release()
                try:
                    self._bytes.resize(start + BLOCK)
                finally:
                    self._words = memoryview(self._bytes).cast("I")
        except OSError as error:
            self.fault = f"{self._folder}: {error.strerror}"
            return False
        self.fault = None
        self._blocks.append(free)
        free.extend(range(start + BLOCK - size, start, -size))
        return True

    def _make(self, size: int) -> None:
        """The file, with its first block."""
        number = 0
        while (path := self._folder / f"{self._name}-{number}{_SUFFIX}").exists():
            number += 1
        draft = path.with_suffix(".new")
        descriptor = os.open(draft, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.posix_fallocate(descriptor, 0, BLOCK)
            os.pwrite(descriptor, _PAIR.pack(_MAGIC, size), 0)
            mapped = mmap.mmap(descriptor, BLOCK)
            draft.rename(path)
        except BaseException:
            os.close(descriptor)
            draft.unlink(missing_ok=True)
            raise
        self._descriptor, self._bytes, self._words = descriptor, mapped, memoryview(mapped).cast("I")

    def __repr__(self) -> str:
        free = len(self._small), len(self._large)
        return f"<Slots {self._name} blocks={len(self._blocks)} free={free} fault={self.fault}>"


def abandoned(folder: Path) -> list[Path]:
    """The slot files of workers that are gone. By then their segments are whole, too: the dead write nothing."""
    return [path for path in sorted(folder.glob("*" + _SUFFIX)) if _unlocked(path)]


def left_open(path: Path) -> list[bytes]:
    """The lines of the slots that are filled. One that is not whole was being filled, so it was not forwarded."""
    content = path.read_bytes()
    found: list[bytes] = []
    for start in range(0, len(content) - BLOCK + 1, BLOCK):
        magic, size = _PAIR.unpack_from(content, start)
        if magic != _MAGIC or size not in {SMALL, LARGE}:
            continue
        for at in range(start + size, start + BLOCK, size):
            length, crc = _PAIR.unpack_from(content, at)
            line = content[at + _PAIR.size : at + _PAIR.size + length]
            if 0 < length <= size - _PAIR.size and zlib.crc32(line, length) == crc:
                found.append(line)
    return found


def _unlocked(path: Path) -> bool:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    finally:
        os.close(descriptor)
    return True
