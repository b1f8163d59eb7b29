"""Promise 2: a request that starts after a rotate call has answered uses the new credential, and none fails."""

from __future__ import annotations

import asyncio
import json
import time
from pathlib import Path

import pytest

from tests.gateway.stage import CALL, Asked, Client, Upstream
from tests.peers.gateway import Gateway, gateway

pytestmark = pytest.mark.anyio

CALLERS = 64
ROTATIONS = 200


def credential(number: int) -> str:
    return f"made-up-credential-number-{number}"


async def tell_number(asked: Asked, _: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Answer with the number of the credential that came."""
    number = asked.field(b"authorization")[0].rpartition(b"-")[2]
    body = b'{"jsonrpc":"2.0","id":7,"result":{"number":%b}}' % number
    writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(body) + body)


class Rotations:
    """When each version's rotate call had answered."""

    def __init__(self) -> None:
        self.answered = [(0.0, 1)]
        self.over = False

    def newest(self) -> int:
        return self.answered[-1][1]


async def call_until_over(port: int, request: bytes, rotations: Rotations) -> list[tuple[int, int]]:
    """(newest version when the request began, version the upstream got), for each call."""
    client = Client(*await asyncio.open_connection("127.0.0.1", port))
    found: list[tuple[int, int]] = []
    while not rotations.over:
        newest = rotations.newest()
        client.send(request)
        answered = await client.answer()
        assert answered.status == 200, answered.body
        found.append((newest, json.loads(answered.body)["result"]["number"]))
    await client.close()
    return found


async def rotate_many(running: Gateway, slug: str, rotations: Rotations) -> None:
    try:
        for number in range(2, ROTATIONS + 2):
            body = {"credential": credential(number)}
            answer = await asyncio.to_thread(running.api, "POST", f"/connections/{slug}/rotate", body)
            assert answer.status == 200, answer.body
            rotations.answered.append((time.monotonic(), number))
    finally:
        rotations.over = True


async def test_no_request_that_starts_after_a_rotation_carries_an_older_credential(tmp_path: Path) -> None:
    upstream = Upstream()
    upstream.handler = tell_number
    server = await asyncio.start_server(upstream.serve, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/mcp"
    with gateway(tmp_path, workers=2) as running:
        # To a thread, since the loop that serves the upstream must not stand still.
        slug = await asyncio.to_thread(running.connection, url, credential(1))
        key = await asyncio.to_thread(running.client_key)
        request = (
            b"POST /v1/mcp/%b HTTP/1.1\r\nhost: 127.0.0.1\r\nx-api-key: %b\r\ncontent-type: application/json\r\n"
            b"content-length: %d\r\n\r\n%b" % (slug.encode(), key.encode(), len(CALL), CALL)
        )
        rotations = Rotations()
        calls = [asyncio.create_task(call_until_over(running.port, request, rotations)) for _ in range(CALLERS)]
        await rotate_many(running, slug, rotations)
        found = [pair for call in calls for pair in await call]
        assert all(used >= newest for newest, used in found)
        assert len({used for _, used in found}) > ROTATIONS // 2, "the load did not meet the rotations"
        trail = await asyncio.to_thread(running.events, min(1000, len(found)), connection=slug)
        assert all(event["outcome"] == "done" for event in trail)
    server.close()
