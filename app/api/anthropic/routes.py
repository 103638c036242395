"""`POST /v1/messages` and `/v1/messages/count_tokens`."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from app.api.answering import Answering
from app.api.anthropic.answers import MessageReply
from app.api.anthropic.requests import CountRequest, MessagesRequest
from app.api.anthropic.responses import ANTHROPIC_REFUSALS, AnthropicAnswer, Count
from app.api.anthropic.translation import NAMES, AskedMessage, chat_of
from app.api.json_route import json_route
from app.api.translation.request import Translated
from app.api.translation.unsupported import own_names, renamed
from app.http.bodies import Bodies
from sessions.turns.run import Run

if TYPE_CHECKING:
    from app.services import Services

EVENTS = {
    "description": "The message, or with `stream` server-sent events from `message_start` to `message_stop`.",
    "content": {"text/event-stream": {"schema": {"type": "string"}}},
}


def anthropic_routers(services: Services, bodies: Bodies, answering: Answering) -> tuple[APIRouter, ...]:
    """One for each shape of body. Clients with beta features add `beta=true`, which changes nothing."""
    answers, counts = (
        APIRouter(route_class=json_route(services, bodies, shape)) for shape in (MessagesRequest, CountRequest)
    )
    manager = services.manager

    @answers.post(
        "/messages",
        summary="Answer a conversation, as Anthropic's API does",
        response_model=AnthropicAnswer,
        responses={**ANTHROPIC_REFUSALS, 200: EVENTS},
    )
    async def answer(body: MessagesRequest, request: Request, beta: str | None = None) -> Response:
        def begin(owner_id: str) -> tuple[Run, MessageReply]:
            asked, found = translated(body)
            run = manager.completions.begin(owner_id, found.request)
            ignored, notes = (*asked.ignored, *own_names(found.ignored, NAMES)), (*asked.notes, *found.notes)
            return run, MessageReply(run, manager.info.name, ignored, notes, asked.marks_cache, manager.info.keeps_kv)

        return await answering.answer(request, begin, bool(body.stream))

    @counts.post(
        "/messages/count_tokens",
        summary="The number of a prompt's tokens",
        response_model=Count,
        responses=ANTHROPIC_REFUSALS,
    )
    async def count(body: CountRequest, request: Request, beta: str | None = None) -> Response:
        return await answering.compute(request, partial(counted, body))

    def counted(body: CountRequest, owner_id: str) -> dict[str, Any]:
        _, found = translated(body)
        return {"input_tokens": len(manager.completions.prompt_ids(owner_id, found.request))}

    def translated(body: CountRequest) -> tuple[AskedMessage, Translated]:
        with renamed(NAMES):
            asked = chat_of(body, manager.completions.template)
            return asked, answering.translated(asked.chat)

    return answers, counts
