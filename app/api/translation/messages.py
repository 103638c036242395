"""The messages of a request as the session manager takes them, and what of them the model cannot read."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from app.api.fields.invalid_fields import media_of
from app.api.requests import MediaPart, Message, RefusalPart, TextPart
from app.api.translation.unsupported import unsupported
from app.problems import Problem
from model_runtime.interface.chat import ChatMessage, ToolCall


def messages_of(messages: Sequence[Message]) -> tuple[ChatMessage, ...]:
    """Raises `Problem`. A picture in the last message is refused; in an earlier one, which the client sends again with
    every request, a text says in its place that there was one. So it does beside the text of a tool's last result: the
    program that ran the tool would only send it again."""
    for place, part in () if messages and is_readable_result(messages[-1]) else _media(messages[-1:]):
        number = len(messages) - 1
        where, what = f"messages.{number}.content.{place}", media_of(part.type) or "parts of this type"
        raise unsupported(where, f"{where}: This model reads no {what}. Send parts of type 'text'.")
    return tuple(_message(message) for message in messages)


def is_readable_result(message: Message) -> bool:
    """Whether it is a tool's result with a text, whatever stands beside that."""
    parts = message.content if message.role == "tool" and isinstance(message.content, list) else ()
    return any(isinstance(part, TextPart) and part.text.strip() for part in parts)


def as_resent(message: ChatMessage) -> Message:
    """A stored message as a client would resend it."""
    fields: dict[str, Any] = {"role": message.role, "content": message.text}
    if message.tool_calls:
        fields["tool_calls"] = [
            {"id": call.call_id, "function": {"name": call.name, "arguments": call.arguments}}
            for call in message.tool_calls
        ]
    if message.thoughts:
        fields["reasoning_content"] = message.thoughts
    if message.role == "tool":
        fields["tool_call_id"] = message.tool_call_id
    if message.name:
        fields["name"] = message.name
    return Message(**fields)


def unread_parts(messages: Sequence[Message], has_thoughts: bool) -> tuple[str, ...]:
    """The names, each once, of the parts that a text stands for, and of thoughts that this model cannot have had."""
    found = [f"messages.content.{part.type}" for _, part in _media(messages)]
    if not has_thoughts and any(_thoughts(message) for message in messages):
        found.append("messages.reasoning_content")
    return tuple(dict.fromkeys(found))


def _thoughts(message: Message) -> str:
    return message.reasoning_content or message.reasoning or ""


def _media(messages: Sequence[Message]) -> Iterator[tuple[int, MediaPart]]:
    for message in messages:
        for place, part in enumerate(message.content if isinstance(message.content, list) else ()):
            if isinstance(part, MediaPart):
                yield place, part


def _message(message: Message) -> ChatMessage:
    if message.role != "assistant" and message.content is None:
        raise Problem(400, f"A message with role '{message.role}' needs content.", "invalid_messages", "messages")
    calls = message.tool_calls or ()
    if calls and message.role != "assistant":
        raise Problem(400, "Only a message with role 'assistant' may have tool_calls.", "invalid_messages", "messages")
    if message.tool_call_id and message.role != "tool":
        raise Problem(400, "Only a message with role 'tool' may have a tool_call_id.", "invalid_messages", "messages")
    if message.role == "tool" and message.tool_call_id is None:
        raise Problem(
            400, "A message with role 'tool' needs the tool_call_id it answers.", "invalid_messages", "messages"
        )
    for name, value in (("reasoning_content", _thoughts(message)), ("refusal", message.refusal)):
        if value and message.role != "assistant":
            sentence = f"Only a message with role 'assistant' may have {name}."
            raise Problem(400, sentence, "invalid_messages", "messages")
    return ChatMessage(
        role=message.role,
        text=text_of(message) + (message.refusal or ""),
        tool_calls=tuple(ToolCall(call.id, call.function.name, call.function.arguments) for call in calls),
        tool_call_id=message.tool_call_id or "",
        name=message.name or "",
        thoughts=_thoughts(message),
    )


def text_of(message: Message) -> str:
    """What the model reads of a message's content: a few words stand for what it cannot."""
    if message.content is None or isinstance(message.content, str):
        return message.content or ""
    pieces: list[str] = []
    for part in message.content:
        if isinstance(part, MediaPart):
            what = (media_of(part.type) or "part").removesuffix("s")
            pieces.append(f"{chr(10) if pieces else ''}[{what}: this model cannot read it]")
        else:
            pieces.append(part.refusal if isinstance(part, RefusalPart) else part.text)
    return "".join(pieces)
