"""Upstream URLs: parsed by one strict grammar, or a sentence that says what is wrong.

What this module guarantees: an accepted URL names one scheme, host, port and request target, and every other parser
finds the same. Nothing is repaired: what parsers read differently is refused with a hint at the plain form. No
sentence repeats a part of the URL, which may hold a secret.

The rules:

- `http` or `https`, no user information, no fragment, visible ASCII only.
- A host is a DNS name in A-label form, a dotted IPv4 address, or an IPv6 address in brackets. A name with other
  letters is refused rather than encoded: IDNA 2003 and 2008 send some names (ß) to different hosts.
- A host whose last label is a number is an IPv4 address (WHATWG URL, "ends in a number"). Only four plain decimal
  numbers are accepted: `0x7f.1`, `2130706433`, `127.1` and `0177.0.0.1` are refused.
- IPv6 zones and names with a trailing dot are refused; they are other names for the same peer.
- Path and query stay as given; the target they make obeys the grammar of `core/http1.py`.
"""

import re
from ipaddress import IPv4Address, IPv6Address

import msgspec

from keystile.core.http1 import TARGET

_PORTS = {"http": 80, "https": 443}
_HIGHEST_PORT = 65535
_LONGEST_NAME = 253

_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*+)://([^/?#]*+)([^#]*+)(#.*+)?+")
_AUTHORITY = re.compile(r"(?:\[([^\]]*+)\]|([^:\[\]]++))(?::([1-9][0-9]{0,4}))?+")
_NAME = re.compile(r"(?:(?!-)[a-z0-9_-]{1,63}(?<!-)\.)*(?!-)[a-z0-9_-]{1,63}(?<!-)")
_NUMBER = re.compile(r"(?:.*\.)?+(?:[0-9]++|0x[0-9a-f]*+)\.?+")
_TARGET = re.compile(TARGET.decode())


class Target(msgspec.Struct, frozen=True):
    """Where an upstream is. `host` is lower-case, without brackets; `path` includes the query, as given."""

    scheme: str
    host: str
    port: int
    path: str

    @property
    def origin(self) -> str:
        """Scheme, host and port, all written out: what a credential is bound to."""
        return f"{self.scheme}://{self._bracketed}:{self.port}"

    @property
    def authority(self) -> str:
        """The value of `Host`: the port only where it is not the scheme's own (RFC 9110 7.2)."""
        return self._bracketed if self.port == _PORTS[self.scheme] else f"{self._bracketed}:{self.port}"

    @property
    def _bracketed(self) -> str:
        return f"[{self.host}]" if ":" in self.host else self.host


def parse_target(url: str) -> Target | str:
    """The upstream that `url` names, or a sentence saying what is wrong with it."""
    if not url.isascii():
        return "Write the URL in ASCII: the host in its xn-- form, other characters percent-encoded."
    parts = _URL.fullmatch(url)
    if parts is None:
        return "Write the URL as https://host/path."
    scheme, authority, rest, fragment = parts[1].lower(), parts[2], parts[3], parts[4]
    if scheme not in _PORTS:
        return "The scheme must be https or http."
    if "@" in authority:
        return "The URL must not hold user information; give the secret as the credential."
    if fragment is not None:
        return "The URL must not hold a fragment (#)."
    place = _AUTHORITY.fullmatch(authority)
    port = int(place[3] or _PORTS[scheme]) if place else 0
    if place is None or port > _HIGHEST_PORT:
        return "The host must be a name, an IPv4 address or an IPv6 address in brackets, with a port of 1 to 65535."
    host = _address(place[1]) if place[2] is None else _name(place[2].lower())
    if host is None:
        return (
            "The host must be a plain DNS name, an IPv4 address of four decimal numbers, or an IPv6 address "
            "in brackets without a zone."
        )
    path = rest if rest.startswith("/") else "/" + rest
    if _TARGET.fullmatch(path) is None:
        return "Path and query must begin with one slash and hold URL characters only, others percent-encoded."
    return Target(scheme, host, port, path)


def _name(text: str) -> str | None:
    if _NUMBER.fullmatch(text):
        try:
            return str(IPv4Address(text))
        except ValueError:
            return None
    return text if len(text) <= _LONGEST_NAME and _NAME.fullmatch(text) else None


def _address(text: str) -> str | None:
    try:
        address = IPv6Address(text)
    except ValueError:
        return None
    return None if address.scope_id is not None else str(address)
