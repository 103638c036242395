"""No text, however odd, may keep the process busy for long: Python cannot interrupt it while all requests wait."""

from __future__ import annotations

import time

import pytest

from app.page.markdown.growing import Answers, GrowingAnswer
from app.page.markdown.languages import LANGUAGES
from tests.app.page.markdown.trees import PARSER, draw
from tests.polling import pause

LENGTH = 36_000
SEEDS = (
    *"`<[]()*_~>-#|$\\&:!\"'\n\t =+{}",
    "- ",
    "> ",
    "> - ",
    "1. ",
    "[a](",
    "![a](",
    "[a]: b\n",
    "[a]:\n",
    "[[",
    "](",
    "<a ",
    "<!--",
    "*a ",
    "a**b",
    "**a _b ",
    "~~a ",
    "` a",
    "`` ` ",
    "http://",
    "http://a.",
    "https://a(",
    "www.a.",
    "#www.a.b",
    "(www.a ",
    "a@b.cd ",
    "@a-",
    "[^1]",
    "[^1]: ",
    "[^a]: b\n",
    "**重。",
    "<think>",
    "</think>\n",
    "$a ",
    "$$",
    "$$\n",
    "\\(",
    "\\[\n",
    "\\(x\\)",
    "$x^{$",
    "&lt;",
    "&#1;",
    "|a",
    "|a|\n|-|\n",
    "a\n=\n",
    "> a\nb\n",
    "```\n",
    "```c\n\n",
    "~~~\n",
    "    a\n\n",
    "- a\n\n  ",
    "a\n\n",
    "[x] ",
    "- [ ] a\n",
    "<http://a",
    "\\",
    "*_",
    "[a" * 20 + "](b)",
)
CODE_SEEDS = (
    *"\n \t(){}[]<>\"'`\\/*#-=$@%a1_;:",
    "/*",
    "//",
    "a ",
    "a\n",
    "'\\",
    '"\\',
    '"""',
    "a(",
    "<a ",
    "<!--",
    "{-",
    "1.",
)


@pytest.mark.alone
@pytest.mark.parametrize("seed", SEEDS)
def test_time_grows_with_length_not_faster(seed: str) -> None:
    """36 kB of backticks once took 9 s. The bound is generous for any machine; 1 s at most was measured."""
    text = (seed * (LENGTH // len(seed) + 1))[:LENGTH]
    began = time.thread_time()
    draw(text)
    assert time.thread_time() - began < 6


@pytest.mark.alone
@pytest.mark.parametrize("language", [language.names[0] for language in LANGUAGES])
def test_code_colours_take_time_by_length(language: str) -> None:
    for seed in CODE_SEEDS:
        code = (seed * 4_000)[:4_000]
        took_s = []
        for _ in range(3):  # a garbage collection may fall into one of them
            began = time.thread_time()
            blocks = draw(f"````````{language}\n{code}\n````````")
            took_s.append(time.thread_time() - began)
            if took_s[-1] < 1:
                break
        assert min(took_s) < 1
        assert blocks[0][0] == "code_block"


def test_an_answer_that_grows_is_not_parsed_from_its_beginning_each_time() -> None:
    """A step near the end of 60 kB costs about what one near its beginning costs."""
    paragraphs = [
        f"## Part {number}\n\nSome *prose* with `code` and a [link](http://x/{number}).\n\n- a\n- b\n\n"
        for number in range(700)
    ]
    growing = GrowingAnswer(PARSER)
    text = ""
    costs = []
    for paragraph in paragraphs:
        text += paragraph
        began = time.thread_time()
        growing.draw(text)
        costs.append(time.thread_time() - began)
    early, late = sorted(costs[50:150])[50], sorted(costs[-100:])[50]
    assert late < 5 * early + 0.002


@pytest.mark.alone
def test_what_is_costly_is_drawn_less_often() -> None:
    """A single block that never ends: drawing it must leave most of the processor to the model."""
    answers = Answers()
    text = "| a | b |\n| - | - |\n"
    began = time.monotonic()
    busy_s = 0.0
    while time.monotonic() - began < 2:
        text += "| *some* `cell` | another [cell](http://x/) |\n" * 20
        before = time.thread_time()
        answers.growing("one", text)
        busy_s += time.thread_time() - before
        pause(0.1)  # as the page asks
    assert busy_s < 0.5 * (time.monotonic() - began)
    assert answers.whole(text)[0].json.count('"row"') == text.count("\n") - 1


def test_whole_answers_are_remembered() -> None:
    answers = Answers()
    text = "# a\n\nb *c* `d`\n\n" * 500
    first = answers.whole(text)
    began = time.thread_time()
    assert answers.whole(text) is first
    assert time.thread_time() - began < 0.01
