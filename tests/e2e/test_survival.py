"""Processes killed under load: what a client was answered stands in the trail once, what was forwarded does too."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.scene import Scene, eventually, scene
from tests.e2e.test_node import CONTROL, WORKER, pids
from tests.gateway.stage import RESULT, Asked, answer_of
from tests.peers.gateway import Gateway, gateway
from tests.peers.processes import PATIENCE

pytestmark = [pytest.mark.anyio, pytest.mark.xdist_group("survival")]

CALLERS = 24
CALL = b'{"jsonrpc":"2.0","id":%d,"method":"tools/call","params":{"name":"echo","arguments":{}}}'
PIECE = b'data: {"jsonrpc":"2.0","method":"notifications/message"}\n\n'


class Load:
    """Callers that go on until `over`, and pause while `going` is not set.

    They know the numbers of the calls that were answered whole, and which refusals they met.
    `answered` is called right after a caller has read the end of an answer, in the same turn of the loop.
    """

    def __init__(self, at: Scene) -> None:
        self.at = at
        self.over = False
        self.going = asyncio.Event()
        self.going.set()
        self.whole: set[int] = set()
        self.refused: Counter[str] = Counter()
        self.turned_away: set[int] = set()
        self.answered: Callable[[], None] = lambda: None
        self._numbers = count(1)
        at.upstream.handler = self._reply

    async def _reply(self, asked: Asked, _: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Half of the answers are whole at once, the others come in pieces."""
        number = json.loads(asked.body)["id"]
        if number % 2:
            writer.write(answer_of(RESULT, b"content-type: application/json"))
            return
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n")
        for _ in range(number % 16):
            writer.write(b"%x\r\n%b\r\n" % (len(PIECE), PIECE))
            await writer.drain()
            await asyncio.sleep(0)
        writer.write(b"0\r\n\r\n")

    async def run(self) -> None:
        await asyncio.gather(*(self._call() for _ in range(CALLERS)))

    async def _call(self) -> None:
        while not self.over:
            try:
                client = await self.at.client()
                while await self.going.wait() and not self.over:
                    number = next(self._numbers)
                    client.send(self.at.request(CALL % number, b"x-keystile-trace-id: %d" % number))
                    answered = await client.answer()
                    if not answered.complete:
                        break
                    if answered.status == 200:
                        self.whole.add(number)
                        self.answered()
                    else:
                        self.refused[answered.code] += 1
                        self.turned_away.add(number)
            except (OSError, asyncio.IncompleteReadError):
                continue
            finally:
                client.writer.close()

    @property
    def forwarded(self) -> set[int]:
        """What the upstream saw the whole of."""
        return {json.loads(asked.body)["id"] for asked in self.at.upstream.asked}


@asynccontextmanager
async def under_load(at: Scene) -> AsyncIterator[Load]:
    """Callers at work; behind the block, each has had its last answer."""
    load = Load(at)
    loading = asyncio.create_task(load.run())
    try:
        yield load
        load.over = True
        load.going.set()
        await loading
    finally:
        loading.cancel()


class Killer:
    """Kills once so many more calls were answered, in the very moment in which a client has read the end of one."""

    def __init__(self, load: Load) -> None:
        self._load = load
        self._left = 0
        self._victims: list[int] = []
        self._killed = asyncio.Event()
        load.answered = self._answered

    async def kill(self, victims: list[int], after: int) -> None:
        assert victims
        self._victims, self._left = victims, after
        self._killed.clear()
        await asyncio.wait_for(self._killed.wait(), PATIENCE)

    def _answered(self) -> None:
        self._left -= 1
        if self._left == 0:
            for pid in self._victims:
                os.kill(pid, signal.SIGKILL)
            self._killed.set()


async def trail(running: Gateway, slug: str, until: Callable[[list[dict[str, Any]]], bool]) -> list[dict[str, Any]]:
    """All events of the connection, page by page, once they are as many as asked for."""

    def read() -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = []
        cursor = ""
        while cursor is not None:
            page = running.api("GET", f"/events?connection={slug}&limit=1000{cursor and f'&cursor={cursor}'}")
            found += page.data
            cursor = page.body["meta"]["nextCursor"]
        return found

    deadline = time.monotonic() + PATIENCE
    while not until(found := await asyncio.to_thread(read)):
        assert time.monotonic() < deadline, f"{len(found)} events"
    return found


async def judged(running: Gateway, load: Load, slug: str) -> Counter[str]:
    """Hold the trail against what clients and upstream saw; how often each outcome occurred."""
    forwarded = load.forwarded
    assert load.turned_away.isdisjoint(forwarded)
    events = await trail(running, slug, lambda found: len({event["traceId"] for event in found}) >= len(forwarded))
    of = Counter(int(event["traceId"]) for event in events)
    assert [number for number, times in of.items() if times > 1] == []
    outcomes = {int(event["traceId"]): event["outcome"] for event in events}
    assert [number for number in load.whole if outcomes.get(number) != "done"] == []
    assert forwarded - outcomes.keys() == set()
    # A line may stand although its client never got the end of the answer; never the other way round.
    assert {outcomes[number] for number in forwarded - load.whole} <= {"interrupted", "done"}
    assert len({event["id"] for event in events}) == len(events)
    return Counter(outcomes.values())


def whole(running: Gateway, killed: list[int]) -> bool:
    """Whether all processes serve, and none of them is one that was killed."""
    return not set(killed) & set(running.processes()) and running.ready() and running.administered()


@pytest.mark.parametrize("victims", ["worker", "control", "both"])
async def test_every_answered_call_is_in_the_trail_once_whoever_is_killed(tmp_path: Path, victims: str) -> None:
    with gateway(tmp_path, workers=2) as running:
        async with scene(running) as at:
            async with under_load(at) as load:
                killer = Killer(load)
                for after in (100, 377):
                    workers, control = pids(running, WORKER), pids(running, CONTROL)
                    killed = {"worker": workers[:1], "control": control, "both": [*workers, *control]}[victims]
                    await killer.kill(killed, after)
                    load.going.clear()  # a process starts faster where it is not kept busy
                    await eventually(lambda killed=killed: whole(running, killed))
                    load.going.set()
            seen = await judged(running, load, at.slug)
            assert load.refused == {}
            assert (seen["interrupted"] > 0) == (victims != "control")
            assert list((running.data / "spool").glob("*.damaged")) == []


async def test_a_node_that_is_killed_whole_finds_its_trail_when_it_starts_again(tmp_path: Path) -> None:
    with gateway(tmp_path, workers=2) as running:
        async with scene(running) as at:
            async with under_load(at) as load:
                await Killer(load).kill(running.processes(), 500)
            await asyncio.to_thread(running.running.wait, PATIENCE)
            with gateway(tmp_path, workers=2, admin_key=running.admin_key) as again:
                seen = await judged(again, load, at.slug)
                assert seen["interrupted"] > 0
                await eventually(lambda: len(list((again.data / "spool").glob("*.slots"))) == 0)
