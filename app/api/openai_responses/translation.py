"""Translates a request to `/v1/responses` into one for a chat completion, which is then checked like any other."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from typing import Any

from app.api.fields.other_fields import ignored_fields
from app.api.openai_responses.items import items_of, messages_of, refuse_media_at_the_end
from app.api.openai_responses.names import LOGPROBS, conversation_id_of
from app.api.openai_responses.references import resolved
from app.api.openai_responses.requests import FunctionTool, ResponsesRequest
from app.api.requests import ChatCompletionRequest, FunctionDefinition, Message, TextPart, Tool
from app.api.translation.messages import as_resent, text_of
from app.api.translation.unsupported import unsupported
from app.problems import Problem
from model_runtime.interface.chat import ChatMessage
from sessions.ledger.system_items import SystemItems
from sessions.named_responses import KnownHistory, NamedResponses
from sessions.types import SYSTEM_ROLES

SAME = (
    *("model", "temperature", "top_p", "top_k", "min_p", "seed", "stream", "parallel_tool_calls", "prompt_cache_key"),
    *("chat_template_kwargs", "enable_thinking"),
)
NAMES = {
    "max_tokens": "max_output_tokens",
    "response_format": "text.format",
    "reasoning_effort": "reasoning.effort",
    "messages": "input",
}


@dataclass(frozen=True, slots=True)
class AskedResponse:
    """`items` are what the history has of the system with this request, besides its instructions.
    `leaf_id` and `taken_in` as in `ChatRequest`: what was read of the conversation that is named."""

    chat: ChatCompletionRequest
    ignored: tuple[str, ...]
    items: SystemItems
    conversation_id: str
    leaf_id: int | None
    taken_in: tuple[str, ...]


def chat_of(body: ResponsesRequest, responses: NamedResponses, owner_id: str) -> AskedResponse:
    """Raises `Problem`, or what `NamedResponses` raises."""
    for place, tool in enumerate(body.tools or ()):
        _refuse_other_tool(place, tool)
    ignored = list(ignored_fields(body))
    _refuse_unsupported(body)
    before, conversation_id = _before(body, responses, owner_id)
    waiting = responses.added_items(owner_id, conversation_id) if conversation_id else ()
    known = items_of([json.loads(item.body) for item in waiting], [], "conversation")
    asked = items_of(resolved(body.input, responses, owner_id), ignored)
    refuse_media_at_the_end(asked, known)
    added = messages_of([*known, *asked])
    if not added and not before.messages:
        raise unsupported("input", "input needs at least one item.")
    head, items = before.head, before.items
    if not before.messages:
        count = next((n for n, message in enumerate(added) if message.role not in SYSTEM_ROLES), len(added))
        head, added = (*head, *(ChatMessage(m.role, _text(m)) for m in added[:count])), added[count:]
    items = replace(items, head=head)
    if conversation_id:
        items = items.and_later([ChatMessage(m.role, text_of(m), name=m.name or "") for m in added])
    results = next((n for n, message in enumerate(added) if message.role != "tool"), len(added))
    added[results:results] = map(as_resent, before.missed)  # between a call and its result nothing stands
    fields: dict[str, Any] = {name: getattr(body, name) for name in SAME if name in body.model_fields_set}
    system = [ChatMessage("system", body.instructions)] if body.instructions else []
    fields["messages"] = [*map(as_resent, (*system, *head, *before.messages)), *added]
    if body.max_output_tokens is not None:
        fields["max_tokens"] = body.max_output_tokens
    if body.tools:
        fields["tools"] = [_tool(tool) for tool in body.tools]
    if body.tool_choice is not None:
        fields["tool_choice"] = _choice(body.tool_choice)
    fields |= _format(body.text) | _reasoning(body.reasoning, ignored) | _logprobs(body, ignored)
    ignored += [name for name in ("max_tool_calls", "truncation") if getattr(body, name) not in (None, "disabled")]
    chat, taken_in = ChatCompletionRequest.model_construct(None, **fields), tuple(item.item_id for item in waiting)
    return AskedResponse(chat, tuple(ignored), items, conversation_id, before.leaf_id, taken_in)


def _before(body: ResponsesRequest, responses: NamedResponses, owner_id: str) -> tuple[KnownHistory, str]:
    """(what was said before, the id of the conversation that is named)."""
    if body.previous_response_id is not None and body.conversation is not None:
        raise unsupported("conversation", "Send previous_response_id or conversation, not both.")
    if body.previous_response_id is not None:
        return responses.history(owner_id, body.previous_response_id), ""
    if body.conversation is None:
        return KnownHistory((), ()), ""
    conversation_id = conversation_id_of(body.conversation)
    keeps_prompt = body.instructions is None
    return responses.conversation_history(owner_id, conversation_id, keeps_prompt), conversation_id


def _text(message: Message) -> str:
    content = message.content or ""
    if isinstance(content, str):
        return content
    texts = [part.text for part in content if isinstance(part, TextPart)]
    if len(texts) < len(content):
        raise unsupported("input", "input: A message of the system at the beginning has texts only.")
    return "".join(texts)


def _refuse_other_tool(place: int, tool: FunctionTool) -> None:
    if tool.type != "function":
        sentence = f"tools.{place}: The tool {tool.type[:60]!r} is not run here: this server has no tools of its own."
        raise unsupported(f"tools.{place}.type", sentence)
    if tool.name is None:
        raise Problem(400, f"tools.{place}.name is missing.", "invalid_value", f"tools.{place}.name")


def _tool(tool: FunctionTool) -> Tool:
    return Tool.model_construct(
        type="function",
        function=FunctionDefinition.model_construct(
            name=tool.name, description=tool.description, parameters=tool.parameters, strict=tool.strict
        ),
    )


def _choice(asked: Any) -> Any:
    kind = asked.get("type") if isinstance(asked, dict) else None
    if kind not in ("function", "allowed_tools") and asked not in ("auto", "none", "required"):
        sentence = "'auto', 'none', 'required', name one function, or be of type allowed_tools."
        raise unsupported("tool_choice", f"tool_choice must be {sentence}")
    return asked


def _format(text: dict[str, Any] | None) -> dict[str, Any]:
    fields: dict[str, Any] = {}
    for name, value in (text or {}).items():
        if value is None or (name, value) == ("verbosity", "medium"):
            continue
        if name != "format":
            raise unsupported(f"text.{name[:60]}", f"text.{name[:60]} is not supported, so it would change nothing.")
        kind = value.get("type") if isinstance(value, dict) else None
        if kind == "json_schema":
            value = {"type": kind, "json_schema": {name: one for name, one in value.items() if name != "type"}}
        elif kind not in ("text", "json_object"):
            raise unsupported("text.format", "text.format must be of type text, json_object or json_schema.")
        fields["response_format"] = value
    return fields


def _reasoning(asked: dict[str, Any] | None, ignored: list[str]) -> dict[str, Any]:
    fields: dict[str, Any] = {}
    for name, value in (asked or {}).items():
        if value is None:
            continue
        if name in ("summary", "generate_summary"):
            ignored.append(f"reasoning.{name}")
        elif name == "effort" and isinstance(value, str):
            fields["reasoning_effort"] = value
        else:
            raise unsupported(f"reasoning.{name[:60]}", f"reasoning.{name[:60]} is not supported.")
    return fields


def _logprobs(body: ResponsesRequest, ignored: list[str]) -> dict[str, Any]:
    wanted = LOGPROBS in (body.include or ()) or bool(body.top_logprobs)
    ignored += [f"include.{name[:60]}" for name in body.include or () if name != LOGPROBS]
    return {"logprobs": True, "top_logprobs": body.top_logprobs or 0} if wanted else {}


def _refuse_unsupported(body: ResponsesRequest) -> None:
    if body.background:
        raise unsupported("background", "background is not supported: stream the response, or wait for it.")
