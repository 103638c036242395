"""The API as separate applications, mounted at /v1 and /api, with their own error shapes and OpenAPI documents."""

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
from app.api.completions import completions_routers
from app.api.fields.invalid_fields import place_and_sentence
from app.api.fields.other_fields import refuse_unused
from app.api.line import Line
from app.api.models import models_router
from app.api.ollama.management import management_routers
from app.api.ollama.routes import ollama_routers
from app.api.openai_responses.conversations import conversations_routers
from app.api.openai_responses.routes import responses_routers
from app.api.sessions import sessions_router
from app.api.text_completions.routes import text_completions_routers
from app.api.tokens.routes import tokens_routers
from app.error_shapes import error_response
from app.http.bodies import Bodies
from app.metrics import Metrics
from app.paths import API_PATH, OLLAMA_PATH
from app.problems import Problem, problem_of
from model_runtime.interface.errors import ModelRuntimeError
from sessions.errors import SessionError

if TYPE_CHECKING:
    from app.services import Services

log = logging.getLogger(__name__)

SHOWN_PATH_CHARS = 80
_MAKERS = (
    *(completions_routers, text_completions_routers, anthropic_routers, responses_routers, conversations_routers),
    tokens_routers,
)
DESCRIPTION = (
    "OpenAI-compatible chat completions on conversations whose KV stays warm. Send a key as `Authorization: Bearer "
    "kw-...`; without any key only programs on this machine are answered."
)


def create_apis(services: Services, metrics: Metrics, bodies: Bodies) -> dict[str, FastAPI]:
    """The applications that answer everything below /v1 and /api, by these paths. They share the line of open
    requests."""
    line = Line()
    metrics.show_line(lambda: line.waiting)
    answering = Answering(services, line)
    made: dict[str, FastAPI] = {}
    for path, makers in ((API_PATH, _MAKERS), (OLLAMA_PATH, (ollama_routers, management_routers))):
        api = _application(services, metrics, path)
        for make in makers:
            for router in make(services, bodies, answering):
                api.include_router(router)
        made[path] = api
    made[API_PATH].include_router(models_router(services))
    made[API_PATH].include_router(sessions_router(services))
    return made


def _application(services: Services, metrics: Metrics, path: str) -> FastAPI:
    api = FastAPI(
        title="Keepwarm",
        version="1",
        description=DESCRIPTION,
        openapi_url="/openapi.json",
        docs_url=None,
        redoc_url=None,
        dependencies=[Depends(refuse_unused(services.callers.owner_of))],
    )
    api.add_middleware(RequestLog, metrics=metrics, below="" if path == API_PATH else path)

    async def refuse(request: Request, error: Exception) -> Response:
        if isinstance(error, RequestValidationError):
            error = _about_query(error)
        problem = problem_of(error, f"{request.method} {request.scope['path'][:SHOWN_PATH_CHARS]}")
        metrics.refused(problem.code or problem.kind)
        return error_response(problem, request.scope["path"])

    expected = (Problem, RequestValidationError, HTTPException, SessionError, ModelRuntimeError, ValueError)
    for kind in (*expected, Exception):
        api.add_exception_handler(kind, refuse)
    return api


def _about_query(error: RequestValidationError) -> Exception:
    """What is wrong with a query parameter, in a sentence of our own. Bodies are read by `json_route`."""
    errors = [{**one, "loc": one["loc"][1:]} for one in error.errors() if one["loc"][:1] == ("query",)]
    if not errors:
        return error
    place, sentence = place_and_sentence(errors)
    return Problem(400, sentence, "invalid_value", place)


class RequestLog:
    """Logs one line per request after its last byte was sent, never the text of a message. `below` comes before the
    paths of /metrics."""

    def __init__(self, app: ASGIApp, metrics: Metrics, below: str) -> None:
        self._app = app
        self._below = below
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
            route = getattr(scope.get("route"), "path", None)
            self._metrics.answered("other" if route is None else f"{self._below}{route}", status)
            log.info(
                "request method=%s path=%r status=%d seconds=%.3f",
                *(scope["method"], scope["path"][:SHOWN_PATH_CHARS], status, time.perf_counter() - began),
            )
