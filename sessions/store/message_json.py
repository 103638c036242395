"""Messages as JSON, for the database and for the history hash."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from model_runtime.interface.chat import ChatMessage, ToolCall


def dump(messages: Sequence[ChatMessage]) -> str:
    """For the database; `load` is the inverse."""
    return json.dumps([fields(message) for message in messages], ensure_ascii=False)


def load(text: str) -> tuple[ChatMessage, ...]:
    """The inverse of `dump`."""
    return tuple(
        ChatMessage(role, said, tuple(ToolCall(*call) for call in calls), call_id, name)
        for role, said, calls, call_id, name in json.loads(text)
    )


def fields(message: ChatMessage) -> list[Any]:
    """Everything a message consists of, in a fixed order: stored rows and history hashes depend on it."""
    calls = [[call.call_id, call.name, call.arguments] for call in message.tool_calls]
    return [message.role, message.text, calls, message.tool_call_id, message.name]
