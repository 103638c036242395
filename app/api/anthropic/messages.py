"""Anthropic's messages, made of blocks, as those of a chat completion."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence

from app.api.anthropic.requests import (
    AnthropicMessage,
    Block,
    MediaBlock,
    RedactedThinkingBlock,
    TextBlock,
    ThinkingBlock,
    ToolResultBlock,
    ToolUseBlock,
)
from app.api.fields.invalid_fields import media_of
from app.api.requests import FunctionCall, MediaPart, Message, MessageToolCall, TextPart
from app.api.translation.unsupported import unsupported
from app.problems import Problem

BILLING = "x-anthropic-billing-header:"  # a line for Anthropic, other in every request, that some clients send as text
RAW_ARGUMENTS = "raw_arguments"  # the only key of an input that stands for arguments that are no JSON object
ERROR = "Error: "


def system_of(system: str | Sequence[TextBlock] | None) -> tuple[list[Message], list[str]]:
    """(the system messages, what was left out of them)."""
    texts = [system] if isinstance(system, str) else [block.text for block in system or ()]
    kept = [text for text in texts if not text.startswith(BILLING)]
    left_out = [f"system.{BILLING[:-1]}"] if len(kept) < len(texts) else []
    return [Message.model_construct(role="system", content=text) for text in kept if text], left_out


def messages_of(messages: Sequence[AnthropicMessage], ignored: list[str]) -> Iterator[Message]:
    """The messages; `ignored` gets what of them no model can read. Raises `Problem`."""
    _refuse_media(messages[-1], len(messages) - 1)
    for place, message in enumerate(messages):
        blocks = [TextBlock(type="text", text=message.content)] if isinstance(message.content, str) else message.content
        if any(isinstance(block, RedactedThinkingBlock) for block in blocks):
            ignored.append("messages.content.redacted_thinking")
        if message.role == "assistant":
            yield _answer(place, blocks)
        else:
            yield from _asked(place, message.role, blocks)


def _answer(place: int, blocks: Sequence[Block]) -> Message:
    texts, thoughts, calls = [], [], []
    for block in blocks:
        if isinstance(block, TextBlock):
            texts.append(block.text)
        elif isinstance(block, ThinkingBlock):
            thoughts.append(block.thinking)
        elif isinstance(block, ToolUseBlock):
            call = FunctionCall.model_construct(name=block.name, arguments=_arguments(block))
            calls.append(MessageToolCall.model_construct(id=block.id, type="function", function=call))
        elif not isinstance(block, RedactedThinkingBlock):
            raise _misplaced(place, block.type, "assistant")
    return Message.model_construct(
        role="assistant", content="".join(texts), tool_calls=calls or None, reasoning_content="".join(thoughts) or None
    )


def _asked(place: int, role: str, blocks: Sequence[Block]) -> Iterator[Message]:
    """The results of calls, each a message, and the texts between them."""
    parts: list[TextPart | MediaPart] = []
    for block in blocks:
        if isinstance(block, ToolResultBlock) and role == "user":
            if parts:
                yield Message.model_construct(role=role, content=parts)
                parts = []
            yield _result(block)
        elif isinstance(block, TextBlock | MediaBlock):
            parts.append(_part(block))
        else:
            raise _misplaced(place, block.type, role)
    if parts or not blocks:
        yield Message.model_construct(role=role, content=parts)


def _result(block: ToolResultBlock) -> Message:
    content = block.content or ""
    parts = [_part(one) for one in content] if not isinstance(content, str) else [_text(content)]
    if block.is_error:
        first = parts[0].text if parts and isinstance(parts[0], TextPart) else ""
        if not first.lower().startswith(ERROR[:5].lower()):
            parts.insert(0, _text(ERROR))
    return Message.model_construct(role="tool", content=parts, tool_call_id=block.tool_use_id)


def _part(block: TextBlock | MediaBlock) -> TextPart | MediaPart:
    return (
        _text(block.text)
        if isinstance(block, TextBlock)
        else MediaPart(type="image" if block.type == "image" else "file")
    )


def _text(text: str) -> TextPart:
    return TextPart.model_construct(type="text", text=text)


def _arguments(block: ToolUseBlock) -> str:
    if set(block.input) == {RAW_ARGUMENTS} and isinstance(block.input[RAW_ARGUMENTS], str):
        return str(block.input[RAW_ARGUMENTS])
    return json.dumps(block.input, ensure_ascii=False)


def _refuse_media(message: AnthropicMessage, number: int) -> None:
    """A picture in the last message is refused; in an earlier one a text stands in its place, and so it does beside the
    text of a tool's result."""
    for place, block in enumerate(message.content if not isinstance(message.content, str) else ()):
        inner = block.content if isinstance(block, ToolResultBlock) and not isinstance(block.content, str) else None
        if any(isinstance(one, TextBlock) and one.text.strip() for one in inner or ()):
            continue
        for one in (block, *(inner or ())):
            if isinstance(one, MediaBlock):
                where, what = f"messages.{number}.content.{place}", media_of(one.type) or "documents"
                raise unsupported(where, f"{where}: This model reads no {what}. Send blocks of type 'text'.")


def _misplaced(place: int, kind: str, role: str) -> Problem:
    return Problem(
        400, f"messages.{place}: A message with role '{role}' has no blocks of type '{kind}'.", "invalid_messages",
        f"messages.{place}",
    )  # fmt: skip
