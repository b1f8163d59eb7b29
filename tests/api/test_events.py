"""The trail over the API: what a worker appended is there, filtered, paged and in order."""

from __future__ import annotations

import time
from typing import Any

import pytest

from keystile.audit.event import Event, event_id
from keystile.audit.spool import Spool

pytestmark = pytest.mark.anyio

AT = 1_790_000_000_000


def spooled(served: Any, *events: Event) -> None:
    """Append events as a worker does."""
    spool = Spool(served.folders.spool, 0, time.time_ns(), 1 << 20, 1 << 30)
    for event in events:
        spool.append(event)
    spool.close()


async def event(served: Any, connection: dict[str, Any] | None, number: int, **fields: Any) -> Event:
    organization = (await served.host.get("/organizations")).json()["data"][0]["id"]
    named = {"connection": connection["id"], "slug": connection["slug"]} if connection else {}
    given: dict[str, Any] = {"organization": organization, "outcome": "done", "http_method": "POST"} | named | fields
    return Event(id=event_id(AT + number, number), at=AT + number, **given)


async def listed(client: Any, count: int, query: str = "") -> Any:
    """The page, once it has `count` rows: within the test's own time limit."""
    while True:
        answer = await client.get(f"/events{query}")
        assert answer.status_code == 200, answer.text
        if len(answer.json()["data"]) >= count:
            return answer.json()


async def test_an_event_shows_everything_it_holds(served: Any) -> None:
    connection = await served.connection()
    spooled(
        served,
        await event(
            served,
            connection,
            0,
            key="k12345678901",
            trace="trace-1",
            user="ada",
            metadata='{"team":"x","n":1}',
            address="192.0.2.1",
            rpc_method="tools/call",
            name="echo",
            protocol="2026-07-28",
            credential_version=3,
            status=200,
            upstream_status=200,
            bytes_in=10,
            bytes_out=20,
            total_ms=1.5,
            first_byte_ms=1.2500004768,
            gateway_ms=0.25,
        ),
    )
    (row,) = (await listed(served.api, 1))["data"]
    assert row == {
        "id": event_id(AT, 0),
        "time": "2026-09-21T14:13:20.000Z",
        "connection": "example",
        "connectionId": connection["id"],
        "keyId": "k12345678901",
        "user": "ada",
        "traceId": "trace-1",
        "metadata": {"team": "x", "n": 1},
        "address": "192.0.2.1",
        "httpMethod": "POST",
        "rpcMethod": "tools/call",
        "name": "echo",
        "protocolVersion": "2026-07-28",
        "outcome": "done",
        "refusal": None,
        "credentialVersion": 3,
        "status": 200,
        "upstreamStatus": 200,
        "bytesIn": 10,
        "bytesOut": 20,
        "totalMs": 1.5,
        "firstByteMs": 1.25,
        "gatewayMs": 0.25,
        "redacted": False,
        "count": 1,
    }


async def test_filters_and_pages(served: Any) -> None:
    one, two = await served.connection("one"), await served.connection("two")
    spooled(
        served,
        *[await event(served, one, number, trace="t1") for number in range(3)],
        *[await event(served, two, number, trace="t2") for number in range(3, 5)],
        await event(served, None, 5, refusal="not_found"),
    )
    everything = (await listed(served.api, 6))["data"]
    assert [row["time"][-4:-1] for row in everything] == ["005", "004", "003", "002", "001", "000"]
    for query, numbers in [
        ("?connection=one", [2, 1, 0]),
        ("?traceId=t2", [4, 3]),
        ("?connection=one&traceId=t2", []),
        ("?since=2026-09-21T14:13:20.003Z", [5, 4, 3]),
        ("?until=2026-09-21T14:13:20.002%2B00:00", [1, 0]),
        ("?since=2026-09-21T14:13:20.001Z&until=2026-09-21T16:13:20.003%2B02:00", [2, 1]),
        ("?until=1960-01-01T00:00:00Z", []),
    ]:
        rows = (await served.api.get(f"/events{query}")).json()["data"]
        assert [int(row["time"][-4:-1]) for row in rows] == numbers, query
    first = (await served.api.get("/events?limit=4")).json()
    rest = (await served.api.get(f"/events?limit=4&cursor={first['meta']['nextCursor']}")).json()
    assert [row["id"] for row in first["data"] + rest["data"]] == [row["id"] for row in everything]
    assert rest["meta"]["nextCursor"] is None


@pytest.mark.parametrize(
    ("query", "status"),
    [
        ("connection=absent", 404),
        ("connection=%00", 400),
        ("connection=abc%0a", 404),
        ("since=yesterday", 400),
        ("since=1234567", 400),
        ("since=2026-01-01T00:00:00", 400),
        ("cursor=x", 400),
        ("traceId=", 400),
        ("limit=0", 400),
        ("conection=one", 400),
        ("since=0001-01-01T00:00:00%2B23:59", 200),
        ("until=9999-12-31T23:59:59Z", 200),
    ],
)
async def test_a_filter_is_never_ignored(served: Any, query: str, status: int) -> None:
    assert (await served.api.get(f"/events?{query}")).status_code == status


async def test_the_events_of_a_deleted_connection_are_still_found_by_its_slug(served: Any) -> None:
    _, developer = await served.key("developer")
    deleted = await served.connection("example", developer)
    spooled(served, await event(served, deleted, 0), await event(served, deleted, 1))
    await listed(served.api, 2)
    assert (await served.api.delete("/connections/example")).status_code == 204
    assert len((await listed(served.api, 2, "?connection=example"))["data"]) == 2
    assert (await developer.get("/events?connection=example")).status_code == 404
    again = await served.connection("example", developer)
    spooled(served, await event(served, again, 2))
    rows = (await listed(served.api, 3, "?connection=example"))["data"]
    assert [row["connectionId"] for row in rows] == [again["id"], deleted["id"], deleted["id"]]
    assert len((await listed(developer, 1, "?connection=example"))["data"]) == 1


async def test_a_developer_reads_the_events_of_what_it_made(served: Any) -> None:
    foreign = await served.connection("foreign")
    _, developer = await served.key("developer")
    own = await served.connection("own", developer)
    spooled(served, await event(served, foreign, 0), await event(served, own, 1), await event(served, None, 2))
    await listed(served.api, 3)
    assert [row["connection"] for row in (await listed(developer, 1))["data"]] == ["own"]
    assert [row["connection"] for row in (await listed(developer, 1, "?connection=own"))["data"]] == ["own"]


async def test_another_organization_reads_none_of_it(served: Any) -> None:
    spooled(served, await event(served, await served.connection(), 0, trace="t1"))
    await listed(served.api, 1)
    other = served.client((await served.host.post("/organizations", json={"slug": "other"})).json()["data"]["key"])
    assert (await other.get("/events")).json()["data"] == []
    assert (await other.get("/events?traceId=t1")).json()["data"] == []


async def test_a_keys_last_use_is_that_of_its_newest_event(served: Any) -> None:
    key_id, _ = await served.key("client")
    spooled(served, await event(served, None, 7, key=key_id))
    await listed(served.api, 1)
    (row,) = [row for row in (await served.api.get("/keys")).json()["data"] if row["id"] == key_id]
    assert row["lastUsedAt"] == "2026-09-21T14:13:20.007Z"
