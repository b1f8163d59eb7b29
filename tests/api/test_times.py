"""Whatever time comes in or is stored, the list it stands in can be read."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keystile.api.times import moment

EXTREMES = (
    ("9999-12-31T23:59:59-23:59", False),
    ("9999-12-31T00:00:00.001Z", False),
    ("9999-12-31T00:00:00Z", True),
    ("0001-01-01T00:00:00+23:59", False),
)


@pytest.mark.parametrize(("time", "taken"), EXTREMES)
@pytest.mark.anyio
async def test_a_time_no_calendar_has_is_refused_and_breaks_no_list(served: Any, time: str, taken: bool) -> None:  # noqa: FBT001 — a column
    for client, path in ((served.api, "/keys"), (served.host, "/organizations/default/keys")):
        made = await client.post(path, json={"name": "extreme", "expiresAt": time})
        assert made.status_code == (201 if taken else 400), made.text
        assert taken or made.json()["error"]["details"]["field"] == "expiresAt"
    for field in ("since", "until"):
        read = await served.api.get("/events", params={field: time})
        assert read.status_code == 200, read.text
    listed = await served.api.get("/keys")
    assert [row["expiresAt"] for row in listed.json()["data"][:-1]] == ["9999-12-31T00:00:00.000Z"] * 2 * taken
    assert (await served.api.get("/events")).status_code == 200


@given(st.integers())
def test_every_stored_time_can_be_shown(at: int) -> None:
    assert len(moment(at)) == len("2026-11-22T09:30:00.000Z")
