"""A request's messages as a history: exchanges of what was asked and what was answered, with a link behind each. Pure.

What is accepted: system and developer messages first (their texts become one system prompt); then any order of roles
that the model's template can render. What stands between two answers is one node of the tree, mostly a single user's
message, else several (tool results, consecutive users, a system message in the middle). An assistant's message directly
behind an answer, or before anybody asked, belongs to what is asked next. The last message must not be an assistant's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from model_runtime.interface.chat import ChatMessage, ToolCall, UserInput
from sessions.errors import MessageRefused
from sessions.ledger import history_hash
from sessions.store import message_json
from sessions.text import clean_exactly, refuse_if_huge

ROLES = ("system", "developer", "user", "assistant", "tool")
SYSTEM_ROLES = ("system", "developer")


@dataclass(frozen=True, slots=True)
class Exchange:
    """`answer` is None in the last one, which is to be answered now."""

    asked: tuple[ChatMessage, ...]
    answer: ChatMessage | None

    @property
    def is_plain(self) -> bool:
        """Whether one user's text is all."""
        return self.asked == (ChatMessage("user", self.asked[0].text),)

    @property
    def text(self) -> str:
        """What a person is shown of it."""
        return "\n\n".join(message.text for message in self.asked)

    @property
    def input(self) -> UserInput:
        return self.asked[0].text if self.is_plain else self.asked

    @property
    def parts(self) -> str:
        return "" if self.is_plain else message_json.dump(self.asked)


@dataclass(frozen=True, slots=True)
class ResentHistory:
    """`links` alternate: behind what was asked, behind the answer; the last is behind what is to be answered."""

    system_prompt: str
    exchanges: tuple[Exchange, ...]
    links: tuple[str, ...]


def read(messages: Sequence[ChatMessage], tools: Sequence[str], max_message_bytes: int) -> ResentHistory:
    """Raises `MessageRefused` with a sentence."""
    cleaned = [_clean(message, max_message_bytes) for message in messages]
    if not cleaned:
        raise MessageRefused("The request has no messages.")
    for number, message in enumerate(cleaned):
        if message.role not in ROLES:
            raise MessageRefused(f"Message {number + 1} has the unknown role {message.role[:40]!r}.")
    if cleaned[-1].role == "assistant":
        raise MessageRefused("The last message is an assistant's: nothing is left to be answered.")
    head = next((n for n, message in enumerate(cleaned) if message.role not in SYSTEM_ROLES), len(cleaned))
    if head == len(cleaned):
        raise MessageRefused("The request has only system messages. Add a user's message.")
    exchanges = _exchanges(cleaned[head:])
    return ResentHistory(
        system_prompt="\n\n".join(message.text for message in cleaned[:head]),
        exchanges=exchanges,
        links=_links(history_hash.root(tools, cleaned[:head]), exchanges),
    )


def _exchanges(messages: Sequence[ChatMessage]) -> tuple[Exchange, ...]:
    found: list[Exchange] = []
    asked: list[ChatMessage] = []
    for message in messages:
        if message.role == "assistant" and asked:
            found.append(Exchange(tuple(asked), message))
            asked = []
        else:
            asked.append(message)
    return (*found, Exchange(tuple(asked), None))


def _links(link: str, exchanges: Sequence[Exchange]) -> tuple[str, ...]:
    found: list[str] = []
    for exchange in exchanges:
        link = history_hash.after(link, exchange.asked)
        found.append(link)
        if exchange.answer is not None:
            link = history_hash.after(link, [exchange.answer])
            found.append(link)
    return tuple(found)


def _clean(message: ChatMessage, max_bytes: int) -> ChatMessage:
    refuse_if_huge(message.text, max_bytes)
    return replace(
        message,
        role=clean_exactly(message.role),
        text=clean_exactly(message.text),
        tool_call_id=clean_exactly(message.tool_call_id),
        name=clean_exactly(message.name),
        tool_calls=tuple(
            ToolCall(clean_exactly(call.call_id), clean_exactly(call.name), clean_exactly(call.arguments))
            for call in message.tool_calls
        ),
    )
