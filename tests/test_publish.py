from __future__ import annotations

import asyncio
from pathlib import Path

import msgspec
import pytest

from keystile.core.registry import Registry
from keystile.errors import Unavailable
from keystile.feed import FeedReader, FeedWriter, Word
from keystile.keys import LocalRootKey
from keystile.model import ApiKey, AuthType, Change, Connection, DataKey, Dropped, Organization, Published, Role, Secret
from keystile.node import Folders
from keystile.publish import Publisher, Transaction
from keystile.store import connections, counters, keys, organizations
from keystile.store.database import Database, sqlite
from keystile.vault import Vault

pytestmark = pytest.mark.anyio

NODE = b"n" * 32
ORGANIZATION = Organization(id="org000000001", slug="one", name="One", created_at=1)
KEY = ApiKey(
    id="key000000001", organization=ORGANIZATION.id, name="K", role=Role.CLIENT, digest=b"d" * 32, created_at=1
)


def connection(number: int) -> Connection:
    return Connection(
        id=f"con{number:09}",
        number=number,
        organization=ORGANIZATION.id,
        slug=f"slug-{number}",
        name="Any",
        upstream_url="https://mcp.example.com/mcp",
        auth_type=AuthType.NONE,
    )


def size(node: Node) -> int:
    """Of the feed in place."""
    return node.folders.feed.stat().st_size


class Node:
    """A database with one organization, and the feed of a node over it."""

    def __init__(self, data: Path) -> None:
        self.folders = Folders(str(data))
        self.folders.make()
        self.database = Database(sqlite(self.folders.database))
        self.word = Word.create(self.folders.word, workers=1)
        self.reader = FeedReader(self.folders, NODE, self.word)

    async def publisher(self) -> Publisher:
        vault = await Vault.open(self.database, LocalRootKey(b"r" * 32))
        return Publisher(self.database, FeedWriter(self.folders, NODE, self.word), vault, NODE)

    def read(self) -> list[Change]:
        return list(self.reader.read()[1])

    async def generation(self) -> int:
        async with self.database.read() as conn:
            return await counters.current(conn, counters.GENERATION)


@pytest.fixture
async def node(tmp_path: Path):
    node = Node(tmp_path)
    await node.database.migrate()
    yield node
    await node.database.close()


@pytest.fixture
async def publisher(node: Node):
    publisher = await node.publisher()
    vault = await Vault.open(node.database, LocalRootKey(b"r" * 32))
    await publisher.start()
    async with publisher.change() as tx:
        await organizations.insert(tx.connection, ORGANIZATION)
        await vault.add_organization(tx, ORGANIZATION.id)
        await keys.insert(tx.connection, KEY)
        tx.put(KEY)
    node.read()
    return publisher


async def add(tx: Transaction, made: Connection) -> None:
    await connections.insert(tx.connection, made)
    tx.put(Published(connection=made))


async def test_a_change_is_on_the_feed_and_in_the_word_when_the_call_returns(node: Node, publisher: Publisher) -> None:
    before = node.word.cells[0]
    async with publisher.change() as tx:
        await add(tx, connection(1))
        assert node.word.cells[0] == before
    assert node.word.cells[0] == before + 1 == await node.generation()
    assert node.read() == [Published(connection=connection(1))]


async def test_one_transaction_is_one_generation_and_all_of_its_changes(node: Node, publisher: Publisher) -> None:
    before = node.word.cells[0]
    async with publisher.change() as tx:
        await add(tx, connection(1))
        await add(tx, connection(2))
        tx.put(Dropped(kind="key", id=KEY.id))
    assert node.word.cells[0] == before + 1
    assert len(node.read()) == 3


async def test_a_change_that_raises_is_neither_committed_nor_published(node: Node, publisher: Publisher) -> None:
    before = node.word.cells[0]

    async def change() -> None:
        async with publisher.change() as tx:
            await add(tx, connection(1))
            raise RuntimeError

    with pytest.raises(RuntimeError):
        await change()
    assert node.word.cells[0] == before == await node.generation()
    assert node.read() == []
    async with node.database.read() as conn:
        assert await connections.find(conn, ORGANIZATION.id, connection(1).slug) is None


async def test_a_change_that_workers_need_not_know_takes_no_generation(node: Node, publisher: Publisher) -> None:
    before = node.word.cells[0]
    async with publisher.change() as tx:
        await connections.insert(tx.connection, connection(1))
    assert node.word.cells[0] == before == await node.generation()


async def test_changes_made_at_once_are_published_in_the_order_of_their_generations(
    node: Node, publisher: Publisher
) -> None:
    async def change(number: int) -> None:
        async with publisher.change() as tx:
            await add(tx, connection(number))
            await asyncio.sleep(0)

    await asyncio.gather(*(change(number) for number in range(1, 21)))
    async with node.database.read() as conn:
        committed = await conn.run_sync(lambda sync: list(connections.every_published(sync)))
    assert sorted(one.connection.id for one in committed) == sorted(
        one.connection.id for one in node.read() if isinstance(one, Published)
    )
    assert node.word.cells[0] == node.reader.generation == await node.generation()


async def test_a_restarted_publisher_publishes_what_was_committed(node: Node, publisher: Publisher) -> None:
    async with publisher.change() as tx:
        await add(tx, connection(1))
    async with node.database.write() as conn:  # committed, and then the process died before it could publish
        await connections.insert(conn, connection(2))
        generation = await counters.advance(conn, counters.GENERATION)
    restarted = await node.publisher()
    await restarted.start()
    assert node.word.cells[0] == generation
    whole, changes = node.reader.read()
    assert whole
    registry = Registry(NODE)
    for change in changes:
        registry.apply(change)
    assert repr(registry) == "<Registry connections=2 keys=1>"
    assert registry.key(KEY.digest) == KEY
    assert registry.connection(connection(2).id) == connection(2)


async def test_the_snapshot_gives_the_data_keys_first(node: Node, publisher: Publisher) -> None:
    async with publisher.change() as tx:
        await add(tx, connection(1))
    restarted = await node.publisher()
    await restarted.start()
    fresh = FeedReader(node.folders, NODE, node.word)
    assert [type(change) for change in fresh.read()[1]] == [DataKey, ApiKey, Published]


async def test_a_change_that_cannot_be_published_is_an_error_and_the_end(node: Node, publisher: Publisher) -> None:
    async def change(number: int, published: object) -> None:
        async with publisher.change() as tx:
            await connections.insert(tx.connection, connection(number))
            tx.put(published)

    with pytest.raises(TypeError):  # the feed cannot encode it: found out after the commit, like a full disk
        await change(1, object())
    assert publisher.broken.is_set()
    with pytest.raises(Unavailable):
        await change(2, Published(connection=connection(2)))
    # The process that comes next publishes what this one committed.
    restarted = await node.publisher()
    await restarted.start()
    found = [change.connection.id for change in node.read() if isinstance(change, Published)]
    assert found == [connection(1).id]


async def test_a_feed_that_has_grown_is_rewritten_and_readers_go_on(node: Node, publisher: Publisher) -> None:
    padding = {"x-fixed": "v" * 200_000}
    made = msgspec.structs.replace(connection(1), headers=padding)
    async with publisher.change() as tx:
        await add(tx, made)
    for _ in range(20):
        async with publisher.change() as tx:
            made = await connections.update(tx.connection, made)
            tx.put(Published(connection=made))
    assert size(node) > 20 * 200_000  # nobody who makes a change waits for that
    rewriting = asyncio.create_task(publisher.run())
    async with asyncio.timeout(20):
        while size(node) > 2 * 200_000:  # noqa: ASYNC110 — a file shrinks, and no event tells
            await asyncio.sleep(0)
    rewriting.cancel()
    assert isinstance(last := node.read()[-1], Published)
    assert last.connection == made
    assert node.reader.generation == await node.generation()


async def test_a_restarted_publisher_goes_on_with_the_feed_that_holds_everything(
    node: Node, publisher: Publisher
) -> None:
    async with publisher.change() as tx:
        await add(tx, connection(1))
    node.read()
    before = node.folders.feed.stat()
    restarted = await node.publisher()
    await restarted.start()
    assert node.folders.feed.stat().st_ino == before.st_ino and size(node) == before.st_size
    async with restarted.change() as tx:
        await add(tx, connection(2))
    whole, changes = node.reader.read()
    assert (whole, list(changes)) == (False, [Published(connection=connection(2))])


async def test_a_credential_that_is_no_blob_is_published_as_one_that_opens_nowhere(
    node: Node, publisher: Publisher
) -> None:
    vault = await Vault.open(node.database, LocalRootKey(b"r" * 32))
    async with publisher.change() as tx:
        for number in (1, 2):
            made = msgspec.structs.replace(connection(number), auth_type=AuthType.BEARER)
            await connections.insert(tx.connection, made)
            await vault.add_version(tx, made, Secret(b"made-up"), None, 1)
        await tx.connection.exec_driver_sql("UPDATE credential_versions SET sealed = 'x' WHERE connection LIKE '%1'")
    node.folders.feed.unlink()
    restarted = await node.publisher()
    await restarted.start()
    fresh = FeedReader(node.folders, NODE, node.word)
    found = [change for change in fresh.read()[1] if isinstance(change, Published)]
    assert [change.sealed == b"" for change in found] == [True, False]


async def test_a_cancelled_change_is_published_if_it_was_committed(node: Node, publisher: Publisher) -> None:
    async def change(number: int) -> None:
        async with publisher.change() as tx:
            await add(tx, connection(number))

    steps, number, through = 0, 0, False
    while not through:  # cancelled later and later, until it was through before
        number += 1
        task = asyncio.create_task(change(number))
        for _ in range(steps):
            await asyncio.sleep(0)
        through = task.done()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        assert node.word.cells[0] == await node.generation()
        steps += 1 + steps // 4
    async with node.database.read() as conn:
        committed = await conn.run_sync(lambda sync: list(connections.every_published(sync)))
    assert {one.connection.id for one in node.read() if isinstance(one, Published)} == {
        one.connection.id for one in committed
    }
