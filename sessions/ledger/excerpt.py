"""The words in which two texts differ first, for a person: a few of each, and whether they are a date. Pure functions.

Everything is bounded: slices are compared, and words are looked at within a window of a few hundred characters."""

from __future__ import annotations

import re
from dataclasses import dataclass

LONGEST_CHARS = 60  # of an excerpt
_WINDOW_CHARS = 240
_WORD_CHARS = 40  # how far a word is followed to its ends
_MOST_WORDS = 24
_MONTHS = "(?:jan|feb|mar|apr|may|jun|jul|aug|sep|oct|nov|dec)[a-z]*"
_DAYS = r"(?:(?:mon|tues?|wednes|thurs?|fri|satur|sun)(?:day)?|wed|sat)"
_SENTENCE_END = re.compile(r"(?<=[.!?,;:\n])\s+")
_CLOCK = r"\d{1,2}:\d{2}(?::\d{2})?"
_DATE = re.compile(
    rf"""\b(?:(?:{_DAYS}\.?,?\ +)?(?:
        \d{{4}}[-/.]\d{{1,2}}[-/.]\d{{1,2}} (?:[T\ ]{_CLOCK}(?:\.\d+)?(?:Z|\ ?[+-]\d{{2}}:?\d{{2}})?)?
      | \d{{1,2}}[-/.]\d{{1,2}}[-/.]\d{{2,4}}
      | \d{{1,2}}(?:st|nd|rd|th|\.)?\ +{_MONTHS}\.?,?(?:\ +\d{{4}})?
      | {_MONTHS}\.?\ +\d{{1,2}}(?:st|nd|rd|th)?\b,?(?:\ +\d{{4}})?
      )
      | {_DAYS}day\b | (?:mon|tues|wednes|thurs|fri|satur|sun)day\b
      | {_CLOCK}(?:\ ?[ap]\.?m\b)?
      | 1[6-9]\d{{8}}(?:\d{{3}})?\b)""",
    re.IGNORECASE | re.VERBOSE,
)


@dataclass(frozen=True, slots=True)
class Excerpt:
    """What stands in the first text and in the second where they part, "" for nothing."""

    before: str
    after: str
    is_date: bool


def first_difference(before: str, after: str) -> int:
    """How many characters two texts have in common at their beginning."""
    same, differs = 0, min(len(before), len(after))
    if before[:differs] == after[:differs]:
        return differs
    while differs - same > 1:
        middle = (same + differs) // 2
        same, differs = (middle, differs) if before[same:middle] == after[same:middle] else (same, middle)
    return same


def changed_part(before: str, after: str) -> tuple[str, str]:
    """What is left of two texts without the beginning and the end that they have in common."""
    start = first_difference(before, after)
    before, after = before[start:], after[start:]
    end = first_difference(before[::-1], after[::-1])
    return before[: len(before) - end], after[: len(after) - end]


def fresh_part(before: str, after: str) -> str:
    """What of the second text does not stand in the first: what is left of it without the beginning and the end that
    both have, and without the sentences and lines between that both have."""
    old, new = changed_part(before, after)
    known = set(_SENTENCE_END.split(old))
    return " ".join(sentence for sentence in _SENTENCE_END.split(new) if sentence not in known)


def likeness(one: str, other: str) -> int:
    """How many characters two texts have in common at their beginning and their end together."""
    left, right = changed_part(one, other)
    return (len(one) + len(other) - len(left) - len(right)) // 2


def excerpt(before: str, after: str) -> Excerpt:
    """The words around the first difference of two texts."""
    place = first_difference(before, after)
    start = _word_start(before, place)
    dates = [_date_around(text, place) for text in (before, after)]
    if dates[0] and dates[1] and dates[0] != dates[1]:
        return Excerpt(dates[0], dates[1], is_date=True)
    left, right = (text[start : start + _WINDOW_CHARS].split()[:_MOST_WORDS] for text in (before, after))
    count_left, count_right = _meeting(left, right)
    said = _without_common_ends(" ".join(left[:count_left]), " ".join(right[:count_right]))
    return Excerpt(_short(said[0]), _short(said[1]), is_date=False)


def _word_start(text: str, place: int) -> int:
    least = max(0, place - _WORD_CHARS)
    while place > least and not text[place - 1].isspace():
        place -= 1
    return place


def _date_around(text: str, place: int) -> str:
    """The date or time that stands at the place, or ends just before it."""
    start = max(0, place - _WORD_CHARS)
    for found in _DATE.finditer(text, start, place + 2 * _WORD_CHARS):
        if found.start() <= place <= found.end():
            return found[0].strip()
    return ""


def _meeting(left: list[str], right: list[str]) -> tuple[int, int]:
    """After how many words of each the two go on alike, for two words at least; all of them if they do not."""
    ends = [*left, ""], [*right, ""]
    for total in range(len(left) + len(right) + 1):
        for i in range(max(0, total - len(right)), min(total, len(left)) + 1):
            j = total - i
            if ends[0][i : i + 2] == ends[1][j : j + 2] and (i or j):
                return i, j
    return len(left), len(right)


def _without_common_ends(before: str, after: str) -> tuple[str, str]:
    """Without quotes, brackets and stops that are the same on both sides."""
    while before and after and before[-1] == after[-1] and before[-1] in ".,;:!?)]}\"'`":
        before, after = before[:-1], after[:-1]
    while before and after and before[0] == after[0] and before[0] in "([{\"'`":
        before, after = before[1:], after[1:]
    return before, after


def _short(text: str) -> str:
    text = text.replace("`", "'")
    return text if len(text) <= LONGEST_CHARS else f"{text[: LONGEST_CHARS - 1].rstrip()}…"
