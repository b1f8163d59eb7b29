"""A scripted upstream: raw HTTP/1.1 over a real socket, and what it was asked."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any


class Asked:
    """One request as it came."""

    def __init__(self, head: bytes, body: bytes) -> None:
        line, *fields = head.decode("latin-1").split("\r\n")
        self.method, self.target, _ = line.split(" ")
        self.fields = {name.lower(): value.strip() for name, _, value in (field.partition(":") for field in fields)}
        self.body = body

    @property
    def rpc(self) -> str | None:
        """The JSON-RPC method."""
        return json.loads(self.body)["method"] if self.body else None


Script = Callable[[Asked], bytes]


class Upstream:
    """Where it listens, and what it was asked."""

    def __init__(self, port: int) -> None:
        self.url = f"http://127.0.0.1:{port}/mcp?x=1"
        self.asked: list[Asked] = []


def answer(status: str, body: bytes = b"", **fields: str) -> bytes:
    """A whole answer with a length."""
    lines = [f"HTTP/1.1 {status}", f"content-length: {len(body)}"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in fields.items()]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


def result(value: Any, **fields: str) -> bytes:
    """A JSON-RPC result as JSON."""
    body = json.dumps({"jsonrpc": "2.0", "id": 1, "result": value}).encode()
    return answer("200 OK", body, content_type="application/json", **fields)


@asynccontextmanager
async def upstream(script: Script, *, hang: bool = False) -> AsyncIterator[Upstream]:
    """Serve a script: a function from a request to the bytes of its answer."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n"))[:-4]
        asked = Asked(head, b"")
        asked.body = await reader.readexactly(int(asked.fields.get("content-length", "0")))
        running.asked.append(asked)
        writer.write(script(asked))
        if hang:
            await reader.read()  # until the peer goes
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    running = Upstream(server.sockets[0].getsockname()[1])
    async with server:
        yield running
