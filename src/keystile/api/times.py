"""Times at the border: RFC 3339 UTC with milliseconds outside, whole milliseconds since the epoch inside."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import overload

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MILLISECOND = timedelta(milliseconds=1)


@overload
def moment(at: int) -> str: ...
@overload
def moment(at: int | None) -> str | None: ...
def moment(at: int | None) -> str | None:
    """`2026-11-22T09:30:00.000Z`, or None for no time."""
    if at is None:
        return None
    return (_EPOCH + at * _MILLISECOND).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def milliseconds(time: datetime) -> int:
    """Milliseconds since the epoch of a time with an offset, rounded down."""
    return (time - _EPOCH) // _MILLISECOND
