"""Every exchange is in the trail before anything of it goes upstream, and finished in it before its answer ends."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from keystile.audit.event import Event, decode
from keystile.audit.slots import left_open
from keystile.gateway.inbound import Inbound
from tests.gateway.stage import CALL, RESULT, Asked, Stage, answer_of, answer_result, staged

pytestmark = pytest.mark.anyio

KNOWN_BEFORE = (
    *("id", "at", "organization", "connection", "key", "trace", "slug", "user", "metadata", "address"),
    *("http_method", "rpc_method", "name", "protocol", "credential_version"),
)


def under_way(stage: Stage) -> list[Event]:
    """What the slots hold: the events that would stand in the trail if the worker died now."""
    return [decode(line) for path in stage.folders.spool.glob("*.slots") for line in left_open(path)]


async def test_what_is_known_stands_in_a_slot_before_the_upstream_sees_a_byte(tmp_path: Path) -> None:
    seen: list[Event] = []

    async with staged(tmp_path) as stage:

        async def look(_: Asked, __: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            seen.extend(under_way(stage))
            assert stage.events() == []
            writer.write(answer_of(RESULT))

        stage.connect()
        stage.upstream.handler = look
        fields = (b"x-keystile-user: alice", b'x-keystile-metadata: {"team":"x"}', b"mcp-protocol-version: 2025-06-18")
        assert (await stage.ask(stage.request(CALL, *fields))).status == 200
        event = await stage.event()
        (slot,) = seen
        assert slot.outcome == "interrupted"
        assert {name: getattr(slot, name) for name in KNOWN_BEFORE} == {
            name: getattr(event, name) for name in KNOWN_BEFORE
        }
        assert None not in {getattr(slot, name) for name in KNOWN_BEFORE}
        assert (slot.status, slot.total_ms, slot.refusal) == (None, None, None)
        assert under_way(stage) == []


async def test_an_exchange_that_waits_for_a_dial_has_its_slot(tmp_path: Path) -> None:
    async with staged(tmp_path) as stage:
        stage.connect(upstream_url="http://127.0.0.1:1/mcp")
        assert (await stage.ask(stage.request())).code == "upstream_unreachable"
        assert under_way(stage) == []
        assert (await stage.event()).outcome == "upstream_failed"


async def test_every_end_of_an_exchange_frees_its_slot(tmp_path: Path) -> None:
    async def broken(_: Asked, __: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nabc")
        writer.close()

    async def never(_: Asked, reader: asyncio.StreamReader, __: asyncio.StreamWriter) -> None:
        await reader.read()

    async with staged(tmp_path) as stage:
        connection = stage.connect(max_in_flight=1)
        for handler in (answer_result, broken):
            stage.upstream.handler = handler
            await stage.ask(stage.request())
        stage.upstream.handler = never
        waiting = await stage.client()
        waiting.send(stage.request())
        await stage.until(lambda: len(under_way(stage)) == 1)
        assert (await stage.ask(stage.request())).code == "connection_busy"
        await waiting.close()
        await stage.quiet(connection)
        assert {event.outcome for event in stage.events()} == {"done", "upstream_failed", "client_left", "refused"}
        assert under_way(stage) == []


async def test_without_a_slot_nothing_is_forwarded(tmp_path: Path) -> None:
    async def never(_: Asked, reader: asyncio.StreamReader, __: asyncio.StreamWriter) -> None:
        await reader.read()

    async with staged(tmp_path, sockets=256) as stage:
        connection = stage.connect()
        stage.upstream.handler = never
        slots = stage.gate.trail._slots
        event = Event(id="", at=0, outcome="interrupted")
        taken = list(iter(lambda: slots.fill(event), None))
        answered = await stage.ask(stage.request())
        assert (answered.status, answered.code) == (503, "trail_unavailable")
        assert answered.field(b"retry-after") == [b"1"]
        assert stage.upstream.asked == []
        assert (await stage.event()).refusal == "trail_unavailable"
        for slot in taken:
            slots.free(slot)
        stage.upstream.handler = answer_result
        assert (await stage.ask(stage.request())).status == 200
        await stage.quiet(connection)


async def test_an_event_that_finds_no_room_keeps_its_slot_and_comes_when_there_is_some(tmp_path: Path) -> None:
    segment = 80 * 1024
    released = asyncio.Event()

    async def slow(_: Asked, __: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await released.wait()
        writer.write(answer_of(RESULT))

    async with staged(tmp_path, spool_segment_bytes=segment, spool_bytes=segment) as stage:
        stage.connect()
        stage.upstream.handler = slow
        client = await stage.client()
        client.send(stage.request())
        await stage.until(lambda: len(under_way(stage)) == 1)
        spool = stage.gate.trail.spool
        count = 0
        while spool.append(Event(id=f"{count}", at=count, outcome="done")):
            count += 1
        released.set()
        assert (await client.answer()).status == 200
        assert [event.outcome for event in under_way(stage)] == ["interrupted"]
        assert len(stage.events()) == count
        spool._bound_bytes = 2 * segment  # as when the ledger has made room
        spool._look_at = 0.0
        await stage.until(lambda: len(stage.events()) == count + 1)
        assert stage.events()[-1].outcome == "done"
        assert under_way(stage) == []
        await client.close()


class Watched:
    """A client's transport that looks at the trail at each write."""

    def __init__(self, stage: Stage, transport: asyncio.Transport) -> None:
        self._stage = stage
        self._transport = transport
        self.written = b""
        self.events_at: list[tuple[int, int]] = []  # bytes written so far, events in the spool before the last of them

    def write(self, data: bytes) -> None:
        self.written += data
        self.events_at.append((len(self.written), len(self._stage.events())))
        self._transport.write(data)

    def __getattr__(self, name: str) -> object:
        return getattr(self._transport, name)


async def test_a_line_stands_in_the_spool_before_the_last_byte_of_the_answer(tmp_path: Path) -> None:
    framed = (
        answer_of(RESULT),
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n%x\r\n%b\r\n0\r\n\r\n" % (len(RESULT), RESULT),
        b"HTTP/1.1 200 OK\r\nconnection: close\r\n\r\n" + RESULT,
        b"HTTP/1.1 202 Accepted\r\ncontent-length: 0\r\n\r\n",
        b"HTTP/1.1 302 Found\r\ncontent-length: 0\r\n\r\n",
        b"HTTP/0.9 what\r\n\r\n",
    )
    async with staged(tmp_path) as stage:
        stage.connect()
        for number, answer in enumerate(framed, 1):

            async def reply(
                _: Asked, __: asyncio.StreamReader, writer: asyncio.StreamWriter, answer: bytes = answer
            ) -> None:
                for at in range(len(answer)):
                    writer.write(answer[at : at + 1])
                    await writer.drain()
                    await asyncio.sleep(0)
                if b"connection: close" in answer:
                    writer.close()

            stage.upstream.handler = reply
            client = await stage.client()
            await stage.until(lambda: len(stage.gate.callers) == 1)
            (caller,) = stage.gate.callers
            assert isinstance(caller, Inbound)
            watched = Watched(stage, caller._transport)
            caller._transport = watched  # type: ignore[assignment]  # the socket, as far as the gateway knows
            client.send(stage.request())
            assert (await client.answer()).complete
            assert watched.events_at[-1] == (len(watched.written), number)
            assert {count for _, count in watched.events_at[:-1]} <= {number - 1}
            await client.close()
            await stage.until(lambda: not stage.gate.callers)
