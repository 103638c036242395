"""Limits what drawing one answer may cost, in steps instead of seconds, so that a text is drawn alike on every machine.

Most steps take 10 to 15 microseconds. What does not fit is shown as it was written: 100 kB of one-letter list items
would take a second, and Python cannot interrupt that while all requests wait.
"""

from __future__ import annotations

from collections.abc import MutableMapping
from typing import Any

MOST_BLOCK_STEPS = 7_500  # 2,500 blocks, or 7,500 cells, or lines of paragraphs
MOST_INSIDE_STEPS = 6_000  # about 100 kB of text full of links and emphasis
BLOCK_STEPS = 3
MARKERS_A_STEP = 3  # `*`, `_` and `~` in a row
MATH_STEPS = 2  # per sign or command of a formula
_BLOCKS, _INSIDE = "steps_of_blocks", "steps_inside"


class TooCostly(Exception):
    """The rest is shown as it was written."""


class Steps:
    """A number of steps that gets smaller."""

    def __init__(self, most: int) -> None:
        self._left = most

    def spend(self, steps: int) -> None:
        """Raises `TooCostly`, with nothing spent, if fewer are left."""
        if steps > self._left:
            raise TooCostly
        self._left -= steps


def new_env() -> MutableMapping[str, Any]:
    """The parser's environment for one drawing, with all steps left."""
    return {_BLOCKS: Steps(MOST_BLOCK_STEPS), _INSIDE: Steps(MOST_INSIDE_STEPS)}


def on_blocks(env: MutableMapping[str, Any]) -> Steps:
    """The steps for finding paragraphs, lists, quotes, tables, ..."""
    steps: Steps = env[_BLOCKS]
    return steps


def inside(env: MutableMapping[str, Any]) -> Steps:
    """The steps for what is inside paragraphs and cells, for code's colours and for formulas."""
    steps: Steps = env[_INSIDE]
    return steps
