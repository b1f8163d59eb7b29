"""A request body, held whole until it is judged: bounded each, and bounded all together."""

from __future__ import annotations

from keystile.core.framing import Chunked, Length
from keystile.core.http1 import RequestHead
from keystile.errors import REFUSALS, Refusal


class Budget:
    """Bytes of request bodies that one worker holds, and how large each may be.

    One owner (a key, or a stranger's address) gets a quarter of them, so that nobody alone makes the others wait.
    """

    __slots__ = ("_owned", "_share", "largest", "limit", "used")

    def __init__(self, largest: int, limit: int) -> None:
        self.largest = largest
        self.limit = limit
        self.used = 0
        self._share = max(largest, limit // 4)
        self._owned: dict[str, int] = {}

    def take(self, owner: str, count: int) -> bool:
        """So many more bytes are held for this owner; False when they are too many, though they count until given."""
        self.used += count
        owned = self._owned[owner] = self._owned.get(owner, 0) + count
        return self.used <= self.limit and owned <= self._share

    def give(self, owner: str, count: int) -> None:
        """They are held no longer."""
        self.used -= count
        owned = self._owned.get(owner, 0) - count
        if owned > 0:
            self._owned[owner] = owned
        else:
            self._owned.pop(owner, None)

    def __repr__(self) -> str:
        return f"<Budget {self.used}/{self.limit}>"


class Holding:
    """One body. `release` gives its bytes back to the budget; whoever made it calls that once it is gone.

    Pieces run together as they come: a body that drips in by single bytes would cost forty times its length as objects.
    """

    __slots__ = ("_begun", "_budget", "_held", "_owner", "_reader")

    def __init__(self, head: RequestHead, budget: Budget, owner: str) -> None:
        self._reader = Chunked() if head.chunked else Length(head.length or 0)
        self._budget = budget
        self._owner = owner
        self._begun = bytearray()
        self._held = 0

    def feed(self, data: bytes) -> tuple[bytes, bytes] | Refusal | None:
        """The whole body and the bytes behind it, a refusal, or None while more is to come."""
        found = self._reader.feed(data)
        if isinstance(found, Refusal):
            return found
        payload, rest = found
        budget = self._budget
        self._held += len(payload)
        granted = budget.take(self._owner, len(payload))
        if self._held > budget.largest:
            return REFUSALS["body_too_large"]
        if not granted:
            return REFUSALS["body_budget_spent"]
        if rest is not None and not self._begun:
            return payload, rest
        self._begun += payload
        if rest is None:
            return None
        whole, self._begun = bytes(self._begun), bytearray()
        return whole, rest

    def release(self) -> None:
        """The body is gone."""
        if self._held:
            self._budget.give(self._owner, self._held)
        self._held = 0
        self._begun = bytearray()
