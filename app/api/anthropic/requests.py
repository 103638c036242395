"""What a client may send to `/v1/messages`."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field

from app.api.requests import MOST_MESSAGES, MOST_PARTS, MOST_TOOLS, NAME_PATTERN, Strict, Whole


class TextBlock(Strict):
    type: Literal["text"]
    text: str


class MediaBlock(Strict):
    """A picture or a document, which the model cannot read. Its data are not looked at."""

    model_config = ConfigDict(strict=True, extra="ignore")

    type: Literal["image", "document"]


class ThinkingBlock(Strict):
    """An answer's thoughts. A signature is not needed."""

    type: Literal["thinking"]
    thinking: str
    signature: str | None = None


class RedactedThinkingBlock(Strict):
    """Thoughts that another server encrypted."""

    type: Literal["redacted_thinking"]
    data: str = ""


class ToolUseBlock(Strict):
    type: Literal["tool_use"]
    id: str
    name: str
    input: dict[str, Any]


class ToolResultBlock(Strict):
    type: Literal["tool_result"]
    tool_use_id: str
    content: (
        str
        | Annotated[
            list[Annotated[TextBlock | MediaBlock, Field(discriminator="type")]],
            Field(max_length=MOST_PARTS, fail_fast=True),
        ]
        | None
    ) = None
    is_error: bool | None = False


Block = Annotated[
    TextBlock | MediaBlock | ThinkingBlock | RedactedThinkingBlock | ToolUseBlock | ToolResultBlock,
    Field(discriminator="type"),
]


class AnthropicMessage(Strict):
    role: Literal["user", "assistant", "system"]
    content: str | Annotated[list[Block], Field(max_length=MOST_PARTS, fail_fast=True)]


class AnthropicTool(Strict):
    """A function. `type` names Anthropic's own tools, which are refused."""

    type: str | None = None
    name: str = Field(min_length=1, max_length=200, pattern=NAME_PATTERN)
    description: str | None = None
    input_schema: dict[str, Any] | None = None
    strict: bool | None = None


class CountRequest(Strict):
    """The part of a request that decides its prompt."""

    model: str | None = Field(default=None, description="An id that GET /v1/models lists.")
    messages: Annotated[list[AnthropicMessage], Field(min_length=1, max_length=MOST_MESSAGES, fail_fast=True)]
    system: str | Annotated[list[TextBlock], Field(max_length=MOST_PARTS, fail_fast=True)] | None = None
    tools: Annotated[list[AnthropicTool], Field(max_length=MOST_TOOLS, fail_fast=True)] | None = None
    tool_choice: dict[str, Any] | None = Field(default=None, description="Of type auto, any, tool or none.")
    thinking: dict[str, Any] | None = Field(default=None, description="Of type enabled, adaptive or disabled.")
    output_config: dict[str, Any] | None = Field(default=None, description="`effort` and `format`.")
    output_format: dict[str, Any] | None = Field(default=None, description="An older place of the format.")
    context_management: dict[str, Any] | None = Field(default=None, description="Only edits of thoughts.")


class MessagesRequest(CountRequest):
    """A message to answer. The conversation with the longest matching beginning is continued."""

    max_tokens: Whole = Field(ge=1)
    stream: bool | None = False
    temperature: float | None = Field(default=None, ge=0, le=5)
    top_p: float | None = Field(default=None, ge=0, le=1)
    top_k: Whole | None = Field(default=None, ge=-1)
    stop_sequences: Annotated[list[str], Field(fail_fast=True)] | None = None
