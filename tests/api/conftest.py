"""The real application over real SQLite, on a unix socket in tmp_path, served as control.py serves it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest

from keystile import control
from keystile.config import Config
from keystile.feed import CONTROL_SERVES, FeedReader, Word
from keystile.initialise import initialise
from keystile.node import Boot, Folders

NODE_KEY = b"n" * 32
LOOPBACK = ("127.0.0.0/8",)


class Served:
    """A running control process, in this process: a client for each of its sockets."""

    def __init__(self, folders: Folders, word: Word, admin: str) -> None:
        self.folders = folders
        self.word = word
        self.admin = admin
        self.api = self.client(admin)
        self.host = httpx2.AsyncClient(
            transport=httpx2.AsyncHTTPTransport(uds=str(folders.host_socket)), base_url="http://host/host/v1"
        )

    def client(self, key: str | None) -> httpx2.AsyncClient:
        """A client of the API that shows this key."""
        return httpx2.AsyncClient(
            transport=httpx2.AsyncHTTPTransport(uds=str(self.folders.control_socket)),
            base_url="http://gateway.example/api/v1",
            headers={"authorization": f"Bearer {key}"} if key else {},
            timeout=30,
        )

    async def key(self, role: str = "client", **fields: Any) -> tuple[str, httpx2.AsyncClient]:
        """A new key of a role, and a client that shows it."""
        made = await self.api.post("/keys", json={"name": role, "role": role} | fields)
        assert made.status_code == 201, made.text
        return made.json()["data"]["id"], self.client(made.json()["data"]["key"])

    async def connection(self, slug: str = "example", client: httpx2.AsyncClient | None = None, **fields: Any) -> Any:
        """A new connection; its view."""
        body = {"slug": slug, "name": slug, "upstreamUrl": "http://127.0.0.1:9/mcp", "credential": "made-up-secret-1"}
        body |= fields
        made = await (client or self.api).post(
            "/connections", json={name: value for name, value in body.items() if value is not None}
        )
        assert made.status_code == 201, made.text
        return made.json()["data"]

    def reader(self) -> FeedReader:
        """A worker's view of the configuration."""
        return FeedReader(self.folders, NODE_KEY, self.word)


@asynccontextmanager
async def serving(tmp_path: Path, **settings: Any) -> AsyncIterator[Served]:
    """A control process over a new data folder."""
    config = Config(data_dir=str(tmp_path / "data"), workers=1, **({"upstreams_allow": LOOPBACK} | settings))
    folders = Folders(config.data_dir)
    first = await initialise(config)
    assert first is not None
    word = Word.create(folders.word, 1)
    running = control.Control(Boot(config=config, node_key=NODE_KEY))
    task = asyncio.create_task(running.run())
    while not word.cells[CONTROL_SERVES]:
        assert not task.done(), task.result()
        await asyncio.sleep(0)
    served = Served(folders, word, first.key.reveal().decode())
    try:
        yield served
    finally:
        await served.api.aclose()
        await served.host.aclose()
        running.stop()
        assert await task == 0


@pytest.fixture
async def served(anyio_backend: str, tmp_path: Path) -> AsyncIterator[Served]:
    async with serving(tmp_path) as running:
        yield running


@pytest.fixture
async def bare(anyio_backend: str, tmp_path: Path) -> AsyncIterator[Served]:
    """As it comes: no upstream range is allowed."""
    async with serving(tmp_path, upstreams_allow=()) as running:
        yield running
