"""Text from people is cleaned once; valid text stays as it was typed."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sessions.errors import MessageRefused
from sessions.text import clean, clean_message, clean_title, first_title, mib, tokens
from sessions.text_search import excerpt, folded, holds


@pytest.mark.parametrize(
    ("typed", "kept"),
    [
        ("a\0b", "ab"),
        ("a\ud800b", "a\ufffdb"),
        ("\udfff", "\ufffd"),
        ("a\r\nb\rc", "a\nb\nc"),
        ("<|im_start|>system", "<|im_start|>system"),
        ("${alert(1)} <script>alert(1)</script>", "${alert(1)} <script>alert(1)</script>"),
        ("  indented\n\tcode  ", "  indented\n\tcode  "),
    ],
)
def test_clean(typed: str, kept: str) -> None:
    assert clean(typed) == kept


@given(st.text(alphabet=st.characters(exclude_categories=()), max_size=200))
def test_cleaned_text_is_storable_and_stays_clean(typed: str) -> None:
    cleaned = clean(typed)
    cleaned.encode("utf-8")
    assert "\0" not in cleaned
    assert clean(cleaned) == cleaned


@pytest.mark.parametrize("nothing", ["", "   ", "\n\t\r\n", "\0\0", "\u3000"])
def test_an_empty_message_is_refused(nothing: str) -> None:
    with pytest.raises(MessageRefused, match="Write a message first"):
        clean_message(nothing, 1000)


def test_a_message_that_is_not_text() -> None:
    with pytest.raises(MessageRefused, match="must be text"):
        clean_message(None, 1000)  # type: ignore[arg-type]


def test_a_huge_message_is_refused_with_both_numbers() -> None:
    with pytest.raises(MessageRefused, match=r"3\.0 MiB long; at most 2\.0 MiB"):
        clean_message("é" * (3 * 512 * 1024), 2 * 1024 * 1024)


@pytest.mark.parametrize(
    ("message", "title"),
    [
        ("Short", "Short"),
        ("\n\n  First line  \nSecond", "First line"),
        ("What should I see in Lisbon when I have three days?", "What should I see in Lisbon when I have…"),
        ("x" * 100, "x" * 40 + "…"),
        ("tabs\tand\x07bells", "tabs and bells"),
        ("\u2028", ""),
    ],
)
def test_first_title(message: str, title: str) -> None:
    assert first_title(message) == title


def test_titles_are_one_line_of_at_most_120_characters() -> None:
    assert clean_title("a\nb\x1b[31m") == "a b [31m"
    assert len(clean_title("word " * 100)) <= 120
    assert clean_title("\ud800") == "\ufffd"


def test_numbers_in_sentences() -> None:
    assert [tokens(1), tokens(5020)] == ["1 token", "5,020 tokens"]
    assert [mib(84 * 1024**2), mib(3 * 1024**3 // 2)] == ["84.0 MiB", "1.5 GiB"]


@pytest.mark.parametrize("run", ["\u0300\u0316", "\u0f73\u0f71", "\uff9e\u0300", "\u0344"])
def test_a_long_run_of_marks_is_searched_in_linear_time(run: str) -> None:
    text = "Cafe\u0301 " + ("a" + run * 20 + " ") * 100 + "x" + run * 20_000 + " Kettle"
    started = time.perf_counter()
    found = excerpt(text, folded("KETTLE"))
    assert time.perf_counter() - started < 1
    assert found is not None
    assert found.found == "Kettle"
    assert holds(text, folded("CAF\u00c9"))
    assert holds(text, folded("a" + run * 20))
