"""Translates Ollama's requests into those for a chat completion or a text, which are then checked like any other."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from app.api.fields.other_fields import ignored_fields
from app.api.ollama.requests import GenerateRequest, OllamaCall, OllamaChatRequest, OllamaMessage, Options
from app.api.requests import ChatCompletionRequest, FunctionCall, MediaPart, Message, MessageToolCall, TextPart
from app.api.text_completions.requests import TextCompletionRequest
from app.api.translation.messages import as_resent
from app.api.translation.unsupported import unsupported
from model_runtime.interface.chat import ChatMessage

SAMPLED = (
    *("seed", "temperature", "top_k", "top_p", "min_p", "repeat_penalty", "presence_penalty", "frequency_penalty"),
    *("stop", "repeat_last_n"),
)
NAMES = {
    "max_tokens": "options.num_predict",
    "stop": "options.stop",
    "response_format": "format",
    "enable_thinking": "think",
    "reasoning_effort": "think",
}
NEUTRAL = {"typical_p": 1, "tfs_z": 1, "mirostat": 0}
OF_THE_SERVER = (
    *("num_keep", "num_batch", "num_gpu", "num_thread", "main_gpu", "low_vram", "f16_kv", "logits_all", "vocab_only"),
    *("use_mmap", "use_mlock", "embedding_only", "numa", "mirostat_tau", "mirostat_eta", "penalize_newline"),
)
RAW_ARGUMENTS = "raw_arguments"  # the only key of arguments that are no JSON object
LATEST = ":latest"


def chat_of(
    body: OllamaChatRequest | GenerateRequest,
    context_tokens: int,
    ignored: list[str],
    notes: list[str],
    before: Sequence[ChatMessage] = (),
) -> ChatCompletionRequest:
    """`ignored` and `notes` get what is said about the request. `before` is what was said before a prompt. Raises
    `Problem`."""
    fields = _shared(body, context_tokens, ignored, notes)
    if isinstance(body, GenerateRequest):
        _refuse_parts(body)
        asked = OllamaMessage(role="user", content=body.prompt, images=body.images)
        fields["messages"] = [*map(as_resent, before), *_messages([asked])]
    else:
        fields["messages"] = _messages(body.messages or [])
        fields |= {"tools": body.tools} if body.tools else {}
    if isinstance(body.think, str):
        fields["reasoning_effort"] = body.think
    elif body.think is not None:
        fields["enable_thinking"] = body.think
    return ChatCompletionRequest.model_construct(None, **fields)


def text_of(body: GenerateRequest, context_tokens: int, ignored: list[str], notes: list[str]) -> TextCompletionRequest:
    """A raw prompt."""
    _refuse_parts(body)
    for name in ("system", "think", "images", "context"):
        if getattr(body, name) not in (None, "", []):
            raise unsupported(name, f"{name} has no place in a raw prompt.")
    fields = _shared(body, context_tokens, ignored, notes)
    told = {"logprobs": fields.pop("top_logprobs", None) or 0} if fields.pop("logprobs", None) else {}
    return TextCompletionRequest.model_construct(None, prompt=body.prompt or "", **fields, **told)


def plain_name(asked: str | None, served: Sequence[str]) -> str | None:
    """The name without the tag that Ollama's clients add to a name that has none."""
    if asked is not None and asked not in served:
        return asked.removesuffix(LATEST)
    return asked


def _shared(
    body: OllamaChatRequest | GenerateRequest, context_tokens: int, ignored: list[str], notes: list[str]
) -> dict[str, Any]:
    ignored += ignored_fields(body)
    if body.keep_alive is not None:
        ignored.append("keep_alive")
    options = body.options or Options()
    fields: dict[str, Any] = {n: value for n in SAMPLED if (value := getattr(options, n)) is not None}
    if options.num_predict is not None and options.num_predict >= 0:
        fields["max_tokens"] = options.num_predict
    ignored += [f"options.{name}" for name in OF_THE_SERVER if getattr(options, name) is not None]
    if options.num_ctx is not None and options.num_ctx > context_tokens:
        ignored.append("options.num_ctx")
        notes.append(f"This model's context has {context_tokens:,} tokens, not {options.num_ctx:,}.")
    _refuse_options(options)
    if body.format not in (None, ""):
        fields["response_format"] = _format(body.format)
    if body.logprobs:
        fields |= {"logprobs": True, "top_logprobs": body.top_logprobs or 0}
    elif body.top_logprobs:
        raise unsupported("top_logprobs", "top_logprobs needs logprobs to be true.")
    fields["stream"] = body.stream is not False
    return fields


def _refuse_options(options: Options) -> None:
    for name, neutral in NEUTRAL.items():
        if getattr(options, name) not in (None, neutral):
            raise unsupported(f"options.{name}", f"options.{name} is not supported: it must be {neutral}.")


def _refuse_parts(body: GenerateRequest) -> None:
    if body.suffix:
        raise unsupported("suffix", "suffix is not supported: write the model's own marks into a raw prompt.")
    if body.template:
        raise unsupported("template", "template is not supported: the model's own is used. Send a raw prompt instead.")


def _format(asked: str | dict[str, Any] | None) -> dict[str, Any]:
    if asked == "json":
        return {"type": "json_object"}
    if not isinstance(asked, dict):
        raise unsupported("format", 'format must be "json" or a JSON schema.')
    return {"type": "json_schema", "json_schema": {"schema": asked}}


def _messages(messages: Sequence[OllamaMessage]) -> list[Message]:
    if messages and messages[-1].images:
        where = f"messages.{len(messages) - 1}.images"
        raise unsupported(where, f"{where}: This model reads no pictures. Leave them out.")
    return [_message(message) for message in messages]


def _message(message: OllamaMessage) -> Message:
    content: Any = message.content or ""
    if message.images:
        parts = [TextPart.model_construct(type="text", text=content)] if content else []
        content = [*parts, *(MediaPart(type="image") for _ in message.images)]
    return Message.model_construct(
        role=message.role,
        content=content,
        reasoning_content=message.thinking or None,
        tool_calls=[_call(call) for call in message.tool_calls] if message.tool_calls else None,
        tool_call_id=message.tool_call_id or "" if message.role == "tool" else message.tool_call_id,
        name=message.tool_name or message.name,
    )


def _call(call: OllamaCall) -> MessageToolCall:
    arguments = call.function.arguments
    if isinstance(arguments, dict) and set(arguments) == {RAW_ARGUMENTS}:
        arguments = str(arguments[RAW_ARGUMENTS])
    if not isinstance(arguments, str):
        arguments = json.dumps(arguments or {}, ensure_ascii=False)
    function = FunctionCall.model_construct(name=call.function.name, arguments=arguments)
    return MessageToolCall.model_construct(id=call.id or "", type="function", function=function)
