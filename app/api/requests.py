"""What a client may send, as in OpenAI's API. Types are strict. `translate` refuses fields that cannot be honoured;
fields that are not here end in `other_fields`, which refuses them or names them in the response."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

MOST_MESSAGES = 20_000
MOST_PARTS = 20_000
MOST_TOOLS = 1_000
# Every list fails fast: one wrong element is reported, not a hundred thousand.


class _Strict(BaseModel):
    model_config = ConfigDict(strict=True, extra="allow")


class TextPart(_Strict):
    """A piece of a message's text."""

    type: Literal["text"]
    text: str


class RefusalPart(_Strict):
    type: Literal["refusal"]
    refusal: str


class FunctionCall(_Strict):
    name: str
    arguments: str = Field(description="JSON text, exactly as it was received.")


class MessageToolCall(_Strict):
    id: str
    type: Literal["function"] = "function"
    function: FunctionCall


class Message(_Strict):
    """One message. Its text must match an earlier turn exactly for that turn to be reused."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: (
        str
        | Annotated[
            list[Annotated[TextPart | RefusalPart, Field(discriminator="type")]],
            Field(max_length=MOST_PARTS, fail_fast=True),
        ]
        | None
    ) = None
    name: str | None = None
    tool_calls: Annotated[list[MessageToolCall], Field(max_length=MOST_TOOLS, fail_fast=True)] | None = None
    tool_call_id: str | None = None


class FunctionDefinition(_Strict):
    name: str = Field(min_length=1, max_length=64, pattern=r"^[a-zA-Z0-9_.-]+$")
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class Tool(_Strict):
    type: Literal["function"]
    function: FunctionDefinition


class StreamOptions(_Strict):
    include_usage: bool = False


class ChatCompletionRequest(_Strict):
    """A chat completion. Without `prompt_cache_key` the conversation with the longest matching beginning is
    continued."""

    model: str = Field(description="An id that GET /v1/models lists.")
    messages: Annotated[list[Message], Field(min_length=1, max_length=MOST_MESSAGES, fail_fast=True)]
    stream: bool | None = False
    stream_options: StreamOptions | None = None
    prompt_cache_key: str | None = Field(
        default=None, min_length=1, max_length=256, description="The client's own name for the conversation."
    )
    max_tokens: int | None = Field(default=None, ge=1, le=1_000_000)
    max_completion_tokens: int | None = Field(default=None, ge=1, le=1_000_000)
    temperature: float | None = Field(default=None, ge=0, le=5)
    top_p: float | None = Field(default=None, gt=0, le=1)
    top_k: int | None = Field(
        default=None, ge=0, le=1_000_000, description="Not part of OpenAI's API: number of tokens kept, 0 is off."
    )
    min_p: float | None = Field(default=None, ge=0, le=1, description="Not part of OpenAI's API.")
    repetition_penalty: float | None = Field(default=None, ge=0.1, le=10, description="Not part of OpenAI's API.")
    presence_penalty: float | None = Field(default=None, ge=-2, le=2)
    frequency_penalty: float | None = Field(default=None, ge=-2, le=2)
    seed: int | None = Field(default=None, ge=-(2**63), le=2**63 - 1)
    stop: str | Annotated[list[str], Field(fail_fast=True)] | None = None
    logprobs: bool | None = False
    top_logprobs: int | None = Field(default=None, ge=0, le=20)
    tools: Annotated[list[Tool], Field(max_length=MOST_TOOLS, fail_fast=True)] | None = None
    tool_choice: Any = Field(default=None, description='"auto" (the default with tools) or "none".')
    n: int | None = Field(default=1, description="Must be 1.")
    response_format: Any = Field(default=None, description='{"type": "text"} or null.')
    logit_bias: dict[str, Any] | None = Field(default=None, description="Empty or null.")
    modalities: Annotated[list[str], Field(fail_fast=True)] | None = Field(
        default=None, description='["text"] or null.'
    )
    audio: Any = Field(default=None, description="Must be null.")
    functions: Any = Field(default=None, description="Must be null: use `tools`.")
    function_call: Any = Field(default=None, description="Must be null: use `tool_choice`.")
    web_search_options: Any = Field(default=None, description="Must be null.")
