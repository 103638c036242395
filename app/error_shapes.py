"""Refusals in the shape of the protocol that a path belongs to: OpenAI's, Anthropic's or Ollama's."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from starlette.responses import JSONResponse

from app.paths import MESSAGES_PATH, OLLAMA_PATH
from app.problems import Problem

# https://docs.anthropic.com/en/api/errors
_ANTHROPIC_KINDS = MappingProxyType({413: "request_too_large", 500: "api_error", 503: "overloaded_error"})


def error_response(problem: Problem, path: str, more_headers: Mapping[str, str] = MappingProxyType({})) -> JSONResponse:
    """The response of a refused request to this path."""
    return JSONResponse(error_body(problem, path), problem.status, {**problem.headers(), **more_headers})


def error_body(problem: Problem, path: str) -> dict[str, Any]:
    if path == MESSAGES_PATH or path.startswith(f"{MESSAGES_PATH}/"):
        return anthropic_error(problem)
    if path == OLLAMA_PATH or path.startswith(f"{OLLAMA_PATH}/"):
        return {"error": problem.message}
    return problem.body()


def anthropic_error(problem: Problem) -> dict[str, Any]:
    kind = _ANTHROPIC_KINDS.get(problem.status, problem.kind)
    return {"type": "error", "error": {"type": kind, "message": problem.message}, "request_id": None}
