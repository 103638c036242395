"""Assembles the site: health, metrics and the API, and the page unless it runs headless."""

from __future__ import annotations

from fastapi import FastAPI
from fastapi.exception_handlers import http_exception_handler
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from app.access.guard import Guard
from app.access.origins import Origins
from app.access.visitors import VisitorGate
from app.api.service import create_apis
from app.error_shapes import error_response
from app.http.bodies import Bodies, BodyGate
from app.http.connection_limits import Connections
from app.http.response_headers import LOCKED_POLICY, headers_with
from app.http.sub_path import SubPath
from app.metrics import Metrics
from app.paths import API_PATH, TOKEN_PATHS, is_api
from app.problems import problem_of
from app.server.health import add_health
from app.services import Services


def create_app(services: Services, bind_host: str, headless: bool = False, root_path: str = "") -> FastAPI:
    """The whole site. `services` holds the long-lived objects and outlives the app. `root_path` is the path of a
    proxy's host below which it is served, "" for its root."""
    app = FastAPI(title="Keepwarm", docs_url=None, redoc_url=None, openapi_url=None)
    connections, bodies = Connections(), Bodies()
    app.state.connections = connections
    app.add_middleware(BodyGate, bodies=bodies, most_message_bytes=services.manager.most_message_bytes)
    app.add_middleware(
        Guard,
        owners=services.owners,
        bind_host=bind_host,
        share_host=services.share.host,
        visitors=services.callers.visitors,
        origins=Origins(services.allowed_origins, lambda: services.callers.needs_key),
    )
    # The outermost two: middleware that is added last runs first.
    app.add_middleware(VisitorGate, visitors=services.callers.visitors)
    if root_path:
        app.add_middleware(SubPath, prefix=root_path)
    app.add_exception_handler(HTTPException, refuse)
    app.add_exception_handler(Exception, went_wrong)
    metrics = Metrics(services.manager, services.process, connections)
    add_health(app, services, metrics)
    apis = create_apis(services, metrics, bodies)
    for path, api in apis.items():
        app.mount(path, api)
    for path in TOKEN_PATHS:
        app.router.routes.append(Route(path, BelowApi(apis[API_PATH])))
    if headless:
        app.router.routes.append(Route("/", running))
    else:
        from app.page.mount import add_page  # Gradio is imported here: it costs seconds

        add_page(app, services, bodies)
    return app


async def running(request: Request) -> Response:
    """What stands in the page's place: Ollama's own command asks for it before anything else."""
    return PlainTextResponse("Keepwarm is running without its page; its API is below /v1 and /api.\n")


class BelowApi:
    """Answers a path as the API answers the same path below its own."""

    def __init__(self, api: ASGIApp) -> None:
        self._api = api

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        below = {"root_path": API_PATH, "path": f"{API_PATH}{scope['path']}"}
        await self._api({**scope, **below}, receive, send)


async def refuse(request: Request, error: Exception) -> Response:
    """Answers a path without a route. API paths need JSON here too: one with a line feed does not reach the mounted
    API."""
    assert isinstance(error, HTTPException)
    if is_api(request.scope["path"]):
        return error_response(problem_of(error, "routing"), request.scope["path"])
    return await http_exception_handler(request, error)


async def went_wrong(request: Request, error: Exception) -> Response:
    """Answers an unexpected error. This happens outside the guard, so it adds the security headers itself."""
    return PlainTextResponse(
        "Something went wrong on the server; its log has the details.", 500, headers_with(LOCKED_POLICY)
    )
