"""HTTP/1.1 heads: one strict grammar, or a refusal.

What this module guarantees: a head is accepted if, and only if, it matches one regular expression written from
RFC 9112 and RFC 9110. Nothing is repaired, so no peer can read an accepted head otherwise than we do.
The bodies that heads announce are read in `core/framing.py`.

The rules, beyond the grammar:

- A request target is in origin form and starts with exactly one `/`. Absolute, authority and asterisk form are
  refused: nobody speaks them to an origin, and they carry a second host (RFC 9112 3.2.2).
- An empty line before a request line is refused, though RFC 9112 2.2 would have it skipped: it serves agents that
  write a stray CRLF after a body, and bytes that no length accounts for are how smuggling starts.
- Bare LF and bare CR, obs-fold, control bytes, a space before the colon: refused (RFC 9112 2.2, 5.1, 5.2).
- One `Host` in HTTP/1.1, at most one in HTTP/1.0, of RFC 3986 grammar. No doubled or listed `Content-Length`, none
  beside `Transfer-Encoding`; `Transfer-Encoding` is exactly `chunked`, and never HTTP/1.0 (RFC 9112 6.1 to 6.3).
- `Expect` other than `100-continue` is refused; in HTTP/1.0 the field is ignored (RFC 9110 10.1.1).
- `Upgrade` is ignored, as RFC 9110 7.8 allows: nothing here ever switches protocols, h2c included. It is for the
  builder of the upstream head to let the field not pass.
- Answers obey the same grammar, save that the reason may be missing. What may not have a body has none, whatever
  its fields announce (RFC 9112 6.3); the connection is then not used again, for the peer may think otherwise.
"""

import re

import msgspec

from keystile.errors import REFUSALS, Refusal

_MALFORMED = REFUSALS["malformed_http"]
_VERSION = REFUSALS["http_version_unsupported"]
_CODING = REFUSALS["transfer_coding_unsupported"]
_TOO_LARGE = REFUSALS["head_too_large"]
_TOO_MANY = REFUSALS["too_many_fields"]
_UPSTREAM = REFUSALS["upstream_malformed"]

# RFC 9110 5.1, 5.5 and RFC 3986 3.3, 3.4. Every quantifier is possessive (`*+`): no backtracking, linear time.
FIELD = rb"[!#$%&'*+.^_`|~0-9A-Za-z-]++:[\t\x20-\x7e\x80-\xff]*+\r\n"
_FIELDS = rb"((?:" + FIELD + rb")*+)\r\n"
_PCHAR = rb"[A-Za-z0-9._~!$&'()*+,;=:@/?-]*+"
TARGET = rb"/(?!/)" + _PCHAR + rb"(?:%[0-9A-Fa-f]{2}" + _PCHAR + rb")*+"
_START = rb"(?!CONNECT )([A-Z][A-Z-]{0,23}) (" + TARGET + rb") HTTP/1\.([01])\r\n"
_STATUS = rb"HTTP/1\.([01]) ([1-5][0-9]{2})(?: [\t\x20-\x7e\x80-\xff]*+)?+\r\n"

_REQUEST = re.compile(_START + _FIELDS)
_ANSWER = re.compile(_STATUS + _FIELDS)
_REQUEST_LINE = re.compile(_START)
_STATUS_LINE = re.compile(_STATUS)
_PAIR = re.compile(rb"([^:]++):([^\r]*+)\r\n")  # for text that `_FIELDS` has accepted
_HOST = re.compile(rb"(?:\[[0-9A-Fa-f:.]++\]|(?:[A-Za-z0-9._~!$&'()*+,;=-]|%[0-9A-Fa-f]{2})*+)(?::[0-9]*+)?+")
# HTTP/0.9's one-word request, or a version that is none of ours: RFC 9110 15.6.6 has a status for these.
_OTHER_VERSION = re.compile(rb"[A-Z-]++ (?:/[!-~]*+|[!-~]++ HTTP/(?!1\.[01]\r)[0-9](?:\.[0-9])?+)\r\n")
_STRAY = re.compile(rb"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]|(?<!\r)\n|\r(?!\n|\Z)")

_ONCE = frozenset({b"host", b"content-length", b"transfer-encoding", b"expect"})
_LENGTH_DIGITS = 18  # below 2**63

Fields = tuple[tuple[bytes, bytes], ...]
"""Field names in lower case, values without surrounding white space, in the order they came."""


class RequestHead(msgspec.Struct, frozen=True, gc=False):
    """An accepted request head. At most one of `length` and `chunked` says anything; neither means no body.

    `named` has each name once; the values of a field that came more than once are joined by commas (RFC 9110 5.3).
    """

    method: bytes
    target: bytes
    minor: int
    fields: Fields
    named: dict[bytes, bytes]
    length: int | None
    chunked: bool
    keep_alive: bool
    expects_continue: bool

    def __repr__(self) -> str:
        return f"<RequestHead {self.method.decode()} fields={len(self.fields)}>"  # a caller's key is among them


class AnswerHead(msgspec.Struct, frozen=True, gc=False):
    """An accepted answer head. Neither `length` nor `chunked` means: until the peer closes.

    `length` is 0 for 1xx, 204 and 304. An answer to HEAD has no body either, which only the asker knows.
    """

    status: int
    minor: int
    fields: Fields
    named: dict[bytes, bytes]
    length: int | None
    chunked: bool
    keep_alive: bool

    def __repr__(self) -> str:
        return f"<AnswerHead {self.status} fields={len(self.fields)}>"  # one may echo a credential


def read_request(
    buffer: bytes | bytearray, max_bytes: int, max_fields: int, searched: int = 0
) -> tuple[RequestHead, int] | Refusal | None:
    """The request head at the start of `buffer` and its size in bytes, a refusal, or `None` for "more is needed".

    `searched` is how many of these bytes an earlier call has seen without finding the head's end: they are not
    searched again, so that a head that drips in costs linear time. After a refusal the connection is of no more use.
    """
    found = None if searched and _incomplete(buffer, searched) else _REQUEST.match(buffer)
    if found is None:
        return _unread(buffer, max_bytes, searched, _REQUEST_LINE)
    size = found.end()
    if size > max_bytes:
        return _TOO_LARGE
    pairs = _PAIR.findall(buffer, found.start(4), size - 2)
    if len(pairs) > max_fields:
        return _TOO_MANY
    fields = tuple([(name.lower(), value.strip(b" \t")) for name, value in pairs])
    method, target, minor = found.group(1, 2, 3)
    modern = minor == b"1"
    one = dict(fields)
    if len(one) != len(fields) and not _merged(fields, one):
        return _MALFORMED
    host = one.get(b"host")
    if modern if host is None else _HOST.fullmatch(host) is None:
        return _MALFORMED
    body = _body(one, modern=modern)
    if isinstance(body, Refusal):
        return body
    expects = one.get(b"expect") if modern else None
    if expects is not None and expects.lower() != b"100-continue":
        return _MALFORMED
    keep = _keeps(one.get(b"connection"), modern=modern)
    length, chunked = body
    return RequestHead(
        method, target, 1 if modern else 0, fields, one, length, chunked, keep, expects is not None
    ), size


def read_answer(
    buffer: bytes | bytearray, max_bytes: int, max_fields: int, searched: int = 0
) -> tuple[AnswerHead, int] | Refusal | None:
    """Like `read_request`, for an upstream's answer. The only refusal is `upstream_malformed`.

    1xx answers are returned as heads for the caller to skip, all but 101: nobody asked for another protocol.
    """
    found = None if searched and _incomplete(buffer, searched) else _ANSWER.match(buffer)
    if found is None:
        return _UPSTREAM if _unread(buffer, max_bytes, searched, _STATUS_LINE) else None
    size = found.end()
    pairs = _PAIR.findall(buffer, found.start(3), size - 2)
    if size > max_bytes or len(pairs) > max_fields:
        return _UPSTREAM
    fields = tuple([(name.lower(), value.strip(b" \t")) for name, value in pairs])
    one = dict(fields)
    if len(one) != len(fields) and not _merged(fields, one):
        return _UPSTREAM
    modern = found[1] == b"1"
    status = int(found[2])
    body = _body(one, modern=modern)
    if isinstance(body, Refusal) or status == 101:  # noqa: PLR2004 - Switching Protocols
        return _UPSTREAM
    length, chunked = body
    keep = _keeps(one.get(b"connection"), modern=modern)
    if status < 200 or status in {204, 304}:  # noqa: PLR2004 - RFC 9112 6.3, rule 1
        keep = keep and not chunked and not length
        length, chunked = 0, False
    elif length is None and not chunked:
        keep = False
    return AnswerHead(status, 1 if modern else 0, fields, one, length, chunked, keep), size


def _incomplete(buffer: bytes | bytearray, searched: int) -> bool:
    return buffer.find(b"\r\n\r\n", max(0, searched - 3)) < 0


def _unread(buffer: bytes | bytearray, max_bytes: int, searched: int, first_line: re.Pattern[bytes]) -> Refusal | None:
    """Why no head matched: too large, malformed already, or not all there yet."""
    ended = not _incomplete(buffer, searched)
    if not ended and len(buffer) >= max_bytes:
        return _TOO_LARGE
    if buffer.find(b"\r\n", max(0, searched - 1)) >= 0 and first_line.match(buffer) is None:
        return _VERSION if _OTHER_VERSION.match(buffer) else _MALFORMED
    return _MALFORMED if ended or _STRAY.search(buffer, max(0, searched - 1)) else None


def _merged(fields: Fields, one: dict[bytes, bytes]) -> bool:
    """Whether no field that may occur once is doubled; if so, `one` holds the others' values as lists."""
    one.clear()
    for name, value in fields:
        if name in one and name in _ONCE:
            return False
        one[name] = one[name] + b"," + value if name in one else value
    return True


def _body(one: dict[bytes, bytes], *, modern: bool) -> tuple[int | None, bool] | Refusal:
    """How long the body is, and whether it is chunked (RFC 9112 6.1 to 6.3)."""
    announced = one.get(b"content-length")
    coding = one.get(b"transfer-encoding")
    if coding is None:
        if announced is None:
            return None, False
        return (int(announced), False) if announced.isdigit() and len(announced) <= _LENGTH_DIGITS else _MALFORMED
    if announced is not None or not modern:
        return _MALFORMED
    codings = coding.lower().split(b",")
    # Without chunked as the last coding there is no telling where the body ends (RFC 9112 6.3, rule 4).
    if codings[-1].strip(b" \t") != b"chunked":
        return _MALFORMED
    return (None, True) if len(codings) == 1 else _CODING


def _keeps(connection: bytes | None, *, modern: bool) -> bool:
    """Whether the connection outlives this exchange (RFC 9112 9.3)."""
    if connection is None:
        return modern
    if connection == b"keep-alive":
        return True
    options = connection.lower().replace(b" ", b"").replace(b"\t", b"").split(b",")
    return b"close" not in options and (modern or b"keep-alive" in options)
