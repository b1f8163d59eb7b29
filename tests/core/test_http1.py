"""core/http1.py: what it accepts, every other parser reads alike; what could be read otherwise, it refuses."""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keystile.core.http1 import AnswerHead, RequestHead, read_answer, read_request
from keystile.errors import REFUSALS, Refusal
from tests.core.oracles import MAX_BYTES, MAX_FIELDS, assert_llhttp_agrees, replay
from tests.vectors.smuggling import Case, cases

CASES = cases()


def each_byte(data: bytes) -> list[bytes]:
    return [data[at : at + 1] for at in range(len(data))]


def code(found: object) -> object:
    return found.code if isinstance(found, Refusal) else found


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_smuggling_case_has_its_outcome(case: Case) -> None:
    connection = replay([case.sent])
    assert connection.end() == list(case.outcomes)
    assert case.body is None or connection.bodies[0] == case.body


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_smuggling_case_has_the_same_outcome_byte_by_byte(case: Case) -> None:
    dripped, whole = replay(each_byte(case.sent)), replay([case.sent])
    assert dripped.end() == list(case.outcomes)
    assert dripped.heads == whole.heads
    assert dripped.bodies[: case.outcomes.count("accepted")] == whole.bodies[: case.outcomes.count("accepted")]


def test_head_is_read_as_it_came() -> None:
    text = b"POST /v1/mcp/a?b=%20 HTTP/1.1\r\nHost: a\r\nX-Two: 1\r\nx-two:\t 2 \r\nContent-Length: 03\r\n\r\nabcGET"
    assert read_request(text, MAX_BYTES, MAX_FIELDS) == (
        RequestHead(
            method=b"POST",
            target=b"/v1/mcp/a?b=%20",
            minor=1,
            fields=((b"host", b"a"), (b"x-two", b"1"), (b"x-two", b"2"), (b"content-length", b"03")),
            named={b"host": b"a", b"x-two": b"1,2", b"content-length": b"03"},
            length=3,
            chunked=False,
            keep_alive=True,
            expects_continue=False,
        ),
        len(text) - 6,
    )


def test_bytearray_is_read_like_bytes() -> None:
    text = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
    assert read_request(bytearray(text), MAX_BYTES, MAX_FIELDS) == read_request(text, MAX_BYTES, MAX_FIELDS)


def keeps(version: str, *connection: str) -> set[bool]:
    fields = "".join(f"Connection: {value}\r\n" for value in connection)
    request = read_request(f"GET / HTTP/{version}\r\nHost: a\r\n{fields}\r\n".encode(), MAX_BYTES, MAX_FIELDS)
    answer = read_answer(f"HTTP/{version} 200 OK\r\nContent-Length: 0\r\n{fields}\r\n".encode(), MAX_BYTES, MAX_FIELDS)
    assert isinstance(request, tuple) and isinstance(answer, tuple)
    return {request[0].keep_alive, answer[0].keep_alive}


def test_connection_of_http_1_1_is_kept_unless_an_option_closes_it() -> None:
    assert keeps("1.1") == keeps("1.1", "keep-alive") == keeps("1.1", "Foo", "keep-alive") == {True}
    assert keeps("1.1", "Close") == keeps("1.1", "foo,\tclose") == {False}
    assert keeps("1.1", "close", "keep-alive") == keeps("1.1", "keep-alive", "close") == {False}


def test_connection_of_http_1_0_is_kept_only_where_asked_for() -> None:
    assert keeps("1.0", "Keep-Alive") == keeps("1.0", "foo, keep-alive") == {True}
    assert keeps("1.0") == keeps("1.0", "foo") == keeps("1.0", "keep-alive, close") == {False}


def test_expectation_in_http_1_0_is_ignored() -> None:
    found = read_request(b"GET / HTTP/1.0\r\nExpect: 200-ok\r\n\r\n", MAX_BYTES, MAX_FIELDS)
    assert isinstance(found, tuple) and not found[0].expects_continue


@pytest.mark.parametrize("ending", [b"", b"\r\n\r\n"], ids=["unfinished", "finished"])
def test_head_beyond_the_bound_is_refused(ending: bytes) -> None:
    text = b"GET / HTTP/1.1\r\nHost: a\r\nX-A: " + b"b" * MAX_BYTES + ending
    assert code(read_request(text, MAX_BYTES, MAX_FIELDS)) == "head_too_large"
    assert code(read_answer(text.replace(b"GET / HTTP/1.1", b"HTTP/1.1 200"), MAX_BYTES, MAX_FIELDS)) == (
        "upstream_malformed"
    )


def test_head_at_the_bound_is_accepted() -> None:
    text = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
    assert isinstance(read_request(text, len(text), 1), tuple)
    assert code(read_request(text, len(text) - 1, 1)) == "head_too_large"


def test_one_field_too_many_is_refused() -> None:
    text = b"GET / HTTP/1.1\r\nHost: a\r\nA: b\r\n\r\n"
    assert isinstance(read_request(text, MAX_BYTES, 2), tuple)
    assert code(read_request(text, MAX_BYTES, 1)) == "too_many_fields"
    assert code(read_answer(b"HTTP/1.1 200 OK\r\nA: b\r\nC: d\r\n\r\n", MAX_BYTES, 1)) == "upstream_malformed"


def test_refusal_of_an_unfinished_head_does_not_wait_for_its_end() -> None:
    assert code(read_request(b"GET / HTTP/1.1\nHost", MAX_BYTES, MAX_FIELDS)) == "malformed_http"
    assert code(read_request(b"HELO there\r\nfriend", MAX_BYTES, MAX_FIELDS)) == "malformed_http"
    assert code(read_answer(b"<html>\r\n", MAX_BYTES, MAX_FIELDS)) == "upstream_malformed"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("HTTP/1.1 200 OK|Content-Length: 5", (200, 5, False, True)),
        ("HTTP/1.1 200|Content-Length: 5", (200, 5, False, True)),
        ("HTTP/1.1 200 |Content-Length: 5", (200, 5, False, True)),
        ("HTTP/1.1 200 \xc3\xa9t\xe9|Content-Length: 5", (200, 5, False, True)),
        ("HTTP/1.1 200 OK|Transfer-Encoding: Chunked", (200, None, True, True)),
        ("HTTP/1.1 200 OK", (200, None, False, False)),
        ("HTTP/1.0 200 OK|Connection: keep-alive", (200, None, False, False)),
        ("HTTP/1.1 100 Continue", (100, 0, False, True)),
        ("HTTP/1.1 103 Early Hints|Link: </a>", (103, 0, False, True)),
        ("HTTP/1.1 204 No Content", (204, 0, False, True)),
        ("HTTP/1.1 204 No Content|Content-Length: 0", (204, 0, False, True)),
        ("HTTP/1.1 204 No Content|Content-Length: 5", (204, 0, False, False)),
        ("HTTP/1.1 304 Not Modified|Transfer-Encoding: chunked", (304, 0, False, False)),
        ("HTTP/1.1 202 Accepted|Content-Length: 0|Set-Cookie: a|Set-Cookie: b", (202, 0, False, True)),
        ("HTTP/1.1 101 Switching Protocols|Upgrade: h2c", None),
        ("HTTP/1.1 200 OK|Content-Length: 5|Content-Length: 6", None),
        ("HTTP/1.1 200 OK|Content-Length: 5|Content-Length: 5", None),
        ("HTTP/1.1 200 OK|Content-Length: 5, 5", None),
        ("HTTP/1.1 200 OK|Content-Length: -5", None),
        ("HTTP/1.1 200 OK|Content-Length: 5|Transfer-Encoding: chunked", None),
        ("HTTP/1.1 200 OK|Transfer-Encoding: gzip, chunked", None),
        ("HTTP/1.1 200 OK|Transfer-Encoding: identity", None),
        ("HTTP/1.0 200 OK|Transfer-Encoding: chunked", None),
        ("HTTP/1.1 200 OK|A : b", None),
        ("HTTP/1.1 200 OK|A: b| c", None),
        ("HTTP/1.1 200 OK|A: \0", None),
        ("HTTP/1.1 200 O\0K", None),
        ("HTTP/1.1 2000 OK", None),
        ("HTTP/1.1 600 OK", None),
        ("HTTP/1.1 99 OK", None),
        ("HTTP/2 200 OK", None),
        ("HTTP/2.0 200 OK", None),
        ("ICY 200 OK", None),
        ("|HTTP/1.1 200 OK", None),
    ],
)
def test_answer_head_says_how_its_body_ends(text: str, expected: tuple[int, int | None, bool, bool] | None) -> None:
    found = read_answer(text.replace("|", "\r\n").encode("latin-1") + b"\r\n\r\n", MAX_BYTES, MAX_FIELDS)
    if expected is None:
        assert found is REFUSALS["upstream_malformed"]
    else:
        assert isinstance(found, tuple)
        head = found[0]
        assert (head.status, head.length, head.chunked, head.keep_alive) == expected


STARTS = st.sampled_from(
    [
        b"GET / HTTP/1.1\r\n",
        b"POST /v1/mcp/a?b%20 HTTP/1.1\r\n",
        b"DELETE /a HTTP/1.0\r\n",
        b"GET * HTTP/1.1\r\n",
        b"GET  / HTTP/1.1\r\n",
        b"GET /\x80 HTTP/1.1\r\n",
        b"GET / HTTP/1.1\n",
        b"\r\n",
        b"",
    ]
)
PIECES = [
    *(b"Host: a\r\n", b"Host: a:1\r\n", b"Connection: close\r\n", b"Expect: 100-continue\r\n"),
    *(b"Content-Length: 3\r\n", b"content-length:0\r\n", b"Content-Length: 3, 3\r\n"),
    *(b"Transfer-Encoding: chunked\r\n", b"transfer-encoding:CHUNKED\r\n", b"Transfer-Encoding: gzip, chunked\r\n"),
    *(b"X: \xe9\t y \r\n", b"A:\r\n", b"A:b\n", b" folded\r\n", b"A : b\r\n", b"A: \0\r\n"),
    *(b"\r\n", b"\n", b"\r", b"3\r\nabc\r\n", b"0\r\n\r\n", b"abc", b"0", b"3", b";x=y", b"GET / HTTP/1.1\r\n"),
]
ENDS = st.lists(st.sampled_from(PIECES), max_size=14).map(b"".join)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_accepted_smuggling_case_is_read_alike_by_llhttp(case: Case) -> None:
    if b"Upgrade" not in case.sent and b"BREW" not in case.sent:  # llhttp switches protocols, and knows its methods
        assert_llhttp_agrees(case.sent)


@given(STARTS, ENDS)
def test_what_is_accepted_llhttp_reads_alike(start: bytes, rest: bytes) -> None:
    assert_llhttp_agrees(start + rest)


@given(STARTS, ENDS)
def test_any_split_gives_the_same_outcomes(start: bytes, rest: bytes) -> None:
    data = start + rest
    whole = replay([data])
    assert replay(each_byte(data)).end() == whole.end()
    for at in range(len(data)):
        split = replay([data[:at], data[at:]])
        assert (split.end(), split.heads) == (whole.end(), whole.heads)


@given(st.binary(max_size=200), st.integers(0, 200), st.integers(0, 300), st.integers(0, 5))
def test_any_bytes_are_answered_refused_or_awaited(data: bytes, searched: int, max_bytes: int, max_fields: int) -> None:
    for text in (data, b"GET / HTTP/1.1\r\n" + data, b"HTTP/1.1 200 OK\r\n" + data):
        request = read_request(text, max_bytes, max_fields, min(searched, len(text)))
        assert request is None or isinstance(request, (Refusal, tuple))
        answer = read_answer(text, max_bytes, max_fields, min(searched, len(text)))
        assert answer is None or answer is REFUSALS["upstream_malformed"] or isinstance(answer[0], AnswerHead)


@pytest.mark.parametrize("filling", [b"a", b"a:" + b" " * 30, b"\r\n", b"a: b\r\n", b" ", b":", b"%", b"%41"])
def test_hostile_heads_cost_linear_time(filling: bytes) -> None:
    def spent(size: int) -> float:
        text = b"GET /" + filling * (size // len(filling))
        began = time.process_time()
        for _ in range(20):
            read_request(text, 1 << 30, 1 << 30)
            read_request(b"GET / HTTP/1.1\r\nHost: a\r\nX: " + text, 1 << 30, 1 << 30)
        return time.process_time() - began

    assert spent(320_000) < 100 * max(spent(20_000), 0.0005)  # 16 times as long; quadratic would be 256
