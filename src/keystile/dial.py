"""Resolve, check, connect: the only way out, for the gateway, checks and everything that comes after them.

Guarantees: a name is resolved once per dial, each address is judged, and the judged address itself is dialled, so a
name that answers differently the second time gains nothing. TLS is always verified; a connection's own `caPem`
stands in for the system's roots, and nothing turns verification off.

Dials of one name that wait at the same time share one look-up. It occupies a thread of the resolver until it ends, and
giving up does not free that thread: so a name whose server does not answer occupies one, however often it is dialled.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Callable
from functools import lru_cache, partial
from typing import TypeVar

from keystile.core.addresses import Reach, judge
from keystile.core.target import Target
from keystile.errors import REFUSALS, Refusal

P = TypeVar("P", bound=asyncio.BaseProtocol)

_FLIGHTS: dict[tuple[str, int], asyncio.Task[list[str]]] = {}
"""The look-ups under way, by host and port. An event loop joins only its own."""


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
    loop, name = asyncio.get_running_loop(), (target.host, target.port)
    flight = _FLIGHTS.get(name)
    if flight is None or flight.get_loop() is not loop:
        flight = _FLIGHTS[name] = loop.create_task(_looked_up(*name))
        flight.add_done_callback(partial(_landed, name))
    try:
        # The flight goes on when this asker gives up: the next one joins it.
        return await asyncio.shield(flight)
    except (OSError, UnicodeError) as error:
        raise DialError(REFUSALS["upstream_unreachable"], "the name does not resolve") from error


async def _looked_up(host: str, port: int) -> list[str]:
    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM, proto=socket.IPPROTO_TCP)
    return list(dict.fromkeys(str(entry[4][0]) for entry in found))


def _landed(name: tuple[str, int], flight: asyncio.Task[list[str]]) -> None:
    """Nothing is cached: who asks from now on starts another."""
    if _FLIGHTS.get(name) is flight:
        del _FLIGHTS[name]
    if not flight.cancelled():
        flight.exception()  # seen, though every asker may have given up


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
