"""The hash chain over messages, by which a request that resends its history is known again. Pure functions.

A link stands for a whole history: `after(link of what came before, message)`. Equal links mean equal histories, letter
by letter: roles, texts, white space, names, ids and calls; the tools come first of all. A link has 160 bits,
so a match needs no second look at the texts.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from hashlib import blake2b

from model_runtime.interface.chat import ChatMessage, ToolCall, TurnTemplate
from sessions.store.message_json import fields

CALL_ID_CHARS = 9  # letters and digits: some models' templates take no other ids


def root(tools: Sequence[str], system: Iterable[ChatMessage]) -> str:
    """The link of a history's beginning: its tools and what the system says first."""
    link = blake2b("\0".join(tools).encode(), digest_size=20).hexdigest()
    return after(link, system)


def after(link: str, messages: Iterable[ChatMessage]) -> str:
    """The link behind these messages."""
    for message in messages:
        link = blake2b(f"{link}{json.dumps(fields(message))}".encode(), digest_size=20).hexdigest()
    return link


def page_root(system_prompt: str) -> str:
    """What a conversation of the page begins with, so that an API client may go on with it."""
    return root((), [ChatMessage("system", system_prompt)] if system_prompt else [])


def answer_message(text: str, reads_calls: bool, message_id: int, template: TurnTemplate) -> ChatMessage:
    """A finished answer as a client gets it, and is to send it back."""
    if not reads_calls:
        return ChatMessage("assistant", text)
    content, calls = template.calls_in(text)
    named = tuple(ToolCall(_call_id(message_id, n), c.name, c.arguments) for n, c in enumerate(calls))
    return ChatMessage("assistant", content, named)


def _call_id(message_id: int, number: int) -> str:
    return blake2b(f"{message_id} {number}".encode(), digest_size=16).hexdigest()[:CALL_ID_CHARS]
