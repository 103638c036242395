"""Least recently used first, all or nothing, and nobody for nothing."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from sessions.eviction import Candidate, Tail, choose_tails, choose_victims

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


def tail(key: str, parent: str, last_used_at: float, is_protected: bool = False) -> Tail:
    return Tail(key, parent, 10, last_used_at, len(key), is_protected)


def test_saved_conversations_go_from_their_ends() -> None:
    old, new = [tail("a", "", 1), tail("aa", "a", 1), tail("aaa", "aa", 1)], [tail("b", "", 2), tail("bb", "b", 2)]
    assert choose_tails([*new, *old], 20) == ("aaa", "aa")
    assert choose_tails([*new, *old], 31) == ("aaa", "aa", "a", "bb")
    assert choose_tails([*new, *old], 51) is None


def test_what_others_build_on_or_use_stays() -> None:
    shared, used, other = tail("a", "", 1), tail("ab", "a", 9, is_protected=True), tail("ac", "a", 2)
    assert choose_tails([shared, used, other], 10) == ("ac",)
    assert choose_tails([shared, used, other], 11) is None


SEGMENTS = st.lists(st.tuples(st.integers(0, 30), st.integers(1, 50), st.floats(0, 9), st.booleans()), max_size=15)


@given(SEGMENTS, st.integers(1, 300))
def test_what_is_left_is_whole(drawn: list[tuple[int, int, float, bool]], needed_bytes: int) -> None:
    segments = [
        Tail(str(n), str(above % n) if n and above else "", size, age, n, safe)
        for n, (above, size, age, safe) in enumerate(drawn)
    ]
    chosen = choose_tails(segments, needed_bytes)
    if chosen is None:
        return
    left = {s.key: s for s in segments if s.key not in chosen}
    assert sum(s.held_bytes for s in segments if s.key in chosen) >= needed_bytes
    assert all(s.parent_key in ("", *left) for s in left.values())
    assert all(s.key in left for s in segments if s.is_protected)
