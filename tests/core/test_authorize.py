from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keystile.core.authorize import METADATA_BYTES, Context, authorize, context_of, key_doubled
from keystile.errors import Refusal
from keystile.model import ApiKey, Dropped
from tests.core.courtroom import NOW, THEIRS, Court, a_key, a_row

COURT = Court()
KEY = COURT.key()
OTHER = COURT.key(THEIRS)
ROW = COURT.row_of(KEY)
NOBODYS = a_key(999).encode()


def code(found: ApiKey | Context | Refusal) -> str:
    return found.code if isinstance(found, Refusal) else "fine"


def shown(**fields: bytes | str) -> dict[bytes, bytes]:
    return {
        name.replace("_", "-").encode(): value.encode() if isinstance(value, str) else value
        for name, value in fields.items()
    }


# Who


@pytest.mark.parametrize(
    "fields",
    [
        shown(authorization=f"Bearer {KEY}"),
        shown(authorization=f"bearer {KEY}"),
        shown(authorization=f"BEARER   {KEY}"),
        shown(x_api_key=KEY),
        shown(x_api_key=KEY, authorization=f"Bearer {OTHER}"),
        shown(x_api_key=KEY, authorization="Basic bWFkZTp1cA=="),
        shown(x_api_key=KEY, authorization=""),
    ],
)
def test_a_live_key_is_who_calls(fields: dict[bytes, bytes]) -> None:
    assert authorize(fields, COURT.registry, NOW) == ROW


def test_x_api_key_decides_even_when_it_is_the_wrong_one() -> None:
    found = authorize(shown(x_api_key=OTHER, authorization=f"Bearer {KEY}"), COURT.registry, NOW)
    assert found == COURT.row_of(OTHER)
    assert code(authorize(shown(x_api_key="", authorization=f"Bearer {KEY}"), COURT.registry, NOW)) == "key_invalid"


@pytest.mark.parametrize("fields", [{}, shown(cookie=f"key={KEY}", x_keystile_key=KEY, proxy_authorization=KEY)])
def test_a_key_is_looked_for_in_two_fields_only(fields: dict[bytes, bytes]) -> None:
    assert code(authorize(fields, COURT.registry, NOW)) == "key_missing"


@pytest.mark.parametrize(
    "fields",
    [
        shown(authorization=KEY),
        shown(authorization=f"Basic {KEY}"),
        shown(authorization=f"Bearer{KEY}"),
        shown(authorization=f"Bearer\t{KEY}"),
        shown(authorization="Bearer"),
        shown(authorization="Bearer "),
        shown(authorization=f"Bearer {KEY},{KEY}"),
        shown(authorization=f"Bearer {KEY} {KEY}"),
        shown(x_api_key=f"Bearer {KEY}"),
        shown(x_api_key=KEY.lower()),
        shown(x_api_key=KEY.upper()),
        shown(x_api_key=KEY[:-1]),
        shown(x_api_key=KEY + "x"),
        shown(x_api_key=f'"{KEY}"'),
        shown(x_api_key=NOBODYS),
        shown(x_api_key=ROW.digest),
        shown(x_api_key=ROW.id),
        shown(x_api_key="x" * 10_000),
        shown(x_api_key="' OR 1=1 --"),
        shown(x_api_key="\xff\xfe".encode("latin-1")),
    ],
)
def test_what_is_not_exactly_a_known_key_is_invalid(fields: dict[bytes, bytes]) -> None:
    assert code(authorize(fields, COURT.registry, NOW)) == "key_invalid"


@given(st.binary(max_size=80))
def test_nothing_but_a_known_key_is_admitted_and_nothing_raises(noise: bytes) -> None:
    for fields in (shown(x_api_key=noise), shown(authorization=noise), shown(authorization=b"Bearer " + noise)):
        assert isinstance(authorize(fields, COURT.registry, NOW), Refusal)


def test_an_expired_key_is_told_so_from_its_last_moment_on() -> None:
    court = Court()
    key = court.key(expires_at=NOW)
    assert isinstance(authorize(shown(x_api_key=key), court.registry, NOW - 1), ApiKey)
    assert code(authorize(shown(x_api_key=key), court.registry, NOW)) == "key_expired"
    assert code(authorize(shown(x_api_key=key), court.registry, NOW + 1)) == "key_expired"


def test_a_revoked_key_is_refused_like_one_that_never_was() -> None:
    court = Court()
    key = court.key()
    court.registry.apply(Dropped(kind="key", id=court.row_of(key).id))
    revoked = authorize(shown(x_api_key=key), court.registry, NOW)
    assert revoked == authorize(shown(x_api_key=NOBODYS), court.registry, NOW)


@pytest.mark.parametrize(
    ("names", "verdict"),
    [
        ([b"authorization", b"x-api-key"], False),
        ([b"x-api-key", b"accept", b"x-api-key"], True),
        ([b"authorization", b"authorization"], True),
        ([b"accept", b"accept"], False),
    ],
)
def test_a_doubled_key_field_is_seen(names: list[bytes], verdict: bool) -> None:  # noqa: FBT001 — a column
    assert key_doubled([(name, b"") for name in names]) == verdict


# What the caller asserts


def test_without_assertions_there_is_no_context() -> None:
    assert context_of({}, ROW) == Context(None, None, None)


def test_what_is_asserted_is_recorded_as_it_came() -> None:
    asserted = '{ "run":7, "ok":true, "none":null, "half":0.5, "name":"ä" }'
    found = context_of(
        shown(x_keystile_user="ada@example.org (admin)", x_keystile_trace_id="t/1", x_keystile_metadata=asserted), ROW
    )
    assert found == Context("ada@example.org (admin)", "t/1", asserted)


def test_the_names_of_the_older_gateway_are_heard_and_ours_go_first() -> None:
    old = shown(x_igris_user="old", x_igris_trace_id="old", x_igris_metadata='{"old":1}')
    assert context_of(old, ROW) == Context("old", "old", '{"old":1}')
    new = shown(x_keystile_user="new", x_keystile_trace_id="new", x_keystile_metadata='{"new":1}')
    assert context_of(old | new, ROW) == Context("new", "new", '{"new":1}')
    assert context_of(old | shown(x_keystile_user="new"), ROW) == Context("new", "old", '{"old":1}')


@pytest.mark.parametrize("user", ["", "x" * 257, "a\tb", "ä".encode(), b"a\x7f", KEY, f"u-{KEY}-u"])
def test_a_malformed_user_is_refused(user: str | bytes) -> None:
    for name in ("x_keystile_user", "x_igris_user"):
        assert code(context_of(shown(**{name: user}), ROW)) == "user_malformed"


@pytest.mark.parametrize("trace", ["", "x" * 129, "a b", b"\xff", KEY, f"trace:{KEY}"])
def test_a_malformed_trace_id_is_refused(trace: str | bytes) -> None:
    for name in ("x_keystile_trace_id", "x_igris_trace_id"):
        assert code(context_of(shown(**{name: trace}), ROW)) == "trace_id_malformed"


@pytest.mark.parametrize("length", [1, 128])
def test_a_trace_id_of_any_visible_ascii_passes(length: int) -> None:
    for character in map(chr, range(0x21, 0x7F)):
        assert isinstance(context_of(shown(x_keystile_trace_id=character * length), ROW), Context)


def escaped(text: str) -> str:
    return "".join(f"\\u{ord(character):04x}" for character in text)


@pytest.mark.parametrize(
    "metadata",
    [
        "",
        "null",
        "7",
        '"x"',
        "[]",
        '{"a":{}}',
        '{"a":[]}',
        '{"a":1',
        '{"a":1}x',
        "{a:1}",
        '{"a":NaN}',
        b'{"a":"\xff"}',
        "[" * 4000,
        '{"a":' * 800,
        json.dumps({"a": "x" * METADATA_BYTES}),
        json.dumps({"key": KEY}),
        json.dumps({KEY: 1}),
        f'{{"key":"{escaped(KEY)}"}}',
        f'{{"{escaped(KEY[:3])}{KEY[3:]}":1}}',
        f'{{"a":"{KEY}","a":"\\n"}}',
    ],
)
def test_metadata_that_is_no_flat_object_or_holds_a_key_is_refused(metadata: str | bytes) -> None:
    for name in ("x_keystile_metadata", "x_igris_metadata"):
        assert code(context_of(shown(**{name: metadata}), ROW)) == "metadata_malformed"


def test_metadata_may_be_4_kib_and_no_more() -> None:
    exact = json.dumps({"a": "x" * (METADATA_BYTES - len('{"a": ""}'))})
    assert isinstance(context_of(shown(x_keystile_metadata=exact), ROW), Context)
    assert code(context_of(shown(x_keystile_metadata=exact + " "), ROW)) == "metadata_malformed"


scalars = st.none() | st.booleans() | st.integers(-(10**30), 10**30) | st.floats(allow_nan=False, allow_infinity=False)


@given(st.dictionaries(st.text(max_size=8), scalars | st.text(max_size=20), max_size=8), st.booleans())
def test_every_flat_object_passes_and_reads_the_same(flat: dict, ascii_only: bool) -> None:  # noqa: FBT001 — drawn
    text = json.dumps(flat, ensure_ascii=ascii_only).encode("utf-8", "replace")
    found = context_of(shown(x_keystile_metadata=text), ROW)
    if isinstance(found, Context):
        assert found.metadata is not None
        assert json.loads(found.metadata) == json.loads(text)
    else:
        # Half a surrogate pair is no text (RFC 8259, section 8.2).
        assert any(0xD800 <= ord(each) < 0xE000 for each in "".join(map(str, [*flat, *flat.values()])))


@given(st.binary(max_size=200), st.sampled_from(["user", "trace-id", "metadata"]))
def test_no_assertion_raises_and_none_carries_a_control_character(noise: bytes, what: str) -> None:
    found = context_of({b"x-keystile-" + what.encode(): noise}, ROW)
    if isinstance(found, Context):
        assert (found.user or "").isprintable()
        assert (found.trace or "").isprintable()


# The pinned user

PINNED = a_row(5, pinned_user="ada")


def test_a_pinned_user_stands_in_for_an_absent_one() -> None:
    assert context_of({}, PINNED) == Context("ada", None, None)
    assert context_of(shown(x_keystile_trace_id="t"), PINNED) == Context("ada", "t", None)
    assert context_of(shown(x_keystile_user="ada"), PINNED) == Context("ada", None, None)


@pytest.mark.parametrize("user", ["eve", "Ada", "ada "[:3] + "x", "ADA"])
@pytest.mark.parametrize("name", ["x_keystile_user", "x_igris_user"])
def test_another_user_than_the_pinned_one_is_refused(user: str, name: str) -> None:
    assert code(context_of(shown(**{name: user}), PINNED)) == "user_mismatch"


def test_the_older_name_cannot_slip_another_user_past_the_pin() -> None:
    both = shown(x_keystile_user="ada", x_igris_user="eve")
    assert context_of(both, PINNED) == Context("ada", None, None)
    assert code(context_of(shown(x_keystile_user="eve", x_igris_user="ada"), PINNED)) == "user_mismatch"
