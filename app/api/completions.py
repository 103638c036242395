"""`POST /v1/chat/completions`: answers a conversation."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from app.api.answering import Answering
from app.api.answers import Reply
from app.api.json_route import json_route
from app.api.requests import ChatCompletionRequest
from app.api.responses import REFUSALS, ChatCompletion
from app.http.bodies import Bodies
from sessions.turns.run import Run

if TYPE_CHECKING:
    from app.services import Services

EVENTS = {
    "description": "The completion, or with `stream` server-sent events of `chat.completion.chunk` objects.",
    "content": {"text/event-stream": {"schema": {"type": "string"}}},
}


def completions_routers(services: Services, bodies: Bodies, answering: Answering) -> tuple[APIRouter]:
    router = APIRouter(route_class=json_route(services, bodies, ChatCompletionRequest))
    manager = services.manager

    @router.post(
        "/chat/completions",
        summary="Answer a conversation",
        response_model=ChatCompletion,
        responses={**REFUSALS, 200: EVENTS},
    )
    async def complete(body: ChatCompletionRequest, request: Request) -> Response:
        def begin(owner_id: str) -> tuple[Run, Reply]:
            asked = answering.translated(body)
            run = manager.completions.begin(owner_id, asked.request)
            include_usage = bool(body.stream_options and body.stream_options.include_usage)
            return run, Reply(run, manager.info.name, int(time.time()), asked.ignored, asked.notes, include_usage)

        return await answering.answer(request, begin, bool(body.stream))

    return (router,)
