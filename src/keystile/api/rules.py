"""What the fields of a connection or a key may hold, beyond their type. Each rule raises Invalid naming the field.

Rules: no message repeats a value. What goes into an HTTP head is visible ASCII, so that no byte of it can end a line
or be read in two ways; a credential outside ASCII is refused rather than encoded, since no two servers agree on how.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from datetime import datetime

from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509 import load_pem_x509_certificates

from keystile.api.call import refuse
from keystile.api.shapes import CONTROL
from keystile.api.times import LATEST, milliseconds
from keystile.core import apikey
from keystile.core.headers import banned, banned_from_client
from keystile.model import SLUG, USER, AuthType

_CREDENTIAL = re.compile(r"[\x21-\x7e]([\x20-\x7e]*[\x21-\x7e])?")
_VALUE = re.compile(r"([\x21-\x7e]([\x20-\x7e\t]*[\x21-\x7e])?)?")
_PEM = re.compile(r"-----BEGIN ([^\r\n]*?)-----")
_CONTROL = re.compile(f"[{CONTROL}]")


def slug(text: str) -> str:
    """A slug."""
    if not re.fullmatch(SLUG, text):
        raise refuse("slug", "must be 3 to 64 of a-z, 0-9, _ and -, and begin with a letter or digit")
    return text


def name(text: str) -> str:
    """A name for people."""
    if _CONTROL.search(text) or not text.strip():
        raise refuse("name", "must hold something visible and no control characters")
    return text


def credential(text: str) -> bytes:
    """A credential, as the bytes that go on the wire."""
    if not _CREDENTIAL.fullmatch(text):
        raise refuse(
            "credential",
            "must be visible ASCII characters, with spaces inside only: no CR, LF, NUL or other control characters",
        )
    # It would go upstream as a credential, and a gateway whose upstream is itself would let it in.
    if apikey.contains_key(text.encode("ascii")):
        raise refuse("credential", "is a Keystile key, which calls a gateway; give the secret of the upstream")
    return text.encode("ascii")


def auth_header_name(auth_type: AuthType, header: str | None) -> str | None:
    """The name of the header for auth type `header`, and for no other."""
    if auth_type is not AuthType.HEADER:
        if header is not None:
            raise refuse("authHeaderName", "is for authType header only")
        return None
    if header is None:
        raise refuse("authHeaderName", "is needed with authType header")
    reason = banned(header)
    if reason:
        raise refuse("authHeaderName", reason)
    return header


def headers(given: dict[str, str], taken: str | None) -> dict[str, str]:
    """Fixed fields to send upstream. `taken` is the name the credential goes under."""
    _names("headers", given, taken)
    for value in given.values():
        if not _VALUE.fullmatch(value):
            raise refuse("headers", "may hold visible ASCII, spaces and tabs only, not at either end")
    return given


def forward_headers(given: tuple[str, ...], taken: str | None, fixed: Iterable[str]) -> tuple[str, ...]:
    """Names of client fields that pass. `taken` carries the credential, `fixed` are set by the connection."""
    _names("forwardHeaders", given, taken)
    if {text.lower() for text in given} & {text.lower() for text in fixed}:
        raise refuse("forwardHeaders", "names a field that `headers` sets")
    return given


def ca_pem(text: str | None) -> str | None:
    """Certificates to verify the upstream's TLS against, and nothing else that stood beside them: it is shown."""
    if text is None:
        return None
    if set(_PEM.findall(text)) - {"CERTIFICATE"}:
        raise refuse("caPem", "holds PEM blocks that are no certificates; a private key does not belong here")
    try:
        found = load_pem_x509_certificates(text.encode("ascii"))
    except ValueError:
        raise refuse("caPem", "must be one or more certificates as PEM") from None
    return "".join(each.public_bytes(Encoding.PEM).decode("ascii") for each in found)


def pinned_user(text: str | None) -> str | None:
    """A user a key is pinned to: what X-Keystile-User may hold."""
    if text is not None and not re.fullmatch(USER, text):
        raise refuse("pinnedUser", "must be 1 to 256 visible ASCII characters, with spaces inside only")
    return text


def expires_at(time: datetime | None, now: int) -> int | None:
    """When a key expires, in milliseconds; None for never."""
    if time is None:
        return None
    at = milliseconds(time)
    if not now < at <= LATEST:
        raise refuse("expiresAt", "must lie ahead, and not after 9999-12-31T00:00:00Z")
    return at


def _names(field: str, given: Iterable[str], taken: str | None) -> None:
    seen: set[str] = {taken.lower()} if taken else set()
    for text in given:
        reason = banned_from_client(text)
        if reason:
            raise refuse(field, f"holds a name that {reason}")
        if text.lower() in seen:
            raise refuse(field, "names a field twice, or the one the credential goes in")
        seen.add(text.lower())
