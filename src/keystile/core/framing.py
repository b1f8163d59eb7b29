"""HTTP/1.1 bodies: where one ends, read piece by piece as it arrives.

What this module guarantees: a reader hands out every payload byte as soon as it is there, keeps none back and tells
exactly which bytes follow the body's end. `feed` answers or refuses; it never raises. After a refusal, or once `rest`
was handed out, the reader is spent.

The rules of chunked bodies (RFC 9112 7.1), each line ended by CRLF and nothing else:

- a chunk size is 1 to 16 hexadecimal digits, without sign or white space;
- in requests, chunk extensions and trailer fields are refused: clients of MCP send none, and parsers that disagree
  about them are a classic of request smuggling;
- in answers, both are read (within a bound), checked against the grammar and dropped: RFC 9112 7.1.1 and 7.1.2 allow
  it, real servers send them, and what goes to the client is framed anew.
"""

import re
from typing import ClassVar, Protocol

from keystile.core.http1 import FIELD
from keystile.errors import REFUSALS, Refusal

_MALFORMED = REFUSALS["malformed_http"]
_UPSTREAM = REFUSALS["upstream_malformed"]

_CRLF = re.compile(rb"\r\n")
_SIZE = re.compile(rb"([0-9A-Fa-f]{1,16})\r\n")
_SIZE_EXTENDED = re.compile(rb"([0-9A-Fa-f]{1,16})[ \t]*+(?:;[\t\x20-\x7e\x80-\xff]*+)?+\r\n")
_TRAILER = re.compile(rb"\r\n|" + FIELD)

_LINE_BYTES = 4096
_TRAILER_BYTES = 8192

Fed = tuple[bytes, bytes | None] | Refusal
"""Payload decoded from what was fed, and the bytes after the body's end: `None` while it has not ended."""


class Body(Protocol):
    """Reads one message body. `complete_at_eof` tells whether the peer's close ends it, or breaks it."""

    complete_at_eof: ClassVar[bool]

    def feed(self, data: bytes) -> Fed:
        """Take the next bytes from the peer."""
        ...


class Length:
    """A body of `length` bytes. One of 0 is complete when it is first fed, be it with nothing."""

    __slots__ = ("_left",)
    complete_at_eof: ClassVar[bool] = False

    def __init__(self, length: int) -> None:
        self._left = length

    def feed(self, data: bytes) -> Fed:
        """Take the next bytes from the peer. Never refuses."""
        left = self._left
        if len(data) < left:
            self._left = left - len(data)
            return data, None
        self._left = 0
        return data[:left], data[left:]


class UntilClose:
    """An answer's body without length: only the peer's close ends it."""

    __slots__ = ()
    complete_at_eof: ClassVar[bool] = True

    def feed(self, data: bytes) -> Fed:
        """Take the next bytes from the peer. Never refuses, never completes."""
        return data, None


class Chunked:
    """A chunked body: a request's or, with `answer`, an upstream's, by the more tolerant rules above."""

    __slots__ = ("_begun", "_expected", "_left", "_refusal", "_size", "_trailer_room")
    complete_at_eof: ClassVar[bool] = False

    def __init__(self, *, answer: bool = False) -> None:
        self._size = _SIZE_EXTENDED if answer else _SIZE
        self._refusal = _UPSTREAM if answer else _MALFORMED
        self._expected = self._size  # the grammar of the next line
        self._left = 0  # bytes of the current chunk still to come
        self._begun = b""  # a line whose end has not come
        self._trailer_room = _TRAILER_BYTES if answer else 0

    def feed(self, data: bytes) -> Fed:
        """Take the next bytes from the peer."""
        data = self._begun + data
        at = 0
        payload: list[bytes] = []
        while True:
            if self._left:
                piece = data[at : at + self._left]
                payload.append(piece)
                at += len(piece)
                self._left -= len(piece)
            line = None if self._left else self._expected.match(data, at)
            if line is None:
                break
            at = line.end()
            if self._expected is self._size:
                self._left = int(line[1], 16)
                self._expected = _CRLF if self._left else _TRAILER
            elif self._expected is _CRLF:
                self._expected = self._size
            elif line[0] == b"\r\n":
                return b"".join(payload), data[at:]
            else:
                self._trailer_room -= len(line[0])
                if self._trailer_room < 0:
                    return self._refusal
        self._begun = data[at:]
        return (b"".join(payload), None) if self._may_be_a_line() else self._refusal

    def _may_be_a_line(self) -> bool:
        """Whether what has begun can still become the line that is expected."""
        if self._expected is _CRLF:
            return self._begun in {b"", b"\r"}
        return b"\n" not in self._begun and len(self._begun) <= _LINE_BYTES
