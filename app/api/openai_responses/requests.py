"""What a client may send to `/v1/responses` and `/v1/conversations`."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, ConfigDict, Field

from app.api.requests import MOST_MESSAGES, MOST_PARTS, MOST_TOOLS, NAME_PATTERN, Arguments, Strict, Whole
from sessions.text import clean_exactly

MOST_ADDED = 20  # items at a time, as in OpenAI's API


class InputText(Strict):
    """`annotations` and `logprobs` come back from clients that resend an answer."""

    type: Literal["input_text", "output_text", "text", "summary_text", "reasoning_text"]
    text: str
    annotations: Any = None
    logprobs: Any = None


class InputRefusal(Strict):
    type: Literal["refusal"]
    refusal: str


class InputMedia(Strict):
    """A picture, sound or a file, which the model cannot read."""

    model_config = ConfigDict(strict=True, extra="ignore")

    type: Literal["input_image", "input_audio", "input_file"]


Part = Annotated[InputText | InputRefusal | InputMedia, Field(discriminator="type")]
Parts = Annotated[list[Part], Field(max_length=MOST_PARTS, fail_fast=True)]


class Item(Strict):
    """What every item may have. Ids and states of items say nothing that their order does not."""

    id: str | None = None
    status: str | None = None


class MessageItem(Item):
    type: Literal["message"] = "message"
    role: Literal["system", "developer", "user", "assistant"]
    content: str | Parts
    phase: str | None = None


class CallItem(Item):
    type: Literal["function_call"]
    call_id: str
    name: str
    arguments: Arguments


class CallOutputItem(Item):
    type: Literal["function_call_output"]
    call_id: str
    output: str | Parts


class ReasoningItem(Item):
    """An answer's thoughts. Encrypted ones of another server cannot be read."""

    type: Literal["reasoning"]
    summary: Parts | None = None
    content: Parts | None = None
    encrypted_content: str | None = None


ITEMS: dict[str, type[MessageItem | CallItem | CallOutputItem | ReasoningItem]] = {
    "message": MessageItem,
    "function_call": CallItem,
    "function_call_output": CallOutputItem,
    "reasoning": ReasoningItem,
}


class FunctionTool(Strict):
    """A function. Other types are tools that OpenAI's servers run, which are refused."""

    type: str
    name: str | None = Field(default=None, min_length=1, max_length=200, pattern=NAME_PATTERN)
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class StreamOptions(Strict):
    """Obfuscation is not done here, and nothing else can be asked for."""


class ResponsesRequest(Strict):
    """An input to answer. The conversation with the longest matching beginning is continued, or the one that is
    named."""

    model: str | None = Field(default=None, description="An id that GET /v1/models lists.")
    input: str | Annotated[list[dict[str, Any]], Field(max_length=MOST_MESSAGES, fail_fast=True)] = Field(
        description="A text, or items of type message, function_call, function_call_output and reasoning."
    )
    instructions: str | None = Field(default=None, description="The system prompt of this response alone.")
    previous_response_id: str | None = None
    conversation: str | dict[str, Any] | None = Field(default=None, description="An id of /v1/conversations.")
    store: bool | None = Field(default=True, description="false: the response cannot be named later.")
    stream: bool | None = False
    stream_options: StreamOptions | None = None
    tools: Annotated[list[FunctionTool], Field(max_length=MOST_TOOLS, fail_fast=True)] | None = None
    tool_choice: Any = Field(default=None, description='"auto", "none", "required" or {"type": "function", "name"}.')
    parallel_tool_calls: bool | None = Field(default=None, description="false: an answer ends after its first call.")
    text: dict[str, Any] | None = Field(default=None, description="`format` of type text, json_object or json_schema.")
    reasoning: dict[str, Any] | None = Field(default=None, description="`effort`.")
    max_output_tokens: Whole | None = Field(default=None, ge=-1, description="None or -1: up to the model's context.")
    temperature: float | None = Field(default=None, ge=0, le=5)
    top_p: float | None = Field(default=None, ge=0, le=1)
    top_k: Whole | None = Field(default=None, ge=-1, description="Not part of OpenAI's API.")
    min_p: float | None = Field(default=None, ge=0, le=1, description="Not part of OpenAI's API.")
    seed: Whole | None = Field(default=None, ge=-(2**63), le=2**63 - 1, description="Not part of OpenAI's API.")
    top_logprobs: Whole | None = Field(default=None, ge=0, le=20)
    include: list[str] | None = None
    metadata: dict[str, Any] | None = Field(default=None, max_length=16)
    prompt_cache_key: str | None = Field(default=None, min_length=1, max_length=256)
    truncation: Literal["auto", "disabled"] | None = None
    background: bool | None = Field(default=False, description="Must be false.")
    max_tool_calls: Whole | None = Field(default=None, description="About OpenAI's own tools: without effect.")
    chat_template_kwargs: dict[str, Any] | None = None
    enable_thinking: bool | None = None


def _storable(found: Any) -> Any:
    return clean_exactly(found) if isinstance(found, str) else found


Metadata = Annotated[
    dict[
        Annotated[str, BeforeValidator(_storable), Field(max_length=64)],
        Annotated[str, BeforeValidator(_storable), Field(max_length=512)],
    ],
    Field(max_length=16),
]
AddedItems = Annotated[list[dict[str, Any]], Field(max_length=MOST_ADDED, fail_fast=True)]


class ConversationRequest(Strict):
    """A conversation that responses name, with its first items."""

    items: AddedItems | None = None
    metadata: Metadata | None = None


class MetadataRequest(Strict):
    """What a client keeps with a conversation, in place of what it kept before."""

    metadata: Metadata | None


class ItemsRequest(Strict):
    """Items that a conversation goes on with, without an answer."""

    items: AddedItems
