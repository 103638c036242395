"""A stored path as the messages that a client would resend for it. Pure functions."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import islice, permutations, product

from model_runtime.interface.chat import ChatMessage, TurnTemplate
from sessions.ledger import history_hash
from sessions.store.records import Node

MOST_ORDERS = 24  # of results that answer an answer's calls


def messages_of(path: Sequence[Node], template: TurnTemplate) -> tuple[ChatMessage, ...]:
    """The messages whose hashes lead to the path's end, without those of the system at the beginning."""
    found: list[ChatMessage] = []
    for place, node in enumerate(path):
        if node.role == "assistant":
            results = path[place + 1].messages if place + 1 < len(path) else ()
            found.append(answer_of(path[: place + 1], template, results))
        else:
            found += node.messages
    return tuple(found)


def answer_of(path: Sequence[Node], template: TurnTemplate, results: Sequence[ChatMessage] = ()) -> ChatMessage:
    """The answer at the end of a path as its client got it, or sent it: whether calls were read from its text, whether
    its prompt had begun a thought, and the ids of its calls are known by its history hash. Calls that came from
    elsewhere are stored with the node; in one of an older version their ids are those of its `results`, the messages
    that follow, where one of `MOST_ORDERS` orders of them leads to that hash, and else our own."""
    node, before = path[-1], path[-2].history_hash if len(path) > 1 else ""
    if node.parts and _leads_to(node.history_hash, before, sent := node.messages[0]):
        return replace(sent, thoughts=template.thoughts_in(node.text)[0])
    if before and node.history_hash:
        seeds, readings = dict.fromkeys((before, str(node.message_id))), dict[object, ChatMessage]()
        for reads_calls, is_open, seed in product((True, False), (False, True), seeds):
            own = history_hash.answer_message(node.text, reads_calls, seed, template, is_open)
            if _leads_to(node.history_hash, before, own):
                return own
            readings.setdefault((own.text, *(replace(call, call_id="") for call in own.tool_calls)), own)
        for own in readings.values():  # each once: they differ in more than the ids of their calls
            for message in _with_ids_of(own, results):
                if _leads_to(node.history_hash, before, message):
                    return message
    return history_hash.answer_message(node.text, template.takes_tools, before or str(node.message_id), template)


def _leads_to(found: str, before: str, message: ChatMessage) -> bool:
    return any(found == history_hash.after(before, [message], is_exact) for is_exact in (False, True))


def _with_ids_of(answer: ChatMessage, results: Sequence[ChatMessage]) -> Iterator[ChatMessage]:
    """The answer with the ids that the results name, in each order; nothing where they do not answer all its calls."""
    ids = [message.tool_call_id for message in results if message.role == "tool"]
    if not ids or len(ids) != len(answer.tool_calls) or ids == [call.call_id for call in answer.tool_calls]:
        return
    for order in islice(permutations(ids), MOST_ORDERS):
        calls = (replace(call, call_id=name) for call, name in zip(answer.tool_calls, order, strict=True))
        yield replace(answer, tool_calls=tuple(calls))
