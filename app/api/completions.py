"""`POST /v1/chat/completions`."""

from __future__ import annotations

import time
from collections import Counter
from typing import TYPE_CHECKING

from fastapi import APIRouter
from fastapi.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from app.api import streams
from app.api.answers import Reply
from app.api.problems import RETRY_BUSY_S, Problem
from app.api.requests import ChatCompletionRequest
from app.api.responses import REFUSALS, ChatCompletion
from app.api.translate import chat_request
from sessions.runs import Run
from sessions.types import MessageView

if TYPE_CHECKING:
    from app.wiring import House

MOST_OPEN_REQUESTS = 64  # of one key-holder; the others' turns come no sooner by its queueing more
CLIENT_GONE = 499  # nobody reads it; the log does

EVENTS = {
    "description": "The completion, or with `stream` server-sent events of `chat.completion.chunk` objects.",
    "content": {"text/event-stream": {"schema": {"type": "string"}}},
}


def completions_router(house: House) -> APIRouter:
    """The route. Everything it remembers is the number of open requests, on the event loop alone."""
    router, manager, open_requests = APIRouter(), house.manager, Counter[str]()

    @router.post(
        "/chat/completions",
        summary="Answer a conversation",
        response_model=ChatCompletion,
        responses={**REFUSALS, 200: EVENTS},
    )
    async def complete(body: ChatCompletionRequest, request: Request) -> Response:
        owner_id = await run_in_threadpool(house.callers.owner_of, request)
        if open_requests[owner_id] >= MOST_OPEN_REQUESTS:
            raise Problem(429, f"{MOST_OPEN_REQUESTS} requests of yours are open already.", "too_many_requests",
                          retry_after_s=RETRY_BUSY_S)  # fmt: skip
        open_requests[owner_id] += 1

        def ended(_: MessageView | None = None) -> None:
            open_requests[owner_id] -= 1

        try:
            reply = Reply(await run_in_threadpool(begin, owner_id, body), manager.info.name, int(time.time()))
        except BaseException:
            ended()
            raise
        if body.stream:
            include_usage = bool(body.stream_options and body.stream_options.include_usage)
            return streams.EventStream(streams.chunks(reply, manager, include_usage, ended))
        try:
            message = await streams.answer_of(reply.run, manager, request)
        finally:
            ended()
        if message is None:
            return Response(status_code=CLIENT_GONE)
        return JSONResponse(reply.whole(message, manager.completions.message(reply.run, message.text)))

    def begin(owner_id: str, body: ChatCompletionRequest) -> Run:
        asked = chat_request(body, manager.info, manager.completions.takes_tools)
        return manager.completions.begin(owner_id, asked)

    return router
