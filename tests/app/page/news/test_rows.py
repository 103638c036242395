"""What is sent of a list turns the page's list into the server's, and is small when little changed."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from app.page.news.rows import SentLists

Rows = list[dict[str, Any]]
lists = st.lists(
    st.tuples(st.integers(0, 12), st.sampled_from("abc")), max_size=12, unique_by=lambda pair: pair[0]
).map(lambda pairs: [{"id": str(key), "title": title} for key, title in pairs])


def applied(before: Rows, news: dict[str, Any]) -> Rows:
    """As app/page/assets/pulse.js does it."""
    if "all" in news:
        return list(news["all"])
    away = {*news["gone"], *(row["id"] for _, row in news["put"])}
    rows = [row for row in before if row["id"] not in away]
    for index, row in news["put"]:
        rows.insert(index, row)
    return rows


@given(st.lists(lists, min_size=1, max_size=6))
def test_a_page_that_follows_has_the_list(states: list[Rows]) -> None:
    sent, have, token = SentLists(), list[dict[str, Any]](), ""
    for rows in states:
        news = sent.news("ada", rows, token)
        if news is not None:
            have, token = applied(have, news), news["token"]
        assert have == rows
        assert sent.news("ada", rows, token) is None


def rows_of(count: int) -> Rows:
    return [{"id": f"{number:032x}", "title": f"Conversation {number}", "tier": "disk"} for number in range(count)]


def test_one_change_among_many_is_small() -> None:
    sent, rows = SentLists(), rows_of(5_000)
    first = sent.news("ada", rows, "")
    assert first is not None
    answered = [{**rows[4_000], "tier": "device"}, *rows[:4_000], *rows[4_001:]]
    second = sent.news("ada", answered, first["token"])
    assert second is not None
    assert len(json.dumps(second)) < 300
    assert applied(rows, second) == answered
    moved = [answered[7], *answered[:7], *answered[8:]]  # nothing but its place
    third = sent.news("ada", moved, second["token"])
    assert third is not None
    assert len(json.dumps(third)) < 300
    assert applied(answered, third) == moved


def test_a_token_of_another_owner_says_nothing() -> None:
    sent, rows = SentLists(), rows_of(3)
    first = sent.news("ada", rows, "")
    assert first is not None
    stranger = sent.news("eve", rows[:1], first["token"])
    assert stranger is not None
    assert stranger["all"] == rows[:1]


def test_lists_are_forgotten_in_time() -> None:
    sent = SentLists(most_rows=100)
    tokens = []
    for number in range(5):
        news = sent.news("ada", rows_of(30 + number), "")
        assert news is not None
        tokens.append(news["token"])
    oldest, newest = sent.news("ada", rows_of(3), tokens[0]), sent.news("ada", rows_of(33), tokens[4])
    assert oldest is not None
    assert "all" in oldest
    assert newest is not None
    assert "put" in newest
