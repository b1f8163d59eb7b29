"""A request for the REST API: carried to the control process over its unix socket, and its answer back.

No credential is put on and no event is written here: the API authenticates every request itself. What proxies and
clients say about forwarding is replaced by what this worker knows.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from keystile.core.headers import control_head, from_control
from keystile.core.http1 import AnswerHead, RequestHead
from keystile.dial import DialError
from keystile.errors import REFUSALS, Refusal
from keystile.gateway.answers import LAST_CHUNK, chunk, status_line
from keystile.gateway.gate import Gate
from keystile.gateway.holding import Budget
from keystile.gateway.upstream import Upstream

if TYPE_CHECKING:
    from keystile.gateway.inbound import Inbound


class Errand:
    """One request on its way to the control process and back."""

    __slots__ = ("_answering", "_chunked", "_client", "_dialling", "_gate", "_head", "_out", "_upstream", "budget")

    def __init__(self, gate: Gate, client: Inbound, head: RequestHead) -> None:
        self._gate = gate
        self._client = client
        self._head = head
        self._dialling: asyncio.Task[None] | None = None
        self._upstream: Upstream | None = None
        self._answering = self._chunked = False
        self._out: list[bytes] = []
        self.budget: Budget = gate.api_bodies

    def __repr__(self) -> str:
        return "<Errand>"

    def whole(self, body: bytes) -> None:
        """The body has come."""
        upstream = self._gate.pool.take(self._gate.control)
        if upstream is not None:
            self._send(upstream, body)
        else:
            self._dialling = asyncio.get_running_loop().create_task(self._dial(body))

    def refuse(self, refusal: Refusal) -> None:
        """Turn it away."""
        self._client.turn_away(refusal)

    def left(self) -> None:
        """The client is gone."""
        if self._dialling is not None:
            self._dialling.cancel()
        if self._upstream is not None:
            self._upstream.close()

    def pause(self) -> None:
        """The client reads slowly."""
        if self._upstream is not None:
            self._upstream.pause()

    def resume(self) -> None:
        """It has caught up."""
        if self._upstream is not None:
            self._upstream.resume()

    def answered(self, head: AnswerHead) -> None:
        """The answer's head."""
        lines = from_control(head.fields)
        self._chunked = self._client.frames(lines, head) and self._head.method != b"HEAD"
        self._answering = True
        self._out.append(status_line(head.status) + b"\r\n".join(lines) + b"\r\n\r\n")

    def received(self, data: bytes) -> None:
        """A piece of its body."""
        self._out.append(chunk(data) if self._chunked else data)

    def flush(self) -> None:
        """Write what one read brought."""
        self._client.write(b"".join(self._out))
        self._out.clear()

    def finished(self) -> None:
        """The answer is complete."""
        self._upstream = None
        if self._chunked:
            self._out.append(LAST_CHUNK)
        self.flush()
        self._client.ended()

    def failed(self, refusal: Refusal) -> None:  # noqa: ARG002 — to an API client it is all the same
        """The control process is gone."""
        self._upstream = None
        if self._answering:
            self._client.abort()
        else:
            self._client.turn_away(REFUSALS["control_unavailable"])

    async def _dial(self, body: bytes) -> None:
        try:
            upstream = await self._gate.pool.dial_control()
        except DialError as error:
            self._dialling = None
            self.failed(error.refusal)
            return
        self._dialling = None
        self._send(upstream, body)

    def _send(self, upstream: Upstream, body: bytes) -> None:
        self._upstream = upstream
        client = self._client
        forwarded = self._head.named.get(b"x-forwarded-for")
        address = self._gate.address_of(client.peer, forwarded)
        head = control_head(self._head, len(body), address, self._gate.scheme)
        upstream.send(self, head, body, bodiless=self._head.method == b"HEAD")
