"""The shapes of responses, for the OpenAPI document. schemathesis checks the responses against them in a test."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel

from app.api.requests import MessageToolCall

Tier = Literal["device", "host", "disk", "engine", "cold"]


class ErrorDetails(BaseModel):
    message: str
    type: str
    param: str | None
    code: str | None


class Error(BaseModel):
    """Every refusal has this shape."""

    error: ErrorDetails


class AnswerMessage(BaseModel):
    role: Literal["assistant"]
    content: str | None
    refusal: None
    reasoning_content: str | None = None
    tool_calls: list[MessageToolCall] | None = None


class TopLogprob(BaseModel):
    token: str
    logprob: float
    bytes: list[int] | None


class TokenLogprob(TopLogprob):
    top_logprobs: list[TopLogprob]


class Logprobs(BaseModel):
    content: list[TokenLogprob]
    refusal: None


class Choice(BaseModel):
    index: Literal[0]
    message: AnswerMessage
    logprobs: Logprobs | None
    finish_reason: Literal["stop", "length", "tool_calls"]


class PromptTokensDetails(BaseModel):
    cached_tokens: int | None


class Usage(BaseModel):
    """`cached_tokens` came from a KV: they were not computed for this request. Null where a remote engine does not
    report them."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails


class Parting(BaseModel):
    """The place where the history parts from the one that is kept: its first token that differs, counted from 1, of as
    many. `section` is "system text", "tools", "message", "prompt" or "what the chat template writes"; `message` is
    counted from 1 without the system text. `before` and `after` are a few words of the kept text and of the sent one.
    `read_again` of the tokens that were fed stand in both. `place` says it in words."""

    token: int
    of: int
    section: str
    tool: str | None
    message: int | None
    role: str | None
    before: str
    after: str
    is_date: bool
    read_again: int
    place: str


class Receipt(BaseModel):
    """What the turn cost. `session_id` is the conversation it belongs to; `miss_reason` says why more tokens were fed
    than the turn added. Of the reused tokens, `copied` came from another conversation, `copied_from`; `shared_wait_ms`
    of the wait went by while another request had the same beginning read. `stored` is false while the answer is only in
    the server's memory, because its disk is full or broken. `fed` and `reused` are null where a remote engine does not
    report them. `ignored` names the fields of the request that say nothing about the answer and changed nothing;
    `notes` are sentences about how the request was honoured."""

    session_id: str
    fed: int | None
    reused: int | None
    tier_before: Tier
    ttft_ms: float | None
    waited_ms: float
    saved_ms: float
    copied: int
    copied_from: str | None
    shared_wait_ms: float
    miss_reason: str | None
    miss_detail: str | None
    parting: Parting | None
    stored: bool
    ignored: list[str]
    notes: list[str]


class ChatCompletion(BaseModel):
    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    system_fingerprint: None
    choices: list[Choice]
    usage: Usage
    keepwarm: Receipt


class Model(BaseModel):
    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    type: Literal["model"]
    display_name: str
    created_at: str
    context_window: int


class ModelList(BaseModel):
    object: Literal["list"]
    data: list[Model]
    first_id: str
    last_id: str
    has_more: Literal[False]


class HeldMemory(BaseModel):
    """How much of a session one tier holds: `tokens` and `used_bytes` of all its branches together, what they have in
    common once, and of these `branch_tokens` and `branch_bytes` of the current branch."""

    tokens: int
    used_bytes: int
    branch_tokens: int
    branch_bytes: int
    reserved_bytes: int


class MemoryElsewhere(BaseModel):
    """What a remote engine had of a session after its last answer, and may have dropped since."""

    tokens: int


class Check(BaseModel):
    """The newest verification. `agrees` is None while it runs, or when there was nothing to verify."""

    is_running: bool
    agrees: bool | None
    sentence: str
    at: float


class Session(BaseModel):
    """A conversation and what its memory costs. `predicted_ttft_ms` expects a 32-token message."""

    id: str
    object: Literal["session"]
    title: str
    tier: Tier
    tokens: int
    last_used_at: float
    is_running: bool
    is_pinned: bool
    predicted_ttft_ms: float
    cold_ttft_ms: float
    device: HeldMemory
    host: HeldMemory
    disk: HeldMemory
    engine: MemoryElsewhere
    check: Check | None


class SessionList(BaseModel):
    object: Literal["list"]
    data: list[Session]
    has_more: bool


class Deleted(BaseModel):
    id: str
    object: Literal["session.deleted"]
    deleted: Literal[True]


REFUSALS: dict[int | str, dict[str, Any]] = {
    400: {"model": Error, "description": "The request cannot be fulfilled; the message says why."},
    401: {"model": Error, "description": "A valid API key is needed."},
    403: {"model": Error, "description": "Without any key only programs on this machine are answered."},
    404: {"model": Error, "description": "No such model or session for this key."},
    408: {"model": Error, "description": "The request's body arrived too slowly."},
    409: {
        "model": Error,
        "description": "Requests change this session faster than they can be placed. Retry-After says when.",
    },
    413: {"model": Error, "description": "The request is too large."},
    415: {"model": Error, "description": "The body is compressed, or is not JSON."},
    422: {"model": Error, "description": "Not used: an invalid request is a 400."},
    429: {"model": Error, "description": "Too many requests of this key are open. Retry-After says when to retry."},
    500: {"model": Error, "description": "The answer failed."},
    503: {"model": Error, "description": "The server is shutting down or cannot work. Retry-After says when to retry."},
}
