"""What a client may send, as in OpenAI's API. Types are strict. `translate` refuses fields that cannot be honoured;
fields that are not here end in `other_fields`, which refuses them or names them in the response."""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from model_runtime.interface.sampling_params import MOST_NAMED_TOKENS

MOST_MESSAGES = 20_000
MOST_PARTS = 20_000
MOST_TOOLS = 1_000
NAME_PATTERN = r"^[^\s\\\"'<>{}\x00-\x1f]+$"  # of a function: names of MCP servers' tools have colons and slashes, too
# Every list fails fast: one wrong element is reported, not a hundred thousand.


def _whole(found: Any) -> Any:
    """8.0 is a whole number, too: some languages write all numbers like this."""
    return int(found) if isinstance(found, float) and found.is_integer() else found


Whole = Annotated[int, BeforeValidator(_whole)]


class Strict(BaseModel):
    """No value is converted. Unknown fields are kept, for `other_fields` to judge."""

    model_config = ConfigDict(strict=True, extra="allow")


class TextPart(Strict):
    """A piece of a message's text."""

    type: Literal["text"]
    text: str


class RefusalPart(Strict):
    type: Literal["refusal"]
    refusal: str


class MediaPart(Strict):
    """A picture, sound or a file, which the model cannot read. Its data are not looked at."""

    model_config = ConfigDict(strict=True, extra="ignore")

    type: Literal["image_url", "input_image", "image", "input_audio", "audio_url", "video_url", "file", "input_file"]


def _as_json(arguments: Any) -> Any:
    """Some clients send the object itself."""
    return json.dumps(arguments, ensure_ascii=False) if isinstance(arguments, dict) else arguments


Arguments = Annotated[str, BeforeValidator(_as_json)]


class FunctionCall(Strict):
    name: str
    arguments: Arguments = Field(description="JSON text, as it was received.")


class MessageToolCall(Strict):
    id: str
    type: Literal["function"] = "function"
    function: FunctionCall


class Message(Strict):
    """One message. Its text must match an earlier turn exactly for that turn to be reused."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: (
        str
        | Annotated[
            list[Annotated[TextPart | RefusalPart | MediaPart, Field(discriminator="type")]],
            Field(max_length=MOST_PARTS, fail_fast=True),
        ]
        | None
    ) = None
    name: str | None = None
    tool_calls: Annotated[list[MessageToolCall], Field(max_length=MOST_TOOLS, fail_fast=True)] | None = None
    tool_call_id: str | None = None
    reasoning_content: str | None = Field(default=None, description="An answer's thoughts, apart from its content.")
    reasoning: str | None = Field(default=None, description="Another name of the same.")
    refusal: str | None = Field(default=None, description="An answer that refused, in place of its content.")


class FunctionDefinition(Strict):
    name: str = Field(min_length=1, max_length=200, pattern=NAME_PATTERN)
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class Tool(Strict):
    type: Literal["function"]
    function: FunctionDefinition


class StreamOptions(Strict):
    include_usage: bool = False


class ChatCompletionRequest(Strict):
    """A chat completion. The conversation with the longest matching beginning is continued."""

    model: str | None = Field(default=None, description="An id that GET /v1/models lists.")
    messages: Annotated[list[Message], Field(min_length=1, max_length=MOST_MESSAGES, fail_fast=True)]
    stream: bool | None = False
    stream_options: StreamOptions | None = None
    prompt_cache_key: str | None = Field(
        default=None, min_length=1, max_length=256, description="A hint: where the conversation may be found."
    )
    max_tokens: Whole | None = Field(default=None, ge=-1, description="None or -1: up to the model's context.")
    max_completion_tokens: Whole | None = Field(
        default=None, ge=-1, description="None or -1: up to the model's context."
    )
    min_tokens: Whole | None = Field(default=None, ge=0, description="No stop token is drawn before. Not OpenAI's.")
    ignore_eos: bool | None = Field(default=False, description="The model's own stop tokens are never drawn.")
    temperature: float | None = Field(default=None, ge=0, le=5)
    top_p: float | None = Field(default=None, ge=0, le=1)
    top_k: Whole | None = Field(
        default=None, ge=-1, description="Not part of OpenAI's API: number of tokens kept; 0 and -1 are off."
    )
    min_p: float | None = Field(default=None, ge=0, le=1, description="Not part of OpenAI's API.")
    repetition_penalty: float | None = Field(default=None, ge=0.1, le=10, description="Not part of OpenAI's API.")
    repeat_penalty: float | None = Field(default=None, ge=0.1, le=10, description="Another name of the same.")
    repeat_last_n: Whole | None = Field(
        default=None,
        ge=-1,
        description="Not part of OpenAI's API: the tokens that penalties are over; -1 is the default.",
    )
    presence_penalty: float | None = Field(default=None, ge=-2, le=2)
    frequency_penalty: float | None = Field(default=None, ge=-2, le=2)
    seed: Whole | None = Field(default=None, ge=-(2**63), le=2**63 - 1)
    stop: str | Annotated[list[str], Field(fail_fast=True)] | None = None
    stop_token_ids: Annotated[list[int], Field(max_length=MOST_NAMED_TOKENS, fail_fast=True)] | None = Field(
        default=None, description="Not part of OpenAI's API: each ends the answer and does not belong to it."
    )
    logprobs: bool | None = False
    top_logprobs: Whole | None = Field(default=None, ge=0, le=20)
    tools: Annotated[list[Tool], Field(max_length=MOST_TOOLS, fail_fast=True)] | None = None
    tool_choice: Any = Field(default=None, description='"auto" (the default with tools), "none", "required" or a tool.')
    parallel_tool_calls: bool | None = Field(default=None, description="false: an answer ends after its first call.")
    chat_template_kwargs: dict[str, Any] | None = Field(
        default=None, description="Values of the variables that the model's chat template reads."
    )
    enable_thinking: bool | None = None
    thinking: Any = Field(default=None, description='{"type": "enabled"}, {"type": "disabled"} or null.')
    reasoning_effort: str | None = Field(default=None, max_length=40)
    continue_final_message: bool | None = Field(
        default=None, description="Go on with the last message, which is the assistant's. The default where it is."
    )
    add_generation_prompt: bool | None = None
    guided_json: Any = Field(default=None, description="A JSON schema that the answer keeps to.")
    guided_regex: str | None = Field(default=None, description="A pattern that the answer keeps to.")
    guided_choice: Any = Field(default=None, description="A list of texts, one of which is the answer.")
    guided_grammar: str | None = Field(default=None, description="A grammar in llama.cpp's or llguidance's notation.")
    grammar: str | None = Field(default=None, description="The same.")
    json_schema: Any = Field(default=None, description="A JSON schema that the answer keeps to.")
    structured_outputs: dict[str, Any] | None = Field(default=None, description="json, regex, choice or grammar.")
    n: Whole | None = Field(default=1, description="Must be 1.")
    response_format: Any = Field(default=None, description='Of type "text", "json_object" or "json_schema".')
    logit_bias: dict[str, float] | None = Field(
        default=None, max_length=MOST_NAMED_TOKENS, description="Token id to a number from -100 to 100."
    )
    modalities: Annotated[list[str], Field(fail_fast=True)] | None = Field(
        default=None, description='["text"] or null.'
    )
    audio: Any = Field(default=None, description="Must be null.")
    functions: Any = Field(default=None, description="Must be null: use `tools`.")
    function_call: Any = Field(default=None, description="Must be null: use `tool_choice`.")
    web_search_options: Any = Field(default=None, description="Must be null.")
