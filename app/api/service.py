"""The API as an application of its own, mounted at /v1: its errors and its OpenAPI document are not the page's."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from app.api.completions import completions_router
from app.api.models import models_router
from app.api.problems import Problem, problem_of

if TYPE_CHECKING:
    from app.wiring import House

DESCRIPTION = (
    "OpenAI-compatible chat completions on conversations whose KV stays warm. Send a key as `Authorization: Bearer "
    "kw-...`; without any key only programs of this machine are answered."
)


def create_api(house: House) -> FastAPI:
    """Everything below /v1."""
    api = FastAPI(
        title="Keepwarm",
        version="1",
        description=DESCRIPTION,
        openapi_url="/openapi.json",
        docs_url=None,
        redoc_url=None,
    )
    api.include_router(completions_router(house))
    api.include_router(models_router(house))

    async def refuse(request: Request, error: Exception) -> Response:
        return problem_of(error, f"{request.method} {request.scope['path']}").response()

    for kind in (Problem, RequestValidationError, HTTPException, Exception):
        api.add_exception_handler(kind, refuse)
    return api
