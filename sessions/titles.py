"""Titles that the model finds. A small model answers a question about titles in many ways; only a title is taken."""

from __future__ import annotations

import re
import unicodedata

from model_runtime.types import SamplingParams
from sessions.text import clean_title

TITLE_QUESTION = "Write a short title for this conversation, at most five words. Answer with the title only."
TITLE_SAMPLING = SamplingParams(temperature=0.0, repetition_penalty=1.1, max_new_tokens=16)
MOST_WORDS = 7
MOST_CHARS = 48

_LABEL = re.compile(r"^\W*(?:short\s+|conversation\s+)?title\W*[:\-]\s*", re.IGNORECASE)
_MARKS = " \t\"'`*_#~“”„‘’«»<>|-–—:;,.()[]{}"
_TALK = re.compile(
    r"^(?:sure|certainly|of course|here|yes|no|okay|ok|as an|i|i'm|i'd|i'll|we|you|this|the title|a short title|"
    r"sorry|thank|please|what|how about)\b[ ,:']",
    re.IGNORECASE,
)


def usable_title(answer: str) -> str:
    """The title in a model's answer; "" when there is none: too long, a sentence about titles, or no words at all."""
    line = next((line for line in answer.splitlines() if line.strip()), "")
    title = _LABEL.sub("", clean_title(line)).strip(_MARKS)
    if not title or len(title) > MOST_CHARS or len(title.split()) > MOST_WORDS:
        return ""
    if _TALK.match(f"{title} ") or any(mark in title for mark in ".!?<>{}|`"):
        return ""
    letters = sum(unicodedata.category(character).startswith("L") for character in title)
    return title if letters >= 2 and letters * 2 >= len(title) else ""
