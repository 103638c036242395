"""Titles that the model finds. A small model answers a question about titles in many ways; only a title is taken."""

from __future__ import annotations

import itertools
import re
import unicodedata

from model_runtime.interface.sampling_params import SamplingParams
from sessions.text import clean_title

TITLE_QUESTION = "Write a short title for this conversation, at most five words. Answer with the title only."
# A line is enough. No penalty on repetition: it falls on the stop token, which every message of the chat ends with.
TITLE_SAMPLING = SamplingParams(temperature=0.0, stop_strings=("\n",), max_new_tokens=16)
MOST_WORDS = 7
WORDS_WITH_SUBTITLE = 4  # a longer one loses what stands behind its colon or dash
STEM_CHARS = 4  # words that begin with the same so many letters are taken for forms of one word
MOST_CHARS = 48

_LABEL = re.compile(r"^\W*(?:short\s+|conversation\s+)?title\W*[:\-]\s*", re.IGNORECASE)
_MARKS = " \t\"'`*_#~“”„‘’«»<>|-–—:;,.()[]{}"
_TALK = re.compile(
    r"^(?:sure|certainly|of course|here|yes|no|okay|ok|as an|i|i'm|i'd|i'll|we|you|this|the title|a short title|"
    r"sorry|thank|please|dear|what|how about)\b[ ,:']",
    re.IGNORECASE,
)
_SUBTITLE = re.compile(r"\s*:\s|\s+[-–—]\s")
_IDEOGRAPH = re.compile("[\u3400-\u9fff]")
_WORD = re.compile(r"[^\W\d_]{3,}")
_SAY_NOTHING = frozenset(
    _WORD.findall(
        "the and for with your you this that from about how what are can its into our his her was not but all out"
        " who why when where which new simple guide chat conversation title discussion question answer help"
    )
)


def usable_title(answer: str, said: str) -> str:
    """The title in a model's answer; "" when there is none: too long, a sentence about titles, no words at all, or none
    that has anything to do with what was `said` in the conversation."""
    line = next((line for line in answer.splitlines() if line.strip()), "")
    title = _LABEL.sub("", clean_title(line)).strip(_MARKS)
    if len(title.split()) > WORDS_WITH_SUBTITLE:
        title = _SUBTITLE.split(title, maxsplit=1)[0].strip(_MARKS)
    if not title or len(title) > MOST_CHARS or len(title.split()) > MOST_WORDS:
        return ""
    if _TALK.match(f"{title} ") or any(mark in title for mark in ".!?<>{}|`"):
        return ""
    letters = sum(unicodedata.category(character).startswith("L") for character in title)
    return title if letters >= 2 and letters * 2 >= len(title) and _is_about(title, said) else ""


def _is_about(title: str, said: str) -> bool:
    """Whether they share a word that says something. A small model names its own dreams as readily as the chat."""
    words = {word.casefold() for word in _WORD.findall(title)} - _SAY_NOTHING
    known = {word.casefold()[:STEM_CHARS] for word in _WORD.findall(said)}
    if any(word[:STEM_CHARS] in known for word in words):
        return True
    # Where words are not told apart by spaces: an ideograph, or two other letters in a row.
    uncased = [letter for letter in title if unicodedata.category(letter) == "Lo"]
    pairs = (a + b for a, b in itertools.pairwise(uncased))
    return any(piece in said for piece in (*filter(_IDEOGRAPH.match, uncased), *pairs))
