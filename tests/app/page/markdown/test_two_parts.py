"""A reasoning model's thoughts are drawn apart from what it says."""

from __future__ import annotations

from app.page.markdown.answers import AnswerDrawer


def test_an_answer_is_drawn_in_two_parts() -> None:
    drawer = AnswerDrawer("<think>\n")
    growing = drawer.growing("c", "first\n\nsecond")
    assert (growing.thought_blocks, len(growing.blocks), growing.is_thinking) == (2, 2, True)
    both = drawer.growing("c", "first\n\nsecond\n</think>\n\nThe **answer**")
    assert (both.thought_blocks, len(both.blocks), both.is_thinking) == (2, 3, False)
    whole = drawer.whole("<think>first\n\nsecond\n</think>\n\nThe **answer**")
    assert (whole.thought_blocks, whole.said) == (2, "The **answer**")
    assert [block.json for block in whole.blocks] == [block.json for block in both.blocks]
    assert 0.4 < whole.thought_share < 0.8
    assert drawer.whole("stopped in its thoughts", is_complete=False).is_thinking
    assert not drawer.whole("an old answer of another model").has_thoughts
