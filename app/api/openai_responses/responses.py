"""The shapes of OpenAI's Responses API, for the OpenAPI document."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel

from app.api.responses import Receipt


class InputTokensDetails(BaseModel):
    """`cached_tokens` came from a KV; `cache_write_tokens` were computed and kept. Null: not reported."""

    cached_tokens: int | None
    cache_write_tokens: int | None


class OutputTokensDetails(BaseModel):
    reasoning_tokens: int


class ResponseUsage(BaseModel):
    input_tokens: int
    input_tokens_details: InputTokensDetails
    output_tokens: int
    output_tokens_details: OutputTokensDetails
    total_tokens: int


class ResponseError(BaseModel):
    code: str
    message: str


class ResponseObject(BaseModel):
    """`output` has items of type reasoning, message and function_call."""

    id: str
    object: Literal["response"]
    created_at: int
    status: Literal["completed", "incomplete", "failed", "cancelled", "in_progress"]
    error: ResponseError | None
    incomplete_details: dict[str, str] | None
    model: str
    output: list[dict[str, Any]]
    usage: ResponseUsage | None
    previous_response_id: str | None
    keepwarm: Receipt | None = None


class InputItemList(BaseModel):
    """`data` has items of type message, function_call, function_call_output and reasoning."""

    object: Literal["list"]
    data: list[dict[str, Any]]
    first_id: str | None
    last_id: str | None
    has_more: bool


class AddedItemList(InputItemList):
    keepwarm: dict[str, list[str]]  # what of the request was ignored


class InputTokens(BaseModel):
    object: Literal["response.input_tokens"]
    input_tokens: int


class DeletedResponse(BaseModel):
    id: str
    object: Literal["response"]
    deleted: Literal[True]


class ConversationObject(BaseModel):
    id: str
    object: Literal["conversation"]
    created_at: int
    metadata: dict[str, Any]
    keepwarm: dict[str, list[str]] | None = None  # what of a request was ignored


class DeletedConversation(BaseModel):
    id: str
    object: Literal["conversation.deleted"]
    deleted: Literal[True]
