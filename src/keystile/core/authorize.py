"""Who calls: an API key in the head → the key's row, or a refusal; and what the caller asserts beside it.

Rules: `x-api-key` decides when both fields are there; either of them doubled is refused. Unknown and revoked keys are
refused alike; an expired one is told so, for only its holder can show it. What the caller asserts (user, trace id,
metadata) is recorded as asserted, never believed, and never goes upstream.
"""

from __future__ import annotations

import re

import msgspec

from keystile.core.apikey import LENGTH, contains_key, digest
from keystile.core.headers import Fields
from keystile.core.registry import Registry
from keystile.errors import REFUSALS, Refusal
from keystile.model import USER, ApiKey, Metadata

METADATA_BYTES = 4096

_MISSING = REFUSALS["key_missing"]
_INVALID = REFUSALS["key_invalid"]
_EXPIRED = REFUSALS["key_expired"]

_USER = re.compile(USER.encode("ascii"))
_TRACE = re.compile(rb"[\x21-\x7e]{1,128}")
_FLAT = msgspec.json.Decoder(Metadata)
_plain = msgspec.json.Encoder().encode


class Context(msgspec.Struct, frozen=True, gc=False):
    """What the caller asserts about the exchange. `metadata` is the JSON text as it came."""

    user: str | None
    trace: str | None
    metadata: str | None


_NO_CONTEXT = Context(None, None, None)
_CONTEXT_FIELDS = frozenset(
    f"x-{brand}-{what}".encode() for brand in ("keystile", "igris") for what in ("user", "trace-id", "metadata")
)


def key_doubled(fields: Fields) -> bool:
    """Whether a field that carries a key occurs more than once."""
    names = [name for name, _ in fields]
    return names.count(b"authorization") > 1 or names.count(b"x-api-key") > 1


def authorize(fields: dict[bytes, bytes], registry: Registry, now: int) -> ApiKey | Refusal:
    """The live key the head shows. The caller has refused doubled fields before making `fields`."""
    shown = fields.get(b"x-api-key")
    if shown is None:
        authorization = fields.get(b"authorization")
        if authorization is None:
            return _MISSING
        scheme, _, shown = authorization.partition(b" ")
        if scheme.lower() != b"bearer":
            return _INVALID
        shown = shown.strip(b" ")
    # The look-up is by SHA-256 in memory and decides alone; the checksum would only cost a known key its time.
    key = registry.key(digest(shown)) if len(shown) == LENGTH else None
    if key is None:
        return _INVALID
    if key.expires_at is not None and key.expires_at <= now:
        return _EXPIRED
    return key


def context_of(fields: dict[bytes, bytes], key: ApiKey) -> Context | Refusal:
    """What the caller asserts, checked for form; the key's pinned user stands in for an absent one."""
    if _CONTEXT_FIELDS.isdisjoint(fields):
        return _NO_CONTEXT if key.pinned_user is None else Context(key.pinned_user, None, None)
    user = _asserted(fields, b"user")
    if user is not None and (not _USER.fullmatch(user) or contains_key(user)):
        return REFUSALS["user_malformed"]
    if user is not None and key.pinned_user is not None and user.decode("ascii") != key.pinned_user:
        return REFUSALS["user_mismatch"]
    trace = _asserted(fields, b"trace-id")
    if trace is not None and (not _TRACE.fullmatch(trace) or contains_key(trace)):
        return REFUSALS["trace_id_malformed"]
    metadata = _asserted(fields, b"metadata")
    if metadata is not None and not _flat(metadata):
        return REFUSALS["metadata_malformed"]
    return Context(
        key.pinned_user if user is None else user.decode("ascii"),
        None if trace is None else trace.decode("ascii"),
        None if metadata is None else metadata.decode("utf-8"),
    )


def _asserted(fields: dict[bytes, bytes], what: bytes) -> bytes | None:
    """Keystile's own name first; the X-Igris-* names let clients of that gateway move by changing a URL."""
    own = fields.get(b"x-keystile-" + what)
    return fields.get(b"x-igris-" + what) if own is None else own


def _flat(metadata: bytes) -> bool:
    if len(metadata) > METADATA_BYTES or contains_key(metadata):
        return False
    try:
        flat = _FLAT.decode(metadata)
        metadata.decode("utf-8")
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return False
    # Written anew, it has no escapes that a key could hide behind.
    return b"\\" not in metadata or not contains_key(_plain(flat))
