"""Opaque cursors: base64url of the place of a page's last row, as JSON. One that we did not make is refused."""

from __future__ import annotations

import base64
import binascii
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from keystile.errors import Invalid
from keystile.model import ApiKey, Connection, Organization

Count = Annotated[int, Meta(ge=0, lt=1 << 62)]
Place = tuple[Count, str]


def after_row(row: Connection | ApiKey | Organization) -> str:
    """The cursor that continues after a row."""
    return _encoded((row.created_at, row.id))


def place(cursor: str | None) -> Place | None:
    """The (time, id) that a cursor continues after. Raises Invalid (`cursor_invalid`)."""
    return None if cursor is None else _decoded(cursor, Place)


def after_version(number: int) -> str:
    """The cursor that continues below a version."""
    return _encoded(number)


def before_version(cursor: str | None) -> int | None:
    """The version that a cursor continues below. Raises Invalid (`cursor_invalid`)."""
    return None if cursor is None else _decoded(cursor, Count)


def _encoded(place: object) -> str:
    return base64.urlsafe_b64encode(msgspec.json.encode(place)).decode("ascii").rstrip("=")


def _decoded(cursor: str, type_: Any) -> Any:
    try:
        raw = base64.b64decode(cursor + "=" * (-len(cursor) % 4), altchars=b"-_", validate=True)
        return msgspec.json.decode(raw, type=type_)
    except (binascii.Error, ValueError, msgspec.MsgspecError, RecursionError):
        raise Invalid("`cursor` is not one that a page of this list gave.", "cursor_invalid", field="cursor") from None
