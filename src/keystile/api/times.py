"""Times at the border: RFC 3339 UTC with milliseconds outside, whole milliseconds since the epoch inside.

Guarantees: whatever is stored can be shown, so that no row breaks the list it stands in.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import overload

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MILLISECOND = timedelta(milliseconds=1)
LATEST = (datetime(9999, 12, 31, tzinfo=UTC) - _EPOCH) // _MILLISECOND
"""The latest time taken: with any offset it is one that a calendar has."""
_EARLIEST = (datetime(1, 1, 1, tzinfo=UTC) - _EPOCH) // _MILLISECOND


@overload
def moment(at: int) -> str: ...
@overload
def moment(at: int | None) -> str | None: ...
def moment(at: int | None) -> str | None:
    """`2026-11-22T09:30:00.000Z`, or None for no time. Beyond the calendar its nearest end is shown."""
    if at is None:
        return None
    shown = _EPOCH + min(max(at, _EARLIEST), LATEST) * _MILLISECOND
    return shown.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def milliseconds(time: datetime) -> int:
    """Milliseconds since the epoch of a time with an offset, rounded down."""
    return (time - _EPOCH) // _MILLISECOND
