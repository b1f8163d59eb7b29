"""One exchange: joins a client to an upstream, in both directions, with all its backpressure and its one event.

Guarantees: status and body bytes pass unmodified and as they arrive (promise 3 names the exceptions); a client that
leaves closes the upstream at once, an upstream that dies leaves the client's answer broken, never complete; the event
stands in the spool before the client gets the end of its answer; whatever happens, there is exactly one.
"""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

from keystile.audit.event import Outcome
from keystile.core.decide import Forward
from keystile.core.echo import echo_of
from keystile.core.exchange import ENDED, State, Step, after
from keystile.core.headers import scrubbed
from keystile.core.http1 import AnswerHead
from keystile.dial import DialError
from keystile.errors import REFUSALS, Refusal
from keystile.gateway import notice
from keystile.gateway.answers import COMMENT, LAST_CHUNK, chunk, status_line
from keystile.gateway.gate import Gate
from keystile.gateway.record import Record
from keystile.gateway.upstream import Upstream

if TYPE_CHECKING:
    from keystile.gateway.inbound import Inbound

_OUTCOMES: dict[State, Outcome] = {
    State.DONE: "done",
    State.REFUSED: "refused",
    State.UPSTREAM_FAILED: "upstream_failed",
    State.CLIENT_LEFT: "client_left",
}
_BORDERS = (b"\n\n", b"\r\r", b"\r\n\r\n")
_TAIL = 4
_PLAIN = frozenset((b"identity", b""))


class Relay:
    """The live half of an exchange: from the decision to forward until its event is written."""

    __slots__ = (
        "_body",
        "_chunked",
        "_client",
        "_credential",
        "_dialling",
        "_echo",
        "_entered",
        "_forward",
        "_gate",
        "_out",
        "_record",
        "_slot",
        "_state",
        "_stream",
        "_tail",
        "_touched",
        "_upstream",
        "_wrote",
        "connection",
        "key",
    )

    def __init__(self, gate: Gate, client: Inbound, record: Record, forward: Forward, body: bytes) -> None:
        self._gate = gate
        self._client = client
        self._record = record
        self._forward = forward
        self._body = body
        self.key = forward.admitted.key
        self.connection = forward.admitted.endpoint.connection
        self._state = State.READING
        self._upstream: Upstream | None = None
        self._dialling: asyncio.Task[None] | None = None
        self._echo = echo_of(forward.credential)
        self._out: list[bytes] = []
        self._entered = self._chunked = self._stream = False
        self._tail = b""
        self._slot: int | None = None
        self._touched = self._wrote = record.decided

    def __repr__(self) -> str:
        return f"<Relay {self._state.value} {self.connection.slug}>"

    def start(self) -> None:
        """Send it on a warm connection, or dial one."""
        self._gate.live.add(self)
        limit = self.connection.max_in_flight or self._gate.limits.in_flight
        self._entered = self._gate.in_flight.enter(self.connection.number, limit)
        if not self._entered:
            self._break(Step.REFUSE, REFUSALS["connection_busy"])
            return
        self._slot = self._gate.trail.open(self._record.open())
        if self._slot is None:
            self._break(Step.REFUSE, REFUSALS["trail_unavailable"])
            return
        upstream = self._gate.pool.take(self._forward.admitted.endpoint.pool_key)
        if upstream is not None:
            self._send(upstream)
            return
        self._state = after(self._state, Step.DIAL)
        self._dialling = asyncio.get_running_loop().create_task(self._dial())

    async def _dial(self) -> None:
        began = time.monotonic()
        try:
            upstream = await self._gate.pool.dial(self._forward.admitted.endpoint)
        except Exception as error:  # noqa: BLE001 — a dial that ends by a bug must not leave its exchange waiting
            if not isinstance(error, DialError):
                notice.bug(error, "dial")
            self._dialling = None
            self.failed(error.refusal if isinstance(error, DialError) else REFUSALS["internal_error"])
            return
        self._record.dialled = time.monotonic() - began
        self._dialling = None
        if self._state is not State.DIALLING:
            upstream.close()
            return
        self._send(upstream)

    def _send(self, upstream: Upstream) -> None:
        self._state = after(self._state, Step.SEND)
        self._upstream = upstream
        self._touched = self._record.sent = time.monotonic()
        body, self._body = self._body, b""
        upstream.send(self, self._forward.head, body)

    # What the upstream does (gateway.upstream.Asker)

    def answered(self, head: AnswerHead) -> None:
        """The answer's head: refused, or scrubbed and passed on at once."""
        record = self._record
        record.answered = self._touched = time.monotonic()
        record.upstream_status = head.status
        refusal = self._judge(head)
        if refusal is not None:
            self.failed(refusal)
            return
        fields = head.named
        self._stream = fields.get(b"content-type", b"").lower().startswith(b"text/event-stream")
        lines = scrubbed(head.fields)
        session = fields.get(b"mcp-session-id")
        if session is not None:
            wrapped = self._forward.admitted.holder.sign(session)
            if wrapped is None:
                self.failed(REFUSALS["upstream_malformed"])
                return
            lines.append(b"mcp-session-id: " + wrapped)
        if b"cache-control" not in fields:
            lines.append(b"cache-control: no-store")
        if self._stream:
            lines.append(b"x-accel-buffering: no")
        lines.append(b"x-keystile-trace-id: " + record.trace.encode("ascii"))
        self._chunked = self._client.frames(lines, head)
        text = b"\r\n".join(lines)
        if self._echo is not None:
            text = self._echo.masked(text)
        self._state = after(self._state, Step.ANSWER)
        record.status = head.status
        self._out.append(status_line(head.status) + text + b"\r\n\r\n")

    def received(self, data: bytes) -> None:
        """A piece of the body."""
        self._touched = time.monotonic()
        if self._echo is not None:
            data = self._echo.feed(data)
        self._pass(data)

    def flush(self) -> None:
        """Write what one read brought, in one piece."""
        if self._out:
            self._wrote = self._touched
            self._client.write(b"".join(self._out))
            self._out.clear()

    def finished(self) -> None:
        """The answer is complete."""
        self._upstream = None
        if self._echo is not None:
            self._pass(self._echo.flush())
        if self._chunked:
            self._out.append(LAST_CHUNK)
        self._end(Step.FINISH)
        self.flush()
        self._client.ended()

    def failed(self, refusal: Refusal) -> None:
        """The upstream, or the way to it, failed; its connection is not used again."""
        self._break(Step.FAIL, refusal)

    # What the client does

    def left(self) -> None:
        """The client is gone: the upstream's connection closes at once. Nothing else is inferred."""
        if self._state not in ENDED:
            self._drop_upstream()
            self._end(Step.LEAVE)

    def pause(self) -> None:
        """The client reads slowly."""
        if self._upstream is not None:
            self._upstream.pause()

    def resume(self) -> None:
        """It has caught up."""
        if self._upstream is not None:
            self._upstream.resume()

    # What the gate does

    def withdraw(self, refusal: Refusal) -> None:
        """The key or the connection was revoked, narrowed, disabled, deleted, or has expired."""
        if self._state not in ENDED:
            self._break(Step.REFUSE, refusal)

    def tick(self, now: float) -> None:
        """Time-outs, and a comment line on an idle event stream."""
        limits = self._gate.limits
        if self._state is State.WAITING:
            if now - self._touched > limits.first_byte_seconds:
                self.failed(REFUSALS["upstream_timeout"])
        elif self._state is State.ANSWERING:
            if now - self._touched > limits.idle_seconds:
                self.failed(REFUSALS["stream_idle"])
            elif self._stream and self._chunked and now - self._wrote > limits.comment_seconds and self._at_border:
                self._wrote = now
                self._client.write(chunk(COMMENT))

    # Its own

    @property
    def _request_id(self) -> bytes | None:
        operations = self._forward.operations
        return operations[0].id if len(operations) == 1 and operations[0].kind == "request" else None

    @property
    def _at_border(self) -> bool:
        held = self._echo is not None and self._echo.holds
        return not held and (not self._tail or self._tail.endswith(_BORDERS))

    def _pass(self, data: bytes) -> None:
        if not data:
            return
        self._record.bytes_out += len(data)
        if self._stream:
            self._tail = (self._tail + data[-_TAIL:])[-_TAIL:]
        self._out.append(chunk(data) if self._chunked else data)

    def _judge(self, head: AnswerHead) -> Refusal | None:
        """What of an upstream's answer never reaches a client."""
        if 300 <= head.status < 400 and head.status != 304:  # noqa: PLR2004 — RFC 9110, section 15.4
            return REFUSALS["upstream_redirected"]
        if head.status in {401, 403} and self._forward.credential is not None:
            return REFUSALS["upstream_auth_failed"]
        if head.named.get(b"content-encoding", b"identity").lower() not in _PLAIN:
            return REFUSALS["upstream_encoding"]
        return None

    def _break(self, step: Step, refusal: Refusal) -> None:
        self._drop_upstream()
        answering = self._state is State.ANSWERING
        if answering:
            self._end(step, refusal)
            self._client.abort()
            return
        self._record.status = refusal.status
        self._end(step, refusal)
        self._client.turn_away(refusal, self._request_id, self._record.trace)

    def _drop_upstream(self) -> None:
        if self._dialling is not None:
            self._dialling.cancel()
            self._dialling = None
        if self._upstream is not None:
            self._upstream.close()
            self._upstream = None

    def _end(self, step: Step, refusal: Refusal | None = None) -> None:
        self._state = after(self._state, step)
        self._record.redacted = self._echo is not None and self._echo.found
        self._gate.live.discard(self)
        if self._entered:
            self._gate.in_flight.leave(self.connection.number)
        self._gate.trail.record(self._record.event(_OUTCOMES[self._state], refusal), self._slot)
