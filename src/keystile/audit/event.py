"""One line of the audit trail, as a value, and the two pure functions that belong to it: its id and the cut of names.

Rules: no bodies, no header values, no secrets. The encoding is a msgpack array of the fields in the order below, so
*new fields go to the end* and none is ever moved or removed: lines of an older release are read with defaults.
(Measured on a typical line: array 0.22 µs and 245 bytes, map 0.46 µs and 440, JSON object 0.46 µs and 509.)
"""

from __future__ import annotations

from typing import Literal

import msgspec

NAME_BYTES = 256
"""Names in an event are cut to this many bytes of UTF-8."""

Outcome = Literal["done", "refused", "upstream_failed", "client_left", "interrupted", "counted"]
"""`interrupted`: its worker died while it was under way; what the worker knew by then is all that is known.
`counted`: not an exchange, but `count` refusals before authentication that have no events of their own."""


class Event(msgspec.Struct, frozen=True, kw_only=True, array_like=True, gc=False):
    """What became of one exchange.

    `at` is when it began, in milliseconds, and the same number is in `id` (`event_id(at, …)`): the ledger sorts and
    bounds by the id alone. `connection` and `key` are ids; `user`, `trace` and `metadata` are as the caller asserted.
    Times with a fraction are milliseconds: in total, to the answer's first byte, and inside the gateway.
    """

    id: str
    at: int
    outcome: Outcome
    organization: str | None = None
    connection: str | None = None
    key: str | None = None
    trace: str | None = None
    slug: str | None = None
    # What the ledger looks at stands above; it decodes no further.
    user: str | None = None
    metadata: str | None = None
    address: str | None = None
    http_method: str = ""
    rpc_method: str | None = None
    name: str | None = None
    protocol: str | None = None
    refusal: str | None = None
    credential_version: int | None = None
    status: int | None = None
    upstream_status: int | None = None
    bytes_in: int = 0
    bytes_out: int = 0
    total_ms: float | None = None
    first_byte_ms: float | None = None
    gateway_ms: float | None = None
    redacted: bool = False
    count: int = 1


encode = msgspec.msgpack.Encoder().encode
"""The line of an event."""

decode = msgspec.msgpack.Decoder(Event).decode
"""The event of a line; raises msgspec.DecodeError."""


def event_id(now_ms: int, entropy: int) -> str:
    """A UUIDv7 (RFC 9562, section 5.7) of 48 bits of time and the low 74 bits of `entropy`."""
    return (
        f"{now_ms >> 16:08x}-{now_ms & 0xFFFF:04x}-7{entropy >> 62 & 0xFFF:03x}"
        f"-{0x8000 | entropy >> 48 & 0x3FFF:04x}-{entropy & 0xFFFFFFFFFFFF:012x}"
    )


def first_id(at_ms: int) -> str:
    """The least id an event of that millisecond can have."""
    return event_id(at_ms, 0)


def cut(text: str) -> str:
    """`text`, or as many whole characters of it as fit in `NAME_BYTES` bytes of UTF-8."""
    if len(text) * 4 <= NAME_BYTES:  # no character takes more than four
        return text
    if text.isascii():
        return text[:NAME_BYTES]
    return text.encode(errors="replace")[:NAME_BYTES].decode(errors="ignore")
