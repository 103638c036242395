"""The shapes of Anthropic's responses, for the OpenAPI document."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel

from app.api.responses import REFUSALS, Receipt


class AnthropicErrorDetails(BaseModel):
    type: str
    message: str


class AnthropicError(BaseModel):
    """Every refusal has this shape."""

    type: Literal["error"]
    error: AnthropicErrorDetails
    request_id: None


class AnthropicUsage(BaseModel):
    """The prompt has as many tokens as the first three together. `cache_read_input_tokens` came from a KV."""

    input_tokens: int
    cache_creation_input_tokens: int
    cache_read_input_tokens: int
    output_tokens: int


class AnthropicAnswer(BaseModel):
    """Blocks are of type thinking, text or tool_use."""

    id: str
    type: Literal["message"]
    role: Literal["assistant"]
    model: str
    content: list[dict[str, Any]]
    stop_reason: Literal["end_turn", "max_tokens", "stop_sequence", "tool_use", "model_context_window_exceeded"]
    stop_sequence: str | None
    usage: AnthropicUsage
    keepwarm: Receipt


class Count(BaseModel):
    input_tokens: int


ANTHROPIC_REFUSALS: dict[int | str, dict[str, Any]] = {
    status: {**refusal, "model": AnthropicError} for status, refusal in REFUSALS.items()
}
