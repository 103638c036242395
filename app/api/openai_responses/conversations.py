"""`/v1/conversations`: names a conversation, lists what was said in it, and adds to it without an answer."""

from __future__ import annotations

import contextlib
import json
import uuid
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from fastapi import APIRouter
from fastapi.concurrency import run_in_threadpool
from starlette.requests import Request

from app.api.answering import Answering
from app.api.fields.other_fields import ignored_fields
from app.api.json_route import json_route
from app.api.openai_responses.input_items import (
    After,
    Included,
    IncludedToo,
    Limit,
    Order,
    items_of_history,
    list_of,
    page_of,
    refuse_logprobs,
)
from app.api.openai_responses.items import AnyItem, items_of, messages_of
from app.api.openai_responses.names import CONVERSATION, conversation_id_of
from app.api.openai_responses.references import resolved
from app.api.openai_responses.requests import CallItem, ConversationRequest, ItemsRequest, MetadataRequest
from app.api.openai_responses.responses import AddedItemList, ConversationObject, DeletedConversation, InputItemList
from app.api.responses import REFUSALS
from app.api.translation.messages import text_of
from app.api.translation.unsupported import unsupported
from app.http.bodies import Bodies
from app.problems import Problem
from sessions.errors import ContextFull, ConversationNotFound, MessageRefused
from sessions.store.records import Conversation
from sessions.store.tables.added_items import AddedItem
from sessions.text import clean_exactly

if TYPE_CHECKING:
    from app.services import Services

_PREFIXES = {"message": "msg", "function_call": "fc", "function_call_output": "fco", "reasoning": "rs"}


def conversations_routers(services: Services, bodies: Bodies, answering: Answering) -> tuple[APIRouter, ...]:
    """One for each shape of body, and one without."""
    begun, changed, added = (
        APIRouter(route_class=json_route(services, bodies, shape), responses=REFUSALS)
        for shape in (ConversationRequest, MetadataRequest, ItemsRequest)
    )
    kept = APIRouter(responses=REFUSALS)
    names = services.manager.responses

    def made(raw: Sequence[dict[str, Any]], owner_id: str, ignored: list[str]) -> list[dict[str, Any]]:
        """Items as they are kept and shown, with ids of our own. Raises `Problem` for what no response could be asked
        with."""
        found = resolved(raw, names, owner_id, "items")
        assert not isinstance(found, str)
        shapes = items_of(found, ignored, "items")
        with _about_items():
            for message in messages_of(shapes):
                names.refuse_unreadable(text_of(message))
        return [_item(shape, item) for shape, item in zip(shapes, found, strict=True)]

    @begun.post("/conversations", summary="Begin a conversation", response_model=ConversationObject)
    async def create(body: ConversationRequest, request: Request) -> dict[str, Any]:
        def begin() -> dict[str, Any]:
            ignored = [*ignored_fields(body)]
            owner_id = request.state.owner_id
            items = made(body.items or [], owner_id, ignored)
            return _object(names.new_conversation(owner_id, _dumped(body.metadata), _stored(items)), ignored)

        return await run_in_threadpool(begin)

    @changed.post("/conversations/{conversation_id}", summary="Change its metadata", response_model=ConversationObject)
    async def update(conversation_id: str, body: MetadataRequest, request: Request) -> dict[str, Any]:
        def change() -> dict[str, Any]:
            ignored = [*ignored_fields(body)]
            owner_id, own_id = request.state.owner_id, _own_id(conversation_id)
            names.set_metadata(owner_id, own_id, _dumped(body.metadata))
            return _object(names.conversation(owner_id, own_id), ignored)

        return await run_in_threadpool(change)

    @kept.get("/conversations/{conversation_id}", summary="Describe a conversation", response_model=ConversationObject)
    def describe(conversation_id: str, request: Request) -> dict[str, Any]:
        owner_id = services.callers.owner_of(request)
        return _object(names.conversation(owner_id, _own_id(conversation_id)))

    @kept.delete("/conversations/{conversation_id}", summary="Delete it", response_model=DeletedConversation)
    def delete(conversation_id: str, request: Request) -> dict[str, Any]:
        services.manager.delete(services.callers.owner_of(request), _own_id(conversation_id))
        return {"id": conversation_id, "object": "conversation.deleted", "deleted": True}

    @added.post(
        "/conversations/{conversation_id}/items", summary="Add items without an answer", response_model=AddedItemList
    )
    async def add(
        conversation_id: str,
        body: ItemsRequest,
        request: Request,
        include: Included = (),
        include_too: IncludedToo = (),
    ) -> dict[str, Any]:
        def extend() -> dict[str, Any]:
            refuse_logprobs(*include, *include_too)
            ignored = [*ignored_fields(body)]
            owner_id, own_id = request.state.owner_id, _own_id(conversation_id)
            items = made(body.items, owner_id, ignored)
            with _about_items():
                names.add_items(owner_id, own_id, _stored(items))
            return {**list_of(items, has_more=False), "keepwarm": {"ignored": ignored}}

        return await run_in_threadpool(extend)

    def said_in(request: Request, conversation_id: str) -> tuple[str, list[dict[str, Any]]]:
        """(the owner, all items of the conversation): those of its messages, and those that were added since."""
        owner_id, own_id = services.callers.owner_of(request), _own_id(conversation_id)
        said = names.conversation_history(owner_id, own_id, True)
        items = items_of_history(f"{CONVERSATION}{own_id}", (*said.head, *said.messages, *said.missed))
        return owner_id, [*items, *(json.loads(item.body) for item in names.added_items(owner_id, own_id))]

    @kept.get("/conversations/{conversation_id}/items", summary="List what was said", response_model=InputItemList)
    def list_items(
        conversation_id: str,
        request: Request,
        limit: Limit = 20,
        order: Order = "desc",
        after: After = None,
        include: Included = (),
        include_too: IncludedToo = (),
    ) -> dict[str, Any]:
        _, items = said_in(request, conversation_id)
        refuse_logprobs(*include, *include_too)
        return page_of(items, limit, order, after)

    @kept.get("/conversations/{conversation_id}/items/{item_id}", summary="Retrieve an item")
    def retrieve_item(
        conversation_id: str,
        item_id: str,
        request: Request,
        include: Included = (),
        include_too: IncludedToo = (),
    ) -> dict[str, Any]:
        _, items = said_in(request, conversation_id)
        refuse_logprobs(*include, *include_too)
        return _named(items, item_id)

    @kept.delete(
        "/conversations/{conversation_id}/items/{item_id}",
        summary="Delete an item that no response followed",
        response_model=ConversationObject,
    )
    def delete_item(conversation_id: str, item_id: str, request: Request) -> dict[str, Any]:
        owner_id, items = said_in(request, conversation_id)
        own_id = _own_id(conversation_id)
        if not names.delete_added_item(owner_id, own_id, _named(items, item_id)["id"]):
            sentence = "A response followed this item, and what was answered is kept whole."
            raise unsupported("item_id", f"{sentence} Begin another conversation with the items that shall stay.")
        return _object(names.conversation(owner_id, own_id))

    return begun, changed, added, kept


@contextlib.contextmanager
def _about_items() -> Iterator[None]:
    """Inside the block a refusal speaks of the field that has the items."""
    try:
        yield
    except ContextFull as error:
        raise Problem(400, str(error), "context_length_exceeded", "items") from None
    except MessageRefused as error:
        raise Problem(400, str(error), "invalid_value", "items") from None


def _item(shape: AnyItem, item: dict[str, Any]) -> dict[str, Any]:
    kind = shape.type
    own: dict[str, Any] = {
        "id": f"{_PREFIXES[kind]}_{uuid.uuid4().hex}",
        "type": kind,
        "status": item.get("status") or "completed",
    }
    content = item.get("content")
    if kind == "message" and isinstance(content, str):
        is_answer = item["role"] == "assistant"
        more: dict[str, Any] = {"annotations": [], "logprobs": []} if is_answer else {}
        own["content"] = [{"type": "output_text" if is_answer else "input_text", "text": content, **more}]
    if isinstance(shape, CallItem):
        own["arguments"] = shape.arguments  # as text, however it was sent
    whole = {**{name: value for name, value in item.items() if value is not None}, **own}
    return dict(json.loads(clean_exactly(json.dumps(whole, ensure_ascii=False))))


def _stored(items: Sequence[dict[str, Any]]) -> list[AddedItem]:
    return [AddedItem(item["id"], json.dumps(item, ensure_ascii=False)) for item in items]


def _named(items: Sequence[dict[str, Any]], item_id: str) -> dict[str, Any]:
    for item in items:
        if item["id"] == item_id:
            return item
    raise Problem(
        404,
        "This item is not in the conversation. Items have other ids once a response followed them: list them again.",
        "item_not_found",
    )


def _own_id(conversation_id: str) -> str:
    try:
        return conversation_id_of(conversation_id)
    except Problem:
        raise ConversationNotFound("This conversation does not exist.") from None


def _dumped(metadata: dict[str, str] | None) -> str:
    return json.dumps(metadata, ensure_ascii=False) if metadata else ""


def _object(found: Conversation, ignored: Sequence[str] | None = None) -> dict[str, Any]:
    shown = {
        "id": f"{CONVERSATION}{found.conversation_id}",
        "object": "conversation",
        "created_at": int(found.created_at),
        "metadata": json.loads(found.metadata) if found.metadata else {},
    }
    return shown if ignored is None else {**shown, "keepwarm": {"ignored": [*ignored]}}
