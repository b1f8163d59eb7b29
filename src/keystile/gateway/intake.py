"""What has come from one client and is not yet a judged request: the head's bytes, the body's, and what lies behind.

Guarantees: each byte is looked at once however it drips in, and belongs to exactly one request.
"""

from __future__ import annotations

from keystile.config import Limits
from keystile.core.http1 import RequestHead, read_request
from keystile.errors import Refusal
from keystile.gateway.holding import Budget, Holding


class Intake:
    """One client's bytes. `reading` while a body is arriving."""

    __slots__ = ("_holding", "_searched", "buffer", "reading")

    def __init__(self) -> None:
        self.buffer = b""
        self.reading = False
        self._searched = 0
        self._holding: Holding | None = None

    def __repr__(self) -> str:
        return f"<Intake {len(self.buffer)} bytes{' of a body' if self.reading else ''}>"

    @property
    def dripping(self) -> bool:
        """Whether part of a head has been looked at before."""
        return self._searched > 0

    def text(self) -> bytes:
        """The bytes of the head in front, if it is whole; nothing is taken."""
        end = self.buffer.find(b"\r\n\r\n", max(0, self._searched - 3))
        return self.buffer[: end + 4] if end >= 0 else b""

    def head(self, limits: Limits) -> RequestHead | Refusal | None:
        """Take the head in front: read, refused, or None while more is to come."""
        found = read_request(self.buffer, limits.head_bytes, limits.fields, self._searched)
        if found is None:
            self._searched = len(self.buffer)
            return None
        if isinstance(found, Refusal):
            return found
        head, used = found
        self.take(used)
        return head

    def take(self, count: int) -> None:
        """The first bytes have been read."""
        self.buffer = self.buffer[count:]
        self._searched = 0

    def body(self, head: RequestHead, budget: Budget, owner: str) -> bytes:
        """A body follows; returns what of it has come, for `feed`."""
        self._holding = Holding(head, budget, owner)
        self.reading = True
        begun, self.buffer = self.buffer, b""
        return begun

    def feed(self, data: bytes) -> bytes | Refusal | None:
        """The next piece of the body: the whole body, a refusal, or None while more is to come."""
        if self._holding is None:
            raise RuntimeError("feed without a body")
        found = self._holding.feed(data)
        if not isinstance(found, tuple):
            return found
        whole, self.buffer = found
        self.reading = False
        return whole

    def step_over(self, head: RequestHead | None) -> bool:
        """Pass by a body nobody wants; False when part of the request is still to come, and nothing can be passed."""
        if head is None or self.reading:
            return False
        if self._holding is not None or not (head.chunked or head.length):
            return True
        if head.length is None or head.length > len(self.buffer):
            return False
        self.take(head.length)
        return True

    def release(self) -> None:
        """The body is no longer held here."""
        if self._holding is not None:
            self._holding.release()

    def forget(self) -> None:
        """The request is over."""
        self.release()
        self._holding = None
        self.reading = False
