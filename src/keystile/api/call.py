"""One API request as a route sees it: who calls, the body and the query as typed values, the path, the revision.

Rules: bodies and queries are decoded strictly into one struct each; unknown and repeated names are refused. What a
refusal says names the field and what was expected, and never repeats a value: it may be a credential in the wrong
place.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any, Generic, TypeVar

import msgspec

from keystile.api.gate import Caller
from keystile.api.house import House
from keystile.errors import Invalid, KeystileError, Missing, Stale
from keystile.model import SLUG

B = TypeVar("B")
Q = TypeVar("Q")

_AT = re.compile(r" - at (?:`key` in )?`\$\.?(.*)`$")
_VALUE = re.compile(r"^Invalid enum value .*", re.DOTALL)
_NAMED = re.compile(r"^Object (?:missing required|contains unknown) field `(.*)`$", re.DOTALL)
_PLAIN = re.compile(r"[A-Za-z_]{1,40}")  # a name that is shown back: no token has this form, as a secret might
_NUMBERS = frozenset({"limit"})
_DIGITS = re.compile(r"[0-9]{1,9}")


class MediaTypeUnsupported(KeystileError):
    """The body is not JSON, or is encoded."""

    status = 415
    default = "media_type_unsupported"


class Call(msgspec.Struct, Generic[B, Q], frozen=True, kw_only=True):
    """One request, with everything decided that can be decided before the route."""

    house: House
    caller: Caller
    body: B
    query: Q
    path: Mapping[str, str]
    base_url: str
    if_match: str | None = None

    @property
    def actor(self) -> str:
        """Id of the API key that acts."""
        return self.caller.key.id

    def slug(self) -> str:
        """The slug in the path. Raises Missing for what cannot be one."""
        slug = self.path["slug"]
        if not re.fullmatch(SLUG, slug):
            raise Missing("Your organization has no connection of this slug.")
        return slug


def read_body(raw: bytes, content_type: str | None, encoding: str | None, type_: type[B], *, optional: bool) -> B:
    """The body as `type_`. Raises Invalid, MediaTypeUnsupported."""
    if optional and not raw:
        return type_()
    media_type = (content_type or "").partition(";")[0].strip().lower()
    if media_type != "application/json" or encoding:
        raise MediaTypeUnsupported("The request body must be application/json without Content-Encoding.")
    try:
        return msgspec.json.decode(raw, type=type_)
    except msgspec.ValidationError as error:
        raise invalid(str(error)) from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise Invalid("The body is not valid JSON.", "invalid_json") from None


def read_query(pairs: Iterable[tuple[str, str]], type_: type[Q]) -> Q:
    """The query string as `type_`. Raises Invalid."""
    given: dict[str, str | int] = {}
    for name, value in pairs:
        if name in given:
            raise refuse(name, "is given twice") if _PLAIN.fullmatch(name) else Invalid("A parameter is given twice.")
        given[name] = int(value) if name in _NUMBERS and _DIGITS.fullmatch(value) else value
    try:
        return msgspec.convert(given, type=type_)
    except msgspec.ValidationError as error:
        raise invalid(str(error)) from None


def refuse(field: str, what: str, code: str = "invalid", **details: object) -> Invalid:
    """An error that names a field and says what is wrong with it, as the end of a sentence."""
    return Invalid(f"`{field}` {what}.", code, field=field, **details)


def invalid(said: str) -> Invalid:
    """A validation library's sentence, with the field named and every value taken out."""
    place = _AT.search(said)
    what = said[: place.start()] if place else said
    named = _NAMED.match(what)
    missing = named is not None and "missing" in what.partition("`")[0]
    if named is not None and not missing and not _PLAIN.fullmatch(named[1]):
        return Invalid("A member of the body or query is not a field of this request.")
    field = ".".join(part for part in (place[1] if place else "", named[1] if named else "") if part)
    if named:
        return refuse(field, "is needed" if missing else "is not a field of this request")
    what = "is not one of the accepted values" if _VALUE.match(what) else what[0].lower() + what[1:]
    if not field:
        return Invalid(f"The body: {what}.")
    return Invalid(
        f"`{field}`: {what}." if what.startswith(("expected", "invalid")) else f"`{field}` {what}.", field=field
    )


def etag(revision: int | str) -> str:
    """The strong entity tag of a revision (RFC 9110, section 8.8.3)."""
    return f'"{revision}"'


def must_match(if_match: str | None, tag: str) -> None:
    """Raises Stale unless `If-Match` is absent, `*`, or lists the current entity tag (RFC 9110, section 13.1.1)."""
    if if_match is None or if_match.strip() == "*":
        return
    if tag not in {part.strip() for part in if_match.split(",")}:
        raise Stale("It has changed since you read it. Read it again.")


def paged(rows: list[Any], limit: int) -> tuple[list[Any], Any | None]:
    """The rows of one page, and the last of them when more follow. The caller asked for one row too many."""
    return (rows[:limit], rows[limit - 1]) if len(rows) > limit else (rows, None)
