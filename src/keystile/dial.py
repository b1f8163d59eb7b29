"""Resolve, check, connect: the only way out, for the gateway, checks and everything that comes after them.

Guarantees: a name is resolved once per dial, each address is judged, and the judged address itself is dialled, so a
name that answers differently the second time gains nothing. TLS is always verified; a connection's own `caPem`
stands in for the system's roots, and nothing turns verification off.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Callable
from functools import lru_cache
from typing import TypeVar

from keystile.core.addresses import Reach, judge
from keystile.core.target import Target
from keystile.errors import REFUSALS, Refusal

P = TypeVar("P", bound=asyncio.BaseProtocol)


class DialError(Exception):
    """No connection came about; `refusal` says why. The cause stays in the chain and out of the message."""

    def __init__(self, refusal: Refusal, reason: str = "") -> None:
        super().__init__(refusal.code)
        self.refusal = refusal
        self.reason = reason


async def dial(
    target: Target, reach: Reach, ca_pem: str | None, seconds: float, factory: Callable[[], P]
) -> tuple[asyncio.Transport, P]:
    """A connected transport and its protocol, or DialError. `seconds` bounds resolving, connecting and TLS together.

    The addresses share what time is left evenly: one that swallows packets must not use up the next one's.
    """
    loop = asyncio.get_running_loop()
    ends = loop.time() + seconds
    try:
        async with asyncio.timeout_at(ends):
            addresses = await resolve(target)
    except TimeoutError as error:
        raise DialError(REFUSALS["upstream_dial_timeout"]) from error
    failure = DialError(REFUSALS["upstream_unreachable"])
    for index, address in enumerate(addresses):
        reason = judge(reach, address, target.scheme)
        if reason is not None:
            failure = DialError(REFUSALS["address_refused"], reason)
            continue
        try:
            async with asyncio.timeout((ends - loop.time()) / (len(addresses) - index)):
                return await _connect(target, address, ca_pem, factory)
        except (OSError, ValueError) as error:
            failure = DialError(_refusal(error))
            failure.__cause__ = error
    raise failure


async def resolve(target: Target) -> list[str]:
    """The addresses of the target's host, in the resolver's order; raises DialError when there are none."""
    try:
        found = await asyncio.get_running_loop().getaddrinfo(
            target.host, target.port, type=socket.SOCK_STREAM, proto=socket.IPPROTO_TCP
        )
    except (OSError, UnicodeError) as error:
        raise DialError(REFUSALS["upstream_unreachable"], "the name does not resolve") from error
    return list(dict.fromkeys(str(entry[4][0]) for entry in found))


def _refusal(error: OSError | ValueError) -> Refusal:
    if isinstance(error, TimeoutError):
        return REFUSALS["upstream_dial_timeout"]
    # ValueError: a `caPem` that is none, or a host no certificate can name. `ssl.SSLError` is an OSError.
    return REFUSALS["upstream_untrusted" if isinstance(error, ssl.SSLError | ValueError) else "upstream_unreachable"]


async def _connect(
    target: Target, address: str, ca_pem: str | None, factory: Callable[[], P]
) -> tuple[asyncio.Transport, P]:
    secure = target.scheme == "https"
    transport, protocol = await asyncio.get_running_loop().create_connection(
        factory,
        address,
        target.port,
        ssl=tls(ca_pem) if secure else None,
        server_hostname=target.host if secure else None,
    )
    return transport, protocol


@lru_cache(maxsize=256)
def tls(ca_pem: str | None) -> ssl.SSLContext:
    """A verifying client context: the system's roots, or `ca_pem` in their place. HTTP/1.1 only (ALPN)."""
    context = ssl.create_default_context(cadata=ca_pem)
    context.set_alpn_protocols(["http/1.1"])
    return context
