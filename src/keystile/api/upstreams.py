"""Whether an upstream URL may be used: its form, and the addresses its name has now.

Rules: an address that would be refused at every dial is refused at creation, with a hint; a name that does not resolve
within two seconds is accepted with a warning, since it may resolve later and every dial checks again. `http:`, where
others could read a credential, is spoken only to ranges that KEYSTILE_UPSTREAMS_ALLOW names. A URL that leads back to
this gateway by one of its own names is refused; roundabout ways are cut off at the call.
"""

from __future__ import annotations

import asyncio

import msgspec

from keystile.api.call import refuse
from keystile.api.house import House
from keystile.config import Config, named
from keystile.core.addresses import judge
from keystile.core.target import Target, parse_target
from keystile.dial import DialError, resolve
from keystile.errors import Invalid

RESOLVE_SECONDS = 2.0

_OURS = ("/v1/mcp/", "/api/")
_LOOPBACK = ("localhost", "127.0.0.1", "::1")

_HINTS = {
    "metadata": "leads to a link-local or cloud metadata address, which is never dialled",
    "plain_http": (
        "is http, which is spoken only to ranges that KEYSTILE_UPSTREAMS_ALLOW names. Use https, or add the range there"
    ),
}
_ELSE = (
    "leads to a loopback, private or reserved address. To allow it, add its range to KEYSTILE_UPSTREAMS_ALLOW on the"
    " gateway"
)


class Upstream(msgspec.Struct, frozen=True):
    """Evidence that a URL was looked at. `verdicts` are the reasons against its addresses, as `judge` gives them."""

    verdicts: frozenset[str]
    warnings: tuple[str, ...]

    def permitted(self) -> None:
        """Raises Invalid when an address of it would be refused at every dial."""
        for reason in sorted(self.verdicts):
            raise refuse("upstreamUrl", _HINTS.get(reason, _ELSE), "address_refused", reason=reason)


async def looked_at(url: str, house: House, base_url: str) -> Upstream:
    """Parse and resolve. `base_url` is how this gateway was called. Raises Invalid for a URL that is none, or ours."""
    target = parsed(url)
    if target.path.startswith(_OURS) and (target.host, target.port) in _own_places(house.config, base_url):
        raise refuse("upstreamUrl", "leads back to this gateway, which would call itself; give the upstream's own URL")
    addresses = await _addresses(target)
    warnings = () if addresses else (f"The upstream's name does not resolve from here now: {target.host}",)
    verdicts = (judge(house.reach, address, target.scheme) for address in addresses)
    return Upstream(frozenset(verdict for verdict in verdicts if verdict), warnings)


def parsed(url: str) -> Target:
    """What a URL names. Raises Invalid, with what is wrong with it."""
    target = parse_target(url)
    if isinstance(target, str):
        raise Invalid(f"`upstreamUrl`: {target}", field="upstreamUrl")
    return target


def _own_places(config: Config, base_url: str) -> set[tuple[str, int]]:
    """Host and port by which this gateway is reached, as far as it knows."""
    hosts = (*_LOOPBACK, *(host.strip("[]").lower() for _, host in named(config)))
    called = parse_target(base_url)
    return {(host, config.port) for host in hosts} | (
        {(called.host, called.port)} if isinstance(called, Target) else set()
    )


async def _addresses(target: Target) -> list[str]:
    try:
        found = await asyncio.wait_for(resolve(target), RESOLVE_SECONDS)
    except (DialError, TimeoutError):
        return []
    return [address.partition("%")[0] for address in found]
