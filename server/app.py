"""The ASGI application: routes, error shapes and the edge around them."""

import json
from collections.abc import Iterable
from functools import cache

from fastapi import FastAPI, Request
from fastapi.responses import Response
from fastapi.routing import APIRoute
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp

from engine import version
from server.context import ServerContext
from server.edge.auth import Keys
from server.edge.cors import Cors
from server.edge.guard import Edge
from server.openapi.document import describe_api
from server.playground.assets import load_assets
from server.playground.pages import playground_router
from server.protocol.errors import ApiError, internal_error
from server.routes.admin import router as admin_router
from server.routes.chat import router as chat_router
from server.routes.completions import router as completions_router
from server.routes.description import router as description_router
from server.routes.generate import router as generate_router
from server.routes.health import router as health_router
from server.routes.models import router as models_router
from server.routes.tokenize import router as tokenize_router
from server.telemetry.record import Reporter, RequestRecord

ROUTERS = (
    chat_router,
    completions_router,
    generate_router,
    tokenize_router,
    models_router,
    admin_router,
    health_router,
    description_router,
)
ROUTES = tuple(route for router in ROUTERS for route in router.routes if isinstance(route, APIRoute))


def build_app(
    context: ServerContext,
    *,
    keys: Keys,
    hosts: Iterable[str] | None = None,
    cors: Cors | None = None,
    playground: bool = True,
    report: Reporter | None = None,
) -> ASGIApp:
    """The whole application. `hosts` are the only Host names it answers to, None for any; `cors` says which pages of
    other origins may ask.

    `playground` adds the pages for a browser. They need no key: what they ask the API for does. `report` is told of
    every request that was answered.
    """
    # FastAPI's pages of documentation load scripts from elsewhere, and its description of the API is not ours.
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None, redirect_slashes=False)
    app.state.context = context
    for router in ROUTERS:
        app.include_router(router)
    pages: frozenset[str] = frozenset()
    if playground:
        assets = load_assets()
        app.include_router(playground_router(assets))
        pages = assets.paths
    app.state.describe = cache(
        lambda: describe_api(
            ROUTES,
            version=version(),
            needs_key=keys.needed,
            limits=context.admission.limits,
            images=context.images.limits,
        )
    )
    app.add_exception_handler(ApiError, _answer_api_error)
    app.add_exception_handler(HTTPException, _answer_http_exception)
    app.add_exception_handler(Exception, _answer_unexpected)
    return Edge(app, keys=keys, counters=context.counters, hosts=hosts, pages=pages, cors=cors, report=report)


async def _answer_api_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, ApiError)
    return _told(request, error)


async def _answer_http_exception(request: Request, error: Exception) -> Response:
    """What the router raises: no such path, or a path that knows not this method."""
    assert isinstance(error, HTTPException)
    path = request.url.path[:200]
    match error.status_code:
        case 404:
            answer = ApiError(404, f"There is no {path!r} here", type="not_found_error", code="not_found")
        case 405:
            answer = ApiError(
                405, f"{path!r} does not answer {request.method[:20]} requests", code="method_not_allowed"
            )
        case status:
            answer = ApiError(status, str(error.detail), code="http_error")
    response = _told(request, answer)
    if error.headers:
        response.headers.update(error.headers)
    if response.headers.get("allow") == "GET":
        response.headers["allow"] = "GET, HEAD"
    return response


async def _answer_unexpected(request: Request, error: Exception) -> Response:
    return _told(request, internal_error())


def _told(request: Request, error: ApiError) -> Response:
    """The answer, of which the line of the log has the code."""
    record: RequestRecord = request.state.record
    record.fail(error)
    return error_response(error)


def error_response(error: ApiError) -> Response:
    """An error in OpenAI's shape."""
    return Response(json.dumps(error.body()), error.status, error.headers, media_type="application/json")
