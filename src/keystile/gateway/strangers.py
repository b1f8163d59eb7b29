"""Refusals before authentication, in the trail with a bound of their own: strangers cannot fill it.

Guarantees: of one client address, at most `OWN` refusals a second have an event of their own; what goes beyond is
counted, and the counts become one event a second for each address and organization. No more than `ADDRESSES`
addresses are told apart in one second, so that memory is bounded however many an attacker has: the rest are one.
A count waits for room in the spool; it dies with its worker, for nothing of it was forwarded.
"""

from __future__ import annotations

from collections.abc import Callable

from keystile.audit.event import Event, Outcome

OWN = 10
ADDRESSES = 256

_COUNTED: Outcome = "counted"


class Strangers:
    """One worker's view of those who did not show a valid key."""

    def __init__(self) -> None:
        self._second = 0
        self._seen: dict[str | None, int] = {}
        self._beyond: dict[tuple[str | None, str | None], int] = {}

    def has_own(self, event: Event) -> bool:
        """Whether this refusal has an event of its own. One that has not is counted."""
        second = event.at // 1000
        if second != self._second:
            self._second = second
            self._seen.clear()
        address = event.address if event.address in self._seen or len(self._seen) < ADDRESSES else None
        times = self._seen[address] = self._seen.get(address, 0) + 1
        if times <= OWN:
            return True
        self._add((address, event.organization), 1)
        return False

    def count(self, event: Event) -> None:
        """Count what found no room in the spool."""
        self._add((event.address, event.organization), event.count)

    def counted(self, at: int, identify: Callable[[int], str]) -> list[Event]:
        """The counting events of what was counted since; `at` is milliseconds."""
        beyond, self._beyond = self._beyond, {}
        return [
            Event(id=identify(at), at=at, outcome=_COUNTED, organization=organization, address=address, count=count)
            for (address, organization), count in beyond.items()
        ]

    def _add(self, whom: tuple[str | None, str | None], count: int) -> None:
        if whom not in self._beyond and len(self._beyond) >= ADDRESSES:
            whom = None, None
        self._beyond[whom] = self._beyond.get(whom, 0) + count

    def __repr__(self) -> str:
        return f"<Strangers addresses={len(self._seen)} beyond={sum(self._beyond.values())}>"
