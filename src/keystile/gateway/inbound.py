"""The asyncio.Protocol facing clients: bytes in, answers out, one request at a time, in order.

Guarantees: bytes become a request by `core/http1.py` and `core/framing.py` and nothing else; pipelined requests wait
their turn; what a client may make the gateway hold is bounded; a refusal before the whole request has been read
closes the connection, after letting the client read it; a bug of ours costs the request it befell, and no other.
"""

from __future__ import annotations

import asyncio
import socket
import struct
import time
from collections.abc import Callable
from functools import partial
from typing import cast

from keystile.core.decide import Place, admissible, place
from keystile.core.http1 import AnswerHead, RequestHead
from keystile.errors import REFUSALS, Refusal
from keystile.gateway import answers, notice
from keystile.gateway.errand import Errand
from keystile.gateway.gate import Gate
from keystile.gateway.heads import mark_of
from keystile.gateway.hearing import Hearing
from keystile.gateway.intake import Intake

_LINGER_SECONDS = 2.0
_AT_ONCE = 4  # pipelined requests in one turn of the loop
_PATIENCE = 10  # a body is whole within this many times `body_seconds`
_RESET = struct.pack("ii", 1, 0)
_LOST = {Place.NOWHERE: REFUSALS["not_found"]}


class Inbound(asyncio.Protocol):
    """One client connection. `_request` stands from a request's head to the end of its answer."""

    def __init__(self, gate: Gate) -> None:
        self.peer = ""
        self._gate = gate
        self._transport: asyncio.Transport
        self._intake = Intake()
        self._deadline: float | None = time.monotonic() + gate.limits.head_seconds
        self._overdue = 0.0
        self._head: RequestHead | None = None
        self._request: Hearing | Errand | None = None
        self._advancing = self._choked = self._closing = self._lingering = self._paused = False

    def __repr__(self) -> str:
        return f"<Inbound {self.peer} {self._request!r}>"

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """A client has come."""
        gate = self._gate
        # A stream protocol gets a stream transport; uvloop's are no subclass of asyncio's.
        self._transport = stream = cast("asyncio.Transport", transport)
        self.peer = str((transport.get_extra_info("peername") or ("",))[0])
        if gate.draining:
            stream.abort()
        elif not gate.come(self):
            stream.write(answers.refused(REFUSALS["too_many_clients"], None, None, rpc=False, close=True))
            stream.close()
        else:
            stream.set_write_buffer_limits(high=gate.limits.buffer_bytes // 2)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 — asyncio's signature
        """The client is gone, and what was under way for it ends."""
        self._gate.left(self)
        self._closing = True
        if self._request is not None:
            self._request.left()
        self._forget()

    def data_received(self, data: bytes) -> None:
        """Bytes from the client: of a head, of a body, or of the next request while one is under way."""
        intake = self._intake
        if intake.reading:
            self._guarded(partial(self._take, data))
        elif not self._lingering:
            intake.buffer = intake.buffer + data if intake.buffer else data
            if self._request is None and not self._choked:
                self._advance()
            if len(intake.buffer) > self._gate.limits.buffer_bytes:
                self._pause()

    def eof_received(self) -> None:
        """The client has closed its side: what is answered still leaves, what is under way is given up."""
        if self._request is not None:
            self.abort()

    def pause_writing(self) -> None:
        """The client reads slowly: so does the upstream."""
        self._choked = True
        if self._request is not None:
            self._request.pause()

    def resume_writing(self) -> None:
        """It has caught up."""
        self._choked = False
        if self._request is not None:
            self._request.resume()
        else:
            self._next()

    # What a request asks of its client

    def write(self, data: bytes) -> None:
        """Bytes of an answer."""
        self._transport.write(data)

    def body_left(self) -> None:
        """The request's body is out: its bytes are no longer held."""
        self._intake.release()

    def frames(self, lines: list[bytes], head: AnswerHead) -> bool:
        """Add the fields that frame an answer to this client; whether its body is chunked."""
        request = self._head
        field = answers.framing(head, legacy=request is None or request.minor == 0)
        endless = head.length is None and not field
        self._closing = self._closing or self._gate.draining or endless or request is None or not request.keep_alive
        if field:
            lines.append(field)
        if self._closing:
            lines.append(b"connection: close")
        return field is answers.CHUNKED

    def ended(self) -> None:
        """The answer is out; the next request may come."""
        self._forget()
        self._deadline = time.monotonic() + self._gate.limits.keepalive_seconds
        if self._closing:
            self._transport.close()
        else:
            self._next()

    def turn_away(self, refusal: Refusal, request_id: bytes | None = None, trace: str | None = None) -> None:
        """Answer the present request with a refusal. `trace` says that it was for an MCP endpoint."""
        if self._head is None:
            self._gate.trail.unread(self.peer, refusal, len(self._intake.buffer))
        self._say(partial(answers.refused, refusal, request_id, trace, rpc=trace is not None))

    def abort(self) -> None:
        """Break the connection off: what the client has so far is visibly incomplete."""
        if self._head is not None and self._head.minor == 0:
            # A body that ends by closing would seem complete, so this close is a reset.
            self._transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        self._transport.abort()

    def tick(self, now: float) -> None:
        """Time-outs of what the client has to do."""
        if self._deadline is None or now < self._deadline:
            return
        if self._intake.reading and self._request is not None:
            self._request.refuse(REFUSALS["body_timeout"])
        elif self._lingering or self._closing or self._choked or not self._intake.buffer:
            self.abort()
        else:
            self.turn_away(REFUSALS["head_timeout"])

    def drain(self) -> None:
        """No more requests after the present one."""
        self._closing = True
        if self._request is None:
            self._transport.close()

    def _guarded(self, step: Callable[[], None]) -> None:
        try:
            step()
        except Exception as error:  # noqa: BLE001 — one request's bug is not the next one's
            notice.bug(error, "request")
            (self.turn_away if self._request is None else self._request.refuse)(REFUSALS["internal_error"])

    def _next(self) -> None:
        """Go on with what has come meanwhile, unless the loop below is what called."""
        if self._advancing or self._transport.is_closing():
            return
        if self._more:
            self._advance()
        if self._paused and not self._more and len(self._intake.buffer) <= self._gate.limits.buffer_bytes:
            self._paused = False
            self._transport.resume_reading()

    def _take_turns(self) -> None:
        """Read on in the loop's next turn: libuv would go on reading one client for as long as it sends."""
        self._pause()
        asyncio.get_running_loop().call_soon(self._next)

    def _pause(self) -> None:
        self._paused = True
        self._transport.pause_reading()

    def _advance(self) -> None:
        """Take requests from what has come: a loop and no recursion, and a few only before others have their turn."""
        self._advancing = True
        for _ in range(_AT_ONCE):
            self._guarded(self._take_head)
            if not self._more:
                break
        self._advancing = False
        if self._more:
            self._take_turns()

    @property
    def _more(self) -> bool:
        """Whether a request can be taken from what has come."""
        intake = self._intake
        return bool(intake.buffer) and self._head is None and not (intake.dripping or self._closing or self._choked)

    def _take_head(self) -> None:
        """Read a head and begin its request, if it is all there."""
        gate, intake = self._gate, self._intake
        text = intake.text()
        mark = mark_of(text) if text else b""
        if text and (known := gate.known(mark)):
            intake.take(len(text))
            self._head = known.head
            hearing = self._request = Hearing(gate, self, known.head, known.slug, text)
            if hearing.begin_known(known):
                self._read_body(known.head, hearing)
            return
        first = not intake.dripping
        found = intake.head(gate.limits)
        if found is None:
            if first:
                self._deadline = time.monotonic() + gate.limits.head_seconds
        elif isinstance(found, Refusal):
            self.turn_away(found)
        else:
            self._head = found
            self._begin(found, text, mark)

    def _begin(self, head: RequestHead, text: bytes, mark: bytes) -> None:
        gate, (where, slug) = self._gate, place(head.target)
        if slug is not None:
            hearing = self._request = Hearing(gate, self, head, slug, text)
            if hearing.begin(where, mark):
                self._head = hearing.head
                self._read_body(head, hearing)
        elif where in {Place.HEALTH, Place.READY}:
            self._say(partial(answers.state, head.method, well=where is Place.HEALTH or gate.ready))
        elif refused := admissible(head.named, gate.shape) or _LOST.get(where):
            self.turn_away(refused)
        else:
            self._request = Errand(gate, self, head)
            self._read_body(head, self._request)

    def _read_body(self, head: RequestHead, request: Hearing | Errand) -> None:
        if head.length is not None and head.length > request.budget.largest:
            request.refuse(REFUSALS["body_too_large"])
        elif head.chunked or head.length:
            if head.expects_continue and not self._intake.buffer:
                self.write(answers.CONTINUE)
            self._overdue = time.monotonic() + _PATIENCE * self._gate.limits.body_seconds
            self._take(self._intake.body(head, request.budget, request.owner))
        else:
            self._deadline = None
            request.whole(b"")

    def _take(self, data: bytes) -> None:
        """The next piece of a body."""
        if (request := self._request) is None:
            return
        self._deadline = min(time.monotonic() + self._gate.limits.body_seconds, self._overdue)
        found = self._intake.feed(data)
        if isinstance(found, Refusal):
            request.refuse(found)
        elif found is None:
            self._take_turns()
        else:
            self._deadline = None
            request.whole(found)

    def _say(self, answer: Callable[..., bytes]) -> None:
        """A whole answer of our own; one to HEAD ends behind its head (RFC 9110, section 9.3.2)."""
        head = self._head
        read = self._intake.step_over(head)
        self._closing = self._closing or not read or self._gate.draining or head is None or not head.keep_alive
        text = answer(close=self._closing)
        if head is not None and head.method == b"HEAD":
            text = b"".join(text.partition(b"\r\n\r\n")[:2])
        self.write(text)
        (self.ended if read else self._linger)()

    def _linger(self) -> None:
        """Let the client read the refusal: closing with bytes unread would reset the connection under it."""
        self._forget()
        self._lingering = True
        self._intake.buffer = b""
        self._deadline = time.monotonic() + _LINGER_SECONDS
        if self._transport.can_write_eof():
            self._transport.write_eof()

    def _forget(self) -> None:
        """The present request is over."""
        self._intake.forget()
        self._head = self._request = None
