"""Keep-alive connections to upstreams, per connection and origin: taken warm, watched while idle, retired in time.

An idle connection that says or ends anything is closed by its own protocol. One that has been idle for
`pool_idle_seconds` is retired, before the time-outs that servers commonly have (5 s), because a request written to a
closing connection may have run and is never sent twice.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager

from keystile.config import Limits
from keystile.core.addresses import Reach
from keystile.core.registry import Endpoint
from keystile.dial import DialError, dial
from keystile.errors import REFUSALS
from keystile.gateway.upstream import Upstream


class Pool:
    """One worker's upstream connections. Not shared between workers or event loops."""

    def __init__(self, limits: Limits, reach: Reach, control: str) -> None:
        self._limits = limits
        self._reach = reach
        self._control = control
        self._idle: dict[object, list[Upstream]] = {}
        self._open: set[Upstream] = set()
        self.reading = memoryview(bytearray(limits.buffer_bytes // 2))

    def __repr__(self) -> str:
        idle = sum(map(len, self._idle.values()))
        return f"<Pool open={len(self._open)} idle={idle}>"

    def take(self, key: object) -> Upstream | None:
        """A warm connection, the one used last first; None when one must be dialled."""
        idle = self._idle.get(key)
        while idle:
            upstream = idle.pop()
            if upstream.open:
                return upstream
        return None

    async def dial(self, endpoint: Endpoint) -> Upstream:
        """A new connection to an endpoint's upstream; raises DialError."""
        limits, ca_pem = self._limits, endpoint.connection.ca_pem
        with self._making(endpoint.pool_key) as make:
            _, upstream = await dial(endpoint.target, self._reach, ca_pem, limits.dial_seconds, make)
            if not upstream.open:
                raise DialError(REFUSALS["upstream_unreachable"], "it closed at once")
        return upstream

    async def dial_control(self) -> Upstream:
        """A new connection to the control process of this node; raises DialError."""
        with self._making(self._control) as make:
            try:
                _, upstream = await asyncio.get_running_loop().create_unix_connection(make, self._control)
            except OSError as error:
                raise DialError(REFUSALS["control_unavailable"]) from error
            if not upstream.open:
                raise DialError(REFUSALS["control_unavailable"])
        return upstream

    @contextmanager
    def _making(self, key: object) -> Generator[Callable[[], Upstream]]:
        """A factory of connections; what it made is closed if the dial fails or is given up."""
        made: list[Upstream] = []

        def make() -> Upstream:
            made.append(Upstream(self._limits, self, key))
            self._open.add(made[-1])
            return made[-1]

        try:
            yield make
        except BaseException:
            for upstream in made:
                upstream.close()
                self._open.discard(upstream)
            raise

    def give_back(self, upstream: Upstream) -> None:
        """Keep it warm, unless enough are."""
        idle = self._idle.setdefault(upstream.key, [])
        if len(idle) >= self._limits.pool_idle:
            upstream.close()
            return
        upstream.idle_since = time.monotonic()
        idle.append(upstream)

    def lost(self, upstream: Upstream) -> None:
        """Forget it."""
        self._open.discard(upstream)
        idle = self._idle.get(upstream.key)
        if idle is None:
            return
        if upstream in idle:
            idle.remove(upstream)
        if not idle:
            del self._idle[upstream.key]

    def retire(self, now: float) -> None:
        """Close what has been idle for too long. `now` is a monotonic second."""
        oldest = now - self._limits.pool_idle_seconds
        for idle in list(self._idle.values()):
            for upstream in [each for each in idle if each.idle_since < oldest]:
                idle.remove(upstream)
                upstream.close()

    def close(self) -> None:
        """Close everything."""
        for upstream in list(self._open):
            upstream.close()
