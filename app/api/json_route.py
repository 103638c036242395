"""Receives the API's JSON bodies: checks the caller first, then the size, then the shape, then parses and validates off
the event loop. FastAPI would read and validate the whole body on the event loop before checking the caller."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Coroutine
from email.message import Message
from typing import TYPE_CHECKING, Any

from fastapi.concurrency import run_in_threadpool
from fastapi.routing import APIRoute
from pydantic import BaseModel, ValidationError
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from app.api.fields.invalid_fields import place_and_sentence
from app.http.bodies import MIB, Bodies
from app.http.json_shape import Shape, ShapeRefused, load_json
from app.problems import Problem

if TYPE_CHECKING:
    from app.services import Services

MOST_BODY_BYTES = 8 * MIB  # two million tokens of English, or one of Chinese in escapes
MOST_SHAPE = Shape(values=200_000, depth=100)  # 20,000 messages with one part each, and their tools
FORM = "application/x-www-form-urlencoded"
CLIENT_GONE = 499  # appears only in the log: the client is gone

Handler = Callable[[Request], Coroutine[Any, Any, Response]]


def json_route(services: Services, bodies: Bodies, model: type[BaseModel], takes_forms: bool = False) -> type[APIRoute]:
    """A class for routes whose only body is a `model`. The request's state has the `owner_id`, and `body_held`, which
    the route closes once the texts are tokenised: until then the next large body waits. `takes_forms`: JSON may come
    under the content type of a form, which curl gives it where it is told nothing, or under none."""

    class JsonRoute(APIRoute):
        def get_route_handler(self) -> Handler:
            answer = super().get_route_handler()

            async def handle(request: Request) -> Response:
                _refuse_other_content(request, takes_forms)
                owner_id = await run_in_threadpool(services.callers.owner_of, request)
                request.state.owner_id = owner_id
                async with contextlib.AsyncExitStack() as held:
                    request.state.body_held = held
                    try:
                        receiving = bodies.received(request.scope, request.receive, owner_id, MOST_BODY_BYTES)
                        body = await held.enter_async_context(receiving)
                        await held.enter_async_context(bodies.turn(owner_id, len(body)))
                        parsed = await run_in_threadpool(_parsed, body, model)
                    except ClientDisconnect:
                        return Response(status_code=CLIENT_GONE)
                    return await answer(_Parsed(request, parsed))

            return handle

    return JsonRoute


class _Parsed(Request):
    """A request whose body was already parsed: FastAPI receives the model and passes it on unchanged."""

    def __init__(self, request: Request, parsed: BaseModel) -> None:
        headers = [(name, value) for name, value in request.scope["headers"] if name != b"content-type"]
        json_headers = [*headers, (b"content-type", b"application/json")]  # whatever it came as
        super().__init__({**request.scope, "headers": json_headers}, request.receive)
        self._parsed = parsed

    async def body(self) -> bytes:
        return b"{}"  # an empty one would count as no body

    async def json(self) -> Any:
        return self._parsed


def _parsed(body: bytearray, model: type[BaseModel]) -> BaseModel:
    """The validated body. Raises `Problem`. Runs on a worker thread."""
    try:
        value = load_json(body, MOST_SHAPE)
    except ShapeRefused as error:
        raise Problem(400, str(error), "invalid_json") from error
    try:
        return model.model_validate(value)
    except ValidationError as error:
        place, sentence = place_and_sentence(error.errors(include_url=False, include_input=False))
        raise Problem(400, sentence, "invalid_value", place or None) from None


def _refuse_other_content(request: Request, takes_forms: bool) -> None:
    """Refuses a body that is not plain JSON: raises `Problem` 415."""
    if request.headers.get("content-encoding", "identity").strip().lower() not in ("", "identity"):
        raise Problem(415, "Compressed bodies are not supported: send plain JSON.", "unsupported_encoding")
    kind = Message()
    kind["content-type"] = request.headers.get("content-type", "")
    if takes_forms and request.headers.get("content-type", FORM).partition(";")[0].strip().lower() == FORM:
        return
    if kind.get_content_type() != "application/json" and not kind.get_content_subtype().endswith("+json"):
        raise Problem(415, "Send JSON, with the header Content-Type: application/json.", "unsupported_content_type")
