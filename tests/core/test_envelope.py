"""docs/envelope.md, tests/vectors/envelope.txt and core/envelope.py say the same, to the byte.

The vectors are checked twice: against the module, and against the few lines of `written_by_hand`, which follow the
document with the primitives alone.
"""

from __future__ import annotations

import hmac
import traceback
from pathlib import Path

import msgspec
import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from hypothesis import given
from hypothesis import strategies as st

from keystile.core import envelope
from keystile.core.envelope import KeyRing, associated
from keystile.errors import Unreadable
from keystile.model import AuthType, Binding, Connection

VECTORS = Path(__file__).parent.parent / "vectors" / "envelope.txt"
NONCE = bytes(12)
BINDING = Binding(
    kind="credential",
    organization="org000000001",
    record="con000000001",
    owner="",
    version=1,
    auth_type=AuthType.HEADER,
    place="x-upstream-token",
    origin="https://mcp.example.com:443",
)


def vectors() -> list[dict[str, str]]:
    blocks = VECTORS.read_text(encoding="utf-8").split("\n\n")
    return [dict(map(pair, block.splitlines())) for block in blocks if not block.startswith("#")]


def pair(line: str) -> tuple[str, str]:
    name, _, value = line.partition(" =")
    return name, value.removeprefix(" ")


def of_kind(kind: str) -> list[dict[str, str]]:
    found = [vector for vector in vectors() if vector["vector"] == kind]
    assert found
    return found


def u32(number: int) -> bytes:
    return number.to_bytes(4, "big")


def text(value: str) -> bytes:
    return u32(len(value.encode())) + value.encode()


def derived_by_hand(key: bytes, purpose: str, organization: str, term: int) -> bytes:
    # RFC 5869 with no salt and one block of output.
    extracted = hmac.digest(bytes(32), key, "sha256")
    info = b"keystile" + b"\x01" + text(purpose) + text(organization) + u32(term)
    return hmac.digest(extracted, info + b"\x01", "sha256")


def written_by_hand(vector: dict[str, str]) -> bytes:
    key, nonce = bytes.fromhex(vector["key"]), bytes.fromhex(vector["nonce"])
    organization, term = vector["organization"], int(vector["term"])
    match vector["vector"]:
        case "sealed":
            head = b"\x01" + u32(term)
            bound = head + u32(int(vector["version"]))
            for field in ("kind", "organization", "record", "owner", "auth type", "place", "origin"):
                bound += text(vector[field])
            assert bound.hex() == vector["associated"]
            cipher = AESGCM(derived_by_hand(key, "credential", organization, term))
        case "wrapped":
            name = derived_by_hand(key, "root-id", "", 0)[:8]
            head = b"\x02" + name
            bound = head + text(organization) + u32(term)
            cipher = AESGCM(derived_by_hand(key, "wrap", "", 0))
        case _:
            head = b"\x03"
            bound = head + text(organization) + u32(term)
            cipher = AESGCM(derived_by_hand(key, "node", "", 0))
    return head + nonce + cipher.encrypt(nonce, bytes.fromhex(vector["plaintext"]), bound)


def binding_of(vector: dict[str, str]) -> Binding:
    return Binding(
        kind=vector["kind"],
        organization=vector["organization"],
        record=vector["record"],
        owner=vector["owner"],
        version=int(vector["version"]),
        auth_type=AuthType(vector["auth type"]),
        place=vector["place"],
        origin=vector["origin"],
    )


def ring_of(organization: str = BINDING.organization, *terms: int, key: bytes = b"k" * 32) -> KeyRing:
    ring = KeyRing()
    for term in terms or (1,):
        ring.add(organization, term, key)
    return ring


def test_vectors_are_what_the_document_says() -> None:
    for vector in vectors():
        if vector["vector"] != "derived":
            assert written_by_hand(vector).hex() == vector["envelope"]


def test_derived_keys_are_those_of_the_vectors() -> None:
    for vector in of_kind("derived"):
        by_hand = derived_by_hand(
            bytes.fromhex(vector["key"]), vector["purpose"], vector["organization"], int(vector["term"])
        )
        assert by_hand.hex() == vector["derived"]
    session = next(vector for vector in of_kind("derived") if vector["purpose"] == "session")
    ring = ring_of(session["organization"], int(session["term"]), key=bytes.fromhex(session["key"]))
    assert ring.session_key(session["organization"], int(session["term"])).hex() == session["derived"]
    root = next(vector for vector in of_kind("derived") if vector["purpose"] == "root-id")
    assert envelope.root_id(bytes.fromhex(root["key"])).hex() == root["derived"][:16]


def test_a_secret_is_sealed_and_opened_as_the_vectors_say() -> None:
    for vector in of_kind("sealed"):
        binding, term = binding_of(vector), int(vector["term"])
        ring = ring_of(vector["organization"], term, key=bytes.fromhex(vector["key"]))
        plaintext, sealed = bytes.fromhex(vector["plaintext"]), bytes.fromhex(vector["envelope"])
        assert associated(binding, term).hex() == vector["associated"]
        assert ring.seal(plaintext, binding, term, bytes.fromhex(vector["nonce"])) == sealed
        assert ring.open(sealed, binding) == plaintext
        assert ring.open_associated(binding.organization, sealed, ring.associated(binding, sealed)) == plaintext


def test_a_data_key_is_wrapped_and_unwrapped_as_the_vectors_say() -> None:
    for vector in of_kind("wrapped"):
        key, plaintext, wrapped = (bytes.fromhex(vector[name]) for name in ("key", "plaintext", "envelope"))
        organization, term = vector["organization"], int(vector["term"])
        assert envelope.wrap(key, organization, term, plaintext, bytes.fromhex(vector["nonce"])) == wrapped
        assert envelope.unwrap(key, organization, term, wrapped) == plaintext


def test_the_canary_is_among_the_vectors() -> None:
    assert [vector["term"] for vector in of_kind("wrapped") if vector["plaintext"] == envelope.CANARY.hex()] == ["0"]


def test_a_data_key_travels_as_the_vectors_say() -> None:
    for vector in of_kind("node"):
        key, plaintext, sealed = (bytes.fromhex(vector[name]) for name in ("key", "plaintext", "envelope"))
        organization, term = vector["organization"], int(vector["term"])
        assert envelope.seal_for_node(key, organization, term, plaintext, bytes.fromhex(vector["nonce"])) == sealed
        assert envelope.open_for_node(key, organization, term, sealed) == plaintext


words = st.text(st.characters(codec="utf-8"), max_size=20)
bindings = st.builds(
    Binding,
    kind=words,
    organization=words,
    record=words,
    owner=words,
    version=st.integers(0, 2**32 - 1),
    auth_type=st.sampled_from(AuthType),
    place=words,
    origin=words,
)
terms = st.integers(0, 2**32 - 1)


@given(st.binary(max_size=200), bindings, terms, st.binary(min_size=12, max_size=12))
def test_what_was_sealed_opens_under_its_own_binding(
    plaintext: bytes, binding: Binding, term: int, nonce: bytes
) -> None:
    ring = ring_of(binding.organization, term)
    assert ring.open(ring.seal(plaintext, binding, term, nonce), binding) == plaintext


@given(bindings, bindings, terms, terms)
def test_two_bindings_never_look_alike(one: Binding, other: Binding, term: int, another: int) -> None:
    assert (associated(one, term) == associated(other, another)) == ((one, term) == (other, another))


@given(st.lists(words, min_size=7, max_size=7), st.data())
def test_a_border_between_two_fields_cannot_be_moved(fields: list[str], data: st.DataObject) -> None:
    at = data.draw(st.integers(0, 4))
    names = ["kind", "organization", "record", "owner", "place", "origin"]
    one = msgspec.structs.replace(BINDING, **dict(zip(names, fields, strict=False)))
    left, right = fields[at] + fields[at + 1], ""
    other = msgspec.structs.replace(one, **{names[at]: left, names[at + 1]: right})
    assert (associated(one, 1) == associated(other, 1)) == (one == other)


@pytest.mark.parametrize("field", Binding.__struct_fields__)
@given(value=st.one_of(words, st.integers(0, 2**32 - 1), st.sampled_from(AuthType)))
def test_a_sealed_row_moved_to_another_binding_is_unreadable(field: str, value: object) -> None:
    present = getattr(BINDING, field)
    if type(value) is not type(present) or value == present:
        return
    moved = msgspec.structs.replace(BINDING, **{field: value})
    ring = ring_of()
    ring.add(moved.organization, 1, b"k" * 32)
    sealed = ring.seal(b"made-up-secret", BINDING, 1, NONCE)
    with pytest.raises(Unreadable):
        ring.open(sealed, moved)


def test_a_sealed_row_is_unreadable_in_another_organization_even_under_the_same_data_key() -> None:
    ring = ring_of()
    ring.add("org000000002", 1, b"k" * 32)
    sealed = ring.seal(b"made-up-secret", BINDING, 1, NONCE)
    with pytest.raises(Unreadable):
        ring.open_associated("org000000002", sealed, associated(BINDING, 1))


def test_a_sealed_row_is_unreadable_under_another_term_even_of_the_same_data_key() -> None:
    ring = ring_of(BINDING.organization, 1, 2)
    sealed = ring.seal(b"made-up-secret", BINDING, 1, NONCE)
    relabelled = sealed[:1] + u32(2) + sealed[5:]
    with pytest.raises(Unreadable):
        ring.open(relabelled, BINDING)


@given(st.integers(min_value=0))
def test_any_flipped_bit_makes_a_secret_unreadable(bit: int) -> None:
    ring = ring_of(BINDING.organization, 1, 2, 3)
    damaged = flipped(ring.seal(b"made-up-secret", BINDING, 1, NONCE), bit)
    with pytest.raises(Unreadable):
        ring.open(damaged, BINDING)


@given(st.binary(max_size=120))
def test_any_bytes_at_all_open_or_are_unreadable(noise: bytes) -> None:
    with pytest.raises(Unreadable):
        ring_of().open(noise, BINDING)
    with pytest.raises(Unreadable):
        ring_of().open_associated(BINDING.organization, noise, associated(BINDING, 1))
    with pytest.raises(Unreadable):
        envelope.unwrap(b"r" * 32, "org000000001", 1, noise)
    with pytest.raises(Unreadable):
        envelope.open_for_node(b"n" * 32, "org000000001", 1, noise)


@given(st.integers(min_value=0))
def test_any_flipped_bit_makes_a_data_key_unreadable(bit: int) -> None:
    wrapped = envelope.wrap(b"r" * 32, "org000000001", 1, b"k" * 32, NONCE)
    with pytest.raises(Unreadable):
        envelope.unwrap(b"r" * 32, "org000000001", 1, flipped(wrapped, bit))
    travelling = envelope.seal_for_node(b"n" * 32, "org000000001", 1, b"k" * 32, NONCE)
    with pytest.raises(Unreadable):
        envelope.open_for_node(b"n" * 32, "org000000001", 1, flipped(travelling, bit))


@pytest.mark.parametrize(("organization", "term"), [("org000000002", 1), ("org000000001", 2), ("", 0)])
def test_a_data_key_moved_to_another_organization_or_term_is_unreadable(organization: str, term: int) -> None:
    wrapped = envelope.wrap(b"r" * 32, "org000000001", 1, b"k" * 32, NONCE)
    travelling = envelope.seal_for_node(b"n" * 32, "org000000001", 1, b"k" * 32, NONCE)
    with pytest.raises(Unreadable):
        envelope.unwrap(b"r" * 32, organization, term, wrapped)
    with pytest.raises(Unreadable):
        envelope.open_for_node(b"n" * 32, organization, term, travelling)


def test_another_root_key_is_told_apart_from_a_changed_row() -> None:
    wrapped = envelope.wrap(b"r" * 32, "org000000001", 1, b"k" * 32, NONCE)
    with pytest.raises(Unreadable, match=r"wrapped under root key [0-9a-f]{16}, and this is root key [0-9a-f]{16}"):
        envelope.unwrap(b"s" * 32, "org000000001", 1, wrapped)
    with pytest.raises(Unreadable, match="it, its place or its key has changed"):
        envelope.unwrap(b"r" * 32, "org000000001", 2, wrapped)


def test_the_newest_term_seals_and_the_older_ones_still_open() -> None:
    ring = ring_of(BINDING.organization, 2)
    older = ring.seal(b"made-up-secret", BINDING, 2, NONCE)
    ring.add(BINDING.organization, 3, b"l" * 32)
    ring.add(BINDING.organization, 1, b"m" * 32)
    assert ring.newest(BINDING.organization) == 3
    assert ring.open(older, BINDING) == b"made-up-secret"


def test_an_organization_without_a_key_is_unreadable() -> None:
    ring = KeyRing()
    for attempt in (
        lambda: ring.newest("org000000001"),
        lambda: ring.session_key("org000000001", 1),
        lambda: ring.seal(b"made-up-secret", BINDING, 1, NONCE),
        lambda: ring.open(ring_of().seal(b"made-up-secret", BINDING, 1, NONCE), BINDING),
    ):
        with pytest.raises(Unreadable):
            attempt()


def test_session_keys_differ_by_organization_and_term() -> None:
    ring = ring_of(BINDING.organization, 1, 2)
    ring.add("org000000002", 1, b"k" * 32)
    keys = {ring.session_key(*at) for at in ((BINDING.organization, 1), (BINDING.organization, 2), ("org000000002", 1))}
    assert len(keys) == 3


def test_keys_and_nonces_of_another_length_are_refused() -> None:
    with pytest.raises(ValueError, match="a key is 32 bytes, not 16"):
        ring_of(key=b"k" * 16)
    with pytest.raises(ValueError, match="a nonce is 12 bytes, not 16"):
        ring_of().seal(b"made-up-secret", BINDING, 1, bytes(16))


def test_neither_repr_nor_exception_nor_traceback_shows_a_key_or_a_secret() -> None:
    ring = ring_of(key=b"made-up-data-key-of-32-bytes-yes")
    sealed = ring.seal(b"made-up-secret", BINDING, 1, NONCE)
    assert repr(ring) == "<KeyRing organizations=1 keys=1>"
    with pytest.raises(Unreadable) as caught:
        ring.open(sealed, msgspec.structs.replace(BINDING, version=2))
    told = "".join(traceback.TracebackException.from_exception(caught.value).format())
    assert "made-up" not in told + repr(caught.value)


def test_a_connection_is_bound_by_its_id_and_by_where_and_how_it_sends() -> None:
    connection = Connection(
        id="con000000001",
        number=1,
        organization="org000000001",
        slug="any-slug",
        name="Any",
        upstream_url="https://mcp.example.com/mcp",
        auth_type=AuthType.HEADER,
        auth_header_name="X-Upstream-Token",
    )
    assert envelope.credential_binding(connection, 1, "https://mcp.example.com:443") == BINDING
    bearer = msgspec.structs.replace(connection, auth_type=AuthType.BEARER, auth_header_name=None)
    assert envelope.credential_binding(bearer, 1, "https://mcp.example.com:443").place == ""


def flipped(sealed: bytes, bit: int) -> bytes:
    at = bit % (len(sealed) * 8)
    damaged = bytearray(sealed)
    damaged[at // 8] ^= 1 << at % 8
    return bytes(damaged)
