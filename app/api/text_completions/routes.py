"""`POST /v1/completions`: goes on with a text."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from app.api.answering import Answering
from app.api.json_route import json_route
from app.api.responses import REFUSALS
from app.api.text_completions.answers import TextReply
from app.api.text_completions.requests import TextCompletionRequest
from app.api.text_completions.responses import TextCompletion
from app.api.text_completions.translation import raw_request
from app.http.bodies import Bodies
from sessions.turns.run import Run

if TYPE_CHECKING:
    from app.services import Services

EVENTS = {
    "description": "The completion, or with `stream` server-sent events of `text_completion` objects.",
    "content": {"text/event-stream": {"schema": {"type": "string"}}},
}


def text_completions_routers(services: Services, bodies: Bodies, answering: Answering) -> tuple[APIRouter]:
    router = APIRouter(route_class=json_route(services, bodies, TextCompletionRequest))
    manager, completions = services.manager, services.manager.completions

    @router.post(
        "/completions", summary="Go on with a text", response_model=TextCompletion, responses={**REFUSALS, 200: EVENTS}
    )
    async def complete(body: TextCompletionRequest, request: Request) -> Response:
        def begin(owner_id: str) -> tuple[Run, TextReply]:
            asked = raw_request(body, manager.info, services.names, completions.template, completions.grammar_refusal)
            run = manager.raw_completions.begin(owner_id, asked.request)
            include_usage = bool(body.stream_options and body.stream_options.include_usage)
            return run, TextReply(run, manager.info.name, int(time.time()), asked.ignored, include_usage)

        return await answering.answer(request, begin, bool(body.stream))

    return (router,)
