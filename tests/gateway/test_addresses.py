"""The client's address in the trail."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.gateway.stage import CALL, staged

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize(
    ("forwarded", "recorded"),
    [
        (b"203.0.113.7", "203.0.113.7"),
        (b"198.51.100.1, 203.0.113.7, 127.0.0.1", "203.0.113.7"),
        (b"203.0.113.7, nonsense", "127.0.0.1"),
        (b"fe80::1%free-text-of-the-caller", "127.0.0.1"),
        (b"2001:DB8::1", "2001:db8::1"),
    ],
)
async def test_a_trusted_proxy_names_the_rightmost_untrusted_address(
    tmp_path: Path, forwarded: bytes, recorded: str
) -> None:
    async with staged(tmp_path, settings={"trusted_proxies": ("127.0.0.0/8",)}) as stage:
        stage.connect()
        assert (await stage.ask(stage.request(CALL, b"x-forwarded-for: " + forwarded))).status == 200
        assert (await stage.event()).address == recorded


async def test_a_stranger_names_no_address(tmp_path: Path) -> None:
    async with staged(tmp_path) as stage:
        stage.connect()
        assert (await stage.ask(stage.request(CALL, b"x-forwarded-for: 203.0.113.7"))).status == 200
        assert (await stage.event()).address == "127.0.0.1"
