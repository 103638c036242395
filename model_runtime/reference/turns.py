"""What is said in a comparison: messages whose token ids are compared, and ledgers that pass every boundary."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from transformers import PreTrainedTokenizerFast

from model_runtime.interface.chat import ChatMessage
from model_runtime.interface.errors import TemplateRefused
from model_runtime.reference.boundaries import Boundary
from model_runtime.text.chat_template import ChatTemplate

SYSTEM, ANSWER = "Answer in one sentence.", "It was built in 1889, in two years."
QUESTIONS = (
    "Hello, how are you?",
    "  Two spaces first, then a line feed.\n\nAnd `code = {1: 'x'}`",
    "Señor, 你好, привет, 👩\u200d🚀, 3.14159",
)
SECOND = "Why? Say it in other words."
GREEDY_TOKENS = 8
LONG_TOKENS = 600  # more than one chunk of prefill
BEFORE_TOKENS = 4  # so that the answer itself crosses the boundary, token by token
BEHIND_TOKENS = 128  # read behind the boundary in the second turn
_WORDS = (
    *("river", "stone", "window", "garden", "paper", "letter", "morning", "winter", "silver", "number", "bridge"),
    *("market", "doctor", "engine", "island", "mountain", "teacher", "village", "yellow", "picture", "summer"),
)

Messages = tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class TurnIds:
    """Keepwarm's ids for the last turn of `messages`: all ids, or with `behind_answer` those that a second turn adds
    behind the answer's last one."""

    what: str
    messages: Messages
    token_ids: tuple[int, ...]
    behind_answer: bool = False


@dataclass(frozen=True, slots=True)
class Reading:
    """Ids to read; an answer follows, then `more` ids and a second answer. `what` and `then` name the two answers."""

    what: str
    then: str
    ledger: tuple[int, ...]
    more: tuple[int, ...]


def turns_of(template: ChatTemplate) -> Iterator[TurnIds]:
    """First turns with and without a system prompt, and a second turn behind an answer."""
    for number, question in enumerate(QUESTIONS, start=1):
        yield TurnIds(f"first turn, text {number}", (("user", question),), template.first_turn("", question))
    yield _second_turn("second turn", template, "")
    try:
        ids = template.first_turn(SYSTEM, QUESTIONS[0])
    except TemplateRefused:
        return
    yield TurnIds("first turn with a system prompt", (("system", SYSTEM), ("user", QUESTIONS[0])), ids)
    yield _second_turn("second turn with a system prompt", template, SYSTEM)


def _second_turn(what: str, template: ChatTemplate, system_prompt: str) -> TurnIds:
    said = (("user", QUESTIONS[0]), ("assistant", ANSWER), ("user", SECOND))
    messages = (("system", system_prompt), *said) if system_prompt else said
    if template.rewrites_history(system_prompt):
        whole = template.whole(system_prompt, [ChatMessage(role, text) for role, text in said])
        return TurnIds(f"{what}, the history written anew", messages, whole)
    ids = template.next_turn(False, SECOND, system_prompt)
    return TurnIds(f"{what}, behind an answer", messages, ids, behind_answer=True)


def readings_of(
    tokenizer: PreTrainedTokenizerFast,
    first: Sequence[int],
    second: Sequence[int],
    boundaries: Sequence[Boundary],
    most_tokens: int,
) -> tuple[list[Reading], list[str]]:
    """What to read, none of it longer than `most_tokens` with its answers, and sentences about what is left out."""
    answers = 2 * GREEDY_TOKENS
    found, left_out = [Reading("first turn", "second turn", tuple(first), tuple(second))], []
    prose = _prose(tokenizer, most_tokens)
    for boundary in boundaries:
        start = max(boundary.tokens - BEFORE_TOKENS, len(first))
        more = min(BEHIND_TOKENS, most_tokens - start - answers)
        if more < 1:
            left_out.append(
                f"Nothing {boundary.what} was compared: it lies behind the limit of {most_tokens:,} tokens."
            )
            continue
        found.append(_long(boundary.what, first, prose, start, more))
    farthest = max((len(reading.ledger) for reading in found), default=0)
    start = min(LONG_TOKENS, most_tokens - answers - BEHIND_TOKENS)
    if farthest < start:
        found.append(_long(f"a prompt of {start:,} tokens", first, prose, start, BEHIND_TOKENS))
    return found, left_out


def _long(what: str, first: Sequence[int], prose: Sequence[int], start: int, more: int) -> Reading:
    ledger = (*first, *prose)[:start]
    return Reading(what, f"{what}, second turn", ledger, tuple(prose[-more:]))


def _prose(tokenizer: PreTrainedTokenizerFast, tokens: int) -> tuple[int, ...]:
    """At least `tokens` ids of the same words in an order that never repeats."""
    randomness = random.Random(20)  # noqa: S311 - the same text each time
    ids: list[int] = []
    while len(ids) < tokens:
        text = " ".join(randomness.choice(_WORDS) for _ in range(200))
        ids += tokenizer.backend_tokenizer.encode(text, add_special_tokens=False).ids
    return tuple(ids)
