from __future__ import annotations

import multiprocessing
import os
import resource
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from keystile.feed import GENERATION, FeedReader, FeedShort, FeedWriter, Word
from keystile.model import ApiKey, AuthType, Change, Connection, DataKey, Dropped, Published, Role
from keystile.node import Folders

NODE_KEY = b"made-up node key for these tests"


class Node:
    """A data folder with a word, a writer, and readers that fold what they read into a dict."""

    def __init__(self, path: Path) -> None:
        self.folders = Folders(str(path))
        self.folders.make()
        self.word = Word.create(self.folders.word, 2)
        self.writer = FeedWriter(self.folders, NODE_KEY, self.word)

    def reader(self, node_key: bytes = NODE_KEY) -> FeedReader:
        return FeedReader(self.folders, node_key, Word(self.folders.word))


@pytest.fixture
def node(tmp_path: Path) -> Node:
    return Node(tmp_path)


def key(number: int, mark: int = 0) -> ApiKey:
    return ApiKey(
        id=f"{number:012d}", organization="o" * 12, name="k", role=Role.CLIENT, digest=bytes(32), created_at=mark
    )


def fold(rows: dict[str, int], reader: FeedReader) -> bool:
    whole, changes = reader.read()
    if whole:
        rows.clear()
    for change in changes:
        apply(rows, change)
    return whole


def apply(rows: dict[str, int], change: Change) -> None:
    if isinstance(change, Dropped):
        rows.pop(change.id, None)
    else:
        assert isinstance(change, ApiKey)
        rows[change.id] = change.created_at


@contextmanager
def files_no_larger_than(size: int) -> Iterator[None]:
    """The kernel then refuses to write further: as a full disk does, and without being one."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_store_into_the_word_is_seen_through_another_mapping(node: Node) -> None:
    other = Word(node.folders.word)
    node.word.cells[GENERATION] = (1 << 63) + 5
    assert other.cells[GENERATION] == (1 << 63) + 5
    assert len(other.cells) == 4


def test_a_second_word_is_not_made_over_the_first(node: Node) -> None:
    with pytest.raises(FileExistsError):
        Word.create(node.folders.word, 2)


def test_every_kind_of_change_comes_back_equal(node: Node) -> None:
    connection = Connection(
        id="c" * 12, number=1, organization="o" * 12, slug="abc", name="n", upstream_url="https://u.example/",
        auth_type=AuthType.BEARER,
    )  # fmt: skip
    rows: list[Change] = [
        DataKey(organization="o" * 12, term=1, sealed=b"\0sealed"),
        key(1),
        Published(connection=connection, sealed=b"\xff"),
        Dropped(kind="connection", id="c" * 12),
    ]
    node.writer.snapshot(3, rows)
    whole, changes = node.reader().read()
    assert whole
    assert list(changes) == rows


def test_the_feed_is_readable_by_its_owner_alone(node: Node) -> None:
    node.writer.snapshot(1, [])
    assert stat.S_IMODE(node.folders.feed.stat().st_mode) == 0o600


def test_without_a_feed_the_reader_says_short(node: Node) -> None:
    with pytest.raises(FeedShort):
        node.reader().read()


def test_a_feed_of_another_node_key_is_not_read(node: Node) -> None:
    node.writer.snapshot(1, [key(1)])
    with pytest.raises(FeedShort):
        node.reader(b"another node key").read()


def test_a_snapshot_of_nothing_carries_its_generation(node: Node) -> None:
    node.writer.snapshot(7, [])
    reader, rows = node.reader(), {"left": 1}
    assert fold(rows, reader)
    assert (rows, reader.generation) == ({}, 7)


def test_generation_moves_only_when_all_changes_were_taken(node: Node) -> None:
    node.writer.snapshot(1, [key(1), key(2)])
    reader = node.reader()
    _, changes = reader.read()
    next(changes)
    assert reader.generation == 0
    rows: dict[str, int] = {}
    fold(rows, reader)
    assert len(rows) == 2
    assert reader.generation == 1


def test_a_record_cut_at_any_byte_is_not_there_yet(node: Node) -> None:
    node.writer.snapshot(1, [key(1)])
    reader = node.reader()
    fold({}, reader)
    before = node.folders.feed.stat().st_size
    node.writer.append(2, [key(2), key(3)])
    content = node.folders.feed.read_bytes()
    for cut in range(before, len(content)):
        os.truncate(node.folders.feed, cut)
        with pytest.raises(FeedShort):
            reader.read()
        with pytest.raises(FeedShort):
            node.reader().read()
        with node.folders.feed.open("r+b") as file:
            file.write(content)
    rows: dict[str, int] = {}
    assert not fold(rows, reader)
    assert len(rows) == 2


def test_a_record_with_any_bit_flipped_is_not_taken(node: Node) -> None:
    node.writer.snapshot(1, [])
    reader = node.reader()
    fold({}, reader)
    before = node.folders.feed.stat().st_size
    node.writer.append(2, [key(2)])
    content = bytearray(node.folders.feed.read_bytes())
    for at in range(before, len(content)):
        content[at] ^= 0x10
        with node.folders.feed.open("r+b") as file:
            file.write(content)
        with pytest.raises(FeedShort):
            reader.read()
        content[at] ^= 0x10


def test_a_reader_goes_on_behind_a_new_snapshot_without_folding_it(node: Node) -> None:
    node.writer.snapshot(1, [key(1)])
    reader, rows = node.reader(), {}
    fold(rows, reader)
    node.writer.append(2, [key(2)])  # not yet read when the feed moves
    node.writer.snapshot(2, [key(1), key(2)])
    node.writer.append(3, [key(3)])
    whole, changes = reader.read()
    assert not whole
    assert [row.id for row in changes] == [key(2).id, key(3).id]
    node.writer.append(4, [key(4)])
    assert not fold(rows, reader)
    assert reader.generation == 4


def test_a_reader_that_missed_a_whole_feed_starts_again(node: Node) -> None:
    node.writer.snapshot(1, [key(1)])
    reader, rows = node.reader(), {}
    fold(rows, reader)
    node.writer.snapshot(1, [key(1)])
    node.writer.append(2, [Dropped(kind="key", id=key(1).id)])
    node.writer.snapshot(2, [])
    node.writer.append(3, [key(3)])
    assert fold(rows, reader)
    assert rows == {key(3).id: 0}


def test_after_the_writer_restarted_readers_start_again(node: Node) -> None:
    node.writer.snapshot(1, [key(1)])
    reader, rows = node.reader(), {}
    fold(rows, reader)
    restarted = FeedWriter(node.folders, NODE_KEY, node.word)
    restarted.snapshot(2, [key(2)])  # what was committed before the crash and never appended
    assert fold(rows, reader)
    assert rows == {key(2).id: 0}


def test_readers_go_on_in_a_feed_that_a_restarted_writer_takes_over(node: Node) -> None:
    node.writer.snapshot(1, [key(1)])
    reader, rows = node.reader(), {}
    fold(rows, reader)
    node.writer.append(2, [key(2)])
    restarted = FeedWriter(node.folders, NODE_KEY, node.word)
    assert restarted.resumed(2)
    restarted.append(3, [key(3)])
    assert not fold(rows, reader)
    again = FeedWriter(node.folders, NODE_KEY, node.word)
    again.snapshot(3, [key(1), key(2), key(3)])  # the mark is written into what others have written
    again.append(4, [Dropped(kind="key", id=key(1).id)])
    assert not fold(rows, reader)
    assert sorted(rows) == [key(2).id, key(3).id]


def test_a_change_that_was_appended_and_not_yet_in_the_word_is_published_by_the_next_writer(node: Node) -> None:
    node.writer.snapshot(1, [])
    node.writer.append(2, [key(2)])
    node.word.cells[GENERATION] = 1  # killed between the two
    assert FeedWriter(node.folders, NODE_KEY, node.word).resumed(2)
    assert node.word.cells[GENERATION] == 2


def test_a_feed_that_is_behind_or_torn_or_absent_is_not_taken_over(node: Node) -> None:
    assert not FeedWriter(node.folders, NODE_KEY, node.word).resumed(0)
    node.writer.snapshot(1, [key(1)])
    assert not FeedWriter(node.folders, NODE_KEY, node.word).resumed(2)
    assert not FeedWriter(node.folders, b"another node key", node.word).resumed(1)
    with node.folders.feed.open("ab") as file:
        file.write(b"torn")
    restarted = FeedWriter(node.folders, NODE_KEY, node.word)
    assert restarted.swollen and not restarted.resumed(1)


def test_a_failed_append_publishes_nothing_and_a_snapshot_mends_it(node: Node) -> None:
    node.writer.snapshot(1, [key(1)])
    reader, rows = node.reader(), {}
    fold(rows, reader)
    with files_no_larger_than(node.folders.feed.stat().st_size + 30), pytest.raises(OSError, match="feed"):
        node.writer.append(2, [key(2)])
    assert node.word.cells[GENERATION] == 1
    assert not fold(rows, reader)
    assert node.writer.swollen
    with pytest.raises(RuntimeError):
        node.writer.append(3, [key(3)])
    node.writer.snapshot(3, [key(1), key(2), key(3)])
    fold(rows, reader)
    assert sorted(rows) == [key(number).id for number in (1, 2, 3)]


def test_a_failed_snapshot_leaves_the_feed_in_place(node: Node) -> None:
    node.writer.snapshot(1, [key(1)])
    with files_no_larger_than(100), pytest.raises(OSError, match="too large"):
        node.writer.snapshot(2, [key(number) for number in range(100)])
    assert [path.name for path in node.folders.run.iterdir() if path.name.startswith("feed")] == ["feed"]
    node.writer.append(2, [key(2)])
    rows: dict[str, int] = {}
    fold(rows, node.reader())
    assert len(rows) == 2


def test_a_feed_asks_for_a_snapshot_when_it_has_grown_to_twice_one(node: Node) -> None:
    node.writer.snapshot(1, (key(number) for number in range(10_000)))
    size = node.folders.feed.stat().st_size
    generation = 1
    while not node.writer.swollen:
        generation += 1
        node.writer.append(generation, [key(number) for number in range(1000)])
    assert node.folders.feed.stat().st_size > 2 * size
    node.writer.snapshot(generation, (key(number) for number in range(10_000)))
    assert not node.writer.swollen


_ROW = st.integers(0, 5)
_STEP = st.one_of(
    st.tuples(st.just("put"), st.lists(_ROW, max_size=3)),
    st.tuples(st.just("drop"), _ROW),
    st.tuples(st.sampled_from(["snapshot", "restart", "resume", "read", "late", "new reader"]), st.just(None)),
)


@settings(max_examples=60, deadline=None)
@given(steps=st.lists(_STEP, max_size=25))
def test_the_fold_equals_the_writers_rows_whatever_happens(
    steps: list[tuple[str, object]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    node = Node(tmp_path_factory.mktemp("node"))
    rows: dict[str, int] = {}
    generation = 1

    def whole() -> list[Change]:
        return [key(int(name), mark) for name, mark in rows.items()]

    node.writer.snapshot(generation, [])
    reader, picture = node.reader(), {}
    for what, argument in steps:
        if what in {"put", "drop"}:
            generation += 1
            changes: list[Change] = (
                [key(number, generation) for number in argument]  # type: ignore[union-attr]
                if what == "put"
                else [Dropped(kind="key", id=key(argument).id)]  # type: ignore[arg-type]
            )
            node.writer.append(generation, changes)
            for change in changes:
                apply(rows, change)
        elif what == "snapshot":
            node.writer.snapshot(generation, whole())
        elif what == "restart":
            node.writer = FeedWriter(node.folders, NODE_KEY, node.word)
            node.writer.snapshot(generation, whole())
        elif what == "resume":
            node.writer = FeedWriter(node.folders, NODE_KEY, node.word)
            assert node.writer.resumed(generation)
        elif what == "late":  # committed, then the writer died before it could append
            generation += 1
            rows[key(9).id] = generation
            node.writer = FeedWriter(node.folders, NODE_KEY, node.word)
            node.writer.snapshot(generation, whole())
        elif what == "new reader":
            reader, picture = node.reader(), {}
        else:
            fold(picture, reader)
            assert (picture, reader.generation) == (rows, generation)
    fold(picture, reader)
    assert (picture, reader.generation) == (rows, generation)


def _write_many(path: str, count: int) -> None:
    folders = Folders(path)
    writer = FeedWriter(folders, NODE_KEY, Word(folders.word))
    writer.snapshot(1, [key(number, 1) for number in range(10)])
    rows = dict.fromkeys(range(10), 1)
    for generation in range(2, count + 1):
        rows[generation % 10] = generation
        writer.append(generation, [key(generation % 10, generation)])
        if generation % 97 == 0:
            writer.snapshot(generation, [key(number, mark) for number, mark in rows.items()])


def test_a_reader_in_another_process_is_never_behind_the_word(node: Node) -> None:
    count = 5000
    writing = multiprocessing.get_context("spawn").Process(target=_write_many, args=(str(node.folders.data), count))
    writing.start()
    reader, rows, cells = node.reader(), {}, node.word.cells
    while reader.generation < count:
        assert writing.is_alive() or cells[GENERATION] == count
        seen = cells[GENERATION]
        if seen == reader.generation:
            continue
        fold(rows, reader)
        assert reader.generation >= seen
        assert max(rows.values()) == reader.generation
        assert len(rows) == 10
    writing.join()
    assert writing.exitcode == 0
