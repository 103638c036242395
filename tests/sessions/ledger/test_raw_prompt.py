"""A prompt that is no chat finds the longest answered text that it begins with."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sessions.ledger.raw_prompt import RawPrompt, size_of

texts = st.lists(st.sampled_from(["a", "é", "👩‍🚀", " b", ""]), max_size=6).map("".join)
ids = st.lists(st.integers(0, 3), max_size=6).map(tuple)


@given(st.data())
@pytest.mark.parametrize("said", [texts, ids], ids=["text", "ids"])
def test_beginnings_are_those_and_no_others(
    said: st.SearchStrategy[str | tuple[int, ...]], data: st.DataObject
) -> None:
    prompt = RawPrompt(data.draw(said))
    asked = data.draw(st.lists(st.tuples(said, said), max_size=5))
    stored: dict[str, str | tuple[int, ...]] = {}
    for question, answer in asked:
        stored[RawPrompt(question).link] = question
        text, tokens = (answer, ()) if isinstance(answer, str) else ("", answer)
        stored[RawPrompt(question).answered(text, tokens)] = question + answer  # type: ignore[operator]
    found = prompt.beginnings_among(stored)
    expected = {
        link
        for link, text in stored.items()
        if prompt.said[: len(text)] == text and ("!" in link or text == prompt.said)
    }
    assert set(found) == expected
    assert [size_of(link) for link in found] == sorted(map(size_of, found), reverse=True)


def test_texts_and_ids_are_different_things() -> None:
    assert RawPrompt("a").beginnings_among([RawPrompt((97,)).link]) == []
