"""The words in which two texts part first, and whether they are a date."""

from __future__ import annotations

import random
import time

import pytest

from sessions.ledger.excerpt import LONGEST_CHARS, changed_part, excerpt, first_difference, fresh_part, likeness

DATES = [
    ("Today is 2026-11-28. You are kind.", "Today is 2026-11-29. You are kind.", "2026-11-28", "2026-11-29"),
    (
        "It is Saturday, 28 November 2026, and",
        "It is Sunday, 29 November 2026, and",
        "Saturday, 28 November 2026",
        None,
    ),
    ("The date: November 28, 2026 x", "The date: November 29, 2026 x", "November 28, 2026", "November 29, 2026"),
    ("At 2026-11-28T10:22:33Z!", "At 2026-11-28T10:22:34Z!", "2026-11-28T10:22:33Z", "2026-11-28T10:22:34Z"),
    ("It is 10:42 PM now", "It is 9:42 PM now", "10:42 PM", "9:42 PM"),
    ("since 1764547200 and", "since 1764547201 and", "1764547200", "1764547201"),
    ("(28.11.2026)", "(29.11.2026)", "28.11.2026", "29.11.2026"),
    ("It is Monday.", "It is Tuesday.", "Monday", "Tuesday"),
]
WORDS = [
    ("Be kind.", "Be brief.", "kind", "brief"),
    ("", "Be brief.", "", "Be brief."),
    ("one two three four", "one three four", "two", ""),
    ("one three four", "one two three four", "", "two"),
    ('{"about": "Weather in Rome", "a": 1}', '{"about": "Weather in Paris", "a": 1}', "Rome", "Paris"),
    ("version 1.2.3 of", "version 1.2.4 of", "1.2.3", "1.2.4"),
    ("May I ask?", "Might I ask?", "May", "Might"),
    ("a `code` here", "a `core` here", "code", "core"),
]


@pytest.mark.parametrize(("before", "after", "old", "new"), DATES)
def test_a_date_is_recognised_and_quoted_whole(before: str, after: str, old: str, new: str | None) -> None:
    found = excerpt(before, after)
    assert found.is_date
    assert found.before == old
    assert new is None or found.after == new


@pytest.mark.parametrize(("before", "after", "old", "new"), WORDS)
def test_other_words_are_no_date(before: str, after: str, old: str, new: str) -> None:
    found = excerpt(before, after)
    assert (found.before, found.after, found.is_date) == (old, new, False)


def test_any_texts_are_quoted_briefly_and_parted_where_they_differ() -> None:
    for seed in range(300):
        dice = random.Random(seed)
        before = " ".join(
            dice.choice(["a", "bb", "2026-11-28", "`c`", "é", "x" * 90]) for _ in range(dice.randint(0, 40))
        )
        place = dice.randint(0, len(before))
        after = before[:place] + dice.choice(["", "y", " z ", "x" * 200]) + before[place + dice.randint(0, 3) :]
        same = first_difference(before, after)
        assert before[:same] == after[:same]
        assert same == min(len(before), len(after)) or before[same] != after[same]
        found = excerpt(before, after)
        assert max(len(found.before), len(found.after)) <= LONGEST_CHARS
        assert "`" not in found.before + found.after
        old, new = changed_part(before, after)
        assert len(before) - len(old) == len(after) - len(new) == likeness(before, after)
        assert len(fresh_part(before, after)) <= len(new)


def test_it_takes_little_time_for_long_texts() -> None:
    text = "The pump is primed before it is started, on 2026-11-28. " * 20_000
    started = time.perf_counter()
    excerpt(text, text[:600_000] + "x" + text[600_000:])
    fresh_part(text, "x" + text[1:-1])
    assert time.perf_counter() - started < 2
