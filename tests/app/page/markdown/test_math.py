r"""Mathematics is typeset if every part of it is known; otherwise its exact source is shown."""

from __future__ import annotations

import json

import pytest

from tests.app.page.markdown.trees import draw, kinds, nodes, text


def sources(answer: str) -> list[str]:
    """The source of everything that was recognised as mathematics."""
    found = []
    for kind, attributes, children, _ in nodes(draw(answer)):
        if kind == "math":
            found.append(attributes["source"])
        elif kind == "math_source":
            found.append(children[0])
    return found


def test_four_spellings() -> None:
    answer = "Euler: \\( e^{i\\pi} + 1 = 0 \\) and \\[ x^2 \\] and $a$ and $$b$$"
    assert sources(answer) == ["\\( e^{i\\pi} + 1 = 0 \\)", "\\[ x^2 \\]", "$a$", "$$b$$"]
    assert {"msup", "mi", "mo", "mn"} <= kinds(draw(answer))
    assert "π" in text(draw(answer))


def test_a_formula_of_several_lines_is_not_a_list() -> None:
    for formula in ("$$\na\n- b\n+ c\n= d\n$$", "\\[\na\n- b\n\\]"):
        assert sources(f"So:\n{formula}\nand") == [formula]
        assert [text(block) for block in (draw(f"So:\n{formula}\nand")[0], draw(f"So:\n{formula}\nand")[-1])] == [
            "So:",
            "and",
        ]


@pytest.mark.parametrize(
    "prose",
    [
        "It costs $5 or $6.",
        "between $5-$6",
        "US$5 and US$6",
        "export A=$HOME/$PATH",
        "$ 5 $ 6",
        "a $ b",
        "$",
        "$$",
        "$$$$",
        "x$y$z",
        "$5 (or $6)",
    ],
)
def test_money_and_variables_are_none(prose: str) -> None:
    assert text(draw(prose)) == prose
    assert sources(prose) == []


def test_none_in_code() -> None:
    assert sources("`$x$` and\n\n    $$x$$\n\n```\n\\(x\\)\n```") == []


def test_an_escaped_link_is_none() -> None:
    assert sources("\\[not a link\\](http://x)") == []


@pytest.mark.parametrize(
    "latex",
    [
        "\\rule{4000em}{4000em}",
        "\\hspace{4000em}x",
        "\\kern4000em x",
        "\\lower4000em x",
        "\\href{javascript:alert(1)}{x}",
        "\\style{position:fixed}{x}",
        "\\class{kw}{x}",
        "\\cssId{kw}{x}",
        "\\newcommand{\\a}{\\b\\b}\\newcommand{\\b}{\\a\\a}\\a",
        "\\def\\a{\\a\\a}\\a",
        "\\unknown{x}",
        "\\frac{a}",
        "x^",
        "\\begin{picture} a \\end{picture}",
        "{" * 500 + "x" + "}" * 500,
        "x^{" * 300 + "x" + "}" * 300,
        "a" * 1_500,
    ],
)
def test_what_is_not_known_to_be_harmless_stays_source(latex: str) -> None:
    for written in (f"\\({latex}\\)", f"$${latex}$$", f"\\[\n{latex}\n\\]"):
        found = nodes(draw(written))
        assert [children for kind, _, children, _ in found if kind == "math_source"] == [[written]]
        assert "math" not in {kind for kind, *_ in found}


def test_text_in_a_formula_is_text() -> None:
    blocks = draw("$\\text{<img src=x>}$")
    assert kinds(blocks) == {"paragraph", "math", "mrow", "mtext"}
    assert "<img" in json.dumps(blocks)
