"""One row of the route table: everything the router, the OpenAPI document and the tests know about a route."""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable
from typing import Any, Literal

import msgspec

from keystile.api.answers import Answer
from keystile.api.call import Call
from keystile.api.shapes import Paging

Handler = Callable[[Call[Any, Any]], Awaitable[Answer]]


class Nothing(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """No query parameters, and no body."""


class Route(msgspec.Struct, frozen=True):
    """A method and a path, the function that answers, and what goes in and comes out.

    `answer` is the view in `data`: None for 204. Where `query` pages, `data` is a list with `meta.nextCursor`.
    `tagged` routes answer with an ETag; `conditional` ones obey If-Match. `errors` are statuses beyond those that
    every route may answer with. The function's docstring is the documentation; its first line is the summary.
    """

    method: Literal["GET", "POST", "PATCH", "DELETE"]
    path: str
    handler: Handler
    body: type[msgspec.Struct] | None = None
    body_optional: bool = False
    query: type[msgspec.Struct] = Nothing
    answer: type[msgspec.Struct] | None = None
    status: int = 200
    tagged: bool = False
    conditional: bool = False
    errors: tuple[int, ...] = ()

    @property
    def name(self) -> str:
        """The operation's name: its function's."""
        return self.handler.__name__

    @property
    def tag(self) -> str:
        """The noun it belongs to: the path's first word."""
        return self.path.split("/")[1]

    @property
    def description(self) -> str:
        """What it does."""
        return inspect.getdoc(self.handler) or ""

    @property
    def summary(self) -> str:
        """What it does, in one line."""
        return self.description.partition("\n")[0].rstrip(".")

    @property
    def paged(self) -> bool:
        """Whether it answers with a list, page by page."""
        return issubclass(self.query, Paging)
