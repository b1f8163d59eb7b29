"""Those without a valid key are in the trail, and cannot fill it."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from keystile.audit.event import Event, event_id
from keystile.errors import REFUSALS
from keystile.gateway.record import new_id
from keystile.gateway.strangers import ADDRESSES, OWN, Strangers
from tests.gateway.stage import ORGANIZATION, staged

BAD_KEY = "ks_" + "A" * 49
FLOOD = 200


def refused(at: int, address: str | None = "192.0.2.1", organization: str | None = None) -> Event:
    return Event(id=event_id(at, 0), at=at, outcome="refused", address=address, organization=organization)


def test_an_address_has_ten_events_of_its_own_a_second_and_the_rest_is_one_count() -> None:
    strangers = Strangers()
    assert [strangers.has_own(refused(5000 + at)) for at in range(25)] == [True] * OWN + [False] * 15
    assert [strangers.has_own(refused(6000 + at)) for at in range(12)] == [True] * OWN + [False] * 2
    assert strangers.has_own(refused(6000, "192.0.2.2"))
    (event,) = strangers.counted(7000, new_id)
    assert (event.outcome, event.count, event.address, event.at) == ("counted", 17, "192.0.2.1", 7000)
    assert strangers.counted(8000, new_id) == []


def test_a_clock_set_back_begins_another_second() -> None:
    strangers = Strangers()
    assert all(strangers.has_own(refused(9000)) for _ in range(OWN))
    assert all(strangers.has_own(refused(1000)) for _ in range(OWN))


def test_counts_are_told_to_each_organization() -> None:
    strangers = Strangers()
    for number in range(OWN + 9):
        strangers.has_own(refused(1000, organization=("a", "b", None)[number % 3]))
    counted = strangers.counted(2000, new_id)
    assert {event.organization: event.count for event in counted} == {"a": 3, "b": 3, None: 3}
    assert len({event.id for event in counted}) == 3


def test_a_count_that_found_no_room_is_kept() -> None:
    strangers = Strangers()
    for at in range(OWN + 5):
        strangers.has_own(refused(at))
    (event,) = strangers.counted(1000, new_id)
    strangers.count(event)
    strangers.count(refused(1001))
    (again,) = strangers.counted(2000, new_id)
    assert again.count == 6


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 5)), max_size=300))
def test_every_refusal_has_its_event_or_is_counted(tried: list[tuple[int, int]]) -> None:
    strangers = Strangers()
    own = Counter(
        (second, address)
        for second, address in sorted(tried)
        if strangers.has_own(refused(second * 1000, str(address)))
    )
    assert max(own.values(), default=0) <= OWN
    assert own.total() + sum(event.count for event in strangers.counted(9000, new_id)) == len(tried)


def test_many_addresses_take_bounded_memory_and_room() -> None:
    strangers = Strangers()
    own = sum(strangers.has_own(refused(1000, f"2001:db8::{number:x}", str(number))) for number in range(20_000))
    assert own == ADDRESSES + OWN
    assert len(strangers._seen) <= ADDRESSES + 1
    assert len(strangers._beyond) <= ADDRESSES + 1
    counted = strangers.counted(2000, new_id)
    assert len(counted) <= ADDRESSES + 1
    assert own + sum(event.count for event in counted) == 20_000


@pytest.mark.anyio
async def test_a_flood_of_bad_keys_is_told_by_few_events_and_a_number(tmp_path: Path) -> None:
    async with staged(tmp_path) as stage:
        stage.connect()
        client = await stage.client()
        for _ in range(FLOOD):
            client.send(stage.request(key=BAD_KEY))
            assert (await client.answer()).code == "key_invalid"
        await stage.until(lambda: sum(event.count for event in stage.events()) == FLOOD)
        events = stage.events()
        assert {event.organization for event in events} == {ORGANIZATION}
        assert {event.address for event in events} == {"127.0.0.1"}
        per_second = Counter(event.at // 1000 for event in events if event.outcome == "refused")
        assert max(per_second.values()) <= OWN
        assert stage.upstream.asked == []
        client.send(stage.request())
        assert (await client.answer()).status == 200
        await client.close()


@pytest.mark.anyio
async def test_refusals_after_authentication_all_have_their_events(tmp_path: Path) -> None:
    async with staged(tmp_path) as stage:
        client = await stage.client()
        for _ in range(4 * OWN):
            client.send(stage.request(target=b"/v1/mcp/unknown"))
            assert (await client.answer()).code == "connection_unknown"
        assert [event.refusal for event in stage.events()] == ["connection_unknown"] * 4 * OWN
        await client.close()


@pytest.mark.anyio
async def test_a_head_that_cannot_be_read_is_an_event_of_nobody(tmp_path: Path) -> None:
    malformed = b"GET /v1/mcp/upstream HTTP/1.1\r\nhost: 127.0.0.1\r\nhost: 127.0.0.1\r\n\r\n"
    async with staged(tmp_path, head_seconds=0.05) as stage:
        assert (await stage.ask(malformed)).status == 400
        event = await stage.event()
        assert (event.outcome, event.refusal, event.status) == ("refused", "malformed_http", 400)
        assert (event.organization, event.slug, event.address) == (None, None, "127.0.0.1")
        assert event.bytes_in == len(malformed)
        assert (await stage.ask(b"GET /v1")).status == REFUSALS["head_timeout"].status
        await stage.until(lambda: "head_timeout" in {event.refusal for event in stage.events()})
        for _ in range(FLOOD // 4):
            await stage.ask(b"\x16\x03\x01\r\n\r\n")
        await stage.until(lambda: sum(event.count for event in stage.events()) == 2 + FLOOD // 4)
        assert len(stage.events()) < 2 + FLOOD // 4


@pytest.mark.anyio
async def test_a_tenth_of_the_spool_is_kept_from_strangers(tmp_path: Path) -> None:
    segment = 80 * 1024
    async with staged(tmp_path, spool_segment_bytes=segment, spool_bytes=4 * segment) as stage:
        stage.connect()
        trail = stage.gate.trail
        number = 0
        while trail.spool.append(refused(number, organization="x" * 1000)):
            number += 1
        assert trail.ready(), "strangers did not fill it"
        before = len(stage.events())
        assert (await stage.ask(stage.request(key=None))).code == "key_missing"
        trail.tick(1e12)
        assert len(stage.events()) == before
        assert (await stage.ask(stage.request())).status == 200
        assert len(stage.events()) == before + 1
        trail.spool._bound_bytes *= 2  # as when the ledger has made room
        await stage.until(lambda: stage.events()[-1].outcome == "counted" or trail.tick(2e12) is not None)
        assert [event.count for event in stage.events() if event.outcome == "counted"] == [1]


@pytest.mark.anyio
async def test_the_last_counts_are_told_when_a_worker_ends(tmp_path: Path) -> None:
    async with staged(tmp_path, clock=False) as stage:
        stage.connect()
        client = await stage.client()
        for _ in range(3 * OWN):
            client.send(stage.request(key=None))
            await client.answer()
        await client.close()
    assert sum(event.count for event in stage.events()) == 3 * OWN


def test_a_line_says_how_many_only_at_its_end() -> None:
    assert msgspec.structs.fields(Event)[-1].name == "count"
