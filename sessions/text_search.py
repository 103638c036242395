"""Finding a text as people search: whatever its case in any script, its width, or how its accents are stored."""

from __future__ import annotations

import re
import unicodedata
from bisect import bisect_left
from dataclasses import dataclass

EXCERPT_BEFORE_CHARS, EXCERPT_AFTER_CHARS = 24, 70
# Casefolding leaves a dot above the "i" of the Turkish "İ", and keeps the dotless "ı" apart from "i".
_TURKISH = {ord("\u0307"): None, ord("\u0131"): "i"}
MOST_MARKS = 30
_MARKS = re.compile(rb"[^\0]+")
# These become marks when they are decomposed.
_MARKS_ONCE_NORMALISED = "\u0f73\u0f75\u0f81\uff9e\uff9f"


@dataclass(frozen=True, slots=True)
class Excerpt:
    """Where a text was found, on one line: a few characters before it, the text itself, and some after it."""

    before: str
    found: str
    after: str


def folded(text: str) -> str:
    """The text without differences of case, width or composition: "МОСКВА" and "москва", "Straße" and "STRASSE". Of a
    run of marks that no language has, only the beginning counts, so that it takes linear time."""
    if text.isascii():
        return text.lower()
    text = _without_long_mark_runs(text)
    whole = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
    return whole.translate(_TURKISH)


def long_mark_runs(text: str) -> list[tuple[int, int]]:
    """Where runs of more than 30 marks that stand above or below a character begin and end, found in linear time: 30 is
    Unicode's limit for streams (UAX 15, "Stream-Safe Text Format"). Normalising such a run takes a time that grows with
    its square; no language has one."""
    for mark in _MARKS_ONCE_NORMALISED:
        text = text.replace(mark, "\u0300")
    classes = bytes(map(unicodedata.combining, text))  # at most 240, 0 for what is no mark
    return [found.span() for found in _MARKS.finditer(classes) if len(found[0]) > MOST_MARKS]


def _without_long_mark_runs(text: str) -> str:
    kept, place = [], 0
    for start, end in long_mark_runs(text):
        kept.append(text[place : start + MOST_MARKS])
        place = end
    return "".join((*kept, text[place:]))


def holds(text: str | None, needle: str) -> bool:
    """Whether the text contains `needle`, which is `folded` already."""
    return bool(text) and needle in folded(str(text))


def excerpt(text: str, needle: str) -> Excerpt | None:
    """The first place of `needle`, which is `folded` already, None if the text does not contain it."""
    whole = folded(text)
    place = whole.find(needle)
    if place < 0 or not needle:
        return None
    if len(whole) == len(text):
        start, end = place, place + len(needle)
    else:  # folding changed the length somewhere: the shortest beginnings that reach there
        start = bisect_left(range(len(text)), place + 1, key=lambda index: len(folded(text[: index + 1])))
        end = 1 + bisect_left(range(len(text)), place + len(needle), key=lambda index: len(folded(text[: index + 1])))
    while end < len(text) and unicodedata.combining(text[end]):
        end += 1
    before = text[max(0, start - EXCERPT_BEFORE_CHARS) : start]
    return Excerpt(
        _one_line(before, start > EXCERPT_BEFORE_CHARS),
        " ".join(text[start:end].split()) or text[start:end],
        _one_line(text[end : end + EXCERPT_AFTER_CHARS], False),
    )


def _one_line(text: str, is_cut: bool) -> str:
    """With the spaces at its ends, which belong between the parts."""
    line = " ".join(text.split())
    line = f" {line}" if text[:1].isspace() and not is_cut else line
    line = f"{line} " if text[-1:].isspace() and line.strip() else line
    return f"…{line}" if is_cut else line
