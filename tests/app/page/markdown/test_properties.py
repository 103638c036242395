"""For any text the tree holds only allowed nodes, and growing in any steps ends like drawing at once."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from app.page.markdown.growing import GrowingAnswer
from app.page.markdown.nodes import DEEPEST
from tests.app.page.markdown.hostile import ANSWERS, PAYLOADS, documents
from tests.app.page.markdown.trees import BLOCKS_AND_SPANS, MATH, PARSER, draw, nodes, text

MATH_LEVELS = 20
HREF = re.compile(r"(https?://[^\s]|mailto:[^\s])[^\s<>\"]*", re.IGNORECASE)
MATH_VALUE = re.compile(r"true|false|normal|box|prefix|infix|postfix|[0-2]|[0-3]?(\.\d+)?em")


def check(blocks: list[Any]) -> None:
    for kind, attributes, children, depth in nodes(blocks):
        assert depth <= DEEPEST + MATH_LEVELS
        assert isinstance(children, list)
        if kind in MATH:
            assert all(MATH_VALUE.fullmatch(value) for value in attributes.values())
            continue
        assert set(attributes) <= BLOCKS_AND_SPANS[kind]
        if "href" in attributes:
            assert HREF.fullmatch(attributes["href"])


def json_of(answer: GrowingAnswer, so_far: str) -> list[Any]:
    return [json.loads(block.json) for block in answer.draw(so_far)]


few = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
many = settings(max_examples=5_000, deadline=None, suppress_health_check=[HealthCheck.too_slow])


def holds_for(document: str) -> None:
    check(draw(document))


def grows_to_the_same(document: str, data: st.DataObject) -> None:
    """Every prefix is safe, and drawn as if it were drawn for the first time."""
    steps = data.draw(st.lists(st.integers(1, max(1, len(document) // 3)), max_size=30))
    growing = GrowingAnswer(PARSER)
    end = 0
    for step in [*steps, len(document)]:
        end = min(len(document), end + step)
        so_far = json_of(growing, document[:end])
        check(so_far)
        assert so_far == draw(document[:end])
    assert json_of(growing, document) == draw(document)


@few
@given(documents)
def test_only_allowed_nodes(document: str) -> None:
    holds_for(document)


@few
@given(documents, st.data())
def test_growing_equals_whole(document: str, data: st.DataObject) -> None:
    grows_to_the_same(document, data)


@pytest.mark.long
@many
@given(documents)
def test_only_allowed_nodes_long(document: str) -> None:
    holds_for(document)


@pytest.mark.long
@many
@given(st.lists(documents, min_size=1, max_size=4).map("\n\n".join), st.data())
def test_growing_equals_whole_long(document: str, data: st.DataObject) -> None:
    grows_to_the_same(document, data)


@pytest.mark.parametrize("document", [*ANSWERS.values(), *PAYLOADS])
def test_every_prefix_letter_by_letter(document: str) -> None:
    document = f"Intro.\n\n{document}\n\nAnd *after* it.\n\n- one\n- two\n"
    growing = GrowingAnswer(PARSER)
    for end in range(len(document) + 1):
        so_far = json_of(growing, document[:end])
        check(so_far)
        assert so_far == draw(document[:end])


_lines = st.sampled_from(("> ", "- ", "  ", "    ", "1. ", "# ", "", "", "* ", ">> ", "\t"))
_marks = st.sampled_from(
    ("{}", "*{}*", "**{}**", "`{}`", "~{}", "[{}]", "<{}>", "$x {}", "{} <b>", "\\({}", "_{}_", "]({}")
)


@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(st.lists(_lines, max_size=40).map("".join), _marks), min_size=1, max_size=8))
def test_no_word_is_lost(lines: list[tuple[str, str]]) -> None:
    """At any nesting depth: a parser that stops at a depth must not drop what lies below."""
    words = [f"word{number}x" for number in range(len(lines))]
    document = "\n".join(start + mark.replace("{}", word) for (start, mark), word in zip(lines, words, strict=True))
    shown = text(draw(document))
    assert [word for word in words if word not in shown] == []


@settings(max_examples=40, deadline=None)
@given(documents, documents)
def test_a_text_that_is_replaced_is_drawn_again(first: str, second: str) -> None:
    growing = GrowingAnswer(PARSER)
    growing.draw(first)
    assert json_of(growing, second) == draw(second)
