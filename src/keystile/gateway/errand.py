"""A request for the REST API: carried to the control process over its unix socket, and its answer back.

No credential is put on and no event is written here: the API authenticates every request itself. What proxies and
clients say about forwarding is replaced by what this worker knows.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from keystile.core.authorize import authorize
from keystile.core.headers import control_head, from_control
from keystile.core.http1 import AnswerHead, RequestHead
from keystile.errors import REFUSALS, Refusal
from keystile.gateway.answers import LAST_CHUNK, chunk, status_line
from keystile.gateway.crossing import Crossing
from keystile.gateway.gate import Gate
from keystile.gateway.holding import Budget
from keystile.gateway.upstream import Upstream
from keystile.model import ApiKey

if TYPE_CHECKING:
    from keystile.gateway.inbound import Inbound


class Errand:
    """One request on its way to the control process and back."""

    __slots__ = (
        "_answering",
        "_body",
        "_chunked",
        "_client",
        "_crossing",
        "_gate",
        "_head",
        "_out",
        "_touched",
        "budget",
        "owner",
    )

    def __init__(self, gate: Gate, client: Inbound, head: RequestHead) -> None:
        self._gate = gate
        self._client = client
        self._head = head
        self._body = b""
        self._crossing = Crossing(self)
        self._answering = self._chunked = False
        self._touched = 0.0
        self._out: list[bytes] = []
        key = authorize(head.named, gate.registry, time.time_ns() // 1_000_000)
        known = isinstance(key, ApiKey)
        self.budget: Budget = gate.api_bodies if known else gate.strange_bodies
        self.owner = key.id if known else client.peer

    def __repr__(self) -> str:
        return f"<Errand {self._crossing!r}>"

    def whole(self, body: bytes) -> None:
        """The body has come."""
        self._body = body
        self._touched = time.monotonic()
        self._gate.errands.add(self)
        upstream = self._gate.pool.take(self._gate.control)
        if upstream is None:
            self._crossing.dial(self._gate.pool.dial_control())
        else:
            self.connected(upstream)

    def refuse(self, refusal: Refusal) -> None:
        """Turn it away, whatever it is doing."""
        self._end()
        if self._answering:
            self._client.abort()
        else:
            self._client.turn_away(refusal)

    def left(self) -> None:
        """The client is gone."""
        self._end()

    def pause(self) -> None:
        """The client reads slowly."""
        self._crossing.pause()

    def resume(self) -> None:
        """It has caught up."""
        self._crossing.resume()

    def tick(self, now: float) -> None:
        """The control process has as long to answer as an upstream has."""
        if now - self._touched > self._gate.limits.first_byte_seconds:
            self.refuse(REFUSALS["control_unavailable"])

    def connected(self, upstream: Upstream) -> None:
        """Send the request on."""
        client, head = self._client, self._head
        address = self._gate.address_of(client.peer, head.named.get(b"x-forwarded-for"))
        body, self._body = self._body, b""
        sent = control_head(head, len(body), address)
        self._crossing.send(upstream, sent, body, bodiless=head.method == b"HEAD")

    def answered(self, head: AnswerHead) -> None:
        """The answer's head."""
        lines = from_control(head.fields)
        self._chunked = self._client.frames(lines, head) and self._head.method != b"HEAD"
        self._answering = True
        self._out.append(status_line(head.status) + b"\r\n".join(lines) + b"\r\n\r\n")

    def received(self, data: bytes) -> None:
        """A piece of its body."""
        self._touched = time.monotonic()
        self._out.append(chunk(data) if self._chunked else data)

    def flush(self) -> None:
        """Write what one read brought."""
        self._client.write(b"".join(self._out))
        self._out.clear()

    def finished(self) -> None:
        """The answer is complete."""
        self._crossing.arrived()
        self._end()
        if self._chunked:
            self._out.append(LAST_CHUNK)
        self.flush()
        self._client.ended()

    def failed(self, refusal: Refusal) -> None:  # noqa: ARG002 — to an API client it is all the same
        """The control process is gone."""
        self.refuse(REFUSALS["control_unavailable"])

    def _end(self) -> None:
        self._gate.errands.discard(self)
        self._crossing.give_up()
