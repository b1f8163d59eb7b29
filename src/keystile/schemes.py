"""How a credential is put on an upstream request: one type per auth type, bytes in, bytes out.

Rules: a scheme knows the one field it writes, so that whatever the client sent under that name is dropped first.
Both directions stand side by side: `field` puts the credential on, `replaces` says what is taken off for it.
Adding an auth type: a member of `model.AuthType`, a type here, its row in `SCHEMES`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from keystile.model import AuthType, Connection


class Scheme(Protocol):
    """One way to put a credential on a request."""

    replaces: bytes
    """Lower-case name of the field it writes; empty when it writes none."""

    def field(self, credential: bytes) -> bytes:
        """The field line with the credential, CRLF included; empty when there is nothing to say."""
        ...


class Bearer:
    """`Authorization: Bearer <credential>` (RFC 6750, section 2.1)."""

    replaces = b"authorization"

    def field(self, credential: bytes) -> bytes:
        """The Authorization field."""
        return b"authorization: Bearer " + credential + b"\r\n"


class Header:
    """`<name>: <credential>`, raw."""

    def __init__(self, name: str) -> None:
        self.replaces = name.lower().encode("ascii")
        self._start = name.encode("ascii") + b": "

    def field(self, credential: bytes) -> bytes:
        """The named field."""
        return self._start + credential + b"\r\n"


class Nothing:
    """No credential at all."""

    replaces = b""

    def field(self, credential: bytes) -> bytes:  # noqa: ARG002 — the interface's argument
        """Nothing."""
        return b""


SCHEMES: dict[AuthType, Callable[[Connection], Scheme]] = {
    AuthType.BEARER: lambda _: Bearer(),
    AuthType.HEADER: lambda connection: Header(connection.auth_header_name or ""),
    AuthType.NONE: lambda _: Nothing(),
}
"""Auth type → how its scheme is made from a connection."""


def scheme_of(connection: Connection) -> Scheme:
    """The scheme of a connection."""
    return SCHEMES[connection.auth_type](connection)
