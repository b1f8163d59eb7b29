"""The fuzz targets: seeds to mutate, and a check that raises when a promise is broken."""

from collections.abc import Callable
from typing import NamedTuple

from keystile.core.envelope import KeyRing, open_for_node, seal_for_node, unwrap, wrap
from keystile.core.framing import Chunked
from keystile.core.http1 import read_answer
from keystile.core.mcp import Refused, asked, error_body
from keystile.errors import Refusal, Unreadable
from keystile.model import AuthType, Binding
from tests.core.oracles import (
    MAX_BYTES,
    MAX_FIELDS,
    assert_llhttp_agrees,
    assert_the_standard_library_agrees,
    replay,
)
from tests.vectors.smuggling import cases

# What llhttp knows or does differently: its list of methods, protocol switches, a tab after `chunked`.
_METHODS = (b"GET ", b"POST ", b"PUT ", b"DELETE ", b"PATCH ", b"HEAD ", b"OPTIONS ")


class Target(NamedTuple):
    seeds: list[bytes]
    check: Callable[[bytes], None]


def _http1(data: bytes) -> None:
    whole = replay([data])
    middle, late = len(data) // 2, max(1, len(data) - 3)
    for pieces in ([data[:middle], data[middle:]], [data[:1], data[1:late], data[late:]]):
        split = replay(pieces)
        assert (split.end(), split.heads) == (whole.end(), whole.heads), "another split, another reading"
    if data.startswith(_METHODS) and b"upgrade" not in data.lower() and b"\t" not in data:
        assert_llhttp_agrees(data)
    found = read_answer(data, MAX_BYTES, MAX_FIELDS)
    if isinstance(found, tuple) and found[0].chunked:
        at_once, dripped = Chunked(answer=True), Chunked(answer=True)
        end = at_once.feed(data[found[1] :])
        body = b""
        for place in range(found[1], len(data)):
            fed = dripped.feed(data[place : place + 1])
            if isinstance(fed, Refusal):
                assert end is fed, "refused only byte by byte"
                return
            body += fed[0]
            if fed[1] is not None:
                assert end == (body, data[place + 1 :]), "another end byte by byte"
                return
        assert end == (body, None), "an end only at once"


def _mcp(data: bytes) -> None:
    assert_the_standard_library_agrees(data)
    for field in (b"tools/call", data[:20]):
        found = asked(data, field, field)
        if isinstance(found, Refused):
            assert error_body(found.refusal, found.id)


_BINDING = Binding(
    kind="credential",
    organization="aaaaaaaaaaaa",
    record="bbbbbbbbbbbb",
    owner="",
    version=1,
    auth_type=AuthType.BEARER,
    place="",
    origin="https://mcp.example:443",
)
_KEY = bytes(range(32))
_RING = KeyRing()
_RING.add(_BINDING.organization, 1, _KEY)
_SEALED = _RING.seal(b"a made-up credential", _BINDING, 1, bytes(12))
_WRAPPED = wrap(_KEY, _BINDING.organization, 1, _KEY[::-1], bytes(12))
_TRAVELLING = seal_for_node(_KEY, _BINDING.organization, 1, _KEY[::-1], bytes(12))


def _envelope(data: bytes) -> None:
    openings: tuple[tuple[bytes, Callable[[], bytes]], ...] = (
        (_SEALED, lambda: _RING.open(data, _BINDING)),
        (_SEALED, lambda: _RING.open_associated(_BINDING.organization, data, _RING.associated(_BINDING, _SEALED))),
        (_WRAPPED, lambda: unwrap(_KEY, _BINDING.organization, 1, data)),
        (_TRAVELLING, lambda: open_for_node(_KEY, _BINDING.organization, 1, data)),
    )
    for sealed, opened in openings:
        try:
            opened()
        except Unreadable:
            assert data != sealed, "what was sealed does not open"
        else:
            assert data == sealed, "something else opens"


TARGETS = {
    "http1": Target(
        [
            *(case.sent for case in cases()),
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5;a=b\r\nhello\r\n0\r\nA: b\r\n\r\n",
            b"HTTP/1.1 204 No Content\r\nContent-Length: 0\r\n\r\n",
        ],
        _http1,
    ),
    "mcp": Target(
        [
            b'{"jsonrpc":"2.0","id":7,"method":"tools/call","params":{"name":"echo","arguments":{"text":"hi"}}}',
            b'{ "jsonrpc": "2.0", "id": "a", "method": "initialize", "params": {"protocolVersion": "2025-11-25"}}\n',
            b'[{"jsonrpc":"2.0","method":"a"},{"jsonrpc":"2.0","id":1,"result":{"a":1,"a":2}}]',
            '{"jsonrpc":"2.0","id":1,"m\\u0065thod":"x","param\u017f":{"Name":1,"uri":"\u00e4"},"id":1}'.encode(),
        ],
        _mcp,
    ),
    "envelope": Target([_SEALED, _WRAPPED, _TRAVELLING], _envelope),
}
