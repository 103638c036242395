"""Nothing that anybody wrote may become HTML, and code must stay what it was."""

from __future__ import annotations

import html

from hypothesis import given
from hypothesis import strategies as st

from app import markdown


@given(st.text(st.characters(exclude_characters="\t\u00a0")))
def test_a_persons_message_is_shown_letter_by_letter(text: str) -> None:
    shown = markdown.literal(text)
    assert "<" not in shown.replace("<br>", "")
    assert "\n".join(html.unescape(line) for line in shown.split("<br>")).replace("\u00a0", " ") == text


def test_indentation_of_a_message_survives() -> None:
    assert markdown.literal("a\n    b\n\tc") == "a<br>\u00a0\u00a0\u00a0\u00a0b<br>\u00a0\u00a0\u00a0\u00a0c"


def test_html_in_an_answer_is_text() -> None:
    assert markdown.answer("a <b>c</b> < d") == "a &lt;b>c&lt;/b> &lt; d"
    assert markdown.answer("![x](http://y)") == "&#33;[x](http://y)"


def test_code_is_left_alone() -> None:
    text = "Use `a < b` and ``c ` < d``:\n\n```html\n<b>x</b>\n```\n"
    assert markdown.answer(text) == text
    assert markdown.answer("- item\n  ```\n  <b>\n  ```\n<i>") == "- item\n  ```\n  <b>\n  ```\n&lt;i>"


def test_an_unfinished_code_block_is_code() -> None:
    text = "```python\nif a < b:\n"
    assert markdown.answer(text) == text


def test_a_longer_fence_holds_a_shorter_one() -> None:
    text = "````\n```\n<b>\n````\n"
    assert markdown.answer(text + "<i>") == text + "&lt;i>"


def test_a_backtick_alone_protects_nothing() -> None:
    assert markdown.answer("a ` b <i>") == "a ` b &lt;i>"
    assert markdown.answer("a `b\n\n<i> c`") == "a `b\n\n&lt;i> c`"


def test_diagrams_are_shown_as_text() -> None:
    assert markdown.answer("```mermaid\ngraph TD\n```") == "```text\ngraph TD\n```"
