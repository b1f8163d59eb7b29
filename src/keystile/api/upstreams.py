"""Whether an upstream URL may be used: its form, and the addresses its name has now.

Rules: an address that would be refused at every dial is refused at creation, with a hint; a name that does not resolve
within two seconds is accepted with a warning, since it may resolve later and every dial checks again. `http:`, where
others could read a credential, is spoken only to ranges that KEYSTILE_UPSTREAMS_ALLOW names.
"""

from __future__ import annotations

import asyncio
import socket

import msgspec

from keystile.api.call import refuse
from keystile.core.addresses import Reach, judge
from keystile.core.target import Target, parse_target
from keystile.errors import Invalid

RESOLVE_SECONDS = 2.0

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

    url: str
    target: Target
    verdicts: frozenset[str]
    warnings: tuple[str, ...]

    def permitted(self) -> None:
        """Raises Invalid when an address of it would be refused at every dial."""
        for reason in sorted(self.verdicts):
            raise refuse("upstreamUrl", _HINTS.get(reason, _ELSE), "address_refused", reason=reason)


async def looked_at(url: str, reach: Reach) -> Upstream:
    """Parse and resolve. Raises Invalid for a URL that is none."""
    target = parsed(url)
    addresses = await _addresses(target)
    warnings = () if addresses else (f"The upstream's name does not resolve from here now: {target.host}",)
    verdicts = (judge(reach, address, target.scheme) for address in addresses)
    return Upstream(url, target, frozenset(verdict for verdict in verdicts if verdict), warnings)


def parsed(url: str) -> Target:
    """What a URL names. Raises Invalid, with what is wrong with it."""
    target = parse_target(url)
    if isinstance(target, str):
        raise Invalid(f"`upstreamUrl`: {target}", field="upstreamUrl")
    return target


async def _addresses(target: Target) -> list[str]:
    loop = asyncio.get_running_loop()
    try:
        found = await asyncio.wait_for(
            loop.getaddrinfo(target.host, target.port, type=socket.SOCK_STREAM), RESOLVE_SECONDS
        )
    except (OSError, UnicodeError, TimeoutError):
        return []
    return [str(address[0]).partition("%")[0] for *_, address in found]
