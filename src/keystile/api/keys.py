"""API keys: make one and show it once, list, show and change them, revoke.

Rules: nobody mints above their own role, beyond their own expiry or their own reach: a narrowed key mints within its
scope, a developer's within what it made, a pinned key for its user alone; a key is widened within the same bounds, and
revoked only by one that might mint it. A revoked or narrowed key is judged anew from the next request on, and its
streams end that it opens no longer.
"""

from __future__ import annotations

from typing import Any

import msgspec
from msgspec import UNSET
from sqlalchemy.ext.asyncio import AsyncConnection

from keystile import mint
from keystile.api import rules
from keystile.api.answers import Answer
from keystile.api.call import Call, etag, must_match, paged, refuse
from keystile.api.cursors import after_row, place
from keystile.api.route import Nothing
from keystile.api.shapes import CreateKey, Paging, PatchKey
from keystile.api.times import moment
from keystile.api.views import KeyView, NewKeyView
from keystile.core import apikey
from keystile.core.registry import reaches
from keystile.errors import Denied, Missing
from keystile.model import ApiKey, Dropped, Role
from keystile.publish import Transaction
from keystile.store import connections, keys

MINTS: dict[Role, frozenset[Role]] = {
    Role.OWNER: frozenset(Role),
    Role.ADMIN: frozenset(Role) - {Role.OWNER},
    # An auditor reads everything in the organization, which is more than a developer may.
    Role.DEVELOPER: frozenset({Role.CLIENT, Role.DEVELOPER}),
    Role.AUDITOR: frozenset(),
    Role.CLIENT: frozenset(),
}
"""Which roles a key of a role may give to another."""

Scope = tuple[str, ...] | None


async def create_key(call: Call[CreateKey, Nothing]) -> Answer:
    """Create an API key.

    `data.key` is the key itself: it is shown in this answer and never again.
    """
    async with call.house.publisher.change() as tx:
        return await minted(tx, call.caller.key, call.body, call.actor, call.house.now())


async def list_keys(call: Call[None, Paging]) -> Answer:
    """List API keys.

    Those that are live, newest first. The keys themselves are stored nowhere.
    """
    query, caller = call.query, call.caller
    async with call.house.database.read() as conn:
        rows = await keys.page(
            conn,
            caller.organization,
            query.limit + 1,
            place(query.cursor),
            caller.key.id if caller.own_only else None,
        )
        rows, last = paged(rows, query.limit)
        slugs = await connections.slugs(conn, {row_id for row in rows for row_id in row.connections or ()})
    used = await call.house.ledger.last_used(caller.organization, [row.id for row in rows])
    return Answer(
        data=[view(row, slugs, used.get(row.id)) for row in rows], paged=True, cursor=last and after_row(last)
    )


async def show_key(call: Call[None, Nothing]) -> Answer:
    """Show an API key.

    The key itself is stored nowhere.
    """
    async with call.house.database.read() as conn:
        found = await _visible(call, conn)
        slugs = await connections.slugs(conn, found.connections or ())
    return await _answered(call, found, slugs)


async def patch_key(call: Call[PatchKey, Nothing]) -> Answer:
    """Change an API key.

    Its name, scope or expiry; what is left out stays, `null` takes scope or expiry off. The key is judged by the change
    from the next request on, and streams that it opens no longer end.
    """
    body, mine, now = call.body, call.caller.key, call.house.now()
    async with call.house.publisher.change() as tx:
        found = await _visible(call, tx.connection)
        must_match(call.if_match, etag(found.revision))
        _may_give(mine, found.role, found.pinned_user)
        scope, expires_at, warnings = found.connections, found.expires_at, ()
        if body.connections is not UNSET:
            scope, warnings = await _scope(tx.connection, mine, found.role, body.connections, found)
        if body.expires_at is not UNSET:
            expires_at, capped = _expiry(mine, rules.expires_at(body.expires_at, now))
            warnings += capped
        after = msgspec.structs.replace(
            found,
            name=found.name if body.name is UNSET else rules.name(body.name),
            connections=scope,
            expires_at=expires_at,
        )
        after = await keys.update(tx.connection, after)
        slugs = await connections.slugs(tx.connection, scope or ())
        tx.put(after)
    return await _answered(call, after, slugs, warnings)


async def revoke_key(call: Call[None, Nothing]) -> Answer:
    """Revoke an API key.

    It is refused from the next request on, and its streams end.
    """
    async with call.house.publisher.change() as tx:
        found = await _visible(call, tx.connection)
        must_match(call.if_match, etag(found.revision))
        if found.role not in MINTS[call.caller.key.role]:
            raise Denied("Your key may not revoke one of this role.", field="role")
        await keys.revoke(tx.connection, found.id, call.house.now())
        tx.put(Dropped(kind="key", id=found.id))
    return Answer()


async def minted(tx: Transaction, giver: ApiKey, body: CreateKey, created_by: str | None, now: int) -> Answer:
    """A new key in the giver's organization, and within its bounds, stored and put on the feed. Shown this once.

    Raises Invalid and Denied.
    """
    user = rules.pinned_user(body.pinned_user) or giver.pinned_user
    _may_give(giver, body.role, user)
    scope, warnings = await _scope(tx.connection, giver, body.role, body.connections)
    expires_at, capped = _expiry(giver, rules.expires_at(body.expires_at, now))
    shown = mint.new_api_key()
    key = ApiKey(
        id=mint.new_id(),
        organization=giver.organization,
        name=rules.name(body.name),
        role=body.role,
        digest=apikey.digest(shown.encode("ascii")),
        created_at=now,
        created_by=created_by,
        expires_at=expires_at,
        connections=scope,
        pinned_user=user,
    )
    await keys.insert(tx.connection, key)
    slugs = await connections.slugs(tx.connection, scope or ())
    tx.put(key)
    row = msgspec.structs.asdict(view(key, slugs, None))
    return Answer(data=NewKeyView(key=shown, **row), etag=etag(key.revision), warnings=warnings + capped)


def view(key: ApiKey, slugs: dict[str, str], used: int | None) -> KeyView:
    """What the API shows of a key. Scopes are slugs outside, ids inside; deleted connections fall out."""
    return KeyView(
        id=key.id,
        name=key.name,
        role=key.role,
        connections=None if key.connections is None else tuple(slugs[i] for i in key.connections if i in slugs),
        pinned_user=key.pinned_user,
        created_at=moment(key.created_at),
        created_by=key.created_by,
        expires_at=moment(key.expires_at),
        last_used_at=moment(used),
    )


async def _answered(call: Call[Any, Any], key: ApiKey, slugs: dict[str, str], warnings: tuple[str, ...] = ()) -> Answer:
    used = await call.house.ledger.last_used(key.organization, (key.id,))
    return Answer(data=view(key, slugs, used.get(key.id)), etag=etag(key.revision), warnings=warnings)


async def _visible(call: Call[Any, Any], conn: AsyncConnection) -> ApiKey:
    found = await keys.find(conn, call.caller.organization, call.path["id"])
    if found is None or not call.caller.sees(found):
        raise Missing("Your organization has no such key.")
    return found


def _may_give(giver: ApiKey, role: Role, user: str | None) -> None:
    if role not in MINTS[giver.role]:
        raise Denied("Your key may not give this role.", field="role")
    if giver.pinned_user is not None and user != giver.pinned_user:
        raise Denied("Your key is pinned to another user.", field="pinnedUser")


def _expiry(giver: ApiKey, asked: int | None) -> tuple[int | None, tuple[str, ...]]:
    """When a key expires: no later than the one that gives it, or its holder would stay for ever. And a warning."""
    if giver.expires_at is None or (asked is not None and asked <= giver.expires_at):
        return asked, ()
    if asked is not None:
        raise Denied("Your key expires earlier.", field="expiresAt")
    return giver.expires_at, ("The key expires when your key does.",)


async def _scope(
    conn: AsyncConnection, giver: ApiKey, role: Role, slugs: Scope, held: ApiKey | None = None
) -> tuple[Scope, tuple[str, ...]]:
    """The ids of the slugs asked for, each within the giver's reach, or that of the key that is changed.

    Without slugs, all the role reaches; where the giver has bounds, what it reaches itself, and a warning.
    """
    if slugs is not None:
        found = await connections.by_slugs(conn, giver.organization, slugs)
        within = [row for row in found.values() if reaches(giver, row) or (held is not None and reaches(held, row))]
        if len(within) < len(set(slugs)):
            raise refuse("connections", "names a connection that does not exist, or that your key does not reach")
        return tuple(dict.fromkeys(found[slug].id for slug in slugs)), ()
    unbounded = giver.connections is None and not (giver.role is Role.DEVELOPER and role is Role.CLIENT)
    if unbounded or (held is not None and held.connections is None):
        return None, ()
    own = await connections.made_by(conn, giver.organization, giver.id) if giver.role is Role.DEVELOPER else ()
    return tuple(dict.fromkeys((*(giver.connections or ()), *own))), ("The key reaches what your key reaches now.",)
