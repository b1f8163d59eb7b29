"""One request's way to the other side: on a warm connection, or on one that is dialled for it.

Guarantees: whoever gives up while the dial is under way, or while the answer is awaited or streams, gives up the
connection too; a dial that ends by a bug is told like any other failure.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Protocol

from keystile.core.http1 import AnswerHead
from keystile.dial import DialError
from keystile.errors import REFUSALS, Refusal
from keystile.gateway import notice
from keystile.gateway.upstream import Upstream


class Traveller(Protocol):
    """Who crosses: told of the connection, then of the answer (`gateway.upstream.Asker`)."""

    def connected(self, upstream: Upstream) -> None:
        """There is a connection: `Crossing.send` on it."""

    def answered(self, head: AnswerHead) -> None:
        """See `Asker`."""

    def received(self, data: bytes) -> None:
        """See `Asker`."""

    def flush(self) -> None:
        """See `Asker`."""

    def finished(self) -> None:
        """See `Asker`."""

    def failed(self, refusal: Refusal) -> None:
        """There is no connection, or no whole answer; either way it is over."""


class Crossing:
    """At most one connection, and at most one dial."""

    __slots__ = ("_dialling", "_traveller", "_upstream")

    def __init__(self, traveller: Traveller) -> None:
        self._traveller = traveller
        self._dialling: asyncio.Task[None] | None = None
        self._upstream: Upstream | None = None

    def __repr__(self) -> str:
        return f"<Crossing {'dialling' if self._dialling else self._upstream}>"

    def dial(self, dialled: Coroutine[object, object, Upstream]) -> None:
        """Have a connection made, and tell the traveller."""
        self._dialling = asyncio.get_running_loop().create_task(self._dial(dialled))

    def send(self, upstream: Upstream, head: bytes, body: bytes, *, bodiless: bool = False) -> None:
        """Carry the request over."""
        self._upstream = upstream
        upstream.send(self._traveller, head, body, bodiless=bodiless)

    @property
    def sent(self) -> bool:
        """Whether every byte of the request has left this process."""
        return self._upstream is not None and self._upstream.sent

    def pause(self) -> None:
        """The client reads slowly: read no more of the answer."""
        if self._upstream is not None:
            self._upstream.pause()

    def resume(self) -> None:
        """It has caught up."""
        if self._upstream is not None:
            self._upstream.resume()

    def arrived(self) -> None:
        """The answer is whole, and the connection is the pool's again."""
        self._upstream = None

    def give_up(self) -> None:
        """Close what there is; nothing more is told."""
        if self._dialling is not None:
            self._dialling.cancel()
            self._dialling = None
        if self._upstream is not None:
            self._upstream.close()
            self._upstream = None

    async def _dial(self, dialled: Coroutine[object, object, Upstream]) -> None:
        try:
            upstream = await dialled
        except Exception as error:  # noqa: BLE001 — a dial that ends by a bug must not leave its exchange waiting
            if not isinstance(error, DialError):
                notice.bug(error, "dial")
            self._dialling = None
            self._traveller.failed(error.refusal if isinstance(error, DialError) else REFUSALS["internal_error"])
            return
        self._dialling = None
        self._traveller.connected(upstream)
