"""The least valuable KVs are evicted first: all that is needed or nothing, none in vain, and no guaranteed share."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from sessions.memory.eviction import (
    KEPT_FOR_S,
    Candidate,
    SegmentCandidate,
    choose_tails,
    choose_victims,
    guaranteed_bytes,
    worth,
)

CANDIDATES = st.lists(
    st.builds(
        Candidate,
        conversation_id=st.text("abcdef", min_size=4, max_size=4),
        owner_id=st.sampled_from(["ada", "eve", "bob"]),
        held_bytes=st.integers(0, 100),
        idle_s=st.floats(0, 100),
        lost_s=st.floats(0, 100),
    ),
    max_size=12,
    unique_by=lambda candidate: candidate.conversation_id,
)


def names(victims: tuple[Candidate, ...] | None) -> list[str]:
    assert victims is not None
    return [victim.conversation_id for victim in victims]


def candidate(name: str, size: int, idle_s: float = 1.0, lost_s: float = 0.0, owner: str = "ada") -> Candidate:
    """Every byte is worth the same unless `lost_s` is given."""
    return Candidate(name, owner, size, idle_s, lost_s or float(size))


def test_the_least_recently_used_goes_first_where_bytes_are_worth_the_same() -> None:
    assert names(choose_victims([candidate("new", 10, 1.0), candidate("old", 10, 2.0)], 5)) == ["old"]


def test_what_saves_fewer_seconds_a_byte_goes_first() -> None:
    long, short = candidate("long", 100, 5.0, lost_s=20.0), candidate("short", 10, 5.0, lost_s=0.5)
    assert names(choose_victims([long, short], 5)) == ["short"]


def test_recency_outweighs_a_small_difference_and_not_a_large_one() -> None:
    assert worth(1.0, 10, 60.0) < worth(0.5, 10, 1.0)
    assert worth(100.0, 10, 60.0) > worth(0.5, 10, 1.0)


def test_nothing_is_evicted_when_everything_is_not_enough() -> None:
    assert choose_victims([candidate("a", 10)], 11) is None


def test_a_small_one_is_spared_when_the_next_is_large_enough() -> None:
    small, large = candidate("small", 10, 2.0), candidate("large", 60, 1.0)
    assert names(choose_victims([small, large], 50)) == ["large"]


def test_a_guaranteed_share_is_not_evicted_by_others() -> None:
    mine, theirs = candidate("mine", 40, 1.0), candidate("theirs", 40, 900.0, owner="eve")
    held = {"ada": 40, "eve": 40}
    assert names(choose_victims([mine, theirs], 30, "ada", held, share_bytes=40)) == ["mine"]
    assert names(choose_victims([mine, theirs], 30, "ada", held, share_bytes=39)) == ["theirs"]
    assert choose_victims([theirs], 30, "ada", held, share_bytes=40) is None
    assert names(choose_victims([theirs], 30, "eve", held, share_bytes=40)) == ["theirs"]
    assert names(choose_victims([theirs], 30, "ada", {"ada": 40}, share_bytes=40)) == [
        "theirs"
    ]  # eve is not active any more


@given(CANDIDATES, st.integers(1, 300), st.integers(0, 150), st.sampled_from(["ada", "eve"]))
def test_others_keep_their_shares_and_each_user_always_gets_its_own(
    candidates: list[Candidate], needed_bytes: int, share_bytes: int, asking: str
) -> None:
    held: dict[str, int] = {}
    for each in candidates:
        held[each.owner_id] = held.get(each.owner_id, 0) + each.held_bytes
    victims = choose_victims(candidates, needed_bytes, asking, held, share_bytes)
    left = dict(held)
    for victim in victims or ():
        assert victim.owner_id == asking or held[victim.owner_id] > share_bytes
        left[victim.owner_id] -= victim.held_bytes
    if victims is None:  # then what remains are the others' shares, or less
        kept = sum(min(bytes_, share_bytes) for owner, bytes_ in held.items() if owner != asking)
        assert sum(held.values()) - kept < needed_bytes


def test_half_of_the_budget_is_guaranteed_in_equal_parts() -> None:
    assert guaranteed_bytes(1000, 1) == 500
    assert guaranteed_bytes(1000, 4) == 125
    assert guaranteed_bytes(1000, 0) == 500


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


def tail(
    key: str, parent: str, last_used_at: float, is_protected: bool = False, lost_s: float = 10.0, owner: str = "ada"
) -> SegmentCandidate:
    return SegmentCandidate(key, parent, owner, 10, 10 - last_used_at, len(key), is_protected, lost_s)


def test_a_tail_that_is_quickly_read_again_goes_before_a_costly_one() -> None:
    assert choose_tails([tail("a", "", 1, lost_s=9.0), tail("b", "", 1, lost_s=1.0)], 10) == ("b",)


def test_saved_conversations_go_from_their_ends() -> None:
    old, new = [tail("a", "", 1), tail("aa", "a", 1), tail("aaa", "aa", 1)], [tail("b", "", 2), tail("bb", "b", 2)]
    assert choose_tails([*new, *old], 20) == ("aaa", "aa")
    assert choose_tails([*new, *old], 31) == ("aaa", "aa", "a", "bb")
    assert choose_tails([*new, *old], 51) is None


def test_segments_that_others_continue_or_use_stay() -> None:
    shared, used, other = tail("a", "", 1), tail("ab", "a", 9, is_protected=True), tail("ac", "a", 2)
    assert choose_tails([shared, used, other], 10) == ("ac",)
    assert choose_tails([shared, used, other], 11) is None


SEGMENTS = st.lists(st.tuples(st.integers(0, 30), st.integers(1, 50), st.floats(0, 9), st.booleans()), max_size=15)


@given(SEGMENTS, st.integers(1, 300))
def test_the_remaining_chains_are_complete(drawn: list[tuple[int, int, float, bool]], needed_bytes: int) -> None:
    segments = [
        SegmentCandidate(str(n), str(above % n) if n and above else "", "ada", size, age, n, safe, float(size))
        for n, (above, size, age, safe) in enumerate(drawn)
    ]
    chosen = choose_tails(segments, needed_bytes)
    if chosen is None:
        return
    left = {s.key: s for s in segments if s.key not in chosen}
    assert sum(s.held_bytes for s in segments if s.key in chosen) >= needed_bytes
    assert all(s.parent_key in ("", *left) for s in left.values())
    assert all(s.key in left for s in segments if s.is_protected)


def test_saved_segments_of_others_stay_within_their_shares() -> None:
    mine, theirs = tail("m", "", 9), [tail(key, "", 1, owner="eve") for key in ("e", "ee", "eee")]
    assert choose_tails([mine, *theirs], 10, "ada", budget_bytes=40) == ("eee",)
    assert choose_tails([mine, *theirs], 30, "ada", budget_bytes=40) == ("eee", "ee", "m")
    assert choose_tails([mine, *theirs], 31, "ada", budget_bytes=40) is None
    assert (
        choose_tails([mine, *theirs], 40, budget_bytes=40) is not None
    )  # the budget itself has priority over every share


def test_long_unused_segments_are_in_no_guaranteed_share() -> None:
    old = [tail(key, "", 10 - KEPT_FOR_S, owner="eve") for key in ("e", "ee")]
    assert choose_tails(old, 20, "ada", budget_bytes=40) == ("ee", "e")


@given(SEGMENTS, st.integers(1, 300), st.integers(1, 600))
def test_others_keep_their_guaranteed_shares(
    drawn: list[tuple[int, int, float, bool]], needed_bytes: int, budget_bytes: int
) -> None:
    owners = ("ada", "eve", "bob")
    segments = [
        SegmentCandidate(str(n), "", owners[n % 3], size, age, 0, False, 1.0)
        for n, (_, size, age, _) in enumerate(drawn)
    ]
    chosen = choose_tails(segments, needed_bytes, "ada", budget_bytes)
    share_bytes = guaranteed_bytes(budget_bytes, len({"ada", *(s.owner_id for s in segments)}))
    for owner in ("eve", "bob"):
        own = [s for s in segments if s.owner_id == owner]
        kept_bytes = sum(s.held_bytes for s in own if s.key not in (chosen or ()))
        held_bytes = sum(s.held_bytes for s in own)
        largest_bytes = max((s.held_bytes for s in own), default=0)
        assert kept_bytes == held_bytes or kept_bytes > share_bytes - largest_bytes
