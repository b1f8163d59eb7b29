from __future__ import annotations

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from keystile.core.envelope import KeyRing
from keystile.core.session import Holder
from keystile.errors import Unreadable

visible = st.from_regex(rb"[\x21-\x7e]{1,64}", fullmatch=True)
words = st.text(max_size=12)
places = st.tuples(words, words, words)
ORGANIZATIONS = ("one", "two")


def ring(newest: int = 3) -> KeyRing:
    keys = KeyRing()
    for term in range(1, newest + 1):
        for number, organization in enumerate(ORGANIZATIONS):
            keys.add(organization, term, bytes([number, term] * 16))
    return keys


RING = ring()


def holder(organization: str = "one", place: tuple[str, str, str] = ("c", "k", "https://a:443"), keys: KeyRing = RING):
    return Holder(keys, organization, *place)


@given(visible, st.sampled_from(ORGANIZATIONS), places)
def test_what_was_signed_for_a_holder_comes_back_to_it(upstream_id: bytes, organization: str, place) -> None:
    wrapped = holder(organization, place).sign(upstream_id)
    assert wrapped is not None
    assert holder(organization, place).verify(wrapped) == upstream_id
    assert holder(organization, place).sign(upstream_id) == wrapped  # one session, one id, in every answer
    assert all(0x21 <= each <= 0x7E for each in wrapped)


@given(visible, places, places)
def test_an_id_signed_for_another_connection_caller_or_origin_is_nobodys(upstream_id: bytes, ours, theirs) -> None:
    assume(ours != theirs)
    wrapped = holder("one", theirs).sign(upstream_id)
    assert wrapped is not None
    assert holder("one", ours).verify(wrapped) is None


@given(visible, places)
def test_an_id_signed_for_another_organization_is_nobodys(upstream_id: bytes, place) -> None:
    wrapped = holder("two", place).sign(upstream_id)
    assert wrapped is not None
    assert holder("one", place).verify(wrapped) is None


def test_names_that_run_together_alike_are_told_apart() -> None:
    wrapped = holder(place=("ab", "c", "o")).sign(b"id")
    assert wrapped is not None
    assert holder(place=("a", "bc", "o")).verify(wrapped) is None
    assert holder(place=("ab", "", "co")).verify(wrapped) is None


@given(visible, st.data())
def test_an_id_changed_in_any_byte_is_nobodys(upstream_id: bytes, data: st.DataObject) -> None:
    wrapped = holder().sign(upstream_id)
    assert wrapped is not None
    at = data.draw(st.integers(0, len(wrapped) - 1))
    byte = data.draw(st.integers(0, 255).filter(lambda each: each != wrapped[at]))
    assert holder().verify(wrapped[:at] + bytes((byte,)) + wrapped[at + 1 :]) is None


@given(visible, st.data())
def test_an_id_cut_or_lengthened_is_nobodys(upstream_id: bytes, data: st.DataObject) -> None:
    wrapped = holder().sign(upstream_id)
    assert wrapped is not None
    cut = data.draw(st.integers(0, len(wrapped) - 1))
    assert holder().verify(wrapped[:cut]) is None
    assert holder().verify(wrapped[cut:] if cut else b"") is None
    more = data.draw(visible)
    assert holder().verify(wrapped + more) is None
    assert holder().verify(more + wrapped) is None


@given(st.binary(max_size=120))
def test_whatever_comes_is_answered_and_only_what_was_signed_verifies(noise: bytes) -> None:
    assert holder().verify(noise) is None
    assert holder().verify(b"1." + b"A" * 43 + b"." + noise) is None


@pytest.mark.parametrize("term", [b"1", b"2", b"4", b"0", b"03", b"003", b"+3", b"9999999999", b"\xd9\xa3", b""])
def test_an_id_under_another_term_or_another_spelling_of_its_term_is_nobodys(term: bytes) -> None:
    wrapped = holder().sign(b"id")
    assert wrapped is not None
    assert wrapped.startswith(b"3.")
    assert holder().verify(term + wrapped[1:]) is None


def test_an_id_of_an_older_term_verifies_as_long_as_its_data_key_is_there() -> None:
    old = holder(keys=ring(newest=2)).sign(b"id")
    assert old is not None
    assert holder().verify(old) == b"id"
    only_new = KeyRing()
    only_new.add("one", 3, bytes([0, 3] * 16))
    assert holder(keys=only_new).verify(old) is None


@pytest.mark.parametrize("upstream_id", [b"", b"a b", b"a\tb", b"\xff", b"a\x7f", b"a\n"])
def test_an_upstream_id_that_is_not_visible_ascii_is_not_signed(upstream_id: bytes) -> None:
    assert holder().sign(upstream_id) is None


def test_without_a_data_key_nothing_is_signed_or_verified() -> None:
    wrapped = holder().sign(b"id")
    assert wrapped is not None
    assert holder(keys=KeyRing()).verify(wrapped) is None
    with pytest.raises(Unreadable):
        holder(keys=KeyRing()).sign(b"id")
