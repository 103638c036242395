"""The hash chain over messages, by which a request that resends its history is recognised. Pure functions.

A history hash covers a whole history: `after(hash of the history before, [message])`. Equal hashes mean equal
histories: the tools, then each message's role, text, name, ids and calls. Left out is what clients change without
changing what was said: the spacing and the order of keys in tools and in calls' arguments, an answer's thoughts, which
most clients do not send back, how an answer is written down (`rendition`), white space at the ends of the system
text, and of users' messages where the template `trims` it: their ids are the same then. Results of tools are compared
with theirs, which templates that trim questions may keep. A hash has 160 bits, so a match
needs no comparison of the texts.

Up to version 0.2 hashes told white space and markup apart: `is_exact` asks for one of that kind, so that older
conversations are found.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import replace
from hashlib import blake2b

from model_runtime.interface.chat import ChatMessage, ToolCall, TurnTemplate
from model_runtime.interface.errors import TemplateRefused
from sessions.ledger.rendition import normal_form
from sessions.store.message_json import fields
from sessions.text import clean_exactly

_LONGEST_CANONICAL_CHARS = 65_536
CALL_ID_CHARS = 9  # letters and digits only: some models' templates accept no other ids


def root(tools: Sequence[str], system: Iterable[ChatMessage], is_exact: bool = False) -> str:
    """The hash of the beginning of a history: its tools and its first system messages."""
    compared = tools if is_exact else [_canonical_json(tool) for tool in tools]
    return after(blake2b("\0".join(compared).encode(), digest_size=20).hexdigest(), system, is_exact)


def after(before: str, messages: Iterable[ChatMessage], is_exact: bool = False, trims: bool = False) -> str:
    """The hash of the history that continues the history with the hash `before` with these messages."""
    chained = before
    for message in messages:
        compared = json.dumps(fields(canonical(message, is_exact, trims)))
        chained = blake2b(f"{chained}{compared}".encode(), digest_size=20).hexdigest()
    return chained


def canonical(message: ChatMessage, is_exact: bool = False, trims: bool = False) -> ChatMessage:
    """The message in one way of writing it. Several protocols send calls' arguments as objects, and clients write these
    in their own order and spacing. An answer may have characters that cannot be stored where a client sends it back.
    """
    calls = tuple(replace(call, arguments=_canonical_json(call.arguments)) for call in message.tool_calls)
    text = clean_exactly(message.text)
    if message.role == "assistant" and not is_exact:
        text = normal_form(text)
    elif not is_exact and message.role in ("system", "developer", *(("user",) if trims else ())):
        text = text.strip()
    return replace(message, text=text, tool_calls=calls)


def trims_ends(template: TurnTemplate) -> bool:
    """Whether the template leaves out white space at the ends of what is asked."""
    try:
        return template.first_turn("", " \nx \n") == template.first_turn("", "x")
    except TemplateRefused:
        return False


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
