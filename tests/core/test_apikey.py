from __future__ import annotations

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keystile import mint
from keystile.core.apikey import compose, digest, well_formed

entropies = st.binary(min_size=32, max_size=32)
DIGITS = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"


def test_keys_of_known_entropy_have_a_known_form() -> None:
    assert compose(bytes(32)) == "ks_" + "0" * 43 + "0JwTDp"
    assert compose(bytes([255] * 32)) == "ks_" + "yhjskwdA6OZ1AL1YmHWZWm8LLG7HjnuCA2j5rOw8Xp1" + "3PKE8b"


@given(entropies, st.sampled_from(["ks_", "kss_"]))
def test_every_key_is_well_formed_and_of_one_length(entropy: bytes, prefix: str) -> None:
    key = compose(entropy, prefix)
    assert len(key) == len(prefix) + 49
    assert well_formed(key.encode(), prefix.encode())


@given(entropies, entropies)
def test_different_entropy_gives_different_keys(one: bytes, other: bytes) -> None:
    assert (compose(one) == compose(other)) == (one == other)


@given(entropies, st.integers(3, 51), st.sampled_from(DIGITS))
def test_one_mistyped_character_is_refused(entropy: bytes, at: int, typo: str) -> None:
    key = compose(entropy)
    mistyped = key[:at] + typo + key[at + 1 :]
    assert well_formed(mistyped.encode()) == (mistyped == key)


@given(entropies, st.integers(3, 50))
def test_two_swapped_characters_are_refused(entropy: bytes, at: int) -> None:
    key = compose(entropy)
    swapped = key[:at] + key[at + 1] + key[at] + key[at + 2 :]
    assert well_formed(swapped.encode()) == (swapped == key)


@given(st.binary(max_size=80))
def test_no_bytes_raise(noise: bytes) -> None:
    assert not well_formed(noise)
    assert not well_formed(b"ks_" + noise)


@pytest.mark.parametrize("mark", [b"\n", b" ", b"\0", b'"', b"\xc3\xa9", b"=" * 10_000])
def test_nothing_may_stand_around_a_key(mark: bytes) -> None:
    key = compose(bytes(32)).encode()
    assert not well_formed(key + mark)
    assert not well_formed(mark + key)
    assert not well_formed(key[:-1] + mark)


def test_a_key_of_one_prefix_is_none_of_another() -> None:
    assert not well_formed(compose(bytes(32), "kss_").encode())
    assert not well_formed(compose(bytes(32), "ks_").encode(), b"kss_")


@pytest.mark.parametrize("size", [0, 31, 33])
def test_other_amounts_of_entropy_are_refused(size: int) -> None:
    with pytest.raises(ValueError, match=f"not {size}"):
        compose(bytes(size))


def test_the_digest_is_sha256() -> None:
    assert digest(b"ks_made-up") == hashlib.sha256(b"ks_made-up").digest()


def test_minted_keys_are_well_formed_and_differ() -> None:
    keys = {mint.new_api_key() for _ in range(50)}
    assert len(keys) == 50
    assert all(well_formed(key.encode()) for key in keys)


def test_minted_ids_are_twelve_lower_case_letters_and_digits() -> None:
    ids = {mint.new_id() for _ in range(200)}
    assert len(ids) == 200
    assert all(len(made) == 12 and set(made) <= set("abcdefghijklmnopqrstuvwxyz0123456789") for made in ids)


def test_minted_data_keys_and_nonces_have_their_lengths() -> None:
    assert (len(mint.data_key()), len(mint.nonce())) == (32, 12)
