"""A reasoning model's thoughts are told from what it says, finished and while they grow."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sessions.ledger.thoughts import Parts, split

THINK = "<think>\n"


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("<think>\na\n</think>\n\nb", Parts("a", "b")),
        ("<thinking>a</thinking>b", Parts("a", "b")),
        ("\n<reasoning>a</reasoning>\nb", Parts("a", "b")),
        ("<seed:think>a</seed:think>b", Parts("a", "b")),
        ("[THINK]a[/THINK]b", Parts("a", "b")),
        ("◁think▷a◁/think▷b", Parts("a", "b")),
        ("<|begin_of_thought|>a<|end_of_thought|>\n\nb", Parts("a", "b")),
        ("<|channel|>analysis<|message|>a<|channel|>final<|message|>b", Parts("a", "b")),
        ("<think>\n\n</think>\n\nb", Parts("", "b")),
        ("<think>a</think>\n<think>b</think>\nc", Parts("a\n\nb", "c")),
        ("a\n</think>\n\nb", Parts("a", "b")),  # the prompt had the opening mark
        ("<think>a", Parts("a", "", True)),
        ("<think>a `</think>` b", Parts("a `", "` b")),
        ("Use <think> and </think>.", Parts("", "Use <think> and </think>.")),
        ("```\na\n</think>\n```\nb", Parts("", "```\na\n</think>\n```\nb")),
        ("<thin", Parts("", "<thin")),
        ("", Parts("", "")),
    ],
)
def test_thoughts_stand_at_the_beginning(text: str, parts: Parts) -> None:
    assert split(text) == parts


@pytest.mark.parametrize(
    ("text", "prompt_end", "parts"),
    [
        ("<thi", "", Parts("", "")),
        ("<this", "", Parts("", "<this")),
        ("<think>a</thi", "", Parts("a", "", True)),
        ("<think>a</this", "", Parts("a</this", "", True)),
        ("", THINK, Parts("", "", True)),
        ("a\n</think>b", THINK, Parts("a", "b")),
        ("a", "<think>\n\n</think>\n\n", Parts("", "a")),  # a template that switches thinking off
    ],
)
def test_while_it_grows(text: str, prompt_end: str, parts: Parts) -> None:
    assert split(text, prompt_end, is_growing=True) == parts


@given(st.text(alphabet="ab<>/think\n `", max_size=60), st.text(max_size=20))
def test_no_word_disappears(thoughts: str, said: str) -> None:
    """Whatever stands between the marks, each side is shown, up to spaces at its ends."""
    parts = split(f"<think>{thoughts}</think>{said}")
    first, _, rest = f"{thoughts}</think>{said}".partition("</think>")
    assert first.strip() in parts.thoughts
    if "<" not in rest:
        assert parts.answer == rest.lstrip("\n")
