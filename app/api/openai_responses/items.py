"""The items of a response's input as the messages of a chat completion."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from pydantic import ValidationError

from app.api.fields.invalid_fields import media_of, place_and_sentence
from app.api.fields.other_fields import ignored_fields
from app.api.openai_responses.requests import (
    ITEMS,
    CallItem,
    CallOutputItem,
    InputMedia,
    InputRefusal,
    MessageItem,
    Part,
    ReasoningItem,
)
from app.api.requests import FunctionCall, MediaPart, Message, MessageToolCall, RefusalPart, TextPart
from app.api.translation.messages import is_readable_result
from app.api.translation.unsupported import unsupported
from app.problems import Problem

AnyItem = MessageItem | CallItem | CallOutputItem | ReasoningItem


def items_of(found: str | Sequence[dict[str, Any]], ignored: list[str], field: str = "input") -> list[AnyItem]:
    """The items of an input, or of another `field`; `ignored` gets the hints among theirs. Raises `Problem`."""
    if isinstance(found, str):
        return [MessageItem(role="user", content=found)]
    items = [_item(f"{field}.{place}", item) for place, item in enumerate(found)]
    for place, item in enumerate(items):
        try:
            ignored += [f"{field}.{name}" for name in ignored_fields(item)]
        except Problem as problem:
            where = f"{field}.{place}.{problem.param}"
            raise unsupported(where, problem.message.replace(str(problem.param), where, 1)) from None
        if isinstance(item, ReasoningItem) and item.encrypted_content:
            ignored.append(f"{field}.encrypted_content")
    return items


def refuse_media_at_the_end(items: Sequence[AnyItem], waiting: Sequence[AnyItem] = ()) -> None:
    """Raises `Problem` where a picture is what is asked about: in an earlier item a text stands for it. `waiting` come
    before the `items`, and are asked about where there are none of these."""
    last = next(iter((*items[-1:], *waiting[-1:])), None)
    is_output = isinstance(last, CallOutputItem)
    content = last.output if isinstance(last, CallOutputItem) else getattr(last, "content", None)
    if isinstance(last, CallOutputItem) and is_readable_result(_asked(0, last)):
        return
    for place, part in enumerate(content if isinstance(content, list) else ()):
        if isinstance(part, InputMedia):
            what = media_of(part.type) or "parts of this type"
            if not items:
                sentence = f"The last item of the conversation cannot be answered: this model reads no {what}."
                raise unsupported("conversation", f"{sentence} Delete it, or send a question.")
            where = f"input.{len(items) - 1}.{'output' if is_output else 'content'}.{place}"
            raise unsupported(where, f"{where}: This model reads no {what}. Send parts of type 'input_text'.")


def messages_of(items: Sequence[AnyItem]) -> list[Message]:
    """An answer's thoughts, text and calls, which are items of their own, become one message."""
    return [*_messages(items)]


def _messages(items: Sequence[AnyItem]) -> Iterator[Message]:
    answer: Message | None = None
    for place, item in enumerate(items):
        if isinstance(item, ReasoningItem):
            if answer is not None and (answer.content or answer.tool_calls):
                yield answer
                answer = None
            answer = answer or _empty_answer()
            answer.reasoning_content = (answer.reasoning_content or "") + _thoughts(item)
        elif isinstance(item, MessageItem) and item.role == "assistant":
            if answer is not None and (answer.content or answer.tool_calls):
                yield answer
                answer = None
            answer = answer or _empty_answer()
            answer.content = _content(place, item.content)
        elif isinstance(item, CallItem):
            answer = answer or _empty_answer()
            call = FunctionCall.model_construct(name=item.name, arguments=item.arguments)
            made = MessageToolCall.model_construct(id=item.call_id, type="function", function=call)
            answer.tool_calls = [*(answer.tool_calls or ()), made]
        else:
            if answer is not None:
                yield answer
                answer = None
            yield _asked(place, item)
    if answer is not None:
        yield answer


def _empty_answer() -> Message:
    return Message.model_construct(role="assistant", content="", reasoning_content=None, tool_calls=None)


def _asked(place: int, item: MessageItem | CallOutputItem) -> Message:
    if isinstance(item, CallOutputItem):
        return Message.model_construct(role="tool", content=_content(place, item.output), tool_call_id=item.call_id)
    return Message.model_construct(role=item.role, content=_content(place, item.content))


def _content(place: int, content: str | Sequence[Part]) -> str | list[TextPart | RefusalPart | MediaPart]:
    if isinstance(content, str):
        return content
    return [_part(part) for part in content]


def _part(part: Part) -> TextPart | RefusalPart | MediaPart:
    if isinstance(part, InputMedia):
        return MediaPart(type="file" if part.type == "input_file" else part.type)
    if isinstance(part, InputRefusal):
        return RefusalPart(type="refusal", refusal=part.refusal)
    return TextPart.model_construct(type="text", text=part.text)


def _thoughts(item: ReasoningItem) -> str:
    parts = item.content or item.summary or ()
    return "".join(part.text for part in parts if not isinstance(part, InputMedia | InputRefusal))


def _item(place: str, found: dict[str, Any]) -> AnyItem:
    kind = found.get("type", "message")
    shape = ITEMS.get(kind) if isinstance(kind, str) else None
    if shape is None:
        known = ", ".join(ITEMS)
        sentence = f"{place}: Items of type {str(kind)[:60]!r} are not supported. There are {known}."
        raise unsupported(f"{place}.type", sentence)
    try:
        return shape.model_validate(found)
    except ValidationError as error:
        where, sentence = place_and_sentence(error.errors(include_url=False, include_input=False))
        param = f"{place}.{where}".rstrip(".")
        raise Problem(400, f"{place}: {sentence}", "invalid_value", param) from None
