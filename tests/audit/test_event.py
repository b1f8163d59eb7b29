from __future__ import annotations

import uuid

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from keystile.audit.event import NAME_BYTES, Event, cut, decode, encode, event_id, first_id

TIME = st.integers(0, (1 << 48) - 1)
ENTROPY = st.integers(0, (1 << 74) - 1)


@given(at=TIME, entropy=ENTROPY)
def test_an_id_is_a_uuid_of_version_7_holding_time_and_entropy(at: int, entropy: int) -> None:
    found = uuid.UUID(event_id(at, entropy))
    assert (found.version, found.variant, found.int >> 80) == (7, uuid.RFC_4122, at)
    assert (found.int >> 64 & 0xFFF) << 62 | found.int & ((1 << 62) - 1) == entropy
    assert str(found) == event_id(at, entropy)


def test_the_example_of_rfc_9562_appendix_a_6() -> None:
    entropy = 0xCC3 << 62 | 0x18C4DC0C0C07398F
    assert event_id(0x017F22E279B0, entropy) == "017f22e2-79b0-7cc3-98c4-dc0c0c07398f"


@given(at=TIME, other=TIME, entropy=ENTROPY)
def test_ids_sort_by_time_and_bound_their_millisecond(at: int, other: int, entropy: int) -> None:
    assert (event_id(at, entropy) >= first_id(other)) == (at >= other)


@given(st.text())
def test_a_cut_name_is_the_longest_prefix_that_fits(text: str) -> None:
    found = cut(text * 20)
    size = len(found.encode())
    assert (text * 20).startswith(found)
    assert size <= NAME_BYTES
    rest = (text * 20)[len(found) :]
    assert not rest or size + len(rest[0].encode()) > NAME_BYTES


def test_a_character_on_the_border_is_left_out_whole() -> None:
    assert cut("x" * 255 + "é") == "x" * 255
    assert cut("x" * 254 + "é") == "x" * 254 + "é"


def test_an_event_comes_back_equal() -> None:
    event = Event(id=event_id(1, 2), at=1, outcome="refused", refusal="key_missing", total_ms=0.25, redacted=True)
    assert decode(encode(event)) == event


def test_a_line_of_an_older_release_is_read_with_defaults() -> None:
    line = msgspec.msgpack.encode([event_id(1, 2), 1, "done", "o" * 12])
    event = decode(line)
    assert (event.organization, event.key, event.http_method, event.redacted) == ("o" * 12, None, "", False)
