"""Session ids that cannot be stolen: signed on the way out, verified and unwrapped on the way in.

An upstream sees one principal, so its `Mcp-Session-Id` alone would open anybody's session. What the client holds is
`<term>.<mac>.<upstream id>`: HMAC-SHA256 under the organization's session key over organization, connection, caller
(the API key's id) and the upstream's origin. No table: any worker verifies any id. Deterministic, so that a client
sees one id for one session however many answers carry it (MCP 2025-11-25, basic/transports, session management).
"""

from __future__ import annotations

import base64
import hmac
import re

from keystile.core.envelope import KeyRing
from keystile.errors import Unreadable

_WRAPPED = re.compile(rb"(0|[1-9]\d{0,9})\.([A-Za-z0-9_-]{43})\.([\x21-\x7e]+)")
_VISIBLE = re.compile(rb"[\x21-\x7e]+")


class Holder:
    """Whose session it is."""

    __slots__ = ("_owner", "_ring")

    def __init__(self, ring: KeyRing, organization: str, connection: str, caller: str, origin: str) -> None:
        self._ring = ring
        self._owner = (organization, connection, caller, origin)

    def sign(self, upstream_id: bytes) -> bytes | None:
        """What the client gets; None when the id is not visible ASCII, which the specification asks for."""
        if not _VISIBLE.fullmatch(upstream_id):
            return None
        term = self._ring.newest(self._owner[0])
        return b"%d.%b.%b" % (term, self._mac(term, upstream_id), upstream_id)

    def verify(self, wrapped: bytes) -> bytes | None:
        """The upstream's id; None when it is forged, foreign, or signed for another caller, connection or origin."""
        found = _WRAPPED.fullmatch(wrapped)
        if found is None:
            return None
        term, mac, upstream_id = int(found[1]), found[2], found[3]
        try:
            expected = self._mac(term, upstream_id)
        except Unreadable:
            return None
        return upstream_id if hmac.compare_digest(mac, expected) else None

    def _mac(self, term: int, upstream_id: bytes) -> bytes:
        key = self._ring.session_key(self._owner[0], term)
        bound = b"".join([b"%d:%b" % (len(part), part) for part in (text.encode() for text in self._owner)])
        return base64.urlsafe_b64encode(hmac.digest(key, bound + upstream_id, "sha256"))[:43]
