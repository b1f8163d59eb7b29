"""A running gateway with a scripted upstream beside it, for tests that look at both at once.

`scene(running)` opens an upstream of the test's own on loopback and makes connections to it in the gateway that the
session shares; what a test makes is its own, since every connection has a slug of its own.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from tests.gateway.stage import CALL, Answered, Client, Upstream
from tests.peers.gateway import Answer, Gateway

CREDENTIAL = "made-up-credential-0123456789"


class Scene:
    """A gateway, an upstream, and one connection to it under `slug`, callable with the client key `key`."""

    def __init__(self, running: Gateway, upstream: Upstream) -> None:
        self.running = running
        self.upstream = upstream
        self.slug = ""
        self.key = ""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.upstream.port}/mcp"

    async def api(self, method: str, path: str, body: object = None, **more: Any) -> Answer:
        """A REST call, in a thread: the loop serves the upstream meanwhile."""
        return await asyncio.to_thread(self.running.api, method, path, body, **more)

    async def connect(self, credential: str | None = CREDENTIAL, **more: object) -> str:
        return await asyncio.to_thread(self.running.connection, self.url, credential, **more)

    async def client_key(self, **more: object) -> str:
        return await asyncio.to_thread(lambda: self.running.client_key(**more))

    def request(
        self,
        body: bytes = CALL,
        *fields: bytes,
        method: bytes = b"POST",
        target: bytes | None = None,
        key: str | None = "",
        host: bytes = b"127.0.0.1",
    ) -> bytes:
        """A well-formed request; `fields` are added as they stand, `key=None` leaves the key out."""
        lines = [b"%b %b HTTP/1.1" % (method, target or f"/v1/mcp/{self.slug}".encode()), b"host: " + host]
        if key is not None:
            lines.append(b"authorization: Bearer " + (key or self.key).encode())
        if method == b"POST":
            lines += [b"content-type: application/json", b"content-length: %d" % len(body)]
        return b"\r\n".join([*lines, *fields]) + b"\r\n\r\n" + (body if method == b"POST" else b"")

    async def client(self) -> Client:
        return Client(*await asyncio.open_connection("127.0.0.1", self.running.port))

    async def ask(self, data: bytes) -> Answered:
        """One request on a connection of its own."""
        client = await self.client()
        client.send(data)
        answered = await client.answer()
        await client.close()
        return answered

    async def events(self, expected: int, **filters: object) -> list[dict[str, Any]]:
        filters = {"connection": self.slug, **filters}
        return await asyncio.to_thread(lambda: self.running.events(expected, **filters))

    def forget(self) -> None:
        self.upstream.asked.clear()


@asynccontextmanager
async def scene(running: Gateway, credential: str | None = CREDENTIAL, **more: object) -> AsyncIterator[Scene]:
    """A scene with one connection; `more` joins the body that creates it."""
    async with listening(Upstream()) as upstream:
        made = Scene(running, upstream)
        made.slug = await made.connect(credential, **more)
        made.key = await made.client_key()
        yield made


@asynccontextmanager
async def listening(upstream: Upstream) -> AsyncIterator[Upstream]:
    """The upstream on a loopback port."""
    server = await asyncio.start_server(upstream.serve, "127.0.0.1", 0)
    upstream.port = server.sockets[0].getsockname()[1]
    yield upstream
    server.close()


async def eventually(claim: Callable[[], bool], *, seconds: float = 20) -> None:
    """Until it is so; `claim` runs in a thread."""
    deadline = time.monotonic() + seconds
    while not await asyncio.to_thread(claim):
        assert time.monotonic() < deadline
        await asyncio.sleep(0.02)
