"""core/framing.py: every payload byte at once, none kept, and exactly the bytes that follow the end."""

from collections.abc import Callable
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keystile.core.framing import Body, Chunked, Length, UntilClose
from keystile.errors import Refusal

READERS: st.SearchStrategy[Callable[[], Body]] = st.sampled_from([Chunked, lambda: Chunked(answer=True)])
CHUNKS = st.lists(st.binary(min_size=1, max_size=40), max_size=5)


def chunked(chunks: list[bytes]) -> bytes:
    return b"".join(b"%x\r\n%b\r\n" % (len(chunk), chunk) for chunk in chunks) + b"0\r\n\r\n"


def read(body: Body, pieces: list[bytes]) -> tuple[bytes, bytes | None] | str:
    payload, rest = b"", None
    for piece in pieces:
        if rest is not None:
            rest += piece
            continue
        fed = body.feed(piece)
        if isinstance(fed, Refusal):
            return fed.code
        payload += fed[0]
        rest = fed[1]
    return payload, rest


def cut(data: bytes, at: list[int]) -> list[bytes]:
    borders = sorted({0, len(data), *(place % (len(data) + 1) for place in at)})
    return [data[start:end] for start, end in pairwise(borders)]


@given(CHUNKS, st.binary(max_size=20), st.lists(st.integers(0, 400), max_size=6), READERS)
def test_chunked_body_is_read_alike_at_any_split(
    chunks: list[bytes], after: bytes, at: list[int], reader: Callable[[], Body]
) -> None:
    data = chunked(chunks) + after
    assert read(reader(), cut(data, at)) == (b"".join(chunks), after)


@given(st.binary(max_size=60), st.integers(0, 60), st.lists(st.integers(0, 60), max_size=6))
def test_length_ends_where_it_says(data: bytes, length: int, at: list[int]) -> None:
    rest = data[length:] if length <= len(data) else None
    assert read(Length(length), [b"", *cut(data, at)]) == (data[:length], rest)


def test_payload_is_handed_out_before_its_chunk_ends() -> None:
    body = Chunked(answer=True)
    assert body.feed(b"ff\r\ndata: 1\n\n") == (b"data: 1\n\n", None)
    assert body.feed(b"data: 2\n\n") == (b"data: 2\n\n", None)


def test_only_a_body_without_length_ends_with_the_connection() -> None:
    assert UntilClose().feed(b"anything") == (b"anything", None)
    assert [body.complete_at_eof for body in (UntilClose, Length, Chunked)] == [True, False, False]


def test_answers_extensions_and_trailers_are_dropped() -> None:
    data = b'5 ; a="b"\r\nhello\r\n0;last\r\nServer-Timing: x\r\nA: \xe9\r\n\r\nHTTP/1.1'
    for pieces in ([data], [data[at : at + 1] for at in range(len(data))]):
        assert read(Chunked(answer=True), pieces) == (b"hello", b"HTTP/1.1")


@pytest.mark.parametrize(
    "data",
    [
        b"5\nhello",
        b"5\r\nhello\n",
        b"5\r\nhelloX",
        b"-5\r\n",
        b"5 5\r\n",
        b"5;\0\r\n",
        b"\r\n",
        b"g\r\n",
        b"10000000000000000\r\n",
        b"0\r\nA : b\r\n",
        b"0\r\n folded\r\n",
        b"0\r\nA: b\n\r\n",
        b"5;" + b"a" * 5000,
        b"0\r\n" + b"A: b\r\n" * 2000,
    ],
)
def test_broken_chunks_are_refused(data: bytes) -> None:
    for pieces in ([data], [data[at : at + 1] for at in range(len(data))]):
        assert read(Chunked(answer=True), pieces) == "upstream_malformed"
        assert read(Chunked(), pieces) == "malformed_http"


@given(st.lists(st.binary(max_size=30), max_size=8), READERS)
def test_any_bytes_are_read_refused_or_awaited(pieces: list[bytes], reader: Callable[[], Body]) -> None:
    for start in (b"", b"5\r\nhello", b"5\r\nhello\r\n0\r\n"):
        read(reader(), [start, *pieces])
