"""The REST API: every route in one table, and the ASGI application that serves it.

What happens to a request, in order: outside /api/v1 → 404; one of `PUBLIC` → answered; no valid key → 401, whatever the
path; then the router (404, 405), the body limit (413), query and body as typed values (400, 415), and the route.
"""

from __future__ import annotations

from typing import Any
from urllib.parse import parse_qsl

import msgspec
from litestar import Litestar, Request, Response
from litestar.handlers import HTTPRouteHandler
from litestar.types import ASGIApp, HTTPScope, Method, Receive, Scope, Send

from keystile.api import check, client_config, connections, credentials, events, keys, openapi, page
from keystile.api.answers import Reply, failure, refused, success
from keystile.api.call import Call, read_body, read_query
from keystile.api.gate import admitted
from keystile.api.house import House
from keystile.api.route import Route
from keystile.api.shapes import (
    CheckConnection,
    ClientConfigQuery,
    CreateConnection,
    CreateKey,
    EventQuery,
    Paging,
    PatchConnection,
    PatchKey,
    RotateCredential,
)
from keystile.api.views import CheckView, ClientConfigView, ConnectionView, EventView, KeyView, NewKeyView, VersionView

BASE = "/api/v1"

# A row: what is called and who answers; below it what goes in and what comes out.
# fmt: off
ROUTES: tuple[Route, ...] = (
    Route("POST", "/connections", connections.create_connection,
          body=CreateConnection, answer=ConnectionView, status=201, tagged=True, errors=(409,)),
    Route("GET", "/connections", connections.list_connections,
          query=Paging, answer=ConnectionView),
    Route("GET", "/connections/{slug}", connections.show_connection,
          answer=ConnectionView, tagged=True),
    Route("PATCH", "/connections/{slug}", connections.patch_connection,
          body=PatchConnection, answer=ConnectionView, tagged=True, conditional=True, errors=(409,)),
    Route("DELETE", "/connections/{slug}", connections.delete_connection,
          status=204, conditional=True),
    Route("POST", "/connections/{slug}/rotate", credentials.rotate_credential,
          body=RotateCredential, answer=ConnectionView, tagged=True, conditional=True, errors=(409,)),
    Route("GET", "/connections/{slug}/versions", credentials.list_versions,
          query=Paging, answer=VersionView),
    Route("POST", "/connections/{slug}/versions/{version}/activate", credentials.activate_version,
          answer=ConnectionView, tagged=True, conditional=True, errors=(409,)),
    Route("DELETE", "/connections/{slug}/versions/{version}", credentials.destroy_version,
          status=204, conditional=True, errors=(409,)),
    Route("POST", "/connections/{slug}/check", check.check_connection,
          body=CheckConnection, body_optional=True, answer=CheckView),
    Route("GET", "/connections/{slug}/client-config", client_config.show_client_config,
          query=ClientConfigQuery, answer=ClientConfigView),
    Route("POST", "/keys", keys.create_key,
          body=CreateKey, answer=NewKeyView, status=201, tagged=True),
    Route("GET", "/keys", keys.list_keys,
          query=Paging, answer=KeyView),
    Route("GET", "/keys/{id}", keys.show_key,
          answer=KeyView, tagged=True),
    Route("PATCH", "/keys/{id}", keys.patch_key,
          body=PatchKey, answer=KeyView, tagged=True, conditional=True),
    Route("DELETE", "/keys/{id}", keys.revoke_key,
          status=204, conditional=True),
    Route("GET", "/events", events.list_events,
          query=EventQuery, answer=EventView),
)
# fmt: on


def application(house: House) -> ASGIApp:
    """The ASGI application over what the control process owns."""
    document = openapi.document(ROUTES, BASE)
    public = {
        f"{BASE}/openapi.json": Reply(200, {"content-type": "application/json"}, msgspec.json.encode(document)),
        f"{BASE}/docs": page.reply(document),
    }
    router = routed(house, ROUTES, BASE)

    async def serve(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await router(scope, receive, send)
            return
        path, method = scope["path"], scope["method"]
        if path in public and method == "GET":
            await write(send, public[path])
        elif path != BASE and not path.startswith(f"{BASE}/"):
            await write(send, refused(404, "missing", "There is nothing at this path.", {}))
        else:
            try:
                scope["state"]["caller"] = await admitted(house, method, scope["headers"])
            except Exception as error:  # noqa: BLE001 — the border: whatever it is becomes a failure body
                await write(send, failure(error))
            else:
                await router(scope, receive, send)

    return serve


def routed(house: House, routes: tuple[Route, ...], base: str) -> Litestar:
    """A router over a route table. Each request's scope carries its `Caller` already."""
    paths = dict.fromkeys(route.path for route in routes)
    return Litestar(
        [_handler(house, base + path, {row.method: row for row in routes if row.path == path}) for path in paths],
        exception_handlers={Exception: _failed},
        openapi_config=None,
        logging_config=None,
        request_max_body_size=house.config.limits.api_body_bytes,
    )


def _handler(house: House, path: str, rows: dict[Method, Route]) -> HTTPRouteHandler:
    """One handler a path, so that the router's own answer to OPTIONS names every method."""

    async def answer(request: Request[Any, Any, Any]) -> Response[bytes]:
        route = rows[request.method]
        call = Call(
            house=house,
            caller=request.scope["state"]["caller"],
            body=await _body(request, route),
            query=read_query(parse_qsl(request.scope["query_string"].decode("latin-1"), True), route.query),
            path=request.path_params,
            base_url=_base_url(house, request.scope),
            if_match=request.headers.get("if-match"),
        )
        return _response(success(await route.handler(call), route.status))

    # 200 satisfies the router's own checks; every response carries its row's status.
    return HTTPRouteHandler(path.replace("}", ":str}"), http_method=list(rows), status_code=200)(answer)


async def _body(request: Request[Any, Any, Any], route: Route) -> msgspec.Struct | None:
    raw = await request.body()
    if route.body is None:
        return None
    headers = request.headers
    return read_body(
        raw, headers.get("content-type"), headers.get("content-encoding"), route.body, optional=route.body_optional
    )


def _base_url(house: House, scope: HTTPScope) -> str:
    """How clients reach this gateway: as configured, else as this request did (workers write X-Forwarded-*)."""
    if house.config.public_url:
        return house.config.public_url.rstrip("/")
    fields = {name: value.decode("latin-1") for name, value in scope["headers"]}
    host = fields.get(b"x-forwarded-host") or f"{house.config.host}:{house.config.port}"
    return f"{fields.get(b'x-forwarded-proto', 'http')}://{host}"


def _failed(_: Request[Any, Any, Any], error: Exception) -> Response[bytes]:
    return _response(failure(error))


def _response(reply: Reply) -> Response[bytes]:
    return Response(reply.body, status_code=reply.status, headers=reply.headers, media_type="application/json")


async def write(send: Send, reply: Reply) -> None:
    """Send a reply without the router."""
    fields = [(name.encode("ascii"), value.encode("latin-1")) for name, value in reply.headers.items()]
    fields.append((b"content-length", str(len(reply.body)).encode("ascii")))
    await send({"type": "http.response.start", "status": reply.status, "headers": fields})
    await send({"type": "http.response.body", "body": reply.body, "more_body": False})
