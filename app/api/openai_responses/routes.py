"""`/v1/responses`: answers an input or counts its tokens, retrieves and deletes a response."""

from __future__ import annotations

import contextlib
import time
import uuid
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from fastapi import APIRouter
from fastapi.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response

from app.api import streams
from app.api.answering import Answering
from app.api.json_route import json_route
from app.api.openai_responses import output
from app.api.openai_responses.answers import ResponseReply
from app.api.openai_responses.input_items import (
    After,
    Included,
    IncludedToo,
    Limit,
    Order,
    items_of_history,
    page_of,
    refuse_logprobs,
)
from app.api.openai_responses.names import RESPONSE
from app.api.openai_responses.requests import ResponsesRequest
from app.api.openai_responses.responses import DeletedResponse, InputItemList, InputTokens, ResponseObject
from app.api.openai_responses.translation import NAMES, AskedResponse, chat_of
from app.api.responses import REFUSALS
from app.api.translation.request import Translated
from app.api.translation.unsupported import own_names, renamed
from app.http.bodies import Bodies
from app.problems import Problem, problem_of
from model_runtime.interface.errors import TemplateRefused
from sessions.errors import ContextFull, ConversationNotFound, MessageRefused
from sessions.ledger.response_name import ResponseName
from sessions.turns.run import Run
from sessions.types import MessageStatus

if TYPE_CHECKING:
    from app.services import Services

STOPS_WITHIN_S = 10.0  # an answer ends within a step of the model
EVENTS = {
    "description": "The response, or with `stream` server-sent events from `response.created` to `response.completed`.",
    "content": {"text/event-stream": {"schema": {"type": "string"}}},
}


def responses_routers(services: Services, bodies: Bodies, answering: Answering) -> tuple[APIRouter, ...]:
    """For requests with a body, and without."""
    answers = APIRouter(route_class=json_route(services, bodies, ResponsesRequest))
    kept = APIRouter(responses=REFUSALS)
    manager = services.manager
    count = manager.completions.template.count

    @answers.post(
        "/responses",
        summary="Answer an input, as OpenAI's Responses API does",
        response_model=ResponseObject,
        responses={**REFUSALS, 200: EVENTS},
    )
    async def respond(body: ResponsesRequest, request: Request) -> Response:
        def begin(owner_id: str) -> tuple[Run, ResponseReply]:
            response_id, created = f"{RESPONSE}{uuid.uuid4().hex}", int(time.time())
            asked, found = translated(body, owner_id)
            named = replace(
                found.request,
                conversation_id=asked.conversation_id,
                leaf_id=asked.leaf_id,
                taken_in=asked.taken_in,
                system_items=asked.items,
            )
            response = output.skeleton(body, response_id, manager.info.name, created, asked.conversation_id)
            if body.store is not False:
                named = replace(named, name=ResponseName(response_id, asked.items.head, response))
            with _about_input():
                run = manager.completions.begin(owner_id, named)
            ignored = (*asked.ignored, *own_names(found.ignored, NAMES))
            return run, ResponseReply(run, response, count, ignored, found.notes)

        return await answering.answer(request, begin, bool(body.stream))

    @answers.post(
        "/responses/input_tokens",
        summary="The number of a prompt's tokens",
        response_model=InputTokens,
        responses=REFUSALS,
    )
    async def count_input(body: ResponsesRequest, request: Request) -> Response:
        return await answering.compute(request, partial(counted, body))

    def counted(body: ResponsesRequest, owner_id: str) -> dict[str, Any]:
        _, found = translated(body, owner_id)
        with _about_input():
            prompt_ids = manager.completions.prompt_ids(owner_id, found.request)
        return {"object": "response.input_tokens", "input_tokens": len(prompt_ids)}

    def translated(body: ResponsesRequest, owner_id: str) -> tuple[AskedResponse, Translated]:
        try:
            with renamed(NAMES):
                asked = chat_of(body, manager.responses, owner_id)
                return asked, answering.translated(asked.chat)
        except ConversationNotFound as error:
            raise _unknown(body, error) from None

    def as_it_is(owner_id: str, response_id: str) -> dict[str, Any]:
        found = manager.responses.find(owner_id, response_id)
        is_running = found.message.status is MessageStatus.RUNNING
        items = [] if is_running else output.items(output.ItemIds(response_id), found.said)
        response = output.ended(found.body, found.message, found.finish_reason, items)
        if found.message.receipt is not None:
            cost = found.message.receipt
            thoughts = count(found.said.thoughts)
            response["usage"] = output.usage_of(found.prompt_tokens, cost, cost.sampled_tokens, thoughts)
        return response

    @kept.get("/responses/{response_id}", summary="Retrieve a response", response_model=ResponseObject)
    def retrieve(
        response_id: str, request: Request, include: Included = (), include_too: IncludedToo = ()
    ) -> dict[str, Any]:
        owner_id = services.callers.owner_of(request)
        refuse_logprobs(*include, *include_too)
        return as_it_is(owner_id, _own_name(response_id))

    @kept.get(
        "/responses/{response_id}/input_items",
        summary="List all that was said before a response",
        response_model=InputItemList,
    )
    def input_items(
        response_id: str,
        request: Request,
        limit: Limit = 20,
        order: Order = "desc",
        after: After = None,
        include: Included = (),
        include_too: IncludedToo = (),
    ) -> dict[str, Any]:
        owner_id = services.callers.owner_of(request)
        refuse_logprobs(*include, *include_too)
        said = manager.responses.input_of(owner_id, _own_name(response_id))
        return page_of(items_of_history(response_id, said), limit, order, after)

    @kept.post(
        "/responses/{response_id}/cancel",
        summary="Stop a response that is being written",
        response_model=ResponseObject,
    )
    async def cancel(response_id: str, request: Request) -> dict[str, Any]:
        def stop() -> tuple[str, Run | None]:
            owner_id = services.callers.owner_of(request)
            run = manager.responses.running(owner_id, _own_name(response_id))
            if run is not None:
                manager.stop_run(run)
            return owner_id, run

        owner_id, run = await run_in_threadpool(stop)
        if run is not None:
            await streams.end_of(run, manager, STOPS_WITHIN_S)
        return await run_in_threadpool(as_it_is, owner_id, response_id)

    @kept.delete("/responses/{response_id}", summary="Forget a response's name", response_model=DeletedResponse)
    def delete(response_id: str, request: Request) -> dict[str, Any]:
        manager.responses.forget(services.callers.owner_of(request), _own_name(response_id))
        return {"id": response_id, "object": "response", "deleted": True}

    return answers, kept


@contextlib.contextmanager
def _about_input() -> Iterator[None]:
    """Inside the block a refusal of what is said speaks of the input, where a chat completion has messages."""
    try:
        yield
    except (MessageRefused, ContextFull, TemplateRefused) as error:
        problem = problem_of(error, "")
        raise Problem(problem.status, problem.message, problem.code, "input") from None


def _own_name(response_id: str) -> str:
    """The name, if it is a response's: other protocols keep names, too."""
    if not response_id.startswith(RESPONSE):
        raise ConversationNotFound("This response does not exist.")
    return response_id


def _unknown(body: ResponsesRequest, error: ConversationNotFound) -> Problem:
    if body.previous_response_id is not None:
        return Problem(400, str(error), "previous_response_not_found", "previous_response_id")
    return Problem(404, str(error), "conversation_not_found", "conversation")
