"""Whose address an event shows: the rightmost one in X-Forwarded-For that is no trusted proxy's."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.gateway.stage import PING, staged

pytestmark = pytest.mark.anyio

TRUSTED = {"trusted_proxies": ("127.0.0.0/8", "10.0.0.0/8")}


@pytest.mark.parametrize(
    ("lines", "address"),
    [
        ((), "127.0.0.1"),
        ((b"203.0.113.7",), "203.0.113.7"),
        ((b"198.51.100.1, 203.0.113.7",), "203.0.113.7"),
        ((b"198.51.100.1, 203.0.113.7, 10.0.0.1",), "203.0.113.7"),
        ((b"198.51.100.1", b"203.0.113.7"), "203.0.113.7"),
        ((b"198.51.100.1, 203.0.113.7", b"10.0.0.1"), "203.0.113.7"),
        ((b"10.0.0.2, 10.0.0.1",), "10.0.0.2"),
        ((b"2001:db8::7",), "2001:db8::7"),
        ((b"203.0.113.7, not an address",), "127.0.0.1"),
        ((b"203.0.113.7, not an address, 10.0.0.1",), "10.0.0.1"),
        ((b"",), "127.0.0.1"),
    ],
)
async def test_the_rightmost_untrusted_address_is_recorded(
    tmp_path: Path, lines: tuple[bytes, ...], address: str
) -> None:
    async with staged(tmp_path, settings=TRUSTED) as stage:
        stage.connect()
        await stage.ask(stage.request(PING, *[b"X-Forwarded-For: " + line for line in lines]))
        assert (await stage.event()).address == address
        assert all(asked.field(b"x-forwarded-for") == [] for asked in stage.upstream.asked)


async def test_a_client_that_is_no_proxy_is_not_believed(tmp_path: Path) -> None:
    async with staged(tmp_path, settings={"trusted_proxies": ("10.0.0.0/8",)}) as stage:
        stage.connect()
        await stage.ask(stage.request(PING, b"x-forwarded-for: 203.0.113.7"))
        assert (await stage.event()).address == "127.0.0.1"


async def test_a_refused_call_is_recorded_with_the_same_address(tmp_path: Path) -> None:
    async with staged(tmp_path, settings=TRUSTED) as stage:
        await stage.ask(stage.request(PING, b"x-forwarded-for: 203.0.113.7", key=None))
        assert (await stage.event()).address == "203.0.113.7"
