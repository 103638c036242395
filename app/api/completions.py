"""`POST /v1/chat/completions`: answers a conversation."""

from __future__ import annotations

import logging
import time
from functools import partial
from typing import TYPE_CHECKING

from fastapi import APIRouter
from fastapi.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from app.api import streams
from app.api.answers import Reply
from app.api.json_route import CLIENT_GONE, json_route
from app.api.line import Line
from app.api.requests import ChatCompletionRequest
from app.api.responses import REFUSALS, ChatCompletion
from app.api.translation.request import Translated, chat_request
from app.http.bodies import Bodies
from sessions.turns.run import Run
from sessions.types import MessageView

if TYPE_CHECKING:
    from app.services import Services

log = logging.getLogger(__name__)

EVENTS = {
    "description": "The completion, or with `stream` server-sent events of `chat.completion.chunk` objects.",
    "content": {"text/event-stream": {"schema": {"type": "string"}}},
}


def completions_router(services: Services, bodies: Bodies, line: Line) -> APIRouter:
    """The route. Its only state is the line of open requests."""
    router = APIRouter(route_class=json_route(services, bodies, ChatCompletionRequest))
    manager, completions = services.manager, services.manager.completions

    @router.post(
        "/chat/completions",
        summary="Answer a conversation",
        response_model=ChatCompletion,
        responses={**REFUSALS, 200: EVENTS},
    )
    async def complete(body: ChatCompletionRequest, request: Request) -> Response:
        owner_id = request.state.owner_id
        if line.is_full(owner_id):
            await request.state.body_held.aclose()  # it would keep others' large bodies waiting
            if not await streams.until_gone(line.enter(owner_id), request.receive):
                return Response(status_code=CLIENT_GONE)
        else:
            await line.enter(owner_id)

        def ended(run: Run | None = None, message: MessageView | None = None) -> None:
            line.leave(owner_id)
            if run is not None:
                _log(owner_id, run, message)

        try:
            run, asked = await run_in_threadpool(begin, owner_id, body)
            await request.state.body_held.aclose()  # its text is tokenised: the next large body may be parsed
        except BaseException:
            ended()
            raise
        reply = Reply(run, manager.info.name, int(time.time()), asked.ignored, asked.notes)
        if body.stream:
            include_usage = bool(body.stream_options and body.stream_options.include_usage)
            return streams.EventStream(streams.chunks(reply, manager, include_usage, partial(ended, run)))
        message = None
        try:
            message = await streams.answer_of(run, manager, request)
        finally:
            ended(run, message)
        if message is None:
            return Response(status_code=CLIENT_GONE)
        return JSONResponse(reply.whole(message, completions.message(run, message.text)))

    def begin(owner_id: str, body: ChatCompletionRequest) -> tuple[Run, Translated]:
        asked = chat_request(body, manager.info, services.names, completions.template, completions.grammar_refusal)
        return completions.begin(owner_id, asked.request), asked

    return router


def _log(owner_id: str, run: Run, message: MessageView | None) -> None:
    """Logs what a completion cost and how it ended: "gone" if its client disconnected first."""
    found = message.receipt if message else None
    log.info(
        "completion owner=%s session=%s status=%s fed=%s reused=%s sampled=%s ttft_s=%s miss=%s",
        *(owner_id, run.conversation_id, message.status.value if message else "gone"),
        *((found.fed_tokens, found.reused_tokens, found.sampled_tokens) if found else (None, None, None)),
        *((found.ttft_s, found.miss_reason) if found else (None, None)),
    )
