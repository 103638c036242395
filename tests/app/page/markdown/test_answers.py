"""Answers as trees: each case was wrong on the page of an earlier version, or is a rule of ours."""

from __future__ import annotations

from typing import Any

import pytest

from tests.app.page.markdown.hostile import ANSWERS
from tests.app.page.markdown.trees import draw, kinds, nodes, text


def only(answer: str, kind: str) -> list[tuple[dict[str, Any], str]]:
    """(attributes, text) of every node of a kind."""
    found = [node for node in nodes(draw(answer)) if node[0] == kind]
    return [(attributes, "".join(text(child) for child in children)) for _, attributes, children, _ in found]


def test_a_word_that_no_highlighter_knows_leaves_the_code() -> None:
    for language in ("cpp", "c++", "CPP", "mermaid", "no-such-language", "", "\\", "html onload=x", "constructor"):
        blocks = draw(f"Before.\n\n```{language}\nint x;\n```\n\nAfter.")
        assert [text(block) for block in blocks] == ["Before.", "int x;\n", "After."]
        assert [block[0] for block in blocks] == ["paragraph", "code_block", "paragraph"]


def test_html_is_its_own_text() -> None:
    overlay = draw(ANSWERS["overlay"])
    assert kinds(overlay) == {"numbers", "item", "paragraph"}
    assert '<div style="position:fixed;inset:0;' in text(overlay)
    assert text(draw(ANSWERS["generics"])) == "first\nUse List<String> and Map<K, V> here.\n\n"
    assert text(draw(ANSWERS["backticks"])) == "a backtick ` alone <b>one</b>\n\nanother ` and <i>two</i>\n\n"
    nested = only(ANSWERS["nested fence"], "code_block")
    assert nested == [({}, "a = 1 < 2\n\nb = 3 < 4\n")]
    assert text(draw(ANSWERS["nested fence"])).rstrip().endswith("next <T>")
    assert text(draw("a <b>c</b> < d &lt;i&gt;")) == "a <b>c</b> < d <i>"
    assert text(draw("<!-- a -->\n<script>\nx\n</script>")) == "<!-- a -->\n<script>\nx\n</script>"


def test_code_is_what_was_written() -> None:
    assert only("Use `a < b` and ``c ` < d``", "code") == [({}, "a < b"), ({}, "c ` < d")]
    assert only("```python\nif a < b:\n", "code_block") == [({}, "if a < b:\n")]
    assert only("````\n```\n<b>\n````\n<i>", "code_block") == [({}, "```\n<b>\n")]
    assert only("- item\n  ```\n  <b>\n  ```\n<i>", "code_block") == [({}, "<b>\n")]
    assert text(draw("a ` b <i>")) == "a ` b <i>"


def test_links_use_three_schemes_only() -> None:
    text_of_links = "[a](http://x/y) [b](https://x) [c](mailto:a@b.c) <https://example.com/path> https://x.y/z_a_b."
    assert [attributes["href"] for attributes, _ in only(text_of_links, "link")] == [
        "http://x/y",
        "https://x",
        "mailto:a@b.c",
        "https://example.com/path",
        "https://x.y/z_a_b",
    ]
    for refused in (
        "[a](javascript:x)",
        "[a](JAVASCRIPT:x)",
        "[a](data:text/html,x)",
        "[a](file:///etc/passwd)",
        "[a](//example.com)",
        "[a](/logout)",
        "[a](#x)",
        "<javascript:x>",
        "![a](data:image/png;base64,AAAA)",
    ):
        assert text(draw(refused)) == refused
        assert "link" not in kinds(draw(refused))
    assert "link" not in kinds(draw("[a](&#106;avascript:x) [b](java&Tab;script:x) [c](\x01javascript:x)"))


@pytest.mark.parametrize(
    ("answer", "href", "rest"),
    [
        ("(see https://x.y/a_(b))", "https://x.y/a_(b)", "(see )"),
        ("**https://x.y**", "https://x.y", ""),
        ("https://x.y/?q=1&r=2!", "https://x.y/?q=1&r=2", "!"),
        ("看https://x.y/a。然后", "https://x.y/a", "看。然后"),
    ],
)
def test_an_address_ends_where_the_sentence_goes_on(answer: str, href: str, rest: str) -> None:
    ((attributes, shown),) = only(answer, "link")
    assert attributes["href"] == shown == href
    assert text(draw(answer)).replace(href, "") == rest


def test_an_address_in_an_attribute_that_is_shown_is_no_link() -> None:
    assert "link" not in kinds(draw('<img src="http://leak.invalid/x"> src=http://leak.invalid/y xhttp://z'))


def test_a_picture_is_a_link_with_its_words() -> None:
    assert only("![a *b*](http://x/p.png) ![](https://x/q.png)", "link") == [
        ({"href": "http://x/p.png", "picture": True}, "a b"),
        ({"href": "https://x/q.png", "picture": True}, "https://x/q.png"),
    ]


def test_two_tildes_strike_and_one_does_not() -> None:
    assert only("~one~ ~~two~~ 3~4 ~", "struck") == [({}, "two")]
    assert text(draw("~one~ 3~4 ~")) == "~one~ 3~4 ~"


def test_task_lists_and_numbers() -> None:
    assert [attributes["done"] for attributes, _ in only("- [ ] a\n- [x] b\n\n1. [X] c", "task")] == [False, True, True]
    assert only("3. a\n4. b", "numbers") == [({"start": 3}, "a\n\nb\n\n")]
    assert only("1. a", "numbers") == [({}, "a\n\n")]


def test_tables_are_aligned_and_long_cells_widen_them() -> None:
    table = "| a | b | c |\n| :-- | :-: | --: |\n| 1 | 2 | a rather long cell with many words |"
    assert [attributes for attributes, _ in only(table, "cell")] == [
        {"align": "left"},
        {"align": "center"},
        {"align": "right", "wide": True},
    ]


def test_a_row_with_too_many_cells_loses_none() -> None:
    table = "| a | b |\n| - | - |\n| 1 | `x | y` |\n| 2 | 3 | 4 | 5 |\n| 6 | 7 \\| 8 |\n| 9 | 10 ||\n"
    assert [shown for _, shown in only(table, "cell")] == ["1", "x | y", "2", "3 | 4 | 5", "6", "7 | 8", "9", "10"]


def test_what_is_nested_too_deep_is_text() -> None:
    for deep in (">" * 10_000 + " end", "- " * 5_000 + "end", "> - " * 2_500 + "end", "1. " * 3_000 + "end"):
        blocks = draw(deep)
        assert text(blocks).rstrip().endswith("end")
        assert max(depth for *_, depth in nodes(blocks)) < 60
    emphasis = draw("".join(f"*a{n} **b{n} " for n in range(1_000)) + "x" + "**" * 1_000 + "*" * 1_000)
    assert "a999" in text(emphasis)
    assert max(depth for *_, depth in nodes(emphasis)) < 60


def test_a_table_of_thousands_of_empty_cells_stays_text() -> None:
    two_kilobytes = "|a" * 90 + "|\n" + "|-" * 90 + "|\n" + "|b\n" * 700
    assert kinds(draw(two_kilobytes)) == {"paragraph", "break"}
    assert "table" in kinds(draw("|a|b|\n|-|-|\n" + "|c|d|\n" * 2_000))


def test_a_line_break_is_kept() -> None:
    assert text(draw("a\nb  \nc")) == "a\nb\nc"


def test_broken_characters_do_not_break_the_page() -> None:
    assert text(draw("a\x00b \ud800 c\r\nd\re")) == "a\ufffdb \ufffd c\nd\ne"
