"""A stage for the gateway's tests: the real gate, pools, feed and spool on loopback, a scripted upstream behind it.

Nothing of ours is replaced: the upstream is a socket server whose handler each test writes, the configuration goes
through a real feed file, the events come back out of the real spool.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import msgspec

from keystile import mint
from keystile.audit.event import Event, decode
from keystile.audit.spool import SegmentReader, segments
from keystile.config import Config, Limits
from keystile.core import apikey
from keystile.core.envelope import KeyRing, credential_binding, seal_for_node
from keystile.core.target import Target, parse_target
from keystile.feed import FeedWriter, Word
from keystile.gateway.inbound import Inbound
from keystile.gateway.worker import build
from keystile.model import ApiKey, AuthType, Change, Connection, DataKey, Dropped, Published, Role
from keystile.node import Boot, Folders

ORGANIZATION = "organization"
CREDENTIAL = "made-up-credential-0123456789"
CALL = b'{"jsonrpc":"2.0","id":7,"method":"tools/call","params":{"name":"echo","arguments":{"text":"hi"}}}'
PING = b'{"jsonrpc":"2.0","id":7,"method":"ping"}'
RESULT = b'{"jsonrpc":"2.0","id":7,"result":{"content":[]}}'

Handler = Callable[["Asked", asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


class Asked(msgspec.Struct):
    """One request as the upstream got it, byte for byte."""

    head: bytes
    body: bytes

    @property
    def line(self) -> bytes:
        return self.head.split(b"\r\n", 1)[0]

    @property
    def fields(self) -> list[tuple[bytes, bytes]]:
        lines = self.head.rstrip(b"\r\n").split(b"\r\n")[1:]
        return [(name.lower(), value.strip()) for name, _, value in (line.partition(b":") for line in lines)]

    def field(self, name: bytes) -> list[bytes]:
        return [value for each, value in self.fields if each == name]


class Answered(msgspec.Struct):
    """One answer as the client got it; `body` is de-framed, `complete` says whether its framing ended."""

    status: int
    head: bytes
    body: bytes
    complete: bool

    def field(self, name: bytes) -> list[bytes]:
        lines = self.head.rstrip(b"\r\n").split(b"\r\n")[1:]
        pairs = (line.partition(b":") for line in lines)
        return [value.strip() for each, _, value in pairs if each.lower() == name]

    @property
    def json(self) -> dict:
        return json.loads(self.body)

    @property
    def code(self) -> str:
        return self.json["error"]["data"]["gateway"]


async def answer_result(asked: Asked, _: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """An upstream's plain JSON answer."""
    writer.write(
        b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(RESULT) + RESULT
    )


def replying(answer: bytes, *, close: bool = False) -> Handler:
    """An upstream that always answers with these bytes."""

    async def reply(_: Asked, __: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(answer)
        if close:
            writer.close()

    return reply


def answer_of(body: bytes, *fields: bytes, status: bytes = b"200 OK") -> bytes:
    """A whole answer with a length."""
    lines = [b"HTTP/1.1 " + status, b"content-length: %d" % len(body), *fields]
    return b"\r\n".join(lines) + b"\r\n\r\n" + body


class Upstream:
    """A socket server that records what it is asked and answers as `handler` says."""

    def __init__(self) -> None:
        self.asked: list[Asked] = []
        self.connections = 0
        self.closed = 0
        self.handler: Handler = answer_result
        self.port = 0
        self.changed = asyncio.Condition()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                asked = Asked(head, b"")
                length = asked.field(b"content-length")
                asked.body = await reader.readexactly(int(length[0])) if length else b""
                self.asked.append(asked)
                await self._tell()
                await self.handler(asked, reader, writer)
                if writer.is_closing():
                    break
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            self.closed += 1
            await self._tell()
            writer.close()

    async def _tell(self) -> None:
        async with self.changed:
            self.changed.notify_all()

    async def until(self, true: Callable[[], bool]) -> None:
        async with self.changed:
            await asyncio.wait_for(self.changed.wait_for(true), 10)


class Client:
    """A raw client connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    def send(self, data: bytes) -> None:
        self.writer.write(data)

    async def head(self) -> Answered:
        head = await asyncio.wait_for(self.reader.readuntil(b"\r\n\r\n"), 10)
        assert head.startswith(b"HTTP/1.1 "), head[:80]
        return Answered(int(head.split(b" ")[1]), head, b"", complete=False)

    async def chunk(self) -> bytes:
        """The next chunk of a chunked body; empty at its end."""
        size = int((await asyncio.wait_for(self.reader.readuntil(b"\r\n"), 10))[:-2], 16)
        return (await asyncio.wait_for(self.reader.readexactly(size + 2), 10))[:-2]

    async def answer(self) -> Answered:
        """The next answer, whole, or as much of it as came before the connection broke."""
        answered = await self.head()
        length = answered.field(b"content-length")
        if answered.status in {204, 304}:
            length = [b"0"]
        try:
            if length:
                answered.body = await asyncio.wait_for(self.reader.readexactly(int(length[0])), 10)
            elif answered.field(b"transfer-encoding"):
                while piece := await self.chunk():
                    answered.body += piece
            else:
                answered.body = await asyncio.wait_for(self.reader.read(), 10)
            answered.complete = True
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        return answered

    async def closed(self) -> bool:
        """Whether the gateway ends the connection, with nothing more to read."""
        try:
            return await asyncio.wait_for(self.reader.read(1), 10) == b""
        except ConnectionError:
            return True

    async def close(self) -> None:
        self.writer.close()
        with contextlib.suppress(ConnectionError):
            await self.writer.wait_closed()


class Stage:
    """One gate on a loopback port, and an upstream."""

    def __init__(self, folder: Path, limits: Limits, **settings: object) -> None:
        self.config = Config(
            data_dir=str(folder), limits=limits, workers=1, **{"upstreams_allow": ("127.0.0.0/8",)} | settings
        )
        self.folders = Folders(self.config.data_dir)
        self.folders.make()
        self.node_key = os.urandom(32)
        self.word = Word.create(self.folders.word, 1)
        self.writer = FeedWriter(self.folders, self.node_key, self.word)
        self.generation = 1
        self.ring = KeyRing()
        data_key = os.urandom(32)
        self.ring.add(ORGANIZATION, 1, data_key)
        sealed = seal_for_node(self.node_key, ORGANIZATION, 1, data_key, mint.nonce())
        self.writer.snapshot(1, [DataKey(organization=ORGANIZATION, term=1, sealed=sealed)])
        self.gate = build(Boot(config=self.config, node_key=self.node_key, incarnation=1))
        self.upstream = Upstream()
        self.port = 0
        self.numbers = 0
        self.key = self.make_key()

    def publish(self, *changes: Change) -> None:
        self.generation += 1
        self.writer.append(self.generation, changes)

    def make_key(self, role: Role = Role.CLIENT, **more: object) -> str:
        key = mint.new_api_key()
        row = ApiKey(
            id=mint.new_id(),
            organization=ORGANIZATION,
            name="test",
            role=role,
            digest=apikey.digest(key.encode()),
            created_at=1,
        )
        self.publish(msgspec.structs.replace(row, **more))
        return key

    def key_row(self, key: str) -> ApiKey:
        assert self.gate.fresh()
        row = self.gate.registry.key(apikey.digest(key.encode()))
        assert row is not None
        return row

    def connect(self, slug: str = "upstream", credential: str | None = CREDENTIAL, **more: object) -> Connection:
        """Publish a connection to the upstream."""
        self.numbers += 1
        connection = Connection(
            id=mint.new_id(),
            number=self.numbers,
            organization=ORGANIZATION,
            slug=slug,
            name=slug,
            upstream_url=f"http://127.0.0.1:{self.upstream.port}/mcp",
            auth_type=AuthType.BEARER if credential else AuthType.NONE,
            active_version=1 if credential else 0,
        )
        connection = msgspec.structs.replace(connection, **more)
        self.put(connection, credential)
        return connection

    def put(self, connection: Connection, credential: str | None) -> None:
        sealed = None
        if credential is not None:
            target = parse_target(connection.upstream_url)
            assert isinstance(target, Target)
            binding = credential_binding(connection, connection.active_version, target.origin)
            sealed = self.ring.seal(credential.encode(), binding, 1, mint.nonce())
        self.publish(Published(connection=connection, sealed=sealed))

    def drop(self, kind: str, row: str) -> None:
        self.publish(Dropped(kind=kind, id=row))

    def events(self) -> list[Event]:
        """Everything in the spool, oldest first."""
        found: list[Event] = []
        for path in segments(self.folders.spool):
            with SegmentReader(path) as segment:
                found += [decode(line) for _, line in segment.lines(0)]
        return sorted(found, key=lambda event: event.at)

    def request(
        self,
        body: bytes = CALL,
        *fields: bytes,
        method: bytes = b"POST",
        target: bytes = b"/v1/mcp/upstream",
        key: str | None = "",
    ) -> bytes:
        """A well-formed request; `fields` are added as they stand, `key=None` leaves the key out."""
        lines = [b"%b %b HTTP/1.1" % (method, target), b"host: 127.0.0.1"]
        if key is not None:
            lines.append(b"authorization: Bearer " + (key or self.key).encode())
        if method == b"POST":
            lines += [b"content-type: application/json", b"content-length: %d" % len(body)]
        return b"\r\n".join([*lines, *fields]) + b"\r\n\r\n" + (body if method == b"POST" else b"")

    async def client(self) -> Client:
        return Client(*await asyncio.open_connection("127.0.0.1", self.port))

    async def ask(self, data: bytes) -> Answered:
        """One request on a connection of its own."""
        client = await self.client()
        client.send(data)
        answered = await client.answer()
        await client.close()
        return answered

    async def until(self, true: Callable[[], bool]) -> None:
        """Let the loop turn until it is so."""
        deadline = time.monotonic() + 10
        while not true():
            assert time.monotonic() < deadline, (
                f"{self.gate!r}, {len(self.upstream.asked)} asked, {len(self.events())} events"
            )
            await asyncio.sleep(0)

    async def turns(self, count: int = 50) -> None:
        """Let the loop turn often enough for anything that is on its way over loopback to arrive."""
        for _ in range(count):
            await asyncio.sleep(0)

    async def event(self, count: int = 1) -> Event:
        """The newest event, once there are `count`."""
        await self.until(lambda: len(self.events()) >= count)
        events = self.events()
        assert len(events) == count
        return events[-1]

    async def quiet(self, *connections: Connection) -> None:
        """Until nothing is under way, and nothing is held or counted for it any more."""
        await self.until(lambda: not self.gate.live and not self.gate.callers)
        assert [self.gate.in_flight.count(connection.number) for connection in connections] == [0] * len(connections)
        assert (self.gate.bodies.used, self.gate.api_bodies.used) == (0, 0)
        await self.until(
            lambda: self.gate.pool._open == {each for idle in self.gate.pool._idle.values() for each in idle}
        )


@asynccontextmanager
async def staged(
    folder: Path, *, clock: bool = True, settings: dict | None = None, **limits: object
) -> AsyncIterator[Stage]:
    """A stage with these limits. `clock` runs the gate's tick, as the worker does."""
    stage = Stage(folder, Limits(**{"check_seconds": 0.01} | limits), **(settings or {}))
    loop = asyncio.get_running_loop()
    upstream = await asyncio.start_server(stage.upstream.serve, "127.0.0.1", 0, limit=1 << 22)
    stage.upstream.port = upstream.sockets[0].getsockname()[1]
    server = await loop.create_server(partial(Inbound, stage.gate), "127.0.0.1", 0)
    stage.port = server.sockets[0].getsockname()[1]

    async def tick() -> None:
        while True:
            await asyncio.sleep(stage.config.limits.check_seconds)
            stage.gate.tick()

    ticking = loop.create_task(tick()) if clock else None
    try:
        yield stage
    finally:
        if ticking is not None:
            ticking.cancel()
        server.close()
        upstream.close()
        for caller in tuple(stage.gate.callers):
            caller.abort()
        await asyncio.sleep(0)
        stage.gate.close()
