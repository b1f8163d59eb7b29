"""core/mcp.py: what it says of a message, every parser of the same bytes says."""

import base64
import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from keystile.core.mcp import Operation, Refused, asked, error_body
from keystile.errors import REFUSALS
from tests.core.oracles import assert_the_standard_library_agrees

CALL = b'{"jsonrpc":"2.0","id":7,"method":"tools/call","params":{"name":"echo","arguments":{"text":"hi"}}}'


def one(body: bytes | str, method: bytes | None = None, name: bytes | None = None) -> Operation | str:
    found = asked(body if isinstance(body, bytes) else body.encode(), method, name)
    if isinstance(found, Refused):
        return found.refusal.code
    assert len(found) == 1
    return found[0]


@pytest.mark.parametrize(
    ("body", "operation"),
    [
        (CALL, Operation("request", b"7", "tools/call", "echo", None)),
        (
            '{"jsonrpc":"2.0","id":"x","method":"prompts/get","params":{"name":"p"}}',
            Operation("request", b'"x"', "prompts/get", "p", None),
        ),
        (
            '{"jsonrpc":"2.0","id":-1,"method":"resources/read","params":{"uri":"file:///ä","name":"other"}}',
            Operation("request", b"-1", "resources/read", "file:///ä", None),
        ),
        (
            '{"jsonrpc":"2.0","id":0,"method":"initialize","params":{"protocolVersion":"2025-11-25"}}',
            Operation("request", b"0", "initialize", None, "2025-11-25"),
        ),
        (
            '{"jsonrpc":"2.0","id":1,"method":"x","params":{"_meta":{"io.modelcontextprotocol/protocolVersion":"2026"}}}',
            Operation("request", b"1", "x", None, "2026"),
        ),
        ('{"jsonrpc":"2.0","id":1,"method":"ping"}', Operation("request", b"1", "ping", None, None)),
        (
            '{"jsonrpc":"2.0","method":"notifications/initialized"}',
            Operation("notification", None, "notifications/initialized", None, None),
        ),
        ('{"jsonrpc":"2.0","id":2,"result":{"a":1,"a":2}}', Operation("response", b"2", None, None, None)),
        ('{"jsonrpc":"2.0","id":2,"error":{"code":1}}', Operation("response", b"2", None, None, None)),
        (
            '{"jsonrpc":"2.0","id":"\\u0061\\"","method":"tools\\/call","params":{"name":"\\u0065cho"}}',
            Operation("request", b'"\\u0061\\""', "tools/call", "echo", None),
        ),
        (
            '{"jsonrpc":"2.0","id":1,"method":"x","extra":{},"params":{"\\u0061":1,"ä":2,"Names":3}}',
            Operation("request", b"1", "x", None, None),
        ),
    ],
)
def test_message_is_typed_by_what_it_is(body: bytes | str, operation: Operation) -> None:
    assert one(body) == operation


REFUSED: dict[str, list[str | bytes]] = {
    "parse_error": [
        b"",
        b" ",
        b"{",
        b"nonsense",
        b'{"jsonrpc":"2.0",}',
        b'{"jsonrpc":"2.0","id":1,"method":"x"} {}',
        b'{"jsonrpc":"2.0","id":01,"method":"x"}',
        b'{"jsonrpc":"2.0","id":NaN,"method":"x"}',
        b"\xef\xbb\xbf" + CALL,
        b"\xef\xbb\xbf[" + CALL + b"]",
        CALL.decode().encode("utf-16"),
        CALL.replace(b"hi", b"\xff"),
        CALL.replace(b"hi", b"\xc0\xaf"),
        CALL.replace(b"hi", b"\xed\xa0\x80"),
        CALL.replace(b"hi", b"\\ud800"),
        CALL.replace(b"hi", b"\0"),
        b"[" + CALL,
        b"[" + CALL + b",]",
        b'{"jsonrpc":"2.0","id":1,"method":"x","params":{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}}",
        b"[" * 100_000,
    ],
    "message_invalid": [
        b"{}",
        b"[]",
        b"[ ]",
        b"1",
        b'"x"',
        b"null",
        b"true",
        b"[1]",
        b"[[]]",
        b'{"jsonrpc":"2.0"}',
        b'{"id":1,"method":"x"}',
        b'{"jsonrpc":"1.0","id":1,"method":"x"}',
        b'{"jsonrpc":2.0,"id":1,"method":"x"}',
        b'{"jsonrpc":"2.0","id":null,"method":"x"}',
        b'{"jsonrpc":"2.0","id":1.5,"method":"x"}',
        b'{"jsonrpc":"2.0","id":1e3,"method":"x"}',
        b'{"jsonrpc":"2.0","id":true,"method":"x"}',
        b'{"jsonrpc":"2.0","id":[1],"method":"x"}',
        b'{"jsonrpc":"2.0","id":{},"method":"x"}',
        b'{"jsonrpc":"2.0","id":1}',
        b'{"jsonrpc":"2.0","result":{}}',
        b'{"jsonrpc":"2.0","id":1,"method":null}',
        b'{"jsonrpc":"2.0","id":1,"method":1}',
        b'{"jsonrpc":"2.0","id":1,"result":{},"error":{}}',
        b'{"jsonrpc":"2.0","id":1,"method":"x","result":{}}',
        b'{"jsonrpc":"2.0","id":1,"method":"x","error":{}}',
        b'{"jsonrpc":"2.0","id":1,"result":{},"params":{}}',
        b'{"jsonrpc":"2.0","id":1,"method":"x","params":[]}',
        b'{"jsonrpc":"2.0","id":1,"method":"x","params":null}',
        b'{"jsonrpc":"2.0","id":1,"method":"tools/call"}',
        b'{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"uri":"x"}}',
        b'{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":1}}',
        b'{"jsonrpc":"2.0","id":1,"method":"resources/read","params":{"name":"x"}}',
        b'{"jsonrpc":"2.0","id":1,"method":"initialize","params":{"protocolVersion":1}}',
        b'{"jsonrpc":"2.0","id":1,"method":"x","params":{"_meta":[]}}',
        b'{"jsonrpc":"2.0","id":1,"method":"x","params":{' + b",".join(b'"%d":0' % n for n in range(2000)) + b"}}",
        b"[" + b",".join([CALL] * 257) + b"]",
        b"[" + CALL + b",1]",
    ],
    "message_ambiguous": [
        b'{"jsonrpc":"2.0","id":1,"method":"tools/list","method":"x"}',
        b'{"jsonrpc":"2.0","id":1,"method":"x","method":"x"}',
        b'{"jsonrpc":"2.0","id":1,"id":1,"method":"x"}',
        b'{"jsonrpc":"2.0","id":1,"method":"x","a":"b, \\"c\\":1","a":1}',
        b'{"jsonrpc":"2.0","id":12,"method":"x","id":1}',
        b'{"a":12 ,"jsonrpc":"2.0","id":1,"method":"x","a":1}',
        b'{"jsonrpc":"2.0","id":1,"Method":"x"}',
        b'{"jsonrpc":"2.0","id":1,"method":"x","METHOD":"y"}',
        b'{"jsonrpc":"2.0","ID":1,"method":"x"}',
        b'{"jsonrpc":"2.0","id":1,"method":"x","Result":{}}',
        '{"j\u017fonrpc":"2.0","id":1,"method":"x"}',
        '{"jsonrpc":"2.0","id":1,"method":"x","param\u017f":{}}',
        '{"jsonrpc":"2.0","id":1,"method":"x","\u0131d":2}',
        '{"jsonrpc":"2.0","id":1,"method":"x","\u0130d":2}',
        b'{"jsonrpc":"2.0","id":1,"method":"x","param\\u017f":{}}',
        b'{"jsonrpc":"2.0","id":1,"m\\u0065thod":"x"}',
        b'{"jsonrpc":"2.0","id":1,"m\\u0065thod":"x","method":"x"}',
        b'{"jsonrpc":"2.0","\\u0069d":1,"method":"x"}',
        b'{"jsonrpc":"2.0","id":1,"method":"x","p\\u0061rams":{}}',
        b'{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"a","name":"b"}}',
        b'{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"a","n\\u0061me":"b"}}',
        b'{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"a","Name":"b"}}',
        b'{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"a","arguments":{},"arguments":{}}}',
        b'{"jsonrpc":"2.0","id":1,"method":"resources/read","params":{"uri":"a","URI":"b"}}',
        b'{"jsonrpc":"2.0","id":1,"method":"x","params":{},"params":{}}',
        b"[" + CALL + b',{"jsonrpc":"2.0","id":1,"method":"x","method":"y"}]',
    ],
    "request_id_missing": [
        b'{"jsonrpc":"2.0","method":"tools/call","params":{"name":"x"}}',
        b'{"jsonrpc":"2.0","method":"tools/call"}',
        b'{"jsonrpc":"2.0","method":"prompts/get","params":{"name":"x"}}',
        b'{"jsonrpc":"2.0","method":"resources/read","params":{"uri":"x"}}',
    ],
}


@pytest.mark.parametrize(("code", "body"), [(code, body) for code, bodies in REFUSED.items() for body in bodies])
def test_body_is_refused(code: str, body: str | bytes) -> None:
    assert one(body) == code


def test_batch_is_read_element_by_element() -> None:
    found = asked(b' [ %b , {"jsonrpc":"2.0","method":"a"},{"jsonrpc":"2.0","id":1,"result":{}} ]\n' % CALL, None, None)
    assert isinstance(found, tuple)
    assert [operation.kind for operation in found] == ["request", "notification", "response"]


def encoded(text: str) -> bytes:
    return b"=?base64?" + base64.b64encode(text.encode()) + b"?="


def call(name: str, method: str = "tools/call") -> bytes:
    params = {"uri" if method == "resources/read" else "name": name}
    return json.dumps({"jsonrpc": "2.0", "id": 7, "method": method, "params": params}).encode()


@pytest.mark.parametrize(
    ("body", "method", "name"),
    [
        (CALL, b"tools/call", b"echo"),
        (CALL, None, b"echo"),
        (CALL, b"tools/call", None),
        (CALL, b"tools/call", encoded("echo")),
        (call("Wetter für Köln"), None, encoded("Wetter für Köln")),
        (call(" padded "), None, encoded(" padded ")),
        (call("file:///a", "resources/read"), b"resources/read", b"file:///a"),
        (call("=?base64?literal?="), None, b"=?base64?PT9iYXNlNjQ/bGl0ZXJhbD89?="),
        (call("=?BASE64?x?="), None, b"=?BASE64?x?="),
        (call("=?base64?="), None, b"=?base64?="),
        (call("=?base64?x"), None, b"=?base64?x"),
        (b'{"jsonrpc":"2.0","id":7,"method":"tools/list"}', b"tools/list", b"anything"),
        (b'{"jsonrpc":"2.0","method":"notifications/x"}', b"notifications/x", None),
        (b'{"jsonrpc":"2.0","id":7,"result":{}}', None, b"anything"),
        (b"[" + CALL + b"," + CALL + b"]", b"tools/call", b"echo"),
    ],
)
def test_mirrored_field_that_agrees_is_accepted(body: bytes, method: bytes | None, name: bytes | None) -> None:
    assert isinstance(asked(body, method, name), tuple)


@pytest.mark.parametrize(
    ("body", "method", "name", "request_id"),
    [
        (CALL, b"tools/list", b"echo", b"7"),
        (CALL, b"Tools/Call", None, b"7"),
        (CALL, b"", None, b"7"),
        (CALL, b"tools/call\xff", None, b"7"),
        (CALL, b"=?base64?dG9vbHMvY2FsbA==?=", None, b"7"),
        (CALL, None, b"safe", b"7"),
        (CALL, None, b"", b"7"),
        (CALL, None, b"Echo", b"7"),
        (CALL, None, encoded("safe"), b"7"),
        (CALL, None, b"=?base64?ZWNobw?=", b"7"),
        (CALL, None, b"=?base64?Z WNobw==?=", b"7"),
        (CALL, None, b"=?base64?/w==?=", b"7"),
        (CALL, None, b"=?base64??=", b"7"),
        (call("Köln"), None, "Köln".encode(), b"7"),
        (call("=?base64?ZWNobw==?="), None, b"=?base64?ZWNobw==?=", b"7"),
        (b'{"jsonrpc":"2.0","method":"a"}', b"b", None, None),
        (b'{"jsonrpc":"2.0","id":7,"result":{}}', b"tools/call", None, None),
        (b'{"jsonrpc":"2.0","id":7,"result":{}}', b"", None, None),
        (b"[" + CALL + b',{"jsonrpc":"2.0","method":"a"}]', b"tools/call", None, None),
    ],
)
def test_mirrored_field_that_differs_is_refused(
    body: bytes, method: bytes | None, name: bytes | None, request_id: bytes | None
) -> None:
    assert asked(body, method, name) == Refused(REFUSALS["header_mismatch"], request_id)


def test_refusal_carries_the_id_only_where_it_is_beyond_doubt() -> None:
    def known(body: bytes) -> bytes | None:
        found = asked(body, None, None)
        assert isinstance(found, Refused)
        return found.id

    assert known(b'{"jsonrpc":"2.0","id":7,"method":"tools/call"}') == b"7"
    assert known(b'{"jsonrpc":"2.0","id":"a","method":1}') == b'"a"'
    assert known(b'{"jsonrpc":"2.0","id":7,"method":"x","params":{"Name":1}}') == b"7"
    assert known(b'{"jsonrpc":"2.0","id":7,"id":8,"method":"x"}') is None
    assert known(b'{"jsonrpc":"2.0","id":1.5,"method":"x"}') is None
    assert known(b'{"jsonrpc":"2.0","id":7,"result":{},"error":{}}') is None
    assert known(b'[{"jsonrpc":"2.0","id":7,"method":"tools/call"}]') is None


@pytest.mark.parametrize("request_id", [None, b"7", b'"x\\u0022"'])
def test_error_body_is_a_json_rpc_error_with_the_refusals_code(request_id: bytes | None) -> None:
    for refusal in REFUSALS.values():
        assert json.loads(error_body(refusal, request_id)) == {
            "jsonrpc": "2.0",
            "id": json.loads(request_id or b"null"),
            "error": {
                "code": refusal.rpc,
                "message": refusal.message,
                "data": {"gateway": refusal.code, "fault": refusal.fault},
            },
        }


# A message as members, written with any repeats, escapes, white space and order, and read by the standard library.

SPACE = st.sampled_from(["", "", "", " ", "\n", "\t\r "])
KEYS = st.sampled_from(
    ["jsonrpc", "id", "method", "params", "result", "error", "name", "uri", "Name", "name\u017f", "ID", "a"]
)
STRINGS = st.sampled_from(["2.0", "tools/call", "resources/read", "x", '"', ",", '", "id": 1', "ä", "", " }", "2.0 "])
VALUES = st.recursive(
    st.one_of(STRINGS.map(json.dumps), st.sampled_from(["1", "12", "1.5", "null", '"2.0"', '"\\u0078"', "{}", "[]"])),
    lambda inner: st.one_of(
        st.lists(inner, max_size=2).map(lambda values: "[" + ", ".join(values) + "]"),
        st.lists(st.tuples(KEYS, inner), max_size=3).map(
            lambda pairs: "{" + ",".join(f'"{key}":{value}' for key, value in pairs) + "}"
        ),
    ),
    max_leaves=4,
)


@st.composite
def written(draw: st.DrawFn) -> str:
    def spelt(key: str) -> str:
        return f'"{key}"' if draw(st.integers(0, 12)) else f'"\\u{ord(key[0]):04x}{key[1:]}"'

    def text(pairs: list[tuple[str, str]]) -> str:
        space = draw(SPACE)
        return space + "{" + ",".join(f"{space}{spelt(key)}:{space}{value}" for key, value in pairs) + space + "}"

    extra = st.lists(st.tuples(KEYS, VALUES), max_size=1)
    name, method = draw(st.sampled_from([("name", '"tools/call"'), ("uri", '"resources/read"'), ("b", '"x"')]))
    params = text([(name, draw(STRINGS.map(json.dumps))), *draw(extra)])
    pairs = [("jsonrpc", '"2.0"'), ("id", "1"), ("method", method), ("params", params), *draw(extra)]
    return text(draw(st.permutations(pairs)))


@given(written())
def test_what_is_accepted_the_standard_library_reads_alike(body: str) -> None:
    assert_the_standard_library_agrees(body.encode())


JSON = st.recursive(
    st.one_of(
        st.none(), st.booleans(), st.integers(-(2**60), 2**60), st.text(st.characters(exclude_categories=["Cs"]))
    ),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text('abcäß\\"\n', max_size=4), inner, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(st.text('xyzäß\\"\n', max_size=4), JSON, max_size=4), st.text(max_size=8), st.booleans())
def test_every_well_formed_call_is_accepted_however_it_is_spaced(extra: Any, name: str, ascii_only: Any) -> None:
    name = name.encode("utf-8", "replace").decode()
    message = {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": {**extra, "name": name}, **extra}
    for indent, separators in ((None, (",", ":")), (None, (", ", ": ")), (3, None)):
        body = json.dumps(message, ensure_ascii=ascii_only, indent=indent, separators=separators)
        assert one(body, b"tools/call", encoded(name)) == Operation("request", b"1", "tools/call", name, None)


@given(st.binary(max_size=80), st.integers(0, len(CALL)), st.integers(0, len(CALL)))
def test_any_bytes_are_answered_or_refused(noise: bytes, start: int, end: int) -> None:
    for body in (noise, CALL[:start] + noise + CALL[end:], b"[" + noise + b"]", b'{"' + noise + b'":' + noise + b"}"):
        found = asked(body, noise, noise)
        assert isinstance(found, (tuple, Refused))
        if isinstance(found, tuple):
            msgspec.json.decode(body)
