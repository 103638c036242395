"""A stored path as the messages that a client would resend for it. Pure functions."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product

from model_runtime.interface.chat import ChatMessage, TurnTemplate
from sessions.ledger import history_hash
from sessions.store.records import Node


def messages_of(path: Sequence[Node], template: TurnTemplate) -> tuple[ChatMessage, ...]:
    """The messages whose hashes lead to the path's end, without those of the system at the beginning."""
    found: list[ChatMessage] = []
    for place, node in enumerate(path):
        found += [answer_of(path[: place + 1], template)] if node.role == "assistant" else node.messages
    return tuple(found)


def answer_of(path: Sequence[Node], template: TurnTemplate) -> ChatMessage:
    """The answer at the end of a path as its client got it: whether calls were read from its text, and whether its
    prompt had begun a thought, is known by its history hash."""
    node, before = path[-1], path[-2].history_hash if len(path) > 1 else ""
    seeds = dict.fromkeys((before, str(node.message_id)))
    for reads_calls, is_open, seed in product((True, False), (False, True), seeds):
        message = history_hash.answer_message(node.text, reads_calls, seed, template, is_open)
        hashes = (history_hash.after(before, [message], is_exact) for is_exact in (False, True))
        if before and node.history_hash in hashes:
            return message
    return history_hash.answer_message(node.text, template.takes_tools, before or str(node.message_id), template)
