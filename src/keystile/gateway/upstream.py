"""The asyncio.Protocol facing upstreams: one connection, one exchange at a time.

Guarantees: bytes that no exchange asked for close the connection; an answer is complete only when its framing says
so; a connection is used again only when both ends agree that the last answer ended.
"""

from __future__ import annotations

import asyncio
import ssl
from typing import Protocol

from keystile.config import Limits
from keystile.core.framing import Chunked, Length, UntilClose
from keystile.core.http1 import AnswerHead, read_answer
from keystile.errors import REFUSALS, Refusal

_FINAL = 200
_MOST_INTERIM = 8  # 1xx heads before an answer; more is a flood
_BIG_BODY = 64 * 1024
_LOST = REFUSALS["upstream_connection_lost"]

Reader = Length | Chunked | UntilClose


class Asker(Protocol):
    """Who waits for an answer. The calls come in this order; `failed` may stand in for any of the rest."""

    def answered(self, head: AnswerHead) -> None:
        """The answer's head has come."""

    def received(self, data: bytes) -> None:
        """A piece of its body has come; never empty."""

    def flush(self) -> None:
        """All that one read brought has been told."""

    def finished(self) -> None:
        """The answer is complete; the connection is no longer the asker's."""

    def failed(self, refusal: Refusal) -> None:
        """The answer will not be complete; the connection is closed."""


class Upstream(asyncio.BufferedProtocol):
    """One connection to an upstream. `pool` gets it back when an answer has ended cleanly.

    A buffered protocol, because the pool's buffer then bounds one read, and with it what a slow client makes us hold.
    """

    __slots__ = (
        "_asker",
        "_bodiless",
        "_buffer",
        "_interim",
        "_limits",
        "_reader",
        "_reusable",
        "idle_since",
        "key",
        "pool",
        "transport",
    )

    def __init__(self, limits: Limits, pool: Keeper, key: object) -> None:
        self._limits = limits
        self._asker: Asker | None = None
        self._buffer = b""
        self._reader: Reader | None = None
        self._bodiless = False
        self._interim = 0
        self._reusable = True
        self.idle_since = 0.0
        self.key = key
        self.pool = pool
        self.transport: asyncio.Transport | None = None

    def __repr__(self) -> str:
        return f"<Upstream {'busy' if self._asker else 'idle'}>"

    @property
    def open(self) -> bool:
        """Whether it can carry an exchange."""
        return self.transport is not None and not self.transport.is_closing()

    @property
    def sent(self) -> bool:
        """Whether the whole request is out: an answer may come before, and the connection is then spent."""
        transport = self.transport
        return transport is not None and not transport.is_closing() and not transport.get_write_buffer_size()

    def send(self, asker: Asker, head: bytes, body: bytes, *, bodiless: bool = False) -> None:
        """Carry one exchange: write the request, tell `asker` what comes back. An answer to HEAD is `bodiless`."""
        transport = self.transport
        if transport is None:
            raise RuntimeError("send before connection_made")
        self._asker = asker
        self._bodiless = bodiless
        self._interim = 0
        if len(body) < _BIG_BODY:
            transport.write(head + body)
        else:
            transport.write(head)
            transport.write(body)

    def close(self) -> None:
        """Give the exchange up, if there is one, and the connection with it. The asker is told nothing more."""
        self._asker = None
        if self.transport is not None:
            self.transport.abort()

    def pause(self) -> None:
        """Read no more until `resume`: the client is slow."""
        if self.open and self.transport is not None:
            self.transport.pause_reading()

    def resume(self) -> None:
        """Read again."""
        if self.open and self.transport is not None:
            self.transport.resume_reading()

    # asyncio.BufferedProtocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport."""
        self.transport = transport  # type: ignore[assignment]  # a stream protocol gets a stream transport

    def get_buffer(self, sizehint: int) -> memoryview:  # noqa: ARG002 — asyncio's signature
        """Where the next read goes; taken out again before anybody else reads."""
        return self.pool.reading

    def buffer_updated(self, nbytes: int) -> None:
        """Read what came, and tell the asker."""
        data = bytes(self.pool.reading[:nbytes])
        asker = self._asker
        if asker is None:
            self.close()
            return
        if self._reader is None:
            rest = self._head(data, asker)
            if rest is None:
                return
            data = rest
        self._body(data, asker)

    def eof_received(self) -> None:
        """Nothing more will come: asyncio closes, and `connection_lost` judges what that means."""

    def connection_lost(self, exc: Exception | None) -> None:
        """An answer that ends by closing is complete; any other is broken."""
        self.pool.lost(self)
        asker, self._asker = self._asker, None
        if asker is None:
            return
        if self._reader is not None and self._reader.complete_at_eof and exc is None and self._closed_by_peer():
            asker.finished()
        else:
            asker.failed(_LOST)

    def _closed_by_peer(self) -> bool:
        """Under TLS, whether the peer itself said that it closes: anybody can cut the wire (RFC 9112, section 9.8)."""
        secured = None if self.transport is None else self.transport.get_extra_info("ssl_object")
        try:
            return secured is None or not secured.read(1)
        except ssl.SSLZeroReturnError:
            return True
        except ssl.SSLError:
            return False

    def _head(self, data: bytes, asker: Asker) -> bytes | None:
        """Read the head; returns the bytes behind it once it is whole and told."""
        searched = len(self._buffer)
        self._buffer += data
        while True:
            found = read_answer(self._buffer, self._limits.head_bytes, self._limits.fields, searched)
            if found is None:
                return None
            if isinstance(found, Refusal):
                self._fail(found)
                return None
            head, used = found
            rest, self._buffer, searched = self._buffer[used:], b"", 0
            if head.status >= _FINAL:
                break
            self._interim += 1
            if self._interim > _MOST_INTERIM:
                self._fail(REFUSALS["upstream_malformed"])
                return None
            self._buffer = rest
        self._reusable = head.keep_alive
        if self._bodiless:
            self._reader = Length(0)
        elif head.chunked:
            self._reader = Chunked(answer=True)
        else:
            self._reader = UntilClose() if head.length is None else Length(head.length)
        asker.answered(head)
        return rest if self._asker is asker else None

    def _body(self, data: bytes, asker: Asker) -> None:
        reader = self._reader
        if reader is None:
            return
        found = reader.feed(data)
        if isinstance(found, Refusal):
            self._fail(REFUSALS["upstream_malformed"])
            return
        payload, rest = found
        if payload:
            asker.received(payload)
            if self._asker is not asker:
                return
        if rest is None:
            asker.flush()
            return
        self._asker = self._reader = None
        if self._reusable and not rest and self.sent:
            self.pool.give_back(self)
        else:
            self.close()
        asker.finished()

    def _fail(self, refusal: Refusal) -> None:
        asker = self._asker
        self.close()
        if asker is not None:
            asker.failed(refusal)


class Keeper(Protocol):
    """Who owns upstream connections. `reading` is where each of them reads into, in turn."""

    reading: memoryview

    def give_back(self, upstream: Upstream) -> None:
        """It is idle and may be used again."""

    def lost(self, upstream: Upstream) -> None:
        """It is gone."""
