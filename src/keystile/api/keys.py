"""API keys: make one and show it once, list them, revoke.

Rules: nobody mints above their own role, nor beyond their own reach: a narrowed key mints within its scope, a
developer's within what it made, a pinned key for its user alone. A revoked key opens nothing from the next request on.
"""

from __future__ import annotations

from sqlalchemy.ext.asyncio import AsyncConnection

from keystile import mint
from keystile.api import rules
from keystile.api.answers import Answer
from keystile.api.call import Call, paged, refuse
from keystile.api.cursors import after_row, place
from keystile.api.route import Nothing
from keystile.api.shapes import CreateKey, Paging
from keystile.api.times import milliseconds, moment
from keystile.api.views import KeyView, NewKeyView
from keystile.core import apikey
from keystile.core.registry import reaches
from keystile.errors import Denied, Missing
from keystile.model import ApiKey, Dropped, Role
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


async def create_key(call: Call[CreateKey, Nothing]) -> Answer:
    """Make a key. `data.key` is the key itself: it is shown in this answer and never again."""
    body, caller, now = call.body, call.caller, call.house.now()
    if body.role not in MINTS[caller.key.role]:
        raise Denied("Your key may not give this role.", field="role")
    expires_at = milliseconds(body.expires_at) if body.expires_at is not None else None
    if expires_at is not None and expires_at <= now:
        raise refuse("expiresAt", "must lie ahead")
    user = rules.pinned_user(body.pinned_user)
    if caller.key.pinned_user is not None and user not in {None, caller.key.pinned_user}:
        raise Denied("Your key is pinned to another user.", field="pinnedUser")
    shown = mint.new_api_key()
    async with call.house.publisher.change() as tx:
        scope, warnings = await _scope(call, tx.connection)
        key = ApiKey(
            id=mint.new_id(),
            organization=caller.organization,
            name=rules.name(body.name),
            role=body.role,
            digest=apikey.digest(shown.encode("ascii")),
            created_at=now,
            created_by=call.actor,
            expires_at=expires_at,
            connections=scope,
            pinned_user=user or caller.key.pinned_user,
        )
        await keys.insert(tx.connection, key)
        slugs = await connections.slugs(tx.connection, scope or ())
        tx.put(key)
    return Answer(data=made(key, slugs, shown), warnings=warnings)


async def list_keys(call: Call[None, Paging]) -> Answer:
    """List the live keys, newest first. The keys themselves are stored nowhere."""
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


async def revoke_key(call: Call[None, Nothing]) -> Answer:
    """Revoke a key: it is refused from the next request on, and its streams end."""
    async with call.house.publisher.change() as tx:
        found = await keys.find(tx.connection, call.caller.organization, call.path["id"])
        if found is None or not call.caller.sees(found):
            raise Missing("Your organization has no such key.")
        await keys.revoke(tx.connection, found.id, call.house.now())
        tx.put(Dropped(kind="key", id=found.id))
    return Answer()


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


def made(key: ApiKey, slugs: dict[str, str], shown: str) -> NewKeyView:
    """A new key's view, with the key."""
    row = view(key, slugs, None)
    return NewKeyView(key=shown, **{field: getattr(row, field) for field in row.__struct_fields__})


async def _scope(
    call: Call[CreateKey, Nothing], conn: AsyncConnection
) -> tuple[tuple[str, ...] | None, tuple[str, ...]]:
    """The ids of the slugs asked for, each reached by the caller; or the caller's own reach where it has bounds."""
    mine = call.caller.key
    if call.body.connections is not None:
        ids: dict[str, None] = {}
        for slug in call.body.connections:
            found = await connections.find(conn, mine.organization, slug)
            if found is None or not reaches(mine, found):
                raise refuse("connections", "names a connection that your key does not reach")
            ids[found.id] = None
        return tuple(ids), ()
    if mine.connections is None and not (mine.role is Role.DEVELOPER and call.body.role is Role.CLIENT):
        return None, ()
    own = await connections.made_by(conn, mine.organization, mine.id) if mine.role is Role.DEVELOPER else ()
    return tuple(dict.fromkeys((*(mine.connections or ()), *own))), ("The new key reaches what your key reaches now.",)
