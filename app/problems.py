"""Errors as sentences for people, and as HTTP responses in OpenAI's shape for programs.

The shape is `{"error": {"message", "type", "param", "code"}}`, with the status and Retry-After.
"""

from __future__ import annotations

import logging
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse

from model_runtime.interface.errors import DeviceOutOfMemory, EngineClosed, ModelRuntimeError, TemplateRefused
from sessions.errors import (
    CacheFull,
    ContextFull,
    ConversationBusy,
    ConversationNotFound,
    MessageRefused,
    NotKeptHere,
    SessionError,
    SettingRefused,
    ShuttingDown,
    StoreError,
)

log = logging.getLogger(__name__)

RETRY_BUSY_S = 1
RETRY_DOWN_S = 5


@dataclass(eq=False)  # neither frozen nor slotted: raising an exception writes to it
class Problem(Exception):
    """An error that a client is told about. `code` is for programs, `message` for people. One that `is_as_sent` speaks
    of a field by the name that the client gave it."""

    status: int
    message: str
    code: str | None = None
    param: str | None = None
    retry_after_s: int | None = None
    is_as_sent: bool = False

    @property
    def kind(self) -> str:
        """OpenAI's error type for the status."""
        known = {
            401: "authentication_error",
            403: "permission_error",
            404: "not_found_error",
            409: "conflict_error",
            429: "rate_limit_error",
        }
        return known.get(self.status, "server_error" if self.status >= 500 else "invalid_request_error")

    def body(self) -> dict[str, Any]:
        return {"error": {"message": self.message, "type": self.kind, "param": self.param, "code": self.code}}

    def headers(self) -> dict[str, str]:
        headers = {"Retry-After": str(self.retry_after_s)} if self.retry_after_s is not None else {}
        return {**headers, "WWW-Authenticate": "Bearer"} if self.status == 401 else headers

    def response(self, more_headers: Mapping[str, str] = MappingProxyType({})) -> JSONResponse:
        return JSONResponse(self.body(), self.status, {**self.headers(), **more_headers})


def sentence(error: Exception, doing: str) -> str:
    """The sentence a person sees, never a traceback. An unexpected error is logged with its traceback, under an id that
    the sentence names."""
    if isinstance(error, SessionError | ModelRuntimeError | ValueError):
        return str(error)
    problem_id = uuid.uuid4().hex[:8]
    log.error("unexpected doing=%s id=%s", doing, problem_id, exc_info=error)
    return f"Something went wrong on the server (id {problem_id}); its log has the details. Please try again."


def problem_of(error: Exception, doing: str) -> Problem:
    """The `Problem` for an error: the only place where errors become statuses. Details of unexpected errors are logged
    and not told."""
    match error:
        case Problem():
            return error
        case RequestValidationError():
            return _invalid(error.errors())
        case HTTPException():
            return _of_http(error)
    return _of_own(error, sentence(error, doing))


def _of_own(error: Exception, sentence: str) -> Problem:
    match error:
        case ConversationNotFound():
            return Problem(404, sentence, "session_not_found")
        case ShuttingDown():
            return Problem(503, sentence, "shutting_down", retry_after_s=RETRY_DOWN_S)
        case ConversationBusy():
            return Problem(409, sentence, "session_busy", retry_after_s=RETRY_BUSY_S)
        case MessageRefused():
            return Problem(400, sentence, "invalid_messages", "messages")
        case SettingRefused():
            return Problem(400, sentence, "unsupported_by_engine")
        case NotKeptHere():
            return Problem(400, sentence, "memory_is_elsewhere")
        case TemplateRefused():
            return Problem(400, sentence, "unsupported_by_template", "messages")
        case ContextFull():
            return Problem(400, sentence, "context_length_exceeded", "messages")
        case CacheFull():
            return Problem(400, sentence, "kv_budget_exceeded", "max_tokens")
        case StoreError() | EngineClosed() | DeviceOutOfMemory():
            return Problem(503, sentence, "unavailable", retry_after_s=RETRY_DOWN_S)
        case SessionError() | ModelRuntimeError():
            return Problem(500, sentence, "failed")
        case ValueError():
            return Problem(400, sentence, "invalid_value")
    return Problem(500, sentence, "internal_error")


def _of_http(error: HTTPException) -> Problem:
    sentences = {404: "There is nothing at this address.", 405: "This address does not support this method."}
    codes = {404: "unknown_url", 405: "method_not_allowed", 413: "request_too_large"}
    return Problem(error.status_code, sentences.get(error.status_code, str(error.detail)), codes.get(error.status_code))


def _invalid(errors: Sequence[Mapping[str, Any]]) -> Problem:
    first = errors[0] if errors else {"loc": (), "msg": "The request cannot be read."}
    place = ".".join(str(step) for step in first["loc"] if step != "body")
    if str(first.get("type")) == "json_invalid":
        return Problem(400, "The request's body is not JSON.", "invalid_json")
    where = f"{place}: " if place else ""
    return Problem(400, f"{where}{first['msg']}.".replace("..", "."), "invalid_value", place or None)
