"""Translates a client's request into a `ChatRequest`. Refuses what cannot be honoured instead of ignoring it."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

from app.api.requests import ChatCompletionRequest, Message, RefusalPart, Tool
from app.problems import Problem
from model_runtime.interface.chat import ChatMessage, ToolCall
from model_runtime.interface.protocol import ModelInfo
from model_runtime.interface.sampling_params import SamplingParams
from sessions.text import clean_exactly
from sessions.turns.stateless import ChatRequest

MOST_STOPS = 4
TOOL_KEYS = ("name", "description", "parameters", "strict")


def chat_request(body: ChatCompletionRequest, info: ModelInfo, takes_tools: bool) -> ChatRequest:
    """The request for the session manager. Raises `Problem`, or `ValueError` with a sentence."""
    if body.model != info.name:
        raise Problem(
            404, f"The model {body.model[:200]!r} is not served here; {info.name!r} is.", "model_not_found", "model"
        )
    _refuse_unsupported(body)
    return ChatRequest(
        messages=tuple(_message(message) for message in body.messages),
        sampling=_sampling(body, info.default_sampling),
        tools=_tools(body, takes_tools),
        key=None if body.prompt_cache_key is None else clean_exactly(body.prompt_cache_key),
    )


def _refuse_unsupported(body: ChatCompletionRequest) -> None:
    if body.n not in (None, 1):
        raise _unsupported("n", "Only one choice is supported: n must be 1.")
    if body.response_format not in (None, {"type": "text"}):
        raise _unsupported("response_format", "Only the response format {'type': 'text'} is supported.")
    if body.logit_bias:
        raise _unsupported("logit_bias", "A logit bias is not supported.")
    if body.modalities not in (None, ["text"]):
        raise _unsupported("modalities", "Only text is supported.")
    if body.audio is not None:
        raise _unsupported("audio", "Sound is not supported.")
    if body.functions:
        raise _unsupported("functions", "Functions are not supported: send them as tools.")
    if body.function_call not in (None, "none", "auto"):
        raise _unsupported("function_call", "A function call is not supported: use tools and tool_choice.")
    if body.web_search_options is not None:
        raise _unsupported("web_search_options", "Web search is not supported.")
    if body.top_logprobs is not None and not body.logprobs:
        raise _unsupported("top_logprobs", "top_logprobs needs logprobs to be true.")
    if body.stream_options is not None and not body.stream:
        raise _unsupported("stream_options", "stream_options needs stream to be true.")


def _sampling(body: ChatCompletionRequest, defaults: SamplingParams) -> SamplingParams:
    asked: dict[str, Any] = {
        name: value
        for name in (
            *("temperature", "top_p", "top_k", "min_p"),
            *("repetition_penalty", "presence_penalty", "frequency_penalty"),
        )
        if (value := getattr(body, name)) is not None
    }
    limits = [limit for limit in (body.max_completion_tokens, body.max_tokens) if limit is not None]
    if limits:
        asked["max_new_tokens"] = min(limits)
    if body.seed is not None:
        asked["seed"] = body.seed % 2**63
    stops = [body.stop] if isinstance(body.stop, str) else body.stop or []
    if len(stops) > MOST_STOPS:
        raise _unsupported("stop", f"At most {MOST_STOPS} stop strings are supported, not {len(stops)}.")
    if not all(stops):
        raise _unsupported("stop", "A stop string must not be empty.")
    asked["stop_strings"] = tuple(clean_exactly(stop) for stop in stops)
    if body.logprobs:
        asked["top_logprobs"] = body.top_logprobs or 0
    return replace(defaults, **asked)


def _tools(body: ChatCompletionRequest, takes_tools: bool) -> tuple[str, ...]:
    if not body.tools:
        if body.tool_choice not in (None, "none", "auto"):
            raise _unsupported("tool_choice", "tool_choice needs tools.")
        return ()
    if body.tool_choice == "none":
        return ()
    if body.tool_choice not in (None, "auto"):
        raise _unsupported("tool_choice", "A call cannot be forced: tool_choice must be 'auto' or 'none'.")
    if not takes_tools:
        raise _unsupported("tools", "This model's chat template does not support tools. Send the request without them.")
    return tuple(_tool(tool) for tool in body.tools)


def _tool(tool: Tool) -> str:
    """The tool as JSON with only the fields that OpenAI's API defines, in a fixed order, so that the same tools always
    begin the same history."""
    try:
        function = tool.function.model_dump(exclude_none=True, include=set(TOOL_KEYS))
        return clean_exactly(json.dumps({"type": "function", "function": function}, ensure_ascii=False))
    except (RecursionError, ValueError):
        raise Problem(400, "A tool's parameters are nested too deeply.", "invalid_value", "tools") from None


def _message(message: Message) -> ChatMessage:
    if message.role != "assistant" and message.content is None:
        raise Problem(400, f"A message with role '{message.role}' needs content.", "invalid_messages", "messages")
    calls = message.tool_calls or ()
    if calls and message.role != "assistant":
        raise Problem(400, "Only a message with role 'assistant' may have tool_calls.", "invalid_messages", "messages")
    if message.tool_call_id and message.role != "tool":
        raise Problem(400, "Only a message with role 'tool' may have a tool_call_id.", "invalid_messages", "messages")
    if message.role == "tool" and not message.tool_call_id:
        raise Problem(
            400, "A message with role 'tool' needs the tool_call_id it answers.", "invalid_messages", "messages"
        )
    return ChatMessage(
        role=message.role,
        text=_text(message),
        tool_calls=tuple(ToolCall(call.id, call.function.name, call.function.arguments) for call in calls),
        tool_call_id=message.tool_call_id or "",
        name=message.name or "",
    )


def _text(message: Message) -> str:
    if message.content is None or isinstance(message.content, str):
        return message.content or ""
    return "".join(part.refusal if isinstance(part, RefusalPart) else part.text for part in message.content)


def _unsupported(param: str, sentence: str) -> Problem:
    return Problem(400, sentence, "unsupported_parameter", param)
