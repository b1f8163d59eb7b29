"""What all client connections of one worker share: the registry kept fresh, the trail, the pools, the limits.

Rules: one owner, the worker's event loop; nothing here waits. `fresh` is asked at the start of every request and
again when its body is complete; `tick` does all that happens by the clock.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address
from typing import Protocol

from keystile.config import Limits
from keystile.core.decide import Shape, standing
from keystile.core.registry import Registry
from keystile.errors import REFUSALS, Refusal
from keystile.feed import FeedReader, FeedShort, Word
from keystile.gateway import notice
from keystile.gateway.heads import Heads, Known
from keystile.gateway.holding import Budget
from keystile.gateway.limits import InFlight
from keystile.gateway.pool import Pool
from keystile.gateway.trail import Trail
from keystile.model import ApiKey, Connection


class Ticking(Protocol):
    """What has deadlines."""

    def tick(self, now: float) -> None:
        """The clock: time-outs, comment lines. `now` is a monotonic second."""


class Live(Ticking, Protocol):
    """An exchange under way, as the gate sees it."""

    key: ApiKey
    connection: Connection

    def withdraw(self, refusal: Refusal) -> None:
        """Its key or its connection may no longer do this."""


class Caller(Ticking, Protocol):
    """A client connection, as the gate sees it."""

    def drain(self) -> None:
        """Finish what runs and close."""

    def abort(self) -> None:
        """Close now."""


class Gate:
    """The shared part of one worker."""

    def __init__(  # noqa: PLR0913 — the parts of a worker, joined in one place
        self,
        *,
        limits: Limits,
        shape: Shape,
        proxies: tuple[IPv4Network | IPv6Network, ...],
        word: Word,
        reader: FeedReader,
        registry: Callable[[], Registry],
        trail: Trail,
        in_flight: InFlight,
        pool: Pool,
        control: str,
    ) -> None:
        self.limits = limits
        self.shape = shape
        self.trail = trail
        self.in_flight = in_flight
        self.pool = pool
        self.control = control
        self.registry = registry()
        self.callers: set[Caller] = set()
        self.live: set[Live] = set()
        self.errands: set[Ticking] = set()
        self.heads = Heads()
        self.bodies = Budget(limits.body_bytes, limits.bodies_bytes)
        self.api_bodies = Budget(limits.api_body_bytes, limits.api_bodies_bytes)
        # Whose key opens nothing competes with its like alone, and is judged by the control process all the same.
        self.strange_bodies = Budget(limits.api_body_bytes, limits.api_bodies_bytes // 4)
        self.draining = False
        self.empty = asyncio.Event()
        self._turned_away = 0
        self._new_registry = registry
        self._proxies = proxies
        self._word = word
        self._cells = word.cells
        self._reader = reader

    def __repr__(self) -> str:
        return f"<Gate callers={len(self.callers)} live={len(self.live)} {self.registry!r} {self.pool!r}>"

    def fresh(self) -> bool:
        """Bring the registry up to the generation word. False when the feed does not hold it yet."""
        return self._cells[0] == self._reader.generation or self._catch_up()

    def known(self, mark: bytes) -> Known | None:
        """The admission of a head that came before, if it stands in the configuration as it is now."""
        return self.heads.find(mark, self._reader.generation) if self.fresh() else None

    @property
    def generation(self) -> int:
        """That of the last change the registry holds."""
        return self._reader.generation

    @property
    def ready(self) -> bool:
        """Whether every worker of the node serves. They do without the control process, for a while."""
        return all(self._cells[2:])

    def tick(self) -> None:
        """Everything that happens by the clock; called every `check_seconds`."""
        now = time.monotonic()
        self.fresh()
        wall = time.time_ns() // 1_000_000
        for live in tuple(self.live):
            with notice.guarded("exchange"):
                if live.key.expires_at is not None and live.key.expires_at <= wall:
                    live.withdraw(REFUSALS["key_expired"])
                else:
                    live.tick(now)
        for ticking in (*self.errands, *self.callers):
            with notice.guarded("client"):
                ticking.tick(now)
        self.pool.retire(now)
        self.trail.tick(now)
        if self._turned_away:
            notice.say("warning", "client connections at their limit", turned_away=self._turned_away)
            self._turned_away = 0

    def come(self, caller: Caller) -> bool:
        """A client connection has come; False when there are as many as there may be."""
        if len(self.callers) >= self.limits.sockets:
            self._turned_away += 1
            return False
        self.callers.add(caller)
        return True

    def left(self, caller: Caller) -> None:
        """A client connection is gone; `empty` is set when that was the last one of a worker that drains."""
        self.callers.discard(caller)
        if self.draining and not self.callers:
            self.empty.set()

    def close(self) -> None:
        """The end of what is shared: upstream connections, then the trail."""
        self.pool.close()
        self.trail.close()

    def address_of(self, peer: str, forwarded_for: bytes | None) -> str:
        """The client's address for the trail: the rightmost one that is not a trusted proxy's."""
        if forwarded_for is None or not self._trusted(peer):
            return peer
        for text in reversed(forwarded_for.decode("latin-1").split(",")):
            address = _address(text.strip())
            if address is None:
                break
            peer = str(address)
            if not self._trusted(peer):
                break
        return peer

    def _trusted(self, text: str) -> bool:
        address = _address(text)
        return address is not None and any(address in network for network in self._proxies)

    def _catch_up(self) -> bool:
        try:
            whole, changes = self._reader.read()
        except FeedShort:
            return False
        registry = self._new_registry() if whole else self.registry
        touched = {registry.apply(change) for change in changes}
        self.registry = registry
        for live in tuple(self.live):
            if whole or live.key.id in touched or live.connection.id in touched:
                with notice.guarded("withdrawal"):
                    self._judge_again(live)
        return True

    def _judge_again(self, live: Live) -> None:
        """Close what a change has withdrawn. Rotation withdraws nothing."""
        key = self.registry.key(live.key.digest)
        if key is None:
            live.withdraw(REFUSALS["key_invalid"])
            return
        refusal = standing(key, self.registry.connection(live.connection.id))
        if refusal is not None:
            live.withdraw(refusal)
        else:
            live.key = key


def _address(text: str) -> IPv4Address | IPv6Address | None:
    """An address, or None. A zone id would be free text in the trail."""
    try:
        return None if "%" in text else ip_address(text)
    except ValueError:
        return None
