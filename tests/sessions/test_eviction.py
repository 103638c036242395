"""Least recently used first, all or nothing, and nobody for nothing."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from sessions.eviction import Candidate, choose_victims

CANDIDATES = st.lists(
    st.builds(
        Candidate,
        conversation_id=st.text("abcdef", min_size=4, max_size=4),
        held_bytes=st.integers(0, 100),
        last_used_at=st.floats(0, 100),
    ),
    max_size=12,
    unique_by=lambda candidate: candidate.conversation_id,
)


def names(victims: tuple[Candidate, ...] | None) -> list[str]:
    assert victims is not None
    return [victim.conversation_id for victim in victims]


def test_the_least_recently_used_goes_first() -> None:
    new, old = Candidate("new", 10, 2.0), Candidate("old", 10, 1.0)
    assert names(choose_victims([new, old], 5)) == ["old"]


def test_nothing_is_dropped_when_everything_would_not_do() -> None:
    assert choose_victims([Candidate("a", 10, 1.0)], 11) is None


def test_a_small_one_is_spared_when_the_next_is_large_enough() -> None:
    small, large = Candidate("small", 10, 1.0), Candidate("large", 60, 2.0)
    assert names(choose_victims([small, large], 50)) == ["large"]


@given(CANDIDATES, st.integers(1, 300))
def test_enough_is_freed_and_no_victim_is_superfluous(candidates: list[Candidate], needed_bytes: int) -> None:
    victims = choose_victims(candidates, needed_bytes)
    if victims is None:
        assert sum(c.held_bytes for c in candidates) < needed_bytes
        return
    freed = sum(victim.held_bytes for victim in victims)
    assert freed >= needed_bytes
    assert all(freed - victim.held_bytes < needed_bytes for victim in victims)
    assert set(victims) <= set(candidates)
