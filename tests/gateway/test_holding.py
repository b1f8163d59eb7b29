"""A body costs what it weighs, however it drips in, and its budget comes back."""

from __future__ import annotations

import tracemalloc

import pytest

from keystile.core.http1 import RequestHead, read_request
from keystile.errors import Refusal
from keystile.gateway.holding import Budget, Holding


def head_of(framing: bytes) -> RequestHead:
    found = read_request(b"POST / HTTP/1.1\r\nhost: x\r\n" + framing + b"\r\n\r\n", 1000, 10)
    assert found is not None and not isinstance(found, Refusal)
    return found[0]


@pytest.mark.parametrize(
    ("framing", "one"), [(b"content-length: 200001", b"x"), (b"transfer-encoding: chunked", b"1\r\nx\r\n")]
)
def test_a_body_that_comes_byte_by_byte_takes_no_more_room_than_it_is_long(framing: bytes, one: bytes) -> None:
    budget = Budget(1 << 20, 1 << 20)
    tracemalloc.start()
    holding = Holding(head_of(framing), budget, "somebody")
    for _ in range(200_000):
        assert holding.feed(one) is None
    held, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert held < 2 * 200_000
    assert budget.used == 200_000
    holding.release()
    assert budget.used == 0


def test_a_released_body_gives_its_budget_back_once() -> None:
    budget = Budget(100, 100)
    first, second = (Holding(head_of(b"content-length: 50"), budget, "somebody") for _ in range(2))
    assert first.feed(b"x" * 50) == (b"x" * 50, b"")
    assert second.feed(b"y" * 20) is None
    first.release()
    first.release()
    assert budget.used == 20


def test_bytes_behind_a_body_are_handed_back() -> None:
    holding = Holding(head_of(b"content-length: 4"), Budget(100, 100), "somebody")
    assert holding.feed(b"ab") is None
    assert holding.feed(b"cdGET /") == (b"abcd", b"GET /")
