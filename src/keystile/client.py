"""The SDK's beginning: the REST API as Python, and the errors the server raised, raised again here.

    from keystile.client import Keystile
    keystile = Keystile()                            # KEYSTILE_API_KEY, KEYSTILE_BASE_URL
    keystile.connections.create("github-prod", "https://mcp.github.com", credential=token)

Rules: fields are the API's own, spelt in snake_case going in; answers are the API's own dictionaries. No `repr` and no
exception holds the key. Redirects are not followed, since they would carry the key to another host.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from types import TracebackType
from typing import Any, Self, cast
from urllib.parse import quote

import httpx2

from keystile.errors import ERRORS, KeystileError, Unauthenticated, Unavailable

Row = dict[str, Any]


class Answered(Row):
    """What a success carries. `warnings`: what was accepted and may surprise."""

    warnings: tuple[str, ...] = ()


BASE_URL = "http://127.0.0.1:8080"
_PAGE = 200
_TIMEOUT_SECONDS = 60.0
_WORD = re.compile(r"_([a-z])")


class Keystile:
    """A client of one gateway. Without arguments it reads KEYSTILE_API_KEY and KEYSTILE_BASE_URL."""

    def __init__(self, api_key: str | None = None, base_url: str | None = None) -> None:
        self.base_url = (base_url or os.environ.get("KEYSTILE_BASE_URL") or BASE_URL).rstrip("/")
        key = api_key or os.environ.get("KEYSTILE_API_KEY")
        if not key:
            raise Unauthenticated("No API key is given. Set KEYSTILE_API_KEY.")
        self._wire = Wire(
            httpx2.Client(
                base_url=f"{self.base_url}/api/v1",
                headers={"authorization": f"Bearer {key}"},
                timeout=_TIMEOUT_SECONDS,
            ),
            self.base_url,
        )
        self.connections = Connections(self._wire)
        self.keys = Keys(self._wire)
        self.events = Events(self._wire)

    def __repr__(self) -> str:
        return f"<Keystile {self.base_url}>"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, _type: type[BaseException] | None, _: BaseException | None, __: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Close its connections."""
        self._wire.close()


class Host:
    """The host operator's client: over the unix socket of a node that runs on this machine."""

    def __init__(self, host_socket: str) -> None:
        transport = httpx2.HTTPTransport(uds=host_socket)
        client = httpx2.Client(transport=transport, base_url="http://host/host/v1", timeout=_TIMEOUT_SECONDS)
        self._wire = Wire(client, f"{host_socket} (the gateway of this machine)")

    def __repr__(self) -> str:
        return f"<Host {self._wire.place}>"

    def create_organization(self, slug: str, **fields: object) -> Row:
        """A new organization; `key` is its first admin key, shown this once."""
        return self._wire.data("POST", "/organizations", {"slug": slug, **fields})

    def organizations(self) -> Iterator[Row]:
        """Every organization."""
        return self._wire.rows("/organizations", {})

    def create_key(self, organization: str, name: str, **fields: object) -> Row:
        """A new key in an organization; `key` is shown this once."""
        return self._wire.data("POST", f"/organizations/{_segment(organization)}/keys", {"name": name, **fields})


class Wire:
    """Requests and answers: JSON, envelopes, pages, errors."""

    def __init__(self, client: httpx2.Client, place: str) -> None:
        self.place = place
        self._client = client

    def __repr__(self) -> str:
        return f"<Wire {self.place}>"

    def close(self) -> None:
        """Close its connections."""
        self._client.close()

    def data(
        self,
        method: str,
        path: str,
        fields: dict[str, object] | None = None,
        *,
        query: dict[str, object] | None = None,
        if_match: str | None = None,
    ) -> Answered:
        """What a success carries. Raises what the server raised; Unavailable when it cannot be reached."""
        answer = self._answer(method, path, fields, query, if_match)
        carried = Answered(answer.get("data", {}))
        carried.warnings = tuple(answer.get("meta", {}).get("warnings", ()))
        return carried

    def rows(self, path: str, query: dict[str, object], most: int | None = None) -> Iterator[Row]:
        """The rows of a list, page by page as they are asked for, `most` of them at most."""
        left = most
        asked = {name: value for name, value in query.items() if value is not None}
        while left is None or left > 0:
            answer = self._answer("GET", path, None, asked | {"limit": min(_PAGE, left or _PAGE)})
            rows = cast("list[Row]", answer["data"])
            yield from rows
            left = None if left is None else left - len(rows)
            cursor = answer["meta"]["nextCursor"]
            if cursor is None:
                return
            asked["cursor"] = cursor

    def _answer(
        self,
        method: str,
        path: str,
        fields: dict[str, object] | None,
        query: dict[str, object] | None,
        if_match: str | None = None,
    ) -> Row:
        body = None if fields is None else {_camel(name): value for name, value in fields.items()}
        parameters = {_camel(name): str(value) for name, value in (query or {}).items()}
        headers = {} if if_match is None else {"if-match": if_match}
        try:
            answer = self._client.request(method, path, json=body, params=parameters, headers=headers)
        except httpx2.HTTPError as error:
            raise Unavailable(f"{self.place} cannot be reached: {type(error).__name__}", "unreachable") from None
        if answer.is_success:
            return cast("Row", answer.json()) if answer.content else {}
        raise _error(answer)


class Connections:
    """Connections and their credentials."""

    def __init__(self, wire: Wire) -> None:
        self._wire = wire

    def create(self, slug: str, upstream_url: str, *, credential: str | None = None, **fields: object) -> Answered:
        """A new connection: `name`, `auth_type`, `auth_header_name`, `headers`, `forward_headers`, `ca_pem`."""
        given = {"slug": slug, "upstream_url": upstream_url, **fields}
        return self._wire.data("POST", "/connections", given | ({"credential": credential} if credential else {}))

    def list(self) -> Iterator[Row]:
        """Every connection, newest first."""
        return self._wire.rows("/connections", {})

    def get(self, slug: str) -> Row:
        """One connection."""
        return self._wire.data("GET", _path(slug))

    def patch(self, slug: str, *, if_match: str | None = None, **fields: object) -> Answered:
        """Change what is named. None takes an optional field off."""
        return self._wire.data("PATCH", _path(slug), fields, if_match=if_match)

    def rotate(self, slug: str, credential: str) -> Row:
        """A new credential, active when this returns."""
        return self._wire.data("POST", _path(slug, "rotate"), {"credential": credential})

    def enable(self, slug: str) -> Row:
        """Answer calls again."""
        return self.patch(slug, enabled=True)

    def disable(self, slug: str) -> Row:
        """Refuse every call, and end open streams."""
        return self.patch(slug, enabled=False)

    def delete(self, slug: str) -> None:
        """Delete it with every version of its credential."""
        self._wire.data("DELETE", _path(slug))

    def check(self, slug: str, credential: str | None = None) -> Row:
        """Probe the upstream, with a candidate credential if one is given. `ok` says how it went."""
        return self._wire.data("POST", _path(slug, "check"), {"credential": credential} if credential else {})

    def versions(self, slug: str) -> Iterator[Row]:
        """The versions of the credential, newest first."""
        return self._wire.rows(_path(slug, "versions"), {})

    def activate(self, slug: str, version: int) -> Row:
        """Roll back or forward to a version."""
        return self._wire.data("POST", _path(slug, "versions", str(version), "activate"))

    def client_config(self, slug: str, client: str = "generic") -> Row:
        """What to paste into an MCP client."""
        return self._wire.data("GET", _path(slug, "client-config"), query={"client": client})


class Keys:
    """API keys."""

    def __init__(self, wire: Wire) -> None:
        self._wire = wire

    def create(self, name: str, role: str = "client", **fields: object) -> Answered:
        """A new key: `expires_at`, `connections`, `pinned_user`. `key` in the answer is shown this once."""
        return self._wire.data("POST", "/keys", {"name": name, "role": role, **fields})

    def list(self) -> Iterator[Row]:
        """Every live key, newest first."""
        return self._wire.rows("/keys", {})

    def get(self, key_id: str) -> Row:
        """One key."""
        return self._wire.data("GET", f"/keys/{_segment(key_id)}")

    def update(self, key_id: str, *, if_match: str | None = None, **fields: object) -> Row:
        """Change `name`, `connections`, `expires_at`; None takes scope or expiry off. It holds at once."""
        return self._wire.data("PATCH", f"/keys/{_segment(key_id)}", fields, if_match=if_match)

    def revoke(self, key_id: str) -> None:
        """Refuse it from the next request on."""
        self._wire.data("DELETE", f"/keys/{_segment(key_id)}")


class Events:
    """The trail."""

    def __init__(self, wire: Wire) -> None:
        self._wire = wire

    def list(self, most: int | None = None, **filters: object) -> Iterator[Row]:
        """Events, newest first: `connection`, `trace_id`, `since`, `until` (RFC 3339)."""
        return self._wire.rows("/events", filters, most)


def _error(answer: httpx2.Response) -> KeystileError:
    try:
        said = answer.json()["error"]
        code, message, details = str(said["code"]), str(said["message"]), dict(said["details"])
    except (ValueError, KeyError, TypeError):
        code, message, details = "unexpected_answer", f"HTTP {answer.status_code}, not from Keystile's API.", {}
    details.pop("message", None)
    details.pop("code", None)
    return ERRORS.get(answer.status_code, KeystileError)(message, code, **details)


def _camel(name: str) -> str:
    return _WORD.sub(lambda found: found[1].upper(), name)


def _segment(text: str) -> str:
    """One path segment: nothing in it can reach another path."""
    return quote(text, safe="").replace(".", "%2E")


def _path(slug: str, *more: str) -> str:
    return "/".join(("/connections", _segment(slug), *more))
