"""A worker's way to the trail: the spool, the slots of what is under way, and the counts of what is not told singly.

Guarantees: what `open` has taken survives `kill -9`; what `record` has taken stands in the spool when it returns, or,
while there is no room, keeps its slot until there is some; strangers take no room that authenticated exchanges need.
"""

from __future__ import annotations

import time

from keystile.audit.event import Event
from keystile.audit.slots import Slots
from keystile.audit.spool import Spool
from keystile.errors import Refusal
from keystile.gateway import notice
from keystile.gateway.record import new_id
from keystile.gateway.strangers import Strangers

_COUNT_SECONDS = 1.0


class Trail:
    """What a worker writes of its exchanges. Not for more than one event loop."""

    def __init__(self, spool: Spool, slots: Slots) -> None:
        self.spool = spool
        self.ready = spool.ready
        self.open = slots.fill
        self._slots = slots
        self._strangers = Strangers()
        self._count_at = 0.0
        self._late: list[tuple[Event, int | None]] = []

    def __repr__(self) -> str:
        return f"<Trail late={len(self._late)} {self._strangers!r} {self._slots!r} {self.spool!r}>"

    def record(self, event: Event, slot: int | None = None) -> None:
        """The exchange has ended. Its slot, if it has one, is freed once the event stands in the spool."""
        stranger = event.outcome == "refused" and event.key is None
        if stranger and not self._strangers.has_own(event):
            return
        if self._put(event, slot):
            return
        if stranger:
            self._strangers.count(event)
        else:
            self._late.append((event, slot))  # few: while the spool is not ready, no exchange begins

    def unread(self, address: str, refusal: Refusal, received: int) -> None:
        """A head that could not be read: nobody's, and for no endpoint."""
        at = time.time_ns() // 1_000_000
        told = Event(
            id=new_id(at),
            at=at,
            outcome="refused",
            address=address,
            refusal=refusal.code,
            status=refusal.status,
            bytes_in=received,
        )
        self.record(told)

    def tick(self, now: float) -> None:
        """What happens by the clock; `now` is monotonic seconds."""
        self.spool.maintain(now)
        self._catch_up()
        if now >= self._count_at:
            self._count_at = now + _COUNT_SECONDS
            self._tell_counts()

    def close(self) -> None:
        """The last of it. What is late even now keeps its slot, and becomes `interrupted`."""
        self._catch_up()
        self._tell_counts()
        if self._late:
            notice.say("error", "events lost", count=len(self._late), fault=self.spool.fault)
        self.spool.close()
        self._slots.close()

    def _put(self, event: Event, slot: int | None) -> bool:
        taken = self.spool.append(event)
        if taken and slot is not None:
            self._slots.free(slot)
        return taken

    def _catch_up(self) -> None:
        if self._late:
            self._late = [late for late in self._late if not self._put(*late)]

    def _tell_counts(self) -> None:
        for event in self._strangers.counted(time.time_ns() // 1_000_000, new_id):
            if not self.spool.append(event):
                self._strangers.count(event)
