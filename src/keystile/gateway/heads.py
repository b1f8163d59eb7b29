"""Heads that were admitted before: the same bytes are judged by one look-up, while the configuration stands.

An MCP client sends the same head with every call of a kind, and the judgement of a head depends on nothing but its
bytes, the configuration and the key's expiry. Rules: a head is found by its SHA-256 and nothing that a caller wrote
is kept of it but what the admission holds, for the caller's key stands in it; an entry counts only for the generation
it was made in; only admissions are kept, and none of large heads. What it saves, measured: docs/decisions.md.
"""

from __future__ import annotations

import hashlib
import time

import msgspec

from keystile.core.decide import Admitted
from keystile.core.http1 import RequestHead

_KEPT = 1024
LARGEST = 2048
"""A head of more bytes is not kept, so that all of them together stay few MiB."""

# A head with one of these hardly comes twice.
_UNIQUE = frozenset((b"traceparent", b"x-keystile-trace-id", b"x-igris-trace-id", b"last-event-id"))


class Known(msgspec.Struct, frozen=True, gc=False):
    """An admission, with what framing and the trail need of its head."""

    head: RequestHead
    slug: bytes
    admitted: Admitted
    generation: int


class Heads:
    """The heads one worker has admitted lately."""

    __slots__ = ("_generation", "_known")

    def __init__(self) -> None:
        self._known: dict[bytes, Known] = {}
        self._generation = 0

    def __repr__(self) -> str:
        return f"<Heads {len(self._known)}>"

    def find(self, mark: bytes, generation: int) -> Known | None:
        """The admission of the head with this mark, if it stands in this generation."""
        known = self._known.get(mark)
        if known is None or known.generation != generation:
            return None
        expires = known.admitted.key.expires_at
        return known if expires is None or expires > time.time_ns() // 1_000_000 else None

    def keep(self, mark: bytes, known: Known) -> None:
        """Remember an admission."""
        if len(self._known) >= _KEPT or known.generation != self._generation:
            self._known.clear()
            self._generation = known.generation
        self._known[mark] = known


def keepable(head: RequestHead) -> bool:
    """Whether this head is likely to come again."""
    return _UNIQUE.isdisjoint(head.named)


def bare(head: RequestHead) -> RequestHead:
    """The head without what a caller wrote, but for the addresses it came by."""
    kept = {name: head.named[name] for name in (b"x-forwarded-for",) if name in head.named}
    return msgspec.structs.replace(head, target=b"", fields=(), named=kept)


def mark_of(text: bytes) -> bytes:
    """What a head is found by."""
    return hashlib.sha256(text).digest()
