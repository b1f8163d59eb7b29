"""Reads smuggling.txt, whose first lines say what stands in it."""

import re
from pathlib import Path
from typing import NamedTuple

_ESCAPE = re.compile(r"\\(?:x([0-9a-f]{2})|([rnt\\]))")
_LETTERS = {"r": b"\r", "n": b"\n", "t": b"\t", "\\": b"\\"}


class Case(NamedTuple):
    name: str
    sent: bytes
    outcomes: tuple[str, ...]
    body: bytes | None


def cases() -> list[Case]:
    text = Path(__file__).with_suffix(".txt").read_text("ascii")
    return [_case(block) for block in text.split("\n\n") if "case = " in block]


def _case(block: str) -> Case:
    sent, named = b"", dict[str, str]()
    for line in block.splitlines():
        key, _, value = line.partition(" =")
        if key in {"line", "send"}:
            sent += _bytes(value.removeprefix(" ")) + (b"\r\n" if key == "line" else b"")
        elif not line.startswith("#"):
            named[key] = value.removeprefix(" ")
    body = named.pop("body", None)
    case = Case(
        named.pop("case"), sent, tuple(named.pop("outcome").split(", ")), None if body is None else body.encode()
    )
    assert not named, f"{case.name}: unknown keys {list(named)}"
    return case


def _bytes(text: str) -> bytes:
    parts, at = [], 0
    for escape in _ESCAPE.finditer(text):
        parts += [text[at : escape.start()].encode(), bytes.fromhex(escape[1]) if escape[1] else _LETTERS[escape[2]]]
        at = escape.end()
    return b"".join([*parts, text[at:].encode()])
