"""How many values a JSON text holds and how deep they lie, counted before anything is built of them.

`json.loads` keeps every other thread of Python waiting until it is done: 1.3 s for 16 MiB of `{"r":1},`, 0.1 s for as
much text in one string. What costs is the number of values, so that is counted first, in windows between which other
threads run, and only up to the limit.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any, NoReturn

LONGEST_NUMBER_CHARS = 400  # a float64 has 309 digits before the point at most
WINDOW_BYTES = 64 * 1024  # about 3 ms at worst: so long nobody else runs

_STRING = re.compile(rb'"(?:[^"\\]++|\\.)*+"', re.DOTALL)
_WHOLE = re.compile(rb'(?:[^"]++|"(?:[^"\\]++|\\.)*+")*+', re.DOTALL)  # up to a string that does not end here
_REST_OF_STRING = re.compile(rb'(?:[^"\\]++|\\.)*+', re.DOTALL)
_LONG_NUMBER = re.compile(rb"(?<![-+.0-9eE])[-+.0-9eE]{%d}" % (LONGEST_NUMBER_CHARS + 1))
_NO_BRACKETS = re.compile(rb"[^\[\]{}]++")
_OPENING = frozenset(b"[{")


@dataclass(frozen=True, slots=True)
class Shape:
    """What a JSON text may be at most. Every comma and every opening bracket counts as a value."""

    values: int
    depth: int


class ShapeRefused(ValueError):
    """The text is more than it may be, or is not JSON. The sentence is for its sender."""


def check_shape(text: bytes | bytearray, most: Shape) -> None:
    """Raises `ShapeRefused`. Whether the text is JSON at all is not looked at."""
    values = depth = at = 0
    while at < len(text):
        whole = _WHOLE.match(text, at, at + WINDOW_BYTES)
        assert whole is not None, "it matches nothing at least"
        marks = _STRING.sub(b"", whole[0])
        values += marks.count(b",") + marks.count(b"[") + marks.count(b"{")
        if values > most.values:
            raise ShapeRefused(f"The request holds more than {most.values:,} values.")
        if _LONG_NUMBER.search(marks):
            raise ShapeRefused(f"A number in the request is longer than {LONGEST_NUMBER_CHARS} digits.")
        depth = _depth(depth, marks, most.depth)
        at = whole.end()
        if text[at : at + 1] == b'"':
            at = _end_of_string(text, at + 1)


def load_json(text: bytes | bytearray, most: Shape) -> Any:
    """The value of a JSON text in UTF-8. Raises `ShapeRefused`."""
    check_shape(text, most)
    try:
        return json.loads(text.decode("utf-8-sig"), parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise ShapeRefused("The request's body is not JSON.") from error


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def _depth(depth: int, marks: bytes | bytearray, most: int) -> int:
    """The depth behind `marks`, which begin at `depth`."""
    for bracket in _NO_BRACKETS.sub(b"", marks):
        depth += 1 if bracket in _OPENING else -1
        if depth > most:
            raise ShapeRefused(f"The request is nested deeper than {most} levels.")
    return depth


def _end_of_string(text: bytes | bytearray, at: int) -> int:
    """Behind the quote that ends the string whose content goes on at `at`."""
    while at < len(text):
        match = _REST_OF_STRING.match(text, at, at + WINDOW_BYTES)
        assert match is not None, "it matches nothing at least"
        if match.end() == at:  # the quote, or a backslash at the end of the text
            return at + 1
        at = match.end()
    return at
