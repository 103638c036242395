"""The API as a separate application, mounted at /v1, with its own error shape and OpenAPI document."""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING

from fastapi import Depends, FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.api.answering import Answering
from app.api.anthropic.routes import anthropic_routers
from app.api.completions import completions_router
from app.api.fields.other_fields import refuse_unused
from app.api.line import Line
from app.api.models import models_router
from app.api.openai_responses.routes import responses_routers
from app.api.sessions import sessions_router
from app.api.text_completions.routes import text_completions_router
from app.api.tokens.routes import tokens_routers
from app.error_shapes import error_response
from app.http.bodies import Bodies
from app.metrics import Metrics
from app.problems import Problem, problem_of
from model_runtime.interface.errors import ModelRuntimeError
from sessions.errors import SessionError

if TYPE_CHECKING:
    from app.services import Services

log = logging.getLogger(__name__)

SHOWN_PATH_CHARS = 80
DESCRIPTION = (
    "OpenAI-compatible chat completions on conversations whose KV stays warm. Send a key as `Authorization: Bearer "
    "kw-...`; without any key only programs on this machine are answered."
)


def create_api(services: Services, metrics: Metrics, bodies: Bodies) -> FastAPI:
    """The application that answers everything below /v1."""
    api = FastAPI(
        title="Keepwarm",
        version="1",
        description=DESCRIPTION,
        openapi_url="/openapi.json",
        docs_url=None,
        redoc_url=None,
        dependencies=[Depends(refuse_unused(services.callers.owner_of))],
    )
    line = Line()
    metrics.show_line(lambda: line.waiting)
    answering = Answering(services, line)
    api.include_router(completions_router(services, bodies, answering))
    api.include_router(text_completions_router(services, bodies, answering))
    for routers in (anthropic_routers, responses_routers, tokens_routers):
        for router in routers(services, bodies, answering):
            api.include_router(router)
    api.include_router(models_router(services))
    api.include_router(sessions_router(services))
    api.add_middleware(RequestLog, metrics=metrics)

    async def refuse(request: Request, error: Exception) -> Response:
        problem = problem_of(error, f"{request.method} {request.scope['path'][:SHOWN_PATH_CHARS]}")
        metrics.refused(problem.code or problem.kind)
        return error_response(problem, request.scope["path"])

    expected = (Problem, RequestValidationError, HTTPException, SessionError, ModelRuntimeError, ValueError)
    for kind in (*expected, Exception):
        api.add_exception_handler(kind, refuse)
    return api


class RequestLog:
    """Logs one line per request after its last byte was sent, never the text of a message."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began, status = time.perf_counter(), 0

        async def send_noting(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, send_noting)
        finally:
            route = scope.get("route")
            self._metrics.answered(getattr(route, "path", "other"), status)
            log.info(
                "request method=%s path=%r status=%d seconds=%.3f",
                *(scope["method"], scope["path"][:SHOWN_PATH_CHARS], status, time.perf_counter() - began),
            )
