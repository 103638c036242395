"""The objects of OpenAI's Responses API: a response, the items of its output, its usage."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from app.api.answers import logprob
from app.api.openai_responses.names import CONVERSATION
from app.api.openai_responses.requests import ResponsesRequest
from model_runtime.interface.chat import ChatMessage, ToolCall
from model_runtime.interface.events import FinishReason, TokenLogprobs
from sessions.text import clean_exactly
from sessions.types import MessageStatus, MessageView, Receipt

ECHOED = (
    *("instructions", "previous_response_id", "tools", "tool_choice", "max_output_tokens", "temperature", "top_p"),
    *("metadata", "truncation", "store", "top_logprobs", "max_tool_calls", "prompt_cache_key"),
)
DEFAULTS: dict[str, Any] = {
    "tools": [],
    "tool_choice": "auto",
    "truncation": "disabled",
    "metadata": {},
    "store": True,
    "top_logprobs": 0,
}


@dataclass(frozen=True, slots=True)
class ItemIds:
    """The ids of a response's items, which follow from its own."""

    response_id: str

    @property
    def _own(self) -> str:
        return self.response_id.partition("_")[2]

    @property
    def reasoning(self) -> str:
        return f"rs_{self._own}"

    @property
    def message(self) -> str:
        return f"msg_{self._own}"

    def call(self, number: int) -> str:
        return f"fc_{self._own}_{number}"

    @property
    def call_output(self) -> str:
        return f"fco_{self._own}"


def skeleton(
    body: ResponsesRequest, response_id: str, model: str, created: int, conversation_id: str
) -> dict[str, Any]:
    """A response that has no output yet, with what its request said of itself."""
    echo = body.model_dump(include=set(ECHOED))
    said: dict[str, Any] = {
        "id": response_id,
        "object": "response",
        "created_at": created,
        "status": "in_progress",
        "background": False,
        "error": None,
        "incomplete_details": None,
        "model": model,
        "output": [],
        "parallel_tool_calls": body.parallel_tool_calls is not False,
        "reasoning": {"effort": (body.reasoning or {}).get("effort"), "summary": None},
        "text": {"format": {"type": "text"}, **{k: v for k, v in (body.text or {}).items() if v is not None}},
        "conversation": {"id": f"{CONVERSATION}{conversation_id}"} if conversation_id else None,
        "usage": None,
        **{name: DEFAULTS.get(name) if echo[name] is None else echo[name] for name in ECHOED},
    }
    # What it echoes can be sent, and stored, like everything else.
    return dict(json.loads(clean_exactly(json.dumps(said, ensure_ascii=False))))


def ended(
    response: dict[str, Any], message: MessageView, finish_reason: FinishReason | None, output: list[dict[str, Any]]
) -> dict[str, Any]:
    """The response as it is once its answer has ended, or was stopped."""
    is_cut = finish_reason in (FinishReason.LENGTH, FinishReason.CONTEXT)
    status = {
        MessageStatus.RUNNING: "in_progress",
        MessageStatus.FAILED: "failed",
        MessageStatus.STOPPED: "cancelled",
        MessageStatus.INTERRUPTED: "incomplete",
    }.get(message.status, "incomplete" if is_cut else "completed")
    error = {"code": "server_error", "message": message.note} if status == "failed" else None
    details = {"reason": "max_output_tokens"} if is_cut else None
    return {**response, "status": status, "error": error, "incomplete_details": details, "output": output}


def items(ids: ItemIds, said: ChatMessage, logprobs: Sequence[TokenLogprobs] | None = None) -> list[dict[str, Any]]:
    """The output of a finished answer."""
    found: list[dict[str, Any]] = []
    if said.thoughts:
        found.append(reasoning_item(ids, said.thoughts))
    if said.text or not said.tool_calls:
        found.append(message_item(ids, [text_part(said.text, logprobs)]))
    return [*found, *(call_item(ids, number, call) for number, call in enumerate(said.tool_calls))]


def reasoning_item(ids: ItemIds, thoughts: str, status: str = "completed") -> dict[str, Any]:
    content = [{"type": "reasoning_text", "text": thoughts}] if thoughts else []
    return {"id": ids.reasoning, "type": "reasoning", "summary": [], "content": content, "status": status}


def message_item(ids: ItemIds, parts: list[dict[str, Any]], status: str = "completed") -> dict[str, Any]:
    return {"id": ids.message, "type": "message", "role": "assistant", "content": parts, "status": status}


def text_part(text: str, logprobs: Sequence[TokenLogprobs] | None = None) -> dict[str, Any]:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": logprobs_of(logprobs or ())}


def logprobs_of(found: Sequence[TokenLogprobs]) -> list[dict[str, Any]]:
    return [{**logprob(one.chosen), "top_logprobs": [logprob(top) for top in one.top]} for one in found]


def call_item(ids: ItemIds, number: int, call: ToolCall, status: str = "completed") -> dict[str, Any]:
    return {
        "id": ids.call(number),
        "type": "function_call",
        "call_id": call.call_id,
        "name": call.name,
        "arguments": call.arguments if status == "completed" else "",
        "status": status,
    }


def asked_item(ids: ItemIds, message: ChatMessage) -> dict[str, Any]:
    """A message of the user or the system."""
    content = [{"type": "input_text", "text": message.text}]
    return {"id": ids.message, "type": "message", "role": message.role, "content": content, "status": "completed"}


def call_output_item(ids: ItemIds, message: ChatMessage) -> dict[str, Any]:
    """The result of a call."""
    return {
        "id": ids.call_output,
        "type": "function_call_output",
        "call_id": message.tool_call_id,
        "output": message.text,
        "status": "completed",
    }


def usage_of(prompt_tokens: int, cost: Receipt | None, sampled_tokens: int, thought_tokens: int) -> dict[str, Any]:
    """`cost` None: the answer ended before anything was known of it. What an engine does not report is null."""
    reused = cost.reused_tokens if cost is not None and cost.is_reuse_reported else None
    written = None if reused is None else prompt_tokens - reused
    return {
        "input_tokens": prompt_tokens,
        "input_tokens_details": {"cached_tokens": reused, "cache_write_tokens": written},
        "output_tokens": sampled_tokens,
        "output_tokens_details": {"reasoning_tokens": min(thought_tokens, sampled_tokens)},
        "total_tokens": prompt_tokens + sampled_tokens,
    }
