"""The hash chain over messages, by which a request that resends its history is recognised. Pure functions.

A history hash covers a whole history: `after(hash of the history before, [message])`. Equal hashes mean equal
histories, character by character: the tools, then each message's role, text, white space, name, ids and calls. Of
calls' arguments the order of keys and the spacing are left out, and an answer's thoughts: most clients do not send
them back. A hash has 160 bits, so a match needs no comparison
of the texts.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import replace
from hashlib import blake2b

from model_runtime.interface.chat import ChatMessage, ToolCall, TurnTemplate
from sessions.store.message_json import fields
from sessions.text import clean_exactly

_LONGEST_CANONICAL_CHARS = 65_536
CALL_ID_CHARS = 9  # letters and digits only: some models' templates accept no other ids


def root(tools: Sequence[str], system: Iterable[ChatMessage]) -> str:
    """The hash of the beginning of a history: its tools and its first system messages."""
    tools_hash = blake2b("\0".join(tools).encode(), digest_size=20).hexdigest()
    return after(tools_hash, system)


def after(before: str, messages: Iterable[ChatMessage]) -> str:
    """The hash of the history that continues the history with the hash `before` with these messages."""
    chained = before
    for message in messages:
        compared = json.dumps(fields(_canonical(message)))
        chained = blake2b(f"{chained}{compared}".encode(), digest_size=20).hexdigest()
    return chained


def _canonical(message: ChatMessage) -> ChatMessage:
    """The message with its calls' arguments in one way of writing them: several protocols send them as objects, and
    clients write these in their own order and spacing. An answer may have characters that cannot be stored where a
    client sends it back."""
    calls = tuple(replace(call, arguments=_canonical_json(call.arguments)) for call in message.tool_calls)
    return replace(message, text=clean_exactly(message.text), tool_calls=calls)


def _canonical_json(text: str) -> str:
    if len(text) > _LONGEST_CANONICAL_CHARS:  # parsing megabytes keeps all threads waiting
        return text
    try:
        return json.dumps(json.loads(text, parse_float=_number), sort_keys=True, ensure_ascii=False)
    except (ValueError, RecursionError):
        return text


def _number(text: str) -> float:
    """JavaScript writes 1.0 as 1."""
    found = float(text)
    return int(found) if found.is_integer() else found


def page_root(system_prompt: str) -> str:
    """The first hash of a conversation of the page, so that an API client can continue it."""
    return root((), [ChatMessage("system", system_prompt)] if system_prompt else [])


def answer_message(
    text: str, reads_calls: bool, asked: str, template: TurnTemplate, is_thought_open: bool = False
) -> ChatMessage:
    """A finished answer in the form in which a client receives it and sends it back. `asked` is the hash of the history
    that it answers (if that is unknown, anything else that tells answers apart): its calls' ids depend on that, so that
    they are known again where a client does not send them back. `is_thought_open`: its prompt had the beginning of a
    thought."""
    thoughts, said = template.thoughts_in(text, is_thought_open)
    if not reads_calls:
        return ChatMessage("assistant", said, thoughts=thoughts)
    content, calls = template.calls_in(said)
    named = tuple(ToolCall(call_id(asked, n), c.name, c.arguments) for n, c in enumerate(calls))
    return ChatMessage("assistant", content, named, thoughts=thoughts)


def call_id(asked: str, number: int) -> str:
    """The id of the call of that number in an answer."""
    return blake2b(f"{asked} {number}".encode(), digest_size=16).hexdigest()[:CALL_ID_CHARS]
