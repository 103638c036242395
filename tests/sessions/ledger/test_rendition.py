"""What counts as another rendition of the same answer, and what does not."""

from __future__ import annotations

import random
import time

import pytest

from sessions.ledger.rendition import normal_form

ANSWER = """# A plan

First, *three* things about `x_1  * y`, and __one__ more:

* the pump &amp; the lid
* the kettle, at 90 % or more

1) Open it.
2) Close it.

```python
def warm(cache):
    return cache.length  # * not a list *
```

| a | b |
|---|---|
| 1 | 2 |

***

That is all -- snake_case stays, 5 * 3 too."""

SAME = {
    "trimmed": lambda text: f"\n  {text}\n\n",
    "line ends": lambda text: text.replace("\n", "\r\n"),
    "spaces at the ends of lines": lambda text: text.replace("more:\n", "more:   \n").replace("more\n", "more\t\n"),
    "more blank lines": lambda text: text.replace("plan\n\n", "plan\n\n\n\n").replace("it.\n\n", "it.\n \n\n"),
    "list marks": lambda text: text.replace("\n* ", "\n-   "),
    "numbers": lambda text: text.replace("1) ", "1. ").replace("2) ", "2.  "),
    "emphasis": lambda text: text.replace("*three*", "_three_").replace("__one__", "**one**"),
    "entities": lambda text: text.replace("&amp;", "&"),
    "rules": lambda text: text.replace("\n***\n", "\n- - -\n"),
    "a table": lambda text: text.replace("| a | b |\n|---|---|", "| a   |  b |\n|-----|-----|"),
    "escapes": lambda text: text.replace("snake_case", "snake\\_case"),
    "no-break spaces": lambda text: text.replace("90 %", "90\u00a0%"),
}

OTHER = {
    "a word": ("pump", "lamp"),
    "a number": ("90", "91"),
    "a sign": ("5 * 3", "5 - 3"),
    "a name": ("snake_case", "snakecase"),
    "inside code": ("    return", "  return"),
    "a comment in code": ("# * not a list *", "# - not a list *"),
    "inside a line of code": ("x_1  * y", "x_1 * y"),
    "a line more": ("Close it.", "Close it.\nLock it."),
    "lines in another order": ("1) Open it.\n2) Close it.", "2) Close it.\n1) Open it."),
    "indentation": ("* the kettle", "  * the kettle"),
    "a paragraph": ("A plan\n\nFirst", "A plan\nFirst"),
    "a letter's case": ("First", "first"),
    "a dash": ("--", "-"),
    "emphasis lost": ("*three*", "three"),
    "an item's number": ("2) Close", "3) Close"),
}


@pytest.mark.parametrize("way", SAME)
def test_the_same_answer(way: str) -> None:
    altered = SAME[way](ANSWER)
    assert altered != ANSWER
    assert normal_form(altered) == normal_form(ANSWER)


@pytest.mark.parametrize("way", OTHER)
def test_another_answer(way: str) -> None:
    before, after = OTHER[way]
    assert before in ANSWER
    assert normal_form(ANSWER.replace(before, after)) != normal_form(ANSWER)


def test_any_ways_together() -> None:
    for seed in range(50):
        dice, text = random.Random(seed), ANSWER
        for way in dice.sample(list(SAME), 5):
            text = SAME[way](text) if way != "line ends" else text
        assert normal_form(text) == normal_form(ANSWER)
        assert normal_form(normal_form(text)) == normal_form(text)


@pytest.mark.parametrize(
    "piece", ["_", "__a", "`", "* ", "- - ", "\\_", "&amp", "~~~\n", "| -", "1) ", " ", "_a_ ", "\u0300\u0316"]
)
def test_it_takes_linear_time(piece: str) -> None:
    started = time.perf_counter()
    normal_form("x" + piece * (200_000 // len(piece)) + "x")
    assert time.perf_counter() - started < 2


def test_composed_letters_are_the_same() -> None:
    assert normal_form("Cafe\u0301, a\u0323\u0302") == normal_form("Caf\u00e9, \u1ead")
    runs = ["a" + "\u0300\u0316" * 40, "a" + "\u0316\u0300" * 40]  # longer than any language has: as they are
    assert normal_form(runs[0]) != normal_form(runs[1])


CODE = {
    "a fence": "```\n{}\n```",
    "a fence in a list": "1. Do:\n\n     ```sh\n     {}\n     ```",
    "a fence behind a list's mark": "- ~~~\n  {}\n  ~~~",
    "a fence behind a tab": "-\tDo:\n\n\t```\n\t{}\n\t```",
    "a fence in a quote": "> Do:\n>\n> ```\n> {}\n> ```",
    "a fence in two quotes": "> > ```\n> > {}\n> > ```",
    "a fence in a list in a quote": "> - ```\n>   {}\n>   ```",
    "a quoted mark in a fence": "```\n> ```\n{}\n```",
    "an indented mark in a fence": "```\n    ```\n{}\n```",
    "a mark with words in a fence": "```\n```sh\n{}\n```",
    "a fence after one that a quote's end closed": "> ```\n> a\n\nSo:\n\n> ```\n> {}\n> ```",
    "a fence after a quote that a blank line closed": "> ```\n> a\n\n> ```\n> {}\n> ```",
    "indentation": "So:\n\n    {}",
    "a tab": "So:\n\n\t{}",
    "indentation in a quote": "> So:\n>\n>     {}",
    "indentation behind a list's mark": "-     {}",
    "a line": "So `{}` it is.",
    "a line with marks in it": "So ``{} ` b`` it is.",
}


@pytest.mark.parametrize("place", CODE)
@pytest.mark.parametrize(
    ("code", "other"),
    [("x  = 1", "x = 1"), ("a _b_ c", "a *b* c"), ("a &amp; b", "a & b"), ("a \\* b", "a * b"), ("* a", "- a")],
)
def test_code_is_compared_exactly_wherever_it_stands(place: str, code: str, other: str) -> None:
    text = f"Look:\n\n{CODE[place]}\n\nThat is _all_."
    assert normal_form(text.format(code)) != normal_form(text.format(other))


@pytest.mark.parametrize("place", CODE)
def test_what_stands_behind_code_may_be_written_anew(place: str) -> None:
    text = f"Look:\n\n{CODE[place].format('x')}\n\nThat is _all_."
    assert normal_form(text.replace("_all_", "*all*")) == normal_form(text)


def test_blank_lines_in_an_indented_block_count() -> None:
    assert normal_form("So:\n\n    a\n\n\n    b") != normal_form("So:\n\n    a\n\n    b")
