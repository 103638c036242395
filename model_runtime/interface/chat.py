"""What is said in a chat, before it is token ids."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A function the model wants called. `arguments` is JSON text as it was written."""

    call_id: str
    name: str
    arguments: str


@dataclass(frozen=True, slots=True)
class ChatMessage:
    """One message of any role. `tool_calls` are an assistant's, `tool_call_id` says which one a tool's message
    answers."""

    role: str  # "system" | "developer" | "user" | "assistant" | "tool"
    text: str
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str = ""
    name: str = ""


UserInput = str | tuple[ChatMessage, ...]  # what stands between two answers: mostly the text of one user's message
