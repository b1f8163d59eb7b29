"""The only source of randomness for identities, keys and nonces: the operating system's generator, nothing else."""

from __future__ import annotations

import secrets
import string

from keystile.core import apikey

_ID_LETTERS = string.ascii_lowercase + string.digits


def new_id() -> str:
    """A row's identity: 12 lower-case letters and digits, 62 random bits."""
    return "".join(secrets.choice(_ID_LETTERS) for _ in range(12))


def new_api_key() -> str:
    """A well-formed `ks_` key. The caller shows it once and keeps its digest."""
    return apikey.compose(secrets.token_bytes(32))


def data_key() -> bytes:
    """The 32 bytes of a new data key, root key or node key."""
    return secrets.token_bytes(32)


def nonce() -> bytes:
    """The 12 bytes of an AES-GCM nonce."""
    return secrets.token_bytes(12)
