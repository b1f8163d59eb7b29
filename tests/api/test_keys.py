"""API keys, and who may do what with them."""

from __future__ import annotations

from typing import Any

import pytest

from keystile.core import apikey
from keystile.model import ApiKey, Role

pytestmark = pytest.mark.anyio

ORDER = ["client", "developer", "auditor", "admin", "owner"]


async def test_the_key_is_shown_once(served: Any) -> None:
    made = await served.api.post("/keys", json={"name": "laptop"})
    assert made.status_code == 201
    data = made.json()["data"]
    assert data["role"] == "client"
    assert data["connections"] is None
    assert data["lastUsedAt"] is None
    assert apikey.well_formed(data["key"].encode())
    listed = await served.api.get("/keys")
    assert data["key"] not in listed.text
    assert [row["name"] for row in listed.json()["data"]] == ["laptop", "first admin key"]
    assert data["key"].encode() not in served.folders.database.read_bytes()


async def test_revoking_is_seen_by_every_worker_when_it_is_answered(served: Any) -> None:
    key_id, client = await served.key("admin")
    assert (await client.get("/keys")).status_code == 200
    reader = served.reader()
    list(reader.read()[1])
    assert (await served.api.delete(f"/keys/{key_id}")).status_code == 204
    assert (await client.get("/keys")).status_code == 401
    _, changes = reader.read()
    assert [change.id for change in changes if hasattr(change, "kind")] == [key_id]
    assert (await served.api.delete(f"/keys/{key_id}")).status_code == 404


async def test_a_key_that_expires_is_told_to_workers(served: Any) -> None:
    refused = await served.api.post("/keys", json={"name": "old", "expiresAt": "2020-01-01T00:00:00Z"})
    assert refused.json()["error"]["details"]["field"] == "expiresAt"
    assert (await served.api.post("/keys", json={"name": "old", "expiresAt": "2020-01-01"})).status_code == 400
    assert (await served.api.post("/keys", json={"name": "old", "expiresAt": "2090-01-01T00:00:00"})).status_code == 400
    made = await served.api.post("/keys", json={"name": "new", "expiresAt": "2090-01-01T01:00:00+01:00"})
    assert made.json()["data"]["expiresAt"] == "2090-01-01T00:00:00.000Z"


async def test_no_key_outlives_the_one_that_made_it(served: Any) -> None:
    soon, later = "2090-01-01T00:00:00.000Z", "2090-01-01T00:00:00.001Z"
    _, expiring = await served.key("admin", expiresAt=soon)
    for role in ("client", "admin"):
        refused = await expiring.post("/keys", json={"name": "k", "role": role, "expiresAt": later})
        assert (refused.status_code, refused.json()["error"]["details"]["field"]) == (403, "expiresAt")
        capped = (await expiring.post("/keys", json={"name": "k", "role": role})).json()
        assert capped["data"]["expiresAt"] == soon
        assert capped["meta"]["warnings"]
        path = f"/keys/{capped['data']['id']}"
        assert (await expiring.patch(path, json={"expiresAt": later})).status_code == 403
        assert (await expiring.patch(path, json={"expiresAt": None})).json()["data"]["expiresAt"] == soon
        assert (await served.api.patch(path, json={"expiresAt": None})).json()["data"]["expiresAt"] is None
    exact = await expiring.post("/keys", json={"name": "k", "expiresAt": soon})
    assert exact.json()["data"]["expiresAt"] == soon


async def test_nobody_revokes_a_key_that_they_might_not_mint(served: Any) -> None:
    owner = (await served.host.post("/organizations/default/keys", json={"name": "o", "role": "owner"})).json()["data"]
    refused = await served.api.delete(f"/keys/{owner['id']}")
    assert (refused.status_code, refused.json()["error"]["code"]) == (403, "denied")
    assert (await served.client(owner["key"]).get("/keys")).status_code == 200
    assert (await served.client(owner["key"]).delete(f"/keys/{owner['id']}")).status_code == 204


async def test_scopes_are_slugs_outside_and_ids_inside(served: Any) -> None:
    first = await served.connection("first")
    await served.connection("second")
    made = await served.api.post("/keys", json={"name": "narrow", "connections": ["first"]})
    assert made.json()["data"]["connections"] == ["first"]
    reader = served.reader()
    kept = [change for change in reader.read()[1] if isinstance(change, ApiKey) and change.name == "narrow"]
    assert kept[-1].connections == (first["id"],)
    await served.api.delete("/connections/first")
    listed = (await served.api.get("/keys")).json()["data"]
    assert listed[0]["connections"] == []
    refused = await served.api.post("/keys", json={"name": "narrow", "connections": ["first"]})
    assert refused.status_code == 400
    assert refused.json()["error"]["details"]["field"] == "connections"


@pytest.mark.parametrize("mine", ["owner", "admin", "developer"])
@pytest.mark.parametrize("wanted", ORDER)
async def test_nobody_mints_above_their_own_role(served: Any, mine: str, wanted: str) -> None:
    minter = served.client(
        (await served.host.post("/organizations/default/keys", json={"name": "m", "role": mine})).json()["data"]["key"]
    )
    made = await minter.post("/keys", json={"name": "made", "role": wanted})
    assert made.status_code == (201 if ORDER.index(wanted) <= ORDER.index(mine) else 403)


async def test_a_client_key_has_no_route_here(served: Any) -> None:
    _, client = await served.key("client")
    for path in ("/connections", "/keys", "/events", "/nothing"):
        refused = await client.get(path)
        assert (refused.status_code, refused.json()["error"]["code"]) == (403, "denied")


async def test_an_auditor_reads_everything_and_writes_nothing(served: Any) -> None:
    await served.connection()
    _, auditor = await served.key("auditor")
    for path in ("/connections", "/connections/example", "/connections/example/versions", "/keys", "/events"):
        assert (await auditor.get(path)).status_code == 200, path
    for method, path in [
        ("POST", "/connections"),
        ("PATCH", "/connections/example"),
        ("DELETE", "/connections/example"),
        ("POST", "/connections/example/rotate"),
        ("POST", "/connections/example/check"),
        ("POST", "/connections/example/versions/1/activate"),
        ("DELETE", "/connections/example/versions/1"),
        ("POST", "/keys"),
        ("PATCH", "/keys/x"),
        ("DELETE", "/keys/x"),
    ]:
        assert (await auditor.request(method, path, json={})).status_code == 403, (method, path)


async def test_a_developer_knows_only_what_it_made(served: Any) -> None:
    await served.connection("foreign")
    foreign_key = (await served.api.get("/keys")).json()["data"][0]["id"]
    _, developer = await served.key("developer")
    assert (await developer.get("/connections")).json()["data"] == []
    assert (await developer.get("/keys")).json()["data"] == []
    for method in ("GET", "PATCH", "DELETE"):
        body = {} if method == "PATCH" else None
        assert (await developer.request(method, f"/keys/{foreign_key}", json=body)).status_code == 404
    for method, path, body in [
        ("GET", "/connections/foreign", None),
        ("PATCH", "/connections/foreign", {}),
        ("DELETE", "/connections/foreign", None),
        ("POST", "/connections/foreign/rotate", {"credential": "made-up"}),
        ("POST", "/connections/foreign/check", None),
        ("GET", "/connections/foreign/versions", None),
        ("GET", "/events?connection=foreign", None),
    ]:
        assert (await developer.request(method, path, json=body)).status_code == 404, (method, path)
    await served.connection("own", developer)
    assert [row["slug"] for row in (await developer.get("/connections")).json()["data"]] == ["own"]
    assert (await developer.get("/events?connection=own")).status_code == 200
    assert (await developer.delete("/connections/own")).status_code == 204


async def test_a_developers_keys_reach_no_further_than_the_developer(served: Any) -> None:
    await served.connection("foreign")
    listed = await served.connection("listed")
    _, developer = await served.key("developer", connections=["listed"])
    own = await served.connection("own", developer)
    refused = await developer.post("/keys", json={"name": "k", "connections": ["foreign"]})
    assert refused.status_code == 400
    narrowed = await developer.post("/keys", json={"name": "k"})
    assert narrowed.status_code == 201
    assert sorted(narrowed.json()["data"]["connections"]) == ["listed", "own"]
    assert narrowed.json()["meta"]["warnings"]
    made = await developer.post("/keys", json={"name": "k", "connections": ["own", "listed"]})
    assert sorted(made.json()["data"]["connections"]) == ["listed", "own"]
    assert {own["slug"], listed["slug"]} == {"own", "listed"}
    mine = (await developer.get("/keys")).json()["data"]
    assert len(mine) == 2
    assert (await developer.delete(f"/keys/{mine[0]['id']}")).status_code == 204


async def test_a_narrowed_key_mints_within_its_scope(served: Any) -> None:
    await served.connection("inside")
    await served.connection("outside")
    _, narrowed = await served.key("admin", connections=["inside"])
    assert (await narrowed.post("/keys", json={"name": "k", "connections": ["outside"]})).status_code == 400
    made = await narrowed.post("/keys", json={"name": "k", "role": "admin"})
    assert made.json()["data"]["connections"] == ["inside"]


async def test_a_pinned_key_mints_for_its_user_alone(served: Any) -> None:
    _, pinned = await served.key("admin", pinnedUser="ada")
    assert (await pinned.post("/keys", json={"name": "k", "pinnedUser": "bob"})).status_code == 403
    assert (await pinned.post("/keys", json={"name": "k"})).json()["data"]["pinnedUser"] == "ada"
    for user in ("", "a\nb", "ü", " ada", "a" * 257):
        assert (await served.api.post("/keys", json={"name": "k", "pinnedUser": user})).status_code == 400


async def patched(client: Any, key_id: str, **fields: Any) -> Any:
    return await client.patch(f"/keys/{key_id}", json=fields)


async def test_a_changed_key_is_known_to_every_worker_when_it_is_answered(served: Any) -> None:
    first = await served.connection("first")
    await served.connection("second")
    key_id, _ = await served.key("client", connections=["first", "second"], expiresAt="2090-01-01T00:00:00Z")
    reader = served.reader()
    list(reader.read()[1])
    answer = await patched(served.api, key_id, connections=["first"])
    assert answer.status_code == 200
    data = answer.json()["data"]
    assert (data["connections"], data["name"], data["expiresAt"]) == (["first"], "client", "2090-01-01T00:00:00.000Z")
    (change,) = reader.read()[1]
    assert isinstance(change, ApiKey)
    assert (change.id, change.connections) == (key_id, (first["id"],))
    renamed = (await patched(served.api, key_id, name="renamed", expiresAt=None, connections=None)).json()["data"]
    assert (renamed["connections"], renamed["name"], renamed["expiresAt"]) == (None, "renamed", None)
    assert (await served.api.get(f"/keys/{key_id}")).json()["data"] == renamed
    assert (await patched(served.api, key_id, connections=[])).json()["data"]["connections"] == []


async def test_a_key_that_somebody_else_changed_first_is_not_changed(served: Any) -> None:
    made = await served.api.post("/keys", json={"name": "k"})
    path, tag = f"/keys/{made.json()['data']['id']}", made.headers["etag"]
    assert (await served.api.get(path)).headers["etag"] == tag
    changed = await served.api.patch(path, json={"name": "one"}, headers={"if-match": tag})
    assert (changed.status_code, changed.headers["etag"] == tag) == (200, False)
    for method, body in (("PATCH", {"name": "two"}), ("DELETE", None)):
        stale = await served.api.request(method, path, json=body, headers={"if-match": tag})
        assert (stale.status_code, stale.json()["error"]["code"]) == (412, "stale")
    assert (await served.api.delete(path, headers={"if-match": changed.headers["etag"]})).status_code == 204
    assert (await patched(served.api, made.json()["data"]["id"], name="three")).status_code == 404


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"connections": ["absent"]}, "connections"),
        ({"connections": ["example", "example", "absent"]}, "connections"),
        ({"expiresAt": "2020-01-01T00:00:00Z"}, "expiresAt"),
        ({"name": "\n"}, "name"),
        ({"name": None}, "name"),
        ({"role": "admin"}, "role"),
        ({"pinnedUser": None}, None),
        ({"key": "made-up"}, "key"),
    ],
)
async def test_a_change_that_breaks_a_rule_leaves_the_key_as_it_is(served: Any, fields: Any, field: str | None) -> None:
    await served.connection()
    key_id, _ = await served.key("client")
    before = (await served.api.get(f"/keys/{key_id}")).json()["data"]
    refused = await patched(served.api, key_id, **fields)
    assert refused.status_code == 400
    assert refused.json()["error"]["details"].get("field") in {field, "pinnedUser"}
    assert (await served.api.get(f"/keys/{key_id}")).json()["data"] == before


async def test_a_key_is_widened_within_the_callers_own_reach_and_narrowed_within_its_own(served: Any) -> None:
    for slug in ("inside", "outside", "beyond"):
        await served.connection(slug)
    mine, narrowed = await served.key("admin", connections=["inside"])
    key_id, _ = await served.key("client", connections=["outside"])
    widened = await patched(narrowed, key_id, connections=["outside", "inside"])
    assert sorted(widened.json()["data"]["connections"]) == ["inside", "outside"]
    assert (await patched(narrowed, key_id, connections=["beyond"])).status_code == 400
    freed = (await patched(narrowed, key_id, connections=None)).json()
    assert (freed["data"]["connections"], len(freed["meta"]["warnings"])) == (["inside"], 1)
    assert (await patched(narrowed, mine, connections=["inside", "outside"])).status_code == 400
    assert (await patched(narrowed, mine, connections=None)).json()["data"]["connections"] == ["inside"]
    free, _ = await served.key("client")
    assert (await patched(narrowed, free, connections=None)).json()["data"]["connections"] is None
    assert (await patched(narrowed, free, connections=["beyond"])).json()["data"]["connections"] == ["beyond"]


async def test_a_developer_changes_only_keys_it_made_and_within_its_reach(served: Any) -> None:
    await served.connection("foreign")
    _, developer = await served.key("developer")
    await served.connection("own", developer)
    made = (await developer.post("/keys", json={"name": "k", "connections": []})).json()["data"]["id"]
    assert (await patched(developer, made, connections=["foreign"])).status_code == 400
    assert (await patched(developer, made, connections=["own"])).json()["data"]["connections"] == ["own"]
    assert (await patched(developer, made, connections=None)).json()["data"]["connections"] == ["own"]


async def test_nobody_changes_a_key_that_it_could_not_have_made(served: Any) -> None:
    owner = (await served.host.post("/organizations/default/keys", json={"name": "o", "role": "owner"})).json()["data"]
    _, pinned = await served.key("admin", pinnedUser="ada")
    free, _ = await served.key("client")
    assert (await patched(served.api, owner["id"], name="mine now")).status_code == 403
    assert (await patched(pinned, free, connections=[])).status_code == 403
    hers, _ = await served.key("client", pinnedUser="ada")
    assert (await patched(pinned, hers, name="hers")).status_code == 200


async def test_keys_page_and_last_use_shows(served: Any) -> None:
    for number in range(5):
        await served.key("client", name=f"key-{number}")
    first = (await served.api.get("/keys?limit=4")).json()
    rest = (await served.api.get(f"/keys?limit=4&cursor={first['meta']['nextCursor']}")).json()
    assert len({row["id"] for row in first["data"] + rest["data"]}) == 6
    assert set(first["data"][0]) >= {"lastUsedAt", "expiresAt", "connections", "pinnedUser", "createdBy"}


def test_the_table_of_who_mints_what_names_every_role() -> None:
    from keystile.api.keys import MINTS

    assert set(MINTS) == set(Role)
