"""Finds out which characters of a rendering come from the messages' texts.

Chosen characters of the texts get stand-ins that nobody's text has, one for one: lengths, slices, order and white space
stay what they are. A stand-in that stands in a rendering says where its character came from, whatever the template cut,
moved or repeated.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

_PLANES = ((0xF0000, 0xFFFFD), (0x100000, 0x10FFFD))  # private use: no letters, signs or white space
_CODES = [code for first, last in _PLANES for code in range(first, last + 1)]
_STAND_IN = re.compile("[{}-{}{}-{}]".format(*(chr(code) for plane in _PLANES for code in plane)))
_FIRST_PLANE_SIZE = _PLANES[0][1] - _PLANES[0][0] + 1
_MOST = len(_CODES)
_KEPT = frozenset("\"'\\&/_")  # what templates escape, or look for

Place = tuple[int, int]  # (message, character)
Passages = Sequence[Sequence[tuple[int, int]]]  # of each text: (start, end) of what must be found again


@dataclass(frozen=True, slots=True)
class Traced:
    """A rendering with the real characters again, and (message, start, end) of what comes from a text."""

    text: str
    passages: tuple[tuple[int, int, int], ...]


def traced(
    render: Callable[[Sequence[str]], str | None], real: str, texts: Sequence[str], spelled: Passages
) -> Traced | None:
    """`real` with what comes from the texts, those of its passages that are `spelled` at least.

    A template that looks for exactly those passages in a text renders it differently without them. What people write
    never is one of its control tokens, so the rendering without them is the answer then. None where neither can be
    told. `render` answers None where the template refuses the texts.
    """
    found: list[tuple[list[Place], Traced]] = []
    for places in _choices(texts, spelled):
        rendering = render(_with_stand_ins(texts, places))
        trace = None if rendering is None else _trace(rendering, texts, places)
        if trace is not None and trace.text == real:
            return trace
        if trace is not None:
            found.append((places, trace))
    if len(found) < 2:
        return None
    (places, one), (others, other) = found[-2:]
    return other if one.text == other.text and not {*places} & {*others} else None


def _choices(texts: Sequence[str], spelled: Passages) -> Iterator[list[Place]]:
    """Characters to be replaced, as many as possible first: the fewer, the less a template may notice. Each is made
    when it is asked for, since the first is nearly always right."""
    tried: list[list[Place]] = []
    for places in _every_choice(texts, spelled):
        if places and len(places) <= _MOST and places not in tried:
            yield places
        tried.append(places)


def _every_choice(texts: Sequence[str], spelled: Passages) -> Iterator[list[Place]]:
    is_long = sum(map(len, texts)) > _MOST  # then it would take seconds to look at each character
    everywhere = [[] if is_long else [(0, len(text))] for text in texts]
    passages: Passages
    for passages, is_chosen in ((everywhere, _is_written), (everywhere, _is_sign), (spelled, _is_sign)):
        yield [
            (message, place)
            for message, parts in enumerate(passages)
            for start, end in parts
            for place in range(start, end)
            if is_chosen(texts[message][place]) or _STAND_IN.match(texts[message][place])
        ]
    for which in (0, -1):
        yield [(message, range(*part)[which]) for message, parts in enumerate(spelled) for part in parts]


def _is_written(character: str) -> bool:
    return not character.isspace()


def _is_sign(character: str) -> bool:
    return not character.isspace() and not character.isalnum() and character not in _KEPT


def _with_stand_ins(texts: Sequence[str], places: Sequence[Place]) -> list[str]:
    letters = [list(text) for text in texts]
    for code, (message, place) in zip(_CODES, places, strict=False):
        letters[message][place] = chr(code)
    return ["".join(text) for text in letters]


def _trace(rendering: str, texts: Sequence[str], places: Sequence[Place]) -> Traced:
    letters = list(rendering)
    passages: list[tuple[int, int, int]] = []
    last: tuple[int, int, int] | None = None  # message, its character, and where that stands
    for found in _STAND_IN.finditer(rendering):
        number, here = _number(found.group()), found.start()
        if number >= len(places):
            continue  # the template's own
        message, place = places[number]
        letters[here] = texts[message][place]
        goes_on = last is not None and last[0] == message and place - last[1] == here - last[2] > 0
        if last is not None and goes_on and rendering[last[2] + 1 : here] == texts[message][last[1] + 1 : place]:
            passages[-1] = (message, passages[-1][1], here + 1)
        else:
            passages.append((message, here, here + 1))
        last = (message, place, here)
    return Traced("".join(letters), tuple(passages))


def _number(stand_in: str) -> int:
    code = ord(stand_in)
    return code - _PLANES[0][0] if code <= _PLANES[0][1] else code - _PLANES[1][0] + _FIRST_PLANE_SIZE
