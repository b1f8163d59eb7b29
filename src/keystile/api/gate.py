"""Who calls the REST API. Everything under /api/v1 stands behind this gate; what it lets through carries a `Caller`.

Rules: only `Authorization: Bearer ks_…` counts. A missing, malformed, unknown, expired or revoked key gets one and the
same 401, before it is told whether the path exists. A `client` key has no route here, and an auditor's reads only:
both are decided here, so that no route can forget it.
"""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from keystile.api.house import House
from keystile.core import apikey
from keystile.errors import Denied, Unauthenticated
from keystile.model import ApiKey, Connection, Role
from keystile.store import keys

READING = frozenset({"GET", "HEAD"})


class Caller(msgspec.Struct, frozen=True):
    """Evidence that a request showed a live key with a role that has routes here."""

    key: ApiKey

    @property
    def organization(self) -> str:
        """The id of the organization it acts in."""
        return self.key.organization

    @property
    def own_only(self) -> bool:
        """Whether it sees only what it made."""
        return self.key.role is Role.DEVELOPER

    def sees(self, row: Connection | ApiKey) -> bool:
        """Whether a row exists, as far as this caller is told."""
        return row.organization == self.organization and (not self.own_only or row.created_by == self.key.id)


async def admitted(house: House, method: str, fields: Iterable[tuple[bytes, bytes]]) -> Caller:
    """The caller a request's header fields prove. Raises Unauthenticated or Denied."""
    shown = [value for name, value in fields if name == b"authorization"]
    key = await _live_key(house, shown[0]) if len(shown) == 1 else None
    if key is None:
        raise Unauthenticated("Show a valid Keystile key: Authorization: Bearer ks_…")
    if key.role is Role.CLIENT:
        raise Denied("A client key calls endpoints and has no route in this API.")
    if key.role is Role.AUDITOR and method not in READING:
        raise Denied("An auditor's key reads and changes nothing.")
    return Caller(key)


async def _live_key(house: House, authorization: bytes) -> ApiKey | None:
    scheme, _, shown = authorization.partition(b" ")
    shown = shown.strip(b" ")
    if scheme.lower() != b"bearer" or not apikey.well_formed(shown):
        return None
    async with house.database.read() as connection:
        key = await keys.find_digest(connection, apikey.digest(shown))
    expired = key is not None and key.expires_at is not None and key.expires_at <= house.now()
    return None if expired else key
