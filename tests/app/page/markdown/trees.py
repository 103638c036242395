"""Draws an answer as the server does, and inspects the result."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from app.page.markdown.growing import GrowingAnswer
from app.page.markdown.parser import AnswerParser

PARSER = AnswerParser()
BLOCKS_AND_SPANS = {
    "paragraph": set(),
    "quote": set(),
    "bullets": set(),
    "numbers": {"start"},
    "item": set(),
    "heading": {"level"},
    "table": set(),
    "head": set(),
    "body": set(),
    "row": set(),
    "cell": {"align", "wide"},
    "header_cell": {"align", "wide"},
    "rule": set(),
    "break": set(),
    "task": {"done"},
    "emphasis": set(),
    "strong": set(),
    "struck": set(),
    "code": set(),
    "code_block": set(),
    "token": {"class"},
    "link": {"href", "picture"},
    "note": set(),
    "note_mark": set(),
    "note_link": set(),
    "math": {"display", "source"},
    "math_source": {"display"},
}
MATH_TOKENS = {"mi", "mn", "mo", "mtext", "mspace"}
MATH_LAYOUT = {"mrow", "mstyle", "mfrac", "msqrt", "mroot", "mtable", "mtr", "mtd", "menclose"}
MATH_SCRIPTS = {"msup", "msub", "msubsup", "munder", "mover", "munderover"}
MATH = MATH_TOKENS | MATH_LAYOUT | MATH_SCRIPTS


def draw(text: str) -> list[Any]:
    """The blocks of an answer as the page gets them: `[kind, attributes, children]`, text as strings."""
    return [json.loads(block.json) for block in GrowingAnswer(PARSER).draw(text)]


def walk(tree: Any, depth: int = 1) -> Iterator[tuple[str, dict[str, Any], list[Any], int]]:
    """Every node below and with `tree`: kind, attributes, children, depth."""
    if isinstance(tree, str):
        return
    kind, attributes, children = tree
    yield kind, attributes, children, depth
    for child in children:
        yield from walk(child, depth + 1)


def nodes(blocks: list[Any]) -> list[tuple[str, dict[str, Any], list[Any], int]]:
    return [node for block in blocks for node in walk(block)]


def text(tree: Any) -> str:
    """All text that a person can read; for a list of blocks one line each."""
    if isinstance(tree, str):
        return tree
    if tree and isinstance(tree[0], str) and isinstance(tree[1], dict):
        return "".join(text(child) for child in tree[2])
    return "\n".join(text(block) for block in tree)


def kinds(blocks: list[Any]) -> set[str]:
    return {kind for kind, *_ in nodes(blocks)}
