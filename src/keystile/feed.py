"""The node's feed of configuration and the generation word: written by the control process, read by workers.

Guarantees: a change that was appended before the word was stored is seen by every worker that compares the word
afterwards; a reader never waits and never sees half a record; the registry it folds equals the writer's rows.

The *word* is an array of u64 in shared memory: [0] the generation of the newest published change, [1] whether the
control process serves, [2 + i] whether worker i does. Each cell has one writer and is stored in one piece.

The *feed* is a file: a header (magic, fingerprint of the node key, epoch), then records of length, CRC-32, generation
and a msgpack list of `model.Change`. It begins with a snapshot and grows by appended records. When it has grown to
twice its snapshot (`FeedWriter.swollen`), its owner writes a new one, which is renamed over it with the next epoch;
*then* the old file gets a last record, `moved`: epoch and offset behind the new snapshot. A reader that has read the
old file to that mark goes on in the new one at that offset. A reader that meets another file without a mark, or with a
mark that names another epoch than the file in place, starts again from an empty registry. The mark is only written
when the snapshot is of the old file's last generation, and so holds nothing more.
No fsync: the feed lives as long as one run of the supervisor, whose node key its header names.
"""

from __future__ import annotations

import hashlib
import mmap
import os
import struct
import zlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, Self

import msgspec

from keystile.model import Change
from keystile.node import Folders

GENERATION, CONTROL_SERVES, WORKER_SERVES = 0, 1, 2
"""Cells of the word; worker i is cell `WORKER_SERVES + i`."""

_HEADER = struct.Struct("<8s16sQ")
_MAGIC = b"ksfeed01"
_RECORD = struct.Struct("<IIQ")
_CELL = struct.Struct("<Q")
_MARK = struct.Struct("<QQ")
_MOVED = (1 << 64) - 1  # no generation: the record is the mark
_BATCH = 256  # rows in one record of a snapshot
_BLOCK = 1 << 20
_FLOOR = 1 << 20  # a feed smaller than this is not worth rewriting

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(list[Change]).decode


class FeedShort(Exception):
    """The feed of this node is absent, or ends before the word's generation; nothing was read. Ask again later."""


class Word:
    """The shared array of u64. `cells[GENERATION] != reader.generation` is the whole check on the hot path."""

    def __init__(self, path: Path) -> None:
        with path.open("r+b") as file:
            # A cell of a memoryview of format Q is read and written by one aligned 8-byte move.
            self.cells: memoryview[int] = memoryview(mmap.mmap(file.fileno(), 0)).cast("Q")

    @classmethod
    def create(cls, path: Path, workers: int) -> Self:
        """Make the word of a new run, all zero. Raises FileExistsError when the run folder was not emptied."""
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        # Allocated, not sparse: a store into a hole of a full disk would be a SIGBUS.
        os.posix_fallocate(descriptor, 0, (WORKER_SERVES + workers) * _CELL.size)
        os.close(descriptor)
        return cls(path)

    def __repr__(self) -> str:
        return f"<Word generation, control, workers={self.cells.tolist()}>"


class FeedWriter:
    """The one writer of the feed. The caller serialises calls, seals data keys, and commits before it writes."""

    def __init__(self, folders: Folders, node_key: bytes, word: Word) -> None:
        self._path = folders.feed
        self._node = _fingerprint(node_key)
        self._word = word
        self._file, self._epoch, self._size, self._snapshot_size, self._generation = -1, 0, 0, 0, 0
        if left := _open(self._path, self._node):
            self._epoch = left.epoch
            span, size = _scan(left, _HEADER.size), os.fstat(left.descriptor).st_size
            if span.end == size:  # a torn record would hide what is appended behind it
                self._file = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)
                self._size = self._snapshot_size = size
                self._generation = span.generation

    @property
    def swollen(self) -> bool:
        """Whether a fresh snapshot is due: twice the size of the last one, or an append failed."""
        return self._file < 0 or self._size > max(2 * self._snapshot_size, _FLOOR)

    def resumed(self, generation: int) -> bool:
        """Go on with the feed an earlier process left, if it is whole as of `generation`; False: write a snapshot."""
        if self._file < 0 or self._generation != generation:
            return False
        self._publish(generation)
        return True

    def snapshot(self, generation: int, changes: Iterable[Change]) -> None:
        """Put a new feed in place: `changes` is the whole configuration as of `generation`. Raises OSError."""
        draft = self._path.with_name(self._path.name + ".new")
        draft.unlink(missing_ok=True)
        appended = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC, 0o600)
        batch: list[Change] = []
        try:
            with os.fdopen(appended, "wb", buffering=_BLOCK, closefd=False) as file:
                file.write(_HEADER.pack(_MAGIC, self._node, self._epoch + 1))
                for change in changes:
                    batch.append(change)
                    if len(batch) == _BATCH:
                        file.write(_record(generation, _encode(batch)))
                        batch.clear()
                file.write(_record(generation, _encode(batch)))  # an empty one too: it carries the generation
            draft.rename(self._path)
        except BaseException:
            os.close(appended)
            draft.unlink(missing_ok=True)
            raise
        left, self._file = self._file, appended
        self._epoch += 1
        self._size = self._snapshot_size = os.fstat(appended).st_size
        if left >= 0:
            if self._generation == generation:
                _append_whole(left, _record(_MOVED, _MARK.pack(self._epoch, self._size)))
            os.close(left)
        self._publish(generation)

    def append(self, generation: int, changes: Sequence[Change]) -> None:
        """Publish one transaction. On OSError nothing is published and only a snapshot mends it (`swollen`)."""
        if self._file < 0:
            raise RuntimeError("the feed needs a snapshot first")
        record = _record(generation, _encode(changes))
        if not _append_whole(self._file, record):
            os.close(self._file)
            self._file = -1
            raise OSError(f"the feed could not be written: {self._path}")
        self._size += len(record)
        self._publish(generation)

    def _publish(self, generation: int) -> None:
        self._generation = generation
        self._word.cells[GENERATION] = generation

    def __repr__(self) -> str:
        return f"<FeedWriter epoch={self._epoch} generation={self._generation} bytes={self._size}>"


class _File:
    """An open feed file, whose descriptor closes with the last object that holds it."""

    def __init__(self, path: Path) -> None:
        self.descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        self.inode = os.fstat(self.descriptor).st_ino
        header = os.pread(self.descriptor, _HEADER.size, 0).ljust(_HEADER.size, b"\0")
        self.magic, self.node, self.epoch = _HEADER.unpack(header)

    def __del__(self) -> None:
        if hasattr(self, "descriptor"):
            os.close(self.descriptor)


class FeedReader:
    """One worker's place in the feed. `generation` is that of the last change it has handed out."""

    def __init__(self, folders: Folders, node_key: bytes, word: Word) -> None:
        self.generation = 0
        self._path = folders.feed
        self._node = _fingerprint(node_key)
        self._word = word
        self._file: _File | None = None
        self._offset = 0

    def read(self) -> tuple[bool, Iterator[Change]]:
        """Everything new, at least to the word as it stands now. Never waits; raises FeedShort.

        The first of the pair says that the changes are the whole configuration: fold them into an empty registry.
        `generation` moves when the iterator is exhausted; left early, the same changes come again.
        """
        # The second look is for a store of the word seen before the write it stands for.
        due = self._word.cells[GENERATION]
        found = self._continued(due) or self._whole(due) or self._continued(due) or self._whole(due)
        if found is None:
            raise FeedShort(f"the feed ends before generation {due}")
        return found

    def _continued(self, due: int) -> tuple[bool, Iterator[Change]] | None:
        if self._file is None:
            return None
        spans = [_scan(self._file, self._offset)]
        if spans[0].mark is not None:
            epoch, offset = spans[0].mark
            successor = _open(self._path, self._node)
            if successor is None or successor.epoch != epoch:
                return None
            spans.append(_scan(successor, offset))
        reached = max(self.generation, *(span.generation for span in spans))
        return (False, self._deliver(spans)) if reached >= due else None

    def _whole(self, due: int) -> tuple[bool, Iterator[Change]] | None:
        file = _open(self._path, self._node)
        if file is None or (self._file is not None and file.inode == self._file.inode):
            return None
        span = _scan(file, _HEADER.size)
        return (True, self._deliver([span])) if span.generation >= due else None

    def _deliver(self, spans: list[_Span]) -> Iterator[Change]:
        for span in spans:
            for end, _, payload in _records(span.file, span.start):
                if end > span.end:
                    break
                yield from _decode(payload)
        last = spans[-1]
        self._file, self._offset = last.file, last.end
        self.generation = max(self.generation, *(span.generation for span in spans))

    def __repr__(self) -> str:
        return f"<FeedReader generation={self.generation} offset={self._offset}>"


class _Span(NamedTuple):
    """Whole records of one file, the mark excluded: [start, end), their newest generation, and the mark's content."""

    file: _File
    start: int
    end: int
    generation: int
    mark: tuple[int, int] | None


def _scan(file: _File, start: int) -> _Span:
    reached, newest = start, 0
    for end, generation, payload in _records(file, start):
        if generation == _MOVED:
            epoch, offset = _MARK.unpack(payload)
            return _Span(file, start, reached, newest, (epoch, offset))
        reached, newest = end, generation
    return _Span(file, start, reached, newest, None)


def _records(file: _File, offset: int) -> Iterator[tuple[int, int, bytes]]:
    """(offset behind it, generation, payload) of each whole record from `offset` on; a torn one is not there yet."""
    block, at = b"", 0
    while True:
        end = at + _RECORD.size
        if end <= len(block):
            length, crc, generation = _RECORD.unpack_from(block, at)
            end += length
            if end <= len(block):
                payload = block[at + _RECORD.size : end]
                if crc != _checksum(generation, payload):
                    return
                at = end
                yield offset + at, generation, payload
                continue
        offset, held, at = offset + at, len(block) - at, 0
        wanted = min(max(_BLOCK, end - at), os.fstat(file.descriptor).st_size - offset)
        if wanted <= held:
            return
        block = os.pread(file.descriptor, wanted, offset)


def _record(generation: int, payload: bytes) -> bytes:
    return _RECORD.pack(len(payload), _checksum(generation, payload), generation) + payload


def _checksum(generation: int, payload: bytes) -> int:
    return zlib.crc32(payload, zlib.crc32(_CELL.pack(generation)))


def _append_whole(descriptor: int, record: bytes) -> bool:
    """Write all of it in one piece; False when the disk took none or a part, which no reader takes for a record."""
    try:
        return os.write(descriptor, record) == len(record)
    except OSError:
        return False


def _open(path: Path, node: bytes) -> _File | None:
    """The file in place, unless it is absent or another run's."""
    try:
        file = _File(path)
    except FileNotFoundError:
        return None
    return file if (file.magic, file.node) == (_MAGIC, node) else None


def _fingerprint(node_key: bytes) -> bytes:
    return hashlib.sha256(b"keystile feed\0" + node_key).digest()[:16]
