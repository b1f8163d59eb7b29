"""Promise 2: a request that starts after a rotate call has answered uses the new credential, and none fails."""

from __future__ import annotations

import asyncio
import json
from datetime import UTC, datetime, timedelta

import pytest

from tests.e2e.scene import Scene, scene
from tests.gateway.stage import Asked
from tests.peers.gateway import Gateway

pytestmark = [pytest.mark.anyio, pytest.mark.xdist_group("bugs")]

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
    """`answered` is the newest version whose rotate call has answered."""

    def __init__(self) -> None:
        self.answered = 1
        self.over = False


async def call_until_over(at: Scene, rotations: Rotations) -> list[tuple[int, int]]:
    """(newest version when the request began, version the upstream got), for each call."""
    client, request = await at.client(), at.request()
    found: list[tuple[int, int]] = []
    while not rotations.over:
        newest = rotations.answered
        client.send(request)
        answered = await client.answer()
        assert answered.status == 200, answered.body
        found.append((newest, json.loads(answered.body)["result"]["number"]))
    await client.close()
    return found


async def rotate_many(at: Scene, rotations: Rotations) -> None:
    try:
        for number in range(2, ROTATIONS + 2):
            rotated = await at.api("POST", f"/connections/{at.slug}/rotate", {"credential": credential(number)})
            assert rotated.data["credentialVersion"] == number
            rotations.answered = number
    finally:
        rotations.over = True


async def test_no_request_that_starts_after_a_rotation_carries_an_older_credential(running: Gateway) -> None:
    async with scene(running, credential(1)) as at:
        at.upstream.handler = tell_number
        rotations = Rotations()
        calls = [asyncio.create_task(call_until_over(at, rotations)) for _ in range(CALLERS)]
        await rotate_many(at, rotations)
        found = [pair for call in calls for pair in await call]
        assert [pair for pair in found if pair[1] < pair[0]] == []
        assert len({used for _, used in found}) > ROTATIONS // 2, "the load did not meet the rotations"
        trail = await at.events(min(1000, len(found)))
        assert {event["outcome"] for event in trail} == {"done"}


async def test_rolling_back_and_disabling_count_from_their_answer_on(running: Gateway) -> None:
    async with scene(running, credential(1)) as at:
        at.upstream.handler = tell_number
        path = f"/connections/{at.slug}"
        assert (await at.api("POST", f"{path}/rotate", {"credential": credential(2)})).status == 200
        clients = [await at.client() for _ in range(8)]  # so that each worker has some

        async def numbers() -> set[int]:
            for client in clients:
                client.send(at.request())
            answers = [await client.answer() for client in clients]
            return {answer.json["result"]["number"] if answer.status == 200 else answer.status for answer in answers}

        for version in (1, 2, 1):
            assert (await at.api("POST", f"{path}/versions/{version}/activate")).status == 200
            assert await numbers() == {version}
        for enabled, seen in ((False, {403}), (True, {1})):
            assert (await at.api("PATCH", path, {"enabled": enabled})).status == 200
            assert await numbers() == seen
        key_id = (await at.api("GET", "/keys?limit=1")).data[0]["id"]
        assert (await at.api("DELETE", f"/keys/{key_id}")).status == 204
        assert await numbers() == {401}


async def stay_open(_: Asked, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """A stream that says nothing and ends with the gateway's side."""
    writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n")
    await reader.read()


async def test_a_narrowed_key_is_refused_at_once_and_its_open_streams_end_within_a_second(running: Gateway) -> None:
    async with scene(running) as at:
        at.upstream.handler = stay_open
        other = await at.connect()
        key = await at.client_key(connections=[at.slug, other])
        key_id = (await at.api("GET", "/keys?limit=1")).data[0]["id"]
        narrowed, kept = [await at.client() for _ in range(4)], await at.client()
        for client in narrowed:  # so that each worker has some
            client.send(at.request(method=b"GET", key=key))
            assert (await client.head()).status == 200
        kept.send(at.request(method=b"GET", target=f"/v1/mcp/{other}".encode(), key=key))
        assert (await kept.head()).status == 200
        patched = await at.api("PATCH", f"/keys/{key_id}", {"connections": [other]})
        assert (patched.status, patched.data["connections"]) == (200, [other])
        async with asyncio.timeout(1):
            assert all([await client.closed() for client in narrowed])
        assert (await at.ask(at.request(key=key))).code == "out_of_scope"
        assert [event["refusal"] for event in await at.events(5)] == ["out_of_scope"] * 5
        await at.upstream.until(lambda: at.upstream.closed == 4)
        assert at.upstream.connections == 5  # the stream that the key still opens goes on
        await kept.close()


async def test_a_key_opens_nothing_from_its_expiry_on(running: Gateway) -> None:
    async with scene(running) as at:
        moment = datetime.now(UTC) + timedelta(seconds=1)
        key = await at.client_key(expiresAt=moment.isoformat())
        client, codes = await at.client(), set[str]()
        while "key_expired" not in codes:
            began = datetime.now(UTC)
            client.send(at.request(key=key))
            answered = await client.answer()
            codes.add("" if answered.status == 200 else answered.code)
            assert answered.status == 401 or began < moment
        assert codes == {"", "key_expired"}
        assert (await at.api("GET", "/connections", key=key)).status == 401
