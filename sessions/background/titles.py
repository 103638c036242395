"""Recognises the title in a model's answer. Small models answer the question in many ways; the rest is refused."""

from __future__ import annotations

import itertools
import re
import unicodedata

from model_runtime.interface.sampling_params import SamplingParams
from sessions.text import clean_title

TITLE_QUESTION = "Write a short title for this conversation, at most five words. Answer with the title only."
# One line is enough. No repetition penalty: it would penalise the stop token, which ends every message of the chat.
TITLE_SAMPLING = SamplingParams(temperature=0.0, stop_strings=("\n",), max_new_tokens=16)
MAX_WORDS = 7
WORDS_WITH_SUBTITLE = 4  # a longer title loses what follows its colon or dash
STEM_CHARS = 4  # words that share this many first letters count as forms of one word
MAX_CHARS = 48

_LABEL = re.compile(r"^\W*(?:short\s+|conversation\s+)?title\W*[:\-]\s*", re.IGNORECASE)
_MARKS = " \t\"'`*_#~“”„‘’«»<>|-–—:;,.()[]{}"
_CHATTER = re.compile(
    r"^(?:sure|certainly|of course|here|yes|no|okay|ok|as an|i|i'm|i'd|i'll|we|you|this|the title|a short title|"
    r"sorry|thank|please|dear|what|how about)\b[ ,:']",
    re.IGNORECASE,
)
_SUBTITLE = re.compile(r"\s*:\s|\s+[-–—]\s")
_IDEOGRAPH = re.compile("[\u3400-\u9fff]")
_WORD = re.compile(r"[^\W\d_]{3,}")
_STOP_WORDS = frozenset(
    _WORD.findall(
        "the and for with your you this that from about how what are can its into our his her was not but all out"
        " who why when where which new simple guide chat conversation title discussion question answer help"
    )
)


def usable_title(answer: str, said: str) -> str:
    """The title in a model's answer; "" when it is too long, a sentence about titles, not made of words, or unrelated
    to what was `said` in the conversation."""
    line = next((line for line in answer.splitlines() if line.strip()), "")
    title = _LABEL.sub("", clean_title(line)).strip(_MARKS)
    if len(title.split()) > WORDS_WITH_SUBTITLE:
        title = _SUBTITLE.split(title, maxsplit=1)[0].strip(_MARKS)
    if not title or len(title) > MAX_CHARS or len(title.split()) > MAX_WORDS:
        return ""
    if _CHATTER.match(f"{title} ") or any(mark in title for mark in ".!?<>{}|`"):
        return ""
    letters = sum(unicodedata.category(character).startswith("L") for character in title)
    return title if letters >= 2 and letters * 2 >= len(title) and _is_about(title, said) else ""


def _is_about(title: str, said: str) -> bool:
    """Whether they share a meaningful word. A small model often invents a title that has nothing to do with the
    chat."""
    words = {word.casefold() for word in _WORD.findall(title)} - _STOP_WORDS
    known = {word.casefold()[:STEM_CHARS] for word in _WORD.findall(said)}
    if any(word[:STEM_CHARS] in known for word in words):
        return True
    # In scripts without spaces between words: a shared ideograph, or two other letters in a row.
    uncased = [letter for letter in title if unicodedata.category(letter) == "Lo"]
    pairs = (a + b for a, b in itertools.pairwise(uncased))
    return any(piece in said for piece in (*filter(_IDEOGRAPH.match, uncased), *pairs))
