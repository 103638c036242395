"""Parses the messages of a request into questions and answers, with a history hash after each. Pure functions.

A request may have system and developer messages first (their texts become one system prompt), then any order of roles
that the model's template can render. The messages between two answers form one node of the tree: usually a single user
message, otherwise several (tool results, consecutive user messages, a system message in the middle). An assistant
message directly after an answer, or before the first question, belongs to the next question. A last message from the
assistant is the beginning of the answer that is asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import product

from model_runtime.interface.chat import ChatMessage, ToolCall, TurnTemplate, UserInput
from sessions.errors import MessageRefused
from sessions.ledger import history_hash
from sessions.store import message_json
from sessions.store.records import Node
from sessions.text import clean_exactly, refuse_if_huge
from sessions.types import SYSTEM_ROLES

ROLES = ("system", "developer", "user", "assistant", "tool")


@dataclass(frozen=True, slots=True)
class Exchange:
    """A question and its answer, which is None for the last question: the model is to answer that one."""

    asked: tuple[ChatMessage, ...]
    answer: ChatMessage | None

    @property
    def is_plain(self) -> bool:
        """Whether the question is a single user message with nothing but text."""
        return self.asked == (ChatMessage("user", self.asked[0].text),)

    @property
    def text(self) -> str:
        """The question as a person sees it."""
        return "\n\n".join(message.text for message in self.asked)

    @property
    def input(self) -> UserInput:
        return self.asked[0].text if self.is_plain else self.asked

    @property
    def parts(self) -> str:
        return "" if self.is_plain else message_json.dump(self.asked)

    @property
    def answer_parts(self) -> str:
        """The answer where it has calls, whose ids its text does not say."""
        return message_json.dump([self.answer]) if self.answer is not None and self.answer.tool_calls else ""


@dataclass(frozen=True, slots=True)
class ResentHistory:
    """`hashes` alternate: after a question, after its answer; the last is after the question to be answered.
    `beginning` is what its answer begins with, and `begun_hash` the history's with that answer. `older_hashes` gives
    the hashes as earlier versions stored them. `altered_in` is `altered_answers` of a stored path that has one of the
    hashes."""

    system_prompt: str
    exchanges: tuple[Exchange, ...]
    hashes: tuple[str, ...]
    beginning: ChatMessage | None = None
    begun_hash: str = ""
    older_hashes: Callable[[], tuple[str, ...]] = tuple
    altered_in: Callable[[Sequence[Node]], tuple[int, ...]] = lambda path: ()


def read(
    messages: Sequence[ChatMessage],
    tools: Sequence[str],
    max_message_bytes: int,
    template: TurnTemplate,
    trims: bool = False,
) -> ResentHistory:
    """Raises `MessageRefused` with a sentence. `trims` as in `history_hash`."""
    cleaned = [_apart(_clean(message, max_message_bytes), template) for message in messages]
    if not cleaned:
        raise MessageRefused("The request has no messages.")
    for number, message in enumerate(cleaned):
        if message.role not in ROLES:
            raise MessageRefused(f"Message {number + 1} has the unknown role {message.role[:40]!r}.")
    beginning = cleaned.pop() if cleaned[-1].role == "assistant" else None
    if beginning is not None and beginning.tool_calls:
        raise MessageRefused("The last message calls tools. Add their results.")
    head = next((n for n, message in enumerate(cleaned) if message.role not in SYSTEM_ROLES), len(cleaned))
    if head == len(cleaned):
        what = "only system messages" if cleaned else "no question"
        raise MessageRefused(f"The request has {what}. Add a user message.")
    if beginning is not None and cleaned[-1].role == "assistant":
        raise MessageRefused("The last two messages are the assistant's. Send one answer to go on with.")
    exchanges = _exchanges(cleaned[head:], template)
    as_sent = exchanges
    exchanges, hashes = _hashes(history_hash.root(tools, cleaned[:head]), as_sent, trims=trims)

    def older_hashes() -> tuple[str, ...]:
        return _hashes(history_hash.root(tools, cleaned[:head], is_exact=True), as_sent, is_exact=True)[1]

    return ResentHistory(
        system_prompt="\n\n".join(message.text for message in cleaned[:head]),
        exchanges=exchanges,
        hashes=hashes,
        beginning=beginning,
        begun_hash="" if beginning is None else history_hash.after(hashes[-1], [beginning]),
        older_hashes=older_hashes,
        altered_in=partial(altered_answers, exchanges=exchanges, template=template),
    )


def _apart(message: ChatMessage, template: TurnTemplate) -> ChatMessage:
    """The message with its thoughts apart from its text, whichever way its client sends them."""
    if message.role != "assistant" or message.thoughts:
        return message
    thoughts, said = template.thoughts_in(message.text)
    return replace(message, text=said, thoughts=thoughts)


def _exchanges(messages: Sequence[ChatMessage], template: TurnTemplate) -> tuple[Exchange, ...]:
    found: list[Exchange] = []
    asked: list[ChatMessage] = []
    for message in messages:
        if message.role == "assistant" and asked:
            found.append(Exchange(tuple(asked), message))
            asked = []
        else:
            text = template.with_thoughts(message.thoughts, message.text)
            asked.append(replace(message, text=text, thoughts=""))
    return (*found, Exchange(tuple(asked), None))


def _hashes(
    root: str, exchanges: Sequence[Exchange], is_exact: bool = False, trims: bool = False
) -> tuple[tuple[Exchange, ...], tuple[str, ...]]:
    """(the exchanges with an id for every call and result, the history's hashes)."""
    last = root
    named: list[Exchange] = []
    found: list[str] = []
    calls: tuple[ToolCall, ...] = ()
    for exchange in exchanges:
        asked = _with_result_ids(exchange.asked, calls)
        last = history_hash.after(last, asked, is_exact, trims)
        found.append(last)
        answer = exchange.answer
        if answer is not None:
            calls = tuple(
                call if call.call_id else replace(call, call_id=history_hash.call_id(last, n))
                for n, call in enumerate(answer.tool_calls)
            )
            answer = replace(answer, tool_calls=calls)
            last = history_hash.after(last, [answer], is_exact)
            found.append(last)
        named.append(Exchange(asked, answer))
    return tuple(named), tuple(found)


def _with_result_ids(asked: Sequence[ChatMessage], calls: Sequence[ToolCall]) -> tuple[ChatMessage, ...]:
    """Results without an id answer the calls before them: the first open one of their name, else the first open one."""
    open_calls = list(calls)
    found: list[ChatMessage] = []
    for message in asked:
        if message.role == "tool":
            answered = [call for call in open_calls if call.call_id == message.tool_call_id]
            if not message.tool_call_id:
                answered = [call for call in open_calls if call.name == message.name] or open_calls[:1]
            if answered:
                open_calls.remove(answered[0])
                message = replace(message, tool_call_id=answered[0].call_id)
        found.append(message)
    return tuple(found)


def _clean(message: ChatMessage, max_bytes: int) -> ChatMessage:
    refuse_if_huge(message.text, max_bytes)
    refuse_if_huge(message.thoughts, max_bytes)
    for call in message.tool_calls:
        refuse_if_huge(call.arguments, max_bytes, "This call")
    return replace(
        message,
        role=clean_exactly(message.role),
        text=clean_exactly(message.text),
        thoughts=clean_exactly(message.thoughts),
        tool_call_id=clean_exactly(message.tool_call_id),
        name=clean_exactly(message.name),
        tool_calls=tuple(
            ToolCall(clean_exactly(call.call_id), clean_exactly(call.name), clean_exactly(call.arguments))
            for call in message.tool_calls
        ),
    )


def edited(messages: Sequence[ChatMessage], text: str) -> Exchange:
    """The question that a person's text replaces these messages with. Those of the system were not the person's: they
    stay where they are."""
    own = next((n for n, message in enumerate(messages) if message.role not in SYSTEM_ROLES), len(messages))
    later = (message for message in messages[own:] if message.role in SYSTEM_ROLES)
    return Exchange((*messages[:own], ChatMessage("user", text), *later), None)


def altered_answers(path: Sequence[Node], exchanges: Sequence[Exchange], template: TurnTemplate) -> tuple[int, ...]:
    """The numbers, counted from 1 without the system text, of the answers on the path that were sent back in another
    form than they have there."""
    found: list[int] = []
    number = 0
    for place, node in enumerate(path):
        if node.role != "assistant":
            number += len(exchanges[place // 2].asked)
            continue
        number += 1
        answer = exchanges[place // 2].answer
        if answer is None or answer.text == node.text or (answer.tool_calls and answer.text in node.text):
            continue
        if not is_said_exactly(answer.text, node, template):
            found.append(number)
    return tuple(found)


def is_said_exactly(text: str, node: Node, template: TurnTemplate) -> bool:
    """Whether a stored answer says this, character by character, with or without thoughts and calls around it."""
    ways = product((False, True), (False, True))
    return any(
        text == history_hash.answer_message(node.text, has_calls, "", template, is_open).text
        for has_calls, is_open in ways
    )
