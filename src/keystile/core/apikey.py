"""The API key as text: a prefix, 256 random bits in base62, and a checksum.

    ks_ ‖ 43 base62 digits ‖ 6 base62 digits of the CRC-32 over everything before

Guarantees: every key has the same length, so scanners recognise one; a typo is refused without a look-up. The
checksum is no secret and proves nothing: a well-formed key is still looked up by its SHA-256, which is enough for
256 random bits. Pure: the entropy is an argument.
"""

from __future__ import annotations

import hashlib
import re
import zlib

_DIGITS = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
_ENTROPY = 32
_BODY = 43  # digits: 62 ** 43 > 2 ** 256
_CHECK = 6  # digits: 62 ** 6 > 2 ** 32
LENGTH = len("ks_") + _BODY + _CHECK
"""Length of an API key, in characters."""

_REST = re.compile(rb"[0-9A-Za-z]{%d}" % (_BODY + _CHECK))
_ANYWHERE = re.compile(rb"ks_(?=([0-9A-Za-z]{%d}))" % (_BODY + _CHECK))  # keys may overlap: a decoy hides none


def compose(entropy: bytes, prefix: str = "ks_") -> str:
    """The key made of 32 bytes of entropy; ValueError for any other amount."""
    if len(entropy) != _ENTROPY:
        raise ValueError(f"a key is made of {_ENTROPY} bytes, not {len(entropy)}")
    text = prefix.encode("ascii") + _base62(int.from_bytes(entropy, "big"), _BODY)
    return (text + _checksum(text)).decode("ascii")


def well_formed(key: bytes, prefix: bytes = b"ks_") -> bool:
    """Whether these bytes have the form of a key of this prefix. Never raises, and costs a match and a CRC."""
    if not key.startswith(prefix) or not _REST.fullmatch(key, len(prefix)):
        return False
    return _checksum(key[:-_CHECK]) == key[-_CHECK:]


def contains_key(text: bytes) -> bool:
    """Whether a well-formed API key stands anywhere in these bytes. Linear, and cheap where there is no `ks_`."""
    return b"ks_" in text and any(well_formed(b"ks_" + found[1]) for found in _ANYWHERE.finditer(text))


def digest(key: bytes) -> bytes:
    """What is stored and looked up instead of the key: its SHA-256, 32 bytes."""
    return hashlib.sha256(key).digest()


def _checksum(text: bytes) -> bytes:
    return _base62(zlib.crc32(text), _CHECK)


def _base62(number: int, width: int) -> bytes:
    digits = bytearray(width)
    for place in range(width - 1, -1, -1):
        number, digit = divmod(number, 62)
        digits[place] = _DIGITS[digit]
    return bytes(digits)
