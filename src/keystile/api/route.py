"""One row of the route table: everything the router, the OpenAPI document and the tests know about a route."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, Literal

import msgspec

from keystile.api.answers import Answer
from keystile.api.call import Call

Handler = Callable[[Call[Any, Any]], Awaitable[Answer]]


class Nothing(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """No query parameters, and no body."""


class Route(msgspec.Struct, frozen=True, kw_only=True):
    """A method and a path, the function that answers, and what goes in and comes out.

    `answer` is the view in `data`: None for 204. `paged` makes it a list with `meta.nextCursor`.
    `tagged` routes answer with an ETag; `conditional` ones obey If-Match. `errors` are statuses beyond those that
    every route may answer with.
    """

    method: Literal["GET", "POST", "PATCH", "DELETE"]
    path: str
    handler: Handler
    tag: str
    summary: str
    body: type[msgspec.Struct] | None = None
    body_optional: bool = False
    query: type[msgspec.Struct] = Nothing
    answer: type[msgspec.Struct] | None = None
    paged: bool = False
    status: int = 200
    tagged: bool = False
    conditional: bool = False
    errors: tuple[int, ...] = ()

    @property
    def name(self) -> str:
        """The operation's name: its function's."""
        return self.handler.__name__
