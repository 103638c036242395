"""What a person sees of answers in Markdown: GitHub's categories, alone and nested three deep."""

from __future__ import annotations

import pytest

from tests.app.page.markdown.cases import CASES
from tests.app.page.markdown.outline import outline
from tests.app.page.markdown.trees import draw


@pytest.mark.parametrize(("written", "seen"), [pair for pairs in CASES.values() for pair in pairs])
def test_an_answer_looks_as_it_was_meant(written: str, seen: str) -> None:
    assert outline(draw(written)) == seen


@pytest.mark.parametrize(("written", "seen"), [pair for pairs in CASES.values() for pair in pairs])
def test_it_looks_the_same_in_a_list_in_a_quote_in_a_list(written: str, seen: str) -> None:
    """Three levels around it change nothing inside. Not: what needs the first column, or defines something."""
    if "]:" in written or written.startswith(("    ", "- ", "* ", "   ")) or "\n\n\n" in written:
        return
    nested = "- a\n\n  > - b\n  >\n  >   " + written.replace("\n", "\n  >   ") + "\n"
    shown = outline(draw(nested))
    begin = "<ul><li><p>a</p><quote><ul><li><p>b</p>"
    assert shown.startswith(begin)
    assert shown.removeprefix(begin).replace("\n</pre>", "</pre>") == (
        seen.replace("\n</pre>", "</pre>") + "</li></ul></quote></li></ul>"
    )
