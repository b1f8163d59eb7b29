"""A bug of ours costs the request it befell, and nothing else."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from tests.gateway.stage import RESULT, Stage, staged

pytestmark = pytest.mark.anyio


class Broken:
    """A part of the gate that raises whatever is asked of it."""

    def __getattr__(self, name: str) -> object:
        raise ZeroDivisionError(name)


async def hanging(stage: Stage) -> None:
    """Let the upstream never answer."""

    async def wait(*_: object) -> None:
        await asyncio.Event().wait()

    stage.upstream.handler = wait


async def test_a_request_that_meets_a_bug_is_one_internal_error_and_one_event(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    async with staged(tmp_path) as stage:
        stage.connect()
        stage.gate.in_flight = Broken()
        answered = await stage.ask(stage.request())
        assert (answered.status, answered.code) == (500, "internal_error")
        assert (await stage.event()).refusal == "internal_error"
        said = capsys.readouterr().err
        assert "ZeroDivisionError" in said
        assert "enter" not in said.split("trail=")[0], "an exception's message may hold what a caller sent"


async def test_a_pipelined_request_that_meets_a_bug_spoils_neither_the_first_nor_the_upstream(tmp_path: Path) -> None:
    async with staged(tmp_path) as stage:
        stage.connect()
        sound = stage.gate.in_flight
        client = await stage.client()

        async def break_then_answer(asked: object, _: object, writer: asyncio.StreamWriter) -> None:
            stage.gate.in_flight, sound_leave = Broken(), sound.leave
            stage.gate.in_flight.__dict__["leave"] = sound_leave
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%b" % (len(RESULT), RESULT))

        stage.upstream.handler = break_then_answer
        client.send(stage.request() * 2)
        assert (await client.answer()).body == RESULT
        second = await client.answer()
        assert (second.status, second.code) == (500, "internal_error")
        outcomes = [event.outcome for event in stage.events()]
        assert sorted(outcomes) == ["done", "refused"]
        stage.gate.in_flight = sound
        assert "open=1" in repr(stage.gate.pool)


async def test_one_exchanges_bug_stops_no_other_time_out(tmp_path: Path) -> None:
    async with staged(tmp_path, first_byte_seconds=0.02) as stage:
        stage.connect()
        await hanging(stage)
        broken = await stage.client()
        broken.send(stage.request())
        await stage.upstream.until(lambda: len(stage.upstream.asked) == 1)
        (live,) = stage.gate.live
        live._touched = "not a time"
        other = await stage.client()
        other.send(stage.request())
        assert (await other.answer()).code == "upstream_timeout"


async def test_a_control_process_that_does_not_answer_is_not_waited_for_without_end(tmp_path: Path) -> None:
    silent = await asyncio.start_unix_server(lambda *_: asyncio.sleep(60), tmp_path / "silent.sock")
    async with staged(tmp_path / "data", first_byte_seconds=0.05) as stage:
        stage.gate.control = stage.gate.pool._control = str(tmp_path / "silent.sock")
        answered = await stage.ask(b"GET /api/v1/connections HTTP/1.1\r\nhost: localhost\r\n\r\n")
        assert answered.status == 503
        assert answered.json["error"]["code"] == "control_unavailable"
        assert not stage.gate.errands
    silent.close()


@pytest.mark.parametrize("path", [b"/healthz", b"/readyz"])
async def test_probes_are_asked_by_get_and_head(tmp_path: Path, path: bytes) -> None:
    async with staged(tmp_path) as stage:
        answered = await stage.ask(b"DELETE %b HTTP/1.1\r\nhost: anything\r\n\r\n" % path)
        assert answered.status == 405
        assert answered.field(b"allow") == [b"GET, HEAD"]


async def test_a_node_is_ready_when_its_workers_are(tmp_path: Path) -> None:
    async with staged(tmp_path) as stage:
        probe = b"GET /readyz HTTP/1.1\r\nhost: anything\r\n\r\n"
        assert (await stage.ask(probe)).status == 503
        stage.word.cells[2] = 1
        assert (await stage.ask(probe)).status == 200
