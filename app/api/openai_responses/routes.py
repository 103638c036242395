"""`/v1/responses`: answers an input, retrieves and deletes a response. `/v1/conversations`: names a conversation."""

from __future__ import annotations

import time
import uuid
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any

from fastapi import APIRouter, Query
from fastapi.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response

from app.api import streams
from app.api.answering import Answering
from app.api.fields.other_fields import ignored_fields
from app.api.json_route import json_route
from app.api.openai_responses import output
from app.api.openai_responses.answers import ResponseReply
from app.api.openai_responses.input_items import Order, page_of
from app.api.openai_responses.names import CONVERSATION, OF_RESPONSES, RESPONSE, UNNAMED, conversation_id_of
from app.api.openai_responses.requests import ConversationRequest, ResponsesRequest
from app.api.openai_responses.responses import (
    ConversationObject,
    DeletedConversation,
    DeletedResponse,
    InputItemList,
    ResponseObject,
)
from app.api.openai_responses.translation import LOGPROBS, NAMES, chat_of
from app.api.responses import REFUSALS
from app.api.translation.unsupported import own_names, renamed, unsupported
from app.http.bodies import Bodies
from app.problems import Problem
from sessions.errors import ConversationNotFound
from sessions.turns.run import Run
from sessions.types import MessageStatus

if TYPE_CHECKING:
    from app.services import Services

Limit = Annotated[int, Query(ge=1, le=100)]
After = Annotated[str | None, Query(max_length=200, description="The last id of the previous page.")]
Included = Annotated[Sequence[str], Query(max_length=20)]
IncludedToo = Annotated[
    Sequence[str], Query(alias="include[]", max_length=20, description="As OpenAI's clients say it.")
]
STOPS_WITHIN_S = 10.0  # an answer ends within a step of the model
EVENTS = {
    "description": "The response, or with `stream` server-sent events from `response.created` to `response.completed`.",
    "content": {"text/event-stream": {"schema": {"type": "string"}}},
}


def responses_routers(services: Services, bodies: Bodies, answering: Answering) -> tuple[APIRouter, ...]:
    """One for each shape of body, and one without."""
    answers, conversations = (
        APIRouter(route_class=json_route(services, bodies, shape)) for shape in (ResponsesRequest, ConversationRequest)
    )
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
            try:
                with renamed(NAMES):
                    asked = chat_of(body, manager.responses, owner_id)
                    found = answering.translated(asked.chat)
            except ConversationNotFound as error:
                raise _unknown(body, error) from None
            run = manager.completions.begin(owner_id, replace(found.request, conversation_id=asked.conversation_id))
            response = output.skeleton(body, response_id, manager.info.name, created, asked.conversation_id)
            is_named = body.store is not False
            if is_named or asked.conversation_id:  # the conversation's later responses begin like this one
                kept_id = response_id if is_named else f"{UNNAMED}{uuid.uuid4().hex}"
                try:
                    manager.responses.keep(kept_id, run, asked.head, response)
                except BaseException:
                    manager.stop_run(run)  # its client gets an error, and nobody follows it
                    raise
            ignored = (*asked.ignored, *own_names(found.ignored, NAMES))
            return run, ResponseReply(run, response, count, ignored, found.notes)

        return await answering.answer(request, begin, bool(body.stream))

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
        _refuse_logprobs(*include, *include_too)
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
        _refuse_logprobs(*include, *include_too)
        said = manager.responses.input_of(owner_id, _own_name(response_id))
        return page_of(response_id, said, limit, order, after)

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

    @conversations.post("/conversations", summary="Begin a conversation", response_model=ConversationObject)
    async def create(body: ConversationRequest, request: Request) -> dict[str, Any]:
        ignored = [*ignored_fields(body), *(("metadata",) if body.metadata else ())]
        made = await run_in_threadpool(manager.responses.new_conversation, request.state.owner_id)
        return {**_conversation(f"{CONVERSATION}{made}", time.time()), "keepwarm": {"ignored": ignored}}

    @kept.get("/conversations/{conversation_id}", summary="Describe a conversation", response_model=ConversationObject)
    def describe(conversation_id: str, request: Request) -> dict[str, Any]:
        owner_id = services.callers.owner_of(request)
        view = manager.view(owner_id, _own_id(conversation_id))
        return _conversation(conversation_id, view.summary.updated_at)

    @kept.get("/conversations/{conversation_id}/items", summary="List what was said", response_model=InputItemList)
    def conversation_items(
        conversation_id: str,
        request: Request,
        limit: Limit = 20,
        order: Order = "desc",
        after: After = None,
        include: Included = (),
        include_too: IncludedToo = (),
    ) -> dict[str, Any]:
        owner_id = services.callers.owner_of(request)
        _refuse_logprobs(*include, *include_too)
        own_id = _own_id(conversation_id)
        said = manager.responses.conversation_history(owner_id, own_id, True, OF_RESPONSES)
        return page_of(f"{CONVERSATION}{own_id}", (*said.head, *said.messages), limit, order, after)

    @kept.delete("/conversations/{conversation_id}", summary="Delete it", response_model=DeletedConversation)
    def delete_conversation(conversation_id: str, request: Request) -> dict[str, Any]:
        manager.delete(services.callers.owner_of(request), _own_id(conversation_id))
        return {"id": conversation_id, "object": "conversation.deleted", "deleted": True}

    return answers, conversations, kept


def _refuse_logprobs(*included: str) -> None:
    """The other things that can be included are of tools that there are not here, or in a response anyway."""
    if LOGPROBS in included:
        raise unsupported("include", "Log probabilities are not kept: they are in the response itself alone.")


def _own_name(response_id: str) -> str:
    """The name, if it is a response's: other protocols keep names, too."""
    if not response_id.startswith(RESPONSE):
        raise ConversationNotFound("This response does not exist.")
    return response_id


def _own_id(conversation_id: str) -> str:
    try:
        return conversation_id_of(conversation_id)
    except Problem:
        raise ConversationNotFound("This conversation does not exist.") from None


def _conversation(conversation_id: str, at: float) -> dict[str, Any]:
    return {"id": conversation_id, "object": "conversation", "created_at": int(at), "metadata": {}}


def _unknown(body: ResponsesRequest, error: ConversationNotFound) -> Problem:
    if body.previous_response_id is not None:
        return Problem(400, str(error), "previous_response_not_found", "previous_response_id")
    return Problem(404, str(error), "conversation_not_found", "conversation")
