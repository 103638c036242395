"""Splits an answer of a reasoning model into its thoughts and what it says.

Thoughts stand at the beginning, between a pair of marks. Some chat templates write the opening mark into the prompt, so
that the answer has only the closing one. Marks elsewhere are text: an answer may be about them.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from model_runtime.interface.chat import TurnTemplate
from model_runtime.interface.errors import TemplateRefused

_NAMES = ("think", "thinking", "thought", "thoughts", "reasoning", "seed:think", "antThinking")
_PAIRS: tuple[tuple[str, str], ...] = (
    *((f"<{name}>", f"</{name}>") for name in _NAMES),
    ("[THINK]", "[/THINK]"),
    ("◁think▷", "◁/think▷"),
    ("<|begin_of_thought|>", "<|end_of_thought|>"),
    ("<|START_THINKING|>", "<|END_THINKING|>"),
    ("<|channel|>analysis<|message|>", "<|channel|>final<|message|>"),
    ("<|channel>thought", "<channel|>"),
)
_CLOSERS = dict(_PAIRS)
_LAST_TOKENS = 16  # of a prompt: more than any mark has
_LONGEST_MARK = max(len(mark) for pair in _PAIRS for mark in pair)
_OPENER = re.compile(rf"\s*({'|'.join(re.escape(opener) for opener, _ in _PAIRS)})")
# A closing mark without an opening one counts only on a line of its own.
_LONE_CLOSER = re.compile(rf"^[ \t]*({'|'.join(re.escape(closer) for _, closer in _PAIRS[:-2])})[ \t]*$", re.MULTILINE)
_FENCE = re.compile(r"^[ \t]*(```|~~~)", re.MULTILINE)
_OPENED_IN_PROMPT = re.compile(rf"({'|'.join(re.escape(opener) for opener, _ in _PAIRS)})\s*\Z")


@dataclass(frozen=True, slots=True)
class Parts:
    """An answer in two. `is_open`: the thoughts have no end yet."""

    thoughts: str
    answer: str
    is_open: bool = False


def split(text: str, prompt_end: str = "", is_growing: bool = False) -> Parts:
    """The parts of an answer, finished or growing. `prompt_end` are the last words of the prompt before it."""
    thoughts: list[str] = []
    opened = _OPENED_IN_PROMPT.search(prompt_end)
    rest, closer = text, _CLOSERS[opened[1]] if opened else ""
    if not closer and (lone := _lone_closer(text)) is not None:
        thoughts.append(text[: lone.start()])
        rest = text[lone.end() :]
    while closer or (begun := _OPENER.match(rest)) is not None:
        if not closer:
            assert begun is not None
            rest, closer = rest[begun.end() :], _CLOSERS[begun[1]]
        thought, mark, rest = rest.partition(closer)
        if not mark:
            unfinished = _unfinished(thought, closer) if is_growing else 0
            return Parts(_joined([*thoughts, thought[: len(thought) - unfinished]]), "", True)
        thoughts.append(thought)
        closer = ""
    if is_growing and _may_become_opener(rest):
        rest = ""
    return Parts(_joined(thoughts), rest.lstrip("\n") if thoughts else rest)


def prompt_end(template: TurnTemplate) -> str:
    """The last words of every prompt, as text: some chat templates begin the answer's thoughts there."""
    try:
        ids = template.first_turn("", "x")
    except TemplateRefused:
        return ""
    return template.plain(ids[-_LAST_TOKENS:])


def _lone_closer(text: str) -> re.Match[str] | None:
    if _OPENER.match(text):
        return None
    found = _LONE_CLOSER.search(text)
    if found is None or len(_FENCE.findall(text, 0, found.start())) % 2:  # an example inside code
        return None
    return found


def _unfinished(text: str, mark: str) -> int:
    """How many characters at the end of `text` may be the beginning of `mark`."""
    return next((n for n in range(min(len(mark) - 1, len(text)), 0, -1) if text.endswith(mark[:n])), 0)


def _may_become_opener(text: str) -> bool:
    begun = text.lstrip()
    return 0 < len(begun) < _LONGEST_MARK and any(opener.startswith(begun) for opener in _CLOSERS)


def _joined(thoughts: list[str]) -> str:
    return "\n\n".join(filter(None, (thought.strip() for thought in thoughts)))
