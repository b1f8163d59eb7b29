"""The OpenAPI 3.1 document, made from the route table and the structs of `shapes`: nothing is written twice."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable
from typing import Any

import msgspec

from keystile import __version__
from keystile.api.route import Route
from keystile.api.views import Failure
from keystile.errors import ERRORS

Schema = dict[str, Any]

ALWAYS = (401, 403, 500, 503)
"""Statuses that every route may answer with."""

_OTHER = {
    413: "The body is larger than this gateway accepts.",
    415: "The body is not plain application/json.",
    500: "An unexpected fault, or a credential that does not open. The gateway's log has it under `details.id`.",
}
_PARAMETERS = {
    "slug": ("The slug.", {"type": "string", "examples": ["github-prod"]}),
    "version": ("The number of the version.", {"type": "string", "pattern": "^[1-9][0-9]{0,8}$", "examples": ["1"]}),
    "id": ("The key's id.", {"type": "string"}),
}
_ETAG = {"ETag": {"description": "The revision, for If-Match.", "schema": {"type": "string"}}}
_IF_MATCH = {
    "name": "If-Match",
    "in": "header",
    "description": "Do it only if the ETag is still this one; else 412.",
    "schema": {"type": "string"},
}
_IN_PATH = re.compile(r"{(\w+)}")
_REFERENCE = "#/components/schemas/{name}"


def document(routes: Iterable[Route], base: str) -> Schema:
    """The document of a route table served under `base`."""
    routes = tuple(routes)
    structs = {struct for route in routes for struct in (route.body, route.answer) if struct} | {Failure}
    ordered = sorted(structs, key=lambda struct: struct.__name__)
    _, schemas = msgspec.json.schema_components(ordered, ref_template=_REFERENCE)
    paths: dict[str, Schema] = {}
    for route in routes:
        paths.setdefault(base + route.path, {})[route.method.lower()] = _operation(route)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Keystile",
            "version": __version__,
            "summary": "Connections, credentials, keys and the trail of a Keystile gateway.",
            "description": inspect.cleandoc(_DESCRIPTION),
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "servers": [{"url": "/"}],
        "security": [{"key": []}],
        "tags": [{"name": name} for name in dict.fromkeys(route.tag for route in routes)],
        "paths": paths,
        "components": {
            "schemas": schemas,
            "securitySchemes": {
                "key": {"type": "http", "scheme": "bearer", "description": "A Keystile key that is not a client's."}
            },
        },
    }


_DESCRIPTION = """
    Success is `{"data": …, "meta": …}`, failure is `{"error": {"code", "message", "details"}}`.
    Lists page with `limit` and `cursor`; `meta.nextCursor` is null on the last page.
    Times are RFC 3339, UTC, with milliseconds. No answer holds a credential.
"""


def _operation(route: Route) -> Schema:
    operation: Schema = {
        "operationId": route.name,
        "tags": [route.tag],
        "summary": route.summary,
        "description": route.description,
        "parameters": _parameters(route),
        "responses": _responses(route),
    }
    if route.body is not None:
        operation["requestBody"] = {
            "required": not route.body_optional,
            "content": {"application/json": {"schema": {"$ref": _REFERENCE.format(name=route.body.__name__)}}},
        }
    return operation


def _parameters(route: Route) -> list[Schema]:
    found: list[Schema] = []
    for name in _IN_PATH.findall(route.path):
        description, schema = _PARAMETERS[name]
        found.append({"name": name, "in": "path", "required": True, "description": description, "schema": schema})
    _, parts = msgspec.json.schema_components([route.query], ref_template=_REFERENCE)
    for name, schema in parts[route.query.__name__]["properties"].items():
        given = _without_null(schema)
        description = given.pop("description", "")
        found.append({"name": name, "in": "query", "description": description, "schema": given})
    if route.conditional:
        found.append(_IF_MATCH)
    return found


def _without_null(schema: Schema) -> Schema:
    """A query parameter is left out, not null."""
    choices = [choice for choice in schema.get("anyOf", ()) if choice != {"type": "null"}]
    found = dict(choices[0]) if len(choices) == 1 else dict(schema)
    if found.get("default", 0) is None:
        del found["default"]
    return found


def _responses(route: Route) -> Schema:
    found: Schema = {str(route.status): _success(route)}
    for status in sorted(_statuses(route)):
        error = ERRORS.get(status)
        found[str(status)] = {
            "description": _OTHER.get(status) or (inspect.getdoc(error) if error else None) or "",
            "content": {"application/json": {"schema": {"$ref": _REFERENCE.format(name=Failure.__name__)}}},
        }
    return found


def _statuses(route: Route) -> set[int]:
    statuses = {*ALWAYS, *route.errors, 400, 413}
    if _IN_PATH.search(route.path) or "connection" in route.query.__struct_fields__:
        statuses.add(404)
    if route.body is not None:
        statuses.add(415)
    if route.conditional:
        statuses.add(412)
    return statuses


def _success(route: Route) -> Schema:
    if route.answer is None:
        return {"description": "Done."}
    data: Schema = {"$ref": _REFERENCE.format(name=route.answer.__name__)}
    meta: Schema = {"type": "object", "properties": {"warnings": {"type": "array", "items": {"type": "string"}}}}
    if route.paged:
        data = {"type": "array", "items": data}
        meta["properties"]["nextCursor"] = {"type": ["string", "null"]}
        meta["required"] = ["nextCursor"]
    body: Schema = {"type": "object", "required": ["data", "meta"], "properties": {"data": data, "meta": meta}}
    answer: Schema = {"description": f"{route.summary}.", "content": {"application/json": {"schema": body}}}
    return answer | ({"headers": _ETAG} if route.tagged else {})
