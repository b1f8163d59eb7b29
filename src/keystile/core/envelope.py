"""Sealing and opening: docs/envelope.md, to the byte.

Guarantees promise 6: a sealed secret opens under the binding it was sealed with, or raises `Unreadable`; there is
no third outcome and no fallback. Nothing here prints a key or a plaintext, in a `repr` or in an exception. Pure:
nonces are arguments, and a caller never uses one twice.
"""

from __future__ import annotations

import struct

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from keystile.errors import Unreadable
from keystile.model import AuthType, Binding, Connection

SEALED, WRAPPED, FOR_NODE = 1, 2, 3
"""The format bytes."""

CANARY = b"keystile: this root key is right"
"""Wrapped under organization empty, term 0, where no data key is: it tells a right root key from a wrong one."""

_U32 = struct.Struct(">I")
_KEY, _NONCE, _TAG, _ROOT_ID = 32, 12, 16, 8


def credential_binding(connection: Connection, version: int, origin: str) -> Binding:
    """What a version of a connection's credential is bound to. `origin` is that of its `upstream_url`."""
    return Binding(
        kind="credential",
        organization=connection.organization,
        record=connection.id,
        owner="",
        version=version,
        auth_type=connection.auth_type,
        place=(connection.auth_header_name or "").lower() if connection.auth_type is AuthType.HEADER else "",
        origin=origin,
    )


def associated(binding: Binding, term: int) -> bytes:
    """The binding as bytes: no two bindings, or terms, give the same."""
    return b"".join(
        (
            bytes((SEALED,)),
            _U32.pack(term),
            _U32.pack(binding.version),
            _text(binding.kind),
            _text(binding.organization),
            _text(binding.record),
            _text(binding.owner),
            _text(binding.auth_type.value),
            _text(binding.place),
            _text(binding.origin),
        )
    )


def term_of(sealed: bytes) -> int:
    """The term of a sealed secret, as it says itself; raises Unreadable when it is no sealed secret."""
    if len(sealed) < 1 + _U32.size + _NONCE + _TAG or sealed[0] != SEALED:
        raise Unreadable("This is not a sealed secret.")
    return _U32.unpack_from(sealed, 1)[0]


class KeyRing:
    """The data keys of one node, by organization and term, each as the ciphers it serves as."""

    def __init__(self) -> None:
        self._ciphers: dict[tuple[str, bytes], AESGCM] = {}
        self._sessions: dict[tuple[str, int], bytes] = {}
        self._newest: dict[str, int] = {}

    def __repr__(self) -> str:
        return f"<KeyRing organizations={len(self._newest)} keys={len(self._ciphers)}>"

    def add(self, organization: str, term: int, data_key: bytes) -> None:
        """Take a data key in. Adding the same one again changes nothing."""
        self._ciphers[organization, _U32.pack(term)] = AESGCM(_derive(data_key, "credential", organization, term))
        self._sessions[organization, term] = _derive(data_key, "session", organization, term)
        self._newest[organization] = max(term, self._newest.get(organization, term))

    def newest(self, organization: str) -> int:
        """The term to seal under; raises Unreadable when the organization has no key here."""
        term = self._newest.get(organization)
        if term is None:
            raise Unreadable("No data key of this organization is at hand.")
        return term

    def seal(self, plaintext: bytes, binding: Binding, term: int, nonce: bytes) -> bytes:
        """The sealed secret. Raises Unreadable when the term's key is not at hand."""
        cipher = self._ciphers.get((binding.organization, _U32.pack(term)))
        if cipher is None:
            raise Unreadable("The data key of this term is not at hand.")
        return bytes((SEALED,)) + _U32.pack(term) + _encrypt(cipher, nonce, plaintext, associated(binding, term))

    def open(self, sealed: bytes, binding: Binding) -> bytes:
        """The secret, or Unreadable."""
        return self.open_associated(binding.organization, sealed, self.associated(binding, sealed))

    def open_associated(self, organization: str, sealed: bytes, associated: bytes) -> bytes:
        """`open` for the hot path, with `associated(binding, sealed)` computed beforehand."""
        try:
            if sealed[0] == SEALED:
                return self._ciphers[organization, sealed[1:5]].decrypt(sealed[5:17], sealed[17:], associated)
        except (InvalidTag, LookupError, ValueError) as error:
            raise Unreadable("The sealed secret does not open here: it, its binding or its key has changed.") from error
        raise Unreadable("This is not a sealed secret.")

    @staticmethod
    def associated(binding: Binding, sealed: bytes) -> bytes:
        """What `open_associated` wants, of the term that `sealed` names; raises Unreadable when it is none."""
        return associated(binding, term_of(sealed))

    def session_key(self, organization: str, term: int) -> bytes:
        """The HMAC key, 32 bytes, for session ids of that term; raises Unreadable when it is not at hand."""
        key = self._sessions.get((organization, term))
        if key is None:
            raise Unreadable("The data key of this term is not at hand.")
        return key


def wrap(root: bytes, organization: str, term: int, data_key: bytes, nonce: bytes) -> bytes:
    """A data key wrapped under the root key."""
    name = root_id(root)
    cipher = AESGCM(_derive(root, "wrap", "", 0))
    return bytes((WRAPPED,)) + name + _encrypt(cipher, nonce, data_key, _wrapping(name, organization, term))


def unwrap(root: bytes, organization: str, term: int, wrapped: bytes) -> bytes:
    """The data key, or Unreadable, whose message tells another root key from a changed row."""
    if len(wrapped) != 1 + _ROOT_ID + _NONCE + _KEY + _TAG or wrapped[0] != WRAPPED:
        raise Unreadable("This is not a wrapped data key.")
    name = wrapped[1 : 1 + _ROOT_ID]
    if name != root_id(root):
        raise Unreadable(f"It was wrapped under root key {name.hex()}, and this is root key {root_id(root).hex()}.")
    return _decrypt(AESGCM(_derive(root, "wrap", "", 0)), wrapped[1 + _ROOT_ID :], _wrapping(name, organization, term))


def root_id(root: bytes) -> bytes:
    """The 8 bytes that name a root key and say nothing about it."""
    return _derive(root, "root-id", "", 0)[:_ROOT_ID]


def seal_for_node(node_key: bytes, organization: str, term: int, data_key: bytes, nonce: bytes) -> bytes:
    """A data key as it travels inside one node."""
    cipher = AESGCM(_derive(node_key, "node", "", 0))
    return bytes((FOR_NODE,)) + _encrypt(cipher, nonce, data_key, _travelling(organization, term))


def open_for_node(node_key: bytes, organization: str, term: int, sealed: bytes) -> bytes:
    """The data key that travelled, or Unreadable."""
    if len(sealed) != 1 + _NONCE + _KEY + _TAG or sealed[0] != FOR_NODE:
        raise Unreadable("This is not a data key sealed for a node.")
    return _decrypt(AESGCM(_derive(node_key, "node", "", 0)), sealed[1:], _travelling(organization, term))


def _wrapping(name: bytes, organization: str, term: int) -> bytes:
    return bytes((WRAPPED,)) + name + _text(organization) + _U32.pack(term)


def _travelling(organization: str, term: int) -> bytes:
    return bytes((FOR_NODE,)) + _text(organization) + _U32.pack(term)


def _derive(key: bytes, purpose: str, organization: str, term: int) -> bytes:
    if len(key) != _KEY:
        raise ValueError(f"a key is {_KEY} bytes, not {len(key)}")
    info = b"keystile\x01" + _text(purpose) + _text(organization) + _U32.pack(term)
    return HKDF(SHA256(), _KEY, None, info).derive(key)


def _encrypt(cipher: AESGCM, nonce: bytes, plaintext: bytes, associated: bytes) -> bytes:
    if len(nonce) != _NONCE:  # the cipher would take other lengths and hash them
        raise ValueError(f"a nonce is {_NONCE} bytes, not {len(nonce)}")
    return nonce + cipher.encrypt(nonce, plaintext, associated)


def _decrypt(cipher: AESGCM, sealed: bytes, associated: bytes) -> bytes:
    try:
        return cipher.decrypt(sealed[:_NONCE], sealed[_NONCE:], associated)
    except InvalidTag as error:
        raise Unreadable("The data key does not open here: it, its place or its key has changed.") from error


def _text(text: str) -> bytes:
    encoded = text.encode()
    return _U32.pack(len(encoded)) + encoded
