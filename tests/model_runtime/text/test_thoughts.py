"""Thoughts come apart from what an answer says, whole and while it grows."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from model_runtime.text import thoughts

PIECES = st.lists(
    st.sampled_from(["<think>", "</think>", "<", "</th", "ink>", "\n", " ", "a", "word ", "é"]), max_size=12
).map("".join)


@pytest.mark.parametrize(
    ("text", "is_open", "parts"),
    [
        ("Hello", False, ("", "Hello")),
        ("<think>\nhm\n</think>\n\nHello", False, ("hm", "Hello")),
        ("\n<think>hm</think>Hello", False, ("hm", "Hello")),
        ("hm\n</think>\n\nHello", True, ("hm", "Hello")),
        ("<think>hm</think>Hello", True, ("hm", "Hello")),  # the model writes the tag once more
        ("<think>\n\n</think>\n\nHello", False, ("", "Hello")),
        ("<think>\ncut", False, ("cut", "")),
        ("cut", True, ("cut", "")),
        ("I <think> so", False, ("", "I <think> so")),
        ("a </think> b", False, ("", "a </think> b")),
        ("<think>a</think>b</think>c", False, ("a", "b</think>c")),
    ],
)
def test_a_finished_answer(text: str, is_open: bool, parts: tuple[str, str]) -> None:
    assert thoughts.split(text, is_open) == parts


@given(PIECES, st.booleans())
def test_what_is_shown_of_a_growing_answer_stays(text: str, is_open: bool) -> None:
    whole, shown = thoughts.split(text, is_open), ("", "")
    for end in range(len(text) + 1):
        now = thoughts.split_growing(text[:end], is_open)
        assert all(later.startswith(before) for before, later in zip(shown, now, strict=True))
        shown = now
    assert all(last.startswith(before) for before, last in zip(shown, whole, strict=True))


@given(PIECES, PIECES, st.booleans())
def test_what_is_joined_comes_apart_again(thought: str, said: str, is_open: bool) -> None:
    thought, said = thought.replace(thoughts.END, "").strip("\n"), said.lstrip("\n")
    if thoughts.END in f"{thought}\n{thoughts.END}"[:-1] or said.lstrip().startswith(thoughts.BEGIN):
        return
    if thought:
        assert thoughts.split(thoughts.join(thought, said)) == (thought, said)
    if not thought.lstrip().startswith("<"):
        assert thoughts.split(thoughts.begin(thought, said, is_open), is_open) == (thought, said)


@pytest.mark.parametrize(
    ("prompt", "is_open"),
    [("assistant\n<think>\n", True), ("assistant\n", False), ("<think>\n\n</think>\n\n", False), ("<think>", True)],
)
def test_a_prompt_that_opens_a_thought(prompt: str, is_open: bool) -> None:
    assert thoughts.opens_thought(prompt) is is_open
