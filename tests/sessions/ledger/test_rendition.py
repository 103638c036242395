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
