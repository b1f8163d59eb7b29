"""One exchange: joins a client to an upstream, in both directions, with all its backpressure and its one event.

Guarantees: status and body bytes pass unmodified and as they arrive (promise 3 names the exceptions); a client that
leaves closes the upstream at once, an upstream that dies leaves the client's answer broken, never complete; the trail
has the event before the client has the end of its answer; whatever happens, there is exactly one.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from keystile.core.decide import Forward, request_id_of
from keystile.core.echo import echo_of
from keystile.core.exchange import ENDED, State, Step
from keystile.core.headers import scrubbed
from keystile.core.http1 import AnswerHead
from keystile.errors import REFUSALS, Refusal
from keystile.gateway.answers import COMMENT, LAST_CHUNK, chunk, status_line
from keystile.gateway.crossing import Crossing
from keystile.gateway.gate import Gate
from keystile.gateway.record import Record
from keystile.gateway.upstream import Upstream

if TYPE_CHECKING:
    from keystile.gateway.inbound import Inbound

_BORDERS = (b"\n\n", b"\r\r", b"\r\n\r\n")
_TAIL = 4
_PLAIN = frozenset((b"identity", b""))


class Relay:
    """The live half of an exchange: from the decision to forward until its event is written."""

    __slots__ = (
        "_body",
        "_chunked",
        "_client",
        "_crossing",
        "_echo",
        "_endpoint",
        "_entered",
        "_gate",
        "_head",
        "_holder",
        "_out",
        "_record",
        "_request_id",
        "_secret",
        "_slot",
        "_stream",
        "_tail",
        "_touched",
        "_wrote",
        "connection",
        "key",
    )

    def __init__(self, gate: Gate, client: Inbound, record: Record, forward: Forward, body: bytes) -> None:
        self._gate = gate
        self._client = client
        self._record = record
        self._head = forward.head
        self._body = body
        self._endpoint = forward.admitted.endpoint
        self._holder = forward.admitted.holder
        self._secret = forward.credential is not None
        self._request_id = request_id_of(forward.operations)
        self.key = forward.admitted.key
        self.connection = self._endpoint.connection
        self._crossing = Crossing(self)
        self._echo = echo_of(forward.credential)
        self._out: list[bytes] = []
        self._entered = self._chunked = self._stream = False
        self._tail = b""
        self._slot: int | None = None
        self._touched = self._wrote = record.decided

    def __repr__(self) -> str:
        return f"<Relay {self._record.state.value} {self.connection.slug}>"

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
        upstream = self._gate.pool.take(self._endpoint.pool_key)
        if upstream is not None:
            self.connected(upstream)
            return
        self._record.move(Step.DIAL)
        self._crossing.dial(self._gate.pool.dial(self._endpoint))

    # What the other side does (gateway.crossing.Traveller)

    def connected(self, upstream: Upstream) -> None:
        """Send it."""
        record = self._record
        now = time.monotonic()
        if record.state is State.DIALLING:
            record.dialled = now - record.decided
        record.move(Step.SEND)
        self._touched = record.sent = now
        head, self._head = self._head, b""
        body, self._body = self._body, b""
        self._crossing.send(upstream, head, body)

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
            wrapped = self._holder.sign(session)
            if wrapped is None:
                self.failed(REFUSALS["upstream_malformed"])
                return
            lines.append(b"mcp-session-id: " + wrapped)
        if b"cache-control" not in fields:
            lines.append(b"cache-control: no-store")
        if self._stream:
            lines.append(b"x-accel-buffering: no")
        lines.append(b"x-keystile-trace-id: " + record.trace.encode("ascii"))
        if self._crossing.sent:
            self._client.body_left()
        self._chunked = self._client.frames(lines, head)
        if self._echo is not None:
            lines = self._echo.masked_lines(lines)
        text = b"\r\n".join(lines)
        record.move(Step.ANSWER)
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
        self._crossing.arrived()
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
        if self._record.state not in ENDED:
            self._end(Step.LEAVE)

    def pause(self) -> None:
        """The client reads slowly."""
        self._crossing.pause()

    def resume(self) -> None:
        """It has caught up."""
        self._crossing.resume()

    # What the gate does

    def withdraw(self, refusal: Refusal) -> None:
        """The key or the connection was revoked, narrowed, disabled, deleted, or has expired."""
        if self._record.state not in ENDED:
            self._break(Step.REFUSE, refusal)

    def tick(self, now: float) -> None:
        """Time-outs, and a comment line on an idle event stream."""
        limits = self._gate.limits
        if self._record.state is State.WAITING:
            if now - self._touched > limits.first_byte_seconds:
                self.failed(REFUSALS["upstream_timeout"])
            elif self._crossing.sent:
                self._client.body_left()
        elif self._record.state is State.ANSWERING:
            if self._crossing.sent:
                self._client.body_left()
            if now - self._touched > limits.idle_seconds:
                self.failed(REFUSALS["stream_idle"])
            elif self._stream and self._chunked and now - self._wrote > limits.comment_seconds and self._at_border:
                self._wrote = now
                self._client.write(chunk(COMMENT))

    # Its own

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
        if head.status in {401, 403} and self._secret:
            return REFUSALS["upstream_auth_failed"]
        if head.named.get(b"content-encoding", b"identity").lower() not in _PLAIN:
            return REFUSALS["upstream_encoding"]
        return None

    def _break(self, step: Step, refusal: Refusal) -> None:
        if self._record.state is State.ANSWERING:
            self._end(step, refusal)
            self._client.abort()
            return
        self._record.status = refusal.status
        self._end(step, refusal)
        self._client.turn_away(refusal, self._request_id, self._record.trace)

    def _end(self, step: Step, refusal: Refusal | None = None) -> None:
        self._crossing.give_up()
        self._record.redacted = self._echo is not None and self._echo.found
        self._gate.live.discard(self)
        if self._entered:
            self._gate.in_flight.leave(self.connection.number)
        self._gate.trail.record(self._record.ended(step, refusal), self._slot)
